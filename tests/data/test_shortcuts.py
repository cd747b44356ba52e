"""Shortcuts planted among random features, checked against scikit-learn itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier

from tumorlens.data import shortcuts
from tumorlens.data.shortcuts import (
    Shortcuts,
    in_words,
    look_up_nearest,
    measure,
    predict_from_train,
    score_by_groups,
    tell_test_from_train,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def draw(num: int = 120) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return features that tell half of the classes, labels, and groups of three."""
    rng = np.random.default_rng(5)
    labels = rng.choice(["a", "b", "c"], num, p=[0.5, 0.3, 0.2])
    features = rng.normal(0, 1, (num, 2)) + 1.5 * (labels == "a")[:, None]
    groups = np.array([f"g{n // 3}" for n in range(num)])
    return features, labels, groups


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make forests small where only what is done with their answers is tested."""
    monkeypatch.setattr(shortcuts, "NUM_TREES", 8)


@pytest.mark.usefixtures("few_trees")
def test_the_score_is_that_of_scikit_learn_called_directly() -> None:
    features, labels, groups = draw()
    probs = np.empty((len(labels), 3))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=7)
    for train, test in folds.split(features, labels, groups):
        assert not set(groups[train]) & set(groups[test])
        forest = RandomForestClassifier(8, random_state=7)
        forest.fit(features[train], labels[train])
        probs[test] = forest.predict_proba(features[test])
    predicted = np.array(["a", "b", "c"])[probs.round(9).argmax(axis=1)]
    score = score_by_groups(features, labels, groups, seed=7)
    assert score.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert score.balanced_accuracy == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )
    dummy = DummyClassifier().fit(features, labels)
    assert score.majority == pytest.approx(dummy.score(features, labels))
    assert score.skipped == ""
    assert score.accuracy is not None
    assert 0.5 < score.accuracy < 1


@pytest.mark.usefixtures("few_trees")
def test_a_feature_of_the_group_is_no_shortcut_to_the_class() -> None:
    # Each group has a value of its own: within groups it tells the class perfectly.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    labels = rng.permutation(np.repeat(["a", "b"], 30))[groups]
    value = rng.permutation(60)[groups].astype(float)[:, None]
    score = score_by_groups(value, labels, groups.astype(str), seed=0)
    assert score.accuracy is not None
    assert score.accuracy < 0.75


def test_a_forest_from_train_is_that_of_scikit_learn() -> None:
    features, labels, _ = draw()
    forest = RandomForestClassifier(50, random_state=3).fit(features[:80], labels[:80])
    np.testing.assert_array_equal(
        predict_from_train(features[:80], labels[:80], features[80:], seed=3),
        forest.predict(features[80:]),
    )


def test_the_nearest_picture_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    labels = rng.choice(["a", "b"], 30)
    nearest = KNeighborsClassifier(1, algorithm="brute")
    nearest.fit(images[:30].reshape(30, -1).astype(float), labels)
    np.testing.assert_array_equal(
        look_up_nearest(images[:30], labels, images[30:]),
        nearest.predict(images[30:].reshape(10, -1).astype(float)),
    )


@pytest.mark.usefixtures("few_trees")
def test_the_auroc_is_that_of_scikit_learn_called_directly() -> None:
    features, labels, groups = draw()
    is_test = labels == "a"
    probs = np.empty(len(labels))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=1)
    for train, test in folds.split(features, is_test, groups):
        forest = RandomForestClassifier(8, random_state=1)
        forest.fit(features[train], is_test[train])
        probs[test] = forest.predict_proba(features[test])[:, 1]
    told = tell_test_from_train(features, is_test, groups, seed=1)
    assert told.auroc == pytest.approx(roc_auc_score(is_test, probs.round(9)))


def test_too_few_groups_are_a_reason_and_no_figure() -> None:
    features, labels, groups = draw()
    groups = np.where(labels == "c", "one", groups)
    score = score_by_groups(features, labels, groups, seed=0)
    assert score.accuracy is None
    assert score.skipped == ("5 folds need 5 groups of each class, and c has 1")
    told = tell_test_from_train(features, labels == "c", groups, seed=0)
    assert told.auroc is None
    assert told.skipped == "5 folds need 5 groups of each subset, and test has 1"


def test_one_class_is_a_reason_and_no_figure() -> None:
    features, labels, groups = draw(30)
    score = score_by_groups(features, np.full_like(labels, "a"), groups, seed=0)
    assert score.skipped == "there is only one class: a"
    assert score.majority == 1


@pytest.mark.usefixtures("few_trees")
def test_a_large_set_is_sampled_by_whole_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 60)
    features, labels, groups = draw()
    chosen = shortcuts._sample_of_groups(groups, seed=0)
    assert 50 < len(chosen) <= 60
    assert chosen.max() >= 60  # drawn by chance, not the first ones
    assert not set(groups[chosen]) & set(np.delete(groups, chosen))
    assert score_by_groups(features, labels, groups, seed=0).num_images == len(chosen)


def test_a_group_larger_than_the_sample_gives_a_part_of_its_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 60)
    monkeypatch.setattr(shortcuts, "_MAX_OF_GROUP", 20)
    # Whole groups would leave none of the first set, and the first few of the second.
    for sizes, expected in (((80, 80), 40), ((80, *[1] * 25), 45), ((7,) * 30, 56)):
        groups = np.repeat([f"g{n}" for n in range(len(sizes))], sizes)
        for seed in range(6):
            chosen = shortcuts._sample_of_groups(groups, seed=seed)
            assert len(chosen) == len(set(chosen.tolist())) == expected
            assert max(np.unique(groups[chosen], return_counts=True)[1]) <= 20
    # The images of a group are drawn at random too.
    chosen = shortcuts._sample_of_groups(np.repeat(["a", "b"], 80), seed=0)
    assert not np.array_equal(chosen, [*range(20), *range(80, 100)])


def measured(*, with_subsets: bool, num: int = 120) -> Shortcuts:
    features, labels, groups = draw(num)
    is_test = np.arange(num) % 3 == 0 if with_subsets else np.zeros(num, bool)
    columns = {
        "width": features[:, 0],
        "height": features[:, 1],
        "num_bytes": np.ones(num),
        "mean_grey": is_test + features[:, 0] / 100,
    }
    return measure(
        columns,
        thumbnails=np.arange(num * 4, dtype=np.uint8).reshape(num, 2, 2),
        labels=labels,
        groups=groups,
        is_train=~is_test if with_subsets else is_test,
        is_test=is_test,
        is_copied=is_test & (np.arange(num) < 30),
        seed=0,
    )


@pytest.mark.usefixtures("few_trees")
def test_train_to_test_is_told_for_copied_and_other_images() -> None:
    found = measured(with_subsets=True)
    _, labels, _ = draw()
    is_test = np.arange(120) % 3 == 0
    for score in [
        *(one.train_to_test for one in found.shortcuts.values()),
        found.look_up,
    ]:
        # 10 of the 40 test images are copies.
        assert score is not None
        assert score.accuracy_copied is not None
        assert score.accuracy_clean is not None
        together = 0.25 * score.accuracy_copied + 0.75 * score.accuracy_clean
        assert together == pytest.approx(score.accuracy)
        assert score.majority == pytest.approx((labels[is_test] == "a").mean())
    grey = found.source_shift["grey"].auroc
    assert grey is not None
    assert grey > 0.95
    assert found.source_shift["file"].auroc == pytest.approx(0.5, abs=0.2)


@pytest.mark.usefixtures("few_trees")
def test_a_set_without_subsets_has_no_train_to_test() -> None:
    found = measured(with_subsets=False)
    assert found.look_up is None
    assert found.source_shift == {}
    assert found.shortcuts["size"].train_to_test is None
    accuracy = found.shortcuts["size"].accuracy
    assert accuracy is not None
    assert accuracy > 0.5


@pytest.mark.usefixtures("few_trees")
def test_the_words_name_every_figure() -> None:
    found = measured(with_subsets=True)
    words = in_words(found)
    size = found.shortcuts["size"]
    assert size.accuracy is not None
    assert found.look_up is not None
    assert words[0] == (
        "Width and height alone predict the class of "
        f"{100 * size.accuracy:.1f} % of the images of unseen groups; always naming "
        f"the most common class is right for {100 * size.majority:.1f} %."
    )
    low, high = found.look_up.low, found.look_up.high
    assert low is not None
    assert high is not None
    assert low < found.look_up.accuracy < high
    assert words[-2].endswith(
        f"right for {100 * found.look_up.accuracy:.1f} % ({100 * low:.1f} to "
        f"{100 * high:.1f}) of the test images."
    )
    assert words[-1].startswith("The mean grey value alone tells a test image from")
    few = in_words(measured(with_subsets=False, num=9))
    assert few == [
        "Shortcuts were not measured: 5 folds need 5 groups of each class, and a has 2."
    ]
