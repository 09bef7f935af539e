"""The draws behind the intervals of a fit: which method, for how many independent observations.

- `scalelab.fit.efficient`: enough rows, and three checks pass.
- `scalelab.fit.few_rows`: few rows per parameter, or few clusters.
- `scalelab.fit.replicates`: refits of the objective, in every other case.
- None: so few observations that no method can see the noise. The fit then has no intervals, and
  a warning of code ``no_interval`` says why.

Equal rows (an export pasted twice) are one observation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.bootstrap import BootstrapSpec, ResamplingPlan
from scalelab.fit.efficient import efficient_replicates
from scalelab.fit.few_rows import MOST_ROWS, ROWS_PER_PARAMETER, SPARE_ROWS, draw_few
from scalelab.fit.noise import NOISE_LEVELS
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import FitWarning, Refits, Status
from scalelab.fit.replicates import MANY_ROWS, Optimum, Replicates, refit, refit_clusters
from scalelab.theory.laws.base import Law
from scalelab.units import plural

FEW_CLUSTERS = 10
OPEN_ROWS = 1000
"""Number of rows from which a law that is not identified has one Newton step per replicate."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """Draws of the parameters and how they were made.

    Attributes
    ----------
    replicates : Replicates
    plan : ResamplingPlan
        The plan that was followed.
    refits : {"objective", "efficient", "posterior"}
    noise : ndarray of shape (levels,), or None
        Quantiles of the noise of a new run; NaN without intervals; None: those of the residuals.
    warnings : tuple of FitWarning
    """

    replicates: Replicates
    plan: ResamplingPlan
    refits: Refits = "objective"
    noise: FloatArray | None = None
    warnings: tuple[FitWarning, ...] = ()


def draws_of(
    law: type[Law],
    optimum: Optimum,
    columns: Mapping[str, FloatArray],
    plan: ResamplingPlan,
    spec: BootstrapSpec,
    objective: Objective,
    status: Status,
) -> Draws:
    """Return the draws of a fit.

    Parameters
    ----------
    law : type[Law]
        The form.
    optimum : Optimum
        The objective and its optimum.
    columns : Mapping[str, ndarray of shape (n,)]
        The design.
    plan, spec : ResamplingPlan, BootstrapSpec
        The resampling that was asked for.
    objective : Objective
    status : {"ok", "not_identified", "at_bound"}
    """
    # Refits of an unidentified law drift along its flat direction and rarely converge.
    many_rows = OPEN_ROWS if status == "not_identified" else MANY_ROWS
    if plan.method in ("none", "weights"):
        return Draws(replicates=refit(optimum, plan), plan=plan)
    equal = equal_rows(columns, optimum)
    n_distinct = int(equal.max()) + 1
    warnings = _repeats(len(equal), n_distinct)
    reason = _too_few(plan, n_distinct, optimum.n_free, len(equal))
    if reason is not None and status != "not_identified":
        none = replace(plan, method="none", k=0)
        return Draws(
            replicates=refit(optimum, none),
            plan=none,
            noise=np.full(len(NOISE_LEVELS), np.nan),
            warnings=(*warnings, FitWarning(code="no_interval", message=reason)),
        )
    is_ours = plan.weighting == "smooth" and (spec.method == "auto" or plan.method == "cluster")
    if is_ours and status != "not_identified" and objective.overprediction == 1.0:
        few = _from_few_rows(law, optimum, plan, equal)
        if few is not None:
            return replace(few, warnings=warnings)
    if is_ours and plan.method == "row" and n_distinct < len(equal):
        plan = replace(plan, member=equal)
    elif _may_be_efficient(spec, plan, objective) and status == "ok":
        found = efficient_replicates(optimum, plan, columns)
        if found is not None:
            return Draws(replicates=found[0], plan=found[1], refits="efficient")
    if plan.member is not None and plan.weighting == "smooth":
        replicates, shaped = refit_clusters(optimum, plan, many_rows=many_rows)
        return Draws(replicates=replicates, plan=shaped, warnings=warnings)
    return Draws(replicates=refit(optimum, plan, many_rows=many_rows), plan=plan)


def equal_rows(columns: Mapping[str, FloatArray], optimum: Optimum) -> NDArray[np.intp]:
    """Return the number of each row's observation, shape (n,): equal rows share one."""
    table = np.stack([*columns.values(), optimum.rows.target, optimum.rows.weight])
    _, first, group = np.unique(table, axis=1, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.intp)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[group.ravel()]


def _from_few_rows(
    law: type[Law], optimum: Optimum, plan: ResamplingPlan, equal: NDArray[np.intp]
) -> Draws | None:
    """Return posterior draws; None with more rows or clusters than that needs."""
    n = n_distinct = int(equal.max()) + 1
    if plan.method == "cluster":
        if plan.n_clusters is None or plan.n_clusters >= FEW_CLUSTERS or len(equal) > MOST_ROWS:
            return None
        n = len(equal)
    elif n_distinct >= ROWS_PER_PARAMETER * optimum.n_free:
        return None
    else:
        share = 1.0 / np.bincount(equal)[equal]
        optimum = replace(optimum, rows=optimum.rows.reweighted(optimum.rows.weight * share))
    found = draw_few(law, optimum, n, plan.member, plan.k, plan.seed)
    if found is None:
        return None
    every = Replicates(eta=found.eta, failed=0, kept=np.ones(plan.k, dtype=bool))
    return Draws(replicates=every, plan=plan, refits="posterior", noise=found.noise)


def _may_be_efficient(spec: BootstrapSpec, plan: ResamplingPlan, objective: Objective) -> bool:
    """Return whether efficient refits may make the replicates.

    They may not if the user chose the resampling or row weights, or an objective that does not
    estimate the centre of symmetric noise.
    """
    return (
        spec.method == "auto"
        and plan.method == "row"
        and spec.weighting == "smooth"
        and objective.loss in ("huber", "lad")
        and objective.overprediction == 1.0
        and objective.weight is None
    )


def _too_few(plan: ResamplingPlan, n_distinct: int, n_free: int, n_rows: int) -> str | None:
    """Return why there are no intervals; None if there are."""
    if plan.n_clusters == 1:
        return (
            f"The fitted law has no intervals: all {plural(n_rows, 'row')} have the same label in "
            f"{plan.cluster}, so their errors count as one. If the rows are independent runs, use "
            "--bootstrap-method row; otherwise add runs with other labels."
        )
    if n_distinct >= n_free + SPARE_ROWS:
        return None
    return (
        f"The fitted law has no intervals: {plural(n_distinct, 'different row')} for "
        f"{plural(n_free, 'parameter')} do not show the noise. The values can be far off. Add runs "
        f"until there are {n_free + SPARE_ROWS} or more, or fit a form with fewer parameters "
        "(--form tied)."
    )


def _repeats(n_rows: int, n_distinct: int) -> tuple[FitWarning, ...]:
    if n_distinct == n_rows:
        return ()
    return (
        FitWarning(
            code="repeated_rows",
            message=(
                f"{plural(n_rows - n_distinct, 'row')} of {n_rows:,} repeat another row exactly. "
                "Equal rows count as one observation in the intervals. Remove the copies if the "
                "table was pasted together."
            ),
        ),
    )
