"""Views of an image for test-time augmentation, in fixed policies with names.

The probabilities of an image are averaged over its views: the image unchanged,
mirrored, shifted and zoomed. A model card names its policy. A policy chosen by test
figures would be fitted to them, so `tumorlens.evaluation.tta` measures on val.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SHIFT = 0.04
"""Shift as a share of the side: 9 of 224 pixels, while the last feature map of most
networks has cells of 32. The alignment to the cells changes; no anatomy is lost."""

ZOOM_MARGIN = 0.03
"""Margin that a zoomed view cuts off at each edge, as a share of the side."""


@dataclass(frozen=True)
class View:
    """One variant. The operations are applied in this order."""

    mirror: bool = False
    """Whether left and right are swapped."""
    right: int = 0
    """Shift to the right in units of `SHIFT`; the edge is repeated."""
    down: int = 0
    """Shift downwards in units of `SHIFT`."""
    zoom: bool = False
    """Whether the middle is enlarged to the full size."""


UNCHANGED = View()

POLICIES = {
    "none": (UNCHANGED,),
    "mirror": (UNCHANGED, View(mirror=True)),
    "eight-views": (
        UNCHANGED,
        View(mirror=True),
        View(right=1),
        View(right=-1),
        View(down=1),
        View(down=-1),
        View(zoom=True),
        View(mirror=True, zoom=True),
    ),
}
"""Name -> views. A policy never changes; another one gets a new name."""


def policy_of(*, mirror: bool, tta: str) -> str:
    """Return the name of the policy for a card's `mirror` and `tta`.

    `tta` takes precedence: the mirror image is among its views already.
    """
    if tta != "none":
        return tta
    return "mirror" if mirror else "none"


def views_of(images: Tensor, policy: str) -> Iterator[Tensor]:
    """Yield the images in each view of a policy; the first view is unchanged.

    Args:
        images: Shape (N, C, S, S), float.
        policy: Key of `POLICIES`.

    Yields:
        Tensors of the same shape, which may share memory with `images`.
    """
    for view in POLICIES[policy]:
        yield _view(images, view)


def _view(images: Tensor, view: View) -> Tensor:
    if view.mirror:
        images = images.flip(3)
    if view.right or view.down:
        images = _shifted(images, right=view.right, down=view.down)
    if view.zoom:
        images = _zoomed(images)
    return images


def _shifted(images: Tensor, *, right: int, down: int) -> Tensor:
    """Shift by whole pixels, at least one, without interpolation."""
    size = images.shape[-1]
    step = max(1, round(SHIFT * size))
    padded = functional.pad(images, (step,) * 4, mode="replicate")
    left, top = step * (1 - right), step * (1 - down)
    return padded[:, :, top : top + size, left : left + size]


def _zoomed(images: Tensor) -> Tensor:
    size = images.shape[-1]
    margin = max(1, round(ZOOM_MARGIN * size))
    middle = images[:, :, margin:-margin, margin:-margin]
    return functional.interpolate(
        middle, size=(size, size), mode="bilinear", align_corners=False
    )
