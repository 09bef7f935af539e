"""Status of a fit: tests for vanishing terms, bounds, rank and standard errors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.newton import Box
from scalelab.fit.outcome import FitWarning, Status
from scalelab.theory.laws.base import Law
from scalelab.units import plural

VANISHED = 1e-5
"""Maximum relative effect on any prediction of a positive parameter that has reached 0."""
RANK = 1e-9
"""Minimum ratio of the smallest to the largest singular value of the normalised Jacobian."""
ROWS_EXAMINED_FIRST = 1000
"""Rows in which distinct points are counted before all rows are."""
MAX_RELATIVE_ERROR = 3.0
"""Standard error of a log-parameter, or of an exponent over its value, that is too large."""


def assess(
    law: type[Law],
    theta: FloatArray,
    columns: Mapping[str, FloatArray],
    residuals: FloatArray,
    weight: FloatArray,
    box: Box,
    *,
    is_log: bool,
) -> tuple[Status, tuple[FitWarning, ...]]:
    """Return the status of a fit and one warning per reason.

    Parameters
    ----------
    law : type[Law]
        The form.
    theta : ndarray of shape (p,)
        Optimum in law coordinates.
    columns : Mapping[str, ndarray of shape (n,)]
        The design.
    residuals, weight : ndarray of shape (n,)
        Residuals at the optimum, and row weights.
    box : Box
        Bounds and held coordinates of ``theta``.
    is_log : bool
        Whether residuals are logarithmic.
    """
    names = law.names()
    free = box.free
    reasons: list[str] = []
    used = weight > 0
    # Usually the first rows already contain enough distinct points.
    points = np.unique(np.stack([c[used][:ROWS_EXAMINED_FIRST] for c in columns.values()]), axis=1)
    if points.shape[1] < free.sum():
        points = np.unique(np.stack([c[used] for c in columns.values()]), axis=1)
    if points.shape[1] < free.sum():
        combinations = plural(points.shape[1], f"distinct {' x '.join(columns)} combination")
        reasons.append(
            f"{combinations} cannot determine {plural(int(free.sum()), 'parameter')}. Add runs "
            "with other values, or choose a form with fewer parameters (--form tied)"
        )
    value, gradient = law.slopes(theta[None], columns)
    sensitivity = gradient[:, 0, :] / value[0]
    effect = np.abs(sensitivity[:, used]).max(axis=1)
    vanished = np.array(
        [
            effect[j] < VANISHED if c.is_log else c.name == law.offset and theta[j] <= c.low
            for j, c in enumerate(law.coordinates)
        ]
    )
    reasons += [
        f"{names[j]} runs to 0: the best fit has no such term, so the parameters are not "
        "identified. Add runs over a wider range, or use another --form"
        for j in np.flatnonzero(vanished & free)
    ]
    moving = free & ~vanished
    jacobian = sensitivity if is_log else gradient[:, 0, :]
    jacobian = (jacobian * np.sqrt(weight))[:, used][moving]
    if not reasons:
        reasons += _undetermined(jacobian, residuals[used], theta, law, moving, columns)
    if reasons:
        return "not_identified", tuple(
            FitWarning(code="not_identified", message=f"{reason}.") for reason in reasons
        )
    stopped = free & ((theta <= box.low) | (theta >= box.high))
    if stopped.any():
        return "at_bound", tuple(
            FitWarning(
                code="at_bound",
                message=(
                    f"{names[j]} is at its bound {law.coordinates[j].decode(theta[j]):g}: the best "
                    "value may lie beyond it. Add runs over a wider range, or use another --form."
                ),
            )
            for j in np.flatnonzero(stopped)
        )
    return "ok", ()


def _undetermined(
    jacobian: FloatArray,
    residuals: FloatArray,
    theta: FloatArray,
    law: type[Law],
    moving: NDArray[np.bool_],
    columns: Mapping[str, FloatArray],
) -> list[str]:
    """Return reasons from the Jacobian (p_free, n): deficient rank, or large standard errors."""
    positions = np.flatnonzero(moving)
    size = np.linalg.norm(jacobian, axis=1)
    if not (size > 0).all():
        dead = [law.names()[j] for j in positions[size == 0]]
        return [f"No prediction depends on {', '.join(dead)}. Use another --form"]
    if not np.isfinite(size).all():
        return ["The law is not finite near its best fit. Use another --form"]
    left, singular, _ = np.linalg.svd(jacobian / size[:, None], full_matrices=False)
    if len(singular) < len(positions) or singular[-1] < RANK * singular[0]:
        mixed = [
            law.names()[j]
            for j, part in zip(positions, left[:, -1], strict=True)
            if abs(part) > 0.1
        ]
        levels = [
            f"{name} has {plural(count, 'value')}"
            for name, count in ((n, len(np.unique(c))) for n, c in columns.items())
            if count < 3
        ]
        because = f" ({'; '.join(levels)})" if levels else ""
        return [
            f"The rows do not separate the effects of {', '.join(mixed)}{because}. Add runs that "
            "vary each column independently"
        ]
    n, p = len(residuals), len(positions)
    noise = 1.4826 * float(np.median(np.abs(residuals))) * (n / max(n - p, 1)) ** 0.5
    spread = noise * np.sqrt(((left / singular) ** 2).sum(axis=1)) / size
    out = []
    for j, se in zip(positions, spread, strict=True):
        c = law.coordinates[j]
        relative = se if c.is_log else se / max(abs(theta[j]), 1e-12)
        if relative > MAX_RELATIVE_ERROR:
            out.append(
                f"{c.name} is poorly constrained: its standard error is {relative:.1f} times its "
                "value. Add runs over a wider range of sizes and tokens"
            )
    return out
