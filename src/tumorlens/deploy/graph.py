"""The network as it is exported: uint8 images in, probabilities out, nothing left out.

Normalization, views, temperature and the averaging of an ensemble are inside, so that
no caller can get them wrong. A run is not measured by this graph but by
`network.infer`; `tumorlens.deploy.parity` checks that both give the same probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tumorlens.errors import RunError
from tumorlens.training.network import LUMA, before_last_layer
from tumorlens.training.views import policy_of, views_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.runs.folder import ModelCard


class ServingGraph(nn.Module):
    """One network, or those of an ensemble, with pre- and postprocessing.

    Args:
        networks: Networks with their cards, in evaluation mode, of one input size.

    Raises:
        RunError: The networks differ in the size or fit of their input, or in their
            classes.
    """

    def __init__(self, networks: Sequence[tuple[ModelCard, nn.Module]]) -> None:
        super().__init__()
        cards = [card for card, _ in networks]
        if len({(card.size_px, card.fit, card.classes) for card in cards}) > 1:
            sizes = ", ".join(f"{card.size_px} px {card.fit}" for card in cards)
            raise RunError(
                f"the networks of this ensemble take different images ({sizes}), and "
                "one exported graph takes one",
                hint="export the members by themselves",
            )
        self.members = nn.ModuleList(_Member(card, module) for card, module in networks)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs for images that are decoded and resized.

        Args:
            images: Shape (N, S, S, 3), uint8, RGB; grey images repeat their values.

        Returns:
            probs: (N, C), each row sums to 1; averaged over views and members.
            logits: (N, C), before temperature; means over views and members.
            embedding: (N, E), the input of the last layer; the mean over views, and
                those of the members side by side.
        """
        pixels = images.permute(0, 3, 1, 2).float()  # (N, 3, S, S), 0 to 255
        if len(self.members) == 1:
            probs, logits, embedding = self.members[0](pixels)
            return probs, logits, embedding
        answers = [member(pixels) for member in self.members]
        probs, logits, embeddings = zip(*answers, strict=True)
        return (
            torch.stack(probs).mean(dim=0),
            torch.stack(logits).mean(dim=0),
            torch.cat(embeddings, dim=1),
        )


class _Member(nn.Module):
    """A network with its own normalization, views and temperature."""

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, card: ModelCard, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module  # a timm network
        self.policy = policy_of(mirror=card.mirror, tta=card.tta)
        self.temperature = card.temperature
        self.is_grey = card.in_chans == 1
        self.register_buffer("mean", torch.tensor(card.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, -1, 1, 1))
        luma = torch.tensor(LUMA, dtype=torch.float32)
        self.register_buffer("luma", luma.view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.is_grey:
            # Whole numbers below 2**24: every step is exact, as in Pillow.
            weighted = (pixels * self.luma).sum(dim=1, keepdim=True)
            pixels = torch.floor((weighted + 32768) / 65536)  # (N, 1, S, S)
        values = (pixels / 255 - self.mean) / self.std
        views = list(views_of(values, self.policy))
        # One batch of all views, not one pass for each: the graph then holds the
        # network once, and a quantized file does not repeat its weights.
        together = torch.cat(views) if len(views) > 1 else values  # (V * N, C, S, S)
        features = self.module.forward_features(together)
        # Not `module(values)`: one pass gives both. A test shows for many networks that
        # the logits are the same.
        logits = self.module.forward_head(features)
        embedding = before_last_layer(self.module, features)
        probs = (logits / self.temperature).softmax(dim=1)
        return (
            _mean_over_views(probs, len(views)),
            _mean_over_views(logits, len(views)),
            _mean_over_views(embedding, len(views)),
        )


def _mean_over_views(values: Tensor, num_views: int) -> Tensor:
    if num_views == 1:
        return values
    return values.view(num_views, -1, values.shape[1]).mean(dim=0)  # (N, ...)
