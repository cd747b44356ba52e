"""Which files show the same picture, and which files must therefore stay together.

Every file is decoded once. Two files with equal pixels show the same picture; so do
two that are equal but for re-encoding, resizing, a small crop or frame, mirroring or
turning by quarters. `tumorlens.data.near_duplicates` finds such near copies.

Neighbouring slices of one head look very much alike (the correlation of two that are
1 mm apart reaches 0.998) and are different pictures all the same. They belong in one
*group*, but keeping one of them and dropping the other would throw data away. So there
are two results: `Duplicates.pictures` and `group_records`. Where patients are not
known, `Duplicates.lookalikes` still joins the slices that are nearest to each other.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits, as_grey, read_image
from tumorlens.data.near_duplicates import (
    ORIENTATIONS,
    SAME_DETAIL,
    NearDuplicate,
    find_near_duplicates,
    make_thumbnail,
)
from tumorlens.data.registration import THUMBNAIL_PX
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tumorlens.data.index import Index, Record


SAME_DETAIL_OF_PATIENT = 0.9993
"""Least similarity of detail of two copies that are of one known patient. Slices of one
patient are alike without being copies, and a copy that is missed leaks nothing: both
are in one group. All slices of docs/near-duplicates.md stay below, also those half a
millimetre apart."""


@dataclass(frozen=True)
class FileFacts:
    """Facts about a file apart from the picture."""

    width: int
    """Width in pixels, after EXIF orientation."""

    height: int
    """Height in pixels, after EXIF orientation."""

    num_bytes: int
    """Size of the file."""

    mean_grey: float
    """Mean grey value, in [0, 255]."""

    is_coloured: bool = False
    """The three channels differ somewhere."""

    is_plain: bool = False
    """Every pixel has the same value."""


@dataclass(frozen=True)
class NearPair:
    """Two files with different pixels that show one picture or one head."""

    a: str
    """Path; sorts before `b`."""

    b: str

    correlation: float
    """Correlation of the thumbnails, `a` turned and, where needed, in register."""

    orientation: str
    """Turn of `a`: one of `ORIENTATIONS`."""


@dataclass(frozen=True)
class Duplicates:
    """Result of one pass over all files of an index."""

    unreadable: Mapping[str, str]
    """Path -> reason, in one line that does not name the file."""

    facts: Mapping[str, FileFacts]
    """Path -> facts, for the readable files only."""

    pixels: Mapping[str, str]
    """Path -> SHA-256 of shape and decoded pixels, for the readable files only."""

    pictures: Mapping[str, str]
    """Path -> the first path that shows the same picture, for the readable files."""

    near_pairs: tuple[NearPair, ...]
    """Copies, sorted. The first of several files with equal pixels represents
    all. Where very many files show one picture, each is paired with the first only."""

    lookalikes: tuple[NearPair, ...] = ()
    """Pairs so alike that both are of one head, as neighbouring slices are, and no
    copies; sorted."""

    thumbnails: Mapping[str, NDArray[np.uint8]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Path -> grey image (64, 64), squashed. Files with equal pixels share one."""


def find_duplicates(
    index: Index,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Decode every file of an index once and find those that show the same picture.

    A picture is its first path and all direct copies of it. Copies of copies do not
    chain, so that a film of slowly changing images is never one picture. The result
    does not depend on the order of the records.

    Args:
        index: The files. Those with equal bytes are decoded once.
        limits: Limits above which a file is refused.
        workers: Number of decoding threads; `None` for one per core.
        progress: Called after each file with the number done and the number in all.

    Returns:
        The duplicates. Files that cannot be read are in `unreadable` and nowhere else.

    Raises:
        MissingExtraError: A DICOM file is compressed in a way that needs the extra
            `dicom`: the user has to install it, the file is not at fault.
    """
    unreadable: dict[str, str] = {}
    facts: dict[str, FileFacts] = {}
    pixels: dict[str, str] = {}
    thumbnails: dict[str, NDArray[np.uint8]] = {}
    num_done = 0
    for records, found in _decode_all(index, limits, workers):
        for record in records:
            if isinstance(found, str):
                unreadable[record.path] = found
            else:
                facts[record.path], pixels[record.path], thumbnails[record.path] = found
        num_done += len(records)
        if progress is not None:
            progress(num_done, len(index.records))
    decoded = Duplicates(unreadable, facts, pixels, {}, (), thumbnails=thumbnails)
    return _compare(index, decoded)


def part_of(duplicates: Duplicates, index: Index) -> Duplicates:
    """Return what `find_duplicates` finds in some of its files, without decoding them.

    Args:
        duplicates: The result of `find_duplicates` on an index with all these files.
        index: The files.
    """
    paths = {record.path for record in index.records}
    unreadable, facts, pixels, thumbnails = (
        {path: fact for path, fact in getattr(duplicates, of).items() if path in paths}
        for of in ("unreadable", "facts", "pixels", "thumbnails")
    )
    decoded = Duplicates(unreadable, facts, pixels, {}, (), thumbnails=thumbnails)
    return _compare(index, decoded)


def pool_duplicates(index: Index, parts: Mapping[str, Duplicates]) -> Duplicates:
    """Return the duplicates of several sets together, without decoding a file again.

    Args:
        index: The files of all sets, with the name of its set before each path.
        parts: Name of a set -> what `find_duplicates` found in it.
    """
    unreadable, facts, pixels, thumbnails = (
        {
            f"{name}/{path}": fact
            for name, part in parts.items()
            for path, fact in getattr(part, of).items()
        }
        for of in ("unreadable", "facts", "pixels", "thumbnails")
    )
    decoded = Duplicates(unreadable, facts, pixels, {}, (), thumbnails=thumbnails)
    return _compare(index, decoded)


def _compare(index: Index, decoded: Duplicates) -> Duplicates:
    """Return the duplicates of an index of which every file is decoded."""
    pixels, thumbnails = decoded.pixels, dict(decoded.thumbnails)
    first_of: dict[str, str] = {}
    for path in sorted(pixels):
        first_of.setdefault(pixels[path], path)
    for path, digest in pixels.items():
        thumbnails[path] = thumbnails[first_of[digest]]
    shown = list(first_of.values())
    pairs = find_near_duplicates(
        np.array([thumbnails[path] for path in shown]).reshape(
            -1, THUMBNAIL_PX, THUMBNAIL_PX
        )
    )
    patients_of: dict[str, set[str]] = defaultdict(set)
    for record in index.records:
        if record.patient is not None and record.path in pixels:
            patients_of[first_of[pixels[record.path]]].add(record.patient)
    copies: list[NearDuplicate] = []
    lookalikes: list[NearDuplicate] = []
    for pair in pairs:
        is_known = patients_of[shown[pair.a]] & patients_of[shown[pair.b]]
        least = SAME_DETAIL_OF_PATIENT if is_known else SAME_DETAIL
        (copies if pair.detail >= least else lookalikes).append(pair)
    picture_of = _pictures(shown, copies)
    return Duplicates(
        unreadable=dict(sorted(decoded.unreadable.items())),
        facts=dict(sorted(decoded.facts.items())),
        pixels=dict(sorted(pixels.items())),
        pictures={path: picture_of[first_of[pixels[path]]] for path in sorted(pixels)},
        near_pairs=_near_pairs(shown, copies),
        lookalikes=_near_pairs(shown, lookalikes),
        thumbnails=thumbnails,
    )


def group_records(index: Index, duplicates: Duplicates) -> dict[str, str]:
    """Return the group of every file: files of one group must be in one subset.

    Groups are the connected components of "same patient", "same picture", "near copy"
    and "lookalike". An unreadable file is alone, or with its patient.

    Returns:
        Path -> the first path of its group, for every record.

    Example:
        Two files of one patient, and a copy of one of them without a known patient:

        >>> from pathlib import Path
        >>> from tumorlens.data.index import Index, Record
        >>> paths = ("a/1.png", "a/2.png", "b/3.png", "b/4.png")
        >>> patients = ("p", "p", None, None)
        >>> index = Index(Path("data"), ("a", "b"), tuple(
        ...     Record(path, path[0], None, patient, None, None, "0" * 64, 1)
        ...     for path, patient in zip(paths, patients)))
        >>> duplicates = Duplicates(
        ...     unreadable={}, facts={}, pixels={}, near_pairs=(),
        ...     pictures=dict(zip(paths, (paths[0], paths[1], paths[1], paths[3]))))
        >>> group_records(index, duplicates)
        {'a/1.png': 'a/1.png', 'a/2.png': 'a/1.png', 'b/3.png': 'a/1.png', \
'b/4.png': 'b/4.png'}
    """
    number_of = {record.path: n for n, record in enumerate(index.records)}
    edges = [(number_of[p], number_of[q]) for p, q in duplicates.pictures.items()]
    alike = (*duplicates.near_pairs, *duplicates.lookalikes)
    edges += [(number_of[pair.a], number_of[pair.b]) for pair in alike]
    first_of_patient: dict[str, int] = {}
    for number, record in enumerate(index.records):
        if record.patient is not None:
            edges.append((number, first_of_patient.setdefault(record.patient, number)))
    component_of = _components(len(index.records), edges)
    first_of: dict[int, str] = {}
    for path in sorted(number_of):
        first_of.setdefault(int(component_of[number_of[path]]), path)
    return {path: first_of[int(component_of[n])] for path, n in number_of.items()}


def _decode_all(
    index: Index, limits: ImageLimits, workers: int | None
) -> Iterator[tuple[list[Record], str | tuple[FileFacts, str, NDArray[np.uint8]]]]:
    """Yield the records of each distinct file with its content or error."""
    same_bytes: dict[str, list[Record]] = defaultdict(list)
    for record in index.records:
        same_bytes[record.sha256].append(record)
    lots = list(same_bytes.values())
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        decoded = pool.map(lambda lot: _decode(index, lot[0], limits), lots)
        yield from zip(lots, decoded, strict=True)


def _decode(
    index: Index, record: Record, limits: ImageLimits
) -> str | tuple[FileFacts, str, NDArray[np.uint8]]:
    file = index.file_of(record)
    try:
        image = read_image(file, limits=limits)
    except DataError as error:
        return " ".join(error.problem.replace(str(file), "it").split())
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    facts = FileFacts(
        width=image.shape[1],
        height=image.shape[0],
        num_bytes=record.num_bytes,
        mean_grey=float(as_grey(image).mean()),
        is_coloured=image.ndim == 3,
        is_plain=bool((image == image[:1, :1]).all()),
    )
    return facts, digest.hexdigest(), make_thumbnail(image)


def _near_pairs(
    paths: Sequence[str], pairs: Iterable[NearDuplicate]
) -> tuple[NearPair, ...]:
    return tuple(
        NearPair(
            paths[pair.a],
            paths[pair.b],
            pair.correlation,
            ORIENTATIONS[pair.orientation],
        )
        for pair in pairs
    )


def _pictures(paths: Sequence[str], pairs: Iterable[NearDuplicate]) -> dict[str, str]:
    """Return path -> picture; `paths` are sorted and have different pixels."""
    earlier_copies: dict[int, list[int]] = defaultdict(list)
    settled_by: dict[int, int] = {}
    for pair in pairs:
        if pair.is_settled:
            settled_by[pair.b] = pair.a
        else:
            earlier_copies[pair.b].append(pair.a)
    picture_of: list[int] = []
    for number in range(len(paths)):
        if number in settled_by:
            picture_of.append(picture_of[settled_by[number]])
        else:
            firsts = [n for n in earlier_copies[number] if picture_of[n] == n]
            picture_of.append(min(firsts, default=number))
    return {path: paths[picture_of[number]] for number, path in enumerate(paths)}


def _components(num: int, edges: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = sparse.coo_matrix((np.ones(len(rows), bool), (rows, columns)), (num, num))
    components: NDArray[np.int32] = csgraph.connected_components(graph, directed=False)[
        1
    ]
    return components
