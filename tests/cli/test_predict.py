"""`tumorlens predict` as a person meets it, with artefacts and without torch."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as parquet
import pydicom
import pytest
from PIL import Image
from pydicom import uid

import tumorlens
from support.images import CLASSES, draw_image
from support.missing_libraries import HEAVY, without
from support.mr_volumes import IDENTITY, mr_slice, write, write_media, write_study
from support.runs_on_images import make_run
from support.working_artefacts import make_artefact, probs_by_hand
from tumorlens import config
from tumorlens.cli import app, predict
from tumorlens.deploy import artefact, series
from tumorlens.report import dicom_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from tumorlens.deploy.artefact import Kind

RUNTIMES: dict[Kind, str] = {"onnx": "onnxruntime", "openvino": "openvino"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of plain images, from black to red."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return a function that runs `predict` and gives its status and its words."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        status = app.main(["predict", *map(str, words)])
        return Answer(status, *capsys.readouterr())

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


@pytest.mark.parametrize("num_models", [1, 2])
@pytest.mark.parametrize("shown", ["file", "table"])
def test_what_is_passed_over_in_a_folder_is_counted_once(
    ask: Callable[..., Answer],
    images: Path,
    tmp_path: Path,
    shown: str,
    num_models: int,
) -> None:
    paths = [make_artefact(tmp_path / name / "onnx", kind="onnx").path for name in "ab"]
    (images / "0.png").rename(images / "0.jfif")
    (images / "1.png").rename(images / "one")
    (images / "notes.txt").write_text("no image")
    Image.new("L", (9, 9)).save(images / "a.webp")
    (images / "again").symlink_to(images)
    more = ["--run", paths[1]] if num_models == 2 else []
    out = ["--out", tmp_path / "out.csv"] if shown == "file" else []
    answer = ask(paths[0], images, *more, *out)
    assert answer.status == 0
    assert answer.err.strip() == "skipped: 1 x .txt, 1 x .webp, 1 x link to a folder"
    listed = (tmp_path / "out.csv").read_text() if shown == "file" else answer.out
    assert "0.jfif" in listed
    assert "one" in listed
    found = tumorlens.predict(paths[0], images)
    assert len(found) == 6
    assert found.skipped == {".txt": 1, ".webp": 1, "link to a folder": 1}


def test_a_strip_costs_no_more_than_its_own_row(
    ask: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / "onnx", kind="onnx")
    for name, width in (("long", 60_000), ("longer", 1_500_000)):
        Image.new("L", (width, 4), 200).save(images / f"{name}.png")
    answer = ask(artefact.path, images, "--out", tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text("utf-8").splitlines()))
    errors = {Path(row["path"]).stem: row["error"] for row in rows if row["error"]}
    assert answer.status == 3
    assert len(rows) == 8
    assert set(errors) == {"longer"}
    assert errors["longer"].startswith("has 1500000 x 4 pixels, and no side may be")


# Without torch


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_artefact_needs_its_own_runtime_and_nothing_of_training(
    kind: Kind, images: Path, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / kind, kind)
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
    kind: Kind, images: Path, tmp_path: Path
) -> None:
    artefact = make_artefact(tmp_path / kind, kind)
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
        parts = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", waiting.pop())
        assert parts is not None
        name, extras = parts.groups()
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
        make_artefact(run / "export" / kind, kind)
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
        f"to continue, repeat the command with --resume: {part}\nstopped\n"
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
        (["--out", "images/0.png/x.csv"], "cannot write images/0.png/x.csv: "),
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


# DICOM series


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("runs") / "data"
    for label in CLASSES:
        (data / label).mkdir(parents=True)
        for number in range(4):
            image = Image.fromarray(draw_image(label, number, size_px=48))
            image.save(data / label / f"{number}.png")
    return make_run(data.parent / "run", data).path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", num_series=2, num_slices=3)


def assert_refused(answer: Answer, *words: str) -> None:
    """Check for one `error:` line with the words in it, one `hint:` line, status 2."""
    assert answer.status == 2, answer
    first, second = answer.err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("hint: ")
    for word in words:
        assert word in first, first


def probs_of(row: dict[str, Any]) -> list[float]:
    return [float(row[f"prob_{name}"]) for name in CLASSES]


def rows_in(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return rows


def test_a_folder_gives_a_row_per_slice_and_one_per_series(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.json"
    answer = ask(run, study, "--out", out)
    assert (answer.status, answer.err) == (0, "skipped: 1 x SR\n")
    rows = rows_in(out)
    assert [row["kind"] for row in rows] == [*["slice"] * 3, "series"] * 2
    assert [row["series"] for row in rows] == [1] * 4 + [2] * 4
    assert [row["slice"] for row in rows[:3]] == [1, 2, 3]
    assert [row["path"][-4:] for row in rows[:4] if row["path"]] == [
        *("0003", "0002", "0001")
    ]
    for start in (0, 4):
        mean = np.mean([probs_of(row) for row in rows[start : start + 3]], axis=0)
        assert probs_of(rows[start + 3]) == pytest.approx(mean, abs=1e-6)
    assert rows[3]["rule"] == "mean of 3 slices"
    assert rows[3]["order"] == "position"
    assert rows[3]["path"] is None


def test_the_rule_can_be_chosen_and_is_stated_everywhere(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    tables = {}
    for suffix in ("csv", "json", "jsonl", "parquet"):
        out = tmp_path / f"x.{suffix}"
        words = (run, study, "--series-rule", "most-suspicious", "--out", out)
        assert ask(*words).status == 0
        tables[suffix] = out
    rows = rows_in(tables["json"])
    tumors = [n for n, name in enumerate(CLASSES) if name != "no_tumor"]
    suspicion = [max(probs_of(row)[n] for n in tumors) for row in rows[:3]]
    at = int(np.argmax(suspicion))
    assert probs_of(rows[3]) == probs_of(rows[at])
    assert rows[3]["slice"] == at + 1
    stated = f"most suspicious of 3 slices: slice {at + 1}"
    assert rows[3]["rule"] == stated
    lines = tables["jsonl"].read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert parquet.read_table(tables["parquet"]).to_pylist() == rows
    with tables["csv"].open(encoding="utf-8", newline="") as file:
        as_text = list(csv.DictReader(file))
    assert as_text[3]["rule"] == stated
    assert [probs_of(row) for row in as_text] == [probs_of(row) for row in rows]
    shown = ask(run, study, "--series-rule", "most-suspicious").out
    assert stated in shown


def test_a_dicomdir_answers_as_its_files_do(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    media = write_media(tmp_path / "cd", num_series=2, num_slices=2)
    out = tmp_path / "x.json"
    for place in (media, media.parent):
        assert ask(run, place, "--out", out).status == 0
        assert [row["kind"] for row in rows_in(out)] == [*["slice"] * 2, "series"] * 2


def test_one_dicom_file_is_a_picture_like_any_other(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    frames = np.stack([draw_image("glioma", n, size_px=48) for n in range(5)])
    dataset = mr_slice(frames, study_uid="1.2", series_uid=uid.generate_uid(), number=1)
    path = write(tmp_path / "x.dcm", dataset)
    out = tmp_path / "x.json"
    assert ask(run, path, "--out", out).status == 0
    (plain,) = rows_in(out)
    assert "series" not in plain
    assert ask(run, path, "--series", "--out", out).status == 0
    rows = rows_in(out)
    assert [row["frame"] for row in rows] == [1, 2, 3, 4, 5, None]
    assert probs_of(rows[2]) == pytest.approx(probs_of(plain), abs=1e-6)
    assert ask(run, tmp_path, "--no-series", "--out", out).status == 0
    assert rows_in(out) == [plain]


def test_ordinary_images_beside_a_study_keep_their_rows(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    image = run.parent / "data" / "glioma" / "0.png"
    out = tmp_path / "x.json"
    ask(run, image, "--out", out)
    (alone,) = rows_in(out)
    ask(run, image, study, "--out", out)
    beside = rows_in(out)[0]
    assert beside["kind"] == "image"
    assert beside["series"] is None
    assert {name: beside[name] for name in alone} == pytest.approx(alone)


def test_a_file_that_cannot_be_read_is_a_row_and_status_3(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    bad = study / "SE1" / "IM0002"
    bad.write_bytes(bad.read_bytes()[:-4000])
    out = tmp_path / "x.json"
    answer = ask(run, study, "--out", out)
    assert answer.status == 3
    assert "1 file could not be read" in answer.err
    rows = rows_in(out)
    assert rows[1]["path"] == str(bad)
    assert rows[1]["error"]
    assert rows[3]["rule"] == "mean of 2 of 3 slices"


@pytest.mark.parametrize("among", ["images", "series"])
def test_a_link_to_nothing_and_a_pipe_are_rows_and_status_3(
    ask: Callable[..., Answer], run: Path, tmp_path: Path, among: str
) -> None:
    folder = tmp_path / "study"
    if among == "series":
        write_study(folder, num_series=1)
    folder.mkdir(exist_ok=True)
    (folder / "link.png").symlink_to(tmp_path / "nowhere")
    (folder / "link.dcm").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    out = tmp_path / "x.json"
    answer = ask(run, folder, "--out", out)
    assert answer.status == 3
    assert "3 files could not be read" in answer.err
    errors = {
        Path(row["path"]).name: row["error"] for row in rows_in(out) if row["error"]
    }
    assert errors == {
        "link.dcm": "cannot be opened: No such file or directory",
        "link.png": "cannot be opened: No such file or directory",
        "pipe.png": "is not a regular file",
    }


def test_a_damaged_copy_is_a_row_beside_its_slice(
    ask: Callable[..., Answer],
    run: Path,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = study / "SE1" / "IM0002"
    bad = study / "SE1" / "A"
    bad.write_bytes(whole.read_bytes()[:-4000])
    shutil.copy(whole, study / "SE1" / "B")
    out = tmp_path / "x.json"
    words = (run, study, "--out", out)
    answer = ask(*words)
    assert answer.status == 3
    assert "skipped: 1 x SR, 1 x copy" in answer.err
    assert "1 file could not be read" in answer.err
    rows = rows_in(out)
    assert (rows[0]["path"], rows[0]["kind"]) == (str(bad), "image")
    assert rows[0]["error"].startswith("is damaged: ")
    assert rows[4]["rule"] == "mean of 3 slices"
    assert not any(row["error"] for row in rows[1:])
    # A session that was stopped has that row, and goes on behind it.
    inner = series.answer_series
    monkeypatch.setattr(series, "answer_series", stop)
    assert ask(*words).status == 130
    monkeypatch.setattr(series, "answer_series", inner)
    assert ask(*words, "--resume").status == 3
    assert rows_in(out) == rows


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_several_runs_answer_one_after_the_other(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", run.parent / "data", seed=1).path
    out = tmp_path / "x.json"
    ask(run, study, "--run", other, "--out", out)
    assert [row["run"] for row in rows_in(out)] == ["run"] * 8 + ["other"] * 8
    shown = ask(run, study, "--run", other).out
    assert shown.splitlines()[0].split()[:5] == [
        *("series", "slice", "file", "run", "predicted")
    ]


def test_results_are_written_as_dicom(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    out, table = tmp_path / "results", tmp_path / "x.json"
    answer = ask(run, study, "--dicom-out", out, "--out", table)
    assert answer.status == 0
    assert "the patient's identity" in answer.err
    names = [f"series-{n}-{kind}.dcm" for n in (1, 2) for kind in ("page", "sr")]
    assert sorted(path.name for path in out.iterdir()) == names
    assert len(rows_in(table)) == 8
    # Identity goes into the DICOM files, and nowhere else.
    written = (answer.out + answer.err + table.read_text()).replace(str(tmp_path), "")
    assert not {value for value in identifying(study) if value in written}
    # Laid beside the study, they are not taken for images of the patient.
    again = ask(run, study, out)
    assert "4 x result of tumorlens" in again.err


def test_files_of_no_series_have_a_row_and_no_dicom_result(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    (study / "empty.dcm").touch()
    shutil.copy(run.parent / "data" / "glioma" / "0.png", study)
    out, table = tmp_path / "results", tmp_path / "x.json"
    answer = ask(run, study, "--dicom-out", out, "--out", table)
    assert answer.status == 3
    written = f"the DICOM results of 2 series are in {out}"
    assert answer.err.splitlines() == [
        f"{written}; they carry the patient's identity",
        "of no series, so without a DICOM result: 2 files",
        "skipped: 1 x SR",
        "1 file could not be read",
    ]
    assert len([*out.iterdir()]) == 4
    image, empty = rows_in(table)[:2]
    assert (image["kind"], image["error"]) == ("image", None)
    assert (empty["kind"], empty["error"]) == ("image", "is empty (0 bytes)")


class _Stopped:
    """A `write_results` during which somebody presses Ctrl-C at the second series."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.num = inner, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.num += 1
        if self.num == 2:
            raise KeyboardInterrupt
        return self.inner(*arguments, **options)


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_a_stopped_study_goes_on_with_the_series_that_are_left(
    ask: Callable[..., Answer],
    run: Path,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    image = run.parent / "data" / "glioma" / "0.png"
    shutil.copy(image, study / "plain.png")
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"x.{suffix}"
    assert ask(run, study, "--out", whole).status == 0
    asked: list[int] = []
    inner = series.answer_series

    def answer_series(predictor: Any, series: Any, **options: Any) -> Any:
        asked.append(series.number)
        if asked == [1, 2]:
            raise KeyboardInterrupt
        return inner(predictor, series, **options)

    monkeypatch.setattr(series, "answer_series", answer_series)
    stopped = ask(run, study, "--out", out)
    assert stopped.status == 130
    assert f"to continue, repeat the command with --resume: {out}.part" in stopped.err
    assert not out.exists()
    assert ask(run, study, "--out", out, "--resume").status == 0
    assert asked == [1, 2, 2]
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / f"x.{suffix}.part").exists()


def test_a_series_has_its_dicom_results_before_it_counts_as_done(
    ask: Callable[..., Answer],
    run: Path,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, table = tmp_path / "results", tmp_path / "x.json"
    words = (run, study, "--dicom-out", out, "--out", table)
    stop = _Stopped(dicom_results.write_results)
    monkeypatch.setattr(dicom_results, "write_results", stop)
    assert ask(*words).status == 130
    assert {path.name for path in out.iterdir()} == {
        *("series-1-page.dcm", "series-1-sr.dcm")
    }
    done = ask(*words, "--resume")
    assert done.status == 0
    assert "the DICOM results of 2 series are in" in done.err
    assert stop.num == 3
    assert len([*out.iterdir()]) == 4


# What is typed wrongly


def test_an_unknown_rule_is_refused(
    ask: Callable[..., Answer], run: Path, study: Path
) -> None:
    answer = ask(run, study, "--series-rule", "median")
    assert_refused(answer, "'median'", "most-suspicious")


def test_an_unknown_class_is_refused(
    ask: Callable[..., Answer], run: Path, study: Path
) -> None:
    answer = ask(run, study, "--no-tumor-class", "no_tumour")
    assert_refused(answer, "'no_tumour'")
    assert "did you mean 'no_tumor'?" in answer.err


def test_no_series_does_not_go_with_options_about_series(
    ask: Callable[..., Answer], run: Path, study: Path
) -> None:
    answer = ask(run, study, "--no-series", "--identify")
    assert_refused(answer, "--no-series, but --identify is for series")


def test_a_study_without_images_is_refused(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    folder = write_study(tmp_path / "reports", num_series=0)
    assert_refused(ask(run, folder), "no image in", "only 1 x SR")


def test_a_dicomdir_that_points_outside_is_refused(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    media = write_media(tmp_path / "cd", num_series=1, num_slices=1)
    content = media.read_bytes()
    at = content.rindex(b"IM000000")
    media.write_bytes(content[:at] + b"../../XX" + content[at + 8 :])
    assert_refused(ask(run, media), "outside the folder", "../../XX")


def test_dicom_results_without_a_series_are_refused(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    image = run.parent / "data" / "glioma" / "0.png"
    answer = ask(run, image, "--dicom-out", tmp_path / "out")
    assert_refused(answer, "--dicom-out needs a DICOM series", str(image))
    assert not (tmp_path / "out").exists()


def test_dicom_results_beside_those_of_another_patient_are_refused(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert ask(run, study, "--dicom-out", out).status == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = write_study(tmp_path / "other", num_series=1)
    answer = ask(run, other, "--dicom-out", out)
    assert_refused(answer, f"{out} holds results already")
    assert answer.out == ""
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_dicom_results_of_several_runs_are_refused(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    answer = ask(run, study, "--run", run, "--dicom-out", tmp_path / "out")
    assert_refused(answer, "--dicom-out takes one run, got 2")


def test_a_place_that_cannot_be_written_is_refused(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    answer = ask(run, study, "--dicom-out", tmp_path / "file")
    assert_refused(answer, f"cannot write {tmp_path / 'file'}")


def test_dicom_results_without_highdicom_name_the_extra(
    ask: Callable[..., Answer],
    run: Path,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("highdicom")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without("highdicom"), *sys.meta_path])
    answer = ask(run, study, "--dicom-out", tmp_path / "out")
    assert_refused(answer, "'highdicom', which is not installed")
    assert 'pip install "tumorlens[dicom]"' in answer.err


class _Without:
    """A finder for which one library is not there."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# Privacy


def identifying(study: Path) -> set[str]:
    """Return every value of the headers that could lead to the patient."""
    values = set(IDENTITY.values())
    for value in IDENTITY.values():
        values |= {part for part in value.split("^") if len(part) > 3}
    for path in study.rglob("IM*"):
        dataset = pydicom.dcmread(path)
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            values.add(str(dataset[name].value))
    return values


@pytest.mark.parametrize("how", ["study", "media", "damaged", "strange", "plain"])
def test_nothing_that_identifies_a_patient_is_written(
    ask: Callable[..., Answer], run: Path, tmp_path: Path, how: str
) -> None:
    if how == "media":
        place = write_media(tmp_path / "cd", num_series=1).parent
    else:
        place = write_study(tmp_path / "study", num_series=1)
    values = identifying(place)
    paths = sorted(place.rglob("IM*"))
    for number, path in enumerate(paths):
        content = path.read_bytes()
        if how == "damaged":  # cut within the header, or within the pixels
            path.write_bytes(content[: 900 if number else -3000])
        if how == "strange":  # a name and a number where other things belong
            name = b"Quibble^Zephyrine".ljust(26, b"!")
            content = content.replace(b"1.2.840.10008.5.1.4.1.1.4\0", name)
            content = content.replace(b"-120\\-120\\0.0", b"MRN-7741963\\1")
            path.write_bytes(content)
    words = [*paths, "--no-series"] if how == "plain" else [place]
    written = "".join(ask(run, *words)[1:])
    for suffix in ("csv", "json", "jsonl"):
        out = tmp_path / f"x.{suffix}"
        answer = ask(run, *words, "--out", out)
        assert answer.status in (0, 3), answer
        written += answer.out + answer.err + out.read_text(encoding="utf-8")
    assert written.count(str(paths[0])) >= 3
    written = written.replace(str(tmp_path), "")
    assert not {value for value in values if value in written}


def test_the_patient_is_named_when_asked_for(
    ask: Callable[..., Answer], run: Path, study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.json"
    assert ask(run, study, "--identify", "--out", out).status == 0
    assert {row["patient"] for row in rows_in(out)} == {IDENTITY["PatientID"]}
    others = {value for name, value in IDENTITY.items() if name != "PatientID"}
    assert not [value for value in others if value in out.read_text()]
    assert IDENTITY["PatientID"] in ask(run, study, "--identify").out
