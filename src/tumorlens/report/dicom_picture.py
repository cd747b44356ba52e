"""The picture of a series' result: the slice, its heat map, and the probabilities.

A picture travels without its caption, so it carries in itself what the result is worth,
and that it is no diagnosis. It has no name of a patient.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.report.drawing import DARK, HEAT_COLORS, SMOOTH, shortened, styled
from tumorlens.text import one_line, percent, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

WIDTH_PX, HEIGHT_PX = 1024, 896
"""Size of the page; many lines of notes make it higher."""
WARNING = "Research use only - not for diagnosis"

MIN_DROP = 0.02
"""A map whose largest drop is smaller shows noise, and is drawn as nothing."""

_DPI = 100
_MARGIN = 24
_FRAME_PX = (WIDTH_PX - 3 * _MARGIN) // 2
_TOP = 104
_RIGHT = 2 * _MARGIN + _FRAME_PX
_BARS_LEFT, _BARS_TOP, _BAR_STEP = 300, _TOP + _FRAME_PX + 42, 27
_MAX_BARS = 6
_NOTE_STEP, _NOTE_LETTERS = 19, 130


@dataclass(frozen=True)
class Page:
    """What stands on the page."""

    title: str
    subtitle: str
    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3)."""
    heat: NDArray[np.float32]
    """(H, W): by how much the probability of `label` falls where a patch lies."""
    label: str
    """The class whose heat is shown."""
    probs: Sequence[tuple[str, float]]
    """Class and probability of the series, from 0 to 1."""
    notes: Sequence[str]
    """Sentences: the rule, the model, what its answers are worth."""


def draw_page(page: Page) -> NDArray[np.uint8]:
    """Return the page as (height, WIDTH_PX, 3), at least HEIGHT_PX high.

    The picture on the right is that on the left under its heat: from clear to yellow
    and red, where only what speaks for the class is shown. Letters that DejaVu Sans
    lacks are drawn as boxes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grey = page.image.ndim == 2
    rgb = np.repeat(page.image[..., np.newaxis], 3, axis=-1) if grey else page.image
    notes = [
        line
        for note in page.notes
        for line in textwrap.wrap(one_line(note), _NOTE_LETTERS)
    ]
    notes_top = _BARS_TOP + _BAR_STEP * min(len(page.probs), _MAX_BARS) + 10
    notes_top += 22 if len(page.probs) > _MAX_BARS else 0
    height = max(HEIGHT_PX, notes_top + _NOTE_STEP * len(notes) + 12)
    with styled():
        figure = Figure(
            (WIDTH_PX / _DPI, height / _DPI), dpi=_DPI, facecolor=DARK["page"]
        )
        canvas = FigureCanvasAgg(figure)
        _text(figure, (_MARGIN, 18), page.title, size=24, width=620, ink="ink")
        _text(figure, (_MARGIN, 56), page.subtitle, size=15)
        _text(
            figure, (WIDTH_PX - _MARGIN, 22), WARNING, size=17, ink="doubt", ha="right"
        )
        _text(figure, (_MARGIN, _TOP - 22), "The slice", size=14)
        words = f"What speaks for {page.label}"
        _text(figure, (_RIGHT, _TOP - 22), words, size=14, width=_FRAME_PX)
        for left in (_MARGIN, _RIGHT):
            axes = _axes(figure, left, _TOP, _FRAME_PX, _FRAME_PX)
            axes.imshow(rgb, **SMOOTH)
        _draw_heat(figure, axes, page.heat)
        _draw_bars(figure, page.probs)
        for number, line in enumerate(notes):
            _text(figure, (_MARGIN, notes_top + number * _NOTE_STEP), line, size=13)
        canvas.draw()
        pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return pixels


def _draw_heat(figure: Figure, axes: Axes, heat: NDArray[np.float32]) -> None:
    """Lay the heat over the slice in `axes`, with its scale below."""
    from matplotlib.colors import LinearSegmentedColormap

    peak = float(heat.max())
    top = _TOP + _FRAME_PX + 8
    drop = points(max(0.0, peak)).removeprefix("+")
    if peak < MIN_DROP:
        words = f"nothing stands out: {drop} points at most when a patch covers it"
        _text(figure, (_RIGHT, top), words, size=13)
        return
    colors = LinearSegmentedColormap.from_list("heat", HEAT_COLORS)
    axes.imshow(np.clip(heat / peak, 0, 1), cmap=colors, vmin=0, vmax=1, **SMOOTH)
    scale = _axes(figure, _RIGHT, top + 2, 120, 12)
    scale.imshow(np.linspace(0, 1, 120)[np.newaxis], cmap=colors, aspect="auto")
    words = f"0 to {drop} points less probable when a patch covers it"
    _text(figure, (_RIGHT + 130, top), words, size=13)


def _draw_bars(figure: Figure, probs: Sequence[tuple[str, float]]) -> None:
    """Draw a bar for each class, or for the six most probable ones."""
    best = sorted(probs, key=lambda pair: -pair[1])
    shown = probs if len(probs) <= _MAX_BARS else best[:_MAX_BARS]
    length = WIDTH_PX - _BARS_LEFT - _MARGIN - 90
    height = _BAR_STEP * len(shown)
    axes = _axes(figure, _BARS_LEFT, _BARS_TOP - 2, length, height)
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.5))
    is_best = [name == best[0][0] for name, _ in shown]
    rows = range(len(shown))
    colors = [DARK["series-2" if first else "heat"] for first in is_best]
    axes.barh(rows, 1, height=0.6, color=DARK["line"])
    axes.barh(rows, [prob for _, prob in shown], height=0.6, color=colors)
    for row, (name, prob) in enumerate(shown):
        top, ink = _BARS_TOP + 3 + row * _BAR_STEP, "ink" if is_best[row] else "muted"
        _text(figure, (_MARGIN, top), name, size=16, width=_BARS_LEFT - 40, ink=ink)
        right = (WIDTH_PX - _MARGIN, top)
        _text(figure, right, percent(prob), size=16, ink=ink, ha="right")
    if len(probs) > _MAX_BARS:
        words = f"and {len(probs) - _MAX_BARS} less probable classes"
        _text(figure, (_MARGIN, _BARS_TOP + height), words, size=14)


def _axes(figure: Figure, left: int, top: int, width: int, height: int) -> Axes:
    """Return axes without lines or labels, placed in pixels from the upper left."""
    total = figure.bbox.height
    axes = figure.add_axes(
        (
            left / WIDTH_PX,
            1 - (top + height) / total,
            width / WIDTH_PX,
            height / total,
        )
    )
    axes.set_axis_off()
    return axes


def _text(
    figure: Figure,
    place: tuple[int, int],
    words: str,
    *,
    size: int,
    width: int = WIDTH_PX - 2 * _MARGIN,
    ink: str = "muted",
    ha: str = "left",
) -> None:
    """Write one line, its upper corner and size in pixels; a longer one is cut."""
    from matplotlib.transforms import Bbox

    left, top = place
    line = figure.text(
        left / WIDTH_PX,
        1 - top / figure.bbox.height,
        shortened(one_line(words), num_letters=round(width / size / 0.58)),
        fontsize=size * 72 / _DPI,
        color=DARK[ink],
        va="top",
        ha=ha,
    )
    if ha == "left":
        line.set_clip_box(Bbox.from_bounds(left, 0, width, figure.bbox.height))
        line.set_clip_on(True)
