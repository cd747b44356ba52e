"""The report page of a run: `report.html` and its figures, from the run folder.

Nothing is measured here. Numbers come from `metrics.json`, curves from `history.jsonl`;
`predictions.csv` is only sorted, for the most confident mistakes.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

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
from tumorlens.files import write_text
from tumorlens.report.drawing import Drawing, Heading
from tumorlens.report.external_page import PAGE as EXTERNAL_PAGE
from tumorlens.report.measured import (
    DECIMALS,
    PERCENTAGES,
    Mistake,
    PageFigure,
    bins_with_images,
    draw_measures,
    most_confident_mistakes,
    shown_measures,
)
from tumorlens.report.page import WrittenPage, render_page
from tumorlens.report.run_figures import draw_curves, draw_reliability
from tumorlens.runs.trust import trust_of_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tumorlens.runs.external import ExternalMetrics
    from tumorlens.runs.folder import Run
    from tumorlens.runs.measures import Metrics
    from tumorlens.runs.trust import Trust


@dataclass(frozen=True)
class _Verdict:
    heading: str
    style: str
    """CSS classes, with a space in front."""
    num_known: int
    """Test images with a known patient."""


@dataclass(frozen=True)
class _OtherSet:
    name: str
    metrics: ExternalMetrics
    num_looks: int
    link: str
    """Address of its page from that of the run; empty where there is none."""


def write_run_report(
    run: Run,
    *,
    data: Path | Sequence[Path] | None = None,
    explain: bool = False,
) -> WrittenPage:
    """Write `report.html` and the folder `figures` of an evaluated run.

    Args:
        run: An evaluated run of any kind.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
            Missing images are named on the page instead of shown.
        explain: Whether to show what the mistakes rest on, which needs torch and a
            second or so for each.

    Returns:
        The path of the page, and the pictures that it lacks.

    Raises:
        RunError: The run is not evaluated yet, or one of its files cannot be read or
            is of other weights.
        DataError: The page cannot be written.
        MissingExtraError: `explain`, and torch or captum is not installed.
    """
    metrics = run.metrics()
    run.remove_partial_files()
    mistakes, num_mistakes = _read_mistakes(run, data, explain=explain)
    drawings, curves = _draw(run, metrics)
    trusted = trust_of_run(run)
    trust = trusted.trust if trusted else None
    reliability = _draw_reliability(run, trust) if trust else None
    if reliability:
        drawings["reliability"] = reliability
    for name, drawing in drawings.items():
        drawing.write(run.figures_dir, name)

    environment = run.environment()
    page = render_page(
        "run.html.j2",
        {
            "name": run.name,
            "model": run.model_name,
            "metrics": metrics,
            "leak": metrics.leak,
            "verdict": _verdict(metrics.leak),
            **{
                name: [
                    (label, getattr(metrics, key), metrics.no_interval.get(key))
                    for label, key in those
                ]
                for name, those in (
                    ("percentages", PERCENTAGES),
                    ("decimals", DECIMALS),
                )
            },
            "looks": [look for look in run.looks() if look.subset == metrics.subset],
            "curves": [
                PageFigure(
                    Markup(drawing.inline(f"curve-{measure}")),
                    f"{measure} on train and val over the epochs",
                )
                for measure, drawing in curves.items()
            ],
            "figures": shown_measures(metrics, drawings),
            "bins": bins_with_images(metrics),
            "calibrated": trust,
            "reliability": PageFigure(
                Markup(reliability.inline("reliability")),
                "accuracy over confidence on val, before and after the temperature",
            )
            if reliability
            else None,
            "training_summary": _training_summary(run),
            "folds": metrics.folds,
            "others": _other_sets(run),
            "mistakes": mistakes,
            "num_mistakes": num_mistakes,
            "has_maps": any(one.heat for one in mistakes),
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
    return WrittenPage(run.report_path, len(missing), missing[0] if missing else "")


def _read_mistakes(
    run: Run, data: Path | Sequence[Path] | None, *, explain: bool
) -> tuple[list[Mistake], int]:
    """Return the most confident mistakes, and the number of all mistakes.

    Raises what `predictions.read_predictions` raises.
    """
    config = run.config.data
    table, sets = read_predictions(run.predictions_path), sets_of(config, data)
    limits = ImageLimits(
        max_bytes=int(config.max_file_mib * 2**20), max_pixels=config.max_pixels
    )
    mistakes, num_mistakes = most_confident_mistakes(table, sets, limits=limits)
    if explain and sets is not None:
        from tumorlens.report.explanations import with_maps

        mistakes = with_maps(run, mistakes, table, sets, limits=limits)
    return mistakes, num_mistakes


def _other_sets(run: Run) -> list[_OtherSet]:
    """Return the evaluations on other sets.

    Raises what `Run.external_metrics` raises.
    """
    looks = Counter(look.subset for look in run.looks())
    return [
        _OtherSet(
            name=name,
            metrics=metrics,
            num_looks=looks[f"external {metrics.name}"],
            link=f"external/{quote(name)}/{EXTERNAL_PAGE}"
            if (run.external_path(name) / EXTERNAL_PAGE).is_file()
            else "",
        )
        for name, metrics in run.external_metrics().items()
    ]


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
    drawings = draw_measures(metrics, tested, warning)
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


def _draw_reliability(run: Run, trust: Trust) -> Drawing | None:
    """Return the figure of the temperature; `None` for folds, which have one each."""
    if trust.before is None or trust.after is None:
        return None
    images = f"{trust.num_images:,} images in {trust.num_groups:,} groups"
    return draw_reliability(
        trust.before,
        trust.after,
        Heading("Calibration on val", f"{run.model_name} · {images}"),
    )


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
