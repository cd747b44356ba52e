"""Folders that are expensive to make, made once for all processes of the tests."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """Return a folder that one process fills and all processes read.

    Args:
        factory: Fixture of pytest. Under pytest-xdist each process has a base folder
            of its own; the folder above it is shared.
        name: Name of the folder, the same in every process.
        make: Function that fills the empty folder. It must not start a server: one
            process may end while another still uses it.

    Returns:
        The folder, complete. Tests must not change it.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a failure left
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
