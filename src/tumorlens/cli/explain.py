"""The command that explains: what an answer rests on, and what that is worth."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import DeviceOption, MovedOption, check_options
from tumorlens.cli.predict import STATUS_UNREADABLE, print_skipped
from tumorlens.errors import ConfigError
from tumorlens.system import keep_freed_memory
from tumorlens.text import counted

if TYPE_CHECKING:
    from tumorlens.deploy.explain import Explainer

Method = Literal["grad-cam", "integrated-gradients", "occlusion"]
"""As `tumorlens.deploy.explain.Method`, without the time of that import."""


MAX_NEIGHBOURS = 12
"""As many as can be told apart side by side."""


def explain(
    path: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Run folder, or artefact made by export."),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files and folders.")
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="New folder for a picture and a map of each image, and checks.json.",
        ),
    ],
    method: Annotated[
        Method | None,
        typer.Option(
            help="Default: grad-cam for a run; occlusion for an artefact, which has no "
            "gradients."
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="The class to explain. Default: the predicted one of each image.",
        ),
    ] = None,
    neighbours: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=MAX_NEIGHBOURS,
            help="Show the N most similar training images too; needs the run's images.",
        ),
    ] = 0,
    data: MovedOption = None,
    device: DeviceOption = "auto",
) -> int:
    """Show what the answers rest on, and check whether the maps can be believed."""
    from tumorlens.data.files import walk_images
    from tumorlens.deploy.explain import Explainer
    from tumorlens.deploy.predictor import Predictor
    from tumorlens.report.explanations import check_explanations

    if not neighbours:
        check_options("without --neighbours", **{"--data": data})
    check_explanations(out, images)
    walk_images(images)  # what is wrong with them, before a network is loaded
    keep_freed_memory()
    explainer = Explainer(
        Predictor.open(path, device=device), method=method, label=label
    )
    if neighbours:
        _look_up_neighbours(explainer, path, count=neighbours, data=data)
    return STATUS_UNREADABLE if explain_files(explainer, images, out) else 0


def _look_up_neighbours(
    explainer: Explainer, path: Path, *, count: int, data: list[Path] | None
) -> None:
    """Read the training images of a run.

    Raises:
        ConfigError: The model is an artefact, which does not know them.
    """
    from tumorlens.deploy.artefact import is_artefact
    from tumorlens.runs.folder import open_run

    if is_artefact(path):
        raise ConfigError(
            f"--neighbours needs the training images, and {path} is an artefact",
            hint="name the run, or leave out --neighbours",
        )
    with terminal.counting("reading training images") as progress:
        explainer.look_up_neighbours(
            open_run(path), count=count, data=data, progress=progress
        )


def explain_files(explainer: Explainer, images: list[Path], out: Path) -> int:
    """Explain files into a folder; print the checks, return how many are unreadable."""
    from tumorlens.data.files import walk_images
    from tumorlens.report.explanations import CHECKS_FILE, write_explanations

    skipped = Counter[str]()
    with terminal.counting("explaining") as progress:
        found = write_explanations(
            explainer, walk_images(images, skipped=skipped), out, progress=progress
        )
    terminal.print_explanations(found)
    print_skipped(skipped)
    terminal.print_line(f"pictures, maps and {CHECKS_FILE} are in {out}")
    num_unreadable = len(found.images) - found.summary.num_images
    if num_unreadable:
        print(
            f"{counted(num_unreadable, 'file')} could not be explained",
            file=sys.stderr,
        )
    return num_unreadable
