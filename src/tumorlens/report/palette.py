"""The colours of pages and figures, each under one name, for light and for dark.

A figure is drawn in the light colours. When its SVG goes into a page, every colour is
replaced by the CSS variable of the same name, so that one drawing serves both themes;
the SVG and PNG files beside the page stay light. Series differ in dash and marker as
well: no meaning hangs on colour alone.
"""

from __future__ import annotations

LIGHT = {
    "ink": "#1c2128",
    "muted": "#57606b",
    "line": "#d5dae1",
    "page": "#f3f5f7",
    "surface": "#fefefe",
    "accent": "#0a5a9c",
    "good": "#17663a",
    "good-fill": "#e6f4eb",
    "doubt": "#7a5200",
    "doubt-fill": "#fdf4dd",
    "warn": "#96290f",
    "warn-fill": "#fdeee8",
    "heat": "#3a86c8",
    "series-1": "#0b66b0",
    "series-2": "#b25205",
    "series-3": "#0a7a63",
    "series-4": "#8b3fa6",
    "series-5": "#6b5a00",
    "series-6": "#a8325f",
}
"""Colour names and their values on a white page."""

DARK = {
    "ink": "#e7eaee",
    "muted": "#a3adb8",
    "line": "#363d46",
    "page": "#0f1318",
    "surface": "#171c23",
    "accent": "#7cbcf5",
    "good": "#7fd3a1",
    "good-fill": "#14291d",
    "doubt": "#e8c468",
    "doubt-fill": "#2c2410",
    "warn": "#ffab91",
    "warn-fill": "#341a12",
    "heat": "#2a6cb5",
    "series-1": "#6db5f7",
    "series-2": "#f2a65a",
    "series-3": "#4fcbae",
    "series-4": "#d09bea",
    "series-5": "#d6c24a",
    "series-6": "#f08cb4",
}
"""The same names on a dark page."""

SERIES = tuple(name for name in LIGHT if name.startswith("series-"))
"""Names of the colours of lines, in the order in which they are used.

Source:
    Hues from Okabe and Ito, "Color Universal Design", 2008
    (https://jfly.uni-koeln.de/color/), made darker and lighter until each has a
    contrast of at least 4.5 on its background.
"""


def css_variables() -> str:
    """Return the style rules that set every colour, dark where the reader asks for it.

    Paper is always light: the dark rules are for screens only.
    """
    light = "".join(f"--{name}:{value};" for name, value in LIGHT.items())
    dark = "".join(f"--{name}:{value};" for name, value in DARK.items())
    return (
        f":root{{{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


def themed(svg: str) -> str:
    """Return an SVG drawn in the light colours with CSS variables in their place."""
    for name, value in LIGHT.items():
        svg = svg.replace(value, f"var(--{name})")
    return svg
