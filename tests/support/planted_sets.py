"""Sets of drawn images with copies planted from one into the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from support.images import CLASSES, draw_image
from tumorlens.data.near_duplicates import ORIENTATIONS, turned

if TYPE_CHECKING:
    from pathlib import Path

SPELT = {
    "clinic": dict.fromkeys(CLASSES, "") | {name: f"{name}_tumor" for name in CLASSES},
    "web": {name: name.replace("_", "") for name in CLASSES},
}
SPELT["clinic"]["no_tumor"] = "no_tumor"


@dataclass(frozen=True)
class Planted:
    """A file of `clinic` that was put into `web`."""

    source: str
    copy: str
    orientation: str
    """Turn that makes the source look like its copy."""

    is_identical: bool = False


PLANTED = (
    Planted("glioma_tumor/0.png", "glioma/same.png", "same", is_identical=True),
    Planted("glioma_tumor/1.png", "glioma/again.jpg", "same"),
    Planted("glioma_tumor/2.png", "glioma/mirrored.jpg", "mirrored"),
    Planted("no_tumor/0.png", "notumor/turned.jpg", "rotated-90"),
    Planted("no_tumor/1.png", "notumor/both.jpg", "mirrored-rotated-90"),
    # Two copies of one picture: the one with the lesser turn counts.
    Planted("pituitary_tumor/0.png", "pituitary/near.jpg", "mirrored"),
    Planted("pituitary_tumor/0.png", "pituitary/far.jpg", "rotated-180"),
    # Under another label.
    Planted("meningioma_tumor/0.png", "glioma/wrong.jpg", "rotated-90"),
)


def draw_set(root: Path, *, name: str, num_each: int, first_seed: int) -> Path:
    """Write class folders in the spelling of a set, each image another one."""
    for label in CLASSES:
        folder = root / SPELT[name][label]
        folder.mkdir(parents=True)
        for number in range(num_each):
            image = draw_image(label, first_seed + number)
            Image.fromarray(image).save(folder / f"{number}.png")
    return root


def plant(source: Path, copy: Path, orientation: str) -> None:
    """Write a copy of an image, turned, in the format of its suffix."""
    image = np.asarray(Image.open(source))
    turn = turned(image, ORIENTATIONS.index(orientation))
    Image.fromarray(np.ascontiguousarray(turn)).save(copy, quality=90)


def make_two_sets(folder: Path, *, num_each: int = 5) -> tuple[Path, Path]:
    """Make `clinic` and `web`, which has copies as in `PLANTED`.

    Each has `num_each` pictures of its own in each of the four classes.
    """
    clinic = draw_set(folder / "clinic", name="clinic", num_each=num_each, first_seed=0)
    web = draw_set(folder / "web", name="web", num_each=num_each, first_seed=1000)
    for one in PLANTED:
        if one.is_identical:
            (web / one.copy).write_bytes((clinic / one.source).read_bytes())
        else:
            plant(clinic / one.source, web / one.copy, one.orientation)
    return clinic, web
