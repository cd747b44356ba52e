"""The run folder: the files of one training. Only this module knows their names.

    RUN/config.toml          all settings, with those left at their default
        environment.json     versions, device, seed and the command that made the run
        split.csv            which file was in which subset
        leak.json            copies and patients across subsets
        seen.npz             sketches of the pictures of train and val
        history.jsonl        one line per epoch
        model.json           how to rebuild the network and its preprocessing
        weights.safetensors  the best weights by validation
        trust.json, gate.npz when to answer, and what to turn away
        last/                everything that resuming needs
        finished             an empty file that marks a finished training
        folds/0 ...          in a k-fold run: an ordinary run folder per fold
        ensemble.json        in an ensemble: the names of its members
        members/0 ...        in an ensemble: copies of run folders
        predictions.csv, metrics.json, looks.jsonl, report.html, figures/
        answers.csv          what a calibrated run answers for the same images
        facts.csv            their size, brightness and sharpness
        predictions-val.csv, metrics-val.json   where val (or train) was evaluated
        external/NAME/       measured on another set: predictions, images, external.json
        tta/val.json ...     the effect of test-time augmentation, and its tables
        stress.json, stress.html, stress-val-onnx.json ...   accuracy on worse images
        review/              doubtful labels: review.json, review.html, images.csv,
                             suggestions.csv
        card.md, card.json, checklist.csv   the model card, made from these files
        tracking.json        the run of MLflow that mirrors this one

`open_run` loads no weights and needs no torch: a `Run` reads the files of the folder
one by one, and checks them.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

import tumorlens
from tumorlens.config import Config, Fit, dump_config, load_config
from tumorlens.data.index import SplitRow, read_split, split_sha256, write_split
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import ConfigError, RunError
from tumorlens.files import (
    append_json,
    check_model,
    is_ours,
    read_json,
    read_json_lines,
    read_model,
    remove_leftovers,
    sha256_of,
    write_bytes,
    write_json,
    write_model,
    write_text,
)
from tumorlens.runs.external import FILE as EXTERNAL_FILE
from tumorlens.runs.external import ExternalMetrics, read_external_metrics
from tumorlens.runs.measures import EpochRow, Metrics
from tumorlens.text import NotebookView, natural_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FORMAT = 1
"""Number of the layout above. A run of another number is refused."""

MIRRORS = "mlflow-artifacts"
"""A folder beside run folders with the artifacts that `runs.tracking` has sent. Some of
its folders look like run folders, but are none."""

Tta = Literal["none", "eight-views"]
"""Names of the policies of `tumorlens.training.views` that a card may have."""


_BEFORE_TRAINING = (
    "config.toml",
    "environment.json",
    "split.csv",
    "leak.json",
    "seen.npz",
    "looks.jsonl",
)
"""Files of a run that are there before it has learnt anything."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ModelCard(BaseModel):
    """`model.json`: everything that is needed to use the weights beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: int = FORMAT
    tumorlens: str
    """Version of this package at the time of training."""
    name: str
    """timm's name of the network."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of `timm.create_model`: drop rates, pooling, `pad_type`."""
    classes: tuple[str, ...] = Field(min_length=2)
    """Class names in the order of the network's outputs."""
    in_chans: Literal[1, 3]
    size_px: int = Field(ge=16, le=2048)
    fit: Fit
    mean: tuple[_Finite, ...]
    """Per channel, of values in [0, 1]."""
    std: tuple[_Positive, ...]
    mirror: bool
    """Whether probabilities are averaged with those of the mirror image."""
    tta: Tta = "none"
    """Views over which probabilities are averaged; unless it is "none", it takes
    precedence over `mirror`."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Divisor of the logits before softmax; 1 until the run is calibrated."""
    epoch: int
    """Epoch of the weights, from 1; 0 for imported ones."""
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    trust_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Digest of the `trust.json` that the temperature is of; `None` until the run is
    calibrated."""

    @field_validator("classes")
    @classmethod
    def _no_class_twice(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class is there twice")
        return classes

    @field_validator("mean", "std")
    @classmethod
    def _one_per_channel(
        cls, values: tuple[float, ...], info: ValidationInfo
    ) -> tuple[float, ...]:
        in_chans = info.data.get("in_chans", len(values))
        if len(values) != in_chans:
            raise ValueError(f"expected {in_chans} values, one per channel")
        return values


class Look(BaseModel):
    """A line of `looks.jsonl`: one look at the figures of a subset."""

    model_config = ConfigDict(frozen=True)

    time: str
    """Time in ISO 8601, UTC."""
    subset: str
    command: str
    """Command line of the user."""


class _Environment(BaseModel):
    """`environment.json`, as far as it is used and not only shown."""

    model_config = ConfigDict(extra="allow")

    command: str | list[str] = ""
    packages: dict[str, str | None] = Field(default_factory=dict)


class _Tracking(BaseModel):
    """`tracking.json`."""

    model_config = ConfigDict(extra="allow")

    url: str = ""
    run_id: str | None = None
    sent: dict[str, str] = Field(default_factory=dict)
    """File -> SHA-256 of what was sent."""


class _EnsembleFile(BaseModel):
    """`ensemble.json`."""

    format: int = FORMAT
    members: tuple[str, ...] = Field(min_length=1)
    """Names of the runs that the members were copied from."""
    model: str = ""
    """What takes the place of a network's name, such as "2 x resnet18". Ensembles of
    earlier versions have it as `model.name` in their settings."""


@dataclass(frozen=True)
class Run(NotebookView):
    """A run folder on disk."""

    path: Path
    config: Config

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def split_path(self) -> Path:
        """The subset of each file, as CSV."""
        return self.path / "split.csv"

    @property
    def leak_path(self) -> Path:
        """The leak verdict of this split, as JSON."""
        return self.path / "leak.json"

    @property
    def seen_path(self) -> Path:
        """Sketches of the pictures of train and val: see `tumorlens.data.seen`."""
        return self.path / "seen.npz"

    @property
    def environment_path(self) -> Path:
        """Versions, device, seed and command, as JSON."""
        return self.path / "environment.json"

    @property
    def history_path(self) -> Path:
        """One JSON object per epoch and line."""
        return self.path / "history.jsonl"

    @property
    def card_path(self) -> Path:
        """How to rebuild the network, as JSON."""
        return self.path / "model.json"

    @property
    def weights_path(self) -> Path:
        """The best weights by validation."""
        return self.path / "weights.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        """Everything that resuming needs; gone once the run is finished."""
        return self.path / "last" / "checkpoint.pt"

    @property
    def predictions_path(self) -> Path:
        """Class probabilities of every test file, as CSV."""
        return self.path / "predictions.csv"

    @property
    def metrics_path(self) -> Path:
        """Measures with their intervals, as JSON."""
        return self.path / "metrics.json"

    @property
    def looks_path(self) -> Path:
        """The log of looks at test, one JSON object per line."""
        return self.path / "looks.jsonl"

    def predictions_of(self, subset: str) -> Path:
        """Return the path of a subset's probabilities; that of test has no suffix."""
        return _with_subset(self.predictions_path, subset)

    def answers_of(self, subset: str) -> Path:
        """Return the path of what a calibrated run answers for a subset."""
        return _with_subset(self.path / "answers.csv", subset)

    def facts_of(self, subset: str) -> Path:
        """Return the path of a subset's facts: size, brightness and sharpness."""
        return _with_subset(self.path / "facts.csv", subset)

    def metrics_of(self, subset: str) -> Path:
        """Return the path of a subset's measures; that of test has no suffix."""
        return _with_subset(self.metrics_path, subset)

    def metrics(self, subset: str = "test") -> Metrics:
        """Return the measures of a subset.

        Raises:
            RunError: The subset is not evaluated yet, or the file is damaged.
        """
        path = self.metrics_of(subset)
        hint = f"run: tumorlens evaluate {self.path}"
        if subset != "test":
            hint += f" --subset {subset}"
        if not path.is_file():
            raise RunError(f"{self.path} is not evaluated yet", hint=hint)
        return read_model(path, Metrics, hint=hint)

    @property
    def report_path(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def figures_dir(self) -> Path:
        """Folder of the figures of the report page."""
        return self.path / "figures"

    def tta_path(self, subset: str, *, views: str = "") -> Path:
        """Return the path of the effect of test-time augmentation on a subset.

        Args:
            subset: `test`, `val` or `train`.
            views: "without" or "with" for the table of probabilities behind it.
        """
        name = f"{subset}-{views}.csv" if views else f"{subset}.json"
        return self.path / "tta" / name

    def stress_path(self, subset: str, *, kind: str = "") -> Path:
        """Return the path of the accuracies on worse images; the page is beside it.

        Args:
            subset: `test` or `val`.
            kind: Format of the artefact that was measured; empty for the run itself.
        """
        path = _with_subset(self.path / "stress.json", subset)
        return path.with_stem(f"{path.stem}-{kind}") if kind else path

    @property
    def review_path(self) -> Path:
        """Folder of the review of labels."""
        return self.path / "review"

    def external_path(self, name: str) -> Path:
        """Return the folder of an evaluation on another set."""
        return self.path / "external" / name

    def external_metrics(self) -> dict[str, ExternalMetrics]:
        """Return the measures on other sets, by the name of their folder.

        Raises:
            RunError: A file is damaged.
        """
        folders = sorted(
            (path.parent for path in self.path.glob(f"external/*/{EXTERNAL_FILE}")),
            key=lambda folder: natural_key(folder.name),
        )
        return {folder.name: read_external_metrics(folder) for folder in folders}

    @property
    def tracking_path(self) -> Path:
        """The run of MLflow that mirrors this one, as JSON."""
        return self.path / "tracking.json"

    @property
    def ensemble_path(self) -> Path:
        """Names of the members, as JSON; a run with this file is an ensemble."""
        return self.path / "ensemble.json"

    @property
    def is_ensemble(self) -> bool:
        """Whether the run averages the probabilities of several others."""
        return self.ensemble_path.is_file()

    @property
    def is_kfold(self) -> bool:
        """Whether the run is made of folds, which are runs themselves."""
        return (
            self.config.data.protocol == "grouped-kfold"
            and self.config.data.fold is None
        )

    @property
    def is_finished(self) -> bool:
        """Whether the training is finished, in every fold."""
        if self.is_kfold:
            folds = self.folds()
            return len(folds) == self.config.data.num_folds and all(
                fold.is_finished for fold in folds
            )
        return (self.path / "finished").is_file()

    def fold_path(self, fold: int) -> Path:
        """Return the path of fold number `fold`, from 0, which may not exist yet."""
        return self.path / "folds" / str(fold)

    def folds(self) -> tuple[Run, ...]:
        """Return the folds that exist, in order; none for an ordinary run."""
        if not self.is_kfold:
            return ()
        paths = (self.fold_path(fold) for fold in range(self.config.data.num_folds))
        return tuple(open_run(path) for path in paths if path.is_dir())

    def member_path(self, number: int) -> Path:
        """Return the path of member `number` of an ensemble, from 0."""
        return self.path / "members" / str(number)

    def members(self) -> tuple[Run, ...]:
        """Return the members of an ensemble, in order; none for any other run.

        An ensemble of k-fold runs has its members in its folds.

        Raises:
            RunError: `ensemble.json` is damaged, or a member is missing.
        """
        if not self.is_ensemble or self.is_kfold:
            return ()
        names = self.member_names()
        return tuple(open_run(self.member_path(n)) for n in range(len(names)))

    def member_names(self) -> tuple[str, ...]:
        """Return the original names of an ensemble's members, in order.

        Raises:
            RunError: `ensemble.json` is damaged.
        """
        return self._ensemble().members

    def _ensemble(self) -> _EnsembleFile:
        hint = "make the ensemble again"
        return read_model(self.ensemble_path, _EnsembleFile, hint=hint)

    @property
    def model_name(self) -> str:
        """Name of the network, or of what an ensemble is made of: "2 x resnet18".

        Raises:
            RunError: `ensemble.json` is damaged.
        """
        if not self.is_ensemble:
            return self.config.model.name
        return self._ensemble().model or self.config.model.name

    @property
    def shown_config(self) -> Config:
        """The settings; those of an ensemble have its `model_name`.

        Raises:
            RunError: `ensemble.json` is damaged.
        """
        model = self.config.model.model_copy(update={"name": self.model_name})
        return self.config.model_copy(update={"model": model})

    def networks(self) -> tuple[Run, ...]:
        """Return the runs that hold the networks of this one.

        They are the run itself, the members of an ensemble, or those of every fold.
        """
        parts = self.folds() if self.is_kfold else (self,)
        return tuple(one for part in parts for one in part.members() or (part,))

    def card(self, *, check_weights: bool = True) -> ModelCard:
        """Return the content of `model.json`, after checking it against the weights.

        Args:
            check_weights: Whether to check the digest of the weights file.

        Raises:
            RunError: There are no weights yet, they have changed, or the file is
                damaged or of another version.
        """
        hint = f"finish it with: tumorlens train --resume --out {self.path}"
        if self.is_finished:
            # Resuming does not change a finished run.
            hint = "restore the file from a copy, or train again into another --out"
        if self.is_ensemble:
            hint = (
                f"each network of an ensemble is a run in {self.member_path(0).parent}"
            )
        if not self.card_path.is_file():
            raise RunError(f"there is no {self.card_path}", hint=hint)
        card = read_model(
            self.card_path,
            ModelCard,
            hint="if another version of tumorlens made the run, use that one (this is "
            f"{tumorlens.__version__}); otherwise {hint}",
        )
        if not self.weights_path.is_file():
            raise RunError(f"{self.path} has no {self.weights_path.name}", hint=hint)
        if check_weights and sha256_of(self.weights_path) != card.weights_sha256:
            raise RunError(
                f"{self.weights_path} is not the file that {self.card_path.name} "
                f"describes: its SHA-256 should be {card.weights_sha256[:12]}...",
                hint="the weights were changed or damaged: "
                + (hint if self.is_finished else f"restore them, or {hint}"),
            )
        return card

    def split(self) -> tuple[SplitRow, ...]:
        """Return the subset of each file.

        Raises:
            RunError: The run has no split, which imported weights may lack, or another
                one than it was made with.
        """
        if not self.split_path.is_file():
            raise RunError(
                f"{self.path} has no {self.split_path.name}, and so no subsets",
                hint="imported weights get one by: tumorlens import ... --data DATA",
            )
        rows = read_split(self.split_path)
        # Test images of another split may be training images of this run.
        expected = self.leak().split_sha256 if self.leak_path.is_file() else None
        if expected not in (None, split_sha256(rows)):
            raise RunError(
                f"{self.split_path} is not the split that this run was made with",
                hint="restore the file from a copy; another split needs another run, "
                "with data.split set to its file",
            )
        return rows

    def leak(self) -> LeakVerdict:
        """Return the leak verdict of this split.

        Raises:
            RunError: The file is missing or damaged.
        """
        return read_model(self.leak_path, LeakVerdict, hint="train the run again")

    def environment(self) -> dict[str, Any]:
        """Return versions, device, seed and command.

        Raises:
            RunError: The file is missing or damaged.
        """
        path, hint = self.environment_path, "train the run again"
        content = read_json(path, hint=hint)
        check_model(content, _Environment, path=path, hint=hint)
        return dict(content)

    def history(self) -> list[dict[str, Any]]:
        """Return one dictionary per finished epoch; empty before the first.

        A figure that is not finite, as of a training that diverged, is NaN.

        Raises:
            RunError: The file is damaged.
        """
        path, hint = self.history_path, "restore the file or train the run again"
        rows = read_json_lines(path, hint=hint)
        for number, row in enumerate(rows, start=1):
            place = f"line {number}"
            check_model(nan_as_none(row), EpochRow, path=path, hint=hint, place=place)
        return [
            {key: math.nan if value is None else value for key, value in row.items()}
            for row in rows
        ]

    def log_look(self, *, subset: str, command: str) -> None:
        """Log a look at the figures of a subset, with its time.

        Processes that look at the same moment lose none.
        """
        time = datetime.now(UTC).isoformat(timespec="seconds")
        look = Look(time=time, subset=subset, command=command)
        append_json(self.looks_path, look.model_dump(mode="json"))

    def looks(self) -> list[Look]:
        """Return the looks that were logged so far.

        Raises:
            RunError: The file is damaged.
        """
        path, hint = self.looks_path, "restore the file"
        return [
            check_model(line, Look, path=path, hint=hint, place=f"line {number}")
            for number, line in enumerate(
                read_json_lines(path, hint=hint, is_log=True), start=1
            )
        ]

    def write_looks(self, looks: Iterable[Look]) -> None:
        """Write a whole log of looks: an ensemble starts with that of its members."""
        _write_lines(self.looks_path, [look.model_dump(mode="json") for look in looks])

    def write_ensemble(self, members: Iterable[str], *, model: str = "") -> None:
        """Write `ensemble.json`: names of the members, and of their networks."""
        content = _EnsembleFile(members=tuple(members), model=model)
        write_model(self.ensemble_path, content)

    def tracking(self) -> dict[str, Any]:
        """Return the run of MLflow that mirrors this one; empty if none does.

        Raises:
            RunError: The file is damaged.
        """
        if not self.tracking_path.is_file():
            return {}
        hint = "delete the file"
        content = read_json(self.tracking_path, hint=hint)
        check_model(content, _Tracking, path=self.tracking_path, hint=hint)
        return dict(content)

    def write_tracking(self, content: Mapping[str, Any]) -> None:
        """Write `tracking.json`."""
        write_json(self.tracking_path, dict(content))

    def write_config(self) -> None:
        """Write `config.toml`."""
        write_text(self.path / "config.toml", dump_config(self.config))

    def update_config(self) -> None:
        """Write `config.toml` if it differs: the images may have moved."""
        if open_run(self.path).config != self.config:
            self.write_config()

    def write_split(self, rows: Iterable[SplitRow], leak: LeakVerdict) -> None:
        """Write `split.csv`, and its verdict with the digest of its rows."""
        rows = tuple(rows)
        write_split(self.split_path, rows)
        digest = split_sha256(rows)
        self.write_leak(leak.model_copy(update={"split_sha256": digest}))

    def write_leak(self, verdict: LeakVerdict) -> None:
        """Write `leak.json`, of a run that has no split or whose split stays."""
        write_model(self.leak_path, verdict)

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write `environment.json`."""
        write_json(self.environment_path, dict(environment))

    def write_history(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the whole of `history.jsonl`, so that it never ends in half a line.

        JSON has no word for a number that is not finite: `null` takes its place.
        """
        _write_lines(self.history_path, map(nan_as_none, rows))

    def write_weights(self, weights: bytes, card: ModelCard) -> None:
        """Write the weights, then the card with their digest.

        A crash between the two leaves a card that does not match. `card` reports it,
        and resuming repairs it: the epoch is repeated, and both are written again.
        """
        write_bytes(self.weights_path, weights)
        write_model(self.card_path, card)

    def write_card(self, card: ModelCard) -> None:
        """Write `model.json` of weights that stay, as with another temperature."""
        write_model(self.card_path, card)

    def remove_partial_files(self) -> None:
        """Remove what killed processes left half-written, not what live ones write."""
        remove_leftovers(self.path.rglob(".*"))

    @property
    def has_learnt(self) -> bool:
        """Whether there are weights or a checkpoint, in the folder or below it."""
        names = (self.weights_path.name, self.checkpoint_path.name)
        return any(path.name in names for path in self.path.rglob("*"))

    def remove_unlearnt(self) -> None:
        """Remove the run, if nothing was learnt, up to what is not of a run.

        Files that a user has put into the folder stay, and so does the folder then.
        """
        if self.has_learnt:
            return
        for fold in (*self.path.glob("folds/*"), self.path / "folds", self.path):
            for name in _BEFORE_TRAINING:
                (fold / name).unlink(missing_ok=True)
            remove_leftovers(fold.glob(".*"))
            with suppress(OSError):  # not empty
                fold.rmdir()

    def mark_finished(self) -> None:
        """Mark the training as finished, and delete its checkpoint."""
        write_text(self.path / "finished", "")
        self.remove_checkpoint()

    def remove_checkpoint(self) -> None:
        """Delete the checkpoint of a finished training, which nothing needs."""
        self.checkpoint_path.unlink(missing_ok=True)
        if self.checkpoint_path.parent.is_dir():
            self.checkpoint_path.parent.rmdir()


def nan_as_none(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a history with `None` for each number that is not finite."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def check_free(path: Path) -> None:
    """Refuse a run folder that has content.

    Raises:
        RunError: The folder exists and is not empty.
    """
    if path.exists() and (not path.is_dir() or any(_finished_files(path))):
        raise RunError(
            f"{path} exists already",
            hint="choose another --out, or continue an interrupted run with --resume",
        )


def create_run(path: Path, config: Config) -> Run:
    """Make a run folder with its settings only.

    Raises:
        RunError: The folder exists and is not empty.
    """
    check_free(path)
    run = Run(path, config)
    run.write_config()
    return run


def open_run(path: Path) -> Run:
    """Return the run in a folder.

    Raises:
        RunError: The folder does not exist, is not a run folder, or has settings that
            are unknown to this version.
    """
    if not path.is_dir():
        raise RunError(
            f"no such run folder: {path}", hint="give the folder named by train --out"
        )
    if not (path / "config.toml").is_file():
        raise RunError(
            f"{path} is not a run folder: it has no config.toml",
            hint="give the folder named by train --out",
        )
    try:
        config = load_config(path / "config.toml")
    except ConfigError as error:
        raise RunError(
            f"{path / 'config.toml'}: {error.problem}",
            hint=f"the run is from another version of tumorlens, or was edited; this "
            f"is {tumorlens.__version__}",
        ) from None
    return Run(path, config)


def _with_subset(path: Path, subset: str) -> Path:
    return path if subset == "test" else path.with_stem(f"{path.stem}-{subset}")


def _finished_files(path: Path) -> Iterator[Path]:
    # A run that was killed while its first file was written holds nothing of value.
    return (entry for entry in path.iterdir() if not is_ours(entry))


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(dict(row)) + "\n" for row in rows))
