"""The fastest of the artefacts that may be used is chosen, and it is said why."""

from __future__ import annotations

import importlib.util
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from support.working_artefacts import make_artefact
from tumorlens.deploy.benchmark import fastest
from tumorlens.deploy.benchmark.fastest import choose_fastest
from tumorlens.deploy.runtimes import open_session
from tumorlens.errors import ArtefactError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from tumorlens.runs.folder import Run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def add(run: Path, kind: Any, **options: Any) -> Path:
    return make_artefact(run / "export" / kind, kind, **options).path


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return a table in which a test says how long each runtime takes."""
    table: dict[str, float] = {}

    def look_up(sessions: list[Any]) -> list[float]:
        return [table[session.runtime.split()[0]] for session in sessions]

    monkeypatch.setattr(fastest, "_measure", look_up)
    return table


def test_the_one_that_was_measured_fastest_is_chosen(
    run: Path, seconds: dict[str, float]
) -> None:
    paths = {kind: add(run, kind) for kind in ("onnx", "openvino")}
    for first, other in (("onnx", "openvino"), ("openvino", "onnx")):
        seconds |= {f"{first}runtime" if first == "onnx" else first: 0.001}
        seconds |= {f"{other}runtime" if other == "onnx" else other: 0.0025}
        choice = choose_fastest(run)
        assert choice.path == paths[first]
        assert choice.summary == (
            f"the fastest here is {first} (per image: {first} 1.00 ms, {other} 2.50 ms)"
        )


def test_what_was_made_of_other_weights_is_passed_over(
    exported_run: Run, tmp_path: Path
) -> None:
    run = tmp_path / "retrained"
    shutil.copytree(exported_run.path, run)
    assert "other weights" not in choose_fastest(run).summary
    card = json.loads((run / "model.json").read_text())
    card["weights_sha256"] = card["weights_sha256"][::-1]
    (run / "model.json").write_text(json.dumps(card))
    with pytest.raises(ArtefactError, match="onnx: the run has other weights by now"):
        choose_fastest(run)


def test_they_are_measured_in_turns_and_one_round_is_enough(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(run, "onnx")
    add(run, "openvino")
    monkeypatch.setattr(fastest, "_BUDGET_S", 0)
    assert choose_fastest(run).path.name in ("onnx", "openvino")


def test_slower_sessions_take_longer() -> None:
    class Session:
        size_px = 16

        def __init__(self, rounds: int) -> None:
            self.rounds = rounds
            self.shapes: list[tuple[int, ...]] = []

        def __call__(self, images: Any) -> None:
            self.shapes.append(images.shape)
            for _ in range(self.rounds):
                images.sum()

    one, other = Session(1), Session(3000)
    taken = fastest._measure([one, other])  # type: ignore[list-item]
    assert taken[0] < taken[1]
    assert set(one.shapes) == {(8, 16, 16, 3)}
    assert len(one.shapes) == len(other.shapes) > 1


def test_a_single_one_is_chosen_without_a_measurement(run: Path) -> None:
    path = add(run, "onnx")
    choice = choose_fastest(run)
    assert choice.path == path
    assert choice.summary == "the fastest here is onnx: the only one to try"


def test_what_is_not_proven_or_damaged_is_passed_over_in_words(run: Path) -> None:
    add(run, "onnx", passed=False)
    add(run, "openvino")
    (add(run, "openvino-int8") / "graph.bin").write_bytes(b"x")
    choice = choose_fastest(run)
    assert choice.path.name == "openvino"
    assert "parity.json holds no good verdict" in choice.summary
    assert "graph.bin is not the file that was exported" in choice.summary


def test_a_runtime_that_is_not_installed_is_passed_over_in_words(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(run, "onnx")
    add(run, "openvino")
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "openvino" else known(name),
    )
    choice = choose_fastest(run)
    assert choice.path.name == "onnx"
    assert "passed over, openvino: openvino is not installed" in choice.summary


@pytest.mark.parametrize(
    ("kinds", "extra"),
    [
        (["torchscript", "onnx"], "runtime"),
        (["openvino"], "runtime"),
        (["torchscript"], "train"),
    ],
)
def test_without_any_runtime_the_way_out_is_to_install_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str], extra: str
) -> None:
    for kind in kinds:
        add(run, kind)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtefactError, match="is not installed") as caught:
        choose_fastest(run)
    assert caught.value.hint == f'pip install "tumorlens[{extra}]"'


def test_an_artefact_is_no_run_to_choose_from(run: Path) -> None:
    path = add(run, "onnx")
    with pytest.raises(ArtefactError) as caught:
        choose_fastest(path)
    assert caught.value.problem == (
        f"--best takes a run and chooses among its artefacts, and {path} is one of them"
    )
    assert caught.value.hint == "give the run folder, or leave --best out"


def test_the_command_can_be_pasted_whatever_the_folder_is_called(
    tmp_path: Path,
) -> None:
    run = tmp_path / "my run"
    with pytest.raises(ArtefactError) as caught:
        choose_fastest(run)
    assert caught.value.hint == f"tumorlens export '{run}' --format all"


def test_a_runtime_that_cannot_be_loaded_is_passed_over_in_words(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(run, "onnx")
    add(run, "openvino")

    def fail(artefact: Any) -> Any:
        if artefact.card.kind == "openvino":
            raise MissingExtraError("its library is broken", hint="")
        return open_session(artefact)

    monkeypatch.setattr(fastest, "open_session", fail)
    words = "passed over, openvino: its library is broken"
    assert words in choose_fastest(run).summary


def test_torch_is_not_asked_where_there_is_another(run: Path) -> None:
    torchscript = add(run, "torchscript")
    assert choose_fastest(run).path == torchscript
    add(run, "onnx")
    choice = choose_fastest(run)
    assert choice.path.name == "onnx"
    assert "torchscript" not in choice.summary


def test_a_run_without_artefacts_is_refused_with_the_command(run: Path) -> None:
    with pytest.raises(ArtefactError, match=rf"^{run} has no artefact") as caught:
        choose_fastest(run)
    assert caught.value.hint == f"tumorlens export {run} --format all"
    add(run, "onnx", passed=False)
    with pytest.raises(ArtefactError, match=r"here; onnx: .* holds no good verdict"):
        choose_fastest(run)
