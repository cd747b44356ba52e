"""What `predict` does with the images of a clinic: series instead of files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tumorlens import terminal
from tumorlens.errors import ConfigError
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence


class SeriesRule(StrEnum):
    """The rules as choices of an option: those of `series_answers.RULES`."""

    MEAN = "mean"
    MOST_SUSPICIOUS = "most-suspicious"


SeriesOption = Annotated[
    bool | None,
    typer.Option(
        "--series/--no-series",
        help="Answer DICOM series by series. Default: yes for a DICOMDIR, for DICOM "
        "files in folders and for more than one of them.",
    ),
]
RuleOption = Annotated[
    SeriesRule | None,
    typer.Option(
        help="What a series as a whole is: the mean of its slices (default), or the "
        "slice with the highest probability of any tumour.",
    ),
]
NoTumorOption = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="Which class means no tumour, where its name does not say so.",
    ),
]
IdentifyOption = Annotated[
    bool, typer.Option("--identify", help="Add the PatientID to the rows.")
]
DicomOutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write each series' result as DICOM, a structured report and a picture. "
        "They belong to the patient's study, so name and number of the patient are "
        "in them.",
    ),
]


@dataclass(frozen=True)
class SeriesOptions:
    """What was said about series on the command line."""

    series: bool | None
    rule: SeriesRule | None
    no_tumor: str | None
    identify: bool
    dicom_out: Path | None

    def is_wanted(self, paths: Sequence[Path]) -> bool:
        """Whether the answer is to be given series by series.

        Raises:
            ConfigError: --no-series, and an option that is about series.
        """
        about_series = {
            "--series-rule": self.rule is not None,
            "--no-tumor-class": self.no_tumor is not None,
            "--identify": self.identify,
            "--dicom-out": self.dicom_out is not None,
        }
        asked = [name for name, is_given in about_series.items() if is_given]
        if self.series is False and asked:
            raise ConfigError(
                f"--no-series, but {asked[0]} is about series",
                hint="leave out one of the two",
            )
        if self.series is not None:
            return self.series
        return bool(asked) or require("tumorlens.series").holds_study(paths)


def predict_series(
    models: Sequence[tuple[Path, Any]],
    images: Sequence[Path],
    options: SeriesOptions,
    *,
    out: Path | None,
) -> int:
    """Answer for every slice and every series; return the number of unreadable ones.

    Args:
        models: Runs or artefacts, with the predictors that they were opened as.
        images: Files, folders and DICOMDIRs.
        options: What was said about series.
        out: The table's file; `None` prints it.
    """
    answers_of = require("tumorlens.series_answers")
    tables = require("tumorlens.series_tables")
    found = require("tumorlens.series").find_series(images, identify=options.identify)
    if options.dicom_out:
        _check_dicom_out(options.dicom_out, found, num_runs=len(models))
    rule = str(options.rule or SeriesRule.MEAN)
    rows: list[dict[str, Any]] = []
    classes: dict[str, None] = {}
    num_unreadable = 0
    for number, (path, predictor) in enumerate(models):
        no_tumor = answers_of.check_rule(
            rule, predictor.classes, no_tumor=options.no_tumor
        )
        answers, others = _answers(
            predictor, found, rule, no_tumor, answers_of.answer_series
        )
        classes |= dict.fromkeys(predictor.classes)
        new = tables.rows_of(predictor.name, predictor.classes, answers, others)
        rows += new
        if options.dicom_out:
            _write_results(options.dicom_out, path, predictor, answers)
        if number == 0:
            num_unreadable = sum(
                bool(row["error"]) for row in new if row["kind"] != "series"
            )
    if out:
        columns = tables.columns_of(classes, identify=options.identify)
        tables.save_rows(out, columns, rows)
        print(f"the probabilities are in {out}")
    else:
        tables.print_rows(list(classes), rows, identify=options.identify)
    if found.skipped:
        words = require("tumorlens.series").described(found.skipped)
        print(f"skipped, as no image: {words}", file=sys.stderr)
    return num_unreadable


def _check_dicom_out(folder: Path, found: Any, *, num_runs: int) -> None:
    """Refuse what no DICOM results can be written for.

    Raises:
        ConfigError: Several runs are asked.
    """
    if num_runs > 1:
        raise ConfigError(
            f"--dicom-out takes one run, got {num_runs}",
            hint="ask one run after the other, each with a folder of its own",
        )
    require("tumorlens.dicom_results").check_results(folder, found)


def _write_results(folder: Path, run: Path, predictor: Any, answers: list[Any]) -> None:
    results = require("tumorlens.dicom_results")
    notes = require("tumorlens.model_notes").notes_of(run, predictor)
    num_written = 0
    with terminal.counting("heat maps") as progress:
        for done, answer in enumerate(answers, start=1):
            written = results.write_results(folder, predictor, answer, notes=notes)
            num_written += bool(written)
            if progress is not None:
                progress(done, len(answers))
    print(
        f"the DICOM results of {num_written} series are in {folder}; they carry the "
        "patient's identity",
        file=sys.stderr,
    )


def _answers(
    predictor: Any, found: Any, rule: str, no_tumor: int | None, answer_series: Any
) -> tuple[list[Any], list[Any]]:
    num_slices = sum(len(series.slices) for series in found.series)
    total = num_slices + len(found.others)
    done = 0
    with terminal.counting(predictor.name) as progress:

        def count(num_done: int) -> None:
            nonlocal done
            done += num_done
            if progress is not None:
                progress(done, total)

        answers = [
            answer_series(
                predictor, series, rule=rule, no_tumor=no_tumor, progress=count
            )
            for series in found.series
        ]
        others = list(predictor.predict_files(found.others)) if found.others else []
        count(len(others))
    return answers, others
