"""Fixtures that tests and doctests may use, and what each process of them is given.

Nothing here imports numpy or torch at its top: both read the number of threads once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import postgres as server
from support.made_once import made_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tumorlens.runs.folder import Run


def pytest_configure() -> None:
    """Give each of several processes one thread.

    The networks of the tests are small: with a thread for each core, two processes
    spend most of their time waiting for each other.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")


@pytest.fixture(autouse=True)
def _one_thread_again() -> None:
    """Undo what opening a torch artefact does: it sets the threads of the process.

    With another number of threads sums round otherwise, and a test that compares
    weights to the bit with those of a process of its own fails.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes class folders of drawn images and gives the root.

    `make_images()` writes `data/<class>/<n>.png`; with `subsets={"Training": 8}` it
    writes `data/Training/<class>/<n>.png`, so many for each class.
    """
    from PIL import Image

    from support.images import CLASSES, draw_image

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
    from tumorlens.runs.folder import open_run

    folder = made_once(tmp_path_factory, "exported", export_everything)
    return open_run(folder / "run")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database as MLflow makes it, to be copied: making it takes seconds."""
    from tumorlens.runs.tracking import DATABASE, Tracker

    def make(folder: Path) -> None:
        import mlflow.tracking

        url = f"sqlite:///{folder / DATABASE}"
        Tracker(url)
        mlflow.tracking.MlflowClient(url).search_experiments()

    return made_once(tmp_path_factory, "mlflow", make) / DATABASE


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


@pytest.fixture
def examples(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Return the folder of the public examples, a copy that is the current folder."""
    from support.public_examples import make_examples

    made = made_once(tmp_path_factory, "public-examples", make_examples)
    folder = shutil.copytree(made, tmp_path / "examples")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def _public_names(
    request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]
) -> None:
    """Run the examples of the public functions in the folder that they speak of."""
    name = request.node.name
    if isinstance(request.node, pytest.DoctestItem) and name.count(".") == 1:
        import tumorlens

        request.getfixturevalue("examples")
        doctest_namespace["tumorlens"] = tumorlens
