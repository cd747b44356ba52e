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
from tumorlens.errors import ConfigError, DataError
from tumorlens.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

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
) -> None:
    """Check an image set for unreadable files, duplicates, leaks and shortcuts."""
    from tumorlens.data import audit as stage
    from tumorlens.data.duplicates import find_duplicates
    from tumorlens.data.index import check_outside, patient_note, read_index
    from tumorlens.files import locked, write_model
    from tumorlens.report import write_audit_page

    _check_folder(out)
    check_outside(out, data)
    index = read_index(data, metadata=metadata)
    with terminal.counting("reading") as progress:
        duplicates = find_duplicates(index, progress=progress)
    _check_any_readable(data, len(index.records), duplicates.unreadable)
    if note := patient_note(index):
        terminal.print_warning(note)
    found = stage.audit(index, duplicates)
    with locked(out):  # the page is made of the file
        write_model(out / "audit.json", found)
        page = write_audit_page(out / "audit.json", data=data, out=out / "audit.html")
    terminal.print_audit(found)
    where = f"the page with the pictures is {page}, audit.json is beside it"
    if found.is_trainable:
        terminal.print_next(where, *train_words([data]))
    else:
        terminal.print_line(where)
        terminal.print_line("next: mend or remove the files that cannot be read")


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


def _check_folder(out: Path) -> None:
    """Refuse an --out for several files that is a file itself.

    Raises:
        ConfigError: It is.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(
            f"--out {out} is a file",
            hint="--out is a folder, for audit.json and audit.html: name a new one",
        )


def _check_any_readable(
    data: Path, num_files: int, unreadable: Mapping[str, str]
) -> None:
    """Refuse a set of which nothing can be audited.

    Raises:
        DataError: Not one file can be read.
    """
    if len(unreadable) == num_files:
        path, reason = next(iter(unreadable.items()))
        raise DataError(
            f"none of {counted(num_files, 'file')} in {data} can be read; the "
            f"first is {path}: {reason}",
            hint="give a folder of JPEG, PNG, TIFF, BMP or DICOM images",
        )
