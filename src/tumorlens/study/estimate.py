"""How long a study takes: a few timed steps of each network, times its images.

The steps are real ones, on noise; the images of each network are counted in the split
that it would get. Reading the images for the first time is left out, and so are trials
that stop early.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from tumorlens.data.duplicates import find_duplicates
from tumorlens.data.split import fold_splits
from tumorlens.training.dataset import (
    assign_subsets,
    image_limits,
    read_configured_index,
)
from tumorlens.training.devices import (
    make_accelerator,
    place,
    resolve_device,
    resolve_precision,
    traits_of,
    zero_sums,
)
from tumorlens.training.loop import Loss, Step, part_size_of, train_epoch
from tumorlens.training.network import (
    create_model,
    infer,
    needs_model_hub,
)
from tumorlens.training.optim import Schedule, make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tumorlens.config import Config
    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Index, SplitRow
    from tumorlens.study.plan import PlannedTrial, StudyPlan

_WARM_STEPS, _TIMED_STEPS = 1, 2


class _Sizes(NamedTuple):
    train: int
    val: int
    test: int


def estimate_study(
    plan: StudyPlan,
    trials: Sequence[PlannedTrial],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float] | None:
    """Return trial -> seconds on this machine, or `None` if the plan names no data.

    Errors that would end a trial at its start are found: the images are split as the
    trials would split them, and weights files are loaded. Weights of a model hub are
    not fetched.

    Args:
        plan: The plan. Every trial of a search is taken to be like the base.
        trials: The trials of the plan to estimate.
        progress: Called with files done and files in all, in the duplicate search.

    Raises:
        ConfigError: A setting or a weights file does not fit a network.
        DataError: The data cannot be read, or not split in this way.
    """
    data = plan.base.data
    if data.path is None:
        return None
    index = read_configured_index(data)
    duplicates = find_duplicates(index, limits=image_limits(data), progress=progress)
    steps: dict[str, tuple[float, float]] = {}
    sizes: dict[str, list[_Sizes]] = {}
    seconds = {}
    for trial in trials:
        config = plan.config_of(
            trial.settings, protocol=trial.protocol, seed=trial.seed
        )
        kind = repr((config.model, config.train.batch_size, config.train.freeze))
        if kind not in steps:
            steps[kind] = _time_steps(config, num_classes=len(index.classes))
        split = repr((config.data, config.train.seed))
        if split not in sizes:
            sizes[split] = _sizes_of(config, index, duplicates)
        seconds[trial.name] = _seconds_of(config, sizes[split], *steps[kind])
    return seconds


def _sizes_of(config: Config, index: Index, duplicates: Duplicates) -> list[_Sizes]:
    """Return the number of images in each subset, for each network of a trial."""
    data, seed = config.data, config.train.seed
    rows = assign_subsets(index, duplicates, data, seed=seed)
    parts: Sequence[Sequence[SplitRow]] = [rows]
    if data.protocol == "grouped-kfold":
        parts = fold_splits(
            rows, num_folds=data.num_folds, val_fraction=data.val_fraction, seed=seed
        )
    counts = [Counter(row.subset for row in part) for part in parts]
    return [_Sizes(one["train"], one["val"], one["test"]) for one in counts]


def _seconds_of(
    config: Config, sizes: Sequence[_Sizes], train_s: float, infer_s: float
) -> float:
    """Return the seconds of a trial, from those of a training step and an inference.

    Args:
        config: Settings of the trial.
        sizes: Numbers of images, for each of its networks.
        train_s: Seconds per image of a training step.
        infer_s: Seconds per image of an inference.
    """
    seconds = 0.0
    for one in sizes:
        watched = one.val + (one.test if config.train.watch_test else 0)
        per_epoch = one.train * train_s + watched * infer_s
        seconds += config.optim.epochs * per_epoch + one.test * infer_s
    return seconds


def _time_steps(config: Config, *, num_classes: int) -> tuple[float, float]:
    """Return the seconds per image of a training step and of an inference."""
    device = resolve_device(config.train.device)
    settings = config.model
    if needs_model_hub(settings):
        settings = settings.model_copy(update={"pretrained": "no"})
    model, preprocessing = create_model(settings, num_classes=num_classes)
    place(model, device)
    optimizer = make_optimizer(model, config.optim)
    size = preprocessing.size_px
    shape = (config.train.batch_size, config.model.in_chans, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    labels = torch.randint(0, num_classes, shape[:1])

    def train(num_steps: int) -> float:
        start = time.perf_counter()
        train_epoch(
            model,
            [(images, labels)] * num_steps,
            Step(
                prepare_batch=lambda part, of: (
                    part.to(device)
                    .float()
                    .div(255)
                    .contiguous(memory_format=traits_of(device).memory_format),
                    of.to(device),
                ),
                loss_fn=Loss(),
                optimizer=optimizer,
                schedule=Schedule(optimizer, config.optim, batches_per_epoch=100),
                accelerator=make_accelerator(config.train.device),
                use_bf16=resolve_precision(config.train.precision, device) == "bf16",
                part_size=part_size_of(config.train),
            ),
            sums=zero_sums(device),
            frozen=config.train.freeze,
        )
        return time.perf_counter() - start

    def time_inference() -> float:
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

    train(_WARM_STEPS)
    train_s = train(_TIMED_STEPS) / _TIMED_STEPS
    time_inference()
    return train_s / len(images), time_inference() / len(images)
