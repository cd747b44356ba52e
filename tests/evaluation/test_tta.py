"""What test-time augmentation changes, in figures and in words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.runs_on_images import make_kfold_run, make_run
from tumorlens.errors import ConfigError
from tumorlens.evaluation import tta
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import Predictions, read_predictions
from tumorlens.evaluation.tta import has_val_images, measure_tta
from tumorlens.runs.measures import TtaEffect
from tumorlens.training.ensemble import make_ensemble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from tumorlens.runs.folder import Run

TWO = ("glioma", "no_tumor")


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=8, name="data")


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    return make_run(tmp_path / "run", data)


def table(right: ArrayLike, groups: Sequence[str] | None = None) -> Predictions:
    """Return answers of which every image is right (1) or wrong (0)."""
    is_right = np.asarray(right) > 0
    labels = np.arange(len(is_right)) % 2
    said = np.where(is_right, labels, 1 - labels)
    names = tuple(f"{number}.png" for number in range(len(labels)))
    return Predictions(
        classes=TWO,
        paths=names,
        labels=labels,
        probs=np.eye(2)[said] * 0.6 + 0.2,
        groups=tuple(groups or names),
        sources=("",) * len(labels),
        folds=(None,) * len(labels),
    )


@pytest.fixture
def answering(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Predictions, Predictions], TtaEffect]:
    """Return a function: answers without and with views -> the effect."""

    def measure(without: Predictions, with_views: Predictions) -> TtaEffect:
        tables = {"none": without, "eight-views": with_views}
        monkeypatch.setattr(tta, "predict_subset", lambda *_, tta, **__: tables[tta])
        return measure_tta(run, command="tumorlens evaluate --tta")

    return measure


def test_a_clear_gain_helps(answering: Callable[..., TtaEffect]) -> None:
    # Of 40 images of as many groups 12 are better and 2 worse: the example of
    # `paired.paired_bootstrap`.
    without = table(np.repeat([0.0, 1.0, 1.0], [12, 2, 26]))
    got = answering(without, table(np.repeat([1.0, 0.0, 1.0], [12, 2, 26])))
    assert (got.without, got.with_views) == (28 / 40, 38 / 40)
    assert got.difference.value == pytest.approx(0.25)
    assert got.difference.low == pytest.approx(0.0577, abs=1e-4)
    assert got.difference.high == pytest.approx(0.4179, abs=1e-4)
    assert not got.is_noise
    assert got.summary == (
        "Test-time augmentation changes the accuracy by +25.0 points (+5.8 to +41.8): "
        "significant, it helps."
    )


def test_a_clear_loss_harms(answering: Callable[..., TtaEffect]) -> None:
    with_views = table(np.repeat([0.0, 1.0, 1.0], [12, 2, 26]))
    got = answering(table(np.repeat([1.0, 0.0, 1.0], [12, 2, 26])), with_views)
    assert not got.is_noise
    assert "by -25.0 points" in got.summary
    assert got.summary.endswith("it harms.")


def test_a_gain_that_may_be_luck_is_noise(
    answering: Callable[..., TtaEffect],
) -> None:
    without = table(np.repeat([0.0, 1.0, 1.0], [4, 3, 33]))
    got = answering(without, table(np.repeat([1.0, 0.0, 1.0], [4, 3, 33])))
    low, high = got.difference.low, got.difference.high
    assert low is not None
    assert high is not None
    assert low < 0 < high
    assert got.is_noise
    assert got.summary.endswith(
        "not significant, so it is not shown to be worth its time."
    )


def test_a_few_groups_that_agree_are_noise_whatever_the_interval_says(
    answering: Callable[..., TtaEffect],
) -> None:
    # Four groups, all better: a coin does that once in eight times.
    without = table([0.0] * 4 + [1.0] * 4)
    got = answering(without, table([1.0] * 8))
    assert got.difference.p == 1 / 2**4
    assert got.is_noise


def test_images_of_one_group_count_once(
    answering: Callable[..., TtaEffect],
) -> None:
    # The clear effect above, but the better images are slices of one patient.
    groups = ["patient"] * 12 + [f"g{number}" for number in range(28)]
    without = table(np.repeat([0.0, 1.0, 1.0], [12, 2, 26]), groups)
    got = answering(without, table(np.repeat([1.0, 0.0, 1.0], [12, 2, 26]), groups))
    assert (got.num_images, got.num_groups) == (40, 29)
    assert got.is_noise


def test_no_change_is_said_to_be_none(
    answering: Callable[..., TtaEffect],
) -> None:
    same = table([1.0, 0.0, 1.0])
    got = answering(same, same)
    assert got.difference.value == 0
    assert got.is_noise
    assert "changes no accuracy" in got.summary


def test_one_group_says_nothing(answering: Callable[..., TtaEffect]) -> None:
    groups = ["patient"] * 4
    got = answering(table([0.0] * 4, groups), table([1.0] * 4, groups))
    assert got.is_noise
    assert "by +100.0 points, in one group of images only" in got.summary


def test_both_tables_and_the_figures_are_written(run: Run) -> None:
    got = measure_tta(run, device="cpu")
    written_json = json.loads(run.tta_path("val").read_text())
    assert written_json == got.model_dump(mode="json")
    assert written_json["format"] == 1
    assert got.policy == "eight-views"
    assert got.subset == "val"
    assert got.num_images == 8
    for name in ("without", "with"):
        written = read_predictions(run.tta_path("val", views=name))
        assert (written.predicted == written.labels).mean() == written_json[name]
    # Measuring is not evaluating: what the run answers is not changed by it.
    assert not run.predictions_of("val").exists()


def test_without_views_are_the_answers_of_the_run(run: Run) -> None:
    measure_tta(run, device="cpu")
    evaluate(run, subset="val", device="cpu")
    evaluated = read_predictions(run.predictions_of("val"))
    without = read_predictions(run.tta_path("val", views="without"))
    assert np.array_equal(evaluated.probs, without.probs)


def test_with_views_are_the_answers_of_a_run_that_has_them(
    run: Run, tmp_path: Path
) -> None:
    measure_tta(run, device="cpu")
    with_views = make_ensemble([run.path], out=tmp_path / "tta", tta="eight-views")
    evaluate(with_views, subset="val", device="cpu")
    evaluated = read_predictions(with_views.predictions_of("val"))
    measured = read_predictions(run.tta_path("val", views="with"))
    assert np.array_equal(evaluated.probs, measured.probs)
    # A run that has them is still measured against what it would say without.
    assert measure_tta(with_views, device="cpu").difference == (
        measure_tta(run, device="cpu").difference
    )


def test_val_is_no_look_at_test_and_test_is_one(run: Run) -> None:
    measure_tta(run, device="cpu", command="first")
    assert run.looks() == []
    got = measure_tta(run, subset="test", device="cpu", command="second")
    assert got.subset == "test"
    assert run.tta_path("test").is_file()
    assert [(look.subset, look.command) for look in run.looks()] == [("test", "second")]


def test_a_run_with_folds_can_be_measured_on_test_only(
    tmp_path: Path, data: Path
) -> None:
    run = make_kfold_run(tmp_path / "folds", data)
    assert not has_val_images(run)
    with pytest.raises(ConfigError, match="has no subset 'val' of its own"):
        measure_tta(run)
    assert measure_tta(run, subset="test", device="cpu").num_images == 32


def test_a_run_can_be_measured_where_it_has_val(run: Run) -> None:
    assert has_val_images(run)
    rows = [
        replace(row, subset="train" if row.subset == "val" else row.subset)
        for row in run.split()
    ]
    run.write_split(rows, run.leak())
    assert not has_val_images(run)
