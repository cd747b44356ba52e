"""Files become probabilities, and an unreadable file becomes an answer."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import tumorlens
from support.images import draw_image
from support.working_artefacts import make_artefact, probs_by_hand
from tumorlens.config import ModelConfig, parse_config
from tumorlens.data.decoding import InputSpec
from tumorlens.data.images import ImageLimits, load_square, read_image
from tumorlens.deploy.predictor import NO_NUMBER, Member, Prediction, Predictor
from tumorlens.errors import ArtefactError, ConfigError, DataError, RunError
from tumorlens.files import sha256_of_bytes
from tumorlens.runs.folder import ModelCard, Run, create_run
from tumorlens.training.network import create_model, infer, load_model
from tumorlens.training.weights import weights_as_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

NAME = "test_efficientnet"
SIZE = 32
CLASSES = ("glioma", "meningioma", "no_tumor")


def fill_run(path: Path, seed: int, *, settings: Any = None, **changes: Any) -> Run:
    """Make a run with untrained weights."""
    run = create_run(path, parse_config(settings or {}))
    values: dict[str, Any] = {
        "format": 1,
        "tumorlens": tumorlens.__version__,
        "name": NAME,
        "classes": CLASSES,
        "in_chans": 3,
        "size_px": SIZE,
        "fit": "pad",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.1, 0.2, 0.3),
        "mirror": False,
        "epoch": 1,
    } | changes
    torch.manual_seed(seed)
    model, _ = create_model(
        ModelConfig(name=NAME, pretrained="no", in_chans=values["in_chans"]),
        num_classes=len(values["classes"]),
    )
    weights = weights_as_bytes(model)
    card = ModelCard(**values, weights_sha256=sha256_of_bytes(weights))
    run.write_weights(weights, card)
    return run


def fill_kfold_run(
    path: Path, *, num_folds: int = 2, made: int = 2, **card: Any
) -> Run:
    data = {"protocol": "grouped-kfold", "num_folds": num_folds}
    run = create_run(path, parse_config({"data": data}))
    for fold in range(made):
        settings = {"data": data | {"fold": fold}}
        fill_run(run.fold_path(fold), seed=fold, settings=settings, **card)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fill_run(tmp_path / "run", seed=0)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for number in range(7):
        shape = (50, 40, 3) if number == 3 else (50, 40)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8) // (number + 1)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


def by_hand(run: Run, path: Path) -> NDArray[np.float64]:
    """Return the probabilities of one file, from the parts."""
    card = run.card()
    image = load_square(
        path,
        size_px=card.size_px,
        fit=card.fit,
        in_chans=3 if card.in_chans == 3 else 1,
    )
    log_probs = infer(
        load_model(card, run.weights_path),
        [torch.from_numpy(image).permute(2, 0, 1)[None]],
        mean=card.mean,
        std=card.std,
        device=torch.device("cpu"),
        mirror=card.mirror,
    )
    probs: NDArray[np.float64] = np.exp(log_probs[0].astype(np.float64))
    return probs


def probs_of(predictions: list[Prediction]) -> NDArray[np.float32]:
    found = [prediction.probs for prediction in predictions]
    assert all(probs is not None for probs in found)
    return np.stack([probs for probs in found if probs is not None])


def predict_all(run: Run, paths: list[Path], **options: Any) -> list[Prediction]:
    return list(Predictor.open(run.path, device="cpu").predict_files(paths, **options))


# What is handed over


def test_the_predictor_is_found_at_the_top_and_takes_texts_as_paths(
    run: Run, images: list[Path]
) -> None:
    predictor = tumorlens.Predictor.open(str(run.path), device="cpu")
    assert isinstance(predictor, Predictor)
    as_texts = list(predictor.predict_files([str(path) for path in images]))
    assert [one.path for one in as_texts] == images
    assert probs_of(as_texts) == pytest.approx(probs_of(predict_all(run, images)))
    with pytest.raises(DataError, match=r"got the path .*png"):
        list(predictor.predict_files(str(images[0])))
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        tumorlens.Predicter  # noqa: B018 - misspelt on purpose


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 9, 9, 3), np.float32), "image 0, got float32 of shape (9, 9, 3)"),
        ([np.full((9, 9), np.nan)], "image 0, got float64 of shape (9, 9)"),
        ([np.zeros((9, 9), np.uint8), np.zeros((9, 9), int)], "image 1, got int64"),
        ([np.zeros((9, 9, 4), np.uint8)], "got uint8 of shape (9, 9, 4)"),
        ([np.zeros((3, 9, 9), np.uint8)], "got uint8 of shape (3, 9, 9)"),
        ([np.zeros((0, 9), np.uint8)], "got uint8 of shape (0, 9)"),
        ([7], "got a int"),
        ([], "at least one image"),
        (np.zeros((0, 9, 9, 3), np.uint8), "at least one image"),
        (np.zeros((9, 9, 3), np.uint8), "one array of shape (9, 9, 3)"),
        (np.zeros((9, 9), np.uint8), "one array of shape (9, 9)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    run: Run, images: Any, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        Predictor.open(run.path, device="cpu").probs_of(images)
    assert said in caught.value.problem
    assert caught.value.hint


def test_images_of_any_size_grey_or_coloured_are_one_batch(run: Run) -> None:
    predictor = Predictor.open(run.path, device="cpu")
    grey = draw_image("glioma", 1, size_px=40)
    coloured = np.stack([draw_image("no_tumor", 2, size_px=70)] * 3, axis=2)
    both = predictor.probs_of([grey, coloured])
    assert both[:1] == pytest.approx(predictor.probs_of([grey]), abs=1e-5)
    assert both[1:] == pytest.approx(predictor.probs_of(coloured[None]), abs=1e-5)


def test_threads_that_share_a_predictor_get_the_answers_of_one(
    run: Run, images: list[Path]
) -> None:
    predictor = Predictor.open(run.path, device="cpu")
    arrays = [read_image(path) for path in images]
    by_array = [predictor.probs_of([array]) for array in arrays]
    by_file = probs_of(list(predictor.predict_files(images)))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda array: predictor.probs_of([array]), arrays * 4))
        several = list(
            pool.map(lambda _: list(predictor.predict_files(images)), range(4))
        )
    np.testing.assert_allclose(together, by_array * 4, atol=1e-6)
    for answers in several:
        np.testing.assert_allclose(probs_of(answers), by_file, atol=1e-6)


# Files to probabilities


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mirror": True},
        {"fit": "squash"},
        {"in_chans": 1, "mean": (0.5,), "std": (0.2,)},
    ],
    ids=["plain", "mirror", "squash", "grey"],
)
def test_an_answer_is_that_of_the_inference_pass_on_the_decoded_file(
    changes: Any, images: list[Path], tmp_path: Path
) -> None:
    run = fill_run(tmp_path / "other", seed=1, **changes)
    predictions = predict_all(run, images, batch_size=3)
    assert [prediction.path for prediction in predictions] == images
    probs = probs_of(predictions)
    expected = np.stack([by_hand(run, path) for path in images])
    assert probs == pytest.approx(expected, abs=1e-5)
    assert probs.dtype == np.float32
    assert probs.sum(axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    assert len(np.unique(probs.round(5), axis=0)) == 7
    for prediction, row in zip(predictions, expected, strict=True):
        assert prediction.predicted == CLASSES[row.argmax()]
        assert prediction.error is None


def test_the_size_of_a_batch_changes_nothing(run: Run, images: list[Path]) -> None:
    one, other = (predict_all(run, images, batch_size=size) for size in (1, 100))
    assert probs_of(one) == pytest.approx(probs_of(other), abs=1e-5)


def test_a_predictor_knows_its_name_and_classes(run: Run) -> None:
    predictor = Predictor.open(run.path, device="cpu")
    assert predictor.name == "run"
    assert predictor.classes == CLASSES


def test_the_order_of_the_files_is_kept(run: Run, images: list[Path]) -> None:
    there = probs_of(predict_all(run, images, batch_size=4))
    back = probs_of(predict_all(run, images[::-1], batch_size=4))
    assert back[::-1] == pytest.approx(there, abs=1e-5)


def test_answers_come_batch_by_batch_and_progress_is_told(
    run: Run, images: list[Path]
) -> None:
    seen: list[tuple[int, int]] = []
    predictor = Predictor.open(run.path, device="cpu")
    answers = predictor.predict_files(
        images, batch_size=3, progress=lambda *step: seen.append(step)
    )
    assert next(answers).path == images[0]
    assert seen == []
    assert len(list(answers)) == 6
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_no_files_give_no_answers(run: Run) -> None:
    assert predict_all(run, []) == []


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_an_unreadable_file_is_an_answer_and_the_rest_goes_on(
    batch_size: int, run: Run, images: list[Path]
) -> None:
    expected = probs_of(predict_all(run, images))
    images[0].write_bytes(b"")
    images[4].write_bytes(images[4].read_bytes()[:60])
    images[5].write_text("no image")
    predictions = predict_all(run, images, batch_size=batch_size)
    assert [prediction.path for prediction in predictions] == images
    for number, prediction in enumerate(predictions):
        if number in (0, 4, 5):
            assert prediction.probs is None
            assert prediction.predicted is None
            assert prediction.error is not None
            assert images[number].name not in prediction.error
            assert "\n" not in prediction.error
        else:
            assert prediction.error is None
            assert prediction.probs == pytest.approx(expected[number], abs=1e-5)


def test_only_unreadable_files_are_answered_too(run: Run, tmp_path: Path) -> None:
    missing = [tmp_path / "gone.png", tmp_path / "gone too.png"]
    predictions = predict_all(run, missing)
    assert [prediction.error is None for prediction in predictions] == [False, False]
    assert [prediction.path for prediction in predictions] == missing


def test_the_limits_are_those_that_are_given(run: Run, images: list[Path]) -> None:
    limits = ImageLimits(max_pixels=100)
    predictions = predict_all(run, images, limits=limits)
    assert all(prediction.probs is None for prediction in predictions)
    assert "100" in str(predictions[0].error)


# Runs


def test_the_answer_of_a_kfold_run_is_the_mean_over_its_folds(
    images: list[Path], tmp_path: Path
) -> None:
    run = fill_kfold_run(tmp_path / "folds")
    images[2].write_bytes(b"")
    predictions = predict_all(run, images)
    assert predictions[2].probs is None
    readable = [n for n in range(7) if n != 2]
    parts = [
        np.stack([by_hand(fold, images[n]) for n in readable]) for fold in run.folds()
    ]
    got = probs_of([predictions[n] for n in readable])
    assert got == pytest.approx((parts[0] + parts[1]) / 2, abs=1e-5)
    assert abs(parts[0] - parts[1]).max() > 1e-3


def test_a_kfold_run_that_lacks_folds_is_refused(tmp_path: Path) -> None:
    run = fill_kfold_run(tmp_path / "folds", num_folds=3, made=2)
    with pytest.raises(RunError, match=r"folds has 2 of 3 folds") as caught:
        Predictor.open(run.path)
    assert "--resume" in caught.value.hint


def test_folds_of_different_classes_are_refused(tmp_path: Path) -> None:
    run = fill_kfold_run(tmp_path / "folds", made=1)
    settings = {"data": {"protocol": "grouped-kfold", "num_folds": 2, "fold": 1}}
    fill_run(run.fold_path(1), 1, settings=settings, classes=("a", "b", "c"))
    with pytest.raises(
        RunError, match=r"the networks of .*folds do not have the same classes"
    ):
        Predictor.open(run.path, device="cpu")


def test_changed_weights_are_refused(run: Run) -> None:
    content = bytearray(run.weights_path.read_bytes())
    content[-1] ^= 1
    run.weights_path.write_bytes(content)
    with pytest.raises(RunError, match=r"is not the file that model\.json describes"):
        Predictor.open(run.path, device="cpu")


def test_a_gpu_that_is_not_there_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"to be 'cuda', and torch \S+ finds no GPU"):
        Predictor.open(run.path, device="cuda")


# Artefacts


@pytest.fixture
def colours(tmp_path: Path) -> list[Path]:
    """Return plain images, from black to red."""
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        Image.new("RGB", (40, 30), (50 * number, 90, 0)).save(path)
    return paths


@pytest.mark.parametrize("kind", ["onnx", "openvino", "torchscript"])
def test_an_artefact_answers_by_its_folder_and_by_its_graph(
    kind: Any, colours: list[Path], tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / "artefact", kind)
    reds = np.zeros((6, 1, 1, 3), np.uint8)
    reds[:, 0, 0, 0] = [50 * number for number in range(6)]
    for path in (artefact.path, artefact.graph_path):
        predictor = Predictor.open(path)
        assert predictor.name == f"run ({kind})"
        assert predictor.classes == ("glioma", "no_tumor")
        predictions = list(predictor.predict_files(colours, batch_size=4))
        assert probs_of(predictions) == pytest.approx(probs_by_hand(reds), abs=1e-5)
        predicted = [prediction.predicted for prediction in predictions]
        assert predicted == ["no_tumor"] * 2 + ["glioma"] * 4


def test_files_are_asked_for_two_batches_ahead_and_no_further(
    colours: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor.open(make_artefact(tmp_path / "artefact").path)
    asked: list[int] = []
    seen: list[tuple[int, int | None]] = []

    def generate() -> Iterator[Path]:
        for number in range(100):
            asked.append(number)
            yield colours[number % 6]

    answers = predictor.predict_files(
        generate(), batch_size=5, progress=lambda *step: seen.append(step)
    )
    assert next(answers).path == colours[0]
    assert len(asked) == 15
    assert len(list(answers)) == 99
    assert seen[0] == (5, None)
    assert seen[-1] == (100, None)


def test_memory_does_not_grow_with_the_number_of_files(
    colours: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor.open(make_artefact(tmp_path / "artefact").path)

    def peak(number: int) -> int:
        tracemalloc.start()
        paths = (colours[0].with_name(f"{n % 6}.png") for n in range(number))
        assert sum(1 for _ in predictor.predict_files(paths)) == number
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(200)
    # 1,800 answers and their paths would be more than 1 MB.
    assert peak(2000) - peak(200) < 400_000


def test_a_digest_tells_what_answers(run: Run, tmp_path: Path) -> None:
    other = fill_run(tmp_path / "other", seed=1)
    one = make_artefact(tmp_path / "onnx")
    two = make_artefact(tmp_path / "two", fit="pad")
    paths = (run.path, other.path, one.path, two.path)
    digests = [Predictor.open(path, device="cpu").digest for path in paths]
    assert len(set(digests)) == 4
    again = [Predictor.open(path, device="cpu").digest for path in paths]
    assert again == digests


def test_an_answer_that_is_no_number_is_an_error_and_the_others_go_on(
    images: list[Path],
) -> None:
    def predict(batch: Any) -> Any:
        probs = np.full((len(batch), 2), 0.5)
        probs[1:2] = np.nan
        return probs

    member = Member(InputSpec(32, "pad", 3), predict, ("0" * 64,))
    predictor = Predictor("hand", ("a", "b"), "digest", [member])
    first, second, third = predictor.predict_files(images[:3])
    assert second == Prediction(images[1], None, None, NO_NUMBER)
    assert first.predicted == third.predicted == "a"
    with pytest.raises(RunError, match="hand: the model's answer is NaN or infinite"):
        predictor.probs_of([np.zeros((9, 9), np.uint8)] * 2)


def test_a_graph_without_its_manifest_is_refused_as_an_artefact(tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "onnx")
    (artefact.path / "manifest.json").unlink()
    for path in (artefact.path, artefact.graph_path):
        with pytest.raises(ArtefactError, match=r"onnx has no manifest\.json"):
            Predictor.open(path)


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    artefact = make_artefact(tmp_path / "onnx")
    with artefact.graph_path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ArtefactError, match=r"graph\.onnx is not the file that was"):
        Predictor.open(artefact.path)


def test_a_path_that_is_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for name in ("nowhere", "notes.txt"):
        with pytest.raises(RunError, match=name):
            Predictor.open(tmp_path / name)
