from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from tumorlens import files
from tumorlens.errors import DataError, RunError
from tumorlens.files import (
    replacing,
    sha256_of,
    write_bytes,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from pathlib import Path


def write_half(path: Path, error: Exception) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "folder" / "a.bin", b"\0\xff")
    assert (tmp_path / "new" / "folder" / "a.bin").read_bytes() == b"\0\xff"
    write_text(tmp_path / "a.txt", "ä\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\n".encode()
    write_json(tmp_path / "a.json", {"ä": [1.5, None]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"ä": [1.5, None]}
    assert "ä" in text
    assert text.endswith("}\n")


def test_json_has_no_word_for_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent  # else it could not be renamed
        assert temporary.suffix == ".txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path, KeyError())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(DataError) as caught:
        write_half(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert caught.value.problem == f"cannot write {path}: No space left on device"
    assert "the file that was there before is untouched" in caught.value.hint
    with pytest.raises(DataError) as caught:
        write_half(tmp_path / "new", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert "untouched" not in caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    synced: list[tuple[bool, bool]] = []

    def fsync(descriptor: int) -> None:
        is_folder = os.path.samestat(os.fstat(descriptor), tmp_path.stat())
        synced.append((is_folder, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(path, "x")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("place", ["file/a.txt", "file/deeper/a.txt"])
def test_a_folder_that_is_a_file_cannot_be_written_to(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=f"cannot write .*{place}"):
        write_text(tmp_path / place, "y")
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_on_a_read_only_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(f"pathlib.Path.{name}", refuse)
    with pytest.raises(DataError, match=r"cannot write .*a\.txt: Read-only"):
        files.write_text(tmp_path / "a.txt", "one")


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DataError, match=r"cannot write .*a\.txt"):
        write_text(tmp_path / "a.txt", "y")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


@pytest.mark.parametrize("num_bytes", [0, 3, (1 << 20) - 1, 1 << 20, (1 << 21) + 7])
def test_the_digest_covers_every_block(tmp_path: Path, num_bytes: int) -> None:
    content = bytes(range(256)) * (num_bytes // 256 + 1)
    (tmp_path / "a").write_bytes(content[:num_bytes])
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content[:num_bytes]).hexdigest()


class Thing(BaseModel):
    """A file of two fields, as a stage defines one."""

    format: int = 2
    size_px: int


def thing(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    files.write_model(tmp_path / "a.json", Thing(size_px=3))
    assert files.read_model(tmp_path / "a.json", Thing, hint="") == Thing(size_px=3)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"a.json is not JSON: Expecting"),
        ("[" * 100_000, r"a.json is not JSON: "),
        ('{"format": 3, "size_px": 1}', r"expected format 2 in .*a.json, got 3"),
        ('{"size_px": 1}', r"expected format 2 in .*a.json, got 1"),
        ("[1]", r"expected format 2 in .*a.json, got \[1\]"),
        (
            '{"format": 2, "size_px": "x"}',
            r"a.json is damaged at size_px: .* integer.*, got 'x'",
        ),
        ('{"format": 2}', r"a.json is damaged at size_px: Field required$"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_file_and_field(
    tmp_path: Path, content: str, problem: str
) -> None:
    with pytest.raises(RunError) as caught:
        files.read_model(thing(tmp_path / "a.json", content), Thing, hint="make it")
    assert re.search(problem, caught.value.problem)
    assert caught.value.hint == "make it"


def test_a_file_of_the_first_layout_may_lack_the_number(tmp_path: Path) -> None:
    class First(BaseModel):
        format: int = 1
        name: str

    path = thing(tmp_path / "a.json", '{"name": "x"}')
    assert files.read_model(path, First, hint="").name == "x"


def test_a_file_that_is_missing_or_too_large_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no .*none.json"):
        files.read_json(tmp_path / "none.json", hint="")
    with pytest.raises(RunError, match=r"a.json is larger than 3 bytes"):
        files.read_json(thing(tmp_path / "a.json", "1234"), hint="", max_bytes=3)
    with pytest.raises(RunError, match=r"cannot read .*: Is a directory"):
        files.read_json(tmp_path, hint="")
