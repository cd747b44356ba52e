"""The leak check: which test images, or their patients, are also in training.

For any split, as given or made here: which test images show a picture that is also in
training, which show another picture of a patient who is, and which look like a
neighbouring slice of one where patients are not known. Nothing is decoded or
compared here; `tumorlens.data.duplicates` has done that. `LeakVerdict` is the content
of `leak.json` and a part of `metrics.json`.

Patients are counted and never named: their keys come from the user's metadata and can
identify a person. Copies and patients are two questions: where patients are not known,
a split without copies has passed only half of the check.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from tumorlens.files import Count
from tumorlens.text import counted, percent

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tumorlens.data.duplicates import Duplicates
    from tumorlens.data.index import Index, Record, SplitRow

LEAK = "leak"
NO_LEAK = "no leak"
UNKNOWN = "unknown"
NO_PATIENTS = "patients not known"
SOME_PATIENTS = "patients partly known"


class LeakVerdict(BaseModel):
    """What is known about copies and patients across the subsets of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    """Number of this layout."""

    leaks: bool
    """Some test image, or another image of its patient or head, is also in training."""

    num_test: int = Field(0, ge=0)
    """Readable test images. Under K folds, all images that are in a fold."""

    num_copied: int = Field(0, ge=0)
    """Test images that show a picture which is also in training."""

    num_pixel_identical: int = Field(0, ge=0)
    """Test images that have exactly equal pixels in training."""

    num_patients_on_both_sides: int = Field(0, ge=0)
    """Known patients with images in training and in test."""

    num_test_unknown_patient: int = Field(0, ge=0)
    """Test images with no known patient, counting patients inherited from copies that
    the split has left out."""

    num_test_patient_in_train: int = Field(0, ge=0)
    """Test images whose patient has images in training."""

    num_lookalike: int = Field(0, ge=0)
    """Further test images so like a training image that both are of one head, as
    neighbouring slices are; none whose patient is known to be another."""

    words: str
    """The verdict in one or two sentences."""

    is_known: bool = True
    """Whether the training images are known. They are not for imported weights, which
    count as a leak."""

    split_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """`tumorlens.data.index.split_sha256` of the run's split, which the verdict is of;
    `None` outside of runs and in runs of earlier versions."""

    labels_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file of corrected labels (`data.labels`) that the split was made
    with; `None` without one."""

    @property
    def state(self) -> str:
        """The verdict in a word or three, the same in tables and on pages.

        `unknown` for weights from elsewhere; `leak` where a test image or its patient
        is also in training; `patients not known` or `patients partly known` where
        there are no copies and patients could not be checked, for all or for some of
        the test images; `no leak` where both were checked.

        Example:
            >>> LeakVerdict(
            ...     leaks=False, num_test=8, num_test_unknown_patient=3, words=""
            ... ).state
            'patients partly known'
        """
        if not self.is_known:
            return UNKNOWN
        if self.leaks:
            return LEAK
        if not self.num_test_unknown_patient:
            return NO_LEAK
        is_all = self.num_test_unknown_patient >= self.num_test
        return NO_PATIENTS if is_all else SOME_PATIENTS

    @property
    def labels(self) -> str:
        """Which corrected labels the run has, in a sentence; empty without any."""
        if self.labels_sha256 is None:
            return ""
        return (
            "Labels were corrected by the file of data.labels, SHA-256 "
            f"{self.labels_sha256[:12]}."
        )

    @property
    def unknown_patients(self) -> str:
        """For how many test images the patient is not known; empty for none.

        Example:
            >>> LeakVerdict(
            ...     leaks=False, num_test=8, num_test_unknown_patient=3, words=""
            ... ).unknown_patients
            'patients not known for 3 of 8 test images'
        """
        num_unknown = self.num_test_unknown_patient
        if not num_unknown:
            return ""
        num_test = counted(self.num_test or num_unknown, "test image")
        return f"patients not known for {num_unknown:,} of {num_test}"


class ClassLeak(BaseModel):
    """Test images of one class."""

    model_config = ConfigDict(frozen=True)

    test: Count
    copied: Count
    """Test images that show a picture which is also in training."""


class SplitLeak(BaseModel):
    """The leak check of the given subsets in full, as in `audit.json`."""

    model_config = ConfigDict(frozen=True)

    num_test: Count
    test_files: Count
    """Test images that show a picture which is also in training."""

    pixel_identical: Count
    """Test images that have exactly equal pixels in training."""

    by_class: dict[str, ClassLeak]
    clean_test_files: Count
    """Test images that show no picture of training; so for the three below."""

    clean_test_pictures: Count
    """Distinct pictures."""

    clean_test_files_of_other_patients: Count
    """Images whose patient is not known to be in training."""

    clean_test_files_with_patient_in_train: Count
    patients_on_both_sides: Count
    test_files_with_patient: Count
    """Test images with a known patient."""

    test_files_with_patient_in_train: Count
    test_files_without_patient: Count
    test_files_lookalike: Count = 0
    """Further test images so like a training image that both are of one head."""

    words: str
    """The verdict in one or two sentences."""


def judge_leak(
    rows: Iterable[SplitRow], index: Index, duplicates: Duplicates
) -> LeakVerdict:
    """Return whether a split lets test images, or their patients, into training.

    `train` and `val` are training: both influence the weights. Under K folds each
    image is tested by the model that was trained on the other folds. Rows that are left
    out or unreadable do not count.

    Args:
        rows: The split.
        index: The index of the split, with the patients.
        duplicates: The result of `find_duplicates` on this index.

    Returns:
        The verdict. Its words name no patient.
    """
    sides = {
        row.path: "train" if row.subset == "val" else row.subset
        for row in rows
        if row.subset != "left-out" and row.path in duplicates.pixels
    }
    verdict = Sides(sides, index, duplicates).verdict()
    return verdict.model_copy(update={"labels_sha256": index.labels_sha256})


class Sides:
    """The files on each side of a split, and what both sides share.

    A side is `train`, `test` or a fold.
    """

    def __init__(
        self, side_of: Mapping[str, str], index: Index, duplicates: Duplicates
    ) -> None:
        self.side_of = side_of
        self.duplicates = duplicates
        self.records = [r for r in index.records if r.path in side_of]
        self.tested = [r for r in self.records if side_of[r.path] != "train"]
        self.has_both = bool(self.tested) and len(set(side_of.values())) > 1
        pixels: dict[str, set[str]] = defaultdict(set)
        pictures: dict[str, set[str]] = defaultdict(set)
        patients: dict[str, set[str]] = defaultdict(set)
        patients_of = self._patients_of(index)
        for record in self.records:
            side = side_of[record.path]
            pixels[duplicates.pixels[record.path]].add(side)
            pictures[duplicates.pictures[record.path]].add(side)
            for patient in patients_of[record.path]:
                patients[patient].add(side)
        # A is near B and B near C, but A and C are not: they can count as two pictures.
        # The pair across the split still is a leak.
        beside: dict[str, set[str]] = defaultdict(set)
        for pair in duplicates.near_pairs:
            a, b = duplicates.pixels[pair.a], duplicates.pixels[pair.b]
            beside[a] |= pixels.get(b, set())
            beside[b] |= pixels.get(a, set())
        self.identical: set[str] = set()
        self.copied: set[str] = set()
        self.same_patient: set[str] = set()
        for record in self.tested:
            own, path = {side_of[record.path]}, record.path
            digest = duplicates.pixels[path]
            if pixels[digest] - own:
                self.identical.add(path)
            if (
                pixels[digest] | pictures[duplicates.pictures[path]] | beside[digest]
            ) - own:
                self.copied.add(path)
            if any(patients[patient] - own for patient in patients_of[path]):
                self.same_patient.add(path)
        self.lookalike = self._lookalike(pixels, patients_of)
        self.num_patients = sum(len(sides) > 1 for sides in patients.values())
        self.num_unknown = sum(not patients_of[record.path] for record in self.tested)

    def _lookalike(
        self, sides: Mapping[str, set[str]], patients_of: Mapping[str, set[str]]
    ) -> set[str]:
        """Return the other test images that are of one head with a training image.

        Args:
            sides: Digest of the pixels -> sides that they are on.
            patients_of: Path -> its patients.
        """
        heads: dict[str, set[str]] = defaultdict(set)
        for record in self.records:
            heads[self.duplicates.pixels[record.path]] |= patients_of[record.path]
        near: dict[str, list[str]] = defaultdict(list)
        for pair in self.duplicates.lookalikes:
            a, b = self.duplicates.pixels[pair.a], self.duplicates.pixels[pair.b]
            near[a].append(b)
            near[b].append(a)
        found: set[str] = set()
        counted_before = self.copied | self.same_patient
        for path in (record.path for record in self.tested):
            own = {self.side_of[path]}
            if path not in counted_before and any(
                sides.get(other, own) - own and not (patients_of[path] and heads[other])
                for other in near[self.duplicates.pixels[path]]
            ):
                found.add(path)
        return found

    def _patients_of(self, index: Index) -> dict[str, set[str]]:
        """Return path -> its patients; empty where none is known.

        An image without a patient inherits those of the copies that the split has left
        out in its favour.
        """
        pictures = self.duplicates.pictures
        of_picture: dict[str, set[str]] = defaultdict(set)
        for record in index.records:
            is_left_out = record.path in pictures and record.path not in self.side_of
            if is_left_out and record.patient is not None:
                of_picture[pictures[record.path]].add(record.patient)
        return {
            record.path: {record.patient}
            if record.patient is not None
            else of_picture[pictures[record.path]]
            for record in self.records
        }

    def verdict(self) -> LeakVerdict:
        """Return the verdict on the split."""
        return LeakVerdict(
            leaks=self._leaks,
            num_lookalike=len(self.lookalike),
            num_test=len(self.tested),
            num_copied=len(self.copied),
            num_pixel_identical=len(self.identical),
            num_patients_on_both_sides=self.num_patients,
            num_test_unknown_patient=self.num_unknown,
            words=self._words(),
            num_test_patient_in_train=len(self.same_patient),
        )

    @property
    def _leaks(self) -> bool:
        return bool(self.copied or self.same_patient or self.lookalike)

    def in_full(self, classes: Sequence[str]) -> SplitLeak | None:
        """Return all figures; `None` when a side is missing."""
        if not self.has_both:
            return None
        clean = [r for r in self.tested if r.path not in self.copied]
        with_patient = sum(r.path in self.same_patient for r in clean)
        return SplitLeak(
            num_test=len(self.tested),
            test_files=len(self.copied),
            pixel_identical=len(self.identical),
            by_class={
                label: self._of_class([r for r in self.tested if r.label == label])
                for label in classes
            },
            clean_test_files=len(clean),
            clean_test_pictures=len({self.duplicates.pictures[r.path] for r in clean}),
            clean_test_files_of_other_patients=len(clean) - with_patient,
            clean_test_files_with_patient_in_train=with_patient,
            patients_on_both_sides=self.num_patients,
            test_files_with_patient=len(self.tested) - self.num_unknown,
            test_files_with_patient_in_train=len(self.same_patient),
            test_files_without_patient=self.num_unknown,
            test_files_lookalike=len(self.lookalike),
            words=self._words(),
        )

    def _of_class(self, tested: Sequence[Record]) -> ClassLeak:
        copied = sum(record.path in self.copied for record in tested)
        return ClassLeak(test=len(tested), copied=copied)

    def _words(self) -> str:
        num, num_copied = len(self.tested), len(self.copied)
        if not self.has_both:
            missing = "training" if self.tested else "test"
            return f"There is no {missing} subset, so nothing can leak."
        if not self._leaks:
            return self._words_without_leak()
        words = (
            f"Leak: {num_copied} of {counted(num, 'test image')} "
            f"({percent(num_copied / num)}) "
            f"{'shows' if num_copied == 1 else 'show'} a picture that is also in "
            "training"
        )
        num_shared, num_known = len(self.same_patient), num - self.num_unknown
        if num_known:
            words += (
                f"; {num_shared} of {counted(num_known, 'test image')} with a known "
                f"patient {'has' if num_shared == 1 else 'have'} that patient in "
                "training too"
            )
        if num_alike := len(self.lookalike):
            words += (
                f"; {num_alike} more {'looks' if num_alike == 1 else 'look'} like "
                "neighbouring slices of training images"
            )
        if self.num_unknown:
            words += (
                f"; {counted(self.num_unknown, 'test image')} "
                f"{'has' if self.num_unknown == 1 else 'have'} no known patient"
            )
        return f"{words}."

    def _words_without_leak(self) -> str:
        num_known = len(self.tested) - self.num_unknown
        words = (
            f"No {'copies' if self.num_unknown else 'leak'} found: none of "
            f"{counted(len(self.tested), 'test image')} shows a picture that is also "
            "in training"
        )
        if num_known:
            words += (
                f", and none of the {num_known} with a known patient shares that "
                "patient with training"
            )
        if self.num_unknown:
            words += (
                f". Patients are not known for {self.num_unknown} of "
                f"{counted(len(self.tested), 'test image')}: whether training has seen "
                "them cannot be checked, and as their images count as groups of their "
                "own, intervals may be too narrow"
            )
        return f"{words}."
