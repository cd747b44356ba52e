"""The commands that take a run elsewhere: `export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import MovedOption, RunArgument
from tumorlens.errors import ArtefactError, ConfigError, did_you_mean
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="onnx, openvino, openvino-bf16, openvino-int8, onnx-int8, torch-export, "
        "torchscript (legacy), or all; repeatable. Default: onnx and openvino-int8.",
    ),
]

DEFAULT_KINDS = ("onnx", "openvino-int8")
"""What runs nearly anywhere, and what is fastest on a CPU."""


def export(
    context: typer.Context,
    path: RunArgument,
    *,
    formats: FormatOption = None,
    data: MovedOption = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, max=1, help="Accuracy to lose on val at most, a fraction."),
    ] = 0.01,
    max_difference: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of a probability. Default: the format's own rounding; none for int8.",
        ),
    ] = None,
) -> None:
    """Write a run in other formats, each with proof that it answers the same.

    Every val image goes from its file to a label, by the run and by what was exported.
    Where a label flips that the run was sure of, or accuracy falls, nothing is written.
    """
    stage = require("tumorlens.deploy.export")
    run = require("tumorlens.runs.folder").open_run(path)
    found = stage.export(
        run,
        _kinds(formats or DEFAULT_KINDS),
        data=data,
        max_drop=max_drop,
        max_difference=max_difference,
        command=context.obj,
        stage=terminal.counting,
    )
    terminal.say_export([one.verdict for one in found], _sizes(found))
    for one in found:
        if one.is_earlier_gone:
            terminal.say(f"{one.kind}: the earlier one was removed")
    _refuse_failed(found, run.path)
    terminal.say_next(
        f"the artefacts are in {run.path / 'export'}",
        *("tumorlens", "predict", found[-1].artefact.path, "IMAGE"),
    )


def _sizes(found: list[Any]) -> list[int | None]:
    return [one.artefact.size_bytes if one.artefact else None for one in found]


def _refuse_failed(found: list[Any], run: Path) -> None:
    """End with an error where a verdict was against an artefact.

    Raises:
        ArtefactError: It was against one or several.
    """
    failed = [one for one in found if one.artefact is None]
    if failed:
        kinds = ", ".join(one.kind for one in failed)
        raise ArtefactError(
            f"no artefact was written for {kinds}: {failed[0].verdict.reasons[0]}",
            hint=f"{run / 'export' / 'parity.json'} has every difference",
        )


def _kinds(formats: Sequence[str]) -> list[str]:
    """Return the formats that are asked for.

    Raises:
        ConfigError: One is unknown.
    """
    known = require("tumorlens.deploy.artefact").KINDS
    kinds: list[str] = []
    for name in formats:
        if name != "all" and name not in known:
            raise ConfigError(
                f"unknown --format {name!r}", hint=did_you_mean(name, [*known, "all"])
            )
        kinds += (
            require("tumorlens.deploy.export").kinds_here() if name == "all" else [name]
        )
    left_out = [kind for kind in known if "all" in formats and kind not in kinds]
    if left_out:
        terminal.say(f"left out: {left_out[0]}, which this processor does not compute")
    return kinds
