"""Which epoch is kept and when to stop: decided on val, never on test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.stats import metrics
from tumorlens.training.loading import plain_batches
from tumorlens.training.network import Preprocessing, infer

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from tumorlens.config import Config
    from tumorlens.training.dataset import Subset


def validate(
    model: nn.Module,
    subset: Subset,
    config: Config,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    name: str = "val",
) -> dict[str, float]:
    """Return the columns `<name>_loss` ... of a history row, from one inference pass.

    The loss is the plain cross-entropy: without smoothing, class weights or mixing, so
    that it can be compared between runs.
    """
    log_probs = infer(
        model,
        plain_batches(subset.plain(), batch_size=config.train.batch_size),
        mean=preprocessing.mean,
        std=preprocessing.std,
        device=device,
        mirror=config.model.mirror,
    )
    labels = subset.labels
    matrix = metrics.confusion_matrix(
        labels, log_probs.argmax(axis=1), num_classes=log_probs.shape[1]
    )
    return {
        f"{name}_loss": float(-log_probs[np.arange(len(labels)), labels].mean()),
        f"{name}_accuracy": float(metrics.accuracy(matrix)),
        f"{name}_balanced_accuracy": float(metrics.balanced_accuracy(matrix)),
        f"{name}_macro_f1": float(metrics.macro_f1(matrix)),
    }


def is_best(row: dict[str, Any], before: Sequence[dict[str, Any]], *, by: str) -> bool:
    """Whether an epoch is better than all before it.

    Args:
        row: Its line of the history.
        before: The lines of the epochs before.
        by: `train.best_by`. Of two epochs with an equal measure the one with the lower
            val loss is better: accuracy on a small val subset is often equal.
    """
    if by == "last":
        return True

    def worth(of: dict[str, Any]) -> tuple[float, float]:
        measure = 0.0 if by == "loss" else of[f"val_{by}"]
        return (measure, -of["val_loss"])

    return all(worth(row) > worth(earlier) for earlier in before)


def is_over(history: Sequence[dict[str, Any]], config: Config) -> bool:
    """Whether all epochs are done, or too many went by without a better one."""
    if len(history) >= config.optim.epochs:
        return True
    patience = config.train.early_stop_epochs
    best = [row["epoch"] for row in history if row["is_best"]]
    return bool(patience and best and len(history) - best[-1] >= patience)
