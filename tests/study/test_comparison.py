"""Sentences about comparisons: who is better, how sure that is, what not to believe."""

from __future__ import annotations

from typing import Any

import pytest

from tumorlens.study.comparison import Comparison, Pair, summarize


def pair(
    first: str = "A",
    second: str = "B",
    *,
    value: float = 0.008,
    low: float | None = -0.019,
    high: float | None = 0.034,
    p_holm: float = 0.41,
    is_noise: bool = True,
    protocol: str = "grouped",
    num_images: int = 1311,
) -> Pair:
    return Pair.model_validate(
        {
            "protocol": protocol,
            "first": first,
            "second": second,
            "num_images": num_images,
            "difference": {"value": value, "low": low, "high": high},
            "p": p_holm,
            "p_holm": p_holm,
            "is_noise": is_noise,
        }
    )


def arm(
    name: str,
    *protocols: str,
    num_seeds: int = 1,
    leak: str = "No leak found.",
    is_believable: bool | None = True,
    best_test_epoch_accuracy: float | None = None,
    runs: tuple[dict[str, Any], ...] = (),
) -> dict[str, Any]:
    estimates = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    measures = {
        "num_seeds": num_seeds,
        "num_images": 1311,
        **{key: {"value": 0.5, "low": None, "high": None} for key in estimates},
        "ece": {"value": 0.1, "low": None, "high": None},
        "leak": {"words": leak, "is_believable": is_believable},
        "best_test_epoch_accuracy": best_test_epoch_accuracy,
    }
    costs = ("num_parameters", "macs", "size_bytes", "latency_ms")
    return {
        "name": name,
        "settings": {},
        "model": "resnet18",
        **dict.fromkeys((*costs, "train_seconds", "images_per_second")),
        "measures": dict.fromkeys(protocols, measures),
        "runs": list(runs),
    }


def summary(
    *arms: dict[str, Any],
    pairs: tuple[Pair, ...] = (),
    in_training: tuple[bool, ...] = (),
    subset: str = "test",
) -> list[str]:
    answer = {"network": "", "probs": {}, "predicted": ""}
    rows = [
        {"arm": one["name"], "in_training": is_in, **answer}
        for one, is_in in zip(arms, in_training, strict=False)
    ]
    example = {"path": "", "label": "", "classes": [], "rows": rows}
    content: dict[str, Any] = {
        "title": "",
        "study": None,
        "headline_protocol": "grouped",
        "subset": subset,
        "arms": arms,
        "pairs": pairs,
        "pareto": [],
        "example": example if rows else None,
    }
    return list(summarize(Comparison.model_validate(content)))


# pairs


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            pair(value=0.041, low=0.012, high=0.07, p_holm=0.003, is_noise=False),
            "A is better than B by 4.1 points (1.2 to 7.0), p = 0.003 after Holm.",
        ),
        (
            pair(value=-0.041, low=-0.07, high=-0.012, p_holm=0.0004, is_noise=False),
            "B is better than A by 4.1 points (1.2 to 7.0), p < 0.001 after Holm.",
        ),
        (
            pair(value=1.0, low=None, high=None, p_holm=0.001, is_noise=False),
            "A is better than B by 100.0 points, p = 0.001 after Holm.",
        ),
        (
            pair(),
            (
                "No significant difference between A and B: 0.8 points (-1.9 to 3.4), "
                "p = 0.410 after Holm."
            ),
        ),
        (
            pair(value=-0.008, low=-0.034, high=0.019),
            (
                "No significant difference between A and B: -0.8 points (-3.4 to 1.9), "
                "p = 0.410 after Holm."
            ),
        ),
        (
            pair(value=-0.0, low=None, high=None, p_holm=1.0),
            (
                "No significant difference between A and B: 0.0 points, p = 1.000 "
                "after Holm."
            ),
        ),
    ],
)
def test_a_pair_is_said_with_its_interval(found: Pair, words: str) -> None:
    assert found.sentence == words


def test_the_pairs_of_the_headline_are_said_with_what_they_are_of() -> None:
    real = pair("A", "C", value=0.1, low=0.05, high=0.2, p_holm=0.001, is_noise=False)
    elsewhere = pair(protocol="as-given")
    arms = [arm(name, "grouped", "as-given") for name in "ABC"]
    noise = [pair("A", "B"), pair("B", "C", num_images=1200)]
    words = summary(*arms, pairs=(elsewhere, noise[0], real, noise[1]))
    assert words[:4] == [
        "Differences of accuracy on test under grouped, 1,200 to 1,311 images:",
        real.sentence,
        noise[0].sentence,
        noise[1].sentence,
    ]


def test_much_noise_is_one_sentence() -> None:
    arms = [arm(name, "grouped", num_seeds=2) for name in "ABCDE"]
    names = [(a, b) for a in "ABCDE" for b in "ABCDE" if a < b]
    pairs = tuple(pair(*two) for two in names)
    assert summary(*arms, pairs=pairs) == [
        "Differences of accuracy on test under grouped, 1,311 images:",
        "The 10 differences are not significant.",
    ]
    real = pair("A", "B", value=0.1, p_holm=0.001, is_noise=False)
    assert summary(*arms, pairs=(real, *pairs[1:]))[1:] == [
        real.sentence,
        "The 9 other differences are not significant.",
    ]


def test_one_seed_each_is_said() -> None:
    def last_words(*num_seeds: int) -> str:
        arms = [
            arm(name, "grouped", num_seeds=number)
            for name, number in zip("AB", num_seeds, strict=True)
        ]
        return summary(*arms, pairs=(pair(),))[-1]

    assert last_words(1, 1).startswith("Each arm was trained with one seed.")
    assert last_words(1, 2) == pair().sentence


def test_intervals_that_hold_from_more_groups_on_are_named() -> None:
    few, many = arm("A", "grouped"), arm("B", "grouped")
    for one, number in ((few, 40), (many, 900)):
        measures = dict(one["measures"]["grouped"])
        measures["accuracy"] = {**measures["accuracy"], "num_units": number}
        one["measures"] = {"grouped": measures}
    (sentence,) = [words for words in summary(few, many) if "too narrow" in words]
    assert sentence == (
        "With 40 groups the intervals of log loss (holds from 700 groups), calibration "
        "error (holds from 150 groups) may be too narrow."
    )
    assert not any("too narrow" in words for words in summary(many))


def test_arms_that_cannot_be_compared_are_named() -> None:
    arms = [arm("A", "grouped"), arm("B", "grouped"), arm("C", "as-given"), arm("D")]
    assert summary(*arms) == [
        "1 of the pairs share no image and was not compared.",
        "Not evaluated under grouped: C.",
    ]


# what not to believe


def test_a_leak_is_said_first_and_once_for_a_protocol() -> None:
    leaking: dict[str, Any] = {"leak": "Leak: 9 of 10.", "is_believable": False}
    arms = [arm(name, "as-given", **leaking) for name in "AB"]
    assert summary(*arms)[0] == (
        "The accuracy under as-given cannot be believed. Leak: 9 of 10."
    )


def test_a_leak_is_said_of_test_where_val_is_compared() -> None:
    leaking: dict[str, Any] = {"leak": "Leak: 9 of 10.", "is_believable": False}
    arms = [arm(name, "as-given", **leaking) for name in "AB"]
    assert summary(*arms, subset="val")[0] == (
        "The accuracy on test under as-given cannot be believed. Leak: 9 of 10. "
        "That is about test; the figures here are of val."
    )


def test_a_leak_of_some_arms_names_them() -> None:
    arms = [
        arm("A", "grouped"),
        arm("B", "grouped", leak="Leak: 9 of 10.", is_believable=False),
        arm("C", "grouped", leak="Unknown.", is_believable=None),
    ]
    assert summary(*arms)[:2] == [
        "The accuracy of B under grouped cannot be believed. Leak: 9 of 10.",
        "The accuracy of C under grouped may be too high. Unknown.",
    ]


def test_the_best_test_epoch_is_marked_as_chosen_on_test() -> None:
    (words,) = summary(arm("A", "grouped", best_test_epoch_accuracy=0.9))
    assert words.startswith("The best test epoch (*) was chosen on the images")
    assert summary(arm("A", "grouped")) == []


def test_runs_without_measures_are_said_with_the_reason() -> None:
    def run(seed: int, state: str, reason: str | None) -> dict[str, Any]:
        return {
            "path": "",
            "protocol": "grouped",
            "seed": seed,
            "state": state,
            "reason": reason,
            "history": [],
        }

    runs = (
        run(1, "finished", None),
        run(2, "failed", "out of memory"),
        run(3, "waiting", None),
    )
    assert summary(arm("A", "grouped", runs=runs)) == [
        "A (grouped, seed 2) has no measures: out of memory.",
        "A (grouped, seed 3) has no measures: waiting.",
    ]
    assert summary(
        *(arm(name, "grouped", runs=(run(3, "waiting", None),)) for name in "AB")
    )[-1:] == ["A; B (grouped, seed 3) have no measures: waiting."]
    many = tuple(run(seed, "waiting", None) for seed in range(9))
    words = summary(arm("A", runs=many))
    assert len(words) == 7
    assert words[-1] == "Nor have 3 more runs."


def test_an_example_that_training_has_seen_is_said_to_be() -> None:
    arms = [arm(name, num_seeds=1) for name in "ABC"]
    words = summary(*arms, in_training=(True, False, True))
    assert words == ["The example was in the training of A; C, and is no test there."]
    assert summary(*arms, in_training=(False,) * 3) == []
