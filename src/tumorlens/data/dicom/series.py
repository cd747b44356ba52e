"""Files from a clinic -> series of slices in their order, without names of patients.

One series is one SeriesInstanceUID, wherever its files lie; a file without one is a
series of its own, and every frame of a multi-frame file is a slice. UIDs identify: a
hospital finds the patient by them. So the name of a series is a running number, and
only the elements of the header that grouping needs are parsed.
"""

from __future__ import annotations

import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.data.dicom import dicomdir, pixels
from tumorlens.data.files import (
    described,
    files_below,
    is_folder,
    kind_of,
    may_exist,
)
from tumorlens.data.images import (
    DEFAULT_LIMITS,
    SUFFIXES,
    ImageLimits,
    decoder_warnings_silenced,
    is_image_file,
    read_image,
    without_path,
)
from tumorlens.errors import DataError
from tumorlens.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from pydicom import Dataset

MANUFACTURER = "tumorlens"
"""Manufacturer in our own results, which are skipped as input."""

_PLAIN_SUFFIXES = SUFFIXES - {".dcm", ".dicom"}

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "Manufacturer",
    "SeriesInstanceUID",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "Rows",
    "NumberOfFrames",
]
"""Elements for grouping: no name, date or number of a patient. With `identify`,
PatientID is added."""

_NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "radiotherapy dose",
}
"""SOP classes that have rows and columns but no image of a patient."""


@dataclass(frozen=True)
class Slice:
    """One image: a file, or one frame of it."""

    path: Path
    frame: int | None = None
    """From 0; `None` for a file that has one frame."""


@dataclass(frozen=True)
class Series:
    """Slices that were taken together, in their order."""

    number: int
    """Running number from 1: its name. Slices are numbered from 1 as well."""
    slices: tuple[Slice, ...]
    order: str
    """Source of the order: 'position', 'instance number' or 'path'."""
    patient: str | None = None
    """PatientID with `identify`."""


@dataclass(frozen=True)
class Found:
    """Content of the named files and folders."""

    series: tuple[Series, ...]
    others: tuple[Path, ...]
    """Files without a series: ordinary images, and those that cannot be read."""
    damaged: dict[Path, str]
    """Copies of a slice that cannot be decoded -> why, in one line without the path."""
    skipped: dict[str, int]
    """Copies, kinds of instance that hold no image, and suffixes of other files ->
    number of files."""


@dataclass
class _Instance:
    path: Path
    uid: str
    series_uid: str
    number: int | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    num_frames: int
    patient: str


@dataclass
class _Paths:
    """Every file once, in the order in which it was found."""

    dicom: dict[Path, None] = field(default_factory=dict)
    others: dict[Path, None] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def holds_study(paths: Iterable[Path]) -> bool:
    """Return whether files and folders are to be predicted series by series.

    They are if there is a DICOMDIR, a DICOM file in a folder, or more than one DICOM
    file; a single DICOM file is a picture like any other. The suffix of an ordinary
    image is trusted and the file not opened, so that 100,000 of them cost nothing.
    """
    num_named = 0
    for path in paths:
        if is_folder(path):
            if next(files_below(path, is_dicom_file), None) is not None:
                return True
        elif dicomdir.is_dicomdir(path):
            return True
        else:
            num_named += is_dicom_file(path)
    return num_named > 1


def is_dicom_file(path: Path) -> bool:
    """Return whether a file begins as DICOM and has no suffix of another format."""
    if path.suffix.lower() in _PLAIN_SUFFIXES:
        return False
    try:
        # Before opening: opening a pipe waits for a writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return pixels.is_dicom(file)
    except OSError:
        return False


def find_series(
    paths: Sequence[Path],
    *,
    identify: bool = False,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Found:
    """Return the series and the ordinary images in files, folders and DICOMDIRs.

    In a folder, DICOM files are recognised by their first bytes, ordinary images by
    their suffix or their first bytes; a DICOMDIR adds the files that it names. Slices
    are ordered by their position along the normal of the series; where a position is
    missing or the slices are not parallel, by InstanceNumber; where that is missing, by
    path. An instance that is there twice counts once: where the files differ they are
    decoded, and the first that can be is taken. If none can, it is the first one.

    Args:
        paths: Files, folders and DICOMDIRs.
        identify: Keep PatientID.
        limits: Limits above which a file is refused.

    Raises:
        DataError: A path does not exist, a folder has no image or cannot be read,
            nothing at all is an image, or see `dicomdir.read_dicomdir`.
        MissingExtraError: A file with a copy is compressed, see `images.read_image`.
    """
    found = _Paths()
    for path in paths:
        if is_folder(path):
            _add_folder(path, found, limits)
        elif not may_exist(path):
            raise DataError(
                f"no such file or folder: {path}", hint="check the path's spelling"
            )
        elif dicomdir.is_dicomdir(path):
            _add_dicomdir(path, found, limits)
        else:
            (found.dicom if is_dicom_file(path) else found.others)[path] = None
    instances = []
    for path in found.dicom:
        one = _instance(path, limits, identify=identify)
        if one is None:
            found.others[path] = None
        elif isinstance(one, str):
            found.skipped[one] += 1
        else:
            instances.append(one)
    if not instances and not found.others:
        raise DataError(
            f"there is no image in {', '.join(str(path) for path in paths)[:200]}"
            + (f", only {described(found.skipped)}" if found.skipped else ""),
            hint="name files or folders that hold images",
        )
    series = _grouped(_without_copies(instances, found, limits), limits)
    return Found(series, tuple(found.others), found.damaged, dict(found.skipped))


def _add_folder(folder: Path, found: _Paths, limits: ImageLimits) -> None:
    num_named = 0
    for path in files_below(folder, lambda _: True, skipped=found.skipped):
        if dicomdir.is_dicomdir(path):
            num_named += _add_dicomdir(path, found, limits)
        elif is_dicom_file(path):
            found.dicom[path] = None
        elif is_image_file(path):
            found.others[path] = None
        else:
            found.skipped[kind_of(path)] += 1
            continue
        num_named += 1
    if not num_named:
        raise DataError(
            f"there is no image in the folder {folder}",
            hint=f"images end in {', '.join(sorted(SUFFIXES))}, or begin as such a "
            "file; links to folders are not followed",
        )


def _add_dicomdir(path: Path, found: _Paths, limits: ImageLimits) -> int:
    with decoder_warnings_silenced():
        media = dicomdir.read_dicomdir(path, max_bytes=limits.max_bytes)
    found.dicom.update(dict.fromkeys(media.images))
    if media.num_others:
        found.skipped["not an image in the DICOMDIR"] += media.num_others
    return len(media.images)


def _instance(
    path: Path, limits: ImageLimits, *, identify: bool
) -> _Instance | str | None:
    """Return the elements that grouping needs, or the kind of a file without an image.

    `None` is a file that cannot be read: reading its pixels reports why.
    """
    tags = [*_TAGS, "PatientID"] if identify else _TAGS
    try:
        if path.stat().st_size > limits.max_bytes:
            return None
        with decoder_warnings_silenced():
            header = pixels.read_header(path, tags=tags, max_bytes=limits.max_bytes)
            return _from_header(path, header)
    except (OSError, DataError):
        return None


def _from_header(path: Path, header: Dataset) -> _Instance | str:
    # pydicom parses a value at its first use, and its errors can quote it.
    def value(name: str) -> Any:
        try:
            return header.get(name)
        except Exception:
            return None

    sop_class = str(value("SOPClassUID") or "")
    if sop_class in _NOT_PICTURES:
        return _NOT_PICTURES[sop_class]
    if value("Manufacturer") == MANUFACTURER:
        return "result of tumorlens"
    if not value("Rows"):
        return _kind(str(value("Modality") or ""))
    return _Instance(
        path=path,
        uid=str(value("SOPInstanceUID") or ""),
        series_uid=str(value("SeriesInstanceUID") or ""),
        number=_whole(value("InstanceNumber")),
        position=_floats(value("ImagePositionPatient"), 3),
        orientation=_floats(value("ImageOrientationPatient"), 6),
        num_frames=_whole(value("NumberOfFrames")) or 1,
        patient=str(value("PatientID") or ""),
    )


def _kind(modality: str) -> str:
    # A code such as SR, PR or KO, if it looks like one: this is printed.
    is_code = modality.isascii() and modality.isalnum() and len(modality) <= 8
    return modality if is_code else "file without an image"


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):  # the last one for infinity
        return None


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _without_copies(
    instances: Sequence[_Instance], found: _Paths, limits: ImageLimits
) -> Iterator[_Instance]:
    """Yield each instance once, and record its copies in `found`."""
    copies: dict[object, list[_Instance]] = {}
    for one in instances:
        identity = (one.series_uid, one.uid)
        copies.setdefault(identity if all(identity) else one.path, []).append(one)
    for some in copies.values():
        errors: list[str | None] = [None] * len(some)
        if not _are_equal([one.path for one in some]):
            errors = [_error_of(one, limits) for one in some]
        chosen = errors.index(None) if None in errors else 0
        yield some[chosen]
        for number, (one, error) in enumerate(zip(some, errors, strict=True)):
            if error is not None and number != chosen:
                found.damaged[one.path] = error
            elif number != chosen:
                found.skipped["copy"] += 1


def _are_equal(paths: Sequence[Path]) -> bool:
    """Return whether files hold the same bytes, so that any of them can be taken."""
    if len(paths) == 1:
        return True
    try:
        return len({sha256_of(path) for path in paths}) == 1
    except OSError:  # removed since: decoding it reports that
        return False


def _error_of(one: _Instance, limits: ImageLimits) -> str | None:
    try:
        for place in _slices(one, limits):
            read_image(place.path, frame=place.frame, limits=limits)
    except DataError as error:
        return without_path(error, one.path)
    return None


def _grouped(instances: Iterable[_Instance], limits: ImageLimits) -> tuple[Series, ...]:
    groups: dict[str, list[_Instance]] = {}
    for one in instances:
        groups.setdefault(one.series_uid or f"path {one.path}", []).append(one)
    return tuple(
        _series(number, members, limits)
        for number, members in enumerate(groups.values(), start=1)
    )


def _series(number: int, instances: Sequence[_Instance], limits: ImageLimits) -> Series:
    ordered, order = _ordered(instances)
    slices = [place for one in ordered for place in _slices(one, limits)]
    patient = next((one.patient for one in ordered if one.patient), None)
    return Series(number, tuple(slices), order, patient)


def _slices(one: _Instance, limits: ImageLimits) -> list[Slice]:
    # With too many frames, reading the middle one reports the limit.
    if 1 < one.num_frames <= limits.max_frames:
        return [Slice(one.path, frame) for frame in range(one.num_frames)]
    return [Slice(one.path)]


def _ordered(instances: Sequence[_Instance]) -> tuple[list[_Instance], str]:
    if depths := _depths(instances):
        by_depth = sorted(
            zip(depths, instances, strict=True),
            key=lambda pair: (pair[0], pair[1].number or 0, str(pair[1].path)),
        )
        return [one for _, one in by_depth], "position"
    if all(one.number is not None for one in instances):
        return (
            sorted(instances, key=lambda one: (one.number or 0, str(one.path))),
            "instance number",
        )
    return sorted(instances, key=lambda one: str(one.path)), "path"


def _depths(instances: Sequence[_Instance]) -> list[float] | None:
    """Return the position of each along the common normal, if all have one."""
    positions = [one.position for one in instances]
    orientations = [one.orientation for one in instances]
    if None in positions or None in orientations:
        return None
    first = np.array(orientations[0], float)
    with np.errstate(all="ignore"):  # numbers near the largest there are overflow
        # A scout has planes in several directions; rounding makes parallel ones differ.
        if not np.allclose(np.array(orientations, float), first, atol=1e-3):
            return None
        normal = np.cross(first[:3], first[3:])
        # To a micrometre: slices in one place (echoes, times) go by their number.
        depths = (np.array(positions, float) @ normal).round(3)
        is_usable = np.linalg.norm(normal) >= 0.5 and np.isfinite(depths).all()
    return [float(depth) for depth in depths] if is_usable else None
