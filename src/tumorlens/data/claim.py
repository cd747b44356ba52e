"""Published accuracies on a test set: what they can be worth, without the network.

Of a published accuracy neither the network nor its answers are at hand, but the test
set is. How many of its images show a picture of training, what copying labels scores on
it and how its images fall into groups bound what the figure says about new images, and
which differences between two figures the set could show. `judge_claims` returns all of
it as a `ClaimCheck`, the content of `claim.json`.

Finding copies is `tumorlens.data.duplicates`, which images training has seen
`tumorlens.data.leakage`. Patients are counted and never named, and no file is.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction as Exact
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tumorlens.data.audit import MAX_BELIEVABLE_SHARE
from tumorlens.data.class_names import match_classes
from tumorlens.data.duplicates import group_records
from tumorlens.data.index import Index
from tumorlens.data.leakage import Sides
from tumorlens.data.shortcuts import look_up_nearest
from tumorlens.errors import ConfigError, DataError
from tumorlens.files import Count, Fraction, NotNegative
from tumorlens.stats.intervals import share, share_of_count
from tumorlens.stats.paired import (
    FEWEST_GROUPS,
    SIGNIFICANCE,
    expected_power,
    most_disagreements,
)
from tumorlens.text import counted, number_range, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Record
    from tumorlens.stats.intervals import Score

POWER = 0.8
"""Chance with which the smallest difference of `Claim` is found."""

MAX_CLAIMS = 20
"""Accuracies that are judged together; each is compared with each other one."""

MAX_BY_CHANCE = 0.05
"""Numbers of images that may be expected to give all accuracies by chance, for those
that do to be named."""

SINGLE_DIGITS = 7
"""Decimals that a number of 32 bits holds: further ones are not asked to fit."""

_NUMBER = re.compile(r"[+-]?([0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20})")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShareRight(_Part):
    """How many images of a part of the test set are answered right."""

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


class LookUp(_Part):
    """What copying the label of the most similar training image scores."""

    all: ShareRight
    seen: ShareRight | None
    """On the images that training has seen; `None` if there are none."""

    new: ShareRight | None
    """On the others; `None` if there are none."""


class ClassRange(_Part):
    """Test images of one class, and how many a claim lets be right."""

    num_test: Count
    num_seen: Count
    """Those that show a picture of training."""

    right: tuple[Count, Count]
    """Least and most, whatever the answers were."""

    right_if_all_seen_are: tuple[Count, Count] | None
    """Least and most, with every seen image answered right; `None` where fewer images
    than that are right."""


class Claim(_Part):
    """One published accuracy, and what follows from it."""

    accuracy: str
    """As it was typed."""

    fits: Literal["rounded", "cut off", "no"]
    """Whether a number of right answers gives the digits, rounded or cut off. `no`: the
    two numbers next to it stand for it below."""

    all: ShareRight
    if_all_seen_are_right: ShareRight | None
    """On the new images. The least that the claim allows; `None` without new images, or
    where fewer images are right than training has seen."""

    if_seen_are_looked_up: ShareRight | None
    """On the new images, with the seen ones answered as look-up answers them."""

    seen_wrong_if_new_as_good: Count | None
    """Seen images that must have been answered wrongly for the claim to hold on the
    new images too; `None` without seen or without new images."""

    by_class: dict[str, ClassRange]
    smallest_difference: Count | None
    """Images that another network must be right about less, for a paired test to find
    that with the chance `ClaimCheck.power`; `None` where no difference suffices."""

    words: tuple[str, ...]
    """The claim in sentences."""


class ClaimDifference(_Part):
    """Two claims on the same test images."""

    accuracies: tuple[str, str]
    """The higher one first."""

    images: tuple[Count, Count]
    """Least and most right answers between them."""

    can_be_found: bool
    """Whether any answers exist with which a paired test finds a difference."""

    most_disagreements: Count | None
    """Largest number of images, of different groups, on which the two may disagree for
    it to be found."""

    expected_disagreements: NotNegative
    """Images on which the two disagree if both are right about all seen images and err
    independently on the new ones; on all images where they cannot be."""

    power: Fraction
    """Chance that it is found if they do."""

    words: str


class ClaimCheck(_Part):
    """The content of `claim.json`. No patient and no file is named in it."""

    format: Literal[1] = 1
    """Number of this layout."""

    data: str
    """Name of the folder or table with the test images."""

    trained_on: str | None
    """Name of that with the training images; `None` for the test set's own."""

    digest: str
    """`Index.digest` of `data`, as in its `audit.json`."""

    trained_on_digest: str | None
    """The same of `trained_on`."""

    num_train: Count
    num_test: Count
    """Readable test images."""

    num_unreadable: Count
    """Test images that cannot be read, and count nowhere."""

    num_seen: Count
    """Test images that show a picture which is also in training."""

    num_new: Count
    num_new_pictures: Count
    num_new_groups: Count
    num_new_related: Count
    """New images of a patient who is in training, or that look like a neighbouring
    slice of a training image."""

    num_groups: Count
    classes_without_training: tuple[str, ...]
    """Classes of the test images that no training image has."""

    other_sizes: tuple[Count, ...]
    """Numbers of images that give every accuracy to its digits, where `num_test` does
    not and they are so few that it is no chance."""

    look_up: LookUp
    power: Fraction
    """Chance with which a smallest difference is found."""

    significance: Fraction
    """Level of the paired test."""

    verdict: str
    words: tuple[str, ...]
    """The test set in further sentences."""

    claims: tuple[Claim, ...]
    differences: tuple[ClaimDifference, ...]


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


def parse_accuracies(texts: Iterable[str]) -> dict[str, Decimal]:
    """Return published accuracies, as typed and as numbers; equal ones once.

    Args:
        texts: Each as it was published, such as "0.8325". The digits count.

    Raises:
        ConfigError: One is no number in [0, 1], or there are too many.
    """
    stated = {text.strip(): parse_accuracy(text) for text in texts}
    if len(stated) > MAX_CLAIMS:
        raise ConfigError(
            f"got {len(stated)} accuracies, and at most {MAX_CLAIMS} are judged "
            "together",
            hint="leave some out, or judge them in a second call",
        )
    return stated


def parse_accuracy(text: str) -> Decimal:
    """Return a published accuracy with the digits that were typed.

    Raises:
        ConfigError: It is no decimal number, or outside [0, 1].

    Example:
        >>> parse_accuracy("0.830")
        Decimal('0.830')
    """
    plain = text.strip()
    if not _NUMBER.fullmatch(plain):
        raise ConfigError(
            f"expected an accuracy such as 0.8325, got {text[:40]!r}",
            hint="write a fraction with a decimal point: 0.8325 for 83.25 %",
        )
    value = Decimal(plain)
    if not 0 <= value <= 1:
        is_percentage = 2 <= value <= 100
        raise ConfigError(
            f"expected an accuracy in [0, 1], got {plain}",
            hint=f"it is a fraction, not a percentage: did you mean "
            f"{value.scaleb(-2):f}?"
            if is_percentage
            else "an accuracy is the share of images that are answered right",
        )
    return value


def arrange(
    data: Index,
    trained_on: Index | None = None,
    *,
    name: Path,
    trained_on_name: Path | None = None,
) -> ClaimedSet:
    """Return the test images of one set beside the training images of it or another.

    Of a set of its own, `test` is test and `train` and `val` are training. With another
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


def judge_claims(
    claimed: ClaimedSet, duplicates: Duplicates, accuracies: Mapping[str, Decimal]
) -> ClaimCheck:
    """Return what published accuracies on a test set can be worth.

    Which images were answered right is not known. So in each interval copies of one
    picture count as right or wrong together, and pictures of one group as alike by the
    intraclass correlation that `stats.intervals` assumes before any error was seen.

    Args:
        claimed: The test set, and what was trained on.
        duplicates: The result of `find_duplicates` on `claimed.index`.
        accuracies: What `parse_accuracies` returned.

    Raises:
        DataError: No test or no training image can be read.
    """
    test = _TestSet.of(claimed, duplicates)
    claims = [_judge(text, value, test) for text, value in accuracies.items()]
    other_sizes = _other_sizes(accuracies.values(), test.num)
    look_up = LookUp(
        all=test.looked_up(test.is_seen | test.is_new),
        seen=test.looked_up(test.is_seen) if test.num_seen else None,
        new=test.looked_up(test.is_new) if test.num_new else None,
    )
    return ClaimCheck(
        data=claimed.name,
        trained_on=claimed.trained_on_name,
        digest=claimed.data.digest,
        trained_on_digest=claimed.trained_on.digest if claimed.trained_on else None,
        num_train=test.num_train,
        num_test=test.num,
        num_unreadable=test.num_unreadable,
        num_seen=test.num_seen,
        num_new=test.num_new,
        num_new_pictures=len(np.unique(test.copies[test.is_new])),
        num_new_groups=len(np.unique(test.groups[test.is_new])),
        num_new_related=test.num_new_related,
        num_groups=len(np.unique(test.groups)),
        classes_without_training=test.classes_without_training,
        other_sizes=other_sizes,
        look_up=look_up,
        power=POWER,
        significance=SIGNIFICANCE,
        verdict=_verdict(test),
        words=(
            *_words_of_set(test, look_up),
            *_words_of_sizes(other_sizes, claims, test.num),
        ),
        claims=tuple(claims),
        differences=tuple(
            _compare(one, other, test) for one, other in combinations(claims, 2)
        ),
    )


@dataclass(frozen=True)
class _TestSet:
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
    def of(cls, claimed: ClaimedSet, duplicates: Duplicates) -> _TestSet:
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
        return len(self.labels)

    @property
    def is_new(self) -> NDArray[np.bool_]:
        return ~self.is_seen

    @property
    def num_seen(self) -> int:
        return int(self.is_seen.sum())

    @property
    def num_new(self) -> int:
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


def _counts_of(
    value: Decimal, num: int
) -> tuple[Literal["rounded", "cut off", "no"], tuple[int, int]]:
    """Return which numbers of right answers give an accuracy to its digits.

    A half may have been rounded either way. Without decimals, 0 and 1 are exact.

    Args:
        value: The accuracy, with its digits.
        num: Images.

    Example:
        >>> _counts_of(Decimal("0.8325"), 394), _counts_of(Decimal("0.83"), 394)
        (('rounded', (328, 328)), ('rounded', (326, 328)))
        >>> _counts_of(Decimal("0.8324"), 394), _counts_of(Decimal("0.7912"), 394)
        (('cut off', (328, 328)), ('no', (311, 312)))
    """
    exact = Exact(value)
    if exact in (0, 1) and not value.as_tuple().exponent:
        return "rounded", (int(exact) * num, int(exact) * num)
    step = Exact(1, 10 ** _num_decimals(value))
    least = max(0, math.ceil((exact - step / 2) * num))
    most = min(num, math.floor((exact + step / 2) * num))
    if least <= most:
        return "rounded", (least, most)
    least, beyond = math.ceil(exact * num), math.ceil((exact + step) * num)
    if least < beyond:
        return "cut off", (least, min(num, beyond - 1))
    return "no", (math.floor(exact * num), math.ceil(exact * num))


def _num_decimals(value: Decimal) -> int:
    return min(-int(value.as_tuple().exponent), SINGLE_DIGITS)


def _judge(text: str, value: Decimal, test: _TestSet) -> Claim:
    fits, right = _counts_of(value, test.num)
    num_seen, num_new = test.num_seen, test.num_new
    seen_right = new_looked_up = seen_wrong = None
    if num_new and right[1] >= num_seen:
        seen_right = test.known_by_count(_left(right, num_seen, num_new), test.is_new)
        new_looked_up = test.known_by_count(
            _left(right, test.num_seen_right, num_new), test.is_new
        )
    if num_new and num_seen:
        as_good = math.ceil(Exact(right[1] * num_new, test.num))
        seen_wrong = num_seen - (right[1] - as_good)
    claim = Claim(
        accuracy=text,
        fits=fits,
        all=test.known_by_count(right, test.is_seen | test.is_new),
        if_all_seen_are_right=seen_right,
        if_seen_are_looked_up=new_looked_up,
        seen_wrong_if_new_as_good=seen_wrong,
        by_class=_by_class(right, test),
        smallest_difference=_smallest_difference(_middle(right), test),
        words=(),
    )
    return claim.model_copy(update={"words": tuple(_words_of_claim(claim, test))})


def _left(right: tuple[int, int], num_seen_right: int, num_new: int) -> tuple[int, int]:
    """Return how many new images are right, with so many of the seen ones."""
    least, most = (min(num_new, max(0, num - num_seen_right)) for num in right)
    return least, most


def _middle(right: tuple[int, int]) -> int:
    return sum(right) // 2


def _by_class(right: tuple[int, int], test: _TestSet) -> dict[str, ClassRange]:
    of_all = Counter(test.labels.tolist())
    of_seen = Counter(test.labels[test.is_seen].tolist())
    found = {}
    for label, num in sorted(of_all.items()):
        num_seen = of_seen[label]
        if_seen = None
        if right[1] >= test.num_seen:
            least, most = _left(right, test.num_seen, test.num_new)
            num_new = num - num_seen
            if_seen = (
                num_seen + max(0, least - (test.num_new - num_new)),
                num_seen + min(num_new, most),
            )
        found[label] = ClassRange(
            num_test=num,
            num_seen=num_seen,
            right=(max(0, right[0] - (test.num - num)), min(num, right[1])),
            right_if_all_seen_are=if_seen,
        )
    return found


def _smallest_difference(num_right: int, test: _TestSet) -> int | None:
    differences = range(FEWEST_GROUPS, num_right + 1)
    place = bisect_left(
        differences,
        x=True,
        key=lambda num: test.power(num_right, num_right - num) >= POWER,
    )
    return differences[place] if place < len(differences) else None


def _compare(one: Claim, other: Claim, test: _TestSet) -> ClaimDifference:
    if sum(one.all.right) < sum(other.all.right):
        one, other = other, one
    higher, lower = one.all.right, other.all.right
    images = (max(0, higher[0] - lower[1]), higher[1] - lower[0])
    most = None
    if len(np.unique(test.groups)) >= FEWEST_GROUPS:
        most = most_disagreements(images[1], test.num)
    better, worse = _middle(higher), _middle(lower)
    first, second = test.chances(better, worse)
    difference = ClaimDifference(
        accuracies=(one.accuracy, other.accuracy),
        images=images,
        can_be_found=most is not None,
        most_disagreements=most,
        expected_disagreements=float(
            (first * (1 - second) + second * (1 - first)).sum()
        ),
        power=test.power(better, worse),
        words="",
    )
    words = _words_of_difference(difference, test, _assumption(test, better, worse))
    return difference.model_copy(update={"words": words})


def _other_sizes(accuracies: Iterable[Decimal], num: int) -> tuple[int, ...]:
    """Return which numbers of images give all accuracies, where `num` does not.

    They are looked for from half to twice as many, without multiples. A number n gives
    an accuracy of d decimals by chance in n of 10^d cases; where more than a twentieth
    of a number is expected to give all of them, nothing is returned.

    Example:
        >>> of = [Decimal(text) for text in ("0.8325", "0.8196", "0.8273", "0.7912")]
        >>> _other_sizes(of, 394), _other_sizes(of[:2], 394), _other_sizes(of, 388)
        ((388,), (), ())
    """
    stated = set(accuracies)
    if all(_counts_of(value, num)[0] != "no" for value in stated):
        return ()
    sizes = range((num + 1) // 2, 2 * num + 1)
    by_chance = sum(
        math.prod(min(1.0, size / 10 ** _num_decimals(value)) for value in stated)
        for size in sizes
    )
    if by_chance > MAX_BY_CHANCE:
        return ()
    found: list[int] = []
    for size in sizes:
        is_multiple = any(size % smaller == 0 for smaller in found)
        if not is_multiple and all(
            _counts_of(value, size)[0] == "rounded" for value in stated
        ):
            found.append(size)
    return tuple(found)


# The words


def _verdict(test: _TestSet) -> str:
    if not test.num_new:
        return (
            "An accuracy on this test set says nothing about new images: training has "
            f"seen the picture of each of {counted(test.num, 'test image')}."
        )
    if test.num_touched > MAX_BELIEVABLE_SHARE * test.num:
        words = test.leak_words.removeprefix("Leak: ")
        return f"An accuracy on this test set is not one on new patients: {words}"
    far = "copies and known patients go" if test.knows_patients else "copies go"
    return (
        "An accuracy on this test set is one on new images, as far as "
        f"{far}. {test.leak_words}"
    )


def _words_of_set(test: _TestSet, look_up: LookUp) -> list[str]:
    words = (
        "Copying the label of the most similar training picture, which learns nothing, "
        f"is right for {_in_words(look_up.all)}"
    )
    parts = [
        f"{_in_words(part)} of those {which}"
        for part, which in (
            (look_up.seen, "that training has seen"),
            (look_up.new, "that are new"),
        )
        if part
    ]
    sentences = [f"{words}: {', and '.join(parts)}." if len(parts) > 1 else f"{words}."]
    if test.num_new and test.num_seen:
        sentences.append(_words_of_new(test))
    if test.num_unreadable:
        sentences.append(
            f"{counted(test.num_unreadable, 'test image')} cannot be read and "
            f"{'is' if test.num_unreadable == 1 else 'are'} left out here; a published "
            "figure may count them."
        )
    if names := test.classes_without_training:
        sentences.append(f"No training image is of the class {' or '.join(names)}.")
    return sentences


def _words_of_sizes(
    sizes: Sequence[int], claims: Sequence[Claim], num: int
) -> list[str]:
    if not sizes:
        return []
    nearest = min(sizes, key=lambda size: abs(size - num))
    others = " or ".join(f"{size:,}" for size in sizes)
    without = f", or of this one without {counted(num - nearest, 'image')}"
    words = (
        f"{num:,} images do not give all {len(claims)} accuracies, and {others} would: "
        f"they may be of another test set{without if nearest < num else ''}."
    )
    return [words]


def _words_of_new(test: _TestSet) -> str:
    num = test.num_new
    pictures = len(np.unique(test.copies[test.is_new]))
    groups = len(np.unique(test.groups[test.is_new]))
    words = (
        f"The {counted(num, 'new test image')} "
        f"{'shows' if num == 1 else 'show'} {counted(pictures, 'picture')} in "
        f"{counted(groups, 'group')}"
    )
    if related := test.num_new_related:
        words += (
            f"; {related} of them {'is' if related == 1 else 'are'} of a patient in "
            "training, or like a neighbouring slice of a training image"
        )
    gone = sorted(set(test.labels.tolist()) - set(test.labels[test.is_new].tolist()))
    return words + (f"; none is {' or '.join(gone)}." if gone else ".")


def _words_of_claim(claim: Claim, test: _TestSet) -> list[str]:
    return [
        sentence
        for sentence in (
            _words_of_misfit(claim, test),
            _words_of_count(claim, test),
            _words_on_new(claim, test),
            _words_on_wrong(claim, test),
            _words_of_smallest(claim, test),
        )
        if sentence
    ]


def _words_of_misfit(claim: Claim, test: _TestSet) -> str:
    if claim.fits != "no":
        return ""
    below, above = claim.all.right
    num_digits = len(claim.accuracy.partition(".")[2])
    return (
        f"No number of right answers gives {claim.accuracy}: {below} of {test.num} are "
        f"{below / test.num:.{num_digits}f}, {above} are "
        f"{above / test.num:.{num_digits}f}. A mean over batches can be such a figure. "
        f"Here it stands for {below} or {above}."
    )


def _words_of_count(claim: Claim, test: _TestSet) -> str:
    looked_up = int(test.is_right.sum())
    least, most = (num - looked_up for num in claim.all.right)
    if least > 0:
        beside = f"{number_range((least, most))} more than look-up"
    elif most < 0:
        beside = f"{number_range((-most, -least))} fewer than look-up"
    else:
        beside = "as many as look-up" if least == most else "about as many as look-up"
    cut = ", cut off and not rounded" if claim.fits == "cut off" else ""
    return f"{claim.accuracy}{cut}: {_in_words(claim.all)}, {beside}."


def _words_on_new(claim: Claim, test: _TestSet) -> str:
    if not test.num_new or not test.num_seen:
        return ""
    least, looked_up = claim.if_all_seen_are_right, claim.if_seen_are_looked_up
    if least is None or looked_up is None:
        return (
            f"Not all {test.num_seen} that training has seen were right, so nothing "
            f"follows about the {test.num_new} new ones."
        )
    words = (
        f"If all {test.num_seen:,} seen images were answered right, so were "
        f"{number_range(least.right)} of the {test.num_new:,} new ones, {_value(least)}"
    )
    if test.num_seen_right == test.num_seen:
        return f"{words}. Look-up answers all seen ones right too."
    return (
        f"{words}. If they were answered as look-up answers them "
        f"({test.num_seen_right:,} right), {number_range(looked_up.right)} were, "
        f"{_value(looked_up)}."
    )


def _words_on_wrong(claim: Claim, test: _TestSet) -> str:
    wrong = claim.seen_wrong_if_new_as_good
    by_look_up = test.num_seen - test.num_seen_right
    if wrong is None or wrong <= by_look_up:
        return ""
    return (
        f"To be as good on the new ones, the network must have got {wrong:,} of the "
        f"{test.num_seen:,} seen ones wrong; look-up gets {by_look_up:,} wrong."
    )


def _words_of_smallest(claim: Claim, test: _TestSet) -> str:
    num = claim.smallest_difference
    if num is None:
        return (
            "No paired test over groups would find another network worse in "
            f"{percent(POWER, 0)} of cases."
        )
    right = _middle(claim.all.right)
    return (
        f"Another network must get at least {num:,} fewer right, "
        f"{_points((num, num), test)}, for a paired test over groups to find it worse "
        f"in {percent(POWER, 0)} of cases, if {_assumption(test, right, right - num)}."
    )


def _words_of_difference(
    difference: ClaimDifference, test: _TestSet, assumption: str
) -> str:
    (higher, lower), most = difference.accuracies, difference.images[1]
    opening = (
        f"{higher} against {lower}: {number_range(difference.images)} right "
        f"answer{'' if difference.images == (1, 1) else 's'} apart"
    )
    if not most:
        return f"{opening}: no difference."
    opening += f", {_points(difference.images, test)}"
    if difference.most_disagreements is None:
        return (
            f"{opening}. No paired test over groups can find that, whatever the "
            f"answers were: it takes {FEWEST_GROUPS} groups in which one is better."
        )
    return (
        f"{opening}. A paired test finds that only if the two disagree on at most "
        f"{counted(difference.most_disagreements, 'image')}, of different groups; if "
        f"{assumption}, they disagree on about "
        f"{difference.expected_disagreements:.0f}, and it is found in "
        f"{percent(difference.power, 0)} of cases."
    )


def _assumption(test: _TestSet, better: int, worse: int) -> str:
    """Return in words what `_TestSet.chances` assumes of two networks."""
    if not test.num_seen or not test.num_new or better < test.num_seen:
        return "the two err independently"
    if worse < test.num_seen:
        return (
            "both are right about the seen images as far as they can be and err "
            "independently"
        )
    return "both are right about all seen images and err independently on the new ones"


def _points(images: tuple[int, int], test: _TestSet) -> str:
    least, most = (f"{100 * num / test.num:.1f}" for num in images)
    return f"{most} points" if least == most else f"{least} to {most} points"


def _in_words(part: ShareRight) -> str:
    return f"{number_range(part.right)} of {part.num_images:,}, {_value(part)}"


def _value(part: ShareRight) -> str:
    """Return an accuracy such as `49.2 % (36.9 to 61.6)`."""
    least, most = part.value
    value = percent(most)
    if percent(least) != value:
        value = f"{100 * least:.1f} to {value}"
    if part.low is not None and part.high is not None:
        value += f" ({100 * part.low:.1f} to {100 * part.high:.1f})"
    return value
