"""`evaluate --on`: a run and its artefact give the same figures, and leave the same."""

from __future__ import annotations

import csv
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from support.images import CLASSES, draw_image
from support.missing_libraries import HEAVY, OF_EVALUATE, without
from support.runs_on_images import make_kfold_run
from tumorlens.cli import app
from tumorlens.deploy.artefact import open_artefact
from tumorlens.deploy.export import export
from tumorlens.deploy.external import evaluate_on
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.table_measures import metrics_from_predictions
from tumorlens.files import read_model
from tumorlens.runs.external import ExternalMetrics
from tumorlens.runs.folder import Run, open_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return images of which the exported run has seen 0 and 1 of each class."""
    root = tmp_path / "other set"
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number in (0, 1, 50, 51, 52):
            pixels = draw_image(label, number)
            if number < 2:  # as in `write_images`, and mirrored
                pixels = pixels[:, number : 96 - number][:, ::-1]
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture
def run(exported_run: Run, tmp_path: Path) -> Run:
    folder = shutil.copytree(
        exported_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("export")
    )
    return open_run(folder)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_measured_on_new_images_and_on_seen_ones(
    run: Run, other: Path
) -> None:
    found, folder = evaluate_on(run.path, other, command="tumorlens evaluate ...")
    assert folder == run.path / "external" / "other-set"
    assert found.name == "other-set"
    assert (found.counts.tested, found.counts.seen_pictures) == (20, 8)
    assert found.orientations == {"mirrored": 8}
    assert found.new is not None
    assert found.new.num_images == 12
    assert read_model(folder / "external.json", ExternalMetrics, hint="") == found
    table = read_predictions(folder / "predictions.csv")
    assert len(table.paths) == 20
    whole = metrics_from_predictions(folder / "predictions.csv")
    assert found.all == whole
    states = {row["path"]: row["state"] for row in rows_of(folder / "images.csv")}
    assert states["glioma/0.png"] == "seen-picture"
    assert states["glioma/50.png"] == "new"
    (look,) = [look for look in run.looks() if look.subset.startswith("external")]
    assert (look.subset, look.command) == (
        "external other-set",
        "tumorlens evaluate ...",
    )


@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_an_artefact_gives_what_its_run_gives(
    exported_run: Run, run: Run, other: Path, tmp_path: Path, kind: str
) -> None:
    of_run = evaluate_on(run.path, other).metrics
    of_artefact = evaluate_on(
        exported_run.path / "export" / kind, other, out=tmp_path / "out"
    ).metrics
    assert of_artefact.counts == of_run.counts
    for one, two in ((of_artefact.all, of_run.all), (of_artefact.new, of_run.new)):
        assert one is not None
        assert two is not None
        assert one.confusion_matrix == two.confusion_matrix
        assert one.log_loss.value == pytest.approx(two.log_loss.value, abs=1e-4)


def test_an_artefact_needs_the_extra_evaluate_and_its_runtime_alone(
    exported_run: Run, other: Path, tmp_path: Path
) -> None:
    model, out = exported_run.path / "export" / "onnx", tmp_path / "out"
    words = ["evaluate", str(model), "--on", str(other), "--out", str(out)]
    code = f"from tumorlens.cli import app; raise SystemExit(app.main({words!r}))"
    answer = without(HEAVY - OF_EVALUATE - {"onnxruntime"}, code)
    assert answer.returncode == 0, answer.stderr
    assert "Training has seen 8 of the 20 images (40.0 %); 12 are new." in answer.stdout
    assert "Of 8 seen pictures, 8 are mirrored." in answer.stdout
    assert (out / "external.json").is_file()
    page = (out / "external.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") >= 8  # the pictures that training has seen
    assert f"the page is {out / 'external.html'}" in answer.stdout


def test_an_export_without_what_was_seen_says_that_it_is_not_known(
    run: Run, exported_run: Run, other: Path, tmp_path: Path
) -> None:
    data = exported_run.path.parent / "data"
    (one,) = export(run, ["torchscript"], data=data, with_seen=False)
    assert one.artefact is not None
    assert not (one.artefact.path / "seen.npz").exists()
    found = evaluate_on(one.artefact.path, other, out=tmp_path / "out").metrics
    assert not found.is_seen_known
    assert found.new is None
    sealed = open_artefact(exported_run.path / "export" / "onnx")
    manifest = json.loads((sealed.path / "manifest.json").read_text())
    assert "seen.npz" in manifest["files"]
    readmes = [(one.path / "README.md").read_text() for one in (sealed, one.artefact)]
    assert ["What has its training seen?" in text for text in readmes] == [True, False]


def test_a_run_of_an_earlier_version_is_told_how_to_make_the_file(
    run: Run, other: Path
) -> None:
    run.seen_path.unlink()
    with pytest.raises(RunError, match=r"has no seen\.npz") as caught:
        evaluate_on(run.path, other)
    assert f"tumorlens train --resume --out {run.path}" in caught.value.hint
    assert not (run.path / "external").exists()
    # The command that it names makes it.
    assert app.main(["train", "--resume", "--out", str(run.path)]) == 0
    assert evaluate_on(run.path, other).metrics.counts.seen_pictures == 8


def test_the_folds_of_a_run_answer_together(tmp_path: Path, other: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(other, data)
    run = make_kfold_run(tmp_path / "folds", data)
    for one in (run, *run.folds()):
        (one.path / "finished").touch()
    assert app.main(["train", "--resume", "--out", str(run.path)]) == 0
    looks = len(run.looks())
    # Each image was seen by all folds but one.
    with pytest.raises(DataError, match="training has seen all 20 images") as caught:
        evaluate_on(run.path, data)
    assert caught.value.hint.endswith(f": tumorlens evaluate {run.path}")
    assert not (run.path / "external").exists()
    assert len(run.looks()) == looks
    fold = evaluate_on(run.fold_path(0), other).metrics
    test = [row for row in run.folds()[0].split() if row.subset == "test"]
    assert fold.counts.new == len(test)


def test_the_run_s_own_images_are_said_to_be_so(run: Run, exported_run: Run) -> None:
    found = evaluate_on(run.path, exported_run.path.parent / "data").metrics
    assert any("evaluate without --on" in note for note in found.notes)
    assert (found.counts.seen_pictures, found.counts.new) == (36, 12)


def test_a_set_of_which_nothing_is_new_is_refused(run: Run, other: Path) -> None:
    for file in other.glob("*/5?.png"):
        file.unlink()
    looks = len(run.looks())
    with pytest.raises(DataError, match="training has seen all 8 images") as caught:
        evaluate_on(run.path, other)
    assert caught.value.hint == "evaluate it on a set that training has not seen"
    assert not (run.path / "external").exists()
    assert len(run.looks()) == looks


@pytest.mark.parametrize("name", ["../up", ".hidden", "a b", ""])
def test_a_name_that_is_no_folder_s_is_refused(
    run: Run, other: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="expected letters, digits"):
        evaluate_on(run.path, other, name=name)


def test_an_evaluation_of_other_images_is_not_replaced(run: Run, other: Path) -> None:
    folder = evaluate_on(run.path, other).folder
    before = (folder / "external.json").read_bytes()
    evaluate_on(run.path, other)  # of the same images it is
    (other / "glioma" / "52.png").unlink()
    with pytest.raises(DataError, match="is there, and is no evaluation of run on"):
        evaluate_on(run.path, other)
    assert (folder / "external.json").read_bytes() == before
    assert len(run.looks()) == 2
    assert evaluate_on(run.path, other, name="fewer").metrics.counts.tested == 19


def test_nothing_is_written_among_the_images(run: Run, other: Path) -> None:
    with pytest.raises(DataError, match="inside the folder of the images"):
        evaluate_on(run.path, other, out=other / "glioma" / "results")
    assert not (other / "glioma" / "results").exists()


def test_an_artefact_wants_a_place_for_the_results(
    exported_run: Run, other: Path
) -> None:
    with pytest.raises(ConfigError, match="is an artefact, in which nothing") as caught:
        evaluate_on(exported_run.path / "export" / "onnx", other)
    assert "--out" in caught.value.hint


def test_a_set_of_classes_that_the_model_does_not_know_is_refused(
    run: Run, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        Image.fromarray(draw_image("glioma", len(label))).save(root / label / "1.png")
    with pytest.raises(ConfigError, match="no class of the data, cat, dog"):
        evaluate_on(run.path, root)
    assert not (run.path / "external").exists()


def test_a_set_of_which_one_class_is_known_is_refused(
    run: Run, other: Path, capsys: Any
) -> None:
    for label in ("glioma", "meningioma", "pituitary"):
        for file in (other / label).iterdir():
            (other / "yes").mkdir(exist_ok=True)
            file.rename(other / "yes" / f"{label}-{file.name}")
        (other / label).rmdir()
    (other / "no_tumor").rename(other / "no")
    words = ["evaluate", str(run.path), "--on", str(other)]
    assert app.main(words) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "only no is one of the model (no_tumor), and yes is none" in error
    assert not (run.path / "external").exists()
    assert app.main([*words, "--map", hint.partition("--map ")[2]]) == 0
    (folder,) = (run.path / "external").iterdir()
    found = read_model(folder / "external.json", ExternalMetrics, hint="")
    assert found.all.num_images == 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "DATA", "--subset", "val"], "--subset has no effect with --on"),
        (["--name", "x"], "--name has no effect without --on"),
        (["--map", "a=b"], "--map has no effect without --on or --predictions"),
        (["--on", "nowhere"], "no such folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    run: Run, capsys: Any, words: list[str], said: str
) -> None:
    assert app.main(["evaluate", str(run.path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 2


def test_a_damaged_file_of_what_was_seen_is_one_error(run: Run, other: Path) -> None:
    run.seen_path.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"seen\.npz is damaged"):
        evaluate_on(run.path, other)
