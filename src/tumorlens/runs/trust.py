"""Trust in the answers of a run: `trust.json` and `gate.npz`, and what follows of them.

`tumorlens.evaluation.trust` fits and writes them; `Predictor`, pages and the model card
read them. Applying them needs numpy alone, so that an artefact needs no more than its
runtime. Both name the digest of the weights: those of other weights are refused.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tumorlens.errors import RunError
from tumorlens.files import (
    Count,
    Fraction,
    NotNegative,
    read_model,
    sha256_of,
    sha256_of_bytes,
    write_bytes,
    write_model,
)
from tumorlens.runs.estimate import CalibrationBins, Loss, Share
from tumorlens.stats import conformal
from tumorlens.stats.gate import PARTS, Gate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tumorlens.runs.folder import Run

FILE = "trust.json"
GATE_FILE = "gate.npz"
UNCERTAIN = "uncertain"
NO_BRAIN_MRI = "not-a-brain-mri"

_MAX_GATE_BYTES = 64 << 20
_HINT = "fit it again with: tumorlens trust RUN"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class Calibration(_Part):
    """How well probabilities mean what they say, on val."""

    log_loss: Loss
    brier: Loss
    ece: Share
    bins: CalibrationBins
    accuracy_by_bin: tuple[Share, ...]
    """Accuracy of each bin with images, with its interval over groups."""


class Sets(_Part):
    """Thresholds of the conformal sets; `None`: too few images, so every class."""

    coverage: Fraction
    """Least share of cases, and of each class's, in which the true class is in."""
    lac: NotNegative | None
    aps: NotNegative | None
    lac_by_class: tuple[NotNegative | None, ...]
    """That of each class. The sets of `predict` are these."""
    aps_by_class: tuple[NotNegative | None, ...]


class Promise(_Part):
    """When a run answers, and what is proved of its answers."""

    error: Fraction
    """Largest share of wrong answers that is promised."""
    confidence: Fraction
    """Chance with which the promise holds."""
    threshold: Fraction | None
    """Largest probability from which on an image is answered; `None` without proof."""
    num_groups: Count
    """Val images that it was fitted on, one of each group."""
    num_answered: Count
    num_wrong: Count
    words: str


class OperatingPoint(_Part):
    """A threshold on the probability of one class, chosen on val."""

    threshold: Fraction
    """From this probability on, the class counts as found."""
    specificity: Share
    """Share of other classes' val images below the threshold."""
    sensitivity: Share
    """Share of the class's val images at or above it."""


class GateFacts(_Part):
    """The gate of `gate.npz`."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of the file."""
    method: Literal["neighbour", "mahalanobis"]
    auroc: dict[str, Fraction]
    """How well each method tells val from spoilt val images: inverted, shuffled and
    noise; the mean decided."""
    false_alarms: Fraction
    """Share of val images that the threshold was chosen to turn away."""


class Trust(_Part):
    """Content of `trust.json`."""

    format: Literal[1] = 1
    weights_sha256: tuple[str, ...]
    """Digests of the networks' weights files."""
    classes: tuple[str, ...] = Field(min_length=2)
    num_images: Count
    """Val images that the temperature and the gate were fitted on."""
    num_groups: Count
    seed: Count
    """By which one image of each group was drawn for sets and promise."""
    num_folds: Count = 0
    """Folds whose strictest threshold and largest sets these are; 0 for one run."""
    temperature: float = Field(gt=0, allow_inf_nan=False)
    before: Calibration | None
    after: Calibration | None
    sets: Sets
    promise: Promise
    operating_points: dict[str, OperatingPoint]
    gate: GateFacts | None

    @model_validator(mode="after")
    def _one_per_class(self) -> Self:
        for name in ("lac_by_class", "aps_by_class"):
            if len(getattr(self.sets, name)) != len(self.classes):
                raise ValueError(f"expected a number for each class in sets.{name}")
        return self


class Judged(NamedTuple):
    """What trust says of one image."""

    answer: str
    """A class, `UNCERTAIN` or `NO_BRAIN_MRI`."""
    in_set: tuple[str, ...]
    """Classes of its conformal set, likeliest first."""
    gate: float | None = None
    """Share of val images that look less odd; `None` without a gate."""
    objection: str | None = None
    """Part of the gate that turned it away."""
    score: float | None = None
    """How odd it looks beyond what passes: above 0 it is turned away."""


_OfGate = tuple[float | None, str | None, float | None]
"""Percentile, objection and score of `Judged`."""


@dataclass(frozen=True)
class TrustedAnswers:
    """Trust as it is applied: thresholds and, where there are, gates."""

    trust: Trust
    gates: tuple[Gate, ...]
    """One, or one for each fold; none where a gate is not wanted or not known."""

    def judge(
        self,
        probs: NDArray[np.floating],
        embedding: NDArray[np.floating] | None = None,
        facts: NDArray[np.floating] | None = None,
    ) -> tuple[Judged, ...]:
        """Return what is to be answered for each image.

        Args:
            probs: Shape (N, C).
            embedding: Shape (N, E), those of all networks side by side; `None` leaves
                the gate out.
            facts: As from `stats.gate.facts_of`, shape (N, 3).
        """
        classes = self.trust.classes
        threshold = self.trust.promise.threshold or 0.0
        in_set = class_sets(self.trust, probs)
        order = np.argsort(-probs, axis=1, kind="stable")
        of_gate: list[_OfGate] = [(None, None, None)] * len(probs)
        if self.gates and embedding is not None and facts is not None:
            of_gate = self._gate(embedding, facts)
        found = []
        for row, (share, part, score) in enumerate(of_gate):
            best = order[row, 0]
            answer = classes[best] if probs[row, best] >= threshold else UNCERTAIN
            if part is not None:
                answer = NO_BRAIN_MRI
            named = tuple(
                classes[number] for number in order[row] if in_set[row, number]
            )
            found.append(Judged(answer, named, share, part, score))
        return tuple(found)

    def _gate(
        self, embedding: NDArray[np.floating], facts: NDArray[np.floating]
    ) -> list[_OfGate]:
        """Return percentile and objection of each image: those of the middle fold."""
        widths = [gate.components.shape[1] for gate in self.gates]
        own = np.split(embedding, np.cumsum(widths)[:-1], axis=1)
        parts = np.stack(
            [g.measure(e, facts) for g, e in zip(self.gates, own, strict=True)]
        )  # (G, N, 4)
        scores = parts.max(axis=2)  # (G, N)
        thresholds = np.array([[gate.threshold] for gate in self.gates])
        order = np.argsort(scores - thresholds, axis=0)
        found: list[_OfGate] = []
        for row, middle in enumerate(order[(len(self.gates) - 1) // 2].tolist()):
            gate, score = self.gates[middle], scores[middle, row]
            part = PARTS[int(parts[middle, row].argmax())]
            share = float(gate.percentile(scores[middle, [row]])[0])
            beyond = float(score - gate.threshold)
            found.append((share, part if beyond > 0 else None, beyond))
        return found


def class_sets(trust: Trust, probs: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which classes are in the conformal set of each image, shape (N, C).

    LAC by class, and always the likeliest class: an empty set would say nothing.
    """
    thresholds = [math.inf if one is None else one for one in trust.sets.lac_by_class]
    found = conformal.lac_sets(probs, thresholds)
    found |= probs >= probs.max(axis=1, keepdims=True)
    return found


def of_folds(parts: Sequence[Trust]) -> Trust:
    """Return the trust of a k-fold run, which answers as the mean of its folds.

    The strictest threshold and the largest sets: the proof is that of each fold.
    """
    strictest = max(parts, key=lambda part: part.promise.threshold or math.inf)
    sets = [part.sets for part in parts]
    by_class = {
        name: tuple(
            _largest(column)
            for column in zip(*(getattr(one, name) for one in sets), strict=True)
        )
        for name in ("lac_by_class", "aps_by_class")
    }
    words = f"of {len(parts)} folds the strictest, and the proof is that of one fold"
    if strictest.promise.threshold is None:
        words = f"not proved in each of {len(parts)} folds"
    promise = strictest.promise.model_copy(
        update={"words": f"{words}: {strictest.promise.words}"}
    )
    return strictest.model_copy(
        update={
            "weights_sha256": tuple(d for part in parts for d in part.weights_sha256),
            "num_images": sum(part.num_images for part in parts),
            "num_groups": sum(part.num_groups for part in parts),
            "num_folds": len(parts),
            "before": None,
            "after": None,
            "sets": sets[0].model_copy(
                update={
                    **by_class,
                    "lac": _largest([one.lac for one in sets]),
                    "aps": _largest([one.aps for one in sets]),
                }
            ),
            "promise": promise,
            "operating_points": {},
        }
    )


def read_trust(folder: Path, weights_sha256: Sequence[str]) -> TrustedAnswers | None:
    """Return the trust of a run or an artefact; `None` where there is none.

    Args:
        folder: Folder of the run or the artefact.
        weights_sha256: Digests of the weights that are to be trusted.

    Raises:
        RunError: A file is damaged or missing, or of other weights.
    """
    if not (folder / FILE).is_file():
        return None
    trust = read_model(folder / FILE, Trust, hint=_HINT)
    if trust.weights_sha256 != tuple(weights_sha256):
        raise RunError(
            f"{folder / FILE} is of other weights than those that are there",
            hint=_HINT,
        )
    if trust.gate is None:
        return TrustedAnswers(trust, ())
    path = folder / GATE_FILE
    if not path.is_file() or sha256_of(path) != trust.gate.sha256:
        raise RunError(
            f"{path} is not the file that {FILE} beside it names", hint=_HINT
        )
    return TrustedAnswers(trust, read_gates(path))


def trust_of_run(run: Run) -> TrustedAnswers | None:
    """Return the trust of a run; `None` where it, or one of its folds, has none.

    Raises what `trust_by_part` raises.
    """
    found = trust_by_part(run)
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    gates = tuple(gate for one in found for gate in one.gates)
    return TrustedAnswers(of_folds([one.trust for one in found]), gates)


def trust_by_part(run: Run) -> list[TrustedAnswers]:
    """Return the trust of a run, or that of each fold; none where one has none.

    Raises:
        RunError: A file is damaged, missing or changed, or of other weights.
    """
    parts = run.folds() if run.is_kfold else (run,)
    if not all((part.path / FILE).is_file() for part in parts):
        return []
    found = []
    for part in parts:
        cards = [one.card(check_weights=False) for one in part.networks()]
        trusted = read_trust(part.path, [card.weights_sha256 for card in cards])
        assert trusted is not None  # its file is there
        known = {card.trust_sha256 for card in cards} - {None}
        if known and known != {sha256_of(part.path / FILE)}:
            raise RunError(
                f"{part.path / FILE} is not the file that model.json names", hint=_HINT
            )
        found.append(trusted)
    return found


def write_trust(folder: Path, trust: Trust, gates: Sequence[Gate]) -> Trust:
    """Write both files, the gate first, and return what `trust.json` holds."""
    if trust.gate is not None:
        content = gates_as_bytes(gates)
        write_bytes(folder / GATE_FILE, content)
        facts = trust.gate.model_copy(update={"sha256": sha256_of_bytes(content)})
        trust = trust.model_copy(update={"gate": facts})
    write_model(folder / FILE, trust)
    return trust


_ARRAYS: dict[str, tuple[str, int]] = {
    "mean": ("f4", 1),
    "components": ("f2", 2),
    "known": ("f2", 2),
    "precision": ("f4", 2),
    "middle": ("f8", 1),
    "spread": ("f8", 2),
    "scores": ("f4", 1),
    "threshold": ("f8", 0),
}
"""Array of a gate -> its type and number of axes."""


def gates_as_bytes(gates: Iterable[Gate]) -> bytes:
    """Return the content of `gate.npz`."""
    arrays: dict[str, Any] = {}
    for number, gate in enumerate(gates):
        for name, (kind, _) in _ARRAYS.items():
            arrays[f"{number}-{name}"] = np.asarray(getattr(gate, name), kind)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def read_gates(path: Path) -> tuple[Gate, ...]:
    """Return the gates of a file, after checking all of it.

    Raises:
        RunError: The file cannot be read, is too large or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return tuple(_read_gate(file, n) for n in range(_num_gates(file)))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path} is damaged: {error}", hint=_HINT) from None


def _num_gates(file: zipfile.ZipFile) -> int:
    """Return how many gates a file holds.

    Raises:
        ValueError: It is too large, or has other arrays than those of gates.
    """
    names = [one.filename.removesuffix(".npy") for one in file.infolist()]
    if sum(one.file_size for one in file.infolist()) > _MAX_GATE_BYTES:
        raise ValueError(f"it is larger than {_MAX_GATE_BYTES:,} bytes")
    num_gates = len(names) // len(_ARRAYS)
    expected = [f"{n}-{name}" for n in range(num_gates) for name in _ARRAYS]
    if not names or sorted(names) != sorted(expected):
        raise ValueError("expected the arrays of one gate or more")
    return num_gates


def _read_gate(file: zipfile.ZipFile, number: int) -> Gate:
    """Return one gate, each of its arrays of the right type and shape.

    Raises:
        ValueError: One is not, or has numbers that are not finite.
    """
    arrays: dict[str, Any] = {}
    for name, (kind, num_axes) in _ARRAYS.items():
        with file.open(f"{number}-{name}.npy") as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
        if array.dtype.str[1:] != kind or array.ndim != num_axes:
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has numbers that are not finite")
        arrays[name] = array
    size, num_kept = len(arrays["mean"]), len(arrays["components"])
    shapes = {
        "components": (num_kept, size),
        "known": (len(arrays["known"]), num_kept),
        "middle": (len(PARTS),),
        "spread": (2, len(PARTS)),
    }
    if arrays["precision"].size:
        shapes["precision"] = (num_kept, num_kept)
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"expected {name} of shape {shape}")
    if not len(arrays["known"]) or not len(arrays["scores"]):
        raise ValueError("a gate needs images of train and val")
    if (arrays["spread"] <= 0).any():
        raise ValueError("expected spreads above 0")
    method: Any = "mahalanobis" if arrays["precision"].size else "neighbour"
    arrays["threshold"] = float(arrays["threshold"])
    assert {one.name for one in fields(Gate)} == {"method", *arrays}
    return Gate(method=method, **arrays)


def _largest(thresholds: Iterable[float | None]) -> float | None:
    found = list(thresholds)
    return None if None in found else max(one for one in found if one is not None)
