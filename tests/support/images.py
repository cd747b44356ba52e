"""Images drawn in code: no downloads, no patient data, learnable in seconds."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")
_BLOB_CENTRES = {
    "glioma": (0.35, 0.4),
    "meningioma": (0.7, 0.3),
    "pituitary": (0.5, 0.7),
}


def draw_image(label: str, seed: int, *, size_px: int = 96) -> NDArray[np.uint8]:
    """Return a grey ellipse with a blob at the place of its class, (H, W) uint8."""
    rng = np.random.default_rng([seed, CLASSES.index(label)])
    # Without a texture of its own, an image would count as a copy of another.
    texture = rng.normal(0, 1, (12, 12))
    image = Image.new("L", (size_px, size_px), 0)
    draw = ImageDraw.Draw(image)
    margin = size_px * rng.uniform(0.06, 0.14, 4)
    draw.ellipse(
        (margin[0], margin[1], size_px - margin[2], size_px - margin[3]), fill=110
    )
    if label in _BLOB_CENTRES:
        x, y = np.array(_BLOB_CENTRES[label]) * size_px + rng.normal(0, 2, 2)
        radius = size_px * rng.uniform(0.09, 0.13)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=240)
    pixels = np.asarray(image, dtype=float)
    grain = np.kron(texture, np.ones((size_px // 12 + 1,) * 2))[:size_px, :size_px]
    noisy = pixels + (pixels > 0) * grain * 18 + rng.normal(0, 3, pixels.shape)
    image_values: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return image_values


@cache
def draw_head(seed: int, *, num_slices: int) -> NDArray[np.uint8]:
    """Return slices of a head that lie 1 mm apart, of 1 mm pixels.

    Tissue is smooth noise of two sizes, skull a bright shell; each slice has noise of
    its own, as in a scanner.

    Args:
        seed: Number of the head.
        num_slices: How many, from near the middle.

    Returns:
        Shape (N, 160, 160).
    """
    rng = np.random.default_rng([seed, 99])
    margin = 12  # as far as the smoothing reaches
    shape = (num_slices + 2 * margin, 160, 160)
    large, small = (
        ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), width)
        for width in (6, 2)
    )
    down, right = np.meshgrid(*[np.linspace(-1, 1, 160)] * 2, indexing="ij")
    depth = (np.arange(shape[0])[:, None, None] - 20) / 80
    radius = np.sqrt(
        depth**2
        + (down / rng.uniform(0.85, 0.95)) ** 2
        + (right / rng.uniform(0.7, 0.8)) ** 2
    )
    tissue = 110 + 28 * large / large.std() + 10 * small / small.std()
    head = np.where(radius < 0.88, tissue, 0)
    head += np.where((radius > 0.93) & (radius < 1), 190, 0)
    head += (head > 0) * rng.normal(0, 4, shape)
    drawn: NDArray[np.uint8] = np.clip(head[margin:-margin], 0, 255).astype(np.uint8)
    return drawn
