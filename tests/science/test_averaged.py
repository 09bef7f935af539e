"""Coverage of the averaged forecaster where the truth is not one fitted form.

IsoFLOP tables of 45 runs: five budgets from 1e18 to 1e20, nine sizes over a factor of 36, centres
off by 15 %, noise of 0.5 %. The loss and the compute-optimal size are forecast at 10, 100 and 1,000
times the largest budget. The printed table goes to results/tables/backtest.md.
"""

import os
from collections.abc import Callable

import numpy as np
import pytest

from scalelab.forecast.averaged import fit_average
from scalelab.forecast.averaged_optimum import optima
from scalelab.records.types import Observations
from scalelab.theory.laws import Farseer

N_TABLES = int(os.environ.get("SCALELAB_SCIENCE_TABLES", "400"))
"""Tables of each truth; 400 take about 10 minutes of one core."""
LEVEL, FEWEST_COVERED = 0.9, 0.85
AHEAD = (1e21, 1e22, 1e23)
NOISE = 0.005


def chinchilla(N, D):
    return 1.69 + 406.0 * N**-0.34 + 411.0 * D**-0.28


def under_tuned(N, D):
    """Return losses of small runs that are not tuned: 3 % too high at 1e18, fading with C."""
    return chinchilla(N, D) * (1 + 0.03 * (6 * N * D / 1e18) ** -0.25)


def drifting(N, D):
    """Return losses whose data exponent grows with log N."""
    beta = 0.28 + 0.012 * np.log(N / 1e8)
    return 1.69 + 406.0 * N**-0.34 + 411.0 * 1e10**-0.28 * (D / 1e10) ** -beta


def gamma(N, D):
    return 1.69 + 0.9 * (406.0 * N**-0.34 + 411.0 * D**-0.28) ** 1.6


def farseer(N, D):
    """Return Farseer's law with published constants (`tests/theory/laws/test_forms.py`)."""
    law = Farseer(s=-0.021, q=0.169, S=0.091, B=88.01, b=-0.1, Q=-6.287, A=-0.124, a=0.123, R=0.424)
    return law.loss({"n_params": N, "n_tokens": D})


def counted_wrongly(N, D):
    """Return losses of models whose N is given without embedding and head (50,304 tokens)."""
    d_model = (N * 64 / 12) ** (1 / 3)
    return chinchilla(N + 2 * 50_304 * d_model, D)


def broken(at):
    """Return losses whose reducible part falls more slowly in C beyond a budget."""

    def loss(N, D):
        return 1.69 + (chinchilla(N, D) - 1.69) * (1 + (6 * N * D / at) ** 0.8) ** 0.075

    return loss


TRUTHS: dict[str, Callable] = {
    "chinchilla": chinchilla,
    "under-tuned small runs": under_tuned,
    "drifting data exponent": drifting,
    "gamma": gamma,
    "Farseer": farseer,
    "N without embeddings": counted_wrongly,
    "break inside the data": broken(1e19),
    "break beyond the data": broken(1e21),
}
MISSED = {
    "Farseer": "the loss; its optimum leaves the sizes that the runs cover",
    "break beyond the data": "the far side of a break",
}
"""Truths that are not covered in every cell, and what is missed: results/tables/backtest.md."""


def optimum(loss, flops):
    """Return the best N with at least one token per parameter.

    Below that, Farseer's law with its published constants falls again, to losses near 0.
    """
    N = np.geomspace(np.sqrt(flops) * 1e-4, np.sqrt(flops / 6), 4000)
    return float(N[np.argmin(loss(N, flops / 6 / N))])


def table(loss, seed):
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 9)
    centres = [optimum(loss, c) * np.exp(0.15 * rng.standard_normal()) for c in flops[::9]]
    N = np.repeat(centres, 9) * np.tile(np.geomspace(1 / 6, 6, 9), 5)
    D = flops / 6 / N
    losses = loss(N, D) * np.exp(NOISE * rng.standard_normal(len(N)))
    return Observations(n_params=N, n_tokens=D, loss_nats=losses, flops=flops)


def scores(loss, n_tables):
    """Return, by table and distance: whether the loss and N_opt are covered, error, half-width."""
    N = np.array([optimum(loss, flops) for flops in AHEAD])
    at = {"n_params": N, "n_tokens": np.array(AHEAD) / 6 / N}
    truth = loss(N, at["n_tokens"])
    rows = []
    for seed in range(n_tables):
        fit = fit_average(table(loss, seed))
        found = fit.predict(at, LEVEL)
        low, high = optima(fit, np.array(AHEAD)).n_limits(LEVEL)
        is_size_covered = (low <= N) & (high >= N)
        covered = (found.low <= truth) & (truth <= found.high)
        error = np.abs(found.value / truth - 1)
        half = np.log(found.high / found.low) / 2
        rows.append(np.stack([covered, is_size_covered, error, half]))
    return np.array(rows)


@pytest.mark.science
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(reason=MISSED[name], strict=True)] if name in MISSED else [],
        )
        for name in TRUTHS
    ],
)
def test_the_loss_is_covered(name):
    found = scores(TRUTHS[name], N_TABLES)
    cells = [
        f"{found[:, 0, i].mean():.2f} | {found[:, 1, i].mean():.2f} | "
        f"{100 * found[:, 2, i].mean():.2f} | {100 * np.median(found[:, 3, i]):.2f}"
        for i in range(len(AHEAD))
    ]
    print(f"\n| {name} | {' | '.join(cells)} |")
    assert found[:, :2].mean(axis=0).min() >= FEWEST_COVERED


@pytest.mark.slow
def test_small_version():
    found = scores(chinchilla, 4)
    assert found[:, 0].mean() >= 0.75
    assert found[:, 2].max() < 0.04
