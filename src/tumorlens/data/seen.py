"""What a training has seen: `seen.npz`, and looking pictures up in it.

For each picture of train and val there are a perceptual hash, a sketch, a digest of its
pixels and its class, 94 bytes in all; for each known patient a digest of the key. So a
model that is handed on can tell which images of another set its training has seen,
without a picture or a patient's key being in the file.

Digests are keyed with random bytes that are in the file too: two files do not have the
same digest of a patient, but whoever can guess a key can check the guess.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data import near_duplicates as near
from tumorlens.data.registration import THUMBNAIL_PX
from tumorlens.data.sketch import (
    NUM_PROJECTIONS,
    SAME_HEAD,
    make_sketches,
    similarities,
)
from tumorlens.data.split import LEFT_OUT
from tumorlens.errors import DataError
from tumorlens.files import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Index, SplitRow

FORMAT = 1
MAX_BYTES = 1 << 30
"""Largest file that is read: some ten million pictures."""

_NUM_DIGEST_BYTES = 16
_HINT = "copy the file again, or make the run again"

_SHAPES: dict[str, tuple[Any, ...]] = {
    "format": ("i8",),
    "classes": ("U",),
    "hashes": ("u8",),
    "sketches": ("i1", NUM_PROJECTIONS),
    "pixels": ("u1", _NUM_DIGEST_BYTES),
    "labels": ("i2",),
    "patient_of": ("i4",),
    "patients": ("u1", _NUM_DIGEST_BYTES),
    "salt": ("u1",),
}
"""Array -> its type and the shape of its rows."""

_OF_PICTURES = ("hashes", "sketches", "pixels", "labels", "patient_of")
"""The arrays with a row for each picture."""


@dataclass(frozen=True)
class Pictures:
    """Pictures to look up, N of them."""

    thumbnails: NDArray[np.uint8]
    """As from `near_duplicates.make_thumbnail`, shape (N, 64, 64)."""
    pixels: Sequence[str]
    """SHA-256 of shape and pixels, as in `Duplicates.pixels`."""


@dataclass(frozen=True)
class Found:
    """Where pictures were found, N of them."""

    number: NDArray[np.int64]
    """Position among the seen pictures, of the most similar one; -1 for a new one."""
    similarity: NDArray[np.float64]
    """Estimated correlation with it; 1 for equal pixels, 0 for a new one."""
    orientation: NDArray[np.int64]
    """Turn of the picture that makes it like the seen one: see `ORIENTATIONS`."""

    @property
    def is_seen(self) -> NDArray[np.bool_]:
        """Whether each picture, or a slice next to it, is among the seen ones."""
        return self.number >= 0


@dataclass(frozen=True)
class Seen:
    """The pictures and patients of train and val, M and P of them."""

    classes: tuple[str, ...]
    hashes: NDArray[np.uint64]
    """Shape (M,), of the pictures as they were."""
    sketches: NDArray[np.int8]
    """Shape (M, 64)."""
    pixels: NDArray[np.uint8]
    """Keyed digests of the pixels, shape (M, 16)."""
    labels: NDArray[np.int16]
    """Index of the class, shape (M,)."""
    patient_of: NDArray[np.int32]
    """Index of the patient, shape (M,); -1 where it is not known."""
    patients: NDArray[np.uint8]
    """Keyed digests of the patients' keys, shape (P, 16), sorted."""
    salt: bytes

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.hashes)

    def look_up(
        self, pictures: Pictures, *, progress: Callable[[int, int], None] | None = None
    ) -> Found:
        """Return which pictures training has seen, mirrored and turned ones too.

        Args:
            pictures: The pictures.
            progress: Called with pictures done and pictures in all.
        """
        num = len(pictures.pixels)
        number = np.full(num, -1)
        similarity, orientation = np.zeros(num), np.zeros(num, np.int64)
        place_of = {row.tobytes(): place for place, row in enumerate(self.pixels)}
        for place, digest in enumerate(pictures.pixels):
            same = place_of.get(_digest(digest, self.salt), -1)
            if same >= 0:
                number[place], similarity[place] = same, 1
        (left,) = np.nonzero(number < 0)
        proposed = np.empty((0, 3), np.int64)
        if len(left) and len(self):
            hashes = near.hash_thumbnails(pictures.thumbnails[left])
            proposed = near.propose_matches(hashes, self.hashes)
        done = 0
        for row, turn, known in _by_image(proposed):
            place = left[row]
            found = similarities(
                near.turned(pictures.thumbnails[place], turn), self.sketches[known]
            )
            best = int(found.argmax())
            if found[best] >= SAME_HEAD and found[best] > similarity[place]:
                number[place], similarity[place] = known[best], found[best]
                orientation[place] = turn
            done += len(known)
            if progress is not None:
                progress(done, len(proposed))
        return Found(number, similarity, orientation)

    def part(self, is_kept: Sequence[bool]) -> Seen:
        """Return some of the pictures, and their patients.

        Args:
            is_kept: One for each picture.
        """
        (places,) = np.nonzero(np.array(is_kept, bool))
        kept = {name: getattr(self, name)[places] for name in _OF_PICTURES}
        known = kept["patient_of"] >= 0
        numbers, kept["patient_of"][known] = np.unique(
            kept["patient_of"][known], return_inverse=True
        )
        return replace(self, patients=self.patients[numbers], **kept)

    def knows_patient(self, keys: Iterable[str | None]) -> NDArray[np.bool_]:
        """Return whether training has seen a patient, for each key."""
        known = {row.tobytes() for row in self.patients}
        return np.array(
            [key is not None and _digest(key, self.salt) in known for key in keys], bool
        )

    def write(self, path: Path) -> None:
        """Write the file in one step. Raises what `files.write_bytes` raises."""
        content = io.BytesIO()
        np.savez_compressed(
            content,
            format=np.array([FORMAT]),
            classes=np.array(self.classes),
            salt=np.frombuffer(self.salt, np.uint8),
            patients=self.patients,
            **{name: getattr(self, name) for name in _OF_PICTURES},
        )
        write_bytes(path, content.getvalue())


def seen_of(rows: Sequence[SplitRow], index: Index, duplicates: Duplicates) -> Seen:
    """Return what a training on a split sees.

    Args:
        rows: The split; of a k-fold one, what all its folds see.
        index: The index of the split, with the patients.
        duplicates: The result of `find_duplicates` on this index.
    """
    kept = [row for row in rows if is_seen(row)]
    thumbnails = np.array(
        [duplicates.thumbnails[row.path] for row in kept], np.uint8
    ).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
    # A copy that was left out may be the one whose patient is known.
    patient_of = {
        duplicates.pictures[record.path]: record.patient
        for record in reversed(index.records)
        if record.patient and record.path in duplicates.pictures
    }
    patients = [patient_of.get(duplicates.pictures[row.path], "") for row in kept]
    known = sorted({patient for patient in patients if patient})
    place_of = {patient: place for place, patient in enumerate(known)}
    numbers = {name: number for number, name in enumerate(index.classes)}
    salt = secrets.token_bytes(_NUM_DIGEST_BYTES)
    return Seen(
        classes=index.classes,
        hashes=near.hash_thumbnails(thumbnails)[0],
        sketches=make_sketches(thumbnails),
        pixels=_digests((duplicates.pixels[row.path] for row in kept), salt),
        labels=np.array([numbers[row.label] for row in kept], np.int16),
        patient_of=np.array([place_of.get(one, -1) for one in patients], np.int32),
        patients=_digests(known, salt),
        salt=salt,
    )


def is_seen(row: SplitRow) -> bool:
    """Whether a training sees the picture of a row: those of folds are seen by others.

    Unreadable files are left out of every split.
    """
    return row.subset not in ("test", LEFT_OUT)


def read_seen(path: Path) -> Seen:
    """Return the content of a file, after checking all of it.

    Raises:
        DataError: The file is missing, too large, damaged or of another format.
    """
    try:
        arrays = _read_arrays(path)
        _check_numbers(arrays)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", hint=_HINT) from None
    return Seen(
        classes=tuple(str(name) for name in arrays["classes"]),
        salt=arrays["salt"].tobytes(),
        patients=arrays["patients"],
        **{name: arrays[name] for name in _OF_PICTURES},
    )


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays, each of the right type and shape of its rows.

    Raises:
        ValueError: One is not, or the file has others or is too large.
    """
    with zipfile.ZipFile(path) as file:
        sizes = {one.filename: one.file_size for one in file.infolist()}
        if sorted(sizes) != sorted(f"{name}.npy" for name in _SHAPES):
            raise ValueError(f"expected the arrays {', '.join(_SHAPES)}")
        if sum(sizes.values()) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
        arrays = {}
        for name, (kind, *row) in _SHAPES.items():
            with file.open(f"{name}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            if array.dtype.str[1:].rstrip("0123456789" * (kind == "U")) != kind:
                raise ValueError(f"{name} is of the type {array.dtype}")
            if array.shape[1:] != tuple(row) or array.ndim != len(row) + 1:
                raise ValueError(f"{name} is of the shape {array.shape}")
            arrays[name] = array
    return arrays


def _check_numbers(arrays: dict[str, NDArray[Any]]) -> None:
    """Check that the arrays belong together.

    Raises:
        ValueError: They do not, or are of another format.
    """
    if arrays["format"].tolist() != [FORMAT]:
        raise ValueError(f"expected format {FORMAT}, got {arrays['format'].tolist()}")
    if len({len(arrays[name]) for name in _OF_PICTURES}) > 1:
        raise ValueError("its arrays are of different lengths")
    if not 1 <= len(arrays["salt"]) <= hashlib.blake2b.MAX_KEY_SIZE:
        raise ValueError("expected a salt of 1 to 64 bytes")
    for name, low, size in (
        ("labels", 0, len(arrays["classes"])),
        ("patient_of", -1, len(arrays["patients"])),
    ):
        numbers = arrays[name]
        if len(numbers) and not low <= numbers.min() <= numbers.max() < size:
            raise ValueError(f"expected {name} from {low} to {size - 1}")


def _by_image(
    proposed: NDArray[np.int64],
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """Yield (image, orientation, known pictures) of the rows of `propose_matches`."""
    order = np.lexsort((proposed[:, 1], proposed[:, 2], proposed[:, 0]))
    rows = proposed[order]
    starts = np.flatnonzero((np.diff(rows[:, ::2], axis=0) != 0).any(axis=1)) + 1
    for lot in np.split(rows, starts) if len(rows) else ():
        yield int(lot[0, 0]), int(lot[0, 2]), lot[:, 1]


def _digest(word: str, salt: bytes) -> bytes:
    return hashlib.blake2b(
        word.encode(), digest_size=_NUM_DIGEST_BYTES, key=salt
    ).digest()


def _digests(words: Iterable[str], salt: bytes) -> NDArray[np.uint8]:
    joined = b"".join(_digest(word, salt) for word in words)
    return np.frombuffer(joined, np.uint8).reshape(-1, _NUM_DIGEST_BYTES)
