"""Approach 2 compared with approach 3 over the same bootstrap replicates.

Both are refitted to the same resampled rows, so the interval of their ratio accounts for the errors
that they share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import UsageError
from scalelab.fit.bootstrap import BootstrapSpec, plan
from scalelab.fit.intervals import Interval, percentile_limits
from scalelab.fit.isoflop import Axis, IsoflopFit, expected_bias, replicate_laws, tokens_at
from scalelab.fit.outcome import FitWarning, ParametricFit
from scalelab.fit.rows import column, design
from scalelab.records.types import Observations
from scalelab.units import format_flops

AXES: tuple[Axis, Axis] = ("n", "d")
DISAGREE = 0.05
DISAGREE_LEVEL = 0.9
PAIRED_ENTRIES = 20_000_000
"""Maximum size (replicates x rows) of the weights with which approach 2 is refitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """Ratio of D_opt by approach 2 to D_opt by approach 3.

    Attributes
    ----------
    flops : float
        Compute at which they are compared, as 6 N D.
    ratio : Interval
        D_opt(approach 2) / D_opt(approach 3), with the bootstrap interval of the ratio (NaN
        limits without replicates).
    expected_bias : float or None
        How much approach 2 would overstate D_opt on this grid if approach 3 were exact and the
        losses had no noise.
    is_significant : bool
        Whether the ratio differs from 1 by more than 5 % and its 90 % interval excludes 1.
    """

    flops: float
    ratio: Interval
    expected_bias: float | None
    is_significant: bool


def paired_weights(
    observations: Observations, spec: BootstrapSpec, fit: ParametricFit
) -> FloatArray | None:
    """Return the row weights of approach 3's replicates, in the caller's row order, shape (k, n).

    None without replicates, or if the draws do not resample rows; only the first ones where all
    would need too much memory.
    """
    is_resampled = fit.bootstrap.method != "residual" and fit.bootstrap.refits != "posterior"
    if not len(fit.samples) or not is_resampled:
        return None
    data = design(observations, type(fit.law), fit.objective, spec.cluster)
    replicates = plan(spec, len(observations), data.labels, data.labels_from, data.order)
    if fit.shape is not None:
        replicates = replace(replicates, shape=fit.shape[data.order])
    batch = min(replicates.k, PAIRED_ENTRIES // len(observations))
    if not batch:
        return None
    drawn = next(replicates.weights(batch))
    weights = np.empty_like(drawn)
    weights[:, data.order] = drawn
    return weights


def disagreement(
    observations: Observations,
    isoflop: IsoflopFit,
    fit: ParametricFit,
    *,
    flops: float,
    weights: FloatArray | None = None,
    level: float = 0.9,
) -> Disagreement | None:
    """Return D_opt of approach 2 over that of approach 3, with the interval of the ratio.

    Parameters
    ----------
    observations : Observations
    isoflop, fit : IsoflopFit, ParametricFit
        Approaches 2 and 3 on these rows.
    flops : float
        Compute at which D_opt is compared, as 6ND.
    weights : ndarray of shape (k, n), optional
        The first k replicates of ``fit`` as row weights.
    level : float
        Level of the interval of the ratio.

    Returns
    -------
    Disagreement or None
        None when either approach has no result.
    """
    if isoflop.n_law is None or isoflop.d_law is None or fit.status == "not_identified":
        return None
    try:
        optimal_tokens = float(fit.law.optimal(flops)[1])
    except UsageError:
        return None
    ratio = float(tokens_at(isoflop.n_law.line, isoflop.d_law.line, flops)) / optimal_tokens
    bounds = (math.nan, math.nan)
    is_significant = abs(ratio - 1) > DISAGREE
    lines = [isoflop.n_law.line, isoflop.d_law.line]
    laws = fit.replicate_laws()
    if weights is not None and fit.kept is not None:
        # Failed replicates are not in the samples.
        weights = weights[fit.kept[: len(weights)]]
        laws = laws[: len(weights)]
        lines = [replicate_laws(observations, isoflop, weights, axis) for axis in AXES]
    if laws:
        # Replicates without an optimum are not finite here and are dropped below.
        with np.errstate(all="ignore"):
            tokens = np.array([law.optimal(flops)[1] for law in laws])
            draws = tokens_at(lines[0], lines[1], flops) / tokens
        draws = draws[np.isfinite(draws)]
        bounds = percentile_limits(draws, level, ratio)
        test = percentile_limits(draws, DISAGREE_LEVEL, ratio)
        is_significant = is_significant and not test[0] <= 1 <= test[1]

    law = fit.law
    clean = law.loss({name: column(observations, name) for name in law.columns})
    return Disagreement(
        flops=flops,
        ratio=Interval(value=ratio, low=bounds[0], high=bounds[1]),
        expected_bias=expected_bias(observations, isoflop, clean, optimal_tokens, flops),
        is_significant=is_significant,
    )


def disagreement_warnings(found: Disagreement | None) -> tuple[FitWarning, ...]:
    """Return a warning if approaches 2 and 3 disagree."""
    if found is None or not found.is_significant:
        return ()
    ratio, bias = found.ratio, found.expected_bias
    limits = (
        f" (interval {_percent(ratio.low - 1)} to {_percent(ratio.high - 1)})"
        if math.isfinite(ratio.low)
        else ""
    )
    known = (
        f" On this grid approach 2 is biased by {_percent(bias)} even without noise."
        if bias is not None
        else ""
    )
    warning = FitWarning(
        code="approaches_disagree",
        message=(
            f"At {format_flops(found.flops)} FLOPs, D_opt of approach 2 differs from that of "
            f"approach 3 by {_percent(ratio.value - 1)}{limits}.{known} "
            "Use approach 3, or add runs on a narrower grid centred on the optimum."
        ),
    )
    return (warning,)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"
