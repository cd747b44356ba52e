"""Draw docs/figures/stress.png: a phantom under every level of every corruption.

    python docs/make_stress_figure.py docs/figures/stress.png

The phantom is drawn in code; it is no image of a person.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tumorlens.data.corruptions import CORRUPTIONS, corrupt
from tumorlens.data.phantom.atlas import load_atlas
from tumorlens.data.phantom.patient import draw_patient, draw_slice

CELL_PX = 104
GAP_PX = 4
NAME_PX = 150
LINE_PX = 16
PAGE = 205
"""Grey value of the page: a white one would hide a white border."""
NUM_GREYS = 32
"""Few enough for a small file, many enough for the eye."""


def sheet() -> Image.Image:
    """Return the sheet: a row for each corruption, the clean image first."""
    rng = np.random.default_rng(0)
    atlas = load_atlas()
    clean = draw_slice(
        atlas,
        draw_patient(atlas, "meningioma", rng),
        view="axial",
        weighting="t1",
        offset_mm=0,
        size_px=256,
        rng=rng,
    ).image
    step = CELL_PX + GAP_PX + LINE_PX
    page = Image.new(
        "L", (NAME_PX + 6 * (CELL_PX + GAP_PX), step * len(CORRUPTIONS)), PAGE
    )
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    for row, one in enumerate(CORRUPTIONS.values()):
        top = row * step
        draw.text((4, top + CELL_PX / 2), one.title, fill=0, font=font, anchor="lm")
        shown = [("clean", clean)] + [
            (
                f"{level}: {one.amounts[level - 1]:g}",
                corrupt(clean, one, level, seed=42, path="phantom.png"),
            )
            for level in one.levels
        ]
        for column, (words, pixels) in enumerate(shown):
            left = NAME_PX + column * (CELL_PX + GAP_PX)
            image = Image.fromarray(pixels)
            image.thumbnail((CELL_PX, CELL_PX), Image.Resampling.BOX)
            place = left + (CELL_PX - image.width) // 2
            page.paste(image, (place, top + (CELL_PX - image.height) // 2))
            draw.text(
                (left + CELL_PX / 2, top + CELL_PX + 1),
                words,
                fill=0,
                font=font,
                anchor="ma",
            )
    return page.point([round(v * (NUM_GREYS - 1) / 255) for v in range(256)]).point(
        [round(v * 255 / (NUM_GREYS - 1)) for v in range(NUM_GREYS)] + [0] * 224
    )


if __name__ == "__main__":
    sheet().save(Path(sys.argv[1]), optimize=True)
