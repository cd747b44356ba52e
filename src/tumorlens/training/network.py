"""Networks: from a timm name to a model with weights and preprocessing; inference.

`infer` is the only inference pass of the package: validation, evaluation and
prediction call it, so the three cannot differ. It always computes in fp32, so that
probabilities do not depend on whether the processor supports bf16.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

import tumorlens
from tumorlens.config import ModelConfig
from tumorlens.errors import ConfigError, RunError, did_you_mean
from tumorlens.files import sha256_of_bytes
from tumorlens.runs.folder import ModelCard
from tumorlens.training.devices import naming_missing_operators, traits_of
from tumorlens.training.hub import fetch_weights
from tumorlens.training.views import policy_of, views_of
from tumorlens.training.weights import (
    classifier_names,
    find_spoilt,
    load_weights,
    pretrained_cfg,
    read_state,
    read_weights_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from tumorlens.config import Config
    from tumorlens.runs.progress import Progress

_FROM_HUB = ("auto", "yes")
_HEAD_STD = 0.01


@dataclass(frozen=True)
class Preprocessing:
    """Input that a network expects."""

    size_px: int
    """Side of the square image."""
    mean: tuple[float, ...]
    """Per channel, of values in [0, 1]."""
    std: tuple[float, ...]


def create_model(
    config: ModelConfig, *, num_classes: int, progress: Progress | None = None
) -> tuple[nn.Module, Preprocessing]:
    """Return a network for `num_classes` classes with the weights of the settings.

    Args:
        config: Settings of the network, its weights and its variations.
        num_classes: Size of the last layer. A last layer of another size in the
            weights is replaced by a new one.
        progress: Called with the megabytes that are there and those in all, while
            weights are fetched.

    Returns:
        The network on the CPU, and the preprocessing of its weights. Values of `config`
        take precedence over the metadata of a weights file, and these over timm's.

    Raises:
        ConfigError: The network does not exist or does not take an argument, or its
            weights cannot be fetched or read or do not fit.
    """
    name = config.name
    _check_extra(config)
    if not timm.is_model(name):
        raise ConfigError(
            f"unknown model.name {name!r}: timm {timm.__version__} has no such network",
            hint=_suggest(name.split(".")[0].lower()),
        )
    from_hub = needs_model_hub(config)
    weights = fetch_weights(name, progress=progress) if from_hub else None
    arguments = model_arguments(config)
    model = _build(name, num_classes, config.in_chans, arguments, weights=weights)
    if from_hub and num_classes != pretrained_cfg(model)["num_classes"]:
        _start_head_small(model)
    if _is_file(config):
        path = Path(config.pretrained)
        if load_weights(model, path, in_chans=config.in_chans):
            _start_head_small(model)
    return model, _preprocessing(model, config)


def model_arguments(config: ModelConfig) -> dict[str, Any]:
    """Return the arguments for timm in which `config` differs from timm's defaults.

    They include a `pad_type` from the metadata of a weights file, because a run must be
    rebuilt without the file.

    Raises:
        ConfigError: The weights file does not exist or is damaged.
    """
    arguments: dict[str, Any] = {}
    metadata = _metadata(config)
    if "pad_type" in metadata:
        arguments["pad_type"] = metadata["pad_type"]
    arguments |= config.extra
    if config.drop_rate:
        arguments["drop_rate"] = config.drop_rate
    if config.drop_path_rate:
        arguments["drop_path_rate"] = config.drop_path_rate
    if config.global_pool is not None:
        arguments["global_pool"] = config.global_pool
    return arguments


def make_card(
    config: Config,
    preprocessing: Preprocessing,
    *,
    classes: tuple[str, ...],
    epoch: int,
    weights: bytes,
) -> ModelCard:
    """Return the card of weights that were trained with these settings.

    Args:
        config: Settings of the run.
        preprocessing: Preprocessing of the network.
        classes: Class names in the order of the network's outputs.
        epoch: Epoch of the weights, from 1; 0 for imported ones.
        weights: Content of the weights file.
    """
    return ModelCard(
        tumorlens=tumorlens.__version__,
        name=config.model.name,
        arguments=model_arguments(config.model),
        classes=classes,
        in_chans=config.model.in_chans,
        size_px=preprocessing.size_px,
        fit=config.data.fit,
        mean=preprocessing.mean,
        std=preprocessing.std,
        mirror=config.model.mirror,
        epoch=epoch,
        weights_sha256=sha256_of_bytes(weights),
    )


def load_model(card: ModelCard, weights: Path) -> nn.Module:
    """Return the network of a run with its weights, on the CPU, ready for `infer`.

    Raises:
        RunError: The weights do not fit the network that the card describes, or are
            not finite.
    """
    try:
        model = _build(card.name, len(card.classes), card.in_chans, card.arguments)
        state = load_file(weights)
        model.load_state_dict(state)
    except (ConfigError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise RunError(
            f"{weights} does not fit the network of its model.json: {first}",
            hint="restore the run folder or train it again",
        ) from None
    if spoilt := find_spoilt(state):
        raise RunError(
            f"{weights} gives no answer: {spoilt}",
            hint="its training diverged: train it again with a lower optim.lr",
        )
    return model.eval()


def copy_model(card: ModelCard, model: nn.Module) -> nn.Module:
    """Return another network of the card with the weights of `model`, on its device.

    Not a deep copy, which fails where a network has kept tensors of earlier answers.
    """
    copy = _build(card.name, len(card.classes), card.in_chans, card.arguments)
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).device).eval()


def classifier_layers(model: nn.Module) -> list[nn.Module]:
    """Return the last layers, whose size depends on the number of classes."""
    names = classifier_names(model)
    return [model.get_submodule(name) for name in names]


def set_trainable(
    model: nn.Module, *, frozen: Sequence[str] = (), head_only: bool = False
) -> None:
    """Set the trainable parts, and put them, and only them, into training mode.

    Frozen parts behave as in evaluation: batch norm keeps its statistics and dropout is
    off.

    Args:
        model: Network from `create_model`.
        frozen: Names of submodules to freeze.
        head_only: Whether to freeze everything but the last layer.

    Raises:
        ConfigError: `model` has no submodule of such a name.
    """
    model.train(not head_only)
    model.requires_grad_(not head_only)
    for layer in classifier_layers(model):
        layer.train()
        layer.requires_grad_()
    names = dict(model.named_modules())
    for name in frozen:
        if name not in names or not name:
            top = [known for known in names if known and known.count(".") < 2]
            raise ConfigError(
                f"train.freeze: the network has no part {name!r}",
                hint=did_you_mean(name, top),
            )
        names[name].eval()
        names[name].requires_grad_(requires_grad=False)


def normalize(
    images: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Return decoded images as the network's input.

    Args:
        images: Shape (N, 1, S, S) or (N, C, S, S), uint8, on any device.
        mean: C values in [0, 1]. One-channel images are repeated to C.
        std: C values.

    Returns:
        Shape (N, C, S, S), float32, in memory in the order of the device.
    """
    shift = torch.tensor(mean, device=images.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=images.device).view(1, -1, 1, 1)
    values = (images.float() / 255 - shift) / scale  # (N, C, S, S)
    return values.contiguous(memory_format=traits_of(images.device).memory_format)


def as_batch(images: NDArray[np.uint8]) -> Tensor:
    """Return decoded images (N, S, S, C) as a batch for `infer`, (N, C, S, S)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


LUMA = (19595, 38470, 7471)
"""Weights of red, green and blue in 1/65536: those of Pillow's `convert("L")`."""


def as_input(card: ModelCard, images: NDArray[np.uint8]) -> Tensor:
    """Return images (N, S, S, 1 or 3) as a batch of a network, (N, C, S, S)."""
    if card.in_chans == 1 and images.shape[3] == 3:
        weighted = images.astype(np.int64) @ np.array(LUMA)
        images = ((weighted + 32768) >> 16).astype(np.uint8)[..., None]
    return as_batch(np.ascontiguousarray(images))


def predict_probs(
    model: nn.Module, batches: Iterable[Tensor], card: ModelCard, device: torch.device
) -> NDArray[np.float64]:
    """Return the class probabilities (N, C) of images, as the card of a run says.

    Args:
        model: The network of the card, on `device`.
        batches: Decoded images, as for `infer`.
        card: Normalization, test-time views and temperature.
        device: Device of the computation.

    Raises:
        ConfigError: The device lacks an operation of the network.
        RunError: A probability is not finite.
    """
    log_probs = infer(
        model,
        batches,
        mean=card.mean,
        std=card.std,
        device=device,
        mirror=card.mirror,
        tta=card.tta,
        temperature=card.temperature,
    )
    probs: NDArray[np.float64] = np.exp(log_probs.astype(np.float64))
    return probs


@torch.inference_mode()
def infer(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    mirror: bool,
    tta: str = "none",
    temperature: float = 1.0,
) -> NDArray[np.float32]:
    """Return the log-probabilities of every image: the one inference pass.

    Args:
        model: Returns logits. Set to evaluation mode; must be on `device`.
        batches: Decoded images, shape (N, 1 or C, S, S), uint8.
        mean: Per channel, of values in [0, 1].
        std: Per channel, likewise.
        device: Device of the computation.
        mirror: Whether to average the probabilities with those of the left-right
            mirror image. The logarithm of the average is then returned.
        tta: Policy of `tumorlens.training.views` to average over; unless it is "none",
            it takes precedence over `mirror`.
        temperature: Divisor of the logits before softmax.

    Returns:
        Log-probabilities, shape (N, C), float32, in the order of the images. Their
        exponentials sum to 1.

    Raises:
        ConfigError: The device lacks an operation of the network.
        RunError: A log-probability is not finite.
    """
    model.eval()
    parts = []
    is_pinned = traits_of(device).is_pinned
    for batch in batches:
        with naming_missing_operators(device):
            decoded = batch.to(device, non_blocking=is_pinned)
            images = normalize(decoded, mean=mean, std=std)
            by_view = [
                (model(view).float() / temperature).log_softmax(dim=1)  # (N, C)
                for view in views_of(images, policy_of(mirror=mirror, tta=tta))
            ]
            log_probs = torch.stack(by_view).logsumexp(dim=0) - math.log(len(by_view))
            parts.append(log_probs.cpu())
    if not parts:
        return np.empty((0, 0), np.float32)
    found = torch.cat(parts)
    num_bad = int((~found.isfinite()).any(dim=1).sum())
    if num_bad:
        raise RunError(
            f"the network's answer to {num_bad:,} of {len(found):,} images is NaN or "
            "infinite",
            hint="its weights are too large for its numbers: train with a lower "
            "optim.lr, or with optim.clip_grad_norm=1.0",
        )
    return found.numpy()


class Answers(NamedTuple):
    """What a network gives for N images, before any temperature."""

    logits: NDArray[np.float32]
    """Logits in V views of each image, shape (N, V, C)."""
    embedding: NDArray[np.float32]
    """Input of the last layer, the mean over views, shape (N, E)."""


@torch.inference_mode()
def answer(
    model: nn.Module,
    batches: Iterable[Tensor],
    card: ModelCard,
    device: torch.device,
) -> Answers:
    """Return logits by view and embeddings of images, in one pass.

    Args:
        model: The network of the card, on `device`, in evaluation mode.
        batches: Decoded images, as for `infer`, at least one.
        card: Normalization and test-time views.
        device: Device of the computation.

    Raises:
        ConfigError: The device lacks an operation of the network.
        RunError: The network has no features apart from its last layer, or an answer
            is not finite.
    """
    network: Any = model
    if not all(hasattr(model, name) for name in ("forward_features", "forward_head")):
        raise RunError(
            f"{card.name} has no features apart from its last layer",
            hint="take another network of timm",
        )
    logits, embeddings = [], []
    for batch in batches:
        with naming_missing_operators(device):
            images = normalize(batch.to(device), mean=card.mean, std=card.std)
            policy = policy_of(mirror=card.mirror, tta=card.tta)
            features = [network.forward_features(v) for v in views_of(images, policy)]
            by_view = [network.forward_head(one).float() for one in features]
            inputs = [before_last_layer(network, one) for one in features]
            logits.append(torch.stack(by_view, dim=1).cpu())  # (N, V, C)
            embeddings.append(torch.stack(inputs).mean(dim=0).cpu())
    found = Answers(torch.cat(logits).numpy(), torch.cat(embeddings).numpy())
    if not all(np.isfinite(array).all() for array in found):
        raise RunError(
            "an answer of the network is NaN or infinite",
            hint="train with a lower optim.lr, or with optim.clip_grad_norm=1.0",
        )
    return found


def before_last_layer(network: Any, features: Tensor) -> Tensor:
    """Return the input of the last layer, shape (N, E)."""
    found = network.forward_head(features, pre_logits=True)
    # Some heads give two: the means of their tokens.
    first: Tensor = found[0] if isinstance(found, tuple) else found
    return first.flatten(1).float()


def needs_model_hub(config: ModelConfig) -> bool:
    """Return whether the initial weights come from the model hub, not from a file."""
    return config.pretrained in _FROM_HUB


_OF_SETTINGS = ("drop_rate", "drop_path_rate", "global_pool", "in_chans", "pretrained")
"""Arguments of `timm.create_model` that have settings of their own."""

_NOT_OF_A_NETWORK = (
    *("num_classes", "features_only", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("pretrained_model_args", "checkpoint_path", "cache_dir", "device", "dtype"),
)
"""Arguments of `timm.create_model` that read weights past every check, or make
something else than a classifier of the data's classes."""


def _check_extra(config: ModelConfig) -> None:
    """Check that `model.extra` holds arguments of the network only, and each once.

    Raises:
        ConfigError: It does not.
    """
    default = ModelConfig()
    for name in config.extra:
        if name in _OF_SETTINGS and (
            name in ("in_chans", "pretrained")
            or getattr(config, name) != getattr(default, name)
        ):
            raise ConfigError(
                f"model.extra.{name} is a setting of its own", hint=f"set model.{name}"
            )
        if name in _NOT_OF_A_NETWORK:
            raise ConfigError(
                f"model.extra.{name} is no argument of a network",
                hint="its weights come from model.pretrained, its classes from the "
                "data: leave it out",
            )


def _suggest(name: str) -> str:
    # timm has 1,300 names: too many to list.
    known = timm.list_models()
    alike = [other for other in known if other.startswith(name)] or known
    close = get_close_matches(name, alike, n=5) or [n for n in known if name in n][:5]
    if not close:
        return "see timm.list_models() for the names, such as 'resnet18'"
    return did_you_mean(name, close)


def _build(
    name: str,
    num_classes: int,
    in_chans: int,
    arguments: Mapping[str, Any],
    *,
    weights: Path | None = None,
) -> nn.Module:
    # A card may come from anywhere, and timm would fetch what a name such as hf-hub:...
    # stands for, or load the file of a checkpoint_path.
    forbidden = [key for key in arguments if key in _NOT_OF_A_NETWORK]
    if forbidden or not timm.is_model(name):
        why = f"timm {timm.__version__} has no such network"
        if forbidden:
            why = f"{forbidden[0]} is no argument of a network"
        raise ConfigError(f"{name} cannot be made: {why}", hint="restore model.json")
    # The files of the hub are in timm's own format, those of no address another.
    source = {"file": str(weights), "custom_load": False} if weights else None
    try:
        return timm.create_model(
            name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=source,
            num_classes=num_classes,
            in_chans=in_chans,
            **arguments,
        )
    except (
        *(TypeError, AssertionError, RuntimeError, ValueError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as error:
        # timm passes arguments on to the network's own constructor, where unknown names
        # and values out of range raise one of these.
        if weights:
            read_state(weights)  # says so if the file is none of weights
        asked = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(
            f"{name} cannot be made with {asked or 'its defaults'}: {error}",
            hint="not every network takes every argument; remove "
            + _setting_of(next(iter(arguments), "extra")),
        ) from None


def _setting_of(argument: str) -> str:
    """Return the setting behind an argument of a network."""
    is_own = argument in ModelConfig.model_fields
    return f"model.{argument}" if is_own else f"{argument!r} from model.extra"


def _is_file(config: ModelConfig) -> bool:
    return config.pretrained not in (*_FROM_HUB, "no")


def _metadata(config: ModelConfig) -> dict[str, str]:
    if not _is_file(config):
        return {}
    return read_weights_metadata(Path(config.pretrained), name=config.name)


def _start_head_small(model: nn.Module) -> None:
    # A new last layer on pretrained features must start near equal probabilities. timm
    # draws that of mobilenetv2_100 from +-0.5: the first loss is then 16 instead of
    # log(4) = 1.4, and its gradient destroys the features before the layer has learnt.
    for layer in classifier_layers(model):
        for name, parameter in layer.named_parameters():
            if name == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=_HEAD_STD)


def _preprocessing(model: nn.Module, config: ModelConfig) -> Preprocessing:
    data = resolve_model_data_config(model)
    metadata = _metadata(config)
    mean: tuple[float, ...] = tuple(
        config.mean or _numbers(metadata, "mean", config) or data["mean"]
    )
    std: tuple[float, ...] = tuple(
        config.std or _numbers(metadata, "std", config) or data["std"]
    )
    if config.in_chans == 1 and len(mean) == 3:
        # timm sums the first layer over its inputs: one mean, one std.
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return Preprocessing(config.size_px or data["input_size"][1], mean, std)


def _numbers(
    metadata: Mapping[str, str], name: str, config: ModelConfig
) -> tuple[float, ...]:
    if name not in metadata:
        return ()
    try:
        values = tuple(float(part) for part in metadata[name].split(","))
    except ValueError:
        values = ()
    lowest = 1e-3 if name == "std" else 0.0
    if len(values) != 3 or not all(lowest <= value < math.inf for value in values):
        raise ConfigError(
            f"model.pretrained: the metadata of {config.pretrained} has "
            f"{name}={metadata[name]!r}, expected three numbers with commas between",
            hint="set model.mean and model.std",
        )
    return values
