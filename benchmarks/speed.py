"""Latency and size of artefacts against TorchScript fp32, one image at a time.

    python benchmarks/speed.py --data DATA --runs runs/resnet18 runs/resnet50

Without --runs it trains resnet18, resnet50 and densenet121 on --data, or on the images
of `tumorlens phantom`, for one epoch. All artefacts of all runs are measured in turn in
one session, by `tumorlens benchmark` itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench_runs import MODELS, Options, read_options, say, table, write_block

from tumorlens.deploy.artefact import Kind, open_artefact
from tumorlens.deploy.benchmark.session import benchmark
from tumorlens.files import write_json
from tumorlens.report import write_benchmark_page
from tumorlens.report.benchmark_tables import write_table
from tumorlens.runs.folder import Run

KINDS: tuple[Kind, ...] = (
    *("torchscript", "torch-export", "onnx", "openvino", "openvino-bf16"),
    *("onnx-int8", "openvino-int8"),
)
FLOATING = ("torch-export", "onnx", "openvino", "openvino-bf16")


def main() -> None:
    """Measure all and write the block."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, help="default: 20 an artefact")
    options = read_options(parser, models=MODELS, kinds=KINDS)
    say("measuring")
    found = benchmark(
        [run.path for run in options.runs], batches=[1], seconds=options.parsed.seconds
    )
    out = options.work / "speed"
    write_json(out / "benchmark.json", found)
    write_table(found, out / "benchmark.csv")
    write_benchmark_page(out / "benchmark.json", out=out / "benchmark.html")
    write_block(options.work, "speed", lines_of(found, options))


def lines_of(found: dict[str, Any], options: Options) -> list[str]:
    """Return a table with a row for each run."""
    heading = [
        *("network", "TorchScript fp32", "openvino-int8", "ratio"),
        *("accuracy on val, change", "best floating artefact with equal labels"),
        *("ratio", "size int8 / fp32"),
    ]
    return [*table(heading, *(cells(found, run) for run in options.runs)), ""] + [
        f"- {sentence}" for sentence in found["words"]
    ]


def cells(found: dict[str, Any], run: Run) -> list[str]:
    """Return what is said of one run; empty where an artefact did not pass."""
    mine = (run.name, str(run.path.resolve()))
    rows = {row["kind"]: row for row in found["artefacts"] if row["run"] in mine}
    plain, int8 = rows["torchscript"], rows.get("openvino-int8")
    floating = [
        row
        for kind, row in rows.items()
        if kind in FLOATING and not flips(run.path, kind)
    ]
    best = max(
        floating, key=lambda row: row["ratios"]["latency"]["value"], default=None
    )
    size = ""
    if int8 and "openvino" in rows:
        size = f"{int8['size_bytes'] / rows['openvino']['size_bytes']:.3f}"
    return [
        *(plain["networks"][0], latency(plain)),
        *(
            (latency(int8), ratio(int8), change(int8))
            if int8
            else ("not there", "", "")
        ),
        *((f"{best['kind']}, {latency(best)}", ratio(best)) if best else ("none", "")),
        size,
    ]


def flips(run: Path, kind: str) -> int:
    """Return how many labels of val an artefact gives otherwise than its run."""
    return len(open_artefact(run / "export" / kind).parity()["flips"])


def latency(row: dict[str, Any]) -> str:
    """Return the median with its interval."""
    one = row["latency_ms"]
    return f"{one['value']:.2f} ms ({one['low']:.2f} to {one['high']:.2f})"


def ratio(row: dict[str, Any]) -> str:
    """Return how many times as fast, with the spread over rounds."""
    one = row["ratios"]["latency"]
    return f"{one['value']:.2f}x ({one['low']:.2f} to {one['high']:.2f})"


def change(row: dict[str, Any]) -> str:
    """Return the change of accuracy in points."""
    one = row["accuracy"]
    return f"{100 * one['change']['value']:+.2f} points of {one['num_images']} images"


if __name__ == "__main__":
    main()
