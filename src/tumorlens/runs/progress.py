"""Progress of a training or an evaluation, and how programs follow it.

`train` reports to a `Listener`; other stages call a function with two numbers, done and
in all. `TqdmProgress` is both, and shows bars in a notebook as in a script:

    train(config, out=Path("runs/first"), listener=TqdmProgress())
    evaluate(run, progress=TqdmProgress())

The command line has displays of its own in `tumorlens.cli.terminal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from tumorlens.text import percent

Progress = Callable[[int, int], None]
"""Called with the number done and the number in all."""

Stage = Callable[
    [str], AbstractContextManager[Callable[[int, int | None], None] | None]
]
"""Called with words for what begins; gives a function that is called with the number of
files done, and of all where that is known."""


class Listener:
    """Receives the events of a training. Override what you need: each does nothing."""

    def stage(self, text: str) -> None:
        """A part of the work begins, such as decoding."""

    def note(self, text: str) -> None:
        """Something that the user should know, and that stops nothing."""

    def fold(self, fold: int, num_folds: int) -> None:
        """A fold of a k-fold run begins; the first is 0."""

    def files(self, done: int, total: int) -> None:
        """A file of the current stage is done."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """A batch of the epoch is done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is over; `row` is its line of `history.jsonl`."""


class Relay(Listener):
    """Passes every event on to another listener. Subclasses add to some of them."""

    def __init__(self, inner: Listener) -> None:
        self.inner = inner

    def stage(self, text: str) -> None:
        """Pass it on."""
        self.inner.stage(text)

    def note(self, text: str) -> None:
        """Pass it on."""
        self.inner.note(text)

    def fold(self, fold: int, num_folds: int) -> None:
        """Pass it on."""
        self.inner.fold(fold, num_folds)

    def files(self, done: int, total: int) -> None:
        """Pass it on."""
        self.inner.files(done, total)

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Pass it on."""
        self.inner.batch(epoch, done, total)

    def epoch(self, row: dict[str, Any]) -> None:
        """Pass it on."""
        self.inner.epoch(row)


class TqdmProgress(Listener):
    """Shows progress with tqdm: widgets in a notebook, text bars everywhere else.

    A bar is removed when its work is done; the line of each epoch stays.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._work = ("", 0)
        """Description and total of the current bar."""
        self._stage = "images"
        self._fold = ""

    def __call__(self, done: int, total: int) -> None:
        """Show how many images are done, for stages that take a function."""
        self.files(done, total)

    def stage(self, text: str) -> None:
        """Name the work that the next bar shows."""
        self._stage = text

    def note(self, text: str) -> None:
        """Print it above the bars."""
        from tqdm.auto import tqdm

        tqdm.write(f"note: {text}")

    def fold(self, fold: int, num_folds: int) -> None:
        """Name the fold in front of all that follows."""
        self._fold = f"fold {fold} of {num_folds}  "

    def files(self, done: int, total: int) -> None:
        """Move the bar of the stage."""
        self._show(self._stage, done, total)

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Move the bar of the epoch."""
        self._show(f"epoch {epoch}", done, total)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the figures of an epoch above the bars."""
        from tqdm.auto import tqdm

        tqdm.write(self._fold + epoch_line(row))

    def _show(self, description: str, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        description = self._fold + description
        work = (description, total)
        if self._bar is None or work != self._work or done < self._bar.n:
            self._close()
            self._bar = tqdm(desc=description, total=total, leave=False)
            self._work = work
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def epoch_line(row: Mapping[str, Any]) -> str:
    """Return the figures of an epoch in one line.

    Example:
        >>> epoch_line({
        ...     "epoch": 3, "train_loss": 0.51, "train_accuracy": 0.8, "val_loss": 0.6,
        ...     "val_accuracy": 0.75, "lr": 1e-3, "images_per_second": 64.2,
        ...     "is_best": True,
        ... })
        'epoch   3  train 0.510 80.0 %  val 0.600 75.0 %  lr 0.001  64 images/s  kept'
    """
    return (
        f"epoch {row['epoch']:>3}  "
        f"train {row['train_loss']:.3f} {percent(row['train_accuracy'])}  "
        f"val {row['val_loss']:.3f} {percent(row['val_accuracy'])}  "
        f"lr {row['lr']:.2g}  {row['images_per_second']:.0f} images/s"
        f"{'  kept' if row['is_best'] else ''}"
    )
