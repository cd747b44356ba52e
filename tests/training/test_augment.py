"""Augmentation: what a policy consists of, and what it may not do to an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tumorlens.config import AugmentConfig
from tumorlens.errors import ConfigError
from tumorlens.training.augment import (
    BiasField,
    Contrast,
    RicianNoise,
    apply_policy,
    make_policy,
)
from tumorlens.training.loading import seeded

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tumorlens.training.augment import Transform

SIZE = 48
POLICIES = ("none", "basic", "random-resized-crop", "auto-augment", "mri")


def policy(name: str, **settings: Any) -> tuple[Transform, ...]:
    return make_policy(AugmentConfig(policy=name, **settings), size_px=SIZE)


def picture(channels: int) -> NDArray[np.uint8]:
    """Return smooth content on black, coloured where there are three channels."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16
    planes = [
        inside * (60 + 120 * x),
        inside * (40 + 180 * y),
        inside * (200 - 150 * x * y),
    ]
    return np.stack(planes[:channels], axis=2).round().astype(np.uint8)


def many(
    steps: tuple[Transform, ...], image: NDArray[np.uint8], num: int
) -> list[np.ndarray]:
    augmented = []
    for seed in range(num):
        with seeded(seed):
            augmented.append(apply_policy(steps, image))
    return augmented


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_an_image_keeps_its_shape_and_dtype(name: str, channels: int) -> None:
    image = picture(channels)
    before = image.copy()
    for augmented in many(policy(name), image, 12):
        assert augmented.shape == image.shape
        assert augmented.dtype == np.uint8
    assert (image == before).all()  # the cache behind it stays as it is


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["original", "originalr", "v0", "v0r", "3a", "rand-m9-n2", "rand-m1-tweights"],
)
def test_every_policy_of_timm_takes_grey_and_rgb(name: str, channels: int) -> None:
    image = picture(channels)
    steps = policy("auto-augment", auto_augment=name)
    shapes = {augmented.shape for augmented in many(steps, image, 25)}
    assert shapes == {image.shape}


@pytest.mark.parametrize(
    "name", ["basic", "random-resized-crop", "auto-augment", "mri"]
)
def test_a_policy_gives_many_different_images(name: str) -> None:
    image = picture(1)
    different = {augmented.tobytes() for augmented in many(policy(name), image, 40)}
    assert len(different) > 10


def test_none_leaves_the_image_alone() -> None:
    image = picture(3)
    assert policy("none") == ()
    assert (apply_policy((), image) == image).all()


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_image(name: str) -> None:
    image = picture(1)
    first = many(policy(name), image, 5)
    again = many(policy(name), image, 5)
    for one, other in zip(first, again, strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("name", ["basic", "mri"])
def test_a_grey_rgb_image_stays_grey(name: str) -> None:
    image = picture(1).repeat(3, axis=2)
    for augmented in many(policy(name), image, 20):
        assert (augmented == augmented[:, :, :1]).all()


def test_a_coloured_image_becomes_grey_in_a_tenth_of_the_basic_cases() -> None:
    image = picture(3)
    grey = [
        (augmented == augmented[:, :, :1]).all()
        for augmented in many(policy("basic"), image, 300)
    ]
    # 30 expected, standard deviation 5.2.
    assert 12 <= sum(grey) <= 48


def bright_corner() -> NDArray[np.uint8]:
    """Return an image whose top is bright, and the top left brightest."""
    image = np.full((SIZE, SIZE, 1), 20, np.uint8)
    image[8 : SIZE // 2, 8:-8] = 120
    image[8 : SIZE // 2, 8 : SIZE // 2] = 230
    return image


def share_upside_down(images: list[np.ndarray]) -> float:
    half = SIZE // 2
    return float(
        np.mean([image[:half].mean() < image[half:].mean() for image in images])
    )


def share_mirrored(images: list[np.ndarray]) -> float:
    half = SIZE // 2
    return float(
        np.mean([image[:, :half].mean() < image[:, half:].mean() for image in images])
    )


def test_mri_mirrors_half_of_the_images_and_never_turns_one_upside_down() -> None:
    images = many(policy("mri"), bright_corner(), 200)
    assert share_upside_down(images) == 0
    assert 0.35 < share_mirrored(images) < 0.65


def test_basic_flips_half_of_the_images_each_way() -> None:
    images = many(policy("basic"), bright_corner(), 200)
    assert 0.35 < share_upside_down(images) < 0.65
    assert 0.35 < share_mirrored(images) < 0.65


def test_the_basic_policy_is_the_reports() -> None:
    assert [str(step) for step in policy("basic")] == [
        "RandomHorizontalFlip(p=0.5)",
        "RandomVerticalFlip(p=0.5)",
        (
            "RandomRotation(degrees=[-15.0, 15.0], interpolation=bilinear, "
            "expand=False, fill=0)"
        ),
        (
            "ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), "
            "saturation=(0.8, 1.2), hue=None)"
        ),
        "RandomGrayscale(p=0.1)",
    ]


def test_the_crop_keeps_the_share_that_is_set_and_not_timms_default() -> None:
    steps = make_policy(
        AugmentConfig(policy="random-resized-crop", crop_scale=[0.6, 0.9]), size_px=SIZE
    )
    assert len(steps) == 1
    assert str(steps[0]) == (
        f"RandomResizedCropAndInterpolation(size=({SIZE}, {SIZE}), scale=(0.6, 0.9), "
        "ratio=(0.75, 1.3333), interpolation=bilinear bicubic)"
    )


def test_a_crop_of_the_whole_is_the_whole_but_for_its_proportions() -> None:
    # With the whole area asked for, only the square itself fits into the square.
    steps = make_policy(
        AugmentConfig(policy="random-resized-crop", crop_scale=[1.0, 1.0]), size_px=SIZE
    )
    image = picture(1)
    for augmented in many(steps, image, 10):
        assert np.corrcoef(augmented.ravel(), image.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("name", ["mri", "basic"])
def test_what_is_turned_in_from_outside_is_black(name: str) -> None:
    steps = tuple(
        step
        for step in policy(name, strength=1)
        if "Affine" in str(step) or "Rotation" in str(step)
    )
    assert len(steps) == 1
    white = np.full((SIZE, SIZE, 1), 255, np.uint8)
    darkest = [augmented.min() for augmented in many(steps, white, 20)]
    assert sum(value == 0 for value in darkest) >= 15


def test_the_strength_scales_every_range_of_mri() -> None:
    assert [str(step) for step in policy("mri", strength=2.0)] == [
        "RandomHorizontalFlip(p=0.5)",
        (
            "RandomAffine(degrees=[-20.0, 20.0], translate=(0.1, 0.1), "
            "scale=(0.8, 1.2), interpolation=bilinear)"
        ),
        "Contrast(gamma=0.5, gain=0.3)",
        "BiasField(amount=0.4)",
        "RicianNoise(highest=0.08)",
    ]


@pytest.mark.parametrize("strength", [0.01, 30.0])
def test_any_strength_gives_an_image(strength: float) -> None:
    image = picture(1)
    for augmented in many(policy("mri", strength=strength), image, 5):
        assert augmented.shape == image.shape


def test_policies_joined_by_a_plus_are_applied_in_order() -> None:
    steps = policy("random-resized-crop+basic")
    assert len(steps) == 6
    assert "Crop" in str(steps[0])
    assert "Grayscale" in str(steps[-1])


@pytest.mark.parametrize(
    "name", ["v9", "Original", "rand-q9", "random", "rand-mnine", "original-x9", ""]
)
def test_an_unknown_auto_augment_is_named(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"unknown augment\.auto_augment '{name}'"
    ) as caught:
        policy("auto-augment", auto_augment=name)
    assert "'rand-m9-n2'" in caught.value.hint


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_is_a_power_law_with_a_gain(channels: int) -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(channels, axis=2)
    with seeded(3):
        got = np.asarray(Contrast(gamma=0.5, gain=0.3)(as_picture(ramp)), dtype=float)
    # From a few points of the curve back to its two numbers, within rounding.
    curve = (got if channels == 1 else got[:, :, 2]).ravel()
    values = np.array([60, 120, 180])
    exponent, intercept = np.polyfit(
        np.log(values / 255), np.log(curve[values] / 255), 1
    )
    assert np.exp(-0.5) - 0.02 <= exponent <= np.exp(0.5) + 0.02
    assert 0.69 <= np.exp(intercept) <= 1.31
    expected = np.clip(
        255 * np.exp(intercept) * (np.arange(256) / 255) ** exponent, 0, 255
    )
    assert abs(curve - expected).max() < 2.5


def test_contrast_of_no_range_changes_nothing() -> None:
    image = as_picture(picture(3))
    assert np.asarray(Contrast(gamma=0.0, gain=0.0)(image)).tolist() == (
        np.asarray(image).tolist()
    )


def test_contrast_stays_in_its_ranges() -> None:
    grey = as_picture(np.full((1, 1, 1), 128, np.uint8))
    values = []
    for seed in range(300):
        with seeded(seed):
            values.append(np.asarray(Contrast(gamma=0.25, gain=0.15)(grey)).item())
    lowest = 255 * 0.85 * (128 / 255) ** np.exp(0.25)
    highest = 255 * 1.15 * (128 / 255) ** np.exp(-0.25)
    assert lowest - 1 <= min(values) < lowest + 8
    assert highest - 8 < max(values) <= highest + 1


def test_a_bias_field_is_smooth_and_has_no_effect_on_black() -> None:
    flat = as_picture(np.full((SIZE, SIZE, 1), 100, np.uint8))
    with seeded(0):
        field = np.asarray(BiasField(amount=0.2)(flat)) / 100
    assert field.std() > 0.01
    # A polynomial of degree 2 explains its logarithm, up to the rounding of pixels.
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1)
    solution = np.linalg.lstsq(terms.reshape(-1, 6), np.log(field).ravel(), rcond=None)
    rest = np.log(field).ravel() - terms.reshape(-1, 6) @ solution[0]
    assert abs(rest).max() < 0.02
    assert abs(solution[0][0]) < 0.01  # 1 in the centre

    black = as_picture(np.zeros((SIZE, SIZE, 1), np.uint8))
    assert np.asarray(BiasField(amount=0.4)(black)).max() == 0


def test_the_coefficients_of_a_bias_field_have_half_the_amount_as_deviation() -> None:
    flat = as_picture(np.full((3, 3, 1), 100, np.uint8))
    slopes = []
    for seed in range(400):
        with seeded(seed):
            values = np.asarray(BiasField(amount=0.3)(flat)) / 100
        # (log f(1, 0) - log f(-1, 0)) / 2 is the coefficient of x.
        slopes.append(np.log(values[1, 2] / values[1, 0]) / 2)
    assert np.std(slopes) == pytest.approx(0.15, rel=0.12)


def test_noise_on_black_has_rayleighs_mean_and_the_same_in_all_channels() -> None:
    black = as_picture(np.zeros((SIZE, SIZE, 3), np.uint8))
    means = []
    for seed in range(100):
        with seeded(seed):
            noisy = np.asarray(RicianNoise(highest=0.2)(black))
        assert (noisy == noisy[:, :, :1]).all()
        means.append(noisy.mean())
    # Mean of Rayleigh: sigma * sqrt(pi / 2), with sigma uniform up to 0.2 * 255.
    highest = 0.2 * 255 * np.sqrt(np.pi / 2)
    assert max(means) < highest * 1.03
    assert np.mean(means) == pytest.approx(highest / 2, rel=0.15)


def test_noise_on_bright_tissue_is_nearly_gaussian() -> None:
    flat = as_picture(np.full((SIZE, SIZE, 1), 128, np.uint8))
    deviations = []
    for seed in range(100):
        with seeded(seed):
            noisy = np.asarray(RicianNoise(highest=0.1)(flat), dtype=float)
        deviations.append(noisy.std())
        assert abs(noisy.mean() - 128) < 4
    assert max(deviations) < 0.1 * 255 * 1.05
    assert np.mean(deviations) == pytest.approx(0.05 * 255, rel=0.15)
