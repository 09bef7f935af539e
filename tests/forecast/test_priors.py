"""Priors: no pool and no form is special; derivatives are those of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from scalelab.forecast.priors import priors_of

RNG = np.random.default_rng(3)
COLUMNS = {
    "n_params": np.geomspace(2e7, 3e9, 9),
    "n_tokens": np.geomspace(7e10, 5e8, 9),
    "unique_tokens": np.full(9, 4e9),
}
PLAIN = {name: COLUMNS[name] for name in ("n_params", "n_tokens")}


def test_forms_follow_the_columns() -> None:
    assert [p.law.name for p in priors_of(PLAIN)] == ["chinchilla", "gamma", "farseer"]
    assert priors_of(COLUMNS)[-1].law.name == "data_constrained"


@pytest.mark.parametrize("i", range(4))
def test_slopes_are_those_of_the_log_loss(i: int) -> None:
    prior = priors_of(COLUMNS)[i]
    z = 0.5 * RNG.standard_normal(len(prior.mean))
    _, slope = prior.log_loss(z, COLUMNS)
    for j, step in enumerate(1e-5 * np.eye(len(z))):
        up, down = prior.log_loss(z + step, COLUMNS)[0], prior.log_loss(z - step, COLUMNS)[0]
        np.testing.assert_allclose(slope[:, j], (up - down) / 2e-5, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("i", range(4))
def test_the_middle_of_the_prior_is_a_typical_loss(i: int) -> None:
    middle = {name: np.exp(np.log(v).mean(keepdims=True)) for name, v in COLUMNS.items()}
    value, _ = priors_of(middle)[i].log_loss(np.zeros(len(priors_of(middle)[i].mean)), middle)
    assert np.exp(value[0]) == pytest.approx(1.0, rel=0.25)


def test_a_law_without_a_value_has_an_impossible_loss_and_no_slope() -> None:
    prior = priors_of(PLAIN)[0]
    z = np.zeros(5)
    z[2] = -1e3  # E far below zero
    value, slope = prior.log_loss(z, PLAIN)
    assert np.isfinite(value).all()
    assert (slope == 0).all()
