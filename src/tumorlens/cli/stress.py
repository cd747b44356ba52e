"""The command that measures a run on worse images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import complete_subset
from tumorlens.cli.options import DeviceOption, MovedOption, RunArgument


def stress(
    context: typer.Context,
    path: RunArgument,
    *,
    subset: Annotated[
        str,
        typer.Option(
            help="test, or val while choices are being made.",
            autocompletion=complete_subset,
        ),
    ] = "test",
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="ARTEFACT",
            help="Measure this artefact of the run in its place; without torch.",
        ),
    ] = None,
    data: MovedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a run on worse images: noise, artefacts, exports, screenshots."""
    from tumorlens.deploy.stress import stress
    from tumorlens.report import write_stress_page
    from tumorlens.runs.folder import open_run

    run = open_run(path)
    made = stress(
        run,
        subset=subset,
        model=model,
        data=data,
        device=device,
        command=context.obj,
        stage=terminal.counting,
    )
    page = write_stress_page(run, made.path, data=data)
    terminal.print_stress(made.found)
    if page.num_missing:
        terminal.print_warning(
            f"{page.num_missing} pictures are missing from the page, the first is "
            f"{page.why_not}"
        )
    terminal.print_line(f"the page is {page.path}; {made.path.name} is beside it")
