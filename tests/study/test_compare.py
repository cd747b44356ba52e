"""Run folders made by hand, put side by side: what is compared, and with what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats
from PIL import Image
from safetensors.numpy import load_file

from support import runs_on_images
from support.handmade_runs import TWO, add_weights, answers, history, make_run
from support.images import draw_image
from tumorlens.cli import app
from tumorlens.config import load_config
from tumorlens.data.index import SplitRow
from tumorlens.deploy import costs
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.table_measures import metrics_from_predictions
from tumorlens.files import sha256_of
from tumorlens.runs.folder import open_run
from tumorlens.stats.paired import (
    BONETT_PRICE,
    Difference,
    holm,
    paired_difference,
)
from tumorlens.study import compare as stage
from tumorlens.study import pairs
from tumorlens.study.compare import compare
from tumorlens.study.comparison import ComparedArm, Comparison
from tumorlens.study.folder import Study, create_study
from tumorlens.study.plan_file import load_plan
from tumorlens.study.store import Store
from tumorlens.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable

# Twelve images on which the first is right and not the second, two the other way round.
BETTER = [1] * 12 + [0] * 2 + [1] * 26
WORSE = [0] * 12 + [1] * 2 + [1] * 26


def compared(*paths: Path, **options: Any) -> dict[str, Any]:
    found = compare(paths, **{"with_latency": False, **options})
    content: dict[str, Any] = json.loads(found.model_dump_json())
    assert Comparison.model_validate(content) == found
    return content


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Return a better and a worse run of two learning rates."""
    better, worse = tmp_path / "better", tmp_path / "worse"
    make_run(better, answers(BETTER), optim__lr=0.001, rows=history(0.5, 0.6))
    make_run(worse, answers(WORSE), optim__lr=0.01)
    return better, worse


# arms and their measures


def test_arms_have_the_figures_of_evaluate_and_their_settings(
    two: tuple[Path, Path],
) -> None:
    found = compared(*two)
    assert (found["format"], found["subset"], found["study"]) == (2, "test", None)
    assert (found["title"], found["example"]) == ("better and worse", None)
    first, second = found["arms"]
    assert (first["name"], second["name"]) == ("better", "worse")
    assert (first["settings"], first["model"]) == ({"optim.lr": 0.001}, "test_resnet")
    measures = first["measures"]["as-given"]
    expected = metrics_from_predictions(two[0] / "predictions.csv")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "ece"):
        assert measures[name] == pytest.approx(getattr(expected, name).model_dump()), (
            name
        )
    assert (measures["num_seeds"], measures["num_images"]) == (1, 40)
    assert measures["leak"] == {
        "words": "No leak found.",
        "is_believable": True,
        "state": "no leak",
    }
    assert measures["best_test_epoch"] is None
    assert (first["train_seconds"], first["images_per_second"]) == (4.0, 100.0)
    unwatched = {"test_loss": None, "test_accuracy": None}
    assert first["runs"] == [
        {
            "path": str(two[0]),
            "protocol": "as-given",
            "seed": 42,
            "state": "finished",
            "reason": None,
            "place": None,
            "history": [row | unwatched for row in history(0.5, 0.6)],
        }
    ]
    assert second["runs"][0]["history"] == []


def test_one_run_alone_has_a_table_and_no_pairs(two: tuple[Path, Path]) -> None:
    found = compared(two[0])
    assert [arm["name"] for arm in found["arms"]] == ["better"]
    assert (found["pairs"], found["title"]) == ([], "better")


def test_three_runs_are_a_title_of_three_arms(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "third", answers(BETTER))
    assert compared(*two, tmp_path / "third")["title"] == "3 arms"


def test_seeds_are_counted_and_averaged(tmp_path: Path) -> None:
    for seed, right in ((1, [1, 1, 1, 0]), (2, [1, 0, 0, 0])):
        make_run(tmp_path / str(seed), answers(right), train__seed=seed)
    (arm,) = compared(tmp_path / "1", tmp_path / "2")["arms"]
    measures = arm["measures"]["as-given"]
    assert (measures["num_seeds"], measures["num_images"]) == (2, 4)
    assert measures["accuracy"]["value"] == 0.5
    assert [run["seed"] for run in arm["runs"]] == [1, 2]


def test_folds_given_one_by_one_are_pooled(tmp_path: Path) -> None:
    for fold, right in enumerate(({"a.png": 1, "b.png": 1}, {"c.png": 0, "d.png": 1})):
        make_run(
            tmp_path / str(fold),
            answers(right),
            data__protocol="grouped-kfold",
            data__fold=fold,
        )
    (arm,) = compared(tmp_path / "0", tmp_path / "1")["arms"]
    measures = arm["measures"]["grouped-kfold"]
    assert (measures["num_seeds"], measures["num_images"]) == (1, 4)
    assert measures["accuracy"]["value"] == 0.75


def test_published_epochs_stand_beside_those_that_val_has_chosen(
    tmp_path: Path,
) -> None:
    rows = history(0.7, 0.6, 0.5, test=(0.4, 0.9, 0.8))
    run = make_run(tmp_path / "run", answers([1, 1]), rows=rows)
    make_run(tmp_path / "val", answers([1, 1]), subset="val", rows=rows)
    measures = compared(run.path)["arms"][0]["measures"]["as-given"]
    assert measures["last_epoch_accuracy"] == 0.8
    assert measures["best_val_epoch_accuracy"] == 0.4
    assert (measures["best_test_epoch_accuracy"], measures["best_test_epoch"]) == (
        0.9,
        2,
    )
    on_val = compared(tmp_path / "val", subset="val")
    measures = on_val["arms"][0]["measures"]["as-given"]
    assert on_val["subset"] == "val"
    assert measures["best_test_epoch_accuracy"] is None


@pytest.mark.parametrize(
    ("protocols", "headline"),
    [
        ((("as-given",), ("as-given", "grouped")), "as-given"),
        ((("grouped", "as-given"), ("as-given", "grouped")), "grouped"),
        ((("grouped-kfold", "grouped"),), "grouped-kfold"),
        ((("as-given",), ("grouped",)), "grouped"),
    ],
)
def test_the_headline_is_the_most_telling_protocol_that_all_arms_have(
    tmp_path: Path, protocols: tuple[tuple[str, ...], ...], headline: str
) -> None:
    paths = []
    for number, of_arm in enumerate(protocols, start=1):
        for protocol in of_arm:
            paths.append(tmp_path / f"{number}-{protocol}")
            table = answers([1, 0, 1])
            folds = [answers({"a.png": 1}), answers({"b.png": 1})]
            is_kfold = protocol == "grouped-kfold"
            make_run(
                paths[-1],
                folds if is_kfold else table,
                data__protocol=protocol,
                data__num_folds=2,
                optim__lr=number / 10,
            )
    assert compared(*paths)["headline_protocol"] == headline


def test_costs_of_training_are_those_of_the_headline_protocol(tmp_path: Path) -> None:
    folds = [answers({"a.png": 1}), answers({"b.png": 1})]
    make_run(
        tmp_path / "given", answers([1, 1]), data__num_folds=2, rows=history(*[0.5] * 9)
    )
    make_run(tmp_path / "folds", folds, rows=history(0.5))
    (arm,) = compared(tmp_path / "given", tmp_path / "folds")["arms"]
    # Two folds of one epoch of two seconds, and not nine epochs.
    assert arm["train_seconds"] == 4


# pairs


def test_a_pair_has_its_test_and_interval_on_the_images_of_both(
    two: tuple[Path, Path],
) -> None:
    (pair,) = compared(*two)["pairs"]
    assert (pair["protocol"], pair["first"], pair["second"]) == (
        "as-given",
        "better",
        "worse",
    )
    expected = paired_difference(
        np.array(BETTER, dtype=float), np.array(WORSE, dtype=float), np.arange(40)
    )
    assert pair["num_images"] == 40
    assert pair["difference"] == {
        "value": 0.25,
        "low": expected.low,
        "high": expected.high,
        "method": BONETT_PRICE,
        "unit": "group",
        "num_units": 40,
    }
    # Two of fourteen, these counted half: 2 * (1 + 14 + 91 / 2) / 2^14.
    assert pair["p"] == pair["p_holm"] == pytest.approx(2 * 60.5 / 2**14)
    assert not pair["is_noise"]
    assert pair["sentence"].startswith("better is better than worse by 25.0 points (")


def test_runs_with_folds_are_compared_on_all_images(tmp_path: Path) -> None:
    for name, right in (("one", [1, 1]), ("other", [0, 1])):
        folds = [answers({f"{n}.png": is_right}) for n, is_right in enumerate(right)]
        make_run(tmp_path / name, folds)
    (pair,) = compared(tmp_path / "one", tmp_path / "other")["pairs"]
    assert (pair["protocol"], pair["num_images"]) == ("grouped-kfold", 2)
    assert pair["difference"]["value"] == 0.5


def test_a_group_counts_once_however_many_images_it_has(tmp_path: Path) -> None:
    groups = [f"g{number // 20}" for number in range(40)]
    for name, right in (("better", BETTER), ("worse", WORSE)):
        make_run(tmp_path / name, answers(right, groups=groups))
    (pair,) = compared(tmp_path / "better", tmp_path / "worse")["pairs"]
    # In one of two groups the first is better by ten images. Were they independent, p
    # would be 0.007; of two signs of one group both are as far from 0.
    assert pair["p"] == pair["p_holm"] == 0.5
    assert pair["difference"]["num_units"] == 2
    assert pair["is_noise"]


def test_only_images_of_both_are_compared(tmp_path: Path) -> None:
    make_run(tmp_path / "one", answers([1] * 8))
    make_run(tmp_path / "other", answers([0, 1, 0, 1]))
    make_run(tmp_path / "third", answers({"else.png": 1}))
    found = compared(*(tmp_path / name for name in ("one", "other", "third")))
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"], pair["num_images"]) == ("one", "other", 4)
    assert pair["difference"]["value"] == 0.5
    assert found["arms"][0]["measures"]["as-given"]["num_images"] == 8
    assert any("2 of the pairs share no image" in words for words in found["summary"])


def test_the_order_of_the_images_does_not_matter(tmp_path: Path) -> None:
    table = answers([1, 0, 0, 1, 1, 0])
    make_run(tmp_path / "one", table)
    make_run(tmp_path / "other", table.rows([5, 3, 1, 0, 2, 4]))
    (pair,) = compared(tmp_path / "one", tmp_path / "other")["pairs"]
    assert (pair["difference"]["value"], pair["p"]) == (0, 1)


def test_several_seeds_are_compared_by_how_often_they_were_right(
    tmp_path: Path,
) -> None:
    rights = {"a1": [1, 1, 1, 1], "a2": [1, 1, 0, 0], "b1": [0, 1, 0, 0]}
    for name, right in rights.items():
        make_run(
            tmp_path / name,
            answers(right),
            train__seed=int(name[1]),
            optim__lr=0.1 if name[0] == "a" else 0.2,
        )
    (pair,) = compared(*(tmp_path / name for name in rights))["pairs"]
    assert (pair["first"], pair["second"]) == ("lr=0.1", "lr=0.2")
    assert pair["difference"]["value"] == pytest.approx((1 + 1 + 0.5 + 0.5 - 1) / 4)
    # Differences of 1, 0, 0.5 and 0.5: 2 of the 8 signs are as far, and count half.
    assert pair["p"] == pair["p_holm"] == 0.125


def test_seeds_with_other_test_images_are_compared_seed_by_seed(
    tmp_path: Path,
) -> None:
    # Image c is asked under seed 2 only, and d under seed 1 only.
    rights = {
        "a1": {"b.png": 1, "d.png": 1},
        "b1": {"b.png": 1, "d.png": 0},
        "a2": {"b.png": 0, "c.png": 1},
        "b2": {"b.png": 1, "c.png": 1},
    }
    for name, right in rights.items():
        make_run(
            tmp_path / name,
            answers(right),
            train__seed=int(name[1]),
            optim__lr=0.1 if name[0] == "a" else 0.2,
        )
    (pair,) = compared(*(tmp_path / name for name in rights))["pairs"]
    assert pair["difference"]["value"] == pytest.approx((0 + 1 - 1 + 0) / 4)
    assert pair["num_images"] == 3


def test_holm_counts_the_pairs_of_one_protocol(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    paths = []
    for number, share in enumerate((0.9, 0.7, 0.5), start=1):
        for protocol in ("as-given", "grouped"):
            path = tmp_path / f"{number}-{protocol}"
            right = (rng.random(120) < share).astype(int).tolist()
            make_run(
                path, answers(right), optim__lr=number / 10, data__protocol=protocol
            )
            paths.append(path)
    found = compared(*paths)
    assert len(found["pairs"]) == 6
    for protocol in ("as-given", "grouped"):
        pairs = [pair for pair in found["pairs"] if pair["protocol"] == protocol]
        assert [(pair["first"], pair["second"]) for pair in pairs] == [
            ("lr=0.1", "lr=0.2"),
            ("lr=0.1", "lr=0.3"),
            ("lr=0.2", "lr=0.3"),
        ]
        corrected = holm([pair["p"] for pair in pairs])
        assert [pair["p_holm"] for pair in pairs] == pytest.approx(corrected)
        assert not pairs[1]["is_noise"]


def test_equal_answers_do_not_differ_significantly(tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_run(tmp_path / name, answers(BETTER))
    (pair,) = compared(tmp_path / "one", tmp_path / "other")["pairs"]
    # Forty images on which none is right alone, and one more on each side.
    half = scipy.stats.t.ppf(0.975, 39) * 2**0.5 / 42
    got = pair["difference"]
    assert (got["value"], got["low"], got["high"]) == pytest.approx((0, -half, half))
    assert pair["sentence"].startswith("No significant difference between one and ")
    assert pair["is_noise"]
    assert pair["p_holm"] == 1


@pytest.mark.parametrize(
    ("low", "p", "is_noise"),
    [(0.01, 0.04, False), (-0.01, 0.04, True), (0.0, 0.04, True), (0.01, 0.05, True)],
)
def test_noise_is_an_interval_with_zero_in_it_or_a_large_p(
    two: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    low: float,
    p: float,
    *,
    is_noise: bool,
) -> None:
    monkeypatch.setattr(
        pairs,
        "paired_difference",
        lambda first, second, groups: Difference(
            0.2, low, 0.4, p, num_groups=40, num_discordant_groups=14
        ),
    )
    (pair,) = compared(*two)["pairs"]
    assert pair["is_noise"] == is_noise


# costs


def test_costs_are_those_of_the_network(two: tuple[Path, Path]) -> None:
    first = compared(*two)["arms"][0]
    tensors = load_file(two[0] / "weights.safetensors")
    learnt = sum(
        tensor.size
        for name, tensor in tensors.items()
        if not name.rpartition(".")[2].startswith(("running_", "num_batches"))
    )
    assert first["num_parameters"] == learnt
    assert first["size_bytes"] == (two[0] / "weights.safetensors").stat().st_size
    assert first["macs"] > 1_000_000
    assert first["latency_ms"] is None


def test_networks_are_timed_once_where_only_their_training_differs(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "mirrored", answers(BETTER), model__mirror=True)
    timed: list[int] = []

    def time(answerers: Any, **options: Any) -> Any:
        timed.append(len(answerers))
        return [
            costs.Latency(1.0 + n, 0.9 + n, 1.2 + n) for n, _ in enumerate(answerers)
        ]

    monkeypatch.setattr(costs, "measure_latencies", time)
    found = compared(*two, tmp_path / "mirrored", with_latency=True, device="cpu")
    better, worse, mirrored = (arm["latency_ms"] for arm in found["arms"])
    assert timed == [2]
    assert better == worse != mirrored
    assert (better["p5"], better["value"], better["p95"]) == (0.9, 1.0, 1.2)
    # The more accurate one of two equally fast networks is on the front.
    assert "better" in found["pareto"]
    assert "worse" not in found["pareto"]


def test_the_front_is_of_arms_that_none_beats_in_both() -> None:
    def arm(name: str, accuracy: float | None, latency: float | None) -> ComparedArm:
        estimate = {"value": accuracy, "low": None, "high": None}
        measures = {
            "num_seeds": 1,
            "num_images": 1,
            **dict.fromkeys(
                ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"), estimate
            ),
            "ece": estimate,
            "leak": {"words": "", "is_believable": True},
        }
        nothing = ("num_parameters", "macs", "size_bytes", "train_seconds")
        return ComparedArm.model_validate(
            {
                **dict.fromkeys((*nothing, "images_per_second")),
                "name": name,
                "settings": {},
                "model": "resnet18",
                "latency_ms": latency and {"value": latency, "p5": 0.0, "p95": 99.0},
                "measures": {} if accuracy is None else {"grouped": measures},
                "runs": [],
            }
        )

    arms = [
        arm("slow", 0.9, 30.0),
        arm("fast", 0.8, 10.0),
        arm("beaten", 0.8, 11.0),
        arm("less accurate", 0.7, 10.0),
        arm("twin", 0.8, 10.0),
        arm("not timed", 0.95, None),
        arm("not measured", None, 1.0),
    ]
    assert stage._pareto_front(arms, "grouped") == ["slow", "fast", "twin"]


def test_a_run_with_folds_costs_what_one_of_them_costs(tmp_path: Path) -> None:
    make_run(tmp_path / "whole", answers([1, 0]))
    folds = [answers({"a.png": 1}), answers({"b.png": 0})]
    make_run(tmp_path / "folds", folds)
    whole, of_folds = compared(tmp_path / "whole", tmp_path / "folds")["arms"]
    for name in ("num_parameters", "macs", "size_bytes"):
        assert whole[name] == of_folds[name]


def test_without_its_weights_a_run_has_measures_and_no_costs(
    two: tuple[Path, Path],
) -> None:
    (two[0] / "weights.safetensors").unlink()
    first, second = compared(*two)["arms"]
    assert first["measures"]["as-given"]["num_images"] == 40
    assert (first["num_parameters"], first["macs"], first["size_bytes"]) == (None,) * 3
    assert second["macs"] is not None


# what is not there


def test_a_diverged_trial_is_listed_with_its_reason_and_gaps_in_its_curve(
    study: Study,
) -> None:
    store = study.open_store()
    claim = store.claim()
    assert claim is not None
    run = make_run(study.run_path(claim.name), rows=history(0.5), is_finished=False)
    line = run.history_path.read_text()
    # As earlier versions wrote it.
    run.history_path.write_text(line + '{"epoch": 2, "val_loss": NaN}\n')
    claim.fail("the training has diverged")
    found = compared(study.path)
    (failed,) = found["arms"][2]["runs"]
    assert (failed["state"], failed["reason"]) == (
        "failed",
        "the training has diverged",
    )
    assert failed["history"][1]["val_loss"] is None
    assert any("the training has diverged" in words for words in found["summary"])


def test_a_run_without_answers_is_listed_with_what_to_do(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "new")
    make_run(tmp_path / "half", answers(BETTER), is_finished=False)
    found = compared(*two, tmp_path / "new", tmp_path / "half")
    new, half = found["arms"][2:]
    assert (new["measures"], half["measures"]) == ({}, {})
    assert new["runs"][0]["state"] == "finished"
    assert new["runs"][0]["reason"] == (
        f"not evaluated yet: tumorlens evaluate {tmp_path / 'new'}"
    )
    assert "--resume" in half["runs"][0]["reason"]
    assert new["num_parameters"] is not None
    assert half["num_parameters"] is None
    assert len(found["pairs"]) == 1
    assert any(
        words.startswith("new (as-given, seed 42)") for words in found["summary"]
    )


def test_without_any_answer_the_hint_is_how_to_get_that_of_each_run(
    tmp_path: Path,
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    make_run(one)
    make_run(other, optim__lr=0.5)
    with pytest.raises(RunError, match=r"predictions for the subset 'test'") as caught:
        compared(one, other)
    assert caught.value.hint == (
        f"tumorlens evaluate {one}; tumorlens evaluate {other}; or compare on val, "
        "with --subset val and no look at test"
    )


def test_runs_that_cannot_answer_say_why(tmp_path: Path) -> None:
    make_run(tmp_path / "folds", [answers({"a.png": 1}), answers({"b.png": 1})])
    with pytest.raises(RunError, match=r"predictions for the subset 'val'") as caught:
        compared(tmp_path / "folds", subset="val")
    assert caught.value.hint == (
        f"{tmp_path / 'folds'}: a run with folds has no subset 'val' of its own"
    )


def test_what_is_missing_of_val_is_asked_for_and_of_test_is_not(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images()
    runs = [
        runs_on_images.make_run(tmp_path / name, data, seed=seed)
        for seed, name in enumerate(("one", "other"))
    ]
    evaluate(runs[0], subset="val", device="cpu")
    before = runs[0].predictions_of("val").stat().st_mtime_ns
    moved = data.rename(tmp_path / "moved")
    told: list[tuple[int, int]] = []
    found = compare(
        [run.path for run in runs],
        subset="val",
        data=moved,
        with_latency=False,
        device="cpu",
        progress=lambda done, total: told.append((done, total)),
    )
    # Both networks differ in their seed alone.
    measures = found.arms[0].measures["grouped"]
    assert (measures.num_seeds, measures.num_images) == (2, 8)
    assert told[-1] == (8, 8)
    assert runs[0].predictions_of("val").stat().st_mtime_ns == before
    assert [run.looks() for run in runs] == [[], []]
    with pytest.raises(
        RunError, match="none of the runs has predictions for the subset 'test'"
    ):
        compare([run.path for run in runs], with_latency=False)


def test_a_run_with_folds_has_no_val(two: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(two[0] / "predictions.csv", two[0] / "predictions-val.csv")
    make_run(tmp_path / "folds", [answers({"a.png": 1}), answers({"b.png": 1})])
    found = compared(two[0], tmp_path / "folds", subset="val")
    assert found["arms"][1]["runs"][0]["reason"] == (
        "a run with folds has no subset 'val' of its own"
    )


def test_runs_of_other_classes_are_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    other = ("meningioma", "pituitary")
    make_run(tmp_path / "other", answers([1, 1], classes=other), classes=other)
    with pytest.raises(
        RunError,
        match="better has the classes glioma, no_tumor, other has meningioma, "
        "pituitary",
    ):
        compared(two[0], tmp_path / "other")


def test_an_image_with_two_labels_is_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    make_run(tmp_path / "relabelled", answers({"0001.png": 1}))
    with pytest.raises(
        RunError, match=r"0001\.png is glioma in relabelled and no_tumor in another run"
    ):
        compared(two[0], tmp_path / "relabelled")


def test_an_unknown_subset_is_named(two: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"unknown subset 'tset'\n.*'test'"):
        compared(*two, subset="tset")
    with pytest.raises(ConfigError, match=r"unknown subset 'train'"):
        compared(*two, subset="train")


# one image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "glioma" / "1.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(draw_image("glioma", 1)).save(path)
    return path


def test_an_image_goes_through_every_arm(
    two: tuple[Path, Path], image: Path, tmp_path: Path
) -> None:
    row = SplitRow("1.png", sha256_of(image), "glioma", "g", "train", "")
    make_run(tmp_path / "seen", answers(BETTER), split=[row], model__mirror=True)
    make_run(tmp_path / "new", is_finished=False)
    found = compared(*two, tmp_path / "seen", tmp_path / "new", image=image)
    example = found["example"]
    assert (example["path"], example["label"]) == (str(image), "glioma")
    assert example["classes"] == list(TWO)
    assert [row["arm"] for row in example["rows"]] == ["better", "worse", "seen"]
    for row, path in zip(example["rows"], (*two, tmp_path / "seen"), strict=True):
        (expected,) = Predictor.open(path).predict_files([image])
        assert expected.probs is not None
        assert row["probs"] == dict(zip(TWO, map(float, expected.probs), strict=True))
        assert row["predicted"] == expected.predicted
    assert [row["in_training"] for row in example["rows"]] == [False, False, True]
    assert any("in the training of seen" in words for words in found["summary"])


@pytest.mark.parametrize(
    ("subset", "is_in"),
    [("test", False), ("left-out", False), ("val", True), ("fold-1", True)],
)
def test_an_image_of_val_or_of_a_fold_was_in_training(
    two: tuple[Path, Path], image: Path, subset: str, *, is_in: bool
) -> None:
    row = SplitRow("1.png", sha256_of(image), "glioma", "g", subset, "")
    other = SplitRow("2.png", "0" * 64, "glioma", "h", "train", "")
    run = open_run(two[0])
    run.write_split([row, other], run.leak())
    found = compared(two[0], image=image)
    assert found["example"]["rows"][0]["in_training"] == is_in


def test_under_folds_the_network_answers_that_did_not_learn_from_the_image(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images(num_each=8)
    settings = [
        *("model.name=test_resnet", "model.pretrained=no", "model.size_px=32"),
        *("data.protocol=grouped-kfold", "data.num_folds=2", "optim.epochs=1"),
        *(f"data.path={data}", f"data.cache_dir={tmp_path / 'cache'}"),
        *("train.batch_size=8", "train.device=cpu"),
    ]
    run = train(load_config(assignments=settings), out=tmp_path / "run").run
    evaluate(run, device="cpu")
    tested = next(row for row in run.split() if row.subset == "fold-1")
    image = data / tested.path
    (row,) = compared(run.path, image=image)["example"]["rows"]
    (expected,) = Predictor.open(run.fold_path(1)).predict_files([image])
    assert expected.probs is not None
    assert [*row["probs"].values()] == pytest.approx(expected.probs)
    assert row["network"].startswith("grouped-kfold, seed 42, fold 1")
    assert not row["in_training"]


def test_a_run_without_a_split_may_have_an_example(
    two: tuple[Path, Path], image: Path
) -> None:
    (two[0] / "split.csv").unlink()
    assert compared(two[0], image=image)["example"]["rows"][0]["in_training"] is False


def test_an_image_may_be_relative_to_the_data(
    two: tuple[Path, Path], image: Path, tmp_path: Path
) -> None:
    table = tmp_path / "data" / "images.csv"
    table.write_text("path,label\n", encoding="utf-8")
    for data in (tmp_path / "data", table):
        found = compared(two[0], image=Path("glioma/1.png"), data=data)
        assert found["example"]["path"] == "glioma/1.png"
        found = compared(two[0], image=image, data=data)
        assert found["example"]["path"] == "glioma/1.png"


def test_an_image_in_no_class_folder_has_no_label(
    two: tuple[Path, Path], image: Path, tmp_path: Path
) -> None:
    shutil.copy(image, tmp_path / "1.png")
    assert compared(two[0], image=tmp_path / "1.png")["example"]["label"] == ""


def test_an_image_that_cannot_be_read_is_refused(
    two: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*broken\.png"):
        compared(two[0], image=tmp_path / "broken.png")
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(DataError, match=f"no such image: {path}"):
            compared(two[0], image=path)


# studies


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Return a study of three learning rates, two of them done."""
    (tmp_path / "lr.toml").write_text(
        'title = "Learning rate"\nprotocols = ["as-given"]\ntest = true\n[base]\n'
        'model.name = "test_resnet"\n[axes]\noptim.lr = [1e-3, 1e-2, 1e-4]\n',
        encoding="utf-8",
    )
    study = create_study(
        tmp_path / "study", load_plan(tmp_path / "lr.toml"), store_url=None
    )
    store = study.open_store()
    store.fill()
    for right in (BETTER, WORSE):
        claim = store.claim()
        assert claim is not None
        make_run(study.run_path(claim.name), answers(right))
        claim.finish(0.5)
    return study


def test_a_study_is_compared_with_paths_below_it(study: Study) -> None:
    found = compared(study.path)
    assert (found["title"], found["study"]) == ("Learning rate", str(study.path))
    assert [arm["settings"]["optim.lr"] for arm in found["arms"]] == [1e-3, 1e-2, 1e-4]
    done, _, waiting = (arm["runs"][0] for arm in found["arms"])
    assert done["path"].startswith("trials/")
    assert (study.path / done["path"]).is_dir()
    assert (waiting["state"], waiting["history"]) == ("waiting", [])
    assert found["arms"][2]["model"] == "test_resnet"
    (pair,) = found["pairs"]
    assert pair["difference"]["value"] == 0.25


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_trial_that_was_trained_in_another_folder_is_named_and_not_counted(
    study: Study, tmp_path: Path, *, is_begun: bool
) -> None:
    elsewhere = Store(study.plan, study.store_url, place=tmp_path / "pgB")
    claim = elsewhere.claim()
    assert claim is not None
    if is_begun:
        make_run(study.run_path(claim.name), answers(BETTER), is_finished=False)
    claim.finish(0.5)
    found = compared(study.path)
    assert len(found["pairs"]) == 1
    arm = found["arms"][2]
    assert arm["measures"] == {}
    assert arm["runs"][0]["place"].endswith(f":{tmp_path / 'pgB'}")
    assert arm["runs"][0]["history"] == []
    (sentence,) = [words for words in found["summary"] if "pgB" in words]
    assert sentence.startswith("1 trial trained in ")
    assert "not in this comparison: lr=0.0001 (as-given, seed 42)." in sentence


def test_a_finished_trial_whose_run_folder_was_removed_says_so(study: Study) -> None:
    path = study.trials()[0].run_path
    shutil.rmtree(path)
    run = compared(study.path)["arms"][0]["runs"][0]
    assert run["place"] is None
    assert run["reason"] == f"there is no finished run in {path}"


def test_an_ensemble_says_what_its_members_cost(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", answers([1, 0]))
    both = make_run(tmp_path / "both", answers([1, 1]), train__seed=7)
    for number in range(2):
        shutil.copytree(one.path, both.member_path(number))
    both.write_ensemble(["one", "one"])
    both.card_path.unlink()
    both.weights_path.unlink()
    single, double = compared(one.path, both.path)["arms"]
    for name in ("num_parameters", "macs", "size_bytes"):
        assert double[name] == 2 * single[name]


def test_a_network_with_changed_weights_is_refused(two: tuple[Path, Path]) -> None:
    add_weights(open_run(two[0]), weights_sha256="0" * 64)
    with pytest.raises(RunError, match=r"better/weights.*SHA-256 should be 0000"):
        compared(*two)


# the command


def test_the_command_prints_what_it_writes(
    two: tuple[Path, Path],
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", *map(str, two), "--no-latency"]
    assert app.main([*words, "--data", "data", "--image", "glioma/1.png"]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "comparison"
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert found["arms"][0]["latency_ms"] is None
    assert found["example"]["path"] == "glioma/1.png"
    for sentence in found["summary"]:
        assert sentence in out
    assert "95.0 %" in out
    assert out.endswith(
        "the page is comparison/comparison.html, its tables are beside it as .csv, "
        ".md and .tex\n"
    )
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in page
    for suffix in ("csv", "md", "tex"):
        assert (folder / f"comparison.{suffix}").is_file()


def test_the_command_writes_where_it_is_told_and_times_the_networks(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "SECONDS", 0.1)
    assert app.main(["compare", str(two[0]), "--out", str(tmp_path / "new")]) == 0
    text = (tmp_path / "new" / "comparison.json").read_text(encoding="utf-8")
    assert json.loads(text)["arms"][0]["latency_ms"]["value"] > 0


def test_a_comparison_on_val_leaves_the_one_on_test(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", *map(str, two), "--no-latency"]
    assert app.main(words) == 0
    test = Path("comparison/comparison.json").read_bytes()
    for path in two:
        shutil.copy(path / "predictions.csv", path / "predictions-val.csv")
    assert app.main([*words, "--subset", "val"]) == 0
    assert Path("comparison/comparison.json").read_bytes() == test
    found = json.loads(Path("comparison/val/comparison.json").read_text("utf-8"))
    assert found["subset"] == "val"


def test_the_command_puts_the_comparison_of_a_study_into_its_folder(
    study: Study,
) -> None:
    assert app.main(["compare", str(study.path), "--no-latency"]) == 0
    names = {path.name for path in study.path.glob("comparison.*")}
    assert names == {
        f"comparison.{end}" for end in ("json", "html", "csv", "md", "tex")
    }


def test_the_command_refuses_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["compare", str(tmp_path / "nowhere")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: no such run folder: {tmp_path / 'nowhere'}"
    assert hint.startswith("hint: give folders named by train --out")
