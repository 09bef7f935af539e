"""A law on given rows: residuals and exact derivatives of the objective for a batch of points.

`ExponentialSum` is for laws that are sums of exponentials of linear functions (``Law.terms``). It
uses centred coordinates, in which a scale and its exponent are not correlated, and needs no
Hessian per row. `GeneralRowModel` works for any form, through jets.
`scalelab.fit.powered_sum.row_model_of` chooses between them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.objective import Residual
from scalelab.fit.penalty import Penalty
from scalelab.theory.laws.base import Law
from scalelab.theory.laws.jet import Jet

BLOCK = 20_000
"""Maximum points x rows of a block, so that its arrays fit in the cache of a core."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Expansion:
    """Second-order expansion of the objective at a batch of s points.

    Attributes
    ----------
    value : ndarray of shape (s,)
    gradient : ndarray of shape (s, p)
    hessian : ndarray of shape (s, p, p)
        Exact.
    majorant : ndarray of shape (s, p, p)
        Gauss-Newton matrix with the penalty's majorant: positive semi-definite.
    """

    value: FloatArray
    gradient: FloatArray
    hessian: FloatArray
    majorant: FloatArray


class Rows:
    """Observed values and weights of n rows: one set for all points, or one set per point.

    Attributes
    ----------
    target : ndarray of shape (n,) or (s, n)
        Observed values; positive for the ``log`` residual.
    weight : ndarray of shape (n,) or (s, n)
        Row weights.
    compared : ndarray, shape of ``target``
        ``target``, or its logarithm for the ``log`` residual.
    """

    __slots__ = ("compared", "residual", "target", "weight")

    def __init__(
        self,
        target: FloatArray,
        weight: FloatArray,
        residual: Residual,
        compared: FloatArray | None = None,
    ) -> None:
        self.target = target
        self.weight = weight
        self.residual = residual
        if compared is None:
            compared = np.log(target) if residual == "log" else target
        self.compared = compared

    @property
    def is_log(self) -> bool:
        """Whether the residual is the difference of logarithms."""
        return self.residual == "log"

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.target.shape[-1])

    def take(self, points: Any) -> Rows:
        """Return the rows of selected points (a slice, mask or positions)."""
        if self.target.ndim == 1 and self.weight.ndim == 1:
            return self
        own = self.target.ndim == 2
        return Rows(
            self.target[points] if own else self.target,
            self.weight[points] if self.weight.ndim == 2 else self.weight,
            self.residual,
            self.compared[points] if own else self.compared,
        )

    def reweighted(self, weight: FloatArray) -> Rows:
        """Return the same rows with other weights."""
        return Rows(self.target, weight, self.residual, self.compared)


class RowModel(ABC):
    """A law on n rows as a function of solver coordinates eta, where theta = eta @ mix."""

    def __init__(self, n_rows: int, mix: FloatArray) -> None:
        self.n_rows = n_rows
        self.mix = mix
        self.unmix = np.linalg.inv(mix)

    def theta(self, eta: FloatArray) -> FloatArray:
        """Convert solver coordinates to law coordinates, shapes (s, p)."""
        return eta @ self.mix

    def eta(self, theta: FloatArray) -> FloatArray:
        """Convert law coordinates to solver coordinates, shapes (s, p)."""
        return theta @ self.unmix

    @abstractmethod
    def predicted(self, eta: FloatArray) -> FloatArray:
        """Return the law's values, shape (s, n)."""

    @abstractmethod
    def _expand(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> Expansion:
        """Return the expansion at a block of points."""

    @abstractmethod
    def derivatives(self, eta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return value (n,), gradient (p, n) and Hessian (p, p, n) of every row at one point."""

    def residuals(self, eta: FloatArray, rows: Rows) -> FloatArray:
        """Return predicted minus observed (of logarithms for the ``log`` residual), (s, n).

        It is not finite where the law is not.
        """
        with np.errstate(all="ignore"):
            f = self.predicted(eta)
            return (np.log(f) if rows.is_log else f) - rows.compared

    def value(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> FloatArray:
        """Return the objective, shape (s,); infinity where the law is not finite."""
        with np.errstate(all="ignore"):
            out = penalty.value(self.residuals(eta, rows), rows.weight).sum(axis=1)
        return np.where(np.isfinite(out), out, np.inf)

    def expand(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> Expansion:
        """Return value, gradient, Hessian and majorant at each point."""
        step = max(1, BLOCK // self.n_rows)
        blocks = []
        with np.errstate(all="ignore"):
            for start in range(0, len(eta), step):
                part = slice(start, start + step)
                blocks.append(self._expand(eta[part], rows.take(part), penalty))
        if len(blocks) == 1:
            return blocks[0]
        return Expansion(
            value=np.concatenate([b.value for b in blocks]),
            gradient=np.concatenate([b.gradient for b in blocks]),
            hessian=np.concatenate([b.hessian for b in blocks]),
            majorant=np.concatenate([b.majorant for b in blocks]),
        )


class ExponentialSum(RowModel):
    """theta[offset] + sum_k exp(F[k] @ theta), features F of shape (k, n, p), centred per term."""

    def __init__(
        self, features: FloatArray, *, offset: int | None = None, is_centred: bool = True
    ) -> None:
        mix = centring(features) if is_centred else np.eye(features.shape[2])
        super().__init__(features.shape[1], mix)
        self.offset = offset
        self.features = features @ mix.T
        # Features that are zero up to rounding are set to 0, which keeps the sums below sparse.
        scale = np.abs(features).max(axis=(0, 1)) + 1e-300
        self.features[np.abs(self.features) < 1e-12 * scale] = 0.0
        self._transposed = np.ascontiguousarray(self.features.transpose(0, 2, 1))
        self._active = [np.flatnonzero(f.any(axis=0)) for f in self.features]
        self._squares = [
            np.ascontiguousarray((f[:, cols, None] * f[:, None, cols]).reshape(len(f), -1))
            for f, cols in zip(self.features, self._active, strict=True)
        ]

    def predicted(self, eta: FloatArray) -> FloatArray:
        """Return the law's values, shape (s, n)."""
        total = np.exp(eta @ self._transposed[0])
        for f in self._transposed[1:]:
            total += np.exp(eta @ f)
        if self.offset is not None:
            total += eta[:, self.offset, None]
        return np.asarray(total)

    def derivatives(self, eta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return value (n,), gradient (p, n) and Hessian (p, p, n) of every row at one point."""
        parts = np.exp(self.features @ eta)
        gradient = np.einsum("kn,knp->pn", parts, self.features)
        hessian = np.einsum("kn,knp,knq->pqn", parts, self.features, self.features)
        value = parts.sum(axis=0)
        if self.offset is not None:
            value = value + eta[self.offset]
            gradient[self.offset] += 1.0
        return value, gradient, hessian

    def _expand(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> Expansion:
        s, p = eta.shape
        parts = [np.exp(eta @ f) for f in self._transposed]
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        if self.offset is not None:
            total += eta[:, self.offset, None]
        inverse = 1.0 / total if rows.is_log else np.ones((1, 1))
        if rows.is_log:
            r = np.log(total) - rows.compared
            for part in parts:
                part *= inverse
        else:
            r = total - rows.compared
        value, first, second, majorant = penalty.parts(r, rows.weight)
        jacobian = np.zeros((s, p, self.n_rows))
        curvature = np.zeros((s, p, p))
        if self.offset is not None:
            jacobian[:, self.offset] = inverse
        for part, f, cols, squares in zip(
            parts, self._transposed, self._active, self._squares, strict=True
        ):
            for j in cols:
                jacobian[:, j] += part * f[j]
            bent = ((first * part) @ squares).reshape(s, len(cols), len(cols))
            curvature[:, cols[:, None], cols] += bent
        if rows.is_log:
            second = second - first
        across = jacobian.transpose(0, 2, 1)
        return Expansion(
            value=value.sum(axis=1),
            gradient=np.matmul(jacobian, first[:, :, None])[:, :, 0],
            hessian=np.matmul(jacobian * second[:, None, :], across) + curvature,
            majorant=np.matmul(jacobian * majorant[:, None, :], across),
        )


class GeneralRowModel(RowModel):
    """Row model of any form, through the jets of its formula."""

    def __init__(self, law: type[Law], columns: Mapping[str, FloatArray]) -> None:
        n_rows = max(np.size(column) for column in columns.values())
        super().__init__(n_rows, np.eye(len(law.coordinates)))
        self.law = law
        self.columns = columns

    def predicted(self, eta: FloatArray) -> FloatArray:
        """Return the law's values, shape (s, n)."""
        theta = tuple(eta[:, j : j + 1] for j in range(eta.shape[1]))
        value = np.asarray(self.law.evaluate(theta, self.columns), dtype=np.float64)
        return np.broadcast_to(value, (len(eta), self.n_rows))

    def derivatives(self, eta: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return value (n,), gradient (p, n) and Hessian (p, p, n) of every row at one point."""
        value, gradient, hessian = self.law.derivatives(eta[None], self.columns)
        return value[0], gradient[:, 0], hessian[:, :, 0]

    def _expand(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> Expansion:
        s, p = eta.shape
        out = self.law.evaluate(Jet.variables(eta), self.columns)
        if rows.is_log:
            out = np.log(out)
        r = np.broadcast_to(out.value, (s, self.n_rows)) - rows.compared
        value, first, second, majorant = penalty.parts(r, rows.weight)
        jacobian = np.zeros((s, p, self.n_rows))
        for j, part in out.grad.items():
            jacobian[:, j] = part
        curvature = np.zeros((s, p, p))
        for (i, j), part in out.hess.items():
            total = (first * part).sum(axis=1)
            curvature[:, i, j] = total
            curvature[:, j, i] = total
        across = jacobian.transpose(0, 2, 1)
        return Expansion(
            value=value.sum(axis=1),
            gradient=np.matmul(jacobian, first[:, :, None])[:, :, 0],
            hessian=np.matmul(jacobian * second[:, None, :], across) + curvature,
            majorant=np.matmul(jacobian * majorant[:, None, :], across),
        )


def centring(features: FloatArray) -> FloatArray:
    """Return the matrix mix, theta = eta @ mix, that centres the features of each term.

    The intercept of a term is a coordinate whose feature is 1 in that term and 0 in all others.
    """
    k, _, p = features.shape
    mix = np.eye(p)
    for term in range(k):
        others = np.delete(features, term, axis=0)
        own = [
            j for j in range(p) if (features[term, :, j] == 1.0).all() and not others[..., j].any()
        ]
        if not own:
            continue
        for j in range(p):
            if j != own[0] and features[term, :, j].any():
                mix[j, own[0]] = -features[term, :, j].mean()
    return mix
