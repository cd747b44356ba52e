"""A part against the rest, checked by hand, by brute force and by simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tumorlens.stats.intervals import share
from tumorlens.stats.parts import part_against_rest


def test_the_interval_adds_the_squares_of_both_where_no_group_is_shared() -> None:
    values = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 10, 45, 5])
    is_part, groups = np.arange(80) < 30, np.arange(80) // 2
    found = part_against_rest(values, is_part, groups)
    a, b = share(values[:30], groups[:30]), share(values[30:], groups[30:] - 15)
    assert found.value == pytest.approx(20 / 30 - 45 / 50)
    assert (found.part.low, found.rest.high) == pytest.approx((a.low, b.high))
    below = np.hypot(a.value - a.low, b.high - b.value)
    above = np.hypot(a.high - a.value, b.value - b.low)
    assert found.low == pytest.approx(found.value - below)
    assert found.high == pytest.approx(found.value + above)


def test_p_counts_the_signs_of_the_groups() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(9), 4)
    values, is_part = rng.random(36) < 0.6, rng.random(36) < 0.4
    weights = np.where(is_part, 1 / is_part.sum(), -1 / (~is_part).sum())
    scores = np.bincount(groups, (values - values.mean()) * weights)
    found = part_against_rest(values, is_part, groups)
    assert scores.sum() == pytest.approx(found.value)
    sums = np.abs(np.array(list(product((-1, 1), repeat=9))) @ scores)
    beyond = (sums > abs(found.value) + 1e-9).mean()
    as_far = (np.abs(sums - abs(found.value)) < 1e-9).mean()
    # The exact test rounds to 20,000 steps.
    assert found.p == pytest.approx(beyond + as_far / 2, abs=0.01)


def test_the_rest_against_the_part_is_the_same_the_other_way_round() -> None:
    rng = np.random.default_rng(5)
    groups = rng.integers(20, size=120)
    groups = np.unique(groups, return_inverse=True)[1]
    values, is_part = rng.random(120) < 0.8, rng.random(120) < 0.3
    one = part_against_rest(values, is_part, groups)
    other = part_against_rest(values, ~is_part, groups)
    assert one.low is not None
    assert one.high is not None
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert (other.value, other.p) == pytest.approx((-one.value, one.p))


def test_groups_on_both_sides_that_err_together_make_no_difference_appear() -> None:
    # Accuracy is that of the patient, and which slices are in the part is chance: 5 %
    # of such sets are found different at 0.05, within the noise of 120 sets.
    rng = np.random.default_rng(0)
    num_found = num_covered = 0
    for _ in range(120):
        groups = np.repeat(np.arange(40), rng.integers(1, 10, size=40))
        right = rng.random(len(groups)) < rng.beta(4, 1, size=40)[groups]
        is_part = rng.random(len(groups)) < rng.beta(0.6, 1.2, size=40)[groups]
        found = part_against_rest(right, is_part, groups)
        assert found.low is not None
        assert found.high is not None
        num_found += found.p < 0.05
        num_covered += found.low <= 0 <= found.high
    assert num_found <= 13
    assert num_covered >= 107


def test_a_part_needs_a_rest_and_arrays_of_one_length() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match="in the part and in the rest"):
        part_against_rest(ones, ones > 0, np.arange(3))
    with pytest.raises(ValueError, match=r"same N images, got \(3,\), \(2,\)"):
        part_against_rest(ones, np.array([True, False]), np.arange(3))


def test_a_side_of_one_group_has_no_interval() -> None:
    found = part_against_rest(
        np.array([1.0, 0, 1, 1]),
        np.array([True, True, False, False]),
        np.arange(4) // 2,
    )
    assert (found.low, found.high) == (None, None)


def test_groups_whose_images_on_both_sides_are_alike_narrow_the_interval() -> None:
    # Each group has an image on either side, both right or both wrong: correlation 1.
    right, groups = np.repeat([1.0, 0.0], [60, 20]), np.arange(80) // 2
    is_part = np.arange(80) % 2 == 0
    found = part_against_rest(right, is_part, groups)
    asymmetry = (found.part.value - found.part.low) - (
        found.part.high - found.part.value
    )
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-abs(asymmetry), abs(asymmetry)))
    assert found.p == 1
