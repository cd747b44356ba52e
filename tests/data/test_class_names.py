"""Tests of the matching of class names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tumorlens.data.class_names import match_classes

FOUR = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")

SPELT = ["no", "no_tumor", "notumor", "No Tumour", "glioma", "Glioma-Tumor", "tumor"]


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(("glioma", "meningioma", "notumor", "pituitary"), id="short"),
        pytest.param(("glioma", "meningioma", "no", "pituitary"), id="only no"),
        pytest.param(
            ("Glioma Tumour", "MENINGIOMA", "No-Tumours", "pituitary tumors"),
            id="words, case and plural",
        ),
        pytest.param(FOUR, id="equal"),
    ],
)
def test_the_four_classes_are_matched_in_every_spelling(
    others: tuple[str, ...],
) -> None:
    match = match_classes(FOUR, others)
    assert match.pairs == tuple(zip(FOUR, others, strict=True))
    assert match.is_complete


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("no_tumor", "tumor", id="the word alone is a class"),
        pytest.param("no_tumor", "normal", id="a meaning is no spelling"),
        pytest.param("grade-", "grade+", id="a sign at the end"),
        pytest.param("grade 1 2", "grade 12", id="numbers"),
        pytest.param("glioma", "glioblastoma", id="the first letters"),
        pytest.param("tumor_core", "core", id="the word at the beginning"),
        pytest.param("yes", "no", id="other words"),
    ],
)
def test_other_names_are_left_unmatched(one: str, other: str) -> None:
    match = match_classes([one], [other])
    assert (match.pairs, match.only_first, match.only_second) == ((), (one,), (other,))
    assert not match.is_complete


def test_nothing_is_guessed_between_several_names_for_one_class() -> None:
    match = match_classes(["no", "no_tumor"], ["notumor", "yes"])
    assert match.pairs == ()
    assert match.only_first == ("no", "no_tumor")
    assert match.only_second == ("notumor", "yes")


def test_an_equal_name_wins_and_leaves_no_guess_for_its_neighbour() -> None:
    # `no_tumor` could be `notumor`, but beside `no` it must mean something else.
    match = match_classes(["no", "no_tumor"], ["no", "notumor"])
    assert match.pairs == (("no", "no"),)
    assert match.only_first == ("no_tumor",)
    assert match.only_second == ("notumor",)


def test_renamed_are_the_pairs_with_two_names() -> None:
    match = match_classes(["glioma", "no"], ["glioma", "no_tumor"])
    assert match.renamed == (("no", "no_tumor"),)


@given(
    st.lists(st.sampled_from(SPELT), unique=True),
    st.lists(st.sampled_from(SPELT), unique=True),
)
def test_exchanged_lists_give_the_same_pairs_and_no_name_is_lost(
    first: list[str], second: list[str]
) -> None:
    match, back = match_classes(first, second), match_classes(second, first)
    assert {(b, a) for a, b in back.pairs} == set(match.pairs)
    assert {*match.only_first, *(a for a, _ in match.pairs)} == set(first)
    assert {*match.only_second, *(b for _, b in match.pairs)} == set(second)
    assert len(match.pairs) + len(match.only_first) == len(first)
    assert len(match.pairs) + len(match.only_second) == len(second)
