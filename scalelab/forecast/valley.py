r"""The valley of the loss along each compute, followed from the runs to any other compute.

At one compute the loss has a valley in N, whose bottom is the compute-optimal size. Far from the
runs the average can have other minima: a drawn misfit falls below the valley at sizes that no run
speaks of, and Farseer's law, whose asymptote falls to zero, ends at models with fewer tokens than
parameters. So the valley is found in the middle of the runs and followed from there in small steps
of the compute, downhill from the last optimum.

Each step is bounded, so N_opt(C) is continuous and a valley that ends is continued. Among the runs,
neither N_opt nor D_opt falls as the compute grows: the exponent lies between 0 and 1. Beyond the
runs it differs by at most `MOST_CHANGE` from the exponent over the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.paths import paths_of
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd

Positions = NDArray[np.intp]

STEP = 1.0
"""Step in log C by which a valley is followed."""
MOST_CHANGE = 0.25
"""Largest change of the exponent of N_opt beyond the runs."""
USUAL, USUAL_RANGE = 0.5, 2.0
"""Exponent of N_opt over a range of runs in log C much smaller than this."""
REACH, N_POINTS = 4.0, 41
"""Natural logs of N on both sides of a centre, and points, in which a valley is searched."""
SPACING = 2 * REACH / (N_POINTS - 1)
N_COARSE, WIDER = 61, 3.0
"""Points, and factor beyond the tokens per parameter of the runs, of the search in their middle."""
N_ON_WAY = 8
"""Points on the way from the bottom to a point, in the search for a rim."""
TIE, MOST_FALL = 1e-7, 2e-5
"""Log loss for each log N from the bottom; fall of the log loss that no table shows."""
ROUNDED, MOST_COMPUTES = 12, 64
"""Digits of log C that tell computes apart; computes whose bottom is searched, not interpolated."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Valley:
    """The valleys of the mean loss and of the draws of one fit.

    Attributes
    ----------
    found : AveragedFit
    middle, low, high : float
        Log C of the middle of the runs, the smallest and the largest run.
    centre : float
        Log N_opt of the mean loss in the middle.
    is_inside : bool
        Whether the mean loss has a minimum there.
    """

    found: AveragedFit
    middle: float
    low: float
    high: float
    centre: float
    is_inside: bool

    def sizes(self, log_flops: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return log N_opt of the mean loss (k,) and of each draw (draws, k) at k log C."""
        found = self.bottoms(log_flops, is_drawn=True)
        return found[0], found[1:]

    def size(self, log_flops: float) -> float:
        """Return log N_opt of the mean loss at one log C; quick, for a search."""
        return float(self.bottoms(np.array([log_flops]), is_drawn=False)[0, 0])

    def rising(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the mean log loss at n points, which does not fall away from the valley, (n,).

        It is the largest on the way from the bottom of the valley to the point, at one compute. Of
        points with the same, that nearest to the bottom has the least, by `TIE` per log N: so the
        least at one compute is the bottom, also where a valley that ended is continued.

        Parameters
        ----------
        columns : Mapping[str, ndarray of shape (n,)]
            N and D.
        """
        paths = paths_of(self.found)
        log_n = np.log(columns["n_params"])
        log_flops = np.log(train_flops_6nd(columns["n_params"], columns["n_tokens"]))
        # At a limit of the compute all points have one compute, up to rounding.
        computes = np.unique(log_flops.round(ROUNDED))
        if len(computes) > MOST_COMPUTES:
            computes = np.linspace(computes[0], computes[-1], MOST_COMPUTES)
        known = self.bottoms(computes, is_drawn=False)[0]
        bottoms = np.interp(log_flops, computes, known)
        way = np.linspace(bottoms, log_n, N_ON_WAY, endpoint=False, axis=1)
        losses = paths.mean(_at_compute(way, log_flops)).reshape(way.shape).max(axis=1)
        distance = np.abs(log_n - bottoms)
        return np.asarray(np.maximum(paths.mean(columns), losses) + TIE * distance)

    def contains(self, columns: Mapping[str, FloatArray]) -> NDArray[np.bool_]:
        """Return whether the mean loss at n points has not fallen away from the valley, (n,)."""
        fall = self.rising(columns) - paths_of(self.found).mean(columns)
        return np.asarray(fall < MOST_FALL)

    def bottoms(self, log_flops: FloatArray, *, is_drawn: bool) -> FloatArray:
        """Return log N_opt of the mean loss, and of the draws, at k log C, shape (1 + draws, k)."""
        gaps = (log_flops - self.middle) / STEP
        steps = np.trunc(gaps).astype(int)
        last = np.stack([_followed(self, step, is_drawn) for step in steps], axis=1)
        found = self.stepped(last, self.middle + STEP * steps, log_flops, is_drawn)
        ahead = steps + np.where(gaps < 0, -1, 1)
        there = self.middle + STEP * ahead
        # The bottom must also be one that leads to the next step, or it jumps on the way there.
        is_on_way = self._is_beyond(log_flops) | ~self._is_beyond(there)
        if is_on_way.any():
            next_knots = [_followed(self, step, is_drawn) for step in ahead[is_on_way]]
            limits = self._limits(log_flops[is_on_way], there[is_on_way], is_drawn)
            bounds = np.sort(np.stack(next_knots, axis=1) - limits, axis=0)
            found[:, is_on_way] = np.clip(found[:, is_on_way], *bounds)
        return found

    def stepped(
        self, last: FloatArray, here: FloatArray, there: FloatArray, is_drawn: bool
    ) -> FloatArray:
        """Return log N_opt at k log C ``there``, each one step from ``here``, shape (r, k).

        Parameters
        ----------
        last : ndarray of shape (r, k)
            Log N_opt at ``here``; the first row is that of the mean loss.
        here, there : ndarray of shape (k,)
            Log C.
        is_drawn : bool
            Whether the other rows are those of the draws.
        """
        steps = there - here
        grid = _grid(last[0] + steps / 2)
        losses = _losses(self.found, grid, there, is_drawn)
        found = np.stack(
            [
                _downhill(grid[i], losses[:, i], last[:, i] + steps[i] / 2)
                for i in range(len(steps))
            ],
            axis=1,
        )
        limits = last + self._limits(here, there, is_drawn)
        return np.asarray(np.clip(found, *np.sort(limits, axis=0)))

    def _limits(self, here: FloatArray, there: FloatArray, is_drawn: bool) -> FloatArray:
        """Return limits of the change of log N_opt between k pairs of log C, shape (2, r, k)."""
        steps = there - here
        if not (is_beyond := self._is_beyond(there)).any():
            return np.stack([np.zeros_like(steps), steps])[:, None]
        usual = _exponents(self, is_drawn)[:, None]
        least = np.where(is_beyond, np.maximum(usual - MOST_CHANGE, 0.0), 0.0)
        most = np.where(is_beyond, np.minimum(usual + MOST_CHANGE, 1.0), 1.0)
        return np.stack([least * steps, most * steps])

    def _is_beyond(self, log_flops: FloatArray) -> NDArray[np.bool_]:
        return (log_flops < self.low - 1e-9) | (log_flops > self.high + 1e-9)


@lru_cache(maxsize=8)
def valley_of(found: AveragedFit) -> Valley:
    """Return the valley of a fit, from the middle of its runs."""
    N, D = found.rows.columns["n_params"], found.rows.columns["n_tokens"]
    log_flops, ratios = np.log(train_flops_6nd(N, D)), np.log(D / N)
    middle = log_flops.mean(keepdims=True)
    low, high = ratios.min() - np.log(WIDER), ratios.max() + np.log(WIDER)
    coarse = 0.5 * (middle - np.log(6) - np.linspace(high, low, N_COARSE))[None]
    first = coarse[0, [_losses(found, coarse, middle, False)[0, 0].argmin()]]
    grid = _grid(first)
    centre = _downhill(grid[0], _losses(found, grid, middle, False)[0], first)
    return Valley(
        found=found,
        middle=float(middle[0]),
        low=float(log_flops.min()),
        high=float(log_flops.max()),
        centre=float(centre[0]),
        is_inside=bool(abs(centre - first)[0] < REACH - 2 * SPACING),
    )


@lru_cache(maxsize=512)
def _followed(valley: Valley, step: int, is_drawn: bool) -> FloatArray:
    """Return log N_opt of the mean loss, and of the draws, some steps from the middle, (r,)."""
    if step == 0:
        middle = np.array([valley.middle])
        grid = _grid(np.array([valley.centre]))
        losses = _losses(valley.found, grid, middle, is_drawn)[:, 0]
        found = _downhill(grid[0], losses, np.full(len(losses), valley.centre))
        found[0] = valley.centre
        return found
    before = step - 1 if step > 0 else step + 1
    last = _followed(valley, before, is_drawn)[:, None]
    here, there = (np.array([valley.middle + STEP * i]) for i in (before, step))
    return valley.stepped(last, here, there, is_drawn)[:, 0]


@lru_cache(maxsize=16)
def _exponents(valley: Valley, is_drawn: bool) -> FloatArray:
    """Return the exponent of N_opt over the runs, of the mean loss and of the draws, shape (r,)."""
    ends = valley.bottoms(np.array([valley.low, valley.high]), is_drawn=is_drawn)
    span = valley.high - valley.low
    return (ends[:, 1] - ends[:, 0] + USUAL * USUAL_RANGE) / (span + USUAL_RANGE)


def _losses(
    found: AveragedFit, grid: FloatArray, log_flops: FloatArray, is_drawn: bool
) -> FloatArray:
    """Return the mean log loss, and the draws, on k rows of log sizes, shape (1 + draws, k, n)."""
    at, paths = _at_compute(grid, log_flops), paths_of(found)
    losses = paths.mean_and_draws(at) if is_drawn else paths.mean(at)
    return losses.reshape(-1, *grid.shape)


def _grid(centres: FloatArray) -> FloatArray:
    return centres[:, None] + np.linspace(-REACH, REACH, N_POINTS)


def _at_compute(log_n: FloatArray, log_flops: FloatArray) -> dict[str, FloatArray]:
    """Return the points of k rows of log sizes, each row at its compute, as columns."""
    n_params = np.exp(log_n)
    return {
        "n_params": n_params.ravel(),
        "n_tokens": np.ravel(tokens_at_6nd(np.exp(log_flops)[:, None], n_params)),
    }


def _downhill(x: FloatArray, losses: FloatArray, start: FloatArray) -> FloatArray:
    """Return the minimum that each row of losses (k, n) has downhill from a start, shape (k,).

    Parameters
    ----------
    x : ndarray of shape (n,)
        From `_grid`.
    losses : ndarray of shape (k, n)
    start : ndarray of shape (k,)
    """
    rows, n = np.arange(len(losses)), len(x)
    at = np.clip(np.rint((start - x[0]) / SPACING), 0, n - 1)[:, None]
    rises = np.diff(losses, axis=1) > 0
    edges, end = np.arange(n - 1), np.ones((len(losses), 1), dtype=bool)
    # The first rise to the right of the start, and the first fall to its left, end the descent.
    right = np.hstack([rises & (edges >= at), end]).argmax(axis=1)
    left = n - 1 - np.hstack([end, ~rises & (edges < at)])[:, ::-1].argmax(axis=1)
    best = np.where(losses[rows, left] < losses[rows, right], left, right)
    return np.asarray(x[0] + SPACING * _vertex(losses, best))


def _vertex(losses: FloatArray, best: Positions) -> FloatArray:
    """Return the position of the minimum near one of each row, by a parabola through three."""
    best = np.clip(best, 1, losses.shape[1] - 2)
    rows = np.arange(len(losses))
    left, middle, right = (losses[rows, best + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.asarray(best + np.clip(shift, -1, 1))
