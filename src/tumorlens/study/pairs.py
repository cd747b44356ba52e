"""Pairs of classifiers on the same images: their difference, and whether it is chance.

The sides may be arms of a study or models on another set; nothing here needs torch. The
side with the higher figure has not won: of ten equal sides one is best by luck. So
p-values are corrected for the number of pairs, and a difference that may be luck is
called not significant.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    computed_field,
)

from tumorlens import text
from tumorlens.files import Count, Fraction
from tumorlens.runs.estimate import Estimate, estimate_of_difference
from tumorlens.stats.paired import SIGNIFICANCE, holm, paired_difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tumorlens.evaluation.predictions import Predictions

_MAX_SENTENCES = 6
"""Sentences on pairs that do not differ significantly."""


def _has_value(difference: Estimate) -> Estimate:
    if difference.value is None:
        raise ValueError("expected a number as value")
    return difference


class JudgedPair(BaseModel):
    """Two sides on the same images; the difference is first minus second."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    first: str
    second: str
    num_images: Count
    difference: Annotated[Estimate, AfterValidator(_has_value)]
    p: Fraction = Field(validation_alias=AliasChoices("p", "p_bootstrap"))
    """McNemar's test over groups; that of a bootstrap in files of format 1."""
    p_holm: Fraction
    """Corrected for the pairs of this comparison, under one protocol where there are
    several: a family."""
    is_noise: bool
    """Whether the difference is not significant."""

    @property
    def verdict(self) -> str:
        """The verdict for a table: `significant` or `not significant`."""
        return "not significant" if self.is_noise else "significant"

    @computed_field  # type: ignore[prop-decorator] # mypy has no decorated properties
    @property
    def sentence(self) -> str:
        """The verdict on the pair.

        Example:
            >>> JudgedPair(
            ...     first="A",
            ...     second="B",
            ...     num_images=1311,
            ...     difference={"value": -0.041, "low": -0.07, "high": -0.012},
            ...     p=0.003,
            ...     p_holm=0.003,
            ...     is_noise=False,
            ... ).sentence
            'B is better than A by 4.1 points (1.2 to 7.0), p = 0.003 after Holm.'
        """
        first, second, found = self.first, self.second, self.difference
        assert found.value is not None
        value, low, high = found.value, found.low, found.high
        if value < 0 and not self.is_noise:
            first, second, value = second, first, -value
            low, high = (None if end is None else -end for end in (high, low))
        points = f"{_points(value)} points"
        bounds = ""
        if low is not None and high is not None:
            bounds = f"{_points(low)} to {_points(high)}"
        p = "< 0.001" if self.p_holm < 0.001 else f"= {self.p_holm:.3f}"
        inside = f" ({bounds})" if bounds else ""
        if self.is_noise:
            return (
                f"No significant difference between {first} and {second}: "
                f"{points}{inside}, p {p} after Holm."
            )
        return f"{first} is better than {second} by {points}{inside}, p {p} after Holm."


def difference_of(
    first: Mapping[int, Predictions], second: Mapping[int, Predictions]
) -> dict[str, Any] | None:
    """Return two sides' difference on the images that both have predictions for.

    Compared seed by seed if they have the same seeds: another seed can mean other test
    images.

    Args:
        first: Seed -> table; a single table has any seed.
        second: The same.

    Returns:
        `num_images`, `difference` and `p` of a `JudgedPair`; `None` if they share no
        image.
    """
    parts: list[tuple[Iterable[Predictions], Iterable[Predictions]]]
    parts = [(first.values(), second.values())]
    if first.keys() == second.keys():
        parts = [((first[seed],), (second[seed],)) for seed in sorted(first)]
    rows: list[tuple[str, str, float, float]] = []
    for ones, others in parts:
        one, other = _right(ones), _right(others)
        rows += [
            (path, one[path][0], fmean(one[path][1]), fmean(other[path][1]))
            for path in sorted(set(one) & set(other))
        ]
    if not rows:
        return None
    paths, names, of_one, of_other = zip(*rows, strict=True)
    right_of_one, right_of_other = np.array(of_one), np.array(of_other)
    _, groups = np.unique(names, return_inverse=True)
    found = paired_difference(right_of_one, right_of_other, groups)
    return {
        "num_images": len(set(paths)),
        "difference": estimate_of_difference(found),
        "p": found.p,
    }


def judged(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the pairs of a family with `p_holm` and `is_noise`.

    Args:
        pairs: Each with what `difference_of` returns.
    """
    corrected = holm([pair["p"] for pair in pairs])
    found = []
    for pair, p_holm in zip(pairs, corrected, strict=True):
        low, high = pair["difference"].low, pair["difference"].high
        holds_zero = low is not None and low <= 0 <= high
        is_noise = holds_zero or p_holm >= SIGNIFICANCE
        found.append({**pair, "p_holm": p_holm, "is_noise": is_noise})
    return found


def sentences_on(pairs: Sequence[JudgedPair]) -> list[str]:
    """Return the verdicts: all significant ones, and the others if they are few."""
    sentences = [pair.sentence for pair in pairs if not pair.is_noise]
    rest = [pair.sentence for pair in pairs if pair.is_noise]
    if len(rest) <= _MAX_SENTENCES:
        return sentences + rest
    other = "other " if sentences else ""
    return [*sentences, f"The {len(rest)} {other}differences are not significant."]


def images_of(pairs: Sequence[JudgedPair]) -> str:
    """Return on how many images the pairs are compared, in words."""
    counts = sorted({pair.num_images for pair in pairs})
    if len(counts) == 1:
        return text.counted(counts[0], "image")
    return f"{counts[0]:,} to {counts[-1]:,} images"


def _right(tables: Iterable[Predictions]) -> dict[str, tuple[str, list[bool]]]:
    """Return path -> group of the image, and whether each seed is right about it."""
    found: dict[str, tuple[str, list[bool]]] = {}
    for table in tables:
        is_right = (table.predicted == table.labels).tolist()
        for path, group, right in zip(table.paths, table.groups, is_right, strict=True):
            found.setdefault(path, (group, []))[1].append(right)
    return found


def _points(difference: float) -> str:
    # The sentence says which of the two is better, so no plus sign.
    return text.points(difference).removeprefix("+")
