"""How well copies are told from neighbouring slices: the evidence for the thresholds.

Synthetic patients (`tumorlens.data.phantom`) are cut in three directions, without noise
and with Rician noise of a scanner. Each slice is changed as copies are (JPEG, size,
crop, frame, tilt, tone, noise, letters) and compared with the original; and it is
compared with slices 0.5 to 6 mm away, which have noise of their own, and with other
patients at the same place.

    python benchmarks/near_duplicates.py [--patients 8] [--out docs/figures]

Writes the curve and prints two tables in Markdown: the share of pairs that count as one
picture, and the share that stay in one group, as copies or as lookalikes. The phantom
is made from an average of many heads, which is smoother than any single one: its
neighbouring slices are the hardest to tell apart.
"""

from __future__ import annotations

import argparse
import io
import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from tumorlens.data.near_duplicates import (
    SAME_DETAIL,
    find_near_duplicates,
    hash_thumbnails,
    make_thumbnail,
    similarity,
    turned,
)
from tumorlens.data.phantom.atlas import load_atlas
from tumorlens.data.phantom.patient import FINDINGS, draw_patient, draw_slice
from tumorlens.files import write_bytes
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from tumorlens.data.phantom.patient import View

    Image8 = NDArray[np.uint8]

GAPS_MM = (0.5, 1, 1.5, 2, 3, 4, 6)
NOISES = (0.0, 4.0)
"""Grey levels."""

SIZES_PX = (176, 224, 256, 384)
VIEWS: tuple[View, ...] = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Pair:
    """Two images, and what was found about them."""

    family: str
    """Row of the figure."""

    kind: str
    """Row of the table."""

    noise: float
    detail: float
    """Similarity of detail, whether or not the search would compare the two."""

    is_copy: bool
    is_grouped: bool


def main() -> None:
    """Measure, write the figure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers) as pool:
        lots = pool.map(measure_patient, range(options.patients))
        pairs = [pair for lot in lots for pair in lot]
    print_table(pairs, "copies", lambda pair: not _is_other(pair.kind))
    print_table(pairs, "other pictures", lambda pair: _is_other(pair.kind))
    draw_curve(pairs, options.out)


def measure_patient(number: int) -> list[Pair]:
    """Return all pairs of one patient, and those with the patient before."""
    pairs = []
    for view in VIEWS:
        for noise in NOISES:
            image = draw(number, view, 0, noise)
            for family, changes in copies().items():
                for kind, change in changes.items():
                    pairs.append(compare(family, kind, noise, image, change(image)))
            for gap in GAPS_MM:
                other = draw(number, view, gap, noise)
                family = f"slices {gap:g} mm apart"
                pairs.append(compare(family, family, noise, image, other))
            if number:
                other = draw(number - 1, view, 0, noise, place_of=number)
                family = "two patients, 0 mm apart"
                pairs.append(compare(family, family, noise, image, other))
    return pairs


def draw(
    number: int, view: View, gap_mm: float, noise: float, *, place_of: int | None = None
) -> Image8:
    """Return a slice of a patient.

    Args:
        number: The patient.
        view: Direction of the cut.
        gap_mm: Distance from the patient's first slice.
        noise: Standard deviation of each of the two channels, in grey levels.
        place_of: Patient whose place, frame and size it has; the own one by default.
    """
    image = _draw_without_noise(
        number, view, gap_mm, number if place_of is None else place_of
    )
    channels = np.random.default_rng([number, round(10 * gap_mm)])
    real, imaginary = channels.normal(0, noise, (2, *image.shape))
    return _grey(np.hypot(image + real, imaginary))


def copies() -> dict[str, dict[str, Callable[[Image8], Image8]]]:
    """Return family -> kind -> what is done to a picture."""
    return {
        "re-encoded or resized": {
            **{f"JPEG quality {q}": _jpeg(q) for q in (95, 70, 50, 30)},
            **{f"{f:g} times the size": _resized(f) for f in (0.25, 0.5, 0.75, 1.5, 2)},
            "half the size, JPEG 50": lambda i: _jpeg(50)(_resized(0.5)(i)),
            "mirrored, JPEG 60": lambda i: _jpeg(60)(np.ascontiguousarray(i[:, ::-1])),
            "turned by 90, JPEG 60": lambda i: _jpeg(60)(np.rot90(i).copy()),
        },
        "cropped, framed or tilted": {
            **{f"{n} px cut off all sides": _cropped(n) for n in (1, 2, 4, 8)},
            **{f"{n} px cut off one side": _cut_above(n) for n in (4, 8)},
            **{f"frame of {n} px": _framed(n) for n in (4, 8)},
            **{"tilted by " + counted(d, "degree"): _tilted(d) for d in (1, 2, 3)},
        },
        "other tones or noise": {
            "brighter by 20": lambda i: _grey(i + 20.0),
            "contrast 0.7": lambda i: _grey(0.7 * i),
            "contrast 1.3": lambda i: _grey(1.3 * i),
            "gamma 0.8": lambda i: _grey(255 * (i / 255) ** 0.8),
            "gamma 1.25": lambda i: _grey(255 * (i / 255) ** 1.25),
            **{f"noise of {s} levels": _noisy(s) for s in (2, 4, 8)},
        },
        "letters or watermark": {
            **{
                counted(num, "line") + " of letters": _lettered(num)
                for num in (1, 2, 4)
            },
            **{f"watermark of {a * 100:g} %": _marked(a) for a in (0.15, 0.3)},
        },
    }


def compare(family: str, kind: str, noise: float, one: Image8, other: Image8) -> Pair:
    """Return what the search finds about two images."""
    thumbnails = np.stack([make_thumbnail(one), make_thumbnail(other)])
    found = find_near_duplicates(thumbnails)
    # The turn whose hash is nearest, as in the search.
    hashes = hash_thumbnails(thumbnails)
    turn = int(np.bitwise_count(hashes[:, 0] ^ hashes[0, 1]).argmin())
    return Pair(
        family,
        kind,
        noise,
        detail=similarity(turned(thumbnails[0], turn), thumbnails[1])[1],
        is_copy=any(pair.detail >= SAME_DETAIL for pair in found),
        is_grouped=bool(found),
    )


def print_table(
    pairs: list[Pair], title: str, is_shown: Callable[[Pair], bool]
) -> None:
    """Print the shares of the pairs of each kind that are copies and stay together."""
    columns = [
        "pairs",
        *(
            f"{what}, noise {n:g}"
            for n in NOISES
            for what in ("one picture", "one group")
        ),
    ]
    print(f"\n| {title} | {' | '.join(columns)} |")
    print("|---|" + "---|" * len(columns))
    for kind, own in _by(pairs, "kind"):
        if not is_shown(own[0]):
            continue
        cells = [str(len(own))]
        for noise in NOISES:
            lot = [pair for pair in own if pair.noise == noise]
            cells += [
                f"{np.mean([pair.is_copy for pair in lot]):.0%}",
                f"{np.mean([pair.is_grouped for pair in lot]):.0%}",
            ]
        print(f"| {kind} | {' | '.join(cells).replace('%', ' %')} |")


def draw_curve(pairs: list[Pair], out: Path) -> None:
    """Write the share of pairs that a threshold takes for copies, by threshold."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    thresholds = 1 - np.geomspace(1e-4, 0.1, 200)
    for number, (family, own) in enumerate(_by(pairs, "family")):
        if family.endswith(("1.5 mm apart", "6 mm apart", "4 mm apart")):
            continue
        details = np.array([pair.detail for pair in own])
        axes.plot(
            1 - thresholds,
            [(details >= one).mean() for one in thresholds],
            label=family,
            linestyle="--" if _is_other(family) else "-",
            color=f"C{number % 10}",
        )
    axes.axvline(1 - SAME_DETAIL, color="0.3", linewidth=1)
    axes.text(1 - SAME_DETAIL, 1.03, f" {SAME_DETAIL:g}", color="0.3")
    axes.set(
        xscale="log",
        xlabel="1 - least similarity of detail",
        ylabel="share of pairs taken for copies",
        ylim=(-0.02, 1.1),
    )
    figure.suptitle(
        "Copies (lines) and other pictures (dashes), by threshold\n"
        f"synthetic heads, {len(pairs):,} pairs, noise of {NOISES[0]:g} and "
        f"{NOISES[1]:g} grey levels",
        fontsize=11,
    )
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_bytes(out / "near-duplicates.png", content.getvalue())


def _is_other(kind: str) -> bool:
    return kind.endswith("mm apart")


def _by(pairs: list[Pair], field: str) -> Iterator[tuple[str, list[Pair]]]:
    lots: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        lots[getattr(pair, field)].append(pair)
    yield from lots.items()


@cache
def _draw_without_noise(
    number: int, view: View, gap_mm: float, place_of: int
) -> NDArray[np.float64]:
    atlas = load_atlas()
    rng = np.random.default_rng([7, number])
    patient = draw_patient(atlas, FINDINGS[number % len(FINDINGS)], rng)
    place = np.random.default_rng([8, place_of])
    # The same frame and coil for all slices of a patient; the noise is added later.
    drawn = draw_slice(
        atlas,
        replace(patient, noise=0.0),
        view=view,
        weighting="t1",
        offset_mm=place.uniform(-15, 15) + gap_mm,
        size_px=int(place.choice(SIZES_PX)),
        rng=np.random.default_rng([9, place_of]),
    )
    return drawn.image.astype(np.float64)


def _grey(values: NDArray[np.floating]) -> Image8:
    grey: Image8 = np.clip(values, 0, 255).round().astype(np.uint8)
    return grey


def _jpeg(quality: int) -> Callable[[Image8], Image8]:
    def change(image: Image8) -> Image8:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "JPEG", quality=quality)
        return np.asarray(Image.open(content))

    return change


def _resized(factor: float) -> Callable[[Image8], Image8]:
    def change(image: Image8) -> Image8:
        size = round(image.shape[1] * factor), round(image.shape[0] * factor)
        drawn = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        return np.asarray(drawn)

    return change


def _cropped(num_px: int) -> Callable[[Image8], Image8]:
    return lambda image: image[num_px:-num_px, num_px:-num_px]


def _cut_above(num_px: int) -> Callable[[Image8], Image8]:
    return lambda image: image[num_px:]


def _framed(num_px: int) -> Callable[[Image8], Image8]:
    return lambda image: np.pad(image, num_px)


def _tilted(degrees: float) -> Callable[[Image8], Image8]:
    return lambda image: np.asarray(
        Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC)
    )


def _noisy(levels: float) -> Callable[[Image8], Image8]:
    def change(image: Image8) -> Image8:
        return _grey(image + np.random.default_rng(5).normal(0, levels, image.shape))

    return change


def _lettered(num_lines: int) -> Callable[[Image8], Image8]:
    def change(image: Image8) -> Image8:
        drawn = Image.fromarray(image)
        pen, side = ImageDraw.Draw(drawn), drawn.width
        for line in range(num_lines):
            place = 4 + line % 2 * side // 2, 4 + line // 2 * (drawn.height - 30)
            pen.text(place, "T1 +C  SE 7", fill=255, font_size=side // 18)
        return np.asarray(drawn)

    return change


def _marked(share: float) -> Callable[[Image8], Image8]:
    def change(image: Image8) -> Image8:
        height, width = image.shape
        mark = Image.new("L", (width, height))
        place = width // 10, height * 2 // 5
        ImageDraw.Draw(mark).text(place, "SAMPLE", fill=255, font_size=width // 5)
        weight = share * np.asarray(mark) / 255
        return _grey(image * (1 - weight) + 255 * weight)

    return change


if __name__ == "__main__":
    main()
