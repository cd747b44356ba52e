"""The command that answers for images: `predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tumorlens import terminal
from tumorlens.cli_options import RunArgument
from tumorlens.cli_series import (
    DicomOutOption,
    IdentifyOption,
    NoTumorOption,
    RuleOption,
    SeriesOption,
    SeriesOptions,
    predict_series,
)
from tumorlens.extras import require

STATUS_UNREADABLE = 3


def predict(
    path: RunArgument,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files, folders and DICOMDIRs."),
    ],
    *,
    more_runs: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="RUN", help="One more run; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write .csv, .json or .parquet instead."),
    ] = None,
    series: SeriesOption = None,
    series_rule: RuleOption = None,
    no_tumor_class: NoTumorOption = None,
    identify: IdentifyOption = False,
    dicom_out: DicomOutOption = None,
) -> int:
    """Give the probability of every class for images."""
    stage = require("tumorlens.predict")
    if out:
        stage.check_output(out)
    options = SeriesOptions(series, series_rule, no_tumor_class, identify, dicom_out)
    if options.is_wanted(images):
        return _status(
            predict_series((path, *(more_runs or [])), images, options, out=out)
        )
    files = stage.find_images(images)
    answers = []
    for run_path in (path, *(more_runs or [])):
        predictor = stage.Predictor.open(run_path)
        with terminal.counting(predictor.name) as progress:
            predictions = list(predictor.predict_files(files, progress=progress))
        answers.append((predictor.name, predictor.classes, predictions))
    if out:
        stage.save_predictions(out, answers)
        print(f"the probabilities are in {out}")
    else:
        terminal.say_predictions(answers)
    return _status(sum(not answer.predicted for answer in answers[0][2]))


def _status(num_unreadable: int) -> int:
    if num_unreadable:
        print(f"{terminal.files(num_unreadable)} could not be read", file=sys.stderr)
        return STATUS_UNREADABLE
    return 0
