"""A network becomes the files of a graph, one function for each format.

The graph is `graph.ServingGraph`; the quantized formats are made from earlier ones and
from training images. Whether a file is good is decided in `tumorlens.deploy.parity`.
The exporters print and warn a lot: `_quiet`, and nothing else, silences them.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tumorlens import extras
from tumorlens.deploy.artefact import GRAPH_FILES, OUTPUTS, Kind
from tumorlens.deploy.runtimes import openvino_core
from tumorlens.errors import ArtefactError, DataError, TumorlensError
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.deploy.graph import ServingGraph

OPSET = 20
"""Operator set of ONNX: the exporter's default, and every runtime of the last two years
reads it."""

NUM_CALIBRATION = 300
"""Number of training images for the ranges of quantization: the default of NNCF."""

NUM_HELD_OUT = 128
"""Number of other training images on which careful quantization ranks the layers. Each
layer needs a pass over all of them: more take minutes and change the order little."""

MIN_HELD_OUT = 10
"""With fewer images the order of the layers would be chance."""

_FREE_MIB = 64
"""With less free disk space, a failure is reported as a full disk."""

_LIBRARIES: dict[str, tuple[str, ...]] = {
    "torchscript": ("torch", "timm"),
    "torch-export": ("torch", "timm"),
    "onnx": ("torch", "timm", "onnx", "onnxscript", "onnxruntime"),
    "openvino": ("torch", "timm", "onnx", "onnxscript", "openvino"),
}

_ONNX_QUANTIZED = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)
"""Operators to quantize. Activations are among them: otherwise a Relu would run in fp32
between two conversions, and the range of its input would waste a bit on negatives."""


@dataclass(frozen=True)
class Source:
    """What all formats are made from."""

    graph: ServingGraph
    """On the CPU, in evaluation mode."""
    size_px: int
    training_images: Callable[[int, int], NDArray[np.uint8]]
    """Images from one number to another, in an order that deals the classes in turn:
    shape (N, S, S, 3), fewer at the end. For quantization only."""
    num_training: int
    """Number of training images."""
    scratch: Path
    """Folder for intermediate files, such as the ONNX file that OpenVINO converts."""


@dataclass(frozen=True)
class Node:
    """A node of a graph of either library."""

    name: str
    inputs: set[str]
    """Names of values."""
    outputs: set[str]
    is_layer: bool = False
    """Whether it multiplies with weights."""


def libraries_of(kind: Kind) -> dict[str, str]:
    """Return the versions of the libraries that make and prove a graph of a kind.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    base = kind.removesuffix("-int8").removesuffix("-bf16")
    names = _LIBRARIES[base] + (("nncf",) if kind == "openvino-int8" else ())
    with _quiet():
        for name in names:
            extras.require(name, needed_by=f"the format {kind}")
    return {name: version(name) for name in names}


def shares_of(num_training: int) -> tuple[int, int] | None:
    """Return how careful quantization divides the training images.

    Args:
        num_training: Number of training images.

    Returns:
        The number for calibration, which come first, and the number held out:
        `NUM_CALIBRATION` and `NUM_HELD_OUT`, or the same shares of fewer; `None` where
        fewer than `MIN_HELD_OUT` could be held out.

    Example:
        >>> shares_of(1000), shares_of(128), shares_of(30)
        ((300, 128), (90, 38), None)
    """
    wanted = NUM_CALIBRATION + NUM_HELD_OUT
    num_held_out = min(NUM_HELD_OUT, num_training * NUM_HELD_OUT // wanted)
    if num_held_out < MIN_HELD_OUT:
        return None
    return min(NUM_CALIBRATION, num_training - num_held_out), num_held_out


def write_graph(
    kind: Kind, source: Source, folder: Path, *, nearness: float | None = None
) -> None:
    """Write the files of a graph into a folder.

    Args:
        kind: The format.
        source: What it is made from.
        folder: Existing folder.
        nearness: For int8: quantize with care, so that on training images outside the
            calibration the mean distance from the floating graph shrinks to this share
            of that of plain quantization. Some layers stay floating for it. Requires
            that `shares_of` is not `None`.

    Raises:
        ArtefactError: The network cannot be written in this format.
        DataError: The disk is full, or the folder cannot be written.
    """
    writers: dict[Kind, Callable[[Source, Path], None]] = {
        "torchscript": _write_torchscript,
        "torch-export": _write_torch_export,
        "onnx": _write_onnx,
        "onnx-int8": _write_onnx_int8,
        "openvino": _write_openvino,
        "openvino-bf16": _write_openvino,
        "openvino-int8": _write_openvino_int8,
    }
    path = folder / GRAPH_FILES[kind][0]
    with _as_our_errors(kind, folder), _quiet():
        if nearness is None:
            writers[kind](source, path)
        else:
            _write_openvino_int8_with_care(source, path, nearness)


def _write_torchscript(source: Source, path: Path) -> None:
    with torch.no_grad():
        jit: Any = torch.jit
        # torch would trace a second time and compare. The parity check compares more:
        # every val image, from file to label, with the written file.
        traced = jit.trace(source.graph, _example(source), check_trace=False)
        jit.freeze(traced).save(str(path))


def _write_torch_export(source: Source, path: Path) -> None:
    torch.export.save(_exported(source), path)


def _write_onnx(source: Source, path: Path) -> None:
    onnx = require("onnx")
    program: Any = torch.onnx.export(
        _exported(source),
        dynamo=True,
        input_names=["images"],
        output_names=list(OUTPUTS),
        opset_version=OPSET,
        verbose=False,
    )
    program.save(str(path), external_data=False)
    model = onnx.load(path)
    old = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    _name_batch_axis(model, old)
    _forget_sources(model)
    onnx.save(model, path)


def _write_openvino(source: Source, path: Path) -> None:
    openvino = require("openvino")
    model = openvino.convert_model(_onnx_of(source))
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_onnx_int8(source: Source, path: Path) -> None:
    onnx = require("onnx")
    quantization = require("onnxruntime.quantization")
    shape_inference = require("onnxruntime.quantization.shape_inference")
    prepared = source.scratch / "prepared.onnx"
    shape_inference.quant_pre_process(
        _onnx_of(source), prepared, skip_symbolic_shape=True
    )
    images = iter(source.training_images(0, NUM_CALIBRATION))

    # `quantize_static` checks the base class, which only the deferred import knows.
    base: Any = quantization.CalibrationDataReader

    class Reader(base):  # type: ignore[misc] # mypy knows no class in a variable
        def get_next(self) -> dict[str, Any] | None:
            image = next(images, None)
            return None if image is None else {"images": image[None]}

    quantization.quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=list(_ONNX_QUANTIZED),
        nodes_to_exclude=outside_network(_onnx_nodes(onnx.load(prepared))),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _onnx_nodes(model: Any) -> list[Node]:
    return [
        Node(
            node.name,
            set(node.input),
            set(node.output),
            is_layer=node.op_type in ("Conv", "Gemm", "MatMul"),
        )
        for node in model.graph.node
    ]


def _openvino_nodes(model: Any) -> list[Node]:
    layers = ("Convolution", "GroupConvolution", "MatMul")
    return [
        Node(
            op.get_friendly_name(),
            {value.get_node().get_friendly_name() for value in op.input_values()},
            {op.get_friendly_name()},
            is_layer=op.get_type_name() in layers,
        )
        for op in model.get_ordered_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
    ]


def outside_network(nodes: Sequence[Node]) -> list[str]:
    """Return the names of a graph's nodes before or after the network itself.

    Normalization comes before every layer that multiplies, softmax and averages after
    the last: neither costs time, and in 8 bits either would cost accuracy. By default
    NNCF quantizes an average of probabilities, which then no longer sum to 1.

    Args:
        nodes: Nodes in topological order.

    Example:
        >>> outside_network([
        ...     Node("scale", {"x"}, {"a"}), Node("conv", {"a"}, {"b"}, is_layer=True),
        ...     Node("relu", {"b"}, {"c"}), Node("fc", {"c"}, {"d"}, is_layer=True),
        ...     Node("softmax", {"d"}, {"e"}),
        ... ])
        ['scale', 'softmax']
    """
    is_layer = [node.is_layer for node in nodes]
    edges = [(node.inputs, node.outputs) for node in nodes]
    is_after = _reached(edges, is_layer)
    back = [(outputs, inputs) for inputs, outputs in reversed(edges)]
    is_before = _reached(back, is_layer[::-1])[::-1]
    both = zip(nodes, is_after, is_before, strict=True)
    return [
        node.name
        for node, after, before in both
        if not (node.is_layer or (after and before))
    ]


def _reached(
    edges: list[tuple[set[str], set[str]]], is_start: list[bool]
) -> list[bool]:
    """Return which nodes depend on a start node; nodes are in topological order."""
    values: set[str] = set()
    found = []
    for (inputs, outputs), starts in zip(edges, is_start, strict=True):
        found.append(not values.isdisjoint(inputs))
        if found[-1] or starts:
            values |= outputs
    return found


def _write_openvino_int8(source: Source, path: Path) -> None:
    openvino, nncf = require("openvino"), require("nncf")
    model = openvino.convert_model(_onnx_of(source))
    quantized = _in_a_thread(
        lambda: nncf.quantize(
            model,
            _calibration(source, NUM_CALIBRATION),
            subset_size=NUM_CALIBRATION,
            ignored_scope=_around(model),
        )
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)


def _write_openvino_int8_with_care(source: Source, path: Path, nearness: float) -> None:
    """Leave the most sensitive layers floating, until the graph is near enough.

    Accuracy on training images does not serve as criterion: a network has learnt them
    by heart, and keeps their labels while it loses others. Probabilities move on any
    image. With few images the plain version was calibrated on the held-out ones too, so
    it looks better on them than it is; the target is then stricter than needed.
    """
    openvino, nncf = require("openvino"), require("nncf")
    shares = shares_of(source.num_training)
    assert shares is not None
    num_calibration, num_held_out = shares
    model = openvino.convert_model(_onnx_of(source))
    held_out = source.training_images(num_calibration, num_calibration + num_held_out)
    images = [image[None] for image in held_out]
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino_core()

    def probs_of(compiled: Any) -> NDArray[np.float32]:
        return np.concatenate([np.array(compiled([image])[0]) for image in images])

    reference = probs_of(core.compile_model(model, "CPU", hint))

    def agreement(compiled: Any, some: Any) -> tuple[float, list[float]]:
        # NNCF passes subsets of the images, each with its position.
        numbers = [number for number, _ in some]
        found = np.concatenate(
            [np.array(compiled([images[number]])[0]) for number in numbers]
        )
        agreed = 1 - np.abs(found - reference[numbers]).sum(axis=1) / 2  # (N,)
        return float(agreed.mean()), agreed.tolist()

    plain = core.compile_model(path, "CPU", hint)
    distance = 1 - agreement(plain, enumerate(images))[0]
    quantized = _in_a_thread(
        lambda: nncf.quantize_with_accuracy_control(
            model,
            _calibration(source, num_calibration),
            nncf.Dataset(list(enumerate(images))),
            agreement,
            max_drop=nearness * distance,
            subset_size=num_calibration,
            ignored_scope=_around(model),
        )
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)


def _in_a_thread(quantize: Callable[[], Any]) -> Any:
    """Run an NNCF call in a worker thread.

    NNCF creates OpenVINO Cores of its own; see `runtimes.openvino_core` for why that
    must not happen on the main thread.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(quantize).result()


def _calibration(source: Source, num: int) -> Any:
    images = source.training_images(0, num)
    return require("nncf").Dataset([image[None] for image in images])


def _around(model: Any) -> Any:
    names = outside_network(_openvino_nodes(model))
    return require("nncf").IgnoredScope(names=names, validate=False)


def _exported(source: Source) -> Any:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        source.graph, (_example(source),), dynamic_shapes=({0: batch},)
    )
    # They name files of this machine, and with them often its user.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _example(source: Source) -> torch.Tensor:
    # Two images: the exporter would take an axis of length 1 for constant.
    shape = (2, source.size_px, source.size_px, 3)
    return torch.zeros(shape, dtype=torch.uint8)


def _onnx_of(source: Source) -> Path:
    path = source.scratch / "graph.onnx"
    if not path.is_file():
        _write_onnx(source, path)
    return path


def _name_batch_axis(model: Any, old: str) -> None:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == old:
                dim.dim_param = "batch"


@contextmanager
def _as_our_errors(kind: Kind, folder: Path) -> Iterator[None]:
    """Turn the error of a failed export into one of ours.

    Raises:
        ArtefactError: The exporter does not take the network.
        DataError: The disk is full, or the folder cannot be written.
        TumorlensError: Another error that is ours already.
    """
    try:
        yield
    except TumorlensError:
        raise
    except Exception as error:
        # Broad on purpose, and only around the exporters: an unsupported network makes
        # them raise anything, and a full disk RuntimeError.
        first = (str(error).strip().splitlines() or ["nothing more is known"])[0]
        why = f"{first[:200]} ({type(error).__name__})"
        free_mib = shutil.disk_usage(folder).free >> 20
        if isinstance(error, OSError) or free_mib < _FREE_MIB:
            raise DataError(
                f"cannot write {folder}: {why}; the disk has {free_mib} MiB free",
                hint="free some space and export again",
            ) from error
        raise ArtefactError(
            f"the network cannot be written as {kind}: {why}",
            hint="try another --format: not every network can be written in every one",
        ) from error


def _forget_sources(model: Any) -> None:
    # The exporter stores the source file of every node, with the path on this machine.
    for part in (*model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the output of the exporters, in this one place."""
    rich = require("rich")
    names = ("nncf", "torch.onnx", "onnxscript", "onnx_ir", "torch.utils", "root")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    # NNCF draws its bars on rich's global console; ours are on another.
    console = rich.get_console()
    was_quiet, console.quiet = console.quiet, True
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        console.quiet = was_quiet
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
