"""The effect of test-time augmentation on accuracy, as a paired comparison.

`measure_tta` predicts the same images twice, without and with the views of
`tumorlens.training.views`. The default is val, so that test chooses nothing. A
difference of a point on some hundred images is usually chance; the interval of the
difference shows that, not the intervals of the two accuracies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tumorlens.evaluation.inference import check_subset, predict_subset, read_data
from tumorlens.evaluation.predictions import write_predictions
from tumorlens.files import write_model
from tumorlens.runs.estimate import estimate_of_difference
from tumorlens.runs.measures import PairedDifference, TtaEffect
from tumorlens.stats.paired import paired_difference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tumorlens.runs.folder import Run, Tta
    from tumorlens.runs.progress import Progress
    from tumorlens.stats.paired import Difference

POLICY: Tta = "eight-views"
"""Policy of `--tta`; not a choice, because one of several is always best by luck."""

SIGNIFICANCE = 0.05


def measure_tta(
    run: Run,
    *,
    subset: str = "val",
    data: Path | Sequence[Path] | None = None,
    device: str = "auto",
    command: str = "",
    progress: Progress | None = None,
) -> TtaEffect:
    """Measure the effect of test-time augmentation, and write it to `tta/`.

    Args:
        run: The run; a k-fold run has no val and is measured on test.
        subset: `val`, `train` or `test`. A look at `test` is logged in the run.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
        device: As for the setting `train.device`.
        command: Command line of the user, for the log of looks.
        progress: As for `inference.predict_subset`.

    Returns:
        The content of `tta/<subset>.json`.

    Raises:
        ConfigError: The subset is unknown, or not one of a k-fold run.
        DataError: There is no data, or an image cannot be read any more.
        RunError: The run has no weights or no image in the subset, or is not finished
            and the subset is test, or the data has changed.
    """
    check_subset(run, subset)
    index = read_data(run, data)
    tables = {
        name: predict_subset(
            run, index, subset, device=device, tta=tta, progress=progress
        )
        for name, tta in _POLICIES.items()
    }
    if subset == "test":
        # Logged before the figures exist: none can be seen without an entry.
        run.log_look(subset=subset, command=command)
    for name, table in tables.items():
        write_predictions(run.tta_path(subset, views=name), table)
    without, with_views = (
        (table.predicted == table.labels).astype(np.float64)
        for table in tables.values()
    )
    names = np.array(tables["with"].groups, dtype=object)
    unique, groups = np.unique(names, return_inverse=True)
    difference = paired_difference(with_views, without, groups.astype(np.int64))
    is_noise = difference.p >= SIGNIFICANCE or _has_zero(difference)
    effect = TtaEffect(
        policy=POLICY,
        subset=subset,
        num_images=len(groups),
        num_groups=len(unique),
        without=float(without.mean()),
        with_views=float(with_views.mean()),
        difference=PairedDifference(
            **dict(estimate_of_difference(difference)), p=difference.p
        ),
        is_noise=is_noise,
        summary=_summary(difference, is_noise=is_noise),
    )
    write_model(run.tta_path(subset), effect)
    return effect


def has_val_images(run: Run) -> bool:
    """Return whether a run has val images, on which the effect can be measured."""
    return not run.is_kfold and any(row.subset == "val" for row in run.split())


_POLICIES: dict[str, Tta] = {"without": "none", "with": POLICY}


def _has_zero(difference: Difference) -> bool:
    low, high = difference.low, difference.high
    return low is None or high is None or low <= 0 <= high


def _summary(difference: Difference, *, is_noise: bool) -> str:
    value = f"{100 * difference.value:+.1f} points"
    if not difference.num_discordant_groups:
        return "Test-time augmentation changes no accuracy: leave it out."
    if difference.low is None or difference.high is None:
        return (
            f"Test-time augmentation changes the accuracy by {value}, in one group of "
            "images only: nothing follows from that."
        )
    bounds = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    change = f"Test-time augmentation changes the accuracy by {value} ({bounds})"
    if is_noise:
        return f"{change}: not significant, so it is not shown to be worth its time."
    verdict = "it helps" if difference.value > 0 else "it harms"
    return f"{change}: significant, {verdict}."
