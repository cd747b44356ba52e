"""Two classifiers on the same images: is the difference more than chance?

Pure numpy and scipy on arrays of "right or wrong"; files and runs are the business of
`tumorlens.study.compare`. Two overlapping intervals do not rule out a difference: both
networks meet the same hard images, so most of what moves their accuracies moves both,
and only the images on which they disagree count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest

from tumorlens.stats.intervals import CONFIDENCE, group_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NUM_RESAMPLES = 20_000
"""More than for an interval: Holm multiplies p-values, and 2 / 20,001 is the lowest."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """Difference of two accuracies, first minus second."""

    value: float
    """Fraction, -1 to 1; above 0 where the first is better."""
    low: float | None
    """Low end of the 95 % interval; `None` when all resamples are equal."""
    high: float | None
    p: float
    """Two-sided p-value; 1 where there is no evidence of a difference."""


def exact_mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Under the null hypothesis, an image that only one network got right is as likely to
    be either network's. The test assumes independent images: with several of one
    patient the p-value is too small; use `paired_bootstrap` then.

    Args:
        first: Whether the first network was right, shape (N,).
        second: The same for the second network, same images in the same order.

    Returns:
        1 where the two are right on the same images.

    Raises:
        ValueError: The shapes differ.

    Example:
        One image against five: 2 * (1 + 6) / 2**6.

        >>> first = np.array([True] + [False] * 5 + [True] * 94)
        >>> second = np.array([False] + [True] * 5 + [True] * 94)
        >>> exact_mcnemar(first, second)
        0.21875

    Source:
        McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", Psychometrika 12, 1947; exact as in Liddell,
        "Simplified exact analysis of case-referent studies", JECH 37, 1983.
    """
    _check(first, second)
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    if not only_first + only_second:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def paired_bootstrap(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    groups: NDArray[np.integer],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 42,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Return the mean difference of two networks, with interval and p-value.

    As in `intervals.group_bootstrap`, each resample draws G of the G groups with
    replacement, and a group comes with all its images; both networks are measured on
    the same resample. Groups with equal sums are drawn together, from a multinomial
    distribution: the resamples have the same distribution, and 20,000 of them take
    milliseconds.

    The p-value is twice the share of the resamples on the far side of 0. With few
    groups that disagree the bootstrap is overconfident, so the p-value is never below
    the smallest that flipping the signs of these groups could give, 2 / 2**m for m
    groups.

    Args:
        first: How often the first network was right about each image, shape (N,), in
            [0, 1]: 0 or 1 for one seed, the mean over several.
        second: The same for the second network, same images in the same order.
        groups: Group indices, shape (N,), from 0 without a gap.
        num_resamples: R.
        seed: Seed of the resamples.
        confidence: Share of the resamples inside the interval.

    Returns:
        The difference over images, first minus second.

    Raises:
        ValueError: The shapes differ, or there is no image.

    Example:
        With 40 groups of one image each, the first is better on 12 and worse on 2.

        >>> first = np.repeat([1.0, 0.0, 1.0], [12, 2, 26])
        >>> second = np.repeat([0.0, 1.0, 1.0], [12, 2, 26])
        >>> found = paired_bootstrap(first, second, np.arange(40))
        >>> found.value, found.low, found.high
        (0.25, 0.075, 0.425)

    Source:
        As `intervals.group_bootstrap`; the p-value with one added to both counts:
        Davison and Hinkley, "Bootstrap Methods and their Application", 1997, 4.2.5.
    """
    _check(first, second, groups)
    sums = group_sums(first - second, groups)
    value = float(sums[:, 0].sum() / sums[:, 1].sum())
    # Means over seeds differ in the last digit where they should be equal.
    kinds, counts = np.unique(sums.round(9), axis=0, return_counts=True)  # (K, 2), (K,)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(sums), counts / len(sums), size=num_resamples)  # (R, K)
    totals = drawn @ kinds  # (R, 2)
    values = totals[:, 0] / totals[:, 1]

    num_disagreeing = int((np.abs(sums[:, 0]) > _ROUNDING).sum())
    sides = [(values <= _ROUNDING).sum(), (values >= -_ROUNDING).sum()]
    share = (1 + min(sides)) / (1 + num_resamples)
    p = min(1.0, max(2 * share, 2.0 ** (1 - num_disagreeing)))
    if np.ptp(values) <= _ROUNDING:
        return Difference(value, None, None, float(p))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Difference(value, float(low), float(high), float(p))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests, in the same order.

    The smallest is multiplied by their number, the next by one less and so on, and none
    may fall below one before it. The chance that any true null hypothesis is rejected
    at 0.05 is then at most 5 %, however the tests depend on each other.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
        Journal of Statistics 6, 1979.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _check(*arrays: NDArray[np.generic]) -> None:
    """Refuse arrays that do not describe the same images.

    Raises:
        ValueError: See `paired_bootstrap`.
    """
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise ValueError(f"expected arrays (N,) of the same N > 0 images, got {shapes}")
