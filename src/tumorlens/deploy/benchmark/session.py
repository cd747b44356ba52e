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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.images import load_square
from tumorlens.deploy.benchmark.results import (
    BASELINE,
    SEED,
    WIDTH,
    Measured,
    measures_of,
    summary,
)
from tumorlens.deploy.benchmark.subjects import Subject, find_files, find_subjects
from tumorlens.deploy.benchmark.timing import are_narrow, take_turns
from tumorlens.deploy.benchmark.worker import Worker
from tumorlens.deploy.runtimes import num_processors
from tumorlens.errors import ConfigError

if TYPE_CHECKING:
    from tumorlens.deploy.artefact import Kind

BATCHES = (1, 8, 32)
SECONDS_EACH = 20.0
"""For each artefact, all stages together, where no budget is given."""

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

Progress = Callable[[str, int], None]
"""Is given what is measured now, and the rounds of it that are done."""


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
    measured = [Measured() for _ in subjects]
    with tempfile.TemporaryDirectory(prefix="tumorlens-benchmark-") as folder:
        images = _decoded(subjects, files, Path(folder), max(plan.batches))
        _measure_starts(subjects, measured, images, plan, progress)
        _measure_calls(subjects, measured, images, plan, progress)
    _measure_files(subjects, measured, files, plan, progress)
    baselines = {
        subject.run: one
        for subject, one in zip(subjects, measured, strict=True)
        if subject.artefact.card.kind == BASELINE
    }
    return summary(
        [
            _row(subject, one, baselines.get(subject.run))
            for subject, one in zip(subjects, measured, strict=True)
        ],
        batches=plan.batches,
        threads=plan.threads,
        seconds=plan.seconds,
        num_files=len(files),
        command=command,
    )


def _check_numbers(
    batches: Sequence[int], threads: int | None, seconds: float | None
) -> None:
    for batch in batches:
        if batch < 1:
            raise ConfigError(
                f"expected a batch of at least 1 image, got {batch}",
                hint="for example --batch 1,8",
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
    measured: Sequence[Measured],
    images: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Load each artefact in fresh processes: how long it takes, how much memory."""

    def start(place: int, _round: int) -> None:
        with Worker(subjects[place].artefact.path, threads=plan.threads) as worker:
            measured[place].loads.append(worker.open_session(images[place]))
            if (peak := worker.peak_memory_bytes()) is not None:
                measured[place].peaks.append(peak)
            if not measured[place].facts:
                measured[place].facts = worker.facts()

    take_turns(
        [partial(start, place) for place in range(len(subjects))],
        seconds=0,
        min_rounds=_NUM_STARTS,
        max_rounds=_NUM_STARTS,
        shuffle_seed=SEED,
        progress=partial(progress, "load time and memory"),
    )


def _measure_calls(
    subjects: Sequence[Subject],
    measured: Sequence[Measured],
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
    measured: Sequence[Measured],
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
        shuffle_seed=SEED,
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


def _row(
    subject: Subject, measured: Measured, baseline: Measured | None
) -> dict[str, Any]:
    card, parity = subject.artefact.card, subject.artefact.parity()
    return {
        "name": subject.name,
        "run": subject.run,
        "kind": card.kind,
        "networks": list(card.networks),
        "size_px": card.size_px,
        "size_bytes": subject.artefact.size_bytes,
        "accuracy": {
            "value": parity["accuracy"]["artefact"],
            "run": parity["accuracy"]["run"],
            "change": parity["accuracy"]["change"],
            "num_images": parity["num_images"],
            "subset": "val",
        },
        **measures_of(measured, baseline),
    }
