"""Artefacts in their runtimes: the same answers, and the precision really used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from tumorlens.deploy.artefact import (
    GRAPH_FILES,
    KINDS,
    Artefact,
    Kind,
    open_artefact,
    write_manifest,
)
from tumorlens.deploy.export import kinds_here
from tumorlens.deploy.runtimes import Session, open_session, openvino_precision
from tumorlens.errors import ArtefactError, ConfigError, MissingExtraError
from tumorlens.files import write_model

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.runs.folder import Run

HERE = kinds_here()
FLOATING: list[Kind] = ["torchscript", "torch-export", "onnx", "openvino"]


@pytest.fixture(scope="module")
def sessions(exported_run: Run) -> dict[Kind, Session]:
    return {kind: open_session(artefact_of(exported_run, kind)) for kind in HERE}


@pytest.fixture(autouse=True)
def keep_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def artefact_of(run: Run, kind: Kind) -> Artefact:
    return open_artefact(run.path / "export" / kind)


def noise(count: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", HERE)
def test_answers_have_the_shapes_that_the_card_promises(
    sessions: dict[Kind, Session], exported_run: Run, kind: Kind
) -> None:
    card = artefact_of(exported_run, kind).card
    for count in (1, 5):  # the batch is of any size
        answers = sessions[kind](noise(count))
        assert answers.probs.shape == answers.logits.shape == (count, 4)
        assert answers.embedding.shape == (count, card.embedding_size)
        for part in (answers.probs, answers.logits, answers.embedding):
            assert part.dtype == np.float32
        assert np.abs(answers.probs.sum(axis=1) - 1).max() < 1e-3


@pytest.mark.parametrize("kind", FLOATING)
def test_floating_formats_agree_in_every_output(
    sessions: dict[Kind, Session], kind: Kind
) -> None:
    first, other = sessions["torchscript"](noise(4)), sessions[kind](noise(4))
    assert np.abs(first.probs - other.probs).max() < 1e-5
    assert np.abs(first.logits - other.logits).max() < 1e-3
    assert np.abs(first.embedding - other.embedding).max() < 1e-3


@pytest.mark.parametrize("kind", HERE)
def test_answers_stay_when_the_session_is_asked_again(
    sessions: dict[Kind, Session], kind: Kind
) -> None:
    first = sessions[kind](noise(2))
    kept = first.probs.copy()
    sessions[kind](noise(2)[::-1])
    assert np.array_equal(first.probs, kept)


@pytest.mark.parametrize("kind", HERE)
def test_threads_that_share_a_session_get_the_answers_of_one(
    sessions: dict[Kind, Session], kind: Kind
) -> None:
    batches = [noise(3)[:count] // (count + 1) for count in (1, 2, 3)] * 10
    alone = [sessions[kind](batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(sessions[kind], batches))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.probs, other.probs)
        np.testing.assert_array_equal(one.embedding, other.embedding)


@pytest.mark.parametrize("kind", HERE)
def test_the_order_in_memory_makes_no_difference(
    sessions: dict[Kind, Session], kind: Kind
) -> None:
    images = noise(3)
    mirrored = images[:, :, ::-1]
    read_only = mirrored.copy()
    read_only.flags.writeable = False
    assert np.array_equal(
        sessions[kind](mirrored).probs, sessions[kind](read_only).probs
    )


@pytest.mark.parametrize("kind", HERE)
def test_the_runtime_computes_in_what_the_artefact_was_made_for(
    sessions: dict[Kind, Session], exported_run: Run, kind: Kind
) -> None:
    assert sessions[kind].precision == artefact_of(exported_run, kind).card.precision
    assert sessions[kind].device == "cpu"


def test_the_precision_is_what_most_layers_say_and_not_what_the_card_says(
    exported_run: Run,
) -> None:
    for kind in FLOATING:
        artefact = artefact_of(exported_run, kind)
        lying = artefact.card.model_copy(update={"precision": "int8"})
        assert open_session(replace(artefact, card=lying)).precision == "fp32"


def layers(**counts: int) -> Any:
    """Return a compiled model with so many convolutions of each precision."""

    def layer(kind: str, precision: str) -> Any:
        values = {"layerType": kind, "runtimePrecision": precision}
        facts = {name: SimpleNamespace(value=value) for name, value in values.items()}
        return SimpleNamespace(get_rt_info=lambda: facts)

    found = [layer("Convolution", name) for name, n in counts.items() for _ in range(n)]
    model = SimpleNamespace(get_ops=lambda: [*found, *[layer("Softmax", "f64")] * 9])
    return SimpleNamespace(get_runtime_model=lambda: model)


def test_the_majority_of_the_layers_that_multiply_decides() -> None:
    assert openvino_precision(layers(i8=3, f32=2)) == "int8"
    # What a processor without bf16 does with a graph that was to be bf16.
    assert openvino_precision(layers(f32=5)) == "fp32"
    assert openvino_precision(layers(bf16=5, f32=1)) == "bf16"
    assert openvino_precision(layers()) == "unknown"


@pytest.mark.parametrize("kind", HERE)
def test_a_session_computes_with_as_many_threads_as_it_is_told(
    exported_run: Run, kind: Kind
) -> None:
    session = open_session(artefact_of(exported_run, kind), threads=1)
    assert session.threads == 1
    if kind.startswith("torch"):
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [0, -2])
def test_no_threads_are_an_error(exported_run: Run, threads: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1 thread, got {threads}"):
        open_session(artefact_of(exported_run, "onnx"), threads=threads)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        pytest.param(
            np.zeros((1, 3, 32, 32), np.uint8), r"\(1, 3, 32, 32\) of uint8", id="order"
        ),
        pytest.param(
            np.zeros((2, 64, 64, 3), np.uint8), r"\(2, 64, 64, 3\) of uint8", id="size"
        ),
        pytest.param(
            np.zeros((1, 32, 32, 3), np.float32),
            r"\(1, 32, 32, 3\) of float32",
            id="type",
        ),
        pytest.param(
            np.zeros((0, 32, 32, 3), np.uint8), r"\(0, 32, 32, 3\) of", id="none"
        ),
        pytest.param(
            np.zeros((32, 32, 3), np.uint8), r"\(32, 32, 3\) of uint8", id="one image"
        ),
        pytest.param(np.zeros((), np.uint8), r"\(\) of uint8", id="a number"),
    ],
)
@pytest.mark.parametrize("kind", HERE)
def test_a_batch_of_another_shape_or_type_is_refused_with_what_it_is(
    sessions: dict[Kind, Session], kind: Kind, images: Any, got: str
) -> None:
    with pytest.raises(ValueError, match=rf"\(N, 32, 32, 3\) of uint8 .*got {got}"):
        sessions[kind](images)


def damaged(run: Run, kind: Kind, folder: Path, content: bytes | None) -> Artefact:
    """Copy an artefact, replace its graph, and seal it as if that were the graph.

    Args:
        run: Has the artefact.
        kind: Its format.
        folder: Where the copy goes.
        content: Bytes of the graph's file; `None` is its first half.
    """
    copy = folder / kind
    shutil.copytree(run.path / "export" / kind, copy)
    graph = copy / GRAPH_FILES[kind][0]
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2] if content is None else content)
    write_manifest(copy)
    return open_artefact(copy)


@pytest.mark.parametrize("content", [None, b"", b"no graph"], ids=["cut", "0", "other"])
@pytest.mark.parametrize("kind", HERE)
def test_a_graph_that_the_runtime_does_not_take_is_one_clear_error(
    exported_run: Run, tmp_path: Path, kind: Kind, content: bytes | None
) -> None:
    artefact = damaged(exported_run, kind, tmp_path, content)
    with pytest.raises(ArtefactError) as caught:
        open_session(artefact)
    runtime = {"onnx": "ONNX Runtime", "open": "OpenVINO", "torc": "torch"}[kind[:4]]
    assert caught.value.problem.startswith(
        f"{runtime} does not take {artefact.graph_path}: "
    )
    assert "\n" not in caught.value.problem
    assert "made_with" in caught.value.hint


def test_an_opset_that_the_runtime_lacks_is_named(
    exported_run: Run, tmp_path: Path
) -> None:
    model = onnx.load(exported_run.path / "export" / "onnx" / "graph.onnx")
    model.opset_import[0].version = 99
    artefact = damaged(exported_run, "onnx", tmp_path, model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"ONNX Runtime does not take .*99"):
        open_session(artefact)


def with_card(run: Run, kind: Kind, folder: Path, **changes: Any) -> Artefact:
    """Copy an artefact, change its card, and seal it as if that were its card."""
    copy = folder / kind
    shutil.copytree(run.path / "export" / kind, copy)
    card = artefact_of(run, kind).card.model_copy(update=changes)
    write_model(copy / "model.json", card)
    write_manifest(copy)
    return open_artefact(copy)


# TorchScript answers for images of any size; its graph does not state one.
@pytest.mark.parametrize("kind", [kind for kind in HERE if kind != "torchscript"])
def test_a_card_of_another_size_than_the_graph_is_one_clear_error(
    exported_run: Run, tmp_path: Path, kind: Kind
) -> None:
    artefact = with_card(exported_run, kind, tmp_path, size_px=64)
    with pytest.raises(ArtefactError, match=r"\b32\b") as caught:
        open_session(artefact)
    if not kind.startswith("torch"):
        assert caught.value.problem == (
            f"{artefact.path / 'model.json'} promises a graph that takes "
            f"(N, 64, 64, 3), and {artefact.graph_path.name} takes (N, 32, 32, 3)"
        )


@pytest.mark.parametrize("classes", [("a", "b", "c"), tuple("abcde")])
@pytest.mark.parametrize("kind", HERE)
def test_a_card_of_more_or_fewer_classes_than_the_graph_is_one_clear_error(
    exported_run: Run, tmp_path: Path, kind: Kind, classes: tuple[str, ...]
) -> None:
    artefact = with_card(exported_run, kind, tmp_path, classes=classes)
    num, size = len(classes), artefact.card.embedding_size
    with pytest.raises(ArtefactError) as caught:
        open_session(artefact)
    assert caught.value.problem == (
        f"{artefact.path / 'model.json'} promises a graph that gives (N, {num}), "
        f"(N, {num}), (N, {size}), and {artefact.graph_path.name} gives (N, 4), "
        f"(N, 4), (N, {size})"
    )
    assert "export the run again" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "library", "extra"),
    [
        ("onnx-int8", "onnxruntime", "runtime"),
        ("openvino", "openvino", "runtime"),
        ("torch-export", "torch", "train"),
    ],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_pip_line(
    exported_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    library: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError) as caught:
        open_session(artefact_of(exported_run, kind))
    assert caught.value.hint == f'pip install "tumorlens[{extra}]"'
    assert caught.value.problem == (
        f"the format {kind} needs the library {library!r}, which is not installed"
    )


@pytest.mark.parametrize("kind", [kind for kind in HERE if "torch" not in kind])
def test_onnx_and_openvino_need_no_torch(exported_run: Run, kind: Kind) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "import numpy as np; from pathlib import Path\n"
        "from tumorlens.deploy.artefact import open_artefact\n"
        "from tumorlens.deploy.runtimes import open_session\n"
        "session = open_session(open_artefact(Path(sys.argv[1])))\n"
        "print(session(np.zeros((2, 32, 32, 3), np.uint8)).probs.shape)"
    )
    path = str(exported_run.path / "export" / kind)
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stdout == "(2, 4)\n"
    assert done.stderr == ""


def test_every_format_has_its_runtime() -> None:
    assert set(GRAPH_FILES) == set(KINDS)
