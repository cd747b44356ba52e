"""The nearest training images are those with the smallest angle, and of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from support.runs_on_images import make_run
from support.small_networks import colours, network
from tumorlens.data.images import load_square
from tumorlens.deploy.predictor import Predictor
from tumorlens.errors import ConfigError, DataError, RunError
from tumorlens.evaluation.neighbours import (
    TrainingImages,
    embed,
    embed_square,
    embed_training,
)
from tumorlens.training.network import as_batch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tumorlens.runs.folder import Run

CPU = torch.device("cpu")


@pytest.fixture
def data(make_images: Callable[..., Path]) -> Path:
    return make_images(num_each=4)


@pytest.fixture
def run(tmp_path: Path, data: Path) -> Run:
    return make_run(tmp_path / "run", data)


def training_of(run: Run, data: Path | None = None) -> TrainingImages:
    one = Predictor.open(run.path).members[0].network
    assert one is not None
    return embed_training(run, one.module, one.card, one.device, data=data)


def test_the_train_subset_is_embedded_in_its_order(run: Run, data: Path) -> None:
    found = training_of(run)
    rows = [row for row in run.split() if row.subset == "train"]
    assert found.paths == tuple(row.path for row in rows)
    assert found.labels == tuple(row.label for row in rows)
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=1), 1, rtol=1e-5)
    one = Predictor.open(run.path).members[0]
    assert one.network is not None
    for path, embedding in zip(found.paths, found.embeddings, strict=True):
        square = load_square(
            data / path,
            size_px=one.spec.size_px,
            fit=one.spec.fit,
            in_chans=one.spec.in_chans,
        )
        own = embed_square(one.network.module, square, one.network.card, CPU)
        np.testing.assert_allclose(own, embedding, atol=1e-5)
        first = found.nearest(own, count=1)[0]
        assert first.similarity == pytest.approx(1, abs=1e-5)
        assert first.path == path


def test_the_nearest_have_the_smallest_angle(run: Run) -> None:
    angles = np.radians([0, 40, 10, 90])
    found = TrainingImages(
        training_of(run).index,
        ("a", "b", "c", "d"),
        ("x", "x", "y", "y"),
        np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
    )
    towards = np.array([np.cos(np.radians(30)), np.sin(np.radians(30))], np.float32)
    three = found.nearest(towards, count=3)
    assert [one.path for one in three] == ["b", "c", "a"]
    assert [one.label for one in three] == ["x", "y", "x"]
    assert three[0].similarity == pytest.approx(np.cos(np.radians(10)))
    assert len(found.nearest(towards, count=9)) == 4


def test_the_embedding_is_what_the_last_layer_reads() -> None:
    card, model = network()
    head = model.get_submodule("fc")
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    batch = as_batch(colours(2))
    found = embed(model, [batch], card, CPU)
    with torch.no_grad():
        from tumorlens.training.network import normalize

        model(normalize(batch, mean=card.mean, std=card.std))
    expected = nn.functional.normalize(seen[-1]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_network_without_an_embedding_is_refused() -> None:
    card, _ = network()
    with pytest.raises(ConfigError, match="needs an embedding, and test_resnet has"):
        embed(nn.Flatten(), [as_batch(colours(1))], card, CPU)


def test_moved_images_are_named(run: Run, data: Path, tmp_path: Path) -> None:
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"images of .* are not in") as caught:
        training_of(run)
    assert "--data" in caught.value.hint
    assert len(training_of(run, moved).paths) == 8


def test_changed_images_are_refused(run: Run, data: Path) -> None:
    (data / "glioma" / "0.png").unlink()
    with pytest.raises(RunError, match="has changed since the run was made"):
        training_of(run)
