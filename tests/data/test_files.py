"""Paths that a user names become files, one after the other."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tumorlens.data.files import count_images, described, walk_images
from tumorlens.errors import DataError

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


def test_an_image_is_found_by_its_first_bytes_and_the_others_are_counted(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path, "a.png", "c.jpe", "d.JFIF", "deep/e.txt", "f.txt", "g.WebP", ".h.txt"
    )
    touch(tmp_path, "i.doe^jane", "j.0123456789")
    (tmp_path / "b").write_bytes(b"\x89PNG\r\n\x1a\n, or what is left of it")
    (tmp_path / "k").symlink_to(tmp_path / "deep")
    os.mkfifo(tmp_path / "pipe")
    skipped = Counter[str]()
    names = [path.name for path in walk_images([tmp_path], skipped=skipped)]
    assert names == ["a.png", "b", "c.jpe", "d.JFIF"]
    assert described(skipped) == (
        "2 x .txt, 1 x .webp, 3 x file of another kind, 1 x link to a folder"
    )


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


def test_a_folder_is_walked_as_its_files_are_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    found = walk_images([tmp_path])
    assert next(found) == tmp_path / "a" / "1.png"
    touch(tmp_path, "b/0.png")
    assert list(found) == [tmp_path / "b" / "0.png", tmp_path / "b" / "1.png"]


def test_links_to_folders_are_not_followed_and_links_to_files_are(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "data/a.png")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b.png").symlink_to(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "c.png").symlink_to(tmp_path / "data")
    found = [path.name for path in walk_images([tmp_path / "data"])]
    assert found == ["a.png", "b.png"]


def test_what_is_called_an_image_and_is_no_file_is_left_to_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "c.png").symlink_to("x" * 300)
    os.mkfifo(tmp_path / "d.png")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 100 letters
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("e.png")
    found = [path.name for path in walk_images([tmp_path])]
    assert found == ["a.png", "b.png", "c.png", "d.png", "e.png"]


def test_files_are_counted_as_they_are_walked(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/notes.txt", "b/deep/1.png", "other")
    assert count_images([tmp_path / "a", tmp_path, tmp_path / "other"]) == 4


def test_a_path_is_refused_before_the_first_file_is_given(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(DataError, match=r"nowhere"):
        walk_images([tmp_path / "a.png", tmp_path / "nowhere"])


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)  # root may read whatever there is
    with pytest.raises(DataError, match=rf"the folder {tmp_path}: Permission denied"):
        walk_images([tmp_path])
