"""Coverage of the default intervals on simulated data sets from a known law.

Three designs (isoFLOP with 45 runs, a 6 x 6 grid, a cloud of 200), three kinds of noise (Gaussian,
heavy-tailed, larger for small runs). The 90 % interval is scored on a, on log N_opt at 100 times
the largest compute, and on a predicted log-loss there. Widths are compared with those of a profile
under the true noise, which to first order are 2 x 1.645 standard errors of its Fisher information.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.objective import Objective
from scalelab.fit.parametric import fit_parametric
from scalelab.records.types import Observations
from scalelab.theory.laws import Chinchilla

TRUTH = Chinchilla(A=482.0, B=2085.4, E=1.817, alpha=0.3478, beta=0.3659)
SIGMA = 0.004
LEVEL = 0.9
AHEAD = 100.0
DESIGNS = ("isoflop45", "grid36", "cloud200")
KINDS = ("gaussian", "heavy", "by_size")
TABLE = Path(__file__).resolve().parents[2] / "results" / "coverage.csv"


def design(name):
    if name == "isoflop45":
        flops = np.repeat([6e18, 3e19, 1e20, 3e20, 1e21], 9)
        N = TRUTH.optimal(flops)[0] * np.tile(np.geomspace(0.25, 4, 9), 5)
        return N, flops / 6 / N
    if name == "grid36":
        N, D = np.meshgrid(np.geomspace(5e7, 3e9, 6), np.geomspace(1e9, 1e11, 6))
        return N.ravel(), D.ravel()
    rng = np.random.default_rng(5)
    flops = np.exp(rng.uniform(np.log(6e18), np.log(3e21), 200))
    N = TRUTH.optimal(flops)[0] * np.exp(rng.normal(0, 0.8, 200))
    return N, flops / 6 / N


def noise(kind, rng, N, D):
    """Return noise and the Fisher information of each row's location."""
    n = len(N)
    if kind == "gaussian":
        return SIGMA * rng.standard_normal(n), np.full(n, SIGMA**-2)
    if kind == "heavy":
        # Student's t with 3 degrees of freedom: information (3 + 1)/(3 + 3) per squared scale
        scale = 0.7 * SIGMA
        return scale * rng.standard_t(3, n), np.full(n, 4 / 6 / scale**2)
    sigma = 2 * SIGMA * (N * D / (N * D).min()) ** -0.25 + 0.25 * SIGMA
    return sigma * rng.standard_normal(n), sigma**-2


def quantities(params, flops):
    """Return a, log N_opt and log loss ahead, shape (k, 3), of parameters by name."""
    p = {name: np.asarray(value, dtype=float) for name, value in params.items()}
    a = p["beta"] / (p["alpha"] + p["beta"])
    log_G = np.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) / (p["alpha"] + p["beta"])
    N, D = TRUTH.optimal(AHEAD * flops)
    loss = p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]
    return np.stack([a, log_G + a * np.log(AHEAD * flops / 6), np.log(loss)], axis=-1)


def test_the_vectorised_quantities_are_those_of_the_law():
    a, log_N, log_loss = quantities(TRUTH.params, 1e21)
    N, D = TRUTH.optimal(AHEAD * 1e21)
    assert a == pytest.approx(TRUTH.a, rel=1e-14)
    assert log_N == pytest.approx(np.log(N), rel=1e-14)
    assert log_loss == pytest.approx(np.log(TRUTH.loss({"n_params": N, "n_tokens": D})), rel=1e-14)


def profile_width(N, D, information, flops):
    columns = {"n_params": N, "n_tokens": D}
    theta = TRUTH.to_coordinates()
    value, gradient, _ = TRUTH.derivatives(theta[None], columns)
    slopes = gradient[:, 0] / value[0]
    covariance = np.linalg.inv((slopes * information) @ slopes.T)
    steps = 1e-5 * np.maximum(1.0, np.abs(theta))
    jacobian = np.array(
        [
            quantities(TRUTH.from_coordinates(theta + s * e).params, flops)
            - quantities(TRUTH.from_coordinates(theta - s * e).params, flops)
            for s, e in zip(steps, np.eye(5), strict=True)
        ]
    ).T / (2 * steps)
    return 2 * 1.645 * np.sqrt(np.einsum("qp,pr,qr->q", jacobian, covariance, jacobian))


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Scores of the default interval over simulated data sets, each of three quantities."""

    covered: np.ndarray
    below: np.ndarray  # the truth lies below the interval
    width: np.ndarray  # median, over the profile's under the true noise
    spread: np.ndarray  # relative standard deviation of that width
    efficient: float  # share of fits whose replicates are efficient refits


def simulate(name, kind, count, replicates, seed=3):  # 1 and 2 chose the method
    N, D = design(name)
    flops = float(6 * (N * D).max())
    rng = np.random.default_rng(seed)
    truth = quantities(TRUTH.params, flops)
    information = noise(kind, rng, N, D)[1]
    clean = TRUTH.loss({"n_params": N, "n_tokens": D})
    limits, efficient = np.empty((count, 2, 3)), 0
    for i in range(count):
        loss = clean * np.exp(noise(kind, rng, N, D)[0])
        fit = fit_parametric(
            Observations(n_params=N, n_tokens=D, loss_nats=loss, flops=6 * N * D),
            bootstrap=BootstrapSpec(k=replicates, seed=i),
            n_starts=4,
            uses_inflation=False,
        )
        with np.errstate(all="ignore"):  # an exponent at its bound of 0 has no N_opt
            draws = quantities(dict(zip(fit.names, fit.samples.T, strict=True)), flops)
        draws = draws[np.isfinite(draws).all(axis=1)]
        limits[i] = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        efficient += fit.bootstrap.refits == "efficient"
    low, high = limits[:, 0], limits[:, 1]
    width = (high - low) / profile_width(N, D, information, flops)
    return Coverage(
        covered=((low <= truth) & (truth <= high)).mean(axis=0),
        below=(truth < low).mean(axis=0),
        width=np.median(width, axis=0),
        spread=width.std(axis=0) / width.mean(axis=0),
        efficient=efficient / count,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_small_version(kind):
    """The goals within the statistical error of 100 data sets.

    A share of 0.87 measured on 100 sets has a standard error of 0.034, and a median width one of
    1.25 times the spread of the widths over sqrt(100), with a spread of 0.3 to 0.35; three of
    either are allowed, a width of 1.36. 100 sets cannot show a coverage above 0.96, so there is
    no upper limit.
    """
    count = 100
    scores = simulate("isoflop45", kind, count=count, replicates=150)
    assert (scores.covered >= 0.87 - 3 * (0.87 * 0.13 / count) ** 0.5).all(), scores
    allowed = 1.2 * (1 + 3 * 1.25 * np.minimum(scores.spread, 0.35) / count**0.5)
    assert (scores.width <= allowed).all(), scores
    assert scores.efficient >= 0.95, scores


@pytest.mark.science
@pytest.mark.timeout(0)
def test_default_interval():
    """1,000 data sets per cell, three designs and three kinds of noise, exact goals."""
    lines = ["design,noise,quantity,covered,truth_below,relative_width,spread,efficient"]
    missed = []
    for name, kind in itertools.product(DESIGNS, KINDS):
        scores = simulate(name, kind, 1000, replicates=1000)
        for q, quantity in enumerate(("a", "log_N_opt", "log_loss")):
            line = (
                f"{name},{kind},{quantity},{scores.covered[q]:.3f},{scores.below[q]:.3f},"
                f"{scores.width[q]:.3f},{scores.spread[q]:.3f},{scores.efficient:.3f}"
            )
            print(line, flush=True)
            lines.append(line)
            if not (0.87 <= scores.covered[q] <= 0.96 and scores.width[q] <= 1.2):
                missed.append(line)
    TABLE.write_text("\n".join(lines) + "\n")
    assert not missed, missed


def checkpoints(rng, runs=30, each=8, shared=0.006, own=0.001):
    """Return runs whose checkpoints share most of their noise."""
    N = np.exp(rng.uniform(np.log(5e7), np.log(5e9), runs))
    D = np.exp(rng.uniform(np.log(4e9), np.log(1e11), runs))
    share = np.tile(np.linspace(0.3, 1.0, each), (runs, 1))
    columns = {"n_params": np.repeat(N, each), "n_tokens": (share * D[:, None]).ravel()}
    common = np.repeat(rng.standard_normal(runs), each) * shared
    loss = TRUTH.loss(columns) * np.exp(common + own * rng.standard_normal(runs * each))
    return Observations(
        **columns,
        loss_nats=loss,
        flops=6 * columns["n_params"] * columns["n_tokens"],
        cluster=np.repeat(np.arange(runs).astype(str), each),
    )


def clustered_coverage(count, replicates):
    hits = {"cluster": 0, "row": 0}
    rng = np.random.default_rng(3)
    for i in range(count):
        runs = checkpoints(rng)
        for method in hits:
            fit = fit_parametric(
                runs,
                # Least squares is faster, and the noise here has no outliers.
                objective=Objective(loss="ls"),
                bootstrap=BootstrapSpec(
                    k=replicates, seed=i, method="auto" if method == "cluster" else "row"
                ),
                n_starts=4,
                uses_inflation=False,
            )
            assert fit.bootstrap.method == method
            interval = fit.interval(lambda law: law.alpha, level=LEVEL)
            hits[method] += interval.low <= TRUTH.alpha <= interval.high
    return {method: n / count for method, n in hits.items()}


@pytest.mark.slow
def test_clusters_cover_and_rows_do_not():
    covered = clustered_coverage(count=60, replicates=120)
    assert covered["cluster"] >= 0.87 - 3 * (0.09 / 60) ** 0.5
    assert covered["row"] <= 0.7


@pytest.mark.science
@pytest.mark.timeout(0)
def test_clusters_cover_and_rows_do_not_at_length():
    covered = clustered_coverage(count=1000, replicates=400)
    print(covered)
    assert 0.87 <= covered["cluster"] <= 0.96
    assert covered["row"] <= 0.65
