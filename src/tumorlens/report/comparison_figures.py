"""Figures of a comparison: a line, a bar or a point for each arm.

An arm has the same colour and marker in every figure; if there are more arms than
colours, markers tell them apart. Names stand where long ones fit: above a bar, below a
panel.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    StrMethodFormatter,
)

from tumorlens.report.drawing import (
    LIGHT,
    PANEL_INCHES,
    SERIES,
    Drawing,
    Heading,
    render,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tumorlens.runs.measures import HistoryRow

MAX_LINES = 9
"""Most lines in one panel; with more, every subset has a panel of its own."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_SUBSETS: dict[str, Any] = {"val": "-", "train": (0, (6, 2)), "test": (0, (1.2, 1.4))}
_EXPLODED = 6
"""Ratio to the first epoch's loss beyond which the scale is logarithmic."""

_NOT_USED = "test: watched, not used"
_NAME_POINTS = 9
_LETTER_POINTS = 0.6 * _NAME_POINTS
_LINE_INCHES = 0.17
_BAR_INCHES = 0.27


@dataclass(frozen=True)
class ArmCurves:
    """Histories of one arm."""

    name: str
    number: int
    """Place among all arms, which gives the colour in every figure."""

    histories: Sequence[Sequence[HistoryRow]]
    """One per seed."""


@dataclass(frozen=True)
class Bar:
    """Bar of one arm, with a whisker if its bounds are known."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    text: str
    """Label beside the bar."""


@dataclass(frozen=True)
class Point:
    """One arm in the scatter of accuracy against latency."""

    name: str
    number: int
    latency_ms: tuple[float, float, float]
    """Value, low, high."""

    accuracy: tuple[float, float, float]
    is_on_front: bool = field(default=False)


def wrap_name(name: str, num_letters: int) -> list[str]:
    """Return a name in at most three lines of `num_letters` letters.

    A longer name is cut in the middle: names of arms often begin alike and differ at
    their end.

    Example:
        >>> wrap_name("auto-augment with dropout", 14)
        ['auto-augment', 'with dropout']
        >>> wrap_name("abcdefghijklmnopqrstuvwxyz", 4)
        ['abcd', 'ef…v', 'wxyz']
    """
    most = 3 * num_letters
    if len(name) > most:
        num_end = (most - 1) // 2
        name = f"{name[: most - 1 - num_end]}…{name[-num_end:]}"
    # Breaking at words can need a fourth line; then lines break anywhere.
    lines = textwrap.wrap(name, num_letters) or [""]
    if len(lines) > 3:
        lines = [name[at : at + num_letters] for at in range(0, len(name), num_letters)]
    return lines


def draw_arm_curves(
    arms: Sequence[ArmCurves],
    heading: Heading,
    *,
    measures: Sequence[str] = ("accuracy", "loss"),
) -> Drawing:
    """Draw accuracy and loss over the epochs, a line per arm and subset.

    Val is solid, train dashed and test, if it was watched, dotted. Several seeds are
    one line: their mean over the epochs that all of them reached. With many arms each
    subset has a row of panels, because twenty crossing lines cannot be read.

    Args:
        arms: Arms with at least one epoch.
        heading: Heading of the figure.
        measures: Which of "accuracy" and "loss" to draw, from left to right.
    """
    subsets = [
        subset
        for subset in _SUBSETS
        if any(_line(arm, f"{subset}_{measures[0]}") is not None for arm in arms)
    ]
    is_split = len(arms) * len(subsets) > MAX_LINES
    rows = [[subset] for subset in subsets] if is_split else [subsets]

    def draw(panels: Sequence[Axes]) -> None:
        places = [(row, measure) for row in rows for measure in measures]
        for axes, (shown, measure) in zip(panels, places, strict=True):
            for subset in shown:
                for arm in arms:
                    line = _line(arm, f"{subset}_{measure}")
                    if line is not None:
                        _draw_line(axes, arm, subset, line)
            words = f"{shown[0]} {measure}" if is_split else measure
            axes.set_ylabel(words)
            if is_split and shown == ["test"]:
                axes.set_title(_NOT_USED, loc="left", fontsize=9.5)
            axes.set_xlabel("epoch")
            # One epoch has one tick: a second would be at a fraction.
            axes.xaxis.set_major_locator(
                MaxNLocator(nbins=8, integer=True, min_n_ticks=1)
            )
            _scale(axes, measure)
            if not is_split:
                _legend_above(axes, [_subset_key(subset) for subset in shown])
        for column in range(len(measures)):
            _align(panels[column :: len(measures)])
        handles = [_arm_key(arm.number) for arm in arms]
        _legend_below(panels[: len(measures)], handles, names)

    names = [arm.name for arm in arms]
    legend_inches = _legend_inches(names, len(measures))
    return render(
        draw,
        heading,
        columns=len(measures),
        rows=(1.0,) * len(rows),
        body_inches=(2.3 if is_split else 3.0) * len(rows) + legend_inches,
    )


def draw_bars(
    bars: Sequence[Bar], heading: Heading, *, label: str, is_fraction: bool = False
) -> Drawing:
    """Draw one bar per arm from zero, its name above it and its value beside it.

    Args:
        bars: Bars from top to bottom. One without a value is labelled "not measured".
        heading: Heading of the figure.
        label: Label of the axis, with the unit.
        is_fraction: Whether the axis ends at 1 and is labelled in percent.
    """
    names = [wrap_name(bar.name, 54) for bar in bars]
    ends = [end for bar in bars for end in (bar.value, bar.high) if end is not None]
    end = 1.0 if is_fraction else max([*ends, 1e-9])
    # Room for the label beside the longest bar.
    room = 0.019 * max(len(bar.text) for bar in bars)
    # Heights are in inches: a name has as many lines as it needs.
    heights = [_LINE_INCHES * len(lines) + _BAR_INCHES for lines in names]

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.grid(visible=False, axis="y")
        top = 0.0
        for bar, lines, height in zip(bars, names, heights, strict=True):
            text = "\n".join(lines)
            axes.text(0.008 * end, top + 0.03, text, fontsize=_NAME_POINTS, va="top")
            _draw_bar(axes, bar, top + height - 0.16, gap=0.012 * end)
            top += height
        axes.set_xlim(0, end * (1 + room))
        axes.set_ylim(top, 0)
        axes.set_yticks([])
        axes.set_xlabel(label)
        if is_fraction:
            axes.set_xticks(np.linspace(0, 1, 6))
            axes.xaxis.set_major_formatter(FuncFormatter(_percent))

    return render(draw, heading, body_inches=sum(heights) + 0.62)


def draw_front(points: Sequence[Point], heading: Heading) -> Drawing:
    """Draw accuracy against latency, with a step line through the Pareto front.

    An arm is on the front if no other is both faster and more accurate. Its marker is
    filled; the others are hollow.
    """

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        front = sorted(
            (point.latency_ms[0], point.accuracy[0])
            for point in points
            if point.is_on_front
        )
        (step,) = axes.step(
            [one[0] for one in front],
            [one[1] for one in front],
            where="post",
            color=LIGHT["muted"],
            linewidth=1.2,
            linestyle=(0, (4, 2)),
        )
        for point in points:
            (x, left, right), (y, low, high) = point.latency_ms, point.accuracy
            color = _color(point.number)
            axes.plot([left, right], [y, y], color=color, linewidth=0.9, alpha=0.7)
            axes.plot([x, x], [low, high], color=color, linewidth=0.9, alpha=0.7)
            axes.plot([x], [y], **_point_style(point))
        axes.set_xlim(left=0)
        axes.set_xlabel("latency, ms for one image")
        axes.set_ylabel("accuracy")
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        _legend_above(axes, [(step, "Pareto front")] if len(front) > 1 else [])
        handles = [Line2D([], [], **_point_style(point)) for point in points]
        _legend_below(panels, handles, names)

    names = [point.name for point in points]
    legend_inches = _legend_inches(names, 1)
    return render(draw, heading, body_inches=3.2 + legend_inches)


def _line(arm: ArmCurves, key: str) -> NDArray[np.float64] | None:
    """Return the mean over seeds; `None` if no seed has a value."""
    lines = [
        # What was not measured is None, and becomes nan.
        np.array([getattr(row, key) for row in rows], float)
        for rows in arm.histories
    ]
    lines = [line for line in lines if np.isfinite(line).any()]
    if not lines:
        return None
    shared = min(len(line) for line in lines)
    mean: NDArray[np.float64] = np.mean([line[:shared] for line in lines], axis=0)
    return mean


def _draw_line(
    axes: Axes, arm: ArmCurves, subset: str, line: NDArray[np.float64]
) -> None:
    is_val = subset == "val"
    axes.plot(
        np.arange(1, len(line) + 1),
        line,
        color=_color(arm.number),
        linestyle=_SUBSETS[subset],
        linewidth=1.8 if is_val else 1.2,
        marker=_marker(arm.number),
        markersize=4.5 if is_val else 3.2,
        markerfacecolor=_color(arm.number) if is_val else LIGHT["surface"],
        # Markers on each of fifty epochs would merge into a band.
        markevery=max(1, len(line) // 10),
    )


def _scale(axes: Axes, measure: str) -> None:
    if measure == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        return
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    usual = float(np.nanmedian([line[0] for line in lines]))
    # On a linear scale, one exploded loss would flatten all others.
    if max(np.nanmax(line) for line in lines) > _EXPLODED * usual:
        axes.set_yscale("log")
        # The default labels are formulas, which the style of all figures switches off.
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(f"{axes.get_ylabel()} (log scale)")
    else:
        axes.set_ylim(bottom=0)


def _percent(fraction: float, _: object) -> str:
    """Return the label of a tick: 80 %, or 82.5 % if the ticks are close."""
    return f"{round(100 * fraction, 6):g} %"


def _align(panels: Sequence[Axes]) -> None:
    """Give panels below each other the same range of epochs."""
    right = max(axes.get_xlim()[1] for axes in panels)
    left = min(axes.get_xlim()[0] for axes in panels)
    for axes in panels:
        axes.set_xlim(left, right)


def _draw_bar(axes: Axes, bar: Bar, y: float, *, gap: float) -> None:
    """Draw a bar with its whisker, and write its value after both."""
    is_known = bar.value is not None
    reach = bar.value or 0.0
    if is_known:
        axes.barh(y, reach, height=0.16, color=LIGHT["heat"], alpha=0.75)
    if is_known and bar.low is not None and bar.high is not None:
        axes.plot(
            [bar.low, bar.high],
            [y, y],
            color=LIGHT["ink"],
            linewidth=1.3,
            marker="|",
            markersize=6,
        )
        reach = max(reach, bar.high)
    axes.text(
        reach + gap,
        y,
        bar.text if is_known else "not measured",
        fontsize=_NAME_POINTS,
        fontweight="bold" if is_known else "normal",
        color=LIGHT["ink" if is_known else "muted"],
        va="center",
    )


def _color(number: int) -> str:
    return LIGHT[SERIES[number % len(SERIES)]]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _point_style(point: Point) -> dict[str, Any]:
    return {
        "color": _color(point.number),
        "marker": _marker(point.number),
        "markersize": 7,
        "markerfacecolor": _color(point.number)
        if point.is_on_front
        else LIGHT["surface"],
        "linestyle": "",
    }


def _arm_key(number: int) -> Line2D:
    return Line2D([], [], color=_color(number), marker=_marker(number), linewidth=1.8)


def _subset_key(subset: str) -> tuple[Line2D, str]:
    line = Line2D([], [], color=LIGHT["muted"], linestyle=_SUBSETS[subset])
    return line, _NOT_USED if subset == "test" else subset


def _legend_shape(names: Sequence[str], num_panels: int) -> tuple[int, int]:
    """Return the columns of a legend, and the letters that a name may have."""
    points = 72 * PANEL_INCHES * num_panels - 20
    longest = max(len(name) for name in names)
    # 50 points for the line, its gap and the gap to the next column.
    columns = int(points // (longest * _LETTER_POINTS + 50)) or 1
    columns = min(columns, len(names), 4)
    return columns, int((points / columns - 50) // _LETTER_POINTS)


def _legend_inches(names: Sequence[str], num_panels: int) -> float:
    columns, num_letters = _legend_shape(names, num_panels)
    num_lines = sum(len(wrap_name(name, num_letters)) for name in names)
    # Names of several lines stand in one column.
    return (_LINE_INCHES + 0.03) * -(-num_lines // columns) + 0.15


def _legend_below(
    panels: Sequence[Axes], handles: Sequence[Line2D], names: Sequence[str]
) -> None:
    """Put one legend of the arms below all panels.

    Args:
        panels: Panels of one row, whose number gives the width of the figure.
        handles: One line per arm.
        names: Names of the arms.
    """
    columns, num_letters = _legend_shape(names, len(panels))
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    figure.legend(
        handles,
        ["\n".join(wrap_name(name, num_letters)) for name in names],
        loc="outside lower left",
        ncols=columns,
        fontsize=_NAME_POINTS,
        handlelength=2.6,
        columnspacing=1.4,
    )


def _legend_above(axes: Axes, keys: Sequence[tuple[Line2D, str]]) -> None:
    """Put the key of the subsets above a panel, where it covers no line."""
    axes.legend(
        [line for line, _ in keys],
        [words for _, words in keys],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        fontsize=_NAME_POINTS,
        borderpad=0.2,
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=2.4,
    )
