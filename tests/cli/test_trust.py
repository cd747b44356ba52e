"""Training ends with trust; resuming changes no answer of a run that is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tumorlens.cli import app
from tumorlens.runs.folder import open_run
from tumorlens.runs.trust import trust_of_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = [
    *("model.name=test_resnet", "model.pretrained=no", "model.size_px=32"),
    *("optim.epochs=1", "train.device=cpu"),
]


@pytest.fixture
def words(make_images: Callable[..., Path], tmp_path: Path) -> list[str]:
    data = make_images(num_each=16)
    settings = [word for one in TINY for word in ("--set", one)]
    out = ["--out", str(tmp_path / "run")]
    return [
        "train",
        "--data",
        str(data),
        *out,
        *settings,
        "--set",
        "trust.coverage=0.8",
    ]


def test_training_ends_with_trust_and_says_what_is_proved(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(words) == 0
    printed = capsys.readouterr().out
    assert "temperature " in printed
    assert "no threshold proves that at most 5.0 % of the answers are wrong" in printed
    assert trust_of_run(open_run(tmp_path / "run")) is not None


def test_a_run_that_is_in_use_is_not_calibrated_by_resuming(
    words: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert app.main([*words, "--set", "trust.fit=false"]) == 0
    assert not (run / "trust.json").exists()
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("fit = false", "fit = true"))
    assert app.main(["evaluate", str(run)]) == 0
    before = (run / "model.json").read_bytes()
    assert app.main(["train", "--resume", "--out", str(run)]) == 0
    assert (run / "model.json").read_bytes() == before
    assert not (run / "trust.json").exists()


def test_what_a_kill_left_out_is_made_up_by_resuming(
    words: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert app.main(words) == 0
    trust, card = (run / "trust.json").read_bytes(), (run / "model.json").read_bytes()
    (run / "trust.json").unlink()
    (run / "last").mkdir()
    (run / "last" / "checkpoint.pt").write_bytes(b"left")
    assert app.main(["train", "--resume", "--out", str(run)]) == 0
    assert (run / "trust.json").read_bytes() == trust
    assert (run / "model.json").read_bytes() == card
    assert not (run / "last" / "checkpoint.pt").exists()
