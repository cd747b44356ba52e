"""One file to one array: the only way from an image file into this package.

Training and prediction both come through here, so a model never sees an image that
was decoded in another way than those it learnt from. JPEG, PNG, TIFF and BMP are read
by Pillow, DICOM by `tumorlens.data.dicom.pixels`; the first bytes of a file decide
which, not its name.

Every file is hostile until read. Its size and its pixel count are checked before
anything is decoded, and any failure of a decoder on a damaged file becomes a
`DataError` that names the file. An image with 16 bits per pixel is scaled by its own
range: scanners store 10 or 12 bits in 16, and a fixed division by 256 would turn them
black.
"""

from __future__ import annotations

import re
import stat
import threading
import warnings
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tumorlens.data.dicom import pixels
from tumorlens.errors import DataError, TumorlensError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.config import Fit

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"}
)
"""Usual suffixes of the formats that are read, in lower case. Only for finding files in
a folder: the content decides what a file is."""

# Pillow has some fifty formats more; none of their decoders is ever reached.
_PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")

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

    max_frames: int = 10_000
    """Frames of a multi-frame DICOM file or pages of a TIFF; one of them is decoded."""


DEFAULT_LIMITS = ImageLimits()


def read_image(
    path: Path, *, limits: ImageLimits = DEFAULT_LIMITS, frame: int | None = None
) -> NDArray[np.uint8]:
    """Return the upright image in a file.

    EXIF orientation is applied, transparency is laid over black. 8-bit values are
    kept as they are. Grey with more bits is scaled linearly, so that the image's own
    smallest value becomes 0 and its largest 255; a constant one becomes 0, and so does
    a pixel that is not finite. Colour with 16 bits per channel keeps the upper 8.
    DICOM: see `tumorlens.data.dicom.pixels.read_frame`.

    Args:
        path: A JPEG, PNG, TIFF, BMP or DICOM file, whatever its suffix.
        limits: Limits above which a file is refused.
        frame: Which frame of a multi-frame DICOM file or page of a TIFF, from 0.
            `None` is the middle one, `num_frames // 2`: the ends of a head volume show
            little of the brain.

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
        image = _pad_to_square(_crop_black_border(image))
    square = Image.fromarray(image).resize(
        (size_px, size_px), Image.Resampling.BILINEAR
    )
    return np.array(square)


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
    return to_square(image, size_px=size_px, fit=fit, in_chans=in_chans)


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
    # Broad on purpose, and only around the decoders: on a damaged file they raise
    # anything. Seen on mutated files: OSError, SyntaxError,
    # ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError,
    # OverflowError, RuntimeError, NotImplementedError, struct.error, zlib.error.
    try:
        if pixels.is_dicom(file):
            return _without_equal_channels(
                pixels.read_frame(
                    path,
                    frame=frame,
                    max_bytes=limits.max_bytes,
                    max_pixels=limits.max_pixels,
                    max_frames=limits.max_frames,
                )
            )
        return _read_with_pillow(path, file, limits, frame)
    except TumorlensError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{path} is not a JPEG, PNG, TIFF, BMP or DICOM file",
            hint="convert it, or move it out of the class folder",
        ) from None
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is damaged: {why or 'nothing more is known'} "
            f"({type(error).__name__})",
            hint="fetch the file again, or remove it",
        ) from error


def _read_with_pillow(
    path: Path, file: IO[bytes], limits: ImageLimits, frame: int | None
) -> NDArray[np.uint8]:
    try:
        image = Image.open(file, formats=_PILLOW_FORMATS)
    except Image.DecompressionBombError as error:
        # Pillow's own bound, below ours where `limits` allows more.
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_many_pixels(
            path, found[1] if found else "too many", limits
        ) from None
    with image:
        num_pages = 1
        if image.format == "TIFF":
            num_pages = _num_pages(image, limits.max_frames)
        chosen = pixels.choose_frame(
            path, frame, num_frames=num_pages, max_frames=limits.max_frames
        )
        if num_pages > 1:
            image.seek(chosen)
        num_pixels = image.width * image.height
        if num_pixels > limits.max_pixels:
            raise _too_many_pixels(path, num_pixels, limits)
        ImageOps.exif_transpose(image, in_place=True)  # else it copies every image
        return _to_array(path, image)


def _too_many_pixels(path: Path, found: object, limits: ImageLimits) -> DataError:
    return DataError(
        f"{path} has {found} pixels, more than the limit of {limits.max_pixels}",
        hint="raise data.max_pixels if the image is really that large",
    )


def _num_pages(image: Image.Image, limit: int) -> int:
    # Not `n_frames`: it follows the file's chain of pages to its end, however long.
    num_pages = 1
    with suppress(EOFError):
        while num_pages <= limit:
            image.seek(num_pages)
            num_pages += 1
    return num_pages


def _to_array(path: Path, image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":
        deep = np.array(image)
        grey = _scale_to_uint8(path, deep)
        if isinstance(key := image.info.get("transparency"), int):
            grey[deep == key] = 0
        return grey
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return np.array(image if image.mode == "L" else image.convert("L"))
    return _without_equal_bands(image if image.mode == "RGB" else image.convert("RGB"))


def _without_equal_bands(image: Image.Image) -> NDArray[np.uint8]:
    # The same as `_without_equal_channels` in half of the time: Pillow takes the bands
    # apart faster than numpy compares every third byte.
    first, *others = (band.tobytes() for band in image.split())
    if all(first == other for other in others):
        grey = np.frombuffer(bytearray(first), np.uint8)
        return grey.reshape(image.height, image.width)
    return np.array(image)


def _scale_to_uint8(path: Path, deep: NDArray[Any]) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore"):  # a signalling NaN complains when converted
        values = deep.astype(np.float64)
    finite = np.isfinite(values)  # floating-point TIFF can hold NaN
    if not finite.any():
        raise DataError(
            f"{path} has no finite pixel", hint="write the file again, or remove it"
        )
    low = values.min(where=finite, initial=np.inf)
    high = values.max(where=finite, initial=-np.inf)
    if not low < high:
        return np.zeros(deep.shape, np.uint8)
    values[~finite] = low
    values -= low
    values *= 255
    values /= high - low
    return np.rint(values).astype(np.uint8)


def _without_equal_channels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.ndim == 2:
        return image
    first, *others = np.moveaxis(image, -1, 0)
    if all(np.array_equal(first, other) for other in others):
        return np.ascontiguousarray(first)
    return image


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
