"""The machine and this process: its record, its signals, its memory, its rank."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tumorlens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Names and values from glibc's malloc.h; the values are the largest it accepts.
_M_TRIM_THRESHOLD, _NEVER_TRIM = -1, 2**31 - 1
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 2**30

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pydicom"),
    *("onnxruntime", "openvino"),
)


def describe_environment(*, command: str, seed: int) -> dict[str, Any]:
    """Return what is needed to repeat a run: versions, machine, seed and command.

    Nothing here names a user or a host: the record travels with the run.

    Args:
        command: What the user typed.
        seed: The seed of the run.

    Returns:
        JSON-ready values: `tumorlens`, `commit` (of a source checkout, else `None`),
        `python`, `platform`, `cpu_count`, `packages`, `seed` and `command`.
    """
    return {
        "tumorlens": tumorlens.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "seed": seed,
        "command": command,
    }


def processor_name() -> str:
    """Return what the processor calls itself, or its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def is_main_process() -> bool:
    """Return whether this process should print: under torchrun, that of rank 0."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag while the body runs.

    A second signal of the same kind has its usual effect, so that nobody has to wait.
    Outside the main thread, where Python allows no signal handlers, the flag stays
    down.

    Yields:
        Tells whether a signal came.

    Example:
        >>> with interruptible() as is_interrupted:
        ...     signal.raise_signal(signal.SIGINT)
        ...     is_interrupted()
        True
    """
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return

    def on_signal(number: int, _frame: object) -> None:
        flag.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield flag.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_freed_memory() -> bool:
    """Let this process keep its freed memory until it ends.

    A training step, like an inference call of torch, frees and allocates the same large
    blocks again and again. By default glibc returns each to the system and gets it back
    filled with zeros page by page, which costs most for single images
    (docs/performance.md). Results don't change. The setting is process-wide, so only
    our commands call this; library code must not.

    Returns:
        Whether the C library accepted it: false unless it is glibc.

    Source:
        mallopt(3) of the Linux manual.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_TRIM_THRESHOLD, _NEVER_TRIM), (_M_MMAP_THRESHOLD, _LARGE_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    source = Path(tumorlens.__file__).parents[2]
    if not (source / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
