"""The bent forms: exact slopes, and that they are asked and answer where a table is bent."""

import numpy as np
import pytest

from scalelab.forecast.averaged import fit_average
from scalelab.forecast.averaged_optimum import optima
from scalelab.forecast.bent import (
    FEWEST_ROWS,
    FEWEST_ROWS_OF_A_BREAK,
    Broken,
    Drifting,
    PartlyCounted,
    bent_priors,
)
from scalelab.records.types import Observations

OMEGA = 50_000.0
AHEAD = 1e23


def counted_in_part(N, D):
    return 1.69 + 406.0 * (N + OMEGA * N ** (1 / 3)) ** -0.34 + 411.0 * D**-0.28


def drifting(N, D):
    beta = 0.28 + 0.012 * np.log(N / 1e8)
    return 1.69 + 406.0 * N**-0.34 + 411.0 * 1e10**-0.28 * (D / 1e10) ** -beta


def broken(N, D):
    reducible = 406.0 * N**-0.34 + 411.0 * D**-0.28
    return 1.69 + reducible * (1 + (6 * N * D / 1e19) ** 0.8) ** 0.075


def best(loss, flops):
    N = np.geomspace(1e-4, 1, 4000) * np.sqrt(flops)
    return float(N[np.argmin(loss(N, flops / 6 / N))])


def table(loss, seed):
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e18, 1e20, 5), 9)
    N = np.repeat([best(loss, c) for c in flops[::9]], 9) * np.tile(np.geomspace(1 / 6, 6, 9), 5)
    losses = loss(N, flops / 6 / N) * np.exp(0.002 * rng.standard_normal(len(N)))
    return Observations(n_params=N, n_tokens=flops / 6 / N, loss_nats=losses, flops=flops)


def columns(n):
    return {"n_params": np.geomspace(1e7, 1e9, n), "n_tokens": np.geomspace(1e9, 3e10, n)[::-1]}


@pytest.mark.parametrize("law", [Drifting, PartlyCounted, Broken])
def test_slopes_are_those_of_differences(law):
    rows = columns(FEWEST_ROWS_OF_A_BREAK)
    (prior,) = [each for each in bent_priors(rows) if each.law is law]
    z = np.random.default_rng(0).standard_normal(len(prior.mean)) / 3
    _, slope = prior.log_loss(z, rows)
    for j, unit in enumerate(np.eye(len(z))):
        ends = [prior.log_loss(z + step * unit, rows)[0] for step in (1e-5, -1e-5)]
        np.testing.assert_allclose(slope[:, j], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_at_the_centre_of_its_prior_the_drift_is_chinchilla():
    rows = columns(FEWEST_ROWS)
    (prior,) = [each for each in bent_priors(rows) if each.law is Drifting]
    law = prior.law.from_coordinates(prior.mean)
    assert law.p == law.c == 0.0


def test_without_a_change_of_exponent_a_break_is_chinchilla_and_a_bend_keeps_the_middle():
    rows = columns(FEWEST_ROWS_OF_A_BREAK)
    (prior,) = [each for each in bent_priors(rows) if each.law is Broken]
    assert prior.law.from_coordinates(prior.mean).delta == 0.0
    middle = {name: np.exp(np.log(values).mean(keepdims=True)) for name, values in rows.items()}
    slope = prior.log_loss(np.zeros(len(prior.mean)), middle)[1]
    assert abs(slope[0, 6]) < 1e-12


def test_few_rows_show_no_bend_and_several_counts_are_not_corrected():
    assert bent_priors(columns(FEWEST_ROWS - 1)) == ()
    few, many = columns(FEWEST_ROWS_OF_A_BREAK - 1), columns(FEWEST_ROWS_OF_A_BREAK)
    assert [each.law for each in bent_priors(few, is_only_count=False)] == [Drifting]
    assert [each.law for each in bent_priors(many, is_only_count=False)] == [Drifting, Broken]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("truth", "name"),
    [(drifting, "drifting"), (counted_in_part, "partly counted"), (broken, "broken")],
)
def test_a_bent_truth_is_recognised_and_its_optimum_covered(truth, name):
    found = fit_average(table(truth, 0))
    assert next(iter(found.weights)) == name
    low, high = optima(found, np.array([AHEAD])).n_limits(0.9)
    assert low[0] < best(truth, AHEAD) < high[0]
