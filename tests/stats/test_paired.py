"""Paired tests against values by hand, scipy, and how often they are wrong."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats

from tumorlens.stats.paired import (
    expected_power,
    group_mcnemar,
    holm,
    most_disagreements,
    paired_difference,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def outcomes(
    only_first: int, only_second: int, both: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return who was right, for so many images of each kind."""
    counts = [only_first, only_second, both]
    first = np.repeat([True, False, True], counts)
    return first, np.repeat([False, True, True], counts)


# McNemar's test over groups


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        pytest.param(0, 0, 1.0, id="never apart"),
        # 2 (1/2) / 2: half the chance of a result that must be as far.
        pytest.param(1, 0, 0.5, id="one image shows nothing"),
        pytest.param(3, 3, 1.0, id="even"),
        pytest.param(5, 0, 1 / 32, id="five against none"),
        # 2 C(10, 0) of 2^10, and half of 2 C(10, 1).
        pytest.param(1, 9, 12 / 1024, id="one against nine"),
    ],
)
def test_with_one_image_a_group_mcnemar_is_the_mid_p_test_by_hand(
    only_first: int, only_second: int, expected: float
) -> None:
    first, second = outcomes(only_first, only_second, 20)
    assert group_mcnemar(first, second, np.arange(len(first))) == pytest.approx(
        expected
    )


def test_mid_p_lies_half_a_term_below_the_exact_binomial_test() -> None:
    first, second = outcomes(11, 4, 40)
    exact = scipy.stats.binomtest(11, 15).pvalue
    term = scipy.stats.binom.pmf(11, 15, 0.5)
    assert group_mcnemar(first, second, np.arange(55)) == pytest.approx(exact - term)


def test_the_test_over_groups_counts_all_signs_of_the_groups() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(9), [1, 4, 2, 7, 3, 3, 5, 1, 2])
    first, second = rng.random((2, len(groups))) < 0.6
    sums = np.bincount(groups, first.astype(float) - second)
    totals = np.array(
        [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=9)]
    )
    found = abs(sums.sum())
    expected = (totals > found).mean() + (totals == found).mean() / 2
    assert group_mcnemar(first, second, groups) == pytest.approx(expected)


def test_slices_that_repeat_their_patient_are_no_more_evidence() -> None:
    first, second = outcomes(8, 2, 10)
    one_each = group_mcnemar(first, second, np.arange(20))
    ten_each = group_mcnemar(
        np.repeat(first, 10), np.repeat(second, 10), np.repeat(np.arange(20), 10)
    )
    assert ten_each == pytest.approx(one_each)


def test_neither_the_order_of_the_two_nor_agreement_changes_p() -> None:
    few, many = outcomes(9, 2, 0), outcomes(9, 2, 500)
    p = group_mcnemar(*few, np.arange(11))
    assert group_mcnemar(*many, np.arange(511)) == pytest.approx(p)
    assert group_mcnemar(few[1], few[0], np.arange(11)) == pytest.approx(p)


def test_means_over_seeds_have_the_p_of_their_counts() -> None:
    first, second = (
        np.array([1, 1, 2 / 3, 1, 0.0]),
        np.array([0, 1 / 3, 1 / 3, 0, 1 / 3]),
    )
    counts = np.array([3, 2, 1, 3, -1])
    totals = np.array(
        [abs(np.dot(signs, counts)) for signs in itertools.product((-1, 1), repeat=5)]
    )
    expected = (totals > 8).mean() + (totals == 8).mean() / 2
    assert group_mcnemar(first, second, np.arange(5)) == pytest.approx(expected)


def test_means_that_no_fraction_divides_are_rounded_finely() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 30))
    sums = first - second
    flips = rng.choice([-1.0, 1.0], size=(100_000, 30)) @ sums
    expected = (np.abs(flips) >= abs(sums.sum())).mean()
    assert group_mcnemar(first, second, np.arange(30)) == pytest.approx(
        expected, abs=0.005
    )


@pytest.mark.parametrize("num_groups", range(1, 7))
def test_few_groups_that_differ_never_make_a_small_p(num_groups: int) -> None:
    first = np.ones(12 * num_groups)
    groups = np.repeat(np.arange(num_groups), 12)
    assert group_mcnemar(first, first * 0, groups) >= 2.0**-num_groups


def test_means_over_seeds_that_differ_in_the_last_digit_are_equal() -> None:
    first = np.array([0.1 + 0.2, 0.7])
    second = np.array([0.3, 0.7])
    assert group_mcnemar(first, second, np.arange(2)) == 1


# the difference and its interval


def test_the_difference_is_first_minus_second() -> None:
    first, second = outcomes(12, 2, 26)
    found = paired_difference(first.astype(float), second.astype(float), np.arange(40))
    other = paired_difference(second.astype(float), first.astype(float), np.arange(40))
    assert found.value == pytest.approx(0.25)
    assert other.value == pytest.approx(-0.25)
    assert other.p == found.p
    assert found.low is not None
    assert other.high == pytest.approx(-found.low)
    assert found.num_discordant_groups == 14


def test_of_independent_images_the_interval_is_that_of_bonett_and_price() -> None:
    # n is 300, as the robust variance of such a sample is larger by 300 / 299 only.
    first, second = outcomes(30, 12, 258)
    found = paired_difference(first.astype(float), second.astype(float), np.arange(300))
    num = 299
    better, worse = (count / 300 * num + 1 for count in (30, 12))
    centre = (better - worse) / (num + 2)
    spread = (better + worse) / (num + 2) - centre**2
    half = scipy.stats.t.ppf(0.975, 299) * (spread / (num + 2)) ** 0.5
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))


def test_slices_that_repeat_their_patient_do_not_narrow_the_interval() -> None:
    first, second = (one.astype(float) for one in outcomes(12, 2, 26))
    one_each = paired_difference(first, second, np.arange(40))
    five_each = paired_difference(
        np.repeat(first, 5), np.repeat(second, 5), np.repeat(np.arange(40), 5)
    )
    assert (five_each.low, five_each.high) == pytest.approx(
        (one_each.low, one_each.high), abs=1e-9
    )


def test_networks_that_never_disagree_may_still_differ() -> None:
    right = np.ones(60)
    found = paired_difference(right, right, np.arange(60))
    assert (found.value, found.p) == (0, 1)
    assert found.low is not None
    assert found.high is not None
    # Some 3 of 60 images could have been different: the rule of three.
    assert 0.03 < found.high == -found.low < 0.07


def test_a_single_group_has_no_interval() -> None:
    found = paired_difference(np.ones(5), np.zeros(5), np.zeros(5, dtype=np.int64))
    assert (found.low, found.high, found.p) == (None, None, 0.5)


@pytest.mark.parametrize(
    ("num_first", "num_second"), [(3, 4), (0, 0)], ids=["other images", "none"]
)
def test_arrays_of_other_images_are_refused(num_first: int, num_second: int) -> None:
    first, second = np.zeros(num_first), np.zeros(num_second)
    with pytest.raises(ValueError, match=rf"got \[\({num_first},\), \({num_second},"):
        paired_difference(first, second, np.zeros(num_first, dtype=int))
    with pytest.raises(ValueError, match=rf"got \[\({num_first},\), \({num_second},"):
        group_mcnemar(first > 0, second > 0, np.zeros(num_first, dtype=int))


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


# What a test set could show


def answers(
    chances: NDArray[np.floating],
    copies: NDArray[np.integer],
    groups: NDArray[np.integer],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Return right and wrong, equal for copies and alike by 0.5 within a group."""
    num_copies, num_groups = copies.max() + 1, groups.max() + 1
    with_group = rng.random(num_copies)[copies] < np.sqrt(0.5)
    of_group, of_copies = rng.random(num_groups)[groups], rng.random(num_copies)[copies]
    return np.asarray(np.where(with_group, of_group, of_copies) < chances)


@pytest.mark.parametrize(
    ("num_groups", "better", "worse"),
    [
        pytest.param(150, 0.85, 0.72, id="likely"),
        pytest.param(150, 0.85, 0.79, id="unlikely"),
        pytest.param(60, 0.95, 0.75, id="few groups"),
    ],
)
def test_the_expected_power_is_how_often_the_test_finds_it(
    num_groups: int, better: float, worse: float
) -> None:
    rng = np.random.default_rng(5)
    pictures = np.repeat(np.arange(num_groups), rng.integers(1, 4, num_groups))
    copies = np.repeat(np.arange(len(pictures)), rng.integers(1, 3, len(pictures)))
    groups = pictures[copies]
    # Both know some by heart, as images that training has seen.
    is_known = rng.random(len(copies)) < 0.3
    first, second = (np.where(is_known, 1.0, chance) for chance in (better, worse))
    found = [
        group_mcnemar(
            answers(first, copies, groups, rng),
            answers(second, copies, groups, rng),
            groups,
        )
        < 0.05
        for _ in range(800)
    ]
    expected = expected_power(first, second, copies=copies, groups=groups)
    assert np.mean(found) == pytest.approx(expected, abs=0.06)
    assert 0.1 < expected < 0.95


def test_the_expected_power_for_single_images_is_that_of_connor() -> None:
    # Connor 1987: n = (z_a sqrt(psi) + z_b sqrt(psi - d^2))^2 / d^2 pairs.
    first, second = 0.9, 0.8
    psi, difference = first * 0.2 + second * 0.1, first - second
    num = (
        1.959964 * np.sqrt(psi) + 0.841621 * np.sqrt(psi - difference**2)
    ) ** 2 / difference**2
    ones = np.arange(round(num))
    power = expected_power(
        np.full(len(ones), first), np.full(len(ones), second), copies=ones, groups=ones
    )
    assert power == pytest.approx(0.8, abs=0.002)


def test_copies_add_no_power_and_four_groups_have_none() -> None:
    first, second = np.full(60, 0.9), np.full(60, 0.6)
    ones = np.arange(60)
    alone = expected_power(first, second, copies=ones, groups=ones)
    twice = expected_power(
        np.repeat(first, 2),
        np.repeat(second, 2),
        copies=np.repeat(ones, 2),
        groups=np.repeat(ones, 2),
    )
    assert twice == pytest.approx(alone)
    assert expected_power(first, second, copies=ones, groups=ones % 4) == 0
    assert expected_power(first, second, copies=ones, groups=ones % 5) > 0


def test_answers_that_are_certain_are_found_or_not() -> None:
    ones = np.arange(6)
    sure = expected_power(np.ones(6), np.zeros(6), copies=ones, groups=ones)
    assert sure == 1
    same = expected_power(np.ones(6), np.ones(6), copies=ones, groups=ones)
    assert same == 0


@pytest.mark.parametrize("difference", [1, 4, 5, 6, 9, 17, 40])
def test_the_most_disagreements_are_the_last_that_the_test_finds(
    difference: int,
) -> None:
    found = [
        difference + 2 * num_worse
        for num_worse in range((120 - difference) // 2 + 1)
        if group_mcnemar(
            *outcomes(difference + num_worse, num_worse, 0),
            np.arange(difference + 2 * num_worse),
        )
        < 0.05
    ]
    assert most_disagreements(difference, 120) == max(found, default=None)
    assert most_disagreements(0, 120) is None


def test_no_groups_make_a_difference_of_four_images_small() -> None:
    # However the images that differ fall into groups, signs and cancellations included.
    for num_groups in range(1, 7):
        for sums in itertools.combinations_with_replacement(range(-3, 5), num_groups):
            if 0 < sum(sums) <= 4:
                groups = np.repeat(np.arange(num_groups), np.abs(sums))
                first = np.repeat([one > 0 for one in sums], np.abs(sums))
                assert group_mcnemar(first, ~first, groups) > 0.05, sums
