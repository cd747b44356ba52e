"""Images drawn in code: no downloads, no patient data, learnable in seconds."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import postgres as server
import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from tumorlens.runs import Run

CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")
_BLOB_CENTRES = {
    "glioma": (0.35, 0.4),
    "meningioma": (0.7, 0.3),
    "pituitary": (0.5, 0.7),
}


def draw_image(label: str, seed: int, *, size_px: int = 96) -> NDArray[np.uint8]:
    """Return a grey ellipse with a blob whose place tells the class, (H, W) uint8."""
    rng = np.random.default_rng([seed, CLASSES.index(label)])
    # Squares of texture of their own keep two images from passing for copies.
    texture = rng.normal(0, 1, (12, 12))
    image = Image.new("L", (size_px, size_px), 0)
    draw = ImageDraw.Draw(image)
    margin = size_px * rng.uniform(0.06, 0.14, 4)
    draw.ellipse(
        (margin[0], margin[1], size_px - margin[2], size_px - margin[3]), fill=110
    )
    if label in _BLOB_CENTRES:
        x, y = np.array(_BLOB_CENTRES[label]) * size_px + rng.normal(0, 2, 2)
        radius = size_px * rng.uniform(0.09, 0.13)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=240)
    pixels = np.asarray(image, dtype=float)
    grain = np.kron(texture, np.ones((size_px // 12 + 1,) * 2))[:size_px, :size_px]
    noisy = pixels + (pixels > 0) * grain * 18 + rng.normal(0, 3, pixels.shape)
    image_values: NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return image_values


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes class folders of drawn images and gives the root.

    `make_images()` writes `data/<class>/<n>.png`; with `subsets={"Training": 8}` it
    writes `data/Training/<class>/<n>.png`, so many for each class.
    """

    def write(
        *,
        num_each: int = 8,
        subsets: dict[str, int] | None = None,
        name: str = "data",
        classes: tuple[str, ...] = CLASSES,
    ) -> Path:
        root = tmp_path / name
        seed = 0
        for subset, count in (subsets or {"": num_each}).items():
            for label in classes:
                folder = root / subset / label
                folder.mkdir(parents=True)
                for number in range(count):
                    seed += 1
                    Image.fromarray(draw_image(label, seed)).save(
                        folder / f"{number}.png"
                    )
        return root

    return write


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with artefacts of every format, which tests must not change."""
    from exported_runs import export_everything

    return export_everything(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[server.Postgres]:
    """Return a real PostgreSQL; skip where Debian's package is not installed."""
    programs = server.find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: postgresql)")
    # Not below pytest's own folder, which the server's user may not enter.
    with tempfile.TemporaryDirectory(prefix="tumorlens-postgres-") as folder:
        running = server.start(Path(folder), programs)
        yield running
        subprocess.run(running.stop, stdout=subprocess.DEVNULL, check=True)
