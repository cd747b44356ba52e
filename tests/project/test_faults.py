"""Every command under faults of its machine: kills, full disks, a second command.

Not part of the usual tests, as it takes minutes: `make faults`. docs/reliability.md has
what came of it.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from support.images import CLASSES, draw_image
from support.made_once import made_once
from support.zygote import Zygote
from tumorlens.deploy.artefact import open_artefact
from tumorlens.files import sha256_of
from tumorlens.runs.folder import open_run
from tumorlens.runs.trust import trust_of_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = pytest.mark.faults

NUM_KILLS = 20
EXTRA_DISK_KIB = 512
"""Room on the small disk for what the file system itself needs."""

TINY = """
[model]
name = "test_resnet"
pretrained = "no"
size_px = 32
[data]
cache_limit_mib = 64
[train]
batch_size = 8
device = "cpu"
[optim]
epochs = 3
"""
STUDY = """
test = true
[base]
model.name = "test_resnet"
model.pretrained = "no"
model.size_px = 32
train.batch_size = 8
train.device = "cpu"
optim.epochs = 2
data.cache_limit_mib = 0
[axes]
optim.lr = [1e-2, 1e-3]
"""


@dataclass(frozen=True)
class Place:
    """What the commands read, which they do not change."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    @property
    def run(self) -> Path:
        return self.folder / "run"


@dataclass(frozen=True)
class Command:
    """A command and what must come of it, however often it was disturbed."""

    words: Callable[[Place, Path], list[object]]
    """The command, given the folder that it writes to."""
    outcome: Callable[[Path], Any]
    """What must be the same."""
    prepare: Callable[[Place, Path], object] = lambda _place, _out: None
    """Makes what it writes into."""
    resume: Callable[[Place, Path], list[object] | None] = lambda _place, _out: None
    """The command that continues it, where that is another one."""

    def next_words(self, place: Place, out: Path) -> list[object]:
        return self.resume(place, out) or self.words(place, out)


def make_place(folder: Path) -> None:
    place = Place(folder)
    for label in CLASSES:
        (place.data / label).mkdir(parents=True)
        for number in range(10):
            image = Image.fromarray(draw_image(label, number))
            image.save(place.data / label / f"{number}.png")
    answers = ["path,predicted"]
    for label in CLASSES:
        (place.other / label).mkdir(parents=True)
        for number in range(8, 12):  # two pictures that training has seen, and two new
            path = place.other / label / f"{number}.png"
            Image.fromarray(draw_image(label, number)).save(path)
            answers.append(f"{label}/{number}.png,{label}")
    (folder / "answers.csv").write_text("\n".join(answers))
    (folder / "tiny.toml").write_text(TINY)
    (folder / "study.toml").write_text(STUDY)
    with Zygote(folder) as zygote:
        for seed, name in enumerate(("run", "second")):
            split = ["--set", f"data.split={place.run / 'split.csv'}"] * seed
            words = ["train", folder / "tiny.toml", "--data", place.data, *split]
            seeded = ["--set", f"train.seed={seed}", "--out", folder / name]
            done = zygote.run(*words, *seeded)
            assert done.status == 0, done.output
        shutil.copytree(place.run, folder / "trained")
        for words in (
            ["evaluate", place.run],
            ["evaluate", place.run, "--on", place.other],
            ["evaluate", folder / "second", "--on", place.other],
            ["export", place.run, "--format", "onnx"],
        ):
            done = zygote.run(*words)
            assert done.status == 0, done.output


def train_words(place: Place, out: Path) -> list[object]:
    data = ["--data", place.data, "--set", f"data.cache_dir={out / 'cache'}"]
    return ["train", place.folder / "tiny.toml", *data, "--out", out / "run"]


def resume_training(_: Place, out: Path) -> list[object] | None:
    started = (out / "run" / "config.toml").exists()
    return ["train", "--resume", "--out", out / "run"] if started else None


def resume_prediction(place: Place, out: Path) -> list[object] | None:
    try:
        lines = (out / "p.csv.part").read_bytes().count(b"\n")
    except FileNotFoundError:
        return None
    return [*COMMANDS["predict"].words(place, out), "--resume"] if lines > 1 else None


def resume_study(place: Place, out: Path) -> list[object] | None:
    started = (out / "study" / "study.toml").exists()
    return ["study", "run", out / "study", "--retry-failed"] if started else None


def copy_run(name: str, place: Place, out: Path) -> None:
    shutil.copytree(place.folder / name, out / "run")


def of_training(run: Path) -> Any:
    found = open_run(run)
    assert found.is_finished
    assert not found.checkpoint_path.exists()
    rows = found.history()
    for row in rows:
        del row["seconds"], row["images_per_second"]
    facts = [found.environment()[key] for key in ("seed", "compute")]
    return rows, sha256_of(found.weights_path), found.split(), found.leak(), facts


def of_evaluation(run: Path) -> Any:
    found = open_run(run)
    assert found.looks()
    return found.metrics(), found.predictions_path.read_bytes()


def of_external(folder: Path) -> Any:
    measured = json.loads((folder / "external.json").read_text())
    tables = (of_table(folder / name) for name in ("predictions.csv", "images.csv"))
    return measured, *tables, of_page(folder / "external.html")


def of_trust(run: Path) -> Any:
    trusted = trust_of_run(open_run(run))
    assert trusted is not None
    names = ("trust.json", "gate.npz", "model.json")
    return trusted.trust, [sha256_of(run / name) for name in names]


def of_export(run: Path) -> Any:
    artefact = open_artefact(run / "export" / "onnx")
    verdicts = json.loads((run / "export" / "parity.json").read_text())
    names = sorted(path.name for path in (run / "export").iterdir())
    return sha256_of(artefact.graph_path), verdicts["onnx"]["passed"], names


def of_study(study: Path) -> Any:
    from tumorlens.study.folder import open_study

    return [
        (trial.name, trial.state, trial.value, of_training(trial.run_path))
        for trial in open_study(study).trials()
    ]


def of_page(page: Path) -> Any:
    text = page.read_text()
    assert text.rstrip().endswith("</html>")
    return len(text) > 1000


def of_table(path: Path) -> Any:
    with path.open(newline="") as file:
        return [[rounded(cell) for cell in row] for row in csv.reader(file)]


def rounded(cell: str) -> str:
    # A resumed prediction has other batches, in which sums round otherwise.
    try:
        return f"{float(cell):.5f}"
    except ValueError:
        return cell


COMMANDS = {
    "audit": Command(
        lambda place, out: ["audit", place.data, "--out", out / "audit"],
        lambda out: (
            json.loads((out / "audit/audit.json").read_text()),
            of_page(out / "audit/audit.html"),
        ),
    ),
    "claim": Command(
        lambda place, out: [
            *("claim", place.data, "--trained-on", place.data, "--accuracy", "0.9"),
            *("--out", out / "audit"),
        ],
        lambda out: json.loads((out / "audit/claim.json").read_text()),
    ),
    "split": Command(
        lambda place, out: ["split", place.data, "--out", out / "split.csv"],
        lambda out: of_table(out / "split.csv"),
    ),
    "train": Command(
        train_words, lambda out: of_training(out / "run"), resume=resume_training
    ),
    "evaluate": Command(
        lambda _, out: ["evaluate", out / "run"],
        lambda out: of_evaluation(out / "run"),
        partial(copy_run, "trained"),
    ),
    "evaluate-on": Command(
        lambda place, out: ["evaluate", out / "run", "--on", place.other],
        lambda out: (
            of_external(out / "run/external/other"),
            open_run(out / "run").looks() != [],
        ),
        partial(copy_run, "trained"),
    ),
    "evaluate-predictions": Command(
        lambda place, out: [
            *("evaluate", "--predictions", place.folder / "answers.csv"),
            *("--data", place.other, "--trained-on", place.data),
            *("--out", out / "judged"),
        ],
        lambda out: of_external(out / "judged"),
    ),
    "compare-on": Command(
        lambda place, out: [
            *("compare", place.run, place.folder / "second", "--on", "other"),
            *("--out", out / "compared"),
        ],
        lambda out: json.loads((out / "compared/external-comparison.json").read_text()),
    ),
    "trust": Command(
        lambda _, out: ["trust", out / "run", "--coverage", "0.5"],
        lambda out: of_trust(out / "run"),
        partial(copy_run, "trained"),
    ),
    "stress": Command(
        lambda _, out: ["stress", out / "run"],
        lambda out: (
            json.loads((out / "run/stress.json").read_text()),
            of_page(out / "run/stress.html"),
            open_run(out / "run").looks() != [],
        ),
        partial(copy_run, "trained"),
    ),
    "explain": Command(
        lambda place, out: [
            *("explain", place.run, place.other, "--out", out / "maps"),
            *("--method", "occlusion"),
        ],
        lambda out: json.loads((out / "maps/checks.json").read_text()),
    ),
    "review": Command(
        lambda _, out: ["review", out / "run"],
        lambda out: (
            json.loads((out / "run/review/review.json").read_text()),
            of_table(out / "run/review/images.csv"),
            of_table(out / "run/review/suggestions.csv"),
            of_page(out / "run/review/review.html"),
        ),
        partial(copy_run, "trained"),
    ),
    "card": Command(
        lambda _, out: ["card", out / "run"],
        lambda out: (
            json.loads((out / "run/card.json").read_text()),
            (out / "run/card.md").read_text(),
            of_table(out / "run/checklist.csv"),
        ),
        partial(copy_run, "run"),
    ),
    "export": Command(
        lambda _, out: ["export", out / "run", "--format", "onnx"],
        lambda out: of_export(out / "run"),
        partial(copy_run, "trained"),
    ),
    "predict": Command(
        lambda place, out: ["predict", place.run, place.data, "--out", out / "p.csv"],
        lambda out: of_table(out / "p.csv"),
        resume=resume_prediction,
    ),
    "study": Command(
        lambda place, out: [
            *("study", "run", place.folder / "study.toml", "--data", place.data),
            *("--out", out / "study"),
        ],
        lambda out: of_study(out / "study"),
        resume=resume_study,
    ),
    "report": Command(
        lambda _, out: ["report", out / "run"],
        lambda out: of_page(out / "run/report.html"),
        partial(copy_run, "run"),
    ),
    "benchmark": Command(
        lambda place, out: [
            *("benchmark", place.run, "--seconds", "0.1", "--batch", "1"),
            *("--threads", "1", "--out", out / "benchmark"),
        ],
        lambda out: of_page(out / "benchmark/benchmark.html"),
    ),
    "compare": Command(
        lambda place, out: [
            *("compare", place.run, place.folder / "second", "--subset", "val"),
            *("--no-latency", "--out", out / "comparison"),
        ],
        lambda out: of_page(out / "comparison/comparison.html"),
    ),
    "import": Command(
        lambda place, out: [
            *("import", place.run / "weights.safetensors", "--model", "test_resnet"),
            *("--classes", ",".join(CLASSES), "--size-px", "32"),
            *("--out", out / "imported"),
        ],
        lambda out: sha256_of(out / "imported/weights.safetensors"),
    ),
    "ensemble": Command(
        lambda place, out: [
            *("ensemble", place.run, place.folder / "second"),
            *("--out", out / "ensemble"),
        ],
        lambda out: open_run(out / "ensemble").member_names(),
    ),
    "lr-find": Command(
        lambda place, out: [
            *("lr-find", place.folder / "tiny.toml", "--data", place.data),
            *("--steps", "20", "--out", out / "lr"),
        ],
        lambda out: json.loads((out / "lr/lr_find.json").read_text())["losses"],
    ),
}
TO_KILL = (
    *("audit", "split", "train", "evaluate", "evaluate-on", "evaluate-predictions"),
    *("trust", "stress", "review", "card", "export", "predict", "study"),
)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(made_once(tmp_path_factory, "faults", make_place))


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("logs")) as zygote:
        yield zygote


@dataclass(frozen=True)
class Whole:
    """What a command gives that nothing disturbs."""

    outcome: Any
    seconds: float
    size_bytes: int
    num_bytes_written: int


@pytest.fixture(scope="module")
def undisturbed(
    place: Place, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Whole]:
    """Return a function: name of a command -> what it gives undisturbed."""

    @cache
    def whole(name: str) -> Whole:
        command, out = COMMANDS[name], tmp_path_factory.mktemp("whole")
        command.prepare(place, out)
        before = sum(map(len, contents(out).values()))
        done = zygote.run(*command.words(place, out))
        assert done.status == 0, done.output
        after = sum(map(len, contents(out).values()))
        return Whole(command.outcome(out), done.seconds, after, after - before)

    return whole


def left_in(out: Path) -> list[str]:
    """Return what no command should leave."""
    return [
        str(path.relative_to(out))
        for path in out.rglob(".*")
        if not path.name.startswith(".tumorlens-")
    ]


@pytest.mark.parametrize("name", TO_KILL)
def test_kill_9_at_random_moments_changes_nothing(
    name: str,
    undisturbed: Callable[[str], Whole],
    place: Place,
    zygote: Zygote,
    tmp_path: Path,
) -> None:
    command, whole = COMMANDS[name], undisturbed(name)
    dice = random.Random(0)
    num_hits = 0
    for number in range(NUM_KILLS):
        out = tmp_path / str(number)
        out.mkdir()
        command.prepare(place, out)
        running = zygote.start(*command.words(place, out))
        time.sleep(dice.uniform(0, whole.seconds))
        num_hits += running.kill().status == -9
        again = zygote.run(*command.next_words(place, out))
        assert again.status == 0, again.output
        assert command.outcome(out) == whole.outcome, number
        assert left_in(out) == [], number
        shutil.rmtree(out)
    # The others had ended before: times vary with the load of the machine.
    assert num_hits >= NUM_KILLS // 10


@contextmanager
def small_disk(folder: Path, *, size_kib: int) -> Iterator[Path]:
    """Mount a file system of a size; skip where only root may."""
    folder.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system cannot be mounted here: that takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill_up(folder: Path, *, free_bytes: int) -> Path:
    """Leave so much free room on a disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\1" * 4096)
    os.truncate(filler, max(0, filler.stat().st_size - free_bytes))
    return filler


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_error_and_costs_nothing(
    name: str,
    share: float,
    undisturbed: Callable[[str], Whole],
    place: Place,
    zygote: Zygote,
    tmp_path: Path,
) -> None:
    command, whole = COMMANDS[name], undisturbed(name)
    # A checkpoint, which a finished run has no more, is larger than the weights, and
    # for a moment there are two of them.
    size_kib = 20 * whole.size_bytes // 1024 + EXTRA_DISK_KIB
    with small_disk(tmp_path / "disk", size_kib=size_kib) as disk:
        out = disk / "out"
        out.mkdir()
        command.prepare(place, out)
        before = contents(out)
        filler = fill_up(disk, free_bytes=int(share * whole.num_bytes_written))
        failed = zygote.run(*command.words(place, out))
        # The trials of a study may fail one by one, with the reason.
        fails = name == "study" and failed.status == 3
        assert failed.is_clean_error or fails, failed.output
        assert not fails or "No space left" in failed.output
        found = contents(out)
        assert {path: found.get(path) for path in before} == before
        filler.unlink()
        again = zygote.run(*command.next_words(place, out))
        assert again.status == 0, again.output
        assert command.outcome(out) == whole.outcome
        assert left_in(out) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_may_not_grow_is_one_error(
    name: str, place: Place, zygote: Zygote, tmp_path: Path
) -> None:
    """Another limit than the disk's, that needs no root: that of a file's size."""
    command = COMMANDS[name]
    command.prepare(place, tmp_path)
    before = contents(tmp_path)
    failed = zygote.run(*command.words(place, tmp_path), max_file_bytes=300)
    assert failed.is_clean_error, failed.output
    found = contents(tmp_path)
    assert {path: found.get(path) for path in before} == before


@pytest.mark.parametrize("name", COMMANDS)
def test_two_at_once_in_one_folder_give_what_one_gives(
    name: str,
    undisturbed: Callable[[str], Whole],
    place: Place,
    zygote: Zygote,
    tmp_path: Path,
) -> None:
    command = COMMANDS[name]
    out = tmp_path / "both"
    out.mkdir()
    command.prepare(place, out)
    both = [zygote.start(*command.words(place, out)) for _ in range(2)]
    ended = [one.wait() for one in both]
    assert 0 in [one.status for one in ended], [one.output for one in ended]
    for one in ended:
        assert one.status == 0 or one.is_clean_error, one.output
    assert command.outcome(out) == undisturbed(name).outcome
    assert left_in(out) == []
