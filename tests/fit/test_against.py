from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.against import disagreement, disagreement_warnings, paired_weights
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.isoflop import fit_isoflop
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.store.read_options import ReadOptions
from scalelab.store.tables import read_table
from scalelab.theory.laws.data_constrained import DataConstrained


def compared(rows, *, k=200, flops=1e24, form="chinchilla"):
    spec = BootstrapSpec(k=k)
    fit = fit_parametric(rows, form=form, bootstrap=spec)
    weights = paired_weights(rows, spec, fit)
    isoflop = fit_isoflop(rows, weights=weights)
    return disagreement(rows, isoflop, fit, flops=flops, weights=weights)


def test_narrow_centred_grids_on_a_symmetric_law_agree(isoflop_runs):
    rows = isoflop_runs(alpha=0.31, beta=0.31, A=400.0, B=400.0, half_width=2.5, noise=0.001)
    found = compared(rows, flops=1e21)
    assert found is not None
    assert found.ratio.low < 1 < found.ratio.high
    assert not found.is_significant
    assert disagreement_warnings(found) == ()


def test_a_wide_grid_on_an_asymmetric_law_disagrees_by_its_known_bias(isoflop_runs):
    rows = isoflop_runs(
        alpha=0.465, beta=0.155, A=400.0, B=400.0, half_width=16.0, sizes=15, noise=1e-4
    )
    found = compared(rows)
    assert found is not None
    # The published bias at this half-width is -23.12 % from 15 points a budget.
    assert found.ratio.value - 1 == pytest.approx(-0.231, abs=0.02)
    assert found.expected_bias == pytest.approx(-0.231, abs=0.002)
    assert found.is_significant
    (warning,) = disagreement_warnings(found)
    assert warning.code == "approaches_disagree"
    assert "-23." in warning.message or "-22." in warning.message


def test_a_difference_within_the_noise_is_not_a_warning(isoflop_runs):
    found = compared(isoflop_runs(noise=0.02, half_width=3.0), flops=1e24)
    assert found is not None
    assert abs(found.ratio.value - 1) > 0.05
    assert not found.is_significant


def test_llama_3_at_its_own_compute(tables):
    rows = read_table(tables / "llama3" / "data.csv").observations
    spec = BootstrapSpec(k=100)
    fit = fit_parametric(rows, objective=Objective(residual="linear", loss="ls"), bootstrap=spec)
    weights = paired_weights(rows, spec, fit)
    isoflop = fit_isoflop(rows, weights=weights)
    found = disagreement(rows, isoflop, fit, flops=3.8e25, weights=weights)
    assert found is not None
    assert found.ratio.value - 1 == pytest.approx(0.580, abs=5e-4)
    assert found.is_significant


def test_failed_replicates_are_left_out_of_the_pairs(isoflop_runs):
    rows = isoflop_runs()
    spec = BootstrapSpec(k=40, method="row")
    fit = fit_parametric(rows, bootstrap=spec)
    weights = paired_weights(rows, spec, fit)
    isoflop = fit_isoflop(rows, weights=weights)
    kept = np.arange(40) % 3 > 0
    some = replace(fit, samples=fit.samples[kept], kept=kept)
    given = BootstrapSpec(weights=weights[kept])
    alone = fit_parametric(rows, bootstrap=given)
    one = disagreement(rows, isoflop, some, flops=1e22, weights=weights)
    two = disagreement(rows, isoflop, alone, flops=1e22, weights=weights[kept])
    assert one is not None
    assert two is not None
    assert one.ratio.low == pytest.approx(two.ratio.low, rel=1e-5)
    assert one.ratio.high == pytest.approx(two.ratio.high, rel=1e-5)


def test_the_flop_convention_of_the_budgets_does_not_matter(isoflop_runs):
    rows = isoflop_runs(noise=1e-4, half_width=3.0)
    plain = compared(rows, k=0)
    counted = replace(rows, budget=rows.flops * (rows.flops / 1e19) ** 0.1 / 3)
    other = compared(counted, k=0)
    assert plain is not None
    assert other is not None
    assert other.ratio.value == pytest.approx(plain.ratio.value, rel=1e-6)
    assert other.expected_bias == pytest.approx(plain.expected_bias, rel=1e-6)


def test_weights_are_the_replicates_of_the_fit(isoflop_runs):
    rows = isoflop_runs()
    order = np.random.default_rng(0).permutation(len(rows))
    spec = BootstrapSpec(k=20, seed=5, method="row")
    fit = fit_parametric(rows, bootstrap=spec)
    weights = paired_weights(rows, spec, fit)
    assert weights is not None
    assert weights.shape == (20, len(rows))
    again = fit_parametric(rows, bootstrap=BootstrapSpec(weights=weights))
    np.testing.assert_allclose(again.samples, fit.samples, rtol=1e-6)
    moved = paired_weights(rows.take(order), spec, fit_parametric(rows.take(order), bootstrap=spec))
    assert moved is not None
    np.testing.assert_array_equal(moved, weights[:, order])


def test_without_replicates_there_is_a_ratio_and_no_interval(isoflop_runs):
    found = compared(isoflop_runs(), k=0)
    assert found is not None
    assert np.isnan(found.ratio.low)


def test_a_form_without_a_trade_off_is_not_compared(tables):
    rows = read_table(
        tables / "chinchilla" / "data.csv", ReadOptions(where="excluded_besiroglu = 0")
    ).observations
    assert compared(rows, form="kaplan_n", k=0) is None


def test_a_law_of_repeated_data_is_compared_at_the_unique_tokens_of_each_row(isoflop_runs):
    rows = isoflop_runs(noise=1e-4, half_width=3.0, budgets=np.geomspace(1e18, 1e20, 3))
    rows = replace(rows, extra={"unique_tokens": rows.n_tokens / 3})
    law = DataConstrained(A=482.0, B=2085.0, E=1.82, alpha=0.348, beta=0.366, R_D=15.0, R_N=5.0)
    loss = law.loss({"n_params": rows.n_params, "n_tokens": rows.n_tokens, **rows.extra})
    rows = replace(rows, loss_nats=loss)
    fit = replace(fit_parametric(rows, bootstrap=BootstrapSpec(k=0)), law=law)
    found = disagreement(rows, fit_isoflop(rows), fit, flops=1e20)
    assert found is not None
    # These losses are the law's own, so that all of the difference is bias of the grid.
    assert found.expected_bias == pytest.approx(found.ratio.value - 1, rel=1e-9)
