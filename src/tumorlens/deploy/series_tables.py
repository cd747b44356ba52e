"""Answers for series as rows: for the terminal, CSV, JSON and Parquet.

One row per slice, then one for the series, which has no path. The columns that tables
of ordinary images have are there under the same names, so that what reads one reads
the other. Whoever identifies a patient has to be asked for: a series is a number here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from tumorlens.deploy.predictor import Prediction
    from tumorlens.deploy.row_files import Row
    from tumorlens.deploy.series import SeriesAnswer


def columns_of(classes: Iterable[str], *, identify: bool) -> list[str]:
    """Return the names of the columns, in their order.

    `kind` is 'image' for a file without a series, 'slice' or 'series'. `slice` counts
    from 1 in the order of the series, `frame` from 1 in a multi-frame file; in the row
    of a series, `slice` is the one that stands for it. `rule` says how the series' row
    came about.
    """
    return [
        *("path", "run", "predicted", *map("prob_{}".format, classes), "error"),
        *("kind", "series", "slice", "frame", "order", "rule"),
        *(["patient"] if identify else []),
    ]


def rows_of(
    run: str,
    classes: Sequence[str],
    answers: Iterable[SeriesAnswer],
    others: Iterable[Prediction] = (),
) -> list[Row]:
    """Return the rows of one run: ordinary images, then series by series."""
    rows: list[Row] = [
        {"path": str(image.path), "run": run, "kind": "image", "error": image.error}
        | _probs(classes, image.probs)
        for image in others
    ]
    for answer in answers:
        series = answer.series
        common = {"run": run, "series": series.number, "patient": series.patient}
        for number, (place, one) in enumerate(
            zip(series.slices, answer.slices, strict=True), start=1
        ):
            rows.append(
                common
                | {"path": str(place.path), "kind": "slice", "slice": number}
                | {"frame": None if place.frame is None else place.frame + 1}
                | {"error": one.error}
                | _probs(classes, one.probs)
            )
        rows.append(common | _summary(classes, answer))
    return rows


def _summary(classes: Sequence[str], answer: SeriesAnswer) -> Row:
    error = None
    if answer.probs is None:
        error = f"none of its {len(answer.slices)} slices could be read"
    return {
        "kind": "series",
        "slice": None if answer.key is None else answer.key + 1,
        "order": answer.series.order,
        "rule": answer.rule,
        "error": error,
    } | _probs(classes, answer.probs)


def _probs(classes: Sequence[str], probs: NDArray[np.float32] | None) -> Row:
    if probs is None:
        return {}
    row: Row = {"predicted": classes[int(probs.argmax())]}
    for name, prob in zip(classes, probs, strict=True):
        row[f"prob_{name}"] = float(prob)
    return row
