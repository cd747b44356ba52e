"""Images of another set: which of them training has seen, and figures with and without.

An `ExternalSet` is a labelled folder or table, ready to be tested on: copies within it
count once. `external_metrics` sets answers to it beside what a training has seen,
whoever gave the answers: a run, an artefact or another framework.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tumorlens.data.class_names import match_classes
from tumorlens.data.duplicates import find_duplicates, group_records, part_of
from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits
from tumorlens.data.near_duplicates import ORIENTATIONS
from tumorlens.data.seen import Pictures, Seen
from tumorlens.data.split import (
    CONFLICT,
    COPY,
    UNREADABLE,
    reasons_to_leave_out,
)
from tumorlens.errors import ConfigError, DataError, did_you_mean
from tumorlens.evaluation.predictions import Predictions
from tumorlens.evaluation.table_measures import measures_of
from tumorlens.runs.external import (
    NEW,
    SEEN_PATIENT,
    SEEN_PICTURE,
    ClassPair,
    ExternalCounts,
    ExternalMetrics,
)
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Index, Record
    from tumorlens.runs.progress import Progress

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Evaluated(NamedTuple):
    """What an evaluation on another set has found, and where it is."""

    metrics: ExternalMetrics
    folder: Path


@dataclass(frozen=True)
class ExternalSet:
    """A labelled set whose copies are known."""

    data: Path
    index: Index
    duplicates: Duplicates
    groups: dict[str, str]
    """Path -> first path of its group, for every record."""
    left_out: dict[str, str]
    """Path -> reason, for what cannot be read, copies and contradicting labels."""

    @property
    def records(self) -> list[Record]:
        """The records that are tested, each a different picture."""
        return [one for one in self.index.records if one.path not in self.left_out]

    def part(self, records: Sequence[Record]) -> ExternalSet:
        """Return some files as a set of their own, in groups that the others join too.

        Raises:
            DataError: No image is left.
        """
        index = replace(self.index, records=tuple(records))
        return _checked_set(
            self.data,
            index,
            part_of(self.duplicates, index),
            {record.path: self.groups[record.path] for record in records},
        )


@dataclass(frozen=True)
class SeenImages:
    """Which images of a set training has seen."""

    turns: dict[str, str]
    """Path of an image whose picture, or a slice next to it, was seen -> the turn in
    which it was found, one of `ORIENTATIONS`."""
    relatives: frozenset[str]
    """Paths of the other images of a group that training has seen."""
    by_key_only: frozenset[str]
    """Those of a group that training knows by a patient's key alone."""

    def state_of(self, path: str) -> str:
        """Return `new`, `seen-picture` or `seen-patient`."""
        if path in self.turns:
            return SEEN_PICTURE
        return SEEN_PATIENT if path in self.relatives else NEW


@dataclass(frozen=True)
class ClassMap:
    """How the classes of a model become those of the data."""

    classes: tuple[str, ...]
    """Those of the figures: of the data, then those that only the model has."""
    pairs: tuple[ClassPair, ...]
    """One for each class of the model, in its order."""
    unknown: tuple[str, ...]
    """Classes of the data that the model does not know."""

    def probs_of(self, probs: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return (N, classes) for the model's (N, C): those of one name are added."""
        found = np.zeros((len(probs), len(self.classes)))
        for column, pair in enumerate(self.pairs):
            place = self.classes.index(pair.data or pair.model)
            found[:, place] += probs[:, column]
        return found


def read_external(
    data: Path,
    index: Index,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> ExternalSet:
    """Return a labelled folder or table, each file of it decoded once.

    Args:
        data: The folder or table.
        index: Its files.
        limits: Limits above which a file is refused.
        progress: Called with files done and files in all.

    Raises:
        DataError: No image is left.
    """
    duplicates = find_duplicates(index, limits=limits, progress=progress)
    return _checked_set(data, index, duplicates, group_records(index, duplicates))


def _checked_set(
    data: Path, index: Index, duplicates: Duplicates, groups: dict[str, str]
) -> ExternalSet:
    left_out = reasons_to_leave_out(index.records, duplicates)
    found = ExternalSet(data, index, duplicates, groups, left_out)
    if not found.records:
        raise DataError(
            f"no image of {data} can be tested: "
            f"{next(iter(found.left_out.values()), 'it is empty')}",
            hint=f"see what is wrong with each: tumorlens audit {data} --out audit",
        )
    return found


def find_seen(found: ExternalSet, seen: Sequence[Seen]) -> SeenImages:
    """Return which images of a set one of several trainings has seen.

    Args:
        found: The set.
        seen: What each training has seen.
    """
    duplicates = found.duplicates
    paths = list(duplicates.pixels)
    pictures = Pictures(
        np.array([duplicates.thumbnails[path] for path in paths], np.uint8),
        [duplicates.pixels[path] for path in paths],
    )
    patient_of = {record.path: record.patient for record in found.index.records}
    turns: dict[str, str] = {}
    is_known = np.zeros(len(paths), bool)
    for training in seen:
        match = training.look_up(pictures)
        for place in np.flatnonzero(match.is_seen):
            turns.setdefault(paths[place], ORIENTATIONS[match.orientation[place]])
        is_known |= training.knows_patient([patient_of[path] for path in paths])
    by_picture = {found.groups[path] for path in turns}
    by_key = {
        found.groups[path] for path, one in zip(paths, is_known, strict=True) if one
    }
    others = [path for path in paths if path not in turns]
    return SeenImages(
        turns=turns,
        relatives=frozenset(
            path for path in others if found.groups[path] in by_picture | by_key
        ),
        by_key_only=frozenset(
            path for path in others if found.groups[path] in by_key - by_picture
        ),
    )


def map_classes(
    model: Sequence[str], data: Sequence[str], given: Iterable[str] = ()
) -> ClassMap:
    """Return how the classes of a model become those of the data.

    Args:
        model: Classes of the model.
        data: Classes of the data.
        given: Assignments such as `glioma,pituitary=tumor`, of the model's classes to
            one of the data; the others are matched by name.

    Raises:
        ConfigError: An assignment names an unknown class or one twice, or no class is
            matched.
    """
    target: dict[str, str] = {}
    for assignment in given:
        left, sign, right = assignment.partition("=")
        names = [name.strip() for name in left.split(",")]
        if not sign or not all(names) or not right.strip():
            raise ConfigError(
                f"expected --map FROM=TO, got {assignment!r}",
                hint="for example --map glioma,meningioma,pituitary=yes --map "
                "no_tumor=no",
            )
        _check_known(right.strip(), data, "the data")
        for name in names:
            _check_known(name, model, "the model")
            if name in target:
                raise ConfigError(
                    f"--map gives {name!r} twice", hint="name each class once"
                )
            target[name] = right.strip()
    taken = set(target.values())
    free = match_classes(
        [name for name in model if name not in target],
        [name for name in data if name not in taken],
    )
    target |= dict(free.pairs)
    if not target:
        raise ConfigError(
            f"no class of the data, {', '.join(data)}, is one of the model, "
            f"{', '.join(model)}",
            hint="say which is which: --map FROM=TO, FROM of the model and TO of the "
            "data",
        )
    only_model = [name for name in model if name not in target]
    for name in only_model:
        if name in target.values():
            raise ConfigError(
                f"--map gives other classes the name {name!r}, which is also one of "
                "the model",
                hint=f"map it too: --map {name}=...",
            )
    known = set(target.values())
    return ClassMap(
        classes=(*(name for name in data if name in known), *only_model),
        pairs=tuple(ClassPair(model=name, data=target.get(name)) for name in model),
        unknown=tuple(name for name in data if name not in known),
    )


def check_several(classes: ClassMap) -> None:
    """Refuse classes of which the data and the model share a single one.

    Raises:
        ConfigError: They do: every figure would be of images of one class.
    """
    shared = {pair.data: pair.model for pair in classes.pairs if pair.data is not None}
    if len(shared) > 1:
        return
    (data,) = shared
    model = [pair.model for pair in classes.pairs if pair.data == data]
    others = [pair.model for pair in classes.pairs if pair.data is None]
    rest = classes.unknown
    if others and len(rest) == 1:
        assignment = shlex.quote(f"{','.join(others)}={rest[0]}")
        hint = f"if the others are {rest[0]}, add --map {assignment}"
    else:
        words = " ".join(f"--map {shlex.quote(f'FROM={name}')}" for name in rest)
        hint = f"say what the others are: {words}, FROM of the model"
        if others:
            hint += f": {', '.join(others)}"
    raise ConfigError(
        f"of the classes of the data only {data} is one of the model "
        f"({', '.join(model)}), and {', '.join(rest)} "
        f"{'is' if len(rest) == 1 else 'are'} none",
        hint=hint,
    )


def check_new(
    found: ExternalSet, paths: Sequence[str], seen: SeenImages | None, *, hint: str
) -> None:
    """Refuse a set of which training has seen every image that is tested.

    Args:
        found: The set.
        paths: The images that are tested.
        seen: What training has seen of it; `None` if that is not known.
        hint: What to do.

    Raises:
        DataError: Nothing is new.
    """
    if seen is None or any(seen.state_of(path) == NEW for path in paths):
        return
    num_by_key = len(seen.by_key_only.intersection(paths))
    words = ""
    if num_by_key:
        words = f", {num_by_key:,} of them only by a patient's key that is in both"
        hint += (
            "; if each set numbers its patients by itself, they are other people: give "
            "the keys of this set a prefix in its metadata.csv, or leave them out by "
            "--metadata none (each image is then a group, and intervals too narrow)"
        )
    which = "the one image" if len(paths) == 1 else f"all {len(paths):,} images"
    raise DataError(
        f"no image of {found.data} is new: training has seen {which} that can be "
        f"tested{words}",
        hint=hint,
    )


def _check_known(name: str, names: Sequence[str], whose: str) -> None:
    if name not in names:
        raise ConfigError(
            f"--map names {name!r}, which is no class of {whose}",
            hint=did_you_mean(name, names),
        )


def table_of(
    found: ExternalSet,
    records: Sequence[Record],
    probs: NDArray[np.float64],
    classes: ClassMap,
    *,
    has_probs: bool = True,
) -> Predictions:
    """Return answers as a table of predictions.

    Args:
        found: The set.
        records: Those of its images that were answered.
        probs: As from `round_probs`, shape (N, classes).
        classes: The classes of the columns.
        has_probs: Whether they are probabilities, and not only predicted classes.
    """
    return Predictions(
        classes=classes.classes,
        paths=tuple(record.path for record in records),
        labels=np.array([classes.classes.index(one.label) for one in records]),
        probs=probs,
        groups=tuple(found.groups[record.path] for record in records),
        sources=tuple(record.source or "" for record in records),
        folds=(None,) * len(records),
        has_probs=has_probs,
    )


def external_metrics(
    table: Predictions,
    found: ExternalSet,
    seen: SeenImages | None,
    classes: ClassMap,
    *,
    name: str,
    model: str,
    model_sha256: str,
    notes: Sequence[str] = (),
) -> ExternalMetrics:
    """Return the figures on new images, on seen ones and on all.

    Args:
        table: The answers to `found.records` whose class the model knows.
        found: The set.
        seen: What training has seen of it; `None` if that is not known.
        classes: How the model's classes became those of the table.
        name: Name of the evaluation.
        model: Name of the model.
        model_sha256: Digest of the model.
        notes: Further sentences.
    """
    unknown = Counter(
        record.label for record in found.records if record.label in classes.unknown
    )
    states = Counter(seen.state_of(path) for path in table.paths) if seen else {}
    is_seen = np.array(
        [seen is not None and seen.state_of(path) != NEW for path in table.paths]
    )

    def num_left_out(reason: str) -> int:
        return sum(why.startswith(reason) for why in found.left_out.values())

    counts = ExternalCounts(
        files=len(found.index.records),
        unreadable=num_left_out(UNREADABLE),
        copies=num_left_out(COPY),
        conflicting=num_left_out(CONFLICT),
        unanswered=len(found.records) - len(table.paths),
        tested=len(table.paths),
        seen_pictures=states.get(SEEN_PICTURE, 0),
        seen_patients=states.get(SEEN_PATIENT, 0),
        seen_by_key_only=len(seen.by_key_only.intersection(table.paths)) if seen else 0,
        new=states.get(NEW, 0),
    )
    has_sources = any(table.sources)
    parts = {}
    for part, chosen in (("seen", is_seen), ("new", ~is_seen)):
        rows = table.rows(np.flatnonzero(chosen))
        parts[part] = (
            measures_of(rows, has_sources=has_sources) if seen and rows.paths else None
        )
    return ExternalMetrics(
        name=name,
        data=found.data.resolve().name,
        data_sha256=found.index.digest,
        images_sha256=found.index.images_digest,
        model=model,
        model_sha256=model_sha256,
        classes=classes.pairs,
        unknown_classes=dict(unknown),
        counts=counts,
        is_seen_known=seen is not None,
        orientations=Counter(
            seen.turns[path] for path in table.paths if seen and path in seen.turns
        ),
        all=measures_of(table),
        notes=(*notes, *_notes(table, is_seen, seen, classes, unknown, counts)),
        **parts,
    )


def evaluation_name(name: str | None, data: Path) -> str:
    """Return the name of an evaluation: the given one, or else that of the data.

    Raises:
        ConfigError: The given one is no name of a folder.
    """
    if name is None:
        stem = data.resolve().stem if data.is_file() else data.resolve().name
        return _NOT_IN_NAMES.sub("-", stem).lstrip("._-")[:80] or "data"
    if _NOT_IN_NAMES.search(name) or name.startswith((".", "_", "-")) or not name:
        raise ConfigError(
            f"expected letters, digits, '.', '_' and '-' as --name, got {name!r}",
            hint="it becomes the name of a folder",
        )
    return name[:80]


def _notes(
    table: Predictions,
    is_seen: NDArray[np.bool_],
    seen: SeenImages | None,
    classes: ClassMap,
    unknown: Counter[str],
    counts: ExternalCounts,
) -> list[str]:
    """Return what the figures do not say, one sentence each."""
    notes = []
    renamed = [
        f"{pair.model} as {pair.data}"
        for pair in classes.pairs
        if pair.data is not None and pair.data != pair.model
    ]
    if renamed:
        notes.append(f"Classes by another name: {', '.join(renamed)}.")
    absent = [pair.model for pair in classes.pairs if pair.data is None]
    if absent:
        notes.append(
            f"The data has no {', '.join(absent)}: an image that is given such a class "
            "counts as wrong, and there is no recall of it."
        )
    if unknown:
        words = ", ".join(
            f"{counted(n, 'image')} of {name}" for name, n in unknown.items()
        )
        notes.append(f"The model does not know {words}: they are in no figure.")
    left_out = {
        "further file of a picture that counts once": counts.copies,
        "file whose copies have another label": counts.conflicting,
        "file that cannot be read": counts.unreadable,
    }
    if any(left_out.values()):
        words = ", ".join(
            f"{number:,} x {what}" for what, number in left_out.items() if number
        )
        notes.append(f"In no figure: {words}.")
    if seen:
        labels = np.array(table.classes)[table.labels]
        left = set(labels[~is_seen].tolist())
        gone = sorted(set(labels.tolist()) - left)
        if gone:
            notes.append(f"Nothing new is left of {', '.join(gone)}.")
            predicted = np.array(table.classes)[table.predicted[~is_seen]]
            given = [name for name in gone if name in predicted]
            if given:
                notes.append(
                    f"Some new images are taken for {', '.join(given)}, so macro F1 on "
                    "new images counts it as 0, as scikit-learn does; balanced "
                    "accuracy leaves it out."
                )
        if counts.seen_by_key_only:
            notes.append(
                f"{counted(counts.seen_by_key_only, 'image')} counted as seen only "
                "because a patient has the same key in the training. If each set "
                "numbers its patients by itself, they are other people: give the keys "
                "of this set a prefix in its metadata.csv. (Without the keys, by "
                "--metadata none, each image would be a group, and intervals too "
                "narrow.)"
            )
    return notes
