"""Studies mirrored in MLflow: real ones, on SQLite."""

from __future__ import annotations

import shutil
import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from support.runs_on_images import make_run
from tumorlens.cli import app
from tumorlens.errors import ConfigError
from tumorlens.runs.tracking import DATABASE, Tracker
from tumorlens.study.folder import Study, create_study
from tumorlens.study.plan_file import load_plan
from tumorlens.study.tracking import StudyTracker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    # Of MLflow's and SQLAlchemy's own: closed when the process ends.
    "ignore:unclosed database:ResourceWarning",
    "ignore::DeprecationWarning:mlflow",
)

PLAN = (
    '[base]\nmodel.name = "test_resnet"\nmodel.pretrained = "no"\n'
    'model.size_px = 32\noptim.epochs = 1\ntrain.device = "cpu"\n'
    "data.cache_limit_mib = 0\n[axes]\noptim.lr = [1e-2, 1e-3, 1e-4]\n"
)


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Path:
    """Return where a study in the folder `runs` is tracked by default."""
    (tmp_path / "runs").mkdir()
    return type(tmp_path)(shutil.copy(empty_database, tmp_path / "runs" / DATABASE))


@pytest.fixture
def study(tmp_path: Path, make_images: Callable[..., Path]) -> Study:
    """Return a study of which one trial is done, one runs and one waits."""
    data = make_images()
    (tmp_path / "question.toml").write_text(PLAN, encoding="utf-8")
    plan = load_plan(tmp_path / "question.toml", data=data)
    study = create_study(tmp_path / "runs" / "study", plan, store_url=None)
    store = study.open_store()
    store.fill()
    for is_done in (True, False):
        claim = store.claim()
        assert claim is not None
        run = make_run(study.run_path(claim.name), data)
        if is_done:
            claim.finish(0.5)
        else:
            (run.path / "finished").unlink()
    return study


def client(url: str) -> Any:
    import mlflow.tracking

    return mlflow.tracking.MlflowClient(url)


def states_at(url: str, experiment: str) -> dict[str, str]:
    """Return the runs of an experiment with their states."""
    there = client(url)
    found = there.get_experiment_by_name(experiment)
    runs = there.search_runs([found.experiment_id]) if found else []
    return {one.info.run_name: one.info.status for one in runs}


def closed_port() -> str:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def test_the_trials_of_a_study_are_runs_of_one_experiment(
    database: Path, study: Study
) -> None:
    said: list[str] = []
    tracker = StudyTracker(study.path, name="question", warn=said.append)
    url = f"sqlite:///{database}"
    tracker.update(study.trials())
    first, second, _ = (trial.name for trial in study.trials())
    assert states_at(url, "question") == {first: "FINISHED", second: "RUNNING"}
    tracker.update(study.trials(), is_last=True)
    assert states_at(url, "question") == {first: "FINISHED", second: "KILLED"}
    assert said == []
    assert url in tracker.words()
    assert tracker.words().startswith("the study is tracked in")


def test_only_what_is_new_is_looked_at(
    database: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    attempt = Tracker.keep_up

    def count(self: Tracker, path: Path, **options: Any) -> bool:
        asked.append(path.name)
        return attempt(self, path, **options)

    monkeypatch.setattr(Tracker, "keep_up", count)
    tracker = StudyTracker(study.path, name="question")
    first, second, _ = (trial.name for trial in study.trials())
    tracker.update(study.trials())
    tracker.update(study.trials())
    assert asked == [first, second]
    with (study.run_path(second) / "history.jsonl").open("a") as file:
        file.write(" \n")
    tracker.update(study.trials())
    assert asked == [first, second, second]


def test_a_broken_server_costs_one_warning_and_one_last_attempt(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    attempts: list[str] = []
    attempt = Tracker._attempt

    def count(self: Tracker, *arguments: Any, state: str) -> bool:
        attempts.append(state)
        return attempt(self, *arguments, state=state)

    monkeypatch.setattr(Tracker, "_attempt", count)
    url = f"http://me:hunter2@{closed_port()}"
    tracker = StudyTracker(study.path, name="question", url=url, warn=said.append)
    tracker.begin(study)
    for _ in range(3):
        tracker.update(study.trials())
    tracker.update(study.trials(), is_last=True)
    assert len(attempts) == 2
    (warning,) = said
    assert warning.startswith("tracking to http://me@127.0.0.1:")
    assert "hunter2" not in warning
    assert tracker.words() == ""
    assert "hunter2" not in study.tracking_path.read_text()


def test_a_study_goes_on_where_it_was_tracked_before(
    study: Study, empty_database: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mine.db')}"
    StudyTracker(study.path, name="question", url=url).begin(study)
    again = StudyTracker(study.path, name="question")
    again.begin(study)
    again.update(study.trials())
    assert len(states_at(url, "question")) == 2
    assert not (tmp_path / "runs" / DATABASE).exists()


def test_what_is_no_url_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="expected a URL for --track-url, got 'there'"
    ):
        StudyTracker(tmp_path / "study", name="question", url="there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_mirrors_a_study_to_its_end(
    make_images: Callable[..., Path],
    database: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = make_images()
    plan = tmp_path / "mixup.toml"
    plan.write_text(f"test = true\n{PLAN}".replace("1e-2, 1e-3, ", ""))
    out = tmp_path / "runs" / "mine"
    words = ["study", "run", plan, "--data", data, "--out", out, "--track"]
    assert app.main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    assert "warning" not in said.err
    url = f"sqlite:///{database}"
    assert f"the study is tracked in {url}" in said.out
    assert states_at(url, "mixup") == {"lr=0.0001_grouped_seed42": "FINISHED"}
    there = client(url)
    experiment = there.get_experiment_by_name("mixup")
    (one,) = there.search_runs([experiment.experiment_id])
    assert one.data.metrics["epoch"] == 1
    assert "test/accuracy" in one.data.metrics
