"""Ensembles: several finished runs become one by averaging their probabilities.

The folder of an ensemble holds copies of its members, so that it can be moved and used
without them; `predict`, `evaluate` and `report` take it as any other run.

All members must have the same test images. Then no training image of any member is in
the test subset of the ensemble; with different splits, one member would have learnt
from the test images of another.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.seen import is_seen
from tumorlens.data.split import LEFT_OUT
from tumorlens.errors import ConfigError, RunError
from tumorlens.files import replacing_folder, write_bytes
from tumorlens.runs.folder import Run, create_run, open_run
from tumorlens.system import describe_environment
from tumorlens.training.weights import check_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.data.index import SplitRow
    from tumorlens.data.leakage import LeakVerdict
    from tumorlens.runs.folder import Tta


def make_ensemble(
    paths: Sequence[Path], *, out: Path, tta: Tta = "none", command: str = ""
) -> Run:
    """Write a run folder that averages the probabilities of several runs.

    Members may be different networks of different sizes. They must have the same
    classes, protocol and test images, so that no training image of a member is in the
    ensemble's test. An image that is in val of one member and in train of another goes
    to train. K-fold runs are joined fold by fold.

    Args:
        paths: Finished run folders: at least two, or one with `tta`.
        out: The run folder to make.
        tta: Views over which every member averages its probabilities.
        command: Command line of the user, for the record.

    Returns:
        The ensemble, finished and not evaluated.

    Raises:
        ConfigError: Too few runs, or one of them twice.
        RunError: `out` exists, or the members differ in protocol, classes, data or test
            images, or one of them is not finished, is an ensemble itself, or has
            weights that do not match its card, or are not finite.
        DataError: The disk is full.
    """
    members = _open_members(paths, tta)
    if out.exists():
        raise RunError(f"{out} exists already", hint="choose another --out")
    first = members[0]
    for other in members[1:]:
        _check_protocol(first, other)
        if first.is_kfold:
            pairs = zip(first.folds(), other.folds(), strict=True)
        else:
            pairs = zip((first,), (other,), strict=True)
        for one, another in pairs:
            _check_classes(one, another)
            _check_split(one, another)

    names = [member.name for member in members]
    with replacing_folder(out) as folder:
        run = _make(members, folder, names=names, tta=tta, command=command)
        for fold, parts in enumerate(zip(*(m.folds() for m in members), strict=True)):
            _make(parts, run.fold_path(fold), names=names, tta=tta, command=command)
    return open_run(out)


def _open_members(paths: Sequence[Path], tta: Tta) -> list[Run]:
    """Return the runs, checked to be different, finished and no ensembles.

    Raises:
        ConfigError: There are too few runs, or one is named twice.
        RunError: A run is not finished, or an ensemble itself.
    """
    if len(paths) < 2 and tta == "none":
        raise ConfigError(
            f"expected at least two runs, got {len(paths)}",
            hint="name more runs, or give --tta, with which one run is enough",
        )
    twice = [path for path, count in _counted(paths) if count > 1]
    if twice:
        raise ConfigError(
            f"{twice[0]} is named twice", hint="each member has one vote: name it once"
        )
    members = [open_run(path) for path in paths]
    for member in members:
        if member.is_ensemble:
            raise RunError(
                f"{member.path} is an ensemble itself",
                hint="name its members: tumorlens ensemble "
                f"{' '.join(str(one.path) for one in member.networks())} ...",
            )
        if not member.is_finished:
            raise RunError(
                f"the training of {member.path} is not finished",
                hint=f"finish it with: tumorlens train --resume --out {member.path}",
            )
    return members


def _counted(paths: Sequence[Path]) -> list[tuple[Path, int]]:
    return list(Counter(path.resolve() for path in paths).items())


def _check_protocol(first: Run, other: Run) -> None:
    """Check that two runs have the same kind of split.

    Raises:
        RunError: The protocol, or the number of folds, differs.
    """
    values = [
        (run.config.data.protocol, run.config.data.fold, len(run.folds()))
        for run in (first, other)
    ]
    words = ("protocol", "fold", "number of folds")
    for word, mine, theirs in zip(words, *values, strict=True):
        if mine != theirs:
            raise RunError(
                f"the {word} of {first.path} is {mine}, that of {other.path} is "
                f"{theirs}",
                hint="an ensemble needs members that were tested on the same images",
            )


def _check_classes(first: Run, other: Run) -> None:
    """Check that two networks have the same classes in the same order.

    Raises:
        RunError: They differ.
    """
    mine, theirs = (run.card(check_weights=False).classes for run in (first, other))
    if mine != theirs:
        raise RunError(
            f"{first.path} has the classes {', '.join(mine)}; {other.path} has "
            f"{', '.join(theirs)}",
            hint="an ensemble needs members of the same classes in the same order",
        )


def _check_split(first: Run, other: Run) -> None:
    """Check that two runs have the same images, and the same images in test.

    Raises:
        RunError: They differ; the first image that does is named.
    """
    mine, theirs = ({row.path: row for row in run.split()} for run in (first, other))
    differing = sorted(
        path
        for path in mine.keys() | theirs.keys()
        if path not in mine
        or path not in theirs
        or mine[path].sha256 != theirs[path].sha256
        or mine[path].label != theirs[path].label
    )
    if differing:
        raise RunError(
            f"{first.path} and {other.path} were made with other data: "
            f"{len(differing)} file(s) differ, the first is {differing[0]}",
            hint="train both with the same images and labels",
        )
    only = [
        sorted(
            path
            for path, row in rows.items()
            if row.subset == "test" and others[path].subset != "test"
        )
        for rows, others in ((mine, theirs), (theirs, mine))
    ]
    if any(only):
        raise RunError(
            f"{first.path} and {other.path} were tested on other images: "
            f"{len(only[0])} are in test of the first only, {len(only[1])} of the "
            f"second only, such as {(only[0] or only[1])[0]}",
            hint="a test image of one may be a training image of the other; train them "
            f"with the same split: --set data.split={first.split_path}",
        )


def _make(
    members: Sequence[Run], path: Path, *, names: Sequence[str], tta: Tta, command: str
) -> Run:
    """Write the folder of an ensemble, with members or, for k-fold runs, without."""
    first = members[0]
    run = create_run(path, first.config)
    run.write_environment(
        describe_environment(command=command, seed=first.config.train.seed)
    )
    leak = _worst_leak(members).model_copy(
        # The ensemble has the settings of its first member, data.labels among them.
        update={"labels_sha256": first.leak().labels_sha256}
    )
    rows = first.split() if first.is_kfold else _joined_split(members)
    run.write_split(rows, leak)
    _copy_seen(members, run)
    run.write_looks(
        sorted(
            (look for member in members for look in member.looks()),
            key=lambda look: look.time,
        )
    )
    run.write_ensemble(names, model=_model_name(members, tta))
    if first.is_kfold:
        return run
    for number, member in enumerate(members):
        _copy(member, run.member_path(number), tta=tta)
    run.mark_finished()
    return run


def _model_name(members: Sequence[Run], tta: Tta) -> str:
    """Return a name in place of a network's: "2 x resnet18 + resnet50, eight-views"."""
    counts = Counter(member.config.model.name for member in members)
    joined = " + ".join(
        name if count == 1 else f"{count} x {name}" for name, count in counts.items()
    )
    return joined if tta == "none" else f"{joined}, {tta}"


def _worst_leak(members: Sequence[Run]) -> LeakVerdict:
    """Return the verdict with the most test images that are also in training.

    All verdicts are equal unless a split was made by hand: train and val together hold
    the same images.
    """
    return max(
        (member.leak() for member in members),
        key=lambda verdict: (
            verdict.leaks,
            verdict.num_copied,
            verdict.num_test_patient_in_train,
            verdict.num_lookalike,
        ),
    )


def _copy_seen(members: Sequence[Run], run: Run) -> None:
    """Copy what the members have seen, if all of them have seen the same."""
    seen = {
        frozenset(row.path for row in one.split() if is_seen(row)) for one in members
    }
    if len(seen) == 1 and members[0].seen_path.is_file():
        write_bytes(run.seen_path, members[0].seen_path.read_bytes())


def _joined_split(members: Sequence[Run]) -> list[SplitRow]:
    """Return the rows of the first member, each in the subset of the ensemble."""
    subsets: dict[str, set[str]] = {}
    for member in members:
        for row in member.split():
            subsets.setdefault(row.path, set()).add(row.subset)
    return [
        replace(row, subset=_joined(subsets[row.path])) for row in members[0].split()
    ]


def _joined(subsets: set[str]) -> str:
    """Return the ensemble's subset for an image that members have in these subsets.

    Test is the same for all members; val has no training image of any member.
    """
    if len(subsets) == 1:
        return next(iter(subsets))
    return "train" if "train" in subsets else LEFT_OUT


def _copy(member: Run, path: Path, *, tta: Tta) -> None:
    """Copy the files that are needed to use an ordinary run and to trace its origin."""
    card = member.card().model_copy(update={"tta": tta})
    check_weights(member.weights_path)
    copy = create_run(path, member.config)
    copy.write_weights(member.weights_path.read_bytes(), card)
    # Checks the digest of the copy, which is the file in use.
    copy.card()
    copy.write_split(member.split(), member.leak())
    copy.write_environment(member.environment())
    copy.write_history(member.history())
    copy.write_looks(member.looks())
    copy.mark_finished()
