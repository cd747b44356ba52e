"""The page of a stress test: hand-made figures in, one page out."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from support.handmade_stress import CLASSES, NUM, answers, figures, place
from support.images import draw_image
from support.pages import Tags, assert_self_contained
from support.runs_on_images import CLEAN
from tumorlens.config import parse_config
from tumorlens.data.corruptions import CORRUPTIONS, corrupt
from tumorlens.errors import RunError
from tumorlens.files import write_model
from tumorlens.report import write_stress_page
from tumorlens.runs.folder import Run, create_run

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.evaluation.stress import StressAnswers
    from tumorlens.runs.stress import Stress


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run whose images are there."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(NUM):
        drawn = Image.fromarray(draw_image(CLASSES[number % 2], number))
        drawn.save(data / f"{number:02}.png")
    made = create_run(tmp_path / "run", parse_config({"data": {"path": str(data)}}))
    made.write_leak(CLEAN)
    return made


def page_of(run: Run, given: StressAnswers) -> tuple[Stress, str]:
    found = figures(run, given)
    path = run.stress_path("test")
    write_model(path, found)
    written = write_stress_page(run, path)
    assert written.path == run.path / "stress.html"
    assert written.num_missing == 0
    return found, written.path.read_text(encoding="utf-8")


def rows_of(page: str) -> dict[str, str]:
    """Return the rows of the table of changes, by their first cell."""
    table = page.partition("<h2>Against clean images")[2].partition("</table>")[0]
    rows = [Tags(row).text for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
    titles = [one.title for one in CORRUPTIONS.values()]
    return {
        title: row.removeprefix(title).strip()
        for row in rows
        for title in titles
        if row.startswith(title)
    }


def test_the_table_has_every_level_with_its_change(run: Run) -> None:
    found, page = page_of(run, answers(clean=[39], blur_5=range(24), crop_1=[3]))
    assert_self_contained(page)
    rows = rows_of(page)
    assert next(iter(rows)) == "Blur"  # the worst first
    assert list(rows)[-1] == "All sizes made equal"
    assert len(rows) == 13
    (blur,) = [one for one in found.corruptions if one.name == "blur"]
    low, high = blur.most_lost.change.low, blur.most_lost.change.high
    assert low is not None
    assert high is not None
    last = f"37.5 % \N{MINUS SIGN}60.0 ({100 * low:.1f} to {100 * high:.1f})"
    assert rows["Blur"].endswith(last.replace("-", "\N{MINUS SIGN}"))
    assert rows["Blur"].count("97.5 % 0.0") == 4
    assert rows["Crop"].startswith("95.0 % \N{MINUS SIGN}2.5")
    bold = re.findall(r"<strong>([^<]*)</strong>", page.partition("Against clean")[2])
    assert bold[0].replace("\xa0", " ") == "37.5 %"
    text = Tags(page).text
    assert found.words in text
    assert (
        "No share answered, error among answers, gate alarms: the model is not "
        "calibrated." in text
    )


def test_the_pictures_are_the_image_and_what_the_model_was_shown(run: Run) -> None:
    given = answers(text_3=[4, 6], jpeg_2=[5])
    given.confidence[place("text", 3), 6] = 0.99
    found, page = page_of(run, given)
    uris = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert len(uris) == 4
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(one))), float) for one in uris
    ]
    clean = draw_image(CLASSES[0], 6)
    text = corrupt(clean, CORRUPTIONS["text"], 3, seed=found.seed, path="06.png")
    for picture, expected in zip(shown[:2], (clean, text), strict=True):
        assert np.abs(picture - expected).mean() < 4  # saved as JPEG for the page
    assert np.abs(shown[1] - shown[0]).max() > 100
    words = Tags(page.partition("<h2>The worst cases")[2]).text
    assert "Burnt-in text, level 3 right: glioma wrong: no_tumor , 99.0 %" in words
    assert "06.png 2 images turned wrong at some level." in words


def test_images_that_are_gone_are_named(run: Run) -> None:
    write_model(run.stress_path("test"), figures(run, answers(jpeg_2=[5])))
    (run.path.parent / "data" / "05.png").unlink()
    written = write_stress_page(run, run.stress_path("test"))
    assert (written.num_missing, written.why_not) == (
        1,
        "not shown: the file is gone",
    )


def test_without_a_turned_image_there_is_no_worst_case(run: Run) -> None:
    _, page = page_of(run, answers())
    assert "no image that is right when clean is wrong" in page
    assert "data:image" not in page


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (
            [],
            "0.0 points, which may be chance: no sign that the model goes by the size",
        ),
        (range(24), "-60.0 points, which is more than chance. Compare it with down-"),
    ],
)
def test_equal_sizes_are_a_verdict_in_words(
    run: Run, lost: list[int], words: str
) -> None:
    _, page = page_of(run, answers(equal_sizes_1=lost))
    text = Tags(page).text.replace("\N{MINUS SIGN}", "-")
    assert f"Making all sizes equal changes accuracy by {words}" in text


def test_a_leak_is_on_the_page_and_in_the_figure(run: Run) -> None:
    leak = CLEAN.model_copy(update={"leaks": True, "words": "3 of 8 have a copy."})
    run.write_leak(leak)
    _, page = page_of(run, answers(jpeg_2=[5]))
    assert page.count('<p class="banner">3 of 8 have a copy.</p>') == 3
    figure = (run.figures_dir / "stress.svg").read_text(encoding="utf-8")
    assert "3 of 8 have a copy." in figure
    assert (run.figures_dir / "stress.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_escaped(run: Run) -> None:
    found = figures(run, answers())
    path = run.stress_path("test")
    write_model(path, found.model_copy(update={"model": "<script>alert(1)</script>"}))
    page = write_stress_page(run, path).path.read_text(encoding="utf-8")
    assert "<script" not in page


def test_a_run_without_the_file_says_how_to_make_it(run: Run) -> None:
    with pytest.raises(RunError, match=r"there is no .*stress-val\.json") as caught:
        write_stress_page(run, run.stress_path("val"))
    assert caught.value.hint == "make it again: tumorlens stress RUN"
