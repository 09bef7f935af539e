"""Intervals of few rows and few clusters."""

import math
from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.few_rows import sample
from scalelab.fit.parametric import fit_parametric

SPEC = BootstrapSpec(k=200)
POINT = {"n_params": 1e9, "n_tokens": 1e11}


def few(isoflop_runs, n, **options):
    """Return n rows of a grid of 3 budgets x 4 sizes."""
    runs = isoflop_runs(budgets=(1e18, 1e19, 1e20), sizes=4, half_width=4.0, **options)
    return runs.take(np.random.default_rng(1).permutation(12)[:n])


def codes(fit):
    return {warning.code for warning in fit.warnings}


@pytest.mark.parametrize("method", ["auto", "row", "residual"])
@pytest.mark.parametrize("n", [5, 6])
def test_hardly_more_rows_than_parameters_have_no_intervals(isoflop_runs, n, method):
    fit = fit_parametric(few(isoflop_runs, n), bootstrap=replace(SPEC, method=method))
    assert fit.status == "ok"
    assert f"{n} different rows for 5 parameters" in next(
        w.message for w in fit.warnings if w.code == "no_interval"
    )
    at = fit.predict(POINT)
    assert np.isfinite(at.value).all()
    assert np.isnan([at.low, at.high, at.pred_low, at.pred_high]).all()
    assert all(math.isnan(i.low) for i in fit.param_intervals().values())
    assert math.isnan(fit.miss_probability({**POINT}, 2.5, 2.4, np.empty(0)))


def test_few_rows_have_a_posterior_that_is_wider_than_their_refits(isoflop_runs):
    runs = few(isoflop_runs, 9)
    own = fit_parametric(runs, bootstrap=SPEC)
    refits = fit_parametric(runs, bootstrap=replace(SPEC, method="row"))
    assert own.bootstrap.refits == "posterior"
    assert refits.bootstrap.refits == "objective"
    wide, narrow = (fit.interval(lambda law: law.alpha) for fit in (own, refits))
    assert wide.high - wide.low > narrow.high - narrow.low
    again = fit_parametric(runs, bootstrap=SPEC)
    np.testing.assert_array_equal(own.samples, again.samples)


def test_the_order_of_the_rows_does_not_matter(isoflop_runs):
    runs = few(isoflop_runs, 10)
    order = np.random.default_rng(3).permutation(10)
    one, two = (fit_parametric(rows, bootstrap=SPEC) for rows in (runs, runs.take(order)))
    np.testing.assert_allclose(one.samples, two.samples, rtol=1e-6)


def test_equal_rows_are_one_observation(isoflop_runs):
    runs = few(isoflop_runs, 9)
    thrice = runs.take(np.tile(np.arange(9), 3))
    one, three = (fit_parametric(rows, bootstrap=SPEC) for rows in (runs, thrice))
    assert "repeated_rows" in codes(three)
    assert "repeated_rows" not in codes(one)
    np.testing.assert_allclose(one.samples.std(axis=0), three.samples.std(axis=0), rtol=1e-6)
    five = few(isoflop_runs, 5)
    assert "no_interval" in codes(fit_parametric(five.take(np.tile(np.arange(5), 4))))


def test_equal_rows_of_a_large_table_are_resampled_together(isoflop_runs):
    runs = isoflop_runs(sizes=8)
    pairs = runs.take(np.repeat(np.arange(40), 2))
    fit = fit_parametric(pairs, bootstrap=SPEC)
    assert fit.bootstrap.refits == "objective"
    once = fit_parametric(runs, bootstrap=replace(SPEC, method="row"))
    ratio = fit.samples.std(axis=0) / once.samples.std(axis=0)
    assert (ratio > 0.9).all()


def test_one_label_for_all_rows_gives_no_intervals(isoflop_runs):
    runs = replace(isoflop_runs(), cluster=np.full(45, "ladder"))
    fit = fit_parametric(runs, bootstrap=SPEC)
    assert "no_interval" in codes(fit)
    assert "few_clusters" not in codes(fit)
    assert np.isnan(fit.predict(POINT).pred_low).all()
    by_row = fit_parametric(runs, bootstrap=replace(SPEC, method="row"))
    assert np.isfinite(by_row.predict(POINT).pred_low).all()


def test_a_shared_error_of_few_clusters_widens_the_intervals(isoflop_runs):
    runs = isoflop_runs(noise=0.001)
    label = np.tile(np.arange(9), 5) % 5
    shared = np.exp(0.02 * np.random.default_rng(4).standard_normal(5))[label]
    clustered = replace(runs, loss_nats=runs.loss_nats * shared, cluster=label.astype(str))
    fit = fit_parametric(clustered, bootstrap=SPEC)
    assert fit.bootstrap.refits == "posterior"
    assert fit.bootstrap.method == "cluster"
    alone = fit_parametric(replace(runs, cluster=label.astype(str)), bootstrap=SPEC)
    wide, narrow = (each.interval(lambda law: law.E) for each in (fit, alone))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide.low <= 1.82 <= wide.high


def test_the_sampler_has_the_moments_of_a_normal_distribution():
    covariance = np.array([[1.0, 0.9], [0.9, 1.0]])
    inverse = np.linalg.inv(covariance)
    rng = np.random.default_rng(0)
    draws = sample(
        lambda x: -0.5 * np.einsum("si,ij,sj->s", x, inverse, x),
        rng.standard_normal((400, 2)),
        100,
        rng,
    )
    assert draws is not None
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=0.08)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.1)


def test_no_finite_density_has_no_draws():
    rng = np.random.default_rng(0)
    assert sample(lambda x: np.full(len(x), -np.inf), np.zeros((4, 2)), 5, rng) is None
