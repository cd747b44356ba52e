"""MR series drawn in code, with every identifying attribute in their headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.fileset import FileSet

from support.images import CLASSES, draw_image

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IDENTITY = {
    "PatientName": "Quibble^Zephyrine",
    "PatientID": "MRN-7741963",
    "OtherPatientNames": "Wimpole^Z",
    "PatientBirthDate": "19430217",
    "PatientBirthTime": "041937",
    "PatientAge": "082Y",
    "PatientWeight": "61.375",
    "PatientAddress": "17 Larkspur Lane",
    "PatientTelephoneNumbers": "0555-867530",
    "PatientComments": "cousin of the mayor",
    "AccessionNumber": "ACC-55012",
    "StudyID": "ST-90817",
    "StudyDate": "20230405",
    "StudyTime": "101112.131",
    "SeriesDate": "20230406",
    "AcquisitionDate": "20230407",
    "ContentDate": "20230408",
    "StudyDescription": "headache after Tuesday",
    "SeriesDescription": "t1 for Dr Marmalade",
    "ProtocolName": "marmalade protocol",
    "ReferringPhysicianName": "Marmalade^Ottoline",
    "PerformingPhysicianName": "Thistle^Basil",
    "OperatorsName": "Nettle^Ivo",
    "InstitutionName": "Saint Elsewhere",
    "InstitutionAddress": "1 Elsewhere Row",
    "StationName": "SCANNER-0815",
    "DeviceSerialNumber": "SN-4242-17",
    "RequestedProcedureID": "RP-31337",
}
"""DICOM keyword -> a value that occurs nowhere else."""


def mr_slice(
    pixels: NDArray[Any],
    *,
    study_uid: str,
    series_uid: str,
    number: int,
    depth: float | None = None,
    **attributes: Any,
) -> Dataset:
    """Return an MR instance; pixels are (H, W) or frames (N, H, W)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.MRImageStorage
    dataset.SOPInstanceUID = uid.generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study_uid, series_uid
    dataset.PatientSex = "F"
    for name, value in IDENTITY.items():
        setattr(dataset, name, value)
    dataset.Modality = "MR"
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.FrameOfReferenceUID = uid.generate_uid()
    if depth is not None:
        dataset.ImagePositionPatient = [-120, -120, depth]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [2.5, 2.5]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def write(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_volume(
    folder: Path,
    *,
    label: str = "glioma",
    num_slices: int = 4,
    study_uid: str | None = None,
    size_px: int = 64,
    **attributes: Any,
) -> list[Path]:
    """Write a series whose file names are in reverse order; return paths by depth."""
    study_uid = study_uid or uid.generate_uid()
    series_uid = uid.generate_uid()
    paths = []
    for number in range(num_slices):
        dataset = mr_slice(
            draw_image(label, number, size_px=size_px),
            study_uid=study_uid,
            series_uid=series_uid,
            number=number + 1,
            depth=3.0 * number,
            **attributes,
        )
        paths.append(write(folder / f"IM{num_slices - number:04}", dataset))
    return paths


def write_study(folder: Path, *, num_series: int = 2, num_slices: int = 3) -> Path:
    """Write series of one study and a structured report; return the folder."""
    study_uid = uid.generate_uid()
    for number in range(num_series):
        write_volume(
            folder / f"SE{number + 1}",
            label=CLASSES[number],
            num_slices=num_slices,
            study_uid=study_uid,
        )
    report = mr_slice(
        np.zeros((1, 1)), study_uid=study_uid, series_uid=uid.generate_uid(), number=1
    )
    report.SOPClassUID, report.Modality = uid.ComprehensiveSRStorage, "SR"
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    write(folder / "SR1", report)
    return folder


def write_media(folder: Path, **options: Any) -> Path:
    """Write a study as a medium with a DICOMDIR; return the path of the DICOMDIR."""
    loose = write_study(folder.parent / f"{folder.name}-loose", **options)
    files = FileSet()
    for path in sorted(loose.glob("SE*/*")):
        files.add(pydicom.dcmread(path))
    files.write(folder)
    # Otherwise pydicom cleans up later, with a warning.
    files._stage["t"].cleanup()
    return folder / "DICOMDIR"
