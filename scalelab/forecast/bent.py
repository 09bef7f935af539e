r"""Chinchilla's form with one bend: forms that only the average asks.

A law that holds for one count of N, or whose exponents do not change, is bent in another table. The
bend is small among the runs and large far from them, in the loss and more so in N_opt. Three bends
that published tables show have one or two parameters with weak priors each; the evidence says how
much they count.

References
----------
Li et al. 2025, arXiv:2506.10972 (the data exponent depends on N). Pearce and Song 2024,
arXiv:2406.12907 (parameters without embeddings: :math:`N_{all} = N + \omega N^{1/3}`). Caballero et
al. 2023, arXiv:2210.14891 (a power law with a smooth break).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.forecast.priors import Prior, chinchilla_prior
from scalelab.theory.laws import Chinchilla
from scalelab.theory.laws.base import linear_coordinates

DRIFT_SPREADS = (0.05, 0.015)
"""Spreads of the data term's slope in log N, and of the change of its exponent for each log N."""
LEFT_OUT_SHARE, LEFT_OUT_SPREAD = 0.3, 1.2
"""Parameters left out of the count, relative to N, at the middle of the pool; spread of the log."""
BREAK_SPREADS = (1.5, 0.06)
"""Spreads of the log of the compute at the break, around the middle of the pool, and of the change
of the exponent there."""
BREAK_LOG_ODDS = -1.0
"""A break that begins among the largest runs fits every table and says nothing of what follows."""
FEWEST_ROWS, FEWEST_ROWS_OF_A_BREAK = 12, 18
"""Rows that can show a bend: Chinchilla's five parameters, two of a bend, and five to see them. A
break also needs rows on both sides of it."""
SIZE_OF_EMBEDDINGS = 1 / 3
"""Exponent of N by which parameters of embedding and head grow: that of the width."""


@dataclass(frozen=True, kw_only=True)
class Drifting(Chinchilla):
    r"""Loss surface :math:`E + A N^{-\alpha} + B N^p D^{-\beta - c \log N}`."""

    name = "drifting"
    coordinates = (
        *Chinchilla.coordinates,
        *linear_coordinates("p", "c", low=-np.inf),
    )
    source = "Li et al. 2025, arXiv:2506.10972, section 3 (exponents depend on N)"

    p: float
    c: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, p, c)."""
        log_A, log_B, E, alpha, beta, p, c = theta
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        return E + np.exp(log_A - alpha * x) + np.exp(log_B + p * x - beta * y - c * (x * y))


@dataclass(frozen=True, kw_only=True)
class PartlyCounted(Chinchilla):
    r"""Loss surface :math:`E + A (N + \omega N^{1/3})^{-\alpha} + B D^{-\beta}`."""

    name = "partly counted"
    coordinates = (*Chinchilla.coordinates, *linear_coordinates("log_omega", low=-np.inf))
    source = "Pearce and Song 2024, arXiv:2406.12907, equation 10"

    log_omega: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, log omega)."""
        log_A, log_B, E, alpha, beta, log_omega = theta
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        log_n = np.logaddexp(x, log_omega + SIZE_OF_EMBEDDINGS * x)
        return E + np.exp(log_A - alpha * log_n) + np.exp(log_B - beta * y)


@dataclass(frozen=True, kw_only=True)
class Broken(Chinchilla):
    r"""Loss surface :math:`E + (A N^{-\alpha} + B D^{-\beta}) (1 + N D / P)^\delta`."""

    name = "broken"
    coordinates = (*Chinchilla.coordinates, *linear_coordinates("log_break", "delta", low=-np.inf))
    source = "Caballero et al. 2023, arXiv:2210.14891, equation 1, with one break"

    log_break: float
    delta: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, log break, delta)."""
        log_A, log_B, E, alpha, beta, log_break, delta = theta
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        bend = delta * np.logaddexp(x + y - log_break, 0.0)
        return E + np.exp(log_A - alpha * x + bend) + np.exp(log_B - beta * y + bend)


def bent_priors(
    columns: Mapping[str, FloatArray], *, is_only_count: bool = True
) -> tuple[Prior, ...]:
    """Return the priors of the bent forms around the middle of the rows.

    Parameters
    ----------
    columns : Mapping[str, ndarray of shape (n,)]
        ``n_params`` and ``n_tokens``. There is no form for fewer than `FEWEST_ROWS` rows, and no
        break for fewer than `FEWEST_ROWS_OF_A_BREAK`.
    is_only_count : bool
        Whether the rows have one count of N. If they have several, the losses choose among these,
        and no form asks what the count leaves out.
    """
    if len(columns["n_params"]) < FEWEST_ROWS:
        return ()
    x = float(np.log(columns["n_params"]).mean())
    y = float(np.log(columns["n_tokens"]).mean())
    base = chinchilla_prior(x, y)
    p, c = DRIFT_SPREADS
    drifting = np.zeros((7, 7))
    drifting[:5, :5] = base.mix
    # log B + p x - beta y - c x y, with p and c around the middle (x, y) of the pool.
    drifting[[1, 5], 5] = np.array([-x, 1.0]) * p
    drifting[[1, 4, 5, 6], 6] = np.array([-x * y, -x, y, 1.0]) * c
    counted = np.zeros((6, 6))
    counted[:5, :5] = base.mix
    counted[5, 5] = LEFT_OUT_SPREAD
    log_omega = np.log(LEFT_OUT_SHARE) + (1 - SIZE_OF_EMBEDDINGS) * x
    broken = np.zeros((7, 7))
    broken[:5, :5] = base.mix
    broken[[5, 6], [5, 6]] = BREAK_SPREADS
    # The terms at the middle of the pool, where the bend is delta log 2, keep their prior.
    broken[[0, 1], 6] = -np.log(2) * BREAK_SPREADS[1]
    found = [Prior(law=Drifting, mean=np.append(base.mean, [0.0, 0.0]), mix=drifting)]
    if len(columns["n_params"]) >= FEWEST_ROWS_OF_A_BREAK:
        mean = np.append(base.mean, [x + y, 0.0])
        found.append(Prior(law=Broken, mean=mean, mix=broken, log_odds=BREAK_LOG_ODDS))
    if is_only_count:
        mean = np.append(base.mean, log_omega)
        found.append(Prior(law=PartlyCounted, mean=mean, mix=counted))
    return tuple(found)
