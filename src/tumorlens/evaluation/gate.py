"""Fitting the input gate: which distance, which projection, which threshold.

See `tumorlens.stats.gate` for how it is applied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from tumorlens.stats.gate import Gate, Method, distance, products, unit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FALSE_ALARMS = 0.01
"""Share of val images that a gate turns away, unless it is asked for another."""

MAX_COMPONENTS = 64
MAX_BYTES = 2_000_000
"""Size that the arrays of a gate stay under: some training images are left out."""

_SMALLEST_SPREAD = np.array([1e-3, 0.02, 0.02, 0.02])
"""Least spread of each part: where val images hardly differ, rounding must raise no
alarm."""


def spoil(images: NDArray[np.uint8], *, seed: int) -> dict[str, NDArray[np.uint8]]:
    """Return what is no brain MRI, made from images that are.

    Args:
        images: Shape (N, S, S, C).
        seed: Seed of the permutations and the noise.

    Returns:
        Inverted images, images with their pixels shuffled in blocks of an eighth of the
        side, and noise with the grey values of each image.
    """
    rng = np.random.default_rng(seed)
    size = images.shape[1]
    edges = np.linspace(0, size, 9).astype(int)
    shuffled, noise = np.empty_like(images), np.empty_like(images)
    side = size // 8
    for number, image in enumerate(images):
        blocks = [
            image[top : top + side, left : left + side]
            for top in edges[:8]
            for left in edges[:8]
        ]
        shuffled[number] = image
        for place, block in enumerate(rng.permutation(len(blocks)).tolist()):
            top, left = edges[place // 8], edges[place % 8]
            shuffled[number, top : top + side, left : left + side] = blocks[block]
        pixels = image.reshape(-1, image.shape[2])
        noise[number] = pixels[rng.permutation(len(pixels))].reshape(image.shape)
    return {"inverted": 255 - images, "shuffled": shuffled, "noise": noise}


def fit_gate(
    train: NDArray[np.floating],
    labels: NDArray[np.integer],
    val: NDArray[np.floating],
    val_facts: NDArray[np.floating],
    spoilt: Mapping[str, NDArray[np.floating]],
    *,
    seed: int,
    false_alarms: float = FALSE_ALARMS,
) -> tuple[Gate, dict[str, float]]:
    """Return a gate, and how well each method tells val images from spoilt ones.

    Args:
        train: Embeddings of training images, shape (M, E).
        labels: Class indices of training images, shape (M,).
        val: Embeddings of val images, shape (N, E).
        val_facts: As from `stats.gate.facts_of`, shape (N, 3).
        spoilt: Embeddings of spoilt val images by kind, each of shape (L, E).
        seed: By which training images are left out where they are too many.
        false_alarms: Share of val images that is turned away.
    """
    num_kept = min(MAX_COMPONENTS, *train.shape, max(1, len(train) - 1))
    pca = PCA(num_kept, svd_solver="full").fit(train.astype(np.float64))
    mean = pca.mean_.astype(np.float32)
    components = pca.components_.astype(np.float16)
    room = (MAX_BYTES - components.nbytes - mean.nbytes) // (2 * num_kept)
    if len(train) > room:
        chosen = np.random.default_rng(seed).permutation(len(train))[: max(1, room)]
        train, labels = train[chosen], labels[chosen]

    def project(rows: NDArray[np.floating]) -> NDArray[np.float32]:
        return products(rows.astype(np.float32) - mean, components.astype(np.float32))

    own = project(train)
    known: dict[Method, tuple[NDArray[np.float16], NDArray[np.float32]]] = {
        "neighbour": (unit(own).astype(np.float16), np.empty((0, 0), np.float32)),
        "mahalanobis": _classes(own, labels),
    }
    found, of_val = {}, {}
    for method, (rows, precision) in known.items():
        against = rows.astype(np.float32), precision
        of_val[method] = distance(project(val), *against)
        aurocs = [
            _auroc(of_val[method], distance(project(one), *against))
            for one in spoilt.values()
        ]
        found[method] = float(np.mean(aurocs))
    best: Method = max(known, key=lambda method: found[method])
    values = np.column_stack([of_val[best], val_facts])
    low, middle, high = np.quantile(values, [0.01, 0.5, 0.99], axis=0)
    spread = np.maximum([middle - low, high - middle], _SMALLEST_SPREAD)
    gate = Gate(
        method=best,
        mean=mean,
        components=components,
        known=known[best][0],
        precision=known[best][1],
        middle=middle,
        spread=spread,
        scores=np.empty(0, np.float32),
        threshold=0.0,
    )
    scores = np.sort(gate.measure(val, val_facts).max(axis=1))
    return _with_threshold(gate, scores, false_alarms), {
        str(method): value for method, value in found.items()
    }


def _with_threshold(
    gate: Gate, scores: NDArray[np.float64], false_alarms: float
) -> Gate:
    allowed = int(false_alarms * len(scores))
    threshold = float(scores[len(scores) - 1 - allowed])
    return replace(gate, scores=scores.astype(np.float32), threshold=threshold)


def _classes(
    projected: NDArray[np.float32], labels: NDArray[np.integer]
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return the mean of each class, and the shared inverse covariance."""
    means = np.stack([projected[labels == one].mean(axis=0) for one in set(labels)])
    numbers = {one: number for number, one in enumerate(set(labels))}
    centred = projected - means[[numbers[one] for one in labels]]
    precision: Any = LedoitWolf(assume_centered=True).fit(centred).precision_
    return means.astype(np.float16), precision.astype(np.float32)


def _auroc(near: NDArray[np.float64], far: NDArray[np.float64]) -> float:
    truth = np.repeat([0, 1], [len(near), len(far)])
    return float(roc_auc_score(truth, np.concatenate([near, far])))
