"""Facts of pictures in which a classifier may be worse: size, brightness, sharpness.

Facts of the file as it is, before it becomes the input of a network: a small picture is
enlarged and a blurred one stays blurred, whatever the network's size.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import ndimage

from tumorlens.data.decoding import work_ahead
from tumorlens.data.images import as_grey, read_image
from tumorlens.system import num_processors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.images import ImageLimits

FACTS = ("size", "brightness", "sharpness")

_MAX_SIDE_PX = 1024
"""Side of the middle part that sharpness is taken from, which bounds the memory."""


class PictureFacts(NamedTuple):
    """Facts of a picture, in the order of `FACTS`."""

    size: float
    """Side of the square of as many pixels."""
    brightness: float
    """Mean grey value, from 0 for black to 1 for white."""
    sharpness: float
    """Standard deviation of the Laplacian over that of the grey values, so that it is
    that of the edges and not of the contrast; noise counts as sharp. 0 for a plain
    picture.

    Source:
        Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a
        comparative study", ICPR 2000 (variance of the Laplacian).
    """


def facts_of_picture(image: NDArray[np.uint8]) -> PictureFacts:
    """Return the facts of a decoded image, (H, W) or (H, W, 3).

    Example:
        A checkerboard of single pixels: a step of 8 half ranges at each of them.

        >>> board = (np.indices((6, 6)).sum(axis=0) % 2 * 255).astype(np.uint8)
        >>> facts_of_picture(board[1:-1, 1:-1])[:2]
        (4.0, 0.5)
        >>> facts_of_picture(np.zeros((4, 9), np.uint8))
        PictureFacts(size=6.0, brightness=0.0, sharpness=0.0)
    """
    grey = as_grey(image)
    height, width = grey.shape
    top, left = max(0, height - _MAX_SIDE_PX) // 2, max(0, width - _MAX_SIDE_PX) // 2
    middle = grey[top : top + _MAX_SIDE_PX, left : left + _MAX_SIDE_PX].astype(np.int16)
    contrast = float(middle.std())
    edges = float(ndimage.laplace(middle).std())
    return PictureFacts(
        size=float(np.sqrt(height * width)),
        brightness=float(grey.mean()) / 255,
        sharpness=edges / contrast if contrast else 0.0,
    )


def read_picture_facts(
    files: Sequence[Path],
    *,
    limits: ImageLimits,
    progress: Callable[[int, int], None] | None = None,
) -> list[PictureFacts]:
    """Return the facts of image files, decoded in threads.

    Args:
        files: The files.
        limits: Limits above which a file is refused.
        progress: Called with files done and files in all.

    Raises:
        DataError: A file cannot be read.
    """
    num_threads = num_processors()
    facts = []

    def read(file: Path) -> PictureFacts:
        return facts_of_picture(read_image(file, limits=limits))

    found = work_ahead(files, read, num_ahead=4 * num_threads, num_threads=num_threads)
    with closing(found):
        for one in found:
            facts.append(one)
            if progress is not None:
                progress(len(facts), len(files))
    return facts
