"""The commands about runs: training, measuring, showing, importing, joining them.

They parse, call the stages, and print.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import (
    complete_condition,
    complete_model,
    complete_sort_key,
)
from tumorlens.cli.evaluate import show_tta
from tumorlens.cli.options import (
    STATUS_INTERRUPTED,
    DataOption,
    MovedOption,
    SetOption,
    TrackOption,
    TrackUrlOption,
    config_of,
    tracker_of,
    train_words,
)
from tumorlens.cli.trust import trust_after_training
from tumorlens.system import is_main_process

if TYPE_CHECKING:
    pass


def train(
    context: typer.Context,
    config_path: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="TOML file. Default: built-in settings."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    data: DataOption = None,
    settings: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run.")
    ] = False,
    track: TrackOption = False,
    track_url: TrackUrlOption = None,
) -> int:
    """Train one network, or one per fold, into a run folder.

    With --resume, what is given again must be as it was, except where the images are
    now and settings of the machine, such as train.workers.
    """
    from tumorlens.runs.folder import open_run
    from tumorlens.training import fit

    config = config_of(
        config_path,
        settings,
        ("data.path", data),
        start=open_run(out).config if resume else None,
    )
    tracker = tracker_of(track=track, url=track_url)
    with (
        terminal.training() as display,
        tracker.following(out, display)
        if tracker
        else nullcontext(display) as listener,
    ):
        result = fit.train(
            config,
            out=out,
            resume=resume,
            command=context.obj,
            listener=listener,
        )
    if not result.is_main_process:
        return 0 if result.is_finished else STATUS_INTERRUPTED
    if not is_main_process():
        return 0
    terminal.print_training(result)
    if tracker and (words := tracker.summary(tracker.url_of(result.run))):
        terminal.print_line(words)
    if not result.is_finished:
        terminal.print_next(
            f"everything so far is in {out}",
            *("tumorlens", "train", "--resume", "--out", out),
            *(["--track"] if tracker else []),
        )
        return STATUS_INTERRUPTED
    trust_after_training(result.run)
    terminal.print_next(f"the run is in {out}", "tumorlens", "evaluate", out)
    return 0


def lr_find(
    context: typer.Context,
    config_path: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="TOML file. Default: built-in settings."),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the curve and its numbers.")
    ],
    data: DataOption = None,
    settings: SetOption = None,
    lowest: Annotated[float, typer.Option(help="First learning rate.")] = 1e-7,
    highest: Annotated[float, typer.Option(help="Last learning rate.")] = 1.0,
    steps: Annotated[
        int, typer.Option(help="Number of batches, one per learning rate.")
    ] = 100,
) -> None:
    """Suggest a learning rate from a short sweep over the train subset."""
    from tumorlens.data.index import check_outside
    from tumorlens.data.sets import sets_of
    from tumorlens.files import locked, write_model
    from tumorlens.report.run_figures import write_lr_plot
    from tumorlens.training.lr_find import find_lr
    from tumorlens.training.optim import idle_words

    config = config_of(config_path, settings, ("data.path", data), but=["optim.lr"])
    if sets := sets_of(config.data):
        check_outside(out, sets)
    for note in idle_words(config):
        terminal.print_warning(note)
    with terminal.counting("trying learning rates") as progress:
        found = find_lr(
            config,
            lowest=lowest,
            highest=highest,
            num_steps=steps,
            command=context.obj,
            progress=progress,
        )
    with locked(out):
        write_model(out / "lr_find.json", found)
        svg, png = write_lr_plot(found, out)
    terminal.print_line(found.summary)
    where = f"the curve is in {svg} and {png}, its numbers are in lr_find.json"
    if found.suggestion is None:
        terminal.print_line(where)
        return
    lr = f"optim.lr={found.suggestion:g}"
    words = train_words(data, *(settings or []), lr, config_path=config_path)
    terminal.print_next(where, *words)


def import_weights(
    context: typer.Context,
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS", help="A .safetensors or .pth file of tensors."
        ),
    ],
    *,
    model: Annotated[
        str,
        typer.Option(help="timm's name of the network.", autocompletion=complete_model),
    ],
    classes: Annotated[
        str,
        typer.Option(
            metavar="A,B,...", help="Class names, in the order of the outputs."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    size_px: Annotated[
        int | None, typer.Option(help="Side of the input in pixels. Default: timm's.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Default: timm's.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Default: timm's.")
    ] = None,
    fit: Annotated[
        Literal["squash", "pad"] | None,
        typer.Option(help="How the images were made square. Default: squash."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DATA",
            help="Images to evaluate on, split by data.protocol (as-given). Several "
            "sets are pooled: repeat it.",
        ),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Make a run folder from weights that were trained elsewhere."""
    from tumorlens.config import OF_IMPORT
    from tumorlens.training import import_weights as stage

    config = config_of(
        None,
        settings,
        *(("model.name", model), ("data.fit", fit), ("data.path", data)),
        ("model.size_px", size_px),
        *(
            ("model.mean", _numbers(mean)),
            ("model.std", _numbers(std)),
        ),
        defaults={"data.protocol": "as-given", "data.fit": "squash"},
        only=OF_IMPORT,
    )
    with terminal.counting("reading") as progress:
        imported = stage.import_weights(
            weights,
            config,
            classes=[name.strip() for name in classes.split(",")],
            out=out,
            command=context.obj,
            progress=progress,
        )
    terminal.print_line(imported.summary)
    following = ["evaluate", out] if data else ["predict", out, "IMAGE"]
    terminal.print_next(f"the run is in {out}", "tumorlens", *following)


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders to search. Default: runs."),
    ] = None,
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="A filter: column or setting, one of = != < <= > >=, value, such as "
            "'test_accuracy>0.8' or model.name=resnet50; repeatable.",
            autocompletion=complete_condition,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Column or setting to sort by; -KEY puts the largest first.",
            autocompletion=complete_sort_key,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="List at most this many.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every setting.")
    ] = False,
) -> None:
    """List run folders with their model, progress and scores."""
    from tumorlens.runs.listing import list_runs

    found = list_runs(
        folders or [Path("runs")], where=where or [], sort=sort, limit=limit
    )
    if as_json:
        print(json.dumps([row.as_json() for row in found], indent=2))
    else:
        terminal.print_runs(found)


def ensemble(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Finished runs of the same split."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to make.")],
    tta: Annotated[
        bool,
        typer.Option(
            "--tta", help="Average over small variants of each image as well."
        ),
    ] = False,
    data: MovedOption = None,
) -> None:
    """Combine several runs into one that averages their probabilities."""
    from tumorlens.evaluation import tta as views
    from tumorlens.training.ensemble import make_ensemble

    run = make_ensemble(
        paths, out=out, tta=views.POLICY if tta else "none", command=context.obj
    )
    names = ", ".join(run.member_names())
    terminal.print_line(f"{run.model_name}: the mean probabilities of {names}")
    if tta and views.has_val_images(run):
        show_tta(run, subset=None, data=data, device="auto", command=context.obj)
    elif tta:
        terminal.print_line(
            "what the views change is not measured: no image is in val of all members"
        )
    terminal.print_next(f"the run is in {out}", "tumorlens", "evaluate", out)


def _numbers(text: str | None) -> list[float] | str | None:
    """Return the numbers of an option; a text that holds none is refused later."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        return text
