"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from support import postgres as server
from support.images import CLASSES, draw_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tumorlens.runs.folder import Run


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
    from support.exported_runs import export_everything

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
