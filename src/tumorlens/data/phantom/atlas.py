"""The average head: the MNI152 brain with a skull, a face and a neck around it.

The brain comes from the templates inside nilearn, which are stripped of their skull.
The rest of the head is drawn here from ellipsoids and noise: it needs to resemble one
only at a glance. `tumorlens.data.phantom.patient` bends the head into patients.

Coordinates are millimetres in MNI space: x to the right, y to the front, z up.

Source:
    Fonov et al., "Unbiased nonlinear average age-appropriate brain templates from
    birth to adulthood", NeuroImage 47 (2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import ndimage

from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[np.floating[Any]]"
"""Large arrays are float32: that halves the time, and a grey level has only 8 bits."""

SELLA_MM = (0.0, 4.0, -30.0)
"""Where the pituitary gland lies."""

_ORIGIN_MM = np.array([-100, -140, -150], dtype=np.float32)
_SHAPE = (68, 91, 88)
_STEP_MM = 3
"""The head grid: coarser than the template, and with room for a face and a neck."""


@dataclass(frozen=True)
class Atlas:
    """The average head, shared by all patients; about 150 MiB."""

    to_voxel: Array
    """Millimetres to voxels of the brain volumes: an affine map, (3, 4)."""

    t1: Array
    grey: Array
    white: Array
    """Brain volumes at 1 mm: template intensity and shares of tissue, in [0, 1]."""

    brain_distance: Array
    """Distance to the hull of the brain in mm, negative inside; on the head grid."""

    soft: Mapping[str, Array]
    """Weighting -> brightness outside the skull, on the head grid; 0 is air or bone."""

    noise: Array
    """Smooth noise of unit variance, periodic, with waves of about 10 voxels."""

    white_sites: Array
    border_sites: Array
    """Possible origins of gliomas and of meningiomas: (N, 3), in mm."""

    def brain_at(self, volume: Array, points: Array) -> Array:
        """Read a brain volume at points in mm, (..., 3); 0 outside of it."""
        voxels = points @ self.to_voxel[:, :3].T + self.to_voxel[:, 3]
        return _read(volume, voxels, mode="constant")

    def head_at(self, volume: Array, points: Array) -> Array:
        """Read a volume of the head grid at points in mm, (..., 3)."""
        return _read(volume, (points - _ORIGIN_MM) / _STEP_MM, mode="nearest")

    def noise_at(self, voxels: Array) -> Array:
        """Read the periodic noise at positions in voxels, (..., 3)."""
        return _read(self.noise, voxels, mode="grid-wrap")


def load_atlas() -> Atlas:
    """Load the templates and draw the rest of a head around them.

    Returns:
        The average head. It is the same at each call.

    Raises:
        MissingExtraError: nilearn, of the extra `demo`, is not installed.
    """
    datasets = require("nilearn.datasets")
    # At 1 mm nilearn returns its files unchanged; any other resolution would be
    # resampled first, which takes longer than everything else here.
    image = datasets.load_mni152_template(resolution=1)
    images = (
        image,
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    )
    t1, grey, white = (np.asarray(part.dataobj, dtype=np.float32) for part in images)
    to_voxel = np.linalg.inv(image.affine)[:3].astype(np.float32)

    grid = np.stack(
        np.meshgrid(
            *(
                start + _STEP_MM * np.arange(size, dtype=np.float32)
                for start, size in zip(_ORIGIN_MM, _SHAPE, strict=True)
            ),
            indexing="ij",
        ),
        axis=-1,
    )
    voxels = np.round(grid @ to_voxel[:, :3].T + to_voxel[:, 3]).astype(int)
    brain, in_white = (_nearest(part, voxels) for part in (t1 > 0, white > 0.6))
    brain |= _depth(grid, (0, -45, -110), (8, 8, 45)) > 0  # the spinal cord
    # The skull does not follow each fold of the brain, nor the scalp the skull's base.
    distance = _distance_to_hull(brain, width_mm=10)
    scalp = _distance_to_hull(brain, width_mm=36) - 13

    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.standard_normal((48, 48, 48)), 2, mode="wrap")
    noise = (noise / noise.std()).astype(np.float32)

    in_white &= (distance < -18) & (np.abs(grid[..., 0]) > 14) & (grid[..., 2] > -20)
    # Not at the ends of the brain, where the other two views would show hardly any, and
    # not at the skull's base, where they would look like tumours of the pituitary.
    low, high = np.array([(-52, -80, 0), (52, 50, 54)], dtype=np.float32)
    at_border = (np.abs(distance + 5) < 1.5) & ((grid > low) & (grid < high)).all(-1)
    return Atlas(
        to_voxel=to_voxel,
        t1=t1,
        grey=grey,
        white=white,
        brain_distance=distance,
        soft=_soft_tissue(grid, scalp, noise),
        noise=noise,
        white_sites=grid[in_white],
        border_sites=grid[at_border],
    )


def step(depth: Array) -> Array:
    """Return 1 well inside, 0 well outside and 0.5 at the border: a soft edge."""
    return np.float32(0.5) + np.float32(0.5) * np.tanh(depth)


def _soft_tissue(grid: Array, scalp: Array, noise: Array) -> dict[str, Array]:
    """Draw scalp, face and neck: weighting -> brightness on the head grid."""
    depth = np.maximum.reduce(
        [
            -scalp,
            _depth(grid, (0, 45, -55), (60, 46, 60)),  # face
            _depth(grid, (0, 62, -98), (42, 32, 36)),  # chin
            _depth(grid, (0, 96, -52), (12, 16, 18)),  # nose
            _depth(grid, (0, 15, -80), (62, 62, 55)),  # cheeks and jaw
            _depth(grid, (0, -32, -130), (58, 64, 100)),  # neck
        ]
    )
    depth = ndimage.gaussian_filter(depth, 1.7)
    # Muscles run up and down.
    along = np.array([2.2, 2.6, 5.5], dtype=np.float32)
    texture = 0.7 * _read(noise, grid / along, mode="grid-wrap")
    texture += 0.4 * _read(noise, grid[..., ::-1] / along / 2, mode="grid-wrap")

    fat = step((5 + 1.5 * texture - depth) / 1.2)
    fat += 0.45 * step((texture - 0.7) / 0.3) * (1 - fat)
    muscle = (1 - fat) * (0.85 + 0.25 * texture)
    fluid = np.zeros_like(fat)

    def put(depth: Array, *, fat_: float, muscle_: float, fluid_: float = 0.0) -> None:
        """Replace the tissue inside a shape."""
        here = step(depth / np.float32(1.2))
        uneven = 1 + np.float32(0.2) * texture
        for share, new in ((fat, fat_), (muscle, muscle_), (fluid, fluid_)):
            share += here * (new * uneven - share)

    def pair(x: float, y: float, z: float, radii_mm: Iterable[float]) -> Array:
        """Return a shape and its mirror image on the other side."""
        radii = tuple(radii_mm)
        return np.maximum(
            _depth(grid, (-x, y, z), radii), _depth(grid, (x, y, z), radii)
        )

    put(pair(31, 52, -36, (17, 24, 16)), fat_=0.95, muscle_=0)  # orbits
    put(pair(32, 64, -36, (12, 12, 12)), fat_=0, muscle_=0, fluid_=0.9)  # eyes
    put(pair(28, 52, -66, (13, 15, 15)), fat_=0, muscle_=0)  # air in the cheekbones
    put(_depth(grid, (0, 60, -52), (11, 30, 22)), fat_=0.1, muscle_=0.25, fluid_=0.1)
    put(pair(6, 60, -55, (3, 28, 20)), fat_=0, muscle_=0)  # air in the nose
    put(_depth(grid, (0, 4, -85), (11, 7, 35)), fat_=0, muscle_=0)  # throat
    put(_depth(grid, (0, -20, -45), (13, 9, 20)), fat_=0.65, muscle_=0.1)  # clivus
    put(_depth(grid, (0, 50, -92), (22, 26, 16)), fat_=0.1, muscle_=0.75)  # tongue
    put(_depth(grid, (0, 25, -44), (15, 15, 10)), fat_=0, muscle_=0.1)  # sinus below
    put(_depth(grid, SELLA_MM, (22, 9, 8)), fat_=0.05, muscle_=0.4, fluid_=0.2)
    put(pair(14, 6, -30, (3, 4, 3)), fat_=0, muscle_=0)  # flow in the carotids
    put(_depth(grid, SELLA_MM, (6, 5, 4)), fat_=0.1, muscle_=0.9)  # a healthy gland

    inside = step(depth / np.float32(1.2))
    return {
        "t1": inside * (0.70 * fat + 0.32 * muscle + 0.16 * fluid),
        "t2": inside * (0.50 * fat + 0.24 * muscle + 0.95 * fluid),
    }


def _depth(grid: Array, centre_mm: Iterable[float], radii_mm: Iterable[float]) -> Array:
    """Return about how deep in an ellipsoid each point lies, in mm."""
    radii = np.array(tuple(radii_mm), dtype=np.float32)
    away = (grid - np.array(tuple(centre_mm), dtype=np.float32)) / radii
    norm = np.sqrt(np.einsum("...i,...i->...", away, away))
    depth: Array = (1 - norm) * radii.min()
    return depth


def _distance_to_hull(brain: NDArray[np.bool_], *, width_mm: float) -> Array:
    """Return the distance to the brain in mm, its clefts filled up to twice `width_mm`.

    Negative inside. Outside it is the distance to the brain itself only where no cleft
    was filled.
    """
    width = width_mm / _STEP_MM
    # What is filled may touch the border of the grid, and has to end there as well.
    margin = int(width) + 2
    away = ndimage.distance_transform_edt(np.pad(~brain, margin, constant_values=True))
    hull = ndimage.distance_transform_edt(away <= width) > width
    hull = hull[margin:-margin, margin:-margin, margin:-margin]
    distance = ndimage.distance_transform_edt(~hull)
    distance -= ndimage.distance_transform_edt(hull)
    smooth: Array = ndimage.gaussian_filter(distance * _STEP_MM, 0.7).astype(np.float32)
    return smooth


def _nearest(part: NDArray[np.bool_], voxels: NDArray[Any]) -> NDArray[np.bool_]:
    """Read a mask at whole voxels, (..., 3); false outside of it."""
    inside = ((voxels >= 0) & (voxels < part.shape)).all(axis=-1)
    at = np.clip(voxels, 0, np.array(part.shape) - 1)
    found: NDArray[np.bool_] = part[at[..., 0], at[..., 1], at[..., 2]] & inside
    return found


def _read(volume: Array, voxels: Array, *, mode: str) -> Array:
    """Interpolate linearly at positions in voxels, (..., 3)."""
    found: Array = ndimage.map_coordinates(
        volume, np.moveaxis(voxels, -1, 0), order=1, mode=mode, output=np.float32
    )
    return found
