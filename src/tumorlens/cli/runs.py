"""The commands about run folders as such: `import`, `runs`, `ensemble`.

They parse, call the stages, and print.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import MovedOption, SetOption, config_of, print_gain


def import_weights(
    context: typer.Context,
    weights: Annotated[
        Path,
        typer.Argument(metavar="WEIGHTS", help="A .safetensors or .pth of tensors."),
    ],
    *,
    model: Annotated[str, typer.Option(help="timm's name of the network.")],
    classes: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="In the order of the network's outputs."),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    size_px: Annotated[
        int | None, typer.Option(help="Side of its input. Default: timm's.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Default: timm's.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Default: timm's.")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="How its images were made square: squash or pad.")
    ] = "squash",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Images to evaluate it on, split by data.protocol (as-given).",
        ),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Make a run folder of weights that were trained elsewhere."""
    from tumorlens.training import import_weights as stage

    numbers = {
        "size_px": size_px,
        "mean": mean and f"[{mean}]",
        "std": std and f"[{std}]",
    }
    config = config_of(
        None,
        [
            "data.protocol=as-given",
            *(settings or []),
            *(f"model.{key}={value}" for key, value in numbers.items() if value),
        ],
        *(("model.name", model), ("data.fit", fit), ("data.path", data)),
    )
    with terminal.counting("reading") as progress:
        imported = stage.import_weights(
            weights,
            config,
            classes=[name.strip() for name in classes.split(",")],
            out=out,
            command=context.obj,
            progress=progress,
        )
    terminal.print_line(imported.words)
    following = ["evaluate", out] if data else ["predict", out, "IMAGE"]
    terminal.print_next(f"the run is in {out}", "tumorlens", *following)


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Where to look. Default: runs."),
    ] = None,
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="A column or setting, one of = != < <= > >=, and a value, such as "
            "'test_accuracy>0.8' or model.name=resnet50; repeatable.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="A column or setting; -KEY: largest first."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs, with every setting.")
    ] = False,
) -> None:
    """List run folders: what they are, how far they came, what they scored."""
    from tumorlens.runs.listing import list_runs

    found = list_runs(
        folders or [Path("runs")], where=where or [], sort=sort, limit=limit
    )
    if as_json:
        print(json.dumps([row.as_json() for row in found], indent=2))
    else:
        terminal.print_runs(found)


def ensemble(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Finished runs of the same split."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    tta: Annotated[
        bool,
        typer.Option("--tta", help="Average over small variants of each image too."),
    ] = False,
    data: MovedOption = None,
) -> None:
    """Make one run of several, which averages their probabilities."""
    from tumorlens.evaluation import tta as views
    from tumorlens.training.ensemble import make_ensemble

    run = make_ensemble(
        paths, out=out, tta=views.POLICY if tta else "none", command=context.obj
    )
    names = ", ".join(run.member_names())
    terminal.print_line(f"{run.config.model.name}: the mean probabilities of {names}")
    if tta and views.can_measure(run):
        print_gain(run, subset=None, data=data, command=context.obj)
    elif tta:
        terminal.print_line(
            "what the views change is not measured: no image is in val of all members"
        )
    terminal.print_next(f"the run is in {out}", "tumorlens", "evaluate", out)
