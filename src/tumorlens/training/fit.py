"""Training: settings and data become a run folder.

`train` prepares the run folder and its folds, `fit` trains one network, and
`tumorlens.training.loop.train_epoch` takes one pass over the images. There is
no system of hooks: a `Listener` receives events, and changes nothing. The epoch whose
weights are kept is chosen on val. The test subset is never used, except under
`train.watch_test`, which records its measures and chooses nothing by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list, set_seed
from timm.utils import ModelEmaV3
from torch import nn

from tumorlens.config import (
    Config,
    absolute_paths,
    differences,
    machine_settings,
)
from tumorlens.data.index import check_outside, patient_note
from tumorlens.data.seen import is_seen, read_seen
from tumorlens.data.sets import sets_of
from tumorlens.data.split import count_left_out
from tumorlens.errors import ConfigError, RunError
from tumorlens.files import locked
from tumorlens.runs.folder import Run, check_free, create_run, open_run
from tumorlens.runs.progress import Listener
from tumorlens.stats import metrics
from tumorlens.system import describe_environment, interruptible, keep_freed_memory
from tumorlens.training.checkpoint import TrainState, get_random_state
from tumorlens.training.dataset import (
    PreparedData,
    Subset,
    load_subset,
    make_decoding,
    prepare_data,
    rows_of_fold,
)
from tumorlens.training.devices import (
    make_accelerator,
    naming_missing_operators,
    place,
    resolve_precision,
    zero_sums,
)
from tumorlens.training.loading import plain_batches
from tumorlens.training.loop import (
    DIVERGED_HINT,
    Batches,
    EpochStats,
    Step,
    make_loss,
    part_size_of,
    train_epoch,
)
from tumorlens.training.network import (
    Preprocessing,
    create_model,
    infer,
    make_card,
    needs_model_hub,
    set_trainable,
)
from tumorlens.training.optim import Schedule, idle_words, make_optimizer
from tumorlens.training.trial import naming_memory, try_step
from tumorlens.training.weights import find_spoilt, weights_as_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a training."""

    run: Run
    is_finished: bool
    """False when it was interrupted; `--resume` continues it."""
    left_out: Mapping[str, int]
    """Reason, as in `count_left_out` -> number of files left out of all subsets."""
    is_main_process: bool = True
    """False in all processes of torchrun but the first."""
    best: dict[str, Any] | None = None
    """The history row of the kept weights; `None` for a k-fold run."""


def train(
    config: Config | None,
    *,
    out: Path,
    resume: bool = False,
    command: str = "",
    listener: Listener | None = None,
) -> TrainResult:
    """Train one network, or one per fold, and leave a run folder.

    Args:
        config: The settings. With `resume` they may be `None`, for those of the run, or
            differ from them in what belongs to the machine: the place of the images,
            which must be the same, the cache, the device.
        out: The run folder. It must not exist, unless `resume`.
        resume: Whether to continue an interrupted run. The weights of a finished one
            stay unchanged.
        command: Command line of the user, for the record.
        listener: Receives the progress.

    Returns:
        The outcome. An interrupt (Ctrl-C) ends the training after the current batch,
        and nothing is lost.

    Raises:
        ConfigError: A setting does not fit the data or the network.
        DataError: The data cannot be used, `out` is inside its folder, or the disk is
            full.
        OutOfMemoryError: The memory is too small for the batches.
        RunError: `out` exists, or cannot be resumed, or another process trains in it,
            or the loss or the weights are not finite.
    """
    listener = listener or Listener()
    keep_freed_memory()
    if resume:
        config = _settings_to_resume(open_run(out), config)
    assert config is not None
    if not resume:
        _check_start(config, out)
    config = absolute_paths(config)
    accelerator = _make_accelerator(config)
    if not accelerator.is_main_process:
        listener = Listener()
    # Two processes in one folder would mix their epochs and checkpoints.
    with locked(out) if accelerator.is_main_process else nullcontext():
        return _train(
            config,
            out,
            accelerator,
            resume=resume,
            command=command,
            listener=listener,
        )


def _train(
    config: Config,
    out: Path,
    accelerator: Accelerator,
    *,
    resume: bool,
    command: str,
    listener: Listener,
) -> TrainResult:
    is_ours_to_remove = False
    try:
        # Under torchrun the first process makes the folder, and the others open it.
        with accelerator.main_process_first():
            listener.stage("reading the data")
            if accelerator.is_main_process and not resume:
                run = _start(config, out, accelerator, command=command)
                is_ours_to_remove = True
                for words in idle_words(config):
                    listener.note(words)
            else:
                run = replace(open_run(out), config=config)
                if accelerator.is_main_process:
                    # Also where the process was killed before it could.
                    _describe(run, accelerator, command=command)
            data = _prepare(run, accelerator, listener)
        result = partial(
            TrainResult,
            run=run,
            left_out=count_left_out(data.rows),
            is_main_process=accelerator.is_main_process,
        )
        if not run.is_kfold:
            is_finished = fit(run, data, accelerator=accelerator, listener=listener)
            best = [row for row in run.history() if row.get("is_best")]
            return result(is_finished=is_finished, best=best[-1] if best else None)
        for fold in range(run.config.data.num_folds):
            with accelerator.main_process_first():
                fold_run, fold_data = _fold_of(
                    run, data, fold, accelerator, command=command
                )
            listener.fold(fold, run.config.data.num_folds)
            if not fit(fold_run, fold_data, accelerator=accelerator, listener=listener):
                return result(is_finished=False)
        return result(is_finished=True)
    except Exception:
        # Settings that turn out not to fit leave no folder behind, unless weights or a
        # checkpoint were saved.
        if is_ours_to_remove:
            with suppress(OSError):
                run.remove_unlearnt()
        raise


def fit(
    run: Run, data: PreparedData, *, accelerator: Accelerator, listener: Listener
) -> bool:
    """Train the network of an ordinary run until its end or an interrupt.

    Args:
        run: The run, with settings and split, and a checkpoint when interrupted.
        data: The files and their subsets.
        accelerator: Accelerate's object for this process.
        listener: Receives the progress.

    Returns:
        Whether the run is finished.

    Raises:
        ConfigError: A setting does not fit the network.
        DataError: A file cannot be read, or the disk is full.
        OutOfMemoryError: The memory is too small for the batches.
        RunError: The checkpoint is damaged, or the loss or the weights are not finite.
    """
    if run.is_finished:
        run.remove_checkpoint()  # a kill may have left it
        return True
    config = run.config
    is_main = accelerator.is_main_process
    set_seed(config.train.seed)

    network, preprocessing = _make_network(config, data, accelerator, listener)
    use_bf16 = _precision(config, accelerator) == "bf16"
    try_step(
        network,
        config,
        preprocessing,
        num_classes=len(data.index.classes),
        num_images=len(data.subset_rows("train")) // accelerator.num_processes,
        use_bf16=use_bf16,
    )
    with accelerator.main_process_first():
        subsets = _load_subsets(data, config, preprocessing, listener=listener)
    set_trainable(network, frozen=config.train.freeze)
    optimizer = make_optimizer(network, config.optim)
    # Validation uses and the run keeps the weights or their running average.
    decay = config.train.ema_decay
    ema = ModelEmaV3(network, decay=decay, use_warmup=True) if decay else None
    kept: nn.Module = ema.module if ema else network
    model = accelerator.prepare_model(network)
    batches = Batches(subsets["train"], config, preprocessing, accelerator)
    schedule = Schedule(optimizer, config.optim, batches_per_epoch=batches.per_epoch)
    step = Step(
        prepare_batch=batches.prepare,
        loss_fn=make_loss(subsets["train"], config).to(accelerator.device),
        optimizer=optimizer,
        schedule=schedule,
        accelerator=accelerator,
        use_bf16=use_bf16,
        max_grad_norm=config.optim.clip_grad_norm,
        part_size=part_size_of(config.train),
    )
    state = TrainState(network, optimizer, schedule, ema)
    state.restore(run.checkpoint_path)
    sums = zero_sums(accelerator.device)
    state.sums = state.sums.to(sums.dtype).to(sums.device)

    with (
        interruptible() as is_interrupted,
        naming_memory(config, preprocessing),
        naming_missing_operators(accelerator.device),
    ):
        while not is_over(state.history, config):
            if state.batches_done == 0:
                set_seed(_epoch_seed(config, state.epoch, accelerator.process_index))
                state.lr = max(group["lr"] for group in optimizer.param_groups)
            else:
                listener.stage(f"continuing in epoch {state.epoch}")
            start = time.perf_counter()
            stats = train_epoch(
                model,
                batches.epoch(state.epoch, first=state.batches_done),
                step,
                sums=state.sums,
                frozen=config.train.freeze,
                head_only=state.epoch <= config.train.freeze_backbone_epochs,
                after_batch=_after_batch(state, ema, network, listener, batches),
                should_stop=lambda: _any_process(accelerator, mine=is_interrupted()),
            )
            state.seconds += time.perf_counter() - start
            _check_weights(network, kept)
            if not stats.is_complete:
                if is_main:
                    state.save(run.checkpoint_path, random=get_random_state())
                return False
            schedule.after_epoch()
            row = _row(state, stats)
            for name in _watched(config):
                row |= validate(
                    kept,
                    subsets[name],
                    config,
                    preprocessing,
                    accelerator.device,
                    name=name,
                )
            # Batch norm may differ between processes: all follow the first.
            row = broadcast_object_list([row])[0]
            row["is_best"] = is_best(row, state.history, by=config.train.best_by)
            state.finish_epoch(row)
            if is_main:
                if row["is_best"]:
                    _keep(run, kept, data, preprocessing, epoch=row["epoch"])
                state.save(run.checkpoint_path)
                run.write_history(state.history)
            listener.epoch(row)
    if is_main:
        run.mark_finished()
    return True


def validate(
    model: nn.Module,
    subset: Subset,
    config: Config,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    name: str = "val",
) -> dict[str, float]:
    """Return the columns `<name>_loss` ... of a history row, from one inference pass.

    The loss is the plain cross-entropy: without smoothing, class weights or mixing, so
    that it can be compared between runs.
    """
    log_probs = infer(
        model,
        plain_batches(subset.plain(), batch_size=config.train.batch_size),
        mean=preprocessing.mean,
        std=preprocessing.std,
        device=device,
        mirror=config.model.mirror,
    )
    labels = subset.labels
    matrix = metrics.confusion_matrix(
        labels, log_probs.argmax(axis=1), num_classes=log_probs.shape[1]
    )
    return {
        f"{name}_loss": float(-log_probs[np.arange(len(labels)), labels].mean()),
        f"{name}_accuracy": float(metrics.accuracy(matrix)),
        f"{name}_balanced_accuracy": float(metrics.balanced_accuracy(matrix)),
        f"{name}_macro_f1": float(metrics.macro_f1(matrix)),
    }


def is_best(row: dict[str, Any], before: Sequence[dict[str, Any]], *, by: str) -> bool:
    """Return whether an epoch is better than all before it.

    Args:
        row: History row of the epoch.
        before: History rows of the epochs before.
        by: Value of `train.best_by`. Ties, which are common for accuracy on a small val
            subset, are decided by the lower val loss.
    """
    if by == "last":
        return True

    def score(one: dict[str, Any]) -> tuple[float, float]:
        measure = 0.0 if by == "loss" else one[f"val_{by}"]
        return (measure, -one["val_loss"])

    return all(score(row) > score(earlier) for earlier in before)


def is_over(history: Sequence[dict[str, Any]], config: Config) -> bool:
    """Return whether all epochs are done, or early stopping applies."""
    if len(history) >= config.optim.epochs:
        return True
    patience = config.train.early_stop_epochs
    best = [row["epoch"] for row in history if row["is_best"]]
    return bool(patience and best and len(history) - best[-1] >= patience)


def _check_start(config: Config, out: Path) -> None:
    """Refuse settings that cannot be trained with, and a folder with content.

    Raises:
        ConfigError: There is no `data.path`, or single images are to be mixed.
        DataError: The folder is inside that of the images.
        RunError: The folder has content.
    """
    sets = sets_of(config.data)
    if sets is None:
        raise ConfigError(
            "no data was named", hint="give --data DIR, or set data.path in the config"
        )
    if config.train.batch_size == 1 and (config.augment.mixup or config.augment.cutmix):
        raise ConfigError(
            "expected train.batch_size of at least 2 with augment.mixup or "
            "augment.cutmix, which mix the images of a batch, got 1",
            hint="raise train.batch_size, or set augment.mixup=0 and augment.cutmix=0",
        )
    check_outside(out, sets)
    check_free(out)


def _settings_to_resume(run: Run, config: Config | None) -> Config:
    """Return the settings to continue a run with.

    Args:
        run: The run.
        config: Settings that are given now; `None` takes those of the run.

    Raises:
        ConfigError: They are not those that the run was begun with.
    """
    if config is None:
        return run.config
    config = absolute_paths(config)
    free = set(machine_settings())
    if run.split_path.is_file():
        # The groups are known, and other labels are found by their digest.
        free |= {"data.metadata", "data.labels"}
    found = differences(run.config, config)
    refused = [f"{key}: {words}" for key, words in found.items() if key not in free]
    if refused:
        raise ConfigError(
            f"{run.path} was begun with other settings: {'; '.join(refused)}",
            hint="leave them out to go on with those of the run, or give another --out",
        )
    return config


def _prepare(run: Run, accelerator: Accelerator, listener: Listener) -> PreparedData:
    """Return the files and subsets of a run, for which its folder is tidied up."""
    if accelerator.is_main_process:
        run.remove_partial_files()
    data = prepare_data(run, progress=listener.files)
    if note := patient_note(data.index):
        listener.note(note)
    if accelerator.is_main_process:
        run.update_config()
    return data


def _start(config: Config, out: Path, accelerator: Accelerator, *, command: str) -> Run:
    run = create_run(out, config)
    _describe(run, accelerator, command=command)
    return run


def _describe(run: Run, accelerator: Accelerator, *, command: str) -> None:
    """Write how the run was begun, once."""
    if run.environment_path.is_file():
        return
    config = run.config
    if config.train.watch_test:
        run.log_look(subset="test", command=f"{command} (train.watch_test)")
    run.write_environment(
        {
            **describe_environment(command=command, seed=config.train.seed),
            # The resolved values of `auto`.
            "compute": {
                "device": accelerator.device.type,
                "precision": _precision(config, accelerator),
                "threads": torch.get_num_threads(),
                "processes": accelerator.num_processes,
            },
        }
    )


def _fold_of(
    run: Run,
    data: PreparedData,
    fold: int,
    accelerator: Accelerator,
    *,
    command: str,
) -> tuple[Run, PreparedData]:
    """Return one fold of a k-fold run as an ordinary run, made if it is missing.

    Raises:
        RunError: It has weights, and its leak verdict is gone or its split changed.
    """
    path = run.fold_path(fold)
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"fold": fold})}
    )
    fold_data = replace(data, rows=rows_of_fold(run, data.rows, fold))
    fold_run = Run(path, config)
    if not fold_run.leak_path.is_file():
        # The process was killed while it made the folder, or the file was lost.
        if not fold_run.has_learnt:
            fold_run.remove_unlearnt()
            fold_run = _start(config, path, accelerator, command=command)
        elif fold_run.split() != fold_data.rows:
            raise RunError(
                f"{path} has weights, and neither its {fold_run.leak_path.name} nor "
                f"its {fold_run.split_path.name}",
                hint="restore the files from a copy, or train again into another --out",
            )
        fold_run.write_split(fold_data.rows, run.leak())
    else:
        fold_run.split()  # refuses another one than that of its weights
        if accelerator.is_main_process:
            fold_run.update_config()
    if not fold_run.seen_path.is_file():
        _write_seen_of_fold(run, fold_run, data)
    return fold_run, fold_data


def _write_seen_of_fold(run: Run, fold_run: Run, data: PreparedData) -> None:
    """Write what one fold sees: a part of what all of them see."""
    subset_of = {row.path: row.subset for row in fold_run.split()}
    is_kept = [subset_of[row.path] != "test" for row in data.rows if is_seen(row)]
    read_seen(run.seen_path).part(is_kept).write(fold_run.seen_path)


def _make_accelerator(config: Config) -> Accelerator:
    # `train_epoch` sets mixed precision: Accelerate would keep it for the whole
    # process, which may train several runs.
    return make_accelerator(
        config.train.device,
        kwargs_handlers=[
            # The parameters of a frozen backbone get no gradient.
            DistributedDataParallelKwargs(
                find_unused_parameters=config.train.freeze_backbone_epochs > 0
            )
        ],
    )


def _precision(config: Config, accelerator: Accelerator) -> str:
    return resolve_precision(config.train.precision, accelerator.device)


def _make_network(
    config: Config, data: PreparedData, accelerator: Accelerator, listener: Listener
) -> tuple[nn.Module, Preprocessing]:
    """Return the network on its device, with its first weights."""
    if needs_model_hub(config.model):
        listener.stage(f"fetching the weights of {config.model.name}, MB")
    network, preprocessing = create_model(
        config.model, num_classes=len(data.index.classes), progress=listener.files
    )
    return place(network, accelerator.device), preprocessing


def _load_subsets(
    data: PreparedData,
    config: Config,
    preprocessing: Preprocessing,
    *,
    listener: Listener,
) -> dict[str, Subset]:
    decoding = make_decoding(config, preprocessing)
    listener.stage("decoding")
    return {
        subset: load_subset(
            data,
            subset,
            decoding=decoding,
            config=config.data,
            progress=listener.files,
        )
        for subset in ("train", *_watched(config))
    }


def _watched(config: Config) -> tuple[str, ...]:
    """Return the subsets that are measured after each epoch; only val is decisive."""
    return ("val", "test") if config.train.watch_test else ("val",)


def _epoch_seed(config: Config, epoch: int, rank: int) -> int:
    sequence = np.random.SeedSequence([config.train.seed, epoch, rank])
    return int(sequence.generate_state(1)[0])


def _after_batch(
    state: TrainState,
    ema: ModelEmaV3 | None,
    network: nn.Module,
    listener: Listener,
    batches: Batches,
) -> Callable[[], None]:
    def after() -> None:
        state.batches_done += 1
        state.num_steps += 1
        if ema is not None:
            ema.update(network, step=state.num_steps)
        listener.batch(state.epoch, state.batches_done, batches.per_epoch)

    return after


def _check_weights(*networks: nn.Module) -> None:
    """Check weights before they are saved: the last step may have spoilt them.

    Raises:
        RunError: They are not finite.
    """
    for network in networks:
        if spoilt := find_spoilt(network.state_dict()):
            raise RunError(f"{spoilt}: the training has diverged", hint=DIVERGED_HINT)


def _row(state: TrainState, stats: EpochStats) -> dict[str, Any]:
    return {
        "epoch": state.epoch,
        "train_loss": stats.loss,
        "train_accuracy": stats.accuracy,
        "lr": state.lr,
        "images_per_second": stats.num_images / state.seconds,
        "seconds": state.seconds,
    }


def _keep(
    run: Run,
    model: nn.Module,
    data: PreparedData,
    preprocessing: Preprocessing,
    *,
    epoch: int,
) -> None:
    weights = weights_as_bytes(model)
    card = make_card(
        run.config,
        preprocessing,
        classes=data.index.classes,
        epoch=epoch,
        weights=weights,
    )
    run.write_weights(weights, card)


def _any_process(accelerator: Accelerator, *, mine: bool) -> bool:
    """Return whether the flag is up in any process: all must stop at the same batch."""
    if accelerator.num_processes == 1:
        return mine
    flag = torch.tensor(float(mine), device=accelerator.device)
    return bool(accelerator.reduce(flag, reduction="sum") > 0)
