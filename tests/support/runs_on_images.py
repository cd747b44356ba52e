"""Finished runs on drawn images: random weights, no training, working predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tumorlens.config import parse_config
from tumorlens.data.index import SplitRow, read_index
from tumorlens.data.leakage import LeakVerdict
from tumorlens.files import sha256_of_bytes
from tumorlens.runs.folder import FORMAT, ModelCard, Run, create_run
from tumorlens.training.network import classifier_layers, create_model
from tumorlens.training.weights import weights_as_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

CLEAN = LeakVerdict(
    leaks=False, num_test=8, num_test_unknown_patient=8, words="No copies."
)
NUM_FOLDS = 2


def deal(number: int) -> str:
    """Return the subset of image `number` of a class: two of four in train."""
    return ("train", "train", "val", "test")[number % 4]


def rows_of(data: Path, subset_of: Callable[[int], str] = deal) -> list[SplitRow]:
    """Return a split of class folders, by the number in the name of each file."""
    return [
        SplitRow(
            path=record.path,
            sha256=record.sha256,
            label=record.label,
            group=record.path,
            subset=subset_of(int(record.path.rpartition("/")[2].split(".")[0])),
        )
        for record in read_index(data).records
    ]


def make_run(
    path: Path,
    data: Path,
    *,
    name: str = "test_resnet",
    size_px: int = 32,
    seed: int = 0,
    subset_of: Callable[[int], str] = deal,
    settings: dict[str, dict[str, Any]] | None = None,
    leak: LeakVerdict = CLEAN,
    classes: tuple[str, ...] = (),
) -> Run:
    """Make a finished ordinary run, or one fold, with random weights."""
    values: dict[str, dict[str, Any]] = {
        "data": {
            "path": str(data),
            "cache_dir": str(data.parent / "cache"),
            "protocol": "grouped",
        },
        "model": {"name": name, "pretrained": "no", "size_px": size_px},
        "train": {"device": "cpu", "seed": seed},
    }
    for section, changes in (settings or {}).items():
        values.setdefault(section, {}).update(changes)
    run = create_run(path, parse_config(values))
    run.write_split(rows_of(data, subset_of), leak)
    run.write_environment({"tumorlens": "0", "command": f"tumorlens train {data}"})
    run.write_history([history_row(epoch) for epoch in (1, 2)])
    add_weights(run, classes or read_index(data).classes, seed=seed)
    run.mark_finished()
    return run


def make_kfold_run(path: Path, data: Path, *, num_folds: int = NUM_FOLDS) -> Run:
    """Make a finished run of folds: image n is tested in fold n modulo `num_folds`."""
    folds = {"protocol": "grouped-kfold", "num_folds": num_folds}
    run = create_run(
        path, parse_config({"data": {"path": str(data), **folds}, "train": {"seed": 1}})
    )
    run.write_split(rows_of(data, lambda number: f"fold-{number % num_folds}"), CLEAN)
    run.write_environment({"tumorlens": "0", "command": "tumorlens train"})
    for fold in range(num_folds):

        def subset_of(number: int, fold: int = fold) -> str:
            if number % num_folds == fold:
                return "test"
            return "val" if number % 3 == 0 else "train"

        make_run(
            run.fold_path(fold),
            data,
            seed=fold,
            subset_of=subset_of,
            settings={"data": folds | {"fold": fold}},
        )
    return run


def history_row(epoch: int, *, is_best: bool = True) -> dict[str, Any]:
    """Return a row of `history.jsonl`; each epoch is better than the one before."""
    return {
        "epoch": epoch,
        "train_loss": 1.5 - epoch / 10,
        "train_accuracy": min(1.0, 0.25 + epoch / 10),
        "lr": 0.001,
        "images_per_second": 100.0,
        "seconds": 1.0,
        "val_loss": 1.5 - epoch / 20,
        "val_accuracy": min(1.0, 0.25 + epoch / 20),
        "val_balanced_accuracy": min(1.0, 0.25 + epoch / 20),
        "val_macro_f1": min(1.0, 0.25 + epoch / 20),
        "is_best": is_best,
    }


def add_weights(run: Run, classes: tuple[str, ...], *, seed: int = 0) -> nn.Module:
    """Give a run random weights whose predictions differ, and return its network."""
    torch.manual_seed(seed)
    model, preprocessing = create_model(run.config.model, num_classes=len(classes))
    for layer in classifier_layers(model):
        for parameter in layer.parameters():
            parameter.data.mul_(20)
    weights = weights_as_bytes(model)
    card = ModelCard(
        format=FORMAT,
        tumorlens="0",
        name=run.config.model.name,
        classes=classes,
        in_chans=3,
        size_px=preprocessing.size_px,
        fit="pad",
        mean=preprocessing.mean,
        std=preprocessing.std,
        mirror=run.config.model.mirror,
        epoch=2,
        weights_sha256=sha256_of_bytes(weights),
    )
    run.write_weights(weights, card)
    return model.eval()
