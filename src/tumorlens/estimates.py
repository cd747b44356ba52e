"""How long a study may take: a few timed steps of each network, times its images.

The steps are real ones on noise, so nothing is decoded and no weights are needed. What
is left out: reading the images for the first time, and trials that stop early.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import nn

from tumorlens.index import read_index
from tumorlens.loop import train_epoch
from tumorlens.models import create_model, infer, resolve_device, resolve_precision
from tumorlens.optim import Schedule, make_optimizer

if TYPE_CHECKING:
    from tumorlens.config import Config
    from tumorlens.index import Index
    from tumorlens.study_plan import PlannedTrial, StudyPlan

_WARM_STEPS, _TIMED_STEPS = 1, 2


def estimate_study(plan: StudyPlan) -> dict[str, float] | None:
    """Return trial -> seconds on this machine, or `None` where no data was named.

    Args:
        plan: Of a search, every trial is taken to be like the base.

    Raises:
        ConfigError: A setting does not fit a network.
        DataError: The data cannot be read.
    """
    if plan.base.data.path is None:
        return None
    index = read_index(Path(plan.base.data.path), metadata=plan.base.data.metadata)
    steps: dict[str, tuple[float, float]] = {}
    seconds = {}
    for trial in plan.trials():
        config = plan.config_of(
            trial.settings, protocol=trial.protocol, seed=trial.seed
        )
        kind = repr((config.model, config.train.batch_size, config.train.freeze))
        if kind not in steps:
            steps[kind] = _time_steps(config, num_classes=len(index.classes))
        seconds[trial.name] = _seconds_of(trial, config, index, *steps[kind])
    return seconds


def _seconds_of(
    trial: PlannedTrial, config: Config, index: Index, train: float, look: float
) -> float:
    """Return the seconds of a trial from those of an image learnt and looked at."""
    num_files = len(index.records)
    data = config.data
    if trial.protocol == "as-given":
        num_test = sum(record.subset == "test" for record in index.records)
        num_rest, folds = num_files - num_test, 1
    elif trial.protocol == "grouped":
        num_rest, folds = round(num_files * (1 - data.test_fraction)), 1
    else:
        num_rest, folds = round(num_files * (1 - 1 / data.num_folds)), data.num_folds
    num_val = round(num_rest * data.val_fraction)
    per_epoch = (num_rest - num_val) * train + num_val * look
    if config.train.watch_test:
        per_epoch += (num_files - num_rest) * look
    return folds * (config.optim.epochs * per_epoch + (num_files - num_rest) * look)


def _time_steps(config: Config, *, num_classes: int) -> tuple[float, float]:
    """Return the seconds that one image takes to learn and to look at."""
    device = resolve_device(config.train.device)
    random = config.model.model_copy(update={"pretrained": "no"})
    model, preprocessing = create_model(random, num_classes=num_classes)
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, config.optim)
    size = preprocessing.size_px
    shape = (config.train.batch_size, config.model.in_chans, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.randint(0, num_classes, shape[:1])

    def learn(num_steps: int) -> float:
        start = time.perf_counter()
        train_epoch(
            model,
            [(images, labels)] * num_steps,
            sums=torch.zeros(3, dtype=torch.float64, device=device),
            prepare_batch=lambda part, of: (
                part.to(device)
                .float()
                .div(255)
                .contiguous(memory_format=torch.channels_last),
                of.to(device),
            ),
            loss_fn=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            schedule=Schedule(optimizer, config.optim, batches_per_epoch=100),
            accelerator=Accelerator(cpu=device.type == "cpu"),
            use_bf16=resolve_precision(config.train.precision, device) == "bf16",
            num_parts=config.train.accumulate,
            frozen=config.train.freeze,
        )
        return time.perf_counter() - start

    def look() -> float:
        start = time.perf_counter()
        infer(
            model,
            [images],
            mean=preprocessing.mean,
            std=preprocessing.std,
            device=device,
            mirror=config.model.mirror,
        )
        return time.perf_counter() - start

    learn(_WARM_STEPS)
    train = learn(_TIMED_STEPS) / _TIMED_STEPS
    look()
    return train / len(images), look() / len(images)
