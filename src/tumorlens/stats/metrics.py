"""Measures of a classifier, as plain functions on numpy arrays.

Nothing here knows about models, files or torch, so each number in a report can be
recomputed from `predictions.csv` in three lines. Measures that count right and wrong
take a confusion matrix (`confusion_matrix`, rows are the true classes) and accept
leading axes.

A measure can be undefined, such as the recall of a class without images. It is `nan`
then, never 0, and means over classes leave it out. Intervals are in
`tumorlens.stats.intervals`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

NUM_BINS = 15
"""Number of bins of the expected calibration error, as in its source."""


def confusion_matrix(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], *, num_classes: int
) -> NDArray[np.int64]:
    """Return how many images of each true class (row) got each class (column).

    Args:
        labels: True class indices, shape (N,), each in [0, num_classes).
        predicted: Predicted class indices, shape (N,), in the same range.
        num_classes: C, which may be more than appear.

    Returns:
        Counts, shape (C, C).

    Raises:
        ValueError: The arrays are empty or differ in length, or a class index is
            outside [0, C).

    Example:
        >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), num_classes=2)
        array([[1, 1],
               [0, 1]])
    """
    if not labels.shape == predicted.shape == (labels.size,):
        raise ValueError(
            f"expected two arrays (N,), got {labels.shape} and {predicted.shape}"
        )
    if labels.size == 0:
        raise ValueError("expected at least one image, got none")
    for values in (labels, predicted):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(
                f"class indices must be in [0, {num_classes}), got {values.min()} to "
                f"{values.max()}"
            )
    cells = labels.astype(np.int64) * num_classes + predicted
    counts = np.bincount(cells, minlength=num_classes**2)
    return np.asarray(counts.reshape(num_classes, num_classes))


def accuracy(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the share of images on the diagonal, shape (...) for (..., C, C)."""
    counts = np.asarray(matrix, dtype=float)
    return _divide(_diagonal(counts).sum(axis=-1), counts.sum(axis=(-2, -1)))


def recall(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each true class that was found, shape (..., C).

    `nan` for a class without images.
    """
    counts = np.asarray(matrix, dtype=float)
    return _divide(_diagonal(counts), counts.sum(axis=-1))


def precision(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each predicted class that was right, shape (..., C).

    `nan` for a class that was never predicted.
    """
    counts = np.asarray(matrix, dtype=float)
    return _divide(_diagonal(counts), counts.sum(axis=-2))


def specificity(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the other classes' images not given this class, (..., C).

    `nan` for a class that has all the images.
    """
    counts = np.asarray(matrix, dtype=float)
    total = counts.sum(axis=(-2, -1))[..., None]
    others = total - counts.sum(axis=-1)
    false_positives = counts.sum(axis=-2) - _diagonal(counts)
    return _divide(others - false_positives, others)


def f1(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return 2 TP / (2 TP + FP + FN) of each class, shape (..., C).

    0 for a class that has images and was never found; `nan` for one that has neither
    images nor predictions.
    """
    counts = np.asarray(matrix, dtype=float)
    return _divide(2 * _diagonal(counts), counts.sum(axis=-1) + counts.sum(axis=-2))


def balanced_accuracy(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the mean recall over the classes that have images, shape (...).

    Example:
        All four images of one class and one of two of the other are right.

        >>> float(balanced_accuracy([[4, 0], [1, 1]]))
        0.75

    Source:
        scikit-learn's `balanced_accuracy_score`, which leaves out absent classes too.
    """
    return _mean_of_defined(recall(matrix))


def macro_f1(matrix: ArrayLike) -> NDArray[np.float64]:
    """Return the mean F1 over the classes with an image or a prediction, shape (...).

    Source:
        scikit-learn's `f1_score(average="macro")` with its default labels.
    """
    return _mean_of_defined(f1(matrix))


def roc_curve(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners of the ROC curve, from (0, 0) to (1, 1).

    Equal scores are one step, and points on a straight line between their neighbours
    are left out.

    Returns:
        False positive rates and true positive rates, each of shape (P,), rising.

    Raises:
        ValueError: There is no positive or no negative image.
    """
    if positive.all() or not positive.any():
        raise ValueError(
            f"a ROC curve needs positive and negative images, got "
            f"{int(positive.sum())} positive of {positive.size}"
        )
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_positives = np.append(0, np.cumsum(positive[order])[last_of_tie])
    false_positives = np.append(0, np.cumsum(~positive[order])[last_of_tie])
    step_x, step_y = np.diff(false_positives), np.diff(true_positives)
    # A corner is where the direction changes; integers, so the test is exact.
    turns = step_x[:-1] * step_y[1:] != step_x[1:] * step_y[:-1]
    corner = np.concatenate([[True], turns, [True]])
    return (
        false_positives[corner] / false_positives[-1],
        true_positives[corner] / true_positives[-1],
    )


def log_losses(
    probs: NDArray[np.floating], labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the loss of each image, -ln p of its true class, shape (N,).

    p is raised to 2.2e-16 (the spacing of float64 at 1) where it is smaller, as
    scikit-learn does: a single image that was certain and wrong costs 36, not infinity.

    Raises:
        ValueError: As `expected_calibration_error`.
    """
    _check(probs, labels)
    of_truth = probs[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps)))


def log_loss(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean of `log_losses`; 0 is perfect, ln C is what a guess costs."""
    return float(log_losses(probs, labels).mean())


def brier_scores(
    probs: NDArray[np.floating], labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return the squared distance of each row of probs from the truth, shape (N,).

    The sum over all classes, so in [0, 2]; for two classes it is twice the score that
    looks at one of them.

    Raises:
        ValueError: As `expected_calibration_error`.

    Source:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly
        Weather Review 78, 1950.
    """
    _check(probs, labels)
    truth = np.eye(probs.shape[1])[labels]  # (N, C)
    return np.asarray(((probs - truth) ** 2).sum(axis=1), dtype=np.float64)


def brier(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the mean of `brier_scores`; 0 is perfect."""
    return float(brier_scores(probs, labels).mean())


def expected_calibration_error(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    num_bins: int = NUM_BINS,
) -> float:
    r"""Return how far the stated confidence is from the observed accuracy.

    The images are put into bins of equal width by the probability of their predicted
    class, and the gap between mean confidence and accuracy is averaged over the bins,
    each weighted by its share of the images:

        ECE = sum_b  n_b / N  *  |accuracy_b - confidence_b|

    A bin is open on the left and closed on the right, as in the source, so that a
    confidence of exactly 1.0 belongs to the last bin.

    Args:
        probs: Class probabilities, shape (N, C). Each row sums to 1. These are not
            logits, and no attempt is made to guess which of the two was passed.
        labels: True class indices, shape (N,), each in [0, C).
        num_bins: Number of bins over (0, 1].

    Returns:
        A fraction in [0, 1], not a percentage; 0 is perfect.

    Raises:
        ValueError: The arrays are empty, their shapes disagree, a row of `probs` is
            not a distribution, or a label has no column in `probs`.

    Example:
        Four images, each predicted with confidence 0.9. Three are right, so confidence
        exceeds accuracy by 0.15.

        >>> probs = np.array([[0.9, 0.1]] * 4)
        >>> round(expected_calibration_error(probs, np.array([0, 0, 0, 1])), 3)
        0.15

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2
        (arXiv:1706.04599).
    """
    confidence, right, count = calibration_bins(probs, labels, num_bins=num_bins)
    return float((count * np.abs(right - confidence)).sum() / count.sum())


def calibration_bins(
    probs: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    num_bins: int = NUM_BINS,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the bins of `expected_calibration_error` that hold an image.

    Returns:
        Mean confidence, accuracy and number of images of each bin, from the lowest
        confidence to the highest.

    Raises:
        ValueError: As `expected_calibration_error`.
    """
    _check(probs, labels)
    confidence = probs.max(axis=1).astype(np.float64)  # (N,)
    correct = probs.argmax(axis=1) == labels  # (N,)
    bins = confidence_bins(probs, num_bins=num_bins)

    count = np.bincount(bins, minlength=num_bins)
    held = count > 0
    count = count[held].astype(np.int64)
    sums = [
        np.bincount(bins, weights=values, minlength=num_bins)[held]
        for values in (confidence, correct)
    ]
    return sums[0] / count, sums[1] / count, count


def confidence_bins(
    probs: NDArray[np.floating], *, num_bins: int = NUM_BINS
) -> NDArray[np.int64]:
    """Return the bin of each image, shape (N,), each in [0, num_bins)."""
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    confidence = probs.max(axis=1).astype(np.float64)
    return np.asarray(np.digitize(confidence, inner_edges, right=True), np.int64)


def _check(probs: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
    """Check that each image has a distribution and a label with a column.

    Raises:
        ValueError: See `expected_calibration_error`.
    """
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"expected probs (N, C) and labels (N,) with N > 0, "
            f"got {probs.shape} and {labels.shape}"
        )
    row_ok = (probs.min(axis=1) >= 0) & np.isclose(probs.sum(axis=1), 1, atol=1e-3)
    if not row_ok.all():
        raise ValueError(
            f"rows of probs must be >= 0 and sum to 1, got {probs[~row_ok][0]}; "
            f"were logits passed?"
        )
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        raise ValueError(
            f"labels must be in [0, {probs.shape[1]}), "
            f"got {labels.min()} to {labels.max()}"
        )


def _diagonal(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.diagonal(counts, axis1=-2, axis2=-1))


def _divide(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the quotient, `nan` where the denominator is 0, without a warning."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    quotient: NDArray[np.float64] = np.full(shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def _mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis, without `nan` values."""
    defined = ~np.isnan(values)
    return _divide(
        np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1).astype(float)
    )
