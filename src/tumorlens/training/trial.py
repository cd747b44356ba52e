"""One step on a batch of noise, before the images are decoded.

A network that does not take the size of the images, gives no logits, cannot be trained
on single images or needs more memory than there is would otherwise fail after minutes
of decoding, somewhere inside torch or timm. The network itself stays unchanged.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tumorlens.errors import ConfigError, OutOfMemoryError
from tumorlens.system import is_out_of_memory
from tumorlens.training.devices import missing_operator, naming_missing_operators
from tumorlens.training.loop import Loss, part_size_of, part_sizes
from tumorlens.training.network import normalize, set_trainable
from tumorlens.training.weights import pretrained_cfg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tumorlens.config import Config
    from tumorlens.training.network import Preprocessing


def try_step(
    network: nn.Module,
    config: Config,
    preprocessing: Preprocessing,
    *,
    num_classes: int,
    num_images: int,
    use_bf16: bool,
) -> None:
    """Check that a network can be trained on the batches of the settings.

    It takes the largest batch, and a single image where a batch or a part of one has no
    other.

    Args:
        network: The network, on its device. Its weights and statistics stay unchanged;
            its parts are left as `network.set_trainable` sets them.
        config: Settings of the training.
        preprocessing: Preprocessing of the network.
        num_classes: Classes of the data.
        num_images: Images of train that one process sees in an epoch.
        use_bf16: Whether to compute under bf16 autocast.

    Raises:
        ConfigError: The network does not take the images, gives no logits, or cannot be
            trained on a single image, or its device lacks an operation.
        OutOfMemoryError: The memory is too small for the largest batch.
    """
    sizes = _sizes(config, num_images)
    set_trainable(network, frozen=config.train.freeze)
    device = next(network.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    with (
        torch.random.fork_rng(devices, device_type=device.type),
        _same_buffers_after(network),
        naming_memory(config, preprocessing),
        naming_missing_operators(device),
    ):
        for size in sorted({max(sizes), min(sizes)} & {max(sizes), 1}, reverse=True):
            images = noise(size, config.model.in_chans, preprocessing).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16):
                logits = logits_of(network, images, config, num_classes=num_classes)
            labels = torch.arange(size, device=device) % num_classes
            (Loss()(logits.float(), labels) / size).backward()


def logits_of(
    network: nn.Module, images: Tensor, config: Config, *, num_classes: int
) -> Tensor:
    """Return the logits of some images, shape (N, num_classes).

    Raises:
        ConfigError: The network does not take the images, or gives no logits.
        RuntimeError: Memory ran out, or the device lacks an operation.
    """
    name, size_px = config.model.name, images.shape[-1]
    try:
        logits = network(images)
    except Exception as error:
        # The networks of timm raise what they like for a size that they do not take.
        if is_out_of_memory(error) or missing_operator(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if network.training and len(images) == 1:
            raise ConfigError(
                f"{name} cannot be trained on a single image of {size_px} x {size_px} "
                f"pixels: {reason}",
                hint="batch norm needs several values per channel: raise "
                "train.batch_size or lower train.accumulate until each part of a batch "
                "has two images",
            ) from None
        own = pretrained_cfg(network).get("input_size", (3, size_px, size_px))[-1]
        raise ConfigError(
            f"{name} does not take images of {size_px} x {size_px} pixels: {reason}",
            hint=f"set model.size_px={own}, its own size"
            + (f", or model.extra.img_size={size_px}" if "size" in reason else "")
            if own != size_px
            else "change model.size_px or model.name",
        ) from None
    if not isinstance(logits, Tensor) or logits.shape != (len(images), num_classes):
        shape = getattr(logits, "shape", None)
        got = tuple(shape) if shape is not None else f"a {type(logits).__name__}"
        raise ConfigError(
            f"expected {num_classes} logits per image from {name}, of shape "
            f"{(len(images), num_classes)}, got {got}",
            hint="remove model.global_pool and model.extra, or choose another "
            "model.name",
        )
    return logits


def noise(num_images: int, in_chans: int, preprocessing: Preprocessing) -> Tensor:
    """Return normalized images of noise, shape (N, C, S, S)."""
    size = preprocessing.size_px
    images = torch.randint(0, 256, (num_images, in_chans, size, size))
    return normalize(
        images.to(torch.uint8), mean=preprocessing.mean, std=preprocessing.std
    )


@contextmanager
def naming_memory(config: Config, preprocessing: Preprocessing) -> Iterator[None]:
    """Name the settings to change where memory runs out.

    Raises:
        MemoryError: Never; it becomes the next.
        OutOfMemoryError: It did.
        RuntimeError: One of another kind.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        batch_size, parts = config.train.batch_size, config.train.accumulate
        size = preprocessing.size_px
        split = f" in {parts} parts" if parts > 1 else ""
        raise OutOfMemoryError(
            f"memory ran out: {config.model.name} with a batch of {batch_size} images "
            f"of {size} x {size} pixels{split}",
            hint=f"split the batch with train.accumulate={2 * parts}, or "
            * (2 * parts <= batch_size)
            + "lower train.batch_size or model.size_px",
        ) from None


@contextmanager
def _same_buffers_after(network: nn.Module) -> Iterator[None]:
    """Put statistics back, and drop gradients."""
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])


def _sizes(config: Config, num_images: int) -> list[int]:
    """Return the numbers of images that go through the network together."""
    batch_size = config.train.batch_size
    full, rest = divmod(num_images, batch_size)
    batches = [batch_size] * min(full, 1) + [rest] * (rest > 0)
    if full and rest == 1:
        batches.pop()  # left for another epoch, as `loading.train_batches` does
    part_size = part_size_of(config.train)
    return [size for batch in batches for size in part_sizes(batch, part_size)]
