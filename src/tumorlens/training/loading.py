"""Loading: records become batches, decoded once and augmented by a seed per image.

The first run over a set decodes every file to one memory-mapped uint8 array in the
user's cache folder, which later epochs and runs read. A set whose array would exceed a
limit is decoded anew by the loader's workers in each epoch.

The order of an epoch and the augmentation of each image follow from (seed, epoch,
position) alone. They do not depend on the number of workers, and a resumed epoch can
start in the middle.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from platformdirs import user_cache_path
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from tumorlens.config import Fit
from tumorlens.data.images import ImageLimits, load_square
from tumorlens.errors import DataError, TumorlensError
from tumorlens.files import remove_leftovers, replacing
from tumorlens.runs.progress import Progress
from tumorlens.system import num_processors
from tumorlens.training.augment import Transform, apply_policy

_CACHE_VERSION = 2
"""Must be raised when the result of `images.load_square` changes."""


class Images(Protocol):
    """Decoded images by position."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Return one image, shape (S, S, C)."""
        ...


@dataclass(frozen=True)
class ImageFile:
    """One file to decode, and the digest of its content."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Decoding:
    """Decoding of files to arrays of one size."""

    size_px: int
    fit: Fit
    in_chans: int
    limits: ImageLimits

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """Return one file as (S, S, C), with C = 1 when the image is grey."""
        image = load_square(
            path,
            size_px=self.size_px,
            fit=self.fit,
            in_chans=self.in_chans,
            limits=self.limits,
        )
        # Three equal channels would triple the cache and the work of augmenting;
        # `network.normalize` repeats the one that is kept.
        if image.shape[2] == 3 and (image == image[:, :, :1]).all():
            return image[:, :, :1]
        return image


def decoded_images(
    files: Sequence[ImageFile],
    decoding: Decoding,
    *,
    cache_dir: Path | None,
    cache_limit_mib: float,
    progress: Progress | None = None,
) -> Images:
    """Return the decoded images of some files, from the cache where it has them.

    Args:
        files: Readable files. Their order is the order of the result.
        decoding: How to decode. Colour images keep three channels; if any file is
            coloured, all arrays have three.
        cache_dir: Folder of the cache; `None` is tumorlens in the user's cache folder.
        cache_limit_mib: Largest size of all cached sets. A set that is larger when
            decoded is not cached but decoded at each access, with the same result; for
            a smaller one, the least recently used sets are removed to make room.
        progress: Called with files done and files in all while the cache is filled.

    Returns:
        uint8 arrays of shape (S, S, C), read-only.

    Raises:
        DataError: A file cannot be decoded, or the cache cannot be written.
    """
    worst_mib = len(files) * decoding.size_px**2 * decoding.in_chans / 2**20
    if worst_mib > cache_limit_mib:
        return _Streamed(files, decoding)
    folder = cache_dir or default_cache_dir()
    path = folder / f"images-{_key(files, decoding)}.npy"
    while True:
        if not path.is_file():
            remove_leftovers(folder.glob(".images-*"))
            _make_room(folder, cache_limit_mib - worst_mib)
            _fill_cache(path, files, decoding, progress)
        try:
            # Marks the set as used. A shared cache of another user can be read but not
            # marked.
            with suppress(PermissionError):
                os.utime(path)
            images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            continue  # another process needed the room
        return images


def default_cache_dir() -> Path:
    """Return the folder for decoded images in the user's cache.

    Raises:
        DataError: The user has no home folder, as in some containers.
    """
    # platformdirs raises, or in earlier versions keeps the `~`.
    try:
        folder = user_cache_path("tumorlens", appauthor=False)
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():
        raise DataError(
            "there is no home folder for the cache of decoded images",
            hint="name a folder: --set data.cache_dir=FOLDER, or the variable "
            "XDG_CACHE_HOME or HOME",
        )
    return folder


class TrainImages(Dataset[tuple[Tensor, int]]):
    """Augmented training images; the key of an item is (position, seed)."""

    def __init__(
        self,
        images: Images,
        positions: Sequence[int],
        labels: Sequence[int],
        policy: tuple[Transform, ...],
    ) -> None:
        self.images = images
        self.positions = positions
        self.labels = labels
        self.policy = policy

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """Return an image (C, S, S) uint8 and its label."""
        item, seed = key
        image = self.images[self.positions[item]]
        with seeded(seed):
            image = apply_policy(self.policy, image)
        return _as_tensor(image), self.labels[item]


class _Reporting(Dataset[Any]):
    """A set whose items are, where one cannot be loaded, the error that says why."""

    def __init__(self, images: Dataset[Any]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type] # torch declares no length

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.images[key]
        except TumorlensError as error:
            return error


class _Loader(DataLoader[Any]):
    """A loader that raises the error of an item as it is.

    torch makes the error of a loader process again from the text of its traceback, so
    the problem would be a page long, and the hint lost.
    """

    def __init__(self, images: Dataset[Any], **options: Any) -> None:
        super().__init__(_Reporting(images), collate_fn=_collate, **options)

    def __iter__(self) -> Any:
        """Yield the batches.

        Raises:
            TumorlensError: An image cannot be loaded.
        """
        for batch in super().__iter__():
            if isinstance(batch, TumorlensError):
                raise batch
            yield batch


def _collate(items: list[Any]) -> Any:
    errors = (item for item in items if isinstance(item, TumorlensError))
    return next(errors, None) or default_collate(items)


class PlainImages(Dataset[Tensor]):
    """Images without augmentation, for the inference pass."""

    def __init__(self, images: Images, positions: Sequence[int]) -> None:
        self.images = images
        self.positions = positions

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.positions)

    def __getitem__(self, item: int) -> Tensor:
        """Return an image (C, S, S) uint8."""
        return _as_tensor(self.images[self.positions[item]])


def train_batches(
    images: TrainImages,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    balanced: bool,
    first_batch: int = 0,
    rank: int = 0,
    num_ranks: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return the batches of one epoch: images (N, C, S, S) uint8 and labels (N,).

    Args:
        images: The training images.
        batch_size: Images per batch and process.
        seed: Seed of the run.
        epoch: Number of the epoch, from 1. Order and augmentation differ between
            epochs.
        balanced: Whether to draw with replacement and each class equally often, instead
            of each image once.
        first_batch: Number of batches to skip, to resume an epoch in the middle.
        rank: Number of this process; each gets its own share of the same order.
        num_ranks: Processes in all. The order is cut to a multiple of it.
        workers: Number of loader processes; 0 loads in this process.
        pin_memory: Whether the batches go to a GPU.
    """
    order = epoch_order(images.labels, seed=seed, epoch=epoch, balanced=balanced)
    share = order[: len(order) - len(order) % num_ranks][rank::num_ranks]
    keys = [(item, image_seed(seed, epoch, item, n)) for n, item in enumerate(share)]
    batches = [
        keys[start : start + batch_size] for start in range(0, len(keys), batch_size)
    ]
    if len(batches) > 1 and len(batches[-1]) == 1:
        # Batch norm has no variance over one image: leave it for another epoch.
        batches.pop()
    return _Loader(
        images,
        batch_sampler=batches[first_batch:],
        num_workers=workers,
        pin_memory=pin_memory,
        # A generator of its own: otherwise each new iterator draws from the global one,
        # and resuming an epoch in the middle would shift everything that follows.
        generator=torch.Generator(),
    )


def plain_batches(
    images: PlainImages, *, batch_size: int, workers: int = 0, pin_memory: bool = False
) -> DataLoader[Tensor]:
    """Return batches (N, C, S, S) uint8, in order, each image once."""
    return _Loader(
        images,
        batch_size=batch_size,
        generator=torch.Generator(),
        num_workers=workers,
        pin_memory=pin_memory,
    )


def epoch_order(
    labels: Sequence[int], *, seed: int, epoch: int, balanced: bool
) -> list[int]:
    """Return the items of an epoch in the order in which they are drawn.

    Example:
        >>> sorted(epoch_order([0, 1, 1], seed=42, epoch=1, balanced=False))
        [0, 1, 2]
    """
    rng = np.random.default_rng([seed, epoch])
    if not balanced:
        return [int(item) for item in rng.permutation(len(labels))]
    counts = np.bincount(labels)
    weights = 1 / counts[np.asarray(labels)]
    drawn = rng.choice(len(labels), size=len(labels), p=weights / weights.sum())
    return [int(item) for item in drawn]


def image_seed(seed: int, epoch: int, item: int, draw: int) -> int:
    """Return the seed of one image's augmentation, in [0, 2**32)."""
    sequence = np.random.SeedSequence([seed, epoch, item, draw])
    return int(sequence.generate_state(1)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators inside, and put them back after."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class _Streamed:
    """Images that are decoded at each access."""

    def __init__(self, files: Sequence[ImageFile], decoding: Decoding) -> None:
        self.files = files
        self.decoding = decoding

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        image = self.decoding(self.files[position].path)
        # Another file may be coloured, and a batch needs one shape.
        return np.broadcast_to(image, (*image.shape[:2], self.decoding.in_chans))


def _as_tensor(image: NDArray[np.uint8]) -> Tensor:
    # A copy: the cache is read-only, and torch has no read-only tensors.
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _key(files: Sequence[ImageFile], decoding: Decoding) -> str:
    digest = hashlib.sha256()
    limits = decoding.limits
    digest.update(
        f"{_CACHE_VERSION} {decoding.size_px} {decoding.fit} {decoding.in_chans} "
        f"{limits.max_pixels}".encode()
    )
    for file in files:
        digest.update(file.sha256.encode())
    return digest.hexdigest()[:32]


def _make_room(folder: Path, room_mib: float) -> None:
    """Remove the least recently used sets until the others fit."""
    sets = []
    for path in folder.glob("images-*.npy"):
        with suppress(FileNotFoundError):  # another process has removed it
            facts = path.stat()
            sets.append((facts.st_mtime, facts.st_size / 2**20, path))
    kept_mib = 0.0
    for _, size_mib, path in sorted(sets, reverse=True):
        if kept_mib + size_mib <= room_mib:
            kept_mib += size_mib
            continue
        # A process that has mapped the file keeps its content until it ends.
        path.unlink(missing_ok=True)


def _fill_cache(
    path: Path,
    files: Sequence[ImageFile],
    decoding: Decoding,
    progress: Progress | None,
) -> None:
    """Decode a set into a file of the cache.

    Raises:
        DataError: A file cannot be decoded, or the cache cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            _decode_into(path, files, decoding, channels=1, progress=progress)
        except _ColourFoundError:
            channels = decoding.in_chans
            _decode_into(path, files, decoding, channels=channels, progress=progress)
        return
    except OSError as error:
        why = error
    except DataError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        why = error.__cause__  # `replacing` does not know these settings
    raise DataError(
        f"cannot write to the cache folder {path.parent}: {why.strerror or why}",
        hint="set data.cache_dir to a folder that can be written and has room, or "
        "data.cache_limit_mib=0 to switch the cache off",
    )


def _decode_into(
    path: Path,
    files: Sequence[ImageFile],
    decoding: Decoding,
    *,
    channels: int,
    progress: Progress | None,
) -> None:
    shape = (len(files), decoding.size_px, decoding.size_px, channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        ThreadPoolExecutor(max_workers=num_processors()) as pool,
    ):
        # Written in order, and not through a memory map: on a full disk that ends the
        # process by SIGBUS, where a write is an error.
        np.lib.format.write_array_header_1_0(file, header)
        decoded = pool.map(decoding, (file.path for file in files))
        try:
            for done, image in enumerate(decoded):
                if image.shape[2] > channels:
                    raise _ColourFoundError
                file.write(np.broadcast_to(image, shape[1:]).tobytes())
                if progress is not None:
                    progress(done + 1, len(files))
        finally:
            # Otherwise Ctrl-C would wait until the pool has decoded the rest.
            pool.shutdown(cancel_futures=True)


class _ColourFoundError(Exception):
    """An image is coloured in a set that was assumed to be grey."""
