"""Optional libraries: importing them, and the message when one is missing.

`switch_off_usage_data` runs when this package is imported, before any such library can
be: a medical tool must not tell anybody what it is used on.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tumorlens.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

# matplotlib logs at its import that it builds a cache of fonts, which helps no user. A
# level set after the import comes too late.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

_EXTRA_OF = {
    "accelerate": "train",
    "alembic": "track",
    "captum": "train",
    "cleanlab": "review",
    "gdcm": "dicom",
    "highdicom": "dicom",
    "huggingface_hub": "train",
    "jinja2": "evaluate",
    "matplotlib": "evaluate",
    "mlflow": "track",
    "nibabel": "demo",
    "nilearn": "demo",
    "nncf": "export",
    "onnx": "export",
    "onnxruntime": "runtime",
    "onnxscript": "export",
    "openvino": "runtime",
    "optuna": "study",
    "pg8000": "study",
    "platformdirs": "train",
    "psutil": "study",
    "pyarrow": "parquet",
    "safetensors": "train",
    "scipy": "evaluate",
    "sklearn": "evaluate",
    "sqlalchemy": "study",
    "tabulate": "evaluate",
    "timm": "train",
    "torch": "train",
    "torchvision": "train",
    "tqdm": "train",
}
"""Import name -> the extra that installs it."""


def switch_off_usage_data() -> None:
    """Switch off usage data and update checks of every library that has them."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    # MLflow knows the line above, but only as "true", which others do not.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # Where the client of the model hub was imported before, it has read them already.
    if loaded := sys.modules.get("huggingface_hub.constants"):
        vars(loaded)["HF_HUB_DISABLE_TELEMETRY"] = True
    # OpenVINO and NNCF ask the home folder whether they may send, and go without where
    # the library that sends cannot be imported.
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)


def pip_line(library: str) -> str:
    """Return how a library of one of the extras is installed.

    Example:
        >>> pip_line("onnxruntime")
        'pip install "tumorlens[runtime]"'
    """
    return f'pip install "tumorlens[{_EXTRA_OF[library]}]"'


@contextmanager
def naming_missing_extras(needed_by: str = "this") -> Iterator[None]:
    """Turn a failed import of an optional library into an error with its pip line.

    Args:
        needed_by: What needs the library, as the user calls it.

    Raises:
        MissingExtraError: The body imported a library of an extra that is not
            installed.
        ModuleNotFoundError: No extra of ours has the library: a mistake of ours.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA_OF:
            raise
        raise MissingExtraError(
            f"{needed_by} needs the library {missing!r}, which is not installed",
            hint=pip_line(missing),
        ) from error


def require(module: str, *, needed_by: str = "this") -> ModuleType:
    """Import an optional library, such as `nilearn.datasets`.

    Modules of this package are imported by plain `import` statements inside the
    functions that need them; `naming_missing_extras` gives those the same message.

    Raises:
        MissingExtraError: The library is in an extra that is not installed.
        ModuleNotFoundError: No extra of ours has the library: a mistake of ours.
    """
    with naming_missing_extras(needed_by):
        return importlib.import_module(module)
