from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.processing import apply_windowing

from support.compressed_dicom import compressed
from support.dicom_files import PATIENT, dataset_of, spoil, write
from tumorlens.data.dicom import gdcm, pixels
from tumorlens.data.images import ImageLimits, read_image
from tumorlens.errors import DataError, MissingExtraError
from tumorlens.system import Helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEEP = (np.mgrid[:24, :20].sum(axis=0) * 90).astype(np.uint16)  # 0 to 3780: 12 bits
COLOR = np.stack([DEEP // 16, 255 - DEEP // 16, DEEP // 32], axis=-1).astype(np.uint8)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
EXPECTED = np.rint(DEEP / 4095 * 255)
"""What a window over all of the 12 bits makes of `DEEP`."""


def read(tmp_path: Path, pixels: NDArray[Any], **attributes: Any) -> NDArray[np.uint8]:
    return read_image(write(tmp_path / "x.dcm", dataset_of(pixels, **attributes)))


def error_of(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_image(path, **options)
    assert str(path) in caught.value.problem
    assert "\n" not in caught.value.problem
    assert caught.value.hint
    assert PATIENT not in str(caught.value)
    return caught.value


# From stored numbers to grey


def test_a_window_maps_its_ends_to_black_and_white(tmp_path: Path) -> None:
    # PS3.3 C.11.2.1.2.1: with centre 100 and width 101, 49 and less is black, 150 and
    # more is white, and 75 is ((75 - 99.5) / 100 + 0.5) * 255 = 65.0.
    pixels = np.array([[0, 49, 75, 100, 150, 4000]], np.uint16)
    image = read(tmp_path, pixels, WindowCenter=100, WindowWidth=101)
    np.testing.assert_array_equal(image, [[0, 0, 65, 129, 255, 255]])


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(1000, 500), (0, 2), (2000.5, 4096)])
def test_windows_are_pydicoms(
    tmp_path: Path, function: str, center: float, width: float
) -> None:
    dataset = dataset_of(
        DEEP, WindowCenter=center, WindowWidth=width, VOILUTFunction=function
    )
    theirs = apply_windowing(DEEP.astype(float), dataset) / 4095 * 255
    ours = read_image(write(tmp_path / "x.dcm", dataset))
    assert np.abs(ours - theirs).max() <= 0.51


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    image = read(tmp_path, DEEP, WindowCenter=[2048, 10], WindowWidth=[4096, 2])
    np.testing.assert_array_equal(image, EXPECTED)


def test_a_window_of_width_one_is_a_threshold(tmp_path: Path) -> None:
    pixels = np.array([[99, 100]], np.uint16)
    image = read(tmp_path, pixels, WindowCenter=100, WindowWidth=1)
    np.testing.assert_array_equal(image, [[0, 255]])


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    image = read(
        tmp_path,
        DEEP,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=2 * 2048 - 1000.5,
        WindowWidth=2 * 4095 + 1,
    )
    np.testing.assert_array_equal(image, EXPECTED)


def test_signed_numbers_keep_their_sign(tmp_path: Path) -> None:
    signed = (DEEP.astype(np.int16) - 2048).astype(np.int16)
    image = read(tmp_path, signed, WindowCenter=0, WindowWidth=4096)
    np.testing.assert_array_equal(image, EXPECTED)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    image = read(tmp_path, DEEP, PhotometricInterpretation="MONOCHROME1", **WINDOW)
    np.testing.assert_allclose(image, 255 - DEEP / 4095 * 255, atol=0.5)


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 5, "WindowWidth": -3},
        {"WindowCenter": 5, "WindowWidth": 0.5},
        {"WindowCenter": 5},
        {"WindowCenter": [], "WindowWidth": []},
        {"WindowCenter": "", "WindowWidth": ""},
    ],
)
def test_without_a_window_the_percentiles_are_the_ends(
    tmp_path: Path, window: dict[str, Any]
) -> None:
    # Of 0, 1, ... 1000, the 0.5th and 99.5th percentiles are 5 and 995.
    pixels = np.arange(1001, dtype=np.uint16).reshape(11, 91)
    image = read(tmp_path, pixels, **window).ravel()
    assert image[:6].tolist() == [0] * 6
    assert image[995:].tolist() == [255] * 6
    assert image[500] == 128
    assert (np.diff(image.astype(int)) >= 0).all()


def test_where_nearly_all_is_equal_the_whole_range_counts(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40), np.uint16)
    pixels[0, :2] = 500, 1000
    image = read(tmp_path, pixels)
    assert image[0, :3].tolist() == [128, 255, 0]


def test_a_constant_image_is_black(tmp_path: Path) -> None:
    assert read(tmp_path, np.full((4, 5), 700, np.uint16)).max() == 0


def test_padding_does_not_count(tmp_path: Path) -> None:
    pixels = np.full((20, 20), 4000, np.uint16)
    pixels[5:15, 5:15] = np.arange(100).reshape(10, 10)
    image = read(tmp_path, pixels, PixelPaddingValue=4000)
    assert image[0, 0] == 0
    assert image[14, 14] == 255


def test_a_picture_of_8_bits_is_kept(tmp_path: Path) -> None:
    pixels = np.array([[3, 100], [7, 200]], np.uint8)
    np.testing.assert_array_equal(read(tmp_path, pixels), pixels)
    inverted = read(tmp_path, pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(inverted, 255 - pixels)


@pytest.mark.parametrize("as_bytes", [True, False])
def test_lookup_tables_from_12_to_8_bits_are_followed(
    tmp_path: Path, *, as_bytes: bool
) -> None:
    table = (np.arange(4096) // 16)[::-1].astype("<u2")
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 8]
    if as_bytes:
        item.add_new("LUTData", "OW", table.tobytes())
    else:
        item.add_new("LUTData", "US", table.tolist())
    image = read(tmp_path, DEEP, VOILUTSequence=[item], **WINDOW)
    np.testing.assert_array_equal(image, 255 - DEEP // 16)


def test_a_modality_table_starts_at_its_first_number(tmp_path: Path) -> None:
    item = Dataset()
    item.LUTDescriptor = [3, 10, 16]
    item.add_new("LUTData", "US", [49, 75, 150])
    pixels = np.array([[0, 10, 11, 12, 99]], np.uint16)
    image = read(
        tmp_path,
        pixels,
        ModalityLUTSequence=[item],
        WindowCenter=100,
        WindowWidth=101,
    )
    np.testing.assert_array_equal(image, [[0, 0, 65, 255, 255]])


def test_floating_point_pixels_are_read(tmp_path: Path) -> None:
    dataset = dataset_of(DEEP)
    del dataset.PixelData
    values = DEEP.astype("<f4")
    values[0, 0] = np.nan
    dataset.FloatPixelData = values.tobytes()
    dataset.BitsAllocated = 32
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    image = read_image(write(tmp_path / "x.dcm", dataset))
    np.testing.assert_array_equal(image, EXPECTED)


# Colour


@pytest.mark.parametrize("planar", [0, 1])
def test_color_is_kept(tmp_path: Path, planar: int) -> None:
    dataset = dataset_of(COLOR, PlanarConfiguration=planar)
    if planar:
        dataset.PixelData = COLOR.transpose(2, 0, 1).tobytes()
    path = write(tmp_path / "x.dcm", dataset)
    np.testing.assert_array_equal(read_image(path), COLOR)


def test_8_bits_with_a_rescale_are_no_picture_yet(tmp_path: Path) -> None:
    pixels = np.array([[10, 20, 30]], np.uint8)
    image = read(tmp_path, pixels.repeat(80, axis=1), RescaleSlope=3)
    assert image[0, ::80].tolist() == [0, 128, 255]


def test_numbers_beyond_all_bounds_do_not_warn(tmp_path: Path) -> None:
    dataset = dataset_of(DEEP)
    del dataset.PixelData
    values = np.full(DEEP.shape, 1e38, "<f4")
    values[0, :2] = np.inf, -1
    dataset.FloatPixelData = values.tobytes()
    dataset.BitsAllocated = 32
    dataset.RescaleSlope, dataset.RescaleIntercept = 1e300, 0
    image = read_image(write(tmp_path / "x.dcm", dataset))
    assert image.shape == DEEP.shape


@pytest.mark.parametrize(
    "keyword",
    [
        *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated"),
        *("BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit", "WindowCenter", "WindowWidth"),
        *("RescaleSlope", "RescaleIntercept"),
    ],
)
def test_no_number_of_a_header_does_more_than_spoil_its_file(
    tmp_path: Path, keyword: str
) -> None:
    path = tmp_path / "x.dcm"
    for vr in ("FD", "DS", "IS", "UL"):
        for value in ("inf", "nan", "1e400", "9" * 400, "4294967295", "-7"):
            write(path, dataset_of(DEEP))
            spoil(path, keyword, vr, value)
            try:
                found: Any = read_image(path)
            except DataError as error:
                found = error
            if isinstance(found, DataError):
                assert "\n" not in found.problem
                assert PATIENT not in found.problem


@pytest.mark.parametrize("num_bits", [0, 17, 4_000_000_000])
def test_a_lookup_table_of_impossible_depth_is_an_error(
    tmp_path: Path, num_bits: int
) -> None:
    # 2 to the power of 4 billion is a number of half a gigabyte.
    item = Dataset()
    item.add_new("LUTDescriptor", "UL", [4, 0, num_bits])
    item.add_new("LUTData", "US", [1, 2, 3, 4])
    path = write(tmp_path / "x.dcm", dataset_of(DEEP, VOILUTSequence=[item]))
    problem = error_of(path).problem
    assert f"its lookup table has entries of {num_bits} bits" in problem


def test_a_signed_first_number_of_a_lookup_table_may_be_written_unsigned(
    tmp_path: Path,
) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [3, 65536 - 1, 8])
    item.add_new("LUTData", "US", [10, 100, 200])
    pixels = np.array([[-9, -1, 0, 1, 9]], np.int16)
    image = read(tmp_path, pixels, VOILUTSequence=[item])
    np.testing.assert_array_equal(image, [[10, 10, 100, 200, 200]])


def test_signed_padding_may_be_written_unsigned(tmp_path: Path) -> None:
    pixels = np.array([[-2000, 0, 100, 1000]], np.int16)
    path = write(tmp_path / "x.dcm", dataset_of(pixels, BitsStored=16))
    spoil(path, "PixelPaddingValue", "US", str(65536 - 2000))
    assert read_image(path)[0, [0, 1, 3]].tolist() == [0, 0, 255]


@pytest.mark.parametrize("function", ["LINEAR", "SIGMOID"])
def test_padding_is_black_whatever_the_window(tmp_path: Path, function: str) -> None:
    pixels = np.where(DEEP > 3000, 65535, DEEP).astype(np.uint16)
    attributes = {"BitsStored": 16, "VOILUTFunction": function, **WINDOW}
    image = read(tmp_path, pixels, PixelPaddingValue=65535, **attributes)
    without = read(tmp_path, pixels, **attributes)
    np.testing.assert_array_equal(image, np.where(DEEP > 3000, 0, without))


def test_color_with_equal_channels_is_grey(tmp_path: Path) -> None:
    grey = np.repeat(COLOR[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read(tmp_path, grey), grey[..., 0])


def test_luma_and_chroma_become_rgb(tmp_path: Path) -> None:
    ybr = np.asarray(Image.fromarray(COLOR).convert("YCbCr"))
    image = read(tmp_path, ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(image.astype(int) - COLOR).max() <= 2


def test_deep_color_keeps_the_upper_byte(tmp_path: Path) -> None:
    image = read(tmp_path, COLOR.astype(np.uint16) * 16 + 5)
    np.testing.assert_array_equal(image, COLOR)


def test_a_palette_gives_its_colors(tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", [1, 2]), ("Green", [30, 40]), ("Blue", [0, 255])):
        table = np.array(values, "<u2") * 256
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        attributes[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    image = read(tmp_path, np.array([[0, 1]], np.uint8), **attributes)
    np.testing.assert_array_equal(image, [[[1, 30, 0], [2, 40, 255]]])


# Frames

FRAMES = np.stack([np.full((4, 4), 10 * n, np.uint8) for n in range(5)])


@pytest.mark.parametrize(
    ("num_frames", "frame", "expected"),
    [(1, None, 0), (2, None, 10), (5, None, 20), (4, None, 20), (5, 0, 0), (5, 4, 40)],
)
def test_the_frame_asked_for_or_the_middle_one(
    tmp_path: Path, num_frames: int, frame: int | None, expected: int
) -> None:
    path = write(tmp_path / "x.dcm", dataset_of(FRAMES[:num_frames]))
    assert (read_image(path, frame=frame) == expected).all()


def test_a_frame_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.dcm", dataset_of(FRAMES))
    for frame in (5, -1):
        problem = error_of(path, frame=frame).problem
        assert problem == f"{path} has 5 frame(s), got frame {frame}"


def test_a_frame_has_the_rescale_and_window_of_its_own(tmp_path: Path) -> None:
    def groups(center: float | None, slope: float | None) -> Dataset:
        item = Dataset()
        if center is not None:
            window = Dataset()
            window.WindowCenter, window.WindowWidth = center, 101
            item.FrameVOILUTSequence = [window]
        if slope is not None:
            rescale = Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept = slope, 0
            item.PixelValueTransformationSequence = [rescale]
        return item

    pixels = np.full((2, 4, 4), 75, np.uint16)
    dataset = dataset_of(
        pixels,
        SharedFunctionalGroupsSequence=[groups(300, 2)],
        PerFrameFunctionalGroupsSequence=[groups(100, 1), groups(150, None)],
    )
    path = write(tmp_path / "x.dcm", dataset)
    # 75 in the window around 100, and 2 * 75 in the one around 150.
    assert read_image(path, frame=0)[0, 0] == 65
    assert read_image(path, frame=1)[0, 0] == 129


def test_the_header_of_many_frames_is_parsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []
    parse = pixels._parse

    def note(path: Path, *rest: Any) -> Any:
        parsed.append(path)
        return parse(path, *rest)

    monkeypatch.setattr(pixels, "_parse", note)
    path = write(tmp_path / "x.dcm", dataset_of(FRAMES))
    assert [read_image(path, frame=n)[0, 0] for n in range(5)] == [0, 10, 20, 30, 40]
    assert len(parsed) == 1
    # A file that took its place is another one.
    write(path, dataset_of(np.concatenate([FRAMES[::-1], FRAMES])))
    assert [read_image(path, frame=n)[0, 0] for n in (0, 9)] == [40, 40]
    assert len(parsed) == 2


def test_one_of_many_native_frames_is_read_without_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes: list[int] = []
    native = pixels._native_frame

    def note(*args: Any, **options: Any) -> Any:
        found = native(*args, **options)
        read_bytes.append(len(found[2]))
        return found

    monkeypatch.setattr(pixels, "_native_frame", note)
    frames = np.stack([DEEP, DEEP // 2, DEEP // 3])
    path = write(tmp_path / "x.dcm", dataset_of(frames, **WINDOW))
    for number in range(3):
        expected = np.rint(frames[number] / 4095 * 255)
        np.testing.assert_array_equal(read_image(path, frame=number), expected)
    assert read_bytes == [DEEP.nbytes] * 3


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
    ],
    ids=lambda syntax: syntax.name,
)
@pytest.mark.parametrize("side", [4, 5])
def test_every_frame_is_read_in_every_syntax(
    tmp_path: Path, syntax: uid.UID, side: int
) -> None:
    # Frames of an odd number of bytes, which big endian files swap in pairs.
    frames = np.stack([np.arange(n, n + side**2).reshape(side, side) for n in range(3)])
    dataset = dataset_of(frames.astype(np.uint8))
    if syntax == uid.RLELossless:
        dataset.compress(syntax, encoding_plugin="pydicom")
    else:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.set_original_encoding(
            syntax.is_implicit_VR, syntax.is_little_endian, "ascii"
        )
        dataset["PixelData"].VR = "OB" if syntax.is_little_endian else "OW"
        if not syntax.is_little_endian:
            padded = dataset.PixelData + b"\0" * (len(dataset.PixelData) % 2)
            dataset.PixelData = np.frombuffer(padded, "u2").byteswap().tobytes()
    path = write(tmp_path / "x.dcm", dataset)
    for number in range(3):
        np.testing.assert_array_equal(read_image(path, frame=number), frames[number])


@pytest.mark.parametrize(
    ("change", "num_bytes"),
    [
        ({"BitsAllocated": 1, "BitsStored": 1}, 8),
        ({"PhotometricInterpretation": "YBR_FULL_422"}, 128),
        ({"syntax": uid.ExplicitVRBigEndian}, 128),
    ],
    ids=["1 bit", "half the chroma", "big endian"],
)
def test_a_frame_of_any_native_kind_is_read_alone_where_bytes_allow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    num_bytes: int,
) -> None:
    read_bytes: list[int] = []
    native = pixels._native_frame

    def note(*args: Any, **options: Any) -> Any:
        found = native(*args, **options)
        read_bytes.append(len(found[2]))
        return found

    monkeypatch.setattr(pixels, "_native_frame", note)
    frames = np.stack([(np.indices((8, 8)).sum(axis=0) + n) % 2 for n in range(3)])
    if "PhotometricInterpretation" in change:
        dataset = dataset_of(np.zeros((8, 8, 3), np.uint8), NumberOfFrames=3, **change)
        luma = (frames * 200).astype(np.uint8).reshape(3, 8, 4, 2)
        chroma = np.full((3, 8, 4, 2), 128, np.uint8)
        dataset.PixelData = np.concatenate([luma, chroma], axis=-1).tobytes()
        expected = frames * 200
    elif "syntax" in change:
        dataset = dataset_of(np.zeros((3, 8, 8), np.uint16), **WINDOW)
        dataset.file_meta.TransferSyntaxUID = change["syntax"]
        dataset.set_original_encoding(
            is_implicit_vr=False, is_little_endian=False, character_encoding="ascii"
        )
        dataset.PixelData = (frames * 4095).astype(">u2").tobytes()
        expected = frames * 255
    else:
        dataset = dataset_of(frames.astype(np.uint8), **change)
        dataset.PixelData = np.packbits(
            frames.astype(np.uint8).ravel(), bitorder="little"
        ).tobytes()
        expected = frames * 255
    path = write(tmp_path / "x.dcm", dataset)
    for number in range(3):
        found = read_image(path, frame=number)
        np.testing.assert_array_equal(found, expected[number])
    assert read_bytes == [num_bytes] * 3


FRAGMENTED = [bytes([n]) * (50 + 10 * n) + b"\xff\xd9" for n in range(6)]


@pytest.mark.parametrize("has_table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("num_pieces", [1, 3])
@pytest.mark.parametrize("num_frames", [1, 6])
def test_compressed_frames_lie_where_pydicom_finds_them(
    num_frames: int, num_pieces: int, *, has_table: bool
) -> None:
    some = FRAGMENTED[:num_frames]
    data = encapsulate(some, fragments_per_frame=num_pieces, has_bot=has_table)
    header = Dataset()
    header.NumberOfFrames = num_frames
    file = _CountingReads(data)
    frames = pixels._frames_in(file, header)
    assert file.num_bytes < 500 + 10 * num_frames * num_pieces  # and not the frames
    assert len(frames) == num_frames
    for number, pieces in enumerate(frames):
        found = b"".join(data[at : at + length] for at, length in pieces)
        theirs = pydicom.encaps.get_frame(data, number, number_of_frames=num_frames)
        assert found == theirs
        assert found.rstrip(b"\0") == some[number].rstrip(b"\0")


def test_an_extended_offset_table_counts() -> None:
    data, offsets, lengths = encapsulate_extended(FRAGMENTED)
    header = Dataset()
    header.NumberOfFrames = 6
    header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = offsets, lengths
    frames = pixels._frames_in(BytesIO(data), header)
    found = [data[at : at + length] for ((at, length),) in frames]
    assert [one.rstrip(b"\0") for one in found] == [
        one.rstrip(b"\0") for one in FRAGMENTED
    ]


class _CountingReads(BytesIO):
    num_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.num_bytes += len(found)
        return found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it has no compressed data"),
        (b"\xfe\xff\x00\xe0" + bytes(4), "it has no compressed data"),
        (b"\xfe\xff\x00\xe0" + b"\xff" * 4, "is not cut into items"),
        (b"\xfe\xff\x00\xe0" + bytes(4) + b"\x10\0" * 8, "is not cut into items"),
    ],
)
def test_compressed_data_without_items_is_an_error(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pixels._frames_in(BytesIO(data), Dataset())


def test_pieces_of_compressed_data_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_MAX_FRAGMENTS", 5)
    assert len(pixels._items_in(BytesIO(encapsulate([b"x" * 60] * 5)))) == 6
    with pytest.raises(ValueError, match="over 5 pieces"):
        pixels._items_in(BytesIO(encapsulate([b"x" * 60] * 6)))


def test_fewer_compressed_frames_than_the_header_has_are_an_error(
    tmp_path: Path,
) -> None:
    dataset = dataset_of(FRAMES)
    dataset.compress(uid.RLELossless, encoding_plugin="pydicom")
    dataset.NumberOfFrames = 6
    path = write(tmp_path / "x.dcm", dataset)
    np.testing.assert_array_equal(read_image(path, frame=4), FRAMES[4])
    assert "its compressed data holds 5 frame(s)" in error_of(path, frame=5).problem


def test_frames_of_which_the_last_is_cut_short_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.dcm", dataset_of(FRAMES))
    path.write_bytes(path.read_bytes()[:-1])
    problem = error_of(path, frame=0).problem
    assert "its pixel data has 79 bytes, and 5 frames need 80" in problem
    dataset = dataset_of(FRAMES, NumberOfFrames=6)
    problem = error_of(write(path, dataset), frame=0).problem
    assert "its pixel data has 80 bytes, and 6 frames need 96" in problem


def test_one_frame_of_a_compressed_file_is_decoded(tmp_path: Path) -> None:
    frames = np.stack([DEEP, DEEP // 2, DEEP // 3])
    dataset = dataset_of(frames, **WINDOW)
    path = compressed(tmp_path / "x.dcm", dataset, uid.JPEGLSLossless)
    np.testing.assert_array_equal(read_image(path), np.rint(DEEP // 2 / 4095 * 255))


# Transfer syntaxes


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ],
    ids=lambda syntax: syntax.name,
)
def test_native_pixels_are_read(tmp_path: Path, syntax: uid.UID) -> None:
    dataset = dataset_of(DEEP, **WINDOW)
    if syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = DEEP.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.set_original_encoding(
        syntax.is_implicit_VR, syntax.is_little_endian, "ascii"
    )
    path = write(tmp_path / "x.dcm", dataset)
    np.testing.assert_array_equal(read_image(path), EXPECTED)


@pytest.mark.parametrize(
    "syntax",
    [
        uid.RLELossless,
        uid.JPEGLossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_lossless_compression_loses_nothing(tmp_path: Path, syntax: uid.UID) -> None:
    path = compressed(tmp_path / "grey.dcm", dataset_of(DEEP, **WINDOW), syntax)
    np.testing.assert_array_equal(read_image(path), EXPECTED)
    path = compressed(tmp_path / "color.dcm", dataset_of(COLOR), syntax)
    np.testing.assert_array_equal(read_image(path), COLOR)


@pytest.mark.parametrize(
    "syntax", [uid.JPEG2000, uid.JPEGLSNearLossless], ids=lambda syntax: syntax.name
)
def test_lossy_compression_of_12_bits_loses_little(
    tmp_path: Path, syntax: uid.UID
) -> None:
    path = compressed(tmp_path / "x.dcm", dataset_of(DEEP, **WINDOW), syntax)
    assert np.abs(read_image(path) - EXPECTED).max() <= 2


def test_signed_jpeg_2000_keeps_its_sign(tmp_path: Path) -> None:
    signed = (DEEP.astype(np.int16) - 2048).astype(np.int16)
    dataset = dataset_of(signed, WindowCenter=0, WindowWidth=4096)
    path = compressed(tmp_path / "x.dcm", dataset, uid.JPEG2000Lossless)
    np.testing.assert_array_equal(read_image(path), EXPECTED)


def test_deep_color_in_jpeg_2000_is_read(tmp_path: Path) -> None:
    dataset = dataset_of(COLOR.astype(np.uint16) * 16 + 5)
    path = compressed(tmp_path / "x.dcm", dataset, uid.JPEG2000Lossless)
    np.testing.assert_array_equal(read_image(path), COLOR)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit])
def test_jpeg_color_is_read_within_its_loss(tmp_path: Path, syntax: uid.UID) -> None:
    dataset = dataset_of(COLOR, PhotometricInterpretation="YBR_FULL_422")
    dataset.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    Image.fromarray(COLOR).save(buffer, "JPEG", quality=97, subsampling=0)
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    image = read_image(write(tmp_path / "x.dcm", dataset))
    assert np.abs(image.astype(int) - COLOR).max() <= 6


def test_a_compression_that_needs_an_extra_says_which(tmp_path: Path) -> None:
    path = compressed(tmp_path / "x.dcm", dataset_of(DEEP), uid.JPEGLSLossless)
    # Pillow decodes this one, whether gdcm is there or not.
    other = compressed(
        tmp_path / "o.dcm", dataset_of(DEEP, **WINDOW), uid.JPEG2000Lossless
    )
    code = f"""
import sys
sys.modules["gdcm"] = None
from pathlib import Path
from tumorlens.errors import MissingExtraError
from tumorlens.data.images import read_image
print(read_image(Path({str(other)!r})).sum())
try:
    read_image(Path({str(path)!r}))
except MissingExtraError as error:
    print(error.problem, error.hint, sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )
    assert done.stdout.strip() == (
        f"{EXPECTED.sum():.0f}\n"
        f"{path} is compressed as JPEG-LS Lossless Image Compression, which needs the "
        'library gdcm|pip install "tumorlens[dicom]"'
    )
    assert issubclass(MissingExtraError, ImportError)


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (uid.HTJ2KLossless, "which nothing here decodes"),
        (uid.MPEG2MPML, "which is not an image format"),
    ],
)
def test_a_compression_that_nothing_decodes_is_named(
    tmp_path: Path, syntax: uid.UID, words: str
) -> None:
    dataset = dataset_of(DEEP)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"\xff\x4f"])
    path = write(tmp_path / "x.dcm", dataset)
    assert f"{syntax.name}, {words}" in error_of(path).problem


# Limits


def test_rows_and_columns_are_checked_before_decoding(tmp_path: Path) -> None:
    dataset = dataset_of(DEEP)
    dataset.Rows = dataset.Columns = 20_000
    problem = error_of(write(tmp_path / "x.dcm", dataset)).problem
    assert "has 20000 x 20000 pixels, more than the limit of 100000000" in problem


def test_the_number_of_frames_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.dcm", dataset_of(FRAMES))
    assert read_image(path, limits=ImageLimits(max_frames=5)).shape == (4, 4)
    problem = error_of(path, limits=ImageLimits(max_frames=4)).problem
    assert problem == f"{path} has 5 or more frames, the limit is 4"


def test_a_deflated_file_is_inflated_only_to_the_limit(tmp_path: Path) -> None:
    dataset = dataset_of(np.zeros((4000, 4000), np.uint16))
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    path = write(tmp_path / "x.dcm", dataset)
    assert path.stat().st_size < 50_000
    tracemalloc.start()
    problem = error_of(path, limits=ImageLimits(max_bytes=1_000_000)).problem
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem == f"{path} inflates to more than the limit of 1000000 bytes"
    assert peak < 10_000_000  # of 32 million


@pytest.mark.parametrize(
    "syntax",
    [uid.JPEG2000Lossless, uid.JPEGLSLossless, uid.JPEGLosslessSV1],
    ids=lambda syntax: syntax.name,
)
def test_the_size_inside_compressed_data_is_checked(
    tmp_path: Path, syntax: uid.UID
) -> None:
    path = compressed(tmp_path / "x.dcm", dataset_of(DEEP), syntax)
    dataset = pydicom.dcmread(path)
    dataset.Rows = 12
    write(path, dataset)
    problem = error_of(path).problem
    assert problem == (
        f"{path} should hold 20 x 12 pixels, but its compressed data holds 20 x 24"
    )


def test_the_size_of_jpeg_2000_is_without_its_offset() -> None:
    header = b"\xff\x4f\xff\x51" + struct.pack(">2H4L", 41, 0, 25, 37, 5, 7)
    assert list(pixels._sizes_in_codestream(header)) == [(20, 30)]


def test_a_bomb_of_run_lengths_is_not_unpacked(tmp_path: Path) -> None:
    dataset = dataset_of(np.zeros((8, 8), np.uint8))
    dataset.file_meta.TransferSyntaxUID = uid.RLELossless
    header = np.array([1, 64, *[0] * 14], "<u4").tobytes()
    dataset.PixelData = encapsulate([header + b"\x81\x00" * 500_000])
    path = write(tmp_path / "x.dcm", dataset)
    assert "should hold 8 x 8 pixels, but its compressed data holds more" in (
        error_of(path).problem
    )


# What is damaged


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLosslessSV1,
        uid.JPEGLSLossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_a_truncated_file_is_an_error(
    tmp_path: Path, syntax: uid.UID, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (40, 40), np.uint16)
    path = tmp_path / "x.dcm"
    if syntax.is_encapsulated:
        compressed(path, dataset_of(noise), syntax)
    else:
        dataset = dataset_of(noise)
        dataset.file_meta.TransferSyntaxUID = syntax
        write(path, dataset)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    error_of(path)


def test_compressed_data_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    # gdcm fills up what is missing and says nothing.
    path = compressed(tmp_path / "x.dcm", dataset_of(DEEP), uid.JPEGLosslessSV1)
    dataset = pydicom.dcmread(path)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    write(path, dataset)
    assert "compressed data holds fewer: it is cut short" in error_of(path).problem


def test_a_dicom_file_without_an_image_is_named(tmp_path: Path) -> None:
    dataset = dataset_of(DEEP)
    del dataset.PixelData
    problem = error_of(write(tmp_path / "x.dcm", dataset)).problem
    assert problem.endswith("x.dcm is a DICOM file without an image in it")


def test_a_damaged_header_is_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "x.dcm"
    name = PATIENT.encode()
    path.write_bytes(b"\0" * 128 + b"DICM" + name * 9)
    problem = error_of(path).problem
    assert "its DICOM header is damaged (" in problem


def test_a_name_is_not_even_parsed(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = dataset_of(DEEP, PatientBirthDate=f"not a date {PATIENT}", **WINDOW)
    path = write(tmp_path / "x.dcm", dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), EXPECTED)


def test_warnings_of_pydicom_do_not_leave(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # pydicom warns of pixel data that is longer than it should be.
    dataset = dataset_of(DEEP, **WINDOW)
    dataset.PixelData += b"\0" * 100
    path = write(tmp_path / "x.dcm", dataset)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(read_image(path), EXPECTED)
    assert seen == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_mutated_files_give_an_image_or_a_data_error(tmp_path: Path) -> None:
    rng = random.Random(0)
    outcomes = {"image": 0, "error": 0}
    for syntax in (
        uid.ExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEGLSLossless,
        uid.JPEGLosslessSV1,
        uid.JPEG2000Lossless,
    ):
        path = compressed(tmp_path / "x.dcm", dataset_of(DEEP, **WINDOW), syntax)
        original = path.read_bytes()
        for _ in range(30):
            content = bytearray(original)
            for _ in range(rng.choice([1, 2, 8])):
                content[rng.randrange(132, len(content))] = rng.choice([0, 1, 128, 255])
            path.write_bytes(content)
            try:
                read_image(path)
            except DataError:
                outcomes["error"] += 1
            else:
                outcomes["image"] += 1
    assert min(outcomes.values()) > 15


# The process in which gdcm runs


def test_a_helper_that_dies_costs_one_file_only(tmp_path: Path) -> None:
    path = compressed(
        tmp_path / "x.dcm", dataset_of(DEEP, **WINDOW), uid.JPEGLSLossless
    )
    np.testing.assert_array_equal(read_image(path), EXPECTED)
    pid = gdcm._helper.pid
    assert pid is not None
    np.testing.assert_array_equal(read_image(path), EXPECTED)
    assert gdcm._helper.pid == pid  # kept from file to file

    os.kill(pid, signal.SIGKILL)
    problem = error_of(path).problem
    assert "x.dcm is damaged: gdcm failed on its compressed data: it ended" in problem
    np.testing.assert_array_equal(read_image(path), EXPECTED)
    assert gdcm._helper.pid != pid


def test_a_frame_that_takes_too_long_is_an_error_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compressed(
        tmp_path / "x.dcm", dataset_of(DEEP, **WINDOW), uid.JPEGLSLossless
    )
    # The start alone takes longer than this.
    slow = Helper("tumorlens.data.dicom.gdcm", time_limit_s=0.05)
    monkeypatch.setattr(gdcm, "_helper", slow)
    problem = error_of(path).problem
    assert "x.dcm is damaged: gdcm failed" in problem
    assert "it took longer than 0.05 s" in problem
    assert slow.pid is None


LOOPING = """
from tumorlens.data.dicom.gdcm import _decode_here
from tumorlens.system import answer_requests, helper_pipes

def handle(request, frame):
    while b"for ever" in frame:
        pass
    return _decode_here(request, frame)

answer_requests(handle, *helper_pipes())
"""


def test_a_decoder_that_never_ends_costs_its_frames_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = compressed(
        tmp_path / "good.dcm", dataset_of(DEEP, **WINDOW), uid.JPEGLSLossless
    )
    frame = next(
        pydicom.encaps.generate_frames(
            pydicom.dcmread(good).PixelData, number_of_frames=1
        )
    )
    # A comment behind the start mark.
    endless = frame[:2] + b"\xff\xfe\x00\x0afor ever" + frame[2:]
    dataset = pydicom.dcmread(good)
    dataset.NumberOfFrames = 5
    dataset.PixelData = encapsulate([endless] * 5)
    bad = write(tmp_path / "bad.dcm", dataset)

    (tmp_path / "looping.py").write_text(LOOPING)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with Helper("looping", time_limit_s=60, environment={"PYTHONPATH": path}) as helper:
        monkeypatch.setattr(gdcm, "_helper", helper)
        np.testing.assert_array_equal(read_image(good), EXPECTED)
        monkeypatch.setattr(helper, "_time_limit_s", 0.3)
        with ThreadPoolExecutor(5) as pool:
            problems = [
                error.problem
                for error in pool.map(lambda n: error_of(bad, frame=n), range(5))
            ]
        problems += [error_of(bad, frame=4).problem]
        monkeypatch.setattr(helper, "_time_limit_s", 60)
        np.testing.assert_array_equal(read_image(good), EXPECTED)
    assert sum("it took longer than 0.3 s" in one for one in problems) >= 3
    assert "3 of its frames took gdcm too long" in problems[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_a_helper_of_its_own(tmp_path: Path) -> None:
    path = compressed(
        tmp_path / "x.dcm", dataset_of(DEEP, **WINDOW), uid.JPEGLSLossless
    )
    code = f"""
import os
from pathlib import Path
from tumorlens.data.dicom import pixels
from tumorlens.data.dicom import gdcm
from tumorlens.data.images import read_image
path = Path({str(path)!r})
read_image(path)
mine = gdcm._helper.pid
child = os.fork()
read_image(path)
assert (gdcm._helper.pid == mine) == (child != 0)
if child:
    assert os.waitpid(child, 0)[1] == 0
    read_image(path)
"""
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        timeout=120,
    )


def test_what_gdcm_says_is_passed_on(tmp_path: Path) -> None:
    pytest.importorskip("gdcm")
    with pytest.raises(ValueError, match=r"gdcm: .*[Uu]nable to decode"):
        gdcm.decode(
            b"\xff\xd8\xff\xd9",
            syntax=str(uid.JPEGLSLossless),
            options={
                "rows": 2,
                "columns": 2,
                "samples_per_pixel": 1,
                "bits_allocated": 8,
                "bits_stored": 8,
                "pixel_representation": 0,
                "number_of_frames": 1,
                "photometric_interpretation": "MONOCHROME2",
                "pixel_keyword": "PixelData",
            },
        )
