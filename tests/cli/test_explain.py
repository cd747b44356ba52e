"""`tumorlens explain` and `predict --explain` as a person meets them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.missing_libraries import without
from support.runs_on_images import make_run
from support.working_artefacts import make_artefact
from tumorlens.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.runs.folder import Run


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=4)


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    return make_run(tmp_path / "run", data, size_px=64)


def test_it_prints_the_checks_and_where_the_files_are(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    image = data / "glioma" / "0.png"
    assert app.main(["explain", str(run.path), str(image), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "rank correlation with the maps of a random network" in printed
    assert f"pictures, maps and checks.json are in {out}" in printed
    content = json.loads((out / "checks.json").read_text("utf-8"))
    assert content["method"] == "grad-cam"
    assert content["images"][0]["picture"] == "0001-0.png"


def test_an_artefact_is_explained_without_torch(data: Path, tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "artefact").path
    out = tmp_path / "out"
    words = ["explain", str(artefact), str(data / "glioma"), "--out", str(out)]
    done = without(
        {"torch", "timm", "captum"},
        f"from tumorlens.cli import app; raise SystemExit(app.main({words!r}))",
    )
    assert done.returncode == 0, done.stderr
    assert "not checked: randomization" in done.stdout
    assert len(list(out.glob("*.npy"))) == 4


def test_without_captum_the_install_line_is_named(
    run: Run, data: Path, tmp_path: Path
) -> None:
    words = ["explain", str(run.path), str(data), "--out", str(tmp_path / "out")]
    done = without(
        {"captum"},
        f"from tumorlens.cli import app; raise SystemExit(app.main({words!r}))",
    )
    assert done.returncode == 2
    assert 'pip install "tumorlens[train]"' in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--class", "gliom"], "unknown class 'gliom'"),
        (["--method", "gradcam"], "'gradcam' is not one of"),
    ],
)
def test_a_wrong_option_is_one_error_and_nothing_is_written(
    run: Run,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    out = tmp_path / "out"
    status = app.main(
        ["explain", str(run.path), str(data), "--out", str(out), *options]
    )
    error = capsys.readouterr().err
    assert status == 2
    assert words in error
    assert error.count("error:") == error.count("hint:") == 1
    assert not out.exists()


def test_an_unreadable_image_among_others_has_the_status_of_predict(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.touch()
    image = data / "glioma" / "0.png"
    out = tmp_path / "out"
    words = ["explain", str(run.path), str(broken), str(image), "--out", str(out)]
    assert app.main(words) == 3
    captured = capsys.readouterr()
    assert "broken.png: is empty (0 bytes)" in captured.out
    assert "1 file could not be explained" in captured.err


def test_predict_explains_what_it_has_answered(
    run: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = data / "glioma" / "0.png", tmp_path / "out"
    table = tmp_path / "table.csv"
    words = ["predict", str(run.path), str(image), "--out", str(table)]
    assert app.main([*words, "--explain", str(out)]) == 0
    assert f"the probabilities are in {table}" in capsys.readouterr().out
    content = json.loads((out / "checks.json").read_text("utf-8"))
    assert content["images"][0]["predicted"] in table.read_text("utf-8")


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--run", "RUN"], "--explain takes one model, got 2"), (["--series"], "series")],
)
def test_predict_refuses_what_cannot_be_explained_before_it_answers(
    run: Run,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    out = tmp_path / "out"
    more = [str(run.path) if word == "RUN" else word for word in more]
    status = app.main(
        ["predict", str(run.path), str(data), "--explain", str(out), *more]
    )
    captured = capsys.readouterr()
    assert status == 2
    assert words in captured.err
    assert not captured.out


def test_the_nearest_training_images_are_shown_where_wanted(
    run: Run, data: Path, tmp_path: Path
) -> None:
    image = data / "glioma" / "0.png"
    out = tmp_path / "out"
    words = ["explain", str(run.path), str(image), "--out", str(out)]
    assert app.main([*words, "--neighbours", "2"]) == 0
    assert (out / "0001-0-neighbours.png").is_file()
    content = json.loads((out / "checks.json").read_text("utf-8"))
    first, second = content["images"][0]["neighbours"]
    assert first["path"] == "glioma/0.png"  # it is a training image itself
    assert first["similarity"] == pytest.approx(1)
    assert second["similarity"] < first["similarity"]


def test_neighbours_of_an_artefact_are_not_known(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = make_artefact(tmp_path / "artefact").path
    out = tmp_path / "out"
    words = ["explain", str(artefact), str(data), "--out", str(out)]
    assert app.main([*words, "--neighbours", "2"]) == 2
    assert "artefact is an artefact" in capsys.readouterr().err
    assert not out.exists()
    assert app.main([*words, "--data", str(data)]) == 2
    assert "--data has no effect without --neighbours" in capsys.readouterr().err


def test_neighbours_of_an_imported_run_need_its_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from support.small_networks import CLASSES, network

    _, model = network()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    imported, out = tmp_path / "imported", tmp_path / "out"
    words = ["import", str(tmp_path / "weights.pth"), "--model", "test_resnet"]
    words += ["--classes", ",".join(CLASSES), "--out", str(imported)]
    assert app.main([*words, "--set", "model.size_px=64"]) == 0
    capsys.readouterr()
    words = ["explain", str(imported), str(data), "--out", str(out)]
    assert app.main([*words, "--neighbours", "2"]) == 2
    assert "--data" in capsys.readouterr().err
    assert not out.exists()
