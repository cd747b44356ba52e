"""Print what came of `make demo`: the score, and what the audit found of the faults.

    python examples/demo_summary.py demo

reads `demo/images/planted.json`, `demo/audit/audit.json` and `demo/run/metrics.json`.
The exit status is 1 when a planted fault was not found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COPIES = ("byte-copy", "re-encoded", "resized", "mirrored", "two-labels")
"""Kinds of planted faults that are two files with one picture."""


def is_found(fault: dict[str, Any], audit: dict[str, Any]) -> bool:
    """Return whether an audit reports a planted fault.

    Args:
        fault: One of the faults in `planted.json`.
        audit: The content of `audit.json`.

    Raises:
        ValueError: The fault is of an unknown kind.
    """
    kind, paths = fault["kind"], set(fault["paths"])
    if kind in COPIES:
        sets = [
            {file["path"] for file in copies["files"]} for copies in audit["copy_sets"]
        ]
        is_copy = any(paths <= found for found in sets)
        conflicts = [{pair["a"], pair["b"]} for pair in audit["label_conflicts"]]
        return is_copy and (kind != "two-labels" or paths in conflicts)
    if kind == "patient-on-both-sides":
        # No patient is named in the audit: their files are one group, on two sides.
        groups = {audit["groups"][path] for path in paths}
        return len(groups) == 1 and audit["leak"]["patients_on_both_sides"] > 0
    if kind == "truncated":
        return paths <= {file["path"] for file in audit["unreadable"]}
    if kind == "own-size":
        # Without a class of its own size, four classes of equal size give no hint.
        size = audit["shortcuts"]["size"]
        return bool(size["accuracy"] > size["majority"] + 0.1)
    raise ValueError(f"unknown kind of fault: {kind!r}")


def main(demo: Path) -> int:
    """Print the summary of a demo folder; return 1 when a fault was missed, else 0."""
    audit = _read(demo / "audit" / "audit.json")
    metrics = _read(demo / "run" / "metrics.json")
    faults = _read(demo / "images" / "planted.json")["faults"]

    print("planted and found by the audit:")
    num_missed = 0
    for kind in dict.fromkeys(fault["kind"] for fault in faults):
        found = [is_found(fault, audit) for fault in faults if fault["kind"] == kind]
        num_missed += found.count(False)
        print(f"  {kind:22} {found.count(True)} of {len(found)}")

    accuracy = metrics["accuracy"]
    print(
        f"accuracy on {metrics['num_images']} test images, patients kept apart: "
        f"{accuracy['value']:.1%} (95 %: {accuracy['low']:.1%} to "
        f"{accuracy['high']:.1%})"
    )
    if trust := metrics.get("trust"):
        num_answered = round(trust["answered"]["value"] * metrics["num_images"])
        num_right = round(
            num_answered * (1 - (trust["error_of_answers"]["value"] or 0))
        )
        print(
            f"answered with a class: {num_answered} of {metrics['num_images']}, "
            f"{num_right} of them right"
        )
    print("synthetic images: no evidence about patients")
    print(f"the page: {demo / 'run' / 'report.html'}")
    print(f"the audit's page: {demo / 'audit' / 'audit.html'}")
    return int(num_missed > 0)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
