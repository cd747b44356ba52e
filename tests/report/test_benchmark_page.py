"""The page of a benchmark, from a file written by hand."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from tumorlens.errors import RunError
from tumorlens.report import benchmark_page, write_benchmark_page
from tumorlens.report.comparison_figures import Bar, draw_bars

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.report.drawing import Drawing, Heading


def artefact(name: str, **changes: Any) -> dict[str, Any]:
    measure = {"value": 4.25, "low": 4.125, "high": 4.5}
    return {
        "name": name,
        "run": "first <run>",
        "kind": "onnx",
        "networks": ["resnet18"],
        "runtime": "onnxruntime 9.9",
        "precision": "fp32",
        "device": "cpu",
        "threads": 2,
        "size_px": 224,
        "size_bytes": 44_700_000,
        "accuracy": {
            "value": 0.8125,
            "run": 0.8125,
            "change": {"value": -0.0025, "low": -0.01, "high": 0.005},
            "num_images": 400,
            "subset": "val",
        },
        "load_ms": 1234.5,
        "peak_memory_bytes": 210_000_000,
        "latency_ms": {
            **measure,
            "p95": 5.5,
            "p99": 6.75,
            "num_calls": 200,
            "rounds": [],
        },
        "images_per_second": {
            "1": {"value": 235.0, "low": 222.0, "high": 242.0},
            "8": {"value": 290.0, "low": 280.0, "high": 299.0},
        },
        "best_batch": 8,
        "end_to_end_ms": {"value": 5.75, "low": 5.5, "high": 6.0, "rounds": []},
        "ratios": {
            "latency": {"value": 1.875, "low": 1.75, "high": 2.0, "num_rounds": 20},
            "end_to_end": {"value": 1.625, "low": 1.5, "high": 1.75, "num_rounds": 6},
        },
        **changes,
    }


def benchmark_file(*artefacts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "time": "2026-01-02 03:04",
        "environment": {
            "tumorlens": "0.1.0",
            "processor": "Abacus 3000",
            "cpu_count": 2,
            "platform": "Linux x86_64",
            "commit": None,
            "python": "3.11",
            "packages": {"torch": "2.15", "openvino": None},
            "seed": 42,
            "command": "tumorlens benchmark first",
        },
        "settings": {
            "threads": 2,
            "seconds": 20.0,
            "batches": [1, 8],
            "width": 0.02,
            "num_files": 64,
        },
        "artefacts": list(artefacts),
        "words": ["It is faster & smaller."],
        **changes,
    }


def write_page(folder: Path, content: dict[str, Any]) -> str:
    (folder / "benchmark.json").write_text(json.dumps(content), encoding="utf-8")
    page = write_benchmark_page(
        folder / "benchmark.json", out=folder / "benchmark.html"
    )
    return page.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path) -> str:
    other = artefact("openvino-int8", precision="int8", runtime="openvino 9")
    return write_page(tmp_path, benchmark_file(artefact("onnx"), other))


def words_of(page: str) -> str:
    """Return what a reader sees, without markup."""

    class Text(HTMLParser):
        text = ""

        def handle_data(self, data: str) -> None:
            self.text += data + " "

    parser = Text()
    parser.feed(page[page.index("<body>") :])
    return " ".join(parser.text.split())


def test_the_page_shows_every_figure(page: str) -> None:
    words = words_of(page)
    for shown in (
        *("4.25 4.12 to 4.50", "5.50", "6.75", "1.88 1.75 to 2.00", "81.2 %"),
        *("-0.25 -1.00 to +0.50", "235 222 to 242", "290 280 to 299"),
        *("5.75 5.50 to 6.00", "1.62 1.50 to 1.75", "1,234", "210.0 MB", "44.7 MB"),
        *("Abacus 3000, 2 threads", "onnxruntime 9.9, openvino 9", "2026-01-02 03:04"),
        *("400 images", "It is faster & smaller.", "int8"),
    ):
        assert shown in words, shown


def test_the_best_batch_is_bold(page: str) -> None:
    assert "<strong>290</strong>" in page
    assert "<strong>235</strong>" not in page


def test_the_three_figures_are_in_the_page_and_in_files(
    page: str, tmp_path: Path
) -> None:
    assert page.count("<figure") == page.count("<svg") == 3
    for name in ("accuracy", "latency", "size"):
        svg = (tmp_path / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert "openvino-int8" in svg
        png = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
    assert "onnx 4.25 ms; openvino-int8 4.25 ms" in page


def test_the_page_loads_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert set(re.findall(r'href="([^#"][^"]*)"', page)) == {"benchmark.csv"}
    assert not re.findall(r'\bsrc="(?!data:)', page)


def test_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_names_are_text_and_never_markup(page: str) -> None:
    assert "first <run>" not in page
    assert "first &lt;run&gt;" in page


def test_what_was_not_measured_breaks_nothing(tmp_path: Path) -> None:
    missing = dict.fromkeys(
        [
            *("accuracy", "load_ms", "peak_memory_bytes", "end_to_end_ms", "ratios"),
            "size_bytes",
        ]
    )
    words = words_of(write_page(tmp_path, benchmark_file(artefact("bare", **missing))))
    assert "Times as fast" not in words
    assert words.count("n/a") == 6
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        *("latency.png", "latency.svg"),
    ]


def test_runs_with_other_numbers_of_val_images_each_have_theirs(
    tmp_path: Path,
) -> None:
    runs = []
    for name, num_images in (("first", 1032), ("second", 31), ("third", 31)):
        one = artefact(f"{name} onnx", run=name)
        one["accuracy"]["num_images"] = num_images
        runs += [one, {**one, "name": f"{name} openvino"}]
    words = words_of(write_page(tmp_path, benchmark_file(*runs)))
    each = "first: 1,032 images, second: 31 images, third: 31 images"
    assert f"on val ({each})." in words
    words = words_of(write_page(tmp_path, benchmark_file(*runs[2:])))
    assert "on val (31 images)." in words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 7}, "expected format 1 or 2 in .*, got 7"),
        ([1], r"expected format 1 or 2 in .*, got \[1\]"),
        (benchmark_file(), "damaged at artefacts: .* got "),
        (benchmark_file(artefact("a", load_ms="long")), "load_ms: .* got 'long'"),
    ],
)
def test_a_file_that_is_not_ours_is_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        write_page(tmp_path, content)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "benchmark.json", tmp_path / "benchmark.html"
    with pytest.raises(RunError, match=r"there is no .*benchmark\.json"):
        write_benchmark_page(path, out=out)
    path.write_bytes(b"{")
    with pytest.raises(RunError, match=r"benchmark\.json is not JSON"):
        write_benchmark_page(path, out=out)


def test_bars_are_what_the_file_says_with_the_interval_of_the_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Bar] = {}

    def draw(bars: list[Bar], heading: Heading, **options: Any) -> Drawing:
        drawn[heading.title] = bars[0]
        return draw_bars(bars, heading, **options)

    monkeypatch.setattr(benchmark_page, "draw_bars", draw)
    write_page(tmp_path, benchmark_file(artefact("onnx")))
    bars = {
        title: (bar.value, bar.low, bar.high, bar.text.replace("\xa0", " "))
        for title, bar in drawn.items()
    }
    assert bars == {
        "Accuracy on val": (0.8125, None, None, "81.2 %"),
        "Latency": (4.25, 4.125, 4.5, "4.25 ms"),
        "Size on disk": (44.7, None, None, "44.7 MB"),
    }
