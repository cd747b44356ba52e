"""`external.json`: measures on images of another set than the model's own.

The figures are given three times: on the images that are new to the training, on those
that it has seen, and on all. The first are what the model is worth elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.errors import RunError
from tumorlens.files import Count, read_model
from tumorlens.runs.measures import Measures
from tumorlens.text import NotebookView, counted, percent

if TYPE_CHECKING:
    from pathlib import Path

FILE = "external.json"
"""Name of the file; the folder of an evaluation has one."""

NEW, SEEN_PICTURE, SEEN_PATIENT = "new", "seen-picture", "seen-patient"
"""States of a tested image: training has seen neither it nor its patient; its picture
or a slice next to it; another image of its group."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ClassPair(_Content):
    """A class of the model, and what it is called in the data."""

    model: str
    data: str | None
    """`None` for a class that the data lacks."""


class ExternalCounts(_Content):
    """Where the files of the data have gone."""

    files: Count
    unreadable: Count
    copies: Count
    """Further files that show a picture which counts once."""
    conflicting: Count
    """Files whose copies have another label."""
    unanswered: Count
    """Images without an answer, such as those of classes that the model does not
    know."""
    tested: Count
    """Images that are left: each is a different picture."""
    seen_pictures: Count = 0
    """Tested images that show a picture of training, or a slice next to one."""
    seen_patients: Count = 0
    """Further images of a patient whose images training has seen."""
    seen_by_key_only: Count = 0
    """Those of them that are known by an equal patient key alone."""
    new: Count = 0


class ExternalMetrics(NotebookView, _Content):
    """The content of `external.json`."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the evaluation."""
    data: str
    """Name of the folder or table of the images."""
    data_sha256: str
    """`Index.digest` of the images."""
    images_sha256: str | None = None
    """`Index.images_digest`, equal for the same files in another folder; `None` in
    files of earlier versions."""
    model: str
    """Name of the run or artefact, or of the table with the answers."""
    model_sha256: str
    """`Predictor.digest`, or that of the table."""
    classes: tuple[ClassPair, ...]
    """One for each class of the model."""
    unknown_classes: dict[str, Count]
    """Class of the data that the model does not know -> its images."""
    counts: ExternalCounts
    is_seen_known: bool
    """Whether it is known what the training has seen."""
    orientations: dict[str, Count]
    """Turn -> seen pictures that had it."""
    all: Measures
    seen: Measures | None
    """`None` where nothing was seen, or that is not known."""
    new: Measures | None
    """`None` where nothing is new, or that is not known."""
    notes: tuple[str, ...]
    """What the figures do not say, one sentence each."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        counts = self.counts
        seen = counts.seen_pictures + counts.seen_patients
        expected = {"all": counts.tested, "seen": seen, "new": counts.new}
        if seen + counts.new != (counts.tested if self.is_seen_known else 0):
            raise ValueError("expected the seen and the new images to be all tested")
        for part, number in expected.items():
            found: Measures | None = getattr(self, part)
            if (found.num_images if found else 0) != number:
                raise ValueError(f"expected {number} images in {part}, as in counts")
            if found and set(found.classes) != set(self.all.classes):
                raise ValueError(f"expected the same classes in {part} as in all")
        return self

    @property
    def headline(self) -> Measures:
        """The figures to believe: those on new images where there are any."""
        return self.new or self.all

    @property
    def accuracy_words(self) -> str:
        """The accuracy to believe, in words: on new images where there are any."""
        counts, found = self.counts, self.headline.accuracy.percentage
        if self.new is not None:
            has_keys = counts.seen_by_key_only > counts.seen_pictures == 0
            others = ", others have a patient key of training" if has_keys else ""
            return f"{found} on {counted(counts.new, 'new image')}{others}"
        why = (
            "all seen in training" if self.is_seen_known else "not known which are new"
        )
        return f"{found} on {counted(counts.tested, 'image')}, {why}"

    @property
    def words(self) -> str:
        """What the training has seen of the data, in a sentence or two."""
        counts = self.counts
        if not self.is_seen_known:
            return (
                "Not known: the model does not tell what its training has seen, so any "
                f"of the {counted(counts.tested, 'image')} may be a training image."
            )
        seen = counts.seen_pictures + counts.seen_patients
        if not seen:
            return (
                f"None of the {counted(counts.tested, 'image')} was seen in training."
            )
        # Where no picture is known, the sets may just number their patients alike.
        may_be = counts.seen_by_key_only == seen
        words = (
            f"Training {'may have' if may_be else 'has'} seen {seen:,} of the "
            f"{counted(counts.tested, 'image')} ({percent(seen / counts.tested)})"
        )
        if may_be:
            words += ": none by its picture, all by an equal patient key"
        elif counts.seen_patients:
            words += (
                f": {counts.seen_pictures:,} as a picture or a slice next to one, "
                f"{counts.seen_patients:,} more by their patient or head"
            )
        verb = "is" if counts.new == 1 else "are"
        left = f"{counts.new:,} {verb} new" if counts.new else "nothing is new"
        return f"{words}; {left}."

    @property
    def words_of_turns(self) -> str:
        """How the seen pictures lie, in a sentence; empty where none was seen."""
        num_of = dict.fromkeys(_KINDS_OF_TURNS, 0)
        for name, number in self.orientations.items():
            num_of[_kind_of_turn(name)] += number
        found = [(number, kind) for kind, number in num_of.items() if number]
        if not found:
            return ""
        verb = "is" if found[0][0] == 1 else "are"
        parts = ", ".join(f"{number:,} {kind}" for number, kind in found)
        seen = counted(sum(num_of.values()), "seen picture")
        return f"Of {seen}, {parts.replace(' ', f' {verb} ', 1)}."


_KINDS_OF_TURNS = ("as in training", "mirrored", "turned", "mirrored and turned")


def _kind_of_turn(orientation: str) -> str:
    """Return one of `_KINDS_OF_TURNS`.

    Example:
        >>> names = ("same", "mirrored", "rotated-90", "mirrored-rotated-180")
        >>> tuple(map(_kind_of_turn, names)) == _KINDS_OF_TURNS
        True
    """
    as_it_was, mirrored, turned, both = _KINDS_OF_TURNS
    kinds = {"same": as_it_was, "mirrored": mirrored}
    return kinds.get(
        orientation, both if orientation.startswith("mirrored") else turned
    )


def read_external_metrics(folder: Path) -> ExternalMetrics:
    """Return the content of `external.json` in the folder of an evaluation.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    path, hint = folder / FILE, "evaluate the model on the set again"
    if not path.is_file():
        raise RunError(f"{folder} has no evaluation: there is no {FILE}", hint=hint)
    return read_model(path, ExternalMetrics, hint=hint)


PARTS = ("new", "seen", "all")
"""The three parts in the order in which they are shown."""
