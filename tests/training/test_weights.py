from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tumorlens.errors import ConfigError, RunError
from tumorlens.training.weights import (
    check_weights,
    find_spoilt,
    load_weights,
    read_state,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

NAME = "test_efficientnet"


def network(**options: Any) -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=3, **options)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(network().state_dict())


def loaded(content: Any, folder: Path) -> dict[str, Tensor]:
    """Return the weights of a fresh network after loading a file of this content."""
    torch.save(content, folder / "w.pth")
    torch.manual_seed(4)
    model = timm.create_model(NAME, num_classes=3)
    load_weights(model, folder / "w.pth", in_chans=3)
    return dict(model.state_dict())


def error_of(content: Any, folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(content, folder)
    return caught.value


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize(
    "key", ["model_state_dict", "net", "weights", "state_dict", "model", "ema"]
)
def test_the_table_of_tensors_in_a_checkpoint_is_found_by_whatever_name(
    state: dict[str, Tensor], tmp_path: Path, key: str, prefix: str
) -> None:
    table = {prefix + name: value for name, value in state.items()}
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
    got = loaded({"epoch": 3, key: table, "optimizer_state": optimizer}, tmp_path)
    assert all(torch.equal(got[name], value) for name, value in state.items())


@pytest.mark.parametrize("prefix", ["model.", "net.backbone."])
def test_the_name_of_an_attribute_before_all_tensors_is_dropped(
    state: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    table = {prefix + name: value for name, value in state.items()}
    got = loaded({"state_dict": table, "pytorch-lightning_version": "2.4"}, tmp_path)
    assert all(torch.equal(got[name], value) for name, value in state.items())
    save_file(table, tmp_path / "w.safetensors")
    model = network()
    assert not load_weights(model, tmp_path / "w.safetensors", in_chans=3)


def test_what_lies_beside_the_network_is_named(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    table = {f"model.{name}": value for name, value in state.items()}
    table["criterion.weight"] = torch.ones(3)
    error = error_of({"state_dict": table}, tmp_path)
    assert "do not fit the network: criterion.weight is not part of it" in error.problem


def test_of_two_tables_none_is_chosen(state: dict[str, Tensor], tmp_path: Path) -> None:
    error = error_of({"generator": state, "critic": state}, tmp_path)
    assert "holds several tables of tensors: generator, critic" in error.problem
    assert "checkpoint['generator']" in error.hint


def test_weights_for_grey_images_are_told_from_those_of_another_network(
    tmp_path: Path,
) -> None:
    grey = network(in_chans=1).state_dict()
    assert error_of(grey, tmp_path).hint == (
        "the weights are for images of 1 channel(s): set model.in_chans=1"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_no_number_is_named_with_its_layer(
    state: dict[str, Tensor], tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    state["classifier.bias"] = (
        state["classifier.bias"].to(dtype).index_fill(0, torch.tensor([1]), value)
    )
    error = error_of(state, tmp_path)
    assert (
        "give no answer: classifier.bias has 1 of 3 values that are NaN or infinite"
        in error.problem
    )


def test_a_negative_variance_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    name = next(key for key in state if key.endswith("running_var"))
    state[name] = -state[name]
    assert f"{name} has negative variances" in error_of(state, tmp_path).problem


def test_sound_weights_have_no_fault(state: dict[str, Tensor]) -> None:
    assert find_spoilt(state) is None
    assert find_spoilt({"count": torch.tensor([-1]), "empty": torch.ones(0)}) is None


def test_weights_of_a_run_are_checked_in_their_file(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    check_weights(path)
    state["classifier.bias"][0] = torch.nan
    save_file(state, path)
    with pytest.raises(RunError, match=r"weights.safetensors gives no answer: classif"):
        check_weights(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(RunError, match="is not a safetensors file"):
        check_weights(path)


def test_a_table_inside_is_read_without_a_network(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"net": state, "best": 0.9}, tmp_path / "w.pth")
    assert read_state(tmp_path / "w.pth").keys() == state.keys()
