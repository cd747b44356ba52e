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
    Estimate,
    FoldMeasures,
    Measures,
    Metrics,
    NetworkSettings,
    RocCurve,
    SourceMeasures,
    SourceRecall,
)
from tumorlens.stats import metrics
from tumorlens.stats.intervals import (
    NUM_RESAMPLES,
    group_bootstrap,
    group_sums,
    image_weight_bootstrap,
    perfect_score_interval,
    ratio,
    wilson_interval,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Progress
    from tumorlens.stats.intervals import Interval

FEW_GROUPS = 20
"""Fewest groups for which `metrics.json` has no warning of too narrow intervals.

Source: Cameron, Gelbach and Miller, "Bootstrap-based improvements for inference with
clustered errors", Review of Economics and Statistics 90, 2008: with 5 to 30 clusters
the usual intervals cover the true value too rarely.
"""

FEW_GROUPS_OF_CLASS = 10
"""The same for the groups of one class, on which its recall rests."""

SEED = 42
"""Seed of the bootstrap; fixed, so that the nicest interval cannot be picked."""


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
        device: `auto`, `cpu` or `cuda`.
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

    Headline figures have an interval: 95 %, percentile bootstrap over groups, 2,000
    resamples, seed 42. It is null where resampling shows no spread, as with one group
    only; for a perfect accuracy, balanced accuracy or macro F1 it is Wilson's, with
    groups as units. The calibration error has none, see
    `metrics.expected_calibration_error`; `no_interval` has the reason. Recalls have
    two: `recall` has Wilson's over images, as if they were independent, and
    `recall_by_group` that over resampled groups, which is the one to believe. Undefined
    values, such as the recall of a class without images, are null.

    Args:
        path: The table. It is checked, since it may have been edited.

    Returns:
        The part of `metrics.json` that is measured.

    Raises:
        RunError: The file is missing or not a table of predictions.
    """
    table = read_predictions(path)
    groups, num_groups = _numbered(table.groups)
    interval = (
        f"95 %, percentile bootstrap over {num_groups} groups, {NUM_RESAMPLES} "
        f"resamples, seed {SEED}; recalls have this and Wilson's, which counts images "
        "as independent: too narrow where a group has many"
    )
    measures = Measures(
        num_images=len(table.paths),
        num_groups=num_groups,
        classes=table.classes,
        **_headline(table, groups),
        **_probability_measures(table, groups),
        per_class=_per_class(table, groups),
        confusion_matrix=_matrix(table).tolist(),
        by_source=_by_source(table),
        folds=_by_fold(table),
        curves=_curves(table),
        interval=interval,
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


def _headline(table: Predictions, groups: NDArray[np.int64]) -> dict[str, Estimate]:
    """Return the measures that follow from the confusion matrix of each group."""
    confusions = metrics.group_confusions(
        table.labels, table.predicted, groups, num_classes=len(table.classes)
    )
    groups_of_class = (confusions.sum(axis=2) > 0).sum(axis=0)
    units = {
        "accuracy": [len(confusions)],
        "balanced_accuracy": [int(number) for number in groups_of_class if number],
        "macro_f1": [int(number) for number in groups_of_class if number],
    }
    figures = {}
    whole = confusions.sum(axis=0)
    for name, num_groups in units.items():
        measure = getattr(metrics, name)
        value = float(measure(whole))
        interval = group_bootstrap(
            confusions,
            partial(metrics.resampled_macro_f1, whole=whole)
            if name == "macro_f1"
            else measure,
            num_resamples=NUM_RESAMPLES,
            seed=SEED,
        )
        if value == 1 and len(confusions) > 1:
            interval = perfect_score_interval(num_groups)
        figures[name] = _estimate(value, interval)
    return figures


def _probability_measures(
    table: Predictions, groups: NDArray[np.int64]
) -> dict[str, Estimate]:
    probs, labels = table.probs, table.labels
    figures = {
        name: _estimate(
            float(values.mean()),
            group_bootstrap(
                group_sums(values, groups),
                ratio,
                num_resamples=NUM_RESAMPLES,
                seed=SEED,
            ),
        )
        for name, values in (
            ("log_loss", metrics.log_losses(probs, labels)),
            ("brier", metrics.brier_scores(probs, labels)),
        )
    }
    figures["ece"] = _estimate(metrics.expected_calibration_error(probs, labels), None)
    figures["macro_auroc"] = _estimate(
        metrics.macro_auroc(probs, labels),
        image_weight_bootstrap(
            groups,
            lambda weights: metrics.weighted_macro_auroc(probs, labels, weights),
            num_resamples=NUM_RESAMPLES,
            seed=SEED,
        ),
    )
    return figures


def _per_class(
    table: Predictions, groups: NDArray[np.int64]
) -> dict[str, ClassMeasures]:
    confusions = metrics.group_confusions(
        table.labels, table.predicted, groups, num_classes=len(table.classes)
    )
    matrix = confusions.sum(axis=0)
    precision, specificity, f1 = (
        measure(matrix)
        for measure in (metrics.precision, metrics.specificity, metrics.f1)
    )
    return {
        name: ClassMeasures(
            num_images=int(matrix[number].sum()),
            precision=_defined(precision[number]),
            recall=_recall(matrix, number),
            recall_by_group=_recall_by_group(confusions, number),
            specificity=_defined(specificity[number]),
            f1=_defined(f1[number]),
            auroc=_defined(
                metrics.auroc(table.probs[:, number], table.labels == number)
            ),
        )
        for number, name in enumerate(table.classes)
    }


def _recall(matrix: NDArray[np.int64], number: int) -> Estimate:
    num_right, num_images = int(matrix[number, number]), int(matrix[number].sum())
    if not num_images:
        return _estimate(math.nan, None)
    return _estimate(num_right / num_images, wilson_interval(num_right, num_images))


def _recall_by_group(confusions: NDArray[np.int64], number: int) -> Estimate:
    """Return the recall of one class with its interval over resampled groups.

    At 0 or 1 all resamples are equal; the interval is then Wilson's over groups.
    """
    of_class = confusions[:, number]  # (G, C)
    of_class = of_class[of_class.sum(axis=1) > 0]
    num_groups, num_images = len(of_class), int(of_class.sum())
    if not num_images:
        return _estimate(math.nan, None)
    value = int(of_class[:, number].sum()) / num_images
    interval = group_bootstrap(
        confusions,
        lambda sums: metrics.recall(sums)[..., number],
        num_resamples=NUM_RESAMPLES,
        seed=SEED,
    )
    if value in (0, 1) and num_groups > 1:
        interval = wilson_interval(int(value) * num_groups, num_groups)
    return _estimate(value, interval)


def _without_interval(measures: Measures) -> dict[str, str]:
    """Return the reason why a measure has no interval, for each that has none."""
    figures: dict[str, Estimate | None] = {
        name: getattr(measures, name)
        for name in (
            *("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"),
            *("log_loss", "brier", "ece"),
        )
    }
    figures |= {
        f"recall of {name}": one.recall_by_group
        for name, one in measures.per_class.items()
    }
    same = "all resamples give the same"
    if measures.num_groups == 1:
        same = "there is one group only"
    return {
        name: "resampling would only add to it" if name == "ece" else same
        for name, figure in figures.items()
        if figure and figure.value is not None and figure.low is None
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
        matrix = _matrix(part)
        figures[source or "unknown"] = SourceMeasures(
            num_images=len(part.paths),
            num_groups=num_groups,
            **_headline(part, groups),
            recall={
                name: SourceRecall(
                    **dict(_recall(matrix, number)),
                    num_images=int(matrix[number].sum()),
                )
                for number, name in enumerate(table.classes)
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
    if num_all >= FEW_GROUPS and not few:
        return ()
    parts = [_count_groups(num, f" of {name}") for name, num in few.items()]
    if num_all < FEW_GROUPS:
        parts = [*parts, _count_groups(num_all, " in all")]
    words = (
        f"Few groups carry these figures: {', '.join(parts)}. Intervals from so few "
        "are too narrow: the true uncertainty is larger."
    )
    return (words,)


def _count_groups(num: int, suffix: str) -> str:
    return f"{num} group{'s' * (num != 1)}{suffix}"


def _estimate(value: float, interval: Interval | None) -> Estimate:
    low, high = interval or (None, None)
    return Estimate(value=_defined(value), low=low, high=high)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
