"""The commands that measure: a run, a model on another set, and the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import complete_subset
from tumorlens.cli.options import (
    Device,
    DeviceOption,
    MetadataOption,
    MovedOption,
    RunArgument,
    TrackOption,
    TrackUrlOption,
    check_options,
    tracker_of,
)
from tumorlens.errors import ConfigError

if TYPE_CHECKING:
    from tumorlens.runs.external import ExternalMetrics
    from tumorlens.runs.folder import Run


def evaluate(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="Run folder; with --on, an artefact too; with --predictions, none.",
            show_default=False,
        ),
    ] = None,
    *,
    subset: Annotated[
        str | None,
        typer.Option(
            help="test, or val while choices are being made. Default: test; with "
            "--tta, val.",
            autocompletion=complete_subset,
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATA",
            help="Where the images are now, if they were moved; once for each set. "
            "With --predictions: the labelled folder or table of the images.",
        ),
    ] = None,
    device: DeviceOption = "auto",
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
    predictions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure the answers of any framework: a CSV or Parquet table, JSON, "
            "or a folder of ultralytics' text files.",
        ),
    ] = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="With --predictions: what the model was trained on, all of it. "
            "Default: what is beside the test subset of --data.",
        ),
    ] = None,
    logits: Annotated[
        bool,
        typer.Option("--logits", help="With --predictions: the numbers are logits."),
    ] = False,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="With --predictions: go on without answers that are wrong or missing.",
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="With --on or --predictions: name of the result. Default: that of "
            "the data."
        ),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FROM=TO",
            help="With --on or --predictions: classes of the model, and the class of "
            "the data that they are; repeatable. Default: by name.",
        ),
    ] = None,
    metadata: MetadataOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --on or --predictions: where to write. Default: external/NAME "
            "in the run, or a folder beside the answers, named after them.",
        ),
    ] = None,
    track: TrackOption = False,
    track_url: TrackUrlOption = None,
) -> None:
    """Measure a run, or the answers of any framework, on images with known classes."""
    if predictions is not None:
        check_options(
            "with --predictions",
            **{"RUN": path, "--on": on, "--subset": subset, "--tta": tta},
            **{"--track": track, "--track-url": track_url},
            **{"--device": device != "auto"},
        )
        _evaluate_answers(
            predictions,
            data,
            trained_on=trained_on,
            mapping=mapping or [],
            logits=logits,
            partial=partial,
            name=name,
            metadata=metadata,
            out=out,
        )
        return
    check_options(
        "without --predictions",
        **{"--trained-on": trained_on, "--logits": logits, "--partial": partial},
    )
    path = _given(path)
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
            device=device,
            command=context.obj,
        )
        return
    from tumorlens.runs.folder import open_run

    check_options(
        "without --on or --predictions",
        **{"--name": name, "--map": mapping, "--metadata": metadata, "--out": out},
    )
    run = open_run(path)
    tracker = tracker_of(track=track, url=track_url)
    if tta:
        show_tta(run, subset=subset, data=data, device=device, command=context.obj)
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
            device=device,
            command=context.obj,
            progress=progress,
        )
    if tracker:
        tracker.mirror(run)
    terminal.print_measures(measures)
    terminal.print_next(
        f"predictions.csv and metrics.json are in {path}", "tumorlens", "report", path
    )


def _given(path: Path | None) -> Path:
    """Return the run folder.

    Raises:
        ConfigError: None is given.
    """
    if path is None:
        raise ConfigError(
            "there is nothing to evaluate: neither RUN nor --predictions is given",
            hint="name a run folder, or answers: --predictions FILE --data DATA",
        )
    return path


def _evaluate_answers(
    predictions: Path,
    data: list[Path] | None,
    *,
    trained_on: Path | None,
    mapping: list[str],
    logits: bool,
    partial: bool,
    name: str | None,
    metadata: str | None,
    out: Path | None,
) -> None:
    """Measure the answers of any framework.

    Raises:
        ConfigError: The images are not named.
    """
    from tumorlens.evaluation.judge import judge_answers

    if data is None or len(data) != 1:
        raise ConfigError(
            "--predictions needs the images that were answered, of one set",
            hint="name their labelled folder or table: --data DATA",
        )
    found = judge_answers(
        predictions,
        data[0],
        trained_on=trained_on,
        mapping=mapping,
        logits=logits,
        partial=partial,
        name=name,
        metadata=metadata,
        out=out,
        stage=terminal.counting,
    )
    _show_external(found.metrics, found.folder, data=data[0])


def _evaluate_on(
    model: Path,
    on: Path,
    *,
    name: str | None,
    mapping: list[str],
    metadata: str | None,
    out: Path | None,
    device: Device,
    command: str,
) -> None:
    from tumorlens.deploy.external import evaluate_on

    found = evaluate_on(
        model,
        on,
        name=name,
        mapping=mapping,
        metadata=metadata,
        out=out,
        device=device,
        command=command,
        stage=terminal.counting,
    )
    _show_external(found.metrics, found.folder, data=on)


def _show_external(metrics: ExternalMetrics, folder: Path, *, data: Path) -> None:
    """Write the page of an evaluation on another set, and print its figures."""
    from tumorlens.files import locked
    from tumorlens.report import write_external_page

    with locked(folder):  # the page is made of the files
        page = write_external_page(folder, data=data)
    terminal.print_external(metrics)
    terminal.print_line(
        f"the page is {page.path}; predictions.csv, images.csv and external.json are "
        "beside it"
    )


def report(
    path: RunArgument,
    *,
    data: MovedOption = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show what the mistakes rest on; needs torch, a second or so each.",
        ),
    ] = False,
    track: TrackOption = False,
    track_url: TrackUrlOption = None,
) -> None:
    """Write the HTML page of an evaluated run, and its figures."""
    from tumorlens.report import write_run_report
    from tumorlens.runs.folder import open_run

    run = open_run(path)
    tracker = tracker_of(track=track, url=track_url)
    page = write_run_report(run, data=data, explain=explain)
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


def show_tta(
    run: Run,
    *,
    subset: str | None,
    data: list[Path] | None,
    device: Device,
    command: str,
) -> None:
    """Measure what test-time augmentation changes, on val by default, and print it."""
    from tumorlens.evaluation.tta import measure_tta

    with terminal.counting("predicting") as progress:
        effect = measure_tta(
            run,
            subset=subset or "val",
            data=data,
            device=device,
            command=command,
            progress=progress,
        )
    terminal.print_tta(effect)
