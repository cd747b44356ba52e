"""JPEG, PNG, TIFF and BMP as 8-bit grey or colour, decoded by Pillow.

Pillow gives the numbers of a file, and not always what they mean: it drops the lower
byte of 16-bit colour, the polarity and sign of deep TIFF, and the difference between a
picture and its thumbnail. This module puts the meaning back, or refuses the file by
name. `docs/images.md` has a table of what comes out, and each of its rows has a test.
"""

from __future__ import annotations

import logging
import re
import struct
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from tumorlens.data.dicom.pixels import choose_frame
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Where nobody has set up logging, Python prints errors of a logger without a handler.
# Pillow's name no file, and each ends as an error here.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# Pillow has some fifty formats more; none of their decoders is ever reached.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP")

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    *((start, "TIFF") for start in TiffImagePlugin.PREFIXES),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
"""Sizes of the header that follows the first 14 bytes, one for each version of BMP."""

NUM_START_BYTES = 18
"""Number of bytes that `format_of` needs."""

# Tags of TIFF 6.0 and its supplements.
_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _SUB_IFDS = 254, 255, 330
_BITS, _COMPRESSION, _PHOTOMETRIC, _FORMAT, _PLANAR = 258, 259, 262, 339, 284
_SUBSAMPLING = 530

_REDUCED, _MASK = 1, 4
"""Bits of NewSubfileType."""
_WHITE_IS_ZERO, _YCBCR = 0, 6
_UNSIGNED, _SIGNED, _FLOATING = 1, 2, 3
_FORMAT_NAMES = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOATING: "floating-point"}

_NATIVE = {
    "I;16BS": "I;16NS",
    "I;16S": "I;16NS",
    "I;32BS": "I;32NS",
    "I;32S": "I;32NS",
    "F;32BF": "F;32NF",
    "F;32F": "F;32NF",
}
"""Raw modes of TIFF that libtiff has already brought into the order of this machine."""

_DEEP_COLOR = re.compile(r"(LA|RGB[XAa]?);16([LBN])")
_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Raw modes of PNG -> factor by which Pillow brings their values to 8 bits."""

_READ_MODES = {
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"),
    *("I", "I;16", "I;16B", "I;16L", "I;16N", "F"),
}


@dataclass(frozen=True)
class _Page:
    """One page of a TIFF file: the tags that say what its numbers mean."""

    number: int
    tags: dict[int, Any]
    error: str | None
    """Why Pillow does not read it, if it does not."""

    @property
    def is_picture(self) -> bool:
        """Whether it is neither a thumbnail nor a mask."""
        kind = self.tags.get(_NEW_SUBFILE_TYPE, 0)
        return not kind & (_REDUCED | _MASK) and self.tags.get(_SUBFILE_TYPE) != 2


def format_of(start: bytes) -> str | None:
    r"""Return the format that the first bytes of a file name: 'JPEG', 'TIFF' ...

    Args:
        start: The first `NUM_START_BYTES` bytes, or all of a shorter file.

    Example:
        >>> format_of(b"II*\0" + b"\0" * 14), format_of(b"BMI 22; weight 70")
        ('TIFF', None)
    """
    for known, name in _STARTS:
        if start.startswith(known):
            return name
    # Two letters alone begin many a text.
    is_bmp = start.startswith(b"BM") and len(start) >= NUM_START_BYTES
    if is_bmp and struct.unpack_from("<L", start, 14)[0] in _BMP_HEADERS:
        return "BMP"
    return None


def read_picture(
    path: Path,
    file: IO[bytes],
    *,
    frame: int | None,
    max_pixels: int,
    max_side_px: int,
    max_frames: int,
) -> NDArray[np.uint8]:
    """Return the upright picture in a JPEG, PNG, TIFF or BMP file.

    Args:
        path: For messages.
        file: The open file.
        frame: Page of a TIFF, from 0; `None` is the middle one. Thumbnails (reduced
            images) and masks are not counted as pages.
        max_pixels: Limit of width times height.
        max_side_px: Limit of width and of height.
        max_frames: Limit of the pages of a TIFF, thumbnails and masks among them.

    Returns:
        Grey values (H, W), or (H, W, 3) when the channels really differ.

    Raises:
        DataError: The file is none of the formats, of a kind that is not read, damaged
            in its header, over a limit, or has no such page or no finite pixel.

    Source:
        TIFF 6.0 (Adobe 1992): NewSubfileType, PhotometricInterpretation, SampleFormat,
        ExtraSamples. PNG (W3C, third edition), 11.3.2.1 tRNS.
    """
    with _open(path, file, max_pixels) as image:
        pages = _pages_of(path, image, max_frames)
        chosen = pages[
            choose_frame(path, frame, num_frames=len(pages), max_frames=max_frames)
        ]
        if chosen.error is not None:
            _refuse(path, "TIFF", f"{chosen.error} {_samples(chosen.tags)}")
        _go_to(image, chosen)
        _check_size(path, image, max_pixels=max_pixels, max_side_px=max_side_px)
        _check_kind(path, image, chosen.tags)
        if deep := _DEEP_COLOR.fullmatch(_raw_mode(image)):
            return _deep_color(path, file, image, chosen, deep[1])
        return _grey_or_color(path, image, chosen.tags)


def _open(path: Path, file: IO[bytes], max_pixels: int) -> ImageFile.ImageFile:
    start = file.read(NUM_START_BYTES)
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        # Pillow's own bound, below ours where `max_pixels` allows more.
        found = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_many_pixels(
            path, found[1] if found else "too many", max_pixels
        ) from None
    except UnidentifiedImageError:
        kind = format_of(start)
        if kind is None:
            raise DataError(
                f"{path} is not a JPEG, PNG, TIFF, BMP or DICOM file",
                hint="convert it, or move it out of the class folder",
            ) from None
        _refuse(path, kind, _why_not(file, kind))


def _refuse(path: Path, kind: str, why: str) -> NoReturn:
    raise DataError(
        f"{path} is a {kind} file that cannot be read: {' '.join(why.split())[:200]}",
        hint="save it with 8 or 16 bits per sample; if it is damaged, fetch it again",
    ) from None


def _why_not(file: IO[bytes], kind: str) -> str:
    """Return what Pillow has against a file that begins as one of a format."""
    factory, _ = Image.OPEN[kind]
    file.seek(0)
    try:
        factory(file, "")
    except Exception as error:  # whatever made `Image.open` give up
        why = str(error) or type(error).__name__
    else:
        why = "nothing more is known"
    if kind != "TIFF":
        return why
    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        return f"{why} {_samples(dict(tags))}"
    except Exception:  # a damaged directory says nothing about its samples
        return why


def _samples(tags: dict[int, Any]) -> str:
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_FORMAT, (_UNSIGNED,))
    kind = _FORMAT_NAMES.get(kinds[0], f"format {kinds[0]}")
    return (
        f"({'+'.join(str(number) for number in bits[:8])} bits, {kind}, photometric "
        f"interpretation {tags.get(_PHOTOMETRIC)})"
    )


def _pages_of(path: Path, image: Image.Image, max_frames: int) -> list[_Page]:
    """Return the pages of a TIFF that are pictures; other formats have one page.

    Raises:
        DataError: There are only thumbnails, and the picture is where none is read.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return [_Page(0, {}, None)]
    pages = list(_all_pages(image, max_frames))
    pictures = [page for page in pages if page.is_picture]
    if len(pages) > max_frames or pictures:
        return pictures if len(pages) <= max_frames else pages
    # Digital negatives keep a thumbnail first and the picture in a directory below it.
    if any(_SUB_IFDS in page.tags for page in pages):
        raise DataError(
            f"{path} shows a thumbnail only: its picture is in a sub-directory, which "
            "is not read",
            hint="save the picture as an ordinary TIFF or PNG file",
        )
    return pages


def _all_pages(
    image: TiffImagePlugin.TiffImageFile, max_frames: int
) -> Iterator[_Page]:
    """Yield the pages, at most one more than the limit."""
    # Not by `n_frames`: it follows the file's chain of pages to its end, however long.
    for number in range(max_frames + 1):
        error = None
        try:
            image.seek(number)
        except EOFError:
            return
        except SyntaxError as unknown:  # a mask, say: what it is, is known all the same
            error = str(unknown)
        yield _Page(number, {tag: image.tag_v2[tag] for tag in image.tag_v2}, error)


def _go_to(image: ImageFile.ImageFile, page: _Page) -> None:
    """Make a page the current one, and correct what Pillow expects of its bytes."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    image.seek(page.number)
    # libtiff gives numbers in the order of this machine. Pillow knows that for some of
    # the raw modes, and takes the others for those of the file (13.0.0).
    image.tile = [
        tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
        if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]


def _check_size(
    path: Path, image: Image.Image, *, max_pixels: int, max_side_px: int
) -> None:
    num_pixels = image.width * image.height
    if num_pixels > max_pixels:
        raise _too_many_pixels(path, num_pixels, max_pixels)
    if max(image.size) > max_side_px:
        raise DataError(
            f"{path} has {image.width} x {image.height} pixels, and no side may be "
            f"longer than {max_side_px}",
            hint="no scanner makes such an image: cut it, or remove it",
        )


def _too_many_pixels(path: Path, found: object, max_pixels: int) -> DataError:
    return DataError(
        f"{path} has {found} pixels, more than the limit of {max_pixels}",
        hint="raise data.max_pixels if the image is really that large",
    )


def _check_kind(path: Path, image: ImageFile.ImageFile, tags: dict[int, Any]) -> None:
    """Refuse what Pillow would decode to something else than the file shows.

    Raises:
        DataError: The file is of such a kind.
    """
    kind = image.format or "image"
    if image.mode not in _READ_MODES:
        _refuse(path, kind, f"the colour space {image.mode} is not known")
    if not tags:
        return
    is_plain = tags.get(_COMPRESSION, 1) == 1
    if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (1,))) > 8:
        _refuse(path, kind, f"channels one after the other {_samples(tags)}")
    # Without the tag, the chroma of two by two pixels is stored once.
    is_reduced = tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1)
    is_ycbcr = tags.get(_PHOTOMETRIC) == _YCBCR and len(tags.get(_BITS, ())) == 3
    if is_plain and is_ycbcr and is_reduced:
        _refuse(path, kind, "uncompressed, and with reduced chroma")
    if is_plain and is_ycbcr and _raw_mode(image) != "YCbCr":
        # Pillow 11 takes four bytes for each pixel.
        _refuse(path, kind, "uncompressed YCbCr, which needs Pillow 13")


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return how the bytes of a file that is not yet decoded are to be taken."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args if isinstance(args, str) else args[0] if args else "")


def _grey_or_color(
    path: Path, image: ImageFile.ImageFile, tags: dict[int, Any]
) -> NDArray[np.uint8]:
    step = _GREY_STEPS.get(_raw_mode(image), 1)
    ImageOps.exif_transpose(image, in_place=True)  # else it copies every image
    key = image.info.get("transparency")
    is_signed = tags.get(_FORMAT, (_UNSIGNED,))[0] == _SIGNED
    if image.mode.startswith("I") or image.mode == "F" or is_signed:
        deep = np.array(image)
        if is_signed and image.mode == "L":
            deep = deep.view(np.int8)
        elif image.mode == "I" and tags and not is_signed:
            deep = deep.view(np.uint32)
        visible = deep != key if isinstance(key, int) else None
        is_negative = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        return scale_to_uint8(path, deep, visible=visible, is_negative=is_negative)
    if image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * step
    flat: Image.Image = image
    if image.has_transparency_data:
        straight = image.convert("LA") if image.mode == "La" else image
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        flat = Image.alpha_composite(black, straight.convert("RGBA"))
    if flat.mode in ("1", "L"):
        return np.array(flat if flat.mode == "L" else flat.convert("L"))
    return _without_equal_bands(flat if flat.mode == "RGB" else flat.convert("RGB"))


def _without_equal_bands(image: Image.Image) -> NDArray[np.uint8]:
    # The same as `without_equal_channels` in half of the time: Pillow takes the bands
    # apart faster than numpy compares every third byte.
    first, *others = (band.tobytes() for band in image.split())
    if all(first == other for other in others):
        grey = np.frombuffer(bytearray(first), np.uint8)
        return grey.reshape(image.height, image.width)
    return np.array(image)


def without_equal_channels(image: NDArray[Any]) -> NDArray[Any]:
    """Return (H, W) for an image (H, W, C) whose channels are equal, else the image."""
    if image.ndim == 2:
        return image
    first, *others = np.moveaxis(image, -1, 0)
    if all(np.array_equal(first, other) for other in others):
        return np.ascontiguousarray(first)
    return image


def scale_to_uint8(
    path: Path,
    deep: NDArray[Any],
    *,
    visible: NDArray[np.bool_] | None = None,
    is_negative: bool = False,
) -> NDArray[np.uint8]:
    """Return numbers of any type scaled by their own range, the smallest to 0.

    Args:
        path: For messages.
        deep: Shape (H, W) or (H, W, C); channels are scaled together.
        visible: Shape (H, W). What is not visible becomes black and does not count for
            the range; neither does a number that is not finite. `None`: all is visible.
        is_negative: Whether the largest number means black.

    Raises:
        DataError: No number is finite.
    """
    inside = None if deep.dtype.kind in "ui" else np.isfinite(deep)
    if visible is not None:
        seen = visible.reshape(visible.shape + (1,) * (deep.ndim - 2))
        inside = np.broadcast_to(seen, deep.shape) if inside is None else inside & seen
    known = deep if inside is None else deep[inside]
    if known.size == 0:
        if visible is not None and not visible.any():
            return np.zeros(deep.shape, np.uint8)
        raise DataError(
            f"{path} has no finite pixel", hint="write the file again, or remove it"
        )
    low, high = float(known.min()), float(known.max())
    if not low < high:
        return np.zeros(deep.shape, np.uint8)
    grey: NDArray[np.uint8]
    if deep.dtype == np.uint16:  # a table takes an eighth of the memory
        grey = _shares(np.arange(1 << 16), low, high)[deep]
    else:
        grey = _shares(deep, low, high)
    if is_negative:
        np.subtract(255, grey, out=grey)
    if inside is not None:
        grey[~inside] = 0
    return grey


def _shares(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    # Not finite, or outside of the range: clipped here, and black in the end.
    with np.errstate(invalid="ignore", over="ignore"):
        shares = values.astype(np.float64)
        shares -= low
        shares *= 255
        shares /= high - low
        np.nan_to_num(shares, copy=False)
        return np.rint(np.clip(shares, 0, 255, out=shares)).astype(np.uint8)


def _deep_color(
    path: Path, file: IO[bytes], image: ImageFile.ImageFile, page: _Page, channels: str
) -> NDArray[np.uint8]:
    """Return colour, or grey with transparency, of 16 bits per channel."""
    key = image.info.get("transparency")
    if channels == "LA":
        # The bytes of a pixel are those of an 8-bit RGBA file: both bytes of grey, then
        # both of alpha.
        pairs = _decoded(image, "RGBA").astype(np.uint16)  # (H, W, 4)
        numbers = pairs[..., ::2] << 8 | pairs[..., 1::2]
    else:
        # Pillow keeps the byte that its raw mode takes for the upper one. So the file
        # is decoded twice, the second time as if its bytes were in the other order.
        high, low = _raw_modes(image, channels)
        upper = _decoded(image, high).astype(np.uint16)
        file.seek(0)
        with Image.open(file, formats=FORMATS) as again:
            _go_to(again, page)
            numbers = upper << 8 | _decoded(again, low)
    values, alpha = numbers, None
    if channels in ("LA", "RGBA", "RGBa"):
        values, alpha = numbers[..., :-1], numbers[..., -1]
    visible = None if alpha is None or alpha.all() else alpha > 0
    if isinstance(key, tuple):
        visible = (values != np.array(key)).any(axis=-1)
    if channels == "RGBa" and alpha is not None:
        share = np.maximum(alpha, 1)[..., np.newaxis]
        straight = values.astype(np.float32) / share * 65535
        values = np.rint(np.minimum(straight, 65535)).astype(np.uint16)
    scaled = scale_to_uint8(path, without_equal_channels(values), visible=visible)
    if alpha is not None and (alpha < 65535).any():
        share = alpha if scaled.ndim == 2 else alpha[..., np.newaxis]
        scaled = np.rint(scaled * (share / np.float32(65535))).astype(np.uint8)
    return scaled


def _raw_modes(image: ImageFile.ImageFile, channels: str) -> tuple[str, str]:
    """Return the raw modes that give the upper and the lower byte of each channel."""
    order = _raw_mode(image)[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    # Pillow would divide by an alpha of 8 bits: that is done later, with 16.
    name = "RGBA" if channels == "RGBa" else channels
    return f"{name};16{order}", f"{name};16{'B' if order == 'L' else 'L'}"


def _decoded(image: ImageFile.ImageFile, raw_mode: str) -> NDArray[np.uint8]:
    """Decode an open file in another raw mode of the same number of bits."""
    image.tile = [
        tile._replace(
            args=raw_mode
            if isinstance(tile.args, str)
            else (raw_mode, *(tile.args or ())[1:])
        )
        for tile in image.tile
    ]
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(image)
