"""Training speed against a plain loop.

The plain loop is that of the baseline study: ImageFolder and DataLoader decode and
resize each JPEG in every epoch, in fp32 with channels first. The other side is
`tumorlens.training.loop.train_epoch` as `tumorlens train` calls it. Both train the same
network on the same files with the same batch size and no augmentation; both count the
loading of data. Rounds alternate, so that a machine whose speed drifts slows both.

    python benchmarks/train_speed.py --data DATA --models resnet18 resnet50

Without --data the images are those of `tumorlens phantom`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tumorlens.config import load_config
from tumorlens.data.index import Index, SplitRow, read_index
from tumorlens.data.phantom.dataset import make_phantom
from tumorlens.system import keep_freed_memory
from tumorlens.training.dataset import PreparedData, image_limits, load_subset
from tumorlens.training.devices import (
    make_accelerator,
    place,
    resolve_precision,
    zero_sums,
)
from tumorlens.training.loading import Decoding
from tumorlens.training.loop import Batches, Step, make_loss, train_epoch
from tumorlens.training.network import create_model
from tumorlens.training.optim import Schedule, make_optimizer

BATCH_SIZE = 32


def main() -> None:
    """Measure every network and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="[<subset>/]<class>/files")
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--images", type=int, default=128, help="per round")
    parser.add_argument("--rounds", type=int, default=5, help="of each side")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if data is None:
            data = Path(folder) / "phantom"
            make_phantom(data, patients=32)
        compare(some_files(data, options.images), options)


def compare(files: Index, options: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{len(files.records)} images a round, {options.rounds} rounds of each side, "
        f"alternating"
    )
    print(f"{'network':14} {'plain':>10} {'tumorlens':>10} {'ratio':>7}  spread")
    for name in options.models:
        sides = {
            "plain": Side(plain_loop, name, files, options.workers),
            "tumorlens": Side(our_loop, name, files),
        }
        for side in sides.values():
            side.speed()  # caches, oneDNN's kernels and loader processes start here
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for label, side in sides.items():
                speeds[label].append(side.speed())
        for side in sides.values():
            side.close()
        ratios = [
            ours / plain
            for plain, ours in zip(speeds["plain"], speeds["tumorlens"], strict=True)
        ]
        print(
            f"{name:14} {statistics.median(speeds['plain']):8.1f}/s "
            f"{statistics.median(speeds['tumorlens']):8.1f}/s "
            f"{statistics.median(ratios):6.2f}x  "
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            flush=True,
        )


class Side:
    """One of the two loops, in a process of its own that waits for its turn.

    In one process the two would share a heap, and the second would find the memory
    that the first has already been given by the system.
    """

    def __init__(self, make: Callable[..., Callable[[], int]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()

    def speed(self) -> float:
        """Run one round and return its images per second."""
        self._pipe.send("round")
        return float(self._pipe.recv())

    def close(self) -> None:
        """End the process."""
        self._pipe.send("end")
        self._process.join()


def _serve(
    pipe: Connection, make: Callable[..., Callable[[], int]], arguments: tuple[Any, ...]
) -> None:
    epoch = make(*arguments)
    while pipe.recv() == "round":
        start = time.perf_counter()
        num_images = epoch()
        pipe.send(num_images / (time.perf_counter() - start))


def some_files(data: Path, num_images: int) -> Index:
    """Return an index of `num_images` files, taken evenly from all of `data`."""
    index = read_index(data)
    # One folder of class folders is all that ImageFolder can take.
    train = tuple(record for record in index.records if record.subset == "train")
    index = replace(index, records=train or index.records)
    step = max(1, len(index.records) // num_images)
    return replace(index, records=index.records[::step][:num_images])


def plain_loop(
    name: str, files: Index, workers: int, *, device: str = "cpu", size_px: int = 224
) -> Callable[[], int]:
    """Return one epoch of the plain loop, as a function that returns its images."""
    dataset = ImageFolder(
        str(common_folder(files)),
        transforms.Compose(
            [
                transforms.Resize((size_px, size_px)),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        ),
    )
    wanted = {str(files.file_of(record).resolve()) for record in files.records}
    chosen = [
        number
        for number, (path, _) in enumerate(dataset.samples)
        if str(Path(path).resolve()) in wanted
    ]
    loader = DataLoader(
        Subset(dataset, chosen),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device != "cpu",
    )
    model = timm.create_model(name, num_classes=len(files.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> int:
        model.train()
        num_images = 0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            num_images += len(images)
        return num_images

    return epoch


def common_folder(files: Index) -> Path:
    """Return the folder of the class folders, which may be that of a subset."""
    first = Path(files.records[0].path)
    return files.root / first.parents[1]


def our_loop(
    name: str,
    files: Index,
    *,
    device: str = "cpu",
    precision: str = "auto",
    size_px: int = 224,
    compiler: str | None = None,
) -> Callable[[], int]:
    """Return one epoch of `tumorlens train`, as a function that returns its images.

    Args:
        name: timm's name of the network.
        files: The images.
        device: As `train.device`.
        precision: As `train.precision`.
        size_px: Side of the images.
        compiler: Backend of torch.compile; `None` does not compile.
    """
    keep_freed_memory()
    config = load_config(
        assignments=[
            f"model.name={name}",
            "model.pretrained=no",
            "augment.policy=none",
            "optim.name=adam",
            "data.fit=squash",
            f"train.batch_size={BATCH_SIZE}",
            f"model.size_px={size_px}",
        ]
    )
    accelerator = make_accelerator(device)
    model, preprocessing = create_model(config.model, num_classes=len(files.classes))
    place(model, accelerator.device)
    if compiler:
        model.compile(backend=compiler)
    rows = tuple(
        SplitRow(record.path, record.sha256, record.label, record.path, "train")
        for record in files.records
    )
    with tempfile.TemporaryDirectory() as cache:
        subset = load_subset(
            PreparedData(files, rows),
            "train",
            decoding=Decoding(size_px, "squash", 3, image_limits(config.data)),
            config=config.data.model_copy(update={"cache_dir": cache}),
        )
    batches = Batches(subset, config, preprocessing, accelerator)
    optimizer = make_optimizer(model, config.optim)
    step = Step(
        prepare_batch=batches.prepare,
        loss_fn=make_loss(subset, config).to(accelerator.device),
        optimizer=optimizer,
        schedule=Schedule(optimizer, config.optim, batches_per_epoch=batches.per_epoch),
        accelerator=accelerator,
        use_bf16=resolve_precision(precision, accelerator.device) == "bf16",
    )
    number = 0

    def epoch() -> int:
        nonlocal number
        number += 1
        stats = train_epoch(
            model,
            batches.epoch(number),
            step,
            sums=zero_sums(accelerator.device),
        )
        return stats.num_images

    return epoch


if __name__ == "__main__":
    main()
