"""A run folder mirrored into MLflow: settings, curves, figures and the network.

The run folder is the original and MLflow a copy. `Tracker.mirror` compares the two and
sends what is missing, so it may be called at any time. A run that is resumed, or
evaluated later, stays the same run of MLflow, whose id is kept in the folder. A failure
of MLflow is one warning, never an error: the training continues, and the rest is sent
at its end. By default the client retries for minutes while a server is away, and prints
each attempt; here it is set to be brief and quiet.

Little is sent, so that it can be checked: settings without paths, the numbers of the
history and of the evaluations, figures drawn from numbers, the network, versions. No
name of an image or a patient is in any of them. `split.csv`, `predictions.csv`,
`report.html` and the command line contain file names and are not sent, and neither is
any file that is not listed here.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tumorlens.config import dump_config, parse_config, path_settings, values_of
from tumorlens.errors import ConfigError
from tumorlens.extras import require
from tumorlens.files import sha256_of, sha256_of_bytes
from tumorlens.runs.folder import MIRRORS, Run, open_run
from tumorlens.runs.progress import Listener, Relay
from tumorlens.system import is_main_process
from tumorlens.urls import is_server, without_password, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tumorlens.runs.measures import Metrics

_FIGURES = ("confusion", "roc", "calibration", "curves")
"""Figures of the report that are drawn from numbers; no others are sent."""
_HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece")
_MAX_LETTERS = 500
"""Longest value of a setting; every version of MLflow accepts it."""

_OF_PLACES = (*path_settings(), "data.names")
"""Settings with the names of folders, which are not sent."""

DATABASE = "mlflow.db"
"""Default database, beside the run; all runs of a folder share it."""
EXPERIMENT = "tumorlens"

_MAX_METRICS, _MAX_PARAMS = 1000, 100
"""Most values that MLflow accepts at a time."""
_RETRY_S = 300
"""Seconds before the next attempt after a server was away."""
_PATIENCE = {
    # By default MLflow retries for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Tracker:
    """Mirrors run folders into one MLflow.

    Args:
        url: A server (`http://...`) or a database (`sqlite:///...`). Empty or `None` is
            the place of the run's earlier tracking, else `mlflow.db` beside the run.
        experiment: Name of the experiment in MLflow.
        warn: Called once, with one sentence, when something breaks.

    Raises:
        ConfigError: `url` is not a URL.
        MissingExtraError: MLflow is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        experiment: str = EXPERIMENT,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        if url and "://" not in url:
            raise ConfigError(
                f"expected a URL for --track-url, got {url!r}",
                hint="for example --track-url http://localhost:5000, or --track "
                f"alone for a file {DATABASE} beside the run",
            )
        self._url = url or ""
        self._experiment = experiment
        self._warn = warn
        self._has_warned = False
        self._retry_at = 0.0
        self._clients: dict[str, Any] = {}
        self._complete: set[Path] = set()
        self._ids: dict[Path, str] = {}
        """Run folder -> the run of MLflow that was made for it."""
        _load_mlflow()

    def url_of(self, run: Run) -> str:
        """Return the URL of the mirror of a run."""
        # A run that was moved is mirrored beside its new place, so no path is kept.
        beside = f"sqlite:///{run.path.resolve().parent / DATABASE}"
        return self._url or str(run.tracking().get("url") or beside)

    def summary(self, url: str, *, of: str = "run") -> str:
        """Return where a run is tracked, in a sentence; empty if tracking failed.

        Args:
            url: Result of `url_of`.
            of: Noun for what is tracked.
        """
        if self._has_warned:
            return ""
        url = without_password(url)
        if is_server(url):
            return f"the {of} is tracked at {url}"
        return (
            f"the {of} is tracked in {url}; where MLflow is installed in full, see it "
            f"with: mlflow ui --backend-store-uri {url}"
        )

    @contextmanager
    def following(self, path: Path, inner: Listener) -> Iterator[Listener]:
        """Mirror a run while it is trained.

        Args:
            path: The run folder, which may not exist yet.
            inner: Listener that receives each event first.

        Yields:
            The listener to train with.
        """
        if not is_main_process():
            yield inner
            return
        state = "KILLED"
        try:
            yield _Following(self, path, inner)
        except Exception:
            state = "FAILED"
            raise
        finally:
            self._end(path, state)

    def keep_up(
        self, path: Path, *, state: str = "RUNNING", is_last: bool = False
    ) -> bool:
        """Mirror the current state of a run, unless that failed a short while ago.

        Args:
            path: The run folder.
            state: As for `mirror`.
            is_last: Whether to try it even then.

        Returns:
            Whether MLflow is up to date now.
        """
        if time.monotonic() < self._retry_at and not is_last:
            return False
        return self._attempt(lambda: open_run(path), state=state)

    def mirror(self, run: Run, *, state: str = "KILLED") -> bool:
        """Send the parts of a run that MLflow does not have yet.

        Args:
            run: Any run. Folds become child runs of the k-fold run. A run without a
                finished epoch is not sent.
            state: MLflow's state of an unfinished run: `RUNNING`, `KILLED` or `FAILED`.

        Returns:
            Whether MLflow is up to date now. If not, there was one warning.
        """
        return self._attempt(lambda: run, state=state)

    def _end(self, path: Path, state: str) -> None:
        # A training whose settings did not fit leaves no folder and nothing to mirror.
        if (path / "config.toml").is_file():
            self.keep_up(path, state=state, is_last=True)

    def _attempt(self, get_run: Callable[[], Run], *, state: str) -> bool:
        url = self._url or "MLflow"
        try:
            run = get_run()
            url = self.url_of(run)
            # Kept in the folder. Empty stands for beside it, also after a move.
            note = without_password(self._url or str(run.tracking().get("url") or ""))
            with _quiet():
                self._send(_Place(self._client(url), url, note), run, state=state)
        except Exception as error:  # no failure of MLflow may end a training
            self._retry_at = time.monotonic() + _RETRY_S
            if not self._has_warned:
                self._has_warned = True
                self._warn(
                    f"tracking to {without_password(url)} does not work: "
                    f"{_reason(error, url)}; the run folder is complete"
                )
            return False
        return True

    def _client(self, url: str) -> Any:
        if url not in self._clients:
            client = require("mlflow.tracking").MlflowClient(tracking_uri=url)
            self._clients[url] = client
        return self._clients[url]

    def _send(
        self, place: _Place, run: Run, *, state: str, parent: str | None = None
    ) -> None:
        is_known = run.path in self._complete and state == "RUNNING"
        if is_known or not _has_begun(run):
            return
        client = place.client
        there = self._find_or_make(place, run, parent=parent)
        run_id = there.info.run_id
        for fold in run.folds():
            self._send(place, fold, state=state, parent=run_id)
        _send_values(client, run, there)
        state = "FINISHED" if run.is_finished else state
        if state == "RUNNING":
            if there.info.status != state:
                client.update_run(run_id, status=state)
            return
        if there.info.status != state:
            client.set_terminated(run_id, status=state)
        _send_files(client, run, there, is_remote=is_server(place.url))
        self._complete.add(run.path)

    def _find_or_make(self, place: _Place, run: Run, *, parent: str | None) -> Any:
        """Return the run of MLflow, and note its id in the folder."""
        client, known = place.client, run.tracking()
        if known.get("url") == place.note and isinstance(known.get("run_id"), str):
            try:
                there = client.get_run(known["run_id"])
                if there.info.lifecycle_stage == "active":
                    return there
            except require("mlflow.exceptions").MlflowException as error:
                # It was deleted there for good: a new one is made.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if run.path in self._ids:
            # A new training in the same folder, as when the batch had to be split.
            client.set_terminated(self._ids[run.path], status="KILLED")
        tags = {"mlflow.parentRunId": parent} if parent else {}
        there = client.create_run(
            self._experiment_id(place, run),
            run_name=f"fold {run.config.data.fold}" if parent else run.name,
            tags=tags | tags_of(run),
        )
        self._ids[run.path] = there.info.run_id
        run.write_tracking({"url": place.note, "run_id": there.info.run_id})
        return there

    def _experiment_id(self, place: _Place, run: Run) -> str:
        name, location = self._experiment, _artifact_location(place.url, run)
        found = place.client.get_experiment_by_name(name)
        if found is None:
            try:
                made = place.client.create_experiment(name, artifact_location=location)
            except require("mlflow.exceptions").MlflowException:
                # Another process has made it in the meantime.
                found = place.client.get_experiment_by_name(name)
                if found is None:
                    raise
            else:
                return str(made)
        return str(found.experiment_id)


@dataclass(frozen=True)
class _Place:
    """A place where runs are mirrored."""

    client: Any
    """An `MlflowClient`."""
    url: str
    note: str
    """The URL as noted in the run folder; see `Tracker.url_of`."""


class _Following(Relay):
    """Mirrors a run after each epoch."""

    def __init__(self, tracker: Tracker, path: Path, inner: Listener) -> None:
        super().__init__(inner)
        self._tracker = tracker
        self._path = path

    def epoch(self, row: dict[str, Any]) -> None:
        super().epoch(row)
        self._tracker.keep_up(self._path)


def params_of(run: Run) -> dict[str, str]:
    """Return the settings as texts, without those that are paths."""
    params = {}
    for key, value in values_of(run.shown_config).items():
        if key == "model.pretrained":
            value = _file_name(value)
        elif key in _OF_PLACES:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        params[key] = text[:_MAX_LETTERS]
    return params


def figures_of(run: Run) -> dict[str, float]:
    """Return the figures of the kept epoch, and those of every evaluation."""
    figures: dict[str, float] = {}
    kept = [row for row in run.history() if row.get("is_best")]
    if kept:
        figures["kept/epoch"] = float(kept[-1]["epoch"])
        figures |= {
            f"kept/{name}": float(value)
            for name, value in kept[-1].items()
            if name.startswith("val_")
        }
    for subset in ("test", "val"):
        if run.metrics_of(subset).is_file():
            figures |= _headline(subset, run.metrics(subset))
    return figures


def tags_of(run: Run) -> dict[str, str]:
    """Return the tags of a run: versions, and its leak verdict."""
    environment = run.environment()
    names = ("tumorlens", "commit", "python", "platform")
    values = {name: environment.get(name) for name in names}
    values["torch"] = (environment.get("packages") or {}).get("torch")
    tags = {f"tumorlens.{name}": str(value) for name, value in values.items() if value}
    if run.leak_path.is_file():
        # MLflow shows this note above the figures of a run.
        tags["mlflow.note.content"] = run.leak().words
    return tags


def settings_of(run: Run) -> str:
    """Return the content of `config.toml` without the paths in it."""
    values = run.config.model_dump(mode="json", exclude_none=True)
    for section, _, name in (key.partition(".") for key in _OF_PLACES):
        if (section, name) == ("model", "pretrained"):
            values[section][name] = _file_name(values[section][name])
        else:
            values[section].pop(name, None)
    return dump_config(parse_config(values))


def files_of(run: Run) -> list[Path]:
    """Return the existing files of a run that are sent."""
    wanted = [
        run.history_path,
        run.metrics_of("test"),
        run.metrics_of("val"),
        run.tta_path("val"),
        run.ensemble_path,
        *(
            run.figures_dir / f"{name}.{suffix}"
            for name in _FIGURES
            for suffix in ("svg", "png")
        ),
    ]
    for one in () if run.is_kfold else run.networks():
        wanted += [one.card_path, one.weights_path]
    return [path for path in wanted if path.is_file()]


def _load_mlflow() -> None:
    """Import MLflow with short time limits and without output."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    with _quiet():
        require("mlflow.tracking")
        # Ten attempts to open a database take 100 seconds, and no setting changes it.
        utils: Any = require("mlflow.store.db.utils")
        utils.MAX_RETRY_COUNT = 2


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow and its dependencies from writing to the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _has_begun(run: Run) -> bool:
    """Return whether there is anything to send: an epoch, or imported weights."""
    return any(
        one.history_path.is_file() or one.card_path.is_file() for one in run.networks()
    )


def _send_values(client: Any, run: Run, there: Any) -> None:
    """Send the settings, curves and figures that are missing there."""
    entities = require("mlflow.entities")
    data, run_id = there.data, there.info.run_id
    params = [
        entities.Param(name, value)
        for name, value in params_of(run).items()
        if name not in data.params
    ]
    now_ms = int(time.time() * 1000)
    last_epoch = data.metrics.get("epoch", 0)
    metrics = [
        entities.Metric(name, float(value), now_ms, row["epoch"])
        for row in run.history()
        if row["epoch"] > last_epoch
        # The epoch itself comes last: once it is there, its whole row is.
        for name, value in sorted(row.items(), key=lambda item: item[0] == "epoch")
        if name != "is_best"
    ]
    metrics += [
        entities.Metric(name, value, now_ms, 0)
        for name, value in figures_of(run).items()
        if data.metrics.get(name) != value
    ]
    while params or metrics:
        client.log_batch(
            run_id, metrics=metrics[:_MAX_METRICS], params=params[:_MAX_PARAMS]
        )
        del metrics[:_MAX_METRICS], params[:_MAX_PARAMS]


def _send_files(client: Any, run: Run, there: Any, *, is_remote: bool) -> None:
    """Send settings, history, measures, figures and network, as far as they are new.

    Raises:
        ConfigError: A server keeps its files in a folder of its own machine.
    """
    run_id = there.info.run_id
    if is_remote and urlsplit(there.info.artifact_uri).scheme in ("", "file"):
        # The client would write them to a folder of that name on this machine.
        raise ConfigError(
            f"the server keeps files in {there.info.artifact_uri}, where only the "
            "server can write: start it with --serve-artifacts"
        )
    tracking = run.tracking()
    sent: dict[str, str] = dict(tracking.get("sent") or {})

    def note(name: str, digest: str) -> None:
        sent[name] = digest
        run.write_tracking(tracking | {"sent": sent})

    settings = settings_of(run)
    digest = sha256_of_bytes(settings.encode())
    if sent.get("config.toml") != digest:
        client.log_text(run_id, settings, "config.toml")
        note("config.toml", digest)
    for path in files_of(run):
        name = path.relative_to(run.path).as_posix()
        digest = sha256_of(path)
        if sent.get(name) != digest:
            folder = name.rpartition("/")[0]
            client.log_artifact(run_id, str(path), folder or None)
            note(name, digest)


def _artifact_location(url: str, run: Run) -> str | None:
    """Return the folder of artifacts, beside the database; a server has its own."""
    if is_server(url):
        return None
    scheme, _, rest = url.partition(":///")
    database = Path(rest.partition("?")[0])
    folder = database.parent if scheme == "sqlite" else run.path.parent
    return (folder.resolve() / MIRRORS).as_uri()


def _reason(error: Exception, url: str) -> str:
    """Return the first line of an error, short and without a password."""
    words = str(getattr(error, "problem", error)).strip().splitlines()
    reason = words[0] if words else type(error).__name__
    reason = without_secrets(reason, url)
    return reason if len(reason) <= 200 else f"{reason[:197]}..."


def _file_name(value: str) -> str:
    return value.replace("\\", "/").rpartition("/")[2]


def _headline(subset: str, metrics: Metrics) -> dict[str, float]:
    return {
        f"{subset}/{name}" + ("" if end == "value" else f"_{end}"): value
        for name in _HEADLINE
        for end in ("value", "low", "high")
        if (value := getattr(getattr(metrics, name), end)) is not None
    }
