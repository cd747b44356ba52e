"""Where a review of labels ranks those that are known to be wrong: docs/review.md.

    python benchmarks/label_review.py RUN [--data DATA]

RUN has been reviewed. Known to be doubtful are the files whose label contradicts that
of their source, which the review does not know, and the pictures under two labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tumorlens.data.audit import source_label_conflicts
from tumorlens.evaluation.review import NUM_SHOWN
from tumorlens.evaluation.review_file import FILE, read_review
from tumorlens.evaluation.subsets import read_data
from tumorlens.runs.folder import open_run


def main() -> None:
    """Print the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    found = read_review(run.review_path / FILE)
    ranks: dict[str, int] = {}
    for rank, one in enumerate(found.images, start=1):
        ranks |= dict.fromkeys((one.path, *one.copies), rank)
    index = read_data(run, arguments.data)
    print(found.words)
    disputed = source_label_conflicts(index.records)
    _print("labels against their source", [one.path for one in disputed], ranks)
    mixed = {
        path
        for own in found.mixed_groups
        for one in own
        for path in (one.path, *one.copies)
    }
    num = sum(one.path in mixed for one in disputed)
    print(f"labels against their source, in groups with several labels: {num}")
    conflicts = [one for one in found.images if one.is_conflict]
    for label in found.classes:
        own = [one.path for one in conflicts if one.label == label]
        _print(f"pictures under two labels, here {label}", own, ranks)


def _print(words: str, paths: list[str], ranks: dict[str, int]) -> None:
    if not paths:
        return
    found = sorted({ranks[path] for path in paths if path in ranks})
    first = [path for path in paths if ranks.get(path, NUM_SHOWN + 1) <= NUM_SHOWN]
    print(
        f"{words}: {len(first)} of {len(paths)} files among the first {NUM_SHOWN}; "
        f"ranks of their {len(found)} pictures: {', '.join(map(str, found))}"
    )


if __name__ == "__main__":
    main()
