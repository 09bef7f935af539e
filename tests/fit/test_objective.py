"""Objectives and penalties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from scalelab.errors import UsageError
from scalelab.fit.likelihood import best_scale, reported_value
from scalelab.fit.objective import Objective
from scalelab.fit.penalty import Penalty, log_normaliser


@given(r=st.floats(-3, 3), delta=st.floats(1e-4, 2), over=st.floats(0.2, 8))
def test_huber_by_its_definition(r, delta, over):
    rho = r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)
    rho *= over if r > 0 else 1.0
    penalty = Penalty(delta=delta, overprediction=over)
    assert penalty.value(np.array([r]), np.ones(1))[0] == pytest.approx(rho, rel=1e-12, abs=1e-300)
    assert penalty.parts(np.array([r]), np.ones(1))[0][0] == pytest.approx(
        rho, rel=1e-12, abs=1e-300
    )


@given(r=st.floats(-3, 3), s=st.floats(-3, 3), delta=st.floats(1e-3, 2))
def test_the_majorant_lies_above(r, s, delta):
    value, first, second, top = Penalty(delta=delta).parts(np.array([r]), np.ones(1))
    parabola = value + first * (s - r) + top * (s - r) ** 2 / 2
    assert Penalty(delta=delta).value(np.array([s]), np.ones(1))[0] <= parabola[0] + 1e-12
    assert second[0] in (0.0, 1.0)


@pytest.mark.parametrize("delta", [1e-3, 0.3, 1.345, 5.0, math.inf])
def test_density_integrates_to_one(delta):
    def density(z):
        value = Penalty(delta=delta).value(np.array([z]), np.ones(1))[0]
        return math.exp(-value - log_normaliser(delta))

    limit = 40 / min(delta, 4.0)
    total = 2 * quad(density, 0, min(delta, limit))[0]
    if delta < limit:
        total += 2 * quad(density, delta, limit + delta, limit=200)[0]
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("delta", [1e-3, 0.5, 20.0])
def test_best_scale_minimises_the_likelihood(delta):
    r = 0.02 * np.random.default_rng(0).standard_normal(57)
    w = np.random.default_rng(1).uniform(0.5, 2.0, 57)
    objective = Objective(loss="likelihood", delta=delta)
    s = best_scale(r, w, objective)
    best = reported_value(r, w, objective, s)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert reported_value(r, w, objective, s * factor) > best


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"residual": "square"}, "residual 'square'"),
        ({"loss": "tukey"}, "loss 'tukey'"),
        ({"delta": 0.0}, "delta = 0.0"),
        ({"delta": math.nan}, "delta = nan"),
        ({"overprediction": -1.0}, "overprediction = -1.0"),
    ],
)
def test_invalid_objectives(bad, message):
    with pytest.raises(UsageError, match=message):
        Objective(**bad)


def test_thresholds():
    assert Objective().threshold == 1e-3
    assert Objective(delta=None).threshold == 1e-3
    assert Objective(delta=None) == Objective()
    assert Objective(loss="ls").threshold == math.inf
    assert Objective(loss="lad").threshold == 0.0
