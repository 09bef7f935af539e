import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.fit.isoflop import (
    budgets_of,
    expected_bias,
    fit_isoflop,
    replicate_laws,
)
from scalelab.records.types import Observations
from scalelab.store.read_options import ReadOptions
from scalelab.store.tables import read_table

GOLDEN = Path(__file__).parents[1] / "golden"
with (GOLDEN / "approach2_bias.toml").open("rb") as stream:
    BIAS = tomllib.load(stream)


def optimum(surface, flops):
    alpha, beta = surface["alpha"], surface["beta"]
    G = (alpha * surface["A"] / (beta * surface["B"])) ** (1 / (alpha + beta))
    return (flops / 6) ** (alpha / (alpha + beta)) / G


def simulated(surface, half_width, offsets):
    budgets = np.array(BIAS["budgets"])
    spread = np.linspace(-1, 1, BIAS["points"]) * np.log(half_width)
    D = (optimum(surface, budgets) * np.exp(offsets))[:, None] * np.exp(spread)
    C = np.broadcast_to(budgets[:, None], D.shape)
    N = C / (6 * D)
    loss = (
        surface["E"] + surface["A"] * N ** -surface["alpha"] + surface["B"] * D ** -surface["beta"]
    )
    N, D, C, loss = (np.ravel(column).copy() for column in (N, D, C, loss))
    return Observations(n_params=N, n_tokens=D, loss_nats=loss, flops=C, budget=C)


@pytest.mark.parametrize("kind", ["centred", "off_centre", "drifting"])
@pytest.mark.parametrize("surface", BIAS["surface"], ids=lambda surface: surface["name"])
def test_the_published_bias_of_approach_2_to_its_printed_digits(surface, kind):
    count = len(BIAS["budgets"])
    offsets = {
        "centred": np.zeros(count),
        "off_centre": np.full(count, np.log(3)),
        "drifting": np.linspace(0, np.log(3), count),
    }[kind]
    truth = optimum(surface, BIAS["flops"])
    found = []
    for half_width in BIAS["half_widths"]:
        fit = fit_isoflop(simulated(surface, half_width, offsets), keeps_edges=True)
        assert fit.d_law is not None
        found.append(100 * (fit.d_law.at(BIAS["flops"]) / truth - 1))
    np.testing.assert_allclose(found, surface[kind], atol=0.00501)


def test_the_expected_bias_is_the_bias_of_a_clean_simulation(isoflop_runs):
    surface = BIAS["surface"][1]
    clean = simulated(surface, 8.0, np.full(5, np.log(3)))
    noisy = replace(clean, loss_nats=clean.loss_nats * 1.01)

    truth = optimum(surface, BIAS["flops"])
    bias = expected_bias(noisy, fit_isoflop(noisy), clean.loss_nats, truth, BIAS["flops"])
    assert bias == pytest.approx(0.0338, abs=5.01e-5)


@pytest.mark.parametrize(
    ("where", "a", "b", "n_opt"),
    [(None, 0.498, 0.505, 61.5e9), ("excluded_besiroglu = 0", 0.513, 0.488, 68.6e9)],
)
def test_plain_parabolas_over_the_nine_chinchilla_budgets(tables, where, a, b, n_opt):
    path = tables / "chinchilla" / "data.csv"
    rows = read_table(path, ReadOptions(where=where)).observations
    fit = fit_isoflop(rows, keeps_edges=True)
    assert len(fit.used) == 9
    assert fit.n_law is not None
    assert fit.d_law is not None
    assert fit.n_law.exponent == pytest.approx(a, abs=5e-4)
    assert fit.d_law.exponent == pytest.approx(b, abs=5e-4)
    assert fit.n_law.at(5.76e23) == pytest.approx(n_opt, rel=1e-3)


def test_the_llama_3_parabolas(tables):
    rows = read_table(tables / "llama3" / "data.csv").observations
    fit = fit_isoflop(rows)
    assert fit.is_grouped
    assert len(fit.interior) == 10
    assert fit.n_law is not None
    assert fit.d_law is not None
    assert fit.n_law.exponent == pytest.approx(0.4632, abs=5e-5)
    assert fit.d_law.exponent == pytest.approx(0.5368, abs=5e-5)
    assert np.exp(fit.d_law.log_coefficient) == pytest.approx(0.2994, abs=5e-5)
    assert fit.n_law.at(3.8e25) == pytest.approx(393.3e9, rel=2e-4)
    assert fit.d_law.at(3.8e25) == pytest.approx(16.1e12, rel=4e-3)


@pytest.mark.parametrize(("side", "edge"), [(4.0, "below"), (0.25, "above")])
def test_a_minimum_outside_its_grid_is_flagged_and_left_out(isoflop_runs, side, edge):
    rows = isoflop_runs(noise=0.0, half_width=3.0)
    moved = rows.budget == 1e19
    n_params = np.where(moved, rows.n_params * side, rows.n_params)
    n_tokens = rows.flops / (6 * n_params)
    loss = 1.82 + 482.0 * n_params**-0.348 + 2085.0 * n_tokens**-0.366
    fit = fit_isoflop(replace(rows, n_params=n_params, n_tokens=n_tokens, loss_nats=loss))
    outside = [curve for curve in fit.curves if not curve.is_interior]
    assert [curve.budget for curve in outside] == [1e19]
    assert outside[0].n_params.edge == edge
    assert len(fit.used) == 4
    assert fit.n_law is not None
    assert fit.n_law.exponent == pytest.approx(0.366 / 0.714, abs=0.01)


def test_losses_that_are_not_convex_have_no_minimum(isoflop_runs):
    rows = isoflop_runs(noise=0.0)
    upside_down = replace(rows, loss_nats=10 - rows.loss_nats)
    fit = fit_isoflop(upside_down, keeps_edges=True)
    assert {curve.n_params.edge for curve in fit.curves} == {"not_convex"}
    assert fit.n_law is None
    assert fit.reason is not None
    assert fit.reason.startswith("only 0 of 5 budgets")


def test_rows_at_equal_flops_are_grouped_within_ten_per_cent(isoflop_runs):
    rows = isoflop_runs()
    rng = np.random.default_rng(3)
    flops = rows.flops * rng.uniform(0.91, 1.09, len(rows))
    budget, is_grouped = budgets_of(replace(rows, budget=None, flops=flops))
    assert is_grouped
    assert len(np.unique(budget)) == 5
    np.testing.assert_allclose(budget, rows.flops, rtol=0.05)


def test_runs_of_one_size_or_without_equal_compute_are_not_a_curve():
    rng = np.random.default_rng(5)
    scattered = Observations(
        n_params=10 ** rng.uniform(7, 9, 8),
        n_tokens=10 ** rng.uniform(9, 10, 8),
        loss_nats=rng.uniform(2, 3, 8),
        flops=10 ** np.linspace(15, 22, 8),
    )
    assert np.isnan(budgets_of(scattered)[0]).all()
    copies = replace(scattered, n_params=np.full(8, 3e8), flops=np.full(8, 1e18))
    assert fit_isoflop(copies).curves == ()


def test_the_interval_on_a_minimum_covers_at_its_level(isoflop_runs):
    truth = (0.348 * 482 / (0.366 * 2085)) ** (1 / 0.714) * (1e19 / 6) ** (0.366 / 0.714)
    hits = total = 0
    for seed in range(150):
        rows = isoflop_runs(noise=0.004, seed=seed, half_width=3.0, budgets=(1e18, 1e19))
        minimum = fit_isoflop(rows, level=0.9).curves[1].n_params
        if minimum.low is not None and minimum.high is not None:
            total += 1
            hits += minimum.low <= truth <= minimum.high
    # The parabola's own bias at this half-width is far below the noise. Binomial, 150 draws:
    # 0.9 +- 4 standard errors of 0.0245.
    assert total >= 145
    assert 0.80 <= hits / total <= 0.98


def test_three_points_give_a_minimum_without_an_interval(isoflop_runs):
    fit = fit_isoflop(isoflop_runs(sizes=3, half_width=3.0, noise=0.0))
    assert fit.interior
    assert all(curve.n_params.low is None for curve in fit.curves)


def test_a_replicate_that_repeats_the_data_repeats_the_fit(isoflop_runs):
    rows = isoflop_runs()
    fit = fit_isoflop(rows)
    weights = np.vstack([np.ones(len(rows)), 2 * np.ones(len(rows))])
    for axis, law in (("n", fit.n_law), ("d", fit.d_law)):
        assert law is not None
        lines = replicate_laws(rows, fit, weights, axis)
        np.testing.assert_allclose(lines[:, 0], law.exponent, rtol=1e-9)
        np.testing.assert_allclose(lines[:, 1], law.log_coefficient, rtol=1e-7)


def test_a_replicate_without_two_curves_is_nan(isoflop_runs):
    rows = isoflop_runs()
    fit = fit_isoflop(rows)
    only_one = (rows.budget == 1e19).astype(float)[None]
    assert np.isnan(replicate_laws(rows, fit, only_one, "n")).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 50))
def test_order_and_units_of_n_do_not_matter(seed, scale):
    rng = np.random.default_rng(seed)
    flops = np.repeat([1e18, 1e19, 1e20], 6)
    n_params = np.exp(rng.uniform(15, 21, len(flops)))
    loss = 2 + 0.05 * (np.log(n_params) - 18) ** 2 + 0.001 * rng.standard_normal(len(flops))
    rows = Observations(
        n_params=n_params,
        n_tokens=flops / (6 * n_params),
        loss_nats=loss,
        flops=flops,
        budget=flops,
    )
    order = rng.permutation(len(flops))
    first = fit_isoflop(rows, keeps_edges=True)
    second = fit_isoflop(rows.take(order), keeps_edges=True)
    scaled = fit_isoflop(replace(rows, n_params=n_params * scale), keeps_edges=True)
    assert first.n_law is not None
    assert second.n_law is not None
    assert scaled.n_law is not None
    assert second.n_law.exponent == pytest.approx(first.n_law.exponent, abs=1e-9)
    assert scaled.n_law.exponent == pytest.approx(first.n_law.exponent, abs=1e-9)
    assert scaled.n_law.at(1e19) == pytest.approx(scale * first.n_law.at(1e19), rel=1e-6)


def test_curves_of_equal_row_weights_keep_their_minimum_and_change_their_weight(isoflop_runs):
    rows = isoflop_runs(noise=0.003)
    fit = fit_isoflop(rows)
    drawn = np.random.default_rng(0).exponential(size=(50, 5))
    weights = np.repeat(drawn, 9, axis=1)
    found = replicate_laws(rows, fit, weights, "n")
    log_c = np.log([curve.budget for curve in fit.curves])
    log_n = np.log([curve.n_params.value for curve in fit.curves])
    expected = [np.polyfit(log_c, log_n, 1, w=np.sqrt(row)) for row in drawn]
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    whole = fit_isoflop(rows, weights=weights)
    assert whole.n_law.high - whole.n_law.low > 1e-3


def test_the_interval_of_d_follows_from_that_of_n_where_compute_is_given(isoflop_runs):
    rows = isoflop_runs(noise=0.02, half_width=3.0)
    # as in tables whose budgets are inferred: each row's compute is within 5 % of its budget
    shifts = np.random.default_rng(3).uniform(-0.05, 0.05, len(rows))
    found = fit_isoflop(replace(rows, n_tokens=rows.n_tokens * np.exp(shifts)))
    bounded = [curve for curve in found.interior if curve.n_params.low is not None]
    assert len(bounded) >= 2
    for curve in bounded:
        n, d = curve.n_params, curve.n_tokens
        # C = 6 N D: as many times as N may be larger, D may be smaller
        assert d.high / d.value == pytest.approx(n.value / n.low, rel=0.1)
        assert d.value / d.low == pytest.approx(n.high / n.value, rel=0.1)
    for curve in found.interior:
        if curve.n_params.low is None:
            assert (curve.n_tokens.low, curve.n_tokens.high) == (None, None)
