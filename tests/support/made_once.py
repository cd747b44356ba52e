"""What is expensive is made once in a run of the tests, also by several processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """Return a folder that the first process to come fills, and the others read.

    Args:
        factory: pytest's; under pytest-xdist each process has a folder of its own, and
            the folder above it is the one that they share.
        name: Name of the folder, the same in every process.
        make: Fills the folder, which exists and is empty. It may not start anything
            that must be stopped: the processes end one after the other.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
