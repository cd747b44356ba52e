"""What sketches know of pictures, and what they give away: see docs/seen.md.

    python benchmarks/seen.py [--data DATA] [--patients 8] [--look-up 10000 100000]

Four tables: the pairs of a real set by the pictures and by sketches (with --data);
copies and other pictures of synthetic heads, as in benchmarks/near_duplicates.py; what
decoders that were made from the pictures of other patients draw from sketches; and the
time of looking pictures up.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from near_duplicates import GAPS_MM, NOISES, VIEWS, copies, draw
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from tumorlens.data.duplicates import find_duplicates, group_records
from tumorlens.data.images import read_image
from tumorlens.data.index import read_index
from tumorlens.data.near_duplicates import (
    MAX_HASH_BITS,
    MIN_CONTRAST,
    UNDOING,
    find_near_duplicates,
    hash_thumbnails,
    make_thumbnail,
    propose_pairs,
    turned,
)
from tumorlens.data.registration import INNER
from tumorlens.data.seen import Pictures, Seen, read_seen
from tumorlens.data.sketch import SAME_HEAD, make_sketches, similarities
from tumorlens.text import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tumorlens.data.index import Index


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--look-up", type=int, nargs=2, default=(10_000, 100_000))
    options = parser.parse_args()
    if options.data:
        index = read_index(options.data)
        thumbnails, groups = read_thumbnails(index)
        print_pairs(thumbnails)
        print_decoders(thumbnails, groups)
        print_look_up(index, thumbnails, *options.look_up)
    print_families(options.patients)


def read_thumbnails(index: Index) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the thumbnails of the distinct pictures, and the group of each."""
    found = find_duplicates(index)
    first = {found.pixels[path]: path for path in sorted(found.pixels, reverse=True)}
    paths = [path for path in first.values() if not found.facts[path].is_plain]
    group_of = group_records(index, found)
    return (
        np.stack([found.thumbnails[path] for path in paths]),
        [group_of[path] for path in paths],
    )


def print_pairs(thumbnails: NDArray[np.uint8]) -> None:
    """Print how sketches judge the pairs of the search, and others with like hashes."""
    kept = thumbnails[thumbnails.std(axis=(1, 2)) >= MIN_CONTRAST]
    sketches = make_sketches(kept)
    found = find_near_duplicates(kept)
    # The search compares each of many copies of one picture with the first only.
    a, b = np.array([(pair.a, pair.b) for pair in found]).T
    graph = sparse.coo_matrix((np.ones(len(a)), (a, b)), (len(kept),) * 2)
    group = csgraph.connected_components(graph, directed=False)[1]
    pairs = [(pair.a, pair.b, pair.orientation) for pair in found]
    others = [
        (a, b, turn)
        for a, b, turn in propose_pairs(hash_thumbnails(kept)).tolist()
        if group[a] != group[b]
    ]
    print("\n| pairs whose hashes agree | both ways | known | estimates |")
    print("|---|---|---|---|")
    for name, lot, end in (
        ("copies, and slices of one head", pairs, min),
        ("others", others, max),
    ):
        estimates = [
            similarities(turned(kept[one], way), sketches[[other]])[0]
            for a, b, turn in lot
            for one, other, way in ((a, b, turn), (b, a, UNDOING[turn]))
        ]
        known = sum(estimate >= SAME_HEAD for estimate in estimates)
        words = f"{end(estimates):.4f} and {'more' if end is min else 'less'}"
        print(f"| {name} | {len(estimates):,} | {known:,} | {words} |")


def print_families(num_patients: int) -> None:
    """Print the share of synthetic pairs known by the pictures and by sketches."""
    shares: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for number in range(num_patients):
        for view in VIEWS:
            for noise in NOISES:
                image = draw(number, view, 0, noise)
                for family, changes in copies().items():
                    for change in changes.values():
                        shares[family].append(_judged(image, change(image)))
                for gap in GAPS_MM:
                    other = draw(number, view, gap, noise)
                    shares[f"slices {gap:g} mm apart"].append(_judged(image, other))
                if number:
                    other = draw(number - 1, view, 0, noise, place_of=number)
                    shares["two patients, 0 mm apart"].append(_judged(image, other))
    print("\n| synthetic heads | pairs | known by the pictures | by the sketch |")
    print("|---|---|---|---|")
    for family, judged in shares.items():
        by_pictures, by_sketch = (
            100 * np.mean(one) for one in zip(*judged, strict=True)
        )
        print(f"| {family} | {len(judged)} | {by_pictures:.0f} % | {by_sketch:.0f} % |")


def _judged(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[bool, bool]:
    thumbnails = np.stack([make_thumbnail(one), make_thumbnail(other)])
    hashes = hash_thumbnails(thumbnails)
    bits = np.bitwise_count(hashes[:, 0] ^ hashes[0, 1])
    estimate = 0.0
    if bits.min() <= MAX_HASH_BITS:
        moving = turned(thumbnails[0], int(bits.argmin()))
        estimate = similarities(moving, make_sketches(thumbnails[1:]))[0]
    return bool(find_near_duplicates(thumbnails)), estimate >= SAME_HEAD


def print_decoders(thumbnails: NDArray[np.uint8], groups: list[str]) -> None:
    """Print how like the pictures is what decoders draw from sketches and hashes.

    They are made from two thirds of the groups and draw the pictures of the others.
    """
    rng = np.random.default_rng(0)
    names = rng.permutation(sorted(set(groups)))
    is_test = np.isin(groups, names[: len(names) // 3])
    pictures = _unit(thumbnails[:, *INNER].reshape(len(thumbnails), -1))
    sketches = make_sketches(thumbnails).astype(np.float64)
    sketches /= np.linalg.norm(sketches, axis=1, keepdims=True)
    hashes = hash_thumbnails(thumbnails)[0]
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1) / 64 - 1 / 128
    known = np.concatenate([sketches, bits], axis=1)
    truth, others = pictures[is_test], pictures[~is_test]
    drawn = {
        "ridge regression": Ridge(alpha=1e-3).fit(known[~is_test], others),
        "kernel ridge regression": KernelRidge(alpha=1e-2, kernel="rbf", gamma=2.0).fit(
            known[~is_test], others
        ),
    }
    rows = {name: model.predict(known[is_test]) for name, model in drawn.items()}
    rows["no sketch: the mean picture"] = np.tile(others.mean(axis=0), (len(truth), 1))
    nearest = (truth @ others.T).argmax(axis=1)
    rows["the most similar picture of another patient"] = others[nearest]
    print(
        f"\n| drawn from the sketches of {len(truth):,} pictures | correlation "
        "with the picture | with its detail |"
    )
    print("|---|---|---|")
    for name, found in rows.items():
        whole = _correlations(found, truth)
        detail = _correlations(_detail(found), _detail(truth))
        cells = (f"{np.median(one):.2f} ({_spread(one)})" for one in (whole, detail))
        print(f"| {name} | {' | '.join(cells)} |")


def print_look_up(
    index: Index, thumbnails: NDArray[np.uint8], num: int, num_seen: int
) -> None:
    """Print what looking up costs, beside decoding the images.

    The seen pictures are those of the set and mixtures of two of them, so that their
    hashes are as alike as those of heads are.
    """
    rng = np.random.default_rng(1)

    def mixed(count: int) -> NDArray[np.uint8]:
        first, second = rng.integers(len(thumbnails), size=(2, count))
        share = rng.uniform(0.3, 0.7, (count, 1, 1))
        both = share * thumbnails[first] + (1 - share) * thumbnails[second]
        return np.asarray(both, np.uint8)

    pictures = np.concatenate([thumbnails, mixed(num_seen - len(thumbnails))])
    seen = Seen(
        classes=("a", "b"),
        hashes=np.concatenate(
            [hash_thumbnails(lot)[0] for lot in np.array_split(pictures, 20)]
        ),
        sketches=np.concatenate(
            [make_sketches(lot) for lot in np.array_split(pictures, 20)]
        ),
        pixels=rng.integers(0, 256, (num_seen, 16), dtype=np.uint8),
        labels=np.zeros(num_seen, np.int16),
        patient_of=np.full(num_seen, -1, np.int32),
        patients=np.empty((0, 16), np.uint8),
        salt=b"0" * 16,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seen.npz"
        seen.write(path)
        num_bytes = path.stat().st_size
        seen = read_seen(path)
    queries = Pictures(mixed(num), [f"{number:x}" for number in range(num)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    found = seen.look_up(queries)
    look_up_s = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    start = time.process_time()
    files = [index.file_of(record) for record in index.records][:1000]
    for file in files:
        read_image(file)
    decode_s = (time.process_time() - start) * num / len(files)
    print(
        f"\nLooking up {counted(num, 'image')} in {num_seen:,} (file of "
        f"{num_bytes / num_seen:.0f} bytes a picture): {look_up_s:.1f} s of processor "
        f"time, {grown:.0f} MiB more; decoding as many takes {decode_s:.1f} s. "
        f"{int(found.is_seen.sum()):,} found."
    )


def _unit(rows: NDArray[np.floating] | NDArray[np.uint8]) -> NDArray[np.float64]:
    centred = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(lengths, 1e-9))


def _correlations(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.asarray((_unit(one) * _unit(other)).sum(axis=1))


def _detail(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is finer than the large shapes that all heads share."""
    side = round(rows.shape[1] ** 0.5)
    fine = [
        ndimage.gaussian_filter(row, 0.8) - ndimage.gaussian_filter(row, 2.5)
        for row in rows.reshape(-1, side, side)
    ]
    return np.array(fine).reshape(rows.shape)


def _spread(values: NDArray[np.float64]) -> str:
    low, high = np.quantile(values, (0.05, 0.95))
    return f"{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
