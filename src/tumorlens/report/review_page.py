"""The page of a review of labels: doubtful labels with their pictures, and maps.

Nothing is measured here: everything comes from `review.json`. Points of a map are links
to the pictures below it, so the page needs no script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from tumorlens.data.images import ImageLimits
from tumorlens.data.sets import sets_of
from tumorlens.evaluation.review_file import (
    FILE,
    RANKED,
    SUGGESTED,
    Review,
    ReviewedImage,
    read_review,
)
from tumorlens.files import write_text
from tumorlens.report.drawing import LIGHT, SERIES, Drawing, Heading, render, shortened
from tumorlens.report.measured import PageFigure
from tumorlens.report.page import (
    Picture,
    WrittenPage,
    load_picture,
    render_page,
)
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from tumorlens.runs.folder import Run

_SMALL_PX = 96
"""Longer side of the picture of a similar image."""

MAX_GROUPS = 12
MAX_MEMBERS = 12
"""Groups with several labels that are shown, and images of each."""


@dataclass(frozen=True)
class _Similar:
    picture: Picture
    label: str
    similarity: float


@dataclass(frozen=True)
class _Member:
    """An image of a group that has several labels."""

    image: ReviewedImage
    picture: Picture


@dataclass(frozen=True)
class _Shown:
    """A doubtful label with its pictures."""

    rank: int
    anchor: str
    image: ReviewedImage
    picture: Picture
    similar: list[_Similar]


def write_review_page(
    run: Run, *, data: Path | Sequence[Path] | None = None
) -> WrittenPage:
    """Write the page of a review beside its file, and the maps into `figures`.

    Args:
        run: The run.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
            Missing images are named on the page instead of shown.

    Returns:
        The path of the page, and the pictures that it lacks.

    Raises:
        RunError: The file is missing or damaged.
        DataError: The page cannot be written.
    """
    found = read_review(run.review_path / FILE)
    maps = []
    for part, variance in enumerate(found.shown_variance):
        drawing = draw_map(found, part)
        drawing.write(run.figures_dir, f"review-map-{part}")
        svg = Markup(drawing.inline(_map_name(part)))
        maps.append((PageFigure(svg, _in_words(found, part)), variance))
    shown = _shown(run, found, data)
    mixed = _mixed(run, found, data)
    page = render_page(
        "review.html.j2",
        {
            "found": found,
            "leak": found.leak,
            "shown": shown,
            "maps": maps,
            "mixed": mixed,
            "num_mixed": len(found.mixed_groups),
            "files": (FILE, RANKED, SUGGESTED),
        },
    )
    target = run.review_path / "review.html"
    write_text(target, page)
    pictures = [one.picture for one in shown]
    pictures += [similar.picture for one in shown for similar in one.similar]
    pictures += [one.picture for own in mixed for one in own]
    missing = [one.why_not for one in pictures if one.why_not]
    return WrittenPage(target, len(missing), missing[0] if missing else "")


def draw_map(found: Review, part: int) -> Drawing:
    """Draw the embeddings of the images that one network has looked at.

    Images with their pictures on the page are links to them.
    """
    ranked = list(enumerate(found.images, start=1))
    own = [(rank, one) for rank, one in ranked if one.part == part]
    several = len(found.shown_variance) > 1
    heading = Heading(
        f"As the network of fold {part} sees them"
        if several
        else "As the network sees them",
        f"{found.run} · {found.protocol} · {counted(len(own), 'image')}",
    )

    def draw(panels: Sequence[Axes]) -> None:
        (axes,) = panels
        for number, label in enumerate(found.classes):
            color = LIGHT[SERIES[number % len(SERIES)]]
            plain = [one for _, one in own if one.label == label and not one.nearest]
            linked = [
                (rank, one) for rank, one in own if one.label == label and one.nearest
            ]
            axes.scatter(
                [one.x for one in plain],
                [one.y for one in plain],
                s=9,
                color=color,
                alpha=0.35,
                linewidths=0,
                label=shortened(label),
            )
            points = axes.scatter(
                [one.x for _, one in linked],
                [one.y for _, one in linked],
                s=42,
                color=color,
                edgecolors=LIGHT["ink"],
                linewidths=1.1,
            )
            points.set_urls([f"#{_anchor(rank)}" for rank, _ in linked])
        axes.set_xticks([])
        axes.set_yticks([])
        legend = axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=2,
            fontsize=8.5,
            markerscale=2,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)

    return render(draw, heading, body_inches=4.6)


def _map_name(part: int) -> str:
    return f"map-{part}"


def _anchor(rank: int) -> str:
    return f"label-{rank}"


def _in_words(found: Review, part: int) -> str:
    """Return a map for who cannot see it."""
    own = [one for one in found.images if one.part == part]
    num = sum(bool(one.nearest) for one in own)
    return (
        f"Map of {counted(len(own), 'image')} by what the network sees, coloured by "
        f"label; {counted(num, 'large point')} link to the pictures of doubtful labels."
    )


def _shown(run: Run, found: Review, data: Path | Sequence[Path] | None) -> list[_Shown]:
    """Return the most doubtful labels with their pictures."""
    root, limits = sets_of(run.config.data, data), _limits(run)
    return [
        _Shown(
            rank=rank,
            # As `Drawing.inline` makes the links of a map its own.
            anchor=f"{_map_name(one.part)}-{_anchor(rank)}",
            image=one,
            picture=load_picture(root, one.path, limits=limits),
            similar=[
                _Similar(
                    load_picture(root, near.path, limits=limits, side_px=_SMALL_PX),
                    near.label,
                    near.similarity,
                )
                for near in one.nearest
            ],
        )
        for rank, one in enumerate(found.images, start=1)
        if one.nearest
    ]


def _mixed(
    run: Run, found: Review, data: Path | Sequence[Path] | None
) -> list[list[_Member]]:
    """Return the first groups that have several labels, with their pictures."""
    root, limits = sets_of(run.config.data, data), _limits(run)
    return [
        [
            _Member(one, load_picture(root, one.path, limits=limits, side_px=_SMALL_PX))
            for one in own[:MAX_MEMBERS]
        ]
        for own in found.mixed_groups[:MAX_GROUPS]
    ]


def _limits(run: Run) -> ImageLimits:
    config = run.config.data
    return ImageLimits(
        max_bytes=int(config.max_file_mib * 2**20), max_pixels=config.max_pixels
    )
