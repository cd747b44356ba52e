"""One artefact in a process of its own, which works when it is its turn.

Runtimes have thread pools that wait by spinning: for a while after a call they take
processor time from the next artefact. So each is called in turns, after a pause. In one
process they would also share a heap, and libraries that configure each other's threads,
and memory could not be attributed. So every artefact that is compared has a process;
all but one sleep. `benchmarks/one_process.py` measures how much each of it matters
(docs/performance.md).

The peak memory of a process is not `ru_maxrss`, which on Linux starts with that of the
parent process; it is read from /proc.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from tumorlens.deploy.artefact import open_artefact
from tumorlens.deploy.benchmark.results import Facts
from tumorlens.deploy.runtimes import open_session
from tumorlens.errors import ArtefactError, DataError
from tumorlens.system import (
    Helper,
    HelperError,
    answer_requests,
    helper_pipes,
    keep_freed_memory,
    num_processors,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tumorlens.deploy.predictor import Predictor
    from tumorlens.deploy.runtimes import Session

SETTLE_SECONDS = 0.01
"""Sleep before each turn, until the threads of the turn before stop spinning."""

TIME_LIMIT_S = 600.0
"""Longest time of one turn. Compiling a large network takes some 60 s."""

NUM_FIRST_CALLS = 2
"""Number of untimed calls: they bring weights back into the processor's caches."""


class Worker:
    """A process that holds one artefact, or a run; closed by `close` or `with`.

    Raises:
        TumorlensError: Any method, with what went wrong in the process.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        self._path = path
        self._threads = threads
        self._helper = Helper(
            "tumorlens.deploy.benchmark.worker", time_limit_s=TIME_LIMIT_S
        )

    def __enter__(self) -> Self:
        """Return the worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def open_session(self, images: Path) -> float:
        """Load the artefact for arrays, and call it once.

        Args:
            images: A .npy file, (M, S, S, 3) of uint8, that later calls draw from.

        Returns:
            Seconds from nothing imported to the first result.
        """
        return float(self._call("open_session", images=str(images))["seconds"])

    def facts(self) -> Facts:
        """Return what the runtime reports of the session.

        To find its precision a runtime may load the graph once more, so read the peak
        memory before.
        """
        return Facts(**self._call("facts"))

    def time_calls(self, *, batch: int, num_calls: int) -> list[float]:
        """Return the seconds of each call; each has other images."""
        answer = self._call("time_calls", batch=batch, num_calls=num_calls)
        return [float(one) for one in answer["seconds"]]

    def open_files(self) -> None:
        """Load the artefact, or a run, for files."""
        self._call("open_files")

    def time_files(self, paths: list[Path]) -> float:
        """Return the seconds from files to their labels."""
        answer = self._call("time_files", paths=[str(path) for path in paths])
        return float(answer["seconds"])

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of the process; `None` if it is not known."""
        peak = self._call("peak_memory")["bytes"]
        return None if peak is None else int(peak)

    def close(self) -> None:
        """End the process."""
        self._helper.close()

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        request = {
            "method": method,
            "path": str(self._path),
            "threads": self._threads,
            **arguments,
        }
        try:
            return self._helper.request(request)[0]
        except HelperError as error:
            raise ArtefactError(
                f"the process that ran {self._path} {error}",
                hint="status -9 mostly means that memory ran out: fewer formats, or a "
                "smaller --batch",
            ) from None


class _Served:
    """State of the process, with a method for each kind of request."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._predictor: Predictor | None = None
        self._images: NDArray[np.uint8] = np.empty((0, 0, 0, 3), np.uint8)
        self._next = 0

    def open_session(self, request: dict[str, Any]) -> dict[str, Any]:
        self._images = np.load(request["images"])
        start = time.perf_counter()
        artefact = open_artefact(Path(request["path"]))
        session = open_session(artefact, threads=request["threads"])
        session(self._images[:1])
        seconds = time.perf_counter() - start
        self._session = session
        return {"seconds": seconds}

    def facts(self, _: dict[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        return {name: getattr(self._session, name) for name in Facts.model_fields}

    def time_calls(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._session is not None
        seconds = []
        time.sleep(SETTLE_SECONDS)
        for number in range(-NUM_FIRST_CALLS, request["num_calls"]):
            images = self._take(request["batch"])
            start = time.perf_counter()
            self._session(images)
            taken = time.perf_counter() - start
            if number >= 0:
                seconds.append(taken)
        return {"seconds": seconds}

    def open_files(self, request: dict[str, Any]) -> dict[str, Any]:
        # Here, so that its imports do not count as memory of an artefact for arrays.
        from tumorlens.deploy.predictor import Predictor

        self._predictor = Predictor.open(Path(request["path"]))
        return {}

    def time_files(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._predictor is not None
        paths = [Path(path) for path in request["paths"]]
        time.sleep(SETTLE_SECONDS)
        list(self._predictor.predict_files(paths[:1]))
        start = time.perf_counter()
        answers = list(self._predictor.predict_files(paths))
        seconds = time.perf_counter() - start
        for answer in answers:
            if answer.error:
                raise DataError(
                    f"{answer.path}: {answer.error}",
                    hint="give --data a folder of readable images",
                )
        return {"seconds": seconds}

    def peak_memory(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"bytes": _peak_memory_bytes()}

    def _take(self, num: int) -> NDArray[np.uint8]:
        places = np.arange(self._next, self._next + num) % len(self._images)
        self._next += num
        return np.ascontiguousarray(self._images[places])


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until the other side closes the pipe."""
    served = _Served()
    # As `predict` does: torch allocates again what it has just freed.
    keep_freed_memory()
    # A collection in the middle of a call would be counted as the runtime's time.
    gc.disable()

    def handle(request: dict[str, Any], _: bytes) -> tuple[dict[str, Any], bytes]:
        _confine(request["threads"])
        method: Callable[[dict[str, Any]], dict[str, Any]] = getattr(
            served, request["method"]
        )
        answer = method(request)
        gc.collect()
        return answer, b""

    answer_requests(handle, requests, answers)


def _confine(threads: int) -> None:
    """Limit this process, decoding included, to a number of processors."""
    if threads < num_processors() and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def _peak_memory_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # no Linux
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    serve(*helper_pipes())
