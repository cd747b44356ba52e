"""What the answers of a calibrated run are worth on a subset: sets, abstention, gate.

`answers.csv` beside the predictions has a line for each image: the answer, the classes
of its set and what the gate said. The measures are those of `metrics.json`.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.files import write_text
from tumorlens.runs.estimate import estimate_of_score
from tumorlens.runs.measures import TrustMeasures
from tumorlens.runs.trust import NO_BRAIN_MRI, UNCERTAIN, Judged, Trust
from tumorlens.stats import intervals

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.estimate import Estimate

SUREST = 0.8
"""Share of images, the most certain ones, whose accuracy is measured too."""


@dataclass(frozen=True)
class JudgedSubset:
    """What trust says of the images of a subset, in the order of their paths."""

    trust: Trust
    paths: tuple[str, ...]
    judged: tuple[Judged, ...]


def pool_judged(parts: Sequence[JudgedSubset]) -> JudgedSubset:
    """Return the judged images of several folds, each by its own trust, as one."""
    rows = sorted(
        (path, judged)
        for part in parts
        for path, judged in zip(part.paths, part.judged, strict=True)
    )
    paths, judged = zip(*rows, strict=True)
    return JudgedSubset(parts[0].trust, paths, judged)


def write_answers(path: Path, subset: JudgedSubset) -> None:
    """Write `answers.csv` in one step. Raises what `files.write_text` raises."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "answer", "set", "gate", "objection"])
    for image, one in zip(subset.paths, subset.judged, strict=True):
        gate = "" if one.gate is None else f"{one.gate:.4g}"
        cells = (one.answer, "|".join(one.in_set), gate, one.objection or "")
        writer.writerow([image, *cells])
    write_text(path, text.getvalue())


def measure_trust(table: Predictions, subset: JudgedSubset) -> TrustMeasures:
    """Return the measures of judged images.

    Args:
        table: Their predictions, in the order of their paths.
        subset: The same images.

    Raises:
        ValueError: They are not the same images.
    """
    if table.paths != subset.paths:
        raise ValueError("expected the same images in the same order")
    groups = np.unique(table.groups, return_inverse=True)[1]
    names = np.array(table.classes)[table.labels]
    right = table.predicted == table.labels
    answers = np.array([one.answer for one in subset.judged], dtype=object)
    is_objected = answers == NO_BRAIN_MRI
    # The promise is about the largest probability alone: the gate comes on top.
    threshold = subset.trust.promise.threshold
    is_answered = (answers != UNCERTAIN) & ~is_objected
    covered = np.array(
        [name in one.in_set for name, one in zip(names, subset.judged, strict=True)]
    )
    certainty = table.probs.max(axis=1)
    num_surest = max(1, round(SUREST * len(right)))
    is_surest = np.zeros(len(right), bool)
    is_surest[np.argsort(-certainty, kind="stable")[:num_surest]] = True
    has_gate = any(one.gate is not None for one in subset.judged)
    sources = np.array(table.sources, dtype=object)
    everything = np.ones(len(right), bool)

    def share(values: NDArray[np.bool_], part: NDArray[np.bool_]) -> Estimate:
        if not part.any():
            return estimate_of_score(None)
        own = np.unique(groups[part], return_inverse=True)[1]
        return estimate_of_score(intervals.share(values[part], own))

    return TrustMeasures(
        coverage_wanted=subset.trust.sets.coverage,
        coverage=share(covered, everything),
        coverage_by_class={
            name: share(covered, names == name) for name in table.classes
        },
        mean_set_size=float(np.mean([len(one.in_set) for one in subset.judged])),
        error_wanted=subset.trust.promise.error,
        confidence=subset.trust.promise.confidence,
        is_promised=threshold is not None,
        answered=share(is_answered, everything),
        error_of_answers=share(~right, is_answered),
        accuracy_of_surest=share(right, is_surest),
        turned_away=share(is_objected, everything) if has_gate else None,
        turned_away_by_source={
            source or "unknown": share(is_objected, sources == source)
            for source in sorted(set(table.sources), key=lambda name: (not name, name))
        }
        if has_gate and any(table.sources)
        else {},
    )
