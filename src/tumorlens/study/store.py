"""Who runs which trial of a study: claims in a database that several may share.

A trial is taken by at most one worker, whoever asks; one whose worker died is free
again. The database is Optuna's: an SQLite file for one machine, or PostgreSQL for
several. Only names, settings, states and val measures are in it, no file of an image.

A newcomer would expect a dead worker's trial to be handed on as it is. It is closed and
queued anew under the same name instead: closing is the one step that the database lets
only one of several rescuers take.
"""

from __future__ import annotations

import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tumorlens.errors import RunError
from tumorlens.extras import require
from tumorlens.study.database import file_lock, holds_study, open_storage, readable
from tumorlens.study.plan import Range, Search, StudyPlan, search_name
from tumorlens.study.search import (
    chosen_value,
    direction_of,
    points_of,
    pruner_of,
    sampler_of,
    suggest,
)
from tumorlens.urls import without_password

if TYPE_CHECKING:
    from pathlib import Path

HEARTBEAT_S = 15
GRACE_S = 90
"""A worker of another machine that was silent for so long is taken for dead."""

MAX_DEATHS = 3
"""Workers that may die on a trial before it counts as failed."""


@dataclass(frozen=True)
class TrialRow:
    """What the store knows of a trial."""

    name: str
    state: str
    """waiting, running, finished, pruned or failed."""
    settings: Mapping[str, Any]
    """What a search chose; empty for the arms of a plan."""
    value: float | None
    """The val measure that a search aims at, or the one that picked the epoch."""
    reason: str | None
    """Why it failed or was pruned."""
    place: str | None
    """Machine and folder where it ran or runs."""
    seconds: float | None
    """From its last start to its end, or to now."""


class Claim:
    """A trial that this process, and no other, may run."""

    def __init__(
        self, store: Store, trial: Any, name: str, *, num_splits: int = 0
    ) -> None:
        self.name = name
        self.num_splits = num_splits
        """How often the batch was split because memory ran out."""
        self._store = store
        self._trial = trial
        self._is_over = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def choose(self, ranges: Mapping[str, Range | list[Any]]) -> dict[str, Any]:
        """Return the settings of a search's trial, chosen now or when first started."""
        return {key: suggest(self._trial, key, of) for key, of in ranges.items()}

    def report(self, value: float, *, epoch: int) -> bool:
        """Tell the val measure of an epoch; return whether the trial should go on."""
        self._trial.report(value, epoch)
        return not self._trial.should_prune()

    def note(self, name: str, value: Any) -> None:
        """Keep something about the trial, such as that its batch was split."""
        self._trial.set_user_attr(name, value)

    def finish(self, value: float | None) -> None:
        """Close the trial with its val measure."""
        self._close(self._store.states.COMPLETE, value)

    def prune(self, reason: str) -> None:
        """Close the trial as not worth going on with."""
        self._trial.set_user_attr("reason", reason)
        self._close(self._store.states.PRUNED)

    def fail(self, reason: str) -> None:
        """Close the trial with the reason why there is no result."""
        self._trial.set_user_attr("reason", reason)
        self._close(self._store.states.FAIL)

    def release(self) -> None:
        """Give the trial back, for whoever comes next to go on with it."""
        self._close(self._store.states.FAIL)
        self._store.fill()

    def _close(self, state: Any, value: float | None = None) -> None:
        self._is_over.set()
        self._heart.join()
        values = None if value is None else [value]
        # Where it was taken for dead meanwhile, the run folder still has it all.
        with suppress(self._store.optuna.exceptions.UpdateFinishedTrialError):
            self._store.storage.set_trial_state_values(
                self._trial._trial_id, state=state, values=values
            )

    def _beat(self) -> None:
        while not self._is_over.wait(HEARTBEAT_S):
            # A database that is away for a moment must not end a training.
            with suppress(Exception):
                self._store.storage.record_heartbeat(self._trial._trial_id)


class Store:
    """The trials of one study in a database."""

    def __init__(
        self, plan: StudyPlan, url: str, *, place: Path, must_exist: bool = False
    ) -> None:
        """Open the study of a plan, or enter it.

        Args:
            plan: Must be the one that the study was entered with.
            url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.
            place: The study's folder on this machine, for the record.
            must_exist: Refuse to enter it: for those who only want to look.

        Raises:
            ConfigError: The database is of another kind.
            MissingExtraError: Optuna or the database's driver is not installed.
            RunError: The database cannot be reached or used, or holds another study
                of the same name, or does not hold one that must exist.
        """
        self.optuna = require("optuna")
        if must_exist and not holds_study(url, plan.name):
            raise RunError(
                f"the store {without_password(url)} holds no such study as "
                f"{plan.name!r}",
                hint=f"start it with: tumorlens study run {place}; or give the --store "
                "that it was started with",
            )
        self.states = self.optuna.trial.TrialState
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        self._plan = plan
        self._place = place
        self._url = url
        self._lock = file_lock(url)
        self._replaced: set[int | None] = set()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental, says Optuna
            with self._exclusive(), readable(url):
                self.storage = open_storage(
                    url, heartbeat_s=HEARTBEAT_S, grace_s=GRACE_S
                )
                self._study = self.optuna.create_study(
                    study_name=plan.name,
                    storage=self.storage,
                    pruner=pruner_of(self.optuna, plan.search),
                    direction=direction_of(plan.search),
                    load_if_exists=True,
                )
                self._check_same(plan)

    def fill(self) -> None:
        """Queue each trial of the plan that is not there, or whose worker died."""
        with self._exclusive():
            names = [trial.name for trial in self._plan.trials()]
            trials = self._trials()
            if self._plan.search is not None and self._plan.num_search_trials is None:
                names = sorted({trial.user_attrs["name"] for trial in trials})
            points = points_of(self._plan)
            alive = {trial.user_attrs["name"] for trial in trials if self._lives(trial)}
            known = {trial.user_attrs["name"]: trial for trial in trials}
            for name in names:
                if name not in alive:
                    old = known.get(name)
                    params = old.params if old and old.params else points.get(name)
                    self._queue(name, params)

    def claim(self, *, only: str = "*") -> Claim | None:
        """Take the next trial, or `None` when none is left that could be taken.

        Trials of dead workers are freed first.

        Args:
            only: Pattern of the names that may be taken, as of a shell.
        """
        self._rescue()
        with self._exclusive():
            trials = self._trials()
            search = self._plan.search
            if search is not None and self._is_time_over(trials, search):
                return None
            waiting = [t for t in trials if t.state == self.states.WAITING]
            if not waiting and search and self._plan.num_search_trials is None:
                names = {trial.user_attrs["name"] for trial in trials}
                self._queue(search_name(len(names) + 1))
                trials = self._trials()
                waiting = [t for t in trials if t.state == self.states.WAITING]
            # In the order of the plan: what was interrupted need not wait for all that
            # was queued before that.
            order = self._order()
            for trial in sorted(
                waiting, key=lambda one: (order(one.user_attrs["name"]), one.number)
            ):
                if not fnmatchcase(trial.user_attrs["name"], only):
                    continue
                if self._take(trial, trials):
                    name = trial.user_attrs["name"]
                    num_splits = sum(
                        bool(other.user_attrs.get("memory"))
                        for other in trials
                        if other.user_attrs["name"] == name
                    )
                    handle = self._handle(trial._trial_id, name)
                    return Claim(self, handle, name, num_splits=num_splits)
        return None

    def retry_failed(self) -> int:
        """Queue the failed trials once more; return how many."""
        with self._exclusive():
            failed = [
                trial
                for trial in self._trials()
                if trial.state == self.states.FAIL and self._lives(trial)
            ]
            for trial in failed:
                name = trial.user_attrs["name"]
                self._queue(name, trial.params, replaces=trial.number)
        return len(failed)

    def rows(self) -> list[TrialRow]:
        """Return what is known of each trial, in the order of the plan."""
        latest: dict[str, Any] = {}
        for trial in self._trials():
            name = trial.user_attrs["name"]
            if self._lives(trial) or not self._lives(latest.get(name, trial)):
                latest[name] = trial
        return [
            self._row(name, latest[name]) for name in sorted(latest, key=self._order())
        ]

    def _order(self) -> Callable[[str], tuple[int, str]]:
        """Return what sorts the names of trials as the plan does."""
        places = {trial.name: place for place, trial in enumerate(self._plan.trials())}
        return lambda name: (places.get(name, len(places)), name)

    def is_time_over(self) -> bool:
        """Whether a search has used up its minutes."""
        search = self._plan.search
        return search is not None and self._is_time_over(self._trials(), search)

    def close_dead(self, pid: int, *, reason: str, is_memory: bool) -> bool:
        """Close the trial of a worker of this machine that died by itself.

        It is queued anew, but fails with `reason` when that happens once too often.

        Args:
            pid: Of the worker.
            reason: What is known of its end.
            is_memory: Whether the machine ran out of memory.

        Returns:
            Whether it had one.
        """
        had_one = False
        trials = self._trials()
        for trial in trials:
            if not self._is_orphan(trial) or trial.user_attrs["process"][0] != pid:
                continue
            name = trial.user_attrs["name"]
            deaths = sum(
                "died" in other.user_attrs
                for other in trials
                if other.user_attrs["name"] == name
            )
            notes: dict[str, Any] = {"died": True, "memory": is_memory}
            if deaths + 1 >= MAX_DEATHS:
                notes["reason"] = f"{reason}, {MAX_DEATHS} times"
            for key, value in notes.items():
                self.storage.set_trial_user_attr(trial._trial_id, key, value)
            self._close_orphan(trial)
            had_one = True
        self.fill()
        return had_one

    def _rescue(self) -> None:
        """Free the trials whose workers died: at once here, later elsewhere."""
        for trial in self._trials():
            if self._is_orphan(trial):
                self._close_orphan(trial)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optuna.storages.fail_stale_trials(self._study)
        self.fill()

    def _close_orphan(self, trial: Any) -> None:
        # Of several rescuers one closes it; to the others it is finished.
        with suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial._trial_id, state=self.states.FAIL)

    def _is_orphan(self, trial: Any) -> bool:
        """Whether a process of this machine had the trial and is no more."""
        attrs = trial.user_attrs
        if trial.state != self.states.RUNNING or attrs.get("host") != _host():
            return False
        if "process" not in attrs:
            return False
        return not _is_alive(*attrs["process"])

    def _lives(self, trial: Any) -> bool:
        """Whether a trial counts: not one that was closed to be queued anew."""
        is_closed = trial.state == self.states.FAIL and "reason" not in trial.user_attrs
        return not is_closed and trial.number not in self._replaced

    def _take(self, trial: Any, trials: list[Any]) -> bool:
        name = trial.user_attrs["name"]
        twins = [t for t in trials if t.user_attrs["name"] == name and self._lives(t)]
        if any(twin.number < trial.number for twin in twins):
            # Two rescuers queued it: the first entry counts.
            self.storage.set_trial_state_values(trial._trial_id, state=self.states.FAIL)
            return False
        if not self.storage.set_trial_state_values(
            trial._trial_id, state=self.states.RUNNING
        ):
            return False
        self.storage.record_heartbeat(trial._trial_id)
        for key, value in (
            ("host", _host()),
            ("process", _process()),
            ("folder", str(self._place)),
        ):
            self.storage.set_trial_user_attr(trial._trial_id, key, value)
        return True

    def _handle(self, trial_id: int, name: str) -> Any:
        """Return Optuna's trial, with a sampler that is seeded for it alone."""
        study = copy(self._study)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental, says Optuna
            study.sampler = sampler_of(self.optuna, self._plan.search, name=name)
        return self.optuna.trial.Trial(study, trial_id)

    def _queue(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        replaces: int | None = None,
    ) -> None:
        attrs: dict[str, Any] = {"name": name}
        if replaces is not None:
            attrs["replaces"] = replaces
        if params:
            self._study.enqueue_trial(dict(params), user_attrs=attrs)
        else:
            waiting = self.optuna.trial.create_trial(
                state=self.states.WAITING, user_attrs=attrs
            )
            self._study.add_trial(waiting)

    def _trials(self) -> list[Any]:
        # By the study: Optuna caches there which trials it has heard of.
        every = self._study.get_trials(deepcopy=False)
        trials = [trial for trial in every if "name" in trial.user_attrs]
        self._replaced = {trial.user_attrs.get("replaces") for trial in trials}
        return trials

    def _row(self, name: str, trial: Any) -> TrialRow:
        states = {
            self.states.WAITING: "waiting",
            self.states.RUNNING: "running",
            self.states.COMPLETE: "finished",
            self.states.PRUNED: "pruned",
            self.states.FAIL: "failed" if self._lives(trial) else "waiting",
        }
        attrs = trial.user_attrs
        place = f"{attrs['host']}:{attrs['folder']}" if "folder" in attrs else None
        end = trial.datetime_complete or datetime.now()
        start = trial.datetime_start
        return TrialRow(
            name=name,
            state=states[trial.state],
            settings={key: chosen_value(value) for key, value in trial.params.items()},
            value=trial.values[0] if trial.values else None,
            reason=attrs.get("reason"),
            place=place,
            seconds=(end - start).total_seconds() if start else None,
        )

    def _is_time_over(self, trials: list[Any], search: Search) -> bool:
        if search.minutes is None:
            return False
        spent = sum(self._row("", trial).seconds or 0 for trial in trials)
        return spent >= 60 * search.minutes

    def _check_same(self, plan: StudyPlan) -> None:
        digest = plan.digest()
        known = self._study.user_attrs.get("plan")
        if known is None:
            self._study.set_user_attr("plan", digest)
        elif known != digest:
            raise RunError(
                f"the store {without_password(self._url)} holds another study called "
                f"{plan.name!r}",
                hint='give this one another name (name = "..." in its file) or another '
                "--store",
            )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # SQLite does not lock a row that is read in order to be changed.
        with self._lock:
            yield


def _host() -> str:
    return socket.gethostname()


def _process() -> tuple[int, float]:
    psutil = require("psutil")
    return os.getpid(), psutil.Process().create_time()


def _is_alive(pid: int, started: float) -> bool:
    psutil = require("psutil")
    try:
        # A number is used again; with its start it is not. psutil rounds to 10 ms.
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < 1
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
