"""Ways to run a network: that they agree, on the CPU; their times, on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from support.runs_on_images import make_run
from tumorlens.cli import app
from tumorlens.deploy.benchmark.gpu import NUM_CALLS, Timer, Way, benchmark_gpu, ways_of
from tumorlens.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.runs.folder import Run


@pytest.fixture
def run(tmp_path: Path, make_images: Callable[..., Path]) -> Run:
    return make_run(tmp_path / "run", make_images(num_each=4))


def test_every_way_gives_the_same_labels(run: Run) -> None:
    images = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8)
    ways = ways_of(run, torch.device("cpu"))
    assert [way.precision for way in ways] == ["fp32", "bf16"]
    plain, bf16 = (way.predict(images) for way in ways)
    assert plain.sum(dim=1) == pytest.approx(torch.ones(8), abs=1e-5)
    assert plain.dtype == bf16.dtype == torch.float32
    assert 0 < float((plain - bf16).abs().max()) < 0.05


def test_each_call_of_a_turn_has_the_next_images() -> None:
    seen: list[list[int]] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        seen.append(images[:, 0, 0, 0].tolist())
        return images

    images = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    timer = Timer(
        Way("run", "fp32", predict, 0), images, batch=2, device=torch.device("cpu")
    )
    seen.clear()
    assert len(timer(0)) == NUM_CALLS
    assert seen[:3] == [[1, 2], [0, 1], [2, 0]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"^--device is cuda, and torch sees no"):
        benchmark_gpu([run.path], batches=[1])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--device", "tpu"], "expected --device cpu or cuda, got 'tpu'"),
        (["--device", "cuda", "--threads", "1"], "--format and --threads are for"),
        (["--device", "cuda", "--format", "onnx"], "--format and --threads are for"),
    ],
)
def test_a_device_or_option_that_means_nothing_is_refused(
    run: Run, words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["benchmark", str(run.path), *words]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_is_named_and_graphs_answer_the_same(run: Run) -> None:
    device = torch.device("cuda")
    ways = {way.kind: way for way in ways_of(run, device)}
    images = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, device=device)
    other = torch.randint(256, (4, 32, 32, 3), dtype=torch.uint8, device=device)
    for kind in ("run", "run bf16 channels-last"):
        replayed = ways[f"{kind}, CUDA graph"].predict
        replayed(other)
        # The second replay must see its own images, not those that were recorded.
        assert torch.allclose(replayed(images), ways[kind].predict(images), atol=1e-5)
    found = benchmark_gpu([run.path], batches=[4], seconds=0.5)
    for row in found.rows:
        assert row.device == torch.cuda.get_device_name()
        assert row.latency_ms.value > 0


@pytest.mark.gpu
def test_a_batch_that_is_not_positive_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match="at least 1 image, got 0"):
        benchmark_gpu([run.path], batches=[0])
