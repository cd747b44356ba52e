"""CSV and Parquet tables from users.

A table is hostile until read: its size is bounded, every line must have as many fields
as the header, and any fault becomes a `DataError` that names the line. Only the
requested columns leave this module.

A table beside medical images can hold names of patients, so no message quotes a cell.
Nor does any quote the header, which is a patient in a table without one; a column with
one of the names in `_OTHER_NAMES` is quoted in the spelling of that list.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from tumorlens.errors import DataError
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    Choose = Callable[[Sequence[str]], Mapping[str, int | None]]
    ChooseNumbers = Callable[[Sequence[str]], Mapping[str, int]]

MAX_BYTES = 256 * 1024 * 1024
"""Larger files are not opened: a million images need about 150 MiB."""

MAX_ROWS = 5_000_000
"""Longer tables are refused. Parquet packs any number of equal rows into few bytes."""

MAX_CELLS = 30_000_000
"""Most cells of a Parquet file that are read, for the same reason: some 2 GB."""


_OTHER_NAMES = {
    "path": (
        *("file", "files", "file_name", "file_path", "image", "image_file"),
        *("image_name", "image_path", "img", "img_path", "paths"),
    ),
    "label": (
        *("category", "class", "class_name", "diagnosis", "labels", "target"),
        *("tumor_class", "tumor_type", "tumour_class", "tumour_type"),
    ),
    "subset": ("fold", "partition", "set", "split", "subsets"),
    "patient": (
        *("case", "case_id", "participant", "participant_id", "patient_code"),
        *("patient_id", "patient_key", "patient_name", "patient_no"),
        *("patient_number", "patients", "pid", "subj", "subject", "subject_id"),
        *("subjects",),
    ),
    "source": ("data_source", "image_source", "origin", "sources"),
    "source_label": ("original_label", "source_class"),
    "reason": ("reasons",),
}
"""Column -> other names for the same thing. Such a column beside none of the right name
is refused, because a table whose patients are ignored would split them apart. Words,
blanks and underscores are compared without case."""


@dataclass(frozen=True)
class TableRow:
    """One line of a table."""

    place: str
    """File and line, for messages."""

    fields: Mapping[str, str]
    """Column -> text, without blanks around it except in `path`. A column that the
    table lacks, and an empty cell, are an empty text."""


def read_table(
    path: Path,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
    needs_optional: bool = False,
) -> Iterator[TableRow]:
    """Yield the rows of a CSV file, or of a Parquet file when the name ends so.

    CSV is UTF-8, with or without a byte order mark, separated by commas, with the names
    of the columns in its first line. Names are compared without regard to case. Empty
    lines are skipped.

    Args:
        path: The table.
        required: Columns that the table must have.
        optional: Columns that are read where they exist. All others are dropped.
        needs_optional: Whether the table must have one of them.

    Yields:
        The rows in their order, each with all of `required` and `optional`.

    Raises:
        DataError: The file cannot be opened, is too large, is not a table of this
            kind, lacks a column that is needed, or has one whose name is nearly that
            of a column it lacks; a cell of a Parquet file is no text, number or date.
        MissingExtraError: A Parquet file needs the extra `parquet`.
    """
    yield from read_columns(
        path,
        partial(
            _positions,
            path,
            required=required,
            optional=optional,
            needs_optional=needs_optional,
        ),
    )


def read_columns(
    path: Path, choose: Choose, *, choose_numbers: ChooseNumbers = lambda _header: {}
) -> Iterator[TableRow]:
    """Yield the rows of a table whose columns have names that only its header tells.

    Args:
        path: As for `read_table`.
        choose: Given the names in the header, returns where the columns are that are
            read, by the names that their fields get; `None` for one that is missing.
        choose_numbers: The same for columns of which numbers alone are read; any other
            cell is an empty text. Called after `choose`.

    Yields:
        The rows in their order.

    Raises:
        DataError: As `read_table`, but for what concerns the names.
        MissingExtraError: A Parquet file needs the extra `parquet`.
    """
    _check_size(path)
    if path.suffix.lower() == ".parquet":
        yield from _read_parquet(path, choose, choose_numbers)
    else:
        yield from _read_csv(path, choose, choose_numbers)


def letters_of(name: str) -> str:
    """Return a column's name without case, blanks and signs.

    Example:
        >>> [letters_of(name) for name in ("Patient ID", "patient_id", "PatientID")]
        ['patientid', 'patientid', 'patientid']
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())


WORDS_OF_FACTS = frozenset(
    letters_of(word)
    for name, others in _OTHER_NAMES.items()
    for word in (name, *others)
)
"""Names of columns with a fact about the image, by `letters_of`."""


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
    path: Path, choose: Choose, choose_numbers: ChooseNumbers
) -> Iterator[TableRow]:
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            positions = choose(header)
            numbers = choose_numbers(header)
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
                    }
                    | {name: number_in(cells[at]) for name, at in numbers.items()},
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
    path: Path, choose: Choose, choose_numbers: ChooseNumbers
) -> Iterator[TableRow]:
    parquet = require("pyarrow.parquet")
    # Arrow is a parser in C++ whose errors on damaged files have no base of their own
    # in common. Only its calls are inside.
    try:
        with parquet.ParquetFile(path) as file:
            num_rows = file.metadata.num_rows
            header = list(file.schema_arrow.names)
            positions = choose(header)
            numbers = choose_numbers(header)
            _check_num_rows(path, num_rows)
            _check_num_cells(path, num_rows * (len(positions) + len(numbers)))
            columns = {
                name: file.read(columns=[header[at]]).column(0).to_pylist()
                for name, at in (*positions.items(), *numbers.items())
                if at is not None
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
        place = f"{path}, row {number + 1}"
        yield TableRow(
            place=place,
            fields={
                name: _cleaned(name, _as_text(columns[name][number], name, place))
                if name in columns
                else ""
                for name in positions
            }
            | {name: number_in(columns[name][number]) for name in numbers},
        )


def number_in(value: object) -> str:
    """Return a finite number, or the text of one, as text; empty for anything else.

    Example:
        >>> [number_in(value) for value in (0.5, " -2e3 ", 7, "nan", "a", True, [1])]
        ['0.5', '-2e3', '7', '', '', '', '']
    """
    if not isinstance(value, str | int | float | Decimal) or isinstance(value, bool):
        return ""
    text = str(value).strip()
    try:
        return text if math.isfinite(float(text)) else ""
    except (ValueError, OverflowError):
        return ""


def _positions(
    path: Path,
    header: Sequence[str],
    *,
    required: Sequence[str],
    optional: Sequence[str],
    needs_optional: bool,
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
    missing = [name for name, at in positions.items() if at is None]
    meant = {name: at for name in missing if (at := _meant(name, names)) is not None}
    if absent := [name for name in required if name in missing]:
        raise DataError(
            f"{path} has no column {' and no column '.join(map(repr, absent))} among "
            f"its {len(header)}",
            hint="the first line names the columns, separated by commas; needed: "
            f"{', '.join(required)}"
            + "".join(
                f"; {_shown_column(name, names, meant[name])} may be {name!r}"
                for name in absent
                if name in meant
            ),
        )
    for name, at in meant.items():
        raise DataError(
            f"{path} has no column {name!r}, but "
            f"{_shown_column(name, names, at)}, which may be meant",
            hint=f"name the column {name!r} if it is that one, or else by a word that "
            "is not so close",
        )
    if needs_optional and all(positions[name] is None for name in optional):
        raise DataError(
            f"{path} has no column {', '.join(optional[:-1])} or {optional[-1]} among "
            f"its {len(header)}",
            hint="give a column one of these names",
        )
    return positions


def _meant(name: str, header: Sequence[str]) -> int | None:
    """Return where the column is that a table without `name` may mean by it."""
    others = {letters_of(other) for other in _OTHER_NAMES.get(name, ())}
    spellings = [letters_of(column) for column in header]
    for at, spelling in enumerate(spellings):
        if spelling in others or spelling == letters_of(name):
            return at
    slips = (at for at, one in enumerate(spellings) if _is_slip(one, letters_of(name)))
    return next(slips, None)


def _is_slip(written: str, name: str) -> bool:
    """Return whether one letter or a swap of two neighbours tells two words apart.

    Example:
        >>> [_is_slip(word, "patient") for word in ("patinet", "patent", "impatient")]
        [True, True, False]
    """
    if len(written) == len(name):
        pairs = zip(written, name, strict=True)
        first, *others = [at for at, (a, b) in enumerate(pairs) if a != b] or [0]
        swapped = written[first : first + 2] == name[first : first + 2][::-1]
        return not others or (swapped and others == [first + 1])
    short, long = sorted((written, name), key=len)
    return any(long[:at] + long[at + 1 :] == short for at in range(len(long)))


def _shown_column(name: str, header: Sequence[str], at: int) -> str:
    """Return a column in words, quoted only if its name is a known one."""
    spelling = letters_of(header[at])
    known = [one for one in _OTHER_NAMES.get(name, ()) if letters_of(one) == spelling]
    return f"its column {at + 1}" + "".join(f", {one!r}" for one in known[:1])


def _check_num_rows(path: Path, num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise DataError(
            f"the table {path} has more than {MAX_ROWS} rows", hint="split it"
        )


def _check_num_cells(path: Path, num_cells: int) -> None:
    if num_cells > MAX_CELLS:
        raise DataError(
            f"the table {path} has more than {MAX_CELLS} cells in the columns that "
            "are read",
            hint="split it",
        )


def _as_text(value: Any, name: str, place: str) -> str:
    """Return a value of a Parquet column as text.

    Raises:
        DataError: It is a list, a structure, or bytes that are not UTF-8 text.
    """
    if value is None or value != value:  # Parquet's null, and pandas' NaN for it
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{place}: the bytes in column {name!r} are not UTF-8 text",
                hint="store the column as text",
            ) from error
    if isinstance(value, list | dict | tuple):
        raise DataError(
            f"{place}: expected text in column {name!r}, got a "
            f"{'structure' if isinstance(value, dict) else 'list'}",
            hint="store the column as text",
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes whole numbers beside a gap into floats
    return str(value)


def _cleaned(name: str, text: str) -> str:
    return text if name == "path" else text.strip()
