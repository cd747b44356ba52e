"""Which part of an image an answer rests on: occlusion sensitivity.

A grey patch is moved over the square that the network sees, and the map holds by how
much the probability of a class falls where the patch lies. It needs nothing but
answers, so it works for every artefact and without torch. What a newcomer gets wrong:
it shows what the network uses, not where a tumour is, and a network that has learnt a
shortcut will point at the shortcut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

PATCHES_PER_SIDE = 7
"""The patch is a seventh of the square: 32 pixels of 224, where the source has 50."""

STEPS_PER_PATCH = 2
"""It moves by half of its side."""


def occlusion_map(
    square: NDArray[np.uint8],
    ask: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    *,
    label: int,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Return how much each pixel matters for the probability of one class.

    The patch has the mean value of the square. It starts and ends beyond the edges, so
    that every pixel is covered by the same number of positions, and a pixel's value is
    the mean over the positions that cover it of p(square) - p(square with the patch).

    Args:
        square: (S, S, C), what the network is given.
        ask: Squares (N, S, S, C) to probabilities (N, classes).
        label: Index of the class.
        batch_size: Squares in one question; memory grows with it.

    Returns:
        (S, S), from -1 to 1: positive where the image speaks for the class.

    Source:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks,
        ECCV 2014, section 4.2 (occlusion sensitivity).
    """
    size_px = square.shape[0]
    boxes = occlusion_boxes(size_px)
    value = np.rint(square.mean(axis=(0, 1))).astype(np.uint8)
    before = float(ask(square[np.newaxis])[0, label])
    drops = np.zeros((size_px, size_px))
    counts = np.zeros((size_px, size_px))
    for start in range(0, len(boxes), batch_size):
        some = boxes[start : start + batch_size]
        squares = np.repeat(square[np.newaxis], len(some), axis=0)
        for covered, box in zip(squares, some, strict=True):
            covered[box] = value
        for box, after in zip(some, ask(squares)[:, label], strict=True):
            drops[box] += before - float(after)
            counts[box] += 1
    return (drops / counts).astype(np.float32)


def occlusion_boxes(size_px: int) -> list[tuple[slice, slice]]:
    """Return every position of the patch, as rows and columns of the square.

    Example:
        >>> len(occlusion_boxes(224))
        225
        >>> occlusion_boxes(224)[0]
        (slice(0, 16, None), slice(0, 16, None))
    """
    stride = max(1, round(size_px / PATCHES_PER_SIDE / STEPS_PER_PATCH))
    patch = stride * STEPS_PER_PATCH
    spans = [
        slice(max(0, start), min(size_px, start + patch))
        for start in range(stride - patch, size_px, stride)
    ]
    return [(rows, columns) for rows in spans for columns in spans]


def place_on_image(
    square_map: NDArray[np.float32],
    *,
    box: tuple[int, int, int, int],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Return a map of the square as a map of the image that the square shows.

    Args:
        square_map: (S, S).
        box: What of the image the square shows, as `images.square_box` gives it.
        shape: Height and width of the image, H and W.

    Returns:
        (H, W); 0 outside the box, where nothing was seen.
    """
    height, width = shape
    left, top, right, bottom = box
    resized = Image.fromarray(square_map).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    canvas = Image.new("F", (width, height), 0)
    canvas.paste(resized, (left, top))
    return np.array(canvas, np.float32)
