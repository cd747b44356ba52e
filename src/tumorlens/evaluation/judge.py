"""Answers of another framework, judged: `evaluate --predictions FILE --data DATA`.

The answers of `tumorlens.evaluation.answers` are matched with the images of a labelled
folder or table and measured as those of a run on another set are. What training has
seen are the images of `--trained-on`, or else those outside the test subset of the data
itself. The network is not needed, and nothing here imports torch.

Everything that is wrong with the answers is counted and named at once, and stops the
command; with `partial` the figures go without these answers and say so.
"""

from __future__ import annotations

import math
import posixpath
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.class_names import match_classes
from tumorlens.data.index import SUBSET_WORDS, SplitRow, read_index
from tumorlens.data.leakage import judge_leak
from tumorlens.data.seen import Seen, seen_of
from tumorlens.errors import ConfigError, DataError
from tumorlens.evaluation.answers import ROUNDING, digest_of, read_answers
from tumorlens.evaluation.external import (
    ClassMap,
    Evaluated,
    check_new,
    check_several,
    evaluation_name,
    external_metrics,
    find_seen,
    map_classes,
    read_external,
    table_of,
)
from tumorlens.evaluation.external_files import check_place, write_external
from tumorlens.evaluation.predictions import round_probs
from tumorlens.files import locked
from tumorlens.text import counted, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.index import Record
    from tumorlens.evaluation.answers import Answers
    from tumorlens.evaluation.external import ExternalSet
    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.progress import Stage

_ROUNDED = 1e-6
_NUM_NAMED = 3
_NO_FILE = "no file of the data"
_OUTSIDE = "a probability outside 0 to 1"


def judge_answers(
    predictions: Path,
    data: Path,
    *,
    trained_on: Path | None = None,
    mapping: Sequence[str] = (),
    logits: bool = False,
    partial: bool = False,
    name: str | None = None,
    metadata: str | None = None,
    out: Path | None = None,
    stage: Stage = lambda _words: nullcontext(None),
) -> Evaluated:
    """Measure the answers of any framework, with and without what training has seen.

    Writes `predictions.csv`, `images.csv` (what became of each file) and
    `external.json`.

    Args:
        predictions: The answers, see `read_answers`.
        data: Labelled folder or table of the images.
        trained_on: Labelled folder or table of the images that the model was trained
            on. `None`: if the data has a train and a test subset, only the test subset
            is tested and the rest is what training has seen; or else it is not known.
        mapping: See `map_classes`.
        logits: Whether the numbers are logits, of which the softmax is taken.
        partial: Whether to go on without the answers that are wrong or missing.
        name: Name of the evaluation. Default: that of the data.
        metadata: As for `index.read_index`, for `data`.
        out: Folder to write to. Default: beside the answers, named after them.
        stage: Shows the progress.

    Raises:
        ConfigError: The name or the mapping is wrong, a single class is left, or the
            numbers are logits and
            `logits` is not given.
        DataError: The answers or the data cannot be used; an answer is wrong or missing
            and `partial` is not given, or none is left, or none of a new image; the
            folder is somebody's, or cannot be written.
        MissingExtraError: Parquet needs the extra `parquet`.
        RunError: Another process works in the folder, or JSON cannot be read.
    """
    name = evaluation_name(name, data)
    if out is None:
        out = _folder_beside(predictions)
    index = read_index(data, metadata=metadata)
    test = [record for record in index.records if record.subset == "test"]
    is_split = trained_on is None and 0 < len(test) < len(index.records)
    tested_index = replace(index, records=tuple(test)) if is_split else index
    check_place(
        out,
        images=filter(None, (data, trained_on)),
        model=predictions.name,
        data_sha256=tested_index.digest,
    )
    trained_index = None if trained_on is None else read_index(trained_on)
    sources = [one.partition("=")[0].split(",") for one in mapping]
    answers = read_answers(
        predictions,
        known=(*index.classes, *(word.strip() for words in sources for word in words)),
    )
    if answers.are_logits and not logits:
        raise ConfigError(
            f"the columns of {predictions} are called logits", hint="add --logits"
        )
    if logits and answers.numbers is None:
        raise ConfigError(
            f"--logits has no effect: {predictions} has predicted classes only",
            hint="leave it out, or write a column of logits for each class",
        )
    classes = _classes_of(answers, index.classes, mapping)
    with stage("reading") as progress:
        whole = read_external(data, index, progress=progress)
    tested = whole.part(test) if is_split else whole
    faults = _Faults(predictions)
    matched = _match(answers, whole, tested, faults)
    checked = _checked(answers, classes, logits=logits)
    table = _table(matched, checked, tested, classes, answers, faults)
    if faults.found and not partial:
        raise faults.error(tested.records[0].path)
    if table is None:
        raise DataError(
            f"no answer in {predictions} is left: {'; '.join(faults.sentences())}",
            hint="compare the names of the files and classes with those of the data",
        )
    notes = _notes(table, matched, checked, tested, faults)
    seen_images = None
    if trained_on is not None and trained_index is not None:
        with stage("reading what it was trained on") as progress:
            trained = read_external(trained_on, trained_index, progress=progress)
        seen_images = find_seen(tested, [_seen_of(trained, trained_index.records)])
    elif is_split:
        rest = [record for record in index.records if record.subset != "test"]
        seen_images = find_seen(tested, [_seen_of(whole, rest)])
        notes.insert(0, _leak_of(whole, test, rest))
    else:
        notes.append("Say what the model was trained on: --trained-on DATA.")
    check_new(
        tested,
        table.paths,
        seen_images,
        hint="judge answers to images that training has not seen: --data DATA"
        + ("" if trained_on is None else "; --trained-on is what it was trained on"),
    )
    metrics = external_metrics(
        table,
        tested,
        seen_images,
        classes,
        name=name,
        model=predictions.name,
        model_sha256=digest_of(predictions),
        notes=notes,
    )
    with locked(out):
        write_external(out, metrics, table, tested, seen_images)
    return Evaluated(metrics, out)


def _folder_beside(predictions: Path) -> Path:
    """Return the folder for the results, named after the answers.

    Raises:
        DataError: It would be between the files of a run.
    """
    place = predictions.resolve()
    out = predictions.with_name(
        f"{place.name}-judged" if place.is_dir() else place.stem
    )
    if (out.parent / "config.toml").is_file():
        raise DataError(
            f"{out} would be between the files of a run",
            hint="name another folder: --out FOLDER",
        )
    return out


def _classes_of(
    answers: Answers, data: Sequence[str], mapping: Sequence[str]
) -> ClassMap:
    """Return how the classes of the answers become those of the data.

    A class that is never predicted does not show among predicted classes. So all
    classes of the data are known to such answers, or the images of that class would be
    left out instead of being wrong.
    """
    classes = map_classes(answers.classes, data, mapping)
    if answers.numbers is not None:
        check_several(classes)
        return classes
    only_model = classes.classes[len(data) - len(classes.unknown) :]
    return replace(classes, classes=(*data, *only_model), unknown=())


def _seen_of(found: ExternalSet, records: Iterable[Record]) -> Seen:
    """Return what a training on some images of a set has seen."""
    rows = _rows(records, "train")
    readable = [row for row in rows if row.path in found.duplicates.pixels]
    return seen_of(readable, found.index, found.duplicates)


def _rows(records: Iterable[Record], subset: str) -> list[SplitRow]:
    return [
        SplitRow(record.path, record.sha256, record.label, record.path, subset)
        for record in records
    ]


def _leak_of(whole: ExternalSet, test: list[Record], rest: list[Record]) -> str:
    """Return what an audit says of the subsets as they are."""
    rows = [*_rows(test, "test"), *_rows(rest, "train")]
    leak = judge_leak(rows, whole.index, whole.duplicates)
    return f"Of the files as they are, copies too: {leak.words}"


@dataclass
class _Faults:
    """What is wrong with the answers: counted, and the first few named."""

    predictions: Path
    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What is wrong -> where."""
    lacking: str = ""
    """Key of the answers of classes that the data lacks; empty if there are none."""
    by_numbers: Sequence[str] = ()
    """As `Answers.by_numbers`."""

    def add(self, words: str, where: str) -> None:
        self.found[words].append(where)

    def sentences(self) -> list[str]:
        """Return a part of a sentence for each kind, such as "2 x named twice: ..."."""
        return [_sentence(*one) for one in self.found.items()]

    def error(self, example: str) -> DataError:
        """Return the error that stops the command; `example` is a path of the data."""
        hint = "correct the answers, or add --partial to go on without these"
        if self.lacking:
            hint += "; those of a class that the data lacks then count as wrong"
        if self.by_numbers:
            hint += (
                "; if no class is meant, remove the column "
                f"{_several(self.by_numbers)}, and if another name, use --map"
            )
        if _NO_FILE in self.found:
            hint += f"; expected are paths such as {example!r}"
        if _OUTSIDE in self.found:
            hint += "; of logits, --logits takes the softmax"
        return DataError(
            f"{self.predictions}: {'; '.join(self.sentences())}", hint=hint
        )


def _sentence(words: str, places: Sequence[str]) -> str:
    """Return such as "2 x named twice: 'a', 'b'"; the places may be none."""
    named = ", ".join(places[:_NUM_NAMED])
    if len(places) > _NUM_NAMED:
        named += f" and {len(places) - _NUM_NAMED:,} more"
    return f"{len(places):,} x {words}{': ' if named else ''}{named}"


def _several(names: Sequence[str]) -> str:
    """Return the first few of some names."""
    shown = ", ".join(map(_shown, names[:_NUM_NAMED]))
    num_more = len(names) - _NUM_NAMED
    return f"{shown} and {num_more:,} more" if num_more > 0 else shown


class _Finder:
    """Finds files by the end of their path that a row names."""

    def __init__(self, paths: Iterable[str], root: Path, *, have_suffix: bool) -> None:
        self._by_tail: dict[str, list[str]] = defaultdict(list)
        self._root = root
        self._whole: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            shown = path if have_suffix else posixpath.splitext(path)[0]
            self._whole[shown].append(path)
            for tail in _tails(shown):
                self._by_tail[tail].append(path)

    def find(self, name: str) -> list[str]:
        """Return the files that a row may mean.

        The whole of one path must be the end of the other: `g/1.png` is
        `Testing/g/1.png`, and so is `/content/Testing/g/1.png`. A file in `Training` is
        none in a folder `Testing`, whatever the rest.
        """
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            path = posixpath.normpath(spelling) if spelling else ""
            if path in self._whole:
                return self._whole[path]
            if path in self._by_tail:
                return self._by_tail[path]
            for tail in _tails(path):
                if tail in self._whole:
                    above = path.removesuffix(tail).rstrip("/").rpartition("/")[2]
                    return [] if self._is_other(above) else self._whole[tail]
        return []

    def _is_other(self, above: str) -> bool:
        """Whether a folder above the files is another subset than that of the data."""
        ours = SUBSET_WORDS.get(self._root.name.lower())
        return SUBSET_WORDS.get(above.lower(), ours) != ours and ours is not None


def _tails(path: str) -> list[str]:
    """Return the ends of a path, the longest first.

    Example:
        >>> _tails("a/b/c")
        ['a/b/c', 'b/c', 'c']
    """
    parts = path.split("/")
    return ["/".join(parts[at:]) for at in range(len(parts))]


@dataclass(frozen=True)
class _Matched:
    """Which row answers which file."""

    row_of: dict[str, int]
    """Path -> its only row."""
    repeated: frozenset[str]
    """Paths with several rows."""


def _match(
    answers: Answers, whole: ExternalSet, tested: ExternalSet, faults: _Faults
) -> _Matched:
    """Return the rows of the files. Of equal names, those of the test subset count."""
    in_test = {record.path for record in tested.index.records}
    others = [one.path for one in whole.index.records if one.path not in in_test]
    finders = [
        _Finder(paths, whole.index.root, have_suffix=answers.have_suffix)
        for paths in (in_test, others)
    ]
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(answers.names):
        files = next(filter(None, (finder.find(name) for finder in finders)), [])
        if len(files) == 1:
            rows[files[0]].append(row)
        elif files:
            faults.add("a name that several files have", _where(answers, row))
        else:
            faults.add(_NO_FILE, _where(answers, row))
    repeated = frozenset(path for path in in_test if len(rows[path]) > 1)
    for path in sorted(repeated):
        faults.add("a file with several rows", _shown(path))
    return _Matched(
        {path: rows[path][0] for path in in_test if len(rows[path]) == 1}, repeated
    )


@dataclass(frozen=True)
class _Checked:
    """The answers as probabilities of the classes of the figures."""

    probs: NDArray[np.float64]
    """As `round_probs` returns them; equal for all classes where there is a reason."""
    reasons: Sequence[str]
    """Why an answer cannot be used; empty for the others."""


def _checked(answers: Answers, classes: ClassMap, *, logits: bool) -> _Checked:
    num, num_classes = len(answers.names), len(answers.classes)
    if answers.numbers is None:
        assert answers.predicted is not None
        place_of = {name: place for place, name in enumerate(answers.classes)}
        places = [place_of.get(name, -1) for name in answers.predicted]
        probs = np.eye(num_classes + 1)[places][:, :num_classes]
        reasons = ["" if place >= 0 else "an empty answer" for place in places]
    else:
        probs = answers.numbers
        if logits:
            with np.errstate(invalid="ignore"):  # of infinite numbers
                probs = np.exp(probs - probs.max(axis=1, keepdims=True))
                probs /= probs.sum(axis=1, keepdims=True)
        likeliest = _likeliest(answers)
        reasons = [
            _why_not(row, likeliest[place]) for place, row in enumerate(probs.tolist())
        ]
    is_good = np.array([not reason for reason in reasons])
    usable = np.full((num, num_classes), 1 / num_classes)
    usable[is_good] = np.clip(probs[is_good], 0, 1)
    return _Checked(round_probs(classes.probs_of(usable)), reasons)


def _likeliest(answers: Answers) -> list[int | None]:
    """Return the class that each row calls predicted; `None` where it names none."""
    if answers.predicted is None:
        return [None] * len(answers.names)
    match = match_classes(answers.predicted, answers.classes)
    place_of = {name: answers.classes.index(ours) for name, ours in match.pairs}
    return [place_of.get(name) for name in answers.predicted]


def _why_not(probs: Sequence[float], likeliest: int | None) -> str:
    """Return why probabilities cannot be used; empty if they can."""
    if not all(map(math.isfinite, probs)):
        return "an answer that is no number"
    if not all(-_ROUNDED <= prob <= 1 + _ROUNDED for prob in probs):
        return _OUTSIDE
    if abs(sum(probs) - 1) > ROUNDING * len(probs):
        return "probabilities that do not add up to 1"
    if likeliest is not None and probs[likeliest] < max(probs):
        return "a predicted class that is not the likeliest one"
    return ""


def _table(
    matched: _Matched,
    checked: _Checked,
    tested: ExternalSet,
    classes: ClassMap,
    answers: Answers,
    faults: _Faults,
) -> Predictions | None:
    """Return the answers to the images that are tested; `None` if there is none."""
    no_column = f"a file of a class without a column ({_several(classes.unknown)})"
    absent = [pair.model for pair in classes.pairs if pair.data is None]
    if absent:
        # Named even where no image was given one: its column holds probability.
        faults.lacking = f"a class that the data lacks ({_several(absent)})"
        faults.by_numbers = [one for one in answers.by_numbers if one in absent]
        faults.found[faults.lacking] = []
    given = [classes.classes[place] for place in checked.probs.argmax(axis=1)]
    records = []
    for record in tested.records:
        if record.label in classes.unknown:
            faults.add(no_column, _shown(record.path))
            continue
        if record.path in matched.repeated:
            continue
        row = matched.row_of.get(record.path)
        if row is None:
            faults.add("a file without a row", _shown(record.path))
        elif why := checked.reasons[row]:
            faults.add(why, _where(answers, row))
        else:
            records.append(record)
            if given[row] in absent:
                faults.add(faults.lacking, _where(answers, row))
    if not records:
        return None
    return table_of(
        tested,
        records,
        checked.probs[[matched.row_of[record.path] for record in records]],
        classes,
        has_probs=answers.numbers is not None,
    )


def _notes(
    table: Predictions,
    matched: _Matched,
    checked: _Checked,
    tested: ExternalSet,
    faults: _Faults,
) -> list[str]:
    """Return what the figures are of, and the accuracy that others would report."""
    notes = []
    left_out = [
        _sentence(*one) for one in faults.found.items() if one[0] != faults.lacking
    ]
    if left_out:
        notes.append(f"Left out with --partial: {'; '.join(left_out)}.")
    if faults.lacking:
        wrong = _sentence(faults.lacking, faults.found[faults.lacking])
        notes.append(f"Counted as wrong with --partial: {wrong}.")
    num, num_tested = len(table.paths), len(tested.records)
    if num < num_tested:
        notes.append(
            f"The figures are of {num:,} of the {counted(num_tested, 'image')} that "
            "can be tested."
        )
    if not table.has_probs:
        notes.append(
            "The answers are classes without probabilities: there is no log loss, "
            "Brier score, calibration error or AUROC, and no curve."
        )
    answered = [
        (matched.row_of[record.path], table.classes.index(record.label))
        for record in tested.index.records
        if record.path in matched.row_of and record.label in table.classes
    ]
    usable = [(row, label) for row, label in answered if not checked.reasons[row]]
    if len(usable) > num:
        rows, labels = np.array(usable).T
        num_right = int((checked.probs[rows].argmax(axis=1) == labels).sum())
        notes.append(
            f"Counted file by file, copies too, {num_right:,} of {len(usable):,} "
            f"answers are right ({percent(num_right / len(usable))}), which is what "
            "other programs report."
        )
    return notes


def _where(answers: Answers, row: int) -> str:
    return f"{_shown(answers.names[row])} ({answers.places[row]})"


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else f"...{value[-77:]}")
