from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import tumorlens
from tumorlens.config import Config, load_config
from tumorlens.data.index import SplitRow, write_split
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import RunError
from tumorlens.files import sha256_of, sha256_of_bytes
from tumorlens.runs.folder import ModelCard, Run, create_run, open_run

if TYPE_CHECKING:
    from pathlib import Path

ROWS = (
    SplitRow("glioma/1.png", "ab" * 32, "glioma", "glioma/1.png", "train", ""),
    SplitRow("glioma/2.png", "cd" * 32, "glioma", "glioma/2.png", "test", ""),
)
CLEAN = LeakVerdict(leaks=False, words="none found")
WEIGHTS = b"not really weights, but the digest does not mind"


def make_card(**changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "format": 1,
        "tumorlens": tumorlens.__version__,
        "name": "test_resnet",
        "classes": ("glioma", "pituitary"),
        "in_chans": 3,
        "size_px": 32,
        "fit": "pad",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "mirror": False,
        "epoch": 1,
        "weights_sha256": sha256_of_bytes(WEIGHTS),
    }
    return ModelCard(**(values | changes))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = create_run(tmp_path / "run", Config())
    run.write_weights(WEIGHTS, make_card())
    return run


def edit_card(run: Run, **changes: Any) -> None:
    content = json.loads(run.card_path.read_text())
    run.card_path.write_text(json.dumps(content | changes))


def test_a_run_reads_back_what_was_written(run: Run) -> None:
    run.write_split(ROWS, CLEAN)
    run.write_history([{"epoch": 1, "val_loss": 0.5}])
    run.write_environment({"python": "3.11"})

    again = open_run(run.path)
    assert again.config == run.config
    assert again.card() == make_card()
    assert again.split() == ROWS
    digest = sha256_of(run.split_path)
    assert again.leak() == CLEAN.model_copy(update={"split_sha256": digest})
    assert again.history() == [{"epoch": 1, "val_loss": 0.5}]
    assert again.environment() == {"python": "3.11"}


def test_a_split_that_was_replaced_is_refused_and_a_resaved_one_read(run: Run) -> None:
    run.write_split(ROWS, CLEAN)
    text = run.split_path.read_text()
    run.split_path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert run.split() == ROWS

    first, second = ROWS
    write_split(run.split_path, [replace(first, subset="test"), second])
    with pytest.raises(RunError, match=r"split\.csv is not the split that this run"):
        run.split()
    # A run of an earlier version has no digest to compare with.
    run.write_leak(CLEAN)
    assert run.split()[0].subset == "test"


def test_the_config_is_complete_in_the_run_folder(tmp_path: Path) -> None:
    create_run(tmp_path / "run", load_config(assignments=["optim.lr=0.5"]))
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "lr = 0.5" in text
    assert "batch_size = 32" in text  # a default


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match=r"run exists already") as caught:
        create_run(tmp_path / "run", Config())
    assert "--resume" in caught.value.hint
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_run_killed_at_its_first_file_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.123.tmp.toml").write_text("[da")
    assert create_run(tmp_path / "run", Config()).config == Config()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no such run folder: .*nowhere"):
        open_run(tmp_path / "nowhere")


def test_a_folder_without_settings_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run folder: it has no config.toml"):
        open_run(tmp_path)


def test_settings_of_another_version_are_named(run: Run) -> None:
    (run.path / "config.toml").write_text("[optim]\nwarp_factor = 9\n")
    with pytest.raises(
        RunError, match=r"unknown setting 'optim.warp_factor'"
    ) as caught:
        open_run(run.path)
    assert "another version" in caught.value.hint


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_a_model_of_another_format_is_refused(run: Run, number: object) -> None:
    edit_card(run, format=number)
    with pytest.raises(RunError, match=rf"expected format 1 in .*, got {number!r}"):
        run.card()


def test_a_damaged_card_is_named_with_its_field(run: Run) -> None:
    edit_card(run, size_px=-3)
    with pytest.raises(RunError, match=r"damaged at size_px: .* to 16, got -3"):
        run.card()


@pytest.mark.parametrize("content", ["{", "[]", "", "[" * 100_000])
def test_a_card_that_is_not_ours_is_refused(run: Run, content: str) -> None:
    run.card_path.write_text(content)
    with pytest.raises(RunError, match=r"model\.json"):
        run.card()


def test_tampered_weights_are_refused(run: Run) -> None:
    run.weights_path.write_bytes(WEIGHTS + b"!")
    with pytest.raises(RunError, match=r"weights.safetensors is not the file that"):
        run.card()
    assert run.card(check_weights=False) == make_card()


def test_a_finished_run_is_not_told_to_resume_for_what_resuming_cannot_mend(
    run: Run,
) -> None:
    run.mark_finished()
    run.weights_path.write_bytes(WEIGHTS + b"!")
    with pytest.raises(RunError) as tampered:
        run.card()
    run.weights_path.unlink()
    with pytest.raises(RunError) as missing:
        run.card()
    run.card_path.write_text("{")
    with pytest.raises(RunError) as damaged:
        run.card()
    for caught in (tampered, missing, damaged):
        assert "--resume" not in caught.value.hint
        assert "restore the file" in caught.value.hint
        assert "train again" in caught.value.hint


def test_a_run_without_weights_says_how_to_get_them(run: Run) -> None:
    run.weights_path.unlink()
    with pytest.raises(RunError, match=r"has no weights.safetensors") as caught:
        run.card()
    assert "--resume" in caught.value.hint


def test_a_run_that_was_never_trained_says_so(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", Config())
    with pytest.raises(RunError, match=r"there is no .*model.json"):
        run.card()


def test_a_run_without_a_split_says_where_one_comes_from(run: Run) -> None:
    with pytest.raises(
        RunError, match=r"run has no split\.csv, and so no subsets"
    ) as caught:
        run.split()
    assert "tumorlens import" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", r"leak\.json is damaged at leaks: Field required"),
        ('{"leaks": true}', r"leak\.json is damaged at words: Field required"),
        (
            '{"leaks": true, "words": "", "num_copied": -1}',
            r"leak\.json is damaged at num_copied: .*got -1",
        ),
        ('{"format": 2}', r"expected format 1 in .*leak\.json, got 2"),
        ("[]", r"expected format 1 in .*leak\.json, got \[\]"),
    ],
)
def test_a_damaged_leak_verdict_names_file_and_field(
    run: Run, content: str, problem: str
) -> None:
    run.leak_path.write_text(content)
    with pytest.raises(RunError, match=problem):
        run.leak()


def test_a_leak_verdict_from_before_it_had_a_number_is_read(run: Run) -> None:
    run.leak_path.write_text(
        """{"leaks": false, "num_test": 8, "num_copied": 0, "num_pixel_identical": 0,
        "num_patients_on_both_sides": 0, "num_test_unknown_patient": 3,
        "words": "No copies found.", "num_test_patient_in_train": 0}"""
    )
    verdict = run.leak()
    assert (verdict.format, verdict.num_test, verdict.is_known) == (1, 8, True)
    assert verdict.state == "patients partly known"
    run.leak_path.write_text('{"leaks": true, "is_known": false, "words": "Imported."}')
    assert run.leak().state == "unknown"


@pytest.mark.parametrize("written", ["null", "NaN"])
def test_a_figure_of_history_that_is_not_finite_is_nan_and_null_in_the_file(
    run: Run, written: str
) -> None:
    run.write_history([{"epoch": 1, "val_loss": math.inf, "is_best": False}])
    assert run.history_path.read_text() == (
        '{"epoch": 1, "val_loss": null, "is_best": false}\n'
    )
    run.history_path.write_text(f'{{"epoch": 1, "val_loss": {written}}}\n')
    (row,) = run.history()
    assert math.isnan(row["val_loss"])


def test_half_a_line_of_history_is_named(run: Run) -> None:
    run.history_path.write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(RunError, match=r"history.jsonl is not one JSON object"):
        run.history()


def test_every_look_at_test_is_kept_in_order(run: Run) -> None:
    run.log_look(subset="test", command="first")
    run.log_look(subset="test", command="second")
    assert [look.command for look in run.looks()] == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("environment.json", "[1]", r"damaged: Input should be a valid dict"),
        ("environment.json", '{"command": 5}', r"damaged at command.*, got 5"),
        ("environment.json", '{"packages": []}', r"damaged at packages: .*, got \[\]"),
        ("tracking.json", "[]", r"damaged: Input should be a valid dict"),
        ("tracking.json", '{"sent": 1}', r"damaged at sent: .*, got 1"),
        ("history.jsonl", '{"epoch": 0}', r"damaged at line 1, epoch: .*, got 0"),
        (
            "history.jsonl",
            '{"epoch": 1}\n{"epoch": 2, "val_loss": "x"}',
            r"damaged at line 2, val_loss: .*, got 'x'",
        ),
        (
            "history.jsonl",
            '{"epoch": 1, "lr": [1]}',
            r"damaged at line 1, lr.*, got \[1\]",
        ),
    ],
)
def test_a_damaged_file_is_an_error_with_file_and_field(
    run: Run, name: str, content: str, problem: str
) -> None:
    (run.path / name).write_text(content)
    read = {
        "environment.json": run.environment,
        "tracking.json": run.tracking,
        "history.jsonl": run.history,
    }
    with pytest.raises(RunError, match=rf"{re.escape(name)} is {problem}"):
        read[name]()


def test_looks_at_the_same_moment_are_all_kept(run: Run) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda n: run.log_look(subset="test", command=f"look {n}"), range(40)
            )
        )
    assert {look.command for look in run.looks()} == {f"look {n}" for n in range(40)}


def test_a_run_that_learnt_nothing_is_removed_but_not_what_others_put_there(
    tmp_path: Path,
) -> None:
    run = kfold_run(tmp_path / "run", 2)
    run.write_environment({})
    run.remove_unlearnt()
    assert not run.path.exists()
    run = kfold_run(tmp_path / "run", 2)
    (run.fold_path(1) / "thesis.txt").write_text("years of work")
    run.remove_unlearnt()
    assert [path.name for path in run.path.rglob("*") if path.is_file()] == [
        "thesis.txt"
    ]
    run = kfold_run(tmp_path / "learnt", 2)
    (run.fold_path(1) / "weights.safetensors").write_bytes(b"dear")
    before = sorted(run.path.rglob("*"))
    run.remove_unlearnt()
    assert sorted(run.path.rglob("*")) == before


def test_a_damaged_look_is_an_error_with_file_and_field(run: Run) -> None:
    (run.path / "looks.jsonl").write_text('{"time": "2026", "subset": "test"}\n')
    with pytest.raises(
        RunError, match=r"looks\.jsonl is damaged at line 1, command: Field"
    ):
        run.looks()


def test_a_finished_run_has_no_checkpoint_left(run: Run) -> None:
    run.checkpoint_path.parent.mkdir()
    run.checkpoint_path.write_bytes(b"state")
    assert not run.is_finished
    run.mark_finished()
    assert run.is_finished
    assert not run.checkpoint_path.parent.exists()


def test_halves_of_files_are_removed_and_nothing_else(run: Run) -> None:
    before = sorted(run.path.rglob("*"))
    (run.path / ".weights.7.tmp.safetensors").write_bytes(b"half")
    (run.path / ".notes.txt").write_text("mine")
    run.remove_partial_files()
    assert sorted(run.path.rglob("*")) == sorted([*before, run.path / ".notes.txt"])


def kfold_run(path: Path, num_folds: int) -> Run:
    settings = ["data.protocol=grouped-kfold", f"data.num_folds={num_folds}"]
    run = create_run(path, load_config(assignments=settings))
    for fold in range(num_folds):
        config = load_config(assignments=[*settings, f"data.fold={fold}"])
        create_run(run.fold_path(fold), config)
    return run


def test_a_kfold_run_is_made_of_ordinary_runs_in_order(tmp_path: Path) -> None:
    run = kfold_run(tmp_path / "run", 12)
    assert run.is_kfold
    assert [fold.config.data.fold for fold in run.folds()] == list(range(12))
    assert not any(fold.is_kfold for fold in run.folds())


def test_a_kfold_run_is_finished_when_every_fold_is(tmp_path: Path) -> None:
    run = kfold_run(tmp_path / "run", 2)
    run.folds()[0].mark_finished()
    assert not run.is_finished
    run.folds()[1].mark_finished()
    assert run.is_finished


def test_an_ordinary_run_has_no_folds(run: Run) -> None:
    assert run.folds() == ()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"std": [0.0, 0.2, 0.2]}, "std.0"),
        ({"std": [0.2]}, "std: .*expected 3 values, one per channel"),
        ({"mean": [0.5]}, "mean: .*expected 3 values, one per channel"),
        ({"classes": ["a", "a"]}, "classes: .*a class is there twice"),
        ({"in_chans": 9}, "in_chans"),
    ],
)
def test_a_card_that_no_network_can_have_is_damaged(
    tmp_path: Path, change: dict[str, Any], place: str
) -> None:
    run = create_run(tmp_path / "run", Config())
    content = make_card().model_dump(mode="json") | change
    (run.path / "model.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match=rf"model.json is damaged at {place}"):
        run.card()
