"""Artefacts side by side: how fast, how large, how right, measured in one session.

Everything that is compared is measured in the same rounds, in a shuffled order, each
artefact in a process of its own (`benchmark_process` says why). A stage ends when the
interval of every median is narrow or its share of the time is spent, whichever comes
first; the file says which. What the newcomer would get wrong: the precision is not the
name of the format but what the runtime says that it computes in.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.benchmark_process import Worker
from tumorlens.benchmark_subjects import (
    BASELINE,
    Subject,
    find_files,
    find_subjects,
)
from tumorlens.environment import describe_environment, processor_name
from tumorlens.errors import ConfigError
from tumorlens.images import load_square
from tumorlens.runtimes import num_processors
from tumorlens.timing import Median, are_narrow, median_of, ratio_by_rounds, take_turns

if TYPE_CHECKING:
    from tumorlens.artefacts import Kind

FORMAT = 1
"""Of `benchmark.json`."""

BATCHES = (1, 8, 32)
SECONDS_EACH = 20.0
"""For each artefact, all stages together, where no budget is given."""

WIDTH = 0.02
"""Of the interval of a median, as a fraction of it, at which a stage has enough."""

NUM_FILES = 256
"""Images at most that all are asked about, in turn."""

_FILES_OF_A_TURN = 32
_NUM_STARTS = 3
_SHARES = {"latency": 0.5, "batches": 0.3, "files": 0.2}
"""Of the budget; starts, which are few, come on top."""
_MIN_ROUNDS = {"latency": 20, "batches": 6, "files": 6}
"""Twenty turns of ten calls, for a 99th percentile that is not the slowest call; six
for there to be an interval."""
_MAX_ROUNDS = 1000
_SEED = 42

Progress = Callable[[str, int], None]
"""Is given what is measured now, and the rounds of it that are done."""


@dataclass
class _Measured:
    """What is known of one artefact; times in seconds."""

    facts: dict[str, Any] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    calls: dict[int, list[list[float]]] = field(default_factory=dict)
    """Batch size -> a list of calls for each round."""
    files: list[float] = field(default_factory=list)
    """For one file, a value for each round."""

    def rounds(self, batch: int) -> list[float]:
        """Return the median call of each round."""
        return [statistics.median(calls) for calls in self.calls[batch]]


@dataclass(frozen=True)
class _Plan:
    batches: tuple[int, ...]
    threads: int
    seconds: float


def benchmark(
    paths: Sequence[Path],
    *,
    kinds: Sequence[Kind] | None = None,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    seconds: float | None = None,
    data: Path | None = None,
    command: str = "",
    progress: Progress = lambda _words, _rounds: None,
) -> dict[str, Any]:
    """Measure artefacts on the CPU and return what `benchmark.json` says.

    Args:
        paths: Run folders, and folders of artefacts.
        kinds: Which of a run's artefacts; `None` takes all there are.
        batches: Numbers of images that are asked about together; 1 is always measured.
        threads: Of each runtime, and processors that it may use; `None` takes all.
        seconds: For all timed turns together; `None` is `SECONDS_EACH` for each
            artefact. The least number of rounds is made whatever it says.
        data: Images to ask about instead of the val images of the first run.
        command: What the user typed.
        progress: See `Progress`.

    Raises:
        ConfigError: A number is out of range, or an artefact is named twice.
        RunError: A path is neither run nor artefact.
        ArtefactError: There is no artefact, one is damaged, or its process died.
        DataError: There are no images, or one cannot be read.
        MissingExtraError: A runtime is not installed.
    """
    _check_numbers(batches, threads, seconds)
    subjects = find_subjects(paths, kinds)
    files = find_files(subjects, data=data, num_files=NUM_FILES)
    plan = _Plan(
        tuple(sorted({1, *batches})),
        threads or num_processors(),
        SECONDS_EACH * len(subjects) if seconds is None else seconds,
    )
    measured = [_Measured() for _ in subjects]
    with tempfile.TemporaryDirectory(prefix="tumorlens-benchmark-") as folder:
        images = _decoded(subjects, files, Path(folder), max(plan.batches))
        _measure_starts(subjects, measured, images, plan, progress)
        _measure_calls(subjects, measured, images, plan, progress)
    _measure_files(subjects, measured, files, plan, progress)
    return _summary(subjects, measured, plan, num_files=len(files), command=command)


def _check_numbers(
    batches: Sequence[int], threads: int | None, seconds: float | None
) -> None:
    for batch in batches:
        if batch < 1:
            raise ConfigError(
                f"expected a batch of at least 1 image, got {batch}",
                hint="for example --batch 1 --batch 8",
            )
    if threads is not None and not 1 <= threads <= num_processors():
        raise ConfigError(
            f"expected 1 to {num_processors()} threads, one for each processor that "
            f"may be used, got {threads}",
            hint="leave --threads out to use all",
        )
    if seconds is not None and not seconds > 0:
        raise ConfigError(
            f"expected a budget above 0 seconds, got {seconds:g}",
            hint=f"leave --seconds out for {SECONDS_EACH:g} s an artefact",
        )


def _decoded(
    subjects: Sequence[Subject], files: Sequence[Path], folder: Path, num_least: int
) -> list[Path]:
    """Return a file of decoded images for each subject: those of one shape share it."""
    made: dict[tuple[int, str], Path] = {}
    for subject in subjects:
        card = subject.artefact.card
        key = card.size_px, card.fit
        if key not in made:
            images = [
                load_square(file, size_px=card.size_px, fit=card.fit, in_chans=3)
                # As many as the largest batch, and enough not to repeat one image.
                for file in files[: max(num_least, 64)]
            ]
            made[key] = folder / f"{card.size_px}-{card.fit}.npy"
            np.save(made[key], np.stack(images))
    return [
        made[subject.artefact.card.size_px, subject.artefact.card.fit]
        for subject in subjects
    ]


def _measure_starts(
    subjects: Sequence[Subject],
    measured: Sequence[_Measured],
    images: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Load each artefact in fresh processes: how long it takes, how much memory."""

    def start(place: int, _round: int) -> None:
        with Worker(subjects[place].artefact.path, threads=plan.threads) as worker:
            facts = worker.open_session(images[place])
            measured[place].loads.append(facts.pop("load_seconds"))
            measured[place].facts = facts
            if (peak := worker.peak_memory_bytes()) is not None:
                measured[place].peaks.append(peak)

    take_turns(
        [partial(start, place) for place in range(len(subjects))],
        seconds=0,
        min_rounds=_NUM_STARTS,
        max_rounds=_NUM_STARTS,
        shuffle_seed=_SEED,
        progress=partial(progress, "load time and memory"),
    )


def _measure_calls(
    subjects: Sequence[Subject],
    measured: Sequence[_Measured],
    images: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Time calls with images that are decoded already, batch size by batch size."""
    with ExitStack() as stack:
        workers = []
        for subject, file in zip(subjects, images, strict=True):
            worker = stack.enter_context(
                Worker(subject.artefact.path, threads=plan.threads)
            )
            worker.open_session(file)
            workers.append(worker)
        num_others = len(plan.batches) - 1
        for batch in plan.batches:
            stage = "latency" if batch == 1 else "batches"
            found = _rounds_of(
                [partial(_time_calls, worker, batch) for worker in workers],
                seconds=plan.seconds
                * _SHARES[stage]
                / (num_others if batch > 1 else 1),
                min_rounds=_MIN_ROUNDS[stage],
                value_of=statistics.median,
                progress=partial(progress, f"batches of {batch}"),
            )
            for one, rounds in zip(measured, found, strict=True):
                one.calls[batch] = rounds


def _measure_files(
    subjects: Sequence[Subject],
    measured: Sequence[_Measured],
    files: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Time the whole way from files on disk to labels, through `Predictor`."""
    for file in files:
        file.read_bytes()  # from the disk's own cache for everybody
    with ExitStack() as stack:
        workers = []
        for subject in subjects:
            worker = stack.enter_context(
                Worker(subject.artefact.path, threads=plan.threads)
            )
            worker.open_files()
            workers.append(worker)
        found = _rounds_of(
            [partial(_time_files, worker, files) for worker in workers],
            seconds=plan.seconds * _SHARES["files"],
            min_rounds=_MIN_ROUNDS["files"],
            value_of=float,
            progress=partial(progress, "files to labels"),
        )
    for one, rounds in zip(measured, found, strict=True):
        one.files = rounds


def _rounds_of(
    sides: Sequence[Callable[[int], Any]],
    *,
    seconds: float,
    min_rounds: int,
    value_of: Callable[[Any], float],
    progress: Callable[[int], None],
) -> list[list[Any]]:
    def is_enough(found: list[list[Any]]) -> bool:
        values = [[value_of(one) for one in rounds] for rounds in found]
        return are_narrow(values, width=WIDTH)

    return take_turns(
        sides,
        seconds=seconds,
        min_rounds=min_rounds,
        max_rounds=_MAX_ROUNDS,
        is_enough=is_enough,
        shuffle_seed=_SEED,
        progress=progress,
    )


def _time_calls(worker: Worker, batch: int, _round: int) -> list[float]:
    # Ten calls of one image, three of eight, two of any more.
    return worker.time_calls(batch=batch, num_calls=max(2, round(10 / batch**0.5)))


def _time_files(worker: Worker, files: Sequence[Path], number: int) -> float:
    """Return the seconds for one file, of a turn of many; each round has its own."""
    num = min(_FILES_OF_A_TURN, len(files))
    first = number * num
    chosen = [files[place % len(files)] for place in range(first, first + num)]
    return worker.time_files(chosen) / num


def _summary(
    subjects: Sequence[Subject],
    measured: Sequence[_Measured],
    plan: _Plan,
    *,
    num_files: int,
    command: str,
) -> dict[str, Any]:
    baselines = {
        subject.run: one
        for subject, one in zip(subjects, measured, strict=True)
        if subject.artefact.card.kind == BASELINE
    }
    rows = [
        _row(subject, one, baselines.get(subject.run))
        for subject, one in zip(subjects, measured, strict=True)
    ]
    return {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "environment": {
            **describe_environment(command=command, seed=_SEED),
            "processor": processor_name(),
        },
        "settings": {
            "threads": plan.threads,
            "seconds": plan.seconds,
            "batches": list(plan.batches),
            "width": WIDTH,
            "num_files": num_files,
        },
        "artefacts": rows,
        "words": _words(rows, plan),
    }


def _row(
    subject: Subject, measured: _Measured, baseline: _Measured | None
) -> dict[str, Any]:
    card, parity = subject.artefact.card, subject.artefact.parity()
    milliseconds = [1000 * one for one in measured.rounds(1)]
    calls_ms = [1000 * call for calls in measured.calls[1] for call in calls]
    per_batch = {batch: median_of(measured.rounds(batch)) for batch in measured.calls}
    best = min(per_batch, key=lambda batch: per_batch[batch].value / batch)
    return {
        "name": subject.name,
        "run": subject.run,
        "kind": card.kind,
        "networks": list(card.networks),
        "size_px": card.size_px,
        **measured.facts,
        "size_bytes": subject.artefact.size_bytes,
        "accuracy": {
            "value": parity["accuracy"]["artefact"],
            "run": parity["accuracy"]["run"],
            "change": parity["accuracy"]["change"],
            "num_images": parity["num_images"],
            "subset": "val",
        },
        "load_ms": 1000 * statistics.median(measured.loads),
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
        "end_to_end_ms": {
            **_as_measure(median_of([1000 * one for one in measured.files])),
            "rounds": [1000 * one for one in measured.files],
        },
        "ratios": None if baseline is None else _ratios(measured, baseline),
    }


def _ratios(measured: _Measured, baseline: _Measured) -> dict[str, Any]:
    return {
        "latency": asdict(ratio_by_rounds(baseline.rounds(1), measured.rounds(1))),
        "end_to_end": asdict(ratio_by_rounds(baseline.files, measured.files)),
    }


def _as_measure(median: Median) -> dict[str, float | None]:
    return {"value": median.value, "low": median.low, "high": median.high}


def _per_second(median: Median, batch: int) -> dict[str, float | None]:
    """Return images per second where `median` is the seconds of a batch."""
    return {
        "value": batch / median.value,
        "low": None if median.high is None else batch / median.high,
        "high": None if median.low is None else batch / median.low,
    }


def _words(rows: Sequence[Mapping[str, Any]], plan: _Plan) -> list[str]:
    """Return what is worth saying, in sentences."""
    words = []
    for row in rows:
        if row["ratios"] and row["kind"] != BASELINE:
            ratio = row["ratios"]["latency"]
            points = 100 * row["accuracy"]["change"]["value"]
            words.append(
                f"{row['name']} answers for one image {ratio['value']:.2f} times as "
                f"fast as {BASELINE} ({ratio['low']:.2f} to {ratio['high']:.2f} over "
                f"{ratio['num_rounds']} rounds), accuracy on val {points:+.2f} points."
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
            f"{WIDTH:.0%} narrow for {', '.join(wide)}: the machine is not quiet, or "
            f"--seconds, {plan.seconds:g} here, is short."
        )
    return words
