"""Copies planted among drawn images: each kind is found, and nothing else is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from support.images import draw_head, draw_image
from tumorlens.data import duplicates as copies_module
from tumorlens.data.duplicates import (
    Duplicates,
    NearPair,
    find_duplicates,
    group_records,
    part_of,
)
from tumorlens.data.images import ImageLimits, read_image
from tumorlens.data.index import Index, Record, read_index
from tumorlens.data.near_duplicates import NearDuplicate
from tumorlens.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

REAL = Path(__file__).parents[3] / "shared" / "data" / "brain-tumor-mri"

FIRST = "glioma/0.png"
COPY = "meningioma/copy"


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    """Twelve different pictures in three classes."""
    return make_images(num_each=4, classes=("glioma", "meningioma", "no_tumor"))


def partners(found: Duplicates) -> set[tuple[str, str]]:
    return {
        (picture, path) for path, picture in found.pictures.items() if path != picture
    }


def test_different_pictures_are_no_copies(data: Path) -> None:
    index = read_index(data)
    found = find_duplicates(index)
    assert len(found.pictures) == 12
    assert partners(found) == set()
    assert found.near_pairs == ()
    assert found.unreadable == {}
    assert set(group_records(index, found).items()) == {
        (record.path, record.path) for record in index.records
    }


def test_facts_are_those_of_the_file(data: Path) -> None:
    image = np.zeros((70, 90, 3), np.uint8)
    image[..., 0] = 200
    Image.fromarray(image).save(data / "glioma/red.png")
    Image.fromarray(np.full((64, 80), 7, np.uint8)).save(data / "glioma/plain.png")
    found = find_duplicates(read_index(data))
    red, plain = found.facts["glioma/red.png"], found.facts["glioma/plain.png"]
    assert (red.width, red.height, red.is_coloured, red.is_plain) == (
        90,
        70,
        True,
        True,
    )
    assert red.num_bytes == (data / "glioma/red.png").stat().st_size
    assert red.mean_grey == 60  # ITU-R 601: 0.299 of the red
    assert (plain.mean_grey, plain.is_plain, plain.is_coloured) == (7, True, False)
    drawn = found.facts[FIRST]
    assert not drawn.is_plain
    assert drawn.mean_grey == pytest.approx(read_image(data / FIRST).mean())
    assert found.thumbnails[FIRST].shape == (64, 64)


def test_a_byte_copy_is_decoded_once(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(data / FIRST, data / f"{COPY}.png")
    read = []

    def count(file: Path, *, limits: ImageLimits) -> NDArray[np.uint8]:
        read.append(file)
        return read_image(file, limits=limits)

    monkeypatch.setattr(copies_module, "read_image", count)
    found = find_duplicates(read_index(data))
    assert len(read) == 12
    assert partners(found) == {(FIRST, f"{COPY}.png")}
    assert found.near_pairs == ()


def test_equal_pixels_in_another_format_are_a_copy_without_a_near_pair(
    data: Path,
) -> None:
    Image.open(data / FIRST).convert("RGB").save(data / f"{COPY}.bmp")
    found = find_duplicates(read_index(data))
    assert found.pixels[FIRST] == found.pixels[f"{COPY}.bmp"]
    assert partners(found) == {(FIRST, f"{COPY}.bmp")}
    assert found.near_pairs == ()


def test_equal_bytes_of_another_shape_are_other_pixels(data: Path) -> None:
    flat = np.arange(64 * 96, dtype=np.uint8)
    Image.fromarray(flat.reshape(64, 96)).save(data / "glioma/wide.png")
    Image.fromarray(flat.reshape(96, 64)).save(data / "glioma/high.png")
    found = find_duplicates(read_index(data))
    assert found.pixels["glioma/wide.png"] != found.pixels["glioma/high.png"]


def resized(image: Image.Image, factor: float) -> Image.Image:
    size = round(image.width * factor), round(image.height * factor)
    return image.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("change", "name", "orientation"),
    [
        pytest.param(lambda i: i, "copy.jpg", "same", id="re-encoded"),
        pytest.param(lambda i: resized(i, 0.5), "copy.png", "same", id="half size"),
        pytest.param(lambda i: resized(i, 1.5), "copy.png", "same", id="1.5 times"),
        pytest.param(
            lambda i: resized(i, 1.5), "copy.jpg", "same", id="1.5 times, re-encoded"
        ),
        pytest.param(
            lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            "copy.jpg",
            "mirrored",
            id="mirrored, re-encoded",
        ),
        pytest.param(
            lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            "copy.png",
            "mirrored-rotated-180",
            id="upside down",
        ),
        pytest.param(
            lambda i: i.rotate(90), "copy.png", "rotated-90", id="rotated by 90"
        ),
        pytest.param(
            lambda i: i.rotate(180), "copy.jpg", "rotated-180", id="rotated by 180"
        ),
        pytest.param(
            lambda i: resized(i.rotate(270), 0.5),
            "copy.png",
            "rotated-270",
            id="rotated by 270, half size",
        ),
    ],
)
@pytest.mark.parametrize("quality", [40, 90])
def test_a_changed_copy_is_found(
    data: Path,
    change: Callable[[Image.Image], Image.Image],
    name: str,
    orientation: str,
    quality: int,
) -> None:
    for number in range(4):
        image = change(Image.fromarray(draw_image("glioma", 1 + number, size_px=192)))
        Image.fromarray(draw_image("glioma", 1 + number, size_px=192)).save(
            data / f"glioma/{number}.png"
        )
        image.save(data / f"meningioma/{number}{name}", quality=quality)
    found = find_duplicates(read_index(data))
    expected = {
        (f"glioma/{number}.png", f"meningioma/{number}{name}") for number in range(4)
    }
    assert partners(found) == expected
    assert {(pair.a, pair.b) for pair in found.near_pairs} == expected
    assert {pair.orientation for pair in found.near_pairs} == {orientation}
    assert all(0.99 <= pair.correlation <= 1 for pair in found.near_pairs)
    assert found.lookalikes == ()


def test_the_order_of_the_records_does_not_matter(data: Path) -> None:
    Image.open(data / FIRST).save(data / f"{COPY}.jpg", quality=60)
    Image.open(data / FIRST).rotate(90).save(data / "no_tumor/turned.png")
    index = read_index(data)
    backwards = replace(index, records=index.records[::-1])
    found, other = find_duplicates(index), find_duplicates(backwards, workers=1)
    assert found == other
    assert list(found.pictures) == list(other.pictures)
    assert group_records(index, found) == group_records(backwards, other)


def test_files_that_cannot_be_read_are_told_with_the_reason_and_nothing_else(
    data: Path,
) -> None:
    (data / "glioma/empty.png").touch()
    (data / "glioma/text.jpg").write_text("no image")
    whole = (data / FIRST).read_bytes()
    (data / "glioma/half.png").write_bytes(whole[: len(whole) // 2])
    index = read_index(data)
    found = find_duplicates(index)
    names = {"glioma/empty.png", "glioma/half.png", "glioma/text.jpg"}
    assert set(found.unreadable) == names
    assert found.unreadable["glioma/empty.png"].startswith("it is empty")
    for why in found.unreadable.values():
        assert "\n" not in why
        assert str(data) not in why
    for mapping in (found.facts, found.pixels, found.pictures, found.thumbnails):
        assert not names & set(mapping)
    groups = group_records(index, found)
    assert groups["glioma/empty.png"] == "glioma/empty.png"


def test_the_limits_reach_the_decoder(data: Path) -> None:
    found = find_duplicates(read_index(data), limits=ImageLimits(max_pixels=1000))
    assert len(found.unreadable) == 12
    assert "limit of 1000" in found.unreadable[FIRST]


def test_a_missing_extra_stops_the_search(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, *, limits: ImageLimits) -> NDArray[np.uint8]:
        raise MissingExtraError("gdcm is missing")

    monkeypatch.setattr(copies_module, "read_image", refuse)
    with pytest.raises(MissingExtraError, match="gdcm is missing"):
        find_duplicates(read_index(data))


def test_progress_ends_with_all_files(data: Path) -> None:
    shutil.copy(data / FIRST, data / f"{COPY}.png")
    calls: list[tuple[int, int]] = []
    find_duplicates(read_index(data), progress=lambda *call: calls.append(call))
    assert calls[-1] == (13, 13)
    assert len(calls) == 12  # the two equal files are done together
    assert calls == sorted(calls)


def test_many_plain_images_are_copies_only_when_their_pixels_are_equal(
    data: Path,
) -> None:
    for number in range(30):
        grey = np.full((64, 64 + number % 2), 5 * (number % 3), np.uint8)
        Image.fromarray(grey).save(data / f"no_tumor/plain{number}.png")
    found = find_duplicates(read_index(data))
    assert found.near_pairs == ()
    plain = {found.pictures[f"no_tumor/plain{number}.png"] for number in range(30)}
    assert len(plain) == 6


def test_a_film_is_one_group_but_never_one_picture(data: Path) -> None:
    # Each frame is a near copy of another; the first and the last are not alike.
    start, end = (draw_image("glioma", n).astype(float) for n in (50, 51))
    for number in range(40):
        frame = start + (end - start) * number / 39
        Image.fromarray(frame.astype(np.uint8)).save(
            data / f"glioma/film{number:02}.png"
        )
    index = read_index(data)
    found = find_duplicates(index)
    frames = [f"glioma/film{number:02}.png" for number in range(40)]
    for frame in frames:
        both = [found.thumbnails[path] for path in (frame, found.pictures[frame])]
        assert np.corrcoef(both[0].ravel(), both[1].ravel())[0, 1] > 0.97
    assert len({found.pictures[frame] for frame in frames}) > 1
    groups = group_records(index, found)
    assert {groups[frame] for frame in frames} == {frames[0]}


def test_what_is_settled_by_a_copy_is_of_the_same_picture() -> None:
    looks = [
        NearDuplicate(0, 1, 0.992, 0, 0.999),
        NearDuplicate(1, 2, 0.9995, 0, 0.999, is_settled=True),
        NearDuplicate(1, 3, 0.991, 0, 0.999),
    ]
    pictures = copies_module._pictures(["a", "b", "c", "d"], looks)
    # c goes with b, which is a copy of a; d is a copy of b only, and stays itself.
    assert pictures == {"a": "a", "b": "a", "c": "a", "d": "d"}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Slices of two heads that lie 1 mm apart, with a file for each."""
    for number, label in enumerate(("glioma", "no_tumor")):
        (tmp_path / label).mkdir()
        for position, image in enumerate(draw_head(number, num_slices=8)):
            Image.fromarray(image).save(tmp_path / label / f"{position}.png")
    return tmp_path


def test_slices_of_one_head_are_different_pictures_of_one_group(volume: Path) -> None:
    index = read_index(volume)
    found = find_duplicates(index)
    assert partners(found) == set()
    assert found.near_pairs == ()
    neighbours = {
        (f"{label}/{n}.png", f"{label}/{n + 1}.png")
        for label in ("glioma", "no_tumor")
        for n in range(7)
    }
    pairs = {(pair.a, pair.b) for pair in found.lookalikes}
    assert neighbours <= pairs
    assert all(a.partition("/")[0] == b.partition("/")[0] for a, b in pairs)
    # No patient is known, but each head is one group.
    assert set(group_records(index, found).values()) == {
        "glioma/0.png",
        "no_tumor/0.png",
    }


def test_a_doubtful_copy_of_a_known_patient_is_a_slice_beside(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Quality 30 keeps 0.9990 of the detail.
    Image.open(volume / "glioma/3.png").save(volume / "no_tumor/copy.jpg", quality=30)
    pair = ("glioma/3.png", "no_tumor/copy.jpg")
    index = read_index(volume)
    assert partners(find_duplicates(index)) == {pair}

    def known(patients: tuple[str, str]) -> Duplicates:
        named = dict(zip(pair, patients, strict=True))
        records = (replace(r, patient=named.get(r.path)) for r in index.records)
        return find_duplicates(replace(index, records=tuple(records)))

    assert partners(known(("one", "two"))) == {pair}
    found = known(("one", "one"))
    assert partners(found) == set()
    assert pair in {(one.a, one.b) for one in found.lookalikes}
    # A copy beyond doubt stays one.
    monkeypatch.setattr(copies_module, "SAME_DETAIL_OF_PATIENT", 0.9981)
    assert partners(known(("one", "one"))) == {pair}


def record(path: str, patient: str | None = None) -> Record:
    return Record(path, path[0], None, patient, None, None, "0" * 64, 1)


def test_groups_join_patients_pictures_and_near_pairs() -> None:
    index = Index(
        Path("data"),
        ("a", "b"),
        (
            record("a/1", "one"),
            record("a/2", "one"),
            record("a/3"),
            record("a/4"),
            record("b/5"),
            record("b/6", "two"),
            record("b/7", "two"),
            record("b/8"),
        ),
    )
    readable = [r.path for r in index.records if r.path != "b/7"]
    found = Duplicates(
        unreadable={"b/7": "it is empty"},
        facts={},
        pixels={},
        pictures={path: path for path in readable} | {"a/3": "a/2"},
        near_pairs=(NearPair("a/3", "a/4", 0.995, "same"),),
        lookalikes=(NearPair("b/5", "b/8", 0.993, "same"),),
    )
    assert group_records(index, found) == {
        "a/1": "a/1",
        "a/2": "a/1",  # same patient
        "a/3": "a/1",  # same picture as a/2
        "a/4": "a/1",  # near copy of a/3
        "b/5": "b/5",
        "b/6": "b/6",
        "b/7": "b/6",  # unreadable, but of the same patient
        "b/8": "b/5",  # as like b/5 as a neighbouring slice
    }


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not at {REAL}")
def test_the_real_set_joins_no_two_slices_of_one_patient() -> None:
    index = read_index(REAL)
    found = find_duplicates(index)
    patient = {record.path: record.patient for record in index.records}
    assert len(set(found.pixels.values())) == 2870
    assert len(set(found.pictures.values())) == 2797
    for pair in found.near_pairs:
        if found.facts[pair.a].width == found.facts[pair.b].width == 512:
            known = patient[pair.a], patient[pair.b]
            assert None in known or known[0] != known[1]


def test_a_part_is_as_if_only_its_files_had_been_read(data: Path) -> None:
    (data / "glioma" / "no.png").write_text("no image")
    (data / "no_tumor" / "no.png").write_text("no image either")
    # Without the first of three copies, the second one stands for the picture.
    for name in ("meningioma/copy.png", "no_tumor/copy.png"):
        shutil.copy(data / FIRST, data / name)
    index = read_index(data)
    for left_out in (("glioma/",), ("meningioma/",), ("glioma/", "no_tumor/copy")):
        part = replace(
            index,
            records=tuple(
                one for one in index.records if not one.path.startswith(left_out)
            ),
        )
        assert part_of(find_duplicates(index), part) == find_duplicates(part)
