"""Options that several commands share, and the settings made of them.

Nothing is parsed here: Typer reads the annotations. As in `cli`, the stages are loaded
inside the functions.
"""

from __future__ import annotations

import os
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import complete_setting
from tumorlens.errors import ConfigError
from tumorlens.system import is_main_process

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tumorlens.config import Config
    from tumorlens.runs.tracking import Tracker

STATUS_INTERRUPTED = 130


Protocol = Literal["as-given", "grouped", "grouped-kfold"]
"""As `tumorlens.config.Protocol`, without the time of that import."""

Device = Literal["auto", "cpu", "cuda", "mps", "xpu"]
"""As the setting `train.device`, likewise."""

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
        autocompletion=complete_setting,
    ),
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DATA",
        help="Images; the same as data.path. Several sets are pooled: repeat it.",
    ),
]
MovedOption = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DATA",
        help="Where the images are now, if they were moved; once for each set.",
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(help="Where to run a run's network. Default: a GPU if there is one."),
]
TrackOption = Annotated[
    bool,
    typer.Option(
        "--track",
        help="Mirror the run in MLflow: where it was tracked before, or else in the "
        "file mlflow.db beside it.",
    ),
]
TrackUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Mirror the run in the MLflow server or database at this URL.",
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder that train --out made.")
]


def config_of(
    path: Path | None,
    settings: list[str] | None,
    *options: tuple[str, object],
    start: Config | None = None,
    defaults: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    but: Collection[str] = (),
) -> Config:
    """Return the settings of a command: start < file < --set < its own options.

    Args:
        path: TOML file.
        settings: Assignments of --set.
        options: Setting and value of the command's own options; `None` is not given.
        start: The settings below them. Default: those of the package.
        defaults: Setting -> value, where the command's default is another.
        only: Settings that --set may have here. Default: all.
        but: Settings that --set may not have here.

    Raises:
        ConfigError: A setting is unknown or wrong, has no effect in this command, or an
            option contradicts --set.
    """
    from tumorlens.config import (
        as_setting,
        assign,
        check_used,
        merge,
        parse_assignment,
        parse_config,
        read_toml,
    )

    values = start.model_dump(mode="json", exclude_none=True) if start else {}
    for key, default in (defaults or {}).items():
        assign(values, key, default)
    merge(values, read_toml(path) if path else {})
    chosen: dict[str, object] = {}
    for assignment in settings or []:
        key, value = parse_assignment(assignment)
        check_used(key, only=only, but=but, shown=f"--set {key}")
        assign(values, key, value)
        chosen[key] = value
    for key, option in options:
        if option is None or option == []:
            continue
        value = as_setting(option)
        if chosen.get(key, value) != value:
            raise ConfigError(
                f"{key} is given twice: {value!r} by an option of its own, "
                f"{chosen[key]!r} by --set",
                hint="leave out one of the two",
            )
        assign(values, key, "")
        section, _, name = key.partition(".")
        # Text, whatever it looks like: "2024" and "none" are folders.
        values[section][name] = value
    return parse_config(values)


def check_options(beside: str, **given: object) -> None:
    """Refuse options that have no effect with, or without, another one.

    Raises:
        ConfigError: One is given.
    """
    for option, value in given.items():
        if value:
            raise ConfigError(f"{option} has no effect {beside}", hint="leave it out")


def tracker_of(*, track: bool, url: str | None) -> Tracker | None:
    """Return what mirrors a run in MLflow; `None` without `--track` and its URL."""
    if not (track or url) or not is_main_process():
        return None
    from tumorlens.runs.tracking import Tracker

    return Tracker(url, warn=terminal.print_warning)


def train_words(
    data: Sequence[Path] | None, *settings: str, config_path: Path | None = None
) -> list[object]:
    """Return the command that trains with some settings, to be named as the next.

    Its run folder is one that does not exist: the command can be used as it is.
    """
    words: list[object] = ["tumorlens", "train"]
    words += [config_path] if config_path else []
    for place in data or []:
        words += ["--data", place]
    for setting in settings:
        words += ["--set", setting]
    runs = (f"runs/{name}" for name in chain(["first"], count(2)))
    return [*words, "--out", next(run for run in runs if not os.path.lexists(run))]
