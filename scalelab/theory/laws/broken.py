"""Broken neural scaling law: two power laws of compute joined smoothly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Coordinate, Law
from scalelab.theory.laws.kaplan import ComputeFrontier


@dataclass(frozen=True, kw_only=True)
class Broken(Law):
    r"""Loss :math:`L(C) = E + b C^{-c_0} (1 + (C/d)^{1/f})^{-c_1 f}`: one break at d.

    Attributes
    ----------
    E : float
        Irreducible loss (a in the paper).
    b : float
        Scale, positive.
    c_0, c_1 : float
        Exponent before the break, and its change at the break (either sign).
    d : float
        Compute at the break, FLOPs.
    f : float
        Width of the break in natural logarithms of compute, positive: small is sharp.
    """

    name = "broken"
    columns = ("flops",)
    coordinates = (
        Coordinate(name="b"),
        Coordinate(name="E", is_log=False),
        Coordinate(name="c_0", is_log=False, low=-np.inf, high=np.inf),
        Coordinate(name="c_1", is_log=False, low=-np.inf, high=np.inf),
        Coordinate(name="d"),
        Coordinate(name="f", low=1e-2, high=1e2),
    )
    offset = "E"
    source = "Caballero et al. 2023, arXiv:2210.14891, equation 1"

    b: float
    E: float
    c_0: float
    c_1: float
    d: float
    f: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the loss from (log b, E, c_0, c_1, log d, log f)."""
        log_b, E, c_0, c_1, log_d, log_f = theta
        x = np.log(columns["flops"])
        f = np.exp(log_f)
        bend = np.logaddexp(0.0, (x - log_d) / f)
        return E + np.exp(log_b - c_0 * x - c_1 * f * bend)

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return the best unbroken laws with breaks of either sign across the range."""
        x = np.log(columns["flops"])
        starts = ComputeFrontier.seeds(columns, target)[::5]
        breaks = np.quantile(x, (0.2, 0.5, 0.8))
        return np.array(
            [
                [log_A + share * alpha * at, E, alpha * (1 + share), -share * alpha, at, log_f]
                for (log_A, E, alpha), at, share, log_f in product(
                    starts, breaks, (-0.7, 0.0, 0.7), np.log((0.3, 1.5))
                )
            ]
        )
