"""Shared parts of the benchmarks of speed: runs with artefacts, and blocks to paste.

This is no script. Runs are given by --runs, or small ones are trained here and kept in
the folder `bench`: their accuracy means nothing, their speed is that of the network.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tumorlens.data.phantom.dataset import make_phantom
from tumorlens.deploy.artefact import KINDS, Kind, is_artefact
from tumorlens.deploy.benchmark.timing import Ratio
from tumorlens.files import write_text
from tumorlens.runs.folder import Run, open_run
from tumorlens.system import num_processors, processor_name

MODELS = ("resnet18", "resnet50", "densenet121")
PHANTOM_PATIENTS = 24


@dataclass(frozen=True)
class Options:
    """Options of all these scripts."""

    data: Path
    runs: tuple[Run, ...]
    work: Path
    parsed: argparse.Namespace


def read_options(
    parser: argparse.ArgumentParser, *, models: tuple[str, ...], kinds: tuple[Kind, ...]
) -> Options:
    """Parse the command line, and make data, runs and artefacts that are missing.

    Args:
        parser: Parser with the options of the script.
        models: Networks to train if no runs are given.
        kinds: Formats that each run must have.
    """
    parser.add_argument("--data", type=Path, help="default: the phantom's images")
    parser.add_argument("--runs", nargs="*", type=Path, help="finished runs")
    parser.add_argument(
        "--weights",
        nargs="*",
        default=[],
        metavar="MODEL=FILE",
        help="pretrained weights of the runs that are trained here",
    )
    parser.add_argument("--epochs", type=int, default=1, help="epochs of those runs")
    parser.add_argument("--work", type=Path, default=Path("bench"))
    parsed = parser.parse_args()
    data = parsed.data or parsed.work / "phantom"
    if parsed.data is None and not data.is_dir():
        print_step(f"drawing {PHANTOM_PATIENTS} synthetic patients into {data}")
        make_phantom(data, patients=PHANTOM_PATIENTS)
    weights = dict(word.split("=", 1) for word in parsed.weights)
    folders = parsed.runs or [
        _trained(name, data, parsed.work, weights.get(name, "no"), parsed.epochs)
        for name in models
    ]
    runs = tuple(open_run(folder) for folder in folders)
    for run in runs:
        # int8 may flip any label of a network that has learnt next to nothing.
        _export(run, kinds, "0.01" if parsed.runs else "1")
    return Options(data, runs, parsed.work, parsed)


def write_block(work: Path, name: str, lines: list[str]) -> None:
    """Print lines of Markdown, and write them to a file."""
    head = f"Processor: {processor_name()}, {num_processors()} of them in use."
    text = "\n".join([head, "", *lines]) + "\n"
    write_text(work / f"{name}.md", text)
    print(text, end="", flush=True)


def table(*rows: Sequence[str]) -> list[str]:
    """Return lines of Markdown; the first row is the heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def times(ratio: Ratio) -> str:
    """Return a ratio with its spread over rounds."""
    return f"{ratio.value:.2f}x ({ratio.p5:.2f} to {ratio.p95:.2f})"


def print_step(words: str) -> None:
    """Print the current step to standard error, apart from the figures."""
    print(f"==> {words}", file=sys.stderr, flush=True)


def tumorlens(*words: object) -> int:
    """Run a command of the package and return its status."""
    command = [sys.executable, "-m", "tumorlens", *map(str, words)]
    return subprocess.run(command, check=False, stdout=sys.stderr).returncode


def _trained(name: str, data: Path, work: Path, weights: str, epochs: int) -> Path:
    # Another set of images must not get the run of the last one.
    run = work / "runs" / f"{name}-{data.resolve().name}-{epochs}"
    if not (run / "finished").is_file():
        print_step(f"training {name} for {epochs} epoch(s) into {run}")
        settings = {
            "model.name": name,
            "model.pretrained": weights,
            "model.size_px": 224,
            "optim.epochs": epochs,
            "data.cache_dir": work / "cache",
        }
        words = [
            w for key, value in settings.items() for w in ("--set", f"{key}={value}")
        ]
        if tumorlens("train", "--data", data, "--out", run, *words):
            raise SystemExit(f"{name} could not be trained; remove {run} to try again")
    return run


def _export(run: Run, kinds: tuple[Kind, ...], max_drop: str) -> None:
    missing = [
        kind
        for kind in KINDS
        if kind in kinds and not is_artefact(run.path / "export" / kind)
    ]
    if not missing:
        return
    print_step(f"exporting {run.path} as {', '.join(missing)}")
    words = [word for kind in missing for word in ("--format", kind)]
    if tumorlens("export", run.path, *words, "--max-drop", max_drop):
        print_step("not every format passed; going on with those that did")
