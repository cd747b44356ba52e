"""What of a run leaves the machine when it is tracked, and nothing else does.

The list is short so that it can be checked: settings without paths, the numbers of the
history and of the evaluations, figures drawn from numbers, the network, versions. No
name of an image or a patient is in any of them. What the newcomer would get wrong:
`split.csv`, `predictions.csv`, `report.html` and the command that was typed name files,
so they stay; and a file that is not named here is not sent, whatever folder it is in.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tumorlens.config import dump_config

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.runs.folder import Run
    from tumorlens.runs.measures import Metrics

_PATHS = ("path", "metadata", "split", "cache_dir")
"""Settings of `data` that name something on this machine."""
_FIGURES = ("confusion", "roc", "calibration", "curves")
"""Of the report: drawn from numbers. A file that is not named here is not sent."""
_HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "brier", "ece")
_MAX_LETTERS = 500
"""Of a setting's value: what every version of MLflow takes."""


def params_of(run: Run) -> dict[str, str]:
    """Return the settings as texts, without those that name a path."""
    params = {}
    for section, values in run.config.model_dump(mode="json").items():
        for name, value in values.items():
            if section == "data" and name in _PATHS:
                continue
            if (section, name) == ("model", "pretrained"):
                value = _file_name(value)
            text = value if isinstance(value, str) else json.dumps(value)
            params[f"{section}.{name}"] = text[:_MAX_LETTERS]
    return params


def figures_of(run: Run) -> dict[str, float]:
    """Return the figures of the kept epoch, and those of every evaluation."""
    figures: dict[str, float] = {}
    kept = [row for row in run.history() if row["is_best"]]
    if kept:
        figures["kept/epoch"] = float(kept[-1]["epoch"])
        figures |= {
            f"kept/{name}": float(value)
            for name, value in kept[-1].items()
            if name.startswith("val_")
        }
    for subset in ("test", "val"):
        if run.metrics_of(subset).is_file():
            figures |= _headline(subset, run.metrics(subset))
    return figures


def tags_of(run: Run) -> dict[str, str]:
    """Return what explains a run: versions, and what its split leaks."""
    environment = run.environment()
    names = ("tumorlens", "commit", "python", "platform")
    values = {name: environment.get(name) for name in names}
    values["torch"] = (environment.get("packages") or {}).get("torch")
    tags = {f"tumorlens.{name}": str(value) for name, value in values.items() if value}
    if run.leak_path.is_file():
        # What MLflow shows above the figures of a run: what they are worth.
        tags["mlflow.note.content"] = run.leak().words
    return tags


def settings_of(run: Run) -> str:
    """Return the content of `config.toml` without the paths in it."""
    config = run.config
    data = config.data.model_copy(update=dict.fromkeys(_PATHS))
    pretrained = _file_name(config.model.pretrained)
    model = config.model.model_copy(update={"pretrained": pretrained})
    return dump_config(config.model_copy(update={"data": data, "model": model}))


def files_of(run: Run) -> list[Path]:
    """Return the files of a run that are sent, as far as they exist."""
    wanted = [
        run.history_path,
        run.metrics_of("test"),
        run.metrics_of("val"),
        run.tta_path("val"),
        run.ensemble_path,
        *(
            run.figures_dir / f"{name}.{suffix}"
            for name in _FIGURES
            for suffix in ("svg", "png")
        ),
    ]
    for one in () if run.is_kfold else run.networks():
        wanted += [one.card_path, one.weights_path]
    return [path for path in wanted if path.is_file()]


def _file_name(value: str) -> str:
    return value.replace("\\", "/").rpartition("/")[2]


def _headline(subset: str, metrics: Metrics) -> dict[str, float]:
    return {
        f"{subset}/{name}" + ("" if end == "value" else f"_{end}"): value
        for name in _HEADLINE
        for end, value in getattr(metrics, name)
        if value is not None
    }
