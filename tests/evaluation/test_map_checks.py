"""The checks of a map, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from tumorlens.evaluation.map_checks import (
    CELLS,
    ExplanationChecks,
    ImageChecks,
    Localisation,
    Outside,
    Removal,
    Stage,
    cell_means,
    head_of,
    localisation_of,
    outside_of,
    rank_correlation,
    removal_of,
    summarized,
)


def test_cells_are_means_of_equal_parts() -> None:
    heat = np.zeros((28, 28))
    heat[:2, :2] = [[1, 2], [3, 6]]
    heat[26:, 26:] = 5
    cells = cell_means(heat)
    assert cells.shape == (CELLS, CELLS)
    assert cells[0, 0] == 3
    assert cells[-1, -1] == 5
    assert cells.sum() == 8


@pytest.mark.parametrize("size", [16, 32, 97, 260])
def test_cells_of_any_size_keep_the_mean_within_a_pixel(size: int) -> None:
    ramp = np.tile(np.arange(size, dtype=float), (size, 1))
    cells = cell_means(ramp)
    assert (np.diff(cells[0]) > 0).all()
    assert (cells == cells[0]).all()
    np.testing.assert_allclose(
        cells[0], (np.arange(CELLS) + 0.5) * size / CELLS - 0.5, atol=1
    )


def test_rank_correlation_is_that_of_the_ranks() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, (2, 14, 14))
    expected = np.corrcoef(rankdata(first), rankdata(second))[0, 1]
    assert rank_correlation(first, second) == pytest.approx(expected)
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_flat_or_broken_map_has_no_correlation(value: float) -> None:
    other = np.arange(4.0)
    assert rank_correlation(np.full(4, value), other) is None
    assert rank_correlation(other, np.full(4, value)) is None


def corner(there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Answer with the share of the first row's cells that are there."""
    shares: NDArray[np.float64] = there[:, 0].mean(axis=1)
    return shares


def test_deletion_and_insertion_of_a_perfect_map_by_hand() -> None:
    # All that counts is the first row, which goes, or comes, at the first of 14 steps:
    # 1, 0, 0 ... has a mean of 1/2 of a step, 0, 1, 1 ... of 13 1/2 steps.
    cells = np.zeros((CELLS, CELLS))
    cells[0] = np.arange(CELLS, 0, -1)
    found = removal_of(cells, corner, seed=0)
    assert found.deletion == pytest.approx(0.5 / 14)
    assert found.insertion == pytest.approx(13.5 / 14)
    # At random it goes evenly.
    assert found.deletion_random == pytest.approx(0.5, abs=0.1)
    assert found.insertion_random == pytest.approx(0.5, abs=0.1)


def test_the_wrong_order_is_worse_than_chance() -> None:
    cells = np.ones((CELLS, CELLS))
    cells[0] = -1
    found = removal_of(cells, corner, seed=0)
    assert found.deletion == pytest.approx(13.5 / 14)
    assert found.insertion == pytest.approx(0.5 / 14)


def test_the_seed_decides_the_random_orders() -> None:
    cells = np.zeros((CELLS, CELLS))
    first, again, other = (removal_of(cells, corner, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.deletion_random != other.deletion_random


def disc(size: int = 64, radius: float = 20) -> NDArray[np.bool_]:
    down, right = np.indices((size, size)) - size / 2
    inside: NDArray[np.bool_] = np.hypot(down, right) < radius
    return inside


def test_the_head_is_the_bright_region_with_its_dark_inside() -> None:
    head = disc()
    rng = np.random.default_rng(0)
    image = rng.rayleigh(6, head.shape)  # noise up to twice the least brightness
    image[head] += 120
    image[disc(radius=6)] = 0  # fluid
    image[:4, :4] = 200  # letters in a corner
    found = head_of(image.astype(np.uint8))
    assert (found != disc(radius=20.5)).mean() < 0.02
    assert found[32, 32]
    assert not found[:8, :8].any()


def test_colour_is_head_where_any_channel_is_bright() -> None:
    head = disc()
    image = np.zeros((64, 64, 3), np.uint8)
    image[head] = (0, 0, 150)
    assert (head_of(image) != head).mean() < 0.05


@pytest.mark.parametrize("value", [0, 90])
def test_an_image_without_background_is_head_all_over(value: int) -> None:
    assert head_of(np.full((40, 40), value, np.uint8)).all()


def test_heat_outside_the_head_is_its_share_of_what_is_positive() -> None:
    image = np.where(disc(), 150, 0).astype(np.uint8)
    heat = np.zeros((64, 64), np.float32)
    heat[30:34, 30:34] = 3  # 48 inside
    heat[:4, :4] = 1  # 16 outside
    heat[60:, 60:] = -100  # speaks against: no heat
    found = outside_of(heat, image)
    assert found.heat == pytest.approx(0.25)
    # The edge of a small disc, smoothed, reaches half a pixel further.
    assert found.area == pytest.approx(1 - disc(radius=20.5).mean(), abs=0.02)


def test_a_map_without_heat_has_no_share_outside() -> None:
    image = np.where(disc(), 150, 0).astype(np.uint8)
    assert outside_of(-np.ones((64, 64), np.float32), image).heat is None


def test_a_large_image_gives_the_shares_of_a_small_one() -> None:
    image = np.where(disc(), 150, 0).astype(np.uint8)
    heat = np.zeros((64, 64), np.float32)
    heat[30:34, 30:34], heat[:4, :4] = 3, 1
    large = outside_of(
        np.kron(heat, np.ones((20, 20), np.float32)),
        np.kron(image, np.ones((20, 20), np.uint8)),
    )
    small = outside_of(heat, image)
    assert large.heat == pytest.approx(small.heat, abs=0.02)
    assert large.area == pytest.approx(small.area, abs=0.02)


def test_pointing_game_and_overlap_by_hand() -> None:
    tumour = np.zeros((10, 10), np.bool_)
    tumour[2, 2:6] = True
    heat = np.zeros((10, 10), np.float32)
    heat[2, 2:4] = (0.9, 1.0)  # two of the tumour's four pixels ...
    heat[7, 7:9] = 0.5  # ... and two beside it
    found = localisation_of(heat, tumour)
    assert found == Localisation(is_hit=True, iou=2 / 6, area=0.04)
    heat[7, 7] = 2
    assert not localisation_of(heat, tumour).is_hit


def test_a_map_that_is_the_tumour_overlaps_wholly() -> None:
    tumour = disc()
    found = localisation_of(tumour.astype(np.float32), tumour)
    assert found.iou == 1
    assert found.is_hit


def image_checks(**changes: Any) -> ImageChecks:
    values: dict[str, Any] = {
        "path": "a.png",
        "explained": "glioma",
        "predicted": "glioma",
        "prob": 0.5,
        "randomization": (
            Stage(randomized=0.1, correlation=0.9),
            Stage(randomized=1, correlation=0.2),
        ),
        "removal": Removal(
            deletion=0.1, deletion_random=0.4, insertion=0.3, insertion_random=0.4
        ),
        "outside": Outside(heat=0.2, area=0.5),
        "localisation": Localisation(is_hit=True, iou=0.3, area=0.02),
    }
    return ImageChecks(**{**values, **changes})


def test_the_summary_is_of_those_that_have_a_figure() -> None:
    flat = Stage(randomized=1, correlation=None)
    found = summarized(
        [
            image_checks(),
            image_checks(
                randomization=(flat,),
                localisation=Localisation(is_hit=False, iou=0.1, area=0.04),
                outside=Outside(heat=None, area=0.3),
            ),
            image_checks(
                randomization=(Stage(randomized=1, correlation=-0.4),),
                localisation=None,
                removal=Removal(
                    deletion=0.5,
                    deletion_random=0.4,
                    insertion=0.5,
                    insertion_random=0.4,
                ),
            ),
            ImageChecks(path="b.png", error="is empty (0 bytes)"),
        ]
    )
    assert found.num_images == 3
    assert found.randomized_correlation == pytest.approx(-0.1)  # of 0.2 and -0.4
    assert found.better_deletion == pytest.approx(2 / 3)
    assert found.better_insertion == pytest.approx(1 / 3)
    assert found.heat_outside == pytest.approx(0.2)
    assert found.area_outside == pytest.approx(1.3 / 3)
    assert found.num_with_tumour == 2
    assert found.hit_rate == 0.5
    assert found.mean_iou == pytest.approx(0.2)
    assert found.tumour_area == pytest.approx(0.03)


def test_the_sentences_leave_out_what_is_not_known() -> None:
    images = (image_checks(randomization=None, localisation=None, outside=None),)
    found = ExplanationChecks(
        model="run",
        method="occlusion",
        classes=("glioma", "no_tumor"),
        summary=summarized(images),
        not_checked=("randomization: why",),
        images=images,
    )
    assert found.sentences() == [
        "better than random orders: deletion in 100 % of the images, insertion in 0 %",
        "not checked: randomization: why",
    ]
