"""DICOM files of any pixels, with as few other elements as can be."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PATIENT = "DOE^JANE"


def dataset_of(pixels: NDArray[Any], **attributes: Any) -> Dataset:
    """Return a data set with native pixels: (H, W), (N, H, W) or (H, W, 3)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = uid.generate_uid()
    dataset.PatientName = PATIENT
    is_color = pixels.ndim == 3 and pixels.shape[2] == 3
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if is_color else pixels.shape[-2:]
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = 12 if pixels.itemsize == 2 else dataset.BitsAllocated
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    return dataset


def write(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_alone(path: Path, dataset: Dataset) -> Path:
    """Write the elements alone, without preamble and without the group 2."""
    syntax = dataset.file_meta.TransferSyntaxUID
    del dataset.file_meta
    dataset.save_as(
        path,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=False,
    )
    return path


def spoil(path: Path, keyword: str, vr: str, *values: str) -> None:
    """Replace an element by bytes of any kind, whatever the standard says of it."""
    content: bytes
    if vr == "FD":
        floats = [float(value) if _is_number(value) else 0.5 for value in values]
        content = struct.pack(f"<{len(floats)}d", *floats)
    elif vr in ("US", "UL"):
        bits, code = (16, "H") if vr == "US" else (32, "L")
        numbers = [int(value) % 2**bits if _is_whole(value) else 7 for value in values]
        content = struct.pack(f"<{len(numbers)}{code}", *numbers)
    else:
        text = "\\".join(values)
        content = (text + " " * (len(text) % 2)).encode()
    dataset = pydicom.dcmread(path)
    tag = tag_for_keyword(keyword)
    assert tag is not None
    if keyword in dataset:
        del dataset[keyword]
    dataset.save_as(path)
    whole = path.read_bytes()
    header = struct.pack("<2H", tag >> 16, tag & 0xFFFF) + vr.encode()
    element = header + struct.pack("<H", len(content)) + content
    at = _place_of(path, tag)
    path.write_bytes(whole[:at] + element + whole[at:])


def _is_whole(value: str) -> bool:
    return value.removeprefix("-").isdigit()


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _place_of(path: Path, tag: int) -> int:
    """Return where an element belongs among the others of a file."""
    with path.open("rb") as file:
        pydicom.filereader.read_partial(file, stop_when=lambda one, *_: one > tag)
        return file.tell()
