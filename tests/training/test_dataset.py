"""From settings to the arrays of a subset: what is written, kept and refused."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tumorlens.config import parse_config
from tumorlens.data.images import ImageLimits, load_square
from tumorlens.data.index import (
    check_unchanged,
    read_index,
    read_split,
    write_split,
)
from tumorlens.data.seen import read_seen
from tumorlens.errors import DataError, RunError
from tumorlens.files import sha256_of
from tumorlens.runs.folder import Run, create_run
from tumorlens.training import dataset
from tumorlens.training.dataset import (
    PreparedData,
    image_limits,
    load_subset,
    prepare_data,
    rows_of_fold,
)
from tumorlens.training.loading import Decoding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = ("glioma", "no_tumor")
DECODING = Decoding(32, "pad", 3, ImageLimits())


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=10, classes=CLASSES)


@pytest.fixture
def make_run(tmp_path: Path, data: Path) -> Callable[..., Run]:
    """Return a function that makes a run of `data` with some settings changed."""

    def make(name: str = "run", **changes: Any) -> Run:
        settings = {"path": str(data), "cache_dir": str(tmp_path / "cache")} | changes
        config = parse_config({"data": settings, "model": {"name": "test_vit"}})
        return create_run(tmp_path / name, config)

    return make


def paths_of(data: PreparedData, subset: str) -> list[str]:
    return [row.path for row in data.subset_rows(subset)]


def test_limits_are_those_of_the_settings() -> None:
    config = parse_config({"data": {"max_file_mib": 0.5, "max_pixels": 77}}).data
    assert image_limits(config) == ImageLimits(max_bytes=2**19, max_pixels=77)


def test_without_data_there_is_an_error(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", parse_config({}))
    with pytest.raises(DataError, match=r"no data was named") as caught:
        prepare_data(run)
    assert "--data DIR" in caught.value.hint


def test_every_file_gets_a_subset_and_the_run_says_which(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    seen: list[tuple[int, int]] = []
    prepared = prepare_data(run, progress=lambda *step: seen.append(step))
    assert run.split() == prepared.rows
    assert len(prepared.rows) == 20
    sizes = [len(prepared.subset_rows(subset)) for subset in ("train", "val", "test")]
    assert sum(sizes) == 20
    assert min(sizes) >= 2
    assert run.leak().leaks is False
    assert run.leak().num_test == sizes[2]
    assert prepared.num_unreadable == 0
    assert seen[-1] == (20, 20)


def test_the_seed_of_the_run_deals_the_subsets(make_run: Callable[..., Run]) -> None:
    run = make_run("first")
    first = prepare_data(run)
    again = prepare_data(make_run("again"))
    assert first.rows == again.rows
    other = make_run("other")
    train = other.config.train.model_copy(update={"seed": 7})
    config = other.config.model_copy(update={"train": train})
    assert prepare_data(Run(other.path, config)).rows != first.rows


def test_an_interrupted_run_keeps_its_split_and_searches_no_copies(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    before = prepare_data(run).rows
    swapped = tuple(
        replace(row, subset={"val": "test", "test": "val"}.get(row.subset, row.subset))
        for row in before
    )
    run.write_split(swapped, run.leak())

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(dataset, "find_duplicates", fail)
    assert prepare_data(run).rows == swapped


@pytest.mark.parametrize("gone", ["split.csv", "leak.json"])
def test_a_run_with_weights_is_not_dealt_a_new_split(
    make_run: Callable[..., Run], gone: str
) -> None:
    run = make_run()
    prepare_data(run)
    (run.path / gone).unlink()
    run.weights_path.write_bytes(b"")
    with pytest.raises(RunError, match="has weights, and no"):
        prepare_data(run)


def test_a_run_killed_before_its_verdict_makes_its_split_again(
    make_run: Callable[..., Run],
) -> None:
    run = make_run()
    before = prepare_data(run).rows
    run.leak_path.unlink()
    assert prepare_data(run).rows == before
    assert run.leak_path.is_file()


@pytest.mark.parametrize("change", ["content", "gone", "new"])
def test_data_that_changed_since_the_run_are_named(
    change: str, make_run: Callable[..., Run], data: Path
) -> None:
    run = make_run()
    prepare_data(run)
    path = data / "glioma" / "3.png"
    if change == "content":
        Image.new("L", (40, 40), 9).save(path)
    elif change == "gone":
        path.unlink()
    else:
        path = data / "glioma" / "new.png"
        shutil.copy(data / "glioma" / "3.png", path)
    with pytest.raises(
        RunError, match=rf"1 file\(s\) differ, the first is glioma/{path.name}"
    ) as caught:
        prepare_data(run)
    assert "start a new run" in caught.value.hint


def test_all_changes_are_counted(make_run: Callable[..., Run], data: Path) -> None:
    rows = prepare_data(make_run()).rows
    (data / "glioma" / "1.png").unlink()
    (data / "no_tumor" / "1.png").rename(data / "no_tumor" / "x.png")
    with pytest.raises(RunError, match=r"3 file\(s\) differ"):
        check_unchanged(rows, read_index(data))


def test_unreadable_files_are_left_out_and_counted(
    make_run: Callable[..., Run], data: Path
) -> None:
    (data / "glioma" / "3.png").write_bytes(b"")
    run = make_run(max_unreadable=0.06)
    prepared = prepare_data(run)
    assert prepared.num_unreadable == 1
    assert paths_of(prepared, "left-out") == ["glioma/3.png"]
    (row,) = prepared.subset_rows("left-out")
    assert row.reason.startswith("unreadable")


def test_too_many_unreadable_files_end_the_run(
    make_run: Callable[..., Run], data: Path
) -> None:
    (data / "glioma" / "3.png").write_bytes(b"")
    run = make_run(max_unreadable=0.04)
    with pytest.raises(
        DataError,
        match=r"1 of 20 files \(5\.0 %\) cannot be read; data\.max_unreadable allows 4",
    ) as caught:
        prepare_data(run)
    assert "tumorlens audit" in caught.value.hint
    assert not run.split_path.exists()


def test_just_as_many_unreadable_files_as_allowed_are_borne(
    make_run: Callable[..., Run], data: Path
) -> None:
    (data / "glioma" / "3.png").write_bytes(b"")
    assert prepare_data(make_run(max_unreadable=0.05)).num_unreadable == 1


def test_the_limits_of_the_settings_make_a_file_unreadable(
    make_run: Callable[..., Run], data: Path
) -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 255, (120, 120), dtype=np.uint8)
    Image.fromarray(large).save(data / "glioma" / "3.png")
    run = make_run(max_pixels=100 * 100, max_unreadable=0.5)
    assert paths_of(prepare_data(run), "left-out") == ["glioma/3.png"]


def test_a_split_of_ones_own_is_used_as_it_stands(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    rows = prepare_data(make_run("first")).rows
    swapped = tuple(
        replace(row, subset={"val": "test", "test": "val"}.get(row.subset, row.subset))
        for row in rows
    )
    write_split(tmp_path / "mine.csv", swapped)
    run = make_run(split=str(tmp_path / "mine.csv"))
    assert prepare_data(run).rows == swapped
    assert read_split(run.split_path) == swapped


def test_a_split_of_ones_own_need_not_know_what_is_unreadable(
    make_run: Callable[..., Run], tmp_path: Path, data: Path
) -> None:
    (data / "glioma" / "3.png").write_bytes(b"")
    rows = prepare_data(make_run("first")).rows
    naive = tuple(
        replace(row, subset="train", reason="") if row.path == "glioma/3.png" else row
        for row in rows
    )
    write_split(tmp_path / "mine.csv", naive)
    run = make_run(split=str(tmp_path / "mine.csv"))
    prepared = prepare_data(run)
    assert prepared.rows == rows
    assert prepared.num_unreadable == 1
    subset = load_subset(prepared, "train", decoding=DECODING, config=run.config.data)
    assert len(subset.images) == 19


def test_a_split_of_ones_own_with_a_copy_on_two_sides_is_refused(
    make_run: Callable[..., Run], tmp_path: Path, data: Path
) -> None:
    shutil.copy(data / "glioma" / "3.png", data / "glioma" / "copy.png")
    index = read_index(data)
    rows = prepare_data(make_run("first", protocol="grouped")).rows
    # As if its maker knew of no groups: every file is its own.
    torn = [replace(row, group=row.path, reason="") for row in rows]
    subsets = {"glioma/3.png": "train", "glioma/copy.png": "test"}
    torn = [replace(row, subset=subsets.get(row.path, row.subset)) for row in torn]
    write_split(tmp_path / "mine.csv", torn)
    with pytest.raises(
        DataError, match=r"glioma/3\.png in train and glioma/copy\.png in test"
    ):
        prepare_data(make_run("grouped", split=str(tmp_path / "mine.csv")))

    # The protocol for given splits takes it, and says what it is.
    run = make_run("given", split=str(tmp_path / "mine.csv"), protocol="as-given")
    prepare_data(run)
    assert run.leak().leaks is True
    assert run.leak().num_copied == 1
    assert len(index.records) == 21


def test_a_kfold_run_has_folds_and_each_fold_a_split(
    make_run: Callable[..., Run],
) -> None:
    run = make_run("whole", protocol="grouped-kfold", num_folds=3)
    prepared = prepare_data(run)
    assert {row.subset for row in prepared.rows} == {"fold-0", "fold-1", "fold-2"}
    tested: list[str] = []
    for fold in range(3):
        rows = rows_of_fold(run, prepared.rows, fold)
        assert {row.subset for row in rows} == {"train", "val", "test"}
        test = [row.path for row in rows if row.subset == "test"]
        assert test == paths_of(prepared, f"fold-{fold}")
        tested += test
    assert sorted(tested) == [row.path for row in prepared.rows]

    single = make_run("one", protocol="grouped-kfold", num_folds=3, fold=1)
    assert prepare_data(single).rows == rows_of_fold(run, prepared.rows, 1)


def test_metadata_keep_a_patient_together(
    make_run: Callable[..., Run], data: Path
) -> None:
    with (data / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient"])
        for label in CLASSES:
            writer.writerows(
                [f"{label}/{n}.png", f"{label}-{n // 2}"] for n in range(10)
            )
    subset_of = {row.path: row.subset for row in prepare_data(make_run()).rows}
    for label in CLASSES:
        for n in range(0, 10, 2):
            assert subset_of[f"{label}/{n}.png"] == subset_of[f"{label}/{n + 1}.png"]


def test_a_subset_has_its_images_and_labels(
    make_run: Callable[..., Run], data: Path
) -> None:
    (data / "glioma" / "3.png").write_bytes(b"")
    run = make_run(max_unreadable=0.5)
    prepared = prepare_data(run)
    for name in ("train", "val", "test"):
        subset = load_subset(prepared, name, decoding=DECODING, config=run.config.data)
        rows = prepared.subset_rows(name)
        assert subset.labels.tolist() == [CLASSES.index(row.label) for row in rows]
        assert subset.labels.dtype == np.int64
        plain = subset.plain()
        assert len(plain) == len(rows)
        for n, row in enumerate(rows):
            expected = load_square(data / row.path, size_px=32, fit="pad", in_chans=1)
            assert (plain[n].numpy()[0] == expected[:, :, 0]).all()


def test_all_subsets_and_splits_of_a_set_share_one_cache(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    for protocol in ("grouped", "grouped-kfold"):
        run = make_run(protocol, protocol=protocol, num_folds=3)
        prepared = prepare_data(run)
        for name in ("train", "val", "fold-1"):
            load_subset(prepared, name, decoding=DECODING, config=run.config.data)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_set_above_the_limit_is_not_cached(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run(cache_limit_mib=0.01)
    subset = load_subset(
        prepare_data(run), "val", decoding=DECODING, config=run.config.data
    )
    assert subset.plain()[0].shape == (3, 32, 32)
    assert not (tmp_path / "cache").exists()


def test_decoding_tells_its_progress(make_run: Callable[..., Run]) -> None:
    run = make_run()
    seen: list[tuple[int, int]] = []
    load_subset(
        prepare_data(run),
        "val",
        decoding=DECODING,
        config=run.config.data,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(n, 20) for n in range(1, 21)]


# Corrected labels


def write_labels(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["path,label,reason", *lines]), encoding="utf-8")
    return path


def test_corrected_labels_are_those_of_split_seen_and_arrays(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    file = write_labels(tmp_path / "labels.csv", "glioma/3.png,no_tumor,seen again")
    run = make_run(labels=str(file))
    prepared = prepare_data(run)
    (row,) = [one for one in run.split() if one.path == "glioma/3.png"]
    assert row.label == "no_tumor"
    assert run.leak().labels_sha256 == sha256_of(file)
    seen = read_seen(run.seen_path)
    kept = [one for one in prepared.rows if one.subset in ("train", "val")]
    assert seen.labels.tolist() == [CLASSES.index(one.label) for one in kept]
    arrays = load_subset(
        prepared, row.subset, decoding=DECODING, config=run.config.data
    )
    place = paths_of(prepared, row.subset).index("glioma/3.png")
    assert arrays.labels[place] == 1


def test_other_corrected_labels_under_the_same_run_are_refused(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    file = write_labels(tmp_path / "labels.csv", "glioma/3.png,no_tumor,seen again")
    run = make_run(labels=str(file))
    prepare_data(run)
    prepare_data(run)  # the same file again is no change
    written = run.split_path.read_bytes()
    write_labels(file, "glioma/4.png,no_tumor,seen again")
    for now, words in (
        (run, "was the file with SHA-256 .*, and is the file with"),
        (
            replace(run, config=parse_config({"data": {"path": run.config.data.path}})),
            "was the file with SHA-256 .*, and is no file",
        ),
    ):
        with pytest.raises(RunError, match=words) as caught:
            prepare_data(now)
        assert caught.value.hint == "restore the file, or start a new run"
    assert run.split_path.read_bytes() == written


def test_copies_whose_labels_are_corrected_together_stay_in(
    make_run: Callable[..., Run], data: Path, tmp_path: Path
) -> None:
    shutil.copy(data / "glioma" / "3.png", data / "glioma" / "3-copy.png")
    alone = write_labels(tmp_path / "one.csv", "glioma/3.png,no_tumor,")
    both = write_labels(
        tmp_path / "both.csv", "glioma/3.png,no_tumor,", "glioma/3-copy.png,no_tumor,"
    )
    reasons = {
        name: [
            one.reason.partition(":")[0]
            for one in prepare_data(make_run(name, labels=str(file))).rows
            if one.subset == "left-out"
        ]
        for name, file in (("alone", alone), ("both", both))
    }
    assert reasons == {
        "alone": ["conflicting labels"] * 2,
        "both": ["copy of glioma/3-copy.png"],
    }
