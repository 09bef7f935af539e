r"""Effective speed-up: how much compute recipe B saves compared with recipe A.

Recipe A is fitted as a law. Recipe B keeps A's asymptote and exponents and has one parameter, the
factor s on the reducible loss. Along the compute-optimal frontier the reducible loss
falls as :math:`C^{-\gamma}` (for the Chinchilla form :math:`\gamma =
\alpha\beta/(\alpha+\beta)`), so B reaches A's loss with :math:`s^{1/\gamma}` of A's compute: the
speed-up is :math:`s^{-1/\gamma}`. This requires that both recipes share an evaluation set and an
asymptote; `Speedup.spread` shows whether one factor describes B at all sizes.

References
----------
The marin project's comparison of recipes with pinned asymptote and exponent,
((L_worse - L_inf) / (L_better - L_inf))^(1/alpha).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.intervals import Interval, percentile_limits
from scalelab.fit.outcome import ParametricFit
from scalelab.fit.select import columns_of
from scalelab.records.types import Observations
from scalelab.theory.laws.base import Law
from scalelab.units import plural

MIN_ROWS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Speedup:
    """Recipe B compared with recipe A.

    Attributes
    ----------
    factor : Interval
        Compute of A over compute of B at equal loss; above 1, B saves compute.
    reducible_ratio : Interval
        s: reducible loss of B over that of A at equal N and D.
    exponent : float
        gamma, the exponent of the reducible loss in compute, which converts s to compute.
    spread : float
        Half the interquartile range of log s over B's rows: near 0 if one factor describes B.
    n_rows_a, n_rows_b : int
        Rows of each recipe.
    n_below_asymptote : int
        Rows of B at or below A's asymptote, which cannot be used.
    level : float
        Level of the intervals.
    """

    factor: Interval
    reducible_ratio: Interval
    exponent: float
    spread: float
    n_rows_a: int
    n_rows_b: int
    n_below_asymptote: int
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "factor": _plain(self.factor),
            "reducible_ratio": _plain(self.reducible_ratio),
            "exponent": self.exponent,
            "spread": self.spread,
            "n_rows_a": self.n_rows_a,
            "n_rows_b": self.n_rows_b,
            "n_below_asymptote": self.n_below_asymptote,
            "level": self.level,
        }


def effective_speedup(
    fit: ParametricFit, recipe_b: Observations, *, seed: int = 0, level: float = 0.9
) -> Speedup:
    """Return how many times less compute recipe B needs than recipe A for the same loss.

    Parameters
    ----------
    fit : ParametricFit
        The law of recipe A with its replicates; the form needs an asymptote E and a frontier.
    recipe_b : Observations
        Finished runs of recipe B, with losses on the same evaluation set. Its rows are resampled
        once per replicate of A.
    seed : int
        Seed of that resampling.
    level : float
        Level of the intervals.

    Raises
    ------
    UsageError
        If B has fewer than `MIN_ROWS` usable rows, or A's form has no asymptote.
    NotIdentifiedError
        If A's rows do not determine its law.
    """
    if "E" not in fit.params:
        raise UsageError(
            f"--speedup with the form {fit.form}, which has no asymptote E",
            "a form with an asymptote E",
            "Use for example --form chinchilla.",
        )
    if fit.status == "not_identified":
        raise NotIdentifiedError(
            "a recipe A whose rows do not determine its law",
            "rows that determine E and the exponents",
            "Add runs to recipe A, or swap the two recipes.",
        )
    point, log_s = _factor(fit.law, recipe_b, fit.max_flops)
    usable = np.isfinite(log_s)
    if usable.sum() < MIN_ROWS:
        raise UsageError(
            f"{plural(int(usable.sum()), 'row')} of recipe B above the asymptote of recipe A",
            f"{MIN_ROWS} or more",
            "Add runs to recipe B, or swap the two recipes.",
        )
    generator = np.random.default_rng(seed)
    draws = []
    # A draw of a form without an asymptote has no speed-up.
    for law in (law for law in fit.replicate_laws() if "E" in law.params):
        drawn = recipe_b.take(generator.integers(len(recipe_b), size=len(recipe_b)))
        draws.append(_factor(law, drawn, fit.max_flops)[0])
    factors = np.array(draws).reshape(-1, 2)
    limits = [
        percentile_limits(c[np.isfinite(c)], level, value)
        for c, value in zip(factors.T, point, strict=True)
    ]
    quarter, three = np.quantile(log_s[usable], [0.25, 0.75])
    return Speedup(
        factor=Interval(value=point[0], low=limits[0][0], high=limits[0][1]),
        reducible_ratio=Interval(value=point[1], low=limits[1][0], high=limits[1][1]),
        exponent=_gamma(fit.law, fit.max_flops),
        spread=float(three - quarter) / 2,
        n_rows_a=fit.n_rows,
        n_rows_b=len(recipe_b),
        n_below_asymptote=int((~usable).sum()),
        level=level,
    )


def _factor(
    law: Law, recipe_b: Observations, flops: float
) -> tuple[tuple[float, float], FloatArray]:
    """Return (speed-up, s) under A's law, and log s of B's rows (-inf below the asymptote)."""
    asymptote = law.params["E"]
    above = recipe_b.loss_nats - asymptote
    log_s = np.full(len(above), -np.inf)
    reducible = law.loss(columns_of(recipe_b)) - asymptote
    np.log(above / reducible, out=log_s, where=above > 0)
    # The median limits the effect of an outlying run of B.
    middle = float(np.median(log_s))
    if not np.isfinite(middle):
        return (float("nan"), float("nan")), log_s
    with np.errstate(over="ignore"):
        return (float(np.exp(-middle / _gamma(law, flops))), float(np.exp(middle))), log_s


def _gamma(law: Law, flops: float) -> float:
    """Return the exponent of the reducible loss in compute along the frontier."""
    n_params, n_tokens = law.optimal(np.array([flops, 10 * flops]))
    reducible = law.loss({"n_params": n_params, "n_tokens": n_tokens}) - law.params["E"]
    return float(-np.log10(reducible[1] / reducible[0]))


def _plain(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}
