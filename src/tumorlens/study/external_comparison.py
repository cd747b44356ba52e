"""Models on one external set side by side, paired: `external-comparison.json`.

Not a comparison of arms (`tumorlens.study.compare`): an evaluation on another set has
no protocol, no split with a leak verdict and, if it is of an artefact or of another
framework's answers, no settings, seeds or network to time. What it has instead is which
images each training has seen. Two models are compared on the images that are new to
both.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import sparse
from scipy.sparse import csgraph

from tumorlens.errors import ConfigError, RunError
from tumorlens.evaluation.external_files import Evaluation, read_evaluation
from tumorlens.files import Count
from tumorlens.runs.estimate import Share, estimate_of_score
from tumorlens.runs.external import FILE
from tumorlens.runs.folder import open_run
from tumorlens.stats.estimates import note_on_few_groups
from tumorlens.stats.intervals import share
from tumorlens.study.pairs import (
    JudgedPair,
    difference_of,
    images_of,
    judged,
    sentences_on,
)
from tumorlens.system import without_user
from tumorlens.text import NOT_DEFINED, counted, p_value, points

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.estimate import Estimate

COMPARISON = "external-comparison.json"
"""Name of the file with a comparison."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class ExternalPair(JudgedPair):
    """Two models on the images that are new to both."""

    first_accuracy: Share
    second_accuracy: Share


class ComparedModel(_Content):
    """A model and its answers to the set."""

    name: str
    model_sha256: str
    """As in `external.json`."""
    num_images: Count
    """Images that it was tested on."""
    num_new: Count
    """Those that its training has not seen; 0 where that is not known."""
    is_seen_known: bool
    """If not, any image may have been in its training, and all are compared."""


class ExternalComparison(_Content):
    """The content of `external-comparison.json`."""

    format: Literal[1] = 1
    name: str
    """Name of the first evaluation."""
    data: str
    """Name of the folder or table of the images."""
    data_sha256: str
    models: tuple[ComparedModel, ...]
    pairs: tuple[ExternalPair, ...]
    """Those that share an image that is new to both."""
    summary: tuple[str, ...]
    """What the comparison means, in sentences."""

    @property
    def table_rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The heading of a table of the pairs, and a row for each."""
        heading = (
            *("first", "second", "images", "accuracy of first", "of second"),
            *("difference, points", "p, Holm", "verdict"),
        )
        return heading, [
            (
                pair.first,
                pair.second,
                f"{pair.num_images:,}",
                pair.first_accuracy.percentage,
                pair.second_accuracy.percentage,
                _points(pair.difference),
                p_value(pair.p_holm),
                pair.verdict,
            )
            for pair in self.pairs
        ]


@dataclass(frozen=True)
class _Model:
    name: str
    evaluation: Evaluation

    @property
    def new(self) -> Predictions:
        """The answers to images that are new to its training, as far as is known."""
        return self.evaluation.rows({"new", "not-known"})


def compare_external(
    paths: Sequence[Path], *, on: str | None = None
) -> ExternalComparison:
    """Compare models on one external set, on the images that are new to both of a pair.

    Args:
        paths: Runs, or folders with an `external.json`.
        on: Name of the evaluation in the runs.

    Raises:
        ConfigError: Fewer than two paths are given, one twice, or a run without `on`.
        DataError: A table of the evaluations is missing or damaged.
        RunError: A run has no evaluation of this name, a file is damaged, or the
            evaluations are of different images or patients. The folder or table by
            which the images were named may differ.
    """
    folders = [_folder(path, on) for path in paths]
    counts = Counter(folder.resolve() for folder in folders)
    twice = [folder for folder, number in counts.items() if number > 1]
    if twice:
        raise ConfigError(f"{twice[0]} was given twice", hint="name each model once")
    if len(paths) < 2:
        raise ConfigError(
            "there is nothing to compare" + "".join(f" {path} with" for path in paths),
            hint="give two runs or more, or folders with an external.json",
        )
    evaluations = [read_evaluation(folder) for folder in folders]
    names = [one.metrics.model for one in evaluations]
    if len(set(names)) < len(names):
        names = [without_user(str(path)) for path in paths]
    models = [_Model(*pair) for pair in zip(names, evaluations, strict=True)]
    notes: list[str] = []
    if _have_one_place(models):
        _check_groups(models)
    else:
        models, notes = _by_content(models)
    family = [
        {"first": first.name, "second": second.name} | found
        for first, second in itertools.combinations(models, 2)
        if (found := _compared(first.new, second.new))
    ]
    pairs = [ExternalPair(**pair) for pair in judged(family)]
    metrics = evaluations[0].metrics
    return ExternalComparison(
        name=metrics.name,
        data=metrics.data,
        data_sha256=metrics.data_sha256,
        models=tuple(
            ComparedModel(
                name=model.name,
                model_sha256=model.evaluation.metrics.model_sha256,
                num_images=model.evaluation.metrics.counts.tested,
                num_new=model.evaluation.metrics.counts.new,
                is_seen_known=model.evaluation.metrics.is_seen_known,
            )
            for model in models
        ),
        pairs=tuple(pairs),
        summary=(*notes, *_sentences(models, pairs)),
    )


def _folder(path: Path, on: str | None) -> Path:
    """Return the folder of the evaluation that a path stands for.

    Raises:
        ConfigError: It is a run, and the evaluation has no name.
        RunError: It is neither a run nor an evaluation, or the run has none of the
            name.
    """
    if (path / FILE).is_file():
        return path
    run = open_run(path)
    names = [one.parent.name for one in run.path.glob(f"external/*/{FILE}")]
    if on is None:
        raise ConfigError(
            f"{path} is a run, and others are evaluations on another set",
            hint="name the evaluation of the runs: --on NAME",
        )
    if on not in names:
        make = f"tumorlens evaluate {path} --on DATA --name {on}"
        raise RunError(
            f"{path} has no evaluation {on!r}",
            hint=f"it has {', '.join(sorted(names))}; make it with: {make}"
            if names
            else f"make it with: {make}",
        )
    return run.external_path(on)


def _have_one_place(models: Sequence[_Model]) -> bool:
    """Whether the paths of all evaluations are of one folder or table.

    Raises:
        RunError: Two evaluations are of different images.
    """
    first, *others = models
    of_first = first.evaluation.metrics
    is_one = True
    for other in others:
        metrics = other.evaluation.metrics
        if metrics.data_sha256 == of_first.data_sha256:
            continue
        is_one = False
        if None is metrics.images_sha256 or (
            metrics.images_sha256 != of_first.images_sha256
        ):
            raise RunError(
                f"{other.name} was evaluated on {metrics.data}, and its images are not "
                f"those of {of_first.data} that {first.name} was evaluated on",
                hint="evaluate both on the same images, and compare again; of a set "
                "with Training and Testing, --predictions tests the latter alone",
            )
    return is_one


def _check_groups(models: Sequence[_Model]) -> None:
    """Refuse evaluations with different groups of the same images.

    Raises:
        RunError: Two have them.
    """
    first, *others = models
    of_first = first.evaluation.table
    groups = dict(zip(of_first.paths, of_first.groups, strict=True))
    for other in others:
        table = other.evaluation.table
        for path, group in zip(table.paths, table.groups, strict=True):
            if groups.get(path, group) != group:
                raise RunError(
                    f"{path} is in another group in the evaluation of {other.name} "
                    f"than in that of {first.name}",
                    hint="evaluate both with the same --metadata, and compare again",
                )


def _by_content(models: Sequence[_Model]) -> tuple[list[_Model], list[str]]:
    """Return models whose images are named by their content, in the same groups.

    What one evaluation holds together stays together: two test images may be of one
    group only by the training images beside them.

    Returns:
        The models, and a sentence if their groups differ.

    Raises:
        RunError: `images.csv` of an evaluation lacks the digest of an image.
    """
    for model in models:
        if not all(model.evaluation.contents):
            raise RunError(
                f"images.csv of {model.name} has no sha256 of a tested image",
                hint="evaluate the model on the set again",
            )
    nodes: dict[object, int] = {}
    edges = [
        (nodes.setdefault(image, len(nodes)), nodes.setdefault(group, len(nodes)))
        for number, model in enumerate(models)
        for image, group in zip(
            model.evaluation.contents,
            ((number, name) for name in model.evaluation.table.groups),
            strict=True,
        )
    ]
    ones, others = np.array(edges).T
    graph = sparse.coo_array(
        (np.ones(len(edges)), (ones, others)), (len(nodes), len(nodes))
    )
    _, group_of = csgraph.connected_components(graph, directed=False)
    named, do_differ = [], False
    for model in models:
        found = model.evaluation
        groups = [str(group_of[nodes[image]]) for image in found.contents]
        num_joined, num_own = len(set(groups)), len(set(found.table.groups))
        do_differ |= num_joined < num_own
        table = replace(found.table, paths=tuple(found.contents), groups=tuple(groups))
        named.append(_Model(model.name, replace(found, table=table)))
    words = (
        "The evaluations group these images differently: what any of them holds "
        "together stays together here."
    )
    return named, [words] * do_differ


def _compared(first: Predictions, second: Predictions) -> dict[str, object] | None:
    """Return what a pair shows on the images of both; `None` if they share none."""
    shared = set(first.paths) & set(second.paths)
    first, second = (
        table.rows([row for row, path in enumerate(table.paths) if path in shared])
        for table in (first, second)
    )
    found = difference_of({0: first}, {0: second})
    return found and {
        **found,
        "first_accuracy": _accuracy(first),
        "second_accuracy": _accuracy(second),
    }


def _accuracy(table: Predictions) -> Estimate:
    _, groups = np.unique(np.array(table.groups), return_inverse=True)
    return estimate_of_score(share(table.predicted == table.labels, groups))


def _sentences(models: Sequence[_Model], pairs: Sequence[ExternalPair]) -> list[str]:
    data = models[0].evaluation.metrics.data
    sentences = [
        f"What {model.name} was trained on is not known: any image may have been in "
        "its training, and the comparison may favour it."
        for model in models
        if not model.evaluation.metrics.is_seen_known
    ]
    tested = {len(model.evaluation.table.paths) for model in models}
    if len(tested) > 1:
        sentences.append("The models did not answer the same images.")
    if pairs:
        are_known = all(one.evaluation.metrics.is_seen_known for one in models)
        which = "are new to both" if are_known else "neither is known to have seen"
        sentences.append(
            f"Differences of accuracy on {data}, {images_of(pairs)} that {which}:"
        )
    sentences += sentences_on(pairs)
    num_missing = len(models) * (len(models) - 1) // 2 - len(pairs)
    if num_missing:
        sentences.append(
            f"No image is new to both models of {counted(num_missing, 'pair')}, which "
            f"{'was' if num_missing == 1 else 'were'} not compared."
        )
    groups = [pair.difference.num_units or 0 for pair in pairs]
    if groups and (note := note_on_few_groups(min(groups), ["accuracy"])):
        sentences.append(note)
    return sentences


def _points(difference: Estimate) -> str:
    low, high = difference.low, difference.high
    if difference.value is None:
        return NOT_DEFINED
    bounds = "" if low is None else f" ({points(low)} to {points(high)})"
    return points(difference.value) + bounds
