"""From the times of turns to what `benchmark.json` says: arithmetic and words.

Who measured, processes or a GPU, is of no matter here. Times come in seconds and leave
in milliseconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tumorlens import text
from tumorlens.deploy.benchmark.timing import Median, median_of, ratio_by_rounds
from tumorlens.system import describe_environment, processor_name

FORMAT = 1
"""Of `benchmark.json`."""

WIDTH = 0.02
"""Of the interval of a median, as a fraction of it, at which there is enough."""

BASELINE = "torchscript"
"""What ratios are to: the report's own path, in fp32."""

SEED = 42
"""Of the order of turns."""


@dataclass
class Measured:
    """What was measured of one side; times in seconds."""

    facts: dict[str, Any] = field(default_factory=dict)
    """`runtime`, `precision`, `device` and `threads`."""
    loads: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    calls: dict[int, list[list[float]]] = field(default_factory=dict)
    """Batch size -> a list of calls for each round; 1 is there."""
    files: list[float] = field(default_factory=list)
    """For one file, a value for each round."""

    def rounds(self, batch: int) -> list[float]:
        """Return the median call of each round."""
        return [statistics.median(calls) for calls in self.calls[batch]]


def measures_of(measured: Measured, baseline: Measured | None) -> dict[str, Any]:
    """Return what the times of one side come to.

    Args:
        measured: Of this side.
        baseline: Of TorchScript fp32, measured in the same rounds.
    """
    milliseconds = [1000 * one for one in measured.rounds(1)]
    calls_ms = [1000 * call for calls in measured.calls[1] for call in calls]
    per_batch = {batch: median_of(measured.rounds(batch)) for batch in measured.calls}
    best = min(per_batch, key=lambda batch: per_batch[batch].value / batch)
    return {
        **measured.facts,
        "load_ms": 1000 * statistics.median(measured.loads) if measured.loads else None,
        "peak_memory_bytes": max(measured.peaks, default=None),
        "latency_ms": {
            **_as_measure(median_of(milliseconds)),
            "p95": float(np.percentile(calls_ms, 95)),
            "p99": float(np.percentile(calls_ms, 99)),
            "num_calls": len(calls_ms),
            "rounds": milliseconds,
        },
        "images_per_second": {
            str(batch): _per_second(median, batch)
            for batch, median in per_batch.items()
        },
        "best_batch": best,
        "end_to_end_ms": _end_to_end_ms(measured.files) if measured.files else None,
        "ratios": None if baseline is None else _ratios(measured, baseline),
    }


def summary(
    rows: Sequence[Mapping[str, Any]],
    *,
    batches: Sequence[int],
    threads: int,
    seconds: float,
    num_files: int,
    command: str,
) -> dict[str, Any]:
    """Return what `benchmark.json` says.

    Args:
        rows: One for each side, with `name`, `run`, `kind`, `accuracy` and what
            `measures_of` gives.
        batches: As measured.
        threads: Of each runtime.
        seconds: The budget.
        num_files: Of different images.
        command: What the user typed.
    """
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "environment": {
            **describe_environment(command=command, seed=SEED),
            "processor": processor_name(),
        },
        "settings": {
            "threads": threads,
            "seconds": seconds,
            "batches": list(batches),
            "width": WIDTH,
            "num_files": num_files,
        },
        "artefacts": list(rows),
        "words": _words(rows, seconds),
    }


def _end_to_end_ms(files: Sequence[float]) -> dict[str, Any]:
    milliseconds = [1000 * one for one in files]
    return {**_as_measure(median_of(milliseconds)), "rounds": milliseconds}


def _ratios(measured: Measured, baseline: Measured) -> dict[str, Any]:
    ratios = {
        "latency": asdict(ratio_by_rounds(baseline.rounds(1), measured.rounds(1)))
    }
    if measured.files and baseline.files:
        ratios["end_to_end"] = asdict(ratio_by_rounds(baseline.files, measured.files))
    return ratios


def _as_measure(median: Median) -> dict[str, float | None]:
    return {"value": median.value, "low": median.low, "high": median.high}


def _per_second(median: Median, batch: int) -> dict[str, float | None]:
    """Return images per second where `median` is the seconds of a batch."""
    return {
        "value": batch / median.value,
        "low": None if median.high is None else batch / median.high,
        "high": None if median.low is None else batch / median.low,
    }


def _words(rows: Sequence[Mapping[str, Any]], seconds: float) -> list[str]:
    """Return what is worth saying, in sentences."""
    words = []
    for row in rows:
        if row["ratios"] and row["kind"] != BASELINE:
            ratio = row["ratios"]["latency"]
            accuracy = ""
            if row["accuracy"]:
                points = text.points(row["accuracy"]["change"]["value"], digits=2)
                accuracy = f", accuracy on val {points} points"
            words.append(
                f"{row['name']} answers for one image {ratio['value']:.2f} times as "
                f"fast as {BASELINE} ({ratio['low']:.2f} to {ratio['high']:.2f} over "
                f"{ratio['num_rounds']} rounds){accuracy}."
            )
    without = dict.fromkeys(row["run"] for row in rows if row["ratios"] is None)
    words += [
        f"{run} has no {BASELINE} artefact here, so nothing is set in relation to it."
        for run in without
    ]
    wide = [
        row["name"]
        for row in rows
        if row["latency_ms"]["high"] - row["latency_ms"]["low"]
        > WIDTH * row["latency_ms"]["value"]
    ]
    if wide:
        words.append(
            f"The time was up before the interval of the median latency was "
            f"{100 * WIDTH:g} % narrow for {', '.join(wide)}: the machine is not "
            f"quiet, or --seconds, {seconds:g} here, is short."
        )
    return words
