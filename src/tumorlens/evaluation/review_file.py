"""`review.json`: how well networks that have not learnt the labels agree with them.

`evaluation.review` computes it; the page shows it. Beside it are two tables: every
image in the order of doubt, and the corrections that are suggested, in the columns that
`data.labels` reads.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.config import Protocol
from tumorlens.data.index import LABEL_COLUMNS
from tumorlens.data.leakage import LeakVerdict
from tumorlens.errors import RunError
from tumorlens.evaluation.map_checks import Neighbour
from tumorlens.files import Count, Fraction, Number, read_model, write_text
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FILE, RANKED, SUGGESTED = "review.json", "images.csv", "suggestions.csv"
"""Names of the files in the folder `review` of a run."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ReviewedImage(_Content):
    """An image, and what the network makes of its label."""

    path: str
    """As the run's `split.csv` names it."""
    label: str
    group: str
    """As `split.csv` has it: images of one patient, or alike."""
    likely: str
    """The most likely class."""
    quality: Fraction
    """Label quality: the probability of the label."""
    prob: Fraction
    """Probability of the likely class."""
    is_suspected: bool
    """Whether cleanlab takes the label for wrong."""
    is_conflict: bool
    """Whether the split has left it out, as a picture under two labels."""
    part: Count
    """Number of the network that looked at it, from 0: its place on a map."""
    x: Number
    y: Number
    copies: tuple[str, ...] = ()
    """Files that were left out as copies of it, and have the same label."""
    nearest: tuple[Neighbour, ...] = ()
    """The most alike images of other groups that the same network looked at; only for
    the first images."""


class Review(_Content):
    """The content of `review.json`."""

    format: Literal[1] = 1
    run: str
    """Name of the run."""
    protocol: Protocol
    leak: LeakVerdict
    classes: tuple[str, ...] = Field(min_length=2)
    method: str
    """How labels are judged, in a sentence."""
    shown_variance: tuple[Annotated[Number, Field(ge=0, le=1)], ...]
    """For the map of each network: share of the variance of the embeddings that its
    plane shows."""
    images: tuple[ReviewedImage, ...] = Field(min_length=1)
    """The most doubtful label first."""
    not_looked_at: dict[str, Count]
    """Files that were not looked at, in words -> their number."""

    @model_validator(mode="after")
    def _on_the_maps(self) -> Self:
        if not all(one.part < len(self.shown_variance) for one in self.images):
            raise ValueError("expected a map for each image")
        return self

    @property
    def suspected(self) -> list[ReviewedImage]:
        """The images whose label is taken for wrong, the most doubtful first."""
        return [one for one in self.images if one.is_suspected]

    @property
    def words(self) -> str:
        """What was found, in a sentence."""
        num = len(self.suspected)
        conflicts = sum(one.is_conflict for one in self.suspected)
        words = (
            f"{counted(num, 'label')} of {len(self.images):,} "
            f"{'is' if num == 1 else 'are'} doubtful"
        )
        if conflicts:
            words += f", {conflicts} of them of pictures under two labels"
        if mixed := self.mixed_groups:
            words += (
                f". {counted(len(mixed), 'group')} of images, as of one patient, "
                f"{'has' if len(mixed) == 1 else 'have'} several labels: "
                f"{counted(sum(map(len, mixed)), 'image')}"
            )
        return f"{words}."

    @property
    def mixed_groups(self) -> list[list[ReviewedImage]]:
        """The images of each group that has several labels, the smallest group first.

        Pictures under two labels are not among them. A patient can have images with and
        without a tumour, so several labels are a reason to look and no more.
        """
        members: dict[str, list[ReviewedImage]] = {}
        for one in self.images:
            if not one.is_conflict:
                members.setdefault(one.group, []).append(one)
        mixed = [
            sorted(own, key=lambda one: (one.label, one.path))
            for own in members.values()
            if len({one.label for one in own}) > 1
        ]
        return sorted(mixed, key=lambda own: (len(own), own[0].group))

    @property
    def coverage(self) -> str:
        """What was not looked at, in a sentence; empty where everything was."""
        parts = [f"{counted(n, 'file')} {why}" for why, n in self.not_looked_at.items()]
        return f"Not looked at: {'; '.join(parts)}." if parts else ""


def read_review(path: Path) -> Review:
    """Return the content of a `review.json`.

    Raises:
        RunError: It is missing, damaged or of another version.
    """
    hint = "make it again: tumorlens review RUN"
    if not path.is_file():
        raise RunError(f"there is no {path}", hint=hint)
    return read_model(path, Review, hint=hint)


def write_tables(
    folder: Path, found: Review, *, corrected: Mapping[str, tuple[str, str]]
) -> None:
    """Write the ranked list and the suggested corrections.

    A suggestion has a line for each copy of its picture too: a picture under two labels
    would be left out of every split. What a hand has corrected before comes first, and
    gets no other suggestion.

    Args:
        folder: Where to write.
        found: The review.
        corrected: Path -> label and reason that the run has already.
    """
    mixed = {own[0].group for own in found.mixed_groups}
    _write(
        folder / RANKED,
        (
            *("rank", "path", "label", "likely", "quality", "prob", "suspected"),
            *("copies", "group", "group_has_other_labels"),
        ),
        [
            (
                *(rank, one.path, one.label, one.likely),
                *(f"{one.quality:.6f}", f"{one.prob:.6f}"),
                *("yes" if one.is_suspected else "no", len(one.copies)),
                *(one.group, "yes" if one.group in mixed else "no"),
            )
            for rank, one in enumerate(found.images, start=1)
        ],
    )
    _write(
        folder / SUGGESTED,
        LABEL_COLUMNS,
        [(path, *line) for path, line in corrected.items()]
        + [
            (path, one.likely, reason)
            for one in found.suspected
            for path, reason in (
                (one.path, f"suggested: {one.label} has probability {one.quality:.3f}"),
                *((copy, f"copy of {one.path}") for copy in one.copies),
            )
            if path not in corrected
        ],
    )


def _write(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str | int]]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
