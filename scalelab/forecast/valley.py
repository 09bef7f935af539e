r"""The valley of the loss along each compute, followed from the runs to any other compute.

At one compute the loss has a valley in N, whose bottom is the compute-optimal size. Far from the
runs the average can have other minima: a drawn misfit falls below the valley at sizes that no run
speaks of, and Farseer's law, whose asymptote falls to zero, ends at models with fewer tokens than
parameters. So the valley is found in the middle of the runs and followed from there in small steps
of the compute, downhill from the last optimum.

Between two values of the compute, neither N_opt nor D_opt falls: the exponent lies between 0 and 1.
This bounds each step, so a valley that ends is continued by its limit, and N_opt(C) is continuous.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.paths import Paths, paths_of
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd

Positions = NDArray[np.intp]

STEP = 1.0
"""Step in log C by which a valley is followed."""
BLOCK = 4
"""Steps that are followed at once."""
REACH, N_POINTS = 4.0, 41
"""Natural logs of N on both sides of a centre, and points, in which a valley is searched."""
SPACING = 2 * REACH / (N_POINTS - 1)
N_COARSE, WIDER = 61, 3.0
"""Points, and factor beyond the tokens per parameter of the runs, of the search in their middle."""
NEAR, N_ON_WAY = 1.0, 8
"""Natural logs of N around the bottom that need no search for a rim; points on the way beyond."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Valley:
    """The valleys of the draws of one fit.

    Attributes
    ----------
    found : AveragedFit
    log_flops : float
        Middle of the runs.
    centre : float
        Log N_opt of the mean loss there.
    start : ndarray of shape (draws,)
        Log N_opt of the draws there.
    is_inside : bool
        Whether the mean loss has a minimum there.
    """

    found: AveragedFit
    log_flops: float
    centre: float
    start: FloatArray
    is_inside: bool

    def sizes(self, log_flops: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return log N_opt of the mean loss (k,) and of each draw (draws, k) at k log C."""
        mean, draws = np.empty(len(log_flops)), np.empty((len(self.start), len(log_flops)))
        for sign, where, steps, knots in self._sides(log_flops):
            ahead, paths = log_flops[where] - knots, paths_of(self.found)
            centres, followed = _followed(self, sign, -(-int(steps.max()) // BLOCK))
            grid = _grid(centres[steps] + ahead / 2)
            at = _at_compute(grid, log_flops[where])
            losses = paths.draws(at).reshape(-1, *grid.shape)
            mean[where] = _bottoms(grid, paths.mean(at).reshape(grid.shape), centres[steps], ahead)
            for i, j in enumerate(where):
                last, step = followed[:, steps[i]], np.full(len(followed), ahead[i])
                draws[:, j] = _bottoms(grid[[i]], losses[:, i], last, step)
        return mean, draws

    def size(self, log_flops: float) -> float:
        """Return log N_opt of the mean loss at one log C; quick, for a search."""
        ((sign, _, steps, knots),) = self._sides(np.array([log_flops]))
        centre = _centres(self, sign, -(-int(steps[0]) // BLOCK))[steps[0]]
        return _next(paths_of(self.found), centre, float(knots[0]), log_flops)

    def rising(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the mean log loss at n points, which does not fall again beyond the valley, (n,).

        It is the largest on the way from the bottom of the valley to the point, at one compute.

        Parameters
        ----------
        columns : Mapping[str, ndarray of shape (n,)]
            N and D.
        """
        paths = paths_of(self.found)
        out = paths.mean(columns)
        log_n = np.log(columns["n_params"])
        log_flops = np.log(train_flops_6nd(columns["n_params"], columns["n_tokens"]))
        bottoms = self._between_steps(log_flops)
        far = np.flatnonzero(np.abs(log_n - bottoms) > NEAR)
        if len(far):
            way = np.linspace(bottoms[far], log_n[far], N_ON_WAY, endpoint=False, axis=1)
            losses = paths.mean(_at_compute(way, log_flops[far])).reshape(way.shape)
            out[far] = np.maximum(out[far], losses.max(axis=1))
        return out

    def _between_steps(self, log_flops: FloatArray) -> FloatArray:
        """Return log N_opt of the mean loss, linear between the steps of log C."""
        gaps = np.append((log_flops - self.log_flops) / STEP, 0.0)
        down, up = (
            _centres(self, sign, -(-int(np.ceil(most)) // BLOCK))
            for sign, most in ((-1, -gaps.min()), (1, gaps.max()))
        )
        steps = np.arange(1 - len(down), len(up))
        return np.asarray(np.interp(gaps[:-1], steps, np.concatenate([down[:0:-1], up])))

    def _sides(
        self, log_flops: FloatArray
    ) -> Iterator[tuple[int, Positions, Positions, FloatArray]]:
        """Yield sign, positions, steps and their ends, below and above the middle of the runs."""
        gaps = (log_flops - self.log_flops) / STEP
        for sign, is_here in ((-1, gaps < 0), (1, gaps >= 0)):
            where = np.flatnonzero(is_here)
            if len(where):
                steps = np.floor(np.abs(gaps[where])).astype(np.intp)
                yield sign, where, steps, np.asarray(self.log_flops + sign * STEP * steps)


@lru_cache(maxsize=8)
def valley_of(found: AveragedFit) -> Valley:
    """Return the valley of a fit in the middle of its runs."""
    paths = paths_of(found)
    N, D = found.rows.columns["n_params"], found.rows.columns["n_tokens"]
    log_flops = np.log(train_flops_6nd(N, D)).mean(keepdims=True)
    ratios = np.log(D / N)
    low, high = ratios.min() - np.log(WIDER), ratios.max() + np.log(WIDER)
    coarse = 0.5 * (log_flops - np.log(6) - np.linspace(high, low, N_COARSE))
    first = coarse[[paths.mean(_at_compute(coarse[None], log_flops)).argmin()]]
    grid = _grid(first)
    centre = _downhill(grid, paths.mean(_at_compute(grid, log_flops))[None], first)
    grid = _grid(centre)
    losses = paths.draws(_at_compute(grid, log_flops))
    return Valley(
        found=found,
        log_flops=float(log_flops[0]),
        centre=float(centre[0]),
        start=_downhill(grid, losses, np.broadcast_to(centre, len(losses))),
        is_inside=bool(abs(centre - first)[0] < REACH - 2 * SPACING),
    )


@lru_cache(maxsize=64)
def _centres(valley: Valley, sign: int, blocks: int) -> FloatArray:
    """Return log N_opt of the mean loss at steps 0, 1, .. of log C."""
    if blocks == 0:
        return np.array([valley.centre])
    found = list(_centres(valley, sign, blocks - 1))
    for here, there in pairwise(_knots(valley, sign, blocks)):
        found.append(_next(paths_of(valley.found), found[-1], float(here), float(there)))
    return np.array(found)


@lru_cache(maxsize=64)
def _followed(valley: Valley, sign: int, blocks: int) -> tuple[FloatArray, FloatArray]:
    """Return log N_opt of the mean (k,) and of the draws (draws, k) at steps 0, 1, .. of log C."""
    centres = _centres(valley, sign, blocks)
    if blocks == 0:
        return centres, valley.start[:, None]
    found = [*_followed(valley, sign, blocks - 1)[1].T]
    knots = _knots(valley, sign, blocks)
    grid = _grid(centres[-BLOCK:])
    losses = paths_of(valley.found).draws(_at_compute(grid, knots[1:]))
    for i, each in enumerate(np.split(losses, BLOCK, axis=1)):
        step = np.full(len(each), knots[i + 1] - knots[i])
        found.append(_bottoms(grid[[i]], each, found[-1], step))
    return centres, np.array(found).T


def _knots(valley: Valley, sign: int, blocks: int) -> FloatArray:
    """Return log C at the steps of the last block and at the one before it."""
    return np.asarray(
        valley.log_flops + sign * STEP * (np.arange(BLOCK + 1) + (blocks - 1) * BLOCK)
    )


def _next(paths: Paths, last: float, here: float, there: float) -> float:
    """Return log N_opt of the mean loss at a log C near one where it is known."""
    step = np.array([there - here])
    grid = _grid(last + step / 2)
    losses = paths.mean(_at_compute(grid, np.array([there])))[None]
    return float(_bottoms(grid, losses, np.array([last]), step)[0])


def _bottoms(
    grid: FloatArray, losses: FloatArray, last: FloatArray, step: FloatArray
) -> FloatArray:
    """Return the bottoms of k valleys, one step of log C from where they are known.

    Neither N nor D falls as the compute grows.

    Parameters
    ----------
    grid : ndarray of shape (k, n) or (1, n)
        Log sizes.
    losses : ndarray of shape (k, n)
    last, step : ndarray of shape (k,)
        Log N_opt where it is known, and the step from there.
    """
    found = _downhill(grid, losses, last + step / 2)
    return np.clip(found, last + np.minimum(step, 0.0), last + np.maximum(step, 0.0))


def _grid(centres: FloatArray) -> FloatArray:
    return centres[:, None] + np.linspace(-REACH, REACH, N_POINTS)


def _at_compute(log_n: FloatArray, log_flops: FloatArray) -> dict[str, FloatArray]:
    """Return the points of k rows of log sizes, each row at its compute, as columns."""
    n_params = np.exp(log_n)
    return {
        "n_params": n_params.ravel(),
        "n_tokens": np.ravel(tokens_at_6nd(np.exp(log_flops)[:, None], n_params)),
    }


def _downhill(grid: FloatArray, losses: FloatArray, start: FloatArray) -> FloatArray:
    """Return the minimum that each row of losses (k, n) has downhill from a start, shape (k,).

    Parameters
    ----------
    grid : ndarray of shape (k, n) or (1, n)
        From `_grid`.
    losses : ndarray of shape (k, n)
    start : ndarray of shape (k,)
    """
    rows, n = np.arange(len(losses)), losses.shape[1]
    at = np.clip(np.rint((start - grid[:, 0]) / SPACING), 0, n - 1)[:, None]
    rises = np.diff(losses, axis=1) > 0
    edges, end = np.arange(n - 1), np.ones((len(losses), 1), dtype=bool)
    # The first rise to the right of the start, and the first fall to its left, end the descent.
    right = np.hstack([rises & (edges >= at), end]).argmax(axis=1)
    left = n - 1 - np.hstack([end, ~rises & (edges < at)])[:, ::-1].argmax(axis=1)
    best = np.where(losses[rows, left] < losses[rows, right], left, right)
    return grid[:, 0] + SPACING * _vertex(losses, best)


def _vertex(losses: FloatArray, best: Positions) -> FloatArray:
    """Return the position of the minimum near one of each row, by a parabola through three."""
    best = np.clip(best, 1, losses.shape[1] - 2)
    rows = np.arange(len(losses))
    left, middle, right = (losses[rows, best + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.asarray(best + np.clip(shift, -1, 1))
