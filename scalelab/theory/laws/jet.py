"""Second-order jets: a NumPy value that carries its exact gradient and Hessian.

A law's formula is written once in NumPy. Called with arrays it gives values; called with the
`Jet.variables` of its coordinates it gives values, gradients and Hessians of the same line, exact
to rounding (forward-mode differentiation to second order). Only the operations that laws need are
here, and any other raises TypeError.

Storage: parts have shape (..., s, n) and broadcast, so a quantity that depends on coordinates only
stays (s, 1). Only the coordinates that a quantity depends on carry derivatives, which keeps
``A N^-alpha`` at two of them for a form of any size. Jets of order 1 carry no Hessian: nine
coordinates have 45 second derivatives, which a Gauss-Newton step does not need.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.polynomial.polynomial import polyder, polyval

from scalelab.arrays import FloatArray


class Jet:
    """A value with its gradient and Hessian.

    Attributes
    ----------
    value : ndarray, broadcastable to (s, n)
    grad : dict of int to ndarray
        First derivatives by coordinate; a missing coordinate is zero.
    hess : dict of (int, int) to ndarray
        Second derivatives by coordinate pair (i <= j); a missing pair is zero.
    order : {1, 2}
        1: second derivatives are not computed, and ``hess`` is empty.
    """

    __slots__ = ("grad", "hess", "order", "value")
    __array_priority__ = 1000

    def __init__(
        self,
        value: FloatArray,
        grad: dict[int, FloatArray],
        hess: dict[tuple[int, int], FloatArray],
        order: int = 2,
    ) -> None:
        self.value = value
        self.grad = grad
        self.hess = hess
        self.order = order

    @staticmethod
    def variables(theta: FloatArray, order: int = 2) -> tuple[Jet, ...]:
        """Return one jet a coordinate for a batch of points, theta of shape (s, p)."""
        one = np.ones((1, 1))
        return tuple(Jet(theta[:, j : j + 1], {j: one}, {}, order) for j in range(theta.shape[1]))

    def full(self, shape: tuple[int, int], p: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return value (s, n), gradient (p, s, n) and Hessian (p, p, s, n) as whole arrays."""
        value = np.broadcast_to(self.value, shape)
        grad = np.zeros((p, *shape))
        hess = np.zeros((p, p, *shape))
        for j, part in self.grad.items():
            grad[j] = part
        for (i, j), part in self.hess.items():
            hess[i, j] = part
            hess[j, i] = part
        return value, grad, hess

    def chain(self, value: FloatArray, first: FloatArray, second: FloatArray) -> Jet:
        """Return f(self) from f, f' and f'' at the value."""
        grad = {j: first * g for j, g in self.grad.items()}
        if self.order == 1:
            return Jet(value, grad, {}, 1)
        hess = {ij: first * h for ij, h in self.hess.items()}
        keys = sorted(self.grad)
        for a, i in enumerate(keys):
            scaled = second * self.grad[i]
            for j in keys[a:]:
                _add(hess, (i, j), scaled * self.grad[j])
        return Jet(value, grad, hess)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rule = _RULES.get(ufunc)
        if method != "__call__" or kwargs or rule is None:
            return NotImplemented
        return rule(*inputs)

    def __add__(self, other: Any) -> Jet:
        return _plus(self, other)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Jet:
        return _times(self, other)

    __rmul__ = __mul__

    def __neg__(self) -> Jet:
        return _times(self, -1.0)

    def __sub__(self, other: Any) -> Jet:
        return _plus(self, -other)

    def __rsub__(self, other: Any) -> Jet:
        return _plus(-self, other)

    def __truediv__(self, other: Any) -> Jet:
        return _divide(self, other)

    def __rtruediv__(self, other: Any) -> Jet:
        return _divide(other, self)


def _add(parts: dict[Any, FloatArray], key: Any, part: FloatArray) -> None:
    parts[key] = parts[key] + part if key in parts else part


def _plus(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        x, y = y, x
    if not isinstance(y, Jet):
        return Jet(x.value + y, x.grad, x.hess, x.order)
    grad, hess = dict(x.grad), dict(x.hess)
    for j, part in y.grad.items():
        _add(grad, j, part)
    for ij, part in y.hess.items():
        _add(hess, ij, part)
    return Jet(x.value + y.value, grad, hess, min(x.order, y.order))


def _times(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        x, y = y, x
    if not isinstance(y, Jet):
        grad = {j: g * y for j, g in x.grad.items()}
        return Jet(x.value * y, grad, {ij: h * y for ij, h in x.hess.items()}, x.order)
    grad = {j: g * y.value for j, g in x.grad.items()}
    hess = {ij: h * y.value for ij, h in x.hess.items()}
    for j, g in y.grad.items():
        _add(grad, j, x.value * g)
    for ij, h in y.hess.items():
        _add(hess, ij, x.value * h)
    if min(x.order, y.order) == 1:
        return Jet(x.value * y.value, grad, {}, 1)
    for i, gi in x.grad.items():
        for j, gj in y.grad.items():
            cross = gi * gj
            _add(hess, (min(i, j), max(i, j)), 2.0 * cross if i == j else cross)
    return Jet(x.value * y.value, grad, hess)


def _divide(x: Any, y: Any) -> Jet:
    if not isinstance(y, Jet):
        return _times(x, 1.0 / y)
    inverse = 1.0 / y.value
    return _times(x, y.chain(inverse, -(inverse**2), 2.0 * inverse**3))


def _exp(x: Jet) -> Jet:
    value = np.exp(x.value)
    return x.chain(value, value, value)


def _expm1(x: Jet) -> Jet:
    slope = np.exp(x.value)
    return x.chain(np.expm1(x.value), slope, slope)


def _log(x: Jet) -> Jet:
    inverse = 1.0 / x.value
    return x.chain(np.log(x.value), inverse, -(inverse**2))


def _log1p(x: Jet) -> Jet:
    inverse = 1.0 / (1.0 + x.value)
    return x.chain(np.log1p(x.value), inverse, -(inverse**2))


def _logaddexp(x: Any, y: Any) -> Jet:
    if not isinstance(x, Jet):
        x, y = y, x
    gap = x - y
    # log(1 + exp(g)) with slope the logistic function of g
    slope = 1.0 / (1.0 + np.exp(-np.clip(gap.value, -700, 700)))
    return _plus(gap.chain(np.logaddexp(0.0, gap.value), slope, slope * (1.0 - slope)), y)


def _select(x: Any, y: Any, takes_first: Any) -> Jet:
    first, second = _as_jet(x), _as_jet(y)

    def pick(a: FloatArray | float, b: FloatArray | float) -> FloatArray:
        return np.where(takes_first, a, b)

    return Jet(
        pick(first.value, second.value),
        {
            j: pick(first.grad.get(j, 0.0), second.grad.get(j, 0.0))
            for j in {**first.grad, **second.grad}
        },
        {
            ij: pick(first.hess.get(ij, 0.0), second.hess.get(ij, 0.0))
            for ij in {**first.hess, **second.hess}
        },
        min(first.order, second.order),
    )


def _as_jet(x: Any) -> Jet:
    return x if isinstance(x, Jet) else Jet(np.asarray(x, dtype=np.float64), {}, {})


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Jet) else x


def growth(x: Any) -> Any:
    """Return (exp(x) - 1) / x, which is 1 at 0, of an array, a jet or a symbol."""
    if hasattr(x, "growth"):
        return x.growth()
    z = np.asarray(_value(x), dtype=np.float64)
    small = np.abs(z) < 1e-2
    any_small = bool(small.any())
    safe: FloatArray = np.where(small, 1.0, z) if any_small else z

    def joined(series: FloatArray, exact: Any) -> FloatArray:
        if not any_small:
            return np.asarray(exact)
        out = np.array(exact)
        out[small] = polyval(z[small], series)
        return out

    ratio = np.expm1(safe) / safe
    value = joined(GROWTH_SERIES[0], ratio)
    if not isinstance(x, Jet):
        return value
    e = np.exp(safe)
    first = (e - ratio) / safe
    slope = joined(GROWTH_SERIES[1], first)
    if x.order == 1:
        return x.chain(value, slope, slope)  # the second derivative is not used
    second = (e - 2.0 * first) / safe
    return x.chain(value, slope, joined(GROWTH_SERIES[2], second))


GROWTH_SERIES: tuple[FloatArray, ...] = tuple(
    np.asarray(polyder(1.0 / np.cumprod(np.arange(1.0, 12.0)), order)) for order in range(3)
)
"""Taylor series of `growth` at 0, sum z^k / (k+1)!, and of its two derivatives: coefficients, exact
to rounding below 1e-2."""


_RULES: dict[np.ufunc, Any] = {
    np.add: _plus,
    np.subtract: lambda x, y: _plus(x, -y),
    np.multiply: _times,
    np.true_divide: _divide,
    np.negative: lambda x: _times(x, -1.0),
    np.exp: _exp,
    np.expm1: _expm1,
    np.log: _log,
    np.log1p: _log1p,
    np.logaddexp: _logaddexp,
    np.minimum: lambda x, y: _select(x, y, _value(x) <= _value(y)),
    np.maximum: lambda x, y: _select(x, y, _value(x) >= _value(y)),
}
