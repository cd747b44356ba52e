"""Networks, their weights in and out, and the one inference pass."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import Tensor, nn

import tumorlens
from tumorlens.config import ModelConfig
from tumorlens.errors import ConfigError, RunError
from tumorlens.runs.folder import ModelCard
from tumorlens.stats.calibration import answered_probs
from tumorlens.training import network
from tumorlens.training.network import (
    classifier_layers,
    create_model,
    infer,
    load_model,
    model_arguments,
    normalize,
    set_trainable,
)
from tumorlens.training.weights import weights_as_bytes

CPU = torch.device("cpu")
NAME = "test_efficientnet"
SIZE = 32


def settings(**changes: Any) -> ModelConfig:
    return ModelConfig(**({"name": NAME, "pretrained": "no"} | changes))


def network_of(num_classes: int = 4, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_model(settings(**changes), num_classes=num_classes)[0].eval()


def cfg_of(name: str) -> Any:
    return timm.get_pretrained_cfg(name)


def noise(num: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num, channels, SIZE, SIZE, generator=generator)


def answer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model.eval()(images)
    return logits


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """A network with a head of ten classes, made by timm alone."""
    torch.manual_seed(7)
    model = timm.create_model(NAME, num_classes=10)
    model.eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.1)
    return model


@pytest.fixture
def safetensors(teacher: nn.Module, tmp_path: Path) -> Path:
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


# Names and variations


def test_the_network_is_timms_with_so_many_outputs() -> None:
    assert answer(network_of(5), noise()).shape == (2, 5)
    assert type(network_of()) is type(timm.create_model(NAME))


def test_an_unknown_name_is_refused_with_the_closest_one() -> None:
    with pytest.raises(
        ConfigError, match=rf"unknown model\.name 'resnet19'.*timm {timm.__version__}"
    ) as caught:
        create_model(settings(name="resnet19"), num_classes=4)
    assert caught.value.hint == "did you mean 'resnet18'?"


def test_a_part_of_a_name_is_answered_with_the_names_that_have_it() -> None:
    with pytest.raises(ConfigError, match=r"'test_effi'") as caught:
        create_model(settings(name="test_effi"), num_classes=4)
    assert "test_efficientnet" in caught.value.hint


def test_the_case_of_a_name_does_not_hide_the_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'RESNET50'") as caught:
        create_model(settings(name="RESNET50"), num_classes=4)
    assert caught.value.hint == "did you mean 'resnet50'?"


def test_a_name_like_nothing_is_answered_briefly() -> None:
    with pytest.raises(ConfigError, match=r"'zzzz'") as caught:
        create_model(settings(name="zzzz"), num_classes=4)
    assert len(caught.value.hint) < 200


def test_the_dropout_reaches_the_network() -> None:
    # The dropout before the last layer zeroes most features of a network in training.
    model = network_of(drop_rate=0.9)
    seen: list[Tensor] = []
    classifier_layers(model)[0].register_forward_pre_hook(
        lambda _layer, inputs: seen.append(inputs[0])
    )
    model.train()(noise(8))
    assert 0.8 < (seen[0] == 0).double().mean() < 1
    answer(model, noise(8))
    assert (seen[1] == 0).double().mean() < 0.5


def test_the_stochastic_depth_reaches_the_network() -> None:
    def num_dropped(model: nn.Module) -> int:
        return sum(
            isinstance(module, DropPath) and bool(module.drop_prob)
            for module in model.modules()
        )

    assert num_dropped(network_of(drop_path_rate=0.5)) > 0
    assert num_dropped(network_of()) == 0


@pytest.mark.parametrize("pool", ["avg", "max"])
def test_the_pooling_reaches_the_network(pool: str) -> None:
    model = network_of(global_pool=pool)
    with torch.inference_mode():
        features = model.forward_features(noise())  # type: ignore[operator]
    pooled = features.mean((2, 3)) if pool == "avg" else features.amax((2, 3))
    head = classifier_layers(model)[0]
    assert answer(model, noise()).numpy() == pytest.approx(
        head(pooled).detach().numpy(), abs=1e-5
    )


def test_a_grey_network_takes_one_channel() -> None:
    model, preprocessing = create_model(settings(in_chans=1), num_classes=4)
    assert answer(model, noise(channels=1)).shape == (2, 4)
    assert len(preprocessing.mean) == len(preprocessing.std) == 1


def test_extra_arguments_reach_the_network() -> None:
    torch.manual_seed(0)
    same = network_of(extra={"pad_type": "same"})
    symmetric = network_of(extra={"pad_type": ""})
    symmetric.load_state_dict(same.state_dict())
    assert not torch.allclose(answer(same, noise()), answer(symmetric, noise()))


def test_an_argument_that_the_network_does_not_take_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"test_efficientnet cannot be made with wings=2: .*wings"
    ) as caught:
        create_model(settings(extra={"wings": 2}), num_classes=4)
    assert caught.value.hint.endswith("remove 'wings' from model.extra")


def test_the_arguments_are_only_what_the_settings_change() -> None:
    assert model_arguments(settings()) == {}
    changed = settings(
        drop_rate=0.2, drop_path_rate=0.1, global_pool="max", extra={"pad_type": "same"}
    )
    assert model_arguments(changed) == {
        **{"drop_rate": 0.2, "drop_path_rate": 0.1},
        **{"global_pool": "max", "pad_type": "same"},
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_vit", ["head"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
    ],
)
def test_the_classifier_layers_are_those_of_so_many_classes(
    name: str, expected: list[str]
) -> None:
    extra = {"depth": 1} if "deit" in name else {}
    model = network_of(3, name=name, extra=extra)
    layers = classifier_layers(model)
    assert layers == [model.get_submodule(part) for part in expected]
    assert {layer.out_features for layer in layers} == {3}


def learning(model: nn.Module) -> set[str]:
    return {name for name, part in model.named_parameters() if part.requires_grad}


def test_all_parts_learn_unless_they_are_named() -> None:
    model = network_of()
    everything = {name for name, _ in model.named_parameters()}
    set_trainable(model)
    assert learning(model) == everything
    assert model.training

    set_trainable(model, frozen=["conv_stem", "blocks.0"])
    still = {n for n in everything if n.startswith(("conv_stem.", "blocks.0."))}
    assert still
    assert learning(model) == everything - still
    assert not model.get_submodule("blocks.0").training
    assert model.get_submodule("blocks.1").training

    set_trainable(model)  # and back
    assert learning(model) == everything
    assert model.get_submodule("blocks.0").training


def test_only_the_head_learns_when_the_rest_is_frozen() -> None:
    model = network_of()
    set_trainable(model, head_only=True)
    assert learning(model) == {"classifier.weight", "classifier.bias"}
    assert [n for n, part in model.named_modules() if part.training] == ["classifier"]


@pytest.mark.parametrize("name", ["blocks.9", "stem", ""])
def test_a_part_that_the_network_does_not_have_is_named(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"train\.freeze: the network has no part '{name}'"
    ) as caught:
        set_trainable(network_of(), frozen=[name])
    assert "conv_stem" in caught.value.hint or "blocks." in caught.value.hint


# Weights from a file


def test_a_safetensors_file_gives_its_network(
    teacher: nn.Module, safetensors: Path
) -> None:
    model, _ = create_model(settings(pretrained=str(safetensors)), num_classes=10)
    assert torch.equal(answer(model, noise()), answer(teacher, noise()))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_a_pth_file_gives_its_network(
    wrap: str | None, teacher: nn.Module, tmp_path: Path
) -> None:
    state = teacher.state_dict()
    torch.save({wrap: state} if wrap else state, tmp_path / "w.pth")
    model, _ = create_model(
        settings(pretrained=str(tmp_path / "w.pth")), num_classes=10
    )
    assert torch.equal(answer(model, noise()), answer(teacher, noise()))


def test_a_head_of_another_size_is_new_and_the_rest_is_kept(
    teacher: nn.Module, safetensors: Path
) -> None:
    model, _ = create_model(settings(pretrained=str(safetensors)), num_classes=4)
    with torch.inference_mode():
        ours = model.eval().forward_features(noise())  # type: ignore[operator]
        theirs = teacher.forward_features(noise())  # type: ignore[operator]
    assert torch.equal(ours, theirs)
    # All classes alike: the first loss is log(4), whatever the features.
    log_probs = answer(model, noise(16)).log_softmax(1)
    assert -log_probs.mean().item() == pytest.approx(math.log(4), abs=0.05)
    assert log_probs.std() > 0  # and yet not all zero, so that it can learn
    assert classifier_layers(model)[0].bias.abs().max() == 0  # type: ignore[operator]


def test_new_channels_are_summed_over_for_grey_input(
    teacher: nn.Module, safetensors: Path
) -> None:
    model, _ = create_model(
        settings(pretrained=str(safetensors), in_chans=1), num_classes=10
    )
    grey = noise(channels=1)
    expected = answer(teacher, grey.expand(-1, 3, -1, -1))
    assert answer(model, grey).numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_file_without_the_counters_of_batch_norm_fits(
    teacher: nn.Module, tmp_path: Path
) -> None:
    state = teacher.state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del state[name]
    save_file(state, tmp_path / "w.safetensors")
    model, _ = create_model(
        settings(pretrained=str(tmp_path / "w.safetensors")), num_classes=10
    )
    assert torch.equal(answer(model, noise()), answer(teacher, noise()))


def damaged_state(teacher: nn.Module, kind: str) -> dict[str, Tensor]:
    state = dict(teacher.state_dict())
    if kind == "missing":
        del state["conv_stem.weight"], state["bn1.weight"]
    elif kind == "more":
        state["wings.weight"] = torch.zeros(2)
    else:
        state["conv_stem.weight"] = torch.zeros(5, 3, 3, 3)
    return state


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", r"bn1\.weight is missing; conv_stem\.weight is missing$"),
        ("more", r"wings\.weight is not part of it$"),
        ("shape", r"conv_stem\.weight is \(5, 3, 3, 3\) and not \(\d+, 3, 3, 3\)$"),
    ],
)
def test_any_other_mismatch_names_the_tensors(
    kind: str, problem: str, teacher: nn.Module, tmp_path: Path
) -> None:
    save_file(damaged_state(teacher, kind), tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"w\.safetensors do not fit") as caught:
        create_model(
            settings(pretrained=str(tmp_path / "w.safetensors")), num_classes=10
        )
    assert re.search(problem, caught.value.problem)
    assert "model.name" in caught.value.hint


def test_many_mismatches_are_counted(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    names = network_of().state_dict()
    # The counters of batch norm are nobody's loss.
    num_wrong = 1 + sum(not name.endswith("num_batches_tracked") for name in names)
    with pytest.raises(ConfigError, match=rf", and {num_wrong - 3} more"):
        create_model(
            settings(pretrained=str(tmp_path / "w.safetensors")), num_classes=4
        )


def test_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.pretrained: no such file: 'nowhere\.pth'"
    ) as caught:
        create_model(settings(pretrained="nowhere.pth"), num_classes=4)
    assert "'auto', 'yes', 'no'" in caught.value.hint


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    zipped: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    bomb = {"a": torch.zeros(1), "b": Bomb(tmp_path / "was-run")}
    torch.save(bomb, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ConfigError, match=r"w\.pth is a pickle with code in it"
    ) as caught:
        create_model(settings(pretrained=str(tmp_path / "w.pth")), num_classes=4)
    assert "the code was not run" in caught.value.hint
    assert not (tmp_path / "was-run").exists()
    # The bomb is a real one.
    pickle.loads(pickle.dumps(Bomb(tmp_path / "was-run")))
    assert (tmp_path / "was-run").exists()


def test_a_pickle_of_another_protocol_is_refused_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Bomb(tmp_path)}, protocol=4))
    with pytest.raises(ConfigError, match="is a pickle with code in it"):
        create_model(settings(pretrained=str(tmp_path / "w.pth")), num_classes=4)
    assert not [one for one in recwarn if "pickle" in str(one.message)]


def test_a_truncated_safetensors_file_is_named(safetensors: Path) -> None:
    safetensors.write_bytes(safetensors.read_bytes()[:-100])
    with pytest.raises(
        ConfigError, match=r"teacher\.safetensors is not a safetensors file: "
    ) as caught:
        create_model(settings(pretrained=str(safetensors)), num_classes=10)
    assert "download it again" in caught.value.hint


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_pth_file_is_named(
    share: float, teacher: nn.Module, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    torch.save(teacher.state_dict(), buffer)
    content = buffer.getvalue()
    (tmp_path / "w.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ConfigError, match=r"w\.pth (cannot be read|is a pickle)"):
        create_model(settings(pretrained=str(tmp_path / "w.pth")), num_classes=10)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (torch.zeros(3), "cannot be read as named tensors"),
        ([1, 2], "cannot be read as named tensors"),
        ({"epoch": 3}, "holds something else than named tensors: 'epoch'"),
    ],
    ids=["a tensor", "a list", "numbers"],
)
def test_a_pth_file_of_something_else_is_refused(
    content: Any, problem: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=rf"w\.pth {problem}"):
        create_model(settings(pretrained=str(tmp_path / "w.pth")), num_classes=4)


def test_damaged_bytes_never_end_in_a_traceback(
    teacher: nn.Module, tmp_path: Path
) -> None:
    small = {"conv.weight": torch.randn(4, 3), "bias": torch.zeros(2)}
    buffer = io.BytesIO()
    torch.save(small, buffer, _use_new_zipfile_serialization=False)
    rng = np.random.default_rng(0)
    for _ in range(25):
        content = bytearray(buffer.getvalue())
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(ConfigError, match=r"w\.pth"):
            create_model(settings(pretrained=str(tmp_path / "w.pth")), num_classes=4)


# What a safetensors file says about itself


def with_metadata(teacher: nn.Module, path: Path, **metadata: str) -> Path:
    save_file(teacher.state_dict(), path, metadata)
    return path


def test_the_metadata_of_the_weights_are_honoured(
    teacher: nn.Module, tmp_path: Path
) -> None:
    path = with_metadata(
        teacher,
        tmp_path / "w.safetensors",
        mean="0.25,0.5,0.75",
        std="0.1,0.2,0.3",
        pad_type="same",
        architecture=f"{NAME}.some_tag",
    )
    config = settings(pretrained=str(path))
    model, preprocessing = create_model(config, num_classes=10)
    assert preprocessing.mean == (0.25, 0.5, 0.75)
    assert preprocessing.std == (0.1, 0.2, 0.3)
    same = timm.create_model(NAME, num_classes=10, pad_type="same")
    same.load_state_dict(teacher.state_dict())
    assert torch.equal(answer(model, noise()), answer(same, noise()))
    assert not torch.allclose(answer(model, noise()), answer(teacher, noise()))
    # A run is rebuilt from its card, without the file.
    assert model_arguments(config) == {"pad_type": "same"}


def test_the_settings_go_before_the_metadata(
    teacher: nn.Module, tmp_path: Path
) -> None:
    path = with_metadata(
        teacher,
        tmp_path / "w.safetensors",
        mean="not, a, number",
        std="0.1,0.2,0.3",
        pad_type="same",
    )
    config = settings(
        pretrained=str(path),
        mean=[0.5, 0.6, 0.7],
        std=[1.0, 2.0, 3.0],
        size_px=64,
        extra={"pad_type": ""},
    )
    model, preprocessing = create_model(config, num_classes=10)
    assert preprocessing == network.Preprocessing(64, (0.5, 0.6, 0.7), (1.0, 2.0, 3.0))
    assert torch.equal(answer(model, noise()), answer(teacher, noise()))


def test_without_metadata_the_preprocessing_is_timms(safetensors: Path) -> None:
    for config in (settings(), settings(pretrained=str(safetensors))):
        _, preprocessing = create_model(config, num_classes=4)
        theirs = cfg_of(NAME)
        assert preprocessing.mean == tuple(theirs.mean)
        assert preprocessing.std == tuple(theirs.std)
        assert preprocessing.size_px == theirs.input_size[1]


def test_grey_input_has_the_mean_over_the_channels(
    teacher: nn.Module, tmp_path: Path
) -> None:
    path = with_metadata(
        teacher, tmp_path / "w.safetensors", mean="0.2,0.3,0.7", std="0.1,0.2,0.6"
    )
    _, preprocessing = create_model(
        settings(pretrained=str(path), in_chans=1), num_classes=10
    )
    assert preprocessing.mean == pytest.approx((0.4,))
    assert preprocessing.std == pytest.approx((0.3,))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mean", "[0.5, 0.5, 0.5]"),
        ("mean", "0.5,0.5"),
        ("mean", "0.5,nan,0.5"),
        ("mean", ""),
        ("std", "0.5,0,0.5"),
    ],
)
def test_metadata_that_are_no_three_numbers_are_refused(
    name: str, text: str, teacher: nn.Module, tmp_path: Path
) -> None:
    path = with_metadata(teacher, tmp_path / "w.safetensors", **{name: text})
    with pytest.raises(
        ConfigError, match=re.escape(f"{name}={text!r}, expected three numbers")
    ) as caught:
        create_model(settings(pretrained=str(path)), num_classes=10)
    assert "model.mean" in caught.value.hint


def test_weights_of_another_architecture_are_refused(
    teacher: nn.Module, tmp_path: Path
) -> None:
    path = with_metadata(
        teacher, tmp_path / "w.safetensors", architecture="mobilenetv2_100"
    )
    with pytest.raises(
        ConfigError,
        match=rf"holds weights of 'mobilenetv2_100', and model\.name is '{NAME}'",
    ) as caught:
        create_model(settings(pretrained=str(path)), num_classes=10)
    assert "'mobilenetv2_100'" in caught.value.hint


# Weights from the hub, which test_hub fetches


def fill_hub_cache(
    teacher: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lay the teacher where the hub's client keeps what it has fetched."""
    name = cfg_of(NAME).hf_hub_id.replace("/", "--")
    repository = folder / f"models--{name}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    save_file(teacher.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_network_without_pretrained_weights_is_named() -> None:
    name = "coatnet_0_224"
    assert not cfg_of(name).hf_hub_id
    with pytest.raises(
        ConfigError, match=rf"no pretrained weights for model\.name '{name}'"
    ) as caught:
        create_model(settings(name=name, pretrained="auto"), num_classes=4)
    assert "'no' for random ones" in caught.value.hint


def test_weights_that_were_fetched_before_need_no_network(
    teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    thousand = timm.create_model(NAME)
    thousand.eval()
    fill_hub_cache(thousand, tmp_path, monkeypatch)
    model, _ = create_model(settings(pretrained="auto"), num_classes=4)
    with torch.inference_mode():
        ours = model.eval().forward_features(noise())  # type: ignore[operator]
        theirs = thousand.forward_features(noise())  # type: ignore[operator]
    assert torch.equal(ours, theirs)
    # The head is new, and begins with all classes alike.
    losses = -answer(model, noise(16)).log_softmax(1)
    assert losses.mean().item() == pytest.approx(math.log(4), abs=0.05)
    # One of the same size is kept.
    whole, _ = create_model(settings(pretrained="yes"), num_classes=1000)
    assert torch.equal(answer(whole, noise()), answer(thousand, noise()))


# Weights out, and back in


def card(**changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "format": 1,
        "tumorlens": tumorlens.__version__,
        "name": NAME,
        "classes": ("a", "b", "c", "d"),
        "in_chans": 3,
        "size_px": SIZE,
        "fit": "pad",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "mirror": False,
        "epoch": 1,
        "weights_sha256": "0" * 64,
    }
    return ModelCard(**(values | changes))


def test_saved_weights_are_a_copy_of_that_moment(tmp_path: Path) -> None:
    model = network_of()
    before = answer(model, noise())
    content = weights_as_bytes(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert not torch.allclose(answer(model, noise()), before)
    (tmp_path / "w.safetensors").write_bytes(content)
    again = load_model(card(), tmp_path / "w.safetensors")
    assert torch.equal(again(noise()), before)
    assert not again.training


def test_saved_weights_need_only_timm(tmp_path: Path) -> None:
    model = network_of(drop_rate=0.3, global_pool="max").to(
        memory_format=torch.channels_last
    )
    (tmp_path / "w.safetensors").write_bytes(weights_as_bytes(model))
    theirs = timm.create_model(
        NAME,
        num_classes=4,
        global_pool="max",
        checkpoint_path=str(tmp_path / "w.safetensors"),
    )
    assert answer(theirs, noise()).numpy() == pytest.approx(
        answer(model, noise()).numpy(), abs=1e-5
    )


def test_a_run_is_rebuilt_with_the_arguments_of_its_card(tmp_path: Path) -> None:
    model = network_of(extra={"pad_type": "same"}, global_pool="max")
    (tmp_path / "w.safetensors").write_bytes(weights_as_bytes(model))
    again = load_model(
        card(arguments={"pad_type": "same", "global_pool": "max"}),
        tmp_path / "w.safetensors",
    )
    assert torch.equal(again(noise()), answer(model, noise()))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": ("a", "b")}, "Error"),
        ({"name": "test_vit"}, "Error"),
        ({"name": "no_such_net"}, "no_such_net cannot be made"),
        ({"arguments": {"wings": 2}}, "wings=2"),
    ],
    ids=["classes", "name", "unknown name", "arguments"],
)
def test_weights_that_do_not_fit_their_card_are_refused(
    changes: Any, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights_as_bytes(network_of()))
    with pytest.raises(
        RunError, match=rf"w\.safetensors does not fit .*model\.json: .*{problem}"
    ) as caught:
        load_model(card(**changes), path)
    assert "\n" not in caught.value.problem


def test_damaged_weights_of_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(RunError, match=r"w\.safetensors does not fit"):
        load_model(card(), tmp_path / "w.safetensors")


# The inference pass


def decoded(num: int = 5, channels: int = 3) -> Tensor:
    rng = np.random.default_rng(2)
    return torch.from_numpy(
        rng.integers(0, 256, (num, channels, SIZE, SIZE), dtype=np.uint8)
    )


MEAN, STD = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)


def test_normalizing_subtracts_the_mean_and_divides_by_std() -> None:
    images = decoded()
    got = normalize(images, mean=MEAN, std=STD)
    expected = (images.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(
        STD, (3, 1, 1)
    )
    assert got.numpy() == pytest.approx(expected, abs=1e-5)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_grey_image_is_repeated_to_the_channels_of_the_network() -> None:
    grey = decoded(channels=1)
    got = normalize(grey, mean=MEAN, std=STD)
    expected = normalize(grey.expand(-1, 3, -1, -1), mean=MEAN, std=STD)
    assert torch.equal(got, expected)


def run(model: nn.Module, batches: list[Tensor], *, mirror: bool = False) -> Any:
    return infer(model, batches, mean=MEAN, std=STD, device=CPU, mirror=mirror)


def probs_by_hand(model: nn.Module, images: Tensor) -> Any:
    return answer(model, normalize(images, mean=MEAN, std=STD)).softmax(1).numpy()


def test_the_answers_are_logarithms_of_probabilities_in_order() -> None:
    model = network_of()
    images = decoded()
    log_probs = run(model, [images[:2], images[2:]])
    assert log_probs.shape == (5, 4)
    assert log_probs.dtype == np.float32
    assert np.exp(log_probs).sum(axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    expected = np.concatenate([probs_by_hand(model, image[None]) for image in images])
    assert np.exp(log_probs) == pytest.approx(expected, abs=1e-5)
    assert len(np.unique(expected.round(6), axis=0)) == 5


def test_mirroring_averages_the_two_probabilities() -> None:
    model = network_of()
    images = decoded()
    expected = (probs_by_hand(model, images) + probs_by_hand(model, images.flip(3))) / 2
    got = np.exp(run(model, [images], mirror=True))
    assert got == pytest.approx(expected, abs=1e-5)
    assert abs(got - probs_by_hand(model, images)).max() > 1e-4


def test_mirroring_makes_an_image_and_its_mirror_alike() -> None:
    model, images = network_of(), decoded()
    one, other = (
        run(model, [batch], mirror=True) for batch in (images, images.flip(3))
    )
    assert one == pytest.approx(other, abs=1e-5)


def test_inference_switches_dropout_and_batch_statistics_off() -> None:
    model = network_of(drop_rate=0.9, drop_path_rate=0.5).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    first = run(model, [decoded()])
    again = run(model, [decoded()])
    assert (first == again).all()
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name])


def test_a_probability_of_nearly_nothing_stays_finite() -> None:
    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[500.0, -500.0]]).expand(len(images), -1)

    for mirror in (False, True):
        log_probs = run(Sure(), [decoded()], mirror=mirror)
        assert log_probs[0].tolist() == [0.0, -1000.0]


def test_no_images_give_no_answers() -> None:
    assert run(network_of(), []).shape == (0, 0)


# What no run may pass to timm, and answers that are none


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("global_pool", r"model\.extra\.global_pool is a setting of its own"),
        ("in_chans", r"model\.extra\.in_chans is a setting of its own"),
        ("checkpoint_path", r"model\.extra\.checkpoint_path is no argument of a netw"),
        ("features_only", r"model\.extra\.features_only is no argument of a network"),
        ("pretrained_cfg_overlay", r"pretrained_cfg_overlay is no argument"),
        ("num_classes", r"num_classes is no argument"),
    ],
)
def test_extra_takes_arguments_of_the_network_only(name: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        create_model(settings(extra={name: 1}, global_pool="max"), num_classes=4)
    assert caught.value.hint


def card_of(**changes: Any) -> ModelCard:
    values = {
        "tumorlens": "0",
        "name": NAME,
        "classes": ("a", "b", "c", "d"),
        "in_chans": 3,
        "size_px": SIZE,
        "fit": "pad",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "mirror": False,
        "epoch": 1,
        "weights_sha256": "0" * 64,
    }
    return ModelCard.model_validate(values | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"checkpoint_path": "FILE"}},
        {"arguments": {"pretrained_cfg_overlay": {"file": "FILE"}}},
        {"name": "local-dir:FOLDER"},
        {"name": "hf-hub:someone/something"},
    ],
    ids=["checkpoint", "overlay", "folder", "hub"],
)
def test_a_card_reads_no_other_file_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("timm was called")

    (tmp_path / "w.safetensors").write_bytes(weights_as_bytes(network_of()))
    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(RunError, match=r"cannot be made: .*(no such net|no argument)"):
        load_model(card_of(**changes), tmp_path / "w.safetensors")


def test_weights_of_a_run_that_are_no_numbers_are_refused_by_their_layer(
    tmp_path: Path,
) -> None:
    model = network_of()
    with torch.no_grad():
        model.get_parameter("classifier.bias")[2] = torch.inf
    (tmp_path / "w.safetensors").write_bytes(weights_as_bytes(model))
    with pytest.raises(
        RunError, match=r"w.safetensors gives no answer: classifier\.bias has 1 of 4"
    ):
        load_model(card_of(), tmp_path / "w.safetensors")


def test_an_answer_that_is_no_number_is_no_answer() -> None:
    class Overflow(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = torch.zeros(len(images), 2)
            logits[images.amax((1, 2, 3)) > 1] = torch.nan
            return logits

    batches = [torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1, 1)]
    with pytest.raises(RunError, match="answer to 1 of 3 images is NaN or infinite"):
        infer(
            Overflow(),
            batches,
            mean=(0.0,),
            std=(0.5,),
            device=CPU,
            mirror=False,
        )


def test_a_head_of_two_tokens_has_one_embedding() -> None:
    name = "deit_tiny_distilled_patch16_224"
    model = timm.create_model(name, num_classes=3, img_size=32).eval()
    card = ModelCard(
        tumorlens="0",
        name=name,
        classes=("a", "b", "c"),
        in_chans=3,
        size_px=32,
        fit="pad",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        mirror=True,
        epoch=1,
        weights_sha256="0" * 64,
    )
    batch = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = network.answer(model, [batch], card, torch.device("cpu"))
    assert found.logits.shape == (2, 2, 3)
    assert found.embedding.shape == (2, 192)
    probs = network.predict_probs(model, [batch], card, torch.device("cpu"))
    np.testing.assert_allclose(answered_probs(found.logits, 1.0), probs, atol=1e-6)
