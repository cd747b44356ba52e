"""Figures recomputed from the table with scikit-learn; runs evaluated end to end."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as truth
import torch

from support.runs_on_images import add_weights
from tumorlens.config import Config, parse_config
from tumorlens.data.duplicates import Duplicates
from tumorlens.data.images import load_square
from tumorlens.data.index import SplitRow, read_index
from tumorlens.data.leakage import LeakVerdict
from tumorlens.data.split import fold_splits, make_split
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import (
    Predictions,
    read_predictions,
    round_probs,
    write_predictions,
)
from tumorlens.evaluation.table_measures import metrics_from_predictions
from tumorlens.files import sha256_of_bytes
from tumorlens.runs.folder import Run, create_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")


def answers(num: int = 300, *, seed: int = 0) -> Predictions:
    """Return predictions of groups of two, mostly right, from two sources."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(4, size=num))
    logits = rng.normal(size=(num, 4))
    logits[np.arange(num), labels] += 1.5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions(
        classes=CLASSES,
        paths=tuple(f"{n:04}.png" for n in range(num)),
        labels=labels,
        probs=round_probs(probs.astype(np.float32)),
        groups=tuple(f"{n // 2 * 2:04}.png" for n in range(num)),
        sources=tuple(("figshare", "")[n % 3 == 0] for n in range(num)),
        folds=tuple(n % 5 for n in range(num)),
    )


class Table:
    """`predictions.csv` as somebody reads it who does not have this package."""

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))
        self.y = np.array([row["label"] for row in self.rows])
        self.predicted = np.array([row["predicted"] for row in self.rows])
        self.probs = np.array(
            [[float(row[f"prob_{name}"]) for name in CLASSES] for row in self.rows]
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, dict[str, Any]]:
    path = tmp_path_factory.mktemp("table") / "predictions.csv"
    write_predictions(path, answers())
    return Table(path), metrics_from_predictions(path).model_dump(mode="json")


# every figure, from the CSV file and scikit-learn alone


def headline(table: Table, images: NDArray[np.int64]) -> dict[str, float]:
    y, predicted, probs = (
        table.y[images],
        table.predicted[images],
        table.probs[images],
    )
    return {
        "accuracy": truth.accuracy_score(y, predicted),
        "balanced_accuracy": truth.balanced_accuracy_score(y, predicted),
        "macro_f1": truth.f1_score(y, predicted, average="macro"),
        "log_loss": truth.log_loss(y, probs, labels=CLASSES),
        "brier": truth.brier_score_loss(y, probs, labels=CLASSES, scale_by_half=False),
        "macro_auroc": truth.roc_auc_score(y, probs, multi_class="ovr", labels=CLASSES),
    }


def test_headline_figures_equal_scikit_learn(
    pair: tuple[Table, dict[str, Any]],
) -> None:
    table, got = pair
    for name, value in headline(table, np.arange(300)).items():
        assert got[name]["value"] == pytest.approx(value), name
        assert got[name]["low"] < value < got[name]["high"], name


def test_the_calibration_error_equals_a_loop_over_bins(
    pair: tuple[Table, dict[str, Any]],
) -> None:
    table, got = pair
    confidence = table.probs.max(axis=1)
    gaps = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            right = (table.predicted == table.y)[inside].mean()
            gaps += inside.mean() * abs(right - confidence[inside].mean())
    assert got["ece"]["value"] == pytest.approx(gaps)
    assert got["ece"]["low"] < gaps < got["ece"]["high"]
    bins = got["curves"]["calibration"]
    assert sum(bins["count"]) == len(table.y)
    share = np.array(bins["count"]) / len(table.y)
    assert (share * bins["confidence"]).sum() == pytest.approx(confidence.mean())
    assert (share * bins["accuracy"]).sum() == pytest.approx(
        truth.accuracy_score(table.y, table.predicted)
    )


def test_figures_of_each_class_equal_scikit_learn_and_scipy(
    pair: tuple[Table, dict[str, Any]],
) -> None:
    table, got = pair
    assert got["classes"] == list(CLASSES) == list(got["per_class"])
    precision, recall, f1, number = truth.precision_recall_fscore_support(
        table.y, table.predicted, labels=CLASSES
    )
    for place, name in enumerate(CLASSES):
        one = got["per_class"][name]
        is_it, said = table.y == name, table.predicted == name
        assert one["num_images"] == number[place]
        expected = {
            "precision": precision[place],
            "recall": recall[place],
            "specificity": truth.recall_score(~is_it, ~said),
            "auroc": truth.roc_auc_score(is_it, table.probs[:, place]),
        }
        for measure, value in expected.items():
            assert one[measure]["value"] == pytest.approx(value)
            assert one[measure]["low"] < value < one[measure]["high"]
        assert one["f1"] == pytest.approx(f1[place])
        roc = got["curves"]["roc"][name]
        assert truth.auc(roc["fpr"], roc["tpr"]) == pytest.approx(one["auroc"]["value"])


def test_the_confusion_matrix_equals_scikit_learn(
    pair: tuple[Table, dict[str, Any]],
) -> None:
    table, got = pair
    expected = truth.confusion_matrix(table.y, table.predicted, labels=CLASSES)
    assert got["confusion_matrix"] == expected.tolist()


def test_figures_of_sources_and_folds_equal_those_of_their_rows(
    pair: tuple[Table, dict[str, Any]],
) -> None:
    table, got = pair
    assert list(got["by_source"]) == ["figshare", "unknown"]
    for name, one in got["by_source"].items():
        of_it = np.array(
            [(row["source"] or "unknown") == name for row in table.rows], dtype=bool
        )
        y, predicted = table.y[of_it], table.predicted[of_it]
        assert one["num_images"] == len(y)
        assert one["accuracy"]["value"] == pytest.approx(
            truth.accuracy_score(y, predicted)
        )
        assert one["balanced_accuracy"]["value"] == pytest.approx(
            truth.balanced_accuracy_score(y, predicted)
        )
        assert one["macro_f1"]["value"] == pytest.approx(
            truth.f1_score(y, predicted, average="macro")
        )
        assert one["accuracy"]["low"] < one["accuracy"]["value"]
        recalls = truth.recall_score(y, predicted, labels=CLASSES, average=None)
        for place, label in enumerate(CLASSES):
            recall = one["recall"][label]
            assert recall["value"] == pytest.approx(recalls[place])
            assert recall["num_images"] == (y == label).sum()
    for fold in got["folds"]:
        of_it = np.array([row["fold"] == str(fold["fold"]) for row in table.rows])
        assert fold["num_images"] == of_it.sum()
        assert fold["accuracy"] == pytest.approx(
            truth.accuracy_score(table.y[of_it], table.predicted[of_it])
        )
    assert [fold["fold"] for fold in got["folds"]] == [0, 1, 2, 3, 4]


def test_the_interval_is_explained(pair: tuple[Table, dict[str, Any]]) -> None:
    _, got = pair
    assert got["num_groups"] == 150
    assert got["interval"] == "95 %, with 150 groups as units"
    assert got["accuracy"]["method"] == "Wilson, design effect"
    assert (got["accuracy"]["unit"], got["accuracy"]["num_units"]) == ("group", 150)
    # Groups of two neighbours of one class, but for the borders of the classes.
    assert 30 < got["per_class"]["glioma"]["recall"]["num_units"] < 50
    assert got["interval_holds_from"]["accuracy"] == 20


# what is undefined


def written(path: Path, table: Predictions) -> dict[str, Any]:
    write_predictions(path / "predictions.csv", table)
    return metrics_from_predictions(path / "predictions.csv").model_dump(mode="json")


def with_probs(table: Predictions, probs: NDArray[np.float64]) -> Predictions:
    return Predictions(**{**vars(table), "probs": probs})


def test_a_class_without_images_is_null_and_json_can_be_written(
    tmp_path: Path,
) -> None:
    table = answers()
    got = written(tmp_path, table.rows(np.flatnonzero(table.labels > 0)))
    absent = got["per_class"]["glioma"]
    assert absent["num_images"] == 0
    for name in ("recall", "auroc"):
        assert (absent[name]["value"], absent[name]["low"]) == (None, None)
    assert got["curves"]["roc"]["glioma"] == {"fpr": [], "tpr": []}
    assert got["balanced_accuracy"]["value"] == pytest.approx(
        np.mean([got["per_class"][name]["recall"]["value"] for name in CLASSES[1:]])
    )
    json.dumps(got, allow_nan=False)


def test_one_group_has_figures_without_intervals(tmp_path: Path) -> None:
    table = Predictions(**{**vars(answers()), "groups": ("g",) * 300})
    got = written(tmp_path, table)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier"):
        assert got[name]["value"] is not None
        assert (got[name]["low"], got[name]["high"]) == (None, None)
    assert got["macro_auroc"]["low"] is None
    perfect = written(tmp_path, with_probs(table, np.eye(4)[table.labels]))
    assert (perfect["accuracy"]["value"], perfect["accuracy"]["low"]) == (1, None)


def test_a_perfect_score_is_not_certain(tmp_path: Path) -> None:
    table = answers()
    got = written(tmp_path, with_probs(table, np.eye(4)[table.labels]))
    # 150 groups of two images without an error: 300 / (1 + 0.5) independent images.
    square = scipy.stats.t.ppf(0.975, 149) ** 2
    assert got["accuracy"]["low"] == pytest.approx(200 / (200 + square))
    assert got["accuracy"]["high"] == 1
    for name in ("macro_f1", "balanced_accuracy"):
        assert got[name]["low"] == pytest.approx(got["accuracy"]["low"], abs=0.002)
    assert got["log_loss"]["low"] is None
    assert got["no_interval"]["log_loss"] == "its groups are too few or all alike"
    json.dumps(got, allow_nan=False)


def test_each_source_has_its_own_groups(pair: tuple[Table, dict[str, Any]]) -> None:
    table, got = pair
    for name, one in got["by_source"].items():
        rows = [row for row in table.rows if (row["source"] or "unknown") == name]
        for label in CLASSES:
            groups = {row["group"] for row in rows if row["label"] == label}
            assert one["recall"][label]["num_units"] == len(groups)
            assert one["recall"][label]["method"] == "Wilson, design effect"


def test_a_figure_without_an_interval_says_why(tmp_path: Path) -> None:
    one = Predictions(**{**vars(answers()), "groups": ("g",) * 300})
    found = written(tmp_path, one)["no_interval"]
    assert found["accuracy"] == "there is one group only"
    assert found["recall of glioma"] == "there is one group only"
    assert written(tmp_path, answers())["no_interval"] == {}


def few_groups(*, num_groups: int) -> Predictions:
    """Return `answers` with so many groups of each class, all of one size or nearly."""
    table = answers()
    groups = [
        f"{label}-{number % num_groups}" for number, label in enumerate(table.labels)
    ]
    return Predictions(**{**vars(table), "groups": tuple(groups)})


def test_few_groups_are_warned_of_in_words(tmp_path: Path) -> None:
    words, *_ = written(tmp_path, few_groups(num_groups=4))["warnings"]
    assert words == (
        "Few groups carry these figures: 4 groups of glioma, 4 groups of meningioma, "
        "4 groups of no_tumor, 4 groups of pituitary, 16 groups in all. A single "
        "patient can decide about them, whatever the interval."
    )


def test_intervals_that_hold_from_more_groups_on_are_named(tmp_path: Path) -> None:
    got = written(tmp_path, few_groups(num_groups=10))
    (words,) = got["warnings"]
    assert words == (
        "With 40 groups the intervals of log loss (holds from 700 groups), calibration "
        "error (holds from 150 groups) may be too narrow."
    )


def test_images_of_one_class_only_have_no_auroc(tmp_path: Path) -> None:
    table = answers()
    got = written(tmp_path, table.rows(np.flatnonzero(table.labels == 0)))
    assert (got["macro_auroc"]["value"], got["macro_auroc"]["low"]) == (None, None)
    assert got["per_class"]["glioma"]["specificity"]["value"] is None
    json.dumps(got, allow_nan=False)


def test_without_known_sources_and_folds_there_are_none(tmp_path: Path) -> None:
    table = Predictions(
        **{**vars(answers()), "sources": ("",) * 300, "folds": (None,) * 300}
    )
    got = written(tmp_path, table)
    assert got["by_source"] == {}
    assert got["folds"] == []


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    table = answers()
    order = np.random.default_rng(0).permutation(300)
    first = written(tmp_path, table)
    second = written(tmp_path, table.rows(order))
    for name in ("accuracy", "macro_f1", "log_loss", "macro_auroc", "ece"):
        assert second[name] == pytest.approx(first[name])


# runs


LEAK = LeakVerdict(leaks=False, num_test=8, words="No copies.")
NUM_FOLDS = 3


@pytest.fixture
def make_run(
    make_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Run, Path]]:
    """Return a function that makes a finished run with random weights, and its data.

    Files 0 to 3 of each class are from a known source.
    """

    def make(*, protocol: str = "grouped", mirror: bool = False) -> tuple[Run, Path]:
        data = make_images(num_each=9)
        sources = "".join(f"{c}/{n}.png,web\n" for c in CLASSES for n in range(4))
        (data / "metadata.csv").write_text(f"path,source\n{sources}", encoding="utf-8")
        config = parse_config(
            {
                "data": {
                    "path": str(data),
                    "protocol": protocol,
                    "num_folds": NUM_FOLDS,
                    "cache_dir": str(tmp_path / "cache"),
                },
                "model": {"name": "test_vit", "pretrained": "no", "mirror": mirror},
            }
        )
        return finished_run(tmp_path / "run", config), data

    return make


def finished_run(path: Path, config: Config) -> Run:
    data = config.data
    index = read_index(Path(str(data.path)))
    rows = make_split(
        index,
        Duplicates(
            unreadable={},
            facts={},
            pixels={},
            pictures={record.path: record.path for record in index.records},
            near_pairs=(),
        ),
        protocol=data.protocol,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        num_folds=data.num_folds,
        seed=42,
    )
    run = started_run(path, config, rows)
    if not run.is_kfold:
        add_weights(run, CLASSES)
        run.mark_finished()
        return run
    folds = fold_splits(rows, num_folds=data.num_folds, val_fraction=0.2, seed=42)
    for number, fold_rows in enumerate(folds):
        fold_config = config.model_copy(
            update={"data": data.model_copy(update={"fold": number})}
        )
        fold = started_run(run.fold_path(number), fold_config, fold_rows)
        add_weights(fold, CLASSES, seed=number)
        fold.mark_finished()
    return run


def started_run(path: Path, config: Config, rows: tuple[SplitRow, ...]) -> Run:
    run = create_run(path, config)
    run.write_split(rows, LEAK)
    return run


def rows_of(run: Run, subset: str) -> list[SplitRow]:
    return [row for row in run.split() if row.subset == subset]


def test_a_run_leaves_predictions_of_its_test_subset_and_their_metrics(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run()
    progress: list[tuple[int, int]] = []
    got = evaluate(
        run,
        command="tumorlens evaluate run",
        progress=lambda done, total: progress.append((done, total)),
    )
    table = read_predictions(run.predictions_path)
    test = rows_of(run, "test")
    assert table.classes == CLASSES
    assert table.paths == tuple(row.path for row in test)
    assert [CLASSES[label] for label in table.labels] == [row.label for row in test]
    assert table.groups == tuple(row.group for row in test)
    assert table.sources == tuple(
        "web" if int(path.split("/")[1].removesuffix(".png")) < 4 else ""
        for path in table.paths
    )
    written = json.loads(run.metrics_path.read_text(encoding="utf-8"))
    assert written == got.model_dump(mode="json")
    assert run.metrics() == got
    again = metrics_from_predictions(run.predictions_path)
    assert dict(again).items() <= dict(got).items()
    assert (written["format"], got.protocol, got.subset) == (2, "grouped", "test")
    assert got.leak == run.leak()
    assert got.leak.words == LEAK.words
    assert got.settings.model == "test_vit"
    assert progress[-1] == (len(test), len(test))
    assert [(look.subset, look.command) for look in run.looks()] == [
        ("test", "tumorlens evaluate run")
    ]


@pytest.mark.parametrize("mirror", [False, True])
def test_the_probabilities_are_those_of_the_network_for_the_files(
    make_run: Callable[..., tuple[Run, Path]], *, mirror: bool
) -> None:
    run, data = make_run(mirror=mirror)
    model = add_weights(run, CLASSES, seed=7)
    evaluate(run)
    table = read_predictions(run.predictions_path)
    card = run.card()
    images = np.stack(
        [
            load_square(data / path, size_px=card.size_px, fit="pad", in_chans=3)
            for path in table.paths
        ]
    )
    values = (images / 255 - np.array(card.mean)) / np.array(card.std)
    batch = torch.from_numpy(values).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        probs = model(batch).softmax(1)
        if mirror:
            probs = (probs + model(batch.flip(3)).softmax(1)) / 2
    np.testing.assert_allclose(table.probs, probs.numpy(), rtol=1e-3, atol=1e-5)
    assert np.ptp(table.probs, axis=0).max() > 0.05  # the images do differ


def test_val_has_files_of_its_own_and_is_no_look_at_test(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run()
    got = evaluate(run, subset="val")
    assert got.subset == "val"
    assert run.metrics("val") == got
    assert got.num_images == len(rows_of(run, "val"))
    names = {path.name for path in run.path.iterdir()}
    assert {"predictions-val.csv", "metrics-val.json"} <= names
    assert names.isdisjoint({"predictions.csv", "metrics.json", "looks.jsonl"})


def test_folds_are_evaluated_one_by_one_and_pooled(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run(protocol="grouped-kfold")
    got = evaluate(run)
    table = read_predictions(run.predictions_path)
    rows = {row.path: row for row in run.split()}
    assert list(table.paths) == sorted(rows)
    assert [f"fold-{fold}" for fold in table.folds] == [
        rows[path].subset for path in table.paths
    ]
    assert (got.num_images, got.protocol) == (36, "grouped-kfold")
    assert [fold.num_images for fold in got.folds] == [12, 12, 12]
    for number, fold in enumerate(run.folds()):
        part = read_predictions(fold.predictions_path)
        pooled = table.rows([n for n, f in enumerate(table.folds) if f == number])
        assert part.probs.tolist() == pooled.probs.tolist()
        of_fold = json.loads(fold.metrics_path.read_text(encoding="utf-8"))
        assert of_fold["accuracy"]["value"] == got.folds[number].accuracy
        assert len(fold.looks()) == 1
    assert len(run.looks()) == 1


def test_a_subset_of_all_folds_is_refused(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run(protocol="grouped-kfold")
    with pytest.raises(ConfigError, match=r"no subset 'val' of its own.*\n.*folds/0"):
        evaluate(run, subset="val")
    assert evaluate(run.folds()[0], subset="val").subset == "val"


def test_an_unknown_subset_is_named(make_run: Callable[..., tuple[Run, Path]]) -> None:
    run, _ = make_run()
    with pytest.raises(ConfigError, match=r"unknown subset 'tset'\n.*'test'"):
        evaluate(run, subset="tset")


def test_an_unfinished_run_shows_val_but_not_test(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run()
    (run.path / "finished").unlink()
    with pytest.raises(RunError, match=r"not finished.*\n.*--resume"):
        evaluate(run)
    assert run.looks() == []
    assert evaluate(run, subset="val").subset == "val"


def test_a_missing_fold_is_an_unfinished_run(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run(protocol="grouped-kfold")
    shutil.rmtree(run.fold_path(2))
    with pytest.raises(RunError, match="not finished"):
        evaluate(run)


def test_moved_images_are_found_with_data(
    make_run: Callable[..., tuple[Run, Path]], tmp_path: Path
) -> None:
    run, data = make_run()
    expected = evaluate(run)
    data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"are not in .*data any more"):
        evaluate(run)
    assert evaluate(run, data=tmp_path / "moved") == expected


def test_a_changed_image_is_refused_by_name(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, data = make_run()
    path = rows_of(run, "test")[0].path
    (data / path).write_bytes(b"another file")
    with pytest.raises(RunError, match=rf"1 file.*{path}"):
        evaluate(run)
    assert not run.predictions_path.exists()
    assert run.looks() == []


def test_an_image_that_cannot_be_read_any_more_is_an_error(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, data = make_run()
    row = rows_of(run, "test")[0]
    (data / row.path).write_bytes(b"no image")
    sha256 = sha256_of_bytes(b"no image")
    rows = [
        replace(one, sha256=sha256) if one.path == row.path else one
        for one in run.split()
    ]
    run.write_split(rows, run.leak())
    with pytest.raises(DataError, match=row.path):
        evaluate(run)
    assert not run.predictions_path.exists()


def test_a_network_of_other_classes_is_refused(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run()
    add_weights(run, ("a", "b"))
    with pytest.raises(RunError, match="classes a, b, the data has glioma, meningioma"):
        evaluate(run)


def test_a_subset_without_images_is_refused(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, _ = make_run()
    rows = [
        replace(row, subset="train") if row.subset == "val" else row
        for row in run.split()
    ]
    run.write_split(rows, run.leak())
    with pytest.raises(RunError, match="no image in subset 'val'"):
        evaluate(run, subset="val")


def test_a_run_without_data_asks_for_it(
    make_run: Callable[..., tuple[Run, Path]],
) -> None:
    run, data = make_run()
    settings = run.config.model_dump()
    settings["data"]["path"] = None
    run = replace(run, config=parse_config(settings))
    with pytest.raises(DataError, match=r"does not name the folder.*\n.*--data"):
        evaluate(run)
    assert evaluate(run, data=data).num_images == len(rows_of(run, "test"))
