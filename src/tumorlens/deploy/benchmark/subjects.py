"""What a benchmark measures: which artefacts, and on which images.

Labels play no part in it, so images are files and nothing else. What the newcomer would
get wrong: all artefacts are asked about the same files, those of the first run, even
where runs have others; times of different files cannot be compared.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.data.files import walk_images
from tumorlens.deploy.artefact import KINDS, Artefact, Kind, is_artefact, open_artefact
from tumorlens.deploy.benchmark.fastest import weights_of
from tumorlens.errors import ArtefactError, ConfigError, DataError, RunError
from tumorlens.runs.folder import Run, open_run

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Subject:
    """An artefact under a name of its own."""

    name: str
    run: str
    """The same for artefacts of one run, which are compared with each other."""
    artefact: Artefact


def find_subjects(
    paths: Sequence[Path], kinds: Sequence[Kind] | None = None
) -> list[Subject]:
    """Return the artefacts of runs, and those that are named themselves.

    Args:
        paths: Run folders, and folders of artefacts.
        kinds: Which of a run's artefacts; `None` takes all there are.

    Raises:
        ConfigError: A path is named twice, or none is.
        RunError: A path is neither.
        ArtefactError: A run has no artefact, or not one that is asked for; or an
            artefact was changed or damaged, or is of weights that its run no longer
            has.
    """
    if not paths:
        raise ConfigError("no run was named", hint="tumorlens benchmark RUN...")
    found: dict[Path, tuple[str, Artefact]] = {}
    for path in paths:
        for artefact in _artefacts_at(path, kinds):
            folder = artefact.path.resolve()
            if folder in found:
                raise ConfigError(
                    f"{artefact.path} is named twice", hint="name each run once"
                )
            found[folder] = (_run_key(artefact), artefact)
    check_weights([artefact for _, artefact in found.values()])
    short = {run: Path(run).name for run, _ in found.values()}
    if max(Counter(short.values()).values()) > 1:
        short = {run: run for run in short}
    return [
        Subject(
            artefact.card.kind
            if len(short) == 1
            else f"{short[run]} {artefact.card.kind}",
            short[run],
            artefact,
        )
        for run, artefact in found.values()
    ]


def check_weights(artefacts: Sequence[Artefact]) -> None:
    """Refuse artefacts of weights that the run they lie in no longer has.

    Raises:
        ArtefactError: There are such, all named that lie in the same run.
        RunError: The run around one has no weights.
    """
    stale: dict[Path, list[Kind]] = {}
    for artefact in artefacts:
        run = run_folder(artefact)
        if run and weights_of(run) not in (None, artefact.card.weights_sha256):
            stale.setdefault(run, []).append(artefact.card.kind)
    for run, kinds in stale.items():
        formats = [word for kind in kinds for word in ("--format", kind)]
        raise ArtefactError(
            f"{run} has other weights by now than its {', '.join(kinds)}",
            hint=shlex.join(["tumorlens", "export", str(run), *formats]),
        )


def find_files(
    subjects: Sequence[Subject], *, data: Path | None, num_files: int
) -> list[Path]:
    """Return what `files_of` gives for the runs that artefacts still lie in."""
    folders = [run_folder(one.artefact) for one in subjects]
    return files_of([one for one in folders if one], data=data, num_files=num_files)


def files_of(runs: Sequence[Path], *, data: Path | None, num_files: int) -> list[Path]:
    """Return at most so many image files, taken evenly from all there are.

    Args:
        runs: Without `data`, the val images of the first one that has any.
        data: A folder, of which every image counts, or one image.
        num_files: At most.

    Raises:
        DataError: There is none.
    """
    files = list(walk_images([data])) if data else _val_files(runs)
    # What only has the name of an image, such as a link to nothing, takes no time.
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError(f"no image file in {data}", hint="give another --data")
    step = len(files) / min(num_files, len(files))
    return [files[int(number * step)] for number in range(min(num_files, len(files)))]


def run_folder(artefact: Artefact) -> Path | None:
    """Return where the run is that an artefact still lies in, if it does."""
    folder = artefact.path.resolve().parents[1]
    return folder if (folder / "config.toml").is_file() else None


def _artefacts_at(path: Path, kinds: Sequence[Kind] | None) -> list[Artefact]:
    if is_artefact(path):
        return [open_artefact(path)]
    run = open_run(path)
    folder = run.path / "export"
    there = [kind for kind in KINDS if is_artefact(folder / kind)]
    missing = [kind for kind in kinds or [] if kind not in there]
    if missing:
        wanted = [word for kind in missing for word in ("--format", kind)]
        raise ArtefactError(
            f"{run.path} has no artefact of the format {', '.join(missing)}",
            hint=f"make it with: {_command(run, *wanted)}",
        )
    if not there:
        raise ArtefactError(
            f"{run.path} has no artefacts",
            hint=f"make them with: {_command(run, '--format', 'all')}",
        )
    return [open_artefact(folder / kind) for kind in there if kind in (kinds or there)]


def _command(run: Run, *words: str) -> str:
    """Return how a run is exported, or its first fold."""
    folder = run.fold_path(0) if run.is_kfold else run.path
    return shlex.join(["tumorlens", "export", str(folder), *words])


def _run_key(artefact: Artefact) -> str:
    folder = run_folder(artefact)
    return str(folder or artefact.card.run)


def _val_files(runs: Sequence[Path]) -> list[Path]:
    for folder in runs:
        run = open_run(folder)
        try:
            rows = [row for row in run.split() if row.subset == "val"]
        except RunError:  # imported weights have no split
            continue
        if not rows or run.config.data.path is None:
            continue
        place = Path(run.config.data.path)
        root = place.parent if place.is_file() else place
        files = [root / row.path for row in rows]
        gone = [file for file in files if not file.is_file()]
        if gone:
            raise DataError(
                f"there is no {gone[0]}, which is a val image of {folder}",
                hint="the images have moved: give --data FOLDER",
            )
        return files
    raise DataError(
        "no image to measure with: there is no run folder with val images",
        hint="give --data FOLDER",
    )
