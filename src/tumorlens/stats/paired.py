"""Two classifiers on the same images: is the difference more than chance?

Pure numpy and scipy on arrays of "right or wrong". Two overlapping intervals do not
rule out a difference: both networks meet the same hard images, so most of what moves
their accuracies moves both, and only the images on which they disagree count.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from tumorlens.stats.intervals import (
    PRIOR_ICC,
    design_effect,
    robust_variance,
    sums_of_groups,
    t_quantile,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BONETT_PRICE = "Bonett-Price, design effect"

SIGNIFICANCE = 0.05
"""A difference counts as found where p is below this."""

FEWEST_GROUPS = 5
"""Groups that must differ before `group_mcnemar` can be below `SIGNIFICANCE`: 2^-5 is,
2^-4 is not."""

MAX_STEPS = 20_000
"""Steps to which the exact test rounds sums of groups that no fraction divides."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """Difference of two accuracies, first minus second."""

    value: float
    """Fraction, -1 to 1; above 0 where the first is better."""
    low: float | None
    """Low end of the 95 % interval; `None` with a single group, as `high`."""
    high: float | None
    p: float
    """Two-sided p-value of `group_mcnemar`; 1 without evidence of a difference."""
    num_groups: int
    num_discordant_groups: int
    """Groups in which one of the two was right more often."""

    @property
    def method(self) -> str | None:
        """How the interval was made; `None` where there is none."""
        return None if self.low is None else BONETT_PRICE


def group_mcnemar(
    first: NDArray[np.floating] | NDArray[np.bool_],
    second: NDArray[np.floating] | NDArray[np.bool_],
    groups: NDArray[np.integer],
) -> float:
    """Return the two-sided mid-p-value of McNemar's test with groups as its units.

    If neither is better, the difference of a group is as likely to have the opposite
    sign. The p-value is the chance, over all signs of the groups, of a sum further from
    0 than the one found, plus half the chance of one as far. It is exact, from the
    distribution of the sum; with one image a group it is the mid-p test of McNemar.
    With m groups that differ it is at least 2^-m: four groups and fewer show nothing at
    0.05.

    Args:
        first: How often the first network was right about each image, shape (N,), in
            [0, 1]: 0 or 1 for one seed, the mean over several.
        second: The same for the second network, same images in the same order.
        groups: Group indices, shape (N,), from 0.

    Returns:
        1 where no group differs.

    Raises:
        ValueError: The shapes differ, or there is no image.

    Example:
        One image against five, each of another group: 2 (1/64) + 6/64.

        >>> first = np.array([1.0] + [0.0] * 5 + [1.0] * 94)
        >>> second = np.array([0.0] + [1.0] * 5 + [1.0] * 94)
        >>> group_mcnemar(first, second, np.arange(100))
        0.125

    Source:
        McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", Psychometrika 12, 1947; mid-p: Fagerland, Lydersen
        and Laake, "The McNemar test for binary matched-pairs data", BMC Medical
        Research Methodology 13, 2013.
    """
    _check(first, second, groups)
    return sign_flips(_group_differences(first, second, groups))


def paired_difference(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    groups: NDArray[np.integer],
) -> Difference:
    r"""Return the mean difference of two networks, with interval and p-value.

    The interval is that of Bonett and Price, which adds one image on which only the
    first and one on which only the second is right, for the number n of independent
    images that tell as much, with the t quantile of G - 1 degrees of freedom. n is made
    as in `intervals.share`, so the interval has a width where the two never disagree.

    Args:
        first: As for `group_mcnemar`.
        second: As for `group_mcnemar`.
        groups: As for `group_mcnemar`.

    Returns:
        The difference over images, first minus second.

    Raises:
        ValueError: The shapes differ, or there is no image.

    Example:
        With 40 groups of one image each, the first is better on 12 and worse on 2.

        >>> first = np.repeat([1.0, 0.0, 1.0], [12, 2, 26])
        >>> second = np.repeat([0.0, 1.0, 1.0], [12, 2, 26])
        >>> found = paired_difference(first, second, np.arange(40))
        >>> found.value, round(found.low, 3), round(found.high, 3), round(found.p, 4)
        (0.25, 0.058, 0.418, 0.0074)

    Source:
        Bonett and Price, "Adjusted Wald confidence interval for a difference of
        binomial proportions based on paired data", Journal of Educational and
        Behavioral Statistics 37, 2012.
    """
    _check(first, second, groups)
    differences = np.asarray(first, dtype=np.float64) - second
    num_images = len(differences)
    value = float(differences.mean())
    sums = _group_differences(first, second, groups)
    num_groups = len(np.unique(groups))
    p = sign_flips(sums)
    num_discordant = int((np.abs(sums) > _ROUNDING).sum())
    if num_groups < 2:
        return Difference(value, None, None, p, num_groups, num_discordant)

    squares = float((differences**2).sum())
    influence = (differences - value) / num_images
    effect = design_effect(differences - value, groups, num_errors=squares)
    independent = float((influence**2).sum())
    if independent > 0:
        of_groups = sums_of_groups(influence, groups)[np.bincount(groups) > 0]
        effect = max(effect, robust_variance(of_groups) / independent)
    num = num_images / effect
    # Images on which only one is right, each side with one more.
    better, worse = (
        (np.maximum(sign * differences, 0).sum() / num_images * num + 1) / (num + 2)
        for sign in (1, -1)
    )
    centre = better - worse
    half = t_quantile(num_groups - 1) * float(
        np.sqrt((better + worse - centre**2) / (num + 2))
    )
    return Difference(
        value,
        max(-1.0, float(centre) - half),
        min(1.0, float(centre) + half),
        p,
        num_groups,
        num_discordant,
    )


def expected_power(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    copies: NDArray[np.integer],
    groups: NDArray[np.integer],
) -> float:
    r"""Return how likely `group_mcnemar` finds a difference, before there are answers.

    The two networks err independently of each other. Within a network, copies of one
    picture are right or wrong together, and pictures of one group with an intraclass
    correlation of `PRIOR_ICC`. With w the standard deviation of the difference on an
    image, W its sum over the copies of a picture and d the mean difference:

        variance = (1 - icc) sum_pictures W^2 + icc sum_groups (sum W)^2
        power = Phi((|sum d| - z sqrt(variance + sum_groups (sum d)^2))
                    / sqrt(variance))

    The test takes the squares of the groups' sums for their variance, so that of its
    threshold has their means in it.

    Args:
        first: Chance of the first network to be right about each image, shape (N,).
        second: The same for the second network.
        copies: Picture that each image shows, shape (N,), from 0.
        groups: Group of each image, shape (N,), from 0. A picture is in one group.

    Returns:
        A chance; 0 where fewer than `FEWEST_GROUPS` groups can differ.

    Raises:
        ValueError: The shapes differ, or there is no image.

    Example:
        One image per group: 90 % against 75 %, and 90 % against 85 %.

        >>> ones = np.arange(100)
        >>> for other in (0.75, 0.85):
        ...     print(round(expected_power(
        ...         np.full(100, 0.9), np.full(100, other), copies=ones, groups=ones
        ...     ), 2))
        0.79
        0.18

    Source:
        Connor, "Sample size for testing differences in proportions for the
        paired-sample design", Biometrics 43, 1987, for independent images; the
        variance over groups as in Kish, "Survey Sampling", 1965.
    """
    _check(first, second, copies, groups)
    spreads = np.sqrt(first * (1 - first) + second * (1 - second))
    differences = sums_of_groups(first - second, groups)
    of_groups = sums_of_groups(spreads, groups)
    if ((of_groups > 0) | (differences != 0)).sum() < FEWEST_GROUPS:
        return 0.0
    variance = (1 - PRIOR_ICC) * (sums_of_groups(spreads, copies) ** 2).sum()
    variance += PRIOR_ICC * (of_groups**2).sum()
    quantile = special.ndtri(1 - SIGNIFICANCE / 2)
    threshold = quantile * np.sqrt(variance + (differences**2).sum())
    # Certain answers have no variance: then the difference is found or it is not.
    return float(
        special.ndtr(
            (abs(differences.sum()) - threshold) / max(np.sqrt(variance), _ROUNDING)
        )
    )


def most_disagreements(difference: int, num_images: int) -> int | None:
    """Return on how many images two networks may disagree for a difference to be found.

    The fewer they disagree on, the surer the same difference is. This is the largest
    number with which `group_mcnemar` is below `SIGNIFICANCE`, each of these images in a
    group of its own.

    Args:
        difference: Images that one network is right about more than the other.
        num_images: All images; they cannot disagree on more.

    Returns:
        `None` for a difference that is too small however few they disagree on.

    Example:
        Five against none is 1/32, six against one already 17/256, over 0.05.

        >>> [most_disagreements(number, 100) for number in (4, 5, 6)]
        [None, 5, 8]
    """

    def is_lost(num_worse: int) -> bool:
        total = difference + 2 * num_worse
        beyond = special.bdtr(num_worse - 1, total, 0.5) if num_worse else 0.0
        return bool(special.bdtr(num_worse, total, 0.5) + beyond >= SIGNIFICANCE)

    most = (num_images - difference) // 2
    num_worse = bisect_left(range(most + 1), x=True, key=is_lost) - 1
    return None if num_worse < 0 else difference + 2 * num_worse


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


def _group_differences(
    first: NDArray[np.floating] | NDArray[np.bool_],
    second: NDArray[np.floating] | NDArray[np.bool_],
    groups: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Return how much more often the first was right, summed by group, shape (G,)."""
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=float)
    return sums_of_groups(differences, groups)


def sign_flips(sums: NDArray[np.float64]) -> float:
    """Return the two-sided mid-p-value of a sum under random signs of its terms."""
    sums = sums[np.abs(sums) > _ROUNDING]
    if not sums.size:
        return 1.0
    steps = _whole_numbers(sums)
    total, largest = int(abs(steps.sum())), int(np.abs(steps).sum())
    chances = np.zeros(2 * largest + 1)
    chances[largest] = 1.0
    for step in np.abs(steps).tolist():
        moved = np.zeros_like(chances)
        moved[step:] += chances[: len(chances) - step] / 2
        moved[: len(chances) - step] += chances[step:] / 2
        chances = moved
    distance = np.abs(np.arange(-largest, largest + 1))
    p = chances[distance > total].sum() + chances[distance == total].sum() / 2
    return float(min(1.0, p)) if total else 1.0


def _whole_numbers(sums: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return sums as multiples of a fraction, or rounded where none divides them.

    Sums of means over S seeds are multiples of 1 / S.
    """
    for denominator in range(1, 101):
        scaled = sums * denominator
        if np.allclose(scaled, scaled.round(), rtol=0, atol=1e-6):
            return np.asarray(scaled.round(), np.int64)
    scale = MAX_STEPS / np.abs(sums).sum()
    return np.asarray((sums * scale).round(), np.int64)


def _check(*arrays: NDArray[np.generic]) -> None:
    """Refuse arrays that do not describe the same images.

    Raises:
        ValueError: See `paired_difference`.
    """
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise ValueError(f"expected arrays (N,) of the same N > 0 images, got {shapes}")
