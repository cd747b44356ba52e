"""`card.md`: its figures, its head for model hubs, and what it is written over."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from support.card_figures import (
    assert_figures_are_of_files,
    assert_text_is_of_files,
    numbers_in,
    read,
)
from support.card_runs import whole_run
from support.handmade_metrics import handmade_metrics
from support.handmade_runs import answers
from support.handmade_runs import make_run as make_run_by_hand
from support.missing_libraries import run_python
from support.runs_on_images import make_kfold_run, make_run
from tumorlens.data.leakage import LeakVerdict
from tumorlens.deploy.artefact import remove_artefact
from tumorlens.errors import DataError
from tumorlens.evaluation.measure import evaluate
from tumorlens.files import write_json
from tumorlens.report.card import card_of_run
from tumorlens.report.card_page import as_text, write_card

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.runs.folder import Run

NAMES = ["card.json", "card.md", "checklist.csv"]


@pytest.fixture(scope="module")
def whole(exported_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with figures of every kind and its card, which no test changes."""
    return whole_run(tmp_path_factory, exported_run)


def text_of(run: Run) -> str:
    return (run.path / "card.md").read_text(encoding="utf-8")


def head_of(text: str) -> ModelCardData:
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def test_every_number_of_the_text_is_in_a_file_of_the_run(whole: Run) -> None:
    assert len(numbers_in(text_of(whole))) > 300
    assert_text_is_of_files(text_of(whole), whole.path)


def test_a_number_that_is_changed_in_the_text_is_found(whole: Run) -> None:
    text = text_of(whole)
    # Names of a digest and of a guideline are no figures.
    figures = re.sub(r"SHA-256|CLAIM 2024", lambda one: "_" * len(one[0]), text)
    places = [one.start() for one in re.finditer(r"\d", figures)]
    for place in places[::97]:
        digit = str((int(text[place]) + 1) % 10)
        changed = text[:place] + digit + text[place + 1 :]
        try:
            assert_text_is_of_files(changed, whole.path)
        except AssertionError:
            continue
        pytest.fail(f"not found: {changed[place - 60 : place + 60]!r}")


def test_a_number_that_is_added_to_the_text_is_found(whole: Run) -> None:
    text = text_of(whole)
    titles = re.findall(r"^## .*$", text, re.MULTILINE)
    assert len(titles) == 17
    for title in titles:
        added = text.replace(title, f"{title}\n\nIt is right for 99.9 %.\n")
        with pytest.raises(AssertionError):
            assert_text_is_of_files(added, whole.path)


def test_a_kfold_run_has_the_pooled_figures_and_the_networks_of_its_folds(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_kfold_run(tmp_path / "run", make_images(num_each=4))
    evaluate(run)
    card = write_card(run.path).card
    assert card.kind == "k-fold run"
    assert list(card.networks) == ["folds/0", "folds/1"]
    assert card.figures is not None
    assert card.figures.num_images == sum(one.num_images for one in card.figures.folds)
    assert_figures_are_of_files(read(run.path / "card.json"), run.path)
    assert_text_is_of_files(text_of(run), run.path)
    assert " in 2 folds, trained with tumorlens 0." in text_of(run)


def test_model_hubs_read_the_figures_of_the_head(whole: Run) -> None:
    head = head_of(text_of(whole))
    assert head.model_name == whole.name
    assert "\nlibrary_name: tumorlens\n" in text_of(whole)
    metrics = read(whole.path / "metrics.json")
    external = read(whole.path / "external" / "hospital-b" / "external.json")
    assert head.eval_results
    found = {
        (one.dataset_name, one.metric_name): one.metric_value
        for one in head.eval_results
    }
    assert found["data", "Accuracy"] == metrics["accuracy"]["value"]
    accuracy = external["new"]["accuracy"]["value"]
    assert found["hospital-b", "Accuracy (new images)"] == accuracy


def test_figures_that_leak_say_so_wherever_they_are(tmp_path: Path) -> None:
    leak = LeakVerdict(leaks=True, num_test=4, num_copied=3, words="3 are copies.")
    run = make_run_by_hand(tmp_path / "run", answers([1, 1, 0, 1]), leak=leak)
    run.write_environment({"tumorlens": "0"})
    write_json(run.metrics_path, handmade_metrics(leaks=True))
    text = as_text(card_of_run(run))
    results = head_of(text).eval_results
    assert results
    assert all(f"{one.metric_name}".endswith(" (not held out)") for one in results)
    assert "**These images were not held out.**" in text
    assert "**These figures are not held out.** 3 are copies." in text


def test_what_is_missing_is_said_in_words(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    text = as_text(card_of_run(make_run(tmp_path / "run", make_images(num_each=4))))
    assert "## Figures on test\n\nNot measured: run `tumorlens evaluate RUN`.\n" in text
    assert "## Calibration\n\nNot calibrated: run `tumorlens trust RUN`.\n" in text
    assert "## Worse images\n\nNot measured: run `tumorlens stress RUN`.\n" in text
    assert head_of(text).eval_results is None


@pytest.mark.parametrize("name", ["a|b", "**x**", "`c`", "<script>", "# t", "[l](u)"])
def test_names_of_the_user_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    classes = (name, "other: 'quoted'")
    run = make_run_by_hand(
        tmp_path / "run", answers([1, 0], classes=classes), classes=classes
    )
    run.write_environment({"tumorlens": "0"})
    text = as_text(card_of_run(run))
    shown = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"into 2 classes: {escaped}, other: 'quoted'." in shown
    rows = re.findall(r"<tr>.*?</tr>", shown, re.DOTALL)
    assert f'<th style="text-align:right">{escaped}</th>' in rows[0]
    assert {row.count("</t") - 1 for row in rows[:2]} == {5}


def test_it_needs_no_network_and_leaves_nothing_at_home(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, out = tmp_path / "home", str(tmp_path / "card")
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    done = run_python(
        "import socket\n"
        "def refuse(*_): raise AssertionError('the network was wanted')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tumorlens.cli import app\n"
        f"status = app.main(['card', {str(whole.path)!r}, '--out', {out!r}])\n"
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "raise SystemExit(status)"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "card").iterdir()) == NAMES
    assert list(home.rglob("*")) == []


def test_writing_it_again_gives_the_same_files(whole: Run, tmp_path: Path) -> None:
    write_card(whole.path, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in NAMES}
    write_card(whole.path, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in NAMES} == before


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_somebody_else_is_not_overwritten(
    name: str, whole: Run, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match="was not written by this command"):
        write_card(whole.path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_new_export_removes_the_card_of_the_old_one(
    whole: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "onnx"
    shutil.copytree(whole.path / "export" / "onnx", folder)
    written = write_card(folder)
    assert written.folder == folder
    assert {path.name for path in folder.iterdir()} >= {*NAMES}
    remove_artefact(folder)
    assert not folder.exists()
