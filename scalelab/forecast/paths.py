r"""Mean and joint draws of the averaged forecaster as functions of N and D.

`AveragedFit.predict` gives exact quantiles at single points. A compute-optimal size, its exponent
and a figure need the loss at thousands of points, in draws that belong together. Here each draw is
a function: a form with drawn parameters, a drawn misfit, and the correction that makes it agree
with the rows. Evaluating one function anywhere costs a matrix product, and the same draws answer
each question of a fit.

References
----------
Wilson et al. 2020, "Efficiently sampling functions from Gaussian process posteriors",
arXiv:2002.09309 (pathwise conditioning). Rahimi and Recht 2007, "Random features for large-scale
kernel machines" (draws of the misfit).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.modes import FormPosterior
from scalelab.forecast.points import Points
from scalelab.forecast.size_column import CountedFit, SizeCount
from scalelab.forecast.spectrum import matern
from scalelab.forecast.whitened import Component

N_DRAWS = 600
N_FREQUENCIES = 256
"""Random frequencies of the drawn misfits, for each length."""
DEGREES = 3
"""Degrees of freedom of the Student-t spectrum of a Matern kernel of smoothness 3/2."""
CHUNK = 4096
"""Points that are evaluated at once."""
SEED = 0

Positions = NDArray[np.intp]
Line = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _FormDraws:
    """Draws of one form: their positions (s,), standardised parameters (p, s) and mean (p,)."""

    form: FormPosterior
    weight: float
    where: Positions
    z: FloatArray
    mean: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _MisfitDraws:
    """Draws of the misfit of one length: frequencies, their weights, and those of the rows."""

    length: float
    where: Positions
    frequencies: FloatArray
    weights: FloatArray
    of_rows: FloatArray
    mean: FloatArray


class Paths(Protocol):
    """Drawn functions of N and D, and their mean."""

    def mean(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the expected log loss at n points, shape (n,)."""

    def draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the drawn log losses at n points, shape (`N_DRAWS`, n)."""

    def mean_and_draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return both, the mean first, in less time, shape (1 + `N_DRAWS`, n)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CountedPaths:
    """Drawn functions over several counts of N.

    Attributes
    ----------
    counts : tuple of SizeCount
    parts : tuple of Paths
        Of each count.
    where : tuple of ndarray
        Draws that each count contributes, as positions in its own draws.
    """

    counts: tuple[SizeCount, ...]
    parts: tuple[Paths, ...]
    where: tuple[Positions, ...]

    def mean(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the expected log loss at n points, shape (n,)."""
        counted = zip(self.counts, self.parts, strict=True)
        return np.asarray(
            sum(each.weight * part.mean(each.columns(columns)) for each, part in counted)
        )

    def draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the drawn log losses at n points, shape (`N_DRAWS`, n)."""
        counted = zip(self.counts, self.parts, self.where, strict=True)
        return np.concatenate(
            [part.draws(each.columns(columns))[where] for each, part, where in counted]
        )

    def mean_and_draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return both, the mean first, shape (1 + `N_DRAWS`, n)."""
        counted = zip(self.counts, self.parts, strict=True)
        found = [part.mean_and_draws(each.columns(columns)) for each, part in counted]
        mean = sum(each.weight * one[0] for each, one in zip(self.counts, found, strict=True))
        drawn = [one[1:][where] for one, where in zip(found, self.where, strict=True)]
        return np.concatenate([np.atleast_2d(mean), *drawn])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FitPaths:
    """Drawn functions of one fit.

    Attributes
    ----------
    found : AveragedFit
    forms, misfits : tuple
        Their parts, by form and by length of the misfit.
    """

    found: AveragedFit
    forms: tuple[_FormDraws, ...]
    misfits: tuple[_MisfitDraws, ...]

    def mean(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the expected log loss at n points, shape (n,)."""
        chunks = self._chunks(columns)
        return np.concatenate([self._mean(*self._bases(points)) for points in chunks])

    def draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return the drawn log losses at n points, shape (`N_DRAWS`, n)."""
        chunks = self._chunks(columns)
        return np.concatenate(
            [self._draws(points, *self._bases(points)) for points in chunks], axis=1
        )

    def mean_and_draws(self, columns: Mapping[str, FloatArray]) -> FloatArray:
        """Return both, the mean first, shape (1 + `N_DRAWS`, n)."""
        found = []
        for points in self._chunks(columns):
            bases = self._bases(points)
            found.append(np.vstack([self._mean(*bases), self._draws(points, *bases)]))
        return np.concatenate(found, axis=1)

    def _mean(self, lines: Sequence[Line], kernels: Sequence[FloatArray]) -> FloatArray:
        out = np.full(len(lines[0][0]), self.found.level)
        for each, (value, slope) in zip(self.forms, lines, strict=True):
            out += each.weight * (value - slope @ each.form.z) + slope @ each.mean
        for misfit, kernel in zip(self.misfits, kernels, strict=True):
            out += kernel @ misfit.mean
        return out

    def _draws(
        self, points: Points, lines: Sequence[Line], kernels: Sequence[FloatArray]
    ) -> FloatArray:
        out = np.full((N_DRAWS, len(points)), self.found.level)
        for each, (value, slope) in zip(self.forms, lines, strict=True):
            out[each.where] += (value - slope @ each.form.z) + (slope @ each.z).T
        for misfit, kernel in zip(self.misfits, kernels, strict=True):
            drawn = _waves(points.features, misfit.frequencies) @ misfit.weights
            out[misfit.where] += (drawn + kernel @ misfit.of_rows).T
        return out

    def _bases(self, points: Points) -> tuple[list[Line], list[FloatArray]]:
        """Return value and slope of each form, and the kernel of each misfit with the rows."""
        gaps = self._gaps(points)
        return (
            [each.form.prior.log_loss(each.form.z, points.columns) for each in self.forms],
            [matern(gaps, misfit.length) for misfit in self.misfits],
        )

    def _gaps(self, points: Points) -> FloatArray:
        """Return the distances of n points from the m rows, shape (n, m)."""
        squares = sum(
            (one[:, None] - other) ** 2
            for one, other in zip(points.features.T, self.found.rows.features.T, strict=True)
        )
        return np.asarray(np.sqrt(squares))

    def _chunks(self, columns: Mapping[str, FloatArray]) -> list[Points]:
        points = self.found.points(columns)
        return [points.at(slice(start, start + CHUNK)) for start in range(0, len(points), CHUNK)]


@lru_cache(maxsize=8)
def paths_of(found: AveragedFit) -> Paths:
    """Return the draws of a fit, the same at each call."""
    rng = np.random.default_rng(SEED)
    if isinstance(found, CountedFit):
        counts = tuple(each for each in found.counts if each.weight > 0)
        shares = rng.multinomial(N_DRAWS, [each.weight for each in counts])
        return CountedPaths(
            counts=counts,
            parts=tuple(paths_of(each.fit) for each in counts),
            where=tuple(rng.choice(N_DRAWS, int(n), replace=False) for n in shares),
        )
    return _paths_of_one(found, rng)


def _paths_of_one(found: AveragedFit, rng: np.random.Generator) -> FitPaths:
    weights = np.array([each.weight for each in found.components])
    counts = rng.multinomial(N_DRAWS, weights / weights.sum())
    ends = np.cumsum(counts)
    frequencies = {
        length: _frequencies(found.rows.features.shape[1], length, rng)
        for length in dict.fromkeys(each.system.length for each in found.components)
    }
    waves = {length: _waves(found.rows.features, each) for length, each in frequencies.items()}
    parts = [
        _draws_of(each, int(count), found.draw_scales(int(count), rng), waves, rng)
        for each, count in zip(found.components, counts, strict=True)
    ]
    where = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]

    def positions_of(key: object, by: str) -> list[int]:
        return [i for i, each in enumerate(found.components) if _key(each, by) == key]

    forms = []
    for name in dict.fromkeys(_key(each, "form") for each in found.components):
        own = positions_of(name, "form")
        forms.append(
            _FormDraws(
                form=found.components[own[0]].form,
                weight=float(weights[own].sum()),
                where=np.concatenate([where[i] for i in own]),
                z=np.concatenate([parts[i].z for i in own], axis=1),
                mean=np.asarray(sum(weights[i] * parts[i].z_mean for i in own)),
            )
        )
    misfits = []
    for length, own_frequencies in frequencies.items():
        own = positions_of(length, "length")
        misfits.append(
            _MisfitDraws(
                length=length,
                where=np.concatenate([where[i] for i in own]),
                frequencies=own_frequencies,
                weights=np.concatenate([parts[i].weights for i in own], axis=1),
                of_rows=np.concatenate([parts[i].of_rows for i in own], axis=1),
                mean=np.asarray(sum(weights[i] * parts[i].row_mean for i in own)),
            )
        )
    return FitPaths(found=found, forms=tuple(forms), misfits=tuple(misfits))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _ComponentDraws:
    z: FloatArray
    z_mean: FloatArray
    weights: FloatArray
    of_rows: FloatArray
    row_mean: FloatArray


def _draws_of(
    each: Component,
    count: int,
    scales: FloatArray,
    waves: Mapping[float, FloatArray],
    rng: np.random.Generator,
) -> _ComponentDraws:
    """Return draws under one component: a prior draw plus its correction on the rows."""
    turn, wave = each.system.turn, waves[each.system.length]
    z = rng.standard_normal((each.slope.shape[1], count))
    weights = each.misfit * rng.standard_normal((wave.shape[1], count))
    noise = each.noise * rng.standard_normal((len(each.y), count))
    expected = each.slope @ z + turn.T @ (wave @ weights) + noise
    solved = each.inverse_of_rows(np.column_stack([each.y, each.y[:, None] - expected]))
    z_all, rows = each.slope.T @ solved, each.misfit**2 * (turn @ solved)
    z_mean, row_mean = z_all[:, 0], rows[:, 0]
    return _ComponentDraws(
        z=z_mean[:, None] + scales * (z + z_all[:, 1:] - z_mean[:, None]),
        z_mean=z_mean,
        weights=scales * weights,
        of_rows=row_mean[:, None] + scales * (rows[:, 1:] - row_mean[:, None]),
        row_mean=row_mean,
    )


def _key(each: Component, by: str) -> object:
    return each.form.prior.law.name if by == "form" else each.system.length


def _frequencies(n_axes: int, length: float, rng: np.random.Generator) -> FloatArray:
    """Return frequencies of the kernel's spectrum, shape (axes, `N_FREQUENCIES`)."""
    normal = rng.standard_normal((n_axes, N_FREQUENCIES))
    spread = np.sqrt(rng.chisquare(DEGREES, N_FREQUENCIES) / DEGREES)
    return np.asarray(normal / length / spread)


def _waves(features: FloatArray, frequencies: FloatArray) -> FloatArray:
    """Return cosines and sines with the kernel's variance of 1, shape (n, 2 frequencies)."""
    phase = features @ frequencies
    n, k = phase.shape
    waves = np.empty((n, 2 * k))
    np.cos(phase, out=waves[:, :k])
    np.sin(phase, out=waves[:, k:])
    waves /= np.sqrt(k)
    return waves
