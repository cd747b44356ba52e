"""95 % intervals of measures: how far other patients could have moved a figure.

Images are not independent: slices of one patient are right or wrong together. So the
unit of every interval here is the group, and the number of images counts only as far as
they differ within their groups. `docs/statistics.md` has the formulas in one place, and
the simulated coverage of each interval.

A `Score` is a measure in [0, 1] with the influence of each image on it: the first-order
change of the measure when the image counts a little more. The influences give the
robust variance and the intraclass correlation, and tie measures of the same images
together when they are averaged: balanced accuracy is a mean of recalls, an arm of a
study a mean over seeds.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

CONFIDENCE = 0.95

PRIOR_ICC = 0.5
"""Intraclass correlation that is assumed before any error was seen. Slices of one
patient are closer to one another than this only in small sets."""

PRIOR_WEIGHT = 4
"""Errors that weigh as much as `PRIOR_ICC`. Fewer make the interval narrower: with 4,
its mean width is 1.13 times that of the robust logit interval over the cells of
docs/statistics.md, and no cell is covered less than 94 % of the time."""

NUM_RESAMPLES = 2000
SEED = 42
"""Seed of the bootstrap; fixed, so that the nicest interval cannot be picked."""

_CHUNK_SIZE = 4_000_000
"""Numbers held at a time, so that memory does not grow with groups times resamples."""


class Interval(NamedTuple):
    """Ends of an interval, and how it was made."""

    low: float
    high: float
    method: str


class Score(NamedTuple):
    """A measure in [0, 1] with its interval and the influences behind it."""

    value: float
    low: float
    high: float
    influence: NDArray[np.float64]
    """Influence of each group on the value, shape (G,); their sum is 0."""
    num_images: NDArray[np.float64]
    """Images of each group that the measure looks at, shape (G,)."""
    method: str
    """How the interval was made."""

    @property
    def num_groups(self) -> int:
        """Number of groups with an image that the measure looks at."""
        return int((self.num_images > 0).sum())

    @property
    def interval(self) -> Interval | None:
        """The ends, or `None` for a single group, which shows no spread."""
        if self.num_groups < 2:
            return None
        return Interval(self.low, self.high, self.method)


WILSON = "Wilson, design effect"
SQUARE_AND_ADD = "square-and-add of Wilson, design effect"
BOOTSTRAP_T = "studentized bootstrap"
BOOTSTRAP_BINS = "bootstrap of the distance over bins"


def share(
    values: NDArray[np.floating] | NDArray[np.bool_],
    groups: NDArray[np.integer],
    *,
    num_groups: int | None = None,
) -> Score:
    r"""Return a share of images, such as accuracy or a recall, with its interval.

    Wilson's interval for n images that would tell as much if they were independent:

        n = N / deff,  deff = max(1 + (sum_g m_g^2 / N - 1) * icc, robust / binomial)

    with m_g images in group g, the ANOVA estimate of the intraclass correlation shrunk
    towards `PRIOR_ICC` by the number of errors e, (e * anova + 4 * 0.5) / (e + 4), and
    the t quantile of G - 1 degrees of freedom. It is never narrower than the
    variance over groups (robust) asks for, stays inside [0, 1], and has a width where
    all images are right.

    Args:
        values: Whether each image counts, shape (N,); numbers in [0, 1] where it counts
            in part.
        groups: Group index of each image, shape (N,), from 0.
        num_groups: G, where the last groups have no image here.

    Raises:
        ValueError: There is no image, a value is outside [0, 1], or the shapes differ.

    Example:
        Of 40 groups of one image, 30 are right; all of 10 are right.

        >>> score = share(np.repeat([1.0, 0.0], [30, 10]), np.arange(40))
        >>> score.value, round(score.low, 3), round(score.high, 3)
        (0.75, 0.591, 0.862)
        >>> round(share(np.ones(10), np.arange(10)).low, 3)
        0.661

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference",
        JASA 22, 1927; the effective number of observations: Kish, "Survey Sampling",
        1965; the ANOVA estimate: Ridout, Demétrio and Firth, "Estimating intraclass
        correlation for binary data", Biometrics 55, 1999.
    """
    counted = np.asarray(values, dtype=np.float64)
    if counted.shape != groups.shape or counted.ndim != 1 or not counted.size:
        raise ValueError(
            f"expected values and groups (N,) with N > 0, got {counted.shape} and "
            f"{groups.shape}"
        )
    if counted.min() < 0 or counted.max() > 1:
        raise ValueError(
            f"expected values in [0, 1], got {counted.min()} to {counted.max()}"
        )
    value = float(counted.mean())
    residuals = counted - value
    num_errors = len(counted) * min(value, 1 - value)
    num_independent = float(len(counted))
    if num_errors:
        # Images that count in part vary less than right and wrong do.
        binomial = value * (1 - value)
        variance = num_errors * (residuals**2).mean() + PRIOR_WEIGHT * binomial
        num_independent *= binomial * (num_errors + PRIOR_WEIGHT) / variance
    return score(
        value,
        residuals,
        groups,
        num_errors=num_errors,
        num_independent=num_independent,
        num_groups=num_groups,
    )


def share_of_count(
    num_right: int, copies: NDArray[np.integer], groups: NDArray[np.integer]
) -> Score:
    r"""Return a share of which only the count is known, not which images it counts.

    As of a published accuracy. Copies of one picture are taken to be right or wrong
    together, and pictures of one group to be alike by `PRIOR_ICC`, as in `share` before
    any error was seen. Wilson's interval is then for

        n = N^2 / ((1 - icc) sum_pictures m^2 + icc sum_groups m^2)

    images, with m images of a picture or a group.

    Args:
        num_right: Images that count.
        copies: Picture that each image shows, shape (N,).
        groups: Group of each image, shape (N,), from 0. A picture is in one group.

    Raises:
        ValueError: There is no image, the shapes differ, or the count is above N.

    Example:
        15 of 20, each alone, and two copies of each of ten pictures.

        >>> alone, twice = np.arange(20), np.repeat(np.arange(10), 2)
        >>> [round(end, 3) for end in share_of_count(15, alone, alone).interval[:2]]
        [0.516, 0.894]
        >>> [round(end, 3) for end in share_of_count(15, twice, twice).interval[:2]]
        [0.4, 0.931]

    Source:
        As for `share`.
    """
    num = len(copies)
    if copies.shape != groups.shape or copies.ndim != 1 or not num:
        raise ValueError(
            f"expected copies and groups (N,) with N > 0, got {copies.shape} and "
            f"{groups.shape}"
        )
    if not 0 <= num_right <= num:
        raise ValueError(f"expected a count in [0, {num}], got {num_right}")
    _, first, sizes = np.unique(copies, return_index=True, return_counts=True)
    return score(
        num_right / num,
        np.zeros(len(sizes)),
        groups[first],
        num_errors=0,
        weights=sizes / num,
    )


def auroc(
    scores: NDArray[np.floating],
    positive: NDArray[np.bool_],
    groups: NDArray[np.integer],
) -> Score | None:
    """Return the AUROC with its interval.

    The influence of an image is its placement: how many images of the other side it
    ranks on the right side of. Over groups these give the variance (Obuchowski). Near 1
    few images are misplaced and that variance is too small by chance, so the interval
    is Wilson's with at most the number of independent images that the variance of
    Hanley and McNeil stands for, divided by the design effect.

    Args:
        scores: Shape (N,); higher means more likely positive.
        positive: Shape (N,).
        groups: Group index of each image, shape (N,), from 0.

    Returns:
        `None` without a positive or without a negative image.

    Source:
        Hanley and McNeil, "The meaning and use of the area under a ROC curve",
        Radiology 143, 1982; Obuchowski, "Nonparametric analysis of clustered ROC curve
        data", Biometrics 53, 1997.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    placement = np.empty(len(scores))
    placement[positive] = _share_below(scores[~positive], scores[positive])
    placement[~positive] = 1 - _share_below(scores[positive], scores[~positive])
    value = float(placement[positive].mean())
    bracket = (
        1
        + (num_positive - 1) * (1 - value) / (2 - value)
        + (num_negative - 1) * value / (1 + value)
    )
    return score(
        value,
        placement - value,
        groups,
        weights=1 / np.where(positive, num_positive, num_negative),
        num_errors=2 * num_positive * min(value, 1 - value),
        num_independent=num_positive * num_negative / bracket,
        num_means=2,
    )


def combine(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    r"""Return a weighted sum of scores on the same groups, with its interval.

    Squares of the distances from each value to its ends are added, as variances would
    be, with the correlation of the scores over groups:

        low = value - sqrt(sum_ab r_ab d_a d_b),  d_a = w_a * (value_a - low_a)

    and likewise above. Each end keeps the asymmetry of the intervals it is made of.
    Where the influences of a score are all 0, its correlation is not known; it is then
    taken to be the share of the groups that two scores have in common. A negative
    correlation counts as none: over few groups it is chance.

    Args:
        scores: Scores with influences of shape (G,) over the same G groups.
        weights: One positive weight per score.

    Raises:
        ValueError: There is no score, or the numbers differ.

    Source:
        Zou and Donner, "Construction of confidence limits about effect measures",
        Statistics in Medicine 27, 2008 (MOVER; square-and-add after Newcombe).
    """
    if not scores or len(scores) != len(weights):
        raise ValueError(
            f"expected as many scores as weights, got {len(scores)} and {len(weights)}"
        )
    if len(scores) == 1 and weights[0] == 1:
        return scores[0]
    factors = np.array(weights)
    value = float(factors @ [score.value for score in scores])
    below = factors * [score.value - score.low for score in scores]
    above = factors * [score.high - score.value for score in scores]
    influences = np.stack([score.influence for score in scores])  # (S, G)
    images = np.stack([score.num_images for score in scores])  # (S, G)
    correlation = np.maximum(_cosines(influences, otherwise=_cosines(images)), 0)
    return Score(
        value,
        max(0.0, value - float(np.sqrt(max(0.0, below @ correlation @ below)))),
        min(1.0, value + float(np.sqrt(max(0.0, above @ correlation @ above)))),
        factors @ influences,
        images.max(axis=0),
        SQUARE_AND_ADD,
    )


def mean_interval(
    values: NDArray[np.floating],
    groups: NDArray[np.integer],
    *,
    weights: NDArray[np.floating] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Interval | None:
    """Return the studentized bootstrap interval of an unbounded mean, as of a loss.

    Each resample draws G of the G groups with replacement; its mean is measured in its
    own standard errors (robust, over groups). A few large losses make the distribution
    skewed, which percentiles of the means alone do not show.

    Args:
        values: One number per image, shape (N,), not negative.
        groups: Group index of each image, shape (N,), from 0.
        weights: Weight of each image, shape (N,); `None` for equal ones.
        num_resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        `None` with one group, where all groups have the same mean, and where so few
        groups leave an end open: in 1 of 9 resamples of three, all are the same.

    Source:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 12.
    """
    if weights is None:
        weights = np.ones(len(values))
    sums = sums_of_groups(weights * values, groups)
    sizes = sums_of_groups(weights, groups)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    num_groups, mean = len(sums), sums.sum() / sizes.sum()
    residuals = sums - mean * sizes
    columns = np.stack(
        [residuals, sizes, residuals**2, residuals * sizes, sizes**2], axis=1
    )
    _, error = _ratio_with_error(columns.sum(axis=0), num_groups)
    if num_groups < 2 or not error > 1e-12 * mean:
        return None
    drawn = np.concatenate(
        [
            counts @ columns
            for counts in _resamples(num_groups, num_resamples=num_resamples, seed=seed)
        ]
    )
    shifts, errors = _ratio_with_error(drawn.T, num_groups)
    # Equal groups alone have no error: their mean is infinitely many of it away.
    distances = np.where(shifts == 0, 0.0, np.copysign(np.inf, shifts))
    np.divide(shifts, errors, out=distances, where=errors > 1e-6 * error)
    tail = (1 - CONFIDENCE) / 2
    below, above = np.quantile(distances, [1 - tail, tail], method="nearest")
    if not np.isfinite([below, above]).all():
        return None
    return Interval(
        max(0.0, float(mean - below * error)),
        float(mean - above * error),
        BOOTSTRAP_T,
    )


def distance_interval(
    bins: NDArray[np.integer],
    differences: NDArray[np.floating],
    groups: NDArray[np.integer],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Interval | None:
    """Return the interval of a sum of absolute sums per bin, as the calibration error.

    Resampling adds noise to each bin, and the absolute value turns noise into error: a
    percentile interval lies above the figure that it should enclose. The distance
    between the bins of a resample and those of the sample bounds how far the figure
    itself can be off, so value +- its 95 % quantile is conservative.

    Args:
        bins: Bin of each image, shape (N,), from 0.
        differences: Right or wrong minus confidence, shape (N,).
        groups: Group index of each image, shape (N,), from 0.
        num_resamples: Number of resamples.
        seed: Seed of the resamples.

    Returns:
        `None` with one group.
    """
    num_groups, num_bins = int(groups.max()) + 1, int(bins.max()) + 1
    if num_groups < 2:
        return None
    sums = np.bincount(
        groups * num_bins + bins, differences, minlength=num_groups * num_bins
    ).reshape(num_groups, num_bins)
    sizes = np.bincount(groups).astype(np.float64)
    means = sums.sum(axis=0) / sizes.sum()
    distances = np.concatenate(
        [
            np.abs((counts @ sums) / (counts @ sizes)[:, None] - means).sum(axis=1)
            for counts in _resamples(num_groups, num_resamples=num_resamples, seed=seed)
        ]
    )
    value, radius = np.abs(means).sum(), np.quantile(distances, CONFIDENCE)
    return Interval(
        float(max(0, value - radius)), float(min(1, value + radius)), BOOTSTRAP_BINS
    )


def score(
    value: float,
    residuals: NDArray[np.float64],
    groups: NDArray[np.integer],
    *,
    num_errors: float,
    weights: NDArray[np.float64] | None = None,
    num_independent: float | None = None,
    num_means: int = 1,
    num_groups: int | None = None,
) -> Score:
    """Return a measure in [0, 1] with Wilson's interval, as `share` describes it.

    Args:
        value: The measure.
        residuals: How much each image is above or below what is expected of it, shape
            (N,): for a share, 1 or 0 minus the share. Weighted, they sum to 0.
        groups: Group index of each image, shape (N,), from 0.
        num_errors: As for `design_effect`.
        weights: Weight of each image, shape (N,), with sum 1; `None` for 1 / N.
        num_independent: Images that would tell as much if all were independent; `None`
            takes 1 / sum(weights^2), which is N for equal weights (Kish).
        num_means: Means that the residuals are taken from, such as one per class; so
            many degrees of freedom are lost.
        num_groups: G, where the last groups have no image here.
    """
    if weights is None:
        weights = np.full(len(groups), 1 / len(groups))
    if num_independent is None:
        num_independent = float(1 / (weights**2).sum())
    sums = sums_of_groups(weights * residuals, groups, num_groups=num_groups or 0)
    num_images = np.bincount(groups, minlength=num_groups or 0).astype(np.float64)
    held = num_images > 0
    low, high = 0.0, 1.0
    if held.sum() > 1:
        effective = num_independent / design_effect(
            residuals, groups, weights=weights, num_errors=num_errors
        )
        freedom = max(1, int(held.sum()) - num_means)
        robust = float((sums**2).sum() * held.sum() / freedom)
        if robust > 0:
            effective = min(effective, value * (1 - value) / robust)
        low, high = _wilson(value, effective, t_quantile(freedom))
    return Score(value, low, high, sums, num_images, WILSON)


def design_effect(
    residuals: NDArray[np.float64],
    groups: NDArray[np.integer],
    *,
    num_errors: float,
    weights: NDArray[np.float64] | None = None,
) -> float:
    """Return how many images tell as much as one independent image, at least 1.

    Args:
        residuals: How much each image is above or below what is expected, shape (N,).
        groups: Group index of each image, shape (N,), from 0.
        num_errors: How much the estimate of the intraclass correlation weighs against
            `PRIOR_WEIGHT`.
        weights: Weight of each image, shape (N,); `None` for equal ones.
    """
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    num_groups, num_images = len(sizes), len(groups)
    icc = PRIOR_ICC
    if num_groups > 1 and num_images > num_groups and np.any(residuals):
        sums = sums_of_groups(residuals, numbers)
        between = float((sums**2 / sizes).sum())
        within = max(0.0, float((residuals**2).sum()) - between)
        within /= num_images - num_groups
        between /= num_groups - 1
        typical = (num_images - (sizes**2).sum() / num_images) / (num_groups - 1)
        icc = (between - within) / (between + (typical - 1) * within)
    icc = (num_errors * min(1.0, max(0.0, icc)) + PRIOR_WEIGHT * PRIOR_ICC) / (
        num_errors + PRIOR_WEIGHT
    )
    if weights is None:
        weights = np.ones(num_images)
    of_groups = sums_of_groups(weights, numbers)
    return float(1 + ((of_groups**2).sum() / (weights**2).sum() - 1) * icc)


def sums_of_groups(
    values: NDArray[np.floating], groups: NDArray[np.integer], *, num_groups: int = 0
) -> NDArray[np.float64]:
    """Return the sum of the values of each group, shape (G,), with G >= num_groups."""
    # numpy types these sums as whole numbers.
    return np.asarray(np.bincount(groups, values, minlength=num_groups), np.float64)


def robust_variance(influence: NDArray[np.float64]) -> float:
    """Return the variance of a measure over groups, from their influences (G,).

    Groups without an image have no influence and do not count.
    """
    num_groups = max(2, len(influence))
    return float((influence**2).sum() * num_groups / (num_groups - 1))


def _wilson(value: float, num: float, quantile: float) -> tuple[float, float]:
    """Return the score interval of a share of `num` images, which may be a fraction.

    For whole numbers and the normal quantile this is scipy's
    `binomtest(...).proportion_ci(method="wilson")`, which takes no fractions.
    """
    square = quantile**2
    centre = (value + square / (2 * num)) / (1 + square / num)
    half = (
        quantile
        / (1 + square / num)
        * np.sqrt(value * (1 - value) / num + square / (4 * num**2))
    )
    # The ends of 0 and 1 are exact, and differ by rounding.
    low = 0.0 if value == 0 else max(0.0, float(centre - half))
    high = 1.0 if value == 1 else min(1.0, float(centre + half))
    return low, high


def _share_below(
    others: NDArray[np.floating], scores: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the share of the other scores below each score; a tie counts one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, side="left")
    not_above = np.searchsorted(ordered, scores, side="right")
    return np.asarray((below + not_above) / (2 * len(ordered)))


def _cosines(
    rows: NDArray[np.float64], otherwise: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return the cosine of each pair of rows (S, G), shape (S, S).

    `otherwise` is what stands for a pair of which one row is 0; it defaults to 0.
    """
    products = rows @ rows.T
    norms = np.sqrt(np.diag(products))
    found = np.zeros_like(products) if otherwise is None else otherwise.copy()
    np.divide(
        products, np.outer(norms, norms), out=found, where=np.outer(norms, norms) > 0
    )
    np.fill_diagonal(found, 1.0)
    return found


def _ratio_with_error(
    totals: NDArray[np.float64], num_groups: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ratio and robust error from sums of y, m, y^2, y m and m^2, (5, R)."""
    ratio = totals[0] / totals[1]
    squares = totals[2] - 2 * ratio * totals[3] + ratio**2 * totals[4]
    correction = num_groups / max(1, num_groups - 1)
    return ratio, np.sqrt(np.maximum(squares, 0) * correction) / totals[1]


def _resamples(
    num_groups: int, *, num_resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each group was drawn, (R, G) in parts."""
    num_rows = max(1, _CHUNK_SIZE // num_groups)
    for part, start in enumerate(range(0, num_resamples, num_rows)):
        yield _drawn(num_groups, min(num_rows, num_resamples - start), (seed, part))


# Two measures of one set draw the same groups, and drawing takes most of the time.
@lru_cache(maxsize=2)
def _drawn(
    num_groups: int, num_resamples: int, seed: tuple[int, int]
) -> NDArray[np.float64]:
    chances = np.full(num_groups, 1 / num_groups)
    drawn = np.random.default_rng(seed).multinomial(
        num_groups, chances, size=num_resamples
    )
    return drawn.astype(np.float64)


@cache
def t_quantile(freedom: int) -> float:
    """Return the quantile of Student's t for an interval, for degrees of freedom."""
    # `scipy.stats` takes most of a second to import, and every command would pay.
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))
