"""The page of an audit: a hand-made file in, one self-contained page out."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from support.pages import Tags, assert_self_contained
from support.planted_sets import draw_set, make_two_sets
from tumorlens.data.audit import audit
from tumorlens.data.claim import judge_claims, parse_accuracies
from tumorlens.data.claimed_set import arrange
from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.index import read_index
from tumorlens.data.overlap import compare_sets, read_sets
from tumorlens.errors import RunError
from tumorlens.files import write_model
from tumorlens.report import audit_page as audit_page_module
from tumorlens.report import show_claims_on_audit, write_audit_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


DASH = "\N{EN DASH}"


def file(path: str, label: str, subset: str | None) -> dict[str, Any]:
    return {"path": path, "label": label, "subset": subset, "pixels": "0" * 12}


def copy_set(files: list[dict[str, Any]], *, kind: str = "near") -> dict[str, Any]:
    return {
        "picture": files[0]["path"],
        "kind": kind,
        "labels": sorted({one["label"] for one in files}),
        "subsets": sorted({one["subset"] for one in files if one["subset"]}),
        "files": files,
        "near_pairs": [
            {
                "a": files[0]["path"],
                "b": files[1]["path"],
                "correlation": 0.999,
                "orientation": "mirrored",
            }
        ]
        if kind == "near"
        else [],
    }


def found() -> dict[str, Any]:
    """Return an audit as `tumorlens.data.audit` writes it, made up."""
    score = {"majority": 0.2871, "num_images": 1233}
    to_test = {
        "accuracy": 0.5047,
        "accuracy_copied": 0.6849,
        "accuracy_clean": None,
        "majority": 0.1878,
    }
    return {
        "format": 1,
        "data": "scans",
        "digest": "a" * 64,
        "seed": 42,
        "classes": ["glioma", "no_tumor"],
        "num_files": 1234,
        "num_unreadable": 1,
        "subsets": {},
        "distinct": {"bytes": 1200, "pixels": 1100, "pictures": 1050},
        "num_groups": 400,
        "unreadable": [
            {**file("Testing/no_tumor/bad.jpg", "no_tumor", "test"), "reason": "cut"}
        ],
        "odd": [
            {
                **file("Training/glioma/thin.png", "glioma", "train"),
                "reasons": ["only 20 x 300 pixels", "coloured"],
            }
        ],
        "copy_sets": [
            copy_set(
                [
                    file("Testing/glioma/a.png", "glioma", "test"),
                    file("Training/no_tumor/b.png", "no_tumor", "train"),
                ]
            ),
            copy_set(
                [
                    file(f"Testing/glioma/{number}.png", "glioma", "test")
                    for number in range(8)
                ]
                + [file("Training/glioma/9.png", "glioma", "train")],
                kind="pixels",
            ),
        ],
        "near_pairs": [],
        "across_subsets": [],
        "groups": {},
        "leak": {
            "num_test": 40,
            "test_files": 25,
            "pixel_identical": 21,
            "by_class": {
                "glioma": {"test": 30, "copied": 15},
                "no_tumor": {"test": 10, "copied": 10},
            },
            "clean_test_files": 15,
            "clean_test_pictures": 13,
            "clean_test_files_of_other_patients": 12,
            "clean_test_files_with_patient_in_train": 3,
            "patients_on_both_sides": 3,
            "test_files_with_patient": 7,
            "test_files_with_patient_in_train": 6,
            "test_files_without_patient": 33,
            "words": "Leak: 25 of 40.",
        },
        "patients": {"known": 55, "files_with_patient": 900},
        "sources": {
            "test": {"glioma": {"figshare": 18, "unknown": 12}},
            "train": {"glioma": {"figshare": 500}, "no_tumor": {"unknown": 694}},
        },
        "label_conflicts": [],
        "num_label_conflicts": 1,
        "source_label_conflicts": [
            {**file("Testing/glioma/c.png", "glioma", "test"), "source_label": "menin"}
        ],
        "shortcuts": {
            "size": {
                "features": ["width", "height"],
                "accuracy": 0.6341,
                "balanced_accuracy": 0.6,
                "skipped": "",
                **score,
                "train_to_test": to_test,
            },
            "file": {
                "features": ["num_bytes"],
                "accuracy": None,
                "balanced_accuracy": None,
                **score,
                "skipped": "too few groups",
                "train_to_test": None,
            },
        },
        "look_up": {**to_test, "accuracy": 0.8071},
        "source_shift": {
            "size": {"auroc": 0.8581, "skipped": ""},
            "file": {"auroc": None, "skipped": "too few groups"},
        },
        "verdict": {
            "believable": False,
            "words": "A score on this test set cannot be believed. Leak: 25 of 40.",
            "left": "Without the copies, 15 are left.",
        },
        "findings": ["1 pair of files shows one picture under two labels."],
    }


def audit_page(folder: Path, content: dict[str, Any]) -> str:
    (folder / "audit.json").write_text(json.dumps(content), encoding="utf-8")
    page = write_audit_page(
        folder / "audit.json", data=folder / "data", out=folder / "out" / "audit.html"
    )
    assert page == folder / "out" / "audit.html"
    return page.read_text(encoding="utf-8")


def test_an_audit_page_opens_with_its_verdict_in_words(tmp_path: Path) -> None:
    page = audit_page(tmp_path, found())
    assert 'class="card verdict bad"' in page
    top = Tags(page).text.partition("Distinct files")[0]
    assert "✕ A score on this test set cannot be believed Leak: 25 of 40." in top
    assert "What is left: Without the copies, 15 are left." in top
    assert "Not a medical device; research use only" in top


def test_an_audit_page_shows_every_figure(tmp_path: Path) -> None:
    text = Tags(audit_page(tmp_path, found())).text
    for words in (
        "Files 1,234 1 cannot be read Distinct files 1,200",
        "Distinct images 1,100",
        "Distinct pictures 1,050",
        "Test files with a copy 25 of 40, in training",
        "Test files with equal pixels 21",
        "Test files without a copy 15 13 distinct pictures",
        "Patients on both sides 3 of 55 that are known",
        "Groups 400",
        "Pairs under two labels 1",
        "Labels the source denies 1",
        "Odd files 1",
        "1 pair of files shows one picture under two labels.",
        "glioma 30 15 50.0 % 15 no_tumor 10 10 100.0 % 0 all 40 25 62.5 % 15",
        "width, height 63.4 % 28.7 % 50.5 % 68.5 % n/a 18.8 % 0.86",
        "file size n/a 28.7 % n/a n/a n/a n/a n/a",
        "label of the most similar training picture n/a n/a 80.7 % 68.5 %",
        "glioma test 18 12 glioma train 500 0 no_tumor train 0 694",
        "2 files: near copies (mirrored) in several subsets",
        "9 files: equal pixels, different files in several subsets",
        "glioma but the source says menin test",
        "Testing/no_tumor/bad.jpg no_tumor cut",
        "Training/glioma/thin.png glioma only 20 x 300 pixels; coloured",
    ):
        assert words in text, words


def test_a_set_of_copies_shows_every_side_and_counts_the_rest(tmp_path: Path) -> None:
    text = Tags(audit_page(tmp_path, found())).text
    shown = text.partition("9 files: equal pixels")[2].partition("Files that")[0]
    # The file in training would be the ninth of which six are shown.
    assert shown.count(" test ") == 5
    assert shown.count("Training/glioma/9.png glioma train") == 1
    assert "and 3 more files" in shown


def test_long_lists_of_an_audit_are_cut_and_say_so(tmp_path: Path) -> None:
    content = found()
    content["copy_sets"] *= 30
    content["source_label_conflicts"] *= 25
    content["odd"] *= 104
    page = audit_page(tmp_path, content)
    text = Tags(page).text
    assert page.count('<section class="set">') == 2 * 24
    assert page.count('<td class="text wrap">only 20 x 300 pixels') == 100
    assert "Not shown here but in audit.json: 6 pictures." in text
    assert "Not shown here but in audit.json: 6 pictures with copies." in text
    assert "Not shown here but in audit.json: 1 files." in text
    assert "Not shown here but in audit.json: 4 files." in text


def test_an_audit_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    hostile = "<script>a_b</script>/<img src=x onerror=y>"
    text = json.dumps(found()).replace("glioma", hostile)
    page = audit_page(tmp_path, json.loads(text))
    assert_self_contained(page)
    tags = Tags(page)
    assert hostile in tags.text
    assert not [name for name, _ in tags.elements if name in ("script", "img")]
    assert page == audit_page(tmp_path, json.loads(text))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"format": 7}', r"expected format 1 in .*audit\.json, got 7"),
        ("3", r"expected format 1 in .*audit\.json, got 3"),
        ("{", r"audit\.json is not JSON: Expecting property name"),
        (None, r"there is no .*audit\.json"),
        ('{"format": 1, "data": 5}', r"audit\.json is damaged at \w+: "),
    ],
)
def test_an_audit_that_is_not_ours_is_refused(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    path = tmp_path / "audit.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=problem):
        write_audit_page(path, data=tmp_path, out=tmp_path / "audit.html")
    assert not (tmp_path / "audit.html").exists()


@pytest.mark.parametrize("subsets", [{"Training": 4, "Testing": 2}, None])
def test_a_real_audit_becomes_a_page_with_pictures(
    make_images: Callable[..., Path], tmp_path: Path, subsets: dict[str, int] | None
) -> None:
    data = make_images(subsets=subsets, num_each=6)
    first, *_ = sorted(data.rglob("glioma/*.png"))
    folder = data / "Training" if subsets else data
    (folder / "pituitary" / "copy.png").write_bytes(first.read_bytes())
    (folder / "pituitary" / "cut.png").write_bytes(first.read_bytes()[:300])
    index = read_index(data)
    write_model(tmp_path / "audit.json", audit(index, find_duplicates(index)))
    page = write_audit_page(
        tmp_path / "audit.json", data=data, out=tmp_path / "audit.html"
    ).read_text(encoding="utf-8")
    assert_self_contained(page)
    text = Tags(page).text
    assert page.count("<img") == 2
    assert "2 files: equal files" in text
    assert "1 picture, 1 pair of files" in text
    assert "1 cannot be read" in text
    assert ("✕ A score on this test set cannot be believed" in text) == bool(subsets)
    assert ("There are no training and test subsets" in text) != bool(subsets)


# Against other sets


def pages_of(folder: Path, *places: Path) -> str:
    """Return the page of an audit of the first place against the others."""
    sets = read_sets(places)
    first = sets[0]
    write_model(
        folder / "audit.json",
        audit(first.index, first.duplicates, overlaps=compare_sets(sets)),
    )
    page = write_audit_page(
        folder / "audit.json",
        data=places[0],
        against=places[1:],
        out=folder / "audit.html",
    )
    return page.read_text(encoding="utf-8")


def test_a_page_shows_what_two_sets_share_with_a_picture_of_each(
    tmp_path: Path,
) -> None:
    page = pages_of(tmp_path, *make_two_sets(tmp_path))
    assert_self_contained(page)
    text = Tags(page).text
    for words in (
        "7 of 20 files of clinic (35.0 %) show a picture of web",
        "glioma_tumor clinic 5 3 60.0 % 2 5 3",
        "all web 28 8 28.6 % 20 27 7",
        "same 2 2 rotated-90 2 0 rotated-180 1 1 rotated-270 0 2 mirrored 1 2",
        "Labels that disagree between clinic and web rotated 90",
        "meningioma_tumor clinic glioma/wrong.jpg glioma web",
        "equal pixels glioma_tumor/0.png glioma_tumor clinic glioma/same.png glioma",
    ):
        assert words in text, words
    assert "Pictures of in clinic" not in text  # a matrix of two says nothing more
    # One pair of files disagrees, and seven pictures are shared.
    side = page.partition("Against other sets")[2].partition("<h2>")[0]
    assert side.count("<img") == 2 * (1 + 7)
    assert "the file is gone" not in text


def test_a_page_of_three_sets_has_a_matrix(tmp_path: Path) -> None:
    places = make_two_sets(tmp_path)
    third = draw_set(tmp_path / "third", name="web", num_each=2, first_seed=1003)
    text = Tags(pages_of(tmp_path, *places, third)).text
    for words in (
        "Pictures of in clinic in web in third",
        f"clinic {DASH} 35.0 % 7 of 20 0.0 % 0 of 20",
        f"web 25.9 % 7 of 27 {DASH} 29.6 % 8 of 27",
        f"third 0.0 % 0 of 8 100.0 % 8 of 8 {DASH}",
    ):
        assert words in text, words


def test_names_of_sets_are_escaped_and_pictures_that_are_gone_are_named(
    tmp_path: Path,
) -> None:
    clinic, web = make_two_sets(tmp_path)
    hostile = web.rename(tmp_path / "<script>x")
    page = pages_of(tmp_path, clinic, hostile)
    assert "<script>x" not in page
    shutil.rmtree(clinic)
    write_audit_page(
        tmp_path / "audit.json",
        data=clinic,
        against=[hostile],
        out=tmp_path / "audit.html",
    )
    text = Tags((tmp_path / "audit.html").read_text(encoding="utf-8")).text
    assert text.count("not shown: the file is gone") == 1 + 7


def test_a_page_that_is_made_again_finds_the_other_sets(tmp_path: Path) -> None:
    clinic, web = make_two_sets(tmp_path)
    page = pages_of(tmp_path, clinic, web)
    again = write_audit_page(
        tmp_path / "audit.json", data=clinic, out=tmp_path / "again.html"
    )
    assert again.read_text(encoding="utf-8") == page


def test_an_audit_against_nothing_has_no_such_section(tmp_path: Path) -> None:
    assert "Against other sets" not in audit_page(tmp_path, found())


def test_examples_have_every_turn_before_a_second_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_page_module, "MAX_EXAMPLES", 4)
    clinic, web = make_two_sets(tmp_path)
    page = pages_of(tmp_path, clinic, web)
    text = Tags(page).text.partition("Pictures in clinic and web")[2]
    # By path, the first four of glioma and meningioma are four kinds already.
    shown = text.partition("Shortcuts")[0]
    assert shown.count("clinic") == 4
    assert "Not shown here but in audit.json: 3 pictures or more." in shown


def audited_with_claims(
    make_images: Callable[..., Path], folder: Path, *accuracies: str
) -> Path:
    """Write audit.json and claim.json of drawn images with two copies; return DATA."""
    data = make_images(subsets={"Training": 4, "Testing": 3})
    for number in range(2):
        (data / f"Testing/glioma/copy{number}.png").write_bytes(
            (data / f"Training/glioma/{number}.png").read_bytes()
        )
    index = read_index(data)
    duplicates = find_duplicates(index)
    write_model(folder / "audit.json", audit(index, duplicates))
    found = judge_claims(
        arrange(index, name=data), duplicates, parse_accuracies(accuracies)
    )
    write_model(folder / "claim.json", found)
    return data


def test_claims_beside_an_audit_are_a_section_of_its_page(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    # 14 test images, two seen; 0.7857 is 11 of them, 0.50 is 7.
    data = audited_with_claims(make_images, tmp_path, "0.7857", "0.50")
    assert show_claims_on_audit(tmp_path, data=data) == tmp_path / "audit.html"
    page = (tmp_path / "audit.html").read_text("utf-8")
    assert_self_contained(page)
    text = Tags(page).text
    section = text.partition("What published accuracies can be worth")[2]
    section = section.partition("The leak by class")[0]
    for words in (
        "An accuracy on this test set is not one on new patients: 2 of 14 test",
        "0.7857 11 of 14: 78.6 %",
        "9 of 12: 75.0 %",
        "0.7857: 11 of 14, 78.6 %",
        "0.7857 against 0.50: 4 right answers apart, 28.6 points. No paired test",
        "glioma 5 2 2 to 5 2 to 5 2 to 5 0 to 5",
        "no_tumor 3 0 0 to 3 0 to 3 0 to 3 0 to 3",
    ):
        assert words in section, words


def test_claims_of_other_images_or_a_damaged_file_are_named_and_left_out(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = audited_with_claims(make_images, tmp_path, "0.7857")
    claims = json.loads((tmp_path / "claim.json").read_text("utf-8"))
    for content, reason in (
        ("{", r"claim.json is not shown: "),
        (json.dumps(claims | {"format": 2}), "expected format 1 in"),
        (json.dumps(claims | {"num_seen": -1}), "is damaged at num_seen"),
        (json.dumps(claims | {"digest": "0" * 64}), "it is of other images than this"),
    ):
        (tmp_path / "claim.json").write_text(content)
        assert show_claims_on_audit(tmp_path, data=data) is None
        text = Tags(
            write_audit_page(
                tmp_path / "audit.json", data=data, out=tmp_path / "audit.html"
            ).read_text("utf-8")
        ).text
        assert "claim.json is not shown" in text
        assert reason in text
        assert "What published accuracies" not in text


def test_without_an_audit_there_is_no_page_to_show_claims_on(tmp_path: Path) -> None:
    assert show_claims_on_audit(tmp_path, data=tmp_path) is None
