"""The page of a review, as a browser would see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.handmade_runs import make_run
from support.pages import Tags, assert_self_contained
from tumorlens.data.leakage import LeakVerdict
from tumorlens.evaluation.map_checks import Neighbour
from tumorlens.evaluation.review_file import FILE, Review, ReviewedImage
from tumorlens.files import write_model
from tumorlens.report.review_page import write_review_page

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = '</p><script>alert("x")</script>'


def image(number: int, *, part: int, shown: bool) -> ReviewedImage:
    near = Neighbour(path=f"glioma/{HOSTILE}.png", label="glioma", similarity=0.5)
    return ReviewedImage(
        path=f"glioma/{number}.png",
        label=HOSTILE if number == 6 else "glioma",
        group="a" if number in (4, 6) else str(number),
        likely=HOSTILE,
        quality=number / 10,
        prob=0.9,
        is_suspected=number < 2,
        is_conflict=number == 0,
        part=part,
        x=number / 7,
        y=-number / 5,
        copies=("glioma/copy.png",) if number == 1 else (),
        nearest=(near,) if shown else (),
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    run = make_run(tmp_path / "run", classes=("glioma", HOSTILE))
    found = Review(
        run="run",
        protocol="grouped-kfold",
        leak=LeakVerdict(leaks=True, words="Leak: 3 of 8 test images."),
        classes=("glioma", HOSTILE),
        method="By probability.",
        shown_variance=(0.25, 0.5),
        images=tuple(image(n, part=n % 2, shown=n < 4) for n in range(8)),
        not_looked_at={"that are copies of others": 2},
    )
    write_model(run.review_path / FILE, found)
    written = write_review_page(run)
    assert written.path == run.review_path / "review.html"
    assert written.num_missing == 10
    assert (run.figures_dir / "review-map-1.png").is_file()
    return written.path.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_says_what_was_looked_at(page: str) -> None:
    assert_self_contained(page)
    text = Tags(page).text
    assert (
        "2 labels of 8 are doubtful, 1 of them of pictures under two labels. 1 group "
        "of images, as of one patient, has several labels: 2 images."
    ) in text
    assert "Groups with several labels" in text
    assert "Not looked at: 2 files that are copies of others." in text
    assert "Leak: 3 of 8 test images." in text
    assert "These are guesses of the model." in text
    assert "1 copy left out" in text
    assert HOSTILE not in page


def test_every_large_point_of_a_map_links_to_its_picture(page: str) -> None:
    tags = Tags(page)
    links = [
        attributes["xlink:href"]
        for name, attributes in tags.elements
        if name == "a" and "xlink:href" in attributes
    ]
    places = {
        attributes["id"]
        for name, attributes in tags.elements
        if name == "article" and "id" in attributes
    }
    assert sorted(links) == sorted(f"#{place}" for place in places)
    assert places == {
        *("map-0-label-1", "map-1-label-2", "map-0-label-3", "map-1-label-4")
    }
