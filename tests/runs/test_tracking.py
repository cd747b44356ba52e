"""MLflow as a mirror of run folders: real ones, on SQLite and on a real server.

A server needs MLflow in full, which the extra does not bring: name its command in
TUMORLENS_TEST_MLFLOW, or have `mlflow` with its server beside this Python.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.runs_on_images import history_row, make_kfold_run, make_run
from tumorlens.cli import terminal
from tumorlens.config import load_config
from tumorlens.errors import ConfigError, MissingExtraError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.tta import measure_tta
from tumorlens.report import write_run_report
from tumorlens.runs.folder import MIRRORS, Look, Run, open_run
from tumorlens.runs.progress import Listener
from tumorlens.runs.tracking import DATABASE, Tracker
from tumorlens.training.ensemble import make_ensemble
from tumorlens.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


from typing import TYPE_CHECKING

from tumorlens.config import parse_config
from tumorlens.runs.tracking import (
    figures_of,
    files_of,
    params_of,
    settings_of,
    tags_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.filterwarnings(
    # Of MLflow's and SQLAlchemy's own: closed when the process ends.
    "ignore:unclosed database:ResourceWarning",
    "ignore::DeprecationWarning:mlflow",
)

MODEL = ["model.name=test_resnet", "model.pretrained=no", "model.size_px=32"]


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=8, name="data")


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    return make_run(tmp_path / "runs" / "first", data)


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    """Return where a run in the folder `runs` is tracked by default."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    return Path(shutil.copy(empty_database, tmp_path / "runs" / DATABASE))


class Warnings(list[str]):
    """What a tracker had to say."""

    def tracker(self, url: str = "", **options: Any) -> Tracker:
        return Tracker(url, warn=self.append, **options)


@pytest.fixture
def said() -> Warnings:
    return Warnings()


def client(url: str) -> Any:
    import mlflow.tracking

    return mlflow.tracking.MlflowClient(url)


def runs_at(url: str, experiment: str = "tumorlens") -> dict[str, Any]:
    """Return what MLflow has, by the name of the run."""
    there = client(url)
    found = there.get_experiment_by_name(experiment)
    runs = there.search_runs([found.experiment_id]) if found else []
    return {one.info.run_name: one for one in runs}


def curve(url: str, there: Any, name: str) -> list[tuple[int, float]]:
    points = client(url).get_metric_history(there.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def artifacts_of(there: Any) -> set[str]:
    root = Path(there.info.artifact_uri.removeprefix("file://"))
    return {
        path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()
    }


# what is sent


def test_a_run_is_mirrored_with_settings_curves_and_network(
    run: Run, database: Path, said: Warnings
) -> None:
    assert said.tracker().mirror(run)
    assert said == []
    url = f"sqlite:///{database}"
    there = runs_at(url)["first"]
    assert there.info.status == "FINISHED"
    assert there.data.params["model.name"] == "test_resnet"
    assert there.data.params["optim.lr"] == str(run.config.optim.lr)
    assert curve(url, there, "val_loss") == [
        (row["epoch"], row["val_loss"]) for row in run.history()
    ]
    assert curve(url, there, "epoch") == [(1, 1), (2, 2)]
    assert there.data.metrics["kept/val_accuracy"] == run.history()[-1]["val_accuracy"]
    assert there.data.metrics["kept/epoch"] == 2
    assert there.data.tags["mlflow.note.content"] == "No copies."
    assert artifacts_of(there) == {
        *("config.toml", "history.jsonl", "model.json", "weights.safetensors")
    }
    assert (database.parent / MIRRORS).is_dir()


def test_evaluation_and_report_add_to_the_same_run(
    run: Run, database: Path, said: Warnings
) -> None:
    assert said.tracker().mirror(run)
    measures = evaluate(run, device="cpu")
    evaluate(run, subset="val", device="cpu")
    measure_tta(run, device="cpu")
    write_run_report(run)
    assert said.tracker().mirror(run)
    (there,) = runs_at(f"sqlite:///{database}").values()
    got = there.data.metrics
    assert got["test/accuracy"] == measures.accuracy.value
    assert got["test/accuracy_low"] == measures.accuracy.low
    assert got["test/ece"] == measures.ece.value
    assert got["test/ece_low"] == measures.ece.low
    # How an interval was made is in metrics.json and no number.
    assert not [name for name in got if name.endswith(("_method", "_num_units"))]
    assert "val/accuracy" in got
    assert artifacts_of(there) == {
        *("config.toml", "history.jsonl", "model.json", "weights.safetensors"),
        *("metrics.json", "metrics-val.json", "tta/val.json"),
        *(
            f"figures/{name}.{suffix}"
            for name in ("confusion", "roc", "calibration", "curves")
            for suffix in ("svg", "png")
        ),
    }


def test_what_is_there_is_not_sent_again(
    run: Run, database: Path, said: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.tracking

    said.tracker().mirror(run)
    for name in ("log_batch", "log_artifact", "log_text", "create_run"):

        def refuse(*_: Any, name: str = name, **__: Any) -> None:
            raise AssertionError(f"{name} was called")

        monkeypatch.setattr(mlflow.tracking.MlflowClient, name, refuse)
    assert said.tracker().mirror(run), said


def test_neither_paths_nor_names_of_images_or_patients_are_sent(
    tmp_path: Path, data: Path, database: Path, said: Warnings
) -> None:
    run = make_run(
        tmp_path / "runs" / "first",
        data,
        settings={"data": {"metadata": str(data / "metadata.csv")}},
    )
    rows = list(run.split())
    for number in (2, 3):  # one of val, one of test
        name = f"glioma/MUELLER_{number}.png"
        (data / "glioma" / f"{number}.png").rename(data / name)
        rows = [
            replace(row, path=row.path.replace(f"glioma/{number}.png", name))
            for row in rows
        ]
    run.write_split(rows, run.leak())
    (data / "metadata.csv").write_text("path,patient\nglioma/MUELLER_3.png,HANS\n")
    model = run.config.model.model_copy(
        update={"pretrained": str(tmp_path / "SECRET" / "start.safetensors")}
    )
    run = Run(run.path, run.config.model_copy(update={"model": model}))
    evaluate(run, device="cpu")
    measure_tta(run, device="cpu")
    write_run_report(run)
    (run.figures_dir / "mistakes.png").write_bytes(b"a picture of MUELLER")
    assert said.tracker().mirror(run), said
    sent = database.read_bytes() + b"".join(
        path.read_bytes()
        for path in (database.parent / MIRRORS).rglob("*")
        if path.is_file()
    )
    for secret in ("MUELLER", "HANS", "SECRET", str(data), "glioma/"):
        assert secret.encode() not in sent, secret
    assert b"start.safetensors" in sent


def test_folds_are_runs_below_that_of_the_whole(
    tmp_path: Path, data: Path, database: Path, said: Warnings
) -> None:
    run = make_kfold_run(tmp_path / "runs" / "folds", data)
    evaluate(run, device="cpu")
    assert said.tracker().mirror(run), said
    found = runs_at(f"sqlite:///{database}")
    assert sorted(found) == ["fold 0", "fold 1", "folds"]
    for name in ("fold 0", "fold 1"):
        parent = found[name].data.tags["mlflow.parentRunId"]
        assert parent == found["folds"].info.run_id
        assert found[name].data.metrics["epoch"] == 2
        assert "weights.safetensors" in artifacts_of(found[name])
    assert "test/accuracy" in found["folds"].data.metrics
    assert artifacts_of(found["folds"]) == {"config.toml", "metrics.json"}


def test_folds_that_come_later_go_where_the_run_is_tracked(
    tmp_path: Path, data: Path, empty_database: Path, said: Warnings
) -> None:
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mine.db')}"
    run = make_kfold_run(tmp_path / "runs" / "folds", data)
    later = run.fold_path(1).rename(tmp_path / "later")
    said.tracker(url).mirror(run)
    later.rename(run.fold_path(1))
    said.tracker().mirror(run)
    said.tracker(url).mirror(run)
    assert said == []
    assert [fold.tracking()["url"] for fold in run.folds()] == [url, url]
    experiment = client(url).get_experiment_by_name("tumorlens").experiment_id
    assert len(client(url).search_runs([experiment])) == 3


def test_an_ensemble_is_mirrored_with_its_members(
    tmp_path: Path, data: Path, run: Run, database: Path, said: Warnings
) -> None:
    other = make_run(tmp_path / "other", data, seed=1)
    both = make_ensemble([run.path, other.path], out=tmp_path / "runs" / "both")
    assert said.tracker().mirror(both), said
    there = runs_at(f"sqlite:///{database}")["both"]
    assert there.data.params["model.name"] == "2 x test_resnet"
    assert {
        "ensemble.json",
        "members/0/model.json",
        "members/1/weights.safetensors",
    } < (artifacts_of(there))


def test_a_long_history_is_sent_in_parts(
    run: Run, database: Path, said: Warnings
) -> None:
    run.write_history([history_row(epoch) for epoch in range(1, 151)])
    assert said.tracker().mirror(run), said
    url = f"sqlite:///{database}"
    assert len(curve(url, runs_at(url)["first"], "val_loss")) == 150


def test_an_experiment_of_another_name_is_its_own(
    run: Run, database: Path, said: Warnings
) -> None:
    assert said.tracker(experiment="learning-rate").mirror(run), said
    assert list(runs_at(f"sqlite:///{database}", "learning-rate")) == ["first"]
    assert runs_at(f"sqlite:///{database}") == {}


def test_a_run_deleted_in_mlflow_begins_anew(
    run: Run, database: Path, said: Warnings
) -> None:
    said.tracker().mirror(run)
    url = f"sqlite:///{database}"
    first = runs_at(url)["first"].info.run_id
    client(url).delete_run(first)
    assert said.tracker().mirror(run), said
    again = runs_at(url)["first"]
    assert again.info.run_id != first
    assert again.data.metrics["epoch"] == 2
    assert "weights.safetensors" in artifacts_of(again)


def test_a_run_begun_anew_in_its_folder_leaves_none_that_seems_to_run(
    run: Run, database: Path, said: Warnings
) -> None:
    tracker = said.tracker()
    (run.path / "finished").rename(run.path / "later")
    tracker.mirror(run, state="RUNNING")
    first = runs_at(f"sqlite:///{database}")["first"]
    assert first.info.status == "RUNNING"
    run.tracking_path.unlink()
    tracker.mirror(run, state="RUNNING")
    url = f"sqlite:///{database}"
    assert client(url).get_run(first.info.run_id).info.status == "KILLED"
    second = run.tracking()["run_id"]
    assert client(url).get_run(second).info.status == "RUNNING"


def test_a_folder_that_was_moved_is_mirrored_beside_its_new_place(
    run: Run, database: Path, tmp_path: Path, said: Warnings, empty_database: Path
) -> None:
    said.tracker().mirror(run)
    (tmp_path / "new").mkdir()
    shutil.copy(empty_database, tmp_path / "new" / DATABASE)
    shutil.move(run.path, tmp_path / "new" / "first")
    shutil.rmtree(tmp_path / "runs")
    assert said.tracker().mirror(open_run(tmp_path / "new" / "first")), said
    assert list(runs_at(f"sqlite:///{tmp_path / 'new' / DATABASE}")) == ["first"]
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_where_it_was_tracked_before(
    run: Run, empty_database: Path, tmp_path: Path, said: Warnings
) -> None:
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mine.db')}"
    said.tracker(url).mirror(run)
    tracker = said.tracker()
    assert tracker.url_of(run) == url
    assert tracker.mirror(run), said
    assert len(runs_at(url)) == 1
    assert not (tmp_path / "runs" / DATABASE).exists()
    assert url in tracker.summary(tracker.url_of(run))


# a training


def configure(data: Path, *more: str) -> Any:
    return load_config(
        assignments=[
            *MODEL,
            f"data.path={data}",
            f"data.cache_dir={data.parent / 'cache'}",
            *("train.batch_size=8", "train.device=cpu", "optim.epochs=3", *more),
        ]
    )


class Stop(Listener):
    """Breaks off after an epoch, with an error of any kind."""

    def __init__(self, error: BaseException, *, epoch: int) -> None:
        self.error = error
        self.at = epoch

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.at:
            raise self.error


def follow(
    tracker: Tracker, path: Path, config: Any, inner: Listener | None = None
) -> Run:
    with tracker.following(path, inner or Listener()) as listener:
        return train(config, out=path, resume=config is None, listener=listener).run


def test_each_epoch_is_mirrored_when_it_is_over(
    data: Path, tmp_path: Path, database: Path, said: Warnings
) -> None:
    url = f"sqlite:///{database}"
    tracker = said.tracker()
    seen: list[Any] = []

    class Look(Listener):
        def batch(self, epoch: int, done: int, total: int) -> None:
            if (epoch, done) == (3, 1):
                seen.extend(runs_at(url).values())

    run = follow(tracker, tmp_path / "runs" / "first", configure(data), Look())
    (early,) = seen
    assert early.info.status == "RUNNING"
    assert early.data.metrics["epoch"] == 2
    (there,) = runs_at(url).values()
    assert there.info.run_id == early.info.run_id
    assert there.info.status == "FINISHED"
    assert curve(url, there, "train_loss") == [
        (row["epoch"], row["train_loss"]) for row in run.history()
    ]
    assert said == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "KILLED"), (ValueError("a fault"), "FAILED")],
    ids=["interrupted", "failed"],
)
def test_a_resumed_training_goes_on_in_the_same_run(
    data: Path,
    tmp_path: Path,
    database: Path,
    said: Warnings,
    error: BaseException,
    status: str,
) -> None:
    url = f"sqlite:///{database}"
    path = tmp_path / "runs" / "first"
    with pytest.raises(type(error)):
        follow(said.tracker(), path, configure(data), Stop(error, epoch=2))
    (before,) = runs_at(url).values()
    assert before.info.status == status
    run = follow(said.tracker(), path, None)
    (after,) = runs_at(url).values()
    assert after.info.run_id == before.info.run_id == run.tracking()["run_id"]
    assert after.info.status == "FINISHED"
    # No epoch twice, none left out.
    assert [step for step, _ in curve(url, after, "val_loss")] == [1, 2, 3]


def test_folds_are_mirrored_while_they_are_trained(
    data: Path, tmp_path: Path, database: Path, said: Warnings
) -> None:
    config = configure(
        data, "data.protocol=grouped-kfold", "data.num_folds=2", "optim.epochs=1"
    )
    follow(said.tracker(), tmp_path / "runs" / "folds", config)
    found = runs_at(f"sqlite:///{database}")
    assert {name: one.info.status for name, one in found.items()} == dict.fromkeys(
        ("folds", "fold 0", "fold 1"), "FINISHED"
    )
    assert said == []


def test_settings_that_do_not_fit_leave_nothing_in_mlflow(
    data: Path, tmp_path: Path, database: Path, said: Warnings
) -> None:
    with pytest.raises(ConfigError, match="resnet1000"):
        follow(
            said.tracker(),
            tmp_path / "runs" / "x",
            configure(data, "model.name=resnet1000"),
        )
    assert runs_at(f"sqlite:///{database}") == {}
    assert said == []


# whatever breaks


def check_complete(run: Run) -> None:
    """Make sure that a finished run folder lacks nothing."""
    assert run.is_finished
    assert len(run.history()) == 3
    assert run.card().epoch in (1, 2, 3)
    evaluate(run, device="cpu")


@contextmanager
def deaf_server() -> Iterator[str]:
    """Give the URL of a server that takes connections and never answers."""
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_port() -> str:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="nothing listens"),
        "http://no-such-host.invalid:5000",
        "banana://somewhere/else",
        "sqlite:////proc/no/such/place/mlflow.db",
        "sqlite:////proc",
    ],
)
def test_a_broken_server_costs_one_warning_and_seconds(
    url: str, data: Path, tmp_path: Path, said: Warnings
) -> None:
    url = url or closed_port()  # here: processes that test together must agree on names
    start = time.monotonic()
    run = follow(said.tracker(url), tmp_path / "run", configure(data))
    assert time.monotonic() - start < 40
    (warning,) = said
    assert warning.startswith(f"tracking to {url} does not work: ")
    assert warning.endswith("; the run folder is complete")
    assert "\n" not in warning
    check_complete(run)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_given_up_on(
    data: Path, tmp_path: Path, said: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with deaf_server() as url:
        start = time.monotonic()
        run = follow(said.tracker(url), tmp_path / "run", configure(data))
    assert time.monotonic() - start < 40
    assert len(said) == 1
    check_complete(run)


def test_patience_is_short_unless_somebody_wants_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    Tracker("http://127.0.0.1:1")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_a_locked_database_costs_one_warning(
    data: Path, tmp_path: Path, database: Path, said: Warnings
) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        run = follow(said.tracker(), tmp_path / "runs" / "first", configure(data))
        holder.execute("ROLLBACK")
    assert len(said) == 1
    assert "locked" in said[0]
    check_complete(run)
    # Later all of it can still be sent.
    assert said.tracker().mirror(run), said
    (there,) = runs_at(f"sqlite:///{database}").values()
    assert there.data.metrics["epoch"] == 3


def test_what_failed_for_a_while_is_sent_at_the_end(
    data: Path,
    tmp_path: Path,
    database: Path,
    said: Warnings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracker = said.tracker()
    send = tracker._send
    calls = []

    def full(*arguments: Any, state: str, **options: Any) -> None:
        calls.append(state)
        if state == "RUNNING":
            raise OSError(28, "No space left on device")
        send(*arguments, state=state, **options)

    monkeypatch.setattr(tracker, "_send", full)
    follow(tracker, tmp_path / "runs" / "first", configure(data))
    # After the first failure the training does not wait again.
    assert calls == ["RUNNING", "KILLED"]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    (there,) = runs_at(f"sqlite:///{database}").values()
    assert there.data.metrics["epoch"] == 3
    assert there.info.status == "FINISHED"


def test_a_database_of_something_else_costs_one_warning(
    run: Run, tmp_path: Path, said: Warnings
) -> None:
    (tmp_path / "runs" / DATABASE).write_bytes(b"no database" * 1000)
    assert not said.tracker().mirror(run)
    assert len(said) == 1
    assert "not a database" in said[0]


@pytest.mark.parametrize("content", ["{", '{"url": 1, "sent": 7}', "[1]"])
def test_a_damaged_note_of_where_it_was_tracked_costs_no_training(
    data: Path, tmp_path: Path, database: Path, said: Warnings, content: str
) -> None:
    path = tmp_path / "runs" / "first"

    class Damage(Listener):
        def epoch(self, row: dict[str, Any]) -> None:
            (path / "tracking.json").write_text(content)

    run = follow(said.tracker(), path, configure(data), Damage())
    check_complete(run)
    assert len(said) <= 1


def test_the_console_says_one_line(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker(closed_port(), warn=terminal.print_warning)
    assert not tracker.mirror(run)
    assert not tracker.mirror(run)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("warning: tracking to http://127.0.0.1:")
    assert err.count("\n") == 1
    assert tracker.summary(tracker.url_of(run)) == ""


def test_a_password_is_neither_shown_nor_kept(
    run: Run, said: Warnings, tmp_path: Path
) -> None:
    url = closed_port().replace("//", "//me:hunter2@")
    tracker = said.tracker(url)
    assert not tracker.mirror(run)
    assert "hunter2" not in said[0]
    assert "//me@" in said[0]


def test_a_name_that_is_no_url_is_refused_before_the_training() -> None:
    with pytest.raises(
        ConfigError, match=r"expected a URL for --track-url, got 'there'"
    ):
        Tracker("there")


def test_a_missing_extra_is_named_before_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in list(sys.modules):
        if name.startswith("mlflow."):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError) as caught:
        Tracker()
    assert caught.value.hint == 'pip install "tumorlens[track]"'


def test_other_processes_of_torchrun_do_not_track(
    tmp_path: Path, said: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    inner = Listener()
    with said.tracker().following(tmp_path / "run", inner) as listener:
        assert listener is inner


# privacy of the machine

ALONE = """
import socket, sys
asked = []
def refuse(*arguments, **_):
    asked.append(arguments)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
from pathlib import Path
from tumorlens.runs.folder import open_run
from tumorlens.runs.tracking import Tracker
assert Tracker().mirror(open_run(Path(sys.argv[1])))
import threading, time
time.sleep(1)
assert not asked, asked
names = [thread.name for thread in threading.enumerate()]
assert not [name for name in names if "elemetry" in name], names
"""


def test_nothing_is_asked_of_the_network_and_home_stays_empty(
    run: Run, database: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    kept = ("PATH", "VIRTUAL_ENV", "LANG")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(run.path)],
        cwd=home,
        env=environment | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
    assert list(home.rglob("*")) == []


UNTRACKED = """
import sys
from tumorlens.cli import terminal
from tumorlens.cli import app, terminal
app.main(["train", "--help"])
import tumorlens.training.fit, tumorlens.evaluation.measure, tumorlens.report
assert not {"mlflow", "sqlalchemy", "tumorlens.runs.tracking"} & {*sys.modules}
"""


def test_without_track_nothing_of_it_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNTRACKED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = os.environ.get("TUMORLENS_TEST_MLFLOW", "")
    if not command and importlib.util.find_spec("flask") is None:
        pytest.skip("no MLflow server; name its command in TUMORLENS_TEST_MLFLOW")
    place = tmp_path_factory.mktemp("server")
    port = closed_port().rpartition(":")[2]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        [
            *([command] if command else [sys.executable, "-m", "mlflow"]),
            *("server", "--host", "127.0.0.1", "--port", port),
            *("--backend-store-uri", f"sqlite:///{place / 'server.db'}"),
            *("--artifacts-destination", str(place / "artifacts")),
            *("--workers", "1"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            # Half a dozen processes for jobs that nothing here starts.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
    ) as process:
        try:
            wait_for(url, process)
            yield url
        finally:
            os.killpg(process.pid, 15)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    import urllib.request

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail("the MLflow server did not start")


@pytest.mark.slow
def test_a_real_server_gets_curves_and_files(
    server: str, data: Path, tmp_path: Path, said: Warnings
) -> None:
    path = tmp_path / "first"
    with pytest.raises(KeyboardInterrupt):
        follow(
            said.tracker(server),
            path,
            configure(data),
            Stop(KeyboardInterrupt(), epoch=2),
        )
    run = follow(said.tracker(), path, None)
    assert said == []
    assert run.tracking()["url"] == server
    (there,) = runs_at(server).values()
    assert there.info.status == "FINISHED"
    assert [step for step, _ in curve(server, there, "val_loss")] == [1, 2, 3]
    sent = client(server).list_artifacts(there.info.run_id)
    assert {one.path: one.file_size for one in sent}["weights.safetensors"] == (
        run.weights_path.stat().st_size
    )
    assert not list(tmp_path.glob("ml*"))


@pytest.mark.slow
def test_a_server_that_dies_midway_leaves_the_run_complete(
    data: Path, tmp_path: Path, said: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that answers the first request and is gone at the second.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        answer = json.dumps({"experiment": {"experiment_id": "1", "name": "tumorlens"}})

        def serve_once() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n"
                    f"Connection: close\r\n\r\n{answer}".encode()
                )
            listening.close()

        thread = threading.Thread(target=serve_once)
        thread.start()
        run = follow(said.tracker(url), tmp_path / "run", configure(data))
        thread.join()
    assert len(said) == 1
    check_complete(run)


# what is sent, and what never is


def secretive(run: Run) -> Run:
    """Return a run of which every setting that can name a path does."""
    secrets = {
        name: f"/home/hyde/{name}"
        for name in ("path", "metadata", "split", "cache_dir")
    }
    config = parse_config(
        {
            "data": secrets,
            "model": {"name": "resnet18", "pretrained": "C:\\hyde\\start.safetensors"},
        }
    )
    return Run(run.path, config)


def test_every_setting_is_sent_but_for_paths(run: Run) -> None:
    params = params_of(secretive(run))
    every = {
        f"{section}.{name}"
        for section, values in run.config.model_dump().items()
        for name in values
    }
    assert every - params.keys() == {
        *("data.path", "data.names", "data.metadata", "data.labels", "data.split"),
        "data.cache_dir",
    }
    assert params["model.pretrained"] == "start.safetensors"
    assert params["model.name"] == "resnet18"
    assert params["optim.epochs"] == str(run.config.optim.epochs)
    assert not [value for value in params.values() if "hyde" in value]


def test_a_long_value_is_cut(run: Run) -> None:
    freeze = [f"blocks.{number}" for number in range(200)]
    train = run.config.train.model_copy(update={"freeze": freeze})
    long = Run(run.path, run.config.model_copy(update={"train": train}))
    assert len(params_of(long)["train.freeze"]) == 500


def test_the_settings_that_are_sent_can_be_trained_with(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(settings_of(secretive(run)))
    assert "hyde" not in path.read_text()
    config = load_config(path)
    assert config.model.name == "resnet18"
    assert config.data.path is None


def test_files_that_name_images_stay_and_unknown_ones_too(run: Run) -> None:
    run.write_looks([Look(time="now", subset="test", command="x")])
    run.figures_dir.mkdir()
    for name in ("roc.svg", "patient.png"):
        (run.figures_dir / name).write_text("drawn")
    for path in (run.predictions_path, run.report_path, run.path / "notes.txt"):
        path.write_text("names")
    assert [path.relative_to(run.path).as_posix() for path in files_of(run)] == [
        "history.jsonl",
        "figures/roc.svg",
        "model.json",
        "weights.safetensors",
    ]


def test_networks_are_sent_with_the_run_that_they_are_in(
    run: Run, tmp_path: Path, data: Path
) -> None:
    both = make_ensemble(
        [run.path, make_run(tmp_path / "other", data).path], out=tmp_path / "both"
    )
    assert [path.relative_to(both.path).as_posix() for path in files_of(both)] == [
        "ensemble.json",
        "members/0/model.json",
        "members/0/weights.safetensors",
        "members/1/model.json",
        "members/1/weights.safetensors",
    ]
    # Each fold is sent as a run of its own.
    assert files_of(make_kfold_run(tmp_path / "folds", data)) == []


def test_the_command_is_not_among_the_tags(run: Run, data: Path) -> None:
    assert str(data) in run.environment()["command"]
    assert tags_of(run) == {
        "tumorlens.tumorlens": "0",
        "mlflow.note.content": "No copies.",
    }
    run.leak_path.unlink()
    assert tags_of(run) == {"tumorlens.tumorlens": "0"}


def test_figures_are_those_of_the_kept_epoch(run: Run) -> None:
    rows = run.history()
    run.write_history([rows[0], rows[1] | {"is_best": False}])
    got = figures_of(run)
    assert got["kept/epoch"] == 1
    assert got["kept/val_loss"] == rows[0]["val_loss"]
    assert set(got) == {
        *("kept/epoch", "kept/val_loss", "kept/val_accuracy"),
        *("kept/val_balanced_accuracy", "kept/val_macro_f1"),
    }
