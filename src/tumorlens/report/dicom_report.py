"""The content of a structured report: probabilities as numbers that can be queried.

A measurement report after TID 1500. Public codes are used where there are any. No
public scheme has codes for the classes of a network, so those are private, made from
their names. Limits of length: a code has at most 16 characters, its meaning and every
long string 64; a longer text is not cut off but refused.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

import tumorlens
from tumorlens.data.dicom.series import MANUFACTURER
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from pydicom import Dataset

    from tumorlens.deploy.predictor import Predictor
    from tumorlens.deploy.series import SeriesAnswer
    from tumorlens.runs.trust import Judged

SCHEME = "99TUMORLENS"
"""Coding scheme of the names that no public scheme has."""

_MOST_PROBABLE = ("most-probable", SCHEME, "Most probable class")
_ANSWER = ("answer", SCHEME, "Answer")
_POSSIBLE = ("possible", SCHEME, "Possible class")
_OBJECTION = ("objection", SCHEME, "Why it was turned away")


def report_content(
    predictor: Predictor,
    answer: SeriesAnswer,
    references: Sequence[Dataset],
    *,
    sentences: Sequence[str],
) -> Any:
    """Return the content tree of the report on a series, as highdicom's.

    The first group of measurements is the series', the others are the slices'. The
    algorithm, its version and the digest of its weights are named in each, as the
    template has it; the observer is a device, the same one for the same model.

    Args:
        predictor: The model that predicted.
        answer: For a series with at least one readable slice.
        references: For each slice, the UIDs and the modality of its instance.
        sentences: Remarks, for a person.

    Raises:
        MissingExtraError: highdicom is not installed.

    Source:
        DICOM PS3.16, TID 1500 (report), 1501 (group of measurements), 4019 (algorithm),
        1004 (device).
    """
    sr = require("highdicom.sr")
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    digest = predictor.digest
    device = sr.DeviceObserverIdentifyingAttributes(
        # What answers the same is the same device.
        uid=f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, digest).int}",
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=_short(predictor.name),
        serial_number=digest,
    )
    algorithm = sr.AlgorithmIdentification(
        name=MANUFACTURER,
        version=tumorlens.__version__,
        manufacturer=MANUFACTURER,
        parameters=[
            f"model: {predictor.name}",
            f"weights sha256: {', '.join(_weights(predictor))}",
            f"classes: {', '.join(predictor.classes)}",
            f"series: {answer.rule}",
            f"order of slices: {answer.series.order}",
        ],
    )

    def evaluation(code: tuple[str, str, str], value: tuple[str, str, str]) -> Any:
        return sr.QualitativeEvaluation(
            name=sr.CodedConcept(*code), value=sr.CodedConcept(*value)
        )

    def group(
        identifier: str,
        probs: NDArray[np.floating],
        trust: Judged | None,
        images: list[Any],
    ) -> Any:
        best = predictor.classes[int(probs.argmax())]
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(
                uid=generate_uid(prefix=None), identifier=identifier
            ),
            algorithm_id=algorithm,
            finding_sites=[sr.FindingSite(codes.SCT.Brain)],
            measurements=[
                sr.Measurement(
                    name=sr.CodedConcept(*_class_code("prob", name)),
                    value=round(float(prob), 6),
                    unit=codes.UCUM.NoUnits,
                )
                for name, prob in zip(predictor.classes, probs, strict=True)
            ],
            qualitative_evaluations=[
                evaluation(_MOST_PROBABLE, _class_code("class", best)),
                *(
                    evaluation(name, value)
                    for name, value in _trust_codes(trust, predictor.classes)
                ),
            ],
            source_images=images,
        )

    sources = [
        sr.SourceImageForMeasurementGroup(
            reference.SOPClassUID,
            reference.SOPInstanceUID,
            None if one.frame is None else [one.frame + 1],
        )
        for one, reference in zip(answer.series.slices, references, strict=True)
    ]
    assert answer.probs is not None
    groups = [group(f"Series, {answer.rule}", answer.probs, answer.trust, sources)]
    groups += [
        group(f"Slice {number}", one.probs, one.trust, [source])
        for number, (one, source) in enumerate(
            zip(answer.slices, sources, strict=True), start=1
        )
        if one.probs is not None
    ]
    modality = str(references[0].get("Modality") or "")
    procedure = (
        codes.LN.MRIUnspecifiedBodyRegion
        if modality == "MR"
        else sr.CodedConcept("images", SCHEME, "Images of unknown procedure")
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=device
            )
        ),
        procedure_reported=procedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    for words in sentences:
        content[0].ContentSequence.append(
            sr.TextContentItem(
                name=codes.DCM.Comment, value=words, relationship_type="CONTAINS"
            )
        )
    return content


def _weights(predictor: Predictor) -> list[str]:
    return [digest for member in predictor.members for digest in member.weights_sha256]


def _trust_codes(
    judged: Judged | None, classes: Sequence[str]
) -> list[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """Return names and values: the answer, each class of the set, the objection."""
    if judged is None:
        return []
    answer = (
        _class_code("class", judged.answer)
        if judged.answer in classes
        else (judged.answer, SCHEME, judged.answer.replace("-", " "))
    )
    objection = (
        [(_OBJECTION, (judged.objection, SCHEME, judged.objection))]
        if judged.objection
        else []
    )
    possible = [(_POSSIBLE, _class_code("class", name)) for name in judged.in_set]
    return [(_ANSWER, answer), *possible, *objection]


def _class_code(kind: str, name: str) -> tuple[str, str, str]:
    # A code has at most 16 characters, a class may have any name.
    value = f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    meaning = name if kind == "class" else f"Probability of {name}"
    return value, SCHEME, _short(meaning)


def _short(words: str) -> str:
    r"""Return words as a DICOM text of 64 bytes; \ would make two of one.

    The standard counts characters, but some programs count bytes.
    """
    words = words.replace("\\", "/")
    if len(words.encode()) <= 64:
        return words
    return words.encode()[:61].decode(errors="ignore") + "..."
