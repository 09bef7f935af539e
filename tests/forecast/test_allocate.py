import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalelab.errors import UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.forecast.allocate import (
    derived,
    extrapolation_warnings,
    flops_where,
    frontier,
    law_forecast,
    parse_request,
)
from scalelab.forecast.extrapolation import FittedRange
from scalelab.theory.laws import law_named

REACH = FittedRange(flops=1e20, n_params=(1e7, 1e10), n_tokens=(1e8, 1e12))


@pytest.fixture(scope="module")
def fit(isoflop_runs):
    return fit_parametric(isoflop_runs(), bootstrap=BootstrapSpec(k=200))


def one(fit, text, level=0.9):
    return law_forecast(fit, parse_request(text), fitted=REACH, level=level)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("N=7e9", {"n_params": 7e9}),
        ("N=7B, D=2T", {"n_params": 7e9, "n_tokens": 2e12}),
        ("C=1e24", {"flops": 1e24}),
        ("n_params=7_000_000", {"n_params": 7e6}),
        (
            "N=1e9,D=1e10,unique_tokens=2B",
            {"n_params": 1e9, "n_tokens": 1e10, "unique_tokens": 2e9},
        ),
        ("N=1e9,D=1e10,C=6e19", {"n_params": 1e9, "n_tokens": 1e10, "flops": 6e19}),
    ],
)
def test_requests_are_read(text, values):
    assert parse_request(text).values == values


@pytest.mark.parametrize(
    "text", ["", "7e9", "N=", "N=abc", "N=-1", "N=0", "N=7e9,N=8e9", "N=1e9,D=1e10,C=7e19", "N:7e9"]
)
def test_invalid_requests_are_errors(text):
    with pytest.raises(UsageError):
        parse_request(text)


def test_a_request_of_n_has_compute_optimal_tokens(fit):
    found = one(fit, "N=7e9")
    assert found.n_params.value == 7e9
    assert (found.n_params.low, found.n_params.high) == (7e9, 7e9)
    assert found.allocation == "compute-optimal at N = 7e9"
    n_params, n_tokens = fit.law.optimal(found.flops)
    assert float(n_params) == pytest.approx(7e9, rel=1e-9)
    assert found.n_tokens.value == pytest.approx(float(n_tokens), rel=1e-9)
    assert found.n_tokens.low < found.n_tokens.value < found.n_tokens.high
    assert found.flops == pytest.approx(6 * 7e9 * found.n_tokens.value, rel=1e-12)
    assert found.extrapolation == pytest.approx(found.flops / 1e20)


def test_a_request_of_c_has_the_optimum_and_its_interval(fit):
    found = one(fit, "C=1e21")
    n_params, n_tokens = fit.law.optimal(1e21)
    assert found.flops == 1e21
    assert found.n_params.value == pytest.approx(float(n_params))
    assert found.n_tokens.value == pytest.approx(float(n_tokens))
    assert found.n_params.low < found.n_params.value < found.n_params.high
    draws = np.array([law.optimal(1e21)[0] for law in fit.replicate_laws()])
    assert found.n_params.low == pytest.approx(np.quantile(draws, 0.05))


def test_two_of_n_d_and_c_determine_the_third(fit):
    assert one(fit, "N=1e9,D=2e10").flops == pytest.approx(1.2e20)
    assert one(fit, "C=1.2e20,N=1e9").n_tokens.value == pytest.approx(2e10)
    assert one(fit, "C=1.2e20,D=2e10").n_params.value == pytest.approx(1e9)
    assert one(fit, "N=1e9,D=2e10").n_tokens.low == pytest.approx(2e10)


def test_the_loss_is_that_of_the_law_with_nested_intervals(fit):
    found = one(fit, "N=1e9,D=2e10")
    expected = float(fit.law.loss({"n_params": 1e9, "n_tokens": 2e10}))
    assert found.loss_nats == pytest.approx(expected)
    assert found.pred_low < found.low < found.loss_nats < found.high < found.pred_high
    wider = one(fit, "N=1e9,D=2e10", level=0.99)
    assert wider.low < found.low
    assert wider.pred_high > found.pred_high


def test_the_interval_widens_with_distance(fit):
    near, far = one(fit, "C=1e20"), one(fit, "C=1e24")
    assert far.high - far.low > near.high - near.low


def test_a_request_beyond_a_hundred_times_the_largest_run_gives_a_warning(fit):
    near, far = one(fit, "C=9.9e21"), one(fit, "C=1.01e22")
    assert not near.outside_range
    (warning,) = extrapolation_warnings([near, far])
    assert warning.code == "extrapolation"
    assert warning.message.startswith(
        "C=1.01e22 is far outside the fitted runs: 101x the FLOPs of the largest run"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("N=1.1e12,D=1e10", ["110x the largest N"]),
        ("N=9.9e11,D=1e8", []),
        (
            "N=1e15,D=1e4",
            ["100,000x the largest N", "10,000x below the smallest D"],
        ),
        ("N=9e4,D=1e12", ["111x below the smallest N"]),
    ],
)
def test_sizes_far_outside_those_of_the_runs_give_warnings(fit, text, words):
    found = one(fit, text)
    assert [said for said in found.outside_range if "FLOPs" not in said] == words
    assert len(extrapolation_warnings([found])) == bool(words)


@pytest.mark.parametrize(
    ("text", "name"), [("N=7B,d=2T", "d"), ("N=1e9,foo=3", "foo"), ("L=2,N=1B", "L")]
)
def test_a_column_that_the_form_does_not_have_is_an_error(fit, text, name):
    with pytest.raises(UsageError, match=f"has no {name};"):
        one(fit, text)


@pytest.mark.parametrize("text", ["N=1e200", "D=1e250", "C=1e300,N=1e-300", "N=1e200,D=1e200"])
def test_sizes_without_a_finite_answer_are_errors(fit, text):
    with pytest.raises(UsageError, match="no finite"):
        one(fit, text)


def test_a_form_without_an_optimum_needs_its_own_columns(isoflop_runs):
    fit = fit_parametric(isoflop_runs(), form="kaplan_d", bootstrap=BootstrapSpec(k=0))
    found = one(fit, "D=1e11")
    assert found.n_params is None
    assert found.flops is None
    assert found.extrapolation is None
    with pytest.raises(UsageError, match="without n_tokens"):
        one(fit, "N=1e9")


def test_a_further_column_of_the_form_must_be_given(isoflop_runs):
    rows = isoflop_runs()
    rows = replace(rows, extra={"unique_tokens": rows.n_tokens / 2})
    fit = fit_parametric(rows, form="data_constrained", bootstrap=BootstrapSpec(k=0))
    with pytest.raises(UsageError, match="unique_tokens"):
        one(fit, "N=1e9,D=1e10")
    assert np.isfinite(one(fit, "N=1e9,D=1e10,unique_tokens=4e9").loss_nats)


def test_derived_exponents_are_those_of_the_parameters(fit):
    found = derived(fit)
    p = fit.params
    a = p["beta"] / (p["alpha"] + p["beta"])
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    assert found["a"].value == pytest.approx(a, rel=1e-10)
    assert found["b"].value == pytest.approx(1 - a, rel=1e-10)
    assert found["G"].value == pytest.approx(G, rel=1e-8)
    samples = fit.samples[:, fit.names.index("beta")] / (
        fit.samples[:, fit.names.index("alpha")] + fit.samples[:, fit.names.index("beta")]
    )
    assert found["a"].low == pytest.approx(np.quantile(samples, 0.05), rel=1e-9)


def test_a_form_without_a_frontier_has_no_derived_exponents(isoflop_runs):
    fit = fit_parametric(isoflop_runs(), form="kaplan_n", bootstrap=BootstrapSpec(k=0))
    assert derived(fit) == {}


@settings(max_examples=60, deadline=None)
@given(
    alpha=st.floats(0.1, 0.8),
    beta=st.floats(0.1, 0.8),
    log_A=st.floats(2, 9),
    log_B=st.floats(2, 9),
    log_N=st.floats(14, 30),
)
def test_the_compute_at_which_a_size_is_optimal_inverts_the_frontier(
    alpha, beta, log_A, log_B, log_N
):
    law = law_named("chinchilla")(A=np.exp(log_A), B=np.exp(log_B), E=1.7, alpha=alpha, beta=beta)
    flops = flops_where(law, "n_params", np.exp(log_N), 1e20)
    assert float(np.log(law.optimal(flops)[0])) == pytest.approx(log_N, abs=1e-8)
    line = frontier(law, 1e20)
    assert line["a"] == pytest.approx(beta / (alpha + beta), rel=1e-9)
    product = (flops / 6) ** line["a"] * line["G"]
    assert np.log(product) == pytest.approx(log_N, abs=1e-6)


@pytest.mark.parametrize(
    "vanished", [{"A": 0.0}, {"B": 0.0}, {"alpha": 0.0}, {"alpha": 0.0, "beta": 0.0}]
)
def test_a_law_with_a_zero_term_has_no_frontier(vanished):
    # Replicates of few or odd rows end so, and must not end the whole fit.
    law = law_named("chinchilla")(A=400.0, B=400.0, E=1.7, alpha=0.34, beta=0.28)
    law = replace(law, **vanished)
    assert all(math.isnan(value) for value in frontier(law, 1e20).values())
