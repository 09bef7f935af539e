"""Replicate fits by weights, by rows and by residuals, and the leverage of clusters."""

from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import box_of, fit_parametric
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import row_model_of
from scalelab.fit.replicates import Optimum, cluster_leverages, leverages
from scalelab.fit.row_model import Rows
from scalelab.theory.laws import Chinchilla


@pytest.mark.parametrize(
    "objective",
    [Objective(), Objective(loss="ls", residual="linear"), Objective(overprediction=4.0)],
    ids=["huber", "ls-linear", "asymmetric"],
)
def test_a_replicate_is_the_fit_of_its_weighted_rows(isoflop_runs, objective):
    runs = isoflop_runs()
    weights = np.random.default_rng(4).exponential(size=(6, len(runs)))
    found = fit_parametric(runs, objective=objective, bootstrap=BootstrapSpec(weights=weights))
    assert found.failed == 0
    for sample, weight in zip(found.samples, weights, strict=True):
        alone = fit_parametric(
            replace(runs, extra={"weight": weight}),
            objective=replace(objective, weight="weight"),
            bootstrap=BootstrapSpec(k=0),
        )
        # a replicate stops when a whole step gains less than 1e-10 of the objective
        np.testing.assert_allclose(list(alone.params.values()), sample, rtol=1e-4)


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


def test_a_cluster_unlike_the_others_has_a_high_leverage():
    N = np.repeat([1e8, 2e8, 4e8, 1e9, 3e9], 4)
    D = np.tile([2e9, 8e9, 3e10, 1e11], 5)
    columns = {"n_params": N, "n_tokens": D}
    law = Chinchilla(A=482.0, B=2085.4, E=1.817, alpha=0.3478, beta=0.3659)
    model = row_model_of(Chinchilla, columns)
    rows = Rows(law.loss(columns), np.ones(20), "log")
    eta = model.eta(law.to_coordinates()[None])[0]
    box = box_of(Chinchilla, {})
    member = np.repeat(np.arange(5), 4)
    optimum = Optimum(model=model, eta=eta, rows=rows, penalty=Penalty(delta=1e-3), box=box)
    pulls = cluster_leverages(optimum, member)
    alone = cluster_leverages(optimum, np.arange(20))
    np.testing.assert_allclose(alone, leverages(optimum), rtol=1e-9)
    assert (pulls.reshape(5, 4) == pulls[::4, None]).all()
    # the largest eigenvalue of a block lies between its largest diagonal entry and its trace
    assert (pulls >= alone - 1e-12).all()
    assert (pulls <= np.repeat(alone.reshape(5, 4).sum(axis=1), 4) + 1e-12).all()
