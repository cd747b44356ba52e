"""The audit of a set of images: its faults, and how far a test score can be believed.

`audit` returns everything that was found as an `Audit`, the content of `audit.json`.
It counts and compares; finding duplicates is `tumorlens.data.duplicates`, the leak
check `tumorlens.data.leakage`, predicting the class from facts of the file
`tumorlens.data.shortcuts`.

Patients are counted and never named: their keys come from the user's metadata and can
identify a person. Groups are therefore named by a path.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tumorlens.config import DataConfig
from tumorlens.data import shortcuts
from tumorlens.data.duplicates import NearPair, group_records
from tumorlens.data.images import SUFFIXES
from tumorlens.data.leakage import Sides, SplitLeak
from tumorlens.data.overlap import Overlaps
from tumorlens.files import Count
from tumorlens.text import NotebookView, counted, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tumorlens.data.duplicates import Duplicates, FileFacts
    from tumorlens.data.index import Index, Record

MAX_LISTED = 1000
"""Pairs of one kind that are listed; a folder of plain images has millions."""

MAX_BELIEVABLE_SHARE = 0.01
"""A leak of one test image in a hundred moves no score by more than 0.01."""

_SMALL_PX = 64
_LONG_RATIO = 3
_RARE_SHARE = 0.05


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class AuditedFile(_Part):
    """A file with its label and subset."""

    path: str
    label: str
    subset: str | None


class UnreadableFile(AuditedFile):
    """A file that cannot be read."""

    reason: str


class OddFile(AuditedFile):
    """A file whose shape, colour or name is unusual."""

    reasons: tuple[str, ...]


class DisputedFile(AuditedFile):
    """A file whose label the metadata contradicts."""

    source_label: str


class DuplicateFile(AuditedFile):
    """A file of a `DuplicateSet`."""

    pixels: str
    """First digits of the SHA-256 of the decoded pixels."""


class DuplicateSet(_Part):
    """All files that show one picture; more than one."""

    picture: str
    """First path of the set."""

    kind: Literal["bytes", "pixels", "near"]
    """Whether the files, only their pixels, or neither are equal."""

    labels: tuple[str, ...]
    subsets: tuple[str, ...]
    files: tuple[DuplicateFile, ...]
    near_pairs: tuple[NearPair, ...]


class LabelConflict(_Part):
    """Two files that show one picture under two labels."""

    a: str
    """Path; sorts before `b`."""

    b: str
    label_a: str
    label_b: str
    subset_a: str | None
    subset_b: str | None


class Shared(_Part):
    """What two subsets have in common."""

    subsets: tuple[str, str]
    pictures: Count
    patients: Count


class Distinct(_Part):
    """Number of different files, by three criteria."""

    bytes: Count
    pixels: Count
    pictures: Count


class Patients(_Part):
    """How many patients are known."""

    known: Count
    files_with_patient: Count


class Verdict(_Part):
    """Whether a score on the test set can be believed."""

    believable: bool | None
    """`None` without training and test subsets."""

    words: str
    """The verdict and its reasons."""

    left: str
    """What remains of the test set without the copies; empty without a leak."""


class Audit(NotebookView, shortcuts.Shortcuts):
    """The content of `audit.json`. No patient is named in it."""

    format: Literal[1] = 1
    """Number of this layout."""

    data: str
    """Name of the folder."""

    digest: str
    """`Index.digest`."""

    seed: int
    classes: tuple[str, ...]
    num_files: Count
    num_unreadable: Count
    subsets: dict[str, dict[str, Count]]
    """Subset, or `all` -> class -> number of files."""

    distinct: Distinct
    num_groups: Count
    unreadable: tuple[UnreadableFile, ...]
    odd: tuple[OddFile, ...]
    copy_sets: tuple[DuplicateSet, ...]
    """Every picture with more than one file, the worst first."""

    near_pairs: tuple[NearPair, ...]
    lookalikes: tuple[NearPair, ...] = ()
    """Pairs that are no copies but of one head, as neighbouring slices are. At most
    `MAX_LISTED`."""

    num_lookalikes: int = 0
    """All of them."""

    across_subsets: tuple[Shared, ...]
    leak: SplitLeak | None
    """`None` without a training or a test subset."""

    patients: Patients
    sources: dict[str, dict[str, dict[str, Count]]]
    """Subset -> class -> source -> number of files; empty when no source is known."""

    label_conflicts: tuple[LabelConflict, ...]
    """At most `MAX_LISTED`."""

    num_label_conflicts: Count
    """All of them."""

    source_label_conflicts: tuple[DisputedFile, ...]
    groups: dict[str, str]
    """Path -> first path of its group."""

    verdict: Verdict
    findings: tuple[str, ...]
    """Further findings, one sentence each, the worst first."""

    overlaps: Overlaps | None = None
    """What the set has in common with others, itself the first of them; `None` if it
    was compared with none."""

    @property
    def is_trainable(self) -> bool:
        """Whether training accepts that many unreadable files by default."""
        return self.num_unreadable <= DataConfig().max_unreadable * self.num_files


def audit(
    index: Index,
    duplicates: Duplicates,
    *,
    seed: int = 42,
    overlaps: Overlaps | None = None,
) -> Audit:
    """Return everything that was found.

    Args:
        index: The files.
        duplicates: The result of `find_duplicates` on this index.
        seed: Seed of the folds and forests behind `shortcuts` and `source_shift`.
        overlaps: What the set has in common with others.
    """
    groups = group_records(index, duplicates)
    readable = [record for record in index.records if record.path in duplicates.facts]
    sides = Sides(
        {
            record.path: "train" if record.subset == "val" else record.subset
            for record in readable
            if record.subset is not None
        },
        index,
        duplicates,
    )
    conflicts = _label_conflicts(readable, duplicates)
    num_conflicts = sum(len(a) * len(b) for a, b in conflicts)
    disputed = source_label_conflicts(index.records)
    found = _shortcuts(readable, duplicates, groups, sides, seed=seed)
    leak = sides.in_full(index.classes)
    num_files, num_unreadable = len(index.records), len(duplicates.unreadable)
    return Audit(
        data=index.root.name,
        digest=index.digest,
        seed=seed,
        classes=index.classes,
        num_files=num_files,
        num_unreadable=num_unreadable,
        subsets=_count_by_subset(index.records),
        distinct=Distinct(
            bytes=len({record.sha256 for record in index.records}),
            pixels=len(set(duplicates.pixels.values())),
            pictures=len(set(duplicates.pictures.values())),
        ),
        num_groups=len(set(groups.values())),
        unreadable=tuple(
            UnreadableFile(**_place(record), reason=duplicates.unreadable[record.path])
            for record in index.records
            if record.path in duplicates.unreadable
        ),
        odd=_odd_files(readable, duplicates.facts),
        copy_sets=_copy_sets(readable, duplicates),
        near_pairs=duplicates.near_pairs,
        lookalikes=duplicates.lookalikes[:MAX_LISTED],
        num_lookalikes=len(duplicates.lookalikes),
        across_subsets=_across_subsets(readable, duplicates),
        leak=leak,
        patients=_patients(index.records),
        sources=_sources(index.records),
        label_conflicts=tuple(islice(_pairs(conflicts), MAX_LISTED)),
        num_label_conflicts=num_conflicts,
        source_label_conflicts=disputed,
        **dict(found),
        groups=groups,
        verdict=_verdict(
            sides, leak, num_files=num_files, num_unreadable=num_unreadable
        ),
        findings=_findings(
            found,
            num_conflicts=num_conflicts,
            num_disputed=len(disputed),
            num_unreadable=num_unreadable,
            num_lookalikes=len(duplicates.lookalikes),
        ),
        overlaps=overlaps,
    )


def _place(record: Record) -> dict[str, str | None]:
    return {"path": record.path, "label": record.label, "subset": record.subset}


def _count_by_subset(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.subset or "all"][record.label] += 1
    return {subset: dict(sorted(counts[subset].items())) for subset in sorted(counts)}


def _odd_files(
    readable: Sequence[Record], facts: Mapping[str, FileFacts]
) -> tuple[OddFile, ...]:
    num_coloured = sum(facts[record.path].is_coloured for record in readable)
    colour_is_rare = 0 < num_coloured <= _RARE_SHARE * len(readable)
    odd = []
    for record in readable:
        fact = facts[record.path]
        short, long = sorted((fact.width, fact.height))
        suffix = PurePosixPath(record.path).suffix
        reasons = [
            reason
            for is_so, reason in (
                (fact.is_plain, "every pixel has the same value"),
                (short < _SMALL_PX, f"only {fact.width} x {fact.height} pixels"),
                (
                    long > _LONG_RATIO * short,
                    f"stretched: {fact.width} x {fact.height} pixels",
                ),
                (
                    fact.is_coloured and colour_is_rare,
                    f"coloured, as only {num_coloured} of {len(readable)} files",
                ),
                (
                    bool(suffix) and suffix.lower() not in SUFFIXES,
                    f"an image whose name ends in {suffix}",
                ),
            )
            if is_so
        ]
        if reasons:
            odd.append(OddFile(**_place(record), reasons=tuple(reasons)))
    return tuple(odd)


def _copy_sets(
    readable: Iterable[Record], duplicates: Duplicates
) -> tuple[DuplicateSet, ...]:
    members: dict[str, list[Record]] = defaultdict(list)
    for record in readable:
        members[duplicates.pictures[record.path]].append(record)
    pairs: dict[str, list[NearPair]] = defaultdict(list)
    for pair in duplicates.near_pairs:
        if duplicates.pictures[pair.a] == duplicates.pictures[pair.b]:
            pairs[duplicates.pictures[pair.a]].append(pair)
    sets = [
        DuplicateSet(
            picture=picture,
            kind=_kind(same, duplicates),
            labels=tuple(sorted({record.label for record in same})),
            subsets=tuple(sorted({record.subset for record in same if record.subset})),
            files=tuple(
                DuplicateFile(
                    **_place(record), pixels=duplicates.pixels[record.path][:12]
                )
                for record in same
            ),
            near_pairs=tuple(pairs[picture]),
        )
        for picture, same in members.items()
        if len(same) > 1
    ]
    return tuple(
        sorted(
            sets,
            key=lambda one: (
                -len(one.labels),
                -len(one.subsets),
                -len(one.files),
                one.picture,
            ),
        )
    )


def _kind(
    same: Sequence[Record], duplicates: Duplicates
) -> Literal["bytes", "pixels", "near"]:
    if len({record.sha256 for record in same}) == 1:
        return "bytes"
    if len({duplicates.pixels[record.path] for record in same}) == 1:
        return "pixels"
    return "near"


def _across_subsets(
    readable: Iterable[Record], duplicates: Duplicates
) -> tuple[Shared, ...]:
    pictures: dict[str, set[str]] = defaultdict(set)
    patients: dict[str, set[str]] = defaultdict(set)
    for record in readable:
        if record.subset is not None:
            pictures[record.subset].add(duplicates.pictures[record.path])
            if record.patient is not None:
                patients[record.subset].add(record.patient)
    return tuple(
        Shared(
            subsets=(one, other),
            pictures=len(pictures[one] & pictures[other]),
            patients=len(patients[one] & patients[other]),
        )
        for one, other in combinations(sorted(pictures), 2)
    )


def _patients(records: Iterable[Record]) -> Patients:
    known = [record.patient for record in records if record.patient is not None]
    return Patients(known=len(set(known)), files_with_patient=len(known))


def _sources(records: Sequence[Record]) -> dict[str, dict[str, dict[str, int]]]:
    if all(record.source is None for record in records):
        return {}
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(
        lambda: defaultdict(Counter)
    )
    for record in records:
        counts[record.subset or "all"][record.label][record.source or "unknown"] += 1
    return {
        subset: {
            label: dict(sorted(counts[subset][label].items()))
            for label in sorted(counts[subset])
        }
        for subset in sorted(counts)
    }


def _label_conflicts(
    readable: Iterable[Record], duplicates: Duplicates
) -> list[tuple[list[Record], list[Record]]]:
    """Return pairs of lists: each file of one shows the picture of each of the other.

    All of the first list have one label and all of the second have another.
    """
    by_picture: dict[str, dict[str, list[Record]]] = defaultdict(dict)
    by_pixels: dict[str, dict[str, list[Record]]] = defaultdict(dict)
    for record in readable:
        for same in (
            by_picture[duplicates.pictures[record.path]],
            by_pixels[duplicates.pixels[record.path]],
        ):
            same.setdefault(record.label, []).append(record)
    found = [
        (lot[one], lot[other])
        for _, lot in sorted(by_picture.items())
        for one, other in combinations(sorted(lot), 2)
    ]
    for pair in duplicates.near_pairs:
        if duplicates.pictures[pair.a] != duplicates.pictures[pair.b]:
            first = by_pixels[duplicates.pixels[pair.a]]
            second = by_pixels[duplicates.pixels[pair.b]]
            found += [
                (first[one], second[other])
                for one in sorted(first)
                for other in sorted(second)
                if one != other
            ]
    return found


def _pairs(
    conflicts: Iterable[tuple[list[Record], list[Record]]],
) -> Iterator[LabelConflict]:
    for first, second in conflicts:
        for one in first:
            for other in second:
                a, b = sorted((one, other), key=lambda record: record.path)
                yield LabelConflict(
                    a=a.path,
                    b=b.path,
                    label_a=a.label,
                    label_b=b.label,
                    subset_a=a.subset,
                    subset_b=b.subset,
                )


def source_label_conflicts(records: Iterable[Record]) -> tuple[DisputedFile, ...]:
    """Return the files whose label contradicts the one that their source gives."""
    return tuple(
        DisputedFile(**_place(record), source_label=record.source_label)
        for record in records
        if record.source_label is not None
        and _plain_label(record.label) != _plain_label(record.source_label)
    )


def _plain_label(label: str) -> str:
    """Return a label without differences of spelling.

    Example:
        >>> _plain_label("Glioma_tumor") == _plain_label("glioma")
        True
        >>> _plain_label("no_tumor") == _plain_label("No-Tumour") != "glioma"
        True
    """
    letters = "".join(c for c in label.casefold() if c.isalnum())
    letters = letters.removesuffix("s").replace("tumour", "tumor")
    letters = letters.removesuffix("tumor")
    return "no" if letters in {"normal", "healthy", "none", "negative"} else letters


def _shortcuts(
    readable: Sequence[Record],
    duplicates: Duplicates,
    groups: Mapping[str, str],
    sides: Sides,
    *,
    seed: int,
) -> shortcuts.Shortcuts:
    if not readable:
        return shortcuts.Shortcuts()
    facts = [duplicates.facts[record.path] for record in readable]
    side_of = [sides.side_of.get(record.path) for record in readable]
    return shortcuts.measure(
        {
            column: np.array([getattr(fact, column) for fact in facts], np.float64)
            for column in shortcuts.COLUMNS
        },
        thumbnails=np.stack(
            [duplicates.thumbnails[record.path] for record in readable]
        ),
        labels=np.array([record.label for record in readable]),
        groups=np.array([groups[record.path] for record in readable]),
        is_train=np.array([side == "train" for side in side_of]),
        is_test=np.array([side == "test" for side in side_of]),
        is_copied=np.array([record.path in sides.copied for record in readable]),
        seed=seed,
    )


def _verdict(
    sides: Sides, leak: SplitLeak | None, *, num_files: int, num_unreadable: int
) -> Verdict:
    touched = sides.copied | sides.same_patient | sides.lookalike
    left = _left(leak) if leak and touched else ""
    highest = DataConfig().max_unreadable
    if num_unreadable > highest * num_files:
        return Verdict(
            believable=False,
            words=f"Too many files cannot be read: {num_unreadable} of {num_files} "
            f"({percent(num_unreadable / num_files)}), and training stops above "
            f"{percent(highest)} (data.max_unreadable).",
            left=left,
        )
    if leak is None:
        return Verdict(
            believable=None,
            words="There are no training and test subsets to judge. A split by "
            "group, made from this set, keeps patients and copies together.",
            left="",
        )
    believable = len(touched) <= MAX_BELIEVABLE_SHARE * leak.num_test
    as_far = "copies and known patients go"
    if not leak.test_files_with_patient:
        as_far = "copies go: patients are not known"
    opening = (
        f"A score on this test set can be believed, as far as {as_far}."
        if believable
        else "A score on this test set cannot be believed."
    )
    return Verdict(believable=believable, words=f"{opening} {leak.words}", left=left)


def _left(leak: SplitLeak) -> str:
    """Return what remains of the test set without the copies, in words."""
    num, num_shared = leak.clean_test_files, leak.clean_test_files_with_patient_in_train
    if num == 0:
        return "Without the copies, nothing is left of the test set."
    by_class = {
        label: counts.test - counts.copied for label, counts in leak.by_class.items()
    }
    words = (
        f"Without the copies, {num} of {counted(leak.num_test, 'test image')} "
        f"{'is' if num == 1 else 'are'} left: "
        + ", ".join(f"{count} {label}" for label, count in by_class.items())
        + f". The {num} show{'s' * (num == 1)} "
        + counted(leak.clean_test_pictures, "distinct picture")
    )
    if num_shared:
        of = "is of a patient who is" if num_shared == 1 else "are of patients who are"
        words += f"; {num_shared} of the {num} {of} in training too"
    if gone := [label for label, count in by_class.items() if count == 0]:
        words += f"; nothing is left of {' and '.join(gone)}"
    return f"{words}."


def _findings(
    found: shortcuts.Shortcuts,
    *,
    num_conflicts: int,
    num_disputed: int,
    num_unreadable: int,
    num_lookalikes: int,
) -> tuple[str, ...]:
    sentences = []
    if num := num_conflicts:
        sentences.append(
            f"{counted(num, 'pair')} of files "
            f"{'shows' if num == 1 else 'show'} one picture under two labels."
        )
    if num := num_disputed:
        sentences.append(f"{counted(num, 'label')} contradict what the source says.")
    if num := num_lookalikes:
        sentences.append(
            f"{counted(num, 'pair')} of files {'looks' if num == 1 else 'look'} like "
            "neighbouring slices of one head; they stay in one group."
        )
    sentences += shortcuts.in_words(found)
    if num := num_unreadable:
        sentences.append(f"{counted(num, 'file')} cannot be read.")
    return tuple(sentences)
