from __future__ import annotations

import csv
import json
import shutil
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from support.made_once import made_once
from support.missing_libraries import HEAVY, without
from tumorlens.deploy.export import export
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.evaluation.trust import Wanted, fit_trust, one_of_each
from tumorlens.report import write_run_report
from tumorlens.report.card import card_of_run
from tumorlens.report.page import write_percent
from tumorlens.runs.folder import Run, open_run
from tumorlens.runs.trust import (
    NO_BRAIN_MRI,
    UNCERTAIN,
    Trust,
    TrustedAnswers,
    of_folds,
    trust_of_run,
)

if TYPE_CHECKING:
    from pathlib import Path


EASY = Wanted(coverage=0.8, error=0.3, confidence=0.8, specificity=0.9)
FILES = ("trust.json", "gate.npz", "model.json")


@pytest.fixture
def run(exported_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(
        exported_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("export")
    )
    return open_run(tmp_path / "run")


@pytest.fixture(scope="module")
def fitted(
    exported_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files that fitting writes, fitted once."""
    run = open_run(
        made_once(tmp_path_factory, "calibrated", partial(fit, exported_run))
    )
    return {name: (run.path / name).read_bytes() for name in FILES}


def fit(exported_run: Run, folder: Path) -> None:
    shutil.copytree(
        exported_run.path,
        folder,
        ignore=shutil.ignore_patterns("export"),
        dirs_exist_ok=True,
    )
    fit_trust(open_run(folder), EASY)


@pytest.fixture
def calibrated(run: Run, fitted: dict[str, bytes]) -> Run:
    for name, content in fitted.items():
        (run.path / name).write_bytes(content)
    return open_run(run.path)


def test_the_temperature_goes_into_the_card_and_lowers_the_loss(
    calibrated: Run,
) -> None:
    trusted = trust_of_run(calibrated)
    assert trusted is not None
    trust = trusted.trust
    assert calibrated.card().temperature == trust.temperature != 1
    assert trust.before is not None
    assert trust.after is not None
    assert trust.after.log_loss.value is not None
    assert trust.before.log_loss.value is not None
    assert trust.after.log_loss.value <= trust.before.log_loss.value + 1e-9
    assert calibrated.looks() == []


def test_fitting_again_gives_the_same_files(run: Run) -> None:
    fit_trust(run, EASY)
    before = [(run.path / name).read_bytes() for name in FILES]
    fit_trust(run, EASY)
    assert [(run.path / name).read_bytes() for name in FILES] == before


def test_measures_are_what_the_table_of_answers_says(calibrated: Run) -> None:
    found = evaluate(calibrated).trust
    assert found is not None
    table = read_predictions(calibrated.predictions_path)
    with (calibrated.path / "answers.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(table.paths)
    truth = {
        p: table.classes[n] for p, n in zip(table.paths, table.labels, strict=True)
    }
    covered = [truth[path] in row["set"].split("|") for path, row in rows.items()]
    assert found.coverage.value == pytest.approx(np.mean(covered))
    sizes = [len(row["set"].split("|")) for row in rows.values()]
    assert found.mean_set_size == pytest.approx(np.mean(sizes))
    answered = {
        path: row["answer"]
        for path, row in rows.items()
        if row["answer"] not in (UNCERTAIN, NO_BRAIN_MRI)
    }
    assert found.answered.value == pytest.approx(len(answered) / len(rows))
    if answered:
        wrong = [truth[path] != answer for path, answer in answered.items()]
        assert found.error_of_answers.value == pytest.approx(np.mean(wrong))


def test_the_page_shows_what_the_temperature_changes(calibrated: Run) -> None:
    evaluate(calibrated)
    page = write_run_report(calibrated).path.read_text(encoding="utf-8")
    trusted = trust_of_run(calibrated)
    assert trusted is not None
    trust = trusted.trust
    for found in (trust.before, trust.after):
        assert found is not None
        assert found.ece.value is not None
        assert f"<td>{write_percent(found.ece.value)}" in page
    assert trust.promise.words in page
    assert "Operating points, chosen on val" in page
    assert (calibrated.figures_dir / "reliability.svg").is_file()


def test_a_page_of_before_says_that_the_answers_are_not_measured(run: Run) -> None:
    evaluate(run)
    fit_trust(run, EASY)
    page = write_run_report(run).path.read_text(encoding="utf-8")
    assert "Calibrated after it was measured" in page


def test_a_run_without_trust_is_measured_as_before(run: Run) -> None:
    assert evaluate(run).trust is None
    assert not (run.path / "answers.csv").exists()
    [one] = Predictor.open(run.path).predict_files(images_of(run)[:1])
    assert (one.answer, one.trust) == (None, None)


def images_of(run: Run) -> list[Path]:
    from pathlib import Path

    data = Path(str(run.config.data.path))
    return [data / row.path for row in run.split()][:24]


def test_a_run_and_its_artefact_answer_alike(calibrated: Run) -> None:
    (one,) = export(calibrated, ["onnx"])
    assert one.artefact is not None
    names = {path.name for path in one.artefact.path.iterdir()}
    assert {"trust.json", "gate.npz"} <= names
    files = images_of(calibrated)
    of_run, of_artefact = (
        list(Predictor.open(path).predict_files(files))
        for path in (calibrated.path, one.artefact.path)
    )
    for ours, theirs in zip(of_run, of_artefact, strict=True):
        assert ours.trust is not None
        assert theirs.trust is not None
        assert ours.trust[:2] == theirs.trust[:2]
        assert ours.trust.objection == theirs.trust.objection
        assert ours.trust.gate == pytest.approx(theirs.trust.gate, abs=0.1)


def test_an_artefact_answers_with_its_runtime_alone(
    calibrated: Run, tmp_path: Path
) -> None:
    (one,) = export(calibrated, ["onnx"])
    assert one.artefact is not None
    files = images_of(calibrated)
    out = tmp_path / "out.jsonl"
    words = ["predict", one.artefact.path, *files, "--out", out]
    code = (
        "from tumorlens.cli import app;"
        f"raise SystemExit(app.main({[str(word) for word in words]!r}))"
    )
    done = without(HEAVY - {"onnxruntime"}, code)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = list(Predictor.open(calibrated.path).predict_files(files))
    assert [row["answer"] for row in rows] == [found.answer for found in expected]
    assert [row["set"] for row in rows] == [
        "|".join(found.trust.in_set) if found.trust else None for found in expected
    ]


def test_noise_is_turned_away(calibrated: Run, tmp_path: Path) -> None:
    from PIL import Image

    noise = np.random.default_rng(1).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    [found] = Predictor.open(calibrated.path).predict_files([tmp_path / "noise.png"])
    assert found.answer == NO_BRAIN_MRI
    assert found.trust is not None
    assert found.trust.objection == "colour"
    assert found.predicted is not None


def test_trust_of_other_weights_is_refused(calibrated: Run) -> None:
    card = calibrated.card()
    weights = calibrated.weights_path.read_bytes()
    calibrated.write_weights(
        weights, card.model_copy(update={"weights_sha256": "0" * 64})
    )
    with pytest.raises(RunError, match="is of other weights"):
        trust_of_run(calibrated)


@pytest.mark.parametrize("name", ["trust.json", "gate.npz"])
def test_a_damaged_file_is_one_error(calibrated: Run, name: str) -> None:
    path = calibrated.path / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=name):
        trust_of_run(calibrated)


def test_a_changed_promise_is_refused(calibrated: Run) -> None:
    path = calibrated.path / "trust.json"
    content = json.loads(path.read_text())
    content["promise"]["threshold"] = 0.01
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"trust\.json is not the file that model\.json"):
        trust_of_run(calibrated)


def test_a_changed_promise_is_in_no_card(calibrated: Run) -> None:
    path = calibrated.path / "trust.json"
    path.write_text(path.read_text().replace('"confidence": 0.8', '"confidence": 0.9'))
    with pytest.raises(RunError, match=r"trust\.json is not the file that model\.json"):
        card_of_run(calibrated)


def test_files_are_as_they_were_if_one_cannot_be_written(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in run.path.glob("*.*")}

    def fail(*_: object) -> None:
        raise DataError("the disk is full", hint="free some space")

    monkeypatch.setattr(Run, "write_card", fail)
    with pytest.raises(DataError, match="the disk is full"):
        fit_trust(run, EASY)
    after = {path.name: path.read_bytes() for path in run.path.glob("*.*")}
    assert after == before


def test_a_gate_that_is_gone_is_one_error(calibrated: Run) -> None:
    (calibrated.path / "gate.npz").unlink()
    with pytest.raises(RunError, match=r"gate\.npz"):
        Predictor.open(calibrated.path)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0])
@pytest.mark.parametrize("name", ["coverage", "error", "confidence", "specificity"])
def test_a_rate_outside_0_to_1_is_refused(run: Run, name: str, rate: float) -> None:
    with pytest.raises(ConfigError, match=f"expected {name} above 0 and below 1"):
        fit_trust(run, Wanted(**{name: rate}))


def test_a_coverage_that_val_is_too_small_for_is_refused(run: Run) -> None:
    with pytest.raises(
        DataError, match="needs 99 groups of val, which has 12"
    ) as error:
        fit_trust(run, Wanted(coverage=0.99))
    assert error.value.hint is not None
    assert "--coverage 0.92" in error.value.hint
    assert not (run.path / "trust.json").exists()


def test_few_groups_prove_nothing_and_say_what_they_could(run: Run) -> None:
    (trust,) = fit_trust(run, Wanted(coverage=0.8))
    assert trust.promise.threshold is None
    assert (
        "that takes 45 groups without a mistake, and val has 12" in trust.promise.words
    )
    assert "would prove 17.5 %" in trust.promise.words


def test_one_image_of_each_group_is_drawn_by_the_seed() -> None:
    groups = np.repeat(np.arange(50), 4)
    draws = {seed: one_of_each(groups, seed=seed) for seed in (1, 2)}
    for chosen in draws.values():
        assert groups[chosen].tolist() == list(range(50))
    assert not np.array_equal(draws[1], draws[2])
    np.testing.assert_array_equal(draws[1], one_of_each(groups, seed=1))


def test_a_run_of_folds_takes_the_strictest_of_each(calibrated: Run) -> None:
    trusted = trust_of_run(calibrated)
    assert trusted is not None
    one = trusted.trust

    def changed(threshold: float | None, sets: tuple[float | None, ...]) -> Trust:
        return one.model_copy(
            update={
                "promise": one.promise.model_copy(update={"threshold": threshold}),
                "sets": one.sets.model_copy(update={"lac_by_class": sets}),
            }
        )

    first, second = (
        changed(0.8, (0.1, 0.4, 0.2, 0.3)),
        changed(0.6, (0.2, 0.3, 0.1, 0.9)),
    )
    both = of_folds([first, second])
    assert both.promise.threshold == 0.8
    assert both.sets.lac_by_class == (0.2, 0.4, 0.2, 0.9)
    assert "the proof is that of one fold" in both.promise.words
    nothing = of_folds([first, changed(None, (0.1, None, 0.1, 0.1))])
    assert nothing.promise.threshold is None
    assert nothing.sets.lac_by_class[1] is None
    probs = np.array([[0.7, 0.1, 0.1, 0.1]])
    assert TrustedAnswers(both, ()).judge(probs)[0].answer == UNCERTAIN
    assert TrustedAnswers(nothing, ()).judge(probs)[0].answer == one.classes[0]
