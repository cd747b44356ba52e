"""Sets with planted faults: the audit finds what was planted and says what it means."""

from __future__ import annotations

import json
import re
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.images import CLASSES, draw_image
from tumorlens.data import audit as audit_module
from tumorlens.data import shortcuts
from tumorlens.data.audit import Audit, audit
from tumorlens.data.duplicates import NearPair, find_duplicates
from tumorlens.data.index import SplitRow, read_index
from tumorlens.data.leakage import judge_leak
from tumorlens.errors import RunError
from tumorlens.files import read_model, write_json, write_model

if TYPE_CHECKING:
    from collections.abc import Callable

REAL = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri"


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Make forests small: what they find is tested in `test_shortcuts`."""
    if "real" not in request.keywords:
        monkeypatch.setattr(shortcuts, "NUM_TREES", 3)


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    """Four classes with eight different pictures in Training and four in Testing."""
    return make_images(subsets={"Training": 8, "Testing": 4})


def audited(data: Path, *, metadata: str | None = None) -> dict[str, Any]:
    index = read_index(data, metadata=metadata)
    found = audit(index, find_duplicates(index)).model_dump(mode="json")
    json.dumps(found, allow_nan=False)  # what is written must be JSON
    return found


def re_encode(one: Path, other: Path) -> None:
    Image.open(one).save(other, quality=80)


def test_a_clean_set_is_believed_as_far_as_is_known(data: Path) -> None:
    found = audited(data)
    assert found["num_files"] == 48
    assert found["distinct"] == {"bytes": 48, "pixels": 48, "pictures": 48}
    assert found["classes"] == list(CLASSES)
    assert found["subsets"]["test"] == dict.fromkeys(CLASSES, 4)
    for key in (
        "unreadable",
        "odd",
        "copy_sets",
        "near_pairs",
        "label_conflicts",
        "source_label_conflicts",
    ):
        assert found[key] == []
    leak = found["leak"]
    assert leak["test_files"] == leak["pixel_identical"] == 0
    assert leak["clean_test_files"] == 16
    assert found["verdict"] == {
        "believable": True,
        "words": "A score on this test set can be believed, as far as copies go: "
        "patients are not known. No copies found: none of 16 test images shows a "
        "picture that is also in training. Patients are not known for 16 of 16 test "
        "images: whether training has seen them cannot be checked, and as their images "
        "count as groups of their own, intervals may be too narrow.",
        "left": "",
    }
    assert set(found["groups"].values()) == set(found["groups"])


def test_each_kind_of_copy_across_the_subsets_is_counted(data: Path) -> None:
    train, test = data / "Training", data / "Testing"
    # Bytes and pixels of glioma, a near copy of pituitary, and one within Testing.
    shutil.copy(train / "glioma/0.png", test / "glioma/bytes.png")
    Image.open(train / "glioma/1.png").save(test / "glioma/pixels.bmp")
    re_encode(train / "pituitary/0.png", test / "pituitary/near.jpg")
    shutil.copy(test / "no_tumor/0.png", test / "no_tumor/again.png")
    found = audited(data)
    assert found["distinct"] == {"bytes": 50, "pixels": 49, "pictures": 48}
    leak = found["leak"]
    assert leak["num_test"] == 20
    assert (leak["test_files"], leak["pixel_identical"]) == (3, 2)
    assert leak["by_class"] == {
        "glioma": {"test": 6, "copied": 2},
        "meningioma": {"test": 4, "copied": 0},
        "no_tumor": {"test": 5, "copied": 0},
        "pituitary": {"test": 5, "copied": 1},
    }
    assert (leak["clean_test_files"], leak["clean_test_pictures"]) == (17, 16)
    assert found["across_subsets"] == [
        {"subsets": ["test", "train"], "pictures": 3, "patients": 0}
    ]
    assert [(one["kind"], one["subsets"]) for one in found["copy_sets"]] == [
        ("bytes", ["test", "train"]),
        ("pixels", ["test", "train"]),
        ("near", ["test", "train"]),
        ("bytes", ["test"]),
    ]
    near = found["copy_sets"][2]
    assert [file["path"] for file in near["files"]] == [
        "Testing/pituitary/near.jpg",
        "Training/pituitary/0.png",
    ]
    assert near["near_pairs"] == found["near_pairs"]
    assert near["near_pairs"][0]["orientation"] == "same"
    assert not found["verdict"]["believable"]
    assert found["verdict"]["words"].startswith(
        "A score on this test set cannot be believed. Leak: 3 of 20 test images "
        "(15.0 %) show a picture that is also in training;"
    )
    assert found["verdict"]["left"] == (
        "Without the copies, 17 of 20 test images are left: 4 glioma, 4 meningioma, 5 "
        "no_tumor, 4 pituitary. The 17 show 16 distinct pictures."
    )


def test_a_class_that_is_gone_without_the_copies_is_named(data: Path) -> None:
    for number in range(4):
        shutil.copy(data / f"Training/no_tumor/{number}.png", data / "Testing/no_tumor")
    words = audited(data)["verdict"]["left"]
    assert "0 no_tumor" in words
    assert words.endswith("; nothing is left of no_tumor.")


def test_a_test_set_of_copies_leaves_nothing(data: Path) -> None:
    shutil.rmtree(data / "Testing")
    shutil.copytree(data / "Training", data / "Testing")
    found = audited(data)
    assert found["leak"]["test_files"] == 32
    assert found["verdict"]["left"] == (
        "Without the copies, nothing is left of the test set."
    )
    assert found["look_up"]["accuracy"] == 1
    assert found["look_up"]["accuracy_clean"] is None


def test_one_copy_in_more_than_a_hundred_does_not_spoil_a_score(
    make_images: Callable[..., Path],
) -> None:
    data = make_images(subsets={"Training": 2, "Testing": 30})
    shutil.copy(data / "Training/glioma/0.png", data / "Testing/glioma/copy.png")
    found = audited(data)
    assert found["verdict"]["believable"]
    assert "Leak: 1 of 121 test images (0.8 %) shows" in found["verdict"]["words"]


def write_metadata(data: Path, *lines: str) -> None:
    heading = "path,patient,source,source_label"
    (data / "metadata.csv").write_text("\n".join([heading, *lines]) + "\n")


def test_a_patient_on_both_sides_is_counted_and_never_named(data: Path) -> None:
    write_metadata(
        data,
        "Training/glioma/0.png,Jane-Doe-1970,hospital,glioma",
        "Training/glioma/1.png,Jane-Doe-1970,hospital,glioma",
        "Testing/glioma/0.png,Jane-Doe-1970,hospital,glioma",
        "Testing/glioma/1.png,John-Roe-1980,,",
    )
    found = audited(data)
    leak = found["leak"]
    assert leak["test_files"] == 0
    assert leak["patients_on_both_sides"] == 1
    assert leak["test_files_with_patient"] == 2
    assert leak["test_files_with_patient_in_train"] == 1
    assert leak["test_files_without_patient"] == 14
    assert found["patients"] == {"known": 2, "files_with_patient": 4}
    assert found["across_subsets"][0]["patients"] == 1
    assert not found["verdict"]["believable"]
    assert (
        "1 of 2 test images with a known patient has that patient in training"
        in (found["verdict"]["words"])
    )
    assert (
        "1 of the 16 is of a patient who is in training too"
        in (found["verdict"]["left"])
    )
    groups = found["groups"]
    first = "Testing/glioma/0.png"
    assert groups["Training/glioma/0.png"] == groups["Training/glioma/1.png"] == first
    assert found["sources"]["train"]["glioma"] == {"hospital": 2, "unknown": 6}
    for name in ("Jane", "John", "1970", "1980"):
        assert name not in json.dumps(found)


def test_metadata_can_be_left_out(data: Path) -> None:
    write_metadata(data, "Training/glioma/0.png,p,s,meningioma")
    found = audited(data, metadata="none")
    assert found["patients"]["known"] == 0
    assert found["sources"] == {}
    assert found["source_label_conflicts"] == []


def test_one_picture_under_two_labels_is_told_pair_by_pair(data: Path) -> None:
    original = data / "Training/glioma/0.png"
    re_encode(original, data / "Testing/meningioma/near.jpg")
    shutil.copy(original, data / "Training/meningioma/bytes.png")
    shutil.copy(original, data / "Training/glioma/bytes.png")
    for number in range(5):  # a larger set, but of one label: it comes second
        shutil.copy(
            data / "Training/pituitary/0.png",
            data / f"Testing/pituitary/copy{number}.png",
        )
    found = audited(data)
    # Two files as glioma and two as meningioma are four pairs.
    assert found["num_label_conflicts"] == 4
    pairs = {(pair["a"], pair["b"]) for pair in found["label_conflicts"]}
    assert pairs == {
        ("Testing/meningioma/near.jpg", "Training/glioma/0.png"),
        ("Testing/meningioma/near.jpg", "Training/glioma/bytes.png"),
        ("Training/glioma/0.png", "Training/meningioma/bytes.png"),
        ("Training/glioma/bytes.png", "Training/meningioma/bytes.png"),
    }
    for pair in found["label_conflicts"]:
        for side in ("a", "b"):
            subset, label, _ = pair[side].split("/")
            assert pair[f"label_{side}"] == label
            assert pair[f"subset_{side}"] == {"Training": "train"}.get(subset, "test")
    assert found["findings"][0] == (
        "4 pairs of files show one picture under two labels."
    )
    assert [one["labels"] for one in found["copy_sets"]] == [
        ["glioma", "meningioma"],
        ["pituitary"],
    ]


def test_a_near_pair_of_two_pictures_can_be_a_conflict(data: Path) -> None:
    index = read_index(data)
    duplicates = find_duplicates(index)
    a, b = "Training/glioma/0.png", "Training/meningioma/0.png"
    near = replace(duplicates, near_pairs=(NearPair(a, b, 0.991, "same"),))
    found = audit(index, near)
    assert [(one.a, one.b) for one in found.label_conflicts] == [(a, b)]


def test_many_pairs_are_counted_in_full_and_listed_in_part(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "MAX_LISTED", 7)
    for label in ("glioma", "no_tumor"):
        for number in range(5):
            shutil.copy(
                data / "Training/glioma/0.png",
                data / f"Training/{label}/copy{number}.png",
            )
    found = audited(data)
    assert found["num_label_conflicts"] == 30  # 6 as glioma times 5 as no_tumor
    assert len(found["label_conflicts"]) == 7


def test_labels_are_compared_without_their_spelling(data: Path) -> None:
    same = ["glioma", "Glioma_Tumor", "GLIOMA TUMOUR", "gliomas"]
    same_as_none = ["notumor", "No-Tumour", "normal", "healthy"]
    write_metadata(
        data,
        *(f"Training/glioma/{n}.png,,,{name}" for n, name in enumerate(same)),
        *(f"Training/no_tumor/{n}.png,,,{name}" for n, name in enumerate(same_as_none)),
        "Training/glioma/6.png,,,meningioma",
        "Training/no_tumor/6.png,,,glioma",
        "Testing/no_tumor/0.png,,,tumor",
    )
    assert [
        (one["path"], one["label"], one["subset"], one["source_label"])
        for one in audited(data)["source_label_conflicts"]
    ] == [
        ("Testing/no_tumor/0.png", "no_tumor", "test", "tumor"),
        ("Training/glioma/6.png", "glioma", "train", "meningioma"),
        ("Training/no_tumor/6.png", "no_tumor", "train", "glioma"),
    ]


def test_unreadable_files_are_counted_and_stay_out_of_the_rest(data: Path) -> None:
    (data / "Testing/glioma/empty.png").touch()
    (data / "Training/glioma/text.jpg").write_text("no image")
    found = audited(data)
    assert found["num_files"] == 50
    assert found["num_unreadable"] == 2
    empty, text = found["unreadable"]
    assert (empty["path"], empty["subset"]) == ("Testing/glioma/empty.png", "test")
    assert empty["reason"].startswith("it is empty")
    assert (text["label"], text["subset"]) == ("glioma", "train")
    assert found["leak"]["num_test"] == 16
    assert found["groups"]["Testing/glioma/empty.png"] == "Testing/glioma/empty.png"
    assert found["findings"][-1] == "2 files cannot be read."


def test_a_set_that_cannot_be_read_at_all_is_still_audited(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").touch()
    found = audited(tmp_path)
    assert found["num_unreadable"] == 2
    assert found["shortcuts"] == {}
    assert found["leak"] is None


def test_odd_files_are_told_with_every_reason(data: Path) -> None:
    folder = data / "Training/glioma"
    Image.new("L", (300, 90), 40).save(folder / "plain.png")
    Image.fromarray(draw_image("glioma", 90, size_px=48)).save(folder / "small.png")
    Image.merge(
        "RGB",
        [Image.fromarray(draw_image("glioma", n, size_px=96)) for n in (91, 92, 93)],
    ).save(folder / "colour.png")
    shutil.copy(folder / "0.png", folder / "0.dat")
    odd = {one["path"].rpartition("/")[2]: one for one in audited(data)["odd"]}
    assert {name: one["reasons"] for name, one in odd.items()} == {
        "plain.png": [
            "every pixel has the same value",
            "stretched: 300 x 90 pixels",
        ],
        "small.png": ["only 48 x 48 pixels"],
        "colour.png": ["coloured, as only 1 of 52 files"],
        "0.dat": ["an image whose name ends in .dat"],
    }
    assert odd["plain.png"]["label"] == "glioma"


@pytest.mark.parametrize("subsets", [None, {"Training": 4}, {"Testing": 4}])
def test_a_set_without_two_subsets_is_audited_without_a_leak(
    make_images: Callable[..., Path], subsets: dict[str, int] | None
) -> None:
    found = audited(make_images(num_each=4, subsets=subsets))
    assert found["leak"] is None
    assert found["verdict"]["believable"] is None
    assert found["verdict"]["words"].startswith("There are no training and test")
    assert found["look_up"] is None
    assert found["shortcuts"]["size"]["accuracy"] is None
    assert (
        "5 folds need 5 groups of each class, and glioma has 4"
        in (found["shortcuts"]["size"]["skipped"])
    )


def test_a_class_with_a_size_of_its_own_is_a_shortcut(
    make_images: Callable[..., Path],
) -> None:
    data = make_images(num_each=10)
    for number in range(10):
        Image.fromarray(draw_image("no_tumor", 500 + number, size_px=80)).save(
            data / f"no_tumor/{number}.png"
        )
    size = audited(data)["shortcuts"]["size"]
    # The forest tells no_tumor from the rest, and guesses one of the other three.
    # Which one depends on the version of scikit-learn.
    assert size["accuracy"] == pytest.approx(0.5, abs=0.06)
    assert size["majority"] == 0.25
    assert size["features"] == ["width", "height"]


def test_the_figures_of_the_shortcuts_are_reproducible(data: Path) -> None:
    assert audited(data) == audited(data)


def test_the_audit_and_the_verdict_on_the_same_split_agree(data: Path) -> None:
    shutil.copy(data / "Training/glioma/0.png", data / "Testing/glioma/copy.png")
    index = read_index(data)
    duplicates = find_duplicates(index)
    rows = [
        SplitRow(r.path, r.sha256, r.label, r.path, r.subset or "")
        for r in index.records
    ]
    verdict = judge_leak(rows, index, duplicates)
    assert verdict.words == _leak_words(audit(index, duplicates))


def _leak_words(found: Audit) -> str:
    assert found.leak is not None
    return found.leak.words


def test_the_classes_of_what_is_left_add_up_to_the_number_before_them(
    data: Path,
) -> None:
    # Two files of one picture in Testing: fewer distinct pictures than files.
    shutil.copy(data / "Training/glioma/0.png", data / "Testing/glioma/copy.png")
    shutil.copy(data / "Testing/glioma/0.png", data / "Testing/glioma/again.png")
    words = audited(data)["verdict"]["left"]
    listed = re.fullmatch(
        r"Without the copies, (\d+) of \d+ test images are left: (.+)\. The \1 show "
        r"16 distinct pictures\.",
        words,
    )
    assert listed is not None, words
    assert int(listed[1]) == 17
    assert sum(int(number) for number in re.findall(r"\d+", listed[2])) == 17


def test_an_audit_is_read_back_as_it_was_written(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "Training/glioma/0.png", data / "Testing/glioma/copy.png")
    re_encode(data / "Training/glioma/1.png", data / "Testing/no_tumor/near.jpg")
    (data / "Testing/glioma/empty.png").touch()
    index = read_index(data)
    found = audit(index, find_duplicates(index))
    path = tmp_path / "audit.json"
    write_model(path, found)
    assert read_model(path, Audit, hint="") == found
    # The first audits had a figure more, which always equalled `test_files`.
    old = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, old | {"leak": old["leak"] | {"near": 2}})
    assert read_model(path, Audit, hint="") == found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_files": "many"}, r"audit\.json is damaged at num_files: .*got 'many'"),
        (
            {"odd": [{"path": "a", "label": "b", "subset": None}]},
            r"audit\.json is damaged at odd\.0\.reasons: Field required",
        ),
        ({"format": 2}, r"expected format 1 in .*audit\.json, got 2"),
    ],
)
def test_a_damaged_audit_names_file_and_field(
    data: Path, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    write_json(tmp_path / "audit.json", audited(data) | change)
    with pytest.raises(RunError, match=problem):
        read_model(tmp_path / "audit.json", Audit, hint="make it again")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not at {REAL}")
def test_the_real_set_gives_the_known_figures_in_time_and_memory() -> None:
    started, cpu = time.perf_counter(), time.process_time()
    found = audited(REAL)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert found["num_files"] == 3264
    assert found["num_unreadable"] == 0
    assert found["distinct"]["bytes"] == 3027
    assert found["distinct"]["pixels"] == 2870
    assert found["distinct"]["pictures"] == 2797
    leak = found["leak"]
    assert leak["pixel_identical"] == 251
    # docs/results.md names the copies with another frame, which were looked at.
    assert leak["test_files"] == 264
    assert leak["test_files_lookalike"] == 2
    assert {label: one["copied"] for label, one in leak["by_class"].items()} == {
        "glioma_tumor": 20,
        "meningioma_tumor": 111,
        "no_tumor": 105,
        "pituitary_tumor": 28,
    }
    assert leak["clean_test_files"] == 130
    assert leak["test_files_with_patient_in_train"] == 28
    assert leak["test_files_with_patient"] == 28
    assert len(found["label_conflicts"]) == 8
    assert {
        pair[side]
        for pair in found["label_conflicts"]
        for side in ("a", "b")
        if pair[f"label_{side}"] == "glioma_tumor"
    } == {"Testing/glioma_tumor/image(2).jpg", "Testing/glioma_tumor/image(48).jpg"}
    assert len(found["source_label_conflicts"]) == 14
    assert found["look_up"]["accuracy"] == pytest.approx(0.77, abs=0.05)
    assert not found["verdict"]["believable"]
    assert np.isfinite(found["source_shift"]["all"]["auroc"])
    # 25 s on two cores that have nothing else to do; CPU time where they have.
    assert seconds < 25 or cpu < 45
    assert peak_gib < 1.5
