"""What becomes of every setting in every command that takes --set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tumorlens.cli import app
from tumorlens.cli.options import config_of, train_words
from tumorlens.config import (
    OF_IMPORT,
    OF_SPLIT,
    Config,
    DataConfig,
    TrainConfig,
    load_config,
    setting_names,
    values_of,
)
from tumorlens.errors import ConfigError
from tumorlens.training import dataset, fit, import_weights, lr_find

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

OTHER_VALUES: dict[str, Any] = {
    **{
        "data.path": "/d",
        "data.names": ["d", "e"],
        "data.metadata": "/m.csv",
        "data.labels": "/l.csv",
        "data.split": "/s.csv",
    },
    **{"data.protocol": "as-given", "data.val_fraction": 0.3},
    **{"data.test_fraction": 0.4},
    **{"data.num_folds": 7, "data.fold": 1, "data.fit": "squash"},
    **{"data.max_unreadable": 0.5, "data.max_file_mib": 3.0, "data.max_pixels": 99},
    **{"data.cache_dir": "/c", "data.cache_limit_mib": 5.0},
    **{"model.name": "resnet50", "model.pretrained": "no", "model.drop_rate": 0.5},
    **{"model.drop_path_rate": 0.5, "model.global_pool": "max", "model.in_chans": 1},
    **{"model.size_px": 77, "model.mean": [0.1, 0.2, 0.3], "model.std": [0.3, 0.2, 1]},
    **{"model.mirror": True, "model.extra": {"a": 1}},
    **{"augment.policy": "basic", "augment.crop_scale": [0.1, 0.2]},
    **{"augment.auto_augment": "v0", "augment.strength": 2.0},
    **{"augment.random_erasing": 0.5, "augment.mixup": 0.5, "augment.cutmix": 0.5},
    **{"augment.mix_probability": 0.5, "optim.name": "lion", "optim.lr": 0.5},
    **{"optim.weight_decay": 0.5, "optim.momentum": 0.5, "optim.epochs": 7},
    **{"optim.scheduler": "step", "optim.step_size": 7, "optim.gamma": 0.5},
    **{"optim.min_lr": 1e-5, "optim.warmup_epochs": 2.0, "optim.layer_decay": 0.5},
    **{"optim.clip_grad_norm": 0.5, "train.batch_size": 7, "train.accumulate": 7},
    **{"train.seed": 7, "train.precision": "fp32", "train.workers": 7},
    **{"train.label_smoothing": 0.5, "train.class_weights": "sqrt"},
    **{"train.sampler": "balanced", "train.ema_decay": 0.5, "train.device": "cpu"},
    **{"train.freeze_backbone_epochs": 7, "train.freeze": ["a"]},
    **{"trust.fit": False, "trust.coverage": 0.8, "trust.error": 0.2},
    **{"trust.confidence": 0.8, "trust.specificity": 0.8},
    **{"train.early_stop_epochs": 7, "train.best_by": "loss", "train.watch_test": True},
}
"""A value for each setting that is not the default of any command."""

ALONG = {
    "data.names": ["data.path=['/d', '/e']"],
    "data.fold": ["data.protocol=grouped-kfold"],
    "train.watch_test": ["data.protocol=as-given"],
    "model.mean": ["model.std=[1,1,1]"],
    "model.std": ["model.mean=[0,0,0]"],
    "model.in_chans": [],
}
"""Settings that another one needs beside it."""


class _CaughtError(Exception):
    """Ends a command with the settings that its stage got."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config


@pytest.fixture
def _stages_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*arguments: Any, **_: Any) -> None:
        raise _CaughtError(next(one for one in arguments if isinstance(one, Config)))

    monkeypatch.setattr(dataset, "split_data", end)
    monkeypatch.setattr(fit, "train", end)
    monkeypatch.setattr(lr_find, "find_lr", end)
    monkeypatch.setattr(import_weights, "import_weights", end)


def commands(folder: Path) -> Mapping[str, list[str]]:
    out = ["--out", str(folder / "out")]
    return {
        "split": ["split", "/d", "/e", *out],
        "train": ["train", *out],
        "lr-find": ["lr-find", *out],
        "import": ["import", "w", "--model", "resnet50", "--classes", "a,b", *out],
    }


def settings_of(words: list[str], *assignments: str) -> Config | int:
    """Return what the stage of a command gets, or the exit status without it."""
    chosen = [word for one in assignments for word in ("--set", one)]
    try:
        return app.main([*words, *chosen])
    except _CaughtError as caught:
        return caught.config


OF_COMMAND: dict[str, dict[str, Any]] = {
    "import": {"data.protocol": "grouped", "data.fit": "pad"},
    "split": {"data.path": ["/d", "/e"]},
}
"""Other values where the command has a default of its own."""


def assignment(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{key}={{a = 1}}"
    return f"{key}={str(value).lower() if isinstance(value, bool) else value}"


def test_there_is_another_value_for_every_setting() -> None:
    assert OTHER_VALUES.keys() == setting_names().keys()
    default = values_of(Config())
    assert [key for key, value in OTHER_VALUES.items() if value == default[key]] == []


@pytest.mark.usefixtures("_stages_end")
@pytest.mark.parametrize("command", ["split", "train", "lr-find", "import"])
def test_every_command_honours_every_setting_or_refuses_it_by_name(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = commands(tmp_path)[command]
    refused = set()
    for key, value in (OTHER_VALUES | OF_COMMAND.get(command, {})).items():
        found = settings_of(words, assignment(key, value), *ALONG.get(key, []))
        if isinstance(found, Config):
            assert values_of(found)[key] == value, key
            continue
        error = capsys.readouterr().err
        assert f"--set {key} has no effect here" in error, (key, error)
        refused.add(key)
    all_names = setting_names().keys()
    expected = {
        "split": all_names - set(OF_SPLIT),
        "train": set(),
        "lr-find": {"optim.lr"},
        "import": all_names - set(OF_IMPORT),
    }
    assert refused == expected[command]


def test_the_lists_of_the_commands_are_of_settings() -> None:
    assert {*OF_SPLIT, *OF_IMPORT} < setting_names().keys()


@pytest.mark.parametrize(
    ("command", "option", "setting", "value"),
    [
        ("split", ["--protocol", "grouped"], "data.protocol=as-given", "as-given"),
        ("split", ["--metadata", "x.csv"], "data.metadata=y.csv", "y.csv"),
        ("import", ["--fit", "squash"], "data.fit=pad", "pad"),
        ("import", ["--size-px", "64"], "model.size_px=32", 32),
        ("import", ["--mean", "0,0,0"], "model.mean=[0.5, 0.5, 0.5]", [0.5] * 3),
        ("train", ["--data", "x"], "data.path=y", "y"),
        ("train", ["--data", "x"], "data.path=['x', 'y']", ["x", "y"]),
        ("train", ["--data", "x", "--data", "y"], "data.path=x", "x"),
        ("lr-find", ["--data", "x"], "data.path=y", "y"),
    ],
)
@pytest.mark.usefixtures("_stages_end")
def test_an_option_left_out_does_not_win_over_set_and_one_given_does_not_hide_it(
    command: str,
    option: list[str],
    setting: str,
    value: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = commands(tmp_path)[command]
    along = ["--set", "model.std=[1,1,1]"] if "mean" in setting else []
    key = setting.partition("=")[0]
    found = settings_of([*words, *along], setting)
    assert isinstance(found, Config)
    assert values_of(found)[key] == value
    assert app.main([*words, *along, *option, "--set", setting]) == 2
    assert f"{key} is given twice: " in capsys.readouterr().err


@pytest.mark.usefixtures("_stages_end")
def test_an_option_and_the_same_by_set_agree(tmp_path: Path) -> None:
    words = [*commands(tmp_path)["split"], "--protocol", "as-given"]
    config = settings_of(words, "data.protocol=as-given")
    assert isinstance(config, Config)
    assert config.data.protocol == "as-given"


@pytest.mark.usefixtures("_stages_end")
def test_the_defaults_of_import_are_its_own(tmp_path: Path) -> None:
    config = settings_of(commands(tmp_path)["import"])
    assert isinstance(config, Config)
    assert (config.data.protocol, config.data.fit) == ("as-given", "squash")


@pytest.mark.parametrize("given", [["optim.lr=0.5"], []])
def test_settings_go_on_top_of_those_to_start_from(
    tmp_path: Path, given: list[str]
) -> None:
    start = load_config(assignments=["optim.epochs=7", "optim.min_lr=1e-4"])
    (tmp_path / "x.toml").write_text("[optim]\nmin_lr = 2e-4\n")
    config = config_of(tmp_path / "x.toml", given, start=start)
    assert (config.optim.epochs, config.optim.min_lr) == (7, 2e-4)
    assert config.optim.lr == (0.5 if given else start.optim.lr)


def test_a_setting_that_does_not_exist_is_named_before_one_without_effect() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'optim\.lrr'"):
        config_of(None, ["optim.lrr=1"], only=OF_SPLIT)


# That the stage behind `split` reads what the command takes


def test_split_reads_every_setting_that_its_command_takes(
    make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_images(subsets={"Training": 6, "Testing": 3})
    read: set[str] = set()

    def spy(section: type[BaseModel], name: str) -> None:
        def get(self: Any, key: str) -> Any:
            if key in section.model_fields:
                read.add(f"{name}.{key}")
            return object.__getattribute__(self, key)

        monkeypatch.setattr(section, "__getattribute__", get, raising=False)

    configs = [
        load_config(
            assignments=[f"data.path={data}", f"data.protocol={protocol}", *more]
        )
        for protocol, more in [
            ("as-given", []),
            ("grouped", []),
            ("grouped-kfold", ["data.num_folds=2"]),
        ]
    ]
    spy(DataConfig, "data")
    spy(TrainConfig, "train")
    for config in configs:
        dataset.split_data(config)
    assert read == set(OF_SPLIT)


def test_the_run_of_the_next_command_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "2", "3"):
        assert train_words([Path("DATA")])[-2:] == ["--out", f"runs/{name}"]
        Path("runs", name).mkdir(parents=True)
    Path("runs/4").symlink_to("nowhere")
    assert train_words(None)[-1] == "runs/5"
