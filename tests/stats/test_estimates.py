"""Measures with intervals against scikit-learn, and against the simulated truth."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from tumorlens.stats import estimates
from tumorlens.stats.metrics import expected_calibration_error

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import interval_coverage
from interval_coverage import Cell

rng = np.random.default_rng(8)
LABELS = rng.integers(4, size=240)
GROUPS = np.repeat(np.arange(80), 3)
PROBS = rng.dirichlet(np.ones(4), size=240)
PROBS[np.arange(240), LABELS] += 0.6
PROBS /= PROBS.sum(axis=1, keepdims=True)
PREDICTED = PROBS.argmax(axis=1)


def test_the_values_are_those_of_scikit_learn() -> None:
    found = estimates.headline(PROBS, LABELS, GROUPS)
    assert {name: one.value for name, one in found.items()} == pytest.approx(
        {
            "accuracy": (LABELS == PREDICTED).mean(),
            "balanced_accuracy": balanced_accuracy_score(LABELS, PREDICTED),
            "macro_f1": f1_score(LABELS, PREDICTED, average="macro"),
            "macro_auroc": roc_auc_score(LABELS, PROBS, multi_class="ovr"),
            "log_loss": log_loss(LABELS, PROBS),
            "brier": brier_score_loss(LABELS, PROBS, scale_by_half=False),
            "ece": expected_calibration_error(PROBS, LABELS),
        }
    )


def test_each_figure_lies_inside_its_interval() -> None:
    for name, (value, interval) in estimates.headline(PROBS, LABELS, GROUPS).items():
        assert interval is not None, name
        assert interval.low < value < interval.high, name


def test_shares_of_a_class_are_those_of_scikit_learn() -> None:
    recall = recall_score(LABELS, PREDICTED, average=None)
    precision = precision_score(LABELS, PREDICTED, average=None)
    found = estimates.class_rates(LABELS, PREDICTED, GROUPS, num_classes=4)
    for number, rates in enumerate(found):
        specificity = recall_score(number != LABELS, number != PREDICTED)
        assert [rate and rate.value for rate in rates] == pytest.approx(
            [recall[number], precision[number], specificity]
        )


@pytest.mark.parametrize("measure", [estimates.balanced_accuracy, estimates.macro_f1])
def test_the_influence_of_an_image_is_what_it_changes(measure: object) -> None:
    assert callable(measure)
    whole = measure(LABELS, PREDICTED, np.arange(240), num_classes=4)
    for row in (0, 17, int(np.flatnonzero(LABELS != PREDICTED)[0])):
        # An image that counts twice changes the measure by about its influence.
        twice = np.append(np.arange(240), row)
        changed = measure(
            LABELS[twice], PREDICTED[twice], np.arange(241), num_classes=4
        )
        assert changed.value - whole.value == pytest.approx(
            whole.influence[row], abs=2e-4
        )


def test_an_absent_class_has_no_score_and_is_left_out_of_means() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    groups = np.arange(4)
    absent = estimates.class_rates(labels, predicted, groups, num_classes=3)[2]
    assert absent.recall is None
    assert absent.precision is None
    found = estimates.balanced_accuracy(labels, predicted, groups, num_classes=3)
    assert found.value == 0.75


def test_one_class_alone_has_no_auroc() -> None:
    probs = np.array([[0.9, 0.1], [0.8, 0.2]])
    found = estimates.headline(probs, np.zeros(2, dtype=np.int64), np.arange(2))
    assert np.isnan(found["macro_auroc"].value)
    assert found["macro_auroc"].interval is None


def test_the_order_of_the_images_does_not_matter() -> None:
    order = np.random.default_rng(9).permutation(240)
    one = estimates.headline(PROBS, LABELS, GROUPS)
    other = estimates.headline(PROBS[order], LABELS[order], GROUPS[order])
    for name, (value, interval) in one.items():
        assert other[name].value == pytest.approx(value)
        assert interval is not None
        same = other[name].interval
        assert same is not None
        assert same[:2] == pytest.approx(interval[:2])


# A slice of `make coverage`: the hardest cells, and enough sets to see a fall to 90 %.
@pytest.mark.parametrize(
    "cell", [Cell(0.85, 20, 0.7), Cell(0.95, 40, 0.3), Cell(0.99, 150, 0.7)], ids=str
)
def test_the_interval_of_a_share_covers_the_truth(cell: Cell) -> None:
    (row,) = interval_coverage.run("shares", num_sets=1000, cells=[cell])
    assert row["coverage"] > 0.925
    assert row["width"] < 1.4 * row["width_of_logit"]


def test_the_intervals_of_other_measures_cover_the_truth() -> None:
    rows = list(
        interval_coverage.run("measures", num_sets=200, cells=[Cell(0.85, 80, 0.3)])
    )
    assert len(rows) == 6
    for row in rows:
        assert row["coverage"] > 0.89, row


def test_equal_networks_are_called_different_about_as_often_as_promised() -> None:
    rows = list(
        interval_coverage.run("differences", num_sets=400, cells=[Cell(0.85, 80, 0.3)])
    )
    equal, apart = rows
    assert 0.01 < equal["significant"] < 0.08
    assert equal["coverage"] > 0.925
    assert apart["coverage"] > 0.925
    assert apart["significant"] > 3 * equal["significant"]
