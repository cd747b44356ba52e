"""A comparison as tables: CSV for programs, Markdown and LaTeX for people.

All of it is in `comparison.json`; nothing is measured here. The CSV has every number
as it is, fractions among them; the tables for people have percentages, and no winner in
bold: which arm is first is often chance.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from tumorlens.files import write_text
from tumorlens.text import (
    NOT_DEFINED,
    decimal,
    duration,
    large_number,
    megabytes,
    one_line,
    p_value,
    percent,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.runs.estimate import Estimate
    from tumorlens.runs.measures import Percentiles
    from tumorlens.study.comparison import ArmMeasures, ComparedArm, Comparison

Rows = tuple[list[str], list[list[str]]]
"""The heading of a table, and its rows."""

_ESTIMATES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")
_EPOCHS = (
    ("last epoch", "last_epoch_accuracy"),
    ("best val epoch", "best_val_epoch_accuracy"),
    ("best test epoch*", "best_test_epoch_accuracy"),
)
_LONG_ONLY = (
    *(name for name, _ in _EPOCHS),
    *("macro F1", "log loss", "ECE", "MACs", "size", "images/s"),
)


def table_rows(comparison: Comparison, *, is_short: bool = False) -> Rows:
    """Return the table of the arms for people.

    Args:
        comparison: The comparison.
        is_short: Whether to keep to what fits a terminal: the accuracies and costs.

    Returns:
        A row for each arm. Columns that would be empty are left out.
    """
    arms = comparison.arms
    columns = [
        (name, write)
        for name, write in _columns(comparison)
        if any(write(arm) != NOT_DEFINED for arm in arms)
        and not (is_short and name.startswith(_LONG_ONLY))
    ]
    heading = ["arm", *(name for name, _ in columns)]
    return heading, [[arm.name, *(write(arm) for _, write in columns)] for arm in arms]


def pair_rows(comparison: Comparison) -> Rows:
    """Return the table of the pairs for people, a row for each."""
    heading = [
        *("protocol", "first", "second", "images", "points (95 %)"),
        *("p", "p, Holm", "verdict"),
    ]
    return heading, [
        [
            *(pair.protocol, pair.first, pair.second),
            f"{pair.num_images:,}",
            pair.difference.percentage.replace(" %", ""),
            *map(p_value, (pair.p, pair.p_holm)),
            pair.verdict,
        ]
        for pair in comparison.pairs
    ]


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.csv`, `.md` and `.tex`. Raises what `write_text` raises."""
    write_text(folder / "comparison.csv", as_csv(comparison))
    write_text(folder / "comparison.md", as_markdown(comparison))
    write_text(folder / "comparison.tex", as_latex(comparison))


def as_csv(comparison: Comparison) -> str:
    """Return one line per arm and protocol, every number as it is in the JSON.

    Arms without measures have one line with an empty protocol.
    """
    keys = list(dict.fromkeys(key for arm in comparison.arms for key in arm.settings))
    rows = []
    for arm in comparison.arms:
        settings = {key: arm.settings.get(key) for key in keys}
        costs = {
            "num_parameters": arm.num_parameters,
            "macs": arm.macs,
            "size_bytes": arm.size_bytes,
            **_percentiles("latency_ms", arm.latency_ms),
            "train_seconds": arm.train_seconds,
            "images_per_second": arm.images_per_second,
        }
        rows += [
            {"arm": arm.name, **settings, "model": arm.model, "protocol": protocol}
            | _csv_measures(arm.measures.get(protocol))
            | costs
            for protocol in arm.measures or ("",)
        ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(comparison: Comparison) -> str:
    """Return the sentences, the table of the arms and that of the pairs."""
    parts = [f"# {markdown_text(comparison.title)}"]
    parts += [markdown_text(sentence) for sentence in comparison.summary]
    parts += [markdown_table(rows) for rows in _tables(comparison)]
    return "\n\n".join(parts) + "\n"


def as_latex(comparison: Comparison) -> str:
    """Return the two tables as plain `tabular`s, which need no package."""
    parts = [
        f"% {one_line(comparison.title)}",
        *(f"% {one_line(sentence)}" for sentence in comparison.summary),
        *(_table(rows, _latex, "latex_raw") for rows in _tables(comparison)),
    ]
    return "\n".join(parts) + "\n"


def _tables(comparison: Comparison) -> list[Rows]:
    arms, pairs = table_rows(comparison), pair_rows(comparison)
    return [arms, pairs] if comparison.pairs else [arms]


def _columns(
    comparison: Comparison,
) -> list[tuple[str, Callable[[ComparedArm], str]]]:
    """Return the heading of each column, and what writes its cell for an arm."""
    headline = comparison.headline_protocol
    protocols = dict.fromkeys(
        [headline, *(name for arm in comparison.arms for name in arm.measures)]
    )
    marked = {name: f"{name}{_mark(comparison, name)}" for name in protocols}
    columns = [
        (f"accuracy, {marked[protocol]}", _measure(protocol, "accuracy", _percentage))
        for protocol in protocols
    ]
    columns += [
        (f"{name}, {marked[protocol]}", _measure(protocol, key, percent))
        for protocol in protocols
        for name, key in _EPOCHS
    ]
    return [
        *columns,
        (f"macro F1, {marked[headline]}", _measure(headline, "macro_f1", _percentage)),
        (f"log loss, {marked[headline]}", _measure(headline, "log_loss", decimals)),
        (f"ECE, {marked[headline]}", _measure(headline, "ece", decimals)),
        ("parameters", lambda arm: large_number(arm.num_parameters)),
        ("MACs", lambda arm: large_number(arm.macs)),
        ("size", lambda arm: megabytes(arm.size_bytes)),
        ("latency", lambda arm: _milliseconds(arm.latency_ms)),
        ("training", lambda arm: duration(arm.train_seconds)),
        ("images/s", lambda arm: decimal(arm.images_per_second, 0)),
    ]


def _mark(comparison: Comparison, protocol: str) -> str:
    """Return the note in a heading on a protocol that trains on test images."""
    leaks = comparison.leaks(protocol)
    return " (leaks)" if any(leak.is_believable is False for leak in leaks) else ""


def _measure(
    protocol: str, name: str, write: Callable[[Any], str]
) -> Callable[[ComparedArm], str]:
    def cell(arm: ComparedArm) -> str:
        measures = arm.measures.get(protocol)
        return write(None if measures is None else getattr(measures, name))

    return cell


def _percentage(estimate: Estimate | None) -> str:
    return NOT_DEFINED if estimate is None else estimate.percentage


def decimals(estimate: Estimate | None) -> str:
    """Return a measure and its bounds with three decimals."""
    if estimate is None:
        return NOT_DEFINED
    bounds = ""
    if estimate.low is not None:
        bounds = f" ({decimal(estimate.low)} to {decimal(estimate.high)})"
    return decimal(estimate.value) + bounds


def _milliseconds(time: Percentiles | None) -> str:
    if time is None:
        return NOT_DEFINED
    p5, p95 = decimal(time.p5, 1), decimal(time.p95, 1)
    return f"{decimal(time.value, 1)} ms ({p5} to {p95})"


def _percentiles(name: str, time: Percentiles | None) -> dict[str, float | None]:
    return {
        name: time.value if time else None,
        f"{name}_p5": time.p5 if time else None,
        f"{name}_p95": time.p95 if time else None,
    }


def _bounds(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    return {
        name: estimate.value if estimate else None,
        f"{name}_low": estimate.low if estimate else None,
        f"{name}_high": estimate.high if estimate else None,
    }


def _csv_measures(measures: ArmMeasures | None) -> dict[str, Any]:
    plain = (*(key for _, key in _EPOCHS), "best_test_epoch")
    row: dict[str, Any] = {
        name: getattr(measures, name, None) for name in ("num_seeds", "num_images")
    }
    for name in _ESTIMATES:
        row |= _bounds(name, getattr(measures, name, None))
    row |= {name: getattr(measures, name, None) for name in plain}
    leak = measures.leak if measures else None
    return row | {
        "is_believable": leak.is_believable if leak else None,
        "leak": leak.words if leak else None,
    }


def markdown_table(rows: Rows) -> str:
    """Return a table in Markdown, its columns lined up to be read as text too."""
    return _table(rows, markdown_text, "pipe")


def _table(rows: Rows, escape: Callable[[str], str], kind: str) -> str:
    heading, body = rows
    table: str = tabulate(
        [list(map(escape, row)) for row in body],
        headers=list(map(escape, heading)),
        tablefmt=kind,
        colalign=["left", *["right"] * (len(heading) - 1)],
        disable_numparse=True,
    )
    return table


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows as it is.

    Names are the user's: none may end a cell or become markup.
    """
    special = "\\`*_[]<>|#"
    return "".join(f"\\{sign}" if sign in special else sign for sign in one_line(text))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(sign, sign) for sign in one_line(text))
    # After the end of a row, a bracket or star would be an option of that end.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped
