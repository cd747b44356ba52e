"""The page of an evaluation on another set: `external.html`.

Nothing is measured here. Numbers come from `external.json`; `predictions.csv` and
`images.csv` are only sorted, for the pictures. The figures for images that training has
not seen come first and are the largest: they are what the model is worth elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.sets import root_of
from tumorlens.evaluation.external_files import SEEN, read_evaluation
from tumorlens.files import write_text
from tumorlens.report.measured import (
    DECIMALS,
    PERCENTAGES,
    bins_with_images,
    draw_measures,
    most_confident_mistakes,
    shown_measures,
)
from tumorlens.report.page import (
    Picture,
    WrittenPage,
    load_picture,
    render_page,
)
from tumorlens.runs.external import PARTS
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tumorlens.evaluation.external_files import Evaluation
    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.external import ExternalMetrics
    from tumorlens.runs.measures import Measures

PAGE = "external.html"
"""Name of the page, beside `external.json`."""

MAX_SEEN = 12
"""Number of seen images that are shown as pictures."""

_TITLES = {"new": "New images", "seen": "Seen in training", "all": "All images"}


@dataclass(frozen=True)
class _Verdict:
    heading: str
    style: str
    """CSS class of the card."""


@dataclass(frozen=True)
class _Part:
    name: str
    title: str
    measures: Measures | None
    why_not: str
    """Why there are no measures; empty where there are."""


@dataclass(frozen=True)
class _SeenImage:
    picture: Picture
    label: str
    predicted: str
    how: str
    """What of it training has seen, in words."""


def write_external_page(folder: Path, *, data: Path | None) -> WrittenPage:
    """Write the page of an evaluation on another set into its folder.

    Args:
        folder: A folder with `external.json`, `predictions.csv` and `images.csv`.
        data: The labelled folder or table; `None` if it is not known. Images that are
            missing are named on the page instead of shown.

    Returns:
        The path of the page, and the pictures that it lacks.

    Raises:
        RunError: A file of the folder is missing or damaged, or they are of different
            evaluations.
        DataError: `images.csv` is no table, or the page cannot be written.
    """
    found = read_evaluation(folder)
    metrics, root = found.metrics, root_of(data) if data else None
    headline = metrics.headline
    is_new = metrics.new is not None
    seen_images = _seen_images(found, root)
    mistakes, num_mistakes = most_confident_mistakes(
        found.rows({"new"} if is_new else {"not-known", *SEEN}), root
    )
    measured = _TITLES["new" if is_new else "all"].lower()
    subtitle = (
        f"{metrics.model} · {metrics.name} · {measured} · "
        f"{counted(headline.num_images, 'image')}"
    )
    warning = "" if is_new else metrics.words
    parts = _parts(metrics)
    page = render_page(
        "external.html.j2",
        {
            "found": metrics,
            "counts": metrics.counts,
            "verdict": _verdict(metrics),
            "parts": parts,
            "measured_parts": [part for part in parts if part.measures],
            "headline": headline,
            "measured": measured,
            "warning": warning,
            "percentages": (("Accuracy", "accuracy"), *PERCENTAGES),
            "decimals": [
                one for one in DECIMALS if one[1] not in headline.not_measured
            ],
            "has_probs": found.table.has_probs,
            "sources": list(metrics.all.by_source),
            "figures": shown_measures(
                headline, draw_measures(headline, subtitle, warning)
            ),
            "bins": bins_with_images(headline),
            "mistakes": mistakes,
            "num_mistakes": num_mistakes,
            "seen_images": seen_images,
        },
    )
    path = folder / PAGE
    write_text(path, page)
    pictures = [one.picture for one in mistakes]
    pictures += [one.picture for one in seen_images]
    missing = [one.why_not for one in pictures if one.why_not]
    return WrittenPage(path, len(missing), missing[0] if missing else "")


def _verdict(metrics: ExternalMetrics) -> _Verdict:
    counts = metrics.counts
    if not metrics.is_seen_known:
        return _Verdict("What training has seen is not known", "open")
    if not counts.new:
        return _Verdict("✕ Training has seen everything: nothing is new", "bad")
    if counts.new < counts.tested:
        new = counted(counts.new, "new image")
        return _Verdict(f"Believe the figures for the {new} only", "open")
    # No tick: where patients are not known, only pictures were looked up.
    return _Verdict("No image was found among those of training", "plain")


def _parts(metrics: ExternalMetrics) -> list[_Part]:
    """Return new, seen and all, with the reason where there are no measures."""
    why_not = "not known"
    if metrics.is_seen_known:
        why_not = "nothing is new" if metrics.new is None else "nothing was seen"
    parts = {name: getattr(metrics, name) for name in PARTS}
    return [
        _Part(name, _TITLES[name], measures, "" if measures else why_not)
        for name, measures in parts.items()
    ]


def _seen_images(found: Evaluation, root: Path | None) -> list[_SeenImage]:
    """Return some images that training has seen, of every class where they fit."""
    shown = []
    for state, how in zip(SEEN, ("picture seen", "patient or head seen"), strict=True):
        table = found.rows({state})
        predicted = table.predicted
        shown += [
            (table.paths[row], table.classes[table.labels[row]], predicted[row], how)
            for row in _by_turns(table)
        ]
    return [
        _SeenImage(load_picture(root, path), label, found.table.classes[predicted], how)
        for path, label, predicted, how in shown[:MAX_SEEN]
    ]


def _by_turns(table: Predictions) -> list[int]:
    """Return all rows, the classes taking turns."""
    rows_of: Sequence[list[int]] = [
        np.flatnonzero(table.labels == number).tolist()
        for number in range(len(table.classes))
    ]
    return [row for turn in zip_longest(*rows_of) for row in turn if row is not None]
