"""One frame of a DICOM file as 8-bit grey or colour."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

import numpy as np
import pydicom

from tumorlens.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def is_dicom(file: IO[bytes]) -> bool:
    """Return whether the file has the preamble of DICOM part 10."""
    file.seek(128)
    magic = file.read(4)
    file.seek(0)
    return magic == b"DICM"


def read_frame(
    file: IO[bytes],
    *,
    name: str,
    frame: int | None,
    max_bytes: int,
    max_pixels: int,
    max_frames: int,
) -> NDArray[np.uint8]:
    """Return one frame, (H, W) or (H, W, 3)."""
    dataset = pydicom.dcmread(file, stop_before_pixels=True)
    num_frames = int(dataset.get("NumberOfFrames") or 1)
    if dataset.Rows * dataset.Columns > max_pixels:
        raise DataError(f"{name} has {dataset.Rows} x {dataset.Columns} pixels")
    chosen = num_frames // 2 if frame is None else frame
    if not 0 <= chosen < num_frames:
        raise DataError(f"{name} has {num_frames} frame(s), got frame {frame}")
    file.seek(0)
    dataset = pydicom.dcmread(file)
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

    values = pixel_array(dataset, index=chosen)
    if values.ndim == 3:
        return values.astype(np.uint8)
    grey = apply_voi_lut(apply_modality_lut(values, dataset), dataset).astype(float)
    low, high = float(grey.min()), float(grey.max())
    scaled = (grey - low) * (255 / (high - low) if high > low else 0)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        scaled = 255 - scaled
    return np.rint(scaled).astype(np.uint8)
