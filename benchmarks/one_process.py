"""Is it fair to time several runtimes in one process, one call each in turn?

Their thread pools spin for a while after a call, and so take processor time from the
next one. Three ways to call the same artefacts, in turn and in a shuffled order:

    together, one call     all in one process, one call each: A B C, A B C, ...
    together, turns        all in one process, turns of some calls after a pause
    apart, turns           a process for each, the same turns: `tumorlens benchmark`

    python benchmarks/one_process.py runs/first/export/{torchscript,onnx,openvino-int8}
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from tumorlens.deploy.artefact import open_artefact
from tumorlens.deploy.benchmark.timing import ratio_by_rounds, take_turns
from tumorlens.deploy.benchmark.worker import NUM_FIRST_CALLS, SETTLE_SECONDS, Worker
from tumorlens.deploy.runtimes import Session, open_session
from tumorlens.system import num_processors

NUM_CALLS = 10
LAST = "apart, turns"


def main() -> None:
    """Print a line for each artefact and way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("artefacts", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        ours, workers = [], []
        for path in options.artefacts:
            artefact = open_artefact(path)
            size = artefact.card.size_px
            rng = np.random.default_rng(0)
            images = rng.integers(0, 256, (64, size, size, 3), dtype=np.uint8)
            file = Path(folder) / f"{size}.npy"
            np.save(file, images)
            worker = stack.enter_context(Worker(path, threads=num_processors()))
            worker.open_session(file)
            workers.append(worker)
            ours.append(Ours(open_session(artefact), images))
        # Each way makes a whole round of its own, so that a call follows one of the
        # same way.
        ways: dict[str, Callable[[int], list[float]]] = {
            "together, one call": partial(in_turn, [one.one for one in ours]),
            "together, turns": partial(in_turn, [one.turn for one in ours]),
            LAST: partial(in_turn, [partial(theirs, one) for one in workers]),
        }
        found = take_turns(
            list(ways.values()),
            seconds=options.seconds,
            min_rounds=20,
            max_rounds=1000,
            shuffle_seed=42,
        )
    times = dict(zip(ways, np.array(found), strict=True))  # way -> (R, artefacts)
    print(f"ms for one image, {len(found[0])} rounds; ratio to {LAST!r}, 5 to 95 %")
    for place, path in enumerate(options.artefacts):
        for way, rounds in times.items():
            seconds = rounds[:, place]
            ratio = ratio_by_rounds(seconds, times[LAST][:, place])
            print(
                f"{path.name:16} {way:20} {1000 * np.median(seconds):8.2f}  "
                f"{ratio.value:.2f} ({ratio.p5:.2f} to {ratio.p95:.2f})"
            )


def in_turn(sides: Sequence[Callable[[], float]], number: int) -> list[float]:
    """Return the seconds of each side; every round has another order."""
    order = np.random.default_rng(number).permutation(len(sides))
    seconds = {place: sides[place]() for place in order.tolist()}
    return [seconds[place] for place in range(len(sides))]


class Ours:
    """A session in this process."""

    def __init__(self, session: Session, images: NDArray[np.uint8]) -> None:
        self._session = session
        self._images = images
        self._next = 0
        self.turn()

    def one(self) -> float:
        """Return the seconds of one call, right after another side's."""
        self._next = (self._next + 1) % len(self._images)
        image = self._images[self._next : self._next + 1]
        start = time.perf_counter()
        self._session(image)
        return time.perf_counter() - start

    def turn(self) -> float:
        """Return the median of a turn's calls."""
        time.sleep(SETTLE_SECONDS)
        seconds = [self.one() for _ in range(NUM_FIRST_CALLS + NUM_CALLS)]
        return statistics.median(seconds[NUM_FIRST_CALLS:])


def theirs(worker: Worker) -> float:
    """Return the median of a turn in another process."""
    return statistics.median(worker.time_calls(batch=1, num_calls=NUM_CALLS))


if __name__ == "__main__":
    main()
