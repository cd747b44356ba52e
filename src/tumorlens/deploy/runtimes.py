"""An artefact in the runtime that it was made for: arrays in, arrays out.

Each runtime is imported when an artefact needs it and not before; ONNX Runtime and
OpenVINO need no torch. A runtime chooses its own precision: by default OpenVINO uses
bf16 wherever the processor can, and it uses fp32 if bf16 is set and the processor lacks
it. So every session sets its precision, and `Session.precision` is what the runtime
reports of the layers that it really runs.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.errors import ArtefactError, ConfigError
from tumorlens.extras import require
from tumorlens.system import num_processors

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
"""Name of a number type in a runtime -> our name."""

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
"""Multiplying operators of ONNX Runtime -> precision. On a CPU there is no bf16."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of a graph for N images."""

    probs: NDArray[np.float32]
    """Shape (N, C), each row sums to 1."""
    logits: NDArray[np.float32]
    """Shape (N, C)."""
    embedding: NDArray[np.float32]
    """Shape (N, E)."""


@dataclass(frozen=True)
class Session:
    """A graph that is loaded into its runtime. Threads may share it."""

    infer: Callable[[NDArray[np.uint8]], Outputs]
    """Runs the graph without checks; see `__call__`."""
    size_px: int
    """Side of the input images."""

    find_precision: Callable[[], str]
    """Reads the precision from the runtime; see `precision`."""

    runtime: str
    """Name and version, such as "onnxruntime 1.32.0"."""
    device: str
    """Such as "cpu" or "cuda"."""
    threads: int
    """Number of threads that it computes with."""

    @cached_property
    def precision(self) -> str:
        """Number type of most multiplying layers: "fp32", "bf16", "int8" ...

        The source is the graph as the runtime executes it: the compiled model of
        OpenVINO, a profile of one image in ONNX Runtime (made at the first use), the
        weights of a torch graph. "unknown" where there is no such layer.
        """
        return self.find_precision()

    def __call__(self, images: NDArray[np.uint8]) -> Outputs:
        """Run the graph.

        Args:
            images: Shape (N, S, S, 3), N > 0, uint8; in any order in memory.

        Raises:
            ValueError: The shape or type is another one.
        """
        check_images(images, self.size_px)
        return self.infer(np.ascontiguousarray(images))


def open_session(artefact: Artefact, *, threads: int | None = None) -> Session:
    """Load an artefact's graph into its runtime, on the CPU.

    Inputs and outputs of the graph are compared with the card: as the runtime reports
    them, or, for torch, as one empty image shows them.

    Args:
        artefact: From `open_artefact`, which has checked its files.
        threads: Number of threads; `None` takes one per processor. For the formats of
            torch this is the number of the whole process, so the last session that was
            opened wins.

    Raises:
        ArtefactError: The runtime does not take the graph, or the card describes
            another graph.
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

    Loading the CPU plugin installs a `sigaltstack` on the calling thread and frees it
    with the Core. A second Core leaves the main thread with a freed stack, and the next
    SIGINT segfaults. So: one Core per process, created in a throw-away thread.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    core = require("openvino").Core()
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(core.get_property, "CPU", "FULL_DEVICE_NAME").result()
    return core


def check_images(images: NDArray[np.uint8], size_px: int) -> None:
    """Refuse an array of another shape, with a clearer message than a runtime gives.

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
    except Exception as error:  # ONNX Runtime has a dozen classes of errors
        raise _refused(artefact, "ONNX Runtime", error) from None
    _check_card(
        artefact,
        [value.shape for value in session.get_inputs()],
        [value.shape for value in session.get_outputs()],
    )
    return Session(
        infer=lambda images: Outputs(*session.run(None, {"images": images})),
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
    # A request serves one call at a time, and refuses a second. There are as many as
    # calls have ever overlapped; each has memory for the layers of its own.
    idle = deque([compiled.create_infer_request()])

    def infer(images: NDArray[np.uint8]) -> Outputs:
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            found = request.infer([images], share_inputs=True)
            return Outputs(*(np.array(found[number]) for number in range(3)))
        finally:
            idle.append(request)

    return Session(
        infer=infer,
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

    def infer(images: NDArray[np.uint8]) -> Outputs:
        # torch warns of arrays that are read-only, such as a memory map.
        given = images if images.flags.writeable else images.copy()
        with torch.inference_mode():
            parts = graph(torch.from_numpy(given))
        return Outputs(*(part.numpy() for part in parts))

    size_px = artefact.card.size_px
    empty = torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8)
    try:
        with torch.inference_mode():
            given = [tuple(part.shape) for part in graph(empty)]
    except Exception as error:  # whatever the layers raise
        raise _refused(artefact, "torch", error) from None
    _check_card(artefact, [tuple(empty.shape)], given)
    return Session(
        infer=infer,
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
        # Deprecated since torch 2.11; supported here as a legacy format.
        warnings.simplefilter("ignore")
        return torch.jit.load(str(artefact.graph_path), map_location="cpu").eval()


def _check_card(
    artefact: Artefact,
    taken: Sequence[Sequence[object]],
    given: Sequence[Sequence[object]],
) -> None:
    """Refuse a graph other than that which `model.json` describes.

    Args:
        artefact: The artefact.
        taken: Shapes of the graph's inputs; an axis that is no number is free.
        given: Shapes of its outputs.

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
    """Return the number type of most multiplying layers of a compiled model."""
    layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
    return _most_frequent(
        str(layer["runtimePrecision"].value)
        for layer in layers
        if layer["layerType"].value in _OPENVINO_LAYERS
    )


def has_bf16() -> bool:
    """Whether OpenVINO can compute in bf16 on this processor.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    core = openvino_core()
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _onnx_precision(artefact: Artefact) -> str:
    # The graph that runs is not the one in the file: only a profile shows which nodes
    # were fused, or left floating for lack of an int8 kernel.
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
    # Freezing turns the parameters of TorchScript into constants.
    for node in graph.inlined_graph.nodes():
        if node.kind() == "prim::Constant" and str(node.output().type()) == "Tensor":
            yield node.t("value")


def _most_frequent(names: Iterable[str]) -> str:
    found = Counter(_PRECISION_OF.get(name, name) for name in names).most_common(1)
    return found[0][0] if found else "unknown"


def _refused(artefact: Artefact, runtime: str, error: Exception) -> ArtefactError:
    # All lines, joined: the first one only names a place in the runtime's source.
    why = " ".join(str(error).split())[:600] or type(error).__name__
    return ArtefactError(
        f"{runtime} does not take {artefact.graph_path}: {why}",
        hint="update the runtime to the version in model.json (made_with), or export "
        "the run again here",
    )
