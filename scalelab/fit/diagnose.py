"""Warnings about the rows and the design of a fit.

Each warning gives the numbers it is based on and what to do. None changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalelab.arrays import FloatArray
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.envelope import EnvelopeFit
from scalelab.fit.isoflop import IsoflopFit
from scalelab.fit.outcome import FitWarning, ParametricFit
from scalelab.fit.power_law import line_through
from scalelab.fit.rows import numbers
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_flops, plural

OFF_CENTRE = 2.0
"""Mean ratio between a grid's centre and its minimum above which the grid is off centre."""
CENTRE_SHIFT = 2.0
"""Change of that ratio from the smallest to the largest budget above which the grid drifts."""
OUTLIER = 6.0
"""Robust standard deviations above which a residual is an outlier."""
DRIFT_LEVEL = 0.9
"""Level of the interval of a change with minima outside their grid; it must not contain 0."""
FARTHEST = 2.0
"""Half widths of a grid beyond which a minimum outside it is not looked for."""
BY_6ND = (("6nd", "chinchilla"), ("6nd", "unstated"), ("6nd_kaplan", "kaplan"))
"""FLOP and parameter conventions for which C = 6ND in the table's own N."""
ANY_COUNT = 100.0
"""Maximum ratio to 6ND of any FLOP convention, including sparse experts and attention."""
CONVENTION_SPREAD = 0.10
"""Relative scatter of C/6ND around a smooth function of N above which conventions are mixed."""
MISFIT_SHARE = 0.35
"""Share of the residuals' variance explained by a quadratic in log N and log D in a misfit."""
MISFIT_ROWS = 24
UNFINISHED = 0.999
ROUNDING = 1e-6
"""Residuals below this share of the target are rounding of the table's numbers, not outliers."""


def row_warnings(
    observations: Observations, lines: NDArray[np.int64] | None, fit: ParametricFit
) -> list[FitWarning]:
    """Return warnings about the rows: schedules, conventions, budgets, misfit, outliers."""
    found = [_outliers(fit, lines, observations, numbers(observations, fit.law.target))]
    if observations.is_sized:
        found = [
            _mid_schedule(observations),
            _mixed(observations),
            _flops_mismatch(observations),
            _budget_mismatch(observations),
            _misfit(observations, fit),
            *found,
        ]
    return [warning for warning in found if warning is not None]


def replicate_warnings(spec: BootstrapSpec, level: float) -> list[FitWarning]:
    """Return a warning if there are too few replicates for the level of the intervals."""
    fewest = spec.fewest(level)
    if spec.weights is not None or spec.k == 0 or spec.k >= fewest:
        return []
    return [
        FitWarning(
            code="few_replicates",
            message=(
                f"{spec.k} bootstrap replicates are too few for {100 * level:g} % intervals: the "
                f"intervals are too narrow. Use --bootstrap {fewest} or more."
            ),
        )
    ]


def design_warnings(isoflop: IsoflopFit, envelope: EnvelopeFit) -> list[FitWarning]:
    """Return warnings about the grid: minima at its edge, off centre, drifting, no result."""
    found = [_edges(isoflop), *_centring(isoflop)]
    for number, reason in (("1", envelope.reason), ("2", isoflop.reason)):
        if reason is not None:
            found.append(
                FitWarning(
                    code=f"approach_{number}_unavailable",
                    message=f"Approach {number} has no result: {reason}.",
                )
            )
    return [warning for warning in found if warning is not None]


def notes_as_warnings(notes: Mapping[str, str]) -> list[FitWarning]:
    """Return the notes of the table reader (by code) as warnings."""
    return [FitWarning(code=code, message=message) for code, message in notes.items()]


def _edges(isoflop: IsoflopFit) -> FitWarning | None:
    outside = [curve for curve in isoflop.curves if not curve.is_interior]
    if not outside:
        return None
    parts = []
    for curve in outside:
        edge = curve.n_params.edge or curve.n_tokens.edge
        where = {
            "below": "below the smallest N",
            "above": "above the largest N",
            "not_convex": "no minimum: the loss is not convex in model size",
        }
        if curve.n_params.edge is None and edge in ("below", "above"):
            where = {"below": "below the smallest D", "above": "above the largest D"}
        parts.append(f"{format_flops(curve.budget)} ({where[edge or 'not_convex']})")
    return FitWarning(
        code="edge_minimum",
        message=(
            f"Approach 2 leaves out {len(outside)} of {plural(len(isoflop.curves), 'budget')}, "
            f"whose minimum is not inside the grid of sizes: {', '.join(parts)}. Add runs with "
            "model sizes on that side."
        ),
    )


def _centring(isoflop: IsoflopFit) -> list[FitWarning]:
    inside = isoflop.interior
    if not inside:
        return []
    shift = drift(isoflop)
    mean = float(np.mean([curve.n_params.offset for curve in inside]))
    found = []
    if len(inside) > 1 and abs(mean) > math.log(OFF_CENTRE):
        side = "larger" if mean > 0 else "smaller"
        found.append(
            FitWarning(
                code="off_centre_grid",
                message=(
                    f"The best model sizes are on average {math.exp(abs(mean)):.1f} times {side} "
                    "than the centre of the grid, which biases approach 2. Centre the grid on "
                    f"{side} sizes."
                ),
            )
        )
    if abs(shift) > math.log(CENTRE_SHIFT):
        found.append(
            FitWarning(
                code="drifting_grid",
                message=(
                    "From the smallest to the largest budget, the ratio of the best size to the "
                    f"grid's centre changes {math.exp(abs(shift)):.1f} times, which biases the "
                    "exponents of approach 2. Centre the grid on the best size at every budget."
                ),
            )
        )
    return found


def drift(isoflop: IsoflopFit) -> float:
    """Return how the offset of the minimum changes from the first budget to the last, in log N.

    A grid that drifts loses its minima at the last budgets, so those outside their grid count too,
    up to `FARTHEST` from the centre. As they are uncertain, their trend must be significant.
    """
    shifts = [0.0]
    for curves in (isoflop.interior, isoflop.curves):
        seen = [curve for curve in curves if curve.n_params.edge != "not_convex"]
        if len(seen) < 2:
            continue
        minima = [curve.n_params for curve in seen]
        log_c = np.log([curve.budget for curve in seen])
        far = [FARTHEST * each.half_width for each in minima]
        trend = line_through(
            log_c, np.clip([m.offset for m in minima], np.negative(far), far), DRIFT_LEVEL
        )
        limits = trend.interval
        if all(m.edge is None for m in minima) or limits.low > 0 or limits.high < 0:
            shifts.append(trend.exponent * float(np.ptp(log_c)))
    return max(shifts, key=abs)


def _mid_schedule(observations: Observations) -> FitWarning | None:
    advice = (
        "A loss before the end of the learning-rate schedule is too high. Keep only the last row "
        "of each run, or use runs with a constant learning rate and a cooldown."
    )
    fraction = observations.extra.get("fraction_elapsed")
    if fraction is not None:
        # The column decides: each cooldown branch of a trunk is at the end of its schedule.
        early = int(np.sum(np.asarray(fraction, float) < UNFINISHED))
        if not early:
            return None
        return FitWarning(
            code="mid_schedule",
            message=(
                f"In {early} of {plural(len(observations), 'row')} fraction_elapsed is below 1. "
                f"{advice}"
            ),
        )
    if observations.cluster is None:
        return None
    _, owner, counts = np.unique(observations.cluster, return_inverse=True, return_counts=True)
    order = np.lexsort((observations.n_tokens, owner))
    same = np.diff(owner[order]) == 0
    n, d = observations.n_params[order], observations.n_tokens[order]
    repeats = same & (np.diff(d) > 0) & (np.abs(np.diff(n)) <= 1e-9 * n[1:])
    early = int(repeats.sum())
    if not early or counts.max() < 2:
        return None
    return FitWarning(
        code="mid_schedule",
        message=(
            f"Probably intermediate checkpoints: {early} of {plural(len(observations), 'row')} "
            f"(same run and N as a row with more tokens). {advice}"
        ),
    )


def _log_ratio(observations: Observations) -> FloatArray:
    """Return log(C/6ND) of each row."""
    by_6nd = train_flops_6nd(observations.n_params, observations.n_tokens)
    return np.log(observations.flops / by_6nd)


def _flops_mismatch(observations: Observations) -> FitWarning | None:
    """Warn if C is not the stated 6ND, or differs from 6ND more than any convention does."""
    counted = observations.flop_convention, observations.param_convention
    is_stated = counted in BY_6ND
    middle = float(np.median(_log_ratio(observations)))
    if abs(middle) <= (math.log1p(CONVENTION_SPREAD) if is_stated else math.log(ANY_COUNT)):
        return None
    known = f"but stated as {counted[0]}" if is_stated else "more than any FLOP count explains"
    return FitWarning(
        code="flops_mismatch",
        message=(
            f"flops are {math.exp(middle):.3g} times 6ND (median of "
            f"{plural(len(observations), 'row')}), {known}. Approach 2 and the compute of the runs "
            "are wrong by the same factor. Check the units of flops, N and D; forecasts use "
            "C = 6 N D."
        ),
    )


def _mixed(observations: Observations) -> FitWarning | None:
    """Warn if C/6ND is not a function of N: the table mixes counting conventions."""
    ratio = _log_ratio(observations)
    x = np.log(observations.n_params)
    if len(x) < 6 or np.ptp(ratio) < CONVENTION_SPREAD or np.ptp(x) == 0:
        return None
    u = (x - x.mean()) / np.ptp(x)
    design = u[:, None] ** np.arange(3)
    scatter = ratio - design @ np.linalg.lstsq(design, ratio, rcond=None)[0]
    spread = float(np.std(scatter))
    if spread <= CONVENTION_SPREAD:
        return None
    return FitWarning(
        code="mixed_conventions",
        message=(
            f"flops / 6ND ranges from {math.exp(ratio.min()):.2f} to {math.exp(ratio.max()):.2f} "
            f"and varies by {100 * spread:.0f} % among runs of one size. The table probably mixes "
            "two conventions of counting N or FLOPs, which biases the fit. Select the rows of one "
            "convention with --where."
        ),
    )


def _budget_mismatch(observations: Observations) -> FitWarning | None:
    """Warn if the FLOPs of the rows differ from their budgets."""
    if observations.budget is None:
        return None
    ratio = (observations.flops / observations.budget)[np.isfinite(observations.budget)]
    middle = float(np.median(ratio)) if len(ratio) else 1.0
    if abs(math.log(middle)) <= math.log1p(CONVENTION_SPREAD):
        return None
    return FitWarning(
        code="budget_mismatch",
        message=(
            f"flops are {middle:.3g} times the budget (median of {plural(len(ratio), 'row')}), so "
            "the two use different conventions. Approach 2 uses the budget, forecasts use 6ND: "
            "compare them only after correcting one of the columns."
        ),
    )


def _misfit(observations: Observations, fit: ParametricFit) -> FitWarning | None:
    """Warn if the residuals are a smooth function of N and D: the form does not fit."""
    residuals = fit.residuals
    scale = _robust_scale(residuals)
    if len(residuals) < MISFIT_ROWS or scale == 0:
        return None
    r = np.clip(residuals - np.median(residuals), -OUTLIER * scale, OUTLIER * scale)
    x, y = (np.log(column) for column in (observations.n_params, observations.n_tokens))
    if not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return None
    u, v = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    design = np.column_stack([np.ones_like(u), u, v, u * u, u * v, v * v])
    rest = r - design @ np.linalg.lstsq(design, r, rcond=None)[0]
    share = 1 - np.sum(rest**2) / np.sum((r - r.mean()) ** 2)
    # Adjusted for the five terms: pure noise gives 0.
    share = 1 - (1 - share) * (len(r) - 1) / (len(r) - 6)
    if share < MISFIT_SHARE:
        return None
    return FitWarning(
        code="misfit",
        message=(
            f"{100 * share:.0f} % of the residuals' variance is a smooth function of N and D. The "
            f"form {fit.form} does not fit here; the intervals do not include that error. Try "
            "--compare or --form gamma."
        ),
    )


def _robust_scale(residuals: FloatArray) -> float:
    return 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))


def _outliers(
    fit: ParametricFit,
    lines: NDArray[np.int64] | None,
    observations: Observations,
    targets: FloatArray,
) -> FitWarning | None:
    residuals = fit.residuals
    if len(residuals) < 8:
        return None
    middle = float(np.median(residuals))
    size = np.abs(residuals - middle)
    # The law passes through as many rows as it has parameters if the objective is nearly absolute:
    # the scale is the median of the others.
    n, p = len(residuals), len(fit.names) - len(fit.fixed)
    scale = 1.4826 * float(np.quantile(size, min(0.5 * (1 + p / n), 1.0)))
    is_log = fit.objective.residual == "log"
    rounding = ROUNDING * (1.0 if is_log else float(np.median(targets)))
    far = np.flatnonzero(size > max(OUTLIER * scale, rounding))
    if not len(far):
        return None
    worst = np.sort(far[np.argsort(-np.abs(residuals[far]), kind="stable")][:5])
    kind, labels = "row", np.arange(1, n + 1)
    if observations.names is not None and observations.names.dtype.kind != "i":
        kind, labels = "run", observations.names
    elif lines is not None:
        kind, labels = "line", lines
    where = kind if len(far) == 1 else f"{kind}s"
    names = ", ".join(str(labels[i]) for i in worst)
    more = ", .." if len(far) > len(worst) else ""
    effect = {
        "ls": "Least squares gives them a large effect; --loss huber limits it.",
        "lad": "The least-absolute objective limits their effect.",
    }.get(fit.objective.loss, "The Huber objective limits their effect.")
    return FitWarning(
        code="outliers",
        message=(
            f"{plural(len(far), 'row')} {'is' if len(far) == 1 else 'are'} more than {OUTLIER:g} "
            f"times the usual distance from the law ({where} {names}{more}). {effect} Check those "
            "runs."
        ),
        runs=_to_exclude(far, observations.names, lines),
    )


def _to_exclude(
    rows: NDArray[np.intp], names: NDArray[Any] | None, lines: NDArray[np.int64] | None
) -> tuple[str, ...]:
    """Return these rows as ``--exclude`` takes them: by run, by line if the run has other rows."""
    if names is None:
        return ()
    found = dict.fromkeys(
        str(names[i])
        if lines is None or np.isin(np.flatnonzero(names == names[i]), rows).all()
        else str(lines[i])
        for i in rows
    )
    return tuple(found)
