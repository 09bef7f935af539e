"""Compute-optimal sizes and predicted losses with intervals.

A request gives some of N, D and C. Two of them set the third by C = 6 N D. If one is given, the
others are compute-optimal. The intervals of N and D are those of the optimum over the bootstrap
replicates; the intervals of the loss are for the N and D of the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scalelab.errors import UsageError, did_you_mean
from scalelab.fit.intervals import Interval, percentile_limits
from scalelab.fit.outcome import FitWarning, ParametricFit
from scalelab.forecast.extrapolation import FittedRange, extrapolation_warning
from scalelab.theory.accounting import tokens_at_6nd, train_flops_6nd
from scalelab.theory.laws.base import Law
from scalelab.units import format_flops, parse_quantity

COLUMN_OF_LETTER = {"N": "n_params", "D": "n_tokens", "C": "flops"}
SIZE_COLUMNS = tuple(COLUMN_OF_LETTER.values())
MAX_STEPS = 60
USUAL_FLOPS = 1e21
"""Compute at which the search for an optimum starts where the fitted runs are not known."""
LAW, AVERAGED = "law", "averaged"
FORECASTERS = (LAW, AVERAGED)
"""The fitted law, or the average of several forms (`scalelab.forecast.averaged`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request: its text, and the values by column name."""

    text: str
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """The prediction for one requested run.

    Attributes
    ----------
    asked : str
        The request as written.
    allocation : str
        How N, D and C were found, for example ``compute-optimal at C = 1e24``.
    n_params, n_tokens : Interval or None
        Size and tokens, with the interval of the compute-optimal choice. A given value has limits
        equal to itself. None if the form does not use the column.
    flops : float or None
        Training compute, C = 6 N D.
    loss_nats : float
        Predicted loss at N and D, or the predicted ``target`` of a law of another quantity.
    low, high : float
        Confidence interval of the loss.
    pred_low, pred_high : float
        Prediction interval of a new run.
    level : float
        Level of all intervals.
    extrapolation : float or None
        ``flops`` divided by those of the largest fitted run, both as 6 N D.
    outside_range : tuple of str
        Phrases such as ``110x the FLOPs of the largest run``; empty within `EXTRAPOLATION_LIMIT`.
    distance : str
        How far its compute is from the fitted runs, as a sentence; empty if they are not known.
    forecaster : str
        One of `FORECASTERS`: what predicts the loss and the compute-optimal sizes.
    """

    asked: str
    allocation: str
    n_params: Interval | None
    n_tokens: Interval | None
    flops: float | None
    loss_nats: float
    low: float
    high: float
    pred_low: float
    pred_high: float
    level: float
    extrapolation: float | None
    outside_range: tuple[str, ...] = ()
    distance: str = ""
    forecaster: str = LAW

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast under the names of the JSON contract."""
        sizes: dict[str, Any] = {}
        for name, size in (("n_params", self.n_params), ("n_tokens", self.n_tokens)):
            sizes[name] = size and size.value
            sizes[f"{name}_low"] = size and size.low
            sizes[f"{name}_high"] = size and size.high
        rest = ("flops", "loss_nats", "low", "high", "pred_low", "pred_high")
        return {
            "asked": self.asked,
            "allocation": self.allocation,
            **sizes,
            **{name: getattr(self, name) for name in (*rest, "level", "extrapolation")},
            "forecaster": self.forecaster,
        }


def check_forecaster(name: str) -> None:
    """Raise UsageError unless the name is one of `FORECASTERS`."""
    if name not in FORECASTERS:
        raise UsageError(
            f"forecaster {name!r}",
            " or ".join(FORECASTERS),
            f"{did_you_mean(name, FORECASTERS)}Use --forecaster averaged.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A request that the runs do not answer, in the three parts of an error."""

    asked: str
    given: str
    allowed: str
    do: str


def parse_request(text: str, *, option: str = "--predict") -> Request:
    """Return the request of a text such as ``N=7e9``, ``N=7B,D=2T`` or ``D=1T,lr=3e-4``.

    Raises
    ------
    UsageError
        If an item is not NAME=QUANTITY, a name occurs twice, or N, D and C contradict each other.
    """
    values: dict[str, float] = {}
    for item in text.split(","):
        name, equals, quantity = (part.strip() for part in item.partition("="))
        column = COLUMN_OF_LETTER.get(name, name)
        if not equals or not column.isidentifier() or column in values:
            raise UsageError(
                f"{option} {text!r}",
                "N=.., D=.., C=.. (and other columns of the form) joined by commas, each once",
                f"Use {option} N=7e9, {option} N=7B,D=2T or {option} C=1e24.",
            )
        values[column] = parse_quantity(quantity, what=f"{option} {name}")
    if all(name in values for name in SIZE_COLUMNS):
        flops = train_flops_6nd(values["n_params"], values["n_tokens"])
        if abs(flops / values["flops"] - 1) > 1e-3:
            raise UsageError(
                f"{option} {text!r}, in which C is not 6 N D = {format_flops(flops)}",
                "two of N, D and C",
                f"Leave out C: {option} N={values['n_params']:g},D={values['n_tokens']:g}.",
            )
    return Request(text=text, values=values)


def law_forecast(
    fit: ParametricFit, request: Request, *, fitted: FittedRange | None, level: float = 0.9
) -> Forecast:
    """Return the forecast of one request by a law.

    Parameters
    ----------
    fit : ParametricFit
        An identified fit.
    request : Request
    fitted : FittedRange or None
        Ranges of the fitted runs; None if they are not known, as for published constants.
    level : float
        Level of the intervals.

    Raises
    ------
    UsageError
        If a request names an unknown column, lacks a column that has no compute-optimal value, or
        has no finite answer.
    """
    start = USUAL_FLOPS if fitted is None else fitted.flops
    law, values = fit.law, dict(request.values)
    _check_names(request, law)
    known = [name for name in SIZE_COLUMNS if name in values]
    needs_both = {"n_params", "n_tokens"} <= set(law.columns)
    sizes: dict[str, Interval] = {}
    if len(known) == 1 and needs_both:
        chosen = _optimum(law, known[0], values[known[0]], start)
        draws = np.array(
            [_optimum(each, known[0], values[known[0]], start) for each in fit.replicate_laws()]
        ).reshape(-1, len(SIZE_COLUMNS))
        for name, value, column in zip(SIZE_COLUMNS, chosen, draws.T, strict=True):
            low, high = percentile_limits(column[np.isfinite(column)], level, value)
            is_given = name == known[0]
            sizes[name] = Interval(
                value=value, low=value if is_given else low, high=value if is_given else high
            )
            values[name] = value
        allocation = (
            f"compute-optimal at {letter_of(known[0])} = {format_flops(request.values[known[0]])}"
        )
    else:
        allocation = f"{' and '.join(map(letter_of, known)) or 'columns'} given"
        allocation += "; C = 6 N D" if complete_sizes(values) else ""
    missing = [name for name in law.columns if name not in values]
    if missing:
        raise UsageError(
            f"--predict {request.text!r} without {', '.join(missing)}",
            f"every column of the form {fit.form}: {', '.join(law.columns)}",
            f"Use --predict {','.join([request.text, *(f'{name}=VALUE' for name in missing)])}.",
        )
    if not all(math.isfinite(values.get(name, 0.0)) for name in SIZE_COLUMNS):
        raise UsageError(
            f"--predict {request.text!r}, which has no finite N, D and C",
            "a size near those of the runs",
            f"Use for example --predict C={10 * start:.1e}.",
        )
    predicted = fit.predict({name: np.array([values[name]]) for name in law.columns}, level=level)
    flops = values.get("flops")
    return Forecast(
        asked=request.text,
        allocation=allocation,
        n_params=sizes.get("n_params") or _exact(values.get("n_params")),
        n_tokens=sizes.get("n_tokens") or _exact(values.get("n_tokens")),
        flops=flops,
        loss_nats=float(predicted.value[0]),
        low=float(predicted.low[0]),
        high=float(predicted.high[0]),
        pred_low=float(predicted.pred_low[0]),
        pred_high=float(predicted.pred_high[0]),
        level=level,
        extrapolation=None if flops is None or fitted is None else flops / fitted.flops,
        outside_range=()
        if fitted is None
        else fitted.describe_extrapolation(
            n_params=values.get("n_params"), n_tokens=values.get("n_tokens"), flops=flops
        ),
        distance="" if flops is None or fitted is None else fitted.describe_distance(flops),
    )


def extrapolation_warnings(forecasts: Sequence[Forecast]) -> tuple[FitWarning, ...]:
    """Return a warning for each forecast far outside the fitted range."""
    return tuple(
        extrapolation_warning(f.asked, f.outside_range) for f in forecasts if f.outside_range
    )


def frontier(law: Law, reference_flops: float) -> dict[str, float]:
    """Return a, b and G of ``N_opt = G (C/6)^a`` and ``D_opt = (C/6)^b / G`` at a compute.

    Local slopes, unless the frontier of the form is a power law. NaN if it diverges.

    Raises
    ------
    UsageError
        If the form has no trade-off between N and D.
    """
    ends = np.array([reference_flops, reference_flops * 10.0])
    # The frontier diverges if a term of the law is 0.
    with np.errstate(all="ignore"):
        n_params, _ = law.optimal(ends)
    if not np.all(np.isfinite(n_params) & (n_params > 0)):
        return {"a": math.nan, "b": math.nan, "G": math.nan}
    a = float(np.log(n_params[1] / n_params[0]) / math.log(10))
    log_unit = math.log(reference_flops / train_flops_6nd(1.0, 1.0))
    with np.errstate(over="ignore", under="ignore"):
        g = float(np.exp(math.log(n_params[0]) - a * log_unit))
    return {"a": a, "b": 1 - a, "G": g}


def derived(fit: ParametricFit, level: float = 0.9) -> dict[str, Interval]:
    """Return a, b and G with intervals; empty if the form has no compute-optimal allocation."""
    try:
        point = frontier(fit.law, fit.max_flops)
    except UsageError:
        return {}
    draws = [frontier(law, fit.max_flops) for law in fit.replicate_laws()]
    out = {}
    for name, value in point.items():
        column = np.array([draw[name] for draw in draws], dtype=np.float64)
        low, high = percentile_limits(column[np.isfinite(column)], level, value)
        out[name] = Interval(value=value, low=low, high=high)
    return out


def flops_where(law: Law, column: str, value: float, start: float) -> float:
    """Return the compute at which the optimal N or D is ``value``; NaN without convergence.

    The secant method on logs needs few steps: the frontier is close to a power law.

    Parameters
    ----------
    law : Law
    column : {"n_params", "n_tokens"}
    value : float
        The optimal size.
    start : float
        Starting point, FLOPs.
    """
    index = SIZE_COLUMNS.index(column)
    target = math.log(value)

    def gap(log_c: float) -> float:
        # The frontier can under- or overflow here; NaN ends the search.
        with np.errstate(all="ignore"):
            return float(np.log(law.optimal(np.exp(log_c))[index])) - target

    left = math.log(start)
    right = left + 1.0
    at_left, at_right = gap(left), gap(right)
    for _ in range(MAX_STEPS):
        if at_right == at_left or not math.isfinite(at_right):
            break
        left, right, at_left = (
            right,
            right - at_right * (right - left) / (at_right - at_left),
            at_right,
        )
        if not abs(right) < 700:
            break
        at_right = gap(right)
        if abs(at_right) < 1e-12:
            break
    return math.exp(right) if abs(at_right) < 1e-9 else math.nan


def _check_names(request: Request, law: Law) -> None:
    """Raise UsageError for a name that is neither N, D, C nor a column of the form."""
    others = [name for name in law.columns if name not in SIZE_COLUMNS]
    unknown = [name for name in request.values if name not in (*SIZE_COLUMNS, *law.columns)]
    if unknown:
        meant = [name.upper() for name in unknown if name.upper() in COLUMN_OF_LETTER]
        raise UsageError(
            f"--predict {request.text!r}: the form {law.name} has no {' or '.join(unknown)}",
            f"any of {', '.join([*COLUMN_OF_LETTER, *others])}",
            f"Use capitals: {' and '.join(meant)}."
            if meant
            else f"Remove {' and '.join(unknown)}, or use another --form.",
        )


def _optimum(law: Law, given: str, value: float, start: float) -> tuple[float, float, float]:
    """Return (N, D, C) on the frontier, given one of them."""
    flops = value if given == "flops" else flops_where(law, given, value, start)
    if not math.isfinite(flops):
        return math.nan, math.nan, math.nan
    with np.errstate(all="ignore"):
        n_params, n_tokens = (float(size) for size in law.optimal(flops))
    # Return the given value itself, without the rounding of the inversion.
    if given == "n_params":
        return value, tokens_at_6nd(flops, value), flops
    if given == "n_tokens":
        return tokens_at_6nd(flops, value), value, flops
    return n_params, n_tokens, flops


def complete_sizes(values: dict[str, float]) -> bool:
    """Add the third of N, D and C to the values; return whether one was added."""
    rules: tuple[tuple[str, str, str, Callable[[float, float], float]], ...] = (
        ("flops", "n_params", "n_tokens", train_flops_6nd),
        ("n_tokens", "flops", "n_params", tokens_at_6nd),
        ("n_params", "flops", "n_tokens", tokens_at_6nd),
    )
    for name, first, second, rule in rules:
        if name not in values and first in values and second in values:
            values[name] = rule(values[first], values[second])
            return True
    return False


def letter_of(column: str) -> str:
    """Return N, D or C for the name of its column."""
    return next(letter for letter, name in COLUMN_OF_LETTER.items() if name == column)


def _exact(value: float | None) -> Interval | None:
    return None if value is None else Interval(value=value, low=value, high=value)
