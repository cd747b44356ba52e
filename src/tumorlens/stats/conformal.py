"""Conformal sets: classes that hold the true one in at least a given share of cases.

Thresholds come from scores of calibration images, one of each group: images of one
group are not exchangeable. Marginal thresholds promise the coverage over all images,
those by class for each class. Everything here is numpy alone, for artefacts.

Source:
    Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers With Bounded
    Error Levels", JASA 114, 2019 (LAC); Romano, Sesia and Candès, "Classification with
    Valid and Adaptive Coverage", NeurIPS 2020 (APS); by class: Vovk, "Conditional
    Validity of Inductive Conformal Predictors", ACML 2012.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_EPSILON = 1e-8
"""Differences that are rounding."""


def lac_scores(probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how unlikely each class is, 1 - p, shape (N, C)."""
    return np.asarray(1 - probs, dtype=np.float64)


def aps_scores(
    probs: NDArray[np.floating], draws: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the probability of a class and of all more likely ones, shape (N, C).

    Args:
        probs: Shape (N, C).
        draws: In [0, 1), shape (N,): the share of the class's own probability that is
            left out, as calibration does; `None` leaves none out.
    """
    order = np.argsort(-probs, axis=1, kind="stable")
    ranked = np.take_along_axis(probs, order, axis=1).astype(np.float64)
    scores = np.empty_like(ranked)
    np.put_along_axis(scores, order, np.cumsum(ranked, axis=1), axis=1)
    if draws is not None:
        scores -= np.asarray(draws)[:, None] * probs
    return scores


def threshold(scores: NDArray[np.floating], coverage: float) -> float:
    """Return the score up to which a class belongs to the set.

    The ceil((n + 1) * coverage)-th smallest of n scores.

    Args:
        scores: Scores of the true classes of calibration images, shape (n,).
        coverage: In (0, 1).

    Returns:
        The threshold; infinite where n is too small to promise the coverage, so that
        every class is in the set.

    Example:
        >>> threshold(np.arange(9.0), 0.9), threshold(np.arange(8.0), 0.9)
        (8.0, inf)
    """
    rank = math.ceil((len(scores) + 1) * coverage - _EPSILON)
    if rank > len(scores):
        return math.inf
    return float(np.sort(scores)[rank - 1])


def lac_sets(probs: NDArray[np.floating], thresholds: ArrayLike) -> NDArray[np.bool_]:
    """Return which classes are in the set of each image, shape (N, C).

    Args:
        probs: Shape (N, C).
        thresholds: One number, or one of each class, shape (C,).
    """
    found: NDArray[np.bool_] = lac_scores(probs) <= np.asarray(thresholds) + _EPSILON
    return found


def aps_sets(probs: NDArray[np.floating], thresholds: ArrayLike) -> NDArray[np.bool_]:
    """Return which classes are in the set of each image, shape (N, C).

    The likeliest classes up to the one with which their sum reaches the threshold.

    Args:
        probs: Shape (N, C).
        thresholds: One number, or one of each class, shape (C,).
    """
    before = aps_scores(probs) - probs
    found: NDArray[np.bool_] = before < np.asarray(thresholds) - _EPSILON
    found |= probs >= probs.max(axis=1, keepdims=True)
    return found
