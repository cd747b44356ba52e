"""What the pages for people promise must be so."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from tumorlens.cli.app import app
from tumorlens.config import setting_names

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
CONFIGS = sorted(REPOSITORY.glob("configs/*.toml"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_lines(path: Path) -> list[list[str]]:
    """Return each `tumorlens ...` of a page, in code blocks and between backticks."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [text]
    if path.suffix == ".md":  # elsewhere a sentence may begin with the name
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^(?:# +)?(tumorlens .*)$", "\n".join(blocks), re.MULTILINE)
    found += re.findall(r"`(tumorlens [^`\n]*)`", text)
    return [shlex.split(line, comments=True) for line in found]


def test_there_are_pages_with_commands() -> None:
    assert len(PAGES) >= 5
    assert len(command_lines(REPOSITORY / "README.md")) >= 10


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS], ids=lambda path: path.name)
def test_commands_in_the_pages_exist_with_their_options(path: Path) -> None:
    for _, name, *words in command_lines(path):
        if name.startswith("-") or not name.islower():
            continue
        assert name in COMMANDS, f"tumorlens {name}"
        command = COMMANDS[name]
        if hasattr(command, "commands") and words:
            command = command.commands[words[0]]
        known = {option for param in command.params for option in param.opts}
        known |= {"--help"}
        used = {word for word in words if word.startswith("--")}
        assert used <= known, f"tumorlens {name} {used - known}"
        for before, word in pairwise(words):
            if before == "--set" and "=" in word:
                assert word.partition("=")[0] in setting_names()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_the_pages_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for path in PAGES:
        named = re.findall(r"`make ([a-z-]+)`", path.read_text(encoding="utf-8"))
        assert set(named) <= targets, path.name


def test_every_target_of_the_makefile_is_phony_and_explained() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    phony = re.findall(r"^\.PHONY: (\S+)\n\1:.* ## \S", makefile, re.MULTILINE)
    assert set(phony) == set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_scripts_that_make_calls_are_there() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for script in re.findall(r"(\S+\.(?:py|toml))\b", makefile):
        if "pyproject" not in script:
            assert (REPOSITORY / script).is_file(), script


@pytest.mark.parametrize(
    ("script", "file"),
    [
        ("make_settings.py", "docs/settings.md"),
        ("make_completion.py", "src/tumorlens/cli/completion.json"),
    ],
)
def test_what_is_made_from_the_code_is_current(script: str, file: str) -> None:
    made = subprocess.run(
        [sys.executable, REPOSITORY / "docs" / script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PYTHONUTF8": "1"},
    )
    page = (REPOSITORY / file).read_text(encoding="utf-8")
    assert page == made.stdout, "run `make docs`"


def test_the_schemas_are_current(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, REPOSITORY / "docs" / "make_schemas.py", tmp_path],
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PYTHONUTF8": "1"},
    )
    made = {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()}
    kept = (REPOSITORY / "docs" / "schemas").iterdir()
    assert {path.name: path.read_text("utf-8") for path in kept} == made, "`make docs`"


def test_the_settings_page_knows_ranges_choices_and_defaults() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert "| `optim.lr` | `0.001` | number > 0 |" in page
    assert "| `data.num_folds` | `5` | whole number ≥ 2 and ≤ 20 |" in page
    assert "| `data.fit` | `pad` | `squash`, `pad` |" in page
    assert "| `model.size_px` | unset | whole number ≥ 16 and ≤ 2048 or unset |" in page
    for key in setting_names():
        assert f"| `{key}` |" in page


FAULTS = {
    "byte-copy": {"paths": ["Training/a/1.png", "Testing/a/2.png"]},
    "two-labels": {"paths": ["Training/a/3.png", "Training/b/4.png"]},
    "patient-on-both-sides": {"paths": ["Training/a/5.png", "Testing/a/6.png"]},
    "truncated": {"paths": ["Training/a/7.png"]},
    "own-size": {"paths": ["Training/b/8.png"]},
}
FOUND: dict[str, Any] = {
    "copy_sets": [
        {"files": [{"path": path} for path in FAULTS[kind]["paths"]]}
        for kind in ("byte-copy", "two-labels")
    ],
    "label_conflicts": [{"a": "Training/a/3.png", "b": "Training/b/4.png"}],
    "groups": {"Training/a/5.png": "g", "Testing/a/6.png": "g"},
    "leak": {"patients_on_both_sides": 1},
    "unreadable": [{"path": "Training/a/7.png"}],
    "shortcuts": {"size": {"accuracy": 0.7, "majority": 0.5}},
}


def write_demo(root: Path, found: dict[str, Any]) -> None:
    measure = {"value": 0.875, "low": 0.5, "high": 0.97}
    faults = [{"kind": kind, **fault} for kind, fault in FAULTS.items()]
    for place, content in {
        "images/planted.json": {"faults": faults},
        "audit/audit.json": found,
        "run/metrics.json": {"num_images": 40, "accuracy": measure},
    }.items():
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(json.dumps(content), encoding="utf-8")


def summary_of(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "demo_summary.py", root],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_demo_ends_with_accuracy_faults_and_page(tmp_path: Path) -> None:
    write_demo(tmp_path, FOUND)
    done = summary_of(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "87.5% (95 %: 50.0% to 97.0%)" in done.stdout
    assert re.findall(r"^  (\S+) +1 of 1$", done.stdout, re.MULTILINE) == list(FAULTS)
    assert str(tmp_path / "run" / "report.html") in done.stdout


@pytest.mark.parametrize(
    ("kind", "missed"),
    [
        ("byte-copy", {"copy_sets": FOUND["copy_sets"][1:]}),
        ("two-labels", {"label_conflicts": []}),
        ("patient-on-both-sides", {"leak": {"patients_on_both_sides": 0}}),
        ("truncated", {"unreadable": []}),
        ("own-size", {"shortcuts": {"size": {"accuracy": 0.55, "majority": 0.5}}}),
    ],
)
def test_the_demo_says_which_fault_the_audit_missed(
    tmp_path: Path, kind: str, missed: dict[str, Any]
) -> None:
    write_demo(tmp_path, FOUND | missed)
    done = summary_of(tmp_path)
    assert done.returncode == 1, done.stderr
    assert re.findall(r"^  (\S+) +0 of 1$", done.stdout, re.MULTILINE) == [kind]


def test_no_registry_and_no_machine_is_named() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Put together here, so that this file does not name them either.
    words = ["pypi" + ".org", "python" + "hosted", "/wo" + "rk/", "/ro" + "ot/"]
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.suffix in (".md", ".py", ".toml", ".yml", "") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not [word for word in words if word in text], name
