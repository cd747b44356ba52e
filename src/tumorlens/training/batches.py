"""What the training loop is fed: batches on the device, mixed and erased, and the loss.

Augmentation of single images is `tumorlens.training.augment`; here is what needs a
whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn

from tumorlens.training.augment import make_policy
from tumorlens.training.loading import TrainImages, train_batches
from tumorlens.training.network import Preprocessing, normalize

if TYPE_CHECKING:
    from accelerate import Accelerator

    from tumorlens.config import Config
    from tumorlens.training.dataset import Subset


class Batches:
    """The batches of each epoch, and what is done to one on the device."""

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
        self.per_epoch = len(self.of(1))
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

    def of(self, epoch: int, *, first: int = 0) -> Any:
        """Return the batches of an epoch, from number `first` on."""
        train = self._config.train
        return train_batches(
            self._images,
            batch_size=train.batch_size,
            seed=train.seed,
            epoch=epoch,
            balanced=train.sampler == "balanced",
            first_batch=first,
            rank=self._accelerator.process_index,
            num_ranks=self._accelerator.num_processes,
            workers=train.workers,
            pin_memory=self._accelerator.device.type == "cuda",
        )

    def prepare(self, decoded: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalized, erased and mixed images and their targets."""
        device = self._accelerator.device
        images = normalize(
            decoded.to(device, non_blocking=True),
            mean=self._preprocessing.mean,
            std=self._preprocessing.std,
        )
        targets = labels.to(device, non_blocking=True)
        if self._erasing is not None:
            images = self._erasing(images)
        # timm mixes pairs: a last batch of an odd size stays as it is.
        if self._mixup is not None and len(images) % 2 == 0:
            images, targets = self._mixup(images, targets)
        return images, targets


def make_loss(subset: Subset, config: Config) -> nn.Module:
    """Return the cross-entropy with the smoothing and class weights of the settings.

    The weight of a class with n images is (1 / n) ** p, with p = 0.5 for 'sqrt' and 1
    for 'balanced', scaled so that the mean over the images is 1: the learning rate then
    means the same with and without.
    """
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[config.train.class_weights]
    counts = np.bincount(subset.labels)
    weights = (1 / counts) ** power  # (C,)
    weights /= (weights * counts).sum() / counts.sum()
    return nn.CrossEntropyLoss(
        weight=torch.tensor(weights, dtype=torch.float32) if power else None,
        label_smoothing=config.train.label_smoothing,
    )
