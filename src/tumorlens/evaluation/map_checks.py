"""What an explanation is worth: checks of a map, and `checks.json`.

A map always looks like an answer. These figures say whether it depends on what the
network has learnt, whether the probability depends on what it marks, and whether it
marks the head. Where the tumour is known, as in a phantom, they say whether it is
marked. All work on numpy arrays; methods are compared by the means of 14 x 14 cells,
because one method has a value for each pixel and another for each 32nd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from scipy.stats import spearmanr

from tumorlens.text import counted, decimal, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

FORMAT = 1

CELLS = 14
"""Cells along each side. Half a cell of most networks' last feature map: 16 of 224
pixels."""

NUM_ORDERS = 5
"""Random orders that deletion and insertion are compared with."""

_SHOWN_PX = 512
"""Longest side on which the head is looked for; larger images are thinned out."""

_NOISE = 12
"""Grey values up to this are background whatever the brightest are."""

_HEAD_SHARE = 0.15
"""Least brightness of the head, as a share of its bright parts. Brain in T1 and fluid
in T2 have twice as much, Rician noise of a usual scan half."""

Share = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(ge=-1, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Model):
    """The map of a network of which some layers were drawn anew."""

    randomized: Share
    """Share of the layers with random weights, from the last one down."""
    correlation: Correlation | None
    """Spearman's rank correlation with the map; `None` where one is flat."""


class Removal(_Model):
    """The probability while an image is taken away or put back, cell by cell.

    Each figure is the mean over the way, from nothing to everything.
    """

    deletion: Share
    """The hottest cells go first: a good map is low here."""
    deletion_random: Share
    """Mean over random orders."""
    insertion: Share
    """The hottest cells come first: a good map is high here."""
    insertion_random: Share


class Outside(_Model):
    """What lies outside the head, of all values above 0."""

    heat: Share | None
    """Share of the heat; `None` where no value is above 0."""
    area: Share
    """Share of the image's pixels: what heat all over would have."""


class Localisation(_Model):
    """The map against the known tumour."""

    is_hit: bool
    """Whether the hottest pixel is in the tumour: the pointing game."""
    iou: Share
    """Intersection over union of the tumour and as many of the hottest pixels."""
    area: Share
    """Share of the image's pixels that are tumour: how often chance would hit."""


class Neighbour(_Model):
    """A training image that is like the explained one."""

    path: str
    """As the run's `split.csv` names it."""
    label: str
    similarity: Correlation
    """Cosine of the angle between the embeddings; 1 for the same image."""


class ImageChecks(_Model):
    """One image of `checks.json`."""

    path: str
    error: str | None = None
    """Why it could not be read; everything below is then empty."""
    picture: str | None = None
    """File name of the overlay, a PNG."""
    heat: str | None = None
    """File name of the map: float32 of shape (H, W), as `numpy.load` reads it."""
    explained: str | None = None
    """The class that the map is of."""
    predicted: str | None = None
    prob: Share | None = None
    """Probability of `explained`."""
    randomization: tuple[Stage, ...] | None = None
    """`None` where the weights cannot be changed."""
    removal: Removal | None = None
    agreement: dict[str, Correlation | None] | None = None
    """Other method -> rank correlation of its map with this one; `None` where the other
    methods cannot be used."""
    outside: Outside | None = None
    localisation: Localisation | None = None
    """`None` where no tumour is known in the image."""
    neighbours: tuple[Neighbour, ...] | None = None
    """The nearest training images; `None` where none were wanted."""


class Summary(_Model):
    """The images together."""

    num_images: int = Field(ge=0)
    """Those that were explained."""
    randomized_correlation: Correlation | None
    """Median rank correlation with the maps of a wholly random network."""
    better_deletion: Share | None
    """Share of the images whose order is better than the mean of random ones."""
    better_insertion: Share | None
    heat_outside: Share | None
    """Mean over the images."""
    area_outside: Share | None
    num_with_tumour: int = Field(ge=0)
    """Images whose tumour is known."""
    hit_rate: Share | None
    mean_iou: Share | None
    tumour_area: Share | None
    """Mean share of the image, of those with a tumour: the hit rate of chance."""


class ExplanationChecks(_Model):
    """`checks.json`: what the maps beside it are worth."""

    format: int = FORMAT
    model: str
    method: str
    classes: tuple[str, ...]
    summary: Summary
    not_checked: tuple[str, ...]
    """What could not be checked for any image, and why."""
    images: tuple[ImageChecks, ...]

    def sentences(self) -> list[str]:
        """Return what the maps together are worth, in words."""
        found = self.summary
        words = []
        if found.randomized_correlation is not None:
            words.append(
                "rank correlation with the maps of a random network: median "
                f"{decimal(found.randomized_correlation, 2)} (a map that shows what "
                "the network has learnt is near 0)"
            )
        if found.better_deletion is not None:
            words.append(
                "better than random orders: deletion in "
                f"{percent(found.better_deletion, 0)} of the images, insertion in "
                f"{percent(found.better_insertion, 0)}"
            )
        if found.heat_outside is not None:
            words.append(
                f"outside the head: {percent(found.heat_outside)} of the heat, "
                f"{percent(found.area_outside)} of the area"
            )
        if found.num_with_tumour:
            words.append(
                f"known tumours ({counted(found.num_with_tumour, 'image')}): hottest "
                f"pixel inside in {percent(found.hit_rate)} (by chance "
                f"{percent(found.tumour_area)}), mean IoU {decimal(found.mean_iou, 2)}"
            )
        return words + [f"not checked: {one}" for one in self.not_checked]


def cell_means(heat: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of a map (S, S) in each of `CELLS` x `CELLS` cells.

    Cells of a side that `CELLS` does not divide differ by a pixel.
    """
    edges = cell_edges(len(heat))
    sums = np.add.reduceat(heat.astype(np.float64), edges[:-1], axis=0)
    sums = np.add.reduceat(sums, edges[:-1], axis=1)
    sides = np.diff(edges)
    means: NDArray[np.float64] = sums / np.outer(sides, sides)
    return means


def cell_edges(size_px: int) -> NDArray[np.int64]:
    """Return where the cells of a side begin and end, `CELLS` + 1 positions.

    Example:
        >>> cell_edges(32).tolist()
        [0, 2, 5, 7, 9, 11, 14, 16, 18, 21, 23, 25, 27, 30, 32]
    """
    edges: NDArray[np.int64] = np.rint(np.linspace(0, size_px, CELLS + 1)).astype(int)
    return edges


def rank_correlation(
    first: NDArray[np.floating], second: NDArray[np.floating]
) -> float | None:
    """Return Spearman's rank correlation of two maps of one shape.

    Returns:
        From -1 to 1; `None` where a map is flat or not finite.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.clip(spearmanr(first.ravel(), second.ravel()).statistic, -1, 1))


def removal_of(
    cells: NDArray[np.floating],
    predict: Callable[[NDArray[np.bool_]], NDArray[np.floating]],
    *,
    seed: int,
) -> Removal:
    """Return how the probability follows the order of a map's cells.

    A row of cells' worth goes at each step, so there are `CELLS` steps. The random
    orders take cells too, not pixels: noise all over hurts a network more than the same
    area in blocks.

    Args:
        cells: Mean heat of each cell, (CELLS, CELLS).
        predict: Maps which cells are there, (N, CELLS, CELLS), to the probability of
            the class, (N,).
        seed: Seed of the random orders.

    Source:
        Petsiuk, Das and Saenko, RISE: Randomized Input Sampling for Explanation of
        Black-box Models, BMVC 2018, section 4.1.
    """
    rng = np.random.default_rng(seed)
    num = cells.size
    orders = [np.argsort(-cells.ravel(), kind="stable")]
    orders += [rng.permutation(num) for _ in range(NUM_ORDERS)]
    deletions, insertions = [], []
    for order in orders:
        rank = np.empty(num, np.int64)
        rank[order] = np.arange(num)
        steps = np.arange(0, num + 1, CELLS)[:, np.newaxis]
        gone = rank[np.newaxis] < steps  # (CELLS + 1, num)
        there = np.concatenate([~gone, gone]).reshape(-1, CELLS, CELLS)
        probs = np.clip(predict(there), 0, 1)
        deletions.append(_mean_over_way(probs[: CELLS + 1]))
        insertions.append(_mean_over_way(probs[CELLS + 1 :]))
    return Removal(
        deletion=deletions[0],
        deletion_random=float(np.mean(deletions[1:])),
        insertion=insertions[0],
        insertion_random=float(np.mean(insertions[1:])),
    )


def outside_of(heat: NDArray[np.floating], image: NDArray[np.uint8]) -> Outside:
    """Return how much of a map lies outside the head.

    Args:
        heat: The map of the whole image, (H, W).
        image: (H, W) or (H, W, 3).
    """
    step = -(-max(heat.shape) // _SHOWN_PX)
    head = head_of(image[::step, ::step])
    hot = np.clip(heat[::step, ::step], 0, None).astype(np.float64)
    total = float(hot.sum())
    share = min(1.0, float(hot[~head].sum()) / total) if total > 0 else None
    return Outside(heat=share, area=float((~head).mean()))


def head_of(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where the head is: the largest bright region with everything inside it.

    A smoothed image is cut at `_HEAD_SHARE` of its bright parts. An image without a
    background is head all over, and so is a black one.

    Args:
        image: (H, W) or (H, W, 3).
    """
    grey = image if image.ndim == 2 else image.max(axis=2)
    smooth = ndimage.gaussian_filter(grey.astype(np.float32), max(grey.shape) / 112)
    bright = smooth > max(_NOISE, _HEAD_SHARE * float(np.percentile(smooth, 95)))
    regions, num_regions = ndimage.label(bright)
    if num_regions == 0:
        return np.ones(grey.shape, np.bool_)
    largest = 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    head: NDArray[np.bool_] = ndimage.binary_fill_holes(regions == largest)
    return head


def localisation_of(
    heat: NDArray[np.floating], tumour: NDArray[np.bool_]
) -> Localisation:
    """Return whether a map marks the tumour.

    Args:
        heat: The map of the whole image, (H, W).
        tumour: (H, W), with at least one pixel.

    Source:
        Zhang et al., Top-Down Neural Attention by Excitation Backprop, ECCV 2016,
        section 4.2 (the pointing game, there with a margin of 15 pixels).
    """
    num = int(tumour.sum())
    hottest = np.zeros(tumour.size, np.bool_)
    hottest[np.argsort(-heat.ravel(), kind="stable")[:num]] = True
    both = int((hottest & tumour.ravel()).sum())
    return Localisation(
        is_hit=bool(tumour.ravel()[int(heat.argmax())]),
        iou=both / (2 * num - both),
        area=num / tumour.size,
    )


def summarized(images: Sequence[ImageChecks]) -> Summary:
    """Return the checks of several images together."""
    done = [one for one in images if one.error is None]
    removals = [one.removal for one in done if one.removal]
    outsides = [one.outside for one in done if one.outside]
    found = [one.localisation for one in done if one.localisation]
    random = [one.randomization[-1].correlation for one in done if one.randomization]
    known = [one for one in random if one is not None]
    return Summary(
        num_images=len(done),
        randomized_correlation=float(np.median(known)) if known else None,
        better_deletion=_mean([one.deletion < one.deletion_random for one in removals]),
        better_insertion=_mean(
            [one.insertion > one.insertion_random for one in removals]
        ),
        heat_outside=_mean([one.heat for one in outsides if one.heat is not None]),
        area_outside=_mean([one.area for one in outsides]),
        num_with_tumour=len(found),
        hit_rate=_mean([one.is_hit for one in found]),
        mean_iou=_mean([one.iou for one in found]),
        tumour_area=_mean([one.area for one in found]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _mean_over_way(probs: NDArray[np.floating]) -> float:
    return float(np.trapezoid(probs) / (len(probs) - 1))
