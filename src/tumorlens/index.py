"""A folder or a table to one record per file.

The index says what is there: path, label, subset, patient, source and SHA-256. It
decodes nothing, so a file that is not an image is a record like any other and is found
unreadable later, by `tumorlens.copies`. The CSV that holds a split is written and read
here too, because its rows are the index's records with a group and a subset.

What a newcomer gets wrong: a record's identity is its path relative to the root of the
index, in POSIX spelling, and never its name: `image(1).jpg` exists in every class.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.errors import DataError, did_you_mean
from tumorlens.extras import require
from tumorlens.files import sha256_of, write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SUBSET_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What a folder or a table may call a subset, in lower case -> what we call it."""

SPLIT_COLUMNS = ("path", "sha256", "label", "group", "subset", "reason")

_METADATA_NAME = "metadata.csv"
_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx", _METADATA_NAME}

_MAX_TABLE_BYTES = 256 * 1024 * 1024
_MAX_TABLE_ROWS = 5_000_000

_SUBSET_OF_SPLIT = re.compile(r"train|val|test|left-out|fold-[0-9]{1,3}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """One file."""

    path: str
    """Relative to the root of the index, with `/` between folders. The identity."""

    label: str
    """Name of its class."""

    subset: str | None
    """`train`, `val` or `test` as the folders or the table say, `None` if they do not."""

    patient: str | None
    """Key of the patient, `None` if not known. Never part of a message or a log."""

    source: str | None
    """Where the image came from, `None` if not known."""

    source_label: str | None
    """The class that the source gives the image, `None` if not known."""

    sha256: str
    """Of the file's bytes, 64 hexadecimal digits."""

    num_bytes: int
    """Size of the file; 0 is possible."""


@dataclass(frozen=True)
class Index:
    """All records of one set of images."""

    root: Path
    """Absolute folder that the paths of the records are relative to."""

    classes: tuple[str, ...]
    """Sorted. The position of a name is the class index everywhere."""

    records: tuple[Record, ...]
    """Sorted by path."""

    def file_of(self, record: Record) -> Path:
        """Return where the file of a record is."""
        return self.root / record.path

    @cached_property
    def digest(self) -> str:
        """SHA-256 over path, label, subset and content of every record."""
        digest = hashlib.sha256()
        for record in self.records:
            row = [record.path, record.label, record.subset, record.sha256]
            digest.update(json.dumps(row).encode("ascii") + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class SplitRow:
    """One file and the subset it was put into."""

    path: str
    """As in `Record`."""

    sha256: str
    """As in `Record`: tells when a file was changed after the split."""

    label: str
    """As in `Record`."""

    group: str
    """Rows with the same group must be in the same subset."""

    subset: str
    """`train`, `val`, `test`, `left-out`, or `fold-0`, `fold-1`, ... for K folds."""

    reason: str = ""
    """Why the file is left out; empty for the others."""


@dataclass(frozen=True)
class _Row:
    """What a folder or a table says about one file, before the file is opened."""

    path: str
    label: str
    subset: str | None = None
    patient: str | None = None
    source: str | None = None
    source_label: str | None = None


def read_index(data: Path, *, metadata: str | None = None) -> Index:
    """Return the records of a folder or a table.

    Args:
        data: A folder `<subset>/<class>/files` or `<class>/files`, or a CSV or Parquet
            table with the columns path and label and any of subset, patient, source
            and source_label. Paths in a table are relative to the table. Subset
            folders are named as in `SUBSET_WORDS`, in any case.
        metadata: A CSV with the column path, relative to the root of the index, and
            any of patient, source and source_label, which then hold for the files it
            names. `None` is `metadata.csv` in the folder if there is one, `"none"` is
            none at all.

    Returns:
        One record for every regular file in a class folder, whatever its suffix, or
        for every row of the table. Hidden files, `Thumbs.db` and `metadata.csv` are no
        records.

    Raises:
        DataError: There is no such folder, no or only one class, a class without
            files, or class folders that differ between subsets; a table cannot be
            read, lacks a column, names a file twice or one that does not exist;
            no row of the metadata matches a file.
        MissingExtraError: A Parquet table needs the extra `parquet`.
    """
    if data.is_dir():
        root = Path(os.path.abspath(data))
        rows = _rows_of_folder(data)
        default = root / _METADATA_NAME
    elif data.is_file():
        root = Path(os.path.abspath(data)).parent
        rows = _rows_of_table(data)
        default = None
    else:
        raise DataError(
            f"no such folder or table: {data}",
            hint="give a folder of class folders, or a CSV or Parquet table",
        )
    if metadata not in (None, "none"):
        rows = _with_metadata(rows, Path(str(metadata)))
    elif metadata is None and default is not None and default.is_file():
        rows = _with_metadata(rows, default)

    rows = sorted(rows, key=lambda row: row.path)
    classes = sorted({row.label for row in rows})
    if len(classes) < 2:
        raise DataError(
            f"expected at least two classes in {data}, got one: {classes[0]!r}",
            hint="give the folder whose folders are named after the classes",
        )
    with ThreadPoolExecutor(max_workers=4) as pool:
        records = tuple(pool.map(lambda row: _record(root, row), rows))
    return Index(root=root, classes=tuple(classes), records=records)


def write_split(path: Path, rows: Iterable[SplitRow]) -> None:
    """Write a split as CSV with the columns of `SPLIT_COLUMNS`, in one step.

    Raises:
        DataError: The file cannot be written.
    """
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # A lone carriage return ends a line for a reader but is not quoted by the writer.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(SPLIT_COLUMNS)
    for row in rows:
        fields = [getattr(row, column) for column in SPLIT_COLUMNS]
        writer = quoted if any("\r" in field for field in fields) else plain
        writer.writerow(fields)
    write_text(path, text.getvalue())


def read_split(path: Path) -> tuple[SplitRow, ...]:
    """Return the rows of a split that `write_split` or a hand wrote, in their order.

    Whether the groups are kept together is for `tumorlens.split` to say.

    Raises:
        DataError: The file cannot be read, lacks a column other than reason, or a row
            has no path, a path named before, a malformed SHA-256, no label, no group
            or an unknown subset. The line is named.
    """
    rows: list[SplitRow] = []
    seen: dict[str, int] = {}
    for line, fields in _read_csv(path, needs=SPLIT_COLUMNS[:-1]):
        place = f"{path}, line {line}"
        for column in ("path", "label", "group"):
            if not fields[column]:
                raise DataError(f"{place}: no {column}", hint="fill it in")
        if fields["path"] in seen:
            raise DataError(
                f"{place}: {fields['path']!r} is named in line "
                f"{seen[fields['path']]} already",
                hint="keep one of the two lines",
            )
        seen[fields["path"]] = line
        if not _SHA256.fullmatch(fields["sha256"]):
            raise DataError(
                f"{place}: expected 64 hexadecimal digits as sha256, got "
                f"{_shown(fields['sha256'])}",
                hint="restore the value, or make the split anew",
            )
        if not _SUBSET_OF_SPLIT.fullmatch(fields["subset"]):
            raise DataError(
                f"{place}: unknown subset {_shown(fields['subset'])}",
                hint="choose from: train, val, test, left-out, or fold-0, fold-1, ...",
            )
        rows.append(
            SplitRow(**{column: fields.get(column, "") for column in SPLIT_COLUMNS})
        )
    if not rows:
        raise DataError(f"{path} has no rows", hint="make the split anew")
    return tuple(rows)


def _rows_of_folder(data: Path) -> list[_Row]:
    folders = _folders_in(data)
    if not folders:
        raise DataError(
            f"no class folders in {data}",
            hint="expected <class>/files or <subset>/<class>/files",
        )
    subsets = {name for name in folders if name.lower() in SUBSET_WORDS}
    if not subsets:
        return _rows_of_classes(data, "", folders, subset=None)
    if others := sorted(set(folders) - subsets):
        raise DataError(
            f"{data} has subset folders ({', '.join(sorted(subsets))}) and "
            f"{', '.join(map(repr, others))} beside them",
            hint="move what is no subset out of the folder; subsets are named "
            f"{', '.join(SUBSET_WORDS)}",
        )
    classes = {name: _folders_in(data / name) for name in sorted(subsets)}
    first, *rest = classes
    for name in rest:
        _check_same_classes(data, first, classes[first], name, classes[name])
    return [
        row
        for name, labels in classes.items()
        for row in _rows_of_classes(
            data, name, labels, subset=SUBSET_WORDS[name.lower()]
        )
    ]


def _check_same_classes(
    data: Path, one: str, its: list[str], other: str, theirs: list[str]
) -> None:
    if odd := sorted(set(its) ^ set(theirs)):
        inside = one if odd[0] in its else other
        outside = other if odd[0] in its else one
        raise DataError(
            f"class folders differ in {data}: {odd[0]!r} is in {inside} but not in "
            f"{outside}",
            hint=did_you_mean(odd[0], theirs if inside == one else its)
            if its and theirs
            else f"{other if its else one} has no class folders",
        )


def _rows_of_classes(
    data: Path, folder: str, labels: list[str], *, subset: str | None
) -> list[_Row]:
    rows: list[_Row] = []
    for label in labels:
        place = data / folder / label
        names = [entry.name for entry in _entries(place) if _is_file(entry)]
        if not names:
            raise DataError(
                f"the class folder {place} has no files",
                hint="put images into it, or remove it from every subset",
            )
        rows += [
            _Row(path=posixpath.join(folder, label, name), label=label, subset=subset)
            for name in names
        ]
    return rows


def _folders_in(place: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(place) if entry.is_dir())


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".")
                and entry.name.lower() not in _IGNORED_NAMES
            ]
    except OSError as error:
        raise DataError(
            f"cannot list {place}: {error.strerror}", hint="check its permissions"
        ) from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file()


def _rows_of_table(table: Path) -> list[_Row]:
    raise DataError(f"{table}: tables are not read yet")


def _with_metadata(rows: list[_Row], table: Path) -> list[_Row]:
    known = {posixpath.normpath(f["path"]): f for _, f in _read_csv(table, ["path"])}
    return [
        replace(
            row,
            **{
                column: value
                for column in ("patient", "source", "source_label")
                if (value := known.get(row.path, {}).get(column))
            },
        )
        for row in rows
    ]


def _read_csv(path: Path, needs: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _record(root: Path, row: _Row) -> Record:
    file = root / row.path
    return Record(**vars(row), sha256=sha256_of(file), num_bytes=file.stat().st_size)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")
