"""The data of a run: settings become index, split and leak verdict, then arrays.

The split is decided here once and written to the run folder; training, validation and
evaluation then read the same `split.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.config import Config, DataConfig
from tumorlens.data.duplicates import find_duplicates, group_records
from tumorlens.data.images import ImageLimits
from tumorlens.data.index import (
    Index,
    SplitRow,
    check_same_labels,
    check_unchanged,
    patient_note,
    read_index,
    read_split,
    with_labels,
)
from tumorlens.data.leakage import judge_leak
from tumorlens.data.seen import seen_of
from tumorlens.data.sets import sets_of
from tumorlens.data.split import LEFT_OUT, Split, check_split, fold_splits, make_split
from tumorlens.errors import DataError, RunError
from tumorlens.text import percent
from tumorlens.training.loading import (
    Decoding,
    ImageFile,
    Images,
    PlainImages,
    decoded_images,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tumorlens.data.duplicates import Duplicates
    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Progress
    from tumorlens.training.network import Preprocessing


@dataclass(frozen=True)
class PreparedData:
    """The files of a run and the subset of each."""

    index: Index
    rows: tuple[SplitRow, ...]
    """One per file of the index."""

    @property
    def num_unreadable(self) -> int:
        """Number of files that were left out because they cannot be decoded."""
        return sum(row.reason.startswith("unreadable") for row in self.rows)

    def subset_rows(self, subset: str) -> list[SplitRow]:
        """Return the rows of one subset, in order."""
        return [row for row in self.rows if row.subset == subset]


@dataclass(frozen=True)
class Subset:
    """The decoded images of one subset."""

    images: Images
    """All images of the set."""
    positions: list[int]
    """Positions of the subset's images in `images`."""
    labels: NDArray[np.int64]
    """Class indices, shape (N,), in the order of `positions`."""

    def plain(self) -> PlainImages:
        """Return the images without augmentation, for the inference pass."""
        return PlainImages(self.images, self.positions)


def image_limits(config: DataConfig) -> ImageLimits:
    """Return the limits of the settings on the size of a file."""
    return ImageLimits(
        max_bytes=int(config.max_file_mib * 2**20), max_pixels=config.max_pixels
    )


def make_decoding(config: Config, preprocessing: Preprocessing) -> Decoding:
    """Return the decoding of a network's input."""
    return Decoding(
        preprocessing.size_px,
        config.data.fit,
        config.model.in_chans,
        image_limits(config.data),
    )


def prepare_data(run: Run, *, progress: Progress | None = None) -> PreparedData:
    """Return index and split of a run; write `split.csv`, `leak.json` and `seen.npz`.

    An interrupted run that has the first two already keeps them. The search for
    duplicates is then skipped, and the files are checked against the digests in the
    split.

    Args:
        run: The run, whose settings name the data and the protocol. A k-fold run gets
            the subsets `fold-0` ...; a single fold gets train, val and test.
        progress: Called with files done and files in all.

    Raises:
        DataError: The data cannot be used: too many unreadable files, a class with too
            few groups, a given split with a group on two sides, a file that changed.
        RunError: Both files belong to the run's weights, and one is gone or changed.
    """
    config = run.config.data
    index = read_configured_index(config)
    if run.split_path.is_file() and run.leak_path.is_file():
        rows = run.split()
        check_unchanged(rows, index)
        check_same_labels(run.leak().labels_sha256, index)
        if not run.seen_path.is_file():  # a run of an earlier version
            duplicates = find_duplicates(
                index, limits=image_limits(config), progress=progress
            )
            seen_of(rows, index, duplicates).write(run.seen_path)
        return PreparedData(index, rows)
    if run.has_learnt:
        # Images that were added since would be dealt anew.
        raise RunError(
            f"{run.path} has weights, and no {run.split_path.name} or no "
            f"{run.leak_path.name}",
            hint="restore the files from a copy, or train again into another --out",
        )

    duplicates = find_duplicates(index, limits=image_limits(config), progress=progress)
    rows = assign_subsets(index, duplicates, config, seed=run.config.train.seed)
    if config.fold is not None:
        rows = rows_of_fold(run, rows, config.fold)
    seen_of(rows, index, duplicates).write(run.seen_path)
    run.write_split(rows, judge_leak(rows, index, duplicates))
    return PreparedData(index, rows)


def read_configured_index(config: DataConfig) -> Index:
    """Return the index of the sets of images that the settings name, labels corrected.

    Raises:
        ConfigError: A set is named twice.
        DataError: The settings name none, or it cannot be used.
    """
    sets = sets_of(config)
    if sets is None:
        raise DataError("no data was named", hint="give --data DIR or set data.path")
    index = read_index(sets, metadata=config.metadata)
    return with_labels(index, Path(config.labels) if config.labels else None)


def split_data(config: Config, *, progress: Progress | None = None) -> Split:
    """Return the split that a run with these settings would get.

    Args:
        config: Settings, of which `data.path` is set.
        progress: Called with files done and files in all.

    Raises:
        DataError: The data cannot be used, as for `prepare_data`.
    """
    index = read_configured_index(config.data)
    duplicates = find_duplicates(
        index, limits=image_limits(config.data), progress=progress
    )
    rows = assign_subsets(index, duplicates, config.data, seed=config.train.seed)
    leak = judge_leak(rows, index, duplicates)
    return Split(rows, index.classes, leak, patient_note(index))


def assign_subsets(
    index: Index, duplicates: Duplicates, config: DataConfig, *, seed: int
) -> tuple[SplitRow, ...]:
    """Return the subset of each file, by the protocol or by a split made by hand.

    Args:
        index: Index of the files.
        duplicates: Result of `find_duplicates`.
        config: Settings with the protocol.
        seed: Value of `train.seed`.

    Raises:
        DataError: Too many files cannot be read, a class has too few groups, or a given
            split has a group on two sides.
    """
    _check_readable(
        len(duplicates.unreadable), len(index.records), config.max_unreadable
    )
    if config.split is None:
        return make_split(
            index,
            duplicates,
            protocol=config.protocol,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            num_folds=config.num_folds,
            seed=seed,
        )
    rows = _without_unreadable(read_split(Path(config.split)), duplicates.unreadable)
    groups = group_records(index, duplicates)
    check_split(rows, index, protocol=config.protocol, groups=groups)
    return rows


def rows_of_fold(run: Run, rows: Sequence[SplitRow], fold: int) -> tuple[SplitRow, ...]:
    """Return train, val and test of one fold of a k-fold split."""
    folds = fold_splits(
        rows,
        num_folds=run.config.data.num_folds,
        val_fraction=run.config.data.val_fraction,
        seed=run.config.train.seed,
    )
    return folds[fold]


def load_subset(
    data: PreparedData,
    subset: str,
    *,
    decoding: Decoding,
    config: DataConfig,
    progress: Progress | None = None,
) -> Subset:
    """Return the decoded images of a subset.

    All readable files of the set are decoded and cached together, so that runs with
    other splits of the same set share the work.

    Raises:
        DataError: A file has become unreadable, or the cache cannot be written.
    """
    readable = [row for row in data.rows if not row.reason.startswith("unreadable")]
    images = decoded_images(
        [ImageFile(data.index.file_at(row.path), row.sha256) for row in readable],
        decoding,
        cache_dir=Path(config.cache_dir) if config.cache_dir else None,
        cache_limit_mib=config.cache_limit_mib,
        progress=progress,
    )
    numbers = {label: number for number, label in enumerate(data.index.classes)}
    chosen = [n for n, row in enumerate(readable) if row.subset == subset]
    labels = [numbers[readable[position].label] for position in chosen]
    return Subset(images, chosen, np.array(labels, dtype=np.int64))


def _without_unreadable(
    rows: Sequence[SplitRow], unreadable: Mapping[str, str]
) -> tuple[SplitRow, ...]:
    # A split made by hand may contain files that cannot be decoded.
    return tuple(
        replace(row, subset=LEFT_OUT, reason=f"unreadable: {unreadable[row.path]}")
        if row.path in unreadable
        else row
        for row in rows
    )


def _check_readable(num_unreadable: int, num_files: int, highest: float) -> None:
    share = num_unreadable / num_files
    if share > highest:
        raise DataError(
            f"{num_unreadable} of {num_files} files ({percent(share)}) cannot be read; "
            f"data.max_unreadable allows {percent(highest)}",
            hint="list them with: tumorlens audit DATA --out DIR; then remove them or "
            "raise the limit",
        )
