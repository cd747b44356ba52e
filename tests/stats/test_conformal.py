from __future__ import annotations

import math

import numpy as np
import pytest
from crepes import ConformalClassifier
from hypothesis import given
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from sklearn.linear_model import LogisticRegression

from tumorlens.stats import conformal


def problem(seed: int) -> tuple[LogisticRegression, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(700, 5))
    labels = (inputs[:, :3] + rng.normal(0, 1.2, (700, 3))).argmax(axis=1)
    model = LogisticRegression().fit(inputs[:200], labels[:200])
    return model, inputs[200:], labels[200:]


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.97])
def test_lac_is_that_of_mapie(coverage: float) -> None:
    model, inputs, labels = problem(1)
    theirs = SplitConformalClassifier(
        model, confidence_level=coverage, conformity_score="lac"
    ).conformalize(inputs[:150], labels[:150])
    probs = model.predict_proba(inputs)
    scores = conformal.lac_scores(probs[:150])[np.arange(150), labels[:150]]
    ours = conformal.lac_sets(probs[150:], conformal.threshold(scores, coverage))
    np.testing.assert_array_equal(ours, theirs.predict_set(inputs[150:])[1][..., 0])


@pytest.mark.parametrize("coverage", [0.7, 0.9, 0.97])
def test_aps_is_that_of_mapie(coverage: float) -> None:
    model, inputs, labels = problem(2)
    theirs = SplitConformalClassifier(
        model, confidence_level=coverage, conformity_score="aps", random_state=5
    ).conformalize(inputs[:150], labels[:150])
    draws = np.random.RandomState(5).uniform(size=150)
    probs = model.predict_proba(inputs)
    scores = conformal.aps_scores(probs[:150], draws)[np.arange(150), labels[:150]]
    ours = conformal.aps_sets(probs[150:], conformal.threshold(scores, coverage))
    found = theirs.predict_set(
        inputs[150:], conformity_score_params={"include_last_label": True}
    )
    np.testing.assert_array_equal(ours, found[1][..., 0])


# Of coverages where a p-value can equal 1 - coverage, crepes rounds either way.
@pytest.mark.parametrize("coverage", [0.713, 0.887])
def test_by_class_it_is_that_of_crepes(coverage: float) -> None:
    model, inputs, labels = problem(3)
    probs = model.predict_proba(inputs)
    scores = conformal.lac_scores(probs[:150])[np.arange(150), labels[:150]]
    theirs = ConformalClassifier().fit(scores, bins=labels[:150])
    ours = conformal.lac_sets(
        probs[150:],
        [conformal.threshold(scores[labels[:150] == k], coverage) for k in range(3)],
    )
    for number in range(3):
        expected = theirs.predict_set(
            conformal.lac_scores(probs[150:])[:, [number]],
            bins=np.full(350, number),
            confidence=coverage,
            smoothing=False,
        )
        np.testing.assert_array_equal(ours[:, number], expected[:, 0].astype(bool))


def test_too_few_images_put_every_class_into_the_set() -> None:
    assert conformal.threshold(np.zeros(8), 0.9) == math.inf
    assert conformal.lac_sets(np.array([[1.0, 0.0]]), math.inf).all()


def test_the_sets_cover_what_they_promise() -> None:
    # Over many draws of calibration and test images the true class is in as often as
    # promised, and by little more.
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(400):
        probs = rng.dirichlet(np.ones(4) / 2, 100)
        labels = np.array([rng.choice(4, p=row) for row in probs])
        scores = conformal.lac_scores(probs)[np.arange(100), labels]
        sets = conformal.lac_sets(probs[50:], conformal.threshold(scores[:50], 0.9))
        covered.append(sets[np.arange(50), labels[50:]].mean())
    assert 0.9 - 0.01 < np.mean(covered) < 0.9 + 0.03


@pytest.mark.parametrize("kind", ["lac", "aps"])
@given(
    seed=st.integers(0, 10_000),
    coverage=st.floats(0.5, 0.94),
    more=st.floats(0.01, 0.05),
)
def test_sets_grow_with_the_coverage(
    kind: str, seed: int, coverage: float, more: float
) -> None:
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(4), 60)
    labels = rng.integers(0, 4, 40)
    scores, of = {
        "lac": (conformal.lac_scores, conformal.lac_sets),
        "aps": (conformal.aps_scores, conformal.aps_sets),
    }[kind]
    own = scores(probs)[np.arange(40), labels]
    small, large = (
        of(probs[40:], conformal.threshold(own, share))
        for share in (coverage, coverage + more)
    )
    assert not (small & ~large).any()
