"""Masks come back as they were written, and hostile ones are refused by name."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tumorlens.data.phantom.masks import encode_mask, read_mask, write_masks
from tumorlens.errors import DataError

IMAGE = "Training/glioma/a.jpg"


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    (tmp_path / "planted.json").write_text("{}")
    return tmp_path


def test_a_mask_comes_back_by_the_path_of_its_image(phantom: Path) -> None:
    mask = np.zeros((9, 7), np.bool_)
    mask[2:4, 5] = True
    other = ~mask
    write_masks(
        phantom,
        {IMAGE: encode_mask(mask), "Training/glioma/a.png": encode_mask(other)},
    )
    found = read_mask(phantom / IMAGE)
    assert found is not None
    np.testing.assert_array_equal(found, mask)
    assert read_mask(phantom / "Training/glioma/b.jpg") is None
    # The mask is the file's of this name: the same name elsewhere is another image.
    assert read_mask(phantom / "Testing/glioma/a.jpg") is None


def test_only_a_phantom_has_masks(tmp_path: Path) -> None:
    write_masks(tmp_path, {IMAGE: encode_mask(np.ones((2, 2), np.bool_))})
    assert read_mask(tmp_path / IMAGE) is None


def test_a_phantom_of_an_earlier_version_has_none(phantom: Path) -> None:
    assert read_mask(phantom / IMAGE) is None


def entry(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{IMAGE}.png", content)
    return buffer.getvalue()


def large_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (5000, 2)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no archive", "not a zip file"),
        (entry(b"no picture"), "cannot identify"),
        (entry(bytes(2 << 20)), "has 2097152 bytes"),
        (entry(large_png()), "5000 x 2 pixels"),
        (entry(encode_mask(np.ones((40, 40), np.bool_))[:45]), "truncated"),
    ],
    ids=["archive", "picture", "bomb", "side", "half"],
)
def test_a_damaged_file_is_named_with_what_is_wrong(
    phantom: Path, content: bytes, words: str
) -> None:
    (phantom / "masks.zip").write_bytes(content)
    with pytest.raises(DataError, match=f"masks.zip holds no masks: .*{words}"):
        read_mask(phantom / IMAGE)
