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
from scipy import ndimage

from tumorlens.data.near_duplicates import INNER, MIN_CONTRAST, THUMBNAIL_PX

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_PROJECTIONS = 64

SAME_HEAD = 0.992
"""Least estimated correlation of two pictures that are copies, or slices of one head.
On the Bhuvaji set it gives all pairs that `near_duplicates` finds, whose estimates
begin at 0.9922, and one more, of two slices of one patient (docs/seen.md)."""

_LINEAR_STEPS = 3
_CUBIC_STEPS = 3

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

    Gauss-Newton as in `near_duplicates.likeness`, on projections in place of pixels.

    Args:
        thumbnail: Shape (64, 64), turned as the picture of the sketch is.
        sketch: Shape (64,).

    Returns:
        At most 1; 0 where the two cannot be brought into register.

    Source:
        Lucas and Kanade, "An Iterative Image Registration Technique", IJCAI 1981;
        Achlioptas, "Database-friendly random projections", PODS 2001.
    """
    target = sketch.astype(np.float64)
    power = float(target @ target)
    if power == 0 or thumbnail.std() < MIN_CONTRAST:
        return 0.0
    rows, columns = _coordinates()
    centre = (THUMBNAIL_PX - 1) / 2
    source, order = thumbnail.astype(np.float64), 1
    shift, matrix = np.zeros(2), np.eye(2)
    best = 0.0
    for step in range(_LINEAR_STEPS + _CUBIC_STEPS):
        if step == _LINEAR_STEPS:
            # Linear interpolation loses detail.
            source, order = ndimage.spline_filter(source), 3
        warped = ndimage.affine_transform(
            source,
            matrix,
            offset=centre * (1 - matrix.sum(axis=1)) + shift,
            order=order,
            mode="nearest",
            prefilter=False,
        )
        now = warped[INNER].ravel()
        down, right = (slope[INNER].ravel() for slope in np.gradient(warped))
        slopes = np.stack(
            [
                *(now, np.ones_like(now), down, right),
                *(down * rows, down * columns, right * rows, right * columns),
            ],
            axis=1,
        )  # (pixels, 8)
        seen = (_projections() @ slopes.astype(np.float32)).astype(np.float64)
        fitted = np.linalg.lstsq(seen[:, :2], target, rcond=None)[0]
        left = seen[:, :2] @ fitted - target
        best = max(best, _correlation(left, power, num_fitted=8 if step else 2))
        squares = seen.T @ seen
        squares += 1e-6 * np.trace(squares) / 8 * np.eye(8)
        gain, _, *change = solved = np.linalg.solve(squares, seen.T @ target)
        if step < len(_HOPELESS):
            left = seen @ solved - target
            promised = max(best, _correlation(left, power, num_fitted=8))
            if promised < _HOPELESS[step]:
                return best
        if gain <= 0:
            break
        shift = np.clip(shift + np.array(change[:2]) / gain, -5, 5)
        bent = np.array(change[2:]).reshape(2, 2) / gain / centre
        matrix = np.eye(2) + np.clip(matrix + bent - np.eye(2), -0.12, 0.12)
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


@cache
def _coordinates() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return row and column of each inner pixel, from -1 to 1 over the thumbnail."""
    along = np.linspace(-1, 1, THUMBNAIL_PX)[INNER[0]]
    return np.repeat(along, len(along)), np.tile(along, len(along))
