from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.envelope import along_curves, fit_envelope
from scalelab.records.types import Curves, Observations

ALPHA, BETA, A, B, E = 0.348, 0.366, 482.0, 2085.0, 1.82


def curves(noise=0.0, sizes=14, seed=1):
    """Return constant-rate training curves: L(N, D) along D for each N."""
    rng = np.random.default_rng(seed)
    n_params, n_tokens, run = [], [], []
    for i, n in enumerate(np.geomspace(2e7, 8e9, sizes)):
        d = np.geomspace(2.0 * n, 300 * n, 40)
        n_params.append(np.full(40, n))
        n_tokens.append(d)
        run.append(np.full(40, f"run{i}"))
    N, D = np.concatenate(n_params), np.concatenate(n_tokens)
    loss = E + A * N**-ALPHA + B * D**-BETA
    return Observations(
        n_params=N,
        n_tokens=D,
        loss_nats=loss * np.exp(noise * rng.standard_normal(len(N))),
        flops=6 * N * D,
        cluster=np.concatenate(run),
    )


def test_the_envelope_of_exact_curves_has_the_exponents_of_the_law():
    fit = fit_envelope(curves())
    assert fit.reason is None
    assert fit.n_law is not None
    assert fit.d_law is not None
    # Sizes differ by factors of 1.6, so the best sizes follow the line only in steps.
    assert fit.n_law.exponent == pytest.approx(BETA / (ALPHA + BETA), abs=0.02)
    assert fit.d_law.exponent == pytest.approx(ALPHA / (ALPHA + BETA), abs=0.02)
    assert fit.n_law.low is not None
    assert fit.n_law.high is not None
    assert fit.n_law.low < fit.n_law.exponent < fit.n_law.high


def test_the_smallest_and_largest_size_are_never_on_the_envelope():
    rows = curves()
    fit = fit_envelope(rows)
    assert fit.n_params.min() > rows.n_params.min() * 1.01
    assert fit.n_params.max() < rows.n_params.max() * 0.99


def test_rows_without_runs_or_with_one_row_each_are_no_curves(isoflop_runs):
    rows = isoflop_runs()
    assert "names the run of each row" in (fit_envelope(rows).reason or "")
    labelled = replace(rows, cluster=np.array([f"r{i}" for i in range(len(rows))]))
    assert (fit_envelope(labelled).reason or "").startswith("0 runs with 3 or more checkpoints")


def test_a_cluster_of_several_sizes_is_not_a_curve():
    rows = curves()
    mixed = replace(rows, cluster=np.full(len(rows), "all"))
    assert fit_envelope(mixed).n_law is None


def test_the_same_seed_gives_the_same_interval_in_any_row_order():
    rows = curves(noise=0.002)
    order = np.random.default_rng(0).permutation(len(rows))
    first, second = fit_envelope(rows, seed=3), fit_envelope(rows.take(order), seed=3)
    assert first.n_law is not None
    assert second.n_law is not None
    assert first.n_law.exponent == pytest.approx(second.n_law.exponent, abs=1e-12)
    assert first.n_law.low == pytest.approx(second.n_law.low, abs=1e-12)


def test_finished_runs_with_their_curves_give_the_envelope_of_the_curves():
    points = curves()
    last = np.flatnonzero(np.append(points.cluster[1:] != points.cluster[:-1], True))
    runs = points.take(last)
    found = Curves(
        run_id=np.append(points.cluster, "a run of another selection"),
        n_tokens=np.append(points.n_tokens, 1e9),
        loss_nats=np.append(points.loss_nats, 0.1),
    )
    fit = fit_envelope(along_curves(runs, found))
    assert fit.n_curves == len(runs)
    assert fit.n_law.exponent == pytest.approx(fit_envelope(points).n_law.exponent, rel=1e-9)
    assert along_curves(runs, None) is runs


def test_many_curves_get_a_coarser_grid():
    fine, coarse = fit_envelope(curves(sizes=14)), fit_envelope(curves(sizes=2000))
    assert len(coarse.flops) < len(fine.flops)
    assert coarse.n_law.exponent == pytest.approx(BETA / (ALPHA + BETA), abs=0.02)
