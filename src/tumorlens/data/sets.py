"""Where the files of an index are: in one set of images, or in several that are pooled.

A set is a folder of class folders or a table beside its images. Of several sets, each
has a name, and the path of a file begins with it: `figshare/glioma/1.png` is the file
`glioma/1.png` of the set `figshare`, wherever that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.errors import DataError
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.config import DataConfig


@dataclass(frozen=True)
class ImageSets:
    """One set of images, or several with their names."""

    places: tuple[Path, ...]
    """Folder or table of each."""

    names: tuple[str, ...] = ()
    """Name of each; empty for a single set, whose paths have no name before them."""

    def __str__(self) -> str:
        """Return the places in words."""
        return " and ".join(map(str, self.places))

    def file_at(self, path: str) -> Path:
        """Return the file that a record names, whether or not it is there.

        Args:
            path: `Record.path`.

        Example:
            >>> sets = ImageSets((Path("/a"), Path("/b")), ("first", "second"))
            >>> sets.file_at("second/glioma/1.png").as_posix()
            '/b/glioma/1.png'
        """
        if not self.names:
            return root_of(self.places[0]) / path
        name, _, inner = path.partition("/")
        known = dict(zip(self.names, self.places, strict=True))
        return root_of(known[name]) / inner if name in known else Path(path)


def pooled(places: Sequence[Path], names: Sequence[str] | None = None) -> ImageSets:
    """Return sets of images with their names.

    Args:
        places: Folders or tables. A single one has no name.
        names: As many names; `None` takes those of the folders.

    Raises:
        ConfigError: A place is named twice.
    """
    if len(places) == 1:
        return ImageSets(tuple(places))
    # Not at the top: an artefact answers without the settings, which load pydantic.
    from tumorlens.config import set_names

    return ImageSets(tuple(places), tuple(names or set_names(places)))


def sets_of(
    config: DataConfig, moved: Path | Sequence[Path] | None = None
) -> ImageSets | None:
    """Return the sets of images of some settings; `None` if they name none.

    Args:
        config: The settings. Names in them hold for sets that were moved, too.
        moved: Where the sets are now, in the order of `data.path`; `None` takes
            `data.path`.

    Raises:
        ConfigError: A place is named twice.
        DataError: There are more or fewer places than sets.
    """
    path = config.path if isinstance(config.path, list | None) else [config.path]
    if moved is None:
        return None if path is None else pooled([*map(Path, path)], config.names)
    places = [moved] if isinstance(moved, Path) else [*moved]
    if path is not None and len(places) != len(path):
        names = pooled([*map(Path, path)], config.names).names
        raise DataError(
            f"expected {counted(len(path), 'set')} of images"
            + (f" ({', '.join(names)})" if names else "")
            + f", got {len(places)}: {', '.join(map(str, places))}",
            hint="give --data once for each set, in this order"
            if names
            else "give --data once",
        )
    return pooled(places, config.names)


def root_of(place: Path) -> Path:
    """Return the folder that paths start from: a table's paths start beside it."""
    return place.parent if place.is_file() else place
