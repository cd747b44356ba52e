"""An artefact in the runtime that it was made for: arrays in, arrays out.

Each runtime is imported when an artefact needs it and not before; ONNX Runtime and
OpenVINO need no torch. What the newcomer would get wrong: a runtime chooses its own
precision. OpenVINO computes in bf16 wherever the processor can, unless it is told, and
in fp32 where it was told bf16 and the processor cannot. So every session is told, and
`Session.precision` is what the runtime then says of the layers that it really runs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.errors import ArtefactError, ConfigError
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from tumorlens.deploy.artefact import Artefact


_PRECISION_OF = {
    "f32": "fp32",
    "float32": "fp32",
    "f16": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "i8": "int8",
    "u8": "int8",
    "int8": "int8",
    "uint8": "int8",
}
"""How the runtimes name number types -> our word."""

_OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")

_ONNX_LAYERS = {
    **dict.fromkeys(
        ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"), "fp32"
    ),
    **dict.fromkeys(
        (
            *("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger"),
            *("MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        ),
        "int8",
    ),
}
"""Operators of ONNX Runtime that multiply -> what in. On a CPU there is no bf16."""


@dataclass(frozen=True)
class Answers:
    """What a graph gives for N images."""

    probs: NDArray[np.float32]
    """(N, C), each row sums to 1."""
    logits: NDArray[np.float32]
    """(N, C)."""
    embedding: NDArray[np.float32]
    """(N, E)."""


@dataclass(frozen=True)
class Session:
    """A graph that is loaded and can be asked."""

    ask: Callable[[NDArray[np.uint8]], Answers]
    """Without checks; see `__call__`."""
    size_px: int
    """Side of the images that it takes."""

    find_precision: Callable[[], str]
    """Asks the runtime; see `precision`."""

    runtime: str
    """Name and version, such as "onnxruntime 1.32.0"."""
    device: str
    """Such as "cpu" or "cuda"."""
    threads: int
    """How many it computes with."""

    @cached_property
    def precision(self) -> str:
        """What most layers that multiply compute in: "fp32", "bf16", "int8" ...

        The runtime says so of the graph as it runs it: OpenVINO of its compiled model,
        ONNX Runtime in a profile of one image (a moment, and only when asked), torch by
        the numbers that the graph holds. "unknown" where it says nothing.
        """
        return self.find_precision()

    def __call__(self, images: NDArray[np.uint8]) -> Answers:
        """Answer for images.

        Args:
            images: Shape (N, S, S, 3), N > 0, uint8; in any order in memory.

        Raises:
            ValueError: Another shape or type.
        """
        check_images(images, self.size_px)
        return self.ask(np.ascontiguousarray(images))


def open_session(artefact: Artefact, *, threads: int | None = None) -> Session:
    """Load an artefact's graph into its runtime, on the CPU.

    What the graph takes and gives is compared with the card: as the runtime states it,
    or for torch, which does not, with what comes of one empty image.

    Args:
        artefact: From `artefacts.open_artefact`, whose files are checked.
        threads: To compute with; `None` takes as many as there are processors. For the
            formats of torch this sets the number of the whole process: torch has no
            other, and the last session that was opened wins.

    Raises:
        ArtefactError: The runtime does not take the graph, or it is not the one that
            the card describes.
        MissingExtraError: The runtime is not installed.
        ConfigError: `threads` is not positive.
    """
    if threads is not None and threads < 1:
        raise ConfigError(
            f"expected at least 1 thread, got {threads}", hint="leave --threads out"
        )
    kind = artefact.card.kind
    if kind.startswith("onnx"):
        opened = _open_onnx
    elif kind.startswith("openvino"):
        opened = _open_openvino
    else:
        opened = _open_torch
    return opened(artefact, threads or num_processors())


@cache
def openvino_core() -> Any:
    """Return the one `openvino.Core` of this process.

    Each core that reaches the CPU gives the thread that does so another stack to handle
    signals on, and takes it away when the core goes. With several cores what is left is
    a stack that is gone, and the next Ctrl-C ends the process with a crash. So there is
    one, it stays, and a thread that is over takes the stack with it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    core = require("openvino").Core()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(core.get_property, "CPU", "FULL_DEVICE_NAME").result()
    return core


def num_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def check_images(images: NDArray[np.uint8], size_px: int) -> None:
    """Refuse an array that a graph does not take, before a runtime does it obscurely.

    Raises:
        ValueError: The shape is not (N, S, S, 3) with N > 0, or the type not uint8.
    """
    expected = (size_px, size_px, 3)
    if images.dtype != np.uint8 or images.shape[1:] != expected or not len(images):
        raise ValueError(
            f"expected images (N, {size_px}, {size_px}, 3) of uint8 with N > 0, got "
            f"{images.shape} of {images.dtype}"
        )


def _open_onnx(artefact: Artefact, threads: int) -> Session:
    onnxruntime = require("onnxruntime", needed_by=_format(artefact))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(artefact.graph_path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has a dozen kinds of its own
        raise _refused(artefact, "ONNX Runtime", error) from None
    _check_card(
        artefact,
        [value.shape for value in session.get_inputs()],
        [value.shape for value in session.get_outputs()],
    )
    return Session(
        ask=lambda images: Answers(*session.run(None, {"images": images})),
        size_px=artefact.card.size_px,
        find_precision=lambda: _onnx_precision(artefact),
        runtime=f"onnxruntime {onnxruntime.__version__}",
        device="cpu",
        threads=threads,
    )


def _open_openvino(artefact: Artefact, threads: int) -> Session:
    openvino = require("openvino", needed_by=_format(artefact))
    hint = "bf16" if artefact.card.precision == "bf16" else "f32"
    try:
        compiled = openvino_core().compile_model(
            str(artefact.graph_path),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": hint,
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
    except Exception as error:  # OpenVINO raises RuntimeError and others
        raise _refused(artefact, "OpenVINO", error) from None
    _check_card(
        artefact,
        [_openvino_shape(value) for value in compiled.inputs],
        [_openvino_shape(value) for value in compiled.outputs],
    )
    request = compiled.create_infer_request()

    def ask(images: NDArray[np.uint8]) -> Answers:
        found = request.infer([images], share_inputs=True)
        return Answers(*(np.array(found[number]) for number in range(3)))

    return Session(
        ask=ask,
        size_px=artefact.card.size_px,
        find_precision=lambda: openvino_precision(compiled),
        runtime=f"openvino {openvino.__version__.partition('-')[0]}",
        device="cpu",
        threads=int(compiled.get_property("INFERENCE_NUM_THREADS")),
    )


def _open_torch(artefact: Artefact, threads: int) -> Session:
    torch = require("torch", needed_by=_format(artefact))
    torch.set_num_threads(threads)
    try:
        graph = _load_torch(artefact)
    except Exception as error:  # zip, pickle and torch errors
        raise _refused(artefact, "torch", error) from None

    def ask(images: NDArray[np.uint8]) -> Answers:
        # torch warns of an array that it could not write to, as of a memory map.
        given = images if images.flags.writeable else images.copy()
        with torch.inference_mode():
            parts = graph(torch.from_numpy(given))
        return Answers(*(part.numpy() for part in parts))

    size_px = artefact.card.size_px
    empty = torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            given = [tuple(part.shape) for part in graph(empty)]
    except Exception as error:  # whatever the layers raise
        raise _refused(artefact, "torch", error) from None
    _check_card(artefact, [tuple(empty.shape)], given)
    return Session(
        ask=ask,
        size_px=artefact.card.size_px,
        find_precision=lambda: _torch_precision(graph),
        runtime=f"torch {torch.__version__}",
        device="cpu",
        threads=threads,
    )


def _format(artefact: Artefact) -> str:
    return f"the format {artefact.card.kind}"


def _load_torch(artefact: Artefact) -> Any:
    torch = require("torch")
    if artefact.card.kind == "torch-export":
        return torch.export.load(artefact.graph_path).module()
    import warnings

    with warnings.catch_warnings():
        # Deprecated since torch 2.11; it is here as the legacy format that it is.
        warnings.simplefilter("ignore")
        return torch.jit.load(str(artefact.graph_path), map_location="cpu").eval()


def _check_card(
    artefact: Artefact,
    taken: Sequence[Sequence[object]],
    given: Sequence[Sequence[object]],
) -> None:
    """Refuse a graph that is not the one that `model.json` describes.

    Args:
        artefact: With its card.
        taken: Shapes of what the graph takes; an axis that is no number is free.
        given: Shapes of what it gives.

    Raises:
        ArtefactError: An axis differs.
    """
    card = artefact.card
    side, num_classes = card.size_px, len(card.classes)
    widths = (num_classes, num_classes, card.embedding_size)
    for verb, shapes, expected in (
        ("takes", taken, [(None, side, side, 3)]),
        ("gives", given, [(None, width) for width in widths]),
    ):
        if len(shapes) == len(expected) and all(map(_may_be, shapes, expected)):
            continue
        raise ArtefactError(
            f"{artefact.path / 'model.json'} promises a graph that {verb} "
            f"{_written(expected)}, and {artefact.graph_path.name} {verb} "
            f"{_written(shapes)}",
            hint="one of the two is from another export: export the run again",
        )


def _may_be(shape: Sequence[object], expected: Sequence[object]) -> bool:
    """Whether a shape agrees with another wherever both have numbers."""
    return len(shape) == len(expected) and all(
        one == other or not (isinstance(one, int) and isinstance(other, int))
        for one, other in zip(shape, expected, strict=True)
    )


def _written(shapes: Sequence[Sequence[object]]) -> str:
    return ", ".join(f"({', '.join(['N', *map(str, axes[1:])])})" for axes in shapes)


def _openvino_shape(value: Any) -> tuple[object, ...]:
    return tuple(
        axis.get_length() if axis.is_static else None for axis in value.partial_shape
    )


def openvino_precision(compiled: Any) -> str:
    """Return what most multiplying layers of a compiled model compute in."""
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return _most_frequent(
        str(layer["runtimePrecision"].value)
        for layer in layers
        if layer["layerType"].value in _OPENVINO_LAYERS
    )


def has_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this processor.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    core = openvino_core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _onnx_precision(artefact: Artefact) -> str:
    # The graph that runs is not the one in the file: what was fused, and what was left
    # floating for want of an int8 kernel, only a profile says.
    onnxruntime = require("onnxruntime")
    size_px = artefact.card.size_px
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(artefact.graph_path), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {"images": np.zeros((1, size_px, size_px, 3), np.uint8)})
        profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    names = (event.get("args", {}).get("op_name") for event in profile)
    return _most_frequent(_ONNX_LAYERS[name] for name in names if name in _ONNX_LAYERS)


def _torch_precision(graph: Any) -> str:
    return _most_frequent(
        str(tensor.dtype).removeprefix("torch.")
        for tensor in _tensors_of(graph)
        if tensor.dim() > 1 and tensor.is_floating_point()
    )


def _tensors_of(graph: Any) -> Iterator[Any]:
    yield from graph.parameters()
    if not hasattr(graph, "inlined_graph"):
        return
    # Freezing has made constants of the parameters of TorchScript.
    for node in graph.inlined_graph.nodes():
        if node.kind() == "prim::Constant" and str(node.output().type()) == "Tensor":
            yield node.t("value")


def _most_frequent(names: Iterable[str]) -> str:
    found = Counter(_PRECISION_OF.get(name, name) for name in names).most_common(1)
    return found[0][0] if found else "unknown"


def _refused(artefact: Artefact, runtime: str, error: Exception) -> ArtefactError:
    # All of it in one line: the first names a place in the runtime's own source.
    why = " ".join(str(error).split())[:600] or type(error).__name__
    return ArtefactError(
        f"{runtime} does not take {artefact.graph_path}: {why}",
        hint="update the runtime to the version in model.json (made_with), or export "
        "the run again here",
    )
