"""The command that measures what a run costs in use: `benchmark`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tumorlens.cli import terminal
from tumorlens.cli.options import STATUS_INTERRUPTED
from tumorlens.errors import ConfigError, did_you_mean
from tumorlens.extras import require
from tumorlens.files import check_folder, write_model
from tumorlens.system import interruptible


def benchmark(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders with artefacts, or artefact folders."
        ),
    ],
    *,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="One of those of export; repeatable. Default: all there are.",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Images at once, one or several. Default: 1 8 32. 1 is always "
            "measured.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Default: one per processor.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="BUDGET", help="For all timed turns. Default: 20 an artefact."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Images to ask about. Default: the val images of the first run.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, or cuda: then the runs' networks on the GPU.")
    ] = "cpu",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for page, table and figures.")
    ] = Path("benchmark"),
) -> int:
    """Measure artefacts side by side: time, memory, size, accuracy."""
    stage, results = (
        require("tumorlens.deploy.benchmark.session"),
        require("tumorlens.deploy.benchmark.results"),
    )
    # Before minutes of measuring, not after, it is known whether a page can be drawn,
    # and whether it can be written.
    pages = require("tumorlens.report")
    kinds = _kinds(formats)
    check_folder(out)
    options = {
        "batches": batch or stage.BATCHES,
        "seconds": seconds,
        "data": data,
        "command": context.obj,
    }
    try:
        with _rounds() as progress:
            if _is_gpu(device, formats, threads):
                found = require("tumorlens.deploy.benchmark.gpu").benchmark_gpu(
                    paths, progress=progress, **options
                )
            else:
                found = stage.benchmark(
                    paths, kinds=kinds, threads=threads, progress=progress, **options
                )
    except KeyboardInterrupt:
        print(f"nothing was written to {out}", file=sys.stderr)
        return STATUS_INTERRUPTED
    with interruptible():  # the files belong together: all of them or none
        write_model(out / "benchmark.json", found)
        results.write_csv(found, out / "benchmark.csv")
        page = pages.write_benchmark_page(
            out / "benchmark.json", out=out / "benchmark.html"
        )
    terminal.print_table(*results.table_rows(found))
    for sentence in found.sentences:
        terminal.say(sentence)
    terminal.say(f"the page is {page}, benchmark.csv and benchmark.json are beside it")
    return 0


@contextmanager
def _rounds() -> Iterator[Callable[[str, int], None]]:
    """Give the function that shows how far the measuring is, where somebody watches."""
    with terminal.progress_bars(last="{task.fields[rounds]} rounds") as bars:
        if bars is None:
            yield lambda _words, _rounds: None
            return
        task: Any = bars.add_task("starting", total=None, rounds=0)
        yield lambda words, rounds: bars.update(task, description=words, rounds=rounds)


def _is_gpu(device: str, *only_on_cpu: object) -> bool:
    """Whether the GPU is asked for.

    Raises:
        ConfigError: The device is unknown, or an option means nothing on a GPU.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(
            f"expected --device cpu or cuda, got {device!r}", hint="leave --device out"
        )
    if device == "cuda" and any(only_on_cpu):
        raise ConfigError(
            "--format and --threads are for the CPU, and --device is cuda",
            hint="leave them out: on a GPU the runs' networks are measured",
        )
    return device == "cuda"


def _kinds(formats: list[str] | None) -> list[str] | None:
    """Return the formats that are asked for; `None` for all that there are.

    Raises:
        ConfigError: One is unknown.
    """
    known = require("tumorlens.deploy.artefact").KINDS
    for name in formats or []:
        if name != "all" and name not in known:
            raise ConfigError(
                f"unknown format {name!r}", hint=did_you_mean(name, [*known, "all"])
            )
    return None if not formats or "all" in formats else formats
