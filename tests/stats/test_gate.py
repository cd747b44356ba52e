from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cosine, mahalanobis
from sklearn.covariance import LedoitWolf

from tumorlens.evaluation.gate import MAX_BYTES, fit_gate, spoil
from tumorlens.runs.trust import gates_as_bytes
from tumorlens.stats.gate import PARTS, distance, facts_of, unit

RNG = np.random.default_rng(0)


def test_the_distance_is_that_to_the_fifth_nearest() -> None:
    known = RNG.normal(size=(30, 8)).astype(np.float32)
    rows = RNG.normal(size=(4, 8)).astype(np.float32)
    found = distance(rows, unit(known), np.empty((0, 0), np.float32))
    expected = [sorted(cosine(row, one) for one in known)[4] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_other_distance_is_mahalanobis_to_the_nearest_class() -> None:
    known = RNG.normal(size=(3, 5)).astype(np.float32)
    precision = LedoitWolf().fit(RNG.normal(size=(50, 5))).precision_
    rows = RNG.normal(size=(4, 5)).astype(np.float32)
    found = distance(rows, known, precision.astype(np.float32))
    expected = [min(mahalanobis(r, one, precision) for one in known) for r in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_facts_of_hand_made_images() -> None:
    images = np.zeros((4, 40, 40, 3), np.uint8)
    images[1, ..., 0] = 255  # red
    images[2, 10:30, 10:30] = 255  # bright centre, black rim
    images[3] = 255
    facts = facts_of(images)
    np.testing.assert_allclose(facts[:, 0], [0, 1, 0, 0])  # colour
    np.testing.assert_allclose(facts[:, 1], [0, 0, -1, 0])  # rim less centre
    np.testing.assert_allclose(facts[:, 2], [1, 1, 0.75, 0])  # black


def clouds(num: int, shift: float = 0.0) -> np.ndarray:
    return RNG.normal(shift, 1, (num, 40)) + 4 * np.eye(40)[np.arange(num) % 3]


def fitted(false_alarms: float = 0.01) -> tuple[object, np.ndarray, np.ndarray]:
    train, val = clouds(400), clouds(200)
    facts = RNG.normal(0.3, 0.05, (200, 3))
    spoilt = {"far": clouds(200, shift=2.0)}
    gate, _ = fit_gate(
        train,
        np.arange(400) % 3,
        val,
        facts,
        spoilt,
        seed=1,
        false_alarms=false_alarms,
    )
    return gate, val, facts


@pytest.mark.parametrize("false_alarms", [0.01, 0.05])
def test_as_many_val_images_are_turned_away_as_allowed(false_alarms: float) -> None:
    gate, val, facts = fitted(false_alarms)
    scores = gate.measure(val, facts).max(axis=1)  # type: ignore[attr-defined]
    assert (scores > gate.threshold).mean() == false_alarms  # type: ignore[attr-defined]


def test_each_part_objects_to_what_it_looks_at() -> None:
    gate, val, facts = fitted()
    odd_facts = facts[:4].copy()
    odd = val[:4].copy()
    odd[0] += 5
    for row in (1, 2, 3):
        odd_facts[row, row - 1] += 1
    parts = gate.measure(odd, odd_facts)  # type: ignore[attr-defined]
    assert parts.argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert (parts.max(axis=1) > gate.threshold).all()  # type: ignore[attr-defined]
    assert PARTS == ("embedding", "colour", "rim", "black")


def test_an_image_nearer_than_any_is_never_odd() -> None:
    gate, _, facts = fitted()
    nearest = gate.mean + gate.components.T @ gate.known[0]  # type: ignore[attr-defined]
    assert gate.measure(nearest[None], facts[:1])[0, 0] <= 1  # type: ignore[attr-defined]


def test_the_percentile_is_the_share_of_val_images_below() -> None:
    gate, val, facts = fitted()
    scores = gate.measure(val, facts).max(axis=1)  # type: ignore[attr-defined]
    found = gate.percentile(scores)  # type: ignore[attr-defined]
    expected = [(scores < one).mean() for one in scores]
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_large_training_leaves_a_small_file() -> None:
    train = RNG.normal(size=(40_000, 80))
    val = RNG.normal(size=(50, 80))
    facts = RNG.normal(0.3, 0.05, (50, 3))
    labels = np.arange(40_000) % 2
    gate, _ = fit_gate(train, labels, val, facts, {"far": val + 9}, seed=1)
    assert len(gates_as_bytes([gate])) < MAX_BYTES


def test_spoilt_images_keep_what_they_do_not_change() -> None:
    images = RNG.integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    spoilt = spoil(images, seed=4)
    np.testing.assert_array_equal(255 - spoilt["inverted"], images)
    for kind in ("shuffled", "noise"):
        assert not np.array_equal(spoilt[kind], images)
        for one, other in zip(spoilt[kind], images, strict=True):
            np.testing.assert_array_equal(
                np.sort(one, axis=None), np.sort(other, axis=None)
            )
    again = spoil(images, seed=4)
    assert all(np.array_equal(spoilt[kind], again[kind]) for kind in spoilt)
