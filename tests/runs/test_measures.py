"""The models of `metrics.json` and `tta/*.json`, on files by hand and of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.handmade_metrics import handmade_metrics
from tumorlens.config import Config
from tumorlens.errors import RunError
from tumorlens.files import read_model, write_json
from tumorlens.runs.estimate import Estimate, estimate_of_difference
from tumorlens.runs.folder import Run, create_run, open_run
from tumorlens.runs.measures import Percentiles, TtaEffect
from tumorlens.stats.paired import BONETT_PRICE, paired_difference

if TYPE_CHECKING:
    from collections.abc import Callable

OLD = open_run(Path(__file__).parents[1] / "fixtures" / "made_at_cd6c76c" / "run")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", Config())


def spoilt(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = json.loads(json.dumps(handmade_metrics()))
    change(content)
    return dict(content)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda c: c.pop("num_groups"), "num_groups: Field required"),
        (
            lambda c: c["per_class"]["glioma"]["recall"].update(low="0.3"),
            r"per_class\.glioma\.recall\.low: .* valid number, got '0\.3'",
        ),
        (
            lambda c: c["curves"]["calibration"].update(count=[1, "many", 2]),
            r"curves\.calibration\.count\.1: .*, got 'many'",
        ),
        (lambda c: c["leak"].pop("words"), r"leak\.words: Field required"),
        (lambda c: c["accuracy"].update(value=9), "accuracy: expected .* from 0 to 1"),
        (lambda c: c["log_loss"].update(low=-2), "log_loss: expected .* 0 or more"),
        (lambda c: c["ece"].update(low=None), "ece: expected low and high, or neither"),
        (lambda c: c["ece"].update(low=0.9), "ece: expected low not above high"),
        (lambda c: c.update(protocol="best"), "protocol: .*, got 'best'"),
        (lambda c: c.update(subset="all"), "subset: .*, got 'all'"),
        (lambda c: c.update(num_images=-1), "num_images: .*, got -1"),
        (
            lambda c: c["per_class"]["glioma"].update(f1=1.5),
            r"per_class\.glioma\.f1: .*, got 1\.5",
        ),
        (
            lambda c: c["by_source"]["figshare"]["recall"]["glioma"].update(value=9),
            r"by_source\.figshare\.recall\.glioma: expected .* from 0 to 1",
        ),
        (
            lambda c: c["curves"]["roc"]["glioma"]["fpr"].pop(),
            r"curves\.roc\.glioma: expected as many numbers in fpr as in tpr",
        ),
        (
            lambda c: c["curves"]["calibration"]["count"].pop(),
            r"curves\.calibration: expected one confidence, accuracy and count",
        ),
        (
            lambda c: c["curves"]["calibration"].update(accuracy=[None, 0.6, 0.9]),
            r"curves\.calibration: .* for bins with images",
        ),
    ],
)
def test_damaged_measures_are_an_error_with_file_and_field(
    run: Run, change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    write_json(run.metrics_path, spoilt(change))
    with pytest.raises(RunError, match=rf"metrics\.json is damaged at {place}") as got:
        run.metrics()
    assert got.value.hint == f"run: tumorlens evaluate {run.path}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c["per_class"].pop("glioma"), "the names of classes in per_class"),
        (lambda c: c["confusion_matrix"].pop(), "4 rows of 4 numbers"),
        (lambda c: c["confusion_matrix"][0].pop(), "4 rows of 4 numbers"),
    ],
)
def test_measures_of_other_classes_are_an_error(
    run: Run, change: Callable[[dict[str, Any]], Any], problem: str
) -> None:
    write_json(run.metrics_path, spoilt(change))
    with pytest.raises(
        RunError, match=rf"metrics\.json is damaged: expected {problem}"
    ):
        run.metrics()


def test_measures_of_a_later_layout_are_refused(run: Run) -> None:
    write_json(run.metrics_of("val"), handmade_metrics(format=3))
    with pytest.raises(
        RunError, match=r"expected format 1 or 2 in .*-val\.json"
    ) as got:
        run.metrics("val")
    assert got.value.hint == f"run: tumorlens evaluate {run.path} --subset val"


def test_a_subset_that_is_not_evaluated_has_no_measures(run: Run) -> None:
    with pytest.raises(RunError, match=r"run is not evaluated yet\n.*--subset val"):
        run.metrics("val")


def plain(estimate: dict[str, Any]) -> dict[str, Any]:
    """Return an estimate as the first layout had it: without how it was made."""
    assert estimate["method"] is estimate["unit"] is estimate["num_units"] is None
    return {name: estimate[name] for name in ("value", "low", "high")}


def test_measures_of_before_are_read_in_full() -> None:
    content = json.loads(OLD.metrics_path.read_text(encoding="utf-8"))
    read = OLD.metrics().model_dump(mode="json")
    assert read["format"] == content["format"] == 1
    # The leak verdict has got a number of its layout and a mark since.
    assert read.pop("leak").items() >= content.pop("leak").items()
    for name, one in content.pop("per_class").items():
        got = read["per_class"][name]
        # A recall had two intervals: the one over groups is kept.
        assert plain(got.pop("recall")) == one.pop("recall_by_group")
        assert one.pop("recall")["low"] is not None
        for measure in ("precision", "specificity", "auroc"):
            assert plain(got.pop(measure)) == {
                **{"value": one.pop(measure), "low": None, "high": None}
            }
        assert got == one
    for name, one in content.pop("by_source").items():
        got = read["by_source"][name]
        for label, recall in one.pop("recall").items():
            found = got["recall"][label]
            assert found.pop("num_images") == recall.pop("num_images")
            assert plain(found) == recall
        assert {**got, "recall": None} == {
            **{key: as_now(value) for key, value in one.items()},
            "recall": None,
        }
    assert (read.pop("trust"), read.pop("slices")) == (None, None)
    for name in ("per_class", "by_source", "interval_holds_from", "not_measured"):
        read.pop(name)
    assert read == {name: as_now(value) for name, value in content.items()}


def as_now(value: Any) -> Any:
    """Return a value of the first layout with the new fields of an estimate."""
    if isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
        return value | dict.fromkeys(("method", "unit", "num_units"))
    return value


def test_measures_from_before_reasons_and_warnings_have_none(run: Run) -> None:
    content = handmade_metrics(format=1)
    assert not {"no_interval", "warnings"} & content.keys()
    one = content["per_class"]["glioma"]
    one |= {"precision": 0.75, "specificity": None, "auroc": 1}
    write_json(run.metrics_path, content)
    metrics = run.metrics()
    assert (metrics.no_interval, metrics.warnings) == ({}, ())
    glioma = metrics.per_class["glioma"]
    assert (glioma.precision.value, glioma.precision.low) == (0.75, None)
    assert (glioma.specificity.value, glioma.auroc.value) == (None, 1)
    assert glioma.recall.value == pytest.approx(0.7513)


def test_times_of_before_are_read_as_percentiles() -> None:
    read = Percentiles.model_validate({"value": 2.0, "low": 1.0, "high": 3.0})
    assert read == Percentiles(value=2.0, p5=1.0, p95=3.0)
    assert read.model_dump() == {"value": 2.0, "p5": 1.0, "p95": 3.0}


def test_a_difference_in_one_group_names_no_method() -> None:
    first, second = np.array([1.0, 1.0]), np.array([1.0, 0.0])
    alone = paired_difference(first, second, np.zeros(2, dtype=np.int64))
    assert estimate_of_difference(alone) == Estimate(
        value=0.5, low=None, high=None, num_units=1
    )
    apart = estimate_of_difference(paired_difference(first, second, np.arange(2)))
    assert (apart.method, apart.unit, apart.num_units) == (BONETT_PRICE, "group", 2)


def test_the_effect_of_augmentation_of_before_has_no_format_and_is_read() -> None:
    path = OLD.tta_path("val")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "format" not in content
    effect = read_model(path, TtaEffect, hint="measure it again")
    content["difference"] |= dict.fromkeys(("method", "unit", "num_units"))
    assert effect.model_dump(mode="json") == {"format": 1, **content}
    assert (effect.with_views, effect.summary) == (content["with"], content["words"])


def test_an_estimate_is_written_as_percentage() -> None:
    assert Estimate(value=0.827, low=0.801, high=0.85).percentage == (
        "82.7 % (80.1 to 85.0)"
    )
    assert Estimate(value=0.827, low=None, high=None).percentage == "82.7 %"
    assert Estimate(value=None, low=None, high=None).percentage == "n/a"
