"""An explainer gives maps and checks of runs and artefacts, and refuses the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.runs_on_images import make_kfold_run, make_run
from support.working_artefacts import make_artefact
from tumorlens.data.images import square_box
from tumorlens.data.phantom.masks import encode_mask, write_masks
from tumorlens.deploy.explain import METHODS, Explainer, Explanation
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError
from tumorlens.evaluation.occlusion import occlusion_map, place_on_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE_PX = 64


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=4)


@pytest.fixture
def predictor(tmp_path: Path, data: Path) -> Predictor:
    return Predictor.open(make_run(tmp_path / "run", data, size_px=SIZE_PX).path)


@pytest.fixture
def image(data: Path) -> Path:
    return data / "glioma" / "0.png"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_map_of_the_image_and_every_check(
    predictor: Predictor, image: Path, method: Any
) -> None:
    explainer = Explainer(predictor, method=method)
    found = explainer.explain(image)
    assert found.heat.shape == found.image.shape[:2]
    assert found.heat.dtype == np.float32
    assert np.ptp(found.heat) > 0
    checks = found.checks
    probs = predictor.probs_of([found.image])[0]
    assert checks.predicted == checks.explained
    assert checks.predicted == predictor.classes[int(probs.argmax())]
    assert checks.prob == pytest.approx(probs.max())
    assert checks.randomization is not None
    assert [one.randomized for one in checks.randomization][-1] == 1
    assert checks.agreement is not None
    assert set(checks.agreement) == set(METHODS) - {method}
    assert checks.removal is not None
    assert checks.outside is not None
    assert checks.localisation is None
    assert explainer.not_checked == []


def test_the_same_call_gives_the_same_map_and_checks(
    predictor: Predictor, image: Path
) -> None:
    first, again = (Explainer(predictor).explain(image) for _ in range(2))
    np.testing.assert_array_equal(first.heat, again.heat)
    assert first.checks == again.checks


def test_explaining_leaves_the_answers_as_they_are(
    predictor: Predictor, image: Path
) -> None:
    pixels = [Explainer(predictor).explain(image).image]
    before = predictor.probs_of(pixels)
    Explainer(predictor).explain(image)
    np.testing.assert_array_equal(predictor.probs_of(pixels), before)


def test_a_class_may_be_named(predictor: Predictor, image: Path) -> None:
    maps = {
        label: Explainer(predictor, label=label).explain(image)
        for label in predictor.classes[:2]
    }
    for label, found in maps.items():
        assert found.checks.explained == label
    first, other = maps.values()
    assert not np.allclose(first.heat, other.heat)
    assert first.checks.predicted == other.checks.predicted


def test_the_map_of_folds_is_the_mean_of_theirs(tmp_path: Path, data: Path) -> None:
    run = make_kfold_run(tmp_path / "folds", data)
    predictor = Predictor.open(run.path)
    image = data / "glioma" / "0.png"
    label = predictor.classes[1]

    def heat(one: Predictor) -> Explanation:
        return Explainer(one, method="occlusion", label=label).explain(image)

    both = heat(predictor)
    parts = [heat(Predictor.open(run.fold_path(fold))) for fold in range(2)]
    np.testing.assert_allclose(
        both.heat, (parts[0].heat + parts[1].heat) / 2, atol=1e-6
    )
    assert both.checks.prob == pytest.approx(
        sum(part.checks.prob or 0 for part in parts) / 2
    )
    assert both.checks.randomization == parts[0].checks.randomization


def test_networks_that_see_different_parts_are_refused(
    predictor: Predictor, tmp_path: Path, data: Path
) -> None:
    squashed = Predictor.open(make_run(tmp_path / "other", data, size_px=SIZE_PX).path)
    member = squashed.members[0]
    other = replace(member, spec=replace(member.spec, fit="squash"))
    mixed = Predictor("both", predictor.classes, "", [*predictor.members, other])
    with pytest.raises(ConfigError, match=r"networks of both see different parts"):
        Explainer(mixed)


def test_an_artefact_is_explained_by_occlusion_and_says_what_is_not_checked(
    tmp_path: Path,
) -> None:
    predictor = Predictor.open(make_artefact(tmp_path / "artefact").path)
    path = tmp_path / "a.png"
    pixels = np.zeros((64, 48, 3), np.uint8)
    pixels[:32, :, 0] = 200
    Image.fromarray(pixels).save(path)
    explainer = Explainer(predictor)
    assert explainer.method == "occlusion"
    found = explainer.explain(path)
    member = predictor.members[0]
    expected = place_on_image(
        occlusion_map(
            member.square(pixels),
            member.predict,
            label=predictor.classes.index(str(found.checks.explained)),
        ),
        box=square_box(pixels, fit=member.spec.fit),
        shape=(64, 48),
    )
    np.testing.assert_array_equal(found.heat, expected)
    assert found.checks.randomization is None
    assert found.checks.agreement is None
    assert found.checks.removal is not None
    assert [one.partition(":")[0] for one in explainer.not_checked] == [
        "agreement",
        "randomization",
    ]


@pytest.mark.parametrize("method", ["grad-cam", "integrated-gradients"])
def test_an_artefact_has_no_gradients(tmp_path: Path, method: Any) -> None:
    predictor = Predictor.open(make_artefact(tmp_path / "artefact").path)
    with pytest.raises(ConfigError, match=f"{method} needs gradients") as caught:
        Explainer(predictor, method=method)
    assert "--method occlusion" in caught.value.hint


def test_an_unknown_class_or_method_is_refused_with_the_nearest(
    predictor: Predictor,
) -> None:
    with pytest.raises(ConfigError, match="unknown class 'gliom'") as caught:
        Explainer(predictor, label="gliom")
    assert caught.value.hint == "did you mean 'glioma'?"
    wrong: Any = "gradcam"
    with pytest.raises(ConfigError, match="unknown method 'gradcam'") as caught:
        Explainer(predictor, method=wrong)
    assert caught.value.hint == "did you mean 'grad-cam'?"


def test_a_class_token_transformer_is_explained_by_what_it_allows(
    tmp_path: Path, data: Path
) -> None:
    run = make_run(tmp_path / "vit", data, name="test_vit", size_px=160)
    predictor = Predictor.open(run.path)
    with pytest.raises(ConfigError, match="no answer depends on"):
        Explainer(predictor)
    explainer = Explainer(predictor, method="integrated-gradients")
    assert explainer.not_checked[0].startswith("agreement with grad-cam: ")


@pytest.fixture
def phantom_image(data: Path, image: Path) -> Path:
    """Return an image whose tumour is known: a disc."""
    (data / "planted.json").write_text("{}")
    with Image.open(image) as opened:
        mask = np.zeros((opened.height, opened.width), np.bool_)
    mask[10:30, 20:40] = True
    write_masks(data, {"glioma/0.png": encode_mask(mask)})
    return image


def test_a_known_tumour_is_looked_up(predictor: Predictor, phantom_image: Path) -> None:
    found = Explainer(predictor).explain(phantom_image)
    place = found.checks.localisation
    assert place is not None
    assert place.area == pytest.approx(400 / found.heat.size)
    peak = np.unravel_index(int(found.heat.argmax()), found.heat.shape)
    assert found.tumour is not None
    assert place.is_hit == bool(found.tumour[peak])


def test_a_mask_of_another_size_is_refused_with_both(
    predictor: Predictor, data: Path, phantom_image: Path
) -> None:
    write_masks(data, {"glioma/0.png": encode_mask(np.ones((7, 9), np.bool_))})
    with pytest.raises(DataError, match=r"glioma/0.png has 9 x 7 pixels, the image \d"):
        Explainer(predictor).explain(phantom_image)
