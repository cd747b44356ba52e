"""The folder of explanations is complete or not there, its pictures show the map."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.runs_on_images import make_kfold_run, make_run
from tumorlens.deploy.explain import Explainer, Explanation
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import DataError
from tumorlens.evaluation.map_checks import ExplanationChecks, ImageChecks
from tumorlens.evaluation.measure import evaluate
from tumorlens.files import read_model
from tumorlens.report import write_run_report
from tumorlens.report.explanations import (
    check_explanations,
    draw_explanation,
    overlaid,
    write_explanations,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=4)


@pytest.fixture
def explainer(tmp_path: Path, data: Path) -> Explainer:
    run = make_run(tmp_path / "run", data, size_px=64)
    return Explainer(Predictor.open(run.path))


def test_each_image_has_a_picture_a_map_and_an_entry(
    explainer: Explainer, data: Path, tmp_path: Path
) -> None:
    images = [data / "glioma" / "0.png", data / "meningioma" / "0.png"]
    out = tmp_path / "out"
    seen: list[int] = []
    found = write_explanations(
        explainer, images, out, progress=lambda done, _: seen.append(done)
    )
    assert seen == [1, 2]
    assert sorted(path.name for path in out.iterdir()) == [
        *("0001-0.npy", "0001-0.png", "0002-0.npy", "0002-0.png"),
        "checks.json",
    ]
    again = read_model(out / "checks.json", ExplanationChecks, hint="")
    assert again == found
    for path, entry in zip(images, found.images, strict=True):
        assert entry.path == str(path)
        heat = np.load(out / str(entry.heat), allow_pickle=False)
        np.testing.assert_array_equal(heat, explainer.explain(path).heat)
        with Image.open(out / str(entry.picture)) as picture:
            assert picture.width > 1000
    assert found.summary.num_images == 2
    assert any(words.startswith("localisation: ") for words in found.not_checked)


def test_an_unreadable_image_is_an_entry_with_its_error(
    explainer: Explainer, data: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    found = write_explanations(
        explainer, [broken, data / "glioma" / "0.png"], tmp_path / "out"
    )
    assert found.images[0].error == "is empty (0 bytes)"
    assert found.images[0].picture is None
    assert found.images[1].error is None
    assert found.summary.num_images == 1


def test_nothing_is_written_where_no_image_can_be_read(
    explainer: Explainer, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"no image .*broken.png is empty \(0 bytes\)"):
        write_explanations(explainer, [broken], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="there is no image to explain"):
        write_explanations(explainer, [], tmp_path / "out")


def test_an_interrupt_leaves_nothing_behind(
    explainer: Explainer, data: Path, tmp_path: Path
) -> None:
    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write_explanations(
            explainer, [data / "glioma" / "0.png"], tmp_path / "out", progress=stop
        )
    assert set(tmp_path.iterdir()) == before


def test_a_folder_in_use_a_file_and_a_place_among_the_images_are_refused(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is a file"):
        check_explanations(tmp_path / "file", [data])
    with pytest.raises(DataError, match="data is not empty"):
        check_explanations(data, [])
    with pytest.raises(DataError, match="out is inside the folder of the images"):
        check_explanations(data / "out", [data])
    check_explanations(tmp_path / "new", [data])
    assert not (tmp_path / "new").exists()


def explanation(heat: NDArray[np.float32], **changes: Any) -> Explanation:
    values = {
        **{"path": "a/b.png", "explained": "glioma", "predicted": "glioma"},
        "prob": 0.75,
    }
    image = np.full(heat.shape, 90, np.uint8)
    return Explanation(image, heat, ImageChecks(**{**values, **changes}))


def red_in(content: bytes) -> NDArray[np.bool_]:
    """Return where the right half of a picture, without the colour bar, is red."""
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    width = pixels.shape[1]
    panel = pixels[200:, width * 46 // 100 : width * 89 // 100]
    found: NDArray[np.bool_] = panel[..., 0] - panel[..., 1] > 100
    return found


def test_heat_is_drawn_where_it_is_and_what_speaks_against_is_not() -> None:
    heat = np.full((40, 40), -5, np.float32)
    heat[20:, 20:] = 2
    red = red_in(draw_explanation(explanation(heat), "grad-cam"))
    rows, columns = red.nonzero()
    assert len(rows) > 1000
    width = red.shape[1]
    assert rows.mean() > 0.5 * rows.max()
    assert (columns > 0.45 * width).mean() > 0.98


@pytest.mark.parametrize("method", ["grad-cam", "occlusion", "integrated-gradients"])
def test_a_map_in_which_nothing_stands_out_is_drawn_as_nothing(method: Any) -> None:
    heat = np.full((40, 40), -1, np.float32)
    assert not red_in(draw_explanation(explanation(heat), method)).any()


def test_a_drop_too_small_to_be_more_than_noise_is_drawn_as_nothing() -> None:
    heat = np.full((40, 40), 0.01, np.float32)
    assert not red_in(draw_explanation(explanation(heat), "occlusion")).any()
    assert red_in(draw_explanation(explanation(heat), "grad-cam")).any()


def test_a_single_hot_pixel_leaves_the_rest_of_a_fine_map_visible() -> None:
    heat = np.zeros((80, 80), np.float32)
    heat[40:, :] = 1
    heat[0, 0] = 1000
    assert red_in(draw_explanation(explanation(heat), "integrated-gradients")).any()
    assert red_in(draw_explanation(explanation(heat), "grad-cam")).mean() < 0.01


def test_a_large_image_gives_a_picture_of_the_same_size() -> None:
    small = np.zeros((64, 64), np.float32)
    small[:32] = 1
    large = np.kron(small, np.ones((40, 40), np.float32))
    sizes = set()
    for heat in (small, large):
        with Image.open(
            io.BytesIO(draw_explanation(explanation(heat), "grad-cam"))
        ) as picture:
            sizes.add(picture.size)
    assert len(sizes) == 1


def test_names_are_plain_whatever_the_file_is_called(
    explainer: Explainer, data: Path, tmp_path: Path
) -> None:
    odd = tmp_path / ("ä b;$(c)" + "x" * 90 + ".png")
    odd.write_bytes((data / "glioma" / "0.png").read_bytes())
    found = write_explanations(explainer, [odd], tmp_path / "out")
    assert found.images[0].picture == f"0001-_b_c_{'x' * 55}.png"
    content = json.loads((tmp_path / "out" / "checks.json").read_text("utf-8"))
    assert content["format"] == 1
    assert content["images"][0]["path"] == str(odd)


def test_an_image_under_its_map_is_itself_where_there_is_no_heat() -> None:
    image = np.full((20, 20), 80, np.uint8)
    heat = np.full((20, 20), -1, np.float32)
    assert (overlaid(image, heat) == 80).all()
    heat[0, 0] = 3
    found = overlaid(image, heat)
    assert found[0, 0].tolist() == [211, 20, 20]  # three quarters of red
    assert (found[1:] == 80).all()
    colour = np.dstack([image, image // 2, image])
    assert (overlaid(colour, heat)[1:] == colour[1:]).all()


@pytest.mark.parametrize("is_kfold", [False, True])
def test_the_page_of_a_run_shows_the_maps_of_its_mistakes_where_wanted(
    tmp_path: Path,
    data: Path,
    is_kfold: bool,  # noqa: FBT001
) -> None:
    run = (
        make_kfold_run(tmp_path / "run", data)
        if is_kfold
        else make_run(tmp_path / "run", data, size_px=64)
    )
    evaluate(run)
    words = "under the map of what speaks for"
    plain = write_run_report(run).path.read_text("utf-8")
    assert words not in plain
    page = write_run_report(run, explain=True).path.read_text("utf-8")
    assert page.count(words) == plain.count(", predicted ") > 0
    assert page.count("data:image/jpeg") == 2 * plain.count("data:image/jpeg")


def test_a_mistake_that_has_no_picture_has_no_map(tmp_path: Path, data: Path) -> None:
    run = make_run(tmp_path / "run", data, size_px=64)
    evaluate(run)
    data.rename(tmp_path / "moved")
    page = write_run_report(run, explain=True).path.read_text("utf-8")
    assert "not shown: the file is gone" in page
    assert "under the map" not in page
