"""The shape of the package, kept true by a test rather than by goodwill."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.missing_libraries import HEAVY, OF_EVALUATE, PACKAGE, run_python, without


@pytest.mark.parametrize(
    "code",
    [
        "import tumorlens",
        "from tumorlens.cli import app; app.main(['--help'])",
        "from tumorlens.cli import app; app.main(['train', '--help'])",
        "from tumorlens.cli import app; app.main(['--version'])",
    ],
)
def test_it_imports_no_library_that_an_extra_brings(code: str) -> None:
    done = run_python(
        code
        + "\nimport sys, json; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stderr)}
    assert loaded & HEAVY == set()


def test_help_loads_little_beside_typer_and_rich() -> None:
    # Typer and rich take 0.2 s; numpy or pydantic would double that, and the metadata
    # of packages alone would add a tenth.
    done = run_python(
        "from tumorlens.cli import app; app.main(['--help']);"
        "import sys; assert not {'numpy', 'pydantic', 'PIL', 'importlib.metadata',"
        "'ctypes', 'hashlib', 'asyncio'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("modules", "library"),
    [
        ("tumorlens.runs.folder, tumorlens.deploy.artefact", "scipy"),
        # It takes most of a second, of each process.
        ("tumorlens.stats.estimates, tumorlens.stats.paired", "scipy.stats"),
    ],
)
def test_intervals_cost_no_time_where_none_is_made(modules: str, library: str) -> None:
    done = run_python(f"import sys, {modules}; assert {library!r} not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "files",
        "config",
        "stats.metrics",
        "data.images",
        "data.index",
        "runs.folder",
    ],
)
def test_it_works_with_the_core_dependencies_alone(module: str) -> None:
    done = without(HEAVY, f"import tumorlens.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "DATA", "--out", "OUT"],
        ["claim", "DATA", "--accuracy", "0.9", "--out", "OUT"],
        ["evaluate", "--predictions", "answers.csv", "--data", "DATA", "--out", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_judging_needs_the_extra_evaluate_alone(
    words: list[str], tmp_path: Path
) -> None:
    paths = []
    for folder, shade in (("Training", 0), ("Testing", 1)):
        for number in range(8):
            path = tmp_path / "DATA" / folder / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(16 * shade + number).integers(0, 255, (9, 9))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            paths.append(path)
    rows = [f"{path},{path.parent.name}" for path in paths if "Testing" in path.parts]
    (tmp_path / "answers.csv").write_text("\n".join(["path,predicted", *rows]))
    done = without(
        HEAVY - OF_EVALUATE,
        f"import os; os.chdir({str(tmp_path)!r});"
        f"from tumorlens.cli import app; raise SystemExit(app.main({words!r}))",
    )
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "OUT").iterdir())


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("tumorlens.training.fit", "torch", "train"),
        ("tumorlens.data.audit", "sklearn", "evaluate"),
        ("tumorlens.report", "jinja2", "evaluate"),
        ("nilearn.datasets", "nilearn", "demo"),
        ("gdcm", "gdcm", "dicom"),
        ("highdicom.sr", "highdicom", "dicom"),
        ("mlflow.tracking", "mlflow", "track"),
        ("pyarrow", "pyarrow", "parquet"),
    ],
)
def test_a_missing_extra_is_named_with_its_pip_line(
    module: str, missing: str, extra: str
) -> None:
    done = without(
        {missing},
        "from tumorlens import errors, extras\n"
        f"try:\n with extras.naming_missing_extras(): import {module}\n"
        "except errors.MissingExtraError as error: print(error.problem, error.hint)",
    )
    assert done.stdout == (
        f"this needs the library {missing!r}, which is not installed "
        f'pip install "tumorlens[{extra}]"\n'
    ), done.stderr


def test_an_optional_library_is_required_by_name() -> None:
    done = without(
        {"onnx"},
        "from tumorlens import errors, extras\n"
        "try: extras.require('onnx', needed_by='the format onnx')\n"
        "except errors.MissingExtraError as error: print(error.problem, error.hint)",
    )
    assert done.stdout == (
        "the format onnx needs the library 'onnx', which is not installed "
        'pip install "tumorlens[export]"\n'
    ), done.stderr


def test_a_missing_module_of_our_own_is_no_missing_extra() -> None:
    done = run_python(
        "from tumorlens.extras import naming_missing_extras\n"
        "with naming_missing_extras(): import tumorlens.nosuch"
    )
    assert "ModuleNotFoundError: No module named 'tumorlens.nosuch'" in done.stderr


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (["train", "--out", "nowhere"], "torch", "train"),
        (["audit", "nowhere", "--out", "nowhere"], "sklearn", "evaluate"),
        (["claim", "nowhere", "--accuracy", "0.9"], "sklearn", "evaluate"),
        (["benchmark", "nowhere"], "jinja2", "evaluate"),
        (["compare", "nowhere"], "jinja2", "evaluate"),
        (["lr-find", "--out", "nowhere"], "matplotlib", "evaluate"),
        (["card", "nowhere"], "huggingface_hub", "train"),
    ],
)
def test_the_command_line_names_the_missing_extra(
    words: list[str], missing: str, extra: str
) -> None:
    done = without(
        {missing},
        f"import sys; from tumorlens.cli import app; sys.exit(app.main({words!r}))",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f'hint: pip install "tumorlens[{extra}]"'
    assert len(done.stderr.splitlines()) == 2


UPWARD = {
    "of a module": "from tumorlens.cli import terminal\n",
    "inside a function": "\n\ndef late() -> None:\n    import tumorlens.cli.terminal\n",
}


@pytest.fixture
def copied_source(tmp_path: Path) -> Path:
    """Return a folder with the package's source and its contracts, to be changed."""
    shutil.copytree(
        PACKAGE, tmp_path / "tumorlens", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(PACKAGE.parents[1] / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(source: Path) -> tuple[int, str]:
    """Return the status and the words of import-linter on a copy of the source."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-logo", "--no-cache"],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_the_contracts_on_imports_are_kept(copied_source: Path) -> None:
    status, words = lint_imports(copied_source)
    assert status == 0, words
    assert "2 kept, 0 broken" in words


@pytest.mark.parametrize("code", UPWARD.values(), ids=UPWARD)
def test_an_import_of_a_higher_layer_breaks_the_contract(
    code: str, copied_source: Path
) -> None:
    with (copied_source / "tumorlens" / "stats" / "metrics.py").open("a") as file:
        file.write(code)
    status, words = lint_imports(copied_source)
    assert status == 1
    assert "tumorlens.stats.metrics -> tumorlens.cli.terminal" in words


def test_a_package_without_a_place_in_the_layers_breaks_the_contract(
    copied_source: Path,
) -> None:
    (copied_source / "tumorlens" / "helpers.py").touch()
    status, words = lint_imports(copied_source)
    assert status == 1
    assert "tumorlens.helpers" in words


def test_torch_in_the_statistics_breaks_the_contract(copied_source: Path) -> None:
    with (copied_source / "tumorlens" / "stats" / "metrics.py").open("a") as file:
        file.write("\n\ndef late() -> None:\n    import torch\n")
    status, words = lint_imports(copied_source)
    assert status == 1
    assert "tumorlens.stats is not allowed to import torch" in words


def test_the_tree_in_the_architecture_names_every_module_and_no_other() -> None:
    page = (PACKAGE.parents[1] / "ARCHITECTURE.md").read_text("utf-8")
    words = set(re.findall(r"\w+", page.split("```")[1]))
    modules = {path.stem for path in PACKAGE.rglob("*.py")}
    assert modules - {"__init__", "__main__"} <= words
    assert {word for word in words if "_" in word} <= modules
