"""The study folder: its files, and the only module that names them.

    STUDY/study.toml         the complete plan
        store.txt            the address of the store, without a password
        store.sqlite         the store, unless it is a server
        tracking.txt         where it is mirrored, if a URL was given
        trials/NAME          ordinary run folders, one per trial
        trials/NAME.txt      the traceback of a trial that failed by a fault in code
        locks/NAME.lock      held while the run folder is written
        worker.log           what the workers printed
        comparison.json, comparison.html, comparison.csv ..., figures/

The results are in the run folders; `tumorlens.study.compare` puts them side by side.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.errors import RunError
from tumorlens.files import is_ours, locked, write_text
from tumorlens.runs.folder import Run, open_run
from tumorlens.study.plan import StudyPlan
from tumorlens.study.plan_file import dump_plan, read_plan
from tumorlens.study.store import Store
from tumorlens.urls import without_password

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LOCK_S = 120


@dataclass(frozen=True)
class Trial:
    """A trial as it stands: its settings by the plan, its state by the store."""

    name: str
    arm: str
    settings: Mapping[str, Any]
    """Settings that differ from the base, by the plan or chosen by a search."""
    protocol: str
    seed: int
    run_path: Path
    """Its run folder, which may not exist yet, or be on another machine."""
    state: str
    """waiting, running, finished, pruned or failed."""
    reason: str | None
    """Why it failed or was pruned."""
    value: float | None
    """The val measure that the trials are judged by."""
    seconds: float | None
    place: str | None
    """Machine and study folder where it ran."""


@dataclass(frozen=True)
class Study:
    """A study folder on disk."""

    path: Path
    plan: StudyPlan

    @property
    def trials_dir(self) -> Path:
        """The run folders of the trials."""
        return self.path / "trials"

    def run_path(self, trial: str) -> Path:
        """Return the run folder of a trial."""
        return self.trials_dir / trial

    def failure_path(self, trial: str) -> Path:
        """Return where the traceback of a failed trial is."""
        return self.trials_dir / f"{trial}.txt"

    @property
    def log_path(self) -> Path:
        """Output of the workers, with the warnings of libraries."""
        return self.path / "worker.log"

    @property
    def tracking_path(self) -> Path:
        """The address of the MLflow that mirrors the trials, without a password."""
        return self.path / "tracking.txt"

    @property
    def store_url(self) -> str:
        """The address of the store, without a password."""
        try:
            return (self.path / "store.txt").read_text(encoding="utf-8").strip()
        except OSError:
            return f"sqlite:///{(self.path / 'store.sqlite').resolve()}"

    def open_store(self, url: str | None = None, *, must_exist: bool = False) -> Store:
        """Return the store of this study.

        Args:
            url: Its address, if it needs a password.
            must_exist: Whether to refuse a store that does not hold the study yet.

        Raises:
            ConfigError: The address is of another kind.
            MissingExtraError: A library of the extra `study` is not installed.
            RunError: It cannot be reached, or holds another study of that name, or
                none where one must exist.
        """
        return Store(
            self.plan,
            url or self.store_url,
            place=self.path.resolve(),
            must_exist=must_exist,
        )

    def trials(self, store: Store | None = None) -> list[Trial]:
        """Return the trials in the order of the plan.

        Raises:
            MissingExtraError: A library of the extra `study` is not installed.
            RunError: The store cannot be reached.
        """
        planned = {trial.name: trial for trial in self.plan.trials()}
        found = []
        for row in (store or self.open_store()).rows():
            trial = planned.get(row.name)
            is_planned = trial is not None and bool(trial.arm)
            found.append(
                Trial(
                    name=row.name,
                    arm=trial.arm if trial and is_planned else row.name,
                    settings=trial.settings if trial and is_planned else row.settings,
                    protocol=trial.protocol if trial else self.plan.protocols[0],
                    seed=trial.seed if trial else self.plan.seeds[0],
                    run_path=self.run_path(row.name),
                    state=row.state,
                    reason=row.reason,
                    value=row.value,
                    seconds=row.seconds,
                    place=row.place,
                )
            )
        return found

    @contextmanager
    def locked(self, trial: str) -> Iterator[None]:
        """Keep every other process of this file system out of a trial's run folder.

        Raises:
            RunError: Another process has held the folder for two minutes.
        """
        # Not in the folder of the trials, where trials/* should be runs.
        lock = self.path / "locks" / f"{trial}.lock"
        with locked(self.run_path(trial), lock=lock, wait_s=_LOCK_S):
            yield

    def open_run(self, trial: str) -> Run | None:
        """Return the run of a trial, or `None` if it has not begun.

        Raises:
            RunError: There is one that this version cannot read. It is left alone: a
                newer one may have begun it.
        """
        path = self.run_path(trial)
        # A kill may have left a folder without settings, which a training takes over.
        return open_run(path) if (path / "config.toml").is_file() else None


def create_study(path: Path, plan: StudyPlan, *, store_url: str | None) -> Study:
    """Make a study folder, or find the one that this plan has made.

    Raises:
        RunError: The folder holds something else, or cannot be one: it or a folder
            above it is a file.
    """
    check_place(path)
    # Two at once with other settings would mix the plan of one with the other's store.
    with locked(path):
        return _create(path, plan, store_url)


def _create(path: Path, plan: StudyPlan, store_url: str | None) -> Study:
    if (path / "study.toml").exists():
        study = open_study(path)
        plan = plan.as_known_to(study.plan)
        if study.plan.digest() != plan.digest():
            how = "; ".join(study.plan.differences(plan))
            raise RunError(
                f"{path} holds another study, or this one with other settings: {how}",
                hint="give another --out, restore what has changed, or go on with the "
                "one that is there: "
                f"tumorlens study run {path}",
            )
    elif not all(map(is_ours, path.iterdir())):
        raise RunError(
            f"{path} exists and is not a study folder", hint="give another --out"
        )
    if store_url is not None:
        write_text(path / "store.txt", without_password(store_url) + "\n")
    # Last: a folder with this file is complete.
    write_text(path / "study.toml", dump_plan(plan))
    return Study(path, plan)


def check_place(path: Path) -> None:
    """Check that a path can be a folder, before work is done for it.

    Raises:
        RunError: It or a folder above it is a file.
    """
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise RunError(
                f"the study cannot be put in {path}: {place} is a file",
                hint="give another --out",
            )


def open_study(path: Path) -> Study:
    """Return the study of a folder.

    Raises:
        ConfigError: Its plan is damaged.
        RunError: It is not a study folder.
    """
    plan_path = path / "study.toml"
    if not plan_path.is_file():
        raise RunError(
            f"{path} is not a study folder: it has no study.toml",
            hint="give the folder that tumorlens study run made",
        )
    return Study(path, read_plan(plan_path))
