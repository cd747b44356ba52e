"""Occlusion finds what a network that was made by hand looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.images import square_box
from tumorlens.evaluation.occlusion import (
    occlusion_boxes,
    occlusion_map,
    place_on_image,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = 56  # a patch of 8 pixels that moves by 4


def corner(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Answer with the brightness of the upper left 8 x 8 pixels."""
    first = squares[:, :8, :8].mean(axis=(1, 2, 3)) / 255
    return np.stack([first, 1 - first], axis=1)


@pytest.fixture
def square() -> NDArray[np.uint8]:
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:8, :8] = 255
    return pixels


def test_the_corner_that_counts_is_found(square: NDArray[np.uint8]) -> None:
    drops = occlusion_map(square, corner, label=0)
    assert drops.shape == (SIZE, SIZE)
    # The mean of the square is 255 / 49, which covers 255: a whole patch over the
    # corner costs 48/49, and half of one half of that. The first 4 x 4 pixels are
    # under the patches at -4 and 0 in both directions: whole, two halves, a quarter.
    whole = (255 - round(255 / 49)) / 255
    assert drops[0, 0] == pytest.approx(whole * (1 + 1 / 2 + 1 / 2 + 1 / 4) / 4)
    assert (drops[12:] == 0).all()
    assert (drops[:, 12:] == 0).all()
    assert drops.max() == drops[0, 0]


def test_for_the_other_class_the_corner_speaks_against(
    square: NDArray[np.uint8],
) -> None:
    np.testing.assert_allclose(
        occlusion_map(square, corner, label=1), -occlusion_map(square, corner, label=0)
    )


def test_the_size_of_a_batch_changes_nothing(square: NDArray[np.uint8]) -> None:
    maps = [occlusion_map(square, corner, label=0, batch_size=n) for n in (1, 7, 999)]
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_the_square_is_not_changed(square: NDArray[np.uint8]) -> None:
    before = square.copy()
    occlusion_map(square, corner, label=0)
    np.testing.assert_array_equal(square, before)


@pytest.mark.parametrize("size_px", [16, 32, 50, 224, 300])
def test_every_pixel_is_covered_equally_often(size_px: int) -> None:
    counts = np.zeros((size_px, size_px), int)
    for box in occlusion_boxes(size_px):
        counts[box] += 1
    assert (counts == 4).all()


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (33, 33)])
def test_a_placed_map_is_the_part_of_the_whole_square_that_lies_on_the_image(
    shape: tuple[int, int],
) -> None:
    values = np.random.default_rng(0).random((SIZE, SIZE), np.float32)
    left, top, right, bottom = square_box(np.full(shape, 99, np.uint8), fit="pad")
    whole = Image.fromarray(values).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    expected = np.array(whole)[-top : -top + shape[0], -left : -left + shape[1]]
    found = place_on_image(values, box=(left, top, right, bottom), shape=shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_square_around_a_strip_is_not_made() -> None:
    strip = np.full((4, 60_000), 99, np.uint8)
    found = place_on_image(
        np.ones((SIZE, SIZE), np.float32),
        box=square_box(strip, fit="pad"),
        shape=strip.shape,
    )
    assert (found == 1).all()
