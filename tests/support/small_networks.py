"""A random network with its card, and images for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tumorlens.config import ModelConfig
from tumorlens.runs.folder import ModelCard
from tumorlens.training.network import create_model

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

CLASSES = ("glioma", "meningioma", "no_tumor")


def colours(count: int, size_px: int = 32) -> NDArray[np.uint8]:
    """Return random colour images, (N, S, S, 3)."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, size_px // 4, size_px // 4, 1), np.uint8))


def network(
    name: str = "test_resnet", *, seed: int = 0, **changes: Any
) -> tuple[ModelCard, nn.Module]:
    """Return a random network with its card; its predictions differ between images."""
    values: dict[str, Any] = {
        "format": 1,
        "tumorlens": "0",
        "name": name,
        "classes": CLASSES,
        "in_chans": 3,
        "size_px": 32,
        "fit": "pad",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.25),
        "mirror": False,
        "epoch": 1,
        "weights_sha256": "0" * 64,
    } | changes
    card = ModelCard(**values)
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(
        {"name": name, "pretrained": "no", "in_chans": card.in_chans}
    )
    module, _ = create_model(config, num_classes=len(CLASSES))
    torch.nn.init.normal_(module.get_classifier().weight, std=0.5)  # type: ignore[operator]
    return card, module.eval()
