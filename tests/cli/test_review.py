"""`tumorlens review` and corrected labels as a user meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.images import CLASSES
from support.runs_on_images import add_weights, make_run
from tumorlens.cli.app import main
from tumorlens.config import parse_config
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.files import sha256_of
from tumorlens.runs.folder import create_run
from tumorlens.training.dataset import prepare_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_review_prints_what_is_doubtful_and_where_to_correct_it(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", make_images())
    assert main(["review", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "are doubtful" in printed
    assert "Not looked at: 16 files of train, whose labels the network" in printed
    assert "These are guesses of the model." in printed
    assert f"the page is {run.review_path / 'review.html'}" in printed
    assert "next: tumorlens train" in printed
    assert "--set data.labels=labels.csv" in printed


def test_a_run_that_is_not_finished_is_one_error(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", make_images())
    (run.path / "finished").unlink()
    assert main(["review", str(run.path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert not run.review_path.exists()
    assert not run.looks_path.exists()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (
            "path,label,reason\nglioma/99.png,no_tumor,\n",
            "'glioma/99.png' is not among",
        ),
        ("path,label,reason\nglioma/1.png,glioblastoma,\n", "unknown class 'gliobl"),
        ("path,label\nglioma/1.png,no_tumor\n", "has no column 'reason'"),
        (
            "path,label,reason\nglioma/1.png,no_tumor,\nglioma/1.png,glioma,\n",
            "line 3: 'glioma/1.png' is named before, in line 2",
        ),
    ],
    ids=["path", "class", "column", "twice"],
)
def test_wrong_corrections_are_one_error_and_write_nothing(
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: str,
    problem: str,
) -> None:
    file, out = tmp_path / "labels.csv", tmp_path / "split.csv"
    file.write_text(table, encoding="utf-8")
    words = ["split", str(make_images()), "--out", str(out)]
    assert main([*words, "--set", f"data.labels={file}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert problem in lines[0]
    assert not out.exists()


def test_figures_of_a_run_have_its_corrected_labels(
    make_images: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = make_images(), tmp_path / "labels.csv"
    corrected = [f"glioma/{number}.png" for number in range(4)]
    lines = [f"{path},no_tumor,asked" for path in corrected]
    file.write_text("\n".join(["path,label,reason", *lines]), encoding="utf-8")
    settings = {"path": str(data), "labels": str(file), "cache_dir": str(tmp_path)}
    model = {"name": "test_resnet", "pretrained": "no", "size_px": 32}
    run = create_run(tmp_path / "run", parse_config({"data": settings, "model": model}))
    prepare_data(run)
    add_weights(run, CLASSES)
    run.mark_finished()
    assert main(["evaluate", str(run.path)]) == 0
    printed = capsys.readouterr().out
    digest = sha256_of(file)
    assert f"by the file of data.labels, SHA-256 {digest[:12]}." in printed
    assert run.metrics().leak.labels_sha256 == digest
    table = read_predictions(run.predictions_path)
    labels = dict(zip(table.paths, table.labels.tolist(), strict=True))
    tested = labels.keys() & set(corrected)
    assert tested
    assert {table.classes[labels[path]] for path in tested} == {"no_tumor"}
    file.write_text("path,label,reason\n", encoding="utf-8")
    assert main(["evaluate", str(run.path)]) == 2
    assert "the corrected labels have changed since" in capsys.readouterr().err
