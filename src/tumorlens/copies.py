"""Which files show the same picture, and which files must therefore stay together.

Every file is decoded once. Two files with equal pixels show the same picture; so do
two that are equal but for re-encoding, resizing, mirroring or turning by quarters.
Such near copies are proposed by a perceptual hash in eight orientations and confirmed
by the correlation of two small grey images, so that a chance equality of hashes joins
nothing. Copies from which a visible part was cut off are not looked for.

What a newcomer gets wrong: neighbouring slices of one head look very much alike (their
correlation reaches 0.988) and are different pictures all the same. They belong in one
*group*, through their patient, but keeping one of them and dropping the other would
throw data away. `Copies.pictures` and `group_records` answer these two questions.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import fft, ndimage, sparse

from tumorlens.errors import DataError
from tumorlens.images import DEFAULT_LIMITS, ImageLimits, read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tumorlens.index import Index, Record

ORIENTATIONS = (
    "same",
    "rotated-90",
    "rotated-180",
    "rotated-270",
    "mirrored",
    "mirrored-rotated-90",
    "mirrored-rotated-180",
    "mirrored-rotated-270",
)
"""How `a` must be turned to look like `b`: anticlockwise, then mirrored left to right.
The position of a name is the argument of `turned`."""

THUMBNAIL_PX = 64

MAX_HASH_BITS = 6
"""Two hashes of 64 bits that differ in more bits propose no pair. On 250 images of the
Bhuvaji set, JPEG down to quality 40 and sizes from a quarter to 1.5 times the original
changed at most 4 bits."""

CONFIRMED = 0.99
"""Least correlation of two thumbnails that show one picture. On the Bhuvaji set the
closest two slices of one patient reach 0.987 as they are and 0.988 in register, while
re-encoded images (down to quality 10) keep 0.994 with their original and resized ones
(half to 1.5 times) 0.999."""

ALIGNABLE = 0.95
"""From this correlation on, thumbnails are brought into register before they are judged
by `CONFIRMED`: a frame that is a few pixels wider costs a copy more than a neighbouring
slice differs. In register, the pairs of the Bhuvaji set fall into two heaps: slices of
one patient end at 0.986 and copies begin at 0.992."""

# Copies with equal hashes that are this much alike share their fate, so that
# ten thousand re-encodings of one picture cost ten thousand comparisons.
_TIGHT = 0.999

# A thumbnail with a smaller standard deviation (in grey levels) shows nothing: its hash
# is noise. Plain images are copies of each other only when their pixels are equal.
_MIN_CONTRAST = 1.0

# A key that more images share than this says nothing about any of them. It bounds the
# candidates of one image, whatever somebody put into the folder.
_MAX_BUCKET = 2000

# Neighbouring bits of a hash of a head say much the same, so blocks of neighbours are
# poor keys: on the Bhuvaji set they propose 74 images for each one, shuffled bits 41.
_SHUFFLED_BITS = np.random.default_rng(21).permutation(64)

_CANDIDATES_PER_BLOCK = 20_000_000
_PAIRS_PER_BLOCK = 2048
_ALIGN_MARGIN_PX = 4
_ALIGN_STEPS = 6


@dataclass(frozen=True)
class FileFacts:
    """What can be told about a file without looking at the picture."""

    width: int
    """In pixels, after EXIF orientation."""

    height: int
    """In pixels, after EXIF orientation."""

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
    """Two files with different pixels that show one picture."""

    a: str
    """Path; sorts before `b`."""

    b: str

    correlation: float
    """Of the two thumbnails, `a` turned and, where needed, shifted; in [0.99, 1]."""

    orientation: str
    """One of `ORIENTATIONS`: what to do to `a`."""


@dataclass(frozen=True)
class Copies:
    """What one pass over all files of an index found."""

    unreadable: Mapping[str, str]
    """Path -> why, in one line that does not name the file."""

    facts: Mapping[str, FileFacts]
    """Path -> facts, for the readable files only."""

    pixels: Mapping[str, str]
    """Path -> SHA-256 of shape and decoded pixels, for the readable files only."""

    pictures: Mapping[str, str]
    """Path -> the first path that shows the same picture, for the readable files."""

    near_pairs: tuple[NearPair, ...]
    """Confirmed pairs, sorted. Of files with equal pixels, the first one stands for
    all; of very many copies in one, each is paired with the first only."""

    thumbnails: Mapping[str, NDArray[np.uint8]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Path -> grey image (64, 64), squashed. Files with equal pixels share one."""


def find_copies(
    index: Index,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Copies:
    """Decode every file of an index once and find those that show the same picture.

    A picture is its first path and everything that is a direct copy of that: copies of
    copies do not chain on, so that a film of slowly changing images is never one
    picture. Nothing depends on the order of the records.

    Args:
        index: The files. Those with equal bytes are decoded once.
        limits: What is refused before it is decoded.
        workers: Threads that decode; `None` is one for each core.
        progress: Called after each file with the number done and the number of all.

    Returns:
        What was found. Files that cannot be read are in `unreadable` and nowhere else.

    Raises:
        MissingExtraError: A DICOM file is compressed in a way that needs the extra
            `dicom`: that is for the user to mend, not a fault of the file.
    """
    unreadable: dict[str, str] = {}
    facts: dict[str, FileFacts] = {}
    pixels: dict[str, str] = {}
    thumbnails: dict[str, NDArray[np.uint8]] = {}
    num_done = 0
    for records, look in _looks(index, limits, workers):
        for record in records:
            if isinstance(look, str):
                unreadable[record.path] = look
            else:
                facts[record.path], pixels[record.path], thumbnails[record.path] = look
        num_done += len(records)
        if progress is not None:
            progress(num_done, len(index.records))

    first_of: dict[str, str] = {}
    for path in sorted(pixels):
        first_of.setdefault(pixels[path], path)
    shown = list(first_of.values())
    for path, digest in pixels.items():
        thumbnails[path] = thumbnails[first_of[digest]]
    pairs, leader_of = _near_copies(shown, thumbnails)
    picture_of = _pictures(shown, pairs, leader_of)
    return Copies(
        unreadable=dict(sorted(unreadable.items())),
        facts=dict(sorted(facts.items())),
        pixels=dict(sorted(pixels.items())),
        pictures={path: picture_of[first_of[pixels[path]]] for path in sorted(pixels)},
        near_pairs=pairs,
        thumbnails=thumbnails,
    )


def group_records(index: Index, copies: Copies) -> dict[str, str]:
    """Return the group of every file: what must be in one subset with what.

    Groups are the connected components of "same patient", "same picture" and
    "confirmed near copy". An unreadable file is alone, or with its patient.

    Returns:
        Path -> the first path of its group, for every record.

    Example:
        Two files of one patient, and a copy of one of them without a known patient:

        >>> from pathlib import Path
        >>> from tumorlens.index import Index, Record
        >>> paths = ("a/1.png", "a/2.png", "b/3.png", "b/4.png")
        >>> patients = ("p", "p", None, None)
        >>> index = Index(Path("data"), ("a", "b"), tuple(
        ...     Record(path, path[0], None, patient, None, None, "0" * 64, 1)
        ...     for path, patient in zip(paths, patients)))
        >>> copies = Copies(
        ...     unreadable={}, facts={}, pixels={}, near_pairs=(),
        ...     pictures=dict(zip(paths, (paths[0], paths[1], paths[1], paths[3]))))
        >>> group_records(index, copies)
        {'a/1.png': 'a/1.png', 'a/2.png': 'a/1.png', 'b/3.png': 'a/1.png', \
'b/4.png': 'b/4.png'}
    """
    number_of = {record.path: n for n, record in enumerate(index.records)}
    edges = [(number_of[p], number_of[q]) for p, q in copies.pictures.items()]
    edges += [(number_of[pair.a], number_of[pair.b]) for pair in copies.near_pairs]
    first_of_patient: dict[str, int] = {}
    for number, record in enumerate(index.records):
        if record.patient is not None:
            edges.append((number, first_of_patient.setdefault(record.patient, number)))
    component_of = _components(len(index.records), edges)
    first_of: dict[int, str] = {}
    for path in sorted(number_of):
        first_of.setdefault(int(component_of[number_of[path]]), path)
    return {path: first_of[int(component_of[n])] for path, n in number_of.items()}


def turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return images (..., H, W) turned as `ORIENTATIONS[orientation]` says."""
    image = np.rot90(image, orientation % 4, axes=(-2, -1))
    return image[..., ::-1] if orientation >= 4 else image


def hash_thumbnails(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hashes of thumbnails in eight orientations.

    One bit for each of the 8 x 8 lowest frequencies of the cosine transform of the
    image at 32 x 32: whether it is above their median. Turning an image changes signs
    and order of its frequencies only, so that one transform serves eight hashes.
    `imagehash.phash` of the turned image gives the same, 200 times slower: 26,000
    calls for the Bhuvaji set, a fifth of the time that its whole audit may take.

    Args:
        thumbnails: Grey images, shape (N, 64, 64).

    Returns:
        Shape (8, N), in the order of `ORIENTATIONS`; the first frequency is the
        highest bit.

    Source:
        `phash` of ImageHash 4.3 (https://github.com/JohannesBuchner/imagehash), after
        Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions",
        2010.
    """
    num = len(thumbnails)
    small = thumbnails.reshape(num, 32, 2, 32, 2).mean(axis=(2, 4))
    low = fft.dctn(np.rint(small), axes=(1, 2))[:, :8, :8]  # (N, 8, 8)
    # Mirroring along an axis turns the sign of that axis' odd frequencies.
    odd = (-1.0) ** np.arange(8)
    mirrored, flipped, swapped = low * odd, low * odd[:, None], low.transpose(0, 2, 1)
    return np.stack(
        [
            _bits_to_int(frequencies)
            for frequencies in (
                low,
                swapped * odd[:, None],
                mirrored * odd[:, None],
                swapped * odd,
                mirrored,
                swapped * odd * odd[:, None],
                flipped,
                swapped,
            )
        ]
    )


def propose_pairs(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the pairs of images whose hashes agree in some orientation.

    Each hash is cut into blocks, and two images are compared when they agree in any
    two blocks, so that what is compared grows with the number of images and not with
    its square. Up to 20,000 images, no pair within `MAX_HASH_BITS` is missed. Above,
    fewer and longer blocks are used: all pairs within 4 bits are still found and of
    those with 6 bits some 95 % up to 200,000 images, 70 % above.

    A product of two sparse matrices (image x key, key x image) does the look-up. It
    takes 40 s for 8 x 1,000,000 hashes on one core, where faiss' IndexBinaryMultiHash
    takes 330 s on two and its time per hash still grows; see `benchmarks/copies.py`.

    Args:
        hashes: As from `hash_thumbnails`, shape (8, N).

    Returns:
        Rows of (a, b, orientation), shape (M, 3), with a < b and sorted: `a` turned so
        agrees with `b`. One pair can have several rows.

    Source:
        Norouzi, Punjani, Fleet, "Fast Exact Search in Hamming Space with Multi-Index
        Hashing", TPAMI 2014 (arXiv:1307.2982), section 3; pairs of blocks instead of
        neighbouring keys.
    """
    num = hashes.shape[1]
    num_blocks = 8 if num <= 20_000 else 7 if num <= 200_000 else 6
    images = _keys(hashes[0], num_blocks)
    size_of_key = np.bincount(images.indices, minlength=images.shape[1])
    found = [np.empty((0, 3), np.int64)]
    by_key = _without_keys(images, size_of_key > _MAX_BUCKET).T.tocsr()
    sizes = np.where(size_of_key > _MAX_BUCKET, 0, size_of_key).astype(np.int64)
    for orientation, turned_hashes in enumerate(hashes):
        queries = _keys(turned_hashes, num_blocks)
        costs = sizes[queries.indices].reshape(num, -1).sum(axis=1)
        for start, stop in _blocks(costs):
            agreeing = (queries[start:stop] @ by_key).tocoo()
            a, b = agreeing.row.astype(np.int64) + start, agreeing.col.astype(np.int64)
            num_bits = np.bitwise_count(turned_hashes[a] ^ hashes[0, b])
            near = (num_bits <= MAX_HASH_BITS) & (a != b)
            found.append(_ordered(a[near], b[near], orientation))
    return np.unique(np.concatenate(found), axis=0)


def _looks(
    index: Index, limits: ImageLimits, workers: int | None
) -> Iterator[tuple[list[Record], str | tuple[FileFacts, str, NDArray[np.uint8]]]]:
    """Yield the records of each distinct file and what was seen, or why nothing was."""
    same_bytes: dict[str, list[Record]] = defaultdict(list)
    for record in index.records:
        same_bytes[record.sha256].append(record)
    lots = list(same_bytes.values())
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        looks = pool.map(lambda lot: _look(index, lot[0], limits), lots)
        yield from zip(lots, looks, strict=True)


def _look(
    index: Index, record: Record, limits: ImageLimits
) -> str | tuple[FileFacts, str, NDArray[np.uint8]]:
    file = index.file_of(record)
    try:
        image = read_image(file, limits=limits)
    except DataError as error:
        return " ".join(error.problem.replace(str(file), "it").split())
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    grey = Image.fromarray(image).convert("L")
    # Of Pillow's filters, the bilinear one keeps a resized copy most like its original
    # (quarter size: 0.987, with box 0.92) because it averages over more than one pixel.
    thumbnail = grey.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    facts = FileFacts(
        width=image.shape[1],
        height=image.shape[0],
        num_bytes=record.num_bytes,
        mean_grey=float(np.asarray(grey).mean()),
        is_coloured=image.ndim == 3,
        is_plain=bool((image == image[:1, :1]).all()),
    )
    return facts, digest.hexdigest(), np.asarray(thumbnail)


def _near_copies(
    paths: Sequence[str], thumbnails: Mapping[str, NDArray[np.uint8]]
) -> tuple[tuple[NearPair, ...], dict[str, str]]:
    """Return the confirmed pairs among `paths` (sorted, no two with equal pixels).

    The second value tells which path stands for another that is tightly like it.
    """
    shown = [path for path in paths if thumbnails[path].std() >= _MIN_CONTRAST]
    if not shown:
        return (), {}
    stack = np.stack([thumbnails[path] for path in shown])
    hashes = hash_thumbnails(stack)
    tight = _collapse_equal_hashes(stack, hashes[0])
    pairs = [
        NearPair(shown[leader], shown[member], correlation, ORIENTATIONS[0])
        for member, (leader, correlation) in tight.items()
    ]
    kept = np.array([n for n in range(len(shown)) if n not in tight])
    for a, b, correlation, orientation in _confirmed(
        stack[kept], propose_pairs(hashes[:, kept])
    ):
        names = shown[kept[a]], shown[kept[b]]
        pairs.append(NearPair(*names, correlation, ORIENTATIONS[orientation]))
    pairs.sort(key=lambda pair: (pair.a, pair.b))
    return tuple(pairs), {shown[m]: shown[leader] for m, (leader, _) in tight.items()}


def _collapse_equal_hashes(
    stack: NDArray[np.uint8], hashes: NDArray[np.uint64]
) -> dict[int, tuple[int, float]]:
    """Return image -> (an earlier image with the same hash, their correlation)."""
    buckets: dict[int, list[int]] = defaultdict(list)
    for number, value in enumerate(hashes.tolist()):
        buckets[value].append(number)
    found: dict[int, tuple[int, float]] = {}
    for bucket in buckets.values():
        leaders = bucket[:1]
        units = _unit(stack[leaders])
        for number in bucket[1:]:
            unit = _unit(stack[[number]])
            likeness = units @ unit[0]
            best = int(likeness.argmax())
            if likeness[best] >= _TIGHT:
                found[number] = leaders[best], min(1.0, float(likeness[best]))
            else:
                leaders.append(number)
                units = np.concatenate([units, unit])
    return found


def _confirmed(
    stack: NDArray[np.uint8], proposed: NDArray[np.int64]
) -> Iterator[tuple[int, int, float, int]]:
    """Yield (a, b, correlation, orientation) of the pairs that show one picture."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for orientation in range(len(ORIENTATIONS)):
        pairs = proposed[proposed[:, 2] == orientation, :2]
        for start in range(0, len(pairs), _PAIRS_PER_BLOCK):
            a, b = pairs[start : start + _PAIRS_PER_BLOCK].T
            units = _unit(turned(stack[a], orientation)), _unit(stack[b])
            for one, other, value in zip(
                a.tolist(), b.tolist(), np.einsum("ij,ij->i", *units), strict=True
            ):
                # Rounding: a picture that is its own mirror image is "same" with both.
                likeness = round(float(value), 6)
                if likeness > best.get((one, other), (ALIGNABLE, 0))[0]:
                    best[one, other] = likeness, orientation
    for (one, other), (likeness, orientation) in best.items():
        if likeness < CONFIRMED:
            moving = turned(stack[one], orientation)
            likeness = round(_correlation_in_register(moving, stack[other]), 6)
        if likeness >= CONFIRMED:
            yield one, other, likeness, orientation


def _correlation_in_register(
    moving: NDArray[np.uint8], fixed: NDArray[np.uint8]
) -> float:
    """Return the correlation after the best small shift and stretch of `moving`.

    Gauss-Newton on shift, stretch, gain and offset, for each axis on its own.

    Source:
        Lucas and Kanade, "An Iterative Image Registration Technique", IJCAI 1981.
    """
    inner = (slice(_ALIGN_MARGIN_PX, -_ALIGN_MARGIN_PX),) * 2
    target = fixed.astype(np.float64)[inner].ravel()
    centre = (THUMBNAIL_PX - 1) / 2
    rows, columns = (
        (grid[inner] - centre).ravel() / centre for grid in np.indices(fixed.shape)
    )
    shift, stretch = np.zeros(2), np.ones(2)
    best = 0.0
    for _ in range(_ALIGN_STEPS):
        warped = ndimage.affine_transform(
            moving.astype(np.float64),
            stretch,
            offset=centre * (1 - stretch) + shift,
            order=1,
            mode="nearest",
        )
        now = warped[inner].ravel()
        best = max(best, float(np.corrcoef(now, target)[0, 1]))
        if best >= CONFIRMED:
            break
        down, right = (slope[inner].ravel() for slope in np.gradient(warped))
        slopes = np.stack(
            [now, np.ones_like(now), down, right, down * rows, right * columns]
        )  # (6, pixels)
        # The least-squares solution. `lstsq` takes fifty times as long.
        gain, _, *change = np.linalg.solve(slopes @ slopes.T, slopes @ target)
        shift = np.clip(shift + np.array(change[:2]) / gain, -3, 3)
        stretch = np.clip(stretch + np.array(change[2:]) / gain / centre, 0.94, 1.06)
    return best


def _pictures(
    paths: Sequence[str], pairs: Iterable[NearPair], leader_of: Mapping[str, str]
) -> dict[str, str]:
    """Return path -> picture; `paths` are sorted and have different pixels."""
    earlier_copies: dict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        earlier_copies[pair.b].append(pair.a)
    picture_of: dict[str, str] = {}
    for path in paths:
        if path in leader_of:
            picture_of[path] = picture_of[leader_of[path]]
            continue
        firsts = [p for p in earlier_copies[path] if picture_of[p] == p]
        picture_of[path] = min(firsts, default=path)
    return picture_of


def _components(num: int, edges: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = sparse.coo_matrix((np.ones(len(rows), bool), (rows, columns)), (num, num))
    components: NDArray[np.int32] = sparse.csgraph.connected_components(
        graph, directed=False
    )[1]
    return components


def _bits_to_int(frequencies: NDArray[np.float64]) -> NDArray[np.uint64]:
    flat = frequencies.reshape(len(frequencies), 64)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return packed.astype(np.uint64)


def _keys(hashes: NDArray[np.uint64], num_blocks: int) -> sparse.csr_matrix:
    """Return a sparse (N, keys) matrix: one key for each two blocks of each hash."""
    bits_of_blocks = np.array_split(_SHUFFLED_BITS, num_blocks)
    widths = [len(bits) for bits in bits_of_blocks]
    blocks = [
        sum(
            ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(int) << place
            for place, bit in enumerate(bits)
        )
        for bits in bits_of_blocks
    ]
    columns, first_key = [], 0
    for one, other in combinations(range(num_blocks), 2):
        columns.append(first_key + (blocks[one] << widths[other]) + blocks[other])
        first_key += 1 << (widths[one] + widths[other])
    keys = np.stack(columns, axis=1).astype(np.int32)
    starts = np.arange(0, keys.size + 1, len(columns), dtype=np.int32)
    return sparse.csr_matrix(
        (np.ones(keys.size, np.int8), keys.ravel(), starts), (len(hashes), first_key)
    )


def _without_keys(
    matrix: sparse.csr_matrix, unwanted: NDArray[np.bool_]
) -> sparse.csr_matrix:
    matrix = matrix.copy()
    matrix.data = np.where(unwanted[matrix.indices], 0, matrix.data)
    matrix.eliminate_zeros()
    return matrix


def _blocks(costs: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose costs add up to what fits into memory."""
    block_of = np.cumsum(costs) // _CANDIDATES_PER_BLOCK
    edges = np.flatnonzero(np.diff(block_of)) + 1
    yield from pairwise([0, *edges.tolist(), len(costs)])


def _ordered(
    a: NDArray[np.int64], b: NDArray[np.int64], orientation: int
) -> NDArray[np.int64]:
    """Return rows (a, b, orientation) with a < b.

    All orientations but the two quarter turns undo themselves.
    """
    inverse = {1: 3, 3: 1}.get(orientation, orientation)
    return np.stack(
        [np.minimum(a, b), np.maximum(a, b), np.where(a < b, orientation, inverse)], 1
    )


def _unit(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images (N, H, W) as vectors (N, H * W) of mean 0 and length 1."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat
