"""Downstream accuracy as a function of loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.theory.laws.base import Coordinate, Law


@dataclass(frozen=True, kw_only=True)
class Accuracy(Law):
    r"""Accuracy :math:`b + a / (1 + e^{k (L - L_0)})`, falling with loss.

    Attributes
    ----------
    a : float
        Rise from the floor to the ceiling, positive.
    b : float
        Accuracy of guessing, the floor at high loss.
    k : float
        Steepness, per nat, positive.
    L_0 : float
        Loss at half the rise, nats.
    """

    name = "accuracy"
    target = "accuracy"
    columns = ("loss_nats",)
    coordinates = (
        Coordinate(name="a"),
        Coordinate(name="b", is_log=False, low=0.0, high=1.0),
        Coordinate(name="k"),
        Coordinate(name="L_0", is_log=False, low=-np.inf, high=np.inf),
    )
    source = "Bhagia et al. 2024, arXiv:2412.04403, equation 3"

    a: float
    b: float
    k: float
    L_0: float

    @classmethod
    def evaluate(cls, theta: Sequence[Any], columns: Mapping[str, FloatArray]) -> Any:
        """Return the accuracy from (log a, b, log k, L_0)."""
        log_a, b, log_k, L_0 = theta
        return b + np.exp(log_a - np.logaddexp(0.0, np.exp(log_k) * (columns["loss_nats"] - L_0)))

    @classmethod
    def seeds(cls, columns: Mapping[str, FloatArray], target: FloatArray) -> FloatArray:
        """Return a grid of steepness and midpoint, with rise and floor by least squares."""
        loss = columns["loss_nats"]
        width = max(float(np.ptp(loss)), 1e-3)
        middles = np.linspace(loss.min() - width, loss.max() + 0.5 * width, 12)
        out = []
        for k, L_0 in product(np.geomspace(0.7, 30.0, 8) / width, middles):
            shape = 1.0 / (1.0 + np.exp(np.clip(k * (loss - L_0), -500, 500)))
            design = np.stack([shape, np.ones_like(shape)], axis=1)
            a, b = np.linalg.lstsq(design, target, rcond=None)[0]
            if a <= 0 or not 0 <= b <= 1:
                b = float(np.clip(b, 0.0, 1.0))
                a = max(float(shape @ (target - b)) / max(float(shape @ shape), 1e-12), 1e-3)
            out.append([np.log(a), b, np.log(k), L_0])
        return np.array(out)
