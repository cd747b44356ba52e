"""Splits made by hand: what is counted as a leak, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tumorlens.data.duplicates import Duplicates, NearPair
from tumorlens.data.index import Index, Record, SplitRow
from tumorlens.data.leakage import judge_leak

INDEX_ROOT = Path("data")

# path -> (patient, pixels, picture)
FILES: dict[str, tuple[str | None, str, str]] = {
    "a/1": ("secret-1", "p1", "a/1"),
    "a/2": ("secret-1", "p2", "a/2"),
    "a/3": (None, "p1", "a/1"),  # equal pixels with a/1
    "a/4": (None, "p4", "a/1"),  # a near copy of a/1
    "b/5": (None, "p5", "b/5"),  # a near copy of a/4 only
    "b/6": ("secret-2", "p6", "b/6"),
    "b/7": (None, "p7", "b/7"),
    "b/8": (None, "", ""),  # unreadable
}


def make_index() -> Index:
    return Index(
        INDEX_ROOT,
        ("a", "b"),
        tuple(
            Record(path, path[0], None, patient, None, None, "0" * 64, 1)
            for path, (patient, _, _) in FILES.items()
        ),
    )


def make_duplicates(*lookalikes: str) -> Duplicates:
    """Return the duplicates of `FILES`, and lookalikes such as "a1 b7"."""
    readable = {path: rest for path, rest in FILES.items() if rest[1]}
    return Duplicates(
        unreadable={"b/8": "it is empty (0 bytes)"},
        facts={},
        pixels={path: pixels for path, (_, pixels, _) in readable.items()},
        pictures={path: picture for path, (_, _, picture) in readable.items()},
        near_pairs=(
            NearPair("a/1", "a/4", 0.995, "same"),
            NearPair("a/4", "b/5", 0.991, "mirrored"),
        ),
        lookalikes=tuple(
            NearPair(f"{pair[0]}/{pair[1]}", f"{pair[3]}/{pair[4]}", 0.993, "same")
            for pair in lookalikes
        ),
    )


def rows(**subsets: str) -> list[SplitRow]:
    """Return rows for `train="a1 a2"` and so on; files not named are left out."""
    named = {
        f"{name[0]}/{name[1]}": subset.replace("_", "-")
        for subset, names in subsets.items()
        for name in names.split()
    }
    return [
        SplitRow(path, "0" * 64, path[0], path, named.get(path, "left-out"))
        for path in FILES
    ]


@pytest.mark.parametrize(
    ("train", "test", "num_identical", "num_copied", "num_same_patient"),
    [
        pytest.param("a1", "a3", 1, 1, 0, id="equal pixels"),
        pytest.param("a1", "a4", 0, 1, 0, id="near copy"),
        pytest.param("a3", "a4", 0, 1, 1, id="near copy of a file with equal pixels"),
        pytest.param("a4", "b5", 0, 1, 0, id="near copy that is a picture of its own"),
        pytest.param("b5", "a4", 0, 1, 0, id="the same the other way round"),
        pytest.param("a1", "b5", 0, 0, 0, id="copy of a copy is no copy"),
        pytest.param("a1", "a2", 0, 0, 1, id="same patient"),
        pytest.param("a1 b7", "a2 a3 a4 b5 b6", 1, 2, 1, id="all together"),
        pytest.param("a1 a2 a3 a4", "b5 b6 b7", 0, 1, 0, id="one of three"),
        pytest.param("b6", "b7 b8", 0, 0, 0, id="unreadable files do not count"),
    ],
)
def test_what_training_has_seen_is_counted(
    train: str, test: str, num_identical: int, num_copied: int, num_same_patient: int
) -> None:
    verdict = judge_leak(rows(train=train, test=test), make_index(), make_duplicates())
    assert verdict.num_test == len(test.replace("b8", "").split())
    assert verdict.num_pixel_identical == num_identical
    assert verdict.num_copied == num_copied
    assert verdict.num_test_patient_in_train == num_same_patient
    assert verdict.num_patients_on_both_sides == num_same_patient
    assert verdict.leaks == bool(num_copied or num_same_patient)
    assert verdict.words.startswith("Leak: ") == verdict.leaks


def test_an_image_has_the_patient_of_the_copy_that_was_left_out_for_it() -> None:
    # a/4 has no patient of its own; its copy a/1 has, and is in no subset.
    verdict = judge_leak(
        rows(train="a2", test="a4 b7"), make_index(), make_duplicates()
    )
    assert (verdict.num_copied, verdict.num_test_patient_in_train) == (0, 1)
    assert verdict.num_test_unknown_patient == 1
    # Where the copy takes part, it is a copy and says enough.
    verdict = judge_leak(rows(train="a1", test="a4"), make_index(), make_duplicates())
    assert (verdict.num_copied, verdict.num_test_unknown_patient) == (1, 1)


@pytest.mark.parametrize(
    ("alike", "train", "test", "num_lookalike", "leaks"),
    [
        pytest.param("b5 b7", "b5", "b7", 1, True, id="patients not known"),
        pytest.param("b5 b7", "b7", "b5", 1, True, id="the same the other way round"),
        pytest.param("b6 b7", "b6", "b7", 1, True, id="one patient not known"),
        pytest.param("a1 b6", "a1", "b6", 0, False, id="two known patients"),
        pytest.param("a1 a2", "a1", "a2", 0, True, id="the patient counts already"),
        pytest.param("a4 b5", "a4", "b5", 0, True, id="the copy counts already"),
        pytest.param(
            "a3 b7", "a1", "b7", 1, True, id="alike to a file of equal pixels"
        ),
        pytest.param("b5 b7", "b6", "b5 b7", 0, False, id="both in test"),
        pytest.param("b5 b7", "b6", "b5", 0, False, id="one left out"),
    ],
)
def test_a_slice_beside_one_of_training_is_a_leak_where_patients_are_not_known(
    alike: str, train: str, test: str, num_lookalike: int, *, leaks: bool
) -> None:
    verdict = judge_leak(
        rows(train=train, test=test), make_index(), make_duplicates(alike)
    )
    assert verdict.num_lookalike == num_lookalike
    assert verdict.leaks == leaks
    assert ("like neighbouring slices" in verdict.words) == bool(num_lookalike)


def test_val_is_training() -> None:
    verdict = judge_leak(
        rows(train="b7", val="a1", test="a3"), make_index(), make_duplicates()
    )
    assert verdict.num_copied == 1


def test_copies_within_one_side_are_no_leak() -> None:
    verdict = judge_leak(
        rows(train="b6 b7", test="a1 a2 a3 a4"), make_index(), make_duplicates()
    )
    assert not verdict.leaks


def test_under_k_folds_each_image_is_tested_against_the_other_folds() -> None:
    split = rows(fold_0="a1 a2", fold_1="a3 b7", fold_2="b6")
    verdict = judge_leak(split, make_index(), make_duplicates())
    assert verdict.num_test == 5
    # a1 and a3 have equal pixels in two folds; the patient is in one fold only.
    assert (verdict.num_copied, verdict.num_patients_on_both_sides) == (2, 0)


def test_a_patient_in_two_folds_is_a_leak() -> None:
    verdict = judge_leak(
        rows(fold_0="a1", fold_1="a2"), make_index(), make_duplicates()
    )
    assert verdict.leaks
    assert verdict.num_test_patient_in_train == 2


@pytest.mark.parametrize(
    ("split", "words"),
    [
        pytest.param(
            {"train": "a1", "test": "a2 a3 b7"},
            "Leak: 1 of 3 test images (33.3 %) shows a picture that is also in "
            "training; 1 of 1 test image with a known patient has that patient in "
            "training too; 2 test images have no known patient.",
            id="copy and patient",
        ),
        pytest.param(
            {"train": "b7", "test": "b6"},
            "No leak found: none of 1 test image shows a picture that is also in "
            "training, and none of the 1 with a known patient shares that patient with "
            "training.",
            id="no leak",
        ),
        pytest.param(
            {"train": "a2", "test": "b5 b6 b7"},
            "No copies found: none of 3 test images shows a picture that is also in "
            "training, and none of the 1 with a known patient shares that patient with "
            "training. Patients are not known for 2 of 3 test images: whether training "
            "has seen them cannot be checked, and as their images count as groups of "
            "their own, intervals may be too narrow.",
            id="no leak as far as is known",
        ),
        pytest.param(
            {"train": "b6", "test": "b7"},
            "No copies found: none of 1 test image shows a picture that is also in "
            "training. Patients are not known for 1 of 1 test image: whether training "
            "has seen them cannot be checked, and as their images count as groups of "
            "their own, intervals may be too narrow.",
            id="no known patient",
        ),
        pytest.param(
            {"train": "a1 b7"},
            "There is no test subset, so nothing can leak.",
            id="no test",
        ),
        pytest.param(
            {"test": "a1 b7"},
            "There is no training subset, so nothing can leak.",
            id="no training",
        ),
    ],
)
def test_the_words_say_what_was_counted(split: dict[str, str], words: str) -> None:
    verdict = judge_leak(rows(**split), make_index(), make_duplicates())
    assert verdict.words == words
    assert "secret" not in repr(verdict)
