"""Judged accuracies in sentences that can be quoted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.audit import MAX_BELIEVABLE_SHARE
from tumorlens.data.claimed_set import POWER
from tumorlens.stats.paired import FEWEST_GROUPS
from tumorlens.text import counted, number_range, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.data.claim import Claim, ClaimDifference, LookUp
    from tumorlens.data.claimed_set import ShareRight, TestSet


def verdict(test: TestSet) -> str:
    """Return what an accuracy on the test set says about new images."""
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


def words_of_set(test: TestSet, look_up: LookUp) -> list[str]:
    """Return the test set in sentences, without its verdict."""
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


def words_of_sizes(
    sizes: Sequence[int], claims: Sequence[Claim], num: int
) -> list[str]:
    """Return which other numbers of images would give all claims, in one sentence.

    Args:
        sizes: As in `ClaimCheck.other_sizes`.
        claims: All claims.
        num: Test images.
    """
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


def _words_of_new(test: TestSet) -> str:
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


def words_of_claim(claim: Claim, test: TestSet) -> list[str]:
    """Return one claim in sentences."""
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


def _words_of_misfit(claim: Claim, test: TestSet) -> str:
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


def _words_of_count(claim: Claim, test: TestSet) -> str:
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


def _words_on_new(claim: Claim, test: TestSet) -> str:
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


def _words_on_wrong(claim: Claim, test: TestSet) -> str:
    wrong = claim.seen_wrong_if_new_as_good
    by_look_up = test.num_seen - test.num_seen_right
    if wrong is None or wrong <= by_look_up:
        return ""
    return (
        "To be as good on the new ones as on all, the network must have got "
        f"{wrong:,} of the {test.num_seen:,} seen ones wrong; look-up gets "
        f"{by_look_up:,} wrong."
    )


def _words_of_smallest(claim: Claim, test: TestSet) -> str:
    num = claim.smallest_difference
    if num is None:
        return (
            "No paired test over groups would find another network worse in "
            f"{percent(POWER, 0)} of cases."
        )
    right = claim.all.middle
    return (
        f"Another network must get at least {num:,} fewer right, "
        f"{_points((num, num), test)}, for a paired test over groups to find it worse "
        f"in {percent(POWER, 0)} of cases, if {_assumption(test, right, right - num)}."
    )


def words_of_difference(
    difference: ClaimDifference, test: TestSet, better: int, worse: int
) -> str:
    """Return two claims in words.

    Args:
        difference: Their difference.
        test: The test set.
        better: Right answers of the better network.
        worse: Right answers of the worse one.
    """
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
        f"{_assumption(test, better, worse)}, they disagree on about "
        f"{difference.expected_disagreements:.0f}, and it is found in "
        f"{percent(difference.power, 0)} of cases."
    )


def _assumption(test: TestSet, better: int, worse: int) -> str:
    """Return in words what `TestSet.chances` assumes of two networks."""
    if not test.num_seen or not test.num_new or better < test.num_seen:
        return "the two err independently"
    if worse < test.num_seen:
        return (
            "both are right about the seen images as far as they can be and err "
            "independently"
        )
    return "both are right about all seen images and err independently on the new ones"


def _points(images: tuple[int, int], test: TestSet) -> str:
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
