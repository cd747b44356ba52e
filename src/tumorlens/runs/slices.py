"""Weak slices in `metrics.json`: parts of the images, each against the rest.

`evaluation.slices` computes them; the page and the terminal show them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tumorlens.files import Count, Fraction, Number
from tumorlens.runs.estimate import Estimate, Share
from tumorlens.text import percent, points

SIGNIFICANCE = 0.05
"""A difference counts as found where its corrected p-value is below this."""

Fact = Literal["source", "size", "brightness", "sharpness"]

THIRDS: dict[Fact, tuple[str, str, str]] = {
    "size": ("smallest images", "images of middle size", "largest images"),
    "brightness": ("darkest images", "images of middle brightness", "brightest images"),
    "sharpness": (
        *("least sharp images", "images of middle sharpness"),
        "sharpest images",
    ),
}
"""Fact -> names of its thirds, from low to high."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Slice(_Content):
    """A part of the images, and how accuracy on it differs from that on the rest."""

    fact: Fact
    name: str
    """The source, or one of `THIRDS`."""
    lowest: Number | None
    """Lowest value of the fact in it; `None`, as `highest`, for a source."""
    highest: Number | None
    num_images: Count
    num_groups: Count
    accuracy: Share
    rest: Share
    """Accuracy on the other images."""
    difference: Estimate
    """Accuracy less that on the rest, as a fraction."""
    p: Fraction
    p_holm: Fraction
    """p-value corrected for the number of slices."""

    @property
    def is_found(self) -> bool:
        """Whether the difference is more than chance."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return False
        return self.p_holm < SIGNIFICANCE

    @property
    def is_worse(self) -> bool:
        """Whether accuracy is lower than on the rest by more than chance."""
        return self.is_found and (self.difference.value or 0) < 0

    @property
    def title(self) -> str:
        """The slice in words, such as "smallest images (174 to 350 px)"."""
        if self.lowest is None or self.highest is None:
            known = self.name != "unknown"
            return f"images of source {self.name}" if known else "images without source"
        ends = dict.fromkeys(map(self._written, (self.lowest, self.highest)))
        unit = {"size": " px", "brightness": " %"}.get(self.fact, "")
        return f"{self.name} ({' to '.join(ends)}{unit})"

    def _written(self, value: float) -> str:
        if self.fact == "size":
            return f"{value:.0f}"
        return f"{100 * value:.0f}" if self.fact == "brightness" else f"{value:.2f}"


class Slices(_Content):
    """All slices of a subset."""

    slices: tuple[Slice, ...]
    too_few: tuple[str, ...] = ()
    """Names of slices that are not measured, because they, or the rest, have too few
    groups."""

    @property
    def weak(self) -> list[Slice]:
        """The slices that are worse than the rest, the worst first."""
        found = [one for one in self.slices if one.is_worse]
        return sorted(found, key=lambda one: one.difference.value or 0)

    @property
    def words(self) -> str:
        """Where it is worse, in a sentence."""
        if not self.slices:
            return "No part of the images has groups enough to be compared."
        if not self.weak:
            return (
                f"None of {len(self.slices)} parts of the images, by source, size, "
                "brightness and sharpness, is shown to be worse than the rest."
            )
        parts = [
            f"{one.title}, {percent(one.accuracy.value)} against "
            f"{percent(one.rest.value)} ({points(one.difference.value)} points)"
            for one in self.weak
        ]
        return f"Worse than the rest: {'; '.join(parts)}."
