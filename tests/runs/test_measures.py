"""The models of `metrics.json` and `tta/*.json`, on files by hand and of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.handmade_metrics import handmade_metrics
from tumorlens.config import Config
from tumorlens.errors import RunError
from tumorlens.files import read_model, write_json
from tumorlens.runs.folder import Run, create_run, open_run
from tumorlens.runs.measures import Estimate, TtaEffect

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
    ],
)
def test_damaged_measures_are_an_error_with_file_and_field(
    run: Run, change: Callable[[dict[str, Any]], Any], place: str
) -> None:
    write_json(run.metrics_path, spoilt(change))
    with pytest.raises(RunError, match=rf"metrics\.json is damaged at {place}") as got:
        run.metrics()
    assert got.value.hint == f"run: tumorlens evaluate {run.path}"


def test_measures_of_a_later_layout_are_refused(run: Run) -> None:
    write_json(run.metrics_of("val"), handmade_metrics(format=2))
    with pytest.raises(RunError, match=r"expected format 1 in .*-val\.json") as got:
        run.metrics("val")
    assert got.value.hint == f"run: tumorlens evaluate {run.path} --subset val"


def test_a_subset_that_is_not_evaluated_has_no_measures(run: Run) -> None:
    with pytest.raises(RunError, match=r"run is not evaluated yet\n.*--subset val"):
        run.metrics("val")


def test_measures_of_before_are_read_in_full() -> None:
    content = json.loads(OLD.metrics_path.read_text(encoding="utf-8"))
    read = OLD.metrics().model_dump(mode="json")
    # The leak verdict has got a number of its layout and a mark since.
    assert read["leak"].items() >= content["leak"].items()
    assert read | {"leak": None} == content | {"leak": None}


def test_measures_from_before_reasons_and_warnings_have_none(run: Run) -> None:
    content = handmade_metrics()
    assert not {"no_interval", "warnings"} & content.keys()
    write_json(run.metrics_path, content)
    metrics = run.metrics()
    assert (metrics.no_interval, metrics.warnings) == ({}, ())
    assert metrics.per_class["glioma"].precision.low is None


def test_the_effect_of_augmentation_of_before_has_no_format_and_is_read() -> None:
    path = OLD.tta_path("val")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert "format" not in content
    effect = read_model(path, TtaEffect, hint="measure it again")
    assert effect.model_dump(mode="json") == {"format": 1, **content}
    assert (effect.with_views, effect.summary) == (content["with"], content["words"])


def test_an_estimate_is_written_as_percentage() -> None:
    assert Estimate(value=0.827, low=0.801, high=0.85).percentage == (
        "82.7 % (80.1 to 85.0)"
    )
    assert Estimate(value=0.827, low=None, high=None).percentage == "82.7 %"
    assert Estimate(value=None, low=None, high=None).percentage == "n/a"
