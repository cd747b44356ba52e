"""The arithmetic of a benchmark with times that are given, and one that is real."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

from support.handmade_artefacts import make_artefact
from support.runs_on_images import make_run
from tumorlens.cli import app
from tumorlens.cli.options import STATUS_INTERRUPTED
from tumorlens.deploy.benchmark import session as stage
from tumorlens.deploy.benchmark import worker as worker_module
from tumorlens.deploy.benchmark.results import (
    Benchmark,
    Facts,
    Row,
    read_benchmark,
    table_rows,
)
from tumorlens.deploy.benchmark.session import benchmark, find_artefacts, find_files
from tumorlens.deploy.benchmark.worker import Worker
from tumorlens.errors import ArtefactError, ConfigError, DataError, RunError
from tumorlens.files import write_model
from tumorlens.system import num_processors

if TYPE_CHECKING:
    from collections.abc import Callable

SPEED = {"torchscript": 1.0, "openvino": 2.0, "openvino-int8": 5.0}
"""How many times as fast as TorchScript the false artefacts are."""


class FakeWorker:
    """Says that TorchScript takes 10 ms for an image, and others as `SPEED` has it.

    In every second round the machine is twice as slow, for everybody.
    """

    made: int = 0

    def __init__(self, path: Path, *, threads: int) -> None:
        self.kind = path.name
        self.threads = threads
        self._rounds = count()

    def __enter__(self) -> Self:
        FakeWorker.made += 1
        return self

    def __exit__(self, *_: object) -> None:
        FakeWorker.made -= 1

    def _seconds(self) -> float:
        slow = 1 + next(self._rounds) % 2
        return slow * 0.01 / SPEED[self.kind]

    def open_session(self, images: Path) -> float:
        assert images.is_file()
        self.memory = 50_000_000
        return 0.5

    def facts(self) -> Facts:
        self.memory *= 2  # a runtime may load the graph again to know its precision
        return Facts(
            runtime="false 1.0",
            precision="int8" if self.kind.endswith("int8") else "fp32",
            device="cpu",
            threads=self.threads,
        )

    def time_calls(self, *, batch: int, num_calls: int) -> list[float]:
        # In batches an image takes half the time; one call of a turn is an outlier.
        usual = self._seconds() * (1 if batch == 1 else batch / 2)
        return [usual] * (num_calls - 1) + [100 * usual]

    def open_files(self) -> None:
        pass

    def time_files(self, paths: list[Path]) -> float:
        return len(paths) * (self._seconds() + 0.001)

    def peak_memory_bytes(self) -> int:
        return self.memory


@pytest.fixture
def run(tmp_path: Path, make_images: Callable[..., Path]) -> Path:
    """Return a run with three artefacts whose graphs no runtime could read."""
    made = make_run(tmp_path / "runs" / "one", make_images())
    for kind in ("torchscript", "openvino", "openvino-int8"):
        change = -0.125 if kind == "openvino-int8" else 0.0
        make_artefact(made.path, kind, accuracy=0.75 + change, change=change)
    return made.path


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put `FakeWorker` in the place of processes."""
    monkeypatch.setattr(stage, "Worker", FakeWorker)


@pytest.fixture
def found(run: Path, faked: None) -> Benchmark:
    """Return what is measured of `run` with `FakeWorker`."""
    return benchmark([run], batches=[8], seconds=1e-9, command="tumorlens benchmark r")


def row_of(found: Benchmark, name: str) -> Row:
    (row,) = [row for row in found.rows if row.name == name]
    return row


def test_a_turn_counts_once_with_the_median_of_its_calls(found: Benchmark) -> None:
    latency = row_of(found, "torchscript").latency_ms
    assert len(latency.rounds) == 20
    assert sorted(set(latency.rounds)) == pytest.approx([10.0, 20.0])
    assert latency.value == pytest.approx(15.0)
    assert (latency.low, latency.high) == pytest.approx((10.0, 20.0))


def test_the_tail_is_of_single_calls(found: Benchmark) -> None:
    # One call of ten takes a hundred times as long, 1 or 2 s by turns.
    latency = row_of(found, "torchscript").latency_ms
    assert latency.num_calls == 200
    assert 1000 <= latency.p95 <= 2000
    assert latency.p99 == pytest.approx(2000.0)


def test_ratios_are_paired_by_rounds(found: Benchmark) -> None:
    # Medians over rounds of 10 and 20 ms say nothing of it: each round has its ratio.
    ratios = row_of(found, "openvino-int8").ratios
    assert ratios is not None
    assert ratios.end_to_end is not None
    assert ratios.latency.value == pytest.approx(5.0)
    assert ratios.latency.p5 == pytest.approx(5.0)
    assert ratios.latency.p95 == pytest.approx(5.0)
    assert ratios.latency.num_rounds == 20
    # 11 against 3 ms, and 21 against 5 ms.
    assert ratios.end_to_end.value == pytest.approx((11 / 3 + 21 / 5) / 2)


def test_throughput_is_images_over_the_median_of_a_batch(found: Benchmark) -> None:
    row = row_of(found, "torchscript")
    assert list(row.images_per_second) == [1, 8]
    one, eight = row.images_per_second[1], row.images_per_second[8]
    assert one.value == pytest.approx(1000 / 15)
    assert eight.value == pytest.approx(8 / 0.06)
    # The longest time is the lowest speed.
    assert (eight.low, eight.high) == pytest.approx((8 / 0.08, 8 / 0.04))
    assert row.best_batch == 8


def test_facts_come_from_the_runtime_and_accuracy_from_the_verdict(
    found: Benchmark,
) -> None:
    row = row_of(found, "openvino-int8")
    assert (row.runtime, row.precision) == ("false 1.0", "int8")
    assert row.threads == num_processors()
    assert row.accuracy is not None
    assert row.accuracy.value == 0.625
    assert row.accuracy.change.value == -0.125
    assert row.size_bytes == 20
    assert (row.load_ms, row.peak_memory_bytes) == (500.0, 50_000_000)


def test_the_record_says_where_and_how_it_was_measured(
    found: Benchmark, tmp_path: Path
) -> None:
    assert found.environment.command == "tumorlens benchmark r"
    assert found.environment.processor
    assert found.settings.batches == (1, 8)
    assert found.settings.num_files == 8  # a quarter of 32 images is val
    write_model(tmp_path / "benchmark.json", found)
    assert read_benchmark(tmp_path / "benchmark.json") == found
    kept = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert {"format", "artefacts", "words"} < set(kept)


def test_it_says_in_words_what_is_faster_and_what_was_not_narrow(
    found: Benchmark,
) -> None:
    words = " ".join(found.sentences)
    assert (
        "openvino-int8 answers for one image 5.00 times as fast as torchscript "
        "(5.00 to 5.00 over 20 rounds), accuracy on val -12.50 points." in words
    )
    assert "2 % narrow for torchscript, openvino, openvino-int8: the machine" in words


def test_every_process_is_closed(found: Benchmark) -> None:
    assert FakeWorker.made == 0


def test_rounds_end_when_every_interval_is_narrow(
    run: Path, faked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five in a row at one speed: the median is sure after 20 rounds, and time is left.
    monkeypatch.setattr(FakeWorker, "_seconds", lambda self: 0.01)
    found = benchmark([run], batches=[1], seconds=1e6)
    assert {len(row.latency_ms.rounds) for row in found.rows} == {20}
    assert not [words for words in found.sentences if "narrow" in words]


def test_without_torchscript_there_is_no_ratio_and_it_says_so(
    run: Path, faked: None
) -> None:
    found = benchmark([run], kinds=["openvino"], seconds=1e-9)
    assert found.rows[0].ratios is None
    assert "one has no torchscript artefact here" in found.sentences[0]
    heading, (row,) = table_rows(found)
    assert row[heading.index("times as fast")] == ""


def test_ratios_stay_inside_a_run(
    run: Path, tmp_path: Path, faked: None, make_images: Callable[..., Path]
) -> None:
    other = make_run(tmp_path / "runs" / "two", make_images(name="other"))
    make_artefact(other.path, "openvino")
    found = benchmark([run, other.path], seconds=1e-9)
    assert row_of(found, "one openvino").ratios is not None
    assert row_of(found, "two openvino").ratios is None


def test_runs_of_one_name_are_told_apart_by_their_folders(
    run: Path, tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    make_run(tmp_path / "elsewhere" / "one", make_images(name="other"))
    make_artefact(tmp_path / "elsewhere" / "one", "onnx")
    subjects = find_artefacts([run, tmp_path / "elsewhere" / "one" / "export" / "onnx"])
    assert len({one.name for one in subjects}) == len(subjects) == 4
    assert len({one.run for one in subjects}) == 2


def retrain(run: Path) -> None:
    """Give a run other weights."""
    card = json.loads((run / "model.json").read_text())
    card["weights_sha256"] = card["weights_sha256"][::-1]
    (run / "model.json").write_text(json.dumps(card))


@pytest.mark.parametrize("named", ["run", "artefacts"])
def test_artefacts_of_weights_that_the_run_no_longer_has_are_refused(
    run: Path, named: str
) -> None:
    retrain(run)
    make_artefact(run, "onnx")  # made since
    folders = [run / "export" / kind for kind in ("torchscript", "openvino")]
    with pytest.raises(ArtefactError) as caught:
        find_artefacts([run] if named == "run" else folders)
    stale = ["torchscript", "openvino"] + ["openvino-int8"] * (named == "run")
    assert caught.value.problem == (
        f"{run} has other weights by now than its {', '.join(stale)}"
    )
    formats = "".join(f" --format {kind}" for kind in stale)
    assert caught.value.hint == f"tumorlens export {run}{formats}"
    assert [one.name for one in find_artefacts([run], ["onnx"])] == ["onnx"]


def test_an_artefact_outside_a_run_is_measured_whatever_its_weights(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run / "export" / "openvino", tmp_path / "moved" / "openvino")
    retrain(run)
    (subject,) = find_artefacts([tmp_path / "moved" / "openvino"])
    assert subject.name == "openvino"


def test_hints_can_be_pasted_whatever_the_folder_is_called(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    made = make_run(tmp_path / "my run", make_images())
    with pytest.raises(ArtefactError) as caught:
        find_artefacts([made.path])
    assert caught.value.hint == (
        f"make them with: tumorlens export '{made.path}' --format all"
    )
    make_artefact(made.path, "onnx")
    with pytest.raises(ArtefactError) as caught:
        find_artefacts([made.path], ["openvino"])
    assert caught.value.hint.endswith(f"export '{made.path}' --format openvino")
    retrain(made.path)
    with pytest.raises(ArtefactError) as caught:
        find_artefacts([made.path])
    assert caught.value.hint == f"tumorlens export '{made.path}' --format onnx"


def test_an_artefact_folder_is_a_subject_by_itself(run: Path) -> None:
    (subject,) = find_artefacts([run / "export" / "openvino"])
    assert (subject.name, subject.run) == ("openvino", "one")


def test_files_are_val_images_or_those_below_a_folder(
    run: Path, make_images: Callable[..., Path]
) -> None:
    subjects = find_artefacts([run])
    files = find_files(subjects, data=None, num_files=100)
    assert [path.stem for path in files] == ["2", "6"] * 4
    assert len(find_files(subjects, data=None, num_files=3)) == 3
    elsewhere = make_images(name="elsewhere", num_each=1)
    files = find_files(subjects, data=elsewhere, num_files=100)
    assert {path.parents[1] for path in files} == {elsewhere}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": [8, 0]}, "at least 1 image, got 0"),
        ({"threads": 0}, r"expected 1 to \d+ threads, .* got 0"),
        ({"threads": 9999}, r"expected 1 to \d+ threads, .* got 9999"),
        ({"seconds": 0}, "above 0 seconds, got 0"),
        ({"seconds": float("nan")}, "above 0 seconds, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(
    run: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark([run], **options)


def test_a_run_without_artefacts_is_told_how_to_make_them(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    bare = make_run(tmp_path / "bare", make_images())
    with pytest.raises(ArtefactError, match=r"bare has no artefacts") as caught:
        find_artefacts([bare.path])
    assert caught.value.hint == (
        f"make them with: tumorlens export {bare.path} --format all"
    )


def test_a_format_that_a_run_lacks_is_told_how_to_make_it(run: Path) -> None:
    with pytest.raises(ArtefactError, match="no artefact of the format onnx") as caught:
        find_artefacts([run], ["onnx", "openvino"])
    assert caught.value.hint.endswith("--format onnx")


def test_a_damaged_artefact_is_refused_before_anything_is_measured(run: Path) -> None:
    (run / "export" / "openvino" / "graph.bin").write_bytes(b"else")
    with pytest.raises(ArtefactError, match=r"graph\.bin is not the file"):
        benchmark([run])


def test_what_is_only_called_an_image_is_not_measured_with(
    run: Path, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    subjects = find_artefacts([run])
    elsewhere = make_images(name="elsewhere", num_each=1)
    (elsewhere / "link.png").symlink_to(tmp_path / "nothing.png")
    files = find_files(subjects, data=elsewhere, num_files=100)
    assert files
    assert "link.png" not in {file.name for file in files}
    empty = tmp_path / "only links"
    empty.mkdir()
    (empty / "link.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataError, match=r"no image file in .*only links"):
        find_files(subjects, data=empty, num_files=100)


def test_what_is_neither_run_nor_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder"):
        benchmark([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no run was named"):
        benchmark([])


def test_an_artefact_that_is_named_twice_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="openvino is named twice"):
        find_artefacts([run, run / "export" / "openvino"])


def test_without_images_it_asks_for_some(run: Path, tmp_path: Path) -> None:
    make_artefact(tmp_path / "alone", "onnx")
    alone = find_artefacts([tmp_path / "alone" / "export" / "onnx"])
    with pytest.raises(DataError, match="no image to measure with") as caught:
        find_files(alone, data=None, num_files=9)
    assert caught.value.hint == "give --data FOLDER"
    subjects = find_artefacts([run])
    for file in find_files(subjects, data=None, num_files=99):
        file.unlink()
    with pytest.raises(DataError, match=r"there is no .* which is a val image of"):
        find_files(subjects, data=None, num_files=9)


def test_the_command_prints_a_table_and_writes_four_things(
    run: Path, tmp_path: Path, faked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["benchmark", run, "--seconds", 1e-9, "--batch", "1,8", "--out", out]
    assert app.main([*map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "openvino-int8" in printed
    assert "5.00 (5.00 to 5.00)" in printed
    assert sorted(path.name for path in out.iterdir()) == [
        *("benchmark.csv", "benchmark.html", "benchmark.json", "figures"),
    ]
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        f"{name}.{suffix}"
        for name in ("accuracy", "latency", "size")
        for suffix in ("png", "svg")
    ]
    with (out / "benchmark.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[2]["latency_ratio"]) == pytest.approx(5.0)
    assert float(rows[0]["images_per_second_8"]) == pytest.approx(8 / 0.06)


@pytest.mark.parametrize("place", ["file", "file/below/it", "/proc/x"])
def test_a_place_that_cannot_be_written_is_found_before_anything_is_measured(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")

    def measure(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it measures")

    monkeypatch.setattr(stage, "benchmark", measure)
    (tmp_path / "file").write_bytes(b"")
    out = tmp_path / place
    assert app.main(["benchmark", str(run), "--out", str(out)]) == 2
    assert f"error: cannot write {out}: " in capsys.readouterr().err


def test_an_unknown_format_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["benchmark", str(run), "--format", "onyx"]) == 2
    assert "unknown --format 'onyx'" in capsys.readouterr().err


def test_batches_are_whole_numbers_with_commas_between(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["benchmark", str(run), "--batch", "1,x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: expected whole numbers for --batch, got 'x'",
        "hint: for example --batch 1,8,32",
    ]


def test_ctrl_c_writes_nothing_and_says_so(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupted(FakeWorker):
        def time_files(self, paths: list[Path]) -> float:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage, "Worker", Interrupted)
    out = tmp_path / "out"
    words = ["benchmark", str(run), "--seconds", "1e-9", "--out", str(out)]
    assert app.main(words) == STATUS_INTERRUPTED
    assert f"nothing was written to {out}" in capsys.readouterr().err
    assert not out.exists()
    assert FakeWorker.made == 0


def test_a_process_that_dies_is_one_error_with_its_status(run: Path) -> None:
    with (
        Worker(run / "export" / "openvino", threads=1) as worker,
        pytest.raises(ArtefactError, match=r"openvino ended with status 1: .*no_such"),
    ):
        worker._call("no_such_question")


def test_a_process_that_hangs_is_not_waited_for_for_ever(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "TIME_LIMIT_S", 0.01)  # it takes longer to start
    with (
        Worker(run / "export" / "openvino", threads=1) as worker,
        pytest.raises(ArtefactError, match=r"openvino took longer than 0\.01 s"),
    ):
        worker.facts()


def test_an_error_in_a_process_is_raised_here(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2, 32, 32, 3), np.uint8))
    with (
        Worker(run / "export" / "openvino", threads=1) as worker,
        pytest.raises(ArtefactError, match="OpenVINO does not take"),
    ):
        worker.open_session(tmp_path / "images.npy")


def test_the_peak_is_of_the_process_itself_and_not_of_its_parent() -> None:
    # The parent has had 300 MB more than the child will ever have.
    code = """
import pathlib, sys
from tumorlens.deploy.benchmark.worker import Worker
ballast = bytearray(300_000_000)
with Worker(pathlib.Path("none"), threads=1) as worker:
    print(worker.peak_memory_bytes())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    if done.stdout.strip() == "None":
        pytest.skip("no /proc here")
    assert 20e6 < int(done.stdout) < 250e6


@pytest.mark.slow
def test_a_real_benchmark_of_a_small_network(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    from tumorlens.deploy.export import export

    run = make_run(tmp_path / "run", make_images(num_each=4))
    export(run, ["onnx"])
    found = benchmark([run.path], batches=[4], threads=1, seconds=0.1)
    (row,) = found.rows
    assert row.runtime.startswith("onnxruntime ")
    assert (row.precision, row.device, row.threads) == ("fp32", "cpu", 1)
    assert 0 < row.latency_ms.value <= row.latency_ms.p99
    assert row.load_ms is not None
    assert row.load_ms > 0
    assert 20e6 < (row.peak_memory_bytes or 0) < 2e9
    assert row.end_to_end_ms is not None
    assert row.end_to_end_ms.value > 0
    assert statistics.median(row.latency_ms.rounds) == pytest.approx(
        row.latency_ms.value
    )
