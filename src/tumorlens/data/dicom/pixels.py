"""One frame of a DICOM file as 8-bit grey or colour, as a viewer would show it.

The stored numbers become grey values in the order of the standard's pipeline: modality
(rescale or lookup table), VOI (lookup table or window), then inversion of MONOCHROME1.
Where the file names no window, the contrast is stretched between the 0.5th and 99.5th
percentile of the frame, because the stored range of an MRI has no meaning of its own.
`docs/images.md` has a table of what comes out, and each of its rows has a test.

Only the tags that this takes are parsed; names of patients are not even read. Of the
pixels, only the chosen frame is read, and the header of a file with many frames, and
where they lie, is found once for all of them. Two kinds of file are read whole for each
frame, both rare: deflated ones, and frames that do not begin at a byte of their own.

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
from collections import Counter
from dataclasses import dataclass, replace
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
    "PixelPaddingRangeLimit",
    "FloatPixelPaddingValue",
    "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue",
    "DoubleFloatPixelPaddingRangeLimit",
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

_NUM_START_BYTES = 512
_PREAMBLE_BYTES = 128
_LONG_VRS = {*(b"OB", b"OW", b"OF", b"OD", b"OL", b"OV"), b"UN", b"UT", b"UC", b"SQ"}
_SHORT_VRS = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO"),
    *(b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}

_ITEM, _END_OF_ITEMS = 0xFFFEE000, 0xFFFEE0DD
_MAX_SLOW = 3
"""Frames of a file that may take gdcm too long; after them, it decodes no others."""
_MAX_FRAGMENTS = 1_000_000
"""Pieces of compressed data in one file. Writers that cut a frame make tens of them."""

_NUM_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
"""Photometric interpretations that are read -> samples per pixel."""

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
    frames: _Frames | None = None
    """Where each compressed frame lies; `None` if that is not found yet."""


_Frames = list[list[tuple[int, int]]]
"""For each frame, position and number of bytes of each of its pieces."""


def is_dicom(file: IO[bytes]) -> bool:
    """Return whether an open file is DICOM, by its preamble or by its first elements.

    Scanners and older archives write the elements alone, without the preamble and the
    letters DICM of part 10.
    """
    file.seek(0)
    start = file.read(_NUM_START_BYTES)
    file.seek(0)
    return _has_preamble(start) or any(
        _begins_as_dataset(start, order) for order in ("<", ">")
    )


def _has_preamble(start: bytes) -> bool:
    return start[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM"


def _begins_as_dataset(start: bytes, order: str) -> bool:
    """Return whether the first bytes are two elements of the groups 2 and 8."""
    at, before = 0, 0
    for _ in range(2):
        if at + 12 > len(start):
            return False
        group, element = struct.unpack_from(f"{order}2H", start, at)
        if group not in (0x0002, 0x0008) or (group << 16 | element) < before + (at > 0):
            return False
        before = group << 16 | element
        vr = start[at + 4 : at + 6]
        if vr in _LONG_VRS:
            at, (length,) = at + 12, struct.unpack_from(f"{order}L", start, at + 8)
        elif vr in _SHORT_VRS:
            at, (length,) = at + 8, struct.unpack_from(f"{order}H", start, at + 6)
        elif order == "<":  # without a VR; in big endian there always is one
            at, (length,) = at + 8, struct.unpack_from("<L", start, at + 4)
        else:
            return False
        if length % 2 or length > _NUM_START_BYTES:
            return False
        at += length
    return True


def read_frame(
    path: Path, *, frame: int | None, max_bytes: int, max_pixels: int, max_frames: int
) -> NDArray[np.uint8]:
    """Return one frame of a DICOM file.

    Grey with a window is mapped by the standard's formula, the window's lower end to 0
    and its upper to 255; the first window counts where there are several, and one
    without a width is none. Grey of 8 bits or fewer with neither window nor rescale is
    a picture already and is kept. Padding, and what is not a finite number, is black
    whatever the polarity. Colour with more than 8 bits keeps the upper 8.

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
            limit, its colours are of a kind that is not read, or no decoder supports
            the compression.
        ValueError: The pixel data or a number of the header is damaged.
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
    _check_colors(path, dataset)
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
    if source.length != _UNDEFINED_LENGTH or source.inflated is not None:
        return source
    with _opened(path, source) as file:
        return replace(source, frames=_frames_in(file, source.header))


def _parse(path: Path, tags: Sequence[str], max_bytes: int) -> _Source:
    import pydicom
    from pydicom.filereader import read_dataset, read_file_meta_info
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # pydicom's messages about a damaged header can quote it, and with it a name.
    try:
        with path.open("rb") as file:
            if not _has_preamble(file.read(_NUM_START_BYTES)):
                return _located(_header_alone(file, tags), file, None)
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


def _header_alone(file: IO[bytes], tags: Sequence[str]) -> Dataset:
    """Return the header of a file without preamble, with a transfer syntax.

    Raises:
        ValueError: The file is deflated as well, which pydicom would inflate without
            a limit.
    """
    import pydicom
    from pydicom import uid
    from pydicom.filereader import read_partial

    file.seek(0)
    start = BytesIO(file.read(8 * _NUM_START_BYTES))
    meta = read_partial(start, stop_when=lambda *_: True, force=True).file_meta
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        raise ValueError("deflated, and without a preamble")
    file.seek(0)
    header = pydicom.dcmread(
        file, specific_tags=list(tags), stop_before_pixels=True, force=True
    )
    if "TransferSyntaxUID" not in header.file_meta:
        is_implicit, is_little = header.original_encoding
        header.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian
            if is_implicit
            else uid.ExplicitVRLittleEndian
            if is_little
            else uid.ExplicitVRBigEndian
        )
    return header


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


def _check_colors(path: Path, dataset: Dataset) -> None:
    """Refuse colours that pydicom gives back as they are stored.

    Raises:
        DataError: The file has such colours.
    """
    name = str(dataset.get("PhotometricInterpretation") or "")
    num_samples = dataset.get("SamplesPerPixel")
    syntax = dataset.file_meta.TransferSyntaxUID
    is_read = _NUM_SAMPLES.get(name) == num_samples
    if name in ("YBR_ICT", "YBR_RCT"):  # the decoder of JPEG 2000 makes RGB of them
        is_read = is_read and syntax.is_encapsulated
    elif name.startswith("YBR"):
        is_read = is_read and dataset.get("BitsAllocated") == 8
    if not is_read:
        # A name of the standard, or nothing that is printed.
        known = name if name.replace("_", "").isalnum() and len(name) <= 16 else "other"
        raise DataError(
            f"{path} has colours that are not read: {known} with {num_samples} samples "
            f"per pixel and {dataset.get('BitsAllocated')} bits each",
            hint="convert it to RGB with 8 bits, or to grey",
        )


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
    except NotImplementedError:  # pydicom's error for video and the like
        raise DataError(
            f"{path} is compressed as {syntax.name}, which is not an image format",
            hint="convert it to single images",
        ) from None
    options = as_pixel_options(dataset) | {"pixel_keyword": source.keyword}
    options.pop("extended_offsets", None)
    # pydicom takes the lowest bits for those that are stored, wherever they lie.
    shift = _num_bits_below(dataset)
    if shift:
        options["bits_stored"] += shift
    if decoder.is_native:
        frame, options["number_of_frames"], content = _native_frame(
            source, file, frame, options, is_little=syntax.is_little_endian
        )
        options["pixel_vr"] = source.vr
        found = decoder.as_array(content, index=frame, raw=False, **options)[0]
        return found >> shift if shift else found
    options["number_of_frames"] = 1
    plugins = [name for name in _PLUGINS if name in decoder.available_plugins]
    if not plugins:
        raise _no_decoder(path, decoder)
    content = _compressed_frame(dataset, source, file, frame)
    _check_size_inside(path, dataset, content)
    # pydicom's RLE and Pillow need no extra, so the same file gives the same pixels
    # whether gdcm is there or not. Pillow has no colour of more than 8 bits.
    is_wide_color = dataset.SamplesPerPixel > 1 and dataset.BitsStored > 8
    plugin = plugins[0] if not (is_wide_color and "gdcm" in plugins) else "gdcm"
    if plugin == "gdcm":
        return _decode_with_gdcm(path, content, str(syntax), options)
    found = decoder.as_array(
        encapsulate([content]), index=0, raw=False, decoding_plugin=plugin, **options
    )[0]
    return found >> shift if shift else found


_num_slow: Counter[tuple[Path, int]] = Counter()
"""File and its time of change -> frames that took gdcm too long."""


def _decode_with_gdcm(
    path: Path, content: bytes, syntax: str, options: Mapping[str, Any]
) -> NDArray[Any]:
    """Return the pixels of a frame, unless too many of its file were too slow.

    Raises:
        ValueError: They were, or see `gdcm.decode`.
        TooSlowError: This one was.
    """
    # Ten thousand frames that never end would take a week, a minute each.
    file = path, path.stat().st_mtime_ns
    if _num_slow[file] >= _MAX_SLOW:
        raise ValueError(f"{_MAX_SLOW} of its frames took gdcm too long")
    try:
        return gdcm.decode(content, syntax=syntax, options=options)
    except gdcm.TooSlowError:
        _num_slow[file] += 1
        raise


def _num_bits_below(dataset: Dataset) -> int:
    """Return how many bits of a pixel lie below those that are stored."""
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    high = dataset.get("HighBit")
    stored, allocated = dataset.get("BitsStored", 0), dataset.get("BitsAllocated", 0)
    if not isinstance(high, int) or not 0 < stored <= high + 1 <= allocated:
        return 0
    # A codestream has a depth of its own; run lengths are of the bytes as they are.
    if syntax.is_encapsulated and syntax != RLELossless:
        return 0
    return int(high + 1 - stored)


def _native_frame(
    source: _Source,
    file: IO[bytes],
    frame: int,
    options: Mapping[str, Any],
    *,
    is_little: bool,
) -> tuple[int, int, bytes]:
    """Return which frame of how many to decode, and their bytes.

    That is the chosen frame alone where each starts at a byte of its own, and in big
    endian, where bytes can be swapped in pairs, at an even one.

    Raises:
        ValueError: The pixel data is too short for all frames, or it is compressed and
            the file does not name how.
    """
    if source.length == _UNDEFINED_LENGTH:
        raise ValueError("its pixel data is compressed, and it does not name how")
    num_frames = options["number_of_frames"]
    num_values = options["rows"] * options["columns"] * options["samples_per_pixel"]
    if options["photometric_interpretation"] == "YBR_FULL_422":
        num_values = num_values * 2 // 3
    num_bits = num_values * options["bits_allocated"]
    if num_frames == 1 or num_bits % (8 if is_little else 16):
        return frame, num_frames, file.read(source.length)
    num_bytes = num_bits // 8
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


def _compressed_frame(
    dataset: Dataset, source: _Source, file: IO[bytes], frame: int
) -> bytes:
    """Return the compressed bytes of one frame.

    Raises:
        ValueError: The pieces do not make so many frames.
    """
    frames = source.frames or _frames_in(file, dataset)
    if frame >= len(frames):
        raise ValueError(f"its compressed data holds {len(frames)} frame(s)")
    pieces = []
    for position, length in frames[frame]:
        file.seek(position)
        pieces.append(file.read(length))
    return b"".join(pieces)


def _frames_in(file: IO[bytes], dataset: Dataset) -> _Frames:
    """Return where the compressed frames of an open file lie, without reading them.

    pydicom's `encaps.get_frame` finds one frame, and looks for it from the beginning
    each time: without a table, it reads all frames before it.

    Args:
        file: Stands at the first byte of the pixel data; not moved in the end.
        dataset: The header.

    Raises:
        ValueError: The pieces are damaged, or too many.

    Source:
        DICOM PS3.5 A.4 (items, Basic Offset Table), PS3.3 C.7.6.3.1.8 (Extended Offset
        Table).
    """
    start = file.tell()
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    (table, table_length), *fragments = _items_in(file)
    first = table + table_length
    if "ExtendedOffsetTable" in dataset:
        offsets = np.frombuffer(dataset.ExtendedOffsetTable, "<u8")
        lengths = np.frombuffer(dataset.ExtendedOffsetTableLengths, "<u8")
        frames = [
            [(first + 8 + int(offset), int(length))]
            for offset, length in zip(offsets, lengths, strict=True)
        ]
    elif table_length:
        file.seek(table)
        begins = np.frombuffer(file.read(table_length), "<u4").astype(np.int64)
        positions = np.array([position for position, _ in fragments], np.int64)
        cuts = [int(cut) for cut in np.searchsorted(positions, begins + first + 8)]
        ends = [*cuts[1:], len(fragments)]
        frames = [fragments[a:b] for a, b in zip(cuts, ends, strict=True)]
    elif num_frames == 1:
        frames = [fragments]
    elif len(fragments) == num_frames:
        frames = [[one] for one in fragments]
    else:
        frames = _by_end_marks(file, fragments)
    file.seek(start)
    return frames


def _items_in(file: IO[bytes]) -> list[tuple[int, int]]:
    """Return position and length of each item's value, the offset table's first.

    Raises:
        ValueError: There is no item, too many, or something else between them.
    """
    items: list[tuple[int, int]] = []
    while len(head := file.read(8)) == 8:
        group, element, length = struct.unpack("<2HL", head)
        if (group << 16 | element) == _END_OF_ITEMS:
            break
        if (group << 16 | element) != _ITEM or length == _UNDEFINED_LENGTH:
            raise ValueError("its compressed data is not cut into items")
        if len(items) > _MAX_FRAGMENTS:
            raise ValueError(f"its compressed data has over {_MAX_FRAGMENTS} pieces")
        items.append((file.tell(), length))
        file.seek(length, os.SEEK_CUR)
    if len(items) < 2:
        raise ValueError("it has no compressed data")
    return items


def _by_end_marks(file: IO[bytes], fragments: Sequence[tuple[int, int]]) -> _Frames:
    # The end mark of JPEG, JPEG-LS and JPEG 2000, which padding may follow.
    frames: _Frames = [[]]
    for position, length in fragments:
        if not frames[-1] or not _ends_frame(file, *frames[-1][-1]):
            frames[-1].append((position, length))
        else:
            frames.append([(position, length)])
    return frames


def _ends_frame(file: IO[bytes], position: int, length: int) -> bool:
    file.seek(position + max(0, length - 10))
    return b"\xff\xd9" in file.read(min(length, 10))


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
    inside = _inside(stored, values, dataset)
    shares: NDArray[np.float64]
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        shares = _lookup(values, item, dataset) / (2 ** _num_bits(item) - 1)
    elif window := _window(dataset):
        shares = _windowed(values, *window)
    elif not is_scaled and stored.dtype.kind == "u" and dataset.BitsStored <= 8:
        shares = values / (2**dataset.BitsStored - 1)
    else:
        shares = _stretched(values, inside=inside)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shares = 1 - shares
    if inside is not None:
        shares = np.where(inside, shares, 0)  # whatever the polarity
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def _inside(
    stored: NDArray[Any], values: NDArray[np.float64], dataset: Dataset
) -> NDArray[np.bool_] | None:
    """Return where there are numbers that show something; `None` is everywhere.

    Neither padding nor what is not a finite number shows anything.

    Source:
        DICOM PS3.3 C.7.5.1.1.2 (Pixel Padding Value and Range Limit).
    """
    prefix = {"f": "Float", "d": "DoubleFloat"}.get(stored.dtype.char, "")
    ends = [
        dataset.get(f"{prefix}PixelPadding{name}") for name in ("Value", "RangeLimit")
    ]
    numbers = [end for end in ends if isinstance(end, (int, float))]
    is_whole = stored.dtype.kind in "ui"
    inside = None if is_whole else np.isfinite(values)
    if not numbers or ends[0] is None:
        return inside
    if is_whole:
        # Signed files name -2000 as 63536 often enough: the bits are the same.
        bits = 8 * stored.itemsize
        whole = np.array([int(number) % 2**bits for number in numbers], f"u{bits // 8}")
        numbers = whole.view(stored.dtype.newbyteorder("=")).tolist()
    outside = (stored >= min(numbers)) & (stored <= max(numbers))
    return ~outside if inside is None else inside & ~outside


def _modality(
    stored: NDArray[Any], dataset: Dataset
) -> tuple[NDArray[np.float64], bool]:
    if dataset.get("ModalityLUTSequence"):
        item = dataset.ModalityLUTSequence[0]
        return _lookup(stored, item, dataset), True
    slope = _first(dataset.get("RescaleSlope")) or 1
    intercept = _first(dataset.get("RescaleIntercept")) or 0
    if not np.isfinite([slope, intercept]).all():
        raise ValueError(f"its rescale is not finite: {slope} and {intercept}")
    return stored.astype(np.float64) * slope + intercept, (slope, intercept) != (1, 0)


def _num_bits(item: Dataset) -> int:
    num_bits = int(item.LUTDescriptor[2])
    if not 1 <= num_bits <= 16:
        raise ValueError(f"its lookup table has entries of {num_bits} bits")
    return num_bits


def _lookup(
    values: NDArray[Any], item: Dataset, dataset: Dataset
) -> NDArray[np.float64]:
    # pydicom's own functions are not used: with a table from 12 to 8 bits, the usual
    # one, `apply_voi` puts the indices into 8 bits as well (3.0.2).
    num_entries, first, _ = (int(number) for number in item.LUTDescriptor)
    num_entries = num_entries or 65536
    if dataset.get("PixelRepresentation") == 1 and first >= 32768:
        first -= 65536  # a signed number, written as an unsigned one
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
    values: NDArray[np.float64], *, inside: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    known = values if inside is None else values[inside]
    if known.size == 0:
        return np.zeros(values.shape)
    low, high = np.percentile(known, _PERCENTILES)
    if low == high:  # nearly all pixels are equal: the others are the image
        low, high = known.min(), known.max()
    if low == high:
        return np.zeros(values.shape)
    shares: NDArray[np.float64] = (values - low) / (high - low)
    return shares
