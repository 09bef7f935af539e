"""The Chinchilla form with its two terms inside a power."""

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
from scalelab.theory.laws.projection import project


@dataclass(frozen=True, kw_only=True)
class Gamma(Law):
    r"""Loss surface :math:`L = E + (A N^{-\alpha} + B D^{-\beta})^\gamma`.

    Attributes
    ----------
    A, B : float
        Scale of the model and data terms inside the power, positive.
    E : float
        Irreducible loss, nats per token.
    alpha, beta : float
        Exponents inside the power.
    gamma : float
        Power, positive; 1 is Chinchilla.
    """

    name = "gamma"
    columns = ("n_params", "n_tokens")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("gamma"))
    offset = "E"
    power = "gamma"
    source = (
        "Busbridge et al. 2025, arXiv:2502.08606, equation 8; Beck et al. 2025, arXiv:2510.02228"
    )

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    gamma: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, log gamma)."""
        log_A, log_B, E, alpha, beta, log_gamma = theta
        inside = np.logaddexp(
            log_A - alpha * np.log(columns["n_params"]), log_B - beta * np.log(columns["n_tokens"])
        )
        return E + np.exp(np.exp(log_gamma) * inside)

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the two terms inside the power."""
        inside = Chinchilla.terms(columns)
        return np.concatenate([inside, np.zeros((*inside.shape[:2], 1))], axis=2)

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return projections of (L - E)^(1/gamma) on a grid of E, gamma and the exponents."""
        x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
        mx, my = x.mean(), y.mean()
        out = []
        for share, gamma in product((0.0, 0.4, 0.7, 0.9, 0.97), (0.25, 0.4, 0.6, 0.8, 1.0, 1.4)):
            E = share * float(target.min())
            grid = np.array(list(product(np.geomspace(0.1, 0.8, 5) / gamma, repeat=2)))
            basis = np.stack(
                [np.exp(-grid[:, :1] * (x - mx)), np.exp(-grid[:, 1:] * (y - my))], axis=1
            )
            c, _ = project(basis, (target - E) ** (1.0 / gamma))
            ones = np.ones(len(grid))
            out.append(
                np.stack(
                    [
                        np.log(c[:, 0]) + grid[:, 0] * mx,
                        np.log(c[:, 1]) + grid[:, 1] * my,
                        E * ones,
                        grid[:, 0],
                        grid[:, 1],
                        np.log(gamma) * ones,
                    ],
                    axis=1,
                )
            )
        return np.concatenate(out)

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D, which does not depend on the power."""
        return self.inside().optimal(flops)

    def inside(self) -> Chinchilla:
        """Return the law inside the power."""
        return Chinchilla(A=self.A, B=self.B, E=0.0, alpha=self.alpha, beta=self.beta)
