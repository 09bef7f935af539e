"""Optimum of the learning rate in each cell of a transfer check, and its drift over the shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from scalelab.tune.run_end import DIVERGED

WINDOW = 2
"""Learning rates on each side of the best one that the parabola uses."""
HELD_FACTOR = 1.5
"""Largest drift of a best learning rate that counts as unchanged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Runs of one parametrization and shape, and their best learning rate.

    Attributes
    ----------
    parametrization, shape : str
        The shape as ``2L-64d-4h``.
    n_layers, d_model, n_params : int
    lrs : tuple of float
        Learning rates, ascending.
    losses : tuple of float or None
        Their losses, nats; infinite for a diverged run, None for an unfinished run.
    best_lr : float or None
        Minimum of a parabola in log lr through the log losses of the best run and up to `WINDOW`
        neighbours on each side. At an end of the rates, that end. None if no run has a loss.
    low, high : float or None
        Confidence interval of ``best_lr`` from the residuals of the parabola. It contains neither
        the noise of seeds nor the choice of the window. None without enough runs. At an end of the
        rates, the neighbour of the end is one limit, and the other is None.
    is_bound : bool
        Whether the best run is at an end of the rates: the optimum may be beyond it.
    """

    parametrization: str
    shape: str
    n_layers: int
    d_model: int
    n_params: int
    lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    best_lr: float | None
    low: float | None
    high: float | None
    is_bound: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How far the best learning rate moves over widths or depths, under one parametrization.

    Attributes
    ----------
    parametrization : str
    axis : str
        ``width`` or ``depth``.
    sizes : tuple of int
        Widths or layers, ascending; the other one is that of most cells.
    factor : float or None
        Largest best learning rate divided by the smallest; None if a cell has none.
    low, high : float or None
        Confidence interval of the factor, from those of the two best rates.
    is_bound : bool
        Whether an optimum is at an end of the rates, so that the factor may be larger.
    has_held : bool or None
        True if the factor is at most `HELD_FACTOR`; False if it is larger, with its interval; None
        otherwise.
    """

    parametrization: str
    axis: str
    sizes: tuple[int, ...]
    factor: float | None
    low: float | None
    high: float | None
    is_bound: bool
    has_held: bool | None


def best_rate(
    lrs: Sequence[float], losses: Sequence[float | None], level: float
) -> tuple[float | None, float | None, float | None, bool]:
    """Return ``best_lr``, ``low``, ``high`` and ``is_bound`` of `Cell`."""
    known = [(lr, loss) for lr, loss in zip(lrs, losses, strict=True) if loss is not None]
    finite = [(lr, loss) for lr, loss in known if loss != DIVERGED]
    if not finite:
        return None, None, None, False
    best = min(range(len(finite)), key=lambda index: finite[index][1])
    edge = finite[best][0]
    if best in (0, len(finite) - 1):
        # Beyond the last finite rate, runs may have diverged: then the optimum is not beyond it.
        is_bound = edge in (lrs[0], lrs[-1])
        inner = finite[1 if best == 0 else -2][0] if is_bound and len(finite) > 1 else None
        return edge, *((None, inner) if best == 0 else (inner, None)), is_bound
    start = max(0, best - WINDOW)
    part = finite[start : best + WINDOW + 1]
    x = np.log([lr for lr, _ in part]) - math.log(edge)
    y = np.log([loss for _, loss in part])
    design = np.vander(x, 3)
    (second, first, _), *_ = np.linalg.lstsq(design, y, rcond=None)
    at = -first / (2 * second) if second > 0 else math.nan
    if not x[0] <= at <= x[-1]:
        # The losses near the best run have no minimum between them.
        return edge, None, None, False
    value = edge * math.exp(at)
    n_free = len(part) - 3
    if n_free < 1:
        return value, None, None, False
    noise = float(np.sum((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2)) / n_free
    covariance = noise * np.linalg.inv(design.T @ design)
    slope = np.array([first / (2 * second**2), -1 / (2 * second), 0.0])
    reach = float(stats.t.ppf((1 + level) / 2, n_free)) * math.sqrt(slope @ covariance @ slope)
    return value, value * math.exp(-reach), value * math.exp(reach), False


def drifts(cells: Iterable[Cell]) -> list[Drift]:
    """Return the drift over widths and over depths, for each parametrization that has several.

    The widths are those of the cells with the most frequent depth, and the other way round.
    """
    by_kind: dict[str, list[Cell]] = {}
    for cell in cells:
        by_kind.setdefault(cell.parametrization, []).append(cell)
    found = []
    for kind, own in by_kind.items():
        for axis, name, other in (
            ("width", "d_model", "n_layers"),
            ("depth", "n_layers", "d_model"),
        ):
            on_axis = _on_axis(own, name, other)
            if len(on_axis) > 1:
                found.append(_drift(kind, axis, on_axis))
    return found


def _on_axis(cells: Sequence[Cell], name: str, other: str) -> Mapping[int, Cell]:
    """Return cells by size, those at the value of ``other`` that has the most sizes."""
    groups: dict[int, dict[int, Cell]] = {}
    for cell in cells:
        groups.setdefault(getattr(cell, other), {}).setdefault(getattr(cell, name), cell)
    most = max(groups.values(), key=len)
    return dict(sorted(most.items()))


def _drift(kind: str, axis: str, cells: Mapping[int, Cell]) -> Drift:
    rated = [(cell.best_lr, cell) for cell in cells.values() if cell.best_lr is not None]
    known = sorted(rated, key=lambda one: one[0])
    factor = low = high = has_held = None
    is_bound = any(cell.is_bound for cell in cells.values())
    if known and len(known) == len(cells):
        (smallest, first), (largest, last) = known[0], known[-1]
        factor = largest / smallest
        reach = math.hypot(_reach(first), _reach(last))
        low, high = max(1.0, factor * math.exp(-reach)), factor * math.exp(reach)
        if factor <= HELD_FACTOR:
            has_held = None if is_bound else True
        elif low > HELD_FACTOR:
            has_held = False
    return Drift(
        parametrization=kind,
        axis=axis,
        sizes=tuple(cells),
        factor=factor,
        low=low,
        high=None if is_bound else high,
        is_bound=is_bound,
        has_held=has_held,
    )


def _reach(cell: Cell) -> float:
    """Return half the interval of a cell's best rate, in natural logs; 0 without one."""
    if cell.is_bound:
        inner = cell.high if cell.low is None else cell.low
        return 0.0 if inner is None or cell.best_lr is None else abs(math.log(inner / cell.best_lr))
    if cell.low is None or cell.high is None:
        return 0.0
    return math.log(cell.high / cell.low) / 2
