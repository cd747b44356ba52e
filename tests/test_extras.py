from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tumorlens import extras
from tumorlens.errors import MissingExtraError

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DISTRIBUTION_OF = {
    "gdcm": "python-gdcm",
    "huggingface_hub": "huggingface-hub",
    "mlflow": "mlflow-skinny",
    "nibabel": "nilearn",  # comes with it
    "sklearn": "scikit-learn",
}


def test_an_installed_module_is_returned() -> None:
    assert extras.require("json") is sys.modules["json"]
    assert extras.require("xml.dom").__name__ == "xml.dom"


def test_a_missing_library_is_named_with_its_pip_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    with pytest.raises(MissingExtraError) as caught:
        extras.require("pyarrow.parquet")
    assert caught.value.problem == (
        "this needs the library 'pyarrow', which is not installed"
    )
    assert caught.value.hint == 'pip install "tumorlens[parquet]"'


def test_a_missing_library_does_not_need_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"^this needs the library 'pyarrow'"):
        extras.require("pyarrow")
    with pytest.raises(
        MissingExtraError, match=r"^a table needs the library 'pyarrow'"
    ):
        extras.require("pyarrow", needed_by="a table")


def test_a_module_that_no_extra_has_is_our_mistake() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library") as caught:
        extras.require("no_such_library")
    assert not isinstance(caught.value, MissingExtraError)


def test_usage_data_is_off_once_the_package_is_imported() -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY")
    environment = dict.fromkeys(names, "")
    done = subprocess.run(
        [sys.executable, "-c", "import tumorlens, os; print(dict(os.environ))"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = ast.literal_eval(done.stdout)
    assert found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert found["DO_NOT_TRACK"] == "1"
    assert found["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_usage_data_is_off_where_the_client_of_the_hub_was_imported_before() -> None:
    code = (
        "from huggingface_hub import constants; import tumorlens; "
        "print(constants.HF_HUB_DISABLE_TELEMETRY)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_DISABLE_TELEMETRY": "", "DO_NOT_TRACK": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"


def test_each_runtime_has_an_extra_of_its_own_and_runtime_brings_both() -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extra = project["optional-dependencies"]
    (onnx,), (openvino,) = extra["runtime-onnx"], extra["runtime-openvino"]
    assert onnx.startswith("onnxruntime>")
    assert openvino.startswith("openvino>")
    assert extra["runtime"] == [onnx, openvino]


@pytest.mark.parametrize("library", sorted(extras._EXTRA_OF))
def test_the_extra_that_is_named_does_install_the_library(library: str) -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    needs = project["optional-dependencies"][extras._EXTRA_OF[library]]
    distribution = DISTRIBUTION_OF.get(library, library).lower()
    assert any(need.lower().startswith(distribution) for need in needs)
