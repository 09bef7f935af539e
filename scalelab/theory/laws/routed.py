"""Routed and mixture-of-experts models: by number of experts, and by granularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Coordinate, Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.chinchilla import Chinchilla

LN10 = float(np.log(10.0))


def saturated(n_experts: FloatArray, log_start: Any, log_max: Any) -> Any:
    r"""Return the logarithm of the saturated number of experts.

    :math:`1/\hat E = 1/(E - 1 + (1/E_{start} - 1/E_{max})^{-1}) + 1/E_{max}`: Clark et al. 2022,
    arXiv:2202.01169, equation 2.
    """
    top = np.exp(-log_max)
    shift = 1.0 / (np.exp(-log_start) - top)
    return -np.log(1.0 / (n_experts - 1.0 + shift) + top)


@dataclass(frozen=True, kw_only=True)
class Routed(Law):
    r"""Loss of routed models by dense-equivalent size and number of experts.

    .. math:: \log_{10} L = a \log_{10} N + b \log_{10} \hat E
        + c \log_{10} N \log_{10} \hat E + d

    with the saturated number of experts
    :math:`1/\hat E = 1/(E - 1 + (1/E_{start} - 1/E_{max})^{-1}) + 1/E_{max}`.

    Attributes
    ----------
    a, b, c, d : float
        Coefficients in base-10 logarithms; a and b negative, c positive in the paper.
    E_start, E_max : float
        Numbers of experts at which routing starts to help, and stops to help more.
    """

    name = "routed"
    columns = ("n_params", "n_experts")
    coordinates = (
        *(
            Coordinate(name=name, is_log=False, low=-np.inf, high=np.inf)
            for name in ("a", "b", "c", "d")
        ),
        Coordinate(name="E_start"),
        Coordinate(name="E_max"),
    )
    source = "Clark et al. 2022, arXiv:2202.01169, equations 1 and 2"

    a: float
    b: float
    c: float
    d: float
    E_start: float
    E_max: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (a, b, c, d, log E_start, log E_max)."""
        a, b, c, d, log_start, log_max = theta
        log_N = np.log(columns["n_params"]) / LN10
        log_E = saturated(columns["n_experts"], log_start, log_max) / LN10
        return np.exp(LN10 * (a * log_N + b * log_E + c * log_N * log_E + d))

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return least squares of log L on a grid of E_start and E_max."""
        log_N, log_L = np.log10(columns["n_params"]), np.log10(target)
        out = []
        for start, top in product((1.05, 1.5, 2.5, 4.0), (60.0, 150.0, 300.0, 600.0, 3000.0)):
            log_E = saturated(columns["n_experts"], np.log(start), np.log(top)) / LN10
            design = np.stack([log_N, log_E, log_N * log_E, np.ones_like(log_N)], axis=1)
            best = np.linalg.lstsq(design, log_L, rcond=None)[0]
            out.append([*best, np.log(start), np.log(top)])
        return np.array(out)


@dataclass(frozen=True, kw_only=True)
class Granularity(Law):
    r"""Fine-grained experts: :math:`L = E + (g G^{-\gamma} + A) N^{-\alpha} + B D^{-\beta}`.

    Attributes
    ----------
    A, g : float
        Scale of the model term, and of the addition from coarse experts, positive.
    B : float
        Scale of the data term, positive.
    E : float
        Irreducible loss, nats per token.
    alpha, beta, gamma : float
        Exponents of parameters, tokens and granularity, positive.
    """

    name = "granularity"
    columns = ("n_params", "n_tokens", "granularity")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("g"), *linear_coordinates("gamma"))
    offset = "E"
    source = "Krajewski et al. 2024, arXiv:2402.07871, equation 9"

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    g: float
    gamma: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, log g, gamma)."""
        log_A, log_B, E, alpha, beta, log_g, gamma = theta
        coarse = log_g - gamma * np.log(columns["granularity"])
        extra = np.exp(coarse - alpha * np.log(columns["n_params"]))
        return Chinchilla.evaluate((log_A, log_B, E, alpha, beta), columns) + extra

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the model, data and coarseness terms."""
        x = np.log(columns["n_params"])
        features = np.zeros((3, len(x), 7))
        features[:2, :, :5] = Chinchilla.terms(columns)
        features[2, :, 5] = 1.0
        features[2, :, 3] = -x
        features[2, :, 6] = -np.log(columns["granularity"])
        return features

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return Chinchilla's seeds, the model term split in several ways."""
        base = Chinchilla.seeds(columns, target)[:12]
        return np.array(
            [
                [start[0] + np.log(1 - share), *start[1:], start[0] + np.log(share), gamma]
                for start, share, gamma in product(base, (0.05, 0.3, 0.7), (0.2, 0.6, 1.5))
            ]
        )

    def optimal(
        self, flops: ArrayLike, *, granularity: float = 1.0
    ) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D, N active, at one granularity."""
        return self.at(granularity).optimal(flops)

    def at(self, granularity: float) -> Chinchilla:
        """Return the law of N and D at one granularity."""
        scale = self.A + self.g * granularity**-self.gamma
        return Chinchilla(A=scale, B=self.B, E=self.E, alpha=self.alpha, beta=self.beta)
