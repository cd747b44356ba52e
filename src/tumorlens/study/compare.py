"""Runs side by side: what each reached and costs, and which differences are real.

All accuracies come from the runs' `predictions.csv`. Where that of val is missing, the
run is evaluated on val; never on test, since each look at test is a decision of the
user. Two arms are compared on the images that both have predictions for, under the same
protocol, as in `tumorlens.study.pairs`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.sets import root_of
from tumorlens.deploy import costs
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError, did_you_mean
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import pool_predictions, read_predictions
from tumorlens.files import sha256_of
from tumorlens.runs.measures import HistoryRow, Percentiles
from tumorlens.study.arm_measures import (
    epoch_accuracies,
    joined_history,
    mean_measures,
    training_speed,
    worst_leak,
)
from tumorlens.study.arms import find_arms, is_study
from tumorlens.study.comparison import (
    ArmMeasures,
    ComparedArm,
    ComparedRun,
    Comparison,
    Example,
    ExampleRow,
    Pair,
    summarize,
)
from tumorlens.study.pairs import difference_of, judged
from tumorlens.system import without_user
from tumorlens.training.devices import resolve_device

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Progress
    from tumorlens.study.arms import Arm, Member

SUBSETS = ("test", "val")
PROTOCOLS = ("grouped-kfold", "grouped", "as-given")
"""The most telling about new patients first."""


def compare(
    paths: Sequence[Path],
    *,
    subset: str | None = None,
    image: Path | None = None,
    data: Path | Sequence[Path] | None = None,
    with_latency: bool = True,
    device: str = "auto",
    store_url: str | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Compare runs: measures and costs of each arm, and which differences are real.

    Args:
        paths: Run folders, or one study folder. A run that is not finished, or not
            evaluated on test, is listed without measures, with what to do about it.
        subset: `test`, or `val` while choices are being made. `None`: `test`, but `val`
            for a study that never looks at test.
        image: A file to put through one network of every arm.
        data: Where the images are now, if they moved, of each set. `image` may be
            relative to the first.
        with_latency: Whether to time the networks, which takes a few seconds.
        device: Where to run the networks, as for the setting `train.device`.
        store_url: Address of the study's store, if it needs a password.
        command: Command line of the user, for the record of evaluations on val.
        progress: Called with images done and images in all of an evaluation on val.

    Raises:
        ConfigError: The subset is unknown, no path is given or one twice, or a study
            with other paths.
        DataError: The image cannot be read, or those of val cannot.
        RunError: A path is no run folder, one of its files is damaged, the runs are of
            different classes or labels, or none is evaluated.
    """
    subset = subset or _default_subset(paths)
    if subset not in SUBSETS:
        raise ConfigError(
            f"unknown subset {subset!r}", hint=did_you_mean(subset, SUBSETS)
        )
    found = find_arms(paths, store_url=store_url)
    if subset == "val":
        for run in _without_predictions(found, subset):
            evaluate(
                run,
                subset=subset,
                data=data,
                device=device,
                command=command,
                progress=progress,
            )
    entries = [_Entry(arm, _predictions_of(arm, subset)) for arm in found]
    _check_comparable(entries, subset)
    headline = _headline_protocol(entries)
    root = paths[0] if is_study(paths[0]) else None
    networks = [
        (entry.arm.name, network)
        for entry in entries
        if (network := entry.network_run(headline)) is not None
    ]
    of_networks = _costs(entries, headline, device=device if with_latency else None)
    arms = [
        _compared_arm(entry, headline, cost, subset=subset, root=root)
        for entry, cost in zip(entries, of_networks, strict=True)
    ]
    comparison = Comparison(
        title=_title(entries, root),
        study=None if root is None else without_user(str(root.resolve())),
        subset=subset,
        headline_protocol=headline,
        arms=tuple(arms),
        pairs=tuple(_pairs(entries)),
        pareto=tuple(_pareto_front(arms, headline)),
        example=_example(image, data, networks) if image else None,
    )
    return comparison.model_copy(update={"summary": summarize(comparison)})


def _default_subset(paths: Sequence[Path]) -> str:
    if len(paths) != 1 or not is_study(paths[0]):
        return "test"
    from tumorlens.study.folder import open_study

    plan = open_study(paths[0]).plan
    return "test" if plan.test else "val"


def _without_predictions(arms: Iterable[Arm], subset: str) -> list[Run]:
    """Return the finished runs that have a subset and were not evaluated on it yet."""
    return [
        member.run
        for arm in arms
        for member in arm.members
        if member.run is not None
        and member.state == "finished"
        and not _evaluated([member], subset)
        # Each image of a k-fold run is in val of some folds and in training of others.
        and not (member.run.is_kfold and subset != "test")
    ]


@dataclass(frozen=True)
class _Entry:
    """An arm and the predictions of its networks."""

    arm: Arm
    predictions: Mapping[str, Mapping[int, Predictions]]
    """Protocol -> seed -> table, of the evaluated runs."""

    def finished(self, protocol: str) -> list[Run]:
        """Return the finished runs under a protocol, or all if it has none."""
        finished = [one for one in self.arm.members if one.state == "finished"]
        chosen = [one for one in finished if one.protocol == protocol] or finished
        return [one.run for one in chosen if one.run is not None]

    def network_run(self, protocol: str) -> Run | None:
        """Return the run whose network represents the arm, if any has one."""
        return next(filter(costs.has_networks, self.finished(protocol)), None)


def _predictions_of(arm: Arm, subset: str) -> dict[str, dict[int, Predictions]]:
    parts: dict[str, dict[int, list[Predictions]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for member in arm.members:
        for run in _evaluated([member], subset):
            table = read_predictions(run.predictions_of(subset))
            parts[member.protocol][member.seed].append(table)
    return {
        protocol: {
            # Several only if each fold was given as a run of its own.
            seed: tables[0] if len(tables) == 1 else pool_predictions(tables)
            for seed, tables in by_seed.items()
        }
        for protocol, by_seed in parts.items()
    }


def _evaluated(members: Iterable[Member], subset: str) -> list[Run]:
    return [
        one.run
        for one in members
        if one.run is not None
        and one.state == "finished"
        and one.run.predictions_of(subset).is_file()
    ]


def _check_comparable(entries: Sequence[_Entry], subset: str) -> None:
    """Refuse runs without predictions, or of other classes or labels.

    Raises:
        RunError: See `compare`.
    """
    tables = [
        (entry.arm.name, table)
        for entry in entries
        for by_seed in entry.predictions.values()
        for table in by_seed.values()
    ]
    if not tables:
        raise RunError(
            f"none of the runs has predictions for the subset {subset!r}",
            hint=_how_to_evaluate([entry.arm for entry in entries], subset),
        )
    first_name, first = tables[0]
    labels: dict[str, int] = {}
    for name, table in tables:
        if table.classes != first.classes:
            raise RunError(
                f"{first_name} has the classes {', '.join(first.classes)}, {name} has "
                f"{', '.join(table.classes)}",
                hint="compare runs of the same classes in the same order",
            )
        for path, label in zip(table.paths, table.labels.tolist(), strict=True):
            if labels.setdefault(path, label) != label:
                raise RunError(
                    f"{path} is {first.classes[label]} in {name} and "
                    f"{first.classes[labels[path]]} in another run",
                    hint="compare runs of the same data; where labels were corrected, "
                    "train and evaluate again",
                )


def _how_to_evaluate(arms: Sequence[Arm], subset: str) -> str:
    """Return the commands that make the predictions, or why there can be none."""
    commands = [
        f"tumorlens evaluate {run.path}" for run in _without_predictions(arms, subset)
    ]
    if commands:
        on_val = "or compare on val, with --subset val and no look at test"
        return "; ".join([*commands, on_val])
    member = arms[0].members[0]
    return f"{member.path}: {_reason(member, subset) or member.state}"


def _reason(member: Member, subset: str) -> str | None:
    """Return why a run has no measures, or `None` if it has them."""
    if member.reason or member.state != "finished" or member.run is None:
        return member.reason
    if _evaluated([member], subset):
        return None
    if member.run.is_kfold and subset != "test":
        return f"a run with folds has no subset {subset!r} of its own"
    return f"not evaluated yet: tumorlens evaluate {member.path}"


def _headline_protocol(entries: Sequence[_Entry]) -> str:
    """Return the most telling protocol that all evaluated arms share, or else any."""
    evaluated = [set(entry.predictions) for entry in entries if entry.predictions]
    common = set.intersection(*evaluated) or set.union(*evaluated)
    return next(protocol for protocol in PROTOCOLS if protocol in common)


def _title(entries: Sequence[_Entry], root: Path | None) -> str:
    if root is not None:
        from tumorlens.study.folder import open_study

        plan = open_study(root).plan
        return str(plan.title or plan.name)
    names = [entry.arm.name for entry in entries]
    return " and ".join(names) if len(names) < 3 else f"{len(names)} arms"


def _compared_arm(
    entry: _Entry,
    headline: str,
    cost: Mapping[str, Any],
    *,
    subset: str,
    root: Path | None,
) -> ComparedArm:
    measures = {}
    for protocol, by_seed in entry.predictions.items():
        runs = _evaluated(entry.arm.members_under(protocol), subset)
        tables = list(by_seed.values())
        measures[protocol] = ArmMeasures(
            num_seeds=len(tables),
            num_images=len({path for table in tables for path in table.paths}),
            **mean_measures(tables),
            # A comparison on val, where choices are still made, must not show test.
            **epoch_accuracies(runs if subset == "test" else ()),
            leak=worst_leak(runs),
        )
    return ComparedArm(
        name=entry.arm.name,
        settings=entry.arm.settings,
        model=str(entry.arm.members[0].settings["model.name"]),
        **training_speed(entry.finished(headline)),
        **cost,
        measures=measures,
        runs=tuple(_compared_run(one, subset, root) for one in entry.arm.members),
    )


def _compared_run(member: Member, subset: str, root: Path | None) -> ComparedRun:
    history = [] if member.run is None else joined_history(member.run)
    return ComparedRun(
        path=_path_of(member, root),
        protocol=member.protocol,
        seed=member.seed,
        state=member.state,
        reason=without_user(_reason(member, subset) or "") or None,
        place=member.place and without_user(member.place),
        history=tuple(HistoryRow.model_validate(row) for row in history),
    )


def _path_of(member: Member, root: Path | None) -> str:
    path = member.path.resolve()
    if root is not None and path.is_relative_to(root.resolve()):
        return path.relative_to(root.resolve()).as_posix()
    return without_user(str(path))


def _costs(
    entries: Sequence[_Entry], headline: str, *, device: str | None
) -> list[dict[str, Any]]:
    """Return the costs of each arm's network, timed on `device` unless it is `None`."""
    runs = [entry.network_run(headline) for entry in entries]
    # Arms that differ only in their training share one architecture and one latency:
    # timed apart, chance would put one before the other.
    networks_of = {
        costs.architecture_of(run): costs.open_networks(run) for run in runs if run
    }
    found: dict[str, dict[str, Any]] = {
        architecture: {
            "num_parameters": costs.count_parameters(networks),
            "macs": costs.count_macs(networks),
            "size_bytes": costs.size_on_disk(networks),
            "latency_ms": None,
        }
        for architecture, networks in networks_of.items()
    }
    if device is not None:
        times = costs.measure_latencies(
            list(networks_of.values()), device=resolve_device(device)
        )
        for of_network, time in zip(found.values(), times, strict=True):
            of_network["latency_ms"] = Percentiles(
                value=time.p50, p5=time.p5, p95=time.p95
            )
    unknown = dict.fromkeys(("num_parameters", "macs", "size_bytes", "latency_ms"))
    return [found[costs.architecture_of(run)] if run else unknown for run in runs]


def _pairs(entries: Sequence[_Entry]) -> list[Pair]:
    pairs: list[Pair] = []
    for protocol in PROTOCOLS:
        sides = [
            (entry.arm.name, entry.predictions[protocol])
            for entry in entries
            if protocol in entry.predictions
        ]
        # The pairs under one protocol are a family.
        family = [
            {"protocol": protocol, "first": first, "second": second, **found}
            for (first, one), (second, other) in itertools.combinations(sides, 2)
            if (found := difference_of(one, other))
        ]
        pairs += [Pair(**pair) for pair in judged(family)]
    return pairs


def _pareto_front(arms: Sequence[ComparedArm], headline: str) -> list[str]:
    """Return the arms than which no other is both as accurate and as fast, or more."""
    points = {
        arm.name: (arm.measures[headline].accuracy.value or 0, -arm.latency_ms.value)
        for arm in arms
        if headline in arm.measures and arm.latency_ms and arm.latency_ms.value
    }
    return [
        name
        for name, point in points.items()
        if not any(
            other != point and other[0] >= point[0] and other[1] >= point[1]
            for other in points.values()
        )
    ]


def _example(
    image: Path, data: Path | Sequence[Path] | None, networks: Iterable[tuple[str, Run]]
) -> Example:
    """Put an image through one network of each arm.

    Args:
        image: A file, which may be relative to the first of `data`.
        data: Where the images of the runs are; `None` if not known.
        networks: Arm and the run that stands for it. Of a k-fold run, the network that
            has not learnt from the image is used.

    Raises:
        DataError: It is no file or cannot be read.
    """
    file, path = _find_image(image, data)
    sha256 = sha256_of(file)
    rows = []
    classes: tuple[str, ...] = ()
    for arm, run in networks:
        protocol, seed = run.config.data.protocol, run.config.train.seed
        network = f"{protocol}, seed {seed}"
        fold = _fold_that_tests(run, sha256)
        one = run if fold is None else run.folds()[fold]
        if fold is not None:
            network += f", fold {fold}: the one that did not learn from it"
        predictor = Predictor.open(one.path)
        (answer,) = predictor.predict_files([file])
        if answer.probs is None:
            raise DataError(
                f"cannot read {file}: {answer.error}", hint="give another --image"
            )
        classes = predictor.classes
        rows_of_run = one.split() if one.split_path.is_file() else ()
        subsets = {row.subset for row in rows_of_run if row.sha256 == sha256}
        rows.append(
            ExampleRow(
                arm=arm,
                network=network,
                probs=dict(zip(classes, map(float, answer.probs), strict=True)),
                predicted=answer.predicted,
                in_training=bool(subsets - {"test", "left-out"}),
            )
        )
    label = file.resolve().parent.name
    return Example(
        path=path,
        label=label if label in classes else "",
        classes=classes,
        rows=tuple(rows),
    )


def _fold_that_tests(run: Run, sha256: str) -> int | None:
    """Return the fold that has an image in its test subset, if there is one."""
    if not run.is_kfold:
        return None
    for row in run.split():
        if row.sha256 == sha256 and row.subset.startswith("fold-"):
            return int(row.subset.removeprefix("fold-"))
    return None


def _find_image(image: Path, data: Path | Sequence[Path] | None) -> tuple[Path, str]:
    """Return the file of an image, and its path for the record.

    Raises:
        DataError: There is no such file.
    """
    first = data if isinstance(data, Path | None) else data[0]
    root = root_of(first) if first is not None else None
    places = [image] if root is None else [image, root / image]
    for place in filter(Path.is_file, places):
        file = place.resolve()
        if root is not None and file.is_relative_to(root.resolve()):
            return file, file.relative_to(root.resolve()).as_posix()
        return file, without_user(str(file))
    raise DataError(
        f"no such image: {image}", hint="give --image one file, not a folder"
    )
