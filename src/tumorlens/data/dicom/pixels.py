"""One frame of a DICOM file as 8-bit grey or colour, as a viewer would show it.

The stored numbers become grey values in the order of the standard's pipeline: modality
(rescale or lookup table), VOI (lookup table or window), then inversion of MONOCHROME1.
Where the file names no window, the contrast is stretched between the 0.5th and 99.5th
percentile of the frame, because the stored range of an MRI has no meaning of its own.

Only the tags that this takes are parsed; names of patients are not even read. What a
newcomer gets wrong: a small file can decode to a huge one in four ways (rows and
columns, the codestream's own size, run lengths, the deflated dataset), so each is
checked before its decoder runs. `tumorlens.data.images` calls this and turns whatever
the decoders raise on a damaged file into `DataError`.
"""

from __future__ import annotations

import re
import struct
import zlib
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.dicom import gdcm
from tumorlens.errors import DataError, MissingExtraError

# pydicom takes half a second to import, so only functions that meet a DICOM file do.
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
    "FloatPixelData",
    "DoubleFloatPixelData",
    "PixelData",
]

_PERCENTILES = (0.5, 99.5)

_PLUGINS = ("pydicom", "pillow", "gdcm")
"""Decoders of compressed frames, in the order in which they are taken."""

_START_OF_J2K = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16})", re.DOTALL)
_JPEG_FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


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
        max_bytes: Most bytes that a deflated dataset may have when inflated.
        max_pixels: Most pixels of one frame.
        max_frames: Most frames of the file.

    Returns:
        Grey values (H, W) or colours (H, W, 3).

    Raises:
        DataError: There is no image in the file, no such frame, something is over its
            limit, or the compression is one that nothing here decodes.
        MissingExtraError: The compression needs the extra `dicom`.

    Source:
        DICOM PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.16 (frames of their own
        rescale and window), https://dicom.nema.org. The percentiles are those of
        nnU-Net for intensities without a scale (Isensee et al., Nature Methods 2021).
    """
    dataset = read_header(path, tags=_TAGS, max_bytes=max_bytes)
    if "Rows" not in dataset or not _has_pixels(dataset):
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
    values = _decode(path, dataset, chosen)
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

    Reading ends before the pixels unless they are among `tags`.

    Args:
        path: A file for which `is_dicom` holds.
        tags: Keywords of the elements; no others are parsed.
        max_bytes: As for `read_frame`.

    Raises:
        DataError: The header is damaged, or inflates to more than the limit. No value
            of the header is in the message.
    """
    import pydicom
    from pydicom.filereader import read_dataset, read_file_meta_info
    from pydicom.tag import Tag
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # What pydicom says about a damaged header can quote it, and with it a name.
    try:
        meta = read_file_meta_info(path)
        if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
            return pydicom.dcmread(
                path,
                specific_tags=list(tags),
                stop_before_pixels="PixelData" not in tags,
            )
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
    dataset = read_dataset(
        BytesIO(content),
        is_implicit_VR=False,
        is_little_endian=True,
        specific_tags=[Tag(name) for name in tags],
    )
    dataset.file_meta = meta
    return dataset


def _has_pixels(dataset: Dataset) -> bool:
    return any(name in dataset for name in _TAGS[-3:])


def _use_settings_of_frame(dataset: Dataset, frame: int) -> None:
    """Copy the rescale and window of one frame to where those of a whole file are."""
    for name, at in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        groups = dataset.get(name) or []
        if at >= len(groups):
            continue
        for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in groups[at].get(sequence) or []:
                for element in item:
                    if element.tag not in dataset:
                        dataset[element.tag] = element


def _decode(path: Path, dataset: Dataset, frame: int) -> NDArray[Any]:
    from pydicom.pixels import get_decoder, pixel_array
    from pydicom.pixels.utils import as_pixel_options

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DataError(
            f"{path} is compressed as {syntax.name}, which is not an image format",
            hint="convert it to single images",
        ) from None
    if decoder.is_native:
        return pixel_array(dataset, index=frame)
    plugins = [name for name in _PLUGINS if name in decoder.available_plugins]
    if not plugins:
        raise _no_decoder(path, decoder)
    content = _compressed_frame(dataset, frame)
    _check_size_inside(path, dataset, content)
    # pydicom's RLE and Pillow need no extra, so the same file gives the same pixels
    # whether gdcm is there or not. Pillow has no colour of more than 8 bits.
    is_wide_color = dataset.SamplesPerPixel > 1 and dataset.BitsStored > 8
    plugin = plugins[0] if not (is_wide_color and "gdcm" in plugins) else "gdcm"
    if plugin != "gdcm":
        return pixel_array(dataset, index=frame, decoding_plugin=plugin)
    options = as_pixel_options(dataset, number_of_frames=1)
    options.pop("extended_offsets", None)
    return gdcm.decode(
        content, syntax=str(syntax), options={**options, "pixel_keyword": "PixelData"}
    )


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


def _compressed_frame(dataset: Dataset, frame: int) -> bytes:
    from pydicom.encaps import get_frame

    table = None
    if "ExtendedOffsetTable" in dataset:
        table = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    return get_frame(
        dataset.PixelData,
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
        # and gdcm would fill up what is missing and say nothing.
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
