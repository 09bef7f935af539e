r"""Weak Gaussian priors of the forms. They depend on the middle and the number of the runs only.

With a prior on its parameters, a form can propose runs before the first loss exists, and a few
cheap runs cannot move the exponents far. The priors describe what published fits have in common: at
the middle of the pool the model term and the data term are each about a quarter of the loss (within
a factor of 2.2), the exponents are 0.35 +- 0.12, and the irreducible part is 0.6 +- 0.25 of the
loss. Losses are in units of a typical loss, so that the unit (nats per token, bits per character)
does not matter.

References
----------
Exponents 0.28 to 0.37: Hoffmann et al. 2022, arXiv:2203.15556; Besiroglu et al. 2024,
arXiv:2404.10102; Muennighoff et al. 2023, arXiv:2305.16264 (0.35, and half-lives 15.4 and 5.3);
0.31: Grattafiori et al. 2024, arXiv:2407.21783; 0.46: Czech 2026, arXiv:2603.22339.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws import Chinchilla, DataConstrained, Farseer, Gamma
from scalelab.theory.laws.base import Law
from scalelab.theory.laws.farseer import REFERENCE

TERM_SHARE, TERM_SPREAD = 0.25, 0.8
"""A term as a share of the loss at the middle of the pool; standard deviation of its log."""
FLOOR_SHARE, FLOOR_SPREAD = 0.6, 0.25
"""The irreducible part as a share of the loss."""
EXPONENT, EXPONENT_SPREAD = 0.35, 0.12
POWER_SPREAD = 0.4
"""Standard deviation of log gamma around gamma = 1, the Chinchilla form."""
DATA_HALF_LIFE, PARAMS_HALF_LIFE, HALF_LIFE_SPREAD = 12.0, 6.0, 1.0
"""Repeats after which data and excess parameters lose most of their value; spread of the logs."""
ASYMPTOTE_SHARE, ASYMPTOTE_SLOPE, ASYMPTOTE_STRETCH = 0.75, -0.06, -0.2
ASYMPTOTE_SPREADS = (0.06, 0.25, 0.3)
"""Farseer's asymptote at infinite data: level, slope in log N and stretch, with their spreads."""
SCALE_SPREADS = (0.3, 0.25, TERM_SPREAD)
EXPONENT_SPREADS = (0.06, 0.25, 0.3)
"""Spreads of slope, stretch and log level, of the scale and exponent of Farseer's data term."""
COEFFICIENT_STRETCH = 0.05
FEWEST_ROWS, EXPONENT_SLOPE, EXPONENT_SLOPE_SPREAD, LOG_ODDS = 18, -0.1, 0.1, 7.0
"""From two rows for each parameter on, the slope of Farseer's exponent lies between that of
Chinchilla's law, 0, and the published one, -0.2 at a billion parameters (Li et al. 2025,
arXiv:2506.10972); fewer rows do not determine it, and it stays near 0. The weak priors of nine
parameters cost the evidence 10 nats and more where a smaller form is true, and 3 where Farseer's
is, though real tables often have its shape. The odds give a part back. They were chosen on
simulated and public tables (results/tables/backtest.md)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prior:
    """The prior of a form: theta = mean + mix z, with independent standard normal z.

    Attributes
    ----------
    law : type of Law
    mean : ndarray of shape (p,)
        Centre, in the law's coordinates.
    mix : ndarray of shape (p, p)
        Square root of the prior covariance.
    log_odds : float
        Log of the form's weight before the losses, relative to the other forms. The average takes
        it; a design, which begins without runs, has equal weights.
    """

    law: type[Law]
    mean: FloatArray
    mix: FloatArray
    log_odds: float = 0.0

    def theta(self, z: FloatArray) -> FloatArray:
        """Return the law's coordinates of standardised coordinates z, shape (p,)."""
        return self.mean + self.mix @ z

    def standardised(self, theta: FloatArray) -> FloatArray:
        """Return standardised coordinates of the law's coordinates, shape (p,)."""
        return np.asarray(np.linalg.solve(self.mix, theta - self.mean))

    def log_loss(
        self, z: FloatArray, columns: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Return log loss, shape (n,), and its derivative with respect to z, shape (n, p).

        If the law has no positive finite value, the loss is `IMPOSSIBLE` and its slope 0.
        """
        value, slope = self.log_losses(z[None], columns)
        return value[0], slope[0].T

    def log_losses(
        self, z: FloatArray, columns: Mapping[str, FloatArray]
    ) -> tuple[FloatArray, FloatArray]:
        """Return `log_loss` at several z, shape (s, p): shapes (s, n) and (s, p, n)."""
        with np.errstate(all="ignore"):
            value, gradient = self.law.slopes(self.mean + z @ self.mix.T, columns)
            slope = gradient / value
            is_possible = np.isfinite(value) & (value > 0) & np.isfinite(slope).all(axis=0)
        if not is_possible.all():
            slope = np.where(is_possible, slope, 0.0)
            value = np.where(is_possible, value, IMPOSSIBLE)
        return np.log(value), self.mix.T @ slope.transpose(1, 0, 2)


IMPOSSIBLE = 1e6


def priors_of(columns: Mapping[str, FloatArray]) -> tuple[Prior, ...]:
    """Return the priors of the forms that these columns allow.

    Parameters
    ----------
    columns : Mapping[str, ndarray of shape (n,)]
        ``n_params``, ``n_tokens`` and, if data repeat, ``unique_tokens`` of pool and target.
    """
    x = float(np.log(columns["n_params"]).mean())
    y = float(np.log(columns["n_tokens"]).mean())
    has_many = len(columns["n_params"]) >= FEWEST_ROWS
    found = [chinchilla_prior(x, y), _gamma(x, y), _farseer(x, y, has_many_rows=has_many)]
    if "unique_tokens" in columns:
        found.append(_data_constrained(x, y))
    return tuple(found)


def chinchilla_prior(x: float, y: float) -> Prior:
    """Return the prior, with terms at the middle of the pool: log A = log(term) + alpha x."""
    term = np.log(TERM_SHARE)
    mean = np.array([term, term, FLOOR_SHARE, EXPONENT, EXPONENT])
    spread = np.array([TERM_SPREAD, TERM_SPREAD, FLOOR_SPREAD, EXPONENT_SPREAD, EXPONENT_SPREAD])
    shear = np.eye(5)
    shear[0, 3], shear[1, 4] = x, y
    return Prior(law=Chinchilla, mean=shear @ mean, mix=shear * spread)


def _gamma(x: float, y: float) -> Prior:
    base = chinchilla_prior(x, y)
    return Prior(
        law=Gamma, mean=np.append(base.mean, 0.0), mix=_block(base.mix, np.diag([POWER_SPREAD]))
    )


def _data_constrained(x: float, y: float) -> Prior:
    base = chinchilla_prior(x, y)
    return Prior(
        law=DataConstrained,
        mean=np.append(base.mean, np.log([DATA_HALF_LIFE, PARAMS_HALF_LIFE])),
        mix=_block(base.mix, HALF_LIFE_SPREAD * np.eye(2)),
    )


def _farseer(x: float, y: float, *, has_many_rows: bool) -> Prior:
    """Return the prior of slope, stretch and level (at N_0) of asymptote, scale and exponent.

    The data term is fixed at the middle of the pool, so its scale depends on the exponent; to first
    order log B = log(term) + beta y.
    """
    shear = np.eye(9)
    shear[3, 6] = shear[5, 8] = EXPONENT * y
    spread = np.concatenate([ASYMPTOTE_SPREADS, SCALE_SPREADS, EXPONENT_SPREADS])
    slope = 0.0
    if has_many_rows:
        slope, spread[6] = EXPONENT_SLOPE, EXPONENT_SLOPE_SPREAD
    to_reference = float(np.log(REFERENCE)) - x
    mean = np.array(
        [
            ASYMPTOTE_SLOPE,
            ASYMPTOTE_STRETCH,
            np.log(ASYMPTOTE_SHARE) + ASYMPTOTE_SLOPE * to_reference,
            0.0,
            COEFFICIENT_STRETCH,
            np.log(TERM_SHARE) + EXPONENT * y,
            slope,
            COEFFICIENT_STRETCH,
            np.log(EXPONENT) + slope * to_reference,
        ]
    )
    log_odds = LOG_ODDS if has_many_rows else 0.0
    return Prior(law=Farseer, mean=mean, mix=shear * spread, log_odds=log_odds)


def _block(a: FloatArray, b: FloatArray) -> FloatArray:
    out = np.zeros((len(a) + len(b), len(a) + len(b)))
    out[: len(a), : len(a)] = a
    out[len(a) :, len(a) :] = b
    return out
