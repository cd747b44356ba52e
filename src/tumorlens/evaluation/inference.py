"""Inference: the class probabilities of a run for every image of a subset.

An ordinary run has one network; the probabilities of an ensemble are the mean over its
members. Members may differ in size and preprocessing, so each decodes for itself. The
subset is always that of the ensemble's own split, never that of a member's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.index import read_index
from tumorlens.data.sets import sets_of
from tumorlens.errors import ConfigError, DataError, RunError, did_you_mean
from tumorlens.evaluation.features import load_networks, pass_over
from tumorlens.evaluation.predictions import Predictions, pool_predictions, round_probs
from tumorlens.evaluation.trust_measures import JudgedSubset
from tumorlens.training.dataset import (
    PreparedData,
    check_unchanged,
    image_limits,
    load_subset,
)
from tumorlens.training.devices import resolve_device
from tumorlens.training.loading import Decoding, plain_batches
from tumorlens.training.network import load_model, predict_probs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from tumorlens.data.index import Index, SplitRow
    from tumorlens.runs.folder import ModelCard, Run, Tta
    from tumorlens.runs.progress import Progress
    from tumorlens.runs.trust import TrustedAnswers

SUBSETS = ("test", "val")

_BATCH_SIZE = 32


def check_subset(run: Run, subset: str) -> None:
    """Make sure that a run can be evaluated on a subset.

    Raises:
        ConfigError: The subset is unknown, or not one of a k-fold run.
        RunError: It is test, and the run is not finished.
    """
    if subset not in SUBSETS:
        raise ConfigError(
            f"unknown subset {subset!r}", hint=did_you_mean(subset, SUBSETS)
        )
    if subset == "test" and not run.is_finished:
        raise RunError(
            f"the training of {run.path} is not finished, and the test subset is for "
            "the end",
            hint=f"finish it with: tumorlens train --resume --out {run.path}",
        )
    if run.is_kfold and subset != "test":
        raise ConfigError(
            f"a run with folds has no subset {subset!r} of its own: every image is in "
            "that subset of several folds",
            hint=f"evaluate one fold: tumorlens evaluate {run.fold_path(0)} --subset "
            f"{subset}",
        )


def read_data(run: Run, data: Path | Sequence[Path] | None) -> Index:
    """Return the index of a run's images.

    Args:
        run: The run; its `data.path` is used where `data` is `None`.
        data: Folder of the images, or of each set in the order of `data.path`.

    Raises:
        ConfigError: A folder is named twice.
        DataError: There is no folder with images, none is named, or more or fewer than
            the run has sets.
    """
    config = run.config.data
    sets = sets_of(config, data)
    if sets is None:
        raise DataError(
            f"{run.path} does not name the folder of its images", hint="give --data"
        )
    gone = [place for place in sets.places if not place.exists()]
    if data is None and gone:
        raise DataError(
            f"the images of {run.path} are not in {gone[0]} any more",
            hint="name the folder where they are now: --data DATA"
            + (" for each set" if sets.names else ""),
        )
    return read_index(sets, metadata=config.metadata)


def predict_subset(
    run: Run,
    index: Index,
    subset: str,
    *,
    device: str = "auto",
    tta: Tta | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Return the class probabilities of a run for every image of a subset.

    Args:
        run: The run. Each fold of a k-fold run predicts its own test images, and the
            results are pooled.
        index: The files, from `read_data`.
        subset: See `check_subset`.
        device: As for the setting `train.device`.
        tta: The views to average over; `None` takes those of each network's card.
        progress: Called with images done and images in all: for each network once for
            decoding, where images are not cached, then for inference.

    Raises:
        DataError: An image cannot be read any more.
        RunError: No image is in the subset, a network has no weights or other classes,
            or the data has changed.
    """
    if run.is_kfold:
        return pool_folds(
            [
                predict_subset(
                    fold, index, subset, device=device, tta=tta, progress=progress
                )
                for fold in run.folds()
            ]
        )
    data, rows = _rows_of(run, index, subset)
    members = [(one, check_classes(one, index)) for one in run.networks()]
    probs = [
        _probs(
            one,
            card if tta is None else card.model_copy(update={"tta": tta}),
            data,
            subset,
            device=device,
            progress=progress,
        )
        for one, card in members
    ]
    return _table(index, rows, np.mean(probs, axis=0))


def judge_subset(
    run: Run,
    index: Index,
    subset: str,
    trusted: TrustedAnswers,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Predictions, JudgedSubset]:
    """Return the predictions of a calibrated run, and what it answers.

    Args:
        run: An ordinary run or an ensemble; of a k-fold run, one fold.
        index: The files, from `read_data`.
        subset: See `check_subset`.
        trusted: The trust of the run.
        device: As for the setting `train.device`.
        progress: As for `predict_subset`.

    Raises:
        DataError: An image cannot be read any more.
        RunError: As for `predict_subset`.
    """
    data, rows = _rows_of(run, index, subset)
    networks = load_networks(
        [(one, check_classes(one, index)) for one in run.networks()], device
    )
    found = pass_over(networks, data, subset, progress=progress)
    table = _table(index, rows, found.probs)
    judged = trusted.judge(table.probs, found.embedding, found.facts)
    return table, JudgedSubset(trusted.trust, table.paths, judged)


def _rows_of(
    run: Run, index: Index, subset: str
) -> tuple[PreparedData, list[SplitRow]]:
    data = PreparedData(index, run.split())
    check_unchanged(data.rows, index)
    rows = data.subset_rows(subset)
    if not rows:
        raise RunError(
            f"{run.path} has no image in subset {subset!r}",
            hint=f"{run.split_path} lists the subset of each image",
        )
    return data, rows


def _table(
    index: Index, rows: Sequence[SplitRow], probs: NDArray[np.floating]
) -> Predictions:
    sources = {record.path: record.source or "" for record in index.records}
    numbers = {label: number for number, label in enumerate(index.classes)}
    return Predictions(
        classes=index.classes,
        paths=tuple(row.path for row in rows),
        labels=np.array([numbers[row.label] for row in rows], dtype=np.int64),
        probs=round_probs(probs),
        groups=tuple(row.group for row in rows),
        sources=tuple(sources[row.path] for row in rows),
        folds=(None,) * len(rows),
    )


def pool_folds(parts: Sequence[Predictions]) -> Predictions:
    """Return the tables of folds 0, 1, ... as one, with the fold of each row."""
    return pool_predictions(
        [
            replace(part, folds=(fold,) * len(part.paths))
            for fold, part in enumerate(parts)
        ]
    )


def check_classes(run: Run, index: Index) -> ModelCard:
    """Return the card of a network whose classes are those of the data.

    Raises:
        RunError: The classes differ.
    """
    card = run.card()
    if card.classes != index.classes:
        raise RunError(
            f"the network of {run.path} has the classes {', '.join(card.classes)}, the "
            f"data has {', '.join(index.classes)}",
            hint="give the data that the run was made with",
        )
    return card


def _probs(
    run: Run,
    card: ModelCard,
    data: PreparedData,
    subset: str,
    *,
    device: str,
    progress: Progress | None,
) -> NDArray[np.float64]:
    """Return the probabilities of one network, shape (N, C)."""
    images = load_subset(
        data,
        subset,
        decoding=Decoding(
            size_px=card.size_px,
            fit=card.fit,
            in_chans=card.in_chans,
            limits=image_limits(run.config.data),
        ),
        config=run.config.data,
        progress=progress,
    )
    batches = plain_batches(
        images.plain(), batch_size=_BATCH_SIZE, workers=run.config.train.workers
    )
    torch_device = resolve_device(device)
    return predict_probs(
        load_model(card, run.weights_path).to(torch_device),
        _counted(batches, len(images.labels), progress),
        card,
        torch_device,
    )


def _counted(
    batches: Iterable[Tensor], total: int, progress: Progress | None
) -> Iterator[Tensor]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        if progress is not None:
            progress(done, total)
