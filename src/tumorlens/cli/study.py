"""The commands that compare settings: those of `tumorlens study`, and `compare`.

They parse, call the stages, and print.
"""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import complete_setting, complete_subset
from tumorlens.cli.options import (
    STATUS_INTERRUPTED,
    DataOption,
    check_options,
    config_of,
)
from tumorlens.errors import ConfigError
from tumorlens.text import counted, duration, one_line, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.progress import Progress as Bars

    from tumorlens.study.folder import Study, Trial
    from tumorlens.study.plan import PlannedTrial, StudyPlan
    from tumorlens.study.worker import StudyProgress

STATUS_FAILED = 3

app = typer.Typer(
    help="Run, resume and watch studies, which compare many settings.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)

StoreOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Database in which trials are claimed: sqlite:///FILE, or "
        "postgresql://USER@HOST/NAME for several machines. Default: a file in the "
        "study's folder.",
    ),
]


@app.command()
def run(
    context: typer.Context,
    plan_path: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY",
            help="TOML file of a study, or the folder of one to continue.",
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The study's folder. Default: runs/NAME."),
    ] = None,
    data: DataOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of all arms, such as optim.epochs=2; repeatable.",
            autocompletion=complete_setting,
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Trials at once on this machine.")
    ] = 1,
    only: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="Run only the trials whose names match, such as '*as-given*'.",
        ),
    ] = "*",
    store: StoreOption = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run failed trials once more.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the trials with their estimated time; run none."
        ),
    ] = False,
    track: Annotated[
        bool,
        typer.Option(
            "--track",
            help="Mirror the trials in MLflow, as one experiment: where the study was "
            "tracked before, else in a file mlflow.db beside its folder.",
        ),
    ] = False,
    track_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Mirror the trials in the MLflow server or database at this URL.",
        ),
    ] = None,
) -> int:
    """Run the trials of a study: skip finished ones, continue interrupted ones.

    The exit status is 3 when a trial failed.
    """
    from tumorlens.data.index import check_outside
    from tumorlens.data.sets import sets_of
    from tumorlens.study import worker
    from tumorlens.study.folder import create_study
    from tumorlens.study.plan import check_only
    from tumorlens.study.plan_file import load_plan

    if plan_path.is_dir():
        plan = _plan_to_continue(plan_path, out, data, settings)
        out = plan_path
    else:
        plan = load_plan(plan_path, assignments=settings or [], data=data or None)
        out = out or Path("runs") / plan.name
    check_only(plan, only)
    _warn_of_idle(plan)
    plan = _with_data(plan, out, dry_run=dry_run)
    if dry_run:
        _dry_run(plan, only=only, over=_over(out, plan, store))
        return 0
    sets = sets_of(plan.base.data)
    if sets is not None and not out.exists():
        check_outside(out, sets)
    tracker = None
    if track or track_url:
        from tumorlens.study.tracking import StudyTracker

        tracker = StudyTracker(out, name=plan.name, url=track_url or "")
    study = create_study(out, plan, store_url=store)
    if tracker:
        tracker.begin(study)
    if retry_failed:
        study.open_store(store).retry_failed()
    with _studying() as display:
        is_over = worker.run_study(
            study,
            store_url=store,
            jobs=jobs,
            only=only,
            command=str(context.obj),
            progress=display.progress,
            notify=display.print_line,
            tracker=tracker,
        )
    trials = study.trials(study.open_store(store))
    _print_trials(study, trials)
    if tracker and (words := tracker.words()):
        terminal.print_line(words)
    if not is_over:
        terminal.print_next(
            f"everything so far is in {study.path}",
            *("tumorlens", "study", "run", study.path),
            *(["--track"] if tracker else []),
        )
        return STATUS_INTERRUPTED
    return _print_end(study, trials, only=only)


@app.command()
def status(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a study.")],
    *,
    store: StoreOption = None,
) -> None:
    """Show the trials of a study, even while it runs."""
    from tumorlens.study.folder import open_study

    study = open_study(path)
    _print_trials(study, study.trials(study.open_store(store, must_exist=True)))


def compare(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or one study folder; or folders of evaluate --on.",
        ),
    ],
    *,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare on another set: name of the runs' evaluations on it.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Default: the study's folder, or ./comparison; with --subset val, the "
            "folder val in it; with --on, the folder on-NAME.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An image that every network predicts."),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            help="test, or val while choices are being made. Default: test; val for a "
            "study that never evaluates on test.",
            autocompletion=complete_subset,
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATA",
            help="Where the images are now, if they were moved, once for each set; "
            "--image may be relative to it.",
        ),
    ] = None,
    store: StoreOption = None,
    no_latency: Annotated[
        bool, typer.Option("--no-latency", help="Do not time the networks.")
    ] = False,
) -> None:
    """Compare runs, and say which differences are significant."""
    from tumorlens.runs.external import FILE

    # A run among them is told that it wants --on.
    if on is not None or any((path / FILE).is_file() for path in paths):
        check_options(
            "on another set",
            **{"--subset": subset, "--image": image, "--data": data, "--store": store},
            **{"--no-latency": no_latency},
        )
        _compare_external(paths, on=on, out=out)
        return
    from tumorlens.files import locked, write_model
    from tumorlens.report import tables, write_comparison_page
    from tumorlens.study import compare as stage
    from tumorlens.study.arms import is_study

    if out is None:
        out = paths[0] if is_study(paths[0]) else Path("comparison")
        if subset == "val":  # the comparison on test stays
            out = out / "val"
    with terminal.counting("comparing") as progress:
        found = stage.compare(
            paths,
            subset=subset,
            image=image,
            data=data,
            with_latency=not no_latency,
            store_url=store,
            command=context.obj,
            progress=progress,
        )
    with locked(out):  # the page is made of the file
        write_model(out / "comparison.json", found)
        tables.write_tables(found, out)
        page = write_comparison_page(
            out / "comparison.json",
            data=data[0] if data else None,
            out=out / "comparison.html",
        )
    terminal.print_table(*tables.table_rows(found, is_short=True))
    for sentence in found.summary:
        terminal.print_line(sentence)
    terminal.print_line(
        f"the page is {page}, its tables are beside it as .csv, .md and .tex"
    )


def _compare_external(paths: list[Path], *, on: str | None, out: Path | None) -> None:
    """Compare models on another set, and write `external-comparison.json`."""
    from tumorlens.files import write_model
    from tumorlens.study.external_comparison import COMPARISON, compare_external

    found = compare_external(paths, on=on)
    place = (out or Path("comparison") / f"on-{on or found.name}") / COMPARISON
    write_model(place, found)
    terminal.print_table(*found.table_rows)
    for sentence in found.summary:
        terminal.print_line(sentence)
    terminal.print_line(f"everything is in {place}")


def _print_trials(study: Study, trials: Sequence[Trial]) -> None:
    _print_table(trials, measure=study.plan.objective)
    if best := _best_words(study.plan, trials):
        terminal.print_line(best)


def _print_end(study: Study, trials: Sequence[Trial], *, only: str) -> int:
    """Print how a study ended; return the exit status.

    Args:
        study: The study.
        trials: All its trials.
        only: Pattern of the trials whose failures count.
    """
    path, search = study.path, study.plan.search
    chosen = [trial for trial in trials if fnmatchcase(trial.name, only)]
    num_failed = sum(trial.state == "failed" for trial in chosen)
    num_left = sum(trial.state == "waiting" for trial in chosen)
    if num_left and search is not None and search.minutes is not None:
        terminal.print_line(
            f"{counted(num_left, 'trial')} not run: the {search.minutes:g} minutes are "
            "spent"
        )
    if any(trial.state == "finished" for trial in trials):
        compare_words = ("tumorlens", "compare", path)
        terminal.print_next(f"the study is in {path}", *compare_words)
    elif num_failed:
        again = ("tumorlens", "study", "run", path, "--retry-failed")
        terminal.print_next(f"nothing in {path} can be compared yet", *again)
    if num_failed:
        words = _failed_words(num_failed, of=len(chosen))
        print(words, file=sys.stderr)
        return STATUS_FAILED
    return 0


def _over(folder: Path, plan: StudyPlan, store: str | None) -> set[str]:
    """Return the names of the trials that are over, if the study was begun."""
    from tumorlens.study.arms import is_study
    from tumorlens.study.folder import open_study

    if not is_study(folder):
        return set()
    study = open_study(folder)
    if study.plan.digest() != plan.as_known_to(study.plan).digest():
        return set()
    trials = study.trials(study.open_store(store, must_exist=True))
    ends = ("finished", "pruned", "failed")
    return {one.name for one in trials if one.state in ends}


def _dry_run(plan: StudyPlan, *, only: str, over: set[str]) -> None:
    """Print the trials that a study would run, and find errors at their start."""
    chosen = [one for one in plan.trials() if fnmatchcase(one.name, only)]
    trials = [one for one in chosen if one.name not in over]
    if len(trials) < len(chosen):
        num_over = counted(len(chosen) - len(trials), "trial")
        terminal.print_line(f"not run again, because over: {num_over}")
    if chosen and not trials:
        terminal.print_line("nothing is left to run")
        return
    if plan.search is not None and plan.num_search_trials is None:
        trials = [plan.search_trial(1)]  # they are all like the first
    from tumorlens.study.estimate import estimate_study

    with terminal.counting("looking for copies") as progress:
        seconds = estimate_study(plan, trials, progress=progress)
    _print_plan(plan, trials, seconds)


def _plan_to_continue(
    path: Path, out: Path | None, data: list[Path] | None, settings: list[str] | None
) -> StudyPlan:
    """Return the plan of a study folder, with the images where they are now.

    Args:
        path: The folder.
        out: --out, which can only be the same.
        data: Where the images are now, if they were moved.
        settings: Assignments of --set, which must be as they were, except those of the
            machine.

    Raises:
        ConfigError: They differ.
    """
    from tumorlens.config import absolute_paths, differences, machine_settings
    from tumorlens.study.folder import open_study

    if out is not None and out.resolve() != path.resolve():
        raise ConfigError(
            f"the study in {path} continues where it is, and --out is {out}",
            hint="leave out --out, or start another study from its file",
        )
    plan = open_study(path).plan
    config = config_of(None, settings, ("data.path", data), start=plan.base)
    base = absolute_paths(config)
    found = differences(plan.base, base)
    words = [f"{key}: {how}" for key, how in found.items()]
    if found.keys() - machine_settings():
        raise ConfigError(
            f"the study in {path} was begun with other settings: {'; '.join(words)}",
            hint="leave them out to go on with those of the study, or start another",
        )
    return plan.model_copy(update={"base": base})


def _warn_of_idle(plan: StudyPlan) -> None:
    """Warn of settings without effect: in all trials, or in those that vary them."""
    from tumorlens.config import idle_settings

    trials = () if plan.search else plan.trials()
    idle: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for one in trials:
        config = plan.config_of(one.settings, protocol=one.protocol, seed=one.seed)
        for key, why in idle_settings(config).items():
            idle.setdefault(key, []).append(one.name)
            reasons.setdefault(key, why)
    varied = {key for one in trials for key in one.settings}
    for key, names in idle.items():
        if len(names) == len(trials):
            terminal.print_warning(f"{key} has no effect: {reasons[key]}")
        elif key in varied:
            terminal.print_warning(
                f"{key} has no effect in {counted(len(names), 'trial')} of "
                f"{len(trials)}: in {names[0]}, {reasons[key]}"
            )


def _with_data(plan: StudyPlan, out: Path, *, dry_run: bool) -> StudyPlan:
    """Return a plan with the digests of its files, after checking where they are.

    Args:
        plan: The plan. For a dry run it need not name any images.
        out: The folder of the study.
        dry_run: Whether nothing is run.

    Raises:
        ConfigError: A file is not there.
        DataError: The images cannot be used.
        RunError: The folder cannot be one.
    """
    from tumorlens.study.folder import check_place
    from tumorlens.study.inputs import with_files

    if dry_run and plan.base.data.path is None:
        return plan
    _check_data(plan)
    if not dry_run:
        check_place(out)
    return with_files(plan)


def _check_data(plan: StudyPlan) -> None:
    """Reject a study whose data is not named or not there.

    Raises:
        ConfigError: No data was named, or it does not exist.
    """
    from tumorlens.data.sets import sets_of

    sets = sets_of(plan.base.data)
    if sets is None:
        raise ConfigError(
            "no data was named", hint="give --data DIR, or set data.path in [base]"
        )
    for place in sets.places:
        if not place.exists():
            raise ConfigError(
                f"there is no such folder or table: {place}", hint="give --data DIR"
            )


class _Display:
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
def _studying() -> Iterator[_Display]:
    """Show the display of a study while the body runs."""
    with terminal.progress_bars(last="{task.fields[left]}") as bars:
        yield _Display(bars)


def _print_table(trials: Iterable[Trial], *, measure: str) -> None:
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


def _best_words(plan: StudyPlan, trials: Iterable[Trial]) -> str:
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


def _failed_words(num_failed: int, *, of: int) -> str:
    """Return how many trials failed, as a phrase.

    Example:
        >>> _failed_words(1, of=4), _failed_words(1, of=1)
        ('1 of 4 trials failed', '1 of 1 trial failed')
    """
    return f"{num_failed} of {counted(of, 'trial')} failed"


def _print_plan(
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
