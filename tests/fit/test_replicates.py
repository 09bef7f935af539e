"""Replicate fits: compiled or not, by rows or by residuals."""

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric

pytest.importorskip("numba")


@pytest.mark.parametrize(
    ("objective", "method"),
    [
        (Objective(), "row"),
        (Objective(), "auto"),
        (Objective(loss="ls", residual="linear"), "row"),
        (Objective(overprediction=4.0), "row"),
    ],
    ids=["huber", "efficient", "ls-linear", "asymmetric"],
)
def test_numba_and_numpy_agree(isoflop_runs, objective, method):
    spec = BootstrapSpec(k=40, method=method)
    runs = isoflop_runs()
    plain = fit_parametric(runs, objective=objective, bootstrap=spec, use_numba="no")
    compiled = fit_parametric(runs, objective=objective, bootstrap=spec, use_numba="yes")
    assert plain.failed == compiled.failed == 0
    assert plain.bootstrap.refits == ("efficient" if method == "auto" else "objective")
    # both stop when a whole step gains less than 1e-10 of the objective
    np.testing.assert_allclose(plain.samples, compiled.samples, rtol=1e-4)


def test_residual_bootstrap_matches_the_noise(isoflop_runs):
    runs = isoflop_runs(sizes=12)
    ls = Objective(loss="ls")
    by_residual = fit_parametric(
        runs, objective=ls, bootstrap=BootstrapSpec(k=300, method="residual")
    )
    by_row = fit_parametric(runs, objective=ls, bootstrap=BootstrapSpec(k=300))
    assert by_residual.bootstrap.method == "residual"
    ratio = by_residual.samples.std(axis=0) / by_row.samples.std(axis=0)
    np.testing.assert_allclose(ratio, 1.0, atol=0.35)
