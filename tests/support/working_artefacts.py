"""Artefacts that work, with a graph so simple that probabilities follow by hand."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import openvino
import torch
from onnx import helper, numpy_helper

from support.handmade_artefacts import parity_of
from tumorlens.deploy.artefact import (
    Artefact,
    ArtefactCard,
    Kind,
    open_artefact,
    seal_artefact,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES = ("glioma", "no_tumor")
SIZE = 32
WEIGHTS = np.array([[9, -9], [0, 0], [0, 0]], np.float32)
"""Weights of the mean colours of an image, as fractions: red speaks for glioma."""
BIAS = np.array([-3, 3], np.float32)


def probs_by_hand(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the probabilities of images (N, S, S, 3), shape (N, 2)."""
    means = images.astype(np.float64).mean(axis=(1, 2)) / 255
    powers = np.exp(means @ WEIGHTS + BIAS)
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def make_artefact(
    path: Path, kind: Kind = "onnx", *, passed: bool = True, **changes: Any
) -> Artefact:
    """Make an artefact with the probabilities of `probs_by_hand`.

    Args:
        path: Folder of the artefact.
        kind: 'onnx', 'openvino', 'torchscript' or another format of these runtimes.
        passed: Verdict of its parity check.
        **changes: Fields of its card.
    """
    path.mkdir(parents=True)
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated since torch 2.11
            trace: Any = torch.jit.trace
            traced = trace(_Module(), torch.zeros(1, SIZE, SIZE, 3).byte())
        traced.save(str(path / "graph.pt"))
    else:
        model = _onnx_model()
        if kind.startswith("openvino"):
            onnx.save(model, path / "graph.onnx")
            converted = openvino.convert_model(path / "graph.onnx")
            openvino.save_model(converted, path / "graph.xml", compress_to_fp16=False)
            (path / "graph.onnx").unlink()
        else:
            onnx.save(model, path / "graph.onnx")
    card: dict[str, Any] = {
        "tumorlens": "0",
        "kind": kind,
        "precision": "fp32",
        "run": "run",
        "networks": ("by_hand",),
        "weights_sha256": ("0" * 64,),
        "classes": CLASSES,
        "size_px": SIZE,
        "fit": "squash",
        "views": "none",
        "temperature": (1.0,),
        "embedding_size": 3,
        "made_with": {},
    }
    verdict = parity_of(kind, passed=passed)
    seal_artefact(path, ArtefactCard(**card | changes), verdict, "made by hand")
    return open_artefact(path) if passed else Artefact(path, ArtefactCard(**card))


class _Module(torch.nn.Module):
    def forward(
        self, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        means = images.float().mean(dim=(1, 2)) / 255
        logits = means @ torch.from_numpy(WEIGHTS) + torch.from_numpy(BIAS)
        return logits.softmax(dim=1), logits, means


def _onnx_model() -> onnx.ModelProto:
    number = onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=number.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probs"], axis=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axes": np.array([1, 2], np.int64),
        "full": np.array(255, np.float32),
        "weights": WEIGHTS,
        "bias": BIAS,
    }
    outputs = {"probs": 2, "logits": 2, "embedding": 3}
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info("images", number.UINT8, ["n", SIZE, SIZE, 3])],
        [
            helper.make_tensor_value_info(name, number.FLOAT, ["n", width])
            for name, width in outputs.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]
    )
