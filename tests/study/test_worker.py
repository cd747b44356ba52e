"""Studies from start to end, with tiny networks on drawn images."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.postgres import PASSWORD
from tumorlens.cli import app
from tumorlens.cluster import units
from tumorlens.cluster.units import LeaseLostError, StoreError
from tumorlens.config import load_config
from tumorlens.errors import RunError
from tumorlens.runs.folder import create_run, open_run
from tumorlens.study import estimate, folder, worker
from tumorlens.study.estimate import estimate_study
from tumorlens.study.folder import Study, create_study, open_study
from tumorlens.study.plan_file import load_plan
from tumorlens.study.store import Claim
from tumorlens.study.worker import run_study, work
from tumorlens.training import fit as train_stage
from tumorlens.training.fit import train
from tumorlens.training.optim import make_optimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.postgres import Postgres

REPOSITORY = Path(__file__).parents[2]
STUDIES = sorted(REPOSITORY.glob("studies/*.toml"))

TINY = [
    "model.pretrained=no",
    "model.size_px=32",
    "train.batch_size=8",
    "data.cache_limit_mib=0",
]
AXES = '[base]\nmodel.name = "test_resnet"\noptim.epochs = 2\n[axes]\noptim.lr = {}\n'


@pytest.fixture
def make_study(make_images: Callable[..., Path], tmp_path: Path) -> Any:
    def make(text: str, *assignments: str) -> Study:
        data = tmp_path / "data"
        if not data.exists():
            make_images(subsets={"Training": 8, "Testing": 4})
        (tmp_path / "question.toml").write_text(text)
        plan = load_plan(
            tmp_path / "question.toml", assignments=[*TINY, *assignments], data=data
        )
        return create_study(tmp_path / "study", plan, store_url=None)

    return make


def states(study: Study) -> dict[str, str]:
    return {trial.arm: trial.state for trial in study.trials()}


def test_every_trial_becomes_a_finished_run_that_was_looked_at_once(
    make_study: Any,
) -> None:
    study = make_study("test = true\n" + AXES.format("[1e-2, 1e-3]"))
    assert work(study, study.open_store())
    assert states(study) == {"lr=0.01": "finished", "lr=0.001": "finished"}
    for trial in study.trials():
        run = open_run(trial.run_path)
        assert run.is_finished
        assert run.config.optim.lr == trial.settings["optim.lr"]
        assert len(run.looks()) == 1
        kept = [row for row in run.history() if row["is_best"]][-1]
        assert trial.value == kept["val_accuracy"]


def test_a_study_without_test_never_looks_at_it(make_study: Any) -> None:
    study = make_study(AXES.format("[1e-2]"))
    assert work(study, study.open_store())
    run = open_run(study.trials()[0].run_path)
    assert run.looks() == []
    assert not run.metrics_path.exists()


def test_finished_trials_are_not_touched_again(make_study: Any) -> None:
    study = make_study(AXES.format("[1e-2]"))
    work(study, study.open_store())
    weights = study.trials()[0].run_path / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert work(study, study.open_store())
    assert weights.stat().st_mtime_ns == before


def test_finished_trials_are_kept_when_the_store_was_moved_away(
    make_study: Any,
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    work(study, study.open_store())
    (trial,) = study.trials()
    before = (trial.run_path / "weights.safetensors").stat().st_mtime_ns
    (study.path / "store.sqlite").unlink()
    assert work(study, study.open_store())
    (again,) = study.trials()
    assert (again.state, again.value) == ("finished", trial.value)
    assert (trial.run_path / "weights.safetensors").stat().st_mtime_ns == before


def test_a_trial_that_diverges_is_kept_with_its_reason_and_the_others_go_on(
    make_study: Any,
) -> None:
    study = make_study(AXES.format("[1e30, 1e-3]"), "optim.name=sgd")
    assert work(study, study.open_store())
    first, second = study.trials()
    assert first.state == "failed"
    assert "diverged" in (first.reason or "")
    assert second.state == "finished"


def test_a_trial_that_another_worker_took_over_is_left_to_it(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2, 1e-3]"))

    def check(claim: Claim) -> None:
        if claim.name.startswith("lr=0.01"):
            claim._lease._stop()
            raise LeaseLostError(claim.name)

    monkeypatch.setattr(Claim, "check", check)
    assert work(study, study.open_store())
    assert states(study) == {"lr=0.01": "running", "lr=0.001": "finished"}
    assert not study.failure_path(study.trials()[0].name).exists()


def test_a_store_that_stays_away_ends_the_worker_and_fails_no_trial(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2, 1e-3]"))

    def check(claim: Claim) -> None:
        claim._lease._stop()
        raise StoreError("the store is away")

    monkeypatch.setattr(Claim, "check", check)
    with pytest.raises(StoreError, match="the store is away"):
        work(study, study.open_store())
    assert [*states(study).values()] == ["running", "waiting"]


def test_a_run_folder_is_written_by_one_process_at_a_time(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    monkeypatch.setattr(folder, "_LOCK_S", 0.1)
    (trial,) = study.plan.trials()
    with study.locked(trial.name):
        assert work(study, study.open_store())
    (found,) = study.trials()
    assert found.state == "failed"
    assert found.reason == f"another command works in {found.run_path}"
    assert not found.run_path.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("\n[future]\nsetting = 1\n", "unknown setting 'future'"),
        ("damaged", "config.toml"),
    ],
)
def test_a_run_that_this_version_cannot_read_is_left_alone(
    change: str, reason: str, make_study: Any
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    work(study, study.open_store())
    (trial,) = study.trials()
    path = trial.run_path / "config.toml"
    path.write_text(path.read_text() + change)
    before = {file: file.read_bytes() for file in sorted(trial.run_path.glob("*.*"))}
    (study.path / "store.sqlite").unlink()
    assert work(study, study.open_store())
    (again,) = study.trials()
    assert again.state == "failed"
    assert reason in str(again.reason)
    assert {one: one.read_bytes() for one in sorted(before)} == before


def test_a_run_of_other_settings_is_left_alone(make_study: Any) -> None:
    study = make_study(AXES.format("[1e-2]"))
    (trial,) = study.plan.trials()
    config = load_config(assignments=[*TINY, "data.path=elsewhere"])
    other = create_run(study.run_path(trial.name), config)
    assert work(study, study.open_store())
    (found,) = study.trials()
    assert found.state == "failed"
    assert f"{other.path} was begun with other settings" in str(found.reason)
    assert open_run(other.path).config == config


def test_a_finished_run_whose_batches_were_split_is_kept_when_the_store_is_lost(
    make_study: Any,
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    claim = study.open_store()
    claim.fill()
    first = claim.claim()
    first.split_batch()
    first.release()
    work(study, study.open_store())
    (trial,) = study.trials()
    assert open_run(trial.run_path).config.train.accumulate == 2
    before = (trial.run_path / "weights.safetensors").stat().st_mtime_ns
    (study.path / "store.sqlite").unlink()
    work(study, study.open_store())
    (again,) = study.trials()
    assert (again.state, again.value) == ("finished", trial.value)
    assert (trial.run_path / "weights.safetensors").stat().st_mtime_ns == before


def test_a_folder_that_a_kill_left_without_settings_is_taken_over(
    make_study: Any,
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    (trial,) = study.plan.trials()
    folder = study.run_path(trial.name)
    folder.mkdir(parents=True)
    (folder / ".config.0123.tmp.toml").write_text("[da")
    (folder / ".lock").write_text("")
    assert work(study, study.open_store())
    assert [*states(study).values()] == ["finished"]
    assert not list(folder.glob(".*"))


def test_a_store_that_is_away_at_the_end_of_a_trial_loses_no_training(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2]"))

    def finish(claim: Claim, value: float | None) -> None:
        claim._lease._stop()
        raise StoreError("gone", hint="")

    with monkeypatch.context() as patch:
        patch.setattr(Claim, "finish", finish)
        with pytest.raises(StoreError):
            work(study, study.open_store())
    (trial,) = study.trials()
    before = (trial.run_path / "weights.safetensors").stat().st_mtime_ns
    # Its worker has ended.
    monkeypatch.setattr(units, "_is_alive", lambda *_: False)
    store = study.open_store()
    store.take_back_orphans()
    assert work(study, store)
    (again,) = study.trials()
    assert again.state == "finished"
    assert (trial.run_path / "weights.safetensors").stat().st_mtime_ns == before


def test_a_fault_of_ours_leaves_its_traceback_and_the_others_go_on(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2, 1e-3]"))
    original = train_stage.train

    def faulty(config: Any, **options: Any) -> Any:
        if config is not None and config.optim.lr == 1e-2:
            raise KeyError("no such thing")
        return original(config, **options)

    monkeypatch.setattr(train_stage, "train", faulty)
    assert work(study, study.open_store())
    first, second = study.trials()
    assert (first.state, second.state) == ("failed", "finished")
    assert first.reason == "KeyError: 'no such thing'"
    assert "Traceback" in study.failure_path(first.name).read_text()


def test_out_of_memory_splits_the_batch_and_keeps_its_size(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    original = train_stage.train
    seen = []

    def hungry(config: Any, **options: Any) -> Any:
        seen.append(config.train.accumulate)
        if config.train.accumulate < 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(config, **options)

    monkeypatch.setattr(train_stage, "train", hungry)
    assert work(study, study.open_store())
    assert seen == [1, 2, 4]
    config = open_run(study.trials()[0].run_path).config
    assert (config.train.batch_size, config.train.accumulate) == (8, 4)
    assert states(study) == {"lr=0.01": "finished"}


def test_memory_that_is_never_enough_is_a_failure_with_its_reason(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-2]"))

    def hungry(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_stage, "train", hungry)
    assert work(study, study.open_store())
    assert "out of memory" in (study.trials()[0].reason or "")


def test_a_search_aims_at_val_and_keeps_what_it_chose(make_study: Any) -> None:
    study = make_study(
        '[base]\nmodel.name = "test_resnet"\noptim.epochs = 1\n'
        '[search]\ntrials = 2\nsampler = "random"\nobjective = "loss"\n'
        "ranges.optim.lr = {low = 1e-4, high = 1e-2, log = true}\n"
    )
    assert work(study, study.open_store())
    for trial in study.trials():
        run = open_run(trial.run_path)
        assert run.config.optim.lr == trial.settings["optim.lr"]
        assert trial.value == run.history()[-1]["val_loss"]
        assert run.looks() == []


@pytest.mark.parametrize("objective", ["loss", "accuracy"])
def test_the_best_trial_of_a_search_is_named_with_its_settings(
    make_study: Any, capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    study = make_study(
        '[base]\nmodel.name = "test_resnet"\noptim.epochs = 1\n'
        f'[search]\ntrials = 3\nsampler = "random"\nobjective = "{objective}"\n'
        "ranges.optim.lr = {low = 1e-5, high = 1e-1, log = true}\n"
    )
    store = study.open_store()
    store.fill()
    for value in (0.5, 0.25, 0.75):
        claim = store.claim()
        claim.choose()
        claim.finish(value)
    assert app.main(["study", "status", str(study.path)]) == 0
    best = study.trials()[1 if objective == "loss" else 2]
    lr = best.settings["optim.lr"]
    shown = "0.250" if objective == "loss" else "75.0 %"
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"the best of 3 finished trials by val {objective} is {best.name} with "
        f"{shown}: --set optim.lr={lr}"
    ) in said


def test_the_status_names_the_measure_and_what_was_interrupted(
    make_study: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(AXES.format("[1e-2, 1e-3]"))
    study.open_store().fill()
    study.run_path("lr=0.001_grouped_seed42").mkdir(parents=True)
    assert app.main(["study", "status", str(study.path)]) == 0
    heading, first, second, *_ = capsys.readouterr().out.splitlines()
    assert "val accuracy" in heading
    assert "waiting" in first
    assert "interrupted" in second


def test_a_study_that_never_looks_at_test_is_compared_on_val_by_one_command(
    make_study: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(
        '[base]\nmodel.name = "test_resnet"\noptim.epochs = 1\n'
        '[search]\ntrials = 2\nsampler = "random"\n'
        "ranges.optim.lr = {low = 1e-4, high = 1e-2, log = true}\n"
    )
    assert work(study, study.open_store())
    assert app.main(["compare", str(study.path), "--no-latency"]) == 0
    found = json.loads((study.path / "comparison.json").read_text(encoding="utf-8"))
    assert found["subset"] == "val"
    for trial, arm in zip(study.trials(), found["arms"], strict=True):
        run = open_run(trial.run_path)
        assert arm["measures"]["grouped"]["accuracy"]["value"] == trial.value
        assert run.looks() == []
        assert not run.metrics_path.exists()
    assert app.main(["compare", str(study.path), "--subset", "test"]) == 2
    hint = capsys.readouterr().err.splitlines()[-1]
    for trial in study.trials():
        assert f"tumorlens evaluate {trial.run_path}; " in hint


def test_another_study_in_the_same_folder_is_refused(make_study: Any) -> None:
    make_study(AXES.format("[1e-2]"))
    with pytest.raises(Exception, match="holds another study"):
        make_study(AXES.format("[1e-3]"))


def refuse_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> Any:
        raise AssertionError("a worker that has nothing to do")

    monkeypatch.setattr(worker, "_start_worker", start)


def test_a_search_whose_minutes_are_spent_ends_and_names_what_was_not_run(
    make_study: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(
        '[base]\nmodel.name = "test_resnet"\noptim.epochs = 1\n'
        "[search]\ntrials = 3\nminutes = 0.001\nranges.optim.lr = [1e-3, 1e-4]\n"
    )
    store = study.open_store()
    store.fill()
    claim = store.claim()
    time.sleep(0.1)
    claim.finish(0.5)
    refuse_workers(monkeypatch)
    assert app.main(["study", "run", str(study.path)]) == 0
    said = capsys.readouterr().out
    assert "2 trials not run: the 0.001 minutes are spent" in said


def test_trials_that_other_processes_run_are_waited_for_without_workers(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-3]"))
    store = study.open_store()
    store.fill()
    claim = store.claim()
    refuse_workers(monkeypatch)
    end = threading.Timer(1, claim.finish, [0.5])
    end.start()
    assert run_study(study)
    assert states(study) == {"lr=0.001": "finished"}
    end.join()


STARTING = """
import sys, time
from pathlib import Path
from tumorlens.study.folder import open_study
open_study(Path(sys.argv[1])).open_store().claim()
time.sleep(60)
"""


def test_the_trial_of_a_worker_that_is_stopped_as_it_starts_waits_again(
    make_study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(AXES.format("[1e-3]"))
    signals: list[int] = []

    def start(*_: Any, **__: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", STARTING, str(study.path)])

    def interrupt(found: worker.StudyProgress) -> None:
        if found.counts.get("running") and not signals:
            signals.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(worker, "_start_worker", start)
    assert not run_study(study, progress=interrupt)
    assert states(study) == {"lr=0.001": "waiting"}


def test_a_log_that_cannot_be_written_is_named(make_study: Any) -> None:
    study = make_study(AXES.format("[1e-3]"))
    study.log_path.mkdir()
    with pytest.raises(RunError, match=r"cannot write .*worker\.log: Is a directory"):
        run_study(study)


def run_command(tmp_path: Path, *more: str | Path) -> int:
    """Run the study of question.toml by the command line."""
    settings = [word for one in (*TINY, "optim.name=sgd") for word in ("--set", one)]
    words = ["study", "run", tmp_path / "question.toml", "--data", tmp_path / "data"]
    return app.main([str(word) for word in (*words, *settings, *more)])


@pytest.mark.parametrize(
    ("rates", "count", "next_words"),
    [
        ("[1e30, 1e-3]", "1 of 2 trials failed", "tumorlens compare"),
        ("[1e30]", "1 of 1 trial failed", "--retry-failed"),
    ],
)
def test_a_study_with_failed_trials_says_how_many_and_exits_with_3(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rates: str,
    count: str,
    next_words: str,
) -> None:
    make_images(subsets={"Training": 8, "Testing": 4})
    (tmp_path / "question.toml").write_text(AXES.format(rates))
    assert run_command(tmp_path, "--out", tmp_path / "study") == 3
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == count
    assert next_words in said.out + said.err
    assert ("tumorlens compare" in said.out + said.err) == (count[5] == "2")


def test_a_pattern_that_no_trial_matches_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "question.toml").write_text(AXES.format("[1e-3]"))
    assert run_command(tmp_path, "--out", tmp_path / "s", "--only", "zzz*") == 2
    assert "lr=0.001_grouped_seed42" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("below", ["", "study"])
def test_a_file_where_the_folder_should_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], below: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "question.toml").write_text(AXES.format("[1e-3]"))
    (tmp_path / "file").write_text("mine")
    assert run_command(tmp_path, "--out", tmp_path / "file" / below) == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [("study", "status"), ("compare",)])
def test_looking_at_a_study_that_is_not_in_the_store_makes_none(
    make_study: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
) -> None:
    study = make_study(AXES.format("[1e-2]"))
    store = tmp_path / "none.sqlite"
    words = [*command, str(study.path), "--store", f"sqlite:///{store}"]
    assert app.main(words) == 2
    said = capsys.readouterr().err
    assert "holds no such study as 'question'" in said
    assert f"tumorlens study run {study.path}" in said
    assert list(tmp_path.glob("none*")) == []


def outcome(study: Study) -> dict[str, Any]:
    """Return what must not depend on interruptions: states, histories, weights."""
    found = {}
    for trial in study.trials():
        rows = open_run(trial.run_path).history()
        for row in rows:
            del row["seconds"], row["images_per_second"]
        weights = (trial.run_path / "weights.safetensors").read_bytes()
        found[trial.name] = (trial.state, trial.value, rows, hash(weights))
    return found


@pytest.mark.faults
@pytest.mark.slow
def test_kill_9_at_ten_moments_gives_the_table_of_an_undisturbed_study(
    make_study: Any, tmp_path: Path
) -> None:
    study = make_study("test = true\n" + AXES.format("[1e-2, 1e-3]"))
    assert run_study(study)
    expected = outcome(study)
    study.path.rename(tmp_path / "undisturbed")

    study = make_study("test = true\n" + AXES.format("[1e-2, 1e-3]"))
    dice = random.Random(0)
    code = (
        "from tumorlens.cli.app import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "study", "run", str(study.path)]
    for _ in range(10):
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as parent:
            time.sleep(dice.uniform(0.2, 6))
            if dice.random() < 0.5:
                kill_workers(study.path)
            parent.kill()
    kill_workers(study.path)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert outcome(open_study(study.path)) == expected


def kill_workers(study: Path) -> None:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tumorlens.study.worker" in words and str(study).encode() in words:
            try:
                os.kill(int(entry.parent.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.mark.slow
def test_the_password_of_a_store_is_in_no_file_and_nothing_that_is_printed(
    make_images: Callable[..., Path],
    postgres: Postgres,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_images(subsets={"Training": 8, "Testing": 4})
    study = tmp_path / "study"
    plan = tmp_path / "secret-store.toml"
    plan.write_text(
        "test = true\n" + AXES.format("[1e30, 1e-3]"), encoding="utf-8"
    )  # one of them diverges, and its reason is kept
    assert f":{PASSWORD}@" in postgres.url
    settings = [word for one in TINY for word in ("--set", one)]
    words = ["study", "run", plan, "--data", tmp_path / "data", "--out", study]
    store = ["--store", postgres.url]
    assert app.main([str(word) for word in (*words, *settings, *store)]) == 3
    assert app.main(["study", "status", str(study), *store]) == 0
    assert app.main(["compare", str(study), "--no-latency", *store]) == 0

    # Without it nobody comes in: the hint says that it is kept nowhere.
    assert app.main(["study", "status", str(study)]) == 2
    assert app.main(["study", "run", str(study)]) == 2
    wrong = postgres.url.replace(PASSWORD, f"{PASSWORD}!")
    assert app.main(["compare", str(study), f"--store={wrong}"]) == 2
    out, err = capfd.readouterr()
    assert err.count("a password is kept nowhere") == 3
    assert PASSWORD not in out + err
    files = [path for path in study.rglob("*") if path.is_file()]
    assert {"environment.json", "worker.log", "comparison.html", "store.txt"} <= {
        path.name for path in files
    }
    holding = [path for path in files if PASSWORD.encode() in path.read_bytes()]
    assert holding == []
    run = open_run(study / "trials" / "lr=0.001_grouped_seed42")
    assert "--store postgresql://tester@" in run.environment()["command"]


def test_there_are_the_experiments_of_the_baseline_study() -> None:
    assert {path.stem for path in STUDIES} >= {
        "learning-rate",
        "regularization",
        "augmentation",
        "optimizer-pooling",
        "scheduler",
        "models",
    }


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_can_be_planned(path: Path) -> None:
    plan = load_plan(path)
    assert len(plan.trials()) == 2 * len(plan.arms)
    assert set(plan.protocols) == {"as-given", "grouped-kfold"}
    comment = path.read_text(encoding="utf-8")
    assert f"tumorlens study run studies/{path.name} " in comment
    assert (
        estimate_study(plan, plan.trials()) is None
    )  # without images there is no time to tell


def test_the_sgd_of_the_baseline_study_is_torch_s_with_classical_momentum() -> None:
    plan = load_plan(REPOSITORY / "studies" / "optimizer-pooling.toml")
    (trial, _) = [one for one in plan.trials() if one.arm == "SGD, max"]
    config = plan.config_of(trial.settings, protocol="as-given", seed=42)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config.optim)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["nesterov"] is False
    assert optimizer.defaults["momentum"] == 0.9


def test_the_time_of_a_trial_is_estimated_from_its_images_and_epochs(
    make_study: Any,
) -> None:
    plan = make_study(AXES.format("[1e-2]")).plan
    short = estimate_study(plan, plan.trials())
    assert short is not None
    assert list(short) == ["lr=0.01_grouped_seed42"]
    assert 0 < short["lr=0.01_grouped_seed42"] < 120


def test_the_images_of_an_estimate_are_those_that_the_trial_gets(
    make_study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_time_steps", lambda *_, **__: (1.0, 1000.0))
    plan = make_study(
        'protocols = ["grouped", "grouped-kfold"]\n' + AXES.format("[1e-2]"),
        "data.num_folds=2",
    ).plan
    seconds = estimate_study(plan, plan.trials())
    assert seconds is not None
    for trial in plan.trials():
        settings = {"protocol": trial.protocol, "seed": trial.seed}
        run = train(
            plan.config_of(trial.settings, **settings), out=tmp_path / trial.name
        )
        networks = [one.split() for one in run.run.folds() or [run.run]]
        expected = 0.0
        for rows in networks:
            num = Counter(row.subset for row in rows)
            expected += 2 * (num["train"] + 1000 * num["val"]) + 1000 * num["test"]
        assert seconds[trial.name] == expected


def dry_run(file: Path, data: Path, *settings: str) -> list[str]:
    """Return the words of a dry run with a tiny network."""
    words = ["study", "run", str(file), "--data", str(data), "--dry-run"]
    for assignment in (*TINY, *settings):
        words += ["--set", assignment]
    return words


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.pretrained=gone.safetensors", "gone.safetensors"),
        ("data.num_folds=20", "too few for 20 subsets"),
    ],
)
def test_a_dry_run_finds_what_would_end_every_trial_at_its_start(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    setting: str,
    said: str,
) -> None:
    data = make_images(subsets={"Training": 8, "Testing": 4})
    file = tmp_path / "question.toml"
    file.write_text('protocols = ["grouped-kfold"]\n' + AXES.format("[1e-2]"))
    words = dry_run(file, data, setting)
    assert app.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_dry_run_leaves_out_what_is_over(
    make_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(AXES.format("[1e-2, 1e-3]"))
    store = study.open_store()
    store.fill()
    store.claim().finish(0.5)
    words = dry_run(tmp_path / "question.toml", tmp_path / "data")
    by_folder = ["study", "run", str(study.path), "--dry-run"]
    for more in ([*words, "--out", str(study.path)], by_folder):
        assert app.main(more) == 0
        said = capsys.readouterr().out
        assert "not run again, because over: 1 trial" in said
        assert "lr=0.01_grouped" not in said
        assert "lr=0.001_grouped" in said
        assert "1 trial, about" in said
    store.claim().fail("no way")
    assert app.main([*words, "--out", str(study.path)]) == 0
    assert "nothing is left to run" in capsys.readouterr().out
    assert app.main(words) == 0  # another folder
    assert "2 trials, about" in capsys.readouterr().out


def test_a_dry_run_of_a_search_for_minutes_says_what_one_trial_takes(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_images(subsets={"Training": 8, "Testing": 4})
    file = tmp_path / "question.toml"
    file.write_text(
        '[base]\nmodel.name = "test_resnet"\noptim.epochs = 2\n[search]\n'
        "minutes = 1.5\nranges.optim.lr = {low = 1e-4, high = 1e-2}\n"
    )
    words = dry_run(file, data)
    assert app.main(words) == 0
    said = capsys.readouterr().out
    assert "trial-0001  chosen when it starts" in said
    assert "as many trials like this one as begin within 1.5 minutes" in said


def test_a_dry_run_shows_the_trials_that_were_asked_for(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_images(subsets={"Training": 8, "Testing": 4})
    file = tmp_path / "question.toml"
    file.write_text(AXES.format("[1e-2, 1e-3]"))
    words = dry_run(file, data)
    assert app.main([*words, "--only", "lr=0.001*"]) == 0
    said = capsys.readouterr().out
    assert "lr=0.001_grouped_seed42" in said
    assert "lr=0.01_grouped" not in said
    assert "1 trials" not in said
