"""Approach 3: fit a law to runs, with all minima, bootstrap replicates and warnings.

Use `fit_parametric`. Its parts are `scalelab.fit.solver` (minimisation), `scalelab.fit.draws` (the
draws behind the intervals) and `scalelab.fit.identify` (status).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, UsageError
from scalelab.fit.bootstrap import BootstrapSpec, ResamplingPlan, plan
from scalelab.fit.draws import FEW_CLUSTERS, OPEN_ROWS, draws_of
from scalelab.fit.identify import assess
from scalelab.fit.inflation import Inflation
from scalelab.fit.likelihood import best_scale, reported_value
from scalelab.fit.newton import Box
from scalelab.fit.noise import compute_of
from scalelab.fit.objective import Objective, Residual
from scalelab.fit.outcome import (
    BootstrapReport,
    FitWarning,
    Minimum,
    ParametricFit,
    Status,
)
from scalelab.fit.penalty import Penalty
from scalelab.fit.powered_sum import row_model_of
from scalelab.fit.replicates import Optimum, Replicates
from scalelab.fit.row_model import RowModel, Rows
from scalelab.fit.rows import Design, design
from scalelab.fit.solver import DISAGREEMENT, Search, refine, search
from scalelab.records.types import Observations
from scalelab.theory.laws import law_named
from scalelab.theory.laws.base import Law
from scalelab.units import plural

FURTHEST = 700.0
"""Bound on logarithms: exp(700) is still a finite float."""
COARSE = 4096
"""Maximum number of rows in the global search; its results are refined on all rows."""


def fit_parametric(
    observations: Observations,
    *,
    form: str = "chinchilla",
    objective: Objective | None = None,
    bootstrap: BootstrapSpec | None = None,
    fixed: Mapping[str, float] | None = None,
    n_starts: int = 32,
    uses_inflation: bool = True,
) -> ParametricFit:
    """Return the law that minimises the objective, with its bootstrap replicates.

    Parameters
    ----------
    observations : Observations
        The runs, in any order.
    form : str
        Name of a form, see `scalelab.theory.laws.LAWS`.
    objective : Objective, optional
        Default: log residual, Huber, delta 1e-3, plain sum. A law of a signed target always has
        the linear residual.
    bootstrap : BootstrapSpec, optional
        Default: 1000 replicates, by cluster where labels repeat, else by row.
    fixed : Mapping[str, float], optional
        Parameters to hold at a value while the others are fitted.
    n_starts : int
        Starting points of the global search.
    uses_inflation : bool
        Whether `scalelab.fit.inflation` widens prediction intervals beyond the largest run. It
        costs a few refits when such an interval is first asked for.

    Returns
    -------
    ParametricFit
        Its ``status`` is ``not_identified`` if the rows do not determine the law; no error is
        raised then.

    Raises
    ------
    UsageError
        For an unknown form or parameter, or a missing column.
    DataError
        For no rows, or a column with values that are not finite and positive.
    """
    objective = objective or Objective()
    bootstrap = bootstrap or BootstrapSpec()
    law = law_named(form)
    if law.is_signed:
        objective = replace(objective, residual="linear")
    held = dict(fixed or {})
    box = box_of(law, held)
    data = design(observations, law, objective, bootstrap.cluster)
    replicates = plan(bootstrap, data.rows.n, data.labels, data.labels_from, data.order)
    seeds = _seeds(law, _thinned(data), box, held)
    model = row_model_of(law, data.columns, is_centred=not held)
    found, scale = solve(law, data, model, objective, box, held, seeds, n_starts)
    optimum = Optimum(model=model, eta=found.eta, rows=data.rows, penalty=found.penalty, box=box)
    theta = model.theta(found.eta[None])[0]
    r = optimum.residuals
    status, reasons = assess(
        law, theta, data.columns, r, data.rows.weight, box, is_log=data.rows.is_log
    )
    compute = compute_of(data.columns)
    drawn = draws_of(law, optimum, data.columns, replicates, bootstrap, objective, status)
    refits, replicates = drawn.replicates, drawn.plan
    inflation: Inflation | None = None
    # A law that is not identified has no intervals; many rows would cost seconds for nothing.
    is_worth_it = status != "not_identified" or data.rows.n < OPEN_ROWS
    if uses_inflation and len(refits.eta) and is_worth_it:
        inflation = Inflation(
            law=law,
            columns=data.columns,
            rows=data.rows,
            theta=theta,
            penalty=found.penalty,
            box=box,
            refits=drawn.refits,
        )
    position = np.argsort(data.order)
    residuals = np.empty_like(r)
    residuals[data.order] = r
    return ParametricFit(
        form=form,
        law=law.from_coordinates(theta),
        status=status,
        objective=objective,
        value=reported_value(r, data.weight, objective, scale),
        scale=scale,
        minima=_minima(law, model, found, data, objective, scale),
        names=law.names(),
        samples=law.decode(model.theta(refits.eta)),
        bootstrap=BootstrapReport(
            method=replicates.method,
            k=len(refits.eta) + refits.failed,
            failed=refits.failed,
            seed=bootstrap.seed,
            cluster=replicates.cluster,
            n_clusters=replicates.n_clusters,
            refits=drawn.refits,
        ),
        residuals=residuals,
        fixed=held,
        n_rows=data.rows.n,
        max_flops=data.max_flops,
        warnings=(*reasons, *drawn.warnings, *_warnings(found, refits, replicates, status)),
        kept=refits.kept,
        inflation_of=inflation,
        shape=None if replicates.shape is None else replicates.shape[position],
        compute=None if compute is None else compute[position],
        noise=drawn.noise,
    )


def box_of(law: type[Law], held: Mapping[str, float]) -> Box:
    """Return bounds and held coordinates; UsageError for an unknown parameter name."""
    unknown = sorted(set(held) - set(law.names()))
    if unknown:
        raise UsageError(
            f"parameter {', '.join(unknown)}",
            f"one of {', '.join(law.names())}",
            f"Use for example fixed={{{law.names()[0]!r}: 1.0}}.",
        )
    low = [
        -FURTHEST if c.is_log and c.low <= 0 else float(c.encode(c.low)) for c in law.coordinates
    ]
    high = [FURTHEST if c.high == np.inf else float(c.encode(c.high)) for c in law.coordinates]
    return Box(
        free=np.array([c.name not in held for c in law.coordinates]),
        scales=np.array([c.is_log or c.name == law.offset for c in law.coordinates]),
        low=np.maximum(low, -FURTHEST),
        high=np.minimum(high, FURTHEST),
    )


def solve(
    law: type[Law],
    data: Design,
    model: RowModel,
    objective: Objective,
    box: Box,
    held: Mapping[str, float],
    seeds: FloatArray,
    n_starts: int,
) -> tuple[Search, float | None]:
    """Return the global minimum, and the noise scale for the likelihood."""
    coarse = _thinned(data)
    penalty = Penalty(delta=objective.threshold, overprediction=objective.overprediction)
    if objective.loss != "likelihood":
        return _staged(law, data, coarse, model, seeds, penalty, box, held, n_starts), None
    square = Penalty(delta=np.inf, overprediction=objective.overprediction)
    found = _staged(law, data, coarse, model, seeds, square, box, held, n_starts)
    scale = 0.0
    for _ in range(50):
        r = model.residuals(found.eta[None], data.rows)[0]
        new = best_scale(r, data.rows.weight, objective)
        if abs(new - scale) <= 1e-12 * new:
            break
        scale = new
        penalty = Penalty(
            delta=objective.threshold * scale, overprediction=objective.overprediction
        )
        starts = np.concatenate([model.theta(found.eta[None]), seeds])
        found = _staged(law, data, coarse, model, starts, penalty, box, held, n_starts)
    return found, scale


def _staged(
    law: type[Law],
    data: Design,
    coarse: Design,
    model: RowModel,
    seeds: FloatArray,
    penalty: Penalty,
    box: Box,
    held: Mapping[str, float],
    n_starts: int,
) -> Search:
    """Search on a part of the rows if there are many, and refine on all rows."""
    if coarse is not data:
        part = row_model_of(law, coarse.columns, is_centred=not held)
        first = search(part, part.eta(seeds), coarse.rows, penalty, box, n_starts=n_starts)
        near = part.theta(np.array([eta for _, eta in first.minima[:4]]))
        return refine(model, model.eta(near), data.rows, first.penalty, box)
    return search(model, model.eta(seeds), data.rows, penalty, box, n_starts=n_starts)


def _seeds(law: type[Law], data: Design, box: Box, held: Mapping[str, float]) -> FloatArray:
    """Return the law's finite starting points, best fit first."""
    with np.errstate(all="ignore"):  # starting points that are not finite are left out
        seeds = law.seeds(data.columns, data.rows.target)
    if held:
        values = law.decode(seeds)
        for j, name in enumerate(law.names()):
            if name in held:
                values[:, j] = held[name]
        seeds = law.encode(values)
    seeds = np.clip(seeds, box.low, box.high)
    model = row_model_of(law, data.columns, is_centred=False)
    residual: Residual = "linear" if law.is_signed else "log"
    rows = Rows(data.rows.target, data.rows.weight, residual)
    misfit = model.value(seeds, rows, Penalty(delta=np.inf))
    order = np.argsort(misfit, kind="stable")
    order = order[np.isfinite(misfit[order])]
    if not len(order):
        raise DataError(
            f"{plural(data.rows.n, 'row')} that the form {law.name} does not describe in double "
            f"precision ({law.target} of {data.rows.target.min():.3g} to "
            f"{data.rows.target.max():.3g})",
            "numbers whose powers are within the range of a float",
            "Change the unit of the columns, for example --map 'loss_nats=loss * 1000'.",
        )
    return np.asarray(seeds[order])


def _thinned(data: Design) -> Design:
    if data.rows.n <= COARSE:
        return data
    keep = np.linspace(0, data.rows.n - 1, COARSE).astype(int)
    keep = keep[data.rows.weight[keep] > 0]
    return Design(
        columns={name: values[keep] for name, values in data.columns.items()},
        rows=Rows(data.rows.target[keep], data.rows.weight[keep], data.rows.residual),
        labels=None,
        labels_from=data.labels_from,
        order=data.order[keep],
        max_flops=data.max_flops,
        unit=data.unit,
    )


def _minima(
    law: type[Law],
    model: RowModel,
    found: Search,
    data: Design,
    objective: Objective,
    scale: float | None,
) -> tuple[Minimum, ...]:
    etas = np.array([eta for _, eta in found.minima])
    residuals = model.residuals(etas, data.rows)
    return tuple(
        Minimum(
            value=reported_value(r, data.weight, objective, scale),
            params=law.from_coordinates(theta).params,
        )
        for r, theta in zip(residuals, model.theta(etas), strict=True)
    )


def _warnings(
    found: Search, refits: Replicates, replicates: ResamplingPlan, status: Status
) -> tuple[FitWarning, ...]:
    out = []
    if not found.converged:
        out.append(
            FitWarning(
                code="not_converged",
                message=(
                    "The solver stopped before it reached a minimum, so the parameters are only "
                    "approximate. Remove outlying rows, or fit a form with fewer parameters."
                ),
            )
        )
    if found.improved > DISAGREEMENT:
        out.append(
            FitWarning(
                code="solvers_disagree",
                message=(
                    f"scipy.optimize improved the solver's result by {found.improved:.1e} of the "
                    "objective; the fit uses that better point. Larger values mean that the "
                    "parameters are less accurate."
                ),
            )
        )
    if len(found.minima) > 1:
        out.append(
            FitWarning(
                code="several_minima",
                message=(
                    f"{len(found.minima)} different minima are within 0.2 % of the best objective: "
                    "other parameters fit almost equally well. Compare them under `minima` in "
                    "--json; more runs separate them."
                ),
            )
        )
    tried = len(refits.eta) + refits.failed
    # A law that is not identified has no intervals.
    if refits.failed > 0.05 * tried and status != "not_identified":
        out.append(
            FitWarning(
                code="replicates_failed",
                message=(
                    f"{refits.failed} of {plural(tried, 'replicate')} did not converge. The "
                    "intervals leave them out and may be too narrow. Fit a form with fewer "
                    "parameters, or add runs."
                ),
            )
        )
    if replicates.n_clusters is not None and 1 < replicates.n_clusters < FEW_CLUSTERS:
        out.append(
            FitWarning(
                code="few_clusters",
                message=(
                    f"{plural(replicates.n_clusters, 'cluster')} (of {replicates.cluster}) are too "
                    f"few for reliable intervals. Add runs until there are {FEW_CLUSTERS} or more."
                ),
            )
        )
    return tuple(out)
