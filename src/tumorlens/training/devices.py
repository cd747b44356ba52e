"""Devices: which there are, and how each of them computes.

Whatever differs between processors and the GPUs of several makers is in the table of
this module: the precision that `auto` stands for, the order of the channels in memory,
the number type of sums. What is there, torch tells (`torch.accelerator`): one kind of
GPU, that of its build.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tumorlens.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator
    from torch import nn


@dataclass(frozen=True)
class Traits:
    """How a kind of device computes."""

    is_bf16_fast: Callable[[torch.device], bool]
    """Whether it multiplies bf16 natively: emulated, it is slower than fp32."""
    memory_format: torch.memory_format
    """Order in which convolutions are fastest."""
    sum_dtype: torch.dtype
    """Number type for sums over an epoch."""
    is_pinned: bool
    """Whether copies from pinned memory may overlap with the computation."""
    fallback: str | None = None
    """Variable that lets the CPU compute what the device cannot."""


def _is_fast_on_cpu(_: torch.device) -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


TRAITS = {
    "cpu": Traits(
        is_bf16_fast=_is_fast_on_cpu,
        memory_format=torch.channels_last,
        sum_dtype=torch.float64,
        is_pinned=False,
    ),
    # Also AMD's, in torch for ROCm.
    "cuda": Traits(
        is_bf16_fast=lambda device: torch.cuda.get_device_capability(device) >= (8, 0),
        memory_format=torch.channels_last,
        sum_dtype=torch.float64,
        is_pinned=True,
    ),
    # Metal has no float64. bf16 is emulated before the M2, and torch does not tell.
    "mps": Traits(
        is_bf16_fast=lambda _: False,
        memory_format=torch.contiguous_format,
        sum_dtype=torch.float32,
        is_pinned=False,
        fallback="PYTORCH_ENABLE_MPS_FALLBACK",
    ),
    # Not all of Intel's GPUs have float64.
    "xpu": Traits(
        is_bf16_fast=lambda _: torch.xpu.is_bf16_supported(including_emulation=False),
        memory_format=torch.channels_last,
        sum_dtype=torch.float32,
        is_pinned=True,
        fallback="PYTORCH_ENABLE_XPU_FALLBACK",
    ),
}
"""torch's name of a kind of device -> how it computes."""

_IS_MISSING = re.compile(
    r"not (currently |yet )?(implemented|supported) (for|on) ", re.I
)
_CANNOT_RUN = re.compile(r"could not run '", re.I)
_OPERATOR = re.compile(r"'([a-z_]\w*::[\w.]+)'|\"(\w+)\" not implemented")


def traits_of(device: torch.device) -> Traits:
    """Return how a device computes."""
    return TRAITS[device.type]


def found_device() -> str:
    """Return the kind of GPU that torch has found and this package knows, or 'cpu'."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found is not None and found.type in TRAITS:
            return found.type
    return "cpu"


def resolve_device(name: str) -> torch.device:
    """Return the device for `train.device`; 'auto' is a GPU where there is one.

    Raises:
        ConfigError: The device is unknown, or torch does not find it.
    """
    known = ("auto", *TRAITS)
    if name not in known:
        raise ConfigError(
            f"expected the device {', '.join(known[:-1])} or {known[-1]}, got {name!r}",
            hint=did_you_mean(name, known),
        )
    found = found_device()
    if name == "auto":
        name = found
    if name not in ("cpu", found):
        builds = {
            "cuda": "for CUDA or ROCm",
            "mps": "for macOS on Apple silicon",
            "xpu": "for Intel GPUs",
        }
        raise ConfigError(
            f"the device is to be {name!r}, and torch {torch.__version__} finds "
            + (f"only {found!r}" if found != "cpu" else "no GPU"),
            hint=f"use auto or {found}, or install torch {builds[name]}",
        )
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> str:
    """Return 'bf16' or 'fp32' for `train.precision` on a device.

    'auto' is bf16 where the hardware multiplies it natively.
    """
    if name != "auto":
        return name
    return "bf16" if traits_of(device).is_bf16_fast(device) else "fp32"


def make_accelerator(name: str, **options: Any) -> Accelerator:
    """Return Accelerate's object for the device of `train.device`.

    Args:
        name: The setting.
        options: Options of the Accelerator.

    Raises:
        ConfigError: The device is not there, or Accelerate prefers another.
    """
    from accelerate import Accelerator  # whoever only predicts does not need it

    device = resolve_device(name)
    accelerator = Accelerator(cpu=device.type == "cpu", **options)
    if accelerator.device.type != device.type:
        raise ConfigError(
            f"the device is to be {device.type!r}, and Accelerate takes "
            f"{accelerator.device.type!r}",
            hint=f"use train.device={accelerator.device.type} or cpu",
        )
    return accelerator


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, its weights in the order that is fastest there."""
    # In two steps: `to` takes one of them at a time.
    network.to(device)
    return network.to(memory_format=traits_of(device).memory_format)


def zero_sums(device: torch.device) -> torch.Tensor:
    """Return the sums of an epoch at its begin, shape (3,): see `loop.train_epoch`."""
    return torch.zeros(3, dtype=traits_of(device).sum_dtype, device=device)


@contextmanager
def naming_missing_operators(device: torch.device) -> Iterator[None]:
    """Name the operation that torch has not for a device, and the way round.

    Raises:
        ConfigError: There was one.
        RuntimeError: There was another error.
    """
    try:
        yield
    except RuntimeError as error:
        operator = missing_operator(error)
        if operator is None or device.type == "cpu":
            raise
        fallback = traits_of(device).fallback
        raise ConfigError(
            f"torch {torch.__version__} has no {operator} for the device "
            f"{device.type!r}",
            hint=f"set {fallback}=1 in the environment, and the CPU computes it, or "
            * bool(fallback)
            + "use the device cpu: --set train.device=cpu for train, --device cpu for "
            "evaluate and predict",
        ) from None


def missing_operator(error: BaseException) -> str | None:
    """Return the name of an operation that a device lacks, from torch's error.

    Example:
        >>> missing_operator(RuntimeError(
        ...     "The operator 'aten::_upsample_bicubic2d_aa.out' is not currently "
        ...     "implemented for the MPS device. If you want this op ..."
        ... ))
        'aten::_upsample_bicubic2d_aa.out'
        >>> missing_operator(RuntimeError("CUDA error: an illegal memory access"))
    """
    text = str(error)
    if not (_IS_MISSING.search(text) or _CANNOT_RUN.search(text)):
        return None
    named = _OPERATOR.search(text)
    if named is None:
        # Such as "Adaptive pool MPS: ... are not implemented on MPS device yet."
        return repr(text.splitlines()[0])
    return named[1] or named[2]
