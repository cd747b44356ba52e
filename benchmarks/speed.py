"""Latency and size of artefacts against TorchScript fp32, one image at a time.

    python benchmarks/speed.py --data DATA --runs runs/resnet18 runs/resnet50

Without --runs it trains resnet18, resnet50 and densenet121 on --data, or on the images
of `tumorlens phantom`, for one epoch. All artefacts of all runs are measured in turn in
one session, by the code of `tumorlens benchmark`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench_runs import (
    MODELS,
    Options,
    print_step,
    read_options,
    table,
    times,
    write_block,
)

from tumorlens.deploy.artefact import Kind, open_artefact
from tumorlens.deploy.benchmark.results import Benchmark, Row, write_csv
from tumorlens.deploy.benchmark.session import benchmark
from tumorlens.deploy.benchmark.timing import Ratio
from tumorlens.files import write_model
from tumorlens.report import write_benchmark_page
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
    print_step("measuring")
    found = benchmark(
        [run.path for run in options.runs], batches=[1], seconds=options.parsed.seconds
    )
    out = options.work / "speed"
    write_model(out / "benchmark.json", found)
    write_csv(found, out / "benchmark.csv")
    write_benchmark_page(out / "benchmark.json", out=out / "benchmark.html")
    write_block(options.work, "speed", lines_of(found, options))


def lines_of(found: Benchmark, options: Options) -> list[str]:
    """Return a table with a row for each run."""
    heading = [
        *("network", "TorchScript fp32", "openvino-int8", "ratio"),
        *("accuracy on val, change", "best floating artefact with equal labels"),
        *("ratio", "size int8 / fp32"),
    ]
    return [*table(heading, *(cells(found, run) for run in options.runs)), ""] + [
        f"- {sentence}" for sentence in found.sentences
    ]


def cells(found: Benchmark, run: Run) -> list[str]:
    """Return the cells of one run; empty where an artefact did not pass."""
    mine = (run.name, str(run.path.resolve()))
    rows = {row.kind: row for row in found.rows if row.run in mine}
    plain, int8 = rows["torchscript"], rows.get("openvino-int8")
    floating = [
        row
        for kind, row in rows.items()
        if kind in FLOATING and not flips(run.path, kind)
    ]
    best = max(floating, key=lambda row: ratio_of(row).value, default=None)
    size = ""
    if int8 and "openvino" in rows:
        sizes = int8.size_bytes, rows["openvino"].size_bytes
        size = f"{sizes[0] / sizes[1]:.3f}" if sizes[0] and sizes[1] else ""
    return [
        *(plain.networks[0], latency(plain)),
        *(
            (latency(int8), times(ratio_of(int8)), change(int8))
            if int8
            else ("not there", "", "")
        ),
        *(
            (f"{best.kind}, {latency(best)}", times(ratio_of(best)))
            if best
            else ("none", "")
        ),
        size,
    ]


def flips(run: Path, kind: str) -> int:
    """Return the number of val labels that differ between an artefact and its run."""
    return len(open_artefact(run / "export" / kind).parity().flips)


def latency(row: Row) -> str:
    """Return the median with its interval."""
    one = row.latency_ms
    return f"{one.value:.2f} ms ({one.low:.2f} to {one.high:.2f})"


def ratio_of(row: Row) -> Ratio:
    """Return how many times as fast as TorchScript it is."""
    assert row.ratios is not None
    return row.ratios.latency


def change(row: Row) -> str:
    """Return the change of accuracy in points."""
    assert row.accuracy is not None
    points = 100 * row.accuracy.change.value
    return f"{points:+.2f} points of {row.accuracy.num_images} images"


if __name__ == "__main__":
    main()
