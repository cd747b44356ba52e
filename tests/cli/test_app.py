"""The command line as a person meets it: what it prints, and with which status."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pytest
import torch
from PIL import Image

import tumorlens
from support.images import CLASSES, draw_image
from support.planted_sets import PLANTED, make_two_sets
from tumorlens import config
from tumorlens.cli import app, options, terminal
from tumorlens.data.index import read_split, write_split
from tumorlens.deploy.benchmark.session import _val_files
from tumorlens.errors import RunError
from tumorlens.runs import folder

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = {
    "model.name": "test_resnet",
    "model.pretrained": "no",
    "model.size_px": "32",
    "optim.epochs": "1",
    "train.precision": "fp32",
    "train.device": "cpu",
}
"""Settings with which a training takes a second."""


REPOSITORY = Path(__file__).parents[2]


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Ask = "Callable[..., Answer]"


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Return a function that runs one command and gives its status and its words."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        status = app.main([str(word) for word in words])
        return Answer(status, *capsys.readouterr())

    return run


def small(cache: Path, **changes: str) -> list[str]:
    """Return `--set` options for a quick training that keeps its cache to itself."""
    settings = SMALL | {"data.cache_dir": str(cache)}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return [word for item in settings.items() for word in ("--set", "=".join(item))]


def draw_folder(root: Path, *, num_each: int = 12) -> Path:
    for seed in range(num_each):
        for label in CLASSES:
            (root / label).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(draw_image(label, seed, size_px=48))
            image.save(root / label / f"{seed}.png")
    return root


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `data` and `run`, which was trained and evaluated on it."""
    root = tmp_path_factory.mktemp("cli")
    data = draw_folder(root / "data")
    words = ["train", "--data", data, "--out", root / "run", *small(root / "cache")]
    assert app.main([str(word) for word in words]) == 0
    assert app.main(["evaluate", str(root / "run")]) == 0
    return root


@pytest.fixture
def run(work: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run that a test may damage."""
    return Path(shutil.copytree(work / "run", tmp_path / "run"))


def assert_refused(answer: Answer, *words: str) -> None:
    """Check for one `error:` line with the words in it, one `hint:` line, status 2."""
    assert answer.status == 2, answer
    first, *rest = [line for line in answer.err.splitlines() if line]
    assert first.startswith("error: ")
    assert len(rest) == 1
    assert rest[0].startswith("hint: ")
    assert len(rest[0]) > len("hint: ")
    for word in words:
        assert word in first, first
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: not enough")],
)
def test_want_of_memory_is_one_line_in_every_command(
    ask: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tumorlens.data.overlap.read_sets", fail)
    answer = ask("audit", tmp_path / "images", "--out", tmp_path / "out")
    assert_refused(answer, "memory ran out")


# What is typed wrongly


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["phantm", "x"], "'phantm'. Did you mean 'phantom'?"),
        (["train"], "Missing option '--out'"),
        (["evaluate"], "neither RUN nor --predictions is given"),
        (["evaluate", "run", "--partial"], "--partial has no effect without --pred"),
        (["evaluate", "--predictions", "a.csv"], "--predictions needs the images"),
        (
            ["evaluate", "run", "--predictions", "a.csv"],
            "RUN has no effect with --predictions",
        ),
        (
            ["evaluate", "--predictions", "a.csv", "--device", "cpu"],
            "--device has no effect with --predictions",
        ),
        (["evaluate", "run", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu'"),
        (["evaluate", "run", "--subst", "val"], "No such option: --subst"),
        (["phantom", "x", "--patients", "many"], "Invalid value for '--patients'"),
        (
            ["split", "x", "--out", "y", "--protocol", "random"],
            "'random' is not one of",
        ),
    ],
)
def test_a_usage_error_looks_like_every_other_error(
    ask: Callable[..., Answer], words: list[str], said: str
) -> None:
    assert_refused(ask(*words), said)


def test_the_hint_of_a_usage_error_is_the_help_of_that_command(
    ask: Callable[..., Answer],
) -> None:
    assert ask("train").err.endswith("hint: see tumorlens train --help\n")
    assert ask("nosuch").err.endswith("hint: see tumorlens --help\n")


def test_without_a_command_the_help_is_shown(ask: Callable[..., Answer]) -> None:
    assert ask() == ask("--help")
    assert ask().status == 0


def test_the_version_is_that_of_the_package(ask: Callable[..., Answer]) -> None:
    assert ask("--version") == (0, f"tumorlens {tumorlens.__version__}\n", "")


def test_the_protocols_are_those_of_the_settings() -> None:
    assert set(get_args(options.Protocol)) == set(get_args(config.Protocol))


@pytest.mark.parametrize("width", ["80", "40"])
def test_help_fits_a_narrow_terminal(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = ask("train", "--help").out.splitlines()
    assert max(len(line) for line in lines) <= int(width)


def test_an_error_without_a_hint_gets_one(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise RunError("no\nway")

    monkeypatch.setattr(folder, "open_run", fail)
    said = "error: no way\nhint: see tumorlens report --help\n"
    assert ask("report", "run") == (2, "", said)


# Data that cannot be used


@pytest.mark.parametrize("command", ["audit", "split", "train", "predict"])
def test_a_folder_that_is_not_there_is_refused(
    ask: Callable[..., Answer], work: Path, tmp_path: Path, command: str
) -> None:
    gone, out = tmp_path / "gone", tmp_path / "out.csv"
    words = {
        "train": ["train", "--data", gone, "--out", out],
        "predict": ["predict", work / "run", gone, "--out", out],
    }.get(command, [command, gone, "--out", out])
    assert_refused(ask(*words), "no such", str(gone))
    assert list(tmp_path.iterdir()) == []


def one_class(data: Path) -> str:
    for label in CLASSES[1:]:
        shutil.rmtree(data / "Training" / label)
        shutil.rmtree(data / "Testing" / label)
    return "glioma"


def empty_class(data: Path) -> str:
    for file in (data / "Training" / "pituitary").iterdir():
        file.unlink()
    return "pituitary"


def other_classes(data: Path) -> str:
    (data / "Testing" / "pituitary").rename(data / "Testing" / "pituitry")
    return "pituitry"


@pytest.mark.parametrize("spoil", [one_class, empty_class, other_classes])
@pytest.mark.parametrize("command", ["audit", "train"])
def test_folders_that_are_no_classes_are_refused_and_leave_nothing(
    ask: Callable[..., Answer],
    make_images: Callable[..., Path],
    tmp_path: Path,
    command: str,
    spoil: Callable[[Path], str],
) -> None:
    data = make_images(subsets={"Training": 2, "Testing": 1})
    named = spoil(data)
    words = [data] if command == "audit" else ["--data", data]
    assert_refused(ask(command, *words, "--out", tmp_path / "out"), named)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def add_bad_files(data: Path) -> list[str]:
    """Put four files that cannot be read into a class folder."""
    folder = data / "glioma"
    whole = (folder / "0.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.jpg").write_text("this is no image", encoding="utf-8")
    Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    return ["empty.png", "huge.png", "truncated.png", "words.jpg"]


def test_audit_counts_files_that_cannot_be_read_and_goes_on(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data", num_each=6)
    names = add_bad_files(data)
    assert ask("audit", data, "--out", tmp_path / "out").status == 0
    found = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    assert found["num_unreadable"] == 4
    assert sorted(Path(bad["path"]).name for bad in found["unreadable"]) == names


def test_audit_of_a_set_that_training_refuses_says_so(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data")
    add_bad_files(data)
    for number in range(20):
        (data / CLASSES[0] / f"text{number}.jpg").write_text("no image")
    answer = ask("audit", data, "--out", tmp_path / "audit")
    assert answer.status == 0, answer.err
    assert "Too many files cannot be read: 24 of 72 (33.3 %)" in answer.out
    assert "next: mend or remove" in answer.out
    assert "tumorlens train" not in answer.out
    found = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert found["verdict"]["believable"] is False


def test_audit_of_a_set_without_one_image_is_refused(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    for label in CLASSES:
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "1.jpg").write_text("no image")
    answer = ask("audit", tmp_path / "data", "--out", tmp_path / "audit")
    assert_refused(answer, "none of 4 files in")
    assert "give a folder of JPEG" in answer.err
    assert not (tmp_path / "audit").exists()


def test_audit_into_a_file_is_told_that_out_is_a_folder(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data")
    (tmp_path / "tab.csv").write_text("")
    answer = ask("audit", data, "--out", tmp_path / "tab.csv")
    assert_refused(answer, "tab.csv is a file")
    assert "hint: --out is a folder" in answer.err


@pytest.fixture
def leaky(make_images: Callable[..., Path]) -> Path:
    """Return images of which Testing has two of Training, of 14."""
    data = make_images(subsets={"Training": 4, "Testing": 3})
    for number in range(2):
        name = f"Testing/glioma/copy{number}.png"
        shutil.copy(data / f"Training/glioma/{number}.png", data / name)
    return data


def test_a_claim_is_judged_in_words_and_its_audit_shows_it(
    ask: Callable[..., Answer], leaky: Path, tmp_path: Path
) -> None:
    out = tmp_path / "audit"
    words = ["claim", leaky, "--accuracy", "0.7857", "--accuracy", "0.80"]
    answer = ask(*words, "--out", out)
    assert answer.status == 0, answer.err
    first, second, *_ = answer.out.splitlines()
    assert first.startswith(
        "An accuracy on this test set is not one on new patients: 2 of 14 test "
    )
    assert second.startswith("- Copying the label of the most similar training picture")
    for sentence in (
        "0.7857: 11 of 14, 78.6 %",
        "images were answered right, so were 9 of the 12 new ones, 75.0 %",
        "No number of right answers gives 0.80: 11 of 14 are 0.79, 12 are 0.86.",
        "0.80 against 0.7857: 0 to 1 right answers apart",
        "glioma         5     2  2 to 5  2 to 5",
    ):
        assert sentence in answer.out, sentence
    assert answer.out.splitlines()[-1].startswith("next: tumorlens audit")
    assert json.loads((out / "claim.json").read_text("utf-8"))["num_seen"] == 2
    assert [path.name for path in out.iterdir()] == ["claim.json"]
    assert ask("audit", leaky, "--out", out).status == 0
    page = (out / "audit.html").read_text("utf-8")
    assert "0.7857: 11 of 14" in page
    # And the other way round: the claim mends the page of an audit that is there.
    answer = ask("claim", leaky, "--accuracy", "0.2143", "--out", out)
    assert f"the page of the audit shows it: {out / 'audit.html'}" in answer.out
    page = (out / "audit.html").read_text("utf-8")
    assert "0.2143: 3 of 14" in page
    assert "0.7857" not in page


def test_a_claim_without_out_writes_nothing(
    ask: Callable[..., Answer], leaky: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    answer = ask(
        *("claim", leaky / "Testing", "--trained-on", leaky / "Training"),
        *("--accuracy", "0.7857"),
    )
    assert answer.status == 0, answer.err
    assert "so were 9 of the 12 new ones" in answer.out
    assert "nothing was written" in answer.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_claim_that_cannot_be_judged_is_one_error_and_writes_nothing(
    ask: Callable[..., Answer], leaky: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for words, problem, hint in (
        ((leaky, "--accuracy", "83.25"), "got 83.25", "did you mean 0.8325?"),
        ((leaky, "--accuracy", "0.8", "--accuracy", "x"), "got 'x'", "decimal point"),
        ((leaky,), "--accuracy", "see tumorlens claim --help"),
        (
            (leaky / "Training", "--accuracy", "0.8"),
            "no training and no test",
            "--trained-on DATA2",
        ),
        ((leaky, "--accuracy", "0.8", "--trained-on", "no"), "no such folder", "give"),
        ((tmp_path / "file", "--accuracy", "0.8"), "expected a folder", "give"),
    ):
        answer = ask("claim", *words, "--out", tmp_path / "out")
        assert_refused(answer, problem)
        assert hint in answer.err
        assert not (tmp_path / "out").exists()
    inside = leaky / "Training" / "out"
    train = ("--trained-on", leaky / "Training")
    for place, others, problem in (
        (tmp_path / "file", (), "file is a file"),
        (leaky / "Testing/out", (), "inside the folder of the images"),
        (inside, train, "inside the folder of the images"),
    ):
        given = (leaky / "Testing", "--accuracy", "0.8", *others)
        assert_refused(ask("claim", *given, "--out", place), problem)
    assert not inside.exists()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("audit", "--out", "audit"), id="audit"),
        pytest.param(("split", "--out", "glioma/split.csv"), id="split"),
        pytest.param(("train", "--out", "runs/first"), id="train"),
        pytest.param(("lr-find", "--out", "lr"), id="lr-find"),
    ],
)
def test_results_inside_the_images_are_refused_before_anything_is_written(
    ask: Callable[..., Answer], tmp_path: Path, words: tuple[str, str, str]
) -> None:
    data = draw_folder(tmp_path / "data", num_each=1)
    before = sorted(data.rglob("*"))
    command, option, place = words
    given = [data] if command in ("audit", "split") else ["--data", data]
    answer = ask(command, *given, option, data / place)
    assert_refused(answer, f"{place} is inside the folder of the images")
    assert f"name a place outside {data}" in answer.err
    assert sorted(data.rglob("*")) == before


def test_a_study_inside_the_images_is_refused(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data", num_each=1)
    plan = tmp_path / "plan.toml"
    plan.write_text('name = "x"\n[axes]\n"optim.lr" = [1e-3, 1e-2]\n')
    answer = ask("study", "run", plan, "--data", data, "--out", data / "study")
    assert_refused(answer, "study is inside the folder of the images")
    assert not (data / "study").exists()


def test_split_says_what_it_leaves_out(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data")
    for number in range(2):
        shutil.copy(data / "glioma" / "0.png", data / "glioma" / f"copy{number}.png")
    shutil.copy(data / "glioma" / "1.png", data / "pituitary" / "other.png")
    answer = ask("split", data, "--out", tmp_path / "split.csv")
    assert "left out, as copies of another file: 2 files" in answer.out
    assert "left out, as one picture under two labels: 2 files" in answer.out
    assert "not readable" not in answer.out


def test_train_leaves_unreadable_files_out_and_says_how_many(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data")
    names = add_bad_files(data)
    shutil.copy(data / "glioma" / "0.png", data / "glioma" / "copy.png")
    settings = small(tmp_path / "cache", data__max_unreadable="0.08")  # 4 of 52 = 0.077
    answer = ask("train", "--data", data, "--out", tmp_path / "run", *settings)
    assert answer.status == 0, answer.err
    assert "left out, as not readable: 4 files" in answer.out
    assert "left out, as copies of another file: 1 file\n" in answer.out
    rows = read_split(tmp_path / "run" / "split.csv")
    left_out = [row for row in rows if row.reason.startswith("unreadable")]
    assert sorted(Path(row.path).name for row in left_out) == names


def test_train_stops_above_the_limit_of_unreadable_files_and_leaves_nothing(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data")
    add_bad_files(data)
    settings = small(tmp_path / "cache", data__max_unreadable="0.07")
    answer = ask("train", "--data", data, "--out", tmp_path / "run", *settings)
    assert_refused(answer, "4 of 52 files (7.7 %) cannot be read", "7.0 %")
    assert not (tmp_path / "run").exists()


def test_a_split_edited_into_a_leak_is_refused_by_name(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    data = draw_folder(tmp_path / "data")
    patients = "".join(f"{label}/0.png,p1\n{label}/1.png,p1\n" for label in CLASSES[:1])
    (data / "metadata.csv").write_text("path,patient\n" + patients, encoding="utf-8")
    table = tmp_path / "split.csv"
    assert ask("split", data, "--out", table).status == 0
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    for row in rows:
        if row["path"] == "glioma/0.png":
            row["subset"] = "train"
        elif row["path"] == "glioma/1.png":
            row["subset"] = "test"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)

    settings = small(tmp_path / "cache", data__split=str(table))
    answer = ask("train", "--data", data, "--out", tmp_path / "run", *settings)
    assert_refused(answer, "glioma/0.png", "glioma/1.png")
    assert not (tmp_path / "run").exists()


# Settings that cannot be used


@pytest.mark.parametrize(
    ("setting", "said", "hinted"),
    [
        ("optim.weight_decy=0.1", "'optim.weight_decy'", "optim.weight_decay"),
        ("optim.lr=fast", "'fast'", "learning rate"),
        ("optim.epochs=0", "got 0", "Passes"),
        ("optim.epochs=true", "got True", "Passes"),
        ("augment.policy=mr", "'mr'", ""),
        ("model.name=resnet81", "'resnet81'", "resnet"),
        ("optim.name=adamm", "'adamm'", "adam"),
    ],
)
def test_a_wrong_setting_is_named_with_a_way_out(
    ask: Callable[..., Answer],
    work: Path,
    tmp_path: Path,
    setting: str,
    said: str,
    hinted: str,
) -> None:
    words = ["--data", work / "data", "--out", tmp_path / "run"]
    answer = ask("train", *words, *small(work / "cache"), "--set", setting)
    assert_refused(answer, said)
    assert hinted in answer.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_is_no_toml_is_refused(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    config_path = tmp_path / "run.toml"
    config_path.write_text("[optim\n", encoding="utf-8")
    assert_refused(ask("train", config_path, "--out", tmp_path / "run"), "run.toml")
    assert_refused(
        ask("train", tmp_path / "no.toml", "--out", tmp_path / "r"), "no.toml"
    )


def test_the_option_data_is_a_path_whatever_it_looks_like(
    ask: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("2024", "none", 'a"b'):
        assert_refused(ask("train", "--data", name, "--out", "run"), f"{name}")


def test_weights_with_code_in_them_are_refused_and_the_code_does_not_run(
    ask: Callable[..., Answer], work: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "it-ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(trace),)

    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(Payload()))
    torch.save({"weight": Payload()}, archive := tmp_path / "evil-archive.pth")
    for weights in (evil, archive):
        settings = small(work / "cache", model__pretrained=str(weights))
        words = ["--data", work / "data", "--out", tmp_path / "run"]
        assert_refused(ask("train", *words, *settings), weights.name)
        assert not (tmp_path / "run").exists()
    assert not trace.exists()


# Run folders that cannot be used


def no_folder(run: Path) -> str:
    shutil.rmtree(run)
    return "no such run folder"


def no_run(run: Path) -> str:
    (run / "config.toml").unlink()
    return "config.toml"


def later_settings(run: Path) -> str:
    with (run / "config.toml").open("a", encoding="utf-8") as file:
        file.write("\n[teleport]\nrange = 3\n")
    return "teleport"


def later_format(run: Path) -> str:
    card = json.loads((run / "model.json").read_text("utf-8"))
    (run / "model.json").write_text(json.dumps(card | {"format": 99}), encoding="utf-8")
    return "got 99"


def no_weights(run: Path) -> str:
    (run / "weights.safetensors").unlink()
    return "weights.safetensors"


def tampered_weights(run: Path) -> str:
    content = bytearray((run / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "weights.safetensors").write_bytes(content)
    return "SHA-256"


@pytest.mark.parametrize(
    "spoil",
    [no_folder, no_run, later_settings, later_format, no_weights, tampered_weights],
)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_spoilt_run_is_refused_and_left_as_it_is(
    ask: Callable[..., Answer],
    work: Path,
    run: Path,
    command: str,
    spoil: Callable[[Path], str],
) -> None:
    said = spoil(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    image = work / "data" / "glioma" / "0.png"
    answer = ask(command, run, *([image] if command == "predict" else []))
    assert_refused(answer, said)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_predict_warns_of_a_run_whose_training_is_not_finished(
    ask: Callable[..., Answer], run: Path, work: Path
) -> None:
    image = work / "data" / "glioma" / "0.png"
    assert "warning" not in ask("predict", run, image).err
    (run / "finished").unlink()
    answer = ask("predict", run, image)
    assert answer.status == 0
    assert f"warning: the training of {run} is not finished" in answer.err


def test_a_report_wants_an_evaluated_run(ask: Callable[..., Answer], run: Path) -> None:
    (run / "metrics.json").unlink()
    assert_refused(ask("report", run), "evaluate")
    assert not (run / "report.html").exists()


def test_a_report_says_that_pictures_are_missing_and_where_to_name_them(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    with (run / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    probs = [name for name in rows[0] if name.startswith("prob_")]
    for row in rows:  # another class than the label is sure
        right = f"prob_{row['label']}"
        row |= dict.fromkeys(probs, "0") | {next(n for n in probs if n != right): "1"}
        row["predicted"] = next(n for n in probs if n != right).removeprefix("prob_")
    with (run / "predictions.csv").open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert "missing" not in ask("report", run).err
    empty = tmp_path / "empty"
    empty.mkdir()
    answer = ask("report", run, "--data", empty)
    assert answer.status == 0
    assert "pictures are missing from the page" in answer.err
    assert "the file is gone; give --data DIR" in answer.err


def test_train_does_not_write_into_a_run_that_is_there(
    ask: Callable[..., Answer], work: Path, run: Path
) -> None:
    answer = ask("train", "--data", work / "data", "--out", run, *small(work / "cache"))
    assert_refused(answer, str(run), "exists")


def test_resume_takes_the_command_again_and_no_other_settings(
    ask: Callable[..., Answer], work: Path, run: Path, tmp_path: Path
) -> None:
    words = ["train", "--resume", "--out", run]
    before = (run / "config.toml").read_bytes()
    same = ["--data", work / "data", *small(work / "cache")]
    assert ask(*words, *same).status == 0
    assert (run / "config.toml").read_bytes() == before
    answer = ask(*words, "--set", "optim.lr=0.5")
    assert_refused(answer, str(run), "other settings: optim.lr: 0.001 before, now 0.5")
    (tmp_path / "c.toml").write_text("[model]\nsize_px = 48\n")
    assert_refused(ask(*words, tmp_path / "c.toml"), "model.size_px: ")
    assert (run / "config.toml").read_bytes() == before


# A disk that is full


FULL_DISK = """
import resource, sys
from tumorlens.cli import app
# What is written beyond this size fails as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(app.main(sys.argv[1:]))
"""


def test_a_full_disk_ends_a_training_with_one_line_and_leaves_nothing(
    work: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", work / "data", "--out", out, *small(work / "cache")]
    done = run_python(FULL_DISK.format(limit=64 << 10), *words)
    assert_refused(Answer(done.returncode, done.stdout, done.stderr), "cannot write")
    assert list(tmp_path.iterdir()) == []


# What commands say when all goes well


def test_each_command_names_its_files_and_the_next_command(
    ask: Callable[..., Answer], work: Path, run: Path, tmp_path: Path
) -> None:
    data = work / "data"
    table = tmp_path / "split.csv"
    for words, where, following in [
        (["split", data, "--out", table], table, "train --data"),
        (["audit", data, "--out", tmp_path / "a"], tmp_path / "a", "train --data"),
        (["evaluate", run], run, f"tumorlens report {run}"),
        (["report", run], run / "report.html", f"tumorlens predict {run}"),
    ]:
        answer = ask(*words)
        assert answer.status == 0, answer.err
        said, after = answer.out.splitlines()[-2:]
        assert str(where) in said
        assert after.startswith("next: tumorlens ")
        assert following in after


def test_the_command_is_on_record_in_the_run(work: Path) -> None:
    environment = json.loads((work / "run" / "environment.json").read_text("utf-8"))
    assert environment["command"].startswith(f"tumorlens train --data {work / 'data'}")
    looks = (work / "run" / "looks.jsonl").read_text("utf-8")
    assert json.loads(looks)["command"] == f"tumorlens evaluate {work / 'run'}"


def test_split_counts_every_file_once(ask: Callable[..., Answer], work: Path) -> None:
    out = ask("split", work / "data", "--out", work / "split.csv").out
    table = [
        line.split()
        for line in out.splitlines()
        if line[:5] in ("train", "val  ", "test ")
    ]
    assert [line[0] for line in table] == ["train", "val", "test"]
    assert sum(int(line[-1]) for line in table) == 48


def test_one_image_has_its_classes_below_each_other_and_runs_side_by_side(
    ask: Callable[..., Answer], work: Path, run: Path
) -> None:
    image = work / "data" / "glioma" / "0.png"
    other = run.rename(run.with_name("other"))
    answer = ask("predict", work / "run", image, "--run", other)
    assert answer.status == 0
    rows = [line.split() for line in answer.out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(CLASSES)
    assert answer.out.splitlines()[1].split() == ["class", "run", "other"]
    # The same weights twice: the same figures, and they add up.
    assert all(row[1:3] == row[3:5] for row in rows)
    assert sum(float(row[1]) for row in rows) == pytest.approx(100, abs=0.2)


def test_an_unreadable_file_is_a_row_and_the_status_is_3(
    ask: Callable[..., Answer], work: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    answer = ask("predict", work / "run", bad, work / "data" / "glioma" / "0.png")
    assert answer.status == 3
    assert answer.err == "1 file could not be read\n"
    assert f"{bad}: " in answer.out
    assert "unreadable" in answer.out
    assert "0.png" in answer.out

    out = tmp_path / "x.csv"
    assert ask("predict", work / "run", bad, work / "data", "--out", out).status == 3
    rows = list(csv.DictReader(out.read_text("utf-8").splitlines()))
    assert [bool(row["error"]) for row in rows] == [True] + [False] * 48
    assert rows[0]["predicted"] == ""
    assert sum(float(rows[1][f"prob_{name}"]) for name in CLASSES) == pytest.approx(1)


def test_an_output_of_unknown_kind_is_refused_before_the_work(
    ask: Callable[..., Answer], work: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.xlsx"
    assert_refused(ask("predict", tmp_path / "gone", "x", "--out", out), "'x.xlsx'")


# Interrupts, terminals


def run_python(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(tumorlens.__file__).parents[1])},
    )


MAIN = "import sys; from tumorlens.cli import app; sys.exit(app.main(sys.argv[1:]))"


def test_sigterm_is_one_line_and_status_130() -> None:
    code = (
        "import signal; from tumorlens.runs import folder;"
        "folder.open_run = lambda path: signal.raise_signal(signal.SIGTERM);" + MAIN
    )
    answer = run_python(code, "report", "run")
    assert (answer.returncode, answer.stdout, answer.stderr) == (130, "", "stopped\n")


def test_an_interrupt_is_one_line_and_status_130(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "open_run", interrupt)
    assert ask("report", "run") == (130, "", "stopped\n")


def test_an_interrupt_while_the_program_starts_is_one_line_too() -> None:
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tumorlens.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from tumorlens.__main__ import main\n"
        "sys.exit(main())"
    )
    done = run_python(code)
    assert (done.returncode, done.stderr) == (130, "stopped\n")
    script = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert script["project"]["scripts"] == {"tumorlens": "tumorlens.__main__:main"}


def test_ctrl_c_in_a_training_keeps_everything_and_resume_goes_on(
    work: Path, tmp_path: Path, ask: Callable[..., Answer]
) -> None:
    out = tmp_path / "run"
    settings = small(work / "cache", optim__epochs="500", train__batch_size="4")
    words = ["train", "--data", work / "data", "--out", out, *settings]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", MAIN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tumorlens.__file__).parents[1])},
    )
    deadline = time.monotonic() + 300
    while not (out / "history.jsonl").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == "stopped"
    assert stdout.splitlines()[-1] == f"next: tumorlens train --resume --out {out}"
    assert_refused(ask("evaluate", out), "not finished")


def test_an_error_of_our_own_keeps_its_traceback(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(folder, "open_run", fail)
    with pytest.raises(AssertionError, match="ours"):
        ask("report", "run")


# Ensembles, views and tracking


def test_evaluate_with_views_prints_the_gain_on_val_and_is_no_look_at_test(
    ask: Callable[..., Answer], run: Path
) -> None:
    looks = (run / "looks.jsonl").read_text()
    answer = ask("evaluate", run, "--tta")
    assert answer.status == 0
    assert "val images in" in answer.out
    assert "policy eight-views" in answer.out
    for word in ("without", "with", "difference, points", "Test-time augmentation"):
        assert word in answer.out
    assert f"next: tumorlens ensemble {run} --tta --out {run}-tta" in answer.out
    assert (run / "tta" / "val.json").is_file()
    assert (run / "looks.jsonl").read_text() == looks
    assert ask("evaluate", run, "--tta", "--subset", "test").status == 0
    assert (run / "looks.jsonl").read_text() != looks


def test_an_ensemble_is_a_run_for_every_command(
    ask: Callable[..., Answer], work: Path, run: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    answer = ask("ensemble", run, work / "run", "--out", both)
    assert_refused(ask("ensemble", run, run, "--out", both), "is named twice")
    assert answer.status == 0, answer.err
    assert "2 x test_resnet: the mean probabilities of run, run" in answer.out
    assert f"next: tumorlens evaluate {both}" in answer.out
    assert ask("evaluate", both).status == 0
    assert ask("report", both).status == 0
    # A run and itself: the mean is what it says alone.
    image = work / "data" / "glioma" / "0.png"
    answers = [ask("predict", path, image).out for path in (run, both)]
    percents = [re.findall(r"[\d.]+ %", answer) for answer in answers]
    assert percents[0] == percents[1]


def test_an_ensemble_with_views_prints_their_gain_where_there_is_val(
    ask: Callable[..., Answer], run: Path, tmp_path: Path
) -> None:
    answer = ask("ensemble", run, "--tta", "--out", tmp_path / "tta")
    assert answer.status == 0, answer.err
    assert "test_resnet, eight-views: the mean probabilities of run" in answer.out
    assert "difference, points" in answer.out
    opened = folder.open_run(run)
    rows = [
        replace(row, subset="train" if row.subset == "val" else row.subset)
        for row in opened.split()
    ]
    opened.write_split(rows, opened.leak())
    answer = ask("ensemble", run, "--tta", "--out", tmp_path / "again")
    assert answer.status == 0, answer.err
    assert "is not measured: no image is in val of all members" in answer.out


@pytest.mark.parametrize(
    "words",
    [("evaluate",), ("export", "--format", "torchscript"), ("ensemble", "--tta")],
)
def test_training_images_do_not_become_test_images_by_another_split(
    ask: Callable[..., Answer], run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    swap_train_and_test(run)
    before = (run / "metrics.json").read_bytes()
    out = ["--out", tmp_path / "out"] if words[0] == "ensemble" else []
    answer = ask(words[0], run, *words[1:], *out)
    assert_refused(answer, "split.csv is not the split that this run was made with")
    assert (run / "metrics.json").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_does_not_go_on_with_another_split(
    ask: Callable[..., Answer], run: Path
) -> None:
    (run / "finished").unlink()
    swap_train_and_test(run)
    answer = ask("train", "--resume", "--out", run)
    assert_refused(answer, "split.csv is not the split that this run was made with")


def swap_train_and_test(run: Path) -> None:
    """Edit the split of a run, as by hand."""
    other = {"train": "test", "test": "train"}
    path = run / "split.csv"
    rows = [
        replace(row, subset=other.get(row.subset, row.subset))
        for row in read_split(path)
    ]
    write_split(path, rows)


def test_track_is_a_flag_and_its_url_an_option(
    ask: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = ask("train", "--track", tmp_path / "no.toml", "--out", tmp_path / "run")
    assert_refused(answer, "cannot read the config", "no.toml")
    answer = ask("train", "--track-url", "here", "--out", tmp_path / "run")
    assert_refused(answer, "expected a URL for --track-url, got 'here'")


def test_a_tracked_run_says_where_and_goes_on_there(
    ask: Callable[..., Answer], work: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs" / "first"
    words = ["train", "--data", work / "data", *small(work / "cache"), "--out", out]
    answer = ask(*words, "--track")
    assert answer.status == 0, answer.err
    assert "warning" not in answer.err
    assert f"tracked in sqlite:///{tmp_path}/runs/mlflow.db" in answer.out
    for command in ("evaluate", "report"):
        assert ask(command, out, "--track").status == 0
    assert ask("train", "--resume", "--out", out, "--track").status == 0
    sent = json.loads((out / "tracking.json").read_text())["sent"]
    assert {"metrics.json", "figures/confusion.svg", "weights.safetensors"} < {*sent}


def test_tracking_that_is_broken_is_one_warning_beside_a_complete_run(
    ask: Callable[..., Answer], work: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["train", "--data", work / "data", *small(work / "cache"), "--out", out]
    answer = ask(*words, "--track-url", "http://127.0.0.1:9")
    assert answer.status == 0
    assert answer.err.count("warning: ") == 1
    assert "tracked" not in answer.out
    assert (out / "finished").is_file()
    assert ask("evaluate", out).status == 0


# Streams, and paths that the system refuses


def program(*words: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own, with pipes."""
    source = str(Path(tumorlens.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "tumorlens", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_the_terminal_lacks_are_escaped(
    tmp_path: Path, encoding: str
) -> None:
    with program(
        "runs", tmp_path / "日本", env={"PYTHONIOENCODING": encoding}
    ) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    words = err.decode(encoding)
    assert words.startswith("error: no such folder: ")
    assert r"\u65e5\u672c" in words


def test_a_name_is_printed_on_a_stream_that_cannot_hold_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    streams = [
        io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        for _ in range(2)
    ]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert app.main(["runs", str(tmp_path)]) == 0
    terminal.print_table(["file"], [["méningiome"]])
    terminal.print_error("méningiome", "é")
    written = [stream.buffer.getvalue().decode() for stream in streams]
    assert r"m\xe9ningiome" in written[0]
    assert written[1] == "error: m\\xe9ningiome\nhint: \\xe9\n"


@pytest.mark.parametrize("words", [["--help"], ["runs", ".", "--json"], ["runs", "."]])
def test_a_reader_that_leaves_ends_the_command_quietly(
    tmp_path: Path, words: list[str]
) -> None:
    with program(*words, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `head` does when it has seen enough
        err = process.stderr.read()
        assert process.wait(timeout=60) == app.STATUS_CLOSED
    assert err == b""


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "LONG", "--out", "a"],
        ["claim", "LONG", "--accuracy", "0.9"],
        ["split", "LONG", "--out", "s.csv"],
        ["train", "--data", "LONG", "--out", "r"],
        ["train", "--data", "x", "--out", "LONG"],
        ["evaluate", "LONG"],
        ["report", "LONG"],
        ["predict", "LONG", "LONG"],
        ["export", "LONG"],
        ["benchmark", "LONG"],
        ["compare", "LONG"],
        ["runs", "LONG"],
        ["ensemble", "LONG", "y", "--out", "e"],
        ["import", "LONG", "--model", "resnet18", "--classes", "a,b", "--out", "i"],
        ["lr-find", "--data", "LONG", "--out", "l"],
        ["study", "run", "LONG"],
        ["study", "status", "LONG"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_path_that_the_system_refuses_is_one_error(
    ask: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    # As below a folder that is locked, which stops no test that runs as root: the mere
    # look at the path raises.
    monkeypatch.chdir(tmp_path)
    answer = ask(*("x" * 300 if word == "LONG" else word for word in words))
    assert answer.status == 2, answer.err
    error, hint = answer.err.splitlines()
    assert error.startswith("error: ")
    assert "x" * 300 in error
    assert "File name too long" in error or "no such" in error or "cannot" in error
    assert hint.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_system_refuses_is_a_row_beside_the_others(
    ask: Callable[..., Answer], work: Path
) -> None:
    image = next((work / "data").rglob("*.png"))
    answer = ask("predict", work / "run", "x" * 300, image)
    assert answer.status == 3
    assert "File name too long" in answer.out
    assert image.name in answer.out


def test_an_error_of_the_system_without_a_path_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("tumorlens.runs.listing.list_runs", fail)
    with pytest.raises(OSError, match="broken"):
        app.main(["runs", "."])


# Several sets


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return make_two_sets(tmp_path, num_each=6)


def test_audit_against_others_says_what_they_share_and_prints_a_matrix(
    ask: Callable[..., Answer], two: tuple[Path, Path], tmp_path: Path
) -> None:
    clinic, web = two
    third = draw_folder(tmp_path / "third", num_each=3)
    others = ["--against", web, "--against", third]
    answer = ask("audit", clinic, *others, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert "- 7 of 24 files of clinic (29.2 %) show a picture of web" in answer.out
    assert "1 pair of files shows one picture under labels that disagree" in answer.out
    rows = [line.split() for line in answer.out.splitlines()]
    # 7 of 24 pictures of clinic, and 7 of 31 of web, are in the other.
    assert ["pictures", "of", "in", "clinic", "in", "web", "in", "third"] in rows
    assert ["clinic", "29.2", "%", "0.0", "%"] in rows
    assert ["web", "22.6", "%", "0.0", "%"] in rows
    found = json.loads((tmp_path / "out/audit.json").read_text("utf-8"))
    assert [one["name"] for one in found["overlaps"]["sets"]] == [
        *("clinic", "web", "third"),
    ]
    alone = ask("audit", clinic, "--out", tmp_path / "alone")
    assert alone.status == 0
    without = json.loads((tmp_path / "alone/audit.json").read_text("utf-8"))
    assert without == found | {"overlaps": None}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("nowhere", "no such folder or table: "),
        ("clinic", "is named twice"),
        ("one-class", "expected at least two classes in "),
        ("unreadable", "none of 4 files in "),
        ("flat", "no class folders in "),
    ],
)
def test_a_set_that_cannot_be_compared_is_refused_and_nothing_is_written(
    ask: Callable[..., Answer],
    two: tuple[Path, Path],
    tmp_path: Path,
    other: str,
    words: str,
) -> None:
    shutil.copytree(two[1] / "glioma", tmp_path / "one-class/glioma")
    shutil.copytree(two[1] / "glioma", tmp_path / "flat")
    for label in CLASSES:
        (tmp_path / "unreadable" / label).mkdir(parents=True)
        (tmp_path / "unreadable" / label / "1.jpg").write_text("no image")
    answer = ask(
        *("audit", two[0], "--against", tmp_path / other, "--out", tmp_path / "out")
    )
    assert_refused(answer, words, other)
    assert not (tmp_path / "out").exists()


def test_an_audit_is_not_written_into_the_other_set(
    ask: Callable[..., Answer], two: tuple[Path, Path]
) -> None:
    answer = ask("audit", two[0], "--against", two[1], "--out", two[1] / "audit")
    assert_refused(answer, f"is inside the folder of the images, {two[1]}")


def test_sets_are_pooled_by_patient_and_picture_and_may_move_afterwards(
    ask: Callable[..., Answer], two: tuple[Path, Path], tmp_path: Path
) -> None:
    clinic, web = two
    (clinic / "metadata.csv").write_text("path,patient\nno_tumor/4.png,P-1\n")
    (web / "metadata.csv").write_text("path,patient,source\nnotumor/5.png,P-1,hub\n")
    data = ["--data", clinic, "--data", web]
    run = tmp_path / "run"
    made = ask("split", clinic, web, "--out", tmp_path / "split.csv")
    assert made.status == 0, made.err
    assert f"next: tumorlens train --data {clinic} --data {web} --set" in made.out
    answer = ask("train", *data, "--out", run, *small(tmp_path / "cache"))
    assert answer.status == 0, answer.err
    rows = {row.path: row for row in read_split(run / "split.csv")}
    assert tuple(rows.values()) == read_split(tmp_path / "split.csv")
    assert len(rows) == 24 + 24 + len(PLANTED)
    for one in PLANTED:
        source, copy = rows[f"clinic/{one.source}"], rows[f"web/{one.copy}"]
        assert source.group == copy.group
        if source.label == copy.label:
            assert copy.reason == f"copy of {source.path}"
        else:
            assert {source.subset, copy.subset} == {"left-out"}
            assert source.reason == (
                f"conflicting labels: same picture as {copy.path} ({copy.label})"
            )
    of_patient = rows["clinic/no_tumor/4.png"], rows["web/notumor/5.png"]
    assert len({(row.group, row.subset) for row in of_patient}) == 1
    assert "left out, as one picture under two labels: 2 files" in answer.out

    moved = [clinic.rename(tmp_path / "a"), web.rename(tmp_path / "b")]
    where = [word for place in moved for word in ("--data", place)]
    assert_refused(ask("evaluate", run), "are not in", str(clinic))
    assert_refused(
        ask("evaluate", run, *where[:2]), "expected 2 sets of images (clinic, web)"
    )
    swapped = ask("evaluate", run, *where[2:], *where[:2])
    assert_refused(swapped, "has changed since the run was made")
    assert "name the sets in their order: clinic, web" in swapped.err
    assert ask("evaluate", run, *where).status == 0
    measured = json.loads((run / "metrics.json").read_text("utf-8"))
    sources = {row["source"] for row in read_rows(run / "predictions.csv")}
    assert sources <= {"clinic", "web", "hub"}
    assert {"clinic", "web"} <= sources
    assert measured["leak"]["leaks"] is False
    assert ask("report", run, *where).status == 0
    page = (run / "report.html").read_text("utf-8")
    assert "the file is gone" not in page
    assert "data:image/jpeg" in page  # a mistake, from one of the two folders

    # What resume keeps are the names, under which the files are known.
    (run / "finished").unlink()
    assert ask("train", "--resume", "--out", run, *where).status == 0
    settings = tomllib.loads((run / "config.toml").read_text("utf-8"))["data"]
    assert settings["path"] == [str(place) for place in moved]
    assert settings["names"] == ["clinic", "web"]
    assert ask("evaluate", run).status == 0


def test_an_export_of_a_pooled_run_is_proven_on_the_images_of_all_sets(
    ask: Callable[..., Answer], two: tuple[Path, Path], tmp_path: Path
) -> None:
    data = ["--data", two[0], "--data", two[1]]
    run = tmp_path / "run"
    settings = small(tmp_path / "cache", data__val_fraction="0.4")
    assert ask("train", *data, "--out", run, *settings).status == 0
    answer = ask("export", run, "--format", "torchscript")
    assert answer.status == 0, answer.err
    val = [row for row in read_split(run / "split.csv") if row.subset == "val"]
    assert f"compared on {len(val)} val images" in answer.out
    assert {row.path.partition("/")[0] for row in val} == {"clinic", "web"}
    files = _val_files([run])
    assert all(file.is_file() for file in files)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(("split", "A", "A"), "is named twice", id="twice"),
        pytest.param(("split", "A", "other"), "the classes of A and other differ: "),
        pytest.param(("split", "A", "nowhere"), "no such folder or table"),
        pytest.param(
            ("split", "A", "B", "--set", "data.names=['x', 'x']"),
            "expected different data.names",
        ),
        pytest.param(
            ("train", "--data", "A", "--set", "data.names=['x', 'y']"),
            "expected 2 sets in data.path, one for each of data.names",
        ),
    ],
)
def test_sets_that_cannot_be_pooled_are_refused_by_name(
    ask: Callable[..., Answer], tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    for name in ("A", "B"):
        draw_folder(tmp_path / name, num_each=1)
    shutil.copytree(tmp_path / "A", tmp_path / "other")
    (tmp_path / "other/no_tumor").rename(tmp_path / "other/healthy")
    given = [
        tmp_path / one if one in ("A", "B", "other", "nowhere") else one
        for one in words
    ]
    answer = ask(*given, "--out", tmp_path / "out")
    assert_refused(answer, expected)
    assert not (tmp_path / "out").exists()
