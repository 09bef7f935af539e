"""The weights that a sweep over mixtures tries: corners, centre, and points that fill the simplex.

After the corners and the centre, each point is the candidate that is farthest from all points
before it (a maximin design). Candidates are uniform on the simplex, a flat Dirichlet distribution,
from a low-discrepancy sequence. So the design is the same everywhere, and a longer design begins
with the shorter one. A source whose text would be repeated too often limits its weight: then its
corner moves inwards.

References
----------
Johnson, Moore and Ylvisaker 1990, J. Stat. Plan. Inference 26 (maximin distance designs).
Roberts 2018, "The unreasonable effectiveness of quasirandom sequences" (the sequence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalelab.errors import UsageError
from scalelab.sweep.mix_table import WEIGHT_DECIMALS, rounded_weights
from scalelab.units import plural

N_CANDIDATES = 8192
CORNER, CENTRE, FILLING = "corner", "centre", "filling"
LEAST_DISTANCE = 1e-3
"""Points that are closer are the same mixture."""

_Weights = dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureDesign:
    """Weights to try.

    Attributes
    ----------
    mixtures : tuple of Mapping[str, float]
        Weights by source; each sums to 1.
    limits : Mapping[str, float]
        Largest weight of each source, 1 without a limit.
    """

    mixtures: tuple[Mapping[str, float], ...]
    limits: Mapping[str, float]

    @property
    def moved(self) -> dict[str, float]:
        """Corners that were moved inwards: the largest weight of their source."""
        return {name: limit for name, limit in self.limits.items() if limit < 1}


def mixture_design(n: int, limits: Mapping[str, float]) -> MixtureDesign:
    """Return ``n`` mixtures of the sources that ``limits`` names, at most these weights each.

    Raises
    ------
    UsageError
        If there are fewer mixtures than corners and a centre, or the limits leave too little room.
    """
    least = len(limits) + 1
    if n < least:
        raise UsageError(
            f"{plural(n, 'mixture')} of {plural(len(limits), 'source')}",
            f"at least {least}: one with as much as possible of each source, and equal weights",
            f"Write for example --runs {max(24, 4 * least)}.",
        )
    names = list(limits)
    unit = 10**WEIGHT_DECIMALS
    # Rounded weights must stay within the limits.
    caps = np.array([min(1.0, np.floor(limits[name] * unit) / unit) for name in names])
    if caps.sum() < 1:
        raise UsageError(
            "sources that together hold too few tokens: at most "
            + ", ".join(f"{name} {limits[name]:.2f}" for name in names)
            + " of a run",
            "limits of the weights that sum to 1 or more",
            "Add text, use fewer --n-tokens, or add --allow-repeats.",
        )
    corners = [_filled(names, caps, np.eye(len(names))[k]) for k in range(len(names))]
    points = _farthest(n, [*corners, _filled(names, caps, np.zeros(len(names)))], caps)
    mixtures = []
    for point in points:
        weights = rounded_weights(dict(zip(names, point.tolist(), strict=True)))
        if weights not in mixtures:
            mixtures.append(weights)
    if len(mixtures) < n:
        raise UsageError(
            f"{plural(n, 'mixture')} within the limits of the sources",
            f"at most {plural(len(mixtures), 'mixture')}, for which there is room",
            f"Write --runs {len(mixtures)}, add text, or use fewer --n-tokens.",
        )
    return MixtureDesign(
        mixtures=tuple(mixtures), limits=dict(zip(names, caps.tolist(), strict=True))
    )


def _filled(
    names: list[str], caps: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ``start`` within the caps, and the rest spread evenly over sources with room."""
    weights = np.minimum(start, caps)
    for _ in names:
        left = 1 - weights.sum()
        has_room = (caps - weights > 1e-12) & (start < 1)
        if left <= 1e-12 or not has_room.any():
            break
        weights = np.minimum(weights + has_room * left / has_room.sum(), caps)
    return weights


def _farthest(
    n: int, points: list[NDArray[np.float64]], caps: NDArray[np.float64]
) -> list[NDArray[np.float64]]:
    """Return the points, and candidates far from all points before them, ``n`` in total."""
    found: list[NDArray[np.float64]] = []
    for point in points:
        if all(np.linalg.norm(point - other) > LEAST_DISTANCE for other in found):
            found.append(point)
    candidates = _candidates(len(caps))
    candidates = candidates[(candidates <= caps).all(axis=1)]
    if not len(candidates):
        return found[:n]
    nearest = np.min([np.linalg.norm(candidates - point, axis=1) for point in found], axis=0)
    while len(found) < n and nearest.max() > LEAST_DISTANCE:
        best = candidates[int(nearest.argmax())]
        found.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(candidates - best, axis=1))
    return found


def _candidates(n_sources: int) -> NDArray[np.float64]:
    """Return points that fill the simplex evenly, shape (N_CANDIDATES, n_sources)."""
    n = n_sources - 1
    root = 2.0
    for _ in range(64):  # the positive root of x^(n + 1) = x + 1
        root = (1 + root) ** (1 / (n + 1))
    steps = np.power(1 / root, np.arange(1, n + 1))
    places = (0.5 + np.arange(1, N_CANDIDATES + 1)[:, None] * steps) % 1
    # Spacings of sorted uniform numbers are uniform on the simplex.
    ends = np.concatenate(
        [np.zeros((len(places), 1)), np.sort(places, axis=1), np.ones((len(places), 1))], axis=1
    )
    return np.diff(ends, axis=1)
