"""The report page of a run: `report.html` and its figures, from the run folder.

Nothing is measured here. Numbers come from `metrics.json`, curves from `history.jsonl`;
`predictions.csv` is only sorted, for the most confident mistakes.
"""

from __future__ import annotations

import json
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup

from tumorlens.config import Config
from tumorlens.data.images import ImageLimits
from tumorlens.data.leakage import (
    LEAK,
    NO_LEAK,
    NO_PATIENTS,
    SOME_PATIENTS,
    LeakVerdict,
)
from tumorlens.data.sets import sets_of
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.files import write_bytes, write_text
from tumorlens.report.drawing import Drawing, Heading
from tumorlens.report.page import (
    Picture,
    load_picture,
    render_page,
    write_percent,
)
from tumorlens.report.run_figures import (
    draw_calibration,
    draw_confusion,
    draw_curves,
    draw_roc,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tumorlens.runs.folder import Run
    from tumorlens.runs.measures import Metrics

MAX_MISTAKES = 12
"""Number of mistakes that are shown as pictures."""

_PERCENTAGES = (
    ("Balanced accuracy", "balanced_accuracy"),
    ("Macro F1", "macro_f1"),
)
_DECIMALS = (
    ("Macro AUROC", "macro_auroc"),
    ("Log loss", "log_loss"),
    ("Brier score", "brier"),
    ("Calibration error", "ece"),
)


@dataclass(frozen=True)
class Mistake:
    """An image whose predicted class is not its label."""

    picture: Picture
    label: str
    predicted: str
    probs: tuple[tuple[str, float], ...]
    """Every class with its probability, the largest first."""


class RunPage(NamedTuple):
    """The written page."""

    path: Path
    num_missing: int
    """Number of mistakes whose pictures could not be shown."""
    why_not: str
    """Reason for the first of them."""


@dataclass(frozen=True)
class _Figure:
    svg: Markup
    alt: str


@dataclass(frozen=True)
class _Verdict:
    heading: str
    style: str
    """CSS classes, with a space in front."""
    num_known: int
    """Test images with a known patient."""


def write_run_report(run: Run, *, data: Path | Sequence[Path] | None = None) -> RunPage:
    """Write `report.html` and the folder `figures` of an evaluated run.

    Args:
        run: An evaluated run of any kind.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
            Missing images are named on the page instead of shown.

    Returns:
        The path of the page, and the pictures that it lacks.

    Raises:
        RunError: The run is not evaluated yet, or one of its files cannot be read.
        DataError: The page cannot be written.
    """
    metrics = run.metrics()
    run.remove_partial_files()
    mistakes, num_mistakes = _read_mistakes(run, data)
    drawings, curves = _draw(run, metrics)
    for name, drawing in drawings.items():
        write_text(run.figures_dir / f"{name}.svg", drawing.svg)
        write_bytes(run.figures_dir / f"{name}.png", drawing.png())

    alts = _alternatives(metrics)
    bins = metrics.curves.calibration
    environment = run.environment()
    page = render_page(
        "run.html.j2",
        {
            "name": run.name,
            "model": run.model_name,
            "metrics": metrics,
            "leak": metrics.leak,
            "verdict": _verdict(metrics.leak),
            "no_interval": defaultdict(str, metrics.no_interval),
            **{
                name: [
                    (label, getattr(metrics, key), metrics.no_interval.get(key))
                    for label, key in those
                ]
                for name, those in (
                    ("percentages", _PERCENTAGES),
                    ("decimals", _DECIMALS),
                )
            },
            "looks": [look for look in run.looks() if look.subset == metrics.subset],
            "curves": [
                _Figure(
                    Markup(drawing.inline(f"curve-{measure}")),
                    f"{measure} on train and val over the epochs",
                )
                for measure, drawing in curves.items()
            ],
            **{
                name: _Figure(
                    Markup(drawings[name].inline(name)),
                    alt,
                )
                for name, alt in alts.items()
            },
            "bins": [
                one
                for one in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
                if one[2]
            ],
            "training_summary": _training_summary(run),
            "folds": metrics.folds,
            "mistakes": mistakes,
            "num_mistakes": num_mistakes,
            "command": _command(environment),
            "repeat": None
            if run.is_ensemble
            else shlex.join(
                [
                    *("tumorlens", "train", f"{run.path / 'config.toml'}"),
                    *("--out", f"{run.path}-again"),
                ]
            ),
            "settings": _settings(run.config),
            "environment": _environment(environment),
        },
    )
    write_text(run.report_path, page)
    missing = [one.picture.why_not for one in mistakes if one.picture.why_not]
    return RunPage(run.report_path, len(missing), missing[0] if missing else "")


def _read_mistakes(
    run: Run, data: Path | Sequence[Path] | None
) -> tuple[list[Mistake], int]:
    """Return the most confident mistakes, and the number of all mistakes.

    Raises what `predictions.read_predictions` raises.
    """
    table = read_predictions(run.predictions_path)
    predicted = table.predicted
    wrong = np.flatnonzero(predicted != table.labels)
    # The path breaks ties, so that the order is fixed.
    order = sorted(
        wrong.tolist(),
        key=lambda row: (-table.probs[row, predicted[row]], table.paths[row]),
    )
    sets = sets_of(run.config.data, data)
    limits = ImageLimits(
        max_bytes=int(run.config.data.max_file_mib * 2**20),
        max_pixels=run.config.data.max_pixels,
    )
    mistakes = [
        Mistake(
            picture=load_picture(sets, table.paths[row], limits=limits),
            label=table.classes[table.labels[row]],
            predicted=table.classes[predicted[row]],
            probs=tuple(
                sorted(
                    zip(table.classes, table.probs[row].tolist(), strict=True),
                    key=lambda one: -one[1],
                )
            ),
        )
        for row in order[:MAX_MISTAKES]
    ]
    return mistakes, len(order)


def _verdict(leak: LeakVerdict) -> _Verdict:
    """Return the card of the leak verdict."""
    num_known = leak.num_test - leak.num_test_unknown_patient
    if leak.state == NO_LEAK:
        return _Verdict("✓ Leak check: passed", "", num_known)
    style = " bad" if leak.leaks else " open"
    heading = "Leak check: the training images are not known"
    if leak.state == LEAK:
        heading = "✕ Leak check: failed"
    elif leak.state in (NO_PATIENTS, SOME_PATIENTS):
        heading = f"Leak check: {leak.unknown_patients}"
    return _Verdict(heading, style, num_known)


def _draw(run: Run, metrics: Metrics) -> tuple[dict[str, Drawing], dict[str, Drawing]]:
    """Return the figures by file name, and one curve per measure for the page.

    The file has both curves side by side; on a narrow screen the page puts them below
    each other, which takes two drawings.
    """
    model, protocol = run.model_name, metrics.protocol
    warning = metrics.leak.words if metrics.leak.leaks else ""
    tested = f"{model} · {protocol} · {metrics.subset} · {metrics.num_images:,} images"
    trained = f"{model} · {protocol} · train and val"
    histories = [one.history() for one in run.networks()]
    histories = [rows for rows in histories if rows]
    auroc = {name: one.auroc.value for name, one in metrics.per_class.items()}

    drawings = {
        "confusion": draw_confusion(
            metrics.confusion_matrix,
            metrics.classes,
            Heading("Confusion matrix", tested, warning),
        ),
        "roc": draw_roc(
            metrics.curves.roc, auroc, Heading("ROC curves", tested, warning)
        ),
        "calibration": draw_calibration(
            metrics.curves.calibration, Heading("Calibration", tested, warning)
        ),
    }
    curves: dict[str, Drawing] = {}
    if histories:
        drawings["curves"] = draw_curves(
            histories, Heading("Loss and accuracy over the epochs", trained, warning)
        )
        curves = {
            measure: draw_curves(
                histories,
                Heading(f"{measure.capitalize()} over the epochs", trained, warning),
                measures=(measure,),
            )
            for measure in ("loss", "accuracy")
        }
    return drawings, curves


def _alternatives(metrics: Metrics) -> dict[str, str]:
    """Return the text alternative of each figure."""
    classes = metrics.classes
    rows = [
        f"{name}: "
        + ", ".join(
            f"{number} as {other}"
            for other, number in zip(classes, row, strict=True)
            if number
        )
        for name, row in zip(classes, metrics.confusion_matrix, strict=True)
    ]
    areas = [
        f"{name} {one.auroc.value:.3f}"
        for name, one in metrics.per_class.items()
        if one.auroc.value is not None
    ]
    bins = metrics.curves.calibration
    points = [
        f"{write_percent(accuracy)} right at confidence {write_percent(confidence)}"
        for confidence, accuracy, count in zip(
            bins.confidence, bins.accuracy, bins.count, strict=True
        )
        if count
    ]
    return {
        "confusion": f"Confusion matrix. {'; '.join(rows)}.",
        "roc": f"ROC curves of each class against the rest. AUROC: {', '.join(areas)}.",
        "calibration": f"Calibration. {'; '.join(points)}.",
    }


def _training_summary(run: Run) -> str:
    if run.is_ensemble:
        return _ensemble_summary(run)
    folds = run.folds()
    if folds:
        lengths = [len(fold.history()) for fold in folds]
        return (
            f"{len(folds)} folds, {_range(lengths)} epochs each. Thin lines are folds, "
            f"thick ones their mean over the epochs that all of them reached."
        )
    history = run.history()
    if not history:
        return "No history: the weights were not trained here."
    kept = [row["epoch"] for row in history if row.get("is_best")]
    words = f"{len(history)} of {run.config.optim.epochs} epochs"
    by = run.config.train.best_by.replace("_", " ")
    if not kept:
        return f"{words}."
    if by == "last":
        return f"{words}; the weights of the last one were kept."
    return f"{words}; the weights of epoch {kept[-1]} were kept, the best val {by}."


def _ensemble_summary(run: Run) -> str:
    names = ", ".join(run.member_names())
    words = f"Not trained: the mean probabilities of {names}."
    lengths = [len(one.history()) for one in run.networks()]
    if any(lengths):
        words += (
            f" They were trained for {_range(lengths)} epochs each. Thin lines are "
            "networks, thick ones their mean over the epochs that all of them reached. "
            "The settings below are those of the first."
        )
    return words


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _command(environment: Mapping[str, Any]) -> str:
    command = environment.get("command", "")
    return command if isinstance(command, str) else shlex.join(command)


def _settings(config: Config) -> list[tuple[str, list[dict[str, Any]]]]:
    default = Config().model_dump(mode="json")
    return [
        (
            section,
            [
                {
                    "name": name,
                    "value": _as_written(value),
                    "changed": value != default[section][name],
                }
                for name, value in pairs.items()
            ],
        )
        for section, pairs in config.model_dump(mode="json").items()
    ]


def _environment(
    environment: Mapping[str, Any],
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return nested dictionaries as titled groups, after a group of plain values."""
    plain = {
        key: value
        for key, value in environment.items()
        if key != "command" and not isinstance(value, Mapping)
    }
    groups = [("", plain)] if plain else []
    groups += [
        (key, dict(value))
        for key, value in environment.items()
        if isinstance(value, Mapping) and value
    ]
    return [(title, _pairs(values.items())) for title, values in groups]


def _pairs(items: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " "), _as_written(value)) for key, value in items]


def _as_written(value: Any) -> str:
    """Return a value in TOML notation, texts without quotes."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
