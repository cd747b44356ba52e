"""The training loop: batches, loss, and one pass over the training images.

`train_epoch` and `network.infer` are the only two passes over data in the package.
There are no hooks: settings come in as functions and values, grouped in a `Step`.
Augmentation of single images is `tumorlens.training.augment`; mixing and erasing need a
whole batch and are here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from tumorlens.errors import RunError
from tumorlens.training.augment import make_policy
from tumorlens.training.devices import traits_of
from tumorlens.training.loading import TrainImages, train_batches
from tumorlens.training.network import Preprocessing, normalize, set_trainable

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from tumorlens.config import Config, TrainConfig
    from tumorlens.training.dataset import Subset
    from tumorlens.training.optim import Schedule

DIVERGED_HINT = (
    "lower optim.lr, set optim.clip_grad_norm=1.0 or use train.precision=fp32; the "
    "checkpoint of the epoch before is kept"
)
_CHECK_BATCHES = 20
"""Batches between two looks at the loss, each of which waits for a GPU."""

PrepareBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Step:
    """The parts of an optimizer step, from a batch to changed weights."""

    prepare_batch: PrepareBatch
    """Maps decoded images (N, C, S, S), uint8, and labels (N,) to the network's input,
    float32, and targets: labels, or class probabilities (N, C) after mixing."""
    loss_fn: Loss
    """The loss, and the weights of images in it."""
    optimizer: Optimizer
    """Holds the parameters of the model."""
    schedule: Schedule
    """Stepped after each batch, after the optimizer."""
    accelerator: Accelerator
    """Runs the backward pass, and adds up over processes."""
    use_bf16: bool
    """Whether to compute under bf16 autocast."""
    max_grad_norm: float | None = None
    """Largest L2 norm of the gradient; a longer one is scaled down to it."""
    part_size: int | None = None
    """Images that go through the network together, to save memory; `None` for whole
    batches. The gradients of the parts add up to that of the batch; only batch norm
    sees the parts."""


class Loss(nn.Module):
    """Cross-entropy with label smoothing and class weights, as a sum over images.

    The loss of a batch is the sum over its images divided by the sum of their weights,
    however the batch is split into parts. An image with class probabilities q as its
    target has the weight sum(w * q) over the classes, which is the weight of its class
    for a plain label.
    """

    def __init__(
        self, class_weights: Tensor | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the weighted losses.

        Args:
            logits: Shape (N, C), float32.
            targets: Labels (N,), int64, or class probabilities (N, C).
        """
        return nn.functional.cross_entropy(
            logits,
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def total_weight(self, targets: Tensor) -> Tensor | float:
        """Return the sum of the images' weights; without class weights, their number.

        Args:
            targets: As for `forward`.
        """
        if self.class_weights is None:
            return float(len(targets))
        if targets.ndim == 1:
            return self.class_weights[targets].sum()
        return (targets @ self.class_weights).sum()


@dataclass(frozen=True)
class EpochStats:
    """Result of one pass over the training subset."""

    loss: float
    """Mean loss over images, not over batches."""
    accuracy: float
    """Accuracy on the augmented images while the network learns. Under mixup and cutmix
    the heavier of the two labels counts as the right one."""
    num_images: int
    is_complete: bool
    """False when it was interrupted."""


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    step: Step,
    *,
    sums: Tensor,
    frozen: Sequence[str] = (),
    head_only: bool = False,
    after_batch: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpochStats:
    """Take one optimizer step per batch, for one pass over `batches`.

    Args:
        model: Returns logits, shape (N, C).
        batches: Pairs of decoded images (N, C, S, S), uint8, and labels (N,), int64.
        step: The parts of an optimizer step.
        sums: Loss, correct predictions and images of this epoch's batches before an
            interrupt, as from `devices.zero_sums`. Added to in place.
        frozen: Names of submodules that do not learn, see `network.set_trainable`.
        head_only: Whether only the last layer is trained.
        after_batch: Called after each step.
        should_stop: Called after each batch; true ends the pass early.

    Returns:
        Mean loss and accuracy over all processes.

    Raises:
        RunError: The loss is not finite, so the weights are spoilt. The checkpoint of
            the epoch before is still on disk.
    """
    accelerator, optimizer = step.accelerator, step.optimizer
    network = accelerator.unwrap_model(model)
    set_trainable(network, frozen=frozen, head_only=head_only)
    is_complete = True
    for number, (decoded, labels) in enumerate(batches, start=1):
        images, targets = step.prepare_batch(decoded, labels)
        device = images.device.type
        optimizer.zero_grad(set_to_none=True)
        weight = _weight_of_batch(step, targets)
        sizes = part_sizes(len(images), step.part_size)
        for part, part_targets in zip(
            torch.split(images, sizes), torch.split(targets, sizes), strict=True
        ):
            with torch.autocast(device, torch.bfloat16, enabled=step.use_bf16):
                logits = model(part).float()  # (N, C)
            loss = step.loss_fn(logits, part_targets) / weight
            accelerator.backward(loss)
            # Summed on the device, weighted by the number of images: reading a value
            # here would wait for a GPU, and the last batch can be short.
            hard = part_targets if targets.ndim == 1 else part_targets.argmax(1)
            correct = (logits.detach().argmax(1) == hard).sum()
            sums[:2] += torch.stack([loss.detach() * len(images), correct]).to(sums)
            sums[2] += len(part)
        if step.max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), step.max_grad_norm)
        optimizer.step()
        step.schedule.after_batch()
        after_batch()
        if number % _CHECK_BATCHES == 0 and accelerator.num_processes == 1:
            check_loss(float(sums[0]))
        if should_stop():
            is_complete = False
            break

    total = accelerator.reduce(sums.clone(), reduction="sum").tolist()
    loss_sum, num_correct, num_images = total
    mean_loss = loss_sum / num_images
    check_loss(mean_loss)
    return EpochStats(mean_loss, num_correct / num_images, int(num_images), is_complete)


def part_sizes(num_images: int, part_size: int | None) -> list[int]:
    """Return the numbers of images that go through the network together.

    Batch norm may have no variance over a single image, so that one left over joins the
    part before it.

    Args:
        num_images: Images of the batch.
        part_size: Largest number, apart from that; `None` for the whole batch.

    Example:
        >>> part_sizes(8, None), part_sizes(8, 3), part_sizes(7, 3), part_sizes(2, 1)
        ([8], [3, 3, 2], [3, 4], [1, 1])
    """
    if part_size is None or num_images <= part_size:
        return [num_images]
    sizes = [part_size] * (num_images // part_size)
    if rest := num_images % part_size:
        sizes.append(rest)
    if len(sizes) > 1 and sizes[-1] == 1 < part_size:
        sizes[-2:] = [part_size + 1]
    return sizes


def part_size_of(train: TrainConfig) -> int | None:
    """Return the `Step.part_size` of `train.accumulate` for full batches."""
    if train.accumulate == 1:
        return None
    return math.ceil(train.batch_size / train.accumulate)


def check_loss(loss: float) -> None:
    """Check a loss, or a sum of losses.

    Raises:
        RunError: It is not finite.
    """
    if not math.isfinite(loss):
        raise RunError(
            f"the mean training loss is {loss}: the training has diverged",
            hint=DIVERGED_HINT,
        )


def _weight_of_batch(step: Step, targets: Tensor) -> Tensor | float:
    """Return what the loss of a batch is divided by.

    Several processes average their gradients: each divides by the mean of all weights,
    so that an image counts the same in each of them.
    """
    weight = step.loss_fn.total_weight(targets)
    if isinstance(weight, Tensor) and step.accelerator.num_processes > 1:
        return cast("Tensor", step.accelerator.reduce(weight, reduction="mean"))
    return weight  # a number of images, which is the same in all


class Batches:
    """The batches of each epoch, and their preparation on the device."""

    def __init__(
        self,
        subset: Subset,
        config: Config,
        preprocessing: Preprocessing,
        accelerator: Accelerator,
    ) -> None:
        self._images = TrainImages(
            subset.images,
            subset.positions,
            subset.labels.tolist(),
            make_policy(config.augment, size_px=preprocessing.size_px),
        )
        self._config = config
        self._preprocessing = preprocessing
        self._accelerator = accelerator
        self.per_epoch = len(self.epoch(1))
        augment = config.augment
        self._mixup = (
            Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_probability,
                label_smoothing=0.0,  # the loss smooths
                num_classes=len(np.unique(subset.labels)),
            )
            if augment.mixup or augment.cutmix
            else None
        )
        self._erasing = (
            RandomErasing(augment.random_erasing, device=str(accelerator.device))
            if augment.random_erasing
            else None
        )

    def epoch(self, number: int, *, first: int = 0) -> Any:
        """Return the batches of epoch `number`, from batch `first` on."""
        train = self._config.train
        return train_batches(
            self._images,
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=number,
            balanced=train.sampler == "balanced",
            first_batch=first,
            rank=self._accelerator.process_index,
            num_ranks=self._accelerator.num_processes,
            workers=train.workers,
            pin_memory=traits_of(self._accelerator.device).is_pinned,
        )

    def prepare(self, decoded: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalized, erased and mixed images and their targets."""
        device = self._accelerator.device
        is_pinned = traits_of(device).is_pinned
        images = normalize(
            decoded.to(device, non_blocking=is_pinned),
            mean=self._preprocessing.mean,
            std=self._preprocessing.std,
        )
        targets = labels.to(device, non_blocking=is_pinned)
        if self._erasing is not None:
            images = self._erasing(images)
        return self._mixed(images, targets) if self._mixup else (images, targets)

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets (N, C); the last of an odd number stays."""
        assert self._mixup is not None
        if len(images) % 2 == 0:
            mixed, targets = self._mixup(images, labels)
            return mixed, targets
        even = len(images) - 1
        mixed, targets = self._mixup(images[:even], labels[:even])
        plain = nn.functional.one_hot(labels[even:], targets.shape[1])
        return torch.cat([mixed, images[even:]]), torch.cat(
            [targets, plain.to(targets)]
        )


def make_loss(subset: Subset, config: Config) -> Loss:
    """Return the cross-entropy with the smoothing and class weights of the settings.

    The weight of a class with n images is (1 / n) ** p, with p = 0.5 for 'sqrt' and 1
    for 'balanced', scaled so that the mean over the images is 1.
    """
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[config.train.class_weights]
    counts = np.bincount(subset.labels)
    weights = (1 / counts) ** power  # (C,)
    weights /= (weights * counts).sum() / counts.sum()
    return Loss(
        torch.tensor(weights, dtype=torch.float32) if power else None,
        label_smoothing=config.train.label_smoothing,
    )
