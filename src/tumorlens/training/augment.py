"""Named augmentation policies, each a short list of transforms.

A transform takes a grey or RGB PIL image and returns one of the same size and mode. All
randomness comes from torch's, numpy's and Python's global generators, because the
transforms of torchvision and timm draw from them; `tumorlens.training.loading` seeds
all three for each image, so an epoch does not depend on the number of workers.

Every parameter of timm's transforms is set here explicitly: the defaults are made for
photographs (crops of 8 % of the area, colour inversion, strong jitter).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import (
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from tumorlens.config import AugmentConfig
from tumorlens.data.corruptions import (
    as_bytes,
    gamma_table,
    log_field,
    magnitude_with_noise,
    times_field,
)
from tumorlens.errors import ConfigError

Transform = Callable[[Image.Image], Image.Image]

_BLACK = 0
"""Fill value of geometric transforms: outside a head there is no signal."""


def make_policy(config: AugmentConfig, *, size_px: int) -> tuple[Transform, ...]:
    """Return the transforms of a policy, in the order in which they are applied.

    Args:
        config: Settings with one or several policies and their ranges.
        size_px: Side of the square images to transform.

    Returns:
        Callables on PIL images; none for the policy `none`.

    Raises:
        ConfigError: timm has no policy `augment.auto_augment`.

    Example:
        >>> [str(step) for step in make_policy(AugmentConfig(policy="mri"), size_px=64)]
        ... # doctest: +NORMALIZE_WHITESPACE
        ['RandomHorizontalFlip(p=0.5)',
         'RandomAffine(degrees=[-10.0, 10.0], translate=(0.05, 0.05),
          scale=(0.9, 1.1), interpolation=bilinear)',
         'Contrast(gamma=0.25, gain=0.15)', 'BiasField(amount=0.2)',
         'RicianNoise(highest=0.04)']
    """
    steps: list[Transform] = []
    for name in config.policies:
        steps += _steps(name, config, size_px=size_px)
    return tuple(steps)


def apply_policy(steps: tuple[Transform, ...], image: np.ndarray) -> np.ndarray:
    """Return an augmented copy of an image.

    Args:
        steps: Result of `make_policy`.
        image: Shape (S, S, 1) or (S, S, 3), uint8.

    Returns:
        An array of the same shape and dtype.
    """
    if not steps:
        return image
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    for step in steps:
        picture = step(picture)
    return np.asarray(picture).reshape(image.shape)


@dataclass(frozen=True)
class Contrast:
    """Change gamma and gain, as between scanners and display windows.

    The value v in [0, 1] becomes gain * v ** exp(g), with g uniform in
    [-gamma, gamma] and gain uniform in [1 - gain, 1 + gain].
    """

    gamma: float
    gain: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image with a random contrast."""
        exponent = np.exp(np.random.uniform(-self.gamma, self.gamma))
        factor = np.random.uniform(1 - self.gain, 1 + self.gain)
        table = gamma_table(exponent, gain=factor).tolist()
        return image.point(table * len(image.getbands()))


@dataclass(frozen=True)
class BiasField:
    """Multiply by a smooth field, as of an uneven receive coil.

    The field is exp(p), with p the polynomial of `corruptions.log_field` whose five
    coefficients are normal with standard deviation `amount` / 2.
    """

    amount: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image under a random field."""
        coefficients = np.random.normal(0, self.amount / 2, 5)
        field = log_field(coefficients, height=image.height, width=image.width)
        return Image.fromarray(times_field(np.asarray(image), np.exp(field)))


@dataclass(frozen=True)
class RicianNoise:
    """Add the Rician noise of a magnitude image, with a random level per image.

    That of `corruptions.magnitude_with_noise`, normal with a standard deviation uniform
    in [0, highest] of the full range.
    """

    highest: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image with noise."""
        sigma = np.random.uniform(0, self.highest) * 255
        # torch draws it four times as fast as numpy.
        noise = sigma * torch.randn(2, image.height, image.width).numpy()
        values = magnitude_with_noise(np.asarray(image, dtype=np.float32), noise)
        return Image.fromarray(as_bytes(values))


def _steps(name: str, config: AugmentConfig, *, size_px: int) -> list[Transform]:
    bilinear = transforms.InterpolationMode.BILINEAR
    match name:
        case "basic":
            # Section 5 of the baseline study. On grey images the last transform and the
            # saturation have no effect.
            return [
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomVerticalFlip(0.5),
                transforms.RandomRotation(15, interpolation=bilinear, fill=_BLACK),
                transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
                transforms.RandomGrayscale(0.1),
            ]
        case "random-resized-crop":
            low, high = config.crop_scale
            crop: Transform = RandomResizedCropAndInterpolation(
                size_px, scale=(low, high), ratio=(3 / 4, 4 / 3), interpolation="random"
            )
            return [crop]
        case "auto-augment":
            return [_auto_augment(config.auto_augment, size_px=size_px)]
        case "mri":
            # A head is roughly left-right symmetric and upright: no vertical flip.
            s = config.strength
            return [
                transforms.RandomHorizontalFlip(0.5),
                transforms.RandomAffine(
                    degrees=10 * s,
                    translate=(min(0.05 * s, 1.0), min(0.05 * s, 1.0)),
                    scale=(max(1 - 0.1 * s, 0.1), 1 + 0.1 * s),
                    interpolation=bilinear,
                    fill=_BLACK,
                ),
                Contrast(gamma=0.25 * s, gain=min(0.15 * s, 1.0)),
                BiasField(amount=0.2 * s),
                RicianNoise(highest=0.04 * s),
            ]
    assert name == "none"
    return []


def _auto_augment(name: str, *, size_px: int) -> Transform:
    # Fill with black, and translate by a share of this image's own size.
    hparams = {"img_mean": _BLACK, "translate_const": int(size_px * 0.45)}
    is_rand = name.startswith("rand")
    make = rand_augment_transform if is_rand else auto_augment_transform
    try:
        # timm silently skips a part without a number, unless it names transforms.
        if not all(re.search(r"^t|\d", part) for part in name.split("-")[1:]):
            raise ValueError
        step = make(name, hparams)
    except (AssertionError, KeyError, ValueError):
        raise ConfigError(
            f"unknown augment.auto_augment {name!r}",
            hint="use 'original', 'v0', '3a', or a RandAugment such as 'rand-m9-n2'",
        ) from None
    operations = step.ops if is_rand else [op for ops in step.policy for op in ops]
    for operation in operations:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    chosen: Transform = step
    return chosen


def _posterize(image: Image.Image, bits: int, **_options: Any) -> Image.Image:
    # At its lowest levels timm keeps no bit at all: Pillow raises an error, or the
    # image is black.
    return ImageOps.posterize(image, min(max(bits, 1), 8))
