from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from tumorlens.stats.calibration import answered_probs, fit_temperature
from tumorlens.stats.metrics import log_loss


def drawn(num: int, *, seed: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are `scale` times too large, and labels drawn by the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (num, 1, 4))
    truth = answered_probs(logits, 1.0)
    labels = np.array([rng.choice(4, p=row) for row in truth])
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_factor_that_logits_were_multiplied_by_is_found(scale: float) -> None:
    logits, labels = drawn(20_000, seed=1, scale=scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.05)


def test_for_one_view_it_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(400, 5))
    labels = (inputs[:, :3] + rng.normal(0, 1.5, (400, 3))).argmax(axis=1)
    model = LogisticRegression(C=100).fit(inputs[:100], labels[:100])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature")
    theirs.fit(inputs[100:], labels[100:])
    logits = model.decision_function(inputs[100:])[:, None]
    found = fit_temperature(logits, labels[100:])
    np.testing.assert_allclose(
        answered_probs(logits, found),
        theirs.predict_proba(inputs[100:]),
        atol=1e-5,
    )


def test_what_is_fitted_is_the_mean_over_views_and_not_each_view() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (500, 4, 3))
    labels = rng.integers(0, 3, 500)
    labels[:350] = logits[:350].mean(axis=1).argmax(axis=1)
    found = fit_temperature(logits, labels)
    loss = log_loss(answered_probs(logits, found), labels)
    for other in (0.9 * found, 1.1 * found):
        assert log_loss(answered_probs(logits, other), labels) > loss


def test_views_count_by_their_weights() -> None:
    logits = np.array([[[0.0, 0.0], [np.log(3), 0.0]]])
    np.testing.assert_allclose(answered_probs(logits, 1.0), [[0.625, 0.375]])
    weights = np.array([0.0, 1.0])
    np.testing.assert_allclose(
        answered_probs(logits, 1.0, weights=weights), [[0.75, 0.25]]
    )


@given(st.floats(0.05, 20), st.integers(0, 1000))
def test_one_view_keeps_the_order_of_its_classes(temperature: float, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (5, 1, 4))
    probs = answered_probs(logits, temperature)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    np.testing.assert_array_equal(probs.argmax(axis=1), logits[:, 0].argmax(axis=1))


def test_huge_logits_give_numbers() -> None:
    assert np.isfinite(answered_probs(np.array([[[1e6, -1e6]]]), 0.01)).all()


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected logits \(N, V, C\)"):
        fit_temperature(np.zeros((3, 4)), np.zeros(3, np.int64))
