"""A network becomes the files of a graph, one function for each format.

The graph is `serving_graph.ServingGraph`; the quantized formats come of those before
them and of training images. Whether a file is any good, `tumorlens.parity` says.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tumorlens.artefacts import GRAPH_FILES, OUTPUTS, Kind
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from tumorlens.serving_graph import ServingGraph

OPSET = 20
"""Of ONNX: what the exporter writes by itself, and every runtime of the last two years
reads."""


@dataclass(frozen=True)
class Source:
    """What the files are made of."""

    graph: ServingGraph
    """On the CPU, in evaluation mode."""
    size_px: int
    calibration: NDArray[np.uint8]
    """Training images, (N, S, S, 3): what quantization takes its ranges from."""
    scratch: Path
    """A folder for what is between: the ONNX file that OpenVINO's comes of."""


def write_graph(kind: Kind, source: Source, folder: Path) -> None:
    """Write the files of a graph into a folder.

    Raises:
        MissingExtraError: A library of the extra `export` is not installed.
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
    with _quiet():
        writers[kind](source, folder / GRAPH_FILES[kind][0])


def _write_torchscript(source: Source, path: Path) -> None:
    with torch.no_grad():
        jit: Any = torch.jit
        traced = jit.trace(source.graph, _example(source))
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
    onnx.save(model, path)


def _write_openvino(source: Source, path: Path) -> None:
    openvino = require("openvino")
    model = openvino.convert_model(_onnx_of(source))
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_onnx_int8(source: Source, path: Path) -> None:
    quantization = require("onnxruntime.quantization")
    shape_inference = require("onnxruntime.quantization.shape_inference")
    prepared = source.scratch / "prepared.onnx"
    shape_inference.quant_pre_process(
        _onnx_of(source), prepared, skip_symbolic_shape=True
    )
    images = iter(source.calibration)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Any] | None:
            image = next(images, None)
            return None if image is None else {"images": image[None]}

    quantization.quantize_static(
        prepared,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool"],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )


def _write_openvino_int8(source: Source, path: Path) -> None:
    openvino, nncf = require("openvino"), require("nncf")
    model = openvino.convert_model(_onnx_of(source))
    images = nncf.Dataset([image[None] for image in source.calibration])
    quantized = nncf.quantize(model, images, subset_size=len(source.calibration))
    openvino.save_model(quantized, path, compress_to_fp16=False)


def _exported(source: Source) -> Any:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(
        source.graph, (_example(source),), dynamic_shapes=({0: batch},)
    )


def _example(source: Source) -> torch.Tensor:
    # Two images: an axis of one is taken for one that is always one.
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
def _quiet() -> Iterator[None]:
    """Silence what the exporters say of themselves, in this one place."""
    import logging

    names = ("nncf", "torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
