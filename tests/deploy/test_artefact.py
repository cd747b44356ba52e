"""The artefact folder: what opens is complete, unchanged and proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.handmade_artefacts import parity_of
from tumorlens.deploy.artefact import (
    FORMAT,
    GRAPH_FILES,
    KINDS,
    ArtefactCard,
    Kind,
    is_artefact,
    open_artefact,
    precision_of,
    remove_artefact,
    seal_artefact,
    write_manifest,
)
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ArtefactError, RunError
from tumorlens.files import sha256_of_bytes


def card_of(kind: Kind, **changes: Any) -> ArtefactCard:
    values: dict[str, Any] = {
        "format": FORMAT,
        "tumorlens": "0",
        "kind": kind,
        "precision": precision_of(kind),
        "run": "run",
        "networks": ("resnet18",),
        "weights_sha256": ("0" * 64,),
        "classes": ("glioma", "no_tumor"),
        "size_px": 32,
        "fit": "pad",
        "views": "none",
        "temperature": (1.0,),
        "embedding_size": 8,
        "made_with": {"torch": "2"},
    }
    return ArtefactCard(**(values | changes))


def write_artefact(folder: Path, kind: Kind = "onnx", **verdict: Any) -> Path:
    """Write an artefact whose graph is some bytes."""
    folder.mkdir(parents=True)
    for number, name in enumerate(GRAPH_FILES[kind]):
        (folder / name).write_bytes(bytes([number]) * 1000)
    seal_artefact(folder, card_of(kind), parity_of(kind, **verdict), "words")
    return folder


def change_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_an_artefact_that_was_written_opens(tmp_path: Path, kind: Kind) -> None:
    artefact = open_artefact(write_artefact(tmp_path / "a", kind, num_images=3))
    assert artefact.card == card_of(kind)
    assert artefact.graph_path == tmp_path / "a" / GRAPH_FILES[kind][0]
    assert artefact.size_bytes == 1000 * len(GRAPH_FILES[kind])
    assert artefact.parity() == parity_of(kind, num_images=3)


def test_it_opens_by_its_graph_as_well(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a")
    assert open_artefact(folder / "graph.onnx").path == folder


def test_the_precision_follows_from_the_format() -> None:
    assert [precision_of(kind) for kind in KINDS] == [
        *("fp32", "fp32", "fp32", "fp32", "bf16", "int8", "int8")
    ]


def test_the_manifest_has_the_digest_of_every_other_file(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a")
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert set(files) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, facts in files.items():
        content = (folder / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": sha256_of_bytes(content)}


@pytest.mark.parametrize("name", ["graph.onnx", "model.json", "parity.json"])
def test_a_file_that_was_changed_is_named_with_its_digest(
    tmp_path: Path, name: str
) -> None:
    folder = write_artefact(tmp_path / "a")
    expected = sha256_of_bytes((folder / name).read_bytes())
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtefactError) as caught:
        open_artefact(folder)
    assert caught.value.problem == (
        f"{folder / name} is not the file that was exported: its SHA-256 should be "
        f"{expected[:12]}..."
    )


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a", "openvino")
    (folder / "graph.bin").unlink()
    with pytest.raises(ArtefactError, match=r"a lacks 'graph.bin', which its manifest"):
        open_artefact(folder)


def test_a_manifest_leads_nowhere_outside_the_folder(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a")
    (tmp_path / "other").write_bytes(b"x")
    facts = {"bytes": 1, "sha256": sha256_of_bytes(b"x")}
    change_json(folder / "manifest.json", files={"../other": facts})
    with pytest.raises(ArtefactError, match=r"lacks '../other'"):
        open_artefact(folder)


def test_an_artefact_of_another_version_is_refused_with_its_number(
    tmp_path: Path,
) -> None:
    folder = write_artefact(tmp_path / "a")
    change_json(folder / "manifest.json", format=99)
    with pytest.raises(ArtefactError, match=r"expected format 1 in .*, got 99"):
        open_artefact(folder)


@pytest.mark.parametrize("number", [2, None, "1"])
def test_a_card_of_another_format_is_refused_with_its_number(
    tmp_path: Path, number: Any
) -> None:
    folder = write_artefact(tmp_path / "a")
    change_json(folder / "model.json", format=number)
    write_manifest(folder)
    message = rf"expected format 1 in .*model\.json, got {number!r}"
    with pytest.raises(ArtefactError, match=message):
        open_artefact(folder)


def test_a_card_of_another_version_is_refused_with_what_is_new(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a")
    change_json(folder / "model.json", kind="tflite")
    write_manifest(folder)
    with pytest.raises(ArtefactError, match=r"damaged at kind: .* got 'tflite'"):
        open_artefact(folder)


@pytest.mark.parametrize("name", ["graph.onnx", "parity.json", "README.md"])
def test_a_manifest_that_leaves_something_out_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = write_artefact(tmp_path / "a")
    (folder / name).unlink()
    write_manifest(folder)
    with pytest.raises(ArtefactError, match=rf"does not name '{name}'"):
        open_artefact(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "is not JSON", id="cut off"),
        pytest.param("[]", r"expected format 1 in .*, got \[\]", id="a list"),
        pytest.param('{"format": 1}', "is damaged at files: ", id="no files"),
        pytest.param('{"files": []}', r"at files: .* got \[\]", id="another type"),
        pytest.param(
            '{"format": 1, "files": {"model.json": 3}}',
            r"at files\.model\.json: .* got 3",
            id="no facts",
        ),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write_artefact(tmp_path / "a")
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtefactError, match=message):
        open_artefact(folder)


def test_an_artefact_without_a_good_verdict_is_refused(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a", passed=False)
    with pytest.raises(ArtefactError, match=r"parity.json holds no good verdict"):
        open_artefact(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passed": None}, "damaged at passed: .* got None"),
        ({"passed": "yes"}, "damaged at passed: .* got 'yes'"),
        ({"accuracy": {"run": 1}}, r"damaged at accuracy\.artefact: Field required"),
        ({"format": 2}, r"expected format 1 in .*parity\.json, got 2"),
    ],
)
def test_a_damaged_verdict_is_refused_with_its_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_artefact(tmp_path / "a")
    change_json(folder / "parity.json", **changes)
    write_manifest(folder)
    with pytest.raises(ArtefactError, match=message):
        open_artefact(folder)


def test_a_verdict_of_the_first_layout_has_no_number(tmp_path: Path) -> None:
    folder = write_artefact(tmp_path / "a")
    content = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    del content["format"], content["plain"]
    (folder / "parity.json").write_text(json.dumps(content), encoding="utf-8")
    write_manifest(folder)
    assert open_artefact(folder).parity() == parity_of("onnx")


@pytest.mark.parametrize("opener", [open_artefact, Predictor.open])
def test_a_folder_without_its_seal_is_an_unfinished_export(
    tmp_path: Path, opener: Any
) -> None:
    folder = write_artefact(tmp_path / "a")
    (folder / "manifest.json").unlink()
    assert is_artefact(folder)
    for path in (folder, folder / "graph.onnx"):
        with pytest.raises(ArtefactError, match=r"a has no manifest\.json: it is no"):
            opener(path)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no such artefact: .*nowhere"):
        open_artefact(tmp_path / "nowhere")
    assert not is_artefact(tmp_path / "nowhere")
    with pytest.raises(RunError, match="no such run folder"):
        Predictor.open(tmp_path / "nowhere")


def test_a_removal_that_is_killed_halfway_leaves_no_artefact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_artefact(tmp_path / "a")

    unlink = Path.unlink

    def killed(path: Path, **options: bool) -> None:
        if path.name == "graph.onnx":
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_artefact(folder)
    monkeypatch.undo()
    assert (folder / "graph.onnx").is_file()
    with pytest.raises(ArtefactError, match="no manifest"):
        open_artefact(folder)
    remove_artefact(folder)
    assert not folder.exists()
    remove_artefact(folder)  # once more is no error
