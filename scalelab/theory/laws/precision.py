"""Low-precision training: the Chinchilla form on an effective number of parameters.

`Precision` needs the bits of weights, activations and cache. Where only some of them vary, a form
with fewer columns determines its constants: the others act as a constant factor in A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Law, log_coordinates
from scalelab.theory.laws.chinchilla import Chinchilla


@dataclass(frozen=True, kw_only=True)
class _EffectiveParams(Law):
    """What the forms share: five parameters of Chinchilla, and a gamma for each bits column."""

    offset = "E"
    parts: ClassVar[int] = 1
    """Parts of the model that have the bits of each column."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from Chinchilla's coordinates and the logarithms of the gammas."""
        log_A, log_B, E, alpha, beta, *log_gammas = theta
        log_n = np.log(columns["n_params"])
        for log_gamma, name in zip(log_gammas, cls.columns[2:], strict=True):
            used = np.log(-np.expm1(-columns[name] * np.exp(-log_gamma)))
            log_n = log_n + cls.parts * used
        log_D = np.log(columns["n_tokens"])
        return E + np.exp(log_A - alpha * log_n) + np.exp(log_B - beta * log_D)

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return Chinchilla's seeds with a grid of the gammas."""
        base = Chinchilla.seeds(columns, target)[:8]
        logs = np.log((0.7, 2.0, 5.0))
        grid = product(logs, repeat=len(cls.columns) - 2)
        return np.array([[*start, *gammas] for start, gammas in product(base, grid)])

    def optimal(
        self, flops: ArrayLike, *, bits: Sequence[float] = (16.0, 16.0, 16.0)
    ) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D; ``bits`` has one entry a bits column.

        Further entries are ignored.
        """
        gammas = [self.params[name] for name in self.names()[5:]]
        share = np.prod([-np.expm1(-p / g) for p, g in zip(bits, gammas, strict=False)])
        A = self.A * float(share) ** (-self.alpha * self.parts)
        at = Chinchilla(A=A, B=self.B, E=self.E, alpha=self.alpha, beta=self.beta)
        return at.optimal(flops)


@dataclass(frozen=True, kw_only=True)
class Precision(_EffectiveParams):
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
    source = "Kumar et al. 2024, arXiv:2411.04330, equation 3"

    gamma_w: float
    gamma_a: float
    gamma_kv: float


@dataclass(frozen=True, kw_only=True)
class PrecisionWeights(_EffectiveParams):
    r"""`Precision` for rows that differ in the bits of their weights only.

    .. math:: L = E + A N_{eff}^{-\alpha} + B D^{-\beta}, \qquad
        N_{eff} = N (1 - e^{-P_w/\gamma_w})

    Attributes
    ----------
    A, B, E, alpha, beta, gamma_w : float
        As in `Precision`.
    """

    name = "precision_w"
    columns = ("n_params", "n_tokens", "bits_weights")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("gamma_w"))
    source = "Kumar et al. 2024, arXiv:2411.04330, section 4.1"

    gamma_w: float


@dataclass(frozen=True, kw_only=True)
class PrecisionWeightsActivations(_EffectiveParams):
    r"""`Precision` for rows that differ in the bits of weights and activations.

    .. math:: L = E + A N_{eff}^{-\alpha} + B D^{-\beta}, \qquad
        N_{eff} = N (1 - e^{-P_w/\gamma_w}) (1 - e^{-P_a/\gamma_a})

    Attributes
    ----------
    A, B, E, alpha, beta, gamma_w, gamma_a : float
        As in `Precision`.
    """

    name = "precision_wa"
    columns = ("n_params", "n_tokens", "bits_weights", "bits_activations")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("gamma_w", "gamma_a"))
    source = "Kumar et al. 2024, arXiv:2411.04330, equation 3"

    gamma_w: float
    gamma_a: float


@dataclass(frozen=True, kw_only=True)
class PrecisionTied(_EffectiveParams):
    r"""`Precision` with the same bits P everywhere.

    .. math:: L = E + A N_{eff}^{-\alpha} + B D^{-\beta}, \qquad
        N_{eff} = N (1 - e^{-P/\gamma})^3

    Attributes
    ----------
    A, B, E, alpha, beta : float
        As in `Precision`.
    gamma : float
        Mean sensitivity to the bits of weights, activations and cache, in bits, positive.
    """

    name = "precision_tied"
    columns = ("n_params", "n_tokens", "bits")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("gamma"))
    parts = 3
    source = "Kumar et al. 2024, arXiv:2411.04330, section 4.3"

    gamma: float
