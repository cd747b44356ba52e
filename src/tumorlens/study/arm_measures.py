"""Measures of an arm under one protocol: means over its seeds, and by epoch.

With one seed the figures are those of the run's `metrics.json`. The interval of a mean
over seeds shows how far other images would have moved it; other seeds are not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.leakage import (
    LEAK,
    NO_LEAK,
    NO_PATIENTS,
    SOME_PATIENTS,
    UNKNOWN,
)
from tumorlens.runs.folder import nan_as_none
from tumorlens.stats import metrics
from tumorlens.stats.intervals import group_bootstrap, perfect_score_interval

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.folder import Run

Measure = Callable[[Any], Any]

_OF_EPOCHS = (
    "last_epoch_accuracy",
    "best_val_epoch_accuracy",
    "best_test_epoch_accuracy",
    "best_test_epoch",
)


def mean_measures(tables: Sequence[Predictions]) -> dict[str, Any]:
    """Return the headline measures, their means where there are several seeds.

    Args:
        tables: One table per seed, of the same classes. The images may differ: a split
            by group depends on the seed.

    Returns:
        `accuracy`, `balanced_accuracy`, `macro_f1` and `log_loss` as value, low and
        high, the interval made as in `evaluate`; `ece` as a number.
    """
    names = sorted({group for table in tables for group in table.groups})
    numbers = {name: number for number, name in enumerate(names)}
    num_classes = len(tables[0].classes)
    confusions = np.zeros((len(names), len(tables), num_classes, num_classes))
    losses = np.zeros((len(names), len(tables), 2))
    for seed, table in enumerate(tables):
        groups = np.array([numbers[name] for name in table.groups])
        found = metrics.group_confusions(
            table.labels, table.predicted, groups, num_classes=num_classes
        )
        confusions[: len(found), seed] = found
        of_images = metrics.log_losses(table.probs, table.labels)
        losses[:, seed, 0] = np.bincount(groups, of_images, minlength=len(names))
        losses[:, seed, 1] = np.bincount(groups, minlength=len(names))

    macro_f1 = partial(metrics.resampled_macro_f1, whole=confusions.sum(axis=0))
    groups_of_class = (confusions.sum(axis=(1, 3)) > 0).sum(axis=0)
    units = [int(number) for number in groups_of_class if number]
    return {
        "accuracy": _figure(confusions, metrics.accuracy, units=[len(names)]),
        "balanced_accuracy": _figure(
            confusions, metrics.balanced_accuracy, units=units
        ),
        "macro_f1": _figure(confusions, macro_f1, units=units),
        "log_loss": _figure(losses, _ratio),
        "ece": fmean(
            metrics.expected_calibration_error(table.probs, table.labels)
            for table in tables
        ),
    }


def epoch_accuracies(runs: Iterable[Run]) -> dict[str, float | int | None]:
    """Return the test accuracy at the last, the kept and the best epoch.

    The last of the three was chosen on the images that it is measured on. It is only
    there to stand beside published figures that were chosen so.

    Args:
        runs: Runs of one arm under one protocol, one per seed.

    Returns:
        Means over the runs; all `None` unless each was trained with
        `train.watch_test`. The number of the best epoch is `None` where seeds differ.
    """
    watched = []
    for run in runs:
        rows = [row for row in run.history() if "test_accuracy" in row]
        if not rows:
            return dict.fromkeys(_OF_EPOCHS)
        kept = [row for row in rows if row.get("is_best")] or rows
        # The first of equal epochs, at which early stopping would have stopped.
        best = max(rows, key=lambda row: row["test_accuracy"])
        watched.append((rows[-1], kept[-1], best))
    if not watched:
        return dict.fromkeys(_OF_EPOCHS)
    chosen = list(zip(*watched, strict=True))
    accuracies = [fmean(row["test_accuracy"] for row in rows) for rows in chosen]
    epochs = {row["epoch"] for row in chosen[-1]}
    epoch = epochs.pop() if len(epochs) == 1 else None
    return dict(zip(_OF_EPOCHS, [*accuracies, epoch], strict=True))


def worst_leak(runs: Iterable[Run]) -> dict[str, Any]:
    """Return words, `is_believable` and `state` of the worst leak verdict of some runs.

    `is_believable` is `None` if the images of training are not known, as with imported
    weights, or the patients are not; `state` tells which.
    """
    believable = {LEAK: False, NO_LEAK: True}
    verdicts = [(leak.state, leak.words) for leak in (run.leak() for run in runs)]
    order = [LEAK, UNKNOWN, NO_PATIENTS, SOME_PATIENTS, NO_LEAK]
    state, words = min(verdicts, key=lambda verdict: order.index(verdict[0]))
    return {"words": words, "is_believable": believable.get(state), "state": state}


def training_speed(runs: Sequence[Run]) -> dict[str, float | None]:
    """Return what training took: medians over runs, those with folds as a whole.

    Returns:
        `train_seconds` of a run, and `images_per_second` of an epoch; `None` if the
        history has none.
    """
    rows = [
        [row for part in run.folds() or (run,) for row in part.history()]
        for run in runs
    ]
    seconds = [sum(row.get("seconds", 0.0) for row in of_run) for of_run in rows]
    speeds = [
        row["images_per_second"]
        for of_run in rows
        for row in of_run
        if "images_per_second" in row
    ]
    return {
        "train_seconds": median(seconds) if any(seconds) else None,
        "images_per_second": median(speeds) if speeds else None,
    }


def joined_history(run: Run) -> list[dict[str, Any]]:
    """Return a run's history; that of folds is their mean, up to where the first ends.

    Beyond it, the curve would jump as the easy folds leave it. A figure that is not
    finite, as of a training that diverged, is `None`.
    """
    folds = run.folds()
    rows = _mean_history(folds) if folds else run.history()
    return [nan_as_none(row) for row in rows]


def _mean_history(folds: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            key: value if key == "epoch" else fmean(row[key] for row in rows)
            for key, value in rows[0].items()
            if not isinstance(value, bool | str) and all(key in row for row in rows)
        }
        for rows in zip(*(fold.history() for fold in folds), strict=False)
    ]


def _figure(
    sums: NDArray[np.float64], measure: Measure, *, units: Sequence[int] = ()
) -> dict[str, float | None]:
    """Return the mean of a measure over seeds, and its interval.

    Args:
        sums: Sums of each group for each seed, shape (G, S, ...).
        measure: Maps sums (..., S, ...) to values (..., S).
        units: Numbers of groups behind a score of 1; empty if 1 is not the best score.
    """

    def mean(summed: NDArray[np.float64]) -> NDArray[np.float64]:
        # A seed may have none of the groups of a resample; then the others count.
        return np.asarray(np.nanmean(measure(summed), axis=-1))

    value = float(mean(sums.sum(axis=0)))
    interval = group_bootstrap(sums, mean)
    if units and value == 1 and len(sums) > 1:
        interval = perfect_score_interval(units)
    low, high = interval or (None, None)
    return {"value": value, "low": low, "high": high}


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.full(sums.shape[:-1], np.nan)
    np.divide(sums[..., 0], sums[..., 1], out=values, where=sums[..., 1] > 0)
    return values
