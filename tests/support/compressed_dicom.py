"""DICOM files in syntaxes that pydicom cannot write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydicom
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import uid
    from pydicom.dataset import Dataset


def compressed(path: Path, dataset: Dataset, syntax: uid.UID) -> Path:
    """Write a file with the encoders of gdcm, which pydicom lacks."""
    gdcm = pytest.importorskip("gdcm")
    dataset.save_as(path, enforce_file_format=True)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    return path
