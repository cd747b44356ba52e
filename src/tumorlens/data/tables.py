"""CSV and Parquet tables from users.

A table is hostile until read: its size is bounded, every line must have as many fields
as the header, and any fault becomes a `DataError` that names the line. Only the
requested columns leave this module.

A table beside medical images can hold names of patients, so no message quotes a cell.
Nor does any quote the header: in a table without one, the first line is a patient.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tumorlens.errors import DataError
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_BYTES = 256 * 1024 * 1024
"""Larger files are not opened: a million images need about 150 MiB."""

MAX_ROWS = 5_000_000
"""Longer tables are refused. Parquet packs any number of equal rows into few bytes."""


@dataclass(frozen=True)
class TableRow:
    """One line of a table."""

    place: str
    """File and line, for messages."""

    fields: Mapping[str, str]
    """Column -> text, without blanks around it except in `path`. A column that the
    table lacks, and an empty cell, are an empty text."""


def read_table(
    path: Path, *, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[TableRow]:
    """Yield the rows of a CSV file, or of a Parquet file when the name ends so.

    CSV is UTF-8, with or without a byte order mark, separated by commas, with the names
    of the columns in its first line. Names are compared without regard to case. Empty
    lines are skipped.

    Args:
        path: The table.
        required: Columns that the table must have.
        optional: Columns that are read where they exist. All others are dropped.

    Yields:
        The rows in their order, each with all of `required` and `optional`.

    Raises:
        DataError: The file cannot be opened, is too large, is not a table of this
            kind, or lacks a required column.
        MissingExtraError: A Parquet file needs the extra `parquet`.
    """
    _check_size(path)
    if path.suffix.lower() == ".parquet":
        yield from _read_parquet(path, required, optional)
    else:
        yield from _read_csv(path, required, optional)


def _check_size(path: Path) -> None:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"cannot open the table {path}: {error.strerror}",
            hint="check that the file exists and can be read",
        ) from None
    if num_bytes > MAX_BYTES:
        raise DataError(
            f"the table {path} has {num_bytes} bytes, more than the limit of "
            f"{MAX_BYTES}",
            hint="split it, or remove the columns that are not needed",
        )


def _read_csv(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[TableRow]:
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            positions = _positions(path, header, required, optional)
            for number, cells in enumerate(reader, start=1):
                line = reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}, line {line}: expected {len(header)} fields as in "
                        f"the first line, got {len(cells)}",
                        hint='put a field with a comma in it between quotes: "a,b"',
                    )
                _check_num_rows(path, number)
                yield TableRow(
                    place=f"{path}, line {line}",
                    fields={
                        name: _cleaned(name, cells[at] if at is not None else "")
                        for name, at in positions.items()
                    },
                )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text after line {line}",
            hint="save the table as CSV in UTF-8, or as Parquet with that suffix",
        ) from error
    except csv.Error as error:
        raise DataError(
            f"{path}, after line {line}: not CSV: {error}",
            hint="look for a quotation mark that is not closed",
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot read the table {path}: {error.strerror}",
            hint="check that it is a file and can be read",
        ) from error


def _read_parquet(
    path: Path, required: Sequence[str], optional: Sequence[str]
) -> Iterator[TableRow]:
    parquet = require("pyarrow.parquet")
    # Arrow is a parser in C++ whose errors on damaged files are not one family: seen
    # were ArrowInvalid, OSError, ArrowNotImplementedError, OverflowError. Only its
    # calls are inside.
    try:
        with parquet.ParquetFile(path) as file:
            num_rows = file.metadata.num_rows
            header = list(file.schema_arrow.names)
            positions = _positions(path, header, required, optional)
            _check_num_rows(path, num_rows)
            wanted = {at: name for name, at in positions.items() if at is not None}
            columns = {
                name: file.read(columns=[header[at]]).column(0).to_pylist()
                for at, name in wanted.items()
            }
            if any(len(column) != num_rows for column in columns.values()):
                raise ValueError("columns of different lengths")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({type(error).__name__})",
            hint="write the file again, or save it as CSV",
        ) from error
    for number in range(num_rows):
        yield TableRow(
            place=f"{path}, row {number + 1}",
            fields={
                name: _cleaned(name, columns[name][number] if name in columns else "")
                for name in positions
            },
        )


def _positions(
    path: Path, header: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, int | None]:
    # Where each column is; `None` for an optional one that is missing.
    names = [name.strip().lower() for name in header]
    positions: dict[str, int | None] = {}
    for name in (*required, *optional):
        if names.count(name) > 1:
            raise DataError(
                f"{path} has {names.count(name)} columns named {name!r}",
                hint="keep one of them",
            )
        positions[name] = names.index(name) if name in names else None
    if missing := [name for name in required if positions[name] is None]:
        raise DataError(
            f"{path} has no column {' and no column '.join(map(repr, missing))} among "
            f"its {len(header)}",
            hint="the first line names the columns, separated by commas; needed: "
            f"{', '.join(required)}",
        )
    return positions


def _check_num_rows(path: Path, num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise DataError(
            f"the table {path} has more than {MAX_ROWS} rows", hint="split it"
        )


def _cleaned(name: str, value: Any) -> str:
    if value is None or value != value:  # Parquet's null, and pandas' NaN for it
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes whole numbers beside a gap into floats
    text = str(value)
    return text if name == "path" else text.strip()
