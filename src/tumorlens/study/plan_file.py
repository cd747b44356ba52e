"""The TOML file of a study, read into a plan and checked before anything runs.

title = "Effect of the learning rate"
config = "base.toml"              # optional; settings below go on top of it
protocols = ["as-given", "grouped-kfold"]   # default: the base's own
seeds = [42]                      # default: the base's own
test = true                       # evaluate on test at the end of each trial
watch_test = false                # and after each epoch, under as-given only

[base]                            # settings that all arms share
model.name = "resnet50"

[axes]                            # every combination is an arm
optim.lr = [1e-2, 1e-3, 1e-4]

[[arms]]                          # or arms with names
name = "max pooling"
model.global_pool = "max"
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from tumorlens.config import (
    Config,
    absolute_path,
    absolute_paths,
    as_setting,
    assign,
    dump_config,
    load_config,
    number_kind,
    parse_assignment,
    parse_config,
    read_toml,
    setting_names,
)
from tumorlens.errors import ConfigError, did_you_mean
from tumorlens.study.plan import PER_TRIAL, Range, StudyPlan


def load_plan(
    path: Path,
    *,
    assignments: Iterable[str] = (),
    data: Path | Sequence[Path] | None = None,
) -> StudyPlan:
    """Return the plan of a TOML file with `--set` assignments on top of its base.

    Args:
        path: The study's file. `config` in it is relative to its folder.
        assignments: `--set` assignments for all arms, as for `config.load_config`.
        data: Value for `data.path`.

    Raises:
        ConfigError: The file cannot be read, a setting is unknown, or an arm's settings
            contradict each other; or an assignment sets a setting that arms vary.
    """
    content = _read(path)
    chosen = [*assignments]
    _check_per_trial(chosen)
    unknown = content.keys() - {*_TOP_KEYS}
    if unknown:
        key = sorted(unknown)[0]
        raise ConfigError(
            f"unknown key {key!r} in the study {path}",
            hint=did_you_mean(key, _TOP_KEYS),
        )
    base = _base_of(path, content, chosen, data)
    arms = _arms_of(path, content)
    varied = {key for arm in arms for key in arm["settings"]}
    search = content.get("search")
    if isinstance(search, dict) and isinstance(search.get("ranges"), dict):
        ranges = _flat(search["ranges"], path=path)
        search = search | {
            "ranges": {
                key: [absolute_path(key, one) for one in of]
                if isinstance(of, list)
                else of
                for key, of in ranges.items()
            }
        }
        varied |= set(search["ranges"])
    _check_varied(path, varied, chosen)
    plan = _parse(
        path,
        {
            "name": content.get("name", path.stem),
            "title": content.get("title", ""),
            "test": content.get("test", False),
            "watch_test": content.get("watch_test", False),
            "protocols": content.get("protocols", [base.data.protocol]),
            "seeds": content.get("seeds", [base.train.seed]),
            "base": base,
            "arms": arms,
            "search": search,
        },
    )
    _check_watch(path, plan)
    _check_arms(path, plan)
    return plan


def read_plan(path: Path) -> StudyPlan:
    """Return a plan that `dump_plan` wrote.

    Raises:
        ConfigError: The file cannot be read or is not a plan.
    """
    content = _read(path)
    if isinstance(content.get("base"), dict):
        content["base"] = parse_config(content["base"])
    return _parse(path, content)


def dump_plan(plan: StudyPlan) -> str:
    """Return a plan as TOML, complete: no file beside it is needed to read it."""
    content = plan.model_dump(mode="json", exclude_none=True)
    content["base"] = tomllib.loads(dump_config(plan.base))
    return tomli_w.dumps(content)


_TOP_KEYS = (
    *("name", "title", "config", "protocols", "seeds", "test", "watch_test"),
    *("base", "axes", "arms", "search"),
)


def _read(path: Path) -> dict[str, Any]:
    return read_toml(
        path,
        kind="study",
        hint="give the path of a study's TOML file, such as studies/scheduler.toml",
        examples="studies/",
    )


def _base_of(
    path: Path,
    content: Mapping[str, Any],
    assignments: list[str],
    data: Path | Sequence[Path] | None,
) -> Config:
    below = content.get("config")
    settings: dict[str, Any] = {}
    if below is not None:
        config = load_config(path.parent / str(below))
        settings = config.model_dump(mode="json", exclude_none=True)
    for key, value in _flat(content.get("base", {}), path=path).items():
        assign(settings, key, value)
    place = as_setting(data)
    if place is not None:
        assign(settings, "data.path", place)
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        _check_used(key)
        if key == "data.path" and place is not None and value != place:
            raise ConfigError(
                f"data.path is given twice: {place!r} by --data, {value!r} by --set",
                hint="leave out one of the two",
            )
        assign(settings, key, value)
    # The study must find its files from any working folder.
    return absolute_paths(parse_config(settings))


def _arms_of(path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = _flat(content.get("axes", {}), path=path)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"expected a list of values for {key} in [axes] of {path}, got "
                f"{values!r}",
                hint=f"write {key} = [first, second]",
            )
    named = content.get("arms", [])
    if not isinstance(named, list) or not all(isinstance(arm, dict) for arm in named):
        raise ConfigError(
            f"expected [[arms]] tables in {path}, got {named!r}",
            hint='write [[arms]] and below it name = "..." and the settings of the arm',
        )
    if axes and named:
        raise ConfigError(
            f"{path} has both [axes] and [[arms]]",
            hint="name the combinations as arms, or leave the arms to the axes",
        )
    if axes:
        names = _short(axes)
        return [
            {
                "name": ", ".join(
                    f"{names[key]}={_text(value)}"
                    for key, value in zip(axes, values, strict=True)
                ),
                "settings": _absolute(dict(zip(axes, values, strict=True))),
            }
            for values in itertools.product(*axes.values())
        ]
    return [
        {
            "name": arm.get("name", f"arm {number}"),
            "settings": _absolute(
                _flat(
                    {key: value for key, value in arm.items() if key != "name"},
                    path=path,
                )
            ),
        }
        for number, arm in enumerate(named, start=1)
    ]


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: absolute_path(key, value) for key, value in settings.items()}


def _check_per_trial(assignments: Sequence[str]) -> None:
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if key in PER_TRIAL:
            name, line = _OF_A_STUDY[key]
            raise ConfigError(
                f"--set {assignment}: a study has {name} of its own",
                hint=f"write {line} at the top of the study's file",
            )


def _check_varied(path: Path, varied: set[str], assignments: Sequence[str]) -> None:
    for key in sorted(varied):
        if key in PER_TRIAL:
            raise ConfigError(
                f"{key} cannot be an axis of {path}",
                hint="use protocols = [...] and seeds = [...] at the top of the file",
            )
    for assignment in assignments:
        key = assignment.partition("=")[0].strip()
        if key in varied:
            raise ConfigError(
                f"--set {assignment} sets what the arms of {path} differ in",
                hint="change the study's file, or leave the setting out",
            )


_OF_A_STUDY = {
    "train.seed": ("seeds", "seeds = [...]"),
    "data.protocol": ("protocols", "protocols = [...]"),
    "data.fold": ("protocols", 'protocols = ["grouped-kfold"], for all folds,'),
    "train.watch_test": ("watch_test", "watch_test = true"),
}
"""Setting of `PER_TRIAL` -> what a study has in its place."""


def _check_watch(path: Path, plan: StudyPlan) -> None:
    # Not in StudyPlan, which must still read the folders of earlier plans.
    if not plan.watch_test:
        return
    if not plan.test:
        raise ConfigError(
            f"{path} has watch_test = true without test = true: it would look at test "
            "after every epoch of a study that never looks at test",
            hint="add test = true, or leave watch_test out",
        )
    if "as-given" not in plan.protocols:
        raise ConfigError(
            f"{path} has watch_test = true, and no trial could watch test: expected "
            f"'as-given' among the protocols, got {', '.join(plan.protocols)}",
            hint='add "as-given" to protocols, or leave watch_test out',
        )


def _check_arms(path: Path, plan: StudyPlan) -> None:
    names: set[str] = set()
    for trial in plan.trials():
        if trial.name in names:
            raise ConfigError(
                f"two arms of {path} are called {trial.arm!r}, or nearly so",
                hint="give each arm a name of its own",
            )
        names.add(trial.name)
        if plan.search is None:
            plan.config_of(trial.settings, protocol=trial.protocol, seed=trial.seed)
    if plan.search is not None:
        for key, values in plan.search.ranges.items():
            ends = values
            if isinstance(values, Range):
                ends = _ends(path, key, values, is_whole=plan.search.draws_whole(key))
            for value in ends:
                plan.config_of(
                    {key: value},
                    protocol=plan.protocols[0],
                    seed=plan.seeds[0],
                )


def _ends(path: Path, key: str, of: Range, *, is_whole: bool) -> list[int | float]:
    """Return the ends of a range, as numbers of the setting's kind.

    Raises:
        ConfigError: The setting is no number, or a whole one and the range is not.
    """
    if number_kind(key) is None and not key.startswith("model.extra."):
        raise ConfigError(
            f"{key} is no number, and ranges of {path} has low and high for it",
            hint=f"write a list of values: {key} = [first, second]",
        )
    if not is_whole:
        return [of.low, of.high]
    if not of.is_whole:
        raise ConfigError(
            f"{key} is a whole number, and ranges of {path} goes from {of.low:g} to "
            f"{of.high:g}" + (f" in steps of {of.step:g}" if of.step else ""),
            hint="write whole numbers for low, high and step",
        )
    return [int(of.low), int(of.high)]


def _parse(path: Path, content: Mapping[str, Any]) -> StudyPlan:
    try:
        return StudyPlan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":
            problem = f"{path}: {first['ctx']['error']}"
        elif first["type"] == "extra_forbidden":
            problem = f"{path}: unknown key {place!r}"
        else:
            message = first["msg"][:1].lower() + first["msg"][1:]
            problem = f"{path}: {place}: {message}, got {first['input']!r}"
        raise ConfigError(problem, hint="see docs/studies.md") from None


def _check_used(key: str) -> None:
    """Refuse a setting that no trial uses.

    Raises:
        ConfigError: It is one.
    """
    if key.startswith("trust."):
        raise ConfigError(
            f"{key} has no effect in a study, whose trials are not calibrated",
            hint="leave it out, and calibrate a trial's run with: tumorlens trust RUN",
        )


def _flat(tables: Any, *, path: Path) -> dict[str, Any]:
    """Return nested tables as `section.name` -> value; model.extra is one level deeper.

    Raises:
        ConfigError: A setting is unknown.
    """
    known = setting_names()
    found: dict[str, Any] = {}
    if not isinstance(tables, dict):
        raise ConfigError(
            f"expected a table of settings in {path}, got {tables!r}",
            hint="write settings such as optim.lr = 1e-3",
        )
    for section, inner in tables.items():
        # "optim.lr" in quotes is accepted too.
        pairs = (
            [(f"{section}.{name}", value) for name, value in inner.items()]
            if isinstance(inner, dict) and "." not in section
            else [(section, inner)]
        )
        for key, value in pairs:
            _check_used(key)
            if key == "model.extra" and isinstance(value, dict):
                found |= {f"{key}.{name}": of for name, of in value.items()}
                continue
            if key not in known and not key.startswith("model.extra."):
                raise ConfigError(
                    f"unknown setting {key!r} in {path}", hint=did_you_mean(key, known)
                )
            found[key] = value
    return found


def _short(axes: Iterable[str]) -> dict[str, str]:
    """Return the names without their sections, if they stay different."""
    axes = list(axes)
    last = [key.rpartition(".")[2] for key in axes]
    return dict(zip(axes, last if len({*last}) == len(last) else axes, strict=True))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
