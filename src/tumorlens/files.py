"""Files on disk: writing them so that a crash leaves the old or the new one.

Every file of this package is written through here. A half-written file can then not
exist under its final name: the bytes go to a temporary name in the same folder, are
synced, and the name is switched in one step. JSON that a stage wrote for another is
read here too, checked before it is used. Reading images is `tumorlens.data.images`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import reprlib
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from tumorlens.errors import DataError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import BaseModel

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

MAX_JSON_BYTES = 256 << 20
"""Largest JSON file that is read; `audit.json` of a million images stays below it."""


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
            hint=("free some space or " if error.errno in _DISK_FULL else "")
            + "choose another folder"
            + ("; the file that was there before is untouched" * path.is_file()),
        ) from error
    finally:
        # Where the folder is a file or read-only, there is nothing to remove, and an
        # error here would take the place of the one above.
        with suppress(OSError):
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


def write_model(path: Path, content: BaseModel) -> None:
    """Write a model as indented JSON, in one step. `read_model` reads it back."""
    write_json(path, content.model_dump(mode="json", by_alias=True))


def read_json(path: Path, *, hint: str, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what a JSON file holds.

    Args:
        path: The file.
        hint: How to make the file again.
        max_bytes: Larger files are refused unread.

    Raises:
        RunError: The file is missing, unreadable, too large or not JSON.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise RunError(f"{path} is larger than {max_bytes:,} bytes", hint=hint)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"there is no {path}", hint=hint) from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON: {error}", hint=hint) from None


Model = TypeVar("Model", bound="BaseModel")


def read_model(
    path: Path,
    model: type[Model],
    *,
    hint: str,
    max_bytes: int = MAX_JSON_BYTES,
) -> Model:
    """Return the content of a JSON file, checked against its model.

    Args:
        path: A JSON object with the number of its layout under `format`. It may be
            missing from files of the first layout.
        model: What the object must be. Read are the default of its field `format` and
            the numbers in its `OLDER_FORMATS`, which it must be able to validate.
        hint: How to make the file again.
        max_bytes: Larger files are refused unread.

    Raises:
        RunError: The file is missing, unreadable, too large, of another format, or a
            field is missing or has a wrong value; the message names file and field.
    """
    found = read_json(path, hint=hint, max_bytes=max_bytes)
    got = found.get("format", 1) if isinstance(found, dict) else found
    expected = model.model_fields["format"].default
    if got != expected and got not in getattr(model, "OLDER_FORMATS", ()):
        raise RunError(
            f"expected format {expected} in {path}, got {reprlib.repr(got)}", hint=hint
        )
    return check_model(found, model, path=path, hint=hint)


def check_model(content: Any, model: type[Model], *, path: Path, hint: str) -> Model:
    """Return a part of a JSON file, such as a line of JSON Lines, as its model.

    Args:
        content: The part, as parsed.
        model: What it must be.
        path: The file, for the message.
        hint: How to make the file again.

    Raises:
        RunError: A field is missing or has a wrong value; the message names it.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        # For a missing field, pydantic gives what is around it.
        got = f", got {reprlib.repr(first['input'])}" * (first["type"] != "missing")
        raise RunError(
            f"{path} is damaged at {place}: {first['msg']}{got}", hint=hint
        ) from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
