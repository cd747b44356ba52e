"""Views of an image: small variants over whose answers the probabilities are averaged.

Test-time augmentation: the network is asked about the image as it is, mirrored, shifted
and zoomed, and its answers are averaged. The policies are fixed and have names, so that
a run folder can say which one it wants. What the newcomer would get wrong: a policy
that was chosen by test figures is fitted to them. `tumorlens.evaluation.tta` measures
on val.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SHIFT = 0.04
"""Share of the side: 9 of 224 pixels, where the last feature map of most networks has
cells of 32. The picture falls otherwise into the cells, and no anatomy is lost."""

ZOOM_MARGIN = 0.03
"""Share of the side that a zoomed view leaves out at each edge."""


@dataclass(frozen=True)
class View:
    """One variant. The parts are done in this order."""

    mirror: bool = False
    """Left becomes right."""
    right: int = 0
    """In units of `SHIFT`, below 0 to the left. The edge is repeated."""
    down: int = 0
    """In units of `SHIFT`, below 0 upwards."""
    zoom: bool = False
    """The middle, enlarged to the whole."""


AS_IS = View()

POLICIES = {
    "none": (AS_IS,),
    "mirror": (AS_IS, View(mirror=True)),
    "eight-views": (
        AS_IS,
        View(mirror=True),
        View(right=1),
        View(right=-1),
        View(down=1),
        View(down=-1),
        View(zoom=True),
        View(mirror=True, zoom=True),
    ),
}
"""Names, and what is averaged. A policy never changes: another one gets a new name."""


def policy_of(*, mirror: bool, tta: str) -> str:
    """Return the name of the policy for a card's `mirror` and `tta`.

    `tta` comes first: the mirror image is among its views already.
    """
    if tta != "none":
        return tta
    return "mirror" if mirror else "none"


def views_of(images: Tensor, policy: str) -> Iterator[Tensor]:
    """Yield the images in each view of a policy, as they are first.

    Args:
        images: Shape (N, C, S, S), float.
        policy: A key of `POLICIES`.

    Yields:
        Tensors of the same shape, which may share memory with `images`.
    """
    for view in POLICIES[policy]:
        yield _as_seen(images, view)


def _as_seen(images: Tensor, view: View) -> Tensor:
    if view.mirror:
        images = images.flip(3)
    if view.right or view.down:
        images = _shifted(images, right=view.right, down=view.down)
    if view.zoom:
        images = _zoomed(images)
    return images


def _shifted(images: Tensor, *, right: int, down: int) -> Tensor:
    """Move by whole pixels, at least one: nothing is interpolated."""
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
