"""Learning-rate range test: a first value for `optim.lr`.

A copy of the network is trained for some steps while the learning rate grows from very
small to very large. Where the loss falls fastest, the rate is about right; where it
diverges, it is too high. Only the train subset is used, and the network and all random
generators stay unchanged. The result is a place to start, found in a few hundred steps;
the best rate over all epochs is chosen on val.

Source:
    Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section
    3.3 (arXiv:1506.01186), with the exponential growth, the smoothing and the stop at
    four times the best loss that have become usual since.
"""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import BaseModel, ConfigDict, Field

from tumorlens.config import Config
from tumorlens.errors import ConfigError, RunError
from tumorlens.runs.folder import Run
from tumorlens.system import (
    describe_environment,
    keep_freed_memory,
    without_user,
)
from tumorlens.training.checkpoint import get_random_state, set_random_state
from tumorlens.training.dataset import load_subset, make_decoding, prepare_data
from tumorlens.training.devices import (
    make_accelerator,
    naming_missing_operators,
    place,
    resolve_precision,
    zero_sums,
)
from tumorlens.training.loop import (
    Batches,
    Step,
    make_loss,
    part_size_of,
    train_epoch,
)
from tumorlens.training.lr_curve import DIVERGED, LrCurve, fade_of, read_curve, smooth
from tumorlens.training.network import (
    create_model,
    set_trainable,
)
from tumorlens.training.optim import Schedule, make_optimizer
from tumorlens.training.trial import naming_memory, try_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from tumorlens.config import OptimConfig
    from tumorlens.runs.progress import Progress
    from tumorlens.training.loop import Loss, PrepareBatch

MIN_STEPS = 20
"""Fewest steps: with fewer, a descent cannot be told from noise."""


class LrFindResult(BaseModel):
    """`lr_find.json`: the curve, and the training for which it was measured."""

    model_config = ConfigDict(
        frozen=True, serialize_by_alias=True, validate_by_name=True
    )

    format: int = 1
    model: str
    """timm's name of the network."""
    optimizer: str
    batch_size: int
    num_train: int
    """Images in the train subset."""
    lowest: float
    """First learning rate."""
    highest: float
    """Last learning rate, unless the loss diverged before."""
    num_steps: int
    """Planned steps."""
    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    is_diverged: bool
    suggestion: float | None
    tenth_of_minimum: float | None
    summary: str = Field(alias="words")
    settings: Config
    environment: dict[str, Any]


def find_lr(
    config: Config,
    *,
    lowest: float = 1e-7,
    highest: float = 1.0,
    num_steps: int = 100,
    command: str = "",
    progress: Progress | None = None,
) -> LrFindResult:
    """Return the curve for the network, optimizer and batches of some settings.

    The network starts as in a training with these settings, or as in the first fold of
    a k-fold training. `optim.lr` itself has no effect.

    Args:
        config: Settings of the training.
        lowest: First learning rate.
        highest: Last learning rate, unless the loss diverges before.
        num_steps: Number of steps; the batches are repeated as needed.
        command: Command line of the user, for the record.
        progress: Called with files done and files in all while they are read, with
            megabytes while weights are fetched, then with steps.

    Returns:
        The content of `lr_find.json`.

    Raises:
        ConfigError: The bounds are not in order, the steps are too few, or a setting
            does not fit the network.
        DataError: The data cannot be used.
        OutOfMemoryError: The memory is too small for the batches.
        RunError: The loss is not finite before anything was learnt.
    """
    _check_range(lowest, highest, num_steps)
    keep_freed_memory()
    if config.data.protocol == "grouped-kfold" and config.data.fold is None:
        first = config.data.model_copy(update={"fold": 0})
        config = config.model_copy(update={"data": first})
    accelerator = make_accelerator(config.train.device)
    with (
        _same_random_state_after(),
        tempfile.TemporaryDirectory() as folder,
        ExitStack() as memory,
    ):
        # The split is made as a training would make it, and forgotten.
        data = prepare_data(Run(Path(folder), config), progress=progress)
        set_seed(config.train.seed)
        network, preprocessing = create_model(
            config.model, num_classes=len(data.index.classes), progress=progress
        )
        place(network, accelerator.device)
        use_bf16 = (
            resolve_precision(config.train.precision, accelerator.device) == "bf16"
        )
        try_step(
            network,
            config,
            preprocessing,
            num_classes=len(data.index.classes),
            num_images=len(data.subset_rows("train")),
            use_bf16=use_bf16,
        )
        subset = load_subset(
            data,
            "train",
            decoding=make_decoding(config, preprocessing),
            config=config.data,
            progress=progress,
        )
        batches = Batches(subset, config, preprocessing, accelerator)
        batches_of_epochs = map(batches.epoch, itertools.count(1))
        memory.enter_context(naming_memory(config, preprocessing))
        memory.enter_context(naming_missing_operators(accelerator.device))
        curve = sweep(
            network,
            itertools.chain.from_iterable(batches_of_epochs),
            prepare_batch=batches.prepare,
            loss_fn=make_loss(subset, config).to(accelerator.device),
            optim=config.optim,
            accelerator=accelerator,
            lowest=lowest,
            highest=highest,
            num_steps=num_steps,
            use_bf16=use_bf16,
            part_size=part_size_of(config.train),
            frozen=config.train.freeze,
            head_only=config.train.freeze_backbone_epochs >= config.optim.epochs,
            progress=progress,
        )
    return LrFindResult(
        model=config.model.name,
        optimizer=config.optim.name,
        batch_size=config.train.batch_size,
        num_train=len(subset.positions),
        lowest=lowest,
        highest=highest,
        num_steps=num_steps,
        **vars(curve),
        # Paths without the user's name: the file is a result, and no run reads it.
        settings=Config.model_validate_json(without_user(config.model_dump_json())),
        environment=describe_environment(command=command, seed=config.train.seed),
    )


def sweep(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    prepare_batch: PrepareBatch,
    loss_fn: Loss,
    optim: OptimConfig,
    accelerator: Accelerator,
    lowest: float,
    highest: float,
    num_steps: int,
    use_bf16: bool = False,
    part_size: int | None = None,
    frozen: Sequence[str] = (),
    head_only: bool = False,
    progress: Progress | None = None,
) -> LrCurve:
    """Return the loss over a growing learning rate; the model stays unchanged.

    Step k of n has the rate lowest * (highest / lowest) ** (k / (n - 1)). The training
    is `loop.train_epoch` on a deep copy, and the random generators are restored.

    Args:
        model: Returns logits, shape (N, C), on the accelerator's device. Neither its
            weights nor its statistics, gradients or modes are changed.
        batches: As for `train_epoch`. The sweep ends early with fewer than `num_steps`.
        prepare_batch: As in `loop.Step`.
        loss_fn: As in `loop.Step`.
        optim: The optimizer and its settings. Under `layer_decay`, each layer keeps its
            share of the learning rate.
        accelerator: As in `loop.Step`.
        lowest: First learning rate.
        highest: Last learning rate.
        num_steps: Number of rates, the first and the last included.
        use_bf16: As in `loop.Step`.
        part_size: As in `loop.Step`.
        frozen: As for `train_epoch`.
        head_only: As for `train_epoch`.
        progress: Called with steps done and steps in all.

    Raises:
        ConfigError: The bounds are not in order, or the steps are too few.
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
                part_size=part_size,
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
    """Sets the learning rate of each step and records the loss of its batch."""

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
        self.sums = zero_sums(device)
        """Loss, correct predictions and images, to which `train_epoch` adds."""
        self._before = self.sums.clone()
        self._groups = [(group, group["lr"] / lr) for group in optimizer.param_groups]
        self._set_lr()

    def after_batch(self, progress: Progress | None) -> None:
        """Record the loss of a batch from the sums, and set the next rate.

        Raises:
            RunError: The first loss is not finite.
        """
        loss_sum, _, num_images = (self.sums - self._before).tolist()
        loss = loss_sum / num_images
        if not math.isfinite(loss):
            if not self.losses:
                raise RunError(
                    f"the first training loss is {loss}, before the first step",
                    hint="use train.precision=fp32, or other weights",
                )
            # Otherwise `train_epoch` would refuse the mean over the sweep.
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
