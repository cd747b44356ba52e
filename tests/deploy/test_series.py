"""What a series comes to, by rules worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydicom import uid

from support.handmade_trust import handmade_trust
from support.mr_volumes import mr_slice, write
from tumorlens.data.decoding import InputSpec
from tumorlens.data.dicom.series import Series, Slice, find_series
from tumorlens.data.images import ImageLimits
from tumorlens.deploy.predictor import Member, Predictor
from tumorlens.deploy.series import (
    RULES,
    SliceAnswer,
    answer_series,
    check_rule,
    judge_series,
    no_tumor_class,
    rows_of,
    summarise,
)
from tumorlens.errors import ConfigError
from tumorlens.runs.trust import NO_BRAIN_MRI, UNCERTAIN, Judged

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = ("glioma", "no_tumor", "pituitary")


def brightness(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Answer with the mean brightness as the probability of glioma."""
    glioma = squares.mean(axis=(1, 2, 3)) / 255
    return np.stack([glioma, (1 - glioma) / 2, (1 - glioma) / 2], axis=1)


def by_hand(*sizes_px: int) -> Predictor:
    members = [
        Member(InputSpec(size, "squash", 3), brightness, ("0" * 64,))
        for size in sizes_px
    ]
    return Predictor("hand", CLASSES, "digest", members)


def summary(rows: list[list[float] | None], **options: Any) -> Any:
    series = Series(1, tuple(Slice(Path(str(n))) for n in range(len(rows))), "path")
    answers = [
        SliceAnswer(None, "damaged")
        if row is None
        else SliceAnswer(np.array(row, np.float32))
        for row in rows
    ]
    return summarise(series, answers, **{"rule": "mean", "no_tumor": 1, **options})


def test_the_mean_is_over_the_slices_and_shown_by_the_surest_one() -> None:
    answer = summary([[0.2, 0.6, 0.2], [0.7, 0.2, 0.1], [0.6, 0.1, 0.3]])
    assert answer.probs == pytest.approx([0.5, 0.3, 0.2])
    assert answer.key == 1
    assert answer.rule == "mean of 3 slices"


def test_the_most_suspicious_slice_has_the_highest_probability_of_a_tumour() -> None:
    rows: list[list[float] | None] = [[0.3, 0.6, 0.1], [0.1, 0.4, 0.5], [0.0, 0.9, 0.1]]
    answer = summary(rows, rule="most-suspicious")
    assert answer.probs == pytest.approx(rows[1])
    assert answer.key == 1
    assert answer.rule == "most suspicious of 3 slices: slice 2"


def test_the_first_of_equally_suspicious_slices_counts() -> None:
    rows: list[list[float] | None] = [[0.1, 0.5, 0.4], [0.4, 0.5, 0.1]]
    assert summary(rows, rule="most-suspicious").key == 0


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_be_read_is_left_out_and_said(rule: str) -> None:
    answer = summary([None, [0.2, 0.7, 0.1], None, [0.4, 0.5, 0.1]], rule=rule)
    assert answer.key == {"mean": 1, "most-suspicious": 3}[rule]
    assert "2 of 4 slices" in answer.rule


@pytest.mark.parametrize("rule", RULES)
def test_a_series_of_which_nothing_can_be_read_has_no_answer(rule: str) -> None:
    answer = summary([None, None], rule=rule)
    assert answer.probs is None
    assert answer.key is None


@pytest.mark.parametrize(
    "name", ["no_tumor", "No Tumour", "notumor", "NO-TUMOR", "normal", "healthy"]
)
def test_the_class_without_a_tumour_is_known_by_its_name(name: str) -> None:
    assert no_tumor_class(["a", name, "b"]) == 1
    assert check_rule("most-suspicious", ["a", name]) == 1


def test_the_class_without_a_tumour_can_be_named() -> None:
    assert check_rule("most-suspicious", ["a", "clear"], no_tumor="clear") == 1
    assert no_tumor_class(["no_tumor", "other"], "other") == 1


def test_a_class_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no class 'glima'") as caught:
        check_rule("mean", CLASSES, no_tumor="glima")
    assert caught.value.hint == "did you mean 'glioma'?"


def test_suspicion_needs_to_know_what_is_none() -> None:
    assert check_rule("mean", ["a", "b"]) is None
    with pytest.raises(ConfigError, match="the classes are a, b") as caught:
        check_rule("most-suspicious", ["a", "b"])
    assert "--no-tumor-class a" in caught.value.hint


def write_grey(path: Path, *greys: int, **attributes: Any) -> Path:
    frames = np.stack([np.full((20, 20), grey, np.uint8) for grey in greys])
    pixels = frames if len(greys) > 1 else frames[0]
    window = {"WindowCenter": 2040.5, "WindowWidth": 4081}  # 16 x 255, halves aside
    return write(
        path,
        mr_slice(
            pixels,
            **{
                "study_uid": "1.2",
                "series_uid": uid.generate_uid(),
                "number": 1,
                **window,
                **attributes,
            },
        ),
    )


def test_every_frame_is_asked_about(tmp_path: Path) -> None:
    path = write_grey(tmp_path / "x", 0, 51, 102, 204)
    (series,) = find_series([path]).series
    counts: list[int] = []
    answer = answer_series(
        by_hand(32),
        series,
        rule="mean",
        no_tumor=1,
        batch_size=3,
        progress=counts.append,
    )
    gliomas = [one.probs[0] for one in answer.slices if one.probs is not None]
    assert gliomas == pytest.approx([0, 0.2, 0.4, 0.8], abs=1e-3)
    assert answer.probs == pytest.approx([0.35, 0.325, 0.325], abs=1e-3)
    assert counts == [3, 1]


def test_networks_of_several_sizes_are_averaged(tmp_path: Path) -> None:
    path = write_grey(tmp_path / "x", 51)
    (series,) = find_series([path]).series
    answer = answer_series(by_hand(32, 48), series, rule="mean", no_tumor=1)
    assert answer.probs == pytest.approx([0.2, 0.4, 0.4], abs=1e-3)


def test_a_damaged_slice_does_not_stop_the_others(tmp_path: Path) -> None:
    uids = {"series_uid": "1.2.3"}
    write_grey(tmp_path / "a", 51, number=1, **uids)
    bad = write_grey(tmp_path / "b", 51, number=2, PixelData=b"\0" * 10, **uids)
    (series,) = find_series([tmp_path]).series
    answer = answer_series(by_hand(32), series, rule="mean", no_tumor=1)
    assert answer.slices[1].probs is None
    assert answer.slices[1].error
    assert str(bad) not in answer.slices[1].error
    assert answer.rule == "mean of 1 of 2 slices"


def test_a_slice_above_the_limits_of_the_model_s_run_is_refused(tmp_path: Path) -> None:
    path = write_grey(tmp_path / "x", 51)
    (series,) = find_series([path]).series
    predictor = by_hand(32)
    predictor.limits = ImageLimits(max_pixels=10)
    answer = answer_series(predictor, series, rule="mean", no_tumor=1)
    assert answer.probs is None
    assert "limit of 10" in str(answer.slices[0].error)


def judged_series(rows: list[list[float] | None], *parts: Judged | None) -> Any:
    """Return what is answered for a series of slices of which trust says `parts`."""
    answer = summary(rows)
    slices = tuple(
        SliceAnswer(one.probs, one.error, part)
        for one, part in zip(answer.slices, parts or [None] * len(rows), strict=True)
    )
    trusted = handmade_trust(CLASSES, threshold=0.6, least=0.3)
    return judge_series(replace(answer, slices=slices), trusted)


def test_a_series_is_answered_by_the_thresholds_for_its_own_probabilities() -> None:
    sure = judged_series([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1]])
    assert (sure.answer, sure.in_set) == ("glioma", ("glioma",))
    unsure = judged_series([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    assert (unsure.answer, unsure.in_set) == (UNCERTAIN, ("glioma", "no_tumor"))
    assert judged_series([None]) is None


@pytest.mark.parametrize(
    ("num_turned_away", "answer"), [(1, "glioma"), (2, NO_BRAIN_MRI)]
)
def test_a_series_is_no_brain_mri_if_most_of_its_slices_are_none(
    num_turned_away: int, answer: str
) -> None:
    away = Judged(NO_BRAIN_MRI, ("glioma",), 1.0, "rim", 0.5)
    passed = Judged("glioma", ("glioma",), 0.2, None, -0.5)
    parts = [away] * num_turned_away + [passed] * (3 - num_turned_away)
    judged = judged_series([[0.9, 0.05, 0.05]] * 3, *parts)
    assert judged.answer == answer
    assert judged.objection == ("rim" if num_turned_away == 2 else None)
    assert judged.gate == (1.0 if num_turned_away == 2 else 0.2)


def test_the_row_of_a_series_has_its_answer(tmp_path: Path) -> None:
    model = by_hand(32)
    model.trust = handmade_trust(CLASSES, threshold=0.99, least=0.2)
    pixels = np.full((48, 48), 120, np.uint16)
    write(
        tmp_path / "1.dcm",
        mr_slice(pixels, study_uid="1.2", series_uid="1.3", number=1, depth=0),
    )
    (series,) = find_series([tmp_path]).series
    answer = answer_series(model, series, rule="mean", no_tumor=1)
    *_, row = rows_of("hand", CLASSES, [answer])
    assert (row["kind"], row["answer"]) == ("series", UNCERTAIN)
    assert set(row["set"].split("|")) <= set(CLASSES)
