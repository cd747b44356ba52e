"""Intervals against scipy, values by hand, and how often they hold the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from tumorlens.stats import intervals
from tumorlens.stats.intervals import (
    auroc,
    combine,
    design_effect,
    distance_interval,
    mean_interval,
    robust_variance,
    share,
    share_of_count,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def wilson(value: float, num: float, quantile: float) -> tuple[float, float]:
    """Return the roots of (value - p)^2 = quantile^2 p (1 - p) / num in p."""
    square = quantile**2 / num
    low, high = sorted(np.roots([1 + square, -2 * value - square, value**2]))
    return float(low), float(high)


@pytest.mark.parametrize(("num_right", "num_images"), [(3, 7), (560, 574), (9, 10)])
def test_of_independent_images_a_share_has_wilsons_interval_with_students_t(
    num_right: int, num_images: int
) -> None:
    right = np.arange(num_images) < num_right
    found = share(right, np.arange(num_images))
    quantile = scipy.stats.t.ppf(0.975, num_images - 1)
    # Two estimates of one variance, which differ by G / (G - 1).
    num = num_images - 1
    assert (found.value, found.low, found.high) == pytest.approx(
        (num_right / num_images, *wilson(num_right / num_images, num, quantile))
    )


def test_with_the_normal_quantile_the_formula_is_that_of_scipy() -> None:
    ends = scipy.stats.binomtest(37, 40).proportion_ci(method="wilson")
    quantile = float(scipy.stats.norm.ppf(0.975))
    assert intervals._wilson(37 / 40, 40, quantile) == pytest.approx(
        (ends.low, ends.high)
    )


def test_images_that_repeat_their_group_tell_as_much_as_the_groups() -> None:
    right = np.arange(30) < 24
    one_each = share(right, np.arange(30))
    five_each = share(np.repeat(right, 5), np.repeat(np.arange(30), 5))
    assert five_each.value == one_each.value
    assert five_each.low == pytest.approx(one_each.low, abs=1e-9)
    assert five_each.high == pytest.approx(one_each.high, abs=1e-9)


def test_the_design_effect_by_hand() -> None:
    # Four groups of two, no error: 1 + (2 - 1) * 0.5.
    groups = np.repeat(np.arange(4), 2)
    assert design_effect(np.zeros(8), groups, num_errors=0) == 1.5
    # Groups that agree within themselves have an ICC of 1: (4 * 1 + 4 * 0.5) / 8.
    residuals = np.repeat([0.5, 0.5, -0.5, -0.5], 2)
    assert design_effect(residuals, groups, num_errors=4) == pytest.approx(1.75)
    # Weights of 2 and 1: the groups weigh 4, 4, 2, 2, the squares add up to 20.
    weights = np.repeat([2.0, 2.0, 1.0, 1.0], 2)
    assert design_effect(
        np.zeros(8), groups, num_errors=0, weights=weights
    ) == pytest.approx(1 + (40 / 20 - 1) * 0.5)


def test_the_anova_estimate_equals_that_of_pearson_over_pairs() -> None:
    # In pairs, the ANOVA estimate is the correlation of the two, up to 1 / G.
    rng = np.random.default_rng(1)
    chance = rng.beta(2, 1, size=4000)
    right = (rng.random((4000, 2)) < chance[:, None]).astype(float)
    residuals = (right - right.mean()).ravel()
    effect = design_effect(residuals, np.repeat(np.arange(4000), 2), num_errors=1e9)
    both = np.concatenate([right, right[:, ::-1]])
    assert effect - 1 == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-3)


@pytest.mark.parametrize("num_groups", [2, 20, 40, 700])
def test_a_share_is_never_narrower_for_one_more_error(num_groups: int) -> None:
    # Images of one group each, and groups of three of which one more errs in turn.
    for size in (1, 3):
        groups = np.repeat(np.arange(num_groups), size)
        right = np.ones(len(groups))
        widths = []
        for error in range(num_groups // 2):
            widths.append(np.subtract(*share(right, groups)[2:0:-1]))
            right[error * size] = 0
        assert (np.diff(widths) > 0).all()


def test_a_perfect_share_has_a_width_and_ends_at_one() -> None:
    found = share(np.ones(40), np.arange(40))
    quantile = scipy.stats.t.ppf(0.975, 39)
    assert found.low == pytest.approx(40 / (40 + quantile**2))
    assert found.high == 1
    assert share(np.zeros(40), np.arange(40)).low == 0


def test_a_single_group_has_no_interval() -> None:
    found = share(np.array([1.0, 0.0]), np.zeros(2, dtype=np.int64))
    assert found.interval is None
    assert share(np.array([1.0, 0.0]), np.arange(2)).interval is not None


def test_groups_without_an_image_do_not_count() -> None:
    right = np.array([1.0, 1.0, 0.0, 1.0])
    some = share(right, np.array([0, 0, 3, 5]), num_groups=9)
    assert some[:3] == share(right, np.array([0, 0, 1, 2]))[:3]
    assert len(some.influence) == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.5, 1.5], r"0\.5 to 1\.5"), ([], r"\(0,\)"), ([[1.0]], r"\(1, 1\)")],
)
def test_what_is_no_share_is_refused(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share(np.array(values), np.arange(len(values)))


def test_the_robust_variance_is_that_of_the_group_means() -> None:
    rng = np.random.default_rng(2)
    means = rng.random(50)
    influence = (means - means.mean()) / 50
    assert robust_variance(influence) == pytest.approx(means.var(ddof=1) / 50)


def test_a_count_has_the_interval_of_its_images_by_hand() -> None:
    # Pictures with 3, 1 and 2 images, the first two in one group: of 36 images squared
    # (1 / 2) (9 + 1 + 4) + (1 / 2) (16 + 4) = 17 are left.
    copies, groups = np.array([4, 4, 9, 4, 7, 7]), np.array([1, 1, 1, 1, 0, 0])
    found = share_of_count(4, copies, groups)
    quantile = scipy.stats.t.ppf(0.975, 1)
    assert (found.value, found.low, found.high) == pytest.approx(
        (4 / 6, *wilson(4 / 6, 36 / 17, quantile))
    )
    assert found.num_groups == 2


def test_a_count_of_images_that_stand_alone_is_as_wide_as_their_share() -> None:
    alone = np.arange(40)
    count = share_of_count(30, alone, alone)
    # `share` has the robust variance in it, which is G / (G - 1) times as large.
    assert (count.low, count.high) == pytest.approx(
        wilson(0.75, 40, scipy.stats.t.ppf(0.975, 39))
    )
    assert share_of_count(40, alone, alone)[:3] == share(np.ones(40), alone)[:3]


@pytest.mark.parametrize("icc", [0.0, 0.3, 0.5])
def test_the_interval_of_a_count_holds_the_truth(icc: float) -> None:
    rng = np.random.default_rng(3)
    num_held = 0
    for _ in range(400):
        group_of = np.repeat(np.arange(60), rng.integers(1, 5, 60))
        copies = np.repeat(np.arange(len(group_of)), rng.integers(1, 4, len(group_of)))
        with_group = rng.random(len(group_of)) < np.sqrt(icc)
        drawn = np.where(
            with_group, rng.random(60)[group_of], rng.random(len(group_of))
        )
        right = (drawn < 0.7)[copies]
        found = share_of_count(int(right.sum()), copies, group_of[copies])
        num_held += found.low <= 0.7 <= found.high
    assert num_held >= 0.94 * 400


def test_a_count_that_is_none_is_refused() -> None:
    alone = np.arange(4)
    with pytest.raises(ValueError, match=r"a count in \[0, 4\], got 5"):
        share_of_count(5, alone, alone)
    with pytest.raises(ValueError, match=r"got \(4,\) and \(3,\)"):
        share_of_count(2, alone, alone[:3])
    with pytest.raises(ValueError, match=r"N > 0, got \(0,\)"):
        share_of_count(0, alone[:0], alone[:0])


def test_auroc_equals_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(3)
    scores, positive = rng.integers(6, size=80) / 5, rng.random(80) < 0.4
    found = auroc(scores, positive, np.arange(80))
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    assert found.low < found.value < found.high
    assert auroc(scores, np.ones(80, dtype=bool), np.arange(80)) is None


def test_the_variance_of_auroc_is_that_of_delong() -> None:
    rng = np.random.default_rng(4)
    positive = np.arange(300) < 120
    scores = rng.standard_normal(300) + positive
    found = auroc(scores, positive, np.arange(300))
    assert found is not None
    wins = (scores[positive][:, None] > scores[~positive]).astype(float)
    delong = wins.mean(1).var(ddof=1) / 120 + wins.mean(0).var(ddof=1) / 180
    assert robust_variance(found.influence) == pytest.approx(delong, rel=0.01)


def test_a_perfect_auroc_is_not_certain() -> None:
    found = auroc(np.arange(30) / 30, np.arange(30) >= 15, np.arange(30))
    assert found is not None
    assert found.value == found.high == 1
    assert 0.7 < found.low < 0.95


def test_the_mean_of_equal_scores_of_the_same_images_is_that_score() -> None:
    one = share(np.arange(40) < 33, np.arange(40))
    assert combine([one, one, one], [1 / 3] * 3)[:3] == pytest.approx(one[:3])
    perfect = share(np.ones(40), np.arange(40))
    assert combine([perfect, perfect], [0.5, 0.5])[:3] == pytest.approx(perfect[:3])


def test_squares_of_independent_distances_add_up() -> None:
    groups = np.arange(80)
    right = np.ones(80)
    right[[0, 1, 40]] = 0
    first = share(right[:40], groups[:40], num_groups=80)
    second = share(right[40:], groups[40:], num_groups=80)
    found = combine([first, second], [0.5, 0.5])
    below = np.hypot(first.value - first.low, second.value - second.low) / 2
    assert found.low == pytest.approx((first.value + second.value) / 2 - below)


def test_scores_that_differ_in_sign_over_few_groups_do_not_cancel() -> None:
    groups = np.arange(6)
    first = share(np.array([1.0, 1, 1, 0, 1, 1]), groups)
    second = share(np.array([1.0, 1, 1, 1, 0, 1]), groups)
    assert first.influence @ second.influence < 0
    below = np.hypot(first.value - first.low, second.value - second.low) / 2
    found = combine([first, second], [0.5, 0.5])
    assert found.low == pytest.approx(5 / 6 - below)


def test_scores_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 1"):
        combine([], [1.0])


def test_the_interval_of_a_mean_is_the_bootstrap_t_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    groups = np.sort(rng.integers(25, size=90))
    groups = np.unique(groups, return_inverse=True)[1]
    values = rng.exponential(size=90)
    found = mean_interval(values, groups, num_resamples=4000)

    def mean_and_error(chosen: NDArray[np.int64]) -> tuple[float, float]:
        sums = np.array([values[groups == one].sum() for one in chosen])
        sizes = np.array([(groups == one).sum() for one in chosen])
        mean = sums.sum() / sizes.sum()
        num = len(chosen)
        spread = ((sums - mean * sizes) ** 2).sum() * num / (num - 1)
        return float(mean), float(spread**0.5 / sizes.sum())

    num = groups.max() + 1
    mean, error = mean_and_error(np.arange(num))
    distances = []
    for _ in range(2000):
        other, its_error = mean_and_error(rng.integers(num, size=num))
        distances.append((other - mean) / its_error)
    low, high = (mean - np.quantile(distances, end) * error for end in (0.975, 0.025))
    assert found is not None
    assert found[:2] == pytest.approx((low, high), rel=0.06)


def test_equal_losses_have_no_interval() -> None:
    assert mean_interval(np.full(6, 0.1), np.array([0, 0, 1, 1, 2, 2])) is None
    assert mean_interval(np.array([0.1, 0.4]), np.zeros(2, dtype=np.int64)) is None


def test_the_distance_over_bins_holds_the_figure_itself() -> None:
    rng = np.random.default_rng(6)
    bins, groups = rng.integers(5, size=200), np.repeat(np.arange(50), 4)
    differences = rng.normal(0.1, 0.4, size=200)
    figure = sum(abs(differences[bins == one].sum()) for one in range(5)) / 200
    found = distance_interval(bins, differences, groups)
    assert found is not None
    assert found.low < figure < found.high
    assert (found.low + found.high) / 2 == pytest.approx(figure) or found.low == 0


def test_the_resamples_do_not_depend_on_the_measure_and_follow_the_seed() -> None:
    values, groups = np.random.default_rng(7).random(60), np.arange(60)
    one = mean_interval(values, groups)
    assert one == mean_interval(values, groups)
    assert one != mean_interval(values, groups, seed=1)


def test_memory_is_bounded_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "_CHUNK_SIZE", 600)
    parts = list(intervals._resamples(60, num_resamples=25, seed=42))
    assert [len(part) for part in parts] == [10, 10, 5]
    assert all((part.sum(axis=1) == 60).all() for part in parts)
    assert not (parts[0] == parts[1]).all()


@pytest.mark.parametrize("num_groups", [2, 3])
def test_so_few_groups_that_resamples_are_of_one_alone_leave_a_mean_open(
    num_groups: int,
) -> None:
    # Half of the resamples of two groups, a ninth of those of three, are one group
    # only: the error of such a one is 0, and rounding alone made an interval of it.
    values = np.random.default_rng(num_groups).exponential(size=3 * num_groups)
    groups = np.arange(3 * num_groups) % num_groups
    assert mean_interval(values, groups) is None


@pytest.mark.parametrize("num_images", [30, 31])
def test_equal_groups_have_no_interval_of_a_mean_by_rounding(num_images: int) -> None:
    groups = np.arange(num_images) // 3
    assert mean_interval(np.full(num_images, 0.3), groups) is None


def test_the_weight_of_an_image_counts_as_so_many_images() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    groups, weights = np.arange(40) // 2, np.arange(40) % 3 + 1.0
    counts = weights.astype(int)
    expected = mean_interval(np.repeat(values, counts), np.repeat(groups, counts))
    found = mean_interval(values, groups, weights=weights)
    assert found is not None
    assert expected is not None
    assert found[:2] == pytest.approx(expected[:2])
