"""Content of `benchmark.json`, from the times of turns; also as CSV and as table rows.

It makes no difference here whether processes or a GPU were measured. Times come in
seconds and are kept in milliseconds.
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tumorlens import text
from tumorlens.deploy.artefact import Change
from tumorlens.deploy.benchmark.timing import (
    Median,
    Ratio,
    median_of,
    ratio_by_rounds,
)
from tumorlens.files import (
    Count,
    Fraction,
    NotNegative,
    have_both_bounds,
    read_model,
    write_text,
)
from tumorlens.runs.measures import with_percentiles
from tumorlens.system import describe_environment, processor_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTH = 0.02
"""Width of the interval of a median, as a fraction of it, at which measuring ends."""

BASELINE = "torchscript"
"""Baseline of all speed ratios: TorchScript in fp32, as in the baseline study."""

SEED = 42
"""Seed of the order of turns."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Measure(_Part):
    """A number with its bounds, which may be unknown."""

    value: NotNegative
    low: NotNegative | None = None
    high: NotNegative | None = None

    _have_both_bounds = model_validator(mode="after")(have_both_bounds)


class RoundsMs(Measure):
    """A median over rounds with its 95 % interval, in milliseconds."""

    rounds: tuple[NotNegative, ...]
    """Median of each round."""


class LatencyMs(RoundsMs):
    """Time for one image that is decoded already: the median, and the tail of calls."""

    p95: NotNegative
    p99: NotNegative
    num_calls: Count


class Accuracy(_Part):
    """Accuracy on the images of the export's verdict."""

    value: Fraction
    run: Fraction
    change: Change
    num_images: Count
    subset: str


class Ratios(_Part):
    """Speed as a multiple of that of TorchScript fp32 of the same run, by rounds."""

    latency: Ratio
    end_to_end: Ratio | None = None

    @field_validator("latency", "end_to_end", mode="before")
    @classmethod
    def _of_format_1(cls, ratio: Any) -> Any:
        return with_percentiles(ratio)


class Subject(_Part):
    """What is measured: an artefact, or one way to run a network on a GPU."""

    name: str
    """Unique in the benchmark."""
    run: str
    """The same for artefacts of one run, which are compared with each other."""
    kind: str
    networks: tuple[str, ...]
    """timm's names: one, or those of an ensemble's members."""
    size_px: Count
    size_bytes: Count | None
    accuracy: Accuracy | None


class Facts(_Part):
    """Runtime and settings of a loaded session, as the runtime reports them."""

    runtime: str
    """Name and version."""
    precision: str
    device: str
    threads: Count | None


class Row(Subject, Facts):
    """A subject with its figures; `None` is what was not measured."""

    load_ms: NotNegative | None
    """From nothing imported to the first answer, in a fresh process."""
    peak_memory_bytes: Count | None
    latency_ms: LatencyMs
    images_per_second: dict[int, Measure] = Field(min_length=1)
    """Batch size -> images per second."""
    best_batch: Count
    end_to_end_ms: RoundsMs | None
    """Time for one image of many, from files on disk to labels."""
    ratios: Ratios | None
    """`None` where the run has no TorchScript artefact."""

    @model_validator(mode="after")
    def _best_batch_is_measured(self) -> Self:
        if self.best_batch not in self.images_per_second:
            raise ValueError("expected best_batch among the keys of images_per_second")
        return self


class Environment(_Part):
    """Machine, versions and command line."""

    tumorlens: str
    commit: str | None
    python: str
    platform: str
    cpu_count: int | None
    packages: dict[str, str | None]
    seed: int
    command: str
    processor: str


class Settings(_Part):
    """Settings of the benchmark."""

    threads: int
    """Threads of each runtime."""
    seconds: float
    """Budget for all timed turns."""
    batches: tuple[int, ...]
    width: float
    num_files: int
    """Number of different images."""


class Benchmark(text.NotebookView, _Part):
    """Content of `benchmark.json`."""

    # The keys of the file are those of its first layout.
    model_config = ConfigDict(populate_by_name=True)

    format: Literal[1, 2] = 2
    OLDER_FORMATS: ClassVar[tuple[int, ...]] = (1,)
    time: str
    environment: Environment
    settings: Settings
    rows: tuple[Row, ...] = Field(min_length=1, alias="artefacts")
    sentences: tuple[str, ...] = Field(alias="words")
    """The main findings."""


@dataclass
class Times:
    """Raw times of one subject, in seconds."""

    facts: Facts | None = None
    loads: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    """Peak memory in bytes."""
    calls: dict[int, list[list[float]]] = field(default_factory=dict)
    """Batch size -> for each round the times of its calls; 1 is always there."""
    files: list[float] = field(default_factory=list)
    """For each round the time for one file."""

    def rounds(self, batch: int) -> list[float]:
        """Return the median call of each round."""
        return [statistics.median(calls) for calls in self.calls[batch]]


def read_benchmark(path: Path) -> Benchmark:
    """Return the content of `benchmark.json`.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    hint = "make it again with: tumorlens benchmark RUN..."
    return read_model(path, Benchmark, hint=hint)


def make_row(subject: Subject, times: Times, baseline: Times | None) -> Row:
    """Return the figures of a subject.

    Args:
        subject: What was measured.
        times: Its times.
        baseline: Times of TorchScript fp32 of the same run, from the same rounds.
    """
    assert times.facts is not None
    latency = _in_ms(times.rounds(1))
    calls_ms = [1000 * call for calls in times.calls[1] for call in calls]
    per_batch = {batch: median_of(times.rounds(batch)) for batch in times.calls}
    best = min(per_batch, key=lambda batch: per_batch[batch].value / batch)
    return Row(
        **subject.model_dump(),
        **times.facts.model_dump(),
        load_ms=1000 * statistics.median(times.loads) if times.loads else None,
        peak_memory_bytes=max(times.peaks, default=None),
        latency_ms=LatencyMs(
            **latency.model_dump(),
            p95=float(np.percentile(calls_ms, 95)),
            p99=float(np.percentile(calls_ms, 99)),
            num_calls=len(calls_ms),
        ),
        images_per_second={
            batch: _per_second(median, batch) for batch, median in per_batch.items()
        },
        best_batch=best,
        end_to_end_ms=_in_ms(times.files) if times.files else None,
        ratios=None if baseline is None else _ratios(times, baseline),
    )


def make_benchmark(
    rows: Sequence[Row],
    *,
    batches: Sequence[int],
    threads: int,
    seconds: float,
    num_files: int,
    command: str,
) -> Benchmark:
    """Return the content of `benchmark.json`.

    Args:
        rows: One for each subject.
        batches: Measured batch sizes.
        threads: Threads of each runtime.
        seconds: Budget.
        num_files: Number of different images.
        command: Command line.
    """
    return Benchmark(
        time=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        environment=Environment(
            **describe_environment(command=command, seed=SEED),
            processor=processor_name(),
        ),
        settings=Settings(
            threads=threads,
            seconds=seconds,
            batches=tuple(batches),
            width=WIDTH,
            num_files=num_files,
        ),
        rows=tuple(rows),
        sentences=_sentences(rows, seconds),
    )


def write_csv(found: Benchmark, path: Path) -> None:
    """Write a line for each subject, in plain numbers."""
    rows = [_plain(row, found.settings.batches) for row in found.rows]
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, content.getvalue())


def table_rows(found: Benchmark) -> tuple[list[str], list[list[str]]]:
    """Return heading and rows for a terminal."""
    heading = [
        *("artefact", "computes in", "p50 ms", "p95", "p99", "times as fast"),
        *("images/s", "file to label ms", "load ms", "memory MB", "size MB"),
        *("accuracy", "change, points"),
    ]
    return heading, [_cells(row) for row in found.rows]


def _in_ms(seconds: Sequence[float]) -> RoundsMs:
    rounds = tuple(1000 * one for one in seconds)
    return RoundsMs(**asdict(median_of(rounds)), rounds=rounds)


def _ratios(times: Times, baseline: Times) -> Ratios:
    return Ratios(
        latency=ratio_by_rounds(baseline.rounds(1), times.rounds(1)),
        end_to_end=ratio_by_rounds(baseline.files, times.files)
        if times.files and baseline.files
        else None,
    )


def _per_second(median: Median, batch: int) -> Measure:
    """Return images per second where `median` is the seconds of a batch."""
    return Measure(
        value=batch / median.value,
        low=None if median.high is None else batch / median.high,
        high=None if median.low is None else batch / median.low,
    )


def _sentences(rows: Sequence[Row], seconds: float) -> tuple[str, ...]:
    sentences = []
    for row in rows:
        if row.ratios and row.kind != BASELINE:
            ratio = row.ratios.latency
            accuracy = ""
            if row.accuracy:
                points = text.points(row.accuracy.change.value, digits=2)
                accuracy = f", accuracy on val {points} points"
            sentences.append(
                f"{row.name} answers for one image {ratio.value:.2f} times as "
                f"fast as {BASELINE} ({ratio.p5:.2f} to {ratio.p95:.2f} over "
                f"{ratio.num_rounds} rounds){accuracy}."
            )
    without = dict.fromkeys(row.run for row in rows if row.ratios is None)
    sentences += [
        f"{run} has no {BASELINE} artefact here, so nothing is set in relation to it."
        for run in without
    ]
    wide = [row.name for row in rows if _is_wide(row.latency_ms)]
    if wide:
        sentences.append(
            f"The time was up before the interval of the median latency was "
            f"{100 * WIDTH:g} % narrow for {', '.join(wide)}: the machine is not "
            f"quiet, or --seconds, {seconds:g} here, is short."
        )
    return tuple(sentences)


def _is_wide(measure: Measure) -> bool:
    return Median(measure.value, measure.low, measure.high).width > WIDTH


def _plain(row: Row, batches: Sequence[int]) -> dict[str, Any]:
    latency, ratios = row.latency_ms, row.ratios
    plain = {
        name: getattr(row, name)
        for name in (
            *("name", "run", "kind", "runtime", "precision", "device", "threads"),
            *("size_px", "size_bytes", "load_ms", "peak_memory_bytes"),
        )
    }
    plain["accuracy"] = row.accuracy.value if row.accuracy else None
    plain["accuracy_change"] = row.accuracy.change.value if row.accuracy else None
    plain["latency_p50_ms"] = latency.value
    plain["latency_p50_low_ms"] = latency.low
    plain["latency_p50_high_ms"] = latency.high
    plain["latency_p95_ms"] = latency.p95
    plain["latency_p99_ms"] = latency.p99
    for batch in batches:
        plain[f"images_per_second_{batch}"] = row.images_per_second[batch].value
    plain["best_batch"] = row.best_batch
    plain["end_to_end_ms"] = row.end_to_end_ms.value if row.end_to_end_ms else None
    for name, ratio in (
        ("latency", ratios.latency if ratios else None),
        ("end_to_end", ratios.end_to_end if ratios else None),
    ):
        plain[f"{name}_ratio"] = ratio.value if ratio else None
        plain[f"{name}_ratio_p5"] = ratio.p5 if ratio else None
        plain[f"{name}_ratio_p95"] = ratio.p95 if ratio else None
    return plain


def _cells(row: Row) -> list[str]:
    latency, accuracy = row.latency_ms, row.accuracy
    best = row.images_per_second[row.best_batch].value
    ratio, files = row.ratios and row.ratios.latency, row.end_to_end_ms
    return [
        row.name,
        row.precision,
        f"{latency.value:.2f}{_bounds(latency)}",
        f"{latency.p95:.2f}",
        f"{latency.p99:.2f}",
        f"{ratio.value:.2f} ({ratio.p5:.2f} to {ratio.p95:.2f})" if ratio else "",
        f"{best:.0f} (batch {row.best_batch})",
        _number(files.value if files else None, 2),
        _number(row.load_ms, 0),
        _number(row.peak_memory_bytes, 0, unit=1e6),
        _number(row.size_bytes, 1, unit=1e6),
        text.percent(accuracy.value) if accuracy else "",
        # 0 is never written with a minus.
        f"{round(100 * accuracy.change.value, 2) + 0.0:+.2f}" if accuracy else "",
    ]


def _number(value: float | None, digits: int, *, unit: float = 1.0) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _bounds(measure: Measure) -> str:
    low, high = measure.low, measure.high
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
