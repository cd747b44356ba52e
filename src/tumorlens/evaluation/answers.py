"""Answers of any framework: the tables and dumps that others write, read into arrays.

An answer is the name of a file and either a number for each class or one class. Read
are CSV and Parquet tables, JSON and JSON Lines, and a folder of the text files that
ultralytics' `save_txt` writes; docs/other-frameworks.md has the forms. Whether a name
is a file of the data and a number a probability is checked in
`tumorlens.evaluation.judge`.

A file is hostile until read: its size is bounded, and no name in it is ever opened.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.class_names import match_classes
from tumorlens.data.tables import (
    MAX_ROWS,
    WORDS_OF_FACTS,
    letters_of,
    number_in,
    read_columns,
)
from tumorlens.errors import DataError
from tumorlens.files import read_json, read_json_lines, sha256_of, sha256_of_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MAX_JSON_BYTES = 64 << 20
"""Larger JSON is not parsed: it takes some ten times as much memory."""

MAX_TEXT_BYTES = 1 << 16
"""Largest text file of a folder that is read; one of ultralytics has five lines."""

MAX_CLASSES = 1000
"""Most classes that a table may have."""

ROUNDING = 0.005
"""Share of each class by which the probabilities of an image may miss the sum of 1:
what rounding to two digits can do."""

_LEAST_NUMBERS = 0.9
"""Least share of the cells of a column that are numbers where it is one of numbers."""

_FILE = (
    *("path", "filepath", "imagepath", "imgpath", "filename", "imagename"),
    *("imagefile", "file", "files", "filenames", "filepaths", "image", "img", "name"),
)
"""Columns that may name the file, the first of them that is there; compared by
`letters_of`."""

_PREDICTED = (
    *("predicted", "prediction", "predictions", "predictedclass", "predictedlabel"),
    *("predclass", "predlabel", "pred", "preds", "ypred"),
)
_LISTS = ("probabilities", "probs", "proba", "softmax", "logits", "scores", "outputs")
"""Columns that may hold a list with a number for each class, as `_PREDICTED` may."""

_CLASSES = ("classes", "classnames", "classindices")
"""Keys of a JSON object that may hold the names of the classes in their order."""

_PREFIX = re.compile(
    r"(?:probs?|proba|probability|(logits?))[ _.:-]+(?=\S)", re.IGNORECASE
)
_NO_CLASSES = WORDS_OF_FACTS | {
    *(*_FILE, *_PREDICTED, *_LISTS),
    *("index", "idx", "row", "number", "epoch", "seed", "batch", "slice", "time"),
    *("labelid", "labelindex", "classid", "classindex", "truelabel", "trueclass"),
    *("truth", "true", "groundtruth", "gt", "y", "ytrue", "correct", "iscorrect"),
    *("confidence", "conf", "score", "maxprob", "margin", "entropy", "loss", "age"),
    *("width", "height", "size"),
}
"""Columns of numbers that are no classes, by `letters_of`."""
_INDEX = re.compile(r"unnamed\b.*|(?:.*[\W_])?id|", re.IGNORECASE)

_RANKED = re.compile(r"(?:index|label)[ _]\d+", re.IGNORECASE)
_PROB = "prob_"
_NUMBER = "number_"
_ONE_PER_CLASS = (
    "give one column for each class; a single sigmoid output p is the two "
    "probabilities 1 - p and p"
)
_NUM_SHOWN = 2
_NUM_COLUMNS_SHOWN = 10
_FORMS = "docs/other-frameworks.md has the tables and dumps that are read"


@dataclass(frozen=True)
class Answers:
    """Answers as a file has them: N rows, C classes."""

    classes: tuple[str, ...]
    """Names of the columns of `numbers`, or all that are predicted, sorted."""
    names: tuple[str, ...]
    """Path or name of each file, as written."""
    places: tuple[str, ...]
    """Where each row is, such as "line 3"."""
    numbers: NDArray[np.float64] | None
    """Shape (N, C), NaN for what is no number; `None` without probabilities."""
    predicted: tuple[str, ...] | None
    """Predicted class of each row; `None` where only numbers are given."""
    by_numbers: tuple[str, ...] = ()
    """Those of the classes that only their numbers tell to be one."""
    are_logits: bool = False
    """Whether the columns call their numbers logits."""
    have_suffix: bool = True
    """Whether the names end as those of the files do."""


def read_answers(path: Path, *, known: Iterable[str]) -> Answers:
    """Return the answers in a table, a JSON file or a folder of text files.

    Columns are classes if their names begin with `prob_` or the like. If none does,
    those are that are equal to a known class apart from their spelling, and so is each
    further column of numbers, unless it is named as another thing is (`fold`), counts
    the rows, or the known classes add up to 1 without it.

    Args:
        path: Its suffix tells the kind: .csv, .parquet, .json, .jsonl or none.
        known: Names that a class may have.

    Raises:
        DataError: The file cannot be read, is too large, is not of these kinds, names
            no files or holds no answers.
        MissingExtraError: A Parquet file needs the extra `parquet`.
        RunError: A JSON file cannot be read or is no JSON.
    """
    if path.is_dir():
        return _of_rows(path, _rows_of_folder(path), known, have_suffix=False)
    if not path.is_file():  # a device could be read without an end
        raise DataError(f"there is no file {path}", hint="check its name")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        return _of_table(path, known)
    if suffix in (".json", ".jsonl"):
        return _of_rows(path, _rows_of_json(path), known)
    raise DataError(
        f"expected answers in a .csv, .parquet, .json or .jsonl file, got {path}",
        hint=_FORMS,
    )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file with answers, or of the files of such a folder."""
    if not path.is_dir():
        return sha256_of(path)
    parts = [f"{file.name} {sha256_of(file)}" for file in sorted(path.glob("*.txt"))]
    return sha256_of_bytes("\n".join(parts).encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class _Columns:
    """Where the columns are, as positions in a header."""

    file: int
    predicted: int | None
    lists: int | None
    classes: Mapping[str, int]
    others: Mapping[str, int]
    """Columns that are classes too if they hold such numbers, by their names."""
    are_logits: bool

    def positions(self) -> dict[str, int | None]:
        """Return them by the names that `_of_fields` takes."""
        found = {f"{_PROB}{name}": at for name, at in self.classes.items()}
        # Blanks belong to a field of this name, and to no other.
        found["path"] = self.file
        return {**found, "predicted": self.predicted, "list": self.lists}

    def numbers(self) -> dict[str, int]:
        """Return where `others` are, likewise."""
        return {f"{_NUMBER}{name}": at for name, at in self.others.items()}


def _choose(path: Path, header: Sequence[str], known: Iterable[str]) -> _Columns:
    """Return the columns of a table.

    Raises:
        DataError: None names the files, none holds answers, or two have one name.
    """
    names = [name.strip() for name in header if name.strip()]
    if len(set(names)) < len(names):
        raise DataError(
            f"{path} has two columns of one name among its {len(header)}",
            hint="keep one of them",
        )
    prefixes = [_PREFIX.match(name.strip()) for name in header]
    # `prob_a` has the letters of `proba`.
    letters = [
        "" if prefix else letters_of(name)
        for name, prefix in zip(header, prefixes, strict=True)
    ]
    file = _first(letters, _FILE)
    if file is None and len(header) == 1 and ";" in header[0]:
        raise DataError(
            f"{path} is separated by ';' and not by commas",
            hint="save it with commas, and with points in the numbers; pandas does "
            "both: pandas.read_csv(PATH, sep=';', decimal=',').to_csv(PATH, "
            "index=False)",
        )
    if file is None:
        raise DataError(
            f"{path} has no column that names the files among its {len(header)}",
            hint="the first line names the columns, separated by commas; call the one "
            "with the files 'path' or 'filename'",
        )
    predicted, lists = _first(letters, _PREDICTED), _first(letters, _LISTS)
    others = {
        name.strip(): at
        for at, name in enumerate(header)
        if at not in (file, predicted, lists)
    }
    classes = {
        name[prefix.end() :].strip(): at
        for name, at in others.items()
        if (prefix := prefixes[at])
    }
    have_prefix = len(classes) >= 2
    if not have_prefix:
        match = match_classes(others, known)
        classes = {name: others[name] for name, _ in match.pairs}
    elif any(_RANKED.fullmatch(name) for name in others):
        raise DataError(
            f"the columns of {path} are ranks and not classes: it has both a "
            "probability and a label or index for each",
            hint="write the probabilities of all classes in a fixed order; timm's "
            "inference.py does with --topk 0",
        )
    if len(classes) < 2:
        classes = {}
    further = {
        name: at
        for name, at in others.items()
        if name not in classes and not _is_no_class(name)
    }
    if not classes and predicted is None and lists is None:
        problem, hint = _without_answers(header, list(further), known)
        raise DataError(f"{path} {problem}", hint=hint)
    return _Columns(
        file=file,
        predicted=predicted,
        lists=None if classes else lists,
        classes=classes,
        others=further if classes and not have_prefix else {},
        are_logits=any(prefix and prefix[1] for prefix in prefixes)
        or (lists is not None and letters[lists] == "logits"),
    )


def _is_no_class(name: str) -> bool:
    """Whether a column is named as other things are that are numbers."""
    return letters_of(name) in _NO_CLASSES or bool(_INDEX.fullmatch(name))


def _without_answers(
    header: Sequence[str], further: Sequence[str], known: Iterable[str]
) -> tuple[str, str]:
    """Return what is wrong with a table without columns of answers, and the hint.

    A column names the files, so the first line is no row: its words can be shown.
    """
    hint = "name a column after each class, as in prob_glioma, or one 'predicted'"
    if len(further) > 1:
        words = zip(further, known, strict=False)
        maps = [f"--map {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in words]
        hint += (
            "; or say which class each column is, for example "
            f"{' '.join(maps[:_NUM_SHOWN])}"
        )
    shown = [repr(name[:40]) for name in header[:_NUM_COLUMNS_SHOWN]]
    if len(header) > len(shown):
        shown.append(f"and {len(header) - len(shown):,} more")
    problem = f"has no column with answers among its {len(header)}: {', '.join(shown)}"
    return problem, hint


def _first(letters: Sequence[str], names: Sequence[str]) -> int | None:
    """Return where the first of some names is that is there at all."""
    return next((letters.index(name) for name in names if name in letters), None)


def _of_table(path: Path, known: Iterable[str]) -> Answers:
    chosen: list[_Columns] = []

    def choose(header: Sequence[str]) -> Mapping[str, int | None]:
        chosen.append(_choose(path, header, known))
        return chosen[0].positions()

    rows = [
        (row.place.rpartition(", ")[2], row.fields)
        for row in read_columns(
            path, choose, choose_numbers=lambda _header: chosen[0].numbers()
        )
    ]
    return _of_fields(path, chosen[0], rows)


def _of_rows(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    known: Iterable[str],
    *,
    have_suffix: bool = True,
) -> Answers:
    """Return the answers of rows that are not texts yet."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    columns = _choose(path, header, known)
    name_of = {field: at for field, at in columns.positions().items() if at is not None}
    numbers = columns.numbers()
    fields = [
        (
            f"entry {number}",
            {field: _as_text(row.get(header[at])) for field, at in name_of.items()}
            | {name: number_in(row.get(header[at])) for name, at in numbers.items()},
        )
        for number, row in enumerate(rows, start=1)
    ]
    return _of_fields(path, columns, fields, have_suffix=have_suffix)


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)


def _of_fields(
    path: Path,
    columns: _Columns,
    rows: Sequence[tuple[str, Mapping[str, str]]],
    *,
    have_suffix: bool = True,
) -> Answers:
    """Return the answers of rows of texts.

    Raises:
        DataError: There is no row, or the classes cannot be told.
    """
    if not rows:
        raise DataError(f"{path} has no answers", hint=_FORMS)
    classes = tuple(columns.classes)
    predicted, numbers = None, None
    texts = [[fields[f"{_PROB}{name}"] for name in classes] for _, fields in rows]
    by_numbers = tuple(_classes_by_numbers(columns, texts, rows))
    for found, (_, fields) in zip(texts, rows, strict=True):
        found += [fields[f"{_NUMBER}{name}"] for name in by_numbers]
    classes += by_numbers
    if columns.predicted is not None:
        predicted = tuple(fields["predicted"].strip() for _, fields in rows)
    lists = predicted
    if columns.lists is not None:
        lists = tuple(fields["list"] for _, fields in rows)
    if not classes and lists is not None and _are_lists(lists):
        if lists is predicted:
            predicted = None
        texts = [re.split(r"[\s,]+", one.strip("[]() \n")) for one in lists]
        # Without names of their own: the place in the list, for --map.
        classes = tuple(str(number) for number in range(max(map(len, texts))))
        _check_several(path, classes)
    if classes:
        numbers = np.array([_numbers(one, len(classes)) for one in texts])
    elif predicted is not None:
        classes = tuple(sorted(set(predicted) - {""}))
        _check_words(path, classes)
    _check_classes(path, classes)
    return Answers(
        classes=classes,
        names=tuple(fields["path"] for _, fields in rows),
        places=tuple(place for place, _ in rows),
        numbers=numbers,
        predicted=predicted,
        by_numbers=by_numbers,
        are_logits=columns.are_logits,
        have_suffix=have_suffix,
    )


def _classes_by_numbers(
    columns: _Columns,
    texts: Sequence[Sequence[str]],
    rows: Sequence[tuple[str, Mapping[str, str]]],
) -> Iterator[str]:
    """Yield the further columns whose numbers can be those of a class.

    Args:
        columns: The columns.
        texts: Cells of the known classes, by row.
        rows: All cells.
    """
    if not columns.others:
        return
    known = np.array([_numbers(one, len(one)) for one in texts])
    known = known[np.isfinite(known).all(axis=1)]
    misses = np.abs(known.sum(axis=1) - 1)
    if (
        len(known)
        and (misses <= ROUNDING * known.shape[1]).all()
        and known.min() > -1e-6
    ):
        return  # the known classes are all there are
    for name in columns.others:
        cells = [fields[f"{_NUMBER}{name}"] for _, fields in rows]
        if sum(map(bool, cells)) >= _LEAST_NUMBERS * len(cells) and not _counts(cells):
            yield name


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells count the rows, from 0 or 1, as an index does."""
    numbers = _numbers(cells, len(cells))
    return len(cells) > 2 and any(
        numbers == [float(row + start) for row in range(len(cells))] for start in (0, 1)
    )


def _are_lists(texts: Sequence[str]) -> bool:
    """Whether texts are lists as Python and numpy print them, or empty."""
    form = re.compile(r"\s*[\[(].*[\])]\s*", re.DOTALL)
    return any(texts) and all(form.fullmatch(text) for text in texts if text)


def _check_several(path: Path, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{path} has a single number for each image", hint=_ONE_PER_CLASS
        )


def _check_words(path: Path, classes: Sequence[str]) -> None:
    """Refuse probabilities in place of predicted classes.

    Raises:
        DataError: One is.
    """
    if any(number % 1 for number in _numbers(classes, len(classes)) if number < 1e9):
        raise DataError(
            f"{path} has fractions where the predicted classes should be",
            hint=_ONE_PER_CLASS,
        )


def _numbers(texts: Sequence[str], num: int) -> list[float]:
    """Return numbers; NaN for what is none, and for a row of another length."""
    if len(texts) != num:
        return [math.nan] * num
    found = []
    for text in texts:
        try:
            found.append(float(text))
        except ValueError:
            found.append(math.nan)
    return found


def _check_classes(path: Path, classes: Sequence[str]) -> None:
    """Refuse names of classes that cannot be those of a classifier.

    Raises:
        DataError: There is none, there are too many, one is a formula or no text.
    """
    if not classes:
        raise DataError(f"{path} has no answers: every one is empty", hint=_FORMS)
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{path} has {len(classes):,} classes, more than {MAX_CLASSES:,}",
            hint="the column of answers must hold the name of a class in each row",
        )
    for name in classes:
        if not name.isprintable():
            raise DataError(
                f"the name {name!a} of a class in {path} is no text on one line",
                hint="name the classes as the folders of the data are named",
            )
        if name.startswith(("=", "+", "-", "@")) and math.isnan(_numbers([name], 1)[0]):
            raise DataError(
                f"a class of {path} begins with {name[0]!r}, as a formula does",
                hint="write the answers from your program, without a spreadsheet",
            )


# JSON: every form becomes a list of rows, with the columns that a table has.


def _rows_of_json(path: Path) -> list[dict[str, Any]]:
    """Return the answers of a JSON file.

    Raises:
        DataError: It is larger than `MAX_JSON_BYTES`, or no form that is known.
    """
    num_bytes = path.stat().st_size
    if num_bytes > MAX_JSON_BYTES:
        raise DataError(
            f"{path} has {num_bytes:,} bytes, more than the {MAX_JSON_BYTES:,} of a "
            "JSON file that is read",
            hint="write the answers as CSV or Parquet",
        )
    if path.suffix.lower() == ".jsonl":
        return _of_records(path, read_json_lines(path, hint=_FORMS))
    content = read_json(path, hint=_FORMS)
    if isinstance(content, dict):
        file = next((key for key in content if letters_of(key) in _FILE), None)
        if file is not None and isinstance(content[file], list | dict):
            return _of_columns(path, content)
        return _of_records(
            path,
            [row for name, answer in content.items() for row in _of_file(name, answer)],
        )
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return _of_records(path, content)
    raise DataError(f"the JSON in {path} has no form that is known", hint=_FORMS)


def _of_columns(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an object of columns, as pandas' `to_json` writes it.

    Raises:
        DataError: The columns are of different lengths.
    """
    names = _class_names(content)
    columns = {
        key: [*column.values()] if isinstance(column, dict) else column
        for key, column in content.items()
        if letters_of(key) not in _CLASSES and isinstance(column, list | dict)
    }
    lengths = sorted({len(column) for column in columns.values()})
    if len(lengths) > 1:
        raise DataError(
            f"the lists in {path} have different lengths: {lengths[0]:,} to "
            f"{lengths[-1]:,}",
            hint="write the files and the answers in the same order, all of them",
        )
    rows = [
        {key: column[row] for key, column in columns.items()}
        for row in range(lengths[0])
    ]
    return [_named(row, names) for row in rows]


def _class_names(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes in their order; none where they are not told."""
    for key, names in content.items():
        if letters_of(key) not in _CLASSES:
            continue
        if isinstance(names, dict) and all(type(at) is int for at in names.values()):
            names = sorted(names, key=names.__getitem__)  # `class_indices` of Keras
        # `classes` of a Keras generator are the labels, as numbers.
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return []


def _named(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a row whose lists, and indices of predicted classes, have names."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if names and isinstance(value, list) and len(value) == len(names):
            columns = (f"{_PROB}{name}" for name in names)
            found |= dict(zip(columns, value, strict=True))
        elif letters_of(key) in _PREDICTED and value in range(len(names)):
            found[key] = names[value]
        else:
            found[key] = value
    return found


def _of_file(name: str, answer: Any) -> list[dict[str, Any]]:
    """Return the rows of one file in an object of file -> answer."""
    if isinstance(answer, str) and answer.startswith(("[", "{")):
        try:  # the text that ultralytics' `to_json` returns
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            return [{"path": name, "predicted": answer}]
    if isinstance(answer, dict):
        return [{**answer, "path": name}]
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        return [{**one, "path": name} for one in answer if isinstance(one, dict)]
    return [{"path": name, "predicted": answer}]


def _of_records(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as they are, or those of ultralytics by file.

    It writes a record for each of the likeliest classes: `name`, `class` (the index)
    and `confidence`; early versions for the first only.

    Raises:
        DataError: Such a record names no file.
    """
    if not rows or not all({"name", "confidence"} <= row.keys() for row in rows):
        return rows
    by_file: dict[str, dict[str, Any]] = {}
    for row in rows:
        file = next((key for key in row if _names_file(key)), None)
        if file is None:
            raise DataError(
                f"the answers in {path} do not tell which file they are of",
                hint="write an object of path -> answer: "
                "{r.path: json.loads(r.to_json()) for r in results}",
            )
        probs = by_file.setdefault(str(row[file]), {})
        probs[f"{_PROB}{row['name']}"] = row["confidence"]
    if all(len(probs) == 1 for probs in by_file.values()):
        return [
            {"path": name, "predicted": next(iter(probs)).removeprefix(_PROB)}
            for name, probs in by_file.items()
        ]
    return [{"path": name, **probs} for name, probs in by_file.items()]


def _names_file(key: str) -> bool:
    return key != "name" and letters_of(key) in _FILE


def _rows_of_folder(path: Path) -> list[dict[str, Any]]:
    """Return the answers of a folder of text files, named after the images.

    A line is a probability and the name of a class.

    Raises:
        DataError: There is no such file, or one is no text of this kind.
    """
    files = sorted(path.glob("*.txt"))
    if not 0 < len(files) <= MAX_ROWS:
        raise DataError(f"there are {len(files):,} text files in {path}", hint=_FORMS)
    rows = []
    for file in files:
        row: dict[str, Any] = {}
        for line in _text_of(file).split("\n"):
            prob, _, name = line.partition(" ")
            row[f"{_PROB}{name}"] = prob
        row.pop(_PROB, None)
        rows.append({**row, "path": file.stem})
    return rows


def _text_of(file: Path) -> str:
    """Return a small text.

    Raises:
        DataError: It is large, no text, or cannot be read.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_TEXT_BYTES + 1)
        if len(content) <= MAX_TEXT_BYTES:
            return content.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    raise DataError(f"{file} is no text file of answers", hint=_FORMS)
