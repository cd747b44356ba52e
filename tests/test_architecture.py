"""The shape of the package, kept true by a test rather than by goodwill."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tumorlens

PACKAGE = Path(tumorlens.__file__).parent
REPOSITORY = PACKAGE.parents[1]

HEAVY = {
    "accelerate",
    "alembic",
    "faiss",
    "gdcm",
    "highdicom",
    "imagehash",
    "jinja2",
    "matplotlib",
    "mlflow",
    "nibabel",
    "nilearn",
    "nncf",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "optuna",
    "pandas",
    "pg8000",
    "psutil",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
}
"""Libraries of the extras: none is needed to import the package or to read its help."""

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def rows_of_the_page() -> list[set[str]]:
    """Return the modules of each row of the table in ARCHITECTURE.md, from the ground.

    A module may import only from rows above its own.
    """
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows: dict[int, set[str]] = {}
    number = 0
    for digits, module in re.findall(
        r"^\| *(\d*) *\| `(\w+)/?` \|", text, re.MULTILINE
    ):
        number = int(digits or number)
        assert not any(module in row for row in rows.values()), module
        rows.setdefault(number, set()).add(module)
    assert list(rows) == list(range(1, len(rows) + 1))
    return list(rows.values())


def files_of(module: str) -> list[Path]:
    """Return the files of a module, or of every module in a folder such as report/."""
    folder = PACKAGE / module
    return (
        sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]
    )


def imports_of(module: str) -> set[str]:
    """Return the other modules of the package that one imports, or asks extras for."""
    found: set[str] = set()
    for path in files_of(module):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
                found.update(ast.literal_eval(argument) for argument in node.args)
    inner = {name.split(".")[1] for name in found if name.startswith("tumorlens.")}
    return inner - {module, "__version__"}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )


def without(blocked: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that behaves as if the blocked libraries were missing."""
    return run_python(WITHOUT.format(blocked=blocked) + code)


def test_imports_point_to_earlier_rows_only() -> None:
    allowed: set[str] = set()
    for row in rows_of_the_page():
        for module in sorted(row):
            illegal = imports_of(module) - allowed
            assert not illegal, f"{module} must not import {sorted(illegal)}"
        allowed |= row


def test_every_module_has_a_row() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert (names | folders) - {"__init__", "__main__"} == set().union(
        *rows_of_the_page()
    )


@pytest.mark.parametrize(
    "code",
    [
        "import tumorlens",
        "from tumorlens import cli; cli.main(['--help'])",
        "from tumorlens import cli; cli.main(['train', '--help'])",
        "from tumorlens import cli; cli.main(['--version'])",
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


def test_help_loads_neither_numpy_nor_pydantic() -> None:
    # 0.2 s for Typer and rich is what a person waits for; these two would double it.
    done = run_python(
        "from tumorlens import cli; cli.main(['--help']);"
        "import sys; assert not {'numpy', 'pydantic', 'PIL'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module", ["errors", "files", "config", "metrics", "images", "index", "runs"]
)
def test_it_works_with_the_core_dependencies_alone(module: str) -> None:
    done = without(HEAVY, f"import tumorlens.{module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("tumorlens.train", "torch", "train"),
        ("tumorlens.audit", "sklearn", "train"),
        ("tumorlens.report", "jinja2", "train"),
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
        f"try: extras.require({module!r})\n"
        "except errors.MissingExtraError as error: print(error.problem, error.hint)",
    )
    assert done.stdout == (
        f"{'this' if module == missing else module} needs the library {missing!r}, "
        "which is not installed "
        f'pip install "tumorlens[{extra}]"\n'
    ), done.stderr


def test_a_missing_module_of_our_own_is_no_missing_extra() -> None:
    done = run_python(
        "from tumorlens.extras import require; require('tumorlens.nosuch')"
    )
    assert "ModuleNotFoundError: No module named 'tumorlens.nosuch'" in done.stderr


def test_the_command_line_names_the_missing_extra() -> None:
    done = without(
        {"torch"},
        "import sys; from tumorlens import cli;"
        "sys.exit(cli.main(['train', '--out', 'nowhere']))",
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == 'hint: pip install "tumorlens[train]"'
    assert len(done.stderr.splitlines()) == 2
