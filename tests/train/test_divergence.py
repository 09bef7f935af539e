"""Divergence: losses that end a run, and losses that do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scalelab.records.divergence import BLOCK_STEPS_MIN, SPIKED_BLOCKS, DivergenceDetector


def healthy_losses(n: int, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return (5.5 - 3.5 * (1 - np.exp(-np.arange(n) / 60)) + rng.normal(0, 0.15, n)).tolist()


def feed(detector: DivergenceDetector, losses: list[float]) -> tuple[int, str] | None:
    for step, loss in enumerate(losses, 1):
        if (reason := detector.observe(loss, 1.0)) is not None:
            return step, reason
    return None


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_noisy_run_never_diverges(seed: int) -> None:
    assert feed(DivergenceDetector(), healthy_losses(400, seed)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_run_at_once(value: float) -> None:
    detector = DivergenceDetector()
    assert detector.observe(5.0, 1.0) is None
    assert "loss" in str(detector.observe(value, 1.0))
    assert "gradient" in str(DivergenceDetector().observe(5.0, value))


def test_a_spike_that_recovers_within_a_block_does_not_count() -> None:
    losses = healthy_losses(400)
    losses[200 : 200 + BLOCK_STEPS_MIN - 2] = [9.0] * (BLOCK_STEPS_MIN - 2)
    assert feed(DivergenceDetector(), losses) is None


def test_a_lasting_spike_ends_the_run_within_three_blocks() -> None:
    losses = healthy_losses(400)
    losses[205:] = [4.2] * 195  # below the first loss, but more than half of the progress lost
    found = feed(DivergenceDetector(), losses)
    assert found is not None
    assert 205 < found[0] <= 205 + (SPIKED_BLOCKS + 1) * BLOCK_STEPS_MIN
    assert "stayed" in found[1]


def test_a_run_that_only_rises_diverges() -> None:
    losses = (5.5 + 0.02 * np.arange(200)).tolist()
    assert feed(DivergenceDetector(), losses) is not None


def test_a_run_that_learns_nothing_does_not_diverge() -> None:
    rng = np.random.default_rng(1)
    assert feed(DivergenceDetector(), (5.5 + rng.normal(0, 0.1, 300)).tolist()) is None


def test_resuming_from_a_saved_state_changes_nothing() -> None:
    losses = healthy_losses(300)
    losses[170:] = [4.5] * 130
    whole = feed(DivergenceDetector(), losses)
    for cut in (1, 8, 163, 175, 183):
        first = DivergenceDetector()
        assert feed(first, losses[:cut]) is None
        second = feed(DivergenceDetector.from_state(first.state()), losses[cut:])
        assert second is not None
        assert whole == (second[0] + cut, second[1])


def test_the_final_loss_can_be_a_spike() -> None:
    detector = DivergenceDetector()
    feed(detector, healthy_losses(400))
    assert not detector.is_spike(2.0)
    assert detector.is_spike(4.0)
    assert detector.is_spike(math.nan)
