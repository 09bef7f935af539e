"""Farseer: the Chinchilla form whose three coefficients all depend on N."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.laws.allocation import best_split
from scalelab.theory.laws.base import Coordinate, Law
from scalelab.theory.laws.jet import growth
from scalelab.theory.laws.projection import project

STRETCHES = np.array([-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.15, 0.25, 0.4])
"""Exponents of N tried for each coefficient."""
STEEPEST = 2.0
"""Bound on those exponents."""
REFERENCE = 1e9
"""Size N_0 at which the coordinates take level and slope of each coefficient."""


@dataclass(frozen=True, kw_only=True)
class Farseer(Law):
    r"""Loss surface :math:`L = e^{s N^q + S} + e^{B N^b + Q} D^{-e^{A N^a + R}}`.

    Attributes
    ----------
    s, q, S : float
        The asymptote's dependence on N: factor, stretch and level.
    B, b, Q : float
        The same for the scale of the data term.
    A, a, R : float
        The same for its exponent.

    Notes
    -----
    Factor, stretch and level trade against each other along a strongly curved line. A solver
    therefore moves, for each coefficient, its slope and level at N_0 and the stretch:
    ``s N^q + S = level + slope (u^q - 1)/q`` with ``u = N/N_0``, where that line is straight.
    """

    name = "farseer"
    columns = ("n_params", "n_tokens")
    coordinates = tuple(
        Coordinate(name=name, is_log=False, low=-bound, high=bound)
        for name, bound in zip("sqSBbQAaR", 3 * (np.inf, STEEPEST, np.inf), strict=True)
    )
    source = "Li et al. 2025, arXiv:2506.10972, equation 3"

    s: float
    q: float
    S: float
    B: float
    b: float
    Q: float
    A: float
    a: float
    R: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from slope, stretch and level at N_0 of the three coefficients."""
        u = np.log(columns["n_params"] / REFERENCE)
        log_asymptote, log_scale, log_exponent = (
            level + slope * u * growth(stretch * u)
            for slope, stretch, level in (theta[:3], theta[3:6], theta[6:])
        )
        y = np.log(columns["n_tokens"])
        return np.exp(log_asymptote) + np.exp(log_scale - np.exp(log_exponent) * y)

    @classmethod
    def decode(cls, theta: FloatArray) -> FloatArray:
        """Return factor, stretch and level at N = 1 from slope, stretch and level at N_0."""
        out = np.array(theta, dtype=np.float64)
        for j in (0, 3, 6):
            slope, stretch, level = theta[:, j], theta[:, j + 1], theta[:, j + 2]
            out[:, j] = slope / stretch * REFERENCE**-stretch
            out[:, j + 2] = level - slope / stretch
        return out

    @classmethod
    def encode(cls, values: FloatArray) -> FloatArray:
        """Return slope, stretch and level at N_0 from factor, stretch and level at N = 1."""
        out = np.array(values, dtype=np.float64)
        for j in (0, 3, 6):
            factor, stretch, level = values[:, j], values[:, j + 1], values[:, j + 2]
            grown = factor * REFERENCE**stretch
            out[:, j] = stretch * grown
            out[:, j + 2] = level + grown
        return out

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return regressions over N of the three coefficients, each fitted at every N separately.

        Given the stretches, the logarithm of each coefficient is linear in the other parameters.
        """
        N, D = columns["n_params"], columns["n_tokens"]
        sizes, curves = _curves(N, D, target)
        out = []
        # the data exponent is poorly known at each size, so it is also tried at one shared value
        for exponents in (curves[:, 2], np.full(len(curves), np.median(curves[:, 2]))):
            logs = np.log(np.stack([curves[:, 0], curves[:, 1], exponents], axis=1))
            ranked = []
            for j in range(3):
                fits = [_line(sizes**stretch, logs[:, j]) for stretch in STRETCHES]
                order = np.argsort([fit[2] for fit in fits], kind="stable")[:4]
                ranked.append([(fits[i][0], STRETCHES[i], fits[i][1]) for i in order])
            out += [[*e, *b, *a] for e, b, a in product(*ranked)]
        return cls.encode(np.array(out))

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D, by search along the budget."""
        return best_split(lambda N, D: self.loss({"n_params": N, "n_tokens": D}), flops)


def _curves(N: FloatArray, D: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the sizes with three token counts, and (E, B, beta) of E + B D^-beta at each.

    If there are fewer than three such sizes, every size gets one fit to all rows.
    """
    grid = np.geomspace(0.08, 1.2, 16)
    sizes, out = [], []
    for size in np.unique(N):
        rows = size == N
        if len(np.unique(D[rows])) >= 3:
            sizes.append(size)
            out.append(_curve(D[rows], target[rows], grid))
    if len(sizes) < 3:
        whole = _curve(D, target, grid)
        sizes, out = list(np.unique(N)), [whole] * len(np.unique(N))
    return np.array(sizes), np.array(out)


def _curve(D: FloatArray, target: FloatArray, grid: FloatArray) -> tuple[float, float, float]:
    y = np.log(D)
    basis = np.stack(
        [np.ones((len(grid), len(y))), np.exp(-grid[:, None] * (y - y.mean()))], axis=1
    )
    c, misfit = project(basis, target)
    i = int(np.argmin(misfit))
    return float(c[i, 0]), float(c[i, 1] * np.exp(grid[i] * y.mean())), float(grid[i])


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float, float]:
    """Return slope, intercept and misfit of a straight line."""
    gap = x - x.mean()
    spread = float(gap @ gap)
    slope = float(gap @ y) / spread if spread > 0 else 0.0
    intercept = float(y.mean() - slope * x.mean())
    return slope, intercept, float(((y - intercept - slope * x) ** 2).sum())
