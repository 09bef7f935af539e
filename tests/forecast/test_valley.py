"""The compute-optimal size at every compute: it exists, is continuous and lies in its interval."""

import math
from pathlib import Path

import numpy as np
import pytest

from scalelab import api
from scalelab.api.data import read_runs, split_runs
from scalelab.forecast.averaged import fit_average
from scalelab.forecast.averaged_forecaster import AveragedForecaster
from scalelab.forecast.averaged_optimum import (
    compute_optimal_size,
    flops_where,
    frontier_points,
    optima,
)
from scalelab.forecast.decide import decide
from scalelab.forecast.decision import Deployment, Limits
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.size_column import fit_counts
from scalelab.forecast.valley import MOST_CHANGE, STEP, Valley, _exponents, valley_of
from scalelab.records.types import Observations
from scalelab.store.public_tables import PREFIX, list_public_tables

TABLES = {public.name for public in list_public_tables()}
WITHOUT_N_OR_D = {
    "routing_moe",
    "scalebench_domain_mixture_train",
    "scalebench_moe_train",
    "scalebench_parallel_train",
    "scalebench_sparsity_train",
    "scalebench_vocab_train",
}


def isoflop_runs(loss, noise=0.002):
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e20, 3), 6)
    N = 0.1 * flops**0.5 * np.tile(np.geomspace(1 / 5, 5, 6), 3)
    D = flops / 6 / N
    losses = loss(N, D) * np.exp(noise * rng.standard_normal(len(N)))
    return Observations(n_params=N, n_tokens=D, loss_nats=losses, flops=flops)


def forecaster_of(found):
    return AveragedForecaster(found=found, fitted=fitted_range(isoflop_runs(chinchilla)))


def chinchilla(N, D):
    return 1.69 + 406 * N**-0.34 + 411 * D**-0.28


@pytest.fixture(scope="module")
def fitted():
    return fit_average(isoflop_runs(chinchilla))


def check_frontier(found, low, high):
    """Check N_opt and D_opt on a grid of the compute; neighbours are a factor of 1.2 apart."""
    flops = np.geomspace(low, high, 2 + int(math.log(high / low) / math.log(1.2)))
    best = optima(found, flops)
    assert best.is_inside.all()
    limits = best.n_limits(0.9)
    assert (limits[0] <= best.n_params).all()
    assert (best.n_params <= limits[1]).all()
    # Both N and D = C / 6 N do not fall, so neither can jump.
    steps = np.diff(np.log(best.n_params)) / np.diff(np.log(flops))
    assert steps.min() > -0.1
    assert steps.max() < 1.1
    decade = int(math.log(10) / math.log(flops[1] / flops[0]))
    drawn = best.log_draws[:, decade:] - best.log_draws[:, :-decade]
    drawn = drawn / math.log(flops[decade] / flops[0])
    low, high = np.quantile(drawn, [0.01, 0.99])
    assert low > -0.1
    assert high < 1.1
    for point in frontier_points(found, flops[::20]):
        assert point.n_params.value * point.n_tokens.value * 6 == pytest.approx(point.flops)
        assert point.n_params.low * point.n_tokens.high * 6 == pytest.approx(point.flops)
        assert point.n_tokens.low <= point.n_tokens.value <= point.n_tokens.high
        assert point.a.low <= point.a.value <= point.a.high


def test_the_frontier_is_continuous_far_beyond_the_runs(fitted):
    check_frontier(fitted, 1e18, 1e23)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLES - WITHOUT_N_OR_D))
def test_every_public_table_has_a_frontier_up_to_1000_times_its_runs(name):
    (public,) = [each for each in list_public_tables() if each.name == name]
    rows, *_ = split_runs(read_runs(Path(PREFIX + name), where=public.where or None))
    flops = 6 * rows.n_params * rows.n_tokens
    check_frontier(fit_counts(rows), flops.min(), 1000 * flops.max())


@pytest.mark.slow
def test_a_minimum_beyond_the_valley_answers_no_question():
    # Far from these runs, Farseer's law says that 400B parameters on 40B tokens are optimal.
    report = api.fit("public:llama3", predict="C=1e23", bootstrap=20)
    (forecast,) = report.forecasts
    assert 12e9 < forecast.n_params.value < 16e9
    decision = api.decide(report, {"flops": 1e23})
    assert decision.best.n_params == pytest.approx(forecast.n_params.value, rel=2e-3)


def test_the_quick_optimum_is_the_same(fitted):
    for flops in (2e17, 1e18, 7e19, 3e21):
        best = optima(fitted, np.array([flops])).n_params[0]
        assert compute_optimal_size(fitted, flops) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("column", ["n_params", "n_tokens"])
def test_the_compute_of_an_optimal_size_is_found(fitted, column):
    flops = 4e21
    N = compute_optimal_size(fitted, flops)
    value = N if column == "n_params" else flops / 6 / N
    assert flops_where(fitted, column, value, 1e20) == pytest.approx(flops, rel=1e-6)


def test_a_valley_that_ends_is_continued_with_its_exponent(fitted, monkeypatch):
    valley = valley_of(fitted)

    def endless(found, grid, log_flops, is_drawn):
        """Return losses that fall with N at each compute."""
        return -np.broadcast_to(grid, (1, *grid.shape))

    monkeypatch.setattr("scalelab.forecast.valley._losses", endless)
    here = np.array([valley.high])
    last = valley.bottoms(here, is_drawn=False)
    among = valley.stepped(last, here - STEP, here, is_drawn=False)
    beyond = valley.stepped(last, here, here + STEP, is_drawn=False)
    assert among[0, 0] - last[0, 0] == pytest.approx(STEP), "tokens do not fall"
    exponent = _exponents(valley, False)[0]
    assert beyond[0, 0] - last[0, 0] == pytest.approx(STEP * (exponent + MOST_CHANGE))
    assert exponent == pytest.approx(0.45, abs=0.1)


def test_losses_of_a_search_do_not_fall_again_beyond_the_valley(fitted):
    flops = 1e21
    N = np.geomspace(1e6, 1e13, 60)
    losses = valley_of(fitted).rising({"n_params": N, "n_tokens": flops / 6 / N})
    best = compute_optimal_size(fitted, flops)
    assert N[losses.argmin()] == pytest.approx(best, rel=0.3)
    right = losses[np.log(N / best) > 1]
    # The points on the way are not those of the grid, so a small fall is left.
    assert np.diff(right).min() > -0.02


@pytest.mark.parametrize("flops", [1e19, 1e21, 1e24])
def test_a_decision_at_one_compute_is_the_compute_optimal_size(fitted, flops):
    answer = decide(forecaster_of(fitted), Limits(flops=flops), Deployment())
    assert answer.best.n_params == pytest.approx(compute_optimal_size(fitted, flops), rel=1e-6)
    assert answer.best.loss_nats == min(c.loss_nats for c in answer.candidates)
    assert all(c.is_in_valley for c in answer.candidates)


def test_a_decision_stays_in_a_valley_from_which_the_loss_falls_away(fitted, monkeypatch):
    """As of Farseer's law with public:olmo_ladder, whose loss falls with N at 4e24 FLOP."""
    flops, shift, bottoms = 1e21, 1.5, Valley.bottoms

    def smaller(self, log_flops, *, is_drawn):
        return bottoms(self, log_flops, is_drawn=is_drawn) - shift

    monkeypatch.setattr(Valley, "bottoms", smaller)
    best = compute_optimal_size(fitted, flops)
    answer = decide(forecaster_of(fitted), Limits(flops=flops), Deployment())
    assert answer.best.n_params == pytest.approx(best, rel=1e-6)
    lower = [c for c in answer.candidates if c.loss_nats < answer.best.loss_nats]
    assert lower, "the loss falls towards larger N"
    assert all(c.exceeded == "valley of the runs" for c in lower)
    assert not any(answer.candidates[i] in lower for i in answer.front)
    assert [c["is_in_valley"] for c in answer.to_dict()["candidates"]].count(False) == len(lower)
    named = [(c.n_params, c.n_tokens) for c in (answer.best, lower[0])]
    assert decide(forecaster_of(fitted), Limits(), Deployment(), named=named).best.n_params == (
        answer.best.n_params
    )
