"""Worse images: what each level does, by hand, by MONAI and SciPy, and on any image."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from support.images import draw_image
from tumorlens.data.corruptions import (
    CORRUPTIONS,
    EQUAL_SIZES,
    MAX_SIDE_PX,
    bounded,
    corrupt,
    log_field,
    magnitude_with_noise,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPOSITORY = Path(__file__).parents[2]
ALL = [(one.name, level) for one in CORRUPTIONS.values() for level in one.levels]
KEEPING_SHAPE = [
    name for name in CORRUPTIONS if name not in ("crop", "bright-border", EQUAL_SIZES)
]


def worse(
    image: NDArray[np.uint8], name: str, level: int, *, seed: int = 3, path: str = "a"
) -> NDArray[np.uint8]:
    return corrupt(image, CORRUPTIONS[name], level, seed=seed, path=path)


def head() -> NDArray[np.uint8]:
    return draw_image("glioma", 0)


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_there_are_twelve_of_five_levels_and_the_equal_sizes() -> None:
    levels = [len(one.levels) for one in CORRUPTIONS.values()]
    assert levels == [5] * 12 + [1]
    assert list(CORRUPTIONS)[-1] == EQUAL_SIZES


@pytest.mark.parametrize(("name", "level"), ALL)
def test_any_image_gives_another_of_its_kind(name: str, level: int) -> None:
    for shape in (
        (1, 1),
        (1, 1, 3),
        (2, 3),
        (7, 5, 3),
        (3, 200),
        (150, 2, 3),
        (97, 64),
    ):
        for image in (
            np.zeros(shape, np.uint8),
            np.full(shape, 255, np.uint8),
            np.full(shape, 90, np.uint8),
            np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        ):
            image.flags.writeable = False
            before = image.copy()
            found = worse(image, name, level)
            assert found.dtype == np.uint8
            assert found.ndim == image.ndim
            assert found.shape[2:] == image.shape[2:]
            assert min(found.shape) > 0
            if name in KEEPING_SHAPE:
                assert found.shape == image.shape
            assert (image == before).all()


@pytest.mark.parametrize(("name", "level"), ALL)
def test_seed_and_path_alone_decide(name: str, level: int) -> None:
    image = head()
    once, again = worse(image, name, level), worse(image.copy(), name, level)
    assert (once == again).all()


@pytest.mark.parametrize("name", ["rician-noise", "bias-field", "text"])
def test_other_images_and_other_seeds_are_drawn_anew(name: str) -> None:
    image = head()
    found = [
        worse(image, name, 3, seed=seed, path=path)
        for seed, path in ((1, "a"), (2, "a"), (1, "b"))
    ]
    assert (found[0] != found[1]).any()
    assert (found[0] != found[2]).any()


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if n != "jpeg"])
def test_three_equal_channels_stay_equal_and_are_what_grey_becomes(name: str) -> None:
    grey = head()
    for level in CORRUPTIONS[name].levels:
        colour = worse(np.repeat(grey[:, :, None], 3, axis=2), name, level)
        expected = worse(grey, name, level)
        assert (np.abs(colour.astype(int) - expected[:, :, None]) <= 1).all()


@pytest.mark.parametrize("name", [n for n in KEEPING_SHAPE if n != "text"])
def test_a_higher_level_is_further_from_the_clean_image(name: str) -> None:
    image = np.asarray(Image.fromarray(head()).resize((256, 256)))
    distances = [
        distance(worse(image, name, level), image) for level in CORRUPTIONS[name].levels
    ]
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert len(set(distances)) == 5


def test_the_page_in_docs_has_the_numbers_of_the_levels() -> None:
    text = (REPOSITORY / "docs" / "stress.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    found = {row[0].lower(): tuple(filter(None, row[2:7])) for row in rows[2:]}
    assert found == {
        one.title.lower(): tuple(f"{amount:g}" for amount in one.amounts)
        for one in CORRUPTIONS.values()
    }


def test_a_level_that_is_not_there_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match=r"level of blur from 1 to 5, got 6"):
        worse(head(), "blur", 6)
    with pytest.raises(ValueError, match=r"level of equal-sizes from 1 to 1, got 0"):
        worse(head(), EQUAL_SIZES, 0)


def test_noise_is_monais_for_the_same_draws() -> None:
    from monai.transforms.intensity.array import RandRicianNoise

    image = head().astype(np.float32)
    monai: Any = RandRicianNoise(prob=1.0, std=20.0, sample_std=False)
    monai.set_random_state(7)
    expected = np.asarray(monai(image[None]))[0]
    noise = np.stack([np.asarray(monai._noise1)[0], np.asarray(monai._noise2)[0]])
    found = magnitude_with_noise(image, noise)
    assert found == pytest.approx(expected, abs=1e-3)


def test_noise_has_the_mean_of_a_rician_distribution() -> None:
    # Without signal it is a Rayleigh distribution: mean sigma sqrt(pi / 2).
    sigma = 255 * CORRUPTIONS["rician-noise"].amounts[3]
    found = worse(np.zeros((300, 300), np.uint8), "rician-noise", 4)
    assert found.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    # Far from 0 and 255 it is nearly normal, around sqrt(v^2 + sigma^2).
    found = worse(np.full((300, 300), 120, np.uint8), "rician-noise", 4)
    assert found.mean() == pytest.approx(np.hypot(120, sigma), rel=0.02)
    assert found.std() == pytest.approx(sigma, rel=0.05)


def test_down_sampling_is_monais_gibbs_with_the_same_samples() -> None:
    from monai.transforms.intensity.array import GibbsNoise

    # An odd side: on an even one MONAI's disc is half a sample off the centre.
    side = 251
    image = np.asarray(Image.fromarray(head()).resize((side, side)))
    for level, samples in enumerate(CORRUPTIONS["down-sampling"].amounts, start=1):
        radius = (samples + 1e-4) / (side * np.sqrt(2))  # samples on the edge count
        monai: Any = GibbsNoise(alpha=1 - radius)
        expected = np.abs(np.asarray(monai(image[None].astype(np.float32)))[0])
        found = worse(image, "down-sampling", level)
        assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.51, level


def test_an_image_with_no_more_samples_is_kept() -> None:
    image = head()  # 96 by 96
    assert (worse(image, "down-sampling", 3) == image).all()
    assert (worse(image, "down-sampling", 4) != image).any()


def test_ghosts_are_shifted_copies_of_the_image() -> None:
    side = 120  # a multiple of 2, 3 and 4
    image = np.asarray(Image.fromarray(head()).resize((side, side)))
    strength = CORRUPTIONS["ghosting"].amounts[4]
    values = image.astype(float)
    found = worse(image, "ghosting", 5)
    candidates = []
    for axis in (0, 1):
        for num in (2, 3, 4):
            copies = [np.roll(values, n * side // num, axis) for n in range(num)]
            ghosts = sum(copies) - num * values.mean(axis=axis, keepdims=True)
            candidates.append(np.abs(values - strength * ghosts))
    distances = [np.abs(found - np.clip(one, 0, 255)).max() for one in candidates]
    assert min(distances) <= 0.51
    assert sorted(distances)[1] > 5  # and no other number of ghosts


def test_the_brightest_place_of_a_bias_field_is_so_many_times_the_darkest() -> None:
    plain = np.full((64, 80), 60, np.uint8)
    for level, ratio in enumerate(CORRUPTIONS["bias-field"].amounts, start=1):
        found = worse(plain, "bias-field", level).astype(float)
        assert found.max() / found.min() == pytest.approx(ratio, rel=0.04)


def test_the_field_is_its_polynomial() -> None:
    field = log_field([1, 2, 3, 4, 5], height=3, width=2)
    # At the corner x = 1, y = -1: 1 - 2 - 3 + 4 + 5.
    assert field[0, 1] == pytest.approx(5)
    assert field[1, 0] == pytest.approx(-1 + 4)  # x = -1, y = 0


def test_blur_spreads_a_point_by_its_share_of_the_longer_side() -> None:
    image = np.zeros((101, 401), np.uint8)
    image[50, 200] = 255
    image[48:53, 198:203] = 255
    sigma = CORRUPTIONS["blur"].amounts[2] * 401
    found = worse(image, "blur", 3).astype(float)
    right = np.arange(401) - 200
    spread = (found.sum(axis=0) * right**2).sum() / found.sum()
    # The variance of a square of 5 pixels is 2.
    assert spread == pytest.approx(sigma**2 + 2, rel=0.05)


def test_contrast_shrinks_the_distance_to_the_mean() -> None:
    image = np.array([[0, 100]], np.uint8)
    assert worse(image, "contrast", 2).tolist() == [[20, 80]]


def test_gamma_is_a_power_or_its_inverse() -> None:
    image = np.array([[0, 64, 255]], np.uint8)
    expected = {round(255 * (64 / 255) ** power) for power in (2, 1 / 2)}
    found = {
        tuple(worse(image, "gamma", 3, path=str(n))[0].tolist()) for n in range(20)
    }
    assert found == {(0, value, 255) for value in expected}


def test_jpeg_is_what_pillow_writes_and_reads() -> None:
    image = head()
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=25)
    with Image.open(content) as opened:
        assert (worse(image, "jpeg", 3) == np.asarray(opened)).all()


def test_rotation_is_scipys_to_one_of_both_sides() -> None:
    image = ndimage.gaussian_filter(head(), 2)
    found = worse(image, "rotation", 4)
    turned = [
        ndimage.rotate(image, angle, reshape=False, order=1) for angle in (20, -20)
    ]
    assert min(distance(found, one) for one in turned) < 1.5
    assert max(distance(found, one) for one in turned) > 5


def test_a_crop_is_a_window_of_the_image() -> None:
    image = np.arange(200, dtype=np.uint8).reshape(10, 20)
    found = worse(image, "crop", 5)
    assert found.shape == (7, 14)
    top, left = divmod(int(found[0, 0]), 20)
    assert (found == image[top : top + 7, left : left + 14]).all()
    places = {int(worse(image, "crop", 5, path=str(n))[0, 0]) for n in range(200)}
    assert {place // 20 for place in places} == {0, 1, 2, 3}
    assert {place % 20 for place in places} == set(range(7))


def test_a_bright_border_is_around_the_image() -> None:
    image = np.full((50, 100), 7, np.uint8)
    found = worse(image, "bright-border", 5)  # 8 % of 100
    assert found.shape == (66, 116)
    assert (found[8:-8, 8:-8] == 7).all()
    assert (found == 255).sum() == 66 * 116 - 50 * 100


def test_text_is_bright_in_the_corners_and_grows_by_lines() -> None:
    image = np.zeros((256, 256), np.uint8)
    found = [worse(image, "text", level) > 0 for level in range(1, 6)]
    num = [one.sum() for one in found]
    assert num[0] > 0
    assert num == sorted(num)
    for less, more in pairwise(found):
        assert (more | ~less).all()  # what is written stays
    assert not found[4][60:196].any()
    quarters = [
        found[2][rows, columns]
        for rows in (slice(0, 60), slice(196, 256))
        for columns in (slice(0, 128), slice(128, 256))
    ]
    assert all(one.any() for one in quarters)


def test_equal_sizes_leave_nothing_of_size_shape_and_border() -> None:
    small = head()
    large = np.asarray(Image.fromarray(small).resize((300, 300), Image.Resampling.BOX))
    framed = np.pad(large, ((20, 60), (100, 0)))
    found = [worse(one, EQUAL_SIZES, 1) for one in (small, large, framed)]
    assert {one.shape for one in found} == {(128, 128)}
    assert (found[1] == found[2]).all()
    assert distance(found[0], found[1]) < 8


def test_a_long_image_is_shrunk_and_a_usual_one_is_not_touched() -> None:
    image = head()
    assert bounded(image) is image
    strip = np.zeros((4, 3 * MAX_SIDE_PX, 3), np.uint8)
    assert bounded(strip).shape == (1, MAX_SIDE_PX, 3)
