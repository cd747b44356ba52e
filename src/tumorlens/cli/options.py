"""Options that several commands share, and what becomes of them.

Nothing is parsed here: Typer reads the annotations. As in `cli`, the stages are loaded
inside the functions.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tumorlens.cli import terminal
from tumorlens.extras import require
from tumorlens.system import is_main_process

STATUS_INTERRUPTED = 130


class Protocol(StrEnum):
    """The protocols as choices of an option: those of `config.Protocol`."""

    AS_GIVEN = "as-given"
    GROUPED = "grouped"
    GROUPED_KFOLD = "grouped-kfold"


DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder of class folders, with or without Training and Testing above "
        "them, or a CSV or Parquet table.",
    ),
]
MetadataOption = Annotated[
    str | None,
    typer.Option(
        metavar="CSV",
        help="Table with path and any of patient, source, source_label. Default: "
        "metadata.csv in DATA, where there is one; 'none' ignores that too.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, such as optim.lr=1e-4; repeatable. "
        "docs/settings.md has them all.",
    ),
]
MovedOption = Annotated[
    Path | None,
    typer.Option(metavar="DATA", help="Where the images are, if they moved."),
]
TrackOption = Annotated[
    str | None,
    typer.Option(
        metavar="[URL]",
        help="Mirror the run in MLflow: on the server at URL; without one where it "
        "was tracked before, else in a file mlflow.db beside it.",
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder named by train --out.")
]


def config_of(
    path: Path | None, settings: list[str] | None, *options: tuple[str, Any]
) -> Any:
    """Return the settings of file and --set, with options of their own on top."""
    # An option's value is text, whatever it looks like: "2024" is a folder.
    assignments = [
        f"{key}={json.dumps(str(value), ensure_ascii=False)}"
        for key, value in options
        if value is not None
    ]
    load_config = require("tumorlens.config").load_config
    return load_config(path, assignments=[*(settings or []), *assignments])


def tracker_of(track: str | None) -> Any:
    """Return the `tracking.Tracker` that is asked for, or `None`."""
    if track is None or not is_main_process():
        return None
    return require("tumorlens.runs.tracking").Tracker(track, warn=terminal.say_warning)


def say_gain(run: Any, *, subset: str | None, data: Path | None, command: str) -> None:
    """Measure what test-time augmentation changes, on val by default, and print it."""
    with terminal.counting("predicting") as progress:
        gain = require("tumorlens.evaluation.tta").measure_tta(
            run, subset=subset or "val", data=data, command=command, progress=progress
        )
    terminal.say_gain(gain)


def train_words(
    data: Path | None, *settings: str, config_path: Path | None = None
) -> list[object]:
    """Return the command that trains with some settings, to be named as the next."""
    words: list[object] = ["tumorlens", "train"]
    words += [config_path] if config_path else []
    words += ["--data", data] if data else []
    for setting in settings:
        words += ["--set", setting]
    return [*words, "--out", "runs/first"]
