"""Files become probabilities: `Predictor`, the way in for everyone who uses a model.

An image goes through `images.load_square` and then through `models.infer`, exactly as
validation's images did, or through an artefact's graph, which has the same inside. A
file that cannot be read is an answer too: a `Prediction` with its error. What the
newcomer would get wrong: torch is only imported for a run, or an artefact of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.decoding import Decoded, InputSpec, decode_ahead
from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits, to_square
from tumorlens.deploy.artefact import Artefact, is_artefact, open_artefact
from tumorlens.deploy.runtimes import num_processors, open_session
from tumorlens.errors import DataError, RunError
from tumorlens.extras import naming_missing_extras
from tumorlens.files import sha256_of, sha256_of_bytes
from tumorlens.text import NotebookView

if TYPE_CHECKING:
    from tumorlens.runs.folder import ModelCard, Run

Progress = Callable[[int, int | None], None]
Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """The answer for one file."""

    path: Path
    probs: NDArray[np.float32] | None
    """Probability of each class, shape (C,), sum 1; `None` for an unreadable file."""
    predicted: str | None
    """The most probable class."""
    error: str | None
    """Why the file could not be read, in one line and without the path."""


class Predictions(list[Prediction], NotebookView):
    """Answers for several files, in their order.

    Attributes:
        classes: Names of the classes, in the order of the probabilities.
    """

    def __init__(
        self, classes: tuple[str, ...], answers: Iterable[Prediction] = ()
    ) -> None:
        super().__init__(answers)
        self.classes = classes


@dataclass(frozen=True)
class Voice:
    """Something that answers: a network of a run, or an artefact."""

    look: InputSpec
    ask: Callable[[NDArray[np.uint8]], NDArray[np.floating]]
    """Images (N, S, S, C) to probabilities (N, classes)."""
    weights_sha256: tuple[str, ...]
    """Digests of the weights files behind it."""

    def square(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a decoded image as this network sees it, (S, S, C)."""
        look = self.look
        return to_square(
            image, size_px=look.size_px, fit=look.fit, in_chans=look.in_chans
        )


class Predictor:
    """A trained classifier, ready for files.

    `Predictor.open` is the way to make one. The probabilities of a k-fold run are the
    means over its folds, those of an ensemble over its members.

    Example:
        ::

            from tumorlens import Predictor

            predictor = Predictor.open("runs/first/export/onnx")
            for answer in predictor.predict_files(["a.png", "b.dcm"]):
                print(answer.path, answer.predicted or answer.error, answer.probs)

    Attributes:
        name: Of the run folder.
        classes: Names, in the order of the probabilities.
        digest: SHA-256 of all that decides an answer; equal digests answer the same.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        digest: str,
        voices: Sequence[Voice],
    ) -> None:
        self.name = name
        self.classes = classes
        self.digest = digest
        self._voices = tuple(voices)

    @property
    def voices(self) -> tuple[Voice, ...]:
        """The networks, or the artefact, that answer."""
        return self._voices

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Load a run folder or an artefact.

        Args:
            path: Of an ordinary run, finished or with weights, a k-fold run or an
                ensemble; or of an artefact that `export` has made, or its graph's
                file.
            device: 'auto', 'cpu' or 'cuda'; artefacts run on the CPU.

        Raises:
            RunError: The folder is no run, has no weights, or they were changed.
            ArtefactError: The artefact was changed, or its runtime does not take it.
            ConfigError: A GPU is asked for and there is none.
            MissingExtraError: torch, or the artefact's runtime, is not installed.
        """
        path = Path(path)
        if is_artefact(path):
            return cls.of_artefact(open_artefact(path))
        from tumorlens.runs.folder import open_run

        run = open_run(path)
        with naming_missing_extras():
            return cls(run.name, *_voices_of(run, device=device))

    @classmethod
    def of_artefact(cls, artefact: Artefact) -> Self:
        """Load an artefact that is checked already; `export` has one to prove."""
        return cls(*_voice_of(artefact))

    def predict_files(
        self,
        paths: Iterable[str | Path],
        *,
        batch_size: int = BATCH_SIZE,
        limits: ImageLimits = DEFAULT_LIMITS,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Give the answer for each file, in order, as they come.

        Files are decoded in threads while the network works on those before, two
        batches ahead at most: memory does not grow with their number.

        Args:
            paths: Files, not folders: see `image_files.walk_images`. They may come from
                a generator, which is asked as there is room.
            batch_size: Images that go through the network together.
            limits: What is refused before it is decoded.
            progress: Called with files done and files in all, if `paths` has a length.

        Yields:
            One `Prediction` per path. Unreadable files do not stop the others.

        Raises:
            DataError: `paths` is one path.
        """
        if isinstance(paths, str | Path):
            raise DataError(
                f"expected a list of files, got the path {paths}",
                hint="put it into brackets: predict_files([path])",
            )
        total = len(paths) if isinstance(paths, Sized) else None
        done = 0
        decoded = decode_ahead(
            map(Path, paths),
            [voice.look for voice in self._voices],
            num_ahead=2 * batch_size,
            num_threads=num_processors(),
            limits=limits,
        )
        with closing(decoded):
            while batch := list(islice(decoded, batch_size)):
                yield from self._predict_batch(batch)
                done += len(batch)
                if progress is not None:
                    progress(done, total)

    def probs_of(self, images: Images) -> NDArray[np.float32]:
        """Return the probabilities (N, C) of decoded images, one batch.

        Args:
            images: At least one, as `images.read_image` gives them: uint8, (H, W) grey
                or (H, W, 3) in colour, of any sizes.

        Raises:
            DataError: An image has another shape or type, or there is none.
        """
        _check_images(images)
        answers = [
            voice.ask(np.stack([voice.square(image) for image in images]))
            for voice in self._voices
        ]
        mean: NDArray[np.float32] = np.mean(answers, axis=0).astype(np.float32)
        return mean

    def _predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        readable = [one for one in batch if one.error is None]
        answers = [  # (N, C) of each network
            voice.ask(np.stack([one.squares[voice.look] for one in readable]))
            for voice in self._voices
            if readable
        ]
        mean = iter(np.mean(answers, axis=0).astype(np.float32) if answers else ())
        return [
            Prediction(one.path, None, None, one.error)
            if one.error is not None
            else self._prediction(one.path, next(mean))
            for one in batch
        ]

    def _prediction(self, path: Path, probs: NDArray[np.float32]) -> Prediction:
        return Prediction(path, probs, self.classes[int(probs.argmax())], None)


def _check_images(images: Images) -> None:
    """Refuse what would be answered, but wrongly: fractions, one image for many.

    Raises:
        DataError: An image has another shape or type, or there is none.
    """
    shape: Any = getattr(images, "shape", None)
    if shape is not None and (len(shape) < 3 or (len(shape) == 3 and shape[-1] == 3)):
        raise DataError(
            f"expected a list of images, got one array of shape {shape}",
            hint="put a single image into brackets: probs_of([image])",
        )
    if not len(images):
        raise DataError("expected at least one image, got none", hint="give one")
    for number, image in enumerate(images):
        kind: Any = getattr(image, "dtype", None)
        of: Any = getattr(image, "shape", ())
        is_image = len(of) == 2 or (len(of) == 3 and of[2] == 3)
        if kind != np.uint8 or not is_image or not all(of):
            got = f"{kind} of shape {of}" if kind else f"a {type(image).__name__}"
            raise DataError(
                f"expected uint8 of shape (H, W) or (H, W, 3) as image {number}, got "
                f"{got}",
                hint="read files with tumorlens.data.images.read_image, or by "
                "predict_files",
            )


def _voice_of(artefact: Artefact) -> tuple[str, tuple[str, ...], str, list[Voice]]:
    card = artefact.card
    session = open_session(artefact)
    look = InputSpec(card.size_px, card.fit, 3)
    # The manifest has the digests of the graph and of its card; while an export is
    # being proven there is none yet.
    seal = artefact.path / "manifest.json"
    digest = sha256_of(seal) if seal.is_file() else ""
    voice = Voice(look, lambda images: session(images).probs, card.weights_sha256)
    return f"{card.run} ({card.kind})", card.classes, digest, [voice]


def _voices_of(run: Run, *, device: str) -> tuple[tuple[str, ...], str, list[Voice]]:
    from tumorlens.training import network as models

    target = models.resolve_device(device)
    cards, voices = [], []
    for part in _parts(run):
        card = part.card()
        module = models.load_model(card, part.weights_path).to(target)
        cards.append(card)
        look = InputSpec(card.size_px, card.fit, card.in_chans)
        voices.append(Voice(look, _asker(card, module, target), (card.weights_sha256,)))
    if len({card.classes for card in cards}) > 1:
        raise RunError(
            f"the networks of {run.path} do not have the same classes",
            hint="train the run, or make the ensemble, again",
        )
    # The cards have the digests of the weights.
    digest = sha256_of_bytes("".join(card.model_dump_json() for card in cards).encode())
    return cards[0].classes, digest, voices


def _asker(
    card: ModelCard, module: Any, device: Any
) -> Callable[[NDArray[np.uint8]], NDArray[np.floating]]:
    from tumorlens.training import network as models

    def ask(images: NDArray[np.uint8]) -> NDArray[np.floating]:
        log_probs = models.infer(
            module,
            [models.as_batch(images)],
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
