"""Numbers, names and times as people read them: in a terminal, a table or a page.

Fractions stay fractions until one of these functions shows them. Spaces are plain ones;
a page makes those between a number and its unit non-breaking. Results of stages that
show themselves in a notebook inherit `NotebookView`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NOT_DEFINED = "n/a"
"""Shown for a value that does not exist, such as the recall of an absent class."""

_draw: Callable[[object], str | None] | None = None


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage.

    Example:
        >>> percent(0.8274), percent(0.8274, 0), percent(None)
        ('82.7 %', '83 %', 'n/a')
    """
    return NOT_DEFINED if fraction is None else f"{100 * fraction:.{digits}f} %"


def interval(measure: Mapping[str, float | None]) -> str:
    """Return a measure with the bounds of its interval, as percentages.

    Example:
        >>> interval({"value": 0.827, "low": 0.801, "high": 0.85})
        '82.7 % (80.1 to 85.0)'
        >>> interval({"value": 0.827, "low": None, "high": None})
        '82.7 %'
    """
    low, high = measure["low"], measure["high"]
    bounds = (
        "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    )
    return percent(measure["value"]) + bounds


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals.

    Example:
        >>> decimal(0.98765), decimal(None)
        ('0.988', 'n/a')
    """
    return NOT_DEFINED if value is None else f"{value:.{digits}f}"


def points(difference: float | None, digits: int = 1) -> str:
    """Return a difference of fractions in percentage points, with its sign.

    Example:
        >>> points(0.0438), points(0.0), points(-0.0001)
        ('+4.4', '0.0', '0.0')
        >>> points(-0.002)
        '-0.2'
    """
    if difference is None:
        return NOT_DEFINED
    rounded = round(100 * difference, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, never as zero.

    Example:
        >>> p_value(0.0312), p_value(0.0002)
        ('0.031', '<0.001')
    """
    if p is None:
        return NOT_DEFINED
    return f"{p:.3f}" if p >= 0.0005 else "<0.001"


def large_number(number: float | None) -> str:
    """Return a large count with three digits and its magnitude.

    Example:
        >>> [large_number(number) for number in (980, 11_178_564, 1.82e9, None)]
        ['980', '11.2 M', '1.82 G', 'n/a']
    """
    if number is None:
        return NOT_DEFINED
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,999 is 1.00 M and not 1000 k.
        if number >= 0.9995 * size:
            scaled = number / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {letter}"
    return f"{number:.0f}"


def megabytes(size_bytes: float | None) -> str:
    """Return a size in megabytes of a million bytes each.

    Example:
        >>> megabytes(45_920_000), megabytes(None)
        ('45.9 MB', 'n/a')
    """
    return NOT_DEFINED if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units.

    Example:
        >>> [duration(time) for time in (7.26, 59.97, 754, 3600 * 5 + 65, 200_000)]
        ['7.3 s', '1 min 00 s', '12 min 34 s', '5 h 01 min', '2 d 07 h']
        >>> duration(None)
        'n/a'
    """
    if seconds is None:
        return NOT_DEFINED
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"


def counted(number: int, noun: str) -> str:
    """Return a number of things in words.

    Example:
        >>> counted(1, "file"), counted(1200, "trial")
        ('1 file', '1,200 trials')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def number_range(ends: tuple[int, int] | None) -> str:
    """Return the least and the most of a number.

    Example:
        >>> number_range((34, 1200)), number_range((5, 5)), number_range(None)
        ('34 to 1,200', '5', 'n/a')
    """
    if ends is None:
        return NOT_DEFINED
    return " to ".join(f"{end:,}" for end in dict.fromkeys(ends))


def one_line(text: str) -> str:
    r"""Return a text without line breaks and terminal control characters.

    File names come from outside: one with an escape sequence must not clear the screen,
    and one that is not UTF-8 must not stop the table.

    Example:
        >>> one_line("a\nb\x1b[2J")
        'a b [2J'
    """
    return "".join(letter if letter.isprintable() else " " for letter in text)


def natural_key(text: str) -> list[tuple[int, str]]:
    """Return a sort key by which `image9` comes before `image10`.

    Example:
        >>> sorted(["image10", "image9", "Image1"], key=natural_key)
        ['Image1', 'image9', 'image10']
    """
    # Digits compare as numbers; a pair per part keeps numbers and words comparable.
    return [
        (int(part), "") if place % 2 else (-1, part)
        for place, part in enumerate(re.split(r"(\d+)", text))
    ]


class NotebookView:
    """Base class of results that show themselves in a notebook.

    How a result looks is drawn far above this module, in `report.notebook`, which the
    package connects by `show_results_with` when it is imported.
    """

    def _repr_html_(self) -> str | None:
        return _draw(self) if _draw else None


def show_results_with(draw: Callable[[object], str | None]) -> None:
    """Set the function that draws a `NotebookView` as HTML.

    Args:
        draw: Returns `None` for plain text instead.
    """
    global _draw
    _draw = draw
