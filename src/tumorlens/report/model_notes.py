"""What a model's answers are worth, in the few sentences that fit under a result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tumorlens.deploy.artefact import is_artefact, open_artefact
from tumorlens.runs.folder import open_run
from tumorlens.text import percent

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.deploy.predictor import Predictor


def notes_of(path: Path, predictor: Predictor) -> list[str]:
    """Return what is known of the model behind a predictor.

    Args:
        path: The run folder or the artefact that it was opened from.
        predictor: For its name and the digests of its weights.
    """
    digests = [
        digest[:12] for member in predictor.members for digest in member.weights_sha256
    ]
    shown = ", ".join(digests[:3]) + (", ..." if len(digests) > 3 else "")
    model = f"Model {predictor.name}, weights sha256 {shown}."
    return [model, _worth_of_artefact(path) if is_artefact(path) else _worth(path)]


def _worth_of_artefact(path: Path) -> str:
    parity = open_artefact(path).parity()
    num_flips = len(parity.flips)
    return (
        f"Accuracy on {parity.num_images} validation images: "
        f"{percent(parity.accuracy.artefact)}, its run {percent(parity.accuracy.run)}; "
        f"{num_flips or 'no'} label{'' if num_flips == 1 else 's'} differ"
        f"{'s' if num_flips == 1 else ''}."
    )


def _worth(path: Path) -> str:
    run = open_run(path)
    if not run.metrics_path.is_file():
        return "It was never evaluated on a test subset: how good it is is not known."
    metrics = run.metrics()
    return (
        f"Accuracy on {metrics.num_images} test images, 95 %: "
        f"{metrics.accuracy.percentage}. {metrics.leak.words}"
    )
