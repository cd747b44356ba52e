"""The images of a subset of a run: which may be looked at, and where they are.

Nothing here imports torch: an artefact is measured on the subset of its run without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.index import (
    check_same_labels,
    check_unchanged,
    read_index,
    with_labels,
)
from tumorlens.data.sets import sets_of
from tumorlens.errors import ConfigError, DataError, RunError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.data.index import Index, SplitRow
    from tumorlens.runs.folder import Run

SUBSETS = ("test", "val")


def check_subset(run: Run, subset: str) -> None:
    """Make sure that a run can be evaluated on a subset.

    Raises:
        ConfigError: The subset is unknown, or not one of a k-fold run.
        RunError: It is test, and the run is not finished.
    """
    if subset not in SUBSETS:
        raise ConfigError(
            f"unknown subset {subset!r}", hint=did_you_mean(subset, SUBSETS)
        )
    if subset == "test" and not run.is_finished:
        raise RunError(
            f"the training of {run.path} is not finished, and the test subset is for "
            "the end",
            hint=f"finish it with: tumorlens train --resume --out {run.path}",
        )
    if run.is_kfold and subset != "test":
        raise ConfigError(
            f"a run with folds has no subset {subset!r} of its own: every image is in "
            "that subset of several folds",
            hint=f"evaluate one fold: tumorlens evaluate {run.fold_path(0)} --subset "
            f"{subset}",
        )


def read_data(run: Run, data: Path | Sequence[Path] | None) -> Index:
    """Return the index of a run's images.

    Args:
        run: The run; its `data.path` is used where `data` is `None`.
        data: Folder of the images, or of each set in the order of `data.path`.

    Raises:
        ConfigError: A folder is named twice.
        DataError: There is no folder with images, none is named, or more or fewer than
            the run has sets; the corrected labels cannot be read.
        RunError: The corrected labels are others than those of the run.
    """
    config = run.config.data
    sets = sets_of(config, data)
    if sets is None:
        raise DataError(
            f"{run.path} does not name the folder of its images", hint="give --data"
        )
    gone = [place for place in sets.places if not place.exists()]
    if data is None and gone:
        raise DataError(
            f"the images of {run.path} are not in {gone[0]} any more",
            hint="name the folder where they are now: --data DATA"
            + (" for each set" if sets.names else ""),
        )
    index = read_index(sets, metadata=config.metadata)
    index = with_labels(index, Path(config.labels) if config.labels else None)
    if run.leak_path.is_file():
        check_same_labels(run.leak().labels_sha256, index)
    return index


def rows_of_subset(
    run: Run, rows: Sequence[SplitRow], index: Index, subset: str
) -> list[SplitRow]:
    """Return the images of a subset, in the order of the split.

    Args:
        run: The run, or a fold.
        rows: Its whole split.
        index: The files, from `read_data`.
        subset: See `check_subset`.

    Raises:
        RunError: No image is in the subset, or the data has changed.
    """
    check_unchanged(rows, index)
    found = [row for row in rows if row.subset == subset]
    if not found:
        raise RunError(
            f"{run.path} has no image in subset {subset!r}",
            hint=f"{run.split_path} lists the subset of each image",
        )
    return found


def check_classes(run: Run, classes: Sequence[str], index: Index) -> None:
    """Check that the classes of a run's network are those of the data.

    Raises:
        RunError: The classes differ.
    """
    if tuple(classes) != index.classes:
        raise RunError(
            f"the network of {run.path} has the classes {', '.join(classes)}, the "
            f"data has {', '.join(index.classes)}",
            hint="give the data that the run was made with",
        )
