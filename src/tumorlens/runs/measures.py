"""Measures of a run on a subset: the content of `metrics.json` and `tta/*.json`.

`tumorlens.evaluation` computes and writes them; pages, tables, lists of runs and
tracking read them. All fractions are in [0, 1]; `None` stands for a value that is not
defined, such as the recall of a class without images.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.config import Fit, Protocol
from tumorlens.data.leakage import LeakVerdict
from tumorlens.files import (
    Count,
    Fraction,
    NotNegative,
    Number,
)
from tumorlens.runs.estimate import CalibrationBins, Estimate, Loss, Share, within
from tumorlens.runs.slices import Slices
from tumorlens.text import NotebookView

Subset = Literal["train", "val", "test"]


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


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
    recall: dict[str, Annotated[SourceRecall, within(0, 1)]]
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
    brier: Annotated[Estimate, within(0, 2)]
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
    slices: Slices | None = None
    """Where it is worse; `None` in files of early versions."""


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
