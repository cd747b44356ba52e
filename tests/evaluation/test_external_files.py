"""The three files of an evaluation on another set belong together, or are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.handmade_external import write_evaluation
from tumorlens.errors import DataError, RunError
from tumorlens.evaluation.external_files import (
    SEEN,
    check_place,
    read_evaluation,
)
from tumorlens.files import is_ours

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_images_are_found_by_what_training_has_seen_of_them(tmp_path: Path) -> None:
    metrics = write_evaluation(
        tmp_path, [1, 0, 1, 0, 1], "npnsn", left_out={"9.png": "copy of 0000.png"}
    )
    found = read_evaluation(tmp_path)
    assert found.metrics == metrics
    assert found.rows({"new"}).paths == ("0000.png", "0002.png", "0004.png")
    assert found.rows(SEEN).paths == ("0001.png", "0003.png")
    assert found.rows(["not-known"]).paths == ()


def drop_an_answer(folder: Path) -> str:
    path = folder / "predictions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    return r"are not those of external\.json: expected 3 new.*, got 2 new"


def call_a_seen_image_new(folder: Path) -> str:
    path = folder / "images.csv"
    path.write_text(path.read_text().replace("seen-picture", "new"))
    return r"expected 3 new, 1 seen-picture, 1 seen-patient, got 4 new, 1 seen-patient"


def invent_a_state(folder: Path) -> str:
    path = folder / "images.csv"
    path.write_text(path.read_text().replace("seen-picture", "old"))
    return r"images\.csv, line 3: expected new, seen-picture, .*, got 'old'"


def lose_an_image(folder: Path) -> str:
    path = folder / "images.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    return r"expected 3 new.*, got 2 new, .* 1 left-out"


@pytest.mark.parametrize(
    "spoil", [drop_an_answer, call_a_seen_image_new, invent_a_state, lose_an_image]
)
def test_files_of_different_evaluations_are_refused(
    tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    write_evaluation(tmp_path, [1, 0, 1, 0, 1], "npnsn")
    words = spoil(tmp_path)
    with pytest.raises(RunError, match=words) as caught:
        read_evaluation(tmp_path)
    assert caught.value.hint == "evaluate the model on the set again"


def test_a_missing_list_of_images_is_named(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [1, 0], "np")
    (tmp_path / "images.csv").unlink()
    with pytest.raises(DataError, match=r"cannot open the table .*images\.csv"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"counts": {"new": 4}}, "expected the seen and the new images to be all"),
        ({"counts": {"new": 2, "seen_patients": 2}}, "expected 3 images in seen"),
        ({"new": None}, "expected 3 images in new, as in counts"),
        ({"counts": {"tested": 6, "new": 4}}, "expected 6 images in all"),
        ({"is_seen_known": False}, "expected the seen and the new images to be all"),
        ({"new": {"classes": ["glioma", "x"]}}, "expected the names of classes in per"),
        ({"name": "../up"}, "damaged at name"),
        ({"format": 2}, r"expected format 1 in .*external\.json, got 2"),
    ],
)
def test_figures_that_contradict_each_other_are_refused(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    write_evaluation(tmp_path, [1, 0, 1, 0, 1], "npnsn")
    path = tmp_path / "external.json"
    content = json.loads(path.read_text())
    for key, value in change.items():
        is_part = isinstance(value, dict)
        content[key] = content[key] | value if is_part else value
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=problem):
        read_evaluation(tmp_path)


def test_parts_of_other_classes_are_refused(tmp_path: Path) -> None:
    write_evaluation(tmp_path, [1, 0, 1, 0, 1], "npnsn")
    path = tmp_path / "external.json"
    content = json.loads(path.read_text())
    content["new"] = json.loads(json.dumps(content["new"]).replace("glioma", "other"))
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="expected the same classes in new as in all"):
        read_evaluation(tmp_path)


def unfinished(folder: Path, *, names: tuple[str, ...]) -> Path:
    """Return the folder of an evaluation whose process was killed."""
    folder.mkdir()
    for name in (".lock", *names):
        (folder / name).write_text("path\n")
    assert is_ours(folder / ".lock")
    return folder


@pytest.mark.parametrize(
    "names", [(), ("predictions.csv",), ("predictions.csv", "images.csv")]
)
def test_what_a_killed_process_left_is_replaced(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    out = unfinished(tmp_path / "out", names=names)
    check_place(out, images=[], model="run", data_sha256="1")


def test_tables_of_somebody_are_not_taken_for_that(tmp_path: Path) -> None:
    others = unfinished(tmp_path / "others", names=("predictions.csv", "notes.txt"))
    own = tmp_path / "own"
    own.mkdir()
    (own / "predictions.csv").write_text("path\n")
    for out in (others, own):
        with pytest.raises(DataError, match="is no evaluation of run"):
            check_place(out, images=[], model="run", data_sha256="1")
