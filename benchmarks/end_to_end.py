"""From JPEG bytes on disk to a label, against the baseline study's path.

The baseline study's path, image by image: Pillow opens and converts, torchvision
resizes, makes a tensor and normalizes, and the network runs as TorchScript in fp32. The
other side is `Predictor` with the artefact, as `tumorlens predict` uses it. Both have a
process of their own, take turns, and predict the same files in each round.

    python benchmarks/end_to_end.py --data DATA --runs runs/resnet18
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from bench_runs import print_step, read_options, table, times, write_block
from PIL import Image
from torchvision import transforms
from train_speed import Side

from tumorlens.data.files import walk_images
from tumorlens.deploy.artefact import Kind
from tumorlens.deploy.benchmark.timing import ratio_by_rounds, take_turns
from tumorlens.deploy.predictor import Predictor
from tumorlens.runs.folder import open_run
from tumorlens.system import num_processors
from tumorlens.training.network import load_model

KINDS: tuple[Kind, ...] = ("openvino", "openvino-int8")


def main() -> None:
    """Measure and write the block."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--artefact", default="openvino-int8", help="its format")
    parser.add_argument("--files", type=int, default=128, help="in a round")
    parser.add_argument("--rounds", type=int, help="default: the whole set, 6 at least")
    options = read_options(parser, models=("resnet18",), kinds=KINDS)
    run, parsed = options.runs[0], options.parsed
    files = list(walk_images([options.data]))
    print_step(f"decoding and predicting {len(files)} files")
    for file in files:
        file.read_bytes()  # into the cache of the system, for both
    artefact = run.path / "export" / parsed.artefact
    rounds = parsed.rounds or max(6, -(-len(files) // parsed.files))
    sides = [
        Side(baseline_path, run.path, files, parsed.files),
        Side(our_path, artefact, files, parsed.files),
    ]
    for side in sides:
        side.speed()  # kernels are chosen, and pools started, here
    slow, fast = take_turns(
        [partial(speed_of, side) for side in sides],
        seconds=0,
        min_rounds=rounds,
        max_rounds=rounds,
        shuffle_seed=42,
    )
    for side in sides:
        side.close()
    # Speeds, not times: the slower side is the one with the smaller number.
    ratio = ratio_by_rounds(fast, slow)
    heading = [
        *("network", "the baseline study's path", parsed.artefact, "ratio"),
        f"rounds of {parsed.files} files",
    ]
    row = [
        run.config.model.name,
        f"{statistics.median(slow):.1f} images/s",
        f"{statistics.median(fast):.1f} images/s",
        times(ratio),
        str(rounds),
    ]
    write_block(options.work, "end_to_end", table(heading, row))


def speed_of(side: Side, _round: int) -> float:
    """Return images per second of one round."""
    return side.speed()


def baseline_path(run: Path, files: list[Path], num: int) -> Callable[[], int]:
    """Return the baseline study's way through the next `num` files."""
    torch.set_num_threads(num_processors())
    card = open_run(run).card()
    model = load_model(card, open_run(run).weights_path)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and that of the baseline study
        example = torch.zeros(1, 3, card.size_px, card.size_px)
        jit: Any = torch.jit
        network = jit.freeze(jit.trace(model, example))
    prepare = transforms.Compose(
        [
            transforms.Resize((card.size_px, card.size_px)),
            transforms.ToTensor(),
            transforms.Normalize(card.mean, card.std),
        ]
    )
    chunks = in_chunks(files, num)

    def predict() -> int:
        chunk = next(chunks)
        with torch.inference_mode():
            for file in chunk:
                image = prepare(Image.open(file).convert("RGB"))
                card.classes[int(network(image[None]).argmax())]
        return len(chunk)

    return predict


def our_path(artefact: Path, files: list[Path], num: int) -> Callable[[], int]:
    """Return the package's way through the next `num` files."""
    predictor = Predictor.open(artefact)
    chunks = in_chunks(files, num)

    def predict() -> int:
        chunk = next(chunks)
        return sum(one.predicted is not None for one in predictor.predict_files(chunk))

    return predict


def in_chunks(files: list[Path], num: int) -> Iterator[list[Path]]:
    """Yield the next `num` files, and after the last the first again."""
    for number in count():
        yield [
            files[place % len(files)]
            for place in range(number * num, (number + 1) * num)
        ]


if __name__ == "__main__":
    main()
