"""The arithmetic of the scripts of `make bench`, which are too slow to be run here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from support.handmade_artefacts import make_artefact
from tumorlens.config import parse_config
from tumorlens.deploy.artefact import Change
from tumorlens.deploy.benchmark.results import (
    Accuracy,
    Benchmark,
    LatencyMs,
    Measure,
    Ratios,
    Row,
    make_benchmark,
)
from tumorlens.deploy.benchmark.timing import Ratio
from tumorlens.runs.folder import Run

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a script as the others there would."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load_script(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name)

    return load_script


def row(kind: str, *, times: float, change: float = 0.0, size: int = 40) -> Row:
    return Row(
        name=kind,
        run="one",
        kind=kind,
        networks=("resnet18",),
        size_px=224,
        size_bytes=size,
        accuracy=Accuracy(
            value=0.9,
            run=0.9 - change,
            change=Change(value=change, low=None, high=None),
            num_images=200,
            subset="val",
        ),
        runtime="false 1.0",
        precision="fp32",
        device="cpu",
        threads=2,
        load_ms=None,
        peak_memory_bytes=None,
        latency_ms=LatencyMs(
            value=10 / times,
            low=9 / times,
            high=11 / times,
            rounds=(),
            p95=11 / times,
            p99=11 / times,
            num_calls=20,
        ),
        images_per_second={1: Measure(value=100 * times)},
        best_batch=1,
        end_to_end_ms=None,
        ratios=Ratios(latency=Ratio(times, times, times, 20)),
    )


def benchmark_of(*rows: Row) -> Benchmark:
    found = make_benchmark(
        rows, batches=[1], threads=2, seconds=1.0, num_files=8, command=""
    )
    return found.model_copy(update={"sentences": ("It was quiet.",)})


def test_the_table_of_speeds_takes_the_best_format_with_equal_labels(
    tmp_path: Path, load: Any
) -> None:
    speed = load("speed")
    run = Run(tmp_path / "one", parse_config({}))
    for kind, num_flips in {"onnx": 0, "openvino": 0, "openvino-bf16": 2}.items():
        make_artefact(run.path, kind, num_flips=num_flips)  # type: ignore[arg-type]
    found = benchmark_of(
        row("torchscript", times=1.0),
        row("onnx", times=2.0),
        row("openvino", times=2.5),
        row("openvino-bf16", times=4.0),
        row("openvino-int8", times=5.0, change=-0.005, size=10),
    )
    lines = speed.lines_of(found, SimpleNamespace(runs=(run,)))
    assert lines[2] == (
        "| resnet18 | 10.00 ms (9.00 to 11.00) | 2.00 ms (1.80 to 2.20) | "
        "5.00x (5.00 to 5.00) | -0.50 points of 200 images | "
        "openvino, 4.00 ms (3.60 to 4.40) | 2.50x (2.50 to 2.50) | 0.250 |"
    )
    assert lines[-1] == "- It was quiet."


def test_a_format_that_did_not_pass_leaves_its_cells_empty(
    tmp_path: Path, load: Any
) -> None:
    run = Run(tmp_path / "one", parse_config({}))
    found = benchmark_of(row("torchscript", times=1.0))
    cells = load("speed").cells(found, run)
    assert cells[2:] == ["not there", "", "", "none", "", ""]


def test_tenths_of_memory_are_means_of_equal_parts(load: Any) -> None:
    in_tenths = load("flat_memory").in_tenths
    assert in_tenths([number // 3 for number in range(30)]) == list(range(10))
    with pytest.raises(SystemExit, match="more --images"):
        in_tenths([1] * 19)


def test_links_to_the_same_files_are_a_thousand_in_a_folder(
    tmp_path: Path, load: Any
) -> None:
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for file in files:
        file.write_bytes(file.name.encode())
    load("flat_memory").link_many(files, 1001, tmp_path / "images")
    links = sorted((tmp_path / "images").rglob("*.*"))
    assert len(links) == 1001
    folders = sorted((tmp_path / "images").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [1000, 1]
    assert links[999].read_bytes() == b"b.png"
    assert links[1000].parent.name == "0001"


def test_chunks_go_through_all_files_and_begin_again(load: Any) -> None:
    chunks = load("end_to_end").in_chunks([Path("a"), Path("b"), Path("c")], 2)
    found = ["".join(map(str, next(chunks))) for _ in range(4)]
    assert found == ["ab", "ca", "bc", "ab"]
