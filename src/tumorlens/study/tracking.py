"""A study mirrored in MLflow: its trials are runs of one experiment.

The process that watches the workers does it, not the workers: one process makes the
experiment, and a server that is away costs one warning in the terminal, not one per
worker in a log. Only the progress bar waits for the server.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.files import write_text
from tumorlens.runs.tracking import DATABASE, Tracker
from tumorlens.urls import without_password

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tumorlens.study.folder import Study, Trial

_STATES = {"running": "RUNNING", "failed": "FAILED"}
"""MLflow's states; a trial that is over in another way was stopped."""


class StudyTracker:
    """Mirrors the trials of a study on this machine.

    Args:
        path: Folder of the study, which need not exist yet.
        name: Name of the study and of its experiment.
        url: As for `tracking.Tracker`. Empty: where the study was tracked before, else
            `mlflow.db` beside its folder, which it shares with the runs there.
        warn: Called once, with one sentence, when something breaks.

    Raises:
        ConfigError: `url` is not a URL.
        MissingExtraError: MLflow is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        url: str = "",
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self._given = url
        beside = f"sqlite:///{path.resolve().parent / DATABASE}"
        self._url = url or _kept(path) or beside
        self._tracker = Tracker(self._url, experiment=name, warn=warn)
        self._sent: dict[str, tuple[str, int]] = {}

    def begin(self, study: Study) -> None:
        """Record in the study's folder where it is tracked, if a URL was given."""
        if self._given:
            write_text(study.tracking_path, without_password(self._given) + "\n")

    def update(self, trials: Iterable[Trial], *, is_last: bool = False) -> None:
        """Send the changes since the last update.

        Args:
            trials: All trials of the study.
            is_last: Whether to try again a server that has just been away, and to mark
                running trials as stopped.
        """
        for trial in trials:
            state = _STATES.get(trial.state, "KILLED")
            if is_last and state == "RUNNING":
                state = "KILLED"
            now = (state, _size(trial.run_path))
            if now[1] == 0 or self._sent.get(trial.name) == now:
                continue
            if self._tracker.keep_up(trial.run_path, state=state, is_last=is_last):
                self._sent[trial.name] = now
            elif is_last:
                # Every other trial would wait for the same server.
                return

    def words(self) -> str:
        """Return where the study can be seen; empty if tracking is broken."""
        return self._tracker.summary(self._url, of="study")


def _kept(path: Path) -> str:
    try:
        return (path / "tracking.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _size(run: Path) -> int:
    """Return a size that grows with every epoch of a run and every evaluation."""
    total = 0
    for pattern in ("history.jsonl", "folds/*/history.jsonl", "metrics*.json"):
        for file in run.glob(pattern):
            # A worker may begin the run anew at this moment.
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total
