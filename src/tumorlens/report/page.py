"""Templates to pages: how numbers are written, names escaped, images put inside.

A page is one file. Styles are inside, images are data URIs, figures are inline SVG, and
nothing is loaded from anywhere: it can be mailed and opened without a network.

An image that is gone, or cannot be read, is a sentence in its place and never an error:
a page about yesterday's run must not fail because a disk was unplugged.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import jinja2
from markupsafe import Markup, escape
from PIL import Image

import tumorlens
from tumorlens import text
from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits, read_image
from tumorlens.data.sets import ImageSets
from tumorlens.errors import DataError, MissingExtraError
from tumorlens.report.drawing import css_variables
from tumorlens.system import without_user

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

_P = ParamSpec("_P")

SIDE_PX = 224
"""Longer side of a picture in a page."""


@dataclass(frozen=True)
class Picture:
    """An image of the data set, or the reason why it is not shown."""

    path: str
    """As the index names it, relative to the data."""

    uri: str = ""
    """A data URI; empty when the image cannot be shown."""

    width: int = 0
    height: int = 0
    """Size of the small copy, in pixels."""

    why_not: str = ""
    """Why there is nothing to see."""


class WrittenPage(NamedTuple):
    """A page on disk, and what it lacks."""

    path: Path
    num_missing: int
    """Number of pictures that could not be shown."""
    why_not: str
    """Reason for the first of them."""


def _typeset(write: Callable[_P, str]) -> Callable[_P, str]:
    """Return `write` with typographic characters: no break in `12 %`, a true minus."""

    def typeset(*args: _P.args, **options: _P.kwargs) -> str:
        plain = write(*args, **options)
        return plain.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "\N{MINUS SIGN}")

    return typeset


write_decimal = _typeset(text.decimal)
write_duration = _typeset(text.duration)
write_large = _typeset(text.large_number)
write_megabytes = _typeset(text.megabytes)
write_percent = _typeset(text.percent)
write_points = _typeset(text.points)


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """Return a whole HTML page.

    Args:
        template: File name in `report/templates`.
        content: The names that the template uses. Texts are escaped; only `Markup` is
            put in as it is.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tumorlens.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_to_be_handed_on,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        count=lambda number: f"{number:,}",
        css=_write_css_length,
        decimal=write_decimal,
        duration=write_duration,
        interval=_percent_bounds,
        large=write_large,
        megabytes=write_megabytes,
        number_range=text.number_range,
        p_value=text.p_value,
        percent=write_percent,
        points=write_points,
        range=_bounds,
    )
    return environment.get_template(template).render(
        content, style=_style(), version=tumorlens.__version__
    )


def load_picture(
    root: Path | ImageSets | None,
    path: str,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    side_px: int = SIDE_PX,
) -> Picture:
    """Return a small copy of one image, or the reason why there is none.

    Args:
        root: The folder that `path` starts from, or the sets that it is in; `None` when
            they are not known.
        path: As in `predictions.csv` or `audit.json`.
        limits: What is not opened.
        change: What is done to the decoded image before it is shown.
        side_px: Longer side of the copy.
    """
    if root is None:
        return Picture(path, why_not="not shown: the data folder is not known")
    file = root.file_at(path) if isinstance(root, ImageSets) else root / path
    if not file.is_file():
        return Picture(path, why_not="not shown: the file is gone")
    try:
        pixels = read_image(file, limits=limits)
    except DataError:
        return Picture(path, why_not="not shown: the file cannot be read as an image")
    except MissingExtraError as error:
        return Picture(path, why_not=f"not shown: {error.hint}")
    shown = pixels if change is None else change(pixels)
    return small_copy(path, shown, side_px=side_px)


def _percent_bounds(low: float, high: float) -> str:
    """Return the bounds of an interval as percentages."""
    return f"{100 * low:.1f} to {write_percent(high)}"


def _bounds(low: float, high: float) -> str:
    """Return the bounds of an interval that are no fractions."""
    return f"{low:.3f} to {high:.3f}"


def _to_be_handed_on(value: Any) -> Any:
    """Return what a template prints, texts without the user's folder and name."""
    # Not in figures and pictures: letters of their data may spell a name.
    is_data = isinstance(value, Markup) or not isinstance(value, str)
    return value if is_data or value.startswith("data:") else without_user(value)


def _breakable(name: str) -> Markup:
    """Return a class name or path that may break into lines after `_` or `/`."""
    escaped = str(escape(without_user(name)))
    return Markup(re.sub(r"([_/])(?=.)", r"\1<wbr>", escaped))


def _write_css_length(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


def _style() -> Markup:
    sheet = resources.files("tumorlens.report") / "templates" / "style.css"
    # Ours, and free of "</style>": the one text here that needs no escaping.
    return Markup(css_variables() + sheet.read_text(encoding="utf-8"))


def small_copy(
    path: str, pixels: NDArray[np.uint8], *, side_px: int = SIDE_PX
) -> Picture:
    """Return a decoded image as a picture of the page."""
    image = Image.fromarray(pixels)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    # A page may hold a hundred of these, and they are for recognising, not measuring.
    image.save(content, "JPEG", quality=85, subsampling=0)
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return Picture(path, f"data:image/jpeg;base64,{encoded}", image.width, image.height)
