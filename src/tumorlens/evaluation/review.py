"""Review of labels: which are doubtful, by networks that have not learnt them.

A network that was trained on a wrong label has learnt it. So each image is judged by a
network that had it in test or val: in a k-fold run every picture, by the fold that
tests it. Pictures under two labels, which no split trains on, are judged too. cleanlab
turns the probabilities into label quality and decides which labels are taken for wrong.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from tumorlens.data.index import check_unchanged, read_labels
from tumorlens.data.split import CONFLICT, COPY, LEFT_OUT, UNREADABLE
from tumorlens.errors import RunError
from tumorlens.evaluation.features import load_networks, pass_over
from tumorlens.evaluation.inference import card_of
from tumorlens.evaluation.neighbours import nearest
from tumorlens.evaluation.review_file import FILE, Review, ReviewedImage, write_tables
from tumorlens.evaluation.subsets import check_subset, read_data
from tumorlens.extras import require
from tumorlens.files import write_model
from tumorlens.stats.gate import unit
from tumorlens.training.dataset import PreparedData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tumorlens.data.index import Index, SplitRow
    from tumorlens.evaluation.map_checks import Neighbour
    from tumorlens.runs.folder import Run
    from tumorlens.runs.progress import Stage

NUM_SHOWN = 100
"""Images, the most doubtful first, that are shown with their nearest ones."""

NUM_NEAREST = 3

_LOOKED = "review"
"""Name of the subset of the images that are looked at."""


class Reviewed(NamedTuple):
    """A review, and the folder of its files."""

    found: Review
    folder: Path


@dataclass(frozen=True)
class _Looked:
    """What one network makes of N images."""

    rows: list[SplitRow]
    probs: NDArray[np.float64]
    """Shape (N, C)."""
    embedding: NDArray[np.float32]
    """Shape (N, E), each of length 1."""
    places: NDArray[np.float64]
    """On the map, shape (N, 2)."""
    shown_variance: float


def review(
    run: Run,
    *,
    data: Path | Sequence[Path] | None = None,
    device: str = "auto",
    command: str = "",
    stage: Stage = lambda _words: nullcontext(None),
) -> Reviewed:
    """Judge the labels of a run's images, and write the folder `review`.

    Args:
        run: A finished run. Of one without folds, val and test are looked at. It is
            logged as a look at test.
        data: Folder of the images, or of each set; `None` takes the run's `data.path`.
        device: As for the setting `train.device`.
        command: Command line of the user, for the log of looks.
        stage: Shows the progress.

    Raises:
        DataError: There is no data, or an image cannot be read any more.
        MissingExtraError: The extra `review` is not installed.
        RunError: The run is not finished, has no split or weights or too few images, or
            the data has changed.
    """
    check_subset(run, "test")
    for module in ("cleanlab.filter", "cleanlab.rank"):
        require(module, needed_by="tumorlens review")
    with stage("reading"):
        index = read_data(run, data)
        rows = run.split()
        check_unchanged(rows, index)
    parts = run.folds() or (run,)
    looked = []
    for number, (part, paths) in enumerate(zip(parts, _paths(run, rows), strict=True)):
        words = "looking at the images"
        if len(parts) > 1:
            words += f" of fold {number}"
        looked.append(_look(part, index, paths, words, device=device, stage=stage))
    # Logged before the figures exist: none can be seen without an entry.
    run.log_look(subset="test", command=command)
    found = _judge(run, index, rows, looked)
    folder, labels = run.review_path, run.config.data.labels
    corrected = read_labels(Path(labels), index) if labels else {}
    run.remove_partial_files()
    write_tables(folder, found, corrected=corrected)
    write_model(folder / FILE, found)
    return Reviewed(found, folder)


def _paths(run: Run, rows: Sequence[SplitRow]) -> list[set[str]]:
    """Return the paths that each network of a run looks at.

    A picture under two labels goes to the network that has no image of its group in
    train; where all have none, to the first.

    Raises:
        RunError: There are fewer than two.
    """
    if run.is_kfold:
        part_of = {
            row.group: int(row.subset.removeprefix("fold-"))
            for row in rows
            if row.subset != LEFT_OUT
        }
        own: list[set[str]] = [set() for _ in range(run.config.data.num_folds)]
        for row in rows:
            if row.subset != LEFT_OUT or _is_conflict(row):
                own[part_of.get(row.group, 0)].add(row.path)
    else:
        learnt = {row.group for row in rows if row.subset == "train"}
        own = [
            {
                row.path
                for row in rows
                if row.subset in ("val", "test")
                or (_is_conflict(row) and row.group not in learnt)
            }
        ]
    if min(map(len, own)) < 2:
        raise RunError(
            f"a network of {run.path} has fewer than two images that it was not "
            "trained on",
            hint=f"{run.split_path} lists the subset of each image",
        )
    return own


def _is_conflict(row: SplitRow) -> bool:
    return row.subset == LEFT_OUT and row.reason.startswith(CONFLICT)


def _look(
    part: Run,
    index: Index,
    paths: set[str],
    words: str,
    *,
    device: str,
    stage: Stage,
) -> _Looked:
    rows = tuple(
        replace(row, subset=_LOOKED if row.path in paths else row.subset)
        for row in part.split()
    )
    data = PreparedData(index, rows)
    networks = load_networks(
        [(one, card_of(one, index)) for one in part.networks()], device
    )
    with stage(words) as progress:
        found = pass_over(networks, data, _LOOKED, progress=progress)
    embedding = unit(found.embedding)
    plane = PCA(n_components=2, svd_solver="randomized", random_state=0)
    places = plane.fit_transform(embedding)
    # Equal embeddings have no variance to be shown.
    shown = np.nan_to_num(plane.explained_variance_ratio_.sum())
    return _Looked(
        data.subset_rows(_LOOKED), found.probs, embedding, places, float(min(shown, 1))
    )


def _judge(
    run: Run, index: Index, rows: Sequence[SplitRow], looked: Sequence[_Looked]
) -> Review:
    numbers = {label: number for number, label in enumerate(index.classes)}
    labels = np.array([numbers[row.label] for part in looked for row in part.rows])
    probs = np.concatenate([part.probs for part in looked])
    quality, is_suspected = judge_labels(labels, probs)
    copies, conflicts = _copies(rows), {row.path for row in rows if _is_conflict(row)}
    images = []
    for place, (number, at, row) in enumerate(
        (number, at, row)
        for number, part in enumerate(looked)
        for at, row in enumerate(part.rows)
    ):
        likely = int(probs[place].argmax())
        x, y = looked[number].places[at].tolist()
        images.append(
            ReviewedImage(
                path=row.path,
                label=row.label,
                group=row.group,
                likely=index.classes[likely],
                quality=float(quality[place]),
                prob=float(probs[place, likely]),
                is_suspected=bool(is_suspected[place]),
                is_conflict=row.path in conflicts,
                part=number,
                x=x,
                y=y,
                copies=tuple(copies.get(row.path, ())),
            )
        )
    images.sort(key=lambda one: (one.quality, one.path))
    version = require("cleanlab").__version__
    return Review(
        run=run.name,
        protocol=run.config.data.protocol,
        leak=run.leak(),
        classes=index.classes,
        method=(
            "Label quality is the probability of the label by a network that was not "
            f"trained on the image; cleanlab {version} decides by confident learning "
            "(prune by noise rate) which labels are doubtful."
        ),
        shown_variance=tuple(part.shown_variance for part in looked),
        images=tuple(
            one.model_copy(update={"nearest": _nearest(looked[one.part], one.path)})
            if rank < NUM_SHOWN
            else one
            for rank, one in enumerate(images)
        ),
        not_looked_at=_not_looked_at(rows, {one.path for one in images}),
    )


def judge_labels(
    labels: NDArray[np.integer], probs: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return label quality and which labels are taken for wrong, both of shape (N,).

    Args:
        labels: Class indices, shape (N,).
        probs: Probabilities from networks that have not learnt these labels, (N, C).

    Source:
        Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in
        dataset labels", JAIR 70, 2021.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    with warnings.catch_warnings():
        # That a class of few images may have more than it finds.
        warnings.filterwarnings("ignore", message="May not flag all label issues")
        is_suspected = find_label_issues(labels, probs, n_jobs=1)
    quality = get_label_quality_scores(labels, probs, method="self_confidence")
    return np.asarray(quality, np.float64), np.asarray(is_suspected, bool)


def _copies(rows: Sequence[SplitRow]) -> dict[str, list[str]]:
    """Return path -> the files that were left out as copies of it."""
    copies = defaultdict(list)
    for row in rows:
        if row.subset == LEFT_OUT and row.reason.startswith(f"{COPY} "):
            copies[row.reason.removeprefix(f"{COPY} ")].append(row.path)
    return copies


def _nearest(part: _Looked, path: str) -> tuple[Neighbour, ...]:
    place = next(n for n, row in enumerate(part.rows) if row.path == path)
    others = [n for n, r in enumerate(part.rows) if r.group != part.rows[place].group]
    return nearest(
        part.embedding[place],
        part.embedding[others],
        paths=[part.rows[n].path for n in others],
        labels=[part.rows[n].label for n in others],
        count=NUM_NEAREST,
    )


def _not_looked_at(rows: Sequence[SplitRow], looked: set[str]) -> Mapping[str, int]:
    """Return why files were not looked at, in words, and the number of each kind."""
    kinds = Counter(_why_not(row) for row in rows if row.path not in looked)
    return dict(sorted(kinds.items(), key=lambda one: -one[1]))


def _why_not(row: SplitRow) -> str:
    if row.subset == "train":
        return "of train, whose labels the network has learnt"
    if row.reason.startswith(COPY):
        return "that are copies of others"
    if row.reason.startswith(CONFLICT):
        return "under two labels, with images of their group in train"
    if row.reason.startswith(UNREADABLE):
        return "that cannot be read"
    return "left out for other reasons"
