"""What the pages for people promise must be so."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from tumorlens.cli import app
from tumorlens.config import setting_names

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
CONFIGS = sorted(REPOSITORY.glob("configs/*.toml"))
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_lines(path: Path) -> list[list[str]]:
    """Return each `tumorlens ...` of a page, in code blocks and between backticks."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(r"^(?:# +)?(tumorlens .*)$", text, re.MULTILINE)
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
        known = {option for param in COMMANDS[name].params for option in param.opts}
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


def test_the_settings_page_is_what_the_settings_say() -> None:
    made = subprocess.run(
        [sys.executable, REPOSITORY / "docs" / "make_settings.py"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(REPOSITORY / "src"), "PYTHONUTF8": "1"},
    )
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == made.stdout, "run `make docs`"


def test_the_settings_page_knows_ranges_choices_and_defaults() -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    assert "| `optim.lr` | `0.001` | number > 0 |" in page
    assert "| `data.num_folds` | `5` | whole number ≥ 2 and ≤ 20 |" in page
    assert "| `data.fit` | `pad` | `squash`, `pad` |" in page
    assert "| `model.size_px` | unset | whole number ≥ 16 and ≤ 2048 or unset |" in page
    for key in setting_names():
        assert f"| `{key}` |" in page


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
