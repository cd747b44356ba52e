from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tumorlens import files
from tumorlens.config import (
    Config,
    absolute_paths,
    assign,
    dump_config,
    load_config,
    parse_assignment,
    parse_config,
)
from tumorlens.data.index import read_index, write_split
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.runs.folder import Run, create_run, open_run
from tumorlens.runs.progress import Listener
from tumorlens.stats import metrics
from tumorlens.training import fit
from tumorlens.training.dataset import (
    PreparedData,
    image_limits,
    load_subset,
    prepare_data,
)
from tumorlens.training.devices import resolve_device, resolve_precision
from tumorlens.training.fit import train
from tumorlens.training.loading import Decoding, plain_batches
from tumorlens.training.loop import train_epoch
from tumorlens.training.network import (
    infer,
    load_model,
)
from tumorlens.training.optim import idle_words

if TYPE_CHECKING:
    from collections.abc import Callable


from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from torch import nn

from tumorlens.training.dataset import Subset
from tumorlens.training.fit import is_best, is_over, validate
from tumorlens.training.network import Preprocessing

TINY = ["model.name=test_resnet", "model.pretrained=no", "model.size_px=32"]


@pytest.fixture
def configure(
    make_images: Callable[..., Path], tmp_path: Path
) -> Callable[..., Config]:
    """Return a function: further settings -> a config with all kinds of randomness."""
    base = [
        *TINY,
        f"data.path={make_images(num_each=20)}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "train.batch_size=8",
        "train.device=cpu",
        "optim.epochs=3",
        "optim.scheduler=onecycle",
        "augment.random_erasing=0.2",
        "augment.mixup=0.2",
        "train.ema_decay=0.9",
        "model.drop_rate=0.2",
    ]
    return lambda *more: load_config(assignments=[*base, *more])


class StopAt(Listener):
    """Presses Ctrl-C after a batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.at = (epoch, batch)

    def batch(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == self.at:
            signal.raise_signal(signal.SIGINT)


def same_history(one: Run, other: Run) -> bool:
    clocks = {"seconds", "images_per_second"}
    rows = [
        [{k: v for k, v in row.items() if k not in clocks} for row in run.history()]
        for run in (one, other)
    ]
    return rows[0] == rows[1]


@pytest.mark.parametrize("at", [(1, 1), (2, 3)], ids=["first batch", "mid-epoch"])
def test_ctrl_c_loses_nothing_and_changes_nothing(
    configure: Callable[..., Config], tmp_path: Path, at: tuple[int, int]
) -> None:
    config = configure()
    whole = train(config, out=tmp_path / "whole")
    stopped = train(config, out=tmp_path / "stopped", listener=StopAt(*at))
    assert not stopped.is_finished
    assert len(stopped.run.history()) == at[0] - 1

    resumed = train(None, out=tmp_path / "stopped", resume=True)
    assert resumed.is_finished
    assert resumed.run.weights_path.read_bytes() == whole.run.weights_path.read_bytes()
    assert same_history(resumed.run, whole.run)


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_nothing(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure()
    whole = train(config, out=tmp_path / "whole").run
    (tmp_path / "config.toml").write_text((whole.path / "config.toml").read_text())
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "tumorlens", "train", "--out", str(out)]
    rng = np.random.default_rng(0)
    for attempt in range(4):
        resume = ["--resume"] if (out / "config.toml").exists() else []
        new = [] if resume else [str(tmp_path / "config.toml")]
        process = subprocess.Popen(
            [*command, *resume, *new],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # From before the run folder exists to after some epochs.
        deadline = time.monotonic() + 60
        while attempt and not out.is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2.5) if attempt else 1.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (out / "config.toml").exists():
        train(load_config(tmp_path / "config.toml"), out=out)
    resumed = train(None, out=out, resume=True).run
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert same_history(resumed, whole)


def test_a_full_disk_leaves_the_previous_checkpoint(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    whole = train(config, out=tmp_path / "whole").run
    write_bytes = Path.write_bytes

    class FillDisk(Listener):
        def epoch(self, row: dict[str, Any]) -> None:
            def full(path: Path, content: Any) -> int:
                write_bytes(path, bytes(content)[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr(Path, "write_bytes", full)

    with pytest.raises(DataError, match="No space left on device"):
        train(config, out=tmp_path / "full", listener=FillDisk())
    monkeypatch.undo()
    left = open_run(tmp_path / "full")
    assert [row["epoch"] for row in left.history()] == [1]
    assert left.card().epoch == 1
    assert not list(left.path.rglob("*.tmp*"))

    resumed = train(None, out=left.path, resume=True).run
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_the_kept_weights_are_those_of_the_best_epoch(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    # A learning rate that grows far too high: the last epoch is not the best.
    config = configure("optim.epochs=5", "optim.lr=0.02", "train.ema_decay=none")
    result = train(config, out=tmp_path / "run")
    run, card = result.run, result.run.card()
    best = next(row for row in run.history() if row["epoch"] == card.epoch)
    assert best == result.best
    index = read_index(Path(str(run.config.data.path)))
    val = load_subset(
        PreparedData(index, run.split()),
        "val",
        decoding=Decoding(32, "pad", 3, image_limits(run.config.data)),
        config=run.config.data,
    )
    log_probs = infer(
        load_model(card, run.weights_path),
        plain_batches(val.plain(), batch_size=8),
        mean=card.mean,
        std=card.std,
        device=torch.device("cpu"),
        mirror=False,
    )
    matrix = metrics.confusion_matrix(
        val.labels, log_probs.argmax(axis=1), num_classes=4
    )
    assert float(metrics.accuracy(matrix)) == best["val_accuracy"]
    assert max(row["val_accuracy"] for row in run.history()) == best["val_accuracy"]


def test_early_stopping_ends_a_run_that_does_not_get_better(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        "optim.epochs=30",
        "optim.lr=1e-12",
        "train.early_stop_epochs=2",
        "train.best_by=accuracy",
    )
    history = train(config, out=tmp_path / "run").run.history()
    last_best = max(row["epoch"] for row in history if row["is_best"])
    assert len(history) == last_best + 2 < 30


def test_a_kfold_run_tests_every_kept_file_once(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        "data.protocol=grouped-kfold", "data.num_folds=3", "optim.epochs=1"
    )
    result = train(config, out=tmp_path / "run", command="tumorlens train ...")
    assert result.is_finished
    folds = result.run.folds()
    tested = [
        row.path for fold in folds for row in fold.split() if row.subset == "test"
    ]
    kept = [row.path for row in result.run.split() if row.subset != "left-out"]
    assert sorted(tested) == sorted(kept)
    assert len(tested) == 80


class Noting(Listener):
    """Keeps the folds that it is told of."""

    def __init__(self) -> None:
        self.folds: list[tuple[int, int]] = []

    def fold(self, fold: int, num_folds: int) -> None:
        self.folds.append((fold, num_folds))


def test_each_fold_is_told_of_and_says_what_auto_came_to(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        *("data.protocol=grouped-kfold", "data.num_folds=2", "optim.epochs=1"),
        *("train.precision=auto", "train.device=auto"),
    )
    listener = Noting()
    run = train(config, out=tmp_path / "run", listener=listener).run
    assert listener.folds == [(0, 2), (1, 2)]
    device = resolve_device("auto")
    for one in (run, *run.folds()):
        assert one.environment()["compute"] == {
            "device": device.type,
            "precision": resolve_precision("auto", device),
            "threads": torch.get_num_threads(),
            "processes": 1,
        }


def test_resuming_a_kfold_run_goes_on_in_its_fold(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        "data.protocol=grouped-kfold", "data.num_folds=2", "optim.epochs=2"
    )
    whole = train(config, out=tmp_path / "whole").run

    class StopInSecondFold(StopAt):
        def fold(self, fold: int, num_folds: int) -> None:
            if fold == 1:
                self.at = (1, 2)

    stopped = train(config, out=tmp_path / "stopped", listener=StopInSecondFold(0, 0))
    assert not stopped.is_finished
    resumed = train(None, out=tmp_path / "stopped", resume=True)
    assert resumed.is_finished
    for one, other in zip(whole.folds(), resumed.run.folds(), strict=True):
        assert one.weights_path.read_bytes() == other.weights_path.read_bytes()


def test_settings_that_do_not_fit_leave_no_folder(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("model.name=resnet1000")
    with pytest.raises(ConfigError, match=r"unknown model\.name 'resnet1000'"):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class FailAt(Listener):
    """Fails when a stage begins, and lets a user put a file into the run before."""

    def __init__(self, stage: str, file: Path | None = None) -> None:
        self.at = stage
        self.file = file

    def stage(self, name: str) -> None:
        if name == self.at:
            if self.file is not None:
                self.file.write_text("years of work")
            raise MemoryError


def test_a_training_that_fails_early_removes_only_what_it_has_written(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(MemoryError):
        train(configure(), out=out, listener=FailAt("decoding"))
    assert not out.exists()
    with pytest.raises(MemoryError):
        train(configure(), out=out, listener=FailAt("decoding", out / "thesis.txt"))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_two_trainings_in_one_folder_are_one_training_and_one_error(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_WAIT_S", 0.1)
    out = tmp_path / "run"
    problems = []

    class TrainHereToo(Listener):
        def epoch(self, row: dict[str, Any]) -> None:
            for resume in (False, True):
                with pytest.raises(RunError) as caught:
                    train(None if resume else configure(), out=out, resume=resume)
                problems.append(caught.value.problem)

    config = configure("optim.epochs=1")
    whole = train(config, out=tmp_path / "whole").run
    run = train(config, out=out, listener=TrainHereToo()).run
    assert problems == [f"{out} exists already", f"another command works in {out}"]
    assert run.weights_path.read_bytes() == whole.weights_path.read_bytes()


def test_a_run_killed_before_it_was_described_is_described_when_it_is_resumed(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    create_run(tmp_path / "run", configure("optim.epochs=1"))
    run = train(None, out=tmp_path / "run", resume=True, command="tumorlens x").run
    assert run.environment()["command"] == "tumorlens x"


def test_a_fold_without_its_verdict_keeps_its_weights(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure(
        "data.protocol=grouped-kfold", "data.num_folds=2", "optim.epochs=1"
    )

    class StopInSecondFold(StopAt):
        def fold(self, fold: int, num_folds: int) -> None:
            if fold == 1:
                self.at = (1, 1)

    out = tmp_path / "run"
    run = train(config, out=out, listener=StopInSecondFold(0, 0)).run
    first = run.folds()[0]
    rows = first.split()
    weights = first.weights_path.read_bytes()
    first.leak_path.unlink()
    write_split(first.split_path, rows[1:])
    with pytest.raises(RunError, match=r"0 has weights, and neither its leak\.json"):
        train(None, out=out, resume=True)
    # With the split of its weights it gets the verdict of all folds again, and what a
    # kill left of a fold that learnt nothing is taken over.
    write_split(first.split_path, rows)
    (run.fold_path(1) / "leak.json").unlink()
    shutil.rmtree(run.folds()[1].checkpoint_path.parent)
    assert train(None, out=out, resume=True).is_finished
    assert first.weights_path.read_bytes() == weights
    assert first.split() == rows
    assert first.leak().words == run.leak().words


def test_training_without_data_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data was named") as caught:
        train(Config(), out=tmp_path / "run")
    assert "--data DIR" in caught.value.hint


def test_data_that_changed_is_not_resumed_with(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(configure(), out=tmp_path / "run", listener=StopAt(1, 1)).run
    victim = next(Path(str(run.config.data.path)).rglob("*.png"))
    victim.write_bytes(victim.read_bytes() + b" ")
    with pytest.raises(RunError, match=r"1 file\(s\) differ, the first is .*\.png"):
        train(None, out=tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_refused(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(configure(), out=tmp_path / "run", listener=StopAt(1, 1)).run
    run.checkpoint_path.write_bytes(run.checkpoint_path.read_bytes()[:100])
    with pytest.raises(RunError, match="is not a checkpoint of this version"):
        train(None, out=run.path, resume=True)


def test_a_finished_run_is_left_as_it_is(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    run = train(configure(), out=tmp_path / "run").run
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    train(None, out=run.path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.slow
def test_two_processes_of_torchrun_train_one_network(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(dump_config(configure("optim.epochs=2")))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["-m", "tumorlens", "train", str(tmp_path / "config.toml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # One voice: the second process says nothing.
    assert done.stdout.count("next: tumorlens evaluate") == 1
    run = open_run(tmp_path / "run")
    assert run.is_finished
    assert len(run.history()) == 2
    assert run.card().epoch in (1, 2)


# which epoch is kept and when to stop


def row(epoch: int, accuracy: float, loss: float, *, best: bool = False) -> Any:
    return {
        "epoch": epoch,
        "val_accuracy": accuracy,
        "val_balanced_accuracy": 1 - accuracy,
        "val_macro_f1": 0.5,
        "val_loss": loss,
        "is_best": best,
    }


BEFORE = [row(1, 0.6, 0.5), row(2, 0.8, 0.7), row(3, 0.7, 0.4)]


@pytest.mark.parametrize(
    ("by", "accuracy", "loss", "expected"),
    [
        ("accuracy", 0.9, 9.0, True),
        ("accuracy", 0.75, 0.1, False),
        ("accuracy", 0.8, 0.6, True),  # equal, and the loss is lower
        ("accuracy", 0.8, 0.7, False),  # equal in both: the earlier one stays
        ("accuracy", 0.8, 0.8, False),
        ("balanced_accuracy", 0.5, 9.0, True),
        ("balanced_accuracy", 0.7, 0.1, False),
        ("macro_f1", 0.0, 0.39, True),
        ("macro_f1", 0.9, 0.41, False),
        ("loss", 0.0, 0.39, True),
        ("loss", 0.9, 0.41, False),
        ("last", 0.0, 9.0, True),
    ],
)
def test_an_epoch_is_best_when_its_measure_beats_all_before(
    by: str, accuracy: float, loss: float, *, expected: bool
) -> None:
    assert is_best(row(4, accuracy, loss), BEFORE, by=by) is expected


def test_the_first_epoch_is_the_best_so_far() -> None:
    assert is_best(row(1, 0.0, 9.0), [], by="accuracy")


def settings(*, epochs: int = 10, patience: int | None = None) -> Config:
    assignments = [f"optim.epochs={epochs}"]
    if patience is not None:
        assignments.append(f"train.early_stop_epochs={patience}")
    return load_config(assignments=assignments)


def test_a_training_is_over_after_its_last_epoch() -> None:
    history = [row(epoch, 0.5, 0.5, best=True) for epoch in range(1, 4)]
    assert not is_over(history[:2], settings(epochs=3))
    assert is_over(history, settings(epochs=3))


def test_a_training_is_over_after_too_many_epochs_without_a_better_one() -> None:
    bests = [True, False, True, False, False, False]
    history = [
        row(epoch, 0.5, 0.5, best=best) for epoch, best in enumerate(bests, start=1)
    ]
    over = [is_over(history[:num], settings(patience=2)) for num in range(7)]
    assert over == [False, False, False, False, False, True, True]
    assert not is_over(history, settings(patience=4))
    assert not is_over(history, settings())


class FirstPixel(nn.Module):
    """The logits are the first pixels of the image, with dropout before them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.dropout(images[:, 0, 0, : self.num_classes])
        return logits


@pytest.mark.parametrize("mirror", [False, True])
def test_the_val_columns_are_those_of_scikit_learn(*, mirror: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    positions = rng.permutation(60)[:50].tolist()
    labels = rng.integers(0, 3, 50)
    config = load_config(
        assignments=[f"model.mirror={str(mirror).lower()}", "train.batch_size=7"]
    )
    got = validate(
        FirstPixel(3),
        Subset(images, positions, labels),
        config,
        Preprocessing(8, (0.25,), (0.1,)),
        torch.device("cpu"),
    )

    values = (images[positions, 0, :, 0] / 255 - 0.25) / 0.1  # (N, 8)
    exponentials = np.exp(values[:, :3])
    probs = exponentials / exponentials.sum(axis=1, keepdims=True)
    if mirror:
        exponentials = np.exp(values[:, :4:-1])
        probs = (probs + exponentials / exponentials.sum(axis=1, keepdims=True)) / 2
    predicted = probs.argmax(axis=1)
    assert got == pytest.approx(
        {
            "val_loss": log_loss(labels, probs),
            "val_accuracy": accuracy_score(labels, predicted),
            "val_balanced_accuracy": balanced_accuracy_score(labels, predicted),
            "val_macro_f1": f1_score(labels, predicted, average="macro"),
        },
        rel=1e-5,
    )


# resuming with settings


def test_a_run_goes_on_with_its_own_settings_given_again_and_with_moved_images(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure("optim.epochs=2")
    whole = train(config, out=tmp_path / "whole").run
    train(config, out=tmp_path / "run", listener=StopAt(1, 2))
    data = Path(str(config.data.path))
    data.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    again = configure_again(config, "data.path=moved", "train.workers=1")
    done = train(again, out=tmp_path / "run", resume=True)
    assert done.run.weights_path.read_bytes() == whole.weights_path.read_bytes()
    # What comes after finds the images by the run alone.
    assert open_run(done.run.path).config == done.run.config
    assert done.run.config.data.path == str(tmp_path / "moved")
    assert (done.run.config.train.workers, whole.config.train.workers) == (1, 0)


def configure_again(config: Config, *assignments: str) -> Config:
    values = config.model_dump(mode="json", exclude_none=True)
    for assignment in assignments:
        assign(values, *parse_assignment(assignment))
    return parse_config(values)


def begun(config: Config, path: Path) -> Run:
    """Return a run whose training has not begun, with its split."""
    run = create_run(path, absolute_paths(config))
    prepare_data(run)
    return run


def test_other_settings_are_refused_with_the_difference_and_change_nothing(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure()
    run = begun(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*")}
    now = configure_again(config, "optim.lr=0.5", "model.size_px=none")
    with pytest.raises(ConfigError) as caught:
        train(now, out=run.path, resume=True)
    assert caught.value.problem == (
        f"{run.path} was begun with other settings: model.size_px: 32 before, now "
        "unset; optim.lr: 0.001 before, now 0.5"
    )
    assert {path: path.read_bytes() for path in run.path.rglob("*")} == before


def test_images_that_are_others_are_refused_at_their_new_place(
    configure: Callable[..., Config], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    config = configure()
    run = begun(config, tmp_path / "run")
    others = make_images(num_each=19, name="others")
    with pytest.raises(RunError, match="has changed since the run was made"):
        train(configure_again(config, f"data.path={others}"), out=run.path, resume=True)
    assert open_run(run.path).config == run.config


def test_every_path_of_a_run_holds_from_any_folder(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = configure("optim.epochs=1")
    data = Path(str(config.data.path))
    paths = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.png"))
    (tmp_path / "meta.csv").write_text(
        "\n".join(["path,patient", *(f"{path},p{n}" for n, path in enumerate(paths))])
    )
    now = configure_again(config, "data.metadata=meta.csv", "data.path=data")
    run = train(now, out=tmp_path / "run", listener=StopAt(1, 1)).run
    saved = open_run(run.path).config.data
    assert saved.metadata == str(tmp_path / "meta.csv")
    assert saved.path == str(data)


# what cannot be trained


class NoteKeeper(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_settings_without_effect_are_said_once(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("optim.momentum=0.5", "optim.min_lr=1e-5", "optim.name=adamw")
    assert idle_words(config) == [
        "optim.min_lr has no effect: optim.scheduler is 'onecycle'",
        "optim.momentum has no effect: optim.name is 'adamw'",
    ]
    listener = NoteKeeper()
    short = configure_again(config, "optim.epochs=1")
    train(short, out=tmp_path / "run", listener=listener)
    assert listener.notes == idle_words(config)
    again = NoteKeeper()
    train(None, out=tmp_path / "run", resume=True, listener=again)
    assert again.notes == []


def test_a_network_is_tried_before_the_images_are_decoded(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("images were decoded")

    monkeypatch.setattr(fit, "load_subset", fail)
    config = configure("model.name=vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="does not take images of 32 x 32 pixels"):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("at", [(1, 2), (99, 99)], ids=["stopped", "whole epoch"])
def test_weights_that_the_last_step_has_spoilt_are_never_saved(
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: tuple[int, int],
) -> None:
    def spoil(model: Any, *arguments: Any, **options: Any) -> Any:
        stats = train_epoch(model, *arguments, **options)
        model.fc.bias.data[0] = torch.nan
        return stats

    monkeypatch.setattr(fit, "train_epoch", spoil)
    config = configure("train.ema_decay=none", "optim.epochs=2")
    with pytest.raises(RunError, match=r"fc.bias has 1 of . values that are NaN.*dive"):
        train(config, out=tmp_path / "run", listener=StopAt(*at))
    assert not (tmp_path / "run").exists()


def test_mixing_needs_two_images(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"batch_size of at least 2 with augment"):
        train(configure("train.batch_size=1"), out=tmp_path / "run")
