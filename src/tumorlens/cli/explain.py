"""The command that explains: what an answer rests on, and what that is worth."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import DeviceOption
from tumorlens.cli.predict import STATUS_UNREADABLE, print_skipped
from tumorlens.system import keep_freed_memory
from tumorlens.text import counted

if TYPE_CHECKING:
    from tumorlens.deploy.explain import Explainer

Method = Literal["grad-cam", "integrated-gradients", "occlusion"]
"""As `tumorlens.deploy.explain.Method`, without the time of that import."""


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
    device: DeviceOption = "auto",
) -> int:
    """Show what the answers rest on, and check whether the maps can be believed."""
    from tumorlens.data.files import walk_images
    from tumorlens.deploy.explain import Explainer
    from tumorlens.deploy.predictor import Predictor
    from tumorlens.report.explanations import check_explanations

    check_explanations(out, images)
    walk_images(images)  # what is wrong with them, before a network is loaded
    keep_freed_memory()
    explainer = Explainer(
        Predictor.open(path, device=device), method=method, label=label
    )
    return STATUS_UNREADABLE if explain_files(explainer, images, out) else 0


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
