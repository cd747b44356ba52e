"""Import: weights that were trained elsewhere become a run folder.

A bare .pth or .safetensors names neither its network nor its classes nor the
preprocessing of its images. The user gives these; they are checked against the tensors
and written down, so that `predict` and `evaluate` work as for any other run. No code in
the file is run. No figure of such a run is held out, whatever its split: the training
images of the weights are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tumorlens.config import absolute_paths
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import ConfigError, DataError
from tumorlens.files import replacing_folder, sha256_of
from tumorlens.runs.folder import ModelCard, Run, check_free, create_run, open_run
from tumorlens.system import describe_environment
from tumorlens.training.dataset import prepare_data
from tumorlens.training.network import classifier_layers, create_model, make_card
from tumorlens.training.trial import logits_of, noise
from tumorlens.training.weights import (
    classifier_names,
    read_state,
    weights_as_bytes,
    without_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from tumorlens.config import Config
    from tumorlens.training.network import Preprocessing

    Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Imported:
    """A run folder around weights from elsewhere."""

    run: Run
    card: ModelCard
    summary: str
    """Preprocessing of the network, and the limits of its figures."""


def import_weights(
    weights: Path,
    config: Config,
    *,
    classes: Sequence[str],
    out: Path,
    command: str = "",
    progress: Progress | None = None,
) -> Imported:
    """Make a run folder from a weights file.

    The outputs of the last layer are put into the alphabetical order of the class
    folders.

    Args:
        weights: A .safetensors or .pth of named tensors, bare or wrapped as in timm's
            checkpoints. It is copied into the folder.
        config: The settings: `model` with the network and its preprocessing, whose
            `pretrained` is replaced by `weights`, and `data.fit`. With `data.path`,
            `split.csv` is made by `data.protocol`; without it the run can predict but
            not be evaluated.
        classes: Names of the classes in the order of the network's outputs.
        out: The run folder. It must not exist.
        command: Command line of the user, for the record.
        progress: Called with files done and files in all.

    Returns:
        The finished run, with the epoch 0.

    Raises:
        ConfigError: The weights cannot be read or do not fit the network, the number of
            outputs is not that of the classes, a class is named twice, or the protocol
            has folds.
        DataError: The data cannot be used, or has other classes.
        RunError: `out` exists.
    """
    _check_classes(classes)
    if config.data.protocol == "grouped-kfold":
        raise ConfigError(
            "expected data.protocol 'as-given' or 'grouped', got 'grouped-kfold': "
            "imported weights are one network, and folds need several",
            hint="set data.protocol=grouped",
        )
    model = config.model.model_copy(update={"pretrained": str(weights)})
    config = absolute_paths(config.model_copy(update={"model": model}))
    card, content = _build(weights, config, classes)
    check_free(out)
    # Complete or not there: half of it, resumed, would be trained.
    with replacing_folder(out) as folder:
        run = create_run(folder, config)
        run.write_environment(
            {
                **describe_environment(command=command, seed=config.train.seed),
                "imported_from": {
                    "file": weights.name,
                    "sha256": sha256_of(weights),
                    "classes": list(classes),
                },
            }
        )
        if config.data.path is not None:
            _split(run, card, progress=progress)
        run.write_leak(_leak(run, weights))
        run.write_weights(content, card)
        run.mark_finished()
    run = open_run(out)
    return Imported(run, card, f"{_input_summary(card)} {run.leak().words}")


def _check_classes(classes: Sequence[str]) -> None:
    named = ", ".join(classes)
    if len(classes) < 2 or not all(classes) or len(set(classes)) < len(classes):
        raise ConfigError(
            f"expected at least two classes, each named once, got {named!r}",
            hint="name them in the order of the network's outputs: --classes "
            "glioma,meningioma,no_tumor,pituitary",
        )


def _build(
    weights: Path, config: Config, classes: Sequence[str]
) -> tuple[ModelCard, bytes]:
    """Return the card and the weights of the network, outputs in alphabetical order.

    Raises:
        ConfigError: The weights do not fit the network or the classes.
    """
    try:
        model, preprocessing = create_model(config.model, num_classes=len(classes))
        state = without_prefix(read_state(weights), model.state_dict())
    except ConfigError as error:
        # The user gave the file as an argument, not by the setting.
        problem = error.problem.removeprefix("model.pretrained: ")
        raise ConfigError(problem, hint=error.hint) from None
    # `create_model` has replaced a last layer of another size, as for a training.
    for name in classifier_names(model):
        num_outputs = len(state[f"{name}.weight"])
        if num_outputs != len(classes):
            raise ConfigError(
                f"the last layer in {weights} has {num_outputs} outputs, and --classes "
                f"names {len(classes)}: {', '.join(classes)}",
                hint="name one class for each output, in their order",
            )
    order = sorted(range(len(classes)), key=classes.__getitem__)
    with torch.no_grad():
        for layer in classifier_layers(model):
            for parameter in layer.parameters():
                parameter.copy_(parameter[order])
    _try(model, config, preprocessing, num_classes=len(classes))
    content = weights_as_bytes(model)
    card = make_card(
        config, preprocessing, classes=tuple(sorted(classes)), epoch=0, weights=content
    )
    return card, content


def _try(
    model: nn.Module, config: Config, preprocessing: Preprocessing, *, num_classes: int
) -> None:
    """Check that the network takes its images and answers with numbers.

    Raises:
        ConfigError: It does not.
    """
    with torch.random.fork_rng([]), torch.inference_mode():
        images = noise(2, config.model.in_chans, preprocessing)
        logits = logits_of(model.eval(), images, config, num_classes=num_classes)
    if not bool(logits.isfinite().all()):
        raise ConfigError(
            f"the weights give NaN or infinite answers through {config.model.name}",
            hint="check --model, --mean and --std",
        )


def _split(run: Run, card: ModelCard, *, progress: Progress | None) -> None:
    data = prepare_data(run, progress=progress)
    if data.index.classes != card.classes:
        raise DataError(
            f"the data has the classes {', '.join(data.index.classes)}, and --classes "
            f"names {', '.join(card.classes)}",
            hint="give the network's outputs the names of the class folders",
        )


def _leak(run: Run, weights: Path) -> LeakVerdict:
    """Return the verdict on figures of weights that were trained elsewhere.

    It is marked as a leak, so that every table and figure carries its words; `is_known`
    distinguishes it from a leak that was found.
    """
    words = (
        f"Unknown training data: {weights.name} was trained elsewhere, and may have "
        "seen these images. No figure of this run is held out."
    )
    verdict = LeakVerdict(leaks=True, words="")
    if run.leak_path.is_file():
        verdict = run.leak()
        words += f" Had it been trained on this split's train: {verdict.words}"
    changes = {"leaks": True, "is_known": False, "words": words}
    return verdict.model_copy(update=changes)


def _input_summary(card: ModelCard) -> str:
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values)
        for values in (card.mean, card.std)
    )
    return (
        f"The network gets {card.size_px} x {card.size_px} pixels, made square by "
        f"{card.fit!r}, less the mean {mean}, over the std {std}: its predictions are "
        "good only if its training did the same."
    )
