"""Evaluation: `predictions.csv` of a run, and `metrics.json` computed from it alone.

`evaluate` predicts each image once and writes the probabilities. Every figure is then
computed from that table by `metrics_from_predictions`, so that anyone can recompute it
with another tool. Each look at the test subset is logged in the run, and its figures
choose no epoch, setting or threshold.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.evaluation.inference import (
    check_subset,
    pool_folds,
    predict_subset,
    read_data,
)
from tumorlens.evaluation.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)
from tumorlens.files import write_model
from tumorlens.runs.measures import (
    CalibrationBins,
    ClassMeasures,
    Curves,
    FoldMeasures,
    Measures,
    Metrics,
    NetworkSettings,
    RocCurve,
    SourceMeasures,
    SourceRecall,
    estimate_of,
    estimate_of_score,
)
from tumorlens.stats import estimates, metrics
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Progress

FEW_GROUPS = 20
"""Fewest groups for which the intervals were simulated; see docs/statistics.md."""

FEW_GROUPS_OF_CLASS = 10
"""Fewest groups of a class for which `metrics.json` has no warning: with fewer, a
single patient decides about its recall."""


def evaluate(
    run: Run,
    *,
    subset: str = "test",
    data: Path | None = None,
    device: str = "auto",
    command: str = "",
    progress: Progress | None = None,
) -> Metrics:
    """Predict every image of a subset; write predictions and metrics.

    Each fold of a k-fold run is evaluated as a run of its own, and the test images are
    pooled: each is predicted by the network that was not trained on it.

    Args:
        run: A finished run; an unfinished one has `val` only.
        subset: `test` or `val`. A look at `test` is logged in the run.
        data: Folder of the images; `None` takes the run's `data.path`.
        device: As for the setting `train.device`.
        command: Command line of the user, for the log of looks.
        progress: Called with images done and images in all: for decoding, where images
            are not cached, then for inference.

    Returns:
        The content of `metrics.json`.

    Raises:
        ConfigError: The subset is unknown, or not one of a k-fold run.
        DataError: There is no data, or an image cannot be read any more. Images that
            were readable when the split was made are never skipped.
        RunError: The run is not finished, has no weights or no image in the subset, or
            the data has changed.
    """
    check_subset(run, subset)
    run.remove_partial_files()
    predict = partial(
        predict_subset,
        index=read_data(run, data),
        subset=subset,
        device=device,
        progress=progress,
    )
    if not run.is_kfold:
        predictions = predict(run)
        return _write_results(run, predictions, subset, command=command)

    parts = []
    for fold in run.folds():
        parts.append(predict(fold))
        _write_results(fold, parts[-1], subset, command=command)
    return _write_results(run, pool_folds(parts), subset, command=command)


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
    table = read_predictions(path)
    groups, num_groups = _numbered(table.groups)
    headline = estimates.headline(table.probs, table.labels, groups)
    measures = Measures(
        num_images=len(table.paths),
        num_groups=num_groups,
        classes=table.classes,
        **{
            name: estimate_of(found, num_groups=num_groups)
            for name, found in headline.items()
        },
        per_class=_per_class(table, groups),
        confusion_matrix=_matrix(table).tolist(),
        by_source=_by_source(table),
        folds=_by_fold(table),
        curves=_curves(table),
        interval_holds_from=estimates.NUM_GROUPS_FOR,
        interval=f"95 %, with {counted(num_groups, 'group')} as units",
        warnings=_warnings(table, groups),
    )
    return measures.model_copy(update={"no_interval": _without_interval(measures)})


def _write_results(
    run: Run, predictions: Predictions, subset: str, *, command: str
) -> Metrics:
    leak = run.leak()
    if subset == "test":
        # Logged before the figures exist: none can be seen without an entry.
        run.log_look(subset=subset, command=command)
    path = run.predictions_of(subset)
    write_predictions(path, predictions)
    content = Metrics(
        protocol=run.config.data.protocol,
        subset=subset,
        leak=leak,
        settings=_settings(run),
        **dict(metrics_from_predictions(path)),
    )
    write_model(run.metrics_of(subset), content)
    return content


def _settings(run: Run) -> NetworkSettings:
    """Return the settings that the networks share; `None` where members differ."""
    cards = [one.card(check_weights=False) for one in run.networks()]
    return NetworkSettings(
        model=run.model_name if run.is_ensemble else cards[0].name,
        size_px=_common(card.size_px for card in cards),
        fit=_common(card.fit for card in cards),
        mirror=_common(card.mirror for card in cards),
        tta=_common(card.tta for card in cards),
        seed=run.config.train.seed,
    )


def _common(values: Iterable[Any]) -> Any:
    first, *others = values
    return first if all(other == first for other in others) else None


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
        estimates.aurocs(table.probs, table.labels, groups),
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
    """Return the measures of each source; none when no source is known."""
    if not any(table.sources):
        return {}
    figures = {}
    # Sources by name, those without one last.
    for source in sorted(set(table.sources), key=lambda name: (not name, name)):
        part = table.rows(
            [row for row, name in enumerate(table.sources) if name == source]
        )
        groups, num_groups = _numbered(part.groups)
        headline = estimates.headline(part.probs, part.labels, groups)
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


def _warnings(table: Predictions, groups: NDArray[np.int64]) -> tuple[str, ...]:
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
    note = estimates.note_on_few_groups(num_all, estimates.NUM_GROUPS_FOR)
    if note and num_all > 1:
        warnings.append(note)
    return tuple(warnings)


def _count_groups(num: int, suffix: str) -> str:
    return f"{num} group{'s' * (num != 1)}{suffix}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
