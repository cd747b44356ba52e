"""Worse images: what scanners, exports and screenshots do to a picture, in five levels.

A corruption takes a decoded image, before it becomes a square, and gives one of the
same kind: uint8, grey or colour, of any size from one pixel. The same seed and path
give the same result on any machine, and the draws do not depend on the level: a higher
level is more of the same. Sizes are shares of the longer side, so that a level means
the same for a small and for a large file. docs/stress.md shows all of them.

The formulas for Rician noise and bias fields are those of the augmentation policy
`mri`, which draws its own numbers. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tumorlens.data.images import fit_square

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

MAX_SIDE_PX = 2048
"""Longest side of an image that is corrupted; longer ones are shrunk by `bounded`. The
Fourier transform of an image of 100 million pixels would take gigabytes."""

_TEXTS = (
    *("AX T2 FLAIR", "TR 4000 TE 90", "SE 4 IM 12", "W 412 C 206", "FOV 23.0 cm"),
    *("5.0 mm / 6.0 sp", "256 x 192", "1.5 T HEAD", "ET 8", "NEX 2", "R", "L"),
)
"""What scanners write beside a picture; nothing that could name a patient."""

_LETTER_HEIGHT = 0.04
"""Height of burnt-in letters, a share of the longer side."""

_ROUNDING = 1e-6
"""Samples on the edge of the disc of k-space belong to it."""


@dataclass(frozen=True)
class Corruption:
    """One way in which images get worse."""

    name: str
    title: str
    amount: str
    """What the numbers of the levels are."""
    amounts: tuple[float, ...]
    """One for each level, level 1 first."""
    apply: Callable[[NDArray[np.uint8], float, np.random.Generator], NDArray[np.uint8]]
    """Maps image, amount and source of randomness to a new image."""

    @property
    def levels(self) -> range:
        """Numbers of the levels, from 1."""
        return range(1, len(self.amounts) + 1)


def corrupt(
    image: NDArray[np.uint8],
    corruption: Corruption,
    level: int,
    *,
    seed: int,
    path: str,
) -> NDArray[np.uint8]:
    """Return a corrupted copy of an image.

    Args:
        image: (H, W) or (H, W, 3), of `bounded`.
        corruption: One of `CORRUPTIONS`.
        level: From 1, the mildest.
        seed: Seed of the run.
        path: Path of the image as in the index; images of different paths are
            corrupted differently.

    Returns:
        (H, W) or (H, W, 3), as the image; some corruptions change height and width.

    Raises:
        ValueError: There is no such level.

    Example:
        >>> grey = np.full((4, 4), 100, np.uint8)
        >>> corrupt(grey, CORRUPTIONS["contrast"], 1, seed=0, path="a.png")[0].tolist()
        [100, 100, 100, 100]
    """
    if level not in corruption.levels:
        raise ValueError(
            f"expected a level of {corruption.name} from 1 to "
            f"{len(corruption.amounts)}, got {level}"
        )
    words = f"{seed} {corruption.name} {path}".encode(errors="surrogateescape")
    rng = np.random.default_rng(list(hashlib.sha256(words).digest()))
    return corruption.apply(image, corruption.amounts[level - 1], rng)


def bounded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image whose sides are at most `MAX_SIDE_PX`: mostly the image itself.

    Example:
        >>> bounded(np.zeros((4096, 10), np.uint8)).shape
        (2048, 5)
    """
    if max(image.shape[:2]) <= MAX_SIDE_PX:
        return image
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX), Image.Resampling.BILINEAR)
    return np.array(picture)


def magnitude_with_noise(
    values: NDArray[np.floating], noise: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the magnitude of a signal with complex noise: sqrt((v + a)^2 + b^2).

    Args:
        values: (H, W) or (H, W, 3).
        noise: a and b, shape (2, H, W). All channels get the same, so those of a grey
            image stay equal.

    Source:
        Gudbjartsson and Patz, "The Rician distribution of noisy MRI data", Magnetic
        Resonance in Medicine 34(6), 1995.
    """
    real, imaginary = noise
    found: NDArray[np.floating] = np.hypot(
        values + _over(values, real), _over(values, imaginary)
    )
    return found


def log_field(
    coefficients: Sequence[float] | NDArray[np.floating], *, height: int, width: int
) -> NDArray[np.float32]:
    """Return the logarithm of a smooth field, as of an uneven receive coil.

    A polynomial of degree 2 in x and y, both from -1 to 1: c0 x + c1 y + c2 x y +
    c3 x^2 + c4 y^2.

    Returns:
        Shape (H, W).

    Source:
        Van Leemput et al., "Automated model-based bias field correction of MR images
        of the brain", IEEE TMI 18(10), 1999.
    """
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    c = np.asarray(coefficients, np.float32)
    found: NDArray[np.float32] = (
        c[0] * x + c[1] * y + c[2] * x * y + c[3] * x**2 + c[4] * y**2
    )
    return found


def times_field(
    image: NDArray[np.uint8], field: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Return an image multiplied by a field (H, W), rounded and clipped."""
    values = image.astype(np.float32)
    return as_bytes(values * _over(values, field))


def gamma_table(exponent: float, *, gain: float = 1.0) -> NDArray[np.uint8]:
    """Return the new value of each grey value: gain * v^exponent for v in [0, 1]."""
    return as_bytes(255 * gain * (np.arange(256) / 255) ** exponent)


def as_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return values rounded and clipped to 0 and 255."""
    found: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found


def _over(
    values: NDArray[np.floating], plane: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return a plane (H, W) in a shape that fits all channels of `values`."""
    return plane if values.ndim == 2 else plane[:, :, None]


def _noisy(
    image: NDArray[np.uint8], sigma: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    noise = 255 * sigma * rng.standard_normal((2, *image.shape[:2]), np.float32)
    return as_bytes(magnitude_with_noise(image.astype(np.float32), noise))


def _biased(
    image: NDArray[np.uint8], ratio: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Multiply by a field whose largest value is `ratio` times its smallest."""
    height, width = image.shape[:2]
    field = log_field(rng.standard_normal(5), height=height, width=width)
    low, high = float(field.min()), float(field.max())
    # A single pixel has no direction in which the field could grow.
    scale = np.log(ratio) / (high - low) if high > low else 0.0
    return times_field(image, np.exp((field - (low + high) / 2) * scale))


def _ghosted(
    image: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Weaken every second, third or fourth line of k-space but the central one.

    That leaves so many copies of the image, at equal distances along the axis of phase
    encoding, each with `strength` times its signal.
    """
    axis, num_ghosts = int(rng.integers(2)), int(rng.integers(2, 5))
    values = image.astype(np.float32)
    length = values.shape[axis]
    lines = np.moveaxis(np.fft.rfft(values, axis=axis), axis, 0)
    lines[num_ghosts::num_ghosts] *= 1 - num_ghosts * strength
    found = np.fft.irfft(np.moveaxis(lines, 0, axis), length, axis=axis)
    return as_bytes(np.abs(found))


def _blurred(
    image: NDArray[np.uint8], sigma: float, _rng: np.random.Generator
) -> NDArray[np.uint8]:
    width = sigma * max(image.shape[:2])
    return as_bytes(
        ndimage.gaussian_filter(
            image.astype(np.float32), width, mode="nearest", axes=(0, 1)
        )
    )


def _with_fewer_samples(
    image: NDArray[np.uint8], matrix: float, _rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Keep the k-space of `matrix` samples along the longer side, a disc.

    An image that has no more is kept. Edges ring, as where a scanner interpolates.
    """
    height, width = image.shape[:2]
    longer = max(height, width)
    if matrix >= longer:
        return image
    # In cycles over the longer side, so that pixels stay square.
    down = longer * np.fft.fftfreq(height)[:, None]
    right = longer * np.fft.rfftfreq(width)[None, :]
    is_kept = np.hypot(down, right) <= matrix / 2 + _ROUNDING
    values = image.astype(np.float32)
    spectrum = np.fft.rfft2(values, axes=(0, 1))
    spectrum *= _over(values, is_kept)
    found = np.fft.irfft2(spectrum, (height, width), axes=(0, 1))
    return as_bytes(np.abs(found))


def _with_contrast(
    image: NDArray[np.uint8], factor: float, _rng: np.random.Generator
) -> NDArray[np.uint8]:
    mean = float(image.mean())
    return as_bytes(mean + factor * (np.arange(256) - mean))[image]


def _with_gamma(
    image: NDArray[np.uint8], gamma: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    exponent = gamma if rng.random() < 0.5 else 1 / gamma
    return gamma_table(exponent)[image]


def _as_jpeg(
    image: NDArray[np.uint8], quality: float, _rng: np.random.Generator
) -> NDArray[np.uint8]:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=int(quality))
    with Image.open(content) as picture:
        return np.array(picture)


def _rotated(
    image: NDArray[np.uint8], degrees: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    turn = degrees if rng.random() < 0.5 else -degrees
    picture = Image.fromarray(image).rotate(turn, Image.Resampling.BILINEAR)
    return np.array(picture)


def _cropped(
    image: NDArray[np.uint8], kept: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    spans = []
    for side, place in zip(image.shape[:2], rng.random(2), strict=True):
        length = max(1, round(kept * side))
        start = int(place * (side - length + 1))
        spans.append(slice(start, start + length))
    return image[spans[0], spans[1]].copy()


def _framed(
    image: NDArray[np.uint8], width: float, _rng: np.random.Generator
) -> NDArray[np.uint8]:
    border = max(1, round(width * max(image.shape[:2])))
    sides = ((border, border), (border, border), (0, 0))
    return np.pad(image, sides[: image.ndim], constant_values=255)


def _with_text(
    image: NDArray[np.uint8], num_lines: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    letter = max(1.0, _LETTER_HEIGHT * max(height, width))
    font = ImageFont.load_default(letter)
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    # Drawn in full at every level: a higher one adds lines, and keeps those below.
    words, corners = rng.permutation(len(_TEXTS)), rng.permutation(4)
    for number in range(int(num_lines)):
        is_right, is_below = divmod(int(corners[number % 4]), 2)
        row = 1.2 * letter * (number // 4)
        margin = letter / 2
        draw.text(
            (
                width - margin if is_right else margin,
                height - margin - row if is_below else margin + row,
            ),
            _TEXTS[words[number]],
            fill="white" if image.ndim == 3 else 255,
            font=font,
            anchor=("r" if is_right else "l") + ("d" if is_below else "a"),
        )
    return np.array(picture)


def _of_equal_size(
    image: NDArray[np.uint8], side_px: float, _rng: np.random.Generator
) -> NDArray[np.uint8]:
    return fit_square(image, size_px=int(side_px), fit="pad")


EQUAL_SIZES = "equal-sizes"
"""No corruption but a test for shortcuts: nothing is left of the file's own size, shape
and black border, from which a class may be told."""

_SHARE = "share of the longer side"

CORRUPTIONS = {
    one.name: one
    for one in (
        Corruption(
            "rician-noise",
            "Rician noise",
            "standard deviation, share of the full range",
            (0.02, 0.04, 0.08, 0.12, 0.2),
            _noisy,
        ),
        Corruption(
            "bias-field",
            "Bias field",
            "times as bright in the brightest place as in the darkest",
            (1.5, 2, 3, 4, 6),
            _biased,
        ),
        Corruption(
            "ghosting",
            "Ghosting",
            "signal of each of 2 to 4 ghosts, share of the image's",
            (0.04, 0.08, 0.12, 0.18, 0.25),
            _ghosted,
        ),
        Corruption(
            "blur",
            "Blur",
            f"standard deviation of the Gaussian, {_SHARE}",
            (0.003, 0.006, 0.01, 0.015, 0.025),
            _blurred,
        ),
        Corruption(
            "down-sampling",
            "Down-sampling",
            "samples along the longer side that are left of k-space",
            (160, 128, 96, 64, 48),
            _with_fewer_samples,
        ),
        Corruption(
            "contrast",
            "Contrast",
            "share of the distance to the mean grey value that is left",
            (0.8, 0.6, 0.45, 0.3, 0.2),
            _with_contrast,
        ),
        Corruption(
            "gamma",
            "Gamma",
            "exponent, or one divided by it",
            (1.25, 1.6, 2, 2.5, 3.2),
            _with_gamma,
        ),
        Corruption(
            "jpeg",
            "JPEG quality",
            "quality of Pillow's encoder, of 95",
            (60, 40, 25, 15, 7),
            _as_jpeg,
        ),
        Corruption(
            "rotation",
            "Rotation",
            "degrees, to either side",
            (5, 10, 15, 20, 30),
            _rotated,
        ),
        Corruption(
            "crop",
            "Crop",
            "share of each side that is left",
            (0.95, 0.9, 0.85, 0.8, 0.7),
            _cropped,
        ),
        Corruption(
            "bright-border",
            "Bright border",
            f"width of a white frame around the image, {_SHARE}",
            (0.005, 0.01, 0.02, 0.04, 0.08),
            _framed,
        ),
        Corruption(
            "text",
            "Burnt-in text",
            "lines of white text in the corners",
            (1, 2, 4, 8, 12),
            _with_text,
        ),
        Corruption(
            EQUAL_SIZES,
            "All sizes made equal",
            "side in pixels, after the black border is cut off and black added to make "
            "a square",
            (128,),
            _of_equal_size,
        ),
    )
}
"""Name -> corruption, in the order in which they are shown: twelve of five levels, and
`EQUAL_SIZES` of one."""
