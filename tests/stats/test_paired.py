"""Paired tests against values by hand, scipy, and how often they are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats

from tumorlens.stats.paired import exact_mcnemar, holm, paired_bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray


def outcomes(
    only_first: int, only_second: int, both: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return who was right, for so many images of each kind."""
    counts = [only_first, only_second, both]
    first = np.repeat([True, False, True], counts)
    return first, np.repeat([False, True, True], counts)


# exact McNemar


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        pytest.param(0, 0, 1.0, id="never apart"),
        pytest.param(1, 0, 1.0, id="one image says nothing"),
        pytest.param(3, 3, 1.0, id="even"),
        # Two-sided: 2 * C(5, 0) / 2^5.
        pytest.param(5, 0, 2 / 32, id="five against none"),
        # Two-sided: twice C(10, 0) + C(10, 1) of 2^10.
        pytest.param(1, 9, 22 / 1024, id="one against nine"),
    ],
)
def test_mcnemar_equals_the_binomial_sum_by_hand(
    only_first: int, only_second: int, expected: float
) -> None:
    assert exact_mcnemar(*outcomes(only_first, only_second, 20)) == pytest.approx(
        expected
    )


def test_mcnemar_does_not_count_images_on_which_both_agree() -> None:
    assert exact_mcnemar(*outcomes(9, 2, 0)) == exact_mcnemar(*outcomes(9, 2, 500))


def test_mcnemar_does_not_know_which_came_first() -> None:
    first, second = outcomes(8, 2, 10)
    assert exact_mcnemar(first, second) == exact_mcnemar(second, first)


# paired bootstrap


def test_the_difference_is_first_minus_second() -> None:
    first, second = outcomes(12, 2, 26)
    found = paired_bootstrap(first * 1.0, second * 1.0, np.arange(40))
    back = paired_bootstrap(second * 1.0, first * 1.0, np.arange(40))
    assert (found.value, back.value) == (0.25, -0.25)
    assert found.low is not None
    assert back.high == pytest.approx(-found.low, abs=0.026)


def test_the_p_value_does_not_know_which_came_first() -> None:
    # Five against three: one resample in seven or so is even, and counts on both sides.
    first, second = (side * 1.0 for side in outcomes(5, 3, 8))
    found = paired_bootstrap(first, second, np.arange(16))
    back = paired_bootstrap(second, first, np.arange(16))
    assert found.p == pytest.approx(back.p, abs=0.03)


def test_the_interval_of_single_images_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 200)) < [[0.85], [0.78]]).astype(float)
    found = paired_bootstrap(first, second, np.arange(200))
    expected = scipy.stats.bootstrap(
        (first, second),
        lambda a, b, axis: (a - b).mean(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
    ).confidence_interval
    # The difference moves in steps of one image of 200.
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.0051)


def test_the_bootstrap_equals_a_plain_loop_over_drawn_groups() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 7, size=40)
    groups = np.repeat(np.arange(40), sizes)
    first, second = rng.integers(4, size=(2, len(groups))) / 3
    found = paired_bootstrap(first, second, groups)
    values = []
    for _ in range(8000):
        images = np.concatenate(
            [np.flatnonzero(groups == group) for group in rng.integers(40, size=40)]
        )
        values.append((first[images] - second[images]).mean())
    low, high = np.percentile(values, [2.5, 97.5])
    assert found.value == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    beyond = 2 * min(np.mean(np.array(values) <= 0), np.mean(np.array(values) >= 0))
    assert found.p == pytest.approx(beyond, abs=0.03)
    assert 0.05 < found.p < 1


def test_the_bootstrap_draws_groups_and_not_images() -> None:
    # Twenty groups of 30 equal images are as good as twenty images.
    first, second = (side.repeat(30) * 1.0 for side in outcomes(9, 3, 8))
    of_groups = paired_bootstrap(first, second, np.arange(600) // 30)
    of_twenty = paired_bootstrap(first[::30], second[::30], np.arange(20))
    of_images = paired_bootstrap(first, second, np.arange(600))
    assert of_groups == of_twenty
    assert of_images.p < 0.001 < 0.05 < of_groups.p


def test_equal_networks_differ_by_nothing() -> None:
    right = np.array([1.0, 0.0, 1.0])
    found = paired_bootstrap(right, right, np.arange(3))
    assert (found.value, found.low, found.high, found.p) == (0.0, None, None, 1.0)


def test_means_over_seeds_that_differ_in_the_last_digit_are_equal() -> None:
    first = np.full(50, 0.1 + 0.2)
    found = paired_bootstrap(first, np.full(50, 0.3), np.arange(50))
    assert (found.low, found.high, found.p) == (None, None, 1.0)


@pytest.mark.parametrize(("num_groups", "lowest"), [(1, 1.0), (3, 0.25), (5, 0.0625)])
def test_few_groups_that_disagree_never_make_a_small_p(
    num_groups: int, lowest: float
) -> None:
    # All resamples are above 0, but so many coins fall alike that often.
    first = np.ones(num_groups * 20)
    found = paired_bootstrap(first, first * 0, np.arange(len(first)) // 20)
    assert found.value == 1
    assert found.p == lowest


def test_a_plain_difference_has_the_smallest_p_that_resamples_can_give() -> None:
    first = np.ones(60)
    found = paired_bootstrap(first, first * 0, np.arange(60), num_resamples=999)
    assert found.p == pytest.approx(2 / 1000)
    assert (found.low, found.high) == (None, None)


def test_equal_networks_are_called_different_about_as_often_as_promised() -> None:
    # 300 comparisons of two equally good networks on 60 patients with 1 to 5 slices
    # that stand or fall together.
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        groups = np.repeat(np.arange(60), rng.integers(1, 6, size=60))
        first, second = (rng.random((2, 60)) < 0.8)[:, groups].astype(float)
        found.append(paired_bootstrap(first, second, groups, num_resamples=999))
    assert 0.02 <= np.mean([one.p < 0.05 for one in found]) <= 0.08
    held = [
        one.low <= 0 <= one.high
        for one in found
        if one.low is not None and one.high is not None
    ]
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_same_seed_gives_the_same_resamples() -> None:
    first, second = (side * 1.0 for side in outcomes(9, 3, 28))
    groups = np.arange(40)
    assert paired_bootstrap(first, second, groups) == paired_bootstrap(
        first, second, groups
    )
    assert paired_bootstrap(first, second, groups) != paired_bootstrap(
        first, second, groups, seed=1
    )


@pytest.mark.parametrize(
    ("num_first", "num_second"), [(3, 4), (0, 0)], ids=["other images", "none"]
)
def test_arrays_of_other_images_are_refused(num_first: int, num_second: int) -> None:
    first, second = np.zeros(num_first), np.zeros(num_second)
    with pytest.raises(ValueError, match=rf"got \[\({num_first},\), \({num_second},"):
        paired_bootstrap(first, second, np.zeros(num_first, dtype=int))
    with pytest.raises(ValueError, match=rf"got \[\({num_first},\), \({num_second},"):
        exact_mcnemar(first > 0, second > 0)


# Holm


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.02], [0.02]),
        # 4 * 0.005, 3 * 0.01, 2 * 0.03, then 0.04 may not be below 0.06.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_by_hand(p_values: list[float], expected: list[float]) -> None:
    assert holm(p_values) == pytest.approx(expected)


def test_holm_lies_between_no_correction_and_bonferroni() -> None:
    p_values = np.random.default_rng(0).random(30) ** 3
    corrected = np.array(holm(list(p_values)))
    assert (corrected >= p_values).all()
    assert (corrected <= np.minimum(1, 30 * p_values)).all()
    assert (np.diff(corrected[np.argsort(p_values)]) >= 0).all()
