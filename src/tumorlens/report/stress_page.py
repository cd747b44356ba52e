"""The page of a stress test, `stress.html`: one figure, one table, the worst cases.

Nothing is measured here: numbers come from `stress.json`. The pictures of the worst
cases are made again from their images, since a corruption follows from seed and path.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from tumorlens.data.corruptions import CORRUPTIONS, EQUAL_SIZES, bounded, corrupt
from tumorlens.data.images import ImageLimits
from tumorlens.data.sets import sets_of
from tumorlens.files import write_text
from tumorlens.report.drawing import LIGHT, SERIES, Drawing, Heading, render
from tumorlens.report.measured import PageFigure
from tumorlens.report.page import (
    Picture,
    WrittenPage,
    load_picture,
    render_page,
    write_percent,
    write_points,
)
from tumorlens.runs.stress import read_stress
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from tumorlens.runs.folder import Run
    from tumorlens.runs.stress import Stress, StressCorruption, StressLevel, WorstCase

_ROW_INCHES = 0.34


@dataclass(frozen=True)
class _Case:
    """A worst case with its pictures."""

    case: WorstCase
    corruption: StressCorruption
    amount: float
    before: Picture
    after: Picture


def write_stress_page(
    run: Run, path: Path, *, data: Path | Sequence[Path] | None = None
) -> WrittenPage:
    """Write the page of a stress test beside its file, and its figure into `figures`.

    Args:
        run: The run.
        path: A `stress.json` of the run.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
            Missing images are named on the page instead of shown.

    Returns:
        The path of the page, and the pictures that it lacks.

    Raises:
        RunError: The file is missing or damaged.
        DataError: The page cannot be written.
    """
    found = read_stress(path)
    drawing = draw_stress(found)
    drawing.write(run.figures_dir, path.stem)
    cases = _cases(run, found, data)
    equal = next((one for one in found.corruptions if one.name == EQUAL_SIZES), None)
    page = render_page(
        "stress.html.j2",
        {
            "found": found,
            "leak": found.leak,
            "corruptions": [one for one in found.by_loss if one is not equal],
            "levels": sorted(
                {level.level for one in found.corruptions for level in one.levels}
            ),
            "equal": equal,
            "equal_words": _equal_words(equal.levels[0]) if equal else "",
            "drawn": PageFigure(Markup(drawing.inline("stress")), _in_words(found)),
            "cases": cases,
            "file": path.name,
        },
    )
    target = path.with_suffix(".html")
    write_text(target, page)
    missing = [one.before.why_not for one in cases if one.before.why_not]
    return WrittenPage(target, len(missing), missing[0] if missing else "")


def draw_stress(found: Stress) -> Drawing:
    """Draw the accuracy at each level, a row for each corruption, the worst first."""
    heading = Heading(
        "Accuracy on worse images",
        f"{found.model} · {found.protocol} · {found.subset} · "
        f"{counted(found.num_images, 'image')} in {counted(found.num_groups, 'group')}",
        found.leak.words if found.leak.leaks else "",
    )
    rows = found.by_loss
    clean = found.clean.value or 0.0

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.axvline(clean, color=LIGHT["muted"], linestyle="--", linewidth=1.2)
        for y, one in enumerate(rows):
            _draw_row(axes, y, one, clean)
        axes.set_yticks(range(len(rows)), [one.title for one in rows])
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["ink"], labelsize=9.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_xlabel("accuracy")
        axes.legend(
            handles=_legend(),
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=2,
            fontsize=8.5,
            columnspacing=1.2,
            handletextpad=0.5,
            borderpad=0.2,
        )

    return render(draw, heading, body_inches=1.2 + _ROW_INCHES * len(rows))


def _draw_row(axes: Axes, y: int, one: StressCorruption, clean: float) -> None:
    color = LIGHT[SERIES[0]]
    worst = one.most_lost
    if worst.change.low is not None and worst.change.high is not None:
        bounds = [clean + worst.change.low, clean + worst.change.high]
        axes.plot(bounds, [y, y], color=LIGHT["heat"], linewidth=5, alpha=0.35)
    values = [level.accuracy.value or 0.0 for level in one.levels]
    axes.plot(values, [y] * len(values), color=color, linewidth=0.9)
    for level, value in zip(one.levels, values, strict=True):
        axes.plot(
            [value],
            [y],
            marker="o",
            markersize=_size(level.level),
            color=color,
            markerfacecolor=color if level.is_found else LIGHT["surface"],
            markeredgewidth=1.1,
            clip_on=False,
        )


def _size(level: int) -> float:
    return 2.6 + 1.1 * level


def _legend() -> list[Line2D]:
    color = LIGHT[SERIES[0]]

    def dot(size: float, fill: str, words: str) -> Line2D:
        return Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=color,
            markerfacecolor=fill,
            markersize=size,
            label=words,
        )

    return [
        Line2D([], [], color=LIGHT["muted"], linestyle="--", label="clean"),
        dot(_size(3), color, "more than chance"),
        Line2D(
            [],
            [],
            color=LIGHT["heat"],
            linewidth=5,
            alpha=0.35,
            label="95 %, worst level",
        ),
        dot(_size(3), LIGHT["surface"], "may be chance"),
    ]


def _in_words(found: Stress) -> str:
    """Return the figure for who cannot see it."""
    rows = [
        f"{one.title}: "
        + ", ".join(write_percent(level.accuracy.value) for level in one.levels)
        for one in found.by_loss
    ]
    return (
        f"Accuracy at each level, {write_percent(found.clean.value)} clean. "
        f"{'; '.join(rows)}."
    )


def _equal_words(level: StressLevel) -> str:
    """Return what making all sizes equal says about shortcuts."""
    words = (
        f"Making all sizes equal changes accuracy by {write_points(level.change.value)}"
        " points"
    )
    if not level.is_found:
        return (
            f"{words}, which may be chance: no sign that the model goes by the size, "
            "shape or border of a file."
        )
    if level.change.value > 0:
        return f"{words}: it is better without them."
    return (
        f"{words}, which is more than chance. Compare it with down-sampling to as many "
        "samples: a loss beyond that one points to the size, shape or border of the "
        "files as a shortcut."
    )


def _cases(run: Run, found: Stress, data: Path | Sequence[Path] | None) -> list[_Case]:
    """Return the worst cases with their pictures, in the order of the table."""
    config = run.config.data
    limits = ImageLimits(
        max_bytes=int(config.max_file_mib * 2**20), max_pixels=config.max_pixels
    )
    root = sets_of(config, data)
    worst = {one.corruption: one for one in found.worst}
    cases = []
    for one in found.by_loss:
        case = worst.get(one.name)
        if case is None or one.name not in CORRUPTIONS:
            continue
        show = partial(load_picture, root, case.path, limits=limits)
        cases.append(
            _Case(
                case=case,
                corruption=one,
                amount=CORRUPTIONS[one.name].amounts[case.level - 1],
                before=show(),
                after=show(change=partial(_corrupted, case=case, seed=found.seed)),
            )
        )
    return cases


def _corrupted(
    image: NDArray[np.uint8], *, case: WorstCase, seed: int
) -> NDArray[np.uint8]:
    corruption = CORRUPTIONS[case.corruption]
    return corrupt(bounded(image), corruption, case.level, seed=seed, path=case.path)
