"""Sketches: copies are known again, other pictures are not, and little is kept."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from support.images import CLASSES, draw_head, draw_image
from tumorlens.data.near_duplicates import (
    find_near_duplicates,
    make_thumbnail,
    similarity,
)
from tumorlens.data.sketch import SAME_HEAD, make_sketches, similarities

if TYPE_CHECKING:
    from collections.abc import Callable


PICTURES = [draw_image(CLASSES[n % 4], n) for n in range(12)]
THUMBNAILS = np.stack([make_thumbnail(picture) for picture in PICTURES])
SKETCHES = make_sketches(THUMBNAILS)

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "half the size": lambda image: image.resize((48, 48)),
    "twice the size": lambda image: image.resize((192, 192)),
    "brighter": lambda image: image.point(lambda value: min(255, value + 20)),
    "less contrast": lambda image: image.point(lambda value: 0.7 * value),
    "cut by a pixel": lambda image: image.crop((1, 1, 95, 95)),
    "tilted by a degree": lambda image: image.rotate(1, Image.Resampling.BICUBIC),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_is_known_by_the_sketch(
    change: Callable[[Image.Image], Image.Image],
) -> None:
    for number, picture in enumerate(PICTURES):
        copy = make_thumbnail(np.asarray(change(Image.fromarray(picture))))
        assert similarities(copy, SKETCHES)[number] >= SAME_HEAD


def test_no_other_picture_is_taken_for_it() -> None:
    for number, thumbnail in enumerate(THUMBNAILS):
        found = similarities(thumbnail, np.delete(SKETCHES, number, axis=0))
        assert found.max() < SAME_HEAD


def test_each_of_many_sketches_is_compared_as_if_it_were_alone() -> None:
    heads = np.stack([make_thumbnail(one) for one in draw_head(5, num_slices=8)])
    sketches = make_sketches(heads)
    together = similarities(heads[3], sketches)
    alone = [similarities(heads[3], one[None])[0] for one in sketches]
    np.testing.assert_allclose(together, alone, atol=1e-9)
    assert together.argmax() == 3


def test_the_distance_of_two_pictures_is_kept_within_a_factor_of_two() -> None:
    slices = [draw_head(seed, num_slices=4)[n] for seed in (1, 2) for n in range(4)]
    thumbnails = np.stack([make_thumbnail(one) for one in slices])
    sketches = make_sketches(thumbnails)
    ratios = [
        (1 - similarities(thumbnails[one], sketches[[other]])[0]) / (1 - exact)
        for one in range(len(slices))
        for other in range(one)
        if (exact := similarity(thumbnails[one], thumbnails[other])[0]) > 0.98
    ]
    assert len(ratios) == 12
    assert 0.8 < min(ratios) < max(ratios) < 2


def test_the_next_slice_of_a_head_is_known() -> None:
    thumbnails = np.stack([make_thumbnail(one) for one in draw_head(5, num_slices=8)])
    found = find_near_duplicates(thumbnails)
    assert {(n, n + 1) for n in range(7)} <= {(pair.a, pair.b) for pair in found}
    sketches = make_sketches(thumbnails)
    for number, slice_ in enumerate(thumbnails[:-1]):
        assert similarities(slice_, sketches)[number + 1] >= SAME_HEAD


def test_plain_images_have_an_empty_sketch_and_are_like_nothing() -> None:
    plain = np.full((1, 64, 64), 90, np.uint8)
    sketch = make_sketches(plain)
    assert not sketch.any()
    assert similarities(THUMBNAILS[0], sketch) == [0]
    assert not similarities(plain[0], SKETCHES).any()


def test_a_sketch_is_the_same_on_every_machine() -> None:
    # Files that were written by one machine are looked up on another.
    ramp = (np.add.outer(np.arange(64), 2 * np.arange(64)) % 251).astype(np.uint8)
    found = make_sketches(ramp[None])
    assert found.shape == (1, 64)
    assert np.abs(found).max() == 127
    digest = hashlib.sha256(np.sign(found).astype(np.int8).tobytes()).hexdigest()
    assert digest[:16] == "07811b6839f5e36d"
