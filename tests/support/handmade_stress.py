"""Answers to clean and worse images, made by hand, and the figures made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.corruptions import CORRUPTIONS
from tumorlens.data.index import SplitRow
from tumorlens.evaluation.stress import (
    VARIANTS,
    StressAnswers,
    StressedTrust,
    stress_figures,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tumorlens.runs.folder import Run
    from tumorlens.runs.stress import Stress

CLASSES = ("glioma", "no_tumor")
NUM = 40
"""Images: two of each of 20 groups, the classes taking turns."""


def rows() -> list[SplitRow]:
    return [
        SplitRow(
            path=f"{number:02}.png",
            sha256="0" * 64,
            label=CLASSES[number % 2],
            group=f"group {number // 2}",
            subset="test",
        )
        for number in range(NUM)
    ]


def place(name: str, level: int) -> int:
    return VARIANTS.index((CORRUPTIONS[name], level))


def answers(trust: StressedTrust | None = None, **wrong: Any) -> StressAnswers:
    """Return answers that are right but for some.

    Args:
        trust: What is answered, and what is turned away.
        **wrong: Name of a corruption with `_level` -> images that are wrong; `clean`
            likewise, which are wrong everywhere.
    """
    right = np.array([number % 2 for number in range(NUM)])
    predicted = np.tile(right, (len(VARIANTS), 1))
    for which, images in wrong.items():
        if which == "clean":
            predicted[:, images] = 1 - right[images]
            continue
        name, _, level = which.rpartition("_")
        at = place(name.replace("_", "-"), int(level))
        predicted[at, images] = 1 - right[images]
    confidence: NDArray[np.float32] = np.tile(
        np.linspace(0.6, 0.9, NUM, dtype=np.float32), (len(VARIANTS), 1)
    )
    return StressAnswers(rows(), predicted, confidence, trust)


def trust(**parts: Any) -> StressedTrust:
    """Return trust that answers every image but for some, and turns away those.

    Args:
        **parts: As for `answers`: images that are turned away; `clean` ones everywhere.
    """
    away = np.zeros((len(VARIANTS), NUM), bool)
    for which, images in parts.items():
        if which == "clean":
            away[:, images] = True
            continue
        name, _, level = which.rpartition("_")
        away[place(name.replace("_", "-"), int(level)), images] = True
    return StressedTrust(~away, away)


def figures(run: Run, given: StressAnswers) -> Stress:
    return stress_figures(
        run,
        given,
        classes=CLASSES,
        subset="test",
        model="run",
        model_sha256=["0" * 64],
    )
