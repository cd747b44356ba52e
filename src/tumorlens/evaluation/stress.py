"""Figures of a stress test: the same images clean and corrupted, as paired comparisons.

Which model answered does not matter here: `StressAnswers` holds the predicted classes
of every image as it is and under each level of each corruption of
`tumorlens.data.corruptions`, and `stress_figures` makes `stress.json` of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tumorlens.data.corruptions import CORRUPTIONS
from tumorlens.runs.estimate import estimate_of_difference, estimate_of_score
from tumorlens.runs.measures import PairedDifference
from tumorlens.runs.stress import (
    Stress,
    StressCorruption,
    StressLevel,
    StressTrust,
    WorstCase,
)
from tumorlens.stats.intervals import share
from tumorlens.stats.paired import holm, paired_difference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tumorlens.data.corruptions import Corruption
    from tumorlens.data.index import SplitRow
    from tumorlens.runs.estimate import Estimate
    from tumorlens.runs.folder import Run
    from tumorlens.stats.paired import Difference

NOT_CALIBRATED = "the model is not calibrated"


class Variant(NamedTuple):
    """An image as it is, or under one level of a corruption."""

    corruption: Corruption | None
    """`None` for the image as it is."""
    level: int = 0


VARIANTS = (
    Variant(None),
    *(Variant(one, level) for one in CORRUPTIONS.values() for level in one.levels),
)
"""Everything that is asked of an image, clean first. V of them."""


@dataclass(frozen=True)
class StressAnswers:
    """Answers to N images in each of V variants."""

    rows: Sequence[SplitRow]
    """The images."""
    predicted: NDArray[np.integer]
    """Class indices, shape (V, N)."""
    confidence: NDArray[np.floating]
    """Probability of the predicted class, shape (V, N)."""
    trust: StressedTrust | None = None
    """`None` for a model that is not calibrated."""


@dataclass(frozen=True)
class StressedTrust:
    """What a calibrated model answers of N images in each of V variants."""

    is_answered: NDArray[np.bool_]
    """Whether a class is the answer, shape (V, N)."""
    is_turned_away: NDArray[np.bool_] | None
    """Whether the input gate turns it away, shape (V, N); `None` without a gate."""


def stress_figures(
    run: Run,
    answers: StressAnswers,
    *,
    classes: Sequence[str],
    subset: str,
    model: str,
    model_sha256: Sequence[str],
) -> Stress:
    """Return the content of `stress.json`.

    Every level is compared with the clean images by `paired_difference`, and its
    p-value corrected by Holm for the number of all levels.

    Args:
        run: The run whose images they are.
        answers: What the model answered.
        classes: Names of the classes.
        subset: `test` or `val`.
        model: Name of the model.
        model_sha256: Digest of each of its networks.
    """
    rows = answers.rows
    labels = np.array([classes.index(row.label) for row in rows])
    unique, groups = np.unique([row.group for row in rows], return_inverse=True)
    right = answers.predicted == labels  # (V, N)
    trust = [
        answers.trust and _trust_at(number, right, answers.trust, groups)
        for number in range(len(VARIANTS))
    ]
    changes = [
        paired_difference(one.astype(np.float64), right[0].astype(np.float64), groups)
        for one in right[1:]
    ]
    corrected = holm([one.p for one in changes])
    levels: dict[str, list[StressLevel]] = {name: [] for name in CORRUPTIONS}
    for number, change in enumerate(changes):
        corruption, level = VARIANTS[number + 1]
        assert corruption is not None
        levels[corruption.name].append(
            StressLevel(
                level=level,
                amount=corruption.amounts[level - 1],
                accuracy=estimate_of_score(share(right[number + 1], groups)),
                change=_as_written(change),
                p_holm=corrected[number],
                trust=trust[number + 1],
            )
        )
    return Stress(
        run=run.name,
        model=model,
        model_sha256=tuple(model_sha256),
        protocol=run.config.data.protocol,
        subset=subset,
        leak=run.leak(),
        seed=run.config.train.seed,
        num_images=len(rows),
        num_groups=len(unique),
        clean=estimate_of_score(share(right[0], groups)),
        clean_trust=trust[0],
        corruptions=tuple(
            StressCorruption(
                name=name,
                title=one.title,
                amount=one.amount,
                levels=tuple(levels[name]),
            )
            for name, one in CORRUPTIONS.items()
        ),
        worst=tuple(_worst_cases(answers, right, classes)),
        not_measured={}
        if answers.trust
        else dict.fromkeys(
            ("share answered", "error among answers", "gate alarms"), NOT_CALIBRATED
        ),
    )


def _trust_at(
    number: int,
    right: NDArray[np.bool_],
    trust: StressedTrust,
    groups: NDArray[np.integer],
) -> StressTrust:
    """Return what is answered of one variant, against the images as they are.

    Args:
        number: Place of the variant in `VARIANTS`.
        right: Whether the predicted class is the true one, shape (V, N).
        trust: Answers to the same images.
        groups: Group of each image, shape (N,).
    """

    def among(values: NDArray[np.bool_], part: NDArray[np.bool_]) -> Estimate:
        if not part.any():
            return estimate_of_score(None)
        own = np.unique(groups[part], return_inverse=True)[1]
        return estimate_of_score(share(values[part], own))

    def change(
        values: NDArray[np.bool_], part: NDArray[np.bool_]
    ) -> PairedDifference | None:
        if number == 0 or not part.any():
            return None
        own = np.unique(groups[part], return_inverse=True)[1]
        first, second = (values[one, part].astype(np.float64) for one in (number, 0))
        return _as_written(paired_difference(first, second, own))

    everything = np.ones(right.shape[1], bool)
    answered, away = trust.is_answered, trust.is_turned_away
    return StressTrust(
        answered=among(answered[number], everything),
        answered_change=change(answered, everything),
        error=among(~right[number], answered[number]),
        error_change=change(~right, answered[number] & answered[0]),
        alarms=None if away is None else among(away[number], everything),
        alarms_change=None if away is None else change(away, everything),
    )


def _as_written(change: Difference) -> PairedDifference:
    return PairedDifference(**dict(estimate_of_difference(change)), p=change.p)


def _worst_cases(
    answers: StressAnswers, right: NDArray[np.bool_], classes: Sequence[str]
) -> list[WorstCase]:
    """Return for each corruption the most confident mistake of its mildest level.

    Only images that are right when clean count. The mildest level is the lowest at
    which one of them is wrong, and the path decides between equals.
    """
    found = []
    for name in CORRUPTIONS:
        places = [
            number
            for number, variant in enumerate(VARIANTS)
            if variant.corruption is not None and variant.corruption.name == name
        ]
        turned = right[0] & ~right[places]  # (levels, N)
        if not turned.any():
            continue
        level = int(turned.any(axis=1).argmax())
        place = places[level]
        confidence = answers.confidence[place]
        _, _, image = min(
            (-confidence[n], answers.rows[n].path, n)
            for n in np.flatnonzero(turned[level]).tolist()
        )
        row = answers.rows[image]
        found.append(
            WorstCase(
                corruption=name,
                level=VARIANTS[place].level,
                path=row.path,
                label=row.label,
                predicted=classes[int(answers.predicted[place, image])],
                prob=float(answers.confidence[place, image]),
                num_turned=int(turned.any(axis=0).sum()),
            )
        )
    return found
