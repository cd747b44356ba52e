"""How the search for near copies grows with the number of images.

    python benchmarks/copies.py [--sizes 10000 100000 1000000] [--faiss]

Random hashes of 64 bits in eight orientations stand for the images. One in a hundred
gets a planted partner whose hash differs in 0, 2, 4 or 6 bits from one of its own
orientations (ImageHash's hashes of real copies differ by even numbers: half of their
bits are always set). For each size it prints the CPU seconds that `propose_pairs` takes
on its one core, how much longer that is than for the size before, beside what n log n
would allow, peak memory, and the share of the planted pairs that was found, by bits of
difference.

`--faiss` adds faiss' multi-index hash (IndexBinaryMultiHash with 3 x 21 bits and one
bit flipped, its fastest setting that finds all within 4 bits, as ours does), on one
core, queried with 20,000 of the hashes and extrapolated.

A figure for random hashes is the best case: hashes of heads resemble each other, so
that each is compared with some 40 of the 2,870 pictures of the Bhuvaji set instead of
one. People get a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.near_duplicates import MAX_HASH_BITS, ORIENTATIONS, propose_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

PLANTED_BITS = (0, 2, 4, 6)
PLANTED_SHARE = 0.01
NUM_QUERIES = 20_000


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--faiss", action="store_true", help="compare with faiss")
    args = parser.parse_args()

    recalls = "".join(f"  recall {bits} bits" for bits in PLANTED_BITS)
    print(f"{'hashes':>10}  seconds  growth  n log n  peak GiB{recalls}")
    rows: list[dict[str, Any]] = []
    for num in args.sizes:
        rows.append(measure(num, seed=args.seed))
        print(_line(rows), flush=True)
    if args.faiss:
        for row in rows:
            row["faiss_seconds"] = measure_faiss(row["num"], seed=args.seed)
            print(
                f"{row['num']:>10,}  {row['faiss_seconds']:.1f} s with faiss, "
                f"{row['faiss_seconds'] / row['seconds']:.1f} times as long"
            )
    print(json.dumps(rows))


def measure(num: int, *, seed: int) -> dict[str, Any]:
    """Return seconds, memory and recall of the search among `num` hashes."""
    hashes, planted = make_hashes(num, seed=seed)
    started = time.process_time()
    pairs = propose_pairs(hashes)
    seconds = time.process_time() - started
    found = set(map(tuple, pairs.tolist()))
    return {
        "num": num,
        "seconds": seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "num_pairs": len(pairs),
        "recall": {
            bits: sum(pair in found for pair in pairs) / len(pairs)
            for bits, pairs in planted.items()
        },
    }


def measure_faiss(num: int, *, seed: int) -> float:
    """Return the seconds that faiss would take, from a sample of the queries."""
    import faiss

    faiss.omp_set_num_threads(1)
    hashes, _ = make_hashes(num, seed=seed)
    as_bytes = np.ascontiguousarray(hashes).view(np.uint8).reshape(8, num, 8)
    started = time.process_time()
    index = faiss.IndexBinaryMultiHash(64, 3, 21)
    index.nflip = 1
    index.add(as_bytes[0])
    built = time.process_time() - started
    queries = as_bytes[1, :NUM_QUERIES]
    started = time.process_time()
    index.range_search(queries, MAX_HASH_BITS + 1)
    took = time.process_time() - started
    return built + took * len(ORIENTATIONS) * num / len(queries)


def make_hashes(
    num: int, *, seed: int
) -> tuple[NDArray[np.uint64], dict[int, list[tuple[int, int, int]]]]:
    """Return random hashes (8, N) and the planted rows of `propose_pairs` by bits."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (len(ORIENTATIONS), num), dtype=np.uint64)
    partners = rng.permutation(num)[: 2 * int(num * PLANTED_SHARE / 2)].reshape(-1, 2)
    planted: dict[int, list[tuple[int, int, int]]] = {b: [] for b in PLANTED_BITS}
    for number, (a, b) in enumerate(np.sort(partners, axis=1).tolist()):
        bits = PLANTED_BITS[number % len(PLANTED_BITS)]
        orientation = number // len(PLANTED_BITS) % len(ORIENTATIONS)
        changed = sum(1 << int(bit) for bit in rng.permutation(64)[:bits])
        hashes[0, b] = hashes[orientation, a] ^ np.uint64(changed)
        planted[bits].append((a, b, orientation))
    return hashes, planted


def _line(rows: list[dict[str, Any]]) -> str:
    row = rows[-1]
    growth = allowed = ""
    if len(rows) > 1:
        before = rows[-2]
        growth = f"{row['seconds'] / before['seconds']:.1f}"
        sizes = [one["num"] * math.log(one["num"]) for one in (row, before)]
        allowed = f"{sizes[0] / sizes[1]:.1f}"
    recalls = "".join(f"  {recall:>13.1%}" for recall in row["recall"].values())
    return (
        f"{row['num']:>10,}  {row['seconds']:>7.1f}  {growth:>6}  {allowed:>7}  "
        f"{row['peak_gib']:>8.2f}{recalls}"
    )


if __name__ == "__main__":
    main()
