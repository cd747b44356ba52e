"""Files are decoded ahead, in order, and never too many of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tumorlens.data import decoding
from tumorlens.data.decoding import InputSpec, decode_ahead
from tumorlens.data.images import ImageLimits, load_square
from tumorlens.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEC = InputSpec(16, "squash", 3)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.new("L", (20, 30), 10 * number).save(path)
    return paths


def shades(files: Any, **options: Any) -> list[int]:
    options = {"num_ahead": 4, "num_threads": 3} | options
    found = decode_ahead(files, [SPEC], **options)
    return [-1 if one.error else int(one.squares[SPEC].max()) for one in found]


@pytest.mark.parametrize("num_ahead", [0, 1, 5, 100])
def test_the_order_is_kept_when_later_files_are_ready_first(
    num_ahead: int, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(path: Path, **options: Any) -> Any:
        time.sleep(0.02 if path.stem in "048" else 0)
        return load_square(path, **options)

    monkeypatch.setattr(decoding, "load_square", slow)
    assert shades(files, num_ahead=num_ahead) == [10 * n for n in range(12)]


def test_paths_are_asked_for_only_when_there_is_room(files: list[Path]) -> None:
    asked: list[Path] = []

    def generate() -> Iterator[Path]:
        for path in files:
            asked.append(path)
            yield path

    found = decode_ahead(generate(), [SPEC], num_ahead=4, num_threads=2)
    assert asked == []
    next(found)
    assert asked == files[:5]
    next(found)
    assert asked == files[:6]
    found.close()
    assert asked == files[:6]


def test_nothing_is_decoded_for_nobody(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []

    def note(path: Path, **_: Any) -> Any:
        time.sleep(0.02)
        decoded.append(path)
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(decoding, "load_square", note)
    found = decode_ahead(files, [SPEC], num_ahead=11, num_threads=1)
    next(found)
    found.close()
    assert len(decoded) <= 3


def test_a_file_is_decoded_as_for_training(tmp_path: Path) -> None:
    # No short cut for large JPEGs, which Pillow can decode at a fraction of their size.
    rng = np.random.default_rng(0)
    path = tmp_path / "large.jpg"
    Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(path)
    (one,) = decode_ahead([path], [SPEC], num_ahead=1, num_threads=1)
    expected = load_square(path, size_px=16, fit="squash", in_chans=3)
    np.testing.assert_array_equal(one.squares[SPEC], expected)


def test_each_spec_is_decoded_once(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def note(path: Path, *, size_px: int, **options: Any) -> Any:
        seen.append(size_px)
        return load_square(path, size_px=size_px, **options)

    monkeypatch.setattr(decoding, "load_square", note)
    other = InputSpec(24, "pad", 1)
    (one,) = decode_ahead(files[:1], [SPEC, other, SPEC], num_ahead=1, num_threads=1)
    assert seen == [16, 24]
    assert {spec: square.shape for spec, square in one.squares.items()} == {
        SPEC: (16, 16, 3),
        other: (24, 24, 1),
    }


def test_a_file_that_cannot_be_read_is_given_with_its_error(files: list[Path]) -> None:
    files[3].write_bytes(b"")
    expected = [10 * number for number in range(12)]
    expected[3] = -1
    assert shades(files) == expected
    (one,) = decode_ahead(files[3:4], [SPEC], num_ahead=1, num_threads=1)
    assert one.path == files[3]
    assert one.squares == {}
    assert one.error == "is empty (0 bytes)"


def test_the_limits_are_those_that_are_given(files: list[Path]) -> None:
    assert set(shades(files, limits=ImageLimits(max_pixels=599))) == {-1}


def test_a_missing_library_stops_everything(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise MissingExtraError("no gdcm", hint="install it")

    monkeypatch.setattr(decoding, "load_square", missing)
    with pytest.raises(MissingExtraError, match="no gdcm"):
        shades(files)
