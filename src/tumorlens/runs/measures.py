"""Measures of a run on a subset: the content of `metrics.json` and `tta/*.json`.

`tumorlens.evaluation` computes and writes them; pages, tables, lists of runs and
tracking read them. All fractions are in [0, 1]; `None` stands for a value that is not
defined, such as the recall of a class without images.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tumorlens.config import Fit
from tumorlens.data.leakage import LeakVerdict
from tumorlens.text import NotebookView, interval

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

    @property
    def percentage(self) -> str:
        """The fraction and its bounds, such as 82.7 % (80.1 to 85.0)."""
        return interval(self.model_dump())


class ClassMeasures(_Content):
    """Measures of one class against all others."""

    num_images: int
    precision: Number | None
    recall: Estimate
    """With Wilson's interval over images, as if they were independent."""
    recall_by_group: Estimate | None = None
    """With the interval over resampled groups; `None` in files of early versions."""
    specificity: Number | None
    f1: Number | None
    auroc: Number | None


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
    format: int = 1
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
    warnings: tuple[str, ...] = ()
    """Reasons to doubt the intervals."""
    no_interval: dict[str, str] = Field(default_factory=dict)
    """Name of a measure without an interval -> the reason."""


class Metrics(NotebookView, Measures, _Header):
    """`metrics.json`."""


class PairedDifference(Estimate):
    """Difference of two accuracies on the same images."""

    value: Number
    p: Number
    """Two-sided p-value."""


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
