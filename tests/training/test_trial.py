from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tumorlens.config import Config, load_config
from tumorlens.errors import ConfigError, OutOfMemoryError
from tumorlens.training import trial
from tumorlens.training.network import Preprocessing, create_model
from tumorlens.training.trial import try_step

if TYPE_CHECKING:
    from collections.abc import Callable

PREPROCESSING = Preprocessing(32, (0.5,) * 3, (0.2,) * 3)


class Recording(nn.Module):
    """A network of one layer, which notes the sizes of its batches."""

    pretrained_cfg: ClassVar = {"classifier": "head", "input_size": (3, 64, 64)}

    def __init__(self, answer: Callable[[Tensor], Any] = lambda logits: logits) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)
        self.answer = answer

    seen: ClassVar[list[tuple[int, ...]]] = []

    def forward(self, images: Tensor) -> Any:
        self.seen.append(tuple(images.shape))
        return self.answer(self.head(self.norm(images).mean((2, 3))))


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    Recording.seen.clear()


def config_of(**train: int) -> Config:
    return load_config(assignments=[f"train.{key}={of}" for key, of in train.items()])


def run_trial(network: nn.Module, config: Config, *, num_images: int = 100) -> None:
    try_step(
        network,
        config,
        PREPROCESSING,
        num_classes=2,
        num_images=num_images,
        use_bf16=False,
    )


def error_of(network: nn.Module, config: Config | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        run_trial(network, config or config_of())
    assert caught.value.hint
    assert "\n" not in caught.value.problem
    return caught.value


@pytest.mark.parametrize(
    ("train", "num_images", "sizes"),
    [
        ({"batch_size": 8}, 100, [8]),
        ({"batch_size": 8}, 5, [5]),  # there is no larger batch
        ({"batch_size": 8, "accumulate": 4}, 100, [2]),
        ({"batch_size": 8, "accumulate": 3}, 96, [3]),
        ({"batch_size": 8, "accumulate": 3}, 100, [4]),  # so of the last batch of 4
        ({"batch_size": 7, "accumulate": 3}, 100, [4]),  # a single one joins: 3 and 4
        ({"batch_size": 8}, 17, [8]),  # a last batch of one image is left out
        ({"batch_size": 8, "accumulate": 8}, 100, [1]),
        ({"batch_size": 8}, 1, [1]),
    ],
)
def test_the_largest_batch_and_any_single_image_are_tried(
    train: dict[str, int], num_images: int, sizes: list[int]
) -> None:
    run_trial(Recording(), config_of(**train), num_images=num_images)
    assert Recording.seen == [(size, 3, 32, 32) for size in sizes]


def test_the_network_and_the_random_numbers_stay_as_they_were() -> None:
    network = Recording()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    run_trial(network, config_of())
    assert all(
        torch.equal(value, before[name]) for name, value in network.state_dict().items()
    )
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (lambda logits: [logits, logits], "got a list"),
        (lambda logits: logits[:, :, None, None], r"got (32, 2, 1, 1)"),
        (lambda logits: logits[:, :1], "got (32, 1)"),
    ],
)
def test_a_network_that_gives_no_logits_is_named(
    answer: Callable[[Tensor], Any], got: str
) -> None:
    problem = error_of(Recording(answer)).problem
    assert "expected 2 logits per image from resnet18, of shape (32, 2)" in problem
    assert got in problem


def test_a_network_that_does_not_take_the_size_is_named_with_its_own() -> None:
    name = "vit_tiny_patch16_224"
    config = load_config(
        assignments=[f"model.name={name}", "model.pretrained=no", "model.size_px=32"]
    )
    network, preprocessing = create_model(config.model, num_classes=2)
    assert preprocessing.size_px == 32
    error = error_of(network, config)
    assert f"{name} does not take images of 32 x 32 pixels: Input " in error.problem
    assert "set model.size_px=224, its own size" in error.hint


def test_a_network_too_deep_for_the_size_is_named() -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("Kernel size can't be greater than actual input size\nmore")

    error = error_of(Recording(fail))
    assert error.problem == (
        "resnet18 does not take images of 32 x 32 pixels: Kernel size can't be greater "
        "than actual input size"
    )
    assert error.hint.startswith("set model.size_px=64, its own size")


@pytest.mark.parametrize(
    "train", [{"batch_size": 1}, {"batch_size": 4, "accumulate": 4}]
)
def test_batch_norm_of_a_single_image_is_named_with_what_to_set(
    train: dict[str, int],
) -> None:
    class Deep(Recording):
        def forward(self, images: Tensor) -> Any:
            return self.head(self.norm(images.mean((2, 3), keepdim=True)).flatten(1))

    error = error_of(Deep(), config_of(**train))
    assert "resnet18 cannot be trained on a single image of 32 x 32" in error.problem
    assert "train.batch_size" in error.hint
    assert "train.accumulate" in error.hint
    run_trial(Recording(), config_of(**train))  # each channel has many values


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_want_of_memory_names_the_settings_to_change(error: Exception) -> None:
    def fail(_: Tensor) -> Tensor:
        raise error

    config = load_config(assignments=["train.batch_size=16", "train.accumulate=2"])
    with pytest.raises(OutOfMemoryError) as caught:
        run_trial(Recording(fail), config)
    assert caught.value.problem == (
        "memory ran out: resnet18 with a batch of 16 images of 32 x 32 pixels in 2 "
        "parts"
    )
    assert "train.accumulate=4" in caught.value.hint


def test_an_error_of_another_kind_stays_what_it_is() -> None:
    with (
        pytest.raises(RuntimeError, match="of ours"),
        trial.naming_memory(config_of(), PREPROCESSING),
    ):
        raise RuntimeError("a fault of ours")
