"""What stands in the files of a graph, and what is said when they cannot be made."""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from support.small_networks import colours, network
from tumorlens.deploy import graph_files
from tumorlens.deploy.artefact import Kind, open_artefact
from tumorlens.deploy.graph import ServingGraph
from tumorlens.deploy.graph_files import (
    Node,
    Source,
    libraries_of,
    outside_network,
    shares_of,
    write_graph,
)
from tumorlens.deploy.runtimes import openvino_core
from tumorlens.errors import ArtefactError, DataError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.runs.folder import Run


def source_of(folder: Path, module: torch.nn.Module | None = None) -> Source:
    card, found = network()
    graph = ServingGraph([(card, module or found)]).eval()
    images = colours(40)
    return Source(graph, 32, lambda start, stop: images[start:stop], 40, folder)


def ops_of(run: Run, kind: Kind) -> Counter[str]:
    path = open_artefact(run.path / "export" / kind).graph_path
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def step(name: str, takes: str, *, is_layer: bool = False) -> Node:
    return Node(name, set(takes.split()), {name}, is_layer=is_layer)


def test_what_comes_before_the_first_layer_or_after_the_last_is_outside() -> None:
    steps = [
        step("scale", "images"),
        step("conv", "scale weights", is_layer=True),
        step("relu", "conv"),
        step("shortcut", "scale"),  # leads to a layer, and no layer leads to it
        step("sum", "relu shortcut"),
        step("fc", "sum", is_layer=True),
        step("embedding", "sum"),  # of a layer, and leads to none
        step("softmax", "fc"),
    ]
    assert outside_network(steps) == ["scale", "shortcut", "embedding", "softmax"]


def test_batch_norm_is_folded_into_the_convolutions(exported_run: Run) -> None:
    assert ops_of(exported_run, "onnx-int8")["BatchNormalization"] == 0
    assert ops_of(exported_run, "onnx-int8")["Conv"] > 5


def test_int8_leaves_normalization_and_softmax_floating(exported_run: Run) -> None:
    path = open_artefact(exported_run.path / "export" / "onnx-int8").graph_path
    graph = onnx.load(path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    (softmax,) = [node for node in graph.node if node.op_type == "Softmax"]
    assert graph.output[0].name in softmax.output
    (div,) = [node for node in graph.node if node.op_type == "Div"][-1:]
    assert made_by[div.input[0]].op_type != "DequantizeLinear"


@pytest.mark.parametrize("floating", ["onnx", "openvino"])
def test_int8_has_about_a_quarter_of_the_bytes(
    exported_run: Run, floating: str
) -> None:
    sizes = [
        open_artefact(exported_run.path / "export" / kind).size_bytes
        for kind in (floating, f"{floating}-int8")
    ]
    # The graph itself is some 100 kB, much beside so small a network's weights.
    weights = 4 * sum(p.numel() for p in network()[1].parameters())
    assert sizes[0] - weights < 0.2e6
    assert sizes[1] < weights / 4 + 0.2e6


@pytest.mark.parametrize("kind", ["onnx", "onnx-int8"])
def test_the_batch_axis_is_named_and_free(exported_run: Run, kind: Kind) -> None:
    graph = onnx.load(open_artefact(exported_run.path / "export" / kind).graph_path)
    for value in (*graph.graph.input, *graph.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [value.name for value in graph.graph.input] == ["images"]
    assert [value.name for value in graph.graph.output] == [
        *("probs", "logits", "embedding")
    ]


@pytest.mark.parametrize("kind", ["onnx", "onnx-int8", "openvino"])
def test_no_file_says_in_whose_folders_it_was_made(
    exported_run: Run, kind: Kind
) -> None:
    folder = exported_run.path / "export" / kind
    here = str(graph_files.__file__).rpartition("/")[0].encode()
    for path in folder.iterdir():
        assert here not in path.read_bytes()
        assert str(exported_run.path).encode() not in path.read_bytes() or (
            path.name == "parity.json"
        )


def test_views_do_not_repeat_the_weights(tmp_path: Path) -> None:
    sizes = []
    for number, mirror in enumerate([False, True]):
        (folder := tmp_path / str(number)).mkdir()
        graph = ServingGraph([network(mirror=mirror)]).eval()
        write_graph("onnx", replace(source_of(folder), graph=graph), folder)
        sizes.append((folder / "graph.onnx").stat().st_size)
    assert sizes[1] < sizes[0] * 1.05


class Strange(torch.nn.Module):
    """A network that no exporter can follow."""

    def forward_features(self, values: torch.Tensor) -> torch.Tensor:
        if values.sum() > 0:
            raise RuntimeError("cannot be followed\nin two lines")
        return values.mean(dim=(2, 3))

    def forward_head(self, values: torch.Tensor, **_: bool) -> torch.Tensor:
        return values


def test_a_network_that_cannot_be_exported_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError) as caught:
        write_graph("torch-export", source_of(tmp_path, Strange()), tmp_path)
    problem = caught.value.problem
    assert problem.startswith("the network cannot be written as torch-export: ")
    assert "\n" not in problem
    assert caught.value.hint.startswith("try another --format")


def test_a_library_that_is_missing_is_named_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert "openvino" in libraries_of("openvino")
    with pytest.raises(MissingExtraError) as caught:
        libraries_of("openvino-int8")
    assert caught.value.problem.startswith("the format openvino-int8 needs the library")
    assert caught.value.hint == 'pip install "tumorlens[export]"'


def test_torchs_own_formats_need_nothing_of_the_extra() -> None:
    assert set(libraries_of("torchscript")) == {"torch", "timm"}


@pytest.mark.parametrize("kind", ["torchscript", "torch-export", "onnx"])
def test_a_full_disk_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    def usage(path: Path) -> Any:
        return type("Usage", (), {"free": 3 << 20})

    def full(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr("shutil.disk_usage", usage)
    monkeypatch.setattr(graph_files, "_example", full)
    with pytest.raises(DataError, match=r"failed writing .*; the disk has 3 MiB free"):
        write_graph(kind, source_of(tmp_path), tmp_path)


class _Stack(ctypes.Structure):
    _fields_ = (
        ("place", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


def stack_for_signals() -> tuple[int | None, int]:
    """Return where this thread handles signals; Python's handlers run there."""
    stack = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack.place, stack.size


def test_more_care_brings_int8_nearer(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    stack = stack_for_signals()
    folders = [tmp_path / name for name in ("plain", "careful")]
    for folder in folders:
        folder.mkdir()
    write_graph("openvino-int8", source, folders[0])
    (folders[1] / "graph.xml").write_bytes((folders[0] / "graph.xml").read_bytes())
    (folders[1] / "graph.bin").write_bytes((folders[0] / "graph.bin").read_bytes())
    write_graph("openvino-int8", source, folders[1], nearness=0.2)
    images = colours(20)
    with torch.no_grad():
        expected = source.graph(torch.from_numpy(images))[0].numpy()
    plain, careful = (
        np.abs(probs_of(folder, images) - expected).mean() for folder in folders
    )
    assert careful < plain / 2
    # Else the next Ctrl-C is a crash.
    assert stack_for_signals() == stack


def test_training_images_are_shared_without_asking_for_more_than_there_are() -> None:
    for num in (*range(34, 500), 10_000):
        shares = shares_of(num)
        assert shares is not None
        calibration, held_out = shares
        assert calibration + held_out == min(num, 428)
        assert 10 <= held_out <= 128
        assert 2 * held_out <= calibration


def test_too_few_training_images_are_not_shared() -> None:
    assert shares_of(33) is None
    assert shares_of(34) == (24, 10)


def probs_of(folder: Path, images: Any) -> Any:
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(folder / "graph.xml", "CPU", hint)
    return np.array(compiled([images])[0])
