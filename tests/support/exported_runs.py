"""A run exported in every format, made once for all tests. Tests only read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from support.images import CLASSES, draw_image
from support.runs_on_images import make_run
from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.index import read_index
from tumorlens.data.seen import seen_of
from tumorlens.deploy.export import export, kinds_here

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.runs.folder import Run

NUM_EACH = 12
"""Images of each class: 6 in train, 3 in val, 3 in test."""


def write_images(root: Path, *, num_each: int = NUM_EACH) -> Path:
    """Draw class folders below `root`; sides differ, so that cropping matters."""
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number in range(num_each):
            pixels = draw_image(label, number)[:, number : 96 - number]
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


def export_everything(folder: Path) -> Run:
    """Make a run and its artefacts in every format that this machine can run."""
    run = make_run(folder / "run", write_images(folder / "data"))
    index = read_index(folder / "data")
    seen_of(run.split(), index, find_duplicates(index)).write(run.seen_path)
    export(run, kinds_here(), command="tumorlens export run --format all")
    return run
