"""The artefact folder: an exported model and all that is needed to use it.

    ARTEFACT/graph.onnx ...  the graph; its name and number of files go by the format
             model.json      how an image becomes input, and what the outputs mean
             parity.json     the verdict: what it answers beside the run it came from
             README.md       how to use it where there is no tumorlens
             manifest.json   the SHA-256 of every other file

Without torch and without any runtime. What the newcomer would get wrong: the manifest
is the seal. It is written after the verdict and removed before anything else is, so a
folder without one is a failed or interrupted export and is never opened. It guards
against damage, not against a forger: whoever can change a file can change its digest.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import tumorlens
from tumorlens.errors import ArtefactError
from tumorlens.files import sha256_of, write_json, write_text

FORMAT = 1
"""Number of the layout above. An artefact of another number is refused."""

Kind = Literal[
    "torchscript",
    "torch-export",
    "onnx",
    "openvino",
    "openvino-bf16",
    "onnx-int8",
    "openvino-int8",
]
Precision = Literal["fp32", "bf16", "int8"]
Fit = Literal["squash", "pad"]
"""As `config.Fit`, whose module takes 0.08 s to import: more than a prediction does."""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are made: the quantized ones come of those before."""

GRAPH_FILES: dict[Kind, tuple[str, ...]] = {
    "torchscript": ("graph.pt",),
    "torch-export": ("graph.pt2",),
    "onnx": ("graph.onnx",),
    "onnx-int8": ("graph.onnx",),
    "openvino": ("graph.xml", "graph.bin"),
    "openvino-bf16": ("graph.xml", "graph.bin"),
    "openvino-int8": ("graph.xml", "graph.bin"),
}
"""The first one is what a runtime is given."""

OUTPUTS = ("probs", "logits", "embedding")

_BESIDE = ("model.json", "parity.json", "README.md")
"""What an artefact has besides its graph and its manifest."""

_MAX_JSON_BYTES = 64 << 20
_HINT = "give a folder that export has made, such as RUN/export/onnx"


class ArtefactCard(BaseModel):
    """What `model.json` of an artefact says."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: int
    tumorlens: str
    """Version of this package that wrote the artefact."""
    kind: Kind
    precision: Precision
    """What the graph was made for; what a runtime really uses, `runtimes` asks it."""
    run: str
    """Name of the run folder."""
    networks: tuple[str, ...] = Field(min_length=1)
    """timm's names: one, or those of an ensemble's members."""
    weights_sha256: tuple[str, ...] = Field(min_length=1)
    """Digests of the weights files that the graph holds."""
    classes: tuple[str, ...] = Field(min_length=2)
    """In the order of the outputs `probs` and `logits`."""
    size_px: int = Field(ge=16, le=2048)
    """Side of the square images that the graph takes."""
    fit: Fit
    """How an image becomes a square: see `images.fit_square`."""
    views: str
    """Name of the policy of `tumorlens.training.views` that the graph averages over."""
    temperature: tuple[float, ...]
    """What the logits of each network are divided by before softmax."""
    embedding_size: int = Field(ge=1)
    made_with: dict[str, str]
    """Library -> version."""


@dataclass(frozen=True)
class Artefact:
    """An artefact on disk whose files are those that were exported."""

    path: Path
    card: ArtefactCard

    @property
    def graph_path(self) -> Path:
        """What the runtime is given."""
        return self.path / GRAPH_FILES[self.card.kind][0]

    @property
    def size_bytes(self) -> int:
        """Of the graph's files."""
        names = GRAPH_FILES[self.card.kind]
        return sum((self.path / name).stat().st_size for name in names)

    def parity(self) -> dict[str, Any]:
        """Return the verdict that came with the export.

        Raises:
            ArtefactError: The file is missing or damaged.
        """
        return _read_json(self.path / "parity.json")


def precision_of(kind: Kind) -> Precision:
    """Return what a graph of this kind is made for.

    Example:
        >>> precision_of("openvino-int8"), precision_of("torchscript")
        ('int8', 'fp32')
    """
    if kind.endswith("-int8"):
        return "int8"
    return "bf16" if kind.endswith("-bf16") else "fp32"


def is_artefact(path: Path) -> bool:
    """Whether a folder, or a file in it, is an artefact: a whole one or what is left.

    A graph whose manifest was not copied along counts: `open_artefact` says so.
    """
    graphs = {names[0] for names in GRAPH_FILES.values()}
    folder = _folder(path)
    return any((folder / name).is_file() for name in ("manifest.json", *graphs))


def open_artefact(path: Path) -> Artefact:
    """Return an artefact after checking every file against its manifest.

    Args:
        path: The folder, or the graph's file in it.

    Raises:
        ArtefactError: It is no artefact, was made by another version, has no good
            verdict, or a file is missing or is not the one that was exported.
    """
    folder = _folder(path)
    if not folder.is_dir():
        raise ArtefactError(f"no such artefact: {path}", hint=_HINT)
    if not (folder / "manifest.json").is_file():
        raise ArtefactError(
            f"{folder} has no manifest.json: it is no artefact, or its export was not "
            "finished or failed",
            hint="export the run again",
        )
    manifest = _read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise ArtefactError(
            f"expected format {FORMAT} in {folder / 'manifest.json'}, got "
            f"{manifest.get('format')!r}",
            hint="export the run again with this version of tumorlens, "
            f"{tumorlens.__version__}",
        )
    # The digests first: what is said of a damaged card would lead astray.
    _check_files(folder, manifest.get("files"))
    artefact = Artefact(folder, _read_card(folder / "model.json"))
    _check_complete(artefact, manifest["files"])
    if artefact.parity().get("passed") is not True:
        raise ArtefactError(
            f"{folder / 'parity.json'} holds no good verdict",
            hint="export the run again",
        )
    return artefact


def remove_artefact(folder: Path) -> None:
    """Remove an artefact, if there is one; killed halfway, it is one no more."""
    (folder / "manifest.json").unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def write_card(folder: Path, card: ArtefactCard) -> None:
    """Write `model.json`."""
    write_json(folder / "model.json", card.model_dump(mode="json"))


def write_readme(folder: Path, text: str) -> None:
    """Write `README.md`."""
    write_text(folder / "README.md", text)


def write_parity(folder: Path, verdict: dict[str, Any]) -> None:
    """Write `parity.json`."""
    write_json(folder / "parity.json", verdict)


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` for what is in the folder: the artefact is complete."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.iterdir())
        if file.name != "manifest.json"
    }
    write_json(folder / "manifest.json", {"format": FORMAT, "files": files})


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _read_card(path: Path) -> ArtefactCard:
    content = _read_json(path)
    if content.get("format") != FORMAT:
        raise ArtefactError(
            f"expected format {FORMAT} in {path}, got {content.get('format')!r}",
            hint="export the run again with this version of tumorlens, "
            f"{tumorlens.__version__}",
        )
    try:
        return ArtefactCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArtefactError(
            f"{path}: {first['msg']} at {'.'.join(map(str, first['loc']))}, got "
            f"{first['input']!r}",
            hint="it is from another version or was changed; export the run again",
        ) from None


def _check_files(folder: Path, files: Any) -> None:
    if not isinstance(files, dict):
        raise ArtefactError(
            f"{folder / 'manifest.json'} names no files", hint="export the run again"
        )
    for name, facts in files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ArtefactError(
                f"{folder} lacks {name!r}, which its manifest names",
                hint="copy the whole folder again, or export the run again",
            )
        expected = facts.get("sha256") if isinstance(facts, dict) else None
        if sha256_of(file) != expected:
            raise ArtefactError(
                f"{file} is not the file that was exported: its SHA-256 should be "
                f"{str(expected)[:12]}...",
                hint="it was changed or damaged: copy it again, or export again",
            )


def _check_complete(artefact: Artefact, files: dict[str, Any]) -> None:
    kind = artefact.card.kind
    missing = sorted({*_BESIDE, *GRAPH_FILES[kind]} - files.keys())
    if missing:
        raise ArtefactError(
            f"{artefact.path / 'manifest.json'} does not name {missing[0]!r}, which an "
            f"artefact of format {kind} has",
            hint="export the run again",
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ArtefactError(f"{path} is too large to be ours", hint=_HINT)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(
            f"cannot read {path}: {error.strerror}", hint=_HINT
        ) from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not JSON: {error}", hint=_HINT) from None
    if not isinstance(content, dict):
        raise ArtefactError(f"{path} holds no JSON object", hint=_HINT)
    return content
