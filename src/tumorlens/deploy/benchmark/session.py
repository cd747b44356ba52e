"""Artefacts side by side: how fast, how large, how right, measured in one session.

Everything that is compared is measured in the same rounds, in a shuffled order, on the
same files, each artefact in a process of its own (`benchmark.worker` explains why). A
stage ends when the interval of every median is narrow or its share of the time is
spent, whichever comes first; the file has which. The precision is not the name of the
format but what the runtime reports.
"""

from __future__ import annotations

import shlex
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from tumorlens.data.files import walk_images
from tumorlens.data.images import load_square
from tumorlens.data.sets import sets_of
from tumorlens.deploy.artefact import KINDS, Artefact, Kind, is_artefact, open_artefact
from tumorlens.deploy.benchmark.fastest import weights_of
from tumorlens.deploy.benchmark.results import (
    BASELINE,
    SEED,
    WIDTH,
    Accuracy,
    Benchmark,
    Subject,
    Times,
    make_benchmark,
    make_row,
)
from tumorlens.deploy.benchmark.timing import are_narrow, take_turns
from tumorlens.deploy.benchmark.worker import Worker
from tumorlens.errors import ArtefactError, ConfigError, DataError, RunError
from tumorlens.runs.folder import Run, open_run
from tumorlens.system import num_processors

T = TypeVar("T")

BATCHES = (1, 8, 32)
SECONDS_EACH = 20.0
"""Default budget for each artefact, all stages together."""

NUM_FILES = 256
"""Largest number of different images."""

_FILES_OF_A_TURN = 32
_NUM_STARTS = 3
_SHARES = {"latency": 0.5, "batches": 0.3, "files": 0.2}
"""Shares of the budget; starts, which are few, come on top."""
_MIN_ROUNDS = {"latency": 20, "batches": 6, "files": 6}
"""Twenty turns of ten calls, for a 99th percentile that is not the slowest call; six
for there to be an interval."""
_MAX_ROUNDS = 1000

Progress = Callable[[str, int], None]
"""Called with the name of the stage and the number of its rounds that are done."""


@dataclass(frozen=True)
class NamedArtefact:
    """An artefact under a name that is unique in the benchmark."""

    name: str
    run: str
    """The same for artefacts of one run, which are compared with each other."""
    artefact: Artefact


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
) -> Benchmark:
    """Measure artefacts on the CPU and return the content of `benchmark.json`.

    Args:
        paths: Run folders, and folders of artefacts.
        kinds: Formats of a run's artefacts; `None` takes all there are.
        batches: Batch sizes; 1 is always measured.
        threads: Threads of each runtime, and processors that it may use; `None` takes
            all.
        seconds: Budget for all timed turns together; `None` is `SECONDS_EACH` for each
            artefact. The least number of rounds is made in any case.
        data: Images instead of the val images of the first run.
        command: Command line.
        progress: See `Progress`.

    Raises:
        ConfigError: A number is out of range, or an artefact is named twice.
        RunError: A path is neither run nor artefact.
        ArtefactError: There is no artefact, one is damaged, or its process died.
        DataError: There are no images, or one cannot be read.
        MissingExtraError: A runtime is not installed.
    """
    _check_numbers(batches, threads, seconds)
    artefacts = find_artefacts(paths, kinds)
    files = find_files(artefacts, data=data, num_files=NUM_FILES)
    plan = _Plan(
        tuple(sorted({1, *batches})),
        threads or num_processors(),
        SECONDS_EACH * len(artefacts) if seconds is None else seconds,
    )
    times = [Times() for _ in artefacts]
    with tempfile.TemporaryDirectory(prefix="tumorlens-benchmark-") as folder:
        images = _decoded(artefacts, files, Path(folder), max(plan.batches))
        _measure_starts(artefacts, times, images, plan, progress)
        _measure_calls(artefacts, times, images, plan, progress)
    _measure_files(artefacts, times, files, plan, progress)
    baselines = {
        one.run: of_one
        for one, of_one in zip(artefacts, times, strict=True)
        if one.artefact.card.kind == BASELINE
    }
    return make_benchmark(
        [
            make_row(_subject(one), of_one, baselines.get(one.run))
            for one, of_one in zip(artefacts, times, strict=True)
        ],
        batches=plan.batches,
        threads=plan.threads,
        seconds=plan.seconds,
        num_files=len(files),
        command=command,
    )


def find_artefacts(
    paths: Sequence[Path], kinds: Sequence[Kind] | None = None
) -> list[NamedArtefact]:
    """Return the artefacts of runs, and those that are named themselves.

    Args:
        paths: Run folders, and folders of artefacts.
        kinds: Formats of a run's artefacts; `None` takes all there are.

    Raises:
        ConfigError: A path is named twice, or none is.
        RunError: A path is neither.
        ArtefactError: A run lacks artefacts or a given format; or an artefact was
            changed or damaged, or has weights that its run no longer has.
    """
    if not paths:
        raise ConfigError("no run was named", hint="name a run or artefact folder")
    found: dict[Path, tuple[str, Artefact]] = {}
    for path in paths:
        for artefact in _artefacts_at(path, kinds):
            folder = artefact.path.resolve()
            if folder in found:
                raise ConfigError(
                    f"{artefact.path} is named twice", hint="name each run once"
                )
            found[folder] = (_run_key(artefact), artefact)
    check_weights([artefact for _, artefact in found.values()])
    short = {run: Path(run).name for run, _ in found.values()}
    if max(Counter(short.values()).values()) > 1:
        short = {run: run for run in short}
    return [
        NamedArtefact(
            artefact.card.kind
            if len(short) == 1
            else f"{short[run]} {artefact.card.kind}",
            short[run],
            artefact,
        )
        for run, artefact in found.values()
    ]


def check_weights(artefacts: Sequence[Artefact]) -> None:
    """Refuse artefacts of weights that their run no longer has.

    Raises:
        ArtefactError: There are some; the message names all of the first such run.
        RunError: The run around one has no weights.
    """
    stale: dict[Path, list[Kind]] = {}
    for artefact in artefacts:
        run = run_folder(artefact)
        if run and weights_of(run) not in (None, artefact.card.weights_sha256):
            stale.setdefault(run, []).append(artefact.card.kind)
    for run, kinds in stale.items():
        formats = [word for kind in kinds for word in ("--format", kind)]
        raise ArtefactError(
            f"{run} has other weights by now than its {', '.join(kinds)}",
            hint=shlex.join(["tumorlens", "export", str(run), *formats]),
        )


def find_files(
    artefacts: Sequence[NamedArtefact], *, data: Path | None, num_files: int
) -> list[Path]:
    """Return what `files_of` gives for the runs that artefacts still lie in."""
    folders = [run_folder(one.artefact) for one in artefacts]
    return files_of([one for one in folders if one], data=data, num_files=num_files)


def files_of(runs: Sequence[Path], *, data: Path | None, num_files: int) -> list[Path]:
    """Return image files, taken evenly from all there are. Labels play no part.

    Args:
        runs: Runs; without `data`, the first one with val images gives them.
        data: A folder with images, or one image.
        num_files: Largest number of files.

    Raises:
        DataError: There is none.
    """
    files = list(walk_images([data])) if data else _val_files(runs)
    # A broken link has the name of an image too.
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError(f"no image file in {data}", hint="give another --data")
    step = len(files) / min(num_files, len(files))
    return [files[int(number * step)] for number in range(min(num_files, len(files)))]


def run_folder(artefact: Artefact) -> Path | None:
    """Return the run folder around an artefact, or `None` if it was moved out."""
    folder = artefact.path.resolve().parents[1]
    return folder if (folder / "config.toml").is_file() else None


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
    artefacts: Sequence[NamedArtefact],
    files: Sequence[Path],
    folder: Path,
    num_least: int,
) -> list[Path]:
    """Return files of decoded images, one for each input shape, by artefact.

    Raises:
        DataError: An image cannot be read, or the folder is full.
    """
    made: dict[tuple[int, str], Path] = {}
    for one in artefacts:
        card = one.artefact.card
        key = card.size_px, card.fit
        if key not in made:
            images = [
                load_square(
                    file,
                    size_px=card.size_px,
                    fit=card.fit,
                    in_chans=3,
                    limits=card.limits,
                )
                # As many as the largest batch, and enough not to repeat one image.
                for file in files[: max(num_least, 64)]
            ]
            made[key] = folder / f"{card.size_px}-{card.fit}.npy"
            try:
                np.save(made[key], np.stack(images))
            except OSError as error:
                raise DataError(
                    f"cannot write {made[key]}: {error.strerror or error}",
                    hint="free some space there, or set TMPDIR to another folder",
                ) from error
    return [made[one.artefact.card.size_px, one.artefact.card.fit] for one in artefacts]


def _measure_starts(
    artefacts: Sequence[NamedArtefact],
    times: Sequence[Times],
    images: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Load each artefact in fresh processes: how long it takes, how much memory."""

    def start(place: int, _round: int) -> None:
        with Worker(artefacts[place].artefact.path, threads=plan.threads) as worker:
            times[place].loads.append(worker.open_session(images[place]))
            if (peak := worker.peak_memory_bytes()) is not None:
                times[place].peaks.append(peak)
            if times[place].facts is None:
                times[place].facts = worker.facts()

    take_turns(
        [partial(start, place) for place in range(len(artefacts))],
        seconds=0,
        min_rounds=_NUM_STARTS,
        max_rounds=_NUM_STARTS,
        shuffle_seed=SEED,
        progress=partial(progress, "load time and memory"),
    )


def _measure_calls(
    artefacts: Sequence[NamedArtefact],
    times: Sequence[Times],
    images: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Time calls with images that are decoded already, batch size by batch size."""
    with ExitStack() as stack:
        workers = []
        for one, file in zip(artefacts, images, strict=True):
            worker = stack.enter_context(
                Worker(one.artefact.path, threads=plan.threads)
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
            for of_one, rounds in zip(times, found, strict=True):
                of_one.calls[batch] = rounds


def _measure_files(
    artefacts: Sequence[NamedArtefact],
    times: Sequence[Times],
    files: Sequence[Path],
    plan: _Plan,
    progress: Progress,
) -> None:
    """Time everything from files on disk to labels, through `Predictor`."""
    for file in files:
        file.read_bytes()  # into the cache of the system, for all alike
    with ExitStack() as stack:
        workers = []
        for one in artefacts:
            worker = stack.enter_context(
                Worker(one.artefact.path, threads=plan.threads)
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
    for of_one, rounds in zip(times, found, strict=True):
        of_one.files = rounds


def _rounds_of(
    sides: Sequence[Callable[[int], T]],
    *,
    seconds: float,
    min_rounds: int,
    value_of: Callable[[T], float],
    progress: Callable[[int], None],
) -> list[list[T]]:
    def is_enough(found: list[list[T]]) -> bool:
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
    """Return the seconds per file in a turn of many; each round has other files."""
    num = min(_FILES_OF_A_TURN, len(files))
    first = number * num
    chosen = [files[place % len(files)] for place in range(first, first + num)]
    return worker.time_files(chosen) / num


def _subject(one: NamedArtefact) -> Subject:
    card, parity = one.artefact.card, one.artefact.parity()
    return Subject(
        name=one.name,
        run=one.run,
        kind=card.kind,
        networks=card.networks,
        size_px=card.size_px,
        size_bytes=one.artefact.size_bytes,
        accuracy=Accuracy(
            value=parity.accuracy.artefact,
            run=parity.accuracy.run,
            change=parity.accuracy.change,
            num_images=parity.num_images,
            subset="val",
        ),
    )


def _artefacts_at(path: Path, kinds: Sequence[Kind] | None) -> list[Artefact]:
    if is_artefact(path):
        return [open_artefact(path)]
    run = open_run(path)
    folder = run.path / "export"
    there = [kind for kind in KINDS if is_artefact(folder / kind)]
    missing = [kind for kind in kinds or [] if kind not in there]
    if missing:
        wanted = [word for kind in missing for word in ("--format", kind)]
        raise ArtefactError(
            f"{run.path} has no artefact of the format {', '.join(missing)}",
            hint=f"make it with: {_command(run, *wanted)}",
        )
    if not there:
        raise ArtefactError(
            f"{run.path} has no artefacts",
            hint=f"make them with: {_command(run, '--format', 'all')}",
        )
    return [open_artefact(folder / kind) for kind in there if kind in (kinds or there)]


def _command(run: Run, *words: str) -> str:
    """Return the command that exports a run, or its first fold."""
    folder = run.fold_path(0) if run.is_kfold else run.path
    return shlex.join(["tumorlens", "export", str(folder), *words])


def _run_key(artefact: Artefact) -> str:
    folder = run_folder(artefact)
    return str(folder or artefact.card.run)


def _val_files(runs: Sequence[Path]) -> list[Path]:
    for folder in runs:
        run = open_run(folder)
        try:
            rows = [row for row in run.split() if row.subset == "val"]
        except RunError:  # imported weights have no split
            continue
        sets = sets_of(run.config.data)
        if not rows or sets is None:
            continue
        files = [sets.file_at(row.path) for row in rows]
        gone = [file for file in files if not file.is_file()]
        if gone:
            raise DataError(
                f"there is no {gone[0]}, which is a val image of {folder}",
                hint="the images have moved: give --data FOLDER",
            )
        return files
    raise DataError(
        "no image to measure with: there is no run folder with val images",
        hint="give --data FOLDER",
    )
