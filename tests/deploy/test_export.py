"""Exports end with proof, and what can be opened has passed it."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from support.exported_runs import write_images
from support.handmade_artefacts import parity_of
from support.runs_on_images import CLEAN, make_kfold_run, make_run, rows_of
from tumorlens import files
from tumorlens.cli import app
from tumorlens.data.images import ImageLimits, load_square
from tumorlens.deploy.artefact import (
    KINDS,
    Change,
    Kind,
    Parity,
    ParityAccuracy,
    is_artefact,
    open_artefact,
    remove_artefact,
)
from tumorlens.deploy.export import export, kinds_here
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ArtefactError, DataError, RunError, TumorlensError
from tumorlens.files import locked
from tumorlens.training.ensemble import make_ensemble

if TYPE_CHECKING:
    from tumorlens.runs.folder import Run

# Its parts are replaced below, which its types do not know of.
module: Any = importlib.import_module("tumorlens.deploy.export")
HERE = kinds_here()

WITHOUT_US = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tumorlens":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import runpy
runpy.run_path("recipe.py")
"""


def recipe_in(folder: Path) -> str:
    """Return the code that the README of an artefact prints."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(code)


def images_of(run: Run) -> list[Path]:
    return sorted((run.path.parent / "data").rglob("*.png"))


def forget_exports(run: Run, path: Path) -> Run:
    """Return a copy of a run that has no artefacts yet."""
    shutil.copytree(run.path, path, ignore=shutil.ignore_patterns("export"))
    return replace(run, path=path)


@pytest.fixture
def fresh_run(exported_run: Run, tmp_path: Path) -> Run:
    return forget_exports(exported_run, tmp_path / "run")


# what an export leaves


def test_verdicts_say_whose_weights_they_are_of_and_go_with_them(
    exported_run: Run, fresh_run: Run
) -> None:
    path = fresh_run.path / "export" / "parity.json"
    weights = [fresh_run.card().weights_sha256]
    (one,) = export(fresh_run, ["torchscript"])
    assert one.artefact is not None
    assert one.artefact.parity().weights_sha256 == tuple(weights)
    known = json.loads(path.read_text(encoding="utf-8"))
    assert known.pop("format") == 1  # as in the first layout
    same = known["torchscript"] | {"kind": "onnx"}
    old = known["torchscript"] | {"weights_sha256": ["0" * 64]}
    failed = {name: same[name] for name in ("kind", "command", "weights_sha256")}
    failed |= {"passed": False, "reasons": ["it could not be made"]}
    others = {"onnx": same, "openvino": failed, "onnx-int8": old}
    path.write_text(json.dumps(known | others), encoding="utf-8")
    export(fresh_run, ["torchscript"])
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"format", "torchscript", "onnx", "openvino"}
    assert kept["torchscript"]["weights_sha256"] == weights
    assert kept["onnx"] == same
    assert kept["openvino"] == {"format": 1} | failed


@pytest.mark.parametrize("damaged", ["{", '{"onnx": {"passed": true}}'])
def test_damaged_verdicts_of_earlier_exports_are_written_anew(
    fresh_run: Run, damaged: str
) -> None:
    path = fresh_run.path / "export" / "parity.json"
    path.parent.mkdir()
    path.write_text(damaged, encoding="utf-8")
    export(fresh_run, ["torchscript"])
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"format", "torchscript"}


def test_every_format_passes_and_is_sealed(exported_run: Run) -> None:
    folder = exported_run.path / "export"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*HERE, "parity.json"]
    )
    verdicts = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    for kind in HERE:
        artefact = open_artefact(folder / kind)
        assert artefact.card.kind == kind
        assert artefact.parity().model_dump(mode="json") == verdicts[kind]
        assert verdicts[kind]["passed"]
        assert verdicts[kind]["num_images"] == 12
        assert verdicts[kind]["command"] == "tumorlens export run --format all"


def test_the_card_says_what_the_graph_holds(exported_run: Run) -> None:
    card = open_artefact(exported_run.path / "export" / "onnx").card
    of_run = exported_run.card()
    assert card.classes == of_run.classes
    assert (card.size_px, card.fit) == (of_run.size_px, of_run.fit)
    assert card.weights_sha256 == (of_run.weights_sha256,)
    assert card.networks == ("test_resnet",)
    assert card.run == exported_run.name
    assert set(card.made_with) == {
        *("torch", "timm", "onnx", "onnxscript", "onnxruntime")
    }


@pytest.mark.parametrize("kind", HERE)
def test_the_predictor_gives_the_same_labels(exported_run: Run, kind: Kind) -> None:
    files = images_of(exported_run)
    expected = Predictor.open(exported_run.path).predict_files(files)
    found = Predictor.open(exported_run.path / "export" / kind).predict_files(files)
    assert [one.predicted for one in found] == [one.predicted for one in expected]


# someone else's hands


@pytest.mark.parametrize("kind", HERE)
def test_the_recipe_in_the_readme_gives_the_same_labels_without_tumorlens(
    exported_run: Run, tmp_path: Path, kind: Kind
) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(exported_run.path / "export" / kind, copy)
    (copy / "recipe.py").write_text(recipe_in(copy), encoding="utf-8")
    files = images_of(exported_run)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, *map(str, files)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels = [line.split("\t")[1] for line in done.stdout.splitlines()]
    expected = Predictor.open(exported_run.path).predict_files(files)
    assert labels == [one.predicted for one in expected]


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_recipe_in_the_readme_leaves_no_usage_data(
    exported_run: Run, tmp_path: Path, kind: Kind
) -> None:
    copy, home = tmp_path / "elsewhere", tmp_path / "home"
    home.mkdir()
    shutil.copytree(exported_run.path / "export" / kind, copy)
    (copy / "recipe.py").write_text(recipe_in(copy), encoding="utf-8")
    known = {
        name: value
        for name, value in os.environ.items()
        if "TELEMETRY" not in name and name not in ("DO_NOT_TRACK", "PYTHONPATH")
    }
    places = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")
    done = subprocess.run(
        [sys.executable, "recipe.py", str(images_of(exported_run)[0])],
        cwd=copy,
        env=known | dict.fromkeys(places, str(home)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in home.rglob("*")] == []
    text = (copy / "README.md").read_text(encoding="utf-8")
    assert "collects usage data" in text


def draw_odd_images(folder: Path) -> list[Path]:
    """Write 8-bit images of every mode, with borders, and upright only by EXIF."""
    rng = np.random.default_rng(0)
    colour = np.zeros((90, 60, 3), np.uint8)
    colour[20:70, 5:50] = rng.integers(0, 256, (50, 45, 3))
    image = Image.fromarray(colour)
    upside_down = Image.Exif()
    upside_down[0x0112] = 6
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "colour.png": (image, {}),
        "grey.png": (image.convert("L"), {}),
        "grey.jpg": (image.convert("L"), {"quality": 80}),
        "colour.jpg": (image, {"quality": 90}),
        "turned.jpg": (image, {"exif": upside_down}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "palette.png": (image.convert("P"), {}),
        "see-through.png": (image.convert("RGBA"), {}),
        "bits.png": (image.convert("1"), {}),
        "black.png": (Image.new("L", (40, 30)), {}),
        "speck.png": (Image.fromarray(colour[:30, :20]), {}),
    }
    saved["see-through.png"][0].putalpha(Image.fromarray(colour[:, :, 0]))
    for name, (one, options) in saved.items():
        one.save(folder / name, **options)
    return [folder / name for name in saved]


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_the_recipe_makes_the_very_arrays_that_we_make(
    exported_run: Run, tmp_path: Path, fit: Any
) -> None:
    artefact = open_artefact(exported_run.path / "export" / "onnx")
    card = artefact.card.model_copy(update={"fit": fit})
    (tmp_path / "README.md").write_text(
        module.readme_of(card, artefact.parity()), encoding="utf-8"
    )
    reading = recipe_in(tmp_path).partition("\nimages = ")[0]
    names: dict[str, Any] = {}
    exec(reading, names)
    for path in draw_odd_images(tmp_path):
        ours = load_square(path, size_px=32, fit=fit, in_chans=3)
        assert np.array_equal(names["read_square"](path), ours), path.name


@pytest.mark.parametrize("kind", HERE)
def test_the_readme_says_what_one_must_know(exported_run: Run, kind: Kind) -> None:
    folder = exported_run.path / "export" / kind
    text = (folder / "README.md").read_text(encoding="utf-8")
    artefact = open_artefact(folder)
    for name in artefact.card.classes:
        assert f"`{name}`" in text
    assert "Not a medical device" in text
    assert "A digest is no signature" in text
    assert f"{artefact.parity().max_difference:.2g}" in text
    assert ("legacy" in text) is (kind == "torchscript")


def test_the_runs_weights_load_by_timm_alone(exported_run: Run) -> None:
    card = exported_run.card()
    network = timm.create_model(
        card.name,
        checkpoint_path=str(exported_run.weights_path),
        num_classes=len(card.classes),
        **card.arguments,
    ).eval()
    path = images_of(exported_run)[0]
    square = load_square(path, size_px=card.size_px, fit=card.fit, in_chans=3)
    values = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.mean, card.std))
    with torch.no_grad():
        probs = network((values - mean) / std).softmax(dim=1)[0].numpy()
    (expected,) = Predictor.open(exported_run.path).predict_files([path])
    assert expected.probs is not None
    assert np.abs(probs - expected.probs).max() < 1e-5


# a verdict that is bad


def losing_by(drop: float) -> ParityAccuracy:
    change = Change(value=-drop, low=None, high=None)
    return ParityAccuracy(run=1.0, artefact=1 - drop, change=change)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Fields of every verdict to change: `judged["passed"] = False`."""
    changes: dict[str, Any] = {}
    real = module.judge_parity

    def judge(*arguments: Any, **options: Any) -> Parity:
        verdict: Parity = real(*arguments, **options)
        return verdict.model_copy(update=changes)

    monkeypatch.setattr(module, "judge_parity", judge)
    return changes


def test_a_bad_verdict_leaves_no_artefact_not_even_the_one_before(
    fresh_run: Run, judged: dict[str, Any]
) -> None:
    (one,) = export(fresh_run, ["torchscript"])
    assert one.artefact is not None
    judged |= {"passed": False, "reasons": ("the label of a.png flips",)}
    (one,) = export(fresh_run, ["torchscript"])
    assert one.artefact is None
    folder = fresh_run.path / "export"
    assert [path.name for path in folder.iterdir()] == ["parity.json"]
    kept = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    assert kept["torchscript"]["reasons"] == ["the label of a.png flips"]


def test_a_graph_that_answers_otherwise_fails_and_the_images_are_named(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._graph

    def wrong(*arguments: Any) -> Any:
        graph = real(*arguments)
        graph.members[0].module.get_classifier().weight.data.neg_()
        return graph

    monkeypatch.setattr(module, "_graph", wrong)
    (one,) = export(fresh_run, ["torchscript"])
    assert one.artefact is None
    assert isinstance(one.verdict, Parity)
    flipped = [flip.path for flip in one.verdict.flips]
    assert flipped
    assert any(flipped[0] in reason for reason in one.verdict.reasons)
    assert not (fresh_run.path / "export" / "torchscript").exists()


def test_a_precision_that_the_processor_lacks_is_no_artefact_of_it(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "precision_of", lambda kind: "bf16")
    (one,) = export(fresh_run, ["torchscript"])
    assert one.artefact is None
    (reason,) = one.verdict.reasons
    assert reason == (
        "the runtime computes it in fp32, not in bf16: this processor, or this "
        "network, does not allow it"
    )


def test_a_format_that_cannot_be_made_does_not_stop_the_others(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.write_graph

    def write(kind: Kind, *arguments: Any, **options: Any) -> None:
        if kind == "torchscript":
            raise ArtefactError("the network cannot be written as torchscript: no")
        real(kind, *arguments, **options)

    monkeypatch.setattr(module, "write_graph", write)
    first, second = export(fresh_run, ["torch-export", "torchscript"])
    assert first.artefact is None
    assert list(first.verdict.reasons) == [
        "the network cannot be written as torchscript: no"
    ]
    assert second.artefact is not None


@pytest.mark.parametrize("drop", [0.004, 0.04])
def test_int8_that_loses_too_much_is_made_again_with_care(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch, drop: float
) -> None:
    shares = []
    drops = [drop, 0.0]

    def write(kind: Kind, source: Any, folder: Path, **options: Any) -> None:
        shares.append(options.get("nearness"))

    def judge(*arguments: Any, bounds: Any, **options: Any) -> Parity:
        lost = drops[len(shares) - 1]
        return parity_of(
            "openvino-int8", passed=lost <= bounds.max_drop, accuracy=losing_by(lost)
        )

    session = type("Session", (), {"precision": "int8"})
    monkeypatch.setattr(module, "write_graph", write)
    monkeypatch.setattr(module, "open_session", lambda artefact: session)
    monkeypatch.setattr(module, "judge_parity", judge)
    monkeypatch.setattr(module, "_probs_of", lambda *arguments: None)
    monkeypatch.setattr(Predictor, "of_artefact", lambda artefact: None)
    monkeypatch.setattr(
        module,
        "_settle",
        lambda made, folder, verdict, card: module.Exported(card.kind, None, verdict),
    )
    monkeypatch.setattr(module, "shares_of", lambda num_training: (16, 8))
    (one,) = export(fresh_run, ["openvino-int8"], max_drop=0.01)
    verdict = one.verdict
    if drop < 0.01:
        assert shares == [None]
    else:  # a quarter of the drop is allowed, and half of that is aimed at
        assert shares == [None, pytest.approx(0.125)]
        assert isinstance(verdict, Parity)
        assert verdict.plain is not None
        assert verdict.plain.accuracy == losing_by(0.04)
    assert verdict.passed


@pytest.fixture
def losing(exported_run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have every verdict on int8 say that accuracy falls by a half; list the kinds.

    The runs of these tests have the weights of `exported_run`, so its int8 graph is
    copied instead of made again, which would take seconds each time.
    """
    write_graph = module.write_graph

    def write(kind: Kind, source: Any, folder: Path, **options: Any) -> None:
        if kind == "openvino-int8" and not options:
            for path in (exported_run.path / "export" / kind).glob("graph.*"):
                shutil.copy(path, folder)
        else:
            write_graph(kind, source, folder, **options)

    monkeypatch.setattr(module, "write_graph", write)
    judged: list[str] = []
    real = module._Proof.judge

    def judge(self: Any, artefact: Any, bounds: Any) -> Parity:
        verdict: Parity = real(self, artefact, bounds)
        judged.append(artefact.card.kind)
        if artefact.card.kind != "openvino-int8":
            return verdict
        bad = {"passed": False, "reasons": ("labels flip on 2.png",)}
        return verdict.model_copy(update={"accuracy": losing_by(0.5), **bad})

    monkeypatch.setattr(module._Proof, "judge", judge)
    return judged


def test_few_training_images_are_shared_when_int8_is_made_with_care(
    tmp_path: Path, losing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", write_images(tmp_path / "data", num_each=20))
    real = module.write_graph
    taken: list[int] = []

    def write(kind: Kind, source: Any, folder: Path, **options: Any) -> None:
        if options:  # takes half a minute: tests of graph_files do it
            num_calibration, num_held_out = module.shares_of(source.num_training)
            last = num_calibration + num_held_out
            taken.append(len(source.training_images(num_calibration, last)))
        else:
            real(kind, source, folder)

    monkeypatch.setattr(module, "write_graph", write)
    first, second = export(run, ["torchscript", "openvino-int8"])
    assert losing == ["torchscript", "openvino-int8", "openvino-int8"]
    assert first.artefact is not None
    assert list(second.verdict.reasons) == ["labels flip on 2.png"]
    assert isinstance(second.verdict, Parity)
    assert second.verdict.plain is not None
    assert second.verdict.plain.reasons == ("labels flip on 2.png",)
    assert taken == [11]


def test_too_few_training_images_for_more_care_are_a_bad_verdict_like_any(
    exported_run: Run, fresh_run: Run, losing: list[str]
) -> None:
    folder = fresh_run.path / "export"
    old = exported_run.path / "export" / "openvino-int8"
    shutil.copytree(old, folder / "openvino-int8")
    first, second = export(fresh_run, ["torchscript", "openvino-int8"])
    assert losing == ["torchscript", "openvino-int8"]
    assert first.artefact is not None
    assert second.artefact is None
    assert list(second.verdict.reasons) == [
        "labels flip on 2.png",
        (
            "it was not made again with more care, which takes at least 34 training "
            "images, and the run has 24"
        ),
    ]
    assert not (folder / "openvino-int8").exists()
    kept = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    assert not kept["openvino-int8"]["passed"]


@pytest.mark.parametrize(
    "error", [ArtefactError("nncf: no"), DataError("disk full"), RunError("gone")]
)
def test_care_that_goes_wrong_leaves_the_plain_verdict_and_says_why(
    tmp_path: Path,
    losing: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: TumorlensError,
) -> None:
    real = module.write_graph

    def write(*arguments: Any, **options: Any) -> None:
        if options:
            raise error
        real(*arguments, **options)

    monkeypatch.setattr(module, "write_graph", write)
    run = make_run(tmp_path / "run", write_images(tmp_path / "data", num_each=20))
    (one,) = export(run, ["openvino-int8"])
    assert list(one.verdict.reasons) == [
        "labels flip on 2.png",
        f"it could not be made with more care: {error.problem}",
    ]
    assert isinstance(one.verdict, Parity)


def test_a_training_image_that_cannot_be_read_fails_int8_and_nothing_else(
    tmp_path: Path, fresh_run: Run, exported_run: Run
) -> None:
    data = tmp_path / "data"
    shutil.copytree(exported_run.path.parent / "data", data)
    (data / "glioma" / "0.png").write_bytes(b"no image")
    fresh_run.write_split(rows_of(data), CLEAN)
    first, second = export(fresh_run, ["onnx-int8", "torchscript"], data=data)
    assert first.artefact is not None
    assert second.artefact is None
    assert "glioma/0.png" in second.verdict.reasons[0]


def test_an_artefact_that_cannot_be_sealed_is_a_bad_verdict(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise DataError("cannot write model.json: no space")

    monkeypatch.setattr(module.artefact, "seal_artefact", full)
    (one,) = export(fresh_run, ["torchscript"])
    assert one.artefact is None
    assert list(one.verdict.reasons) == ["cannot write model.json: no space"]
    kept = json.loads((fresh_run.path / "export" / "parity.json").read_text("utf-8"))
    assert not kept["torchscript"]["passed"]


# a process that is killed

KILLED = """
import os, signal, sys
from pathlib import Path
from tumorlens.deploy import artefact
from tumorlens.deploy import export
from tumorlens.runs.folder import open_run

def kill(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)

where, name = sys.argv[2].split(":")
setattr({"artefact": artefact, "export": export}[where], name, kill)
export.export(open_run(Path(sys.argv[1])), ["torchscript"])
"""


@pytest.mark.parametrize(
    "moment",
    [
        *("export:judge_parity", "artefact:write_manifest"),
        "artefact:remove_artefact",
    ],
)
def test_a_killed_export_leaves_the_old_artefact_and_nothing_that_opens(
    exported_run: Run, tmp_path: Path, moment: str
) -> None:
    run = forget_exports(exported_run, tmp_path / "run")
    folder = run.path / "export"
    old = exported_run.path / "export" / "torchscript"
    shutil.copytree(old, folder / "torchscript")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(run.path), moment],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert open_artefact(folder / "torchscript").card.run == exported_run.name
    (left,) = folder.glob(".unproven-*")
    if moment != "artefact:remove_artefact":  # which comes after the seal
        assert not (left / "torchscript" / "manifest.json").exists()
        if is_artefact(left / "torchscript"):
            with pytest.raises(ArtefactError, match=r"no manifest\.json"):
                Predictor.open(left / "torchscript")
    export(run, ["torchscript"])
    assert sorted(path.name for path in folder.iterdir()) == [
        *("parity.json", "torchscript")
    ]


def test_the_scratch_of_a_process_that_still_runs_is_left_alone(
    fresh_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fresh_run.path / "export"
    other = folder / ".unproven-4711"
    other.mkdir(parents=True)
    (other / "graph.pt").write_bytes(b"half")
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    with locked(folder), pytest.raises(RunError, match=r"another command works in"):
        export(fresh_run, ["torchscript"])
    assert other.is_dir()
    export(fresh_run, ["torchscript"])
    assert sorted(path.name for path in folder.iterdir()) == [
        *("parity.json", "torchscript")
    ]


def test_what_no_export_wrote_is_not_removed_with_an_earlier_artefact(
    fresh_run: Run,
) -> None:
    folder = fresh_run.path / "export" / "torchscript"
    for _ in range(2):
        export(fresh_run, ["torchscript"])
        (folder / "notes.txt").write_text("works on the scanner's computer")
        (folder / "more").mkdir(exist_ok=True)
    assert open_artefact(folder).parity().passed
    remove_artefact(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["more", "notes.txt"]


def test_the_limits_of_the_run_s_settings_go_with_the_artefact(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data")
    large = next(data.glob("*/11.png"))
    with Image.open(large) as image:
        image.convert("RGB").resize((600, 600)).save(large)
    settings = {"data": {"max_pixels": 400_000, "max_file_mib": 3.0}}
    run = make_run(tmp_path / "run", data, settings=settings)
    assert Predictor.open(run.path).limits == ImageLimits(3 * 2**20, 400_000)
    (made,) = export(run, ["torchscript"])
    assert made.artefact is not None
    predictor = Predictor.open(made.artefact.path)
    assert predictor.limits == ImageLimits(3 * 2**20, 400_000)
    # Above the default, below the run's: with the default, val could not be read.
    settings = {"data": {"max_pixels": 300_000}}
    small = make_run(tmp_path / "small", data, settings=settings)
    (refused,) = Predictor.open(small.path).predict_files([large])
    assert "360000 pixels" in str(refused.error)
    (answer,) = predictor.predict_files([large])
    assert answer.error is None


# what cannot be exported


def test_a_run_with_folds_is_exported_fold_by_fold(tmp_path: Path) -> None:
    run = make_kfold_run(tmp_path / "run", write_images(tmp_path / "data"))
    with pytest.raises(RunError, match=r"is a run of 2 folds") as caught:
        export(run, ["torchscript"])
    assert caught.value.hint == f"export one fold: tumorlens export {run.fold_path(0)}"
    (one,) = export(run.folds()[0], ["torchscript"])
    assert one.artefact is not None


def test_an_unfinished_run_is_refused_with_a_command_that_can_be_pasted(
    exported_run: Run, tmp_path: Path
) -> None:
    run = forget_exports(exported_run, tmp_path / "my run")
    (run.path / "finished").unlink()
    with pytest.raises(RunError, match=r"the training of .*run is not") as caught:
        export(run, ["torchscript"])
    assert caught.value.hint == (
        f"finish it with: tumorlens train --resume --out '{run.path}'"
    )


def test_a_run_without_a_split_is_refused(fresh_run: Run) -> None:
    fresh_run.split_path.unlink()
    with pytest.raises(RunError, match=r"has no split\.csv"):
        export(fresh_run, ["torchscript"])


def test_a_run_without_val_images_is_refused(fresh_run: Run, exported_run: Run) -> None:
    data = exported_run.path.parent / "data"
    fresh_run.write_split(rows_of(data, lambda number: "train"), CLEAN)
    with pytest.raises(RunError, match=r"no image in subset 'val'"):
        export(fresh_run, ["torchscript"])


def test_int8_without_training_images_fails_and_the_others_are_made(
    fresh_run: Run, exported_run: Run
) -> None:
    data = exported_run.path.parent / "data"
    fresh_run.write_split(rows_of(data, lambda number: "val"), CLEAN)
    first, second = export(fresh_run, ["onnx-int8", "torchscript"])
    assert first.artefact is not None
    assert second.artefact is None
    assert list(second.verdict.reasons) == [
        f"int8 takes its ranges from training images, and {fresh_run.path} has none"
    ]


def test_data_that_moved_is_found_by_name_and_changed_data_refused(
    fresh_run: Run, tmp_path: Path, exported_run: Run
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(exported_run.path.parent / "data", moved)
    (one,) = export(fresh_run, ["torchscript"], data=moved)
    assert one.artefact is not None
    (moved / "glioma" / "0.png").unlink()
    with pytest.raises(RunError, match=r"1 file\(s\) differ, .* glioma/0\.png"):
        export(fresh_run, ["torchscript"], data=moved)


def test_a_val_image_that_cannot_be_read_is_named(
    tmp_path: Path, fresh_run: Run, exported_run: Run
) -> None:
    data = tmp_path / "data"
    shutil.copytree(exported_run.path.parent / "data", data)
    (data / "glioma" / "2.png").write_bytes(b"no image")
    fresh_run.write_split(rows_of(data), CLEAN)
    with pytest.raises(RunError, match=r"cannot be read any more: .*glioma/2\.png"):
        export(fresh_run, ["torchscript"], data=data)


def test_an_ensemble_is_one_graph_and_of_two_sizes_it_is_refused(
    tmp_path: Path,
) -> None:
    data = write_images(tmp_path / "data")
    runs = [
        make_run(tmp_path / name, data, seed=seed, size_px=size_px)
        for name, seed, size_px in (("a", 1, 32), ("b", 2, 32), ("c", 3, 64))
    ]
    together = make_ensemble([runs[0].path, runs[1].path], out=tmp_path / "ab")
    (one,) = export(together, ["torchscript"])
    assert one.artefact is not None
    assert one.artefact.card.networks == ("test_resnet", "test_resnet")
    mixed = make_ensemble([runs[0].path, runs[2].path], out=tmp_path / "ac")
    with pytest.raises(RunError, match=r"32 px pad, 64 px pad") as caught:
        export(mixed, ["torchscript"])
    assert caught.value.hint == "export the members by themselves"


def test_a_folder_that_cannot_be_written_is_one_clear_error(fresh_run: Run) -> None:
    (fresh_run.path / "export").write_text("a file", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot write .*export: ") as caught:
        export(fresh_run, ["torchscript"])
    assert caught.value.hint == "choose another folder"


# the command


def test_the_command_prints_a_table_and_nothing_of_the_libraries(
    fresh_run: Run, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    places = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "TMPDIR")
    code = "import sys; from tumorlens.cli import app; sys.exit(app.main(sys.argv[1:]))"
    words = ["export", str(fresh_run.path)]
    words += ["--format", "onnx-int8", "--format", "openvino-int8"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **dict.fromkeys(places, str(home))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "compared on 12 val images, from file to label"
    assert lines[1].split()[:2] == ["format", "size"]
    assert [line.split()[0] for line in lines[2:4]] == ["onnx-int8", "openvino-int8"]
    assert all(line.split()[-1] == "good" for line in lines[2:4])
    folder = fresh_run.path / "export"
    for line, kind in zip(lines[4:6], ("onnx-int8", "openvino-int8"), strict=True):
        assert line.startswith(f"{kind}: a loss of more than 1 point is not excluded")
    assert lines[6] == f"the artefacts are in {folder}"
    assert lines[7] == f"next: tumorlens predict {folder / 'openvino-int8'} IMAGE"
    # Usage data would be noted below the home folder.
    assert [path.name for path in home.rglob("*")] == []


def test_the_command_ends_with_an_error_when_a_verdict_is_bad(
    fresh_run: Run, judged: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    judged |= {"passed": False, "reasons": ("the label of a.png flips",)}
    words = ["export", str(fresh_run.path), "--format", "torchscript"]
    assert app.main(words) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[2].split()[-1] == "failed"
    assert out.splitlines()[3:] == ["torchscript: the label of a.png flips"]
    assert err.splitlines() == [
        "error: no artefact was written for torchscript: the label of a.png flips",
        f"hint: {fresh_run.path / 'export' / 'parity.json'} has every difference",
    ]


def test_the_command_says_when_a_bad_verdict_removes_the_earlier_artefact(
    exported_run: Run,
    fresh_run: Run,
    judged: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fresh_run.path / "export" / "torchscript"
    shutil.copytree(exported_run.path / "export" / "torchscript", folder)
    judged |= {"passed": False, "reasons": ("the label of a.png flips",)}
    words = ["export", str(fresh_run.path), "--format", "torchscript"]
    assert app.main(words) == 2
    assert capsys.readouterr().out.splitlines()[3:] == [
        "torchscript: the label of a.png flips",
        "torchscript: the earlier one was removed",
    ]
    assert not folder.exists()


def test_an_unknown_format_is_named_with_what_it_may_mean(
    fresh_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["export", str(fresh_run.path), "--format", "onx"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown --format 'onx'",
        "hint: did you mean 'onnx'?",
    ]


def test_all_leaves_out_what_the_processor_cannot_do_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tumorlens.cli import deploy

    monkeypatch.setattr(module, "has_bf16", lambda: False)
    kinds = [kind for kind in KINDS if kind != "openvino-bf16"]
    assert deploy._kinds_to_export(["all"]) == kinds
    assert capsys.readouterr().out == (
        "left out: openvino-bf16, which this processor does not compute\n"
    )
