from dataclasses import replace

import numpy as np
import pytest

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.speedup import effective_speedup

ALPHA, BETA, E = 0.348, 0.366, 1.82
GAMMA = ALPHA * BETA / (ALPHA + BETA)


def faster(rows, times):
    """Return runs whose loss is that of ``times`` the compute, at the same N and D."""
    reducible = (rows.loss_nats - E) * times**-GAMMA
    return replace(rows, loss_nats=E + reducible)


@pytest.mark.parametrize("times", [0.6, 1.0, 2.5])
def test_a_faster_recipe_has_its_true_speedup(isoflop_runs, times):
    fit = fit_parametric(isoflop_runs(noise=0.0), bootstrap=BootstrapSpec(k=0))
    found = effective_speedup(fit, faster(isoflop_runs(noise=0.0, sizes=5), times))
    assert found.factor.value == pytest.approx(times, rel=1e-4)
    assert found.exponent == pytest.approx(GAMMA, rel=1e-4)
    assert found.spread < 1e-4
    assert (found.n_rows_a, found.n_rows_b) == (45, 25)


def test_the_interval_covers_the_truth_and_shrinks_with_the_noise(isoflop_runs):
    widths = []
    for noise in (0.01, 0.002):
        fit = fit_parametric(isoflop_runs(noise=noise, seed=1), bootstrap=BootstrapSpec(k=200))
        found = effective_speedup(fit, faster(isoflop_runs(noise=noise, seed=2), 1.7))
        assert found.factor.low < 1.7 < found.factor.high
        assert found.factor.low < found.factor.value < found.factor.high
        widths.append(found.factor.high / found.factor.low)
    assert widths[1] < widths[0] ** 0.5


def test_one_outlier_does_not_change_the_speedup(isoflop_runs):
    fit = fit_parametric(isoflop_runs(noise=0.0), bootstrap=BootstrapSpec(k=0))
    recipe_b = faster(isoflop_runs(noise=0.0), 2.0)
    loss = recipe_b.loss_nats.copy()
    loss[3], loss[7] = 9.0, 0.9 * E
    found = effective_speedup(fit, replace(recipe_b, loss_nats=loss))
    assert found.factor.value == pytest.approx(2.0, rel=1e-3)
    assert found.n_below_asymptote == 1


def test_a_recipe_below_the_asymptote_cannot_be_measured(isoflop_runs):
    fit = fit_parametric(isoflop_runs(noise=0.0), bootstrap=BootstrapSpec(k=0))
    rows = isoflop_runs()
    with pytest.raises(UsageError, match="0 rows of recipe B above the asymptote"):
        effective_speedup(fit, replace(rows, loss_nats=np.full(len(rows), 0.9 * E)))


def test_a_recipe_that_is_not_identified_is_an_error(isoflop_runs):
    rows = isoflop_runs()
    one_d = rows.take(np.flatnonzero(rows.n_tokens > 0)[:9])
    fit = fit_parametric(
        replace(one_d, n_tokens=np.full(len(one_d), 1e10)), bootstrap=BootstrapSpec(k=0)
    )
    assert fit.status == "not_identified"
    with pytest.raises(NotIdentifiedError):
        effective_speedup(fit, rows)


def test_a_form_without_an_asymptote_is_an_error(isoflop_runs):
    fit = fit_parametric(isoflop_runs(), form="kaplan", bootstrap=BootstrapSpec(k=0))
    with pytest.raises(UsageError, match="no asymptote"):
        effective_speedup(fit, isoflop_runs())
