"""Low-precision training: the Chinchilla form on an effective number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Law, log_coordinates
from scalelab.theory.laws.chinchilla import Chinchilla


@dataclass(frozen=True, kw_only=True)
class Precision(Law):
    r"""Chinchilla on an effective number of parameters.

    .. math:: L = E + A N_{eff}^{-\alpha} + B D^{-\beta}, \qquad
        N_{eff} = N \prod_i (1 - e^{-P_i/\gamma_i})

    The product runs over the bits of weights, activations and the key-value cache in training.

    Attributes
    ----------
    A, B : float
        Scale of the model and data terms, positive.
    E : float
        Irreducible loss, nats per token.
    alpha, beta : float
        Exponents.
    gamma_w, gamma_a, gamma_kv : float
        Sensitivity to the bits of weights, activations and cache, in bits, positive.
    """

    name = "precision"
    columns = ("n_params", "n_tokens", "bits_weights", "bits_activations", "bits_kv")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("gamma_w", "gamma_a", "gamma_kv"))
    offset = "E"
    source = "Kumar et al. 2024, arXiv:2411.04330, equation 3"

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    gamma_w: float
    gamma_a: float
    gamma_kv: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from Chinchilla's coordinates and the logarithms of the gammas."""
        log_A, log_B, E, alpha, beta, *log_gammas = theta
        log_n = np.log(columns["n_params"])
        for log_gamma, name in zip(log_gammas, cls.columns[2:], strict=True):
            log_n = log_n + np.log(-np.expm1(-columns[name] * np.exp(-log_gamma)))
        log_D = np.log(columns["n_tokens"])
        return E + np.exp(log_A - alpha * log_n) + np.exp(log_B - beta * log_D)

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return Chinchilla's seeds with a grid of the gammas."""
        base = Chinchilla.seeds(columns, target)[:8]
        logs = np.log((0.7, 2.0, 5.0))
        return np.array(
            [[*start, *gammas] for start, gammas in product(base, product(logs, repeat=3))]
        )

    def optimal(
        self, flops: ArrayLike, *, bits: tuple[float, float, float] = (16.0, 16.0, 16.0)
    ) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D in bits (weights, activations, cache)."""
        gammas = (self.gamma_w, self.gamma_a, self.gamma_kv)
        share = np.prod([-np.expm1(-p / g) for p, g in zip(bits, gammas, strict=True)])
        A = self.A * float(share) ** -self.alpha
        at = Chinchilla(A=A, B=self.B, E=self.E, alpha=self.alpha, beta=self.beta)
        return at.optimal(flops)
