"""Every interval contains its own value, and that of a new run contains the law's."""

import math
from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.against import disagreement, paired_weights
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.envelope import fit_envelope
from scalelab.fit.intervals import percentile_limits
from scalelab.fit.isoflop import fit_isoflop
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.forecast.allocate import derived, law_forecast, parse_request
from scalelab.forecast.bands import frontier_bands
from scalelab.forecast.extrapolation import fitted_range
from scalelab.records.types import Observations
from scalelab.theory.laws import Chinchilla

TRUTH = Chinchilla(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28)
OBJECTIVES = (
    Objective(),
    Objective(),
    Objective(loss="ls"),
    Objective(loss="lad"),
    Objective(residual="linear"),
    Objective(loss="likelihood", delta=1e-2),
    Objective(overprediction=3.0),
)


def table(seed):
    """Return a random table: design, noise, copies, clusters, and an objective and method."""
    rng = np.random.default_rng(seed)
    budgets, sizes = rng.integers(2, 6), rng.integers(3, 9)
    flops = np.repeat(np.geomspace(1e18, 10 ** rng.uniform(19, 21), budgets), sizes)
    spread = rng.uniform(1.5, 10)
    N = np.sqrt(flops / 120) * np.tile(np.geomspace(1 / spread, spread, sizes), budgets)
    D = flops / 6 / N
    noise = rng.choice([0.0, 1e-4, 0.003, 0.02]) * (
        rng.standard_normal(len(N)) if rng.random() < 0.6 else rng.standard_t(2, len(N))
    )
    if rng.random() < 0.2:
        noise = np.abs(noise)  # under-tuned runs: one-sided
    runs = Observations(
        n_params=N,
        n_tokens=D,
        loss_nats=TRUTH.loss({"n_params": N, "n_tokens": D}) * np.exp(noise),
        flops=flops,
        budget=flops,
    )
    if rng.random() < 0.2:
        runs = runs.take(np.repeat(np.arange(len(N)), 3))
    elif rng.random() < 0.2:
        runs = runs.take(np.sort(rng.permutation(len(N))[: rng.integers(5, 10)]))
    if rng.random() < 0.2:
        labels = rng.integers(0, rng.integers(1, 12), len(runs))
        runs = replace(runs, cluster=labels.astype(str))
    method = rng.choice(["auto", "auto", "auto", "row", "residual"])
    spec = BootstrapSpec(k=40, seed=int(seed), method=str(method))
    form = str(rng.choice([*3 * ["chinchilla"], "tied", "gamma"]))
    return runs, OBJECTIVES[rng.integers(len(OBJECTIVES))], spec, form


def intervals(runs, objective, spec, form):
    """Yield every interval of a fit by name: value, low, high."""
    fit = fit_parametric(
        runs,
        form=form,
        objective=objective,
        bootstrap=spec,
        n_starts=2,
        uses_inflation=spec.seed % 4 == 0,
    )
    for name, i in (*fit.param_intervals().items(), *derived(fit).items()):
        if name not in fit.fixed:
            yield name, i.value, i.low, i.high
    weights = paired_weights(runs, spec, fit)
    isoflop = fit_isoflop(runs, weights=weights)
    for curve in isoflop.curves:
        for minimum in (curve.n_params, curve.n_tokens):
            if minimum.low is not None:
                yield "minimum", minimum.value, minimum.low, minimum.high
    for approach in (isoflop, fit_envelope(runs)):
        for law in (approach.n_law, approach.d_law):
            if law is not None:
                yield "approach", law.exponent, law.interval.low, law.interval.high
    against = disagreement(runs, isoflop, fit, flops=1e22, weights=weights)
    if against is not None:
        yield "against", against.ratio.value, against.ratio.low, against.ratio.high
    if fit.status == "not_identified":
        return
    asked = [parse_request("C=1e22"), parse_request("N=1e8,D=1e10")]
    for f in (law_forecast(fit, each, fitted=fitted_range(runs)) for each in asked):
        for size in (f.n_params, f.n_tokens):
            if size.low != size.high:  # a size that was asked for
                yield "size", size.value, size.low, size.high
        yield "loss", f.loss_nats, f.low, f.high
        yield "new run", f.low, f.pred_low, f.pred_high
        yield "new run", f.high, f.pred_low, f.pred_high
        yield "new run", f.loss_nats, f.pred_low, f.pred_high
    bands = frontier_bands(fit, np.geomspace(1e19, 1e22, 3))
    if bands is not None:
        for name, low, high in (
            ("n_params", "n_params_low", "n_params_high"),
            ("n_tokens", "n_tokens_low", "n_tokens_high"),
            ("loss", "low", "high"),
            ("low", "pred_low", "pred_high"),
            ("high", "pred_low", "pred_high"),
        ):
            ends = (getattr(bands, column) for column in (name, low, high))
            for value, one, other in zip(*ends, strict=True):
                yield f"band of {name}", value, one, other


def check(seed):
    for name, value, low, high in intervals(*table(seed)):
        if math.isnan(value) or (math.isnan(low) and math.isnan(high)):
            continue  # not known, and said so
        assert low <= value <= high, (seed, name, value, low, high)
        assert low < high, (seed, name, "an interval of no width")


def test_intervals_contain_their_own_value():
    for seed in range(8):
        check(seed)


@pytest.mark.slow
def test_intervals_of_many_tables_contain_their_own_value():
    for seed in range(8, 80):
        check(seed)


@pytest.mark.long
def test_intervals_of_hundreds_of_tables_contain_their_own_value():
    for seed in range(80, 500):
        check(seed)


def test_an_interval_is_extended_to_its_value():
    draws = np.linspace(1.0, 2.0, 101)
    assert percentile_limits(draws, 0.9, 1.5) == pytest.approx((1.05, 1.95))
    assert percentile_limits(draws, 0.9, 2.5) == pytest.approx((1.05, 2.5))
    assert percentile_limits(draws, 0.9, 0.5) == pytest.approx((0.5, 1.95))


def test_draws_that_are_all_the_value_are_no_interval():
    assert all(math.isnan(end) for end in percentile_limits(np.full(9, 2.0), 0.9, 2.0))
