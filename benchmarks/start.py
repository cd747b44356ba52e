"""Seconds from the start of a command to its end: `predict`, `--help`, the Tab key.

Each call is a process of its own, and the commands take turns. The files are in the
cache of the system, as they are after the first use. `--help` cannot be faster than the
import of Typer and rich, which is measured beside it.

    python benchmarks/start.py --runs runs/resnet18
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial

from bench_runs import print_step, read_options, table, write_block

from tumorlens.data.files import walk_images
from tumorlens.deploy.artefact import Kind
from tumorlens.deploy.benchmark.timing import median_of, take_turns

KINDS: tuple[Kind, ...] = ("onnx", "openvino", "openvino-int8")
TAB = (
    "_TUMORLENS_COMPLETE=complete_bash",
    "COMP_WORDS=tumorlens\ntrain\n--set\nmodel.name\n=\nres",
    "COMP_CWORD=5",
)
"""The environment in which bash calls the program when the Tab key is pressed."""


def main() -> None:
    """Measure and write the block."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = read_options(parser, models=("resnet18",), kinds=KINDS)
    folder = options.runs[0].path / "export"
    image = next(walk_images([options.data]))
    program = [sys.executable, "-m", "tumorlens"]
    commands = {
        f"`predict` on one image, {kind}": [*program, "predict", folder / kind, image]
        for kind in KINDS
        if (folder / kind).is_dir()
    }
    commands["`--help`"] = [*program, "--help"]
    commands["Tab after `--set model.name=res`"] = ["env", *TAB, *program]
    libraries = "import rich, typer, typer.rich_utils"
    commands["import of Typer and rich"] = [sys.executable, "-c", libraries]
    print_step("starting commands")
    calls = [partial(seconds_of, [*map(str, words)]) for words in commands.values()]
    for call in calls:
        call(0)  # byte code is written here
    found = take_turns(
        calls,
        seconds=0,
        min_rounds=options.parsed.rounds,
        max_rounds=options.parsed.rounds,
        shuffle_seed=42,
    )
    rows = []
    for name, rounds in zip(commands, found, strict=True):
        one = median_of(rounds)
        ends = "" if one.low is None else f"{one.low:.2f} to {one.high:.2f} s"
        rows.append([name, f"{one.value:.2f} s", ends])
    write_block(
        options.work, "start", table(["command", "median", "95 % interval"], *rows)
    )


def seconds_of(command: list[str], _round: int) -> float:
    """Return the seconds of a command, which must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
