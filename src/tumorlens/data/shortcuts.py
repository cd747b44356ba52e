"""How well the class can be told without looking at the picture.

A set gives its classes away when one of them came from another scanner, website or
export script: then width, height, file size or brightness alone predict the class, and
a network will use them too. A random forest on such features measures it. Every figure
stands beside that of always naming the most common class.

What a newcomer gets wrong: copies and slices of one patient have the same size, so a
plain cross-validation finds shortcuts everywhere. Groups stay together here.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import (
    balanced_accuracy_score,
    pairwise_distances_argmin,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

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
) -> dict[str, Any]:
    """Return the keys `shortcuts`, `look_up` and `source_shift` of `audit.json`.

    Args:
        columns: Each of `COLUMNS` for N images.
        thumbnails: Shape (N, H, W).
        labels: Shape (N,).
        groups: Shape (N,).
        is_train: Shape (N,); like `is_test` all false for a set without subsets.
        is_test: Shape (N,).
        is_copied: Shape (N,): the test images that show a picture of training.
        seed: Of folds and forests.

    Returns:
        `shortcuts`: feature set -> what `score_by_groups` gives, with `train_to_test`
        (accuracy on test, on its copied part, on the rest, and of the class that is
        most common in train). `look_up`: the same four for `look_up_nearest`.
        `source_shift`: feature set -> what `tell_test_from_train` gives. What needs a
        training and a test subset is `None` or empty without them.
    """
    has_both = bool(is_train.any() and is_test.any())
    found: dict[str, Any] = {"shortcuts": {}, "look_up": None, "source_shift": {}}

    def scored(predicted: NDArray[np.str_]) -> dict[str, float | None]:
        right, copied = predicted == labels[is_test], is_copied[is_test]
        most_common = Counter(labels[is_train].tolist()).most_common(1)[0][0]
        return {
            "accuracy": float(right.mean()),
            "accuracy_copied": float(right[copied].mean()) if copied.any() else None,
            "accuracy_clean": None if copied.all() else float(right[~copied].mean()),
            "majority": float((labels[is_test] == most_common).mean()),
        }

    for name, chosen in FEATURES.items():
        features = np.stack([columns[column] for column in chosen], axis=1)  # (N, F)
        found["shortcuts"][name] = {
            "features": list(chosen),
            **score_by_groups(features, labels, groups, seed=seed),
            "train_to_test": None,
        }
        if has_both:
            found["shortcuts"][name]["train_to_test"] = scored(
                predict_from_train(
                    features[is_train], labels[is_train], features[is_test], seed=seed
                )
            )
            either = is_train | is_test
            found["source_shift"][name] = tell_test_from_train(
                features[either], is_test[either], groups[either], seed=seed
            )
    if has_both:
        found["look_up"] = scored(
            look_up_nearest(thumbnails[is_train], labels[is_train], thumbnails[is_test])
        )
    return found


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Return what `measure` found, one sentence for each figure that matters."""
    scores = found["shortcuts"]
    sentences = [
        f"{_WORDS[name]} {_verb('predict', name)} the class of "
        f"{score['accuracy']:.1%} of the images of unseen groups; always naming the "
        f"most common class is right for {score['majority']:.1%}."
        for name, score in scores.items()
        if score["accuracy"] is not None
    ]
    if scores and not sentences:
        why = next(iter(scores.values()))["skipped"]
        sentences.append(f"Shortcuts were not measured: {why}.")
    if found["look_up"]:
        sentences.append(
            "Copying the label of the most similar training picture is right for "
            f"{found['look_up']['accuracy']:.1%} of the test images."
        )
    aurocs = {
        name: shift["auroc"]
        for name, shift in found["source_shift"].items()
        if shift["auroc"] is not None
    }
    if aurocs:
        name = max(aurocs, key=lambda one: aurocs[one])
        sentences.append(
            f"{_WORDS[name]} {_verb('tell', name)} a test image from a training image "
            f"with an AUROC of {aurocs[name]:.2f}; 0.5 is chance."
        )
    return [sentence.replace("%", " %") for sentence in sentences]


def score_by_groups(
    features: NDArray[np.float64],
    labels: NDArray[np.str_],
    groups: NDArray[np.str_],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return how well features predict the class of images of unseen groups.

    Five stratified folds by group; the predictions are pooled.

    Args:
        features: Shape (N, F).
        labels: Shape (N,).
        groups: Shape (N,); images with the same group are in the same fold.
        seed: Of the folds and the forest.

    Returns:
        `accuracy`, `balanced_accuracy` and `majority` (share of the most common class)
        as fractions, `num_images`, and `skipped`: empty, or why the first two are
        `None`.
    """
    chosen = _sample_of_groups(groups, seed=seed)
    features, labels, groups = features[chosen], labels[chosen], groups[chosen]
    found: dict[str, Any] = {
        "accuracy": None,
        "balanced_accuracy": None,
        "majority": _share_of_most_common(labels),
        "num_images": len(labels),
        "skipped": _why_no_folds(labels, groups, what="class"),
    }
    if not found["skipped"]:
        predicted = _most_probable(
            np.unique(labels), _cross_probs(features, labels, groups, seed=seed)
        )
        found["accuracy"] = float((predicted == labels).mean())
        found["balanced_accuracy"] = float(balanced_accuracy_score(labels, predicted))
    return found


def predict_from_train(
    train_features: NDArray[np.float64],
    train_labels: NDArray[np.str_],
    test_features: NDArray[np.float64],
    *,
    seed: int,
) -> NDArray[np.str_]:
    """Return what a forest that learnt from train says about test, shape (N_test,)."""
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
        Shape (M,). Similar is Euclidean distance of the grey values.
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
) -> dict[str, Any]:
    """Return how well features tell a test image from a training image.

    0.5 is chance: both come from one source as far as these features go. 1.0 says that
    a score on test is one on another kind of file.

    Args:
        features: Shape (N, F).
        is_test: Shape (N,).
        groups: Shape (N,); as in `score_by_groups`.
        seed: Of the folds and the forest.

    Returns:
        `auroc` of the pooled predictions, and `skipped`: empty, or why it is `None`.
    """
    chosen = _sample_of_groups(groups, seed=seed)
    features, is_test, groups = features[chosen], is_test[chosen], groups[chosen]
    skipped = _why_no_folds(np.where(is_test, "test", "train"), groups, what="subset")
    if skipped:
        return {"auroc": None, "skipped": skipped}
    probs = _cross_probs(features, is_test, groups, seed=seed)
    return {"auroc": float(roc_auc_score(is_test, probs[:, 1])), "skipped": ""}


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
    # The threads of a forest add up their trees in any order, and the last digit then
    # decides between two classes with equally many votes.
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
    """Return the positions of all images, or of enough whole groups drawn by chance."""
    if len(groups) <= MAX_IMAGES:
        return np.arange(len(groups))
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = order[np.cumsum(sizes[order]) <= MAX_IMAGES]
    return np.flatnonzero(np.isin(group_of, kept))
