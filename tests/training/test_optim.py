"""Optimizers and schedules, against torch's own stepped by hand."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from timm.optim import list_optimizers
from torch import nn
from torch.optim import SGD, lr_scheduler

from tumorlens.config import OptimConfig
from tumorlens.errors import ConfigError
from tumorlens.training.optim import Schedule, make_optimizer

if TYPE_CHECKING:
    from torch.optim import Optimizer

BATCHES = 4
"""Per epoch."""


def one_weight(lr: float = 0.5) -> Optimizer:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def follow(schedule: Schedule, optimizer: Optimizer, epochs: int) -> list[float]:
    """Return the learning rate of each batch."""
    rates = []
    for _ in range(epochs):
        for _ in range(BATCHES):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.after_batch()
        schedule.after_epoch()
    return rates


def by_hand(
    scheduler: lr_scheduler.LRScheduler, optimizer: Optimizer, epochs: int
) -> list[float]:
    """Return the learning rate of each batch when torch's is stepped per epoch."""
    rates = []
    for _ in range(epochs):
        rates += [float(optimizer.param_groups[0]["lr"])] * BATCHES
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("step", lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.2)),
        ("exponential", lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.2)),
        (
            "cosine",
            lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 8, 0.01),
        ),
        ("constant", lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0)),
    ],
)
def test_a_schedule_is_torchs_stepped_after_each_epoch(name: Any, make: Any) -> None:
    config = OptimConfig(
        lr=0.5, epochs=8, scheduler=name, step_size=3, gamma=0.2, min_lr=0.01
    )
    ours, theirs = one_weight(), one_weight()
    schedule = Schedule(ours, config, batches_per_epoch=BATCHES)
    expected = by_hand(make(theirs), theirs, 8)
    assert follow(schedule, ours, 8) == pytest.approx(expected, rel=1e-9)


def test_onecycle_is_torchs_stepped_after_each_batch() -> None:
    config = OptimConfig(lr=0.5, epochs=5, scheduler="onecycle", warmup_epochs=2.0)
    ours, theirs = one_weight(), one_weight()
    schedule = Schedule(ours, config, batches_per_epoch=BATCHES)
    expected = []
    scheduler = lr_scheduler.OneCycleLR(
        theirs, 0.5, epochs=5, steps_per_epoch=BATCHES, pct_start=0.4
    )
    for _ in range(5 * BATCHES):
        expected.append(theirs.param_groups[0]["lr"])
        theirs.step()
        scheduler.step()
    assert follow(schedule, ours, 5) == pytest.approx(expected)
    assert max(expected) == expected[2 * BATCHES - 1] == pytest.approx(0.5)


def test_onecycle_without_a_warmup_of_its_own_takes_torchs() -> None:
    config = OptimConfig(lr=0.5, epochs=5, scheduler="onecycle")
    optimizer = one_weight()
    rates = follow(Schedule(optimizer, config, batches_per_epoch=BATCHES), optimizer, 5)
    assert rates.index(max(rates)) == round(0.3 * 5 * BATCHES) - 1
    assert max(rates) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "batches"), [(10, 1.0, 1), (10, 0.25, 4), (2, 1.0, 1)]
)
def test_onecycle_bears_a_warmup_of_one_batch(
    epochs: int, warmup_epochs: float, batches: int
) -> None:
    # torch divides by the length of the warm-up less one.
    config = OptimConfig(
        lr=0.5, epochs=epochs, scheduler="onecycle", warmup_epochs=warmup_epochs
    )
    optimizer = one_weight()
    schedule = Schedule(optimizer, config, batches_per_epoch=batches)
    rates = []
    for _ in range(epochs * batches):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.after_batch()
    assert max(rates[:3]) > 0.4
    assert rates[-1] < 0.01


def test_the_warmup_is_a_straight_line_from_one_percent() -> None:
    config = OptimConfig(lr=0.5, epochs=6, scheduler="constant", warmup_epochs=2.0)
    optimizer = one_weight()
    rates = follow(Schedule(optimizer, config, batches_per_epoch=BATCHES), optimizer, 6)
    line = [0.5 * (0.01 + 0.99 * n / 8) for n in range(8)]
    assert rates == pytest.approx(line + [0.5] * 16)


def test_a_part_of_an_epoch_can_be_the_warmup() -> None:
    config = OptimConfig(lr=0.5, epochs=4, scheduler="exponential", gamma=0.5)
    config = config.model_copy(update={"warmup_epochs": 0.5})
    optimizer = one_weight()
    rates = follow(Schedule(optimizer, config, batches_per_epoch=BATCHES), optimizer, 4)
    assert rates[:BATCHES] == pytest.approx([0.005, 0.2525, 0.5, 0.5])
    assert rates[BATCHES::BATCHES] == pytest.approx([0.25, 0.125, 0.0625])


def test_the_cosine_begins_after_the_warmup_and_ends_with_the_run() -> None:
    config = OptimConfig(
        lr=0.5, epochs=6, scheduler="cosine", warmup_epochs=2.0, min_lr=0.1
    )
    optimizer = one_weight()
    schedule = Schedule(optimizer, config, batches_per_epoch=BATCHES)
    rates = follow(schedule, optimizer, 6)
    # Half a cosine over the four epochs that are left.
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * n / 4)) / 2 for n in range(4)]
    assert rates[2 * BATCHES :: BATCHES] == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("stop", [2, 4, 7, 11])
@pytest.mark.parametrize("name", ["step", "cosine", "exponential", "onecycle"])
def test_a_schedule_goes_on_where_it_was_saved(name: Any, stop: int) -> None:
    config = OptimConfig(
        lr=0.5, epochs=4, scheduler=name, step_size=2, gamma=0.5, warmup_epochs=1.5
    )

    def run(
        optimizer: Optimizer, schedule: Schedule, batches: range
    ) -> list[tuple[int, float]]:
        rates = []
        for batch in batches:
            rates.append((batch, float(optimizer.param_groups[0]["lr"])))
            optimizer.step()
            schedule.after_batch()
            if (batch + 1) % BATCHES == 0:
                schedule.after_epoch()
        return rates

    whole = one_weight()
    expected = run(
        whole, Schedule(whole, config, batches_per_epoch=BATCHES), range(4 * BATCHES)
    )

    first = one_weight()
    schedule = Schedule(first, config, batches_per_epoch=BATCHES)
    got = run(first, schedule, range(stop))
    # Through the file format of a checkpoint, which holds plain values only.
    buffer = io.BytesIO()
    torch.save([first.state_dict(), schedule.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    second = one_weight()
    resumed = Schedule(second, config, batches_per_epoch=BATCHES)
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    got += run(second, resumed, range(stop, 4 * BATCHES))
    assert got == expected  # to the bit


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)
    )


def test_weight_decay_spares_biases_and_normalization() -> None:
    model = network()
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {
        names[parameter]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decayed == {
        "0.weight": 0.3,
        "3.weight": 0.3,
        **dict.fromkeys(("0.bias", "1.weight", "1.bias", "3.bias"), 0.0),
    }


def test_the_optimizer_gets_the_values_of_the_settings() -> None:
    optimizer = make_optimizer(
        network(), OptimConfig(name="sgd", lr=0.25, momentum=0.6)
    )
    assert isinstance(optimizer, SGD)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.6}


@pytest.mark.parametrize(("name", "is_nesterov"), [("momentum", False), ("sgd", True)])
def test_momentum_is_torch_s_sgd_and_sgd_is_nesterov_s(
    name: str, *, is_nesterov: bool
) -> None:
    optimizer = make_optimizer(network(), OptimConfig(name=name, lr=0.25))
    assert isinstance(optimizer, SGD)
    assert {group["nesterov"] for group in optimizer.param_groups} == {is_nesterov}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert {group["fused"] for group in optimizer.param_groups} == {True}


@pytest.mark.parametrize("name", ["adam", "AdamW", "sgd", "momentum", "lamb"])
def test_the_report_and_timm_optimizers_learn(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1))
    images, target = torch.randn(32, 3), torch.randn(32, 1)
    optimizer = make_optimizer(model, OptimConfig(name=name, lr=0.05, weight_decay=0.0))
    losses = []
    for _ in range(20):
        loss = (model(images) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


class Layered(nn.Module):
    """Two blocks and a head, which say which layer each parameter belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(2, 2, bias=False) for _ in range(2))
        self.head = nn.Linear(2, 2, bias=False)

    def group_matcher(self, *, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^first", "blocks": [(r"^second", (0,))]}


def rate_of(model: Layered, optimizer: Optimizer) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: float(group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_layer_decay_slows_each_layer_towards_the_input() -> None:
    model = Layered()
    optimizer = make_optimizer(model, OptimConfig(lr=0.5, layer_decay=0.1))
    assert rate_of(model, optimizer) == pytest.approx(
        {"head.weight": 0.5, "second.weight": 0.05, "first.weight": 0.005}
    )


@pytest.mark.parametrize("scheduler", ["step", "exponential", "onecycle", "constant"])
def test_a_schedule_keeps_the_ratio_of_the_layers(scheduler: Any) -> None:
    model = Layered()
    config = OptimConfig(
        lr=0.5, epochs=4, scheduler=scheduler, layer_decay=0.1, warmup_epochs=1.0
    )
    optimizer = make_optimizer(model, config)
    schedule = Schedule(optimizer, config, batches_per_epoch=BATCHES)
    for _ in range(2):
        for _ in range(BATCHES):
            optimizer.step()
            schedule.after_batch()
            rates = rate_of(model, optimizer)
            assert rates["second.weight"] == pytest.approx(rates["head.weight"] / 10)
            assert rates["first.weight"] == pytest.approx(rates["head.weight"] / 100)
        schedule.after_epoch()


def test_an_unknown_optimizer_is_named_with_the_closest_one() -> None:
    with pytest.raises(ConfigError, match=r"unknown optim\.name 'adamv'") as caught:
        make_optimizer(network(), OptimConfig(name="adamv"))
    assert caught.value.hint.startswith("did you mean 'adam")
    assert caught.value.hint.split("'")[1] in list_optimizers()


def test_an_optimizer_that_refuses_the_values_is_named_with_them() -> None:
    # timm's 'sgd' is Nesterov's, for which torch wants a momentum.
    with pytest.raises(
        ConfigError,
        match=r"'sgd' cannot be made with lr=0\.25, weight_decay=0\.05, momentum=0\.0: "
        "Nesterov momentum requires",
    ):
        make_optimizer(network(), OptimConfig(name="sgd", lr=0.25, momentum=0.0))
