"""The commands that measure: a run, a model on another set, and the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import complete_subset
from tumorlens.cli.options import (
    MetadataOption,
    MovedOption,
    RunArgument,
    TrackOption,
    TrackUrlOption,
    check_options,
    tracker_of,
)

if TYPE_CHECKING:
    from tumorlens.runs.folder import Run


def evaluate(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder; with --on, an artefact too."),
    ],
    *,
    subset: Annotated[
        str | None,
        typer.Option(
            help="test, or val while choices are being made. Default: test; with "
            "--tta, val.",
            autocompletion=complete_subset,
        ),
    ] = None,
    data: MovedOption = None,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Measure what test-time augmentation changes."),
    ] = False,
    on: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Measure a run or an artefact on another labelled folder or table, "
            "with and without the images that its training has seen.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="With --on: name of the result. Default: that of DATA."),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FROM=TO",
            help="With --on: classes of the model, and the class of DATA that they "
            "are; repeatable. Default: by name.",
        ),
    ] = None,
    metadata: MetadataOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --on: where to write. Default: external/NAME in the run.",
        ),
    ] = None,
    track: TrackOption = False,
    track_url: TrackUrlOption = None,
) -> None:
    """Measure a run on images it was not trained on."""
    if on is not None:
        check_options(
            "with --on",
            **{"--subset": subset, "--data": data, "--tta": tta, "--track": track},
            **{"--track-url": track_url},
        )
        _evaluate_on(
            path,
            on,
            name=name,
            mapping=mapping or [],
            metadata=metadata,
            out=out,
            command=context.obj,
        )
        return
    from tumorlens.runs.folder import open_run

    check_options(
        "without --on",
        **{"--name": name, "--map": mapping, "--metadata": metadata, "--out": out},
    )
    run = open_run(path)
    tracker = tracker_of(track=track, url=track_url)
    if tta:
        show_tta(run, subset=subset, data=data, command=context.obj)
        if tracker:
            tracker.mirror(run)
        tta_run = f"{path}-tta"
        terminal.print_next(
            f"the figures are in {run.tta_path(subset or 'val')}",
            *("tumorlens", "ensemble", path, "--tta", "--out", tta_run),
        )
        return
    from tumorlens.evaluation import measure

    with terminal.counting("predicting") as progress:
        measures = measure.evaluate(
            run,
            subset=subset or "test",
            data=data,
            command=context.obj,
            progress=progress,
        )
    if tracker:
        tracker.mirror(run)
    terminal.print_measures(measures)
    terminal.print_next(
        f"predictions.csv and metrics.json are in {path}", "tumorlens", "report", path
    )


def _evaluate_on(
    model: Path,
    on: Path,
    *,
    name: str | None,
    mapping: list[str],
    metadata: str | None,
    out: Path | None,
    command: str,
) -> None:
    from tumorlens.deploy.external import evaluate_on
    from tumorlens.files import locked
    from tumorlens.report import write_external_page

    found = evaluate_on(
        model,
        on,
        name=name,
        mapping=mapping,
        metadata=metadata,
        out=out,
        command=command,
        stage=terminal.counting,
    )
    with locked(found.folder):  # the page is made of the files
        page = write_external_page(found.folder, data=on)
    terminal.print_external(found.metrics)
    terminal.print_line(
        f"the page is {page.path}; predictions.csv, images.csv and external.json are "
        "beside it"
    )


def report(
    path: RunArgument,
    *,
    data: MovedOption = None,
    track: TrackOption = False,
    track_url: TrackUrlOption = None,
) -> None:
    """Write the HTML page of an evaluated run, and its figures."""
    from tumorlens.report import write_run_report
    from tumorlens.runs.folder import open_run

    run = open_run(path)
    tracker = tracker_of(track=track, url=track_url)
    page = write_run_report(run, data=data)
    if tracker:
        tracker.mirror(run)
    if page.num_missing:
        terminal.print_warning(
            f"{page.num_missing} pictures are missing from the page, the first is "
            f"{page.why_not}; give --data DIR if the images were moved"
        )
    terminal.print_next(
        f"the page is {page.path}, its figures are in {run.figures_dir}",
        *("tumorlens", "predict", path, "IMAGE"),
    )


def show_tta(run: Run, *, subset: str | None, data: Path | None, command: str) -> None:
    """Measure what test-time augmentation changes, on val by default, and print it."""
    from tumorlens.evaluation.tta import measure_tta

    with terminal.counting("predicting") as progress:
        effect = measure_tta(
            run, subset=subset or "val", data=data, command=command, progress=progress
        )
    terminal.print_tta(effect)
