"""Measures of a classifier with their 95 % intervals, from probabilities and groups.

The values are those of `tumorlens.stats.metrics`, the intervals those of
`tumorlens.stats.intervals`; here the two meet. Everything is computed from three
arrays: probabilities (N, C), labels (N,) and group indices (N,), from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tumorlens.stats import intervals, metrics
from tumorlens.stats.intervals import Interval, Score, combine
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Container

    from numpy.typing import NDArray

NUM_GROUPS_FOR = {
    "accuracy": 20,
    "balanced_accuracy": 20,
    "macro_f1": 20,
    "macro_auroc": 20,
    "log_loss": 700,
    "brier": 20,
    "ece": 150,
}
"""Fewest groups for which the interval of a measure covered the truth in at least 93 %
of the simulated sets, whatever the accuracy and the ICC; see docs/statistics.md."""


_NAMES = {
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "brier": "Brier score",
    "ece": "calibration error",
}
"""Names of measures in sentences, where they are more than their words."""


class Estimated(NamedTuple):
    """A measure and its interval."""

    value: float
    """`nan` where it is not defined."""
    interval: Interval | None
    """`None` with a single group, or where the measure is not defined."""


class ClassRates(NamedTuple):
    """Shares of images that were predicted rightly, of one class."""

    recall: Score | None
    """Share of the class's images; `None` without any."""
    precision: Score | None
    """Share of the images predicted as the class; `None` without any."""
    specificity: Score | None
    """Share of the images of other classes; `None` without any."""


def note_on_few_groups(num_groups: int, names: Container[str]) -> str:
    """Return which intervals may be too narrow; empty where none may.

    Args:
        num_groups: Groups that the measures rest on.
        names: Names of measures.

    Example:
        >>> note_on_few_groups(40, ["accuracy", "log_loss"])[:35]
        'With 40 groups the interval of log '
        >>> note_on_few_groups(1000, ["log_loss"])
        ''
    """
    narrow = [
        f"{_NAMES.get(name, name.replace('_', ' '))} (holds from {number} groups)"
        for name, number in NUM_GROUPS_FOR.items()
        if name in names and num_groups < number
    ]
    if not narrow:
        return ""
    which = "interval" if len(narrow) == 1 else "intervals"
    measures = ", ".join(narrow)
    return (
        f"With {counted(num_groups, 'group')} the {which} of {measures} may be too "
        "narrow."
    )


def headline(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> dict[str, Estimated]:
    """Return every measure over all classes, by name.

    Args:
        probs: Class probabilities, shape (N, C). Each row sums to 1.
        labels: True class indices, shape (N,), each in [0, C).
        groups: Group indices, shape (N,), from 0.

    Raises:
        ValueError: The arrays are empty, their shapes disagree, a row of `probs` is
            not a distribution, or a label has no column in `probs`.
    """
    return {
        **headline_of_classes(
            labels, probs.argmax(axis=1), groups, num_classes=probs.shape[1]
        ),
        "macro_auroc": _estimated(macro_auroc(probs, labels, groups)),
        "log_loss": log_loss(probs, labels, groups),
        "brier": brier(probs, labels, groups),
        "ece": calibration_error(probs, labels, groups),
    }


def headline_of_classes(
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    num_classes: int,
) -> dict[str, Estimated]:
    """Return the measures over all classes that need no probabilities, by name."""
    return {
        "accuracy": _estimated(intervals.share(predicted == labels, groups)),
        "balanced_accuracy": _estimated(
            balanced_accuracy(labels, predicted, groups, num_classes=num_classes)
        ),
        "macro_f1": _estimated(
            macro_f1(labels, predicted, groups, num_classes=num_classes)
        ),
    }


def class_rates(
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    num_classes: int,
) -> list[ClassRates]:
    """Return recall, precision and specificity of each class, against all others."""
    rates = []
    for number in range(num_classes):
        is_class, is_predicted = labels == number, predicted == number
        rates.append(
            ClassRates(
                recall=_share_of(is_class, is_predicted, groups),
                precision=_share_of(is_predicted, is_class, groups),
                specificity=_share_of(~is_class, ~is_predicted, groups),
            )
        )
    return rates


def balanced_accuracy(
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    num_classes: int,
    num_groups: int | None = None,
) -> Score:
    """Return the mean recall over the classes that have images.

    A share of images, each weighted by 1 / (images of its class).
    """
    right = predicted == labels
    matrix = metrics.confusion_matrix(labels, predicted, num_classes=num_classes)
    return intervals.score(
        float(metrics.balanced_accuracy(matrix)),
        right - metrics.recall(matrix)[labels],
        groups,
        weights=_class_weights(labels),
        num_errors=float(min(right.sum(), (~right).sum())),
        num_means=len(np.unique(labels)),
        num_groups=num_groups,
    )


def macro_f1(
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[np.integer],
    *,
    num_classes: int,
    num_groups: int | None = None,
) -> Score:
    """Return the mean F1 over the classes with an image or a prediction.

    In F1 = TP / (TP + (FN + FP) / 2), an image that was found counts 1 of 1, and one
    that was missed or given the class by mistake 0 of a half; its residual is the sum
    over the classes that it counts for, in units of the weight of its class.
    """
    right = predicted == labels
    matrix = metrics.confusion_matrix(labels, predicted, num_classes=num_classes)
    of_class = metrics.f1(matrix)  # (C,)
    sizes = (matrix.sum(axis=0) + matrix.sum(axis=1)) / 2  # (C,)
    num_defined = int((~np.isnan(of_class)).sum())
    of_truth = np.where(right, 1 - of_class[labels], -of_class[labels] / 2)
    influence = of_truth / sizes[labels]
    influence[~right] -= (of_class / 2 / np.maximum(sizes, 0.5))[predicted[~right]]
    weights = _class_weights(labels)
    return intervals.score(
        float(metrics.macro_f1(matrix)),
        influence / num_defined / weights,
        groups,
        weights=weights,
        num_errors=float(min(right.sum(), (~right).sum())),
        num_means=len(np.unique(labels)),
        num_groups=num_groups,
    )


def macro_auroc(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> Score | None:
    """Return the mean one-vs-rest AUROC over the classes that have one.

    `None` where all images are of one class.
    """
    scores = aurocs(probs, labels, groups)
    return _mean(scores) if any(scores) else None


def aurocs(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> list[Score | None]:
    """Return the one-vs-rest AUROC of each class; `None` where it is not defined."""
    return [
        intervals.auroc(probs[:, number], labels == number, groups)
        for number in range(probs.shape[1])
    ]


def log_loss(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> Estimated:
    """Return the mean log loss, with the studentized bootstrap."""
    losses = metrics.log_losses(probs, labels)
    return Estimated(float(losses.mean()), intervals.mean_interval(losses, groups))


def brier(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> Estimated:
    """Return the mean Brier score, in [0, 2], with the interval of a share.

    1 minus half of an image's score counts as how far its answer is right.
    """
    scores = metrics.brier_scores(probs, labels)
    score = intervals.share(np.clip(1 - scores / 2, 0, 1), groups)
    found = score.interval
    if found:
        found = Interval(2 * (1 - found.high), 2 * (1 - found.low), found.method)
    return Estimated(float(scores.mean()), found)


def calibration_error(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> Estimated:
    """Return the expected calibration error, of `metrics`, with its interval."""
    value = metrics.expected_calibration_error(probs, labels)
    bins = metrics.confidence_bins(probs)
    differences = (probs.argmax(axis=1) == labels) - probs.max(axis=1)
    return Estimated(value, intervals.distance_interval(bins, differences, groups))


def _share_of(
    counted: NDArray[np.bool_], positive: NDArray[np.bool_], groups: NDArray[np.integer]
) -> Score | None:
    """Return the share of positive images among those that are counted."""
    if not counted.any():
        return None
    return intervals.share(
        positive[counted], groups[counted], num_groups=int(groups.max()) + 1
    )


def _class_weights(labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the weight of each image, equal for all classes that have images."""
    counts = np.bincount(labels)
    return np.asarray(1 / counts[labels] / (counts > 0).sum(), np.float64)


def _mean(scores: list[Score | None]) -> Score:
    defined = [score for score in scores if score]
    return combine(defined, [1 / len(defined)] * len(defined))


def _estimated(score: Score | None) -> Estimated:
    if score is None:
        return Estimated(float("nan"), None)
    return Estimated(score.value, score.interval)
