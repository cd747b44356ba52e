"""Evaluation: `predictions.csv` of a run, and `metrics.json` computed from it alone.

`evaluate` predicts each image once and writes the probabilities. Every figure is then
computed from that table by `metrics_from_predictions`, so that anyone can recompute it
with another tool; for weak slices, also from `facts.csv` beside it. Each look at the
test subset is logged in the run, and its figures choose no epoch, setting or threshold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tumorlens.data.picture_facts import PictureFacts, read_picture_facts
from tumorlens.evaluation.inference import (
    judge_subset,
    pool_folds,
    predict_subset,
)
from tumorlens.evaluation.predictions import Predictions, write_predictions
from tumorlens.evaluation.slices import measure_slices, write_facts
from tumorlens.evaluation.subsets import check_subset, read_data
from tumorlens.evaluation.table_measures import metrics_from_predictions
from tumorlens.evaluation.trust_measures import (
    JudgedSubset,
    measure_trust,
    pool_judged,
    write_answers,
)
from tumorlens.files import write_model
from tumorlens.runs.measures import Metrics, NetworkSettings
from tumorlens.runs.trust import trust_of_run
from tumorlens.training.dataset import image_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Progress


def evaluate(
    run: Run,
    *,
    subset: str = "test",
    data: Path | Sequence[Path] | None = None,
    device: str = "auto",
    command: str = "",
    progress: Progress | None = None,
) -> Metrics:
    """Predict every image of a subset; write predictions and metrics.

    Each fold of a k-fold run is evaluated as a run of its own, and the test images are
    pooled: each is predicted by the network that was not trained on it.

    Args:
        run: A finished run; an unfinished one has `val` only.
        subset: `test` or `val`. A look at `test` is logged in the run.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
        device: As for the setting `train.device`.
        command: Command line of the user, for the log of looks.
        progress: Called with images done and images in all: for decoding, where images
            are not cached, then for inference, and for their facts.

    Returns:
        The content of `metrics.json`.

    Raises:
        ConfigError: The subset is unknown, or not one of a k-fold run.
        DataError: There is no data, or an image cannot be read any more. Images that
            were readable when the split was made are never skipped.
        RunError: The run is not finished, has no weights or no image in the subset, or
            the data has changed.
    """
    check_subset(run, subset)
    run.remove_partial_files()
    index = read_data(run, data)
    trust = trust_of_run(run)

    def looked(table: Predictions, judged: JudgedSubset | None) -> _Looked:
        files = [index.file_at(path) for path in table.paths]
        facts = read_picture_facts(
            files, limits=image_limits(run.config.data), progress=progress
        )
        return _Looked(table, judged, dict(zip(table.paths, facts, strict=True)))

    def look(part: Run) -> _Looked:
        if trust is None:
            table = predict_subset(
                part, index, subset, device=device, progress=progress
            )
            return looked(table, None)
        # Each fold by its own trust, which another fold's images did not help to fit.
        own = trust_of_run(part)
        assert own is not None
        return looked(
            *judge_subset(part, index, subset, own, device=device, progress=progress)
        )

    if not run.is_kfold:
        return _write_results(run, look(run), subset, command=command)

    parts = []
    for fold in run.folds():
        parts.append(look(fold))
        _write_results(fold, parts[-1], subset, command=command)
    judged = [part.judged for part in parts if part.judged]
    pooled = _Looked(
        pool_folds([part.table for part in parts]),
        pool_judged(judged) if judged else None,
        {path: fact for part in parts for path, fact in part.facts.items()},
    )
    return _write_results(run, pooled, subset, command=command)


class _Looked(NamedTuple):
    """Predictions of a subset, and what a calibrated run answers."""

    table: Predictions
    judged: JudgedSubset | None
    facts: Mapping[str, PictureFacts]
    """By path."""


def _write_results(run: Run, looked: _Looked, subset: str, *, command: str) -> Metrics:
    leak = run.leak()
    if subset == "test":
        # Logged before the figures exist: none can be seen without an entry.
        run.log_look(subset=subset, command=command)
    path, answers = run.predictions_of(subset), run.answers_of(subset)
    write_predictions(path, looked.table)
    if looked.judged is None:
        answers.unlink(missing_ok=True)
    else:
        write_answers(answers, looked.judged)
    facts = [looked.facts[image] for image in looked.table.paths]
    write_facts(run.facts_of(subset), looked.table.paths, facts)
    content = Metrics(
        protocol=run.config.data.protocol,
        subset=subset,
        leak=leak,
        settings=_settings(run),
        trust=measure_trust(looked.table, looked.judged) if looked.judged else None,
        slices=measure_slices(looked.table, facts),
        **dict(metrics_from_predictions(path)),
    )
    write_model(run.metrics_of(subset), content)
    return content


def _settings(run: Run) -> NetworkSettings:
    """Return the settings that the networks share; `None` where members differ."""
    cards = [one.card(check_weights=False) for one in run.networks()]
    return NetworkSettings(
        model=run.model_name if run.is_ensemble else cards[0].name,
        size_px=_common(card.size_px for card in cards),
        fit=_common(card.fit for card in cards),
        mirror=_common(card.mirror for card in cards),
        tta=_common(card.tta for card in cards),
        seed=run.config.train.seed,
    )


def _common(values: Iterable[Any]) -> Any:
    first, *others = values
    return first if all(other == first for other in others) else None
