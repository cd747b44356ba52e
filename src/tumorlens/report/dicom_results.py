"""The result of a series as DICOM: a structured report and a picture with a heat map.

Both belong to the study of the images, so they carry the identity of its patient:
without it no archive can file them. highdicom quotes values that it dislikes in
warnings and logs, names among them. So it gets none: the patient's elements are copied,
unchanged, into its finished result.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

import tumorlens
from tumorlens.data.dicom import pixels
from tumorlens.data.dicom.series import MANUFACTURER
from tumorlens.data.images import DEFAULT_LIMITS, read_image, square_box
from tumorlens.deploy.artefact import is_artefact, open_artefact
from tumorlens.errors import ConfigError, DataError
from tumorlens.evaluation.occlusion import (
    PATCHES_PER_SIDE,
    occlusion_map,
    place_on_image,
)
from tumorlens.extras import require
from tumorlens.files import check_folder, write_bytes
from tumorlens.report.dicom_picture import WARNING, Page, draw_page
from tumorlens.report.dicom_report import SCHEME, report_content
from tumorlens.runs.folder import open_run
from tumorlens.text import percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pydicom import Dataset

    from tumorlens.data.dicom.series import Found, Series
    from tumorlens.deploy.predictor import Predictor
    from tumorlens.deploy.series import SeriesAnswer

_UIDS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
_BLANK = [
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
    "ReferringPhysicianName",
]
_OF_THE_IMAGE = ["Modality", "BurnedInAnnotation", "BodyPartExamined"]
_LOSSY = [
    *("LossyImageCompression", "LossyImageCompressionRatio"),
    "LossyImageCompressionMethod",
]
_HEADER_HINT = "leave out --dicom-out, or mend the header"
_KINDS = ("sr", "page")
"""What the names of the two files end in: series-1-sr.dcm, series-1-page.dcm."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True)
class Written:
    """The two files of one series."""

    report: Path
    picture: Path


def check_results(folder: Path, found: Found, *, resume: bool = False) -> None:
    """Refuse a folder or series that results cannot be written for, before predicting.

    Args:
        folder: Where to. It holds no results yet: series are numbers, so those of
            another patient would be replaced, or stay beside the new ones.
        found: What they will be of.
        resume: The results in the folder are of the session to be continued.

    Raises:
        MissingExtraError: highdicom or matplotlib is not installed.
        ConfigError: The folder holds results, and `resume` is not given.
        DataError: There is no series, a series lacks the UID of its study, or
            nothing can be written to the folder.
    """
    require("highdicom")
    require("matplotlib")
    if not resume and any(
        next(folder.glob(f"series-*-{kind}.dcm"), None) for kind in _KINDS
    ):
        raise ConfigError(
            f"--dicom-out: {folder} holds results already",
            hint="name a new folder; --resume continues that of a stopped session",
        )
    if not found.series:
        raise DataError(
            f"--dicom-out needs a DICOM series, but {found.others[0]} is of none or "
            "cannot be read",
            hint="name the files of a series, or leave out --dicom-out",
        )
    for series in found.series:
        _references(series)
    check_folder(folder)


def write_results(
    folder: Path, predictor: Predictor, answer: SeriesAnswer, *, notes: Sequence[str]
) -> Written | None:
    """Write the report and the picture of a series.

    Args:
        folder: Where to, see `check_results`; files of the same name are replaced.
        predictor: The model that predicted; it predicts again for the heat map.
        answer: For a series. Without a readable slice, nothing is written.
        notes: Sentences about the model, for both.

    Raises:
        DataError: The headers do not allow it, or the folder cannot be written. There
            are then both files of the series, of one session, or none.
        MissingExtraError: highdicom is not installed.
    """
    if answer.probs is None or answer.key is None:
        return None
    key = answer.series.slices[answer.key]
    references = _references(answer.series)
    with _quietly():
        identity = _identity(key.path)
        page = draw_page(_page(predictor, answer, notes))
        # highdicom does not know all classes of images, and its messages quote values.
        try:
            picture = _picture(
                page,
                answer,
                references[answer.key],
                identity,
                digest=predictor.digest,
            )
            report = _report(predictor, answer, references, identity, notes)
            contents = [_as_file(one) for one in (report, picture)]
        except (ValueError, LookupError) as error:
            raise DataError(_not_allowed(key.path, error), hint=_HEADER_HINT) from None
    written = Written(
        *(folder / f"series-{answer.series.number}-{kind}.dcm" for kind in _KINDS)
    )
    write_bytes(written.report, contents[0])
    try:
        write_bytes(written.picture, contents[1])
    except BaseException:  # half a result would pass for a whole one
        for path in (written.report, written.picture):
            path.unlink(missing_ok=True)
        raise
    return written


def notes_of(path: Path, predictor: Predictor) -> list[str]:
    """Return sentences on the model behind a predictor: its weights and its accuracy.

    Args:
        path: The run folder or the artefact that it was opened from.
        predictor: For its name and the digests of its weights.
    """
    digests = [
        digest[:12] for member in predictor.members for digest in member.weights_sha256
    ]
    shown = ", ".join(digests[:3]) + (", ..." if len(digests) > 3 else "")
    model = f"Model {predictor.name}, weights sha256 {shown}."
    return [model, _worth_of_artefact(path) if is_artefact(path) else _worth(path)]


def _worth_of_artefact(path: Path) -> str:
    parity = open_artefact(path).parity()
    num_flips = len(parity.flips)
    return (
        f"Accuracy on {parity.num_images} validation images: "
        f"{percent(parity.accuracy.artefact)}, its run {percent(parity.accuracy.run)}; "
        f"{num_flips or 'no'} label{'' if num_flips == 1 else 's'} differ"
        f"{'s' if num_flips == 1 else ''}."
    )


def _worth(path: Path) -> str:
    run = open_run(path)
    if not run.metrics_path.is_file():
        return "It was never evaluated on a test subset: its accuracy is not known."
    metrics = run.metrics()
    return (
        f"Accuracy on {metrics.num_images} test images, 95 %: "
        f"{metrics.accuracy.percentage}. {metrics.leak.words}"
    )


def _as_file(dataset: Dataset) -> bytes:
    # Not straight to the disk: when that is full, pydicom's error is a whole traceback.
    content = BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def _references(series: Series) -> list[Dataset]:
    """Return the UIDs that refer to each slice, with the patient left blank.

    Raises:
        DataError: A header lacks the UIDs of its instance or study.
    """
    found: dict[Path, Dataset] = {}
    for one in series.slices:
        if one.path in found:
            continue
        with _quietly():
            header = pixels.read_header(
                one.path,
                tags=[*_UIDS, *_OF_THE_IMAGE, *_LOSSY],
                max_bytes=DEFAULT_LIMITS.max_bytes,
            )
            missing = [name for name in _UIDS if not header.get(name)]
        if missing:
            raise DataError(
                f"{one.path} has no {missing[0]}, so that no DICOM result can be filed "
                "beside it",
                hint="leave out this file, or leave out --dicom-out",
            )
        for name in _BLANK:
            setattr(header, name, None)
        found[one.path] = header
    return [found[one.path] for one in series.slices]


def _identity(path: Path) -> Dataset:
    """Return a header with its texts decoded, for what is the patient's in it.

    Raises:
        DataError: A value cannot be read. It is not in the message.
    """
    import pydicom
    from pydicom.uid import MRImageStorage

    # Broad, because a value of the wrong form raises whatever its parser trips over.
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        header.decode()
    except Exception as error:
        raise DataError(_not_allowed(path, error), hint=_HEADER_HINT) from None
    # highdicom looks up the elements to copy by class, and does not know all classes.
    # The patient's and the study's are the same for all.
    header.SOPClassUID = MRImageStorage
    return header


def _not_allowed(path: Path, error: Exception) -> str:
    kind = type(error).__name__
    return f"the header of {path} does not allow a DICOM result ({kind})"


def _identify(result: Any, identity: Dataset) -> None:
    result.copy_patient_and_study_information(identity)
    # The texts were decoded, and are written in a set that holds them all.
    result.SpecificCharacterSet = "ISO_IR 192"


def _page(predictor: Predictor, answer: SeriesAnswer, notes: Sequence[str]) -> Page:
    assert answer.probs is not None
    assert answer.key is not None
    series = answer.series
    key = series.slices[answer.key]
    image = read_image(key.path, frame=key.frame, limits=predictor.limits)
    best = int(answer.probs.argmax())
    label = predictor.classes[best]
    of_key = answer.slices[answer.key].probs
    assert of_key is not None
    return Page(
        title=f"tumorlens: series {series.number}, slice {answer.key + 1} of "
        f"{len(series.slices)}",
        subtitle=f"most probable for the series: {label}, "
        f"{percent(float(answer.probs[best]))}; for this slice alone: "
        f"{predictor.classes[int(of_key.argmax())]}, {percent(float(of_key.max()))}",
        image=image,
        heat=_heat(predictor, image, best),
        label=label,
        probs=[
            (name, float(prob))
            for name, prob in zip(predictor.classes, answer.probs, strict=True)
        ],
        notes=[
            f"The bars are of the series: {answer.rule}.",
            *_answer_words(answer),
            *_sentences(notes),
        ],
    )


def _heat(
    predictor: Predictor, image: NDArray[np.uint8], label: int
) -> NDArray[np.float32]:
    """Return the map of one class on the image, the mean over the networks."""
    maps = [
        place_on_image(
            occlusion_map(member.square(image), member.predict, label=label),
            box=square_box(image, fit=member.spec.fit),
            shape=(image.shape[0], image.shape[1]),
        )
        for member in predictor.members
    ]
    mean: NDArray[np.float32] = np.mean(maps, axis=0, dtype=np.float32)
    return mean


def _answer_words(answer: SeriesAnswer) -> list[str]:
    """Return what is to be answered for the series; nothing if not calibrated."""
    judged = answer.trust
    if judged is None:
        return []
    why = f" ({judged.objection})" if judged.objection else ""
    words = f"Answer: {judged.answer}{why}; possible: {', '.join(judged.in_set)}."
    return [f"{words} Neither is proved for series."]


def _sentences(notes: Sequence[str]) -> list[str]:
    limits = (
        "The network sees one slice at a time. The heat shows what the answer rests "
        f"on, not where a tumour is: a grey patch of 1/{PATCHES_PER_SIDE} of the side "
        "was moved over the slice (Zeiler and Fergus 2014)."
    )
    return [*notes, limits]


def _picture(
    page: NDArray[np.uint8],
    answer: SeriesAnswer,
    source: Dataset,
    identity: Dataset,
    *,
    digest: str,
) -> Dataset:
    sc = require("highdicom.sc")
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    picture: Dataset = sc.SCImage.from_ref_dataset(
        source,
        page,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **_ours(answer, what="page", series_number=9002, digest=digest),
    )
    # A page has no direction in the patient, and came out of no modality's socket.
    picture.PatientOrientation = None
    picture.BodyPartExamined = source.get("BodyPartExamined") or "BRAIN"
    picture.ConversionType = "WSD"
    picture.DerivationDescription = "Slice with occlusion map and class probabilities"
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    assert answer.key is not None
    frame = answer.series.slices[answer.key].frame
    if frame is not None:
        reference.ReferencedFrameNumber = frame + 1
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    reference.PurposeOfReferenceCodeSequence = [_code(*purpose[:3])]
    picture.SourceImageSequence = [reference]
    # Whether the patient can be told from what is burnt in. We add no name, so it is
    # the flag of the source; a secondary capture without one may hold anything.
    burned_in = source.get("BurnedInAnnotation")
    if burned_in or source.SOPClassUID != _SECONDARY_CAPTURE:
        picture.BurnedInAnnotation = burned_in or "NO"
    if source.get("LossyImageCompression") == "01":
        for name in _LOSSY:
            if name in source:
                picture[name] = source[name]
    _identify(picture, identity)
    return picture


def _report(
    predictor: Predictor,
    answer: SeriesAnswer,
    references: Sequence[Dataset],
    identity: Dataset,
    notes: Sequence[str],
) -> Dataset:
    sr = require("highdicom.sr")
    report: Dataset = sr.ComprehensiveSR(
        evidence=list({one.SOPInstanceUID: one for one in references}.values()),
        content=report_content(
            predictor, answer, references, sentences=[f"{WARNING}.", *_sentences(notes)]
        ),
        is_complete=True,
        **_ours(answer, what="report", series_number=9001, digest=predictor.digest),
    )
    _identify(report, identity)
    return report


def _ours(
    answer: SeriesAnswer, *, what: str, series_number: int, digest: str
) -> dict[str, Any]:
    """Return the elements that name the maker of a result, with new UIDs."""
    from pydicom.uid import generate_uid

    return {
        "series_instance_uid": generate_uid(prefix=None),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": answer.series.number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": tumorlens.__version__,
        "device_serial_number": digest,
        "series_description": f"tumorlens {what}: {WARNING.lower()}",
        "content_qualification": "RESEARCH",
        "specific_character_set": "ISO_IR 192",
        "coding_schemes": [
            require("highdicom.coding_schemes").CodingSchemeIdentificationItem(
                SCHEME,
                name="Classes of a network",
                responsible_organization="tumorlens",
            )
        ],
    }


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = scheme
    item.CodeMeaning = meaning
    return item


@contextmanager
def _quietly() -> Iterator[None]:
    logger = logging.getLogger("highdicom")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler := logging.NullHandler())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
