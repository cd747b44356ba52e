"""Intervals: how far a figure could move if other patients had been in the test set.

Images are not independent: slices of one patient are right or wrong together. So the
bootstrap here draws groups, never images. It is the percentile bootstrap, as the
bias-corrected one is `nan` for a perfect score. What is measured is up to the caller;
see `tumorlens.stats.metrics`.

`scipy.stats.bootstrap` with `paired=True` over the columns of the sums gives the same
intervals, which a test holds to the last digit. It copies every column for every
resample, though: 15 times the time for the 16 columns of a confusion matrix of four
classes, against one matrix product here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import binomtest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Interval = tuple[float, float]

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000

_CHUNK_SIZE = 4_000_000
"""Numbers held at a time, so that memory does not grow with groups times resamples."""


def group_bootstrap(
    sums: NDArray[np.number],
    measure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 42,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """Return the percentile interval of a measure over resampled groups.

    Each resample draws G of the G groups with replacement; a group comes with all its
    images. The measure must follow from sums over groups, such as `group_confusions`
    or `group_sums`: that makes 2,000 resamples one matrix product.

    Args:
        sums: Contribution of each group, shape (G, ...).
        measure: Maps summed values (R, ...) to one value per resample, (R,). A value
            of `nan` (undefined on that resample) is left out.
        num_resamples: R.
        seed: The same seed and G give the same resamples, whatever the measure.
        confidence: Share of the resamples inside the interval.

    Returns:
        Low and high end. `None` when they would be meaningless: with one group only,
        or when the measure is the same on all resamples, as with a perfect score.

    Example:
        Accuracy 0.75 in 40 groups of one image each.

        >>> sums = group_sums(np.repeat([1.0, 0.0], [30, 10]), np.arange(40))
        >>> group_bootstrap(sums, ratio)
        (0.625, 0.875)

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3;
        with groups as the units: Field and Welsh, "Bootstrapping clustered data",
        JRSS B 69, 2007.
    """
    flat = sums.reshape(len(sums), -1).astype(np.float64)
    values = [
        measure((counts @ flat).reshape(-1, *sums.shape[1:]))
        for counts in _resamples(len(sums), num_resamples=num_resamples, seed=seed)
    ]
    return _percentiles(np.concatenate(values), confidence=confidence)


def image_weight_bootstrap(
    groups: NDArray[np.integer],
    measure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 42,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """Return the interval of `group_bootstrap` for a measure that sums cannot give.

    Args:
        groups: Group indices, shape (N,), from 0 without a gap.
        measure: Maps image weights (R, N), how often the group of each was drawn, to
            one value per resample, (R,).
        num_resamples: As for `group_bootstrap`.
        seed: As for `group_bootstrap`: the same seed and number of groups give the same
            resamples there and here.
        confidence: As for `group_bootstrap`.

    Returns:
        Low and high end, or `None`, as for `group_bootstrap`.
    """
    resamples = _resamples(
        int(groups.max()) + 1,
        num_resamples=num_resamples,
        seed=seed,
        max_width=len(groups),
    )
    values = [measure(counts[:, groups]) for counts in resamples]
    return _percentiles(np.concatenate(values), confidence=confidence)


def group_sums(
    values: NDArray[np.floating], groups: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return sum and number of the values of each group, shape (G, 2).

    `group_bootstrap` of these with `ratio` gives the interval of a mean.
    """
    return np.stack(
        [np.bincount(groups, weights=values), np.bincount(groups)], axis=1
    ).astype(np.float64)


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean behind `group_sums`, shape (...) for (..., 2)."""
    return np.asarray(sums[..., 0] / sums[..., 1])


def wilson_interval(
    num_right: int, num_images: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the score interval of a share of independent images.

    It stays inside [0, 1] and has a width even when all are right. Images of one
    patient are not independent: with several per patient it is too narrow.

    Raises:
        ValueError: There are no images, or more are right than there are.

    Example:
        >>> low, high = wilson_interval(10, 10)
        >>> round(low, 4), high
        (0.7225, 1.0)

    Source:
        Wilson, "Probable inference, the law of succession, and statistical
        inference", JASA 22, 1927.
    """
    if not 0 <= num_right <= num_images or num_images == 0:
        raise ValueError(
            f"expected 0 <= num_right <= num_images and num_images > 0, got "
            f"{num_right} and {num_images}"
        )
    found = binomtest(num_right, num_images).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def perfect_score_interval(
    num_groups: Sequence[int], *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the interval of a score of exactly 1, where no resample differs.

    The low end is Wilson's for as many successes as there are groups. Given several
    numbers, such as the groups of each class for a mean over classes, it is the mean
    of their low ends, as if all classes were at their worst together.

    Args:
        num_groups: Numbers of groups without a mistake, each above 0.
        confidence: As for `wilson_interval`.

    Raises:
        ValueError: A number is 0, or there is none.

    Example:
        >>> low, high = perfect_score_interval([10])
        >>> round(low, 4), high
        (0.7225, 1.0)
    """
    if not num_groups:
        raise ValueError("expected at least one number of groups, got none")
    lows = [
        wilson_interval(number, number, confidence=confidence)[0]
        for number in num_groups
    ]
    return sum(lows) / len(lows), 1.0


def _resamples(
    num_groups: int, *, num_resamples: int, seed: int, max_width: int = 0
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each group was drawn, (R, G) in parts.

    The draws do not depend on the size of the parts.
    """
    rng = np.random.default_rng(seed)
    num_rows = max(1, _CHUNK_SIZE // max(num_groups, max_width))
    for start in range(0, num_resamples, num_rows):
        rows = min(num_rows, num_resamples - start)
        drawn = rng.integers(num_groups, size=(rows, num_groups))
        drawn += np.arange(rows)[:, None] * num_groups
        counts = np.bincount(drawn.ravel(), minlength=rows * num_groups)
        yield counts.reshape(rows, num_groups).astype(np.float64)


def _percentiles(values: NDArray[np.float64], *, confidence: float) -> Interval | None:
    values = values[~np.isnan(values)]
    # Not exactly equal: a mean of losses differs in the last digit between resamples.
    if values.size == 0 or np.ptp(values) <= 1e-12:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
