"""The command that fits trust, which training ends with too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import DeviceOption, RunArgument
from tumorlens.errors import TumorlensError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.runs.folder import Run
    from tumorlens.runs.trust import Trust


_EXTREME = 10
"""Temperature from which on, and its inverse below which, val is not to be believed."""


def trust(
    path: RunArgument,
    *,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Share of cases whose true class is to be in the set. Default: "
            "trust.coverage."
        ),
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(
            help="Largest share of wrong answers to promise. Default: trust.error."
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="Chance with which the promise is to hold. Default: trust.confidence."
        ),
    ] = None,
    specificity: Annotated[
        float | None,
        typer.Option(
            help="Specificity of the operating point of each class. Default: "
            "trust.specificity."
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATA",
            help="Where the images are now, if they were moved; once for each set.",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Calibrate a run on val: temperature, sets, when to answer, what to turn away.

    Training ends with it; this repeats it with other promises.
    """
    from tumorlens.evaluation.trust import fit_trust, wanted_of
    from tumorlens.runs.folder import open_run

    run = open_run(path)
    wanted = wanted_of(
        run,
        coverage=coverage,
        error=error,
        confidence=confidence,
        specificity=specificity,
    )
    with terminal.counting("calibrating") as progress:
        found = fit_trust(run, wanted, data=data, device=device, progress=progress)
    print_trust(found)
    if run.predictions_path.is_file() or any(run.path.glob("export/*/manifest.json")):
        terminal.print_warning(
            "measures and artefacts that were made before have the earlier temperature"
        )
    where = f"trust.json and gate.npz are in {path}"
    if len(found) > 1:
        where = f"trust.json and gate.npz are in each fold of {path}"
    terminal.print_next(where, "tumorlens", "evaluate", path)


def trust_after_training(run: Run) -> None:
    """Fit trust at the end of a training; print why, where that is not possible."""
    from tumorlens.evaluation.trust import fit_first_trust

    try:
        with terminal.counting("calibrating") as progress:
            found = fit_first_trust(run, progress=progress)
    except TumorlensError as error:
        terminal.print_line(f"not calibrated: {error.problem}")
    else:
        print_trust(found)


def print_trust(parts: Sequence[Trust]) -> None:
    """Print what was fitted, of each fold."""
    from tumorlens.text import percent

    for number, one in enumerate(parts):
        where = f"fold {number}: " if len(parts) > 1 else ""
        words = f"{where}temperature {one.temperature:.3g}"
        if one.before and one.after:
            words += (
                f", calibration error on val {_value(one.before.ece.value)} before, "
                f"{_value(one.after.ece.value)} after"
            )
        terminal.print_line(words)
        terminal.print_line(f"{where}{one.promise.words}")
        few = [
            name
            for name, threshold in zip(one.classes, one.sets.lac_by_class, strict=True)
            if threshold is None
        ]
        if few:
            coverage = percent(one.sets.coverage, 0)
            terminal.print_line(
                f"{where}in every set: {', '.join(few)}, of which val has too few "
                f"groups for a coverage of {coverage}"
            )
        if not 1 / _EXTREME < one.temperature < _EXTREME:
            terminal.print_warning(
                f"{where}a temperature of {one.temperature:.3g} means that val is too "
                "small, or the network no better than chance: its probabilities say "
                "little"
            )


def _value(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
