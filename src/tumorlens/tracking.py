"""A run folder mirrored into MLflow: settings, curves, figures and the network.

The run folder is the truth and MLflow a picture of it. `Tracker.mirror` asks what
MLflow has of a run and sends what is missing, so it may be called at any time, and a
run that goes on, or is evaluated later, goes on in the same run of MLflow: the id is
kept in the folder. Whatever breaks there is one warning, never an error: the training
goes on, and what is missing is sent at its end.

What the newcomer would get wrong: pages of MLflow are seen by others. No name of an
image or a patient is sent, and no path of this machine: what is sent is listed here,
file by file, and `split.csv`, `predictions.csv` and `report.html` are not in the list.
"""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from tumorlens import terminal
from tumorlens.config import dump_config
from tumorlens.errors import ConfigError
from tumorlens.extras import require
from tumorlens.files import sha256_of, sha256_of_bytes
from tumorlens.runs import MIRRORS, Run, open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DATABASE = "mlflow.db"
"""Beside the run, where no URL is given. All runs of a folder share it."""
EXPERIMENT = "tumorlens"

_PATHS = ("path", "metadata", "split", "cache_dir")
"""Settings of `data` that name something on this machine."""
_FIGURES = ("confusion", "roc", "calibration", "curves")
"""Of the report: drawn from numbers. A file that is not named here is not sent."""
_HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece")
_MAX_METRICS, _MAX_PARAMS, _MAX_LETTERS = 1000, 100, 500
"""What MLflow takes at a time, the letters of a value in every version."""
_RETRY_S = 300
"""A training does not wait again for a server that was away so long ago."""
_PATIENCE = {
    # MLflow would try for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Tracker:
    """Mirrors run folders into one MLflow.

    Args:
        url: A server (`http://...`) or a database (`sqlite:///...`). Empty or `None`:
            where the run was tracked before, else `mlflow.db` beside the run folder.
        experiment: The name in MLflow under which the runs are found.
        warn: Told once, in one sentence, when something breaks.

    Raises:
        ConfigError: `url` is no URL.
        MissingExtraError: MLflow is not installed.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        experiment: str = EXPERIMENT,
        warn: Callable[[str], None] = terminal.say_warning,
    ) -> None:
        if url and "://" not in url:
            raise ConfigError(
                f"expected a URL for --track, got {url!r}",
                hint="for example --track http://localhost:5000, or --track alone for "
                f"a file {DATABASE} beside the run",
            )
        self._url = url or ""
        self._experiment = experiment
        self._warn = warn
        self._has_warned = False
        self._retry_at = 0.0
        self._clients: dict[str, Any] = {}
        self._complete: set[Path] = set()
        _load_mlflow()

    def url_of(self, run: Run) -> str:
        """Return where a run is mirrored."""
        # A folder that was moved is not mirrored to where it was: "beside" is no path.
        beside = f"sqlite:///{run.path.resolve().parent / DATABASE}"
        return self._url or str(run.tracking().get("url") or beside)

    def words(self, run: Run) -> str:
        """Return where a run can be looked at; empty where tracking is broken."""
        url = _without_password(self.url_of(run))
        if self._has_warned:
            return ""
        if _is_server(url):
            return f"the run is tracked at {url}"
        return (
            f"the run is tracked in {url}; where MLflow is installed in full, see it "
            f"with: mlflow ui --backend-store-uri {url}"
        )

    @contextmanager
    def following(self, path: Path, inner: Any) -> Iterator[Any]:
        """Mirror a run while it is trained.

        Args:
            path: The run folder, which may not exist yet.
            inner: A `train.Listener`, which is told everything first.

        Yields:
            The `train.Listener` to train with.
        """
        if not terminal.is_speaker():
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

    def after_epoch(self, path: Path) -> None:
        """Mirror a run that goes on, unless that failed a short while ago."""
        if time.monotonic() >= self._retry_at:
            self._attempt(lambda: open_run(path), state="RUNNING")

    def mirror(self, run: Run, *, state: str = "KILLED") -> bool:
        """Send what MLflow does not have of a run yet.

        Args:
            run: Of any kind. Folds become runs below that of the k-fold run. Nothing is
                sent of a run without a finished epoch.
            state: MLflow's word for a run that is not finished: `RUNNING`, `KILLED` or
                `FAILED`.

        Returns:
            Whether MLflow has all of it now. If not, a warning was given, once.
        """
        return self._attempt(lambda: run, state=state)

    def _end(self, path: Path, state: str) -> None:
        # Settings that did not fit leave no folder behind, and nothing to mirror.
        if (path / "config.toml").is_file():
            self._attempt(lambda: open_run(path), state=state)

    def _attempt(self, get_run: Callable[[], Run], *, state: str) -> bool:
        url = self._url or "MLflow"
        try:
            run = get_run()
            url = self.url_of(run)
            with _quiet():
                client = self._client(url)
                self._send(client, url, run, state=state, parent=None)
        except Exception as error:  # whatever breaks there must not break a training
            self._retry_at = time.monotonic() + _RETRY_S
            if not self._has_warned:
                self._has_warned = True
                self._warn(
                    f"tracking to {_without_password(url)} does not work: "
                    f"{_reason(error, url)}; nothing is lost, the run folder has it all"
                )
            return False
        return True

    def _client(self, url: str) -> Any:
        if url not in self._clients:
            client = require("mlflow.tracking").MlflowClient(tracking_uri=url)
            self._clients[url] = client
        return self._clients[url]

    def _send(
        self, client: Any, url: str, run: Run, *, state: str, parent: str | None
    ) -> None:
        is_known = run.path in self._complete and state == "RUNNING"
        if is_known or not _has_begun(run):
            return
        there = self._find_or_make(client, url, run, parent=parent)
        run_id = there.info.run_id
        for fold in run.folds():
            self._send(client, url, fold, state=state, parent=run_id)
        _send_values(client, run, there)
        state = "FINISHED" if run.is_finished else state
        if state == "RUNNING":
            if there.info.status != state:
                client.update_run(run_id, status=state)
            return
        if there.info.status != state:
            client.set_terminated(run_id, status=state)
        _send_files(client, run, there, is_remote=_is_server(url))
        self._complete.add(run.path)

    def _find_or_make(
        self, client: Any, url: str, run: Run, *, parent: str | None
    ) -> Any:
        """Return the run of MLflow with what it has, and note its id in the folder."""
        place = _without_password(self._url or str(run.tracking().get("url") or ""))
        known = run.tracking()
        exceptions = require("mlflow.exceptions")
        if known.get("url") == place and isinstance(known.get("run_id"), str):
            try:
                there = client.get_run(known["run_id"])
                if there.info.lifecycle_stage == "active":
                    return there
            except exceptions.MlflowException as error:
                # Somebody has deleted it there for good: it begins anew.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        tags = {"mlflow.parentRunId": parent} if parent else {}
        there = client.create_run(
            self._experiment_id(client, url, run),
            run_name=f"fold {run.config.data.fold}" if parent else run.name,
            tags=tags | _tags(run),
        )
        run.write_tracking({"url": place, "run_id": there.info.run_id})
        return there

    def _experiment_id(self, client: Any, url: str, run: Run) -> str:
        found = client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                return str(
                    client.create_experiment(
                        self._experiment, artifact_location=_artifact_location(url, run)
                    )
                )
            except require("mlflow.exceptions").MlflowException:
                # Of several processes that begin together, one makes it.
                found = client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return str(found.experiment_id)


class _Following:
    """A `train.Listener` that tells another one, and mirrors the run."""

    def __init__(self, tracker: Tracker, path: Path, inner: Any) -> None:
        self._tracker = tracker
        self._path = path
        self._inner = inner

    def stage(self, text: str) -> None:
        self._inner.stage(text)

    def files(self, done: int, total: int) -> None:
        self._inner.files(done, total)

    def batch(self, epoch: int, done: int, total: int) -> None:
        self._inner.batch(epoch, done, total)

    def epoch(self, row: dict[str, Any]) -> None:
        self._inner.epoch(row)
        self._tracker.after_epoch(self._path)


def _load_mlflow() -> None:
    """Import MLflow, told to be patient for seconds only and to print nothing."""
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    with _quiet():
        require("mlflow.tracking")
        # Ten attempts to open a database take 100 seconds, and no setting says so.
        utils: Any = require("mlflow.store.db.utils")
        utils.MAX_RETRY_COUNT = 2


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow and what it calls from writing to the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _has_begun(run: Run) -> bool:
    """Whether there is anything to tell: an epoch, or weights from elsewhere."""
    return any(
        one.history_path.is_file() or one.card_path.is_file() for one in run.networks()
    )


def _send_values(client: Any, run: Run, there: Any) -> None:
    """Send settings, curves and figures, as far as they are not there."""
    entities = require("mlflow.entities")
    data, run_id = there.data, there.info.run_id
    params = [
        entities.Param(name, value)
        for name, value in _params(run).items()
        if name not in data.params
    ]
    now_ms = int(time.time() * 1000)
    last_epoch = data.metrics.get("epoch", 0)
    metrics = [
        entities.Metric(name, float(value), now_ms, row["epoch"])
        for row in run.history()
        if row["epoch"] > last_epoch
        # The epoch itself comes last: once it is there, its row is.
        for name, value in sorted(row.items(), key=lambda item: item[0] == "epoch")
        if name != "is_best"
    ]
    metrics += [
        entities.Metric(name, value, now_ms, 0)
        for name, value in _figures(run).items()
        if data.metrics.get(name) != value
    ]
    while params or metrics:
        client.log_batch(
            run_id, metrics=metrics[:_MAX_METRICS], params=params[:_MAX_PARAMS]
        )
        del metrics[:_MAX_METRICS], params[:_MAX_PARAMS]


def _params(run: Run) -> dict[str, str]:
    """Return the settings as texts, without those that name a path."""
    params = {}
    for section, values in run.config.model_dump(mode="json").items():
        for name, value in values.items():
            if section == "data" and name in _PATHS:
                continue
            if (section, name) == ("model", "pretrained"):
                value = _file_name(value)
            text = value if isinstance(value, str) else json.dumps(value)
            params[f"{section}.{name}"] = text[:_MAX_LETTERS]
    return params


def _file_name(value: str) -> str:
    return value.replace("\\", "/").rpartition("/")[2]


def _figures(run: Run) -> dict[str, float]:
    """Return the figures of the kept epoch, and those of every evaluation."""
    figures: dict[str, float] = {}
    kept = [row for row in run.history() if row["is_best"]]
    if kept:
        figures["kept/epoch"] = float(kept[-1]["epoch"])
        figures |= {
            f"kept/{name}": float(value)
            for name, value in kept[-1].items()
            if name.startswith("val_")
        }
    for subset in ("test", "val"):
        if run.metrics_of(subset).is_file():
            measures = json.loads(run.metrics_of(subset).read_text(encoding="utf-8"))
            figures |= _headline(subset, measures)
    return figures


def _headline(subset: str, measures: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{subset}/{name}" + ("" if end == "value" else f"_{end}"): float(value)
        for name in _HEADLINE
        for end, value in measures[name].items()
        if value is not None
    }


def _tags(run: Run) -> dict[str, str]:
    """Return what explains a run: versions, and what its split leaks."""
    environment = run.environment()
    names = ("tumorlens", "commit", "python", "platform")
    values = {name: environment.get(name) for name in names}
    values["torch"] = (environment.get("packages") or {}).get("torch")
    tags = {f"tumorlens.{name}": str(value) for name, value in values.items() if value}
    if run.leak_path.is_file():
        # What MLflow shows above the figures of a run: what they are worth.
        tags["mlflow.note.content"] = run.leak()["words"]
    return tags


def _send_files(client: Any, run: Run, there: Any, *, is_remote: bool) -> None:
    """Send settings, history, measures, figures and network, where they are new.

    Raises:
        ConfigError: A server keeps its files in a folder of its own machine.
    """
    run_id = there.info.run_id
    if is_remote and urlsplit(there.info.artifact_uri).scheme in ("", "file"):
        # MLflow would write them to a folder of that name on this machine.
        raise ConfigError(
            f"the server keeps files in {there.info.artifact_uri}, where only itself "
            "can write: start it with --serve-artifacts"
        )
    tracking = run.tracking()
    sent: dict[str, str] = dict(tracking.get("sent") or {})

    def note(name: str, digest: str) -> None:
        sent[name] = digest
        run.write_tracking(tracking | {"sent": sent})

    settings = _settings(run)
    digest = sha256_of_bytes(settings.encode())
    if sent.get("config.toml") != digest:
        client.log_text(run_id, settings, "config.toml")
        note("config.toml", digest)
    for path in _files(run):
        name = path.relative_to(run.path).as_posix()
        digest = sha256_of(path)
        if sent.get(name) != digest:
            folder = name.rpartition("/")[0]
            client.log_artifact(run_id, str(path), folder or None)
            note(name, digest)


def _settings(run: Run) -> str:
    """Return the content of `config.toml` without the paths in it."""
    config = run.config
    data = config.data.model_copy(update=dict.fromkeys(_PATHS))
    pretrained = _file_name(config.model.pretrained)
    model = config.model.model_copy(update={"pretrained": pretrained})
    return dump_config(config.model_copy(update={"data": data, "model": model}))


def _files(run: Run) -> list[Path]:
    """Return the files of a run that are sent, as far as they exist."""
    wanted = [
        run.history_path,
        run.metrics_of("test"),
        run.metrics_of("val"),
        run.gain_path("val"),
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


def _artifact_location(url: str, run: Run) -> str | None:
    """Return where files go: beside the database, or where the server says."""
    if _is_server(url):
        return None
    scheme, _, rest = url.partition(":///")
    database = Path(rest.partition("?")[0])
    folder = database.parent if scheme == "sqlite" else run.path.parent
    return (folder.resolve() / MIRRORS).as_uri()


def _is_server(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https")


def _without_password(url: str) -> str:
    """Return a URL that may be shown and kept."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    netloc = parts.netloc.replace(f":{parts.password}@", "@", 1)
    return urlunsplit(parts._replace(netloc=netloc))


def _reason(error: Exception, url: str) -> str:
    """Return the first line of an error, short and without a password."""
    words = str(getattr(error, "problem", error)).strip().splitlines()
    reason = words[0] if words else type(error).__name__
    password = urlsplit(url).password
    if password:
        reason = reason.replace(password, "***")
    return reason if len(reason) <= 200 else f"{reason[:197]}..."
