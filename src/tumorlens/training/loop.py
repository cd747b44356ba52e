"""One pass over the training images: the loop, to be read from top to bottom.

`train_epoch` and `models.infer` are the only two passes over data in the package.
There are no hooks: what differs between settings comes in as a function or a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tumorlens.errors import RunError
from tumorlens.training.network import set_trainable

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from tumorlens.training.optim import Schedule

PrepareBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EpochStats:
    """What one pass over the training subset produced."""

    loss: float
    """Mean loss over images, not over batches."""
    accuracy: float
    """Share of the augmented images that were predicted right, while learning. Under
    mixup and cutmix the heavier of the two labels counts as the right one."""
    num_images: int
    is_complete: bool
    """False when it was interrupted."""


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    sums: Tensor,
    prepare_batch: PrepareBatch,
    loss_fn: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    accelerator: Accelerator,
    use_bf16: bool,
    max_grad_norm: float | None = None,
    num_parts: int = 1,
    frozen: Sequence[str] = (),
    head_only: bool = False,
    after_batch: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpochStats:
    """Take one optimizer step per batch, for one pass over `batches`.

    Args:
        model: Returns logits, shape (N, C).
        batches: Pairs of decoded images (N, C, S, S), uint8, and labels (N,), int64.
        sums: Loss, right predictions and images of the batches of this epoch that came
            before an interrupt, shape (3,), float64. Added to in place.
        prepare_batch: Gives what the network takes, float32, and the targets: labels,
            or class probabilities (N, C) after mixing.
        loss_fn: Returns the mean loss over the images of a batch.
        optimizer: Holds the parameters of `model`.
        schedule: Moved on after each batch, after the optimizer.
        accelerator: Runs the backward pass, and adds up over processes.
        use_bf16: Whether to compute under bf16 autocast.
        max_grad_norm: The gradient is scaled down to this L2 norm if it is longer.
        num_parts: Parts into which a batch is split on its way through the network, to
            save memory. Their gradients add up to that of the batch; only batch norm
            sees the parts.
        frozen: Names of submodules that do not learn, see `models.set_trainable`.
        head_only: Train the last layer only.
        after_batch: Called after each step.
        should_stop: Asked after each batch.

    Returns:
        Mean loss and accuracy, of all processes together.

    Raises:
        RunError: The mean loss is not finite, so the weights are spoilt. The
            checkpoint of the epoch before is still on disk.
    """
    network = accelerator.unwrap_model(model)
    set_trainable(network, frozen=frozen, head_only=head_only)
    is_complete = True
    for decoded, numbers in batches:
        images, targets = prepare_batch(decoded, numbers)
        optimizer.zero_grad(set_to_none=True)
        parts = zip(images.chunk(num_parts), targets.chunk(num_parts), strict=True)
        for part, part_targets in parts:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=use_bf16):
                logits = model(part).float()  # (N, C)
            loss = loss_fn(logits, part_targets)
            accelerator.backward(loss * (len(part) / len(images)))
            # Summed on the device, weighted by the number of images: reading a value
            # here would wait for a GPU, and the last batch can be short.
            labels = part_targets if targets.ndim == 1 else part_targets.argmax(1)
            correct = (logits.detach().argmax(1) == labels).sum()
            sums[:2] += torch.stack([loss.detach() * len(part), correct]).double()
            sums[2] += len(part)
        if max_grad_norm is not None:
            accelerator.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        schedule.after_batch()
        after_batch()
        if should_stop():
            is_complete = False
            break

    total = accelerator.reduce(sums.clone(), reduction="sum").tolist()
    loss_sum, num_correct, num_images = total
    mean_loss = loss_sum / num_images
    if not math.isfinite(mean_loss):
        raise RunError(
            f"the mean training loss is {mean_loss}: the training has diverged",
            hint="lower optim.lr, set optim.clip_grad_norm=1.0 or use "
            "train.precision=fp32; the checkpoint of the epoch before is kept",
        )
    return EpochStats(mean_loss, num_correct / num_images, int(num_images), is_complete)
