"""Run folders made by hand, some of them damaged, as a list."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tumorlens
from support.handmade_external import write_evaluation
from support.handmade_metrics import handmade_metrics
from tumorlens.cli import app
from tumorlens.config import load_config
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import ConfigError, RunError
from tumorlens.files import sha256_of_bytes, write_json
from tumorlens.runs import listing
from tumorlens.runs.folder import ModelCard, Run, create_run
from tumorlens.runs.listing import COLUMNS, STATES, RunRow, list_runs

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = b"any bytes"

CLEAN = LeakVerdict(leaks=False, words="No leak found.")


def make_run(
    path: Path,
    *settings: str,
    val: tuple[float, ...] = (0.5, 0.75, 0.625),
    test: float | None = None,
    is_finished: bool = True,
    epoch: int = 2,
    leak: LeakVerdict | None = None,
) -> Run:
    """Write a run folder: the second epoch was kept."""
    run = create_run(path, load_config(assignments=["optim.epochs=3", *settings]))
    run.write_environment({"seed": 42})
    run.write_leak(leak or CLEAN)
    rows = [
        {"epoch": number, "val_accuracy": value, "is_best": number <= 2}
        for number, value in enumerate(val, start=1)
    ]
    if rows:
        run.write_history(rows)
    card = {
        **{"format": 1, "tumorlens": tumorlens.__version__, "name": "resnet18"},
        **{"classes": ("a", "b"), "in_chans": 3, "size_px": 32, "fit": "pad"},
        **{"mean": (0.5,) * 3, "std": (0.5,) * 3, "mirror": False, "epoch": epoch},
        "weights_sha256": sha256_of_bytes(WEIGHTS),
    }
    run.write_weights(WEIGHTS, ModelCard.model_validate(card))
    if is_finished:
        run.mark_finished()
    if test is not None:
        write_metrics(run, test)
    return run


def write_metrics(run: Run, value: float, subset: str = "test") -> None:
    accuracy = {"value": value, "low": value - 0.1, "high": value + 0.1}
    write_json(run.metrics_of(subset), handmade_metrics(accuracy=accuracy))


def make_kfold(path: Path, num_done: int) -> Run:
    settings = ["data.protocol=grouped-kfold", "data.num_folds=3"]
    run = make_run(path, *settings, val=(), is_finished=False)
    for fold in range(num_done + 1):
        make_run(
            run.fold_path(fold),
            *settings,
            f"data.fold={fold}",
            val=(0.1, 0.5 + 0.1 * fold, 0.2),
            is_finished=fold < num_done,
        )
    return run


def names(*folders: Path, **options: Any) -> list[str]:
    return [row.value("name") for row in list_runs(folders, **options)]


def only(path: Path) -> RunRow:
    (row,) = list_runs([path])
    return row


# what a row says


def test_a_finished_run_has_its_figures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", "model.name=resnet50", test=0.8)
    os.utime(run.path / "config.toml", (1_700_000_000, 1_700_000_000))
    row = only(tmp_path)
    assert (row.state, row.progress) == ("finished", "epoch 3 of 3")
    assert row.val_accuracy == 0.75  # of the kept epoch, not of the last one
    assert row.test_accuracy is not None
    figure = row.test_accuracy
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.8, 0.7, 0.9))
    assert (row.leak, row.reason) == ("no leak", None)
    written = datetime.fromtimestamp(1_700_000_000)
    assert row.date == written.strftime("%Y-%m-%d %H:%M")
    assert row.value("model") == row.value("model.name") == "resnet50"
    assert row.value("protocol") == "grouped"
    assert row.value("path") == str(tmp_path / "one")


@pytest.mark.parametrize(
    ("num_unknown", "state"),
    [(0, "no leak"), (3, "patients partly known"), (8, "patients not known")],
)
def test_a_split_is_called_free_of_leaks_only_where_all_patients_are_known(
    tmp_path: Path, num_unknown: int, state: str
) -> None:
    run = make_run(tmp_path / "one")
    run.write_leak(
        LeakVerdict(
            leaks=False,
            num_test=8,
            num_test_unknown_patient=num_unknown,
            words="No copies.",
        )
    )
    assert only(tmp_path).leak == state


def test_an_artefact_that_was_handed_on_is_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "model.name=resnet50")
    artefact = tmp_path / "theirs"
    artefact.mkdir()
    for name in ("model.json", "parity.json", "manifest.json"):
        (artefact / name).write_text("{}")
    assert only(tmp_path).path == tmp_path / "one"


def test_an_interrupted_run_says_how_far_it_came(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "optim.epochs=12", is_finished=False)
    row = only(tmp_path)
    assert (row.state, row.progress) == ("interrupted", "epoch 3 of 12")


def test_a_run_that_was_just_made_is_one(tmp_path: Path) -> None:
    create_run(tmp_path / "one", load_config())
    row = only(tmp_path)
    assert (row.state, row.progress) == ("interrupted", "epoch 0 of 12")
    assert (row.val_accuracy, row.test_accuracy, row.leak) == (None, None, None)


def test_imported_weights_are_marked_and_their_leak_is_unknown(tmp_path: Path) -> None:
    unknown = LeakVerdict(leaks=True, is_known=False, words="Unknown training data.")
    run = make_run(tmp_path / "one", val=(), epoch=0, leak=unknown)
    write_metrics(run, 0.6, "val")
    row = only(tmp_path)
    assert (row.state, row.progress, row.leak) == ("imported", "", "unknown")
    assert row.val_accuracy == 0.6  # there is no history to take it from


def test_a_leak_is_marked(tmp_path: Path) -> None:
    make_run(tmp_path / "one", leak=LeakVerdict(leaks=True, words="Leak: ..."))
    assert only(tmp_path).leak == "leak"


@pytest.mark.parametrize(
    ("num_done", "state"), [(1, "interrupted"), (2, "interrupted"), (3, "finished")]
)
def test_a_kfold_run_is_one_row_with_its_folds(
    tmp_path: Path, num_done: int, state: str
) -> None:
    run = make_kfold(tmp_path / "cv", min(num_done, 2))
    if num_done == 3:
        Run(run.fold_path(2), run.config).mark_finished()
    row = only(tmp_path)
    assert (row.state, row.progress) == (state, f"{num_done} of 3 folds")
    # The mean over the folds that have a kept epoch: 0.5, 0.6 and perhaps 0.7.
    num_begun = min(num_done, 2) + 1
    assert row.val_accuracy == pytest.approx(0.5 + 0.05 * (num_begun - 1))


def test_a_fold_whose_folder_was_just_made_has_not_begun(tmp_path: Path) -> None:
    run = make_kfold(tmp_path / "cv", 0)
    run.fold_path(1).mkdir()
    row = only(tmp_path)
    assert (row.state, row.progress) == ("interrupted", "0 of 3 folds")


def test_an_ensemble_counts_its_members(tmp_path: Path) -> None:
    run = create_run(tmp_path / "vote", load_config())
    run.write_leak(CLEAN)
    run.write_ensemble(["one", "two"])
    make_run(run.member_path(0))
    run.mark_finished()
    row = only(tmp_path)
    assert (row.state, row.progress) == ("finished", "2 members")


def test_evaluations_on_other_sets_are_listed_below_the_table_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "one")
    write_evaluation(run.external_path("b"), [1, 0, 1, 1], "nnpp")
    write_evaluation(run.external_path("c"), [1, 0], "pp")
    write_evaluation(run.external_path("d"), [1, 1], "??")
    assert app.main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    place = tmp_path / "one"
    assert re.search(rf"{place}, on b: 50\.0 % \(.* to .*\) on 2 new images\n", said)
    assert re.search(rf"{place}, on c: 50\.0 % .* on 2 images, all seen in tr", said)
    assert re.search(rf"{place}, on d: 100\.0 % .* on 2 images, not known which", said)
    assert app.main(["runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]["external"]
    assert list(found) == ["b", "c", "d"]
    assert found["b"]["new_accuracy"]["value"] == 0.5
    assert found["b"]["accuracy"]["value"] == 0.75
    assert (found["b"]["counts"]["new"], found["b"]["data"]) == (2, "set B")
    assert found["c"]["new_accuracy"] is None


# folders that are damaged


def no_config(run: Run) -> str:
    (run.path / "config.toml").unlink()
    return "is not a run folder: it has no config.toml"


def broken_config(run: Run) -> str:
    (run.path / "config.toml").write_text("[optim\n")
    return "config.toml: .* is not TOML"


def later_config(run: Run) -> str:
    (run.path / "config.toml").write_text("[optim]\nwarp = 9\n")
    return "unknown setting 'optim.warp'"


def half_a_line(run: Run) -> str:
    run.history_path.write_text('{"epoch": 1}\n{"epo')
    return "history.jsonl is not one JSON object per line"


def wrong_history(run: Run) -> str:
    run.write_history([{"is_best": True, "val_accuracy": "high"}])
    return "history.jsonl is damaged at line 1, val_accuracy: .*, got 'high'"


def wrong_card(run: Run) -> str:
    run.card_path.write_text("[]")
    return r"expected format 1 in .*model.json, got \[\]"


def wrong_leak(run: Run) -> str:
    run.leak_path.write_text("{}")
    return "leak.json is damaged at leaks: Field required"


def wrong_metrics(run: Run) -> str:
    write_json(run.metrics_path, handmade_metrics(accuracy=[1]))
    return r"metrics.json is damaged at accuracy: .*, got \[1\]"


def endless_metrics(run: Run) -> str:
    run.metrics_path.write_text("[" * 100_000)
    return "metrics.json is not JSON: maximum recursion depth"


def binary_metrics(run: Run) -> str:
    run.metrics_path.write_bytes(b"\xff\xfe\x00")
    return "metrics.json is not JSON: .* can't decode"


def wrong_external(run: Run) -> str:
    write_evaluation(run.external_path("b"), [1, 0], "np")
    (run.external_path("b") / "external.json").write_text("[]")
    return r"expected format 1 in .*b/external.json, got \[\]"


def no_metrics(run: Run) -> str:
    run.metrics_path.write_text("{}")
    return "metrics.json is damaged at protocol: Field required"


def endless_accuracy(run: Run) -> str:
    accuracy = {"value": math.inf, "low": None, "high": None}
    run.metrics_path.write_text(json.dumps(handmade_metrics(accuracy=accuracy)))
    return "metrics.json is damaged at accuracy.value: .* finite number, got inf"


def yes_as_accuracy(run: Run) -> str:
    accuracy = {"value": True, "low": None, "high": None}
    write_json(run.metrics_path, handmade_metrics(accuracy=accuracy))
    return "metrics.json is damaged at accuracy.value: .* valid number, got True"


@pytest.mark.parametrize(
    "spoil",
    [
        *(no_config, broken_config, later_config, half_a_line, wrong_history),
        *(wrong_card, wrong_leak, wrong_metrics, endless_metrics, binary_metrics),
        *(no_metrics, endless_accuracy, yes_as_accuracy, wrong_external),
    ],
)
def test_a_damaged_folder_is_a_row_with_its_reason_and_the_others_stay(
    tmp_path: Path,
    spoil: Callable[[Run], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    reason = spoil(make_run(tmp_path / "bad"))
    make_run(tmp_path / "good")
    bad, good = list_runs([tmp_path])
    assert (bad.value("name"), bad.state) == ("bad", "damaged")
    assert bad.reason is not None
    assert re.search(reason, bad.reason)
    assert good.state == "finished"
    json.dumps(bad.as_json())
    assert app.main(["runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"damaged: {bad.reason}" in said
    assert "good" in said


def test_a_file_that_cannot_be_opened_is_a_reason_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "bad", test=0.5)

    def locked(run: Run, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(run.metrics_path))

    row = only(tmp_path)
    assert row.state == "finished"
    monkeypatch.setattr(listing, "_accuracy", locked)
    row = only(tmp_path)
    assert row.state == "damaged"
    assert row.reason == f"[Errno 13] Permission denied: '{run.metrics_path}'"


def test_a_fold_that_is_damaged_is_the_reason_of_its_run(tmp_path: Path) -> None:
    run = make_kfold(tmp_path / "cv", 1)
    (run.fold_path(0) / "config.toml").write_text("[optim\n")
    row = only(tmp_path)
    assert row.state == "damaged"
    assert "folds/0/config.toml" in str(row.reason)


# where they are


def test_runs_are_found_however_deep_and_in_the_order_in_which_people_count(
    tmp_path: Path,
) -> None:
    for place in ("b", "a10", "a9", "study/trials/lr-0.1-seed42", "x/y/z"):
        make_run(tmp_path / place)
    assert names(tmp_path) == ["a9", "a10", "b", "lr-0.1-seed42", "z"]
    assert names(tmp_path / "x", tmp_path / "b") == ["b", "z"]


def test_a_run_itself_may_be_named_and_what_is_in_it_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "one")
    make_run(run.path / "inner")
    assert names(run.path) == ["one"]
    assert names(run.path / "inner") == ["inner"]
    monkeypatch.chdir(run.path)
    assert names(Path()) == ["one"]


def test_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text("{}")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "config.toml").write_text('baseURL = "https://example.org"\n')
    make_run(tmp_path / ".hidden" / "run")
    make_run(tmp_path / "mlflow-artifacts" / "1" / "artifacts")
    assert names(tmp_path) == []


def test_links_are_followed_once_and_into_no_loop(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere" / "one")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "again").symlink_to(tmp_path / "elsewhere" / "one")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "gone").symlink_to(tmp_path / "nowhere")
    rows = list_runs([tmp_path / "runs", tmp_path / "runs"])
    assert [row.path for row in rows] == [tmp_path / "runs" / "again"]


def test_a_folder_that_cannot_be_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "a" / "one")
    make_run(tmp_path / "b" / "two")
    real = os.listdir

    def listdir(path: Path) -> list[str]:
        if path == tmp_path / "a":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert names(tmp_path) == ["two"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no such folder: .*nowhere") as caught:
        list_runs([tmp_path / "nowhere"])
    assert "train --out" in caught.value.hint


# conditions, order, number


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Return a folder with three runs and a damaged one."""
    make_run(
        tmp_path / "a", "model.name=resnet50", "optim.lr=1e-3", test=0.8, val=(0.9, 0.7)
    )
    make_run(tmp_path / "b", "model.name=resnet18", "optim.lr=1e-2", test=0.9)
    make_run(
        tmp_path / "c",
        *("model.name=resnet18", "data.protocol=as-given", "model.mirror=true"),
        *("model.mean=[0.5, 0.5, 0.5]", "model.std=[0.25, 0.5, 0.5]"),
        *("model.extra.pad_type=same", "data.path=2024", "optim.lr=0.2"),
        is_finished=False,
    )
    no_config(make_run(tmp_path / "d"))
    return tmp_path


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["model.name=resnet18"], "bc"),
        (["model=resnet18"], "bc"),
        (["model!=resnet18"], "ad"),
        (["optim.lr=0.001"], "a"),
        (["optim.lr=1e-3"], "a"),
        (["optim.lr>0.001"], "bc"),
        (["optim.lr>=0.001"], "abc"),
        (["optim.lr<0.01"], "a"),
        (["optim.lr <= 0.01"], "ab"),
        (["optim.lr>0.005", "optim.lr<0.1"], "b"),
        (["test_accuracy>0.85"], "b"),
        (["test_accuracy=none"], "cd"),
        (["test_accuracy!=none"], "ab"),
        (["test_accuracy<none"], ""),
        (["val_accuracy>0.72"], "bc"),
        (["state=damaged"], "d"),
        (["state!=finished"], "cd"),
        (["protocol=as-given"], "c"),
        (["leak=no leak"], "abc"),
        (["model.mirror=true"], "c"),
        (["model.mirror=false"], "ab"),
        (["model.mirror=1"], ""),  # true is no number
        (["model.mean=[0.5,0.5,0.5]"], "c"),
        (["model.extra.pad_type=same"], "c"),
        (["model.extra.pad_type!=none"], "c"),
        (["data.path=2024"], "c"),
        (["name=c"], "c"),
        (["date>2020-01-01"], "abc"),
        (["date<2020-01-01"], ""),
        (["data.metadata=none"], "abcd"),
    ],
)
def test_conditions_choose(four: Path, conditions: list[str], expected: str) -> None:
    assert "".join(names(four, where=conditions)) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("test_accuracy", "abcd"),
        ("-test_accuracy", "bacd"),
        ("val_accuracy", "abcd"),
        ("optim.lr", "abcd"),
        ("-optim.lr", "cbad"),
        ("-name", "dcba"),
        ("protocol", "cabd"),
        ("model.extra.pad_type", "cabd"),
        ("-model.mirror", "cabd"),
        ("model.mean", "cabd"),
    ],
)
def test_any_key_sorts_and_what_has_no_value_comes_last(
    four: Path, key: str, expected: str
) -> None:
    assert "".join(names(four, sort=key)) == expected


def test_equal_values_stay_in_the_order_of_the_paths(tmp_path: Path) -> None:
    for place in ("a10", "a9"):
        make_run(tmp_path / place)
    assert names(tmp_path, sort="model") == ["a9", "a10"]
    assert names(tmp_path, sort="-leak") == ["a9", "a10"]
    assert names(tmp_path, sort="test_accuracy") == ["a9", "a10"]


def test_numbers_come_before_texts(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "model.extra.width=wide")
    make_run(tmp_path / "b", "model.extra.width=3")
    assert names(tmp_path, sort="model.extra.width") == ["b", "a"]


def test_none_is_also_a_word_that_some_settings_know(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "data.metadata=none")
    make_run(tmp_path / "b", "data.metadata=patients.csv")
    assert names(tmp_path, where=["data.metadata=none"]) == ["a"]
    assert names(tmp_path, where=["data.metadata!=none"]) == ["b"]


def test_the_limit_is_taken_after_sorting(four: Path) -> None:
    assert names(four, sort="-test_accuracy", limit=1) == ["b"]


@pytest.mark.parametrize("text", ["model.name", "=3", "optim.lr~3", "a b=3", ""])
def test_a_condition_of_another_form_is_refused(four: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="expected --where key=value") as caught:
        list_runs([four], where=[text])
    assert f"got {text!r}" in caught.value.problem
    assert "model.name=resnet50" in caught.value.hint


def test_a_number_is_not_put_in_order_with_a_word(four: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim.lr is a number, got --where") as it:
        list_runs([four], where=["optim.lr>abc"])
    assert "--where 'optim.lr>0." in it.value.hint
    # Equal to it is just none.
    assert list_runs([four], where=["optim.lr=abc"]) == []


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.lrr", "did you mean 'optim.lr'?"),
        ("test_acuracy", "did you mean 'test_accuracy'?"),
    ],
)
def test_an_unknown_key_gets_a_suggestion(four: Path, key: str, hint: str) -> None:
    for options in ({"where": [f"{key}=1"]}, {"sort": key}, {"sort": f"-{key}"}):
        with pytest.raises(
            ConfigError, match=rf"unknown column or setting '{key}'"
        ) as caught:
            list_runs([four], **options)
        assert caught.value.hint == hint


def test_every_column_can_be_asked_for_and_every_state_is_one_of_the_list(
    four: Path,
) -> None:
    rows = list_runs([four])
    assert {row.state for row in rows} <= set(STATES)
    for column in COLUMNS:
        list_runs([four], sort=column, where=[f"{column}!=none"])


# the command


def test_the_command_prints_a_line_for_each_run(
    four: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["runs", str(four), "--sort", "-test_accuracy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (first,) = [line for line in lines if line.startswith("b ")]
    for words in (
        "resnet18",
        "grouped",
        "finished, epoch 3 of 3",
        "75.0 %",
        "90.0 % (80.0 to 100.0)",
        "no leak",
        str(four / "b"),
    ):
        assert words in first
    assert [line[0] for line in lines if line[:2] in ("a ", "b ", "c ", "d ")] == [
        *"bacd"
    ]
    assert lines[-1].startswith("damaged: ")


def test_json_has_everything_for_programs(
    four: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["runs", str(four), "--json", "--limit", "2", "--where", "test_accuracy>0"]
    assert app.main(words) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], second["name"]) == ("a", "b")
    assert set(first) == {*COLUMNS, "external", "progress", "settings"}
    assert first["test_accuracy"]["high"] == pytest.approx(0.9)
    assert first["settings"]["optim"]["lr"] == 1e-3


def test_the_folder_runs_is_where_it_looks_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.main(["runs"]) == 2
    assert "no such folder: runs" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert app.main(["runs"]) == 0
    assert capsys.readouterr().out == "no run folders\n"
    make_run(tmp_path / "runs" / "one")
    assert app.main(["runs"]) == 0
    assert "runs/one" in capsys.readouterr().out


def test_listing_does_not_wait_for_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "one", test=0.5)
    code = (
        "import sys; from tumorlens.cli import app; "
        f"app.main(['runs', {str(tmp_path)!r}]); "
        "assert not {'torch', 'timm', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout
