"""Checkpoints: the state of a training on disk, from which it resumes exactly.

A checkpoint is taken between two batches. At the start of an epoch the random
generators are seeded from (seed, epoch), so their state is stored only in the middle.
"""

from __future__ import annotations

import io
import pickle
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tumorlens.errors import RunError
from tumorlens.files import write_bytes
from tumorlens.training.devices import found_device

if TYPE_CHECKING:
    from pathlib import Path

    from timm.utils import ModelEmaV3
    from torch import nn
    from torch.optim import Optimizer

    from tumorlens.training.optim import Schedule

FORMAT = 1


class TrainState:
    """Everything that changes while a training runs."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        ema: ModelEmaV3 | None,
    ) -> None:
        self.epoch = 1
        """Number of the current epoch, from 1."""
        self.batches_done = 0
        """Finished batches of that epoch."""
        self.num_steps = 0
        """Finished batches of all epochs."""
        self.sums = torch.zeros(3, dtype=torch.float64)
        """Loss, correct predictions and images of the epoch so far."""
        self.lr = 0.0
        """Highest learning rate at the start of that epoch."""
        self.seconds = 0.0
        """Duration of the epoch so far."""
        self.history: list[dict[str, Any]] = []
        """One row per finished epoch."""
        self._parts: dict[str, Any] = {
            "network": network,
            "optimizer": optimizer,
            "schedule": schedule,
        }
        if ema is not None:
            self._parts["ema"] = ema.module

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Move to the start of the next epoch."""
        self.history.append(row)
        self.epoch += 1
        self.batches_done = 0
        self.sums.zero_()
        self.seconds = 0.0

    def save(self, path: Path, *, random: dict[str, Any] | None = None) -> None:
        """Write a checkpoint.

        Args:
            path: File to write.
            random: Result of `get_random_state`, in the middle of an epoch.

        Raises:
            DataError: The disk is full; an earlier checkpoint is untouched.
        """
        _save(
            path,
            {
                "epoch": self.epoch,
                "batches_done": self.batches_done,
                "num_steps": self.num_steps,
                "sums": self.sums,
                "lr": self.lr,
                "seconds": self.seconds,
                "history": self.history,
                "random": random,
                **{name: part.state_dict() for name, part in self._parts.items()},
            },
        )

    def restore(self, path: Path) -> None:
        """Load a checkpoint, if there is one, random generators included.

        Raises:
            RunError: The checkpoint is damaged or from another version.
        """
        if not path.is_file():
            return
        state = _load(path)
        for name in ("epoch", "batches_done", "num_steps", "lr", "seconds", "history"):
            setattr(self, name, state[name])
        self.sums = state["sums"]
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        if state["random"] is not None:
            set_random_state(state["random"])


def get_random_state() -> dict[str, Any]:
    """Return the state of all random generators that training uses."""
    python, numpy = random.getstate(), np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    return {
        "python": [python[0], list(python[1]), python[2]],
        "numpy_key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy_pos": int(numpy["state"]["pos"]),
        "numpy_gauss": [int(numpy["has_gauss"]), float(numpy["gauss"])],
        "torch": torch.get_rng_state(),
        "devices": _states_of_devices(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the state of all random generators from `get_random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    has_gauss, cached = state["numpy_gauss"]
    np.random.set_state(
        (
            "MT19937",
            state["numpy_key"].numpy().astype(np.uint32),
            state["numpy_pos"],
            has_gauss,
            cached,
        )
    )
    torch.set_rng_state(state["torch"])
    # Checkpoints of before knew CUDA only.
    of_devices = state.get("devices", {"cuda": state.get("cuda", [])})
    kind = found_device()
    # Those of another machine's devices are of no use here.
    for number, of_one in enumerate(of_devices.get(kind, [])):
        torch.get_device_module(kind).set_rng_state(of_one, number)


def _states_of_devices() -> dict[str, list[torch.Tensor]]:
    """Return the states of the generators of all GPUs, by their kind."""
    kind = found_device()
    if kind == "cpu":
        return {}
    module = torch.get_device_module(kind)
    return {kind: [module.get_rng_state(of) for of in range(module.device_count())]}


def _save(path: Path, state: dict[str, Any]) -> None:
    # Through memory: torch reports a full disk as a RuntimeError without a cause.
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    write_bytes(path, buffer.getvalue())


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError):
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(
            f"{path} is not a checkpoint of this version",
            hint=f"remove {path.parent} and resume: the run then trains from its start",
        )
    return state
