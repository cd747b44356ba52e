"""What the terminal shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from support.handmade_artefacts import parity_of
from tumorlens.cli import terminal
from tumorlens.deploy.artefact import Change, ParityAccuracy
from tumorlens.deploy.parity import bounds_of
from tumorlens.deploy.predictor import Prediction
from tumorlens.system import is_main_process
from tumorlens.text import one_line

ROW: dict[str, Any] = {
    "epoch": 7,
    "train_loss": 0.81234,
    "train_accuracy": 0.712,
    "val_loss": 0.9,
    "val_accuracy": 0.65,
    "lr": 0.0003,
    "images_per_second": 51.7,
    "is_best": True,
}
LINE = "epoch   7  train 0.812 71.2 %  val 0.900 65.0 %  lr 0.0003  52 images/s  kept"
CLASSES = ("glioma_tumor", "no_tumor")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what a terminal of 80 columns is sent."""
    sent = io.StringIO()
    console = Console(file=sent, force_terminal=True, width=80, no_color=True)
    monkeypatch.setattr(terminal, "_console", lambda **_: console)
    return sent


def prediction(path: str, *probs: float) -> Prediction:
    best = CLASSES[int(np.argmax(probs))]
    return Prediction(Path(path), np.array(probs, dtype=np.float32), best, None)


def test_an_export_of_int8_states_what_its_images_show_about_the_loss(
    capsys: pytest.CaptureFixture[str],
) -> None:
    change = Change(value=0.0, low=-0.0275, high=0.0275)
    accuracy = ParityAccuracy(run=0.9, artefact=0.9, change=change)
    verdicts = [
        parity_of("openvino-int8", accuracy=accuracy, num_images=100),
        parity_of("onnx", bounds=bounds_of("fp32"), accuracy=accuracy),
    ]
    terminal.print_export(verdicts, [1, 1])
    *_, last = capsys.readouterr().out.splitlines()
    # Of fp32 nothing: it is judged by each probability.
    assert last == (
        "openvino-int8: a loss of more than 1 point is not excluded by 100 images; "
        "up to 2.8 are possible"
    )


def test_text_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\r\nc\udcff") == "a [2Jb  c "


def test_markup_in_a_file_name_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.print_line("[red]a[/red] :smile:")
    terminal.print_table(["[b]file"], [["[red]b[/red]"]])
    assert capsys.readouterr().out.split() == [
        "[red]a[/red]",
        ":smile:",
        "[b]file",
        "[red]b[/red]",
    ]


def test_an_epoch_is_a_line_that_fits_80_columns(
    capsys: pytest.CaptureFixture[str], screen: io.StringIO
) -> None:
    terminal.TrainingDisplay(None).epoch(ROW)
    assert capsys.readouterr().err == LINE + "\n"
    assert len(LINE) <= 80
    with terminal.training() as display:
        display.epoch(ROW)
    assert LINE in screen.getvalue()


def test_the_lines_of_a_fold_begin_with_it(
    capsys: pytest.CaptureFixture[str], screen: io.StringIO
) -> None:
    display = terminal.TrainingDisplay(None)
    for fold in (0, 1):
        display.fold(fold, 5)
        display.epoch(ROW)
    assert capsys.readouterr().err == f"fold 0 of 5  {LINE}\nfold 1 of 5  {LINE}\n"
    with terminal.training() as display:
        display.fold(2, 5)
        display.batch(2, 5, 8)
        assert display._bars is not None
        display._bars.refresh()
        assert "fold 2 of 5  epoch 2" in screen.getvalue()


def test_a_training_shows_its_stage_files_and_batches(screen: io.StringIO) -> None:
    with terminal.training() as display:
        display.stage("decoding")
        display.files(3, 9)
        assert display._bars is not None
        display._bars.refresh()
        assert "decoding" in screen.getvalue()
        assert "3/9" in screen.getvalue()
        display.batch(2, 5, 8)
        display._bars.refresh()
        assert "epoch 2" in screen.getvalue()
        assert "5/8" in screen.getvalue()


def test_progress_is_silent_where_nobody_watches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with terminal.counting("reading") as progress:
        assert progress is None
    with terminal.training() as display:
        display.stage("decoding")
        display.files(1, 2)
        display.batch(1, 1, 2)
    assert capsys.readouterr() == ("", "")


def test_of_the_processes_of_torchrun_only_the_first_speaks(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    screen: io.StringIO,
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    with terminal.training() as display, terminal.counting("reading") as progress:
        display.epoch(ROW)
        assert progress is None
    assert (capsys.readouterr(), screen.getvalue()) == (("", ""), "")
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()


def test_one_image_has_its_classes_below_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal.print_predictions(
        [
            ("a", CLASSES, [prediction("x.png", 0.9, 0.1)]),
            ("b", CLASSES, [prediction("x.png", 0.25, 0.75)]),
        ]
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["x.png:", "glioma_tumor,", "no_tumor"],
        ["class", "a", "b"],
        ["glioma_tumor", "90.0", "%", "25.0", "%"],
        ["no_tumor", "10.0", "%", "75.0", "%"],
    ]


def test_several_images_have_a_line_for_each_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = Prediction(Path("y.png"), None, None, "not an image")
    runs = [
        (name, CLASSES, [prediction("x.png", 0.9, 0.1), bad]) for name in ("one", "two")
    ]
    terminal.print_predictions(runs)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["file", "run", "predicted", "tumor", "no_tumor"],
        ["x.png", "one", "glioma_tumor", "90.0", "%", "10.0", "%"],
        ["x.png", "two", "glioma_tumor", "90.0", "%", "10.0", "%"],
        ["y.png:", "not", "an", "image", "one", "unreadable"],
        ["y.png:", "not", "an", "image", "two", "unreadable"],
    ]


@pytest.mark.parametrize("num_classes", [4, 12])
def test_a_table_loses_nothing_in_80_columns(
    screen: io.StringIO, num_classes: int
) -> None:
    classes = [f"meningioma_{number}" for number in range(num_classes)]
    probs = np.eye(num_classes, dtype=np.float32)[1]
    path = Path("Testing/meningioma_tumor/image(2).jpg")
    one = Prediction(path, probs, "meningioma_1", None)
    terminal.print_predictions([("run", classes, [one, one])])
    lines = screen.getvalue().splitlines()
    assert all("…" not in line for line in lines)
    if num_classes == 4:
        assert sum("100.0 %" in line for line in lines) == 2


def test_paths_and_commands_are_never_broken(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    long = tmp_path / ("a b" * 60)
    terminal.print_next(f"it is in {long}", "tumorlens", "report", long)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"it is in {long}"
    assert second == f"next: tumorlens report '{long}'"
