from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tumorlens.data import tables
from tumorlens.data.tables import read_columns, read_table
from tumorlens.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENT = "DOE^JANE"


def rows_of(path: Path) -> list[dict[str, str]]:
    return [
        dict(row.fields)
        for row in read_table(path, required=("path",), optional=("note",))
    ]


def problem_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path)
    assert caught.value.hint
    assert PATIENT not in str(caught.value)
    return caught.value.problem


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_is_read_with_and_without_a_byte_order_mark(
    tmp_path: Path, encoding: str, newline: str
) -> None:
    text = newline.join(["Path, NOTE ,other", 'ä.png," x, y ",z', "", "b.png,,"])
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert rows_of(tmp_path / "t.csv") == [
        {"path": "ä.png", "note": "x, y"},
        {"path": "b.png", "note": ""},
    ]


def test_a_row_knows_its_place_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('path\n\n"a\nb"\nc\n')
    places = [row.place for row in read_table(tmp_path / "t.csv", required=("path",))]
    assert places == [f"{tmp_path}/t.csv, line 4", f"{tmp_path}/t.csv, line 5"]


def test_blanks_belong_to_a_path_and_to_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,note\n a.png , x \n")
    assert rows_of(tmp_path / "t.csv") == [{"path": " a.png ", "note": "x"}]


def test_an_optional_column_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\na.png\n")
    assert rows_of(tmp_path / "t.csv") == [{"path": "a.png", "note": ""}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv has no column 'path' among its 0"),
        (f"a.png,{PATIENT}\n".encode(), "t.csv has no column 'path' among its 2"),
        (b"path;note\na;b\n", "t.csv has no column 'path' among its 1"),
        (b"path,note,PATH\n", "t.csv has 2 columns named 'path'"),
        (f"path,note\na\nb,{PATIENT}\n".encode(), "line 2: expected 2 fields"),
        (f"path\na\nb,{PATIENT}\n".encode(), "line 3: expected 1 fields as in the"),
        (b"path\n\xff\xfe\n", "t.csv is not UTF-8 text after line 1"),
        ("path\na\n".encode("utf-16"), "t.csv is not UTF-8 text after line 1"),
        (b'path\na\n"b\n', "t.csv, after line 2: not CSV: unexpected end of data"),
        (b'path\n"b"x\n', "t.csv, after line 1: not CSV: ',' expected after"),
        (b"path\n" + b"x" * 200_000, "not CSV: field larger than field limit"),
    ],
)
def test_a_bad_csv_is_refused_without_its_cells(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert message in problem_of(tmp_path / "t.csv")


def test_a_missing_table_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "gone.csv: No such file or directory" in problem_of(tmp_path / "gone.csv")
    assert f"{tmp_path}: Is a directory" in problem_of(tmp_path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_large_table_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(tables, "MAX_BYTES", 10)
    (tmp_path / f"t.{suffix}").write_text("x" * 11)
    problem = problem_of(tmp_path / f"t.{suffix}")
    assert problem.endswith("has 11 bytes, more than the limit of 10")


def test_a_table_may_have_as_many_rows_as_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    for num_rows in (2, 3):
        paths = [f"{n}.png" for n in range(num_rows)]
        (tmp_path / f"{num_rows}.csv").write_text("\n".join(["path", *paths]))
        parquet.write_table(
            arrow.table({"path": paths}), tmp_path / f"{num_rows}.parquet"
        )
    for suffix in ("csv", "parquet"):
        assert len(rows_of(tmp_path / f"2.{suffix}")) == 2
        assert "more than 2 rows" in problem_of(tmp_path / f"3.{suffix}")


def test_parquet_values_become_text(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table(
        {"Path": ["a", "b", None], "note": [1.0, float("nan"), 2.5], "other": [1, 2, 3]}
    )
    parquet.write_table(table, tmp_path / "t.PARQUET")
    rows = list(
        read_table(tmp_path / "t.PARQUET", required=("path",), optional=("note",))
    )
    assert [dict(row.fields) for row in rows] == [
        {"path": "a", "note": "1"},
        {"path": "b", "note": ""},
        {"path": "", "note": "2.5"},
    ]
    assert rows[2].place.endswith("t.PARQUET, row 3")


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "t.parquet"
    file.write_text("not parquet")
    assert problem_of(file) == f"{file} cannot be read as Parquet (ArrowInvalid)"
    parquet.write_table(arrow.table({"note": ["a"]}), file)
    assert "has no column 'path' among its 1" in problem_of(file)
    file.write_bytes(file.read_bytes()[:-20])
    assert "cannot be read as Parquet" in problem_of(file)


def test_parquet_with_columns_shorter_than_it_states_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Arrow checks no such thing: found in files with random faults.
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"path": ["a", "b"]}), tmp_path / "t.parquet")
    read = parquet.ParquetFile.read
    monkeypatch.setattr(
        parquet.ParquetFile, "read", lambda self, **kind: read(self, **kind).slice(1)
    )
    with pytest.raises(DataError, match=r"cannot be read as Parquet \(ValueError\)"):
        rows_of(tmp_path / "t.parquet")


def test_parquet_without_its_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.parquet").write_text("x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        rows_of(tmp_path / "t.parquet")
    assert caught.value.hint == 'pip install "tumorlens[parquet]"'


def columns_of(path: Path, *required: str, optional: tuple[str, ...] = ()) -> None:
    list(read_table(path, required=required, optional=optional))


@pytest.mark.parametrize(
    ("header", "name", "shown"),
    [
        ("patient_id", "patient", ", 'patient_id'"),
        ("PatientID", "patient", ", 'patient_id'"),
        (" Patient Id ", "patient", ", 'patient_id'"),
        ("subject", "patient", ", 'subject'"),
        ("Split", "subset", ", 'split'"),
        ("fold", "subset", ", 'fold'"),
        ("Source Label", "source_label", ""),
        # Misspelt: the header may be a patient where there is none, so it is not shown.
        ("patinet", "patient", ""),
        ("subest", "subset", ""),
    ],
)
def test_a_column_that_is_nearly_a_known_one_is_not_passed_over(
    tmp_path: Path, header: str, name: str, shown: str
) -> None:
    (tmp_path / "t.csv").write_text(f"path,{header},age\na.png,{PATIENT},50\n")
    with pytest.raises(DataError) as caught:
        columns_of(tmp_path / "t.csv", "path", optional=(name,))
    assert caught.value.problem == (
        f"{tmp_path}/t.csv has no column {name!r}, but its column 2{shown}, which may "
        "be meant"
    )
    assert f"name the column {name!r}" in caught.value.hint
    assert PATIENT not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "path,patient,patient_id,subject",  # the right one is there
        "path,age,sex,shape,impatient,comment",
        "path,source",  # is none of the others
    ],
)
def test_other_columns_are_passed_over(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n")
    columns_of(
        tmp_path / "t.csv", "path", optional=("patient", "source", "source_label")
    )


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("file_name,label", "; its column 1, 'file_name' may be 'path'"),
        ("path,Class", "; its column 2, 'class' may be 'label'"),
        ("path,lable", "; its column 2 may be 'label'"),
        ("path,age", "needed: path, label"),
    ],
)
def test_a_missing_column_is_looked_for_under_other_names(
    tmp_path: Path, header: str, hint: str
) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n")
    with pytest.raises(DataError, match="has no column") as caught:
        columns_of(tmp_path / "t.csv", "path", "label")
    assert caught.value.hint.endswith(hint)


def test_bytes_in_parquet_are_text_and_what_is_none_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "t.parquet"
    note: list[object] = [b"glioma ", "Größe".encode(), None]
    parquet.write_table(arrow.table({"path": ["a", "b", "c"], "note": note}), file)
    assert [row["note"] for row in rows_of(file)] == ["glioma", "Größe", ""]
    for value, problem in (
        (b"\xff\xfe", "the bytes in column 'note' are not UTF-8 text"),
        ([PATIENT], "expected text in column 'note', got a list"),
        ({"key": PATIENT}, "expected text in column 'note', got a structure"),
    ):
        table = arrow.table({"path": ["a"], "note": [value]})
        parquet.write_table(table, file)
        assert problem_of(file) == f"{file}, row 1: {problem}"


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(_TEXTS, _TEXTS), min_size=1, max_size=6))
def test_any_text_in_a_csv_is_read_as_it_was_written(
    tmp_path: Path, cells: list[tuple[str, str]]
) -> None:
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("path", "note"), *cells])
    assert rows_of(tmp_path / "t.csv") == [
        {"path": path, "note": note.strip()} for path, note in cells
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_may_be_chosen_by_their_header(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        path.write_text("A b,Secret,a\n 1 ,x,2\n")
    else:
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(
            arrow.table({"A b": [" 1 "], "Secret": ["x"], "a": ["2"]}), path
        )
    seen: list[str] = []

    def choose(header: Sequence[str]) -> dict[str, int | None]:
        seen.extend(header)
        return {"second": 2, "path": 0, "none": None}

    (row,) = read_columns(path, choose)
    assert seen == ["A b", "Secret", "a"]
    assert dict(row.fields) == {"second": "2", "path": " 1 ", "none": ""}
