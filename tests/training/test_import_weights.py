"""Weights made by timm or torchvision alone become runs that can be used."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from support.images import CLASSES, draw_image
from tumorlens.cli import app
from tumorlens.config import load_config
from tumorlens.data.images import load_square
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError, TumorlensError
from tumorlens.evaluation.measure import evaluate
from tumorlens.files import sha256_of
from tumorlens.report import write_run_report
from tumorlens.runs.folder import open_run
from tumorlens.training.import_weights import Imported, import_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

NAME = "test_resnet"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_network(**options: Any) -> nn.Module:
    torch.manual_seed(3)
    model: nn.Module = timm.create_model(NAME, num_classes=4, **options).eval()
    with torch.no_grad():
        # timm starts the last layer near 0: answers that tell classes apart.
        model.get_parameter("fc.weight").normal_()
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return make_network()


@pytest.fixture
def weights(network: nn.Module, tmp_path: Path) -> Path:
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


@pytest.fixture
def take(weights: Path, tmp_path: Path) -> Callable[..., Imported]:
    """Return a function that imports the weights, or others, with further settings."""

    def call(
        *settings: str,
        path: Path = weights,
        classes: tuple[str, ...] = CLASSES,
        name: str = NAME,
        out: str = "run",
    ) -> Imported:
        base = [
            *(f"model.name={name}", "model.size_px=32", "data.fit=squash"),
            *(f"model.mean={list(MEAN)}", f"model.std={list(STD)}"),
            *(f"data.cache_dir={tmp_path / 'cache'}", "data.protocol=as-given"),
        ]
        return import_weights(
            path,
            load_config(assignments=[*base, *settings]),
            classes=classes,
            out=tmp_path / out,
            command="tumorlens import mine.pth",
        )

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(draw_image("glioma", 5)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def probs_of(model: nn.Module, picture: Path) -> Tensor:
    """Return what a network answers, from the image on, without this package's pass."""
    pixels = load_square(picture, size_px=32, fit="squash", in_chans=3)
    values = (np.broadcast_to(pixels, (32, 32, 3)) / 255 - MEAN) / STD
    images = torch.tensor(values, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.inference_mode():
        answer: Tensor = model(images).softmax(dim=1)[0]
    return answer


def test_the_run_answers_as_the_network_did(
    take: Callable[..., Imported], network: nn.Module, picture: Path
) -> None:
    run = take().run
    (answer,) = Predictor.open(run.path, device="cpu").predict_files([picture])
    assert answer.probs == pytest.approx(probs_of(network, picture).numpy(), abs=1e-6)


def test_classes_in_another_order_keep_their_probabilities(
    take: Callable[..., Imported], network: nn.Module, picture: Path
) -> None:
    # Class folders are read in alphabetical order: the outputs must follow the names.
    names = ("pituitary", "glioma", "no_tumor", "meningioma")
    imported = take(classes=names)
    assert imported.card.classes == CLASSES
    (answer,) = Predictor.open(imported.run.path, device="cpu").predict_files([picture])
    assert answer.probs is not None
    given = dict(zip(names, probs_of(network, picture).tolist(), strict=True))
    assert len({round(prob, 4) for prob in given.values()}) == 4
    got = dict(zip(CLASSES, answer.probs.tolist(), strict=True))
    assert got == pytest.approx(given, abs=1e-6)
    environment = imported.run.environment()
    assert environment["imported_from"]["classes"] == list(names)


def test_everything_that_is_known_is_written_down(
    take: Callable[..., Imported], weights: Path
) -> None:
    imported = take("train.seed=7")
    run = open_run(imported.run.path)
    card = run.card()
    assert card == imported.card
    assert (card.name, card.size_px, card.fit) == (NAME, 32, "squash")
    assert (card.mean, card.std, card.epoch) == (MEAN, STD, 0)
    assert card.weights_sha256 == sha256_of(run.weights_path)
    assert run.is_finished
    assert run.history() == []
    text = (run.path / "config.toml").read_text()
    assert "seed = 7" in text
    assert "batch_size = 32" in text  # a default
    assert run.config.model.pretrained == str(weights.resolve())
    environment = run.environment()
    assert environment["command"] == "tumorlens import mine.pth"
    assert environment["seed"] == 7
    assert environment["imported_from"] == {
        **{"file": "mine.pth", "sha256": sha256_of(weights)},
        "classes": list(CLASSES),
    }
    assert "32 x 32 pixels, made square by 'squash'" in imported.summary
    assert "the mean 0.4, 0.5, 0.6, over the std 0.2, 0.25, 0.3" in imported.summary


def test_without_data_no_figure_is_held_out_and_there_is_no_split(
    take: Callable[..., Imported], make_images: Callable[..., Path]
) -> None:
    run = take().run
    leak = run.leak()
    assert (leak.leaks, leak.is_known) == (True, False)
    assert leak.words == (
        "Unknown training data: mine.pth was trained elsewhere, and may have seen "
        "these images. No figure of this run is held out."
    )
    assert not run.split_path.exists()
    with pytest.raises(RunError, match=r"run has no split\.csv") as caught:
        evaluate(run, data=make_images(num_each=2))
    assert "tumorlens import ... --data DATA" in caught.value.hint


@pytest.mark.parametrize("protocol", ["as-given", "grouped"])
def test_with_data_it_is_evaluated_and_reported_with_the_warning(
    take: Callable[..., Imported], make_images: Callable[..., Path], protocol: str
) -> None:
    data = make_images(subsets={"Training": 8, "Testing": 4})
    run = take(f"data.path={data}", f"data.protocol={protocol}").run
    measures = evaluate(run, device="cpu")
    assert measures.protocol == protocol
    assert measures.num_images >= 4
    words = measures.leak.words
    assert words.startswith("Unknown training data: mine.pth was trained elsewhere")
    assert "Had it been trained on this split's train: No copies found: none" in words
    page = write_run_report(run).path.read_text(encoding="utf-8")
    assert "Unknown training data: mine.pth" in page
    assert "No history: the weights were not trained here." in page
    assert "Leak check: passed" not in page


def test_data_with_other_classes_is_refused_and_leaves_nothing(
    take: Callable[..., Imported], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images(num_each=3, classes=CLASSES[:3])
    with pytest.raises(
        DataError,
        match=r"classes glioma, meningioma, no_tumor, and --classes names glioma, "
        r"meningioma, no_tumor, pituitary",
    ):
        take(f"data.path={data}", "data.protocol=grouped")
    assert not (tmp_path / "run").exists()


def test_data_without_given_subsets_is_refused_and_leaves_nothing(
    take: Callable[..., Imported], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="'as-given' needs a given subset"):
        take(f"data.path={make_images(num_each=3)}")
    assert not (tmp_path / "run").exists()


def test_an_interrupt_leaves_nothing(
    take: Callable[..., Imported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tumorlens.training.import_weights.prepare_data", interrupt)
    with pytest.raises(KeyboardInterrupt):
        take("data.path=somewhere")
    assert not (tmp_path / "run").exists()


# files of many makers


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"state_dict": state, "epoch": 9}, id="wrapped"),
        pytest.param(lambda state: {"model": state}, id="as model"),
        pytest.param(
            lambda state: {f"module.{name}": value for name, value in state.items()},
            id="from several GPUs",
        ),
    ],
)
def test_a_pth_may_be_wrapped(
    take: Callable[..., Imported],
    network: nn.Module,
    tmp_path: Path,
    picture: Path,
    wrap: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / "other.pth")
    run = take(path=tmp_path / "other.pth").run
    (answer,) = Predictor.open(run.path, device="cpu").predict_files([picture])
    assert answer.probs == pytest.approx(probs_of(network, picture).numpy(), abs=1e-6)


def test_safetensors_say_their_own_mean_and_std(
    network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "own.safetensors"
    metadata = {"architecture": NAME, "mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6"}
    save_file(network.state_dict(), path, metadata=metadata)
    settings = load_config(assignments=[f"model.name={NAME}"])
    card = import_weights(path, settings, classes=CLASSES, out=tmp_path / "run").card
    assert (card.mean, card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_weights_in_torchvisions_names_work_where_timm_has_the_same(
    take: Callable[..., Imported], tmp_path: Path, picture: Path
) -> None:
    torch.manual_seed(3)
    model = torchvision.models.resnet18(num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    run = take(path=tmp_path / "resnet.pth", name="resnet18").run
    (answer,) = Predictor.open(run.path, device="cpu").predict_files([picture])
    assert answer.probs == pytest.approx(probs_of(model, picture).numpy(), abs=1e-5)


def test_settings_of_the_network_reach_it_and_the_card(
    take: Callable[..., Imported], tmp_path: Path, picture: Path
) -> None:
    model = make_network(global_pool="max")
    torch.save(model.state_dict(), tmp_path / "max.pth")
    run = take("model.extra.global_pool=max", path=tmp_path / "max.pth").run
    assert run.card().arguments == {"global_pool": "max"}
    (answer,) = Predictor.open(run.path, device="cpu").predict_files([picture])
    assert answer.probs == pytest.approx(probs_of(model, picture).numpy(), abs=1e-6)


# what does not fit


def refused(error: type[TumorlensError], match: str, call: Callable[[], object]) -> str:
    with pytest.raises(error, match=match) as caught:
        call()
    assert "model.pretrained" not in str(caught.value)
    return caught.value.hint


@pytest.mark.parametrize("num", [3, 5])
def test_as_many_classes_as_outputs_or_both_are_named(
    take: Callable[..., Imported], tmp_path: Path, num: int
) -> None:
    names = ("a", "b", "c", "d", "e")[:num]
    refused(
        ConfigError,
        rf"last layer in .*mine\.pth has 4 outputs, and --classes names {num}: a, b, c",
        lambda: take(classes=names),
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("glioma",), "'glioma'"),
        (("a", "b", "b", "c"), "'a, b, b, c'"),
        (("a", "", "b", "c"), "'a, , b, c'"),
    ],
)
def test_classes_must_be_different_names(
    take: Callable[..., Imported], names: tuple[str, ...], said: str
) -> None:
    match = rf"at least two classes, each named once, got {said}"
    assert "--classes" in refused(ConfigError, match, lambda: take(classes=names))


def test_weights_of_another_network_are_refused_by_their_tensors(
    take: Callable[..., Imported], tmp_path: Path
) -> None:
    other = timm.create_model("test_efficientnet", num_classes=4)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    hint = refused(
        ConfigError,
        r"other\.pth do not fit the network: conv1\.0\.weight is missing; .* \d+ more",
        lambda: take(path=tmp_path / "other.pth"),
    )
    assert "model.name" in hint
    assert not (tmp_path / "run").exists()


def test_a_tensor_of_another_shape_is_named(
    take: Callable[..., Imported], network: nn.Module, tmp_path: Path
) -> None:
    state = dict(network.state_dict())
    state["conv1.0.weight"] = state["conv1.0.weight"][:, :1]
    torch.save(state, tmp_path / "narrow.pth")
    refused(
        ConfigError,
        r"narrow\.pth do not fit the network: conv1\.0\.weight is \(.*\) and not \(",
        lambda: take(path=tmp_path / "narrow.pth"),
    )


def test_weights_without_a_last_layer_are_refused(
    take: Callable[..., Imported], network: nn.Module, tmp_path: Path
) -> None:
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "features.pth")
    refused(
        ConfigError,
        r"fc\.bias is missing; fc\.weight is missing",
        lambda: take(path=tmp_path / "features.pth"),
    )


def test_a_file_that_is_not_there_is_named(
    take: Callable[..., Imported], tmp_path: Path
) -> None:
    refused(
        ConfigError,
        r"^no such file: '.*gone\.pth'",
        lambda: take(path=tmp_path / "gone.pth"),
    )


def test_code_in_a_pickle_is_not_run(
    take: Callable[..., Imported], tmp_path: Path
) -> None:
    trace = tmp_path / "it-ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trace),)

    evil = tmp_path / "evil.pth"
    torch.save({"weight": Payload()}, evil)
    refused(ConfigError, r"evil\.pth is a pickle with code", lambda: take(path=evil))
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


def test_folds_are_refused(take: Callable[..., Imported]) -> None:
    refused(
        ConfigError,
        "'as-given' or 'grouped', got 'grouped-kfold'",
        lambda: take("data.protocol=grouped-kfold"),
    )


def test_a_folder_that_is_there_is_left_as_it_is(
    take: Callable[..., Imported], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(RunError, r"run exists already", take)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


# the command


def test_the_command_makes_a_run_that_predict_and_evaluate_use(
    weights: Path,
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data, out = make_images(subsets={"Training": 8, "Testing": 3}), tmp_path / "run"
    words = ["import", weights, "--model", NAME, "--classes", ", ".join(CLASSES)]
    words += ["--out", out, "--size-px", 32, "--data", data]
    words += ["--mean", "0.4,0.5,0.6", "--std", "0.2,0.25,0.3"]
    assert app.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"next: tumorlens evaluate {out}"
    assert "Unknown training data: mine.pth" in said
    card = json.loads((out / "model.json").read_text())
    assert (card["size_px"], card["fit"]) == (32, "squash")
    assert (card["mean"], card["std"]) == (list(MEAN), list(STD))
    assert open_run(out).config.data.protocol == "as-given"
    assert open_run(out).environment()["command"].startswith("tumorlens import ")
    assert app.main(["evaluate", str(out)]) == 0
    assert "12 test images in 12 groups, protocol as-given" in capsys.readouterr().out
    image = next((data / "Testing" / "glioma").iterdir())
    assert app.main(["predict", str(out), str(image)]) == 0


def test_the_command_without_data_leads_to_predict_and_takes_pad(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["import", str(weights), "--model", NAME, "--classes", ",".join(CLASSES)]
    words += ["--out", str(out), "--fit", "pad", "--set", "model.mirror=true"]
    assert app.main(words) == 0
    following = capsys.readouterr().out.splitlines()[-1]
    assert following == f"next: tumorlens predict {out} IMAGE"
    card = open_run(out).card()
    assert (card.fit, card.mirror) == ("pad", True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fit", "crop"], "--fit.*'crop'"),
        (["--mean", "0.5,x,0.5", "--std", "1,1,1"], "model.mean: .*0.5,x,0.5"),
        (["--mean", "0.5,0.5,0.5"], "model.mean and model.std together"),
        (["--size-px", "3"], "model.size_px: .*3"),
    ],
)
def test_the_command_refuses_what_is_no_preprocessing(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    base = ["import", str(weights), "--model", NAME, "--classes", "a,b,c,d"]
    assert app.main([*base, "--out", str(tmp_path / "run"), *words]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_the_hint_of_a_usage_error_names_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["import"]) == 2
    assert capsys.readouterr().err.endswith("hint: see tumorlens import --help\n")
