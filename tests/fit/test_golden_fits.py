"""Published fits, to the digits that were printed."""

import math
import tomllib
from pathlib import Path

import duckdb
import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations
from scalelab.theory.laws import Chinchilla, DataConstrained, TiedExponents

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FITS = tomllib.loads((GOLDEN / "chinchilla_fits.toml").read_text())
REPEATS = tomllib.loads((GOLDEN / "data_constrained_fits.toml").read_text())
NO_REPLICATES = BootstrapSpec(k=0)


def read(path, where="", extra=()):
    names = ("n_params", "n_tokens", "flops", "loss", *extra)
    condition = f" where {where}" if where else ""
    # the notebook's resamples refer to rows in file order
    table = duckdb.sql(f"select {', '.join(names)} from '{path}'{condition}").fetchnumpy()
    columns = {name: np.asarray(table[name], dtype=float) for name in names}
    return Observations(
        n_params=columns["n_params"],
        n_tokens=columns["n_tokens"],
        flops=columns["flops"],
        loss_nats=columns["loss"],
        extra={name: columns[name] for name in extra},
    )


def to_digits(printed):
    """Half a unit in the last printed place."""
    text = repr(printed)
    mantissa, _, exponent = text.partition("e")
    places = len(mantissa.partition(".")[2])
    return 0.5001 * 10.0 ** (int(exponent or 0) - places)


@pytest.fixture(scope="session")
def chinchilla_240(tables):
    rows = read(tables / "chinchilla" / "data.csv", "excluded_besiroglu = 0")
    assert len(rows) == 240
    return rows


def test_least_absolute_deviations_headline(chinchilla_240):
    golden = FITS["lad"]
    fit = fit_parametric(chinchilla_240, objective=Objective(loss="lad"), bootstrap=NO_REPLICATES)
    assert fit.value == pytest.approx(golden["sum_abs"], rel=1e-8)
    expected = {name: golden[name] for name in ("A", "B", "E", "alpha", "beta")}
    assert fit.params == pytest.approx(expected, rel=golden["rtol"])


def test_free_scale_likelihood(chinchilla_240):
    golden = FITS["lad"]
    fit = fit_parametric(
        chinchilla_240, objective=Objective(loss="likelihood"), bootstrap=NO_REPLICATES
    )
    assert -fit.value == pytest.approx(golden["log_likelihood"], abs=to_digits(879.7731))
    assert math.log(fit.scale) == pytest.approx(golden["log_scale"], abs=to_digits(12.27))
    assert fit.params["A"] == pytest.approx(golden["notebook"]["A"], abs=1e-5)
    assert fit.params["B"] == pytest.approx(golden["notebook"]["B"], abs=1e-5)


def test_plain_sum_of_huber(chinchilla_240):
    golden = FITS["huber"]
    fit = fit_parametric(chinchilla_240, bootstrap=NO_REPLICATES)
    assert fit.value == pytest.approx(golden["value"], rel=1e-10)
    for name in ("A", "B", "E", "alpha", "beta"):
        assert fit.params[name] == pytest.approx(golden[name], abs=to_digits(golden[name]))


def test_seed_42_bootstrap(chinchilla_240):
    golden = FITS["bootstrap"]
    legacy = np.random.RandomState(42)
    drawn = legacy.choice(240, (4000, 240))
    weights = np.stack([np.bincount(rows, minlength=240) for rows in drawn]).astype(float)
    fit = fit_parametric(chinchilla_240, bootstrap=BootstrapSpec(weights=weights))
    assert fit.bootstrap.method == "weights"
    assert fit.failed == 0
    for name, se in zip(fit.names, fit.samples.std(axis=0), strict=True):
        assert se == pytest.approx(golden[f"se_{name}"], rel=golden["rtol"])
    a = fit.samples[:, 4] / (fit.samples[:, 3] + fit.samples[:, 4])
    assert a.std() == pytest.approx(golden["se_a"], rel=golden["rtol"])
    low, high = np.quantile(a, [0.1, 0.9])
    assert high - low == pytest.approx(golden["width80_a"], abs=to_digits(0.05141))
    low, high = np.quantile(fit.samples, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(low, golden["low95"], rtol=2e-5)
    np.testing.assert_allclose(high, golden["high95"], rtol=2e-5)
    assert fit.samples[0, 0] == pytest.approx(golden["first_A"], abs=1e-4)
    assert fit.samples[0, 1] == pytest.approx(golden["first_B"], abs=1e-3)


@pytest.mark.parametrize("golden", FITS["vpnls"], ids=lambda g: g["source"][:60])
def test_variable_projection_fits(tables, golden):
    rows = read(tables / golden["file"], golden["where"])
    assert len(rows) == golden["n_rows"]
    fit = fit_parametric(
        rows,
        objective=Objective(residual=golden["residual"], loss=golden["loss"]),
        bootstrap=NO_REPLICATES,
    )
    found = {
        **fit.params,
        "A_millions": fit.law.A / 1e6**fit.law.alpha,
        "B_billions": fit.law.B / 1e9**fit.law.beta,
        "a": fit.law.a,
        "twice_value": 2 * fit.value,
    }
    for name in sorted(found.keys() & golden.keys()):
        assert found[name] == pytest.approx(golden[name], abs=to_digits(golden[name])), name
    if "N_at_38e24" in golden:
        N, D = fit.law.optimal(3.8e25)
        assert pytest.approx(golden["N_at_38e24"], abs=0.05e9) == N
        assert pytest.approx(golden["D_at_38e24"], abs=0.05e12) == D


@pytest.mark.parametrize("golden", FITS["mean_huber"], ids=lambda g: g["where"] or "llama3")
def test_mean_huber_values(tables, golden):
    rows = read(tables / golden["file"], golden["where"])
    fit = fit_parametric(rows, objective=Objective(residual="linear"), bootstrap=NO_REPLICATES)
    assert fit.value / len(rows) == pytest.approx(golden["value"], abs=to_digits(golden["value"]))


@pytest.mark.parametrize("golden", FITS["optimal"], ids=lambda g: g["source"])
def test_compute_optimal_arithmetic(golden):
    values = {
        name: golden[name] if name in golden else math.exp(golden[f"log_{name}"])
        for name in ("A", "B", "E", "alpha", "beta")
    }
    law = Chinchilla(**values)
    N, D = law.optimal(5.76e23)
    assert law.a == pytest.approx(golden["a"], abs=5.01e-5)
    assert pytest.approx(golden["N"], abs=0.00501e9) == N
    assert pytest.approx(golden["D"], abs=0.000501e12) == D
    assert pytest.approx(golden["ratio"], abs=0.0501) == D / N


def published_base(**more):
    base = REPEATS["base"]
    scales = {name: math.exp(base[f"log_{name}"]) for name in ("A", "B", "E")}
    return {**scales, "alpha": base["alpha"], "beta": base["alpha"], **more}


def test_repeated_data_has_both_minima(tables):
    golden = REPEATS["repeats"]
    rows = read(tables / "datablations" / "data.csv", "in_fit_182 = 1", extra=("unique_tokens",))
    assert len(rows) == 182
    fit = fit_parametric(
        rows, form="data_constrained", fixed=published_base(), bootstrap=NO_REPLICATES
    )
    assert any(w.code == "several_minima" for w in fit.warnings)
    best = fit.minima[0]
    assert best.value == pytest.approx(golden["lower"]["value"], abs=to_digits(0.01580466))
    assert best.params["R_D"] == pytest.approx(golden["lower"]["R_D"], abs=0.05)
    assert best.params["R_N"] == pytest.approx(golden["lower"]["R_N"], abs=6e-4)
    published = golden["published_minimum"]
    near = min(fit.minima, key=lambda m: abs(m.params["R_D"] - published["R_D"]))
    assert near.value == pytest.approx(published["value"], rel=1e-8)
    assert near.params["R_D"] == pytest.approx(published["R_D"], abs=1e-3)
    assert near.params["R_N"] == pytest.approx(published["R_N"], abs=1e-3)
    values = [m.value for m in fit.minima]
    assert min(abs(v - golden["third_value"]) for v in values) < 1e-7
    assert values == sorted(values)
    assert fit.params["A"] == pytest.approx(published_base()["A"], rel=1e-12)


def test_repeated_data_explained_variance(tables):
    golden = REPEATS["repeats"]
    rows = read(tables / "datablations" / "data.csv", "in_fit_182 = 1", extra=("unique_tokens",))
    columns = {
        "n_params": rows.n_params,
        "n_tokens": rows.n_tokens,
        "unique_tokens": rows.extra["unique_tokens"],
    }
    at = golden["published"]
    law = DataConstrained(**published_base(R_D=at["R_D"], R_N=at["R_N"]))
    total = ((rows.loss_nats - rows.loss_nats.mean()) ** 2).sum()
    for one, expected in ((law, "r2"), (law.base(), "r2_plain_chinchilla")):
        left = ((one.loss(columns) - rows.loss_nats) ** 2).sum()
        assert 1 - left / total == pytest.approx(golden[expected], abs=5.01e-5)


@pytest.mark.parametrize("golden", REPEATS["predicted"], ids=lambda g: g["source"][:50])
def test_repeated_data_predictions(golden):
    at = REPEATS["repeats"]["published"]
    law = DataConstrained(**published_base(R_D=at["R_D"], R_N=at["R_N"]))
    columns = {name: golden[name] for name in ("n_params", "n_tokens", "unique_tokens")}
    # half-lives are printed to seven digits and the base to seven
    assert law.loss(columns) == pytest.approx(golden["loss"], abs=2e-8)


def test_tied_base_of_repeated_data(tables):
    base = REPEATS["base"]
    law = TiedExponents(
        **{name: math.exp(base[f"log_{name}"]) for name in ("A", "B", "E")}, alpha=base["alpha"]
    )
    N, D = law.optimal(5.76e23)
    assert pytest.approx(base["N_at_576e21"], abs=0.005e9) == N
    assert pytest.approx(base["D_at_576e21"], abs=0.0005e12) == D
    golden = REPEATS["tied"]
    rows = read(tables / "datablations" / "data.csv", "dedup = 0 AND epochs <= 2.5")
    assert len(rows) == 62
    fit = fit_parametric(rows, form="tied", bootstrap=NO_REPLICATES)
    assert fit.value == pytest.approx(golden["value"], rel=1e-8)
    for name in ("A", "B", "E"):
        log = math.log(fit.params[name])
        assert log == pytest.approx(golden[f"log_{name}"], abs=to_digits(golden[f"log_{name}"]))
    assert fit.params["alpha"] == pytest.approx(golden["alpha"], abs=5.01e-7)
