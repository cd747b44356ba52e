"""A run becomes artefacts, each with proof that it answers as the run does.

The proof goes the whole way that a file goes in use: val images from disk, through
`Predictor`, to a label, once with the run and once with the artefact. An artefact is
made in a hidden folder. Only after a good verdict it is sealed with its manifest and
gets its name, so one that can be opened has passed, and a process that is killed leaves
the old one or none.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

import tumorlens
from tumorlens.data.images import load_square
from tumorlens.deploy import artefact
from tumorlens.deploy.artefact import (
    KINDS,
    Artefact,
    ArtefactCard,
    Bounds,
    Kind,
    Parity,
    PlainParity,
    Verdict,
    precision_of,
)
from tumorlens.deploy.artefact_readme import readme_of
from tumorlens.deploy.graph import ServingGraph
from tumorlens.deploy.graph_files import (
    MIN_HELD_OUT,
    NUM_CALIBRATION,
    NUM_HELD_OUT,
    Source,
    libraries_of,
    shares_of,
    write_graph,
)
from tumorlens.deploy.parity import MAX_DROP, bounds_of, judge_parity
from tumorlens.deploy.predictor import NO_NUMBER, Predictor
from tumorlens.deploy.runtimes import has_bf16, open_session
from tumorlens.errors import (
    ConfigError,
    DataError,
    RunError,
    TumorlensError,
    did_you_mean,
)
from tumorlens.evaluation.inference import read_data
from tumorlens.files import locked, read_model, write_bytes, write_model
from tumorlens.runs.trust import trust_of_run, write_trust
from tumorlens.text import NotebookView
from tumorlens.training.dataset import check_unchanged, image_limits
from tumorlens.training.network import load_model
from tumorlens.training.views import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from tumorlens.data.index import Index, SplitRow
    from tumorlens.deploy.predictor import Progress
    from tumorlens.runs.folder import ModelCard, Run
    from tumorlens.runs.progress import Stage


_UNPROVEN = ".unproven-"


@dataclass(frozen=True)
class Exported:
    """Result for one format."""

    kind: Kind
    artefact: Artefact | None
    """`None` where the verdict was bad."""
    verdict: Verdict
    """A `Parity`, unless the format could not be made at all."""
    is_earlier_gone: bool = False
    """Whether a bad verdict has removed an earlier artefact of this format."""


class Exports(list[Exported], NotebookView):
    """Results of one export, one for each format."""


class Verdicts(BaseModel):
    """Content of `export/parity.json`: the last verdict on each format, by its name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Parity | Verdict]

    format: Literal[1] = 1


@dataclass(frozen=True)
class _Proof:
    """Reference that every artefact of a run is compared with."""

    index: Index
    val: list[SplitRow]
    classes: tuple[str, ...]
    reference: NDArray[np.float32]
    """Probabilities of the run for val, shape (N, C)."""
    stage: Stage
    command: str

    def failed(self, card: ArtefactCard, reason: str) -> Verdict:
        """Return the verdict on a format that could not be made."""
        return Verdict(
            kind=card.kind,
            command=self.command,
            weights_sha256=card.weights_sha256,
            passed=False,
            reasons=(reason,),
        )

    def judge(self, artefact: Artefact, bounds: Bounds) -> Parity:
        """Return the verdict on an artefact."""
        with self.stage(f"{artefact.card.kind}: predicting") as progress:
            probs = _probs_of(
                Predictor.of_artefact(artefact), self.index, self.val, progress
            )
        labels = [self.classes.index(row.label) for row in self.val]
        groups = [row.group for row in self.val]
        return judge_parity(
            [row.path for row in self.val],
            np.array(labels, dtype=np.int64),
            np.unique(groups, return_inverse=True)[1],
            self.reference,
            probs,
            classes=self.classes,
            bounds=bounds,
            subject=self.failed(artefact.card, ""),
        )


@contextmanager
def _silent(_words: str, /) -> Iterator[Progress | None]:
    yield None


def kinds_here() -> list[Kind]:
    """Return every format that this machine can prove: bf16 only where it has bf16.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    able = has_bf16()
    return [kind for kind in KINDS if able or precision_of(kind) != "bf16"]


def export(
    run: Run,
    kinds: Sequence[Kind],
    *,
    data: Path | Sequence[Path] | None = None,
    max_drop: float = MAX_DROP,
    max_difference: float | None = None,
    with_seen: bool = True,
    command: str = "",
    stage: Stage = _silent,
) -> list[Exported]:
    """Write artefacts of a run into RUN/export, each with its verdict.

    A format that cannot be made, whatever the reason, or whose verdict is bad, does
    not stop the others; an earlier artefact of that format is removed.

    Args:
        run: Finished; an ordinary one, a fold or an ensemble.
        kinds: Formats.
        data: Folder of the images, or of each set; `None` takes `data.path` of the run.
        max_drop: Largest loss of accuracy on val, a fraction.
        max_difference: Largest difference of a probability; `None` is the rounding of
            the format, or no limit for int8.
        with_seen: Whether the artefact gets the run's `seen.npz`, if there is one.
        command: Command line, for `parity.json`.
        stage: Shows the progress.

    Returns:
        One for each format, in the order of `KINDS`.

    Raises:
        ConfigError: A format is unknown, there is none, or `max_drop` is no fraction.
        RunError: The run is not finished, has folds, no split or no val images, or its
            networks do not fit into one graph; or its data has changed; or another
            process exports it.
        DataError: An image cannot be read, or RUN/export cannot be written.
        MissingExtraError: The extra `export` is not installed.
    """
    _check_run(run)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(
            f"unknown format {unknown[0]!r}", hint=did_you_mean(unknown[0], KINDS)
        )
    if not kinds or not 0 <= max_drop <= 1:
        raise ConfigError(
            f"expected formats and a max_drop from 0 to 1, got {list(kinds)} and "
            f"{max_drop}",
            hint="name a format such as onnx; max_drop is a fraction",
        )
    rows = run.split()
    libraries = {kind: libraries_of(kind) for kind in KINDS if kind in kinds}
    cards = [one.card() for one in run.networks()]
    graph = _graph(run, cards)
    with stage("reading") as _:
        index = read_data(run, data)
    check_unchanged(rows, index)
    folder = run.path / "export"
    found = []
    with locked(folder), _scratch(folder) as scratch:
        proof = _proof(run, index, rows, cards[0].classes, stage, command)
        train = [row for row in rows if row.subset == "train"]
        source = Source(
            graph,
            cards[0].size_px,
            _training_images(run, index, train, cards[0]),
            len(train),
            scratch,
        )
        for kind, versions in libraries.items():
            card = _card(run, kind, cards, graph, versions)
            bounds = bounds_of(
                card.precision, max_drop=max_drop, max_difference=max_difference
            )
            made = scratch / kind
            verdict = _make(Artefact(made, card), source, proof, bounds)
            if with_seen and run.seen_path.is_file():
                write_bytes(made / artefact.SEEN, run.seen_path.read_bytes())
            if trust := trust_of_run(run):
                write_trust(made, trust.trust, trust.gates)
            one = _settle(made, folder / kind, verdict, card)
            found.append(one)
            _note_verdict(folder / "parity.json", one.verdict)
    return found


def _check_run(run: Run) -> None:
    """Refuse a run with folds, and one that is not finished.

    Raises:
        RunError: It has folds, or is not finished.
    """
    if run.is_kfold:
        raise RunError(
            f"{run.path} is a run of {run.config.data.num_folds} folds, each with a "
            "network and val images of its own",
            hint="export one fold: "
            + shlex.join(["tumorlens", "export", str(run.fold_path(0))]),
        )
    if not run.is_finished:
        raise RunError(
            f"the training of {run.path} is not finished",
            hint="finish it with: "
            + shlex.join(["tumorlens", "train", "--resume", "--out", str(run.path)]),
        )


def _proof(
    run: Run,
    index: Index,
    rows: Sequence[SplitRow],
    classes: tuple[str, ...],
    stage: Stage,
    command: str,
) -> _Proof:
    """Let the run predict its val images.

    Raises:
        RunError: It has none, the data has other classes, or one cannot be read.
    """
    val = [row for row in rows if row.subset == "val"]
    if not val:
        raise RunError(
            f"{run.path} has no image in subset 'val' to prove an export on",
            hint=f"{run.split_path} has the subset of every image",
        )
    unknown = sorted({row.label for row in val} - set(classes))
    if unknown:
        raise RunError(
            f"the network of {run.path} knows {', '.join(classes)}, and val has "
            f"{unknown[0]}",
            hint="give the data that the run was made with",
        )
    with stage("the run itself: predicting") as progress:
        reference = _probs_of(Predictor.open(run.path), index, val, progress)
    return _Proof(index, val, classes, reference, stage, command)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder for artefacts that are not proven yet; afterwards remove it.

    The lock on the folder around it shows that others in there are of killed processes.

    Raises:
        DataError: The disk is full, or the folder cannot be written.
    """
    try:
        for left in folder.glob(f"{_UNPROVEN}*"):
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=_UNPROVEN, dir=folder))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="free some space, or make the folder writable",
        ) from error


def _make(artefact: Artefact, source: Source, proof: _Proof, bounds: Bounds) -> Verdict:
    """Write the files of an artefact without its seal, and return the verdict.

    An error becomes a verdict too: other formats may do without it.
    """
    kind = artefact.card.kind
    artefact.path.mkdir()
    try:
        with proof.stage(f"{kind}: making"):
            write_graph(kind, source, artefact.path)
            precision = open_session(artefact).precision
        return _judge(artefact, precision, source, proof, bounds)
    except TumorlensError as error:
        return proof.failed(artefact.card, error.problem)


def _judge(
    artefact: Artefact, precision: str, source: Source, proof: _Proof, bounds: Bounds
) -> Verdict:
    """Return the verdict; int8 that loses too much is made once more before."""
    card = artefact.card
    if precision != card.precision:
        return proof.failed(
            card,
            f"the runtime computes it in {precision}, not in {card.precision}: this "
            "processor, or this network, does not allow it",
        )
    verdict = proof.judge(artefact, bounds)
    drop = -verdict.accuracy.change.value
    if card.kind == "openvino-int8" and drop > bounds.max_drop:
        # Try again with more layers in floating point. Val sets the target only: half
        # of the allowed distance, because flips do not grow in proportion to it.
        nearness = bounds.max_drop / drop / 2
        return _with_care(artefact, verdict, nearness, source, proof, bounds)
    return verdict


def _with_care(
    artefact: Artefact,
    plain: Parity,
    nearness: float,
    source: Source,
    proof: _Proof,
    bounds: Bounds,
) -> Parity:
    """Make int8 anew, nearer to the run, and return the verdict on that.

    Where it cannot be made, the verdict stays the bad one on the plain version.
    """
    kind = artefact.card.kind
    if shares_of(source.num_training) is None:
        least = -(-MIN_HELD_OUT * (NUM_CALIBRATION + NUM_HELD_OUT) // NUM_HELD_OUT)
        return _with_reason(
            plain,
            "it was not made again with more care, which takes at least "
            f"{least} training images, and the run has {source.num_training}",
        )
    try:
        with proof.stage(f"{kind}: making it with more care"):
            write_graph(kind, source, artefact.path, nearness=nearness)
        verdict = proof.judge(artefact, bounds)
    except TumorlensError as error:
        why = f"it could not be made with more care: {error.problem}"
        return _with_reason(plain, why)
    kept = PlainParity(reasons=plain.reasons, accuracy=plain.accuracy)
    return verdict.model_copy(update={"plain": kept})


def _with_reason(parity: Parity, reason: str) -> Parity:
    return parity.model_copy(update={"reasons": (*parity.reasons, reason)})


def _settle(made: Path, folder: Path, verdict: Verdict, card: ArtefactCard) -> Exported:
    """Seal an artefact and give it its name, or drop it if its verdict is bad."""
    if isinstance(verdict, Parity) and verdict.passed:
        try:
            has_seen = (made / artefact.SEEN).is_file()
            readme = readme_of(card, verdict, has_seen=has_seen)
            artefact.seal_artefact(made, card, verdict, readme)
        except DataError as error:
            failed = {"passed": False, "reasons": (error.problem,)}
            verdict = verdict.model_copy(update=failed)
    if not verdict.passed:
        is_earlier_gone = artefact.is_artefact(folder)
        artefact.remove_artefact(folder)
        return Exported(card.kind, None, verdict, is_earlier_gone)
    artefact.replace_artefact(folder, by=made)
    return Exported(card.kind, artefact.open_artefact(folder), verdict)


def _note_verdict(path: Path, verdict: Verdict) -> None:
    """Put a verdict beside those of the same weights; others are dropped."""
    known: dict[str, Parity | Verdict] = {}
    with suppress(RunError):  # a missing or damaged one is written anew
        known = read_model(path, Verdicts, hint="").model_extra or {}
    same = {
        kind: other
        for kind, other in known.items()
        if other.weights_sha256 == verdict.weights_sha256
    }
    write_model(path, Verdicts(**same | {verdict.kind: verdict}))


def _graph(run: Run, cards: list[ModelCard]) -> ServingGraph:
    modules = [
        load_model(card, one.weights_path)
        for card, one in zip(cards, run.networks(), strict=True)
    ]
    return ServingGraph(list(zip(cards, modules, strict=True))).eval()


def _card(
    run: Run,
    kind: Kind,
    cards: list[ModelCard],
    graph: ServingGraph,
    versions: dict[str, str],
) -> ArtefactCard:
    first = cards[0]
    limits = image_limits(run.config.data)
    with torch.no_grad():
        empty = torch.zeros(1, first.size_px, first.size_px, 3, dtype=torch.uint8)
        embedding = graph(empty)[2]
    return ArtefactCard(
        tumorlens=tumorlens.__version__,
        kind=kind,
        precision=precision_of(kind),
        run=run.name,
        networks=tuple(card.name for card in cards),
        weights_sha256=tuple(card.weights_sha256 for card in cards),
        classes=first.classes,
        size_px=first.size_px,
        fit=first.fit,
        views=policy_of(mirror=first.mirror, tta=first.tta),
        temperature=tuple(card.temperature for card in cards),
        embedding_size=embedding.shape[1],
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
        made_with=versions,
    )


def _training_images(
    run: Run, index: Index, train: Sequence[SplitRow], card: ModelCard
) -> Callable[[int, int], NDArray[np.uint8]]:
    """Return a function that gives training images as the graph takes them.

    Their order is random but deals the classes in turn, so that any part has them all.
    """
    order = np.random.default_rng(run.config.train.seed).permutation(len(train))
    ranks: dict[str, int] = {}
    ranked = []
    for row in (train[number] for number in order):
        ranks[row.label] = ranks.get(row.label, 0) + 1
        ranked.append((ranks[row.label], row.path))
    paths = [index.file_at(path) for _, path in sorted(ranked)]

    @cache
    def images(start: int, stop: int) -> NDArray[np.uint8]:
        chosen = paths[start:stop]
        if not chosen:
            raise RunError(
                f"int8 takes its ranges from training images, and {run.path} has none",
                hint=f"{run.split_path} has the subset of every image",
            )
        return np.stack(
            [
                load_square(
                    path,
                    size_px=card.size_px,
                    fit=card.fit,
                    in_chans=3,
                    limits=image_limits(run.config.data),
                )
                for path in chosen
            ]
        )

    return images


def _probs_of(
    predictor: Predictor,
    index: Index,
    rows: Sequence[SplitRow],
    progress: Progress | None,
) -> NDArray[np.float32]:
    """Return a predictor's probabilities for files, shape (N, C).

    Raises:
        RunError: A file cannot be read any more.
    """
    paths = [index.file_at(row.path) for row in rows]
    probs = []
    for one in predictor.predict_files(paths, progress=progress):
        if one.error == NO_NUMBER:  # for the verdict
            probs.append(np.full(len(predictor.classes), np.nan, np.float32))
            continue
        if one.probs is None:
            raise RunError(
                f"a val image cannot be read any more: {one.path}: {one.error}",
                hint="restore the data",
            )
        probs.append(one.probs)
    return np.stack(probs)
