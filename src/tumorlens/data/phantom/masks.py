"""The tumours of a phantom, pixel by pixel: `masks.zip` beside its class folders.

It has a PNG for each image with a tumour, white where the tumour is, under the path of
the image. It is one file and no folder of pictures, so that a phantom with it reads as
the same set of images as one without. Phantoms of earlier versions have none.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tumorlens.errors import DataError
from tumorlens.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

NAME = "masks.zip"

_OF_PHANTOM = "planted.json"
"""The file by which a folder is known as a phantom."""

_LEVELS = 3
"""Folders between an image and its set: the class, the subset, the set."""

_MAX_BYTES = 1 << 20
"""Largest unpacked mask; a drawn one has less than a thousandth of it."""

_MAX_SIDE = 4096


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Return a mask (H, W) as a PNG, some hundred bytes."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def decode_mask(content: bytes) -> NDArray[np.bool_]:
    """Return the mask (H, W) in a PNG.

    Raises:
        ValueError: It is no PNG, or has more than 4096 pixels on a side.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if max(image.size) > _MAX_SIDE:
                raise ValueError(f"a mask has {image.width} x {image.height} pixels")
            return np.array(image.convert("L")) > 0
    except (OSError, SyntaxError) as error:
        raise ValueError(str(error)) from error


def write_masks(folder: Path, masks: Mapping[str, bytes]) -> None:
    """Write the masks of a phantom.

    Args:
        folder: The phantom.
        masks: Path of an image in the folder -> its tumour, from `encode_mask`.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(masks):
            # ZipInfo has a fixed date: equal phantoms have equal bytes.
            archive.writestr(zipfile.ZipInfo(_entry_of(path)), masks[path])
    write_bytes(folder / NAME, buffer.getvalue())


def read_mask(image: Path) -> NDArray[np.bool_] | None:
    """Return the tumour in an image of a phantom.

    Args:
        image: A file below `Training` or `Testing`.

    Returns:
        (H, W); `None` where there is no tumour, or the image is of no phantom with
        masks.

    Raises:
        DataError: The file with the masks cannot be read.
    """
    image = image.absolute()
    for folder in image.parents[:_LEVELS]:
        path = folder / NAME
        if path.is_file() and (folder / _OF_PHANTOM).is_file():
            return _read(path, _entry_of(image.relative_to(folder).as_posix()))
    return None


def _entry_of(path: str) -> str:
    # With the suffix: an image and its copy may differ in nothing else.
    return f"{PurePosixPath(path)}.png"


def _read(path: Path, name: str) -> NDArray[np.bool_] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                entry = archive.getinfo(name)
            except KeyError:
                return None
            if entry.file_size > _MAX_BYTES:
                raise ValueError(f"{name} has {entry.file_size} bytes")
            return decode_mask(archive.read(entry))
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} holds no masks: {why}",
            hint="make the phantom again, or remove this file",
        ) from None
