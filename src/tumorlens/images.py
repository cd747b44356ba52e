"""One file to one array: the only way from an image file into this package.

Training and prediction both come through here, so a model never sees an image that
was decoded in another way than those it learnt from. JPEG, PNG, TIFF and BMP are read
by Pillow, DICOM by `tumorlens.dicom`; which of them a file is, its first bytes say,
not its name.

Every file is hostile until read. Its size and its pixel count are checked before
anything is decoded, and whatever a damaged file makes a decoder do ends as one
`DataError` that names the file. What a newcomer gets wrong: an image with 16 bits per
pixel is scaled by its own range, because scanners store 10 or 12 bits in 16 and a
fixed division by 256 would turn them black.
"""

from __future__ import annotations

import re
import stat
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from tumorlens import dicom
from tumorlens.errors import DataError, TumorlensError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.config import Fit

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"}
)
"""Usual endings of the formats that are read, in lower case. Only for finding files in
a folder: what a file is, its content says."""

# Pillow knows some fifty formats more; none of their decoders is ever reached.
_PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")

_BLACK_BORDER = 12
"""Grey values up to this count as border: JPEG leaves noise of about this size in it."""

_MIN_CONTENT_PX = 16
"""A crop smaller than this on one side is a speck in the dark, not a head."""


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before it is decoded."""

    max_bytes: int = 64 * 1024 * 1024
    """Size of the file on disk."""

    max_pixels: int = 100_000_000
    """Width times height of one frame, as the header states them. Pillow's own bound,
    twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million), holds as well."""

    max_frames: int = 10_000
    """Frames of a multi-frame DICOM file or pages of a TIFF; one of them is decoded."""


DEFAULT_LIMITS = ImageLimits()


def read_image(
    path: Path, *, limits: ImageLimits = DEFAULT_LIMITS, frame: int | None = None
) -> NDArray[np.uint8]:
    """Return the upright image in a file.

    EXIF orientation is applied, transparency is laid over black. 8-bit values are
    kept as they are. Grey with more bits is scaled linearly, so that the image's own
    smallest value becomes 0 and its largest 255; a constant one becomes 0. Colour with
    16 bits per channel keeps the upper 8. DICOM: see `tumorlens.dicom.read_frame`.

    Args:
        path: A JPEG, PNG, TIFF, BMP or DICOM file, whatever its suffix.
        limits: What is refused before it is decoded.
        frame: Which frame of a multi-frame DICOM file or page of a TIFF, from 0.
            `None` is the middle one, `num_frames // 2`: the ends of a head volume show
            little of the brain.

    Returns:
        Grey values (H, W), or (H, W, 3) when the channels really differ.

    Raises:
        DataError: The file cannot be opened, is not an image, is damaged, is over a
            limit or has no such frame.
        MissingExtraError: A DICOM file is compressed in a way that needs the extra
            `dicom`.
    """
    try:
        with path.open("rb") as file:
            _check_size(path, file, limits)
            with _decoder_warnings_silenced():
                return _read(path, file, limits, frame)
    except OSError as error:
        raise DataError(
            f"cannot open {path}: {error.strerror or error}",
            hint="check that the file exists and can be read",
        ) from error


def _check_size(path: Path, file: IO[bytes], limits: ImageLimits) -> None:
    import os

    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file", hint="give an image file")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", hint="copy the file again")
    if status.st_size > limits.max_bytes:
        raise DataError(
            f"{path} has {status.st_size} bytes, more than the limit of "
            f"{limits.max_bytes}",
            hint="raise data.max_file_mib if the file is what it claims to be",
        )


def _read(
    path: Path, file: IO[bytes], limits: ImageLimits, frame: int | None
) -> NDArray[np.uint8]:
    try:
        if dicom.is_dicom(file):
            return _collapse_grey(
                dicom.read_frame(
                    file,
                    name=str(path),
                    frame=frame,
                    max_bytes=limits.max_bytes,
                    max_pixels=limits.max_pixels,
                    max_frames=limits.max_frames,
                )
            )
        return _collapse_grey(_read_with_pillow(path, file, limits, frame))
    except TumorlensError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}",
            hint="open it in a viewer; if it is damaged, copy it again or remove it",
        ) from error


def _read_with_pillow(
    path: Path, file: IO[bytes], limits: ImageLimits, frame: int | None
) -> NDArray[np.uint8]:
    file.seek(0)
    try:
        image = Image.open(file, formats=_PILLOW_FORMATS)
    except Image.DecompressionBombError as error:
        found = re.search(r"(\d+) pixels", str(error))
        raise _too_many_pixels(
            path, found[1] if found else "too many", limits
        ) from None
    with image:
        _choose_page(path, image, limits, frame)
        if image.width * image.height > limits.max_pixels:
            raise _too_many_pixels(path, image.width * image.height, limits)
        image.load()
        return _to_array(ImageOps.exif_transpose(image))


def _too_many_pixels(path: Path, found: Any, limits: ImageLimits) -> DataError:
    return DataError(
        f"{path} has {found} pixels, more than the limit of {limits.max_pixels}",
        hint="raise data.max_pixels if the image is really that large",
    )


def _choose_page(
    path: Path, image: Image.Image, limits: ImageLimits, frame: int | None
) -> None:
    num_frames = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if num_frames > limits.max_frames:
        raise DataError(f"{path} has {num_frames} pages")
    chosen = num_frames // 2 if frame is None else frame
    if not 0 <= chosen < num_frames:
        raise DataError(f"{path} has {num_frames} frame(s), got frame {frame}")
    if num_frames > 1:
        image.seek(chosen)


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_uint8(np.asarray(image, dtype=np.float64))
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.asarray(image.convert("RGB"))


def _scale_to_uint8(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].min() if finite.any() else 0)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)


def _collapse_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 3 and (image[..., :1] == image).all():
        return np.ascontiguousarray(image[..., 0])
    return image


_silencing = threading.Lock()
_num_silenced = 0
_saved: Any = None


@contextmanager
def _decoder_warnings_silenced() -> Iterator[None]:
    # `warnings.catch_warnings` restores a process-wide list, so two threads that enter
    # and leave in turns would leave it wrong: the first in saves, the last out restores.
    global _num_silenced, _saved
    with _silencing:
        if _num_silenced == 0:
            _saved = warnings.catch_warnings()
            _saved.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom|tumorlens)(\.|$)")
        _num_silenced += 1
    try:
        yield
    finally:
        with _silencing:
            _num_silenced -= 1
            if _num_silenced == 0:
                _saved.__exit__(None, None, None)


def fit_square(
    image: NDArray[np.uint8], *, size_px: int, fit: Fit
) -> NDArray[np.uint8]:
    """Return the image as a square of `size_px`, (S, S) or (S, S, 3)."""
    if fit == "pad":
        image = _pad_to_square(_crop_black_border(image))
    resized = Image.fromarray(image).resize(
        (size_px, size_px), Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def load_square(
    path: Path,
    *,
    size_px: int,
    fit: Fit,
    in_chans: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    frame: int | None = None,
) -> NDArray[np.uint8]:
    """Return the file as model input, (S, S, in_chans)."""
    image = fit_square(
        read_image(path, limits=limits, frame=frame), size_px=size_px, fit=fit
    )
    mode = "L" if in_chans == 1 else "RGB"
    return np.asarray(Image.fromarray(image).convert(mode)).reshape(
        size_px, size_px, in_chans
    )


def _crop_black_border(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    bright = (image if image.ndim == 2 else image.max(axis=2)) > _BLACK_BORDER
    rows, columns = bright.sum(axis=1), bright.sum(axis=0)
    top, bottom = _content(rows)
    left, right = _content(columns)
    if min(bottom - top, right - left) < _MIN_CONTENT_PX:
        return image
    return image[top:bottom, left:right]


def _content(counts: NDArray[np.integer[Any]]) -> tuple[int, int]:
    if counts.max() == 0:
        return 0, 0
    filled = np.flatnonzero(counts >= max(1, 0.02 * counts.max()))
    return int(filled[0]), int(filled[-1]) + 1


def _pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    side = max(height, width)
    padded = np.zeros((side, side, *image.shape[2:]), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = image
    return padded
