"""The page shows what it is given, and says what it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tumorlens.data.images import fit_square, square_box
from tumorlens.evaluation.occlusion import place_on_image
from tumorlens.report.dicom_picture import (
    HEIGHT_PX,
    MIN_DROP,
    WIDTH_PX,
    Page,
    draw_page,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEFT, RIGHT = np.s_[104:580, 24:500], np.s_[104:580, 524:1000]
BARS = np.s_[614:720, 300:912]


def page_of(**changes: Any) -> NDArray[np.uint8]:
    values: dict[str, Any] = {
        "title": "Series 1",
        "subtitle": "of two",
        "image": np.full((40, 40), 90, np.uint8),
        "heat": np.zeros((40, 40), np.float32),
        "label": "glioma",
        "probs": [("glioma", 0.75), ("no_tumor", 0.25)],
        "notes": ["One.", "Two."],
    }
    return draw_page(Page(**{**values, **changes}))


def colorful(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.ptp(pixels.astype(int), axis=-1) > 60
    return found


def test_heat_is_where_it_belongs_and_the_slice_is_left_as_it_is() -> None:
    heat = np.zeros((40, 40), np.float32)
    heat[:20, 20:] = 0.5
    page = page_of(heat=heat)
    assert page.shape == (HEIGHT_PX, WIDTH_PX, 3)
    assert (page[LEFT] == 90).all()
    hot = colorful(page[RIGHT])
    assert hot[10:220, 260:466].all()
    assert not hot[260:].any()
    assert not hot[:, :220].any()


def test_what_speaks_against_the_class_is_not_drawn() -> None:
    heat = np.full((40, 40), -0.5, np.float32)
    assert (page_of(heat=heat)[RIGHT] == 90).all()


def test_noise_is_not_blown_up_into_a_finding() -> None:
    heat = np.zeros((40, 40), np.float32)
    heat[:20] = MIN_DROP * 0.99
    assert (page_of(heat=heat)[RIGHT] == 90).all()


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_a_bar_is_as_long_as_its_probability(prob: float) -> None:
    probs = [("glioma", prob), ("no_tumor", 1 - prob)]
    first = page_of(probs=probs)[BARS][16]  # a line through the first bar
    filled = (first > 90).any(axis=-1).mean()
    assert filled == pytest.approx(prob, abs=0.01)


def test_the_proportions_of_a_slice_are_kept() -> None:
    page = page_of(
        image=np.full((20, 40), 90, np.uint8), heat=np.zeros((20, 40), np.float32)
    )
    rows = (page[LEFT] == 90).all(axis=-1).all(axis=1)
    assert rows.sum() == 238


@pytest.mark.parametrize(
    ("name", "alike"),
    [("größer", "großer"), ("Μηνιγγίωμα", "Μηνιγγίωμο"), ("опухоль", "опухолъ")],
)
def test_letters_of_other_scripts_are_drawn_as_they_are(name: str, alike: str) -> None:
    pages = [page_of(label=label) for label in (name, alike, "?" * len(name))]
    assert not (pages[0] == pages[1]).all()
    assert not (pages[0] == pages[2]).all()


@pytest.mark.parametrize(
    "name", ["\u8133\U00013000", "a\udc80", "\ue000", "$x^", "a\tb"]
)
def test_letters_that_no_font_has_leave_a_mark_and_end_no_page(name: str) -> None:
    page = page_of(label=name, probs=[(name, 0.75), ("no_tumor", 0.25)], notes=[name])
    assert not (page == page_of(label="", probs=[("", 0.75), ("no_tumor", 0.25)])).all()


def test_the_same_page_is_the_same_picture() -> None:
    heat = np.eye(40, dtype=np.float32)
    assert (page_of(heat=heat) == page_of(heat=heat)).all()


def test_a_page_with_many_notes_is_higher() -> None:
    page = page_of(notes=["word " * 30] * 20)
    assert page.shape[0] > HEIGHT_PX
    assert (page[LEFT] == 90).all()
    assert (page[-40:, :200] > 100).any()  # the last note is on it


def test_long_names_and_many_classes_stay_on_the_page() -> None:
    probs = [(f"class_{n}_" + "W" * 200, 1 / 30) for n in range(30)]
    page = page_of(
        probs=probs, label="W" * 300, notes=["word " * 200], title="a\nb\x1b[2J"
    )
    assert page.shape[1:] == (WIDTH_PX, 3)
    edge = page[:, -20:]
    assert (edge == edge[0, 0]).all()
    assert (page[614:776, 285:299] == edge[0, 0]).all()  # between names and bars


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("border", [0, 7])
def test_a_map_of_the_square_lies_on_what_the_square_shows(
    shape: tuple[int, int], fit: Any, border: int
) -> None:
    # The square of an image, put back as if it were a map, is the image again.
    height, width = shape
    image = np.zeros((height + 2 * border, width + border), np.uint8)
    inner = (np.mgrid[:height, :width].sum(axis=0) * 1.5 + 50).astype(np.uint8)
    image[border : border + height, border:] = inner
    square = fit_square(image, size_px=240, fit=fit)
    back = place_on_image(
        square.astype(np.float32), box=square_box(image, fit=fit), shape=image.shape
    )
    inside = np.s_[border + 3 : border + height - 3, border + 3 : -3]
    assert back.shape == image.shape
    assert np.abs(back[inside] - image[inside].astype(float)).max() < 3
