from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tumorlens.config import OptimConfig
from tumorlens.errors import RunError
from tumorlens.training.loop import EpochStats, train_epoch
from tumorlens.training.optim import Schedule


class Scale(nn.Module):
    """One weight w, which starts at 1, so that steps can be followed by hand."""

    pretrained_cfg: ClassVar = {"classifier": ()}

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


class SquareLoss(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.square().mean()


def run_epoch(
    model: nn.Module, batches: list[Tensor], *, lr: float, **options: Any
) -> EpochStats:
    """Train `model` to return 0 for one epoch; batches have the shape (N, 1)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    config = OptimConfig(lr=lr or 1.0, scheduler="constant")
    return train_epoch(
        model,
        [(images, torch.zeros(len(images), dtype=torch.int64)) for images in batches],
        sums=torch.zeros(3, dtype=torch.float64),
        prepare_batch=lambda images, labels: (images, labels),
        loss_fn=SquareLoss(),
        optimizer=optimizer,
        schedule=Schedule(optimizer, config, batches_per_epoch=len(batches)),
        accelerator=Accelerator(cpu=True),
        use_bf16=options.pop("use_bf16", False),
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
        sums=torch.zeros(3, dtype=torch.float64),
        prepare_batch=lambda images, labels: (images, labels),
        loss_fn=SquareLoss(),
        optimizer=optimizer,
        schedule=schedule,
        accelerator=Accelerator(cpu=True),
        use_bf16=False,
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


# From here on: whole runs on drawn images.
