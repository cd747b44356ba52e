"""Costs counted by hand on small networks, and turns taken as promised."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from tumorlens.deploy.costs import (
    Network,
    count_macs,
    count_parameters,
    measure_latencies,
    size_on_disk,
    time_in_turns,
)
from tumorlens.runs.folder import FORMAT, ModelCard

if TYPE_CHECKING:
    from pathlib import Path


def network(path: Path, *, in_chans: int = 3, **changes: Any) -> Network:
    """Return 8 filters of 3x3 on 32x32 pixels, batch norm, and a layer of 4 classes."""
    module = nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    card = ModelCard(
        format=FORMAT,
        tumorlens="0",
        name="by hand",
        classes=("a", "b", "c", "d"),
        in_chans=in_chans,
        size_px=32,
        fit="pad",
        mean=(0.5,) * in_chans,
        std=(0.5,) * in_chans,
        mirror=False,
        epoch=1,
        weights_sha256="0" * 64,
    ).model_copy(update=changes)
    return Network(card, module.eval(), path)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_parameters_and_macs_by_hand(tmp_path: Path, in_chans: int) -> None:
    one = (network(tmp_path, in_chans=in_chans),)
    # Filters, batch norm's scale and shift, weights and biases of the last layer.
    assert count_parameters(one) == 8 * in_chans * 9 + 8 + 8 + 8 * 4 + 4
    assert count_macs(one) == 32 * 32 * 8 * in_chans * 9 + 8 * 4


@pytest.mark.parametrize(
    ("changes", "times"),
    [({"mirror": True}, 2), ({"tta": "eight-views", "mirror": True}, 8)],
)
def test_an_answer_from_several_views_costs_as_many(
    tmp_path: Path, changes: dict[str, Any], times: int
) -> None:
    once = (network(tmp_path),)
    assert count_macs((network(tmp_path, **changes),)) == times * count_macs(once)


def test_an_ensemble_costs_what_its_members_cost(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    one, other = (
        network(tmp_path / "weights"),
        network(tmp_path / "weights", in_chans=1),
    )
    for cost in (count_parameters, count_macs, size_on_disk):
        assert cost((one, other)) == cost((one,)) + cost((other,)), cost


def test_the_size_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"12345")
    assert size_on_disk((network(tmp_path / "weights.safetensors"),)) == 5


def test_calls_take_turns_after_each_was_warmed_up() -> None:
    made: list[str] = []
    ticks = count()
    time_in_turns(
        [lambda: made.append("A"), lambda: made.append("B")],
        seconds=0,
        clock=lambda: next(ticks),
    )
    assert made[:6] == ["A"] * 3 + ["B"] * 3
    assert made[6:] == ["A", "B"] * 10


def test_times_are_the_median_and_the_5th_and_95th_percentile_in_ms() -> None:
    now = 0.0
    lasts = iter([9.0, 9.0, 9.0, *(n / 1000 for n in range(101))])

    def call() -> None:
        nonlocal now
        now += next(lasts)

    # Seconds 0.000 to 0.100 add up to 5.05: the last round starts before that.
    (found,) = time_in_turns([call], seconds=5.0, clock=lambda: now)
    assert (found.p50, found.p5, found.p95) == pytest.approx((50, 5, 95))


def test_rounds_end_when_the_time_is_up() -> None:
    now, made = 0.0, 0

    def call() -> None:
        nonlocal now, made
        now += 1.0
        made += 1

    time_in_turns([call], seconds=20.5, clock=lambda: now)
    assert made == 3 + 21


def test_every_network_is_timed(tmp_path: Path) -> None:
    one, other = network(tmp_path), network(tmp_path, mirror=True, in_chans=1)
    found = measure_latencies(
        [(one,), (one, other)], device=torch.device("cpu"), seconds=0
    )
    assert len(found) == 2
    assert all(0 < one.p5 <= one.p50 <= one.p95 for one in found)
