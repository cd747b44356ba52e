"""Predictions on disk: CSV, JSON or Parquet, in any number, and resumable.

While predictions come they are kept row by row in `OUT.part`, and `OUT` is made of it
when they are all there: whoever finds `OUT` finds all of it. What the newcomer would
get wrong: `OUT.part` is JSON Lines whatever `OUT` is, with the networks in its first
line, because half a Parquet file is nothing, and a CSV does not say what answered.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

from tumorlens.errors import ConfigError, DataError
from tumorlens.extras import require
from tumorlens.files import replacing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from tumorlens.predict import Prediction

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
"""Formats, by the ending of the file's name."""

_FORMAT = 1
_ROWS_AT_ONCE = 10_000
"""Rows of a Parquet row group: held in memory together."""


class Answerer(Protocol):
    """As much of a `predict.Predictor` as a file has to know."""

    name: str
    classes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class _Note:
    """The first line of `OUT.part`: what answers, so that nothing else goes on."""

    format: int
    runs: list[dict[str, Any]]


class PredictionFile:
    """A file of predictions in the making.

    Use it as a context manager, `add` each prediction, and `finish`. Without `finish`,
    after Ctrl-C or a power cut, `part` stays and can be resumed.

    Attributes:
        part: The rows so far.
        num_rows: How many they are, with those of earlier sessions.
        num_unreadable: Rows of files that could not be read.
    """

    def __init__(
        self, out: Path, predictors: Sequence[Answerer], *, resume: bool = False
    ) -> None:
        """Start a file, or go on with one.

        Args:
            out: Its suffix is one of `SUFFIXES`.
            predictors: That will answer, in this order.
            resume: Go on with what an earlier session has left.

        Raises:
            ConfigError: The suffix is unknown, there is nothing to resume, or there is
                and `resume` is not given.
            DataError: The file cannot be written, or was left by other networks.
            MissingExtraError: Parquet without the extra `parquet`.
        """
        check_output(out)
        if out.suffix.lower() == ".parquet":
            require("pyarrow.parquet")
        self.part = out.with_name(f"{out.name}.part")
        self.num_rows = self.num_unreadable = 0
        self._out = out
        self._columns = _columns([predictor.classes for predictor in predictors])
        note = _Note(
            _FORMAT,
            [
                {
                    "name": _text(one.name),
                    "classes": [*one.classes],
                    "digest": one.digest,
                }
                for one in predictors
            ],
        )
        if resume:
            self._check_note(note)
            self._read_rows()
        elif self._has_rows():
            raise ConfigError(
                f"{self.part} has the rows of a prediction that was stopped",
                hint="go on with it by --resume, or remove it",
            )
        else:
            self._write("wb", _as_line(asdict(note)))
        self._earlier = self._rows(self.num_rows)

    def __enter__(self) -> Self:
        """Open `part` for more rows."""
        try:
            self._file: IO[bytes] = self.part.open("ab")
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Leave `part` where it is, if it has a row."""
        self._earlier.close()
        self._file.close()
        if self.num_rows == 0:
            self.part.unlink(missing_ok=True)

    def remaining(self, predictor: Answerer, paths: Iterable[Path]) -> Iterator[Path]:
        """Give the paths that have no row yet.

        Args:
            predictor: That is to answer; those before it have answered.
            paths: All of them, in the order of the session before.

        Raises:
            DataError: They are not the same.
        """
        for path in paths:
            row = next(self._earlier, None)
            if row is None:
                yield path
            elif (row["path"], row["run"]) != (_text(path), _text(predictor.name)):
                raise DataError(
                    f"expected {row['path']} next, as in {self.part}, got {path}",
                    hint="the files have changed since: remove it and start again",
                )

    def add(self, predictor: Answerer, prediction: Prediction) -> None:
        """Keep a prediction.

        Raises:
            DataError: The disk is full.
        """
        row = _as_row(predictor.name, predictor.classes, prediction, self._columns)
        try:
            self._file.write(_as_line(row))
            # Now, and not when a buffer is full: a kill loses the batch at hand only.
            self._file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        self.num_rows += 1
        self.num_unreadable += prediction.error is not None

    def finish(self) -> None:
        """Make the file of the rows, and remove `part`.

        Raises:
            DataError: The file cannot be written.
        """
        _write_rows(self._out, self._columns, self._rows(self.num_rows))
        self.part.unlink()

    def _check_note(self, note: _Note) -> None:
        try:
            with self.part.open("rb") as file:
                found = json.loads(file.readline())
        except FileNotFoundError:
            raise ConfigError(
                f"there is nothing to resume: {self.part} does not exist",
                hint="leave out --resume to start",
            ) from None
        except OSError as error:
            raise self._cannot_write(error) from error
        except ValueError:
            found = None
        if found != asdict(note):
            raise DataError(
                f"{self.part} was not left by "
                f"{', '.join(run['name'] for run in note.runs)} as now: the networks, "
                "their classes or their order are others",
                hint="resume with what it was started with, or remove it and start "
                "again",
            )

    def _has_rows(self) -> bool:
        try:
            with self.part.open("rb") as file:
                file.readline()
                return bool(file.readline())
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._cannot_write(error) from error

    def _read_rows(self) -> None:
        """Count the whole rows, and cut off what a kill left of the last one."""
        with self.part.open("r+b") as file:
            end = len(file.readline())
            for line in file:
                row = _as_whole_row(line)
                if row is None:
                    break
                end += len(line)
                self.num_rows += 1
                self.num_unreadable += row["error"] is not None
            file.truncate(end)

    def _rows(self, count: int) -> Generator[dict[str, Any]]:
        with self.part.open("rb") as file:
            file.readline()
            for _ in range(count):
                yield json.loads(file.readline())

    def _write(self, mode: str, content: bytes) -> None:
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            with self.part.open(mode) as file:
                file.write(content)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> DataError:
        return DataError(
            f"cannot write {self.part}: {error.strerror or error}",
            hint="free some space, or choose another folder; rows that are in it can "
            "be gone on with by --resume",
        )


def save_predictions(
    out: Path, answers: Sequence[tuple[str, tuple[str, ...], Sequence[Prediction]]]
) -> None:
    """Write predictions of one or several runs that are all there.

    Args:
        out: Its suffix is one of `SUFFIXES`.
        answers: Per run its name, its classes and its predictions.

    Raises:
        ConfigError: Another suffix.
        DataError: The file cannot be written.
        MissingExtraError: Parquet without the extra `parquet`.
    """
    check_output(out)
    columns = _columns([classes for _, classes, _ in answers])
    rows = (
        _as_row(run, classes, prediction, columns)
        for run, classes, predictions in answers
        for prediction in predictions
    )
    _write_rows(out, columns, rows)


def check_output(out: Path) -> None:
    """Refuse an output file of a format that is not written.

    Raises:
        ConfigError: The suffix is unknown.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"expected --out ending in one of {', '.join(SUFFIXES)}, got {out.name!r}",
            hint=f"for example --out {out.stem or 'predictions'}.csv",
        )


def _columns(classes: Sequence[tuple[str, ...]]) -> list[str]:
    names = dict.fromkeys(name for names in classes for name in names)
    return ["path", "run", "predicted", *map("prob_{}".format, names), "error"]


def _as_row(
    run: str, classes: tuple[str, ...], prediction: Prediction, columns: list[str]
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {
        "path": _text(prediction.path),
        "run": _text(run),
        "predicted": prediction.predicted,
        "error": None if prediction.error is None else _text(prediction.error),
    }
    if prediction.probs is not None:
        for name, prob in zip(classes, prediction.probs, strict=True):
            row[f"prob_{name}"] = float(prob)
    return row


def _text(name: object) -> str:
    # A file's name may be no UTF-8, which no format here can hold.
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def _as_line(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _as_whole_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return (
        row if isinstance(row, dict) and {"path", "run", "error"} <= set(row) else None
    )


def _write_rows(out: Path, columns: list[str], rows: Iterable[dict[str, Any]]) -> None:
    with replacing(out) as temporary:
        match out.suffix.lower():
            case ".csv":
                with temporary.open("w", encoding="utf-8", newline="") as text:
                    writer = csv.DictWriter(text, columns, lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(rows)
            case ".json":
                with temporary.open("wb") as file:
                    before = b"[\n"
                    for row in rows:
                        file.write(before + _as_line(row).rstrip())
                        before = b",\n"
                    file.write(b"\n]\n" if before == b",\n" else b"[]\n")
            case ".jsonl":
                with temporary.open("wb") as file:
                    file.writelines(_as_line(row) for row in rows)
            case _:
                _write_parquet(temporary, columns, rows)


def _write_parquet(
    path: Path, columns: list[str], rows: Iterable[dict[str, Any]]
) -> None:
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    schema = arrow.schema(
        (name, arrow.float64() if name.startswith("prob_") else arrow.string())
        for name in columns
    )
    with parquet.ParquetWriter(path, schema) as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, _ROWS_AT_ONCE)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))
