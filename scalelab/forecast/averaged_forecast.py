"""Forecasts of requested runs by the averaged forecaster (`scalelab.forecast.averaged`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.outcome import Interval
from scalelab.forecast.allocate import (
    AVERAGED,
    SIZE_COLUMNS,
    Forecast,
    Request,
    complete_sizes,
    letter_of,
)
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.extrapolation import FittedRange
from scalelab.theory.accounting import tokens_at_6nd
from scalelab.units import format_flops

TOKENS_PER_PARAM = (0.1, 1e5)
"""Range in which the compute-optimal size is searched."""
N_COARSE, N_FINE, N_DRAWS = 121, 49, 600
FINE_REACH = 4.0
"""Natural logs of N on both sides of the optimum in which the draws are searched."""
WIDEST = 1.5
"""Largest ratio of the limits of a loss that is still an answer."""
MAX_STEPS = 40
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """The compute-optimal size at a compute, with the draws of its logarithm."""

    n_params: float
    log_draws: FloatArray

    def interval(self, level: float) -> Interval:
        """Return the size with the quantiles of its draws; the interval contains the size."""
        tail = (1 - level) / 2
        low, high = np.exp(np.quantile(self.log_draws, [tail, 1 - tail]))
        return Interval(
            value=self.n_params,
            low=min(float(low), self.n_params),
            high=max(float(high), self.n_params),
        )


def average_forecasts(
    found: AveragedFit, requests: Sequence[Request], *, fitted: FittedRange, level: float = 0.9
) -> tuple[Forecast, ...]:
    """Return one forecast for each request.

    Parameters
    ----------
    found : AveragedFit
    requests : sequence of Request
        Of N, D and C only.
    fitted : FittedRange
        Ranges of the fitted runs.
    level : float
        Level of the intervals.

    Raises
    ------
    UsageError
        If a request names another column, or none of N, D and C.
    NotIdentifiedError
        If the limits of a predicted loss differ by more than a factor of `WIDEST`.
    """
    return tuple(_forecast(found, request, fitted, level) for request in requests)


def optimum(found: AveragedFit, flops: float) -> Optimum:
    """Return the compute-optimal size at C = 6 N D."""
    n_params = compute_optimal_size(found, flops)
    fine = np.exp(math.log(n_params) + np.linspace(-FINE_REACH, FINE_REACH, N_FINE))
    draws = found.draws(_at_compute(fine, flops), N_DRAWS, np.random.default_rng(SEED))
    return Optimum(n_params=n_params, log_draws=_lowest(np.log(fine), draws))


def _at_compute(n_params: FloatArray, flops: float) -> dict[str, FloatArray]:
    return {"n_params": n_params, "n_tokens": flops / 6 / n_params}


def _lowest(x: FloatArray, losses: FloatArray) -> FloatArray:
    """Return where each row of losses (k, n) is lowest, by a parabola through three points."""
    at = np.clip(np.argmin(losses, axis=1), 1, len(x) - 2)
    rows = np.arange(len(losses))
    left, middle, right = (losses[rows, at + shift] for shift in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return np.asarray(x[at] + np.clip(shift, -1, 1) * (x[1] - x[0]))


def _flops_where(found: AveragedFit, column: str, value: float, start: float) -> float:
    """Return the compute at which the compute-optimal N or D is ``value``, by bisection."""

    def is_below(log_flops: float) -> bool:
        flops = math.exp(log_flops)
        n_params = compute_optimal_size(found, flops)
        return (n_params if column == "n_params" else tokens_at_6nd(flops, n_params)) < value

    low = high = math.log(start)
    while is_below(high) and high < math.log(start) + MAX_STEPS:
        high += 1.0
    while not is_below(low) and low > math.log(start) - MAX_STEPS:
        low -= 1.0
    for _ in range(MAX_STEPS // 2):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return math.exp((low + high) / 2)


def compute_optimal_size(found: AveragedFit, flops: float) -> float:
    """Return the compute-optimal N without its draws."""
    least, most = (math.sqrt(flops / 6 / ratio) for ratio in reversed(TOKENS_PER_PARAM))
    coarse = np.geomspace(least, most, N_COARSE)
    losses = found.at(_at_compute(coarse, flops)).quantile(0.5)
    return math.exp(_lowest(np.log(coarse), losses[None])[0])


def _forecast(found: AveragedFit, request: Request, fitted: FittedRange, level: float) -> Forecast:
    values = dict(request.values)
    others = [name for name in values if name not in SIZE_COLUMNS]
    known = [name for name in SIZE_COLUMNS if name in values]
    if others or not known:
        raise UsageError(
            f"--predict {request.text!r} with the averaged forecaster",
            "N, D and C",
            "Use --predict N=7e9,D=2e12, or --forecaster law for other columns.",
        )
    sizes: dict[str, Interval] = {}
    if len(known) == 1:
        given = known[0]
        flops = (
            values["flops"]
            if given == "flops"
            else _flops_where(found, given, values[given], fitted.flops)
        )
        sizes = _optimal_sizes(optimum(found, flops), given, values[given], flops, level)
        values = {"flops": flops, **{name: size.value for name, size in sizes.items()}}
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
    at = {name: np.array([values[name]]) for name in ("n_params", "n_tokens")}
    loss = found.predict(at, level)
    low, high = float(loss.low[0]), float(loss.high[0])
    if high / low > WIDEST:
        raise NotIdentifiedError(
            f"--predict {request.text!r}: a loss of {low:.3g} to {high:.3g}, too wide to use",
            f"limits within a factor of {WIDEST:g}",
            "Ask for a size nearer to the runs, or add runs nearer to it: `scalelab sweep "
            "adaptive` chooses them.",
        )
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
        forecaster=AVERAGED,
    )


def _optimal_sizes(
    found: Optimum, given: str, value: float, flops: float, level: float
) -> dict[str, Interval]:
    """Return N and D with intervals.

    Where N or D is given, the error of log N_opt at the compute becomes one of the other size: with
    N_opt near C^0.5, an error of x in log N_opt is one of 2 x in log C at a given N.
    """
    size = found.interval(level)
    if given == "flops":
        return {
            "n_params": size,
            "n_tokens": Interval(
                value=tokens_at_6nd(flops, size.value),
                low=tokens_at_6nd(flops, size.high),
                high=tokens_at_6nd(flops, size.low),
            ),
        }
    exact = Interval(value=value, low=value, high=value)
    other = flops / 6 / value
    low, high = (size.value / size.high) ** 2, (size.value / size.low) ** 2
    if given == "n_tokens":
        low, high = 1 / high, 1 / low
    free = Interval(value=other, low=other * min(low, 1.0), high=other * max(high, 1.0))
    return (
        {"n_params": exact, "n_tokens": free}
        if given == "n_params"
        else {"n_params": free, "n_tokens": exact}
    )
