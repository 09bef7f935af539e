"""Registered forecasts: frozen before the run, scored after it (`scalelab.forecast.scores`).

A registration is a plain value with the quantiles of each forecast. It needs no fit to be scored,
so a later version of scalelab scores what the earlier one said.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, SpecError, UsageError
from scalelab.fit.outcome import ParametricFit
from scalelab.forecast.allocate import Forecast
from scalelab.forecast.averaged import AveragedFit
from scalelab.records.metric import HELDOUT, parse_metric
from scalelab.records.types import KnownRun, Observations

SCHEMA = 1
LEVELS = tuple(i / 100 for i in range(1, 100))
"""Levels of the quantiles that are frozen."""
CLOSE = 0.02
"""A run is at the point of a forecast if its N and D differ by at most this fraction."""
UNSTATED = "unstated"


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenForecast:
    """One forecast under the names of the JSON contract, with its quantiles.

    Attributes
    ----------
    log_quantiles : tuple of float
        Quantiles at `LEVELS` of the log loss of a new run. The other fields are those of
        `scalelab.forecast.allocate.Forecast`.
    begun : tuple of str
        Runs at the point that had begun, and rows that were imported, when it was frozen: these
        are scored as `scalelab.forecast.scores.AFTER`.
    """

    asked: str
    allocation: str
    n_params: float
    n_params_low: float | None
    n_params_high: float | None
    n_tokens: float
    n_tokens_low: float | None
    n_tokens_high: float | None
    flops: float | None
    loss_nats: float
    low: float
    high: float
    pred_low: float
    pred_high: float
    level: float
    extrapolation: float | None
    forecaster: str
    log_quantiles: tuple[float, ...]
    begun: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """Forecasts of one fit, frozen under a name.

    Attributes
    ----------
    name : str
    registered : str
        Date and time in UTC, ISO 8601.
    version : str
        Version of scalelab.
    forms : Mapping[str, float]
        Weight of each form.
    form, constants : str, Mapping[str, float or None]
        Form and constants of the fitted law; None for one that the runs leave infinite.
    source, param_convention, flop_convention : str
        Origin of the fitted rows and how they count N and C.
    row_hashes : tuple of str
        `row_hash` of each fitted row, sorted.
    forecasts : tuple of FrozenForecast
    metric : str
        Which loss they are about, as after ``--metric``.
    """

    name: str
    registered: str
    version: str
    forms: Mapping[str, float]
    form: str
    constants: Mapping[str, float | None]
    source: str
    param_convention: str
    flop_convention: str
    row_hashes: tuple[str, ...]
    forecasts: tuple[FrozenForecast, ...]
    metric: str = HELDOUT.text

    @property
    def registered_s(self) -> float:
        """Date and time as Unix time."""
        return datetime.fromisoformat(self.registered).timestamp()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "registered": self.registered,
            "version": self.version,
            **({"metric": self.metric} if self.metric != HELDOUT.text else {}),
            "forms": dict(self.forms),
            "form": self.form,
            "constants": dict(self.constants),
            "source": self.source,
            "param_convention": self.param_convention,
            "flop_convention": self.flop_convention,
            "rows": {
                "n": len(self.row_hashes),
                "sha256": _sha256("\n".join(self.row_hashes)),
                "hashes": list(self.row_hashes),
            },
            "quantile_levels": list(LEVELS),
            "predictions": [asdict(each) for each in self.forecasts],
        }


def registration_of(content: Mapping[str, Any], path: str) -> Registration:
    """Return the registration in a file.

    Raises
    ------
    SpecError
        If the content does not have the schema, or the hash of the rows is not theirs.
    """
    try:
        found = Registration(
            row_hashes=tuple(content["rows"]["hashes"]),
            forecasts=tuple(
                FrozenForecast(
                    **{
                        **each,
                        "log_quantiles": tuple(each["log_quantiles"]),
                        "begun": tuple(each["begun"]),
                    }
                )
                for each in content["predictions"]
            ),
            **{
                name: content[name]
                for name in Registration.__dataclass_fields__
                if name not in ("row_hashes", "forecasts", "metric")
            },
            metric=parse_metric(content.get("metric", HELDOUT.text)).text,
        )
        is_valid = (
            content["schema"] == SCHEMA
            and content["rows"] == found.to_dict()["rows"]
            and all(len(each.log_quantiles) == len(LEVELS) for each in found.forecasts)
            and found.registered_s > 0
        )
    except (KeyError, TypeError, ValueError, AttributeError, UsageError):
        is_valid = False
    if not is_valid:
        raise SpecError(
            f"{path}, which is not a registered forecast or was changed",
            f"the JSON of `scalelab predict --register`, schema {SCHEMA}",
            "Restore the file, or move it out of the folder.",
        )
    return found


def registration(
    name: str,
    fitted: ParametricFit,
    averaged: AveragedFit | None,
    rows: Observations,
    forecasts: Sequence[Forecast],
    begun: Sequence[KnownRun],
) -> Registration:
    """Return the forecasts of a fit under a name, with the time of now.

    Parameters
    ----------
    name : str
    fitted, averaged
        The law, and what predicts if it is not the law.
    rows : Observations
        The fitted rows.
    forecasts : sequence of Forecast
    begun : sequence of KnownRun
        Runs that have begun, and imported rows.

    Raises
    ------
    NotIdentifiedError
        If a forecast has no interval.
    """
    from scalelab import __version__

    made = Registration(
        name=name,
        registered=datetime.now(UTC).isoformat(timespec="milliseconds"),
        version=__version__,
        forms={fitted.form: 1.0} if averaged is None else averaged.weights,
        form=fitted.form,
        constants={
            name: value if math.isfinite(value) else None for name, value in fitted.params.items()
        },
        source=rows.source,
        param_convention=rows.param_convention,
        flop_convention=rows.flop_convention,
        row_hashes=hashes_of(rows),
        forecasts=tuple(_frozen(averaged or fitted, each) for each in forecasts),
        metric=rows.metric.text,
    )
    new = [run for run in begun if not is_fitted(run, made.row_hashes)]
    return replace(
        made,
        forecasts=tuple(
            replace(each, begun=tuple(run.run_id for run in new if is_at(made, each, run)))
            for each in made.forecasts
        ),
    )


def _frozen(found: AveragedFit | ParametricFit, forecast: Forecast) -> FrozenForecast:
    """Return a forecast with the quantiles of a new run.

    Raises
    ------
    NotIdentifiedError
        If the forecast has no interval.
    """
    sizes = forecast.to_dict()
    at = {name: np.array([sizes[name]]) for name in ("n_params", "n_tokens")}
    quantiles = (
        found.at(at).quantiles(LEVELS)[:, 0]
        if isinstance(found, AveragedFit)
        else _quantiles_of_law(found, at)
    )
    limits = [forecast.low, forecast.high, forecast.pred_low, forecast.pred_high]
    if not np.isfinite([*limits, *quantiles]).all():
        raise NotIdentifiedError(
            f"{forecast.asked!r}, whose forecast has no interval",
            "a forecast with an interval, which can be scored",
            "Use --forecaster averaged, or add runs.",
        )
    known: dict[str, Any] = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in sizes.items()
    }
    return FrozenForecast(**known, log_quantiles=tuple(map(float, quantiles)))


def _quantiles_of_law(found: ParametricFit, at: Mapping[str, FloatArray]) -> FloatArray:
    """Return the ends of the prediction intervals at each level, in order."""
    middle = len(LEVELS) // 2
    levels = [1 - 2 * q for q in LEVELS[:middle]]
    limits = [found.predict(at, level) for level in levels]
    low = [float(each.pred_low[0]) for each in limits]
    high = [float(each.pred_high[0]) for each in reversed(limits)]
    value = float(limits[0].value[0])
    return (
        np.log(np.sort([*low, value, *high]))
        if np.isfinite(low + high).all()
        else np.full(1, np.nan)
    )


def hashes_of(rows: Observations) -> tuple[str, ...]:
    """Return the sorted hash of each row."""
    columns = zip(rows.n_params, rows.n_tokens, rows.loss_nats, strict=True)
    return tuple(sorted(row_hash(*map(float, each)) for each in columns))


def row_hash(n_params: float, n_tokens: float, loss_nats: float) -> str:
    """Return a hash of N, D and loss, each to nine digits."""
    return _sha256(f"{n_params:.9g} {n_tokens:.9g} {loss_nats:.9g}")[:16]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_fitted(run: KnownRun, fitted: Collection[str]) -> bool:
    """Return whether a run is one of the fitted rows, which are given as hashes."""
    hashes = (row_hash(n, run.n_tokens, run.loss_nats) for n in run.n_params.values())
    return any(each in fitted for each in hashes)


def is_at(registration: Registration, forecast: FrozenForecast, run: KnownRun) -> bool:
    """Return whether N and D of a run are those of a forecast, within `CLOSE`."""
    n_params = _params(registration.param_convention, run)
    return (
        n_params is not None
        and abs(n_params / forecast.n_params - 1) <= CLOSE
        and abs(run.n_tokens / forecast.n_tokens - 1) <= CLOSE
    )


def _params(convention: str, run: KnownRun) -> float | None:
    """Return N of the run as the forecast counts it; None if that is not known."""
    if convention in run.n_params:
        return run.n_params[convention]
    return next(iter(run.n_params.values())) if UNSTATED in (convention, *run.n_params) else None
