"""Bringing a thumbnail into register with another one: small affine changes in steps.

Copies that were cut, framed or tilted lie a few pixels apart. Gauss-Newton finds the
change: gain and offset of the grey values, shift, and a bend near the identity. What a
step is solved for differs, pixels in `near_duplicates` and a sketch in `sketch`; the
moved image, its slopes and the limits of the change are here.

Source:
    Lucas and Kanade, "An Iterative Image Registration Technique", IJCAI 1981.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

THUMBNAIL_PX = 64

NUM_LINEAR_STEPS = 3
"""Steps with linear interpolation, which is fast and decides most pairs."""

NUM_STEPS = 6
"""All steps. The others take cubic splines: a linear interpolation loses detail."""

_MARGIN_PX = 4
INNER = (slice(_MARGIN_PX, -_MARGIN_PX),) * 2
"""The part of a thumbnail that is compared: a moved image lacks some of its border."""

_MAX_SHIFT_PX = 5
_MAX_BEND = 0.12
_CENTRE = (THUMBNAIL_PX - 1) / 2


class Moving:
    """A thumbnail (64, 64) that is moved step by step."""

    def __init__(self, thumbnail: NDArray[np.uint8]) -> None:
        self._source = thumbnail.astype(np.float64)
        self._order = 1
        self._shift, self._matrix = np.zeros(2), np.eye(2)

    def refine(self) -> None:
        """Interpolate with cubic splines from now on."""
        self._source, self._order = ndimage.spline_filter(self._source), 3

    def moved(self) -> NDArray[np.float64]:
        """Return the image where it is now, shape (64, 64)."""
        moved: NDArray[np.float64] = ndimage.affine_transform(
            self._source,
            self._matrix,
            offset=_CENTRE * (1 - self._matrix.sum(axis=1)) + self._shift,
            order=self._order,
            mode="nearest",
            prefilter=False,
        )
        return moved

    def step(self, solved: NDArray[np.floating]) -> bool:
        """Move on, within what copies differ by.

        Args:
            solved: Factors of the rows of `slopes`, shape (8,).

        Returns:
            Whether the step makes sense: no copy has a negative gain.
        """
        gain, _, *change = solved.tolist()
        if gain <= 0:
            return False
        shift = self._shift + np.array(change[:2]) / gain
        self._shift = np.clip(shift, -_MAX_SHIFT_PX, _MAX_SHIFT_PX)
        bend = np.array(change[2:]).reshape(2, 2) / gain / _CENTRE
        bend = np.clip(self._matrix + bend - np.eye(2), -_MAX_BEND, _MAX_BEND)
        self._matrix = np.eye(2) + bend
        return True


def slopes(moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how the inner pixels change with gain, offset, shift and bend.

    Args:
        moved: As from `Moving.moved`.

    Returns:
        Shape (8, pixels); the first row is the image itself, the second constant.
    """
    row, column = _coordinates()
    now = moved[INNER]
    found = np.empty((8, now.size))
    found[0], found[1] = now.ravel(), 1
    found[2] = _difference(moved, axis=0).ravel()
    found[3] = _difference(moved, axis=1).ravel()
    for number, along in enumerate((found[2], found[3])):
        np.multiply(along, row, out=found[4 + 2 * number])
        np.multiply(along, column, out=found[5 + 2 * number])
    return found


def _difference(moved: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Return the central difference at the inner pixels."""
    before, after = list(INNER), list(INNER)
    before[axis] = slice(_MARGIN_PX - 1, -_MARGIN_PX - 1)
    after[axis] = slice(_MARGIN_PX + 1, -_MARGIN_PX + 1)
    return (moved[*after] - moved[*before]) / 2


@cache
def _coordinates() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return row and column of each inner pixel, from -1 to 1 over the thumbnail."""
    along = np.linspace(-1, 1, THUMBNAIL_PX)[INNER[0]]
    return np.repeat(along, len(along)), np.tile(along, len(along))
