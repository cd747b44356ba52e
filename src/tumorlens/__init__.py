"""tumorlens: from a folder of brain MRI images to a classifier that can be trusted.

The names below are the whole public interface; modules below this package are private.
Each function is one stage of the command line. Its result shows itself in a notebook:
verdict, table and figure. Importing tumorlens imports neither torch nor timm; a stage
loads what it needs when it is called. An argument of the wrong type is a `TypeError`
that names it; a wrong value is a `TumorlensError`.

    import tumorlens

    tumorlens.audit("DATA")
    run = tumorlens.train(data="DATA", out="runs/first")
    tumorlens.evaluate(run)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tumorlens import errors, extras, text
from tumorlens.errors import TumorlensError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tumorlens.config import Config
    from tumorlens.data.audit import Audit
    from tumorlens.data.split import Split
    from tumorlens.deploy.artefact import Kind
    from tumorlens.deploy.benchmark.results import Benchmark
    from tumorlens.deploy.export import Exports
    from tumorlens.deploy.predictor import FilePredictions, Predictor
    from tumorlens.runs.folder import Run
    from tumorlens.runs.measures import Metrics
    from tumorlens.runs.progress import Progress
    from tumorlens.study.comparison import Comparison

__version__ = "0.1.0"
__all__ = [
    "Predictor",
    "TumorlensError",
    "audit",
    "benchmark",
    "compare",
    "errors",
    "evaluate",
    "export",
    "load_config",
    "open_run",
    "predict",
    "split",
    "train",
    "write_report",
]

extras.switch_off_usage_data()


def audit(
    data: str | Path,
    *,
    metadata: str | Path | None = None,
    against: str | Path | Sequence[str | Path] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Return what is wrong with a set of images.

    Args:
        data: Folder of class folders, with or without Training and Testing above them,
            or a CSV or Parquet table.
        metadata: Table with `path` and any of `patient`, `source`, `source_label`.
            Default: `metadata.csv` in `data` if it exists; `"none"` ignores that too.
        against: Other sets, for what `data` and they have in common.
        out: Folder for `audit.json` and `audit.html`, the page with the pictures.
        progress: Called with files done and files in all.

    Raises:
        DataError: The folder or table cannot be used, or no image in it can be read.

    Example:
        >>> found = tumorlens.audit("DATA")
        >>> found.num_files, found.is_trainable
        (24, True)
    """
    errors.check_arguments(audit, locals())
    from pathlib import Path

    from tumorlens.data.audit import audit as audit_index
    from tumorlens.data.index import check_outside
    from tumorlens.data.overlap import compare_sets, read_sets
    from tumorlens.data.sets import pooled
    from tumorlens.files import locked, write_model

    others = _paths(against)
    places = [Path(data), *others]
    with extras.naming_missing_extras("audit"):
        if out is not None:
            check_outside(Path(out), pooled(places))
        first, *rest = read_sets(
            places,
            metadata=None if metadata is None else str(metadata),
            progress=_progress(progress),
        )
        overlaps = compare_sets([first, *rest]) if rest else None
        found = audit_index(first.index, first.duplicates, overlaps=overlaps)
        if out is not None:
            from tumorlens.report import write_audit_page

            json_path = Path(out) / "audit.json"
            with locked(json_path.parent):
                write_model(json_path, found)
                write_audit_page(
                    json_path,
                    data=Path(data),
                    against=others,
                    out=json_path.with_suffix(".html"),
                )
        return found


def split(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Split:
    """Return the subset of every file, split by patient and picture.

    Args:
        data: As for `audit`, or several sets of images, which are pooled.
        out: CSV file to write. `train` uses it with the setting `data.split`.
        settings: Such as `{"data.protocol": "grouped-kfold", "train.seed": 1}`.
        progress: Called with files done and files in all.

    Raises:
        ConfigError: A setting is unknown, out of range or without effect here.
        DataError: The data cannot be used, or a class has too few groups.

    Example:
        >>> made = tumorlens.split("DATA")
        >>> sorted({row.subset for row in made.rows}), made.leak.leaks
        (['test', 'train', 'val'], False)
    """
    errors.check_arguments(split, locals())
    from pathlib import Path

    from tumorlens.config import OF_SPLIT, check_used
    from tumorlens.data.index import check_outside, write_split
    from tumorlens.data.sets import sets_of

    for key in settings or {}:
        check_used(key, only=OF_SPLIT)
    config = load_config(settings=_with_data(data, settings))
    if out is not None and (sets := sets_of(config.data)):
        check_outside(Path(out), sets, is_folder=False)
    with extras.naming_missing_extras("split"):
        from tumorlens.training.dataset import split_data

        made = split_data(config, progress=_progress(progress))
    if out is not None:
        write_split(Path(out), made.rows)
    return made


def load_config(
    start: str | Path | Config | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
) -> Config:
    """Return the settings of a training: where to start from, then single ones on top.

    Args:
        start: TOML file, or other settings. Default: good settings.
        settings: Dotted names and values, as for `--set`; `None` unsets a setting.

    Raises:
        ConfigError: A setting is unknown, of the wrong type or out of range, or the
            file cannot be read.

    Example:
        >>> tumorlens.load_config(settings={"optim.lr": 1e-4}).optim.lr
        0.0001
    """
    errors.check_arguments(load_config, locals())
    from pathlib import Path

    from tumorlens.config import Config, as_setting, assign, parse_config, read_toml

    values: dict[str, Any] = {}
    if isinstance(start, Config):
        values = start.model_dump(mode="json", exclude_none=True)
    elif start is not None:
        values = read_toml(Path(start))
    for name, value in (settings or {}).items():
        value = as_setting(value)
        assign(values, name, "none" if value is None else value)
    return parse_config(values)


def train(
    config: str | Path | Config | None = None,
    *,
    out: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    show_progress: bool | None = None,
) -> Run:
    """Train one network, or one for each fold, and return its run folder.

    With `trust.fit`, which is the default, it is calibrated at the end; it stays
    without calibration where val is too small for that.

    Args:
        config: TOML file, or the result of `load_config`. Default: good settings.
        out: The run folder to make.
        data: Same as the setting `data.path`; several sets of images are pooled.
        settings: Dotted names and values, as for `--set`; they go on top of `config`.
        resume: Continue the interrupted run in `out`. What is given again must be as it
            was, except `data`, where the images are now, and settings of the machine.
        show_progress: Whether to show bars and a line for each epoch. Default: only in
            a notebook.

    Raises:
        ConfigError: A setting is wrong or does not fit the data or the network.
        DataError: The data cannot be used, or the disk is full.
        RunError: `out` exists, or cannot be resumed, or the loss is not finite.
        KeyboardInterrupt: Ctrl-C. Everything so far is kept; `resume=True` continues.

    Example:
        >>> run = tumorlens.train(
        ...     data="DATA",
        ...     out="runs/second",
        ...     settings={
        ...         "model.name": "test_resnet",
        ...         "model.pretrained": "no",
        ...         "model.size_px": 32,
        ...         "optim.epochs": 1,
        ...     },
        ... )
        >>> run.name
        'second'
    """
    errors.check_arguments(train, locals())
    from contextlib import suppress
    from pathlib import Path

    with extras.naming_missing_extras("train"):
        from tumorlens.evaluation.trust import fit_first_trust
        from tumorlens.runs.progress import TqdmProgress
        from tumorlens.training.fit import train as fit

    if show_progress is None:
        show_progress = _is_notebook()
    start = _on_top_of(open_run(out).config, config) if resume else config
    result = fit(
        load_config(start, settings=_with_data(data, settings)),
        out=Path(out),
        resume=resume,
        listener=TqdmProgress() if show_progress else None,
    )
    if not result.is_finished:
        raise KeyboardInterrupt
    with suppress(TumorlensError):
        fit_first_trust(result.run)
    return result.run


def open_run(path: str | Path) -> Run:
    """Return a run folder that `train` made.

    Raises:
        RunError: The folder is no run, or from a version that this one cannot read.

    Example:
        >>> tumorlens.open_run("runs/first").config.model.name
        'test_resnet'
    """
    errors.check_arguments(open_run, locals())
    from pathlib import Path

    from tumorlens.runs.folder import open_run as open_folder

    return open_folder(Path(path))


def evaluate(
    run: str | Path | Run,
    *,
    subset: str = "test",
    data: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Metrics:
    """Measure a run on images that it was not trained on; write and return the result.

    Each look at the test subset is logged in the run.

    Args:
        run: The run or its folder, which gets `predictions.csv` and `metrics.json`.
        subset: `"test"`, or `"val"` while choices are being made.
        data: Where the images are, if they moved, of each set.
        device: Where to run the network, as for the setting `train.device`.
        progress: Called with images done and images in all.

    Raises:
        ConfigError: The device is not there, or lacks an operation of the network.
        RunError: The run is not finished, or a file of it is missing or damaged.
        DataError: The images changed or cannot be read.

    Example:
        >>> measured = tumorlens.evaluate("runs/first")
        >>> 0 <= measured.accuracy.value <= 1, measured.leak.leaks
        (True, False)
    """
    errors.check_arguments(evaluate, locals())
    with extras.naming_missing_extras("evaluate"):
        from tumorlens.evaluation.measure import evaluate as measure

        return measure(
            _run(run),
            subset=subset,
            data=_places(data),
            device=device,
            progress=_progress(progress),
        )


def write_report(
    run: str | Path | Run, *, data: str | Path | Sequence[str | Path] | None = None
) -> Path:
    """Write the page of an evaluated run and its figures; return the page's path.

    Args:
        run: The run or its folder.
        data: Where the images are, if they moved, of each set.

    Raises:
        RunError: The run is not evaluated, or a file of it is damaged.

    Example:
        >>> tumorlens.write_report("runs/first").name
        'report.html'
    """
    errors.check_arguments(write_report, locals())
    with extras.naming_missing_extras("write_report"):
        from tumorlens.report import write_run_report

        return write_run_report(_run(run), data=_places(data)).path


def predict(
    model: str | Path | Run | Predictor,
    images: str | Path | Sequence[str | Path],
) -> FilePredictions:
    """Return the class probabilities of image files.

    `Predictor.open(model)` loads a model once for many calls.

    Args:
        model: Run folder, artefact folder, or an open `Predictor`.
        images: Files, and folders for all images below them. A file that cannot be read
            has an `error` in place of probabilities. What was passed over in folders
            is in `skipped` of the result.

    Raises:
        DataError: A path does not exist, or there is no image in a folder.
        RunError: The run has no weights, or they were changed.
        ArtefactError: The artefact was changed, or no runtime here can load it.
        MissingExtraError: The runtime or torch is not installed.

    Example:
        >>> [answer] = tumorlens.predict("runs/first", ["DATA/no_tumor/0.png"])
        >>> answer.predicted in ("glioma", "meningioma", "no_tumor", "pituitary")
        True
    """
    errors.check_arguments(predict, locals())
    from collections import Counter

    from tumorlens.data.files import walk_images
    from tumorlens.deploy.predictor import FilePredictions, Predictor

    if not isinstance(model, Predictor):
        [path] = _paths(model)
        model = Predictor.open(path)
    skipped = Counter[str]()
    files = walk_images(_paths(images), skipped=skipped)
    answers = list(model.predict_files(files))
    return FilePredictions(model.classes, answers, skipped=skipped)


def export(
    run: str | Path | Run,
    formats: Kind | Sequence[Kind] = ("onnx", "openvino-int8"),
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    max_drop: float = 0.01,
) -> Exports:
    """Write a run in other formats, each proven to answer as the run does.

    Args:
        run: The run or its folder; artefacts go to its folder `export`.
        formats: `onnx`, `onnx-int8`, `openvino`, `openvino-bf16`, `openvino-int8`,
            `torch-export`, `torchscript`.
        data: Where the images are, if they moved, of each set.
        max_drop: Accuracy that int8 may lose on val, a fraction.

    Raises:
        ConfigError: A format is unknown, or `max_drop` is not from 0 to 1.
        RunError: The run is not finished or its data changed.
        DataError: An image cannot be read, or the folder cannot be written.
        MissingExtraError: The extra `export` is not installed.

    Example:
        >>> [made] = tumorlens.export("runs/first", ["onnx"])
        >>> made.kind, made.verdict.passed
        ('onnx', True)
    """
    errors.check_arguments(export, locals())
    with extras.naming_missing_extras("export"):
        from tumorlens.deploy.export import Exports
        from tumorlens.deploy.export import export as export_run

        kinds = [formats] if isinstance(formats, str) else formats
        return Exports(
            export_run(_run(run), kinds, data=_places(data), max_drop=max_drop)
        )


def benchmark(
    paths: str | Path | Run | Sequence[str | Path | Run],
    *,
    seconds: float | None = None,
    threads: int | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
) -> Benchmark:
    """Measure exported models side by side: time, memory, size and accuracy.

    Args:
        paths: Run folders with exports, and artefact folders.
        seconds: Time for all timed turns together. Default: about 20 for each artefact.
        threads: Threads of each runtime. Default: all processors.
        data: Images to use in place of the val images of the first run.
        out: Folder for `benchmark.json`, its page and its table.

    Raises:
        ArtefactError: There is no artefact, one is damaged, or its process died.
        ConfigError: A number is out of range, or an artefact is named twice.

    Example:
        >>> measured = tumorlens.benchmark(["runs/first/export/onnx"], seconds=1)
        >>> [row.kind for row in measured.rows]
        ['onnx']
    """
    errors.check_arguments(benchmark, locals())
    from pathlib import Path

    from tumorlens.files import locked, write_model

    with extras.naming_missing_extras("benchmark"):
        from tumorlens.deploy.benchmark.session import benchmark as measure

        found = measure(
            _paths(paths),
            seconds=seconds,
            threads=threads,
            data=_path(data),
        )
        if out is not None:
            from tumorlens.deploy.benchmark.results import write_csv
            from tumorlens.report import write_benchmark_page

            json_path = Path(out) / "benchmark.json"
            with locked(json_path.parent):
                write_model(json_path, found)
                write_csv(found, json_path.with_suffix(".csv"))
                write_benchmark_page(json_path, out=json_path.with_suffix(".html"))
    return found


def compare(
    paths: str | Path | Run | Sequence[str | Path | Run],
    *,
    subset: str | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    with_latency: bool = True,
    progress: Progress | None = None,
) -> Comparison:
    """Compare evaluated runs on the same images: figures, costs, differences.

    Args:
        paths: Run folders, or one study folder.
        subset: `"test"`, or `"val"` while choices are being made. Default: test, but
            val for a study that never looks at test.
        data: Where the images are, if they moved, of each set.
        with_latency: Whether to time the networks, which takes a few seconds.
        progress: Called with images done and images in all.

    Raises:
        ConfigError: No path is given, one is given twice, or the subset is unknown.
        RunError: A path is no run, the runs have other classes or labels, or none is
            evaluated.

    Example:
        >>> found = tumorlens.compare(["runs/first"], with_latency=False)
        >>> [arm.name for arm in found.arms]
        ['first']
    """
    errors.check_arguments(compare, locals())
    with extras.naming_missing_extras("compare"):
        from tumorlens.study.compare import compare as compare_runs

        return compare_runs(
            _paths(paths),
            subset=subset,
            data=_places(data),
            with_latency=with_latency,
            progress=_progress(progress),
        )


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from tumorlens.deploy.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _path(path: str | Path | None) -> Path | None:
    from pathlib import Path

    return None if path is None else Path(path)


def _places(
    data: str | Path | Sequence[str | Path] | None,
) -> list[Path] | None:
    return None if data is None else _paths(data)


def _paths(given: str | Path | Run | Sequence[str | Path | Run]) -> list[Path]:
    """Return one path, or several, as a list."""
    from os import PathLike
    from pathlib import Path

    from tumorlens.runs.folder import Run

    several = [given] if isinstance(given, str | PathLike | Run) else given
    return [one.path if isinstance(one, Run) else Path(one) for one in several]


def _with_data(
    data: str | Path | Sequence[str | Path] | None, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return settings together with the argument `data`.

    Raises:
        ConfigError: They name other images.
    """
    given = dict(settings or {})
    if data is None:
        return given
    from tumorlens.config import as_setting

    place = as_setting(data)
    named = as_setting(given.get("data.path", place))
    if named != place:
        raise errors.ConfigError(
            f"data.path is given twice: {place!r} as data, {named!r} in settings",
            hint="leave out one of the two",
        )
    return {"data.path": place} | given


def _on_top_of(begun: Config, config: str | Path | Config | None) -> Config:
    """Return the settings of a run with those of a TOML file on top.

    Settings as a whole, from `load_config`, take their place.

    Raises:
        ConfigError: The file cannot be read, or a setting is wrong.
    """
    from pathlib import Path

    from tumorlens.config import Config, merge, parse_config, read_toml

    if config is None or isinstance(config, Config):
        return begun if config is None else config
    values = begun.model_dump(mode="json", exclude_none=True)
    merge(values, read_toml(Path(config)))
    return parse_config(values)


def _run(run: str | Path | Run) -> Run:
    from tumorlens.runs.folder import Run

    return run if isinstance(run, Run) else open_run(run)


def _progress(given: Progress | None) -> Progress | None:
    """Return the progress to show: by default bars in a notebook and nothing else."""
    if given is not None or not _is_notebook():
        return given
    from tumorlens.runs.progress import TqdmProgress

    return TqdmProgress()


def _is_notebook() -> bool:
    import sys

    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == (
        "ZMQInteractiveShell"
    )


def _view(result: object) -> str | None:
    """Return a result as HTML for a notebook; `None` without the libraries to draw."""
    try:
        from tumorlens.report.notebook import view_of
    except ModuleNotFoundError:
        return None
    return view_of(result)


text.show_results_with(_view)
