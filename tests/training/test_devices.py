"""Devices: which one is taken, and how each computes."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from support.runs_on_images import make_run
from support.working_artefacts import make_artefact
from tumorlens.cli import app
from tumorlens.config import parse_config
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError
from tumorlens.evaluation.measure import evaluate
from tumorlens.runs.progress import Listener
from tumorlens.training import checkpoint, devices, fit, network
from tumorlens.training.devices import (
    TRAITS,
    make_accelerator,
    missing_operator,
    naming_missing_operators,
    place,
    resolve_device,
    resolve_precision,
    zero_sums,
)
from tumorlens.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")

MPS_ERROR = (
    "The operator 'aten::linalg_eig' is not currently implemented for the MPS device. "
    "If you want this op to be considered for addition please comment on "
    "https://github.com/pytorch/pytorch/issues/141287 and mention use-case. As a "
    "temporary fix, you can set the environment variable "
    "`PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback for this op."
)
"""As torch 2.13 writes it."""


def stand_in(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch find a GPU of a kind, or none."""
    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(kind))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)


# Which one


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_takes_the_gpu_that_is_there(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(kind, monkeypatch)
    assert resolve_device("auto").type == kind
    assert resolve_device(kind).type == kind
    assert resolve_device("cpu") == CPU
    (other,) = {"cuda", "mps", "xpu"} - {kind, "cuda" if kind != "cuda" else "mps"}
    with pytest.raises(
        ConfigError, match=rf"is to be '{other}', and torch \S+ finds only '{kind}'"
    ) as caught:
        resolve_device(other)
    assert caught.value.hint.startswith(f"use auto or {kind}, or install torch for ")


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_a_gpu_that_is_not_there_is_an_error(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(None, monkeypatch)
    with pytest.raises(
        ConfigError, match=rf"is to be '{kind}', and torch \S+ finds no GPU"
    ) as caught:
        resolve_device(kind)
    assert caught.value.hint.startswith("use auto or cpu, or install torch for ")
    assert resolve_device("auto") == CPU


def test_a_device_of_another_kind_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("mtia", monkeypatch)
    assert resolve_device("auto") == CPU
    with pytest.raises(ConfigError, match="auto, cpu, cuda, mps or xpu, got 'mtia'"):
        resolve_device("mtia")


def test_the_devices_of_the_setting_are_those_of_the_table() -> None:
    for name in ("auto", *TRAITS):
        assert parse_config({"train": {"device": name}}).train.device == name


def test_a_device_that_accelerate_does_not_take_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert make_accelerator("cpu").device == CPU
    stand_in("xpu", monkeypatch)
    # The stand-in is no device for Accelerate, which has taken the CPU before.
    monkeypatch.setattr(
        "accelerate.Accelerator", lambda **_: SimpleNamespace(device=CPU)
    )
    with pytest.raises(ConfigError, match="to be 'xpu', and Accelerate takes 'cpu'"):
        make_accelerator("auto")


# How it computes


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx2": True, "avx512_f": True}, "fp32"),
        ({"avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_precision_is_bf16_on_a_cpu_that_multiplies_it(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_precision_is_bf16_on_a_gpu_from_ampere_on(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_of_intel_and_apple(
    has_it: bool,  # noqa: FBT001
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def supports(*, including_emulation: bool) -> bool:
        assert not including_emulation
        return has_it

    monkeypatch.setattr(torch.xpu, "is_bf16_supported", supports)
    assert resolve_precision("auto", torch.device("xpu")) == expected
    assert resolve_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_that_is_chosen_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"avx512_bf16": name == "fp32"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: other)
    assert resolve_precision(name, CPU) == name
    assert resolve_precision(name, torch.device("mps")) == name


@pytest.mark.parametrize("kind", list(TRAITS))
def test_the_order_of_channels_and_the_sums_are_those_of_the_device(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The CPU stands in: it computes in either order.
    monkeypatch.setitem(TRAITS, "cpu", TRAITS[kind])
    layer = place(nn.Conv2d(3, 4, 3), CPU)
    (weight, _) = layer.parameters()
    images = network.normalize(
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    for tensor in (weight, images):
        is_last = tensor.is_contiguous(memory_format=torch.channels_last)
        assert is_last == (kind != "mps")
    expected = torch.float64 if kind in ("cpu", "cuda") else torch.float32
    assert zero_sums(CPU).dtype == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_run_trains_and_is_resumed_and_evaluated_with_the_traits_of_a_device(
    kind: str,
    make_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The CPU stands in. It has no memory that could be pinned.
    monkeypatch.setitem(TRAITS, "cpu", replace(TRAITS[kind], is_pinned=False))
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda **_: True)
    config = parse_config(
        {
            "data": {"path": str(make_images()), "cache_dir": str(tmp_path / "cache")},
            "model": {"name": "test_resnet", "pretrained": "no", "size_px": 32},
            "optim": {"epochs": 2},
            "train": {"device": "cpu", "batch_size": 8},
        }
    )
    for name in ("train_epoch", "infer") if kind == "mps" else ():
        on_metal = partial(without_float64, getattr(fit, name))
        monkeypatch.setattr(fit, name, on_metal)
    run = train(config, out=tmp_path / "run").run
    precision = "bf16" if kind == "xpu" else "fp32"
    assert run.environment()["compute"]["precision"] == precision

    broken = tmp_path / "broken"
    assert not train(config, out=broken, listener=Stop()).is_finished
    resumed = train(None, out=broken, resume=True)
    assert resumed.is_finished
    for one, other in zip(run.history(), resumed.run.history(), strict=True):
        assert one["train_loss"] == other["train_loss"]
        assert one["val_loss"] == other["val_loss"]
    assert evaluate(run, device="cpu").num_images > 0


def without_float64(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with NoFloat64():  # type: ignore[no-untyped-call] # torch's base class
        return real(*args, **kwargs)


class NoFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call] # likewise
    """Refuses what Metal refuses."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            raise TypeError(f"{func}: the MPS framework doesn't support float64")
        return found


class Stop(Listener):
    """Presses Ctrl-C after the second batch of the first epoch."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (1, 2):
            signal.raise_signal(signal.SIGINT)


# Generators


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_the_state_of_a_devices_generators_is_kept_and_restored(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [torch.tensor([1, 2], dtype=torch.uint8), torch.zeros(2).byte()]

    def restore(state: Tensor, number: int) -> None:
        states[number] = state

    stand_in(kind, monkeypatch)
    module = SimpleNamespace(
        device_count=lambda: 2,
        get_rng_state=lambda number: states[number].clone(),
        set_rng_state=restore,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    before = checkpoint.get_random_state()
    assert [*before["devices"]] == [kind]
    states[:] = [torch.full((2,), 7).byte()] * 2
    checkpoint.set_random_state(before)
    assert [state.tolist() for state in states] == [[1, 2], [0, 0]]


def test_generators_of_a_device_that_is_gone_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(None, monkeypatch)
    state = checkpoint.get_random_state()
    assert state["devices"] == {}
    drawn = torch.rand(1)
    checkpoint.set_random_state({**state, "devices": {"cuda": [torch.zeros(1)]}})
    assert torch.equal(torch.rand(1), drawn)
    # Written before there were others.
    del state["devices"]
    checkpoint.set_random_state({**state, "cuda": []})
    assert torch.equal(torch.rand(1), drawn)


# Operations that a device lacks


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotImplementedError(MPS_ERROR), "aten::linalg_eig"),
        (
            NotImplementedError(
                "The operator 'aten::_grouped_mm' is not currently implemented for the "
                "XPU device."
            ),
            "aten::_grouped_mm",
        ),
        (
            NotImplementedError(
                "Could not run 'aten::_slow_conv2d_forward' with arguments from the "
                "'XPU' backend. This could be because the operator doesn't exist ..."
            ),
            "aten::_slow_conv2d_forward",
        ),
        (
            RuntimeError(
                "Adaptive pool MPS: input sizes must be divisible by output sizes. "
                "Non-divisible input sizes are not implemented on MPS device yet."
            ),
            (
                "'Adaptive pool MPS: input sizes must be divisible by output sizes. "
                "Non-divisible input sizes are not implemented on MPS device yet.'"
            ),
        ),
        (
            TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework "
                "doesn't support float64."
            ),
            None,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (RuntimeError("CUDA out of memory"), None),
    ],
)
def test_the_missing_operation_is_read_from_torchs_error(
    error: Exception, expected: str | None
) -> None:
    assert missing_operator(error) == expected


def test_an_error_of_the_cpu_stays_what_it_is() -> None:
    with (
        pytest.raises(NotImplementedError, match="linalg_eig"),
        naming_missing_operators(CPU),
    ):
        raise NotImplementedError(MPS_ERROR)
    with (
        pytest.raises(RuntimeError, match="shapes"),
        naming_missing_operators(torch.device("mps")),
    ):
        raise RuntimeError("shapes cannot be multiplied")


HINTS = {
    "mps": "set PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment, and the CPU ",
    "xpu": "set PYTORCH_ENABLE_XPU_FALLBACK=1 in the environment, and the CPU ",
    "cuda": "use the device cpu: --set train.device=cpu for train, --device cpu for",
}


@pytest.mark.parametrize("kind", HINTS)
def test_the_way_round_is_that_of_the_device(kind: str) -> None:
    with (
        pytest.raises(
            ConfigError,
            match=rf"torch \S+ has no aten::linalg_eig for the device '{kind}'",
        ) as caught,
        naming_missing_operators(torch.device(kind)),
    ):
        raise NotImplementedError(MPS_ERROR)
    assert caught.value.hint.startswith(HINTS[kind])


def lacking(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError(MPS_ERROR)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the error of a device be that of the CPU, which does the work."""
    real = naming_missing_operators
    for module in (network, "tumorlens.training.trial", "tumorlens.training.fit"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(
            f"{name}.naming_missing_operators", lambda _: real(torch.device("mps"))
        )


def test_train_and_evaluate_and_predict_name_what_the_device_lacks(
    make_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretend: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_images()
    run = make_run(tmp_path / "run", data)
    monkeypatch.setattr(nn.Conv2d, "forward", lacking)
    train_words = ["train", "--data", data, "--out", tmp_path / "new"]
    for setting in (
        "model.name=test_resnet",
        "model.pretrained=no",
        "model.size_px=32",
    ):
        train_words += ["--set", setting]
    for words in (
        [*train_words, "--set", "train.device=cpu"],
        ["evaluate", run.path, "--device", "cpu"],
        ["predict", run.path, data / "glioma" / "1.png", "--device", "cpu"],
    ):
        assert app.main([str(word) for word in words]) == 2
        problem, hint = capsys.readouterr().err.splitlines()[-2:]
        assert problem.endswith("has no aten::linalg_eig for the device 'mps'")
        assert hint.startswith("hint: set PYTORCH_ENABLE_MPS_FALLBACK=1 in the envi")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_device_that_is_not_there_is_refused_by_name(
    command: str,
    make_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(None, monkeypatch)
    data = make_images(num_each=4)
    run = make_run(tmp_path / "run", data)
    words = [command, str(run.path), "--device", "xpu"]
    words += [str(data)] if command == "predict" else []
    assert app.main(words) == 2
    assert "is to be 'xpu', and torch" in capsys.readouterr().err


def test_the_device_reaches_the_one_inference_pass(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", make_images(num_each=4))
    seen: list[str] = []

    def resolve(name: str) -> torch.device:
        seen.append(name)
        return CPU

    monkeypatch.setattr("tumorlens.evaluation.inference.resolve_device", resolve)
    monkeypatch.setattr(devices, "resolve_device", resolve)
    assert app.main(["evaluate", str(run.path), "--device", "mps"]) == 0
    image = str(tmp_path / "data" / "glioma" / "0.png")
    assert app.main(["predict", str(run.path), image, "--device", "mps"]) == 0
    assert seen == ["mps", "mps"]


def test_an_artefact_is_not_asked_for_a_gpu(tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "artefact", "onnx")
    with pytest.raises(
        ConfigError, match=r"to be 'mps', and \S+artefact is an artefact"
    ):
        Predictor.open(artefact.path, device="mps")
    assert Predictor.open(artefact.path, device="cpu").classes
