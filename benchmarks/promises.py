"""How often a promise about wrong answers is broken: fitted on patients, or on slices.

Patients are drawn, with 1 to 12 slices each. Slices of a patient are right or wrong
together more often than slices of different ones, and the certainty of the answers says
how likely they are right. A threshold of abstention is fitted on some patients, and
what it answers is counted on 2,000 others.

    python benchmarks/promises.py docs/figures/promises.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import PercentFormatter
from scipy import stats
from scipy.special import expit

from tumorlens.files import write_bytes
from tumorlens.report.drawing import LIGHT, SERIES, Heading, render
from tumorlens.stats.selective import fit_threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

ERROR, CONFIDENCE = 0.1, 0.9
NUM_PATIENTS = (90, 105, 120, 135, 150)
NUM_TRAININGS = 1000


def draw_patients(
    num: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return patient, certainty and whether the answer is wrong, for each slice."""
    patients = np.repeat(np.arange(num), rng.integers(1, 13, num))
    skill = rng.normal(2.5, 2.5, num)
    sure = skill + rng.normal(0, 1.5, num)
    wrong = rng.random(num)[patients] > expit(skill)[patients]
    certainty = expit(sure[patients] + rng.normal(0, 0.2, len(patients)))
    return patients, certainty, wrong


def is_broken(
    *, one_of_each: bool, num_patients: int, rng: np.random.Generator
) -> bool:
    """Return whether a threshold breaks its promise on other patients.

    Args:
        one_of_each: Whether it is fitted on one slice of each patient, or on all.
        num_patients: Patients that it is fitted on.
        rng: Source of the patients.
    """
    patients, certainty, wrong = draw_patients(num_patients, rng)
    if one_of_each:
        _, first = np.unique(patients, return_index=True)
        certainty, wrong = certainty[first], wrong[first]
    found = fit_threshold(certainty, wrong, error=ERROR, confidence=CONFIDENCE)
    if found is None:
        return False
    _, certainty, wrong = draw_patients(2000, rng)
    answered = certainty >= found.threshold
    return bool(wrong[answered].mean() > ERROR)


def main() -> None:
    """Count, print the shares, and draw them."""
    rng = np.random.default_rng(0)
    counts = {
        words: [
            sum(
                is_broken(one_of_each=one, num_patients=num, rng=rng)
                for _ in range(NUM_TRAININGS)
            )
            for num in NUM_PATIENTS
        ]
        for words, one in (("all slices", False), ("one slice of each patient", True))
    }

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        axes.axhline(1 - CONFIDENCE, color=LIGHT["muted"], linewidth=0.9, linestyle=":")
        for (words, broken), color, marker in zip(
            counts.items(), (SERIES[1], SERIES[0]), "so", strict=True
        ):
            shares = np.array(broken) / NUM_TRAININGS
            low, high = np.transpose(
                [stats.binomtest(k, NUM_TRAININGS).proportion_ci() for k in broken]
            )
            axes.errorbar(
                NUM_PATIENTS,
                shares,
                yerr=[shares - low, high - shares],
                color=LIGHT[color],
                marker=marker,
                label=f"fitted on {words}",
            )
        axes.set_ylim(0, 0.35)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xticks(NUM_PATIENTS)
        axes.set_xlabel("patients that the promise is fitted on, 1 to 12 slices each")
        axes.set_ylabel("promises that are broken")
        axes.legend(loc="center right")

    heading = Heading(
        "Broken promises, where 10 % may be",
        "at most 10 % of the answers are wrong, with 90 % confidence",
    )
    write_bytes(Path(sys.argv[1]), render(draw, heading, body_inches=3.4).png())
    for words, broken in counts.items():
        shares = ", ".join(f"{k / NUM_TRAININGS:.1%}" for k in broken)
        print(f"{words}: {shares} for {', '.join(map(str, NUM_PATIENTS))} patients")


if __name__ == "__main__":
    main()
