"""Profile intervals."""

import numpy as np
import pytest
from scipy.stats import t as student

from scalelab.errors import DataError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.profile import profile_interval, profile_intervals
from scalelab.records.types import Observations

NO_REPLICATES = BootstrapSpec(k=0)


def power_law_rows(n=40, noise=0.02):
    rng = np.random.default_rng(8)
    flops = np.exp(rng.uniform(40, 50, n))
    lr = 0.3 * flops**-0.125 * np.exp(noise * rng.standard_normal(n))
    return Observations(
        n_params=flops, n_tokens=flops, loss_nats=flops, flops=flops, extra={"lr": lr}
    )


def test_least_squares_of_a_linear_model_is_the_t_interval():
    rows = power_law_rows()
    fit = fit_parametric(
        rows, form="lr_compute", objective=Objective(loss="ls"), bootstrap=NO_REPLICATES
    )
    interval = profile_interval(rows, fit, "p")
    x, n = np.log(rows.flops), len(rows)
    s = np.sqrt((fit.residuals**2).sum() / (n - 2) / ((x - x.mean()) ** 2).sum())
    half = student.ppf(0.95, n - 2) * s
    assert interval.low == pytest.approx(fit.params["p"] - half, rel=1e-6)
    assert interval.high == pytest.approx(fit.params["p"] + half, rel=1e-6)


def test_robust_intervals_are_near_the_bootstrap(isoflop_runs):
    runs = isoflop_runs(sizes=15, noise=0.004)
    fit = fit_parametric(runs, bootstrap=BootstrapSpec(k=400))
    profiles, bootstraps = profile_intervals(runs, fit), fit.param_intervals()
    assert set(profiles) == {"A", "B", "E", "alpha", "beta"}
    for name in ("alpha", "beta", "E"):
        one, other = profiles[name], bootstraps[name]
        assert one.low < one.value < one.high
        ratio = (one.high - one.low) / (other.high - other.low)
        assert 0.6 < ratio < 1.5


def test_what_cannot_be_profiled(isoflop_runs):
    runs = isoflop_runs()
    fit = fit_parametric(runs, bootstrap=NO_REPLICATES)
    with pytest.raises(UsageError, match="parameter gamma"):
        profile_interval(runs, fit, "gamma")
    few = runs.take(np.arange(5))
    with pytest.raises(DataError, match="5 rows for 5"):
        profile_interval(few, fit_parametric(few, bootstrap=NO_REPLICATES), "alpha")
