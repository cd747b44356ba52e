from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.handmade_files import tiff_page, write_png, write_tiff
from tumorlens.data import images, raster
from tumorlens.data.images import (
    ImageLimits,
    fit_square,
    is_image_file,
    load_square,
    read_image,
)
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

GREY = np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)
COLOR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
LOSSLESS = ("png", "tif", "bmp")


def save(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def error_of(path: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_image(path, **options)
    assert str(path) in caught.value.problem
    assert "\n" not in caught.value.problem
    assert caught.value.hint
    return caught.value


# Formats and depths


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_8_bit_grey_is_kept(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"x.{suffix}", GREY))
    np.testing.assert_array_equal(image, GREY)
    assert image.dtype == np.uint8
    assert image.flags.writeable


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_8_bit_color_is_kept(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"x.{suffix}", COLOR))
    np.testing.assert_array_equal(image, COLOR)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_color_with_equal_channels_is_grey(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"x.{suffix}", np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(read_image(path), GREY)


def test_one_pixel_of_color_makes_an_image_colored(tmp_path: Path) -> None:
    pixels = np.stack([GREY] * 3, axis=-1)
    pixels[3, 4, 1] += 1
    np.testing.assert_array_equal(read_image(save(tmp_path / "x.png", pixels)), pixels)


def test_jpeg_is_read_within_its_loss(tmp_path: Path) -> None:
    smooth = np.tile(np.arange(64, dtype=np.uint8) * 3, (48, 1))
    grey = read_image(save(tmp_path / "grey.jpg", smooth, quality=95))
    assert grey.shape == (48, 64)
    assert np.abs(grey.astype(int) - smooth).max() <= 4

    color = np.stack([smooth, smooth[:, ::-1], np.full_like(smooth, 90)], axis=-1)
    path = save(tmp_path / "color.jpg", color, quality=95, subsampling=0)
    assert np.abs(read_image(path).astype(int) - color).max() <= 8

    same = save(tmp_path / "same.jpg", np.stack([smooth] * 3, axis=-1), quality=95)
    np.testing.assert_array_equal(read_image(same), grey)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False, True], [False, True, False]])
    expected = np.where(bits, 255, 0)
    for suffix in LOSSLESS:
        path = save(tmp_path / f"x.{suffix}", bits)
        np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_its_own_range(tmp_path: Path, suffix: str) -> None:
    # A scanner's 12 bits: (1000 - 100) / (4000 - 100) * 255 = 58.8.
    deep = np.array([[100, 1000], [2050, 4000]], np.uint16)
    path = save(tmp_path / f"x.{suffix}", deep)
    np.testing.assert_array_equal(read_image(path), [[0, 59], [128, 255]])


def test_16_bit_big_endian_tiff_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 258, 513))
    image.save(path)
    np.testing.assert_array_equal(read_image(path), [[0, 255]])


def test_floating_point_tiff_is_scaled_and_its_nan_is_black(tmp_path: Path) -> None:
    deep = np.array([[-1.0, 0.0], [np.nan, 1.0], [np.inf, -np.inf]], np.float32)
    path = save(tmp_path / "x.tif", deep)
    np.testing.assert_array_equal(read_image(path), [[0, 128], [0, 255], [0, 0]])


@pytest.mark.parametrize("value", [0, 1, 65535])
def test_a_constant_16_bit_image_is_black(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "x.png", np.full((3, 2), value, np.uint16))
    np.testing.assert_array_equal(read_image(path), np.zeros((3, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_without_a_finite_pixel_is_an_error(
    tmp_path: Path, value: float
) -> None:
    path = save(tmp_path / "x.tif", np.full((3, 2), value, np.float32))
    with pytest.raises(DataError, match=r"x\.tif has no finite pixel"):
        read_image(path)


def test_16_bit_color_is_scaled_by_the_range_of_all_its_channels(
    tmp_path: Path,
) -> None:
    # (1000 - 100) / (4000 - 100) * 255 = 58.8.
    pixels = np.array([[[100, 1000, 2050], [4000, 100, 4000]]], np.uint16)
    path = write_png(tmp_path / "x.png", pixels, depth=16, color=2)
    np.testing.assert_array_equal(read_image(path), [[[0, 59, 128], [255, 0, 255]]])


@pytest.mark.parametrize("orientation", [1, 6])
def test_both_bytes_of_16_bit_color_are_turned_upright(
    tmp_path: Path, orientation: int
) -> None:
    deep = np.array([[100, 1000], [2050, 4000]], np.uint16)
    tags, strip = tiff_page(np.stack([deep] * 3, -1), photometric=2, t274=orientation)
    path = write_tiff(tmp_path / "x.tif", (tags, strip))
    expected = np.array([[0, 59], [128, 255]])
    if orientation == 6:  # the first stored column is the upper row, from the right
        expected = np.rot90(expected, -1)
    np.testing.assert_array_equal(read_image(path), expected)


def test_a_palette_gives_its_colors(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    for suffix in ("png", "tif", "bmp"):
        image.save(tmp_path / f"x.{suffix}")
        np.testing.assert_array_equal(
            read_image(tmp_path / f"x.{suffix}"), [[[10, 20, 30], [200, 100, 0]]]
        )


def test_a_grey_palette_gives_grey(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([7, 7, 7, 9, 9, 9])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), [[7, 9]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_transparency_is_laid_over_black(tmp_path: Path, suffix: str) -> None:
    # 200 * 128/255 = 100.4; what is fully transparent is black, whatever its colour.
    pixels = np.array(
        [[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8
    )
    image = read_image(save(tmp_path / f"x.{suffix}", pixels))
    np.testing.assert_array_equal(image, [[[200, 100, 50], [100, 50, 25], [0, 0, 0]]])


def test_grey_with_transparency_is_grey_over_black(tmp_path: Path) -> None:
    pixels = np.array([[[200, 255], [200, 128], [200, 0]]], np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels, mode=None).save(path)
    np.testing.assert_array_equal(read_image(path), [[200, 100, 0]])


def test_a_transparent_value_is_black_in_every_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[50, 60]], np.uint8)).save(path, transparency=60)
    np.testing.assert_array_equal(read_image(path), [[50, 0]])

    deep = np.array([[1000, 2000, 3000]], np.uint16)
    Image.fromarray(deep).save(path, transparency=3000)
    np.testing.assert_array_equal(read_image(path), [[0, 255, 0]])

    Image.fromarray(COLOR).save(path, transparency=tuple(COLOR[2, 3].tolist()))
    assert read_image(path)[2, 3].tolist() == [0, 0, 0]

    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    palette.save(path, transparency=b"\xff\x80")
    np.testing.assert_array_equal(read_image(path), [[[10, 20, 30], [100, 50, 0]]])


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    image.save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "txt", ""])
def test_the_content_says_what_a_file_is_not_its_suffix(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(GREY).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(path), GREY)


@pytest.mark.parametrize(
    ("num_pages", "frame", "expected"),
    [(1, None, 0), (2, None, 1), (3, None, 1), (5, None, 2), (5, 0, 0), (5, 4, 4)],
)
def test_a_tiff_gives_the_page_asked_for_or_the_middle_one(
    tmp_path: Path, num_pages: int, frame: int | None, expected: int
) -> None:
    first, *more = [
        Image.fromarray(np.full((4, 4), page, np.uint8)) for page in range(num_pages)
    ]
    first.save(tmp_path / "x.tif", save_all=True, append_images=more)
    assert read_image(tmp_path / "x.tif", frame=frame)[0, 0] == expected


def test_a_page_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", GREY)
    np.testing.assert_array_equal(read_image(path, frame=0), GREY)
    for frame in (1, -1):
        error = error_of(path, frame=frame)
        assert error.problem == f"{path} has 1 frame(s), got frame {frame}"
        assert error.hint == "choose a frame from 0 to 0"


# Orientation

UPRIGHT = np.array([[10, 60], [110, 160], [210, 250]], np.uint8)
STORED_AS = {
    # What is stored, so that a viewer that honours the tag shows UPRIGHT. EXIF 2.3,
    # 4.6.4: the tag names the visual sides of the stored first row and first column.
    1: UPRIGHT,  # top, left
    2: [[60, 10], [160, 110], [250, 210]],  # top, right
    3: [[250, 210], [160, 110], [60, 10]],  # bottom, right
    4: [[210, 250], [110, 160], [10, 60]],  # bottom, left
    5: [[10, 110, 210], [60, 160, 250]],  # left, top
    6: [[60, 160, 250], [10, 110, 210]],  # right, top
    7: [[250, 160, 60], [210, 110, 10]],  # right, bottom
    8: [[210, 110, 10], [250, 160, 60]],  # left, bottom
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_orientation_is_honoured(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array(STORED_AS[orientation], np.uint8)
    if suffix == "jpg":  # blocks of 8 survive the compression
        stored = np.kron(stored, np.ones((8, 8), np.uint8))
    path = save(tmp_path / f"x.{suffix}", stored, exif=exif)
    image = read_image(path)
    if suffix == "jpg":
        image = image[4::8, 4::8]
    assert np.abs(image.astype(int) - UPRIGHT).max() <= (3 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "x.png", UPRIGHT, exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT)


# What cannot be read


def test_a_missing_file_a_folder_and_an_empty_file_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "gone.png"
    assert (
        error_of(missing).problem
        == f"{missing} cannot be opened: No such file or directory"
    )
    assert error_of(tmp_path).problem == f"{tmp_path} is not a regular file"
    (tmp_path / "empty.png").touch()
    assert "empty.png is empty (0 bytes)" in error_of(tmp_path / "empty.png").problem


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes in folders on Windows")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a regular file" in error_of(tmp_path / "pipe.png").problem


@pytest.mark.parametrize("content", [b"x", b"not an image" * 40, b"\0" * 999])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    problem = error_of(tmp_path / "x.png").problem
    assert problem.endswith("x.png is not a JPEG, PNG, TIFF, BMP or DICOM file")


@pytest.mark.parametrize(
    ("content", "is_image"),
    [
        (b"BMI 22, weight 70 kg, height 178 cm", False),
        (b"BM" + b"\0" * 12 + struct.pack("<L", 40), True),
        (b"BM" + b"\0" * 12 + struct.pack("<L", 41), False),
        (b"II*\0", True),
        (b"", False),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100\x08\0\x16\0UI\x1a\0", True),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100\x08\0\x04\0UI\x1a\0", False),
        (b"\x08\0\0\0\4\0\0\0\x10\0\0\0\x08\0\x16\0\x1a\0\0\0", True),
        (b"\0\x08\0\x05CS\0\x0aISO_IR 100\0\x08\0\x16UI\0\x1a", True),
        (b"\x08\0\x05\0 a text that begins so", False),
    ],
)
def test_a_file_without_a_suffix_is_an_image_by_its_first_bytes(
    tmp_path: Path,
    content: bytes,
    is_image: bool,  # noqa: FBT001
) -> None:
    (tmp_path / "x").write_bytes(content and content + bytes(16))
    assert is_image_file(tmp_path / "x") == is_image


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PPM", "TGA", "ICO", "PDF"])
def test_other_formats_of_pillow_are_never_decoded(tmp_path: Path, kind: str) -> None:
    Image.fromarray(COLOR).save(tmp_path / "x.png", format=kind)
    assert "is not a JPEG, PNG" in error_of(tmp_path / "x.png").problem


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error(
    tmp_path: Path, suffix: str, share: float
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = save(tmp_path / f"x.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    problem = error_of(path).problem
    assert "is damaged: " in problem or "file that cannot be read" in problem


def test_what_a_decoder_says_is_cut_to_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise KeyError("first\nsecond" + "x" * 999)

    path = save(tmp_path / "x.png", GREY)
    monkeypatch.setattr(Image, "open", fail)
    problem = error_of(path).problem
    assert "x.png is damaged: " in problem
    assert problem.endswith("x (KeyError)")
    assert len(problem) < len(str(path)) + 240


def test_mutated_files_give_an_image_or_a_data_error(tmp_path: Path) -> None:
    """Nothing else may leave `read_image`, and no warning either (they are errors)."""
    rng = random.Random(0)
    seeds = []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text that is longer than four bytes"
    for suffix in ("jpg", "png", "bmp", "tif"):
        options = {} if suffix == "bmp" else {"exif": exif}
        seeds.append(save(tmp_path / f"color.{suffix}", COLOR, **options))
        seeds.append(save(tmp_path / f"grey.{suffix}", GREY))
    for compression in ("tiff_deflate", "tiff_lzw", "jpeg", "packbits"):
        path = tmp_path / f"{compression}.tif"
        seeds.append(save(path, COLOR, compression=compression))
    seeds.append(save(tmp_path / "deep.tif", GREY.astype(np.float32)))
    Image.fromarray(COLOR).quantize(7).save(tmp_path / "palette.png")
    seeds.append(tmp_path / "palette.png")

    outcomes = {"image": 0, "error": 0}
    for seed in seeds:
        original = seed.read_bytes()
        for _ in range(25):
            content = bytearray(original)
            for _ in range(rng.choice([1, 2, 8])):
                content[rng.randrange(len(content))] = rng.choice([0, 1, 127, 128, 255])
            if rng.random() < 0.3:
                del content[rng.randrange(len(content)) :]
            seed.write_bytes(content)
            try:
                image = read_image(seed)
            except DataError:
                outcomes["error"] += 1
            else:
                assert image.dtype == np.uint8
                assert image.ndim == 2 or image.shape[2] == 3
                outcomes["image"] += 1
    assert min(outcomes.values()) > 50


# Limits


def test_a_large_file_is_not_opened(tmp_path: Path) -> None:
    path = save(tmp_path / "x.bmp", GREY)
    num_bytes = path.stat().st_size
    assert read_image(path, limits=ImageLimits(max_bytes=num_bytes)).shape == (6, 10)
    problem = error_of(path, limits=ImageLimits(max_bytes=num_bytes - 1)).problem
    assert problem == (
        f"{path} has {num_bytes} bytes, more than the limit of {num_bytes - 1}"
    )


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", GREY)
    assert read_image(path, limits=ImageLimits(max_pixels=60)).shape == (6, 10)
    problem = error_of(path, limits=ImageLimits(max_pixels=59)).problem
    assert problem == f"{path} has 60 pixels, more than the limit of 59"


@pytest.mark.parametrize("side", [10_100, 20_000, 2_000_000_000])
@pytest.mark.parametrize("kind", ["png", "bmp", "tif"])
def test_a_decompression_bomb_costs_nothing(
    tmp_path: Path, side: int, kind: str
) -> None:
    # Under Pillow's own bounds, between its warning and its error, and beyond all.
    path = save(tmp_path / f"x.{kind}", GREY)
    content = bytearray(path.read_bytes())
    if kind == "png":
        content[16:24] = struct.pack(">2L", side, side)
        content[29:33] = struct.pack(">L", zlib.crc32(content[12:29]))
    elif kind == "bmp":
        content[18:26] = struct.pack("<2L", side, side)
    else:
        for tag in (256, 257):
            at = content.index(struct.pack("<2H", tag, 4))
            content[at + 8 : at + 12] = struct.pack("<L", side)
    path.write_bytes(content)

    tracemalloc.start()
    start = time.perf_counter()
    problem = error_of(path).problem
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problem == (
        f"{path} has {side * side} pixels, more than the limit of 100000000"
    )
    assert seconds < 1
    assert peak < 5e6


def test_a_side_that_no_scanner_makes_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((1, 65_536), np.uint8)
    assert read_image(save(tmp_path / "x.png", pixels[:, 1:])).shape == (1, 65_535)
    problem = error_of(save(tmp_path / "x.png", pixels)).problem
    assert problem.endswith(
        "x.png has 65536 x 1 pixels, and no side may be longer than 65535"
    )


@pytest.mark.parametrize("is_tall", [False, True], ids=["wide", "tall"])
def test_a_strip_takes_no_square_of_its_length(is_tall: bool) -> None:  # noqa: FBT001
    strip = np.full((4, 65_535), 200, np.uint8)
    tracemalloc.start()
    square = fit_square(strip.T if is_tall else strip, size_px=16, fit="pad")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6  # a square of that length takes 4.3e9
    assert square.shape == (16, 16)


@pytest.mark.parametrize("shape", [(30, 300), (300, 30), (299, 300)])
def test_a_long_image_is_shrunk_before_it_is_padded_with_nearly_the_same_result(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    image = head(*shape)
    whole = fit_square(image, size_px=20, fit="pad")
    monkeypatch.setattr(images, "_MAX_PADDED_PX", 100)
    shrunk = fit_square(image, size_px=20, fit="pad")
    assert np.abs(shrunk.astype(int) - whole).mean() < 2
    monkeypatch.setattr(images, "_MAX_PADDED_PX", 300)
    np.testing.assert_array_equal(fit_square(image, size_px=20, fit="pad"), whole)


@pytest.mark.parametrize("place", ["read_picture", "fit_square"])
def test_a_file_that_does_not_fit_into_memory_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    path = save(tmp_path / "x.png", GREY)
    owner = raster if place == "read_picture" else images
    monkeypatch.setattr(owner, place, fail)
    with pytest.raises(DataError, match=r"x\.png does not fit into the memory"):
        load_square(path, size_px=8, fit="pad", in_chans=1)


def test_the_pages_of_a_tiff_are_bounded(tmp_path: Path) -> None:
    page = Image.fromarray(GREY)
    page.save(tmp_path / "x.tif", save_all=True, append_images=[page] * 4)
    path = tmp_path / "x.tif"
    assert read_image(path, limits=ImageLimits(max_frames=5)).shape == (6, 10)
    # Counting stops at the first page too many.
    problem = error_of(path, limits=ImageLimits(max_frames=2)).problem
    assert problem == f"{path} has 3 or more frames, the limit is 2"


def test_a_tiff_whose_pages_go_round_in_a_circle_ends(tmp_path: Path) -> None:
    page = Image.fromarray(GREY)
    path = tmp_path / "x.tif"
    page.save(path, save_all=True, append_images=[page])
    content = bytearray(path.read_bytes())
    first = struct.unpack_from("<L", content, 4)[0]
    num_tags = struct.unpack_from("<H", content, first)[0]
    struct.pack_into("<L", content, first + 2 + 12 * num_tags, first)
    path.write_bytes(content)
    assert read_image(path).shape == (6, 10)


# Warnings and global state


def test_what_pillow_logs_is_not_printed(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "x.tif", tiff_page(GREY, t277=127))
    code = (
        "import sys; from pathlib import Path\n"
        "from tumorlens.data.images import read_image\n"
        "from tumorlens.errors import DataError\n"
        "try: read_image(Path(sys.argv[1]))\n"
        "except DataError as error: print(error.problem)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert "cannot be read: Invalid value for samples per pixel" in done.stdout
    assert done.stderr == ""


def test_warnings_of_pillow_do_not_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert read_image(path).shape == (6, 10)
    assert seen == []
    assert Image.MAX_IMAGE_PIXELS == 50


def test_filters_are_put_back_even_after_threads_and_errors(tmp_path: Path) -> None:
    good = save(tmp_path / "x.png", np.zeros((300, 300), np.uint8))
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:80])

    def read(number: int) -> None:
        if number % 2:
            read_image(good)
        else:
            error_of(tmp_path / "bad.png")

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(200)))
    assert list(warnings.filters) == before


def test_warnings_stay_away_until_the_last_reader_is_done() -> None:
    def warn() -> None:
        warnings.warn_explicit("x", UserWarning, "x.py", 1, module="PIL.Image")

    with images.decoder_warnings_silenced():
        with images.decoder_warnings_silenced():
            warn()
        warn()
        with pytest.raises(UserWarning):
            warnings.warn_explicit("x", UserWarning, "x.py", 1, module="PILLAGE")
    with pytest.raises(UserWarning):
        warn()


# Squares


def test_squash_resizes_the_whole_image() -> None:
    image = np.zeros((40, 20), np.uint8)
    image[:20] = 200
    square = fit_square(image, size_px=10, fit="squash")
    assert square.shape == (10, 10)
    np.testing.assert_array_equal(square[:4], 200)
    np.testing.assert_array_equal(square[6:], 0)
    assert square.flags.writeable


def test_squash_of_a_square_of_the_right_size_changes_nothing() -> None:
    np.testing.assert_array_equal(
        fit_square(COLOR[:6, :6], size_px=6, fit="squash"), COLOR[:6, :6]
    )


def test_shrinking_averages_over_all_pixels() -> None:
    # Stripes of one pixel would vanish or fill the image if pixels were only picked.
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    square = fit_square(stripes, size_px=8, fit="squash")
    assert np.abs(square[:, 1:-1].astype(int) - 100).max() <= 2


def test_squares_are_torchvisions_within_rounding() -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms.v2.functional")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (150, 97, 3), np.uint8)
    theirs = transforms.resize(
        torch.from_numpy(image).permute(2, 0, 1), [64, 64], antialias=True
    )
    ours = fit_square(image, size_px=64, fit="squash")
    gap = np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy())
    assert gap.max() <= 1


def head(height: int, width: int, border: int = 0) -> NDArray[np.uint8]:
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image = np.where(x**2 + y**2 <= 1, 120 + 60 * x, 0).astype(np.uint8)
    return np.pad(image, border)


def test_pad_keeps_proportions() -> None:
    square = fit_square(head(120, 60), size_px=100, fit="pad")
    rows = np.flatnonzero((square > 60).any(axis=1))
    columns = np.flatnonzero((square > 60).any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height >= 98
    assert height / width == pytest.approx(2, rel=0.06)
    assert abs(columns.min() - (99 - columns.max())) <= 2  # centred


@pytest.mark.parametrize("border", [1, 37, 400])
@pytest.mark.parametrize(
    "fit_input", [head(120, 60), head(64, 100)], ids=["tall", "wide"]
)
def test_pad_does_not_see_black_that_is_added(
    fit_input: NDArray[np.uint8], border: int
) -> None:
    np.testing.assert_array_equal(
        fit_square(np.pad(fit_input, border), size_px=50, fit="pad"),
        fit_square(fit_input, size_px=50, fit="pad"),
    )


def test_pad_crops_through_the_noise_of_jpeg() -> None:
    image = head(120, 120, border=80)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=40)
    noisy = np.asarray(Image.open(buffer))
    assert (noisy[:78] > 0).any()  # there is noise in the border
    clean = fit_square(image, size_px=60, fit="pad")
    cropped = fit_square(noisy, size_px=60, fit="pad")
    assert np.abs(cropped.astype(int) - clean).mean() < 3

    # Bright specks, as of dust: fewer than 2 % of the fullest row.
    specks = image.copy()
    specks[3, 5], specks[-9, -9] = 255, 255
    np.testing.assert_array_equal(fit_square(specks, size_px=60, fit="pad"), clean)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((30, 30), np.uint8),
        np.full((30, 30), 12, np.uint8),
        np.pad(np.full((2, 2), 255, np.uint8), 30),
        np.zeros((1, 1), np.uint8),
        np.full((1, 200), 255, np.uint8),
        np.zeros((5, 4, 3), np.uint8),
    ],
    ids=["black", "dim", "speck", "one pixel", "line", "small color"],
)
def test_pad_never_crops_to_nothing(image: NDArray[np.uint8]) -> None:
    side = max(image.shape[:2])
    square = fit_square(image, size_px=side, fit="pad")
    # Not cropped: at its own size, every pixel is still there.
    assert square.shape == (side, side, *image.shape[2:])
    assert int(square.sum()) == int(image.sum())


def test_pad_sees_content_in_any_channel() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[20:40, 20:40, 2] = 200
    square = fit_square(image, size_px=20, fit="pad")
    np.testing.assert_array_equal(square[..., 2], 200)


def test_a_fit_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"got 'crop', 8"):
        fit_square(GREY, size_px=8, fit="crop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got 'pad', 0"):
        fit_square(GREY, size_px=0, fit="pad")


def test_a_square_has_the_channels_that_the_model_takes(tmp_path: Path) -> None:
    grey = save(tmp_path / "grey.png", GREY[:6, :6])
    color = save(tmp_path / "color.png", np.full((6, 6, 3), [200, 100, 50], np.uint8))
    one = load_square(grey, size_px=6, fit="squash", in_chans=1)
    np.testing.assert_array_equal(one[..., 0], GREY[:6, :6])
    three = load_square(grey, size_px=6, fit="squash", in_chans=3)
    np.testing.assert_array_equal(three, np.stack([GREY[:6, :6]] * 3, axis=-1))
    assert load_square(color, size_px=6, fit="pad", in_chans=3)[0, 0].tolist() == [
        *(200, 100, 50)
    ]
    # ITU-R 601: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2.
    assert load_square(color, size_px=6, fit="pad", in_chans=1)[0, 0].tolist() == [124]
    assert one.flags.writeable
    with pytest.raises(ValueError, match="expected in_chans 1 or 3, got 2"):
        load_square(grey, size_px=6, fit="pad", in_chans=2)
    with pytest.raises(DataError, match="more than the limit of 35"):
        load_square(
            grey, size_px=6, fit="pad", in_chans=1, limits=ImageLimits(max_pixels=35)
        )
