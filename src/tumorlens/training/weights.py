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
from safetensors.torch import save as save_safetensors
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn

from tumorlens.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


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
            missing, unexpected or of another shape; the first three are named.
    """
    state = read_state(path)
    if in_chans != 3:
        first = pretrained_cfg(model).get("first_conv")
        for conv in [first] if isinstance(first, str) else first or []:
            key = f"{conv}.weight"
            if key in state and state[key].shape[1] != in_chans:
                state[key] = adapt_input_conv(in_chans, state[key])
    expected = model.state_dict()
    for key in expected.keys() - state.keys():
        if key.endswith(".num_batches_tracked"):
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
            hint="set model.name (and model.extra) to the network of the weights",
        )
    model.load_state_dict(state)
    return has_new_head


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a weights file; code in a pickle never runs.

    Args:
        path: A .safetensors file, or a .pth with a state dict, bare or as in timm's
            checkpoints.

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
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ConfigError(
            f"model.pretrained: {path} holds something else than named tensors: "
            f"{wrong[0]!r}",
            hint="give a file that torch.save(model.state_dict(), ...) wrote",
        )
    return dict(state)


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
