"""One file to one array: the only way from an image file into this package.

Training and prediction both come through here, so a model never sees an image that
was decoded in another way than those it learnt from. JPEG, PNG, TIFF and BMP are read
by `tumorlens.data.raster`, DICOM by `tumorlens.data.dicom.pixels`; the first bytes of a
file decide which, not its name.

Every file is hostile until read. Its size, its sides and its pixel count are checked
before anything is decoded, and any failure of a decoder on a damaged file becomes a
`DataError` that names the file. An image with 16 bits per channel is scaled by its own
range: scanners store 10 or 12 bits in 16, and a fixed division by 256 would turn them
black. `docs/images.md` has a table of what becomes of every depth.
"""

from __future__ import annotations

import stat
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np
from PIL import Image

from tumorlens.data import raster
from tumorlens.data.dicom import pixels
from tumorlens.errors import DataError, TumorlensError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.config import Fit

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".dib"),
        *(".dcm", ".dicom"),
    }
)
"""Usual suffixes of the formats that are read, in lower case. A file with one of them
need not be opened to be found in a folder: the content decides what a file is."""

_MAX_PADDED_PX = 10_000
"""Longest side that is padded to a square. Longer images are shrunk to it first: of a
strip of 65,535 by 4 pixels, the square would have 4 billion."""

_BLACK_BORDER = 12
"""Grey values up to this count as border: JPEG leaves noise of such a size in it."""

_MIN_CONTENT_PX = 16
"""A crop smaller than this on one side is a speck in the dark, not a head."""


@dataclass(frozen=True)
class ImageLimits:
    """Limits above which a file is refused before it is decoded."""

    max_bytes: int = 64 * 1024 * 1024
    """Size of the file on disk."""

    max_pixels: int = 100_000_000
    """Width times height of one frame, as the header states them. Pillow's own bound,
    twice `PIL.Image.MAX_IMAGE_PIXELS` (179 million), holds as well."""

    max_side_px: int = 65_535
    """Width and height: the largest that JPEG and DICOM can hold. Of a longer side, the
    table of weights for resizing alone would take gigabytes."""

    max_frames: int = 10_000
    """Frames of a multi-frame DICOM file or pages of a TIFF; one of them is decoded."""


DEFAULT_LIMITS = ImageLimits()


def read_image(
    path: Path, *, limits: ImageLimits = DEFAULT_LIMITS, frame: int | None = None
) -> NDArray[np.uint8]:
    """Return the upright image in a file.

    EXIF orientation is applied, transparency is laid over black. 8-bit values are
    kept as they are. Signed values and those with more bits are scaled linearly, so
    that the image's own smallest value becomes 0 and its largest 255, over all channels
    together; a constant image becomes 0, and so does a pixel that is not finite. What
    is fully transparent does not count. Colour profiles are ignored. DICOM: see
    `tumorlens.data.dicom.pixels.read_frame`.

    Args:
        path: A JPEG, PNG, TIFF, BMP or DICOM file, whatever its suffix.
        limits: Limits above which a file is refused.
        frame: Which frame of a multi-frame DICOM file or page of a TIFF, from 0;
            thumbnails and masks in a TIFF are no pages. `None` is the middle one,
            `num_frames // 2`: the ends of a head volume show little of the brain.

    Returns:
        Grey values (H, W), or (H, W, 3) when the channels really differ.

    Raises:
        DataError: The file cannot be opened, is not an image, is damaged, is over a
            limit, or has no such frame or no finite pixel.
        MissingExtraError: A DICOM file is compressed in a way that needs the extra
            `dicom`.
    """
    try:
        # Before opening: opening a pipe waits for a writer.
        _check_file(path, path.stat(), limits)
        with path.open("rb") as file, decoder_warnings_silenced():
            return _read(path, file, limits, frame)
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened: {error.strerror or error}",
            hint="check that it is a file and can be read",
        ) from error


def without_path(error: DataError, path: Path) -> str:
    """Return the message of `read_image` without the path at its beginning."""
    return error.problem.removeprefix(f"{path} ")


def fit_square(
    image: NDArray[np.uint8], *, size_px: int, fit: Fit
) -> NDArray[np.uint8]:
    """Return an image as a square.

    `squash` resizes it as it is, so a portrait becomes broader. `pad` first crops the
    black border, which differs from source to source, then adds black at the shorter
    sides until the image is square, so proportions are kept and the file's own shape
    stops giving the class away. The border is where fewer than 2 % as many pixels are
    brighter than 12 as in the fullest row (column): JPEG noise does not stop the crop,
    and black around an image changes nothing.

    An image longer than 10,000 pixels that `pad` would make a square of is shrunk to
    that length first, so that the square takes no more memory than the limits allow.

    Resized by Pillow's bilinear filter, which averages over all pixels when it shrinks:
    torchvision's `Resize` gives the same values within rounding, but this needs no
    torch where a model is only used.

    Args:
        image: (H, W) or (H, W, 3).
        size_px: Side of the square, S.
        fit: `squash` or `pad`.

    Returns:
        (S, S) or (S, S, 3).

    Raises:
        ValueError: `fit` is none of the two, or `size_px` is not positive.

    Example:
        >>> portrait = np.full((40, 20), 200, np.uint8)
        >>> fit_square(portrait, size_px=8, fit="pad")[0].tolist()
        [0, 24, 176, 200, 200, 176, 24, 0]
        >>> fit_square(portrait, size_px=8, fit="squash")[0].tolist()
        [200, 200, 200, 200, 200, 200, 200, 200]
    """
    if fit not in ("squash", "pad") or size_px < 1:
        raise ValueError(
            f"expected fit 'squash' or 'pad' and size_px > 0, got {fit!r}, {size_px}"
        )
    if fit == "pad":
        image = _pad_to_square(_shrink_strip(_crop_black_border(image)))
    square = Image.fromarray(image).resize(
        (size_px, size_px), Image.Resampling.BILINEAR
    )
    return np.array(square)


def as_grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the grey values (H, W) of an image (H, W) or (H, W, 3)."""
    if image.ndim == 2:
        return image
    return np.asarray(Image.fromarray(image).convert("L"))


def square_box(image: NDArray[np.uint8], *, fit: Fit) -> tuple[int, int, int, int]:
    """Return the part of an image that `fit_square` shows: left, top, right, bottom.

    In pixels of the image. Where black is added, the box reaches beyond the image, so
    `left` and `top` can be negative.

    Example:
        >>> square_box(np.full((40, 20), 200, np.uint8), fit="pad")
        (-10, 0, 30, 40)
    """
    height, width = image.shape[:2]
    if fit == "squash":
        return 0, 0, width, height
    top, bottom, left, right = _inside_border(image)
    side = max(bottom - top, right - left)
    left -= (side - (right - left)) // 2
    top -= (side - (bottom - top)) // 2
    return left, top, left + side, top + side


def is_image_file(path: Path) -> bool:
    """Return whether a file has a usual suffix, or begins as a format that is read.

    Only a file without such a suffix is opened. A broken link or a pipe with such a
    suffix counts: reading it reports the fault.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        # Before opening: opening a pipe waits for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(raster.NUM_START_BYTES)
            return raster.format_of(start) is not None or pixels.is_dicom(file)
    except OSError:
        return False


def load_square(
    path: Path,
    *,
    size_px: int,
    fit: Fit,
    in_chans: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    frame: int | None = None,
) -> NDArray[np.uint8]:
    """Return a file as the input of a model, before normalization.

    Args:
        path: As for `read_image`.
        size_px: Side of the square, S.
        fit: As for `fit_square`.
        in_chans: 1 turns colour into grey (ITU-R 601 luma), 3 repeats grey.
        limits: As for `read_image`.
        frame: As for `read_image`.

    Returns:
        (S, S, in_chans), writable.

    Raises:
        DataError: The file cannot be read, see `read_image`.
        MissingExtraError: See `read_image`.
        ValueError: See `to_square`.
    """
    image = read_image(path, limits=limits, frame=frame)
    try:
        return to_square(image, size_px=size_px, fit=fit, in_chans=in_chans)
    except MemoryError:
        _say_too_large(path)


def to_square(
    image: NDArray[np.uint8], *, size_px: int, fit: Fit, in_chans: int
) -> NDArray[np.uint8]:
    """Return a decoded image as `load_square` returns its file.

    Raises:
        ValueError: `in_chans` is neither 1 nor 3, or see `fit_square`.
    """
    if in_chans not in (1, 3):
        raise ValueError(f"expected in_chans 1 or 3, got {in_chans}")
    square = Image.fromarray(fit_square(image, size_px=size_px, fit=fit))
    return np.array(square.convert("L" if in_chans == 1 else "RGB")).reshape(
        size_px, size_px, in_chans
    )


def _check_file(path: Path, status: os.stat_result, limits: ImageLimits) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file", hint="give an image file")
    if status.st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", hint="fetch the file again")
    if status.st_size > limits.max_bytes:
        raise DataError(
            f"{path} has {status.st_size} bytes, more than the limit of "
            f"{limits.max_bytes}",
            hint="raise data.max_file_mib if the file is what it claims to be",
        )


def _read(
    path: Path, file: IO[bytes], limits: ImageLimits, frame: int | None
) -> NDArray[np.uint8]:
    # Broad on purpose, and only around the decoders: on damaged files they raised
    # errors of a dozen classes that have no base of their own in common.
    try:
        if pixels.is_dicom(file):
            return raster.without_equal_channels(
                pixels.read_frame(
                    path,
                    frame=frame,
                    max_bytes=limits.max_bytes,
                    max_pixels=limits.max_pixels,
                    max_frames=limits.max_frames,
                )
            )
        return raster.read_picture(
            path,
            file,
            frame=frame,
            max_pixels=limits.max_pixels,
            max_side_px=limits.max_side_px,
            max_frames=limits.max_frames,
        )
    except TumorlensError:
        raise
    except MemoryError:
        _say_too_large(path)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is damaged: {why or 'nothing more is known'} "
            f"({type(error).__name__})",
            hint="fetch the file again, or remove it",
        ) from error


def _say_too_large(path: Path) -> NoReturn:
    raise DataError(
        f"{path} does not fit into the memory of this machine",
        hint="lower data.max_pixels, so that such images are left out",
    ) from None


def _crop_black_border(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    top, bottom, left, right = _inside_border(image)
    return image[top:bottom, left:right]


def _inside_border(image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    bright = (image if image.ndim == 2 else image.max(axis=2)) > _BLACK_BORDER
    rows, columns = bright.sum(axis=1), bright.sum(axis=0)
    top, bottom = _content(rows)
    left, right = _content(columns)
    if min(bottom - top, right - left) < _MIN_CONTENT_PX:
        return 0, image.shape[0], 0, image.shape[1]
    return top, bottom, left, right


def _content(counts: NDArray[np.integer[Any]]) -> tuple[int, int]:
    if counts.max() == 0:
        return 0, 0
    filled = np.flatnonzero(counts >= max(1, 0.02 * counts.max()))
    return int(filled[0]), int(filled[-1]) + 1


def _shrink_strip(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    longest = max(height, width)
    if height == width or longest <= _MAX_PADDED_PX:
        return image
    size = [max(1, round(side * _MAX_PADDED_PX / longest)) for side in (width, height)]
    shrunk = Image.fromarray(image).resize(
        (size[0], size[1]), Image.Resampling.BILINEAR
    )
    return np.array(shrunk)


def _pad_to_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    side = max(height, width)
    padded = np.zeros((side, side, *image.shape[2:]), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = image
    return padded


_silencing = threading.Lock()
_num_silencing = 0
_filters_before: warnings.catch_warnings[None] | None = None


@contextmanager
def decoder_warnings_silenced() -> Iterator[None]:
    """Silence warnings of Pillow, pydicom and gdcm: pydicom's quote headers."""
    # Whatever Pillow and pydicom warn of either ends as an error here or does not
    # matter. `warnings.catch_warnings` restores a list of the whole process: with two
    # threads inside, the one that leaves last would restore the other's list. So the
    # first one in saves the list, and the last one out restores it.
    global _num_silencing, _filters_before
    with _silencing:
        if _num_silencing == 0:
            _filters_before = warnings.catch_warnings()
            _filters_before.__enter__()
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom|gdcm)(\.|$)")
        _num_silencing += 1
    try:
        yield
    finally:
        with _silencing:
            _num_silencing -= 1
            if _num_silencing == 0 and _filters_before is not None:
                _filters_before.__exit__(None, None, None)
