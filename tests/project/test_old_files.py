"""Files that an earlier version wrote are still read: see the README beside them."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import pytest

from tumorlens.cli import app
from tumorlens.deploy.predictor import Predictor
from tumorlens.report import (
    write_audit_page,
    write_benchmark_page,
    write_comparison_page,
)
from tumorlens.runs.folder import open_run
from tumorlens.stats.intervals import WILSON

MADE = Path(__file__).parents[1] / "fixtures" / "made_at_cd6c76c"
IMAGES = MADE / "images"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """Return a copy of the run folder, which a test may change."""
    return shutil.copytree(MADE / "run", tmp_path / "run")


def command(*words: object) -> None:
    assert app.main([str(word) for word in words]) == 0


def test_an_old_run_opens_and_is_listed(
    old_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_run(old_run).config.model.name == "test_efficientnet"
    command("runs", old_run.parent)
    assert "test_efficientnet" in capsys.readouterr().out


def test_evaluating_an_old_run_again_gives_the_same_figures(old_run: Path) -> None:
    before = json.loads((old_run / "metrics.json").read_text(encoding="utf-8"))
    command("evaluate", old_run, "--data", IMAGES)
    after = json.loads((old_run / "metrics.json").read_text(encoding="utf-8"))
    # The interval is made in another way since.
    assert after["accuracy"]["value"] == pytest.approx(before["accuracy"]["value"])
    assert after["accuracy"]["method"] == WILSON
    assert after["confusion_matrix"] == before["confusion_matrix"]
    assert len((old_run / "looks.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_an_old_run_is_reported_from_its_old_figures(old_run: Path) -> None:
    command("report", old_run, "--data", IMAGES)
    assert "50.0" in (old_run / "report.html").read_text(encoding="utf-8")


def test_an_old_run_has_a_card(old_run: Path) -> None:
    command("card", old_run)
    card = json.loads((old_run / "card.json").read_text(encoding="utf-8"))
    metrics = json.loads((old_run / "metrics.json").read_text(encoding="utf-8"))
    assert card["figures"]["accuracy"]["value"] == metrics["accuracy"]["value"]


def test_an_old_run_is_exported_again(old_run: Path) -> None:
    shutil.rmtree(old_run / "export")
    command("export", old_run, "--data", IMAGES, "--format", "onnx")
    verdict = json.loads((old_run / "export/onnx/parity.json").read_text("utf-8"))
    assert verdict["passed"]


def test_an_old_artefact_answers_as_its_run_does() -> None:
    image = sorted(IMAGES.rglob("*.png"))[0]
    answers = [
        next(iter(Predictor.open(MADE / path).predict_files([image])))
        for path in ("run", "run/export/onnx")
    ]
    assert answers[0].probs is not None
    assert answers[1].probs == pytest.approx(answers[0].probs, abs=1e-5)


def test_pages_are_written_from_old_files(tmp_path: Path) -> None:
    for name in ("audit", "benchmark", "comparison"):
        shutil.copy(MADE / f"{name}.json", tmp_path)
    write_audit_page(tmp_path / "audit.json", data=IMAGES, out=tmp_path / "audit.html")
    write_benchmark_page(tmp_path / "benchmark.json", out=tmp_path / "benchmark.html")
    write_comparison_page(
        tmp_path / "comparison.json", data=IMAGES, out=tmp_path / "comparison.html"
    )
    old = json.loads((MADE / "comparison.json").read_text(encoding="utf-8"))
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert old["words"]
    assert all(html.escape(sentence) in page for sentence in old["words"])
    for name in ("audit", "benchmark", "comparison"):
        assert "<html" in (tmp_path / f"{name}.html").read_text(encoding="utf-8")
