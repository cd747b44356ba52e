"""A test set whose published accuracies are judged, beside what was trained on.

`arrange` puts the two sides into one index, and `TestSet.of` counts on it what a figure
can depend on: which images training has seen, what copying labels scores, groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from tumorlens.data.class_names import match_classes
from tumorlens.data.duplicates import group_records
from tumorlens.data.index import Index
from tumorlens.data.leakage import Sides
from tumorlens.data.shortcuts import look_up_nearest
from tumorlens.errors import DataError
from tumorlens.files import Count, Fraction
from tumorlens.stats.intervals import share, share_of_count
from tumorlens.stats.paired import expected_power
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Record
    from tumorlens.stats.intervals import Score


POWER = 0.8
"""Chance with which the smallest difference of a claim is found."""


class ShareRight(BaseModel):
    """How many images of a part of the test set are answered right."""

    model_config = ConfigDict(frozen=True)

    right: tuple[Count, Count]
    """Least and most; equal where only one number is possible."""

    num_images: Count
    value: tuple[Fraction, Fraction]
    """Accuracy of `right`."""

    low: Fraction | None
    """Low end of the 95 % interval of the first value; `None`, as `high`, with a single
    group."""

    high: Fraction | None
    """High end of the 95 % interval of the second value."""

    num_groups: Count
    """Groups, the units of the interval."""

    @property
    def middle(self) -> int:
        """Number between least and most, rounded down."""
        return sum(self.right) // 2


@dataclass(frozen=True)
class ClaimedSet:
    """A test set beside what was trained on, as one index."""

    index: Index
    """Records with the subset `train`, `test` or none. Those of another set have
    absolute paths, so a file may be on both sides."""

    data: Index
    """The set of the test images as it was read."""

    name: str
    trained_on: Index | None
    trained_on_name: str | None


def arrange(
    data: Index,
    trained_on: Index | None = None,
    *,
    name: Path,
    trained_on_name: Path | None = None,
) -> ClaimedSet:
    """Return the test images of one set beside the training images of it or another.

    In a set of its own, `test` is test and `train` and `val` are training. With another
    set, its files are training, except those of its subset `test`, and of the first set
    the subset `test` is test, or all of it where it has none.

    Args:
        data: The set with the test images.
        trained_on: The set with the training images; `None` for `data` too. Its classes
            take the names that they have in `data`, where only the spelling differs.
        name: Where `data` was read from, for messages.
        trained_on_name: Where `trained_on` was read from.

    Raises:
        DataError: There are no test or no training images, or no class is in both sets.
    """
    if trained_on is None:
        records = [
            replace(record, subset="train") if record.subset == "val" else record
            for record in data.records
        ]
        subsets = {record.subset for record in records}
        if not subsets >= {"train", "test"}:
            words = {"train": "training", "test": "test"}
            missing = [words[subset] for subset in words if subset not in subsets]
            raise DataError(
                f"{name} has no {' and no '.join(missing)} subset",
                hint="give a set with Training and Testing, or name the images that "
                "were trained on: --trained-on DATA2",
            )
    else:
        tested = [record for record in data.records if record.subset == "test"]
        learnt = [record for record in trained_on.records if record.subset != "test"]
        if not learnt:
            raise DataError(
                f"{trained_on_name} has test images only, and none to train on",
                hint="give --trained-on the set that holds the training images",
            )
        label_of = _labels_of(data, trained_on, name=name, other=trained_on_name)
        records = [
            replace(record, subset="test") for record in tested or data.records
        ] + [
            replace(
                record,
                path=str(trained_on.file_of(record)),
                label=label_of.get(record.label, record.label),
                subset="train",
            )
            for record in learnt
        ]
    return ClaimedSet(
        index=Index(
            root=data.root,
            classes=tuple(sorted({record.label for record in records})),
            records=tuple(sorted(records, key=lambda record: record.path)),
        ),
        data=data,
        name=name.resolve().name,
        trained_on=trained_on,
        trained_on_name=trained_on_name.resolve().name if trained_on_name else None,
    )


def _labels_of(
    data: Index, trained_on: Index, *, name: Path, other: Path | None
) -> dict[str, str]:
    """Return class of the training images -> its name among the test images.

    Raises:
        DataError: They have no class in common.
    """
    matched = match_classes(data.classes, trained_on.classes)
    if not matched.pairs:
        raise DataError(
            f"no class of {name} ({', '.join(data.classes)}) is one of {other} "
            f"({', '.join(trained_on.classes)})",
            hint="name the class folders of both sets alike",
        )
    return {theirs: ours for ours, theirs in matched.pairs}


@dataclass(frozen=True)
class TestSet:
    """The readable test images as arrays, in the order of the index."""

    labels: NDArray[np.str_]
    is_seen: NDArray[np.bool_]
    is_right: NDArray[np.bool_]
    """Whether look-up answers it right."""

    copies: NDArray[np.int64]
    groups: NDArray[np.int64]
    num_train: int
    num_unreadable: int
    num_new_related: int
    num_touched: int
    """Images that are seen, or whose patient or head is in training."""

    knows_patients: bool
    leak_words: str
    classes_without_training: tuple[str, ...]

    @classmethod
    def of(cls, claimed: ClaimedSet, duplicates: Duplicates) -> TestSet:
        """Return the test images of a set.

        Raises:
            DataError: No test or no training image can be read.
        """
        index = claimed.index
        test = _readable(index.records, "test", duplicates)
        train = _readable(index.records, "train", duplicates)
        groups = group_records(index, duplicates)
        sides = Sides(
            {r.path: str(r.subset) for r in (*test, *train)}, index, duplicates
        )
        labels = np.array([record.label for record in test])
        related = sides.same_patient | sides.lookalike
        return cls(
            labels=labels,
            is_seen=np.array([record.path in sides.copied for record in test]),
            is_right=labels
            == look_up_nearest(
                _thumbnails(train, duplicates),
                np.array([record.label for record in train]),
                _thumbnails(test, duplicates),
            ),
            copies=_numbered(duplicates.pictures[record.path] for record in test),
            groups=_numbered(groups[record.path] for record in test),
            num_train=len(train),
            num_unreadable=sum(
                record.subset == "test" and record.path in duplicates.unreadable
                for record in index.records
            ),
            num_new_related=len(related - sides.copied),
            num_touched=len(related | sides.copied),
            knows_patients=sides.num_unknown < len(test),
            leak_words=sides.verdict().words,
            classes_without_training=tuple(
                sorted(set(labels.tolist()) - {record.label for record in train})
            ),
        )

    @property
    def num(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def is_new(self) -> NDArray[np.bool_]:
        """Whether each image shows no picture of training."""
        return ~self.is_seen

    @property
    def num_seen(self) -> int:
        """Number of images that show a picture of training."""
        return int(self.is_seen.sum())

    @property
    def num_new(self) -> int:
        """Number of the others."""
        return self.num - self.num_seen

    @property
    def num_seen_right(self) -> int:
        """Seen images that look-up answers right."""
        return int((self.is_right & self.is_seen).sum())

    def looked_up(self, part: NDArray[np.bool_]) -> ShareRight:
        """Return what look-up scores on a part of the images."""
        right = self.is_right[part]
        num = int(right.sum())
        return _share_right((num, num), [share(right, self.groups[part])], len(right))

    def known_by_count(
        self, right: tuple[int, int], part: NDArray[np.bool_]
    ) -> ShareRight:
        """Return a part of which only the number of right images is known."""
        copies, groups = self.copies[part], self.groups[part]
        return _share_right(
            right, [share_of_count(num, copies, groups) for num in right], len(copies)
        )

    def chances(
        self, better: int, worse: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how likely two networks are right about each image.

        With at least as many right answers as there are seen images, the better one
        knows all of them by heart, and the worse one as many as it can; what is left
        is spread evenly over the new ones. With fewer, all images are alike.

        Args:
            better: Right answers of the better network.
            worse: Right answers of the worse one.
        """
        if better < self.num_seen or not self.num_new:
            first, second = np.full((2, self.num), [[better], [worse]]) / self.num
            return first, second
        found = []
        for num in (better, worse):
            num_seen = min(num, self.num_seen)
            of_seen = num_seen / max(1, self.num_seen)
            of_new = (num - num_seen) / self.num_new
            found.append(np.where(self.is_seen, of_seen, of_new))
        return found[0], found[1]

    def power(self, better: int, worse: int) -> float:
        """Return how likely a paired test finds which of the two is worse."""
        first, second = self.chances(better, worse)
        return expected_power(first, second, copies=self.copies, groups=self.groups)


def _readable(
    records: Iterable[Record], subset: str, duplicates: Duplicates
) -> list[Record]:
    """Return the records of a side that can be read.

    Raises:
        DataError: There is none.
    """
    of_side = [record for record in records if record.subset == subset]
    found = [record for record in of_side if record.path in duplicates.pixels]
    if not found:
        what = "training" if subset == "train" else "test"
        raise DataError(
            f"none of {counted(len(of_side), f'{what} image')} can be read; the first "
            f"is {of_side[0].path}: {duplicates.unreadable[of_side[0].path]}",
            hint="give a set of JPEG, PNG, TIFF, BMP or DICOM images",
        )
    return found


def _thumbnails(records: Iterable[Record], duplicates: Duplicates) -> NDArray[np.uint8]:
    return np.stack([duplicates.thumbnails[record.path] for record in records])


def _numbered(names: Iterable[str]) -> NDArray[np.int64]:
    """Return a number from 0 for each name, equal for equal ones."""
    _, numbers = np.unique(list(names), return_inverse=True)
    return np.asarray(numbers, np.int64)


def _share_right(
    right: tuple[int, int], ends: Sequence[Score], num_images: int
) -> ShareRight:
    low, high = ends[0].interval, ends[-1].interval
    return ShareRight(
        right=right,
        num_images=num_images,
        value=(ends[0].value, ends[-1].value),
        low=low.low if low else None,
        high=high.high if high else None,
        num_groups=ends[0].num_groups,
    )
