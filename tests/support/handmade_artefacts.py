"""Artefact folders with tiny graph files: complete, but no runtime loads them.

A benchmark of them needs a fake worker that returns made-up times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tumorlens.deploy.artefact import (
    GRAPH_FILES,
    Artefact,
    ArtefactCard,
    Bounds,
    Change,
    Flip,
    Kind,
    Parity,
    ParityAccuracy,
    open_artefact,
    seal_artefact,
)
from tumorlens.deploy.benchmark.fastest import weights_of

if TYPE_CHECKING:
    from pathlib import Path


def make_artefact(
    run: Path,
    kind: Kind,
    *,
    accuracy: float = 0.75,
    change: float = 0.0,
    num_flips: int = 0,
) -> Artefact:
    """Make RUN/export/KIND of the run's weights, with graph files of 10 bytes each."""
    folder = run / "export" / kind
    folder.mkdir(parents=True)
    for name in GRAPH_FILES[kind]:
        (folder / name).write_bytes(b"0123456789")
    precision = kind.rpartition("-")[2]
    card = ArtefactCard(
        tumorlens="0",
        kind=kind,
        precision="int8" if precision == "int8" else "fp32",
        run=run.name,
        networks=("test_resnet",),
        weights_sha256=weights_of(run) or ("0" * 64,),
        classes=("a", "b"),
        size_px=32,
        fit="pad",
        views="none",
        temperature=(1.0,),
        embedding_size=8,
        made_with={},
    )
    flips = tuple(
        Flip(
            path=f"{number}.png",
            label="a",
            run="a",
            artefact="b",
            margin=0.0,
            within_rounding=True,
        )
        for number in range(num_flips)
    )
    verdict = parity_of(
        kind,
        flips=flips,
        accuracy=ParityAccuracy(
            run=accuracy - change,
            artefact=accuracy,
            change=Change(value=change, low=None, high=None),
        ),
    )
    seal_artefact(folder, card, verdict, "made by hand")
    return open_artefact(folder)


def parity_of(kind: Kind, **changes: Any) -> Parity:
    """Return a good verdict on an artefact that answers just as its run."""
    same = ParityAccuracy(
        run=0.75, artefact=0.75, change=Change(value=0.0, low=0.0, high=0.0)
    )
    verdict = Parity(
        kind=kind,
        command="tumorlens export",
        weights_sha256=("0" * 64,),
        passed=True,
        reasons=(),
        num_images=8,
        max_difference=0.0,
        mean_difference=0.0,
        worst_image="0.png",
        flips=(),
        accuracy=same,
        bounds=Bounds(max_difference=None, max_drop=0.01, flip_margin=None),
    )
    return verdict.model_copy(update=changes)
