"""Occlusion sensitivity: the parts of an image on which a prediction rests.

A grey patch is moved over the network's square input, and the map holds by how much the
probability of a class falls under the patch. Only predictions are needed, so it works
for every artefact and without torch. The map shows what the network uses, not where a
tumour is: a network that has learnt a shortcut points at the shortcut.
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
    predict: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    *,
    label: int,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Return how much each pixel matters for the probability of one class.

    The patch has the mean value of the square. It starts and ends beyond the edges, so
    that every pixel is covered by the same number of positions, and a pixel's value is
    the mean over the positions that cover it of p(square) - p(square with the patch).

    Args:
        square: Input of the network, shape (S, S, C).
        predict: Maps squares (N, S, S, C) to probabilities (N, classes).
        label: Index of the class.
        batch_size: Squares per call of `predict`; memory grows with it.

    Returns:
        Shape (S, S), from -1 to 1: positive where the image supports the class.

    Source:
        Zeiler and Fergus, Visualizing and Understanding Convolutional Networks,
        ECCV 2014, section 4.2 (occlusion sensitivity).
    """
    size_px = square.shape[0]
    boxes = occlusion_boxes(size_px)
    value = mean_value(square)
    before = float(predict(square[np.newaxis])[0, label])
    drops = np.zeros((size_px, size_px))
    counts = np.zeros((size_px, size_px))
    for start in range(0, len(boxes), batch_size):
        some = boxes[start : start + batch_size]
        squares = np.repeat(square[np.newaxis], len(some), axis=0)
        for covered, box in zip(squares, some, strict=True):
            covered[box] = value
        for box, after in zip(some, predict(squares)[:, label], strict=True):
            drops[box] += before - float(after)
            counts[box] += 1
    return (drops / counts).astype(np.float32)


def mean_value(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mean colour of a square, shape (C,): what stands for "not there"."""
    value: NDArray[np.uint8] = np.rint(square.mean(axis=(0, 1))).astype(np.uint8)
    return value


def occlusion_boxes(size_px: int) -> list[tuple[slice, slice]]:
    """Return every position of the patch as (rows, columns) of the square.

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
    """Return a map of the network's square resampled to the whole image.

    Args:
        square_map: Map of the square, shape (S, S).
        box: Part of the image that the square shows, from `images.square_box`.
        shape: Height and width of the image, H and W.

    Returns:
        Shape (H, W); 0 outside the box.
    """
    height, width = shape
    left, top, right, bottom = box
    # Only what lies on the image: the square around a strip is too large for memory.
    seen = max(0, left), max(0, top), min(width, right), min(height, bottom)
    size_px = len(square_map)
    across, down = size_px / (right - left), size_px / (bottom - top)
    resized = Image.fromarray(square_map).resize(
        (seen[2] - seen[0], seen[3] - seen[1]),
        Image.Resampling.BILINEAR,
        box=(
            (seen[0] - left) * across,
            (seen[1] - top) * down,
            (seen[2] - left) * across,
            (seen[3] - top) * down,
        ),
    )
    canvas = Image.new("F", (width, height), 0)
    canvas.paste(resized, seen[:2])
    return np.array(canvas, np.float32)
