"""Measures of a run on a subset: the content of `metrics.json` and `tta/*.json`.

`tumorlens.evaluation` computes and writes them; pages, tables, lists of runs and
tracking read them. All fractions are in [0, 1]; `None` stands for a value that is not
defined, such as the recall of a class without images.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.config import Fit
from tumorlens.data.leakage import LeakVerdict
from tumorlens.text import NotebookView, interval

if TYPE_CHECKING:
    from tumorlens.stats.estimates import Estimated
    from tumorlens.stats.intervals import Score
    from tumorlens.stats.paired import Difference

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; `true` and texts that look like numbers are none."""


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


class ClassMeasures(_Content):
    """Measures of one class against all others."""

    num_images: int
    precision: Estimate
    recall: Estimate
    specificity: Estimate
    f1: Number | None
    auroc: Estimate

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

    num_images: int


class SourceMeasures(_Content):
    """Measures on the images of one source."""

    num_images: int
    num_groups: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    recall: dict[str, SourceRecall]
    """By class."""


class FoldMeasures(_Content):
    """Accuracy of one fold of a k-fold run on its own test images."""

    fold: int
    num_images: int
    accuracy: Number


class RocCurve(_Content):
    """One class against all others; empty where no or every image is of the class."""

    fpr: tuple[Number, ...]
    """False positive rates, growing."""
    tpr: tuple[Number, ...]
    """True positive rates."""


class CalibrationBins(_Content):
    """Images by the probability of their predicted class, one entry per bin."""

    confidence: tuple[Number | None, ...]
    """Mean probability of the predicted class."""
    accuracy: tuple[Number | None, ...]
    count: tuple[int, ...]


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
    protocol: str
    subset: str
    leak: LeakVerdict
    """The leak verdict of the split."""
    settings: NetworkSettings


class Measures(_Content):
    """All measures that follow from a table of predictions alone."""

    num_images: int
    num_groups: int
    classes: tuple[str, ...] = Field(min_length=1)
    """In the order of the network's outputs."""
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    log_loss: Estimate
    brier: Estimate
    ece: Estimate
    """Expected calibration error."""
    macro_auroc: Estimate
    per_class: dict[str, ClassMeasures]
    confusion_matrix: tuple[tuple[int, ...], ...]
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


class Metrics(NotebookView, Measures, _Header):
    """`metrics.json`."""


class Percentiles(_Content):
    """A median with the 5th and the 95th percentile: a spread, not an interval."""

    value: Number
    p5: Number
    p95: Number

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
    p: Number
    """Two-sided p-value of McNemar's test over groups."""


class TtaEffect(_Content):
    """`tta/<subset>.json`: accuracy without and with test-time augmentation."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    format: int = 1
    policy: str
    """Name of the views, as in `tumorlens.training.views`."""
    subset: str
    num_images: int
    num_groups: int
    without: Number
    """Accuracy without the views."""
    with_views: Number = Field(alias="with")
    """Accuracy with them."""
    difference: PairedDifference
    is_noise: bool
    """Whether the difference may be chance."""
    summary: str = Field(alias="words")
    """The result in a sentence."""
