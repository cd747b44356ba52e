"""Several finished runs become one: a soft vote, in a run folder of its own.

An ensemble answers with the mean of its members' probabilities. Its folder holds copies
of the members, so it can be moved and used without them; `predict`, `evaluate` and
`report` take it as any other run.

What the newcomer would get wrong: members must have been tested on the same images.
Then nothing that any of them has learnt from is in the test subset of the ensemble. Of
members with other splits one would know the answers to another's test.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.split import LEFT_OUT
from tumorlens.errors import ConfigError, RunError
from tumorlens.runs.folder import Run, create_run, open_run
from tumorlens.system import describe_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.data.index import SplitRow
    from tumorlens.data.leakage import LeakVerdict
    from tumorlens.runs.folder import Tta


def make_ensemble(
    paths: Sequence[Path], *, out: Path, tta: Tta = "none", command: str = ""
) -> Run:
    """Write a run folder that averages the answers of several runs.

    Members may be different networks of different sizes. They must have the same
    classes, the same protocol and the same images in test, so that no image from which
    any of them has learnt is in the ensemble's test. An image on which one chose its
    epoch and from which another has learnt is not in val: it says nothing about the
    ensemble. Runs with folds are joined fold by fold.

    Args:
        paths: Finished run folders; two at least, or one with `tta`.
        out: The run folder to make.
        tta: The views over which every member averages its answers.
        command: What the user typed, for the record.

    Returns:
        The ensemble: finished, not evaluated.

    Raises:
        ConfigError: Too few runs, or one of them twice.
        RunError: `out` exists, or the members do not fit together: another protocol,
            other classes, data or test images. Or one of them is not finished, is an
            ensemble itself, or has weights that are not those of its card.
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

    # Made under another name: a folder that exists is complete.
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    names = [member.name for member in members]
    try:
        run = _make(members, unfinished, names=names, tta=tta, command=command)
        for fold, parts in enumerate(zip(*(m.folds() for m in members), strict=True)):
            _make(parts, run.fold_path(fold), names=names, tta=tta, command=command)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return open_run(out)


def _open_members(paths: Sequence[Path], tta: Tta) -> list[Run]:
    """Return the runs, which are finished, ordinary or with folds, and all different.

    Raises:
        ConfigError: There are too few, or one is named twice.
        RunError: One is not finished, or an ensemble itself.
    """
    if len(paths) < 2 and tta == "none":
        raise ConfigError(
            f"expected at least two runs, got {len(paths)}",
            hint="name more runs, or give --tta, with which one is enough",
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
    """Make sure that two runs were made for the same kind of split.

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
    """Make sure that two networks give the same classes in the same order.

    Raises:
        RunError: They do not.
    """
    mine, theirs = (run.card(check_weights=False).classes for run in (first, other))
    if mine != theirs:
        raise RunError(
            f"{first.path} knows the classes {', '.join(mine)}; {other.path} knows "
            f"{', '.join(theirs)}",
            hint="an ensemble needs members of the same classes in the same order",
        )


def _check_split(first: Run, other: Run) -> None:
    """Make sure that two runs have the same images, and the same of them in test.

    Raises:
        RunError: They do not; the first image that differs is named.
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
            hint="what one was tested on, the other may have learnt from; train them "
            f"with the same split: --set data.split={first.split_path}",
        )


def _make(
    members: Sequence[Run], path: Path, *, names: Sequence[str], tta: Tta, command: str
) -> Run:
    """Write the folder of an ensemble: with copies, or for folds that come later."""
    first = members[0]
    model = first.config.model.model_copy(update={"name": _model_words(members, tta)})
    run = create_run(path, first.config.model_copy(update={"model": model}))
    run.write_environment(
        describe_environment(command=command, seed=first.config.train.seed)
    )
    run.write_leak(_worst_leak(members))
    run.write_looks(
        sorted(
            (look for member in members for look in member.looks()),
            key=lambda look: str(look.get("time")),
        )
    )
    run.write_ensemble(names)
    if first.is_kfold:
        run.write_split(first.split())
        return run
    run.write_split(_joined_split(members))
    for number, member in enumerate(members):
        _copy(member, run.member_path(number), tta=tta)
    run.mark_finished()
    return run


def _model_words(members: Sequence[Run], tta: Tta) -> str:
    """Return what stands in place of a network's name.

    Example: "2 x resnet18 + resnet50, eight-views".
    """
    counts = Counter(member.config.model.name for member in members)
    words = " + ".join(
        name if count == 1 else f"{count} x {name}" for name, count in counts.items()
    )
    return words if tta == "none" else f"{words}, {tta}"


def _worst_leak(members: Sequence[Run]) -> LeakVerdict:
    """Return the verdict with most test images that a member had seen.

    All are equal where train and val together hold the same images, as they do unless
    a split was made by hand.
    """
    return max(
        (member.leak() for member in members),
        key=lambda verdict: (
            verdict.leaks,
            verdict.num_copied,
            verdict.num_test_patient_in_train,
        ),
    )


def _joined_split(members: Sequence[Run]) -> list[SplitRow]:
    """Return the rows of the first, each in the subset that holds for all members."""
    subsets: dict[str, set[str]] = {}
    for member in members:
        for row in member.split():
            subsets.setdefault(row.path, set()).add(row.subset)
    return [
        replace(row, subset=_joined(subsets[row.path])) for row in members[0].split()
    ]


def _joined(subsets: set[str]) -> str:
    """Return the subset of an image that members have in these subsets.

    Test is the same for all. Val is what no member has learnt from.
    """
    if len(subsets) == 1:
        return next(iter(subsets))
    return "train" if "train" in subsets else LEFT_OUT


def _copy(member: Run, path: Path, *, tta: Tta) -> None:
    """Copy what is needed to use an ordinary run, and to explain it."""
    card = member.card().model_copy(update={"tta": tta})
    copy = create_run(path, member.config)
    copy.write_weights(member.weights_path.read_bytes(), card)
    # The copy is what will be used: its digest counts.
    copy.card()
    copy.write_split(member.split())
    copy.write_leak(member.leak())
    copy.write_environment(member.environment())
    copy.write_history(member.history())
    copy.write_looks(member.looks())
    copy.mark_finished()
