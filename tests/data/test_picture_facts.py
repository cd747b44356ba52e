"""Facts of drawn pictures, worked out by hand or as properties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from support.images import draw_image
from tumorlens.data.images import ImageLimits
from tumorlens.data.picture_facts import facts_of_picture, read_picture_facts
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_size_and_brightness_are_those_of_the_file() -> None:
    image = np.zeros((20, 80), np.uint8)
    image[:, :40] = 255
    found = facts_of_picture(image)
    assert (found.size, found.brightness) == (40, 0.5)
    colour = np.repeat(image[:, :, None], 3, axis=2)
    assert facts_of_picture(colour) == found


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    image = draw_image("glioma", 3).astype(np.float64)
    if image.ndim == 3:
        image = image.mean(axis=2)
    blurred = [
        facts_of_picture(ndimage.gaussian_filter(image, sigma).astype(np.uint8))
        for sigma in (0, 1, 2, 4)
    ]
    sharpness = [one.sharpness for one in blurred]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 2 * sharpness[-1]
    half = facts_of_picture((image / 2).astype(np.uint8))
    assert half.sharpness == pytest.approx(sharpness[0], rel=0.05)


def test_only_the_middle_of_a_huge_picture_is_looked_at_for_sharpness() -> None:
    image = np.zeros((1024, 3000), np.uint8)
    image[:, :900] = np.arange(1024 * 900, dtype=np.uint64).reshape(1024, 900) % 251
    assert facts_of_picture(image).sharpness == 0


def test_facts_come_in_the_order_of_the_files(tmp_path: Path) -> None:
    files = []
    for number, side_px in enumerate((40, 10, 30, 20)):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(np.full((side_px, side_px), side_px, np.uint8)).save(files[-1])
    steps: list[tuple[int, int]] = []
    found = read_picture_facts(
        files, limits=ImageLimits(), progress=lambda *step: steps.append(step)
    )
    assert [one.size for one in found] == [40, 10, 30, 20]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    files[2].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png"):
        read_picture_facts(files, limits=ImageLimits())
