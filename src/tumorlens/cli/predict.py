"""The command that answers for images: `predict`."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.series import (
    DicomOutOption,
    IdentifyOption,
    NoTumorOption,
    RuleOption,
    SeriesOption,
    SeriesOptions,
    predict_series,
    resumable,
)
from tumorlens.errors import ConfigError
from tumorlens.system import keep_freed_memory
from tumorlens.text import counted, one_line

if TYPE_CHECKING:
    from tumorlens.deploy.predictor import Predictor

STATUS_UNREADABLE = 3

TABLE_FILES = 1000
"""Files of one table. Where there are more, another one follows it: nobody waits for
the last file to see the first, and memory stays what it is."""


def predict(
    path: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Run folder, or artefact of export."),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files, folders and DICOMDIRs."),
    ],
    *,
    best: Annotated[
        bool,
        typer.Option("--best", help="Use the fastest good artefact of the run."),
    ] = False,
    more_runs: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="MODEL", help="One more; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write .csv, .json, .jsonl or .parquet instead."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out after a stop.")
    ] = False,
    series: SeriesOption = None,
    series_rule: RuleOption = None,
    no_tumor_class: NoTumorOption = None,
    identify: IdentifyOption = False,
    dicom_out: DicomOutOption = None,
) -> int:
    """Give the probability of every class for images."""
    _check_output(out, resume=resume)
    options = SeriesOptions(series, series_rule, no_tumor_class, identify, dicom_out)
    by_series = options.is_wanted(images)
    if not by_series:  # what is wrong with them, before a network is loaded
        from tumorlens.data.files import walk_images

        walk_images(images)
    models = _open([path, *(more_runs or [])], best=best)
    predictors = [predictor for _, predictor in models]
    keep_freed_memory()
    if by_series:
        num_unreadable = predict_series(models, images, options, out=out, resume=resume)
    elif out:
        num_unreadable = _write(out, predictors, images, resume=resume)
    else:
        num_unreadable = _show(predictors, images)
    if num_unreadable:
        print(
            f"{counted(num_unreadable, 'file')} could not be read",
            file=sys.stderr,
        )
        return STATUS_UNREADABLE
    return 0


def _check_output(out: Path | None, *, resume: bool) -> None:
    """Refuse what would only fail after the last image.

    Raises:
        ConfigError: Of the two options, or of the file's suffix.
    """
    if out:
        from tumorlens.deploy.row_files import check_output

        check_output(out)
    elif resume:
        raise ConfigError(
            "--resume goes on with a file, and there is no --out",
            hint="give the --out that was stopped",
        )


def _open(paths: list[Path], *, best: bool) -> list[tuple[Path, Predictor]]:
    """Load what is to answer; with `best`, the first one's fastest artefact."""
    from tumorlens.deploy.predictor import Predictor

    if best:
        from tumorlens.deploy.benchmark.fastest import choose_fastest

        choice = choose_fastest(paths[0])
        print(one_line(choice.words), file=sys.stderr)
        paths = [choice.path, *paths[1:]]
    for path in paths:
        _warn_of_unfinished(path)
    models = [(path, Predictor.open(path)) for path in paths]
    names = [one.name for _, one in models]
    for (_, one), name in zip(models, _told_apart(paths), strict=True):
        if names.count(one.name) > 1:
            one.name = name
    return models


def _told_apart(paths: list[Path]) -> list[str]:
    """Return the end of each path that is long enough to be no other's."""
    parts = [path.resolve().parts for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = next(
            number
            for number in range(1, len(own) + 1)
            if all(other[-number:] != own[-number:] for other in others)
            or number == len(own)
        )
        names.append(str(Path(*own[-length:])))
    return names


def _warn_of_unfinished(path: Path) -> None:
    """Say on standard error that more training would have changed the answers."""
    if not (path / "config.toml").is_file():
        return
    from tumorlens.runs.folder import open_run

    for run in open_run(path).networks():
        if run.card_path.is_file() and not run.is_finished:
            epoch = run.card(check_weights=False).epoch
            terminal.print_warning(
                f"the training of {run.path} is not finished: these are the weights "
                f"of epoch {epoch}"
            )


def _show(predictors: list[Predictor], images: list[Path]) -> int:
    """Print the answers, a table at a time, and return how many have an error."""
    from tumorlens.data.files import walk_images

    files = walk_images(images)
    num_unreadable = 0
    while some := list(islice(files, TABLE_FILES)):
        answers = []
        for one in predictors:
            with terminal.counting(one.name) as progress:
                found = list(one.predict_files(some, progress=progress))
            answers.append((one.name, one.classes, found))
        terminal.print_predictions(answers)
        num_unreadable += sum(not answer.predicted for answer in answers[0][2])
    return num_unreadable


def _write(
    out: Path, predictors: list[Predictor], images: list[Path], *, resume: bool
) -> int:
    """Write the answers as they come, and return how many files have an error.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is there stays.
    """
    from tumorlens.data.files import count_images, walk_images
    from tumorlens.deploy.prediction_files import PredictionFile

    file = PredictionFile(out, predictors, resume=resume)
    with file, resumable(file), terminal.counting("predicting") as progress:
        # Walked once more, but only where somebody watches.
        total = count_images(images) * len(predictors) if progress else None
        for one in predictors:
            remaining = file.remaining(one, walk_images(images))
            for answer in one.predict_files(remaining):
                file.add(one, answer)
                if progress:
                    progress(file.num_rows, total)
        file.finish()
    print(f"the probabilities are in {out}")
    return int(file.num_unreadable) // len(predictors)
