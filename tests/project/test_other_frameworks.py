"""The example and the lines to copy write tables that one command judges."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.dummy import DummyClassifier
from torchvision import transforms

from support.images import CLASSES, draw_image
from tumorlens.cli import app

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "other-frameworks.md"


def snippet(word: str) -> str:
    """Return the Python of the page that has a word in it."""
    blocks: list[str] = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    (found,) = [block for block in blocks if word in block]
    return found


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return `DATA` in the working folder: the first test image of each is seen."""
    for subset, first in (("Training", 0), ("Testing", 100)):
        for label in CLASSES:
            folder = tmp_path / "DATA" / subset / label
            folder.mkdir(parents=True)
            for number in range(3):
                image = draw_image(label, first + number)
                if first and number == 0:
                    image = draw_image(label, 0)[:, ::-1]
                Image.fromarray(image).save(folder / f"{subset}-{number}.png")
    monkeypatch.chdir(tmp_path)
    return Path("DATA")


def judged(answers: str, *options: str) -> dict[str, Any]:
    command = ["evaluate", "--predictions", answers, "--data", "DATA", *options]
    assert app.main(command) == 0
    content = Path(answers).with_suffix("") / "external.json"
    found: dict[str, Any] = json.loads(content.read_text("utf-8"))
    return found


def probs_of(files: list[Path]) -> NDArray[np.float32]:
    """Return the probabilities of a model that is right about half of the files."""
    right = [CLASSES.index(path.parent.name) for path in files]
    said = [(label + number % 2) % 4 for number, label in enumerate(right)]
    probs: NDArray[np.float32] = (0.7 * np.eye(4)[said] + 0.075).astype(np.float32)
    return probs


def assert_half_right(found: dict[str, Any]) -> None:
    assert found["all"]["accuracy"]["value"] == pytest.approx(0.5)
    assert found["all"]["log_loss"]["value"] == pytest.approx(
        -(np.log(0.775) + np.log(0.075)) / 2, abs=1e-6
    )
    assert (found["counts"]["seen_pictures"], found["counts"]["new"]) == (4, 8)


def test_the_example_ends_in_a_verdict(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = REPOSITORY / "examples" / "grey_pixels.py"
    subprocess.run([sys.executable, script, data, "grey.csv"], check=True)
    found = judged("grey.csv")
    assert found["model"] == "grey.csv"
    # A forest knows what it has seen by heart, mirrored or not: that is not promised.
    assert (found["counts"]["tested"], found["counts"]["seen_pictures"]) == (12, 4)
    said = capsys.readouterr().out
    assert "grey.csv on DATA: Training has seen 4 of the 12 images (33.3 %)" in said
    assert "new (8 images, 8 groups)" in said
    assert "the page is grey/external.html" in said


def test_the_lines_for_keras_write_such_a_table(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((data / "Testing").glob("*/*.png"))

    def read(folder: str, *, image_size: tuple[int, int], shuffle: bool) -> Any:
        assert (folder, shuffle) == ("DATA/Testing", False)
        paths = [str(path.resolve()) for path in files]
        return SimpleNamespace(file_paths=paths, class_names=sorted(CLASSES))

    keras = ModuleType("keras")
    keras.utils = SimpleNamespace(  # type: ignore[attr-defined] # a stand-in
        image_dataset_from_directory=read
    )
    monkeypatch.setitem(sys.modules, "keras", keras)
    model = SimpleNamespace(predict=lambda _images: probs_of(files))
    exec(snippet("import keras"), {"model": model})
    assert_half_right(judged("answers.csv"))


def test_the_lines_for_pytorch_write_such_a_table(data: Path) -> None:
    class Brightness(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean(dim=(1, 2, 3))
            return torch.stack([mean, -mean, 2 * mean, mean**2], dim=1)

    exec(
        snippet("ImageFolder"),
        {"model": Brightness(), "transform": transforms.ToTensor()},
    )
    found = judged("answers.csv")
    # 2 x mean is the largest of the four logits.
    assert found["all"]["per_class"]["no_tumor"]["recall"]["value"] == 1
    assert found["all"]["accuracy"]["value"] == pytest.approx(0.25)


def test_the_lines_for_scikit_learn_write_such_a_table(data: Path) -> None:
    files = sorted((data / "Testing").glob("*/*.png"))
    labels = [path.parent.name for path in files]
    model = DummyClassifier(strategy="prior").fit(np.zeros((12, 1)), labels)
    exec(
        snippet("predict_proba"),
        {"model": model, "files": files, "images": np.zeros((12, 1))},
    )
    assert judged("answers.csv")["all"]["log_loss"]["value"] == pytest.approx(
        np.log(4), abs=1e-6
    )


def test_the_lines_for_ultralytics_write_such_a_table(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((data / "Testing").glob("*/*.png"))

    class Yolo:
        def __init__(self, weights: str) -> None:
            pass

        def predict(self, source: str, *, stream: bool) -> Any:
            assert source == "DATA/Testing/*/*"
            for path, probs in zip(files, probs_of(files), strict=True):
                yield SimpleNamespace(
                    path=str(path.resolve()),
                    names=dict(enumerate(sorted(CLASSES))),
                    probs=SimpleNamespace(data=probs),
                )

    ultralytics = ModuleType("ultralytics")
    ultralytics.YOLO = Yolo  # type: ignore[attr-defined] # a stand-in
    monkeypatch.setitem(sys.modules, "ultralytics", ultralytics)
    exec(snippet("from ultralytics"), {})
    assert_half_right(judged("answers.json"))


def test_a_wrong_table_is_one_error_line_and_nothing_is_written(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,predicted", "DATA/../../secret.png,glioma", "Testing-1.png,glioma"]
    Path("answers.csv").write_text("\n".join(rows))
    before = {*Path().rglob("*")}
    command = ["evaluate", "--predictions", "answers.csv", "--data", "DATA"]
    assert app.main(command) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "error: answers.csv: 1 x no file of the data: 'DATA/../../secret.png' (line 2)"
    )
    assert "1 x a name that several files have: 'Testing-1.png' (line 3)" in first
    assert second.startswith("hint: correct the answers")
    assert "'Testing/glioma/Testing-0.png'" in second
    assert {*Path().rglob("*")} == before
