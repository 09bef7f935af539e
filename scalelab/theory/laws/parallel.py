"""Parallel scaling: several streams share the parameters, and their outputs are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Law, linear_coordinates, log_coordinates
from scalelab.theory.laws.projection import EXPONENTS, project, ranked

GAINS = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Grid of k, whose published values are 0.33 and 0.39."""


@dataclass(frozen=True, kw_only=True)
class Parallel(Law):
    r"""Loss :math:`L(N, P) = E + A\,[N (k \ln P + 1)]^{-\alpha}` of P parallel streams.

    The rows share one number of tokens.

    Attributes
    ----------
    A : float
        Scale of the model term, positive (:math:`A^\alpha` in the paper).
    E : float
        Irreducible loss, in the unit of the losses.
    alpha : float
        Exponent of the effective parameters.
    k : float
        Gain of the effective parameters per natural logarithm of P, positive.
    """

    name = "parallel"
    columns = ("n_params", "n_streams")
    coordinates = (
        *log_coordinates("A"),
        *linear_coordinates("E", "alpha"),
        *log_coordinates("k"),
    )
    offset = "E"
    source = "Chen et al. 2025, arXiv:2505.10475, equation 5"

    A: float
    E: float
    alpha: float
    k: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, E, alpha, log k)."""
        log_A, E, alpha, log_k = theta
        gain = np.log1p(np.exp(log_k) * np.log(columns["n_streams"]))
        return E + np.exp(log_A - alpha * (np.log(columns["n_params"]) + gain))

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the variable projection on a grid of exponent and gain."""
        grid = np.array(list(product(np.geomspace(EXPONENTS[0], EXPONENTS[-1], 24), GAINS)))
        alpha, k = grid[:, :1], grid[:, 1:]
        x = np.log(columns["n_params"]) + np.log1p(k * np.log(columns["n_streams"]))
        middle = x.mean()
        basis = np.stack([np.exp(-alpha * (x - middle)), np.ones_like(x)], axis=1)
        c, misfit = project(basis, target)
        log_A = np.log(c[:, 0]) + alpha[:, 0] * middle
        theta = np.stack([log_A, c[:, 1], alpha[:, 0], np.log(k[:, 0])], axis=1)
        return ranked(theta, misfit)
