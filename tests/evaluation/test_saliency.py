"""Gradient maps: the tap changes no answer, and the maps obey what defines them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from support.small_networks import colours, network
from tumorlens.errors import ConfigError
from tumorlens.evaluation import saliency
from tumorlens.evaluation.saliency import (
    TappedNetwork,
    check_grad_cam,
    grad_cam,
    integrated_gradients,
    randomized,
)
from tumorlens.training.network import as_batch, copy_model, infer, normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

CPU = torch.device("cpu")

NETWORKS: list[tuple[str, int, dict[str, Any], tuple[int, int]]] = [
    ("test_resnet", 64, {}, (2, 2)),
    ("test_convnext", 64, {}, (2, 2)),
    ("densenet121", 64, {"growth_rate": 4, "block_config": (1, 1, 1, 1)}, (2, 2)),
    ("mobilenetv2_035", 64, {}, (2, 2)),
    ("efficientnet_lite0", 64, {}, (2, 2)),
    # With a class token that the head does not read, and without one.
    ("test_vit", 64, {"img_size": 64, "global_pool": "avg"}, (4, 4)),
    (
        "test_vit",
        64,
        {"img_size": 64, "global_pool": "avg", "class_token": False},
        (4, 4),
    ),
    (
        "swin_tiny_patch4_window7_224",
        64,
        {
            **{"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1)},
            "num_heads": (1, 1),
        },
        (8, 8),
    ),
    ("mixer_s32_224", 64, {"img_size": 64}, (2, 2)),
]


def made(name: str, size_px: int, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **arguments).eval()
    # Mixer starts with a last layer of zeros, where no class depends on anything.
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("name", "size_px", "arguments", "grid"),
    NETWORKS,
    ids=[f"{one[0]}-{number}" for number, one in enumerate(NETWORKS)],
)
def test_the_logits_of_a_tapped_network_are_its_own(
    name: str, size_px: int, arguments: dict[str, Any], grid: tuple[int, int]
) -> None:
    model = made(name, size_px, arguments)
    tapped = TappedNetwork(model)
    seen: list[torch.Tensor] = []
    tapped.tap.register_forward_hook(lambda module, given, output: seen.append(output))
    images = torch.randn(2, 3, size_px, size_px)
    with torch.no_grad():
        torch.testing.assert_close(tapped(images), model(images))
    assert seen[0].shape == (2, model.num_features, *grid)


def test_tokens_keep_their_places() -> None:
    # A vision transformer without its blocks: a token only sees its own patch.
    model: Any = made(
        "test_vit", 64, {"img_size": 64, "global_pool": "avg", "class_token": False}
    )
    model.blocks, model.norm = nn.Sequential(), nn.Identity()
    model.pos_embed = None
    seen: list[torch.Tensor] = []
    tapped = TappedNetwork(model)
    tapped.tap.register_forward_hook(lambda module, given, output: seen.append(output))
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 16:32, 48:] = 1
    tapped(images)
    differs = (seen[0] - seen[0][:, :, :1, :1]).abs().sum(dim=1)[0] > 1e-6
    assert differs.nonzero().tolist() == [[1, 3]]


class Patches(nn.Module):
    """Means of 8 x 8 blocks as features; class 0 counts them, class 1 speaks against.

    Class 2 sees the second channel alone.
    """

    num_features = 3

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 8)

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        pooled = features.mean(dim=(2, 3))
        return torch.stack([pooled.sum(dim=1), -pooled.sum(dim=1), pooled[:, 1]], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


@pytest.fixture
def square() -> NDArray[np.uint8]:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:16, 24:] = (255, 51, 0)
    return pixels


def card_of(**changes: Any) -> Any:
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    return network(**{**plain, **changes})[0]


@pytest.mark.parametrize(("label", "value"), [(0, 1.2), (1, -1.2), (2, 0.2)])
def test_grad_cam_of_a_network_by_hand(
    square: NDArray[np.uint8], label: int, value: float
) -> None:
    # Each feature has the gradient 1/16; captum takes their mean over the places.
    heat = grad_cam(Patches(), square, card_of(), CPU, label=label)
    assert heat.shape == (32, 32)
    # The centre of the block, where the bilinear enlargement keeps the value.
    np.testing.assert_allclose(heat[11:13, 27:], value / 16, rtol=0.15)
    assert np.abs(heat[24:, :16]).max() == 0


def test_a_mirrored_card_has_a_map_of_both_images() -> None:
    card, model = network(size_px=64)
    mirrored = card.model_copy(update={"mirror": True})
    image = colours(1, 64)[0]
    one = grad_cam(model, image, card, CPU, label=1)
    other = grad_cam(model, image[:, ::-1].copy(), card, CPU, label=1)[:, ::-1]
    both = grad_cam(model, image, mirrored, CPU, label=1)
    np.testing.assert_allclose(both, (one + other) / 2, atol=1e-6)
    assert not np.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("mirror", [False, True])
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(
    mirror: bool,  # noqa: FBT001
) -> None:
    card, model = network(size_px=64, mirror=mirror)
    image = colours(1, 64)[0]
    grey = np.full_like(image, np.rint(image.mean(axis=(0, 1))))

    def logit(square: NDArray[np.uint8]) -> float:
        views = [square, square[:, ::-1].copy()] if mirror else [square]
        batch = as_batch(np.stack(views))
        with torch.no_grad():
            logits = model(normalize(batch, mean=card.mean, std=card.std))
        return float(logits[:, 2].mean())

    heat = integrated_gradients(model, image, card, CPU, label=2)
    assert heat.shape == (64, 64)
    difference = logit(image) - logit(grey)
    assert heat.sum() == pytest.approx(difference, rel=0.05, abs=0.02)
    assert abs(difference) > 0.1


def test_integrated_gradients_of_a_linear_network_are_exact(
    square: NDArray[np.uint8],
) -> None:
    heat = integrated_gradients(Patches(), square, card_of(), CPU, label=0)
    mean = np.rint(square.mean(axis=(0, 1)))
    expected = (square - mean).sum(axis=2) / 255 / 32**2
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_a_network_that_reads_a_class_token_alone_is_refused_with_the_way_out() -> None:
    card, model = network("test_vit", size_px=160)
    with pytest.raises(
        ConfigError, match=r"test_vit.* no answer depends on.*class token.*"
    ) as caught:
        check_grad_cam(model, card, CPU)
    assert "--method occlusion" in caught.value.hint


class Apart(Patches):
    """Its answer does not come from its features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


class Lists(Patches):
    """Its features are several."""

    def forward_features(self, images: torch.Tensor) -> Any:
        return [images, images]


class Oblong(Patches):
    """Its tokens fill no square."""

    num_prefix_tokens = 0

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).mT[:, :5]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Flatten(), "none between its features and its head"),
        (Apart(), "another answer than its map leads to"),
        (Lists(), "but list"),
        (Oblong(), "but 5 tokens in no square"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_network_without_a_map_of_features_is_refused(
    model: nn.Module, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_grad_cam(model, card_of(), CPU)
    assert "occlusion" in caught.value.hint


def test_a_map_of_one_cell_is_refused_with_the_size() -> None:
    card, model = network()
    with pytest.raises(ConfigError, match="1 x 1 cells for images of 32 pixels"):
        check_grad_cam(model, card, CPU)


def test_it_works_after_the_network_has_predicted() -> None:
    # Inference mode leaves tensors that gradients cannot pass, if any are kept.
    card, model = network("test_vit", size_px=160, arguments={"global_pool": "avg"})
    square = colours(1, 160)[0]
    infer(
        model,
        [as_batch(square[np.newaxis])],
        mean=card.mean,
        std=card.std,
        device=CPU,
        mirror=False,
    )
    assert np.isfinite(integrated_gradients(model, square, card, CPU, label=0)).all()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_parameters()}


def test_weights_are_drawn_anew_from_the_last_layer_down_and_the_network_kept() -> None:
    card, model = network()
    before = weights_of(model)
    changed: list[set[str]] = []
    shares = []
    for share, copy in randomized(model, copy_model(card, model), seed=3):
        after = dict(copy.named_parameters())
        changed.append(
            {name for name in before if not torch.equal(before[name], after[name])}
        )
        shares.append(share)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert changed[0] == {"fc.weight", "fc.bias"}
    assert all(one <= other for one, other in pairwise(changed))
    assert "conv1.0.weight" in changed[-1] - changed[-2]
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])


def test_the_seed_decides_the_random_weights() -> None:
    card, model = network()

    def last(seed: int) -> dict[str, torch.Tensor]:
        *_, (_, copy) = randomized(model, copy_model(card, model), seed=seed)
        return weights_of(copy)

    first, again, other = last(1), last(1), last(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_a_scale_of_its_own_is_drawn_anew_too() -> None:
    # ConvNeXt's layer scale is a parameter of a module that cannot reset it.
    card, model = network("test_convnext")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("gamma"):
                value.copy_(torch.linspace(1, 2, len(value)))
    *_, (_, copy) = randomized(model, copy_model(card, model), seed=0)
    scales = [value for name, value in copy.named_parameters() if "gamma" in name]
    assert scales
    for scale in scales:
        assert scale.std() < 1
        assert not torch.equal(scale, torch.linspace(1, 2, len(scale)))


def test_the_number_of_stages_does_not_exceed_the_layers() -> None:
    assert saliency.NUM_STAGES == 4
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    copy = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert [share for share, _ in randomized(model, copy, seed=0)] == [0.5, 1.0]
