"""Sparse models: a model term that depends on the share of parameters in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.chinchilla import Chinchilla


@dataclass(frozen=True, kw_only=True)
class Sparsity(Law):
    r"""Loss :math:`L = E + (g\,s^{b} + A) N^{-\alpha} + B D^{-\beta}` at a density s.

    The density s = 1 - S is the share of parameters that are not zero, or active for a token: 1 for
    a dense model. N counts these parameters only.

    Attributes
    ----------
    A, g : float
        Scales of the model term in the limit of density 0, and of the addition, positive.
    B : float
        Scale of the data term, positive.
    E : float
        Irreducible loss, nats per token.
    alpha, beta : float
        Exponents of parameters and tokens.
    b : float
        Exponent of the density, positive.
    """

    name = "sparsity"
    columns = ("n_params", "n_tokens", "density")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("g"), *linear_coordinates("b"))
    offset = "E"
    source = "Frantar et al. 2023, arXiv:2309.08520, equation 2"

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    g: float
    b: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, log g, b)."""
        log_A, log_B, E, alpha, beta, log_g, b = theta
        log_scale = log_g + b * np.log(columns["density"])
        extra = np.exp(log_scale - alpha * np.log(columns["n_params"]))
        return Chinchilla.evaluate((log_A, log_B, E, alpha, beta), columns) + extra

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the model, data and density terms."""
        x = np.log(columns["n_params"])
        features = np.zeros((3, len(x), 7))
        features[:2, :, :5] = Chinchilla.terms(columns)
        features[2, :, 5] = 1.0
        features[2, :, 3] = -x
        features[2, :, 6] = np.log(columns["density"])
        return features

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return Chinchilla's seeds, the model term split in several ways."""
        base = Chinchilla.seeds(columns, target)[:12]
        return np.array(
            [
                [start[0] + np.log(1 - share), *start[1:], start[0] + np.log(share), b]
                for start, share, b in product(base, (0.05, 0.3, 0.7), (0.1, 0.4, 1.2))
            ]
        )

    def optimal(self, flops: ArrayLike, *, density: float = 1.0) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D, N active, at one density."""
        return self.at(density).optimal(flops)

    def at(self, density: float) -> Chinchilla:
        """Return the law of N and D at one density."""
        scale = self.A + self.g * density**self.b
        return Chinchilla(A=scale, B=self.B, E=self.E, alpha=self.alpha, beta=self.beta)
