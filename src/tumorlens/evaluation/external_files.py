"""The files of an evaluation on another set, read back together.

`evaluate --on` and `evaluate --predictions` write `external.json`, `predictions.csv`
and `images.csv` into one folder; pages and comparisons read them here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.tables import read_table
from tumorlens.errors import RunError
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.runs.external import read_external_metrics

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.external import ExternalMetrics

SEEN = ("seen-picture", "seen-patient")
"""States of an image that training has seen: itself, or another one of its group."""

_STATES = ("new", *SEEN, "not-known", "left-out")
_HINT = "evaluate the model on the set again"


@dataclass(frozen=True)
class Evaluation:
    """A model on another set."""

    metrics: ExternalMetrics
    table: Predictions
    """The answers to the images that were tested."""
    states: tuple[str, ...]
    """State of each image of the table: new, seen-picture, seen-patient, not-known."""

    def rows(self, states: Collection[str]) -> Predictions:
        """Return the answers to the images in some states; the table may be empty."""
        places = [row for row, one in enumerate(self.states) if one in states]
        return self.table.rows(np.array(places, dtype=np.int64))


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
    state_of = {}
    for row in read_table(path, required=("path", "state")):
        state = row.fields["state"]
        if state not in _STATES:
            raise RunError(
                f"{row.place}: expected {', '.join(_STATES)} as state, got "
                f"{state[:80]!r}",
                hint=_HINT,
            )
        state_of[row.fields["path"]] = state
    states = tuple(state_of.get(image, "left-out") for image in table.paths)
    found = Counter(states)
    counts = metrics.counts
    expected = Counter({"not-known": counts.tested})
    if metrics.is_seen_known:
        numbers = (counts.new, counts.seen_pictures, counts.seen_patients)
        expected = Counter(dict(zip(("new", *SEEN), numbers, strict=True)))
    if found != expected:
        raise RunError(
            f"{path} and predictions.csv are not those of external.json: expected "
            f"{_in_words(expected)}, got {_in_words(found)}",
            hint=_HINT,
        )
    return Evaluation(metrics, table, states)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[one]} {one}" for one in _STATES if counts[one])
