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
from decimal import Decimal
from fractions import Fraction as Exact
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tumorlens.data.claim_words import (
    verdict,
    words_of_claim,
    words_of_difference,
    words_of_set,
    words_of_sizes,
)
from tumorlens.data.claimed_set import POWER, ShareRight, TestSet
from tumorlens.errors import ConfigError
from tumorlens.files import Count, Fraction, NotNegative
from tumorlens.stats.paired import FEWEST_GROUPS, SIGNIFICANCE, most_disagreements

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tumorlens.data.claimed_set import ClaimedSet
    from tumorlens.data.duplicates import Duplicates

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
    test = TestSet.of(claimed, duplicates)
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
        verdict=verdict(test),
        words=(
            *words_of_set(test, look_up),
            *words_of_sizes(other_sizes, claims, test.num),
        ),
        claims=tuple(claims),
        differences=tuple(
            _compare(one, other, test) for one, other in combinations(claims, 2)
        ),
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


def _judge(text: str, value: Decimal, test: TestSet) -> Claim:
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
    of_all = test.known_by_count(right, test.is_seen | test.is_new)
    claim = Claim(
        accuracy=text,
        fits=fits,
        all=of_all,
        if_all_seen_are_right=seen_right,
        if_seen_are_looked_up=new_looked_up,
        seen_wrong_if_new_as_good=seen_wrong,
        by_class=_by_class(right, test),
        smallest_difference=_smallest_difference(of_all.middle, test),
        words=(),
    )
    return claim.model_copy(update={"words": tuple(words_of_claim(claim, test))})


def _left(right: tuple[int, int], num_seen_right: int, num_new: int) -> tuple[int, int]:
    """Return how many new images are right, with so many of the seen ones."""
    least, most = (min(num_new, max(0, num - num_seen_right)) for num in right)
    return least, most


def _by_class(right: tuple[int, int], test: TestSet) -> dict[str, ClassRange]:
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


def _smallest_difference(num_right: int, test: TestSet) -> int | None:
    differences = range(FEWEST_GROUPS, num_right + 1)
    place = bisect_left(
        differences,
        x=True,
        key=lambda num: test.power(num_right, num_right - num) >= POWER,
    )
    return differences[place] if place < len(differences) else None


def _compare(one: Claim, other: Claim, test: TestSet) -> ClaimDifference:
    if sum(one.all.right) < sum(other.all.right):
        one, other = other, one
    higher, lower = one.all.right, other.all.right
    images = (max(0, higher[0] - lower[1]), higher[1] - lower[0])
    most = None
    if len(np.unique(test.groups)) >= FEWEST_GROUPS:
        most = most_disagreements(images[1], test.num)
    better, worse = one.all.middle, other.all.middle
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
    words = words_of_difference(difference, test, better, worse)
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
