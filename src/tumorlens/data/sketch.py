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
from typing import TYPE_CHECKING, NamedTuple

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


def similarities(
    thumbnail: NDArray[np.uint8], sketches: NDArray[np.int8]
) -> NDArray[np.float64]:
    """Return the estimated correlation of a picture with those of sketches.

    It is brought into register as in `near_duplicates.similarity`, with projections in
    place of pixels. The first step, where most end, is one for all sketches.

    Args:
        thumbnail: Shape (64, 64), turned as the pictures of the sketches are.
        sketches: Shape (K, 64).

    Returns:
        Shape (K,), at most 1; 0 where the two cannot be brought into register.

    Source:
        Achlioptas, "Database-friendly random projections", PODS 2001.
    """
    targets = sketches.astype(np.float64)
    powers = np.einsum("kp,kp->k", targets, targets)
    if thumbnail.std() < MIN_CONTRAST:
        return np.zeros(len(sketches))
    projected = _project(slopes(Moving(thumbnail).moved()))
    first = _fit(projected, targets, powers, num_fitted=2)
    for number in np.flatnonzero(first.promised >= _HOPELESS[0]).tolist():
        moving = Moving(thumbnail)
        if moving.step(first.solved[:, number]):
            one = slice(number, number + 1)
            found = _in_register(moving, targets[one], powers[one])
            first.reached[number] = max(first.reached[number], found)
    return first.reached


class _Fit(NamedTuple):
    """What a step of the registration gives, for K sketches."""

    reached: NDArray[np.float64]
    """Correlation where the image is now, with the best gain and offset; shape (K,)."""
    promised: NDArray[np.float64]
    """Correlation after the step, if the slopes stayed as they are; shape (K,)."""
    solved: NDArray[np.floating]
    """Factors of the slopes, shape (8, K)."""


def _in_register(
    moving: Moving, target: NDArray[np.float64], power: NDArray[np.float64]
) -> float:
    """Return the best correlation with one sketch after the first step."""
    best = 0.0
    for step in range(1, NUM_STEPS):
        if step == NUM_LINEAR_STEPS:
            moving.refine()
        fit = _fit(_project(slopes(moving.moved())), target, power, num_fitted=8)
        best = max(best, float(fit.reached[0]))
        if step < len(_HOPELESS) and max(best, fit.promised[0]) < _HOPELESS[step]:
            break
        if not moving.step(fit.solved[:, 0]):
            break
    return best


def _fit(
    projected: NDArray[np.float64],
    targets: NDArray[np.float64],
    powers: NDArray[np.float64],
    *,
    num_fitted: int,
) -> _Fit:
    """Return the least-squares step towards each of K sketches.

    Args:
        projected: The slopes, projected, shape (64, 8).
        targets: The sketches, shape (K, 64).
        powers: Their sums of squares, shape (K,).
        num_fitted: How many numbers were fitted to reach the place of the image.
    """
    tones = projected[:, :2]
    left = targets.T - tones @ np.linalg.lstsq(tones, targets.T, rcond=None)[0]
    squares = projected.T @ projected
    squares += 1e-6 * np.trace(squares) / 8 * np.eye(8)
    solved = np.linalg.solve(squares, projected.T @ targets.T)
    reached = _correlations(left, powers, num_fitted=num_fitted)
    promised = _correlations(targets.T - projected @ solved, powers, num_fitted=8)
    return _Fit(reached, np.maximum(reached, promised), solved)


def _correlations(
    left: NDArray[np.float64], powers: NDArray[np.float64], *, num_fitted: int
) -> NDArray[np.float64]:
    """Return the correlations (K,) that residuals (64, K) of the projections stand for.

    A fit of so many numbers makes the residual of 64 smaller than that of the pixels.
    """
    share = NUM_PROJECTIONS / (NUM_PROJECTIONS - num_fitted)
    missed = share * np.einsum("pk,pk->k", left, left) / np.maximum(powers, 1) / 2
    return np.where(powers > 0, np.maximum(0, 1 - missed), 0)


def _project(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the projections (64, 8) of slopes (8, pixels)."""
    return (_projections() @ rows.T.astype(np.float32)).astype(np.float64)


@cache
def _projections() -> NDArray[np.float32]:
    """Return the signs (64, pixels) of the projections, the same on every machine."""
    num_pixels = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX))[INNER].size
    num_bytes = NUM_PROJECTIONS * num_pixels // 8
    drawn = hashlib.shake_256(b"tumorlens sketch 1").digest(num_bytes)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8)).astype(np.float32)
    return 2 * bits.reshape(NUM_PROJECTIONS, num_pixels) - 1
