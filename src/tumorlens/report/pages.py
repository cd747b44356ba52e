"""Templates to pages: how numbers are written, and that every name is escaped.

A page is one file. Styles are inside, pictures are data URIs, figures are inline SVG,
and nothing is loaded from anywhere: it can be mailed and opened without a network.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

import tumorlens
from tumorlens.report.palette import css_variables

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOT_DEFINED = "n/a"
_SPACE = "\N{NO-BREAK SPACE}"


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
        count=write_count,
        css=_write_css_length,
        decimal=write_decimal,
        interval=write_interval,
        percent=write_percent,
        range=write_range,
    )
    return environment.get_template(template).render(
        content, style=_style(), version=tumorlens.__version__
    )


def write_percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with one decimal.

    Example:
        >>> write_percent(0.8274).replace(chr(160), " ")
        '82.7 %'
        >>> write_percent(None)
        'n/a'
    """
    if fraction is None:
        return _NOT_DEFINED
    return f"{100 * fraction:.1f}{_SPACE}%"


def write_interval(measure: Mapping[str, float]) -> str:
    """Return the bounds of a measure as percentages. It must have bounds.

    Example:
        >>> write_interval({"value": 0.5, "low": 0.401, "high": 0.6}).replace(
        ...     chr(160), " ")
        '40.1 to 60.0 %'
    """
    low, high = measure["low"], measure["high"]
    return f"{100 * low:.1f} to {100 * high:.1f}{_SPACE}%"


def write_range(measure: Mapping[str, float]) -> str:
    """Return the bounds of a measure that is no fraction. It must have bounds.

    Example:
        >>> write_range({"value": 0.5, "low": 0.4, "high": 1.25})
        '0.400 to 1.250'
    """
    low, high = measure["low"], measure["high"]
    return f"{low:.3f} to {high:.3f}"


def write_decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals.

    Example:
        >>> write_decimal(0.98765), write_decimal(None)
        ('0.988', 'n/a')
    """
    return _NOT_DEFINED if value is None else f"{value:.{digits}f}"


def write_count(number: int) -> str:
    """Return a count with commas between thousands.

    Example:
        >>> write_count(3264)
        '3,264'
    """
    return f"{number:,}"


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
