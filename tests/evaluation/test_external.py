"""Another set: its classes, what training has seen of it, and figures of the rest."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, recall_score

from support.images import CLASSES, draw_image
from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.index import SplitRow, read_index
from tumorlens.data.seen import seen_of
from tumorlens.errors import ConfigError, DataError
from tumorlens.evaluation.external import (
    check_new,
    check_several,
    external_metrics,
    find_seen,
    map_classes,
    read_external,
)
from tumorlens.evaluation.predictions import Predictions, round_probs
from tumorlens.files import read_model, write_model
from tumorlens.runs.external import ExternalMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tumorlens.data.seen import Seen
    from tumorlens.evaluation.external import ExternalSet, SeenImages

    Drawn = Mapping[str, tuple[str, int, str]]


def write_set(root: Path, drawn: Drawn, *, patients: Mapping[str, str] = {}) -> Path:
    """Write images: path -> class that is drawn, its number, and how it is changed."""
    for path, (label, number, change) in drawn.items():
        image = Image.fromarray(draw_image(label, number))
        if change == "mirrored":
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        elif change == "turned":
            image = image.transpose(Image.Transpose.ROTATE_90)
        elif change == "small":
            image = image.resize((64, 64))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path)
    if patients:
        lines = ["path,patient", *(f"{path},{who}" for path, who in patients.items())]
        (root / "metadata.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Return a training on images 0 to 5 of each class, of which 5 is its test."""
    root = write_set(
        tmp_path_factory.mktemp("trained") / "data",
        {f"{label}/{n}.png": (label, n, "") for label in CLASSES for n in range(6)},
        patients={"glioma/0.png": "ANNA", "glioma/5.png": "BERT"},
    )
    index = read_index(root)
    rows = [
        SplitRow(one.path, one.sha256, one.label, one.path, subset)
        for one in index.records
        for subset in ("test" if one.path.endswith("5.png") else "train",)
    ]
    return seen_of(rows, index, find_duplicates(index))


DRAWN: Drawn = {
    "glioma/same.png": ("glioma", 0, ""),
    "glioma/mirrored.png": ("glioma", 1, "mirrored"),
    "glioma/turned.png": ("glioma", 2, "turned"),
    "glioma/small.png": ("glioma", 3, "small"),
    "glioma/its-test.png": ("glioma", 5, ""),
    "glioma/of-anna.png": ("glioma", 30, ""),
    "glioma/of-bert.png": ("glioma", 31, ""),
    "glioma/new.png": ("glioma", 32, ""),
    "no/new.png": ("no_tumor", 40, ""),
    "no/new-again.png": ("no_tumor", 40, "small"),
    "no/of-carl.png": ("no_tumor", 4, ""),
    "no/of-carl-too.png": ("no_tumor", 41, ""),
    "no/in-two.png": ("no_tumor", 42, ""),
    "pituitary/in-two.png": ("no_tumor", 42, "mirrored"),
    "pituitary/seen.png": ("pituitary", 1, ""),
}
PATIENTS = {
    "glioma/of-anna.png": "ANNA",
    "glioma/of-bert.png": "BERT",
    "no/of-carl.png": "CARL",
    "no/of-carl-too.png": "CARL",
}
SEEN_PICTURES = {
    *(f"glioma/{name}.png" for name in ("same", "mirrored", "turned", "small")),
    *("no/of-carl.png", "pituitary/seen.png"),
}
SEEN_PATIENTS = {"glioma/of-anna.png", "no/of-carl-too.png"}
NEW = {
    *("glioma/its-test.png", "glioma/of-bert.png", "glioma/new.png"),
    "no/new-again.png",
}


@pytest.fixture
def other(tmp_path: Path) -> ExternalSet:
    root = write_set(tmp_path / "other", DRAWN, patients=PATIENTS)
    (root / "no" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return read_external(root, read_index(root))


def answers(other: ExternalSet, classes: tuple[str, ...]) -> Predictions:
    """Return answers drawn by chance, mostly right."""
    records = [one for one in other.records if one.label in classes]
    rng = np.random.default_rng(3)
    probs = rng.dirichlet(np.ones(len(classes)), len(records))
    labels = np.array([classes.index(one.label) for one in records])
    probs[np.arange(len(records)), labels] += 0.5
    return Predictions(
        classes=classes,
        paths=tuple(one.path for one in records),
        labels=labels,
        probs=round_probs(probs / probs.sum(axis=1, keepdims=True)),
        groups=tuple(other.groups[one.path] for one in records),
        sources=("",) * len(records),
        folds=(None,) * len(records),
    )


def measured(
    other: ExternalSet, seen: SeenImages | None, table: Predictions | None = None
) -> ExternalMetrics:
    classes = map_classes(CLASSES, other.index.classes)
    return external_metrics(
        table or answers(other, classes.classes),
        other,
        seen,
        classes,
        name="other",
        model="run",
        model_sha256="0" * 64,
    )


def test_images_are_seen_by_their_picture_or_their_patient(
    other: ExternalSet, seen: Seen
) -> None:
    found = find_seen(other, [seen])
    tested = {record.path for record in other.records}
    states = {path: found.state_of(path) for path in tested}
    assert {path for path in tested if path in found.turns} == SEEN_PICTURES
    assert {path for path in tested if states[path] != "new"} == (
        SEEN_PICTURES | SEEN_PATIENTS
    )
    assert tested - SEEN_PICTURES - SEEN_PATIENTS == NEW
    assert found.turns["glioma/mirrored.png"] == "mirrored"
    turns = measured(other, found).orientations
    assert turns["mirrored"] == 1
    assert turns["same"] == 4
    assert sum(turns.values()) == 6
    words = measured(other, found).words_of_turns
    assert words == "Of 6 seen pictures, 4 are as in training, 1 mirrored, 1 turned."
    assert measured(other, None).words_of_turns == ""


def test_the_turns_are_those_of_the_pictures_that_are_tested(
    tmp_path: Path, seen: Seen
) -> None:
    copies = {f"glioma/{n}.png": ("glioma", 0, "small" * (n > 0)) for n in range(3)}
    root = write_set(tmp_path / "set", {**copies, "no/1.png": ("no_tumor", 60, "")})
    other = read_external(root, read_index(root))
    found = measured(other, find_seen(other, [seen]))
    assert found.counts.copies == 2
    assert found.counts.seen_pictures == 1
    assert found.orientations == {"same": 1}
    assert found.words_of_turns == "Of 1 seen picture, 1 is as in training."


def test_of_two_trainings_either_may_have_seen_it(
    other: ExternalSet, seen: Seen
) -> None:
    halves = [seen.part([n % 2 == half for n in range(len(seen))]) for half in (0, 1)]
    whole = find_seen(other, [seen])
    assert find_seen(other, halves).turns == whole.turns
    assert find_seen(other, halves[:1]).turns != whole.turns


def test_each_file_is_counted_once(other: ExternalSet, seen: Seen) -> None:
    counts = measured(other, find_seen(other, [seen])).counts
    assert counts.model_dump() == {
        "files": 16,
        "unreadable": 1,
        "copies": 1,
        "conflicting": 2,
        "unanswered": 0,
        "tested": 12,
        "seen_pictures": 6,
        "seen_patients": 2,
        "seen_by_key_only": 1,
        "new": 4,
    }


def test_the_parts_are_measured_apart(other: ExternalSet, seen: Seen) -> None:
    found = measured(other, find_seen(other, [seen]))
    table = answers(other, found.all.classes)
    for part, is_in in (
        (found.new, [path in NEW for path in table.paths]),
        (found.seen, [path not in NEW for path in table.paths]),
        (found.all, [True] * len(table.paths)),
    ):
        assert part is not None
        truth, predicted = table.labels[is_in], table.predicted[is_in]
        assert part.num_images == sum(is_in)
        assert part.accuracy.value == pytest.approx(accuracy_score(truth, predicted))
        there = sorted(set(truth.tolist()))
        recalls = recall_score(truth, predicted, average=None, labels=there)
        names = [found.all.classes[label] for label in there]
        assert [part.per_class[name].recall.value for name in names] == pytest.approx(
            recalls
        )
    assert found.headline is found.new
    words = found.words
    assert words == (
        "Training has seen 8 of the 12 images (66.7 %): 6 as a picture or a slice next "
        "to one, 2 more by their patient or head; 4 are new."
    )


def test_what_the_figures_do_not_say_is_said(other: ExternalSet, seen: Seen) -> None:
    notes = measured(other, find_seen(other, [seen])).notes
    names, absent, left_out, gone, keys = notes
    assert keys.startswith("1 image counted as seen only because a patient has")
    assert names == "Classes by another name: no_tumor as no."
    assert absent.startswith("The data has no meningioma: an image that is given such")
    assert left_out == (
        "In no figure: 1 x further file of a picture that counts once, 2 x file whose "
        "copies have another label, 1 x file that cannot be read."
    )
    assert gone == "Nothing new is left of pituitary."


def test_keys_that_are_equal_by_chance_are_not_called_seen(
    tmp_path: Path, seen: Seen
) -> None:
    # Each set numbers its patients by itself; no picture of one is in the other.
    root = write_set(
        tmp_path / "set",
        {
            **{f"glioma/{n}.png": ("glioma", 60 + n, "") for n in range(3)},
            "no/1.png": ("no_tumor", 60, ""),
        },
        patients={f"glioma/{n}.png": "ANNA" for n in range(3)},
    )
    other = read_external(root, read_index(root))
    found = measured(other, find_seen(other, [seen]))
    assert found.counts.seen_by_key_only == found.counts.seen_patients == 3
    assert found.words == (
        "Training may have seen 3 of the 4 images (75.0 %): none by its picture, all "
        "by an equal patient key; 1 is new."
    )
    assert found.accuracy_words.endswith(
        "on 1 new image, others have a patient key of training"
    )
    keys = found.notes[-1]
    assert "give the keys of this set a prefix in its metadata.csv" in keys
    assert "intervals too narrow" in keys


def test_new_images_of_no_known_source_are_measured_as_such(
    other: ExternalSet, seen: Seen
) -> None:
    classes = map_classes(CLASSES, other.index.classes)
    table = answers(other, classes.classes)
    sources = tuple("" if path in NEW else "web" for path in table.paths)
    table = replace(table, sources=sources)
    found = measured(other, find_seen(other, [seen]), table)
    assert found.new is not None
    assert set(found.new.by_source) == {"unknown"}
    assert found.new.by_source["unknown"].num_images == 4
    assert set(found.all.by_source) == {"web", "unknown"}


def test_a_class_without_new_images_that_is_predicted_is_named(
    other: ExternalSet, seen: Seen
) -> None:
    classes = map_classes(CLASSES, other.index.classes)
    table = answers(other, classes.classes)
    gone = table.classes.index("pituitary")
    probs = table.probs.copy()
    row = [path in NEW for path in table.paths].index(True)
    probs[row] = np.eye(len(table.classes))[gone]
    table = replace(table, probs=probs)
    found = measured(other, find_seen(other, [seen]), table)
    assert found.new is not None
    assert found.new.per_class["pituitary"].f1 == 0
    (note,) = [one for one in found.notes if "macro F1" in one]
    assert note.startswith("Some new images are taken for pituitary, so macro F1")


def test_where_training_is_not_known_nothing_is_called_new(other: ExternalSet) -> None:
    found = measured(other, None)
    assert (found.new, found.seen) == (None, None)
    assert found.words.startswith("Not known: the model does not tell")
    assert found.headline is found.all


def test_it_is_written_and_read_back(
    other: ExternalSet, seen: Seen, tmp_path: Path
) -> None:
    found = measured(other, find_seen(other, [seen]))
    write_model(tmp_path / "external.json", found)
    assert read_model(tmp_path / "external.json", ExternalMetrics, hint="") == found
    content = json.loads((tmp_path / "external.json").read_text())
    assert not any(name in json.dumps(content) for name in ("ANNA", "BERT", "CARL"))


def test_a_set_without_an_image_to_test_is_refused(tmp_path: Path) -> None:
    root = write_set(
        tmp_path / "set", {"a/1.png": ("glioma", 1, ""), "b/1.png": ("glioma", 1, "")}
    )
    with pytest.raises(
        DataError, match=r"no image of .*set can be tested: conflicting"
    ):
        read_external(root, read_index(root))


def test_a_set_of_which_nothing_is_new_is_refused(
    other: ExternalSet, seen: Seen
) -> None:
    found = find_seen(other, [seen])
    both = sorted(SEEN_PICTURES | SEEN_PATIENTS)
    check_new(other, [*both, "glioma/new.png"], found, hint="x")
    check_new(other, both, None, hint="x")
    with pytest.raises(DataError, match=r"other is new: training has seen all 7 ") as e:
        check_new(other, [one for one in both if "anna" not in one], found, hint="x")
    assert e.value.hint == "x"
    with pytest.raises(DataError, match=r"all 8 images .*, 1 of them only by a") as e:
        check_new(other, both, found, hint="x")
    assert e.value.hint.startswith("x; if each set numbers its patients by itself,")
    assert "a prefix in its metadata.csv, or leave them out by --metadata none" in (
        e.value.hint
    )
    assert not any(name in str(e.value) for name in PATIENTS.values())


# classes


def test_several_classes_become_one_and_their_probabilities_are_added() -> None:
    found = map_classes(
        CLASSES, ["no", "yes"], ["glioma,meningioma,pituitary=yes", "no_tumor=no"]
    )
    assert found.classes == ("no", "yes")
    probs = np.array([[0.1, 0.2, 0.4, 0.3]])
    assert found.probs_of(probs) == pytest.approx(np.array([[0.4, 0.6]]))


def test_classes_of_one_side_only_are_kept_apart() -> None:
    found = map_classes(["glioma", "no_tumor"], ["Glioma", "abscess"])
    assert found.classes == ("Glioma", "no_tumor")
    assert found.unknown == ("abscess",)
    assert [pair.data for pair in found.pairs] == ["Glioma", None]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["glioma"], "expected --map FROM=TO, got 'glioma'"),
        (["=no"], "expected --map FROM=TO"),
        (["glioma,=no"], "expected --map FROM=TO"),
        (["gliom=no"], "--map names 'gliom', which is no class of the model"),
        (["glioma=nope"], "--map names 'nope', which is no class of the data"),
        (["glioma=no", "glioma=yes"], "--map gives 'glioma' twice"),
        ([], "no class of the data, no, yes, is one of the model"),
    ],
)
def test_a_map_that_names_no_class_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        map_classes(["glioma", "other"], ["no", "yes"], given)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "given", "problem", "hint"),
    [
        (
            ["no", "yes"],
            [],
            "only no is one of the model (no_tumor), and yes is none",
            "add --map glioma,meningioma,pituitary=yes",
        ),
        (
            ["no", "high grade"],
            [],
            "and high grade is none",
            "--map 'glioma,meningioma,pituitary=high grade'",
        ),
        (
            ["glioma", "high", "low"],
            [],
            "and high, low are none",
            "--map FROM=high --map FROM=low, FROM of the model: meningioma, no_tumor",
        ),
        (
            ["no", "yes"],
            ["glioma,meningioma,pituitary,no_tumor=yes"],
            "only yes is one of the model (glioma, meningioma, no_tumor, pituitary)",
            "--map FROM=no, FROM of the model",
        ),
    ],
)
def test_a_single_class_that_both_have_is_refused_with_the_map_to_type(
    data: list[str], given: list[str], problem: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_several(map_classes(CLASSES, data, given))
    assert problem in caught.value.problem
    assert hint in caught.value.hint
    if " --map F" not in hint and "FROM" not in hint:
        (typed,) = shlex.split(caught.value.hint.partition("--map ")[2])
        check_several(map_classes(CLASSES, data, [typed]))


def test_a_class_of_the_model_is_not_mixed_with_one_of_its_name() -> None:
    with pytest.raises(ConfigError, match="which is also one of the model"):
        map_classes(["glioma", "other"], ["other", "yes"], ["glioma=other"])
