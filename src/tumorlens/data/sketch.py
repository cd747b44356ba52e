"""Sketches of pictures: enough to know one again, and to draw no more than a blur.

A sketch is 64 small numbers: random projections of a thumbnail. Whoever has a picture
can tell whether a sketch is of it, or of a slice next to it, also where the copy is
re-encoded, resized, cut or tilted by a little: the projections keep distances, so that
the thumbnail is brought into register with the sketch as it would be with the picture.
docs/seen.md compares that with the search on the pictures, and says what a decoder
that was made for the purpose draws from sketches.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.near_duplicates import MIN_CONTRAST
from tumorlens.data.registration import (
    INNER,
    NUM_LINEAR_STEPS,
    NUM_STEPS,
    THUMBNAIL_PX,
    Moving,
    slopes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_PROJECTIONS = 64

SAME_HEAD = 0.992
"""Least estimated correlation of two pictures that are copies, or slices of one head.
On the Bhuvaji set it gives all pairs that `near_duplicates` finds, whose estimates
begin at 0.9922, and one more, of two slices of one patient (docs/seen.md)."""

# What the first steps of the registration must promise to reach: less than any copy of
# the Bhuvaji set does. Most other pictures end here.
_HOPELESS = (0.8, 0.9, 0.97)


def make_sketches(thumbnails: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the sketches of thumbnails.

    Args:
        thumbnails: As from `near_duplicates.make_thumbnail`, shape (N, 64, 64).

    Returns:
        Shape (N, 64); zeros for images that are plain or nearly so.
    """
    signs = _projections()  # (64, pixels)
    inner = thumbnails[:, *INNER].reshape(-1, signs.shape[1]).astype(np.float32)
    inner -= inner.mean(axis=1, keepdims=True)
    inner[thumbnails.std(axis=(1, 2)) < MIN_CONTRAST] = 0
    projected = inner @ signs.T
    largest = np.abs(projected).max(axis=1, keepdims=True, initial=1e-9)
    sketches: NDArray[np.int8] = np.rint(projected * (127 / largest)).astype(np.int8)
    return sketches


def similarity(thumbnail: NDArray[np.uint8], sketch: NDArray[np.int8]) -> float:
    """Return the estimated correlation of a picture with that of a sketch.

    It is brought into register as in `near_duplicates.likeness`, with projections in
    place of pixels.

    Args:
        thumbnail: Shape (64, 64), turned as the picture of the sketch is.
        sketch: Shape (64,).

    Returns:
        At most 1; 0 where the two cannot be brought into register.

    Source:
        Achlioptas, "Database-friendly random projections", PODS 2001.
    """
    target = sketch.astype(np.float64)
    power = float(target @ target)
    if power == 0 or thumbnail.std() < MIN_CONTRAST:
        return 0.0
    moving = Moving(thumbnail)
    best = 0.0
    for step in range(NUM_STEPS):
        if step == NUM_LINEAR_STEPS:
            moving.refine()
        rows = slopes(moving.moved()).astype(np.float32)
        seen = (_projections() @ rows.T).astype(np.float64)  # (64, 8)
        fitted = np.linalg.lstsq(seen[:, :2], target, rcond=None)[0]
        left = seen[:, :2] @ fitted - target
        best = max(best, _correlation(left, power, num_fitted=8 if step else 2))
        squares = seen.T @ seen
        squares += 1e-6 * np.trace(squares) / 8 * np.eye(8)
        solved = np.linalg.solve(squares, seen.T @ target)
        if step < len(_HOPELESS):
            left = seen @ solved - target
            promised = max(best, _correlation(left, power, num_fitted=8))
            if promised < _HOPELESS[step]:
                return best
        if not moving.step(solved):
            break
    return best


def _correlation(left: NDArray[np.float64], power: float, *, num_fitted: int) -> float:
    """Return the correlation that a residual of the projections stands for.

    A fit of so many numbers makes the residual of 64 smaller than that of the pixels.
    """
    share = NUM_PROJECTIONS / (NUM_PROJECTIONS - num_fitted)
    return max(0.0, 1 - share * float(left @ left) / power / 2)


@cache
def _projections() -> NDArray[np.float32]:
    """Return the signs (64, pixels) of the projections, the same on every machine."""
    num_pixels = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX))[INNER].size
    num_bytes = NUM_PROJECTIONS * num_pixels // 8
    drawn = hashlib.shake_256(b"tumorlens sketch 1").digest(num_bytes)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8)).astype(np.float32)
    return 2 * bits.reshape(NUM_PROJECTIONS, num_pixels) - 1
