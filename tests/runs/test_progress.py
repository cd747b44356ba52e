"""Progress of a training or an evaluation, as programs follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tumorlens.runs.progress import Listener, Relay, TqdmProgress

if TYPE_CHECKING:
    from collections.abc import Callable

ROW = {
    "epoch": 1,
    "train_loss": 0.51,
    "train_accuracy": 0.8,
    "val_loss": 0.6,
    "val_accuracy": 0.75,
    "lr": 1e-3,
    "images_per_second": 64.2,
    "is_best": True,
}


class Noting(Listener):
    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def stage(self, text: str) -> None:
        self.events.append(("stage", text))

    def fold(self, fold: int, num_folds: int) -> None:
        self.events.append(("fold", fold, num_folds))

    def note(self, text: str) -> None:
        self.events.append(("note", text))

    def files(self, done: int, total: int) -> None:
        self.events.append(("files", done, total))

    def batch(self, epoch: int, done: int, total: int) -> None:
        self.events.append(("batch", epoch, done, total))

    def epoch(self, row: dict[str, Any]) -> None:
        self.events.append(("epoch", row))


def play(listener: Listener) -> None:
    listener.stage("decoding")
    listener.note("a setting has no effect")
    listener.fold(1, 5)
    listener.files(3, 4)
    listener.batch(2, 6, 7)
    listener.epoch(ROW)


def test_a_relay_passes_on_every_event_of_a_listener() -> None:
    inner, expected = Noting(), Noting()
    play(Relay(inner))
    play(expected)
    assert inner.events == expected.events
    events = {name for name in vars(Listener) if not name.startswith("_")}
    assert {event[0] for event in inner.events} == events


class Bar:
    """Stands for tqdm's bar and notes what is done with it."""

    def __init__(self, *, desc: str, total: int, leave: bool) -> None:
        self.desc = desc
        self.total = total
        self.leave = leave
        self.n = 0
        self.is_closed = False

    def update(self, step: int) -> None:
        assert not self.is_closed
        self.n += step

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    made: list[Bar] = []

    def make(**options: Any) -> Bar:
        made.append(Bar(**options))
        return made[-1]

    monkeypatch.setattr("tqdm.auto.tqdm", make)
    return made


@pytest.mark.parametrize(
    "call",
    [
        lambda progress, done: progress.files(done, 3),
        lambda progress, done: progress(done, 3),
    ],
    ids=["as a listener", "as a function"],
)
def test_one_bar_shows_the_files_of_a_stage_until_all_are_done(
    bars: list[Bar], call: Callable[[TqdmProgress, int], None]
) -> None:
    progress = TqdmProgress()
    progress.stage("decoding")
    for done in (1, 2):
        call(progress, done)
    (bar,) = bars
    assert (bar.desc, bar.n, bar.total, bar.is_closed) == ("decoding", 2, 3, False)
    call(progress, 3)
    assert bar.n == 3
    assert bar.is_closed


def test_each_epoch_has_a_bar_with_the_name_of_its_fold(bars: list[Bar]) -> None:
    progress = TqdmProgress()
    progress.fold(0, 5)
    progress.batch(1, 1, 9)
    progress.batch(2, 1, 9)
    assert [bar.desc for bar in bars] == [
        "fold 0 of 5  epoch 1",
        "fold 0 of 5  epoch 2",
    ]
    assert [bar.is_closed for bar in bars] == [True, False]


def test_a_count_that_begins_again_gets_a_new_bar(bars: list[Bar]) -> None:
    progress = TqdmProgress()
    progress(2, 4)
    progress(1, 4)
    assert [(bar.n, bar.is_closed) for bar in bars] == [(2, True), (1, False)]


def test_in_a_script_bars_go_to_stderr_and_the_line_of_an_epoch_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = TqdmProgress()
    progress.batch(1, 1, 2)
    progress.epoch(ROW)
    shown = capsys.readouterr()
    assert "epoch 1" in shown.err
    assert "1/2" in shown.err
    assert shown.out == (
        "epoch   1  train 0.510 80.0 %  val 0.600 75.0 %  lr 0.001  64 images/s  kept\n"
    )
    progress.batch(1, 2, 2)
