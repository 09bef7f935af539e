"""Loss as a function of compute and tokens per parameter, for over-trained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.accounting import FLOPS_PER_PARAM_TRAIN
from scalelab.theory.laws.base import Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.chinchilla import TiedExponents


@dataclass(frozen=True, kw_only=True)
class Overtraining(Law):
    r"""Loss surface :math:`L = E + (a M^\eta + b M^{-\eta}) C^{-\eta}`, M = D/N, C = 6ND.

    The surface of `TiedExponents` with alpha = 2 eta, in the variables of over-training: at a
    fixed M the loss is a power law in C whose exponent does not depend on M.

    Attributes
    ----------
    a, b : float
        Scale of the model and data terms, positive.
    E : float
        Irreducible loss, nats per token.
    eta : float
        Exponent of compute, positive.
    """

    name = "overtraining"
    columns = ("n_params", "n_tokens")
    coordinates = (*log_coordinates("a", "b"), *linear_coordinates("E", "eta"))
    offset = "E"
    source = "Gadre et al. 2024, arXiv:2403.08540, equation 4"

    a: float
    b: float
    E: float
    eta: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log a, log b, E, eta)."""
        log_a, log_b, E, eta = theta
        log_M, log_C = _ratio_and_compute(columns)
        return E + np.exp(log_a + eta * (log_M - log_C)) + np.exp(log_b - eta * (log_M + log_C))

    @classmethod
    def terms(cls, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the features of the two exponentials."""
        log_M, log_C = _ratio_and_compute(columns)
        features = np.zeros((2, len(log_M), 4))
        features[0, :, 0] = 1.0
        features[0, :, 3] = log_M - log_C
        features[1, :, 1] = 1.0
        features[1, :, 3] = -log_M - log_C
        return features

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the seeds of the tied form, in these coordinates."""
        tied = TiedExponents.seeds(columns, target)
        eta = tied[:, 3] / 2
        shift = eta * np.log(FLOPS_PER_PARAM_TRAIN)
        return np.stack([tied[:, 0] + shift, tied[:, 1] + shift, tied[:, 2], eta], axis=1)

    def tied(self) -> TiedExponents:
        """Return the same surface in N and D."""
        factor = FLOPS_PER_PARAM_TRAIN**-self.eta
        return TiedExponents(A=self.a * factor, B=self.b * factor, E=self.E, alpha=2 * self.eta)

    def optimal(self, flops: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D: the same M at every budget."""
        return self.tied().optimal(flops)


def _ratio_and_compute(columns: Mapping[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
    x, y = np.log(columns["n_params"]), np.log(columns["n_tokens"])
    return y - x, x + y + np.log(FLOPS_PER_PARAM_TRAIN)
