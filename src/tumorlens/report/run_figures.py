"""The figures of a run and of a learning-rate test, as SVG and PNG.

The style of all figures is in `tumorlens.report.drawing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from tumorlens.report.drawing import (
    LIGHT,
    PANEL_INCHES,
    SERIES,
    Drawing,
    Heading,
    render,
    shortened,
)
from tumorlens.text import percent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tumorlens.runs.estimate import CalibrationBins
    from tumorlens.runs.measures import RocCurve
    from tumorlens.runs.trust import Calibration
    from tumorlens.training.lr_find import LrFindResult

_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
_MARKERS = ("o", "s", "^", "D")


def draw_curves(
    histories: Sequence[Sequence[Mapping[str, Any]]],
    heading: Heading,
    *,
    measures: Sequence[str] = ("loss", "accuracy"),
) -> Drawing:
    """Draw loss and accuracy over the epochs, one panel each, train and val in both.

    Several histories are folds: a thin line each, and a thick one for their mean over
    the epochs that all of them reached.

    Args:
        histories: Rows of `history.jsonl`, one sequence per run or fold.
        heading: Text above the figure.
        measures: Measures to draw, "loss" or "accuracy", from left to right.
    """

    def draw(panels: Sequence[Axes]) -> None:
        for axes, measure in zip(panels, measures, strict=True):
            for subset, color, marker, dash in (
                ("train", SERIES[1], "s", _DASHES[1]),
                ("val", SERIES[0], "o", "-"),
            ):
                _draw_subset(
                    axes,
                    histories,
                    f"{subset}_{measure}",
                    label=subset,
                    style={"color": LIGHT[color], "marker": marker, "linestyle": dash},
                )
            _mark_kept_epoch(axes, histories)
            axes.set_xlabel("epoch")
            axes.set_ylabel(measure)
            # One epoch has one tick: two would have fractions.
            axes.xaxis.set_major_locator(
                MaxNLocator(nbins=8, integer=True, min_n_ticks=1)
            )
            if measure == "accuracy":
                axes.yaxis.set_major_formatter(
                    PercentFormatter(1.0, decimals=0, symbol=" %")
                )
            else:
                axes.set_ylim(bottom=0)
            _legend_above(axes)

    return render(draw, heading, columns=len(measures), body_inches=3.1)


def draw_confusion(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], heading: Heading
) -> Drawing:
    """Draw the confusion matrix: in each cell the count and its share of the row."""
    counts = np.asarray(matrix, dtype=float)  # (C, C), rows are true classes
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    # With more than some ten classes the figure grows, so that cells stay readable.
    inches = max(PANEL_INCHES, 0.52 * len(classes) + 1.6)

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.grid(visible=False)
        for row, column in np.ndindex(*counts.shape):
            share = shares[row, column]
            # At most 0.65 opaque: ink stays readable on the darkest cell.
            axes.add_patch(
                mpl.patches.Rectangle(
                    (column - 0.49, row - 0.49),
                    0.98,
                    0.98,
                    facecolor=LIGHT["heat"],
                    alpha=0.03 + 0.62 * share,
                    linewidth=0,
                )
            )
            axes.text(
                column,
                row - 0.04,
                f"{counts[row, column]:.0f}",
                ha="center",
                va="bottom",
                fontsize=12,
                fontweight="bold" if row == column else "normal",
                color=LIGHT["ink" if share else "muted"],
            )
            axes.text(
                column,
                row + 0.08,
                percent(share) if share else "",
                ha="center",
                va="top",
                fontsize=8.5,
            )
        names = [shortened(name) for name in classes]
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0, labelcolor=LIGHT["ink"], labelsize=9.5)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        for spine in axes.spines.values():
            spine.set_visible(False)

    return render(draw, heading, panel_inches=inches, body_inches=0.78 * inches)


def draw_roc(
    roc: Mapping[str, RocCurve],
    auroc: Mapping[str, float | None],
    heading: Heading,
) -> Drawing:
    """Draw the ROC curve of each class against the rest, with its AUROC in the legend.

    Args:
        roc: Class name -> curve.
        auroc: Class name -> area under the curve.
        heading: Text above the figure.
    """

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.9, linestyle=":")
        handles, labels = [], []
        for number, (name, points) in enumerate(roc.items()):
            if not points.fpr:
                continue
            handles += axes.plot(
                points.fpr,
                points.tpr,
                color=LIGHT[SERIES[number % len(SERIES)]],
                linestyle=_DASHES[number % len(_DASHES)],
                # Room for a line on the border of the square.
                clip_on=False,
            )
            area = auroc.get(name)
            area_text = "n/a" if area is None else f"{area:.3f}"
            labels.append(f"{area_text}  {shortened(name)}")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_aspect("equal")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        if handles:
            axes.legend(
                handles,
                labels,
                title="AUROC, class against the rest",
                loc="lower right",
                fontsize=9.5,
                title_fontsize=9,
                alignment="left",
                handlelength=2.6,
                frameon=True,
                framealpha=0.9,
                facecolor=LIGHT["surface"],
                edgecolor="none",
            )

    return render(draw, heading, body_inches=4.3)


def draw_calibration(calibration: CalibrationBins, heading: Heading) -> Drawing:
    """Draw accuracy over confidence per bin, and below it the images in each bin.

    Args:
        calibration: Bins without images are left out of the drawing.
        heading: Text above the figure.
    """
    bins = [
        (confidence, accuracy, int(count))
        for confidence, accuracy, count in zip(
            calibration.confidence,
            calibration.accuracy,
            calibration.count,
            strict=True,
        )
        if count and confidence is not None and accuracy is not None
    ]

    def draw(panels: Sequence[Axes]) -> None:
        upper, lower = panels
        upper.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.9, linestyle=":")
        upper.annotate(
            "perfect calibration",
            (0.06, 0.09),
            rotation=45,
            rotation_mode="anchor",
            transform_rotates_text=True,
            fontsize=8.5,
            color=LIGHT["muted"],
        )
        upper.plot(
            [one[0] for one in bins],
            [one[1] for one in bins],
            color=LIGHT[SERIES[0]],
            marker="o",
            clip_on=False,
        )
        upper.set_ylim(0, 1)
        upper.set_ylabel("accuracy")
        upper.tick_params(labelbottom=False)
        lower.vlines(
            [one[0] for one in bins],
            0,
            [one[2] for one in bins],
            color=LIGHT["heat"],
            linewidth=7,
        )
        for confidence, _, count in bins:
            lower.annotate(
                str(count),
                (confidence, count),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=LIGHT["ink"],
            )
        lower.set_ylim(0, 1.2 * max([one[2] for one in bins], default=1))
        lower.set_ylabel("images")
        lower.set_xlabel("confidence: probability of the predicted class")
        lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        for axes in panels:
            axes.set_xlim(0, 1.02)

    return render(draw, heading, rows=(3, 1.1), body_inches=4.3)


def draw_reliability(
    before: Calibration, after: Calibration, heading: Heading
) -> Drawing:
    """Draw accuracy with its interval over confidence, before and after a temperature.

    Args:
        before: Bins of the probabilities as the network gives them.
        after: Those divided by the temperature.
        heading: Text above the figure.
    """

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.plot([0, 1], [0, 1], color=LIGHT["muted"], linewidth=0.9, linestyle=":")
        for name, found, color, marker in (
            ("before", before, SERIES[1], "s"),
            ("after", after, SERIES[0], "o"),
        ):
            points = [
                (confidence, bin_.value, bin_.low, bin_.high)
                for confidence, bin_ in zip(
                    found.bins.confidence, found.accuracy_by_bin, strict=True
                )
                if confidence is not None and bin_.value is not None
            ]
            axes.plot(
                [one[0] for one in points],
                [one[1] for one in points],
                color=LIGHT[color],
                marker=marker,
                label=f"{name} the temperature",
                clip_on=False,
            )
            for confidence, _, low, high in points:
                if low is not None and high is not None:
                    axes.vlines(
                        confidence, low, high, color=LIGHT[color], linewidth=1.2
                    )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence: probability of the predicted class")
        axes.set_ylabel("accuracy, with 95 % intervals")
        _legend_above(axes)

    return render(draw, heading, body_inches=4.3)


def write_lr_plot(found: LrFindResult, out: Path) -> tuple[Path, Path]:
    """Write `lr_find.svg` and `lr_find.png`.

    Args:
        found: The content of `lr_find.json`.
        out: Folder of the files.

    Returns:
        Paths of both.

    Raises:
        DataError: They cannot be written.
    """
    return draw_lr_curve(found).write(out, "lr_find")


def draw_lr_curve(found: LrFindResult) -> Drawing:
    """Draw the loss of each step over its learning rate, raw and smoothed.

    Args:
        found: The content of `lr_find.json`.
    """
    heading = Heading(
        "Learning-rate range test",
        f"{found.model} · {found.optimizer} · batches of {found.batch_size} "
        f"of {found.num_train:,} train images",
        # A figure that is cut out of its page must still show that there is no answer.
        "" if found.suggestion else "No suggestion: the loss does not fall.",
    )

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.plot(
            found.lrs,
            found.losses,
            color=LIGHT["muted"],
            linestyle="",
            marker=".",
            markersize=3,
            label="each batch",
        )
        axes.plot(found.lrs, found.smoothed, color=LIGHT[SERIES[0]], label="smoothed")
        for value, words, dash in (
            (found.suggestion, "falls fastest", "-"),
            (found.tenth_of_minimum, "a tenth of the lowest", ":"),
        ):
            if value:
                axes.axvline(
                    value,
                    color=LIGHT[SERIES[1]],
                    linewidth=1.1,
                    linestyle=dash,
                    label=f"{words}: {value:g}",
                )
        axes.set_xscale("log")
        # By default matplotlib writes powers as formulas, which are switched off.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:g}"))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("train loss")
        # A diverged loss may be a million: the limit follows the part before.
        lowest = found.smoothed.index(min(found.smoothed))
        axes.set_ylim(0, 2 * max(found.smoothed[: lowest + 1]))
        _legend_above(axes)

    return render(draw, heading, body_inches=3.4)


def _draw_subset(
    axes: Axes,
    histories: Sequence[Sequence[Mapping[str, Any]]],
    key: str,
    *,
    label: str,
    style: dict[str, Any],
) -> None:
    lines = [np.array([row.get(key) for row in rows], float) for rows in histories]
    if len(lines) == 1:
        axes.plot(np.arange(1, len(lines[0]) + 1), lines[0], label=label, **style)
        return
    for line in lines:
        thin = {**style, "marker": "", "linewidth": 0.8, "alpha": 0.55}
        axes.plot(np.arange(1, len(line) + 1), line, **thin)
    shared = min(len(line) for line in lines)
    mean = np.mean([line[:shared] for line in lines], axis=0)
    axes.plot(np.arange(1, shared + 1), mean, label=f"{label}, mean of folds", **style)


def _mark_kept_epoch(
    axes: Axes, histories: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    """Mark the epoch of the kept weights; not with folds, where each has its own."""
    if len(histories) != 1:
        return
    kept = [row["epoch"] for row in histories[0] if row.get("is_best")]
    if kept:
        axes.axvline(
            kept[-1],
            color=LIGHT["muted"],
            linewidth=0.9,
            linestyle=":",
            label=f"kept: epoch {kept[-1]}",
        )


def _legend_above(axes: Axes) -> None:
    """Put the legend between title and panel, where it covers no line."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        fontsize=9.5,
        borderpad=0.2,
        borderaxespad=0.2,
        columnspacing=1.4,
        handlelength=2.4,
    )
