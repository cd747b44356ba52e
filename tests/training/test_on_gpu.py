"""What a run does on a GPU: for `make gpu-check`, and for machines that have one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tumorlens.cli import app
from tumorlens.config import Config, parse_config
from tumorlens.errors import OutOfMemoryError
from tumorlens.evaluation.measure import evaluate
from tumorlens.evaluation.predictions import read_predictions
from tumorlens.runs.progress import Listener
from tumorlens.training import checkpoint
from tumorlens.training.devices import resolve_device, resolve_precision
from tumorlens.training.fit import train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture
def config(make_images: Callable[..., Path], tmp_path: Path) -> Config:
    return parse_config(
        {
            "data": {
                "path": str(make_images(num_each=16)),
                "cache_dir": str(tmp_path / "cache"),
            },
            "model": {"name": "test_resnet", "pretrained": "no", "size_px": 64},
            "augment": {"random_erasing": 0.2, "mixup": 0.2},
            "optim": {"epochs": 2},
            "train": {"device": DEVICE, "batch_size": 8, "ema_decay": 0.9},
        }
    )


def test_auto_is_the_gpu_with_its_precision() -> None:
    device = resolve_device("auto")
    assert device.type == DEVICE
    is_new = torch.cuda.get_device_capability() >= (8, 0)
    assert resolve_precision("auto", device) == ("bf16" if is_new else "fp32")


def test_a_run_of_the_gpu_answers_alike_on_both_devices(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(config, out=tmp_path / "run").run
    assert run.environment()["compute"]["device"] == DEVICE
    probs = []
    for device in (DEVICE, "cpu"):
        assert evaluate(run, device=device).num_images > 0
        probs.append(read_predictions(run.predictions_path).probs)
    # Convolutions of a GPU may round to 10 bits.
    assert np.abs(probs[0] - probs[1]).max() < 0.01
    image = str(next((tmp_path / "data").rglob("*.png")))
    capsys.readouterr()
    assert app.main(["predict", str(run.path), image, "--device", DEVICE]) == 0
    assert "glioma" in capsys.readouterr().out


class Stop(Listener):
    """Presses Ctrl-C after the second batch of the second epoch."""

    def batch(self, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (2, 2):
            signal.raise_signal(signal.SIGINT)


def test_a_run_that_was_stopped_goes_on_as_the_unbroken_one(
    config: Config, tmp_path: Path
) -> None:
    unbroken = train(config, out=tmp_path / "unbroken").run
    assert not train(config, out=tmp_path / "run", listener=Stop()).is_finished
    resumed = train(None, out=tmp_path / "run", resume=True).run
    rows = zip(unbroken.history(), resumed.history(), strict=True)
    for one, other in rows:
        # The order in which a GPU adds up is its own.
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.01)


def test_the_generator_of_the_gpu_goes_on_where_it_was() -> None:
    torch.rand(3, device=DEVICE)
    state = checkpoint.get_random_state()
    drawn = torch.rand(3, device=DEVICE)
    torch.rand(5, device=DEVICE)
    checkpoint.set_random_state(state)
    assert torch.equal(torch.rand(3, device=DEVICE), drawn)


def test_memory_that_is_too_small_is_named(config: Config, tmp_path: Path) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    large = config.model_copy(
        update={
            "model": config.model.model_copy(update={"size_px": 512}),
            "train": config.train.model_copy(update={"batch_size": 48}),
        }
    )
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**28 / total)
    try:
        with pytest.raises(
            OutOfMemoryError, match="memory ran out: test_resnet with a"
        ):
            train(large, out=tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert not (tmp_path / "run").exists()
