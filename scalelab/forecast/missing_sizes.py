"""Which sizes a budget lacks: its minimum is outside the grid, or the grid drifts away from it.

The warnings `edge_minimum` and `drifting_grid` name the fault; this names the runs that remove it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalelab.fit.diagnose import CENTRE_SHIFT, drift

if TYPE_CHECKING:
    from scalelab.fit.isoflop import IsoflopCurve, IsoflopFit
    from scalelab.fit.parabola import Edge

BEYOND = 4.0
"""Ratio of the farthest added size to the best one."""
STEP = 2.0
"""Largest ratio of neighbouring added sizes."""
OPPOSITE: dict[Edge, Edge] = {"below": "above", "above": "below", "not_convex": "not_convex"}
"""Side of the minimum in N for that in D, at one compute."""
SIDES: dict[Edge, tuple[int, ...]] = {"below": (-1,), "above": (1,), "not_convex": (-1, 1)}
OUTSIDE, DRIFTS = "no minimum inside", "sizes drift away"


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingSizes:
    """Sizes to add at a budget that exists.

    Attributes
    ----------
    budget : float
        FLOP of each run, as in the table.
    n_params : tuple of float
        Ascending.
    reason : str
    """

    budget: float
    n_params: tuple[float, ...]
    reason: str


def missing_sizes(
    isoflop: IsoflopFit, optimum: Callable[[float], float] | None
) -> tuple[MissingSizes, ...]:
    """Return the sizes that budgets lack, in the order of the budgets.

    Parameters
    ----------
    isoflop : IsoflopFit
    optimum : callable, optional
        Best N at a compute; without it, the best size is taken to be at the edge of the grid.
    """
    drifts = abs(drift(isoflop)) > math.log(CENTRE_SHIFT)
    found = []
    for curve in isoflop.curves:
        edge, reason = _edge(curve), OUTSIDE
        sides: tuple[int, ...] = ()
        if edge is None and drifts:
            sides, reason = _far_side(curve), DRIFTS
        if edge is None and not sides:
            continue
        best = None if optimum is None else optimum(curve.budget)
        if edge is not None:
            sides = _outside(curve, edge, best)
        sizes = [size for side in sides for size in _beyond(curve, side, best)]
        found.append(
            MissingSizes(budget=curve.budget, n_params=tuple(sorted(sizes)), reason=reason)
        )
    return tuple(found)


def _edge(curve: IsoflopCurve) -> Edge | None:
    """Return where the minimum of a budget is in N, if it is not inside the grid."""
    edge = curve.n_params.edge
    if edge is None and curve.n_tokens.edge is not None:
        return OPPOSITE[curve.n_tokens.edge]
    return edge


def _outside(curve: IsoflopCurve, edge: Edge, best: float | None) -> tuple[int, ...]:
    """Return the sides of the grid, -1 and 1, on which the minimum of a budget may be."""
    if edge == "not_convex" and best is not None:
        centre = math.exp(curve.n_params.centre)
        return (-1,) if best < centre else (1,)
    return SIDES[edge]


def _far_side(curve: IsoflopCurve) -> tuple[int, ...]:
    """Return the side on which the minimum is, if it is nearer to the edge than to the centre."""
    offset, half_width = curve.n_params.offset, curve.n_params.half_width
    return () if abs(offset) < half_width / 2 else (-1,) if offset < 0 else (1,)


def _beyond(curve: IsoflopCurve, side: int, best: float | None) -> list[float]:
    """Return sizes from the edge of the grid on one side to `BEYOND` times past the best size."""
    edge = math.exp(curve.n_params.centre + side * curve.n_params.half_width)
    farther = max if side > 0 else min
    start = edge if best is None else farther(edge, best)
    end = start * BEYOND**side
    count = math.ceil(abs(math.log(end / edge)) / math.log(STEP) - 1e-9)
    return [edge * (end / edge) ** (k / count) for k in range(1, count + 1)]
