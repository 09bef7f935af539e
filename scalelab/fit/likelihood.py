"""The noise scale of the likelihood loss, and the reported value of an objective."""

from __future__ import annotations

import math

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.objective import Objective
from scalelab.fit.penalty import Penalty, log_normaliser


def best_scale(r: FloatArray, w: FloatArray, objective: Objective) -> float:
    """Return the scale s that minimises sum w (log s + huber_delta(r / s)).

    The left side of the condition ``sum w psi(r/s) r/s = sum w`` decreases in s, so bisection in
    log s finds the only root.
    """
    penalty = Penalty(delta=objective.threshold, overprediction=objective.overprediction)
    total = float(np.sum(w))
    size = float(np.sum(w * np.abs(r)))
    if size <= 0:
        return 0.0

    def excess(log_s: float) -> float:
        z = r / math.exp(log_s)
        return float(np.sum(penalty.parts(z, w)[1] * z)) - total

    low = math.log(size / total) + min(0.0, math.log(objective.threshold)) - 5.0
    high = math.log(float(np.abs(r).max())) + 5.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
        if high - low < 1e-15 * max(1.0, abs(middle)):
            break
    return math.exp(0.5 * (low + high))


def reported_value(
    r: FloatArray, w: FloatArray, objective: Objective, scale: float | None
) -> float:
    """Return the objective of residuals r: a sum over rows, or minus the log-likelihood.

    Parameters
    ----------
    r, w : ndarray of shape (n,)
        Residuals and row weights.
    objective : Objective
        The objective.
    scale : float or None
        Noise scale, for the likelihood.
    """
    factor = np.where(r > 0, objective.overprediction, 1.0)
    if objective.loss == "lad":
        return float(np.sum(w * factor * np.abs(r)))
    penalty = Penalty(delta=objective.threshold, overprediction=objective.overprediction)
    if objective.loss != "likelihood" or scale is None:
        return float(np.sum(penalty.value(r, w)))
    if scale <= 0:
        return -math.inf
    constant = math.log(scale) + log_normaliser(objective.threshold)
    return float(np.sum(w)) * constant + float(np.sum(penalty.value(r / scale, w)))
