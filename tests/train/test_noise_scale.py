"""The gradient noise scale in cases with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.corpus.dataset import Dataset
from scalelab.records.run_dir import RunDir
from scalelab.records.types import MetricRow
from scalelab.sweep.execution import ExecutionSpec
from scalelab.train.noise_scale import NoiseScale, noise_terms
from tests.train.outcome import run_attempt


@given(
    trace=st.floats(1e-3, 1e3),
    grad_sq=st.floats(1e-3, 1e3),
    small=st.floats(1, 100),
    factor=st.floats(1.5, 100),
)
@settings(max_examples=100, deadline=None)
def test_expected_norms_give_back_both_terms(
    trace: float, grad_sq: float, small: float, factor: float
) -> None:
    found = noise_terms(
        grad_sq + trace / small, grad_sq + trace / (factor * small), small, factor * small
    )
    assert found == pytest.approx((trace, grad_sq), rel=1e-4, abs=1e-4)


def test_a_quadratic_with_known_noise_is_recovered_within_five_percent() -> None:
    """Minimize x'Hx/2 from samples with gradient Hx + noise of covariance diag(sigma^2)."""
    rng = np.random.default_rng(2)
    n, small, n_micro = 40, 4, 8
    h = np.geomspace(0.1, 2.0, n)
    sigma = rng.uniform(0.5, 1.5, n)
    x = rng.normal(0, 3, n)
    scale = NoiseScale()
    for _ in range(600):
        samples = h * x + sigma * rng.normal(size=(n_micro, small, n))
        micro = samples.mean(1)
        scale.observe(float((micro**2).sum(1).mean()), float((micro.mean(0) ** 2).sum()), small, 32)
    assert scale.means is not None
    trace, grad_sq = scale.means
    assert trace == pytest.approx((sigma**2).sum(), rel=0.05)
    assert grad_sq == pytest.approx(((h * x) ** 2).sum(), rel=0.05)
    assert trace / grad_sq == pytest.approx((sigma**2).sum() / ((h * x) ** 2).sum(), rel=0.05)


def test_values_that_are_not_finite_are_not_averaged() -> None:
    scale = NoiseScale()
    scale.observe(float("nan"), 1.0, 1, 2)
    assert scale.means is None
    scale.observe(3.0, 2.0, 1, 2)
    assert scale.means == pytest.approx((2.0, 1.0))


def test_an_accumulated_run_measures_its_noise_and_keeps_it_across_a_stop(
    make_run: Callable[..., RunDir],
    dataset: Dataset,
    execution: ExecutionSpec,
) -> None:
    import json

    runs = [make_run("straight"), make_run("stopped")]
    execution = replace(execution, micro_batch_seqs=2, checkpoint_interval_s=0.0)
    assert run_attempt(runs[0].path, dataset.folder, execution) == "done"
    polls = iter([None, None, "enough"])
    from scalelab.train import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "POLL_INTERVAL_S", 0.0)
        status = run_attempt(runs[1].path, dataset.folder, execution, should_stop=polls.__next__)
    assert status == "preempted"
    assert run_attempt(runs[1].path, dataset.folder, execution) == "done"
    ends = []
    for run in runs:
        lines = run.attempts()[-1].metrics_path.read_text().splitlines()
        row = MetricRow(**json.loads(lines[-1]))
        assert row.noise_trace is not None
        assert row.noise_trace > 0
        ends.append((row.loss_nats, row.noise_trace, row.noise_grad_sq))
    assert ends[0] == ends[1]
