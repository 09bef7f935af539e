"""Repeated data: the Chinchilla form with effective parameters and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalelab.arrays import FloatArray
from scalelab.theory.laws.allocation import best_split
from scalelab.theory.laws.base import Law, log_coordinates
from scalelab.theory.laws.chinchilla import Chinchilla

R_D, R_N = 15.387756, 5.309743
"""Half-lives of repeated data and excess parameters in the paper, section 5."""
HALF_LIVES = np.geomspace(0.7, 200.0, 8)


@dataclass(frozen=True, kw_only=True)
class DataConstrained(Law):
    r"""Chinchilla on effective N' and D', which grow less with each repetition.

    .. math:: L = E + A N'^{-\alpha} + B D'^{-\beta}, \qquad
        D' = U_D + U_D R_D^* (1 - e^{-R_D/R_D^*}), \qquad R_D = D/U_D - 1

    and N' alike with :math:`U_N = \min(N, N_{opt}(U_D))`, the parameters that the base law would
    spend on the unique tokens.

    Attributes
    ----------
    A, B : float
        Scale of the model and data terms, positive.
    E : float
        Irreducible loss, nats per token.
    alpha, beta : float
        Exponents of the base law.
    R_D, R_N : float
        Repetitions after which data, or excess parameters, have lost most of their value.
    """

    name = "data_constrained"
    columns = ("n_params", "n_tokens", "unique_tokens")
    coordinates = (*Chinchilla.coordinates, *log_coordinates("R_D", "R_N"))
    offset = "E"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, section 3 and appendix A"

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    R_D: float
    R_N: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, log B, E, alpha, beta, log R_D, log R_N)."""
        log_A, log_B, E, alpha, beta, log_R_D, log_R_N = theta
        log_U = np.log(np.minimum(columns["unique_tokens"], columns["n_tokens"]))
        # N_opt(U_D) = G^(1 + beta/alpha) U_D^(beta/alpha)
        log_G = (np.log(alpha) + log_A - np.log(beta) - log_B) / (alpha + beta)
        log_optimal = log_G + (beta / alpha) * (log_G + log_U)
        log_N = np.log(columns["n_params"])
        log_U_N = np.minimum(log_N + 0.0 * log_optimal, log_optimal)
        log_n = log_U_N + log_worth(log_N - log_U_N, log_R_N)
        log_d = log_U + log_worth(np.log(columns["n_tokens"]) - log_U, log_R_D)
        return E + np.exp(log_A - alpha * log_n) + np.exp(log_B - beta * log_d)

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the base law of the least repeated rows with a grid of half-lives."""
        repeats = columns["n_tokens"] / columns["unique_tokens"]
        fresh = repeats <= max(1.0, float(np.quantile(repeats, 0.3)))
        base_columns = {name: columns[name][fresh] for name in Chinchilla.columns}
        base = Chinchilla.seeds(base_columns, target[fresh])[:6]
        return np.array(
            [
                [*start, np.log(r_d), np.log(r_n)]
                for start, r_d, r_n in product(base, HALF_LIVES, HALF_LIVES)
            ]
        )

    def base(self) -> Chinchilla:
        """Return the law of data that is never repeated."""
        return Chinchilla(A=self.A, B=self.B, E=self.E, alpha=self.alpha, beta=self.beta)

    def optimal(
        self, flops: ArrayLike, *, unique_tokens: float | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Return the compute-optimal (N, D) at C = 6 N D with the given number of unique tokens.

        None means that data are never repeated, which is the base law.
        """
        if unique_tokens is None:
            return self.base().optimal(flops)

        def loss(N: FloatArray, D: FloatArray) -> FloatArray:
            unique = np.minimum(D, unique_tokens)
            return self.loss({"n_params": N, "n_tokens": D, "unique_tokens": unique})

        return best_split(loss, flops)


def log_worth(log_ratio: Any, log_half_life: Any) -> Any:
    """Return log(1 + R* (1 - exp(-R/R*))) for R = exp(log_ratio) - 1.

    ``expm1``, since 1 - exp(-x) loses all digits for the long half-lives that fits try.
    """
    half_life = np.exp(log_half_life)
    repeats = np.expm1(log_ratio)
    return np.log1p(-half_life * np.expm1(-repeats / half_life))
