"""The input gate: does an image look like those of training?

Four parts look at it: how far the network's embedding is from those of training images,
and three plain facts, colour, brightness of the rim and share of black. Each part is
scaled by the val images, so that 0 is their median and 1 their 99th percentile; the
part that is farthest out decides. Everything here is numpy alone, as an artefact
applies it; `tumorlens.evaluation.gate` fits it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["neighbour", "mahalanobis"]

PARTS = ("embedding", "colour", "rim", "black")
"""What looks at an image, in the order of the columns of `Gate.measure`."""

NEIGHBOUR = 5
"""Which of the nearest training images counts: one odd training image decides
nothing."""

_BLACK = 16
_RIM_SHARE = 0.08
_MAX_FACT_PX = 64
"""Side of the image that facts are taken from: every so many pixels are enough."""


@dataclass(frozen=True)
class Gate:
    """What the parts are compared with: E numbers of an embedding become K."""

    method: Method
    mean: NDArray[np.float32]
    """Mean embedding of training images, shape (E,)."""
    components: NDArray[np.float16]
    """Principal components of the embeddings, shape (K, E)."""
    known: NDArray[np.float16]
    """Projected training embeddings of length 1, shape (M, K), or for "mahalanobis" the
    mean of each class, shape (C, K)."""
    precision: NDArray[np.float32]
    """Inverse covariance, shape (K, K); empty for "neighbour"."""
    middle: NDArray[np.float64]
    """Median of each part on val, shape (4,)."""
    spread: NDArray[np.float64]
    """From the median down to the 1st and up to the 99th percentile, shape (2, 4)."""
    scores: NDArray[np.float32]
    """Scores of the val images, sorted, shape (V,)."""
    threshold: float
    """Score above which an image is turned away."""

    def project(self, embedding: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return embeddings (N, E) as (N, K)."""
        centred = embedding.astype(np.float32) - self.mean
        return products(centred, self.components.astype(np.float32))

    def distance(self, embedding: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return how far embeddings (N, E) are from those of training, shape (N,).

        The cosine distance to the `NEIGHBOUR`-th nearest training image, or the
        Mahalanobis distance to the nearest class.
        """
        return distance(
            self.project(embedding), self.known.astype(np.float32), self.precision
        )

    def measure(
        self, embedding: NDArray[np.floating], facts: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Return the four parts of N images, scaled, shape (N, 4).

        Args:
            embedding: Shape (N, E).
            facts: As from `facts_of`, shape (N, 3).
        """
        values = np.column_stack([self.distance(embedding), facts])
        off = values - self.middle
        scaled: NDArray[np.float64] = np.abs(off) / np.where(off < 0, *self.spread)
        scaled[:, 0] = np.where(off[:, 0] < 0, 0, scaled[:, 0])  # near is never odd
        return scaled

    def percentile(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the share of val images with a lower score, shape (N,)."""
        places = np.searchsorted(self.scores, scores.astype(np.float32))
        return np.asarray(places / len(self.scores), np.float64)


def distance(
    projected: NDArray[np.float32],
    known: NDArray[np.float32],
    precision: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return the distances of `Gate.distance` for projected embeddings (N, K).

    Args:
        projected: Shape (N, K).
        known: As `Gate.known`.
        precision: As `Gate.precision`.
    """
    if precision.size:
        off = projected[:, None] - known  # (N, C, K)
        squares = np.einsum("nck,kl,ncl->nc", off, precision, off)
        nearest = np.maximum(squares, 0).min(axis=1)
        return np.asarray(np.sqrt(nearest), np.float64)
    similarity = products(unit(projected), known)  # (N, M)
    rank = min(NEIGHBOUR, similarity.shape[1])
    ranked = np.partition(-similarity, rank - 1, axis=1)
    return np.asarray(1 + ranked[:, rank - 1], np.float64)


def products(
    rows: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the products of rows (N, K) with others (M, K), shape (N, M).

    Without BLAS, whose threads go on spinning for a while: beside the runtime of an
    artefact they cost a quarter of its speed.
    """
    found: NDArray[np.float32] = np.einsum("nk,mk->nm", rows, others, optimize=False)
    return found


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows (N, K) of length 1."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float32] = rows / np.maximum(lengths, 1e-12)
    return found


def facts_of(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the plain facts of images as the network gets them, shape (N, 3).

    Args:
        images: Shape (N, S, S, 3), RGB.

    Returns:
        Colour (mean difference of the channels), brightness of the rim less that of the
        centre, and share of black, each a fraction.
    """
    step = -(-images.shape[1] // _MAX_FACT_PX)
    # Channel by channel: numpy is slow along an axis of three.
    red, grey, blue = np.moveaxis(images[:, ::step, ::step], 3, 0).copy()  # (N, s, s)
    highest = np.maximum(np.maximum(red, grey), blue)
    lowest = np.minimum(np.minimum(red, grey), blue)
    colour = (highest - lowest).mean(axis=(1, 2)) / 255
    size = grey.shape[1]
    rim, inner = max(1, round(_RIM_SHARE * size)), size // 4
    is_rim = np.ones((size, size), bool)
    is_rim[rim:-rim, rim:-rim] = False
    centre = grey[:, inner : size - inner, inner : size - inner].mean(axis=(1, 2))
    brightness = (grey[:, is_rim].mean(axis=1) - centre) / 255
    black = (grey < _BLACK).mean(axis=(1, 2))
    return np.column_stack([colour, brightness, black])
