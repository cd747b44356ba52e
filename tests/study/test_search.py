"""Choosing settings and ending trials, against Optuna run in its usual way."""

from __future__ import annotations

import logging
from typing import Any

import optuna
import pytest

from tumorlens.study.plan import Range, Search, search_name
from tumorlens.study.search import SearchTrial, choose, should_prune

NUM_TRIALS, NUM_EPOCHS = 24, 9


def search_of(pruner: str, **changes: Any) -> Search:
    ranges = {"optim.lr": Range(low=1e-4, high=1.0, log=True)}
    settings = {"trials": NUM_TRIALS, "pruner": pruner, "ranges": ranges} | changes
    return Search.model_validate(settings)


def value_of(number: int, epoch: int) -> float:
    """Return a val measure: some trials are good, some bad, and some change places."""
    return ((number * 7) % 11) / 11 + 0.01 * epoch * ((number * 3) % 5)


def run_rebuilt(search: Search) -> list[tuple[str, int]]:
    """Run the trials by our functions; return the state and last epoch of each."""
    trials: dict[str, SearchTrial] = {}
    ends = []
    for number in range(1, NUM_TRIALS + 1):
        name = search_name(number)
        trials[name] = SearchTrial("running", settings={"optim.lr": 0.1})
        state, epoch = "finished", 0
        for epoch in range(1, NUM_EPOCHS + 1):
            value = value_of(number, epoch)
            is_hopeless, notes = should_prune(
                search, trials, name, epoch=epoch, value=value
            )
            trials[name] = SearchTrial(
                "running",
                settings={"optim.lr": 0.1},
                reports={**trials[name].reports, str(epoch): value},
                pruner_notes=notes,
            )
            if is_hopeless:
                state = "pruned"
                break
        trials[name] = SearchTrial(
            state,
            settings={"optim.lr": 0.1},
            value=None if state == "pruned" else value_of(number, NUM_EPOCHS),
            reports=trials[name].reports,
            pruner_notes=trials[name].pruner_notes,
        )
        ends.append((state, epoch))
    return ends


def run_by_optuna(pruner: optuna.pruners.BasePruner) -> list[tuple[str, int]]:
    study = optuna.create_study(
        study_name="search", direction="maximize", pruner=pruner
    )
    ends = []
    for number in range(1, NUM_TRIALS + 1):
        trial = study.ask()
        trial.suggest_float("optim.lr", 1e-4, 1.0, log=True)
        state, epoch = "finished", 0
        for epoch in range(1, NUM_EPOCHS + 1):
            trial.report(value_of(number, epoch), epoch)
            if trial.should_prune():
                state = "pruned"
                break
        if state == "pruned":
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, value_of(number, NUM_EPOCHS))
        ends.append((state, epoch))
    return ends


@pytest.mark.parametrize(
    ("name", "pruner"),
    [
        ("none", optuna.pruners.NopPruner()),
        ("median", optuna.pruners.MedianPruner()),
        ("halving", optuna.pruners.SuccessiveHalvingPruner()),
        ("hyperband", optuna.pruners.HyperbandPruner()),
    ],
)
def test_a_study_rebuilt_for_every_report_ends_the_trials_that_optuna_ends(
    name: str, pruner: optuna.pruners.BasePruner
) -> None:
    logging.getLogger("optuna").setLevel(logging.ERROR)
    ends = run_rebuilt(search_of(name))
    assert ends == run_by_optuna(pruner)
    assert ("pruned" in {state for state, _ in ends}) == (name != "none")


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_what_a_trial_gets_depends_on_its_name_and_on_what_is_finished(
    sampler: str,
) -> None:
    search = search_of("none", sampler=sampler)
    done = {
        search_name(number): SearchTrial(
            "finished", settings={"optim.lr": 10.0**-number}, value=number / 10
        )
        for number in (1, 2, 3)
    }
    waiting = {search_name(number): SearchTrial("waiting") for number in (4, 5)}
    first = choose(search, done | waiting, "trial-0004")
    assert choose(search, done | waiting, "trial-0004") == first
    assert choose(search, done | waiting, "trial-0005") != first
    assert 1e-4 <= first["optim.lr"] <= 1


def test_points_of_a_sequence_are_spread_evenly_over_the_range() -> None:
    search = search_of(
        "none", sampler="qmc", ranges={"optim.lr": Range(low=0.0, high=1.0)}
    )
    waiting = {search_name(number): SearchTrial("waiting") for number in range(1, 9)}
    drawn = [choose(search, waiting, name)["optim.lr"] for name in waiting]
    # Sobol's first eight points have one in each eighth.
    assert sorted(int(8 * value) for value in drawn) == list(range(8))


@pytest.mark.parametrize(
    ("key", "of", "kind"),
    [
        ("optim.epochs", Range(low=2, high=8), int),
        ("model.size_px", Range(low=32, high=512, log=True), int),
        ("train.batch_size", Range(low=8, high=64, step=8), int),
        ("optim.lr", Range(low=1, high=3), float),
        ("augment.strength", Range(low=1, high=3, step=1), float),
        ("model.extra.depth", Range(low=1, high=3, step=1), int),
        ("model.extra.rate", Range(low=1, high=3), float),
    ],
)
@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_a_number_is_drawn_of_the_kind_of_its_setting(
    key: str, of: Range, kind: type, sampler: Any
) -> None:
    search = Search(trials=9, sampler=sampler, ranges={key: of})
    for number in range(1, 5):
        name = search_name(number)
        value = choose(search, {name: SearchTrial("waiting")}, name)[key]
        assert of.low <= value <= of.high
        assert type(value) is kind
