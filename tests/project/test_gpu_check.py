"""The script of `make gpu-check`: every step runs, and none ends the others."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from support.images import CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    # A new Python finds the script by its name, too.
    monkeypatch.delitem(sys.modules, "gpu_check", raising=False)
    return __import__("gpu_check")


@pytest.mark.slow
def test_every_step_runs_on_a_processor_with_tiny_settings(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_images(subsets={"Training": 12, "Testing": 4})
    work = tmp_path / "work"
    done = subprocess.run(
        [
            *(sys.executable, BENCHMARKS / "gpu_check.py", "--tiny"),
            *("--data", data, "--work", work),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    logs = "".join(path.read_text() for path in work.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    page = (work / "gpu-check.md").read_text()
    lines = page.splitlines()
    steps = [line.split(" | ") for line in lines[2 : lines.index("")]]
    assert [name.removeprefix("| ") for name, *_ in steps] == [
        *("machine", "tests", "speed test_resnet", "training test_resnet"),
        *("latency test_resnet", "resumed run", "memory"),
    ]
    assert {state for _, state, *_ in steps} == {"done"}
    for heading in ("machine", "speed", "training", "latency", "resumed run", "memory"):
        assert f"**{heading}**" in lines
    rows = [
        json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()
    ]
    speeds = {row["way"]: row for row in rows if row["step"].startswith("speed")}
    assert [*speeds] == [
        *("plain loop, fp32", "fp32", "bf16", "fp32, compiled", "bf16, compiled")
    ]
    assert all(row["images/s"] > 0 for row in speeds.values())
    latencies = {row["way"] for row in rows if row["step"].startswith("latency")}
    assert {"TorchScript, fp32", "torch.compile, fp32"} <= latencies
    assert "| resumed | 0 | 0 | yes |" in lines  # a processor adds up in one order
    assert "Leak: " in page or "No copies" in page


# Steps that go wrong


def good(plan: Any) -> Iterator[dict[str, Any]]:
    yield {"what": "good", "value": 1}


def failing(plan: Any) -> Iterator[dict[str, Any]]:
    yield {"what": "before", "value": 1}
    raise ValueError("no | kernel\nsecond line")


def hanging(plan: Any) -> Iterator[dict[str, Any]]:
    yield {"what": "half", "value": 1}
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:  # as a step in the middle of a library might
            continue


def dying(plan: Any) -> Iterator[dict[str, Any]]:
    import os

    yield {"what": "alive", "value": 1}
    os._exit(9)


def test_a_step_that_fails_hangs_or_dies_ends_no_other(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [
        script.Step("failing", failing, 20),
        script.Step("hanging", hanging, 1),
        script.Step("dying", dying, 20),
        script.Step("good", good, 20),
    ]
    monkeypatch.setattr(script, "steps_of", lambda _: steps)
    plan = script.Plan(tmp_path, tmp_path, "cpu")
    start = time.monotonic()
    outcomes = script.check(plan, minutes=1, is_spawned=False)
    assert time.monotonic() - start < 20
    assert [(one.state, one.reason) for one in outcomes] == [
        ("failed", "ValueError: no | kernel"),
        ("timed out", "after 1 s"),
        ("failed", "status 9"),
        ("done", ""),
    ]
    # What was known before is kept.
    known = [[row["what"] for row in one.rows] for one in outcomes]
    assert known == [["before"], ["half"], ["alive"], ["good"]]
    page = (tmp_path / "gpu-check.md").read_text()
    assert page.splitlines()[2].startswith("| failing | failed | 20 | ")
    assert page.splitlines()[2].endswith("| ValueError: no / kernel |")
    assert "| half | 1 |" in page
    assert "second line" in (tmp_path / "failing.log").read_text()


def test_what_has_no_time_left_is_left_out(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [script.Step("good", good, 20)] * 2
    monkeypatch.setattr(script, "steps_of", lambda _: steps)
    plan = script.Plan(tmp_path, tmp_path, "cpu")
    outcomes = script.check(plan, minutes=0.01, is_spawned=False)
    assert [one.state for one in outcomes] == ["left out"] * 2
    assert "no time is left" in (tmp_path / "gpu-check.md").read_text()


@pytest.mark.slow
def test_a_step_in_a_new_python_finds_its_script(
    script: Any, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    plan = script.Plan(make_images(num_each=2), tmp_path, "cpu").tiny()
    with script.imports_of_steps():
        (step,) = (one for one in script.steps_of(plan) if one.name == "machine")
        found = script.take(step, plan, limit_s=60, is_spawned=True)
    assert found.state == "done", (tmp_path / "machine.log").read_text()
    assert {"what": "images", "value": "8, 0 MiB"} in found.rows


def test_all_steps_together_fit_into_the_time(script: Any, tmp_path: Path) -> None:
    steps = script.steps_of(script.Plan(tmp_path, tmp_path, "cuda"))
    assert len(steps) == 13
    # Their limits are more than they take; the whole ends at 8.75 minutes in any case.
    assert sum(one.limit_s for one in steps) < 10 * 60
    assert [one.name for one in steps[:3]] == ["machine", "tests", "speed resnet18"]


# Its parts


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet18", {"optim": {"name": "adam", "epochs": 20}}),
        ("resnet50", {"optim": {"epochs": 10}, "model": {"drop_rate": 0.3}}),
        ("densenet121", {"optim": {"name": "adamw", "scheduler": "cosine"}}),
        # For the processor, that of one of the three.
        ("test_resnet", {"optim": {"name": "adam"}}),
    ],
)
def test_the_recipe_is_that_of_the_study_from_random_weights(
    script: Any, model: str, expected: dict[str, dict[str, Any]]
) -> None:
    settings = script.recipe_of(model)
    assert settings["model"]["name"] == model
    assert settings["model"]["pretrained"] == "no"
    for section, values in expected.items():
        assert settings[section].items() >= values.items()


def test_the_last_row_of_a_network_is_the_one_that_is_shown(script: Any) -> None:
    step = script.Step("training one", good, 1)
    rows = [{"network": "one", "val": 0.5}, {"network": "one", "val": 0.5, "test": 0.4}]
    lines = script.lines_of([script.Outcome(step, "done", 1.0, rows)])
    assert lines[-3:] == [
        "| network | val | test |",
        "|---|---|---|",
        "| one | 0.5 | 0.4 |",
    ]


def test_the_images_travel_small_under_their_names(
    script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = tmp_path / "data", tmp_path / "small"
    grey = np.tile(np.arange(300, dtype=np.uint8)[:, None], (1, 600))
    for label in CLASSES[:2]:
        (data / "Training" / label).mkdir(parents=True)
        Image.fromarray(grey).convert("RGB").save(data / "Training" / label / "a.jpg")
        Image.new("RGB", (40, 30), (200, 0, 0)).save(
            data / "Training" / label / "b.jpg"
        )
    row = f"Training/{CLASSES[0]}/a.jpg,7"
    (data / "metadata.csv").write_text(f"path,patient\n{row}\n")
    script.prepare(data, out)
    assert "4 images, 0.0 MiB" in capsys.readouterr().out
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert names == {str(path.relative_to(data)) for path in data.rglob("*.*")}
    with Image.open(out / "Training" / CLASSES[0] / "a.jpg") as small:
        assert (small.size, small.mode) == ((256, 128), "L")
    # What is small already stays as large, and coloured.
    with Image.open(out / "Training" / CLASSES[0] / "b.jpg") as coloured:
        assert (coloured.size, coloured.mode) == ((40, 30), "RGB")
    with pytest.raises(SystemExit, match="small is not empty"):
        script.prepare(data, out)
    monkeypatch.setattr(script, "MAX_MIB", 0)
    with pytest.raises(SystemExit, match="more than 0 MiB"):
        script.prepare(data, tmp_path / "other")
