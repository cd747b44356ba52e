"""A `metrics.json` made by hand: its numbers agree with each other where shown."""

from __future__ import annotations

from typing import Any

CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")
LEAK_WORDS = (
    "5 of the 8 test images have a copy in training, 3 of them pixel for pixel: "
    "figures on this test subset say little about new patients"
)
SUBSET_COUNTS = [[6, 1, 0, 1], [0, 7, 1, 0], [0, 0, 8, 0], [1, 2, 0, 5]]


def leak(*, leaks: bool, num_unknown: int = 0) -> dict[str, Any]:
    return {
        "leaks": leaks,
        "num_test": 32,
        "num_copied": 5 if leaks else 0,
        "num_pixel_identical": 3 if leaks else 0,
        "num_patients_on_both_sides": 2 if leaks else 0,
        "num_test_patient_in_train": 4 if leaks else 0,
        "num_test_unknown_patient": num_unknown,
        "words": LEAK_WORDS if leaks else "no test image has a copy in training",
    }


def measure(value: float) -> dict[str, Any]:
    return {
        **{"value": value, "low": value - 0.0511, "high": value + 0.0322},
        **{"method": "Wilson, design effect", "unit": "group", "num_units": 21},
    }


def handmade_metrics(
    *, leaks: bool = False, classes: tuple[str, ...] = CLASSES, **changes: Any
) -> dict[str, Any]:
    """Return the content of a `metrics.json`, with some keys replaced."""
    protocol = "as-given" if leaks else "grouped"
    return {
        "format": 2,
        "protocol": protocol,
        "subset": "test",
        "num_images": 32,
        "num_groups": 21,
        "classes": list(classes),
        "leak": leak(leaks=leaks),
        "settings": {
            **{"model": "resnet18", "size_px": 224, "fit": "pad", "mirror": False},
            **{"tta": "none", "seed": 42},
        },
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
                "precision": measure(0.8571 - 0.01 * number),
                "recall": measure(0.7513 + 0.02 * number),
                "specificity": measure(0.9583 - 0.01 * number),
                "f1": 0.8004 - 0.01 * number,
                "auroc": measure(0.9417 - 0.011 * number),
            }
            for number, name in enumerate(classes)
        },
        "confusion_matrix": SUBSET_COUNTS,
        "by_source": {
            "figshare": {
                "num_images": 20,
                "num_groups": 12,
                "accuracy": measure(0.9012),
                "balanced_accuracy": measure(0.8901),
                "macro_f1": measure(0.8899),
                "recall": {
                    name: {**measure(0.8765), "num_images": 5} for name in classes
                },
            },
            "unknown": {
                "num_images": 12,
                "num_groups": 9,
                "accuracy": measure(0.6667),
                "balanced_accuracy": measure(0.6543),
                "macro_f1": measure(0.6432),
                "recall": {
                    name: {**measure(0.5432), "num_images": 3} for name in classes[:3]
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
        "interval": "95 %, with 21 groups as units",
        **changes,
    }
