"""One picture that shows what a network answered for a series.

Drawn with Pillow and its built-in font, so that it needs no more than the small
install. What a newcomer gets wrong: a picture travels without its caption, so what it
is worth and that it is no diagnosis stand in it. No name of a patient does.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tumorlens.text import one_line, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WIDTH_PX, HEIGHT_PX = 1024, 896
WARNING = "Research use only - not for diagnosis"

MIN_DROP = 0.02
"""A map whose largest drop is smaller shows noise, and is drawn as nothing."""

_BACKGROUND, _TEXT, _DIM = (12, 14, 18), (235, 235, 235), (165, 170, 178)
_ALERT, _BAR, _OTHER_BAR = (255, 176, 32), (255, 140, 50), (88, 110, 140)
_MARGIN = 24
_PICTURE_PX = (WIDTH_PX - 3 * _MARGIN) // 2
_TOP = 104
_STRONGEST = 0.75
"""Opacity of the heat where it is greatest: the anatomy stays visible."""


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
    """Return the page as (HEIGHT_PX, WIDTH_PX, 3).

    The picture on the right is that on the left under its heat: from clear to yellow
    and red, where only what speaks for the class is shown.
    """
    sheet = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_MARGIN, 18), page.title, size=26)
    _text(draw, (_MARGIN, 54), page.subtitle, size=16, color=_DIM)
    _text(draw, (WIDTH_PX - _MARGIN, 24), WARNING, size=18, color=_ALERT, anchor="ra")
    peak = float(page.heat.max())
    grey = page.image if page.image.ndim == 3 else np.stack([page.image] * 3, -1)
    right = 2 * _MARGIN + _PICTURE_PX
    sheet.paste(*_fitted(grey, _MARGIN))
    sheet.paste(*_fitted(_heated(grey, page.heat, peak), right))
    under = _TOP + _PICTURE_PX + 8
    _text(draw, (_MARGIN, _TOP - 22), "The slice", size=15, color=_DIM)
    _text(
        draw,
        (right, _TOP - 22),
        f"What speaks for {page.label}",
        size=15,
        color=_DIM,
        width=_PICTURE_PX,
    )
    _scale(sheet, draw, right, under, peak)
    at = _bars(draw, page.probs, under + 34)
    for note in page.notes:
        for line in _wrapped(note):
            _text(draw, (_MARGIN, at), line, size=14, color=_DIM)
            at += 19
    return np.array(sheet)


def drawable(words: str) -> str:
    r"""Return words in the letters that Pillow's built-in font has: ASCII.

    Accents are dropped, and what remains unknown is a question mark: better than the
    empty boxes of the font. The report beside the page has the names as they are.

    Example:
        >>> drawable("Hirntumor, gr\u00f6\u00dfer\n\u8133")
        'Hirntumor, gro?er ?'
    """
    apart = unicodedata.normalize("NFKD", one_line(words))
    return "".join(
        letter if letter.isascii() else "?"
        for letter in apart
        if not unicodedata.combining(letter)
    )


def _fitted(image: NDArray[np.uint8], left: int) -> tuple[Image.Image, tuple[int, int]]:
    """Return an image at the size of its frame, and where it belongs."""
    picture = Image.fromarray(image)
    scale = _PICTURE_PX / max(picture.size)
    size = (
        max(1, round(picture.width * scale)),
        max(1, round(picture.height * scale)),
    )
    place = (
        left + (_PICTURE_PX - size[0]) // 2,
        _TOP + (_PICTURE_PX - size[1]) // 2,
    )
    return picture.resize(size, Image.Resampling.BICUBIC), place


def _heated(
    image: NDArray[np.uint8], heat: NDArray[np.float32], peak: float
) -> NDArray[np.uint8]:
    if peak < MIN_DROP:
        return image
    shares = np.clip(heat / peak, 0, 1)
    opacity = (_STRONGEST * shares)[..., np.newaxis]
    mixed = image * (1 - opacity) + _colors(shares) * opacity
    picture: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return picture


def _colors(shares: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return colours (..., 3) from yellow at 0 to red at 1."""
    green = 230 * (1 - shares)
    return np.stack([np.full(shares.shape, 255.0), green, 30 * (1 - shares)], axis=-1)


def _scale(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, peak: float
) -> None:
    if peak < MIN_DROP:
        words = f"nothing stands out: {_points(peak)} at most when a patch covers it"
        _text(draw, (left, top), words, size=13, color=_DIM, width=_PICTURE_PX)
        return
    shares = np.linspace(0, 1, 120)[np.newaxis].repeat(12, axis=0)
    mixed = 40 * (1 - shares[..., np.newaxis]) + _colors(shares) * shares[..., None]
    sheet.paste(Image.fromarray(np.rint(mixed).astype(np.uint8)), (left, top + 2))
    words = f"0 to {_points(peak)} less probable when a patch covers it"
    _text(draw, (left + 130, top), words, size=13, color=_DIM, width=_PICTURE_PX - 130)


def _points(share: float) -> str:
    return f"{100 * max(0.0, share):.1f} points"


def _bars(
    draw: ImageDraw.ImageDraw, probs: Sequence[tuple[str, float]], top: int
) -> int:
    """Draw a bar for each class, the six most probable ones, and return what is below.

    The names have the left third, the figures the right end.
    """
    best = sorted(probs, key=lambda pair: -pair[1])
    shown = probs if len(probs) <= 6 else best[:6]
    left, length = 300, WIDTH_PX - 300 - _MARGIN - 90
    for name, prob in shown:
        is_best = name == best[0][0]
        color = _TEXT if is_best else _DIM
        _text(draw, (_MARGIN, top), name, size=17, color=color, width=left - 40)
        draw.rectangle((left, top + 3, left + length, top + 19), fill=(34, 38, 46))
        draw.rectangle(
            (left, top + 3, left + round(prob * length), top + 19),
            fill=_BAR if is_best else _OTHER_BAR,
        )
        share = percent(prob)
        right = (WIDTH_PX - _MARGIN, top)
        _text(draw, right, share, size=17, color=color, anchor="ra")
        top += 27
    if len(probs) > 6:
        words = f"and {len(probs) - 6} less probable classes"
        _text(draw, (_MARGIN, top), words, size=14, color=_DIM)
        top += 22
    return top + 10


def _text(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    words: str,
    *,
    size: int,
    color: tuple[int, int, int] = _TEXT,
    anchor: str = "la",
    width: int | None = None,
) -> None:
    font = ImageFont.load_default(size)
    words = drawable(words)
    if width is not None and font.getlength(words) > width:
        while words and font.getlength(words + "...") > width:
            words = words[:-1]
        words += "..."
    draw.text(place, words, fill=color, font=font, anchor=anchor)


def _wrapped(words: str) -> list[str]:
    font = ImageFont.load_default(14)
    lines = [""]
    for word in drawable(words).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > WIDTH_PX - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
