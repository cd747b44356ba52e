"""The artefact folder: an exported model and all that is needed to use it.

    ARTEFACT/graph.onnx ...  the graph; its name and number of files go by the format
             model.json      how an image becomes input, and what the outputs mean
             parity.json     the verdict: its answers beside those of its run
             README.md       how to use it where there is no tumorlens
             manifest.json   the SHA-256 of every other file

This module needs neither torch nor a runtime. The manifest is the seal: it is written
after the verdict and removed before anything else is, so a folder without one is a
failed or interrupted export and is never opened. It guards against damage, not against
a forger: whoever can change a file can change its digest.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

import tumorlens
from tumorlens.data.images import DEFAULT_LIMITS, ImageLimits
from tumorlens.errors import ArtefactError, RunError
from tumorlens.files import (
    Count,
    Fraction,
    NotNegative,
    have_both_bounds,
    read_model,
    sha256_of,
    write_model,
    write_text,
)
from tumorlens.text import counted

FORMAT: Literal[1] = 1
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
"""Same as `config.Fit`, whose module takes longer to import than a prediction does."""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are made: quantized ones are made from earlier ones."""

GRAPH_FILES: dict[Kind, tuple[str, ...]] = {
    "torchscript": ("graph.pt",),
    "torch-export": ("graph.pt2",),
    "onnx": ("graph.onnx",),
    "onnx-int8": ("graph.onnx",),
    "openvino": ("graph.xml", "graph.bin"),
    "openvino-bf16": ("graph.xml", "graph.bin"),
    "openvino-int8": ("graph.xml", "graph.bin"),
}
"""Files of the graph by format; a runtime opens the first."""

OUTPUTS = ("probs", "logits", "embedding")

_BESIDE = ("model.json", "parity.json", "README.md")
"""Other files that the manifest must name."""

SEEN = "seen.npz"
"""What the training has seen, unless it was left out: see `tumorlens.data.seen`."""

CARD_FILES = ("card.md", "card.json", "checklist.csv")
"""What `tumorlens card` writes beside it, and a new export removes: it is of the old
graph."""

_MAX_JSON_BYTES = 64 << 20
_HINT = "give a folder that export has made, such as RUN/export/onnx"
_EXPORT_AGAIN = (
    f"export the run again with this version of tumorlens, {tumorlens.__version__}"
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ArtefactCard(BaseModel):
    """Content of an artefact's `model.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[1] = FORMAT
    tumorlens: str
    """Version of this package that wrote the artefact."""
    kind: Kind
    precision: Precision
    """Number type that the graph was made for; `Session.precision` is the real one."""
    run: str
    """Name of the run folder."""
    networks: tuple[str, ...] = Field(min_length=1)
    """timm's names: one, or those of an ensemble's members."""
    weights_sha256: tuple[str, ...] = Field(min_length=1)
    """Digests of the weights files that the graph holds."""
    classes: tuple[str, ...] = Field(min_length=2)
    """Names in the order of the outputs `probs` and `logits`."""
    size_px: int = Field(ge=16, le=2048)
    """Side of the square images that the graph takes."""
    fit: Fit
    """How an image becomes a square: see `images.fit_square`."""
    views: str
    """Name of the policy of `tumorlens.training.views` that the graph averages over."""
    temperature: tuple[float, ...]
    """Divisor of each network's logits before softmax."""
    embedding_size: int = Field(ge=1)
    max_bytes: int = Field(DEFAULT_LIMITS.max_bytes, gt=0)
    """Largest file that is opened, as in the settings of the run."""
    max_pixels: int = Field(DEFAULT_LIMITS.max_pixels, gt=0)
    """Largest image that is decoded."""
    made_with: dict[str, str]
    """Library -> version."""

    @property
    def limits(self) -> ImageLimits:
        """Limits above which a file is refused."""
        return ImageLimits(max_bytes=self.max_bytes, max_pixels=self.max_pixels)


class Flip(_Part):
    """An image for which run and artefact predict different classes."""

    path: str
    label: str
    """True class."""
    run: str
    """Class that the run predicts."""
    artefact: str | None
    """Class that the artefact predicts; `None` where its answer is not finite."""
    margin: Fraction
    """Difference between the run's two largest probabilities."""
    within_rounding: bool
    """Whether the margin is small enough to blame the flip on rounding."""


class Change(_Part):
    """A difference of two accuracies, artefact less run, with its 95 % interval."""

    value: float
    low: float | None
    """`None`, as `high`, where there is no interval, as with a single group."""
    high: float | None
    method: str | None = None
    """How the interval was made; `None` in files of early versions."""
    unit: Literal["group"] | None = None
    num_units: int | None = None
    """Number of groups of the images."""

    _have_both_bounds = model_validator(mode="after")(have_both_bounds)


class ParityAccuracy(_Part):
    """Accuracy on the val images."""

    run: Fraction
    artefact: Fraction
    change: Change


class Bounds(_Part):
    """Limits that an artefact must keep to."""

    max_difference: float | None
    """Largest difference of any probability of any image; `None` for no limit."""
    max_drop: float
    """Largest loss of accuracy, a fraction."""
    flip_margin: float | None
    """Margin of the run up to which a label may flip; `None` where any may, as for
    int8, which is judged by its accuracy."""


class PlainParity(_Part):
    """Why a plainly quantized artefact was made again with more care."""

    reasons: tuple[str, ...]
    accuracy: ParityAccuracy


class Verdict(_Part):
    """Whether an artefact passed. Without figures, it could not be made at all."""

    format: Literal[1] = 1
    kind: Kind
    command: str
    """Command line of the export."""
    weights_sha256: tuple[str, ...]
    """Digests of the run's weights files."""
    passed: bool = Field(strict=True)
    reasons: tuple[str, ...]
    """Why it did not pass; empty if it did."""


class Parity(Verdict):
    """Content of an artefact's `parity.json`: a verdict with its figures on val."""

    num_images: Count
    max_difference: NotNegative
    """Largest difference of any probability."""
    mean_difference: NotNegative
    """Mean over images of each image's largest difference."""
    worst_image: str
    flips: tuple[Flip, ...]
    accuracy: ParityAccuracy
    bounds: Bounds
    plain: PlainParity | None = None
    """Figures of the plain version, where this is the careful one."""

    @computed_field  # type: ignore[prop-decorator] # mypy has no decorated properties
    @property
    def excludes_larger_drop(self) -> bool:
        """Whether the images show that accuracy falls by no more than `max_drop`.

        Non-inferiority: the low end of the interval of the change is above the limit.
        """
        low = self.accuracy.change.low
        return low is not None and low >= -self.bounds.max_drop

    @property
    def shown(self) -> str:
        """What the images show about the loss of accuracy, in a sentence."""
        points = f"{100 * self.bounds.max_drop:g}"
        limit = f"a loss of more than {points} point{'s' * (points != '1')}"
        if self.excludes_larger_drop:
            return f"{limit} is excluded (95 %)"
        low = self.accuracy.change.low
        up_to = "" if low is None else f"; up to {-100 * low:.1f} are possible"
        return f"{limit} is not excluded by {counted(self.num_images, 'image')}{up_to}"


class ManifestFile(_Part):
    """Size and digest of a file."""

    bytes: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(_Part):
    """Content of `manifest.json`."""

    format: Literal[1] = FORMAT
    files: dict[str, ManifestFile]
    """File name -> its facts; every file of the folder but the manifest."""


@dataclass(frozen=True)
class Artefact:
    """An artefact on disk whose files are those that were exported."""

    path: Path
    card: ArtefactCard

    @property
    def graph_path(self) -> Path:
        """File that the runtime opens."""
        return self.path / GRAPH_FILES[self.card.kind][0]

    @property
    def size_bytes(self) -> int:
        """Size of the graph's files."""
        names = GRAPH_FILES[self.card.kind]
        return sum((self.path / name).stat().st_size for name in names)

    def parity(self) -> Parity:
        """Return the verdict that came with the export.

        Raises:
            ArtefactError: The file is missing or damaged.
        """
        return _read(self.path / "parity.json", Parity)


def precision_of(kind: Kind) -> Precision:
    """Return the number type that a graph of this kind is made for.

    Example:
        >>> precision_of("openvino-int8"), precision_of("torchscript")
        ('int8', 'fp32')
    """
    if kind.endswith("-int8"):
        return "int8"
    return "bf16" if kind.endswith("-bf16") else "fp32"


def is_artefact(path: Path) -> bool:
    """Whether a folder, or a file in it, is an artefact, complete or not.

    A graph whose manifest was not copied along counts; `open_artefact` refuses it with
    the reason.
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
    manifest = _read(folder / "manifest.json", Manifest)
    # The digests first: an error about a field of a damaged card would mislead.
    _check_files(folder, manifest)
    artefact = Artefact(folder, _read(folder / "model.json", ArtefactCard))
    _check_complete(artefact, manifest)
    if not artefact.parity().passed:
        raise ArtefactError(
            f"{folder / 'parity.json'} holds no good verdict",
            hint="export the run again",
        )
    return artefact


def remove_artefact(folder: Path) -> None:
    """Remove an artefact, if there is one; killed halfway, it is one no more.

    What no export wrote stays, and the folder with it.
    """
    seal = folder / "manifest.json"
    names = {
        *_BESIDE,
        *CARD_FILES,
        *(name for names in GRAPH_FILES.values() for name in names),
    }
    with suppress(ArtefactError):  # there is none, or a damaged one
        names |= _read(seal, Manifest).files.keys()
    seal.unlink(missing_ok=True)
    for name in names:
        if Path(name).name == name and (folder / name).is_file():
            (folder / name).unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def replace_artefact(folder: Path, *, by: Path) -> None:
    """Give a sealed artefact the name of an earlier one, which is removed."""
    remove_artefact(folder)
    if not folder.exists():
        by.replace(folder)
        return
    for file in sorted(by.iterdir(), key=lambda file: file.name == "manifest.json"):
        file.replace(folder / file.name)  # the seal last


def seal_artefact(
    folder: Path, card: ArtefactCard, verdict: Verdict, readme: str
) -> None:
    """Write what belongs beside a graph; with the manifest the artefact is complete.

    Raises:
        DataError: The folder cannot be written.
    """
    write_model(folder / "model.json", card)
    write_model(folder / "parity.json", verdict)
    write_text(folder / "README.md", readme)
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` for what is in the folder: the artefact is complete."""
    files = {
        file.name: ManifestFile(bytes=file.stat().st_size, sha256=sha256_of(file))
        for file in sorted(folder.iterdir())
        if file.name != "manifest.json"
    }
    write_model(folder / "manifest.json", Manifest(files=files))


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, facts in manifest.files.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ArtefactError(
                f"{folder} lacks {name!r}, which its manifest names",
                hint="copy the whole folder again, or export the run again",
            )
        if sha256_of(file) != facts.sha256:
            raise ArtefactError(
                f"{file} is not the file that was exported: its SHA-256 should be "
                f"{facts.sha256[:12]}...",
                hint="it was changed or damaged: copy it again, or export again",
            )


def _check_complete(artefact: Artefact, manifest: Manifest) -> None:
    kind = artefact.card.kind
    missing = sorted({*_BESIDE, *GRAPH_FILES[kind]} - manifest.files.keys())
    if missing:
        raise ArtefactError(
            f"{artefact.path / 'manifest.json'} does not name {missing[0]!r}, which an "
            f"artefact of format {kind} has",
            hint="export the run again",
        )


Content = TypeVar("Content", bound=BaseModel)


def _read(path: Path, model: type[Content]) -> Content:
    try:
        return read_model(path, model, hint=_EXPORT_AGAIN, max_bytes=_MAX_JSON_BYTES)
    except RunError as error:
        raise ArtefactError(error.problem, hint=error.hint) from None
