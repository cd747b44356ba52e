"""Which artefact of a run is the fastest here: for `predict --best`.

Which runtime and which precision are fast depends on the processor, so they are tried,
in turns and for a second or two, on this machine. Candidates are the artefacts whose
verdict was good and whose weights the run still has; earlier benchmarks don't count.
"""

from __future__ import annotations

import importlib.util
import shlex
import time
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from tumorlens.deploy.artefact import KINDS, Artefact, is_artefact, open_artefact
from tumorlens.deploy.benchmark.timing import take_turns
from tumorlens.deploy.runtimes import Session, open_session
from tumorlens.errors import ArtefactError, MissingExtraError
from tumorlens.extras import pip_line
from tumorlens.runs.folder import open_run

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_BATCH_SIZE = 8
_MAX_ROUNDS = 7
_BUDGET_S = 1.5
"""Budget for all of them together, without loading. One round is always made."""


@dataclass(frozen=True)
class Choice:
    """The artefact to use, and why."""

    path: Path
    summary: str


def choose_fastest(run: Path) -> Choice:
    """Return the fastest artefact of a run whose verdict was good.

    Those of torch are only tried where there is no other: the import of torch alone
    takes longer than the others need for a hundred images.

    Args:
        run: Run folder with exported artefacts.

    Raises:
        ArtefactError: There is none, or none that can be used here; or the folder is
            an artefact itself.
    """
    if is_artefact(run):
        raise ArtefactError(
            f"--best takes a run and chooses among its artefacts, and {run} is one of "
            "them",
            hint="give the run folder, or leave --best out",
        )
    passed_over: list[str] = []
    missing: list[str] = []
    good = _good_artefacts(run, passed_over, missing)
    light = [one for one in good if not one.card.kind.startswith("torch")]
    sessions: dict[Path, Session] = {}
    for artefact in light or good:
        try:
            sessions[artefact.path] = open_session(artefact)
        except (ArtefactError, MissingExtraError) as error:
            passed_over.append(f"{artefact.card.kind}: {error.problem}")
    if not sessions:
        raise ArtefactError(
            f"{run} has no artefact that can be used here"
            + "".join(f"; {reason}" for reason in passed_over),
            hint=_way_out(run, missing),
        )
    seconds = _measure(list(sessions.values()))
    order = sorted(zip(seconds, sessions, strict=True))
    figures = ", ".join(
        f"{path.name} {1000 * one:.2f} ms" for one, path in order if len(order) > 1
    )
    summary = f"the fastest here is {order[0][1].name}" + (
        f" (per image: {figures})" if figures else ": the only one to try"
    )
    return Choice(order[0][1], "; passed over, ".join([summary, *passed_over]))


def weights_of(run: Path) -> tuple[str, ...] | None:
    """Return the digests of a run's weights, as in an artefact's card.

    Args:
        run: Run folder. Returns `None` if it is not a run.

    Raises:
        RunError: The run has no weights yet, or a member of an ensemble is gone.
    """
    if not (run / "config.toml").is_file():
        return None
    networks = open_run(run).networks()
    return tuple(one.card(check_weights=False).weights_sha256 for one in networks)


def _way_out(run: Path, missing: list[str]) -> str:
    """Return the hint where no artefact can be used.

    Args:
        run: Run folder.
        missing: Missing libraries of good artefacts. A lighter one is named rather than
            torch.
    """
    if missing:
        return pip_line(min(missing, key=lambda library: library == "torch"))
    return shlex.join(["tumorlens", "export", str(run), "--format", "all"])


def _good_artefacts(
    run: Path, passed_over: list[str], missing: list[str]
) -> list[Artefact]:
    """Return those that are complete, proven, of the run's weights, with a runtime."""
    found = []
    weights = weights_of(run)
    for kind in KINDS:
        path = run / "export" / kind
        if not is_artefact(path):
            continue
        runtime = "torch" if kind.startswith("torch") else kind.partition("-")[0]
        module = "onnxruntime" if runtime == "onnx" else runtime
        try:
            artefact = open_artefact(path)
            if weights not in (None, artefact.card.weights_sha256):
                passed_over.append(f"{kind}: the run has other weights by now")
            elif not _is_installed(module):
                passed_over.append(f"{kind}: {module} is not installed")
                missing.append(module)
            else:
                found.append(artefact)
        except ArtefactError as error:
            passed_over.append(f"{kind}: {error.problem}")
    return found


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _measure(sessions: list[Session]) -> list[float]:
    """Return the median seconds per image of each, measured in turns."""
    if len(sessions) == 1:
        return [0.0]
    rng = np.random.default_rng(0)
    batches = [
        rng.integers(0, 256, (_BATCH_SIZE, one.size_px, one.size_px, 3), np.uint8)
        for one in sessions
    ]
    for session, images in zip(sessions, batches, strict=True):
        session(images)  # the first call of a runtime allocates
    taken = take_turns(
        [
            partial(_seconds_of, session, images)
            for session, images in zip(sessions, batches, strict=True)
        ],
        seconds=_BUDGET_S,
        min_rounds=1,
        max_rounds=_MAX_ROUNDS,
    )
    return [median(seconds) for seconds in taken]


def _seconds_of(session: Session, images: NDArray[np.uint8], _round: int) -> float:
    """Return the seconds per image of one call."""
    start = time.perf_counter()
    session(images)
    return (time.perf_counter() - start) / len(images)
