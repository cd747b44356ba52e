"""Memory of `tumorlens predict ARTEFACT FOLDER` over very many images.

The folder holds links to the same files. While the command runs, its memory is read
every half second; what counts is the last tenth of the time against the second tenth,
since the first one has the start in it.

    python benchmarks/flat_memory.py --runs runs/resnet18 --images 100000
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from bench_runs import print_step, read_options, table, write_block

from tumorlens.data.files import walk_images
from tumorlens.deploy.artefact import Kind

FILES_IN_A_FOLDER = 1000
SECONDS_BETWEEN = 0.5
KINDS: tuple[Kind, ...] = ("openvino", "openvino-int8")


def main() -> None:
    """Run the command, watch it, and write the block.

    Raises:
        SystemExit: The command left images out.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--artefact", default="openvino-int8", help="its format")
    options = read_options(parser, models=("resnet18",), kinds=KINDS)
    num, kind = options.parsed.images, options.parsed.artefact
    with tempfile.TemporaryDirectory(prefix="tumorlens-bench-") as folder:
        print_step(f"linking {num:,} names to {options.data}")
        link_many(list(walk_images([options.data])), num, Path(folder) / "images")
        print_step("predicting")
        start = time.perf_counter()
        out = Path(folder) / "predictions.csv"
        command = ["predict", options.runs[0].path / "export" / kind]
        samples = watch(
            [*map(str, command), str(Path(folder) / "images"), "--out", str(out)]
        )
        seconds = time.perf_counter() - start
        with out.open(encoding="utf-8") as file:
            num_rows = sum(1 for _ in file) - 1
    if num_rows != num:
        raise SystemExit(f"expected {num:,} rows, got {num_rows:,}")
    tenths = [part / 1e6 for part in in_tenths(samples)]
    heading = ["images", "images/s", "second tenth", "last tenth", "ratio", "most"]
    row = [
        f"{num:,}",
        f"{num / seconds:.0f}",
        f"{tenths[1]:.0f} MB",
        f"{tenths[-1]:.0f} MB",
        f"{tenths[-1] / tenths[1]:.3f}",
        f"{max(samples) / 1e6:.0f} MB",
    ]
    all_tenths = ", ".join(f"{one:.0f}" for one in tenths)
    write_block(
        options.work,
        "flat_memory",
        [*table(heading, row), "", f"Each tenth of the time, MB: {all_tenths}"],
    )


def link_many(files: list[Path], num: int, folder: Path) -> None:
    """Make `num` links to the files, a thousand in a folder."""
    for number in range(num):
        file = files[number % len(files)]
        place = folder / f"{number // FILES_IN_A_FOLDER:04d}"
        if number % FILES_IN_A_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{number:07d}{file.suffix}").symlink_to(file.resolve())


def watch(words: list[str]) -> list[int]:
    """Run a command of the package and return its bytes of memory over time.

    Raises:
        SystemExit: It failed.
    """
    samples = []
    with subprocess.Popen([sys.executable, "-m", "tumorlens", *words]) as process:
        while process.poll() is None:
            if (now := resident_bytes(process.pid)) is not None:
                samples.append(now)
            time.sleep(SECONDS_BETWEEN)
    if process.returncode:
        raise SystemExit(f"tumorlens predict ended with status {process.returncode}")
    return samples


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process; `None` when it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None


def in_tenths(samples: list[int]) -> list[float]:
    """Return the mean of each tenth of the samples.

    Raises:
        SystemExit: There are too few samples.
    """
    if len(samples) < 20:
        raise SystemExit("it was over too soon for a result: more --images")
    ends = [round(number * len(samples) / 10) for number in range(11)]
    return [statistics.mean(samples[first:last]) for first, last in pairwise(ends)]


if __name__ == "__main__":
    main()
