"""The command line: its entry point, its errors, and the list of its commands.

A command parses its options, calls the stages, and prints; nothing is computed here.
The commands of one subject are in one module beside this one. Each imports its stages
inside the function: an import of torch at the top of any of these modules would make
every call slower by seconds, `tumorlens --help` included (a test would fail).

Exit status: 0; 2 for an error that the user can remove (one `error:` and one `hint:`
line); 3 when `predict` met files that cannot be read, or a trial of `study run` failed;
130 after Ctrl-C or SIGTERM; 141 when whatever reads the output has closed it, as `head`
does.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

import tumorlens
from tumorlens.cli import (
    card,
    data,
    deploy,
    evaluate,
    explain,
    predict,
    review,
    stress,
    study,
    terminal,
    train,
    trust,
)
from tumorlens.cli.completion import join_words_of_bash
from tumorlens.cli.options import STATUS_INTERRUPTED
from tumorlens.errors import TumorlensError, naming_refused_paths
from tumorlens.extras import naming_missing_extras
from tumorlens.system import is_out_of_memory, without_user
from tumorlens.urls import without_password

if TYPE_CHECKING:
    from collections.abc import Sequence

STATUS_ERROR = 2
STATUS_CLOSED = 141
"""What a shell reports for a program that a closed pipe has ended."""

app = typer.Typer(
    name="tumorlens",
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

    Raises:
        SystemExit: A shell was answered what it completes.
        RuntimeError: A fault of ours, or of a library.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    join_words_of_bash(os.environ)
    terminal.escape_unknown_letters()
    _stop_at_sigterm()
    try:
        return _run(arguments)
    except BrokenPipeError:
        pass
    except SystemExit as error:
        # Typer leaves so, with status 1, when a pipe is closed while a command prints.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
    terminal.discard_output()
    return STATUS_CLOSED


def _stop_at_sigterm() -> None:
    """Let SIGTERM stop a command as Ctrl-C does, with its temporary files removed."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _run(arguments: Sequence[str]) -> int:
    try:
        with naming_missing_extras(), naming_refused_paths():
            status = app(
                list(arguments) or ["--help"],
                prog_name="tumorlens",
                standalone_mode=False,
                # What was typed, for the record of a run, which may be handed on.
                # Passwords are kept nowhere.
                obj=without_user(
                    shlex.join(["tumorlens", *map(without_password, arguments)])
                ),
            )
    except typer.TyperException as error:
        terminal.print_error(error.format_message(), _see_help(arguments))
        return STATUS_ERROR
    except TumorlensError as error:
        terminal.print_error(error.problem, error.hint or _see_help(arguments))
        return STATUS_ERROR
    except KeyboardInterrupt:
        status = STATUS_INTERRUPTED
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        terminal.print_error(
            "memory ran out", "end other programs, or use smaller images or models"
        )
        return STATUS_ERROR
    if status == STATUS_INTERRUPTED:
        print("stopped", file=sys.stderr)
    # Here, where a closed pipe is still caught, and not when Python ends.
    terminal.flush_output()
    return int(status or 0)


def _print_version(*, version: bool) -> None:
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


# In the order of the help.
app.command()(data.phantom)
app.command()(data.audit)
app.command()(data.claim)
app.command()(data.split)
app.command()(train.train)
app.command()(trust.trust)
app.command()(evaluate.evaluate)
app.command()(evaluate.report)
app.command()(review.review)
app.command()(stress.stress)
app.command()(card.card)
app.command()(predict.predict)
app.command()(explain.explain)
app.command()(train.lr_find)
app.command("import")(train.import_weights)
app.command()(train.runs)
app.command()(study.compare)
app.command()(train.ensemble)
app.command()(deploy.export)
app.command()(deploy.benchmark)


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
