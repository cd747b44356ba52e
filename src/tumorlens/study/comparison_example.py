"""One image through one network of every arm, for a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import DataError
from tumorlens.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tumorlens.runs.folder import Run


def ask_about(
    image: Path, data: Path | None, networks: Iterable[tuple[str, Run]]
) -> dict[str, Any]:
    """Return what one network of each arm says about an image.

    Args:
        image: A file, which may be relative to `data`.
        data: Where the images of the runs are; `None` if not known.
        networks: Arm and the run that stands for it. Of a k-fold run the fold answers
            that has not learnt from the image.

    Returns:
        The `example` of `comparison.json`.

    Raises:
        DataError: It is no file or cannot be read.
    """
    file, path = _find_image(image, data)
    sha256 = sha256_of(file)
    rows: list[dict[str, Any]] = []
    classes: tuple[str, ...] = ()
    for arm, run in networks:
        protocol, seed = run.config.data.protocol, run.config.train.seed
        network = f"{protocol}, seed {seed}"
        fold = _fold_that_tests(run, sha256)
        one = run if fold is None else run.folds()[fold]
        if fold is not None:
            network += f", fold {fold}: the one that did not learn from it"
        predictor = Predictor.open(one.path)
        (answer,) = predictor.predict_files([file])
        if answer.probs is None:
            raise DataError(
                f"cannot read {file}: {answer.error}", hint="give another --image"
            )
        classes = predictor.classes
        rows_of_run = one.split() if one.split_path.is_file() else ()
        subsets = {row.subset for row in rows_of_run if row.sha256 == sha256}
        rows.append(
            {
                "arm": arm,
                "network": network,
                "probs": dict(zip(classes, map(float, answer.probs), strict=True)),
                "predicted": answer.predicted,
                "in_training": bool(subsets - {"test", "left-out"}),
            }
        )
    label = file.resolve().parent.name
    return {
        "path": path,
        "label": label if label in classes else "",
        "classes": list(classes),
        "rows": rows,
    }


def _fold_that_tests(run: Run, sha256: str) -> int | None:
    """Return the fold whose network has not learnt from an image, if there is one."""
    if not run.is_kfold:
        return None
    for row in run.split():
        if row.sha256 == sha256 and row.subset.startswith("fold-"):
            return int(row.subset.removeprefix("fold-"))
    return None


def _find_image(image: Path, data: Path | None) -> tuple[Path, str]:
    """Return where an image is, and its path as it is written down.

    Raises:
        DataError: It is no file.
    """
    root = data.parent if data is not None and data.is_file() else data
    places = [image] if root is None else [image, root / image]
    for place in filter(Path.is_file, places):
        file = place.resolve()
        if root is not None and file.is_relative_to(root.resolve()):
            return file, file.relative_to(root.resolve()).as_posix()
        return file, str(file)
    raise DataError(
        f"no such image: {image}", hint="give --image one file, not a folder"
    )
