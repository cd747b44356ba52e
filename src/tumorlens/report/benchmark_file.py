"""`benchmark.json` as it is read: checked once, so that a page can trust it.

The file is written by `tumorlens.deploy.benchmark.session`, may be years old and may
have been edited by hand. What a page does not show is not looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from tumorlens.report.page_file import read_page_file

if TYPE_CHECKING:
    from pathlib import Path

BENCHMARK_FORMAT = 1
"""The format of `benchmark.json` that is known here."""

_HINT = "make it again with: tumorlens benchmark RUN..."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Measured(_Part):
    """A number with its bounds, which may be unknown."""

    value: float
    low: float | None = None
    high: float | None = None


class LatencyMs(Measured):
    """Of one image, decoded already: the median with its interval, and the tail."""

    p95: float
    p99: float
    num_calls: int


class Accuracy(_Part):
    """On the images that the export was judged on."""

    value: float
    change: Measured
    """Artefact less run."""
    num_images: int
    subset: str


class Ratios(_Part):
    """How many times as fast as TorchScript fp32 of the same run, by rounds."""

    latency: Measured
    end_to_end: Measured | None = None


class Artefact(_Part):
    """A line of the table; `None` is what was not measured."""

    name: str
    run: str
    kind: str
    runtime: str
    precision: str
    device: str
    threads: int | None = None
    size_px: int
    size_bytes: int | None = None
    accuracy: Accuracy | None = None
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    latency_ms: LatencyMs
    images_per_second: dict[int, Measured] = Field(min_length=1)
    """Batch size -> images per second."""
    best_batch: int
    end_to_end_ms: Measured | None = None
    """For one image of many, from files on disk to labels."""
    ratios: Ratios | None = None


class Environment(_Part):
    """Where it was measured."""

    tumorlens: str
    processor: str
    cpu_count: int | None = None
    platform: str


class Settings(_Part):
    """What was asked for."""

    threads: int
    batches: tuple[int, ...]
    num_files: int


class Benchmark(_Part):
    """All that a page shows of `benchmark.json`."""

    format: Literal[1]
    time: str
    environment: Environment
    settings: Settings
    artefacts: tuple[Artefact, ...] = Field(min_length=1)
    words: tuple[str, ...] = ()


def read_benchmark(path: Path) -> Benchmark:
    """Return the content of `benchmark.json`.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    return read_page_file(path, Benchmark, version=BENCHMARK_FORMAT, hint=_HINT)
