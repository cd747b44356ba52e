"""Which runs are compared: run folders or a study become arms.

An arm is one way of training, under one or several protocols and with one or several
seeds; each of its members is an ordinary run folder, or will be one. Settings of the
machine, such as the device, make no other arm: a run that was repeated on a second
machine would be compared with itself.
"""

from __future__ import annotations

import json
import socket
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tumorlens.config import machine_settings
from tumorlens.errors import ConfigError, RunError
from tumorlens.runs.folder import open_run
from tumorlens.study.plan import PER_TRIAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tumorlens.config import Config
    from tumorlens.runs.folder import Run
    from tumorlens.study.folder import Trial

STUDY_FILE = "study.toml"
"""What makes a folder a study."""


@dataclass(frozen=True)
class Member:
    """One training of an arm: one protocol, one seed."""

    arm: str
    """Name of the arm."""
    settings: Mapping[str, Any]
    """`section.name` -> value, for all settings that make an arm."""
    protocol: str
    seed: int
    path: Path
    """The run folder, which may not exist yet."""
    state: str
    """waiting, running, finished, failed or pruned."""
    reason: str | None
    """Why it is not finished."""
    run: Run | None
    """`None` while there is no run folder."""
    place: str | None = None
    """Machine and study folder where it was trained, if its run is not here."""


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    """Unique among the arms."""
    settings: dict[str, Any]
    """Settings in which the arms differ; empty for a single arm."""
    members: tuple[Member, ...]
    """In the order given."""

    def members_under(self, protocol: str) -> tuple[Member, ...]:
        """Return the members under a protocol."""
        return tuple(one for one in self.members if one.protocol == protocol)


def find_arms(
    paths: Sequence[Path], *, store_url: str | None = None
) -> tuple[Arm, ...]:
    """Return the arms of a study, or of run folders given by hand.

    Runs whose settings differ in nothing but protocol, fold, seed and machine are one
    arm. It is named by the settings in which it differs from the others; where every
    run is an arm of its own, it has the name of its folder.

    Args:
        paths: Run folders, or one study folder.
        store_url: Address of the study's store, if it needs a password.

    Returns:
        In the order of the first run of each.

    Raises:
        ConfigError: No path is given, one is given twice, or a study is not alone.
        RunError: A path is neither a run folder nor a study, or cannot be read.
    """
    return _arms(_members(paths, store_url))


def is_study(path: Path) -> bool:
    """Return whether a folder is that of a study."""
    return (path / STUDY_FILE).is_file()


def settings_of(config: Config) -> dict[str, Any]:
    """Return `section.name` -> value for all settings that make an arm.

    Protocol, fold and seed make none, nor do settings of the machine. Batches are split
    when memory runs out, and the steps stay the same.
    """
    ignored = {*machine_settings(), *PER_TRIAL, "train.accumulate"}
    return {
        f"{section}.{name}": value
        for section, values in config.model_dump(mode="json").items()
        for name, value in values.items()
        if f"{section}.{name}" not in ignored
    }


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Return settings as people write them, without their section.

    Example:
        >>> describe_settings({"optim.lr": 0.001, "augment.policy": "basic"})
        'lr=0.001, policy=basic'
        >>> describe_settings({"model.name": "resnet18", "train.freeze": []})
        'resnet18, freeze=[]'
        >>> describe_settings({"data.fit": "pad", "trust.fit": True})
        'fit=pad, trust.fit=True'
    """
    words = []
    for key, value in settings.items():
        name = key if key.startswith("trust.") else key.partition(".")[2]
        shown = "unset" if value is None else str(value)
        # The only name that two sections share; its values tell the two apart.
        words.append(shown if name == "name" else f"{name}={shown}")
    return ", ".join(words)


def _members(paths: Sequence[Path], store_url: str | None) -> list[Member]:
    """Return the trainings in some folders, each with the name of its arm.

    Raises:
        ConfigError: As `find_arms`.
        RunError: As `find_arms`.
    """
    if not paths:
        raise ConfigError(
            "there is nothing to compare", hint="give run folders, or one study folder"
        )
    studies = [path for path in paths if is_study(path)]
    if studies and len(paths) > 1:
        raise ConfigError(
            f"{studies[0]} is a study, and {len(paths)} folders were given",
            hint="compare one study, or run folders such as those in "
            f"{studies[0] / 'trials'}",
        )
    repeated = [
        p for p, n in Counter(path.resolve() for path in paths).items() if n > 1
    ]
    if repeated:
        raise ConfigError(f"{repeated[0]} was given twice", hint="name each run once")
    if studies:
        return _members_of_study(studies[0], store_url)
    return _members_of_runs(paths)


def _members_of_study(path: Path, store_url: str | None) -> list[Member]:
    """Return the trials of a study.

    Raises:
        RunError: It has none yet, or is not in the store.
    """
    from tumorlens.study.folder import open_study

    study = open_study(path)
    trials = study.trials(study.open_store(store_url, must_exist=True))
    if not trials:
        raise RunError(
            f"the study {path} has no trials yet",
            hint=f"start it with: tumorlens study run {path}",
        )
    base = settings_of(study.plan.base)
    return [
        _trial_as_member(trial, path, base | dict(trial.settings)) for trial in trials
    ]


def _trial_as_member(trial: Trial, folder: Path, settings: Mapping[str, Any]) -> Member:
    run = _open_if_started(trial.run_path)
    reason, place = trial.reason, None
    if trial.state == "finished" and (run is None or not run.is_finished):
        run = None  # what is here, if anything, was begun here and finished elsewhere
        if trial.place == f"{socket.gethostname()}:{folder.resolve()}":
            reason = f"there is no finished run in {trial.run_path}"
        else:
            place = trial.place
            reason = f"it was trained in {place}, and its run folder is not here"
    return Member(
        arm=trial.arm,
        settings=settings,
        protocol=trial.protocol,
        seed=trial.seed,
        path=trial.run_path,
        state=trial.state,
        reason=reason,
        run=run,
        place=place,
    )


def _open_if_started(path: Path) -> Run | None:
    return open_run(path) if (path / "config.toml").is_file() else None


def _members_of_runs(paths: Sequence[Path]) -> list[Member]:
    members = [_member(path) for path in paths]
    by_settings: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_settings[json.dumps(member.settings, sort_keys=True)].append(member)
    groups: list[list[Member]] = []
    for alike in by_settings.values():
        # A training that was repeated can be compared with itself, as two arms.
        groups += [[one] for one in alike] if _have_a_repetition(alike) else [alike]
    groups.sort(key=lambda group: members.index(group[0]))
    names = _names(groups)
    return [
        replace(member, arm=name)
        for name, group in zip(names, groups, strict=True)
        for member in group
    ]


def _member(path: Path) -> Member:
    """Return what is known of a run folder, its arm still without a name.

    Raises:
        RunError: It is not a run folder.
    """
    try:
        run = open_run(path)
    except RunError as error:
        if (path / "config.toml").is_file():
            raise
        raise RunError(
            error.problem,
            hint="give folders named by train --out, or one named by study run --out",
        ) from None
    is_finished = run.is_finished
    settings = settings_of(run.shown_config)
    if run.is_ensemble:
        # Its settings are those of a member, which is still another arm.
        settings["ensemble"] = " + ".join(run.member_names())
    return Member(
        arm="",
        settings=settings,
        protocol=run.config.data.protocol,
        seed=run.config.train.seed,
        path=path,
        state="finished" if is_finished else "waiting",
        reason=None
        if is_finished
        else "its training is not finished; go on with: tumorlens train --resume --out "
        f"{path}",
        run=run,
    )


def _have_a_repetition(members: Iterable[Member]) -> bool:
    folds: dict[tuple[str, int], list[int | None]] = defaultdict(list)
    for member in members:
        assert member.run is not None
        fold = member.run.config.data.fold
        folds[member.protocol, member.seed].append(fold)
    return any(
        len(set(of)) < len(of) or (None in of and len(of) > 1) for of in folds.values()
    )


def _names(groups: Sequence[Sequence[Member]]) -> list[str]:
    """Return a unique name for each group of members."""
    if len(groups) == 1 < len(groups[0]):
        return [str(groups[0][0].settings["model.name"])]
    described = [
        describe_settings(settings)
        for settings in _differing([group[0].settings for group in groups])
    ]
    is_described = len(set(described)) == len(described)
    if is_described and any(len(group) > 1 for group in groups):
        return described
    folders = [group[0].path.resolve() for group in groups]
    names = [folder.name for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [str(group[0].path) for group in groups]


def _arms(members: Sequence[Member]) -> tuple[Arm, ...]:
    by_name: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        by_name[member.arm].append(member)
    settings = _differing([of[0].settings for of in by_name.values()])
    return tuple(
        Arm(name, differing, tuple(of))
        for (name, of), differing in zip(by_name.items(), settings, strict=True)
    )


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the settings of each in which any two of them differ."""
    keys = dict.fromkeys(key for one in settings for key in one)
    differing = [
        key
        for key in keys
        if any(
            (key in one, one.get(key)) != (key in settings[0], settings[0].get(key))
            for one in settings
        )
    ]
    return [{key: one[key] for key in differing if key in one} for one in settings]
