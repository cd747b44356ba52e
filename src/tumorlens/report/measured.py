"""Measures of a table of predictions, as the pages that have such measures show them.

Names of the measures, figures with their text alternatives, and the most confident
mistakes. Nothing is measured: the table of predictions is only sorted. The tables of a
page are in `templates/measured.html.j2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits
from tumorlens.report.drawing import Drawing, Heading
from tumorlens.report.page import Picture, load_picture, write_percent
from tumorlens.report.run_figures import draw_calibration, draw_confusion, draw_roc

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tumorlens.data.sets import ImageSets
    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.measures import Measures

PERCENTAGES = (
    ("Balanced accuracy", "balanced_accuracy"),
    ("Macro F1", "macro_f1"),
)
"""Names and fields of the measures that are shown as percentages, after accuracy."""

DECIMALS = (
    ("Macro AUROC", "macro_auroc"),
    ("Log loss", "log_loss"),
    ("Brier score", "brier"),
    ("Calibration error", "ece"),
)
"""Those that are shown as decimals."""

MAX_MISTAKES = 12
"""Number of mistakes that are shown as pictures."""


@dataclass(frozen=True)
class PageFigure:
    """A figure inside a page."""

    svg: Markup
    alt: str
    """The same in words, for who cannot see it."""


@dataclass(frozen=True)
class Mistake:
    """An image whose predicted class is not its label."""

    picture: Picture
    label: str
    predicted: str
    probs: tuple[tuple[str, float], ...]
    """Every class with its probability, the largest first; empty without any."""
    heat: Picture | None = None
    """The image under the map of `predicted`; `None` where none was wanted."""


def draw_measures(
    measures: Measures, subtitle: str, warning: str = ""
) -> dict[str, Drawing]:
    """Return the figures `confusion`, `roc` and `calibration`.

    Args:
        measures: What is drawn.
        subtitle: Model, images and their number.
        warning: Reason not to believe the figures; empty where there is none.
    """
    auroc = {name: one.auroc.value for name, one in measures.per_class.items()}
    return {
        "confusion": draw_confusion(
            measures.confusion_matrix,
            measures.classes,
            Heading("Confusion matrix", subtitle, warning),
        ),
        "roc": draw_roc(
            measures.curves.roc, auroc, Heading("ROC curves", subtitle, warning)
        ),
        "calibration": draw_calibration(
            measures.curves.calibration, Heading("Calibration", subtitle, warning)
        ),
    }


def shown_measures(
    measures: Measures, drawings: Mapping[str, Drawing]
) -> dict[str, PageFigure]:
    """Return the figures of `draw_measures` for a page; those that are empty lack."""
    alternatives = _alternatives(measures)
    if not any(curve.fpr for curve in measures.curves.roc.values()):
        del alternatives["roc"]
    if not bins_with_images(measures):
        del alternatives["calibration"]
    return {
        name: PageFigure(Markup(drawings[name].inline(name)), alt)
        for name, alt in alternatives.items()
    }


def bins_with_images(measures: Measures) -> list[tuple[float | None, ...]]:
    """Return confidence, accuracy and number of images of each bin that has any."""
    bins = measures.curves.calibration
    return [
        one
        for one in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
        if one[2]
    ]


def most_confident_mistakes(
    table: Predictions,
    root: Path | ImageSets | None,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> tuple[list[Mistake], int]:
    """Return the most confident mistakes, and the number of all mistakes.

    Without probabilities they are the first ones by path.

    Args:
        table: The predictions.
        root: As for `page.load_picture`.
        limits: Limits above which an image is not opened.
    """
    predicted = table.predicted
    wrong = np.flatnonzero(predicted != table.labels)
    # The path breaks ties, so that the order is fixed.
    order = sorted(
        wrong.tolist(),
        key=lambda row: (-table.probs[row, predicted[row]], table.paths[row]),
    )
    mistakes = [
        Mistake(
            picture=load_picture(root, table.paths[row], limits=limits),
            label=table.classes[table.labels[row]],
            predicted=table.classes[predicted[row]],
            probs=tuple(
                sorted(
                    zip(table.classes, table.probs[row].tolist(), strict=True),
                    key=lambda one: -one[1],
                )
            )
            if table.has_probs
            else (),
        )
        for row in order[:MAX_MISTAKES]
    ]
    return mistakes, len(order)


def _alternatives(measures: Measures) -> dict[str, str]:
    """Return the text alternative of each figure."""
    classes = measures.classes
    rows = [
        f"{name}: "
        + ", ".join(
            f"{number} as {other}"
            for other, number in zip(classes, row, strict=True)
            if number
        )
        for name, row in zip(classes, measures.confusion_matrix, strict=True)
    ]
    areas = [
        f"{name} {one.auroc.value:.3f}"
        for name, one in measures.per_class.items()
        if one.auroc.value is not None
    ]
    points = [
        f"{write_percent(accuracy)} right at confidence {write_percent(confidence)}"
        for confidence, accuracy, _ in bins_with_images(measures)
    ]
    return {
        "confusion": f"Confusion matrix. {'; '.join(rows)}.",
        "roc": f"ROC curves of each class against the rest. AUROC: {', '.join(areas)}.",
        "calibration": f"Calibration. {'; '.join(points)}.",
    }
