"""Fits of simulated rows: garbage, order, identification, predictions."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import DataError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations
from scalelab.theory.laws import Chinchilla

TRUTH = Chinchilla(A=482.0, B=2085.0, E=1.82, alpha=0.348, beta=0.366)
NO_REPLICATES = BootstrapSpec(k=0)


def cloud(n, noise=0.004, seed=0, truth=TRUTH, **extra):
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(5e7), np.log(9e9), n))
    D = np.exp(rng.uniform(np.log(7e8), np.log(2e11), n))
    loss = truth.loss({"n_params": N, "n_tokens": D}) * np.exp(noise * rng.standard_normal(n))
    return Observations(n_params=N, n_tokens=D, loss_nats=loss, flops=6 * N * D, **extra)


@settings(max_examples=10, deadline=None)
@given(
    # every term stays above a thousandth of the loss, so that rounding cannot hide it
    A=st.floats(200, 5e3),
    B=st.floats(300, 5e4),
    E=st.floats(0.3, 3.0),
    alpha=st.floats(0.25, 0.42),
    beta=st.floats(0.25, 0.42),
    loss=st.sampled_from(["ls", "huber"]),
)
def test_any_law_is_recovered_from_its_own_noise_free_rows(A, B, E, alpha, beta, loss):
    truth = Chinchilla(A=A, B=B, E=E, alpha=alpha, beta=beta)
    fit = fit_parametric(
        cloud(60, noise=0.0, truth=truth),
        objective=Objective(loss=loss),
        bootstrap=NO_REPLICATES,
    )
    assert fit.params == pytest.approx(truth.params, rel=1e-5)
    assert fit.status == "ok"


def test_the_row_order_does_not_change_the_fit():
    rows = cloud(70)
    shuffled = rows.take(np.random.default_rng(1).permutation(70))
    first = fit_parametric(rows, bootstrap=BootstrapSpec(k=50))
    second = fit_parametric(shuffled, bootstrap=BootstrapSpec(k=50))
    assert first.params == pytest.approx(second.params, rel=1e-12)
    np.testing.assert_allclose(first.samples, second.samples, rtol=1e-12)
    r = np.log(first.law.loss({"n_params": rows.n_params, "n_tokens": rows.n_tokens}))
    np.testing.assert_allclose(first.residuals, r - np.log(rows.loss_nats), atol=1e-12)


def test_given_weights_follow_the_callers_rows():
    rows = cloud(40)
    weights = np.random.default_rng(2).integers(0, 4, (20, 40)).astype(float)
    order = np.random.default_rng(3).permutation(40)
    first = fit_parametric(rows, bootstrap=BootstrapSpec(weights=weights))
    second = fit_parametric(rows.take(order), bootstrap=BootstrapSpec(weights=weights[:, order]))
    np.testing.assert_allclose(first.samples, second.samples, rtol=1e-12)
    # a replicate is the fit of the rows that its weights repeat
    repeated = rows.take(np.repeat(np.arange(40), weights[0].astype(int)))
    alone = fit_parametric(repeated, bootstrap=NO_REPLICATES)
    np.testing.assert_allclose(first.samples[0], list(alone.params.values()), rtol=1e-4)


def test_weight_column_counts_rows():
    rows = cloud(30)
    weight = np.random.default_rng(4).integers(1, 4, 30).astype(float)
    weighted = Observations(
        n_params=rows.n_params,
        n_tokens=rows.n_tokens,
        loss_nats=rows.loss_nats,
        flops=rows.flops,
        extra={"times": weight},
    )
    one = fit_parametric(weighted, objective=Objective(weight="times"), bootstrap=NO_REPLICATES)
    repeated = rows.take(np.repeat(np.arange(30), weight.astype(int)))
    other = fit_parametric(repeated, bootstrap=NO_REPLICATES)
    assert one.value == pytest.approx(other.value, rel=1e-10)
    assert one.params == pytest.approx(other.params, rel=1e-6)


def test_invalid_weights_are_an_error():
    rows = cloud(30)
    bad = Observations(
        n_params=rows.n_params,
        n_tokens=rows.n_tokens,
        loss_nats=rows.loss_nats,
        flops=rows.flops,
        extra={"times": -np.ones(30), "word": np.array(["x"] * 30)},
    )
    with pytest.raises(DataError, match=r"weights .* in column times"):
        fit_parametric(bad, objective=Objective(weight="times"))
    with pytest.raises(DataError, match="text in column word"):
        fit_parametric(bad, objective=Objective(weight="word"))
    with pytest.raises(UsageError, match="nothing"):
        fit_parametric(bad, objective=Objective(weight="nothing"))
    with pytest.raises(UsageError, match="replicate weights"):
        fit_parametric(rows, bootstrap=BootstrapSpec(weights=np.ones((3, 29))))
    with pytest.raises(UsageError, match="parameter gamma"):
        fit_parametric(rows, fixed={"gamma": 1.0})


def test_an_overprediction_penalty_moves_the_fit_to_the_lower_envelope():
    rows = cloud(90, noise=0.01)
    plain = fit_parametric(rows, bootstrap=NO_REPLICATES)
    low = fit_parametric(rows, objective=Objective(overprediction=9.0), bootstrap=NO_REPLICATES)
    assert (plain.residuals > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert (low.residuals > 0).mean() == pytest.approx(0.1, abs=0.08)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fewer_rows_than_parameters_are_not_identified(n):
    fit = fit_parametric(cloud(n), bootstrap=NO_REPLICATES)
    assert fit.status == "not_identified"
    assert "cannot determine 5 parameters" in fit.warnings[0].message
    assert np.isfinite(fit.value)


def test_identical_rows_are_not_identified():
    rows = cloud(1).take(np.zeros(30, dtype=int))
    fit = fit_parametric(rows, bootstrap=BootstrapSpec(k=10))
    assert fit.status == "not_identified"
    assert "1 distinct n_params x n_tokens combination" in fit.warnings[0].message


def test_no_rows_are_an_error():
    with pytest.raises(DataError, match="no rows"):
        fit_parametric(cloud(3).take(np.zeros(0, dtype=int)))


@pytest.mark.parametrize(("held", "name"), [("n_params", "n_params"), ("n_tokens", "n_tokens")])
def test_one_size_or_one_length_only_is_not_identified(held, name):
    rows = cloud(60)
    columns = {"n_params": rows.n_params, "n_tokens": rows.n_tokens}
    columns[held] = np.full(60, 1.7e9)
    loss = TRUTH.loss(columns) * np.exp(0.003 * np.random.default_rng(5).standard_normal(60))
    flops = 6 * columns["n_params"] * columns["n_tokens"]
    fit = fit_parametric(
        Observations(**columns, loss_nats=loss, flops=flops), bootstrap=BootstrapSpec(k=20)
    )
    assert fit.status == "not_identified"
    assert any(f"{name} has 1 value" in w.message for w in fit.warnings)


def test_a_vanishing_irreducible_loss_is_not_identified():
    rows = cloud(60, noise=0.0, truth=Chinchilla(A=40.0, B=90.0, E=0.0, alpha=0.15, beta=0.2))
    bent = Observations(
        n_params=rows.n_params,
        n_tokens=rows.n_tokens,
        flops=rows.flops,
        # steeper at the end than any law with E >= 0
        loss_nats=rows.loss_nats - 0.9 * rows.loss_nats.min(),
    )
    fit = fit_parametric(bent, bootstrap=NO_REPLICATES)
    assert fit.status == "not_identified"
    assert fit.params["E"] == 0.0
    assert any("E runs to 0" in w.message for w in fit.warnings)


def test_held_parameters_stay():
    fit = fit_parametric(cloud(60), fixed={"E": 1.7, "beta": 0.4}, bootstrap=BootstrapSpec(k=20))
    assert fit.params["E"] == pytest.approx(1.7, rel=1e-14)
    np.testing.assert_allclose(fit.samples[:, 4], 0.4, rtol=1e-14)
    assert fit.samples[:, 3].std() > 0
    free = fit_parametric(cloud(60), bootstrap=NO_REPLICATES)
    assert fit.value > free.value


def test_predictions_hold_the_truth_and_new_runs():
    fit = fit_parametric(cloud(240, noise=0.005), bootstrap=BootstrapSpec(k=400))
    new = cloud(300, noise=0.005, seed=9)
    columns = {"n_params": new.n_params, "n_tokens": new.n_tokens}
    at = fit.predict(columns)
    truth = TRUTH.loss(columns)
    assert ((at.low <= truth) & (truth <= at.high)).mean() > 0.6
    inside = ((at.pred_low <= new.loss_nats) & (new.loss_nats <= at.pred_high)).mean()
    # 300 draws at 90 %: four standard errors are 7 %
    assert inside == pytest.approx(0.9, abs=0.07)
    assert (at.pred_low <= at.low).all()
    assert (at.high <= at.pred_high).all()
    wide = fit.predict(columns, level=0.99)
    assert (wide.high - wide.low > at.high - at.low).all()
    one = fit.predict({"n_params": 7e9, "n_tokens": 1e12})
    assert one.value.shape == (1,)
    interval = fit.interval(lambda law: float(law.loss({"n_params": 7e9, "n_tokens": 1e12})))
    assert interval.low == pytest.approx(one.low[0], rel=1e-12)
    assert fit.param_intervals()["alpha"].low < 0.348 < fit.param_intervals()["alpha"].high
    with pytest.raises(UsageError, match="level 1"):
        fit.interval(lambda law: law.params["E"], level=1.0)


def test_many_rows_take_one_step_with_the_same_spread():
    rows = cloud(21_000, noise=0.005)
    step = fit_parametric(rows, bootstrap=BootstrapSpec(k=60, seed=3))
    part = cloud(3_000, noise=0.005)
    full = fit_parametric(part, bootstrap=BootstrapSpec(k=60, seed=3))
    ratio = step.samples.std(axis=0) / full.samples.std(axis=0)
    # sqrt(3/21) with the 9 % standard error of a deviation from 60 draws, twice
    np.testing.assert_allclose(ratio, (3 / 21) ** 0.5, rtol=0.4)
    assert step.failed == 0


def test_the_likelihood_of_gaussian_noise_finds_its_scale():
    fit = fit_parametric(
        cloud(400, noise=0.01),
        objective=Objective(loss="likelihood", delta=50.0),
        bootstrap=NO_REPLICATES,
    )
    assert fit.scale == pytest.approx(0.01, rel=0.15)
    rms = np.sqrt(np.mean(fit.residuals**2))
    assert fit.scale == pytest.approx(rms, rel=1e-6)
    expected = 400 * (np.log(rms) + 0.5 * np.log(2 * np.pi) + 0.5)
    assert fit.value == pytest.approx(expected, rel=1e-9)


def test_the_scale_of_the_weights_changes_nothing_but_the_value(isoflop_runs):
    rows = isoflop_runs()
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(rows))
    objective = Objective(weight="w")
    found = [
        fit_parametric(
            replace(rows, extra={"w": weight * scale}),
            objective=objective,
            bootstrap=BootstrapSpec(k=20),
        )
        for scale in (1.0, 1e-300, 1e200)
    ]
    for other, scale in zip(found[1:], (1e-300, 1e200), strict=True):
        assert other.status == "ok"
        assert other.params == pytest.approx(found[0].params, rel=1e-7)
        assert other.value == pytest.approx(found[0].value * scale, rel=1e-9)
        np.testing.assert_allclose(other.samples, found[0].samples, rtol=1e-5)
