"""Forecasts of requested runs by the averaged forecaster (`scalelab.forecast.averaged`)."""

from __future__ import annotations

import numpy as np

from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.intervals import Interval
from scalelab.forecast.allocate import (
    AVERAGED,
    SIZE_COLUMNS,
    Forecast,
    Request,
    complete_sizes,
    letter_of,
)
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.averaged_optimum import flops_where, frontier_points, optima, tokens_of
from scalelab.forecast.extrapolation import FittedRange
from scalelab.forecast.line import Line, line_of
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.units import format_flops, format_quantity

WIDEST = 2.0
"""Largest ratio of the limits of a loss that is still an answer."""
UNIQUE = "unique_tokens"
LEAST_SLOPE = 0.05
"""Smallest exponent of N_opt or D_opt by which the error of the other size is divided."""


def average_forecast(
    found: AveragedFit, request: Request, *, fitted: FittedRange, level: float = 0.9
) -> Forecast:
    """Return the forecast of one request.

    Parameters
    ----------
    found : AveragedFit
    request : Request
        Of N, D and C, and of ``unique_tokens`` where the rows have repeated tokens.
    fitted : FittedRange
        Ranges of the fitted runs.
    level : float
        Level of the intervals.

    Raises
    ------
    UsageError
        If a request names another column, or none of N, D and C.
    NotIdentifiedError
        If the rows do not answer it: they lie on one line and the request is off it, they show no
        compute-optimal size, or the limits of the loss differ by more than a factor of `WIDEST`.
    """
    values, has_unique = dict(request.values), UNIQUE in found.rows.columns
    known = [name for name in SIZE_COLUMNS if name in values]
    allowed = (*SIZE_COLUMNS, *([UNIQUE] if has_unique else []))
    if any(name not in allowed for name in values) or not known:
        raise UsageError(
            f"--predict {request.text!r} with the averaged forecaster",
            "N, D and C" + (" and unique_tokens" if has_unique else ""),
            "Use --predict N=7e9,D=2e12, or --forecaster law for other columns.",
        )
    line = line_of(found.rows)
    if len(known) == 1:
        given = known[0]
        if line is not None and not line.is_isoflop:
            raise _no_split(request, line)
        flops = (
            values["flops"]
            if given == "flops"
            else flops_where(found, given, values[given], fitted.flops)
        )
        sizes = _optimal_sizes(found, request, given, values[given], flops, level)
        values |= {"flops": flops, **{name: size.value for name, size in sizes.items()}}
        allocation = (
            f"compute-optimal at {letter_of(given)} = {format_flops(request.values[given])}"
        )
    else:
        complete_sizes(values)
        sizes = {
            name: Interval(value=values[name], low=values[name], high=values[name])
            for name in ("n_params", "n_tokens")
        }
        allocation = f"{' and '.join(map(letter_of, known))} given; C = 6 N D"
    if line is not None and not line.has(values["n_params"], values["n_tokens"]):
        raise _off_line(request, line, values)
    at = {
        name: np.array([values[name]])
        for name in ("n_params", "n_tokens", UNIQUE)
        if name in values
    }
    loss = found.predict(at, level)
    low, high = float(loss.low[0]), float(loss.high[0])
    if not high <= WIDEST * low:
        raise _too_wide(request, found, values, low, high)
    return Forecast(
        asked=request.text,
        allocation=allocation,
        n_params=sizes["n_params"],
        n_tokens=sizes["n_tokens"],
        flops=values["flops"],
        loss_nats=float(loss.value[0]),
        low=low,
        high=high,
        pred_low=float(loss.pred_low[0]),
        pred_high=float(loss.pred_high[0]),
        level=level,
        extrapolation=values["flops"] / fitted.flops,
        outside_range=fitted.describe_extrapolation(
            n_params=values["n_params"], n_tokens=values["n_tokens"], flops=values["flops"]
        ),
        distance=fitted.describe_distance(values["flops"]),
        forecaster=AVERAGED,
    )


def _optimal_sizes(
    found: AveragedFit, request: Request, given: str, value: float, flops: float, level: float
) -> dict[str, Interval]:
    """Return N and D with intervals.

    Where N or D is given, an error x of log N_opt at the compute is one of x / a in log C at a
    given N, and of x / b at a given D: the frontier has the local exponents a and b = 1 - a.
    """
    at = optima(found, np.array([flops]))
    if not at.is_inside[0]:
        raise NotIdentifiedError(
            f"--predict {request.text!r}: the runs show no compute-optimal N and D there",
            "runs on both sides of the best N at one compute or more",
            f"Give both N and D, or add runs of several sizes at one compute, for example "
            f"`scalelab sweep isoflop --budgets {format_flops(_budget(found))}`.",
        )
    low_n, high_n = (float(limit[0]) for limit in at.n_limits(level))
    size = Interval(value=float(at.n_params[0]), low=low_n, high=high_n)
    if given == "flops":
        return {"n_params": size, "n_tokens": tokens_of(size, flops)}
    points = frontier_points(found, [flops], level)
    a = points[0].a.value if points else 0.5
    slope = max(a if given == "n_params" else 1 - a, LEAST_SLOPE)
    other = tokens_at_6nd(flops, value)
    # The given N is the N_opt of a larger compute where N_opt is smaller than expected.
    ratios = ((size.value / size.high) ** (1 / slope), (size.value / size.low) ** (1 / slope))
    low, high = ratios if given == "n_params" else (1 / ratios[1], 1 / ratios[0])
    exact = Interval(value=value, low=value, high=value)
    free = Interval(value=other, low=other * min(low, 1.0), high=other * max(high, 1.0))
    return (
        {"n_params": exact, "n_tokens": free}
        if given == "n_params"
        else {"n_params": free, "n_tokens": exact}
    )


def _budget(found: AveragedFit) -> float:
    """Return a compute in the middle of the runs, in logs."""
    n_params, n_tokens = found.rows.columns["n_params"], found.rows.columns["n_tokens"]
    return float(np.exp(np.log(train_flops_6nd(n_params, n_tokens)).mean()))


def _no_split(request: Request, line: Line) -> NotIdentifiedError:
    return NotIdentifiedError(
        f"--predict {request.text!r}: the runs lie on {line.describe()}, which shows no "
        "compute-optimal N and D",
        "N and D of a run on that line",
        f"Give both N and D, or add runs off the line, for example {line.added()}.",
    )


def _off_line(request: Request, line: Line, values: dict[str, float]) -> NotIdentifiedError:
    distance = line.distance(values["n_params"], values["n_tokens"])
    # All runs at one point have no spread to measure by.
    far = "" if distance > 1e6 else f" by {distance:.2g} times their spread along it"
    return NotIdentifiedError(
        f"--predict {request.text!r}: the runs lie on {line.describe()}, and N = "
        f"{format_quantity(values['n_params'])}, D = {format_quantity(values['n_tokens'])} is off "
        f"it{far}",
        "a run on that line",
        f"Ask for a run on the line, or add runs off it, for example {line.added()}.",
    )


def _too_wide(
    request: Request, found: AveragedFit, values: dict[str, float], low: float, high: float
) -> NotIdentifiedError:
    """Return the error with a run halfway, in logs, from the nearest run to the request."""
    rows = np.log(np.stack([found.rows.columns[name] for name in ("n_params", "n_tokens")]))
    asked = np.log([[values["n_params"]], [values["n_tokens"]]])
    nearest = rows[:, [int(((rows - asked) ** 2).sum(axis=0).argmin())]]
    N, D = np.exp((nearest + asked) / 2)[:, 0]
    return NotIdentifiedError(
        f"--predict {request.text!r}: a loss of {low:.3g} to {high:.3g}, too wide to use",
        f"limits within a factor of {WIDEST:g}",
        "Ask for a size nearer to the runs, or add runs nearer to it, for example "
        f"N={format_quantity(float(N))},D={format_quantity(float(D))}.",
    )
