"""Splits of sets made by hand: who goes where, what is left out, what is refused."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import event, settings
from hypothesis import given as given_any
from hypothesis import strategies as st

from tumorlens.data.duplicates import Duplicates, NearPair, group_records
from tumorlens.data.index import Index, Record, SplitRow
from tumorlens.data.leakage import judge_leak
from tumorlens.data.split import (
    check_split,
    count_left_out,
    fold_splits,
    make_split,
)
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tumorlens.config import Protocol


def record(
    path: str, *, subset: str | None = None, patient: str | None = None
) -> Record:
    """Return the record of a file whose folder is its class."""
    return Record(
        path=path,
        label=path.split("/")[-2],
        subset=subset,
        patient=patient,
        source=None,
        source_label=None,
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        num_bytes=1,
    )


def index_of(records: Iterable[Record]) -> Index:
    records = sorted(records, key=lambda record: record.path)
    classes = tuple(sorted({record.label for record in records}))
    return Index(root=Path("data"), classes=classes, records=tuple(records))


def duplicates_of(
    index: Index,
    *,
    same: Sequence[Sequence[str]] = (),
    unreadable: Sequence[str] = (),
    near: Sequence[tuple[str, str]] = (),
) -> Duplicates:
    """Return copies in which the paths of each list in `same` show one picture."""
    pictures = {
        record.path: record.path
        for record in index.records
        if record.path not in unreadable
    }
    for paths in same:
        pictures |= dict.fromkeys(paths, min(paths))
    return Duplicates(
        unreadable=dict.fromkeys(unreadable, "the file is empty"),
        facts={},
        pixels={},
        pictures=pictures,
        near_pairs=tuple(NearPair(a, b, 0.99, "same") for a, b in near),
    )


def split(
    index: Index, duplicates: Duplicates | None = None, **kwargs: Any
) -> dict[str, Any]:
    """Return path -> row, after checking that each file has exactly one."""
    settings: dict[str, Any] = {
        "protocol": "grouped",
        "val_fraction": 0.15,
        "test_fraction": 0.2,
        "seed": 42,
    }
    rows = make_split(index, duplicates or duplicates_of(index), **(settings | kwargs))
    assert [row.path for row in rows] == [record.path for record in index.records]
    return {row.path: row for row in rows}


def subsets(rows: dict[str, SplitRow]) -> dict[str, str]:
    return {path: row.subset for path, row in rows.items()}


def singles(num_each: int, classes: Sequence[str] = ("a", "b")) -> Index:
    return index_of(record(f"{c}/{i}.png") for c in classes for i in range(num_each))


def hospital(seed: int = 0) -> Index:
    """Return a set shaped like the real one.

    225 patients, of one class each, with 1 to 40 slices, and many single images.
    """
    rng = np.random.default_rng(seed)
    records = []
    for patient in range(225):
        label = ("glioma", "meningioma", "pituitary")[patient % 3]
        size = int(np.clip(rng.geometric(0.1), 1, 40))
        records += [
            record(f"{label}/{patient}-{i}.png", patient=f"P{patient}")
            for i in range(size)
        ]
    for label, number in {"glioma": 80, "meningioma": 20, "no_tumor": 400}.items():
        records += [record(f"{label}/web-{i}.png") for i in range(number)]
    return index_of(records)


# grouped


def test_grouped_meets_the_fractions_in_every_class_of_a_set_like_the_real_one() -> (
    None
):
    index = hospital()
    rows = split(index)
    sizes = Counter(record.label for record in index.records)
    counts = Counter((row.label, row.subset) for row in rows.values())
    for label, size in sizes.items():
        for subset, share in {"train": 0.68, "val": 0.12, "test": 0.2}.items():
            assert counts[label, subset] / size == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("protocol", ["grouped", "grouped-kfold"])
def test_no_patient_and_no_picture_is_on_two_sides(protocol: str) -> None:
    index = hospital()
    # Pictures of two patients, so that the patients become one group.
    duplicates = duplicates_of(index, same=[["glioma/0-0.png", "glioma/3-0.png"]])
    rows = split(index, duplicates, protocol=protocol)
    sides: dict[str, set[str]] = {}
    for rec in index.records:
        if rec.patient and rows[rec.path].subset != "left-out":
            patient = "P0" if rec.patient == "P3" else rec.patient
            sides.setdefault(patient, set()).add(rows[rec.path].subset)
    assert len(sides) == 224
    assert {len(side) for side in sides.values()} == {1}


def test_large_groups_do_not_gather_in_train() -> None:
    # Of ten patients, the five with 20 images and the five with 1 are dealt alike.
    records = [
        record(f"{c}/{p}-{i}.png", patient=f"{c}{p}")
        for c in "ab"
        for p in range(10)
        for i in range(20 if p % 2 else 1)
    ]
    held_out: Counter[int] = Counter()
    for seed in range(20):
        rows = split(index_of(records), val_fraction=0.4, test_fraction=0.4, seed=seed)
        for patient in range(10):
            held_out[patient % 2] += rows[f"a/{patient}-0.png"].subset == "test"
    assert held_out[1] >= 20


def test_single_images_make_up_for_large_groups() -> None:
    # Three patients have half of the images; dealt last, they would spoil the shares.
    records = [record(f"{c}/web-{i}.png") for c in "ab" for i in range(60)]
    records += [
        record(f"{c}/{p}-{i}.png", patient=f"{c}{p}")
        for c in "ab"
        for p in range(3)
        for i in range(20)
    ]
    for seed in range(10):
        rows = split(index_of(records), seed=seed)
        counts = Counter((row.label, row.subset) for row in rows.values())
        for label in "ab":
            assert counts[label, "val"] == pytest.approx(0.12 * 120, abs=1)
            assert counts[label, "test"] == pytest.approx(0.2 * 120, abs=1)


def test_rounding_favours_no_subset() -> None:
    # 12 images a class: 2.4 should be test. Rounding up in every class gives 3.
    num_test = [
        sum(row.subset == "test" for row in split(singles(12), seed=seed).values())
        for seed in range(30)
    ]
    assert np.mean(num_test) / 24 == pytest.approx(0.2, abs=0.03)


def test_one_copy_of_a_picture_is_kept_and_the_others_say_of_what() -> None:
    index = singles(10)
    rows = split(index, duplicates_of(index, same=[["a/3.png", "a/1.png", "a/7.png"]]))
    assert rows["a/1.png"].subset in {"train", "val", "test"}
    assert rows["a/1.png"].reason == ""
    for path in ("a/3.png", "a/7.png"):
        assert (rows[path].subset, rows[path].reason) == (
            "left-out",
            "copy of a/1.png",
        )


def test_a_picture_under_two_labels_is_left_out_with_all_its_copies() -> None:
    index = singles(10)
    same = ["a/1.png", "a/2.png", "b/3.png"]
    rows = split(index, duplicates_of(index, same=[same]))
    assert {rows[path].subset for path in same} == {"left-out"}
    assert rows["a/2.png"].reason == ("conflicting labels: same picture as b/3.png (b)")
    assert rows["b/3.png"].reason == ("conflicting labels: same picture as a/1.png (a)")


def test_a_copy_of_a_copy_under_another_label_is_a_conflict_too() -> None:
    # a/1 and a/2 are one picture; b/3 is a near copy of a/2 but not of a/1.
    index = singles(10)
    duplicates = duplicates_of(
        index, same=[["a/1.png", "a/2.png"]], near=[("a/2.png", "b/3.png")]
    )
    rows = split(index, duplicates)
    left_out = [path for path, subset in subsets(rows).items() if subset == "left-out"]
    assert left_out == ["a/1.png", "a/2.png", "b/3.png"]
    assert rows["b/3.png"].reason.endswith("same picture as a/1.png (a)")


def test_near_copies_under_one_label_are_two_pictures_of_one_group() -> None:
    index = singles(10)
    duplicates = duplicates_of(index, near=[("a/2.png", "a/5.png")])
    rows = split(index, duplicates)
    assert "left-out" not in subsets(rows).values()
    assert rows["a/2.png"].group == rows["a/5.png"].group
    assert rows["a/2.png"].subset == rows["a/5.png"].subset


def test_lookalikes_are_kept_in_one_subset_and_contradict_nothing() -> None:
    index = index_of(
        [*singles(8).records, *(record(f"{c}/x{i}.png") for c in "ab" for i in (1, 2))]
    )
    alike = [("a/x1.png", "a/x2.png"), ("a/x2.png", "b/x1.png")]
    found = replace(
        duplicates_of(index),
        lookalikes=tuple(NearPair(a, b, 0.995, "same") for a, b in alike),
    )
    rows = split(index, found)
    assert "left-out" not in subsets(rows).values()
    assert len({rows[path].subset for pair in alike for path in pair}) == 1


def test_what_is_left_out_is_counted_by_reason() -> None:
    reasons = ["copy of a/1.png", "unreadable: it is empty", "copy of b", "too dark"]
    rows = [
        SplitRow(f"a/{n}.png", "0" * 64, "a", "g", "left-out", reason)
        for n, reason in enumerate([*reasons, "conflicting labels: same picture as x"])
    ]
    rows.append(SplitRow("a/9.png", "0" * 64, "a", "g", "train", "copy of a"))
    assert list(count_left_out(rows).items()) == [
        ("as copies of another file", 2),
        ("as one picture under two labels", 1),
        ("as not readable", 1),
        ("for other reasons", 1),
    ]


def test_a_source_label_that_disagrees_leaves_nothing_out() -> None:
    index = singles(10)
    records = [replace(rec, source_label="b") for rec in index.records]
    assert "left-out" not in subsets(split(index_of(records))).values()


@pytest.mark.parametrize("protocol", ["grouped", "grouped-kfold", "as-given"])
def test_an_unreadable_file_is_left_out_and_says_why(protocol: str) -> None:
    index = given(train=20, test=5)
    path = "Training/a/4.png"
    rows = split(index, duplicates_of(index, unreadable=[path]), protocol=protocol)
    assert rows[path].subset == "left-out"
    assert rows[path].reason == "unreadable: the file is empty"
    left_out = [row for row in rows.values() if row.subset == "left-out"]
    assert left_out == [rows[path]]


def test_the_rows_carry_what_the_records_say() -> None:
    index = index_of(
        [record(f"a/{i}.png", patient=f"P{i // 2}") for i in range(8)]
        + [record(f"b/{i}.png") for i in range(8)]
    )
    rows = split(index)
    for rec in index.records:
        assert (rows[rec.path].sha256, rows[rec.path].label) == (rec.sha256, rec.label)
    assert (rows["a/3.png"].group, rows["b/3.png"].group) == ("a/2.png", "b/3.png")


def test_the_order_of_the_records_does_not_matter() -> None:
    index = hospital()
    shuffled = [index.records[i] for i in np.random.default_rng(1).permutation(900)]
    shuffled += [rec for rec in index.records if rec not in set(shuffled)]
    mixed = Index(root=index.root, classes=index.classes, records=tuple(shuffled))
    assert make_split(
        mixed,
        duplicates_of(mixed),
        protocol="grouped",
        val_fraction=0.15,
        test_fraction=0.2,
        seed=42,
    ) == tuple(split(index).values())


@pytest.mark.parametrize("protocol", ["grouped", "grouped-kfold"])
def test_the_seed_decides(protocol: str) -> None:
    index = hospital()
    first = split(index, protocol=protocol, seed=1)
    assert split(index, protocol=protocol, seed=1) == first
    other = split(index, protocol=protocol, seed=2)
    moved = sum(first[path].subset != other[path].subset for path in first)
    assert moved > len(first) / 4


def test_the_split_of_a_seed_stays_the_same_between_versions_and_processes() -> None:
    # Stored from our own code: a change would give everybody another test subset.
    rows = split(singles(10), seed=42)
    held_out = {path: row.subset for path, row in rows.items() if row.subset != "train"}
    assert held_out == {
        "a/0.png": "val",
        "a/4.png": "test",
        "a/6.png": "test",
        "b/2.png": "test",
        "b/8.png": "test",
        "b/9.png": "val",
    }


@pytest.mark.parametrize("seed", range(20))
def test_every_subset_has_every_class_when_there_are_just_groups_enough(
    seed: int,
) -> None:
    # Three patients a class, one of them with nearly all the images.
    records = [
        record(f"{c}/{p}-{i}.png", patient=f"{c}{p}")
        for c in "abc"
        for p, size in enumerate((30, 1, 2))
        for i in range(size)
    ]
    rows = split(index_of(records), seed=seed)
    assert len({(row.label, row.subset) for row in rows.values()}) == 9


@pytest.mark.parametrize("seed", range(20))
def test_groups_of_several_classes_are_dealt_until_every_subset_has_every_class(
    seed: int,
) -> None:
    # Images of a, b and c of four patients. Half of the first deals leave a subset
    # without a class.
    sizes = [(0, 2, 2), (3, 0, 3), (3, 3, 3), (1, 1, 1)]
    records = [
        record(f"{c}/{p}-{i}.png", patient=f"P{p}")
        for p, numbers in enumerate(sizes)
        for c, number in zip("abc", numbers, strict=True)
        for i in range(number)
    ]
    rows = split(index_of(records), seed=seed)
    assert len({(row.label, row.subset) for row in rows.values()}) == 9


def test_too_few_groups_of_a_class_are_named_and_counted() -> None:
    records = [record(f"a/{i}.png") for i in range(9)]
    records += [record(f"b/{i}.png", patient=f"P{i % 2}") for i in range(9)]
    with pytest.raises(
        DataError, match=r"class 'b' has 2 groups.* 3 subsets \(train, val, test\)"
    ):
        split(index_of(records))


def test_a_class_that_is_left_out_altogether_has_no_group() -> None:
    index = singles(5)
    unreadable = [f"b/{i}.png" for i in range(5)]
    with pytest.raises(DataError, match=r"class 'b' has 0 groups"):
        split(index, duplicates_of(index, unreadable=unreadable))


def test_groups_that_no_deal_can_spread_are_an_error() -> None:
    # b is in three groups, but in two of them with all of what a has.
    records = [record(f"b/{p}.png", patient=f"P{p}") for p in range(3)]
    records += [record(f"a/{p}.png", patient=f"P{p}") for p in range(2)]
    records += [record("a/9.png", patient="P1"), record("c/0.png", patient="P0")]
    records += [record("c/1.png", patient="P0"), record("c/2.png", patient="P1")]
    with pytest.raises(DataError, match=r"class '[ac]' has 2 groups"):
        split(index_of(records))


# grouped-kfold


def test_folds_are_of_equal_size_in_every_class() -> None:
    rows = split(hospital(), protocol="grouped-kfold", num_folds=5)
    counts = Counter((row.label, row.subset) for row in rows.values())
    for label in ("glioma", "meningioma", "no_tumor", "pituitary"):
        sizes = [counts[label, f"fold-{fold}"] for fold in range(5)]
        assert max(sizes) - min(sizes) <= max(2, 0.05 * sum(sizes))


def test_each_file_is_tested_in_exactly_one_fold() -> None:
    index = hospital()
    duplicates = duplicates_of(index, unreadable=["glioma/web-0.png"])
    rows = split(index, duplicates, protocol="grouped-kfold", num_folds=3)
    folds = fold_splits(rows.values(), num_folds=3, val_fraction=0.15, seed=42)
    assert len(folds) == 3
    tested = [row.path for fold in folds for row in fold if row.subset == "test"]
    readable = [rec.path for rec in index.records if rec.path != "glioma/web-0.png"]
    assert sorted(tested) == readable
    for number, fold in enumerate(folds):
        assert [row.path for row in fold] == list(rows)
        for row in fold:
            assert (row.subset == "test") == (rows[row.path].subset == f"fold-{number}")
        left_out = [row for row in fold if row.subset == "left-out"]
        assert left_out == [rows["glioma/web-0.png"]]


def test_the_rest_of_a_fold_is_train_and_val_by_group_and_class() -> None:
    index = hospital()
    rows = split(index, protocol="grouped-kfold")
    folds = fold_splits(rows.values(), num_folds=5, val_fraction=0.15, seed=42)
    for fold in folds:
        check_split(fold, index, protocol="grouped")
        counts = Counter((row.label, row.subset) for row in fold)
        for label in index.classes:
            val, train = counts[label, "val"], counts[label, "train"]
            assert val / (val + train) == pytest.approx(0.15, abs=0.02)
    assert len({tuple(row.subset for row in fold) for fold in folds}) == 5


def test_folds_that_are_not_the_number_set_are_named() -> None:
    rows = split(hospital(), protocol="grouped-kfold", num_folds=3)
    with pytest.raises(
        DataError, match=r"expected 5 folds.*got fold-0, fold-1, fold-2"
    ):
        fold_splits(rows.values(), num_folds=5, val_fraction=0.15, seed=42)


def test_a_class_that_cannot_fill_train_and_val_beside_a_fold_is_named() -> None:
    index = singles(2)
    rows = split(index, protocol="grouped-kfold", num_folds=2)
    with pytest.raises(DataError, match=r"class 'a' has 1 group of.*\(train, val\)"):
        fold_splits(rows.values(), num_folds=2, val_fraction=0.15, seed=42)


# as-given


def given(*, classes: Sequence[str] = ("a", "b"), **sizes: int) -> Index:
    words = {"train": "Training", "val": "Validation", "test": "Testing"}
    return index_of(
        record(f"{words[subset]}/{c}/{i}.png", subset=subset)
        for subset, size in sizes.items()
        for c in classes
        for i in range(size)
    )


def test_as_given_keeps_the_folders_and_takes_the_last_of_each_class_as_val() -> None:
    index = given(train=20, test=5)
    rows = split(index, protocol="as-given")
    # 15 % of 20. In the order of text, 9.png would be among the last three.
    val = [path for path, subset in subsets(rows).items() if subset == "val"]
    assert val == [f"Training/{c}/{i}.png" for c in "ab" for i in (17, 18, 19)]
    assert {row.subset for path, row in rows.items() if "Testing" in path} == {"test"}


def test_as_given_moves_whole_groups_to_val() -> None:
    records = [
        replace(rec, patient="P" if rec.path.endswith(("/19.png", "/0.png")) else None)
        for rec in given(train=20, test=5).records
    ]
    index = index_of(records)
    duplicates = duplicates_of(index, same=[["Training/a/18.png", "Training/a/5.png"]])
    rows = split(index, duplicates, protocol="as-given")
    val = [path for path, subset in subsets(rows).items() if subset == "val"]
    # Patient P has 0.png and 19.png of both classes, and 0.png of Testing stays there.
    assert val == [
        "Training/a/0.png",
        "Training/a/18.png",
        "Training/a/19.png",
        "Training/a/5.png",
        "Training/b/0.png",
        "Training/b/18.png",
        "Training/b/19.png",
    ]
    assert rows["Testing/a/0.png"].subset == "test"


def test_as_given_uses_a_val_folder_where_there_is_one() -> None:
    index = given(train=6, val=2, test=2)
    got = subsets(split(index, protocol="as-given"))
    assert got == {rec.path: rec.subset for rec in index.records}


def test_as_given_keeps_copies_and_conflicting_labels() -> None:
    index = given(train=20, test=5)
    same = [["Training/a/1.png", "Testing/a/1.png", "Testing/b/2.png"]]
    got = subsets(split(index, duplicates_of(index, same=same), protocol="as-given"))
    assert "left-out" not in got.values()


@pytest.mark.parametrize(
    ("index", "got"),
    [
        (singles(5), "got none"),
        (given(train=5), "got train"),
        (given(test=5, val=5), "got test, val"),
    ],
)
def test_as_given_without_given_subsets_points_to_grouped(
    index: Index, got: str
) -> None:
    with pytest.raises(DataError, match=rf"{got}\n.*protocol=grouped"):
        split(index, protocol="as-given")


def test_as_given_with_a_file_of_no_subset_says_so() -> None:
    index = index_of([*given(train=5, test=5).records, record("a/x.png")])
    with pytest.raises(DataError, match=r"got test, train and files without one"):
        split(index, protocol="as-given")


def test_as_given_keeps_the_only_group_of_a_class_in_train() -> None:
    index = index_of(
        [
            *given(train=9, test=2).records,
            record("Training/c/1.png", subset="train"),
            record("Testing/c/1.png", subset="test"),
            # One patient of two classes, whose group is the last of class a and all
            # that class d has.
            record("Training/a/99.png", subset="train", patient="P"),
            record("Training/d/1.png", subset="train", patient="P"),
        ]
    )
    got = subsets(split(index, protocol="as-given"))
    assert got["Training/c/1.png"] == got["Training/d/1.png"] == "train"
    assert got["Training/a/99.png"] == "train"
    val = [path for path, subset in got.items() if subset == "val"]
    assert val == [f"Training/{c}/{i}.png" for c in "ab" for i in (7, 8)]


def test_as_given_refuses_a_class_that_is_in_test_alone() -> None:
    index = index_of(
        [*given(train=9, test=2).records, record("Testing/c/1.png", subset="test")]
    )
    with pytest.raises(DataError, match=r"no readable image of class 'c' in train"):
        split(index, protocol="as-given")


# a split edited by hand


@pytest.mark.parametrize("protocol", ["as-given", "grouped", "grouped-kfold"])
def test_a_split_made_here_passes_its_own_check(protocol: Protocol) -> None:
    index = given(train=20, test=5)
    duplicates = duplicates_of(
        index,
        unreadable=["Training/a/4.png"],
        same=[["Training/a/1.png", "Testing/a/1.png"]],
    )
    rows = split(index, duplicates, protocol=protocol)
    check_split(list(reversed(rows.values())), index, protocol=protocol)


def edited(**changes: str) -> list[SplitRow]:
    """Return a good split of `singles(10)` with the row of a/1.png changed."""
    rows = split(singles(10))
    rows["a/1.png"] = replace(rows["a/1.png"], **changes)
    return list(rows.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a/77.png"}, "names a/77.png, which is not among the 20 files"),
        ({"sha256": "0" * 64}, "a/1.png has changed.*the split has 000000000000"),
        ({"label": "b"}, "labels a/1.png 'b', the data 'a'"),
        ({"subset": "trian"}, "unknown subset 'trian' of a/1.png.*\n.*'train'"),
        ({"subset": "fold-0"}, "unknown subset 'fold-0'"),
    ],
)
def test_a_row_that_does_not_fit_the_data_is_refused_by_name(
    changes: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check_split(edited(**changes), singles(10), protocol="grouped")


def test_a_path_given_twice_is_refused() -> None:
    rows = edited()
    with pytest.raises(DataError, match=r"names a/2.png twice"):
        check_split([*rows, rows[2]], singles(10), protocol="grouped")


def test_files_without_a_row_are_named_and_counted() -> None:
    rows = edited()
    with pytest.raises(DataError, match=r"does not name a/0.png and 1 more file"):
        check_split(rows[2:], singles(10), protocol="grouped")


def torn_rows() -> list[SplitRow]:
    """Return a split in which a/0.png and a/1.png, one group, are on two sides."""
    rows = {row.path: row for row in edited(group="a/0.png")}
    rows["a/0.png"] = replace(rows["a/0.png"], subset="train")
    rows["a/1.png"] = replace(rows["a/1.png"], subset="test")
    return list(rows.values())


def test_a_group_on_two_sides_is_refused_with_its_files() -> None:
    with pytest.raises(
        DataError,
        match=r"'a/0.png', with a/0.png in train and a/1.png in test",
    ):
        check_split(torn_rows(), singles(10), protocol="grouped")
    check_split(torn_rows(), singles(10), protocol="as-given")


def test_a_group_column_edited_away_does_not_hide_the_group() -> None:
    rows = [replace(row, group=row.path) for row in torn_rows()]
    check_split(rows, singles(10), protocol="grouped")
    groups = {row.path: row.group for row in torn_rows()}
    with pytest.raises(DataError, match=r"group 'a/0.png', with"):
        check_split(rows, singles(10), protocol="grouped", groups=groups)


def test_a_group_may_be_left_out_in_part() -> None:
    rows = [
        replace(row, subset="left-out")
        if row.subset == "test" and row.path == "a/1.png"
        else row
        for row in torn_rows()
    ]
    check_split(rows, singles(10), protocol="grouped")


@pytest.mark.parametrize("subset", ["train", "val", "test"])
def test_an_empty_subset_is_refused(subset: str) -> None:
    other = "val" if subset == "train" else "train"
    rows = [
        replace(row, subset=other) if row.subset == subset else row for row in edited()
    ]
    with pytest.raises(DataError, match=rf"no readable image in {subset}"):
        check_split(rows, singles(10), protocol="grouped")


def test_a_class_missing_from_train_is_refused() -> None:
    rows = [
        replace(row, subset="test")
        if row.label == "b" and row.subset == "train"
        else row
        for row in edited()
    ]
    with pytest.raises(DataError, match=r"no readable image of class 'b' in train"):
        check_split(rows, singles(10), protocol="grouped")


def test_a_class_in_one_fold_only_is_refused() -> None:
    rows = split(singles(10), protocol="grouped-kfold").values()
    rows_of_b = [
        replace(row, subset="fold-1") if row.label == "b" else row for row in rows
    ]
    with pytest.raises(DataError, match=r"class 'b' is in 1 of 5 folds"):
        check_split(rows_of_b, singles(10), protocol="grouped-kfold")


@pytest.mark.parametrize(("fold", "got"), [("fold-7", "fold-7"), ("fold-0", "fold-0")])
def test_folds_with_a_gap_or_only_one_are_refused(fold: str, got: str) -> None:
    rows = split(singles(10), protocol="grouped-kfold").values()
    changed = [
        replace(row, subset=fold) if fold == "fold-0" or row.subset == "fold-4" else row
        for row in rows
    ]
    with pytest.raises(DataError, match=rf"at least two folds.*got .*{got}"):
        check_split(changed, singles(10), protocol="grouped-kfold")


def test_a_word_of_an_ordinary_split_is_no_fold() -> None:
    rows = split(singles(10)).values()
    with pytest.raises(
        DataError, match=r"unknown subset '(train|val|test)' of a/0.png"
    ):
        check_split(list(rows), singles(10), protocol="grouped-kfold")


# Properties of any set


@st.composite
def any_set(draw: st.DrawFn) -> tuple[Index, Duplicates]:
    """Return files of three classes with patients, copies and unreadable files."""
    files = draw(
        st.lists(
            st.tuples(
                st.sampled_from("abc"),
                st.none() | st.integers(0, 30),  # the patient
                st.none() | st.integers(0, 30),  # the picture
                st.integers(0, 19),  # 0 is unreadable
            ),
            min_size=10,
            max_size=80,
        )
    )
    paths = [f"{label}/{n}.png" for n, (label, *_) in enumerate(files)]
    same: dict[int, list[str]] = {}
    for path, (_, _, picture, readable) in zip(paths, files, strict=True):
        if picture is not None and readable:
            same.setdefault(picture, []).append(path)
    index = index_of(
        record(path, patient=None if patient is None else f"p{patient}")
        for path, (_, patient, _, _) in zip(paths, files, strict=True)
    )
    duplicates = duplicates_of(
        index,
        same=list(same.values()),
        unreadable=[
            path for path, file in zip(paths, files, strict=True) if not file[3]
        ],
    )
    return index, replace(duplicates, pixels=duplicates.pictures)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given_any(any_set(), st.sampled_from(["grouped", "grouped-kfold"]), st.integers(0, 99))
def test_any_set_is_split_by_group_without_a_leak_or_refused(
    files: tuple[Index, Duplicates], protocol: Protocol, seed: int
) -> None:
    index, duplicates = files
    try:
        rows = split(index, duplicates, protocol=protocol, num_folds=3, seed=seed)
    except DataError as error:
        event("refused")
        if "too few for 3 subsets" not in error.problem:
            raise
        return
    check_split(
        list(rows.values()),
        index,
        protocol=protocol,
        groups=group_records(index, duplicates),
    )
    assert not judge_leak(rows.values(), index, duplicates).leaks
    used = [row for row in rows.values() if row.subset != "left-out"]
    # Each class is in each subset, and each file that is left out has a reason.
    assert len({(row.subset, row.label) for row in used}) == 3 * len(index.classes)
    assert all(bool(row.reason) == (row.subset == "left-out") for row in rows.values())
    # At most one file of a picture takes part, and no other order changes anything.
    assert len({duplicates.pictures[row.path] for row in used}) == len(used)
    other = replace(index, records=index.records[::-1])
    again = make_split(
        other,
        duplicates,
        protocol=protocol,
        val_fraction=0.15,
        test_fraction=0.2,
        num_folds=3,
        seed=seed,
    )
    assert {row.path: row for row in again} == rows
