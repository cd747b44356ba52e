"""Costs of a prediction: parameters, MACs, bytes and milliseconds.

All costs are for one image, decoded and resized already, through
`network.predict_probs`, as in use: with `mirror` a network runs twice, and an ensemble
runs every member. A machine gets slower as it warms up, so times of networks that ran
one after the other do not compare. Here they take turns.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from tumorlens.deploy.benchmark.timing import take_turns
from tumorlens.training.network import load_model, predict_probs
from tumorlens.training.views import POLICIES, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from tumorlens.runs.folder import ModelCard, Run

SECONDS = 4.0
"""Budget for timing all networks together, unless `_MIN_ROUNDS` take longer."""

_NUM_WARM_UPS = 3
_MIN_ROUNDS = 10
_MAX_ROUNDS = 300


@dataclass(frozen=True)
class Network:
    """A network with its card and weights file."""

    card: ModelCard
    module: nn.Module
    """On the CPU, in evaluation mode."""
    weights_path: Path


@dataclass(frozen=True)
class Latency:
    """Time of one prediction, in milliseconds."""

    p50: float
    p5: float
    p95: float


Networks = tuple[Network, ...]
"""Networks whose probabilities are averaged: one, or the members of an ensemble."""


def has_networks(run: Run) -> bool:
    """Whether everything is there that `open_networks` needs."""
    parts = _parts(run)
    return bool(parts) and all(
        part.card_path.is_file() and part.weights_path.is_file() for part in parts
    )


def architecture_of(run: Run) -> str:
    """Return a text that is equal for runs whose predictions cost the same.

    Raises:
        RunError: The run has no weights yet.
    """
    cards = [part.card(check_weights=False) for part in _parts(run)]
    included = {"name", "arguments", "in_chans", "size_px", "mirror", "tta"}
    same = [
        card.model_dump(mode="json", include=included) | {"classes": len(card.classes)}
        for card in cards
    ]
    return json.dumps(same, sort_keys=True)


def open_networks(run: Run) -> Networks:
    """Return the networks of a run, or of its first fold.

    Raises:
        RunError: There are no weights, or they were changed.
    """
    networks = []
    for part in _parts(run):
        card = part.card()
        module = load_model(card, part.weights_path)
        networks.append(Network(card, module, part.weights_path))
    return tuple(networks)


def count_parameters(networks: Networks) -> int:
    """Return the number of learnt values, which the means of batch norm are not."""
    return sum(
        parameter.numel()
        for network in networks
        for parameter in network.module.parameters()
    )


def count_macs(networks: Networks) -> int:
    """Return the multiply-accumulate operations of one prediction.

    Counted are convolutions and matrix products, nearly all there are: half of the
    floating-point operations that torch counts.
    """
    total = 0
    for network in networks:
        card = network.card
        image = torch.zeros(1, card.in_chans, card.size_px, card.size_px)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.module(image)
        views = POLICIES[policy_of(mirror=card.mirror, tta=card.tta)]
        total += int(counter.get_total_flops()) // 2 * len(views)
    return total


def size_on_disk(networks: Networks) -> int:
    """Return the bytes of the weights files."""
    return sum(network.weights_path.stat().st_size for network in networks)


def measure_latencies(
    models: Sequence[Networks], *, device: torch.device, seconds: float | None = None
) -> list[Latency]:
    """Return the time of each model for one image, in fp32, in their order.

    Args:
        models: Moved to `device`, all at once, and left there.
        device: Device to compute on.
        seconds: Budget for all together, without warm-up; `SECONDS` by default.
    """
    calls = [_prediction_of(networks, device) for networks in models]
    return time_in_turns(calls, seconds=SECONDS if seconds is None else seconds)


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Return the time of each call, measured in rounds: A B C, A B C, ...

    Args:
        calls: Functions to time, after a few untimed calls of each.
        seconds: Time after which no round starts, except the first ten.
        clock: Clock in seconds, with any start.
    """
    for call in calls:
        for _ in range(_NUM_WARM_UPS):
            call()
    timed = [partial(_seconds_of, call, clock) for call in calls]
    found = take_turns(
        timed,
        seconds=seconds,
        min_rounds=_MIN_ROUNDS,
        max_rounds=_MAX_ROUNDS,
        clock=clock,
    )
    times_ms = np.array(found) * 1000  # (number of calls, R)
    return [
        Latency(*(float(np.percentile(column, at)) for at in (50, 5, 95)))
        for column in times_ms
    ]


def _parts(run: Run) -> tuple[Run, ...]:
    return (run.folds() or (run,))[0].networks()


def _prediction_of(networks: Networks, device: torch.device) -> Callable[[], None]:
    images = []
    for network in networks:
        network.module.to(device)
        card = network.card
        shape = (1, card.in_chans, card.size_px, card.size_px)
        images.append(torch.randint(256, shape, dtype=torch.uint8))

    def predict() -> None:
        for network, image in zip(networks, images, strict=True):
            # The result is copied to the CPU, so this waits for a GPU.
            predict_probs(network.module, [image], network.card, device)

    return predict


def _seconds_of(
    call: Callable[[], object], clock: Callable[[], float], _round: int
) -> float:
    start = clock()
    call()
    return clock() - start
