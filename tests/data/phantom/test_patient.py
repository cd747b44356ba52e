from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from tumorlens.data.phantom.atlas import SELLA_MM, Atlas, load_atlas
from tumorlens.data.phantom.patient import (
    FINDINGS,
    DrawnSlice,
    Finding,
    Patient,
    View,
    Weighting,
    _plane,
    draw_patient,
    draw_slice,
)

WEIGHTINGS: tuple[Weighting, ...] = ("t1", "t2")
TUMOURS: tuple[Finding, ...] = ("glioma", "meningioma", "pituitary")


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return load_atlas()


def patients(atlas: Atlas, finding: Finding, *, num: int = 12) -> list[Patient]:
    return [
        draw_patient(atlas, finding, np.random.default_rng([i])) for i in range(num)
    ]


def cut(
    atlas: Atlas,
    patient: Patient,
    *,
    view: View = "axial",
    weighting: Weighting = "t1",
    offset_mm: float = 0.0,
    seed: int = 0,
) -> DrawnSlice:
    return draw_slice(
        atlas,
        patient,
        view=view,
        weighting=weighting,
        offset_mm=offset_mm,
        size_px=96,
        rng=np.random.default_rng(seed),
    )


def around(mass: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A band of 4 pixels around the mass, one pixel away from it."""
    near = ndimage.binary_dilation(mass, iterations=1)
    band: NDArray[np.bool_] = ndimage.binary_dilation(near, iterations=4) & ~near
    return band


@pytest.mark.parametrize("finding", ["meningioma", "pituitary"])
def test_a_solid_tumour_is_brighter_than_what_is_around_it(
    atlas: Atlas, finding: Finding
) -> None:
    gains = []
    for patient in patients(atlas, finding):
        made = cut(atlas, patient)
        assert made.mass.any()
        image = made.image.astype(float)
        gains.append(image[made.mass].mean() - image[around(made.mass)].mean())
    assert min(gains) > 10
    assert np.mean(gains) > 50


def test_a_glioma_has_a_dark_core_in_t1_and_a_bright_one_in_t2(atlas: Atlas) -> None:
    for patient in patients(atlas, "glioma"):
        for weighting, is_bright in (("t1", False), ("t2", True)):
            levels = patient.levels[weighting]
            assert (levels["dead"] > levels["white"]) == is_bright
    [patient] = [p for p in patients(atlas, "glioma") if p.lesion][:1]
    assert patient.lesion is not None
    dark = cut(atlas, patient, weighting="t1")
    bright = cut(atlas, patient, weighting="t2")
    core = ndimage.binary_erosion(dark.mass, iterations=4)
    assert np.median(dark.image[core]) < np.median(bright.image[core])


def test_oedema_surrounds_a_glioma_in_white_matter_only(atlas: Atlas) -> None:
    # Voxels where a glioma may start are white matter, well inside, off the midline.
    assert len(atlas.white_sites) > 10_000
    white = atlas.brain_at(atlas.white, atlas.white_sites)
    depth = -atlas.head_at(atlas.brain_distance, atlas.white_sites)
    assert white.min() > 0.55
    assert depth.min() > 11.9
    assert all(p.lesion and p.lesion.swelling > 1 for p in patients(atlas, "glioma"))


def test_a_meningioma_starts_at_the_border_and_stays_within_the_skull(
    atlas: Atlas,
) -> None:
    for patient in patients(atlas, "meningioma"):
        assert (patient.focus_mm == atlas.border_sites).all(axis=1).any()
        assert patient.lesion is not None
        huge = replace(patient.lesion, axes=patient.lesion.axes / 3)
        mass = cut(atlas, replace(patient, lesion=huge)).mass
        points = _plane(patient, "axial", 0.0, 96, np.random.default_rng(0))
        distance = atlas.head_at(atlas.brain_distance, points)
        assert mass.sum() > 200
        assert distance[mass].max() < 2
    distance = atlas.head_at(atlas.brain_distance, atlas.border_sites)
    assert np.abs(distance + 5).max() < 1.6


def test_a_pituitary_tumour_lies_in_the_midline_at_the_sella(atlas: Atlas) -> None:
    for patient in patients(atlas, "pituitary", num=30):
        away = patient.focus_mm - np.array(SELLA_MM)
        assert abs(away[0]) < 4
        assert abs(away[1]) < 4
        assert 0 <= away[2] < 6


@pytest.mark.parametrize("finding", TUMOURS)
@pytest.mark.parametrize("view", ["axial", "coronal", "sagittal"])
def test_the_slices_of_a_view_show_the_tumour(
    atlas: Atlas, finding: Finding, view: View
) -> None:
    shown = [
        cut(atlas, patient, view=view, offset_mm=side * patient.spread_mm).mass.any()
        for patient in patients(atlas, finding)
        for side in (-1, 0, 1)
    ]
    assert np.mean(shown) > 0.9


def test_a_healthy_head_has_no_mass_but_is_cut_where_others_have_theirs(
    atlas: Atlas,
) -> None:
    healthy = patients(atlas, "no_tumor", num=30)
    assert not any(cut(atlas, patient).mass.any() for patient in healthy[:3])
    at_sella = [
        np.linalg.norm(patient.focus_mm - np.array(SELLA_MM)) < 8 for patient in healthy
    ]
    assert 0.1 < np.mean(at_sella) < 0.6


def test_fluid_is_dark_in_t1_and_bright_in_t2(atlas: Atlas) -> None:
    for patient in patients(atlas, "no_tumor", num=4):
        t1, t2 = patient.levels["t1"], patient.levels["t2"]
        assert t1["fluid"] < t1["grey"] < t1["white"]
        assert t2["fluid"] > t2["grey"] > t2["white"]
        a = cut(atlas, patient, weighting="t1").image.astype(float)
        b = cut(atlas, patient, weighting="t2").image.astype(float)
        assert np.abs(a - b).mean() > 5


def test_each_sequence_shows_its_own_face_and_neck(atlas: Atlas) -> None:
    # The eye is a ball of fluid, like the ventricles.
    eye = np.array([[32, 64, -36]], dtype=np.float32)
    assert atlas.head_at(atlas.soft["t1"], eye) < 0.3
    assert atlas.head_at(atlas.soft["t2"], eye) > 0.6
    patient = patients(atlas, "no_tumor", num=1)[0]
    bare = replace(atlas, soft={"t1": atlas.soft["t1"], "t2": 0 * atlas.soft["t2"]})
    changed = {}
    for weighting in WEIGHTINGS:
        a = cut(atlas, patient, view="sagittal", weighting=weighting).image
        b = cut(bare, patient, view="sagittal", weighting=weighting).image
        changed[weighting] = (a != b).mean()
    assert changed["t1"] == 0
    assert changed["t2"] > 0.1


def test_the_background_is_rician_noise_of_the_stated_strength(atlas: Atlas) -> None:
    # Where there is no signal the magnitude of two normal channels is a Rayleigh
    # variable, of mean sigma * sqrt(pi / 2).
    patient = patients(atlas, "no_tumor", num=1)[0]
    levels = patient.levels["t1"]
    image = cut(atlas, patient).image / 255
    corner = image[:12, :12] ** (1 / levels["gamma"]) / levels["gain"]
    assert corner.mean() == pytest.approx(
        patient.noise * np.sqrt(np.pi / 2), rel=0.15, abs=0.004
    )


def test_a_patient_and_a_slice_depend_on_their_random_numbers_only(
    atlas: Atlas,
) -> None:
    for finding in FINDINGS:
        first, again = (
            draw_patient(atlas, finding, np.random.default_rng(5)) for _ in range(2)
        )
        same = cut(atlas, first).image == cut(atlas, again).image
        assert same.all()
        other = draw_patient(atlas, finding, np.random.default_rng(6))
        assert (cut(atlas, first).image != cut(atlas, other).image).mean() > 0.3
        assert (cut(atlas, first).image != cut(atlas, first, seed=1).image).mean() > 0.3


def test_the_brain_keeps_its_tissues_in_their_places(atlas: Atlas) -> None:
    # MNI: the corpus callosum's genu is white, the head of the caudate grey, the
    # frontal horn neither.
    points = np.array([[0, 26, 6], [12, 14, 6], [5, 12, 10]], dtype=np.float32)
    grey = atlas.brain_at(atlas.grey, points)
    white = atlas.brain_at(atlas.white, points)
    assert white[0] > 0.7
    assert grey[1] > 0.6
    assert grey[2] + white[2] < 0.6
    assert atlas.brain_at(atlas.white, np.array([[0, 0, 200]], dtype=np.float32)) == 0
