"""A comparison as tables: CSV for programs, Markdown and LaTeX for people.

Everything is taken from the content of `comparison.json`; nothing is measured here.
The CSV has every number as it is, fractions among them; the tables for people have
percentages, and no winner in bold: which arm is first is often chance.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from tumorlens.files import write_text
from tumorlens.text import duration, interval, large_number, one_line, p_value, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

_NOT_KNOWN = "n/a"
_WITH_INTERVAL = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
_OF_EPOCHS = (
    ("last epoch", "last_epoch_accuracy"),
    ("best val epoch", "best_val_epoch_accuracy"),
    ("best test epoch*", "best_test_epoch_accuracy"),
)
_LONG_ONLY = (
    *(name for name, _ in _OF_EPOCHS),
    *("macro F1", "log loss", "ECE", "MACs", "size", "images/s"),
)


def table_rows(
    comparison: Mapping[str, Any], *, is_short: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return the table of the arms for people: its heading, and a row for each arm.

    Args:
        comparison: The content of `comparison.json`.
        is_short: Whether to keep to what fits a terminal: the accuracies and costs.

    Returns:
        Columns that would be empty are left out.
    """
    arms = comparison["arms"]
    columns = [
        (name, write)
        for name, write in _columns(comparison)
        if any(write(arm) for arm in arms)
        and not (is_short and name.startswith(_LONG_ONLY))
    ]
    heading = ["arm", *(name for name, _ in columns)]
    return heading, [
        [arm["name"], *(write(arm) or _NOT_KNOWN for _, write in columns)]
        for arm in arms
    ]


def pair_rows(comparison: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the table of the pairs for people: its heading, and a row for each."""
    heading = [
        *("protocol", "first", "second", "images", "points (95 %)"),
        *("p, McNemar", "p, bootstrap", "p, Holm", ""),
    ]
    return heading, [
        [
            *(pair["protocol"], pair["first"], pair["second"]),
            f"{pair['num_images']:,}",
            interval(pair["difference"]).replace(" %", ""),
            *(p_value(pair[name]) for name in ("p_mcnemar", "p_bootstrap", "p_holm")),
            "noise" if pair["is_noise"] else "real",
        ]
        for pair in comparison["pairs"]
    ]


def write_tables(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write `comparison.csv`, `.md` and `.tex`. Raises what `write_text` raises."""
    write_text(folder / "comparison.csv", as_csv(comparison))
    write_text(folder / "comparison.md", as_markdown(comparison))
    write_text(folder / "comparison.tex", as_latex(comparison))


def as_csv(comparison: Mapping[str, Any]) -> str:
    """Return one line per arm and protocol, every number as it is in the JSON.

    Arms without measures have one line with an empty protocol.
    """
    keys = list(
        dict.fromkeys(key for arm in comparison["arms"] for key in arm["settings"])
    )
    rows = []
    for arm in comparison["arms"]:
        of_arm = {
            "arm": arm["name"],
            **{key: arm["settings"].get(key) for key in keys},
            "model": arm["model"],
        }
        of_network = {
            **{name: arm[name] for name in ("num_parameters", "macs", "size_bytes")},
            **_spread("latency_ms", arm["latency_ms"]),
            **{name: arm[name] for name in ("train_seconds", "images_per_second")},
        }
        for protocol, measures in (arm["measures"] or {"": None}).items():
            rows.append(
                of_arm | {"protocol": protocol} | _csv_measures(measures) | of_network
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """Return the sentences, the table of the arms and that of the pairs."""
    parts = [f"# {_markdown(comparison['title'])}"]
    parts += [_markdown(sentence) for sentence in comparison["words"]]
    parts.append(_markdown_table(*table_rows(comparison)))
    if comparison["pairs"]:
        parts.append(_markdown_table(*pair_rows(comparison)))
    return "\n\n".join(parts) + "\n"


def as_latex(comparison: Mapping[str, Any]) -> str:
    """Return the two tables as plain `tabular`s, which need no package."""
    parts = [
        f"% {one_line(comparison['title'])}",
        *(f"% {one_line(sentence)}" for sentence in comparison["words"]),
        _latex_table(*table_rows(comparison)),
    ]
    if comparison["pairs"]:
        parts.append(_latex_table(*pair_rows(comparison)))
    return "\n".join(parts) + "\n"


def _columns(
    comparison: Mapping[str, Any],
) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """Return the heading of each column, and what writes its cell for an arm.

    An empty cell is something that is not known.
    """
    headline = comparison["headline_protocol"]
    protocols = dict.fromkeys(
        [headline, *(name for arm in comparison["arms"] for name in arm["measures"])]
    )
    marked = {name: f"{name}{_mark(comparison, name)}" for name in protocols}
    columns = [
        (f"accuracy, {marked[protocol]}", _measure(protocol, "accuracy", interval))
        for protocol in protocols
    ]
    columns += [
        (f"{name}, {marked[protocol]}", _measure(protocol, key, percent))
        for protocol in protocols
        for name, key in _OF_EPOCHS
    ]
    return [
        *columns,
        (f"macro F1, {marked[headline]}", _measure(headline, "macro_f1", interval)),
        (f"log loss, {marked[headline]}", _measure(headline, "log_loss", _decimals)),
        (
            f"ECE, {marked[headline]}",
            _measure(headline, "ece", lambda value: f"{value:.3f}"),
        ),
        ("parameters", _cell("num_parameters", large_number)),
        ("MACs", _cell("macs", large_number)),
        ("size", _cell("size_bytes", lambda size: f"{size / 10**6:.1f} MB")),
        ("latency", _cell("latency_ms", _milliseconds)),
        ("training", _cell("train_seconds", duration)),
        ("images/s", _cell("images_per_second", lambda speed: f"{speed:.0f}")),
    ]


def _mark(comparison: Mapping[str, Any], protocol: str) -> str:
    """Return what a heading says of a protocol whose test images training has seen."""
    leaks = (
        arm["measures"][protocol]["leak"]["is_believable"] is False
        for arm in comparison["arms"]
        if protocol in arm["measures"]
    )
    return " (leaks)" if any(leaks) else ""


def _cell(key: str, write: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda arm: "" if arm[key] is None else write(arm[key])


def _measure(
    protocol: str, key: str, write: Callable[[Any], str]
) -> Callable[[Mapping[str, Any]], str]:
    def cell(arm: Mapping[str, Any]) -> str:
        value = arm["measures"].get(protocol, {}).get(key)
        return "" if value is None else write(value)

    return cell


def _decimals(measure: Mapping[str, float | None]) -> str:
    bounds = ""
    if measure["low"] is not None:
        bounds = f" ({measure['low']:.3f} to {measure['high']:.3f})"
    return f"{measure['value']:.3f}{bounds}"


def _milliseconds(measure: Mapping[str, float]) -> str:
    return f"{measure['value']:.1f} ms ({measure['low']:.1f} to {measure['high']:.1f})"


def _spread(name: str, measure: Mapping[str, Any] | None) -> dict[str, Any]:
    measure = measure or {}
    return {
        name: measure.get("value"),
        f"{name}_low": measure.get("low"),
        f"{name}_high": measure.get("high"),
    }


def _csv_measures(measures: Mapping[str, Any] | None) -> dict[str, Any]:
    found = measures or {}
    row = {name: found.get(name) for name in ("num_seeds", "num_images")}
    for name in _WITH_INTERVAL:
        row |= _spread(name, found.get(name))
    row |= {
        name: found.get(name)
        for name in ("ece", *(key for _, key in _OF_EPOCHS), "best_test_epoch")
    }
    leak = found.get("leak", {})
    return row | {"is_believable": leak.get("is_believable"), "leak": leak.get("words")}


def _markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(_markdown(cell) for cell in cells)} |"

    marks = ["---", *("---:" for _ in heading[1:])]
    return "\n".join([line(heading), f"| {' | '.join(marks)} |", *map(line, rows)])


def _markdown(text: str) -> str:
    # Names are the user's: none may end a cell or become markup.
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


def _latex_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        row = " & ".join(_latex(cell) for cell in cells)
        # After the end of a row, a bracket or star would be an option of that end.
        return f"{'{}' if row.startswith(('[', '*')) else ''}{row} \\\\"

    return "\n".join(
        [
            f"\\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}",
            "\\hline",
            line(heading),
            "\\hline",
            *map(line, rows),
            "\\hline",
            "\\end{tabular}",
        ]
    )


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in one_line(text))
