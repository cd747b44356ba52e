"""The commands that take a run to where it is used: `export` and `benchmark`."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tumorlens.cli import terminal
from tumorlens.cli.completion import complete_device, complete_format
from tumorlens.cli.options import STATUS_INTERRUPTED, MovedOption, RunArgument
from tumorlens.errors import ArtefactError, ConfigError, did_you_mean
from tumorlens.system import interruptible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tumorlens.deploy.artefact import Artefact, Kind
    from tumorlens.deploy.export import Exported

FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="onnx, openvino, openvino-bf16, openvino-int8, onnx-int8, torch-export, "
        "torchscript (legacy), or all; repeatable. Default: onnx and openvino-int8.",
        autocompletion=complete_format,
    ),
]

DEFAULT_KINDS = ("onnx", "openvino-int8")
"""The format that runs nearly anywhere, and the fastest one on a CPU."""


def export(
    context: typer.Context,
    path: RunArgument,
    *,
    formats: FormatOption = None,
    data: MovedOption = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, max=1, help="Largest loss of accuracy on val, a fraction."),
    ] = 0.01,
    max_difference: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Largest difference of a probability. Default: the rounding of the "
            "format; none for int8.",
        ),
    ] = None,
    seen: Annotated[
        bool,
        typer.Option(
            "--seen/--no-seen",
            help="Whether to add sketches of the training images, by which evaluate "
            "--on tells the images that training has seen.",
        ),
    ] = True,
) -> None:
    """Export a run to other formats, each proven to predict the same.

    The run and each export predict every val image, from file to label. If a confident
    label changes, or accuracy falls, nothing is written.
    """
    from tumorlens.deploy import export as stage
    from tumorlens.runs.folder import open_run

    run = open_run(path)
    found = stage.export(
        run,
        _kinds_to_export(formats or DEFAULT_KINDS),
        data=data,
        max_drop=max_drop,
        max_difference=max_difference,
        with_seen=seen,
        command=context.obj,
        stage=terminal.counting,
    )
    terminal.print_export([one.verdict for one in found], _sizes(found))
    for one in found:
        if one.is_earlier_gone:
            terminal.print_line(f"{one.kind}: the earlier one was removed")
    artefacts = _artefacts(found, run.path)
    terminal.print_next(
        f"the artefacts are in {run.path / 'export'}",
        *("tumorlens", "predict", artefacts[-1].path, "IMAGE"),
    )


def _kinds_to_export(formats: Sequence[str]) -> list[Kind]:
    """Return the formats by their names; 'all' is what this machine can compute."""
    from tumorlens.deploy.artefact import KINDS
    from tumorlens.deploy.export import kinds_here

    if "all" not in formats:
        return _kinds(formats)
    kinds = list(dict.fromkeys([*_kinds(formats), *kinds_here()]))
    left_out = [kind for kind in KINDS if kind not in kinds]
    if left_out:
        terminal.print_line(
            f"left out: {left_out[0]}, which this processor does not compute"
        )
    return kinds


def _sizes(found: Sequence[Exported]) -> list[int | None]:
    return [one.artefact.size_bytes if one.artefact else None for one in found]


def _artefacts(found: Sequence[Exported], run: Path) -> list[Artefact]:
    """Return the artefacts, unless a verdict was against one.

    Raises:
        ArtefactError: It was against one or several.
    """
    failed = [one for one in found if one.artefact is None]
    if failed:
        kinds = ", ".join(one.kind for one in failed)
        raise ArtefactError(
            f"no artefact was written for {kinds}: {failed[0].verdict.reasons[0]}",
            hint=f"{run / 'export' / 'parity.json'} has every difference",
        )
    return [one.artefact for one in found if one.artefact is not None]


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
            help="A format of export; repeatable. Default: all that exist.",
            autocompletion=complete_format,
        ),
    ] = None,
    batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,...",
            help="Images at a time, one number or several. Default: 1,8,32. 1 is "
            "always measured.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="CPU threads. Default: one per processor."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="BUDGET", help="Seconds of measuring. Default: 20 per artefact."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Images to predict. Default: the val images of the first run.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="cpu, or cuda to measure the runs' networks on the GPU.",
            autocompletion=complete_device,
        ),
    ] = "cpu",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for page, table and figures.")
    ] = Path("benchmark"),
) -> int:
    """Measure artefacts side by side: time, memory, size, accuracy."""
    from tumorlens.deploy.benchmark import results, session
    from tumorlens.files import check_folder, locked, write_model

    # Before minutes of measuring, not after: a missing library of the page, a folder
    # that cannot be written.
    from tumorlens.report import write_benchmark_page

    kinds = None if not formats or "all" in formats else _kinds(formats)
    batches = _sizes_of_batches(batch) or session.BATCHES
    check_folder(out)
    try:
        with _rounds() as progress:
            if _is_gpu(device, formats, threads):
                from tumorlens.deploy.benchmark.gpu import benchmark_gpu

                found = benchmark_gpu(
                    paths,
                    batches=batches,
                    seconds=seconds,
                    data=data,
                    command=context.obj,
                    progress=progress,
                )
            else:
                found = session.benchmark(
                    paths,
                    kinds=kinds,
                    batches=batches,
                    threads=threads,
                    seconds=seconds,
                    data=data,
                    command=context.obj,
                    progress=progress,
                )
    except KeyboardInterrupt:
        print(f"nothing was written to {out}", file=sys.stderr)
        return STATUS_INTERRUPTED
    # The files belong together: all of one benchmark.
    with interruptible(), locked(out):
        write_model(out / "benchmark.json", found)
        results.write_csv(found, out / "benchmark.csv")
        page = write_benchmark_page(out / "benchmark.json", out=out / "benchmark.html")
    terminal.print_table(*results.table_rows(found))
    for sentence in found.sentences:
        terminal.print_line(sentence)
    terminal.print_line(
        f"the page is {page}, benchmark.csv and benchmark.json are beside it"
    )
    return 0


@contextmanager
def _rounds() -> Iterator[Callable[[str, int], None]]:
    """Yield the function that shows how far the measuring is."""
    with terminal.progress_bars(last="{task.fields[rounds]} rounds") as bars:
        if bars is None:
            yield lambda _words, _rounds: None
            return
        task = bars.add_task("starting", total=None, rounds=0)
        yield lambda words, rounds: bars.update(task, description=words, rounds=rounds)


def _is_gpu(device: str, *only_on_cpu: object) -> bool:
    """Whether the GPU is to be measured.

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


def _kinds(formats: Sequence[str]) -> list[Kind]:
    """Return the formats by their names; 'all' is passed over.

    Raises:
        ConfigError: One is unknown.
    """
    from tumorlens.deploy.artefact import KINDS

    for name in formats:
        if name not in (*KINDS, "all"):
            raise ConfigError(
                f"unknown --format {name!r}", hint=did_you_mean(name, [*KINDS, "all"])
            )
    return [kind for name in formats for kind in KINDS if kind == name]


def _sizes_of_batches(given: Sequence[str] | None) -> list[int]:
    """Return the numbers of --batch, which may be repeated.

    Raises:
        ConfigError: One is no whole number.

    Example:
        >>> _sizes_of_batches(["1,8", "32"])
        [1, 8, 32]
    """
    words = [word.strip() for text in given or [] for word in text.split(",")]
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise ConfigError(
            f"expected whole numbers for --batch, got {wrong[0]!r}",
            hint="for example --batch 1,8,32",
        )
    return [int(word) for word in words]
