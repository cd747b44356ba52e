"""Predictions become files of any format, a row at a time, and can be gone on with."""

from __future__ import annotations

import csv
import errno
import gc
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from tumorlens import files
from tumorlens.deploy import prediction_file
from tumorlens.deploy.prediction_file import PredictionFile, check_output
from tumorlens.deploy.predictor import Prediction
from tumorlens.errors import ConfigError, DataError, MissingExtraError, RunError
from tumorlens.runs.trust import Judged


def answers() -> list[tuple[str, tuple[str, ...], list[Prediction]]]:
    def prediction(name: str, *probs: float) -> Prediction:
        return Prediction(Path(name), np.array(probs, np.float32), "b", None)

    unreadable = Prediction(Path("x,y.png"), None, None, 'x,y.png is "empty"')
    return [
        ("one", ("a", "b"), [prediction("1.png", 0.25, 0.75), unreadable]),
        ("two", ("b", "c"), [prediction("1.png", 0.5, 0.5)]),
    ]


@dataclass
class Info:
    """A `PredictorInfo`."""

    name: str = "one"
    classes: tuple[str, ...] = ("a", "b")
    digest: str = "1" * 64


def save_predictions(
    out: Path, found: list[tuple[str, tuple[str, ...], list[Prediction]]]
) -> None:
    """Write the predictions of several runs in one session."""
    predictors = [Info(name, classes) for name, classes, _ in found]
    with PredictionFile(out, predictors) as file:
        for predictor, (_, _, predictions) in zip(predictors, found, strict=True):
            for prediction in predictions:
                file.add(predictor, prediction)
        file.finish()


NO_TRUST = dict.fromkeys(("answer", "set", "gate", "objection"))
EXPECTED: list[dict[str, Any]] = [
    {
        **{"path": "1.png", "run": "one", "predicted": "b"},
        **{"prob_a": 0.25, "prob_b": 0.75, "prob_c": None, "error": None},
        **NO_TRUST,
    },
    {
        **{"path": "x,y.png", "run": "one", "predicted": None},
        **{"prob_a": None, "prob_b": None, "prob_c": None},
        "error": 'x,y.png is "empty"',
        **NO_TRUST,
    },
    {
        **{"path": "1.png", "run": "two", "predicted": "b"},
        **{"prob_a": None, "prob_b": 0.5, "prob_c": 0.5, "error": None},
        **NO_TRUST,
    },
]
COLUMNS = [
    *("path", "run", "predicted", "prob_a", "prob_b", "prob_c"),
    *(*NO_TRUST, "error"),
]


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


def test_json_lines_read_back_what_was_answered(tmp_path: Path) -> None:
    save_predictions(tmp_path / "p.jsonl", answers())
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == EXPECTED


def test_parquet_comes_in_groups_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_file, "_ROWS_AT_ONCE", 2)
    save_predictions(tmp_path / "p.parquet", answers())
    file = parquet.ParquetFile(tmp_path / "p.parquet")
    assert file.num_row_groups == 2
    assert file.read().to_pylist() == EXPECTED


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_name_that_is_no_utf_8_can_be_saved(suffix: str, tmp_path: Path) -> None:
    odd = Prediction(Path(os.fsdecode(b"\xff.png")), None, None, "empty")
    out = tmp_path / f"p{suffix}"
    save_predictions(out, [("run", ("a", "b"), [odd])])
    if suffix == ".parquet":
        assert parquet.read_table(out).to_pylist()[0]["path"] == r"\udcff.png"
    else:
        assert r"\udcff.png" in out.read_text("utf-8")


# Row by row


PATHS = [Path(f"{number}.png") for number in range(4)]


def answer(path: Path) -> Prediction:
    if path.stem == "2":
        return Prediction(path, None, None, "empty")
    high = 0.5 + int(path.stem) / 10
    return Prediction(path, np.array([high, 1 - high], np.float32), "a", None)


def write(out: Path, *predictors: Any, num: int = 99, resume: bool = False) -> int:
    """Answer `num` files at most, as a session does that is stopped then."""
    with PredictionFile(out, predictors or (Info(),), resume=resume) as file:
        left = num
        for one in predictors or (Info(),):
            for path in file.remaining(one, PATHS):
                if left == 0:
                    return file.num_rows
                file.add(one, answer(path))
                left -= 1
        file.finish()
        return file.num_rows


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("num", [1, 3, 5, 8])
def test_a_stopped_file_is_gone_on_with_to_the_same_end(
    suffix: str, num: int, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / f"whole{suffix}", tmp_path / f"stopped{suffix}"
    both = (Info(), Info("two"))
    assert write(whole, *both) == 8
    write(stopped, *both, num=num)
    assert stopped.exists() == (num == 8)
    if num < 8:
        assert write(stopped, *both, resume=True) == 8
    assert stopped.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        stopped.name,
        whole.name,
    ]


def test_rows_are_on_the_disk_as_they_come(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    with PredictionFile(out, [Info()]) as file:
        for number, path in enumerate(PATHS):
            file.add(Info(), answer(path))
            lines = (tmp_path / "p.csv.part").read_text().splitlines()[1:]
            assert [row["path"] for line in lines for row in json.loads(line)] == [
                str(path) for path in PATHS[: number + 1]
            ]
            assert not out.exists()


@pytest.mark.parametrize(
    "torn",
    [
        *(b'[{"path": "2.p', b"\0\0\0\0", b'[{"path": "2.png"}]\n', b"[]\n"),
        b'[{"path": "2.png", "run": "one", "pred": "b", "error": null}]\n',
    ],
)
def test_what_a_power_cut_left_of_a_row_is_cut_off(torn: bytes, tmp_path: Path) -> None:
    out, part = tmp_path / "p.csv", tmp_path / "p.csv.part"
    write(tmp_path / "whole.csv")
    write(out, num=2)
    with part.open("ab") as file:
        file.write(torn)
    with PredictionFile(out, [Info()], resume=True) as resumed:
        assert resumed.num_rows == 2
        assert list(resumed.remaining(Info(), PATHS)) == PATHS[2:]
    write(out, resume=True)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_unreadable_files_of_earlier_sessions_count(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", num=3)
    with PredictionFile(tmp_path / "p.csv", [Info()], resume=True) as file:
        assert (file.num_rows, file.num_unreadable) == (3, 1)
        file.add(Info(), answer(PATHS[2]))
        assert (file.num_rows, file.num_unreadable) == (4, 2)


@pytest.mark.parametrize(
    "other",
    [Info(name="other"), Info(classes=("b", "a")), Info(digest="2" * 64)],
    ids=["name", "classes", "digest"],
)
def test_rows_of_another_network_are_not_gone_on_with(
    other: Info, tmp_path: Path
) -> None:
    write(tmp_path / "p.csv", num=2)
    before = (tmp_path / "p.csv.part").read_bytes()
    message = rf"p\.csv\.part was not left by {other.name} as now"
    with pytest.raises(DataError, match=message) as caught:
        write(tmp_path / "p.csv", other, resume=True)
    assert "remove it" in caught.value.hint
    assert (tmp_path / "p.csv.part").read_bytes() == before


def test_a_part_that_is_none_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "p.csv.part").write_bytes(b"path,run\n1.png,one\n")
    with pytest.raises(DataError, match=r"p\.csv\.part was not left by one as now"):
        write(tmp_path / "p.csv", resume=True)


def test_other_files_are_not_gone_on_with(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", num=2)
    message = r"expected 1\.png next, as in .*p\.csv\.part, got 9\.png"
    with (
        PredictionFile(tmp_path / "p.csv", [Info()], resume=True) as file,
        pytest.raises(DataError, match=message) as caught,
    ):
        list(file.remaining(Info(), [PATHS[0], Path("9.png")]))
    assert "start again" in caught.value.hint


def test_rows_of_a_stopped_session_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", num=2)
    message = r"p\.csv\.part has the rows of a prediction that was stopped"
    with pytest.raises(ConfigError, match=message) as caught:
        write(tmp_path / "p.csv")
    assert "--resume" in caught.value.hint


def test_a_session_without_a_row_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", num=0)
    assert list(tmp_path.iterdir()) == []
    # One that was killed before its first row has left a note, which says nothing.
    PredictionFile(tmp_path / "p.csv", [Info()])
    gc.collect()  # its lock ends with it
    assert write(tmp_path / "p.csv") == 4


def test_two_sessions_at_once_are_one_file_and_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    out = tmp_path / "p.csv"
    with PredictionFile(out, [Info()]) as file:
        for path in PATHS:
            file.add(Info(), answer(path))
        for resume in (False, True):
            with pytest.raises(RunError, match=r"another command works in .*p\.csv"):
                PredictionFile(out, [Info()], resume=resume)
        assert PredictionFile(tmp_path / "q.csv", [Info()]).num_rows == 0
        file.finish()
    write(tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_finished_file_is_said_to_be_finished(tmp_path: Path) -> None:
    write(tmp_path / "p.csv")
    with pytest.raises(ConfigError, match=r"nothing to resume: .*p\.csv is finished"):
        PredictionFile(tmp_path / "p.csv", [Info()], resume=True)


def test_nothing_to_go_on_with_is_said(tmp_path: Path) -> None:
    message = r"nothing to resume: .*p\.csv\.part does not exist"
    with pytest.raises(ConfigError, match=message) as caught:
        write(tmp_path / "p.csv", resume=True)
    assert "leave out --resume" in caught.value.hint


def test_a_full_disk_keeps_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole.csv")
    out = tmp_path / "p.csv"
    with PredictionFile(out, [Info()]) as file:
        file.add(Info(), answer(PATHS[0]))
        inner, file._file = file._file, FullDisk()
        with pytest.raises(DataError, match=r"p\.csv\.part: No space left") as caught:
            file.add(Info(), answer(PATHS[1]))
        assert "--resume" in caught.value.hint
        file._file = inner
    assert write(out, resume=True) == 4
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_closing_on_a_full_disk_adds_no_error_of_its_own(tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("ab") as full,
        PredictionFile(tmp_path / "p.csv", [Info()]) as file,
    ):
        file._file.close()
        file._file = full
        with pytest.raises(DataError, match="No space left"):
            file.add(Info(), answer(PATHS[0]))


class FullDisk(io.BytesIO):
    def write(self, _: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("resume", [False, True])
def test_a_place_for_rows_that_cannot_be_written_is_named(
    tmp_path: Path, *, resume: bool
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write .*file/p\.csv: "):
        write(tmp_path / "file" / "p.csv", resume=resume)


def test_a_missing_library_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match="pyarrow"):
        PredictionFile(tmp_path / "p.parquet", [Info()])
    assert list(tmp_path.iterdir()) == []


def test_what_trust_says_is_in_its_columns(tmp_path: Path) -> None:
    probs = np.array([0.5, 0.5], np.float32)
    sure = Prediction(
        *(Path("1.png"), probs, "a", None),
        trust=Judged("uncertain", ("b", "a"), gate=0.25),
    )
    save_predictions(tmp_path / "p.csv", [("one", ("a", "b"), [sure])])
    (row,) = csv.DictReader((tmp_path / "p.csv").read_text().splitlines())
    got = {name: row[name] for name in NO_TRUST}
    assert got == {"answer": "uncertain", "set": "b|a", "gate": "0.25", "objection": ""}
