from __future__ import annotations

from pathlib import Path

import pytest

from tumorlens.config import path_settings, setting_names, values_of
from tumorlens.errors import ConfigError
from tumorlens.study import plan_file
from tumorlens.study.plan import PER_TRIAL, StudyPlan, check_only, trial_name
from tumorlens.study.plan_file import dump_plan, load_plan, read_plan

AXES = """
protocols = ["as-given", "grouped"]
seeds = [1, 2]
[base]
model.name = "test_resnet"
[axes]
optim.lr = [1e-2, 1e-3]
model.global_pool = ["avg", "max"]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return tmp_path / "study.toml"


def plan_of(path: Path, text: str, *assignments: str) -> StudyPlan:
    path.write_text(text)
    return load_plan(path, assignments=assignments)


def problem_of(path: Path, text: str, *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan_of(path, text, *assignments)
    assert caught.value.hint
    return caught.value.problem


def test_axes_are_combined_under_each_protocol_and_seed(study: Path) -> None:
    plan = plan_of(study, AXES)
    names = [trial.name for trial in plan.trials()]
    assert len(names) == len(set(names)) == 2 * 2 * 2 * 2
    assert names[:4] == [
        "lr=0.01-global_pool=avg_as-given_seed1",
        "lr=0.01-global_pool=max_as-given_seed1",
        "lr=0.001-global_pool=avg_as-given_seed1",
        "lr=0.001-global_pool=max_as-given_seed1",
    ]
    assert {trial.protocol for trial in plan.trials()} == {"as-given", "grouped"}


def test_the_settings_of_a_trial_are_those_of_base_arm_protocol_and_seed(
    study: Path,
) -> None:
    plan = plan_of(study, AXES, "optim.epochs=3")
    last = plan.trials()[-1]
    config = plan.config_of(last.settings, protocol=last.protocol, seed=last.seed)
    assert (config.optim.lr, config.model.global_pool) == (1e-3, "max")
    assert (config.data.protocol, config.train.seed) == ("grouped", 2)
    assert (config.model.name, config.optim.epochs) == ("test_resnet", 3)


def test_named_arms_keep_their_names_and_order(study: Path) -> None:
    plan = plan_of(
        study,
        '[[arms]]\nname = "b"\noptim.name = "sgd"\n'
        '[[arms]]\nname = "a"\nmodel.extra.pad_type = "same"\n',
    )
    assert [arm.name for arm in plan.arms] == ["b", "a"]
    assert plan.arms[1].settings == {"model.extra.pad_type": "same"}
    config = plan.config_of(plan.arms[1].settings, protocol="grouped", seed=1)
    assert config.model.extra == {"pad_type": "same"}


def test_none_unsets_a_setting_of_the_base(study: Path) -> None:
    plan = plan_of(
        study,
        '[base]\nmodel.global_pool = "max"\n'
        '[[arms]]\nname = "own"\nmodel.global_pool = "none"\n',
    )
    arm = plan.arms[0]
    assert (
        plan.config_of(arm.settings, protocol="grouped", seed=1).model.global_pool
        is None
    )


def test_a_config_beside_the_study_is_its_base(study: Path) -> None:
    (study.parent / "base.toml").write_text("[optim]\nlr = 0.5\nepochs = 7\n")
    plan = plan_of(
        study,
        'config = "base.toml"\n[base]\noptim.lr = 0.25\n[axes]\ntrain.batch_size = [8]',
    )
    assert (plan.base.optim.lr, plan.base.optim.epochs) == (0.25, 7)


def test_test_is_watched_under_as_given_alone(study: Path) -> None:
    plan = plan_of(study, "test = true\nwatch_test = true\n" + AXES)
    watched = {
        trial.protocol: plan.config_of(
            trial.settings, protocol=trial.protocol, seed=trial.seed
        ).train.watch_test
        for trial in plan.trials()
    }
    assert watched == {"as-given": True, "grouped": False}


def test_a_plan_is_read_back_as_it_was_written(study: Path) -> None:
    search = (
        '[search]\ntrials = 3\nsampler = "random"\n[search.ranges]\n'
        "optim.lr = {low = 1e-4, high = 1e-1, log = true}\n"
        'optim.name = ["sgd", "adamw"]\n'
    )
    for text in (AXES, search):
        plan = plan_of(study, text)
        study.write_text(dump_plan(plan))
        assert read_plan(study) == plan
        assert read_plan(study).digest() == plan.digest()


def test_paths_hold_from_any_folder(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    (study.parent / "w.safetensors").touch()
    plan = plan_of(study, AXES, "data.path=images", "model.pretrained=w.safetensors")
    assert plan.base.data.path == str(study.parent / "images")
    assert plan.base.model.pretrained == str(study.parent / "w.safetensors")


def test_the_digest_is_of_what_is_compared_and_not_of_the_machine(study: Path) -> None:
    first = plan_of(study, AXES).digest()
    machine = ("data.path=elsewhere", "train.workers=3", "data.cache_limit_mib=1")
    assert plan_of(study, AXES, *machine).digest() == first
    assert plan_of(study, AXES, "optim.epochs=5").digest() != first
    assert plan_of(study, AXES.replace("1e-2", "1e-4")).digest() != first
    for other in ("model.pretrained=no", "train.precision=fp32"):
        assert plan_of(study, AXES, other).digest() != first


def test_weights_in_another_folder_are_the_same_study(study: Path) -> None:
    digests = []
    for folder in ("here", "there"):
        weights = study.parent / folder / "w.safetensors"
        weights.parent.mkdir()
        weights.touch()
        digests.append(plan_of(study, AXES, f"model.pretrained={weights}").digest())
    assert digests[0] == digests[1] != plan_of(study, AXES).digest()


PATHS_IN_ARMS = """
[base]
model.name = "test_resnet"
[[arms]]
name = "a"
model.pretrained = "w.safetensors"
data.metadata = "m.csv"
[[arms]]
name = "b"
model.pretrained = "no"
data.metadata = "none"
"""


def test_paths_of_arms_hold_from_any_folder_and_words_stay(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    first, second = plan_of(study, PATHS_IN_ARMS).arms
    assert first.settings == {
        "model.pretrained": str(study.parent / "w.safetensors"),
        "data.metadata": str(study.parent / "m.csv"),
    }
    assert second.settings == {"model.pretrained": "no", "data.metadata": "none"}
    axes = plan_of(study, '[axes]\nmodel.pretrained = ["w.pth", "no"]').arms
    assert [arm.name for arm in axes] == ["pretrained=w.pth", "pretrained=no"]
    assert axes[0].settings == {"model.pretrained": str(study.parent / "w.pth")}
    search = plan_of(
        study, '[search]\ntrials = 1\nranges.model.pretrained = ["w.pth", "no"]'
    ).search
    assert search is not None
    assert search.ranges["model.pretrained"] == [str(study.parent / "w.pth"), "no"]


def test_every_path_of_the_base_holds_from_any_folder(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(study.parent)
    plan = plan_of(study, AXES, *(f"{key}=x" for key in path_settings()))
    found = {key: values_of(plan.base)[key] for key in path_settings()}
    assert found == dict.fromkeys(path_settings(), str(study.parent / "x"))


def test_the_images_are_named_once(study: Path) -> None:
    study.write_text(AXES)
    with pytest.raises(ConfigError, match=r"data.path is given twice: 'a' by --data"):
        load_plan(study, assignments=["data.path=b"], data=Path("a"))
    load_plan(study, assignments=["data.path=a"], data=Path("a"))


@pytest.mark.parametrize("key", sorted(PER_TRIAL))
def test_what_a_study_chooses_has_a_line_of_its_own(key: str) -> None:
    assert key in setting_names()
    assert plan_file._OF_A_STUDY[key]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n[axes]\noptim.lr = [1]", "unknown key 'x'"),
        ("[axes]\noptim.lrr = [1]", "unknown setting 'optim.lrr'"),
        ("[axes]\ntrust.error = [0.1]", "trust.error has no effect in a study"),
        ("[axes]\noptim.lr = 1", "list of values for optim.lr in [axes]"),
        ("[axes]\noptim.lr = []", "list of values for optim.lr in [axes]"),
        ("[axes]\noptim.lr = [0]", "optim.lr: input should be greater than 0, got 0"),
        ("[axes]\ntrain.seed = [1, 2]", "train.seed cannot be an axis"),
        ('[axes]\ndata.protocol = ["grouped"]', "data.protocol cannot be an axis"),
        ("[base]\noptim.lr = 1", "expected arms (or axes) or [search], got neither"),
        (AXES + '[[arms]]\nname = "a"', "has both [axes] and [[arms]]"),
        ('[[arms]]\nname = "a b"\n[[arms]]\nname = "a/b"', "two arms of"),
        ("seeds = []\n" + '[[arms]]\nname = "a"', "seeds: tuple should have at least"),
        ("seeds = [-1]\n" + '[[arms]]\nname = "a"', "greater than or equal to 0"),
        ('protocols = ["x"]\n[[arms]]\nname = "a"', "protocols.0: input should be"),
        ('name = "a/b"\n[[arms]]\nname = "a"', "name: string should match"),
        ('config = "gone.toml"\n[[arms]]\nname = "a"', "cannot read the config"),
        ("[search]\n[search.ranges]\noptim.lr = [1, 2]", "needs trials or minutes"),
        (
            "[search]\ntrials = 1\n[search.ranges]\noptim.lr = {low = 2, high = 1}",
            "expected low < high, got 2.0 and 1.0",
        ),
        (
            "[search]\ntrials = 1\nranges.optim.lr = {low = 0, high = 1, log = true}",
            "log = true needs low > 0",
        ),
        (
            "[search]\ntrials = 1\n[search.ranges]\noptim.lr = {low = -1, high = 1}",
            "optim.lr: input should be greater than 0, got -1",
        ),
        (
            "[search]\nsampler = 'grid'\nranges.optim.lr = {low = 0.1, high = 1}",
            "sampler 'grid' needs a list of values",
        ),
        (
            "seeds = [1, 2]\n[search]\ntrials = 1\n[search.ranges]\noptim.lr = [1, 2]",
            "expected one protocol and one seed with [search], got 1 and 2",
        ),
        ("[search]\ntrials = 1\nobjective = 'test'\n[search.ranges]\noptim.lr=[1]", ""),
        (
            "[search]\ntrials = 1\nranges.optim.epochs = {low = 1.5, high = 4}",
            "optim.epochs is a whole number, and ranges of",
        ),
        (
            "[search]\ntrials=1\nranges.optim.epochs = {low = 1, high = 4, step = 0.5}",
            "goes from 1 to 4 in steps of 0.5",
        ),
        (
            "[search]\ntrials = 1\nranges.model.mirror = {low = 0, high = 1}",
            "model.mirror is no number, and ranges of",
        ),
        ("arms = 3", "expected [[arms]] tables"),
        ("[base\n", "is not TOML"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_with_the_value(
    study: Path, text: str, problem: str
) -> None:
    assert problem in problem_of(study, text)


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("optim.lr=1", "--set optim.lr=1 sets what the arms of"),
        ("train.seed=1", "--set train.seed=1: a study has seeds of its own"),
        ("data.protocol=grouped", "a study has protocols of its own"),
        ("data.fold=1", "a study has protocols of its own"),
        ("train.watch_test=true", "a study has watch_test of its own"),
        ("optim.lrr=1", "unknown setting 'optim.lrr'"),
        ("trust.fit=false", "trust.fit has no effect in a study"),
    ],
)
def test_an_assignment_that_would_be_lost_is_refused(
    study: Path, assignment: str, problem: str
) -> None:
    assert problem in problem_of(study, AXES, assignment)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the study .*gone\.toml: No such"):
        load_plan(tmp_path / "gone.toml")


def test_the_trials_of_a_search_are_numbered_up_to_the_budget(study: Path) -> None:
    text = "[search]\ntrials = {n}\n[search.ranges]\noptim.lr = [0.1, 0.2, 0.3]\n"
    plan = plan_of(study, text.format(n=2))
    assert [trial.name for trial in plan.trials()] == ["trial-0001", "trial-0002"]
    grid = plan_of(
        study, text.format(n=9).replace("[search]\n", "[search]\nsampler='grid'\n")
    )
    assert len(grid.trials()) == 3


def test_a_search_for_minutes_has_no_number_of_trials(study: Path) -> None:
    plan = plan_of(study, "[search]\nminutes = 1\n[search.ranges]\noptim.lr = [1, 2]\n")
    assert plan.num_search_trials is None
    assert plan.trials() == ()


def test_a_name_is_a_folder_on_every_system() -> None:
    assert trial_name("../x: y", "grouped", 1) == "x-y_grouped_seed1"
    assert trial_name("...", "grouped", 1) == "arm_grouped_seed1"


def test_watching_test_in_a_study_that_never_looks_at_it_is_refused(
    study: Path,
) -> None:
    problem = problem_of(study, "watch_test = true\n" + AXES)
    assert "watch_test = true without test = true" in problem


def test_watching_test_is_refused_where_no_trial_could(study: Path) -> None:
    text = AXES.replace('"as-given", "grouped"', '"grouped", "grouped-kfold"')
    problem = problem_of(study, "test = true\nwatch_test = true\n" + text)
    assert problem.endswith(
        "expected 'as-given' among the protocols, got grouped, grouped-kfold"
    )


def test_a_pattern_that_no_trial_matches_is_refused_and_some_are_named(
    study: Path,
) -> None:
    plan = plan_of(study, AXES)
    check_only(plan, "*as-given_seed2")
    with pytest.raises(ConfigError, match=r"matches --only 'zzz\*'") as caught:
        check_only(plan, "zzz*")
    assert "lr=0.01-global_pool=avg_as-given_seed1, " in (caught.value.hint or "")
    assert (caught.value.hint or "").endswith(", ...")


def test_a_search_that_only_time_ends_may_have_a_trial_of_any_number(
    study: Path,
) -> None:
    plan = plan_of(study, "[search]\nminutes = 1\nranges.optim.lr = [0.1, 0.2]\n")
    check_only(plan, "trial-0123")
    with pytest.raises(ConfigError, match="--only 'lr='"):
        check_only(plan, "lr=")
