"""What the Tab key offers, by the protocol between the shells and Typer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tumorlens
from support.missing_libraries import HEAVY
from tumorlens.cli.completion import (
    complete_model,
    complete_setting,
    join_words_of_bash,
)
from tumorlens.config import setting_names
from tumorlens.deploy.artefact import KINDS

SOURCE = str(Path(tumorlens.__file__).parents[1])


def completed(*words: str) -> list[str]:
    """Return what bash is given for the last of the words, as bash cuts them."""
    done = subprocess.run(
        [sys.executable, "-m", "tumorlens"],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": SOURCE,
            "_TUMORLENS_COMPLETE": "complete_bash",
            "COMP_WORDS": "\n".join(["tumorlens", *words]),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], {"evaluate"}),
        (["study", ""], {"run", "status"}),
        (["train", "--res"], {"--resume"}),
        (["split", "data", "--protocol", ""], {"as-given", "grouped", "grouped-kfold"}),
        (["evaluate", "run", "--subset", ""], {"test", "val"}),
        (["benchmark", "run", "--device", "c"], {"cpu", "cuda"}),
        (["export", "run", "--format", ""], {*KINDS, "all"}),
        (["train", "--set", ""], {f"{name}=" for name in setting_names()}),
        (
            ["study", "run", "x.toml", "--set", "optim.lr"],
            {"optim.lr=", "optim.lr=0.001"},
        ),
        (["train", "--set", "data.fit", "="], {"squash", "pad"}),
        (["runs", "--where", "model.n"], {"model.name="}),
        (["runs", "--where", "data.fit", "="], {"squash", "pad"}),
        (["runs", "--sort", "test"], {"test_accuracy"}),
        (
            ["train", "--set", "optim.lr", "=", "1", "--set", "data.fit", "=", "p"],
            {"pad"},
        ),
        (["train", "--set", "data.path", "="], set()),
        (
            ["import", "x", "--model", "densenet1"],
            {f"densenet{n}" for n in (121, 161, 169)},
        ),
        (["import", "x", "--model", "=", "densenet12"], {"densenet121"}),
        (["train", "--set", "model.name", "=", "resnet18d"], {"resnet18d"}),
    ],
)
def test_the_tab_key_offers(words: list[str], expected: set[str]) -> None:
    assert set(completed(*words)) == expected


def test_tags_of_weights_are_offered_behind_the_point() -> None:
    assert "resnet18.a1_in1k" in complete_model("resnet18.")
    assert "resnet18" in complete_model("resnet")
    assert complete_model("no_such_network.") == []


def test_other_shells_keep_key_and_value_in_one_word() -> None:
    assert complete_setting("data.fit=") == [
        ("data.fit=squash", ""),
        ("data.fit=pad", ""),
    ]
    assert ("model.name=resnet18d", "") in complete_setting("model.name=resnet18")
    assert all(description for _, description in complete_setting("optim."))


def test_words_that_bash_has_cut_are_joined_and_the_value_left_alone() -> None:
    environ = {
        "_TUMORLENS_COMPLETE": "complete_bash",
        "COMP_WORDS": "tumorlens\ntrain\n--data\n=\na b\n--set\nk\n=\nv\n--out\nx",
        "COMP_CWORD": "8",
    }
    join_words_of_bash(environ)
    assert environ["COMP_WORDS"] == "tumorlens\ntrain\n--data=a b\n--set\nv"
    assert environ["COMP_CWORD"] == "4"
    assert environ["_TUMORLENS_COMPLETE_KEY"] == "k"


def test_completion_loads_no_library_that_takes_long() -> None:
    # Typer itself loads pydantic as soon as a command has arguments.
    code = (
        "import os, sys\n"
        "os.environ |= {'_TUMORLENS_COMPLETE': 'complete_bash', 'COMP_CWORD': '3',\n"
        "    'COMP_WORDS': 'tumorlens\\ntrain\\n--set\\nmodel.name'}\n"
        "from tumorlens.cli import app\n"
        "try: app.main([])\n"
        "except SystemExit: pass\n"
        f"assert not {HEAVY | {'numpy', 'PIL'}!r} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "model.name=resnet18" in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes_with_the_script_that_is_installed(tmp_path: Path) -> None:
    command = tmp_path / "tumorlens"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tumorlens "$@"\n')
    command.chmod(0o755)
    script = (
        "source <(_TUMORLENS_COMPLETE=source_bash tumorlens)\n"
        "COMP_WORDS=(tumorlens train --set model.name = resnet18d)\n"
        "COMP_CWORD=5\n"
        "_tumorlens_completion tumorlens\n"
        'echo "${COMPREPLY[*]}"\n'
        "complete -p tumorlens\n"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": SOURCE,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
    )
    assert done.stdout.splitlines() == [
        "resnet18d",
        "complete -o default -F _tumorlens_completion tumorlens",
    ]
