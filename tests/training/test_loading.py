"""Decoded once, and batches that follow from seed, epoch and position alone."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from tumorlens.config import AugmentConfig
from tumorlens.data.images import ImageLimits, load_square
from tumorlens.errors import DataError
from tumorlens.files import replacing, sha256_of
from tumorlens.training import loading
from tumorlens.training.augment import make_policy
from tumorlens.training.loading import (
    Decoding,
    ImageFile,
    PlainImages,
    TrainImages,
    decoded_images,
    default_cache_dir,
    epoch_order,
    image_seed,
    plain_batches,
    seeded,
    train_batches,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SIZE = 32
DECODING = Decoding(SIZE, "pad", 3, ImageLimits())


def write_files(
    folder: Path, num: int, *, colour_at: int | None = None
) -> list[ImageFile]:
    rng = np.random.default_rng(num)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(num):
        shape = (40, 36, 3) if number == colour_at else (40, 36)
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(image).save(path)
        files.append(ImageFile(path, sha256_of(path)))
    return files


@pytest.fixture
def files(tmp_path: Path) -> list[ImageFile]:
    return write_files(tmp_path / "images", 6)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, as they are."""
    paths: list[Path] = []

    def note(path: Path, **options: Any) -> NDArray[np.uint8]:
        paths.append(path)
        return load_square(path, **options)

    monkeypatch.setattr(loading, "load_square", note)
    return paths


def decode(
    files: list[ImageFile],
    folder: Path,
    *,
    decoding: Decoding = DECODING,
    limit_mib: float = 10.0,
    progress: Any = None,
) -> loading.Images:
    return decoded_images(
        files,
        decoding,
        cache_dir=folder,
        cache_limit_mib=limit_mib,
        progress=progress,
    )


def pixels(images: loading.Images) -> NDArray[np.uint8]:
    return np.stack([images[n] for n in range(len(images))])


# The cache


def test_the_images_are_those_of_load_square_in_order(
    files: list[ImageFile], tmp_path: Path
) -> None:
    got = pixels(decode(files, tmp_path / "cache"))
    expected = [
        load_square(file.path, size_px=SIZE, fit="pad", in_chans=1) for file in files
    ]
    assert (got == np.stack(expected)).all()


def test_files_are_decoded_once_and_by_no_later_run(
    files: list[ImageFile], tmp_path: Path, reads: list[Path]
) -> None:
    steps: list[tuple[int, int]] = []
    first = decode(files, tmp_path / "cache", progress=lambda *step: steps.append(step))
    for _ in range(3):
        pixels(first)
    assert Counter(reads) == dict.fromkeys((file.path for file in files), 1)
    assert steps == [(n, 6) for n in range(1, 7)]
    again = decode(files, tmp_path / "cache")
    assert (pixels(again) == pixels(first)).all()
    assert len(reads) == 6


@pytest.mark.parametrize(
    "other",
    [
        Decoding(SIZE + 1, "pad", 3, ImageLimits()),
        Decoding(SIZE, "squash", 3, ImageLimits()),
        Decoding(SIZE, "pad", 1, ImageLimits()),
        Decoding(SIZE, "pad", 3, ImageLimits(max_pixels=10**6)),
    ],
    ids=["size", "fit", "channels", "limits"],
)
def test_another_way_of_decoding_has_a_cache_of_its_own(
    other: Decoding, files: list[ImageFile], tmp_path: Path, reads: list[Path]
) -> None:
    decode(files, tmp_path / "cache")
    decode(files, tmp_path / "cache", decoding=other)
    assert len(reads) == 12


def test_another_order_or_content_has_a_cache_of_its_own(
    files: list[ImageFile], tmp_path: Path
) -> None:
    straight = pixels(decode(files, tmp_path / "cache"))
    assert (pixels(decode(files[::-1], tmp_path / "cache")) == straight[::-1]).all()

    Image.new("L", (40, 36), 200).save(files[0].path)
    changed = [ImageFile(files[0].path, sha256_of(files[0].path)), *files[1:]]
    assert (pixels(decode(changed, tmp_path / "cache"))[0] == 200).any()


def test_a_copy_of_the_set_elsewhere_shares_the_cache(
    files: list[ImageFile], tmp_path: Path, reads: list[Path]
) -> None:
    decode(files, tmp_path / "cache")
    elsewhere = write_files(tmp_path / "elsewhere", 6)
    decode(elsewhere, tmp_path / "cache")
    assert len(reads) == 6


def test_one_coloured_image_gives_all_three_channels(tmp_path: Path) -> None:
    files = write_files(tmp_path / "images", 4, colour_at=2)
    got = pixels(decode(files, tmp_path / "cache"))
    assert got.shape == (4, SIZE, SIZE, 3)
    assert (got[[0, 1, 3]] == got[[0, 1, 3], :, :, :1]).all()
    expected = load_square(files[2].path, size_px=SIZE, fit="pad", in_chans=3)
    assert (got[2] == expected).all()
    assert len(list((tmp_path / "cache").iterdir())) == 1  # no half-filled one


def test_grey_input_has_one_channel_of_a_coloured_image(tmp_path: Path) -> None:
    files = write_files(tmp_path / "images", 2, colour_at=0)
    decoding = Decoding(SIZE, "pad", 1, ImageLimits())
    assert pixels(decode(files, tmp_path / "c", decoding=decoding)).shape[-1] == 1


@pytest.mark.parametrize("colour_at", [None, 1])
def test_a_set_above_the_limit_is_decoded_at_each_access_with_the_same_result(
    colour_at: int | None, tmp_path: Path, reads: list[Path]
) -> None:
    files = write_files(tmp_path / "images", 4, colour_at=colour_at)
    cached = decode(files, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    reads.clear()
    # 4 * 32 * 32 * 3 bytes are 0.0117 MiB.
    streamed = decode(files, tmp_path / "none", limit_mib=0.0117)
    assert not (tmp_path / "none").exists()
    assert len(reads) == 0
    assert len(streamed) == 4
    for n in range(4):
        image = streamed[n]
        assert image.shape == (SIZE, SIZE, 3)
        assert (image == cached[n]).all()  # one channel stands for three equal ones
    pixels(streamed)
    assert len(reads) == 8


def test_a_set_just_below_the_limit_is_cached(
    files: list[ImageFile], tmp_path: Path
) -> None:
    size_mib = 6 * SIZE * SIZE * 3 / 2**20
    decode(files, tmp_path / "cache", limit_mib=size_mib)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_sets_used_longest_ago_make_room(tmp_path: Path, reads: list[Path]) -> None:
    cache = tmp_path / "cache"
    sets = [write_files(tmp_path / str(num), num) for num in (4, 5, 6)]
    for age, files in zip((300, 200), sets, strict=False):
        before = set(cache.glob("*"))
        decode(files, cache, limit_mib=1)
        (new,) = set(cache.glob("*")) - before
        os.utime(new, (1e9 - age, 1e9 - age))
    decode(sets[0], cache, limit_mib=1)  # used again: now the younger of the two
    reads.clear()
    # Room for the third, which may need three channels, and the first, which is grey.
    decode(sets[2], cache, limit_mib=(6 * 3 + 4.5) * SIZE * SIZE / 2**20)
    assert len(reads) == 6
    decode(sets[0], cache, limit_mib=1)
    assert len(reads) == 6
    decode(sets[1], cache, limit_mib=1)
    assert len(reads) == 11


def test_a_set_that_does_not_fit_makes_no_room_for_older_ones_to_go(
    tmp_path: Path, reads: list[Path]
) -> None:
    cache = tmp_path / "cache"
    sets = [write_files(tmp_path / str(num), num) for num in (4, 20)]
    for age, files in zip((300, 200), sets, strict=True):
        before = set(cache.glob("*"))
        decode(files, cache, limit_mib=1)
        (new,) = set(cache.glob("*")) - before
        os.utime(new, (1e9 - age, 1e9 - age))
    # Room for one image beside the older set of four: the younger set of 20 goes.
    new_set = write_files(tmp_path / "new", 1)
    decode(new_set, cache, limit_mib=(3 + 4.5) * SIZE * SIZE / 2**20)
    reads.clear()
    decode(sets[0], cache, limit_mib=1)
    assert reads == []


def test_a_set_that_another_process_removes_meanwhile_is_decoded_again(
    files: list[ImageFile],
    tmp_path: Path,
    reads: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "cache"
    expected = pixels(decode(files, cache))
    utime = os.utime

    def remove_first(path: Path) -> None:
        monkeypatch.setattr(os, "utime", utime)
        path.unlink()
        utime(path)

    monkeypatch.setattr(os, "utime", remove_first)
    reads.clear()
    assert (pixels(decode(files, cache)) == expected).all()
    assert len(reads) == len(files)


def test_room_is_made_though_another_process_makes_some_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    decode(write_files(tmp_path / "a", 4), cache)
    found = [*cache.iterdir(), cache / "images-gone.npy"]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(found))
    decode(write_files(tmp_path / "b", 1), cache, limit_mib=4 * SIZE * SIZE / 2**20)
    assert not found[0].exists()


def test_half_a_set_of_a_killed_process_is_removed_by_the_next_that_decodes(
    files: list[ImageFile], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".images-0123.89ab.tmp.npy").write_bytes(b"half")
    (cache / ".thesis.txt").write_text("mine")
    with replacing(cache / "images-4567.npy") as alive:
        alive.write_bytes(b"half")
        decode(files, cache)
        assert len(list(cache.iterdir())) == 3
        assert alive.exists()


def test_the_cache_is_written_and_not_mapped(
    files: list[ImageFile], tmp_path: Path
) -> None:
    """A map of a file without blocks ends its process when the disk is full."""
    cache = tmp_path / "cache"
    sizes = []

    def look(done: int, total: int) -> None:
        (growing,) = cache.iterdir()
        sizes.append(growing.stat().st_size)

    decode(files, cache, progress=look)
    whole = next(cache.iterdir()).stat().st_size
    # A map has its full size at once; a file grows by what was written to it.
    assert sizes[0] < whole


def test_an_interrupted_filling_leaves_nothing_and_does_not_decode_the_rest(
    tmp_path: Path, reads: list[Path]
) -> None:
    files = write_files(tmp_path / "images", 60)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(files, tmp_path / "cache", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(reads) < 60
    assert len(decode(files, tmp_path / "cache")) == 60


def test_a_file_that_cannot_be_decoded_is_named_and_leaves_no_cache(
    files: list[ImageFile], tmp_path: Path
) -> None:
    files[3].path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        decode(files, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("name", ["a-file", "a-file/below"])
def test_a_cache_folder_that_cannot_be_made_is_named(
    name: str, files: list[ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(
        DataError, match=rf"cannot write to the cache folder .*{name}: "
    ) as caught:
        decode(files, tmp_path / name)
    assert "data.cache_dir" in caught.value.hint


def test_a_cache_that_belongs_to_somebody_else_is_read(
    files: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pixels(decode(files, tmp_path / "cache"))

    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    assert (pixels(decode(files, tmp_path / "cache")) == expected).all()


def test_the_default_cache_is_tumorlens_in_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[ImageFile]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "tumorlens"
    decoded_images(files, DECODING, cache_dir=None, cache_limit_mib=1)
    assert len(list((tmp_path / "xdg" / "tumorlens").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "tumorlens"


@pytest.mark.parametrize("is_old", [True, False])
def test_without_a_home_the_cache_needs_a_name(
    monkeypatch: pytest.MonkeyPatch, *, is_old: bool
) -> None:
    def no_home(*args: object, **options: object) -> Path:
        if is_old:  # platformdirs kept the `~`, a folder of that name
            return Path("~/.cache/tumorlens")
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("tumorlens.training.loading.user_cache_path", no_home)
    with pytest.raises(DataError, match="no home folder") as got:
        default_cache_dir()
    assert "data.cache_dir" in got.value.hint


# The order of an epoch


@pytest.mark.parametrize("num", [1, 7, 100])
def test_an_epoch_has_each_image_once(num: int) -> None:
    order = epoch_order([0] * num, seed=1, epoch=2, balanced=False)
    assert sorted(order) == list(range(num))


def test_each_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = [
        epoch_order([0] * 50, seed=seed, epoch=epoch, balanced=False)
        for seed in range(4)
        for epoch in range(1, 5)
    ]
    assert len({tuple(order) for order in orders}) == 16
    assert orders[0] == epoch_order([0] * 50, seed=0, epoch=1, balanced=False)


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    labels = [0] * 20 + [1] * 160 + [2] * 320
    drawn: Counter[int] = Counter()
    items: Counter[int] = Counter()
    for epoch in range(1, 21):
        order = epoch_order(labels, seed=3, epoch=epoch, balanced=True)
        assert len(order) == 500
        drawn.update(labels[item] for item in order)
        items.update(order)
    # 10,000 draws: 3,333 of each class, standard deviation 47.
    for label in range(3):
        assert abs(drawn[label] - 3333) < 200
    assert len(items) == 500  # all images of a class have their turn


def test_the_seed_of_an_image_depends_on_all_that_names_the_draw() -> None:
    base = (1, 2, 3, 4)
    seeds = {image_seed(*base)}
    for place in range(4):
        changed = list(base)
        changed[place] += 1
        seeds.add(image_seed(*changed))
    assert len(seeds) == 5
    assert image_seed(*base) in seeds
    assert all(0 <= seed < 2**32 for seed in seeds)


# Generators


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


@pytest.fixture(autouse=True)
def generators_as_before() -> Iterator[None]:
    with seeded(0):
        yield


def fail_half_way() -> None:
    with seeded(9):
        draw()
        raise KeyError("half-way")


def test_the_generators_are_seeded_inside_and_put_back_after() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = [draw(), draw()]

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    first = draw()
    with seeded(9):
        inside = draw()
    with pytest.raises(KeyError, match="half-way"):
        fail_half_way()
    assert [first, draw()] == expected
    assert len({*inside, *expected[0], *expected[1]}) == 9


# Batches


def labelled(num: int = 23) -> tuple[NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, SIZE, SIZE, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(num)  # every image can be told by its first pixel
    return images, [n % 3 for n in range(num)]


def train_images(policy: str = "none", num: int = 23) -> TrainImages:
    images, labels = labelled(num)
    steps = make_policy(AugmentConfig(policy=policy), size_px=SIZE)
    return TrainImages(images, range(num), labels, steps)


def batches_of(images: TrainImages, **changes: Any) -> list[tuple[Any, Any]]:
    options: dict[str, Any] = {
        "batch_size": 5,
        "seed": 1,
        "epoch": 2,
        "balanced": False,
    } | changes
    return [
        (batch.numpy(), labels.tolist())
        for batch, labels in train_batches(images, **options)
    ]


def first_pixels(batches: list[tuple[Any, Any]]) -> list[int]:
    return [int(value) for batch, _ in batches for value in batch[:, 0, 0, 0]]


def same(one: list[tuple[Any, Any]], other: list[tuple[Any, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and (a == b).all() and x == y
        for (a, x), (b, y) in zip(one, other, strict=True)
    )


def test_batches_have_the_images_with_their_labels_in_the_order_of_the_epoch() -> None:
    batches = batches_of(train_images())
    assert [batch.shape for batch, _ in batches] == [(5, 1, SIZE, SIZE)] * 4 + [
        (3, 1, SIZE, SIZE)
    ]
    assert batches[0][0].dtype == np.uint8
    numbers = first_pixels(batches)
    order = epoch_order([0] * 23, seed=1, epoch=2, balanced=False)
    assert numbers == order
    assert [label for _, labels in batches for label in labels] == [
        number % 3 for number in numbers
    ]


def test_only_the_positions_of_the_subset_are_drawn() -> None:
    images, labels = labelled()
    positions = [20, 3, 11, 7]
    subset = TrainImages(images, positions, [labels[n] for n in positions], ())
    batches = batches_of(subset)
    assert sorted(first_pixels(batches)) == sorted(positions)
    assert [int(b[n, 0, 0, 0]) % 3 for b, y in batches for n in range(len(y))] == [
        label for _, y in batches for label in y
    ]


@pytest.mark.parametrize("policy", ["mri", "random-resized-crop+auto-augment"])
def test_the_number_of_workers_changes_nothing(policy: str) -> None:
    images = train_images(policy, num=8)
    assert same(batches_of(images), batches_of(images, workers=2))


def test_each_epoch_augments_anew_and_each_time_alike() -> None:
    images = train_images("mri")
    assert same(batches_of(images), batches_of(images))
    assert not same(batches_of(images), batches_of(images, epoch=3))
    assert not same(batches_of(images), batches_of(images, seed=2))


@pytest.mark.parametrize("balanced", [False, True])
def test_an_epoch_can_be_entered_in_the_middle(balanced: bool) -> None:  # noqa: FBT001
    images = train_images("mri")
    whole = batches_of(images, balanced=balanced)
    for first in range(len(whole) + 1):
        rest = batches_of(images, balanced=balanced, first_batch=first)
        assert same(rest, whole[first:])


def test_loading_draws_nothing_from_the_global_generators() -> None:
    # Else a run that is resumed in the middle of an epoch would see other dropout.
    images = train_images("mri")
    with seeded(4):
        expected = draw()
    with seeded(4):
        batches_of(images)
        list(plain_batches(PlainImages(images.images, range(4)), batch_size=2))
        assert draw() == expected


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_processes_share_an_epoch_without_overlap(num_ranks: int) -> None:
    images = train_images()
    shares = [
        first_pixels(batches_of(images, batch_size=4, rank=rank, num_ranks=num_ranks))
        for rank in range(num_ranks)
    ]
    assert {len(share) for share in shares} == {23 // num_ranks}
    drawn = [number for share in shares for number in share]
    assert len(set(drawn)) == len(drawn) == 23 - 23 % num_ranks


def test_a_last_batch_of_one_image_waits_for_another_epoch() -> None:
    sizes = [len(labels) for _, labels in batches_of(train_images(num=11))]
    assert sizes == [5, 5]
    assert [len(y) for _, y in batches_of(train_images(num=1))] == [1]
    assert [len(y) for _, y in batches_of(train_images(num=12))] == [5, 5, 2]


def test_the_length_is_known_before() -> None:
    loader = train_batches(
        train_images(), batch_size=5, seed=1, epoch=1, balanced=False, first_batch=2
    )
    assert len(loader) == 3


def test_the_cache_is_not_written_to_by_augmentation(
    files: list[ImageFile], tmp_path: Path
) -> None:
    cached = decode(files, tmp_path / "cache")
    before = pixels(cached).copy()
    steps = make_policy(AugmentConfig(policy="mri"), size_px=SIZE)
    batches_of(TrainImages(cached, range(6), [0, 1] * 3, steps))
    image, _ = TrainImages(cached, range(6), [0, 1] * 3, ())[0, 0]
    image.zero_()
    assert (pixels(decode(files, tmp_path / "cache")) == before).all()


def test_plain_batches_have_each_image_once_in_order() -> None:
    images, _ = labelled()
    positions = [9, 2, 17, 4, 0]
    plain = PlainImages(images, positions)
    batches = list(plain_batches(plain, batch_size=2))
    assert len(plain) == 5
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == positions
    assert (torch.cat(batches)[:, 0].numpy() == images[positions, :, :, 0]).all()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["train", "plain"])
def test_a_file_that_cannot_be_read_is_one_line_with_and_without_loader_processes(
    files: list[ImageFile], workers: int, kind: str
) -> None:
    streamed = decoded_images(files, DECODING, cache_dir=None, cache_limit_mib=0)
    files[2].path.write_bytes(b"xx")
    positions = list(range(6))
    batches: Any
    if kind == "plain":
        plain = PlainImages(streamed, positions)
        batches = plain_batches(plain, batch_size=2, workers=workers)
    else:
        images = TrainImages(streamed, positions, [0, 1] * 3, ())
        batches = train_batches(
            images, batch_size=2, seed=0, epoch=1, balanced=False, workers=workers
        )
    with pytest.raises(DataError) as caught:
        list(batches)
    assert caught.value.problem == (
        f"{files[2].path} is not a JPEG, PNG, TIFF, BMP or DICOM file"
    )
    assert caught.value.hint.startswith("convert it")
