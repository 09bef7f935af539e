"""Efficient refits: noise scale, leverage, and the checks that fall back on the objective."""

import numpy as np
import pytest

from scalelab.fit.against import paired_weights
from scalelab.fit.bootstrap import BootstrapSpec, ResamplingPlan
from scalelab.fit.efficient import (
    fit_efficient,
    has_curved_residuals,
    newton_steps,
    noise_scale,
)
from scalelab.fit.newton import Box
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import box_of, fit_parametric
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import row_model_of
from scalelab.fit.replicates import Optimum, refit, stretched
from scalelab.fit.row_model import Rows
from scalelab.records.types import Observations
from scalelab.theory.laws import Chinchilla

K = 300


def noisy(runs, noise):
    return Observations(
        n_params=runs.n_params,
        n_tokens=runs.n_tokens,
        loss_nats=runs.loss_nats * np.exp(noise),
        flops=runs.flops,
        budget=runs.budget,
    )


def by_size(runs, rng, scale=0.01):
    return scale * (runs.flops / runs.flops.min()) ** -0.4 * rng.standard_normal(len(runs))


def width(fit):
    interval = fit.interval(lambda law: law.a)
    return interval.high - interval.low


def test_noise_scale_follows_compute():
    rng = np.random.default_rng(0)
    compute = np.exp(rng.uniform(40, 50, 20_000))
    sigma = 0.01 * (compute / np.exp(45)) ** -0.3
    found = noise_scale(sigma * rng.standard_normal(20_000), compute)
    # 20,000 rows give the level to 0.5 % and the exponent to 0.002, over 5 in log compute
    assert np.abs(np.log(found / sigma)).max() < 0.03


def test_noise_scale_of_one_compute_is_the_mean_deviation():
    r = np.array([0.01, -0.03, 0.02])
    expected = 0.02 * np.sqrt(np.pi / 2)
    assert noise_scale(r, np.full(3, 1e20)) == pytest.approx(expected)
    assert noise_scale(r, None) == pytest.approx(expected)


def test_no_noise_has_no_scale():
    assert noise_scale(np.zeros(8), np.geomspace(1, 10, 8)) is None


def test_shaped_weights_have_mean_one_and_the_requested_variance():
    shape = np.array([0.5, 0.8, 1.0])
    (weights,) = ResamplingPlan(method="row", k=200_000, n=3, shape=shape).weights(200_000)
    assert weights.mean(axis=0) == pytest.approx(np.ones(3), abs=0.02)
    assert weights.var(axis=0) == pytest.approx(1 / shape, rel=0.03)


def test_intervals_are_narrower_where_small_runs_are_noisier(isoflop_runs):
    clean = isoflop_runs(noise=0.0, sizes=20)
    ratios = []
    for seed in range(4):
        runs = noisy(clean, by_size(clean, np.random.default_rng(seed)))
        efficient = fit_parametric(runs, bootstrap=BootstrapSpec(k=K))
        own = fit_parametric(runs, bootstrap=BootstrapSpec(k=K, method="row"))
        assert efficient.bootstrap.refits == "efficient"
        assert own.bootstrap.refits == "objective"
        assert efficient.params == own.params
        ratios.append(width(efficient) / width(own))
    # noise that falls by 6 from the smallest budget to the largest
    assert np.mean(ratios) < 0.85


def test_asymmetric_noise_keeps_the_refits_of_the_objective(isoflop_runs):
    """With under-tuned small models, the median and the mean of the noise differ."""
    clean = isoflop_runs(sizes=40, noise=0.001)
    rng = np.random.default_rng(1)
    small = (clean.n_params / clean.n_params.min()) ** -0.5
    asymmetric = noisy(
        clean, 0.2 * small * rng.exponential(size=len(clean)) * (rng.random(len(clean)) < 0.3)
    )
    fit = fit_parametric(asymmetric, bootstrap=BootstrapSpec(k=K))
    own = fit_parametric(asymmetric, bootstrap=BootstrapSpec(k=K, method="row"))
    assert fit.bootstrap.refits == "objective"
    np.testing.assert_array_equal(fit.samples, own.samples)


@pytest.mark.parametrize(
    ("objective", "spec"),
    [
        (Objective(loss="ls"), BootstrapSpec(k=50)),
        (Objective(overprediction=3.0), BootstrapSpec(k=50)),
        (Objective(weight="n_tokens"), BootstrapSpec(k=50)),
        (Objective(), BootstrapSpec(k=50, method="row")),
        (Objective(), BootstrapSpec(k=50, weighting="counts")),
        (Objective(), BootstrapSpec(weights=np.ones((3, 45)))),
    ],
)
def test_a_chosen_resampling_method_is_used(isoflop_runs, objective, spec):
    fit = fit_parametric(isoflop_runs(), objective=objective, bootstrap=spec)
    assert fit.bootstrap.refits == "objective"
    assert fit.shape is None


def test_approach_2_is_resampled_under_the_same_weights(isoflop_runs):
    runs = isoflop_runs()
    spec = BootstrapSpec(k=2000)
    fit = fit_parametric(runs, bootstrap=spec)
    weights = paired_weights(runs, spec, fit)
    assert fit.bootstrap.refits == "efficient"
    assert weights.mean(axis=0) == pytest.approx(np.ones(len(runs)), abs=0.15)
    # The variance of 2,000 draws of a skewed weight has a standard error of 8 %.
    assert weights.var(axis=0) == pytest.approx(1 / fit.shape, rel=0.4)
    order = np.random.default_rng(2).permutation(len(runs))
    shuffled = runs.take(order)
    again = paired_weights(shuffled, spec, fit_parametric(shuffled, bootstrap=spec))
    np.testing.assert_allclose(again, weights[:, order], rtol=1e-9)


def test_few_replicates_are_the_first_of_many(isoflop_runs):
    runs = isoflop_runs()
    few = fit_parametric(runs, bootstrap=BootstrapSpec(k=20))
    many = fit_parametric(runs, bootstrap=BootstrapSpec(k=400))
    assert few.bootstrap.k == 20
    np.testing.assert_allclose(few.samples, many.samples[:20], rtol=1e-12)


def test_steps_are_the_first_order_of_refits(isoflop_runs):
    """With weights within 1e-4 of 1, a Newton step equals a refit."""
    runs = isoflop_runs()
    columns = {"n_params": runs.n_params, "n_tokens": runs.n_tokens}
    rows = Rows(runs.loss_nats, np.ones(len(runs)), "log")
    box, model = box_of(Chinchilla, {}), row_model_of(Chinchilla, columns)
    law = fit_parametric(runs, bootstrap=BootstrapSpec(k=0)).law
    best = model.eta(law.to_coordinates()[None])[0]
    optimum = Optimum(model=model, eta=best, rows=rows, penalty=Penalty(delta=1e-3), box=box)
    found = fit_efficient(optimum, runs.n_params * runs.n_tokens)
    weights = 1 + 1e-4 * np.random.default_rng(0).standard_normal((20, len(runs)))
    near = ResamplingPlan(method="weights", k=20, n=len(runs), given=weights)
    steps = newton_steps(found, near)
    refits = refit(found, near)
    exact = refits.eta - found.eta
    assert np.abs(exact).max() > 1e-6
    np.testing.assert_allclose(steps, exact, rtol=0.02, atol=1e-3 * np.abs(exact).max())


def test_deviations_have_students_tails():
    far = np.full(2, 1e9)
    box = Box(free=np.ones(2, bool), scales=np.ones(2, bool), low=-far, high=far)
    normal = np.random.default_rng(5).standard_normal((200_000, 2))
    draws = stretched(np.zeros(2), normal, 6, box, seed=0)
    # Student's t with 8 - 2 degrees of freedom, from its table
    assert np.quantile(draws, 0.95) == pytest.approx(1.943, rel=0.01)
    assert np.quantile(draws, 0.995) == pytest.approx(3.707, rel=0.02)


def test_curved_residuals_are_detected_and_noise_is_not():
    rng = np.random.default_rng(0)
    columns = {"n_params": np.geomspace(1e7, 1e9, 60), "n_tokens": rng.uniform(1e9, 1e11, 60)}
    noise = rng.standard_normal((200, 60))
    assert np.mean([has_curved_residuals(z, columns) for z in noise]) < 0.04
    u = np.linspace(-1, 1, 60)
    assert np.mean([has_curved_residuals(z + 5 * u * u, columns) for z in noise]) > 0.95


def test_a_form_that_does_not_fit_keeps_the_refits_of_the_objective(isoflop_runs):
    runs = isoflop_runs(sizes=12)
    ahead = np.log10(runs.flops / runs.flops.min())
    bent = noisy(runs, 0.02 * np.cos(np.pi * ahead))
    assert fit_parametric(runs, bootstrap=BootstrapSpec(k=20)).bootstrap.refits == "efficient"
    assert fit_parametric(bent, bootstrap=BootstrapSpec(k=20)).bootstrap.refits == "objective"
