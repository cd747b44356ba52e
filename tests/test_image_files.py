"""Paths that a user names become files, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tumorlens.errors import DataError
from tumorlens.image_files import walk_images

if TYPE_CHECKING:
    from pathlib import Path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_gives_the_images_below_it_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a.JPG", "deep/er/c.dcm", "notes.txt", "no_suffix")
    touch(tmp_path, ".hidden.png", ".cache/d.png", "deep/.e.png")
    (tmp_path / "folder.png").mkdir()
    touch(tmp_path, "folder.png/f.tif")
    assert list(walk_images([tmp_path])) == [
        tmp_path / name
        for name in ("a.JPG", "b.png", "deep/er/c.dcm", "folder.png/f.tif")
    ]


def test_a_folder_in_a_hidden_place_is_searched_all_the_same(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden/a.png")
    assert list(walk_images([tmp_path / ".hidden"])) == [tmp_path / ".hidden" / "a.png"]


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    touch(tmp_path, "IM0001", ".b.png", "more/a.png")
    named = [tmp_path / "IM0001", tmp_path / "more", tmp_path / ".b.png"]
    assert list(walk_images(named)) == [named[0], tmp_path / "more" / "a.png", named[2]]


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: .*nowhere\.png"):
        walk_images([tmp_path / "nowhere.png"])


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(
        DataError, match=rf"no image in the folder {tmp_path}"
    ) as caught:
        walk_images([tmp_path])
    assert ".png" in caught.value.hint
