"""Predictions become files of any format, a row at a time, and can be gone on with."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from tumorlens.errors import ConfigError, DataError
from tumorlens.predict import Prediction
from tumorlens.prediction_files import check_output, save_predictions


def answers() -> list[tuple[str, tuple[str, ...], list[Prediction]]]:
    def prediction(name: str, *probs: float) -> Prediction:
        return Prediction(Path(name), np.array(probs, np.float32), "b", None)

    unreadable = Prediction(Path("x,y.png"), None, None, 'x,y.png is "empty"')
    return [
        ("one", ("a", "b"), [prediction("1.png", 0.25, 0.75), unreadable]),
        ("two", ("b", "c"), [prediction("1.png", 0.5, 0.5)]),
    ]


EXPECTED: list[dict[str, Any]] = [
    {
        **{"path": "1.png", "run": "one", "predicted": "b"},
        **{"prob_a": 0.25, "prob_b": 0.75, "prob_c": None, "error": None},
    },
    {
        **{"path": "x,y.png", "run": "one", "predicted": None},
        **{"prob_a": None, "prob_b": None, "prob_c": None},
        "error": 'x,y.png is "empty"',
    },
    {
        **{"path": "1.png", "run": "two", "predicted": "b"},
        **{"prob_a": None, "prob_b": 0.5, "prob_c": 0.5, "error": None},
    },
]
COLUMNS = ["path", "run", "predicted", "prob_a", "prob_b", "prob_c", "error"]


def test_json_reads_back_what_was_answered(tmp_path: Path) -> None:
    save_predictions(tmp_path / "p.json", answers())
    assert json.loads((tmp_path / "p.json").read_text()) == EXPECTED


def test_parquet_reads_back_what_was_answered(tmp_path: Path) -> None:
    save_predictions(tmp_path / "p.parquet", answers())
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table.to_pylist() == EXPECTED
    assert table.column_names == COLUMNS


def test_csv_reads_back_what_was_answered(tmp_path: Path) -> None:
    save_predictions(tmp_path / "p.CSV", answers())
    with (tmp_path / "p.CSV").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == COLUMNS
    for row, expected in zip(rows, EXPECTED, strict=True):
        for name, value in expected.items():
            if isinstance(value, float):
                assert float(row[name]) == value
            else:
                assert row[name] == (value or "")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_file_of_errors_only_can_be_saved(suffix: str, tmp_path: Path) -> None:
    unreadable = Prediction(Path("1.png"), None, None, "empty")
    save_predictions(tmp_path / f"p{suffix}", [("run", ("a", "b"), [unreadable])])
    assert (tmp_path / f"p{suffix}").stat().st_size > 0


@pytest.mark.parametrize("name", ["p.xlsx", "p", "p.csv.gz"])
def test_another_suffix_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    message = rf"one of \.csv, \.json, \.jsonl, \.parquet, got '{name}'"
    with pytest.raises(ConfigError, match=message) as caught:
        check_output(tmp_path / name)
    assert "--out p" in caught.value.hint
    with pytest.raises(ConfigError, match=message):
        save_predictions(tmp_path / name, answers())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["p.csv", "p.JSON", "p.parquet"])
def test_the_suffixes_that_are_written_are_not_refused(name: str) -> None:
    check_output(Path(name))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/p\.csv"):
        save_predictions(tmp_path / "file" / "p.csv", answers())
