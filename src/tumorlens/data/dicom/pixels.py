"""One frame of a DICOM file as 8-bit grey or colour, as a viewer would show it.

The stored numbers become grey values in the order of the standard's pipeline: modality
(rescale or lookup table), VOI (lookup table or window), then inversion of MONOCHROME1.
Where the file names no window, the contrast is stretched between the 0.5th and 99.5th
percentile of the frame, because the stored range of an MRI has no meaning of its own.

Only the tags that this takes are parsed; names of patients are not even read. Of the
pixels, only the chosen frame is read, and the header of a file with many frames is
parsed once for all of them.

A small file can decode to a huge one in four ways (rows and columns, the codestream's
own size, run lengths, the deflated dataset), so each is checked before its decoder
runs. `tumorlens.data.images` calls this and turns whatever the decoders raise on a
damaged file into `DataError`.
"""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.dicom import gdcm
from tumorlens.errors import DataError, MissingExtraError

# pydicom takes half a second to import, so only functions that meet a DICOM file do.
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset
    from pydicom.pixels.decoders.base import Decoder

_TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]

_FRAME_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")

_PIXEL_KEYWORDS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_UNDEFINED_LENGTH = 0xFFFFFFFF

_PERCENTILES = (0.5, 99.5)

_PLUGINS = ("pydicom", "pillow", "gdcm")
"""Decoders of compressed frames, in order of preference."""

_START_OF_J2K = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16})", re.DOTALL)
_JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class _Source:
    """The parsed header of a file, and where its pixel data lies."""

    header: Dataset
    keyword: str
    """Keyword of the element with the pixels; empty for a file without an image."""
    offset: int
    """Position of the first byte of the pixel data's value."""
    length: int
    """Number of bytes of the value; `_UNDEFINED_LENGTH` for compressed frames."""
    vr: str
    """Value representation of the pixel data; empty where the file has none."""
    inflated: bytes | None
    """The dataset of a deflated file, to which `offset` refers then."""


def is_dicom(file: IO[bytes]) -> bool:
    """Return whether an open file has the preamble of DICOM part 10."""
    file.seek(128)
    magic = file.read(4)
    file.seek(0)
    return magic == b"DICM"


def read_frame(
    path: Path, *, frame: int | None, max_bytes: int, max_pixels: int, max_frames: int
) -> NDArray[np.uint8]:
    """Return one frame of a DICOM file.

    Grey with a window is mapped by the standard's formula, the window's lower end to 0
    and its upper to 255; the first window counts where there are several, and one
    without a width is none. Grey of 8 bits or fewer with neither window nor rescale is
    a picture already and is kept. Colour with more than 8 bits keeps the upper 8.

    Args:
        path: A file for which `is_dicom` holds.
        frame: From 0; `None` is the middle one, `num_frames // 2`.
        max_bytes: Limit of a deflated dataset when inflated, in bytes.
        max_pixels: Limit of the pixels of one frame.
        max_frames: Limit of the frames of the file.

    Returns:
        Grey values (H, W) or colours (H, W, 3).

    Raises:
        DataError: There is no image in the file, no such frame, something is over its
            limit, or no decoder supports the compression.
        MissingExtraError: The compression needs the extra `dicom`.

    Source:
        DICOM PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.16 (frames of their own
        rescale and window), https://dicom.nema.org. The percentiles are those of
        nnU-Net for intensities without a scale (Isensee et al., Nature Methods 2021).
    """
    source = _source_of(path, frame, max_bytes)
    # Elements are added below, and the header may be shared.
    dataset = _copied(source.header)
    if "Rows" not in dataset or not source.keyword:
        raise DataError(
            f"{path} is a DICOM file without an image in it",
            hint="leave out reports, DICOMDIR and other files without pixels",
        )
    num_pixels = dataset.Rows * dataset.Columns
    if num_pixels > max_pixels:
        raise DataError(
            f"{path} has {dataset.Columns} x {dataset.Rows} pixels, more than the "
            f"limit of {max_pixels}",
            hint="raise data.max_pixels if the image is really that large",
        )
    chosen = choose_frame(
        path,
        frame,
        num_frames=int(dataset.get("NumberOfFrames") or 1),
        max_frames=max_frames,
    )
    _use_settings_of_frame(dataset, chosen)
    with _opened(path, source) as file:
        values = _decode(path, dataset, source, file, chosen)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _palette(values, dataset)
    if values.ndim == 3:
        return _upper_byte(values, dataset.BitsStored)
    # Floating-point pixels may be NaN or huge; what comes of it is clipped at the end.
    with np.errstate(all="ignore"):
        return _grey(values, dataset)


def choose_frame(
    path: Path, frame: int | None, *, num_frames: int, max_frames: int
) -> int:
    """Return the frame to read: `frame`, or the middle one if it is `None`.

    Raises:
        DataError: The file has too many frames, or `frame` is none of them.
    """
    if num_frames > max_frames:
        raise DataError(
            f"{path} has {num_frames} or more frames, the limit is {max_frames}",
            hint="save the frames that matter as files of their own",
        )
    chosen = num_frames // 2 if frame is None else frame
    if not 0 <= chosen < num_frames:
        raise DataError(
            f"{path} has {num_frames} frame(s), got frame {frame}",
            hint=f"choose a frame from 0 to {num_frames - 1}",
        )
    return chosen


def read_header(path: Path, *, tags: Sequence[str], max_bytes: int) -> Dataset:
    """Return the named elements of a DICOM file, and its `file_meta`.

    Reading ends before the pixels.

    Args:
        path: A file for which `is_dicom` holds.
        tags: Keywords of the elements; no others are parsed.
        max_bytes: As for `read_frame`.

    Raises:
        DataError: The header is damaged, or inflates to more than the limit. No value
            of the header is in the message.
    """
    return _parse(path, tags, max_bytes).header


_header_lock = threading.Lock()


def _source_of(path: Path, frame: int | None, max_bytes: int) -> _Source:
    if frame is None:
        return _parse(path, _TAGS, max_bytes)
    # One of several frames, whose neighbours will follow: the functional groups of 400
    # take ten times as long to parse as a frame takes to decode.
    status = path.stat()
    with _header_lock:
        return _parse_once(path, max_bytes, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _parse_once(path: Path, max_bytes: int, *_stamp: int) -> _Source:
    source = _parse(path, _TAGS, max_bytes)
    for name in _FRAME_GROUPS:
        source.header.get(name)  # pydicom parses a sequence at its first use
    return source


def _parse(path: Path, tags: Sequence[str], max_bytes: int) -> _Source:
    import pydicom
    from pydicom.filereader import read_dataset, read_file_meta_info
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # pydicom's messages about a damaged header can quote it, and with it a name.
    try:
        meta = read_file_meta_info(path)
        if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
            with path.open("rb") as file:
                header = pydicom.dcmread(
                    file, specific_tags=list(tags), stop_before_pixels=True
                )
                return _located(header, file, None)
        start = 144 + int(meta.FileMetaInformationGroupLength)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        content = inflater.decompress(path.read_bytes()[start:], max_bytes + 1)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read: its DICOM header is damaged "
            f"({type(error).__name__})",
            hint="fetch the file again",
        ) from None
    if len(content) > max_bytes:
        raise DataError(
            f"{path} inflates to more than the limit of {max_bytes} bytes",
            hint="raise data.max_file_mib if the file is what it claims to be",
        )
    inflated = BytesIO(content)
    dataset = read_dataset(
        inflated,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, *_: tag in _PIXEL_KEYWORDS,
        specific_tags=[Tag(name) for name in tags],
    )
    dataset.file_meta = meta
    return _located(dataset, inflated, content)


def _located(header: Dataset, file: IO[bytes], inflated: bytes | None) -> _Source:
    """Return the source whose header ends where `file` stands."""
    is_implicit, is_little = header.original_encoding
    order = "<" if is_little or inflated is not None else ">"
    start = file.read(8 if is_implicit else 12)
    if len(start) < (8 if is_implicit else 12):
        return _Source(header, "", 0, 0, "", inflated)
    group, element = struct.unpack_from(f"{order}2H", start)
    (length,) = struct.unpack_from(f"{order}L", start, len(start) - 4)
    keyword = _PIXEL_KEYWORDS.get(group << 16 | element, "")
    vr = "" if is_implicit else start[4:6].decode("ascii", "replace")
    return _Source(header, keyword, file.tell(), length, vr, inflated)


def _copied(header: Dataset) -> Dataset:
    """Return a dataset to which elements can be added; the elements are shared."""
    from pydicom import Dataset

    dataset = Dataset(dict(header.items()))
    dataset.file_meta = header.file_meta
    dataset.set_original_encoding(*header.original_encoding)
    return dataset


def _opened(path: Path, source: _Source) -> IO[bytes]:
    """Return an open file that stands at the first byte of the pixel data."""
    file: IO[bytes]
    file = path.open("rb") if source.inflated is None else BytesIO(source.inflated)
    file.seek(source.offset)
    return file


def _use_settings_of_frame(dataset: Dataset, frame: int) -> None:
    """Copy the rescale and window of one frame to the top level of the dataset."""
    for name, at in zip(_FRAME_GROUPS, (frame, 0), strict=True):
        groups = dataset.get(name) or []
        if at >= len(groups):
            continue
        for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in groups[at].get(sequence) or []:
                for element in item:
                    if element.tag not in dataset:
                        dataset[element.tag] = element


def _decode(
    path: Path, dataset: Dataset, source: _Source, file: IO[bytes], frame: int
) -> NDArray[Any]:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.pixels.utils import as_pixel_options

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"{path} is compressed as {syntax.name}, which is not an image format",
            hint="convert it to single images",
        ) from None
    options = as_pixel_options(dataset) | {"pixel_keyword": source.keyword}
    options.pop("extended_offsets", None)
    if decoder.is_native:
        frame, options["number_of_frames"], content = _native_frame(
            source, file, frame, options, is_little=syntax.is_little_endian
        )
        options["pixel_vr"] = source.vr
        return decoder.as_array(content, index=frame, raw=False, **options)[0]
    options["number_of_frames"] = 1
    plugins = [name for name in _PLUGINS if name in decoder.available_plugins]
    if not plugins:
        raise _no_decoder(path, decoder)
    content = _compressed_frame(dataset, file, frame)
    _check_size_inside(path, dataset, content)
    # pydicom's RLE and Pillow need no extra, so the same file gives the same pixels
    # whether gdcm is there or not. Pillow has no colour of more than 8 bits.
    is_wide_color = dataset.SamplesPerPixel > 1 and dataset.BitsStored > 8
    plugin = plugins[0] if not (is_wide_color and "gdcm" in plugins) else "gdcm"
    if plugin == "gdcm":
        return gdcm.decode(content, syntax=str(syntax), options=options)
    return decoder.as_array(
        encapsulate([content]), index=0, raw=False, decoding_plugin=plugin, **options
    )[0]


def _native_frame(
    source: _Source,
    file: IO[bytes],
    frame: int,
    options: Mapping[str, Any],
    *,
    is_little: bool,
) -> tuple[int, int, bytes]:
    """Return which frame of how many to decode, and their bytes.

    That is the chosen frame alone where each starts at a byte of its own.

    Raises:
        ValueError: The pixel data is too short for all frames.
    """
    num_frames = options["number_of_frames"]
    bits = options["bits_allocated"]
    is_plain = (
        num_frames > 1
        and is_little
        and bits % 8 == 0
        and options["photometric_interpretation"] != "YBR_FULL_422"
    )
    if not is_plain:
        return frame, num_frames, file.read(source.length)
    num_values = options["rows"] * options["columns"] * options["samples_per_pixel"]
    num_bytes = num_values * bits // 8
    num_left = file.seek(0, os.SEEK_END) - source.offset
    if min(source.length, num_left) < num_frames * num_bytes:
        raise ValueError(
            f"its pixel data has {min(source.length, num_left)} bytes, and "
            f"{num_frames} frames need {num_frames * num_bytes}"
        )
    file.seek(source.offset + frame * num_bytes)
    return 0, 1, file.read(num_bytes)


def _no_decoder(path: Path, decoder: Decoder) -> DataError | MissingExtraError:
    compressed = f"{path} is compressed as {decoder.UID.name}"
    if any(need.startswith("gdcm") for need in decoder.missing_dependencies):
        return MissingExtraError(
            f"{compressed}, which needs the library gdcm",
            hint='pip install "tumorlens[dicom]"',
        )
    return DataError(
        f"{compressed}, which nothing here decodes",
        hint="convert it to an uncompressed transfer syntax",
    )


def _compressed_frame(dataset: Dataset, file: IO[bytes], frame: int) -> bytes:
    from pydicom.encaps import get_frame

    table = None
    if "ExtendedOffsetTable" in dataset:
        table = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return get_frame(
        file,
        frame,
        number_of_frames=int(dataset.get("NumberOfFrames") or 1),
        extended_offsets=table,
    )


def _check_size_inside(path: Path, dataset: Dataset, content: bytes) -> None:
    # The decoders take the size from the compressed data, not from Rows and Columns.
    from pydicom.uid import RLELossless

    expected = (dataset.Columns, dataset.Rows)
    found = ""
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        if _rle_is_too_long(content, dataset.Columns * dataset.Rows):
            found = "more than that"
    else:
        # JPEG and JPEG 2000 have the same end mark. Without it the data is cut short,
        # and gdcm would silently fill up the rest.
        if not content.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
            found = "fewer: it is cut short"
        sizes = sorted(set(_sizes_in_codestream(content)))
        if sizes != [expected]:
            found = " and ".join(f"{size[0]} x {size[1]}" for size in sizes) or "none"
    if found:
        raise DataError(
            f"{path} should hold {expected[0]} x {expected[1]} pixels, but its "
            f"compressed data holds {found}",
            hint="fetch the file again",
        )


def _sizes_in_codestream(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield width and height of a JPEG, JPEG-LS or JPEG 2000 image, before decoding."""
    if not content.startswith(b"\xff\xd8"):
        for match in _START_OF_J2K.finditer(content):
            right, bottom, left, top = struct.unpack(">4L", match[1])
            yield right - left, bottom - top
        return
    at = 2
    while at + 9 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0xDA:
            return
        if marker == 0xFF:
            at += 1
            continue
        if marker in _JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">2H", content, at + 5)
            yield width, height
        at += 2 + struct.unpack_from(">H", content, at + 2)[0]


def _rle_is_too_long(content: bytes, num_pixels: int) -> bool:
    # Some writers pad a segment; far more than the pixels is what must not be unpacked.
    most = 2 * num_pixels + 64
    num_segments, *starts = struct.unpack_from("<16L", content)
    ends = [*starts[1:num_segments], len(content)]
    for at, end in zip(starts[:num_segments], ends, strict=True):
        length = 0
        while at < end and length <= most:
            run = content[at]
            if run < 128:
                length += run + 1
                at += run + 2
            else:
                length += 257 - run if run > 128 else 0
                at += 2 if run > 128 else 1
        if length > most:
            return True
    return False


def _palette(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_color_lut

    colors = apply_color_lut(values, dataset)
    return _upper_byte(colors, 8 * colors.dtype.itemsize)


def _upper_byte(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (values >> max(0, bits - 8)).astype(np.uint8)


def _grey(stored: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    values, is_scaled = _modality(stored, dataset)
    shares: NDArray[np.float64]
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        shares = _lookup(values, item, dataset) / (2 ** int(item.LUTDescriptor[2]) - 1)
    elif window := _window(dataset):
        shares = _windowed(values, *window)
    elif not is_scaled and stored.dtype.kind == "u" and dataset.BitsStored <= 8:
        shares = values / (2**dataset.BitsStored - 1)
    else:
        padding = dataset.get("PixelPaddingValue")
        shares = _stretched(values, inside=stored != padding)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    return np.rint(np.clip(np.nan_to_num(shares), 0, 1) * 255).astype(np.uint8)


def _modality(
    stored: NDArray[Any], dataset: Dataset
) -> tuple[NDArray[np.float64], bool]:
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        return _lookup(stored, item, dataset), True
    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    return stored.astype(np.float64) * slope + intercept, (slope, intercept) != (1, 0)


def _lookup(
    values: NDArray[Any], item: Dataset, dataset: Dataset
) -> NDArray[np.float64]:
    # pydicom's own functions are not used: with a table from 12 to 8 bits, the usual
    # one, `apply_voi` puts the indices into 8 bits as well (3.0.2).
    num_entries, first, _ = (int(number) for number in item.LUTDescriptor)
    num_entries = num_entries or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        is_wide = len(data) >= 2 * num_entries
        data = np.frombuffer(data, dtype=f"{order}u2" if is_wide else "u1")
    table = np.asarray(data, dtype=np.float64)[:num_entries]
    positions = np.nan_to_num(values.astype(np.float64)) - first
    return table[np.clip(positions, 0, len(table) - 1).astype(np.int64)]


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    # The first of several; a width of 0, as some scanners write, means there is none.
    center = _first(dataset.get("WindowCenter"))
    width = _first(dataset.get("WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if center is None or width is None or not np.isfinite([center, width]).all():
        return None
    is_usable = width >= 1 if function == "LINEAR" else width > 0
    return (center, width, function) if is_usable else None


def _first(value: Any) -> float | None:
    if value is None or isinstance(value, (float, int, str)):
        return float(value) if value not in (None, "") else None
    return float(value[0]) if len(value) else None


def _windowed(
    values: NDArray[np.float64], center: float, width: float, function: str
) -> NDArray[np.float64]:
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR":
        # The standard counts the window in whole grey values, hence the halves.
        center, width = center - 0.5, max(width - 1, 1e-9)
    return (values - center) / width + 0.5


def _stretched(
    values: NDArray[np.float64], *, inside: NDArray[np.bool_]
) -> NDArray[np.float64]:
    inside = inside & np.isfinite(values)
    known = values[inside]
    if known.size == 0:
        return np.zeros(values.shape)
    low, high = np.percentile(known, _PERCENTILES)
    if low == high:  # nearly all pixels are equal: the others are the image
        low, high = known.min(), known.max()
    return np.where(inside, (values - low) / ((high - low) or 1), 0)
