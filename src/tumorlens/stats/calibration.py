"""Temperature scaling: probabilities that mean what they say.

A network's logits are divided by one number before the softmax. It changes no order and
no predicted class of a single view, only how sure the network seems.

Source:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_LOG = 10.0
"""Largest logarithm of a temperature, and of its inverse."""


def answered_probs(
    logits: NDArray[np.floating],
    temperature: float,
    *,
    weights: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Return the probabilities (N, C) that are answered: the mean over views.

    Args:
        logits: Logits of each image in each view, shape (N, V, C).
        temperature: Divisor of the logits.
        weights: Share of each view, shape (V,), sum 1; `None` for equal ones.
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=2, keepdims=True)
    probs = np.exp(scaled)
    probs /= probs.sum(axis=2, keepdims=True)
    found: NDArray[np.float64] = np.average(probs, axis=1, weights=weights)
    return found


def fit_temperature(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    weights: NDArray[np.floating] | None = None,
) -> float:
    """Return the temperature of the least log loss of what is answered.

    Args:
        logits: Shape (N, V, C), as for `answered_probs`.
        labels: True class indices, shape (N,).
        weights: As for `answered_probs`.

    Raises:
        ValueError: There is no image, or the shapes differ.
    """
    from scipy import optimize

    if logits.ndim != 3 or labels.shape != logits.shape[:1] or not labels.size:
        raise ValueError(
            f"expected logits (N, V, C) and labels (N,) with N > 0, got "
            f"{logits.shape} and {labels.shape}"
        )
    rows = np.arange(len(labels))
    tiny = np.finfo(np.float64).tiny

    def loss(log_temperature: float) -> float:
        probs = answered_probs(logits, np.exp(log_temperature), weights=weights)
        return float(-np.log(np.maximum(probs[rows, labels], tiny)).mean())

    found = optimize.minimize_scalar(
        loss, bounds=(-_MAX_LOG, _MAX_LOG), method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(found.x))
