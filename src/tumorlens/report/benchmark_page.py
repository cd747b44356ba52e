"""The page of a benchmark: the content of `benchmark.json`, with three figures.

The figures are those of the baseline study: accuracy, latency and size, a bar for each
artefact. Nothing is measured here; `tumorlens.deploy.benchmark.session` has done that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from tumorlens.deploy.benchmark.results import Benchmark, read_benchmark
from tumorlens.files import write_text
from tumorlens.report.comparison_figures import Bar, draw_bars
from tumorlens.report.drawing import Heading
from tumorlens.report.page import (
    render_page,
    write_decimal,
    write_megabytes,
    write_percent,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.report.drawing import Drawing


def write_benchmark_page(path_of_benchmark_json: Path, *, out: Path) -> Path:
    """Write the page of a benchmark, and the folder `figures` beside it.

    Args:
        path_of_benchmark_json: Results of `tumorlens benchmark`.
        out: The page to write. It links to `benchmark.csv` in its own folder.

    Returns:
        `out`.

    Raises:
        RunError: `benchmark.json` is missing, damaged or of another version.
        DataError: The page cannot be written.
    """
    found = read_benchmark(path_of_benchmark_json)
    shown = []
    for name, (drawing, alt) in _draw(found).items():
        drawing.write(out.parent / "figures", name)
        shown.append({"svg": Markup(drawing.inline(name)), "alt": alt})
    page = render_page(
        "benchmark.html.j2",
        {
            "found": found,
            "figures": shown,
            "runtimes": sorted({one.runtime for one in found.rows}),
            "devices": sorted({one.device for one in found.rows}),
            "val_words": _val_words(found),
            "is_compared": any(one.ratios for one in found.rows),
        },
    )
    write_text(out, page)
    return out


def _val_words(found: Benchmark) -> str:
    """Return the number of val images behind the accuracies, by run if it differs.

    Empty where no accuracy is known.
    """
    judged = dict.fromkeys(
        (one.run, one.accuracy.num_images) for one in found.rows if one.accuracy
    )
    if len({num for _, num in judged}) < 2:
        return "".join(f"{num:,} images" for _, num in [*judged][:1])
    return ", ".join(f"{run}: {num:,} images" for run, num in judged)


def _draw(found: Benchmark) -> dict[str, tuple[Drawing, str]]:
    """Return the figures by file name, each with its text alternative."""
    bars = {
        "accuracy": [
            Bar(
                one.name,
                one.accuracy.value if one.accuracy else None,
                None,
                None,
                write_percent(one.accuracy.value if one.accuracy else None),
            )
            for one in found.rows
        ],
        "latency": [
            Bar(
                one.name,
                one.latency_ms.value,
                one.latency_ms.low,
                one.latency_ms.high,
                f"{write_decimal(one.latency_ms.value, 2)} ms",
            )
            for one in found.rows
        ],
        "size": [
            Bar(
                one.name,
                None if one.size_bytes is None else one.size_bytes / 1e6,
                None,
                None,
                write_megabytes(one.size_bytes),
            )
            for one in found.rows
        ],
    }
    words = {
        "accuracy": ("Accuracy on val", "accuracy of the artefact on val"),
        "latency": ("Latency", "ms for one image: median with its 95 % interval"),
        "size": ("Size on disk", "MB"),
    }
    subtitle = ", ".join(dict.fromkeys(one.run for one in found.rows))
    return {
        name: (
            draw_bars(
                bars[name],
                Heading(title, subtitle),
                label=label,
                is_fraction=name == "accuracy",
            ),
            f"{title}: {_read_aloud(bars[name])}",
        )
        for name, (title, label) in words.items()
        if any(bar.value is not None for bar in bars[name])
    }


def _read_aloud(bars: list[Bar]) -> str:
    return "; ".join(f"{bar.name} {bar.text}" for bar in bars)
