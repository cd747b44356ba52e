from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from tumorlens import files
from tumorlens.errors import DataError, RunError
from tumorlens.files import (
    append_json,
    locked,
    read_json_lines,
    remove_leftovers,
    replacing,
    replacing_folder,
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


# several processes, of one machine or more


def test_two_that_write_one_file_at_once_do_not_share_a_temporary_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as one, replacing(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"  # the last to end
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_has_a_temporary_name_too(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 120 + ".json")  # 245 of the 255 bytes of a name
    write_json(path, [])
    assert list(tmp_path.iterdir()) == [path]


def left_by_a_kill(folder: Path) -> None:
    """Let a process die while it writes a file and a folder."""
    code = """
import os, sys
from pathlib import Path
from tumorlens.files import locked, replacing, replacing_folder
out = Path(sys.argv[1])
with locked(out), replacing(out / "a.npy") as a, replacing_folder(out / "b") as b:
    a.write_text("half")
    (b / "c").write_text("half")
    os._exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code, folder], check=False)
    assert done.returncode == 9
    assert len(list(folder.iterdir())) == 3


def test_what_a_dead_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path)
    (tmp_path / ".notes.txt").write_text("mine")
    with replacing(tmp_path / "a.npy") as alive:
        alive.write_text("half")
        with replacing_folder(tmp_path / "d") as growing:
            remove_leftovers(tmp_path.iterdir())
            assert {path.name for path in tmp_path.iterdir()} == {
                *(".lock", ".notes.txt", alive.name, growing.name)
            }
    assert (tmp_path / "a.npy").read_text() == "half"


def test_a_second_command_is_kept_out_until_the_first_has_ended(tmp_path: Path) -> None:
    left_by_a_kill(tmp_path)  # its lock is not held any more
    with (
        locked(tmp_path),
        pytest.raises(RunError, match=rf"^another command works in {tmp_path}\n"),
        locked(tmp_path, wait_s=0.1),
    ):
        pass
    with locked(tmp_path, wait_s=0):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_many_that_wait_for_a_folder_work_in_it_one_after_the_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "count.txt"

    def count(_: int) -> None:
        with locked(path.parent, wait_s=60):
            before = int(path.read_text()) if path.exists() else 0
            path.write_text(str(before + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(80)))
    assert path.read_text() == "80"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_was_made_for_nothing_is_removed_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    with (
        pytest.raises(DataError, match=r"^cannot write .*a-file: "),
        locked(tmp_path / "a-file"),
    ):
        pass


def test_a_folder_has_its_name_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    with pytest.raises(KeyboardInterrupt), replacing_folder(tmp_path / "b") as folder:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [out]


def test_of_two_that_make_one_folder_the_second_is_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    second = replacing_folder(out)
    (second.__enter__() / "a").write_text("second")
    with replacing_folder(out) as first:
        (first / "a").write_text("first")
    with pytest.raises(DataError, match=r"out was made by another process meanwhile"):
        second.__exit__(None, None, None)
    assert (out / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


def test_no_line_is_lost_among_many_that_append(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append_json(path, {"n": n}), range(80)))
    found = [row["n"] for row in read_json_lines(path, hint="", is_log=True)]
    assert sorted(found) == list(range(80))


def test_a_full_disk_leaves_a_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    append_json(path, {"n": 1})

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(DataError, match=r"cannot write .*log\.jsonl: No space"):
            append_json(path, {"n": 2})
    assert read_json_lines(path, hint="") == [{"n": 1}]


@pytest.mark.parametrize(
    ("end", "kept"), [(b'{"n": 2', []), (b"\0\0\0", []), (b'{"n": 2}', [{"n": 2}])]
)
def test_half_a_last_line_of_a_log_does_not_spoil_it(
    end: bytes, kept: list[dict[str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n' + end)
    expected = [{"n": 1}, *kept]
    assert read_json_lines(path, hint="", is_log=True) == expected
    append_json(path, {"n": 3})
    assert read_json_lines(path, hint="") == [*expected, {"n": 3}]


def test_a_log_that_another_process_holds_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    append_json(path, {"n": 1})
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    with (
        locked(tmp_path, lock=path),
        pytest.raises(DataError, match=r"log\.jsonl: another process holds it"),
    ):
        append_json(path, {"n": 2})
