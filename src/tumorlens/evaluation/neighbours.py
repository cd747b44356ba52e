"""The training images that are most like an image, as the network sees them.

Alike means a small angle between embeddings: what the network has before its last
layer. It is an explanation by examples: what the answer was learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tumorlens.data.index import check_unchanged
from tumorlens.errors import ConfigError
from tumorlens.evaluation.map_checks import Neighbour
from tumorlens.evaluation.subsets import read_data
from tumorlens.stats.gate import unit
from tumorlens.training.dataset import (
    PreparedData,
    image_limits,
    load_subset,
)
from tumorlens.training.loading import Decoding, plain_batches
from tumorlens.training.network import answer, as_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tumorlens.data.index import Index
    from tumorlens.runs.folder import ModelCard, Run
    from tumorlens.runs.progress import Progress

_BATCH_SIZE = 32


@dataclass(frozen=True)
class TrainingImages:
    """The train subset of a run, as its network sees it."""

    index: Index
    paths: tuple[str, ...]
    """As the index names them."""
    labels: tuple[str, ...]
    embeddings: NDArray[np.float32]
    """(N, D), each of length 1."""

    def nearest(
        self, embedding: NDArray[np.float32], *, count: int
    ) -> tuple[Neighbour, ...]:
        """Return the nearest images, the most alike first; all where there are fewer.

        Args:
            embedding: (D,), of length 1.
            count: Number of images.
        """
        return nearest(
            embedding,
            self.embeddings,
            paths=self.paths,
            labels=self.labels,
            count=count,
        )


def nearest(
    embedding: NDArray[np.float32],
    others: NDArray[np.float32],
    *,
    paths: Sequence[str],
    labels: Sequence[str],
    count: int,
) -> tuple[Neighbour, ...]:
    """Return the nearest of N images, the most alike first; all where there are fewer.

    Args:
        embedding: (D,), of length 1.
        others: Embeddings of the images, (N, D), each of length 1.
        paths: Their paths.
        labels: Their labels.
        count: Number of images.
    """
    alike = others @ embedding  # (N,)
    order = np.argsort(-alike, kind="stable")[:count]
    return tuple(
        Neighbour(
            path=paths[row],
            label=labels[row],
            similarity=float(np.clip(alike[row], -1, 1)),
        )
        for row in order.tolist()
    )


def embed_training(
    run: Run,
    model: nn.Module,
    card: ModelCard,
    device: torch.device,
    *,
    data: Path | Sequence[Path] | None = None,
    progress: Progress | None = None,
) -> TrainingImages:
    """Return the train subset of an ordinary run, seen by its network.

    Args:
        run: The run that the network was trained in.
        model: Its network, on `device`.
        card: Its card.
        device: Device of the computation.
        data: Where the images are; `None` takes the run's `data.path`.
        progress: Called with the images decoded and those in all, where they are not
            cached.

    Raises:
        ConfigError: The network has no embedding.
        DataError: The images are not there, or cannot be read any more.
        RunError: The run has no split, as an imported one, or its data has changed.
    """
    index = read_data(run, data)
    prepared = PreparedData(index, run.split())
    check_unchanged(prepared.rows, index)
    images = load_subset(
        prepared,
        "train",
        decoding=Decoding(
            card.size_px, card.fit, card.in_chans, image_limits(run.config.data)
        ),
        config=run.config.data,
        progress=progress,
    )
    batches = plain_batches(images.plain(), batch_size=_BATCH_SIZE, workers=0)
    rows = prepared.subset_rows("train")
    return TrainingImages(
        index,
        tuple(row.path for row in rows),
        tuple(row.label for row in rows),
        embed(model, batches, card, device),
    )


def embed_square(
    model: nn.Module, square: NDArray[np.uint8], card: ModelCard, device: torch.device
) -> NDArray[np.float32]:
    """Return the embedding (D,) of one square (S, S, C)."""
    found: NDArray[np.float32] = embed(
        model, [as_input(card, square[np.newaxis])], card, device
    )[0]
    return found


def embed(
    model: nn.Module, batches: Iterable[Tensor], card: ModelCard, device: torch.device
) -> NDArray[np.float32]:
    """Return what a network has before its last layer, (N, D), each of length 1.

    Raises:
        ConfigError: The network has none.
    """
    if not hasattr(model, "forward_head"):
        raise ConfigError(
            f"--neighbours needs an embedding, and {card.name} has none",
            hint="leave it out",
        )
    return unit(answer(model.eval(), batches, card, device).embedding)
