"""Predictions on disk: one row for each file and network, in a `row_files.RowFile`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tumorlens.deploy.row_files import (
    Answerer,
    Row,
    RowFile,
    as_text,
    check_output,
    write_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tumorlens.deploy.predictor import Prediction


class PredictionFile(RowFile):
    """A file of predictions in the making: `add` each one, and `finish`."""

    def __init__(
        self, out: Path, predictors: Sequence[Answerer], *, resume: bool = False
    ) -> None:
        """Start a file, or go on with one: see `RowFile`."""
        columns = _columns([one.classes for one in predictors])
        super().__init__(out, columns, predictors, resume=resume)

    def remaining(self, predictor: Answerer, paths: Iterable[Path]) -> Iterator[Path]:
        """Give the paths that have no row yet.

        Args:
            predictor: That is to answer; those before it have answered.
            paths: All of them, in the order of the session before.

        Raises:
            DataError: They are not the same.
        """
        return (path for path in paths if not self.has_next(path, predictor.name))

    def add(self, predictor: Answerer, prediction: Prediction) -> None:
        """Keep a prediction.

        Raises:
            DataError: The disk is full.
        """
        self.add_rows([_as_row(predictor.name, predictor.classes, prediction)])


def save_predictions(
    out: Path, answers: Sequence[tuple[str, tuple[str, ...], Sequence[Prediction]]]
) -> None:
    """Write predictions of one or several runs that are all there.

    Args:
        out: Its suffix is one of `row_files.SUFFIXES`.
        answers: Per run its name, its classes and its predictions.

    Raises:
        ConfigError: Another suffix.
        DataError: The file cannot be written.
        MissingExtraError: Parquet without the extra `parquet`.
    """
    check_output(out)
    columns = _columns([classes for _, classes, _ in answers])
    rows = (
        dict.fromkeys(columns) | _as_row(run, classes, prediction)
        for run, classes, predictions in answers
        for prediction in predictions
    )
    write_rows(out, columns, rows)


def _columns(classes: Sequence[tuple[str, ...]]) -> list[str]:
    names = dict.fromkeys(name for names in classes for name in names)
    return ["path", "run", "predicted", *map("prob_{}".format, names), "error"]


def _as_row(run: str, classes: tuple[str, ...], prediction: Prediction) -> Row:
    row: Row = {
        "path": as_text(prediction.path),
        "run": as_text(run),
        "predicted": prediction.predicted,
        "error": None if prediction.error is None else as_text(prediction.error),
    }
    if prediction.probs is not None:
        for name, prob in zip(classes, prediction.probs, strict=True):
            row[f"prob_{name}"] = float(prob)
    return row
