"""The curve of loss over learning rate, and the learning rate that it suggests.

Plain functions on numbers; `tumorlens.training.lr_find` measures them. Every curve has
a steepest point, also one that does not fall: there it is noise. So a descent is tested
for first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DIVERGED = 4.0
"""Ratio of the smoothed loss to the best one from which it counts as diverged."""

_MEMORY = 20
"""Inverse of the share of the sweep over which the smoothing averages."""

_WINDOW = 10
"""Inverse of the share of the sweep that is the start, and the span of a slope."""

_MIN_FALL = 0.02
"""Smallest fall that counts, as a share of the first loss."""

_MIN_ERRORS = 4.0
"""Smallest fall that counts, in standard errors: large, because the lowest of some
hundred values is searched for."""


@dataclass(frozen=True)
class LrCurve:
    """The loss over the learning rate, and the suggestion."""

    lrs: tuple[float, ...]
    """The learning rate of each step, growing."""
    losses: tuple[float, ...]
    """The training loss of each step's batch, before the step is taken."""
    smoothed: tuple[float, ...]
    """The losses as exponential moving averages."""
    is_diverged: bool
    """Whether the sweep ended early because the loss blew up."""
    suggestion: float | None
    """Learning rate at which the smoothed loss falls fastest, rounded to two digits;
    `None` where it does not fall."""
    tenth_of_minimum: float | None
    """A tenth of the rate with the lowest smoothed loss, the other usual rule. `None`
    where the loss does not fall, or was still falling when the sweep ended."""
    summary: str
    """The result in a sentence or two."""


def read_curve(
    lrs: Sequence[float],
    losses: Sequence[float],
    *,
    num_steps: int,
    is_diverged: bool,
) -> LrCurve:
    """Return the curve of a sweep with its suggestion.

    The slope at a step is that of the straight line through the smoothed losses around
    it, over a tenth of the sweep, against the logarithm of the rate. The steepest slope
    is searched for after the first tenth, where the average has few values, and before
    the lowest loss. The average lags behind by a known number of steps, by which the
    suggestion is moved back.

    A loss that falls by less than 2 %, or by less than four standard errors of the
    difference, counts as not falling.

    Args:
        lrs: The learning rates, growing evenly on the logarithmic axis.
        losses: Loss at each rate; finite.
        num_steps: Planned length of the sweep.
        is_diverged: Whether it ended early.

    Example:
        The loss drops at step 40 of 100 between 1e-6 and 1, at the rate 2.7e-4. A step
        is a factor of 1.15; the suggestion is two steps off.

        >>> lrs, losses = np.geomspace(1e-6, 1, 100).tolist(), [1.0] * 40 + [0.5] * 60
        >>> read_curve(lrs, losses, num_steps=100, is_diverged=False).suggestion
        0.0002
    """
    fade = fade_of(num_steps)
    smoothed = smooth(losses, fade=fade)
    window = num_steps // _WINDOW
    place = lowest_place = None
    if len(losses) > 2 * window:
        lowest_place = window + int(smoothed[window:].argmin())
        if _falls(np.asarray(losses), smoothed[lowest_place], fade, window):
            place = _steepest(smoothed, window, lowest_place)
    suggestion = tenth = None
    if place is not None and lowest_place is not None:
        delay = fade / (1 - fade)
        step = math.log(lrs[1] / lrs[0])
        suggestion = _rounded(lrs[place] * math.exp(-delay * step))
        # The minimum is known only when the loss has risen after it.
        if is_diverged or lowest_place < len(losses) - 1 - window:
            tenth = _rounded(lrs[lowest_place] / 10)
    return LrCurve(
        lrs=tuple(float(lr) for lr in lrs),
        losses=tuple(float(loss) for loss in losses),
        smoothed=tuple(smoothed.tolist()),
        is_diverged=is_diverged,
        suggestion=suggestion,
        tenth_of_minimum=tenth,
        summary=_summary(lrs, suggestion, tenth, is_diverged=is_diverged),
    )


def smooth(losses: Sequence[float], *, fade: float) -> NDArray[np.float64]:
    """Return exponential moving averages: weights fade ** age, normalized to 1.

    The normalization keeps the first values from being drawn to 0.

    Args:
        losses: Losses in order, shape (N,).
        fade: Factor in [0, 1); 0 returns the losses unchanged.

    Example:
        By hand: (1 * 0.5 + 4) / (0.5 + 1) = 3.

        >>> smooth([1.0, 4.0], fade=0.5).tolist()
        [1.0, 3.0]
    """
    total = weight = 0.0
    means = []
    for loss in losses:
        total = fade * total + loss
        weight = fade * weight + 1
        means.append(total / weight)
    return np.array(means, dtype=np.float64)


def fade_of(num_steps: int) -> float:
    """Return the `fade` of `smooth` for a sweep of `num_steps`.

    Example:
        >>> fade_of(100), fade_of(20)
        (0.8, 0.0)
    """
    return 1 - min(_MEMORY / num_steps, 1)


def _falls(
    losses: NDArray[np.float64], lowest: float, fade: float, window: int
) -> bool:
    """Return whether the smoothed loss falls by more than chance."""
    start = float(losses[:window].mean())
    # The spread of a batch's loss from differences of neighbours, free of the trend;
    # 1.4826 turns a median absolute deviation into a standard deviation.
    spread = 1.4826 * float(np.median(np.abs(np.diff(losses)))) / math.sqrt(2)
    error = spread * math.sqrt(1 / window + (1 - fade) / (1 + fade))
    return start - lowest > max(_MIN_ERRORS * error, _MIN_FALL * abs(start))


def _steepest(
    smoothed: NDArray[np.float64], window: int, lowest_place: int
) -> int | None:
    half = max(1, window // 2)
    offsets = np.arange(-half, half + 1)
    places = [
        place
        for place in range(window, lowest_place + 1)
        if half <= place < len(smoothed) - half
    ]
    slopes = [float(offsets @ smoothed[place + offsets]) for place in places]
    if not slopes or min(slopes) >= 0:
        return None
    return places[slopes.index(min(slopes))]


def _rounded(lr: float) -> float:
    # More digits would claim a precision that a sweep does not have.
    return float(f"{lr:.2g}")


def _summary(
    lrs: Sequence[float],
    suggestion: float | None,
    tenth: float | None,
    *,
    is_diverged: bool,
) -> str:
    end = (
        f"The loss blew up at {lrs[-1]:.2g}"
        if is_diverged
        else f"The loss did not blow up below {lrs[-1]:.2g}"
    )
    if suggestion is None:
        return (
            f"No suggestion: the loss does not fall between {lrs[0]:.2g} and "
            f"{lrs[-1]:.2g}, or by no more than chance. {end}. Try "
            "another range, more steps or larger batches."
        )
    more = (
        "It was still falling when the sweep ended: a wider range would show more."
        if tenth is None
        else f"A tenth of the rate where it is lowest would be {tenth:g}."
    )
    return (
        f"Suggestion: optim.lr={suggestion:g}, where the loss falls fastest. {more} "
        f"{end}. This is a place to start, found in a few steps; val decides."
    )
