"""Files are decoded in threads, ahead of the network that waits for them.

Pillow releases Python's lock, so threads are enough. The number of files decoded ahead
is bounded: memory does not grow with the number of files.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits, load_square, without_path
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tumorlens.config import Fit

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class InputSpec:
    """Input of a network: size, fit and channels, as in `images.load_square`."""

    size_px: int
    fit: Fit
    in_chans: int


@dataclass(frozen=True)
class Decoded:
    """A file as input of the networks, or the reason why it cannot be read."""

    path: Path
    squares: Mapping[InputSpec, NDArray[np.uint8]]
    """(S, S, in_chans) for each spec; empty for a file that cannot be read."""
    error: str | None
    """In one line, without the path."""


def decode_ahead(
    paths: Iterable[Path],
    specs: Sequence[InputSpec],
    *,
    num_ahead: int,
    num_threads: int,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Generator[Decoded]:
    """Yield decoded files in their order.

    Args:
        paths: The files. Consumed one at a time, and only when there is room.
        specs: Inputs to make of each file; equal ones are decoded once.
        num_ahead: Maximum number of files that are decoded, or waiting for a thread,
            before the caller takes them.
        num_threads: Number of decoding threads.
        limits: Limits above which a file is refused.

    Raises:
        MissingExtraError: A compressed DICOM file needs the extra `dicom`.
    """
    different = tuple(dict.fromkeys(specs))

    def decode(path: Path) -> Decoded:
        squares = {}
        try:
            for spec in different:
                squares[spec] = load_square(
                    path,
                    size_px=spec.size_px,
                    fit=spec.fit,
                    in_chans=spec.in_chans,
                    limits=limits,
                )
        except DataError as error:
            return Decoded(path, {}, without_path(error, path))
        return Decoded(path, squares, None)

    yield from work_ahead(paths, decode, num_ahead=num_ahead, num_threads=num_threads)


def work_ahead(
    items: Iterable[_Item],
    work: Callable[[_Item], _Result],
    *,
    num_ahead: int,
    num_threads: int,
) -> Generator[_Result]:
    """Yield the results of a function for each item, in order, made in threads.

    Args:
        items: Consumed one at a time, in the thread of the caller, and only when there
            is room.
        work: What it raises ends the generator.
        num_ahead: Maximum number of items that are worked on, or waiting for a thread,
            before the caller takes their results.
        num_threads: Number of threads.
    """
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Also when the consumer stops early: cancel pending work.
        pool.shutdown(cancel_futures=True)
