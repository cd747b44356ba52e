"""Measures of a table of predictions: every figure that follows from it alone.

Nothing here needs the network or the images, so that anyone can recompute a figure from
`predictions.csv`, and a table of another framework is measured in the same way. There
is no torch here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.evaluation.predictions import Predictions, read_predictions
from tumorlens.runs.estimate import (
    CalibrationBins,
    Estimate,
    estimate_of,
    estimate_of_score,
)
from tumorlens.runs.measures import (
    ClassMeasures,
    Curves,
    FoldMeasures,
    Measures,
    RocCurve,
    SourceMeasures,
    SourceRecall,
)
from tumorlens.stats import estimates, metrics
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

FEW_GROUPS = 20
"""Fewest groups for which the intervals were simulated; see docs/statistics.md."""

FEW_GROUPS_OF_CLASS = 10
"""Fewest groups of a class for which `metrics.json` has no warning: with fewer, a
single patient decides about its recall."""


NEED_PROBS = ("macro_auroc", "log_loss", "brier", "ece")
"""Measures over all classes that need probabilities. So do `auroc` of each class and
the curves `roc` and `calibration`."""

_NO_PROBS = "there are predicted classes and no probabilities"
_UNDEFINED = Estimate(value=None, low=None, high=None)


def metrics_from_predictions(path: Path) -> Measures:
    """Return every figure that follows from `predictions.csv` alone.

    Each figure has its 95 % interval with groups as units, and names how it was made;
    `docs/statistics.md` describes the methods. It is null with one group only, which
    `no_interval` states. Undefined values, such as the recall of a class without
    images, are null.

    Args:
        path: The table. It is checked, since it may have been edited.

    Returns:
        The part of `metrics.json` that is measured.

    Raises:
        RunError: The file is missing or not a table of predictions.
    """
    return measures_of(read_predictions(path))


def measures_of(table: Predictions, *, has_sources: bool | None = None) -> Measures:
    """Return the measures of a table, as `metrics_from_predictions` those of a file.

    Args:
        table: The answers.
        has_sources: Whether to measure by source; `None`: where one is known. A part of
            a table is measured as the whole is, also where its sources are unknown.
    """
    if has_sources is None:
        has_sources = any(table.sources)
    groups, num_groups = _numbered(table.groups)
    headline = _headline(table, groups)
    missing = () if table.has_probs else NEED_PROBS
    measures = Measures(
        num_images=len(table.paths),
        num_groups=num_groups,
        classes=table.classes,
        **{
            name: estimate_of(found, num_groups=num_groups)
            for name, found in headline.items()
        },
        **dict.fromkeys(missing, _UNDEFINED),
        per_class=_per_class(table, groups),
        confusion_matrix=_matrix(table).tolist(),
        by_source=_by_source(table) if has_sources else {},
        folds=_by_fold(table),
        curves=_curves(table),
        interval_holds_from={name: estimates.NUM_GROUPS_FOR[name] for name in headline},
        interval=f"95 %, with {counted(num_groups, 'group')} as units",
        warnings=_warnings(table, groups, headline),
        not_measured=dict.fromkeys(
            (*missing, "auroc", "roc", "calibration") if missing else (), _NO_PROBS
        ),
    )
    return measures.model_copy(update={"no_interval": _without_interval(measures)})


def _headline(
    table: Predictions, groups: NDArray[np.int64]
) -> dict[str, estimates.Estimated]:
    if table.has_probs:
        return estimates.headline(table.probs, table.labels, groups)
    return estimates.headline_of_classes(
        table.labels, table.predicted, groups, num_classes=len(table.classes)
    )


def _numbered(names: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Return a number for each name, from 0 without a gap, and the number of names."""
    unique, numbers = np.unique(np.array(names, dtype=object), return_inverse=True)
    return numbers.astype(np.int64), len(unique)


def _matrix(table: Predictions) -> NDArray[np.int64]:
    return metrics.confusion_matrix(
        table.labels, table.predicted, num_classes=len(table.classes)
    )


def _per_class(
    table: Predictions, groups: NDArray[np.int64]
) -> dict[str, ClassMeasures]:
    of_class = zip(
        _rates(table, groups),
        metrics.f1(_matrix(table)),
        estimates.aurocs(table.probs, table.labels, groups)
        if table.has_probs
        else [None] * len(table.classes),
        strict=True,
    )
    return {
        label: ClassMeasures(
            num_images=int((table.labels == number).sum()),
            **{name: estimate_of_score(rate) for name, rate in rates._asdict().items()},
            f1=_defined(f1),
            auroc=estimate_of_score(auroc),
        )
        for number, (label, (rates, f1, auroc)) in enumerate(
            zip(table.classes, of_class, strict=True)
        )
    }


def _rates(table: Predictions, groups: NDArray[np.int64]) -> list[estimates.ClassRates]:
    return estimates.class_rates(
        table.labels, table.predicted, groups, num_classes=len(table.classes)
    )


def _without_interval(measures: Measures) -> dict[str, str]:
    """Return the reason why a measure has no interval, for each that has none."""
    figures = {name: getattr(measures, name) for name in estimates.NUM_GROUPS_FOR}
    figures |= {
        f"recall of {name}": one.recall for name, one in measures.per_class.items()
    }
    return {
        name: "there is one group only"
        if figure.num_units == 1
        else "its groups are too few or all alike"
        for name, figure in figures.items()
        if figure.value is not None and figure.low is None
    }


def _by_source(table: Predictions) -> dict[str, SourceMeasures]:
    """Return the measures of each source."""
    figures = {}
    # Sources by name, those without one last.
    for source in sorted(set(table.sources), key=lambda name: (not name, name)):
        part = table.rows(
            [row for row, name in enumerate(table.sources) if name == source]
        )
        groups, num_groups = _numbered(part.groups)
        headline = _headline(part, groups)
        figures[source or "unknown"] = SourceMeasures(
            num_images=len(part.paths),
            num_groups=num_groups,
            **{
                name: estimate_of(headline[name], num_groups=num_groups)
                for name in ("accuracy", "balanced_accuracy", "macro_f1")
            },
            recall={
                name: SourceRecall(
                    **dict(estimate_of_score(rates.recall)),
                    num_images=int((part.labels == number).sum()),
                )
                for number, (name, rates) in enumerate(
                    zip(table.classes, _rates(part, groups), strict=True)
                )
            },
        )
    return figures


def _by_fold(table: Predictions) -> tuple[FoldMeasures, ...]:
    folds = sorted({fold for fold in table.folds if fold is not None})
    parts = [
        table.rows([row for row, one in enumerate(table.folds) if one == fold])
        for fold in folds
    ]
    return tuple(
        FoldMeasures(
            fold=fold,
            num_images=len(part.paths),
            accuracy=float(metrics.accuracy(_matrix(part))),
        )
        for fold, part in zip(folds, parts, strict=True)
    )


def _curves(table: Predictions) -> Curves:
    if not table.has_probs:
        return Curves(
            roc={name: RocCurve(fpr=(), tpr=()) for name in table.classes},
            calibration=CalibrationBins(confidence=(), accuracy=(), count=()),
        )
    roc = {}
    for number, name in enumerate(table.classes):
        positive = table.labels == number
        x, y = (
            metrics.roc_curve(table.probs[:, number], positive)
            if positive.any() and not positive.all()
            else (np.array([]), np.array([]))
        )
        roc[name] = RocCurve(fpr=x.tolist(), tpr=y.tolist())
    confidence, accuracy, count = metrics.calibration_bins(table.probs, table.labels)
    return Curves(
        roc=roc,
        calibration=CalibrationBins(
            confidence=confidence.tolist(),
            accuracy=accuracy.tolist(),
            count=count.tolist(),
        ),
    )


def _warnings(
    table: Predictions, groups: NDArray[np.int64], measured: Container[str]
) -> tuple[str, ...]:
    """Return a warning where few groups carry the figures."""
    num_all = len(np.unique(groups))
    few = {}
    for number, name in enumerate(table.classes):
        num = len(np.unique(groups[table.labels == number]))
        if 0 < num < FEW_GROUPS_OF_CLASS:
            few[name] = num
    warnings = []
    parts = [_count_groups(num, f" of {name}") for name, num in few.items()]
    if num_all < FEW_GROUPS:
        parts = [*parts, _count_groups(num_all, " in all")]
    if parts:
        warnings.append(
            f"Few groups carry these figures: {', '.join(parts)}. A single patient can "
            "decide about them, whatever the interval."
        )
    note = estimates.note_on_few_groups(num_all, measured)
    if note and num_all > 1:
        warnings.append(note)
    return tuple(warnings)


def _count_groups(num: int, suffix: str) -> str:
    return f"{num} group{'s' * (num != 1)}{suffix}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
