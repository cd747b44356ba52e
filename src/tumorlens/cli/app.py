"""The command line: each command parses, calls the stages, and prints.

Nothing is computed here. The stages are loaded inside the commands, because
`tumorlens --help` must not wait for torch; a newcomer who moves such an import to the
top makes every call slower by seconds, and a test says so. The commands of one subject
are in a module of theirs, `cli_...`, and entered here in the order of the help.

Exit status: 0; 2 for an error that the user can remove (one `error:` and one `hint:`
line); 3 when `predict` met files that cannot be read, or a trial of `study run` failed;
130 after Ctrl-C.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tumorlens
from tumorlens.cli import benchmark, deploy, predict, runs, study, terminal
from tumorlens.cli.options import (
    STATUS_INTERRUPTED,
    DataArgument,
    MetadataOption,
    MovedOption,
    Protocol,
    RunArgument,
    SetOption,
    TrackOption,
    config_of,
    say_gain,
    tracker_of,
    train_words,
)
from tumorlens.errors import ConfigError, DataError, TumorlensError
from tumorlens.extras import require
from tumorlens.files import write_json
from tumorlens.system import is_main_process
from tumorlens.text import counted
from tumorlens.urls import without_password

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STATUS_ERROR = 2

app = typer.Typer(
    name="tumorlens",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(study.app, name="study")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: What follows the program's name; `None` takes it from the shell.

    Returns:
        One of those at the top of this module.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(
            _one_value_each(arguments) or ["--help"],
            prog_name="tumorlens",
            standalone_mode=False,
            # What was typed, for the record of a run. Passwords are kept nowhere.
            obj=shlex.join(["tumorlens", *map(without_password, arguments)]),
        )
    except typer.TyperException as error:
        terminal.say_error(error.format_message(), _see_help(arguments))
        return STATUS_ERROR
    except TumorlensError as error:
        terminal.say_error(error.problem, error.hint or _see_help(arguments))
        return STATUS_ERROR
    except KeyboardInterrupt:
        status = STATUS_INTERRUPTED
    if status == STATUS_INTERRUPTED:
        print("stopped", file=sys.stderr)
    return int(status or 0)


def _print_version(version: bool) -> None:  # noqa: FBT001 - Typer passes it so
    if version:
        print(f"tumorlens {tumorlens.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version and leave.",
        ),
    ] = False,
) -> None:
    """From a folder of brain MRI images to a classifier that can be trusted.

    For research and teaching; not a medical device.
    """


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    *,
    patients: Annotated[int, typer.Option(help="How many, 8 slices of each.")] = 48,
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 42,
) -> None:
    """Make a synthetic set with planted faults, to try things on."""
    stage = require("tumorlens.data.phantom.dataset")
    with terminal.counting("drawing patients") as progress:
        made = stage.make_phantom(out, patients=patients, seed=seed, progress=progress)
    counts = ", ".join(f"{count} {name}" for name, count in made.by_class.items())
    terminal.say(
        f"{made.num_images} synthetic images of {made.num_patients} invented patients "
        f"({counts}). They are no evidence about real ones."
    )
    terminal.say_next(
        f"images, metadata.csv and planted.json are in {out}",
        *("tumorlens", "audit", out, "--out", out.with_name(f"{out.name}-audit")),
    )


@app.command()
def audit(
    data: DataArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for both files.")],
    metadata: MetadataOption = None,
) -> None:
    """Say what is wrong with a set of images."""
    _check_folder(out)
    index = require("tumorlens.data.index").read_index(data, metadata=metadata)
    stage, pages = require("tumorlens.data.audit"), require("tumorlens.report")
    with terminal.counting("reading") as progress:
        copies = require("tumorlens.data.duplicates").find_copies(
            index, progress=progress
        )
    _check_any_readable(data, len(index.records), copies.unreadable)
    found = stage.audit(index, copies)
    write_json(out / "audit.json", found)
    page = pages.write_audit_page(out / "audit.json", data=data, out=out / "audit.html")
    terminal.say_audit(found)
    where = f"the page with the pictures is {page}, audit.json is beside it"
    if stage.is_trainable(found):
        terminal.say_next(where, *train_words(data))
    else:
        terminal.say(where)
        terminal.say("next: mend or remove the files that cannot be read")


@app.command()
def split(
    data: DataArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="CSV", help="File to write.")],
    protocol: Annotated[
        Protocol, typer.Option(help="How the subsets are made.")
    ] = Protocol.GROUPED,
    metadata: MetadataOption = None,
    settings: SetOption = None,
) -> None:
    """Write the subset of every file, to look at or to edit."""
    config = config_of(
        None, settings, ("data.protocol", protocol), ("data.metadata", metadata)
    )
    index = require("tumorlens.data.index").read_index(
        data, metadata=config.data.metadata
    )
    with terminal.counting("reading") as progress:
        copies = require("tumorlens.data.duplicates").find_copies(
            index,
            limits=require("tumorlens.training.dataset").image_limits(config.data),
            progress=progress,
        )
    rows = require("tumorlens.data.split").make_split(
        index,
        copies,
        protocol=config.data.protocol,
        val_fraction=config.data.val_fraction,
        test_fraction=config.data.test_fraction,
        num_folds=config.data.num_folds,
        seed=config.train.seed,
    )
    require("tumorlens.data.index").write_split(out, rows)
    verdict = require("tumorlens.data.audit").judge_leak(rows, index, copies)
    terminal.say_split(rows, index.classes)
    terminal.say(verdict.words)
    terminal.say_next(
        f"the split is in {out}",
        *train_words(data, f"data.protocol={protocol}", f"data.split={out}"),
    )


@app.command()
def train(
    context: typer.Context,
    config_path: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="TOML file. Default: good settings."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    data: Annotated[
        Path | None, typer.Option(metavar="DATA", help="The same as data.path.")
    ] = None,
    settings: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    track: TrackOption = None,
) -> int:
    """Train one network, or one for each fold, into a run folder."""
    if resume:
        _refuse_settings(out, config_path, data, settings)
    config = None if resume else config_of(config_path, settings, ("data.path", data))
    stage = require("tumorlens.training.fit")
    tracker = tracker_of(track)
    with (
        terminal.training() as display,
        tracker.following(out, display)
        if tracker
        else nullcontext(display) as listener,
    ):
        result = stage.train(
            config, out=out, resume=resume, command=context.obj, listener=listener
        )
    if not result.is_main_process:
        return 0 if result.is_finished else STATUS_INTERRUPTED
    if not is_main_process():
        return 0
    terminal.say_training(result)
    if tracker and (words := tracker.words(tracker.url_of(result.run))):
        terminal.say(words)
    if not result.is_finished:
        terminal.say_next(
            f"everything so far is in {out}",
            *("tumorlens", "train", "--resume", "--out", out),
            *([] if track is None else ["--track"]),
        )
        return STATUS_INTERRUPTED
    terminal.say_next(f"the run is in {out}", "tumorlens", "evaluate", out)
    return 0


@app.command()
def evaluate(
    context: typer.Context,
    path: RunArgument,
    *,
    subset: Annotated[
        str | None,
        typer.Option(
            help="test, or val while choices are being made. Default: test; val with "
            "--tta."
        ),
    ] = None,
    data: MovedOption = None,
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Say what test-time augmentation would change."),
    ] = False,
    track: TrackOption = None,
) -> None:
    """Measure a run on images that it was not trained on."""
    run = require("tumorlens.runs.folder").open_run(path)
    tracker = tracker_of(track)
    if tta:
        say_gain(run, subset=subset, data=data, command=context.obj)
        if tracker:
            tracker.mirror(run)
        out = f"{path}-tta"
        terminal.say_next(
            f"the figures are in {run.tta_path(subset or 'val')}",
            *("tumorlens", "ensemble", path, "--tta", "--out", out),
        )
        return
    stage = require("tumorlens.evaluation.measure")
    with terminal.counting("predicting") as progress:
        measures = stage.evaluate(
            run,
            subset=subset or "test",
            data=data,
            command=context.obj,
            progress=progress,
        )
    if tracker:
        tracker.mirror(run)
    terminal.say_measures(measures)
    terminal.say_next(
        f"predictions.csv and metrics.json are in {path}", "tumorlens", "report", path
    )


@app.command()
def report(
    path: RunArgument,
    *,
    data: MovedOption = None,
    track: TrackOption = None,
) -> None:
    """Write the page of an evaluated run and its figures."""
    run = require("tumorlens.runs.folder").open_run(path)
    tracker = tracker_of(track)
    page = require("tumorlens.report").write_run_report(run, data=data)
    if tracker:
        tracker.mirror(run)
    if page.num_missing:
        terminal.say_warning(
            f"{page.num_missing} pictures are missing from the page, the first is "
            f"{page.why_not}; --data DIR says where the images are now"
        )
    terminal.say_next(
        f"the page is {page.path}, its figures are in {run.figures_dir}",
        *("tumorlens", "predict", path, "IMAGE"),
    )


app.command()(predict.predict)
app.command()(study.lr_find)
app.command("import")(runs.import_weights)
app.command()(runs.runs)
app.command()(study.compare)
app.command()(runs.ensemble)
app.command()(deploy.export)
app.command()(benchmark.benchmark)


def _one_value_each(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with one value for each --track and --batch.

    Typer knows no option whose value may be left out, nor one with several.

    Example:
        >>> _one_value_each(["--track", "run"])
        ['--track=', 'run']
        >>> _one_value_each(["run", "--batch", "1", "8", "--threads", "2"])
        ['run', '--batch', '1', '--batch', '8', '--threads', '2']
    """
    words: list[str] = []
    is_batch = False
    for place, word in enumerate(arguments):
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if word == "--track" and "://" not in following:
            words.append("--track=")
            continue
        is_batch = word == "--batch" or (is_batch and word.isdecimal())
        if is_batch and word.isdecimal() and words[-1] != "--batch":
            words.append("--batch")
        words.append(word)
    return words


def _refuse_settings(out: Path, *given: object) -> None:
    """Refuse to resume with settings: they would be ignored.

    Raises:
        ConfigError: Any of `given` is there.
    """
    if any(given):
        raise ConfigError(
            f"--resume continues {out} with the settings it was started with",
            hint="leave out CONFIG, --data and --set, or start another run",
        )


def _check_folder(out: Path) -> None:
    """Refuse an --out for several files that is a file itself.

    Raises:
        ConfigError: It is.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(
            f"--out {out} is a file",
            hint="--out is a folder, for audit.json and audit.html: name a new one",
        )


def _check_any_readable(
    data: Path, num_files: int, unreadable: Mapping[str, str]
) -> None:
    """Refuse a set of which nothing can be audited.

    Raises:
        DataError: Not one file can be read.
    """
    if len(unreadable) == num_files:
        path, reason = next(iter(unreadable.items()))
        raise DataError(
            f"none of {counted(num_files, 'file')} in {data} can be read; the "
            f"first is {path}: {reason}",
            hint="give a folder of JPEG, PNG, TIFF, BMP or DICOM images",
        )


def _see_help(arguments: Sequence[str]) -> str:
    """Return the hint that names the help of the command that was given, if any."""
    known = {
        # As Typer names them: `lr_find` is the command lr-find.
        info.name or info.callback.__name__.replace("_", "-")
        for info in app.registered_commands
        if info.callback
    }
    command = [word for word in arguments[:1] if word in known]
    return f"see {shlex.join(['tumorlens', *command, '--help'])}"
