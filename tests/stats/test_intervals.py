"""Intervals against scipy, values by hand, and how often they hold the truth."""

from __future__ import annotations

import time
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats

from tumorlens.stats import intervals
from tumorlens.stats.intervals import (
    group_bootstrap,
    group_sums,
    image_weight_bootstrap,
    perfect_score_interval,
    ratio,
    wilson_interval,
)
from tumorlens.stats.metrics import (
    accuracy,
    balanced_accuracy,
    group_confusions,
    macro_f1,
    weighted_macro_auroc,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize(
    ("num_right", "num_images", "confidence"),
    [
        # Worked out with Wilson's formula before scipy's function took its place.
        (0, 7, 0.95),
        (3, 7, 0.95),
        (7, 7, 0.95),
        (560, 574, 0.95),
        (1, 1, 0.95),
        (9, 10, 0.8),
    ],
)
def test_wilson_is_the_formula_of_the_source(
    num_right: int, num_images: int, confidence: float
) -> None:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_right / num_images
    centre = share + z**2 / (2 * num_images)
    spread = z * (share * (1 - share) / num_images + z**2 / (4 * num_images**2)) ** 0.5
    scale = 1 + z**2 / num_images
    assert wilson_interval(
        num_right, num_images, confidence=confidence
    ) == pytest.approx(((centre - spread) / scale, (centre + spread) / scale))


def test_wilson_touches_zero_and_one_exactly() -> None:
    assert wilson_interval(0, 3)[0] == 0
    assert wilson_interval(3, 3)[1] == 1


@pytest.mark.parametrize(("num_right", "num_images"), [(0, 0), (4, 3), (-1, 3)])
def test_wilson_of_impossible_counts_is_refused(
    num_right: int, num_images: int
) -> None:
    with pytest.raises(ValueError, match=f"got {num_right} and {num_images}"):
        wilson_interval(num_right, num_images)


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_bootstrap_of_a_mean_is_the_paired_one_of_scipy(confidence: float) -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.gamma(2, size=400), np.sort(rng.integers(60, size=400))
    sums = group_sums(values, groups)
    expected = scipy.stats.bootstrap(
        tuple(sums.T),
        lambda total, size, axis: total.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=2000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(42),
    ).confidence_interval
    got = group_bootstrap(sums, ratio, confidence=confidence)
    assert got == pytest.approx(tuple(expected), rel=1e-12)


def test_the_bootstrap_of_a_confusion_matrix_is_the_paired_one_of_scipy() -> None:
    labels, predicted = some_images(300)
    confusions = group_confusions(labels, predicted, np.arange(300) // 4, num_classes=4)

    def statistic(*cells: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        summed = np.stack([cell.sum(axis) for cell in cells], axis=-1)
        return macro_f1(summed.reshape(*summed.shape[:-1], 4, 4))

    expected = scipy.stats.bootstrap(
        tuple(confusions.reshape(75, 16).T),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=500,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    got = group_bootstrap(confusions, macro_f1, num_resamples=500, seed=7)
    assert got == pytest.approx(tuple(expected), rel=1e-12)


def test_the_bootstrap_draws_groups_and_not_images() -> None:
    # Ten groups of 50 equal images are as good as ten images.
    values = np.repeat([1.0, 0.0], [350, 150])
    of_groups = group_bootstrap(group_sums(values, np.arange(500) // 50), ratio)
    of_ten = group_bootstrap(group_sums(values[::50], np.arange(10)), ratio)
    of_images = group_bootstrap(group_sums(values, np.arange(500)), ratio)
    assert of_groups == of_ten == (0.4, 1.0)
    assert of_images is not None
    assert of_images[1] - of_images[0] < 0.1


def test_the_bootstrap_equals_a_plain_loop_over_drawn_images() -> None:
    rng = np.random.default_rng(3)
    labels, predicted = rng.integers(3, size=(2, 80))
    groups = np.arange(80) % 25
    confusions = group_confusions(labels, predicted, groups, num_classes=3)
    got = group_bootstrap(confusions, macro_f1, num_resamples=400)

    draw = np.random.default_rng(42)
    values = []
    for _ in range(400):
        matrix = np.zeros((3, 3))
        for group in draw.integers(25, size=25):
            for image in np.flatnonzero(groups == group):
                matrix[labels[image], predicted[image]] += 1
        values.append(float(macro_f1(matrix)))
    assert got == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    # 300 test sets of 60 patients with 1 to 5 slices that are right together.
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        sizes = rng.integers(1, 6, size=60)
        right = np.repeat(rng.random(60) < 0.8, sizes).astype(float)
        sums = group_sums(right, np.repeat(np.arange(60), sizes))
        interval = group_bootstrap(sums, ratio, num_resamples=300)
        assert interval is not None
        held += interval[0] <= 0.8 <= interval[1]
    assert 0.90 <= held / 300 <= 0.98


def test_images_weighted_by_draws_give_the_interval_of_the_sums() -> None:
    rng = np.random.default_rng(1)
    right = rng.integers(2, size=90).astype(float)
    groups = np.arange(90) % 40
    got = image_weight_bootstrap(
        groups, lambda weights: weights @ right / weights.sum(axis=1)
    )
    assert got == pytest.approx(group_bootstrap(group_sums(right, groups), ratio))


def test_the_resamples_do_not_depend_on_how_many_are_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sums = group_sums(np.random.default_rng(0).random(31), np.arange(31))
    whole = group_bootstrap(sums, ratio)
    monkeypatch.setattr(intervals, "_CHUNK_SIZE", 1000)
    assert group_bootstrap(sums, ratio) == pytest.approx(whole)


def test_the_seed_and_the_confidence_decide() -> None:
    sums = group_sums(np.random.default_rng(0).random(50), np.arange(50))
    first = group_bootstrap(sums, ratio)
    narrow = group_bootstrap(sums, ratio, confidence=0.5)
    assert group_bootstrap(sums, ratio) == first
    assert group_bootstrap(sums, ratio, seed=1) != first
    assert first is not None
    assert narrow is not None
    assert first[0] < narrow[0] < narrow[1] < first[1]


def test_one_group_and_a_perfect_score_have_no_bootstrap_interval() -> None:
    assert group_bootstrap(np.array([[3.0, 4.0]]), ratio) is None
    perfect = np.tile(np.diag([1, 2]), (30, 1, 1))
    assert group_bootstrap(perfect, balanced_accuracy) is None
    # The mean of equal numbers is not the same to the last digit in every resample.
    equal = group_sums(np.full(30, 0.1), np.arange(30) // 2)
    assert group_bootstrap(equal, ratio) is None


def test_a_resample_without_a_value_is_left_out() -> None:
    # Two groups of one class each: half of the resamples have no AUROC.
    probs, labels = np.array([[0.9, 0.1], [0.2, 0.8]] * 4), np.array([0, 1] * 4)
    probs[2:4] = 0.5
    got = image_weight_bootstrap(
        labels, lambda weights: weighted_macro_auroc(probs, labels, weights)
    )
    assert got is None  # always the same where it is defined
    groups = np.arange(8)
    got = image_weight_bootstrap(
        groups, lambda weights: weighted_macro_auroc(probs, labels, weights)
    )
    assert got is not None
    assert np.isfinite(got).all()


def test_a_perfect_score_over_few_groups_is_not_certain() -> None:
    low, high = perfect_score_interval([12])
    assert (low, high) == wilson_interval(12, 12)
    assert perfect_score_interval([12, 3]) == (
        (low + wilson_interval(3, 3)[0]) / 2,
        1.0,
    )
    with pytest.raises(ValueError, match="got none"):
        perfect_score_interval([])


def some_images(num: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=num)
    return labels, np.where(rng.random(num) < 0.8, labels, rng.integers(4, size=num))


@pytest.mark.slow
def test_three_thousand_images_do_not_take_minutes() -> None:
    labels, predicted = some_images(3000)
    # About 1 s of the processor; a loop over resamples and images would take minutes.
    start = time.process_time()
    confusions = group_confusions(
        labels, predicted, np.arange(3000) * 5 // 6, num_classes=4
    )
    for measure in (accuracy, balanced_accuracy, macro_f1):
        assert group_bootstrap(confusions, measure) is not None
    assert time.process_time() - start < 20
