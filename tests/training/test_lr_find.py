"""The sweep followed by hand on one weight, and run on drawn images."""

from __future__ import annotations

import json
import math
import random
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from support.images import CLASSES, draw_image
from tumorlens.cli import app
from tumorlens.config import Config, ModelConfig, OptimConfig, load_config
from tumorlens.data.index import SplitRow, read_index, write_split
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.report.run_figures import draw_lr_curve
from tumorlens.training import lr_find
from tumorlens.training.loop import Loss
from tumorlens.training.lr_find import LrFindResult, find_lr, sweep
from tumorlens.training.network import create_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tumorlens.training.lr_curve import LrCurve

TINY = [
    *("model.name=test_resnet", "model.pretrained=no", "model.size_px=32"),
    *("train.batch_size=8", "train.device=cpu", "train.precision=fp32"),
]

PLAIN_SGD = OptimConfig(name="momentum", lr=0.5, momentum=0.0, weight_decay=0.0)


class Scale(nn.Module):
    """One weight w, which starts at 1; a second part that may be frozen."""

    pretrained_cfg: ClassVar = {"classifier": ()}

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ParameterDict({"w": nn.Parameter(torch.ones(()))})

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.body["w"] * x
        return outputs


class SquareLoss(Loss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().mean(1).sum()


def ones() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield torch.ones(2, 1), torch.zeros(2, dtype=torch.int64)


def sweep_scale(model: nn.Module | None = None, **options: Any) -> LrCurve:
    """Sweep a model that shall return 0, with plain SGD; its loss is w squared."""
    values: dict[str, Any] = {"lowest": 1e-3, "highest": 0.1, "num_steps": 20}
    return sweep(
        model or Scale(),
        options.pop("batches", ones()),
        prepare_batch=lambda images, labels: (images, labels),
        loss_fn=SquareLoss(),
        optim=options.pop("optim", PLAIN_SGD),
        accelerator=Accelerator(cpu=True),
        **(values | options),
    )


@pytest.fixture
def configure(
    make_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., Config]:
    """Return a function: further settings -> a config for drawn images."""
    base = [
        *TINY,
        f"data.path={make_images(num_each=12)}",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    return lambda *more: load_config(assignments=[*base, *more])


def random_states() -> list[Any]:
    return [
        random.getstate(),
        np.random.get_state(legacy=False),
        torch.get_rng_state().tolist(),
    ]


def test_each_step_has_its_rate_and_its_loss_by_hand() -> None:
    curve = sweep_scale()
    w, losses = 1.0, []
    lrs = [1e-3 * 100 ** (step / 19) for step in range(20)]
    for lr in lrs:
        losses.append(w * w)  # before the step is taken
        w -= lr * 2 * w
    assert curve.lrs == pytest.approx(lrs)
    assert curve.losses == pytest.approx(losses, rel=1e-5)
    assert not curve.is_diverged


def test_a_batch_in_parts_is_one_step() -> None:
    sizes = []

    class Sized(Scale):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    assert sweep_scale(Sized(), part_size=1) == sweep_scale()
    assert sizes == [1] * 40


def test_the_sweep_ends_when_the_loss_is_four_times_the_best() -> None:
    # A step of more than 1 overshoots: w -> w (1 - 2 lr).
    curve = sweep_scale(lowest=0.1, highest=100, num_steps=40)
    assert curve.is_diverged
    assert len(curve.losses) < 40
    best = [min(curve.smoothed[: n + 1]) for n in range(len(curve.smoothed))]
    too_high = [loss > 4 * low for loss, low in zip(curve.smoothed, best, strict=True)]
    assert too_high == [False] * (len(too_high) - 1) + [True]


def test_a_loss_that_is_not_finite_ends_the_sweep_and_is_left_out() -> None:
    # From w = 1 the first step goes to -2e20, whose square is not a float32 any more.
    curve = sweep_scale(lowest=1e20, highest=1e21)
    assert curve.is_diverged
    assert curve.losses == (1.0,)
    assert curve.suggestion is None


def test_a_first_loss_that_is_not_finite_is_refused() -> None:
    batches = iter([(torch.full((2, 1), math.nan), torch.zeros(2, dtype=torch.int64))])
    with pytest.raises(RunError, match="first training loss is nan, before") as caught:
        sweep_scale(batches=batches)
    assert "train.precision=fp32" in caught.value.hint


def test_parts_of_the_network_keep_their_share_of_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Optimizer(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append([group["lr"] for group in self.param_groups])

    def make(model: nn.Module, config: OptimConfig) -> Optimizer:
        groups = [
            {"params": list(model.parameters()), "lr": config.lr},
            {"params": [nn.Parameter(torch.ones(()))], "lr": config.lr / 4},
        ]
        return Optimizer(groups, lr=1.0)

    monkeypatch.setattr(lr_find, "make_optimizer", make)
    curve = sweep_scale()
    assert [one for one, _ in seen] == pytest.approx(list(curve.lrs))
    assert [other for _, other in seen] == pytest.approx([lr / 4 for lr in curve.lrs])


def test_a_frozen_part_does_not_learn_in_the_sweep_either() -> None:
    modes = set()

    class Two(Scale):
        def __init__(self) -> None:
            super().__init__()
            self.rest = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            modes.add((self.body.training, self.rest.training))
            outputs: Tensor = super().forward(x) + 0 * self.rest(x)
            return outputs

    assert set(sweep_scale(Two(), frozen=["body"]).losses) == {1.0}
    assert modes == {(False, True)}


def test_the_settings_schedule_does_not_move_the_rate() -> None:
    changes = {"scheduler": "onecycle", "warmup_epochs": 1.0, "epochs": 3}
    optim = PLAIN_SGD.model_copy(update=changes)
    assert sweep_scale(optim=optim) == sweep_scale()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lowest": 0.0}, "expected 0 < lowest < highest, got 0 and 0.1"),
        ({"lowest": 0.2}, "expected 0 < lowest < highest, got 0.2 and 0.1"),
        ({"highest": math.inf}, "expected 0 < lowest < highest, got 0.001 and inf"),
        ({"lowest": math.nan}, "got nan and 0.1"),
        ({"num_steps": 19}, "expected at least 20 steps, got 19"),
    ],
)
def test_a_range_that_is_none_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep_scale(**values)
    renamed = {"lowest": 1e-3, "highest": 0.1} | values
    with pytest.raises(ConfigError, match=said):
        find_lr(Config(), **renamed)  # before any data is looked for


def test_the_sweep_leaves_no_trace_in_the_model_or_the_random_state() -> None:
    settings = ModelConfig(name="test_resnet", pretrained="no", drop_rate=0.5)
    model, _ = create_model(settings, num_classes=4)
    model.eval()
    model.get_parameter("fc.bias").requires_grad = False
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = random_states()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            random.random()
            np.random.rand()
            yield torch.rand(4, 3, 32, 32), torch.randint(4, (4,))

    curve = sweep_scale(model, batches=batches(), highest=1.0)
    assert len(set(curve.losses)) > 1

    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not any(module.training for module in model.modules())
    assert all(part.grad is None for part in model.parameters())
    assert [n for n, part in model.named_parameters() if not part.requires_grad] == [
        "fc.bias"
    ]
    for one, other in zip(random_states(), before, strict=True):
        np.testing.assert_equal(one, other)


def test_the_random_state_is_put_back_after_an_error_too() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        torch.rand(1)
        yield torch.full((2, 1), math.nan), torch.zeros(2, dtype=torch.int64)

    before = random_states()
    with pytest.raises(RunError):
        sweep_scale(batches=batches())
    np.testing.assert_equal(random_states(), before)


def test_the_answer_is_complete_and_the_same_each_time(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    config = configure("augment.mixup=0.2", "augment.random_erasing=0.2")
    before = random_states()
    found = find_lr(
        config,
        num_steps=30,
        command="tumorlens lr-find ...",
        progress=lambda done, total: steps.append((done, total)),
    )
    np.testing.assert_equal(random_states(), before)
    # 48 drawn images make some 30 train images, 4 batches: they are gone through again.
    assert found.num_train < 8 * 30
    assert len(found.lrs) == len(found.losses) == len(found.smoothed)
    num_done = len(found.losses)
    assert steps[-num_done:] == [(n + 1, 30) for n in range(num_done)]
    assert found.settings.model.name == "test_resnet"
    assert found.environment["command"] == "tumorlens lr-find ..."
    json.dumps(found.model_dump(mode="json"), allow_nan=False)

    torch.rand(1)  # the seed is that of the settings, whatever was drawn before
    again = find_lr(config, num_steps=30)
    assert again.losses == found.losses


def test_the_settings_of_the_loop_reach_the_sweep(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def note(*_: Any, **options: Any) -> LrCurve:
        asked.update(options)
        return sweep_scale()

    monkeypatch.setattr(lr_find, "sweep", note)
    settings = ["train.accumulate=2", "train.precision=bf16", "train.freeze=['conv1']"]
    find_lr(configure(*settings, "train.freeze_backbone_epochs=3", "optim.epochs=3"))
    assert (asked["part_size"], asked["use_bf16"]) == (4, True)
    assert (asked["frozen"], asked["head_only"]) == (["conv1"], True)
    # A backbone that is trained later is what the rate is for.
    find_lr(configure("train.freeze_backbone_epochs=2", "optim.epochs=3"))
    assert (asked["part_size"], asked["use_bf16"]) == (None, False)
    assert (asked["frozen"], asked["head_only"]) == ([], False)


def test_defaults_are_enough_beside_data_and_network(
    configure: Callable[..., Config],
) -> None:
    found = find_lr(configure(), lowest=1e-6, highest=1.0, num_steps=60)
    assert (found.optimizer, found.lowest, found.highest) == ("adamw", 1e-6, 1)
    # Wide bounds: what drawn images and a tiny network can tell.
    assert found.suggestion is not None
    assert 1e-4 < found.suggestion < 0.5


def test_without_data_it_says_so() -> None:
    with pytest.raises(DataError, match="no data was named"):
        find_lr(load_config(assignments=TINY))


def test_only_train_images_are_used(tmp_path: Path) -> None:
    """Other val and test images, same train images: the same curve to the bit."""
    answers = []
    for name, first in (("one", 100), ("other", 200)):
        root = tmp_path / name
        rows = []
        for label in CLASSES:
            (root / label).mkdir(parents=True)
            for number in range(9):
                subset = ("train", "val", "test")[number % 3]
                seed = number if subset == "train" else first + number
                path = root / label / f"{number}.png"
                Image.fromarray(draw_image(label, seed)).save(path)
        for record in read_index(root).records:
            subset = ("train", "val", "test")[int(Path(record.path).stem) % 3]
            rows.append(
                SplitRow(record.path, record.sha256, record.label, record.path, subset)
            )
        write_split(tmp_path / f"{name}.csv", rows)
        settings = [
            *TINY,
            f"data.path={root}",
            f"data.split={tmp_path / name}.csv",
            "data.protocol=as-given",
            f"data.cache_dir={tmp_path / 'cache'}",
        ]
        answers.append(find_lr(load_config(assignments=settings), num_steps=20))
    assert answers[0].num_train == 12
    assert answers[0].losses == answers[1].losses


def test_a_kfold_training_is_tried_in_its_first_fold_and_leaves_no_folder(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    settings = ["data.protocol=grouped-kfold", "data.num_folds=3"]
    whole = find_lr(configure(*settings), num_steps=20)
    first = find_lr(configure(*settings, "data.fold=0"), num_steps=20)
    assert whole.losses == first.losses
    assert list((tmp_path / "temporary").iterdir()) == []


# the command and the figure


def test_the_command_writes_three_files_and_prints_how_to_train(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config_path = tmp_path / "settings.toml"
    config_path.write_text(
        '[model]\nname = "test_resnet"\npretrained = "no"\nsize_px = 32\n'
        f'[data]\ncache_dir = "{tmp_path / "cache"}"\n[train]\nbatch_size = 8\n'
    )
    data, out = make_images(num_each=12), tmp_path / "out"
    words = ["lr-find", config_path, "--data", data, "--out", out, "--steps", 60]
    settings = ["--set", "train.device=cpu"]
    assert app.main([str(word) for word in [*words, *settings]]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        *("lr_find.json", "lr_find.png", "lr_find.svg"),
    ]
    found = json.loads((out / "lr_find.json").read_text())
    assert found["words"] in said
    following = shlex.split(said.splitlines()[-1].removeprefix("next: "))
    assert following[:3] == ["tumorlens", "train", str(config_path)]
    assert following[3:7] == ["--data", str(data), *settings]
    assert following[7:9] == ["--set", f"optim.lr={found['suggestion']:g}"]
    with Image.open(out / "lr_find.png") as image:
        assert image.width > 500


def test_without_a_suggestion_no_command_is_given(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["lr-find", "--data", make_images(num_each=6), "--out", tmp_path / "out"]
    words += ["--steps", 20, "--highest", "1e-6"]
    for setting in (*TINY, f"data.cache_dir={tmp_path / 'cache'}"):
        words += ["--set", setting]
    assert app.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No suggestion: the loss does not fall between 1e-07 and")
    assert "next:" not in said
    found = json.loads((tmp_path / "out" / "lr_find.json").read_text())
    assert found["suggestion"] is None


def test_the_hint_of_a_usage_error_names_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["lr-find"]) == 2
    assert capsys.readouterr().err.endswith("hint: see tumorlens lr-find --help\n")


def found_curve(**changes: Any) -> LrFindResult:
    lrs = np.geomspace(1e-7, 1, 50)
    losses = 1 + (np.log10(lrs) + 2) ** 2 * 0.1
    losses[-1] = 1e6
    values = {
        **{"model": "resnet50", "optimizer": "adamw", "batch_size": 32},
        **{"num_train": 2870, "lrs": lrs.tolist(), "losses": losses.tolist()},
        **{"smoothed": losses.tolist(), "suggestion": 0.0012},
        **{"tenth_of_minimum": 0.0034, "lowest": 1e-7, "highest": 1, "num_steps": 50},
        **{"is_diverged": True, "summary": "", "settings": Config()},
        "environment": {},
    }
    return LrFindResult(**values | changes)


def test_the_figure_says_what_was_measured_and_what_is_suggested() -> None:
    svg = draw_lr_curve(found_curve()).svg
    for words in ("resnet50 · adamw · batches of 32 of 2,870 train images", "1e-07"):
        assert words in svg
    assert "falls fastest: 0.0012" in svg
    assert "a tenth of the lowest: 0.0034" in svg
    assert "No suggestion" not in svg
    assert svg == draw_lr_curve(found_curve()).svg


def test_a_figure_without_a_suggestion_says_so() -> None:
    svg = draw_lr_curve(found_curve(suggestion=None, tenth_of_minimum=None)).svg
    assert "No suggestion: the loss does not fall." in svg
    assert "falls fastest" not in svg


def test_a_loss_that_blew_up_does_not_flatten_the_rest() -> None:
    (axes,) = draw_lr_curve(found_curve()).figure.axes
    assert axes.get_ylim()[1] == pytest.approx(2 * 3.5, rel=0.01)
