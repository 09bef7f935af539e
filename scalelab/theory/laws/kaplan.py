"""The forms of Kaplan et al. 2020: L(N, D), and power laws in one variable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.accounting import FLOPS_PER_PARAM_TRAIN
from scalelab.theory.laws.base import Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.projection import project


@dataclass(frozen=True, kw_only=True)
class Kaplan(Law):
    r"""Loss surface :math:`L = [(N_c/N)^{\alpha_N/\alpha_D} + D_c/D]^{\alpha_D}`.

    Attributes
    ----------
    N_c : float
        Parameters (without embeddings in the paper) that would reach a loss of 1.
    D_c : float
        Tokens that would reach a loss of 1.
    alpha_n, alpha_d : float
        Exponents in N and D, positive.
    """

    name = "kaplan"
    columns = ("n_params", "n_tokens")
    coordinates = log_coordinates("N_c", "D_c", "alpha_n", "alpha_d")
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.5"

    N_c: float
    D_c: float
    alpha_n: float
    alpha_d: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from the logarithms of (N_c, D_c, alpha_n, alpha_d)."""
        log_N_c, log_D_c, log_alpha_n, log_alpha_d = theta
        model = np.exp(log_alpha_n - log_alpha_d) * (log_N_c - np.log(columns["n_params"]))
        data = log_D_c - np.log(columns["n_tokens"])
        return np.exp(np.exp(log_alpha_d) * np.logaddexp(model, data))

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return projections of L^(1/alpha_d), which is linear given the exponents."""
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        level = float(np.median(target))  # powers of losses far from 1 have no float
        grid = np.array(list(product(np.geomspace(0.02, 0.6, 10), repeat=2)))
        out = []
        for alpha_n, alpha_d in grid:
            ratio = alpha_n / alpha_d
            basis = np.stack([np.exp(-ratio * (x - x.mean())), np.exp(-(y - y.mean()))])
            c, _ = project(basis[None], (target / level) ** (1 / alpha_d))
            log_c = np.log(c[0]) + np.log(level) / alpha_d
            log_N_c = log_c[0] / ratio + x.mean()
            log_D_c = log_c[1] + y.mean()
            out.append([log_N_c, log_D_c, np.log(alpha_n), np.log(alpha_d)])
        return np.array(out)

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D."""
        pairs = np.asarray(flops, dtype=np.float64) / FLOPS_PER_PARAM_TRAIN
        k = self.alpha_n / self.alpha_d
        log_N = (np.log(k) + k * np.log(self.N_c) + np.log(pairs) - np.log(self.D_c)) / (k + 1)
        N = np.exp(log_N)
        return N, pairs / N


@dataclass(frozen=True, kw_only=True)
class _PowerLaw(Law):
    """(scale / x)^alpha in one column; subclasses name the column and the scale."""

    alpha: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from the logarithms of (scale, alpha)."""
        log_scale, log_alpha = theta
        return np.exp(np.exp(log_alpha) * (log_scale - np.log(columns[cls.columns[0]])))

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the regression of log L on log x, for several exponents around it."""
        x, y = np.log(columns[cls.columns[0]]), np.log(target)
        spread = float(((x - x.mean()) ** 2).sum())
        slope = -float(((x - x.mean()) * y).sum()) / spread if spread > 0 else 0.1
        alphas = np.clip(slope, 1e-4, None) * np.array([1.0, 0.5, 2.0])
        return np.stack([x.mean() + y.mean() / alphas, np.log(alphas)], axis=1)


@dataclass(frozen=True, kw_only=True)
class KaplanParams(_PowerLaw):
    r"""Loss :math:`L(N) = (N_c/N)^{\alpha}` at unlimited data.

    Attributes
    ----------
    N_c : float
        Parameters that would reach a loss of 1.
    alpha : float
        Exponent, positive.
    """

    name = "kaplan_n"
    columns = ("n_params",)
    coordinates = log_coordinates("N_c", "alpha")
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.1"

    N_c: float


@dataclass(frozen=True, kw_only=True)
class KaplanTokens(_PowerLaw):
    r"""Loss :math:`L(D) = (D_c/D)^{\alpha}` of large models stopped early.

    Attributes
    ----------
    D_c : float
        Tokens that would reach a loss of 1.
    alpha : float
        Exponent, positive.
    """

    name = "kaplan_d"
    columns = ("n_tokens",)
    coordinates = log_coordinates("D_c", "alpha")
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.2"

    D_c: float


@dataclass(frozen=True, kw_only=True)
class KaplanCompute(_PowerLaw):
    r"""Loss :math:`L(C) = (C_c/C)^{\alpha}` on the compute frontier.

    Attributes
    ----------
    C_c : float
        FLOPs that would reach a loss of 1.
    alpha : float
        Exponent, positive.
    """

    name = "kaplan_c"
    columns = ("flops",)
    coordinates = log_coordinates("C_c", "alpha")
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.3"

    C_c: float


@dataclass(frozen=True, kw_only=True)
class ComputeFrontier(Law):
    r"""Loss :math:`L(C) = E + A\,C^{-\alpha}` on the compute frontier.

    Attributes
    ----------
    A : float
        Scale, positive.
    E : float
        Irreducible loss, nats per token.
    alpha : float
        Exponent, positive.
    """

    name = "compute"
    columns = ("flops",)
    coordinates = (*log_coordinates("A"), *linear_coordinates("E", "alpha"))
    offset = "E"
    source = "Henighan et al. 2020, arXiv:2010.14701, equation 1.1"

    A: float
    E: float
    alpha: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, E, alpha)."""
        log_A, E, alpha = theta
        return E + np.exp(log_A - alpha * np.log(columns["flops"]))

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the one exponential."""
        x = np.log(columns["flops"])
        return np.stack([np.ones_like(x), np.zeros_like(x), -x], axis=1)[None]

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the variable projection on a grid of the exponent."""
        x = np.log(columns["flops"])
        alpha = np.geomspace(0.01, 1.0, 40)
        basis = np.stack(
            [np.exp(-alpha[:, None] * (x - x.mean())), np.ones((len(alpha), len(x)))], axis=1
        )
        c, _ = project(basis, target)
        return np.stack([np.log(c[:, 0]) + alpha * x.mean(), c[:, 1], alpha], axis=1)
