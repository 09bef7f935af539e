"""Extrapolation inflation, and the noise of a new run."""

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.noise import NOISE_LEVELS, local_noise
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations


def bent(runs, strength):
    """Return the same runs with a loss that departs from the form as compute grows."""
    ahead = np.log10(runs.flops / runs.flops.min())
    return Observations(
        n_params=runs.n_params,
        n_tokens=runs.n_tokens,
        loss_nats=runs.loss_nats * np.exp(-strength * np.maximum(ahead - 1.0, 0.0) ** 2),
        flops=runs.flops,
    )


def test_a_wrong_form_has_inflation_and_a_right_one_has_none(isoflop_runs):
    runs = isoflop_runs(sizes=12)
    spec = BootstrapSpec(k=60)
    right = fit_parametric(runs, bootstrap=spec)
    wrong = fit_parametric(bent(runs, 0.15), bootstrap=spec)
    assert 1.0 <= right.inflation < 1.6
    assert wrong.inflation > 1.3 * right.inflation


def test_only_predictions_beyond_the_largest_run_are_widened(isoflop_runs):
    fit = fit_parametric(bent(isoflop_runs(sizes=12), 0.15), bootstrap=BootstrapSpec(k=60))
    limit = fit.compute.max()
    D = 1e10
    at = fit.predict({"n_params": np.array([0.999, 1.001]) * limit / D, "n_tokens": D})
    half = np.log(at.pred_high / at.value)
    # the two points are 0.2 % of compute apart
    assert half[1] / half[0] == pytest.approx(fit.inflation, rel=1e-2)
    # The confidence interval comes from the replicates alone, inside and beyond the runs.
    assert at.high[1] / at.value[1] == pytest.approx(at.high[0] / at.value[0], rel=1e-3)


def test_local_noise_follows_the_rows_nearest_in_compute():
    rng = np.random.default_rng(0)
    compute = np.exp(np.linspace(40, 50, 600))
    errors = rng.standard_normal(600) * np.where(np.arange(600) < 200, 3.0, 1.0)
    low, high = local_noise(errors, compute, np.array([np.exp(41.0), np.exp(49.5)]))
    assert np.ptp(low) > np.ptp(high)
    # Never narrower than the quantiles of all rows.
    overall = np.quantile(errors, NOISE_LEVELS)
    for levels in (low, high):
        assert (levels[:100] <= overall[:100]).all()
        assert (levels[101:] >= overall[101:]).all()


def test_fits_without_replicates_have_no_inflation(isoflop_runs):
    assert fit_parametric(isoflop_runs(), bootstrap=BootstrapSpec(k=0)).inflation == 1.0
