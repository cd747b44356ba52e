"""A learning-rate range test: which `optim.lr` is worth trying first.

A copy of the network is trained for some steps while the learning rate grows from very
small to very large. Where the loss falls fastest, the rate is about right; where it
blows up, it is too high. Only the train subset is used, and the network and all random
generators are left as they were. What a newcomer would get wrong: the answer is a
place to start, found in a few hundred steps, and not a measurement; what is best after
all epochs is for val to say.

Source:
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section
    3.3 (arXiv:1506.01186), with the exponential growth, the smoothing and the stop at
    four times the best loss that are usual since.
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from tumorlens.errors import ConfigError, RunError
from tumorlens.runs.folder import Run
from tumorlens.system import describe_environment, keep_freed_memory
from tumorlens.training.checkpoint import get_random_state, set_random_state
from tumorlens.training.dataset import image_limits, load_subset, prepare_data
from tumorlens.training.loading import Decoding
from tumorlens.training.loop import Batches, Step, make_loss, train_epoch
from tumorlens.training.lr_curve import DIVERGED, LrCurve, fade_of, read_curve, smooth
from tumorlens.training.network import (
    create_model,
    resolve_device,
    resolve_precision,
    set_trainable,
)
from tumorlens.training.optim import Schedule, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tumorlens.config import Config, OptimConfig
    from tumorlens.training.loop import PrepareBatch

    Progress = Callable[[int, int], None]

FORMAT = 1
"""Number of the layout of `lr_find.json`."""

MIN_STEPS = 20
"""Fewer steps are too far apart to tell a descent from noise."""


def find_lr(
    config: Config,
    *,
    lowest: float = 1e-7,
    highest: float = 1.0,
    num_steps: int = 100,
    command: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the curve for the network, optimizer and batches of some settings.

    The network starts as in a training with these settings; of a k-fold one, as in its
    first fold. `optim.lr` itself has no effect.

    Args:
        config: The settings of the training to come.
        lowest: First learning rate.
        highest: Last one, unless the loss diverges before.
        num_steps: Steps between them; the batches are gone through again as needed.
        command: What the user typed, for the record.
        progress: Called with files done and files in all while they are read, then
            with steps.

    Returns:
        The content of `lr_find.json`.

    Raises:
        ConfigError: The bounds are no range, the steps are too few, or a setting does
            not fit the network.
        DataError: The data cannot be used.
        RunError: The loss is not finite before anything was learnt.
    """
    _check_range(lowest, highest, num_steps)
    keep_freed_memory()
    if config.data.protocol == "grouped-kfold" and config.data.fold is None:
        first = config.data.model_copy(update={"fold": 0})
        config = config.model_copy(update={"data": first})
    accelerator = Accelerator(cpu=resolve_device(config.train.device).type == "cpu")
    with _same_random_state_after(), tempfile.TemporaryDirectory() as folder:
        # The split is made as a training would make it, and forgotten.
        data = prepare_data(Run(Path(folder), config), progress=progress)
        set_seed(config.train.seed)
        network, preprocessing = create_model(
            config.model, num_classes=len(data.index.classes)
        )
        decoding = Decoding(
            preprocessing.size_px,
            config.data.fit,
            config.model.in_chans,
            image_limits(config.data),
        )
        subset = load_subset(
            data, "train", decoding=decoding, config=config.data, progress=progress
        )
        network.to(accelerator.device).to(memory_format=torch.channels_last)
        batches = Batches(subset, config, preprocessing, accelerator)
        precision = resolve_precision(config.train.precision, accelerator.device)
        curve = sweep(
            network,
            (batch for epoch in itertools.count(1) for batch in batches.epoch(epoch)),
            prepare_batch=batches.prepare,
            loss_fn=make_loss(subset, config).to(accelerator.device),
            optim=config.optim,
            accelerator=accelerator,
            lowest=lowest,
            highest=highest,
            num_steps=num_steps,
            use_bf16=precision == "bf16",
            num_parts=config.train.accumulate,
            frozen=config.train.freeze,
            head_only=config.train.freeze_backbone_epochs >= config.optim.epochs,
            progress=progress,
        )
    return {
        "format": FORMAT,
        "model": config.model.name,
        "optimizer": config.optim.name,
        "batch_size": config.train.batch_size,
        "num_train": len(subset.positions),
        "lowest": lowest,
        "highest": highest,
        "num_steps": num_steps,
        **{name: _as_json(value) for name, value in vars(curve).items()},
        "settings": config.model_dump(mode="json"),
        "environment": describe_environment(command=command, seed=config.train.seed),
    }


def sweep(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    prepare_batch: PrepareBatch,
    loss_fn: nn.Module,
    optim: OptimConfig,
    accelerator: Accelerator,
    lowest: float,
    highest: float,
    num_steps: int,
    use_bf16: bool = False,
    num_parts: int = 1,
    frozen: Sequence[str] = (),
    head_only: bool = False,
    progress: Progress | None = None,
) -> LrCurve:
    """Return the loss over a growing learning rate, without a trace in the model.

    Step k of n has the rate lowest * (highest / lowest) ** (k / (n - 1)). The training
    is `loop.train_epoch`, on a deep copy, and the random generators are put back.

    Args:
        model: Returns logits, shape (N, C), on the accelerator's device. Neither its
            weights nor its statistics, gradients or modes are changed.
        batches: As for `train_epoch`; at least `num_steps` of them, or the sweep ends
            early.
        prepare_batch: As for `train_epoch`.
        loss_fn: As for `train_epoch`.
        optim: Names the optimizer and its settings. A part whose rate is a share of
            `lr`, under `layer_decay`, keeps that share.
        accelerator: As for `train_epoch`.
        lowest: First learning rate.
        highest: Last one.
        num_steps: How many, the first and the last included.
        use_bf16: As for `train_epoch`.
        num_parts: As for `train_epoch`.
        frozen: As for `train_epoch`.
        head_only: As for `train_epoch`.
        progress: Called with steps done and steps in all.

    Raises:
        ConfigError: The bounds are no range, or the steps are too few.
        RunError: The first loss is not finite.
    """
    _check_range(lowest, highest, num_steps)
    with _same_random_state_after():
        network = copy.deepcopy(model)
        set_trainable(network, frozen=frozen)
        optimizer = make_optimizer(network, optim)
        lrs = np.geomspace(lowest, highest, num_steps).tolist()
        ramp = _Ramp(optimizer, optim.lr, lrs, accelerator.device)
        train_epoch(
            network,
            itertools.islice(batches, num_steps),
            Step(
                prepare_batch=prepare_batch,
                loss_fn=loss_fn,
                optimizer=optimizer,
                # The ramp alone moves the learning rate.
                schedule=Schedule(
                    optimizer,
                    optim.model_copy(
                        update={"scheduler": "constant", "warmup_epochs": 0}
                    ),
                    batches_per_epoch=num_steps,
                ),
                accelerator=accelerator,
                use_bf16=use_bf16,
                max_grad_norm=optim.clip_grad_norm,
                num_parts=num_parts,
            ),
            sums=ramp.sums,
            frozen=frozen,
            head_only=head_only,
            after_batch=lambda: ramp.after_batch(progress),
            should_stop=lambda: ramp.is_diverged,
        )
    return read_curve(
        ramp.lrs[: len(ramp.losses)],
        ramp.losses,
        num_steps=num_steps,
        is_diverged=ramp.is_diverged,
    )


class _Ramp:
    """Sets the learning rate of each step and notes the loss of its batch."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr: float,
        lrs: Sequence[float],
        device: torch.device,
    ) -> None:
        self.lrs = lrs
        self.losses: list[float] = []
        self.is_diverged = False
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        """What `train_epoch` adds to."""
        self._before = self.sums.clone()
        self._groups = [(group, group["lr"] / lr) for group in optimizer.param_groups]
        self._set_lr()

    def after_batch(self, progress: Progress | None) -> None:
        """Take the loss of a batch out of the sums, and go on to the next rate.

        Raises:
            RunError: The first loss is not finite.
        """
        loss_sum, _, num_images = (self.sums - self._before).tolist()
        loss = loss_sum / num_images
        if not math.isfinite(loss):
            if not self.losses:
                raise RunError(
                    f"the first training loss is {loss}, before anything was learnt",
                    hint="use train.precision=fp32, or other weights",
                )
            # Else the mean over the sweep would be refused as that of a training.
            self.sums.copy_(self._before)
            self.is_diverged = True
            return
        self._before = self.sums.clone()
        self.losses.append(loss)
        smoothed = smooth(self.losses, fade=fade_of(len(self.lrs)))
        self.is_diverged = bool(smoothed[-1] > DIVERGED * smoothed.min())
        if progress is not None:
            progress(len(self.losses), len(self.lrs))
        if len(self.losses) < len(self.lrs):
            self._set_lr()

    def _set_lr(self) -> None:
        for group, share in self._groups:
            group["lr"] = self.lrs[len(self.losses)] * share


@contextmanager
def _same_random_state_after() -> Iterator[None]:
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _check_range(lowest: float, highest: float, num_steps: int) -> None:
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(
            f"expected 0 < lowest < highest, got {lowest:g} and {highest:g}",
            hint="for example --lowest 1e-7 --highest 1",
        )
    if num_steps < MIN_STEPS:
        raise ConfigError(
            f"expected at least {MIN_STEPS} steps, got {num_steps}",
            hint="100 is a good number: --steps 100",
        )


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
