"""Files on disk: writing them so that a crash leaves the old or the new one.

Every file of this package is written through here. A half-written file can then not
exist under its final name: the bytes go to a temporary name in the same folder, are
synced, and the name is switched in one step. Reading images is `tumorlens.data.images`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and move it to `path` when all went well.

    The folder of `path` is made if it is missing. When the body raises, the temporary
    file is removed and whatever was at `path` is untouched.

    Args:
        path: The final name.

    Yields:
        The temporary name, in the same folder and with the same suffix.

    Raises:
        DataError: The disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space or choose another folder"
            + ("; the file that was there before is untouched" * path.is_file()),
        ) from error
    finally:
        # Where the folder is a file, there is nothing to remove, and saying so would
        # take the place of the error above.
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be written, before work is done for it.

    It need not exist, and is not made: what is tried is where it would be.

    Raises:
        DataError: It cannot be made or written.
    """
    try:
        place = folder
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryDirectory(prefix=".tumorlens-", dir=place):
            pass
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="choose another folder",
        ) from error


def is_temporary(path: Path) -> bool:
    """Whether a name is one that `replacing` gives: what a killed process leaves."""
    return path.name.startswith(".") and ".tmp" in path.suffixes


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step. Raises what `replacing` raises."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8 to `path` in one step."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, in one step.

    A number that is not finite is a mistake of ours and raises `ValueError`: JSON has
    no word for it, and the page that reads the file would show nothing.
    """
    write_text(
        path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
