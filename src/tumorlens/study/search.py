"""How a search chooses the settings of its trials: Optuna, by ask and tell.

Optuna keeps nothing here. For each question, its study is built anew in memory from the
trials in the store, so what is drawn depends on what is finished and on the trial's
name, not on the worker that asks or on how often it was restarted.
"""

from __future__ import annotations

import itertools
import json
import random
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.extras import require
from tumorlens.study.plan import Range, search_name, search_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tumorlens.study.plan import Search, StudyPlan


@dataclass(frozen=True)
class SearchTrial:
    """A trial of a search, as far as it has come."""

    state: str
    """waiting, running, finished, pruned or failed."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen for it; empty until it starts."""
    value: float | None = None
    """The val measure that the search aims at."""
    reports: Mapping[str, float] = field(default_factory=dict)
    """Epoch -> val measure."""
    pruner_notes: Mapping[str, Any] = field(default_factory=dict)
    """What the pruner has written down about it."""


def choose(
    search: Search, trials: Mapping[str, SearchTrial], name: str
) -> dict[str, Any]:
    """Return the settings of a trial that has none yet.

    Args:
        search: The plan's.
        trials: Name -> every trial of the search, this one among them.
        name: The trial that starts.
    """
    distributions = _distributions(search)
    with _quiet_optuna() as optuna:
        if search.sampler == "qmc":
            # The n-th trial gets the n-th point of the sequence. The sampler counts
            # the points that it gave, and needs one trial to know the ranges.
            study = optuna.create_study(sampler=_sampler_of(search, name))
            point = {key: _any_value(of) for key, of in distributions.items()}
            first = optuna.trial.create_trial(
                value=0.0, params=point, distributions=distributions
            )
            study.add_trial(first)
            for _ in range(search_number(name)):
                asked = study.ask(distributions)
        else:
            asked = _ask(search, trials, name, distributions)[1]
    return {key: _from_optuna(asked.params[key]) for key in search.ranges}


def should_prune(
    search: Search,
    trials: Mapping[str, SearchTrial],
    name: str,
    *,
    epoch: int,
    value: float,
) -> tuple[bool, dict[str, Any]]:
    """Return whether a trial is to end early, and what the pruner has written down.

    Args:
        search: The plan's.
        trials: Name -> every trial, this one with its reports of earlier epochs.
        name: The trial that reports.
        epoch: Number of the epoch that is over.
        value: Its val measure.
    """
    with _quiet_optuna():
        study, asked = _ask(search, trials, name, _distributions(search))
        asked.report(value, epoch)
        is_hopeless = bool(asked.should_prune())
        return is_hopeless, dict(study.trials[asked.number].system_attrs)


def points_of(plan: StudyPlan) -> dict[str, dict[str, Any]]:
    """Return trial -> point of a grid, in an order that the seed shuffles."""
    search = plan.search
    if search is None or search.sampler != "grid":
        return {}
    values = {key: of for key, of in search.ranges.items() if isinstance(of, list)}
    points = [
        dict(zip(values, point, strict=True))
        for point in itertools.product(*values.values())
    ]
    random.Random(search.seed).shuffle(points)
    return {
        trial.name: point for trial, point in zip(plan.trials(), points, strict=False)
    }


def _ask(
    search: Search,
    trials: Mapping[str, SearchTrial],
    name: str,
    distributions: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Return Optuna's study of all trials, and its live trial of this name.

    A trial has the same number each time, as hyperband deals its brackets by it.
    """
    optuna = require("optuna")
    study = optuna.create_study(
        study_name="search",  # hyperband deals by it
        direction="maximize" if search.is_better_high else "minimize",
        sampler=_sampler_of(search, name),
        pruner=_pruner_of(search),
    )
    states = optuna.trial.TrialState
    state_of = {
        "finished": states.COMPLETE,
        "pruned": states.PRUNED,
        "failed": states.FAIL,
    }
    for one in _names_up_to(max(trials, key=search_number)):
        trial = trials.get(one, SearchTrial("waiting"))
        # `ask` takes the first trial that waits, so only this one does.
        state = states.WAITING if one == name else state_of.get(trial.state)
        study.add_trial(
            optuna.trial.create_trial(
                state=states.RUNNING if state is None else state,
                value=trial.value if state == states.COMPLETE else None,
                params={
                    key: _to_optuna(value, search.ranges[key])
                    for key, value in trial.settings.items()
                },
                distributions={key: distributions[key] for key in trial.settings},
                intermediate_values={int(k): v for k, v in trial.reports.items()},
                system_attrs=dict(trial.pruner_notes),
            )
        )
    return study, study.ask(dict(distributions))


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Give Optuna without its log and its warnings of what is experimental."""
    optuna = require("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield optuna


def _names_up_to(last: str) -> Iterator[str]:
    return map(search_name, range(1, search_number(last) + 1))


def _distributions(search: Search) -> dict[str, Any]:
    """Return setting -> what Optuna draws it from."""
    kinds = require("optuna").distributions
    found = {}
    for key, of in search.ranges.items():
        if isinstance(of, list):
            # Optuna's categories are plain values: a list of numbers goes as JSON.
            found[key] = kinds.CategoricalDistribution([json.dumps(v) for v in of])
        elif search.draws_whole(key):
            found[key] = kinds.IntDistribution(
                int(of.low), int(of.high), log=of.log, step=int(of.step or 1)
            )
        else:
            found[key] = kinds.FloatDistribution(
                of.low, of.high, log=of.log, step=of.step
            )
    return found


def _to_optuna(value: Any, of: Range | list[Any]) -> Any:
    return value if isinstance(of, Range) else json.dumps(value)


def _from_optuna(value: Any) -> Any:
    # Choices are JSON texts, numbers are as they are.
    return json.loads(value) if isinstance(value, str) else value


def _any_value(distribution: Any) -> Any:
    choices: Sequence[Any] | None = getattr(distribution, "choices", None)
    return distribution.low if choices is None else choices[0]


def _sampler_of(search: Search, name: str) -> Any:
    """Return what chooses the settings of one trial.

    Each trial has a sampler of its own: seeded alike, several workers would all draw
    the same point. By its name a trial draws what it would draw in a search that
    nothing disturbs.
    """
    samplers = require("optuna").samplers
    # Not the sum of seed and number: seeds 42 and 43 would share all trials but one.
    sequence = np.random.SeedSequence([search.seed, search_number(name)])
    seed = int(sequence.generate_state(1)[0])
    match search.sampler:
        case "tpe":
            return samplers.TPESampler(seed=seed)
        case "qmc":
            return samplers.QMCSampler(seed=search.seed, scramble=True)
        case "random" | "grid":  # the points of a grid are known beforehand
            return samplers.RandomSampler(seed=seed)


def _pruner_of(search: Search) -> Any:
    """Return what ends a trial that is no better than others."""
    pruners = require("optuna").pruners
    match search.pruner:
        case "median":
            return pruners.MedianPruner()
        case "halving":
            return pruners.SuccessiveHalvingPruner()
        case "hyperband":
            return pruners.HyperbandPruner()
        case "none":
            return pruners.NopPruner()
