"""Templates to pages: how numbers are written, and that every name is escaped.

A page is one file. Styles are inside, pictures are data URIs, figures are inline SVG,
and nothing is loaded from anywhere: it can be mailed and opened without a network.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Any, ParamSpec

import jinja2
from markupsafe import Markup, escape

import tumorlens
from tumorlens import text
from tumorlens.report.drawing import css_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_P = ParamSpec("_P")


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
        p_value=text.p_value,
        percent=write_percent,
        points=write_points,
        range=_bounds,
    )
    return environment.get_template(template).render(
        content, style=_style(), version=tumorlens.__version__
    )


def _percent_bounds(low: float, high: float) -> str:
    """Return the bounds of an interval as percentages."""
    return f"{100 * low:.1f} to {write_percent(high)}"


def _bounds(low: float, high: float) -> str:
    """Return the bounds of an interval that are no fractions."""
    return f"{low:.3f} to {high:.3f}"


def _breakable(name: str) -> Markup:
    """Return a class name or path that may go on in the next line after `_` or `/`."""
    escaped = str(escape(name))
    return Markup(re.sub(r"([_/])(?=.)", r"\1<wbr>", escaped))


def _write_css_length(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


def _style() -> Markup:
    sheet = resources.files("tumorlens.report") / "templates" / "style.css"
    # Ours, and free of "</style>": the one text here that needs no escaping.
    return Markup(css_variables() + sheet.read_text(encoding="utf-8"))
