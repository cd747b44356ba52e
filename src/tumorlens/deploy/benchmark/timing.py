"""Turns, and what follows from their times: medians with intervals, ratios.

Sides that are compared take turns, A B C, C A B, ..., and a machine that slows down
slows all of them. What the newcomer would get wrong: single calls are not independent,
because those of one turn share whatever else the machine did at that moment. So a turn
counts once, with the median of its calls, and ratios are formed inside a round.
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
    """`None`, as `high`, of fewer than six values: no interval is that sure."""
    high: float | None

    @property
    def width(self) -> float:
        """Of the interval, as a fraction of the value; infinite without one."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / self.value


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as another side, by rounds."""

    value: float
    """The median over rounds."""
    low: float
    """The 5th percentile over rounds: the spread of rounds, no interval."""
    high: float
    """The 95th."""
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
    """Ask every side in every round, until enough is known or time is up.

    Args:
        sides: Each is given the round's number, from 0, and returns what it measured.
        seconds: No round starts after so many, but for the first `min_rounds`.
        min_rounds: So many in any case.
        max_rounds: So many at most; not below `min_rounds`.
        is_enough: Is given what each side measured so far, from `min_rounds` on.
        shuffle_seed: Each round has an order of its own, so that no side always
            follows the same one; `None` keeps the order given.
        clock: Seconds, from any start.
        progress: Called with the rounds done.

    Returns:
        For each side, in the order of `sides`, one for each round.
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

    The ends are two of the values: those at whose places, counted from below and from
    above, a fair coin leaves at most 2.5 % on either side. This holds for values of any
    distribution.

    Example:
        The 6th and the 15th of 20.

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
    """Whether the interval of every side's median is at most so wide.

    Args:
        found: For each side a value for each round.
        width: A fraction of the median.
    """
    return all(median_of(values).width <= width for values in found)


def ratio_by_rounds(baseline: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return how many times as fast a side is, both timed in the same rounds.

    Args:
        baseline: Seconds of each round.
        other: The same of the side in question.

    Example:
        >>> ratio_by_rounds([4.0, 6.0, 8.0], [2.0, 2.0, 2.0]).value
        3.0
    """
    ratios = np.array(baseline, float) / np.array(other, float)
    value, low, high = (float(one) for one in np.percentile(ratios, (50, 5, 95)))
    return Ratio(value, low, high, len(ratios))


@lru_cache
def _place_from_the_end(num_values: int) -> int:
    """Return the largest place that a median lies below rarely enough, or 0."""
    allowed = (1 - CONFIDENCE) / 2
    place, probability = 0, 0.0
    while True:
        probability += math.comb(num_values, place) / 2**num_values
        if probability > allowed or place >= num_values:
            return place
        place += 1
