"""The list of run folders, with their progress and results.

Only files of the runs are read; nothing is computed and torch is not needed. A damaged
folder is a row with the reason. The folds of a k-fold run are not listed as runs. A
run shown as interrupted may still be running: a folder does not show the difference.
"""

from __future__ import annotations

import json
import math
import operator
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tumorlens.config import Config, setting_names
from tumorlens.errors import ConfigError, RunError, did_you_mean
from tumorlens.runs.estimate import Estimate
from tumorlens.runs.external import ExternalMetrics
from tumorlens.runs.folder import MIRRORS, Run, open_run
from tumorlens.text import natural_key

COLUMNS = (
    "name",
    "model",
    "protocol",
    "state",
    "val_accuracy",
    "test_accuracy",
    "leak",
    "date",
    "path",
    "reason",
)
"""Columns of a row beside its settings; each can be a filter or a sort key."""

STATES = ("finished", "interrupted", "imported", "damaged")

_RUN_FILES = ("environment.json", "leak.json", "history.jsonl", "model.json")
"""A folder with one of these is a run, even if its settings cannot be read."""

_CONDITION = re.compile(r"\s*([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class RunRow:
    """One run folder."""

    path: Path
    state: str
    """One of `STATES`. An interrupted run may be one that is still running."""
    progress: str = ""
    """Progress: "epoch 3 of 12", or "2 of 5 folds"."""
    reason: str | None = None
    """Reason why a damaged folder cannot be read."""
    date: str | None = None
    """Time when the settings were written, local, as 2026-01-31 09:05."""
    config: Config | None = None
    """`None` if it cannot be read."""
    val_accuracy: float | None = None
    """Val accuracy of the kept weights; the mean over the folds of a k-fold run."""
    test_accuracy: Estimate | None = None
    """`None` until it is evaluated."""
    leak: str | None = None
    """State of the leak verdict, such as `no leak`."""
    external: Mapping[str, ExternalMetrics] = field(default_factory=dict)
    """Measures on other sets, by name."""

    def value(self, key: str) -> Any:
        """Return a column or a setting such as `optim.lr`; `None` if unset."""
        if key == "test_accuracy":
            return self.test_accuracy and self.test_accuracy.value
        if key == "path":
            return str(self.path)
        if key == "name":
            return self.path.resolve().name
        shortcut = {"model": "model.name", "protocol": "data.protocol"}
        key = shortcut.get(key, key)
        if "." not in key:
            return getattr(self, key)
        value: Any = self.config and self.config.model_dump(mode="json")
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def as_json(self) -> dict[str, Any]:
        """Return the columns, `external`, `progress` and `settings`, JSON-ready."""
        return {
            **{key: self.value(key) for key in COLUMNS},
            "test_accuracy": self.test_accuracy and self.test_accuracy.model_dump(),
            "external": {
                name: {
                    "data": found.data,
                    "counts": found.counts.model_dump(),
                    "is_seen_known": found.is_seen_known,
                    "new_accuracy": found.new and found.new.accuracy.model_dump(),
                    "accuracy": found.all.accuracy.model_dump(),
                }
                for name, found in self.external.items()
            },
            "progress": self.progress,
            "settings": self.config and self.config.model_dump(mode="json"),
        }


def list_runs(
    folders: Sequence[Path],
    *,
    where: Iterable[str] = (),
    sort: str | None = None,
    limit: int | None = None,
) -> list[RunRow]:
    """Return the runs in and below some folders.

    Hidden folders are skipped. Links are followed, and a folder that can be reached in
    two ways is listed once. Folders below a run are not searched.

    Args:
        folders: Folders to search, at any depth.
        where: Conditions that must all hold, such as `model.name=resnet50` or
            `test_accuracy>0.8`: a column or a setting, one of = != < <= > >= and a
            value. Numbers are compared as numbers. The value `none` matches unset
            columns and settings, which are neither below nor above anything.
        sort: A column or a setting; `-key` puts the largest first. Runs without a
            value come last either way. Default: by path.
        limit: Largest number of rows, after sorting.

    Raises:
        ConfigError: A condition has another form, or a key is unknown.
        RunError: A folder does not exist.
    """
    conditions = [_condition(text) for text in where]
    backwards, key = False, "path"
    if sort is not None:
        backwards, key = sort.startswith("-"), sort.removeprefix("-")
        _check_key(key)
    rows = [
        row
        for row in map(_row, find_runs(folders))
        if all(holds(row) for holds in conditions)
    ]
    rows.sort(key=lambda row: natural_key(str(row.path)))
    known = [row for row in rows if row.value(key) is not None]
    known.sort(key=lambda row: _order(row.value(key)), reverse=backwards)
    rows = known + [row for row in rows if row.value(key) is None]
    return rows[:limit]


def find_runs(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield every run folder in and below some folders, damaged ones too.

    Raises:
        RunError: A folder does not exist.
    """
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        if not folder.is_dir():
            raise RunError(
                f"no such folder: {folder}",
                hint="give a folder that holds the folders named by train --out",
            )
        yield from _runs_below(folder, seen)


def _runs_below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            names = sorted(path.name for path in place.iterdir())
        except OSError:
            # A locked folder of another user, or one that was just removed.
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if _is_run(place, names):
            yield place
            continue
        waiting += [
            place / name
            for name in reversed(names)
            if not name.startswith(".") and name != MIRRORS and (place / name).is_dir()
        ]


def _is_run(place: Path, names: Sequence[str]) -> bool:
    if "config.toml" not in names and "manifest.json" in names:
        return False  # an artefact that was handed on
    if any(name in names for name in _RUN_FILES):
        return True
    if "config.toml" not in names:
        return False
    # Other programs have a config.toml too: without other files it must open.
    try:
        open_run(place)
    except RunError:
        return False
    return True


def _row(path: Path) -> RunRow:
    date = _date(path)
    try:
        run = open_run(path)
    except RunError as error:
        return RunRow(path, "damaged", reason=error.problem, date=date)
    try:
        state, progress = _state(run)
        return RunRow(
            path,
            state,
            progress=progress,
            date=date,
            config=run.shown_config,
            val_accuracy=_val_accuracy(run),
            test_accuracy=_accuracy(run, "test"),
            leak=_leak(run),
            external=run.external_metrics(),
        )
    except (RunError, OSError) as error:
        reason = error.problem if isinstance(error, RunError) else str(error)
        return RunRow(path, "damaged", reason=reason, date=date, config=run.config)


def _date(path: Path) -> str | None:
    try:
        written = (path / "config.toml").stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(written).strftime("%Y-%m-%d %H:%M")


def _state(run: Run) -> tuple[str, str]:
    if run.is_kfold:
        num_folds = run.config.data.num_folds
        num_done = sum(fold.is_finished for fold in _parts(run))
        state = "finished" if num_done == num_folds else "interrupted"
        return state, f"{num_done} of {num_folds} folds"
    if run.is_ensemble:
        state = "finished" if run.is_finished else "interrupted"
        return state, f"{len(run.member_names())} members"
    if run.card_path.is_file() and run.card(check_weights=False).epoch == 0:
        return "imported", ""
    num_done, num_epochs = len(run.history()), run.config.optim.epochs
    state = "finished" if run.is_finished else "interrupted"
    return state, f"epoch {num_done} of {num_epochs}"


def _parts(run: Run) -> list[Run]:
    if not run.is_kfold:
        return [run]
    paths = map(run.fold_path, range(run.config.data.num_folds))
    # A fold whose folder was not completed has not begun.
    return [open_run(path) for path in paths if (path / "config.toml").is_file()]


def _val_accuracy(run: Run) -> float | None:
    kept = []
    for part in _parts(run):
        best = [row for row in part.history() if row.get("is_best")]
        if best:
            kept.append(_number(best[-1].get("val_accuracy"), part.history_path))
    if kept:
        return sum(kept) / len(kept)
    measured = _accuracy(run, "val")
    return measured.value if measured else None


def _accuracy(run: Run, subset: str) -> Estimate | None:
    """Return the accuracy on a subset; `None` before it is evaluated."""
    return run.metrics(subset).accuracy if run.metrics_of(subset).is_file() else None


def _number(value: Any, path: Path) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise RunError(
            f"{path}: expected a number as accuracy, got {value!r}",
            hint="restore the file",
        )
    return float(value)


def _leak(run: Run) -> str | None:
    if not run.leak_path.is_file():
        return None
    return run.leak().state


def _condition(text: str) -> Callable[[RunRow], bool]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"expected --where key=value, with one of = != < <= > >=, got {text!r}",
            hint="for example --where model.name=resnet50 or --where "
            "'test_accuracy>0.8'",
        )
    key, sign, wanted = match.groups()
    _check_key(key)

    def holds(row: RunRow) -> bool:
        value = row.value(key)
        if wanted == "none" or value is None:
            is_same = wanted == "none" and value in (None, "none")
            return is_same if sign == "=" else not is_same if sign == "!=" else False
        is_order = sign not in ("=", "!=")
        if is_order and _is_number(value) and not _is_number(_toml(wanted)):
            raise ConfigError(
                f"{key} is a number, got --where {text!r}",
                hint=f"compare it with a number: --where '{key}{sign}{value:g}'",
            )
        return _COMPARE[sign](*_comparable(value, wanted))

    return holds


def _comparable(value: Any, wanted: str) -> tuple[Any, Any]:
    """Return both as numbers if both are numbers, else as texts."""
    try:
        number = float(wanted)
    except ValueError:
        return _as_text(value), _as_text(_toml(wanted))
    if not _is_number(value):
        return _as_text(value), wanted
    return float(value), number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _toml(text: str) -> Any:
    # [0.5,0.5] and [0.5, 0.5] are the same list.
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _check_key(key: str) -> None:
    known = (*COLUMNS, *setting_names())
    if key not in known and not key.startswith("model.extra."):
        raise ConfigError(
            f"unknown column or setting {key!r}", hint=did_you_mean(key, known)
        )


def _order(value: Any) -> tuple[int, Any]:
    """Return a sort key: numbers before texts, and texts in natural order."""
    if isinstance(value, int | float):
        return 0, value
    return 1, natural_key(_as_text(value))
