"""What holds for every form: exact derivatives, round trips, and recovery from its own data."""

import numpy as np
import pytest

from scalelab.errors import UsageError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import PoweredSum, row_model_of
from scalelab.fit.row_model import ExponentialSum, GeneralRowModel, Rows
from scalelab.records.types import Observations
from scalelab.theory.laws import (
    LAWS,
    Accuracy,
    BatchByCompute,
    BatchSize,
    Broken,
    Chinchilla,
    ComputeFrontier,
    CriticalBatch,
    DataConstrained,
    Experts,
    Farseer,
    Gamma,
    Granularity,
    Kaplan,
    KaplanCompute,
    KaplanParams,
    KaplanTokens,
    LearningRate,
    LearningRateByCompute,
    Overtraining,
    Parallel,
    Precision,
    PrecisionTied,
    PrecisionWeights,
    PrecisionWeightsActivations,
    Routed,
    Sparsity,
    TiedExponents,
    Vocabulary,
    law_named,
)

EXAMPLES = [
    Chinchilla(A=482.0, B=2085.4, E=1.817, alpha=0.3478, beta=0.3659),
    TiedExponents(A=520.9, B=1488.0, E=1.869, alpha=0.3527),
    Gamma(A=4.33e5, B=2.57e7, E=1.553, alpha=0.641, beta=0.729, gamma=0.343),
    DataConstrained(A=521.0, B=1488.0, E=1.87, alpha=0.36, beta=0.345, R_D=15.4, R_N=5.3),
    Overtraining(a=141.0, b=190.0, E=1.84, eta=0.121),
    Kaplan(N_c=6.4e13, D_c=1.8e13, alpha_n=0.076, alpha_d=0.103),
    KaplanParams(N_c=8.8e13, alpha=0.076),
    KaplanTokens(D_c=5.4e13, alpha=0.095),
    KaplanCompute(C_c=1.4e27, alpha=0.057),
    ComputeFrontier(A=1100.0, E=1.72, alpha=0.155),
    Farseer(s=-0.021, q=0.169, S=0.091, B=88.01, b=-0.1, Q=-6.287, A=-0.124, a=0.123, R=0.424),
    Routed(a=-0.083, b=-0.118, c=0.0099, d=1.1136, E_start=2.08, E_max=238.0),
    Granularity(A=18.1, B=30.8, E=0.47, alpha=0.115, beta=0.147, g=2.1, gamma=0.58),
    Precision(
        A=4299.0, B=18060.0, E=2.765, alpha=0.489, beta=0.524,
        gamma_w=2.67, gamma_a=2.21, gamma_kv=0.96,
    ),
    PrecisionWeights(A=4299.0, B=18060.0, E=2.765, alpha=0.489, beta=0.524, gamma_w=2.67),
    PrecisionWeightsActivations(
        A=4299.0, B=18060.0, E=2.765, alpha=0.489, beta=0.524, gamma_w=2.67, gamma_a=2.21
    ),
    PrecisionTied(A=4299.0, B=18060.0, E=2.765, alpha=0.489, beta=0.524, gamma=1.9),
    Experts(A=69.4, E=1.6, alpha=0.224, delta=-0.073, gamma=-0.0026, E_start=2.1, E_max=290.0),
    Sparsity(A=95.0, B=1.2e4, E=1.68, alpha=0.25, beta=0.42, g=60.0, b=0.7),
    Parallel(A=52.0, E=1.34, alpha=0.21, k=0.35),
    Vocabulary(
        A=32.0, B=28.0, F=4.5e3, E=-6.1, alpha=0.19, beta=0.5, gamma=0.42, delta=0.12
    ),
    Broken(b=26.0, E=1.6, c_0=0.02, c_1=0.09, d=3e19, f=0.8),
    LearningRate(k=1.79, p=-0.713, q=0.307),
    BatchSize(k=0.58, q=0.571),
    LearningRateByCompute(k=0.3118, p=-0.125),
    BatchByCompute(k=0.292, p=0.3271),
    CriticalBatch(k=2.0e8, p=-4.76),
    Accuracy(a=0.69, b=0.25, k=2.3, L_0=2.9),
]  # fmt: skip
BY_NAME = {law.name: law for law in EXAMPLES}
NAMES = sorted(BY_NAME)


def rows_for(law, n=160, seed=3):
    """Generic columns: nothing on a grid, nothing a power of two."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(3e7), np.log(7e9), 13))
    N = rng.choice(sizes, n)
    D = np.exp(rng.uniform(np.log(8e8), np.log(3e11), n))
    columns = {
        "n_params": N,
        "n_tokens": D,
        "flops": 6 * N * D,
        "unique_tokens": D / np.where(rng.random(n) < 0.3, 1.0, np.exp(rng.uniform(0.1, 3.5, n))),
        "n_experts": rng.choice([1.0, 2.0, 4.0, 8.0, 32.0, 64.0, 128.0, 256.0, 512.0], n),
        "granularity": rng.choice([1.0, 2.0, 4.0, 8.0, 16.0], n),
        "density": rng.choice([1.0, 0.5, 0.25, 0.125], n),
        "n_streams": rng.choice([1.0, 2.0, 4.0, 8.0], n),
        "vocab_size": rng.choice([4096.0, 8192.0, 16384.0, 32768.0, 65536.0], n),
        "bits": rng.choice([3.0, 4.0, 6.0, 8.0, 12.0], n),
        "bits_weights": rng.choice([3.0, 4.0, 6.0, 8.0, 12.0], n),
        "bits_activations": rng.choice([3.0, 4.0, 6.0, 8.0, 12.0], n),
        "bits_kv": rng.choice([3.0, 4.0, 6.0, 8.0, 12.0], n),
        "loss_nats": rng.uniform(1.9, 4.4, n),
    }
    return {name: columns[name] for name in law.columns}


def observations(law, columns, target):
    n = len(target)
    base = {name: np.exp(np.linspace(0, 1, n)) for name in ("n_params", "n_tokens", "loss_nats")}
    base["flops"] = np.ones(n)
    extra = {}
    for name, values in {**columns, law.target: target}.items():
        (base if name in base else extra)[name] = values
    return Observations(**base, extra=extra, is_signed=law.is_signed)


def test_every_form_has_an_example():
    assert {law.name for law in LAWS} == set(BY_NAME)
    assert len(LAWS) == len(EXAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_agree_with_central_differences(name):
    law = BY_NAME[name]
    columns = rows_for(law, n=23)
    theta = law.to_coordinates()[None]
    value, gradient, hessian = law.derivatives(theta, columns)
    np.testing.assert_allclose(value[0], law.loss(columns), rtol=1e-13)
    size = np.abs(value).max()
    for j in range(theta.shape[1]):
        # the nine Farseer parameters act through N^b: a step must be small against 1/log N
        step = np.zeros_like(theta)
        step[0, j] = 1e-6 * max(abs(theta[0, j]), 1e-2)
        up, up_grad, _ = law.derivatives(theta + step, columns)
        down, down_grad, _ = law.derivatives(theta - step, columns)
        width = 2 * step[0, j]
        # a central difference is off by eps/step in rounding and step^2 in truncation
        slack = 20 * np.finfo(float).eps * size / step[0, j]
        np.testing.assert_allclose((up - down) / width, gradient[j], rtol=2e-5, atol=slack)
        slack = 20 * np.finfo(float).eps * np.abs(gradient).max() / step[0, j]
        np.testing.assert_allclose((up_grad - down_grad) / width, hessian[j], rtol=2e-5, atol=slack)


@pytest.mark.parametrize("name", NAMES)
def test_slopes_are_the_derivatives_without_a_hessian(name):
    law = BY_NAME[name]
    columns, theta = rows_for(law, n=23), law.to_coordinates()[None]
    value, gradient, _ = law.derivatives(theta, columns)
    for found, expected in zip(law.slopes(theta, columns), (value, gradient), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_fast_and_general_row_models_agree(name):
    law = type(BY_NAME[name])
    columns = rows_for(law)
    fast, general = row_model_of(law, columns), GeneralRowModel(law, columns)
    theta = BY_NAME[name].to_coordinates()[None]
    np.testing.assert_allclose(fast.predicted(fast.eta(theta)), general.predicted(theta), rtol=1e-9)
    assert isinstance(fast, (ExponentialSum, PoweredSum)) == (law.terms(columns) is not None)
    at = fast.derivatives(fast.eta(theta)[0])
    value, gradient, hessian = general.derivatives(theta[0])
    mix = fast.mix
    np.testing.assert_allclose(at[0], value, rtol=1e-9)
    gradient, hessian = mix @ gradient, np.einsum("ip,pqn,jq->ijn", mix, hessian, mix)
    np.testing.assert_allclose(at[1], gradient, rtol=1e-7, atol=1e-9 * np.abs(gradient).max())
    np.testing.assert_allclose(at[2], hessian, rtol=1e-7, atol=1e-9 * np.abs(hessian).max())


@pytest.mark.parametrize("residual", ["log", "linear"])
@pytest.mark.parametrize("name", NAMES)
def test_fast_and_general_row_models_expand_the_objective_alike(name, residual):
    law = type(BY_NAME[name])
    columns = rows_for(law)
    rng = np.random.default_rng(3)
    theta = BY_NAME[name].to_coordinates() + 1e-3 * rng.standard_normal((2, len(law.names())))
    fast, general = row_model_of(law, columns), GeneralRowModel(law, columns)
    n = general.n_rows
    target = general.predicted(theta)[0] * np.exp(0.01 * rng.standard_normal(n))
    residual = "linear" if law.is_signed else residual
    rows, penalty = Rows(target, rng.exponential(size=n), residual), Penalty(delta=0.01)
    one, two = fast.expand(fast.eta(theta), rows, penalty), general.expand(theta, rows, penalty)
    np.testing.assert_allclose(one.value, two.value, rtol=1e-9)
    mix = fast.mix
    for got, expected in (
        (one.gradient, two.gradient @ mix.T),
        (one.hessian, mix @ two.hessian @ mix.T),
        (one.majorant, mix @ two.majorant @ mix.T),
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_coordinates_round_trip(name):
    law = BY_NAME[name]
    again = type(law).from_coordinates(law.to_coordinates())
    assert again.params == pytest.approx(law.params, rel=1e-14)
    assert set(law.params) == set(law.names())


@pytest.mark.parametrize("name", NAMES)
def test_noise_free_rows_are_recovered(name):
    law = BY_NAME[name]
    columns = rows_for(law)
    target = law.loss(columns)
    fit = fit_parametric(
        observations(law, columns, target),
        form=name,
        objective=Objective(loss="ls"),
        bootstrap=BootstrapSpec(k=0),
    )
    # the floor of Farseer's valley is flat to 1e-10 of the loss
    np.testing.assert_allclose(
        fit.law.loss(columns), target, rtol=1e-4 if name == "farseer" else 1e-6
    )
    # Farseer's nine and the broken law's six are nearly interchangeable on any finite range
    loose = {"farseer": None, "broken": 1e-2, "gamma": 1e-3, "precision": 1e-3, "routed": 1e-3}
    rtol = loose.get(name, 1e-5)
    if rtol is not None:
        assert fit.params == pytest.approx(law.params, rel=rtol)


TRADING = [law for law in EXAMPLES if law.name in (
    "chinchilla", "tied", "gamma", "overtraining", "kaplan", "farseer", "granularity", "precision",
    "data_constrained", "precision_w", "precision_wa", "precision_tied", "sparsity")]  # fmt: skip


@pytest.mark.parametrize("law", TRADING, ids=lambda law: law.name)
@pytest.mark.parametrize("flops", [3.7e19, 5.3e20])
def test_no_neighbour_on_the_isoflop_beats_the_optimum(law, flops):
    N, D = law.optimal(flops)
    assert pytest.approx(flops, rel=1e-12) == 6 * N * D
    extra = {
        "granularity": 1.0,
        "density": 1.0,
        "bits": 16.0,
        "bits_weights": 16.0,
        "bits_activations": 16.0,
        "bits_kv": 16.0,
    }

    def loss(shift):
        at = {"n_params": N * shift, "n_tokens": D / shift, "unique_tokens": D / shift, **extra}
        if law.name == "data_constrained":
            return law.base().loss(at)
        return law.loss(at)

    for shift in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert loss(shift) >= loss(1.0) - 1e-13
    assert loss(1.3) > loss(1.0)


def test_limited_data_have_their_own_optimum():
    law = BY_NAME["data_constrained"]
    N, D = law.optimal(1e22, unique_tokens=1e10)
    assert pytest.approx(1e22) == 6 * N * D

    def loss(shift):
        at = {"n_params": N * shift, "n_tokens": D / shift, "unique_tokens": 1e10}
        return law.loss(at)

    assert loss(1.0) < min(loss(0.9), loss(0.99), loss(1.01), loss(1.1))
    # excess parameters decay faster than repeats here (R_N < R_D), so epochs are preferred
    assert law.optimal(1e22)[1] < D


def test_an_unknown_form_lists_the_known_ones():
    with pytest.raises(UsageError, match="chinchilla, tied"):
        law_named("nope")


def test_a_missing_column_is_named():
    with pytest.raises(UsageError, match="no column n_tokens"):
        BY_NAME["chinchilla"].loss({"n_params": 1e9})


def test_a_form_without_trade_off_has_no_optimum():
    with pytest.raises(UsageError, match="compute-optimal"):
        BY_NAME["routed"].optimal(1e20)


def test_inverses():
    law = BY_NAME["chinchilla"]
    loss = law.loss({"n_params": 3.3e9, "n_tokens": 7.7e10})
    assert law.tokens_for(3.3e9, loss) == pytest.approx(7.7e10, rel=1e-9)
    assert np.isnan(law.tokens_for(3.3e9, law.E))


def test_the_special_forms_equal_their_formulas():
    N, D = 3e8, 2e10
    at = {"n_params": N, "n_tokens": D, "density": 0.25, "n_streams": 4.0, "vocab_size": 3e4}
    expected = {
        "sparsity": 1.68 + (60 * 0.25**0.7 + 95) * N**-0.25 + 1.2e4 * D**-0.42,
        "parallel": 1.34 + 52 * (N * (0.35 * np.log(4) + 1)) ** -0.21,
        "vocabulary": -6.1 + 32 * N**-0.19 + 28 * 3e4**-0.5 + 4.5e3 * 3e4**0.12 * D**-0.42,
    }
    for name, loss in expected.items():
        assert BY_NAME[name].loss(at) == pytest.approx(loss, rel=1e-12)
