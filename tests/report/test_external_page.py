"""The page of an evaluation on another set: hand-made files in, one page out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from support.handmade_external import write_evaluation
from support.handmade_runs import TWO, answers
from support.images import draw_image
from support.pages import Tags, assert_self_contained
from tumorlens.errors import RunError
from tumorlens.report import write_external_page
from tumorlens.runs.estimate import Estimate
from tumorlens.runs.external import ClassPair

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.runs.external import ExternalMetrics

# 24 images: the first 16 are new, with 4 wrong answers; the 8 seen ones have 1.
RIGHT = [0, 0, 0, 0, *[1] * 12, 0, *[1] * 7]
STATES = "n" * 16 + "p" * 6 + "s" * 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return images with the names of `answers`, whose classes take turns."""
    folder = tmp_path / "set B"
    folder.mkdir()
    for number in range(24):
        drawn = Image.fromarray(draw_image(TWO[number % 2], number))
        drawn.save(folder / f"{number:04}.png")
    return folder


def page_of(folder: Path, data: Path | None = None) -> str:
    written = write_external_page(folder, data=data)
    assert written.path == folder / "external.html"
    return written.path.read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """Return the text of a section."""
    part = page.partition(f"<h2>{heading}")[2].partition("</section>")[0]
    assert part, heading
    return Tags(part).text


def shown(estimate: Estimate) -> str:
    assert None not in (estimate.value, estimate.low, estimate.high)
    low, high = 100 * (estimate.low or 0), 100 * (estimate.high or 0)
    return f"{100 * (estimate.value or 0):.1f} % {low:.1f} to {high:.1f} %"


def parts_of(found: ExternalMetrics) -> list[Any]:
    return [part for part in (found.new, found.seen, found.all) if part]


def test_the_verdict_is_first_and_the_figure_for_new_images_the_largest(
    tmp_path: Path, data: Path
) -> None:
    found = write_evaluation(tmp_path / "on", RIGHT, STATES)
    page = page_of(tmp_path / "on", data)
    assert_self_contained(page)
    top = Tags(page.partition("<main>")[0]).text
    words = (
        "Believe the figures for the 16 new images only Training has seen 8 of the 24 "
        "images (33.3 %): 6 as a picture or a slice next to one, 2 more by their "
        "patient or head; 16 are new."
    )
    accuracies = [shown(part.accuracy) for part in parts_of(found)]
    assert accuracies[0].startswith("75.0 %")  # 12 of 16, by hand
    assert accuracies[1].startswith("87.5 %")
    assert accuracies[2].startswith("79.2 %")
    places = [top.index(one) for one in (words, *accuracies)]
    assert places == sorted(places)
    assert re.findall(r'<p class="big">([\d.]+)', page) == ["75.0"]


def test_every_measure_stands_in_the_columns_new_seen_and_all(
    tmp_path: Path, data: Path
) -> None:
    found = write_evaluation(tmp_path / "on", RIGHT, STATES)
    page = page_of(tmp_path / "on", data)
    side_by_side = section(page, "Side by side")
    assert "Measure New images Seen in training All images" in side_by_side
    assert "Images 16 16 groups 8 8 groups 24 24 groups" in side_by_side
    parts = parts_of(found)
    for label, key in (
        *(("Accuracy", "accuracy"), ("Balanced accuracy", "balanced_accuracy")),
        ("Macro F1", "macro_f1"),
    ):
        row = " ".join(shown(getattr(part, key)) for part in parts)
        assert f"{label} {row}" in side_by_side
    losses = [part.log_loss.value for part in parts]
    assert [f"{loss:.3f}" in side_by_side for loss in losses] == [True] * 3
    by_class = section(page, "By class")
    row = " ".join(
        f"{shown(part.per_class['glioma'].recall)} "
        f"{part.per_class['glioma'].num_images} images"
        for part in parts
    )
    assert f"glioma {row}" in by_class
    # The matrix is that of the new images: 2 of 8 gliomas are wrong, by hand.
    matrix = section(page, "Right and wrong predictions, new images")
    assert "label \\ predicted glioma no_tumor glioma 6 2 no_tumor 2 6" in matrix


def test_a_class_of_which_nothing_is_new_has_no_figure(
    tmp_path: Path, data: Path
) -> None:
    # Images take turns between the classes: all of no_tumor were seen.
    found = write_evaluation(
        tmp_path / "on",
        RIGHT,
        "np" * 12,
        notes=("Nothing new is left of no_tumor.",),
    )
    page = page_of(tmp_path / "on", data)
    assert found.seen is not None
    row = shown(found.seen.per_class["no_tumor"].recall)
    assert f"no_tumor nothing new {row}" in section(page, "By class")
    assert "Nothing new is left of no_tumor." in section(page, "What the figures do")
    assert "No ROC curves" in section(page, "Right and wrong predictions")


def test_where_nothing_is_new_there_is_no_figure_for_new_images(
    tmp_path: Path, data: Path
) -> None:
    found = write_evaluation(tmp_path / "on", RIGHT, "p" * 24)
    page = page_of(tmp_path / "on", data)
    top = Tags(page.partition("<main>")[0]).text
    assert "✕ Training has seen everything: nothing is new" in top
    assert "Accuracy, new images n/a nothing is new" in top
    assert shown(found.all.accuracy) in top
    assert re.findall(r'<p class="big">([^<]*)', page) == ["n/a"]
    # A figure that is cut out of the page still says so.
    for svg in page.split("<svg")[1:]:
        words = " ".join(" ".join(Tags(f"<svg{svg}").texts).split())
        assert "Training has seen 24 of the 24 images (100.0 %)" in words


def test_where_it_is_not_known_what_was_seen_the_page_says_so(
    tmp_path: Path, data: Path
) -> None:
    found = write_evaluation(tmp_path / "on", RIGHT, "?" * 24)
    page = page_of(tmp_path / "on", data)
    top = Tags(page.partition("<main>")[0]).text
    assert "What training has seen is not known Not known: the model does not" in top
    assert "Accuracy, new images n/a not known" in top
    assert "Accuracy, seen in training n/a not known" in top
    assert shown(found.all.accuracy) in top
    assert "new not known" in section(page, "Where the files have gone")
    assert "5 of 24 images" in section(page, "The most confident mistakes, all images")
    assert "Images that training has seen" not in page


def test_a_set_of_which_nothing_was_seen_gets_no_tick(
    tmp_path: Path, data: Path
) -> None:
    write_evaluation(tmp_path / "on", RIGHT, "n" * 24)
    page = page_of(tmp_path / "on", data)
    top = Tags(page.partition("<main>")[0]).text
    assert "No image was found among those of training" in top
    assert "None of the 24 images was seen in training." in top
    assert "by patient where both sets name patients" in top
    assert "✓" not in page
    assert "Accuracy, seen in training n/a nothing was seen" in top


def test_one_class_only_has_a_page_without_curves(tmp_path: Path, data: Path) -> None:
    table = answers([1, 1, 1, 0, 1, 1, 1, 1])
    table = table.rows([0, 2, 4, 6])  # gliomas
    write_evaluation(
        tmp_path / "on",
        table,
        "nnpp",
        classes=(
            ClassPair(model="glioma", data="glioma"),
            ClassPair(model="no_tumor", data=None),
        ),
    )
    page = page_of(tmp_path / "on", data)
    assert_self_contained(page)
    assert "no_tumor the data has none" in section(page, "Classes")
    assert "No ROC curves" in page
    assert "no_tumor none none none" in section(page, "By class")


def test_answers_without_probabilities_have_no_figure_of_any(
    tmp_path: Path, data: Path
) -> None:
    table = answers(RIGHT, sure=1.0)
    write_evaluation(tmp_path / "on", replace(table, has_probs=False), STATES)
    page = page_of(tmp_path / "on", data)
    assert_self_contained(page)
    why = "there are predicted classes and no probabilities"
    side_by_side = section(page, "Side by side")
    words = f"Log loss, AUROC and calibration are not measured: {why}."
    assert words in side_by_side
    assert "Brier" not in side_by_side
    assert f"No ROC curves: {why}." in page
    assert f"No calibration: {why}." in page
    mistakes = section(page, "Mistakes, new images")
    assert "these are 4 of them" in mistakes
    assert "100.0 %" not in mistakes


def test_mistakes_are_those_on_new_images_the_most_confident_first(
    tmp_path: Path, data: Path
) -> None:
    table = answers(RIGHT)
    probs = table.probs.copy()
    probs[2] = [0.05, 0.95]  # a glioma, more surely wrong than the others
    write_evaluation(tmp_path / "on", replace(table, probs=probs), STATES)
    page = page_of(tmp_path / "on", data)
    cards = page.split('<article class="picture">')[1:]
    paths = [re.findall(r'alt="Image ([^,]*)', card)[0] for card in cards]
    assert paths == ["0002.png", "0000.png", "0001.png", "0003.png"]
    assert "no_tumor 95.0 % glioma 5.0 %" in Tags(cards[0]).text
    words = "4 of 16 images were assigned another class than their label"
    assert words in section(page, "The most confident mistakes")


def test_some_seen_images_are_shown_with_what_of_them_was_seen(
    tmp_path: Path, data: Path
) -> None:
    write_evaluation(
        tmp_path / "on", RIGHT, STATES, orientations={"same": 4, "mirrored": 2}
    )
    page = page_of(tmp_path / "on", data)
    part = page.partition("<h2>Images that training has seen")[2]
    alts = re.findall(r'alt="Image ([^,]*), label (\w+)"', part)
    assert alts[0] == ("0016.png", "glioma")
    assert len(alts) == 8
    words = section(page, "Images that training has seen")
    assert words.count("picture seen") == 6
    assert words.count("patient or head seen") == 2
    assert "glioma , predicted no_tumor picture seen" in words  # 0016.png
    assert "same 4 mirrored 2" in words
    assert "Of 6 seen pictures, 4 are as in training, 2 mirrored." in page


def test_of_many_seen_images_some_of_every_class_are_shown(
    tmp_path: Path, data: Path
) -> None:
    table = answers(RIGHT).rows([*range(0, 24, 2), *range(1, 24, 2)])
    write_evaluation(tmp_path / "on", table, "p" * 24)
    page = page_of(tmp_path / "on", data)
    part = page.partition("<h2>Images that training has seen")[2]
    labels = re.findall(r'alt="Image [^,]*, label (\w+)"', part)
    assert labels == ["glioma", "no_tumor"] * 6
    assert "12 of 24." in section(page, "Images that training has seen")


def test_classes_and_files_are_accounted_for(tmp_path: Path, data: Path) -> None:
    write_evaluation(
        tmp_path / "on",
        RIGHT,
        STATES,
        left_out={"copy.png": "copy of 0001.png"},
        classes=(
            ClassPair(model="glioma_tumor", data="glioma"),
            ClassPair(model="no", data="no_tumor"),
        ),
        unknown_classes={"cyst": 3},
        notes=("The model does not know 3 images of cyst: they are in no figure.",),
    )
    page = page_of(tmp_path / "on", data)
    classes = section(page, "Classes")
    assert "glioma_tumor glioma no no_tumor" in classes
    assert "the model has none cyst: 3 images in no figure" in classes
    files = section(page, "Where the files have gone")
    for words in ("Files of the data 25", "once 1", "Tested 24", "head 2", "new 16"):
        assert words in files
    assert "3 images of cyst" in section(page, "What the figures do not say")


def test_sources_stand_side_by_side(tmp_path: Path, data: Path) -> None:
    table = answers(RIGHT)
    sources = ("scanner A", "scanner B") * 8 + ("scanner A",) * 8
    found = write_evaluation(tmp_path / "on", replace(table, sources=sources), STATES)
    page = page_of(tmp_path / "on", data)
    assert found.new is not None
    words = section(page, "By source")
    new, whole = (one.by_source["scanner B"].accuracy for one in (found.new, found.all))
    assert f"scanner B {shown(new)} 8 images none {shown(whole)} 8 images" in words
    assert "Recall of each class, new images:" in words


def test_pictures_that_are_gone_are_said_to_be(tmp_path: Path, data: Path) -> None:
    write_evaluation(tmp_path / "on", RIGHT, STATES)
    (data / "0001.png").unlink()
    written = write_external_page(tmp_path / "on", data=data)
    assert (written.num_missing, written.why_not) == (1, "not shown: the file is gone")
    written = write_external_page(tmp_path / "on", data=None)
    assert written.num_missing == 4 + 8
    assert "the data folder is not known" in written.why_not


def test_names_of_the_user_are_text_and_never_markup(
    tmp_path: Path, data: Path
) -> None:
    hostile = '<script>alert("$x$")</script>'
    table = replace(answers(RIGHT), classes=("<b>x", hostile), sources=(hostile,) * 24)
    write_evaluation(
        tmp_path / "on",
        table,
        STATES,
        data=hostile,
        model="<b>model",
        notes=(hostile,),
        unknown_classes={hostile: 1},
        orientations={"<b>": 1},
    )
    page = page_of(tmp_path / "on", data)
    assert_self_contained(page)
    tags = Tags(page)
    assert not [name for name, _ in tags.elements if name == "b"]
    assert hostile in tags.text


def test_the_same_evaluation_gives_the_same_bytes(tmp_path: Path, data: Path) -> None:
    write_evaluation(tmp_path / "on", RIGHT, STATES)
    assert page_of(tmp_path / "on", data) == page_of(tmp_path / "on", data)


def test_an_evaluation_that_cannot_be_read_leaves_no_page(tmp_path: Path) -> None:
    folder = tmp_path / "on"
    with pytest.raises(RunError, match=r"on has no evaluation: there is no external"):
        write_external_page(folder, data=None)
    write_evaluation(folder, RIGHT, STATES)
    (folder / "external.json").write_text("{")
    with pytest.raises(RunError, match=r"external\.json is not JSON"):
        write_external_page(folder, data=None)
    assert not (folder / "external.html").exists()
