"""The benchmark on a GPU: a run's network in four ways, and its TorchScript.

Times are those between two CUDA events: of the answer for images that are on the GPU
already, without the transfers. A network of many small kernels is held up by launching
them one by one; a replay of the whole pass as one CUDA graph does not launch them, and
that is a row of its own. "fp32" on a recent GPU is TF32 in convolutions unless torch is
configured otherwise; rows show which.

The tests run parts of this on the CPU; all else needs a GPU.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tumorlens.data.images import load_square
from tumorlens.deploy.artefact import is_artefact, open_artefact
from tumorlens.deploy.benchmark.results import (
    BASELINE,
    SEED,
    WIDTH,
    Benchmark,
    Facts,
    Subject,
    Times,
    make_benchmark,
    make_row,
)
from tumorlens.deploy.benchmark.session import check_weights, files_of
from tumorlens.deploy.benchmark.timing import are_narrow, take_turns
from tumorlens.deploy.graph import ServingGraph
from tumorlens.errors import ConfigError
from tumorlens.runs.folder import Run, open_run
from tumorlens.training.dataset import image_limits
from tumorlens.training.network import load_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_CALLS = 10
"""Calls of a turn."""

_NUM_WARM_UPS = 5
_MIN_ROUNDS = 20
_MAX_ROUNDS = 1000
_SECONDS_EACH = 5.0


@dataclass(frozen=True)
class Way:
    """One way to run a network."""

    kind: str
    precision: str
    predict: Callable[[Tensor], Tensor]
    """Images (N, S, S, 3), uint8, to probabilities (N, C), both on the device."""
    size_bytes: int


def benchmark_gpu(
    paths: Sequence[Path],
    *,
    batches: Sequence[int],
    seconds: float | None = None,
    data: Path | None = None,
    command: str = "",
    progress: Callable[[str, int], None] = lambda _words, _rounds: None,
) -> Benchmark:
    """Measure runs on a GPU and return the content of `benchmark.json`.

    Args:
        paths: Run folders; their TorchScript is measured too where there is one.
        batches: Batch sizes; 1 is always measured.
        seconds: Budget for all timed turns together; `None` is 5 for each way.
        data: Images instead of the val images of the first run.
        command: Command line.
        progress: Called with the name of the stage and the rounds that are done.

    Raises:
        ConfigError: There is no GPU, or a batch is not positive.
        RunError: A path is no run with weights.
        DataError: There are no images, or one cannot be read.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "--device is cuda, and torch sees no GPU",
            hint="leave --device out to measure artefacts on the CPU, or install torch "
            "with CUDA",
        )
    device = torch.device("cuda")
    for batch in batches:
        if batch < 1:
            raise ConfigError(
                f"expected a batch of at least 1 image, got {batch}",
                hint="for example --batch 1,8",
            )
    runs = [open_run(path) for path in paths]
    batches = sorted({1, *batches})
    files = files_of([run.path for run in runs], data=data, num_files=64)
    sides = [(run, way) for run in runs for way in ways_of(run, device)]
    images = {run.path: _images(run, files, max(batches)) for run in runs}
    budget = _SECONDS_EACH * len(sides) if seconds is None else seconds
    times = [
        Times(
            Facts(
                runtime=f"torch {torch.__version__}",
                precision=way.precision,
                device=torch.cuda.get_device_name(device),
                threads=None,
            )
        )
        for _, way in sides
    ]
    for batch in batches:
        timers = [
            Timer(way, images[run.path], batch=batch, device=device)
            for run, way in sides
        ]
        found = take_turns(
            timers,
            seconds=budget / len(batches),
            min_rounds=_MIN_ROUNDS,
            max_rounds=_MAX_ROUNDS,
            is_enough=_is_enough,
            shuffle_seed=SEED,
            progress=partial(progress, f"batches of {batch}"),
        )
        for one, rounds in zip(times, found, strict=True):
            one.calls[batch] = rounds
    baselines = {
        run.path: one
        for (run, way), one in zip(sides, times, strict=True)
        if way.kind == BASELINE
    }
    rows = [
        make_row(
            Subject(
                name=f"{run.name} {way.kind}" if len(runs) > 1 else way.kind,
                run=run.name,
                kind=way.kind,
                networks=tuple(one.config.model.name for one in run.networks()),
                size_px=images[run.path].shape[1],
                size_bytes=way.size_bytes,
                accuracy=None,
            ),
            of_one,
            baselines.get(run.path),
        )
        for (run, way), of_one in zip(sides, times, strict=True)
    ]
    return make_benchmark(
        rows,
        batches=batches,
        threads=torch.get_num_threads(),
        seconds=budget,
        num_files=len(files),
        command=command,
    )


def ways_of(run: Run, device: torch.device) -> list[Way]:
    """Return the ways to run a run's network, TorchScript first where it is there.

    Raises:
        RunError: The run has no weights, or they were changed.
        ArtefactError: The TorchScript is damaged, or of other weights.
    """
    size = sum(one.weights_path.stat().st_size for one in run.networks())
    ways = []
    path = run.path / "export" / "torchscript"
    if is_artefact(path):
        artefact = open_artefact(path)
        check_weights([artefact])
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # deprecated, and that of the baseline study
            jit: Any = torch.jit
            script = jit.load(str(artefact.graph_path), map_location=device).eval()
        ways.append(
            Way(BASELINE, _fp32(device), partial(_probs, script), artefact.size_bytes)
        )
    plain = partial(_probs, _graph(run, device))
    graph = _graph(run, device)
    for member in graph.members:
        member.module = _InBf16(member.module)
    bf16 = partial(_probs, graph)
    ways += [
        Way("run", _fp32(device), plain, size),
        Way("run bf16 channels-last", "bf16", bf16, size),
    ]
    if device.type == "cuda":
        ways += [
            Way("run, CUDA graph", _fp32(device), Replayed(plain), size),
            Way("run bf16 channels-last, CUDA graph", "bf16", Replayed(bf16), size),
        ]
    return ways


class Replayed:
    """A pass that is recorded as a CUDA graph at its first call for a batch size."""

    def __init__(self, predict: Callable[[Tensor], Tensor]) -> None:
        self._predict = predict
        self._recorded: dict[int, tuple[Any, Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Return probabilities, which the next call overwrites."""
        if len(images) not in self._recorded:
            self._recorded[len(images)] = self._record(images)
        graph, place, probs = self._recorded[len(images)]
        place.copy_(images)
        graph.replay()
        return probs

    def _record(self, images: Tensor) -> tuple[Any, Tensor, Tensor]:
        place = images.clone()
        # torch requires a warm-up on another stream than the default one: allocations
        # of a first pass cannot be recorded.
        cuda: Any = torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(3):
                self._predict(place)
        cuda.current_stream().wait_stream(stream)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            probs = self._predict(place)
        return graph, place, probs


class Timer:
    """One side of the turns: a way with a batch size, warmed up.

    Args:
        way: The way to run the network.
        images: (M, S, S, 3), uint8; each call takes the next of them.
        batch: Batch size.
        device: A CUDA device, or the CPU with its usual clock.
    """

    def __init__(
        self,
        way: Way,
        images: NDArray[np.uint8],
        *,
        batch: int,
        device: torch.device,
    ) -> None:
        self._predict = way.predict
        self._batch = batch
        self._images = torch.from_numpy(images).to(device)
        self._is_cuda = device.type == "cuda"
        self._next = 0
        for _ in range(_NUM_WARM_UPS):
            self._seconds_of_call()

    def __call__(self, _round: int) -> list[float]:
        """Return the seconds of the calls of a turn."""
        return [self._seconds_of_call() for _ in range(NUM_CALLS)]

    def _seconds_of_call(self) -> float:
        places = torch.arange(self._next, self._next + self._batch)
        images = self._images[places % len(self._images)]
        self._next += self._batch
        if not self._is_cuda:
            start = time.perf_counter()
            self._predict(images)
            return time.perf_counter() - start
        cuda: Any = torch.cuda
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        self._predict(images)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000


class _InBf16(nn.Module):
    """A timm network with weights and activations in bf16, channels last.

    Not autocast, which would turn the weights into bf16 again in every call. Around it
    everything stays in fp32: normalization, temperature and softmax.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module: Any = module.to(
            dtype=torch.bfloat16, memory_format=torch.channels_last
        )

    def forward_features(self, values: Tensor) -> Tensor:
        """Return features of normalized images, (N, 3, S, S), fp32."""
        images = values.to(torch.bfloat16, memory_format=torch.channels_last)
        features: Tensor = self.module.forward_features(images)
        return features

    def forward_head(self, features: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits, or the embedding, in fp32."""
        head: Tensor = self.module.forward_head(features, pre_logits=pre_logits)
        return head.float()


def _is_enough(found: list[list[list[float]]]) -> bool:
    return are_narrow(
        [[median(calls) for calls in rounds] for rounds in found], width=WIDTH
    )


def _probs(graph: Any, images: Tensor) -> Tensor:
    with torch.inference_mode():
        probs: Tensor = graph(images)[0]
    return probs


def _graph(run: Run, device: torch.device) -> ServingGraph:
    pairs = [
        (card, load_model(card, one.weights_path))
        for one in run.networks()
        for card in [one.card()]
    ]
    return ServingGraph(pairs).to(device).eval()


def _fp32(device: torch.device) -> str:
    """Return the number type that convolutions in fp32 really use."""
    cudnn: Any = torch.backends.cudnn
    if device.type == "cuda" and cudnn.conv.fp32_precision == "tf32":
        return "tf32"
    return "fp32"


def _images(run: Run, files: Sequence[Path], num: int) -> NDArray[np.uint8]:
    card = run.networks()[0].card(check_weights=False)
    return np.stack(
        [
            load_square(
                file,
                size_px=card.size_px,
                fit=card.fit,
                in_chans=3,
                limits=image_limits(run.config.data),
            )
            for file in files[: max(num, 16)]
        ]
    )
