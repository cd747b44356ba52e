"""The plan of a study: which trials there are, and the settings of each.

A study compares arms. An arm is a set of settings that differ from the base; a trial is
one arm under one protocol with one seed, and becomes an ordinary run folder. With
`[search]` the settings of each trial are chosen while the study runs, and the plan only
holds ranges and a budget. Nothing is run here, and no file is read: `plan_file` does.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.config import (
    Config,
    Protocol,
    assign,
    differences,
    machine_settings,
    number_kind,
    parse_config,
    paths_in,
    values_of,
)
from tumorlens.errors import ConfigError
from tumorlens.files import sha256_of_bytes

OBJECTIVES = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
"""Val measures that a search can optimise. Measures of test are not among them."""

_MAX_TRIALS = 10_000
_NUM_NAMED = 3

PER_TRIAL = ("data.protocol", "data.fold", "train.seed", "train.watch_test")
"""Settings that a study chooses for each trial; no arm and no `--set` can have them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Range(_Part):
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False
    """Whether values are drawn evenly on a logarithmic scale."""
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log = true needs low > 0 and no step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether its ends and its step, if it has one, are whole numbers."""
        ends = (self.low, self.high, self.step or 1.0)
        return all(number.is_integer() for number in ends)


class Search(_Part):
    """How the settings of the next trial are chosen, and when to stop."""

    sampler: Literal["tpe", "random", "qmc", "grid"] = "tpe"
    pruner: Literal["none", "median", "halving", "hyperband"] = "none"
    objective: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = "accuracy"
    """A val measure."""
    trials: Annotated[int, Field(gt=0, le=_MAX_TRIALS)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes of training, summed over the trials. No trial starts after them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    ranges: dict[str, Range | list[Any]] = Field(min_length=1)
    """Setting -> a range of numbers, or a list of values."""

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.trials is None and self.minutes is None and self.sampler != "grid":
            raise ValueError("[search] needs trials or minutes, got neither")
        if self.sampler == "grid":
            wide = [key for key, of in self.ranges.items() if isinstance(of, Range)]
            if wide:
                raise ValueError(
                    f"sampler 'grid' needs a list of values for each setting, got a "
                    f"range for {wide[0]}"
                )
        return self

    def draws_whole(self, key: str) -> bool:
        """Whether only whole numbers are drawn from the range of a setting.

        The setting decides. Of a key of model.extra nothing is known: a range with a
        step is whole where its ends and the step are.
        """
        of = self.ranges[key]
        if not isinstance(of, Range):
            return False
        if key.startswith("model.extra."):
            return of.is_whole and of.step is not None
        return number_kind(key) is int

    @property
    def is_better_high(self) -> bool:
        """Whether a higher value of the objective is better."""
        return self.objective != "loss"


class PlannedArm(_Part):
    """One way of training that the study compares with others."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    settings: dict[str, Any]
    """`section.name` -> value, for the settings that differ from the base."""


@dataclass(frozen=True)
class PlannedTrial:
    """One arm under one protocol with one seed: one run folder."""

    name: str
    """Unique in the study; also the name of the run folder."""
    arm: str
    settings: Mapping[str, Any]
    """Settings that differ from the base, without protocol and seed."""
    protocol: str
    seed: int


class StudyPlan(_Part):
    """A whole study, before it is run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    title: str = ""
    test: bool = False
    """Whether each trial ends with an evaluation on test, for the comparison."""
    watch_test: bool = False
    """Whether test is measured after each epoch too, under `as-given` only."""
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(min_length=1)
    base: Config
    arms: tuple[PlannedArm, ...] = ()
    search: Search | None = None
    files: dict[str, str] = Field(default_factory=dict)
    """Path -> SHA-256 of the content, see `tumorlens.study.inputs`. Plans of earlier
    versions have none."""

    @model_validator(mode="after")
    def _arms_or_search(self) -> Self:
        if bool(self.arms) == (self.search is not None):
            raise ValueError(
                "expected arms (or axes) or [search], got "
                + ("both" if self.arms else "neither")
            )
        if self.search is not None and len(self.protocols) * len(self.seeds) > 1:
            raise ValueError(
                "expected one protocol and one seed with [search], got "
                f"{len(self.protocols)} and {len(self.seeds)}"
            )
        return self

    def trials(self) -> tuple[PlannedTrial, ...]:
        """Return the trials in the order in which they are run.

        The settings of a search's trials are empty: they are chosen when one starts. A
        search that is limited by time alone has none before it runs.
        """
        if self.search is not None:
            count = self.num_search_trials or 0
            return tuple(self.search_trial(number) for number in range(1, count + 1))
        return tuple(
            PlannedTrial(
                trial_name(arm.name, protocol, seed),
                arm.name,
                arm.settings,
                protocol,
                seed,
            )
            # Arms vary fastest, so that the first ones can be compared early.
            for protocol, seed, arm in itertools.product(
                self.protocols, self.seeds, self.arms
            )
        )

    @property
    def objective(self) -> str:
        """The val measure that trials are judged by."""
        return self.search.objective if self.search else "accuracy"

    def search_trial(self, number: int) -> PlannedTrial:
        """Return a trial of a search, from 1, before its settings are chosen."""
        return PlannedTrial(
            search_name(number), "", {}, self.protocols[0], self.seeds[0]
        )

    @property
    def num_search_trials(self) -> int | None:
        """Largest number of trials of a search; `None` if only time limits it."""
        assert self.search is not None
        if self.search.sampler != "grid":
            return self.search.trials
        values = [of for of in self.search.ranges.values() if isinstance(of, list)]
        points = 1
        for of in values:
            points *= len(of)
        return min(points, self.search.trials or points)

    def digest(self) -> str:
        """Return a fingerprint of the plan that is the same on every machine.

        Settings of the machine are left out. Images and files count by their content,
        or, in a plan without digests, by their name.
        """
        return sha256_of_bytes(json.dumps(self._identity(), sort_keys=True).encode())

    def as_known_to(self, begun: Self) -> Self:
        """Return this plan, without digests where the plan of a study has none."""
        return self if begun.files else self.model_copy(update={"files": {}})

    def differences(self, now: Self) -> list[str]:
        """Return in words what makes another study of this plan."""
        before, after = self._identity(), now._identity()
        how = differences(self.base, now.base)
        mine, theirs = values_of(self.base), values_of(now.base)
        words = [
            f"the content of {key} has changed"
            if paths_in(key, mine[key]) and paths_in(key, theirs[key])
            else f"{key}: {how[key]}"
            for key in before["base"]
            if before["base"][key] != after["base"].get(key)
        ]
        return words + [
            f"{key} differ" if key == "arms" else f"{key} differs"
            for key in before
            if key != "base" and before[key] != after[key]
        ]

    def _identity(self) -> dict[str, Any]:
        """Return what makes this study another one than others."""
        content = self.model_dump(mode="json", exclude={"title", "files", "base"})
        left_out = set(machine_settings())
        if {*paths_in("data.path", self.base.data.path)} & self.files.keys():
            left_out.remove("data.path")
        content["base"] = {
            key: self._without_place(key, value)
            for key, value in values_of(self.base).items()
            if key not in left_out
        }
        for arm in content["arms"]:
            arm["settings"] = {
                key: self._without_place(key, value)
                for key, value in arm["settings"].items()
            }
        for key, of in content["search"]["ranges"].items() if self.search else ():
            if isinstance(of, list):
                of[:] = [self._without_place(key, value) for value in of]
        return content

    def _without_place(self, key: str, value: Any) -> Any:
        """Return the value of a setting, or the content of the file that it names."""
        if not paths_in(key, value):
            return value
        if isinstance(value, list):
            return [self._without_place(key, one) for one in value]
        return self.files.get(value, PurePath(value).name)

    def config_of(
        self, settings: Mapping[str, Any], *, protocol: str, seed: int
    ) -> Config:
        """Return the complete settings of a trial.

        Raises:
            ConfigError: The settings contradict each other.
        """
        content = self.base.model_dump(mode="json", exclude_none=True)
        for key, value in settings.items():
            assign(content, key, value)
        assign(content, "data.protocol", protocol)
        assign(content, "train.seed", seed)
        # Curves of test are only there to be compared with published ones.
        watches = self.watch_test and protocol == "as-given"
        assign(content, "train.watch_test", watches)
        return parse_config(content)


def search_name(number: int) -> str:
    """Return the name of a search's trial, from 1."""
    return f"trial-{number:04d}"


def search_number(name: str) -> int:
    """Return the number in the name of a search's trial.

    Example:
        >>> search_number(search_name(7))
        7
    """
    return int(name.removeprefix("trial-"))


def trial_name(arm: str, protocol: str, seed: int) -> str:
    """Return the name of a trial, which is also that of its folder.

    Example:
        >>> trial_name("max pooling / AdamW", "as-given", 42)
        'max-pooling-AdamW_as-given_seed42'
    """
    return f"{_slug(arm)}_{protocol}_seed{seed}"


def check_only(plan: StudyPlan, only: str) -> None:
    """Reject a pattern that no trial of a plan can match.

    Args:
        plan: The plan. A search without a number of trials can have any number.
        only: Shell pattern of names.

    Raises:
        ConfigError: Nothing matches; the hint names some trials.
    """
    names = [trial.name for trial in plan.trials()]
    if plan.search is not None and plan.num_search_trials is None:
        names = [search_name(number) for number in range(1, _MAX_TRIALS + 1)]
    if any(fnmatchcase(name, only) for name in names):
        return
    more = ", ..." if len(names) > _NUM_NAMED else ""
    raise ConfigError(
        f"no trial of the study {plan.name!r} matches --only {only!r}",
        hint=f"its trials are {', '.join(names[:_NUM_NAMED])}{more}",
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.+_]+", "-", name).strip("-.") or "arm"
