"""Local interpolation of isoFLOP curves."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.interpolate import Akima1DInterpolator

from scalelab import api
from scalelab.cli.fit_page import print_page
from scalelab.fit.isoflop import fit_isoflop
from scalelab.fit.local_minima import akima, local_law
from scalelab.forecast.headline import headline
from scalelab.records.types import Observations
from scalelab.report.html import exponents
from scalelab.theory.laws import Chinchilla

STEEP = Chinchilla(A=12_000.0, B=30.0, E=1.69, alpha=0.5, beta=0.15)


@pytest.mark.parametrize("n", [3, 4, 12])
def test_the_interpolant_is_that_of_scipy(n):
    rng = np.random.default_rng(n)
    x = np.sort(rng.standard_normal(n))
    y = np.stack([*rng.standard_normal((20, n)), np.ones(n), 2 * x, np.maximum(x, x[n // 2])])
    at = np.linspace(x[0], x[-1], 101)
    np.testing.assert_allclose(akima(x, y, at), Akima1DInterpolator(x, y.T)(at).T, atol=1e-11)


def drifting(noise=0.0, seed=0):
    """Return wide grids that drift from the optimum of a law with very unequal exponents."""
    budgets = np.geomspace(1e17, 1e20, 6)
    flops = np.repeat(budgets, 12)
    best = STEEP.optimal(flops)[0] * np.repeat(np.geomspace(1, 3, 6), 12)
    N = best * np.tile(np.geomspace(1 / 16, 16, 12), 6)
    D = flops / 6 / N
    loss = STEEP.loss({"n_params": N, "n_tokens": D})
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    return Observations(n_params=N, n_tokens=D, loss_nats=loss, flops=flops, budget=flops)


def test_local_minima_have_no_bias_where_parabolas_do():
    runs = drifting()
    fit = fit_isoflop(runs)
    assert abs(fit.n_law.exponent - STEEP.a) > 0.02
    assert local_law(runs, fit, "n").exponent == pytest.approx(STEEP.a, abs=0.004)
    assert local_law(runs, fit, "d").exponent == pytest.approx(STEEP.b, abs=0.004)


def test_the_interval_contains_its_value_and_mostly_the_truth():
    covered = []
    for seed in range(20):
        runs = drifting(noise=0.002, seed=seed)
        law = local_law(runs, fit_isoflop(runs), "n")
        assert law.low <= law.exponent <= law.high
        covered.append(law.low <= STEEP.a <= law.high)
    assert np.mean(covered) >= 0.75


def test_few_sizes_have_no_local_minimum():
    runs = drifting()
    few = runs.take(np.flatnonzero(np.tile(np.arange(12) % 3 == 0, 6)))
    assert local_law(few, fit_isoflop(few), "n") is None


def test_repeats_of_a_size_count_with_their_lowest_loss():
    runs = drifting()
    worse = replace(runs, loss_nats=1.1 * runs.loss_nats)
    both = Observations(
        **{
            name: np.concatenate([getattr(runs, name), getattr(worse, name)])
            for name in ("n_params", "n_tokens", "loss_nats", "flops", "budget")
        }
    )
    one, two = (local_law(rows, fit_isoflop(rows), "n") for rows in (runs, both))
    assert two.exponent == pytest.approx(one.exponent, abs=1e-9)


def test_the_report_the_terminal_and_the_page_have_both_exponents():
    runs = drifting(noise=0.002)
    frame = pd.DataFrame(
        {name: getattr(runs, name) for name in ("n_params", "n_tokens", "loss_nats", "flops")}
    )
    report = api.fit(frame, bootstrap=20)
    law = local_law(runs, report.isoflop, "n")
    assert dict(exponents(report))["approach 2, local minima"] == law.interval
    page = Console(width=200, record=True, file=StringIO())
    print_page(report, headline(report), page, details=False)
    (row,) = (line for line in page.export_text().splitlines() if "2, local minima" in line)
    assert f"{law.exponent:.4g}" in row
    second = report.to_dict()["approaches"]["2"]
    assert second["local"]["a"]["value"] == local_law(runs, report.isoflop, "n").exponent
    assert second["local"]["b"]["low"] <= second["local"]["b"]["value"]
