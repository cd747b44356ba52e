"""Each study under `studies/`, made small, from its file to its page.

Arms, protocols, optimizers, schedules and policies are those of the file; the networks
are timm's of a few weights, trained for one epoch on drawn images of 32 pixels. The
worker is this process: one of its own would import torch for each study.
"""

from __future__ import annotations

import csv
import html
import re
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

from support.images import CLASSES, draw_image
from tumorlens.cli import app
from tumorlens.study.folder import create_study
from tumorlens.study.plan_file import load_plan
from tumorlens.study.worker import work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tumorlens.study.plan import StudyPlan

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))

SMALL = [
    "data.num_folds=2",
    "model.pretrained=no",
    "model.size_px=32",
    "train.batch_size=16",
    "train.precision=fp32",
    "train.device=cpu",
    "train.workers=0",
]
"""What makes a training take a tenth of a second; no arm of any study sets it."""

SMALL_NETWORKS = {
    "densenet121": "test_vit",
    "mobilenetv2_100": "test_resnet",
    "resnet18": "test_efficientnet",
    "resnet50": "test_resnet",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with Training and Testing, and room for a cache beside it."""
    root = tmp_path_factory.mktemp("studies") / "data"
    seeds = count()
    for subset, num_each in (("Training", 6), ("Testing", 3)):
        for label in CLASSES:
            folder = root / subset / label
            folder.mkdir(parents=True)
            for number in range(num_each):
                image = Image.fromarray(draw_image(label, next(seeds), size_px=48))
                image.save(folder / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep networks of a few weights from waiting for threads, most of their time."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def small_plan(path: Path, images: Path, folder: Path) -> StudyPlan:
    """Return the plan of a study with small networks and one epoch in every arm."""
    text = path.read_text(encoding="utf-8")
    # In the file, since an arm's own setting cannot be set from outside.
    for large, tiny in SMALL_NETWORKS.items():
        text = text.replace(f'model.name = "{large}"', f'model.name = "{tiny}"')
    text = re.sub(r"optim\.epochs = \d+", "optim.epochs = 1", text)
    (folder / path.name).write_text(text, encoding="utf-8")
    cache = f"data.cache_dir={images.parent / 'cache'}"
    return load_plan(folder / path.name, assignments=[*SMALL, cache], data=images)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_runs_from_its_file_to_its_page(
    path: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(path, images, tmp_path)
    assert {arm.name for arm in plan.arms} == {arm.name for arm in load_plan(path).arms}
    study = create_study(tmp_path / "study", plan, store_url=None)
    assert work(study, study.open_store())
    states = {trial.name: (trial.state, trial.reason) for trial in study.trials()}
    assert set(states.values()) == {("finished", None)}, states

    assert app.main(["compare", str(study.path), "--no-latency"]) == 0

    names = [arm.name for arm in plan.arms]
    protocols = ("as-given", "grouped-kfold")
    with (study.path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["protocol"]) for row in rows] == [
        (name, protocol) for name in names for protocol in protocols
    ]
    # Every image of Testing once, and every image of all once, fold by fold.
    assert {(row["protocol"], row["num_images"]) for row in rows} == {
        ("as-given", "12"),
        ("grouped-kfold", "36"),
    }
    # What published curves are of can be had where the folders are as they were given.
    watched = [row["protocol"] for row in rows if row["best_test_epoch_accuracy"]]
    assert watched == ["as-given"] * len(names)

    page = (study.path / "comparison.html").read_text(encoding="utf-8")
    table = page[page.index("<h2>The arms</h2>") :].partition("</table>")[0]
    shown = re.findall(r'<th scope="row" class="arm" data-value="([^"]*)"', table)
    assert [html.unescape(name) for name in shown] == names
    assert "Trials without measures" not in page
    said = capsys.readouterr().out
    assert [name for name in names if name not in said] == []
