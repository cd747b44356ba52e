"""The exported graph gives what the run's own inference pass gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from support.small_networks import colours, network
from tumorlens.deploy.graph import ServingGraph
from tumorlens.errors import RunError
from tumorlens.runs.folder import ModelCard
from tumorlens.training.network import infer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

EXACT = 2e-6
"""By how much fp32 sums in another order differ here."""


def expected_probs(
    card: ModelCard, module: nn.Module, images: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return what `models.infer` says, which measures a run."""
    if card.in_chans == 1:
        grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
        batch = torch.from_numpy(np.stack(grey)[:, None])
    else:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    log_probs = infer(
        module,
        [batch],
        mean=card.mean,
        std=card.std,
        device=torch.device("cpu"),
        mirror=card.mirror,
        tta=card.tta,
        temperature=card.temperature,
    )
    return np.exp(log_probs.astype(np.float64))


def ask(
    *networks: tuple[ModelCard, nn.Module], images: NDArray[np.uint8]
) -> tuple[NDArray[Any], ...]:
    with torch.no_grad():
        outputs = ServingGraph(networks).eval()(torch.from_numpy(images))
    return tuple(output.numpy() for output in outputs)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as it is"),
        pytest.param({"mirror": True}, id="mirror"),
        pytest.param({"tta": "eight-views"}, id="eight views"),
        pytest.param({"temperature": 2.5}, id="temperature"),
        pytest.param({"mirror": True, "temperature": 0.3}, id="both"),
        pytest.param({"in_chans": 1, "mean": (0.4,), "std": (0.3,)}, id="grey"),
    ],
)
def test_it_answers_as_the_inference_pass_does(changes: dict[str, Any]) -> None:
    card, module = network(**changes)
    images = colours(6)
    probs, logits, embedding = ask((card, module), images=images)
    assert logits.std(axis=0).max() > 0.05  # they do not all say the same
    assert np.abs(probs - expected_probs(card, module, images)).max() < EXACT
    assert probs.shape == logits.shape == (6, 3)
    assert embedding.shape[0] == 6
    assert np.abs(probs.sum(axis=1) - 1).max() < EXACT


def test_an_ensemble_answers_with_the_mean_of_its_members_probabilities() -> None:
    first = network(seed=1, mirror=True)
    second = network("test_efficientnet", seed=2, temperature=3.0, mean=(0.1, 0.1, 0.1))
    images = colours(5)
    probs, logits, embedding = ask(first, second, images=images)
    expected = (expected_probs(*first, images) + expected_probs(*second, images)) / 2
    assert np.abs(probs - expected).max() < EXACT
    alone = [ask(one, images=images) for one in (first, second)]
    assert np.abs(logits - (alone[0][1] + alone[1][1]) / 2).max() < 1e-5
    assert np.array_equal(embedding, np.hstack([alone[0][2], alone[1][2]]))


def test_the_embedding_is_what_the_last_layer_is_given() -> None:
    card, module = network()
    images = colours(3)
    _, logits, embedding = ask((card, module), images=images)
    last: Any = module.get_classifier()  # type: ignore[operator]
    again = embedding @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    assert np.abs(again - logits).max() < 1e-4


def test_grey_is_what_pillow_makes_of_a_colour() -> None:
    class Echo(torch.nn.Module):
        """A network whose logits are pixels of its input."""

        def forward_features(self, values: torch.Tensor) -> torch.Tensor:
            return values

        def forward_head(self, values: torch.Tensor, **_: bool) -> torch.Tensor:
            return values.flatten(1)

    card, _ = network(in_chans=1, mean=(0.0,), std=(1.0,))
    images = np.random.default_rng(2).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    _, logits, _ = ask((card, Echo()), images=images)
    ours = np.rint(logits * 255).astype(int).reshape(64, 64, 64)
    for image, grey in zip(images, ours, strict=True):
        assert np.array_equal(np.asarray(Image.fromarray(image).convert("L")), grey)


@pytest.mark.parametrize(
    "changes",
    [{"size_px": 64}, {"fit": "squash"}, {"classes": ("a", "b", "c")}],
    ids=["size", "fit", "classes"],
)
def test_members_that_take_other_images_do_not_fit_into_one_graph(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(RunError, match=r"32 px pad") as caught:
        ServingGraph([network(), network(**changes)])
    other = f"{changes.get('size_px', 32)} px {changes.get('fit', 'pad')}"
    assert other in caught.value.problem


def logits_differ_by(name: str, size_px: int) -> float:
    """Return by how much a graph's logits differ from those of the whole network."""
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=3).eval()
    mean, std = (0.5,) * 3, (0.5,) * 3
    card, _ = network(size_px=size_px, mean=mean, std=std)
    images = colours(2, size_px)
    with torch.no_grad():
        values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        expected = module((values - 0.5) / 0.5).numpy()
    _, logits, embedding = ask((card, module), images=images)
    assert embedding.ndim == 2
    return float(np.abs(logits - expected).max() / max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", timm.list_models("test_*"))
def test_the_logits_are_those_of_the_whole_network(name: str) -> None:
    pretrained: Any = timm.get_pretrained_cfg(name)
    assert logits_differ_by(name, pretrained.input_size[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("dla34", "dpn48b", "deit_tiny_distilled_patch16_224", "levit_128s"),
        *("mobilenetv2_100", "ghostnet_100"),
    ],
)
def test_the_logits_are_those_of_the_whole_network_of_odd_ones_too(name: str) -> None:
    assert logits_differ_by(name, 224) < 1e-5
