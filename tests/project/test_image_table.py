"""The table in docs/images.md: each row is a file that is made here, and read."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from support.dicom_files import dataset_of, write, write_alone
from support.handmade_files import Order, tiff_page, write_png, write_tiff
from tumorlens.data.images import load_square, read_image, to_square
from tumorlens.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "images.md"

Pixels = NDArray[Any]

STEPS = np.arange(12).reshape(3, 4)
GREY = (STEPS * 23).astype(np.uint8)  # 0 to 253: a picture of 8 bits
COLOR = np.stack([GREY, GREY[::-1], 253 - GREY], axis=-1)
FULL = np.rint(STEPS / 11 * 255)
"""`STEPS` scaled so that the smallest is 0 and the largest 255."""
DEEP = (STEPS * 300 + 100).astype(np.uint16)  # 100 to 3400: 12 bits in 16
DEEP_COLOR = np.stack([DEEP, DEEP[::-1], 3500 - DEEP], axis=-1)
FULL_COLOR = np.rint((DEEP_COLOR - 100) / 3300 * 255)
OPAQUE = np.full((3, 4, 1), 65535, np.uint16)
CLEAR_TOP = np.concatenate([np.zeros((1, 4)), np.ones((2, 4))])[..., np.newaxis]
"""An alpha that hides the first row."""
BELOW_TOP = np.vstack([np.zeros((1, 4)), np.rint((STEPS[1:] - 4) / 7 * 255)])
"""`STEPS` without the first row: what is hidden is black, and does not count."""


@dataclass(frozen=True)
class Row:
    """One row of the table, and a file of that kind."""

    format: str
    stored: str
    network: str
    make: Callable[[Path], Path]
    expected: Pixels | str
    """The image, or words of the error."""
    tolerance: int = 0


ROWS: list[Row] = []


def row(
    format_name: str,
    stored: str,
    network: str,
    expected: Any,
    make: Callable[[Path], Path],
    tolerance: int = 0,
) -> None:
    ROWS.append(Row(format_name, stored, network, make, expected, tolerance))


KEPT = "as stored"
RANGE = "its own range to 0-255"
RANGE_NEGATIVE = "its own range to 255-0"
REFUSED = "an error that names it"


# JPEG


def jpeg(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, "JPEG", quality=100, **options)
    return path


def cmyk_jpeg(path: Path) -> Path:
    # Pillow writes the inverted numbers and the mark of Adobe, as Photoshop does.
    return jpeg(path, Image.new("CMYK", (16, 16), (0, 128, 255, 51)))


def jpeg_12(path: Path) -> Path:
    content = bytearray(jpeg(path, Image.fromarray(GREY)).read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12  # the depth in the frame header
    path.write_bytes(content)
    return path


SMOOTH = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
SMOOTH_COLOR = np.stack([SMOOTH, SMOOTH[:, ::-1], np.full_like(SMOOTH, 90)], axis=-1)
# (255 - C) * (255 - K) / 255, of 0, 128, 255 and 51.
CMYK_AS_RGB = np.full((16, 16, 3), [204, 102, 0])

row("JPEG", "8-bit grey", KEPT, SMOOTH, partial(jpeg, image=Image.fromarray(SMOOTH)), 1)
row(
    "JPEG",
    "8-bit colour (YCbCr or RGB)",
    "RGB, or grey where the channels are equal",
    SMOOTH_COLOR,
    partial(jpeg, image=Image.fromarray(SMOOTH_COLOR), subsampling=0),
    3,
)
row("JPEG", "8-bit CMYK", "RGB, (255 - C)(255 - K) / 255", CMYK_AS_RGB, cmyk_jpeg, 2)
row("JPEG", "12-bit", REFUSED, "JPEG file that cannot be read", jpeg_12)


# PNG


def png(path: Path, pixels: Pixels, depth: int, color: int, *chunks: Any) -> Path:
    return write_png(path, pixels, depth=depth, color=color, chunks=chunks)


def make_png(pixels: Pixels, depth: int, color: int, *chunks: Any) -> Any:
    return lambda path: png(path, pixels, depth, color, *chunks)


def damaged_png(path: Path) -> Path:
    content = png(path, GREY, 8, 0, (b"tEXt", b"a\0b")).read_bytes()
    path.write_bytes(content.replace(b"tEXta\0b", b"tEXta\0c"))
    return path


BITS = (STEPS % 2).astype(np.uint8)
TWO_BITS, FOUR_BITS = (STEPS % 4).astype(np.uint8), STEPS.astype(np.uint8)
PALETTE = (b"PLTE", bytes([10, 20, 30, 200, 100, 0]))
PALETTE_COLORS = np.where(BITS[..., np.newaxis], [200, 100, 0], [10, 20, 30])
ALPHA = np.array([255, 128, 0, 255])  # one for each column

row("PNG", "1-bit grey", "0 and 255", BITS * 255, make_png(BITS, 1, 0))
row("PNG", "2-bit grey", "times 85", TWO_BITS * 85, make_png(TWO_BITS, 2, 0))
row("PNG", "4-bit grey", "times 17", FOUR_BITS * 17, make_png(FOUR_BITS, 4, 0))
row("PNG", "8-bit grey", KEPT, GREY, make_png(GREY, 8, 0))
row("PNG", "10-, 12- or 16-bit grey in 16", RANGE, FULL, make_png(DEEP, 16, 0))
row(
    "PNG",
    "grey with a transparent value, below 16 bits",
    "that value is black",
    np.where(TWO_BITS == 3, 0, TWO_BITS * 85),
    make_png(TWO_BITS, 2, 0, (b"tRNS", struct.pack(">H", 3))),
)
row(
    "PNG",
    "16-bit grey with a transparent value",
    "the range of the others; that value is black",
    np.where(STEPS == 11, 0, np.rint(STEPS / 10 * 255)),
    make_png(DEEP, 16, 0, (b"tRNS", struct.pack(">H", 3400))),
)
row(
    "PNG",
    "8-bit grey with alpha",
    "laid over black",
    np.rint(GREY * ALPHA / 255),
    make_png(np.stack([GREY, np.broadcast_to(ALPHA, (3, 4))], -1).astype("u1"), 8, 4),
    1,
)
row(
    "PNG",
    "16-bit grey with alpha",
    "the range of what is not fully transparent, laid over black",
    BELOW_TOP,
    make_png(
        np.concatenate([DEEP[..., None], OPAQUE * CLEAR_TOP], -1).astype("u2"), 16, 4
    ),
)
row("PNG", "8-bit RGB", KEPT, COLOR, make_png(COLOR, 8, 2))
row(
    "PNG",
    "10-, 12- or 16-bit RGB in 16",
    "the range of all channels to 0-255",
    FULL_COLOR,
    make_png(DEEP_COLOR, 16, 2),
)
row(
    "PNG",
    "RGB of equal channels, any depth",
    "as grey of that depth",
    FULL,
    make_png(np.stack([DEEP] * 3, -1), 16, 2),
)
row(
    "PNG",
    "16-bit RGB with a transparent value",
    "the range of the others; that value is black",
    np.where(STEPS == 11, 0, np.rint(STEPS / 10 * 255)),
    make_png(
        np.stack([DEEP] * 3, -1), 16, 2, (b"tRNS", struct.pack(">3H", *[3400] * 3))
    ),
)
row(
    "PNG",
    "8-bit RGB with alpha",
    "laid over black",
    np.rint(COLOR * ALPHA[:, None] / 255),
    make_png(
        np.concatenate([COLOR, np.broadcast_to(ALPHA[:, None], (3, 4, 1))], -1).astype(
            "u1"
        ),
        8,
        6,
    ),
    1,
)
row(
    "PNG",
    "16-bit RGB with alpha",
    "the range of what is not fully transparent, laid over black",
    BELOW_TOP,
    make_png(
        np.concatenate([*[DEEP[..., None]] * 3, OPAQUE * CLEAR_TOP], -1).astype("u2"),
        16,
        6,
    ),
)
row(
    "PNG",
    "palette, 1 to 8 bits",
    "its colours",
    PALETTE_COLORS,
    make_png(BITS, 1, 3, PALETTE),
)
row(
    "PNG",
    "palette with transparent entries",
    "its colours laid over black",
    np.where(BITS[..., np.newaxis], [100, 50, 0], [10, 20, 30]),
    make_png(BITS, 4, 3, PALETTE, (b"tRNS", b"\xff\x80")),
    1,
)
row(
    "PNG",
    "gamma, sRGB or ICC profile",
    "as without",
    GREY,
    make_png(GREY, 8, 0, (b"gAMA", struct.pack(">L", 45455)), (b"sRGB", b"\0")),
)
row(
    "PNG",
    "a damaged chunk before the pixels",
    REFUSED,
    "PNG file that cannot be",
    damaged_png,
)


# TIFF


def tiff(*pages: Any, order: Order = "<", num_strips: int = 1) -> Any:
    return partial(_tiff, pages=pages, order=order, num_strips=num_strips)


def _tiff(path: Path, pages: Any, order: Order, num_strips: int) -> Path:
    return write_tiff(path, *pages, order=order, num_strips=num_strips)


def planes(pixels: Pixels) -> Any:
    tags, _ = tiff_page(pixels, photometric=2, t284=2)
    return tags, np.ascontiguousarray(np.moveaxis(pixels, -1, 0)).tobytes()


def with_alpha(pixels: Pixels, alpha: Pixels, kind: int, **options: Any) -> Any:
    stacked = np.concatenate([pixels, alpha], axis=-1).astype(pixels.dtype)
    return tiff_page(stacked, t338=[kind], **options)


DEEP_PIXELS = DEEP[..., np.newaxis]
HALF = np.full((3, 4, 1), 128, np.uint8)
SIGNED_8, SIGNED_16 = (STEPS * 20 - 110).astype("i1"), (STEPS * 300 - 1700).astype("i2")
SIGNED_32 = (STEPS * 10**8 - 6 * 10**8).astype("i4")
UNSIGNED_32 = (STEPS * 3 * 10**8 + 7).astype("u4")
FLOATS = (STEPS / 7 - 0.5).astype("f4")
WITH_NAN = np.where(STEPS == 3, np.nan, FLOATS).astype("f4")
BLACK_NAN = np.where(STEPS == 3, 0, FULL)
THUMBNAIL = np.full((2, 2), 9, np.uint8)
MASK = (STEPS > 5).astype(np.uint8)
COLORMAP = [*[10 << 8, 200 << 8], *[20 << 8, 100 << 8], *[30 << 8, 0]]

for small, name, factor in ((BITS, 1, 255), (TWO_BITS, 2, 85), (FOUR_BITS, 4, 17)):
    row(
        "TIFF",
        f"{name}-bit grey, black is zero",
        f"times {factor}",
        small * factor,
        tiff(tiff_page(small, bits=name)),
    )
    row(
        "TIFF",
        f"{name}-bit grey, white is zero",
        f"255 less times {factor}",
        255 - small * factor,
        tiff(tiff_page(small, bits=name, photometric=0)),
    )
row("TIFF", "8-bit grey, black is zero", KEPT, GREY, tiff(tiff_page(GREY)))
row(
    "TIFF",
    "8-bit grey, white is zero",
    "255 less the number",
    255 - GREY,
    tiff(tiff_page(GREY, photometric=0)),
)
row("TIFF", "8-bit signed grey", RANGE, FULL, tiff(tiff_page(SIGNED_8)))
row(
    "TIFF",
    "12-bit grey in 12, little endian",
    RANGE,
    FULL,
    tiff(tiff_page(DEEP, bits=12)),
)
row(
    "TIFF",
    "10-, 12- or 16-bit grey in 16, black is zero",
    RANGE,
    FULL,
    tiff(tiff_page(DEEP)),
)
row(
    "TIFF",
    "the same in big endian",
    RANGE,
    FULL,
    tiff(tiff_page(DEEP, order=">"), order=">"),
)
row(
    "TIFF",
    "10-, 12- or 16-bit grey in 16, white is zero, little endian",
    RANGE_NEGATIVE,
    255 - FULL,
    tiff(tiff_page(DEEP, photometric=0)),
)
row(
    "TIFF",
    "the same in big endian, white is zero",
    REFUSED,
    "TIFF file that cannot be read: .*16 bits, unsigned, photometric interpretation 0",
    tiff(tiff_page(DEEP, photometric=0, order=">"), order=">"),
)
row("TIFF", "16-bit signed grey", RANGE, FULL, tiff(tiff_page(SIGNED_16)))
row(
    "TIFF",
    "16-bit signed grey, compressed, big endian",
    RANGE,
    FULL,
    tiff(tiff_page(SIGNED_16, order=">", deflated=True), order=">"),
)
row(
    "TIFF",
    "32-bit unsigned grey, little endian",
    RANGE,
    FULL,
    tiff(tiff_page(UNSIGNED_32)),
)
row("TIFF", "32-bit signed grey", RANGE, FULL, tiff(tiff_page(SIGNED_32)))
row(
    "TIFF",
    "32-bit signed grey, compressed, big endian",
    RANGE,
    FULL,
    tiff(tiff_page(SIGNED_32, order=">", deflated=True), order=">"),
)
row(
    "TIFF",
    "32-bit floating-point grey, black is zero",
    "the range of its finite numbers to 0-255; the others are black",
    BLACK_NAN,
    tiff(tiff_page(WITH_NAN)),
)
row(
    "TIFF",
    "32-bit floating-point grey, white is zero",
    "the range of its finite numbers to 255-0; the others are black",
    np.where(STEPS == 3, 0, 255 - FULL),
    tiff(tiff_page(WITH_NAN, photometric=0)),
)
row(
    "TIFF",
    "32-bit floating-point grey, compressed, big endian",
    RANGE,
    FULL,
    tiff(tiff_page(FLOATS, order=">", deflated=True), order=">"),
)
row(
    "TIFF",
    "64-bit floating-point grey",
    REFUSED,
    "TIFF file that cannot be read: .*64 bits, floating-point",
    tiff(tiff_page(FLOATS.astype("f8"))),
)
row(
    "TIFF",
    "10-bit grey in 10",
    REFUSED,
    "TIFF file that cannot be read: .*10 bits",
    tiff(tiff_page(DEEP // 4, bits=10)),
)
for kind, words, expected in (
    (0, "with an extra channel of no meaning", GREY),
    (1, "with premultiplied alpha", np.minimum(GREY, 128)),
    (2, "with alpha", np.rint(GREY / 255 * 128)),
):
    premultiplied = np.minimum(GREY, 128) if kind == 1 else GREY
    row(
        "TIFF",
        f"8-bit grey {words}",
        KEPT if kind == 0 else "laid over black",
        expected,
        tiff(with_alpha(premultiplied[..., None], HALF, kind)),
        1,
    )
row(
    "TIFF",
    "16-bit grey with alpha",
    REFUSED,
    r"TIFF file that cannot be read: .*16\+16 bits",
    tiff(with_alpha(DEEP_PIXELS, OPAQUE, 2)),
)
row("TIFF", "8-bit RGB", KEPT, COLOR, tiff(tiff_page(COLOR, photometric=2)))
row(
    "TIFF",
    "8-bit RGB, channel after channel",
    KEPT,
    COLOR,
    tiff(planes(COLOR), num_strips=3),
)
row(
    "TIFF",
    "10-, 12- or 16-bit RGB in 16",
    "the range of all channels to 0-255",
    FULL_COLOR,
    tiff(tiff_page(DEEP_COLOR, photometric=2)),
)
row(
    "TIFF",
    "the same, compressed, big endian",
    "the range of all channels to 0-255",
    FULL_COLOR,
    tiff(tiff_page(DEEP_COLOR, photometric=2, order=">", deflated=True), order=">"),
)
row(
    "TIFF",
    "16-bit RGB, channel after channel",
    REFUSED,
    "TIFF file that cannot be read: channels one after the other",
    tiff(planes(DEEP_COLOR), num_strips=3),
)
row(
    "TIFF",
    "8-bit RGB with alpha",
    "laid over black",
    np.rint(COLOR / 255 * 128),
    tiff(with_alpha(COLOR, HALF, 2, photometric=2)),
    1,
)
row(
    "TIFF",
    "8-bit RGB with premultiplied alpha",
    "laid over black",
    np.minimum(COLOR, 128),
    tiff(with_alpha(np.minimum(COLOR, 128), HALF, 1, photometric=2)),
    1,
)
row(
    "TIFF",
    "16-bit RGB with alpha",
    "the range of what is not fully transparent, laid over black",
    BELOW_TOP,
    tiff(with_alpha(np.stack([DEEP] * 3, -1), OPAQUE * CLEAR_TOP, 2, photometric=2)),
)
row(
    "TIFF",
    "16-bit RGB with premultiplied alpha",
    "the range of what is not fully transparent, laid over black",
    np.rint(FULL / 2),
    tiff(with_alpha(np.stack([DEEP // 2] * 3, -1), OPAQUE // 2, 1, photometric=2)),
    1,
)
row(
    "TIFF",
    "palette, 1 to 8 bits",
    "its colours",
    PALETTE_COLORS,
    tiff(tiff_page(BITS, photometric=3, bits=1, t320=COLORMAP)),
)
row(
    "TIFF",
    "8-bit CMYK",
    "RGB, (255 - C)(255 - K) / 255",
    CMYK_AS_RGB,
    tiff(tiff_page(np.full((16, 16, 4), [0, 128, 255, 51], np.uint8), photometric=5)),
    1,
)
row(
    "TIFF",
    "16-bit CMYK",
    "the upper 8 bits, as 8-bit CMYK",
    CMYK_AS_RGB,
    tiff(
        tiff_page(
            np.full((16, 16, 4), [0, 128 << 8, 65535, 51 << 8], np.uint16),
            photometric=5,
        )
    ),
    1,
)
row(
    "TIFF",
    "8-bit YCbCr",
    "RGB",
    # ITU-R 601 with Cr = 178: R = Y + 1.402 * 50, G = Y - 0.714 * 50, B = Y.
    np.clip(np.stack([GREY + 70.1, GREY - 35.7, GREY + 0.0], -1), 0, 255),
    tiff(
        tiff_page(
            np.stack([GREY, np.full_like(GREY, 128), np.full_like(GREY, 178)], -1),
            photometric=6,
            t530=[1, 1],
        )
    ),
    2,
)
row(
    "TIFF",
    "8-bit YCbCr with reduced chroma, uncompressed",
    REFUSED,
    "TIFF file that cannot be read: uncompressed, and with reduced chroma",
    tiff(tiff_page(COLOR, photometric=6, t530=[2, 2])),
)
row(
    "TIFF",
    "CIE L\\*a\\*b\\*",
    REFUSED,
    "TIFF file that cannot be read: the colour space LAB",
    tiff(tiff_page(COLOR, photometric=8)),
)
row(
    "TIFF",
    "a picture, then its thumbnail",
    "the picture",
    GREY,
    tiff(tiff_page(GREY), tiff_page(THUMBNAIL, t254=1)),
)
row(
    "TIFF",
    "a thumbnail, then two pictures",
    "the second picture, the middle one of the two",
    GREY,
    tiff(tiff_page(THUMBNAIL, t254=1), tiff_page(255 - GREY, t254=2), tiff_page(GREY)),
)
row(
    "TIFF",
    "a picture and its mask",
    "the picture",
    GREY,
    tiff(tiff_page(GREY), tiff_page(MASK, bits=1, photometric=4, t254=4)),
)
row(
    "TIFF",
    "a thumbnail, with the picture in a sub-directory",
    REFUSED,
    "shows a thumbnail only",
    tiff(tiff_page(THUMBNAIL, t254=1, t330=[8])),
)


# BMP


def bmp(path: Path, pixels: bytes, bits: int, masks: bytes = b"") -> Path:
    """Write a BMP of 4 x 3 pixels; the rows in `pixels` begin with the lowest."""
    size, compression = 40 + len(masks), 3 if masks else 0
    header = struct.pack("<L2l2H6L", size, 4, 3, 1, bits, compression, *[0] * 5)
    start = 14 + len(header) + len(masks)
    path.write_bytes(
        b"BM"
        + struct.pack("<3L", start + len(pixels), 0, start)
        + header
        + masks
        + pixels
    )
    return path


def saved_bmp(image: Image.Image) -> Any:
    def save(path: Path) -> Path:
        image.save(path, "BMP")
        return path

    return save


def bmp_palette(path: Path) -> Path:
    image = Image.fromarray(BITS, mode=None).convert("P")
    image.putdata(BITS.ravel().tolist())
    image.putpalette(PALETTE[1])
    image.save(path, "BMP")
    return path


def flipped(pixels: Pixels) -> bytes:
    return np.ascontiguousarray(pixels[::-1]).tobytes()


BGRX = np.concatenate([COLOR[..., ::-1], np.full((3, 4, 1), 77)], -1).astype(np.uint8)
BGRA_MASKS = struct.pack("<4L", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
FIVE = (STEPS * 2).astype("<u2")

row("BMP", "1-, 4- or 8-bit palette", "its colours", PALETTE_COLORS, bmp_palette)
row("BMP", "8-bit grey", KEPT, GREY, saved_bmp(Image.fromarray(GREY)))
row("BMP", "24-bit RGB", KEPT, COLOR, saved_bmp(Image.fromarray(COLOR)))
row(
    "BMP",
    "16-bit RGB, 5 bits each",
    "each channel times 255 / 31",
    np.rint(STEPS * 2 / 31 * 255),
    lambda path: bmp(path, flipped(FIVE << 10 | FIVE << 5 | FIVE), 16),
    1,
)
row(
    "BMP",
    "32-bit RGB",
    "as stored; the fourth byte is not used",
    COLOR,
    lambda path: bmp(path, flipped(BGRX), 32),
)
row(
    "BMP",
    "32-bit RGB with a mask for alpha",
    "laid over black",
    np.rint(COLOR / 255 * 77),
    lambda path: bmp(path, flipped(BGRX), 32, BGRA_MASKS),
    1,
)


# DICOM


def dicom(pixels: Pixels, **attributes: Any) -> Any:
    return lambda path: write(path, dataset_of(pixels, **attributes))


def floating(dtype: str, **attributes: Any) -> Any:
    def make(path: Path) -> Path:
        dataset = dataset_of(DEEP, **attributes)
        del dataset.PixelData
        values = np.where(STEPS == 3, np.nan, DEEP).astype(dtype)
        name = "FloatPixelData" if dtype == "<f4" else "DoubleFloatPixelData"
        setattr(dataset, name, values.tobytes())
        dataset.BitsAllocated = 8 * values.itemsize
        return write(path, dataset)

    return make


def high_bit(path: Path) -> Path:
    dataset = dataset_of(DEEP << 4 | 5, **WINDOW)
    dataset.HighBit = 15
    return write(path, dataset)


def bit_packed(path: Path) -> Path:
    dataset = dataset_of(BITS, BitsAllocated=1, BitsStored=1)
    dataset.PixelData = np.packbits(BITS.ravel(), bitorder="little").tobytes()
    return write(path, dataset)


def lookup(keyword: str, table: Pixels, bits: int, **attributes: Any) -> Any:
    item = Dataset()
    item.LUTDescriptor = [len(table), 0, bits]
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return dicom(DEEP, **{keyword: [item]}, **attributes)


def dicom_palette() -> Any:
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", [10, 200]), ("Green", [20, 100]), ("Blue", [30, 0])):
        table = np.array(values, "<u2") * 257
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        attributes[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    return dicom(BITS, **attributes)


def reduced_chroma(path: Path) -> Path:
    # PS3.3 C.7.6.3.1.2: two luma values, then the chroma of both.
    chroma = np.full_like(GREY[:, ::2], 128)
    stored = np.stack([GREY[:, ::2], GREY[:, 1::2], chroma, chroma], -1)
    dataset = dataset_of(COLOR, PhotometricInterpretation="YBR_FULL_422")
    dataset.PixelData = stored.tobytes()
    return write(path, dataset)


def planar(path: Path) -> Path:
    dataset = dataset_of(COLOR, PlanarConfiguration=1)
    dataset.PixelData = np.moveaxis(COLOR, -1, 0).tobytes()
    return write(path, dataset)


def unnamed_compression(path: Path) -> Path:
    dataset = dataset_of(GREY)
    buffer = BytesIO()
    Image.fromarray(GREY).save(buffer, "JPEG")
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return write_alone(path, dataset)


def alone(syntax: uid.UID) -> Any:
    def make(path: Path) -> Path:
        dataset = dataset_of(DEEP, **WINDOW)
        dataset.file_meta.TransferSyntaxUID = syntax
        return write_alone(path, dataset)

    return make


WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
IN_WINDOW = np.rint(DEEP / 4095 * 255)
NAN_BLACK = np.where(STEPS == 3, 0, IN_WINDOW)
MANY = np.arange(1001).reshape(13, 77)
"""Its 0.5th and 99.5th percentiles are 5 and 995."""
STRETCHED = np.rint(np.clip((MANY - 5) / 990, 0, 1) * 255)
YBR = np.stack([GREY, *[np.full_like(GREY, 128)] * 2], -1)
PADDED = np.where(STEPS < 2, 4000, DEEP).astype(np.uint16)
"""The first two pixels only fill the frame."""
NOT_PADDED = np.where(STEPS < 2, 0, IN_WINDOW)

row(
    "DICOM",
    "grey up to 8 bits, unsigned, no window, no rescale",
    KEPT,
    GREY,
    dicom(GREY),
)
row("DICOM", "1-bit grey, packed", "0 and 255", BITS * 255, bit_packed)
row(
    "DICOM",
    "the same, MONOCHROME1",
    "255 less the number",
    255 - GREY,
    dicom(GREY, PhotometricInterpretation="MONOCHROME1"),
)
row(
    "DICOM",
    "grey of any depth with a window",
    "the ends of the first window to 0 and 255",
    IN_WINDOW,
    dicom(DEEP, **WINDOW),
)
row(
    "DICOM",
    "the same, MONOCHROME1",
    "the ends of the first window to 255 and 0",
    np.rint(255 - DEEP / 4095 * 255),
    dicom(DEEP, PhotometricInterpretation="MONOCHROME1", **WINDOW),
)
row(
    "DICOM",
    "10, 12 or 16 bits, unsigned, no window",
    "the 0.5th and 99.5th percentile to 0 and 255",
    STRETCHED,
    dicom(MANY.astype("u2")),
)
row(
    "DICOM",
    "the same, signed",
    "the 0.5th and 99.5th percentile to 0 and 255",
    STRETCHED,
    dicom((MANY - 500).astype("i2")),
)
row(
    "DICOM",
    "the same, MONOCHROME1, no window",
    "the 0.5th and 99.5th percentile to 255 and 0",
    255 - STRETCHED,
    dicom(MANY.astype("u2"), PhotometricInterpretation="MONOCHROME1"),
    1,
)
row(
    "DICOM",
    "8 bits, signed",
    "the 0.5th and 99.5th percentile to 0 and 255",
    np.rint(np.clip((np.arange(201) - 1) / 198, 0, 1) * 255)[np.newaxis],
    dicom((np.arange(201) - 100).astype("i1")[np.newaxis]),
)
row(
    "DICOM",
    "32 bits, unsigned",
    "as 16 bits",
    STRETCHED,
    dicom((MANY * 10**6).astype("u4"), BitsStored=32),
)
row(
    "DICOM",
    "32 bits, signed",
    "as 16 bits",
    STRETCHED,
    dicom(((MANY - 500) * 10**6).astype("i4"), BitsStored=32),
)
row(
    "DICOM",
    "32-bit floating-point",
    "as 16 bits; NaN is black",
    NAN_BLACK,
    floating("<f4", **WINDOW),
)
row(
    "DICOM",
    "64-bit floating-point",
    "as 16 bits; NaN is black",
    NAN_BLACK,
    floating("<f8", **WINDOW),
)
row(
    "DICOM",
    "12 bits in the upper part of 16 (High Bit 15)",
    "as 12 bits",
    IN_WINDOW,
    high_bit,
)
row(
    "DICOM",
    "an overlay in the unused bits",
    "as without",
    IN_WINDOW,
    dicom(DEEP | 0x8000, **WINDOW),
)
row(
    "DICOM",
    "rescale slope and intercept",
    "applied before window or percentiles",
    IN_WINDOW,
    dicom(
        DEEP,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=2 * 2048 - 1000.5,
        WindowWidth=2 * 4095 + 1,
    ),
)
row(
    "DICOM",
    "a rescale that is not finite",
    REFUSED,
    "its rescale is not finite",
    dicom(DEEP, RescaleSlope="1e400"),
)
row(
    "DICOM",
    "modality lookup table",
    "applied before window or percentiles",
    255 - IN_WINDOW,
    lookup("ModalityLUTSequence", np.arange(4096)[::-1], 16, **WINDOW),
)
row(
    "DICOM",
    "VOI lookup table",
    "used in place of a window",
    255 - DEEP // 16,
    lookup("VOILUTSequence", np.arange(4096)[::-1] // 16, 8, **WINDOW),
)
row(
    "DICOM",
    "padding value",
    "black, and does not count for the percentiles",
    NOT_PADDED,
    dicom(PADDED, PixelPaddingValue=4000, **WINDOW),
)
row(
    "DICOM",
    "padding value and range limit",
    "black from the one to the other",
    NOT_PADDED,
    dicom(
        np.where(STEPS == 0, 3900, PADDED).astype("u2"),
        PixelPaddingValue=4000,
        PixelPaddingRangeLimit=3900,
        **WINDOW,
    ),
)
row(
    "DICOM",
    "padding value in MONOCHROME1",
    "black all the same",
    np.where(STEPS < 2, 0, np.rint(255 - DEEP / 4095 * 255)),
    dicom(
        PADDED,
        PixelPaddingValue=4000,
        PhotometricInterpretation="MONOCHROME1",
        **WINDOW,
    ),
)
row("DICOM", "8-bit RGB", KEPT, COLOR, dicom(COLOR))
row("DICOM", "8-bit RGB, plane after plane", KEPT, COLOR, planar)
row(
    "DICOM",
    "RGB of more than 8 bits",
    "the upper 8 of the bits stored",
    COLOR,
    dicom(COLOR.astype(np.uint16) * 16 + 5),
)
row(
    "DICOM",
    "8-bit YBR_FULL",
    "RGB, or grey where the channels are equal",
    GREY,
    dicom(YBR, PhotometricInterpretation="YBR_FULL"),
)
row(
    "DICOM",
    "8-bit YBR_FULL_422",
    "RGB, or grey where the channels are equal",
    GREY,
    reduced_chroma,
)
row(
    "DICOM",
    "YBR of more than 8 bits",
    REFUSED,
    "colours that are not read: YBR_FULL with 3 samples per pixel and 16 bits",
    dicom(YBR.astype(np.uint16), PhotometricInterpretation="YBR_FULL"),
)
row(
    "DICOM",
    "YBR_PARTIAL_420, YBR_PARTIAL_422, HSV, ARGB, CMYK",
    REFUSED,
    "colours that are not read: HSV with 3 samples",
    dicom(COLOR, PhotometricInterpretation="HSV"),
)
row("DICOM", "PALETTE COLOR", "its colours", PALETTE_COLORS, dicom_palette())
row(
    "DICOM",
    "no preamble, no group 2, implicit VR",
    "as with them",
    IN_WINDOW,
    alone(uid.ImplicitVRLittleEndian),
)
row(
    "DICOM",
    "no preamble, no group 2, explicit VR",
    "as with them",
    IN_WINDOW,
    alone(uid.ExplicitVRLittleEndian),
)
row(
    "DICOM",
    "the same, compressed",
    REFUSED,
    "compressed, and it does not name how",
    unnamed_compression,
)


NEWER_PILLOW = {
    "8-bit grey with an extra channel of no meaning",
    "8-bit grey with premultiplied alpha",
    "8-bit YCbCr",
}


@pytest.mark.parametrize("cell", ROWS, ids=lambda cell: f"{cell.format}: {cell.stored}")
def test_a_row_of_the_table_is_so(tmp_path: Path, cell: Row) -> None:
    path = cell.make(tmp_path / "x")
    if isinstance(cell.expected, str):
        with pytest.raises(DataError, match=cell.expected) as caught:
            read_image(path)
        assert str(path) in caught.value.problem
        assert "is not a" not in caught.value.problem
        return
    if cell.stored in NEWER_PILLOW and int(PIL.__version__.partition(".")[0]) < 13:
        with pytest.raises(DataError, match="TIFF file that cannot be read"):
            read_image(path)
        return
    image = read_image(path)
    assert image.shape == cell.expected.shape
    assert np.abs(image.astype(int) - cell.expected).max() <= cell.tolerance
    # The same numbers reach the network.
    square = load_square(path, size_px=8, fit="pad", in_chans=3)
    expected = to_square(image, size_px=8, fit="pad", in_chans=3)
    np.testing.assert_array_equal(square, expected)


def test_the_table_has_the_rows_that_are_tried_and_no_others() -> None:
    lines = re.findall(r"^\| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [tuple(line.split(" | ")) for line in lines]
    named = [cell for cell in cells if cell[0] in {one.format for one in ROWS}]
    assert named == [(one.format, one.stored, one.network) for one in ROWS]
