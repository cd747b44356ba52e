"""What a training has seen: found again, without the images, and safely read."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from support.images import CLASSES, draw_image
from tumorlens.data.duplicates import Duplicates, find_duplicates
from tumorlens.data.index import Index, SplitRow, read_index
from tumorlens.data.leakage import judge_leak
from tumorlens.data.near_duplicates import ORIENTATIONS, make_thumbnail
from tumorlens.data.seen import Pictures, Seen, is_seen, read_seen, seen_of
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

REAL = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri"
SUBSETS = ("train", "val", "test", "left-out")


@pytest.fixture(scope="module")
def training(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Index, Duplicates, list[SplitRow]]:
    """Return eight images of each class, dealt to the subsets in turn."""
    from PIL import Image

    root = tmp_path_factory.mktemp("seen") / "data"
    for label in CLASSES:
        (root / label).mkdir(parents=True)
        for number in range(8):
            image = Image.fromarray(draw_image(label, number))
            image.save(root / label / f"{number}.png")
    lines = ["path,patient"]
    lines += [
        f"{label}/{n}.png,{label}-{n // 4}" for label in CLASSES for n in range(8)
    ]
    (root / "metadata.csv").write_text("\n".join(lines))
    index = read_index(root)
    rows = [
        SplitRow(
            path=record.path,
            sha256=record.sha256,
            label=record.label,
            group=record.path,
            subset=SUBSETS[int(record.path[-5]) % 4],
        )
        for record in index.records
    ]
    return index, find_duplicates(index), rows


@pytest.fixture(scope="module")
def seen(training: tuple[Index, Duplicates, list[SplitRow]]) -> Seen:
    index, duplicates, rows = training
    return seen_of(rows, index, duplicates)


def pictures_of(images: list[NDArray[np.uint8]]) -> Pictures:
    return Pictures(
        np.stack([make_thumbnail(image) for image in images]),
        [f"{number:064x}" for number in range(len(images))],
    )


def test_train_and_val_are_seen_and_test_is_not(
    training: tuple[Index, Duplicates, list[SplitRow]], seen: Seen
) -> None:
    _, duplicates, rows = training
    pictures = Pictures(
        np.stack([duplicates.thumbnails[row.path] for row in rows]),
        [duplicates.pixels[row.path] for row in rows],
    )
    found = seen.look_up(pictures)
    assert found.is_seen.tolist() == [is_seen(row) for row in rows]
    assert set(found.similarity[found.is_seen]) == {1}  # equal pixels
    kept = [row for row in rows if is_seen(row)]
    assert [CLASSES[label] for label in seen.labels] == [row.label for row in kept]
    number = iter(found.number[found.is_seen].tolist())
    assert [kept[next(number)].path for _ in kept] == [row.path for row in kept]


@pytest.mark.parametrize("orientation", range(8))
def test_mirrored_and_turned_copies_are_found_and_named(
    seen: Seen, orientation: int
) -> None:
    images = [draw_image(label, number) for label in CLASSES for number in (0, 1)]
    copies = [np.rot90(image, -orientation % 4) for image in images]
    if orientation >= 4:  # mirrored after the turn, so turned back after the mirror
        copies = [np.rot90(image[:, ::-1], -orientation % 4) for image in images]
    found = seen.look_up(pictures_of([np.ascontiguousarray(one) for one in copies]))
    assert found.is_seen.all()
    assert {ORIENTATIONS[turn] for turn in found.orientation} == {
        ORIENTATIONS[orientation]
    }


def test_new_pictures_are_not_found(seen: Seen) -> None:
    images = [
        draw_image(label, number) for label in CLASSES for number in range(50, 56)
    ]
    found = seen.look_up(pictures_of(images))
    assert not found.is_seen.any()
    assert not found.similarity.any()


def test_an_empty_training_has_seen_nothing(
    training: tuple[Index, Duplicates, list[SplitRow]],
) -> None:
    index, duplicates, _ = training
    nothing = seen_of([], index, duplicates)
    assert len(nothing) == 0
    assert not nothing.look_up(pictures_of([draw_image("glioma", 0)])).is_seen.any()


def test_patients_of_train_and_val_are_known_and_others_are_not(
    training: tuple[Index, Duplicates, list[SplitRow]], seen: Seen
) -> None:
    index, duplicates, rows = training
    assert seen.knows_patient(["glioma-0", "glioma-9", None]).tolist() == [1, 0, 0]
    only = [row for row in rows if row.path in ("glioma/0.png", "glioma/7.png")]
    few = seen_of(only, index, duplicates)  # 7 is left out
    assert few.knows_patient(["glioma-0", "glioma-1"]).tolist() == [True, False]


def test_a_part_has_its_own_pictures_and_patients(seen: Seen) -> None:
    is_kept = [number % 4 == 0 for number in range(len(seen))]
    part = seen.part(is_kept)
    assert part.hashes.tolist() == seen.hashes[is_kept].tolist()
    assert part.patient_of.max() == len(part.patients) - 1
    before = seen.patients[seen.patient_of[is_kept]]
    assert (part.patients[part.patient_of] == before).all()
    assert not part.knows_patient(["glioma-9"]).any()


def test_no_key_of_a_patient_is_in_the_file_and_two_files_share_no_digest(
    training: tuple[Index, Duplicates, list[SplitRow]], seen: Seen, tmp_path: Path
) -> None:
    index, duplicates, rows = training
    seen.write(tmp_path / "one.npz")
    with zipfile.ZipFile(tmp_path / "one.npz") as file:
        content = b"".join(file.read(name) for name in file.namelist())
    assert b"glioma-0" not in content
    assert b".png" not in content
    again = seen_of(rows, index, duplicates)
    assert not {row.tobytes() for row in again.patients} & {
        row.tobytes() for row in seen.patients
    }


def test_a_file_is_read_back_and_small(seen: Seen, tmp_path: Path) -> None:
    path = tmp_path / "seen.npz"
    seen.write(path)
    again = read_seen(path)
    assert again.classes == seen.classes
    for name in ("hashes", "sketches", "pixels", "labels", "patient_of", "patients"):
        assert (getattr(again, name) == getattr(seen, name)).all()
    many = Seen(
        **vars(seen)
        | {
            name: np.random.default_rng(0)
            .integers(0, 100, (1000, *getattr(seen, name).shape[1:]))
            .astype(getattr(seen, name).dtype)
            for name in ("hashes", "sketches", "pixels")
        }
        | {"labels": np.zeros(1000, np.int16), "patient_of": np.zeros(1000, np.int32)}
    )
    many.write(path)
    assert path.stat().st_size < 150 * 1000


def arrays_of(seen: Seen) -> dict[str, Any]:
    return {
        "format": np.array([1]),
        "classes": np.array(seen.classes),
        "salt": np.frombuffer(seen.salt, np.uint8),
        **{
            name: getattr(seen, name)
            for name in ("hashes", "sketches", "pixels", "labels", "patient_of")
        },
        "patients": seen.patients,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": np.array([2])}, r"expected format 1, got \[2\]"),
        ({"more": np.zeros(1)}, "expected the arrays"),
        ({"sketches": np.zeros((16, 3), np.int8)}, r"sketches is of the shape"),
        ({"hashes": np.zeros(16)}, "hashes is of the type float64"),
        ({"hashes": np.zeros(3, np.uint64)}, "of different lengths"),
        ({"labels": np.full(16, 9, np.int16)}, "expected labels from 0 to 3"),
        ({"patient_of": np.full(16, -2, np.int32)}, "expected patient_of from -1"),
        ({"salt": np.zeros(0, np.uint8)}, "expected a salt"),
        ({"classes": np.array([{}], object)}, "allow_pickle|type object"),
    ],
)
def test_a_damaged_file_is_refused_with_the_reason(
    seen: Seen, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "seen.npz"
    np.savez(path, **(arrays_of(seen) | change))
    with pytest.raises(DataError, match=rf"seen\.npz is damaged: .*({words})"):
        read_seen(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\0" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seen.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"seen\.npz is damaged"):
        read_seen(tmp_path / "seen.npz")


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seen.npz"
    content = io.BytesIO()
    np.savez_compressed(content, **arrays_of(seen))
    path.write_bytes(content.getvalue())
    monkeypatch.setattr("tumorlens.data.seen.MAX_BYTES", 1000)
    with pytest.raises(DataError, match="larger than 1,000 bytes"):
        read_seen(path)


def test_a_missing_file_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_seen(tmp_path / "no.npz")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not at {REAL}")
def test_the_real_test_images_that_training_has_seen_are_those_of_the_audit() -> None:
    index = read_index(REAL)
    duplicates = find_duplicates(index)
    rows = [
        SplitRow(record.path, record.sha256, record.label, record.path, subset)
        for record in index.records
        if (subset := record.subset)
    ]
    test = [row for row in rows if row.subset == "test"]
    found = seen_of(rows, index, duplicates).look_up(
        Pictures(
            np.stack([duplicates.thumbnails[row.path] for row in test]),
            [duplicates.pixels[row.path] for row in test],
        )
    )
    verdict = judge_leak(rows, index, duplicates)
    assert verdict.num_copied + verdict.num_lookalike == 266
    assert found.is_seen.sum() == 266
    train = {row.path for row in rows} - {row.path for row in test}
    alike = {
        duplicates.pixels[one]
        for pair in (*duplicates.near_pairs, *duplicates.lookalikes)
        for one, other in ((pair.a, pair.b), (pair.b, pair.a))
        if any(duplicates.pixels[path] == duplicates.pixels[other] for path in train)
    }
    alike |= {duplicates.pixels[path] for path in train}
    for row, is_found in zip(test, found.is_seen, strict=True):
        assert is_found == (duplicates.pixels[row.path] in alike), row.path
