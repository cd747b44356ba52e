"""Curves drawn by hand, with a place that the suggestion must find."""

from __future__ import annotations

import numpy as np
import pytest

from tumorlens.training.lr_curve import LrCurve, fade_of, read_curve, smooth


def curve(
    *, at: float, noise: float = 0.0, num: int = 100, seed: int = 0, rise: float = 10.0
) -> LrCurve:
    """Return what is read of a loss that falls from 1.4 to 0.4, fastest at `at`.

    Above 0.1 it rises again, by `rise` over a decade.
    """
    lrs = np.geomspace(1e-7, 1, num)
    decades = np.log10(lrs)
    losses = 1.4 - 1 / (1 + np.exp(-3 * (decades - np.log10(at))))
    losses += rise * np.maximum(decades + 1, 0) ** 2
    losses += np.random.default_rng(seed).normal(0, noise, num)
    return read_curve(lrs.tolist(), losses.tolist(), num_steps=num, is_diverged=False)


@pytest.mark.parametrize("at", [1e-5, 1e-4, 1e-3, 1e-2])
def test_the_suggestion_is_where_the_loss_falls_fastest(at: float) -> None:
    found = curve(at=at).suggestion
    assert found is not None
    assert at / 1.3 < found < at * 1.3  # a step is a factor of 1.18


def test_the_suggestion_does_not_hang_on_the_number_of_steps() -> None:
    for num in (20, 50, 400):
        found = curve(at=1e-3, num=num).suggestion
        assert found is not None
        assert 5e-4 < found < 2e-3


def test_noise_as_of_small_batches_moves_the_suggestion_little() -> None:
    found = [curve(at=1e-3, noise=0.15, seed=seed).suggestion for seed in range(50)]
    decades = np.log10([one for one in found if one is not None])
    assert len(decades) == 50
    assert abs(decades.mean() + 3) < 0.1
    assert np.abs(decades + 3).max() < 1


def test_a_loss_that_does_not_fall_gets_no_suggestion() -> None:
    lrs = np.geomspace(1e-7, 1, 100).tolist()
    rng = np.random.default_rng(0)
    flat = [1.4 + rng.normal(0, 0.15, 100) for _ in range(200)]
    answers = [
        read_curve(lrs, losses.tolist(), num_steps=100, is_diverged=False).suggestion
        for losses in flat
    ]
    assert sum(answer is not None for answer in answers) <= 4  # 2 % by chance


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([1.4] * 100, id="constant"),
        pytest.param(np.linspace(1.4, 9, 100).tolist(), id="rises"),
        pytest.param(np.linspace(1.4, 1.39, 100).tolist(), id="falls by too little"),
        pytest.param([1.4, 1.4, 90.0], id="blows up at once"),
    ],
)
def test_no_suggestion_says_what_to_try(losses: list[float]) -> None:
    lrs = np.geomspace(1e-7, 1, 100).tolist()[: len(losses)]
    found = read_curve(lrs, losses, num_steps=100, is_diverged=len(losses) < 100)
    assert found.suggestion is None
    assert found.tenth_of_minimum is None
    assert found.summary.startswith(
        f"No suggestion: the loss does not fall between 1e-07 and {lrs[-1]:.2g}"
    )
    assert "Try another range" in found.summary
    assert ("blew up at" in found.summary) == (len(losses) < 100)


def test_a_tenth_of_the_lowest_is_given_once_the_loss_has_risen() -> None:
    # The lowest loss is at 0.1, where the rise begins.
    found = curve(at=1e-3)
    assert found.tenth_of_minimum == pytest.approx(0.01, rel=0.3)
    assert f"would be {found.tenth_of_minimum:g}." in found.summary


def test_a_loss_that_is_still_falling_at_the_end_has_no_tenth_and_says_so() -> None:
    found = curve(at=1e-1, rise=0.0)
    assert found.suggestion == pytest.approx(0.1, rel=0.3)
    assert found.tenth_of_minimum is None
    assert "still falling when the sweep ended" in found.summary


def test_a_suggestion_has_two_digits_and_is_the_one_in_the_words() -> None:
    found = curve(at=1.234e-3)
    assert found.suggestion == float(f"{found.suggestion:.2g}")
    assert f"optim.lr={found.suggestion:g}," in found.summary


def test_the_smoothed_loss_is_corrected_for_its_start() -> None:
    # By hand: weights 1, then 1/2 and 1, then 1/4, 1/2 and 1.
    assert smooth([8.0, 2.0, 5.0], fade=0.5).tolist() == [8, 4, (2 + 1 + 5) / 1.75]
    assert smooth([3.0] * 9, fade=0.8) == pytest.approx(3.0)


def test_the_smoothing_forgets_over_a_share_of_the_sweep() -> None:
    assert fade_of(400) == pytest.approx(1 - 1 / 20)
    assert fade_of(20) == fade_of(5) == 0
