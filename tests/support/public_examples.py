"""A folder with what the examples of the public functions name: DATA and runs/first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
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


@pytest.fixture(scope="session")
def folder_of_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 24 images in DATA and an exported run in runs/first."""
    folder = tmp_path_factory.mktemp("examples")
    for place, label in enumerate(CLASSES):
        (folder / "DATA" / label).mkdir(parents=True)
        for number in range(6):
            image = Image.fromarray(draw_image(label, 100 * place + number))
            image.save(folder / "DATA" / label / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = tumorlens.train(data="DATA", out="runs/first", settings=TINY)
        tumorlens.evaluate(run)
        tumorlens.export(run, ["onnx"])
    return folder
