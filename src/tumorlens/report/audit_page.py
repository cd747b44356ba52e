"""The page of an audit: `audit.json` with the pictures beside it.

Nothing is measured here: the page shows what `tumorlens.data.audit` found. Long lists
are cut, and every cut states how many more there are in `audit.json`. A `claim.json` of
the same images beside it, from `tumorlens claim`, is a section of the page.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.near_duplicates import ORIENTATIONS
from tumorlens.data.sets import root_of
from tumorlens.errors import RunError
from tumorlens.files import read_model, write_text
from tumorlens.report.page import Picture, load_picture, render_page
from tumorlens.system import with_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tumorlens.data.audit import Audit, AuditedFile, DuplicateFile, DuplicateSet
    from tumorlens.data.claim import ClaimCheck
    from tumorlens.data.overlap import InOther, Overlaps, SharedPicture, TwoSets

MAX_SETS = 24
"""Number of sets of copies, and of conflicts of each kind, that are shown."""

MAX_COPIES = 6
"""Number of pictures of one set that are shown."""

MAX_EXAMPLES = 12
"""Number of pictures that are shown of those that two sets share."""

MAX_LINES = 100
"""Number of lines in a list of files."""

_FACTS = {"num_bytes": "file size", "mean_grey": "mean grey"}

_KINDS = {
    "bytes": "equal files",
    "pixels": "equal pixels, different files",
    "near": "near copies",
}


@dataclass(frozen=True)
class Exhibit:
    """A picture and its caption."""

    picture: Picture
    label: str
    subset: str
    """Or the set, of pictures in several; empty where there is only one."""

    source_label: str = ""
    """Label in the metadata; empty unless it contradicts `label`."""


@dataclass(frozen=True)
class ShownSet:
    """Files that show one picture."""

    title: str
    crosses: bool
    """Whether they are in more than one subset."""

    exhibits: tuple[Exhibit, ...]
    num_others: int
    """Number of its files that are not shown."""


@dataclass(frozen=True)
class ShownPair:
    """What two sets have in common."""

    found: TwoSets
    rows: tuple[tuple[str, str, InOther], ...]
    """Class, set that it is of, and how much of it is in the other set."""

    turns: tuple[tuple[str, int, int], ...]
    """Turn, and the files of the first and the second set that are turned so."""

    disagreeing: tuple[ShownSet, ...]
    examples: tuple[ShownSet, ...]


def write_audit_page(
    audit_json: Path,
    *,
    data: Path,
    against: Sequence[Path] | None = None,
    out: Path,
) -> Path:
    """Write the page of an audit.

    Args:
        audit_json: The result of `tumorlens audit`.
        data: The folder or table that was audited. Images that are gone are named in
            the page instead of shown.
        against: The other sets that it was compared with, in their order; `None` takes
            the folders that `audit.json` names.
        out: The page to write, such as `audit.html` beside `audit.json`.

    Returns:
        `out`.

    Raises:
        DataError: The page cannot be written.
        RunError: `audit.json` is missing, damaged or of another version.
    """
    found = _read_audit(audit_json)
    claims, why_no_claims = _claims_beside(audit_json, found)
    root = root_of(data)
    conflicting = [one for one in found.copy_sets if len(one.labels) > 1]
    agreeing = [one for one in found.copy_sets if len(one.labels) == 1]
    verdict, _, reasons = found.verdict.words.partition(". ")
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
            "disputed": [
                _exhibit(root, one, source_label=one.source_label)
                for one in found.source_label_conflicts[:MAX_SETS]
            ],
            "shortcuts": _shortcuts(found),
            "sources": _sources(found.sources),
            "pairs": _pairs(found.overlaps, data, against),
            "claims": claims,
            "why_no_claims": why_no_claims,
            "max_lines": MAX_LINES,
        },
    )
    write_text(out, page)
    return out


def show_claims_on_audit(folder: Path, *, data: Path) -> Path | None:
    """Write the page of an audit anew, with the `claim.json` beside it.

    Args:
        folder: The folder of both.
        data: As for `write_audit_page`.

    Returns:
        The page; `None` without an audit of these images in the folder.

    Raises:
        DataError: The page cannot be written.
        RunError: `audit.json` is damaged or of another version.
    """
    audit_json = folder / "audit.json"
    if not audit_json.is_file():
        return None
    claims, _ = _claims_beside(audit_json, _read_audit(audit_json))
    if claims is None:
        return None
    return write_audit_page(audit_json, data=data, out=folder / "audit.html")


def _read_audit(audit_json: Path) -> Audit:
    # Not at the top: it needs scikit-learn, which no other page does.
    from tumorlens.data.audit import Audit

    return read_model(
        audit_json, Audit, hint="make it again with: tumorlens audit DATA --out DIR"
    )


def _claims_beside(audit_json: Path, found: Audit) -> tuple[ClaimCheck | None, str]:
    """Return the claims on the audited images, or why those in the folder are not."""
    from tumorlens.data.claim import ClaimCheck

    path = audit_json.with_name("claim.json")
    if not path.is_file():
        return None, ""
    try:
        claims = read_model(path, ClaimCheck, hint="")
    except RunError as error:  # it is no part of the audit, which must not fail of it
        return None, f"claim.json is not shown: {error.problem}."
    if claims.digest != found.digest:
        return None, "claim.json is not shown: it is of other images than this audit."
    return claims, ""


def _is_doubtful(found: Audit) -> bool:
    """Return whether a score is believable only because patients are not known."""
    return bool(
        found.verdict.believable
        and found.leak
        and found.leak.test_files_without_patient
    )


def _exhibit(
    root: Path | None, file: AuditedFile, *, source_label: str = ""
) -> Exhibit:
    return Exhibit(
        load_picture(root, file.path),
        label=file.label,
        subset=file.subset or "",
        source_label=source_label,
    )


def _copy_set(root: Path | None, one: DuplicateSet) -> ShownSet:
    kind = _KINDS[one.kind]
    turned = sorted({pair.orientation for pair in one.near_pairs} - {"same"})
    if turned:
        kind += f" ({', '.join(turned)})"
    return ShownSet(
        title=f"{len(one.files)} files: {kind}",
        crosses=len(one.subsets) > 1,
        exhibits=tuple(_exhibit(root, file) for file in _chosen(one.files)),
        num_others=max(0, len(one.files) - MAX_COPIES),
    )


def _pairs(
    found: Overlaps | None, data: Path, against: Sequence[Path] | None
) -> list[ShownPair]:
    if found is None:
        return []
    first, *others = found.sets
    if against is None:
        against = [with_home(one.root) for one in others]
    roots = {first.name: root_of(data)}
    roots |= {
        one.name: root_of(place) for one, place in zip(others, against, strict=True)
    }
    shown = []
    for pair in found.pairs:
        ours, theirs = (one.by_orientation for one in pair.in_other)
        turns = [
            (turn, ours.get(turn, 0), theirs.get(turn, 0)) for turn in ORIENTATIONS
        ]
        shown.append(
            ShownPair(
                pair,
                rows=tuple(
                    (label, one.of, its)
                    for one in pair.in_other
                    for label, its in (*one.by_class.items(), ("all", one))
                ),
                turns=tuple(row for row in turns if row[1] or row[2]),
                disagreeing=tuple(
                    _shared_picture(one, pair, roots)
                    for one in pair.disagreeing[:MAX_SETS]
                ),
                examples=tuple(
                    _shared_picture(one, pair, roots) for one in _examples(pair.shared)
                ),
            )
        )
    return shown


def _shared_picture(
    one: SharedPicture, pair: TwoSets, roots: Mapping[str, Path]
) -> ShownSet:
    turn = "equal pixels" if one.is_identical else one.orientation.replace("-", " ")
    files = ((one.a, one.label_a), (one.b, one.label_b))
    return ShownSet(
        title="the same way round" if turn == "same" else turn,
        crosses=False,
        exhibits=tuple(
            Exhibit(load_picture(roots[name], path), label=label, subset=name)
            for name, (path, label) in zip(pair.sets, files, strict=True)
        ),
        num_others=0,
    )


def _examples(shared: Sequence[SharedPicture]) -> list[SharedPicture]:
    """Return at most `MAX_EXAMPLES`, of every turn and label where they fit."""
    kinds = [(one.orientation, one.is_identical, one.label_a) for one in shared]
    return [shared[place] for place in _spread(kinds, MAX_EXAMPLES)]


def _chosen(files: Sequence[DuplicateFile]) -> list[DuplicateFile]:
    """Return at most `MAX_COPIES` files, of every subset and label where they fit."""
    kinds = [(file.subset, file.label) for file in files]
    return [files[place] for place in _spread(kinds, MAX_COPIES)]


def _spread(kinds: Sequence[object], highest: int) -> list[int]:
    """Return at most `highest` places, of as many kinds as there can be."""
    # Rank 0 is the first of its kind, and so on.
    seen: Counter[object] = Counter()
    ranks = []
    for kind in kinds:
        ranks.append(seen[kind])
        seen[kind] += 1
    places = sorted(range(len(kinds)), key=lambda place: (ranks[place], place))
    return sorted(places[:highest])


def _shortcuts(found: Audit) -> list[dict[str, Any]]:
    """Return one row per set of features, and one for looking pictures up."""
    rows: list[dict[str, Any]] = [
        {
            "name": ", ".join(_FACTS.get(fact, fact) for fact in one.features),
            "grouped": one.accuracy,
            "majority": one.majority,
            "to_test": one.train_to_test,
            "shift": found.source_shift[name].auroc
            if name in found.source_shift
            else None,
        }
        for name, one in found.shortcuts.items()
    ]
    if found.look_up:
        rows.append(
            {
                "name": "label of the most similar training picture",
                "grouped": None,
                "majority": None,
                "to_test": found.look_up,
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
