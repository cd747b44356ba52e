"""The figure of a learning-rate range test, as SVG and PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.ticker import FuncFormatter

from tumorlens.files import write_bytes, write_text
from tumorlens.report.drawing import LIGHT, SERIES, Drawing, Heading, render

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes


def write_lr_plot(found: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write `lr_find.svg` and `lr_find.png`.

    Args:
        found: The content of `lr_find.json`.
        out: The folder that they go to.

    Returns:
        The paths of both.

    Raises:
        DataError: They cannot be written.
    """
    drawing = draw_lr_curve(found)
    svg, png = out / "lr_find.svg", out / "lr_find.png"
    write_text(svg, drawing.svg)
    write_bytes(png, drawing.png())
    return svg, png


def draw_lr_curve(found: Mapping[str, Any]) -> Drawing:
    """Draw the loss of each step over its learning rate, smoothed and as it was.

    Args:
        found: The content of `lr_find.json`.
    """
    heading = Heading(
        "Learning-rate range test",
        f"{found['model']} · {found['optimizer']} · batches of {found['batch_size']} "
        f"of {found['num_train']:,} train images",
        # A figure that is cut out of its page must not look as if it had an answer.
        "" if found["suggestion"] else "No suggestion: the loss does not fall.",
    )

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.plot(
            found["lrs"],
            found["losses"],
            color=LIGHT["muted"],
            linestyle="",
            marker=".",
            markersize=3,
            label="each batch",
        )
        axes.plot(
            found["lrs"], found["smoothed"], color=LIGHT[SERIES[0]], label="smoothed"
        )
        for key, words, dash in (
            ("suggestion", "falls fastest", "-"),
            ("tenth_of_minimum", "a tenth of the lowest", ":"),
        ):
            if found[key]:
                axes.axvline(
                    found[key],
                    color=LIGHT[SERIES[1]],
                    linewidth=1.1,
                    linestyle=dash,
                    label=f"{words}: {found[key]:g}",
                )
        axes.set_xscale("log")
        # matplotlib would write powers as formulas, which are switched off.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:g}"))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("train loss")
        # Where the loss blows up it may be a million: what matters lies before.
        lowest = found["smoothed"].index(min(found["smoothed"]))
        axes.set_ylim(0, 2 * max(found["smoothed"][: lowest + 1]))
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=2,
            fontsize=9.5,
            borderpad=0.2,
            borderaxespad=0.2,
            columnspacing=1.4,
        )

    return render(draw, heading, body_inches=3.4)
