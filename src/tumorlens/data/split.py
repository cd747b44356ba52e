"""Index and groups -> subsets, by protocol; and the check of a split made by hand.

A split is one `SplitRow` per file of the index, in the order of the paths: the subset
that the file is in, or `left-out` with the reason. A file and its group go to one side
together; only the given folders of `as-given` can put a group on two. The unit is the
group, never the file, so the fractions are met only as nearly as whole groups allow.

The groups are assigned by a loop of our own rather than by scikit-learn's
`StratifiedGroupKFold`: that one makes equal folds only, and it does not guarantee every
class in every fold even when there are enough groups.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from tumorlens.data.duplicates import group_records
from tumorlens.data.index import SplitRow
from tumorlens.errors import DataError, did_you_mean
from tumorlens.text import NotebookView, counted, natural_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tumorlens.config import Protocol
    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Index, Record
    from tumorlens.data.leakage import LeakVerdict

LEFT_OUT = "left-out"
SUBSETS = ("train", "val", "test", LEFT_OUT)
"""The subsets of an ordinary split. Those of k folds are `fold-0`, `fold-1`, ..."""

_NUM_TRIES = 50
"""Number of attempts at a split with every class in every subset. Only groups that hold
several classes can make the first one fail."""

COPY, CONFLICT, UNREADABLE = "copy of", "conflicting labels", "unreadable"
"""First words of the reasons for which files are left out."""

_REASONS = {
    COPY: "as copies of another file",
    CONFLICT: "as one picture under two labels",
    UNREADABLE: "as not readable",
}
"""First words of a reason -> the same in a sentence."""

_FOLD = re.compile(r"fold-(0|[1-9]\d?)")


def count_left_out(rows: Iterable[SplitRow]) -> dict[str, int]:
    """Return how many files are left out for each kind of reason.

    Returns:
        Reason, in words that follow "left out," -> number of files; those of
        `make_split` first, and last the reasons that a hand wrote.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        if row.subset == LEFT_OUT:
            kinds = (
                words
                for start, words in _REASONS.items()
                if row.reason.startswith(start)
            )
            counts[next(kinds, "for other reasons")] += 1
    order = (*_REASONS.values(), "for other reasons")
    return {words: counts[words] for words in order if counts[words]}


@dataclass(frozen=True)
class Split(NotebookView):
    """Subset of every file, and whether the test subset leaks."""

    rows: tuple[SplitRow, ...]
    classes: tuple[str, ...]
    leak: LeakVerdict
    """Verdict on the test images; for k folds, on each fold against the others."""
    note: str | None = None
    """What may be wrong with the patients, see `tumorlens.data.index.patient_note`."""

    @property
    def counts(self) -> dict[str, Counter[str]]:
        """Files by subset and class: train, val, test first, left-out last."""
        order = [*SUBSETS[:-1], *sorted({row.subset for row in self.rows} - {*SUBSETS})]
        counts = {subset: Counter[str]() for subset in [*order, LEFT_OUT]}
        for row in self.rows:
            counts[row.subset][row.label] += 1
        return {subset: found for subset, found in counts.items() if found}

    @property
    def left_out(self) -> dict[str, int]:
        """Files left out by reason, as `count_left_out` has them."""
        return count_left_out(self.rows)


def make_split(
    index: Index,
    duplicates: Duplicates,
    *,
    protocol: Protocol,
    val_fraction: float,
    test_fraction: float,
    num_folds: int = 5,
    seed: int,
) -> tuple[SplitRow, ...]:
    """Return the subset of every file of the index.

    - `as-given`: train and test are the folders' own. Val is the folder's own where
      there is one; else the last of the train files of each class, in the natural
      order of their paths ("image(9)" before "image(10)"), by whole groups, until at
      least `val_fraction` of the class is reached. Only unreadable files are left
      out. `test_fraction`, `num_folds` and `seed` have no effect.
    - `grouped`: all files pooled. Left out are unreadable files, every copy of a
      picture but the first path, and all files of a picture that is found under two
      labels. The rest is assigned to train, val and test by group, stratified by class.
    - `grouped-kfold`: the same files assigned to `fold-0` ... ; see `fold_splits`.

    A file whose label contradicts the metadata's `source_label` stays in: which of the
    two is right is not known here, and the audit reports it.

    Args:
        index: The files; the order of its records does not matter.
        duplicates: What `find_duplicates` found for this index.
        protocol: Rule by which the subsets are made.
        val_fraction: Share of the other images that becomes val.
        test_fraction: Share of all images that becomes test, under `grouped`.
        num_folds: Number of folds, under `grouped-kfold`.
        seed: Seed of the assignment of groups to subsets.

    Returns:
        One row per file of the index, sorted by path.

    Raises:
        DataError: A class has too few groups for every subset to get one, or
            `as-given` data has no given train and test.
    """
    groups = group_records(index, duplicates)
    records = sorted(index.records, key=lambda record: record.path)
    rows = [
        SplitRow(record.path, record.sha256, record.label, groups[record.path], "")
        for record in records
    ]
    if protocol == "as-given":
        subset_of = {record.path: record.subset for record in records}
        rows = _leave_out(rows, _unreadable(duplicates))
        return _as_given(rows, subset_of, index.classes, val_fraction=val_fraction)

    rows = _leave_out(rows, reasons_to_leave_out(records, duplicates))
    if protocol == "grouped-kfold":
        shares = {f"fold-{fold}": 1 / num_folds for fold in range(num_folds)}
    else:
        not_test = 1 - test_fraction
        shares = {
            "train": not_test * (1 - val_fraction),
            "val": not_test * val_fraction,
            "test": test_fraction,
        }
    return _assign_groups(rows, index.classes, shares, seed=seed)


def fold_splits(
    rows: Iterable[SplitRow], *, num_folds: int, val_fraction: float, seed: int
) -> tuple[tuple[SplitRow, ...], ...]:
    """Return an ordinary split for each fold of a `grouped-kfold` split.

    In the split of fold k, the files of `fold-k` are test and those of the other folds
    are assigned to train and val. Files left out stay left out, with their reason.

    Args:
        rows: What `make_split` returned, or a checked split made by hand.
        num_folds: Number of folds in `rows`.
        val_fraction: Share of the images of the other folds that become val.
        seed: Decides which groups become val.

    Returns:
        `num_folds` splits, the first one for `fold-0`.

    Raises:
        DataError: The folds in `rows` are not `fold-0` to `fold-(num_folds - 1)`, or a
            class has too few groups outside a fold for both train and val.
    """
    rows = sorted(rows, key=lambda row: row.path)
    names = {f"fold-{fold}" for fold in range(num_folds)}
    found = {row.subset for row in rows} - {LEFT_OUT}
    if found != names:
        raise DataError(
            f"expected {num_folds} folds in the split, fold-0 to fold-{num_folds - 1}, "
            f"got {', '.join(sorted(found)) or 'none'}",
            hint="make data.num_folds the number of folds in the split",
        )

    classes = sorted({row.label for row in rows if row.subset != LEFT_OUT})
    shares = {"train": 1 - val_fraction, "val": val_fraction}
    splits = []
    for fold in range(num_folds):
        test = [
            replace(row, subset="test") for row in rows if row.subset == f"fold-{fold}"
        ]
        rest = [
            replace(row, subset="" if row.subset != LEFT_OUT else LEFT_OUT)
            for row in rows
            if row.subset != f"fold-{fold}"
        ]
        assigned = _assign_groups(rest, classes, shares, seed=seed)
        splits.append(tuple(sorted((*test, *assigned), key=lambda row: row.path)))
    return tuple(splits)


def check_split(
    rows: Sequence[SplitRow],
    index: Index,
    *,
    protocol: Protocol,
    groups: Mapping[str, str] | None = None,
) -> None:
    """Refuse a split, such as a `split.csv` edited by hand, that does not fit the data.

    Args:
        rows: The split, in any order.
        index: The files that it must account for, each exactly once.
        protocol: `grouped-kfold` has folds as subsets, the others train, val and
            test. `as-given` alone lets a group be on two sides.
        groups: Path -> group, from `group_records`. `None` believes the column `group`
            of the rows, which can have been edited too.

    Raises:
        DataError: A path is unknown, missing or given twice; a file has changed since;
            a label or a subset is unknown or not the folder's; a group is on two
            sides; a subset is empty; or a class is missing from train.
    """
    _check_files(rows, index)
    kfold = protocol == "grouped-kfold"
    for row in rows:
        known = row.subset == LEFT_OUT or (
            _FOLD.fullmatch(row.subset) if kfold else row.subset in SUBSETS
        )
        if not known:
            words = ("fold-0", "fold-1", LEFT_OUT) if kfold else SUBSETS
            raise DataError(
                f"unknown subset {row.subset!r} of {row.path} in the split, under "
                f"protocol {protocol!r}",
                hint=did_you_mean(row.subset, words),
            )
    if protocol != "as-given":
        _check_groups(rows, groups or {row.path: row.group for row in rows})
    if kfold:
        _check_folds(rows, index.classes)
    else:
        _check_subsets(rows, index.classes)


def _leave_out(rows: list[SplitRow], reasons: Mapping[str, str]) -> list[SplitRow]:
    return [
        replace(row, subset=LEFT_OUT, reason=reasons[row.path])
        if row.path in reasons
        else row
        for row in rows
    ]


def reasons_to_leave_out(
    records: Sequence[Record], duplicates: Duplicates
) -> dict[str, str]:
    """Return path -> reason for the files that a fair test does without.

    They are those that cannot be read, every copy of a picture but the first, and all
    pictures whose copies have different labels.

    Args:
        records: Sorted by path.
        duplicates: The result of `find_duplicates` on their index.
    """
    return _unreadable(duplicates) | _conflicts_and_copies(records, duplicates)


def _unreadable(duplicates: Duplicates) -> dict[str, str]:
    return {path: f"{UNREADABLE}: {why}" for path, why in duplicates.unreadable.items()}


def _conflicts_and_copies(
    records: Sequence[Record], duplicates: Duplicates
) -> dict[str, str]:
    """Return path -> reason for the readable files that `grouped` leaves out."""
    members: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.path not in duplicates.unreadable:
            members[duplicates.pictures[record.path]].append(record)
    # A copy of a copy can be a picture of its own and still contradict its neighbour.
    alike = {picture: list(same) for picture, same in members.items()}
    for pair in duplicates.near_pairs:
        a, b = duplicates.pictures[pair.a], duplicates.pictures[pair.b]
        if a != b:
            alike[a] += members[b]
            alike[b] += members[a]

    reasons: dict[str, str] = {}
    for picture, same in members.items():
        first = same[0]  # records are sorted by path
        if len({record.label for record in alike[picture]}) == 1:
            reasons |= {record.path: f"{COPY} {first.path}" for record in same[1:]}
            continue
        for record in same:
            other = next(o for o in alike[picture] if o.label != record.label)
            reasons[record.path] = (
                f"{CONFLICT}: same picture as {other.path} ({other.label})"
            )
    return reasons


def _as_given(
    rows: list[SplitRow],
    subset_of: Mapping[str, str | None],
    classes: tuple[str, ...],
    *,
    val_fraction: float,
) -> tuple[SplitRow, ...]:
    given = set(subset_of.values())
    if not {"train", "test"} <= given or None in given:
        named = sorted(subset for subset in given if subset is not None)
        raise DataError(
            "protocol 'as-given' needs a given subset for every file, train and test "
            f"among them, got {', '.join(named) or 'none'}"
            f"{' and files without one' if named and None in given else ''}",
            hint="put the class folders into Training and Testing, or use "
            "--set data.protocol=grouped, which makes a test subset of its own",
        )
    rows = [
        replace(row, subset=row.subset or subset_of[row.path] or "") for row in rows
    ]
    if "val" not in given:
        last = _last_groups(rows, val_fraction=val_fraction)
        rows = [
            replace(row, subset="val")
            if row.subset == "train" and row.group in last
            else row
            for row in rows
        ]
    _check_subsets(rows, classes)
    return tuple(rows)


def _last_groups(rows: list[SplitRow], *, val_fraction: float) -> set[str]:
    """Return the groups of train that become val under `as-given`."""
    train = sorted(
        (row for row in rows if row.subset == "train"),
        key=lambda row: natural_key(row.path),
    )
    sizes = Counter(row.label for row in train)
    group_sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        group_sizes[row.group][row.label] += 1

    chosen: set[str] = set()
    taken: Counter[str] = Counter()
    for label, size in sorted(sizes.items()):
        for row in reversed(train):
            if row.label != label or row.group in chosen:
                continue
            if taken[label] >= val_fraction * size:
                break
            inside = group_sizes[row.group]
            if any(taken[one] + inside[one] >= sizes[one] for one in inside):
                continue  # the only group of a class is needed for training
            chosen.add(row.group)
            taken += group_sizes[row.group]
    return chosen


def _assign_groups(
    rows: Iterable[SplitRow],
    classes: Sequence[str],
    shares: Mapping[str, float],
    *,
    seed: int,
) -> tuple[SplitRow, ...]:
    """Assign a subset of `shares` to each row without one, whole groups at a time.

    Raises what `_refuse_few_groups` raises when a class cannot be in every subset.
    """
    rows = list(rows)
    open_rows = [row for row in rows if not row.subset]
    names = sorted({row.group for row in open_rows})
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(classes)), dtype=np.int64)
    for row in open_rows:
        counts[place[row.group], classes.index(row.label)] += 1

    num_groups = (counts > 0).sum(axis=0)
    for label, number in zip(classes, num_groups, strict=True):
        if number < len(shares):
            _refuse_few_groups(label, int(number), shares)

    rng = np.random.default_rng(seed)
    for _ in range(_NUM_TRIES):
        assigned = _choose_subsets(counts, np.array(list(shares.values())), rng)
        missing = [
            (label, subset)
            for column, label in enumerate(classes)
            for number, subset in enumerate(shares)
            if not counts[assigned == number, column].any()
        ]
        if not missing:
            break
    else:
        label = missing[0][0]
        _refuse_few_groups(label, int(num_groups[classes.index(label)]), shares)

    subsets = list(shares)
    return tuple(
        row if row.subset else replace(row, subset=subsets[assigned[place[row.group]]])
        for row in rows
    )


def _choose_subsets(
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the subset of each group.

    Large groups go first, and each goes to the subset that would be filled least with
    half of it: Sainte-Lague's rule for sharing out seats, which favours neither large
    subsets nor small ones, so that large groups do not gather in train. The last groups
    of a class are kept for the subsets that have none of it yet.

    Args:
        counts: Images per group and class, shape (G, C).
        shares: Share of each subset, shape (S,), adding up to 1.
        rng: Decides the order among groups of about the same size, and ties.

    Returns:
        A subset index per group, shape (G,).
    """
    totals = counts.sum(axis=0)  # (C,)
    places = shares[:, None] * totals  # (S, C)
    filled = np.zeros_like(places)
    assigned = np.empty(len(counts), dtype=np.int64)
    shuffled = rng.permutation(len(counts))
    # About the same size is a factor of two: an order by exact size would leave the
    # seed little to decide on sets where most groups differ in size.
    sizes = np.log2(counts[shuffled].sum(axis=1)).astype(np.int64)
    ties = rng.random((len(counts), len(shares))) * 1e-9
    groups_left = (counts > 0).sum(axis=0)  # (C,)
    for group in shuffled[np.argsort(-sizes, kind="stable")]:
        present = counts[group] > 0
        empty = filled == 0  # (S, C)
        urgent = present & (groups_left <= empty.sum(axis=0))
        level = (filled + counts[group] / 2) / places @ (counts[group] / totals)  # (S,)
        level += ties[group] + 1e6 * (~empty[:, urgent]).sum(axis=1)
        assigned[group] = level.argmin()
        filled[assigned[group]] += counts[group]
        groups_left -= present
    return assigned


def _refuse_few_groups(label: str, number: int, shares: Iterable[str]) -> NoReturn:
    names = list(shares)
    raise DataError(
        f"class {label!r} has {counted(number, 'group')} of images that must "
        f"stay together, too few for {len(names)} subsets ({', '.join(names)}) with "
        "the class in each",
        hint="add images of other patients to the class, lower data.num_folds where "
        "that is the protocol, or take the class out",
    )


def _check_files(rows: Sequence[SplitRow], index: Index) -> None:
    records = {record.path: record for record in index.records}
    seen: set[str] = set()
    for row in rows:
        record = records.get(row.path)
        if record is None:
            raise DataError(
                f"the split names {row.path}, which is not among the "
                f"{len(records)} files of {index.sets or index.root}",
                hint="remove the line, or make the split anew",
            )
        if row.path in seen:
            raise DataError(
                f"the split names {row.path} twice", hint="keep one of the two lines"
            )
        seen.add(row.path)
        if row.sha256 != record.sha256:
            raise DataError(
                f"{row.path} has changed since the split was made: sha256 "
                f"{record.sha256[:12]}..., the split has {row.sha256[:12]}...",
                hint="put the old file back, or make the split anew",
            )
        if row.label != record.label:
            raise DataError(
                f"the split labels {row.path} {row.label!r}, the data {record.label!r}",
                hint="a label is changed in the data: move the file to the folder of "
                "its class, or correct it in the file of data.labels",
            )
    missing = sorted(records.keys() - seen)
    if missing:
        raise DataError(
            f"the split does not name {missing[0]}"
            + (f" and {len(missing) - 1} more files" if len(missing) > 1 else ""),
            hint=f"give each file of the data a line, with subset {LEFT_OUT!r} where "
            "it is not wanted",
        )


def _check_groups(rows: Sequence[SplitRow], groups: Mapping[str, str]) -> None:
    first_of: dict[str, SplitRow] = {}
    torn: dict[str, tuple[SplitRow, SplitRow]] = {}
    for row in rows:
        if row.subset == LEFT_OUT:
            continue
        first = first_of.setdefault(groups[row.path], row)
        if row.subset != first.subset:
            torn.setdefault(groups[row.path], (first, row))
    if torn:
        name, (first, row) = min(torn.items())
        raise DataError(
            f"{counted(len(torn), 'group')} of the split "
            f"{'is' if len(torn) == 1 else 'are'} on two sides: the first is group "
            f"{name!r}, with {first.path} in {first.subset} and {row.path} in "
            f"{row.subset}",
            hint="give the files of a group one subset; they show the same picture or "
            "the same patient, and a score on them would be too good",
        )


def _check_subsets(rows: Iterable[SplitRow], classes: tuple[str, ...]) -> None:
    labels_in: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels_in[row.subset].add(row.label)
    for subset in ("train", "val", "test"):
        if not labels_in[subset]:
            raise DataError(
                f"the split has no readable image in {subset}",
                hint=f"give some groups the subset {subset!r}, or use another protocol",
            )
    for label in classes:
        if label not in labels_in["train"]:
            raise DataError(
                f"the split has no readable image of class {label!r} in train",
                hint="move some groups of the class to train, or take the class out",
            )


def _check_folds(rows: Iterable[SplitRow], classes: tuple[str, ...]) -> None:
    folds_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.subset != LEFT_OUT:
            folds_of[row.label].add(row.subset)
    found: set[str] = set().union(*folds_of.values())
    if len(found) < 2 or found != {f"fold-{fold}" for fold in range(len(found))}:
        raise DataError(
            f"expected at least two folds, numbered from fold-0 without a gap, got "
            f"{', '.join(sorted(found)) or 'none'}",
            hint="give each file fold-0, fold-1, ... or left-out",
        )
    for label in classes:
        if len(folds_of[label]) < 2:
            raise DataError(
                f"class {label!r} is in {len(folds_of[label])} of {len(found)} folds, "
                "so that it would be missing from train",
                hint="spread the groups of the class over the folds",
            )
