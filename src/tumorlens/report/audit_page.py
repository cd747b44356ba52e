"""The page of an audit: what `audit.json` says, with the pictures beside it.

Nothing is looked for here: the page shows what `tumorlens.data.audit` found. Long lists
are cut, and every cut says how many more there are in `audit.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tumorlens.errors import DataError
from tumorlens.files import write_text
from tumorlens.report.page import render_page
from tumorlens.report.pictures import Picture, data_root, load_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

AUDIT_FORMAT = 1
"""The format of `audit.json` that this page knows."""

MAX_SETS = 24
"""How many sets of copies, and how many conflicts of each kind, are shown."""

MAX_COPIES = 6
"""How many pictures of one set are shown."""

MAX_LINES = 100
"""How many lines a list of files has."""

_FACTS = {"num_bytes": "file size", "mean_grey": "mean grey"}

_KINDS = {
    "bytes": "equal files",
    "pixels": "equal pixels, different files",
    "near": "near copies",
}


@dataclass(frozen=True)
class Exhibit:
    """A picture and what is said of it."""

    picture: Picture
    label: str
    subset: str
    """Empty where there are no subsets."""

    source_label: str = ""
    """What the source says it is; empty where that is not the point."""


@dataclass(frozen=True)
class CopySet:
    """Files that show one picture."""

    title: str
    crosses: bool
    """Whether they are in more than one subset."""

    exhibits: tuple[Exhibit, ...]
    num_others: int
    """How many of its files are not shown."""


def write_audit_page(audit_json: Path, *, data: Path, out: Path) -> Path:
    """Write the page of an audit.

    Args:
        audit_json: What `tumorlens audit` found.
        data: The folder or table that was audited. Images that are gone are named in
            the page instead of shown.
        out: The page to write, such as `audit.html` beside `audit.json`.

    Returns:
        `out`.

    Raises:
        DataError: `audit.json` cannot be read, or the page cannot be written.
    """
    found = _read_audit(audit_json)
    root = data_root(data, None)
    conflicting = [one for one in found["copy_sets"] if len(one["labels"]) > 1]
    agreeing = [one for one in found["copy_sets"] if len(one["labels"]) == 1]
    disputed = found["source_label_conflicts"]
    verdict, _, reasons = found["verdict"]["words"].partition(". ")
    page = render_page(
        "audit.html.j2",
        {
            "found": found,
            "verdict": verdict.removesuffix("."),
            "doubtful": _is_doubtful(found),
            "reasons": reasons,
            "num_conflicting": len(conflicting),
            "conflicting": [_copy_set(root, one) for one in conflicting[:MAX_SETS]],
            "num_agreeing": len(agreeing),
            "agreeing": [_copy_set(root, one) for one in agreeing[:MAX_SETS]],
            "disputed": [_exhibit(root, one) for one in disputed[:MAX_SETS]],
            "shortcuts": _shortcuts(found),
            "sources": _sources(found["sources"]),
            "max_lines": MAX_LINES,
        },
    )
    write_text(out, page)
    return out


def _is_doubtful(found: Mapping[str, Any]) -> bool:
    """Return whether a score may be believed only as nobody knows the patients."""
    return bool(
        found["verdict"]["believable"]
        and found["leak"]
        and found["leak"].get("test_files_without_patient")
    )


def _read_audit(path: Path) -> dict[str, Any]:
    """Return the content of `audit.json`.

    Raises:
        DataError: It cannot be read, or is of another version.
    """
    hint = "make it again with: tumorlens audit DATA --out DIR"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}", hint=hint) from None
    version = found.get("format") if isinstance(found, dict) else found
    if version != AUDIT_FORMAT:
        raise DataError(
            f"expected format {AUDIT_FORMAT} in {path}, got {version!r}", hint=hint
        )
    return dict(found)


def _exhibit(root: Path | None, file: Mapping[str, Any]) -> Exhibit:
    return Exhibit(
        load_picture(root, file["path"]),
        label=file["label"],
        subset=file["subset"] or "",
        source_label=file.get("source_label", ""),
    )


def _copy_set(root: Path | None, one: Mapping[str, Any]) -> CopySet:
    files = one["files"]
    kind = _KINDS.get(one["kind"], one["kind"])
    turned = sorted({pair["orientation"] for pair in one["near_pairs"]} - {"same"})
    if turned:
        kind += f" ({', '.join(turned)})"
    return CopySet(
        title=f"{len(files)} files: {kind}",
        crosses=len(one["subsets"]) > 1,
        exhibits=tuple(_exhibit(root, file) for file in _chosen(files)),
        num_others=max(0, len(files) - MAX_COPIES),
    )


def _chosen(files: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return at most `MAX_COPIES` files, of every subset and label where they fit."""
    kinds = [(file["subset"], file["label"]) for file in files]
    # Rank 0 is the first file of its subset and label, and so on.
    ranks = [kinds[:place].count(kind) for place, kind in enumerate(kinds)]
    places = sorted(range(len(files)), key=lambda place: (ranks[place], place))
    return [files[place] for place in sorted(places[:MAX_COPIES])]


def _shortcuts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row per set of features, and one for looking pictures up."""
    rows = [
        {
            "name": ", ".join(_FACTS.get(fact, fact) for fact in one["features"]),
            "grouped": one["accuracy"],
            "majority": one["majority"],
            "to_test": one["train_to_test"],
            "shift": found["source_shift"].get(name, {}).get("auroc"),
        }
        for name, one in found["shortcuts"].items()
    ]
    if found["look_up"]:
        rows.append(
            {
                "name": "label of the most similar training picture",
                "grouped": None,
                "majority": None,
                "to_test": found["look_up"],
                "shift": None,
            }
        )
    return rows


def _sources(
    sources: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> dict[str, Any]:
    """Return subset -> class -> source -> files as a table; empty when not known."""
    names = sorted(
        {
            name
            for by_class in sources.values()
            for counts in by_class.values()
            for name in counts
        },
        key=lambda name: (name == "unknown", name),
    )
    return {
        "names": names,
        "rows": [
            (subset, label, [counts.get(name, 0) for name in names])
            for subset, by_class in sources.items()
            for label, counts in by_class.items()
        ],
    }
