"""The command that reviews labels."""

from __future__ import annotations

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import DeviceOption, MovedOption, RunArgument, train_words
from tumorlens.text import decimal

_NUM_PRINTED = 10


def review(
    context: typer.Context,
    path: RunArgument,
    *,
    data: MovedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """List doubtful labels, by networks that were not trained on them."""
    from tumorlens.evaluation.review import review
    from tumorlens.evaluation.review_file import SUGGESTED
    from tumorlens.report import write_review_page
    from tumorlens.runs.folder import open_run

    run = open_run(path)
    made = review(
        run,
        data=data,
        device=device,
        command=context.obj,
        stage=terminal.counting,
    )
    page = write_review_page(run, data=data)
    found = made.found
    terminal.print_line(found.words)
    if found.coverage:
        terminal.print_line(found.coverage)
    if found.suspected:
        terminal.print_table(
            ("file", "label", "likely", "label quality"),
            [
                (one.path, one.label, one.likely, decimal(one.quality))
                for one in found.suspected[:_NUM_PRINTED]
            ],
        )
    terminal.print_line(
        "These are guesses of the model. Look at each picture: labels that it corrects "
        "unseen make its figures better than they are."
    )
    if page.num_missing:
        terminal.print_warning(
            f"{page.num_missing} pictures are missing from the page, the first is "
            f"{page.why_not}"
        )
    terminal.print_next(
        f"the page is {page.path}; copy {made.folder / SUGGESTED} to labels.csv and "
        "keep the lines that are right",
        *train_words(
            data, "data.labels=labels.csv", config_path=run.path / "config.toml"
        ),
    )
