"""`comparison.json` as it is read: checked once, so that a page can trust it.

The file is written by `tumorlens.study.compare`, may be years old and may have been
edited by hand. What a page does not show is not looked at, so a newer file with more in
it is read as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tumorlens.report.page_file import read_page_file

if TYPE_CHECKING:
    from pathlib import Path

COMPARISON_FORMAT = 1
"""The format of `comparison.json` that is known here."""

_HINT = "make it again with: tumorlens compare RUN... (or a study's folder)"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Measure(_Part):
    """A number with its interval; all three are `None` where it is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def _or_unknown(found: Any) -> Any:
    return {} if found is None else found


Known = Annotated[Measure, BeforeValidator(_or_unknown)]
"""A measure that may be `null` as a whole in the file."""

ProtocolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
"""Becomes part of the names of figure files, and so is no path."""


class Leak(_Part):
    """What a protocol lets from test into training."""

    words: str = ""
    is_believable: bool | None = None
    """`False`: figures under this protocol say little about new patients."""

    state: str | None = None
    """State of the leak verdict; older files lack it."""


class Measures(_Part):
    """What one arm reached under one protocol."""

    num_seeds: int = 0
    num_images: int | None = None
    accuracy: Known = Measure()
    balanced_accuracy: Known = Measure()
    macro_f1: Known = Measure()
    log_loss: Known = Measure()
    ece: float | None = None
    last_epoch_accuracy: float | None = None
    best_val_epoch_accuracy: float | None = None
    best_test_epoch_accuracy: float | None = None
    """Chosen on test, and for that not to be believed."""

    best_test_epoch: int | None = None
    leak: Leak = Leak()


class HistoryRow(_Part):
    """One epoch; `None` where it was not measured."""

    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


class Trial(_Part):
    """One arm under one protocol with one seed."""

    path: str
    protocol: ProtocolName
    seed: int | None = None
    state: str
    reason: str | None = None
    history: tuple[HistoryRow, ...] = ()


class Arm(_Part):
    """One setting of a study."""

    name: str
    settings: dict[str, Any] = {}
    """Only those in which the arms differ."""

    model: str
    num_parameters: int | None = None
    macs: int | None = None
    size_bytes: int | None = None
    latency_ms: Known = Measure()
    """Median, 5th and 95th percentile."""

    train_seconds: float | None = None
    images_per_second: float | None = None
    measures: dict[ProtocolName, Measures] = {}
    runs: tuple[Trial, ...] = ()


class Pair(_Part):
    """Two arms on the same images; the difference is first minus second."""

    protocol: ProtocolName
    first: str
    second: str
    num_images: int | None = None
    difference: Known = Measure()
    p_mcnemar: float | None = None
    p_bootstrap: float | None = None
    p_holm: float | None = None
    is_noise: bool | None = None
    words: str = ""


class Answer(_Part):
    """What one arm says of the example."""

    arm: str
    network: str = ""
    """Which of its networks: protocol, seed, fold."""
    probs: dict[str, float]
    predicted: str
    in_training: bool = False
    """Whether it has learnt from this very image."""


class Example(_Part):
    """One image through every arm."""

    path: str
    label: str
    """Empty where it is not known."""

    classes: tuple[str, ...]
    rows: tuple[Answer, ...]


class Comparison(_Part):
    """All that `comparison.json` says."""

    format: Literal[1]
    title: str
    study: str | None = None
    subset: str
    arms: tuple[Arm, ...] = Field(min_length=1)
    pairs: tuple[Pair, ...] = ()
    words: tuple[str, ...] = ()
    pareto: tuple[str, ...] = ()
    headline_protocol: str | None = None
    example: Example | None = None

    @property
    def protocols(self) -> tuple[str, ...]:
        """Every protocol that some arm was measured or run under, headline first."""
        names = [name for arm in self.arms for name in arm.measures]
        names += [run.protocol for arm in self.arms for run in arm.runs]
        return tuple(
            sorted(dict.fromkeys(names), key=lambda name: name != self.headline)
        )

    @property
    def headline(self) -> str:
        """The protocol that arms are compared under; empty where there is none."""
        return self.headline_protocol or ""

    def leaks(self, protocol: str) -> tuple[Leak, ...]:
        """Return the verdicts on a protocol, each once: arms may differ in data."""
        return tuple(
            dict.fromkeys(
                arm.measures[protocol].leak
                for arm in self.arms
                if protocol in arm.measures
            )
        )


def read_comparison(path: Path) -> Comparison:
    """Return the content of `comparison.json`.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    return read_page_file(path, Comparison, version=COMPARISON_FORMAT, hint=_HINT)
