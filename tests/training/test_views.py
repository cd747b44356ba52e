"""Test-time augmentation: views worked out by hand, and their average in `infer`."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tumorlens.runs.folder import Tta
from tumorlens.training.network import infer, normalize
from tumorlens.training.views import POLICIES, View, policy_of, views_of

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

COLUMNS = torch.arange(4.0).expand(4, 4)
"""0 1 2 3 in every row."""


def as_seen(image: Tensor, view: View) -> Tensor:
    """Return a square image in one view."""
    place = POLICIES["eight-views"].index(view)
    views = list(views_of(image[None, None], "eight-views"))
    return views[place][0, 0]


def test_every_policy_of_a_card_is_known_and_has_the_image_as_it_is() -> None:
    assert set(POLICIES) == {*get_args(Tta), "mirror"}
    for views in POLICIES.values():
        assert views[0] == View()
        assert len(set(views)) == len(views)
    assert len(POLICIES["eight-views"]) == 8


def test_without_a_policy_there_is_the_image_alone() -> None:
    images = torch.rand(2, 3, 8, 8)
    (only,) = views_of(images, "none")
    assert torch.equal(only, images)


@pytest.mark.parametrize(
    ("view", "row"),
    [
        (View(), [0, 1, 2, 3]),
        (View(mirror=True), [3, 2, 1, 0]),
        (View(right=1), [0, 0, 1, 2]),
        (View(right=-1), [1, 2, 3, 3]),
        (View(down=1), [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_a_view_moves_the_columns(view: View, row: list[float]) -> None:
    seen = as_seen(COLUMNS, view)
    assert seen.tolist() == [row] * 4


@pytest.mark.parametrize(
    ("view", "column"),
    [
        (View(down=1), [0, 0, 1, 2]),
        (View(down=-1), [1, 2, 3, 3]),
        (View(right=1), [0, 1, 2, 3]),
        (View(mirror=True), [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_a_view_moves_the_rows(view: View, column: list[float]) -> None:
    seen = as_seen(COLUMNS.T, view)
    assert seen.T.tolist() == [column] * 4


def test_a_shift_is_four_in_a_hundred_of_the_side() -> None:
    image = torch.arange(224.0).expand(224, 224)
    assert as_seen(image, View(right=-1))[0, 0] == 9


@pytest.mark.parametrize("mirror", [False, True])
def test_a_zoomed_ramp_is_a_ramp_of_the_middle(*, mirror: bool) -> None:
    # 100 columns, three left out at each edge: column j shows the place
    # 3 + (j + 0.5) * 0.94 - 0.5, where it is not beyond the outermost centres.
    image = torch.arange(100.0).expand(100, 100)
    seen = as_seen(image, View(zoom=True, mirror=mirror))
    expected = 3 + (torch.arange(100) + 0.5) * 0.94 - 0.5
    row = seen[50].flip(0) if mirror else seen[50]
    assert torch.allclose(row[1:-1], expected[1:-1], atol=1e-4)
    assert torch.equal(seen[0], seen[99])


def test_a_view_of_one_colour_is_the_image() -> None:
    images = torch.full((1, 3, 32, 32), -1.5)
    for seen in views_of(images, "eight-views"):
        assert torch.allclose(seen, images)


class Corner(nn.Module):
    """Answers by the brightness of the upper left corner, so that every view counts."""

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, :3, :3].mean(dim=(1, 2, 3))
        return torch.stack([corner, -corner], dim=1)


def asked(images: Tensor, *, mirror: bool = False, tta: str = "none") -> Tensor:
    log_probs = infer(
        Corner(),
        [images],
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        mirror=mirror,
        tta=tta,
    )
    return torch.from_numpy(np.exp(log_probs))


def test_the_answer_is_the_mean_of_the_probabilities_of_the_views() -> None:
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    views = views_of(normalize(images, mean=MEAN, std=STD), "eight-views")
    probs = torch.stack([Corner()(view).softmax(dim=1) for view in views])
    assert torch.allclose(asked(images, tta="eight-views"), probs.mean(dim=0))
    assert not torch.allclose(asked(images), probs.mean(dim=0), atol=1e-3)


def test_a_policy_goes_before_the_mirror_image_which_it_has() -> None:
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    assert policy_of(mirror=True, tta="none") == "mirror"
    assert torch.equal(
        asked(images, mirror=True, tta="eight-views"),
        asked(images, tta="eight-views"),
    )
