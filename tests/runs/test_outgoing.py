"""What of a run is sent, and what never is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.runs_on_images import make_kfold_run, make_run
from tumorlens.config import load_config, parse_config
from tumorlens.runs.folder import Run
from tumorlens.runs.outgoing import (
    figures_of,
    files_of,
    params_of,
    settings_of,
    tags_of,
)
from tumorlens.training.ensemble import make_ensemble

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=8, name="data")


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    return make_run(tmp_path / "first", data)


def secretive(run: Run) -> Run:
    """Return a run of which every setting that can name a path does."""
    secrets = {
        name: f"/home/hyde/{name}"
        for name in ("path", "metadata", "split", "cache_dir")
    }
    config = parse_config(
        {
            "data": secrets,
            "model": {"name": "resnet18", "pretrained": "C:\\hyde\\start.safetensors"},
        }
    )
    return Run(run.path, config)


def test_every_setting_is_sent_but_for_paths(run: Run) -> None:
    params = params_of(secretive(run))
    every = {
        f"{section}.{name}"
        for section, values in run.config.model_dump().items()
        for name in values
    }
    assert every - params.keys() == {
        *("data.path", "data.metadata", "data.split", "data.cache_dir")
    }
    assert params["model.pretrained"] == "start.safetensors"
    assert params["model.name"] == "resnet18"
    assert params["optim.epochs"] == str(run.config.optim.epochs)
    assert not [value for value in params.values() if "hyde" in value]


def test_a_long_value_is_cut(run: Run) -> None:
    freeze = [f"blocks.{number}" for number in range(200)]
    train = run.config.train.model_copy(update={"freeze": freeze})
    long = Run(run.path, run.config.model_copy(update={"train": train}))
    assert len(params_of(long)["train.freeze"]) == 500


def test_the_settings_that_are_sent_can_be_trained_with(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(settings_of(secretive(run)))
    assert "hyde" not in path.read_text()
    config = load_config(path)
    assert config.model.name == "resnet18"
    assert config.data.path is None


def test_files_that_name_images_stay_and_unknown_ones_too(run: Run) -> None:
    run.write_looks([{"time": "now", "subset": "test", "command": "x"}])
    run.figures_dir.mkdir()
    for name in ("roc.svg", "patient.png"):
        (run.figures_dir / name).write_text("drawn")
    for path in (run.predictions_path, run.report_path, run.path / "notes.txt"):
        path.write_text("names")
    assert [path.relative_to(run.path).as_posix() for path in files_of(run)] == [
        "history.jsonl",
        "figures/roc.svg",
        "model.json",
        "weights.safetensors",
    ]


def test_networks_are_sent_with_the_run_that_they_are_in(
    run: Run, tmp_path: Path, data: Path
) -> None:
    both = make_ensemble(
        [run.path, make_run(tmp_path / "other", data).path], out=tmp_path / "both"
    )
    assert [path.relative_to(both.path).as_posix() for path in files_of(both)] == [
        "ensemble.json",
        "members/0/model.json",
        "members/0/weights.safetensors",
        "members/1/model.json",
        "members/1/weights.safetensors",
    ]
    # Each fold is sent as a run of its own.
    assert files_of(make_kfold_run(tmp_path / "folds", data)) == []


def test_the_command_is_not_among_the_tags(run: Run, data: Path) -> None:
    assert str(data) in run.environment()["command"]
    assert tags_of(run) == {
        "tumorlens.tumorlens": "0",
        "mlflow.note.content": "No copies.",
    }
    run.leak_path.unlink()
    assert tags_of(run) == {"tumorlens.tumorlens": "0"}


def test_figures_are_those_of_the_kept_epoch(run: Run) -> None:
    rows = run.history()
    run.write_history([rows[0], rows[1] | {"is_best": False}])
    got = figures_of(run)
    assert got["kept/epoch"] == 1
    assert got["kept/val_loss"] == rows[0]["val_loss"]
    assert set(got) == {
        *("kept/epoch", "kept/val_loss", "kept/val_accuracy"),
        *("kept/val_balanced_accuracy", "kept/val_macro_f1"),
    }
