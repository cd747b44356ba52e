"""A run with every kind of file that a model card is made from, and its card."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from support.handmade_external import write_evaluation
from support.handmade_stress import answers as stress_answers
from support.handmade_stress import figures as stress_figures
from support.handmade_stress import trust as stress_trust
from support.made_once import made_once
from tumorlens.evaluation.map_checks import ExplanationChecks, Summary
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.trust import Wanted, fit_trust
from tumorlens.files import write_model
from tumorlens.report.card_page import write_card
from tumorlens.runs.folder import open_run

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tumorlens.runs.folder import Run

EASY = Wanted(coverage=0.8, error=0.3, confidence=0.8, specificity=0.9)


def whole_run(factory: pytest.TempPathFactory, exported: Run) -> Run:
    """Return the run, which all tests share and none may change."""

    def make(folder: Path) -> None:
        write_card(_make(folder, exported).path)

    return open_run(made_once(factory, "whole-run", make))


def _make(folder: Path, exported: Run) -> Run:
    """Copy a run with its artefact, and add figures of every kind."""
    shutil.copytree(
        exported.path,
        folder,
        ignore=shutil.ignore_patterns("openvino*", "torch*", "onnx-int8"),
        dirs_exist_ok=True,
    )
    run = open_run(folder)
    run.write_environment(
        {
            "tumorlens": "0.1.0",
            "commit": "c0ffee" * 6 + "c0de",
            "python": "3.11.7",
            "platform": "Linux x86_64",
            "cpu_count": 2,
            "packages": {"torch": "2.14.1", "openvino": None},
            "seed": 42,
            "command": "tumorlens train",
            "compute": {"device": "cpu", "precision": "bf16"},
        }
    )
    fit_trust(run, EASY)
    evaluate(run, command="tumorlens evaluate run")
    write_evaluation(run.external_path("hospital-b"), [1, 1, 0, 1, 0, 1], "nnpnsn")
    away = stress_trust(clean=[38], blur_5=range(9))
    worse = stress_answers(away, clean=[39], blur_5=range(24), crop_1=[3])
    write_model(run.stress_path("test"), stress_figures(run, worse))
    checks = ExplanationChecks(
        model="run",
        method="occlusion",
        classes=run.metrics().classes,
        summary=Summary(
            num_images=7,
            randomized_correlation=0.125,
            better_deletion=0.714,
            better_insertion=0.857,
            heat_outside=0.0625,
            area_outside=0.375,
            num_with_tumour=4,
            hit_rate=0.75,
            mean_iou=0.4375,
            tumour_area=0.03125,
        ),
        not_checked=(),
        images=(),
    )
    (run.path / "maps").mkdir()
    write_model(run.path / "maps" / "checks.json", checks)
    return run
