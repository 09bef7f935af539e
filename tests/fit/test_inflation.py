"""Extrapolation inflation, and the noise of a new run."""

from dataclasses import replace

import numpy as np

from scalelab.fit import inflation
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


def test_predictions_are_widened_beyond_the_largest_run_without_a_jump(isoflop_runs):
    fit = fit_parametric(bent(isoflop_runs(sizes=12), 0.15), bootstrap=BootstrapSpec(k=60))
    plain = replace(fit, inflation_of=None)
    D = 1e10
    at = {"n_params": np.array([0.49, 0.5**0.5, 1.001, 9.0]) * fit.compute.max() / D, "n_tokens": D}
    wide, narrow = fit.predict(at), plain.predict(at)
    factor = np.log(wide.pred_high / wide.value) / np.log(narrow.pred_high / narrow.value)
    assert fit.inflation > 1.2
    np.testing.assert_allclose(factor, fit.inflation ** np.array([0.0, 0.5, 1.0, 1.0]), rtol=1e-6)
    # The confidence interval comes from the replicates alone, inside and beyond the runs.
    np.testing.assert_array_equal(wide.high, narrow.high)


def test_the_inflation_is_computed_once_where_an_interval_needs_it(isoflop_runs, monkeypatch):
    calls, compute = [], inflation._inflation
    monkeypatch.setattr(inflation, "_inflation", lambda *of: calls.append(of) or compute(*of))
    fit = fit_parametric(isoflop_runs(sizes=12), bootstrap=BootstrapSpec(k=60))
    D = 1e10
    fit.predict({"n_params": 0.4 * fit.compute.max() / D, "n_tokens": D})
    assert not calls
    for _ in range(2):
        fit.predict({"n_params": 2.0 * fit.compute.max() / D, "n_tokens": D})
    assert len(calls) == 1


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
