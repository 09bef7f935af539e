"""The Chinchilla form and its variant with tied exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.accounting import FLOPS_PER_PARAM_TRAIN
from scalelab.theory.laws.base import Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.projection import EXPONENTS, exponent_grid, project, ranked


@dataclass(frozen=True, kw_only=True)
class Chinchilla(Law):
    r"""Loss surface :math:`L(N, D) = E + A N^{-\alpha} + B D^{-\beta}`.

    Attributes
    ----------
    A, B : float
        Scale of the model and data terms, positive.
    E : float
        Irreducible loss, nats per token.
    alpha, beta : float
        Exponents, positive, unitless.
    """

    name = "chinchilla"
    columns = ("n_params", "n_tokens")
    coordinates = (*log_coordinates("A", "B"), *linear_coordinates("E", "alpha", "beta"))
    offset = "E"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, section 3.3 and appendix D"

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return E + A N^-alpha + B D^-beta from (log A, log B, E, alpha, beta)."""
        log_A, log_B, E, alpha, beta = theta
        N, D = columns["n_params"], columns["n_tokens"]
        return E + np.exp(log_A - alpha * np.log(N)) + np.exp(log_B - beta * np.log(D))

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the model term and the data term."""
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        features = np.zeros((2, len(x), 5))
        features[0, :, 0] = 1.0
        features[0, :, 3] = -x
        features[1, :, 1] = 1.0
        features[1, :, 4] = -y
        return features

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the variable projection on a grid of exponents."""
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        grid = exponent_grid(2)
        coefficients, misfit = _project_pair(grid[:, 0], grid[:, 1], x, y, target)
        A, B, E = coefficients
        return ranked(np.stack([np.log(A), np.log(B), E, grid[:, 0], grid[:, 1]], axis=1), misfit)

    @property
    def a(self) -> float:
        """Exponent of the compute-optimal N: N_opt grows as C^a; NaN if both exponents are 0."""
        total = self.alpha + self.beta
        return self.beta / total if total else math.nan

    @property
    def b(self) -> float:
        """Exponent of the compute-optimal D: D_opt grows as C^b; 1 - a."""
        return 1 - self.a

    @property
    def G(self) -> float:
        """Factor of the allocation: N_opt = G (C/6)^a, D_opt = (C/6)^b / G.

        0 or infinity if one of the terms is 0, because there is then no finite optimum. NaN if both
        are 0.
        """
        with np.errstate(all="ignore"):
            ratio = np.float64(self.alpha * self.A) / np.float64(self.beta * self.B)
            return float(ratio ** (1.0 / np.float64(self.alpha + self.beta)))

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D.

        References
        ----------
        Hoffmann et al. 2022, arXiv:2203.15556, equation 4.
        """
        product = np.asarray(flops, dtype=np.float64) / FLOPS_PER_PARAM_TRAIN
        N = self.G * product**self.a
        return N, product / N

    def tokens_for(self, n_params: ArrayLike, loss: ArrayLike) -> FloatArray:
        """Return the tokens D at which N parameters reach a loss; NaN if none do."""
        N = np.asarray(n_params, dtype=np.float64)
        gap = np.asarray(loss, dtype=np.float64) - self.E - self.A * N**-self.alpha
        return np.asarray((np.where(gap > 0, gap, np.nan) / self.B) ** (-1.0 / self.beta))


@dataclass(frozen=True, kw_only=True)
class TiedExponents(Law):
    r"""Chinchilla with one exponent: :math:`L = E + A N^{-\alpha} + B D^{-\alpha}`.

    Attributes
    ----------
    A, B : float
        Scale of the model and data terms, positive.
    E : float
        Irreducible loss, nats per token.
    alpha : float
        Exponent of both terms, positive, so that N and D scale alike.
    """

    name = "tied"
    columns = ("n_params", "n_tokens")
    coordinates = (*log_coordinates("A", "B"), *linear_coordinates("E", "alpha"))
    offset = "E"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, section 3 (alpha = beta)"

    A: float
    B: float
    E: float
    alpha: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return E + A N^-alpha + B D^-alpha from (log A, log B, E, alpha)."""
        log_A, log_B, E, alpha = theta
        return Chinchilla.evaluate((log_A, log_B, E, alpha, alpha), columns)

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the model term and the data term."""
        free = Chinchilla.terms(columns)
        tied = free[..., :4].copy()
        tied[..., 3] += free[..., 4]
        return tied

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the variable projection on a grid of the exponent."""
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        grid = np.geomspace(EXPONENTS[0], EXPONENTS[-1], 48)
        coefficients, misfit = _project_pair(grid, grid, x, y, target)
        A, B, E = coefficients
        return ranked(np.stack([np.log(A), np.log(B), E, grid], axis=1), misfit)

    def untied(self) -> Chinchilla:
        """Return the same surface as a `Chinchilla` law with beta = alpha."""
        return Chinchilla(A=self.A, B=self.B, E=self.E, alpha=self.alpha, beta=self.alpha)

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D; both grow as its square root."""
        return self.untied().optimal(flops)


def _project_pair(
    alpha: FloatArray, beta: FloatArray, x: FloatArray, y: FloatArray, target: FloatArray
) -> tuple[tuple[FloatArray, FloatArray, FloatArray], FloatArray]:
    """Return (A, B, E) and the misfit for pairs of exponents at log N = x, log D = y."""
    mx, my = x.mean(), y.mean()
    basis = np.stack(
        [
            np.exp(-alpha[:, None] * (x - mx)),
            np.exp(-beta[:, None] * (y - my)),
            np.ones((len(alpha), len(x))),
        ],
        axis=1,
    )
    c, misfit = project(basis, target)
    return (c[:, 0] * np.exp(alpha * mx), c[:, 1] * np.exp(beta * my), c[:, 2]), misfit
