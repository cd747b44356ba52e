"""Answers to clean and worse images, made by hand, and the figures made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.corruptions import CORRUPTIONS
from tumorlens.data.index import SplitRow
from tumorlens.evaluation.stress import VARIANTS, StressAnswers, stress_figures

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


def answers(**wrong: Any) -> StressAnswers:
    """Return answers that are right but for some.

    Args:
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
    return StressAnswers(rows(), predicted, confidence)


def figures(run: Run, given: StressAnswers) -> Stress:
    return stress_figures(
        run,
        given,
        classes=CLASSES,
        subset="test",
        model="run",
        model_sha256=["0" * 64],
    )
