"""Paths from the user -> the image files behind them, one after the other.

Folders are walked as the files are needed: for a tree of any size, memory holds only
the names in the folders on the way to the current file. No file is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.images import SUFFIXES
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


def walk_images(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are, and for folders the images below them, sorted.

    In a folder, images are recognised by their suffix, hidden names are skipped, and
    links to folders are not followed. A broken link, a pipe, a socket or a device is
    yielded like a file: reading it reports the fault. A file that is named itself is
    yielded whatever its suffix. Before the first file, every path is checked to exist
    and every folder to contain an image.

    Raises:
        DataError: A path does not exist, a folder has no image below it, or a folder
            cannot be read.
    """
    named = tuple(paths)
    for path in named:
        _check(path)
    return _walk(named)


def count_images(paths: Iterable[Path]) -> int:
    """Return the number of files that `walk_images` yields, without keeping them.

    Raises:
        DataError: See `walk_images`.
    """
    return sum(1 for _ in walk_images(paths))


def _check(path: Path) -> None:
    if is_folder(path):
        if next(_below(path), None) is None:
            raise DataError(
                f"there is no image in the folder {path}",
                hint=f"images end in {', '.join(sorted(SUFFIXES))}; name a file "
                "itself if it ends otherwise",
            )
    elif not may_exist(path):
        raise DataError(
            f"no such file or folder: {path}", hint="check the path's spelling"
        )


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder, as far as one can see."""
    try:
        return path.is_dir()
    except OSError:  # below a locked folder, or a link into one: reading reports it
        return False


def may_exist(path: Path) -> bool:
    """Return whether a path exists, as far as one can see: reading reports the rest."""
    try:
        return path.exists()
    except OSError:  # below a locked folder
        return True


def _walk(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if is_folder(path):
            yield from _below(path)
        else:
            yield path


def _below(folder: Path) -> Iterator[Path]:
    return files_below(folder, lambda path: path.suffix.lower() in SUFFIXES)


def files_below(folder: Path, is_wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the files below a folder that pass a test, sorted, without hidden names.

    Args:
        folder: Walked as the files are needed.
        is_wanted: The test. It is called before links to folders are sorted out, so a
            path may also be one of those, a broken link or a pipe.

    Raises:
        DataError: A folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            # Names and no more: 100,000 entries of the system would be 30 MB.
            names = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        raise DataError(
            f"cannot read the folder {folder}: {error.strerror or error}",
            hint="check its permissions",
        ) from error
    for name, is_inner in names:
        path = folder / name
        if is_inner:
            yield from files_below(path, is_wanted)
        elif is_wanted(path) and not is_folder(path):
            yield path
