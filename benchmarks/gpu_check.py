"""One look at a machine with a GPU, in less than 9 minutes, with nobody watching.

    python benchmarks/gpu_check.py --data DATA --prepare bench/gpu-data
    python benchmarks/gpu_check.py --data bench/gpu-data

The first line makes the images small, so that they travel easily: 256 px, less than
60 MiB in all. The second takes the steps in the order of their worth. Each has a
process and a time limit of its own; one that fails or takes too long ends nothing but
itself. What is known is written after each step, to `gpu-check.md` and `results.jsonl`
in --work, so that nothing is lost when the machine is taken away.

Without --data the images are those of `tumorlens phantom`. Without a GPU all steps run
on the CPU with tiny settings: their figures mean nothing, and show that they run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_runs import table
from PIL import Image
from train_speed import our_loop, plain_loop, some_files

from tumorlens.config import Config, parse_config
from tumorlens.data.index import read_index
from tumorlens.data.phantom.dataset import make_phantom
from tumorlens.deploy.benchmark.gpu import Replayed, Timer, Way, ways_of
from tumorlens.deploy.benchmark.timing import median_of, ratio_by_rounds, take_turns
from tumorlens.deploy.graph import ServingGraph
from tumorlens.evaluation.measure import evaluate
from tumorlens.files import write_text
from tumorlens.runs.folder import Run, open_run
from tumorlens.runs.progress import Listener
from tumorlens.system import num_processors, processor_name
from tumorlens.training.devices import found_device, place, resolve_device
from tumorlens.training.fit import train
from tumorlens.training.import_weights import import_weights
from tumorlens.training.loop import Loss
from tumorlens.training.network import create_model, load_model, normalize
from tumorlens.training.weights import weights_as_bytes

REPOSITORY = Path(__file__).parents[1]
MAX_MIB = 60
TRAVEL_PX = 256
BASELINE = "baseline study, TorchScript"
BASELINE_MS = {"resnet18": 2.66, "resnet50": 6.85, "densenet121": 18.72}
"""Latency of one image in the baseline study, on its own GPU (studies/models.toml)."""
_PARTS = 3
"""Parts of the turns of a latency; there are figures after each."""
_LOADER_PER_S = 1500.0
_EACH = ("speed", "training", "latency")
"""Steps of a single network."""
RECIPES = REPOSITORY / "studies" / "models.toml"


@dataclass(frozen=True)
class Plan:
    """What is checked, and how much of it."""

    data: Path
    work: Path
    device: str
    models: tuple[str, ...] = ("resnet18", "resnet50", "densenet121")
    size_px: int = 224
    num_images: int = 1024
    """Images of a round of training, and of the runs that are compared."""
    rounds: int = 4
    seconds: float = 25.0
    """Time for training a network; measuring its latency gets a third of it."""
    max_epochs: int = 20
    workers: int = 8
    compiler: str = "inductor"
    patience: float = 1.0
    """Factor of every limit."""

    def tiny(self) -> Plan:
        """Return a plan for a processor, to see that each step runs."""
        return replace(
            self,
            models=("test_resnet",),
            size_px=32,
            num_images=24,
            rounds=1,
            seconds=0.3,
            max_epochs=1,
            workers=0,
            # Without the part that writes and compiles C++.
            compiler="aot_eager",
            # The processor may be a slow one, and others may use it.
            patience=8.0,
        )


@dataclass(frozen=True)
class Step:
    """One step, in a process of its own."""

    name: str
    run: Callable[[Plan], Iterator[dict[str, Any]]]
    """Yields rows of results as they come."""
    limit_s: float


def steps_of(plan: Plan) -> list[Step]:
    """Return the steps in the order of their worth."""

    def each(name: str, step: Any, *limits: float) -> list[Step]:
        return [
            Step(f"{name} {model}", partial(step, model=model), limit)
            for model, limit in zip(plan.models, limits, strict=False)
        ]

    steps = [
        Step("machine", look_at_machine, 30),
        Step("tests", run_tests, 60),
        *each("speed", measure_speed, 40, 45, 55),
        *each("training", measure_training, 55, 60, 65),
        *each("latency", measure_latency, 30, 35, 45),
        Step("resumed run", compare_resumed, 45),
        Step("memory", measure_memory, 30),
    ]
    return [replace(one, limit_s=plan.patience * one.limit_s) for one in steps]


# The steps


def look_at_machine(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield what the machine is, and which libraries the other steps will miss."""
    names = (
        *("torch", "torchvision", "timm", "accelerate", "triton", "pytest"),
        *("onnxruntime-gpu", "onnxruntime", "onnxscript"),
    )
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield {"what": name, "value": importlib.metadata.version(name)}
    yield {"what": "Python", "value": platform.python_version()}
    yield {"what": "processor", "value": f"{processor_name()}, {num_processors()}"}
    name = "none: all figures are of the processor, with tiny settings"
    if plan.device == "cuda":
        name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        cudnn: Any = torch.backends.cudnn
        number_type = cudnn.conv.fp32_precision
        yield {"what": "fp32 of convolutions", "value": number_type}
    yield {"what": "GPU", "value": name}
    files = read_index(plan.data).records
    yield {"what": "images", "value": f"{len(files):,}, {size_mib(plan.data):.0f} MiB"}


def run_tests(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the last line of the tests that need a GPU; of their neighbours, without.

    Raises:
        RuntimeError: A test fails.
    """
    places = ["tests/deploy/benchmark/test_gpu.py", "tests/training/test_on_gpu.py"]
    marker = "gpu" if plan.device == "cuda" else "not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # The tests in another process are not those of the tests that may run this.
    environment = {
        name: value for name, value in os.environ.items() if "PYTEST" not in name
    }
    done = subprocess.run(
        [*command, "-m", marker, *places],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    last = (done.stdout.strip() or "no output").splitlines()[-1]
    yield {"what": f"pytest -m '{marker}'", "value": last}
    if done.returncode:
        raise RuntimeError(f"pytest ends with status {done.returncode}: {last}")


def measure_speed(plan: Plan, model: str) -> Iterator[dict[str, Any]]:
    """Yield images per second of each way to train, the plain loop first."""
    files = some_files(plan.data, plan.num_images)
    here: dict[str, Any] = {"device": plan.device, "size_px": plan.size_px}
    ways = {
        "plain loop, fp32": partial(
            plain_loop, model, files, workers=plan.workers, **here
        ),
        "fp32": partial(our_loop, model, files, precision="fp32", **here),
        "bf16": partial(our_loop, model, files, precision="bf16", **here),
        "fp32, compiled": partial(
            our_loop, model, files, precision="fp32", compiler=plan.compiler, **here
        ),
        "bf16, compiled": partial(
            our_loop, model, files, precision="bf16", compiler=plan.compiler, **here
        ),
    }
    plain = None
    epoch: Any = None
    for name, make in ways.items():
        epoch = None  # with the network and the memory of the way before
        reset_peak()
        torch.manual_seed(0)
        epoch = make()
        epoch()  # kernels are chosen or compiled, loaders start
        speeds = []
        for _ in range(plan.rounds):
            wait(plan)
            start = time.perf_counter()
            number = epoch()
            wait(plan)
            speeds.append(number / (time.perf_counter() - start))
        speed = statistics.median(speeds)
        plain = plain or speed
        yield {
            "network": model,
            "way": name,
            "images/s": round(speed, 1),
            "lowest to highest": f"{min(speeds):.0f} to {max(speeds):.0f}",
            "times the plain loop": round(speed / plain, 2),
            "peak memory, MiB": peak_mib(),
        }


def measure_training(plan: Plan, model: str) -> Iterator[dict[str, Any]]:
    """Yield what a training by the recipe of the studies reaches in the time."""
    settings = recipe_of(model)
    wanted = min(int(settings["optim"]["epochs"]), plan.max_epochs)
    epochs = min(wanted, epochs_in_time(plan, model))
    clock = Clock(plan.seconds)
    run = fit_one(plan, model, settings, "recipe", epochs=epochs, listener=clock)
    history = run.history()
    speeds = [row["images_per_second"] for row in history]
    made = {
        "network": model,
        "epochs": f"{len(history)} of the recipe's {settings['optim']['epochs']}",
        "images/s": round(statistics.median(speeds), 1),
        "best val": f"{max(row['val_accuracy'] for row in history):.1%}",
    }
    yield made
    if run.is_finished:
        measured = evaluate(run, device=plan.device)
        leak = measured.leak.words.partition(". ")[0]
        yield made | {"test": measured.accuracy.percentage, "leak": leak}


def measure_latency(plan: Plan, model: str) -> Iterator[dict[str, Any]]:
    """Yield the milliseconds of one image, in each way to run a network."""
    device = resolve_device(plan.device)
    run = untrained(plan, model)
    pairs = [(run.card(), load_model(run.card(), run.weights_path))]
    example = torch.zeros(1, plan.size_px, plan.size_px, 3, dtype=torch.uint8)
    ways: list[Way] = []
    for name, make in {
        "TorchScript": partial(traced, pairs, example, device),
        "eager": partial(ways_of, run, device),
        "torch.compile": partial(compiled, pairs, device, plan),
        "ONNX Runtime": partial(of_onnxruntime, pairs, example, device, plan),
    }.items():
        try:
            ways += make()
        except Exception as error:
            # One of them that is not there says nothing about the others.
            yield {"network": model, "way": name, "ms": "", "note": one_line(error)}
    if model in BASELINE_MS:
        yield {"network": model, "way": BASELINE, "ms": BASELINE_MS[model]}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, *example.shape[1:]), dtype=np.uint8)
    timers = []
    for way in ways:
        timers.append(Timer(way, images, batch=1, device=device))
        print(f"warm: {way.kind} {way.precision}", flush=True)
    medians: list[list[float]] = [[] for _ in ways]
    for part in range(_PARTS):
        found = take_turns(
            timers,
            seconds=plan.seconds / 3 / _PARTS,
            min_rounds=2,
            max_rounds=100,
            shuffle_seed=part,
        )
        for mine, rounds in zip(medians, found, strict=True):
            mine += [statistics.median(calls) for calls in rounds]
        for way, mine in zip(ways, medians, strict=True):
            one = median_of([1000 * seconds for seconds in mine])
            ratio = ratio_by_rounds(medians[0], mine)
            yield {
                "network": model,
                "way": f"{way.kind}, {way.precision}",
                "ms": round(one.value, 3),
                "95 % interval": f"{one.low:.3f} to {one.high:.3f}" if one.low else "",
                "times TorchScript": round(ratio.value, 2),
            }


def compare_resumed(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield how far a run that was stopped and resumed is from an unbroken one.

    Two unbroken runs are compared as well: a GPU may add up in another order each time,
    and no resuming can be nearer than that.

    Raises:
        RuntimeError: The run was not stopped.
    """
    model = plan.models[0]
    settings = recipe_of(model) | {"augment": {"policy": "mri"}}
    epochs = min(3, plan.max_epochs + 1)
    fit = partial(fit_one, plan, model, settings, epochs=epochs, is_small=True)
    unbroken, again = (fit(name) for name in ("unbroken", "unbroken again"))
    stopped = fit("resumed", listener=Stop())
    if stopped.is_finished:
        raise RuntimeError("the run was not stopped")
    resumed = train(None, out=stopped.path, resume=True).run
    for name, other in {"unbroken again": again, "resumed": resumed}.items():
        losses = [
            abs(one["train_loss"] - two["train_loss"])
            for one, two in zip(unbroken.history(), other.history(), strict=True)
        ]
        yield {
            "run": name,
            "largest difference of a weight": f"{difference(unbroken, other):.3g}",
            "of a training loss": f"{max(losses):.3g}",
            "weights equal to the bit": "yes" if same(unbroken, other) else "no",
        }


def measure_memory(plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield the memory of a training step of 32 images, and of an inference."""
    device = resolve_device(plan.device)
    for model in plan.models:
        row: dict[str, Any] = {"network": model}
        for precision in ("fp32", "bf16"):
            network, preprocessing = create_model(config_of(model).model, num_classes=4)
            place(network, device).train()
            decoded = torch.zeros(32, 3, plan.size_px, plan.size_px, dtype=torch.uint8)
            images = normalize(
                decoded.to(device), mean=preprocessing.mean, std=preprocessing.std
            )
            labels = torch.arange(32, device=device) % 4
            reset_peak()
            with torch.autocast(
                device.type, torch.bfloat16, enabled=precision == "bf16"
            ):
                logits = network(images)
            (Loss()(logits.float(), labels) / 32).backward()
            row[f"training, {precision}, MiB"] = peak_mib()
        reset_peak()
        network.zero_grad(set_to_none=True)
        with torch.inference_mode():
            network.eval()(images)
        yield row | {"inference, fp32, MiB": peak_mib()}


# Parts of the steps


def recipe_of(model: str) -> dict[str, Any]:
    """Return the settings of a network in the study, by section; random weights."""
    study = tomllib.loads(RECIPES.read_text(encoding="utf-8"))
    arms = [arm for arm in study["arms"] if arm["model"]["name"] == model]
    settings = {
        section: dict(values)
        for section, values in study["base"].items()
        if isinstance(values, dict)
    }
    for arm in arms or study["arms"][1:2]:
        for section, values in arm.items():
            if isinstance(values, dict):
                settings[section] = settings.get(section, {}) | values
    settings["model"] |= {"name": model, "pretrained": "no"}
    return settings


def config_of(model: str) -> Config:
    """Return plain settings for a network with random weights."""
    return parse_config({"model": {"name": model, "pretrained": "no"}})


def fit_one(
    plan: Plan,
    model: str,
    settings: dict[str, Any],
    name: str,
    *,
    epochs: int,
    is_small: bool = False,
    listener: Listener | None = None,
) -> Run:
    """Train a network on the data of the plan, in a new folder."""
    data = {"path": str(plan.data), "cache_dir": str(plan.work / "cache")}
    subsets = {record.subset for record in read_index(plan.data).records}
    protocol = "as-given" if subsets >= {"train", "test"} else "grouped"
    values = settings | {
        "data": settings.get("data", {}) | data | {"protocol": protocol},
        "model": settings["model"] | {"size_px": plan.size_px},
        "optim": settings["optim"] | {"epochs": epochs},
        "train": settings["train"]
        | {"device": plan.device, "workers": plan.workers, "seed": 42},
    }
    if is_small:
        values["data"] |= {"path": str(some_of(plan)), "protocol": "grouped"}
    out = plan.work / "runs" / f"{model} {name}"
    return train(parse_config(values), out=out, listener=listener).run


def some_of(plan: Plan) -> Path:
    """Return a table of some images, for runs that are only compared."""
    path = plan.work / "some.csv"
    index = some_files(plan.data, max(plan.num_images // 2, 120))
    lines = [f"{index.file_of(one)},{one.label}" for one in index.records]
    write_text(path, "\n".join(["path,label", *lines]) + "\n")
    return path


def epochs_in_time(plan: Plan, model: str) -> int:
    """Return the epochs that a training has time for, by the speed of its network.

    The recipes transform images, which the measured loop does not; that the loader
    keeps up with a GPU is not to be relied upon.
    """
    known = [
        row["images/s"]
        for row in read_rows(plan.work / "results.jsonl")
        if row.get("network") == model and row.get("way") == "bf16"
    ]
    speed = min(known[-1] if known else 200.0, _LOADER_PER_S)
    num_images = len(read_index(plan.data).records)
    return max(1, int(plan.seconds * speed / (1.5 * num_images)))


class Clock(Listener):
    """Prints a line for each epoch, and presses Ctrl-C when the time is up."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + 1.3 * seconds

    def epoch(self, row: dict[str, Any]) -> None:
        """Print its line into the log of the step."""
        print(json.dumps(row), flush=True)

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Look at the clock after the first epoch, at every batch."""
        if epoch > 1 and done <= total and time.monotonic() > self._end:
            signal.raise_signal(signal.SIGINT)


class Stop(Listener):
    """Presses Ctrl-C after the second batch of the second epoch."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        """Press it."""
        if (epoch, done) == (2, min(2, total)):
            signal.raise_signal(signal.SIGINT)


def untrained(plan: Plan, model: str) -> Run:
    """Return a run around random weights."""
    torch.manual_seed(0)
    config = config_of(model)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"size_px": plan.size_px})}
    )
    network, _ = create_model(config.model, num_classes=4)
    weights = plan.work / "untrained" / f"{model}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(weights_as_bytes(network))
    out = plan.work / "untrained" / model
    import_weights(weights, config, classes=("a", "b", "c", "d"), out=out)
    return open_run(out)


def graph_of(pairs: Any, device: torch.device) -> Any:
    """Return the network with its pre- and postprocessing, on a device."""
    return ServingGraph(pairs).to(device).eval()


def probs_of(graph: Any, images: torch.Tensor) -> torch.Tensor:
    """Return probabilities."""
    with torch.inference_mode():
        probs: torch.Tensor = graph(images)[0]
    return probs


def traced(pairs: Any, example: torch.Tensor, device: torch.device) -> list[Way]:
    """Return the way of the baseline study: TorchScript."""
    graph = graph_of(pairs, device)
    jit: Any = torch.jit
    with torch.no_grad():
        script = jit.trace(graph, example.to(device), check_trace=False)
    return [Way("TorchScript", "fp32", partial(probs_of, script), 0)]


def compiled(pairs: Any, device: torch.device, plan: Plan) -> list[Way]:
    """Return torch.compile, launched call by call and as one CUDA graph."""
    compile_it: Any = torch.compile
    graph = compile_it(graph_of(pairs, device), backend=plan.compiler, dynamic=False)
    predict = partial(probs_of, graph)
    predict(torch.zeros(1, plan.size_px, plan.size_px, 3).to(device, torch.uint8))
    ways = [Way("torch.compile", "fp32", predict, 0)]
    if device.type == "cuda":
        ways.append(Way("torch.compile, CUDA graph", "fp32", Replayed(predict), 0))
    return ways


def of_onnxruntime(
    pairs: Any, example: torch.Tensor, device: torch.device, plan: Plan
) -> list[Way]:
    """Return ONNX Runtime on the device, with images that are there already.

    Raises:
        RuntimeError: It has no provider for the device.
    """
    import onnxruntime

    kind = "CUDA" if device.type == "cuda" else "CPU"
    provider = f"{kind}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"ONNX Runtime {onnxruntime.__version__} has no {provider}")
    path = plan.work / "untrained" / "graph.onnx"
    program: Any = torch.onnx.export(
        graph_of(pairs, torch.device("cpu")), (example,), dynamo=True, verbose=False
    )
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=[provider])
    if provider not in session.get_providers():
        raise RuntimeError(f"ONNX Runtime did not take {provider}")
    name, out = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(images: torch.Tensor) -> torch.Tensor:
        binding = session.io_binding()
        held = images.contiguous()
        binding.bind_input(
            name, device.type, 0, np.uint8, tuple(held.shape), held.data_ptr()
        )
        binding.bind_output(out, device.type)
        session.run_with_iobinding(binding)
        return torch.from_numpy(np.empty(0))

    return [Way(f"ONNX Runtime, {kind}", "fp32", predict, 0)]


def difference(one: Run, other: Run) -> float:
    """Return the largest difference between the weights of two runs."""
    mine, theirs = (load_model(run.card(), run.weights_path) for run in (one, other))
    pairs = zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def same(one: Run, other: Run) -> bool:
    """Whether the weights files of two runs are equal."""
    return one.weights_path.read_bytes() == other.weights_path.read_bytes()


def wait(plan: Plan) -> None:
    """Wait until the device has done what it was given."""
    if plan.device != "cpu":
        torch.accelerator.synchronize()


def reset_peak() -> None:
    """Forget the largest amount of memory of the device so far."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mib() -> int | str:
    """Return the largest amount of memory that tensors have taken on the device."""
    if not torch.cuda.is_available():
        return ""
    return round(torch.cuda.max_memory_allocated() / 2**20)


def one_line(error: BaseException) -> str:
    """Return the first line of an error, not too long for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"


# One step after the other


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: Step
    state: str
    seconds: float
    rows: list[dict[str, Any]]
    reason: str = ""


def check(plan: Plan, *, minutes: float, is_spawned: bool) -> list[Outcome]:
    """Take all steps, and write what is known after each.

    Args:
        plan: What to do.
        minutes: Time for everything; what would begin later is left out, and the last
            step has what is left of it.
        is_spawned: Whether each step gets a new Python, as CUDA needs it; otherwise it
            is forked, which saves the imports.
    """
    end = time.monotonic() + 60 * minutes
    outcomes: list[Outcome] = []
    for step in steps_of(plan):
        left = end - time.monotonic()
        if left < 5:
            outcomes.append(Outcome(step, "left out", 0, [], "no time is left"))
        else:
            limit = min(step.limit_s, left)
            outcomes.append(take(step, plan, limit_s=limit, is_spawned=is_spawned))
        write_text(plan.work / "gpu-check.md", "\n".join(lines_of(outcomes)) + "\n")
        one = outcomes[-1]
        print(f"{step.name}: {one.state}, {one.seconds:.0f} s {one.reason}", flush=True)
    return outcomes


def take(step: Step, plan: Plan, *, limit_s: float, is_spawned: bool) -> Outcome:
    """Run one step in a process of its own, and stop it when its time is up."""
    results, log = plan.work / "results.jsonl", plan.work / f"{step.name}.log"
    num_before = len(read_rows(results))
    context: Any = multiprocessing.get_context("spawn" if is_spawned else "fork")
    process = context.Process(target=run_step, args=(step.name, plan, results, log))
    start = time.monotonic()
    process.start()
    process.join(limit_s)
    is_late = process.is_alive()
    for number, patience_s in ((signal.SIGINT, 3), (signal.SIGKILL, 3)):
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.join(patience_s)
    if process.is_alive():  # it has not yet begun a group of its own
        process.kill()
    rows = [
        row for row in read_rows(results)[num_before:] if row.pop("step") == step.name
    ]
    reason = next((row["error"] for row in rows if "error" in row), "")
    rows = [row for row in rows if "error" not in row]
    state = "done"
    if is_late:
        state, reason = "timed out", f"after {limit_s:.0f} s"
    elif reason or process.exitcode:
        state, reason = "failed", reason or f"status {process.exitcode}"
    return Outcome(step, state, time.monotonic() - start, rows, reason)


def run_step(name: str, plan: Plan, results: Path, log: Path) -> None:
    """Be the process of a step: write its rows as they come."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(descriptor, number)
    # Those of the process that was forked may be anything.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
    )
    (step,) = (one for one in steps_of(plan) if one.name == name)
    try:
        for row in step.run(plan):
            append(results, {"step": name, **row})
    except Exception as error:
        append(results, {"step": name, "error": one_line(error)})
        raise


def append(path: Path, row: dict[str, Any]) -> None:
    """Write a row, so that it stays whatever happens next."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows so far; half a row at the end is none."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def lines_of(outcomes: list[Outcome]) -> list[str]:
    """Return what is known as Markdown: the steps, then the rows of each kind."""
    lines = table(
        ("step", "state", "limit, s", "took, s", "note"),
        *(
            (
                *(one.step.name, one.state, f"{one.step.limit_s:.0f}"),
                *(f"{one.seconds:.0f}", one.reason.replace("|", "/")),
            )
            for one in outcomes
        ),
    )
    kinds: dict[str, dict[Any, dict[str, Any]]] = {}
    for one in outcomes:
        first = one.step.name.partition(" ")[0]
        kind = first if first in _EACH else one.step.name
        for row in one.rows:
            # The last row of a network, a way or a run has all figures.
            key = tuple(row.get(name) for name in ("what", "network", "way", "run"))
            kinds.setdefault(kind, {})[key] = row
    for kind, rows in kinds.items():
        heading = list(dict.fromkeys(name for row in rows.values() for name in row))
        cells = [[str(row.get(name, "")) for name in heading] for row in rows.values()]
        lines += ["", f"**{kind}**", "", *table(heading, *cells)]
    return lines


# The images


def prepare(data: Path, out: Path) -> None:
    """Write images with their longer side at 256 px, under the same names.

    Raises:
        SystemExit: They are more than 60 MiB, or the folder is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty: remove it to make it again")
    index = read_index(data)
    for record in index.records:
        path = out / record.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(index.file_of(record)) as image:
            small = image.convert("RGB")
            small.thumbnail((TRAVEL_PX, TRAVEL_PX), Image.Resampling.LANCZOS)
            channels = np.asarray(small)
            if (channels == channels[..., :1]).all():
                small = small.convert("L")
            small.save(path, quality=90)
    if (table_of := data / "metadata.csv").is_file():
        (out / table_of.name).write_bytes(table_of.read_bytes())
    size = size_mib(out)
    print(f"{len(index.records):,} images, {size:.1f} MiB, in {out}")
    if size > MAX_MIB:
        raise SystemExit(f"they are more than {MAX_MIB} MiB")


def size_mib(folder: Path) -> float:
    """Return the size of the files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) / 2**20


@contextmanager
def imports_of_steps() -> Iterator[None]:
    """Let a new Python of a step find the other scripts, and the package."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def main() -> None:
    """Prepare the images, or take the steps.

    Raises:
        SystemExit: At the end, with status 1 if a step is not done.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="default: the phantom's images")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path("bench/gpu-check"))
    parser.add_argument("--minutes", type=float, help="default: 8.75; 40 if tiny")
    parser.add_argument("--tiny", action="store_true", help="the default without a GPU")
    options = parser.parse_args()
    if options.prepare:
        if options.data is None:
            parser.error("--prepare needs --data")
        prepare(options.data, options.prepare)
        return
    work = options.work.resolve()
    if (work / "results.jsonl").exists():
        work = work.with_name(f"{work.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    work.mkdir(parents=True, exist_ok=True)
    data = options.data or work / "phantom"
    if options.data is None:
        make_phantom(data, patients=16)
    kind = found_device()
    plan = Plan(data.resolve(), work, kind)
    minutes = options.minutes or 8.75
    if options.tiny or kind == "cpu":
        plan, minutes = plan.tiny(), options.minutes or 40.0
    with imports_of_steps():
        outcomes = check(plan, minutes=minutes, is_spawned=kind != "cpu")
    print("\n".join(["", *lines_of(outcomes), "", f"written to {work}"]))
    raise SystemExit(any(one.state != "done" for one in outcomes))


if __name__ == "__main__":
    main()
