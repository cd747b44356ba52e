"""What the examples of the public functions name: the folders DATA and runs/first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

import tumorlens
from support.images import CLASSES, draw_image

if TYPE_CHECKING:
    from pathlib import Path

TINY = {
    "model.name": "test_resnet",
    "model.pretrained": "no",
    "model.size_px": 32,
    "optim.epochs": 1,
}
"""Settings of a run that trains in seconds."""


def make_examples(folder: Path) -> None:
    """Write 24 images to DATA and an evaluated and exported run to runs/first."""
    for place, label in enumerate(CLASSES):
        (folder / "DATA" / label).mkdir(parents=True)
        for number in range(6):
            image = Image.fromarray(draw_image(label, 100 * place + number))
            image.save(folder / "DATA" / label / f"{number}.png")
    run = tumorlens.train(
        data=folder / "DATA", out=folder / "runs/first", settings=TINY
    )
    tumorlens.evaluate(run)
    tumorlens.export(run, ["onnx"])
