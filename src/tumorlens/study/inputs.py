"""The images and files that a study depends on, by their content.

A study may be shared by machines that keep the images in other folders, and may go on
after a year. Its identity has the content of each file, not its place: trials on other
images, or from other weights, would be compared as if they were alike.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tumorlens.config import paths_in, values_of
from tumorlens.data.index import read_index
from tumorlens.errors import ConfigError
from tumorlens.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tumorlens.study.plan import StudyPlan


def with_files(plan: StudyPlan) -> StudyPlan:
    """Return a plan with the digest of each file that its trials depend on.

    Args:
        plan: A plan with absolute paths.

    Raises:
        ConfigError: A file does not exist.
        DataError: The images cannot be used.
    """
    files: dict[str, str] = {}
    metadata = plan.base.data.metadata
    if plan.base.data.names and metadata != "none":
        metadata = None  # a table for all sets names their files in another way
    for key, path in _paths(plan):
        if key == "data.path":
            files[path] = _digest_of_data(path, metadata)
        elif key != "data.cache_dir":
            try:
                files[path] = sha256_of(Path(path))
            except OSError as error:
                raise ConfigError(
                    f"cannot read {key}, {path}: {error.strerror}",
                    hint=f"change {key}",
                ) from None
    return plan.model_copy(update={"files": files})


def _paths(plan: StudyPlan) -> Iterator[tuple[str, str]]:
    """Yield setting and path for all paths in a plan."""
    several = [values_of(plan.base), *(arm.settings for arm in plan.arms)]
    pairs = [pair for settings in several for pair in settings.items()]
    for key, of in plan.search.ranges.items() if plan.search else ():
        pairs += [(key, value) for value in of] if isinstance(of, list) else []
    yield from sorted({(key, one) for key, of in pairs for one in paths_in(key, of)})


def _digest_of_data(path: str, metadata: str | None) -> str:
    """Return the digest of what decides split and training: files, labels, patients."""
    digest = hashlib.sha256()
    for one in read_index(Path(path), metadata=metadata).records:
        row = [one.path, one.label, one.subset, one.patient, one.sha256]
        digest.update(json.dumps(row).encode("ascii") + b"\n")
    return digest.hexdigest()
