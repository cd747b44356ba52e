from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from tumorlens.config import Config, OptimConfig, parse_config
from tumorlens.errors import RunError
from tumorlens.training import loop
from tumorlens.training.dataset import Subset
from tumorlens.training.loading import epoch_order, seeded
from tumorlens.training.loop import (
    Batches,
    EpochStats,
    Loss,
    Step,
    make_loss,
    part_size_of,
    part_sizes,
    train_epoch,
)
from tumorlens.training.network import Preprocessing
from tumorlens.training.optim import Schedule


class Scale(nn.Module):
    """One weight w, which starts at 1, so that steps can be followed by hand."""

    pretrained_cfg: ClassVar = {"classifier": ()}

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


class SquareLoss(Loss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().mean(1).sum()


def step_of(
    optimizer: torch.optim.Optimizer, schedule: Schedule, **options: Any
) -> Step:
    return Step(
        **{
            "prepare_batch": lambda images, labels: (images, labels),
            "loss_fn": SquareLoss(),
            "optimizer": optimizer,
            "schedule": schedule,
            "accelerator": Accelerator(cpu=True),
            "use_bf16": False,
            **options,
        }
    )


def run_epoch(
    model: nn.Module,
    batches: list[Tensor],
    *,
    lr: float,
    use_bf16: bool = False,
    max_grad_norm: float | None = None,
    **options: Any,
) -> EpochStats:
    """Train `model` to return 0 for one epoch; batches have the shape (N, 1)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    config = OptimConfig(lr=lr or 1.0, scheduler="constant")
    return train_epoch(
        model,
        [(images, torch.zeros(len(images), dtype=torch.int64)) for images in batches],
        step_of(
            optimizer,
            Schedule(optimizer, config, batches_per_epoch=len(batches)),
            use_bf16=use_bf16,
            max_grad_norm=max_grad_norm,
        ),
        sums=torch.zeros(3, dtype=torch.float64),
        **options,
    )


@pytest.mark.parametrize(
    ("max_grad_norm", "expected"),
    [
        # The gradient of w^2 is 2w: 1 - 0.25 * 2 = 0.5, then 0.5 - 0.25 * 1 = 0.25.
        pytest.param(None, 0.25, id="not clipped"),
        # Cut to 1, then 2 * 0.75 is cut to 1: 1 - 0.25 - 0.25 = 0.5.
        pytest.param(1.0, 0.5, id="clipped"),
    ],
)
def test_two_batches_are_two_steps_by_hand(
    max_grad_norm: float | None, expected: float
) -> None:
    model = Scale()
    run_epoch(model, [torch.ones(3, 1)] * 2, lr=0.25, max_grad_norm=max_grad_norm)
    assert model.w.item() == pytest.approx(expected, rel=1e-5)


def test_loss_is_the_mean_over_images_when_the_last_batch_is_short() -> None:
    # Three images cost 1 each and one costs 9: the mean is 3. It would be 5 over
    # batches.
    stats = run_epoch(Scale(), [torch.ones(3, 1), torch.full((1, 1), 3.0)], lr=0.0)
    assert stats.loss == pytest.approx(3.0)
    assert stats.num_images == 4


def test_training_accuracy_counts_the_right_predictions() -> None:
    # Class 0 is right; the largest column is 0, 0 and 1.
    images = torch.tensor([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0]])
    stats = run_epoch(Scale(), [images], lr=0.0)
    assert stats.accuracy == pytest.approx(2 / 3)


def test_the_schedule_moves_after_each_batch() -> None:
    model = Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = OptimConfig(lr=1.0, scheduler="onecycle", epochs=1)
    schedule = Schedule(optimizer, config, batches_per_epoch=10)
    first = optimizer.param_groups[0]["lr"]
    train_epoch(
        model,
        [(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64))],
        step_of(optimizer, schedule),
        sums=torch.zeros(3, dtype=torch.float64),
    )
    assert optimizer.param_groups[0]["lr"] > first


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do() -> None:
    with pytest.raises(RunError, match="mean training loss is nan") as caught:
        run_epoch(Scale(), [torch.full((1, 1), torch.nan)], lr=0.1)
    assert "lower optim.lr" in caught.value.hint


def test_a_stop_ends_the_epoch_after_the_batch() -> None:
    stats = run_epoch(Scale(), [torch.ones(3, 1)] * 5, lr=0.0, should_stop=lambda: True)
    assert not stats.is_complete
    assert stats.num_images == 3


class Counting(Scale):
    """Notes the number of images of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return super().forward(x)


def test_a_loss_that_is_lost_in_the_middle_of_an_epoch_ends_it_soon() -> None:
    model = Counting()
    spoilt = torch.full((1, 1), torch.nan)
    with pytest.raises(RunError, match="mean training loss is nan"):
        run_epoch(model, [torch.ones(1, 1), spoilt] * 500, lr=0.1)
    assert len(model.sizes) < 50


def gradient_of(
    loss: Loss, logits: Tensor, targets: Tensor, *, part_size: int | None
) -> tuple[Tensor, float]:
    """Return the gradient of one step at the logits (N, C), and the reported loss."""

    class Table(nn.Module):
        """Returns its own row for the number of an image."""

        pretrained_cfg: ClassVar = {"classifier": ()}

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(logits.clone())

        def forward(self, numbers: Tensor) -> Tensor:
            return self.rows[numbers]

    model = Table()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = Schedule(
        optimizer, OptimConfig(lr=1.0, scheduler="constant"), batches_per_epoch=1
    )
    stats = train_epoch(
        model,
        [(torch.arange(len(logits)), targets)],
        step_of(optimizer, schedule, loss_fn=loss, part_size=part_size),
        sums=torch.zeros(3, dtype=torch.float64),
    )
    return logits - model.rows.detach(), stats.loss


WEIGHTS = torch.tensor([4.0, 0.5, 1.0])


@pytest.mark.parametrize("part_size", [None, 4, 3, 2, 1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_a_step_in_parts_is_that_of_torch_for_the_whole_batch(
    weights: Tensor | None, part_size: int | None
) -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 1, 1, 1, 2, 1, 0])
    loss = Loss(weights, label_smoothing=0.1)
    got, reported = gradient_of(loss, logits, labels, part_size=part_size)
    plain = logits.clone().requires_grad_()
    mean = nn.CrossEntropyLoss(weights, label_smoothing=0.1)(plain, labels)
    (expected,) = torch.autograd.grad(mean, plain)
    assert got.numpy() == pytest.approx(expected.numpy(), abs=1e-6)
    assert reported == pytest.approx(mean.item())


@pytest.mark.parametrize("part_size", [None, 3])
def test_labels_as_probabilities_weigh_as_labels_do(part_size: int | None) -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 1, 1, 1, 2, 1, 0])
    plain, _ = gradient_of(Loss(WEIGHTS), logits, labels, part_size=None)
    one_hot = nn.functional.one_hot(labels, 3).float()
    mixed, _ = gradient_of(Loss(WEIGHTS), logits, one_hot, part_size=part_size)
    assert mixed.numpy() == pytest.approx(plain.numpy(), abs=1e-6)


def test_no_part_is_a_single_image_that_the_settings_do_not_demand() -> None:
    for num_images in range(1, 40):
        for size in range(2, 12):
            sizes = part_sizes(num_images, size)
            assert sum(sizes) == num_images
            assert min(sizes) > 1 or num_images == 1
            assert max(sizes) <= size + 1
    assert part_sizes(3, 1) == [1, 1, 1]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "expected"), [(32, 1, None), (32, 4, 8), (5, 2, 3)]
)
def test_accumulate_is_the_number_of_parts_of_a_full_batch(
    batch_size: int, accumulate: int, expected: int | None
) -> None:
    train = {"batch_size": batch_size, "accumulate": accumulate}
    size = part_size_of(settings(train=train).train)
    assert size == expected
    assert len(part_sizes(batch_size, size)) == accumulate


def test_processes_divide_by_the_mean_of_their_weights() -> None:
    class Two(Accelerator):  # type: ignore[misc]
        """One of two processes; the weights of the other add up to 9."""

        num_processes = 2

        def reduce(self, tensor: Tensor, reduction: str = "sum", **_: Any) -> Tensor:
            return (tensor + 9) / 2 if reduction == "mean" else tensor

    weight = loop._weight_of_batch(
        step_of(None, None, loss_fn=Loss(WEIGHTS), accelerator=Two(cpu=True)),  # type: ignore[arg-type]
        torch.tensor([0, 2]),
    )
    assert float(weight) == (4 + 1 + 9) / 2


class WithHead(nn.Module):
    """A backbone with batch norm and dropout, and a last layer."""

    pretrained_cfg: ClassVar = {"classifier": "head"}

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.dropout = nn.Dropout()
        self.head = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_does_not_move_and_its_head_does(frozen: bool) -> None:  # noqa: FBT001
    model = WithHead()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_epoch(model, [torch.randn(4, 1)] * 2, lr=0.1, head_only=frozen)
    moved = {
        name.split(".")[0]
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == ({"head"} if frozen else {"head", "norm"})
    assert model.dropout.training is not frozen


@pytest.mark.parametrize("use_bf16", [True, False])
def test_bf16_reaches_the_network_and_the_loss_gets_fp32(use_bf16: bool) -> None:  # noqa: FBT001
    seen = []

    class Spy(WithHead):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    class FloatOnly(SquareLoss):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            assert outputs.dtype == torch.float32
            return super().forward(outputs, targets)

    run_epoch(Spy(), [torch.randn(4, 1)], lr=0.0, use_bf16=use_bf16)
    assert seen == [torch.bfloat16 if use_bf16 else torch.float32]


# batches and loss


SIZE = 16
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def subset_of(labels: list[int]) -> Subset:
    images = np.random.default_rng(0).integers(
        1, 255, (len(labels), SIZE, SIZE, 1), dtype=np.uint8
    )
    return Subset(images, list(range(len(labels))), np.array(labels, dtype=np.int64))


def settings(
    *, augment: dict[str, Any] | None = None, train: dict[str, Any] | None = None
) -> Config:
    return parse_config(
        {
            "augment": {"policy": "none"} | (augment or {}),
            "train": {"batch_size": 4} | (train or {}),
        }
    )


def accelerator(rank: int = 0, num_ranks: int = 1) -> Any:
    return SimpleNamespace(
        device=torch.device("cpu"), process_index=rank, num_processes=num_ranks
    )


def batches_of(
    config: Config, labels: list[int], *, rank: int = 0, num_ranks: int = 1
) -> Batches:
    return Batches(
        subset_of(labels), config, PREPROCESSING, accelerator(rank, num_ranks)
    )


LABELS = [0, 1, 2] * 5


def decoded_batch(num: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        1, 255, (num, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator
    )
    return images, torch.arange(num) % 3


def normalized(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.1, 0.2, 0.3])
    return (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


# Batches


def test_an_epoch_has_the_batches_of_the_settings() -> None:
    batches = batches_of(settings(train={"seed": 9}), LABELS)
    labels = [label for _, part in batches.epoch(3) for label in part.tolist()]
    order = epoch_order(LABELS, seed=9, epoch=3, balanced=False)
    assert labels == [LABELS[item] for item in order]
    assert batches.per_epoch == 4
    assert [len(part) for _, part in batches.epoch(1)] == [4, 4, 4, 3]
    assert [len(part) for _, part in batches.epoch(1, first=2)] == [4, 3]


def test_the_balanced_sampler_is_the_balanced_order() -> None:
    labels = [0] * 20 + [1, 2] * 2
    batches = batches_of(settings(train={"sampler": "balanced", "seed": 9}), labels)
    drawn = [label for _, part in batches.epoch(1) for label in part.tolist()]
    order = epoch_order(labels, seed=9, epoch=1, balanced=True)
    assert drawn == [labels[item] for item in order]


def test_each_process_gets_its_share() -> None:
    parts = [
        batches_of(settings(), LABELS, rank=rank, num_ranks=3) for rank in range(3)
    ]
    assert [part.per_epoch for part in parts] == [1, 1, 1]  # 4 of 5: one waits
    firsts = [next(iter(part.epoch(1)))[0][:, 0, 0, :3].tolist() for part in parts]
    assert len({str(image) for part in firsts for image in part}) == 12


def test_the_policy_is_applied() -> None:
    plain = batches_of(settings(), LABELS)
    augmented = batches_of(settings(augment={"policy": "mri"}), LABELS)
    one, other = (next(iter(part.epoch(1)))[0] for part in (plain, augmented))
    assert one.shape == other.shape
    assert not torch.equal(one, other)


# On the device


def test_images_are_normalized_and_targets_stay_labels() -> None:
    images, labels = decoded_batch()
    got, targets = batches_of(settings(), LABELS).prepare(images, labels)
    assert got.numpy() == pytest.approx(normalized(images).numpy(), abs=1e-4)
    assert torch.equal(targets, labels)


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.9])
def test_erasing_blanks_a_rectangle_in_that_share_of_the_images(
    probability: float,
) -> None:
    batches = batches_of(settings(augment={"random_erasing": probability}), LABELS)
    images, labels = decoded_batch(400)
    with seeded(1):
        got, targets = batches.prepare(images, labels)
    changed = (got - normalized(images)).abs().amax(1) > 1e-4  # (N, S, S)
    erased = changed.any(2).any(1)
    assert erased.double().mean().item() == pytest.approx(probability, abs=0.08)
    for one in changed[erased]:
        rows, columns = one.any(1).nonzero().ravel(), one.any(0).nonzero().ravel()
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 1 < one.sum() < SIZE * SIZE / 2
    assert torch.equal(targets, labels)


def test_mixup_mixes_each_image_with_its_counterpart_and_labels_alike() -> None:
    batches = batches_of(settings(augment={"mixup": 1.0}), LABELS)
    images, labels = decoded_batch()
    with seeded(3):
        got, targets = batches.prepare(images, labels)
    plain = normalized(images)
    other = plain.flip(0)
    # The same share of the image itself everywhere, and in the labels too.
    share = ((got - other) * (plain - other)).sum() / (plain - other).square().sum()
    assert 0.05 < share < 0.95
    assert got.numpy() == pytest.approx(
        (share * plain + (1 - share) * other).numpy(), abs=1e-4
    )
    one_hot = nn.functional.one_hot(labels, 3).float()
    assert targets.numpy() == pytest.approx(
        (share * one_hot + (1 - share) * one_hot.flip(0)).numpy(), abs=1e-4
    )


def test_cutmix_pastes_a_rectangle_and_counts_its_area() -> None:
    batches = batches_of(settings(augment={"cutmix": 1.0}), LABELS)
    images, labels = decoded_batch()
    with seeded(5):
        got, targets = batches.prepare(images, labels)
    plain = normalized(images)
    own = torch.isclose(got, plain, atol=1e-4).all(1)
    pasted = torch.isclose(got, plain.flip(0), atol=1e-4).all(1)
    assert (own | pasted).all()
    share = own[0].double().mean()
    assert 0.05 < share < 0.95
    one_hot = nn.functional.one_hot(labels, 3).float()
    expected = share * one_hot + (1 - share) * one_hot.flip(0)
    assert targets.numpy() == pytest.approx(expected.numpy(), abs=0.02)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_of_an_odd_number_of_images_all_but_the_last_are_mixed(kind: str) -> None:
    batches = batches_of(settings(augment={kind: 1.0}), LABELS)
    images, labels = decoded_batch(7)
    with seeded(3):
        got, targets = batches.prepare(images, labels)
    with seeded(3):
        even, even_targets = batches.prepare(images[:6], labels[:6])
    assert torch.equal(got[:6], even)
    assert torch.equal(targets[:6], even_targets)
    assert even_targets.amax(1).min() < 1
    assert got[6].numpy() == pytest.approx(normalized(images)[6].numpy(), abs=1e-4)
    assert targets[6].tolist() == [1, 0, 0]


def test_only_the_asked_share_of_the_batches_is_mixed() -> None:
    batches = batches_of(
        settings(augment={"mixup": 1.0, "mix_probability": 0.3}), LABELS
    )
    images, labels = decoded_batch(4)
    plain = normalized(images)
    with seeded(0):
        unmixed = [
            torch.allclose(batches.prepare(images, labels)[0], plain, atol=1e-4)
            for _ in range(200)
        ]
    assert 0.6 < np.mean(unmixed) < 0.8


# The loss


@pytest.mark.parametrize(
    ("name", "power"), [("none", 0.0), ("sqrt", 0.5), ("balanced", 1.0)]
)
def test_class_weights_are_those_of_scikit_learn_or_its_root(
    name: str, power: float
) -> None:
    labels = [0] * 50 + [1] * 10 + [2] * 40
    loss = make_loss(subset_of(labels), settings(train={"class_weights": name}))
    if name == "none":
        assert loss.class_weights is None
        return
    balanced = compute_class_weight(
        "balanced", classes=np.arange(3), y=np.array(labels)
    )
    expected = balanced**power
    expected /= expected[labels].mean()
    assert loss.class_weights is not None
    assert loss.class_weights.numpy() == pytest.approx(expected)
    assert loss.class_weights.numpy()[labels].mean() == pytest.approx(1)


def test_balanced_weights_are_exactly_scikit_learns() -> None:
    labels = [0] * 50 + [1] * 10 + [2] * 40
    loss = make_loss(subset_of(labels), settings(train={"class_weights": "balanced"}))
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert loss.class_weights is not None
    assert loss.class_weights.numpy() == pytest.approx(expected)


def test_the_loss_smooths_the_labels() -> None:
    loss = make_loss(subset_of(LABELS), settings(train={"label_smoothing": 0.3}))
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_probs = logits.log_softmax(1)[0]
    expected = -(0.7 * log_probs[0] + 0.1 * log_probs.sum())
    assert loss(logits, torch.tensor([0])).item() == pytest.approx(expected.item())
