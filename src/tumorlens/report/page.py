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
        duration=write_duration,
        interval=write_interval,
        large=write_large,
        megabytes=write_megabytes,
        p_value=write_p_value,
        percent=write_percent,
        points=write_points,
        range=write_range,
    )
    return environment.get_template(template).render(
        content, style=_style(), version=tumorlens.__version__
    )


def write_percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage with so many decimals.

    Example:
        >>> write_percent(0.8274).replace(chr(160), " ")
        '82.7 %'
        >>> write_percent(None)
        'n/a'
    """
    if fraction is None:
        return _NOT_DEFINED
    return f"{100 * fraction:.{digits}f}{_SPACE}%"


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


def write_large(number: float | None) -> str:
    """Return a large count with three digits and its magnitude.

    Example:
        >>> [write_large(number).replace(chr(160), " ")
        ...  for number in (980, 11_178_564, 1.82e9, None)]
        ['980', '11.2 M', '1.82 G', 'n/a']
    """
    if number is None:
        return _NOT_DEFINED
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,999 is 1.00 M and not 1000 k.
        if number >= 0.9995 * size:
            scaled = number / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{_SPACE}{letter}"
    return f"{number:.0f}"


def write_megabytes(size_bytes: float | None) -> str:
    """Return a size in megabytes of a million bytes each.

    Example:
        >>> write_megabytes(45_920_000).replace(chr(160), " ")
        '45.9 MB'
    """
    if size_bytes is None:
        return _NOT_DEFINED
    return f"{size_bytes / 1e6:.1f}{_SPACE}MB"


def write_duration(seconds: float | None) -> str:
    """Return a time in its two largest units.

    Example:
        >>> [write_duration(time).replace(chr(160), " ")
        ...  for time in (7.26, 59.97, 754, 3600 * 5 + 65, None)]
        ['7.3 s', '1 min 00 s', '12 min 34 s', '5 h 01 min', 'n/a']
    """
    if seconds is None:
        return _NOT_DEFINED
    if seconds < 59.95:
        return f"{seconds:.1f}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest:02d}{_SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{_SPACE}h {minutes:02d}{_SPACE}min"


def write_points(fraction: float | None) -> str:
    """Return a difference of fractions in percentage points, with its sign.

    Example:
        >>> write_points(0.0438), write_points(0.0)
        ('+4.4', '0.0')
        >>> write_points(-0.002) == chr(0x2212) + "0.2"  # a minus, not a hyphen
        True
    """
    if fraction is None:
        return _NOT_DEFINED
    points = f"{100 * fraction:+.1f}"
    if points[1:] == "0.0":
        return "0.0"
    return points.replace("-", "\N{MINUS SIGN}")


def write_p_value(p: float | None) -> str:
    """Return a p-value with three decimals, never as zero.

    Example:
        >>> write_p_value(0.0312), write_p_value(0.0002)
        ('0.031', '<0.001')
    """
    if p is None:
        return _NOT_DEFINED
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


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
