"""Measures of an arm under one protocol: means over its seeds, and by epoch.

With one seed the figures are those of the run's `metrics.json`. The interval of a mean
over seeds shows how far other images would have moved it; other seeds are not in it.
"""

from __future__ import annotations

from collections import defaultdict
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
from tumorlens.runs.estimate import Estimate, estimate_of, estimate_of_score
from tumorlens.runs.folder import nan_as_none
from tumorlens.stats import estimates, metrics
from tumorlens.stats.estimates import Estimated
from tumorlens.stats.intervals import combine, mean_interval, share

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.folder import Run
    from tumorlens.stats.intervals import Score

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
        `accuracy`, `balanced_accuracy`, `macro_f1`, `log_loss` and `ece`. The interval
        of the mean over several seeds follows from those of the seeds (`combine`), that
        of the log loss from all answers of a group. The calibration error has none
        then. Both are undefined where a table has no probabilities.
    """
    names = sorted({group for table in tables for group in table.groups})
    numbers = {name: number for number, name in enumerate(names)}
    scores: dict[str, list[Score]] = defaultdict(list)
    for table in tables:
        groups = np.array([numbers[name] for name in table.groups])
        arrays = (table.labels, table.predicted, groups)
        scores["accuracy"].append(
            share(table.predicted == table.labels, groups, num_groups=len(names))
        )
        for name, measure in (
            ("balanced_accuracy", estimates.balanced_accuracy),
            ("macro_f1", estimates.macro_f1),
        ):
            scores[name].append(
                measure(*arrays, num_classes=len(table.classes), num_groups=len(names))
            )
    of_share = [1 / len(tables)] * len(tables)
    undefined = Estimate(value=None, low=None, high=None)
    has_probs = all(table.has_probs for table in tables)
    return {
        name: estimate_of_score(combine(of_seeds, of_share))
        for name, of_seeds in scores.items()
    } | {
        "log_loss": _log_loss(tables, numbers) if has_probs else undefined,
        "ece": _calibration_error(tables) if has_probs else undefined,
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


def _log_loss(tables: Sequence[Predictions], numbers: Mapping[str, int]) -> Estimate:
    """Return the mean over seeds; `numbers` are those of the groups."""
    losses, groups, weights = [], [], []
    for table in tables:
        losses.append(metrics.log_losses(table.probs, table.labels))
        groups.append(np.array([numbers[name] for name in table.groups]))
        weights.append(np.full(len(table.groups), 1 / len(table.groups)))
    found = Estimated(
        fmean(float(of_seed.mean()) for of_seed in losses),
        mean_interval(
            np.concatenate(losses),
            np.concatenate(groups),
            weights=np.concatenate(weights),
        ),
    )
    return estimate_of(found, num_groups=len(numbers))


def _calibration_error(tables: Sequence[Predictions]) -> Estimate:
    """Return the mean over seeds; with its interval where there is one seed."""
    found = []
    for table in tables:
        names, groups = np.unique(np.array(table.groups), return_inverse=True)
        found.append(estimates.calibration_error(table.probs, table.labels, groups))
    if len(found) == 1:
        return estimate_of(found[0], num_groups=len(names))
    return Estimate(value=fmean(one.value for one in found), low=None, high=None)
