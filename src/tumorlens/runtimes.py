"""An artefact in the runtime that it was made for: arrays in, arrays out.

Each runtime is imported when an artefact needs it and not before; ONNX Runtime and
OpenVINO need no torch. What the newcomer would get wrong: a runtime chooses its own
precision. OpenVINO computes in bf16 wherever the processor can, unless it is told, so
every session is told, and `Session.precision` is what the runtime then says it does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tumorlens.errors import ArtefactError, ConfigError
from tumorlens.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from tumorlens.artefacts import Artefact


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

    runtime: str
    """Name and version, such as "onnxruntime 1.32.0"."""
    precision: str
    """What the runtime says it computes in: "fp32", "bf16", "int8" ..."""
    device: str
    """Such as "cpu" or "cuda"."""
    threads: int
    """How many it computes with."""

    def __call__(self, images: NDArray[np.uint8]) -> Answers:
        """Answer for images.

        Args:
            images: Shape (N, S, S, 3), N > 0, uint8.

        Raises:
            ValueError: Another shape or type.
        """
        check_images(images, self.size_px)
        return self.ask(images)


def open_session(artefact: Artefact, *, threads: int | None = None) -> Session:
    """Load an artefact's graph into its runtime, on the CPU.

    Args:
        artefact: From `artefacts.open_artefact`, whose files are checked.
        threads: To compute with; `None` takes as many as there are processors.

    Raises:
        ArtefactError: The runtime does not take the graph.
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
    onnxruntime = require("onnxruntime")
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
    return Session(
        ask=lambda images: Answers(*session.run(None, {"images": images})),
        size_px=artefact.card.size_px,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        precision=artefact.card.precision,
        device="cpu",
        threads=threads,
    )


def _open_openvino(artefact: Artefact, threads: int) -> Session:
    openvino = require("openvino")
    hint = "bf16" if artefact.card.precision == "bf16" else "f32"
    try:
        compiled = openvino.Core().compile_model(
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
    request = compiled.create_infer_request()

    def ask(images: NDArray[np.uint8]) -> Answers:
        found = request.infer([images], share_inputs=True)
        return Answers(*(np.array(found[number]) for number in range(3)))

    return Session(
        ask=ask,
        size_px=artefact.card.size_px,
        runtime=f"openvino {openvino.__version__.partition('-')[0]}",
        precision=artefact.card.precision,
        device="cpu",
        threads=threads,
    )


def _open_torch(artefact: Artefact, threads: int) -> Session:
    torch = require("torch")
    torch.set_num_threads(threads)
    try:
        graph = _load_torch(artefact)
    except Exception as error:  # zip, pickle and torch errors
        raise _refused(artefact, "torch", error) from None

    def ask(images: NDArray[np.uint8]) -> Answers:
        with torch.inference_mode():
            parts = graph(torch.from_numpy(images))
        return Answers(*(part.numpy() for part in parts))

    return Session(
        ask=ask,
        size_px=artefact.card.size_px,
        runtime=f"torch {torch.__version__}",
        precision=artefact.card.precision,
        device="cpu",
        threads=threads,
    )


def _load_torch(artefact: Artefact) -> Any:
    torch = require("torch")
    if artefact.card.kind == "torch-export":
        return torch.export.load(artefact.graph_path).module()
    import warnings

    with warnings.catch_warnings():
        # Deprecated since torch 2.11; it is here as the legacy format that it is.
        warnings.simplefilter("ignore")
        return torch.jit.load(str(artefact.graph_path), map_location="cpu").eval()


def _refused(artefact: Artefact, runtime: str, error: Exception) -> ArtefactError:
    lines = str(error).strip().splitlines()
    why = lines[0][:200] if lines else type(error).__name__
    return ArtefactError(
        f"{runtime} does not take {artefact.graph_path}: {why}",
        hint="update the runtime to the version in model.json (made_with), or export "
        "the run again here",
    )
