"""Files on disk: writing them so that a crash leaves the old or the new one.

Every file of this package is written through here. A half-written file can then not
exist under its final name: the bytes go to a temporary name in the same folder, are
synced, and the name is switched in one step. JSON that a stage wrote for another is
read here too, checked before it is used. Reading images is `tumorlens.data.images`.

Processes of several machines may share a folder. Temporary names are random, and a
process holds a lock on what it is writing, so that `remove_leftovers` removes only what
dead processes have left. `locked` keeps a second command out of a folder.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import reprlib
import secrets
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

from pydantic import Field

from tumorlens.errors import DataError, RunError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None  # type: ignore[assignment] # mypy takes the name for a module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pydantic import BaseModel

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_USE = (errno.EEXIST, errno.ENOTEMPTY)

LOCK_WAIT_S = 10.0
"""Seconds for which a command waits for a folder that another one works in. It exceeds
the 5 s for which the loader processes of a killed training may live on and hold it."""

_LOCK_NAME = ".lock"
_POLL_S = 0.05
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_OLD_S = 24 * 3600
"""Age at which temporary files count as left behind on a file system without locks."""

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
    temporary = _temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _in_use(temporary):
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


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and name it `out` when all went well.

    So a folder of this name is complete. What killed processes have left of earlier
    attempts is removed.

    Args:
        out: The final name. It must not exist, or be an empty folder.

    Yields:
        An empty folder beside it.

    Raises:
        DataError: `out` has got content meanwhile, the disk is full, or the folder
            around it cannot be written.
    """
    temporary = _temporary_beside(out)
    try:
        if not out.parent.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out.parent.glob(f".{glob.escape(out.stem[:40])}.*"))
        with _in_use(temporary, is_folder=True):
            yield temporary
            if out.is_dir():
                out.rmdir()
            temporary.rename(out)
        _sync(out.parent)
    except OSError as error:
        if error.errno in _IN_USE and out.exists():
            raise DataError(
                f"{out} was made by another process meanwhile",
                hint="use what is there, or choose another folder",
            ) from error
        raise DataError(
            f"cannot write {out}: {error.strerror or error}",
            hint="free some space or choose another folder",
        ) from error
    finally:
        # Also after Ctrl-C: nothing may be left that looks complete.
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(
    place: Path, *, lock: Path | None = None, wait_s: float | None = None
) -> Iterator[None]:
    """Keep every other command out of what this one writes to over time.

    The lock is that of a hidden file, which is removed in the end. When a process is
    killed the system releases its lock, and the file that stays is of no matter. Where
    a file system has no locks, and on Windows, nothing is kept out. What killed
    processes have left half-written is removed.

    Args:
        place: The folder, or a file, for the message. Folders that are missing are
            made.
        lock: File that is locked; `None` is one in the folder.
        wait_s: Seconds to wait for another command; `None` is `LOCK_WAIT_S`.

    Raises:
        RunError: Another command still works there.
        DataError: The lock cannot be made.
    """
    path = lock or place / _LOCK_NAME
    wait_s = LOCK_WAIT_S if wait_s is None else wait_s
    is_new = not path.parent.exists()
    try:
        descriptor = _open_locked(path, deadline=time.monotonic() + wait_s)
    except OSError as error:
        raise DataError(
            f"cannot write {place}: {error.strerror or error}",
            hint="choose another folder",
        ) from error
    if descriptor is None:
        raise RunError(
            f"another command works in {place}",
            hint="wait until it has ended, or stop it, or choose another folder",
        )
    name = "" if lock is None else glob.escape(place.stem[:40]) + "."
    remove_leftovers((place if lock is None else place.parent).glob(f".{name}*"))
    try:
        yield
    finally:
        # Removed while it is locked: whoever has opened it meanwhile finds that it is
        # not the file of this name any more.
        with suppress(OSError):
            path.unlink()
            if is_new:
                path.parent.rmdir()  # if nothing came of it
        os.close(descriptor)


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


def is_ours(path: Path) -> bool:
    """Whether a name is one that `replacing` or `locked` gives, and no content."""
    is_temporary = path.name.startswith(".") and ".tmp" in path.suffixes
    return is_temporary or path.name == _LOCK_NAME


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove those of some files and folders that dead processes left half-written.

    What a live process of any machine still writes is kept, as is everything that does
    not have a name of `replacing` or `replacing_folder`.

    Args:
        paths: Candidates, such as all hidden files of a folder.
    """
    for path in list(paths):
        if path.name == _LOCK_NAME or not is_ours(path) or not _is_left(path):
            continue
        with suppress(OSError):  # another process may remove it too
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def append_json(path: Path, content: Any) -> None:
    """Append a line of JSON to a log that several processes may write to.

    The line is on the disk when this returns, whole, or the file is as it was. What a
    power cut left of the last line is removed.

    Args:
        path: The file; it is made if it is missing.
        content: JSON-ready values.

    Raises:
        DataError: The disk is full, the file cannot be written, or another process has
            held it for too long.
    """
    line = json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, line)
        _sync(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space, or make the file writable",
        ) from error


def read_json_lines(
    path: Path, *, hint: str, is_log: bool = False
) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file; none where there is no file.

    Args:
        path: The file.
        hint: How to make the file again.
        is_log: Whether `append_json` writes it: half a line at the end, which a power
            cut leaves, is passed over then.

    Raises:
        RunError: A line is no JSON object, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
        lines = (_whole_lines(content) if is_log else content).decode().split("\n")
        return [dict(json.loads(line)) for line in lines if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(
            f"{path} is not one JSON object per line: {error}", hint=hint
        ) from None


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


# Ranges of the numbers in result files: one outside is an error that names the field,
# and not a figure on a page.

ROUNDING = 1e-6
"""A float32 softmax can exceed 1, and a bound of an interval 0 or 1, by so much."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; `true` and texts that look like numbers are none."""

NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

Fraction = Annotated[float, Field(strict=True, ge=-ROUNDING, le=1 + ROUNDING)]
"""A share, or another measure from 0 to 1."""

Count = Annotated[int, Field(ge=0)]


class _Bounded(Protocol):
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


_Measure = TypeVar("_Measure", bound=_Bounded)


def have_both_bounds(measure: _Measure) -> _Measure:
    """Return a measure whose interval has both ends or none, in their order.

    Raises:
        ValueError: One end is missing, or the low one is above the high one.
    """
    low, high = measure.low, measure.high
    if (low is None) != (high is None):
        raise ValueError("expected low and high, or neither")
    if low is not None and high is not None and low > high:
        raise ValueError("expected low not above high")
    return measure


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
    known = (*getattr(model, "OLDER_FORMATS", ()), expected)
    if got not in known:
        raise RunError(
            f"expected format {' or '.join(map(str, known))} in {path}, got "
            f"{reprlib.repr(got)}",
            hint=hint,
        )
    return check_model(found, model, path=path, hint=hint)


def check_model(
    content: Any, model: type[Model], *, path: Path, hint: str, place: str = ""
) -> Model:
    """Return a part of a JSON file, such as a line of JSON Lines, as its model.

    Args:
        content: The part, as parsed.
        model: What it must be.
        path: The file, for the message.
        hint: How to make the file again.
        place: Where in the file the part is, such as "line 3".

    Raises:
        RunError: A field is missing or has a wrong value; the message names it.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        where = ", ".join(filter(None, (place, field)))
        # For a missing field, and for fields that contradict each other, pydantic gives
        # what is around them.
        is_whole = first["type"] == "missing" or not field
        got = "" if is_whole else f", got {reprlib.repr(first['input'])}"
        raise RunError(
            f"{path} is damaged{where and f' at {where}'}: "
            f"{first['msg'].removeprefix('Value error, ')}{got}",
            hint=hint,
        ) from None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _temporary_beside(path: Path) -> Path:
    # Random: two threads share a process number, and two machines may have the same. A
    # name has at most 255 bytes, and a letter up to 4.
    token = secrets.token_hex(8)
    return path.with_name(f".{path.stem[:40]}.{token}.tmp{path.suffix}")


@contextmanager
def _in_use(temporary: Path, *, is_folder: bool = False) -> Iterator[None]:
    """Make a temporary file or folder, and show others that it is being written."""
    if fcntl is None:
        if is_folder:
            temporary.mkdir()
        yield
        return
    descriptor = None
    # Until it is locked, `remove_leftovers` of another process may take it for left.
    while descriptor is None or not temporary.exists():
        if descriptor is not None:
            os.close(descriptor)
        if is_folder:
            temporary.mkdir()
        flags = os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        descriptor = os.open(temporary, flags, 0o666)
        with suppress(OSError):  # a file system without locks, see `_is_left`
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_left(temporary: Path) -> bool:
    """Whether the process that was writing a temporary file or folder is dead."""
    if fcntl is None:
        return True
    try:
        flags = os.O_RDONLY if temporary.is_dir() else os.O_RDWR
        descriptor = os.open(temporary, flags | _NO_LINK | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(descriptor).st_mtime > _OLD_S
    else:
        return True
    finally:
        os.close(descriptor)


def _open_locked(path: Path, *, deadline: float) -> int | None:
    """Return a locked file, made if missing; `None` if the time is over before."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        try:
            is_locked = _lock(descriptor)
            with suppress(FileNotFoundError):
                if is_locked and os.path.samestat(os.fstat(descriptor), path.stat()):
                    kept, descriptor = descriptor, -1
                    return kept
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if time.monotonic() > deadline:
            return None
        time.sleep(0 if is_locked else _POLL_S)


def _lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, unless another process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error: the file system has no locks.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _append(path: Path, line: bytes) -> None:
    """Append a line to a log, or leave the log as it is.

    Raises:
        OSError: It cannot be written, or another process has held it for too long.
    """
    # Without buffer: the line is one write, at the end by then, even where the file
    # system has no locks.
    with path.open("a+b", buffering=0) as file:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not _lock(file.fileno()):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, "another process holds it")
            time.sleep(_POLL_S)
        file.seek(0)
        before = file.read()
        whole = _whole_lines(before)
        size = min(len(before), len(whole))
        added = whole[size:] + line
        try:
            file.truncate(size)
            if file.write(added) != len(added):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _whole_lines(content: bytes) -> bytes:
    """Return the whole lines of a log, the last one with its line break."""
    end = content.rfind(b"\n") + 1
    if end == len(content):
        return content
    try:  # an editor may have left out the last line break
        json.loads(content[end:])
    except ValueError:
        return content[:end]
    return content + b"\n"


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
