"""Huber's penalty on residuals, its derivatives and its majorant, elementwise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Penalty:
    """Huber's penalty with threshold ``delta`` and a factor where the law over-predicts.

    Attributes
    ----------
    delta : float
        Threshold; infinity is least squares.
    overprediction : float
        Factor on positive residuals.
    unit : ndarray of shape (n,), or None
        Unit of ``delta`` in each row, for rows of unequal noise; None means 1.
    """

    delta: float
    overprediction: float = 1.0
    unit: FloatArray | None = None

    @property
    def threshold(self) -> float | FloatArray:
        """Threshold in the unit of the residuals: one number, or one per row."""
        return self.delta if self.unit is None else self.delta * self.unit

    def value(self, r: FloatArray, w: FloatArray) -> FloatArray:
        """Return w rho(r), in the shape of ``r``."""
        if math.isinf(self.delta):
            rho = 0.5 * r * r
        else:
            inside = np.clip(r, -self.threshold, self.threshold)
            rho = inside * (r - 0.5 * inside)
        return rho * self._weights(r, w)

    def parts(
        self, r: FloatArray, w: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return w rho, its first and second derivative, and rho'(r)/r.

        The last is the weight of the quadratic that touches the penalty at r from above. It gives
        a majorant of the Hessian that is always positive semi-definite.
        """
        weight = self._weights(r, w)
        if math.isinf(self.delta):
            first = weight * r
            return 0.5 * first * r, first, weight, weight
        inside = np.clip(r, -self.threshold, self.threshold)
        first = weight * inside
        value = first * (r - 0.5 * inside)
        is_inside = inside == r
        second = weight * is_inside
        majorant = np.where(is_inside, weight, first / np.where(is_inside, 1.0, r))
        return value, first, second, majorant

    def _weights(self, r: FloatArray, w: FloatArray) -> FloatArray:
        if self.overprediction == 1.0:
            return np.broadcast_to(w, r.shape)
        return w * np.where(r > 0, self.overprediction, 1.0)


def log_normaliser(delta: float) -> float:
    """Return the log of the integral of exp(-huber_delta(z)) over the real line."""
    if math.isinf(delta):
        return 0.5 * math.log(2 * math.pi)
    middle = math.sqrt(2 * math.pi) * math.erf(delta / math.sqrt(2))
    return math.log(middle + 2 * math.exp(-0.5 * delta * delta) / delta)
