"""A run becomes artefacts, each with proof that it answers as the run does.

The proof goes the whole way that a file goes in use: val images from disk, through
`Predictor`, to a label, once with the run and once with the artefact. What the newcomer
would get wrong: an artefact is made in a hidden folder and gets its name after it has
passed, so one that exists has passed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import tumorlens
from tumorlens import artefacts
from tumorlens.answers import read_data
from tumorlens.artefact_readme import readme_of
from tumorlens.artefacts import KINDS, Artefact, ArtefactCard, Kind, open_artefact
from tumorlens.datasets import check_unchanged, image_limits
from tumorlens.errors import RunError
from tumorlens.files import write_json
from tumorlens.graph_files import Source, write_graph
from tumorlens.images import load_square
from tumorlens.models import load_model
from tumorlens.parity import MAX_DROP, bounds_of, judge_parity
from tumorlens.predict import Predictor
from tumorlens.serving_graph import ServingGraph
from tumorlens.views import policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tumorlens.index import Index, SplitRow
    from tumorlens.runs import ModelCard, Run

NUM_CALIBRATION = 300
"""Training images that quantization takes its ranges from: NNCF's own default."""

_LIBRARIES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Exported:
    """What came of one format."""

    kind: Kind
    artefact: Artefact | None
    """`None` where the verdict was against it."""
    verdict: dict[str, Any]
    """As in `parity.json`."""


def export(
    run: Run,
    kinds: Sequence[Kind],
    *,
    data: Path | None = None,
    max_drop: float = MAX_DROP,
    max_difference: float | None = None,
    command: str = "",
) -> list[Exported]:
    """Write artefacts of a run into RUN/export, each with its verdict.

    Args:
        run: Finished; an ordinary one, a fold or an ensemble.
        kinds: Formats.
        data: Where the images are now; `None` looks where `data.path` says.
        max_drop: Accuracy that int8 may lose on val.
        max_difference: Of a probability; `None` is the format's own rounding.
        command: What the user typed, for `parity.json`.

    Returns:
        One for each format, in the order of `KINDS`.

    Raises:
        RunError: The run cannot be exported, or its data has changed.
        DataError: An image cannot be read.
        MissingExtraError: The extra `export` is not installed.
    """
    if run.is_kfold:
        raise RunError(
            f"{run.path} is a run of {run.config.data.num_folds} folds, each with a "
            "network and val images of its own",
            hint=f"export one fold: tumorlens export {run.fold_path(0)}",
        )
    index = read_data(run, data)
    rows = run.split()
    check_unchanged(rows, index)
    val = [row for row in rows if row.subset == "val"]
    if not val:
        raise RunError(
            f"{run.path} has no val image to prove an export on",
            hint=f"{run.split_path} says which image is in which subset",
        )
    cards = [one.card() for one in run.networks()]
    graph = _graph(run, cards)
    folder = run.path / "export"
    scratch = folder / ".scratch.tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        source = Source(
            graph, cards[0].size_px, _calibration(run, index, rows, cards[0]), scratch
        )
        reference = _probs_of(Predictor.open(run.path), index, val)
        found = []
        for kind in [kind for kind in KINDS if kind in kinds]:
            made = scratch / kind
            made.mkdir()
            write_graph(kind, source, made)
            artefacts.write_card(made, _card(run, kind, cards, graph))
            artefacts.write_readme(made, readme_of(kind, cards[0].classes))
            artefacts.write_manifest(made)
            answers = _probs_of(Predictor.open(made), index, val)
            verdict = {
                "kind": kind,
                "command": command,
                **judge_parity(
                    [row.path for row in val],
                    np.array([cards[0].classes.index(row.label) for row in val]),
                    np.unique([row.group for row in val], return_inverse=True)[1],
                    reference,
                    answers,
                    classes=cards[0].classes,
                    bounds=bounds_of(
                        open_artefact(made).card.precision,
                        max_drop=max_drop,
                        max_difference=max_difference,
                    ),
                ),
            }
            found.append(_settle(kind, made, folder, verdict))
        _note_verdicts(folder, found)
        return found
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _settle(kind: Kind, made: Path, folder: Path, verdict: dict[str, Any]) -> Exported:
    """Give a folder its name if the verdict is good, and remove it if not."""
    shutil.rmtree(folder / kind, ignore_errors=True)
    if not verdict["passed"]:
        return Exported(kind, None, verdict)
    artefacts.write_parity(made, verdict)
    artefacts.write_manifest(made)
    made.replace(folder / kind)
    return Exported(kind, open_artefact(folder / kind), verdict)


def _note_verdicts(folder: Path, found: list[Exported]) -> None:
    path = folder / "parity.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, known | {one.kind: one.verdict for one in found})


def _graph(run: Run, cards: list[ModelCard]) -> ServingGraph:
    modules = [
        load_model(card, one.weights_path)
        for card, one in zip(cards, run.networks(), strict=True)
    ]
    return ServingGraph(list(zip(cards, modules, strict=True))).eval()


def _card(
    run: Run, kind: Kind, cards: list[ModelCard], graph: ServingGraph
) -> ArtefactCard:
    first = cards[0]
    with torch.no_grad():
        empty = torch.zeros(1, first.size_px, first.size_px, 3, dtype=torch.uint8)
        embedding = graph(empty)[2]
    precision = kind.rpartition("-")[2]
    return ArtefactCard(
        format=artefacts.FORMAT,
        tumorlens=tumorlens.__version__,
        kind=kind,
        precision=precision if precision in ("int8", "bf16") else "fp32",
        run=run.name,
        networks=tuple(card.name for card in cards),
        weights_sha256=tuple(card.weights_sha256 for card in cards),
        classes=first.classes,
        size_px=first.size_px,
        fit=first.fit,
        views=policy_of(mirror=first.mirror, tta=first.tta),
        temperature=tuple(card.temperature for card in cards),
        embedding_size=embedding.shape[1],
        made_with={name: version(name) for name in _LIBRARIES},
    )


def _calibration(
    run: Run, index: Index, rows: Sequence[SplitRow], card: ModelCard
) -> NDArray[np.uint8]:
    """Return training images, every class in turn, as the graph takes them."""
    train = [row for row in rows if row.subset == "train"]
    order = np.random.default_rng(run.config.train.seed).permutation(len(train))
    shuffled = [train[number] for number in order]
    ranks: dict[str, int] = {}
    ranked = []
    for row in shuffled:
        ranks[row.label] = ranks.get(row.label, 0) + 1
        ranked.append((ranks[row.label], row.path))
    chosen = [path for _, path in sorted(ranked)[:NUM_CALIBRATION]]
    return np.stack(
        [
            load_square(
                index.root / path,
                size_px=card.size_px,
                fit=card.fit,
                in_chans=3,
                limits=image_limits(run.config.data),
            )
            for path in chosen
        ]
    )


def _probs_of(
    predictor: Predictor, index: Index, rows: Sequence[SplitRow]
) -> NDArray[np.float32]:
    """Return what a predictor says of the files, shape (N, C).

    Raises:
        RunError: A file cannot be read any more.
    """
    paths = [index.root / row.path for row in rows]
    answers = list(predictor.predict_files(paths))
    for answer in answers:
        if answer.probs is None:
            raise RunError(
                f"a val image cannot be read any more: {answer.error}",
                hint="restore the data",
            )
    return np.stack([answer.probs for answer in answers if answer.probs is not None])
