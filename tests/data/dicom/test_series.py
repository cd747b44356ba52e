"""Files from a clinic become series, in order and without names."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

from support.dicom_files import spoil, write_alone
from support.images import draw_image
from support.mr_volumes import (
    IDENTITY,
    mr_slice,
    write,
    write_media,
    write_study,
    write_volume,
)
from tumorlens.data.dicom.series import MANUFACTURER, find_series, holds_study
from tumorlens.data.images import ImageLimits, read_image
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.data.dicom.series import Found

STUDY, SERIES = uid.generate_uid(), uid.generate_uid()
PIXELS = draw_image("glioma", 0, size_px=32)


def write_slice(path: Path, number: int = 1, **attributes: Any) -> Path:
    values = {"study_uid": STUDY, "series_uid": SERIES, "number": number}
    return write(path, mr_slice(PIXELS, **{**values, **attributes}))


def names(found: Found, number: int = 0) -> list[str]:
    return [one.path.name for one in found.series[number].slices]


def png(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path)
    return path


# Order


def test_slices_are_ordered_by_their_position_along_the_normal(tmp_path: Path) -> None:
    paths = write_volume(tmp_path, num_slices=4)
    found = find_series([tmp_path])
    assert [one.path for one in found.series[0].slices] == paths
    assert found.series[0].order == "position"


def test_the_normal_is_that_of_the_slices_not_an_axis(tmp_path: Path) -> None:
    # Sagittal: rows along y, columns along -z, so the normal is -x.
    sagittal: dict[str, Any] = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    for name, x in (("a", -5.0), ("b", 10.0), ("c", 2.0)):
        write_slice(
            tmp_path / name, depth=0, ImagePositionPatient=[x, 0, 0], **sagittal
        )
    found = find_series([tmp_path])
    assert names(found) == ["b", "c", "a"]
    assert found.series[0].order == "position"


def test_slices_at_one_position_go_by_their_number(tmp_path: Path) -> None:
    for name, number, depth in (("a", 9, 1), ("b", 4, 1.0001), ("c", 7, 0)):
        write_slice(tmp_path / name, number, depth=depth)
    assert names(find_series([tmp_path])) == ["c", "b", "a"]


@pytest.mark.parametrize(
    "spoil",
    [
        {"ImagePositionPatient": None},
        {"ImagePositionPatient": [1, 2]},
        {"ImageOrientationPatient": None},
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    ],
    ids=["no position", "half a position", "no orientation", "not parallel"],
)
def test_without_a_position_for_all_the_instance_number_counts(
    tmp_path: Path, spoil: dict[str, Any]
) -> None:
    write_slice(tmp_path / "a", 2, depth=1)
    write_slice(tmp_path / "b", 10, depth=0)
    write_slice(tmp_path / "c", 1, depth=2, **spoil)
    found = find_series([tmp_path])
    assert names(found) == ["c", "a", "b"]
    assert found.series[0].order == "instance number"


def test_without_an_instance_number_the_path_counts(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_slice(tmp_path / name, InstanceNumber=None if name == "b" else 1)
    found = find_series([tmp_path])
    assert names(found) == ["a", "b", "c"]
    assert found.series[0].order == "path"


def test_frames_are_slices_in_the_order_of_their_file(tmp_path: Path) -> None:
    frames = np.stack([PIXELS] * 3)
    dataset = mr_slice(frames, study_uid=STUDY, series_uid=SERIES, number=1)
    path = write(tmp_path / "x", dataset)
    (series,) = find_series([path]).series
    assert [(one.path, one.frame) for one in series.slices] == [
        (path, 0),
        (path, 1),
        (path, 2),
    ]


def test_a_file_with_too_many_frames_is_one_slice(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "x", NumberOfFrames=1_000_000)
    found = find_series([path], limits=ImageLimits(max_frames=10))
    assert [one.frame for one in found.series[0].slices] == [None]


# Groups


def test_a_series_is_one_uid_wherever_its_files_are(tmp_path: Path) -> None:
    write_study(tmp_path / "one", num_series=2, num_slices=2)
    for name in ("x/1", "y/2"):
        write_slice(tmp_path / name, int(name[-1]))
    found = find_series([tmp_path])
    assert [len(series.slices) for series in found.series] == [2, 2, 2]
    assert [series.number for series in found.series] == [1, 2, 3]
    assert names(found, 2) == ["1", "2"]


def test_a_file_without_a_series_stands_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_slice(tmp_path / name, SeriesInstanceUID="")
    assert [len(one.slices) for one in find_series([tmp_path]).series] == [1, 1]


def test_an_instance_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    one = write_slice(tmp_path / "a")
    (tmp_path / "b").write_bytes(one.read_bytes())
    write_slice(tmp_path / "c", 2)
    found = find_series([tmp_path, one])
    assert names(found) == ["a", "c"]
    assert found.skipped == {"copy": 1}


@pytest.mark.parametrize("names_by_damage", ["abc", "bca", "cab"])
def test_of_copies_that_differ_the_first_that_can_be_decoded_counts(
    tmp_path: Path, names_by_damage: str
) -> None:
    cut, whole, other = (tmp_path / name for name in names_by_damage)
    content = write_slice(whole).read_bytes()
    cut.write_bytes(content[:-500])
    other.write_bytes(content.replace(IDENTITY["StudyDate"].encode(), b"20240101"))
    found = find_series([tmp_path])
    assert names(found) == [min(whole.name, other.name)]
    assert list(found.damaged) == [cut]
    assert found.damaged[cut].startswith("is damaged: ")
    assert found.skipped == {"copy": 1}


def test_a_copy_without_its_last_frame_is_damaged(tmp_path: Path) -> None:
    frames = np.stack([PIXELS] * 5)
    dataset = mr_slice(frames, study_uid=STUDY, series_uid=SERIES, number=1)
    content = write(tmp_path / "b", dataset).read_bytes()
    (tmp_path / "a").write_bytes(content[:-10])
    found = find_series([tmp_path])
    assert names(found) == ["b"] * 5
    assert list(found.damaged) == [tmp_path / "a"]


def test_where_no_copy_can_be_decoded_the_first_is_left_to_the_reader(
    tmp_path: Path,
) -> None:
    content = write_slice(tmp_path / "a").read_bytes()
    for name, cut in (("a", 500), ("b", 600)):
        (tmp_path / name).write_bytes(content[:-cut])
    found = find_series([tmp_path])
    assert names(found) == ["a"]
    assert list(found.damaged) == [tmp_path / "b"]


def test_a_copy_that_is_gone_meanwhile_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write_slice(tmp_path / "a")
    (tmp_path / "b").write_bytes(one.read_bytes())

    def remove_first(path: Path) -> None:
        one.unlink(missing_ok=True)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("tumorlens.data.dicom.series.sha256_of", remove_first)
    found = find_series([tmp_path])
    assert names(found) == ["b"]
    assert found.damaged == {one: "cannot be opened: No such file or directory"}


def _never(*_: Any, **__: Any) -> None:
    pytest.fail("decoded")


def test_nothing_is_decoded_where_no_copies_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write_slice(tmp_path / "a")
    (tmp_path / "b").write_bytes(one.read_bytes())
    write_slice(tmp_path / "c", 2)
    monkeypatch.setattr("tumorlens.data.dicom.series.read_image", _never)
    assert names(find_series([tmp_path])) == ["a", "c"]


def test_what_is_no_image_is_counted_by_its_kind(tmp_path: Path) -> None:
    write_study(tmp_path, num_series=1)
    write_slice(tmp_path / "seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    write_slice(tmp_path / "ours", Manufacturer=MANUFACTURER)
    write_slice(tmp_path / "odd", Rows=None, Modality="DOE JANE X")
    write_slice(tmp_path / "pr", Rows=None, Modality="PR")
    found = find_series([tmp_path])
    assert len(found.series) == 1
    assert found.skipped == {
        **{"SR": 1, "PR": 1, "segmentation": 1},
        **{"result of tumorlens": 1, "file without an image": 1},
    }


def test_files_that_cannot_be_read_are_left_to_the_reader(tmp_path: Path) -> None:
    good = write_slice(tmp_path / "good")
    bad = tmp_path / "bad"
    bad.write_bytes(good.read_bytes()[:180])
    found = find_series([tmp_path], limits=ImageLimits(max_bytes=10_000))
    assert found.others == (bad,)
    found = find_series([tmp_path], limits=ImageLimits(max_bytes=1_000))
    assert set(found.others) == {good, bad}


def test_only_what_grouping_needs_is_kept(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = find_series([tmp_path])
    words = repr(found).replace(str(tmp_path), "")
    assert not [value for value in IDENTITY.values() if value in words]
    assert STUDY.rpartition(".")[0] not in words
    assert found.series[0].patient is None


def test_the_patient_is_named_when_asked_for(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = find_series([tmp_path], identify=True)
    assert found.series[0].patient == IDENTITY["PatientID"]


# Places


def test_a_dicomdir_gives_its_images_and_no_others(tmp_path: Path) -> None:
    media = write_media(tmp_path / "cd", num_series=2, num_slices=3)
    write_slice(media.parent / "NOTLISTED")
    assert [len(one.slices) for one in find_series([media]).series] == [3, 3]
    folder = find_series([media.parent])
    assert sorted(len(one.slices) for one in folder.series) == [1, 3, 3]


def test_a_file_that_a_dicomdir_names_in_vain_is_left_to_the_reader(
    tmp_path: Path,
) -> None:
    media = write_media(tmp_path / "cd", num_series=1, num_slices=3)
    gone = next(iter(media.parent.rglob("IM000001")))
    gone.unlink()
    found = find_series([media])
    assert found.others == (gone,)
    assert len(found.series[0].slices) == 2


def test_a_damaged_dicomdir_in_a_folder_is_an_error(tmp_path: Path) -> None:
    write_slice(tmp_path / "a")
    (tmp_path / "DICOMDIR").write_text("no")
    with pytest.raises(DataError, match=r"DICOMDIR is damaged: it is not a DICOM"):
        find_series([tmp_path])


def test_ordinary_images_keep_apart(tmp_path: Path) -> None:
    write_slice(tmp_path / "a")
    image = png(tmp_path / "b.png")
    png(tmp_path / ".hidden" / "c.png")
    (tmp_path / "notes.txt").write_text("no image")
    bare = png(tmp_path / "c.png").rename(tmp_path / "c")
    (tmp_path / "d").symlink_to(tmp_path / ".hidden")
    found = find_series([tmp_path])
    assert found.others == (image, bare)
    assert names(found) == ["a"]
    assert found.skipped == {".txt": 1, "link to a folder": 1}


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian]
)
def test_slices_without_a_preamble_belong_to_their_series(
    tmp_path: Path, syntax: uid.UID
) -> None:
    write_slice(tmp_path / "a", 2)
    dataset = mr_slice(PIXELS, study_uid=STUDY, series_uid=SERIES, number=1)
    dataset.file_meta.TransferSyntaxUID = syntax
    path = write_alone(tmp_path / "b", dataset)
    assert holds_study([path, path])
    found = find_series([tmp_path])
    assert names(found) == ["b", "a"]
    np.testing.assert_array_equal(
        read_image(path), read_image(write_slice(tmp_path / "c"))
    )


@pytest.mark.parametrize("vr", ["FD", "DS", "IS"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "9" * 400])
@pytest.mark.parametrize("keyword", ["InstanceNumber", "NumberOfFrames", "Rows"])
def test_no_number_of_a_header_ends_the_others(
    tmp_path: Path, keyword: str, value: str, vr: str
) -> None:
    write_slice(tmp_path / "a", depth=1)
    dataset = mr_slice(PIXELS, study_uid=STUDY, series_uid=SERIES, number=2, depth=2)
    spoil(write(tmp_path / "b", dataset), keyword, vr, value)
    found = find_series([tmp_path])
    in_series = [name for one in range(len(found.series)) for name in names(found, one)]
    assert "a" in in_series
    assert len(in_series) + len(found.others) + sum(found.skipped.values()) == 2
    with suppress(DataError):  # and no other error
        read_image(tmp_path / "b")


@pytest.mark.parametrize("size", [1e308, -1e308])
@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_positions_that_overflow_give_no_order(
    tmp_path: Path, keyword: str, size: float
) -> None:
    for number, name in ((2, "a"), (1, "b")):
        path = write_slice(tmp_path / name, number, depth=number)
        num = 3 if keyword == "ImagePositionPatient" else 6
        spoil(path, keyword, "FD", *[str(size)] * num)
    found = find_series([tmp_path])
    assert names(found) == ["b", "a"]
    assert found.series[0].order == "instance number"


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file or folder: .*gone"):
        find_series([tmp_path / "gone"])


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=rf"no image in the folder {tmp_path}"):
        find_series([tmp_path])


def test_only_reports_are_an_error_that_counts_them(tmp_path: Path) -> None:
    write_study(tmp_path, num_series=0)
    with pytest.raises(DataError, match=rf"no image in {tmp_path}, only 1 x SR"):
        find_series([tmp_path])


# When series are meant


def test_dicom_in_a_folder_a_dicomdir_and_several_files_are_a_study(
    tmp_path: Path,
) -> None:
    media = write_media(tmp_path / "cd", num_series=1, num_slices=2)
    first, second = sorted(media.parent.rglob("IM0*"))
    assert holds_study([media])
    assert holds_study([media.parent])
    assert holds_study([first, second])
    assert not holds_study([first])


def test_ordinary_images_are_no_study_and_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = png(tmp_path / "a.png")
    monkeypatch.setattr("pathlib.Path.open", lambda *_, **__: pytest.fail("opened"))
    assert not holds_study([tmp_path, image, tmp_path / "gone.png"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    png(tmp_path / "a.png")
    assert not holds_study([tmp_path, tmp_path / "pipe"])


def test_headers_that_make_pydicom_complain_say_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = write_slice(tmp_path / "a", SpecificCharacterSet="ISO_IR 100")
    content = path.read_bytes()
    for good, bad in (
        (b"ISO_IR 100", b"ISO 9999 X"),
        (SERIES.encode(), b"Quibble^Zephyrine".ljust(len(SERIES), b"!")),
    ):
        assert good in content
        content = content.replace(good, bad)
    path.write_bytes(content)
    find_series([path], identify=True)
    assert not recwarn.list
    read = pydicom.dcmread(path)
    with pytest.warns(UserWarning, match="Quibble"):
        assert read.SeriesInstanceUID
