"""Files become probabilities: `Predictor`, the way in for everyone who uses a model.

An image goes through `images.load_square` and `models.infer`, exactly as validation's
images did. A file that cannot be read is an answer too: a `Prediction` with its error.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tumorlens.artefacts import Artefact, is_artefact, open_artefact
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.extras import require
from tumorlens.files import replacing, write_json, write_text
from tumorlens.images import (
    DEFAULT_LIMITS,
    SUFFIXES,
    ImageLimits,
    load_square,
    to_square,
)
from tumorlens.runs import ModelCard, Run, open_run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tumorlens.config import Fit

Progress = Callable[[int, int], None]

OUTPUT_SUFFIXES = (".csv", ".json", ".parquet")
"""Formats of `save_predictions`."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one file."""

    path: Path
    probs: NDArray[np.float32] | None
    """Probability of each class, shape (C,), sum 1; `None` for an unreadable file."""
    predicted: str | None
    """The most probable class."""
    error: str | None
    """Why the file could not be read, in one line."""


@dataclass(frozen=True)
class Voice:
    """Something that answers: a network of a run, or an artefact."""

    size_px: int
    fit: Fit
    in_chans: int
    ask: Callable[[NDArray[np.uint8]], NDArray[np.floating]]
    """Images (N, S, S, C) to probabilities (N, classes)."""
    weights_sha256: tuple[str, ...]
    """Digests of the weights files behind it."""

    def square(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a decoded image as this network sees it, (S, S, C)."""
        return to_square(
            image, size_px=self.size_px, fit=self.fit, in_chans=self.in_chans
        )


class Predictor:
    """A trained classifier, ready for files.

    `Predictor.open` is the way to make one. The probabilities of a k-fold run are the
    means over its folds, those of an ensemble over its members.

    Attributes:
        name: Of the run folder.
        classes: Names, in the order of the probabilities.
    """

    def __init__(
        self, name: str, classes: tuple[str, ...], voices: Sequence[Voice]
    ) -> None:
        self.name = name
        self.classes = classes
        self._voices = tuple(voices)

    @property
    def voices(self) -> tuple[Voice, ...]:
        """The networks, or the artefact, that answer."""
        return self._voices

    @classmethod
    def open(cls, path: Path, *, device: str = "auto") -> Self:
        """Load a run folder or an artefact.

        Args:
            path: Of an ordinary run, finished or with weights, a k-fold run or an
                ensemble; or of an artefact that `export` has made.
            device: 'auto', 'cpu' or 'cuda'; artefacts run on the CPU.

        Raises:
            RunError: The folder is no run, has no weights, or they were changed.
            ArtefactError: The artefact was changed, or its runtime does not take it.
            ConfigError: A GPU is asked for and there is none.
            MissingExtraError: torch, or the artefact's runtime, is not installed.
        """
        if is_artefact(path):
            return cls(*_voice_of(open_artefact(path)))
        run = open_run(path)
        voices, classes = _voices_of(run, device=device)
        return cls(run.name, classes, voices)

    def predict_files(
        self,
        paths: Sequence[Path],
        *,
        batch_size: int = 32,
        limits: ImageLimits = DEFAULT_LIMITS,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Give the answer for each file, in order, as they come.

        Args:
            paths: Files, not folders: see `find_images`.
            batch_size: Images that go through the network together.
            limits: What is refused before it is decoded.
            progress: Called with files done and files in all.

        Yields:
            One `Prediction` per path. Unreadable files do not stop the others.
        """
        done = 0
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            remaining = iter(paths)
            while batch := list(islice(remaining, batch_size)):
                yield from self._predict_batch(batch, limits, pool)
                done += len(batch)
                if progress is not None:
                    progress(done, len(paths))

    def probs_of(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Return the probabilities (N, C) of decoded images, one batch.

        Args:
            images: At least one, as `images.read_image` gives them.
        """
        answers = [
            voice.ask(np.stack([voice.square(image) for image in images]))
            for voice in self._voices
        ]
        mean: NDArray[np.float32] = np.mean(answers, axis=0).astype(np.float32)
        return mean

    def _predict_batch(
        self, paths: list[Path], limits: ImageLimits, pool: ThreadPoolExecutor
    ) -> list[Prediction]:
        errors: dict[int, str] = {}
        answers: list[NDArray[np.floating]] = []  # (N, C) of each network
        for voice in self._voices:
            images, errors = _decode(paths, voice, limits, pool)
            if len(images):
                answers.append(voice.ask(images))
        mean = iter(np.mean(answers, axis=0).astype(np.float32) if answers else ())
        return [
            Prediction(path, None, None, errors[number])
            if number in errors
            else self._prediction(path, next(mean))
            for number, path in enumerate(paths)
        ]

    def _prediction(self, path: Path, probs: NDArray[np.float32]) -> Prediction:
        return Prediction(path, probs, self.classes[int(probs.argmax())], None)


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return files as they are, and folders as the images below them, sorted.

    In a folder, images are known by their suffix and hidden names are passed over. A
    file that is named itself is taken whatever it is called.

    Raises:
        DataError: A path does not exist, or a folder has no image below it.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in SUFFIXES
                and file.is_file()
                and not any(
                    part.startswith(".") for part in file.relative_to(path).parts
                )
            )
            if not below:
                raise DataError(
                    f"there is no image in the folder {path}",
                    hint=f"images end in {', '.join(sorted(SUFFIXES))}; name a file "
                    "itself if it ends otherwise",
                )
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise DataError(
                f"no such file or folder: {path}", hint="check the path's spelling"
            )
    return found


def save_predictions(
    out: Path, answers: Sequence[tuple[str, tuple[str, ...], Sequence[Prediction]]]
) -> None:
    """Write predictions of one or several runs as CSV, JSON or Parquet.

    Args:
        out: Its suffix says which: .csv, .json or .parquet.
        answers: Per run its name, its classes and its predictions.

    Raises:
        ConfigError: Another suffix.
        DataError: The file cannot be written.
        MissingExtraError: Parquet without the extra `parquet`.
    """
    check_output(out)
    classes = list(dict.fromkeys(name for _, names, _ in answers for name in names))
    columns = ["path", "run", "predicted", *map("prob_{}".format, classes), "error"]
    rows = [
        _as_row(run, names, prediction, columns)
        for run, names, predictions in answers
        for prediction in predictions
    ]
    match out.suffix.lower():
        case ".csv":
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(out, text.getvalue())
        case ".json":
            write_json(out, rows)
        case _:
            pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
            with replacing(out) as temporary:
                parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)


def check_output(out: Path) -> None:
    """Refuse an output file of a format that `save_predictions` does not write.

    Raises:
        ConfigError: The suffix is unknown.
    """
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ConfigError(
            f"expected --out ending in one of {', '.join(OUTPUT_SUFFIXES)}, "
            f"got {out.name!r}",
            hint=f"for example --out {out.stem or 'predictions'}.csv",
        )


def _voice_of(artefact: Artefact) -> tuple[str, tuple[str, ...], list[Voice]]:
    card = artefact.card
    session = require("tumorlens.runtimes").open_session(artefact)
    voice = Voice(
        card.size_px,
        card.fit,
        3,
        lambda images: session(images).probs,
        card.weights_sha256,
    )
    return f"{card.run} ({card.kind})", card.classes, [voice]


def _voices_of(run: Run, *, device: str) -> tuple[list[Voice], tuple[str, ...]]:
    models = require("tumorlens.models")
    target = models.resolve_device(device)
    cards, voices = [], []
    for part in _parts(run):
        card = part.card()
        module = models.load_model(card, part.weights_path).to(target)
        cards.append(card)
        voices.append(
            Voice(
                card.size_px,
                card.fit,
                card.in_chans,
                _asker(card, module, target),
                (card.weights_sha256,),
            )
        )
    if len({card.classes for card in cards}) > 1:
        raise RunError(
            f"the networks of {run.path} do not have the same classes",
            hint="train the run, or make the ensemble, again",
        )
    return voices, cards[0].classes


def _asker(
    card: ModelCard, module: Any, device: Any
) -> Callable[[NDArray[np.uint8]], NDArray[np.floating]]:
    models, torch = require("tumorlens.models"), require("torch")

    def ask(images: NDArray[np.uint8]) -> NDArray[np.floating]:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)  # (N, C, S, S)
        log_probs = models.infer(
            module,
            [batch],
            mean=card.mean,
            std=card.std,
            device=device,
            mirror=card.mirror,
            tta=card.tta,
            temperature=card.temperature,
        )
        probs: NDArray[np.float64] = np.exp(log_probs.astype(np.float64))
        return probs

    return ask


def _parts(run: Run) -> tuple[Run, ...]:
    num_folds = len(run.folds())
    if run.is_kfold and num_folds < run.config.data.num_folds:
        raise RunError(
            f"{run.path} has {num_folds} of {run.config.data.num_folds} folds",
            hint=f"finish it with: tumorlens train --resume --out {run.path}",
        )
    return run.networks()


def _decode(
    paths: list[Path], voice: Voice, limits: ImageLimits, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    def decode(path: Path) -> NDArray[np.uint8] | str:
        try:
            return load_square(
                path,
                size_px=voice.size_px,
                fit=voice.fit,
                in_chans=voice.in_chans,
                limits=limits,
            )
        except DataError as error:
            return error.problem

    decoded = list(pool.map(decode, paths))
    errors = {n: image for n, image in enumerate(decoded) if isinstance(image, str)}
    images = [image for image in decoded if not isinstance(image, str)]
    empty = np.empty((0, voice.size_px, voice.size_px, voice.in_chans), np.uint8)
    return np.stack(images) if images else empty, errors


def _as_row(
    run: str, classes: tuple[str, ...], prediction: Prediction, columns: list[str]
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {
        "path": str(prediction.path),
        "run": run,
        "predicted": prediction.predicted,
        "error": prediction.error,
    }
    if prediction.probs is not None:
        for name, prob in zip(classes, prediction.probs, strict=True):
            row[f"prob_{name}"] = float(prob)
    return row
