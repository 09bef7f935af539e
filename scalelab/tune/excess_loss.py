r"""The excess loss around the best learning rate and batch, and how the optimum moves with N and D.

A cell is the runs of one N and one D. With :math:`u, v` the distances of log lr and log batch from
the optimum of the cell, the excess of log loss over the cell's minimum is

.. math:: q = a\,\ell_k(u - r v) + b\,v^2, \qquad \ell_k(w) = 2\,(e^{kw} - 1 - kw) / k^2 .

Near the optimum q is quadratic. r is the slope of the best log lr against log batch. Farther away
the skew k > 0 makes the loss rise faster above the best rate than below it, where training is only
slower. The optimum is a power law, :math:`\log lr^* = c + p \log N + q \log D`, likewise for the
batch; all cells share a, r, b and k.

References
----------
Li et al. 2025, arXiv:2503.04715, sections 3 and 4 (convex excess loss, optimum a power law).
Varian 1975, "A Bayesian approach to real estate assessment" (the linex function).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from scalelab.arrays import FloatArray

SHAPE = ("log_a", "ridge", "log_b", "skew")
"""Names of the shape parameters: log a, r, log b, k."""

SHAPE_PRIOR: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"log_a": (-4.6, 1.5), "ridge": (0.5, 0.5), "log_b": (-4.6, 1.5), "skew": (0.5, 0.5)}
)
"""Mean and standard deviation of each shape parameter. A rate or batch off by a factor e costs
about 1 % of the loss (0.2 to 4 %). The best rate grows with the batch to a power between 0 and 1,
0.5 in the middle (arXiv:2205.10287). Above the best rate the loss rises faster. The prior weighs as
much as one or two runs."""

SERIES_BELOW = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """The directions in which the cells and the batches vary.

    Attributes
    ----------
    basis : ndarray of float, shape (2, rank)
        Directions in (log N, log D) in which the cells vary; the identity if they vary in both.
    has_batch : bool
        Whether batches differ within cells; if not, only the learning rate has a law.
    """

    basis: FloatArray
    has_batch: bool

    @property
    def n_centre(self) -> int:
        """Number of coefficients of one optimum: a constant and one per direction."""
        return 1 + int(self.basis.shape[1])

    @property
    def shape_names(self) -> tuple[str, ...]:
        """Shape parameters that the runs can constrain."""
        return SHAPE if self.has_batch else ("log_a", "skew")

    @property
    def n_parameters(self) -> int:
        """Length of the parameter vector: optima first, then the shape."""
        return (2 if self.has_batch else 1) * self.n_centre + len(self.shape_names)

    def features(self, log_n: FloatArray, log_d: FloatArray) -> FloatArray:
        """Return ``[1, directions..]`` for centred log N and log D, shape (n, n_centre)."""
        moved = np.stack([log_n, log_d], axis=-1) @ self.basis
        return np.concatenate([np.ones((*moved.shape[:-1], 1)), moved], axis=-1)

    def prior(self) -> tuple[FloatArray, FloatArray]:
        """Return prior mean and precision (1 / variance) of each parameter; 0 for the optima."""
        mean, precision = np.zeros(self.n_parameters), np.zeros(self.n_parameters)
        for offset, name in enumerate(self.shape_names, start=-len(self.shape_names)):
            mean[offset], deviation = SHAPE_PRIOR[name]
            precision[offset] = deviation**-2
        return mean, precision


def excess(
    theta: FloatArray, axes: Axes, features: FloatArray, x: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the excess of log loss over the cell's minimum, and its Jacobian.

    Parameters
    ----------
    theta : ndarray, shape (axes.n_parameters,)
        Optimum of log lr, optimum of log batch (if it varies), then `Axes.shape_names`.
    features : ndarray, shape (n, axes.n_centre)
        `Axes.features` of each run.
    x, y : ndarray, shape (n,)
        Log learning rate and log batch, both centred.

    Returns
    -------
    q : ndarray, shape (n,)
    jacobian : ndarray, shape (n, axes.n_parameters)
    """
    m = axes.n_centre
    u = x - features @ theta[:m]
    if not axes.has_batch:
        log_a, skew = theta[m:]
        a = np.exp(log_a)
        value, slope, by_skew = _linex(u, skew)
        du = a * slope
        columns = [-du[:, None] * features, (a * value)[:, None], (a * by_skew)[:, None]]
        return a * value, np.concatenate(columns, axis=1)
    v = y - features @ theta[m : 2 * m]
    log_a, ridge, log_b, skew = theta[2 * m :]
    a, b = np.exp(log_a), np.exp(log_b)
    value, slope, by_skew = _linex(u - ridge * v, skew)
    du = a * slope
    dv = 2 * b * v - ridge * du
    shape = np.stack([a * value, -v * du, b * v * v, a * by_skew], axis=1)
    jacobian = [-du[:, None] * features, -dv[:, None] * features, shape]
    return a * value + b * v * v, np.concatenate(jacobian, axis=1)


def _linex(w: FloatArray, k: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return 2 (exp(kw) - 1 - kw) / k^2 and its derivatives by w and k; series for small k."""
    if abs(k) < SERIES_BELOW:
        kw = k * w
        return w * w * (1 + kw / 3 + kw * kw / 12), w * (2 + kw + kw * kw / 3), w**3 * (2 + kw) / 6
    # Far above the best rate the excess exceeds any real loss; clipping keeps exp finite.
    z = np.clip(k * w, -50.0, 50.0)
    value = 2 * (np.expm1(z) - z) / k**2
    slope = 2 * np.expm1(z) / k
    return value, slope, (w * slope - 2 * value) / k
