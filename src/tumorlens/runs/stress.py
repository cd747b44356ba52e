"""`stress.json`: accuracy of a model on worse images, against that on the same clean.

`evaluation.stress` computes it; the page and the terminal show it. All fractions are in
[0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.config import Protocol
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import RunError
from tumorlens.files import Count, Fraction, read_model
from tumorlens.runs.estimate import Share
from tumorlens.runs.measures import PairedDifference, Subset
from tumorlens.text import counted, percent, points

if TYPE_CHECKING:
    from pathlib import Path

SIGNIFICANCE = 0.05
"""A change counts as found where its corrected p-value is below this."""

_Level = Annotated[int, Field(ge=1, le=9)]


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class StressTrust(_Content):
    """What a calibrated model answers of the images of one level."""

    answered: Share
    """Share that gets a class as its answer, neither uncertain nor turned away."""
    answered_change: PairedDifference | None
    """That share less that of clean images; `None` for these."""
    error: Share
    """Share of wrong ones among the answers."""
    error_change: PairedDifference | None
    """Share of wrong ones less that of clean images, among the images that are answered
    as both; `None` where there is none, and for clean images."""
    alarms: Share | None
    """Share that the input gate turns away; `None` without a gate."""
    alarms_change: PairedDifference | None
    """That share less that of clean images; `None` for these, or without a gate."""


class StressLevel(_Content):
    """One level of a corruption."""

    level: _Level
    amount: float
    """The number behind the level, see `StressCorruption.amount`."""
    accuracy: Share
    change: PairedDifference
    """Accuracy less that on clean images."""
    p_holm: Fraction
    """p-value corrected for the number of levels of all corruptions."""
    trust: StressTrust | None = None
    """`None` for a model that is not calibrated."""

    @property
    def is_found(self) -> bool:
        """Whether the change is more than chance."""
        low, high = self.change.low, self.change.high
        if low is None or high is None or low <= 0 <= high:
            return False
        return self.p_holm < SIGNIFICANCE


class StressCorruption(_Content):
    """A corruption with its levels."""

    name: str
    title: str
    amount: str
    """What the numbers of the levels are."""
    levels: tuple[StressLevel, ...] = Field(min_length=1)

    @property
    def most_lost(self) -> StressLevel:
        """The level with the lowest accuracy, the first of equals."""
        return min(self.levels, key=lambda one: one.change.value)


class WorstCase(_Content):
    """An image that is right when clean, and wrong under a corruption."""

    corruption: str
    """Name of the corruption."""
    level: _Level
    path: str
    """As in the index."""
    label: str
    predicted: str
    """Class that the corrupted image is given."""
    prob: Fraction
    """Its probability."""
    num_turned: Count
    """Images of this kind under the corruption, at any level."""


class Stress(_Content):
    """The content of `stress.json`."""

    format: Literal[1] = 1
    run: str
    """Name of the run."""
    model: str
    """Name of the run, or of its artefact, whose answers were measured."""
    model_sha256: tuple[str, ...]
    """`Predictor.digest`: one for each fold."""
    protocol: Protocol
    subset: Subset
    leak: LeakVerdict
    seed: int
    """Seed of the corruptions: that of the run."""
    num_images: Count
    num_groups: Count
    clean: Share
    """Accuracy on the images as they are."""
    clean_trust: StressTrust | None = None
    """What is answered of them; `None` for a model that is not calibrated."""
    corruptions: tuple[StressCorruption, ...] = Field(min_length=1)
    worst: tuple[WorstCase, ...]
    """For each corruption at most one, of the mildest level that turns any image."""
    not_measured: dict[str, str] = Field(default_factory=dict)
    """Name of a figure that is not given -> the reason."""

    @model_validator(mode="after")
    def _of_known_corruptions(self) -> Self:
        names = [one.name for one in self.corruptions]
        if len(set(names)) < len(names):
            raise ValueError("a corruption is there twice")
        if not {one.corruption for one in self.worst} <= set(names):
            raise ValueError("expected worst cases of the corruptions that are there")
        return self

    @property
    def by_loss(self) -> list[StressCorruption]:
        """The corruptions, that which costs the most accuracy first."""
        return sorted(self.corruptions, key=lambda one: one.most_lost.change.value)

    @property
    def words(self) -> str:
        """What was found, in a sentence or two."""
        on = (
            f"{percent(self.clean.value)} of {counted(self.num_images, 'clean image')} "
            "right"
        )
        found = [one for one in self.by_loss if one.most_lost.is_found]
        lost = [one for one in found if one.most_lost.change.value < 0]
        if not lost:
            return f"{on}. No corruption is shown to change that."
        first = lost[0]
        level = first.most_lost
        return (
            f"{on}. {counted(len(lost), 'corruption')} of {len(self.corruptions)} "
            f"{'is' if len(lost) == 1 else 'are'} shown to cost accuracy, most of all "
            f"{first.title.lower()}: {points(level.change.value)} points at level "
            f"{level.level}."
        )


def read_stress(path: Path) -> Stress:
    """Return the content of a `stress.json`.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    hint = "make it again: tumorlens stress RUN"
    if not path.is_file():
        raise RunError(f"there is no {path}", hint=hint)
    return read_model(path, Stress, hint=hint)
