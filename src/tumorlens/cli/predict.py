"""The command that gives probabilities: `predict`, by image or by DICOM series."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import Device, DeviceOption
from tumorlens.errors import ConfigError
from tumorlens.system import keep_freed_memory
from tumorlens.text import counted, one_line, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tumorlens.data.dicom.series import Found
    from tumorlens.deploy.explain import Explainer
    from tumorlens.deploy.prediction_file import Row, RowFile
    from tumorlens.deploy.predictor import Predictor
    from tumorlens.deploy.series import SeriesAnswer

STATUS_UNREADABLE = 3

TABLE_FILES = 1000
"""Number of files in a printed table. More files make further tables, so that the first
rows appear at once and memory stays bounded."""


Rule = Literal["mean", "most-suspicious"]
"""As `tumorlens.deploy.series.Rule`, without the time of that import."""

SeriesOption = Annotated[
    bool | None,
    typer.Option(
        "--series/--no-series",
        help="Predict DICOM series by series. Default: yes for a DICOMDIR, for DICOM "
        "files in folders and for more than one of them.",
    ),
]
RuleOption = Annotated[
    Rule | None,
    typer.Option(
        help="How the slices give the result of a series: by their mean (default), or "
        "by the slice with the highest probability of any tumour.",
    ),
]
NoTumorOption = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS",
        help="The class that means no tumour, if its name does not show it.",
    ),
]
IdentifyOption = Annotated[
    bool, typer.Option("--identify", help="Add a column with the PatientID.")
]
DicomOutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Write the result of each series as DICOM: a structured report and a "
        "picture. The folder must hold no results yet, except with --resume. Both "
        "files carry the patient's name and number: they belong to the study.",
    ),
]


ExplainOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Then explain each answer, as tumorlens explain does: seconds an image.",
    ),
]


def predict(
    path: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Run folder, or artefact made by export."),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Image files, folders and DICOMDIR files."
        ),
    ],
    *,
    best: Annotated[
        bool,
        typer.Option(
            "--best", help="Use the run's fastest artefact with a good verdict."
        ),
    ] = False,
    more_runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--run", metavar="MODEL", help="Another model to compare with; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write .csv, .json, .jsonl or .parquet instead of a table.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the --out of a stopped call.")
    ] = False,
    series: SeriesOption = None,
    series_rule: RuleOption = None,
    no_tumor_class: NoTumorOption = None,
    identify: IdentifyOption = False,
    dicom_out: DicomOutOption = None,
    explain: ExplainOption = None,
    device: DeviceOption = "auto",
) -> int:
    """Predict the probability of every class, for images or DICOM series."""
    _check_output(out, resume=resume)
    options = SeriesOptions(series, series_rule, no_tumor_class, identify, dicom_out)
    by_series = options.is_wanted(images)
    if explain:
        _check_explain(
            explain, images, by_series=by_series, num_models=1 + len(more_runs or [])
        )
    if not by_series:  # what is wrong with them, before a network is loaded
        from tumorlens.data.files import walk_images

        walk_images(images)
    models = _open([path, *(more_runs or [])], best=best, device=device)
    predictors = [predictor for _, predictor in models]
    keep_freed_memory()
    explainer = _explainer(predictors[0]) if explain else None
    if by_series:
        num_unreadable = predict_series(models, images, options, out=out, resume=resume)
    elif out:
        num_unreadable = _write(out, predictors, images, resume=resume)
    else:
        num_unreadable = _show(predictors, images)
    if explain and explainer:
        from tumorlens.cli.explain import explain_files

        explain_files(explainer, images, explain)
    if num_unreadable:
        print(
            f"{counted(num_unreadable, 'file')} could not be read",
            file=sys.stderr,
        )
        return STATUS_UNREADABLE
    return 0


def _check_output(out: Path | None, *, resume: bool) -> None:
    """Refuse an output that would only fail after the last image.

    Raises:
        ConfigError: --resume without --out, or an unknown suffix.
    """
    if out:
        from tumorlens.deploy.prediction_file import check_output

        check_output(out)
    elif resume:
        raise ConfigError(
            "--resume continues a file, and there is no --out",
            hint="give the --out that was stopped",
        )


def _check_explain(
    out: Path, images: list[Path], *, by_series: bool, num_models: int
) -> None:
    """Refuse explanations that could not be made or written, before predicting.

    Raises:
        ConfigError: There are several models, or series.
    """
    if num_models > 1:
        raise ConfigError(
            f"--explain takes one model, got {num_models}",
            hint="explain one after the other: tumorlens explain MODEL IMAGE --out DIR",
        )
    if by_series:
        raise ConfigError(
            "--explain explains images, and these are DICOM series",
            hint="take --dicom-out, whose pictures have a heat map, or --no-series",
        )
    from tumorlens.report.explanations import check_explanations

    check_explanations(out, images)


def _explainer(predictor: Predictor) -> Explainer:
    from tumorlens.deploy.explain import Explainer

    return Explainer(predictor)


def _open(
    paths: list[Path], *, best: bool, device: Device
) -> list[tuple[Path, Predictor]]:
    """Load the models; with `best`, the fastest artefact of the first."""
    from tumorlens.deploy.predictor import Predictor

    if best:
        from tumorlens.deploy.benchmark.fastest import choose_fastest

        choice = choose_fastest(paths[0])
        print(one_line(choice.summary), file=sys.stderr)
        paths = [choice.path, *paths[1:]]
    for path in paths:
        _warn_of_unfinished(path)
    models = [(path, Predictor.open(path, device=device)) for path in paths]
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
    """Warn that the training of a run was not finished."""
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

    skipped = Counter[str]()
    files = walk_images(images, skipped=skipped)
    num_unreadable = 0
    while some := list(islice(files, TABLE_FILES)):
        answers = []
        for one in predictors:
            with terminal.counting(one.name) as progress:
                found = list(one.predict_files(some, progress=progress))
            answers.append((one.name, one.classes, found))
        terminal.print_predictions(answers)
        num_unreadable += sum(not answer.predicted for answer in answers[0][2])
    print_skipped(skipped)
    return num_unreadable


def print_skipped(skipped: Mapping[str, int]) -> None:
    """Print what was passed over in the folders, by its kind."""
    from tumorlens.data.files import described

    if skipped:
        print(f"skipped: {described(skipped)}", file=sys.stderr)


def _write(
    out: Path, predictors: list[Predictor], images: list[Path], *, resume: bool
) -> int:
    """Write the answers as they come, and return how many files have an error.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is there stays.
    """
    from tumorlens.data.files import count_images, walk_images
    from tumorlens.deploy.prediction_file import PredictionFile

    file = PredictionFile(out, predictors, resume=resume)
    with file, resumable(file), terminal.counting("predicting") as progress:
        # The folders are walked twice only if a bar is shown.
        total = count_images(images) * len(predictors) if progress else None
        for one in predictors:
            skipped = Counter[str]()  # the same for each
            remaining = file.remaining(one, walk_images(images, skipped=skipped))
            for answer in one.predict_files(remaining):
                file.add(one, answer)
                if progress:
                    progress(file.num_rows, total)
        file.finish()
    print(f"the probabilities are in {out}")
    print_skipped(skipped)
    return int(file.num_unreadable) // len(predictors)


@dataclass(frozen=True)
class SeriesOptions:
    """The options about series."""

    series: bool | None
    rule: Rule | None
    no_tumor: str | None
    identify: bool
    dicom_out: Path | None

    def is_wanted(self, paths: Sequence[Path]) -> bool:
        """Whether to predict series by series.

        Raises:
            ConfigError: --no-series together with an option for series.
        """
        about_series = {
            "--series-rule": self.rule is not None,
            "--no-tumor-class": self.no_tumor is not None,
            "--identify": self.identify,
            "--dicom-out": self.dicom_out is not None,
        }
        given = [name for name, is_given in about_series.items() if is_given]
        if self.series is False and given:
            raise ConfigError(
                f"--no-series, but {given[0]} is for series",
                hint="leave out one of the two",
            )
        if self.series is not None:
            return self.series
        from tumorlens.data.dicom.series import holds_study

        return bool(given) or holds_study(paths)


def predict_series(
    models: Sequence[tuple[Path, Predictor]],
    images: Sequence[Path],
    options: SeriesOptions,
    *,
    out: Path | None,
    resume: bool = False,
) -> int:
    """Answer for every slice and every series; return the number of unreadable ones.

    Args:
        models: Runs or artefacts, with the predictors that they were opened as.
        images: Files, folders and DICOMDIRs.
        options: The options about series.
        out: The table's file, which gets each series as it is answered; `None` prints
            the table.
        resume: Continue the file of a stopped session.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is there stays.
    """
    from tumorlens.data.dicom.series import find_series
    from tumorlens.data.images import ImageLimits
    from tumorlens.files import locked

    limits = [one.limits for _, one in models]
    found = find_series(
        images,
        identify=options.identify,
        limits=ImageLimits(
            max_bytes=max(one.max_bytes for one in limits),
            max_pixels=max(one.max_pixels for one in limits),
        ),
    )
    with ExitStack() as stack:
        if options.dicom_out:
            stack.enter_context(locked(options.dicom_out))
            _check_dicom_out(
                options.dicom_out, found, num_runs=len(models), resume=resume
            )
        return _predict_found(found, models, options, out=out, resume=resume)


def _predict_found(
    found: Found,
    models: Sequence[tuple[Path, Predictor]],
    options: SeriesOptions,
    *,
    out: Path | None,
    resume: bool,
) -> int:
    from tumorlens.deploy.prediction_file import RowFile
    from tumorlens.deploy.series import check_rule, columns_of

    predictors = [one for _, one in models]
    rule = options.rule or "mean"
    ways = [
        _Way(rule, check_rule(rule, one.classes, no_tumor=options.no_tumor))
        for one in predictors
    ]
    classes = list(dict.fromkeys(name for one in predictors for name in one.classes))
    with ExitStack() as stack:
        table: RowFile | _Shown = _Shown()
        if out:
            columns = columns_of(classes, identify=options.identify)
            table = file = stack.enter_context(
                RowFile(out, columns, predictors, resume=resume)
            )
            stack.enter_context(resumable(file))
        for (path, predictor), way in zip(models, ways, strict=True):
            write = (
                _writer(options.dicom_out, path, predictor)
                if options.dicom_out
                else lambda _: False
            )
            num_written = _answer(predictor, found, way, table, write)
        if isinstance(table, RowFile):
            table.finish()
            print(f"the probabilities are in {out}")
        else:
            _print_rows(classes, table.rows, identify=options.identify)
    if options.dicom_out:
        print(
            f"the DICOM results of {num_written} series are in {options.dicom_out}; "
            "they carry the patient's identity",
            file=sys.stderr,
        )
        if found.others:
            print(
                "of no series, so without a DICOM result: "
                f"{counted(len(found.others), 'file')}",
                file=sys.stderr,
            )
    print_skipped(found.skipped)
    return table.num_unreadable // len(models)


@contextmanager
def resumable(file: RowFile) -> Iterator[None]:
    """Say after Ctrl-C how to go on with a `tumorlens.deploy.prediction_file.RowFile`.

    Raises:
        KeyboardInterrupt: Again, when that is said.
    """
    try:
        yield
    except KeyboardInterrupt:
        if file.num_rows:
            words = f"to continue, repeat the command with --resume: {file.part}"
            print(words, file=sys.stderr)
        raise


class _Way(NamedTuple):
    """How the slices give the result of a series."""

    rule: Rule
    no_tumor: int | None


class _Shown:
    """Rows for the terminal, with the methods of `deploy.prediction_file.RowFile`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @property
    def num_unreadable(self) -> int:
        return sum(bool(row["error"]) for row in self.rows if row["kind"] != "series")

    def has_next(self, _path: Path, _run: str) -> bool:
        return False

    def add_rows(self, rows: Sequence[Row]) -> None:
        self.rows += rows


def _check_dicom_out(
    folder: Path, found: Found, *, num_runs: int, resume: bool
) -> None:
    """Refuse a folder or images that DICOM results cannot be written for.

    Raises:
        ConfigError: There are several runs.
    """
    from tumorlens.report.dicom_results import check_results

    if num_runs > 1:
        raise ConfigError(
            f"--dicom-out takes one run, got {num_runs}",
            hint="use one run after the other, each with its own folder",
        )
    check_results(folder, found, resume=resume)


def _writer(
    folder: Path, run: Path, predictor: Predictor
) -> Callable[[SeriesAnswer], bool]:
    """Return the function that writes a series' DICOM results, if there are any."""
    from tumorlens.report.dicom_results import notes_of, write_results

    notes = notes_of(run, predictor)
    return lambda answer: bool(write_results(folder, predictor, answer, notes=notes))


def _answer(
    predictor: Predictor,
    found: Found,
    way: _Way,
    table: RowFile | _Shown,
    write: Callable[[SeriesAnswer], bool],
) -> int:
    """Answer for what there is; return for how many series `write` wrote results.

    What an earlier session has left in the table is passed over, and counts as written.
    """
    from tumorlens.deploy import series as stage
    from tumorlens.deploy.predictor import Prediction
    from tumorlens.deploy.series import answer_series

    rows_of = partial(stage.rows_of, predictor.name, predictor.classes)
    total = sum(len(series.slices) for series in found.series)
    total += len(found.others) + len(found.damaged)
    done = num_written = 0
    with terminal.counting(predictor.name) as progress:

        def count(num_done: int) -> None:
            nonlocal done
            done += num_done
            if progress is not None:
                progress(done, total)

        others = [
            path for path in found.others if not table.has_next(path, predictor.name)
        ]
        count(len(found.others) - len(others))
        for one in predictor.predict_files(others):
            table.add_rows(rows_of([], [one]))
            count(1)
        for path, error in found.damaged.items():
            if not table.has_next(path, predictor.name):
                table.add_rows(rows_of([], [Prediction(path, None, None, error)]))
            count(1)
        for series in found.series:
            if table.has_next(series.slices[0].path, predictor.name):
                count(len(series.slices))
                num_written += 1
                continue
            answer = answer_series(
                predictor,
                series,
                rule=way.rule,
                no_tumor=way.no_tumor,
                progress=count,
            )
            # Before the rows: what has rows is not answered again.
            num_written += write(answer)
            table.add_rows(rows_of([answer]))
    return num_written


def _print_rows(
    classes: Sequence[str], rows: Sequence[Row], *, identify: bool = False
) -> None:
    """Print the slices of each series, and below them what the series comes to."""
    several = len({row["run"] for row in rows}) > 1
    heading = ["series", "slice", "file", *(["run"] if several else []), "predicted"]
    terminal.print_table(
        [*heading, *classes, *(["patient"] if identify else [])],
        [
            [
                str(row.get("series") or ""),
                "all" if row["kind"] == "series" else str(row.get("slice") or ""),
                _file(row),
                *([row["run"]] if several else []),
                row.get("predicted") or "unreadable",
                *(
                    percent(row[f"prob_{name}"])
                    if row.get(f"prob_{name}") is not None
                    else ""
                    for name in classes
                ),
                *([row.get("patient") or ""] if identify else []),
            ]
            for row in rows
        ],
    )


def _file(row: Row) -> str:
    if row["kind"] == "series":
        return str(row["error"] or row["rule"])
    frame = f", frame {row['frame']}" if row.get("frame") else ""
    error = f": {row['error']}" if row["error"] else ""
    return f"{row['path']}{frame}{error}"
