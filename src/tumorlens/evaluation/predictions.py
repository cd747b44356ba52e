"""`predictions.csv`: the class probabilities of a run for every image of a subset.

The table is the only source of every figure, and plain enough for any other tool: path,
label, predicted, group, source, fold, then one column of probabilities per class, empty
where only the predicted classes are known. It is checked in full when it is read.
Probabilities are rounded before the most likely class is taken, not when they are
written: the largest number of a row is therefore always the predicted class.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tumorlens.errors import RunError
from tumorlens.files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

_COLUMNS = ("path", "label", "predicted", "group", "source", "fold")
_PROB = "prob_"
_MAX_BYTES = 1 << 30
_HINT = "write it again with: tumorlens evaluate RUN"


@dataclass(frozen=True)
class Predictions:
    """The table: one image per row, N rows, C classes."""

    classes: tuple[str, ...]
    """Names, in the order of the columns of `probs`."""
    paths: tuple[str, ...]
    """Paths as in the index, each once."""
    labels: NDArray[np.int64]
    """True class indices, shape (N,)."""
    probs: NDArray[np.float64]
    """Shape (N, C), each row adding up to 1 within rounding; see `round_probs`. Without
    `has_probs`, 1 for the predicted class and 0 for the others."""
    groups: tuple[str, ...]
    """Group of each image; those of one group show one patient or one picture."""
    sources: tuple[str, ...]
    """Source of each image; empty where it is not known."""
    folds: tuple[int | None, ...]
    """Fold whose network predicted the image; `None` in an ordinary run."""
    has_probs: bool = True
    """Whether there are probabilities. If not, `probs` only hold the predicted classes,
    and no figure of probabilities may be made of them."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Class indices, shape (N,): the most likely class, the first of equals."""
        return np.asarray(self.probs.argmax(axis=1), dtype=np.int64)

    def rows(self, places: ArrayLike) -> Predictions:
        """Return some rows, in the order of `places`."""
        chosen = np.asarray(places, dtype=np.int64)
        return Predictions(
            classes=self.classes,
            paths=tuple(self.paths[place] for place in chosen),
            labels=self.labels[chosen],
            probs=self.probs[chosen],
            groups=tuple(self.groups[place] for place in chosen),
            sources=tuple(self.sources[place] for place in chosen),
            folds=tuple(self.folds[place] for place in chosen),
            has_probs=self.has_probs,
        )


def pool_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Return the rows of several tables of the same classes, sorted by path.

    Raises:
        ValueError: The classes differ, or there is no table.
    """
    if len({part.classes for part in parts}) != 1:
        raise ValueError(
            f"expected tables of the same classes, got {[p.classes for p in parts]}"
        )

    def joined(name: str) -> tuple[Any, ...]:
        return tuple(value for part in parts for value in getattr(part, name))

    pooled = Predictions(
        classes=parts[0].classes,
        paths=joined("paths"),
        labels=np.concatenate([part.labels for part in parts]),
        probs=np.concatenate([part.probs for part in parts]),
        groups=joined("groups"),
        sources=joined("sources"),
        folds=joined("folds"),
        has_probs=all(part.has_probs for part in parts),
    )
    return pooled.rows(sorted(range(len(pooled.paths)), key=pooled.paths.__getitem__))


def round_probs(probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return probabilities as the table holds them, with nine digits.

    The rows of a float32 softmax add up to 1 only within 1e-7, for which scikit-learn
    warns when a figure is recomputed. So each row is normalized in float64 first.

    Example:
        >>> round_probs(np.array([[2 / 3, 1 / 3]], dtype=np.float32))
        array([[0.66666667, 0.33333333]])
    """
    exact = probs.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    return np.array([[float(_digits(prob)) for prob in row] for row in exact])


def write_predictions(path: Path, table: Predictions) -> None:
    """Write the table as CSV, in one step. Raises what `files.write_text` raises."""
    text = io.StringIO()
    # A lone carriage return ends a line for the reader but is not quoted by default.
    odd = any("\r" in name for name in (*table.paths, *table.groups, *table.sources))
    writer = csv.writer(
        text,
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL,
    )
    writer.writerow([*_COLUMNS, *(f"{_PROB}{name}" for name in table.classes)])
    predicted = table.predicted
    for row, image in enumerate(table.paths):
        fold = table.folds[row]
        writer.writerow(
            [
                image,
                table.classes[table.labels[row]],
                table.classes[predicted[row]],
                table.groups[row],
                table.sources[row],
                "" if fold is None else fold,
                *(
                    _digits(prob) if table.has_probs else ""
                    for prob in table.probs[row]
                ),
            ]
        )
    write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Return the content of a table, after checking all of it.

    Raises:
        RunError: The file cannot be read or is too large; a column is missing; or a
            line has a path named before, an unknown class, no group, a fold that is
            not a number, probabilities that are not a distribution, or a predicted
            class that is not the most likely; the line is named. Only some lines have
            probabilities.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RunError(f"{path} has more than {_MAX_BYTES} bytes", hint=_HINT)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            classes = _read_header(path, next(reader, []))
            rows = [
                _read_row(f"{path}, line {reader.line_num}", cells, classes)
                for cells in reader
                if cells
            ]
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is not a table: {error}", hint=_HINT) from None
    if not rows:
        raise RunError(f"{path} has no predictions", hint=_HINT)
    _check_named_once(path, [row.path for row in rows])
    has_probs = {row.has_probs for row in rows}
    if len(has_probs) > 1:
        _refuse(str(path), "only some lines have probabilities")
    return Predictions(
        classes=classes,
        paths=tuple(row.path for row in rows),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        probs=np.array([row.probs for row in rows]),
        groups=tuple(row.group for row in rows),
        sources=tuple(row.source for row in rows),
        folds=tuple(row.fold for row in rows),
        has_probs=has_probs.pop(),
    )


@dataclass(frozen=True)
class _Row:
    """One checked line."""

    path: str
    label: int
    probs: list[float]
    group: str
    source: str
    fold: int | None
    has_probs: bool


def _digits(prob: float) -> str:
    return f"{prob:.9g}"


def _read_header(path: Path, header: list[str]) -> tuple[str, ...]:
    names, columns = header[: len(_COLUMNS)], header[len(_COLUMNS) :]
    classes = tuple(column.removeprefix(_PROB) for column in columns)
    if (
        tuple(names) != _COLUMNS
        or not all(column.startswith(_PROB) for column in columns)
        or len(classes) < 2
        or len(set(classes)) < len(classes)
    ):
        got = ", ".join(header)
        _refuse(
            str(path),
            f"expected the columns {', '.join(_COLUMNS)} and {_PROB}<class> for each "
            f"of at least two classes, got {got[:200] or 'none'}",
        )
    return classes


def _read_row(place: str, cells: list[str], classes: tuple[str, ...]) -> _Row:
    num_cells = len(_COLUMNS) + len(classes)
    if len(cells) != num_cells:
        _refuse(place, f"expected {num_cells} fields, got {len(cells)}")
    path, label, predicted, group, source, fold = cells[: len(_COLUMNS)]
    if not path or not group:
        _refuse(place, f"no {'group' if path else 'path'}")
    for name in (label, predicted):
        if name not in classes:
            _refuse(place, f"{name[:80]!r} is none of {', '.join(classes)}")
    if fold and not (fold.isascii() and fold.isdecimal() and len(fold) < 4):
        _refuse(place, f"expected a number as fold, got {fold[:80]!r}")
    has_probs = any(cells[len(_COLUMNS) :])
    probs = (
        _read_probs(place, cells[len(_COLUMNS) :])
        if has_probs
        else [float(name == predicted) for name in classes]
    )
    if probs[classes.index(predicted)] < max(probs):
        likeliest = classes[probs.index(max(probs))]
        _refuse(place, f"predicted is {predicted!r}, but {likeliest!r} is more likely")
    return _Row(
        path=path,
        label=classes.index(label),
        probs=probs,
        group=group,
        source=source,
        fold=int(fold) if fold else None,
        has_probs=has_probs,
    )


def _read_probs(place: str, texts: list[str]) -> list[float]:
    probs = []
    for text in texts:
        try:
            prob = float(text)
        except ValueError:
            prob = math.nan
        # Softmax in float32 can exceed 1 by its last digit. `nan` fails here too.
        if not 0 <= prob <= 1 + 1e-6:
            _refuse(place, f"{text[:80]!r} is no probability")
        probs.append(prob)
    if not math.isclose(sum(probs), 1, abs_tol=1e-3):
        _refuse(place, f"the probabilities add up to {sum(probs):.6g}")
    return probs


def _check_named_once(path: Path, images: list[str]) -> None:
    seen: set[str] = set()
    for image in images:
        if image in seen:
            _refuse(str(path), f"{image!r} is named twice")
        seen.add(image)


def _refuse(place: str, problem: str) -> NoReturn:
    raise RunError(f"{place}: {problem}", hint=_HINT)
