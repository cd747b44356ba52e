"""A DICOMDIR is somebody else's list of names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from support.mr_volumes import IDENTITY, write_media
from tumorlens.data.dicom import dicomdir
from tumorlens.data.dicom.dicomdir import is_dicomdir, read_dicomdir
from tumorlens.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 1 << 26


@pytest.fixture
def media(tmp_path: Path) -> Path:
    return write_media(tmp_path / "cd", num_series=2, num_slices=2)


def change(media: Path, **values: Any) -> None:
    """Change the first record of an image."""
    dataset = pydicom.dcmread(media)
    records = dataset.DirectoryRecordSequence
    record = next(one for one in records if one.DirectoryRecordType == "IMAGE")
    for name, value in values.items():
        setattr(record, name, value)
    dataset.save_as(media)


def error_of(media: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_dicomdir(media, **{"max_bytes": LIMIT, **options})
    assert str(media) in caught.value.problem
    assert caught.value.hint
    assert not [value for value in IDENTITY.values() if value in str(caught.value)]
    return caught.value


def test_the_files_of_a_dicomdir_are_those_that_are_there(media: Path) -> None:
    found = read_dicomdir(media, max_bytes=LIMIT)
    on_disk = {path for path in media.parent.rglob("IM*") if path.is_file()}
    assert set(found.images) == on_disk
    assert len(found.images) == 4
    assert found.num_others == 0


def test_what_is_no_image_is_counted(media: Path) -> None:
    change(media, DirectoryRecordType="SR DOCUMENT")
    found = read_dicomdir(media, max_bytes=LIMIT)
    assert (len(found.images), found.num_others) == (3, 1)


def test_a_record_that_was_removed_is_passed_over(media: Path) -> None:
    change(media, RecordInUseFlag=0)
    found = read_dicomdir(media, max_bytes=LIMIT)
    assert (len(found.images), found.num_others) == (3, 0)


def test_links_that_lead_in_a_circle_are_not_followed(media: Path) -> None:
    dataset = pydicom.dcmread(media)
    first = dataset.DirectoryRecordSequence[0].seq_item_tell
    for record in dataset.DirectoryRecordSequence:
        record.OffsetOfTheNextDirectoryRecord = first
        record.OffsetOfReferencedLowerLevelDirectoryEntity = first
    dataset.save_as(media)
    assert len(read_dicomdir(media, max_bytes=LIMIT).images) == 4


def test_a_file_that_is_named_twice_is_there_once(media: Path) -> None:
    dataset = pydicom.dcmread(media)
    dataset.DirectoryRecordSequence.extend([*dataset.DirectoryRecordSequence])
    dataset.save_as(media)
    assert len(read_dicomdir(media, max_bytes=LIMIT).images) == 4


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (["..", "..", "etc", "passwd"], "../../etc/passwd"),
        (["IMAGES", "..", "..", "SECRET"], "IMAGES/../../SECRET"),
        ("..", ".."),
        (["/etc/passwd"], "/etc/passwd"),
        (["C:", "SECRET"], "C:/SECRET"),
        (["A", ".", "B"], "A/./B"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_a_name_that_leaves_the_folder_is_refused(
    media: Path, parts: Any, shown: str
) -> None:
    change(media, ReferencedFileID=parts)
    problem = error_of(media).problem
    assert f"names a file outside the folder {media.parent}: {shown!r}" in problem
    assert ", record " in problem


def test_a_folder_that_is_a_link_to_elsewhere_is_refused(
    media: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "FILE").touch()
    (media.parent / "LINK").symlink_to(tmp_path / "secret")
    change(media, ReferencedFileID=["LINK", "FILE"])
    assert "outside the folder" in error_of(media).problem
    assert "LINK/FILE" in error_of(media).problem


def test_names_that_the_system_shows_in_lower_case_are_found(media: Path) -> None:
    folder = media.parent
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rename(path.with_name(path.name.lower()))
    found = read_dicomdir(folder / "dicomdir", max_bytes=LIMIT)
    assert len(found.images) == 4
    assert all(path.is_file() for path in found.images)


def test_a_missing_file_is_named_all_the_same(media: Path) -> None:
    change(media, ReferencedFileID=["GONE", "IM1"])
    found = read_dicomdir(media, max_bytes=LIMIT)
    assert media.parent / "GONE" / "IM1" in found.images


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda content: b"", "is not a DICOM file"),
        (lambda content: b"no such thing" * 40, "is not a DICOM file"),
        (lambda content: content[:132], "damaged"),
        (lambda content: content[: len(content) // 2], "is cut short"),
        (lambda content: content[:-1], "is cut short"),
    ],
    ids=["empty", "text", "start", "half", "nearly all"],
)
def test_a_damaged_dicomdir_is_one_error(media: Path, spoil: Any, why: str) -> None:
    media.write_bytes(spoil(media.read_bytes()))
    assert why in error_of(media).problem


def test_a_dicomdir_without_records_is_damaged(media: Path) -> None:
    dataset = pydicom.dcmread(media)
    del dataset.DirectoryRecordSequence
    dataset.save_as(media)
    assert "it has no directory records" in error_of(media).problem


def test_a_dicomdir_over_a_limit_is_refused(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "more than the limit of 100" in error_of(media, max_bytes=100).problem
    num_records = len(pydicom.dcmread(media).DirectoryRecordSequence)
    monkeypatch.setattr(dicomdir, "MAX_RECORDS", 3)
    words = f"has {num_records} records, more than the limit of 3"
    assert words in error_of(media).problem


def test_thousands_of_records_are_read_in_seconds(media: Path) -> None:
    dataset = pydicom.dcmread(media)
    for number in range(5000):
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord = 0
        record.RecordInUseFlag = 0xFFFF
        record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedFileID = ["MANY", f"IM{number:06}"]
        dataset.DirectoryRecordSequence.append(record)
    dataset.save_as(media)
    assert len(read_dicomdir(media, max_bytes=LIMIT).images) == 5004


def test_a_dicomdir_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert "cannot open" in error_of(tmp_path / "DICOMDIR").problem


def test_a_pipe_with_the_name_of_a_dicomdir_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "DICOMDIR")
    assert error_of(tmp_path / "DICOMDIR").problem.endswith("is not a regular file")


def test_a_dicomdir_is_known_by_its_name(tmp_path: Path) -> None:
    assert is_dicomdir(tmp_path / "dicomdir")
    assert not is_dicomdir(tmp_path / "DICOMDIR.txt")
