r"""The averaged forecaster: several forms with a smooth misfit, averaged by evidence.

The model is that of `scalelab.forecast.posterior`. There, one value of the misfit, the noise and
the length is chosen for each form, because a design compares thousands of candidate runs. Here,
few points are asked for, so these values and the growth of the noise at small scale are averaged
over a grid too. Rows with a large residual count for less (Student-t noise). An interval is a
quantile of the mixture, so it contains the median, which is the forecast.

Rows of one cluster, or of one isoFLOP budget, may share a part of their noise; how large it is, is
averaged over too.

Calibration: the larger sizes, the longer runs and the larger budgets are left out in turn, and
forecast from the rest. A factor of all standard deviations, at least 1, has a prior and is weighted
by these errors. It is not known exactly, so the tails are longer than those of one Gaussian.

References
----------
Hoeting et al. 1999, "Bayesian model averaging: a tutorial". Lange et al. 1989, "Robust statistical
modeling using the t distribution" (weights of the rows).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError
from scalelab.fit.intervals import Prediction
from scalelab.fit.isoflop import budgets_of
from scalelab.forecast.cuts import FACTOR, largest_cuts
from scalelab.forecast.describing import describing_forms
from scalelab.forecast.mixture import Mixture
from scalelab.forecast.modes import FormPosterior
from scalelab.forecast.one_thread import on_one_thread
from scalelab.forecast.points import Points
from scalelab.forecast.spectrum import Grid, distances, log_evidence, matern
from scalelab.forecast.whitened import (
    ALL,
    PAIRS,
    Component,
    log_priors,
    noise_growth,
    systems,
)
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import plural

Labels = NDArray[np.intp]

NEGLIGIBLE = 3e-3
"""Weight of a component, relative to the largest, below which it is left out."""
MAIN = 0.01
"""Least weight of a length and growth of the noise that are asked again where rows are left out."""
MOST_EVIDENCE = 1e10
"""Largest size of a log evidence: `MOST_ROWS` rows that are off by all of the loss have 1e9."""
MOST_ROWS = 300
LARGEST_SHARE = 0.5
"""Of more rows, `MOST_ROWS` are used: this share is those of most compute, the rest random."""
MOST_LEFT_OUT, MIN_ROWS_LEFT = 0.5, 6
"""Limits of the cuts that calibrate."""
ROWS_EACH = 3
"""Most rows that one of the three cuts counts for: their errors are correlated."""
SCALES = tuple(np.exp(np.linspace(0.0, 1.4, 8)))
SCALE_SPREAD = 0.25
"""Grid of the factor of all standard deviations; prior spread of its logarithm around 0."""
LARGEST_Z = 5.0
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AveragedFit:
    """The forecaster, conditioned on finished runs.

    Attributes
    ----------
    rows : Points
        The runs that were used.
    level : float
        Median log loss of the rows, to which the components are relative.
    components : tuple of Component
    log_evidence : float
        Log probability of the rows, up to a constant that depends on the losses only.
    scales, scale_weights : ndarray of shape (s,)
        Factors of all standard deviations, and their weights.
    """

    rows: Points
    level: float
    components: tuple[Component, ...]
    log_evidence: float = 0.0
    scales: FloatArray = field(default_factory=lambda: np.ones(1))
    scale_weights: FloatArray = field(default_factory=lambda: np.ones(1))
    target: ClassVar[str] = "loss_nats"

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each form by name, the largest first."""
        found: dict[str, float] = {}
        for each in self.components:
            name = each.form.prior.law.name
            found[name] = found.get(name, 0.0) + each.weight
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def main_systems(self) -> tuple[tuple[float, float], ...]:
        """Pairs of length and growth that have a weight of `MAIN` or more."""
        found: dict[tuple[float, float], float] = {}
        for each in self.components:
            pair = each.system.length, each.system.growth
            found[pair] = found.get(pair, 0.0) + each.weight
        return tuple(pair for pair, weight in found.items() if weight >= MAIN)

    @property
    def forms(self) -> tuple[FormPosterior, ...]:
        """The forms at their modes."""
        return tuple({id(each.form): each.form for each in self.components}.values())

    @on_one_thread
    def at(self, columns: Mapping[str, FloatArray]) -> Mixture:
        """Return the distribution of the log loss at these points."""
        points = self.points(columns)
        lines = self._lines(points)
        parts = [self._conditioned(each, points, lines, is_joint=False) for each in self.components]
        noise = np.stack(
            [
                (1 + each.system.share)
                * (each.noise * noise_growth(points, each.system.growth)) ** 2
                for each in self.components
            ]
        )
        means = np.stack([mean for mean, _ in parts])
        variances = np.stack([np.maximum(variance, 1e-14) for _, variance in parts])
        weights = np.array([each.weight for each in self.components])
        squares = self.scales**2
        return Mixture(
            weights=np.outer(self.scale_weights, weights).ravel(),
            means=np.concatenate([means] * len(squares)),
            variances=np.concatenate([square * variances for square in squares]),
            noise=np.concatenate([square * noise for square in squares]),
        )

    def predict(self, columns: Mapping[str, FloatArray], level: float) -> Prediction:
        """Return the median loss with confidence and prediction intervals, in the losses' unit."""
        mixture = self.at({name: columns[name] for name in self.rows.columns if name in columns})
        tails = ((1 - level) / 2, (1 + level) / 2)
        with np.errstate(over="ignore"):  # limits too large for a float are infinite
            low, high = (np.exp(mixture.quantile(q)) for q in tails)
            new_low, new_high = (np.exp(mixture.quantile(q, is_new_run=True)) for q in tails)
            value = np.exp(mixture.quantile(0.5))
        return Prediction(
            value=value,
            low=low,
            high=high,
            pred_low=np.minimum(new_low, low),
            pred_high=np.maximum(new_high, high),
            level=level,
        )

    @on_one_thread
    def draws(
        self, columns: Mapping[str, FloatArray], n: int, rng: np.random.Generator
    ) -> FloatArray:
        """Return n joint draws of the noise-free log losses at these points, shape (n, m)."""
        points = self.points(columns)
        lines = self._lines(points)
        counts = rng.multinomial(n, np.array([each.weight for each in self.components]))
        out = []
        for each, count in zip(self.components, counts, strict=True):
            if count:
                mean, covariance = self._conditioned(each, points, lines)
                values, vectors = np.linalg.eigh(covariance)
                root = vectors * np.sqrt(np.maximum(values, 0.0))
                scale = self.draw_scales(count, rng)[:, None]
                out.append(mean + scale * rng.standard_normal((count, len(mean))) @ root.T)
        return np.concatenate(out)

    def draw_scales(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Return the factor of all standard deviations in n draws, shape (n,)."""
        return rng.choice(self.scales, n, p=self.scale_weights)

    def points(self, columns: Mapping[str, FloatArray]) -> Points:
        """Return points as the model sees them; without ``unique_tokens``, no token repeats."""
        if "unique_tokens" in self.rows.columns:
            columns = {"unique_tokens": columns["n_tokens"], **columns}
        return Points(columns=columns, reference_flops=self.rows.reference_flops)

    def _lines(self, points: Points) -> dict[str, tuple[FloatArray, FloatArray, FloatArray]]:
        """Return, by form, value and slope at the points and slope at the rows."""
        forms = {each.form.prior.law.name: each.form for each in self.components}
        return {
            name: (
                *form.prior.log_loss(form.z, points.columns),
                form.prior.log_loss(form.z, self.rows.columns)[1],
            )
            for name, form in forms.items()
        }

    def _conditioned(
        self,
        each: Component,
        points: Points,
        lines: Mapping[str, tuple[FloatArray, FloatArray, FloatArray]],
        *,
        is_joint: bool = True,
    ) -> tuple[FloatArray, FloatArray]:
        """Return mean (n,) and covariance (n, n) of the log losses under one component.

        If not joint, the second array has the variances alone, shape (n,).
        """
        z, length = each.form.z, each.system.length
        value, slope, own = lines[each.form.prior.law.name]
        gaps = np.sqrt(((self.rows.features[:, None] - points.features) ** 2).sum(axis=2))
        across = each.misfit**2 * matern(gaps, length) + own @ slope.T
        shift, reduction = each.solve(across, is_joint=is_joint)
        if is_joint:
            prior = each.misfit**2 * matern(distances(points.features), length) + slope @ slope.T
        else:
            prior = each.misfit**2 + (slope**2).sum(axis=1)
        return self.level + value - slope @ z + shift, prior - reduction


@on_one_thread
def fit_average(rows: Observations, *, is_only_count: bool = True) -> AveragedFit:
    """Return the averaged forecaster of finished runs.

    Parameters
    ----------
    rows : Observations
        At least one run.
    is_only_count : bool
        Whether the rows have one count of N (`scalelab.forecast.bent`).
    """
    columns, losses = _columns(rows)
    keep = _kept(columns)
    columns = {name: values[keep] for name, values in columns.items()}
    losses, clusters = losses[keep], _clusters(rows)[keep]
    found = _fit(columns, losses, clusters, is_only_count=is_only_count)
    scales, weights = _scales(columns, losses, clusters, found, is_only_count)
    return replace(found, scales=scales, scale_weights=weights)


def _columns(rows: Observations) -> tuple[dict[str, FloatArray], FloatArray]:
    columns = {"n_params": rows.n_params, "n_tokens": rows.n_tokens}
    unique = rows.extra.get("unique_tokens")
    if unique is not None:
        distinct = np.minimum(np.asarray(unique, dtype=np.float64), rows.n_tokens)
        if n_unknown := int((~(distinct > 0)).sum()):
            raise NotIdentifiedError(
                f"{plural(len(rows), 'row')}, of which {n_unknown} have no unique_tokens",
                "unique_tokens above zero in every row, or no such column",
                "Complete the column, or use --where 'unique_tokens > 0'.",
            )
        if (distinct < rows.n_tokens).any():
            columns["unique_tokens"] = distinct
    return columns, rows.loss_nats


def _clusters(rows: Observations) -> Labels:
    """Return a number for each row, the same for rows that share a part of their noise.

    These are the rows of one cluster where labels repeat, otherwise those of one isoFLOP budget.
    """
    alone = np.arange(len(rows))
    if rows.cluster is not None and len(np.unique(rows.cluster)) < len(rows):
        return np.unique(rows.cluster, return_inverse=True)[1]
    if not rows.is_sized:
        return alone
    budgets, _ = budgets_of(rows)
    has_one = np.isfinite(budgets)
    found = alone + len(rows)
    found[has_one] = np.unique(budgets[has_one], return_inverse=True)[1]
    return found


def _kept(columns: Mapping[str, FloatArray]) -> NDArray[np.intp]:
    """Return the positions of the rows that are used, at most `MOST_ROWS`."""
    flops = train_flops_6nd(columns["n_params"], columns["n_tokens"])
    if len(flops) <= MOST_ROWS:
        return np.arange(len(flops))
    order = np.argsort(flops)[::-1]
    n_largest = int(LARGEST_SHARE * MOST_ROWS)
    rest = np.random.default_rng(SEED).choice(
        order[n_largest:], MOST_ROWS - n_largest, replace=False
    )
    return np.sort(np.concatenate([order[:n_largest], rest]))


def _fit(
    columns: Mapping[str, FloatArray],
    losses: FloatArray,
    clusters: Labels,
    near: AveragedFit | None = None,
    *,
    is_only_count: bool = True,
) -> AveragedFit:
    """Return the average.

    ``near`` is that of more rows: forms start from its modes, and only its main lengths and growths
    are asked.
    """
    flops = train_flops_6nd(columns["n_params"], columns["n_tokens"])
    points = Points(columns=columns, reference_flops=float(flops.max()))
    level = float(np.median(np.log(losses)))
    y = np.log(losses) - level
    forms, lines, widened = describing_forms(
        points, y, () if near is None else near.forms, is_only_count=is_only_count
    )
    tried = []
    asked = ALL if near is None else near.main_systems
    for system in systems(points, widened, clusters, asked):
        grid, prior = Grid.of(system, PAIRS), log_priors(system.length)
        for form, (value, slope) in zip(forms, lines, strict=True):
            turned = system.turn.T @ slope
            target = system.turn.T @ (y - value + slope @ form.z)
            evidences = log_evidence(target, turned, grid)
            # A form with slopes too large for double precision gives evidences that no rows have.
            if not np.abs(evidences).max() < MOST_EVIDENCE:
                continue
            tried.append((evidences + prior + form.prior.log_odds, form, system, target, turned))
    if not tried:
        raise NotIdentifiedError(
            f"{plural(len(y), 'row')} that no form describes in double precision",
            "runs whose losses a law can describe",
            "Check the units of the columns, or use --forecaster law.",
        )
    largest = max(float(log_weights.max()) for log_weights, *_ in tried)
    kept = [
        Component(
            form=form,
            misfit=PAIRS[i][0],
            noise=PAIRS[i][1],
            system=system,
            weight=math.exp(log_weights[i] - largest),
            y=target,
            slope=turned,
        )
        for log_weights, form, system, target, turned in tried
        for i in np.flatnonzero(log_weights > largest + math.log(NEGLIGIBLE))
    ]
    total = math.fsum(each.weight for each in kept)
    return AveragedFit(
        rows=points,
        level=level,
        components=tuple(replace(each, weight=each.weight / total) for each in kept),
        log_evidence=largest + math.log(total),
    )


def _scales(
    columns: Mapping[str, FloatArray],
    losses: FloatArray,
    clusters: Labels,
    whole: AveragedFit,
    is_only_count: bool,
) -> tuple[FloatArray, FloatArray]:
    """Return `SCALES` and their weights, from errors on larger runs in units of their intervals."""
    scales = np.array(SCALES)
    log_weights = -0.5 * (np.log(scales) / SCALE_SPREAD) ** 2
    for cut in largest_cuts(
        columns["n_params"],
        columns["n_tokens"],
        factor=FACTOR,
        share=MOST_LEFT_OUT,
        rows_left=MIN_ROWS_LEFT,
    ):
        far, near = cut.is_left_out, ~cut.is_left_out
        within = {name: values[near] for name, values in columns.items()}
        found = _fit(within, losses[near], clusters[near], whole, is_only_count=is_only_count)
        mixture = found.at({name: values[far] for name, values in columns.items()})
        below = mixture.probability_below(np.log(losses[far]), is_new_run=True)
        z = np.clip(ndtri(np.clip(below, 1e-9, 1 - 1e-9)), -LARGEST_Z, LARGEST_Z)
        n = min(int(far.sum()), ROWS_EACH)
        log_weights -= n * (0.5 * float(np.mean(z**2)) / scales**2 + np.log(scales))
    weights = np.exp(log_weights - log_weights.max())
    return scales, weights / weights.sum()
