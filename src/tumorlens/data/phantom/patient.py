"""Synthetic patients with and without a tumour, cut into slices like those of MRI.

A patient is the average head of `tumorlens.data.phantom.atlas`, bent by a smooth
deformation of its own. No volume is made per patient: each pixel of a slice is traced
back to its place in the average head, so that all slices of a patient cut the same head
and the same tumour.

The pictures are for training software, not for conclusions: the tumours follow no law
of biology. The set of files is `tumorlens.data.phantom.dataset`.

Source:
    Gudbjartsson and Patz, "The Rician distribution of noisy MRI data", Magnetic
    Resonance in Medicine 34 (1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from scipy.spatial.transform import Rotation

from tumorlens.data.phantom.atlas import SELLA_MM, Array, Atlas, step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

Finding = Literal["glioma", "meningioma", "no_tumor", "pituitary"]
View = Literal["axial", "coronal", "sagittal"]
Weighting = Literal["t1", "t2"]
Waves: TypeAlias = tuple[Array, Array, Array]
"""Wave vectors (W, 3), phases (W,) and heights (W, 3) in mm."""

FINDINGS: tuple[Finding, ...] = get_args(Finding)

_CSF_MM = 1.5
"""Fluid between the brain's hull and the skull."""

_COARSE_PX = 4
"""The deformation is computed at every fourth pixel: its waves are far longer."""

_TYPICAL = {
    "t1": {
        "fluid": 0.12, "grey": 0.35, "white": 0.45, "detail": 0.6, "marrow": 0.30,
        "solid": 0.88, "dead": 0.15, "swollen": 0.22, "spot": 0.65, "sinus": 0.60,
    },
    "t2": {
        "fluid": 0.90, "grey": 0.52, "white": 0.34, "detail": -0.5, "marrow": 0.20,
        "solid": 0.80, "dead": 0.98, "swollen": 0.78, "spot": 0.85, "sinus": 0.06,
    },
}  # fmt: skip
"""Weighting -> tissue -> brightness. `detail` is the weight of the template's signal
beyond that of its tissues."""


@dataclass(frozen=True)
class Lesion:
    """A tumour as an implicit surface: an ellipsoid whose radius is uneven."""

    finding: Finding
    centre_mm: Array
    axes: Array
    """Millimetres from the centre to units of the radius along each axis: (3, 3)."""

    radius_mm: float
    unevenness: float
    """Standard deviation of the radius over the surface, as a fraction of it."""

    core: float
    """Radius of the dead core as a fraction of the whole; 0 for a solid mass."""

    swelling: float
    """Radius of the oedema as a fraction of the mass's; 0 for none."""

    enhancement: float
    """1 for the brightest mass, 0 for one as grey as the brain."""

    phase: Array
    """Position in the noise from which the unevenness is read, in voxels: (3,)."""


@dataclass(frozen=True)
class Patient:
    """One head: its deformation, the brightness of its tissues, its disease."""

    finding: Finding
    focus_mm: Array
    """Point where the slices meet: the tumour, or a place where one might have been."""

    spread_mm: float
    """Distance between neighbouring slices of a view."""

    lesion: Lesion | None
    pose: Array
    """Rotation and scale, (3, 3)."""

    head_waves: Waves
    """Long waves that bend the whole head."""

    fold_waves: Waves
    """Short waves that bend the folds of the brain; the skull does not follow."""

    ventricles: float
    """Growth of the ventricles; negative for narrow ones."""

    skull_mm: float
    levels: Mapping[str, Mapping[str, float]]
    """Weighting -> tissue -> brightness, and the `gain` and `gamma` of the picture."""

    spots: Array
    """Harmless bright spots: x, y, z, radius in mm, and strength in [0, 1]; (N, 5)."""

    field_of_view_mm: float
    noise: float
    """Standard deviation in each of the two channels; white matter is about 0.5."""


@dataclass(frozen=True)
class DrawnSlice:
    """One picture with its tumour mask."""

    image: NDArray[np.uint8]
    """(S, S), grey."""

    mass: NDArray[np.bool_]
    """(S, S): the tumour without its oedema. All false where there is none."""


def draw_patient(atlas: Atlas, finding: Finding, rng: np.random.Generator) -> Patient:
    """Draw a head at random, with the tumour of `finding` in a place where it occurs.

    Args:
        atlas: The average head.
        finding: The class of the patient.
        rng: Source of everything random about the patient.

    Returns:
        The patient. One without a tumour is cut at the places where others have theirs,
        so that the position of a slice does not give the class away.
    """
    with_tumour: tuple[Finding, ...] = ("glioma", "meningioma", "pituitary")
    site = with_tumour[rng.integers(3)] if finding == "no_tumor" else finding
    lesion = _draw_lesion(atlas, site, rng)
    pose = _rotation(rng.normal(0, 4, 3)) / rng.uniform(0.94, 1.08, (3, 1))
    num_spots = int(rng.integers(0, 4))
    spots = np.column_stack(
        [
            atlas.white_sites[rng.integers(len(atlas.white_sites), size=num_spots)],
            rng.uniform(1.2, 3.2, num_spots),
            rng.uniform(0.5, 1.0, num_spots),
        ]
    )
    return Patient(
        finding=finding,
        focus_mm=lesion.centre_mm,
        spread_mm=float(np.clip(0.45 * lesion.radius_mm, 5, 11)),
        lesion=None if finding == "no_tumor" else lesion,
        pose=pose.astype(np.float32),
        head_waves=_draw_waves(rng, num=6, length_mm=150, height_mm=1.7),
        fold_waves=_draw_waves(rng, num=10, length_mm=40, height_mm=0.9),
        ventricles=float(rng.uniform(-0.25, 0.45)),
        skull_mm=float(rng.uniform(4, 7)),
        levels={
            weighting: {
                "gain": float(rng.uniform(0.85, 1.15)),
                "gamma": float(rng.uniform(0.8, 1.2)),
            }
            | {name: level * float(rng.uniform(0.9, 1.1)) for name, level in typical}
            for weighting, typical in ((key, _TYPICAL[key].items()) for key in _TYPICAL)
        },
        spots=spots.astype(np.float32),
        field_of_view_mm=float(rng.uniform(215, 250)),
        noise=float(rng.uniform(0.01, 0.03)),
    )


def draw_slice(
    atlas: Atlas,
    patient: Patient,
    *,
    view: View,
    weighting: Weighting,
    offset_mm: float,
    size_px: int,
    rng: np.random.Generator,
) -> DrawnSlice:
    """Draw one slice of a patient.

    Args:
        atlas: The average head.
        patient: The head to cut.
        view: Direction of the cut.
        weighting: T1 or T2: which tissues are bright.
        offset_mm: Distance of the cut from the patient's focus.
        size_px: Side of the picture.
        rng: Draws the framing, the receiver's bias field and the noise.

    Returns:
        The picture, and the mask of the tumour in it.
    """
    points = _plane(patient, view, offset_mm, size_px, rng)  # (S, S, 3)
    levels = patient.levels[weighting]
    signal, mass = _signal(atlas, patient, points, weighting)
    signal = signal * _bias(size_px, rng)
    real, imaginary = patient.noise * rng.standard_normal((2, size_px, size_px))
    noisy = np.hypot(signal + real, imaginary)
    image = np.clip(noisy * levels["gain"], 0, 1) ** levels["gamma"]
    return DrawnSlice(image=np.round(255 * image).astype(np.uint8), mass=mass > 0.5)


def _draw_lesion(atlas: Atlas, finding: Finding, rng: np.random.Generator) -> Lesion:
    """Draw place, shape and brightness of a tumour."""
    shape = rng.uniform(0.75, 1.25, (3, 1))
    axes = _rotation(rng.uniform(-90, 90, 3))
    swelling = core = 0.0
    if finding == "glioma":
        centre = atlas.white_sites[rng.integers(len(atlas.white_sites))]
        radius, unevenness = rng.uniform(16, 27), rng.uniform(0.2, 0.32)
        core, swelling = rng.uniform(0.35, 0.75), rng.uniform(1.5, 2.3)
    elif finding == "meningioma":
        centre = atlas.border_sites[rng.integers(len(atlas.border_sites))]
        radius, unevenness = rng.uniform(16, 26), rng.uniform(0.03, 0.08)
        swelling = rng.choice([0.0, 1.35])
    else:
        radius, unevenness = rng.uniform(10, 17), rng.uniform(0.06, 0.16)
        # A large one has nowhere to go but up, out of the sella.
        up_mm = 0.5 * (radius - 8)
        centre = np.array(SELLA_MM) + np.array([*rng.normal(0, 1, 2), up_mm])
        core = rng.choice([0.0, 0.3])
        axes = np.eye(3)
    return Lesion(
        finding=finding,
        centre_mm=centre.astype(np.float32),
        axes=(axes / (radius * shape)).astype(np.float32),
        radius_mm=float(radius),
        unevenness=float(unevenness),
        core=float(core),
        swelling=float(swelling),
        enhancement=float(rng.uniform(0.7, 1)),
        phase=rng.uniform(0, 48, 3).astype(np.float32),
    )


def _draw_waves(
    rng: np.random.Generator, *, num: int, length_mm: float, height_mm: float
) -> Waves:
    """Draw waves in random directions, of about the given length and height."""
    vectors = rng.normal(0, 2 * np.pi / length_mm / np.sqrt(3), (num, 3))
    phases = rng.uniform(0, 2 * np.pi, num)
    heights = rng.normal(0, height_mm, (num, 3))
    return (
        vectors.astype(np.float32),
        phases.astype(np.float32),
        heights.astype(np.float32),
    )


def _plane(
    patient: Patient,
    view: View,
    offset_mm: float,
    size_px: int,
    rng: np.random.Generator,
) -> Array:
    """Return the position of each pixel in the average head: (S, S, 3), in mm."""
    num = size_px // _COARSE_PX + 2
    half = patient.field_of_view_mm / 2
    down, right = np.meshgrid(*[np.linspace(-half, half, num)] * 2, indexing="ij")
    down, right = down + rng.normal(0, 4), right + rng.normal(0, 4)
    x, y, z = (np.full_like(down, cut) for cut in patient.focus_mm + offset_mm)
    if view == "axial":
        x, y = right, -18 - down
    elif view == "coronal":
        x, z = right, -12 - down
    else:
        y, z = -6 - right, -16 - down
    points = np.stack([x, y, z], axis=-1).astype(np.float32)
    # Bent around the focus, so that the slices through it still meet the tumour.
    bent: Array = (points - patient.focus_mm) @ patient.pose.T + patient.focus_mm
    bent += _sway(patient.head_waves, bent)
    bent -= _sway(patient.head_waves, patient.focus_mm)
    return _refined(_refined(bent, size_px).swapaxes(0, 1), size_px).swapaxes(0, 1)


def _refined(values: Array, size: int) -> Array:
    """Interpolate linearly along the first axis to `size` positions, ends kept."""
    positions = np.linspace(0, len(values) - 1, size)
    below = np.minimum(positions.astype(int), len(values) - 2)
    share = (positions - below).astype(np.float32)[:, None, None]
    refined: Array = values[below] * (1 - share) + values[below + 1] * share
    return refined


def _sway(waves: Waves, points: Array) -> Array:
    """Return the displacement of each point by a sum of waves, in mm."""
    vectors, phases, heights = waves
    moved: Array = np.sin(points @ vectors.T + phases) @ heights
    return moved


def _signal(
    atlas: Atlas, patient: Patient, points: Array, weighting: Weighting
) -> tuple[Array, Array]:
    """Return the brightness and the share of tumour at points of the average head."""
    levels = patient.levels[weighting]
    distance = atlas.head_at(atlas.brain_distance, points)
    middle = _CSF_MM + patient.skull_mm / 2
    bone = 0.03 + levels["marrow"] * np.exp(-(((distance - middle) / 1.3) ** 2))
    signal = atlas.head_at(atlas.soft[weighting], points)
    signal += step(_CSF_MM + patient.skull_mm - distance) * (bone - signal)

    within = distance < _CSF_MM + 2
    white = np.zeros_like(signal)
    brain, white[within] = _brain(atlas, patient, points[within], levels)
    signal[within] += step(_CSF_MM - distance[within]) * (brain - signal[within])
    # The large vein in the midline under the skull.
    vein = np.exp(-((points[..., 0] / 3) ** 2) - ((distance - _CSF_MM) / 2.5) ** 2)
    vein *= step((points[..., 2] + 10) / 4)
    signal += vein * (levels["sinus"] - signal)

    mass = np.zeros_like(signal)
    lesion = patient.lesion
    if lesion is not None:
        away = points - lesion.centre_mm
        near = (away**2).sum(axis=-1) < (3.5 * lesion.radius_mm) ** 2
        signal[near], mass[near] = _with_lesion(
            atlas,
            lesion,
            points[near],
            signal[near],
            distance=distance[near],
            white=white[near],
            levels=levels,
        )
    return signal, mass


def _brain(
    atlas: Atlas, patient: Patient, points: Array, levels: Mapping[str, float]
) -> tuple[Array, Array]:
    """Return brightness and share of white matter at points inside the skull, (N,)."""
    points_before = _before_pushing(patient, points)
    grey = atlas.brain_at(atlas.grey, points_before)
    white = atlas.brain_at(atlas.white, points_before)
    template = atlas.brain_at(atlas.t1, points_before)
    # Squared shares: an average brain is blurred, a single one has clear borders.
    fluid = np.clip(1 - grey - white, 0, 1) ** 2
    grey, white = grey**2, white**2
    total = grey + white + fluid
    grey, white, fluid = grey / total, white / total, fluid / total
    signal = fluid * levels["fluid"] + grey * levels["grey"] + white * levels["white"]
    expected = 0.35 * fluid + 0.72 * grey + 0.88 * white
    signal += levels["detail"] * np.where(template > 0, template - expected, 0)
    for spot in patient.spots:
        away = (points - spot[:3]) / spot[3]
        near = spot[4] * np.exp(-(away**2).sum(axis=-1))
        signal += near * (levels["spot"] - signal)
    return signal, white


def _before_pushing(patient: Patient, points: Array) -> Array:
    """Return the position of tissue before folds, ventricles and tumour moved it."""
    points = points + _sway(patient.fold_waves, points)
    away = points - np.array([0, -12, 14], dtype=np.float32)
    far = away / np.array([30, 45, 26], dtype=np.float32)
    pull = patient.ventricles * np.exp(-(far**2).sum(axis=-1, keepdims=True))
    points -= pull * away * np.array([0.8, 0.3, 0.8], dtype=np.float32)
    if patient.lesion is None:
        return points
    # A ball of radius R put into soft matter moves r to (r^3 + R^3)^(1/3). Half of
    # the tissue is replaced rather than moved, and the skull holds what is far away.
    away = points - patient.lesion.centre_mm
    distance = np.sqrt((away**2).sum(axis=-1, keepdims=True)) + 1e-3
    volume = 0.5 * patient.lesion.radius_mm**3
    before = np.cbrt(np.clip(distance**3 - volume, 0, None))
    moved: Array = (distance - before) / distance * np.exp(-((distance / 60) ** 2))
    return points - moved * away


def _with_lesion(
    atlas: Atlas,
    lesion: Lesion,
    points: Array,
    signal: Array,
    *,
    distance: Array,
    white: Array,
    levels: Mapping[str, float],
) -> tuple[Array, Array]:
    """Draw oedema, then the mass and its dead core, over the healthy signal, (N,)."""
    coarse = atlas.noise_at(points / 3.5 + lesion.phase)
    fine = atlas.noise_at(points / 1.6 - lesion.phase)
    along = (points - lesion.centre_mm) @ lesion.axes.T
    reach = np.sqrt((along**2).sum(axis=-1))
    reach /= np.clip(1 + lesion.unevenness * (coarse + 0.4 * fine), 0.4, None)

    room = np.ones_like(signal)
    if lesion.finding != "pituitary":
        # The skull holds a meningioma; a glioma does not leave the brain at all.
        limit_mm = _CSF_MM if lesion.finding == "meningioma" else -1.0
        room = step(limit_mm - distance)
    if lesion.swelling:
        rim = lesion.swelling + 0.3 * coarse
        swollen = step((rim - reach) * lesion.radius_mm / 3) * room
        swollen *= 0.8 * (0.2 + 0.8 * white)
        signal = signal + swollen * (levels["swollen"] - signal)

    mass = step((1 - reach) * lesion.radius_mm / 0.7) * room
    plain = levels["grey"]
    bright = plain + lesion.enhancement * (levels["solid"] - plain)
    body = bright * (1 + 0.05 * coarse + 0.04 * fine)
    if lesion.finding == "glioma":
        # Only a part of the rim takes up contrast.
        body = plain + step((coarse + 0.6) / 0.3) * (body - plain)
    if lesion.core:
        dead = step((lesion.core + 0.1 * fine - reach) * lesion.radius_mm / 0.9)
        body += dead * (levels["dead"] - body)
    return signal + mass * (body - signal), mass


def _bias(size_px: int, rng: np.random.Generator) -> Array:
    """Return the uneven sensitivity of a receiver coil: (S, S), around 1."""
    steps = np.linspace(-1, 1, size_px, dtype=np.float32)
    down, right = np.meshgrid(steps, steps, indexing="ij")
    terms = np.stack([down, right, down**2, right**2, down * right])
    weights = rng.normal(0, [0.1, 0.1, 0.06, 0.06, 0.06]).astype(np.float32)
    field: Array = np.exp(np.tensordot(weights, terms, axes=1))
    return field


def _rotation(angles_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation about x, then y, then z, as a matrix (3, 3)."""
    matrix: NDArray[np.float64] = Rotation.from_euler(
        "xyz", angles_deg, degrees=True
    ).as_matrix()
    return matrix
