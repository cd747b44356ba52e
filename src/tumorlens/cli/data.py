"""The commands about a set of images: make one, audit it, split it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import (
    DataArgument,
    MetadataOption,
    Protocol,
    SetOption,
    config_of,
    train_words,
)
from tumorlens.errors import ConfigError

if TYPE_CHECKING:
    from tumorlens.config import Config


def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    *,
    patients: Annotated[
        int, typer.Option(help="Number of patients, 8 slices each.")
    ] = 48,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 42,
) -> None:
    """Make a synthetic image set with planted faults, for trying things out."""
    from tumorlens.data.phantom.dataset import make_phantom

    with terminal.counting("drawing patients") as progress:
        made = make_phantom(out, patients=patients, seed=seed, progress=progress)
    counts = ", ".join(f"{count} {name}" for name, count in made.by_class.items())
    terminal.print_line(
        f"{made.num_images} synthetic images of {made.num_patients} invented patients "
        f"({counts}). They are no evidence about real ones."
    )
    terminal.print_next(
        f"images, metadata.csv and planted.json are in {out}",
        *("tumorlens", "audit", out, "--out", out.with_name(f"{out.name}-audit")),
    )


def audit(
    data: DataArgument,
    *,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for audit.json and audit.html.")
    ],
    metadata: MetadataOption = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="OTHER",
            help="Another set: what DATA and it have in common; repeatable.",
        ),
    ] = None,
) -> None:
    """Check an image set for unreadable files, duplicates, leaks and shortcuts."""
    from tumorlens.data.audit import audit as audit_index
    from tumorlens.data.index import check_outside, patient_note
    from tumorlens.data.overlap import compare_sets, read_sets
    from tumorlens.data.sets import pooled
    from tumorlens.files import locked, write_model
    from tumorlens.report import write_audit_page

    _check_folder(out, "audit.json and audit.html")
    others = against or []
    check_outside(out, pooled([data, *others]))
    with terminal.counting("reading") as progress:
        sets = read_sets([data, *others], metadata=metadata, progress=progress)
    first = sets[0]
    if note := patient_note(first.index):
        terminal.print_warning(note)
    overlaps = compare_sets(sets) if others else None
    found = audit_index(first.index, first.duplicates, overlaps=overlaps)
    with locked(out):  # the page is made of the file
        write_model(out / "audit.json", found)
        page = write_audit_page(
            out / "audit.json", data=data, against=others, out=out / "audit.html"
        )
    terminal.print_audit(found)
    where = f"the page with the pictures is {page}, audit.json is beside it"
    if found.is_trainable:
        terminal.print_next(where, *train_words([data]))
    else:
        terminal.print_line(where)
        terminal.print_line("next: mend or remove the files that cannot be read")


def claim(
    data: DataArgument,
    *,
    accuracy: Annotated[
        list[str],
        typer.Option(
            metavar="FRACTION",
            help="Published accuracy on the test images, such as 0.8325, with the "
            "digits that were published; repeatable.",
        ),
    ],
    trained_on: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA2",
            help="Set whose images were trained on, all but its Testing, in place of "
            "Training of DATA. All of DATA is then test, or its Testing.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for claim.json. The page of an audit there shows it too.",
        ),
    ] = None,
    metadata: MetadataOption = None,
) -> None:
    """Say what a published accuracy on a test set can be worth."""
    from tumorlens.data import claim as stage
    from tumorlens.data.claimed_set import arrange
    from tumorlens.data.duplicates import find_duplicates
    from tumorlens.data.index import check_outside, patient_note, read_index
    from tumorlens.files import locked, write_model
    from tumorlens.report import show_claims_on_audit

    accuracies = stage.parse_accuracies(accuracy)
    if out is not None:
        _check_folder(out, "claim.json")
        for one in (data, trained_on):
            if one is not None:
                check_outside(out, one)
    claimed = arrange(
        read_index(data, metadata=metadata),
        read_index(trained_on) if trained_on is not None else None,
        name=data,
        trained_on_name=trained_on,
    )
    with terminal.counting("reading") as progress:
        duplicates = find_duplicates(claimed.index, progress=progress)
    if note := patient_note(claimed.index):
        terminal.print_warning(note)
    found = stage.judge_claims(claimed, duplicates, accuracies)
    where, page = "nothing was written: --out DIR keeps this as DIR/claim.json", None
    if out is not None:
        with locked(out):
            write_model(out / "claim.json", found)
            page = show_claims_on_audit(out, data=data)
        where = f"claim.json is in {out}"
    terminal.print_claims(found)
    if page is not None:
        terminal.print_line(f"{where}, and the page of the audit shows it: {page}")
    else:
        audit_folder = Path("audit") if out is None else out
        terminal.print_next(where, "tumorlens", "audit", data, "--out", audit_folder)


def split(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Folder of class folders, with or without Training and Testing above "
            "them, or a CSV or Parquet table. Several sets are pooled.",
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="CSV", help="File to write.")],
    protocol: Annotated[
        Protocol | None,
        typer.Option(help="How the subsets are made. Default: grouped."),
    ] = None,
    metadata: MetadataOption = None,
    settings: SetOption = None,
) -> None:
    """Assign every file to a subset, as a table to check or edit."""
    from tumorlens.config import OF_SPLIT
    from tumorlens.data.index import (
        SPLIT_COLUMNS,
        check_no_work,
        check_outside,
        write_split,
    )
    from tumorlens.data.sets import sets_of
    from tumorlens.files import locked
    from tumorlens.training.dataset import split_data

    check_no_work(out, columns=SPLIT_COLUMNS)
    config = config_of(
        None,
        settings,
        ("data.path", data),
        ("data.protocol", protocol),
        ("data.metadata", metadata),
        only=OF_SPLIT,
    )
    if sets := sets_of(config.data):
        check_outside(out, sets, is_folder=False)
    with terminal.counting("reading") as progress:
        made = split_data(config, progress=progress)
    with locked(out, lock=out.with_name(f".{out.name[:40]}.lock")):
        write_split(out, made.rows)
    terminal.print_split(made)
    if made.note:
        terminal.print_warning(made.note)
    terminal.print_line(made.leak.words)
    terminal.print_next(
        f"the split is in {out}",
        *train_words(data, *_next_settings(config, settings or [], out)),
    )


def _next_settings(config: Config, given: list[str], out: Path) -> list[str]:
    """Return the settings with which `train` uses a split as it was made."""
    chosen = [f"data.protocol={config.data.protocol}", f"data.split={out}"]
    if config.data.metadata is not None:
        chosen.append(f"data.metadata={config.data.metadata}")
    named = [one.partition("=")[0] for one in chosen]
    others = [one for one in given if one.partition("=")[0].strip() not in named]
    return [*chosen, *others]


def _check_folder(out: Path, files: str) -> None:
    """Refuse an --out for files that is a file itself.

    Args:
        out: The folder.
        files: Names of the files, in words.

    Raises:
        ConfigError: It is.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(
            f"--out {out} is a file",
            hint=f"--out is a folder, for {files}: name a new one",
        )
