"""A part of the images against the rest: is the difference more than chance?

Pure numpy on arrays. Parts share groups: a patient may have bright and dark slices, so
the two accuracies move together, and the group is the unit of both sides at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tumorlens.stats.intervals import Score, share, sums_of_groups
from tumorlens.stats.paired import sign_flips

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOVER = "MOVER of Wilson, design effect"


class PartDifference(NamedTuple):
    """A share in a part of the images, in the rest, and their difference."""

    part: Score
    rest: Score
    value: float
    """Part less rest, -1 to 1."""
    low: float | None
    """Low end of the 95 % interval; `None`, as `high`, where a side has one group."""
    high: float | None
    p: float
    """Two-sided p-value; 1 without evidence of a difference."""


def part_against_rest(
    values: NDArray[np.floating] | NDArray[np.bool_],
    is_part: NDArray[np.bool_],
    groups: NDArray[np.integer],
) -> PartDifference:
    r"""Return how a share of images differs between a part of them and the rest.

    The interval combines those of both shares (MOVER), with the correlation r of their
    influences over groups:

        low = d - sqrt((a - low_a)^2 + (high_b - b)^2 - 2 r (a - low_a) (high_b - b))

    The p-value is that of the score test with groups as units: were there no
    difference, each group's contribution

        z_g = sum_{i in g} (y_i - mean(y)) (1[part] / n_part - 1[rest] / n_rest)

    whose sum is the difference, would as likely have the opposite sign. It is exact for
    these signs, as in `paired.group_mcnemar`.

    Args:
        values: Whether each image counts, shape (N,).
        is_part: Whether it belongs to the part, shape (N,).
        groups: Group of each image, shape (N,), from 0.

    Raises:
        ValueError: The shapes differ, or a side has no image.

    Example:
        Wrong on 6 of 10 images of the part, and on 2 of 30 of the rest, all of other
        groups.

        >>> values = np.repeat([0.0, 1.0, 0.0, 1.0], [6, 4, 2, 28])
        >>> found = part_against_rest(values, np.arange(40) < 10, np.arange(40))
        >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
        (-0.533, -0.799, -0.164)
        >>> found.p < 0.05
        True

    Source:
        Zou and Donner, "Construction of confidence limits about effect measures",
        Statistics in Medicine 27, 2008; the signs: Kline and Santos, "A score based
        approach to wild bootstrap inference", Journal of Econometric Methods 1, 2012.
    """
    counted = np.asarray(values, dtype=np.float64)
    if not counted.shape == is_part.shape == groups.shape or counted.ndim != 1:
        raise ValueError(
            f"expected arrays (N,) of the same N images, got {counted.shape}, "
            f"{is_part.shape} and {groups.shape}"
        )
    if is_part.all() or not is_part.any():
        raise ValueError("expected images in the part and in the rest")
    num_groups = int(groups.max()) + 1
    part, rest = (
        share(counted[side], groups[side], num_groups=num_groups)
        for side in (is_part, ~is_part)
    )
    value = part.value - rest.value
    weights = np.where(is_part, 1 / is_part.sum(), -1 / (~is_part).sum())
    p = sign_flips(sums_of_groups((counted - counted.mean()) * weights, groups))
    if part.interval is None or rest.interval is None:
        return PartDifference(part, rest, value, None, None, p)
    norms = np.linalg.norm(part.influence) * np.linalg.norm(rest.influence)
    correlation = float(part.influence @ rest.influence / norms) if norms else 0.0

    def distance(own: float, other: float) -> float:
        return float(np.sqrt(own**2 + other**2 - 2 * correlation * own * other))

    return PartDifference(
        part,
        rest,
        value,
        max(-1.0, value - distance(part.value - part.low, rest.high - rest.value)),
        min(1.0, value + distance(part.high - part.value, rest.value - rest.low)),
        p,
    )
