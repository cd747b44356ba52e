"""Near duplicates: which of many small grey images show the same picture.

Perceptual hashes in eight orientations propose pairs. These are brought into register,
and two figures judge them: the correlation of the whole images, and the similarity of
their detail. The cost grows with the number of images and not with its square, whatever
the images are. Files are the subject of `tumorlens.data.duplicates`.

Equal hashes prove nothing: neighbouring slices of one head have equal hashes, and so
have images that are nearly plain. Nor does the correlation tell a copy from a slice
1 mm away, which reaches 0.998: both are nearly equal at large. A copy keeps the detail
everywhere, a slice nowhere (docs/near-duplicates.md).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import fft, ndimage, sparse

from tumorlens.data.registration import (
    INNER,
    NUM_LINEAR_STEPS,
    NUM_STEPS,
    THUMBNAIL_PX,
    Moving,
    slopes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

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
"""The turn that makes `a` look like `b`: anticlockwise, then mirrored left to right.
The position of a name is the argument of `turned`."""

UNDOING = (0, 3, 2, 1, 4, 5, 6, 7)
"""The orientation that undoes each one: all but the quarter turns undo themselves."""

MAX_HASH_BITS = 6
"""Two hashes of 64 bits that differ in more bits propose no pair. On 250 images of the
Bhuvaji set, JPEG down to quality 40 and sizes from a quarter to 1.5 times the original
changed at most 4 bits."""

SAME_DETAIL = 0.998
"""Least similarity of detail (`NearDuplicate.detail`) of two images that show one
picture. Of slices of a smooth head without noise, which are the most alike, those 1 mm
apart end at 0.996, all slices of one patient of the Bhuvaji set at 0.992; copies of
JPEG quality 30, or half the size, keep 0.998 and more (docs/near-duplicates.md)."""

ALIKE = 0.99
"""Least correlation of two images that are of one head: they show one picture or
neighbouring slices. No two images of different patients of the Bhuvaji set reach it."""

ALIGNABLE = 0.6
"""From this correlation on, thumbnails are brought into register before they are
judged. A crop of a few pixels or a turn by a degree costs a copy more than a
neighbouring slice differs."""

# Files with equal hashes that correlate this much count as one: ten thousand
# re-encodings of one picture then cost ten thousand comparisons, not fifty million.
_ALL_BUT_EQUAL = 0.999

# A thumbnail with a smaller standard deviation (in grey levels) is empty: its hash is
# noise. Plain images are copies of each other only when their pixels are equal.
MIN_CONTRAST = 1.0

# A key that more images share than this does not tell them apart. It bounds the
# candidates of one image, whatever is in the folder.
_MAX_BUCKET = 2000

# Neighbouring bits of a hash of a head are correlated, so blocks of neighbours are poor
# keys: on the Bhuvaji set they propose 74 images for each one, shuffled bits 41.
_SHUFFLED_BITS = np.random.default_rng(21).permutation(64)

# Different pictures with one hash that are told apart; as a bound on hostile folders.
_MAX_FIRSTS = 256

_CANDIDATES_PER_BLOCK = 20_000_000
_PAIRS_PER_BLOCK = 2048
# What the first and the second step do not bring as far as this is another picture.
# Copies of the Bhuvaji set reach 0.955 and 0.983, nine tenths of the others end here.
_HOPELESS = (0.93, 0.965)

# Detail is what remains between these two blurs, in pixels (standard deviations): below
# lie noise and the traces of JPEG, above what all slices of a head have in common.
_FINEST_PX = 1.5
_COARSEST_PX = 4.0
_WINDOW_PX = 4.0

# Share of the windows that may be less alike than `NearDuplicate.detail` says: letters
# and frames cover few of them.
_COVERED = 0.3


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show one picture, or neighbouring slices of one head."""

    a: int
    """Position; less than `b`."""

    b: int

    correlation: float
    """Correlation of the two, `a` turned and, where needed, in register."""

    orientation: int
    """Turn of `a`: an index into `ORIENTATIONS`."""

    detail: float
    """Similarity of detail: the correlation, in small windows and after a blur is taken
    away, that 70 % of the windows exceed. From `SAME_DETAIL` on, both show one
    picture."""

    is_settled: bool = False
    """`b` has the hash of `a` and is so similar that it was compared with no other
    image: its other duplicates are those of `a`."""


def make_thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3) as a grey square (64, 64), squashed."""
    # Of Pillow's filters, the bilinear one keeps a resized copy most like its original
    # (half size: 0.999, with box 0.977) because it averages over more than one pixel.
    grey = Image.fromarray(image).convert("L")
    return np.asarray(
        grey.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    )


def find_near_duplicates(thumbnails: NDArray[np.uint8]) -> list[NearDuplicate]:
    """Return the pairs of thumbnails that show one picture or one head.

    These are the pairs with `SAME_DETAIL`, and those that are `ALIKE` without it.

    Plain and nearly plain images are left out: any two of them are alike. Of many
    images with one hash that are all but equal, each is paired with the first only
    (`is_settled`).

    Args:
        thumbnails: As from `make_thumbnail`, shape (N, 64, 64).

    Returns:
        The pairs, sorted by their positions.
    """
    contrasts = thumbnails.std(axis=(1, 2))
    (shown,) = np.nonzero(contrasts >= MIN_CONTRAST)
    if len(shown) < 2:
        return []
    hashes = hash_thumbnails(thumbnails[shown])
    settled = [
        NearDuplicate(
            int(shown[a]), int(shown[b]), correlation, 0, detail, is_settled=True
        )
        for a, b, correlation, detail in _settle_equal_hashes(
            thumbnails[shown], hashes[0]
        )
    ]
    is_open = ~np.isin(shown, [pair.b for pair in settled])
    kept = shown[is_open]
    confirmed = [
        NearDuplicate(int(kept[a]), int(kept[b]), correlation, orientation, detail)
        for a, b, correlation, orientation, detail in _confirmed(
            thumbnails[kept], propose_pairs(hashes[:, is_open])
        )
    ]
    return sorted(settled + confirmed, key=lambda pair: (pair.a, pair.b))


def turned(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return images (..., H, W) turned by `ORIENTATIONS[orientation]`."""
    image = np.rot90(image, orientation % 4, axes=(-2, -1))
    return image[..., ::-1] if orientation >= 4 else image


def hash_thumbnails(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the perceptual hashes of thumbnails in eight orientations.

    One bit for each of the 8 x 8 lowest frequencies of the cosine transform of the
    image at 32 x 32: whether it is above their median. Turning an image changes only
    signs and order of its frequencies, so that one transform serves eight hashes.
    `imagehash.phash` of the turned image gives the same, 200 times slower: 26,000
    calls for the Bhuvaji set, a fifth of the time limit of its whole audit.

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


def similarity(
    moving: NDArray[np.uint8], fixed: NDArray[np.uint8]
) -> tuple[float, float]:
    """Return how alike two thumbnails are that are turned the same way.

    Args:
        moving: Shape (64, 64). It is brought into register where it is no copy as it
            is.
        fixed: Shape (64, 64).

    Returns:
        `NearDuplicate.correlation` and `NearDuplicate.detail`. The second is 0 for
        images that cannot be brought into register.
    """
    correlation, detail = (
        _rounded((_unit(moving[None]) @ _unit(fixed[None]).T)[0, 0]),
        0.0,
    )
    if correlation >= ALIKE:
        detail = _detail(moving, fixed)
    if detail < SAME_DETAIL:
        warped = _in_register(moving, fixed)
        if warped is not None:
            correlation = max(correlation, _correlation(warped, fixed))
            detail = max(detail, _detail(warped, fixed))
    return correlation, detail


def propose_pairs(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the pairs of images whose hashes agree in some orientation.

    Each hash is cut into blocks, and two images are compared when they agree in any
    two blocks, so that the number of comparisons grows with the number of images and
    not with its square. Up to 20,000 images, no pair within `MAX_HASH_BITS` is missed.
    Above, fewer and longer blocks are used: all pairs within 4 bits are still found,
    and some 95 % of those with 6 bits up to 200,000 images, 70 % above.

    The look-up is a product of two sparse matrices (image x key, key x image). It
    takes 22 s of one core for 8 x 1,000,000 hashes and grows by 10 to 11 for ten times
    as many; faiss' IndexBinaryMultiHash at its best takes 208 s and grows by 24 to 29
    (`benchmarks/copies.py`).

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
    a, b, orientations = _agreeing(hashes, hashes[0])
    rows = np.where(
        a < b, (a, b, orientations), (b, a, np.array(UNDOING)[orientations])
    )  # (3, M)
    return np.unique(rows[:, a != b].T, axis=0)


def propose_matches(
    hashes: NDArray[np.uint64], known: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return which images have a hash near one of the known hashes.

    Args:
        hashes: Hashes of the images in eight orientations, shape (8, N).
        known: Shape (M,), of pictures as they were.

    Returns:
        Rows of (image, known, orientation), shape (L, 3), sorted.
    """
    return np.unique(_agreeing(hashes, known).T, axis=0)


def _agreeing(
    hashes: NDArray[np.uint64], known: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return image, known hash and orientation where the two agree, shape (3, L)."""
    num = len(known)
    num_blocks = 8 if num <= 20_000 else 7 if num <= 200_000 else 6
    found = [np.empty((3, 0), np.int64)]
    images = _keys(known, num_blocks)
    sizes = np.bincount(images.indices, minlength=images.shape[1]).astype(np.int32)
    by_key = _without_keys(images, sizes > _MAX_BUCKET).T.tocsr()
    sizes[sizes > _MAX_BUCKET] = 0
    del images
    for orientation, turned_hashes in enumerate(hashes):
        queries = _keys(turned_hashes, num_blocks)
        costs = sizes[queries.indices].reshape(len(turned_hashes), -1)
        for start, stop in _blocks(costs.sum(axis=1, dtype=np.int64)):
            agreeing = (queries[start:stop] @ by_key).tocoo()
            a, b = agreeing.row.astype(np.int64) + start, agreeing.col.astype(np.int64)
            num_bits = np.bitwise_count(turned_hashes[a] ^ known[b])
            near = num_bits <= MAX_HASH_BITS
            of = np.full(int(near.sum()), orientation)
            found.append(np.stack([a[near], b[near], of]))
    return np.concatenate(found, axis=1)


def _settle_equal_hashes(
    thumbnails: NDArray[np.uint8], hashes: NDArray[np.uint64]
) -> Iterator[tuple[int, int, float, float]]:
    """Yield (a, b, correlation, detail) where b has the hash of a and is its copy."""
    buckets: dict[int, list[int]] = defaultdict(list)
    for number, value in enumerate(hashes.tolist()):
        buckets[value].append(number)
    for bucket in buckets.values():
        firsts = bucket[:1]
        units = _unit(thumbnails[firsts])
        for number in bucket[1:]:
            unit = _unit(thumbnails[[number]])
            correlation = units @ unit[0]
            best = int(correlation.argmax())
            detail = 0.0
            if correlation[best] >= _ALL_BUT_EQUAL:
                detail = _detail(thumbnails[firsts[best]], thumbnails[number])
            if detail >= SAME_DETAIL:
                yield firsts[best], number, _rounded(correlation[best]), detail
            elif len(firsts) < _MAX_FIRSTS:
                firsts.append(number)
                units = np.concatenate([units, unit])


def _confirmed(
    thumbnails: NDArray[np.uint8], proposed: NDArray[np.int64]
) -> Iterator[tuple[int, int, float, int, float]]:
    """Yield (a, b, correlation, orientation, detail) of the pairs that are alike."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for orientation in range(len(ORIENTATIONS)):
        pairs = proposed[proposed[:, 2] == orientation, :2]
        for start in range(0, len(pairs), _PAIRS_PER_BLOCK):
            a, b = pairs[start : start + _PAIRS_PER_BLOCK].T
            units = _unit(turned(thumbnails[a], orientation)), _unit(thumbnails[b])
            for one, other, value in zip(
                a.tolist(), b.tolist(), np.einsum("ij,ij->i", *units), strict=True
            ):
                correlation = _rounded(value)
                if correlation > best.get((one, other), (ALIGNABLE, 0))[0]:
                    best[one, other] = correlation, orientation
    for (one, other), (_, orientation) in best.items():
        moving, fixed = turned(thumbnails[one], orientation), thumbnails[other]
        correlation, detail = similarity(moving, fixed)
        if detail >= SAME_DETAIL or correlation >= ALIKE:
            yield one, other, correlation, orientation, detail


def _in_register(
    thumbnail: NDArray[np.uint8], fixed: NDArray[np.uint8]
) -> NDArray[np.float64] | None:
    """Return a thumbnail after the best small affine change; `None` without one."""
    target = fixed.astype(np.float64)[INNER].ravel()
    if target.std() == 0:
        return None
    moving = Moving(thumbnail)
    best, best_moved = 0.0, None
    for step in range(NUM_STEPS):
        if step == NUM_LINEAR_STEPS:
            moving.refine()
            best = 0.0
        moved = moving.moved()
        now = moved[INNER].ravel()
        if now.std() == 0:
            break
        correlation = float(np.corrcoef(now, target)[0, 1])
        gained = correlation - best
        if gained > 0:
            best, best_moved = correlation, moved
        if 0 < step < NUM_LINEAR_STEPS and best < _HOPELESS[step - 1]:
            return None
        if step > NUM_LINEAR_STEPS and gained < 1e-4:
            break
        rows = slopes(moved)
        # Least squares; `lstsq` takes fifty times as long. The small diagonal is for
        # images with slopes in one direction only.
        squares = rows @ rows.T + 1e-3 * np.eye(len(rows))
        if not moving.step(np.linalg.solve(squares, rows @ target)):
            break
    return best_moved


def _correlation(
    one: NDArray[np.float64], other: NDArray[np.uint8] | NDArray[np.float64]
) -> float:
    pair = np.corrcoef(one[INNER].ravel(), other[INNER].ravel())
    return _rounded(pair[0, 1])


def _detail(
    one: NDArray[np.uint8] | NDArray[np.float64], other: NDArray[np.uint8]
) -> float:
    """Return `NearDuplicate.detail` of two thumbnails in register, in [-1, 1].

    Grey values of `one` are first mapped to those of `other` by the best cubic, so that
    brightness, contrast and gamma do not count. Windows with little detail are left
    out; 0 if that leaves none.
    """
    fixed = other.astype(np.float64)
    a = _band(_in_tones_of(one.astype(np.float64) / 255, fixed))
    b = _band(fixed)
    power_a, power_b, shared = (
        ndimage.gaussian_filter(product, _WINDOW_PX, truncate=3)[INNER]
        for product in (a * a, b * b, a * b)
    )
    lowest = 0.25 * power_a.mean(), 0.25 * power_b.mean()
    shown = (power_a > lowest[0]) & (power_b > lowest[1])
    if not shown.any():
        return 0.0
    similarity = shared[shown] / np.sqrt(power_a[shown] * power_b[shown])
    return round(float(np.quantile(similarity, _COVERED)), 6)


def _in_tones_of(
    values: NDArray[np.float64], fixed: NDArray[np.float64]
) -> NDArray[np.float64]:
    powers = np.stack([values**power for power in range(4)])  # (4, H, W)
    inner = powers[:, *INNER].reshape(4, -1)
    squares = inner @ inner.T + 1e-6 * np.eye(4)
    factors = np.linalg.solve(squares, inner @ fixed[INNER].ravel())
    return np.tensordot(factors, powers, axes=1)


def _band(image: NDArray[np.float64]) -> NDArray[np.float64]:
    fine, coarse = (
        ndimage.gaussian_filter(image, blur, truncate=3)
        for blur in (_FINEST_PX, _COARSEST_PX)
    )
    return np.asarray(fine - coarse)


def _bits_to_int(frequencies: NDArray[np.float64]) -> NDArray[np.uint64]:
    flat = frequencies.reshape(len(frequencies), 64)
    bits = flat > np.median(flat, axis=1, keepdims=True)
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return packed.astype(np.uint64)


def _keys(hashes: NDArray[np.uint64], num_blocks: int) -> sparse.csr_matrix:
    """Return a sparse (N, keys) matrix: one key for each two blocks of each hash."""
    bits_of_blocks = np.array_split(_SHUFFLED_BITS, num_blocks)
    widths = [len(bits) for bits in bits_of_blocks]
    blocks = [_gathered(hashes, bits) for bits in bits_of_blocks]
    columns, first_key = [], 0
    for one, other in combinations(range(num_blocks), 2):
        columns.append(first_key + (blocks[one] << widths[other]) + blocks[other])
        first_key += 1 << (widths[one] + widths[other])
    keys = np.stack(columns, axis=1).astype(np.int32)
    starts = np.arange(0, keys.size + 1, len(columns), dtype=np.int32)
    return sparse.csr_matrix(
        (np.ones(keys.size, np.int8), keys.ravel(), starts), (len(hashes), first_key)
    )


def _gathered(hashes: NDArray[np.uint64], bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the given bits of each hash, pushed together into one number."""
    numbers = np.zeros(len(hashes), np.int64)
    for bit in bits.tolist():
        numbers = (numbers << 1) | ((hashes >> np.uint64(bit)) & np.uint64(1)).astype(
            np.int64
        )
    return numbers


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


def _rounded(correlation: float) -> float:
    # A picture that is its own mirror image must be "same", not whichever of the two
    # comes out larger in the eighth digit.
    return round(min(1.0, float(correlation)), 6)


def _unit(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images (N, H, W) as vectors (N, H * W) of mean 0 and length 1."""
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat
