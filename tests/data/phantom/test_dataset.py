import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tumorlens.data.index import read_index
from tumorlens.data.phantom import dataset
from tumorlens.data.phantom.atlas import Atlas, load_atlas
from tumorlens.data.phantom.dataset import PhantomSummary, make_phantom
from tumorlens.data.phantom.masks import read_mask
from tumorlens.errors import ConfigError, DataError

PATIENTS = 12
SIZE_PX = 96


@pytest.fixture(scope="module", autouse=True)
def atlas() -> Iterator[Atlas]:
    """Loaded once: it is always the same, and half of the time of a small set."""
    loaded = load_atlas()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "load_atlas", lambda: loaded)
        yield loaded


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, atlas: Atlas) -> PhantomSummary:
    out = tmp_path_factory.mktemp("phantom") / "set"
    return make_phantom(out, patients=PATIENTS, seed=7, size_px=SIZE_PX)


@pytest.fixture(scope="module")
def faults(made: PhantomSummary) -> list[dict[str, Any]]:
    content = json.loads((made.path / "planted.json").read_text(encoding="utf-8"))
    listed: list[dict[str, Any]] = content["faults"]
    return listed


def paths_of(faults: list[dict[str, Any]], kind: str) -> list[list[str]]:
    return [fault["paths"] for fault in faults if fault["kind"] == kind]


def images_in(folder: Path) -> list[str]:
    """Every file under the class folders, as planted.json and metadata.csv name it."""
    files = folder.glob("T*/*/*")
    return sorted(file.relative_to(folder).as_posix() for file in files)


def grey(file: Path, *, mirror: bool = False) -> NDArray[np.float64]:
    """A picture at 64 x 64, with mean 0 and length 1."""
    with Image.open(file) as image:
        turned = ImageOps.mirror(image) if mirror else image
        small = turned.resize((64, 64), Image.Resampling.LANCZOS)
    values = np.asarray(small, dtype=float).ravel()
    values -= values.mean()
    normed: NDArray[np.float64] = values / np.linalg.norm(values)
    return normed


def test_each_patient_has_eight_slices_and_each_class_its_share(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    # 12 patients of 8 slices and the truncated file, one copy of each of 5 kinds.
    assert made.num_images == 12 * 8 + 1 + 5 == len(images_in(made.path))
    assert sum(made.by_class.values()) == made.num_images
    assert list(made.by_class) == ["glioma", "meningioma", "no_tumor", "pituitary"]
    found = Counter(path.split("/")[1] for path in images_in(made.path))
    assert found == made.by_class
    assert Counter(fault["kind"] for fault in faults) == made.planted
    assert set(made.planted.values()) == {1}
    assert len(made.planted) == 8


def test_every_class_is_on_both_sides(made: PhantomSummary) -> None:
    folders = {path.rpartition("/")[0] for path in images_in(made.path)}
    assert folders == {
        f"{s}/{c}" for s in ("Training", "Testing") for c in made.by_class
    }


def test_the_metadata_name_the_patient_of_every_file_but_the_copies(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    with (made.path / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kinds = ("byte-copy", "re-encoded", "resized", "mirrored", "two-labels")
    copies = {pair[1] for kind in kinds for pair in paths_of(faults, kind)}
    assert len(copies) == 5
    assert {row["path"] for row in rows} == set(images_in(made.path)) - copies
    assert len({row["patient"] for row in rows}) == PATIENTS


def test_only_the_planted_patients_are_on_both_sides(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    sides: dict[str, set[str]] = {}
    with (made.path / "metadata.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sides.setdefault(row["patient"], set()).add(row["path"].split("/")[0])
    both = {patient for patient, where in sides.items() if len(where) == 2}
    listed = [fault for fault in faults if fault["kind"] == "patient-on-both-sides"]
    assert both == {fault["patient"] for fault in listed}
    assert len(listed[0]["paths"]) == 8
    assert {path.split("/")[0] for path in listed[0]["paths"]} == {
        "Training",
        "Testing",
    }


def test_a_byte_copy_has_the_bytes_of_its_source_on_the_other_side(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    [[source, copy]] = paths_of(faults, "byte-copy")
    assert (made.path / source).read_bytes() == (made.path / copy).read_bytes()
    assert source.split("/")[0] == "Training"
    assert copy.split("/")[0] == "Testing"
    assert source.split("/")[1] == copy.split("/")[1]


@pytest.mark.parametrize("kind", ["re-encoded", "resized", "mirrored"])
def test_a_changed_copy_shows_the_same_picture_with_other_pixels(
    made: PhantomSummary, faults: list[dict[str, Any]], kind: str
) -> None:
    [[source, copy]] = paths_of(faults, kind)
    with Image.open(made.path / source) as a, Image.open(made.path / copy) as b:
        assert a.tobytes() != b.tobytes()
        assert (a.size == b.size) == (kind != "resized")
    plain = float(grey(made.path / source) @ grey(made.path / copy))
    turned = float(grey(made.path / source, mirror=True) @ grey(made.path / copy))
    same, other = (turned, plain) if kind == "mirrored" else (plain, turned)
    assert same > 0.99
    assert other < 0.95
    assert (source.split("/")[0], copy.split("/")[0]) == ("Training", "Testing")


def test_one_picture_lies_under_two_labels_within_training(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    [[source, copy]] = paths_of(faults, "two-labels")
    assert (made.path / source).read_bytes() == (made.path / copy).read_bytes()
    assert source.split("/")[0] == copy.split("/")[0] == "Training"
    assert {source.split("/")[1], copy.split("/")[1]} == {"glioma", "meningioma"}


def test_only_the_truncated_file_cannot_be_decoded(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    broken = []
    for path in images_in(made.path):
        with Image.open(made.path / path) as image:
            try:
                image.load()
            except OSError:
                broken.append([path])
    assert broken == paths_of(faults, "truncated")


def test_one_class_and_no_other_has_files_of_one_size(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    [fault] = [fault for fault in faults if fault["kind"] == "own-size"]
    own = set(fault["paths"])
    for path in images_in(made.path):
        with Image.open(made.path / path) as image:
            has_size = image.size == (fault["width"], fault["height"])
        assert has_size == (path in own), path
    in_class = {p for p in images_in(made.path) if p.split("/")[1] == fault["class"]}
    assert own == in_class


def test_no_picture_is_a_copy_of_another_unless_it_was_planted(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    truncated = {path for [path] in paths_of(faults, "truncated")}
    paths = [path for path in images_in(made.path) if path not in truncated]
    plain = np.stack([grey(made.path / path) for path in paths])
    turned = np.stack([grey(made.path / path, mirror=True) for path in paths])
    alike = np.maximum(plain @ plain.T, plain @ turned.T)
    close = {
        (paths[i], paths[j])
        for i, j in np.argwhere(np.triu(alike, 1) > 0.96)  # (i, j) with i < j
    }
    kinds = ("byte-copy", "re-encoded", "resized", "mirrored", "two-labels")
    planted = {tuple(sorted(p)) for kind in kinds for p in paths_of(faults, kind)}
    assert close == planted


@pytest.mark.parametrize(("patients", "num_copies"), [(12, 5), (15, 5), (48, 18)])
def test_no_file_with_another_fault_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patients: int, num_copies: int
) -> None:
    # Only the choice is tested, over many seeds: every file is the same small picture.
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    monkeypatch.setattr(Path, "read_bytes", lambda self: buffer.getvalue())
    monkeypatch.setattr(dataset, "write_bytes", lambda path, content: None)
    for seed in range(60):
        files = dataset._plan(patients, seed, 64)
        copies = dataset._plant_copies(tmp_path, files, np.random.default_rng(seed))
        truncated = [file for file in files if file.is_truncated]
        # Its size is that of its class, which nobody can read from it.
        assert [file.finding for file in truncated] != ["no_tumor"]
        both = dataset._on_both_sides(files)
        faulty = {f.path for f in files if f in truncated or f.patient in both}
        copied = {source for _, source, _ in copies}
        assert len(copied) == num_copies
        assert not copied & faulty


def test_some_pictures_are_png_and_most_are_jpeg(made: PhantomSummary) -> None:
    suffixes = Counter(Path(path).suffix for path in images_in(made.path))
    assert set(suffixes) == {".jpg", ".png"}
    assert suffixes[".jpg"] > 4 * suffixes[".png"] > 0


def test_the_readme_says_that_the_set_is_no_evidence(made: PhantomSummary) -> None:
    text = (made.path / "README.txt").read_text(encoding="utf-8")
    assert "synthetic" in text
    assert "NO evidence" in text
    assert f"--patients {PATIENTS} --seed 7" in text


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_a_seed_gives_the_same_bytes_again_and_another_seed_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "second").mkdir()  # an empty folder is as good as none
    for name, seed, threads in (("first", 3, 8), ("second", 3, 1), ("other", 4, 8)):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        make_phantom(tmp_path / name, patients=12, seed=seed, size_px=64)
    first, other = contents(tmp_path / "first"), contents(tmp_path / "other")
    assert first == contents(tmp_path / "second")
    drawn = [path for path in first if path.endswith(("jpg", "png"))]
    assert len(drawn) > 96
    both = [path for path in drawn if path in other and "-9-" not in path]
    assert len(both) > 30
    for path in both:
        alike = grey(tmp_path / "first" / path) @ grey(tmp_path / "other" / path)
        assert alike < 0.95, path
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first",
        "other",
        "second",
    ]


def test_the_progress_counts_patients(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_phantom(
        tmp_path / "set",
        patients=12,
        size_px=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("patients", 11, "from 12 to 4800"),
        ("patients", 4801, "from 12 to 4800"),
        ("seed", True, "from 0 to 9223372036854775807"),
        ("size_px", 63, "from 64 to 1024"),
        ("size_px", 64.5, "from 64 to 1024"),
        ("seed", -1, "from 0 to 9223372036854775807"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_value(
    tmp_path: Path, name: str, value: Any, bounds: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be .* {bounds}, got {value}"):
        make_phantom(tmp_path / "set", **{name: value})
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=rf"{tmp_path} is not empty"):
        make_phantom(tmp_path)
    with pytest.raises(DataError, match=r"mine\.txt is a file"):
        make_phantom(tmp_path / "mine.txt")
    assert contents(tmp_path) == {"mine.txt": b"keep"}


def test_a_folder_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file/set: Not a directory"):
        make_phantom(tmp_path / "file" / "set")


def test_an_interrupt_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        assert list(tmp_path.glob(".*/T*/*/*"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "set", patients=12, size_px=64, progress=stop)
    assert not list(tmp_path.iterdir())


def test_the_templates_need_no_network_and_leave_the_home_folder_alone(
    tmp_path: Path,
) -> None:
    code = """
import socket

def refuse(*args):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.getaddrinfo = refuse
from tumorlens.data.phantom.atlas import load_atlas
assert load_atlas().t1.shape == (197, 233, 189)
"""
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PYTHONPATH": str(Path(dataset.__file__).parents[3]),
    }
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, env=environment
    )
    assert not list(tmp_path.iterdir())


def test_a_mask_shows_the_tumour_of_every_picture_with_one(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    (truncated,) = paths_of(faults, "truncated")[0]
    masks = {path: read_mask(made.path / path) for path in images_in(made.path)}
    for path, mask in masks.items():
        if path.split("/")[1] == "no_tumor" or path == truncated:
            assert mask is None, path
        elif mask is not None:
            with Image.open(made.path / path) as image:
                assert mask.shape == (image.height, image.width)
            assert 0 < mask.mean() < 0.2
    with_tumour = [path for path in masks if path.split("/")[1] != "no_tumor"]
    shown = [path for path in with_tumour if masks[path] is not None]
    assert len(shown) > 0.95 * len(with_tumour)


def test_the_mask_of_a_copy_is_changed_as_the_copy_is(
    made: PhantomSummary, faults: list[dict[str, Any]]
) -> None:
    def masks_of(kind: str) -> list[NDArray[np.bool_]]:
        found = [read_mask(made.path / path) for path in paths_of(faults, kind)[0]]
        return [mask for mask in found if mask is not None]

    pairs = {kind: masks_of(kind) for kind in ("mirrored", "resized", "two-labels")}
    for kind, pair in pairs.items():
        if not pair:  # of a class or a slice without a tumour
            continue
        source, copy = pair
        if kind == "mirrored":
            source = source[:, ::-1]
        if kind == "resized":
            assert len(copy) == round(0.8 * len(source))
            assert copy.mean() == pytest.approx(source.mean(), rel=0.1)
            continue
        np.testing.assert_array_equal(copy, source)
    assert pairs["resized"]


def test_the_set_reads_as_one_without_masks(
    made: PhantomSummary, tmp_path: Path
) -> None:
    index = read_index(made.path)
    assert sorted(record.path for record in index.records) == images_in(made.path)
