"""Image files written byte by byte, in forms that no library here writes."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


Order = Literal["<", ">"]
"""Little or big endian."""

_LONGS = (256, 257, 273, 278, 279, 330)
"""Tags of TIFF that are 32-bit numbers here; the others have 16."""


def png_chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">L", len(content))
        + name
        + content
        + struct.pack(">L", zlib.crc32(name + content))
    )


def write_png(
    path: Path,
    pixels: NDArray[Any],
    *,
    depth: int,
    color: int,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> Path:
    """Write a PNG.

    Args:
        path: The file.
        pixels: (H, W) or (H, W, channels), numbers of `depth` bits.
        depth: 1, 2, 4, 8 or 16.
        color: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        chunks: Name and content of chunks before the pixels.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    header = struct.pack(">2L5B", width, height, depth, color, 0, 0, 0)
    data = b"".join(b"\0" + _packed(row, depth, ">") for row in rows)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + b"".join(png_chunk(*chunk) for chunk in chunks)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )
    return path


def tiff_page(
    pixels: NDArray[Any],
    *,
    photometric: int = 1,
    bits: int = 0,
    order: Order = "<",
    deflated: bool = False,
    **tags: int | Sequence[int],
) -> tuple[dict[int, Any], bytes]:
    """Return the tags and the strip of one page of a TIFF, for `write_tiff`.

    Args:
        pixels: (H, W) or (H, W, channels).
        photometric: PhotometricInterpretation: 0 white is zero, 1 black is zero ...
        bits: Bits per sample; 0 are those of the type of `pixels`.
        order: '<' or '>'.
        deflated: Whether the strip is compressed.
        tags: Further tags, each as `t<number>`.
    """
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = bits or 8 * pixels.itemsize
    rows = pixels.reshape(height, -1)
    strip = b"".join(_packed(row, bits, order) for row in rows)
    if deflated:
        strip = zlib.compress(strip)
    known: dict[int, Any] = {
        **{256: width, 257: height, 258: [bits] * channels, 259: 8 if deflated else 1},
        **{262: photometric, 277: channels, 278: height, 279: len(strip)},
        339: [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * channels,
    }
    return known | {int(name[1:]): value for name, value in tags.items()}, strip


def write_tiff(
    path: Path,
    *pages: tuple[Mapping[int, Any], bytes],
    order: Order = "<",
    num_strips: int = 1,
) -> Path:
    """Write the pages of `tiff_page`, all tags as LONG or SHORT.

    Args:
        path: The file.
        pages: Tags and content of each page.
        order: As for `tiff_page`.
        num_strips: Number of equal parts that are listed as strips, such as the planes
            of an image whose channels are stored one after the other.
    """
    content = bytearray(
        (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 42)
    )
    link = len(content)
    content += b"\0\0\0\0"
    for tags, strip in pages:
        length = len(strip) // num_strips
        starts = [len(content) + number * length for number in range(num_strips)]
        tags = {**tags, 273: starts, 279: [length] * num_strips}
        content += strip + b"\0" * (len(strip) % 2)
        entries = b""
        for tag, value in sorted(tags.items()):
            numbers = [value] if isinstance(value, int) else list(value)
            kind, code = (4, "L") if tag in _LONGS else (3, "H")
            packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
            if len(packed) > 4:
                place, packed = len(content), packed
                content += packed
                packed = struct.pack(f"{order}L", place)
            entries += struct.pack(f"{order}2HL", tag, kind, len(numbers))
            entries += packed.ljust(4, b"\0")
        struct.pack_into(f"{order}L", content, link, len(content))
        content += struct.pack(f"{order}H", len(tags)) + entries
        link = len(content)
        content += b"\0\0\0\0"
    path.write_bytes(content)
    return path


def _packed(row: NDArray[Any], bits: int, order: Order) -> bytes:
    """Return a row of numbers in so many bits each, the upper bit first."""
    if bits in (8, 16, 32, 64) and row.dtype.itemsize * 8 == bits:
        return row.astype(row.dtype.newbyteorder(order)).tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    digits = row.astype(np.int64)[:, np.newaxis] >> shifts & 1
    return np.packbits(digits.astype(np.uint8).ravel()).tobytes()
