"""Coverage and width of 90 % intervals from 5 to 12 rows (results/tables/few_rows.md).

IsoFLOP tables of three budgets, 1e18 to 1e20, with 3 or 4 sizes over a factor of 16 around 20
tokens per parameter; 5, 6 and 7 rows are a random part of the 9. Scored as in
`tests/science/test_coverage.py`: a, log N_opt and log loss at 100 times the largest compute, for
the fitted law and for the averaged forecaster.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from scalelab.errors import NotIdentifiedError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.forecast.allocate import parse_request
from scalelab.forecast.averaged_forecast import average_forecast
from scalelab.forecast.averaged_optimum import frontier_points
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.size_column import fit_counts
from scalelab.records.types import Observations
from scalelab.theory.laws import Chinchilla

TRUTHS = {
    "0.34, 0.28": Chinchilla(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28),
    "0.50, 0.48": Chinchilla(A=8000.0, B=30000.0, E=2.2, alpha=0.5, beta=0.48),
}
COUNTS = (5, 6, 7, 9, 12)
SIGMA = 0.005
LEVEL = 0.9
AHEAD = 100.0
FEWEST_COVERED, FEWEST_GIVEN, WIDEST = 0.85, 0.8, 2.0
RESULTS = Path(__file__).resolve().parents[2] / "results"


def table(truth, n, rng, heavy=False):
    sizes = [0.25, 1.0, 4.0] if n <= 9 else [0.25, 0.63, 1.6, 4.0]
    flops = np.repeat([1e18, 1e19, 1e20], len(sizes))
    N = np.sqrt(flops / 120) * np.tile(sizes, 3)
    some = np.sort(rng.permutation(len(N))[:n])
    N, D = N[some], flops[some] / 6 / N[some]
    noise = 0.7 * rng.standard_t(3, n) if heavy else rng.standard_normal(n)
    loss = truth.loss({"n_params": N, "n_tokens": D}) * np.exp(SIGMA * noise)
    return Observations(n_params=N, n_tokens=D, loss_nats=loss, flops=6 * N * D)


def quantities(truth, flops):
    """Return the functions of a law that are scored."""
    N, D = truth.optimal(AHEAD * flops)
    return (
        lambda law: law.a,
        lambda law: float(np.log(law.optimal(AHEAD * flops)[0])),
        lambda law: float(np.log(law.loss({"n_params": N, "n_tokens": D}))),
    )


def known_noise_widths(truth, runs):
    """Return the widths to first order if the form and the noise are known, shape (3,)."""
    theta = truth.to_coordinates()
    columns = {"n_params": runs.n_params, "n_tokens": runs.n_tokens}
    value, gradient, _ = truth.derivatives(theta[None], columns)
    slopes = gradient[:, 0] / value[0]
    covariance = np.linalg.inv(slopes @ slopes.T / SIGMA**2)
    steps = 1e-5 * np.maximum(1.0, np.abs(theta))
    asked = quantities(truth, float(runs.flops.max()))
    sides = [
        [[fn(truth.from_coordinates(theta + sign * step * e)) for fn in asked] for sign in (1, -1)]
        for step, e in zip(steps, np.eye(5), strict=True)
    ]
    jacobian = np.array([np.subtract(*ends) for ends in sides]).T / (2 * steps)
    return 2 * 1.645 * np.sqrt(np.einsum("qp,pr,qr->q", jacobian, covariance, jacobian))


@dataclass(frozen=True, kw_only=True)
class Scores:
    given: float  # share of tables with intervals
    covered: np.ndarray  # of those, each of three quantities
    width: np.ndarray  # median over those, over the width with known noise
    silent: int  # tables without intervals whose warnings do not say so


def by_law(runs, truth, seed):
    """Return the intervals of the fitted law, or None, and whether it is silent about that."""
    fit = fit_parametric(
        runs, bootstrap=BootstrapSpec(k=400, seed=seed), n_starts=8, uses_inflation=False
    )
    with np.errstate(all="ignore"):
        found = [fit.interval(fn, LEVEL) for fn in quantities(truth, float(runs.flops.max()))]
    ends = [(each.low, each.high) for each in found]
    if fit.status == "not_identified" or not np.isfinite(ends).all():
        return None, not {w.code for w in fit.warnings} & {"no_interval", "not_identified"}
    return ends, False


def by_average(runs, truth, seed):
    """Return the intervals of the averaged forecaster, or None where it refuses and says why."""
    flops = AHEAD * float(runs.flops.max())
    N, D = (float(x) for x in truth.optimal(flops))
    try:
        found = fit_counts(runs)
        asked = parse_request(f"N={N!r},D={D!r}")
        loss = average_forecast(found, asked, fitted=fitted_range(runs), level=LEVEL)
    except NotIdentifiedError:
        return None, False
    points = frontier_points(found, [flops], LEVEL)
    if not points:
        return None, False
    size = points[0].n_params
    logs = np.log([(size.low, size.high), (loss.low, loss.high)])
    return [(points[0].a.low, points[0].a.high), *logs], False


FORECASTERS = {"law": by_law, "averaged": by_average}


def simulate(truth, n, count, heavy=False, seed=0, forecaster="law"):
    covered, widths, silent = [], [], 0
    for i in range(count):
        runs = table(truth, n, np.random.default_rng((seed, n, i)), heavy)
        ends, is_silent = FORECASTERS[forecaster](runs, truth, i)
        silent += is_silent
        if ends is None:
            continue
        true = [fn(truth) for fn in quantities(truth, float(runs.flops.max()))]
        covered.append([low <= t <= high for (low, high), t in zip(ends, true, strict=True)])
        widths.append([high - low for low, high in ends] / known_noise_widths(truth, runs))
    return Scores(
        given=len(covered) / count,
        covered=np.mean(covered, axis=0) if covered else np.full(3, np.nan),
        width=np.median(widths, axis=0) if covered else np.full(3, np.nan),
        silent=silent,
    )


def is_good(n, scores, slack=0.0, forecaster="law"):
    """Return whether the goals are met; ``slack`` is allowed in coverage and shares.

    The average has no parameter a: its local exponent at the target is wider, so that its width has
    no goal.
    """
    fine = scores.silent == 0
    widths = scores.width if forecaster == "law" else scores.width[1:]
    if n >= 9:
        fine &= scores.given >= FEWEST_GIVEN - slack and bool((widths <= WIDEST).all())
    return fine and (not scores.given or bool((scores.covered >= FEWEST_COVERED - slack).all()))


@pytest.mark.slow
@pytest.mark.parametrize("n", COUNTS)
def test_small_version(n):
    """The goals within two standard errors of 40 tables."""
    scores = simulate(TRUTHS["0.34, 0.28"], n, 40 if n >= 7 else 10)
    assert is_good(n, scores, slack=2 * (0.85 * 0.15 / 40) ** 0.5), scores


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 9])
def test_small_version_of_the_average(n):
    """The goals within two standard errors of 8 tables."""
    scores = simulate(TRUTHS["0.34, 0.28"], n, 8, forecaster="averaged")
    assert is_good(n, scores, 2 * (0.85 * 0.15 / 8) ** 0.5, "averaged"), scores


@pytest.mark.science
@pytest.mark.timeout(0)
@pytest.mark.parametrize("forecaster", FORECASTERS)
def test_intervals_from_few_rows(forecaster):
    """400 tables a cell (averaged: 100), two laws and two kinds of noise, exact goals."""
    lines = [
        "exponents,noise,rows,given,covered_a,covered_N,covered_loss,width_a,width_N,width_loss"
    ]
    missed = []
    count = 400 if forecaster == "law" else 100
    for name, truth in TRUTHS.items():
        for heavy in (False, True):
            for n in COUNTS:
                scores = simulate(truth, n, count, heavy, forecaster=forecaster)
                cells = [f"{x:.3f}" for x in (scores.given, *scores.covered, *scores.width)]
                kind = "heavy" if heavy else "gaussian"
                lines.append(",".join([f'"{name}"', kind, str(n), *cells]))
                print(lines[-1], flush=True)
                if not is_good(n, scores, forecaster=forecaster):
                    missed.append(lines[-1])
    (RESULTS / f"few_rows_{forecaster}.csv").write_text("\n".join(lines) + "\n")
    assert not missed, missed
