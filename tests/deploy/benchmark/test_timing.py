"""Turns on a clock of our own, and medians and ratios worked out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import binom

from tumorlens.deploy.benchmark.timing import (
    are_narrow,
    median_of,
    ratio_by_rounds,
    take_turns,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def names(made: list[str], name: str) -> Callable[[int], str]:
    """Return a side that notes its name."""

    def side(_round: int) -> str:
        made.append(name)
        return name

    return side


def test_every_side_has_its_turn_in_every_round() -> None:
    made: list[str] = []
    found = take_turns(
        [names(made, "A"), names(made, "B")], seconds=0, min_rounds=3, max_rounds=9
    )
    assert made == ["A", "B"] * 3
    assert found == [["A"] * 3, ["B"] * 3]


def test_no_side_always_follows_the_same_one() -> None:
    made: list[str] = []
    found = take_turns(
        [names(made, name) for name in "ABC"],
        seconds=0,
        min_rounds=60,
        max_rounds=60,
        shuffle_seed=1,
    )
    rounds = [tuple(made[at : at + 3]) for at in range(0, len(made), 3)]
    assert all(sorted(one) == ["A", "B", "C"] for one in rounds)
    assert len(set(rounds)) == 6
    # What was measured stays with its side, whatever the order was.
    assert found == [["A"] * 60, ["B"] * 60, ["C"] * 60]


def test_the_budget_ends_the_turns_but_not_before_the_least_rounds() -> None:
    now = 0.0

    def side(_round: int) -> float:
        nonlocal now
        now += 1.0
        return now

    def num_rounds(seconds: float, min_rounds: int) -> int:
        (found,) = take_turns(
            [side],
            seconds=seconds,
            min_rounds=min_rounds,
            max_rounds=50,
            clock=lambda: now,
        )
        return len(found)

    assert num_rounds(seconds=7.5, min_rounds=3) == 8
    assert num_rounds(seconds=7.5, min_rounds=20) == 20
    assert num_rounds(seconds=1e9, min_rounds=3) == 50


def test_turns_end_as_soon_as_enough_is_known() -> None:
    asked: list[int] = []

    def is_enough(found: list[list[int]]) -> bool:
        asked.append(len(found[0]))
        return len(found[0]) == 7

    (found,) = take_turns(
        [lambda number: number],
        seconds=math.inf,
        min_rounds=5,
        max_rounds=50,
        is_enough=is_enough,
    )
    assert found == list(range(7))
    assert asked == [5, 6, 7]


def test_progress_counts_rounds() -> None:
    done: list[int] = []
    take_turns(
        [lambda _: 0], seconds=0, min_rounds=3, max_rounds=3, progress=done.append
    )
    assert done == [1, 2, 3]


@pytest.mark.parametrize("num", [6, 7, 20, 37, 100, 301])
def test_the_interval_of_the_median_has_the_coverage_of_the_binomial(num: int) -> None:
    # Independent: scipy's distribution. The next value inwards would not do.
    found = median_of(range(1, num + 1))
    assert found.low is not None
    assert found.high is not None
    place = int(found.low)
    assert found.high == num + 1 - place
    assert binom.cdf(place - 1, num, 0.5) <= 0.025 < binom.cdf(place, num, 0.5)


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        found = median_of(rng.lognormal(size=25).tolist())
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.0 <= found.high
    assert 0.94 <= hits / 1000 <= 0.98  # 95.7 % with 25 values


def test_fewer_than_six_values_have_no_interval() -> None:
    found = median_of([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (found.value, found.low, found.high) == (3.0, None, None)
    assert found.width == math.inf
    assert median_of([1, 2, 3, 4, 5, 6]).low == 1


def test_a_width_is_a_fraction_of_the_median() -> None:
    values = [100.0] * 10 + [99.0] * 5 + [102.0] * 5
    # The 6th and 15th of 20.
    assert median_of(values).width == 0.0
    assert median_of([98, 98, 100, 100, 102, 102]).width == pytest.approx(0.04)


def test_narrow_means_all_of_them() -> None:
    wide, narrow = [98.0, 98, 100, 100, 102, 102], [100.0] * 6
    assert are_narrow([narrow, wide], width=0.05)
    assert not are_narrow([narrow, wide], width=0.03)


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    # The machine is ten times as slow in the last round: for both sides.
    baseline = [4.0, 4.0, 6.0, 5.0, 40.0]
    other = [2.0, 1.0, 2.0, 2.0, 20.0]
    found = ratio_by_rounds(baseline, other)
    assert found.value == 2.5  # of 2, 4, 3, 2.5, 2
    assert found.p5 == pytest.approx(2.0)
    assert found.p95 == pytest.approx(3.8)  # between 3 and 4, at 0.95 * 4 = 3.8
    assert found.num_rounds == 5
