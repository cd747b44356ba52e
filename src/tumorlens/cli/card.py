"""The command that writes the model card, and the checklist beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tumorlens.cli import terminal


def card(
    path: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run folder, or artefact made by export."),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to write. Default: RUN itself."),
    ] = None,
) -> None:
    """Write the model card of a run, and what it answers of CLAIM and STARD-AI."""
    from tumorlens.report.card_page import TEXT_FILE, write_card

    written = write_card(path, out)
    for name, gap in written.card.missing.items():
        terminal.print_line(
            f"{name}: {gap.why}" + (f"; run: {gap.command}" if gap.command else "")
        )
    if written.card.has_leak and written.card.leak is not None:
        terminal.print_line(written.card.leak.words)
    terminal.print_line(
        f"the card is {written.folder / TEXT_FILE}; card.json and checklist.csv are "
        "beside it"
    )
