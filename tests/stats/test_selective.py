from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.risk_control import BinaryRisk, MultiClassificationLTTController
from scipy.stats import binom, binomtest

from tumorlens.stats.selective import fewest_for, fit_threshold, provable_error

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_without_a_mistake_it_takes_so_many_answers() -> None:
    assert fewest_for(0.05, 0.9) == 45
    assert 0.95**45 <= 0.1 < 0.95**44
    assert provable_error(31, 0.9) == pytest.approx(0.0716, abs=1e-4)
    assert (1 - provable_error(31, 0.9)) ** 31 == pytest.approx(0.1)
    assert provable_error(0, 0.9) == 1


def test_the_threshold_is_the_laxest_before_the_first_failure() -> None:
    certainty = np.linspace(0.99, 0.5, 100)
    wrong = np.zeros(100, bool)
    wrong[[60, 61, 62]] = True
    found = fit_threshold(certainty, wrong, error=0.05, confidence=0.9)
    # 45 to 60 answers without a mistake prove it, 61 with one do not.
    assert binom.cdf(1, 61, 0.05) > 0.1
    assert found is not None
    assert (found.num_answered, found.num_wrong) == (60, 0)
    assert found.threshold == certainty[59]


def test_a_mistake_among_the_surest_leaves_nothing_proved() -> None:
    wrong = np.zeros(100, bool)
    wrong[3] = True
    assert (
        fit_threshold(np.linspace(1, 0.5, 100), wrong, error=0.05, confidence=0.9)
        is None
    )


def test_too_few_images_prove_nothing() -> None:
    assert (
        fit_threshold(np.ones(44), np.zeros(44, bool), error=0.05, confidence=0.9)
        is None
    )
    found = fit_threshold(np.ones(45), np.zeros(45, bool), error=0.05, confidence=0.9)
    assert found is not None


def test_equally_certain_images_are_answered_together() -> None:
    certainty = np.repeat([0.9, 0.8], [50, 50])
    wrong = np.zeros(100, bool)
    wrong[99] = True
    found = fit_threshold(certainty, wrong, error=0.05, confidence=0.9)
    assert found is not None
    assert (found.threshold, found.num_answered, found.num_wrong) == (0.8, 100, 1)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_that_of_exact_binomial_tests_one_after_the_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    certainty = np.sort(rng.uniform(0.5, 1, 200))[::-1]
    wrong = rng.random(200) < 0.3 * (1 - certainty)
    num_answered = 0
    for num in range(29, 201):  # with fewer, no result would prove it
        test = binomtest(int(wrong[:num].sum()), num, 0.1, alternative="less")
        if test.pvalue > 0.05:
            break
        num_answered = num
    found = fit_threshold(certainty, wrong, error=0.1, confidence=0.95)
    assert (found.num_answered if found else 0) == num_answered


@given(st.integers(0, 10_000), st.integers(0, 119))
def test_a_threshold_never_falls_when_a_mistake_is_added(seed: int, place: int) -> None:
    rng = np.random.default_rng(seed)
    certainty, wrong = rng.uniform(0.3, 1, 120), rng.random(120) < 0.05
    before = fit_threshold(certainty, wrong, error=0.1, confidence=0.9)
    wrong[place] = True
    after = fit_threshold(certainty, wrong, error=0.1, confidence=0.9)
    assert after is None or (before is not None and after.threshold >= before.threshold)


@pytest.mark.filterwarnings("ignore:No predict parameters were found")
@pytest.mark.parametrize("seed", range(4))
def test_mapie_finds_no_laxer_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    certainty = rng.uniform(0.5, 1, 2000).round(2)
    wrong = rng.random(2000) < 0.4 * (1 - certainty)
    probs = np.column_stack([certainty, 1 - certainty])
    grid = np.unique(certainty)[::-1]
    risk = BinaryRisk(
        risk_occurrence=lambda true, predicted: true != predicted,
        risk_condition=lambda true, predicted: ~np.isnan(predicted),
        higher_is_better=False,
    )
    theirs = MultiClassificationLTTController(
        lambda rows: rows,
        [risk],
        [0.05],
        confidence_level=0.9,
        list_predict_params=grid,
        classes=[0, 1],
    ).calibrate(probs, wrong.astype(int))
    ours = fit_threshold(certainty, wrong, error=0.05, confidence=0.9)
    assert ours is not None
    valid = np.asarray(theirs.valid_predict_params).ravel()
    assert valid.size
    assert ours.threshold <= valid.min() + 1e-9


def test_the_promise_holds_for_one_image_of_each_patient_and_not_for_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    is_broken = __import__("promises").is_broken
    rng = np.random.default_rng(0)
    shares = {
        one: np.mean(
            [is_broken(one_of_each=one, num_patients=120, rng=rng) for _ in range(300)]
        )
        for one in (True, False)
    }
    assert shares[True] < 0.1
    assert shares[False] > 0.15
