"""Run folders made by hand: their predictions are known, and nothing is trained."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tumorlens.config import parse_config
from tumorlens.data.index import SplitRow
from tumorlens.data.leakage import LeakVerdict
from tumorlens.evaluation.predictions import (
    Predictions,
    pool_predictions,
    write_predictions,
)
from tumorlens.files import sha256_of_bytes
from tumorlens.runs.folder import FORMAT, ModelCard, Run, create_run
from tumorlens.training.network import create_model
from tumorlens.training.weights import weights_as_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tumorlens.config import ModelConfig

TWO = ("glioma", "no_tumor")
CLEAN = LeakVerdict(leaks=False, words="No leak found.")
SPLIT = (SplitRow("0000.png", "0" * 64, "glioma", "0000.png", "test", ""),)


def settings(**changes: Any) -> dict[str, dict[str, Any]]:
    """Return nested settings of a tiny network: `optim__lr=0.1` sets `optim.lr`."""
    found: dict[str, dict[str, Any]] = {
        "model": {"name": "test_resnet", "pretrained": "no", "size_px": 32},
        "data": {"protocol": "as-given"},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        found.setdefault(section, {})[name] = value
    return found


def answers(
    right: Sequence[int] | Mapping[str, int],
    *,
    classes: tuple[str, ...] = TWO,
    groups: Sequence[str] | None = None,
    sure: float = 0.8,
) -> Predictions:
    """Return predictions that are right (1) or wrong (0) for each image, as given.

    Args:
        right: One for each image, named "0000.png" and so on, or by their paths. The
            true classes take turns, and a wrong answer is the next class.
        classes: Names of the classes.
        groups: Group of each image; by default each image is a group.
        sure: Probability of the predicted class; the others share the rest.
    """
    by_path = (
        dict(right)
        if hasattr(right, "keys")
        else {f"{number:04}.png": is_right for number, is_right in enumerate(right)}
    )
    paths = tuple(by_path)
    labels = np.arange(len(paths)) % len(classes)
    predicted = (labels + 1 - np.array(list(by_path.values()))) % len(classes)
    probs = np.full((len(paths), len(classes)), (1 - sure) / (len(classes) - 1))
    probs[np.arange(len(paths)), predicted] = sure
    return Predictions(
        classes=classes,
        paths=paths,
        labels=labels,
        probs=probs.round(9),
        groups=tuple(groups or paths),
        sources=("",) * len(paths),
        folds=(None,) * len(paths),
    )


def history(
    *val_accuracies: float, test: Sequence[float] = (), **columns: float
) -> list[dict[str, Any]]:
    """Return a history that keeps the first epoch with the best val accuracy."""
    rows = []
    for number, accuracy in enumerate(val_accuracies):
        row = {
            "epoch": number + 1,
            "train_loss": 1 / (number + 1),
            "train_accuracy": accuracy,
            "val_loss": 1.5 - accuracy,
            "val_accuracy": accuracy,
            "images_per_second": 100.0,
            "seconds": 2.0,
            **columns,
            "is_best": accuracy > max(val_accuracies[:number], default=-1),
        }
        rows.append(row | ({"test_accuracy": test[number]} if test else {}))
    return rows


def make_run(
    path: Path,
    table: Predictions | Sequence[Predictions] | None = None,
    *,
    subset: str = "test",
    leak: LeakVerdict = CLEAN,
    rows: Sequence[dict[str, Any]] = (),
    split: Sequence[SplitRow] = SPLIT,
    classes: tuple[str, ...] = TWO,
    is_finished: bool = True,
    **changes: Any,
) -> Run:
    """Make a run folder.

    Args:
        path: Folder of the run.
        table: Its predictions; `None` for a run that is not evaluated. One table for
            each fold.
        subset: Subset of the predictions.
        leak: Content of `leak.json`.
        rows: Rows of `history.jsonl`.
        split: Rows of `split.csv`.
        classes: Classes of the network.
        is_finished: Whether the run is marked as finished.
        **changes: See `settings`.
    """
    if table is not None and not isinstance(table, Predictions):
        return _with_folds(path, table, leak=leak, rows=rows, **changes)
    run = create_run(path, parse_config(settings(**changes)))
    run.write_split(split, leak)
    add_weights(run, classes=classes)
    if rows:
        run.write_history(rows)
    if is_finished:
        run.mark_finished()
    if table is not None:
        write_predictions(run.predictions_of(subset), table)
    return run


def add_weights(run: Run, *, classes: tuple[str, ...] = TWO, **changes: Any) -> None:
    """Give a run a network with random weights."""
    weights, size_px = _weights(run.config.model.model_dump_json(), len(classes))
    card = ModelCard(
        format=FORMAT,
        tumorlens="0",
        name=run.config.model.name,
        classes=classes,
        in_chans=3,
        size_px=size_px,
        fit="pad",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        mirror=run.config.model.mirror,
        epoch=1,
        weights_sha256=sha256_of_bytes(weights),
    )
    run.write_weights(weights, card.model_copy(update=changes))


def _with_folds(
    path: Path,
    tables: Sequence[Predictions],
    *,
    leak: LeakVerdict,
    rows: Sequence[dict[str, Any]],
    **changes: Any,
) -> Run:
    changes |= {"data__protocol": "grouped-kfold", "data__num_folds": len(tables)}
    run = create_run(path, parse_config(settings(**changes)))
    run.write_split(SPLIT, leak)
    for number, table in enumerate(tables):
        fold_changes = changes | {"data__fold": number}
        fold_path = run.fold_path(number)
        make_run(fold_path, table, leak=leak, rows=rows, **fold_changes)
    write_predictions(run.predictions_path, pool_predictions(tables))
    return run


@cache
def _weights(model_json: str, num_classes: int) -> tuple[bytes, int]:
    from tumorlens.config import ModelConfig

    config: ModelConfig = ModelConfig.model_validate_json(model_json)
    torch.manual_seed(0)
    model, preprocessing = create_model(config, num_classes=num_classes)
    return weights_as_bytes(model), preprocessing.size_px
