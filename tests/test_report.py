"""The pages: hand-made files in, one self-contained page out."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from conftest import draw_image
from tumorlens.config import parse_config
from tumorlens.report import write_run_report
from tumorlens.runs import Run, create_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")
LEAK_WORDS = (
    "5 of the 8 test images have a copy in training, 3 of them pixel for pixel: "
    "figures on this test subset say little about new patients"
)
SUBSET_COUNTS = [[6, 1, 0, 1], [0, 7, 1, 0], [0, 0, 8, 0], [1, 2, 0, 5]]


def leak(*, leaks: bool) -> dict[str, Any]:
    return {
        "leaks": leaks,
        "num_test": 32,
        "num_copied": 5 if leaks else 0,
        "num_pixel_identical": 3 if leaks else 0,
        "num_patients_on_both_sides": 2 if leaks else 0,
        "num_test_unknown_patient": 7,
        "words": LEAK_WORDS if leaks else "no test image has a copy in training",
    }


def measure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.0511, "high": value + 0.0322}


def metrics(*, leaks: bool, classes: tuple[str, ...]) -> dict[str, Any]:
    protocol = "as-given" if leaks else "grouped"
    return {
        "format": 1,
        "protocol": protocol,
        "subset": "test",
        "num_images": 32,
        "num_groups": 21,
        "classes": list(classes),
        "leak": leak(leaks=leaks),
        "settings": {"model": "resnet18"},
        "accuracy": measure(0.8126),
        "balanced_accuracy": measure(0.8037),
        "macro_f1": measure(0.7948),
        "macro_auroc": measure(0.9371),
        "log_loss": measure(0.6161),
        "brier": measure(0.2839),
        "ece": measure(0.1043),
        "per_class": {
            name: {
                "num_images": 8,
                "precision": 0.8571 - 0.01 * number,
                "recall": measure(0.7513 + 0.02 * number),
                "specificity": 0.9583 - 0.01 * number,
                "f1": 0.8004 - 0.01 * number,
                "auroc": 0.9417 - 0.011 * number,
            }
            for number, name in enumerate(classes)
        },
        "confusion_matrix": SUBSET_COUNTS,
        "by_source": {
            "figshare": {
                "num_images": 20,
                "accuracy": measure(0.9012),
                "recall": {
                    name: {**measure(0.8765), "num_images": 5} for name in classes
                },
            },
            "unknown": {
                "num_images": 12,
                "accuracy": measure(0.6667),
                "recall": {
                    name: {**measure(0.5432), "num_images": 3}
                    for name in classes[:3]
                },
            },
        },
        "folds": [],
        "curves": {
            "roc": {
                name: {"fpr": [0, 0, 0.1, 1], "tpr": [0, 0.6, 0.9 - 0.05 * n, 1]}
                for n, name in enumerate(classes)
            },
            "calibration": {
                "confidence": [0.44, 0.65, 0.93],
                "accuracy": [0.5, 0.6, 0.9],
                "count": [4, 8, 20],
            },
        },
        "interval": "95 %, percentile bootstrap over 21 groups, 2000 resamples, seed 42",
    }


def history(num_epochs: int, *, offset: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 0.1 + offset + math.exp(-epoch / 3),
            "train_accuracy": 1 - 0.6 * math.exp(-epoch / 2) - offset,
            "val_loss": 0.4 + offset + math.exp(-epoch / 4),
            "val_accuracy": 0.85 - 0.5 * math.exp(-epoch / 2) - offset,
            "val_balanced_accuracy": 0.8,
            "val_macro_f1": 0.8,
            "lr": 1e-3,
            "images_per_second": 55.0,
            "seconds": 40.0,
            "is_best": epoch == num_epochs - 1,
        }
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that writes an evaluated run by hand, with its images."""

    def write(
        *,
        leaks: bool = False,
        classes: tuple[str, ...] = CLASSES,
        num_folds: int = 0,
        name: str = "run",
    ) -> Run:
        data = tmp_path / "data"
        protocol = "as-given" if leaks else "grouped"
        if num_folds:
            protocol = "grouped-kfold"
        config = parse_config(
            {"data": {"path": str(data), "protocol": protocol}, "optim": {"epochs": 6}}
        )
        run = create_run(tmp_path / name, config)
        content = metrics(leaks=leaks, classes=classes)
        content["protocol"] = protocol
        if num_folds:
            for fold in range(num_folds):
                part = create_run(run.fold_path(fold), config)
                part.write_history(history(6 - fold % 2, offset=0.02 * fold))
            content["folds"] = [
                {"fold": fold, "num_images": 6, "accuracy": 0.8031 + 0.01 * fold}
                for fold in range(num_folds)
            ]
        else:
            run.write_history(history(6))
        run.write_environment(
            {
                "command": "tumorlens train --data data --out run",
                "seed": 42,
                "device": "cpu",
                "versions": {"python": "3.11.2", "torch": "2.11.0"},
            }
        )
        run.write_leak(content["leak"])
        run.log_look(subset="test", command="tumorlens evaluate run")
        run.metrics_path.write_text(json.dumps(content), encoding="utf-8")
        write_predictions(run, data, classes)
        return run

    return write


def write_predictions(run: Run, data: Path, classes: tuple[str, ...]) -> None:
    """Write predictions that agree with `SUBSET_COUNTS`, and the images they name."""
    rng = np.random.default_rng(0)
    lines = [
        ",".join(
            ["path", "label", "predicted", "group", "source", "fold"]
            + [f"prob_{name}" for name in classes]
        )
    ]
    for row, label in enumerate(CLASSES):
        number = 0
        for column, count in enumerate(SUBSET_COUNTS[row]):
            for _ in range(count):
                path = f"class{row}/{number}.png"
                (data / f"class{row}").mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw_image(label, 10 * row + number)).save(data / path)
                probs = rng.dirichlet(np.ones(len(classes)) * 0.5)
                probs = np.sort(probs)
                probs[[column, -1]] = probs[[-1, column]]
                lines.append(
                    ",".join(
                        [path, classes[row], classes[column], path, "figshare", ""]
                        + [f"{prob:.6f}" for prob in probs]
                    )
                )
                number += 1
    run.predictions_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
