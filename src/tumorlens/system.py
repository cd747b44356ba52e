"""What a run was made with: versions, machine, seed and command.

Nothing here names a user or a host: the record travels with the run.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import tumorlens

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "pydicom"),
    *("onnxruntime", "openvino"),
)


def describe_environment(*, command: str, seed: int) -> dict[str, Any]:
    """Return what is worth knowing to repeat a run.

    Args:
        command: What the user typed.
        seed: The seed of the run.

    Returns:
        JSON-ready values: `tumorlens`, `commit` (of a source checkout, else `None`),
        `python`, `platform`, `cpu_count`, `packages`, `seed` and `command`.
    """
    return {
        "tumorlens": tumorlens.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "seed": seed,
        "command": command,
    }


def processor_name() -> str:
    """Return what the processor calls itself, or its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    source = Path(tumorlens.__file__).parents[2]
    if not (source / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
