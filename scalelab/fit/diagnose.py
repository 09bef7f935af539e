"""What to distrust in the design and the rows, as coded warnings.

Every warning names its figures and what to do. None changes an answer: an honest answer that comes
with a warning is worth more than a quiet one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.envelope import EnvelopeFit
from scalelab.fit.isoflop import IsoflopFit
from scalelab.fit.outcome import FitWarning, ParametricFit
from scalelab.records.types import Observations
from scalelab.theory.accounting import train_flops_6nd
from scalelab.units import format_flops

FloatArray = NDArray[np.float64]

OFF_CENTRE = 2.0
"""Mean factor between a grid's middle and its minimum from which the grid is off centre."""
DRIFT = 2.0
"""Factor by which that distance changes over the budgets from which the grid drifts."""
OUTLIER = 6.0
"""Robust standard deviations from which a residual is an outlier."""
BY_6ND = (("6nd", "chinchilla"), ("6nd", "unstated"), ("6nd_kaplan", "kaplan"))
"""Conventions of FLOPs and parameters by which C is 6ND in the table's own N."""
ANY_COUNT = 100.0
"""Factor from 6ND within which every count lies, those of sparse experts and attention too."""
CONVENTION_SPREAD = 0.10
"""Relative scatter of C/6ND about a smooth function of N from which conventions are mixed."""
MISFIT_SHARE = 0.35
"""Share of the residuals' variance that a quadratic in log N and log D explains in a misfit."""
MISFIT_ROWS = 24
UNFINISHED = 0.999


def row_warnings(
    observations: Observations, lines: NDArray[np.int64] | None, fit: ParametricFit
) -> list[FitWarning]:
    """Return what the rows themselves give reason to say: schedules, conventions, outliers."""
    found = [
        _mid_schedule(observations),
        _mixed(observations),
        _flops_mismatch(observations),
        _budget_mismatch(observations),
        _misfit(observations, fit),
        _outliers(fit, lines),
    ]
    return [warning for warning in found if warning is not None]


def replicate_warnings(spec: BootstrapSpec, level: float) -> list[FitWarning]:
    """Return what there is to say of so few replicates that no interval holds its level."""
    fewest = spec.fewest(level)
    if spec.weights is not None or spec.k == 0 or spec.k >= fewest:
        return []
    return [
        FitWarning(
            code="few_replicates",
            message=(
                f"{spec.k} bootstrap replicates leave none beyond the limits of an interval at "
                f"level {level:g}, which covers less than that. Take {fewest} or more."
            ),
        )
    ]


def design_warnings(isoflop: IsoflopFit, envelope: EnvelopeFit) -> list[FitWarning]:
    """Return what the grid gives reason to say: edge minima, off centre, drifting, no approach."""
    found = [_edges(isoflop), *_centring(isoflop)]
    for number, reason in (("1", envelope.reason), ("2", isoflop.reason)):
        if reason is not None:
            found.append(
                FitWarning(
                    code=f"approach_{number}_unavailable",
                    message=f"Approach {number} has no answer: {reason}.",
                )
            )
    return [warning for warning in found if warning is not None]


def notes_as_warnings(notes: Mapping[str, str]) -> list[FitWarning]:
    """Return what a reader decided by itself, as warnings under its codes."""
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
            "not_convex": "nowhere: the losses do not bend upwards",
        }
        if curve.n_params.edge is None and edge in ("below", "above"):
            where = {"below": "below the smallest D", "above": "above the largest D"}
        parts.append(f"{format_flops(curve.budget)} ({where[edge or 'not_convex']})")
    return FitWarning(
        code="edge_minimum",
        message=(
            f"{len(outside)} of {len(isoflop.curves)} budgets have no minimum inside their grid "
            f"and are left out of approach 2: {', '.join(parts)}. Add sizes on that side."
        ),
    )


def _centring(isoflop: IsoflopFit) -> list[FitWarning]:
    inside = isoflop.interior
    if len(inside) < 2:
        return []
    offsets = np.array([curve.n_params.offset for curve in inside])
    log_c = np.log([curve.budget for curve in inside])
    slope = np.polyfit(log_c, offsets, 1)[0]
    drift = float(slope * np.ptp(log_c))
    mean = float(offsets.mean())
    found = []
    if abs(mean) > math.log(OFF_CENTRE):
        side = "larger" if mean > 0 else "smaller"
        found.append(
            FitWarning(
                code="off_centre_grid",
                message=(
                    f"The best sizes lie on average {math.exp(abs(mean)):.1f} times from the "
                    f"middle of their grid, which biases approach 2. Centre the grid on {side} "
                    "sizes."
                ),
            )
        )
    if abs(drift) > math.log(DRIFT):
        found.append(
            FitWarning(
                code="drifting_grid",
                message=(
                    "From the smallest to the largest budget the grid's middle drifts "
                    f"{math.exp(abs(drift)):.1f} times against the best size, which bends the "
                    "exponents of approach 2. Let the grid's middle follow the optimum."
                ),
            )
        )
    return found


def _mid_schedule(observations: Observations) -> FitWarning | None:
    advice = (
        "A loss before its schedule ends is biased high. Keep each run's last row, "
        "or rows of constant-rate runs after a cooldown."
    )
    fraction = observations.extra.get("fraction_elapsed")
    if fraction is not None:
        # What the rows say of themselves counts: branches of a trunk are each at their end.
        early = int(np.sum(np.asarray(fraction, float) < UNFINISHED))
        if not early:
            return None
        return FitWarning(
            code="mid_schedule",
            message=f"{early} of {len(observations)} rows have fraction_elapsed < 1. {advice}",
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
            f"{early} of {len(observations)} rows look like checkpoints of a run that went on "
            f"(same run and N, fewer tokens). {advice}"
        ),
    )


def _log_ratio(observations: Observations) -> FloatArray:
    """Return log(C/6ND) of each row."""
    by_6nd = train_flops_6nd(observations.n_params, observations.n_tokens)
    return np.log(observations.flops / by_6nd)


def _flops_mismatch(observations: Observations) -> FitWarning | None:
    """Warn where C is not the 6ND that it is said to be, or further from it than any count is."""
    counted = observations.flop_convention, observations.param_convention
    is_stated = counted in BY_6ND
    middle = float(np.median(_log_ratio(observations)))
    if abs(middle) <= (math.log1p(CONVENTION_SPREAD) if is_stated else math.log(ANY_COUNT)):
        return None
    known = f"but stated as {counted[0]}" if is_stated else "as no way of counting has them"
    return FitWarning(
        code="flops_mismatch",
        message=(
            f"flops are {math.exp(middle):.3g} times 6ND (median of {len(observations)} rows), "
            f"{known}: approach 2 and the runs' compute are off by as much. Check the units of "
            "flops, N and D; forecasts use C = 6 N D."
        ),
    )


def _mixed(observations: Observations) -> FitWarning | None:
    """Warn where C/6ND is not one function of N: two ways of counting in one table."""
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
            f"flops / 6ND runs from {math.exp(ratio.min()):.2f} to {math.exp(ratio.max()):.2f} and "
            f"scatters by {100 * spread:.0f} % among runs of one size: N or FLOPs seem to be "
            "counted in more than one way. Fit one convention at a time (--where)."
        ),
    )


def _budget_mismatch(observations: Observations) -> FitWarning | None:
    """Warn where the rows' FLOPs are not the budgets that they claim to have been run at."""
    if observations.budget is None:
        return None
    ratio = (observations.flops / observations.budget)[np.isfinite(observations.budget)]
    middle = float(np.median(ratio)) if len(ratio) else 1.0
    if abs(math.log(middle)) <= math.log1p(CONVENTION_SPREAD):
        return None
    return FitWarning(
        code="budget_mismatch",
        message=(
            f"flops are {middle:.3g} times the budget (median of {len(ratio)} rows): the two are "
            "counted in different ways. Approach 2 is in the budget's FLOPs, forecasts in 6ND."
        ),
    )


def _misfit(observations: Observations, fit: ParametricFit) -> FitWarning | None:
    """Warn where the residuals are a smooth surface rather than noise: the form is wrong there."""
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
    # What five further terms explain of pure noise is taken off.
    share = 1 - (1 - share) * (len(r) - 1) / (len(r) - 6)
    if share < MISFIT_SHARE:
        return None
    return FitWarning(
        code="misfit",
        message=(
            f"{100 * share:.0f} % of the residuals' variance is a smooth function of N and D: the "
            f"form {fit.form} bends away from these runs, and intervals do not know it. Try "
            "--compare, or --form gamma."
        ),
    )


def _robust_scale(residuals: FloatArray) -> float:
    return 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))


def _outliers(fit: ParametricFit, lines: NDArray[np.int64] | None) -> FitWarning | None:
    residuals = fit.residuals
    if len(residuals) < 8:
        return None
    middle = np.median(residuals)
    scale = _robust_scale(residuals)
    far = np.flatnonzero(np.abs(residuals - middle) > OUTLIER * scale)
    if not len(far) or scale == 0:
        return None
    worst = np.sort(far[np.argsort(-np.abs(residuals[far]), kind="stable")][:5])
    where = "lines" if lines is not None else "rows"
    names = ", ".join(str(lines[i] if lines is not None else i + 1) for i in worst)
    more = ", .." if len(far) > len(worst) else ""
    return FitWarning(
        code="outliers",
        message=(
            f"{len(far)} rows lie more than {OUTLIER:g} robust standard deviations from the law "
            f"({where} {names}{more}). Huber's loss holds them down; check those runs."
        ),
    )
