"""What a run's record says about where it was made."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tumorlens
from tumorlens import system
from tumorlens.system import describe_environment

FAKE_SOURCE = "src/tumorlens/__init__.py"


def describe() -> dict[str, Any]:
    return describe_environment(command="tumorlens train --data d --out r", seed=7)


def test_the_record_says_what_was_typed_and_what_it_ran_on() -> None:
    record = describe()
    assert set(record) == {
        *("tumorlens", "commit", "python", "platform", "cpu_count", "packages"),
        *("seed", "command"),
    }
    assert record["command"] == "tumorlens train --data d --out r"
    assert record["seed"] == 7
    assert record["tumorlens"] == tumorlens.__version__
    assert record["python"] == platform.python_version()
    assert record["packages"]["numpy"] == np.__version__
    assert record["packages"]["timm"] == importlib.metadata.version("timm")
    assert json.loads(json.dumps(record)) == record


def test_a_package_that_is_missing_has_no_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system, "_PACKAGES", ("numpy", "no-such-package-at-all"))
    packages = describe()["packages"]
    assert packages == {"numpy": np.__version__, "no-such-package-at-all": None}


def test_the_record_names_neither_user_nor_host() -> None:
    record = describe()
    words = set(re.findall(r"[\w.-]+", json.dumps(record)))
    assert platform.node() not in words
    assert str(Path.home()) not in json.dumps(record)


def test_a_source_checkout_has_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "Begin")
    monkeypatch.setattr(tumorlens, "__file__", str(tmp_path / FAKE_SOURCE))
    assert describe()["commit"] == git("rev-parse", "HEAD")


def test_an_installed_package_inside_another_checkout_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # .venv/lib/python3.11/site-packages/tumorlens of some project under git.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    installed = tmp_path / "lib" / "site-packages" / "tumorlens" / "__init__.py"
    monkeypatch.setattr(tumorlens, "__file__", str(installed))
    assert describe()["commit"] is None


@pytest.mark.parametrize(
    "failure",
    [
        FileNotFoundError("git"),
        subprocess.TimeoutExpired("git", 5),
        subprocess.CalledProcessError(128, "git"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_without_a_working_git_there_is_no_commit(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise failure

    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(tumorlens, "__file__", str(tmp_path / FAKE_SOURCE))
    monkeypatch.setattr(subprocess, "run", fail)
    assert describe()["commit"] is None
