"""Results as DICOM: read back by other programs, and kept by a real archive."""

from __future__ import annotations

import io
import logging
import resource
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

import tumorlens
from support import orthanc as server
from support.compressed_dicom import compressed
from support.handmade_trust import handmade_trust
from support.images import draw_image
from support.mr_volumes import IDENTITY, mr_slice, write, write_study
from tumorlens.data.decoding import InputSpec
from tumorlens.data.dicom.series import find_series
from tumorlens.deploy.predictor import Member, Predictor
from tumorlens.deploy.series import SeriesAnswer, answer_series
from tumorlens.errors import ConfigError, DataError
from tumorlens.report.dicom_picture import HEIGHT_PX, WIDTH_PX
from tumorlens.report.dicom_results import Written, check_results, write_results
from tumorlens.runs.trust import UNCERTAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CLASSES = ("glioma", "no_tumor", "Größe < 5 \\ 日本 " + "x" * 80)
DIGEST = "ab" * 32
NOTES = ["Model hand, weights sha256 abab.", "It was never evaluated."]


def corner(squares: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Answer glioma by the brightness of the upper left quarter."""
    size = squares.shape[1] // 2
    glioma = squares[:, :size, :size].mean(axis=(1, 2, 3)) / 255
    return np.stack([glioma, (1 - glioma) * 0.75, (1 - glioma) * 0.25], axis=1)


PREDICTOR = Predictor(
    "hand",
    CLASSES,
    "cd" * 32,
    [Member(InputSpec(32, "pad", 3), corner, (DIGEST,))],
    trust=handmade_trust(CLASSES, threshold=0.9, least=0.2),
)


def answers_for(*places: Path) -> list[SeriesAnswer]:
    return [
        answer_series(PREDICTOR, series, rule="mean", no_tumor=1)
        for series in find_series(list(places)).series
    ]


def written_for(folder: Path, *places: Path) -> list[Written]:
    found = [
        write_results(folder, PREDICTOR, answer, notes=NOTES)
        for answer in answers_for(*places)
    ]
    return [one for one in found if one is not None]


def write_one(path: Path, **attributes: Any) -> Path:
    values: dict[str, Any] = {
        **{"study_uid": uid.generate_uid(), "series_uid": uid.generate_uid()},
        **{"number": 1, "depth": 0},
    }
    pixels = attributes.pop("pixels", draw_image("glioma", 0, size_px=64))
    return write(path, mr_slice(pixels, **values, **attributes))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), num_series=2, num_slices=3)


@pytest.fixture(scope="module")
def results(study: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Written]:
    return written_for(tmp_path_factory.mktemp("results"), study)


@pytest.fixture(scope="module")
def source(study: Path) -> pydicom.Dataset:
    return pydicom.dcmread(study / "SE1" / "IM0001")


def groups_of(report: Any) -> Any:
    """Return the groups of measurements in a report, as highdicom reads them."""
    content: Any = highdicom.sr.srread(report).content
    return content.get_image_measurement_groups()


# The report


def test_the_report_holds_the_probabilities_of_series_and_slices(
    study: Path, results: list[Written]
) -> None:
    report = highdicom.sr.srread(results[0].report)
    assert isinstance(report, highdicom.sr.ComprehensiveSR)
    groups = groups_of(results[0].report)
    answer = answers_for(study)[0]
    rows = [answer.probs, *(one.probs for one in answer.slices)]
    assert len(groups) == len(rows) == 4
    for group, probs in zip(groups, rows, strict=True):
        assert probs is not None
        measured = group.get_measurements()
        assert [one.value for one in measured] == pytest.approx(list(probs), abs=1e-6)
        assert [one.unit.value for one in measured] == ["1"] * 3
        assert [one.name.meaning for one in measured][:2] == [
            *("Probability of glioma", "Probability of no_tumor")
        ]
        evaluations = group.get_qualitative_evaluations()
        assert evaluations[0].value.meaning == CLASSES[int(np.argmax(probs))]
        values = [one.value for one in evaluations]
        for code in (*values, *(one.name for one in (*evaluations, *measured))):
            assert len(code.value) <= 16
            assert len(code.meaning.encode()) <= 64
    assert groups[0].tracking_identifier == "Series, mean of 3 slices"


def test_the_report_holds_what_is_to_be_answered(
    study: Path, results: list[Written]
) -> None:
    answer = answers_for(study)[0]
    judged = [answer.trust, *(one.trust for one in answer.slices)]
    for group, one in zip(groups_of(results[0].report), judged, strict=True):
        assert one is not None
        found = [
            (item.name.meaning, item.value.meaning)
            for item in group.get_qualitative_evaluations()
        ]
        possible = [value for name, value in found if name == "Possible class"]
        assert len(possible) == len(one.in_set)
        assert possible[0] == found[0][1]  # the likeliest
        assert ("Answer", one.answer) in found
        assert one.answer == UNCERTAIN


def test_each_group_refers_to_the_instances_that_it_is_about(
    study: Path, results: list[Written]
) -> None:
    report = highdicom.sr.srread(results[0].report)
    groups = groups_of(results[0].report)
    in_order = [
        pydicom.dcmread(study / "SE1" / f"IM000{number}").SOPInstanceUID
        for number in (3, 2, 1)
    ]
    found = [
        [one.referenced_sop_instance_uid for one in group.source_images]
        for group in groups
    ]
    assert found == [in_order, *([uid] for uid in in_order)]
    evidence = report.CurrentRequestedProcedureEvidenceSequence
    listed = [
        one.ReferencedSOPInstanceUID
        for study_item in evidence
        for series_item in study_item.ReferencedSeriesSequence
        for one in series_item.ReferencedSOPSequence
    ]
    assert sorted(listed) == sorted(in_order)


def test_the_report_says_which_algorithm_and_that_it_is_no_diagnosis(
    results: list[Written],
) -> None:
    report = pydicom.dcmread(results[0].report)
    words = {one.value for one in report.iterall() if one.keyword == "TextValue"}
    assert f"weights sha256: {DIGEST}" in words
    assert tumorlens.__version__ in words
    assert "series: mean of 3 slices" in words
    assert "order of slices: position" in words
    comments = [
        item.TextValue
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"
    ]
    assert comments[:3] == ["Research use only - not for diagnosis.", *NOTES]
    assert report.VerificationFlag == "UNVERIFIED"
    assert report.ContentQualification == "RESEARCH"
    device = [
        item.UID
        for item in report.ContentSequence
        if item.ConceptNameCodeSequence[0].CodeMeaning == "Device Observer UID"
    ]
    other = pydicom.dcmread(results[1].report)
    assert len(device) == 1
    assert device[0] in str(other)  # the same weights are the same device


# The picture


def test_the_picture_shows_the_page(results: list[Written]) -> None:
    picture = pydicom.dcmread(results[0].picture)
    page = picture.pixel_array
    assert page.shape == (HEIGHT_PX, WIDTH_PX, 3)
    # Right of the middle, the upper left quarter of the slice is hot; elsewhere the
    # picture is that of the left, which is grey.
    colorful = np.ptp(page.astype(int), axis=-1) > 60
    pictures = slice(104, 104 + 476)
    assert colorful[pictures, 524:762].mean() > 0.1
    assert not colorful[pictures, 24:500].any()
    assert not colorful[420:570, 800:990].any()


def test_the_picture_says_what_it_is(
    results: list[Written], source: pydicom.Dataset, study: Path
) -> None:
    picture = pydicom.dcmread(results[0].picture)
    assert picture.SOPClassUID == uid.SecondaryCaptureImageStorage
    assert picture.ConversionType == "WSD"
    assert picture.BurnedInAnnotation == "NO"
    assert picture.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "not for diagnosis" in picture.SeriesDescription
    assert picture.PatientOrientation is None or not list(picture.PatientOrientation)
    key = answers_for(study)[0]
    assert key.key is not None
    path = key.series.slices[key.key].path
    (reference,) = picture.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "NO"),
        ({"BurnedInAnnotation": "YES"}, "YES"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, None),
        (
            {
                "SOPClassUID": uid.SecondaryCaptureImageStorage,
                "BurnedInAnnotation": "NO",
            },
            "NO",
        ),
    ],
)
def test_whether_a_name_may_be_burnt_in_is_said_as_far_as_it_is_known(
    tmp_path: Path, attributes: dict[str, Any], expected: str | None
) -> None:
    path = write_one(tmp_path / "x.dcm", **attributes)
    (one,) = written_for(tmp_path / "out", path)
    assert pydicom.dcmread(one.picture).get("BurnedInAnnotation") == expected


def test_a_picture_of_a_lossy_slice_says_so(tmp_path: Path) -> None:
    path = write_one(
        tmp_path / "x.dcm",
        LossyImageCompression="01",
        LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_10918_1",
    )
    (one,) = written_for(tmp_path / "out", path)
    picture = pydicom.dcmread(one.picture)
    assert picture.LossyImageCompression == "01"
    assert picture.LossyImageCompressionRatio == 12.5


# Both belong to the study


def test_results_belong_to_the_patient_and_the_study(
    results: list[Written], source: pydicom.Dataset
) -> None:
    series = set()
    for one in results:
        for path in (one.report, one.picture):
            result = pydicom.dcmread(path)
            assert result.StudyInstanceUID == source.StudyInstanceUID
            series |= {result.SeriesInstanceUID}
            for name in (
                *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
                *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
                *("ReferringPhysicianName", "PatientComments", "PatientAge"),
            ):
                assert str(result[name].value) == str(source[name].value), name
            assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
            # What is of the scanner and its series is not of this result.
            for name in ("StationName", "ProtocolName", "DeviceSerialNumber"):
                assert IDENTITY[name] not in str(result)
    assert len(series) == 4
    assert source.SeriesInstanceUID not in series


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Müller^Jürgen=山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "Люк^Пётр"),
    ],
)
def test_names_in_other_scripts_are_kept(
    tmp_path: Path, character_set: Any, name: str
) -> None:
    path = write_one(
        tmp_path / "x.dcm", SpecificCharacterSet=character_set, PatientName=name
    )
    (one,) = written_for(tmp_path / "out", path)
    for result in (one.report, one.picture):
        assert str(pydicom.dcmread(result).PatientName) == name


def test_a_patient_without_anything_is_left_blank(tmp_path: Path) -> None:
    path = write_one(tmp_path / "x.dcm")
    dataset = pydicom.dcmread(path)
    for name in (*IDENTITY, "PatientSex"):
        delattr(dataset, name)
    dataset.save_as(path)
    (one,) = written_for(tmp_path / "out", path)
    for result in (one.report, one.picture):
        assert not pydicom.dcmread(result).PatientName


def test_names_that_highdicom_dislikes_are_not_said_aloud(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    path = write_one(tmp_path / "x.dcm", PatientName="Quibble")
    content = path.read_bytes().replace(b"19430217", b"Feb 1943")
    path.write_bytes(content)
    caplog.set_level(logging.INFO)
    (one,) = written_for(tmp_path / "out", path)
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Quibble" not in said
    assert "Feb 1943" not in said
    assert str(pydicom.dcmread(path).SOPInstanceUID) not in said
    assert not recwarn.list
    assert str(pydicom.dcmread(one.report).PatientName) == "Quibble"


@pytest.mark.parametrize(
    "syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless], ids=["JPEG-LS", "J2K"]
)
def test_results_of_compressed_frames_name_the_frame(
    tmp_path: Path, syntax: uid.UID
) -> None:
    frames = np.stack(
        [draw_image("glioma", n, size_px=64) // (3 - n) for n in range(3)]
    )
    dataset = mr_slice(
        frames,
        study_uid=uid.generate_uid(),
        series_uid=uid.generate_uid(),
        number=1,
    )
    dataset.SOPClassUID = uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    path = compressed(tmp_path / "x.dcm", dataset, syntax)
    (answer,) = answers_for(path)
    assert [one.error for one in answer.slices] == [None] * 3
    one = write_results(tmp_path / "out", PREDICTOR, answer, notes=NOTES)
    assert one is not None
    (reference,) = pydicom.dcmread(one.picture).SourceImageSequence
    assert answer.key is not None
    assert reference.ReferencedFrameNumber == answer.key + 1
    groups = groups_of(one.report)
    assert [
        [list(image.referenced_frame_numbers or []) for image in group.source_images]
        for group in groups
    ] == [[[1], [2], [3]], [[1]], [[2]], [[3]]]


# By other programs


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="Debian: dicom3tools")
@pytest.mark.parametrize("kind", ["report", "picture"])
def test_a_conformance_checker_finds_no_error(
    results: list[Written], kind: str
) -> None:
    done = subprocess.run(
        ["dciodvfy", str(getattr(results[0], kind))],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = done.stderr.splitlines()
    assert {"report": "ComprehensiveSR", "picture": "SCImage"}[kind] in lines
    # It knows the public coding schemes only.
    ours = "Unrecognized defined term <99TUMORLENS>"
    assert [line for line in lines if ours not in line][1:] == []


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Orthanc]:
    program = server.find_program()
    if program is None:
        pytest.skip("Orthanc is not installed (Debian: orthanc)")
    running, process = server.start(tmp_path_factory.mktemp("orthanc"), program)
    yield running
    process.terminate()
    process.wait(timeout=30)


def store(archive: server.Orthanc, *paths: Path) -> list[int]:
    """Send files by C-STORE and return the status of each: 0 is success."""
    pynetdicom = pytest.importorskip("pynetdicom")
    datasets = [pydicom.dcmread(path) for path in paths]
    caller = pynetdicom.AE(ae_title=server.CALLER)
    for sop_class in {one.SOPClassUID for one in datasets}:
        caller.add_requested_context(sop_class, uid.ExplicitVRLittleEndian)
    link = caller.associate("127.0.0.1", archive.dicom_port)
    assert link.is_established
    statuses = [link.send_c_store(one).Status for one in datasets]
    link.release()
    return statuses


def test_an_archive_keeps_the_results_in_the_study_and_gives_them_back(
    archive: server.Orthanc, study: Path, results: list[Written]
) -> None:
    paths = [path for one in results for path in (one.report, one.picture)]
    assert store(archive, *study.rglob("IM*"), *paths) == [0] * 10
    (patient,) = archive.json("/patients?expand")
    assert patient["MainDicomTags"]["PatientID"] == IDENTITY["PatientID"]
    assert patient["MainDicomTags"]["PatientName"] == IDENTITY["PatientName"]
    (kept,) = archive.json("/studies?expand")
    modalities = sorted(
        archive.json(f"/series/{series}")["MainDicomTags"]["Modality"]
        for series in kept["Series"]
    )
    assert modalities == ["MR", "MR", "OT", "OT", "SR", "SR"]
    instances = {
        one["MainDicomTags"]["SOPInstanceUID"]: one["ID"]
        for one in archive.json("/instances?expand")
    }
    for path in paths:
        sent = pydicom.dcmread(path)
        identifier = instances[sent.SOPInstanceUID]
        back = pydicom.dcmread(io.BytesIO(archive.get(f"/instances/{identifier}/file")))
        assert back == sent
    report, picture = paths[:2]
    identifier = instances[pydicom.dcmread(report).SOPInstanceUID]
    again = groups_of(io.BytesIO(archive.get(f"/instances/{identifier}/file")))
    best, *_ = again[0].get_qualitative_evaluations()
    assert best.value.meaning in CLASSES
    # Orthanc decodes the picture by itself.
    identifier = instances[pydicom.dcmread(picture).SOPInstanceUID]
    png = archive.get(f"/instances/{identifier}/preview")
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    np.testing.assert_array_equal(shown, pydicom.dcmread(picture).pixel_array)


# What there can be no result for


def test_a_series_without_a_readable_slice_has_no_result(tmp_path: Path) -> None:
    path = write_one(tmp_path / "x.dcm", PixelData=b"\0" * 10)
    assert written_for(tmp_path / "out", path) == []


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SOPInstanceUID"])
def test_a_file_that_names_no_study_is_refused(tmp_path: Path, name: str) -> None:
    path = write_one(tmp_path / "x.dcm")
    dataset = pydicom.dcmread(path)
    delattr(dataset, name)
    dataset.save_as(path, enforce_file_format=False)
    with pytest.raises(DataError, match=rf"x\.dcm has no {name}"):
        check_results(tmp_path / "out", find_series([path]))


def test_ordinary_images_are_refused_only_without_a_series(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"anything")
    words = r"--dicom-out needs a DICOM series, but .*x\.png is of none"
    with pytest.raises(DataError, match=words):
        check_results(tmp_path / "out", find_series([path]))
    slice_path = write_one(tmp_path / "x.dcm")
    check_results(tmp_path / "out", find_series([path, slice_path]))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = find_series([write_one(tmp_path / "x.dcm")])
    with pytest.raises(DataError, match=r"cannot write .*file"):
        check_results(tmp_path / "file", found)


@pytest.mark.parametrize("name", ["series-1-sr.dcm", "series-23-page.dcm"])
def test_a_folder_that_holds_results_is_refused_unless_they_are_ones_own(
    tmp_path: Path, name: str
) -> None:
    found = find_series([write_one(tmp_path / "x.dcm")])
    out = tmp_path / "out"
    out.mkdir()
    (out / "series-1.txt").touch()
    check_results(out, found)
    (out / name).touch()
    with pytest.raises(ConfigError, match=rf"{out} holds results already") as caught:
        check_results(out, found)
    assert "name a new folder" in caught.value.hint
    check_results(out, found, resume=True)


def test_on_a_full_disk_there_are_both_files_of_a_series_or_none(
    tmp_path: Path,
) -> None:
    path = write_one(tmp_path / "x.dcm")
    (one,) = written_for(tmp_path / "whole", path)
    sizes = [file.stat().st_size for file in (one.report, one.picture)]
    assert sizes[0] < 100_000 < sizes[1]
    (answer,) = answers_for(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DataError) as caught:
            write_results(tmp_path / "out", PREDICTOR, answer, notes=NOTES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    place = tmp_path / "out" / one.picture.name
    assert caught.value.problem == f"cannot write {place}: File too large"
    assert list((tmp_path / "out").iterdir()) == []


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    found = find_series([write_one(tmp_path / "x.dcm")])
    check_results(tmp_path / "out", found)
    assert not (tmp_path / "out").exists()


def test_a_class_of_images_that_highdicom_does_not_know_is_one_error(
    tmp_path: Path,
) -> None:
    path = write_one(tmp_path / "x.dcm", SOPClassUID="1.2.3.4.5")
    with pytest.raises(DataError, match=r"the header of .*x\.dcm does not allow"):
        written_for(tmp_path / "out", path)


def test_a_header_that_cannot_be_decoded_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: pydicom.Dataset) -> None:
        raise LookupError("Quibble")

    path = write_one(tmp_path / "x.dcm")
    monkeypatch.setattr(pydicom.Dataset, "decode", fail)
    with pytest.raises(DataError, match=r"does not allow .* \(LookupError\)") as caught:
        written_for(tmp_path / "out", path)
    assert "Quibble" not in str(caught.value)


def test_a_value_of_the_wrong_form_is_copied_as_it_is(tmp_path: Path) -> None:
    path = write_one(tmp_path / "x.dcm")
    path.write_bytes(path.read_bytes().replace(b"61.375", b"Quibbl"))
    (one,) = written_for(tmp_path / "out", path)
    assert b"Quibbl" in one.report.read_bytes()
