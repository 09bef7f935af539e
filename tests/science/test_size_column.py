"""Coverage where N is counted without embeddings and the truth counts them; both are offered.

The table goes to results/tables/size_column.md.
"""

import numpy as np
import pytest

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.parametric import fit_parametric
from scalelab.forecast.allocate import derived, parse_request
from scalelab.forecast.averaged_forecast import average_forecast
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.size_column import count_warnings, fit_counts
from tests.forecast.test_size_column import A, best, loss, table, total

N_TABLES, LEVEL, FEWEST_COVERED = 40, 0.9, 0.85
AHEAD = (10.0, 100.0, 1000.0)


def answers(seed, largest=1e20):
    """Return, by distance: coverage, error and half-width of n_params alone and of both counts."""
    rows = table(seed, largest=largest)
    found = fit_counts(rows)
    out, questions = [], []
    for factor in AHEAD:
        flops = largest * factor
        N = best(flops)
        D = flops / 6 / total(N)
        truth = loss(N, D)
        at = {"n_params": np.array([N]), "n_tokens": np.array([D])}
        questions.append(parse_request(f"N={N:.9g},D={D:.9g}"))
        cells = []
        for each in (found.counts[0].fit, found):
            says = each.predict(at, LEVEL)
            low, high = float(says.low[0]), float(says.high[0])
            cells += [low <= truth <= high, abs(says.value[0] / truth - 1), np.log(high / low) / 2]
        out.append(cells)
    span = fitted_range(rows)
    asked = [average_forecast(found, each, fitted=span, level=LEVEL) for each in questions]
    law = fit_parametric(rows, bootstrap=BootstrapSpec(k=100))
    is_warned = bool(count_warnings(law, rows, asked, found, derived(law, LEVEL)["a"]))
    return np.array(out, float), is_warned


@pytest.mark.science
@pytest.mark.timeout(3600)
def test_the_average_over_the_counts_covers_and_warns():
    found = [answers(seed) for seed in range(N_TABLES)]
    means = np.mean([cells for cells, _ in found], axis=0)
    for factor, cells in zip(AHEAD, means, strict=True):
        print(f"| {factor:g}x | {' | '.join(f'{x:.4f}' for x in cells)} |")
    warned = np.mean([is_warned for _, is_warned in found])
    print(f"warned: {warned:.2f}")
    assert means[:, 3].min() >= FEWEST_COVERED
    assert warned >= 0.9


@pytest.mark.science
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("is_wrong", [True, False])
def test_the_exponent_of_the_better_count_is_covered(is_wrong):
    covered, warned = [], []
    for seed in range(N_TABLES):
        rows = table(seed, is_wrong=is_wrong)
        law = fit_parametric(rows, bootstrap=BootstrapSpec(k=200))
        a = derived(law, LEVEL)["a"]
        covered.append(a.low <= A <= a.high)
        warned.append(bool(count_warnings(law, rows, (), None, a)))
    print(f"wrong count {is_wrong}: covered {np.mean(covered):.2f}, warned {np.mean(warned):.2f}")
    if is_wrong:
        assert np.mean(warned) >= 0.95
    else:
        assert np.mean(covered) >= 0.8
        assert np.mean(warned) <= 0.1
