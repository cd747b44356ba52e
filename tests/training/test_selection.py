"""Which epoch is kept and when to stop, on histories written by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import nn

from tumorlens.config import Config, load_config
from tumorlens.training.dataset import Subset
from tumorlens.training.network import Preprocessing
from tumorlens.training.selection import is_best, is_over, validate


def row(epoch: int, accuracy: float, loss: float, *, best: bool = False) -> Any:
    return {
        "epoch": epoch,
        "val_accuracy": accuracy,
        "val_balanced_accuracy": 1 - accuracy,
        "val_macro_f1": 0.5,
        "val_loss": loss,
        "is_best": best,
    }


BEFORE = [row(1, 0.6, 0.5), row(2, 0.8, 0.7), row(3, 0.7, 0.4)]


@pytest.mark.parametrize(
    ("by", "accuracy", "loss", "expected"),
    [
        ("accuracy", 0.9, 9.0, True),
        ("accuracy", 0.75, 0.1, False),
        ("accuracy", 0.8, 0.6, True),  # equal, and the loss is lower
        ("accuracy", 0.8, 0.7, False),  # equal in both: the earlier one stays
        ("accuracy", 0.8, 0.8, False),
        ("balanced_accuracy", 0.5, 9.0, True),
        ("balanced_accuracy", 0.7, 0.1, False),
        ("macro_f1", 0.0, 0.39, True),
        ("macro_f1", 0.9, 0.41, False),
        ("loss", 0.0, 0.39, True),
        ("loss", 0.9, 0.41, False),
        ("last", 0.0, 9.0, True),
    ],
)
def test_an_epoch_is_best_when_its_measure_beats_all_before(
    by: str, accuracy: float, loss: float, *, expected: bool
) -> None:
    assert is_best(row(4, accuracy, loss), BEFORE, by=by) is expected


def test_the_first_epoch_is_the_best_so_far() -> None:
    assert is_best(row(1, 0.0, 9.0), [], by="accuracy")


def settings(*, epochs: int = 10, patience: int | None = None) -> Config:
    assignments = [f"optim.epochs={epochs}"]
    if patience is not None:
        assignments.append(f"train.early_stop_epochs={patience}")
    return load_config(assignments=assignments)


def test_a_training_is_over_after_its_last_epoch() -> None:
    history = [row(epoch, 0.5, 0.5, best=True) for epoch in range(1, 4)]
    assert not is_over(history[:2], settings(epochs=3))
    assert is_over(history, settings(epochs=3))


def test_a_training_is_over_after_too_many_epochs_without_a_better_one() -> None:
    bests = [True, False, True, False, False, False]
    history = [
        row(epoch, 0.5, 0.5, best=best) for epoch, best in enumerate(bests, start=1)
    ]
    over = [is_over(history[:num], settings(patience=2)) for num in range(7)]
    assert over == [False, False, False, False, False, True, True]
    assert not is_over(history, settings(patience=4))
    assert not is_over(history, settings())


class FirstPixel(nn.Module):
    """The logits are the first pixels of the image, with dropout before them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dropout(images[:, 0, 0, : self.num_classes])
        return logits


@pytest.mark.parametrize("mirror", [False, True])
def test_the_val_columns_are_those_of_scikit_learn(*, mirror: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    positions = rng.permutation(60)[:50].tolist()
    labels = rng.integers(0, 3, 50)
    config = load_config(
        assignments=[f"model.mirror={str(mirror).lower()}", "train.batch_size=7"]
    )
    got = validate(
        FirstPixel(3),
        Subset(images, positions, labels),
        config,
        Preprocessing(8, (0.25,), (0.1,)),
        torch.device("cpu"),
    )

    values = (images[positions, 0, :, 0] / 255 - 0.25) / 0.1  # (N, 8)
    exponentials = np.exp(values[:, :3])
    probs = exponentials / exponentials.sum(axis=1, keepdims=True)
    if mirror:
        exponentials = np.exp(values[:, :4:-1])
        probs = (probs + exponentials / exponentials.sum(axis=1, keepdims=True)) / 2
    predicted = probs.argmax(axis=1)
    assert got == pytest.approx(
        {
            "val_loss": log_loss(labels, probs),
            "val_accuracy": accuracy_score(labels, predicted),
            "val_balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "val_macro_f1": f1_score(labels, predicted, average="macro"),
        },
        rel=1e-5,
    )
