"""Results of the stages as HTML for a notebook: a verdict, tables and a figure.

Connected to the result classes when tumorlens is imported (`text.show_results_with`).
Everything comes from the result itself; nothing is computed and no image is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING

from markupsafe import Markup

from tumorlens.data.audit import Audit
from tumorlens.data.split import Split
from tumorlens.deploy.benchmark.results import Benchmark
from tumorlens.deploy.benchmark.results import table_rows as benchmark_rows
from tumorlens.deploy.export import Exports
from tumorlens.deploy.predictor import FilePredictions
from tumorlens.report.drawing import Drawing, Heading
from tumorlens.report.page import render_page
from tumorlens.report.run_figures import draw_confusion, draw_curves
from tumorlens.report.tables import table_rows
from tumorlens.runs.external import PARTS, ExternalMetrics
from tumorlens.runs.folder import Run
from tumorlens.runs.measures import Metrics
from tumorlens.study.comparison import Comparison
from tumorlens.text import counted, megabytes, percent

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_ROWS = 50


@dataclass(frozen=True)
class _Table:
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_more: int = 0
    """Rows that are left out."""


@dataclass(frozen=True)
class _View:
    """What a notebook shows of a result."""

    title: str
    verdict: str = ""
    is_warning: bool = False
    sentences: Sequence[str] = ()
    tables: Sequence[_Table] = ()
    figure: Drawing | None = None


def view_of(result: object) -> str:
    """Return a result as HTML that depends on nothing else in the notebook.

    Args:
        result: One of the results of the public functions.

    Raises:
        TypeError: There is no view of such an object.
    """
    view = _view(result)
    return render_page(
        "notebook.html",
        {
            "view": view,
            "figure": Markup(view.figure.svg) if view.figure else None,
        },
    )


@singledispatch
def _view(result: object) -> _View:
    raise TypeError(f"a notebook has no view of {type(result).__name__}")


@_view.register
def _(found: Audit) -> _View:
    return _View(
        f"Audit of {found.data}",
        found.verdict.words,
        is_warning=found.verdict.believable is False,
        sentences=[sentence for sentence in (found.verdict.left,) if sentence]
        + list(found.findings)
        + [
            sentence
            for pair in (found.overlaps.pairs if found.overlaps else ())
            for sentence in pair.sentences
        ],
        tables=[
            _counts(found.subsets, found.classes),
            _Table(
                ("", "number"),
                [
                    ("files", f"{found.num_files:,}"),
                    ("unreadable files", f"{found.num_unreadable:,}"),
                    ("distinct pictures", f"{found.distinct.pictures:,}"),
                    ("groups", f"{found.num_groups:,}"),
                ],
            ),
        ],
    )


@_view.register
def _(made: Split) -> _View:
    return _View(
        "Split by patient and picture",
        made.leak.words,
        is_warning=made.leak.leaks,
        tables=[_counts(made.counts, made.classes)],
    )


@_view.register
def _(run: Run) -> _View:
    model, data = run.model_name, run.config.data
    histories = [rows for one in run.networks() if (rows := one.history())]
    is_evaluated = run.metrics_path.is_file()
    leak = run.leak() if run.leak_path.is_file() else None
    return _View(
        f"Run {run.name}: {model}, protocol {data.protocol}",
        run.metrics().leak.words if is_evaluated else leak.words if leak else "",
        is_warning=bool(leak and leak.leaks),
        sentences=[
            f"Accuracy on test: {run.metrics().accuracy.percentage}."
            if is_evaluated
            else "Not evaluated yet: tumorlens.evaluate(run)."
        ],
        figure=draw_curves(
            histories, Heading("Loss and accuracy", f"{model} · train and val")
        )
        if histories
        else None,
    )


@_view.register
def _(measured: Metrics) -> _View:
    heading = Heading(
        "Confusion matrix",
        f"{measured.settings.model} · {measured.protocol} · {measured.subset} · "
        f"{counted(measured.num_images, 'image')}",
        measured.leak.words if measured.leak.leaks else "",
    )
    rows = [
        ("accuracy", measured.accuracy),
        ("balanced accuracy", measured.balanced_accuracy),
        ("macro F1", measured.macro_f1),
        *(
            (f"recall of {name}", one.recall)
            for name, one in measured.per_class.items()
        ),
    ]
    return _View(
        f"{counted(measured.num_images, f'{measured.subset} image')} in "
        f"{counted(measured.num_groups, 'group')}, protocol {measured.protocol}",
        measured.leak.words,
        is_warning=measured.leak.leaks,
        sentences=measured.warnings,
        tables=[
            _Table(
                ("measure", "95 % interval"),
                [(name, estimate.percentage) for name, estimate in rows],
            )
        ],
        figure=draw_confusion(measured.confusion_matrix, measured.classes, heading),
    )


@_view.register
def _(found: ExternalMetrics) -> _View:
    parts = {
        name: measures
        for name in PARTS
        if (measures := getattr(found, name)) is not None
    }
    headline = found.headline
    shown = "new images" if found.new else "all images"
    heading = Heading(
        f"Confusion matrix, {shown}",
        f"{found.model} · {found.name} · {counted(headline.num_images, 'image')}",
        "" if found.new else found.words,
    )
    rows = [
        (label, [getattr(one, field).percentage for one in parts.values()])
        for label, field in (
            ("accuracy", "accuracy"),
            ("balanced accuracy", "balanced_accuracy"),
            ("macro F1", "macro_f1"),
        )
    ]
    rows += [
        (
            f"recall of {name}",
            [one.per_class[name].recall.percentage for one in parts.values()],
        )
        for name in headline.classes
    ]
    return _View(
        f"{found.model} on {found.name}",
        found.words,
        is_warning=found.counts.new < found.counts.tested,
        sentences=(*headline.warnings, *found.notes),
        tables=[
            _Table(
                (
                    "measure",
                    *(
                        f"{name}, {counted(one.num_images, 'image')}"
                        for name, one in parts.items()
                    ),
                ),
                [(label, *values) for label, values in rows],
            )
        ],
        figure=draw_confusion(headline.confusion_matrix, headline.classes, heading),
    )


@_view.register
def _(answers: FilePredictions) -> _View:
    return _View(
        counted(len(answers), "image"),
        tables=[
            _table(
                ("file", "predicted", *answers.classes),
                (
                    (
                        str(one.path),
                        one.predicted or f"unreadable: {one.error}",
                        *(
                            ["" for _ in answers.classes]
                            if one.probs is None
                            else [percent(float(prob)) for prob in one.probs]
                        ),
                    )
                    for one in answers
                ),
            )
        ],
    )


@_view.register
def _(exports: Exports) -> _View:
    failed = [one.kind for one in exports if one.artefact is None]
    return _View(
        "Exported models",
        f"Not written: {', '.join(failed)}." if failed else "Each answers as the run.",
        is_warning=bool(failed),
        tables=[
            _Table(
                ("format", "size", "verdict"),
                [
                    (
                        one.kind,
                        megabytes(one.artefact.size_bytes) if one.artefact else "",
                        "; ".join(one.verdict.reasons) or "good",
                    )
                    for one in exports
                ],
            )
        ],
    )


@_view.register
def _(measured: Benchmark) -> _View:
    return _View(
        "Exported models side by side",
        sentences=measured.sentences,
        tables=[_table(*benchmark_rows(measured))],
    )


@_view.register
def _(found: Comparison) -> _View:
    return _View(
        found.title or "Runs side by side",
        sentences=found.summary,
        tables=[_table(*table_rows(found, is_short=True))],
    )


def _counts(counts: Mapping[str, Mapping[str, int]], classes: Sequence[str]) -> _Table:
    """Return a table with the number of files by subset and class."""
    return _Table(
        ("subset", *classes, "all"),
        [
            (
                subset,
                *(f"{found.get(name, 0):,}" for name in classes),
                f"{sum(found.values()):,}",
            )
            for subset, found in counts.items()
        ],
    )


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> _Table:
    """Return the first rows of a table that may be long."""
    listed = list(rows)
    return _Table(heading, listed[:_MAX_ROWS], max(0, len(listed) - _MAX_ROWS))
