"""Turns, and statistics of their times: medians with intervals, ratios.

Sides that are compared take turns, A B C, C A B, ..., and a machine that slows down
slows all of them. Single calls are not independent, because those of one turn share
whatever else the machine did at that moment. So a turn counts once, with the median of
its calls, and ratios are formed inside a round.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Median:
    """A median with its 95 % interval."""

    value: float
    low: float | None
    """`None`, as `high`, for fewer than six values, which have no 95 % interval."""
    high: float | None

    @property
    def width(self) -> float:
        """Width of the interval as a fraction of the value; infinite without one."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / self.value


@dataclass(frozen=True)
class Ratio:
    """Speed as a multiple of that of another side, by rounds."""

    value: float
    """Median over rounds."""
    p5: float
    """5th percentile over rounds: the spread of rounds, no interval."""
    p95: float
    """95th percentile."""
    num_rounds: int


def take_turns(
    sides: Sequence[Callable[[int], T]],
    *,
    seconds: float,
    min_rounds: int,
    max_rounds: int,
    is_enough: Callable[[list[list[T]]], bool] = lambda _: False,
    shuffle_seed: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[T]]:
    """Call every side in every round, until `is_enough` or the time is up.

    Args:
        sides: Functions from the number of the round, from 0, to a measurement.
        seconds: Time after which no round starts, except the first `min_rounds`.
        min_rounds: Smallest number of rounds.
        max_rounds: Largest number of rounds; not below `min_rounds`.
        is_enough: Stopping rule, called from `min_rounds` on with the measurements of
            each side so far.
        shuffle_seed: Seed of the order within each round, so that no side always
            follows the same one; `None` keeps the given order.
        clock: Clock in seconds, with any start.
        progress: Called with the number of rounds done.

    Returns:
        The measurements: for each side, in the order of `sides`, one for each round.
    """
    rng = random.Random(shuffle_seed)
    found: list[list[T]] = [[] for _ in sides]
    start = clock()
    for number in range(max_rounds):
        if number >= min_rounds and (clock() - start >= seconds or is_enough(found)):
            break
        order = list(range(len(sides)))
        if shuffle_seed is not None:
            rng.shuffle(order)
        for place in order:
            found[place].append(sides[place](number))
        progress(number + 1)
    return found


def median_of(values: Sequence[float]) -> Median:
    """Return the median of independent values with its interval.

    The bounds are order statistics: by the binomial distribution with p = 0.5, the
    median lies outside them with a probability of at most 2.5 % on either side. This
    holds for values of any distribution.

    Example:
        The 6th and the 15th of 20 values.

        >>> median_of(range(1, 21))
        Median(value=10.5, low=6.0, high=15.0)

    Source:
        David and Nagaraja, "Order Statistics", 3rd edition, 2003, section 7.1; for
        times of programs: Le Boudec, "Performance Evaluation of Computer and
        Communication Systems", 2010, section 2.2.
    """
    ordered = sorted(map(float, values))
    place = _place_from_the_end(len(ordered))
    ends = (ordered[place - 1], ordered[-place]) if place else (None, None)
    return Median(float(np.median(ordered)), *ends)


def are_narrow(found: Sequence[Sequence[float]], *, width: float) -> bool:
    """Whether the interval of every side's median is narrow enough.

    Args:
        found: For each side one value for each round.
        width: Largest width, as a fraction of the median.
    """
    return all(median_of(values).width <= width for values in found)


def ratio_by_rounds(baseline: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return the speed of a side relative to a baseline, timed in the same rounds.

    Args:
        baseline: Seconds of the baseline in each round.
        other: Seconds of the other side in each round.

    Example:
        >>> ratio_by_rounds([4.0, 6.0, 8.0], [2.0, 2.0, 2.0]).value
        3.0
    """
    ratios = np.array(baseline, float) / np.array(other, float)
    value, p5, p95 = (float(one) for one in np.percentile(ratios, (50, 5, 95)))
    return Ratio(value, p5, p95, len(ratios))


@lru_cache
def _place_from_the_end(num_values: int) -> int:
    """Return the largest rank that the median rarely lies below, or 0."""
    allowed = (1 - CONFIDENCE) / 2
    place, probability = 0, 0.0
    while True:
        probability += math.comb(num_values, place) / 2**num_values
        if probability > allowed or place >= num_values:
            return place
        place += 1
