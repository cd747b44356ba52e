"""A study mirrored into MLflow: its trials are runs of one experiment.

The process that watches a study mirrors its trials, not the workers that train them:
one process makes the experiment, and a server that is away costs one warning in the
terminal, not one for each worker in a log. Nothing waits for it but the progress bar.
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
"""MLflow's words; what else is not finished was stopped, by somebody or a pruner."""


class StudyTracker:
    """Mirrors the trials of a study on this machine.

    Args:
        path: The study's folder, which need not exist yet.
        name: Of the study, and of its experiment.
        url: As for `tracking.Tracker`. Empty: where the study was tracked before, else
            `mlflow.db` beside its folder, which it shares with the runs there.
        warn: Told once, in one sentence, when something breaks.

    Raises:
        ConfigError: `url` is no URL.
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
        """Note in the study's folder where it is tracked, if that was said."""
        if self._given:
            write_text(study.tracking_path, without_password(self._given) + "\n")

    def look(self, trials: Iterable[Trial], *, is_last: bool = False) -> None:
        """Send what is new since the last look.

        Args:
            trials: All of the study.
            is_last: Also where a server was away a short while ago; and what was
                running is stopped.
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
                # Each further one would wait for the same server.
                return

    def words(self) -> str:
        """Return where the study can be looked at; empty where tracking is broken."""
        return self._tracker.summary(self._url, of="study")


def _kept(path: Path) -> str:
    try:
        return (path / "tracking.txt").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _size(run: Path) -> int:
    """Return what grows with every epoch of a run, and when it is evaluated."""
    total = 0
    for pattern in ("history.jsonl", "folds/*/history.jsonl", "metrics*.json"):
        for file in run.glob(pattern):
            # Its worker may begin it anew at this moment.
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total
