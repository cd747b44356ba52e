"""Which runs belong together, what they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.handmade_runs import answers, make_run
from tumorlens.config import setting_names
from tumorlens.errors import ConfigError, RunError
from tumorlens.study.arms import describe_settings, find_arms, is_study
from tumorlens.study.folder import Study, create_study, open_study
from tumorlens.study.plan_file import load_plan


def names_of(*paths: Path) -> list[str]:
    return [arm.name for arm in find_arms(paths)]


# run folders


def test_each_run_is_an_arm_with_the_name_of_its_folder(tmp_path: Path) -> None:
    paths = [tmp_path / "second", tmp_path / "first"]
    for lr, path in zip((0.1, 0.01), paths, strict=True):
        make_run(path, optim__lr=lr, train__seed=1, data__protocol="grouped")
    arms = find_arms(paths)
    assert [arm.name for arm in arms] == ["second", "first"]
    assert [arm.settings for arm in arms] == [{"optim.lr": 0.1}, {"optim.lr": 0.01}]
    (member,) = arms[0].members
    assert (member.arm, member.path, member.state) == ("second", paths[0], "finished")
    assert (member.protocol, member.seed, member.reason) == ("grouped", 1, None)
    assert member.run is not None


def test_one_run_is_one_arm_in_which_nothing_differs(tmp_path: Path) -> None:
    make_run(tmp_path / "run", optim__lr=0.1)
    (arm,) = find_arms([tmp_path / "run"])
    assert (arm.name, arm.settings) == ("run", {})


def test_protocols_seeds_and_machines_make_no_other_arm(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"optim__lr": 0.1},
        {"optim__lr": 0.2},
        {"optim__lr": 0.1, "train__seed": 7},
        {"optim__lr": 0.1, "data__protocol": "grouped"},
        {"optim__lr": 0.1, "data__path": "elsewhere", "train__seed": 8},
        {"optim__lr": 0.1, "data__cache_dir": "c", "train__seed": 9},
        {"optim__lr": 0.1, "train__workers": 4, "train__seed": 10},
        {"optim__lr": 0.1, "train__device": "cpu", "train__seed": 11},
        {"optim__lr": 0.1, "train__accumulate": 2, "train__seed": 12},
        {"optim__lr": 0.1, "train__watch_test": True, "train__seed": 13},
        {"optim__lr": 0.1, "data__cache_limit_mib": 1.0, "train__seed": 14},
    ]
    paths = [tmp_path / str(number) for number in range(len(changes))]
    for path, changed in zip(paths, changes, strict=True):
        make_run(path, **changed)
    arms = find_arms(paths)
    assert [arm.name for arm in arms] == ["lr=0.1", "lr=0.2"]
    assert [one.path.name for one in arms[1].members] == ["1"]
    assert [one.path.name for one in arms[0].members] == [
        str(number) for number in range(len(changes)) if number != 1
    ]
    assert [one.path.name for one in arms[0].members_under("grouped")] == ["3"]
    assert {one.arm for one in arms[0].members} == {"lr=0.1"}


@pytest.mark.parametrize(
    "change", [{"train__precision": "fp32"}, {"data__val_fraction": 0.1}]
)
def test_every_other_setting_makes_another_arm(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", train__seed=7, **change)
    assert names_of(tmp_path / "a", tmp_path / "b") == ["a", "b"]


def test_folds_given_one_by_one_are_one_arm(tmp_path: Path) -> None:
    for number in range(3):
        make_run(
            tmp_path / str(number), data__protocol="grouped-kfold", data__fold=number
        )
    assert len(find_arms([tmp_path / str(number) for number in range(3)])) == 1


def test_one_arm_of_several_runs_has_the_name_of_its_network(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / str(seed), train__seed=seed)
    assert names_of(tmp_path / "1", tmp_path / "2") == ["test_resnet"]


def test_arms_are_in_the_order_of_their_first_runs(tmp_path: Path) -> None:
    for name, lr in (("first", 0.1), ("second", 0.2), ("first again", 0.1)):
        make_run(tmp_path / name, optim__lr=lr)
    paths = [tmp_path / name for name in ("first", "second", "first again")]
    assert names_of(*paths) == ["first", "second", "first again"]


def test_a_repeated_training_is_an_arm_of_its_own(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        make_run(tmp_path / name)
    arms = find_arms([tmp_path / "monday", tmp_path / "tuesday"])
    assert [arm.name for arm in arms] == ["monday", "tuesday"]
    assert [arm.settings for arm in arms] == [{}, {}]


def test_all_folds_and_one_of_them_are_a_repetition(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [answers({f"{n}.png": 1}) for n in range(2)])
    assert names_of(run.path, run.fold_path(1)) == ["run", "1"]


def test_one_fold_twice_is_a_repetition(tmp_path: Path) -> None:
    for name in ("monday", "tuesday"):
        make_run(tmp_path / name, data__protocol="grouped-kfold", data__fold=1)
    paths = [tmp_path / name for name in ("monday", "tuesday")]
    assert names_of(*paths) == ["monday", "tuesday"]


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for path in paths:
        make_run(path)
    assert names_of(*paths) == [str(path) for path in paths]


def test_an_ensemble_is_another_arm_than_its_members(tmp_path: Path) -> None:
    make_run(tmp_path / "one")
    make_run(tmp_path / "both", train__seed=7).write_ensemble(["one", "two"])
    arms = find_arms([tmp_path / "one", tmp_path / "both"])
    assert [arm.name for arm in arms] == ["one", "both"]
    assert arms[1].settings == {"ensemble": "one + two"}


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    make_run(tmp_path / "run", is_finished=False)
    (member,) = find_arms([tmp_path / "run"])[0].members
    assert member.state == "waiting"
    assert member.reason == (
        "its training is not finished; go on with: tumorlens train --resume --out "
        f"{tmp_path / 'run'}"
    )


def test_settings_are_described_as_short_as_they_stay_clear() -> None:
    assert describe_settings({"optim.name": "adam", "train.ema_decay": None}) == (
        "adam, ema_decay=unset"
    )
    assert describe_settings({}) == ""


def test_no_two_settings_are_described_by_the_same_word() -> None:
    values = dict.fromkeys(setting_names(), 1)
    words = describe_settings(values).split(", ")
    assert {word for word in words if words.count(word) > 1} == {"1"}  # both names


# what is refused


def test_what_is_no_run_folder_is_refused_with_what_would_be_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    for name, problem in (("empty", "not a run folder"), ("gone", "no such run")):
        with pytest.raises(
            RunError, match=rf"{problem}.*{name}|{name}.*{problem}"
        ) as caught:
            find_arms([tmp_path / name])
        assert "study run --out" in caught.value.hint


def test_a_run_of_another_version_keeps_its_own_hint(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "config.toml").write_text("[optim]\nspeed = 1\n", "utf-8")
    with pytest.raises(RunError, match=r"optim\.speed.*\n.*another version"):
        find_arms([tmp_path / "run"])


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"run was given twice"):
        find_arms([tmp_path / "run", tmp_path / "x" / ".." / "run"])


def test_no_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        find_arms([])


# studies

PLAN = """
title = "Learning rate"
seeds = [1, 2]
[base]
model.name = "test_resnet"
model.pretrained = "no"
model.size_px = 32
[[arms]]
name = "as usual"
[[arms]]
name = "slow"
optim.lr = 1e-5
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "lr.toml").write_text(PLAN, encoding="utf-8")
    made = create_study(
        tmp_path / "study", load_plan(tmp_path / "lr.toml"), store_url=None
    )
    store = made.open_store()
    store.fill()
    done, broken = (store.claim(only=f"as-usual*seed{seed}") for seed in (1, 2))
    assert done is not None
    assert broken is not None
    make_run(
        made.run_path(done.name),
        optim__lr=1e-3,
        train__seed=1,
        data__protocol="grouped",
    )
    done.finish(0.5)
    broken.fail("out of memory")
    return made


def test_a_study_has_its_arms_and_their_trials(study: Study) -> None:
    assert is_study(study.path)
    assert not is_study(study.trials_dir)
    arms = find_arms([study.path])
    assert [arm.name for arm in arms] == ["as usual", "slow"]
    assert [arm.settings for arm in arms] == [{"optim.lr": 1e-3}, {"optim.lr": 1e-5}]
    usual, slow = ([(m.seed, m.state, m.reason) for m in a.members] for a in arms)
    assert usual == [(1, "finished", None), (2, "failed", "out of memory")]
    assert slow == [(1, "waiting", None), (2, "waiting", None)]
    first, second = arms[0].members
    assert first.run is not None
    assert first.path == study.run_path("as-usual_grouped_seed1")
    assert second.run is None
    assert second.settings["model.name"] == "test_resnet"


def test_a_study_is_compared_alone(study: Study, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is a study, and 2 folders.*\n.*trials"):
        find_arms([tmp_path / "run", study.path])


def test_a_study_that_never_began_says_how_to_start_it(tmp_path: Path) -> None:
    (tmp_path / "lr.toml").write_text(PLAN, encoding="utf-8")
    create_study(tmp_path / "study", load_plan(tmp_path / "lr.toml"), store_url=None)
    with pytest.raises(RunError, match=r"no such study.*\n.*tumorlens study run"):
        find_arms([tmp_path / "study"])
    open_study(tmp_path / "study").open_store()  # entered, and killed before a trial
    with pytest.raises(RunError, match=r"has no trials yet\n.*tumorlens study run"):
        find_arms([tmp_path / "study"])
