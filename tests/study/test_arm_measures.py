"""Means over seeds: equal to `evaluate` for one seed, worked out for several."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.handmade_runs import answers, history, make_run
from tumorlens.data.leakage import LeakVerdict
from tumorlens.evaluation.predictions import Predictions, round_probs, write_predictions
from tumorlens.evaluation.table_measures import metrics_from_predictions
from tumorlens.stats.intervals import BOOTSTRAP_T, SQUARE_AND_ADD
from tumorlens.study.arm_measures import (
    epoch_accuracies,
    joined_history,
    mean_measures,
    training_speed,
    worst_leak,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CLASSES = ("a", "b", "c")
NAMES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece")


def drawn(*, seed: int, num: int = 90, first: int = 0) -> Predictions:
    """Return predictions of groups of two, mostly right; images from number `first`."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(first, first + num)
    labels = numbers // 2 % 3
    logits = rng.normal(size=(num, 3))
    logits[np.arange(num), labels] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions(
        classes=CLASSES,
        paths=tuple(f"{number:04}.png" for number in numbers),
        labels=labels,
        probs=round_probs(probs),
        groups=tuple(f"{number // 2:04}" for number in numbers),
        sources=("",) * num,
        folds=(None,) * num,
    )


def evaluated(path: Path, table: Predictions) -> dict[str, Any]:
    write_predictions(path / "predictions.csv", table)
    return metrics_from_predictions(path / "predictions.csv").model_dump(mode="json")


# measures


def measured(tables: Sequence[Predictions]) -> dict[str, Any]:
    """Return the means as they are written."""
    return {name: one.model_dump() for name, one in mean_measures(tables).items()}


def test_the_figures_of_one_seed_are_those_of_evaluate(tmp_path: Path) -> None:
    table = drawn(seed=0)
    got, expected = measured([table]), evaluated(tmp_path, table)
    for name in NAMES:
        assert got[name] == pytest.approx(expected[name], abs=1e-12), name
        assert got[name]["low"] < got[name]["value"] < got[name]["high"]
        assert (got[name]["unit"], got[name]["num_units"]) == ("group", 45)


def test_a_perfect_seed_has_the_interval_of_evaluate(tmp_path: Path) -> None:
    table = answers([1] * 30, classes=CLASSES)
    got, expected = measured([table]), evaluated(tmp_path, table)
    assert got["accuracy"]["low"] < got["accuracy"]["value"] == 1
    for name in NAMES:
        assert got[name] == pytest.approx(expected[name]), name


def test_predicted_classes_alone_have_no_figure_of_probabilities() -> None:
    table = drawn(seed=0)
    bare = replace(table, probs=np.eye(3)[table.predicted], has_probs=False)
    got, expected = measured([bare, bare]), measured([table, table])
    assert got["accuracy"] == expected["accuracy"]
    assert got["macro_f1"] == expected["macro_f1"]
    for name in ("log_loss", "ece"):
        assert (got[name]["value"], got[name]["low"]) == (None, None)


def test_one_group_has_no_interval() -> None:
    table = answers([1, 0, 1], groups=["g"] * 3)
    for name, one in measured([table]).items():
        assert one["value"] is not None, name
        assert one == {
            **{"value": one["value"], "low": None, "high": None},
            **{"method": None, "unit": None, "num_units": 1},
        }, name
    perfect = measured([answers([1, 1], groups=["g"] * 2)])["accuracy"]
    assert (perfect["value"], perfect["low"], perfect["high"]) == (1, None, None)


def test_a_seed_that_answers_alike_adds_nothing_to_the_interval() -> None:
    one, two = measured([drawn(seed=0)]), measured([drawn(seed=0)] * 2)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
        ends = [one[name][end] for end in ("low", "value", "high")]
        assert [two[name][end] for end in ("low", "value", "high")] == pytest.approx(
            ends
        ), name


def test_two_seeds_on_other_patients_have_the_interval_of_a_mean_of_two() -> None:
    # Independent: the squares of the distances are added, and halved for the mean.
    tables = [drawn(seed=0), drawn(seed=1, first=90)]
    alone = [measured([table])["accuracy"] for table in tables]
    got = measured(tables)["accuracy"]
    below = sum((one["value"] - one["low"]) ** 2 for one in alone)
    above = sum((one["high"] - one["value"]) ** 2 for one in alone)
    assert got["low"] == pytest.approx(got["value"] - below**0.5 / 2)
    assert got["high"] == pytest.approx(got["value"] + above**0.5 / 2)
    assert (got["method"], got["num_units"]) == (SQUARE_AND_ADD, 90)


def test_a_seed_with_a_single_group_is_taken_to_tell_nothing() -> None:
    tables = [drawn(seed=0), drawn(seed=1, num=2)]
    got = measured(tables)
    assert got["accuracy"]["low"] < got["accuracy"]["value"] < got["accuracy"]["high"]
    # Half of what the second might be: it may lie anywhere.
    assert got["accuracy"]["high"] - got["accuracy"]["low"] > 0.5


@pytest.mark.parametrize(
    "second", [{}, {"first": 40}, {"num": 20}], ids=["same", "other", "fewer"]
)
def test_the_log_loss_of_seeds_has_the_interval_of_a_loop_over_groups(
    second: dict[str, int],
) -> None:
    tables = [drawn(seed=0), drawn(seed=1, **second)]
    got, (low, high) = measured(tables)["log_loss"], loop(tables)
    # Both draw 2,000 times.
    width = high - low
    assert got["low"] == pytest.approx(low, abs=0.06 * width)
    assert got["high"] == pytest.approx(high, abs=0.06 * width)
    assert got["method"] == BOOTSTRAP_T


def loop(tables: Sequence[Predictions]) -> tuple[float, float]:
    """Return the studentized interval of the mean over seeds, group by group."""
    parts: dict[str, list[tuple[float, float]]] = {}
    for table in tables:
        weight = 1 / len(table.labels)
        for row, group in enumerate(table.groups):
            loss = -np.log(table.probs[row, table.labels[row]])
            parts.setdefault(group, []).append((weight * loss, weight))
    groups = [np.sum(of_group, axis=0) for of_group in parts.values()]

    def mean_and_error(picked: list[Any]) -> tuple[float, float]:
        of_loss, of_weight = np.array(picked).T
        mean = of_loss.sum() / of_weight.sum()
        squares = ((of_loss - mean * of_weight) ** 2).sum()
        count = len(picked)
        error = np.sqrt(squares * count / (count - 1)) / of_weight.sum()
        return float(mean), float(error)

    mean, error = mean_and_error(groups)
    rng = np.random.default_rng(7)
    distances = []
    for _ in range(2000):
        places = rng.integers(len(groups), size=len(groups))
        other, spread = mean_and_error([groups[place] for place in places])
        distances.append((other - mean) / spread)
    below, above = np.quantile(distances, [0.975, 0.025])
    return mean - below * error, mean - above * error


def test_the_value_of_several_seeds_is_the_mean_of_theirs(tmp_path: Path) -> None:
    tables = [drawn(seed=0), drawn(seed=1, first=40), drawn(seed=2, num=20)]
    each = [evaluated(tmp_path, table) for table in tables]
    got = measured(tables)
    for name in NAMES:
        mean = np.mean([one[name]["value"] for one in each])
        assert got[name]["value"] == pytest.approx(mean), name
    assert (got["ece"]["low"], got["ece"]["high"]) == (None, None)


# epochs


def test_epochs_are_the_last_the_kept_and_the_best(tmp_path: Path) -> None:
    rows = history(0.5, 0.7, 0.7, 0.6, test=(0.4, 0.6, 0.9, 0.8))
    run = make_run(tmp_path / "run", rows=rows)
    assert epoch_accuracies([run]) == {
        "last_epoch_accuracy": 0.8,
        "best_val_epoch_accuracy": 0.6,
        "best_test_epoch_accuracy": 0.9,
        "best_test_epoch": 3,
    }


def test_epochs_of_several_seeds_are_means(tmp_path: Path) -> None:
    one = make_run(tmp_path / "1", rows=history(0.5, 0.7, test=(0.4, 0.6)))
    other = make_run(tmp_path / "2", rows=history(0.5, 0.4, test=(0.8, 0.7)))
    assert epoch_accuracies([one, other]) == {
        "last_epoch_accuracy": pytest.approx(0.65),
        "best_val_epoch_accuracy": pytest.approx(0.7),
        "best_test_epoch_accuracy": pytest.approx(0.7),
        "best_test_epoch": None,
    }
    assert epoch_accuracies([one, one])["best_test_epoch"] == 2


def test_runs_that_did_not_watch_test_have_no_such_epochs(tmp_path: Path) -> None:
    watched = make_run(tmp_path / "1", rows=history(0.5, test=(0.4,)))
    other = make_run(tmp_path / "2", rows=history(0.5))
    none = make_run(tmp_path / "3")
    for runs in ([other], [watched, other], [none], []):
        assert set(epoch_accuracies(runs).values()) == {None}


# leaks


def test_the_worst_verdict_of_several_seeds_counts(tmp_path: Path) -> None:
    clean = make_run(tmp_path / "clean")
    leaking = make_run(
        tmp_path / "leaking", leak=LeakVerdict(leaks=True, words="Leak.")
    )
    imported = make_run(
        tmp_path / "imported",
        leak=LeakVerdict(leaks=True, is_known=False, words="Who knows."),
    )
    assert worst_leak([clean]) == {
        "words": "No leak found.",
        "is_believable": True,
        "state": "no leak",
    }
    assert worst_leak([clean, imported]) == {
        "words": "Who knows.",
        "is_believable": None,
        "state": "unknown",
    }
    assert worst_leak([imported, clean, leaking]) == {
        "words": "Leak.",
        "is_believable": False,
        "state": "leak",
    }


def test_a_run_whose_patients_nobody_knows_is_not_called_believable(
    tmp_path: Path,
) -> None:
    unknown = LeakVerdict(
        leaks=False, num_test=8, num_test_unknown_patient=8, words="No copies."
    )
    run = make_run(tmp_path / "run", leak=unknown)
    assert worst_leak([run]) == {
        "words": "No copies.",
        "is_believable": None,
        "state": "patients not known",
    }


# speed and history


def test_training_took_the_median_over_runs_and_the_sum_over_epochs(
    tmp_path: Path,
) -> None:
    runs = [
        make_run(
            tmp_path / str(number),
            rows=history(*[0.5] * number, images_per_second=10.0 * number),
        )
        for number in (1, 2, 5)
    ]
    # Two seconds an epoch; of the eight epochs five ran at 50 images/s.
    assert training_speed(runs) == {"train_seconds": 4.0, "images_per_second": 50.0}


def test_training_of_folds_took_all_of_them(tmp_path: Path) -> None:
    tables = [answers({f"{n}.png": 1}) for n in range(3)]
    run = make_run(tmp_path / "run", tables, rows=history(0.5, 0.6))
    assert training_speed([run])["train_seconds"] == 3 * 2 * 2.0


def test_a_run_without_history_has_no_speed(tmp_path: Path) -> None:
    for runs in ([], [make_run(tmp_path / "run")]):
        assert training_speed(runs) == {
            "train_seconds": None,
            "images_per_second": None,
        }


def test_the_history_of_folds_is_their_mean_while_all_go_on(tmp_path: Path) -> None:
    tables = [answers({f"{n}.png": 1}) for n in range(2)]
    run = make_run(tmp_path / "run", tables)
    run.folds()[0].write_history(history(0.4, 0.6, 0.7))
    run.folds()[1].write_history(history(0.5, 0.9))
    rows = joined_history(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["val_accuracy"] for row in rows] == pytest.approx([0.45, 0.75])
    assert "is_best" not in rows[0]


def test_the_history_of_a_run_is_its_own(tmp_path: Path) -> None:
    rows = history(0.4, 0.6)
    assert joined_history(make_run(tmp_path / "run", rows=rows)) == rows
