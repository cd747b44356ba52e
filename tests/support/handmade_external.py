"""Evaluations on another set, made by hand: answers and states are known."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np

from support.handmade_runs import answers
from tumorlens.evaluation.predictions import Predictions, write_predictions
from tumorlens.evaluation.table_measures import measures_of
from tumorlens.files import write_model
from tumorlens.runs.external import ClassPair, ExternalCounts, ExternalMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SHA256 = "5e" * 32
IN_SHORT = {
    "n": "new",
    "p": "seen-picture",
    "s": "seen-patient",
    "?": "not-known",
}


def write_evaluation(
    folder: Path,
    table: Predictions | Sequence[int],
    states: str,
    *,
    left_out: Mapping[str, str] = {},
    contents: Sequence[str] = (),
    **changes: Any,
) -> ExternalMetrics:
    """Write the files of an evaluation.

    Args:
        folder: Where to.
        table: The answers, or right (1) and wrong (0) as `answers` takes them.
        states: A letter for each image, one of `IN_SHORT`.
        left_out: Path -> reason, of further files.
        contents: Digest of each image; none as in files of earlier versions.
        changes: Fields of `external.json` that are replaced.
    """
    if not isinstance(table, Predictions):
        table = answers(table)
    named = [IN_SHORT[letter] for letter in states]
    assert len(named) == len(table.paths)
    is_known = "not-known" not in named
    parts = {
        part: measures_of(table.rows(places)) if is_known and places.size else None
        for part, places in (
            ("new", np.flatnonzero(np.array(named) == "new")),
            ("seen", np.flatnonzero(np.array(named) != "new")),
        )
    }
    content: dict[str, Any] = {
        "name": "hospital-b",
        "data": "set B",
        "data_sha256": SHA256,
        "model": "first",
        "model_sha256": "a0" * 32,
        "classes": tuple(ClassPair(model=one, data=one) for one in table.classes),
        "unknown_classes": {},
        "counts": ExternalCounts(
            files=len(named) + len(left_out),
            unreadable=0,
            copies=len(left_out),
            conflicting=0,
            unanswered=0,
            tested=len(named),
            seen_pictures=named.count("seen-picture"),
            seen_patients=named.count("seen-patient"),
            new=named.count("new"),
        ),
        "is_seen_known": is_known,
        "orientations": {},
        "all": measures_of(table),
        "notes": (),
        **parts,
        **changes,
    }
    metrics = ExternalMetrics.model_validate(content)
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / "predictions.csv", table)
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(
            ["path", "label", "state", "reason", *["sha256"][: bool(contents)]]
        )
        labels = [table.classes[label] for label in table.labels]
        rows = zip(table.paths, labels, named, strict=True)
        for number, (path, label, state) in enumerate(rows):
            writer.writerow([path, label, state, "", *contents[number : number + 1]])
        for path, reason in left_out.items():
            end = [""] * bool(contents)
            writer.writerow([path, labels[0], "left-out", reason, *end])
    write_model(folder / "external.json", metrics)
    return metrics
