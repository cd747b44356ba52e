"""Artefact folders whose graphs are a few bytes: all is there but what a runtime reads.

Whoever measures them needs a worker that only says what it would have measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tumorlens.deploy import artefact
from tumorlens.deploy.artefact import (
    GRAPH_FILES,
    Artefact,
    ArtefactCard,
    Kind,
    open_artefact,
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
        format=artefact.FORMAT,
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
    artefact.write_card(folder, card)
    parity: dict[str, Any] = {
        "passed": True,
        "num_images": 8,
        "flips": [{"path": f"{number}.png"} for number in range(num_flips)],
        "accuracy": {
            "run": accuracy - change,
            "artefact": accuracy,
            "change": {"value": change, "low": None, "high": None},
        },
    }
    artefact.write_parity(folder, parity)
    artefact.write_readme(folder, "made by hand")
    artefact.write_manifest(folder)
    return open_artefact(folder)
