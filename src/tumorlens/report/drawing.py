"""How every figure is made: its style, the words above it, SVG and PNG.

Every figure has a title, a line that says what it was measured on and, when the test
images leak into training, the words of that leak: a figure that is cut out of its page
still carries them. pyplot is not used: it keeps global state and a window system.
Figures are made from `matplotlib.figure.Figure` alone.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tumorlens.files import write_bytes, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


HEAT_COLORS = [(1.0, 0.9, 0.12, 0.0), (1.0, 0.0, 0.0, 0.75)]
"""Colours of a map over an image, from clear over yellow to red. The anatomy stays
visible below the strongest."""

SMOOTH: Any = {"interpolation": "bicubic", "interpolation_stage": "rgba"}
"""How images and maps are enlarged."""

PANEL_INCHES = 4.8
"""Width of a panel: 345 points, so that on a phone a point is about a pixel."""

_STYLE: Any = {
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": LIGHT["surface"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": LIGHT["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": False,
    "figure.facecolor": LIGHT["surface"],
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["ink"],
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.facecolor": LIGHT["surface"],
    # Text stays text: it can be searched, read aloud and set in the reader's own font.
    "svg.fonttype": "none",
    "svg.hashsalt": "tumorlens",
    "text.color": LIGHT["ink"],
    # A class or file name with two dollar signs is not a formula.
    "text.parse_math": False,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
}


@dataclass(frozen=True)
class Heading:
    """The words above a figure."""

    title: str
    """What is shown."""

    subtitle: str
    """Model, protocol, subset, number of images."""

    warning: str = ""
    """The words of the leak; empty when there is none."""


@dataclass(frozen=True)
class Drawing:
    """One finished figure."""

    svg: str
    """A whole SVG file, in the light colours."""

    figure: Figure
    """What it was made from, already laid out."""

    def png(self) -> bytes:
        """Return the same as a PNG file, at 200 dots per inch."""
        content = io.BytesIO()
        with styled():
            self.figure.savefig(
                content, format="png", dpi=200, metadata={"Software": None}
            )
        return content.getvalue()

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `name.svg` and `name.png` into a folder, and return their paths.

        Raises:
            DataError: They cannot be written.
        """
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        write_text(svg, self.svg)
        write_bytes(png, self.png())
        return svg, png

    def inline(self, name: str) -> str:
        """Return the SVG for use inside a page: themed, with ids of its own.

        Args:
            name: Put before every id, so that two figures of a page cannot take each
                other's clip paths.
        """
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        # The rule is for the whole page, which has it in its own style sheet.
        svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
        # Width and height belong to the style sheet; the view box keeps proportions.
        svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
        svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)

        def own(tag: re.Match[str]) -> str:
            text = re.sub(r'\bid="|href="#|url\(#', rf"\g<0>{name}-", tag[0])
            return themed(text.replace("'DejaVu Sans'", "var(--font)"))

        # Tags only: the words between them are the user's.
        return re.sub(r"<[^>]+>", own, svg)


def render(
    draw: Callable[[Sequence[Axes]], None],
    heading: Heading,
    *,
    columns: int = 1,
    rows: tuple[float, ...] = (1,),
    panel_inches: float = PANEL_INCHES,
    body_inches: float,
) -> Drawing:
    """Make the panels below the heading, let `draw` fill them, and save the figure.

    Deterministic: no dates, no versions, and ids from a fixed salt.

    Args:
        draw: Gets the panels row by row, each from left to right.
        heading: The words above them.
        columns: Panels beside each other.
        rows: How high the rows are, relative to each other.
        panel_inches: Width of one panel.
        body_inches: Height of everything below the heading.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = columns * panel_inches
    lines = _heading_lines(heading, width)
    head_inches = 0.12 + sum(line.inches for line in lines)
    height = head_inches + body_inches
    with styled():
        layout = ConstrainedLayoutEngine(
            rect=(0, 0, 1, 1 - head_inches / height), w_pad=0.1, h_pad=0.08
        )
        figure = Figure(figsize=(width, height), layout=layout)
        y = height - 0.08
        for line in lines:
            figure.text(0.1 / width, y / height, line.text, va="top", **line.style)
            y -= line.inches
        panels = figure.subplots(len(rows), columns, squeeze=False, height_ratios=rows)
        draw(list(panels.flat))
        # Laid out once: left to itself, each format would do it again, twice.
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
        svg = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(svg, format="svg", metadata=nothing)
    return Drawing(svg.getvalue(), figure)


def shortened(name: str, *, num_letters: int = 22) -> str:
    """Return a name that fits beside an axis: its start, and a mark of the cut.

    Example:
        >>> shortened("meningioma"), shortened("meningioma", num_letters=6)
        ('meningioma', 'menin…')
    """
    return name if len(name) <= num_letters else name[: num_letters - 1] + "…"


def css_variables() -> str:
    """Return the style rules that set every colour, dark where the browser prefers it.

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


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of this package, and leave matplotlib as it was."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A class name in a script that the font lacks: the SVG, being text, is right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@dataclass(frozen=True)
class _Line:
    text: str
    inches: float
    style: dict[str, Any]


def _heading_lines(heading: Heading, width: float) -> list[_Line]:
    # DejaVu Sans is wide: at 9 points an inch holds about 13 letters.
    per_inch = 13
    parts = [
        (heading.title, 0.24, per_inch * 0.72, {"fontsize": 12, "fontweight": "bold"}),
        (heading.subtitle, 0.18, per_inch, {"fontsize": 9, "color": LIGHT["muted"]}),
        (
            heading.warning,
            0.18,
            per_inch * 0.9,
            {"fontsize": 9, "fontweight": "bold", "color": LIGHT["warn"]},
        ),
    ]
    return [
        _Line(text, inches, style)
        for words, inches, letters, style in parts
        for text in textwrap.wrap(words, int(letters * width))
    ]
