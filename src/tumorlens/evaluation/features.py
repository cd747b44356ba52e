"""One pass over a subset with all that trust needs of it: logits, embeddings, facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tumorlens.stats.calibration import answered_probs
from tumorlens.stats.gate import facts_of
from tumorlens.training.dataset import image_limits, load_subset
from tumorlens.training.devices import resolve_device
from tumorlens.training.loading import Decoding, plain_batches
from tumorlens.training.network import answer, as_input, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from tumorlens.runs.folder import ModelCard, Run
    from tumorlens.runs.progress import Progress
    from tumorlens.training.dataset import PreparedData

_BATCH_SIZE = 32


class Network(NamedTuple):
    """A network of a run that is loaded."""

    run: Run
    card: ModelCard
    module: nn.Module
    device: torch.device


@dataclass(frozen=True)
class Features:
    """What networks give for N images, those of several side by side."""

    logits: NDArray[np.float32]
    """Before temperature, of each image in each view, shape (N, V, C)."""
    weights: NDArray[np.float64]
    """Share of each view in what is answered, shape (V,)."""
    temperatures: NDArray[np.float64]
    """Divisor of each view's logits, as in the cards, shape (V,)."""
    embedding: NDArray[np.float32]
    """Shape (N, E)."""
    facts: NDArray[np.float64]
    """As from `stats.gate.facts_of`, shape (N, 3)."""
    labels: NDArray[np.int64]
    variants: dict[str, NDArray[np.float32]]
    """Embeddings of changed images by the name of the change, each (N, E)."""

    @property
    def probs(self) -> NDArray[np.float64]:
        """The probabilities that are answered, shape (N, C)."""
        scaled = self.logits / self.temperatures[:, None]
        return answered_probs(scaled, 1.0, weights=self.weights)


def load_networks(parts: Sequence[tuple[Run, ModelCard]], device: str) -> list[Network]:
    """Return the networks of a run on a device.

    Args:
        parts: Runs with weights, each with its card.
        device: As for the setting `train.device`.
    """
    target = resolve_device(device)
    return [
        Network(run, card, load_model(card, run.weights_path).to(target), target)
        for run, card in parts
    ]


def pass_over(
    networks: Sequence[Network],
    data: PreparedData,
    subset: str,
    *,
    change: Callable[[NDArray[np.uint8], int], dict[str, NDArray[np.uint8]]]
    | None = None,
    progress: Progress | None = None,
) -> Features:
    """Return what networks give for the images of a subset.

    Args:
        networks: From `load_networks`.
        data: The files and their subsets.
        subset: `train`, `val` or `test`.
        change: Images (N, S, S, 3) and the number of the first to changed images by
            name, whose embeddings are wanted too.
        progress: Called with images done and images in all, for each network.

    Raises:
        DataError: An image cannot be read any more.
        RunError: A network has no features apart from its last layer, or an answer is
            not finite.
    """
    parts = [_pass_of(one, data, subset, change, progress) for one in networks]
    return Features(
        logits=np.concatenate([part.logits for part in parts], axis=1),
        weights=np.concatenate([part.weights for part in parts]) / len(parts),
        temperatures=np.concatenate([part.temperatures for part in parts]),
        embedding=np.concatenate([part.embedding for part in parts], axis=1),
        facts=parts[0].facts,
        labels=parts[0].labels,
        variants={
            name: np.concatenate([part.variants[name] for part in parts], axis=1)
            for name in parts[0].variants
        },
    )


def _pass_of(
    network: Network,
    data: PreparedData,
    subset: str,
    change: Callable[[NDArray[np.uint8], int], dict[str, NDArray[np.uint8]]] | None,
    progress: Progress | None,
) -> Features:
    run, card, module, device = network
    # In colour, for the facts, also where the network takes grey images.
    decoding = Decoding(card.size_px, card.fit, 3, image_limits(run.config.data))
    decoded = load_subset(
        data, subset, decoding=decoding, config=run.config.data, progress=progress
    )
    logits, embeddings, facts = [], [], []
    variants: dict[str, list[NDArray[np.float32]]] = {}
    done = 0
    for batch in plain_batches(decoded.plain(), batch_size=_BATCH_SIZE):
        images = _in_colour(batch.permute(0, 2, 3, 1).numpy())
        found = answer(module, [as_input(card, images)], card, device)
        logits.append(found.logits)
        embeddings.append(found.embedding)
        facts.append(facts_of(images))
        for name, changed in (change(images, done) if change else {}).items():
            of_changed = answer(module, [as_input(card, changed)], card, device)
            variants.setdefault(name, []).append(of_changed.embedding)
        done += len(images)
        if progress is not None:
            progress(done, len(decoded.labels))
    num_views = logits[0].shape[1]
    return Features(
        logits=np.concatenate(logits),
        weights=np.full(num_views, 1 / num_views),
        temperatures=np.full(num_views, card.temperature),
        embedding=np.concatenate(embeddings),
        facts=np.concatenate(facts),
        labels=decoded.labels,
        variants={name: np.concatenate(own) for name, own in variants.items()},
    )


def _in_colour(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return images (N, S, S, 1 or 3) with three channels."""
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))
