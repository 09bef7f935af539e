"""The row model of a power of a sum of exponentials, and the choice of the fastest row model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import (
    Expansion,
    ExponentialSum,
    GeneralRowModel,
    RowModel,
    Rows,
    centring,
)
from scalelab.theory.laws.base import Law


class PoweredSum(RowModel):
    """theta[offset] + (sum_k exp(F[k] @ theta))^exp(theta[power]), centred per term."""

    def __init__(
        self, features: FloatArray, *, offset: int | None, power: int, is_centred: bool = True
    ) -> None:
        mix = centring(features) if is_centred else np.eye(features.shape[2])
        super().__init__(features.shape[1], mix)
        self.offset = offset
        self.power = power
        self._features = np.ascontiguousarray((features @ mix.T).transpose(0, 2, 1))
        self._active = [np.flatnonzero(f.any(axis=1)) for f in self._features]
        self._squares = [
            np.ascontiguousarray((f[cols][:, None] * f[cols][None]).reshape(-1, self.n_rows).T)
            for f, cols in zip(self._features, self._active, strict=True)
        ]

    def _parts(self, eta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return shares of the terms (k, s, n), log and power of the sum (s, n), gamma (s, 1)."""
        logs = eta @ self._features
        top = logs.max(axis=0)
        shares = np.exp(logs - top)
        total = shares.sum(axis=0)
        gamma = np.exp(eta[:, self.power, None])
        log_sum = top + np.log(total)
        return shares / total, log_sum, np.exp(gamma * log_sum), gamma

    def predicted(self, eta: FloatArray) -> FloatArray:
        """Return the law's values, shape (s, n)."""
        raised = self._parts(eta)[2]
        return raised if self.offset is None else raised + eta[:, self.offset, None]

    def derivatives(self, eta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return value (n,), gradient (p, n) and Hessian (p, p, n) of every row at one point."""
        shares, log_sum, raised, gamma = (part[..., 0, :] for part in self._parts(eta[None]))
        mean = np.einsum("kn,kpn->pn", shares, self._features)
        second = np.einsum("kn,kpn,kqn->pqn", shares, self._features, self._features)
        # d(gamma log S): gamma m in the terms' coordinates, gamma log S in the power's
        slope = gamma * mean
        slope[self.power] = gamma * log_sum
        bend = gamma * (second - mean[:, None] * mean[None])
        bend[self.power] = bend[:, self.power] = gamma * mean
        bend[self.power, self.power] = gamma * log_sum
        gradient = raised * slope
        hessian = raised * (slope[:, None] * slope[None] + bend)
        if self.offset is None:
            return raised, gradient, hessian
        gradient[self.offset] += 1.0
        return raised + eta[self.offset], gradient, hessian

    def _expand(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> Expansion:
        s, p = eta.shape
        shares, log_sum, raised, gamma = self._parts(eta)
        total = raised if self.offset is None else raised + eta[:, self.offset, None]
        inverse = 1.0 / total if rows.is_log else np.ones((1, 1))
        r = (np.log(total) if rows.is_log else total) - rows.compared
        value, first, second, majorant = penalty.parts(r, rows.weight)
        share = raised * inverse
        scaled = first * share * gamma
        slope = np.zeros((s, p, self.n_rows))
        curvature = np.zeros((s, p, p))
        for part, f, cols, squares in zip(
            shares, self._features, self._active, self._squares, strict=True
        ):
            for j in cols:
                slope[:, j] += part * f[j]
            bent = ((scaled * part) @ squares).reshape(s, len(cols), len(cols))
            curvature[:, cols[:, None], cols] += bent
        # f'' = P (slope slope' + bend), with slope = gamma m and bend = gamma (E[FF'] - m m')
        across = np.matmul(slope, scaled[:, :, None])[:, :, 0]
        curvature -= np.matmul(slope * scaled[:, None], slope.transpose(0, 2, 1))
        curvature[:, self.power] += across
        curvature[:, :, self.power] += across
        level = scaled * log_sum
        curvature[:, self.power, self.power] += level.sum(axis=1)
        slope *= gamma[:, :, None]
        slope[:, self.power] = gamma * log_sum
        jacobian = share[:, None] * slope
        curvature += np.matmul(slope * (first * share)[:, None], slope.transpose(0, 2, 1))
        if self.offset is not None:
            jacobian[:, self.offset] += inverse
        if rows.is_log:
            second = second - first
        flipped = jacobian.transpose(0, 2, 1)
        return Expansion(
            value=value.sum(axis=1),
            gradient=np.matmul(jacobian, first[:, :, None])[:, :, 0],
            hessian=np.matmul(jacobian * second[:, None], flipped) + curvature,
            majorant=np.matmul(jacobian * majorant[:, None], flipped),
        )


def row_model_of(
    law: type[Law],
    columns: Mapping[str, FloatArray],
    *,
    is_centred: bool = True,
) -> RowModel:
    """Return the fastest row model of the law.

    Centring mixes a scale with its exponent, so ``is_centred`` must be False if one is held.
    """
    features = law.terms(columns)
    if features is None:
        return GeneralRowModel(law, columns)
    offset = None if law.offset is None else law.names().index(law.offset)
    if law.power is not None:
        power = law.names().index(law.power)
        return PoweredSum(features, offset=offset, power=power, is_centred=is_centred)
    return ExponentialSum(features, offset=offset, is_centred=is_centred)
