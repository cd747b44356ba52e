"""Shortcuts: how well facts of a file predict its class, without the picture.

A set gives its classes away when one of them came from another scanner, website or
export script: then width, height, file size or brightness alone predict the class, and
a network will use them too. A random forest on such features measures it. Each figure
stands beside the share of the most common class.

Groups stay together in the folds: copies and slices of one patient have the same size,
so a plain cross-validation would find shortcuts everywhere.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import (
    balanced_accuracy_score,
    pairwise_distances_argmin,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from tumorlens.files import Count, Fraction
from tumorlens.stats.intervals import share
from tumorlens.text import interval, percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

FEATURES = {
    "size": ("width", "height"),
    "file": ("num_bytes",),
    "grey": ("mean_grey",),
    "all": ("width", "height", "num_bytes", "mean_grey"),
}
"""Feature set -> the facts of a file in it."""

COLUMNS = FEATURES["all"]

_WORDS = {
    "size": "Width and height alone",
    "file": "The file size alone",
    "grey": "The mean grey value alone",
    "all": "Width, height, file size and mean grey value together",
}

NUM_FOLDS = 5
NUM_TREES = 50

_MANY = 1000

# A forest needs no more to find a shortcut, and the folds are made by a slow loop.
MAX_IMAGES = 20_000

# One group must not be the whole sample: its images resemble each other.
_MAX_OF_GROUP = MAX_IMAGES // 10


class ScoreOnTest(BaseModel):
    """Accuracy on test of a rule learnt from train."""

    model_config = ConfigDict(frozen=True)

    accuracy: Fraction
    low: Fraction | None = None
    """Low end of the 95 % interval of `accuracy`; `None`, as `high`, with one group and
    in files of early versions."""

    high: Fraction | None = None
    num_groups: Count | None = None
    """Groups of the test images, the units of the interval."""

    accuracy_copied: Fraction | None
    """On the test images that show a picture of training; `None` if there are none."""

    accuracy_clean: Fraction | None
    """On the other test images; `None` if there are none."""

    majority: Fraction
    """Accuracy of the class that is most common in train."""


class GroupScore(BaseModel):
    """How well features predict the class of images of unseen groups."""

    model_config = ConfigDict(frozen=True)

    accuracy: Fraction | None
    balanced_accuracy: Fraction | None
    majority: Fraction
    """Share of the most common class."""

    num_images: Count
    skipped: str
    """Why the two accuracies are `None`; empty when they are not."""


class Shortcut(GroupScore):
    """The scores of one set of features."""

    features: tuple[str, ...]
    """Some of `COLUMNS`."""

    train_to_test: ScoreOnTest | None
    """Scores of a forest that learnt from train; `None` without both subsets."""


class SourceShift(BaseModel):
    """How well one set of features tells a test image from a training image."""

    model_config = ConfigDict(frozen=True)

    auroc: Fraction | None
    """AUROC of the pooled predictions: 0.5 is chance, 1.0 means other kinds of file."""

    skipped: str
    """Why there is no AUROC; empty when there is one."""


class Shortcuts(BaseModel):
    """Everything that `measure` found."""

    model_config = ConfigDict(frozen=True)

    shortcuts: dict[str, Shortcut] = {}
    """Feature set -> how well it predicts the class."""

    look_up: ScoreOnTest | None = None
    """Scores of copying the label of the most similar training image."""

    source_shift: dict[str, SourceShift] = {}
    """Feature set -> how well it tells test from train. Empty without both subsets, as
    `look_up` is `None`."""


def measure(
    columns: Mapping[str, NDArray[np.float64]],
    *,
    thumbnails: NDArray[np.uint8],
    labels: NDArray[np.str_],
    groups: NDArray[np.str_],
    is_train: NDArray[np.bool_],
    is_test: NDArray[np.bool_],
    is_copied: NDArray[np.bool_],
    seed: int,
) -> Shortcuts:
    """Measure every shortcut of a set.

    Args:
        columns: Each of `COLUMNS` for N images.
        thumbnails: Shape (N, H, W).
        labels: Shape (N,).
        groups: Shape (N,).
        is_train: Shape (N,); like `is_test` all false for a set without subsets.
        is_test: Shape (N,).
        is_copied: Shape (N,): the test images that show a picture of training.
        seed: Seed of folds and forests.
    """
    has_both = bool(is_train.any() and is_test.any())
    scores: dict[str, Shortcut] = {}
    shifts: dict[str, SourceShift] = {}

    def scored(predicted: NDArray[np.str_]) -> ScoreOnTest:
        right, copied = predicted == labels[is_test], is_copied[is_test]
        most_common = Counter(labels[is_train].tolist()).most_common(1)[0][0]
        _, units = np.unique(groups[is_test], return_inverse=True)
        bounds = share(right, units).interval
        return ScoreOnTest(
            accuracy=float(right.mean()),
            low=bounds.low if bounds else None,
            high=bounds.high if bounds else None,
            num_groups=int(units.max()) + 1,
            accuracy_copied=float(right[copied].mean()) if copied.any() else None,
            accuracy_clean=None if copied.all() else float(right[~copied].mean()),
            majority=float((labels[is_test] == most_common).mean()),
        )

    for name, chosen in FEATURES.items():
        features = np.stack([columns[column] for column in chosen], axis=1)  # (N, F)
        to_test = None
        if has_both:
            to_test = scored(
                predict_from_train(
                    features[is_train], labels[is_train], features[is_test], seed=seed
                )
            )
            either = is_train | is_test
            shifts[name] = tell_test_from_train(
                features[either], is_test[either], groups[either], seed=seed
            )
        score = score_by_groups(features, labels, groups, seed=seed)
        scores[name] = Shortcut(**dict(score), features=chosen, train_to_test=to_test)
    look_up = None
    if has_both:
        look_up = scored(
            look_up_nearest(thumbnails[is_train], labels[is_train], thumbnails[is_test])
        )
    return Shortcuts(shortcuts=scores, look_up=look_up, source_shift=shifts)


def in_words(found: Shortcuts) -> list[str]:
    """Return one sentence for each figure that matters."""
    scores = found.shortcuts
    sentences = [
        f"{_WORDS[name]} {_verb('predict', name)} the class of "
        f"{percent(score.accuracy)} of the images of unseen groups; always naming the "
        f"most common class is right for {percent(score.majority)}."
        for name, score in scores.items()
        if score.accuracy is not None
    ]
    if scores and not sentences:
        why = next(iter(scores.values())).skipped
        sentences.append(f"Shortcuts were not measured: {why}.")
    if found.look_up:
        one = {"value": found.look_up.accuracy, **found.look_up.model_dump()}
        sentences.append(
            "Copying the label of the most similar training picture is right for "
            f"{interval(one)} of the test images."
        )
    aurocs = {
        name: shift.auroc
        for name, shift in found.source_shift.items()
        if shift.auroc is not None
    }
    if aurocs:
        name = max(aurocs, key=lambda one: aurocs[one])
        sentences.append(
            f"{_WORDS[name]} {_verb('tell', name)} a test image from a training image "
            f"with an AUROC of {aurocs[name]:.2f}; 0.5 is chance."
        )
    return sentences


def score_by_groups(
    features: NDArray[np.float64],
    labels: NDArray[np.str_],
    groups: NDArray[np.str_],
    *,
    seed: int,
) -> GroupScore:
    """Return how well features predict the class of images of unseen groups.

    Five stratified folds by group; the predictions are pooled.

    Args:
        features: Shape (N, F).
        labels: Shape (N,).
        groups: Shape (N,); images with the same group are in the same fold.
        seed: Seed of the folds and the forest.
    """
    chosen = _sample_of_groups(groups, seed=seed)
    features, labels, groups = features[chosen], labels[chosen], groups[chosen]
    accuracy = balanced_accuracy = None
    skipped = _why_no_folds(labels, groups, what="class")
    if not skipped:
        predicted = _most_probable(
            np.unique(labels), _cross_probs(features, labels, groups, seed=seed)
        )
        accuracy = float((predicted == labels).mean())
        balanced_accuracy = float(balanced_accuracy_score(labels, predicted))
    return GroupScore(
        accuracy=accuracy,
        balanced_accuracy=balanced_accuracy,
        majority=_share_of_most_common(labels),
        num_images=len(labels),
        skipped=skipped,
    )


def predict_from_train(
    train_features: NDArray[np.float64],
    train_labels: NDArray[np.str_],
    test_features: NDArray[np.float64],
    *,
    seed: int,
) -> NDArray[np.str_]:
    """Return the classes that a forest trained on train gives test, shape (N_test,)."""
    forest = _forest(len(train_labels), seed=seed)
    forest.fit(train_features, train_labels)
    return _most_probable(forest.classes_, forest.predict_proba(test_features))


def look_up_nearest(
    train_images: NDArray[np.uint8],
    train_labels: NDArray[np.str_],
    test_images: NDArray[np.uint8],
) -> NDArray[np.str_]:
    """Return the label of the most similar training image for each test image.

    Args:
        train_images: Thumbnails, shape (N, H, W).
        train_labels: Shape (N,).
        test_images: Thumbnails, shape (M, H, W).

    Returns:
        Shape (M,). Similarity is the Euclidean distance of the grey values.
    """
    nearest = pairwise_distances_argmin(
        test_images.reshape(len(test_images), -1).astype(np.float32),
        train_images.reshape(len(train_images), -1).astype(np.float32),
    )
    looked_up: NDArray[np.str_] = train_labels[nearest]
    return looked_up


def tell_test_from_train(
    features: NDArray[np.float64],
    is_test: NDArray[np.bool_],
    groups: NDArray[np.str_],
    *,
    seed: int,
) -> SourceShift:
    """Return how well features tell a test image from a training image.

    0.5 is chance: both come from one source as far as these features go. 1.0 means that
    a score on test is a score on another kind of file.

    Args:
        features: Shape (N, F).
        is_test: Shape (N,).
        groups: Shape (N,); as in `score_by_groups`.
        seed: Seed of the folds and the forest.
    """
    chosen = _sample_of_groups(groups, seed=seed)
    features, is_test, groups = features[chosen], is_test[chosen], groups[chosen]
    skipped = _why_no_folds(np.where(is_test, "test", "train"), groups, what="subset")
    if skipped:
        return SourceShift(auroc=None, skipped=skipped)
    probs = _cross_probs(features, is_test, groups, seed=seed)
    return SourceShift(auroc=float(roc_auc_score(is_test, probs[:, 1])), skipped="")


def _verb(verb: str, name: str) -> str:
    return verb if len(FEATURES[name]) > 1 else f"{verb}s"


def _forest(num_images: int, *, seed: int) -> RandomForestClassifier:
    # Threads cost more than they give on a small set.
    return RandomForestClassifier(
        n_estimators=NUM_TREES,
        random_state=seed,
        n_jobs=-1 if num_images > _MANY else None,
    )


def _cross_probs(
    features: NDArray[np.float64],
    labels: NDArray[Any],
    groups: NDArray[np.str_],
    *,
    seed: int,
) -> NDArray[np.float64]:
    """Return probabilities of the sorted labels from forests of the other folds."""
    probs: NDArray[np.float64] = cross_val_predict(
        _forest(len(features), seed=seed),
        features,
        labels,
        groups=groups,
        cv=StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed),
        method="predict_proba",
    )
    return _reproducible(probs)


def _most_probable(
    classes: NDArray[np.str_], probs: NDArray[np.float64]
) -> NDArray[np.str_]:
    chosen: NDArray[np.str_] = classes[_reproducible(probs).argmax(axis=1)]
    return chosen


def _reproducible(probs: NDArray[np.float64]) -> NDArray[np.float64]:
    # The threads of a forest add up their trees in any order, so the last digit would
    # decide between two classes with equally many votes.
    return probs.round(9)


def _share_of_most_common(labels: NDArray[np.str_]) -> float:
    return Counter(labels.tolist()).most_common(1)[0][1] / len(labels)


def _why_no_folds(
    labels: NDArray[np.str_], groups: NDArray[np.str_], *, what: str
) -> str:
    names = sorted(set(labels.tolist()))
    if len(names) < 2:
        return f"there is only one {what}: {names[0]}"
    for name in names:
        num_groups = len(set(groups[labels == name].tolist()))
        if num_groups < NUM_FOLDS:
            return (
                f"{NUM_FOLDS} folds need {NUM_FOLDS} groups of each {what}, and "
                f"{name} has {num_groups}"
            )
    return ""


def _sample_of_groups(groups: NDArray[np.str_], *, seed: int) -> NDArray[np.int64]:
    """Return the positions of all images, or of `MAX_IMAGES` drawn at random.

    Of many images, groups are drawn one after the other, each with at most
    `_MAX_OF_GROUP` images drawn at random; a group that does not fit is passed over.
    """
    if len(groups) <= MAX_IMAGES:
        return np.arange(len(groups))
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(groups))
    _, group_of = np.unique(groups[shuffled], return_inverse=True)
    members = np.split(
        shuffled[np.argsort(group_of, kind="stable")],
        np.cumsum(np.bincount(group_of))[:-1],
    )
    kept: list[NDArray[np.int64]] = []
    num_left = MAX_IMAGES
    for group in rng.permutation(len(members)).tolist():
        some = members[group][:_MAX_OF_GROUP]
        if len(some) <= num_left:
            kept.append(some)
            num_left -= len(some)
    return np.sort(np.concatenate(kept))
