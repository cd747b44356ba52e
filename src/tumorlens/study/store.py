"""The trials of a study as units of work: claimed, reported on and closed.

Each trial is a unit of `tumorlens.cluster.units`: at most one process runs it, of any
number of machines that share the database: an SQLite file for one machine, PostgreSQL
for several. Only names, settings, states and val measures are stored, never an image or
its path. The settings of a search are drawn by `tumorlens.study.search`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from tumorlens.cluster.units import LEASE_S, RENEW_S, Lease, Unit, Units, has_job
from tumorlens.errors import RunError
from tumorlens.study.plan import search_name
from tumorlens.study.search import SearchTrial, choose, points_of, should_prune
from tumorlens.urls import without_password

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from tumorlens.study.plan import StudyPlan

MAX_DEATHS = 3
"""Workers that may die on a trial before it counts as failed."""

# The notes of a unit.
_SETTINGS, _REPORTS, _PRUNER = "settings", "reports", "pruner"
_SPLITS, _DEATHS = "splits", "deaths"


@dataclass(frozen=True)
class TrialRow:
    """A trial as it is in the store."""

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

    def __init__(self, store: Store, lease: Lease) -> None:
        self.name = lease.unit.name
        self._store = store
        self._lease = lease

    @property
    def num_splits(self) -> int:
        """How often the batch was halved because memory ran out."""
        return int(self._lease.notes.get(_SPLITS, 0))

    def choose(self) -> dict[str, Any]:
        """Return the settings of a search's trial, drawn when it is first started."""
        known = self._lease.notes.get(_SETTINGS)
        if known := known or self._lease.unit.payload[_SETTINGS]:
            return dict(known)
        search = self._store.plan.search
        assert search is not None
        settings = choose(search, self._store.search_trials(), self.name)
        self._lease.note(**{_SETTINGS: settings})
        return settings

    def report(self, value: float, *, epoch: int) -> bool:
        """Report the val measure of an epoch; return whether the trial should go on."""
        search = self._store.plan.search
        assert search is not None
        reports = {
            key: earlier
            for key, earlier in self._lease.notes.get(_REPORTS, {}).items()
            # An epoch is reported again where the last attempt was not saved.
            if int(key) < epoch
        }
        trials = self._store.search_trials()
        mine = SearchTrial(
            "running",
            settings=self.choose(),
            reports=reports,
            pruner_notes=self._lease.notes.get(_PRUNER, {}),
        )
        is_hopeless, pruner_notes = should_prune(
            search, trials | {self.name: mine}, self.name, epoch=epoch, value=value
        )
        reports[str(epoch)] = value
        self._lease.note(**{_REPORTS: reports, _PRUNER: pruner_notes})
        return not is_hopeless

    def check(self) -> None:
        """Raise `LeaseLostError` once another process has taken the trial over."""
        self._lease.check()

    def split_batch(self) -> None:
        """Note that memory ran out, for this attempt and any later one."""
        self._lease.note(**{_SPLITS: self.num_splits + 1})

    def finish(self, value: float | None) -> None:
        """Close the trial with its val measure."""
        self._lease.finish({"value": value})

    def prune(self, reason: str) -> None:
        """Close the trial as not worth going on with."""
        self._lease.finish({"value": None, "pruned": reason})

    def fail(self, reason: str) -> None:
        """Close the trial with the reason why there is no result."""
        self._lease.fail(reason)

    def release(self) -> None:
        """Give the trial back: the next worker goes on with it."""
        self._lease.release()


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
            must_exist: Refuse to enter it, for commands that only read.

        Raises:
            ConfigError: The database is of another kind.
            MissingExtraError: SQLAlchemy or the database's driver is not installed.
            RunError: The database cannot be reached or used, or holds another study
                of the same name, or does not hold one that must exist.
        """
        if must_exist and not has_job(url, plan.name):
            raise RunError(
                f"the store {without_password(url)} holds no such study as "
                f"{plan.name!r}",
                hint=f"start it with: tumorlens study run {place}; or give the --store "
                "that it was started with",
            )
        self.plan = plan
        self._place = place
        self._units = Units(url, plan.name, lease_s=LEASE_S, renew_s=RENEW_S)
        digest = plan.digest()
        if self._units.enter(digest) != digest:
            raise RunError(
                f"the store {without_password(url)} holds another study called "
                f"{plan.name!r}",
                hint='give this one another name (name = "..." in its file) or another '
                "--store",
            )

    def fill(self) -> None:
        """Add each trial of the plan that is not there."""
        points = points_of(self.plan)
        self._units.add(
            (trial.name, {_SETTINGS: points.get(trial.name, {})})
            for trial in self.plan.trials()
        )

    def claim(self, *, only: str = "*") -> Claim | None:
        """Return the next trial to run, or `None` where none is left.

        Args:
            only: Pattern of the names that may be taken, as of a shell.
        """
        while not self.is_time_over():
            lease = self._units.claim(
                accepts=lambda name: fnmatchcase(name, only), place=str(self._place)
            )
            if lease is not None:
                return Claim(self, lease)
            units = self._units.all()
            if not self._can_grow(units):
                return None
            self._units.add([(search_name(len(units) + 1), {_SETTINGS: {}})])
        return None

    def needs_worker(self, pids: Collection[int], *, only: str = "*") -> bool:
        """Whether one more worker would find a trial now.

        Args:
            pids: Processes of the workers that there are. Those without a trial will
                take one.
            only: Pattern of the names that may be taken, as of a shell.
        """
        if self.is_time_over():
            return False
        units = self._units.all()
        num_idle = len({*pids} - {unit.pid for unit in units if unit.is_owned_here()})
        if num_idle < self._units.num_free(
            accepts=lambda name: fnmatchcase(name, only)
        ):
            return True
        return self._can_grow(units) and fnmatchcase(search_name(len(units) + 1), only)

    def _can_grow(self, units: Sequence[Unit]) -> bool:
        """Whether a trial can be added: none waits, and their number is open."""
        is_open = self.plan.search is not None and self.plan.num_search_trials is None
        return is_open and all(unit.state != "waiting" for unit in units)

    def take_back_orphans(self, pids: Collection[int] | None = None) -> None:
        """Let the trials of dead processes of this machine wait again.

        Args:
            pids: Only these processes; `None`: any.
        """
        for unit in self._units.all():
            if unit.is_orphan() and (pids is None or unit.pid in pids):
                self._units.take_back(unit, notes=unit.notes)

    def retry_failed(self) -> int:
        """Let the failed trials be run once more; return how many."""
        return self._units.reopen_failed(keep_notes=lambda name: name != _DEATHS)

    def rows(self) -> list[TrialRow]:
        """Return the trials in the order of the plan."""
        return [_row(unit) for unit in self._units.all()]

    def search_trials(self) -> dict[str, SearchTrial]:
        """Return name -> trial of a search, as the sampler and the pruner see it."""
        return {
            unit.name: SearchTrial(
                state=_state(unit),
                settings=_settings_of(unit),
                value=None if unit.result is None else unit.result["value"],
                reports=unit.notes.get(_REPORTS, {}),
                pruner_notes=unit.notes.get(_PRUNER, {}),
            )
            for unit in self._units.all()
        }

    def is_time_over(self) -> bool:
        """Whether a search has used up its minutes."""
        search = self.plan.search
        if search is None or search.minutes is None:
            return False
        spent = sum(unit.earlier_s + (unit.seconds or 0) for unit in self._units.all())
        return spent >= 60 * search.minutes

    def close_dead(self, pid: int, *, reason: str, is_memory: bool) -> bool:
        """Take back the trial of a worker of this machine that died by itself.

        It waits again, but fails with `reason` when that happens once too often.

        Args:
            pid: Number of the worker's process.
            reason: What is known of its end.
            is_memory: Whether the machine ran out of memory.

        Returns:
            Whether it had one.
        """
        had_one = False
        for unit in self._units.all():
            if unit.pid != pid or not unit.is_orphan():
                continue
            deaths = unit.notes.get(_DEATHS, 0) + 1
            splits = unit.notes.get(_SPLITS, 0) + is_memory
            notes = {**unit.notes, _DEATHS: deaths, _SPLITS: splits}
            if deaths < MAX_DEATHS:
                had_one |= self._units.take_back(unit, notes=notes)
            else:
                had_one |= self._units.change(
                    unit,
                    ends=True,
                    state="failed",
                    notes=notes,
                    reason=f"{reason}, {MAX_DEATHS} times",
                )
        return had_one


def _settings_of(unit: Unit) -> Mapping[str, Any]:
    """Return what a search chose for a trial; a grid chooses before it starts."""
    found: Mapping[str, Any] = unit.notes.get(_SETTINGS) or unit.payload[_SETTINGS]
    return found


def _state(unit: Unit) -> str:
    is_pruned = unit.state == "finished" and "pruned" in unit.result
    return "pruned" if is_pruned else unit.state


def _row(unit: Unit) -> TrialRow:
    result = unit.result or {}
    return TrialRow(
        name=unit.name,
        state=_state(unit),
        settings=_settings_of(unit),
        value=result.get("value"),
        reason=result.get("pruned", unit.reason),
        place=unit.place,
        seconds=unit.seconds,
    )
