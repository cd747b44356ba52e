"""Ranges of the numbers in result files, for the pydantic models of these files.

A file is hostile until it is checked: a number outside its range is an error that names
the field, and not a figure on a page.
"""

from __future__ import annotations

from typing import Annotated, Protocol, TypeVar

from pydantic import Field

ROUNDING = 1e-6
"""A float32 softmax can exceed 1, and a bound of an interval 0 or 1, by so much."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; `true` and texts that look like numbers are none."""

NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]

Fraction = Annotated[float, Field(strict=True, ge=-ROUNDING, le=1 + ROUNDING)]
"""A share, or another measure from 0 to 1."""

Count = Annotated[int, Field(ge=0)]


class _Bounded(Protocol):
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


_Measure = TypeVar("_Measure", bound=_Bounded)


def have_both_bounds(measure: _Measure) -> _Measure:
    """Return a measure whose interval has both ends or none, in their order.

    Raises:
        ValueError: One end is missing, or the low one is above the high one.
    """
    low, high = measure.low, measure.high
    if (low is None) != (high is None):
        raise ValueError("expected low and high, or neither")
    if low is not None and high is not None and low > high:
        raise ValueError("expected low not above high")
    return measure
