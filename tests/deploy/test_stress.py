"""`stress`: a run, its folds and its artefact on worse images, and what is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from support.exported_runs import write_images
from support.missing_libraries import HEAVY, OF_EVALUATE, without
from support.runs_on_images import make_kfold_run, make_run
from tumorlens.cli import app
from tumorlens.config import parse_config
from tumorlens.data.corruptions import CORRUPTIONS
from tumorlens.data.images import read_image
from tumorlens.deploy import stress as module
from tumorlens.deploy.export import export
from tumorlens.deploy.predictor import Predictor
from tumorlens.deploy.stress import stress
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.stress import VARIANTS
from tumorlens.evaluation.trust import Wanted, fit_trust
from tumorlens.files import sha256_of_bytes
from tumorlens.runs.folder import Run, open_run
from tumorlens.runs.stress import Stress, read_stress
from tumorlens.training.network import as_batch, classifier_layers, load_model
from tumorlens.training.weights import weights_as_bytes

if TYPE_CHECKING:
    from pathlib import Path

UNSEEDED = ("blur", "down-sampling", "contrast", "jpeg", "bright-border")


def spread_answers(run: Run, squares: torch.Tensor) -> None:
    """Change a random network so that it gives every class to some of the images.

    Each class gets the bias and the scale that make its logits comparable; without, one
    class wins everywhere, and equal answers prove nothing.
    """
    card = run.card()
    network = load_model(card, run.weights_path)
    (layer,) = classifier_layers(network)
    assert isinstance(layer, torch.nn.Linear)
    mean, std = (torch.tensor(one)[:, None, None] for one in (card.mean, card.std))
    with torch.inference_mode():
        logits = network((squares / 255 - mean) / std)
        scale = 3 / logits.std(dim=0)
        layer.weight.mul_(scale[:, None])
        layer.bias.copy_(scale * (layer.bias - logits.mean(dim=0)))
    weights = weights_as_bytes(network)
    digest = sha256_of_bytes(weights)
    run.write_weights(weights, card.model_copy(update={"weights_sha256": digest}))


def squares_of(run: Run, data: Path) -> torch.Tensor:
    predictor = Predictor.open(run.path)
    (member,) = predictor.members
    files = sorted(data.glob("*/*.png"))
    return as_batch(np.stack([member.square(read_image(file)) for file in files]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose answers differ, with an artefact; tests must not change it."""
    folder = tmp_path_factory.mktemp("stress")
    data = write_images(folder / "data")
    run = make_run(folder / "run", data)
    spread_answers(run, squares_of(run, data))
    export(run, ["onnx"])
    return run


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    return open_run(shutil.copytree(made.path, tmp_path / "run"))


def accuracies(found: Stress) -> list[float | None]:
    return [level.accuracy.value for one in found.corruptions for level in one.levels]


def test_clean_images_give_what_evaluate_gives(run: Run) -> None:
    found, path = stress(run)
    assert path == run.path / "stress.json"
    assert read_stress(path) == found
    measured = evaluate(run)
    assert found.num_images == measured.num_images == 12
    assert found.clean == measured.accuracy.model_copy(
        update={"num_units": found.clean.num_units}
    )
    assert len(set(accuracies(found))) > 3  # the network answers differently
    assert found.worst


def test_a_calibrated_run_answers_clean_images_as_evaluate_measures(run: Run) -> None:
    fit_trust(run, Wanted(coverage=0.5, error=0.4, confidence=0.5))
    found, _ = stress(run)
    measured = evaluate(run).trust
    clean = found.clean_trust
    assert clean is not None
    assert measured is not None
    assert clean.answered.value == measured.answered.value
    assert clean.error.value == measured.error_of_answers.value
    assert clean.alarms is not None
    assert measured.turned_away is not None
    assert clean.alarms.value == measured.turned_away.value
    alarms = [
        level.trust.alarms.value
        for one in found.corruptions
        for level in one.levels
        if level.trust and level.trust.alarms
    ]
    assert len(alarms) == len(VARIANTS) - 1
    assert max(one or 0 for one in alarms) > (clean.alarms.value or 0)


def test_an_artefact_gives_what_its_run_gives(run: Run) -> None:
    of_run, _ = stress(run, subset="val")
    of_artefact, path = stress(run, subset="val", model=run.path / "export" / "onnx")
    assert path == run.path / "stress-val-onnx.json"
    assert (of_run.model, of_artefact.model) == ("run", "run (onnx)")
    assert of_artefact.clean == of_run.clean
    assert of_artefact.corruptions == of_run.corruptions
    for one, two in zip(of_artefact.worst, of_run.worst, strict=True):
        assert one == two.model_copy(update={"prob": one.prob})
        assert one.prob == pytest.approx(two.prob, abs=1e-4)


def test_each_fold_answers_its_own_test_images(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    run = make_kfold_run(tmp_path / "run", data)
    for fold in run.folds():
        spread_answers(fold, squares_of(fold, data))
    found, _ = stress(run)
    assert found.num_images == 48
    assert len(found.model_sha256) == 2
    assert found.clean.value == pytest.approx(evaluate(run).accuracy.value)
    parts = [stress(fold)[0] for fold in run.folds()]
    assert accuracies(parts[0]) != accuracies(parts[1])
    for name in UNSEEDED:
        pooled, *of_folds = (
            np.array(
                [
                    level.accuracy.value
                    for corruption in one.corruptions
                    if corruption.name == name
                    for level in corruption.levels
                ]
            )
            for one in (found, *parts)
        )
        assert pooled == pytest.approx(np.mean(of_folds, axis=0))


def test_a_look_at_test_is_logged_and_one_at_val_is_not(run: Run) -> None:
    before = len(run.looks())
    stress(run, subset="val", command="tumorlens stress run --subset val")
    assert len(run.looks()) == before
    stress(run, command="tumorlens stress run")
    looks = run.looks()
    assert len(looks) == before + 1
    assert (looks[-1].subset, looks[-1].command) == ("test", "tumorlens stress run")


def test_the_same_run_gives_the_same_file_again(run: Run) -> None:
    path = stress(run).path
    first = path.read_bytes()
    assert stress(run).path.read_bytes() == first


def test_each_image_is_decoded_once_and_not_long_before_it_is_needed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    at_first: list[int] = []
    sizes: list[int] = []
    judge = Predictor.judge

    def reading(path: Path, **options: Any) -> Any:
        read.append(path)
        return read_image(path, **options)

    def predicting(self: Predictor, images: Any) -> Any:
        at_first.append(len(read))
        sizes.append(len(images))
        return judge(self, images)

    monkeypatch.setattr(module, "read_image", reading)
    monkeypatch.setattr(module, "num_processors", lambda: 2)
    monkeypatch.setattr(Predictor, "judge", predicting)
    found = stress(run).found
    assert len(read) == len(set(read)) == found.num_images == 12
    assert at_first[0] <= 5  # two ahead of those in the first batch
    assert max(sizes) == 32
    assert sum(sizes) == 12 * len(VARIANTS)


def test_an_artefact_needs_no_torch(made: Run, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(made.path, tmp_path / "run"))
    words = ["stress", str(run.path), "--model", str(run.path / "export" / "onnx")]
    code = f"from tumorlens.cli import app; raise SystemExit(app.main({words!r}))"
    answer = without(HEAVY - OF_EVALUATE - {"onnxruntime"}, code)
    assert answer.returncode == 0, answer.stderr
    assert "run (onnx): 12 test images in 12 groups, clean" in answer.stdout
    for one in CORRUPTIONS.values():
        assert one.title in answer.stdout
    assert (
        "No share answered, error among answers, gate alarms: the model is not "
        "calibrated." in answer.stdout
    )
    page = (run.path / "stress-onnx.html").read_text(encoding="utf-8")
    found = read_stress(run.path / "stress-onnx.json")
    assert page.count("data:image/jpeg") == 2 * len(found.worst) > 0


def test_an_artefact_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    other = make_run(tmp_path / "other", data, seed=5)
    model = run.path / "export" / "onnx"
    with pytest.raises(RunError, match=r"onnx is no artefact of .*other") as caught:
        stress(other, model=model)
    assert "from the run 'run'" in caught.value.problem
    assert not (other.path / "stress-onnx.json").exists()
    assert not other.looks()


def test_a_run_with_folds_has_no_artefact(run: Run, tmp_path: Path) -> None:
    folds = make_kfold_run(tmp_path / "folds", write_images(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"folds is a run with folds") as caught:
        stress(folds, model=run.path / "export" / "onnx")
    assert "folds/0 --model" in caught.value.hint
    with pytest.raises(ConfigError, match=r"no subset 'val' of its own"):
        stress(folds, subset="val")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["--subset", "tset"],
            "error: unknown subset 'tset'\nhint: did you mean 'test'",
        ),
        (["--model", "nothing"], "error: "),
        (["--data", "nowhere"], "error: "),
    ],
)
def test_bad_words_end_in_an_error_and_a_hint(
    run: Run, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.path.rglob("*"))
    assert app.main(["stress", str(run.path), *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(problem)
    assert printed.count("error:") == printed.count("hint:") == 1
    assert sorted(run.path.rglob("*")) == before


def test_an_unfinished_run_has_val_only(run: Run) -> None:
    (run.path / "finished").unlink()
    with pytest.raises(RunError, match=r"is not finished"):
        stress(run)
    assert stress(run, subset="val").found.num_images == 12


def test_a_subset_without_images_is_refused(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    run = make_run(tmp_path / "run", data, subset_of=lambda _: "train")
    with pytest.raises(RunError, match=r"run has no image in subset 'test'"):
        stress(run)


def test_images_that_have_changed_are_refused(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    run = make_run(tmp_path / "run", data)
    (data / "glioma" / "0.png").unlink()
    with pytest.raises(RunError, match=r"has changed.*glioma/0\.png"):
        stress(run)


def test_an_imported_run_is_asked_for_its_data(run: Run) -> None:
    content = parse_config({"model": run.config.model.model_dump()})
    imported = Run(run.path, content)
    with pytest.raises(DataError, match=r"does not name the folder") as caught:
        stress(imported)
    assert caught.value.hint == "give --data"
