"""Maps of a network by its gradients: Grad-CAM and integrated gradients.

captum computes both. What is added here is where Grad-CAM is taken: at the last feature
map of any timm network, between its `forward_features` and its `forward_head`. Layers
chosen by name or from `feature_info` are silently wrong for networks of tokens, whose
layers do not have the shape (N, C, H, W) that Grad-CAM averages over.

Both maps show what the class's logit rests on, and neither shows where a tumour is.
`tumorlens.evaluation.map_checks` measures what a map is worth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor, nn
from torch.nn import functional

from tumorlens.errors import ConfigError
from tumorlens.evaluation.occlusion import mean_value
from tumorlens.training.devices import naming_missing_operators
from tumorlens.training.network import as_input, normalize
from tumorlens.training.views import POLICIES, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from tumorlens.runs.folder import ModelCard

NUM_STEPS = 20
"""Points of the path of integrated gradients: the fewest that the source calls enough
(20 to 300)."""

NUM_STAGES = 4
"""Steps of the randomization after the last layer: a quarter of the layers each."""

_STEPS_AT_ONCE = 8
_OCCLUSION = "use --method occlusion, which needs predictions alone"


class TappedNetwork(nn.Module):
    """A timm network whose last feature map passes through `tap` as (N, C, H, W).

    The logits are those of the network. Tokens that are no place of the image, such as
    a class token, are kept aside and put back before the head.

    Args:
        model: A network from `training.network.create_model`.

    Raises:
        ConfigError: It has no `forward_features` and `forward_head`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            _refuse(model, "none between its features and its head")
        self.model = model
        self.tap = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalized images (N, C, S, S).

        Raises:
            ConfigError: The features have no place in the image.
        """
        model: Any = self.model
        features = model.forward_features(images)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            shape = getattr(features, "shape", type(features).__name__)
            _refuse(model, f"but {shape}")
        if features.ndim == 3:  # (N, L, C)
            num_prefix, side = self._grid(features.shape[1])
            prefix, tokens = features[:, :num_prefix], features[:, num_prefix:]
            tapped = self.tap(tokens.mT.reshape(*tokens.mT.shape[:2], side, side))
            features = torch.cat([prefix, tapped.flatten(2).mT], dim=1)
        elif self._is_channels_last(features):  # (N, H, W, C)
            features = self.tap(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            features = self.tap(features)
        logits: Tensor = model.forward_head(features)
        return logits

    def _grid(self, num_tokens: int) -> tuple[int, int]:
        """Return the number of tokens without a place, and the side of the others."""
        side = math.isqrt(num_tokens)
        num_prefix = getattr(self.model, "num_prefix_tokens", num_tokens - side**2)
        side = math.isqrt(num_tokens - num_prefix)
        if side**2 + num_prefix != num_tokens:
            _refuse(self.model, f"but {num_tokens} tokens in no square")
        return num_prefix, side

    def _is_channels_last(self, features: Tensor) -> bool:
        if getattr(self.model, "output_fmt", None) is not None:
            return str(self.model.output_fmt).endswith("NHWC")
        num_features = getattr(self.model, "num_features", features.shape[1])
        return features.shape[1] != num_features and features.shape[3] == num_features


def grad_cam(
    model: nn.Module,
    square: NDArray[np.uint8],
    card: ModelCard,
    device: torch.device,
    *,
    label: int,
) -> NDArray[np.float32]:
    """Return the Grad-CAM map of one class, enlarged to the square.

    The channels of the last feature map are added, each weighted by the mean gradient
    of the class's logit. Values below 0, which the source sets to 0, are kept: they
    speak against the class, and a map with them can be compared with other maps. Where
    the card averages over mirror images, so does the map; shifted and zoomed views are
    left out.

    Args:
        model: Network of the card, on `device`.
        square: Input of the network, shape (S, S, C).
        card: Normalization and views.
        device: Device of the computation.
        label: Index of the class.

    Returns:
        Shape (S, S); positive where the image supports the class.

    Raises:
        ConfigError: The network has no feature map, see `TappedNetwork`.

    Source:
        Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via
        Gradient-based Localization, ICCV 2017, section 3.
    """
    tapped = TappedNetwork(model).eval()
    images = _normalized(square, card, device)
    policy = POLICIES[policy_of(mirror=card.mirror, tta=card.tta)]
    has_mirror = any(view.mirror for view in policy)
    maps = _cam(tapped, images, label, device)
    if has_mirror:
        maps = (maps + _cam(tapped, images.flip(3), label, device).flip(3)) / 2
    size = (len(square), len(square))
    large = functional.interpolate(
        maps, size=size, mode="bilinear", align_corners=False
    )
    found: NDArray[np.float32] = large[0, 0].cpu().numpy().astype(np.float32)
    return found


def check_grad_cam(model: nn.Module, card: ModelCard, device: torch.device) -> None:
    """Refuse a network for which Grad-CAM shows nothing, before an image is explained.

    It is tried on noise.

    Raises:
        ConfigError: The network has no feature map, its logits do not come from it, its
            map has one cell, or no class depends on its places: a head that reads a
            class token alone has a gradient of 0 for every other token.
    """
    noise = np.random.default_rng(0).integers(
        0, 256, (card.size_px, card.size_px, card.in_chans), np.uint8
    )
    images = _normalized(noise, card, device)
    tapped = TappedNetwork(model).eval()
    with naming_missing_operators(device), torch.no_grad():
        same = torch.allclose(tapped(images), model(images), rtol=1e-3, atol=1e-3)
    if not same:
        _refuse(model, "another answer than its map leads to")
    maps = [_cam(tapped, images, label, device) for label in range(len(card.classes))]
    if maps[0].numel() == 1:
        _refuse(model, f"but one of 1 x 1 cells for images of {card.size_px} pixels")
    if not any(one.any() for one in maps):
        _refuse(
            model,
            "one that no answer depends on, as where a class token alone is read: the "
            "map would be 0 all over",
        )


def integrated_gradients(
    model: nn.Module,
    square: NDArray[np.uint8],
    card: ModelCard,
    device: torch.device,
    *,
    label: int,
) -> NDArray[np.float32]:
    """Return the integrated gradients of one class's logit, added over the channels.

    The path starts at a square of one colour, the image's mean, as the patch of
    `occlusion.occlusion_map` has it: "not there" means the same in both. The values
    of the map add up to the logit of the image less that of the grey square. Where the
    card averages over mirror images, the logit is the mean of both.

    Args:
        model: Network of the card, on `device`.
        square: Input of the network, shape (S, S, C).
        card: Normalization and views.
        device: Device of the computation.
        label: Index of the class.

    Returns:
        Shape (S, S); positive where the image supports the class.

    Source:
        Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks, ICML 2017,
        section 3.
    """
    images = _normalized(square, card, device)
    start = _normalized(np.full_like(square, mean_value(square)), card, device)
    policy = POLICIES[policy_of(mirror=card.mirror, tta=card.tta)]
    has_mirror = any(view.mirror for view in policy)

    def logits_of(views: Tensor) -> Tensor:
        logits: Tensor = model(views)
        return (logits + model(views.flip(3))) / 2 if has_mirror else logits

    model.eval()
    with naming_missing_operators(device):
        parts = IntegratedGradients(logits_of).attribute(
            images,
            baselines=start,
            target=label,
            n_steps=NUM_STEPS,
            internal_batch_size=_STEPS_AT_ONCE,
        )
    found: NDArray[np.float32] = (
        parts[0].sum(dim=0).detach().cpu().numpy().astype(np.float32)
    )
    return found


def randomized(
    model: nn.Module, copy: nn.Module, *, seed: int
) -> Iterator[tuple[float, nn.Module]]:
    """Yield a copy of the network, randomized further each time, from its last layer.

    First the last layer alone is drawn anew, then a quarter of all layers with weights,
    half of them, three quarters, all. The weights of convolutions and linear layers are
    drawn as He et al. start them, norms are reset, and any other parameter gets random
    numbers of its own spread.

    Args:
        model: The network; it is not changed.
        copy: The same network, from `training.network.copy_model`, with any weights.
        seed: Seed of the weights.

    Yields:
        The share of the layers with new weights, and `copy`.

    Source:
        Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, section 3
        (cascading randomization).
    """
    copy.load_state_dict(model.state_dict())
    layers = [
        layer
        for layer in copy.modules()
        if next(layer.parameters(recurse=False), None) is not None
    ][::-1]
    stages = [1] + [
        max(1, round(len(layers) * stage / NUM_STAGES))
        for stage in range(1, NUM_STAGES + 1)
    ]
    done = 0
    random = torch.Generator().manual_seed(seed)
    for num_layers in dict.fromkeys(stages):
        for layer in layers[done:num_layers]:
            _draw_anew(layer, random)
        done = num_layers
        # Some networks keep what they made of their weights until they train again.
        yield num_layers / len(layers), copy.train().eval()


@torch.no_grad()
def _draw_anew(layer: nn.Module, random: torch.Generator) -> None:
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        weight = torch.empty(layer.weight.shape)
        nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=random)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.zero_()
        return
    if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
        layer.reset_parameters()
        return
    for parameter in layer.parameters(recurse=False):
        spread = float(parameter.std()) if parameter.numel() > 1 else 1.0
        parameter.copy_(torch.randn(parameter.shape, generator=random) * spread)


def _cam(
    tapped: TappedNetwork, images: Tensor, label: int, device: torch.device
) -> Tensor:
    """Return the map before what speaks against the class is removed: (1, 1, h, w)."""
    explain: Callable[..., Any] = LayerGradCam(tapped, tapped.tap).attribute
    with naming_missing_operators(device):
        maps: Tensor = explain(images, target=label, relu_attributions=False)
    return maps.detach()


def _normalized(
    square: NDArray[np.uint8], card: ModelCard, device: torch.device
) -> Tensor:
    batch = as_input(card, square[np.newaxis]).to(device)
    return normalize(batch, mean=card.mean, std=card.std)


def _refuse(model: nn.Module, what: str) -> NoReturn:
    name = getattr(model, "default_cfg", {}).get("architecture", type(model).__name__)
    raise ConfigError(
        f"Grad-CAM needs a map of features, and {name} has {what}", hint=_OCCLUSION
    )
