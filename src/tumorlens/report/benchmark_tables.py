"""A benchmark as rows: for a terminal, and as CSV for programs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from tumorlens.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write_table(found: Mapping[str, Any], path: Path) -> None:
    """Write a CSV file with a line for each artefact, in plain numbers."""
    rows = [_plain(row, found) for row in found["artefacts"]]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def table_rows(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows for a terminal."""
    heading = [
        *("artefact", "computes in", "p50 ms", "p95", "p99", "times as fast"),
        *("images/s", "file to label ms", "load ms", "memory MB", "size MB"),
        *("accuracy", "change, points"),
    ]
    return heading, [_shown(row) for row in found["artefacts"]]


def _plain(row: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    latency, ratios = row["latency_ms"], row["ratios"] or {}
    accuracy = row["accuracy"] or {"value": None, "change": {"value": None}}
    plain = {
        key: row[key]
        for key in (
            *("name", "run", "kind", "runtime", "precision", "device", "threads"),
            *("size_px", "size_bytes", "load_ms", "peak_memory_bytes"),
        )
    }
    plain["accuracy"] = accuracy["value"]
    plain["accuracy_change"] = accuracy["change"]["value"]
    plain["latency_p50_ms"] = latency["value"]
    plain["latency_p50_low_ms"] = latency["low"]
    plain["latency_p50_high_ms"] = latency["high"]
    plain["latency_p95_ms"] = latency["p95"]
    plain["latency_p99_ms"] = latency["p99"]
    for batch in found["settings"]["batches"]:
        plain[f"images_per_second_{batch}"] = row["images_per_second"][str(batch)][
            "value"
        ]
    plain["best_batch"] = row["best_batch"]
    plain["end_to_end_ms"] = row["end_to_end_ms"] and row["end_to_end_ms"]["value"]
    for name in ("latency", "end_to_end"):
        ratio = ratios.get(name, {})
        plain[f"{name}_ratio"] = ratio.get("value")
        plain[f"{name}_ratio_p5"] = ratio.get("low")
        plain[f"{name}_ratio_p95"] = ratio.get("high")
    return plain


def _shown(row: Mapping[str, Any]) -> list[str]:
    latency, accuracy = row["latency_ms"], row["accuracy"]
    best = row["images_per_second"][str(row["best_batch"])]["value"]
    ratio, files = row["ratios"] and row["ratios"]["latency"], row["end_to_end_ms"]
    return [
        row["name"],
        row["precision"],
        f"{latency['value']:.2f}{_bounds(latency)}",
        f"{latency['p95']:.2f}",
        f"{latency['p99']:.2f}",
        f"{ratio['value']:.2f}{_bounds(ratio)}" if ratio else "",
        f"{best:.0f} (batch {row['best_batch']})",
        _number(files and files["value"], 2),
        _number(row["load_ms"], 0),
        _number(row["peak_memory_bytes"], 0, unit=1e6),
        _number(row["size_bytes"], 1, unit=1e6),
        f"{100 * accuracy['value']:.1f} %" if accuracy else "",
        # 0 is never written with a minus.
        f"{round(100 * accuracy['change']['value'], 2) + 0.0:+.2f}" if accuracy else "",
    ]


def _number(value: float | None, digits: int, *, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _bounds(measure: Mapping[str, Any]) -> str:
    low, high = measure["low"], measure["high"]
    return "" if low is None else f" ({low:.2f} to {high:.2f})"
