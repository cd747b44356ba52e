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
from tumorlens.stats.intervals import design_effect

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
    facts: tuple[NDArray[np.floating], NDArray[np.floating]],
    groups: tuple[NDArray[np.integer], NDArray[np.integer]],
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
        facts: Plain facts of the training and the val images, as from
            `stats.gate.facts_of`, shapes (M, 3) and (N, 3). Nothing learns them, so
            training images tell as much of what is usual as val images do.
        groups: Group index of each training and each val image, shapes (M,) and (N,);
            no group is on both sides.
        spoilt: Embeddings of spoilt val images by kind, each of shape (L, E).
        seed: By which training images are left out where they are too many.
        false_alarms: Share of val images that is turned away at most; and of training
            images, for their facts alone.
    """
    val_facts, all_facts = facts[1], np.concatenate(facts)
    all_groups = np.concatenate([groups[0], groups[1] + groups[0].max() + 1])
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
    low, middle, high = np.column_stack(
        [
            _limits(of_val[best], groups[1], false_alarms),
            *(_limits(values, all_groups, false_alarms) for values in all_facts.T),
        ]
    )
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
    of_facts = np.sort(gate.measure_facts(all_facts).max(axis=1))
    threshold = max(
        1.0, *(_exceeded_by(one, false_alarms) for one in (scores, of_facts))
    )
    gate = replace(gate, scores=scores.astype(np.float32), threshold=threshold)
    return gate, {str(method): value for method, value in found.items()}


def _limits(
    values: NDArray[np.floating], groups: NDArray[np.integer], share: float
) -> NDArray[np.float64]:
    """Return what a share of new images is below, the median, and what it is above.

    With few groups the most extreme of them is often exceeded by a new one. So what the
    images show is widened as for a normal distribution, by the ratio of its prediction
    limit to what so many independent images reach. Images of one group tell less than
    independent ones, by their design effect.

    Args:
        values: Shape (N,).
        groups: Group index of each image, shape (N,).
        share: Share on either side, in (0, 0.5).
    """
    from scipy import stats

    low, middle, high = np.quantile(values, [share, 0.5, 1 - share])
    effect = design_effect(values - values.mean(), groups, num_errors=len(values))
    num = max(2.0, len(values) / effect)
    limit = stats.t.isf(share, num - 1) * np.sqrt(1 + 1 / num)
    wider = max(1.0, limit / stats.norm.isf(max(share, 1 / (num + 1))))
    found = middle + wider * np.array([low - middle, 0, high - middle])
    return np.asarray(found, np.float64)


def _exceeded_by(scores: NDArray[np.float64], share: float) -> float:
    """Return the score that a share of sorted scores exceeds at most."""
    return float(scores[len(scores) - 1 - int(share * len(scores))])


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
