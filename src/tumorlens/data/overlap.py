"""What two sets of images have in common: copies, patients, and labels that disagree.

The public sets are made of each other, mirrored in part, so that a second set is often
no new one. Each pair of sets is compared by itself: what it shows does not depend on a
third set, nor on the order. A file of one set is in the other if both show one picture,
by the same rule as a leak between training and test (`tumorlens.data.leakage`).

Patients are counted and never named, as in the audit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import combinations, islice, product
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tumorlens.config import set_names
from tumorlens.data.class_names import ClassMatch, match_classes
from tumorlens.data.duplicates import Duplicates, find_duplicates, pool_duplicates
from tumorlens.data.index import Index, Record, read_index
from tumorlens.data.leakage import Sides
from tumorlens.data.near_duplicates import ORIENTATIONS, UNDOING, turned
from tumorlens.errors import DataError
from tumorlens.files import Count
from tumorlens.system import without_user
from tumorlens.text import counted, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

MAX_LISTED = 1000
"""Shared pictures, and pairs under two labels, that are listed for two sets."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ComparedSet(_Part):
    """One of the sets."""

    name: str
    root: str
    """Folder that its paths start from, without the user's folder and name."""

    classes: tuple[str, ...]
    num_files: Count
    num_unreadable: Count
    num_pictures: Count
    """Distinct pictures."""


class InOther(_Part):
    """How many files and pictures of a set, or of one class of it, another set has."""

    num_files: Count
    """All readable files."""

    files: Count
    """Those that show a picture which the other set has too."""

    num_pictures: Count
    """All distinct pictures."""

    pictures: Count
    """Those of which the other set has a file."""

    @property
    def share(self) -> float | None:
        """Share of the pictures that the other set has; `None` without a picture."""
        return self.pictures / self.num_pictures if self.num_pictures else None


class SetInOther(InOther):
    """How much of one set is in another."""

    of: str
    """Name of the set."""

    other: str
    """Name of the other set, which has them."""

    pixel_identical: Count
    """Files that have exactly equal pixels in the other set."""

    lookalikes: Count
    """Further files so like one of the other set that both are of one head."""

    by_class: dict[str, InOther]
    by_orientation: dict[str, Count]
    """Turn that makes a file look like that of the other set, one of `ORIENTATIONS` ->
    files. A file with several copies there counts where it needs the least turn."""


class SharedPicture(_Part):
    """A file of each of two sets that show one picture."""

    a: str
    """Path in the first set."""

    b: str
    """Path in the second set."""

    label_a: str
    label_b: str
    orientation: str
    """Turn of `a`: one of `ORIENTATIONS`."""

    is_identical: bool
    """Whether the pixels are equal."""


class TwoSets(_Part):
    """What two sets have in common."""

    sets: tuple[str, str]
    """Names of the first and of the second set."""

    classes: tuple[tuple[str, str], ...]
    """Names of one class in the first and in the second set."""

    only_first: tuple[str, ...]
    """Classes of the first set that are not matched with one of the second."""

    only_second: tuple[str, ...]
    in_other: tuple[SetInOther, SetInOther]
    """The first set in the second, and the second in the first."""

    patients: Count
    """Keys of known patients with images in both."""

    shared: tuple[SharedPicture, ...]
    """One for each picture of the first set that the second has; at most
    `MAX_LISTED`."""

    disagreeing: tuple[SharedPicture, ...]
    """Pairs of files of one picture whose labels mean two classes; at most
    `MAX_LISTED`."""

    num_disagreeing: Count
    """All of them."""

    num_not_comparable: Count
    """Pairs of files of one picture with labels that both have no match."""

    sentences: tuple[str, ...]
    """The same in words."""


class Overlaps(_Part):
    """What several sets have in common, two by two."""

    sets: tuple[ComparedSet, ...]
    pairs: tuple[TwoSets, ...]

    @property
    def matrix(self) -> dict[str, dict[str, SetInOther]]:
        """Name of a set -> name of another set that has files of it -> how many."""
        found: dict[str, dict[str, SetInOther]] = {one.name: {} for one in self.sets}
        for pair in self.pairs:
            for one in pair.in_other:
                found[one.of][one.other] = one
        return found


@dataclass(frozen=True)
class ReadSet:
    """A set whose files were read."""

    name: str
    index: Index
    duplicates: Duplicates


def read_sets(
    places: Sequence[Path],
    *,
    metadata: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ReadSet]:
    """Return sets whose files are read, named after their folders.

    Args:
        places: Folders or tables, each another one.
        metadata: As for `read_index`, for the first set; of the others, a
            `metadata.csv` holds unless this is `"none"`.
        progress: Called with files done and files in all.

    Raises:
        ConfigError: A place is named twice.
        DataError: One cannot be used, or no image in it can be read.
        MissingExtraError: A Parquet table or a compressed DICOM file needs an extra.
    """
    names = set_names(places) if len(places) > 1 else [""]
    rest = "none" if metadata == "none" else None
    indices = [
        read_index(place, metadata=rest if number else metadata)
        for number, place in enumerate(places)
    ]
    num_files = sum(len(index.records) for index in indices)
    read: list[ReadSet] = []
    num_done = 0

    def show(done: int, _: int) -> None:
        if progress is not None:
            progress(num_done + done, num_files)

    for name, place, index in zip(names, places, indices, strict=True):
        duplicates = find_duplicates(index, progress=show)
        _check_any_readable(place, index, duplicates)
        num_done += len(index.records)
        read.append(ReadSet(name, index, duplicates))
    return read


def _check_any_readable(place: Path, index: Index, duplicates: Duplicates) -> None:
    """Refuse a set of which nothing can be audited.

    Raises:
        DataError: Not one file can be read.
    """
    if len(duplicates.unreadable) == len(index.records):
        path, reason = next(iter(duplicates.unreadable.items()))
        raise DataError(
            f"none of {counted(len(index.records), 'file')} in {place} can be read; "
            f"the first is {path}: {reason}",
            hint="give a folder of JPEG, PNG, TIFF, BMP or DICOM images",
        )


def compare_sets(sets: Iterable[ReadSet]) -> Overlaps:
    """Return what sets have in common, two by two.

    Args:
        sets: Two or more, with different names.
    """
    read = list(sets)
    return Overlaps(
        sets=tuple(
            ComparedSet(
                name=one.name,
                root=without_user(str(one.index.root)),
                classes=one.index.classes,
                num_files=len(one.index.records),
                num_unreadable=len(one.duplicates.unreadable),
                num_pictures=len({*one.duplicates.pictures.values()}),
            )
            for one in read
        ),
        pairs=tuple(_compare_two(one, other) for one, other in combinations(read, 2)),
    )


def _compare_two(first: ReadSet, second: ReadSet) -> TwoSets:
    match = match_classes(first.index.classes, second.index.classes)
    both = _Both(first, second)
    blocks: dict[str, list[_Block]] = {"agree": [], "disagree": [], "unknown": []}
    for block in both.blocks():
        blocks[_judge(match, block)].append(block)
    found = TwoSets(
        sets=(first.name, second.name),
        classes=match.pairs,
        only_first=match.only_first,
        only_second=match.only_second,
        in_other=(
            _in_other(both, first, second),
            _in_other(both, second, first),
        ),
        patients=both.sides.num_patients,
        shared=tuple(islice(both.shared(), MAX_LISTED)),
        disagreeing=tuple(islice(both.pairs_in(blocks["disagree"]), MAX_LISTED)),
        num_disagreeing=sum(block.num_pairs for block in blocks["disagree"]),
        num_not_comparable=sum(block.num_pairs for block in blocks["unknown"]),
        sentences=(),
    )
    return found.model_copy(update={"sentences": tuple(_sentences(found))})


@dataclass(frozen=True)
class _Block:
    """Files of two sets that all show one picture; one label in each set."""

    first: tuple[Record, ...]
    second: tuple[Record, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.first) * len(self.second)


def _judge(match: ClassMatch, block: _Block) -> Literal["agree", "disagree", "unknown"]:
    """Return whether the labels of a block mean one class, as far as they match."""
    label, other = block.first[0].label, block.second[0].label
    if (label, other) in match.pairs:
        return "agree"
    if label in match.only_first and other in match.only_second:
        return "unknown"
    return "disagree"


class _Both:
    """Two sets as one index, and which files of the two show one picture."""

    def __init__(self, first: ReadSet, second: ReadSet) -> None:
        self.names = (first.name, second.name)
        records = [
            replace(record, path=f"{one.name}/{record.path}")
            for one in (first, second)
            for record in one.index.records
        ]
        index = Index(first.index.root, (), tuple(records))
        parts = {one.name: one.duplicates for one in (first, second)}
        self.duplicates = pool_duplicates(index, parts)
        readable = [one for one in records if one.path in self.duplicates.pixels]
        # A side called `train`, as a set may be, would count as training.
        sides = {one.path: f"set {_set_of(one.path)}" for one in readable}
        self.sides = Sides(sides, index, self.duplicates)
        self.records = {one.path: one for one in readable}
        self.node_of: dict[str, str] = {}
        """Path -> first path with equal pixels."""
        self.members: dict[str, dict[str, list[Record]]] = defaultdict(
            lambda: {name: [] for name in self.names}
        )
        """First path with equal pixels -> set -> its files."""
        first_of: dict[str, str] = {}
        for path in sorted(self.records):
            node = first_of.setdefault(self.duplicates.pixels[path], path)
            self.node_of[path] = node
            self.members[node][_set_of(path)].append(self.records[path])

    def blocks(self) -> Iterator[_Block]:
        """Yield what shows one picture. Each pair of files is in one block."""
        nodes_of: dict[str, list[str]] = defaultdict(list)
        for node in self.members:
            nodes_of[self.duplicates.pictures[node]].append(node)
        for _, nodes in sorted(nodes_of.items()):
            yield from self._by_label(nodes, nodes)
        for pair in self.duplicates.near_pairs:
            # A copy of a copy may be a picture of its own.
            if self.duplicates.pictures[pair.a] != self.duplicates.pictures[pair.b]:
                yield from self._by_label([pair.a], [pair.b])
                yield from self._by_label([pair.b], [pair.a])

    def _by_label(self, ours: list[str], theirs: list[str]) -> Iterator[_Block]:
        sides = []
        for name, nodes in zip(self.names, (ours, theirs), strict=True):
            by_label: dict[str, list[Record]] = defaultdict(list)
            for node in nodes:
                for record in self.members[node][name]:
                    by_label[record.label].append(record)
            sides.append([tuple(by_label[label]) for label in sorted(by_label)])
        yield from (_Block(one, other) for one in sides[0] for other in sides[1])

    def partner_of(self, path: str) -> tuple[str, str]:
        """Return the file of the other set that a file is most like, and its turn.

        Args:
            path: A file that shows a picture which the other set has too.

        Returns:
            Path, and the turn that makes `path` look like it. Of several, the one with
            equal pixels, or else with the least turn.
        """
        node = self.node_of[path]
        (other,) = {*self.names} - {_set_of(path)}
        if same := self.members[node][other]:
            return same[0].path, ORIENTATIONS[0]
        found = [
            (turn, self.members[near][other][0].path)
            for near, turn in self._direct[node].items()
            if self.members[near][other]
        ]
        picture = self.duplicates.pictures[node]
        for turn, near in self._first_with_turn[picture, other].items():
            found.append((_then(self._turns[node], UNDOING[turn]), near))
        turn, partner = min(found)
        return partner, ORIENTATIONS[turn]

    def shared(self) -> Iterator[SharedPicture]:
        """Yield a file of each picture of the first set that the second has."""
        seen: set[str] = set()
        for path in sorted(self.sides.copied):
            picture = self.duplicates.pictures[path]
            if _set_of(path) == self.names[0] and picture not in seen:
                seen.add(picture)
                yield self._shared(path, *self.partner_of(path))

    def pairs_in(self, blocks: Iterable[_Block]) -> Iterator[SharedPicture]:
        """Yield each pair of files of some blocks."""
        for block in blocks:
            for one, other in product(block.first, block.second):
                turn = ORIENTATIONS[self._turn(one.path, other.path)]
                yield self._shared(one.path, other.path, turn)

    def _shared(self, path: str, other: str, turn: str) -> SharedPicture:
        return SharedPicture(
            a=_inner(path),
            b=_inner(other),
            label_a=self.records[path].label,
            label_b=self.records[other].label,
            orientation=turn,
            is_identical=self.node_of[path] == self.node_of[other],
        )

    def _turn(self, path: str, other: str) -> int:
        node, near = self.node_of[path], self.node_of[other]
        if node == near:
            return 0
        if near in self._direct[node]:
            return self._direct[node][near]
        return _then(self._turns[node], UNDOING[self._turns[near]])

    @cached_property
    def _direct(self) -> Mapping[str, dict[str, int]]:
        """File -> near copy of it -> turn that makes the first look like the second."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for pair in self.duplicates.near_pairs:
            turn = ORIENTATIONS.index(pair.orientation)
            found[pair.a][pair.b] = turn
            found[pair.b][pair.a] = UNDOING[turn]
        return found

    @cached_property
    def _turns(self) -> dict[str, int]:
        """File -> turn that makes it look like the first file of its picture."""
        pictures = self.duplicates.pictures
        turns: dict[str, int] = {}
        for first in sorted({*pictures.values()}):
            turns[first] = 0
            waiting = [first]
            while waiting:  # the copies, then copies that were settled by a copy
                reached = []
                for node in waiting:
                    for near, turn in self._direct[node].items():
                        if pictures[near] == first and near not in turns:
                            turns[near] = _then(UNDOING[turn], turns[node])
                            reached.append(near)
                waiting = reached
        return turns

    @cached_property
    def _first_with_turn(self) -> Mapping[tuple[str, str], dict[int, str]]:
        """Picture and set -> turn of a file to its first file -> such a file."""
        found: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
        for node, members in self.members.items():
            picture = self.duplicates.pictures[node]
            for name, its in members.items():
                if its:
                    found[picture, name].setdefault(self._turns[node], its[0].path)
        return found


def _in_other(both: _Both, one: ReadSet, other: ReadSet) -> SetInOther:
    """Return how much of a set is in another."""
    readable = [r for r in one.index.records if r.path in one.duplicates.pictures]
    copied = {_inner(path) for path in both.sides.copied if _set_of(path) == one.name}
    turns = Counter(both.partner_of(f"{one.name}/{path}")[1] for path in copied)
    pictures = one.duplicates.pictures

    def count(records: list[Record]) -> dict[str, int]:
        inside = [record for record in records if record.path in copied]
        return {
            "num_files": len(records),
            "files": len(inside),
            "num_pictures": len({pictures[record.path] for record in records}),
            "pictures": len({pictures[record.path] for record in inside}),
        }

    def num_of(paths: set[str]) -> int:
        return sum(_set_of(path) == one.name for path in paths)

    return SetInOther(
        **count(readable),
        of=one.name,
        other=other.name,
        pixel_identical=num_of(both.sides.identical),
        lookalikes=num_of(both.sides.lookalike),
        by_class={
            label: InOther(**count([r for r in readable if r.label == label]))
            for label in one.index.classes
        },
        by_orientation={turn: turns[turn] for turn in ORIENTATIONS if turns[turn]},
    )


def _sentences(found: TwoSets) -> Iterator[str]:
    for one in found.in_other:
        yield _how_much(one)
    if found.patients:
        yield (
            f"{counted(found.patients, 'key')} of known patients "
            f"{'is' if found.patients == 1 else 'are'} in both; if each set numbers "
            "its patients by itself, equal keys may be other people."
        )
    if num := found.num_disagreeing:
        example = found.disagreeing[0]
        yield (
            f"{counted(num, 'pair')} of files {'shows' if num == 1 else 'show'} one "
            f"picture under labels that disagree, as {example.a} ({example.label_a}) "
            f"in {found.sets[0]} and {example.b} ({example.label_b}) in "
            f"{found.sets[1]}."
        )
    renamed = [f"{one} is {other}" for one, other in found.classes if one != other]
    if renamed:
        yield f"Matched classes: {', '.join(renamed)}."
    for name, only in zip(
        found.sets, (found.only_first, found.only_second), strict=True
    ):
        if only:
            yield f"Only {name} has the {_classes(only)}."
    if num := found.num_not_comparable:
        yield (
            f"{counted(num, 'pair')} of files of one picture "
            f"{'has' if num == 1 else 'have'} labels that cannot be compared."
        )


def _how_much(one: SetInOther) -> str:
    of_all = f"of {counted(one.num_files, 'file')} of {one.of}"
    if one.files:
        words = (
            f"{one.files:,} {of_all} ({percent(one.files / one.num_files)}) "
            f"{'shows' if one.files == 1 else 'show'} a picture of {one.other}, "
            f"{_turned(one)}, and {one.pictures:,} of its "
            f"{counted(one.num_pictures, 'distinct picture')} "
            f"{'is' if one.pictures == 1 else 'are'} there"
        )
    else:
        words = f"None {of_all} shows a picture of {one.other}"
    if num := one.lookalikes:
        words += (
            f"; {num:,} {'more ' if one.files else ''}"
            f"{'looks' if num == 1 else 'look'} like neighbouring slices of images "
            "there"
        )
    if not one.files:
        return f"{words}."
    by_class = (
        f"{label} {its.files:,} of {its.num_files:,}"
        for label, its in one.by_class.items()
    )
    return f"{words}. Files by class: {', '.join(by_class)}."


def _turned(one: SetInOther) -> str:
    as_it_is = one.by_orientation.get(ORIENTATIONS[0], 0)
    mirrored = sum(
        num for turn, num in one.by_orientation.items() if turn.startswith("mirrored")
    )
    parts = {
        "the same way round": as_it_is,
        "mirrored": mirrored,
        "turned": one.files - as_it_is - mirrored,
    }
    return ", ".join(f"{num:,} {how}" for how, num in parts.items() if num)


def _classes(names: tuple[str, ...]) -> str:
    return f"{'class' if len(names) == 1 else 'classes'} {', '.join(names)}"


def _set_of(path: str) -> str:
    return path.partition("/")[0]


def _inner(path: str) -> str:
    return path.partition("/")[2]


@cache
def _then(turn: int, next_turn: int) -> int:
    """Return the turn that two turns, one after the other, make together."""
    image = np.arange(4, dtype=np.uint8).reshape(2, 2)
    both = turned(turned(image, turn), next_turn).tolist()
    (found,) = (t for t in range(8) if turned(image, t).tolist() == both)
    return found
