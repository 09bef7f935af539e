"""Runs on one line of log N and log D: which questions they answer.

Runs with a fixed number of tokens per parameter, of one size, or of one budget lie on a line. They
say how the loss falls along it, and nothing about the loss beside it: there a forecast would be its
prior. So a question off the line is refused, with the runs that would answer it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.forecast.points import Points
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_flops, format_quantity

ACROSS = 0.1
"""Spread across a line relative to that along it, below which the runs lie on the line."""
NEAR = 0.25
"""Distance from the line, in spreads of the runs along it, up to which it answers."""
ROUNDED = 0.01
"""Distance from the line, in logs, of the runs as people write them: with three digits."""
SPLIT = np.array([1.0, -1.0]) / np.sqrt(2.0)
"""Direction in log N and log D along which N is traded for D at one compute."""
SAME_DIRECTION = 0.98
"""Cosine of the largest angle between a line and `SPLIT` for which it is an isoFLOP curve."""
ADDED_FACTOR = 4.0
"""Factor of N and of D, at the same compute or ratio, of the runs that a refusal proposes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Line:
    """A line on which all runs lie.

    Attributes
    ----------
    centre, direction : ndarray of shape (2,)
        A point of the line and its unit direction, in log N and log D.
    along, across : float
        Standard deviation of the runs along the line, and their largest distance from it.
    """

    centre: FloatArray
    direction: FloatArray
    along: float
    across: float

    @property
    def is_isoflop(self) -> bool:
        """Whether its runs have one compute, so that they show an optimal split of it."""
        return bool(abs(self.direction @ SPLIT) > SAME_DIRECTION)

    def distance(self, n_params: float, n_tokens: float) -> float:
        """Return the distance of a run from the line, in spreads of the runs along it."""
        gap = np.log([n_params, n_tokens]) - self.centre
        off = gap - (gap @ self.direction) * self.direction
        return float(np.sqrt(off @ off)) / max(self.along, 1e-9)

    def has(self, n_params: float, n_tokens: float) -> bool:
        """Return whether a run is on the line."""
        near = max(NEAR, max(2 * self.across, ROUNDED) / max(self.along, 1e-9))
        return self.distance(n_params, n_tokens) <= near

    def describe(self) -> str:
        """Return the line in words."""
        N, D = np.exp(self.centre)
        x, y = np.abs(self.direction)
        if self.along < 1e-6:
            return f"one point (N = {format_quantity(N)}, D = {format_quantity(D)})"
        if min(x, y) < np.sqrt(1 - SAME_DIRECTION**2):
            name, value = ("D", D) if x > y else ("N", N)
            return f"one line of N and D ({name} = {format_quantity(value)})"
        if self.is_isoflop:
            return f"one line of N and D (C = {format_flops(float(train_flops_6nd(N, D)))} FLOPs)"
        return f"one line of N and D (about {D / N:.3g} tokens per parameter at its middle)"

    def candidate(self) -> str:
        """Return a run on the line, larger than its middle, as the option of a decision."""
        larger = self.direction if self.direction.sum() >= 0 else -self.direction
        N, D = np.exp(self.centre + self.along * larger)
        return f"--candidate {format_quantity(float(N))}:{format_quantity(float(D))}"

    def added(self) -> str:
        """Return two runs, off the line at its middle, that would answer questions beside it."""
        normal = np.array([-self.direction[1], self.direction[0]])
        step = np.log(ADDED_FACTOR) * normal
        pairs = (np.exp(self.centre + sign * step) for sign in (1.0, -1.0))
        return " and ".join(
            f"N={format_quantity(float(N))},D={format_quantity(float(D))}" for N, D in pairs
        )


def line_of(points: Points) -> Line | None:
    """Return the line on which these runs lie, or None if they spread over N and D."""
    logs = np.log(np.stack([points.columns["n_params"], points.columns["n_tokens"]], axis=1))
    centre = logs.mean(axis=0)
    # The triangular factor has the same singular values, and 2 rows at most.
    _, spread, directions = np.linalg.svd(np.linalg.qr(logs - centre, mode="r"))
    along, across = np.append(spread, [0.0, 0.0])[:2] / np.sqrt(len(logs))
    if across > ACROSS * along:
        return None
    direction = np.asarray(directions[0])
    gaps = (logs - centre) @ np.array([-direction[1], direction[0]])
    return Line(
        centre=centre,
        direction=direction,
        along=float(along),
        across=float(np.abs(gaps).max()),
    )
