"""Figures of a stress test, from answers made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.handmade_stress import NUM, answers, figures, place, trust
from support.runs_on_images import CLEAN
from tumorlens.config import parse_config
from tumorlens.data.corruptions import CORRUPTIONS
from tumorlens.errors import RunError
from tumorlens.files import write_model
from tumorlens.runs.folder import Run, create_run
from tumorlens.runs.stress import read_stress
from tumorlens.stats.intervals import share
from tumorlens.stats.paired import holm, paired_difference

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = create_run(
        tmp_path / "run",
        parse_config({"data": {"protocol": "grouped"}, "train": {"seed": 11}}),
    )
    made.write_leak(CLEAN)
    return made


def test_each_level_is_compared_with_the_same_images_clean(run: Run) -> None:
    lost = list(range(0, 24))
    given = answers(clean=[39], blur_5=lost, blur_4=[0], rician_noise_1=[2, 3])
    found = figures(run, given)
    assert (found.num_images, found.num_groups, found.seed) == (40, 20, 11)
    assert found.clean.value == pytest.approx(39 / 40)
    (blur,) = [one for one in found.corruptions if one.name == "blur"]
    accuracies = [level.accuracy.value for level in blur.levels]
    assert accuracies == pytest.approx([39 / 40] * 3 + [38 / 40, 15 / 40])
    worst = blur.most_lost
    assert (worst.level, worst.amount) == (5, CORRUPTIONS["blur"].amounts[4])
    assert worst.change.value == pytest.approx(-24 / 40)

    groups = np.arange(NUM) // 2
    clean = np.arange(NUM) != 39
    right = clean & ~np.isin(np.arange(NUM), lost)
    expected = paired_difference(right.astype(float), clean.astype(float), groups)
    assert (worst.change.low, worst.change.high) == (expected.low, expected.high)
    assert worst.change.p == expected.p
    interval = share(right, groups)
    assert (worst.accuracy.low, worst.accuracy.high) == (interval.low, interval.high)


def test_what_is_answered_is_compared_with_the_clean_images(run: Run) -> None:
    given = answers(
        trust(clean=[0, 1], blur_5=[0, 1, *range(30, 40)]),
        clean=[2],
        blur_5=[2, *range(20, 26), 38],
    )
    found = figures(run, given)
    assert found.clean_trust is not None
    assert found.clean_trust.answered.value == pytest.approx(38 / 40)
    assert found.clean_trust.error.value == pytest.approx(1 / 38)
    assert found.clean_trust.answered_change is None
    (blur,) = [one for one in found.corruptions if one.name == "blur"]
    level = blur.levels[4].trust
    assert level is not None
    # 28 are answered, of which 2 and 20 to 25 are wrong; 38 is turned away.
    assert level.answered.value == pytest.approx(28 / 40)
    assert level.error.value == pytest.approx(7 / 28)
    assert level.alarms is not None
    assert level.alarms.value == pytest.approx(12 / 40)
    changes = (level.answered_change, level.error_change, level.alarms_change)
    assert all(one is not None for one in changes)
    assert [one.value for one in changes if one] == pytest.approx(
        [-10 / 40, 6 / 28, 10 / 40]
    )
    both = np.arange(2, 30)
    expected = paired_difference(
        np.isin(both, [2, *range(20, 26)]).astype(float),
        (both == 2).astype(float),
        both // 2 - 1,
    )
    assert level.error_change is not None
    assert (level.error_change.low, level.error_change.high) == (
        expected.low,
        expected.high,
    )
    assert found.not_measured == {}


def test_a_model_that_is_not_calibrated_says_so(run: Run) -> None:
    found = figures(run, answers())
    assert found.clean_trust is None
    assert set(found.not_measured.values()) == {"the model is not calibrated"}


def test_p_is_corrected_for_all_levels_of_all_corruptions(run: Run) -> None:
    found = figures(run, answers(blur_5=range(24), crop_1=range(0, 10)))
    levels = [level for one in found.corruptions for level in one.levels]
    assert len(levels) == 61
    p_values = [level.change.p for level in levels]
    assert [level.p_holm for level in levels] == holm(p_values)
    # 5 groups that differ: 2^-5 alone, and corrected far above 0.05.
    crop = next(one for one in found.corruptions if one.name == "crop").levels[0]
    assert crop.change.p == pytest.approx(2**-5)
    assert not crop.is_found
    blur = next(one for one in found.corruptions if one.name == "blur").most_lost
    assert blur.is_found
    assert found.words == (
        "100.0 % of 40 clean images right. 1 corruption of 13 is shown to cost "
        "accuracy, most of all blur: -60.0 points at level 5."
    )


def test_the_worst_comes_first(run: Run) -> None:
    found = figures(run, answers(crop_5=range(8), gamma_2=range(4)))
    assert [one.name for one in found.by_loss][:2] == ["crop", "gamma"]


def test_the_worst_case_is_the_surest_mistake_of_the_mildest_level(run: Run) -> None:
    given = answers(clean=[30], blur_4=[5, 7, 30], blur_5=[5, 7, 9, 11], jpeg_1=[0])
    given.confidence[place("blur", 4), [5, 7]] = 0.95  # equally sure: by path
    found = figures(run, given)
    assert [one.corruption for one in found.worst] == ["blur", "jpeg"]
    blur = found.worst[0]
    assert (blur.path, blur.level) == ("05.png", 4)
    assert (blur.label, blur.predicted) == ("no_tumor", "glioma")
    assert blur.prob == pytest.approx(0.95)
    assert blur.num_turned == 4  # 30 is wrong when clean, and not counted


def test_nothing_lost_is_said_so(run: Run) -> None:
    found = figures(run, answers())
    assert found.worst == ()
    assert found.words == (
        "100.0 % of 40 clean images right. No corruption is shown to change that."
    )


def test_a_gain_is_no_loss(run: Run) -> None:
    given = answers(clean=list(range(24)))
    given.predicted[place("contrast", 1)] = np.arange(NUM) % 2
    found = figures(run, given)
    level = next(one for one in found.corruptions if one.name == "contrast").levels[0]
    assert level.change.value == pytest.approx(24 / 40)
    assert level.is_found
    assert "No corruption is shown to change that" in found.words


def test_the_file_reads_back_and_damage_is_named(run: Run) -> None:
    found = figures(run, answers(blur_5=range(24)))
    path = run.stress_path("test")
    assert path.name == "stress.json"
    assert run.stress_path("val", kind="onnx").name == "stress-val-onnx.json"
    write_model(path, found)
    assert read_stress(path) == found
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"level": 1', '"level": 12'), encoding="utf-8")
    with pytest.raises(RunError, match=r"stress\.json.*level"):
        read_stress(path)
    path.write_text(text.replace('"name": "blur"', '"name": "crop"'), encoding="utf-8")
    with pytest.raises(RunError, match=r"a corruption is there twice"):
        read_stress(path)
    path.unlink()
    with pytest.raises(RunError, match=r"there is no .*stress\.json") as caught:
        read_stress(path)
    assert "tumorlens stress RUN" in caught.value.hint


def test_without_calibration_the_missing_figures_are_named(run: Run) -> None:
    found = figures(run, answers())
    assert set(found.not_measured) == {
        "share answered",
        "error among answers",
        "gate alarms",
    }
    assert set(found.not_measured.values()) == {"the model is not calibrated"}
