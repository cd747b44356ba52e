"""Paths from the user -> the image files behind them, one after the other.

Folders are walked as the files are needed: for a tree of any size, memory holds only
the names in the folders on the way to the current file. A file is opened only if its
suffix does not say what it is. What is passed over is counted by its kind.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.images import SUFFIXES, is_image_file
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


def walk_images(
    paths: Iterable[Path], *, skipped: Counter[str] | None = None
) -> Iterator[Path]:
    """Yield files as they are, and for folders the images below them, sorted.

    In a folder, an image is what `images.is_image_file` says: a file with a usual
    suffix, or one that begins as an image. Hidden names are passed over, and links to
    folders are not followed. A broken link, a pipe, a socket or a device with the
    suffix of an image is yielded like a file: reading it reports the fault. A file that
    is named itself is yielded whatever it is. Before the first file, every path is
    checked to exist and every folder to contain an image.

    Args:
        paths: Files and folders.
        skipped: Counts what is passed over in folders, by its kind: see `described`.

    Raises:
        DataError: A path does not exist, a folder has no image below it, or a folder
            cannot be read.
    """
    named = tuple(paths)
    for path in named:
        _check(path)
    return _walk(named, skipped)


def count_images(paths: Iterable[Path]) -> int:
    """Return the number of files that `walk_images` yields, without keeping them.

    Raises:
        DataError: See `walk_images`.
    """
    return sum(1 for _ in walk_images(paths))


def described(skipped: Mapping[str, int]) -> str:
    """Return the skipped files in words.

    Example:
        >>> described({"SR": 2, ".webp": 1})
        '1 x .webp, 2 x SR'
    """
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(skipped.items()))


def kind_of(path: Path) -> str:
    """Return the kind under which a file that is no image is counted: its suffix."""
    suffix = path.suffix.lower()
    # Names may hold anything, and an odd suffix would have a count of its own.
    is_plain = suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 8
    return suffix if is_plain else "file of another kind"


def _check(path: Path) -> None:
    if is_folder(path):
        if next(files_below(path, is_image_file), None) is None:
            raise DataError(
                f"there is no image in the folder {path}",
                hint=f"images end in {', '.join(sorted(SUFFIXES))}, or begin as "
                "such a file; links to folders are not followed",
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


def _walk(paths: Sequence[Path], skipped: Counter[str] | None) -> Iterator[Path]:
    for path in paths:
        if is_folder(path):
            yield from files_below(path, is_image_file, skipped=skipped)
        else:
            yield path


def files_below(
    folder: Path,
    is_wanted: Callable[[Path], bool],
    *,
    skipped: Counter[str] | None = None,
) -> Iterator[Path]:
    """Yield the files below a folder that pass a test, sorted, without hidden names.

    Args:
        folder: Walked as the files are needed.
        is_wanted: The test. A path may also be a broken link or a pipe.
        skipped: Counts the others by their kind, and links to folders.

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
            yield from files_below(path, is_wanted, skipped=skipped)
        elif not (is_link := is_folder(path)) and is_wanted(path):
            yield path
        elif skipped is not None:
            skipped["link to a folder" if is_link else kind_of(path)] += 1
