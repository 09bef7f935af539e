"""Whether the rows determine the law: vanishing terms, bounds, rank, flat valleys."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scalelab.fit.newton import Box
from scalelab.fit.outcome import FitWarning, Status
from scalelab.theory.laws.base import Law

FloatArray = NDArray[np.float64]

VANISHED = 1e-5
"""A positive parameter that moves no prediction by this share has run to 0."""
RANK = 1e-9
"""Smallest singular value, over the largest, of the normalised Jacobian of a determined fit."""
ENOUGH = 1000
FLAT = 3.0
"""Standard error of a log-parameter, or of an exponent over its value, that says nothing."""


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
    """Return the status of a fit with one warning a reason.

    Parameters
    ----------
    law : type[Law]
        The form.
    theta : ndarray of shape (p,)
        Its optimum in law coordinates.
    columns : Mapping[str, ndarray of shape (n,)]
        The design.
    residuals, weight : ndarray of shape (n,)
        At the optimum.
    box : Box
        Bounds and held coordinates, on ``theta``.
    is_log : bool
        Whether residuals are logarithmic.
    """
    names = law.names()
    free = box.free
    reasons: list[str] = []
    used = weight > 0
    # the first rows show enough designs of any large table
    points = np.unique(np.stack([c[used][:ENOUGH] for c in columns.values()]), axis=1)
    if points.shape[1] < free.sum():
        points = np.unique(np.stack([c[used] for c in columns.values()]), axis=1)
    if points.shape[1] < free.sum():
        designs = (
            "1 distinct design" if points.shape[1] == 1 else f"{points.shape[1]} distinct designs"
        )
        reasons.append(f"{designs} cannot determine {int(free.sum())} parameters")
    value, gradient, _ = law.derivatives(theta[None], columns)
    sensitivity = gradient[:, 0, :] / value[0]
    reach = np.abs(sensitivity[:, used]).max(axis=1)
    vanished = np.array(
        [
            reach[j] < VANISHED if c.is_log else c.name == law.offset and theta[j] <= 0
            for j, c in enumerate(law.coordinates)
        ]
    )
    reasons += [
        f"{names[j]} runs to 0: no interior optimum, so the parameters have no unique value"
        for j in np.flatnonzero(vanished & free)
    ]
    moving = free & ~vanished
    jacobian = sensitivity if is_log else gradient[:, 0, :]
    jacobian = (jacobian * np.sqrt(weight))[:, used][moving]
    if not reasons:
        reasons += _valleys(jacobian, residuals[used], theta, law, moving, columns)
    if reasons:
        return "not_identified", tuple(
            FitWarning(code="not_identified", message=reason) for reason in reasons
        )
    stopped = free & ((theta <= box.low) | (theta >= box.high))
    if stopped.any():
        return "at_bound", tuple(
            FitWarning(
                code="at_bound",
                message=f"{names[j]} stops at its bound {law.coordinates[j].decode(theta[j]):g}",
            )
            for j in np.flatnonzero(stopped)
        )
    return "ok", ()


def _valleys(
    jacobian: FloatArray,
    residuals: FloatArray,
    theta: FloatArray,
    law: type[Law],
    moving: NDArray[np.bool_],
    columns: Mapping[str, FloatArray],
) -> list[str]:
    """Return reasons from the Jacobian (p_free, n): deficient rank, or a valley without a floor."""
    positions = np.flatnonzero(moving)
    size = np.linalg.norm(jacobian, axis=1)
    if not (size > 0).all():
        dead = [law.names()[j] for j in positions[size == 0]]
        return [f"no row depends on {', '.join(dead)}"]
    left, singular, _ = np.linalg.svd(jacobian / size[:, None], full_matrices=False)
    if len(singular) < len(positions) or singular[-1] < RANK * singular[0]:
        mixed = [
            law.names()[j]
            for j, part in zip(positions, left[:, -1], strict=True)
            if abs(part) > 0.1
        ]
        levels = [
            f"{name} takes {count} value{'s' if count > 1 else ''}"
            for name, count in ((n, len(np.unique(c))) for n, c in columns.items())
            if count < 3
        ]
        because = f" ({'; '.join(levels)})" if levels else ""
        return [f"the rows cannot tell {', '.join(mixed)} apart{because}"]
    n, p = len(residuals), len(positions)
    noise = 1.4826 * float(np.median(np.abs(residuals))) * (n / max(n - p, 1)) ** 0.5
    spread = noise * np.sqrt(((left / singular) ** 2).sum(axis=1)) / size
    out = []
    for j, se in zip(positions, spread, strict=True):
        c = law.coordinates[j]
        relative = se if c.is_log else se / max(abs(theta[j]), 1e-12)
        if relative > FLAT:
            out.append(
                f"{c.name} lies in a flat valley: standard error {relative:.1f} times itself"
            )
    return out
