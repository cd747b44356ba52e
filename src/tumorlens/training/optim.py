"""The optimizer and the learning rate over time, both from timm and torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch.optim import lr_scheduler

from tumorlens.config import OptimConfig, idle_settings
from tumorlens.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from tumorlens.config import Config

_FUSED = ("adam", "adamw", "sgd", "momentum")
"""Optimizers of torch that can update all parameters in one pass."""

_WARMUP_START = 0.01
"""Share of the learning rate at the first step of a warm-up."""


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimizer that `config` names, over all parameters of `model`.

    Weight decay is not applied to biases and normalization layers, and the learning
    rate falls by `layer_decay` per layer towards the input where that is set; both as
    in timm.

    Raises:
        ConfigError: timm has no such optimizer, or it does not take these settings.
    """
    known = [str(name) for name in list_optimizers()]
    if config.name.lower() not in known:
        raise ConfigError(
            f"unknown optim.name {config.name!r}",
            hint=did_you_mean(config.name.lower(), known),
        )
    # Adam over resnet18: 0.19 s of processor time a step instead of 0.48 s.
    fused: dict[str, Any] = {"fused": True} if config.name.lower() in _FUSED else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
            **fused,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"optim.name {config.name!r} cannot be made with lr={config.lr}, "
            f"weight_decay={config.weight_decay}, momentum={config.momentum}: {error}",
            hint="choose another optimizer or other values",
        ) from None
    for group in optimizer.param_groups:
        # timm only records the factor of a layer, for its own schedulers.
        group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer


def idle_words(config: Config) -> list[str]:
    """Return a sentence for each setting that was changed and has no effect."""
    idle = idle_settings(config)
    optim, default = config.optim, OptimConfig()
    name = optim.name.lower()
    if (
        optim.momentum != default.momentum
        and name in list_optimizers()
        and not get_optimizer_info(name).has_momentum
    ):
        idle["optim.momentum"] = f"optim.name is {optim.name!r}"
    return [f"{key} has no effect: {why}" for key, why in idle.items()]


class Schedule:
    """The learning rate over the run: stepped after each batch and each epoch.

    `step`, `cosine`, `exponential` and `constant` are torch's StepLR,
    CosineAnnealingLR, ExponentialLR and ConstantLR and move once per epoch, after the
    warm-up, which moves after each batch. `onecycle` is torch's OneCycleLR: it moves
    after each batch and has its own warm-up.
    """

    def __init__(
        self, optimizer: Optimizer, config: OptimConfig, *, batches_per_epoch: int
    ) -> None:
        self._warmup_batches = round(config.warmup_epochs * batches_per_epoch)
        self._batches = 0
        self._by_batch: lr_scheduler.LRScheduler | None = None
        self._by_epoch: lr_scheduler.LRScheduler | None = None
        if config.scheduler == "onecycle":
            num_batches = config.epochs * batches_per_epoch
            share = config.warmup_epochs / config.epochs or 0.3
            if share * num_batches <= 1:
                # torch divides by the warm-up's length less one batch.
                share = min(2 / num_batches, 0.3)
            # The rate of each group, which layer decay has scaled.
            self._by_batch = lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=[group["lr"] for group in optimizer.param_groups],
                total_steps=num_batches,
                pct_start=share,
                cycle_momentum=False,
            )
            return
        self._by_epoch = _by_epoch(optimizer, config)
        if self._warmup_batches:
            self._by_batch = lr_scheduler.LinearLR(
                optimizer, _WARMUP_START, total_iters=self._warmup_batches
            )

    def after_batch(self) -> None:
        """Advance by one batch."""
        self._batches += 1
        if self._by_batch is not None and (
            self._by_epoch is None or self._batches <= self._warmup_batches
        ):
            self._by_batch.step()

    def after_epoch(self) -> None:
        """Advance by one epoch."""
        if self._by_epoch is not None and self._batches > self._warmup_batches:
            self._by_epoch.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {
            "batches": self._batches,
            "by_batch": self._by_batch and self._by_batch.state_dict(),
            "by_epoch": self._by_epoch and self._by_epoch.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from `state_dict`."""
        self._batches = state["batches"]
        for scheduler, name in (
            (self._by_batch, "by_batch"),
            (self._by_epoch, "by_epoch"),
        ):
            if scheduler is not None:
                scheduler.load_state_dict(state[name])


def _by_epoch(optimizer: Optimizer, config: OptimConfig) -> lr_scheduler.LRScheduler:
    match config.scheduler:
        case "step":
            return lr_scheduler.StepLR(optimizer, config.step_size, config.gamma)
        case "cosine":
            # Whole epochs after the warm-up.
            epochs = max(1, config.epochs - int(config.warmup_epochs))
            return lr_scheduler.CosineAnnealingLR(optimizer, epochs, config.min_lr)
        case "exponential":
            return lr_scheduler.ExponentialLR(optimizer, config.gamma)
    assert config.scheduler == "constant"
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
