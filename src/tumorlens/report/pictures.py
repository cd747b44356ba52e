"""Small copies of the user's images, to be put inside a page.

An image that is gone, or cannot be read, is a sentence in its place and never an error:
a page about yesterday's run must not fail because a disk was unplugged.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits, read_image
from tumorlens.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE_PX = 224
"""Longer side of a picture in a page."""


@dataclass(frozen=True)
class Picture:
    """One image of the user's, or the reason why it is not shown."""

    path: str
    """As the index names it, relative to the data."""

    uri: str = ""
    """A data URI; empty when the image cannot be shown."""

    width: int = 0
    """Of the small copy, in pixels."""

    height: int = 0

    why_not: str = ""
    """Why there is nothing to see."""


def data_root(data: Path | None, configured: str | None) -> Path | None:
    """Return the folder that the paths of records start from.

    Args:
        data: What the user says now; it wins.
        configured: `data.path` of the run: a folder, or a table beside its images.
    """
    if data is None:
        if configured is None:
            return None
        data = Path(configured)
    return data.parent if data.is_file() else data


def load_picture(
    root: Path | None, path: str, *, limits: ImageLimits = DEFAULT_LIMITS
) -> Picture:
    """Return a small copy of one image, or the reason why there is none.

    Args:
        root: The folder that `path` starts from; `None` when it is not known.
        path: As in `predictions.csv` or `audit.json`.
        limits: What is not opened.
    """
    if root is None:
        return Picture(path, why_not="not shown: the data folder is not known")
    file = root / path
    if not file.is_file():
        return Picture(path, why_not="not shown: the file is gone")
    try:
        pixels = read_image(file, limits=limits)
    except DataError:
        return Picture(path, why_not="not shown: the file cannot be read as an image")
    except MissingExtraError as error:
        return Picture(path, why_not=f"not shown: {error.hint}")
    return _small_copy(path, pixels)


def _small_copy(path: str, pixels: NDArray[np.uint8]) -> Picture:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    # A page may hold a hundred of these, and they are for recognising, not measuring.
    image.save(content, "JPEG", quality=85, subsampling=0)
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return Picture(path, f"data:image/jpeg;base64,{encoded}", image.width, image.height)
