"""A measure as it is written to files: its value with the bounds of its 95 % interval.

Apart from `runs.measures`, as answers of an artefact need these and no settings.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from tumorlens.files import (
    ROUNDING,
    Count,
    Fraction,
    Number,
    have_both_bounds,
)
from tumorlens.text import interval

if TYPE_CHECKING:
    from tumorlens.stats.estimates import Estimated
    from tumorlens.stats.intervals import Score
    from tumorlens.stats.paired import Difference


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Estimate(_Content):
    """A measure with the bounds of its 95 % interval."""

    value: Number | None
    low: Number | None
    """`None` where there is no interval, and so is `high`."""
    high: Number | None
    method: str | None = None
    """How the interval was made; `None` where there is none, and in early files."""
    unit: Literal["group"] | None = None
    """What is taken to be independent."""
    num_units: int | None = None
    """Number of groups with an image that the measure looks at."""

    _have_both_bounds = model_validator(mode="after")(have_both_bounds)

    @property
    def percentage(self) -> str:
        """The fraction and its bounds, such as 82.7 % (80.1 to 85.0)."""
        return interval(self.model_dump())


def estimate_of(found: Estimated | Score, *, num_groups: int | None = None) -> Estimate:
    """Return a measure and its interval as they are written."""
    value = None if math.isnan(found.value) else float(found.value)
    if found.interval is None:
        return Estimate(value=value, low=None, high=None, num_units=num_groups)
    low, high, method = found.interval
    return Estimate(
        value=value,
        low=low,
        high=high,
        method=method,
        unit="group",
        num_units=num_groups,
    )


def estimate_of_score(score: Score | None) -> Estimate:
    """Return a score as it is written; undefined where there is none."""
    if score is None:
        return Estimate(value=None, low=None, high=None)
    return estimate_of(score, num_groups=score.num_groups)


def estimate_of_difference(found: Difference) -> Estimate:
    """Return a difference of two accuracies as it is written."""
    return Estimate(
        value=found.value,
        low=found.low,
        high=found.high,
        method=found.method,
        unit=None if found.method is None else "group",
        num_units=found.num_groups,
    )


def within(low: float, high: float) -> AfterValidator:
    """Return the check that a measure and the bounds of its interval are in a range."""

    def check(measure: Estimate) -> Estimate:
        for number in (measure.value, measure.low, measure.high):
            if number is not None and not low - ROUNDING <= number <= high + ROUNDING:
                expected = (
                    f"from {low:g} to {high:g}" if high < 3 else f"{low:g} or more"
                )
                raise ValueError(f"expected numbers {expected}")
        return measure

    return AfterValidator(check)


Share = Annotated[Estimate, within(0, 1)]
"""A measure from 0 to 1."""

Loss = Annotated[Estimate, within(0, float("inf"))]
"""A measure, or a time, that is not negative."""


class CalibrationBins(_Content):
    """Images by the probability of their predicted class, one entry per bin."""

    confidence: tuple[Fraction | None, ...]
    """Mean probability of the predicted class; `None`, as `accuracy`, for no image."""
    accuracy: tuple[Fraction | None, ...]
    count: tuple[Count, ...]

    @model_validator(mode="after")
    def _measured_where_there_are_images(self) -> Self:
        if not len(self.confidence) == len(self.accuracy) == len(self.count):
            raise ValueError("expected one confidence, accuracy and count for each bin")
        for bin_ in zip(self.confidence, self.accuracy, self.count, strict=True):
            if bin_[2] and None in bin_:
                raise ValueError(
                    "expected confidence and accuracy for bins with images"
                )
        return self
