"""`tumorlens predict` as a person meets it, with artefacts and without torch."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import tumorlens
from support.missing_libraries import HEAVY, without
from support.working_artefacts import make_artefact, probs_by_hand
from tumorlens import config
from tumorlens.cli import app, predict
from tumorlens.deploy import artefact

if TYPE_CHECKING:
    from collections.abc import Callable

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of plain images, from black to red."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def ask(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = app.main(["predict", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def gliomas() -> list[float]:
    reds = np.zeros((6, 1, 1, 3), np.uint8)
    reds[:, 0, 0, 0] = [50 * number for number in range(6)]
    return [float(prob) for prob in probs_by_hand(reds)[:, 0]]


def gliomas_in(out: Path) -> list[float]:
    rows = csv.DictReader(out.read_text("utf-8").splitlines())
    return [float(row["prob_glioma"]) for row in rows]


def test_models_in_folders_of_one_name_are_told_apart_by_the_shortest_path() -> None:
    paths = [Path("/runs/a/first"), Path("/runs/b/first"), Path("/runs/b/second")]
    assert predict._told_apart(paths) == ["a/first", "b/first", "second"]
    assert predict._told_apart(paths[:1] * 2) == ["first", "first"]


def test_models_of_one_name_have_names_of_their_own_in_the_file(
    ask: Callable[..., tuple[int, str, str]], images: Path, tmp_path: Path
) -> None:
    one, other = (
        make_artefact(tmp_path / name / "onnx", kind="onnx") for name in ("a", "b")
    )
    out = tmp_path / "out.csv"
    status, _, _ = ask(one.path, images, "--run", other.path, "--out", out)
    assert status == 0
    rows = csv.DictReader(out.read_text("utf-8").splitlines())
    assert {row["run"] for row in rows} == {"a/onnx", "b/onnx"}


# Without torch


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_artefact_needs_its_own_runtime_and_nothing_of_training(
    kind: str, images: Path, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / kind, kind)  # type: ignore[arg-type]
    out = tmp_path / "out.csv"
    code = (
        "import sys; from tumorlens.cli import app;"
        f"status = app.main(['predict', {str(artefact.path)!r}, {str(images)!r}, "
        f"'--out', {str(out)!r}]);"
        # Both take longer to import than a picture takes to predict.
        "assert not {'tumorlens.config', 'pydicom'} & set(sys.modules);"
        "sys.exit(status)"
    )
    done = without(HEAVY - {RUNTIMES[kind]}, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert gliomas_in(out) == pytest.approx(gliomas(), abs=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_missing_runtime_is_named_with_its_pip_line(
    kind: str, images: Path, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / kind, kind)  # type: ignore[arg-type]
    code = (
        "import sys; from tumorlens.cli import app;"
        f"sys.exit(app.main(['predict', {str(artefact.path)!r}, {str(images)!r}]))"
    )
    done = without({RUNTIMES[kind]}, code)
    assert done.returncode == 2
    assert f"library '{RUNTIMES[kind]}', which is not installed" in done.stderr
    assert 'hint: pip install "tumorlens[runtime]"' in done.stderr


def closure(requirement: str) -> set[str]:
    """Return the names of everything that installing a requirement brings."""
    seen: set[str] = set()
    waiting = [requirement]
    while waiting:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", waiting.pop()).groups()  # type: ignore[union-attr]
        key = f"{name.lower().replace('_', '-')}[{extras or ''}]"
        if key in seen:
            continue
        seen.add(key)
        try:
            found = requires(name) or []
        except PackageNotFoundError:  # for another system or Python
            continue
        for line in found:
            asked = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
            if asked is None or asked[1] in (extras or "").split(","):
                waiting.append(line)
    return {key.partition("[")[0] for key in seen}


def test_the_runtime_extra_brings_nothing_of_training() -> None:
    brought = closure("tumorlens[runtime]")
    assert {"onnxruntime", "openvino", "numpy", "pillow", "pydicom"} <= brought
    heavy = {"scikit-learn", "matplotlib", "scipy", "pandas", "onnx", "nncf"}
    assert not brought & (heavy | {"torch", "timm", "torchvision", "accelerate"})
    # That the search sees what an extra brings:
    assert {"torch", "timm"} <= closure("tumorlens[train]")


def test_an_artefact_knows_the_fits_of_the_settings() -> None:
    assert artefact.Fit == config.Fit


# The fastest


def test_the_best_artefact_of_a_run_is_named_and_used(
    ask: Callable[..., tuple[int, str, str]], images: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for kind in RUNTIMES:
        make_artefact(run / "export" / kind, kind)  # type: ignore[arg-type]
    status, out, err = ask("--best", run, images / "5.png")
    assert status == 0
    assert re.match(r"the fastest here is (onnx|openvino) \(per image: ", err)
    assert f"{images / '5.png'}: glioma" in out.replace("\n", "")


def test_a_run_without_artefacts_has_no_best(
    ask: Callable[..., tuple[int, str, str]], images: Path, tmp_path: Path
) -> None:
    status, out, err = ask("--best", tmp_path / "run", images)
    assert (status, out) == (2, "")
    assert f"hint: tumorlens export {tmp_path / 'run'} --format all" in err


# Many files


def test_more_files_than_a_table_holds_come_in_tables(
    ask: Callable[..., tuple[int, str, str]],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "TABLE_FILES", 4)
    artefact = make_artefact(tmp_path / "onnx")
    (images / "5.png").write_bytes(b"")
    status, out, err = ask(artefact.path, images)
    assert status == 3
    assert err == "1 file could not be read\n"
    rows = [line.split() for line in out.splitlines()]
    assert [row[0] for row in rows].count("file") == 2
    # A long error is broken into lines.
    names = [row[0].rstrip(":") for row in rows if row[0].startswith(str(images))]
    assert names == [str(images / f"{number}.png") for number in range(6)]


# A shell that starts the tests in the background has them ignore Ctrl-C.
MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tumorlens.cli import app
sys.exit(app.main(sys.argv[1:]))
"""


def test_a_killed_prediction_is_gone_on_with(
    ask: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / "onnx")
    many = tmp_path / "many"
    many.mkdir()
    picture = tmp_path / "large.jpg"
    Image.new("RGB", (700, 700), (90, 0, 0)).save(picture)
    for number in range(600):
        (many / f"{number:03}.jpg").symlink_to(picture)
    (many / "007.jpg").unlink()
    (many / "007.jpg").write_bytes(b"no image")
    out, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    words = [artefact.path, many, "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "predict", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(Path(tumorlens.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (part.exists() and part.read_bytes().count(b"\n") > 40):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == (
        f"go on by the same command and --resume: {part}\nstopped\n"
    )
    assert process.returncode == 130
    assert not out.exists()

    status, _, err = ask(*words)
    assert status == 2
    assert "error: " in err
    assert str(part) in err
    num_before = part.read_bytes().count(b"\n") - 1
    assert 40 <= num_before < 600
    status, said, err = ask(*words, "--resume")
    assert (status, said) == (3, f"the probabilities are in {out}\n")
    assert err == "1 file could not be read\n"
    assert not part.exists()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).stem for row in rows] == [f"{n:03}" for n in range(600)]
    assert [bool(row["error"]) for row in rows] == [n == 7 for n in range(600)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume"], "there is no --out"),
        (["--resume", "--out", "x.csv"], "x.csv.part does not exist"),
        (["--out", "x.txt"], "got 'x.txt'"),
        (["--out", "images/0.png/x.csv"], "cannot write images/0.png/x.csv.part"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    ask: Callable[..., tuple[int, str, str]],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_artefact(tmp_path / "onnx")
    status, out, err = ask("onnx", "images", *words)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 2
