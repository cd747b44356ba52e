"""How a search chooses, in Optuna's terms: samplers, pruners, the points of a grid."""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.study.plan import search_number

if TYPE_CHECKING:
    from tumorlens.study.plan import Range, Search, StudyPlan


def suggest(trial: Any, key: str, of: Range | list[Any]) -> Any:
    """Return the value of a setting, chosen now or when the trial first started.

    Args:
        trial: Optuna's.
        key: The setting's name.
        of: What there is to choose from.
    """
    if isinstance(of, list):
        # Optuna's categories are plain values: a list of numbers goes as JSON.
        return json.loads(trial.suggest_categorical(key, [json.dumps(v) for v in of]))
    whole = of.low.is_integer() and of.high.is_integer() and of.step is not None
    if whole and of.step is not None and of.step.is_integer():
        return trial.suggest_int(key, int(of.low), int(of.high), step=int(of.step))
    return trial.suggest_float(key, of.low, of.high, log=of.log, step=of.step)


def points_of(plan: StudyPlan) -> dict[str, dict[str, str]]:
    """Return trial -> point of a grid, in an order that the seed shuffles."""
    search = plan.search
    if search is None or search.sampler != "grid":
        return {}
    values = {
        key: [json.dumps(value) for value in of]
        for key, of in search.ranges.items()
        if isinstance(of, list)
    }
    points = [
        dict(zip(values, point, strict=True))
        for point in itertools.product(*values.values())
    ]
    random.Random(search.seed).shuffle(points)
    return {
        trial.name: point for trial, point in zip(plan.trials(), points, strict=False)
    }


def sampler_of(optuna: Any, search: Search | None, *, name: str) -> Any:
    """Return what chooses the settings of one trial.

    Each worker has a sampler of its own, and so has each restart: seeded alike, they
    would all draw the same points again. By its name a trial draws what it would draw
    in a search that nothing disturbs.
    """
    samplers = optuna.samplers
    if search is None:
        return samplers.RandomSampler(seed=42)
    seed = _trial_seed(search.seed, name)
    match search.sampler:
        case "tpe":
            return samplers.TPESampler(seed=seed)
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "qmc":
            # One sequence for all trials; the database counts how far it is used up.
            # Only what comes before it, a first trial or two, is drawn at random.
            return samplers.QMCSampler(
                seed=search.seed,
                scramble=True,
                independent_sampler=samplers.RandomSampler(seed=seed),
            )
        case "grid":
            # Its points are queued; nothing is left to choose.
            return samplers.RandomSampler(seed=seed)


def _trial_seed(seed: int, name: str) -> int:
    # Not the sum of the two: seeds 42 and 43 would share all trials but one.
    sequence = np.random.SeedSequence([seed, search_number(name)])
    return int(sequence.generate_state(1)[0])


def pruner_of(optuna: Any, search: Search | None) -> Any:
    """Return what ends a trial that is no better than others."""
    match search.pruner if search else "none":
        case "median":
            return optuna.pruners.MedianPruner()
        case "halving":
            return optuna.pruners.SuccessiveHalvingPruner()
        case "hyperband":
            return optuna.pruners.HyperbandPruner()
    return optuna.pruners.NopPruner()


def direction_of(search: Search | None) -> str:
    """Return whether Optuna is to seek a high value or a low one."""
    return "minimize" if search and not search.is_better_high else "maximize"


def chosen_value(value: Any) -> Any:
    """Return a value that `suggest` chose, as Optuna keeps it, as itself."""
    # Choices are stored as JSON texts, numbers as they are.
    return json.loads(value) if isinstance(value, str) else value
