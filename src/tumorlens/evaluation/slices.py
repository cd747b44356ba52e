"""Weak slices: where accuracy is lower than on the rest of the images.

By source, and by thirds of size, brightness and sharpness. Each part is compared with
all other images over groups, and its p-value corrected by Holm for the number of parts:
of a dozen parts, one is always the worst.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.stats import rankdata

from tumorlens.data.picture_facts import FACTS
from tumorlens.evaluation.table_measures import FEW_GROUPS_OF_CLASS
from tumorlens.files import write_text
from tumorlens.runs.estimate import Estimate, estimate_of_score
from tumorlens.runs.slices import THIRDS, Fact, Slice, Slices
from tumorlens.stats.paired import holm
from tumorlens.stats.parts import MOVER, PartDifference, part_against_rest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.picture_facts import PictureFacts
    from tumorlens.evaluation.predictions import Predictions


class _Part(NamedTuple):
    fact: Fact
    name: str
    is_part: NDArray[np.bool_]
    values: NDArray[np.float64] | None
    """Values of the fact for all images; `None` for a source."""


def measure_slices(table: Predictions, facts: Sequence[PictureFacts]) -> Slices:
    """Return accuracy on each part of the images against the rest.

    Parts, or rests, of fewer than `FEW_GROUPS_OF_CLASS` groups are left out: a single
    patient would decide about them.

    Args:
        table: The predictions.
        facts: Those of its images, in the same order.
    """
    right = table.predicted == table.labels
    groups = np.unique(table.groups, return_inverse=True)[1]
    kept: list[tuple[_Part, PartDifference]] = []
    too_few: list[str] = []
    for part in _parts(table, facts):
        sides = (part.is_part, ~part.is_part)
        if min(len(np.unique(groups[side])) for side in sides) < FEW_GROUPS_OF_CLASS:
            too_few.append(part.name)
        else:
            kept.append((part, part_against_rest(right, part.is_part, groups)))
    corrected = _corrected(kept)
    return Slices(
        slices=tuple(
            _slice(part, found, p_holm)
            for (part, found), p_holm in zip(kept, corrected, strict=True)
        ),
        too_few=tuple(too_few),
    )


def thirds(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the third of each value, shape (N,): 0 for low, 1 or 2.

    Equal values stay together, by the middle of their ranks: where most images have one
    size, they are the middle third, however many they are.

    Example:
        >>> thirds(np.array([5.0, 1, 2, 3, 9, 4])).tolist()
        [2, 0, 0, 1, 2, 1]
        >>> thirds(np.array([1.0, 5, 5, 5, 5, 9])).tolist()
        [0, 1, 1, 1, 1, 2]
    """
    middles = (rankdata(values) - 0.5) / len(values)
    return np.asarray(np.floor(3 * middles), np.int64)


def write_facts(
    path: Path, paths: Sequence[str], facts: Sequence[PictureFacts]
) -> None:
    """Write `facts.csv`: path, size, brightness and sharpness of each image."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *FACTS])
    for image, one in zip(paths, facts, strict=True):
        writer.writerow([image, *(f"{value:.9g}" for value in one)])
    write_text(path, text.getvalue())


def _parts(table: Predictions, facts: Sequence[PictureFacts]) -> Iterator[_Part]:
    sources = np.array([source or "unknown" for source in table.sources], dtype=object)
    names = sorted(set(sources))
    if len(names) > 1:
        for name in names:
            yield _Part("source", name, sources == name, None)
    columns = np.array(facts, dtype=np.float64).reshape(-1, len(FACTS))
    for fact, values in zip(THIRDS, columns.T, strict=True):
        own = thirds(values)
        for number, name in enumerate(THIRDS[fact]):
            is_part = own == number
            if is_part.any() and not is_part.all():
                yield _Part(fact, name, is_part, values)


def _corrected(kept: Sequence[tuple[_Part, PartDifference]]) -> list[float]:
    """Return p-values corrected by Holm; a part and its mirror image are one test."""
    tested: dict[bytes, int] = {}
    places = []
    p_values: list[float] = []
    for part, found in kept:
        key = part.is_part.tobytes()
        if key not in tested:
            tested[key] = tested[(~part.is_part).tobytes()] = len(p_values)
            p_values.append(found.p)
        places.append(tested[key])
    corrected = holm(p_values)
    return [corrected[place] for place in places]


def _slice(part: _Part, found: PartDifference, p_holm: float) -> Slice:
    own = None if part.values is None else part.values[part.is_part]
    has_interval = found.low is not None
    return Slice(
        fact=part.fact,
        name=part.name,
        lowest=None if own is None else float(own.min()),
        highest=None if own is None else float(own.max()),
        num_images=int(part.is_part.sum()),
        num_groups=found.part.num_groups,
        accuracy=estimate_of_score(found.part),
        rest=estimate_of_score(found.rest),
        difference=Estimate(
            value=found.value,
            low=found.low,
            high=found.high,
            method=MOVER if has_interval else None,
            unit="group" if has_interval else None,
            num_units=int(((found.part.num_images + found.rest.num_images) > 0).sum()),
        ),
        p=found.p,
        p_holm=p_holm,
    )
