"""The verdict on an export, against tables made by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats

from support.working_artefacts import make_artefact
from tumorlens.deploy.artefact import Bounds, Change, Parity, Verdict
from tumorlens.deploy.artefact_readme import readme_of
from tumorlens.deploy.parity import FLIP_MARGIN, ROUNDING, bounds_of, judge_parity
from tumorlens.files import read_model, write_model
from tumorlens.stats.paired import BONETT_PRICE, paired_difference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES = ("glioma", "no_tumor")
SUBJECT = Verdict(
    kind="onnx", command="", weights_sha256=("0" * 64,), passed=False, reasons=()
)


def limits(
    max_difference: float | None, max_drop: float, flip_margin: float | None
) -> Bounds:
    return Bounds(
        max_difference=max_difference, max_drop=max_drop, flip_margin=flip_margin
    )


LOOSE = limits(None, 1.0, None)


def table(first: Sequence[float]) -> NDArray[np.float64]:
    """Return probabilities of two classes, of which the first is given."""
    column = np.array(first, dtype=float)
    return np.stack([column, 1 - column], axis=1)


def judge(
    run: Sequence[float],
    artefact: Sequence[float],
    *,
    bounds: Bounds = LOOSE,
    labels: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
) -> Parity:
    """Judge answers of two classes; every image is a glioma unless `labels` says."""
    count = len(run)
    return judge_parity(
        [f"{number}.png" for number in range(count)],
        np.array(labels or [0] * count),
        np.array(groups or range(count)),
        table(run),
        table(artefact),
        classes=CLASSES,
        bounds=bounds,
        subject=SUBJECT,
    )


def test_equal_answers_pass_every_bound() -> None:
    verdict = judge([0.9, 0.2], [0.9, 0.2], bounds=limits(0.0, 0.0, 0.0))
    assert verdict.passed
    assert list(verdict.reasons) == []
    assert verdict.flips == ()
    assert verdict.max_difference == 0


def test_the_differences_are_those_of_probabilities() -> None:
    verdict = judge([0.9, 0.2, 0.6], [0.85, 0.3, 0.6])
    assert verdict.max_difference == pytest.approx(0.1)
    assert verdict.mean_difference == pytest.approx(0.05)
    assert verdict.worst_image == "1.png"
    assert verdict.num_images == 3


def test_a_probability_that_differs_too_much_fails_and_names_the_image() -> None:
    verdict = judge([0.9, 0.2], [0.9, 0.23], bounds=limits(0.02, 1.0, 1.0))
    assert not verdict.passed
    assert list(verdict.reasons) == [
        "a probability of 1.png differs by 0.03, more than 0.02"
    ]


@pytest.mark.parametrize("margin", [0.05, 0.03])
def test_a_flip_is_forgiven_only_where_the_run_was_undecided(margin: float) -> None:
    passes = margin > 0.04
    # 0.52 against 0.48: the two classes are 0.04 apart.
    verdict = judge([0.52, 0.9], [0.49, 0.9], bounds=limits(0.5, 1.0, margin))
    assert verdict.passed is passes
    (flip,) = verdict.flips
    assert flip.margin == pytest.approx(0.04)
    assert flip.model_dump(exclude={"margin"}) == {
        "path": "0.png",
        "label": "glioma",
        "run": "glioma",
        "artefact": "no_tumor",
        "within_rounding": passes,
    }
    assert list(verdict.reasons) == ([] if passes else ["the label of 0.png flips"])


def test_a_flip_to_the_right_class_is_a_flip_all_the_same() -> None:
    verdict = judge([0.3], [0.7], bounds=limits(1.0, 1.0, 0.1))
    assert verdict.accuracy.change.value == 1
    assert list(verdict.reasons) == ["the label of 0.png flips"]


def test_of_many_flips_five_are_named_and_the_others_counted() -> None:
    verdict = judge([0.9] * 7, [0.1] * 7, bounds=limits(1.0, 1.0, 0.1))
    assert list(verdict.reasons) == [
        "the label of 0.png, 1.png, 2.png, 3.png, 4.png and 2 more flips"
    ]
    assert len(verdict.flips) == 7


@pytest.mark.parametrize("max_drop", [0.25, 0.24])
def test_accuracy_may_fall_by_just_as_much_as_is_allowed(max_drop: float) -> None:
    passes = max_drop >= 0.25
    # One of four right answers becomes wrong: 0.25.
    verdict = judge(
        [0.9, 0.9, 0.9, 0.6], [0.9, 0.9, 0.9, 0.4], bounds=limits(None, max_drop, None)
    )
    assert verdict.passed is passes
    assert verdict.accuracy.run == 1
    assert verdict.accuracy.artefact == 0.75
    if not passes:
        assert list(verdict.reasons) == [
            "accuracy falls by 25.00 points, more than 24.00; labels flip on 3.png"
        ]


def test_gains_make_up_for_losses_in_accuracy_and_flips_are_still_listed() -> None:
    verdict = judge(
        [0.6, 0.4], [0.4, 0.6], bounds=limits(None, 0.0, None), labels=[0, 0]
    )
    assert verdict.passed
    assert [flip.path for flip in verdict.flips] == ["0.png", "1.png"]
    assert not any(flip.within_rounding for flip in verdict.flips)


def test_the_interval_of_the_change_is_the_paired_one_over_groups() -> None:
    rng = np.random.default_rng(5)
    run, artefact = rng.random(60), rng.random(60)
    labels, groups = rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    groups[:9] = range(9)
    verdict = judge(
        run.tolist(), artefact.tolist(), labels=labels.tolist(), groups=groups.tolist()
    )
    expected = paired_difference(
        ((artefact < 0.5) == labels).astype(float),
        ((run < 0.5) == labels).astype(float),
        groups,
    )
    assert verdict.accuracy.change == Change(
        value=expected.value,
        low=expected.low,
        high=expected.high,
        method=BONETT_PRICE,
        unit="group",
        num_units=9,
    )


def test_where_the_same_images_are_right_the_change_is_0_and_not_surely() -> None:
    # By hand: with one image more on each side, half = t(99) sqrt(2 / 102^2).
    verdict = judge([0.9] * 100, [0.8] * 100, bounds=bounds_of("int8"))
    change = verdict.accuracy.change
    half = scipy.stats.t.ppf(0.975, 99) * 2**0.5 / 102
    assert (change.low, change.value, change.high) == pytest.approx((-half, 0, half))


@pytest.mark.parametrize(
    ("num_images", "max_drop", "words"),
    [
        (
            100,
            0.01,
            "a loss of more than 1 point is not excluded by 100 images; up to ",
        ),
        (100, 0.03, "a loss of more than 3 points is excluded (95 %)"),
        (300, 0.01, "a loss of more than 1 point is excluded (95 %)"),
        (1, 0.01, "a loss of more than 1 point is not excluded by 1 image"),
    ],
)
def test_a_verdict_states_whether_its_images_exclude_a_larger_loss(
    num_images: int, max_drop: float, words: str
) -> None:
    verdict = judge(
        [0.9] * num_images,
        [0.9] * num_images,
        bounds=bounds_of("int8", max_drop=max_drop),
    )
    assert verdict.passed
    assert verdict.shown.startswith(words)
    assert verdict.excludes_larger_drop == ("is excluded" in words)
    if words.endswith("up to "):
        # 1.984 * 1.414 / 102, as above.
        assert verdict.shown.endswith("up to 2.8 are possible")


def test_what_the_images_show_is_in_the_file_and_in_the_readme(tmp_path: Path) -> None:
    answers = ([0.9] * 100, [0.9] * 100)
    int8 = judge(*answers, bounds=bounds_of("int8"))
    write_model(tmp_path / "parity.json", int8)
    written = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert written["excludes_larger_drop"] is False
    card = make_artefact(tmp_path / "artefact").card
    sentence = "A loss of more than 1 point is not excluded by 100 images; up to 2.8"
    assert sentence in readme_of(card, int8)
    # fp32 is judged by each probability, not by its accuracy.
    assert "excluded" not in readme_of(card, judge(*answers, bounds=bounds_of("fp32")))


def test_of_a_single_group_the_interval_of_a_change_is_not_known() -> None:
    verdict = judge([0.9, 0.9], [0.9, 0.1], groups=[0, 0])
    change = verdict.accuracy.change
    assert change == Change(value=-0.5, low=None, high=None, num_units=1)
    assert verdict.shown.endswith("is not excluded by 2 images")


def test_an_answer_that_is_no_number_fails_whatever_the_bounds(tmp_path: Path) -> None:
    verdict = judge([0.9, 0.5001], [0.9, np.nan], bounds=limits(1.0, 1.0, 1.0))
    assert list(verdict.reasons) == [
        "its answer for 1.png is not a number",
        "the label of 1.png flips",
    ]
    assert verdict.flips[0].artefact is None
    assert verdict.accuracy.artefact == 0.5
    write_model(tmp_path / "parity.json", verdict)  # JSON has no word for NaN
    assert read_model(tmp_path / "parity.json", Parity, hint="") == verdict


def test_the_bounds_follow_from_the_precision() -> None:
    assert bounds_of("fp32") == limits(1e-4, 0.01, 2e-4)
    assert bounds_of("int8", max_drop=0.02) == limits(None, 0.02, None)
    bf16 = bounds_of("bf16")
    assert bf16.max_difference == ROUNDING["bf16"]
    assert bf16.flip_margin == FLIP_MARGIN["bf16"] < 2 * ROUNDING["bf16"]


def test_a_bound_of_ones_own_narrows_the_margin_of_flips_and_never_widens_it() -> None:
    assert bounds_of("bf16", max_difference=0.01).flip_margin == 0.02
    assert bounds_of("bf16", max_difference=0.5).flip_margin == FLIP_MARGIN["bf16"]
    assert bounds_of("int8", max_difference=0.5) == limits(0.5, 0.01, None)
