"""Models on one external set: which images are compared, and with what."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from support.handmade_external import write_evaluation
from support.handmade_runs import answers, make_run
from tumorlens.cli import app
from tumorlens.errors import ConfigError, RunError
from tumorlens.evaluation.judge import judge_answers
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.files import read_model
from tumorlens.stats.paired import paired_difference
from tumorlens.study.external_comparison import (
    ExternalComparison,
    compare_external,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Forty images: of the first 30, 12 are right by the first only, 2 by the second only.
BETTER = [1] * 12 + [0] * 2 + [1] * 26
WORSE = [0] * 12 + [1] * 2 + [1] * 26


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Return two evaluations; training of one has seen 0 to 3, of the other 3 to 5."""
    better, worse = tmp_path / "better", tmp_path / "worse"
    write_evaluation(better, BETTER, "pppp" + "n" * 36, model="better")
    write_evaluation(worse, WORSE, "nnnpps" + "n" * 34, model="worse")
    return better, worse


def test_a_pair_is_compared_on_the_images_that_are_new_to_both(
    two: tuple[Path, Path],
) -> None:
    found = compare_external(two)
    (pair,) = found.pairs
    first = np.array(BETTER[6:], float)
    second = np.array(WORSE[6:], float)
    expected = paired_difference(first, second, np.arange(34))
    assert (pair.first, pair.second, pair.num_images) == ("better", "worse", 34)
    assert pair.difference.value == pytest.approx((6 - 2) / 34)
    assert (pair.difference.low, pair.difference.high) == (expected.low, expected.high)
    assert pair.p == pair.p_holm == expected.p
    for table, accuracy in zip(
        two, (pair.first_accuracy, pair.second_accuracy), strict=True
    ):
        rows = read_predictions(table / "predictions.csv").rows(range(6, 40))
        right = accuracy_score(rows.labels, rows.predicted)
        assert accuracy.value == pytest.approx(right)
        assert accuracy.low is not None
    assert [(one.num_images, one.num_new) for one in found.models] == [
        (40, 36),
        (40, 37),
    ]
    words = "Differences of accuracy on set B, 34 images that are new to both:"
    assert found.summary[0] == words
    assert pair.sentence in found.summary


def test_the_order_of_the_models_turns_the_sign_and_nothing_else(
    two: tuple[Path, Path],
) -> None:
    (one,), (other,) = (compare_external(way).pairs for way in (two, two[::-1]))
    assert one.difference.value == -(other.difference.value or 0)
    assert (one.p, one.num_images) == (other.p, other.num_images)


def test_the_pairs_of_three_models_are_corrected_together(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    write_evaluation(tmp_path / "third", WORSE, "n" * 40, model="third")
    found = compare_external([*two, tmp_path / "third"])
    assert [(pair.first, pair.second) for pair in found.pairs] == [
        ("better", "worse"),
        ("better", "third"),
        ("worse", "third"),
    ]
    assert [pair.num_images for pair in found.pairs] == [34, 36, 37]
    smallest = min(found.pairs, key=lambda pair: pair.p)
    assert smallest.p_holm == pytest.approx(3 * smallest.p)
    assert "34 to 37 images that are new to both" in found.summary[0]


def test_groups_are_the_units(tmp_path: Path) -> None:
    groups = [f"g{number // 20}" for number in range(40)]
    for name, right in (("better", BETTER), ("worse", WORSE)):
        table = answers(right, groups=groups)
        write_evaluation(tmp_path / name, table, "n" * 40, model=name)
    (pair,) = compare_external([tmp_path / "better", tmp_path / "worse"]).pairs
    # The first is better in one of two groups: of two signs both are as far from 0.
    assert pair.p == 0.5
    assert pair.difference.num_units == 2


def test_a_model_of_which_is_not_known_what_it_has_seen_may_be_favoured(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    write_evaluation(tmp_path / "theirs", BETTER, "?" * 40, model="theirs.csv")
    found = compare_external([two[1], tmp_path / "theirs"])
    assert found.pairs[0].num_images == 37  # all that the run has not seen
    assert found.summary[0].startswith("What theirs.csv was trained on is not known")
    assert "37 images that neither is known to have seen:" in found.summary[1]


def test_models_to_which_nothing_is_new_in_common_are_not_compared(
    tmp_path: Path,
) -> None:
    for name, states in (("one", "nnpp"), ("other", "ppnn")):
        write_evaluation(tmp_path / name, [1, 0, 1, 1], states, model=name)
    found = compare_external([tmp_path / "one", tmp_path / "other"])
    assert found.pairs == ()
    assert found.summary == (
        "No image is new to both models of 1 pair, which was not compared.",
    )


def test_answers_to_some_of_the_images_are_compared_on_those_of_both(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    table = answers(WORSE).rows(range(10, 40))
    write_evaluation(tmp_path / "some", table, "n" * 30, model="some")
    found = compare_external([two[0], tmp_path / "some"])
    assert found.pairs[0].num_images == 30
    assert "The models did not answer the same images." in found.summary


def test_models_of_one_name_are_told_apart_by_their_folder(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    write_evaluation(tmp_path / "again", WORSE, "n" * 40, model="better")
    (pair,) = compare_external([two[0], tmp_path / "again"]).pairs
    assert (pair.first, pair.second) == (str(two[0]), str(tmp_path / "again"))


def test_evaluations_of_other_images_are_refused_by_name(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    write_evaluation(
        tmp_path / "c", WORSE, "n" * 40, model="third", data="set C", data_sha256="c"
    )
    with pytest.raises(RunError, match=r"third was evaluated on set C, .* set B that"):
        compare_external([*two, tmp_path / "c"])


CONTENTS = [f"{number:064x}" for number in range(40)]


def elsewhere(
    folder: Path, right: list[int], *, joined: int = 0, **changes: Any
) -> None:
    """Write an evaluation of the images in another folder, in another order.

    The first `joined` images are one group.
    """
    table = answers(right)
    order = np.arange(40)[::-1]
    paths = tuple(f"Testing/{path}" for path in table.paths)
    groups = (paths[0],) * joined + paths[joined:]
    table = replace(table, paths=paths, groups=groups).rows(order)
    contents = [CONTENTS[row] for row in order]
    write_evaluation(
        folder,
        table,
        "n" * 40,
        **{"contents": contents, "data_sha256": "d", "images_sha256": "i", **changes},
    )


def test_the_same_files_below_another_folder_are_compared(tmp_path: Path) -> None:
    write_evaluation(
        tmp_path / "here",
        BETTER,
        "pppp" + "n" * 36,
        model="better",
        contents=CONTENTS,
        images_sha256="i",
    )
    elsewhere(tmp_path / "there", WORSE, model="worse")
    write_evaluation(tmp_path / "plain", WORSE, "n" * 40, model="worse")
    (pair,) = compare_external([tmp_path / "here", tmp_path / "there"]).pairs
    (expected,) = compare_external([tmp_path / "here", tmp_path / "plain"]).pairs
    assert (pair.num_images, pair.p) == (36, expected.p)
    for name in ("difference", "first_accuracy", "second_accuracy"):
        got = getattr(pair, name).model_dump()
        assert got == pytest.approx(getattr(expected, name).model_dump())


def test_what_one_evaluation_holds_together_stays_together(tmp_path: Path) -> None:
    write_evaluation(
        tmp_path / "here",
        BETTER,
        "n" * 40,
        model="better",
        contents=CONTENTS,
        images_sha256="i",
    )
    elsewhere(tmp_path / "there", WORSE, joined=12, model="worse")
    found = compare_external([tmp_path / "here", tmp_path / "there"])
    assert "group these images differently" in found.summary[0]
    groups = np.array([0] * 12 + list(range(1, 29)))
    expected = paired_difference(np.array(BETTER, float), np.array(WORSE), groups)
    (pair,) = found.pairs
    assert pair.p == expected.p
    assert pair.difference.num_units == 29


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images_sha256": "other"}, "its images are not those of set B"),
        ({"images_sha256": None}, "its images are not those of set B"),
        ({"contents": []}, r"images\.csv of worse has no sha256"),
    ],
)
def test_other_images_below_another_folder_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    write_evaluation(
        tmp_path / "here",
        BETTER,
        "n" * 40,
        model="better",
        contents=CONTENTS,
        images_sha256="i",
    )
    elsewhere(tmp_path / "there", WORSE, model="worse", **changes)
    with pytest.raises(RunError, match=problem):
        compare_external([tmp_path / "here", tmp_path / "there"])


def test_a_test_subset_is_the_same_by_itself_and_in_its_set(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    data = make_images(subsets={"Training": 2, "Testing": 3})
    files = sorted(data.glob("Testing/*/*.png"))
    for name, wrong in (("one", 0), ("two", 3), ("three", 0)):
        lines = [f"{path},{path.parent.name}" for path in files[wrong:]]
        lines += [f"{path},no_tumor" for path in files[:wrong]]
        text = "\n".join(["path,predicted", *lines])
        (tmp_path / f"{name}.csv").write_text(text)
    judge_answers(tmp_path / "one.csv", data)
    trained_on = data / "Training"
    judge_answers(tmp_path / "two.csv", data / "Testing", trained_on=trained_on)
    (pair,) = compare_external([tmp_path / "one", tmp_path / "two"]).pairs
    assert pair.num_images == 12
    assert pair.difference.value == pytest.approx(3 / 12)
    # Another label, or another image, is another set.
    files[0].rename(data / "Testing" / "no_tumor" / "moved.png")
    judge_answers(
        tmp_path / "three.csv", data / "Testing", trained_on=trained_on, partial=True
    )
    with pytest.raises(RunError, match="its images are not those"):
        compare_external([tmp_path / "one", tmp_path / "three"])


def test_evaluations_with_other_patients_are_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    table = replace(answers(WORSE), groups=("0000.png",) * 40)
    write_evaluation(tmp_path / "c", table, "n" * 40, model="third")
    with pytest.raises(RunError, match=r"0001\.png is in another group .* third") as e:
        compare_external([two[0], tmp_path / "c"])
    assert "--metadata" in e.value.hint


def test_runs_are_compared_by_the_name_of_their_evaluations(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, right in (("better", BETTER), ("worse", WORSE)):
        run = make_run(tmp_path / name)
        write_evaluation(run.external_path("b"), right, "n" * 40, model=name)
    assert app.main(["compare", "better", "worse", "--on", "b"]) == 0
    said = capsys.readouterr().out
    assert "better is better than worse by 25.0 points (" in said
    path = tmp_path / "comparison" / "on-b" / "external-comparison.json"
    assert "everything is in comparison/on-b/external-comparison.json" in said
    found = read_model(path, ExternalComparison, hint="")
    assert found.pairs[0].num_images == 40
    # A run beside the folder of another framework's answers.
    folder = str(tmp_path / "worse" / "external" / "b")
    words = ["compare", "better", folder, "--on", "b", "--out", "c"]
    assert app.main(words) == 0
    again = json.loads((tmp_path / "c" / "external-comparison.json").read_text())
    assert again["pairs"] == json.loads(path.read_text())["pairs"]
    # Two folders need no name.
    folders = [str(tmp_path / name / "external" / "b") for name in ("better", "worse")]
    assert app.main(["compare", *folders]) == 0


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (["better", "worse", "--on", "c"], "better has no evaluation 'c'", "it has b;"),
        (
            ["better", "plain", "--on", "b"],
            "plain has no evaluation 'b'",
            "evaluate pl",
        ),
        (["better", "worse/external/b"], "better is a run, and others", "--on NAME"),
        (["better", "--on", "b"], "there is nothing to compare better", "two runs"),
        (["better", "better", "--on", "b"], "was given twice", "name each model once"),
        (["better", "nowhere", "--on", "b"], "no such run folder: nowhere", "train"),
        (
            ["better", "worse", "--on", "b", "--subset", "val"],
            "--subset has no effect on another set",
            "leave it out",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_error_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    words: list[str],
    problem: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("better", "worse", "plain"):
        run = make_run(tmp_path / name)
        if name != "plain":
            write_evaluation(run.external_path("b"), BETTER, "n" * 40, model=name)
    assert app.main(["compare", *words]) == 2
    error, hint_line = capsys.readouterr().err.splitlines()
    assert problem in error
    assert hint in hint_line
    assert not (tmp_path / "comparison").exists()


def test_no_model_is_an_error() -> None:
    with pytest.raises(ConfigError, match="there is nothing to compare"):
        compare_external([])
