"""Review of labels: who judges which image, what is listed and can be read back."""

from __future__ import annotations

import csv
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from support.images import CLASSES, draw_image
from support.runs_on_images import CLEAN, make_kfold_run, make_run
from tumorlens.config import parse_config
from tumorlens.data.index import read_index, with_labels
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import MissingExtraError, RunError
from tumorlens.evaluation.inference import predict_subset
from tumorlens.evaluation.review import judge_labels, review
from tumorlens.evaluation.review_file import (
    FILE,
    RANKED,
    SUGGESTED,
    Review,
    read_review,
)
from tumorlens.files import sha256_of, write_model
from tumorlens.runs.folder import Run, open_run

if TYPE_CHECKING:
    from pathlib import Path

COPY, CONFLICT = "glioma/8.png", "meningioma/9.png"


def leave_out(run: Run, reasons: dict[str, str], **changes: str) -> None:
    """Leave files of a run out of every subset, in the group of others."""
    for one in (run, *run.folds()):
        rows = [
            replace(row, subset="left-out", reason=reasons[row.path], **changes)
            if row.path in reasons
            else row
            for row in one.split()
        ]
        one.write_split(rows, CLEAN)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("review") / "data"
    for number, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        for n in range(10):
            image = draw_image(label, 10 * number + n, size_px=48)
            Image.fromarray(image).save(root / label / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def kfold(data: Path) -> tuple[Run, Review]:
    """Return a run of two folds with a copy and a conflict, and its review."""
    run = make_kfold_run(data.parent / "kfold", data)
    leave_out(run, {COPY: "copy of glioma/6.png"})
    reason = "conflicting labels: same picture as glioma/1.png (glioma)"
    leave_out(run, {CONFLICT: reason}, group="glioma/1.png")
    return run, review(run, device="cpu", command="tumorlens review").found


def test_label_quality_is_the_probability_of_the_label() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    probs = np.full((300, 3), 0.05)
    probs[np.arange(300), labels] = 0.9
    wrong = np.array([3, 77, 150])
    labels[wrong] = (labels[wrong] + 1) % 3
    quality, is_suspected = judge_labels(labels, probs)
    assert np.flatnonzero(is_suspected).tolist() == wrong.tolist()
    assert quality == pytest.approx(probs[np.arange(300), labels])


def test_each_image_is_judged_by_the_fold_that_tests_it(
    kfold: tuple[Run, Review], data: Path
) -> None:
    run, found = kfold
    table = predict_subset(run, read_index(data), "test", device="cpu")
    images = {one.path: one for one in found.images}
    for row, path in enumerate(table.paths):
        own = table.probs[row]
        assert images[path].quality == pytest.approx(own[table.labels[row]], abs=1e-6)
        assert images[path].likely == table.classes[int(own.argmax())]
        assert images[path].part == table.folds[row]
    # glioma/1.png is tested by fold 1, which has not learnt the conflicting picture.
    assert images.keys() - set(table.paths) == {CONFLICT}
    assert (images[CONFLICT].part, images[CONFLICT].is_conflict) == (1, True)
    assert sum(one.is_conflict for one in found.images) == 1
    assert found.not_looked_at == {"that are copies of others": 1}


def test_the_most_doubtful_label_is_first_and_the_files_agree(
    kfold: tuple[Run, Review],
) -> None:
    run, found = kfold
    qualities = [one.quality for one in found.images]
    assert qualities == sorted(qualities)
    assert read_review(run.review_path / FILE) == found
    with (run.review_path / RANKED).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [one.path for one in found.images]
    assert [row["suspected"] == "yes" for row in rows] == [
        one.is_suspected for one in found.images
    ]
    assert [look.command for look in run.looks()] == ["tumorlens review"]


def test_alike_images_are_of_other_groups_and_the_same_network(
    kfold: tuple[Run, Review],
) -> None:
    run, found = kfold
    images = {one.path: one for one in found.images}
    groups = {row.path: row.group for row in run.split()}
    for one in found.images:
        assert len(one.nearest) == 3
        assert {images[near.path].part for near in one.nearest} == {one.part}
        assert groups[one.path] not in {groups[near.path] for near in one.nearest}
        similar = [near.similarity for near in one.nearest]
        assert similar == sorted(similar, reverse=True)


def test_groups_that_have_several_labels_are_named(
    kfold: tuple[Run, Review],
) -> None:
    _, found = kfold
    assert found.mixed_groups == []  # a picture under two labels is no such group
    first, second = [one for one in found.images if one.part == 0][:2]
    one, other = (
        image.model_copy(update={"group": "g", "label": label})
        for image, label in ((first, "glioma"), (second, "pituitary"))
    )
    changed = found.model_copy(update={"images": (*found.images[:5], one, other)})
    assert changed.mixed_groups == [[one, other]]
    assert (
        "1 group of images, as of one patient, has several labels: 2" in changed.words
    )


def test_suggestions_are_corrections_that_can_be_read(
    kfold: tuple[Run, Review], data: Path
) -> None:
    run, found = kfold
    index = with_labels(read_index(data), run.review_path / SUGGESTED)
    labels = {record.path: record.label for record in index.records}
    assert found.suspected
    for one in found.suspected:
        assert labels[one.path] == one.likely
        assert {labels[copy] for copy in one.copies} <= {one.likely}
    kept = next(one for one in found.images if one.path == "glioma/6.png")
    assert kept.copies == (COPY,)
    assert (labels[COPY] == "glioma") == (not kept.is_suspected)


def test_what_a_hand_has_corrected_comes_first_and_is_not_suggested_anew(
    kfold: tuple[Run, Review], tmp_path: Path
) -> None:
    run, found = kfold
    shutil.copytree(run.path, tmp_path / "run")
    worst = found.suspected[0]
    file = tmp_path / "labels.csv"
    file.write_text(f"path,label,reason\n{worst.path},{worst.label},asked a reader\n")
    for one in (open_run(tmp_path / "run"), *open_run(tmp_path / "run").folds()):
        settings = one.config.model_dump(mode="json", exclude_none=True)
        settings["data"]["labels"] = str(file)
        Run(one.path, parse_config(settings)).write_config()
        digest = {"labels_sha256": sha256_of(file)}
        one.write_leak(one.leak().model_copy(update=digest))
    folder = review(open_run(tmp_path / "run"), device="cpu").folder
    with (folder / SUGGESTED).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0].values()) == [worst.path, worst.label, "asked a reader"]
    assert [row["path"] for row in rows].count(worst.path) == 1
    assert len(rows) > 1


def test_of_a_run_without_folds_val_and_test_are_looked_at(
    data: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", data)
    reason = "conflicting labels: same picture as glioma/0.png (glioma)"
    leave_out(run, {CONFLICT: reason}, group="glioma/0.png")
    found = review(run, device="cpu").found
    expected = {row.path for row in run.split() if row.subset in ("val", "test")}
    assert {one.path for one in found.images} == expected
    num_train = sum(row.subset == "train" for row in run.split())
    assert found.coverage == (
        f"Not looked at: {num_train} files of train, whose labels the network has "
        "learnt; 1 file under two labels, with images of their group in train."
    )


def test_a_run_that_cannot_be_reviewed_is_refused_and_keeps_its_files(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", data)
    (run.path / "finished").unlink()
    with pytest.raises(RunError, match="is not finished"):
        review(run, device="cpu")
    run.mark_finished()
    rows = [replace(row, subset="train") for row in run.split()]
    run.write_split(rows, CLEAN)
    with pytest.raises(RunError, match="has fewer than two images that it was not"):
        review(run, device="cpu")
    run.split_path.unlink()
    with pytest.raises(RunError, match=r"has no split\.csv"):
        review(run, device="cpu")
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingExtraError) as caught:
        review(run, device="cpu")
    assert caught.value.hint == 'pip install "tumorlens[review]"'
    assert not run.review_path.exists()


def test_a_damaged_review_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no .*review\.json"):
        read_review(tmp_path / FILE)
    found = Review.model_construct(
        run="r",
        protocol="grouped",
        leak=LeakVerdict(leaks=False, words=""),
        classes=("a", "b"),
        method="",
        shown_variance=(),
        images=(),
        not_looked_at={},
    )
    write_model(tmp_path / FILE, found)
    with pytest.raises(RunError, match=r"review\.json.*images"):
        read_review(tmp_path / FILE)
