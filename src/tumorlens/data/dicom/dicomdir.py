"""A DICOMDIR, the table of contents of a CD or an export, and the files it names.

Its records are a list that links of byte positions turn into a tree. The list is read
and the links are ignored, because they can form circles. The names in it come from
outside, so each must stay inside the folder of the DICOMDIR, links of the file system
resolved, before the file is opened.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tumorlens.data.dicom import pixels
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

NAME = "DICOMDIR"
"""Name of the file, fixed by the standard."""

MAX_RECORDS = 500_000
"""A CD holds a few thousand."""

_DAMAGED_HINT = "name the folder of the images instead, or copy the medium again"

_ACTIVE = 0xFFFF
"""Flag of a record in use; that of a removed one is 0."""


@dataclass(frozen=True)
class Media:
    """Content of a DICOMDIR."""

    images: tuple[Path, ...]
    """Each file once, in the order of the records. Some may not exist."""
    num_others: int
    """Reports, presentation states, key objects and the like."""


def is_dicomdir(path: Path) -> bool:
    """Whether a file has the name of a DICOMDIR; ISO 9660 may give it in lower case."""
    return path.name.rstrip(".").upper() == NAME


def read_dicomdir(path: Path, *, max_bytes: int) -> Media:
    """Return the files that a DICOMDIR names.

    Args:
        path: The DICOMDIR.
        max_bytes: Larger ones are not opened.

    Raises:
        DataError: It cannot be opened, is damaged or too large, or names a file
            outside its folder. No name of a patient is in the message.

    Source:
        DICOM PS3.3 F.3 (directory records), PS3.10 8.2 (file IDs).
    """
    folder = path.parent
    images: dict[Path, None] = {}
    num_others = 0
    for number, (kind, parts) in enumerate(_records(path, max_bytes), start=1):
        if kind != "IMAGE":
            num_others += 1
            continue
        images[_inside(folder, parts, place=f"{path}, record {number}")] = None
    return Media(tuple(images), num_others)


def _records(path: Path, max_bytes: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the kind and file ID of each record that names a file and is in use.

    Raises:
        DataError: See `read_dicomdir`.
    """
    try:
        status = path.stat()
        # Before opening: opening a pipe waits for a writer.
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                f"{path} is not a regular file",
                hint="name the folder of the images instead",
            )
        num_bytes = status.st_size
        with path.open("rb") as file:
            is_dicom = pixels.is_dicom(file)
    except OSError as error:
        raise DataError(
            f"cannot open {path}: {error.strerror}",
            hint="check that it is a file and can be read",
        ) from error
    if num_bytes > max_bytes:
        raise DataError(
            f"{path} has {num_bytes} bytes, more than the limit of {max_bytes}",
            hint="name the folder of the images instead",
        )
    if not is_dicom:
        raise DataError(
            f"{path} is damaged: it is not a DICOM file", hint=_DAMAGED_HINT
        )
    header = pixels.read_header(
        path, tags=["DirectoryRecordSequence"], max_bytes=max_bytes
    )
    # pydicom silently takes the rest of a list that is cut short.
    raw = header.get_item("DirectoryRecordSequence")
    if len(getattr(raw, "value", None) or b"") < getattr(raw, "length", 0):
        raise DataError(f"{path} is damaged: it is cut short", hint=_DAMAGED_HINT)
    # pydicom's errors on a damaged record are of many kinds, and can quote it.
    try:
        records = header.get("DirectoryRecordSequence")
        num_records = len(records) if records is not None else 0
        found = [
            (
                str(record.get("DirectoryRecordType") or ""),
                _parts_of(record.get("ReferencedFileID")),
            )
            for record in (records or [])[:MAX_RECORDS]
            if record.get("RecordInUseFlag", _ACTIVE) == _ACTIVE
        ]
    except Exception as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__})", hint=_DAMAGED_HINT
        ) from None
    if records is None:
        raise DataError(
            f"{path} is damaged: it has no directory records", hint=_DAMAGED_HINT
        )
    if num_records > MAX_RECORDS:
        raise DataError(
            f"{path} has {num_records} records, more than the limit of {MAX_RECORDS}",
            hint="name the folders of the images instead",
        )
    return ((kind, parts) for kind, parts in found if parts)


def _parts_of(file_id: str | Iterable[object] | None) -> tuple[str, ...]:
    if file_id is None or file_id == "":
        return ()
    parts = [file_id] if isinstance(file_id, str) else list(file_id)
    return tuple(str(part) for part in parts)


def _inside(folder: Path, parts: Sequence[str], *, place: str) -> Path:
    is_plain = all(
        part.isprintable() and part not in ("", ".", "..") and not {*part} & {*"/\\:"}
        for part in parts
    )
    path = _as_on_disk(folder, parts) if is_plain else folder
    # Resolved, because a folder on the medium may be a link to another place.
    if not is_plain or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{place}: names a file outside the folder {folder}: "
            f"{'/'.join(parts)[:80]!r}",
            hint="do not trust this medium; name the files that you need instead",
        )
    return path


def _as_on_disk(folder: Path, parts: Sequence[str]) -> Path:
    # File IDs are upper case, but many systems show the names of a CD in lower case.
    upper = folder.joinpath(*parts)
    lower = folder.joinpath(*(part.lower() for part in parts))
    try:
        return lower if not upper.exists() and lower.exists() else upper
    except OSError:  # a name that is too long: reported when the file is read
        return upper
