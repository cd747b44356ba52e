"""A study in the terminal: its progress bar, its trials, its plan."""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tumorlens.cli import terminal
from tumorlens.text import counted, duration, one_line, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.progress import Progress as Bars

    from tumorlens.study.folder import Trial
    from tumorlens.study.plan import PlannedTrial, StudyPlan
    from tumorlens.study.worker import StudyProgress


class StudyDisplay:
    """A bar for the whole study, and a line for each trial that ends."""

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None, left="") if bars else None

    def progress(self, found: StudyProgress) -> None:
        """Show how far the study is."""
        if not self._bars or self._task is None:
            return
        words = ", ".join(
            f"{count} {state}"
            for state in ("running", "waiting", "finished", "pruned", "failed")
            if (count := found.counts.get(state))
        )
        left = found.seconds_left
        self._bars.update(
            self._task,
            description=words,
            completed=found.epochs_done,
            total=found.num_epochs,
            left="" if left is None else f"{duration(left)} left",
        )

    def print_line(self, words: str) -> None:
        """Print a line above the bar."""
        line = one_line(words)
        if self._bars:
            self._bars.console.print(line, highlight=False, markup=False)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


@contextmanager
def studying() -> Iterator[StudyDisplay]:
    """Show the display of a study while the body runs."""
    with terminal.progress_bars(last="{task.fields[left]}") as bars:
        yield StudyDisplay(bars)


def print_trials(trials: Iterable[Trial], *, measure: str) -> None:
    """Print the trials of a study as they stand.

    Args:
        trials: Trials of the study.
        measure: Name of the val measure that their values are of.
    """
    rows = [
        [
            trial.name,
            _state(trial),
            "" if trial.value is None else _value(trial.value, measure),
            "" if trial.seconds is None else duration(trial.seconds),
            one_line(trial.reason or ""),
        ]
        for trial in trials
    ]
    heading = f"val {measure.replace('_', ' ')}"
    terminal.print_table(["trial", "state", heading, "time", "why"], rows)


def _state(trial: Trial) -> str:
    """Return the state; a waiting trial that has begun is called interrupted."""
    is_begun = trial.state == "waiting" and trial.run_path.is_dir()
    return "interrupted" if is_begun else str(trial.state)


def _value(value: float, measure: str) -> str:
    return f"{value:.3f}" if measure == "loss" else percent(value)


def best_words(plan: StudyPlan, trials: Iterable[Trial]) -> str:
    """Return a sentence on the best trial of a search; empty for other studies.

    Args:
        plan: The study's plan.
        trials: The study's trials.
    """
    done = [
        (one.value, one)
        for one in trials
        if one.state == "finished" and one.value is not None
    ]
    if plan.search is None or not done:
        return ""
    sign = 1 if plan.search.is_better_high else -1
    best_value, best = max(done, key=lambda pair: sign * pair[0])
    settings = " ".join(
        f"--set {shlex.quote(f'{key}={value}')}" for key, value in best.settings.items()
    )
    objective = plan.objective.replace("_", " ")
    value = _value(best_value, plan.objective)
    return (
        f"the best of {counted(len(done), 'finished trial')} by val "
        f"{objective} is {best.name} with {value}: {settings}"
    )


def failed_words(num_failed: int, *, of: int) -> str:
    """Return how many trials failed, as a phrase.

    Example:
        >>> failed_words(1, of=4), failed_words(1, of=1)
        ('1 of 4 trials failed', '1 of 1 trial failed')
    """
    return f"{num_failed} of {counted(of, 'trial')} failed"


def print_plan(
    plan: StudyPlan, trials: Sequence[PlannedTrial], seconds: Mapping[str, float] | None
) -> None:
    """Print trials of a plan with the time that each may take.

    Args:
        plan: The study's plan.
        trials: Trials of the plan to print.
        seconds: Trial -> estimate; `None` if the plan names no data.
    """
    rows = []
    for trial in trials:
        settings = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        settings = settings or ("" if plan.search is None else "chosen when it starts")
        time = duration(seconds[trial.name]) if seconds else "?"
        rows.append([trial.name, settings, time])
    terminal.print_table(["trial", "settings", "about"], rows)
    if plan.search is not None:
        ranges = "; ".join(f"{key}: {of}" for key, of in plan.search.ranges.items())
        terminal.print_line(f"chosen by {plan.search.sampler} from {ranges}")
    if plan.search is not None and plan.num_search_trials is None:
        terminal.print_line(
            f"as many trials like this one as begin within {plan.search.minutes:g} "
            "minutes"
        )
    elif seconds is None:
        terminal.print_line("no estimate of the time: name the images with --data")
    else:
        terminal.print_line(
            f"{counted(len(rows), 'trial')}, about "
            f"{duration(sum(seconds.values()))} on this machine, one after the other"
        )
