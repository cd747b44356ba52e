"""Does an exported model answer as the run does? The verdict, from two tables.

Plain arrays in, a dictionary for `parity.json` out; nothing here runs a network. What
the newcomer would get wrong: the largest difference of a probability says little by
itself. What matters is whether a label flips, so a flip is only forgiven where the run
itself was undecided by less than what rounding can move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.paired import paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tumorlens.artefacts import Precision

ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05}
"""By how much a probability may differ where nothing but the order and the width of
sums has changed. A number of bf16 has 8 bits; over the layers of a ResNet50 this moves
a probability near one half by up to some hundredths. int8 has no such bound: it is
judged by its accuracy."""

MAX_DROP = 0.01
"""Of accuracy, for int8."""


@dataclass(frozen=True)
class Bounds:
    """What an artefact must keep to."""

    max_difference: float | None
    """Of any probability of any image; `None` is no bound."""
    max_drop: float
    """Of accuracy, a fraction: reference less artefact."""
    is_floating: bool
    """Whether no label may flip but where the run was undecided."""


def bounds_of(
    precision: Precision,
    *,
    max_drop: float = MAX_DROP,
    max_difference: float | None = None,
) -> Bounds:
    """Return what an artefact of a precision must keep to.

    Args:
        precision: What its graph computes in.
        max_drop: Of accuracy.
        max_difference: In place of `ROUNDING`.
    """
    default = ROUNDING.get(precision)
    return Bounds(
        default if max_difference is None else max_difference,
        max_drop,
        is_floating=precision != "int8",
    )


def judge_parity(
    paths: Sequence[str],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    reference: NDArray[np.floating],
    answers: NDArray[np.floating],
    *,
    classes: Sequence[str],
    bounds: Bounds,
) -> dict[str, Any]:
    """Return whether an artefact answers as its run does, with all that says so.

    Args:
        paths: Of N images.
        labels: True class indices, shape (N,).
        groups: Group indices, shape (N,), from 0 without a gap.
        reference: What the run answered: probabilities, shape (N, C).
        answers: What the artefact answered, same shape.
        classes: C names.
        bounds: From `bounds_of`.

    Returns:
        JSON-ready values; `passed` is the verdict, `reasons` say why not.
    """
    differences = np.abs(reference - answers).max(axis=1)  # (N,)
    before, after = reference.argmax(axis=1), answers.argmax(axis=1)
    flipped = np.flatnonzero(before != after)
    margins = np.diff(np.sort(reference, axis=1)[:, -2:], axis=1)[:, 0]  # (N,)
    allowed = 2 * (bounds.max_difference or 0.0)  # one class falls, another rises
    change = paired_bootstrap(
        (after == labels).astype(float), (before == labels).astype(float), groups
    )
    flips = [
        {
            "path": paths[row],
            "label": classes[labels[row]],
            "run": classes[before[row]],
            "artefact": classes[after[row]],
            "margin": float(margins[row]),
            "within_rounding": bool(bounds.is_floating and margins[row] <= allowed),
        }
        for row in flipped.tolist()
    ]
    worst = int(differences.argmax())
    verdict: dict[str, Any] = {
        "num_images": len(paths),
        "max_difference": float(differences[worst]),
        "mean_difference": float(differences.mean()),
        "worst_image": paths[worst],
        "flips": flips,
        "accuracy": {
            "run": float((before == labels).mean()),
            "artefact": float((after == labels).mean()),
            "change": {
                "value": change.value,
                "low": change.low,
                "high": change.high,
            },
        },
        "bounds": {
            "max_difference": bounds.max_difference,
            "max_drop": bounds.max_drop,
            "flip_margin": allowed if bounds.is_floating else None,
        },
    }
    reasons = _reasons(verdict, bounds)
    return {"passed": not reasons, "reasons": reasons, **verdict}


def _reasons(verdict: dict[str, Any], bounds: Bounds) -> list[str]:
    reasons = []
    largest, highest = verdict["max_difference"], bounds.max_difference
    if highest is not None and not largest <= highest:
        reasons.append(
            f"a probability of {verdict['worst_image']} differs by {largest:.2g}, more "
            f"than {highest:.2g}"
        )
    unforgiven = [flip for flip in verdict["flips"] if not flip["within_rounding"]]
    if bounds.is_floating and unforgiven:
        names = ", ".join(flip["path"] for flip in unforgiven[:5])
        more = f" and {len(unforgiven) - 5} more" if len(unforgiven) > 5 else ""
        reasons.append(f"the label of {names}{more} flips")
    drop = -verdict["accuracy"]["change"]["value"]
    if drop > bounds.max_drop + 1e-12:
        names = ", ".join(flip["path"] for flip in verdict["flips"][:5])
        reasons.append(
            f"accuracy falls by {100 * drop:.2f} points, more than "
            f"{100 * bounds.max_drop:.2f}; labels flip on {names}"
        )
    return reasons
