"""Mixtures of experts with an irreducible loss: by active size and number of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Coordinate, Law
from scalelab.theory.laws.routed import saturated


@dataclass(frozen=True, kw_only=True)
class Experts(Law):
    r"""Loss of mixtures of e experts with an irreducible loss.

    .. math:: L = E + A\,\hat e^{\delta} N^{-\alpha + \gamma \ln \hat e}, \qquad
        1/\hat e = 1/(e - 1 + (1/E_{start} - 1/E_{max})^{-1}) + 1/E_{max}

    The model term of the joint law of dense and MoE models, for one number of tokens. The saturated
    number of experts is that of `scalelab.theory.laws.routed.Routed`.

    Attributes
    ----------
    A : float
        Scale of the model term, positive.
    E : float
        Irreducible loss, nats per token.
    alpha : float
        Exponent of the parameters N of the dense model (active parameters), any sign.
    delta, gamma : float
        Exponent of the experts, and change of the exponent of N with their logarithm.
    E_start, E_max : float
        Numbers of experts at which routing starts to help, and stops to help more.
    """

    name = "experts"
    columns = ("n_params", "n_experts")
    coordinates = (
        Coordinate(name="A"),
        Coordinate(name="E", is_log=False),
        *(
            Coordinate(name=name, is_log=False, low=-np.inf, high=np.inf)
            for name in ("alpha", "delta", "gamma")
        ),
        Coordinate(name="E_start"),
        Coordinate(name="E_max"),
    )
    offset = "E"
    source = "Ludziejewski et al. 2025, arXiv:2502.05172, equation 4"

    A: float
    E: float
    alpha: float
    delta: float
    gamma: float
    E_start: float
    E_max: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log A, E, alpha, delta, gamma, log E_start, log E_max)."""
        log_A, E, alpha, delta, gamma, log_start, log_max = theta
        x = np.log(columns["n_params"])
        log_e = saturated(columns["n_experts"], log_start, log_max)
        return E + np.exp(log_A - alpha * x + delta * log_e + gamma * x * log_e)

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return least squares of log(L - E) on a grid of E, E_start and E_max."""
        x = np.log(columns["n_params"])
        out = []
        for share, start, top in product(
            (0.0, 0.3, 0.6, 0.8, 0.95), (1.05, 2.0, 4.0), (60.0, 200.0, 600.0, 3000.0)
        ):
            E = share * float(target.min())
            log_e = saturated(columns["n_experts"], np.log(start), np.log(top))
            design = np.stack([np.ones_like(x), -x, log_e, x * log_e], axis=1)
            log_A, *rest = np.linalg.lstsq(design, np.log(target - E), rcond=None)[0]
            out.append([log_A, E, *rest, np.log(start), np.log(top)])
        return np.array(out)
