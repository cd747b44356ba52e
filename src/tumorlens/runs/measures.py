"""Measures of a run on a subset: the content of `metrics.json` and `tta/*.json`.

`tumorlens.evaluation` computes and writes them; pages, tables, lists of runs and
tracking read them. All fractions are in [0, 1]; `None` stands for a value that is not
defined, such as the recall of a class without images.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tumorlens.config import Fit, Protocol
from tumorlens.data.leakage import LeakVerdict
from tumorlens.files import (
    ROUNDING,
    Count,
    Fraction,
    NotNegative,
    Number,
    have_both_bounds,
)
from tumorlens.text import NotebookView, interval

if TYPE_CHECKING:
    from tumorlens.stats.estimates import Estimated
    from tumorlens.stats.intervals import Score
    from tumorlens.stats.paired import Difference

Subset = Literal["train", "val", "test"]


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


def _within(low: float, high: float) -> AfterValidator:
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


Share = Annotated[Estimate, _within(0, 1)]
"""A measure from 0 to 1."""

Loss = Annotated[Estimate, _within(0, float("inf"))]
"""A measure, or a time, that is not negative."""


class ClassMeasures(_Content):
    """Measures of one class against all others."""

    num_images: Count
    precision: Share
    recall: Share
    specificity: Share
    f1: Fraction | None
    auroc: Share

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, content: Any) -> Any:
        """Make estimates of plain numbers, and prefer the recall over groups."""
        if not isinstance(content, dict):
            return content
        content = dict(content)
        if content.get("recall_by_group"):
            content["recall"] = content["recall_by_group"]
        for name in ("precision", "specificity", "auroc"):
            if name in content and not isinstance(content[name], dict | Estimate):
                content[name] = {"value": content[name], "low": None, "high": None}
        return content


class SourceRecall(Estimate):
    """Recall of one class on the images of one source."""

    num_images: Count


class SourceMeasures(_Content):
    """Measures on the images of one source."""

    num_images: Count
    num_groups: Count
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    recall: dict[str, Annotated[SourceRecall, _within(0, 1)]]
    """By class."""


class FoldMeasures(_Content):
    """Accuracy of one fold of a k-fold run on its own test images."""

    fold: Count
    num_images: Count
    accuracy: Fraction


class RocCurve(_Content):
    """One class against all others; empty where no or every image is of the class."""

    fpr: tuple[Fraction, ...]
    """False positive rates, growing."""
    tpr: tuple[Fraction, ...]
    """True positive rates."""

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        if len(self.fpr) != len(self.tpr):
            raise ValueError("expected as many numbers in fpr as in tpr")
        return self


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


class Curves(_Content):
    """Points of the curves that are drawn."""

    roc: dict[str, RocCurve]
    """By class."""
    calibration: CalibrationBins


class NetworkSettings(_Content):
    """Settings that the networks of a run share; `None` where members differ."""

    model: str
    """timm's name of the network; the members of an ensemble."""
    size_px: int | None
    fit: Fit | None
    mirror: bool | None
    tta: str | None
    seed: int


class _Header(_Content):
    format: Literal[1, 2] = 2
    OLDER_FORMATS: ClassVar[tuple[int, ...]] = (1,)
    protocol: Protocol
    subset: Subset
    leak: LeakVerdict
    """The leak verdict of the split."""
    settings: NetworkSettings


class Measures(_Content):
    """All measures that follow from a table of predictions alone."""

    num_images: Count
    num_groups: Count
    classes: tuple[str, ...] = Field(min_length=1)
    """In the order of the network's outputs."""
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    log_loss: Loss
    brier: Annotated[Estimate, _within(0, 2)]
    ece: Share
    """Expected calibration error."""
    macro_auroc: Share
    per_class: dict[str, ClassMeasures]
    confusion_matrix: tuple[tuple[Count, ...], ...]
    """Shape (C, C); rows are the labels, columns the predicted classes."""
    by_source: dict[str, SourceMeasures]
    """Empty when no source is known."""
    folds: tuple[FoldMeasures, ...]
    """Empty for a run without folds."""
    curves: Curves
    interval: str
    """How the intervals were made, in a sentence."""
    interval_holds_from: dict[str, int] = Field(default_factory=dict)
    """Measure -> groups from which on its interval covers what it states; with fewer
    it may be too narrow. Empty in files of early versions."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt the intervals."""
    no_interval: dict[str, str] = Field(default_factory=dict)
    """Name of a measure without an interval -> the reason."""
    not_measured: dict[str, str] = Field(default_factory=dict)
    """Name of a measure or curve that is not given at all -> the reason. Such measures
    are null and such curves empty."""

    @model_validator(mode="after")
    def _of_the_same_classes(self) -> Self:
        if set(self.per_class) != set(self.classes):
            raise ValueError("expected the names of classes in per_class")
        num_classes = len(self.classes)
        if {len(self.confusion_matrix), *map(len, self.confusion_matrix)} != {
            num_classes
        }:
            raise ValueError(
                f"expected {num_classes} rows of {num_classes} numbers in "
                "confusion_matrix"
            )
        return self


class TrustMeasures(_Content):
    """What the answers of a calibrated run are worth."""

    coverage_wanted: Fraction
    coverage: Share
    """Share of images whose true class is in the conformal set."""
    coverage_by_class: dict[str, Share]
    mean_set_size: NotNegative
    error_wanted: Fraction
    confidence: Fraction
    is_promised: bool
    """Whether the promise about the answers is proved on val."""
    answered: Share
    """Share of images that get a class as answer."""
    error_of_answers: Share
    """Share of wrong ones among them."""
    accuracy_of_surest: Share
    """Accuracy of the most certain 80 % of the images."""
    turned_away: Share | None
    """Share of images that the gate turns away; `None` without a gate."""
    turned_away_by_source: dict[str, Share]


class Metrics(NotebookView, Measures, _Header):
    """`metrics.json`."""

    trust: TrustMeasures | None = None
    """`None` for a run that is not calibrated."""


class Percentiles(_Content):
    """A median with the 5th and the 95th percentile: a spread, not an interval."""

    value: NotNegative
    p5: NotNegative
    p95: NotNegative

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, content: Any) -> Any:
        return with_percentiles(content)


def with_percentiles(content: Any) -> Any:
    """Return percentiles under their names; files of format 1 had `low` and `high`."""
    if isinstance(content, dict) and "low" in content:
        content = dict(content)
        content["p5"], content["p95"] = content.pop("low"), content.pop("high", None)
    return content


class PairedDifference(Estimate):
    """Difference of two accuracies on the same images."""

    value: Number
    p: Fraction
    """Two-sided p-value of McNemar's test over groups."""


class HistoryRow(_Content):
    """One epoch; `None`: not measured, or not finite."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | bool | None]

    train_loss: Number | None = None
    train_accuracy: Fraction | None = None
    val_loss: Number | None = None
    val_accuracy: Fraction | None = None
    test_loss: Number | None = None
    test_accuracy: Fraction | None = None


class EpochRow(HistoryRow):
    """A line of `history.jsonl`."""

    epoch: int = Field(ge=1)
    is_best: bool = False
    """Whether its weights were the best so far."""


class TtaEffect(_Content):
    """`tta/<subset>.json`: accuracy without and with test-time augmentation."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    format: int = 1
    policy: str
    """Name of the views, as in `tumorlens.training.views`."""
    subset: Subset
    num_images: Count
    num_groups: Count
    without: Fraction
    """Accuracy without the views."""
    with_views: Fraction = Field(alias="with")
    """Accuracy with them."""
    difference: PairedDifference
    is_noise: bool
    """Whether the difference may be chance."""
    summary: str = Field(alias="words")
    """The result in a sentence."""
