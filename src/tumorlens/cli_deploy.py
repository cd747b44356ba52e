"""The commands that take a run elsewhere: `export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tumorlens import terminal
from tumorlens.cli_options import MovedOption, RunArgument
from tumorlens.errors import ArtefactError, ConfigError, did_you_mean
from tumorlens.extras import require

if TYPE_CHECKING:
    from pathlib import Path

FormatOption = Annotated[
    list[str],
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="torchscript (legacy), torch-export, onnx, openvino, openvino-bf16, "
        "onnx-int8, openvino-int8, or all; repeatable.",
    ),
]


def export(
    context: typer.Context,
    path: RunArgument,
    *,
    formats: FormatOption,
    data: MovedOption = None,
    max_drop: Annotated[
        float, typer.Option(help="Accuracy that int8 may lose on val, a fraction.")
    ] = 0.01,
    max_difference: Annotated[
        float | None,
        typer.Option(help="Of a probability. Default: the format's own rounding."),
    ] = None,
) -> None:
    """Write a run in other formats, each with proof that it answers the same."""
    run = require("tumorlens.runs").open_run(path)
    found = require("tumorlens.export").export(
        run,
        _kinds(formats),
        data=data,
        max_drop=max_drop,
        max_difference=max_difference,
        command=context.obj,
    )
    for one in found:
        words = "; ".join(one.verdict["reasons"]) or "answers as the run does"
        terminal.say(f"{one.kind}: {words}")
    _refuse_failed(found, run.path)
    terminal.say_next(
        f"the artefacts are in {run.path / 'export'}",
        *("tumorlens", "predict", found[-1].artefact.path, "IMAGE"),
    )


def _refuse_failed(found: list[Any], run: Path) -> None:
    """End with an error where a verdict was against an artefact.

    Raises:
        ArtefactError: It was against one or several.
    """
    failed = [one.kind for one in found if one.artefact is None]
    if failed:
        raise ArtefactError(
            f"no artefact was written for {', '.join(failed)}: it does not answer as "
            "the run does",
            hint=f"{run / 'export' / 'parity.json'} has every difference",
        )


def _kinds(formats: list[str]) -> list[str]:
    """Return the formats that are asked for.

    Raises:
        ConfigError: One is unknown.
    """
    known = require("tumorlens.artefacts").KINDS
    kinds: list[str] = []
    for name in formats:
        if name != "all" and name not in known:
            raise ConfigError(
                f"unknown format {name!r}", hint=did_you_mean(name, [*known, "all"])
            )
        kinds += known if name == "all" else [name]
    return kinds
