"""What the input gate of a run turns away: see docs/trust.md.

    python benchmarks/gate.py RUN [--data DATA] [--cost ARTEFACT]

RUN is calibrated, or a fold of a run that is. Its own test images are what should pass.
Against them: photographs of scikit-image and scikit-learn, noise, drawn text, the CT,
ultrasound and nuclear medicine files that come with pydicom, and test images that were
inverted or of which only the middle is left. With --cost, also how much longer an
artefact of the run takes from files to answers with trust than without, in turn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom.data
import skimage.data
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from tumorlens.data.images import read_image
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import DataError
from tumorlens.evaluation.subsets import read_data
from tumorlens.runs.folder import open_run
from tumorlens.runs.trust import NO_BRAIN_MRI

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_PHOTOGRAPHS = (
    *("astronaut", "camera", "chelsea", "clock", "coffee", "coins", "grass", "gravel"),
    *("brick", "hubble_deep_field", "immunohistochemistry", "moon", "page", "rocket"),
    *("text", "horse", "checkerboard", "colorwheel", "cell"),
)
_OTHER_SCANS = ("CT", "US", "NM")
_BATCH_SIZE = 32
_NUM_TURNS = 12


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cost", type=Path)
    options = parser.parse_args()
    run = open_run(options.run)
    index = read_data(run, options.data)
    sources = {record.path: record.source or "unknown" for record in index.records}
    rows = [row for row in run.split() if row.subset == "test"]
    if options.cost:
        print_cost(Predictor.open(options.cost), [index.file_at(r.path) for r in rows])
        return
    tested = [read_image(index.file_at(row.path)) for row in rows]
    predictor = Predictor.open(options.run)
    passing, alarms = odd(predictor, tested)
    print("\n| images | number | AUROC against test | turned away |")
    print("|---|---|---|---|")
    print(f"| test, should pass | {len(tested)} | | {100 * alarms.mean():.1f} % |")
    for source in sorted({sources[row.path] for row in rows}):
        own = np.array([sources[row.path] == source for row in rows])
        share = 100 * alarms[own].mean()
        print(f"| test, source {source} | {own.sum()} | | {share:.1f} % |")
    kinds = {
        "photographs": photographs(),
        "noise": noise(),
        "text": texts(),
        "CT, ultrasound, nuclear medicine": other_scans(),
        "test, inverted": (255 - image for image in tested),
        "test, middle 30 %": map(middle, tested),
    }
    for name, images in kinds.items():
        found = list(images)
        scores, is_away = odd(predictor, found)
        truth = np.repeat([0, 1], [len(passing), len(scores)])
        auroc = roc_auc_score(truth, np.concatenate([passing, scores]))
        share = 100 * is_away.mean()
        print(f"| {name} | {len(found)} | {auroc:.3f} | {share:.1f} % |")


def print_cost(predictor: Predictor, files: list[Path]) -> None:
    """Print the time with trust as a multiple of that without."""
    trust = predictor.trust
    ratios = []
    for turn in range(-1, _NUM_TURNS):
        seconds = {}
        for is_on in (True, False) if turn % 2 else (False, True):
            predictor.trust = trust if is_on else None
            start = time.perf_counter()
            for _ in predictor.predict_files(files):
                pass
            seconds[is_on] = time.perf_counter() - start
        if turn >= 0:  # the first one warms up
            ratios.append(seconds[True] / seconds[False])
    low, middle, high = np.quantile(ratios, [0, 0.5, 1])
    print(f"with trust: {middle:.2f} times as long ({low:.2f} to {high:.2f})")


def odd(
    predictor: Predictor, images: list[NDArray[np.uint8]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how odd images look, and whether they are turned away.

    Raises:
        SystemExit: The run has no gate.
    """
    scores, is_away = [], []
    for start in range(0, len(images), _BATCH_SIZE):
        _, judged = predictor.judge(images[start : start + _BATCH_SIZE])
        for one in judged:
            if one is None or one.score is None:
                raise SystemExit("the run has no gate: tumorlens trust RUN")
            scores.append(one.score)
            is_away.append(one.answer == NO_BRAIN_MRI)
    return np.array(scores), np.array(is_away)


def photographs() -> Iterator[NDArray[np.uint8]]:
    """Yield the photographs that come with scikit-image and scikit-learn."""
    yield from load_sample_images().images
    for name in _PHOTOGRAPHS:
        try:
            image = np.asarray(getattr(skimage.data, name)())
        except (OSError, ModuleNotFoundError):  # not in the package: a download
            continue
        if image.dtype == bool:
            image = image.astype(np.uint8) * 255
        if image.dtype == np.uint8:
            yield image[..., :3]


def noise(num: int = 50) -> Iterator[NDArray[np.uint8]]:
    """Yield grey noise of several grains."""
    rng = np.random.default_rng(0)
    for number in range(num):
        size = 2 ** (4 + number % 5)
        grain = rng.integers(0, 256, (size, size)).astype(np.uint8)
        yield np.asarray(Image.fromarray(grain).resize((256, 256)))


def texts(num: int = 50) -> Iterator[NDArray[np.uint8]]:
    """Yield pages of drawn letters."""
    rng = np.random.default_rng(1)
    for number in range(num):
        is_dark = number % 2
        page = Image.new("L", (256, 256), 0 if is_dark else 255)
        draw = ImageDraw.Draw(page)
        for row in range(12):
            words = "".join(chr(97 + int(n)) for n in rng.integers(0, 26, 30))
            draw.text((8, 8 + 20 * row), words, fill=255 if is_dark else 0)
        yield np.asarray(page)


def other_scans() -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of other kinds of scanner that come with pydicom."""
    warnings.simplefilter("ignore")
    for name in pydicom.data.get_testdata_files("*.dcm"):
        try:
            if pydicom.dcmread(name, stop_before_pixels=True).Modality in _OTHER_SCANS:
                yield read_image(Path(name))
        except (AttributeError, DataError, pydicom.errors.InvalidDicomError):
            continue


def middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the middle of an image, 30 % of each side."""
    height, width = image.shape[:2]
    top, left = int(0.35 * height), int(0.35 * width)
    return image[top : height - top, left : width - left]


if __name__ == "__main__":
    main()
