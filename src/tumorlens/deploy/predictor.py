"""Files become probabilities: `Predictor`, the entry point for using a model.

An image goes through `images.load_square` and then through `network.predict_probs`, as
the images of validation do, or through an artefact's graph, which contains the same. A
file that cannot be read gives a `Prediction` too, with its error. torch is only
imported for a run, or for an artefact of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.decoding import Decoded, InputSpec, decode_ahead
from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits, to_square
from tumorlens.deploy.artefact import Artefact, is_artefact, open_artefact
from tumorlens.deploy.runtimes import open_session
from tumorlens.errors import ConfigError, DataError, RunError, check_arguments
from tumorlens.extras import naming_missing_extras
from tumorlens.files import sha256_of, sha256_of_bytes
from tumorlens.runs.trust import Judged, TrustedAnswers, read_trust, trust_of_run
from tumorlens.stats.calibration import answered_probs
from tumorlens.stats.gate import facts_of
from tumorlens.system import num_processors
from tumorlens.text import NotebookView

if TYPE_CHECKING:
    from tumorlens.deploy.runtimes import Outputs
    from tumorlens.runs.folder import ModelCard, Run

Progress = Callable[[int, int | None], None]
Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]

BATCH_SIZE = 32

NO_NUMBER = "the model's answer is NaN or infinite"
"""The error of an image that a model has no probabilities for."""


@dataclass(frozen=True)
class Prediction:
    """Class probabilities of one file, or why it has none."""

    path: Path
    probs: NDArray[np.float32] | None
    """Probability of each class, shape (C,), sum 1; `None` for an unreadable file."""
    predicted: str | None
    """The most probable class."""
    error: str | None
    """Why there are no probabilities, in one line and without the path: the file could
    not be read, or `NO_NUMBER`."""
    trust: Judged | None = None
    """What is to be answered, its set and the gate; `None` if not calibrated."""

    @property
    def answer(self) -> str | None:
        """A class, "uncertain" or "not-a-brain-mri"; `None` if not calibrated."""
        return self.trust.answer if self.trust else None


class FilePredictions(list[Prediction], NotebookView):
    """Answers for several files, in their order.

    Attributes:
        classes: Names of the classes, in the order of the probabilities.
        skipped: Kinds of file that were passed over in folders -> their number.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        answers: Iterable[Prediction] = (),
        *,
        skipped: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(answers)
        self.classes = classes
        self.skipped = dict(skipped or {})


class Answer(NamedTuple):
    """What one model gives for N images."""

    probs: NDArray[np.floating]
    """Shape (N, classes)."""
    embedding: NDArray[np.floating] | None
    """Shape (N, E), for the gate; `None` where nothing needs it."""


@dataclass(frozen=True)
class Network:
    """The network behind a member, for what needs gradients."""

    card: ModelCard
    module: Any
    """A `torch.nn.Module` on `device`."""
    device: Any


@dataclass(frozen=True)
class Member:
    """One model whose probabilities are averaged: a network or an artefact."""

    spec: InputSpec
    predict: Callable[[NDArray[np.uint8]], NDArray[np.floating]]
    """Images (N, S, S, C) to probabilities (N, classes)."""
    weights_sha256: tuple[str, ...]
    """Digests of its weights files."""
    embed: Callable[[NDArray[np.uint8]], Answer] | None = None
    """The same with embeddings, where the gate needs them."""
    network: Network | None = None
    """`None` for an artefact, whose graph has no gradients."""

    def answer(self, images: NDArray[np.uint8]) -> Answer:
        """Return what the model gives for images (N, S, S, C)."""
        if self.embed is None:
            return Answer(self.predict(images), None)
        return self.embed(images)

    def square(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a decoded image as input of this model, shape (S, S, C)."""
        spec = self.spec
        return to_square(
            image, size_px=spec.size_px, fit=spec.fit, in_chans=spec.in_chans
        )


class Predictor:
    """A trained classifier, ready for files.

    `Predictor.open` is the way to make one. The probabilities of a k-fold run are the
    means over its folds, those of an ensemble over its members.

    Threads may share a predictor: calls of `probs_of` and `predict_files` that overlap
    give what they give one after the other. A generator of `predict_files` belongs to
    one thread. A forked process needs a predictor of its own, because the threads of a
    runtime do not live on in it.

    Example:
        ::

            from tumorlens import Predictor

            predictor = Predictor.open("runs/first/export/onnx")
            for one in predictor.predict_files(["a.png", "b.dcm"]):
                print(one.path, one.predicted or one.error, one.probs)

    Attributes:
        limits: Limits above which a file is refused: those of the run's settings.
        name: Name of the run folder.
        classes: Class names, in the order of the probabilities.
        digest: SHA-256 of everything that determines the probabilities; models with
            equal digests give equal ones.
        trust: When it answers and what it turns away; `None` if it is not calibrated.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        digest: str,
        members: Sequence[Member],
        limits: ImageLimits = DEFAULT_LIMITS,
        trust: TrustedAnswers | None = None,
    ) -> None:
        self.name = name
        self.classes = classes
        self.digest = digest
        self.limits = limits
        self.trust = trust
        self._members = tuple(members)

    @property
    def members(self) -> tuple[Member, ...]:
        """The networks, or the artefact, whose probabilities are averaged."""
        return self._members

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Load a run folder or an artefact.

        Args:
            path: Folder of a run (an ordinary one with weights, a k-fold run or an
                ensemble) or of an artefact; or the graph's file of an artefact.
            device: As for the setting `train.device`; artefacts run on the CPU.

        Raises:
            RunError: The folder is no run, has no weights, or they were changed.
            ArtefactError: The artefact was changed, or its runtime does not take it.
            ConfigError: The device is not there, or it is not the CPU's and this is
                an artefact.
            MissingExtraError: torch, or the artefact's runtime, is not installed.
        """
        check_arguments(cls.open, locals())
        path = Path(path)
        if is_artefact(path):
            if device not in ("auto", "cpu"):
                raise ConfigError(
                    f"the device is to be {device!r}, and {path} is an artefact, "
                    "which runs on the CPU",
                    hint="name the run, or leave the device out",
                )
            return cls.of_artefact(open_artefact(path))
        from tumorlens.runs.folder import open_run

        run = open_run(path)
        with naming_missing_extras():
            from tumorlens.training.dataset import image_limits

            limits = image_limits(run.config.data)
            trust = trust_of_run(run)
            with_gate = trust is not None and bool(trust.gates)
            members = _members_of(run, device=device, with_gate=with_gate)
            return cls(run.name, *members, limits, trust)

    @classmethod
    def of_artefact(cls, artefact: Artefact) -> Self:
        """Load an artefact that is checked already, or that `export` still proves."""
        card = artefact.card
        # Without a manifest, its export is still being proved.
        seal = artefact.path / "manifest.json"
        digest = sha256_of(seal) if seal.is_file() else ""
        session = open_session(artefact)
        member = Member(
            InputSpec(card.size_px, card.fit, 3),
            lambda images: session(images).probs,
            card.weights_sha256,
            lambda images: _of_graph(session(images)),
        )
        name = f"{card.run} ({card.kind})"
        trust = read_trust(artefact.path, card.weights_sha256)
        return cls(name, card.classes, digest, [member], card.limits, trust)

    def predict_files(
        self,
        paths: Iterable[str | Path],
        *,
        batch_size: int = BATCH_SIZE,
        limits: ImageLimits | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Yield a prediction for each file, in order.

        Files are decoded in threads while the network works on earlier ones, two
        batches ahead at most: memory does not grow with their number.

        Args:
            paths: Files, not folders: see `data.files.walk_images`. A generator is
                consumed no faster than the network works.
            batch_size: Number of images that go through the network together.
            limits: Limits above which a file is refused; `None` for its own.
            progress: Called with the number of files done, and of all files if `paths`
                has a length.

        Yields:
            One `Prediction` per path. Unreadable files do not stop the others.

        Raises:
            DataError: `paths` is one path.
        """
        if isinstance(paths, str | PathLike):
            raise DataError(
                f"expected a list of files, got the path {paths}",
                hint="put it into brackets: predict_files([path])",
            )
        total = len(paths) if isinstance(paths, Sized) else None
        done = 0
        decoded = decode_ahead(
            map(Path, paths),
            [member.spec for member in self._members],
            num_ahead=2 * batch_size,
            num_threads=num_processors(),
            limits=limits or self.limits,
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
            images: At least one image of `images.read_image`: uint8, (H, W) grey or
                (H, W, 3) colour, of any sizes.

        Raises:
            DataError: An image has another shape or type, or there is none.
            RunError: A probability is NaN or infinite.
        """
        return self.judge(images)[0]

    def _predict_batch(self, batch: Sequence[Decoded]) -> list[Prediction]:
        readable = [one for one in batch if one.error is None]
        found = iter(self._answers(readable) if readable else ())
        return [
            Prediction(one.path, None, None, one.error)
            if one.error is not None
            else next(found)
            for one in batch
        ]

    def _answers(self, decoded: Sequence[Decoded]) -> list[Prediction]:
        """Return the answers for files that could be read, at least one."""
        probs, judged = self._judge(
            [
                np.stack([one.squares[member.spec] for one in decoded])
                for member in self._members
            ]
        )
        return [
            Prediction(one.path, row, self.classes[int(row.argmax())], None, trust)
            if np.isfinite(row).all()
            else Prediction(one.path, None, None, NO_NUMBER)
            for one, row, trust in zip(decoded, probs, judged, strict=True)
        ]

    def judge(
        self, images: Images
    ) -> tuple[NDArray[np.float32], tuple[Judged | None, ...]]:
        """Return the probabilities (N, C) of decoded images, and what trust says.

        Args:
            images: As for `probs_of`.

        Raises:
            DataError: An image has another shape or type, or there is none.
            RunError: A probability is NaN or infinite.
        """
        _check_images(images)
        probs, judged = self._judge(
            [
                np.stack([member.square(image) for image in images])
                for member in self._members
            ]
        )
        if not np.isfinite(probs).all():
            raise RunError(f"{self.name}: {NO_NUMBER}", hint="export or train it again")
        return probs, judged

    def _judge(
        self, inputs: Sequence[NDArray[np.uint8]]
    ) -> tuple[NDArray[np.float32], tuple[Judged | None, ...]]:
        """Return the same for the inputs of the members; nothing for what is NaN."""
        answers = [
            member.answer(images)
            for member, images in zip(self._members, inputs, strict=True)
        ]
        probs = np.mean([one.probs for one in answers], axis=0).astype(np.float32)
        is_number = np.isfinite(probs).all(axis=1)
        judged: list[Judged | None] = [None] * len(probs)
        if self.trust is not None and is_number.any():
            embeddings = [one.embedding for one in answers if one.embedding is not None]
            has_gate = bool(self.trust.gates and embeddings)
            found = self.trust.judge(
                probs[is_number],
                np.concatenate(embeddings, axis=1)[is_number] if has_gate else None,
                facts_of(inputs[0][is_number]) if has_gate else None,
            )
            for row, one in zip(np.flatnonzero(is_number), found, strict=True):
                judged[row] = one
        return probs, tuple(judged)


def _of_graph(outputs: Outputs) -> Answer:
    return Answer(outputs.probs, outputs.embedding)


def _check_images(images: Images) -> None:
    """Refuse arrays that would give wrong probabilities: fractions, a bare image.

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
                hint="give files to predict_files, which reads them as training does",
            )


def _members_of(
    run: Run, *, device: str, with_gate: bool
) -> tuple[tuple[str, ...], str, list[Member]]:
    """Return the classes, the digest and the members of a run.

    Args:
        run: The run.
        device: As for `Predictor.open`.
        with_gate: Whether its members give embeddings too; they take images in colour.

    Raises:
        RunError: A fold is missing, or the networks have different classes.
    """
    from tumorlens.training import devices, network

    target = devices.resolve_device(device)
    cards, members = [], []
    for part in _parts(run):
        card = part.card()
        module = network.load_model(card, part.weights_path).to(target)
        cards.append(card)
        members.append(
            Member(
                InputSpec(card.size_px, card.fit, 3 if with_gate else card.in_chans),
                partial(_probs_of, card, module, target),
                (card.weights_sha256,),
                partial(_answer_of, card, module, target) if with_gate else None,
                Network(card, module, target),
            )
        )
    if len({card.classes for card in cards}) > 1:
        raise RunError(
            f"the networks of {run.path} do not have the same classes",
            hint="train the run, or make the ensemble, again",
        )
    # The cards have the digests of the weights.
    digest = sha256_of_bytes(
        "".join(card.model_dump_json(exclude_none=True) for card in cards).encode()
    )
    return cards[0].classes, digest, members


def _probs_of(
    card: ModelCard, module: Any, device: Any, images: NDArray[np.uint8]
) -> NDArray[np.floating]:
    from tumorlens.training import network

    batches = [network.as_input(card, images)]
    return network.predict_probs(module, batches, card, device)


def _answer_of(
    card: ModelCard, module: Any, device: Any, images: NDArray[np.uint8]
) -> Answer:
    from tumorlens.training import network

    found = network.answer(module, [network.as_input(card, images)], card, device)
    return Answer(answered_probs(found.logits, card.temperature), found.embedding)


def _parts(run: Run) -> tuple[Run, ...]:
    num_folds = len(run.folds())
    if run.is_kfold and num_folds < run.config.data.num_folds:
        raise RunError(
            f"{run.path} has {num_folds} of {run.config.data.num_folds} folds",
            hint=f"finish it with: tumorlens train --resume --out {run.path}",
        )
    return run.networks()
