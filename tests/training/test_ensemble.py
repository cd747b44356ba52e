"""Ensembles: their answers are means, their members fit, their folders are complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save

from support.runs_on_images import CLEAN, deal, make_kfold_run, make_run, rows_of
from tumorlens.data.leakage import LeakVerdict
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.report import write_run_report
from tumorlens.runs.folder import Look, Run, open_run
from tumorlens.runs.listing import list_runs
from tumorlens.training.ensemble import make_ensemble
from tumorlens.training.network import create_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.runs.folder import Tta


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=8, name="data")


@pytest.fixture
def pair(tmp_path: Path, data: Path) -> tuple[Run, Run]:
    """Return runs of two networks of two sizes, on one split."""
    return (
        make_run(tmp_path / "small", data, seed=1),
        make_run(tmp_path / "large", data, name="test_vit", size_px=160, seed=2),
    )


def join(*runs: Run, out: str = "both", tta: Tta = "none") -> Run:
    paths = [run.path for run in runs]
    return make_ensemble(
        paths, out=paths[0].parent / out, tta=tta, command="tumorlens ensemble ..."
    )


def answers(run: Run, subset: str = "test") -> NDArray[np.float64]:
    evaluate(run, subset=subset, device="cpu")
    return read_predictions(run.predictions_of(subset)).probs


# what an ensemble is


def test_its_answers_are_the_means_of_those_of_its_members(
    pair: tuple[Run, Run],
) -> None:
    both = join(*pair)
    members = [answers(member) for member in pair]
    assert not np.allclose(members[0], members[1], atol=0.01)
    assert np.allclose(answers(both), np.mean(members, axis=0), atol=1e-8)
    assert np.allclose(
        answers(both, "val"),
        np.mean([answers(member, "val") for member in pair], axis=0),
        atol=1e-8,
    )


def test_a_predictor_answers_as_evaluate_does(
    pair: tuple[Run, Run], data: Path
) -> None:
    both = join(*pair)
    probs = answers(both)
    paths = [data / path for path in read_predictions(both.predictions_path).paths]
    predictor = Predictor.open(both.path, device="cpu")
    got = [one.probs for one in predictor.predict_files(paths)]
    assert np.allclose(np.stack([p for p in got if p is not None]), probs, atol=1e-5)


def test_it_needs_its_members_no_more_and_can_be_moved(
    pair: tuple[Run, Run], tmp_path: Path
) -> None:
    both = join(*pair)
    before = answers(both)
    for member in pair:
        shutil.rmtree(member.path)
    moved = open_run(both.path.rename(tmp_path / "elsewhere"))
    assert np.array_equal(answers(moved), before)
    assert moved.is_ensemble
    assert moved.is_finished
    assert moved.member_names() == ("small", "large")
    assert [one.config.model.name for one in moved.members()] == [
        "test_resnet",
        "test_vit",
    ]


def test_its_members_are_ordinary_runs_with_their_history(
    pair: tuple[Run, Run],
) -> None:
    both = join(*pair)
    for copy, member in zip(both.members(), pair, strict=True):
        assert copy.config == member.config
        assert copy.card() == member.card()
        assert copy.history() == member.history()
        assert copy.split() == member.split()
        assert np.array_equal(answers(copy), answers(member))


def test_its_record_has_the_command_and_the_looks_of_its_members(
    pair: tuple[Run, Run],
) -> None:
    pair[1].write_looks([Look(time="2020", subset="test", command="second")])
    pair[0].write_looks([Look(time="2021", subset="test", command="first")])
    both = join(*pair)
    assert both.environment()["command"] == "tumorlens ensemble ..."
    assert [look.command for look in both.looks()] == ["second", "first"]


def test_equal_networks_are_counted_in_the_place_of_the_name(
    tmp_path: Path, data: Path
) -> None:
    runs = [make_run(tmp_path / f"{seed}", data, seed=seed) for seed in range(2)]
    assert join(*runs).model_name == "2 x test_resnet"


def test_metrics_say_what_the_members_have_in_common(pair: tuple[Run, Run]) -> None:
    both = join(*pair, tta="eight-views")
    assert evaluate(both, device="cpu").settings.model_dump() == {
        "model": "test_resnet + test_vit, eight-views",
        "size_px": None,
        "fit": "pad",
        "mirror": False,
        "tta": "eight-views",
        "seed": 1,
    }


def test_the_report_names_the_members_and_their_epochs(pair: tuple[Run, Run]) -> None:
    both = join(*pair)
    evaluate(both, device="cpu")
    page = write_run_report(both).path.read_text(encoding="utf-8")
    assert "test_resnet + test_vit" in page
    assert "the mean probabilities of small, large" in page
    assert "trained for 2 epochs each" in page
    assert "tumorlens ensemble ..." in page
    # There is nothing that the settings of an ensemble could train.
    assert "-again" not in page
    assert (both.figures_dir / "curves.svg").is_file()


def test_every_member_averages_over_the_views_that_are_asked_for(
    pair: tuple[Run, Run],
) -> None:
    both = join(*pair, tta="eight-views")
    assert [one.card().tta for one in both.members()] == ["eight-views"] * 2
    alone = [join(run, out=f"{run.name}-tta", tta="eight-views") for run in pair]
    expected = np.mean([answers(run) for run in alone], axis=0)
    assert np.allclose(answers(both), expected, atol=1e-8)
    assert not np.allclose(answers(both), answers(join(*pair, out="plain")), atol=1e-3)


def test_runs_with_folds_are_joined_fold_by_fold(tmp_path: Path, data: Path) -> None:
    runs = [make_kfold_run(tmp_path / name, data) for name in ("one", "other")]
    for fold in runs[1].folds():
        # Other weights than the first's.
        shutil.rmtree(fold.path)
        make_run(
            fold.path,
            data,
            seed=7,
            subset_of=_subset_of(runs[0].folds()[int(fold.path.name)]),
            settings={"data": fold.config.data.model_dump(exclude_none=True)},
        )
    both = join(*runs)
    assert both.is_kfold
    assert both.is_finished
    assert len(both.networks()) == 4
    members = [answers(run) for run in runs]
    assert not np.allclose(members[0], members[1], atol=0.01)
    assert np.allclose(answers(both), np.mean(members, axis=0), atol=1e-8)
    assert len(Predictor.open(both.path, device="cpu").members) == 4


def _subset_of(run: Run) -> Callable[[int], str]:
    subsets = {
        int(row.path.rpartition("/")[2].split(".")[0]): row.subset
        for row in run.split()
    }
    return subsets.__getitem__


# the split


def test_what_any_member_has_learnt_from_is_not_in_val(
    tmp_path: Path, data: Path
) -> None:
    def other(number: int) -> str:
        # 1 and 2 change places in the first four, not in the second.
        return {1: "val", 2: "train"}.get(number, deal(number))

    runs = (
        make_run(tmp_path / "one", data),
        make_run(tmp_path / "two", data, subset_of=other),
    )
    both = join(*runs)
    found = {row.path.rpartition("/")[2]: row.subset for row in both.split()}
    assert found == {
        f"{number}.png": "train" if number in (1, 2) else deal(number)
        for number in range(8)
    }


def test_the_leak_is_that_of_the_worst_member(tmp_path: Path, data: Path) -> None:
    leak = LeakVerdict(leaks=True, num_copied=3, words="Three copies.")
    runs = (
        make_run(tmp_path / "clean", data),
        make_run(tmp_path / "leaky", data, leak=leak),
    )
    assert join(*runs).leak().words == leak.words


def test_members_that_were_tested_on_other_images_are_refused(
    tmp_path: Path, data: Path
) -> None:
    def other(number: int) -> str:
        return "test" if number == 0 else deal(number)

    runs = (
        make_run(tmp_path / "one", data),
        make_run(tmp_path / "two", data, subset_of=other),
    )
    with pytest.raises(
        RunError,
        match=r"one and .*two were tested on other images: 0 are in test of the first "
        r"only, 4 of the second only, such as glioma/0\.png",
    ) as caught:
        join(*runs)
    assert f"--set data.split={runs[0].split_path}" in caught.value.hint
    assert not (tmp_path / "both").exists()


def test_members_of_other_data_are_refused(
    tmp_path: Path, data: Path, pair: tuple[Run, Run]
) -> None:
    victim = data / "glioma" / "0.png"
    victim.write_bytes(victim.read_bytes() + b" ")
    pair[1].write_split(rows_of(data), CLEAN)
    with pytest.raises(
        RunError,
        match=r"made with other data: 1 file\(s\) differ, the first is glioma/0\.png",
    ):
        join(*pair)


def test_an_image_with_two_labels_is_other_data(
    tmp_path: Path, pair: tuple[Run, Run]
) -> None:
    first, *others = pair[1].split()
    pair[1].write_split([replace(first, label="pituitary"), *others], CLEAN)
    with pytest.raises(RunError, match=r"1 file\(s\) differ, the first is glioma/0"):
        join(*pair)


# refusals


def test_members_of_other_classes_are_refused_and_both_are_named(
    tmp_path: Path, data: Path
) -> None:
    runs = (
        make_run(tmp_path / "one", data),
        make_run(tmp_path / "two", data, classes=("glioma", "healthy")),
    )
    with pytest.raises(
        RunError,
        match=r"one has the classes glioma, meningioma, no_tumor, pituitary; .*two "
        r"has glioma, healthy",
    ):
        join(*runs)


def test_members_of_another_protocol_are_refused(tmp_path: Path, data: Path) -> None:
    as_given = {"data": {"protocol": "as-given"}}
    runs = (
        make_run(tmp_path / "one", data),
        make_run(tmp_path / "two", data, settings=as_given),
    )
    with pytest.raises(
        RunError, match=r"protocol of .*one is grouped, that of .*two is as-given"
    ):
        join(*runs)


def test_two_folds_of_one_run_are_refused(tmp_path: Path, data: Path) -> None:
    folds = make_kfold_run(tmp_path / "run", data).folds()
    with pytest.raises(RunError, match=r"the fold of .*0 is 0, that of .*1 is 1"):
        join(*folds)


def test_other_numbers_of_folds_are_refused(tmp_path: Path, data: Path) -> None:
    runs = (
        make_kfold_run(tmp_path / "two", data),
        make_kfold_run(tmp_path / "three", data, num_folds=3),
    )
    with pytest.raises(
        RunError, match=r"number of folds of .*two is 2, that of .*three is 3"
    ):
        join(*runs)


def test_folds_with_other_images_are_refused(tmp_path: Path, data: Path) -> None:
    runs = [make_kfold_run(tmp_path / name, data) for name in ("one", "other")]
    first, second = runs[1].folds()
    rows = first.split(), second.split()
    first.write_split(rows[1], CLEAN)
    second.write_split(rows[0], CLEAN)
    with pytest.raises(RunError, match=r"folds/0 were tested on other images"):
        join(*runs)


def test_an_unfinished_member_is_refused(pair: tuple[Run, Run]) -> None:
    (pair[1].path / "finished").unlink()
    with pytest.raises(
        RunError, match=r"training of .*large is not finished"
    ) as caught:
        join(*pair)
    assert "train --resume --out" in caught.value.hint


def test_an_ensemble_of_ensembles_is_refused_with_the_members_to_name(
    pair: tuple[Run, Run],
) -> None:
    both = join(*pair)
    with pytest.raises(RunError, match="both is an ensemble itself") as caught:
        join(both, pair[0], out="three")
    assert str(both.member_path(1)) in caught.value.hint


def test_one_run_alone_is_refused_without_views(pair: tuple[Run, Run]) -> None:
    with pytest.raises(ConfigError, match="at least two runs, got 1") as caught:
        join(pair[0])
    assert "--tta" in caught.value.hint


def test_a_run_has_one_vote(pair: tuple[Run, Run], tmp_path: Path) -> None:
    again = tmp_path / "small" / ".." / "small"
    with pytest.raises(ConfigError, match="small is named twice"):
        make_ensemble([pair[0].path, again], out=tmp_path / "both")


def test_a_folder_that_exists_is_left_alone(
    pair: tuple[Run, Run], tmp_path: Path
) -> None:
    (tmp_path / "both").mkdir()
    with pytest.raises(RunError, match="both exists already"):
        join(*pair)


def test_changed_weights_are_refused_and_nothing_is_left(
    pair: tuple[Run, Run], tmp_path: Path
) -> None:
    pair[1].weights_path.write_bytes(b"something else")
    with pytest.raises(RunError, match=r"large/weights\.safetensors is not the file"):
        join(*pair)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data",
        "large",
        "small",
    ]


def test_a_full_disk_leaves_nothing(
    pair: tuple[Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Run.write_history

    def full(run: Run, rows: list[object]) -> None:
        if run.path.name == "1":
            raise DataError("No space left on device")
        write(run, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(Run, "write_history", full)
    with pytest.raises(DataError, match="No space left"):
        join(*pair)
    assert not list(tmp_path.glob("*both*"))
    assert not list(tmp_path.glob(".*"))


def test_a_copy_that_was_changed_later_is_noticed(pair: tuple[Run, Run]) -> None:
    both = join(*pair)
    both.members()[1].weights_path.write_bytes(b"something else")
    with pytest.raises(RunError, match=r"members/1/weights\.safetensors is not the"):
        evaluate(both, device="cpu")


def test_an_ensemble_has_no_card_of_its_own(pair: tuple[Run, Run]) -> None:
    both = join(*pair)
    with pytest.raises(RunError, match=r"there is no .*model\.json") as caught:
        both.card()
    assert caught.value.hint.endswith("members")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", r"expected format 1 in .*ensemble\.json, got \[\]"),
        ('{"members": []}', r"ensemble\.json is damaged at members: .*, got \[\]"),
        ('{"members": [1]}', r"ensemble\.json is damaged at members\.0: .*, got 1"),
        ("{", r"ensemble\.json is not JSON"),
    ],
)
def test_a_damaged_list_of_members_is_an_error(
    pair: tuple[Run, Run], content: str, problem: str
) -> None:
    both = join(*pair)
    both.ensemble_path.write_text(content)
    with pytest.raises(RunError, match=problem):
        both.members()


def test_a_list_of_members_is_plain_json(pair: tuple[Run, Run]) -> None:
    both = join(*pair)
    assert json.loads(both.ensemble_path.read_text()) == {
        "format": 1,
        "members": ["small", "large"],
        "model": "test_resnet + test_vit",
    }
    assert both.leak().words == CLEAN.words


def test_its_settings_can_be_used_and_its_name_is_that_of_its_networks(
    pair: tuple[Run, Run],
) -> None:
    run = join(*pair)
    config = open_run(run.path).config
    assert config == pair[0].config
    create_model(config.model.model_copy(update={"pretrained": "no"}), num_classes=4)
    assert run.model_name == "test_resnet + test_vit"
    assert run.shown_config.model.name == "test_resnet + test_vit"
    (row,) = [row for row in list_runs([run.path]) if row.path == run.path]
    assert row.value("model") == "test_resnet + test_vit"


def test_an_ensemble_of_an_earlier_version_keeps_its_name(
    pair: tuple[Run, Run],
) -> None:
    run = join(*pair)
    content = json.loads(run.ensemble_path.read_text())
    del content["model"]
    run.ensemble_path.write_text(json.dumps(content))
    model = run.config.model.model_copy(update={"name": "2 x resnet18"})
    Run(run.path, run.config.model_copy(update={"model": model})).write_config()
    assert open_run(run.path).model_name == "2 x resnet18"


def test_a_member_whose_weights_are_no_numbers_is_refused(
    pair: tuple[Run, Run],
) -> None:
    spoilt = pair[1]
    state = load_file(spoilt.weights_path)
    state["head.bias"][0] = float("nan")
    content = save(state)
    card = spoilt.card().model_copy(
        update={"weights_sha256": hashlib.sha256(content).hexdigest()}
    )
    spoilt.write_weights(content, card)
    with pytest.raises(RunError, match=r"gives no answer: head\.bias has 1 of"):
        join(*pair)
    assert not (spoilt.path.parent / "both").exists()
