"""A Python that behaves as if some libraries were not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tumorlens

PACKAGE = Path(tumorlens.__file__).parent

HEAVY = {
    "accelerate",
    "alembic",
    "captum",
    "faiss",
    "gdcm",
    "highdicom",
    "huggingface_hub",
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
    "platformdirs",
    "psutil",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "tabulate",
    "timm",
    "torch",
    "torchmetrics",
    "torchvision",
    "tqdm",
}
"""Libraries of the extras. Neither the import of the package nor `--help` loads one."""

OF_EVALUATE = {"jinja2", "matplotlib", "scipy", "sklearn", "tabulate"}
"""Libraries of the extra `evaluate`: those that judge a model, and train none."""

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


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
