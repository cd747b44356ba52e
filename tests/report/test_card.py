"""`card.json`: every figure is of a file of the run, and nothing names a person."""

from __future__ import annotations

import copy
import json
import shutil
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.card_figures import assert_figures_are_of_files, figures_of, read
from support.card_runs import whole_run
from support.handmade_runs import CLEAN, SPLIT, answers, history, settings
from support.handmade_runs import make_run as make_run_by_hand
from support.runs_on_images import make_run
from tumorlens.config import parse_config
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import ArtefactError, RunError
from tumorlens.report.card import NOT_KNOWN, card_of_artefact, card_of_run
from tumorlens.runs.folder import Run, create_run, open_run

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(exported_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with figures of every kind, which tests must not change."""
    return whole_run(tmp_path_factory, exported_run)


def as_json(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(card_of_run(run).model_dump_json())
    return content


def test_every_figure_is_in_a_file_of_the_run(whole: Run) -> None:
    card = as_json(whole)
    assert card["missing"] == {}
    assert len(figures_of(card)) > 500
    assert_figures_are_of_files(card, whole.path)


def test_a_figure_that_is_changed_is_found(whole: Run) -> None:
    card = as_json(whole)
    left_out = ("format", "limits", "intended_use", "licence")
    places = [
        place
        for place, value in figures_of(card).items()
        if isinstance(value, int | float) and place.split("/")[1] not in left_out
    ]
    parts = {place.split("/")[1] for place in places}
    assert parts >= {"figures", "trust", "external", "stress", "exports", "training"}
    for place in places[::29]:
        changed = copy.deepcopy(card)
        *way, last = _ways(changed, place)
        inner = changed
        for key in way:
            inner = inner[key]
        inner[last] += 1
        with pytest.raises(AssertionError):
            assert_figures_are_of_files(changed, whole.path)


def _ways(tree: Any, place: str) -> list[Any]:
    """Return the keys of a place, of which one may have a slash in it."""
    way: list[Any] = []
    rest = place.removeprefix("/")
    while rest:
        keys = range(len(tree)) if isinstance(tree, list) else tree
        key = max(
            (key for key in keys if f"{rest}/".startswith(f"{key}/")),
            key=lambda key: len(str(key)),
        )
        way.append(key)
        tree, rest = tree[key], rest.removeprefix(str(key)).removeprefix("/")
    return way


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("figures", "sensitivity", 0.99),
        ("training", "gpus", 4),
        ("split", "patients", 120),
        ("machine", "memory", "128 GB"),
    ],
)
def test_a_figure_that_is_added_is_found(
    part: str, name: str, value: Any, whole: Run
) -> None:
    card = as_json(whole)
    card[part][name] = value
    with pytest.raises(AssertionError):
        assert_figures_are_of_files(card, whole.path)


def test_a_sentence_with_a_figure_of_nowhere_is_found(whole: Run) -> None:
    card = as_json(whole)
    card["limits"].append("It is right for 97.3 % of all patients.")
    with pytest.raises(AssertionError):
        assert_figures_are_of_files(card, whole.path)


def test_what_was_not_done_is_missing_with_its_command(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    card = card_of_run(make_run(tmp_path / "run", make_images(num_each=4)))
    assert card.figures is None
    found = {name: (gap.why, gap.command) for name, gap in card.missing.items()}
    assert found["figures"] == ("not measured", "tumorlens evaluate RUN")
    assert found["trust"] == ("not calibrated", "tumorlens trust RUN")
    assert {*found} == {
        *("figures", "trust", "external", "stress", "explanations", "exports"),
    }
    assert any("not calibrated" in words for words in card.limits)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = make_run_by_hand(tmp_path / "run", answers([1, 0]), is_finished=False)
    with pytest.raises(RunError, match="is not finished") as error:
        card_of_run(run)
    assert error.value.hint == (
        f"finish it with: tumorlens train --resume --out {run.path}"
    )


def test_imported_weights_say_that_their_training_is_not_known(tmp_path: Path) -> None:
    words = "Unknown training data: theirs.pth was trained elsewhere."
    run = make_run_by_hand(
        tmp_path / "run", leak=LeakVerdict(leaks=True, is_known=False, words=words)
    )
    run.write_environment({"imported_from": {"file": "theirs.pth"}})
    card = card_of_run(run)
    assert card.kind == "imported weights"
    assert card.training is None
    assert card.missing["training"].command == ""
    assert card.has_leak
    assert f"The figures on test are not held out. {words}" in card.limits
    assert card.licence.pretrained != NOT_KNOWN  # the handmade settings say "no"


def test_without_a_split_figures_take_an_import_with_images(tmp_path: Path) -> None:
    run = make_run_by_hand(tmp_path / "run")
    run.write_environment({"imported_from": {"file": "theirs.pth"}})
    run.split_path.unlink()
    card = card_of_run(run)
    for name in ("split", "figures", "trust", "stress", "exports"):
        assert card.missing[name].why.endswith("as the run has no split")
        assert card.missing[name].command.startswith("tumorlens import ")
    assert card.missing["external"].command == "tumorlens evaluate RUN --on DATA"


def test_an_ensemble_names_each_of_its_networks(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", parse_config(settings()))
    run.write_split(SPLIT, CLEAN)
    run.write_environment({"tumorlens": "0"})
    run.write_ensemble(["first", "second"], model="2 x test_resnet")
    for number in range(2):
        make_run_by_hand(run.member_path(number), rows=history(0.5, 0.6))
    run.mark_finished()
    card = card_of_run(run)
    assert (card.kind, card.model) == ("ensemble", "2 x test_resnet")
    assert list(card.networks) == ["members/0", "members/1"]
    assert card.training is not None
    assert card.training.seconds == {"members/0": 4.0, "members/1": 4.0}
    assert "members/1/weights.safetensors" in card.files


def test_trust_of_other_weights_is_refused(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    path = tmp_path / "run" / "trust.json"
    path.write_text(path.read_text().replace(read(path)["weights_sha256"][0], "0" * 64))
    with pytest.raises(RunError, match="is of other weights"):
        card_of_run(open_run(tmp_path / "run"))


def test_a_damaged_artefact_is_refused(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    (tmp_path / "run" / "export" / "onnx" / "graph.onnx").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="is not the file that was exported"):
        card_of_run(open_run(tmp_path / "run"))


def test_the_card_of_an_artefact_has_its_verdict_and_sends_to_its_run(
    whole: Run,
) -> None:
    folder = whole.path / "export" / "onnx"
    card = card_of_artefact(folder)
    parity, manifest = read(folder / "parity.json"), read(folder / "manifest.json")
    export = json.loads(card.model_dump_json())["exports"]["."]
    for name in ("num_images", "max_difference", "accuracy", "kind"):
        assert export[name] == parity[name]
    digests = {name: one["sha256"] for name, one in manifest["files"].items()}
    assert card.files == digests
    assert card.figures is None
    assert card.leak is None
    assert card.missing["figures"].command == "tumorlens card RUN"
    # An artefact does not tell on what it was measured.
    assert not any("no other set" in words for words in card.limits)


def test_no_path_of_the_machine_and_no_image_is_named(whole: Run) -> None:
    text = card_of_run(whole).model_dump_json()
    assert str(whole.path.parent) not in text
    assert str(whole.config.data.path) not in text
    named = {row.path for row in whole.split()} | {row.group for row in whole.split()}
    assert not [name for name in named if f'"{name}"' in text]


def test_the_licence_is_that_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    from tumorlens.report.card import CardLicence

    licence = CardLicence(weights="", pretrained="", data="")
    assert licence.software == project["project"]["license"]


def test_weights_that_timm_names_have_the_licence_that_timm_has(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    import timm

    run = make_run(
        tmp_path / "run",
        make_images(num_each=4),
        settings={"model": {"pretrained": "no"}},
    )
    known = timm.get_pretrained_cfg("test_resnet")
    assert known is not None
    model = run.config.model.model_copy(update={"pretrained": "yes"})
    config = run.config.model_copy(update={"model": model})
    card = card_of_run(Run(run.path, config))
    assert card.licence.pretrained == f"{known.license}, as timm has it"
    assert card.base_model == known.hf_hub_id
    assert card.licence.weights == NOT_KNOWN
