"""What is wrong with a set of images, and whether a score on its test set means much.

`audit` puts everything that was found into one dictionary, the content of `audit.json`;
`judge_leak` says for any split, as given or made here, whether training has seen what
the test asks. Both count and compare; finding copies is `tumorlens.data.duplicates`.

What a newcomer gets wrong: patients may be counted, never named. Their keys come from
the user's metadata and can identify a person; groups are therefore named by a path.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import combinations, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.config import DataConfig
from tumorlens.data import shortcuts
from tumorlens.data.duplicates import group_records
from tumorlens.data.images import SUFFIXES
from tumorlens.data.leakage import LeakVerdict, Sides, judge_leak
from tumorlens.text import counted, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tumorlens.data.duplicates import Copies, FileFacts
    from tumorlens.data.index import Index, Record

__all__ = ["FORMAT", "MAX_LISTED", "LeakVerdict", "audit", "judge_leak"]

FORMAT = 1
"""Of `audit.json`."""

MAX_LISTED = 1000
"""Pairs of one kind that are listed; a folder of plain images has millions."""

_MAX_BELIEVABLE_SHARE = 0.01
"""A leak of one test image in a hundred moves no score by more than 0.01."""

_SMALL_PX = 64
_LONG_RATIO = 3
_RARE_SHARE = 0.05


def audit(index: Index, copies: Copies, *, seed: int = 42) -> dict[str, Any]:
    """Return everything that was found, ready to be written as JSON.

    Args:
        index: The files.
        copies: What `find_copies` found for this index.
        seed: Of the folds and forests behind `shortcuts` and `source_shift`.

    Returns:
        Counts, lists and sentences, as the audit page shows them. No patient is
        named. `leak` is `None` for a set without a training or a test subset.
    """
    groups = group_records(index, copies)
    readable = [record for record in index.records if record.path in copies.facts]
    sides = Sides(
        {
            record.path: "train" if record.subset == "val" else record.subset
            for record in readable
            if record.subset is not None
        },
        index,
        copies,
    )
    conflicts = _label_conflicts(readable, copies)
    source_conflicts = _source_label_conflicts(index.records)
    found: dict[str, Any] = {
        "format": FORMAT,
        "data": index.root.name,
        "digest": index.digest,
        "seed": seed,
        "classes": list(index.classes),
        "num_files": len(index.records),
        "num_unreadable": len(copies.unreadable),
        "subsets": _count_by_subset(index.records),
        "distinct": {
            "bytes": len({record.sha256 for record in index.records}),
            "pixels": len(set(copies.pixels.values())),
            "pictures": len(set(copies.pictures.values())),
        },
        "num_groups": len(set(groups.values())),
        "unreadable": [
            {**_place(record), "reason": copies.unreadable[record.path]}
            for record in index.records
            if record.path in copies.unreadable
        ],
        "odd": _odd_files(readable, copies.facts),
        "copy_sets": _copy_sets(readable, copies),
        "near_pairs": [asdict(pair) for pair in copies.near_pairs],
        "across_subsets": _across_subsets(readable, copies),
        "leak": sides.numbers(index.classes),
        "patients": _patients(index.records),
        "sources": _sources(index.records),
        "label_conflicts": list(islice(_pairs(conflicts), MAX_LISTED)),
        "num_label_conflicts": sum(len(a) * len(b) for a, b in conflicts),
        "source_label_conflicts": source_conflicts,
        **_shortcuts(readable, copies, groups, sides, seed=seed),
        "groups": groups,
    }
    found["verdict"] = _verdict(sides, found) | _too_many_unreadable(found)
    found["findings"] = _findings(found)
    return found


def _place(record: Record) -> dict[str, Any]:
    return {"path": record.path, "label": record.label, "subset": record.subset}


def _count_by_subset(records: Iterable[Record]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        counts[record.subset or "all"][record.label] += 1
    return {subset: dict(sorted(counts[subset].items())) for subset in sorted(counts)}


def _odd_files(
    readable: Sequence[Record], facts: Mapping[str, FileFacts]
) -> list[dict[str, Any]]:
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
            odd.append({**_place(record), "reasons": reasons})
    return odd


def _copy_sets(readable: Iterable[Record], copies: Copies) -> list[dict[str, Any]]:
    """Return every picture with more than one file, the worst first."""
    members: dict[str, list[Record]] = defaultdict(list)
    for record in readable:
        members[copies.pictures[record.path]].append(record)
    pairs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in copies.near_pairs:
        if copies.pictures[pair.a] == copies.pictures[pair.b]:
            pairs[copies.pictures[pair.a]].append(asdict(pair))
    sets = [
        {
            "picture": picture,
            "kind": _kind(same, copies),
            "labels": sorted({record.label for record in same}),
            "subsets": sorted({record.subset for record in same if record.subset}),
            "files": [
                {**_place(record), "pixels": copies.pixels[record.path][:12]}
                for record in same
            ],
            "near_pairs": pairs[picture],
        }
        for picture, same in members.items()
        if len(same) > 1
    ]
    return sorted(
        sets,
        key=lambda one: (
            -len(one["labels"]),
            -len(one["subsets"]),
            -len(one["files"]),
            one["picture"],
        ),
    )


def _kind(same: Sequence[Record], copies: Copies) -> str:
    if len({record.sha256 for record in same}) == 1:
        return "bytes"
    if len({copies.pixels[record.path] for record in same}) == 1:
        return "pixels"
    return "near"


def _across_subsets(readable: Iterable[Record], copies: Copies) -> list[dict[str, Any]]:
    """Return for each two subsets how many pictures and patients are in both."""
    pictures: dict[str, set[str]] = defaultdict(set)
    patients: dict[str, set[str]] = defaultdict(set)
    for record in readable:
        if record.subset is not None:
            pictures[record.subset].add(copies.pictures[record.path])
            if record.patient is not None:
                patients[record.subset].add(record.patient)
    return [
        {
            "subsets": [one, other],
            "pictures": len(pictures[one] & pictures[other]),
            "patients": len(patients[one] & patients[other]),
        }
        for one, other in combinations(sorted(pictures), 2)
    ]


def _patients(records: Iterable[Record]) -> dict[str, int]:
    known = [record.patient for record in records if record.patient is not None]
    return {"known": len(set(known)), "files_with_patient": len(known)}


def _sources(records: Sequence[Record]) -> dict[str, dict[str, dict[str, int]]]:
    """Return subset -> class -> source -> files; empty when no source is known."""
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
    readable: Iterable[Record], copies: Copies
) -> list[tuple[list[Record], list[Record]]]:
    """Return pairs of lists: each file of one shows the picture of each of the other.

    All of the first list have one label and all of the second have another.
    """
    by_picture: dict[str, dict[str, list[Record]]] = defaultdict(dict)
    by_pixels: dict[str, dict[str, list[Record]]] = defaultdict(dict)
    for record in readable:
        for same in (
            by_picture[copies.pictures[record.path]],
            by_pixels[copies.pixels[record.path]],
        ):
            same.setdefault(record.label, []).append(record)
    found = [
        (lot[one], lot[other])
        for _, lot in sorted(by_picture.items())
        for one, other in combinations(sorted(lot), 2)
    ]
    for pair in copies.near_pairs:
        if copies.pictures[pair.a] != copies.pictures[pair.b]:
            first = by_pixels[copies.pixels[pair.a]]
            second = by_pixels[copies.pixels[pair.b]]
            found += [
                (first[one], second[other])
                for one in sorted(first)
                for other in sorted(second)
                if one != other
            ]
    return found


def _pairs(
    conflicts: Iterable[tuple[list[Record], list[Record]]],
) -> Iterator[dict[str, Any]]:
    for first, second in conflicts:
        for one in first:
            for other in second:
                a, b = sorted((one, other), key=lambda record: record.path)
                yield {
                    "a": a.path,
                    "b": b.path,
                    "label_a": a.label,
                    "label_b": b.label,
                    "subset_a": a.subset,
                    "subset_b": b.subset,
                }


def _source_label_conflicts(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [
        {**_place(record), "source_label": record.source_label}
        for record in records
        if record.source_label is not None
        and _plain_label(record.label) != _plain_label(record.source_label)
    ]


def _plain_label(label: str) -> str:
    """Return a label without the differences that are only spelling.

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
    copies: Copies,
    groups: Mapping[str, str],
    sides: Sides,
    *,
    seed: int,
) -> dict[str, Any]:
    if not readable:
        return {"shortcuts": {}, "look_up": None, "source_shift": {}}
    facts = [copies.facts[record.path] for record in readable]
    side_of = [sides.side_of.get(record.path) for record in readable]
    return shortcuts.measure(
        {
            column: np.array([getattr(fact, column) for fact in facts], np.float64)
            for column in shortcuts.COLUMNS
        },
        thumbnails=np.stack([copies.thumbnails[record.path] for record in readable]),
        labels=np.array([record.label for record in readable]),
        groups=np.array([groups[record.path] for record in readable]),
        is_train=np.array([side == "train" for side in side_of]),
        is_test=np.array([side == "test" for side in side_of]),
        is_copied=np.array([record.path in sides.copied for record in readable]),
        seed=seed,
    )


def _verdict(sides: Sides, found: Mapping[str, Any]) -> dict[str, Any]:
    leak = found["leak"]
    if leak is None:
        return {
            "believable": None,
            "words": "There are no training and test subsets to judge. A split by "
            "group, made from this set, keeps patients and copies together.",
            "left": "",
        }
    touched = sides.copied | sides.same_patient
    believable = len(touched) <= _MAX_BELIEVABLE_SHARE * leak["num_test"]
    as_far = "copies and known patients go"
    if not leak["test_files_with_patient"]:
        as_far = "copies go: patients are not known"
    opening = (
        f"A score on this test set can be believed, as far as {as_far}."
        if believable
        else "A score on this test set cannot be believed."
    )
    return {
        "believable": believable,
        "words": f"{opening} {leak['words']}",
        "left": _left(leak) if touched else "",
    }


def is_trainable(found: Mapping[str, Any]) -> bool:
    """Return whether training accepts that many unreadable files by default."""
    highest = DataConfig().max_unreadable
    return bool(found["num_unreadable"] <= highest * found["num_files"])


def _too_many_unreadable(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what replaces the verdict on a set that training refuses, if it does."""
    num, num_files = found["num_unreadable"], found["num_files"]
    highest = DataConfig().max_unreadable
    if is_trainable(found):
        return {}
    return {
        "believable": False,
        "words": f"Too many files cannot be read: {num} of {num_files} "
        f"({percent(num / num_files)}), and training stops above {percent(highest)} "
        "(data.max_unreadable).",
    }


def _left(leak: Mapping[str, Any]) -> str:
    left = {
        label: counts["test"] - counts["copied"]
        for label, counts in leak["by_class"].items()
    }
    num, num_shared = (
        leak["clean_test_files"],
        leak["clean_test_files_with_patient_in_train"],
    )
    if num == 0:
        return "Without the copies, nothing is left of the test set."
    words = (
        f"Without the copies, {num} of {counted(leak['num_test'], 'test image')} "
        f"{'is' if num == 1 else 'are'} left, {leak['clean_test_pictures']} of them "
        "distinct: " + ", ".join(f"{count} {label}" for label, count in left.items())
    )
    if num_shared := leak["clean_test_files_with_patient_in_train"]:
        words += f"; {num_shared} of these are of patients who are in training too"
    if gone := [label for label, count in left.items() if count == 0]:
        words += f"; about {' and '.join(gone)} they say nothing"
    return f"{words}."


def _findings(found: Mapping[str, Any]) -> list[str]:
    """Return what else a reader must know, one sentence each, the worst first."""
    sentences = []
    if num := found["num_label_conflicts"]:
        sentences.append(
            f"{num} pair{'s' * (num != 1)} of files show one picture under two labels."
        )
    if num := len(found["source_label_conflicts"]):
        sentences.append(
            f"{num} label{'s' * (num != 1)} contradict what the source says."
        )
    sentences += shortcuts.in_words(found)
    if num := found["num_unreadable"]:
        sentences.append(f"{num} file{'s' * (num != 1)} cannot be read.")
    return sentences
