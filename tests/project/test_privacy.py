"""What is handed on names no home folder, no user and no machine."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import tumorlens
from support.images import CLASSES, draw_image
from support.mr_volumes import write_volume
from tumorlens.cli import app
from tumorlens.system import without_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tumorlens.runs.folder import Run

USER, HOST = "zephyrine-q", "scanner-room-7"
SOURCE = Path(tumorlens.__file__).parent
"""In a home folder, as a rule: exporters like to write it into a graph."""

NOT_HANDED_ON = ("config.toml", "store.txt")
"""They hold what a run needs: where its images are."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / USER
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    return folder


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_files_that_are_handed_on_name_no_user_and_no_machine(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, made = home / "set", home / "made"
    for label in CLASSES[:2]:
        (data / label).mkdir(parents=True)
        for number in range(12):
            drawn = Image.fromarray(draw_image(label, number, size_px=48))
            drawn.save(data / label / f"{number}.png")
    volume = home / "volume"
    write_volume(volume, num_slices=2)
    run = made / "run"
    settings = {
        **{"model.name": "test_resnet", "model.pretrained": "no"},
        **{"model.size_px": "32", "optim.epochs": "1", "train.device": "cpu"},
        "data.cache_dir": str(home / "cache"),
    }
    chosen = [word for item in settings.items() for word in ("--set", "=".join(item))]
    image = data / CLASSES[0] / "0.png"
    for words in (
        ["audit", data, "--out", made / "audit"],
        [
            *("claim", data, "--trained-on", data, "--accuracy", "0.9"),
            *("--out", made / "audit"),
        ],
        ["split", data, "--out", made / "split.csv"],
        ["train", "--data", data, "--out", run, *chosen],
        ["evaluate", run, "--data", data],
        ["report", run],
        ["evaluate", run, "--on", data],
        ["evaluate", run, "--on", data, "--name", "again"],
        [
            *("compare", run / "external" / "set", run / "external" / "again"),
            *("--out", made / "c"),
        ],
        ["export", run, "--format", "onnx"],
        ["card", run],
        ["card", run / "export" / "onnx"],
        ["benchmark", run / "export" / "onnx", "--seconds", "0.1", "--out", made / "b"],
        ["compare", run, "--image", image, "--no-latency", "--out", made / "c"],
        ["predict", run, volume, "--dicom-out", made / "dicom"],
        ["lr-find", "--data", data, "--out", made / "lr", "--steps", "20", *chosen],
    ):
        assert app.main([str(word) for word in words]) == 0, words
    found = [
        (path.relative_to(made).as_posix(), secret)
        for path in files_below(made)
        if path.name not in NOT_HANDED_ON
        for secret in (str(home), USER, HOST)
        if secret.encode() in path.read_bytes()
    ]
    assert found == []
    # The example of the comparison is still found, in spite of its `~`.
    page = (made / "c" / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" in page


def test_graphs_do_not_name_the_files_of_the_exporter(exported_run: Run) -> None:
    found = [
        (path.relative_to(exported_run.path).as_posix(), secret)
        for path in files_below(exported_run.path / "export")
        for secret in (str(SOURCE), "site-packages")
        if secret.encode() in path.read_bytes()
    ]
    assert found == []


def test_a_home_folder_becomes_a_tilde(home: Path) -> None:
    assert without_user(f"a {home}/x {home}") == "a ~/x ~"
    assert without_user(f"--data={home}/x '{home}/my data'") == "--data=~/x '~/my data'"
    # Another folder that begins alike.
    assert without_user(f"{home}2/x") == f"{home}2/x"


def test_a_user_name_is_replaced_in_paths_and_addresses_only(home: Path) -> None:
    assert without_user(f"/data/{USER}/set") == "/data/USER/set"
    assert without_user(f"/data/{USER}") == "/data/USER"
    assert without_user(f"http://{HOST}:5000/x") == "http://HOST:5000/x"
    assert without_user(f"{USER} is a word") == f"{USER} is a word"
    assert without_user(f"/data/{USER}-2/set") == f"/data/{USER}-2/set"


def test_without_home_and_name_a_text_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setenv("HOME", "/")
    monkeypatch.setattr(getpass, "getuser", nobody)
    assert without_user("/data/set / x") == "/data/set / x"
