"""Do intervals cover? Simulated data sets from a known law, fitted with the defaults.

Three designs (isoFLOP with 45 runs, a 6 x 6 grid, a cloud of 200), three kinds of noise (Gaussian,
heavy-tailed, larger for small runs). The 90 % interval is scored on a, on log N_opt at 100 times
the largest compute, and on a predicted log-loss there. Widths are compared with those of a profile
under the true noise, which to first order are 2 x 1.645 standard errors of its Fisher information.
"""

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


def quantities(law, flops):
    ahead = TRUTH.optimal(AHEAD * flops)
    at = {"n_params": ahead[0], "n_tokens": ahead[1]}
    return np.array([law.a, np.log(law.optimal(AHEAD * flops)[0]), float(np.log(law.loss(at)))])


def profile_width(N, D, information, flops):
    columns = {"n_params": N, "n_tokens": D}
    theta = TRUTH.to_coordinates()
    value, gradient, _ = TRUTH.derivatives(theta[None], columns)
    slopes = gradient[:, 0] / value[0]
    covariance = np.linalg.inv((slopes * information) @ slopes.T)
    steps = 1e-5 * np.maximum(1.0, np.abs(theta))
    jacobian = np.array(
        [
            quantities(TRUTH.from_coordinates(theta + s * e), flops)
            - quantities(TRUTH.from_coordinates(theta - s * e), flops)
            for s, e in zip(steps, np.eye(5), strict=True)
        ]
    ).T / (2 * steps)
    return 2 * 1.645 * np.sqrt(np.einsum("qp,pr,qr->q", jacobian, covariance, jacobian))


def simulate(name, kind, count, replicates, seed=1):
    """Return coverage and median width over the profile's, of three quantities."""
    N, D = design(name)
    flops = float(6 * (N * D).max())
    rng = np.random.default_rng(seed)
    covered, widths = np.zeros(3), []
    truth = quantities(TRUTH, flops)
    information = noise(kind, rng, N, D)[1]
    clean = TRUTH.loss({"n_params": N, "n_tokens": D})
    for i in range(count):
        loss = clean * np.exp(noise(kind, rng, N, D)[0])
        fit = fit_parametric(
            Observations(n_params=N, n_tokens=D, loss_nats=loss, flops=6 * N * D),
            bootstrap=BootstrapSpec(k=replicates, seed=i),
            n_starts=4,
        )
        draws = np.array([quantities(law, flops) for law in fit.replicate_laws()])
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        covered += (low <= truth) & (truth <= high)
        widths.append(high - low)
    width = np.median(widths, axis=0) / profile_width(N, D, information, flops)
    return covered / count, width


def check(covered, width, count, *, widest):
    # binomial slack of three standard errors at 90 % for the small version; none at 1000
    slack = 0.0 if count >= 1000 else 3 * (0.09 / count) ** 0.5
    assert (covered >= 0.87 - slack).all(), covered
    assert (covered <= 0.96 + slack).all(), covered
    assert (width <= widest).all(), width


@pytest.mark.parametrize("kind", ["gaussian", "heavy"])
def test_small_version(kind):
    covered, width = simulate("isoflop45", kind, count=40, replicates=150)
    check(covered, width, 40, widest=1.45)


@pytest.mark.science
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "by_size"])
@pytest.mark.parametrize("name", ["isoflop45", "grid36", "cloud200"])
def test_default_interval(name, kind):
    count = 1000
    covered, width = simulate(name, kind, count, replicates=400)
    print(f"{name} {kind}: covered {covered}, width {width}")
    check(covered, width, count, widest=1.2)


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
                # robustness is not at stake here, and least squares is the faster one
                objective=Objective(loss="ls"),
                bootstrap=BootstrapSpec(
                    k=replicates, seed=i, method="auto" if method == "cluster" else "row"
                ),
                n_starts=4,
            )
            assert fit.bootstrap.method == method
            interval = fit.interval(lambda law: law.alpha, level=LEVEL)
            hits[method] += interval.low <= TRUTH.alpha <= interval.high
    return {method: n / count for method, n in hits.items()}


def test_clusters_cover_and_rows_do_not():
    covered = clustered_coverage(count=60, replicates=120)
    assert covered["cluster"] >= 0.87 - 3 * (0.09 / 60) ** 0.5
    assert covered["row"] <= 0.7


@pytest.mark.science
@pytest.mark.timeout(0)
def test_clusters_cover_and_rows_do_not_at_length():
    covered = clustered_coverage(count=1000, replicates=400)
    print(covered)
    assert 0.85 <= covered["cluster"] <= 0.96
    assert covered["row"] <= 0.65
