"""A folder or a table to one record per file.

A record holds path, label, subset, patient, source and SHA-256. Nothing is decoded, so
a file that is not an image is a record like any other and is found unreadable later, by
`tumorlens.data.duplicates`. The CSV that holds a split is written and read here too,
because its rows are the index's records with a group and a subset.

A record is identified by its path relative to the root of the index, in POSIX spelling,
and never by its name: `image(1).jpg` exists in every class.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.class_names import match_classes, spelling_of
from tumorlens.data.sets import ImageSets
from tumorlens.data.tables import read_table
from tumorlens.errors import DataError, RunError, did_you_mean
from tumorlens.files import sha256_of, sha256_of_bytes, write_text
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUBSET_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Accepted name of a subset in a folder or table, in lower case -> our name."""

SPLIT_COLUMNS = ("path", "sha256", "label", "group", "subset", "reason")

LABEL_COLUMNS = ("path", "label", "reason")
"""Columns of a file of corrected labels."""

_METADATA_NAME = "metadata.csv"
_METADATA_COLUMNS = ("patient", "source", "source_label")
_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx", _METADATA_NAME}

_NOT_KNOWN = frozenset(
    {
        *("unknown", "unk", "not known", "not available", "not applicable", "missing"),
        *("na", "n/a", "n.a.", "nan", "nat", "none", "null", "nil", "undefined"),
        *("anonymous", "anonymized", "anonymised", "anon", "tbd", "unbekannt"),
    }
)
"""Words for a fact that is not known, in lower case. Text without a letter or digit,
such as '?' and '-', is none either."""

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
    """`train`, `val` or `test`, `None` if neither folders nor table name one."""

    patient: str | None
    """Key of the patient, `None` if not known. Never part of a message or a log."""

    source: str | None
    """Where the image came from, `None` if not known."""

    source_label: str | None
    """The class that the source gives the image, `None` if not known."""

    sha256: str
    """SHA-256 of the file's bytes, 64 hexadecimal digits."""

    num_bytes: int
    """Size of the file; 0 is possible."""


@dataclass(frozen=True)
class Index:
    """All records of one set of images."""

    root: Path
    """Absolute folder that the paths of the records are relative to. Of pooled sets, a
    folder above all of them; `file_at` has the files."""

    classes: tuple[str, ...]
    """Sorted. The position of a name is the class index everywhere."""

    records: tuple[Record, ...]
    """Sorted by path."""

    sets: ImageSets | None = None
    """The sets that are pooled, by absolute paths; `None` for a single one."""

    labels_sha256: str | None = None
    """SHA-256 of the file of corrected labels; `None` without one."""

    def file_of(self, record: Record) -> Path:
        """Return where the file of a record is."""
        return self.file_at(record.path)

    def file_at(self, path: str) -> Path:
        """Return where the file is that a record or a row of a split names."""
        return self.sets.file_at(path) if self.sets else self.root / path

    @cached_property
    def digest(self) -> str:
        """SHA-256 over path, label, subset and content of every record."""
        digest = hashlib.sha256()
        for record in self.records:
            row = [record.path, record.label, record.subset, record.sha256]
            digest.update(json.dumps(row).encode("ascii") + b"\n")
        return digest.hexdigest()

    @cached_property
    def images_digest(self) -> str:
        """SHA-256 over label and content of every record, wherever the files are."""
        rows = sorted([record.sha256, record.label] for record in self.records)
        return sha256_of_bytes(json.dumps(rows).encode("ascii"))


@dataclass(frozen=True)
class SplitRow:
    """One file and the subset it was put into."""

    path: str
    """As in `Record`."""

    sha256: str
    """As in `Record`: shows whether a file was changed after the split."""

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
    """The facts about one file from a folder or a table, before it is opened."""

    path: str
    label: str
    subset: str | None = None
    patient: str | None = None
    source: str | None = None
    source_label: str | None = None


def read_index(data: Path | ImageSets, *, metadata: str | None = None) -> Index:
    """Return the records of a folder or a table, or of several sets together.

    Pooled sets must have the same classes, whose spellings are matched as by
    `class_names.match_classes`; the names of the first set are kept. Paths begin with
    the name of the set, which is also the source of files without one. Equal keys of
    patients are one patient in whichever set they are.

    Args:
        data: A folder `<subset>/<class>/files` or `<class>/files`, or a CSV or Parquet
            table with the columns path and label and any of subset, patient, source
            and source_label. Paths in a table are relative to the table's folder.
            Subsets are named as in `SUBSET_WORDS`, in any case. Or sets of these.
        metadata: A table with the column path, as records have it, and any of patient,
            source and source_label, which then hold for the files it names; its other
            rows are ignored. `None` is `metadata.csv` in the folder, or in that of each
            set, if there is one, `"none"` is none at all.

    Returns:
        One record for every regular file in a class folder, whatever its suffix and
        even if it is empty, or for every row of the table. Hidden files, `Thumbs.db`
        and `metadata.csv` are no records.

    Raises:
        DataError: There is no such folder, no class or only one, a class without
            files, class folders that differ between subsets, or two labels that differ
            only in spelling; a table cannot be read, lacks a column or has one that is
            nearly named so, names a file twice or one that does not exist; the
            metadata names no file of the index, or has no column for a fact; a file
            cannot be read; pooled sets have other classes.
        MissingExtraError: A Parquet table needs the extra `parquet`.
    """
    sets = ImageSets((data,)) if isinstance(data, Path) else data
    if not sets.names:
        root, rows = _rows_of_set(sets.places[0], metadata)
        return _index_of(root, rows)
    each = "none" if metadata == "none" else None
    found = [_rows_of_set(place, each) for place in sets.places]
    classes = [sorted({row.label for row in rows}) for _, rows in found]
    rows = [
        replace(
            row,
            path=f"{name}/{row.path}",
            label=spelt[row.label],
            # A word that is no class of the set stays as it is.
            source_label=spelt.get(row.source_label or "", row.source_label),
        )
        for name, (_, of_set), spelt in zip(
            sets.names, found, _in_one_spelling(sets, classes), strict=True
        )
        for row in of_set
    ]
    root = Path(os.path.commonpath([root for root, _ in found]))
    if metadata not in (None, "none"):
        rows = _with_metadata(rows, root, Path(metadata))
    rows = [
        row if row.source else replace(row, source=row.path.partition("/")[0])
        for row in rows
    ]
    places = tuple(place.absolute() for place in sets.places)
    return _index_of(root, rows, ImageSets(places, sets.names))


def with_labels(index: Index, table: Path | None) -> Index:
    """Return an index with corrected labels in place of those of the data.

    The files stay as they are. A line may also confirm the label of a file.

    Args:
        index: The files.
        table: CSV or Parquet with the columns of `LABEL_COLUMNS`: path as records have
            it, a class of the index, and why, which may be empty. `None` changes
            nothing.

    Raises:
        DataError: The table cannot be read, lacks a column, names a file twice or one
            that is not in the index, or a label is none of the classes.
    """
    if table is None:
        return index
    labels = {path: label for path, (label, _) in read_labels(table, index).items()}
    records = tuple(
        replace(record, label=labels.get(record.path, record.label))
        for record in index.records
    )
    return replace(index, records=records, labels_sha256=sha256_of(table))


def read_labels(table: Path, index: Index) -> dict[str, tuple[str, str]]:
    """Return path -> corrected label and reason of a file for `with_labels`.

    Raises:
        DataError: As for `with_labels`.
    """
    labels: dict[str, tuple[str, str]] = {}
    places: dict[str, str] = {}
    known = {record.path for record in index.records}
    for line in read_table(table, required=LABEL_COLUMNS):
        path = _identity(line.fields["path"], index.root)
        if path not in known:
            raise DataError(
                f"{line.place}: {_shown(line.fields['path'])} is not among the "
                f"{len(known)} files of {index.sets or index.root}",
                hint="write the path as split.csv of a run has it, or remove the line",
            )
        _check_named_once(path, line.place, places)
        label = _known_class(line.fields["label"], line.place, index.classes)
        labels[path] = (label, line.fields["reason"])
    return labels


def _known_class(label: str, place: str, classes: Sequence[str]) -> str:
    """Return a label after checking it.

    Raises:
        DataError: It is none of the classes, or empty.
    """
    if not label:
        raise DataError(f"{place}: no label", hint="fill it in, or remove the line")
    if label not in classes:
        raise DataError(
            f"{place}: unknown class {_shown(label)}", hint=did_you_mean(label, classes)
        )
    return label


def check_outside(out: Path, data: Path | ImageSets, *, is_folder: bool = True) -> None:
    """Refuse a place for results that would be read as a part of the images.

    Args:
        out: What is going to be written.
        data: The folder or table with the images, or several. Beside a table there may
            be anything.
        is_folder: Whether `out` is a folder. A file is no part of the images right
            below `data`, but is one below its folders.

    Raises:
        DataError: `out` is inside `data`, and neither it nor a folder above it is
            hidden there (by a name that begins with a dot).
    """
    for one in data.places if isinstance(data, ImageSets) else (data,):
        _check_outside_one(out, one, is_folder=is_folder)


def _check_outside_one(out: Path, data: Path, *, is_folder: bool) -> None:
    if not _is_folder(data):
        return
    root, place = data.resolve(), out.resolve()
    if not place.is_relative_to(root):
        return
    parts = place.relative_to(root).parts
    if any(part.startswith(".") for part in parts) or (
        not is_folder and len(parts) == 1
    ):
        return
    raise DataError(
        f"{out} is inside the folder of the images, {data}, and would be taken for "
        "a part of them",
        hint=f"name a place outside {data}",
    )


def check_no_work(out: Path, *, columns: Sequence[str]) -> None:
    """Refuse to write a table over somebody's file, or between those of a run.

    Args:
        out: The table that is going to be written.
        columns: First columns of such a table; one that begins with them is replaced.

    Raises:
        DataError: `out` is a folder, lies beside the `config.toml` of a run, or is a
            file of another kind.
    """
    if out.is_dir():
        raise DataError(f"{out} is a folder", hint="name a file in it")
    if (out.parent / "config.toml").is_file():
        raise DataError(
            f"{out} is between the files of the run {out.parent}",
            hint="name a place outside of it",
        )
    if not out.is_file():
        return
    with out.open("rb") as file:
        start = file.read(4096)
    expected = ",".join(columns).encode()
    if start and not start.removeprefix(b"\xef\xbb\xbf").startswith(expected):
        raise DataError(
            f"{out} is there, and is no table of this command",
            hint="name another file, or move that one away",
        )


def fact_of(text: str) -> str | None:
    """Return a fact of a table, or `None` for a word that stands for not knowing it.

    All files of a patient "unknown" would otherwise be one group.

    Example:
        >>> fact_of("P-17"), fact_of("N/A"), fact_of(" Unknown "), fact_of("?")
        ('P-17', None, None, None)
    """
    word = " ".join(text.casefold().replace("_", " ").split())
    is_word = any(char.isalnum() for char in word) and word not in _NOT_KNOWN
    return text if is_word else None


def patient_note(index: Index) -> str | None:
    """Return a sentence if keys may not be those of one patient each; or `None`.

    A placeholder that `fact_of` does not know joins the files of many patients. Its key
    holds over a tenth of the files, and over three times as many as the others do on
    average. Pooled sets that number their patients each by itself join different ones.
    The keys are not named, because they could be a person's.
    """
    notes = [_placeholder_note(index), _shared_keys_note(index)]
    return "; ".join(note for note in notes if note) or None


def _placeholder_note(index: Index) -> str | None:
    sizes = Counter(one.patient for one in index.records if one.patient is not None)
    if not sizes:
        return None
    largest, num_files = max(sizes.values()), len(index.records)
    others = (sizes.total() - largest) / max(len(sizes) - 1, 1)
    if largest <= num_files / 10 or largest <= 3 * others:
        return None
    return (
        f"{largest:,} of {num_files:,} files have the same patient: if the word stands "
        "for unknown patients, leave the cell empty, or all of them stay together"
    )


def _shared_keys_note(index: Index) -> str | None:
    if index.sets is None:
        return None
    sets_of: dict[str, set[str]] = {}
    for one in index.records:
        if one.patient is not None:
            sets_of.setdefault(one.patient, set()).add(one.path.partition("/")[0])
    num_shared = sum(len(names) > 1 for names in sets_of.values())
    if not num_shared:
        return None
    is_are = "is" if num_shared == 1 else "are"
    return (
        f"{counted(num_shared, 'key')} of patients {is_are} in several sets, and each "
        "counts as one person: if the sets number their patients by themselves, make "
        "the keys differ"
    )


def write_split(path: Path, rows: Iterable[SplitRow]) -> None:
    """Write a split as CSV with the columns of `SPLIT_COLUMNS`, in one step.

    Raises:
        DataError: The file cannot be written.
    """
    write_text(path, _as_csv(rows))


def split_sha256(rows: Iterable[SplitRow]) -> str:
    """Return the SHA-256 of the file that `write_split` makes of these rows.

    A file with the same rows that a spreadsheet has saved differs, and its rows don't.
    """
    return sha256_of_bytes(_as_csv(rows).encode())


def _as_csv(rows: Iterable[SplitRow]) -> str:
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    # A lone carriage return ends a line for the reader but is not quoted by the writer.
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writerow(SPLIT_COLUMNS)
    for row in rows:
        fields = [getattr(row, column) for column in SPLIT_COLUMNS]
        writer = quoted if any("\r" in field for field in fields) else plain
        writer.writerow(fields)
    return text.getvalue()


def read_split(path: Path) -> tuple[SplitRow, ...]:
    """Return the rows of a split that `write_split` or a hand wrote, in their order.

    `tumorlens.data.split` checks whether the groups are kept together.

    Raises:
        DataError: The file cannot be read, has no rows, lacks a column other than
            reason, or a row has no path, a path named before, a malformed SHA-256, no
            label, no group or an unknown subset. The line is named.
    """
    rows: list[SplitRow] = []
    places: dict[str, str] = {}
    for line in read_table(path, required=SPLIT_COLUMNS[:-1], optional=("reason",)):
        row = SplitRow(**line.fields)
        for column in ("path", "label", "group"):
            if not getattr(row, column):
                raise DataError(f"{line.place}: no {column}", hint="fill it in")
        _check_named_once(row.path, line.place, places)
        if not _SHA256.fullmatch(row.sha256):
            raise DataError(
                f"{line.place}: expected 64 hexadecimal digits as sha256, got "
                f"{_shown(row.sha256)}",
                hint="restore the value, or make the split anew",
            )
        if not _SUBSET_OF_SPLIT.fullmatch(row.subset):
            raise DataError(
                f"{line.place}: unknown subset {_shown(row.subset)}",
                hint="choose from: train, val, test, left-out, or fold-0, fold-1, ...",
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no rows", hint="make the split anew")
    return tuple(rows)


def check_same_labels(labels_sha256: str | None, index: Index) -> None:
    """Check that the corrected labels of a run are unchanged.

    Args:
        labels_sha256: Digest of the file that the run was made with; `None` without.
        index: The files, with the labels that the settings name now.

    Raises:
        RunError: It was made with another file, or without one.
    """
    if labels_sha256 == index.labels_sha256:
        return
    then, now = (
        f"the file with SHA-256 {digest[:12]}..." if digest else "no file"
        for digest in (labels_sha256, index.labels_sha256)
    )
    raise RunError(
        "the corrected labels have changed since the run was made: data.labels was "
        f"{then}, and is {now}",
        hint="restore the file, or start a new run",
    )


def check_unchanged(rows: Sequence[SplitRow], index: Index) -> None:
    """Check that the files of a split are unchanged.

    Raises:
        RunError: Files are gone, new, or have another content.
    """
    now = {record.path: record.sha256 for record in index.records}
    then = {row.path: row.sha256 for row in rows}
    changed = [path for path in then if now.get(path) != then[path]]
    changed += [path for path in now if path not in then]
    if changed:
        raise RunError(
            f"the data in {index.sets or index.root} has changed since the run was "
            f"made: {len(changed)} file(s) differ, the first is {changed[0]}",
            hint="restore the data, or start a new run"
            + (
                f"; or name the sets in their order: {', '.join(index.sets.names)}"
                if index.sets
                else ""
            ),
        )


def _rows_of_set(data: Path, metadata: str | None) -> tuple[Path, list[_Row]]:
    """Return the root and the rows of one folder or table, with its metadata.

    Raises:
        DataError: As for `read_index`.
    """
    root, rows = _rows_of(data)
    table = _metadata_table(root if _is_folder(data) else None, metadata)
    if table is not None:
        try:
            rows = _with_metadata(rows, root, table)
        except DataError as error:
            # The table may be another project's, found by its name alone.
            raise DataError(
                error.problem,
                hint=f"{error.hint}; or go without the table: data.metadata = 'none'",
            ) from error
    classes = sorted({row.label for row in rows})
    _check_spellings(classes, data)
    if not _is_folder(data):
        _check_sources(rows, data)
    if len(classes) < 2:
        raise DataError(
            f"expected at least two classes in {data}, got {len(classes)}"
            + "".join(f": {label!r}" for label in classes),
            hint="give the folder whose folders are named after the classes",
        )
    return root, rows


def _check_sources(rows: Iterable[_Row], table: Path) -> None:
    """Refuse a table whose sources, such as pooled sets, spell one class in two ways.

    Raises:
        DataError: Two do.
    """
    labels_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.source:
            labels_of[row.source].add(row.label)
    kinds = {frozenset(labels): source for source, labels in labels_of.items()}
    for (its, one), (theirs, other) in combinations(kinds.items(), 2):
        for first, second in match_classes(sorted(its), sorted(theirs)).renamed:
            raise DataError(
                f"{table} labels a class {first!r} in source {_shown(one)} and "
                f"{second!r} in {_shown(other)}",
                hint="give it one name in the column label, or names that can be told "
                "apart if they are two classes",
            )


def _in_one_spelling(
    sets: ImageSets, classes: Sequence[Sequence[str]]
) -> list[dict[str, str]]:
    """Return, for each set, its class names with those of the first set.

    Raises:
        DataError: A set has other classes than the first.
    """
    spelt = []
    for name, its in zip(sets.names, classes, strict=True):
        match = match_classes(classes[0], its)
        if not match.is_complete:
            first = sets.names[0]
            odd = [f"{label!r} is only in {first}" for label in match.only_first]
            odd += [f"{label!r} is only in {name}" for label in match.only_second]
            raise DataError(
                f"the classes of {first} and {name} differ: {', '.join(odd)}",
                hint="rename the class folders that mean one class, or list the files "
                "of both in a table with the columns path, label and source",
            )
        spelt.append({theirs: ours for ours, theirs in match.pairs})
    return spelt


def _index_of(root: Path, rows: Iterable[_Row], sets: ImageSets | None = None) -> Index:
    rows = sorted(rows, key=lambda row: row.path)
    empty = Index(root, tuple(sorted({row.label for row in rows})), (), sets)
    # One after the other: with files of some 30 kB, threads took 1.4 times as long.
    records = (_record(empty.file_at(row.path), row) for row in rows)
    return replace(empty, records=tuple(records))


def _rows_of(data: Path) -> tuple[Path, list[_Row]]:
    try:
        is_folder = data.is_dir()
    except OSError as error:  # a name that is too long, or a locked folder above
        raise DataError(
            f"cannot open {data}: {error.strerror}",
            hint="check its name, and the permissions of the folders above",
        ) from error
    if is_folder:
        return data.resolve(), _rows_of_folder(data)
    if not _is_file(data):
        raise DataError(
            f"no such folder or table: {data}",
            hint="give a folder of class folders, or a CSV or Parquet table",
        )
    if data.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(
            f"expected a folder or a .csv or .parquet table, got the file {data}",
            hint="give the folder whose folders are named after the classes",
        )
    root = data.parent.resolve()
    return root, _rows_of_table(data, root)


def _rows_of_folder(data: Path) -> list[_Row]:
    folders = _folders_in(data)
    if not folders:
        raise DataError(
            f"no class folders in {data}",
            hint="expected <class>/files or <subset>/<class>/files",
        )
    subsets = [name for name in folders if name.lower() in SUBSET_WORDS]
    if not subsets:
        return _rows_of_classes(data, "", folders, subset=None)
    if others := [name for name in folders if name not in subsets]:
        raise DataError(
            f"{data} has the subset folder {subsets[0]!r} and beside it {others[0]!r}, "
            f"which is none",
            hint=f"move it out, or name it as a subset: {', '.join(SUBSET_WORDS)}",
        )
    classes = {name: _folders_in(data / name) for name in subsets}
    _check_same_classes(data, classes)
    return [
        row
        for name, labels in classes.items()
        for row in _rows_of_classes(
            data, name, labels, subset=SUBSET_WORDS[name.lower()]
        )
    ]


def _check_same_classes(data: Path, classes: dict[str, list[str]]) -> None:
    for name, labels in classes.items():
        if not labels:
            raise DataError(
                f"no class folders in {data / name}",
                hint="expected <subset>/<class>/files",
            )
    for one, its in classes.items():
        for other, theirs in classes.items():
            if odd := sorted(set(its) - set(theirs)):
                raise DataError(
                    f"class folders differ in {data}: {odd[0]!r} is in {one} but not "
                    f"in {other}",
                    hint=_same_classes_hint(odd[0], its, theirs),
                )


def _same_classes_hint(label: str, its: list[str], theirs: list[str]) -> str:
    """Return the hint for a class folder that another subset lacks."""
    near = get_close_matches(label, sorted(set(theirs) - set(its)), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return (
        "every subset needs the same class folders: add the missing one, or remove "
        "the class from all"
    )


def _rows_of_classes(
    data: Path, folder: str, labels: list[str], *, subset: str | None
) -> list[_Row]:
    rows: list[_Row] = []
    for label in labels:
        place = data / folder / label
        if inner := _folders_in(place):
            raise DataError(
                f"expected only files in the class folder {place}, got the folder "
                f"{inner[0]!r}",
                hint="give the folder right above the class or subset folders, or "
                "list the files in a table with the columns path and label",
            )
        names = _files_in(place)
        if not names:
            raise DataError(
                f"no files in the class folder {place}",
                hint="put images into it, or remove the class from every subset",
            )
        rows += [
            _Row(path=posixpath.join(folder, label, name), label=label, subset=subset)
            for name in names
        ]
    return rows


def _folders_in(place: Path) -> list[str]:
    return sorted(name for name in _names_in(place) if _is_folder(place / name))


def _files_in(place: Path) -> list[str]:
    names = []
    for name in _names_in(place):
        if _is_file(place / name):
            names.append(name)
        elif (place / name).is_symlink():
            raise DataError(
                f"{place / name} is a link to a file that does not exist",
                hint="restore the file, or remove the link",
            )
    return names


def _names_in(place: Path) -> list[str]:
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise DataError(
            f"cannot list {place}: {error.strerror}",
            hint="check the permissions of the folder",
        ) from error
    for name in names:
        # Linux allows names that are not text; no CSV or JSON could hold such a path.
        if any("\udc80" <= char <= "\udcff" for char in name):
            raise DataError(
                f"the name of a file in {place} is not UTF-8: {name!a}",
                hint="rename the file",
            )
    return [
        name
        for name in names
        if not name.startswith(".") and name.lower() not in _IGNORED_NAMES
    ]


def _check_spellings(labels: Iterable[str], data: Path) -> None:
    """Refuse labels that differ only in case, blanks or Unicode form.

    Raises:
        DataError: Two do.
    """
    first_of: dict[str, str] = {}
    for label in labels:
        first = first_of.setdefault(spelling_of(label), label)
        if first != label:
            # ASCII, because two forms of one letter look the same.
            raise DataError(
                f"two labels in {data} differ only in their spelling: {first!a} and "
                f"{label!a}",
                hint="give them one spelling if they are one class, or else names "
                "that can be told apart",
            )


def _rows_of_table(table: Path, root: Path) -> list[_Row]:
    rows: list[_Row] = []
    places: dict[str, str] = {}
    for line in read_table(
        table,
        required=("path", "label"),
        optional=("subset", *_METADATA_COLUMNS),
    ):
        path = _identity(line.fields["path"], root)
        if not line.fields["path"] or not _is_file(root / path):
            raise DataError(
                f"{line.place}: no such file: {_shown(line.fields['path'])}",
                hint=f"paths are relative to the table's folder, {table.parent}",
            )
        _check_named_once(path, line.place, places)
        if not line.fields["label"]:
            raise DataError(f"{line.place}: no label", hint="fill it in")
        rows.append(
            _Row(
                path=path,
                label=line.fields["label"],
                subset=_subset(line.fields["subset"], line.place),
                **{name: fact_of(line.fields[name]) for name in _METADATA_COLUMNS},
            )
        )
    return rows


def _subset(word: str, place: str) -> str | None:
    if not word:
        return None
    if word.lower() not in SUBSET_WORDS:
        raise DataError(
            f"{place}: unknown subset {_shown(word)}",
            hint=did_you_mean(word.lower(), SUBSET_WORDS),
        )
    return SUBSET_WORDS[word.lower()]


def _metadata_table(folder: Path | None, metadata: str | None) -> Path | None:
    if metadata is not None:
        return None if metadata == "none" else Path(metadata)
    if folder is not None and _is_file(folder / _METADATA_NAME):
        return folder / _METADATA_NAME
    return None


def _with_metadata(rows: list[_Row], root: Path, table: Path) -> list[_Row]:
    known: dict[str, dict[str, str]] = {}
    for line in read_table(
        table, required=("path",), optional=_METADATA_COLUMNS, needs_optional=True
    ):
        facts = {name: fact_of(line.fields[name]) or "" for name in _METADATA_COLUMNS}
        path = _identity(line.fields["path"], root)
        if known.setdefault(path, facts) != facts:
            raise DataError(
                f"{line.place}: {_shown(path)} is named before with another patient, "
                f"source or source_label",
                hint="keep one of the two lines",
            )
    if not any(row.path in known for row in rows):
        example = next(iter(known), None)
        raise DataError(
            f"no row of {table} names a file of the index"
            + (f"; its first path is {_shown(example)}" if example else ""),
            hint=f"expected paths such as {rows[0].path!r}"
            if rows
            else "the index is empty",
        )
    return [
        replace(row, **{k: v for k, v in known.get(row.path, {}).items() if v})
        for row in rows
    ]


def _identity(path: str, root: Path) -> str:
    # One spelling for all that name the same file: `./a/../b.png` is `b.png`.
    if posixpath.isabs(path) and Path(path).is_relative_to(root):
        path = Path(path).relative_to(root).as_posix()
    return posixpath.normpath(path) if path else ""


def _check_named_once(path: str, place: str, places: dict[str, str]) -> None:
    first = places.setdefault(path, place)
    if first != place:
        raise DataError(
            f"{place}: {_shown(path)} is named before, in {first.rpartition(', ')[2]}",
            hint="keep one of the two lines",
        )


def _record(file: Path, row: _Row) -> Record:
    try:
        sha256, num_bytes = sha256_of(file), file.stat().st_size
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}",
            hint="check the permissions of the file",
        ) from error
    return Record(**vars(row), sha256=sha256, num_bytes=num_bytes)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, or a folder above that is locked
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else value[:77] + "...")
