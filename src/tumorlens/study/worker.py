"""Many configs become many runs: workers that take trials from a store and train them.

`run_study` starts workers and watches them; `work` is the loop of one worker, which
trains trials until none is left. A worker is a process of its own, so a crash ends one
trial only, and any number of workers on any number of machines can share a study. A
trial is judged by a val measure. Test is evaluated once, at the end of a trial, and
only if the plan has `test = true`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.cluster.units import LeaseLostError, StoreError
from tumorlens.config import differences, machine_settings
from tumorlens.errors import OutOfMemoryError, RunError, TumorlensError
from tumorlens.files import write_text
from tumorlens.runs.progress import Listener, Relay
from tumorlens.study.folder import Study, Trial
from tumorlens.system import (
    interruptible,
    is_out_of_memory,
    num_processors,
    start_python,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tumorlens.config import Config
    from tumorlens.runs.folder import Run
    from tumorlens.study.store import Claim, Store
    from tumorlens.study.tracking import StudyTracker
    from tumorlens.training.fit import TrainResult

_MAX_SPLITS = 5
"""Most halvings of a batch: 32 images then go through one by one."""

_OPEN_STATES = ("waiting", "running")
_POLL_S = 0.5
_PATIENCE_S = 60


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is."""

    counts: Mapping[str, int]
    """State -> number of trials."""
    epochs_done: int
    num_epochs: int
    seconds_left: float | None
    """`None` until the first epoch is done."""


def work(
    study: Study,
    store: Store,
    *,
    only: str = "*",
    command: str = "",
    make_listener: Callable[[str], Listener] | None = None,
) -> bool:
    """Run trials until none is left.

    Args:
        study: The study; its folder gets the runs.
        store: The store that the trials are claimed from.
        only: Shell pattern of the names of the trials to run.
        command: Command line of the user, for the record of the runs.
        make_listener: Returns the listener of a trial, given its name.

    Returns:
        False after an interrupt. The trial that ran is given back, and the next worker
        resumes it.

    Raises:
        StoreError: The store has been away for too long.
    """
    store.fill()
    while (claim := store.claim(only=only)) is not None:
        listener = make_listener(claim.name) if make_listener else None
        try:
            value = _run_trial(study, claim, command=command, listener=listener)
        except KeyboardInterrupt:
            claim.release()
            return False
        except StoreError:
            raise  # not the trial's fault: another worker goes on with it
        except LeaseLostError:
            continue
        except _PrunedError as error:
            claim.prune(str(error))
        except TumorlensError as error:
            claim.fail(error.problem)
        except Exception as error:
            # A fault of ours, or of a library: keep the traceback, go on with others.
            write_text(study.failure_path(claim.name), traceback.format_exc())
            claim.fail(f"{type(error).__name__}: {_first_line(error)}")
        else:
            if value is None:
                claim.release()
                return False
            claim.finish(value)
    return True


def run_study(
    study: Study,
    *,
    store_url: str | None = None,
    jobs: int = 1,
    only: str = "*",
    command: str = "",
    progress: Callable[[StudyProgress], None] = lambda _: None,
    notify: Callable[[str], None] = lambda _: None,
    tracker: StudyTracker | None = None,
) -> bool:
    """Run what is left of a study in worker processes of this machine.

    Args:
        study: The study.
        store_url: Address of the store, if it needs a password.
        jobs: Number of trials at once.
        only: Shell pattern of the names of the trials to run.
        command: Command line of the user, for the record of the runs.
        progress: Called about twice a second.
        notify: Called with a sentence whenever a trial ends.
        tracker: Mirror of the trials in MLflow.

    Returns:
        False after an interrupt. Else every trial is over, here or elsewhere, or the
        minutes of the search are spent.

    Raises:
        ConfigError: The store's address is of another kind.
        MissingExtraError: A library of the extra `study` is not installed.
        RunError: The store cannot be used, the folder cannot be written, or workers
            die without taking a trial.
    """
    store = study.open_store(store_url)
    store.fill()
    store.take_back_orphans()
    workers: list[subprocess.Popen[bytes]] = []
    pids: set[int] = set()
    watch = _Watch(study, store, only)
    early_deaths = 0
    with interruptible() as is_interrupted:
        try:
            while True:
                workers, dead = _split_by_liveness(workers)
                found = watch.update(notify)
                progress(found)
                if tracker:
                    tracker.update(watch.trials)
                for worker in dead:
                    early_deaths += _record_worker_death(store, worker)
                if early_deaths > jobs:
                    raise RunError(
                        f"the workers of the study die at once: {_last_line(study)}",
                        hint=f"look into {study.log_path}",
                    )
                if is_interrupted():
                    break
                while len(workers) < jobs and store.needs_worker(
                    [worker.pid for worker in workers], only=only
                ):
                    worker = _start_worker(
                        study, store_url, jobs=jobs, only=only, command=command
                    )
                    workers.append(worker)
                    pids.add(worker.pid)
                # Trials that other processes run are waited for: one may come back.
                num_left = sum(found.counts.get(one, 0) for one in _OPEN_STATES)
                if not workers and (num_left == 0 or store.is_time_over()):
                    break
                time.sleep(_POLL_S)
        finally:
            _stop(workers)
            # A worker that was stopped as it started could not give its trial back.
            with suppress(StoreError):
                store.take_back_orphans(pids)
    progress(watch.update(notify))
    if tracker:
        tracker.update(watch.trials, is_last=True)
    return not is_interrupted()


def _run_trial(
    study: Study, claim: Claim, *, command: str, listener: Listener | None
) -> float | None:
    """Train and measure one trial; return its val measure, `None` when interrupted.

    Raises:
        LeaseLostError: Another worker has taken the trial over.
        MemoryError: Memory ran out elsewhere.
        OutOfMemoryError: Memory ran out though each image went through alone.
        RunError: Memory ran out however the batch was split.
        RuntimeError: The training failed by a fault of ours or of a library.
        StoreError: The store has been away for too long.
        TumorlensError: It failed for a reason that the user can understand.
    """
    config = _config_of(study, claim)
    reporter = _Reporter(study, claim, listener or Listener())
    with study.locked(claim.name):
        for splits in range(claim.num_splits, _MAX_SPLITS + 1):
            parts = min(config.train.accumulate * 2**splits, config.train.batch_size)
            try:
                result = _train(
                    study, claim.name, _with_parts(config, parts), command, reporter
                )
            except (OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or parts == config.train.batch_size:
                    raise
                claim.split_batch()
                continue
            if not result.is_finished:
                return None
            if study.plan.test:
                _evaluate(result.run, command=command)
            return _value(result.run, study.plan.objective)
    raise RunError(
        f"memory ran out even with batches in {2**_MAX_SPLITS} parts",
        hint="lower train.batch_size or model.size_px",
    )


def _train(
    study: Study, name: str, config: Config, command: str, listener: Listener
) -> TrainResult:
    from tumorlens.training.fit import train

    run = study.open_run(name)
    if run is not None and _had_more_parts(run, config):
        # Memory ran out before, and a store that was lost does not know.
        config = _with_parts(config, run.config.train.accumulate)
    elif run is not None and _other_settings(run, config) == {"train.accumulate"}:
        # It was begun with batches in fewer parts, and its batch norm saw others.
        shutil.rmtree(run.path)
        run = None
    return train(
        config,
        out=study.run_path(name),
        resume=run is not None,
        command=command,
        listener=listener,
    )


def _had_more_parts(run: Run, config: Config) -> bool:
    """Whether a run is finished, or its batches were in more parts than planned."""
    return run.is_finished or run.config.train.accumulate > config.train.accumulate


def _other_settings(run: Run, config: Config) -> set[str]:
    """Return the settings that differ and do not belong to the machine."""
    return set(differences(run.config, config)) - set(machine_settings())


def _evaluate(run: Run, *, command: str) -> None:
    from tumorlens.evaluation.measure import evaluate

    if not run.metrics_of("test").exists():
        evaluate(run, subset="test", command=command)


def _config_of(study: Study, claim: Claim) -> Config:
    plan = study.plan
    if plan.search is not None:
        return plan.config_of(
            claim.choose(),
            protocol=plan.protocols[0],
            seed=plan.seeds[0],
        )
    trial = next(trial for trial in plan.trials() if trial.name == claim.name)
    return plan.config_of(trial.settings, protocol=trial.protocol, seed=trial.seed)


def _with_parts(config: Config, parts: int) -> Config:
    train = config.train.model_copy(update={"accumulate": parts})
    return config.model_copy(update={"train": train})


def _value(run: Run, objective: str) -> float:
    """Return the val measure of the kept weights; of folds, their mean."""
    values = []
    for part in run.folds() or (run,):
        kept = [row for row in part.history() if row.get("is_best")]
        values.append(kept[-1][f"val_{objective}"])
    return float(sum(values) / len(values))


class _PrunedError(Exception):
    """A trial was closed early by the pruner."""


class _Reporter(Relay):
    """Reports each epoch to the store, which may end the trial."""

    def __init__(self, study: Study, claim: Claim, inner: Listener) -> None:
        super().__init__(inner)
        self._claim = claim
        search = study.plan.search
        self._column = f"val_{study.plan.objective}"
        self._prunes = search is not None and search.pruner != "none"
        self._last_epoch = 0

    def batch(self, epoch: int, done: int, total: int) -> None:
        super().batch(epoch, done, total)
        self._claim.check()

    def epoch(self, row: dict[str, Any]) -> None:
        super().epoch(row)
        # Epochs that begin anew are those of the next fold: the first one counts.
        self._prunes = self._prunes and row["epoch"] > self._last_epoch
        self._last_epoch = row["epoch"]
        if self._prunes and not self._claim.report(
            row[self._column], epoch=row["epoch"]
        ):
            raise _PrunedError(f"no better than others after {row['epoch']} epochs")


class _Watch:
    """Progress of a study: states from the store, epochs from the run folders."""

    def __init__(self, study: Study, store: Store, only: str) -> None:
        self._study = study
        self._store = store
        self._only = only
        self._start = time.monotonic()
        self._states: dict[str, str] = {}
        self.trials: list[Trial] = []
        """As they were at the last update."""
        self._first_epochs: int | None = None

    def update(self, notify: Callable[[str], None]) -> StudyProgress:
        self.trials = trials = [
            trial
            for trial in self._study.trials(self._store)
            if fnmatchcase(trial.name, self._only)
        ]
        counts: dict[str, int] = {}
        done = in_all = 0
        for trial in trials:
            counts[trial.state] = counts.get(trial.state, 0) + 1
            epochs = self._study.plan.base.optim.epochs
            epochs = int(trial.settings.get("optim.epochs", epochs))
            if trial.protocol == "grouped-kfold":
                epochs *= self._study.plan.base.data.num_folds
            in_all += epochs
            is_over = trial.state in ("finished", "pruned", "failed")
            done += epochs if is_over else min(epochs, _epochs_of(trial.run_path))
            before = self._states.get(trial.name)
            if is_over and before != trial.state and before is not None:
                notify(_sentence(trial))
            self._states[trial.name] = trial.state
        if self._first_epochs is None:
            self._first_epochs = done
        gone = done - self._first_epochs
        per_epoch = (time.monotonic() - self._start) / gone if gone else None
        left = None if per_epoch is None else per_epoch * (in_all - done)
        return StudyProgress(counts, done, in_all, left)


def _epochs_of(run: Path) -> int:
    files = [run / "history.jsonl", *run.glob("folds/*/history.jsonl")]
    total = 0
    for file in files:
        try:
            total += file.read_bytes().count(b"\n")
        except OSError:
            continue
    return total


def _sentence(trial: Trial) -> str:
    if trial.reason:
        return f"{trial.name}: {trial.state}, {trial.reason}"
    value = "" if trial.value is None else f", val {trial.value:.3f}"
    return f"{trial.name}: {trial.state}{value}"


def _start_worker(
    study: Study, store_url: str | None, *, jobs: int, only: str, command: str
) -> subprocess.Popen[bytes]:
    environment = {"TUMORLENS_STUDY_COMMAND": command}
    if store_url is not None:
        # Not on the command line, where every user of the machine could read it.
        environment["TUMORLENS_STUDY_STORE"] = store_url
    if jobs > 1:
        threads = str(max(1, num_processors() // jobs))
        environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    try:
        log = study.log_path.open("ab")
    except OSError as error:
        raise RunError(
            f"cannot write {study.log_path}: {error.strerror or error}",
            hint="make the study's folder writable",
        ) from None
    with log:
        return start_python(
            "tumorlens.study.worker",
            str(study.path),
            only,
            stdout=log,
            stderr=log,
            environment=environment,
        )


def _split_by_liveness(
    workers: list[subprocess.Popen[bytes]],
) -> tuple[list[subprocess.Popen[bytes]], list[subprocess.Popen[bytes]]]:
    """Return the workers that run, and those that have ended."""
    alive: list[subprocess.Popen[bytes]] = []
    dead: list[subprocess.Popen[bytes]] = []
    for worker in workers:
        (alive if worker.poll() is None else dead).append(worker)
    return alive, dead


def _record_worker_death(store: Store, worker: subprocess.Popen[bytes]) -> bool:
    """Record the end of a worker; return whether it died without a trial."""
    status = worker.returncode
    if status == 0:
        return False
    is_killed = status == -signal.SIGKILL
    reason = (
        "its worker was killed; often the machine ran out of memory"
        if is_killed
        else f"its worker ended with status {status}"
    )
    return not store.close_dead(worker.pid, reason=reason, is_memory=is_killed)


def _stop(workers: list[subprocess.Popen[bytes]]) -> None:
    """Stop the workers after their current batch, and wait for them."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _end_with(parent: int) -> None:
    """End this process by SIGTERM when its parent is gone, which kill -9 can do."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _last_line(study: Study) -> str:
    lines = study.log_path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no output")[:300]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else "no message"


def _main() -> int:
    from tumorlens.study.folder import open_study

    _end_with(os.getppid())
    store_url = os.environ.pop("TUMORLENS_STUDY_STORE", None)
    command = os.environ.pop("TUMORLENS_STUDY_COMMAND", "")
    try:
        study = open_study(Path(sys.argv[1]))
        work(study, study.open_store(store_url), only=sys.argv[2], command=command)
    except KeyboardInterrupt:
        pass  # between two trials: there is nothing to give back
    except TumorlensError as error:
        sys.stderr.write(f"error: {error.problem}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
