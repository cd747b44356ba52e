"""Does an exported model answer as the run does? The verdict, from two tables.

`judge_parity` turns arrays into the content of `parity.json`; nothing here runs a
network. The largest difference of a probability means little by itself. What matters is
whether a label flips, so a flip is only forgiven where the run's two best classes were
closer than what rounding can move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tumorlens.deploy.artefact import (
    Bounds,
    Change,
    Flip,
    Parity,
    ParityAccuracy,
    Verdict,
)
from tumorlens.runs.estimate import estimate_of_difference
from tumorlens.stats.paired import paired_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tumorlens.deploy.artefact import Precision

ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05}
"""Largest difference of a probability where only the order and the width of sums has
changed; int8 has no such bound, it is judged by its accuracy. fp32 differs by some
1e-6. A number of bf16 has 8 bits, and the rounding of the layers adds up: in OpenVINO,
over 337 val images, a trained mobilenetv2_100 differs by 0.009 in the mean and 0.075 at
most; over 160 images, a resnet18 of random features under a steep last layer by 0.023
and 0.15. So the bound is not the worst that bf16 can do, but what may pass for the same
answer: beyond it, the format fails for this network."""

FLIP_MARGIN: dict[Precision, float] = {"fp32": 2e-4, "bf16": 0.05}
"""Largest difference between the run's two best classes at which a flip is rounding.
For fp32 that is all that `ROUNDING` can move, one class down and another up. For bf16
that would be a tenth, and a flip could never fail by itself. The mobilenetv2_100 above
flips one label whose margin is 0.074: a reader of the label would call it another
answer, and so does the verdict."""

MAX_DROP = 0.01
"""Loss of accuracy that int8 may have by default, a fraction."""


def bounds_of(
    precision: Precision,
    *,
    max_drop: float = MAX_DROP,
    max_difference: float | None = None,
) -> Bounds:
    """Return the limits for an artefact of a precision.

    Args:
        precision: Number type that its graph computes in.
        max_drop: Largest loss of accuracy, a fraction.
        max_difference: Replaces `ROUNDING`. A smaller one also narrows the margin
            within which a flip is rounding; a larger one does not widen it.
    """
    largest = ROUNDING.get(precision) if max_difference is None else max_difference
    margin = FLIP_MARGIN.get(precision)
    if margin is not None and largest is not None:
        margin = min(margin, 2 * largest)  # one class falls, another rises
    return Bounds(max_difference=largest, max_drop=max_drop, flip_margin=margin)


def judge_parity(
    paths: Sequence[str],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    reference: NDArray[np.floating],
    answers: NDArray[np.floating],
    *,
    classes: Sequence[str],
    bounds: Bounds,
    subject: Verdict,
) -> Parity:
    """Return whether an artefact answers as its run does, with all figures.

    Args:
        paths: Names of N images.
        labels: True class indices, shape (N,).
        groups: Group indices, shape (N,), from 0 without a gap.
        reference: Probabilities of the run, shape (N, C).
        answers: Probabilities of the artefact, same shape. A row with a number that is
            not finite is no answer: it flips, and differs by the run's own probability.
        classes: C names.
        bounds: Limits, from `bounds_of`.
        subject: Verdict so far, which names the artefact.
    """
    is_number = np.isfinite(answers).all(axis=1)  # (N,)
    answers = np.where(is_number[:, None], answers, 0.0)
    differences = np.abs(reference - answers).max(axis=1)  # (N,)
    before = reference.argmax(axis=1)
    after = np.where(is_number, answers.argmax(axis=1), -1)  # no label, so a flip
    flipped = np.flatnonzero(before != after)
    margins = np.diff(np.sort(reference, axis=1)[:, -2:], axis=1)[:, 0]  # (N,)
    is_right, was_right = after == labels, before == labels  # (N,)
    found = paired_difference(is_right.astype(float), was_right.astype(float), groups)
    change = Change(**dict(estimate_of_difference(found)))
    flips = tuple(
        Flip(
            path=paths[row],
            label=classes[labels[row]],
            run=classes[before[row]],
            artefact=classes[after[row]] if is_number[row] else None,
            margin=float(margins[row]),
            within_rounding=bounds.flip_margin is not None
            and bool(is_number[row] and margins[row] <= bounds.flip_margin),
        )
        for row in flipped.tolist()
    )
    worst = int(differences.argmax())
    parity = Parity(
        kind=subject.kind,
        command=subject.command,
        weights_sha256=subject.weights_sha256,
        passed=False,
        reasons=(),
        num_images=len(paths),
        max_difference=float(differences[worst]),
        mean_difference=float(differences.mean()),
        worst_image=paths[worst],
        flips=flips,
        accuracy=ParityAccuracy(
            run=float((before == labels).mean()),
            artefact=float((after == labels).mean()),
            change=change,
        ),
        bounds=bounds,
    )
    reasons = _reasons(parity)
    if not is_number.all():
        first = paths[int(np.flatnonzero(~is_number)[0])]
        reasons.insert(0, f"its answer for {first} is not a number")
    return parity.model_copy(update={"passed": not reasons, "reasons": tuple(reasons)})


def _reasons(parity: Parity) -> list[str]:
    reasons = []
    bounds, highest = parity.bounds, parity.bounds.max_difference
    if highest is not None and not parity.max_difference <= highest:
        reasons.append(
            f"a probability of {parity.worst_image} differs by "
            f"{parity.max_difference:.2g}, more than {highest:.2g}"
        )
    unforgiven = [flip.path for flip in parity.flips if not flip.within_rounding]
    if bounds.flip_margin is not None and unforgiven:
        names = ", ".join(unforgiven[:5])
        more = f" and {len(unforgiven) - 5} more" if len(unforgiven) > 5 else ""
        reasons.append(f"the label of {names}{more} flips")
    drop = -parity.accuracy.change.value
    if drop > bounds.max_drop + 1e-12:
        names = ", ".join(flip.path for flip in parity.flips[:5])
        reasons.append(
            f"accuracy falls by {100 * drop:.2f} points, more than "
            f"{100 * bounds.max_drop:.2f}; labels flip on {names}"
        )
    return reasons
