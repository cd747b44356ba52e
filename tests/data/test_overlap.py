"""Two and more sets with planted copies: what is found in each, by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.images import draw_head
from support.planted_sets import PLANTED, draw_set, make_two_sets, plant
from tumorlens.data import overlap, shortcuts
from tumorlens.data.audit import audit
from tumorlens.data.duplicates import Duplicates, NearPair, find_duplicates
from tumorlens.data.index import read_index
from tumorlens.data.near_duplicates import ORIENTATIONS, UNDOING, turned
from tumorlens.data.overlap import (
    Overlaps,
    ReadSet,
    SetInOther,
    TwoSets,
    compare_sets,
    read_sets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REAL = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri"


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the forests of an audit small: nothing here depends on them."""
    monkeypatch.setattr(shortcuts, "NUM_TREES", 3)


def read(place: Path, name: str = "") -> ReadSet:
    index = read_index(place)
    return ReadSet(name or place.name, index, find_duplicates(index))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return make_two_sets(tmp_path)


def compared(*places: Path) -> Overlaps:
    return compare_sets([read(place) for place in places])


def compared_pair(first: Path, second: Path) -> TwoSets:
    (pair,) = compared(first, second).pairs
    return pair


def test_planted_copies_are_counted_by_class_and_turn(two: tuple[Path, Path]) -> None:
    found = compared(*two)
    clinic, web = found.sets
    assert (clinic.num_files, clinic.num_pictures) == (20, 20)
    # Eight copies, of which two show one picture.
    assert (web.num_files, web.num_pictures) == (28, 27)
    of_clinic, of_web = found.pairs[0].in_other
    assert (of_clinic.of, of_clinic.other) == ("clinic", "web")
    assert (of_clinic.files, of_clinic.pictures) == (7, 7)
    assert (of_web.files, of_web.pictures) == (8, 7)
    assert (of_clinic.pixel_identical, of_web.pixel_identical) == (1, 1)
    assert {
        label: (one.files, one.num_files) for label, one in of_clinic.by_class.items()
    } == {
        "glioma_tumor": (3, 5),
        "meningioma_tumor": (1, 5),
        "no_tumor": (2, 5),
        "pituitary_tumor": (1, 5),
    }
    assert {
        label: (one.files, one.num_files, one.pictures, one.num_pictures)
        for label, one in of_web.by_class.items()
    } == {
        "glioma": (4, 9, 4, 9),
        "meningioma": (0, 5, 0, 5),
        "notumor": (2, 7, 2, 7),
        "pituitary": (2, 7, 1, 6),
    }
    # Two turns fit pituitary 0: the rotation by 180 degrees has the lower number.
    assert of_clinic.by_orientation == {
        "same": 2,
        "rotated-90": 2,
        "rotated-180": 1,
        "mirrored": 1,
        "mirrored-rotated-90": 1,
    }
    # From the copy to its source: quarter turns are undone by the opposite ones.
    assert of_web.by_orientation == {
        "same": 2,
        "rotated-180": 1,
        "rotated-270": 2,
        "mirrored": 2,
        "mirrored-rotated-90": 1,
    }


def test_each_shared_picture_is_listed_with_the_turn_that_was_planted(
    two: tuple[Path, Path],
) -> None:
    pair = compared_pair(*two)
    listed = {(one.a, one.b, one.orientation, one.is_identical) for one in pair.shared}
    planted = {
        (one.source, one.copy, one.orientation, one.is_identical)
        for one in PLANTED
        if one.copy != "pituitary/near.jpg"  # `far` needs the turn of the lower number
    }
    assert listed == planted


def test_a_label_that_disagrees_is_listed_and_one_in_another_spelling_is_not(
    two: tuple[Path, Path],
) -> None:
    pair = compared_pair(*two)
    assert pair.num_disagreeing == 1
    (one,) = pair.disagreeing
    assert (one.a, one.label_a) == ("meningioma_tumor/0.png", "meningioma_tumor")
    assert (one.b, one.label_b) == ("glioma/wrong.jpg", "glioma")
    assert one.orientation == "rotated-90"
    assert pair.num_not_comparable == 0
    assert ("no_tumor", "notumor") in pair.classes


def test_the_order_of_the_sets_only_transposes_the_matrix(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    third = draw_set(tmp_path / "third", name="web", num_each=3, first_seed=1002)
    read_sets = [read(place) for place in (*two, third)]
    found = compare_sets(read_sets)
    back = compare_sets(reversed(read_sets))
    assert [one.name for one in found.sets] == ["clinic", "web", "third"]
    assert [one.name for one in back.sets] == ["third", "web", "clinic"]
    assert found.matrix == back.matrix
    assert found.matrix["third"]["web"].files == 12
    assert found.matrix["clinic"]["third"].files == 0
    # A third set changes nothing between the other two.
    assert found.pairs[0] == compare_sets(read_sets[:2]).pairs[0]
    forth, reverse = found.pairs[0], compare_sets(read_sets[1::-1]).pairs[0]
    assert forth.in_other == reverse.in_other[::-1]
    assert {(one.a, one.b) for one in forth.disagreeing} == {
        (one.b, one.a) for one in reverse.disagreeing
    }


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_name_of_a_set_means_nothing(two: tuple[Path, Path], name: str) -> None:
    found = compare_sets([read(two[0], name), read(two[1])])
    assert [one.files for one in found.pairs[0].in_other] == [7, 8]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_copy_of_a_copy_is_in_the_other_set_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_reversed: bool
) -> None:
    """The second of three files is a copy of the first, and the third of the second.

    The first and the third are two pictures of one set, and the second is in the other.
    """
    files = {"one": ("a/1.png", "b/3.png"), "two": ("a/2.png", "b/4.png")}
    pictures = {"one/a/1.png": "one/a/1.png", "one/b/3.png": "one/b/3.png"}
    pictures |= {"two/a/2.png": "one/a/1.png", "two/b/4.png": "two/b/4.png"}
    pairs = (
        NearPair("one/a/1.png", "two/a/2.png", 0.999, "same"),
        NearPair("one/b/3.png", "two/a/2.png", 0.999, "rotated-90"),
    )
    both = Duplicates({}, {}, {path: path for path in pictures}, pictures, pairs)
    monkeypatch.setattr(overlap, "pool_duplicates", lambda *_: both)
    sets = []
    for name, paths in files.items():
        for path in paths:
            (tmp_path / name / path).parent.mkdir(parents=True)
            (tmp_path / name / path).write_text(path)
        alone = {path: path for path in paths}
        index = read_index(tmp_path / name)
        sets.append(ReadSet(name, index, Duplicates({}, {}, alone, alone, ())))
    found = compare_sets(reversed(sets) if is_reversed else sets)
    of_one = found.matrix["one"]["two"]
    assert (of_one.files, of_one.by_orientation) == (2, {"same": 1, "rotated-90": 1})
    assert found.matrix["two"]["one"].files == 1
    (conflict,) = found.pairs[0].disagreeing
    assert {conflict.a, conflict.b} == {"b/3.png", "a/2.png"}
    assert conflict.orientation == ("rotated-270" if is_reversed else "rotated-90")


def test_a_set_against_a_copy_of_itself_is_found_whole(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(two[0], tmp_path / "again")
    pair = compared_pair(two[0], tmp_path / "again")
    for one in pair.in_other:
        assert one.files == one.num_files == one.pixel_identical == 20
        assert one.by_orientation == {"same": 20}
    assert pair.num_disagreeing == 0


def test_sets_without_a_common_picture_share_nothing(tmp_path: Path) -> None:
    places = [
        draw_set(tmp_path / name, name=name, num_each=3, first_seed=seed)
        for name, seed in (("clinic", 0), ("web", 50))
    ]
    pair = compared_pair(*places)
    assert [one.files for one in pair.in_other] == [0, 0]
    assert pair.shared == pair.disagreeing == ()
    assert pair.sentences[:2] == (
        "None of 12 files of clinic shows a picture of web.",
        "None of 12 files of web shows a picture of clinic.",
    )


def test_the_sentences_say_what_is_planted(two: tuple[Path, Path]) -> None:
    for place, path in ((two[0], "no_tumor/3.png"), (two[1], "pituitary/2.png")):
        (place / "metadata.csv").write_text(f"path,patient\n{path},P-1\n")
    pair = compared_pair(*two)
    of_clinic, of_web, patients, labels, classes = pair.sentences
    assert of_clinic == (
        "7 of 20 files of clinic (35.0 %) show a picture of web, 2 the same way round, "
        "2 mirrored, 3 turned, and 7 of its 20 distinct pictures are there. Files by "
        "class: glioma_tumor 3 of 5, meningioma_tumor 1 of 5, no_tumor 2 of 5, "
        "pituitary_tumor 1 of 5."
    )
    assert of_web == (
        "8 of 28 files of web (28.6 %) show a picture of clinic, 2 the same way round, "
        "3 mirrored, 3 turned, and 7 of its 27 distinct pictures are there. Files by "
        "class: glioma 4 of 9, meningioma 0 of 5, notumor 2 of 7, pituitary 2 of 7."
    )
    assert patients == (
        "1 key of known patients is in both; if each set numbers its patients by "
        "itself, equal keys may be other people."
    )
    assert labels == (
        "1 pair of files shows one picture under labels that disagree, as "
        "meningioma_tumor/0.png (meningioma_tumor) in clinic and glioma/wrong.jpg "
        "(glioma) in web."
    )
    assert classes == (
        "Matched classes: glioma_tumor is glioma, meningioma_tumor is meningioma, "
        "no_tumor is notumor, pituitary_tumor is pituitary."
    )
    assert "P-1" not in pair.model_dump_json()


def test_labels_are_compared_as_far_as_the_classes_are_matched(tmp_path: Path) -> None:
    clinic = draw_set(tmp_path / "clinic", name="clinic", num_each=2, first_seed=0)
    yes_no = tmp_path / "yes-no"
    for label, source in (
        ("yes", "glioma_tumor/0.png"),  # neither has a match: nothing is known
        ("no", "glioma_tumor/1.png"),  # `no` is no_tumor, which the clinic denies
        ("yes", "no_tumor/0.png"),  # no_tumor is `no`, which the other set denies
        ("no", "no_tumor/1.png"),
    ):
        (yes_no / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(clinic / source, yes_no / label / source.replace("/", "-"))
    pair = compared_pair(clinic, yes_no)
    assert pair.classes == (("no_tumor", "no"),)
    assert pair.only_first == ("glioma_tumor", "meningioma_tumor", "pituitary_tumor")
    assert pair.only_second == ("yes",)
    assert {(one.a, one.label_b) for one in pair.disagreeing} == {
        ("glioma_tumor/1.png", "no"),
        ("no_tumor/0.png", "yes"),
    }
    assert (pair.num_disagreeing, pair.num_not_comparable) == (2, 1)
    assert pair.sentences[-2:] == (
        "Only yes-no has the class yes.",
        "1 pair of files of one picture has labels that cannot be compared.",
    )


def test_slices_of_one_head_are_no_copies_but_are_counted(tmp_path: Path) -> None:
    places = []
    for seed, image in enumerate(draw_head(3, num_slices=2)):
        place = tmp_path / f"set{seed}"
        draw_set(place, name="web", num_each=1, first_seed=50 * seed)
        Image.fromarray(image).save(place / "glioma/slice.png")
        places.append(place)
    pair = compared_pair(*places)
    assert [one.files for one in pair.in_other] == [0, 0]
    assert [one.lookalikes for one in pair.in_other] == [1, 1]
    assert pair.sentences[0] == (
        "None of 5 files of set0 shows a picture of set1; 1 looks like neighbouring "
        "slices of images there."
    )


def test_lists_are_cut_and_counts_are_not(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "MAX_LISTED", 2)
    for number in range(3):
        plant(
            two[0] / "meningioma_tumor/1.png",
            two[1] / f"notumor/wrong{number}.jpg",
            ORIENTATIONS[number],
        )
    pair = compared_pair(*two)
    assert (len(pair.shared), len(pair.disagreeing)) == (2, 2)
    assert pair.num_disagreeing == 4
    assert pair.in_other[0].files == 8


def test_an_unreadable_file_counts_for_the_set_and_for_nothing_else(
    two: tuple[Path, Path],
) -> None:
    (two[0] / "glioma_tumor/0.png").write_bytes(b"no image")
    found = compared(*two)
    assert (found.sets[0].num_files, found.sets[0].num_unreadable) == (20, 1)
    of_clinic = found.pairs[0].in_other[0]
    assert (of_clinic.num_files, of_clinic.files) == (19, 6)


@pytest.mark.parametrize("turn", range(8))
def test_a_turn_and_its_undoing_leave_an_image_as_it_was(turn: int) -> None:
    image: Any = np.arange(12, dtype=np.uint8).reshape(3, 4)
    back = turned(turned(image, turn), UNDOING[turn])
    assert np.array_equal(back, image)
    for following in range(8):
        both = turned(turned(image, turn), following)
        assert np.array_equal(both, turned(image, overlap._then(turn, following)))


def test_many_copies_of_one_picture_in_both_sets_are_counted(tmp_path: Path) -> None:
    # With equal hashes each copy is compared with the first alone, which may be in
    # either set; the turn to the others follows from that.
    places = []
    for seed, (name, turn) in enumerate((("one", "same"), ("two", "mirrored"))):
        place = draw_set(tmp_path / name, name="web", num_each=1, first_seed=50 * seed)
        places.append(place)
        image = np.asarray(Image.open(places[0] / "glioma/0.png"))
        for quality in (60, 75, 90):
            copy = Image.fromarray(turned(image, ORIENTATIONS.index(turn)).copy())
            copy.save(place / f"glioma/{quality}.jpg", quality=quality)
    of_one, of_two = compared_pair(*places).in_other
    assert of_one.by_class["glioma"].files == of_one.by_orientation["mirrored"] == 4
    assert of_two.by_class["glioma"].files == of_two.by_orientation["mirrored"] == 3
    assert (of_one.files, of_two.files) == (4, 3)
    assert (of_one.pictures, of_two.pictures) == (1, 1)


def test_testing_in_training_is_the_leak_of_the_whole_set(
    make_images: Callable[..., Path],
) -> None:
    data = make_images(subsets={"Training": 4, "Testing": 3})
    for number, turn in enumerate(ORIENTATIONS):
        source = data / f"Training/glioma/{number % 4}.png"
        plant(source, data / f"Testing/no_tumor/{turn}.jpg", turn)
    assert_like_the_leak(data)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not at {REAL}")
def test_testing_in_training_is_the_leak_of_the_real_set() -> None:
    of_testing = assert_like_the_leak(REAL)
    assert of_testing.files == 264
    assert of_testing.by_orientation == {"same": 264}


def assert_like_the_leak(data: Path) -> SetInOther:
    """Check that a comparison of its subsets finds what the leak check of a set finds.

    The two count in two ways: one by the subset of each file of one set, the other by
    the set of each file, in two indices.
    """
    index = read_index(data, metadata="none")
    leak = audit(index, find_duplicates(index)).leak
    assert leak is not None
    places = [data / "Testing", data / "Training"]
    (pair,) = compare_sets(read_sets(places, metadata="none")).pairs
    of_testing = pair.in_other[0]
    assert (of_testing.files, of_testing.pixel_identical, of_testing.lookalikes) == (
        *(leak.test_files, leak.pixel_identical, leak.test_files_lookalike),
    )
    assert {
        label: (one.num_files, one.files) for label, one in of_testing.by_class.items()
    } == {label: (one.test, one.copied) for label, one in leak.by_class.items()}
    return of_testing
