"""Predictions on disk: CSV, JSON or Parquet, in any number of rows, and resumable.

While rows come they are kept in `OUT.part`, and `OUT` is made of it when all are there:
an existing `OUT` is always complete. `OUT.part` is JSON Lines whatever `OUT` is, with
the networks in its first line, because half a Parquet file is useless, and a CSV does
not name its networks. A line is a list of rows that belong together, such as the slices
of a series: all of them or none.
"""

from __future__ import annotations

import csv
import json
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Protocol, Self

from tumorlens.data.index import check_no_work
from tumorlens.errors import ConfigError, DataError
from tumorlens.extras import require
from tumorlens.files import locked, replacing

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from tumorlens.deploy.predictor import Prediction
    from tumorlens.runs.trust import Judged

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
"""Formats, by the ending of the file's name."""

Row = dict[str, Any]

_FORMAT = 2
_ROWS_AT_ONCE = 10_000
"""Rows of a Parquet row group: held in memory together."""

OF_TRUST = ("answer", "set", "gate", "objection")
"""Columns of `tumorlens.runs.trust`, empty for a model that is not calibrated: a class,
"uncertain" or "not-a-brain-mri"; the classes of the set, likeliest first, joined by |;
the share of val images that look less odd; and the part of the gate that objected."""

_WHOLE_NUMBERS = ("series", "slice", "frame")
"""Columns of whole numbers; `prob_...` hold fractions, all others texts."""


class PredictorInfo(Protocol):
    """The part of `Predictor` that an output file needs."""

    name: str
    classes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class _Note:
    """The first line of `OUT.part`: only the same networks may resume it."""

    format: int
    runs: list[dict[str, Any]]
    columns: list[str]


class RowFile:
    """A file of rows that is being made, in groups that belong together.

    Use it as a context manager, `add_rows` each group, and `finish`. Without `finish`,
    after Ctrl-C or a power cut, `part` stays and can be resumed.

    Attributes:
        part: File with the rows so far.
        num_rows: Number of rows, with those of earlier sessions.
        num_unreadable: Number of rows of images that could not be read.
    """

    def __init__(
        self,
        out: Path,
        columns: Sequence[str],
        predictors: Sequence[PredictorInfo],
        *,
        resume: bool = False,
    ) -> None:
        """Start a file, or resume one.

        Args:
            out: Final path; its suffix is one of `SUFFIXES`.
            columns: Names of the columns, 'path', 'run' and 'error' among them.
            predictors: Predictors in the order in which they will predict.
            resume: Continue the file of an earlier session.

        Raises:
            ConfigError: The suffix is unknown, there is nothing to resume, or there is
                something and `resume` is not given.
            DataError: The file cannot be written, or other networks have left it.
            MissingExtraError: Parquet without the extra `parquet`.
            RunError: Another process is making it.
        """
        check_output(out)
        if out.suffix.lower() == ".parquet":
            require("pyarrow.parquet")
        self._lock = ExitStack()
        self._lock.enter_context(
            locked(out, lock=out.with_name(f".{out.name[:40]}.lock"))
        )
        try:
            self._start(out, columns, predictors, resume=resume)
        except BaseException:
            self._lock.close()
            raise

    def _start(
        self,
        out: Path,
        columns: Sequence[str],
        predictors: Sequence[PredictorInfo],
        *,
        resume: bool,
    ) -> None:
        """Start or resume `part`.

        Raises:
            ConfigError: It has rows, and `resume` is not given.
        """
        self.part = out.with_name(f"{out.name}.part")
        self.num_rows = self.num_unreadable = 0
        self._num_groups = 0
        self._out = out
        self._columns = list(columns)
        runs = [
            {
                "name": as_text(one.name),
                "classes": [*one.classes],
                "digest": one.digest,
            }
            for one in predictors
        ]
        note = _Note(_FORMAT, runs, self._columns)
        if resume:
            self._check_note(note)
            self._read_groups()
        elif self._has_rows():
            raise ConfigError(
                f"{self.part} has the rows of a prediction that was stopped",
                hint="continue it with --resume, or remove it",
            )
        else:
            self._write("wb", _as_line(asdict(note)))
        self._earlier = self._groups(self._num_groups)

    def __enter__(self) -> Self:
        """Open `part` for more rows."""
        try:
            self._file: IO[bytes] = self.part.open("ab")
        except OSError as error:
            self._lock.close()
            raise self._cannot_write(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Leave `part` where it is, if it has a row."""
        self._earlier.close()
        # On a full disk, the error was raised when the row was added.
        with suppress(OSError):
            self._file.close()
        if self.num_rows == 0:
            self.part.unlink(missing_ok=True)
        self._lock.close()

    def has_next(self, path: Path, run: str) -> bool:
        """Whether the next group is there from an earlier session.

        Args:
            path: Path in its first row.
            run: Name of the predictor.

        Raises:
            DataError: The next group there is another one.
        """
        group = next(self._earlier, None)
        if group is None:
            return False
        if (group[0]["path"], group[0]["run"]) != (as_text(path), as_text(run)):
            raise DataError(
                f"expected {group[0]['path']} next, as in {self.part}, got {path}",
                hint="the files have changed since: remove it and start again",
            )
        return True

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Add rows that belong together; columns that they lack are empty.

        Raises:
            DataError: The disk is full.
        """
        group = [
            {name: _plain(row.get(name)) for name in self._columns} for row in rows
        ]
        try:
            self._file.write(_as_line(group))
            # Now, and not when a buffer is full: a kill loses only the last batch.
            self._file.flush()
        except OSError as error:
            raise self._cannot_write(error) from error
        self._count(group)

    def finish(self) -> None:
        """Make the file of the rows, and remove `part`.

        Raises:
            DataError: The file cannot be written.
        """
        groups = self._groups(self._num_groups)
        write_rows(self._out, self._columns, (row for group in groups for row in group))
        self.part.unlink()

    def _count(self, group: Sequence[Row]) -> None:
        self._num_groups += 1
        self.num_rows += len(group)
        # The row of a series repeats the errors of its slices.
        self.num_unreadable += sum(
            row["error"] is not None for row in group if row.get("kind") != "series"
        )

    def _check_note(self, note: _Note) -> None:
        try:
            with self.part.open("rb") as file:
                found = json.loads(file.readline())
        except FileNotFoundError:
            if self._out.is_file():
                raise ConfigError(
                    f"there is nothing to resume: {self._out} is finished",
                    hint="leave out --resume to make it again",
                ) from None
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
                "their classes, their order or the options are others",
                hint="resume with the networks and options it was started with, or "
                "remove it and start again",
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

    def _read_groups(self) -> None:
        """Count the whole groups, and cut off what a kill left of the last one."""
        with self.part.open("r+b") as file:
            end = len(file.readline())
            for line in file:
                group = _as_whole_group(line, self._columns)
                if group is None:
                    break
                end += len(line)
                self._count(group)
            file.truncate(end)

    def _groups(self, count: int) -> Generator[list[Row]]:
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
            hint="free some space, or choose another folder; --resume continues with "
            "the rows that are there",
        )


class PredictionFile(RowFile):
    """A file with a row for each file and network: `add` each one, and `finish`."""

    def __init__(
        self, out: Path, predictors: Sequence[PredictorInfo], *, resume: bool = False
    ) -> None:
        """Start a file, or resume one: see `RowFile`."""
        columns = _columns([one.classes for one in predictors])
        super().__init__(out, columns, predictors, resume=resume)

    def remaining(
        self, predictor: PredictorInfo, paths: Iterable[Path]
    ) -> Iterator[Path]:
        """Return the paths that have no row yet.

        Args:
            predictor: The next predictor.
            paths: All paths, in the order of the earlier session.

        Raises:
            DataError: They are not the same.
        """
        return (path for path in paths if not self.has_next(path, predictor.name))

    def add(self, predictor: PredictorInfo, prediction: Prediction) -> None:
        """Add a prediction.

        Raises:
            DataError: The disk is full.
        """
        self.add_rows([_as_row(predictor.name, predictor.classes, prediction)])


def check_output(out: Path) -> None:
    """Refuse an output file of an unknown format, and one that is somebody's.

    Raises:
        ConfigError: The suffix is unknown.
        DataError: It lies between the files of a run, or is a CSV file of another kind.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"expected --out ending in one of {', '.join(SUFFIXES)}, got {out.name!r}",
            hint=f"for example --out {out.stem or 'predictions'}.csv",
        )
    is_csv = out.suffix.lower() == ".csv"
    check_no_work(out, columns=("path", "run") if is_csv else ())


def write_rows(out: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV, JSON, JSON Lines or Parquet, by the suffix.

    Args:
        out: The file; it appears when it is complete.
        columns: Names of the columns; every row has them all.
        rows: Rows; iterated once.

    Raises:
        DataError: The file cannot be written.
        MissingExtraError: Parquet without the extra `parquet`.
    """
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


def as_text(name: object) -> str:
    """Return a name as UTF-8; file names may hold other bytes."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def _columns(classes: Sequence[tuple[str, ...]]) -> list[str]:
    names = dict.fromkeys(name for names in classes for name in names)
    return [
        *("path", "run", "predicted", *map("prob_{}".format, names)),
        *(*OF_TRUST, "error"),
    ]


def _as_row(run: str, classes: tuple[str, ...], prediction: Prediction) -> Row:
    row: Row = {
        "path": as_text(prediction.path),
        "run": as_text(run),
        "predicted": prediction.predicted,
        "error": None if prediction.error is None else as_text(prediction.error),
    }
    row |= trust_cells(prediction.trust)
    if prediction.probs is not None:
        for name, prob in zip(classes, prediction.probs, strict=True):
            row[f"prob_{name}"] = float(prob)
    return row


def trust_cells(judged: Judged | None) -> Row:
    """Return the cells of the columns `OF_TRUST`; none if not calibrated."""
    if judged is None:
        return {}
    return {
        "answer": judged.answer,
        "set": "|".join(judged.in_set),
        "gate": judged.gate,
        "objection": judged.objection,
    }


def _plain(value: Any) -> Any:
    return as_text(value) if isinstance(value, str) else value


def _as_line(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _as_whole_group(line: bytes, columns: Sequence[str]) -> list[Row] | None:
    try:
        group = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    is_whole = (
        isinstance(group, list)
        and bool(group)
        and all(isinstance(row, dict) and row.keys() == {*columns} for row in group)
    )
    return group if is_whole else None


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")

    def type_of(name: str) -> Any:
        if name.startswith("prob_") or name == "gate":
            return arrow.float64()
        return arrow.int64() if name in _WHOLE_NUMBERS else arrow.string()

    schema = arrow.schema([(name, type_of(name)) for name in columns])
    with parquet.ParquetWriter(path, schema) as writer:
        remaining = iter(rows)
        while group := list(islice(remaining, _ROWS_AT_ONCE)):
            writer.write_table(arrow.Table.from_pylist(group, schema=schema))
