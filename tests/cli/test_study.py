"""What `study run` takes for a study that was begun, and what it warns of."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tumorlens.cli import app
from tumorlens.study import worker
from tumorlens.study.folder import open_study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STUDY = """
[base]
model.name = "test_resnet"
model.pretrained = "no"
optim.scheduler = "constant"
[axes]
optim.lr = [0.1, 0.2]
"""


@pytest.fixture(autouse=True)
def _runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_study", lambda *_, **__: True)


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=3)


@pytest.fixture
def begun(data: Path, tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text(STUDY)
    assert run(tmp_path / "s.toml", "--data", data, "--out", tmp_path / "out") == 0
    return tmp_path / "out"


def run(*words: Any) -> int:
    return app.main(["study", "run", *map(str, words)])


def test_a_study_goes_on_with_the_same_words_and_with_moved_images(
    begun: Path, data: Path
) -> None:
    digest = open_study(begun).plan.digest()
    same = ["--data", data, "--set", "optim.scheduler=constant", "--out", begun]
    assert run(begun, *same) == 0
    moved = data.with_name("moved")
    data.rename(moved)
    assert run(begun, "--data", moved, "--set", "train.workers=2") == 0
    plan = open_study(begun).plan
    assert plan.base.data.path == str(moved)
    assert plan.base.train.workers == 2
    assert plan.digest() == digest
    # Its file does too.
    assert run(begun.with_name("s.toml"), "--data", moved, "--out", begun) == 0


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--set", "optim.epochs=3"], "other settings: optim.epochs: 12 before, now 3"),
        (["--set", "train.seed=3"], "other settings: train.seed: 42 before, now 3"),
        (["--out", "elsewhere"], "continues where it is, and --out is elsewhere"),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    begun: Path,
    given: list[str],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (begun / "study.toml").read_bytes()
    assert run(begun, *given) == 2
    assert problem in capsys.readouterr().err
    assert (begun / "study.toml").read_bytes() == before


def test_a_study_whose_images_changed_is_refused(
    begun: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sorted(data.rglob("*.png"))[0]
    shutil.copy(sorted(data.rglob("*.png"))[1], image)
    assert run(begun) == 2
    assert "the content of data.path has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            STUDY.replace("[axes]", "optim.min_lr = 1e-5\n[axes]"),
            "warning: optim.min_lr has no effect: optim.scheduler is 'constant'\n",
        ),
        (
            STUDY + "optim.gamma = [0.5, 0.6]\noptim.scheduler = ['step', 'cosine']\n",
            (
                "warning: optim.gamma has no effect in 4 trials of 8: in "
                "lr=0.1-gamma=0.5-scheduler=cosine_grouped_seed42, optim.scheduler is "
                "'cosine'\n"
            ),
        ),
        (STUDY, ""),
    ],
)
def test_settings_without_effect_are_said_once(
    data: Path,
    tmp_path: Path,
    text: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "s.toml").write_text(text)
    assert run(tmp_path / "s.toml", "--data", data, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().err == expected
