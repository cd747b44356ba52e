"""Answering only when sure: a threshold with a proof of how many answers are wrong.

The largest probability of an image decides whether it is answered. From the strictest
threshold to the laxest, an exact binomial test asks whether more than the allowed share
of the answers are wrong; the last one before the first failure is taken. As the order
of the tests is fixed, together they err no more often than each by itself. The units
must be independent: one image of each group.

Source:
    Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test: Calibrating
    Predictive Algorithms to Achieve Risk Control", 2021 (arXiv:2110.01052), section 2
    (fixed sequence testing).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Abstention(NamedTuple):
    """A threshold on the largest probability, with what it was proved on."""

    threshold: float
    num_answered: int
    """Calibration images, one of each group, at or above the threshold."""
    num_wrong: int
    """Those that are answered wrongly."""


def fewest_for(error: float, confidence: float) -> int:
    """Return how many answers without a mistake prove an error of at most `error`.

    Example:
        >>> fewest_for(0.05, 0.9)
        45
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - error) - 1e-9)


def provable_error(num_answered: int, confidence: float) -> float:
    """Return which error so many answers without a mistake would prove.

    Example:
        >>> round(provable_error(31, 0.9), 3)
        0.072
    """
    return float(1 - (1 - confidence) ** (1 / num_answered)) if num_answered else 1.0


def fit_threshold(
    certainty: NDArray[np.floating],
    is_wrong: NDArray[np.bool_],
    *,
    error: float,
    confidence: float,
) -> Abstention | None:
    """Return the laxest threshold of which the promise is proved.

    Args:
        certainty: Largest probability of each image, one of each group, shape (N,).
        is_wrong: Whether its class is wrong, shape (N,).
        error: Largest share of wrong answers that is promised, in (0, 1).
        confidence: Chance with which the promise is to hold, in (0, 1).

    Returns:
        The threshold; `None` where the images prove none.
    """
    from scipy import stats

    order = np.argsort(-certainty, kind="stable")
    values, wrong = certainty[order], np.cumsum(is_wrong[order])
    # Images of equal certainty are answered together.
    (ends,) = np.nonzero(np.append(np.diff(values) < 0, True))
    ends = ends[ends + 1 >= fewest_for(error, confidence)]
    # The p-values of `stats.binomtest(..., alternative="less")`, all at once.
    p_values = stats.binom.cdf(wrong[ends], ends + 1, error)
    num_proved = int(np.argmax(np.append(p_values > 1 - confidence, True)))
    if not num_proved:
        return None
    end = int(ends[num_proved - 1])
    return Abstention(float(values[end]), end + 1, int(wrong[end]))
