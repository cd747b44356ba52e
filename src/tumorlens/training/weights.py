"""Weights files: reading and writing named tensors, with checks.

Only `.safetensors` is written. A `.pth` is read too, by torch's loader that runs no
code. A file never determines the network: `tumorlens.training.network` builds it, and
the tensors are checked against it here.
"""

from __future__ import annotations

import pickle
import warnings
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as save_safetensors
from timm.models import adapt_input_conv, clean_state_dict, load_state_dict
from torch import Tensor, nn

from tumorlens.errors import ConfigError, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_COUNTER = ".num_batches_tracked"


def load_weights(model: nn.Module, path: Path, *, in_chans: int) -> bool:
    """Put the weights of a file into a network; only the last layer may differ.

    Args:
        model: A timm network.
        path: A .safetensors file, or a .pth of named tensors.
        in_chans: Input channels of the network; the first layer's weights are summed or
            repeated to fit, as in timm.

    Returns:
        Whether the file's last layer has another size, so that the network keeps its
        own.

    Raises:
        ConfigError: The file cannot be read as named tensors, or any other tensor is
            missing, unexpected or of another shape; the first three are named. Or a
            value is not finite.
    """
    expected = model.state_dict()
    state = without_prefix(read_state(path), expected)
    if in_chans != 3:
        first = pretrained_cfg(model).get("first_conv")
        for conv in [first] if isinstance(first, str) else first or []:
            key = f"{conv}.weight"
            if key in state and state[key].shape[1] != in_chans:
                state[key] = adapt_input_conv(in_chans, state[key])
    for key in expected.keys() - state.keys():
        if key.endswith(_COUNTER):
            # An unused counter that old and converted files lack.
            state[key] = expected[key]
    heads = tuple(f"{name}." for name in classifier_names(model))
    has_new_head = False
    for key in [key for key in state if key.startswith(heads)]:
        if key in expected and state[key].shape != expected[key].shape:
            state[key] = expected[key]
            has_new_head = True
    wrong = [f"{key} is missing" for key in sorted(expected.keys() - state.keys())] + [
        f"{key} is not part of it" for key in sorted(state.keys() - expected.keys())
    ]
    wrong += [
        f"{key} is {tuple(state[key].shape)} and not {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"the weights in {path} do not fit the network: {'; '.join(wrong[:3])}"
            f"{more}",
            hint=_hint_to_fit(model, state, in_chans=in_chans),
        )
    if spoilt := find_spoilt(state):
        raise ConfigError(
            f"the weights in {path} give no answer: {spoilt}",
            hint="the training that made them diverged, or the file is damaged: take "
            "weights of an earlier epoch",
        )
    model.load_state_dict(state)
    return has_new_head


def without_prefix(
    state: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return tensors by the names of a network, if one prefix is all that differs.

    A network that is an attribute of another module, as in Lightning, has the name of
    the attribute before each of its tensors.

    Args:
        state: Named tensors of a file.
        expected: Those of the network.

    Example:
        >>> without_prefix({"net.a": Tensor(), "loss.w": Tensor()}, {"a": Tensor()})
        {'a': tensor([]), 'loss.w': tensor([])}
    """
    first = next(iter(expected))
    if first in state:
        return state
    for key in state:
        prefix = key.removesuffix(first)
        is_prefix = prefix != key and prefix.endswith(".")
        if is_prefix and all(
            f"{prefix}{name}" in state or name.endswith(_COUNTER) for name in expected
        ):
            return {name.removeprefix(prefix): of for name, of in state.items()}
    return state


def find_spoilt(state: Mapping[str, Tensor]) -> str | None:
    """Return which tensor cannot be the weights of a network, in words, or `None`.

    Weights must be finite, and no running variance may be negative.

    Example:
        >>> find_spoilt({"head.bias": Tensor([0.0, float("nan")])})
        'head.bias has 1 of 2 values that are NaN or infinite'
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        num_bad = int((~tensor.isfinite()).sum())
        if num_bad:
            return (
                f"{name} has {num_bad:,} of {tensor.numel():,} values that are NaN or "
                "infinite"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            return f"{name} has negative variances"
    return None


def check_weights(path: Path) -> None:
    """Check that the weights of a run can give an answer.

    Raises:
        RunError: The file is damaged, or a value is not finite.
    """
    try:
        spoilt = find_spoilt(load_file(path))
    except SafetensorError as error:
        raise RunError(
            f"{path} is not a safetensors file: {error}", hint="restore the run folder"
        ) from None
    if spoilt:
        raise RunError(
            f"{path} gives no answer: {spoilt}",
            hint="its training diverged: train it again with a lower optim.lr",
        )


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a weights file; code in a pickle never runs.

    Args:
        path: A .safetensors file, or a .pth with a state dict: bare, as in timm's
            checkpoints, or as the only table of tensors beside other things.

    Raises:
        ConfigError: The file is damaged, or holds anything but named tensors.
    """
    # On damaged bytes the unpickler raises KeyError, IndexError, struct.error,
    # AttributeError and more: all of them end in the last branch.
    try:
        with warnings.catch_warnings():
            # torch warns of a pickle's protocol before it refuses the content.
            warnings.simplefilter("ignore", UserWarning)
            state = load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:
        # timm wraps torch's refusal of a pickle with code.
        if isinstance(error.__cause__ or error, pickle.UnpicklingError):
            raise ConfigError(
                f"model.pretrained: {path} is a pickle with code in it, or not a "
                "weights file",
                hint="the code was not run; get a .safetensors file, or a .pth that "
                "holds tensors only",
            ) from None
        reason = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"model.pretrained: {path} cannot be read as named tensors: {reason[0]}",
            hint="download it again, or give a file that "
            "torch.save(model.state_dict(), ...) wrote",
        ) from None
    state = _unwrapped(state, path)
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ConfigError(
            f"model.pretrained: {path} holds something else than named tensors: "
            f"{wrong[0]!r}",
            hint="give a file that torch.save(model.state_dict(), ...) wrote",
        )
    return dict(state)


def _unwrapped(state: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Return the one table of tensors in a checkpoint, or the checkpoint itself.

    Raises:
        ConfigError: There are several.
    """
    tables = {
        name: clean_state_dict(value)
        for name, value in state.items()
        if isinstance(value, dict)
        and value
        and all(
            isinstance(key, str) and isinstance(of, Tensor) for key, of in value.items()
        )
    }
    if len(tables) > 1:
        raise ConfigError(
            f"{path} holds several tables of tensors: {', '.join(map(str, tables))}",
            hint="save the one that is wanted: torch.save(checkpoint["
            f"{next(iter(tables))!r}], ...)",
        )
    return next(iter(tables.values()), state)


def _hint_to_fit(
    model: nn.Module, state: Mapping[str, Tensor], *, in_chans: int
) -> str:
    """Return the hint for weights of other names or shapes."""
    first = pretrained_cfg(model).get("first_conv")
    for conv in [first] if isinstance(first, str) else first or []:
        weight = state.get(f"{conv}.weight")
        if weight is not None and weight.ndim == 4 and weight.shape[1] != in_chans:
            return (
                f"the weights are for images of {weight.shape[1]} channel(s): set "
                f"model.in_chans={weight.shape[1]}"
            )
    return "set model.name (and model.extra) to the network of the weights"


def read_weights_metadata(path: Path, *, name: str) -> dict[str, str]:
    """Return the metadata of a weights file, such as mean and std.

    Args:
        path: A .safetensors file; other formats have no metadata.
        name: timm's name of the network for the weights.

    Raises:
        ConfigError: There is no such file, it is damaged, or it names another network.
    """
    if not path.is_file():
        raise ConfigError(
            f"model.pretrained: no such file: {str(path)!r}",
            hint="expected 'auto', 'yes', 'no' or the path of a .safetensors or .pth "
            "file",
        )
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ConfigError(
            f"model.pretrained: {path} is not a safetensors file: {error}",
            hint="download it again, or give another file",
        ) from None
    architecture = metadata.get("architecture", name)
    if architecture.split(".")[0] != name.split(".")[0]:
        raise ConfigError(
            f"model.pretrained: {path} holds weights of {architecture!r}, and "
            f"model.name is {name!r}",
            hint=f"set model.name to {architecture!r} or give another file",
        )
    return metadata


def weights_as_bytes(model: nn.Module) -> bytes:
    """Return the weights as a safetensors file: a copy, not a live view."""
    tensors = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in model.state_dict().items()
    }
    return save_safetensors(tensors, metadata={"format": "pt"})


def classifier_names(model: nn.Module) -> list[str]:
    """Return the names of a timm network's last layers: one, or two if distilled."""
    names = pretrained_cfg(model).get("classifier")
    return [names] if isinstance(names, str) else list(names or [])


def pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """Return timm's description of a network: input, mean, std, end layers."""
    # A plain attribute that timm sets; nn.Module's annotations hide it.
    config: Any = model.pretrained_cfg
    return dict(config)
