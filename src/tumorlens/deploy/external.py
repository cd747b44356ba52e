"""A model on another set: `evaluate MODEL --on DATA`.

The model is a run or an artefact; for an artefact nothing here imports torch. Which
images its training has seen is looked up in the model's `seen.npz`, without the
training images.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.data.index import read_index
from tumorlens.data.seen import read_seen
from tumorlens.deploy.artefact import SEEN, is_artefact
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.external import (
    Evaluated,
    check_new,
    check_several,
    evaluation_name,
    external_metrics,
    find_seen,
    map_classes,
    read_external,
    table_of,
)
from tumorlens.evaluation.external_files import check_place, write_external
from tumorlens.evaluation.predictions import round_probs
from tumorlens.files import locked
from tumorlens.runs.folder import open_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tumorlens.data.index import Record
    from tumorlens.data.seen import Seen
    from tumorlens.deploy.predictor import Progress
    from tumorlens.evaluation.external import ClassMap, ExternalSet
    from tumorlens.evaluation.predictions import Predictions
    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Stage


def evaluate_on(
    model: Path,
    data: Path,
    *,
    name: str | None = None,
    mapping: Sequence[str] = (),
    metadata: str | None = None,
    out: Path | None = None,
    device: str = "auto",
    command: str = "",
    stage: Stage = lambda _words: nullcontext(None),
) -> Evaluated:
    """Measure a model on another set, with and without the images it was trained on.

    Writes `predictions.csv`, `images.csv` (what became of each file) and
    `external.json`. A look is logged in the run.

    Args:
        model: Folder of a run or an artefact.
        data: Labelled folder or table.
        name: Name of the evaluation. Default: that of the data.
        mapping: See `map_classes`.
        metadata: As for `index.read_index`.
        out: Folder to write to. Default: external/NAME in the run.
        device: As for the setting `train.device`.
        command: Command line of the user, for the log of looks.
        stage: Shows the progress.

    Raises:
        ArtefactError: The artefact was changed, or its runtime does not take it.
        ConfigError: The name or the mapping is wrong, a single class is left, or an
            artefact has no `out`.
        DataError: The data cannot be used, nothing in it is new, or the folder is
            somebody's or cannot be written.
        RunError: The run is not finished, or lacks `seen.npz`, or another process
            works in the folder.
    """
    run = None if is_artefact(model) else open_run(model)
    name = evaluation_name(name, data)
    if out is None:
        if run is None:
            raise ConfigError(
                f"{model} is an artefact, in which nothing is written",
                hint="name a folder for the results: --out FOLDER",
            )
        out = run.external_path(name)
    seen = _seen_by(model, run)
    predictor = Predictor.open(model, device=device)
    with stage("reading") as progress:
        index = read_index(data, metadata=metadata)
        classes = map_classes(predictor.classes, index.classes, mapping)
        check_several(classes)
        check_place(out, images=[data], model=predictor.name, data_sha256=index.digest)
        found = read_external(data, index, limits=predictor.limits, progress=progress)
    seen_images = None if seen is None else find_seen(found, seen)
    records = _records_of(found, classes)
    own = _on_own_images(run, found)
    check_new(
        found,
        [record.path for record in records],
        seen_images,
        hint=f"these are its own images; its test subset is measured by: tumorlens "
        f"evaluate {model}"
        if own
        else "evaluate it on a set that training has not seen",
    )
    with locked(out):
        if run is not None:
            # Logged before the figures exist: none can be seen without an entry.
            run.log_look(subset=f"external {name}", command=command)
        with stage("predicting") as progress:
            table = _predict(predictor, found, records, classes, progress)
        metrics = external_metrics(
            table,
            found,
            seen_images,
            classes,
            name=name,
            model=predictor.name,
            model_sha256=predictor.digest,
            notes=own,
        )
        write_external(out, metrics, table, found, seen_images)
    return Evaluated(metrics, out)


def _records_of(found: ExternalSet, classes: ClassMap) -> list[Record]:
    """Return the images whose class the model knows.

    Raises:
        DataError: There is none.
    """
    records = [one for one in found.records if one.label in classes.classes]
    if not records:
        raise DataError(
            f"no image of {found.data} is of a class of the model",
            hint="map the classes: --map FROM=TO",
        )
    return records


def _predict(
    predictor: Predictor,
    found: ExternalSet,
    records: Sequence[Record],
    classes: ClassMap,
    progress: Progress | None,
) -> Predictions:
    """Return the answers to some images.

    Raises:
        DataError: One cannot be read any more.
    """
    files = [found.index.file_of(record) for record in records]
    probs = []
    for answer in predictor.predict_files(files, progress=progress):
        if answer.probs is None:
            raise DataError(
                f"cannot read {answer.path} any more: {answer.error}",
                hint="leave the images alone while they are evaluated",
            )
        probs.append(answer.probs)
    answered = round_probs(classes.probs_of(np.array(probs)))
    return table_of(found, records, answered, classes)


def _seen_by(model: Path, run: Run | None) -> list[Seen] | None:
    """Return what the training of a model has seen; `None` where that is not known.

    Raises:
        DataError: The file is damaged.
        RunError: A run that was trained here lacks it.
    """
    if run is None:
        folder = model.parent if model.is_file() else model
        path = folder / SEEN
        return [read_seen(path)] if path.is_file() else None
    if run.seen_path.is_file():
        return [read_seen(run.seen_path)]
    parts = run.networks()
    if len(parts) > 1 and all(one.seen_path.is_file() for one in parts):
        return [read_seen(one.seen_path) for one in parts]
    if run.is_ensemble or not run.leak().is_known:
        return None
    raise RunError(
        f"{run.path} does not tell what its training has seen: it has no "
        f"{run.seen_path.name}",
        hint="an earlier version made the run; make the file from its own images: "
        f"tumorlens train --resume --out {run.path}",
    )


def _on_own_images(run: Run | None, found: ExternalSet) -> list[str]:
    if run is None or not run.split_path.is_file():
        return []
    own = {row.sha256 for row in run.split()}
    num_own = sum(record.sha256 in own for record in found.index.records)
    if num_own < len(found.index.records):
        return []
    words = (
        "All these files are of the set that the model was made with: tumorlens "
        "evaluate without --on measures it on its own test subset."
    )
    return [words]
