"""`tumorlens stress`: a run, or an artefact of it, on worse images of its own subset.

Each image is decoded once and corrupted in threads while the model answers earlier
ones; nothing of it is kept but classes and probabilities, so memory does not grow with
the number of images. For an artefact nothing here imports torch.
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tumorlens.data.corruptions import bounded, corrupt
from tumorlens.data.decoding import work_ahead
from tumorlens.data.images import read_image
from tumorlens.deploy.artefact import open_artefact
from tumorlens.deploy.predictor import BATCH_SIZE, Predictor
from tumorlens.errors import ConfigError, RunError
from tumorlens.evaluation.predictions import round_probs
from tumorlens.evaluation.stress import (
    VARIANTS,
    StressAnswers,
    StressedTrust,
    stress_figures,
)
from tumorlens.evaluation.subsets import (
    check_classes,
    check_subset,
    read_data,
    rows_of_subset,
)
from tumorlens.files import write_model
from tumorlens.runs.trust import NO_BRAIN_MRI, UNCERTAIN
from tumorlens.system import num_processors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.data.index import Index, SplitRow
    from tumorlens.deploy.artefact import Artefact
    from tumorlens.evaluation.stress import Variant
    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Stage
    from tumorlens.runs.stress import Stress
    from tumorlens.runs.trust import Judged


class Stressed(NamedTuple):
    """What a stress test has found, and the file that holds it."""

    found: Stress
    path: Path


class _Batch(NamedTuple):
    """Answers to B images, each variant an image."""

    predicted: NDArray[np.int16]
    confidence: NDArray[np.float32]
    is_answered: NDArray[np.bool_] | None
    """`None` for a model that is not calibrated."""
    is_turned_away: NDArray[np.bool_] | None
    """`None` without a gate."""


def stress(
    run: Run,
    *,
    subset: str = "test",
    model: Path | None = None,
    data: Path | Sequence[Path] | None = None,
    device: str = "auto",
    command: str = "",
    stage: Stage = lambda _words: nullcontext(None),
) -> Stressed:
    """Measure a run on worse images, and write `stress.json`.

    Args:
        run: A finished run; an unfinished one has `val` only. Each fold of a k-fold run
            answers its own test images.
        subset: `test` or `val`. A look at `test` is logged in the run.
        model: An artefact of the run, to be measured in its place.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
        device: As for the setting `train.device`; artefacts run on the CPU.
        command: Command line of the user, for the log of looks.
        stage: Shows the progress.

    Raises:
        ArtefactError: The artefact was changed, or its runtime does not take it.
        ConfigError: The subset is unknown, or not one of a k-fold run; the device is
            not there; an artefact is named for a k-fold run.
        DataError: There is no data, or an image cannot be read any more.
        RunError: The run is not finished, has no weights or no image in the subset, or
            the data has changed; the artefact is of another run.
    """
    check_subset(run, subset)
    artefact = None if model is None else _artefact_of(run, model)
    parts = run.folds() or (run,)
    with stage("reading"):
        index = read_data(run, data)
        rows_of = [rows_of_subset(one, one.split(), index, subset) for one in parts]
    done, total = 0, sum(map(len, rows_of)) * len(VARIANTS)
    digests, batches = [], []
    with stage("corrupting and predicting") as progress:
        for part, rows in zip(parts, rows_of, strict=True):
            predictor = Predictor.open(model or part.path, device=device)
            check_classes(part, predictor.classes, index)
            digests.append(predictor.digest)
            seed = run.config.train.seed
            for batch in _answers(predictor, rows, index, seed=seed):
                batches.append(batch)
                done += len(batch.predicted)
                if progress is not None:
                    progress(done // len(VARIANTS), total // len(VARIANTS))
    if subset == "test":
        # Logged before the figures exist: none can be seen without an entry.
        run.log_look(subset=subset, command=command)
    found = stress_figures(
        run,
        _pooled([row for rows in rows_of for row in rows], batches),
        classes=index.classes,
        subset=subset,
        model=run.name if artefact is None else predictor.name,
        model_sha256=digests,
    )
    path = run.stress_path(subset, kind=artefact.card.kind if artefact else "")
    run.remove_partial_files()
    write_model(path, found)
    return Stressed(found, path)


def _pooled(rows: Sequence[SplitRow], batches: Sequence[_Batch]) -> StressAnswers:
    """Return the answers of batches, which have all variants of one image in a row."""

    def whole(name: str) -> NDArray[Any]:
        parts = [getattr(one, name) for one in batches]
        return np.concatenate(parts).reshape(-1, len(VARIANTS)).T

    trust = None
    if all(one.is_answered is not None for one in batches):
        has_gate = all(one.is_turned_away is not None for one in batches)
        trust = StressedTrust(
            whole("is_answered"), whole("is_turned_away") if has_gate else None
        )
    return StressAnswers(rows, whole("predicted"), whole("confidence"), trust)


def _artefact_of(run: Run, model: Path) -> Artefact:
    """Return an artefact after checking that it was exported from a run.

    Raises what `open_artefact` and `Run.card` raise.

    Raises:
        ConfigError: The run has folds.
        RunError: The weights are not those of the run.
    """
    if run.is_kfold:
        raise ConfigError(
            f"{run.path} is a run with folds, and an artefact holds no more than one",
            hint=f"name the fold that it was exported from: tumorlens stress "
            f"{run.fold_path(0)} --model {model}",
        )
    artefact = open_artefact(model)
    weights = tuple(one.card().weights_sha256 for one in run.networks())
    if artefact.card.weights_sha256 != weights:
        raise RunError(
            f"{model} is no artefact of {run.path}: it holds other weights, from the "
            f"run {artefact.card.run!r}",
            hint=f"name one that was exported from it, as in {run.path / 'export'}",
        )
    return artefact


def _answers(
    predictor: Predictor, rows: Sequence[SplitRow], index: Index, *, seed: int
) -> Iterator[_Batch]:
    """Yield answers: those to all variants of an image, then those to the next's.

    Raises:
        DataError: An image cannot be read any more.
    """
    num_threads = num_processors()

    def read(row: SplitRow) -> NDArray[np.uint8]:
        return read_image(index.file_at(row.path), limits=predictor.limits)

    def change(task: tuple[SplitRow, NDArray[np.uint8], Variant]) -> NDArray[np.uint8]:
        row, image, variant = task
        if variant.corruption is None:
            return image
        return corrupt(
            bounded(image), variant.corruption, variant.level, seed=seed, path=row.path
        )

    images = work_ahead(rows, read, num_ahead=num_threads, num_threads=num_threads)
    with closing(images):
        tasks = (
            (row, image, variant)
            for row, image in zip(rows, images, strict=True)
            for variant in VARIANTS
        )
        changed = work_ahead(
            tasks, change, num_ahead=BATCH_SIZE, num_threads=num_threads
        )
        with closing(changed):
            while batch := list(islice(changed, BATCH_SIZE)):
                yield _batch_of(*predictor.judge(batch))


def _batch_of(probs: NDArray[np.float32], judged: Sequence[Judged | None]) -> _Batch:
    rounded = round_probs(probs)
    sure = [one for one in judged if one is not None]
    has_trust = len(sure) == len(judged)
    has_gate = has_trust and all(one.gate is not None for one in sure)
    return _Batch(
        predicted=rounded.argmax(axis=1).astype(np.int16),
        confidence=rounded.max(axis=1).astype(np.float32),
        is_answered=np.array(
            [one.answer not in (UNCERTAIN, NO_BRAIN_MRI) for one in sure]
        )
        if has_trust
        else None,
        is_turned_away=np.array([one.answer == NO_BRAIN_MRI for one in sure])
        if has_gate
        else None,
    )
