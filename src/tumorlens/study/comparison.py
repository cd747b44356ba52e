"""The content of `comparison.json`, and what it means in sentences.

`tumorlens.study.compare` makes it; the page and the tables read it. Nothing is measured
here. The sentences name no winner by its place in a table: which arm is first is often
chance, and they say where it is not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from tumorlens import text
from tumorlens.files import Count, Fraction, NotNegative, read_model
from tumorlens.runs.estimate import Estimate, Loss, Share
from tumorlens.runs.measures import HistoryRow, Percentiles, Subset
from tumorlens.stats.estimates import note_on_few_groups
from tumorlens.study.pairs import JudgedPair, images_of, sentences_on

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_HINT = "make it again with: tumorlens compare RUN... (or a study's folder)"
_ON_VAL = "That is about test; the figures here are of val."

_MAX_SENTENCES = 6
"""Sentences on runs without measures."""

ProtocolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]
"""Part of the names of figure files, and so not a path."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class ArmLeak(_Content):
    """The worst leak verdict of an arm's runs under one protocol."""

    words: str
    is_believable: bool | None
    """`False`: figures under this protocol say little about new patients. `None`: what
    training has seen is not known, as with weights from elsewhere."""
    state: str | None = None
    """`LeakVerdict.state`."""


class ArmMeasures(_Content):
    """Measures of one arm under one protocol, means over its seeds."""

    num_seeds: Count
    num_images: Count
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    log_loss: Loss
    ece: Share
    """Expected calibration error."""
    last_epoch_accuracy: Fraction | None = None
    """`None` unless test was watched, as the next three."""
    best_val_epoch_accuracy: Fraction | None = None
    best_test_epoch_accuracy: Fraction | None = None
    """Chosen on test, and for that not to be believed."""
    best_test_epoch: Count | None = None
    leak: ArmLeak

    @field_validator("ece", mode="before")
    @classmethod
    def _of_format_1(cls, ece: Any) -> Any:
        if isinstance(ece, dict | Estimate):
            return ece
        return {"value": ece, "low": None, "high": None}

    @property
    def has_epochs(self) -> bool:
        """Whether test was watched after each epoch."""
        return self.last_epoch_accuracy is not None


class ComparedRun(_Content):
    """One training of an arm: one protocol, one seed."""

    path: str
    """Run folder, relative to the study's folder if it is in it."""
    protocol: ProtocolName
    seed: int
    state: str
    """waiting, running, finished, failed or pruned."""
    reason: str | None
    """Why there are no measures of it; `None` where there are."""
    place: str | None = None
    """Machine and study folder where it was trained, if its run is not here."""
    history: tuple[HistoryRow, ...]


class ComparedArm(_Content):
    """One way of training: what it reached and what it costs."""

    name: str
    settings: dict[str, Any]
    """Settings in which the arms differ."""
    model: str
    """timm's name of the network."""
    num_parameters: Count | None
    """`None` without a network on this machine, as the next three."""
    macs: Count | None
    size_bytes: Count | None
    latency_ms: Percentiles | None
    train_seconds: NotNegative | None
    images_per_second: NotNegative | None
    measures: dict[ProtocolName, ArmMeasures]
    """By protocol; empty where no run was evaluated."""
    runs: tuple[ComparedRun, ...]


class Pair(JudgedPair):
    """Two arms under one protocol."""

    protocol: ProtocolName


class ExampleRow(_Content):
    """The answer of one arm's network to the example."""

    arm: str
    network: str
    """Which of the arm's networks: protocol, seed, fold."""
    probs: dict[str, Fraction]
    predicted: str
    in_training: bool
    """Whether the network has learnt from this very image."""


class Example(_Content):
    """One image through one network of every arm."""

    path: str
    label: str
    """Empty where it is not known."""
    classes: tuple[str, ...]
    rows: tuple[ExampleRow, ...]


class Comparison(text.NotebookView, _Content):
    """The content of `comparison.json`."""

    format: Literal[1, 2] = 2
    OLDER_FORMATS: ClassVar[tuple[int, ...]] = (1,)
    title: str
    study: str | None
    """The study's folder; `None` for run folders given by hand."""
    subset: Subset
    headline_protocol: ProtocolName
    """The protocol under which the arms are compared first."""
    arms: tuple[ComparedArm, ...] = Field(min_length=1)
    pairs: tuple[Pair, ...]
    pareto: tuple[str, ...]
    """Arms than which no other is both as accurate and as fast, or more."""
    example: Example | None
    summary: tuple[str, ...] = Field(
        (), validation_alias=AliasChoices("summary", "words")
    )
    """What the comparison means, in sentences; `words` in files of early versions."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """Every protocol that an arm was measured or run under, headline first."""
        names = [name for arm in self.arms for name in arm.measures]
        names += [run.protocol for arm in self.arms for run in arm.runs]
        headline = self.headline_protocol
        return tuple(sorted(dict.fromkeys(names), key=lambda name: name != headline))

    def measured_under(self, protocol: str) -> tuple[ComparedArm, ...]:
        """Return the arms that were evaluated under a protocol."""
        return tuple(arm for arm in self.arms if protocol in arm.measures)

    def pairs_under(self, protocol: str) -> tuple[Pair, ...]:
        """Return the pairs under a protocol."""
        return tuple(pair for pair in self.pairs if pair.protocol == protocol)

    def leaks(self, protocol: str) -> tuple[ArmLeak, ...]:
        """Return the verdicts on a protocol, each once: arms may differ in data."""
        measured = self.measured_under(protocol)
        return tuple(dict.fromkeys(arm.measures[protocol].leak for arm in measured))


def read_comparison(path: Path) -> Comparison:
    """Return the content of `comparison.json`.

    Raises:
        RunError: It is missing, damaged or of another format.
    """
    return read_model(path, Comparison, hint=_HINT)


def summarize(comparison: Comparison) -> tuple[str, ...]:
    """Return what a comparison means, in sentences.

    Returns:
        Warnings of leaks first, then the differences under the headline protocol, then
        what the figures do not show.
    """
    headline = comparison.headline_protocol
    pairs = comparison.pairs_under(headline)
    sentences = _on_leaks(comparison)
    if pairs:
        sentences.append(
            f"Differences of accuracy on {comparison.subset} under {headline}, "
            f"{images_of(pairs)}:"
        )
    sentences += sentences_on(pairs)
    sentences += _on_missing_pairs(comparison, pairs)
    measured = [arm.measures[headline] for arm in comparison.measured_under(headline)]
    if pairs and all(measures.num_seeds == 1 for measures in measured):
        sentences.append(
            "Each arm was trained with one seed. The intervals show how far other "
            "images would have moved a difference, not how far another seed would."
        )
    sentences += _on_few_groups(measured)
    sentences += _on_best_test_epoch(comparison)
    sentences += _on_runs_elsewhere(comparison)
    sentences += _on_runs_without_measures(comparison)
    return tuple(sentences + _on_example(comparison))


def _on_leaks(comparison: Comparison) -> list[str]:
    arms: dict[tuple[str, bool | None, str], list[str]] = defaultdict(list)
    num_arms: Counter[str] = Counter()
    for arm in comparison.arms:
        for protocol, measures in arm.measures.items():
            leak = measures.leak
            num_arms[protocol] += 1
            arms[protocol, leak.is_believable, leak.words].append(arm.name)
    sentences = []
    for (protocol, is_believable, words), names in arms.items():
        if is_believable:
            continue
        whose = f" of {'; '.join(names)}" if len(names) < num_arms[protocol] else ""
        cannot = "cannot be believed" if is_believable is False else "may be too high"
        # The check compares test with training, whatever is compared here.
        on = "" if comparison.subset == "test" else " on test"
        below = f" {_ON_VAL}" if on else ""
        sentences.append(
            f"The accuracy{on}{whose} under {protocol} {cannot}. {words}{below}"
        )
    return sentences


def _on_missing_pairs(comparison: Comparison, pairs: Sequence[Pair]) -> list[str]:
    headline = comparison.headline_protocol
    num_arms = len(comparison.measured_under(headline))
    num_missing = num_arms * (num_arms - 1) // 2 - len(pairs)
    sentences = []
    if num_missing:
        sentences.append(
            f"{num_missing} of the pairs share no image and "
            f"{'was' if num_missing == 1 else 'were'} not compared."
        )
    without = [
        arm.name
        for arm in comparison.arms
        if arm.measures and headline not in arm.measures
    ]
    if without:
        sentences.append(f"Not evaluated under {headline}: {'; '.join(without)}.")
    return sentences


def _on_few_groups(measured: Sequence[ArmMeasures]) -> list[str]:
    """Return which intervals rest on fewer groups than they hold from."""
    counts = [one.accuracy.num_units for one in measured if one.accuracy.num_units]
    if not counts:
        return []
    note = note_on_few_groups(min(counts), ArmMeasures.model_fields)
    return [note] if note else []


def _on_best_test_epoch(comparison: Comparison) -> list[str]:
    measures = [one for arm in comparison.arms for one in arm.measures.values()]
    if all(one.best_test_epoch_accuracy is None for one in measures):
        return []
    sentence = (
        "The best test epoch (*) was chosen on the images that it is measured on, as "
        "in many published figures. It is there to compare with these, and too high."
    )
    return [sentence]


def _on_runs_elsewhere(comparison: Comparison) -> list[str]:
    by_place: dict[str, list[str]] = defaultdict(list)
    for arm in comparison.arms:
        for run in arm.runs:
            if run.place is not None:
                by_place[run.place].append(
                    f"{arm.name} ({run.protocol}, seed {run.seed})"
                )
    sentences = []
    for place, names in by_place.items():
        sentences.append(
            f"{text.counted(len(names), 'trial')} trained in {place}, on another "
            "machine or in another folder, and not in this comparison: "
            f"{'; '.join(names)}. To include them, copy their run folders from there."
        )
    return sentences


def _on_runs_without_measures(comparison: Comparison) -> list[str]:
    arms: dict[tuple[str, int, str], list[str]] = {}
    for arm in comparison.arms:
        for run in arm.runs:
            if run.place is None and (run.reason or run.state != "finished"):
                why = run.reason or run.state
                arms.setdefault((run.protocol, run.seed, why), []).append(arm.name)
    sentences = [
        f"{'; '.join(names)} ({protocol}, seed {seed}) "
        f"{'has' if len(names) == 1 else 'have'} no measures: {why}."
        for (protocol, seed, why), names in arms.items()
    ]
    num_more = sum(len(names) for names in [*arms.values()][_MAX_SENTENCES:])
    if not num_more:
        return sentences
    return [*sentences[:_MAX_SENTENCES], f"Nor have {num_more} more runs."]


def _on_example(comparison: Comparison) -> list[str]:
    rows = comparison.example.rows if comparison.example else ()
    seen = [row.arm for row in rows if row.in_training]
    if not seen:
        return []
    return [
        f"The example was in the training of {'; '.join(seen)}, and is no test there."
    ]
