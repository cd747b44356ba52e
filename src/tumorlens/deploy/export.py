"""A run becomes artefacts, each with proof that it answers as the run does.

The proof goes the whole way that a file goes in use: val images from disk, through
`Predictor`, to a label, once with the run and once with the artefact. What the newcomer
would get wrong: an artefact is made in a hidden folder. Only after a good verdict it is
sealed with its manifest and gets its name, so one that can be opened has passed, and a
process that is killed leaves the old one or none.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import tumorlens
from tumorlens.data.images import load_square
from tumorlens.deploy import artefact
from tumorlens.deploy.artefact import KINDS, Artefact, ArtefactCard, Kind, precision_of
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
from tumorlens.deploy.parity import MAX_DROP, Bounds, bounds_of, judge_parity
from tumorlens.deploy.predictor import Predictor
from tumorlens.deploy.runtimes import has_bf16, open_session
from tumorlens.errors import DataError, RunError, TumorlensError
from tumorlens.evaluation.inference import read_data
from tumorlens.files import write_json
from tumorlens.training.dataset import check_unchanged, image_limits
from tumorlens.training.network import load_model
from tumorlens.training.views import policy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.index import Index, SplitRow
    from tumorlens.runs.folder import ModelCard, Run

Progress = Callable[[int, int | None], None]
Stage = Callable[[str], AbstractContextManager[Progress | None]]
"""Shows that something begins, in words, and how many files of it are done."""


@dataclass(frozen=True)
class Exported:
    """What came of one format."""

    kind: Kind
    artefact: Artefact | None
    """`None` where the verdict was against it."""
    verdict: dict[str, Any]
    """As in `parity.json`; where the format could not be made at all, only `kind`,
    `command`, `weights_sha256`, `passed` and `reasons`."""
    is_earlier_gone: bool = False
    """Whether there was an artefact of this format, which a bad verdict has removed."""


@dataclass(frozen=True)
class _Proof:
    """What every artefact of a run is held against."""

    index: Index
    val: list[SplitRow]
    classes: tuple[str, ...]
    reference: NDArray[np.float32]
    """What the run answers for val, (N, C)."""
    stage: Stage

    def judge(self, artefact: Artefact, bounds: Bounds) -> dict[str, Any]:
        """Return the verdict on an artefact."""
        words = f"{artefact.card.kind}: asking"
        with self.stage(words) as progress:
            answers = _probs_of(
                Predictor.of_artefact(artefact), self.index, self.val, progress
            )
        labels = [self.classes.index(row.label) for row in self.val]
        groups = [row.group for row in self.val]
        return judge_parity(
            [row.path for row in self.val],
            np.array(labels, dtype=np.int64),
            np.unique(groups, return_inverse=True)[1],
            self.reference,
            answers,
            classes=self.classes,
            bounds=bounds,
        )


@contextmanager
def _silent(_words: str, /) -> Iterator[Progress | None]:
    yield None


def kinds_here() -> list[Kind]:
    """Return every format that this machine can prove: bf16 only where it computes so.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    able = has_bf16()
    return [kind for kind in KINDS if able or precision_of(kind) != "bf16"]


def export(
    run: Run,
    kinds: Sequence[Kind],
    *,
    data: Path | None = None,
    max_drop: float = MAX_DROP,
    max_difference: float | None = None,
    command: str = "",
    stage: Stage = _silent,
) -> list[Exported]:
    """Write artefacts of a run into RUN/export, each with its verdict.

    A format that cannot be made, whatever the reason, or whose verdict is bad, does
    not stop the others. What was there of that format before is gone.

    Args:
        run: Finished; an ordinary one, a fold or an ensemble.
        kinds: Formats.
        data: Where the images are now; `None` looks where `data.path` says.
        max_drop: Accuracy that an artefact may lose on val, a fraction.
        max_difference: Of a probability; `None` is the format's own rounding. Not for
            int8, unless it is given.
        command: What the user typed, for `parity.json`.
        stage: Shows what is being done.

    Returns:
        One for each format, in the order of `KINDS`.

    Raises:
        RunError: The run is not finished, has folds, no split or no val images, or its
            networks do not fit into one graph; or its data has changed.
        DataError: An image cannot be read, or RUN/export cannot be written.
        MissingExtraError: The extra `export` is not installed.
    """
    _check_run(run)
    rows = run.split()
    libraries = {kind: libraries_of(kind) for kind in KINDS if kind in kinds}
    cards = [one.card() for one in run.networks()]
    graph = _graph(run, cards)
    with stage("reading") as _:
        index = read_data(run, data)
    check_unchanged(rows, index)
    proof = _proof(run, index, rows, cards[0].classes, stage)
    folder = run.path / "export"
    found = []
    with _scratch(folder) as scratch:
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
            verdict = {
                "kind": kind,
                "command": command,
                "weights_sha256": list(card.weights_sha256),
                **verdict,
            }
            one = _settle(made, folder / kind, verdict, card)
            found.append(one)
            _note_verdict(folder / "parity.json", one.verdict)
    return found


def _check_run(run: Run) -> None:
    """Refuse a run that has no one network, or not yet.

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
) -> _Proof:
    """Ask the run for its val images.

    Raises:
        RunError: It has none, the data has other classes, or one cannot be read.
    """
    val = [row for row in rows if row.subset == "val"]
    if not val:
        raise RunError(
            f"{run.path} has no image in subset 'val' to prove an export on",
            hint=f"{run.split_path} says which image is in which subset",
        )
    unknown = sorted({row.label for row in val} - set(classes))
    if unknown:
        raise RunError(
            f"the network of {run.path} knows {', '.join(classes)}, and val has "
            f"{unknown[0]}",
            hint="give the data that the run was made with",
        )
    with stage("the run itself: asking") as progress:
        reference = _probs_of(Predictor.open(run.path), index, val, progress)
    return _Proof(index, val, classes, reference, stage)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Give a folder for what is not proven; afterwards remove it.

    Raises:
        DataError: The disk is full, or the folder cannot be written.
    """
    for left in folder.glob(".unproven-*"):
        if not _is_running(left.name.rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)
    scratch = folder / f".unproven-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
    except OSError as error:
        raise DataError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="free some space, or make the folder writable",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_running(process: str) -> bool:
    if not process.isdecimal():
        return False
    with suppress(PermissionError):  # somebody else's, but running
        try:
            os.kill(int(process), 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def _make(
    artefact: Artefact, source: Source, proof: _Proof, bounds: Bounds
) -> dict[str, Any]:
    """Write the files of an artefact, but for its seal, and return the verdict.

    What goes wrong on the way is a verdict too: other formats may do without it.
    """
    kind = artefact.card.kind
    artefact.path.mkdir()
    try:
        with proof.stage(f"{kind}: making"):
            write_graph(kind, source, artefact.path)
            precision = open_session(artefact).precision
        return _judge(artefact, precision, source, proof, bounds)
    except TumorlensError as error:
        return {"passed": False, "reasons": [error.problem]}


def _judge(
    artefact: Artefact, precision: str, source: Source, proof: _Proof, bounds: Bounds
) -> dict[str, Any]:
    """Return the verdict; int8 that loses too much is made once more before."""
    kind = artefact.card.kind
    if precision != artefact.card.precision:
        reason = (
            f"the runtime computes it in {precision}, not in "
            f"{artefact.card.precision}: this processor, or this network, does not "
            "allow it"
        )
        return {"passed": False, "reasons": [reason]}
    verdict = proof.judge(artefact, bounds)
    drop = -verdict["accuracy"]["change"]["value"]
    if kind == "openvino-int8" and drop > bounds.max_drop:
        # Val says how much too far off the plain one is, and nothing else: half of
        # what the bound leaves, for a flip is not in proportion to a distance.
        nearness = bounds.max_drop / drop / 2
        return _with_care(artefact, verdict, nearness, source, proof, bounds)
    return verdict


def _with_care(
    artefact: Artefact,
    plain: dict[str, Any],
    nearness: float,
    source: Source,
    proof: _Proof,
    bounds: Bounds,
) -> dict[str, Any]:
    """Make int8 anew, nearer to the run, and return the verdict on that.

    Where it cannot be made the verdict stays the one on the plain one, which is bad.
    """
    kind = artefact.card.kind
    if shares_of(source.num_training) is None:
        least = -(-MIN_HELD_OUT * (NUM_CALIBRATION + NUM_HELD_OUT) // NUM_HELD_OUT)
        why = (
            "it was not made again with more care, which takes at least "
            f"{least} training images, and the run has {source.num_training}"
        )
        return {**plain, "reasons": [*plain["reasons"], why]}
    try:
        with proof.stage(f"{kind}: making it with more care"):
            write_graph(kind, source, artefact.path, nearness=nearness)
        verdict = proof.judge(artefact, bounds)
    except TumorlensError as error:
        why = f"it could not be made with more care: {error.problem}"
        return {**plain, "reasons": [*plain["reasons"], why]}
    kept = {name: plain[name] for name in ("reasons", "accuracy")}
    return {**verdict, "plain": kept}


def _settle(
    made: Path, folder: Path, verdict: dict[str, Any], card: ArtefactCard
) -> Exported:
    """Seal an artefact and give it its name, or forget it if its verdict is bad."""
    if not verdict["passed"]:
        is_earlier_gone = artefact.is_artefact(folder)
        artefact.remove_artefact(folder)
        return Exported(card.kind, None, verdict, is_earlier_gone)
    try:
        artefact.write_card(made, card)
        artefact.write_parity(made, verdict)
        artefact.write_readme(made, readme_of(card, verdict))
        artefact.write_manifest(made)
    except DataError as error:
        failed = {**verdict, "passed": False, "reasons": [error.problem]}
        return _settle(made, folder, failed, card)
    artefact.remove_artefact(folder)
    made.replace(folder)
    return Exported(card.kind, artefact.open_artefact(folder), verdict)


def _note_verdict(path: Path, verdict: dict[str, Any]) -> None:
    """Put a verdict beside those of the same weights; others are forgotten."""
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # a damaged one is written anew
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    weights = verdict["weights_sha256"]
    same = {
        kind: other
        for kind, other in known.items()
        if isinstance(other, dict) and other.get("weights_sha256") == weights
    }
    write_json(path, same | {verdict["kind"]: verdict})


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
    with torch.no_grad():
        empty = torch.zeros(1, first.size_px, first.size_px, 3, dtype=torch.uint8)
        embedding = graph(empty)[2]
    return ArtefactCard(
        format=artefact.FORMAT,
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
        made_with=versions,
    )


def _training_images(
    run: Run, index: Index, train: Sequence[SplitRow], card: ModelCard
) -> Callable[[int, int], NDArray[np.uint8]]:
    """Return a function that gives training images as the graph takes them.

    In a random order that deals the classes in turn, so that any part of it has all.
    """
    order = np.random.default_rng(run.config.train.seed).permutation(len(train))
    ranks: dict[str, int] = {}
    ranked = []
    for row in (train[number] for number in order):
        ranks[row.label] = ranks.get(row.label, 0) + 1
        ranked.append((ranks[row.label], row.path))
    paths = [index.root / path for _, path in sorted(ranked)]

    @cache
    def images(start: int, stop: int) -> NDArray[np.uint8]:
        chosen = paths[start:stop]
        if not chosen:
            raise RunError(
                f"int8 takes its ranges from training images, and {run.path} has none",
                hint=f"{run.split_path} says which image is in which subset",
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
    """Return what a predictor says of the files, shape (N, C).

    Raises:
        RunError: A file cannot be read any more.
    """
    paths = [index.root / row.path for row in rows]
    probs = []
    for answer in predictor.predict_files(paths, progress=progress):
        if answer.probs is None:
            raise RunError(
                f"a val image cannot be read any more: {answer.path}: {answer.error}",
                hint="restore the data",
            )
        probs.append(answer.probs)
    return np.stack(probs)
