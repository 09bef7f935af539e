from dataclasses import replace

import numpy as np
import pytest

from scalelab.fit.apart import CODE, apart_notes, apart_words
from scalelab.fit.envelope import EnvelopeFit
from scalelab.fit.intervals import Interval
from scalelab.fit.isoflop import fit_isoflop
from scalelab.fit.power_law import PowerLaw

A = Interval(value=0.503, low=0.49, high=0.52)


def envelope(a, half):
    none = np.zeros(0)
    law = PowerLaw(exponent=a, log_coefficient=0.0, low=a - half, high=a + half)
    return EnvelopeFit(flops=none, n_params=none, n_tokens=none, loss_nats=none, n_law=law)


@pytest.mark.parametrize(
    ("value", "half", "how"),
    [
        (0.394, 0.05, "they differ by more than their intervals"),
        (0.394, 0.1, "their intervals overlap, so the difference can be chance"),
        (0.47, 0.1, None),
    ],
)
def test_an_approach_apart_from_approach_3_says_why(isoflop_runs, value, half, how):
    found = apart_notes(A, fit_isoflop(isoflop_runs()), envelope(value, half), None)
    assert [each.code for each in found] == [CODE] * (how is not None)
    if how is not None:
        (words,) = apart_words(found)
        low, high = value - half, value + half
        assert f"Approach 1, the envelope, has a = {value} [{low:.3f}, {high:.3f}]" in words
        assert how in words
        assert "approach 3 0.503 [0.490, 0.520]" in words
        assert "few sizes" in words


def test_parabolas_and_local_minima_are_compared_too(isoflop_runs):
    isoflop = fit_isoflop(isoflop_runs())
    far = replace(isoflop.n_law, exponent=0.7, low=0.6, high=0.8)
    found = apart_notes(A, replace(isoflop, n_law=far), envelope(0.5, 0.1), far)
    assert ["parabolas" in found[0].message, "local minima" in found[1].message] == [True, True]
    assert apart_notes(None, isoflop, envelope(0.3, 0.01), None) == []
    unknown = Interval(value=0.5, low=np.nan, high=np.nan)
    assert apart_notes(unknown, isoflop, envelope(0.3, 0.01), None) == []
