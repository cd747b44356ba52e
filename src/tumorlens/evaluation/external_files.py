"""The files of an evaluation on another set: their folder, writing and reading them.

`evaluate --on` and `evaluate --predictions` write `external.json`, `predictions.csv`
and `images.csv` into one folder; pages and comparisons read them back together.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.index import check_outside
from tumorlens.data.tables import read_table
from tumorlens.errors import DataError, RunError
from tumorlens.evaluation.predictions import read_predictions, write_predictions
from tumorlens.files import check_folder, is_ours, write_model, write_text
from tumorlens.runs.external import (
    FILE,
    NEW,
    SEEN_PATIENT,
    SEEN_PICTURE,
    read_external_metrics,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable
    from pathlib import Path

    from tumorlens.evaluation.external import ExternalSet, SeenImages
    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.external import ExternalMetrics

SEEN = (SEEN_PICTURE, SEEN_PATIENT)
NOT_KNOWN = "not-known"
"""State of every tested image where it is not known what training has seen."""

_LEFT_OUT = "left-out"
_BEFORE_LAST = ("predictions.csv", "images.csv")
"""Files that are written before `external.json`."""

_STATES = (NEW, *SEEN, NOT_KNOWN, _LEFT_OUT)
_HINT = "evaluate the model on the set again"


@dataclass(frozen=True)
class Evaluation:
    """A model on another set."""

    metrics: ExternalMetrics
    table: Predictions
    """The answers to the images that were tested."""
    states: tuple[str, ...]
    """State of each image of the table, not `left-out`."""
    contents: tuple[str, ...]
    """SHA-256 of the file of each image of the table; empty texts where an earlier
    version has written it."""

    def rows(self, states: Collection[str]) -> Predictions:
        """Return the answers to the images in some states; the table may be empty."""
        places = [row for row, one in enumerate(self.states) if one in states]
        return self.table.rows(np.array(places, dtype=np.int64))


def check_place(
    out: Path, *, images: Iterable[Path], model: str, data_sha256: str
) -> None:
    """Refuse a folder for the results in which something else is.

    An earlier evaluation of a model of this name on the same images is replaced.

    Args:
        out: The folder.
        images: Sets of images, among which nothing may be written.
        model: Name of the model, see `ExternalMetrics.model`.
        data_sha256: Digest of the images, likewise.

    Raises:
        DataError: It is somebody's, lies among images, or cannot be written.
    """
    if out.exists() and not _is_earlier(out, model, data_sha256):
        raise DataError(
            f"{out} is there, and is no evaluation of {model} on these images",
            hint="name another place: --out FOLDER, or --name NAME in a run",
        )
    for place in images:
        check_outside(out, place)
    check_folder(out)


def _is_earlier(out: Path, model: str, data_sha256: str) -> bool:
    if not out.is_dir():
        return False
    entries = list(out.iterdir())
    others = {path.name for path in entries if not is_ours(path)}
    # Locked by us, and without the file that is written last: its process was killed.
    is_unfinished = len(others) < len(entries) and others <= set(_BEFORE_LAST)
    if not others or is_unfinished:
        return True
    try:
        found = read_external_metrics(out)
    except RunError:
        return False
    return (found.model, found.data_sha256) == (model, data_sha256)


def write_external(
    out: Path,
    metrics: ExternalMetrics,
    table: Predictions,
    found: ExternalSet,
    seen: SeenImages | None,
) -> None:
    """Write `predictions.csv`, `images.csv` and last `external.json` into a folder.

    Raises what `files.write_text` raises.
    """
    predictions, images = (out / name for name in _BEFORE_LAST)
    write_predictions(predictions, table)
    _write_images(images, table, found, seen, metrics.unknown_classes)
    write_model(out / FILE, metrics)


def _write_images(
    path: Path,
    table: Predictions,
    found: ExternalSet,
    seen: SeenImages | None,
    unknown_classes: Container[str],
) -> None:
    """Write what became of each file as CSV: path, label, state, reason and sha256."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["path", "label", "state", "reason", "sha256"])
    answered = set(table.paths)
    for record in found.index.records:
        reason = found.left_out.get(record.path, "")
        if record.label in unknown_classes and not reason:
            reason = "the model does not know this class"
        if record.path not in answered and not reason:
            reason = "no answer"
        state = NOT_KNOWN if seen is None else seen.state_of(record.path)
        if reason:
            state = _LEFT_OUT
        writer.writerow([record.path, record.label, state, reason, record.sha256])
    write_text(path, text.getvalue())


def read_evaluation(folder: Path) -> Evaluation:
    """Return what an evaluation on another set has written.

    Raises:
        DataError: `images.csv` is missing or no table.
        RunError: Another file is missing or damaged, or they are of different
            evaluations.
    """
    metrics = read_external_metrics(folder)
    table = read_predictions(folder / "predictions.csv")
    path = folder / "images.csv"
    state_of, content_of = {}, {}
    for row in read_table(path, required=("path", "state"), optional=("sha256",)):
        state = row.fields["state"]
        if state not in _STATES:
            raise RunError(
                f"{row.place}: expected {', '.join(_STATES)} as state, got "
                f"{state[:80]!r}",
                hint=_HINT,
            )
        state_of[row.fields["path"]] = state
        content_of[row.fields["path"]] = row.fields["sha256"]
    states = tuple(state_of.get(image, _LEFT_OUT) for image in table.paths)
    found = Counter(states)
    counts = metrics.counts
    expected = Counter({NOT_KNOWN: counts.tested})
    if metrics.is_seen_known:
        numbers = (counts.new, counts.seen_pictures, counts.seen_patients)
        expected = Counter(dict(zip((NEW, *SEEN), numbers, strict=True)))
    if found != expected:
        raise RunError(
            f"{path} and predictions.csv are not those of external.json: expected "
            f"{_in_words(expected)}, got {_in_words(found)}",
            hint=_HINT,
        )
    contents = tuple(content_of[image] for image in table.paths)
    return Evaluation(metrics, table, states, contents)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[one]} {one}" for one in _STATES if counts[one])
