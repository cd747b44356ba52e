"""Measures against scikit-learn and values worked out by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import sklearn.metrics as truth

from tumorlens.stats.metrics import (
    accuracy,
    balanced_accuracy,
    brier,
    brier_scores,
    calibration_bins,
    confusion_matrix,
    expected_calibration_error,
    f1,
    log_loss,
    log_losses,
    macro_f1,
    precision,
    recall,
    roc_curve,
    specificity,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

HALF = np.array([[0.5, 0.5]])


def guesses(
    seed: int, *, num: int = 200, num_classes: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities with many ties, and labels that they often hit."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num)
    scores = rng.integers(1, 5, size=(num, num_classes)).astype(float)
    scores[np.arange(num), labels] += 1
    return scores / scores.sum(axis=1, keepdims=True), labels


@pytest.fixture(params=range(5))
def sample(
    request: pytest.FixtureRequest,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    return guesses(request.param)


# counts


def test_the_confusion_matrix_has_true_classes_as_rows() -> None:
    got = confusion_matrix(np.array([0, 0, 2]), np.array([1, 0, 2]), num_classes=3)
    assert got.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_measures_of_counts_equal_scikit_learn(
    sample: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    probs, labels = sample
    predicted = probs.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, num_classes=4)
    assert matrix.tolist() == truth.confusion_matrix(labels, predicted).tolist()
    assert accuracy(matrix) == pytest.approx(truth.accuracy_score(labels, predicted))
    assert balanced_accuracy(matrix) == pytest.approx(
        truth.balanced_accuracy_score(labels, predicted)
    )
    assert macro_f1(matrix) == pytest.approx(
        truth.f1_score(labels, predicted, average="macro")
    )
    expected = truth.precision_recall_fscore_support(labels, predicted)
    for got, column in zip((precision, recall, f1), expected, strict=False):
        assert got(matrix) == pytest.approx(column)
    for column in range(4):
        # Specificity is the recall of "not this class".
        assert specificity(matrix)[column] == pytest.approx(
            truth.recall_score(labels != column, predicted != column)
        )


def test_an_absent_class_is_undefined_and_left_out_of_means() -> None:
    # Nobody is of class 2 or 3; class 2 is predicted once, class 3 never.
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    matrix = confusion_matrix(labels, predicted, num_classes=4)
    nan = np.nan
    np.testing.assert_equal(recall(matrix), [0.5, 1, nan, nan])
    np.testing.assert_equal(precision(matrix), [1, 1, 0, nan])
    np.testing.assert_allclose(f1(matrix), [2 / 3, 1, 0, nan])
    assert balanced_accuracy(matrix) == 0.75
    # scikit-learn averages over the classes that it sees, 2 among them.
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert macro_f1(matrix) == pytest.approx(
        truth.f1_score(labels, predicted, average="macro")
    )


def test_specificity_of_the_only_class_is_undefined() -> None:
    matrix = confusion_matrix(np.array([0, 0]), np.array([0, 1]), num_classes=2)
    np.testing.assert_equal(specificity(matrix), [np.nan, 0.5])


@pytest.mark.parametrize("measure", [accuracy, balanced_accuracy, macro_f1, recall])
def test_many_matrices_are_measured_as_one_by_one(
    measure: Callable[[object], NDArray[np.float64]],
) -> None:
    matrices = np.random.default_rng(0).integers(5, size=(3, 2, 4, 4))
    matrices[0, 0, 1] = 0  # a class without images
    got = measure(matrices)
    for place in np.ndindex(3, 2):
        np.testing.assert_allclose(got[place], measure(matrices[place]))


@pytest.mark.parametrize(("labels", "predicted"), [([0, 2], [0, 1]), ([0, 1], [-1, 0])])
def test_class_indices_out_of_range_are_refused(
    labels: list[int], predicted: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 2\), got (0 to 2|-1 to 0)"):
        confusion_matrix(np.array(labels), np.array(predicted), num_classes=2)


def test_arrays_of_different_length_and_none_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        confusion_matrix(np.zeros(3, int), np.zeros(2, int), num_classes=2)
    with pytest.raises(ValueError, match="at least one image, got none"):
        confusion_matrix(np.zeros(0, int), np.zeros(0, int), num_classes=2)


# ranks


def test_the_roc_curve_equals_scikit_learn(
    sample: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    probs, labels = sample
    x, y = roc_curve(probs[:, 1], labels == 1)
    expected_x, expected_y, _ = truth.roc_curve(
        labels == 1, probs[:, 1], drop_intermediate=True
    )
    # scikit-learn keeps some points on straight lines: compare the lines.
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert set(zip(x, y, strict=True)) <= set(zip(expected_x, expected_y, strict=True))
    assert truth.auc(x, y) == pytest.approx(truth.auc(expected_x, expected_y))


def test_the_roc_curve_by_hand_has_corners_only() -> None:
    # 0.9 right, then a tie of one each, then two wrong ones: a step up, a slope, a
    # flat end.
    scores = np.array([0.9, 0.5, 0.5, 0.2, 0.1])
    positive = np.array([True, True, False, False, False])
    x, y = roc_curve(scores, positive)
    assert x == pytest.approx([0, 0, 1 / 3, 1])
    assert y == pytest.approx([0, 0.5, 1, 1])


def test_a_roc_curve_of_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 positive of 2"):
        roc_curve(np.array([0.1, 0.2]), np.array([True, True]))


# probabilities


def test_losses_equal_scikit_learn(
    sample: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    probs, labels = sample
    assert log_loss(probs, labels) == pytest.approx(truth.log_loss(labels, probs))
    assert brier(probs, labels) == pytest.approx(
        truth.brier_score_loss(labels, probs, scale_by_half=False)
    )


def test_a_certain_and_wrong_image_costs_as_much_as_in_scikit_learn() -> None:
    probs, labels = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 0])
    assert log_losses(probs, labels) == pytest.approx([52 * np.log(2), np.log(2)])
    assert log_loss(probs, labels) == pytest.approx(truth.log_loss(labels, probs))


def test_brier_scores_by_hand() -> None:
    probs = np.array([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25]])
    assert brier_scores(probs, np.array([0, 0, 0])) == pytest.approx([0, 2, 0.125])


def test_ece_of_a_certain_and_right_model_is_zero() -> None:
    probs = np.eye(4)
    assert expected_calibration_error(probs, np.arange(4)) == 0.0


def test_ece_bins_are_closed_on_the_right() -> None:
    # Right at 0.5 (gap +0.5), wrong at 0.6 (gap -0.6). With two bins, 0.5 lies in
    # the lower one and the gaps add up; in one bin they would cancel to 0.05.
    probs = np.array([[0.5, 0.5], [0.6, 0.4]])
    got = expected_calibration_error(probs, np.array([0, 1]), num_bins=2)
    assert got == pytest.approx(0.55)


@pytest.mark.parametrize("certain", [1.0, 1 + 1e-7], ids=["one", "rounded up"])
def test_ece_counts_a_confidence_of_one_in_the_last_bin(certain: float) -> None:
    # Right at 0.98 (gap +0.02), wrong at 1.0 (gap -1.0). In one bin they partly
    # cancel; an extra bin for 1.0 would give 0.51.
    probs = np.array([[0.98, 0.02], [certain, 0.0]])
    got = expected_calibration_error(probs, np.array([0, 1]), num_bins=10)
    assert got == pytest.approx(0.49)


def test_calibration_bins_by_hand() -> None:
    # Two of three right at about 0.9, none of one at 0.55; empty bins are left out.
    probs = np.array([[0.9, 0.1], [0.94, 0.06], [0.98, 0.02], [0.55, 0.45]])
    confidence, right, count = calibration_bins(
        probs, np.array([0, 1, 0, 1]), num_bins=5
    )
    assert confidence == pytest.approx([0.55, 0.94])
    assert right == pytest.approx([0, 2 / 3])
    assert count.tolist() == [1, 3]


def test_measures_do_not_depend_on_the_order_of_the_images() -> None:
    probs, labels = guesses(3)
    order = np.random.default_rng(0).permutation(len(labels))
    for measure in (log_loss, brier, expected_calibration_error):
        assert measure(probs, labels) == pytest.approx(
            measure(probs[order], labels[order])
        )


CHECKED = pytest.mark.parametrize(
    "measure", [expected_calibration_error, log_loss, brier]
)


@CHECKED
@pytest.mark.parametrize(
    "row", [[2.0, 1.5], [2.0, -1.0]], ids=["wrong sum", "sums to 1 by chance"]
)
def test_logits_are_refused_and_shown(
    measure: Callable[..., float], row: list[float]
) -> None:
    probs = np.array([[0.5, 0.5], row])
    with pytest.raises(ValueError, match=r"got \[ ?2\. .*were logits passed"):
        measure(probs, np.array([0, 1]))


@CHECKED
@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_column_is_refused(
    measure: Callable[..., float], label: int
) -> None:
    with pytest.raises(ValueError, match=rf"in \[0, 2\), got {label} to {label}"):
        measure(HALF, np.array([label]))


@CHECKED
@pytest.mark.parametrize(
    ("probs_shape", "labels_shape"), [((0, 4), (0,)), ((3, 4), (2,)), ((4,), (4,))]
)
def test_both_shapes_are_named_when_they_disagree(
    measure: Callable[..., float],
    probs_shape: tuple[int, ...],
    labels_shape: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match=r"got \(.*\) and \(.*\)"):
        measure(np.full(probs_shape, 0.25), np.zeros(labels_shape, dtype=int))
