"""Does an exported model answer as the run does? The verdict, from two tables.

Plain arrays in, a dictionary for `parity.json` out; nothing here runs a network. What
the newcomer would get wrong: the largest difference of a probability says little by
itself. What matters is whether a label flips, so a flip is only forgiven where the run
itself was undecided by less than what rounding can move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.stats.paired import paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tumorlens.deploy.artefact import Precision

ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05}
"""By how much a probability may differ where nothing but the order and the width of
sums has changed; int8 has no such bound, it is judged by its accuracy. fp32 differs by
some 1e-6. A number of bf16 has 8 bits, and what each layer rounds adds up: in OpenVINO,
over 337 val images, a trained mobilenetv2_100 differs by 0.009 in the mean and 0.075 at
most, over 160 images a resnet18 of random features under a steep last layer by 0.023
and 0.15. So the bound is not what bf16 can do, but what may pass for the same answer:
with more, the format fails for this network."""

FLIP_MARGIN: dict[Precision, float] = {"fp32": 2e-4, "bf16": 0.05}
"""How far apart the run's two best classes may be at most for a flip to be rounding.
For fp32 that is all that `ROUNDING` can move, one class down and another up. For bf16
that would be a tenth, and a flip could never fail by itself. The mobilenetv2_100 above
flips one label whose margin is 0.074: someone who reads the label would call it
another answer, and so does the verdict."""

MAX_DROP = 0.01
"""Of accuracy, for int8."""


@dataclass(frozen=True)
class Bounds:
    """What an artefact must keep to."""

    max_difference: float | None
    """Of any probability of any image; `None` is no bound."""
    max_drop: float
    """Of accuracy, a fraction: reference less artefact."""
    flip_margin: float | None
    """Labels may flip where the run's two best classes were this close; `None` where
    any may, as for int8, which is judged by its accuracy."""


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
        max_difference: In place of `ROUNDING`. A smaller one also narrows the margin
            within which a flip is rounding; a larger one does not widen it.
    """
    largest = ROUNDING.get(precision) if max_difference is None else max_difference
    margin = FLIP_MARGIN.get(precision)
    if margin is not None and largest is not None:
        margin = min(margin, 2 * largest)  # one class falls, another rises
    return Bounds(largest, max_drop, margin)


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
        answers: What the artefact answered, same shape. A row with a number that is not
            finite is no answer: it flips, and differs by the run's own probability.
        classes: C names.
        bounds: From `bounds_of`.

    Returns:
        JSON-ready values; `passed` is the verdict, `reasons` say why not.
    """
    is_number = np.isfinite(answers).all(axis=1)  # (N,)
    answers = np.where(is_number[:, None], answers, 0.0)
    differences = np.abs(reference - answers).max(axis=1)  # (N,)
    before = reference.argmax(axis=1)
    after = np.where(is_number, answers.argmax(axis=1), -1)  # no label, so a flip
    flipped = np.flatnonzero(before != after)
    margins = np.diff(np.sort(reference, axis=1)[:, -2:], axis=1)[:, 0]  # (N,)
    is_right, was_right = after == labels, before == labels  # (N,)
    change = paired_bootstrap(is_right.astype(float), was_right.astype(float), groups)
    if (is_right == was_right).all():
        # Not an interval that is not known: every resample gives 0.
        change = replace(change, low=0.0, high=0.0)
    flips = [
        {
            "path": paths[row],
            "label": classes[labels[row]],
            "run": classes[before[row]],
            "artefact": classes[after[row]] if is_number[row] else None,
            "margin": float(margins[row]),
            "within_rounding": bounds.flip_margin is not None
            and bool(is_number[row] and margins[row] <= bounds.flip_margin),
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
            "flip_margin": bounds.flip_margin,
        },
    }
    reasons = _reasons(verdict, bounds)
    if not is_number.all():
        first = paths[int(np.flatnonzero(~is_number)[0])]
        reasons.insert(0, f"what it answers for {first} is not a number")
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
    if bounds.flip_margin is not None and unforgiven:
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
