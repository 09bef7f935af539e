"""Saved laws: a fitted law with its replicates, noise, conventions, domain and origin, as JSON.

The reader ignores keys that it does not know. It refuses a newer ``schema``, since the meaning of
known keys may have changed. Only ``schema``, ``form`` and ``constants`` are required, so a law can
also be written by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, NotIdentifiedError, UsageError
from scalelab.fit.intervals import Interval
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import BootstrapReport, FitWarning, ParametricFit
from scalelab.forecast.extrapolation import FittedRange
from scalelab.forecast.fit_report import LOSS, FitReport
from scalelab.records.metric import HELDOUT, NATS, parse_metric
from scalelab.records.types import Observations
from scalelab.theory.accounting import (
    FLOP_CONVENTIONS,
    FLOPS_PER_PARAM_TRAIN,
    PARAM_CONVENTIONS,
)
from scalelab.theory.laws import Law, law_named

SCHEMA = 1
MAX_DRAWS = 1000
"""Replicates that a file has at most."""
UNSTATED = "unstated"
FLOPS_6ND = "flops_6nd"
"""Key of the domain for compute as 6 N D, for any convention of the table."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedLaw:
    """A law of given constants, with what is known about its fit.

    Attributes
    ----------
    name : str
    law : Law
    draws : ndarray of shape (k, p)
        Constants of the replicates in the order of ``law.names()``; k = 0 without intervals.
    residual : {"log", "linear"}
        Residual in which the noise is given.
    noise : ndarray of shape (q,), or None
        Quantiles of the noise of a new run at the largest compute of the domain; None if unknown.
    inflation : float
        Extrapolation inflation (`scalelab.fit.inflation`), at least 1.
    unit : str
        Unit of the predicted loss.
    metric : str
        Which loss it predicts, as after ``--metric``.
    param_convention, flop_convention : str
        How N and C are counted; ``unstated`` if unknown.
    domain : Mapping[str, (float, float)]
        Smallest and largest value of each column in the fitted rows, and of 6 N D.
    warnings : tuple of FitWarning
        Warnings of the fit, most serious first.
    provenance : Mapping[str, Any]
        Source of the law; for a fit also the rows, their hash, objective, bootstrap, version, date.
    """

    name: str
    law: Law
    draws: FloatArray
    residual: str = "log"
    noise: FloatArray | None = None
    inflation: float = 1.0
    unit: str = NATS
    metric: str = HELDOUT.text
    param_convention: str = UNSTATED
    flop_convention: str = UNSTATED
    domain: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    warnings: tuple[FitWarning, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Where the constants come from, in words."""
        return str(self.provenance.get("source") or "not stated")

    @property
    def label(self) -> str:
        """What the law predicts, without its unit."""
        return parse_metric(self.metric).label if self.law.target == LOSS else self.law.target

    @property
    def has_uncertainty(self) -> bool:
        """Whether the law has replicates or noise, so that predictions have an interval."""
        return len(self.draws) > 0 or self.noise is not None

    def intervals(self, level: float) -> dict[str, Interval]:
        """Return every constant with its interval; NaN limits without replicates."""
        return self.as_fit().param_intervals(level)

    def fitted_range(self) -> FittedRange | None:
        """Return the ranges of the fitted runs, or None if the file does not state them."""
        if not {"n_params", "n_tokens", FLOPS_6ND} <= set(self.domain):
            return None
        return FittedRange(
            flops=self.domain[FLOPS_6ND][1],
            least_flops=self.domain[FLOPS_6ND][0],
            n_params=self.domain["n_params"],
            n_tokens=self.domain["n_tokens"],
        )

    def as_fit(self) -> ParametricFit:
        """Return the law as a fit, for predictions; it has no residuals and no minima."""
        columns = set(self.law.columns)
        largest = None
        if {"n_params", "n_tokens"} <= columns and FLOPS_6ND in self.domain:
            # compute_of() has N D for such a form
            largest = np.array([self.domain[FLOPS_6ND][1] / FLOPS_PER_PARAM_TRAIN])
        elif "flops" in columns and "flops" in self.domain:
            largest = np.array([self.domain["flops"][1]])
        residual: Any = self.residual
        return ParametricFit(
            form=self.law.name,
            law=self.law,
            status="ok",
            objective=Objective(residual=residual),
            value=math.nan,
            minima=(),
            names=self.law.names(),
            samples=self.draws,
            bootstrap=BootstrapReport(method="none", k=len(self.draws), failed=0, seed=0),
            residuals=np.empty(0),
            fixed={},
            n_rows=int(self.provenance.get("n_rows") or 0),
            max_flops=self.domain.get("flops", (math.nan, math.nan))[1],
            warnings=(),
            inflation_of=partial(float, self.inflation),
            compute=largest,
            noise=np.array([math.nan]) if self.noise is None else self.noise,
        )

    def check_params(self, use: str, convention: str = "chinchilla") -> None:
        """Raise UsageError if N of the law is not counted as ``use`` counts it."""
        if self.param_convention not in (UNSTATED, convention):
            raise UsageError(
                f"{use} with the law {self.name}, whose convention of N is "
                f"{self.param_convention} ({PARAM_CONVENTIONS[self.param_convention]})",
                f"the convention {convention} ({PARAM_CONVENTIONS[convention]})",
                f"Leave out {use}, or save a law of that N: scalelab law save NAME --from FILE "
                "--map n_params=COLUMN.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the file; numbers at full precision."""
        noise = None if self.noise is None else self.noise.tolist()
        return {
            "schema": SCHEMA,
            "name": self.name,
            "form": self.law.name,
            "target": self.law.target,
            "unit": self.unit,
            **({"metric": self.metric} if self.metric != HELDOUT.text else {}),
            "constants": self.law.params,
            "draws": dict(zip(self.law.names(), self.draws.T.tolist(), strict=True)),
            "noise": noise and {"residual": self.residual, "quantiles": noise},
            "inflation": self.inflation,
            "conventions": {"n_params": self.param_convention, "flops": self.flop_convention},
            "domain": {name: list(limits) for name, limits in self.domain.items()},
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
            "provenance": dict(self.provenance),
        }


def saved_law(
    report: FitReport, name: str, *, unit: str | None, version: str, date: str
) -> SavedLaw:
    """Return the law of a fit as a saved law.

    Parameters
    ----------
    report : FitReport
    name : str
    unit : str or None
        Unit of the loss; None takes it from the metric of the fit.
    version, date : str
        Version of scalelab, and the day of the fit as YYYY-MM-DD.

    Raises
    ------
    NotIdentifiedError
        If the rows do not determine the law.
    """
    fit, rows = report.fit, report.observations
    if fit.status == "not_identified":
        raise NotIdentifiedError(
            "a fit that is not identified",
            "rows that determine the law",
            "Run `scalelab fit`: its warnings name the missing runs.",
        )
    order = [fit.names.index(each) for each in fit.law.names()]
    draws = fit.samples[:, order][np.isfinite(fit.samples).all(axis=1)]
    if len(draws) > MAX_DRAWS:
        draws = draws[np.linspace(0, len(draws) - 1, MAX_DRAWS).astype(int)]
    noise = fit.largest_run_noise()
    columns = {each: _column(rows, each) for each in ("n_params", "n_tokens", "flops")}
    columns |= {each: _column(rows, each) for each in fit.law.columns}
    spans = {each: (float(c.min()), float(c.max())) for each, c in columns.items()}
    product = FLOPS_PER_PARAM_TRAIN * rows.n_params * rows.n_tokens
    spans[FLOPS_6ND] = (float(product.min()), float(product.max()))
    return SavedLaw(
        name=name,
        law=fit.law,
        draws=draws,
        residual=fit.objective.residual,
        noise=noise if np.isfinite(noise).all() else None,
        inflation=fit.inflation,
        unit=unit or report.unit or NATS,
        metric=HELDOUT.text if report.metric is None else report.metric.text,
        param_convention=rows.param_convention,
        flop_convention=rows.flop_convention,
        domain=spans,
        warnings=tuple(each for each in report.warnings if each.code != "extrapolation"),
        provenance={
            "source": rows.source,
            "n_rows": fit.n_rows,
            "rows_sha256": rows_hash({**columns, fit.law.target: _column(rows, fit.law.target)}),
            "status": fit.status,
            "objective": f"{fit.objective.loss} of the {fit.objective.residual} residual",
            "bootstrap": f"{fit.bootstrap.method}, {len(fit.samples)} replicates",
            "scalelab": version,
            "date": date,
        },
    )


def rows_hash(columns: Mapping[str, FloatArray]) -> str:
    """Return a SHA-256 of columns that does not depend on the order of rows or columns."""
    names = sorted(columns)
    table = np.array([columns[name] for name in names], dtype="<f8")
    table = table[:, np.lexsort(table)]
    return hashlib.sha256(",".join(names).encode() + table.tobytes()).hexdigest()


def _column(rows: Observations, name: str) -> FloatArray:
    own = getattr(rows, name, None)
    return np.asarray(rows.extra[name] if own is None else own, dtype=np.float64)


def parse_law(text: str, place: str) -> SavedLaw:
    """Return the saved law of a file's text; ``place`` is its name in messages.

    Raises
    ------
    DataError
        If the text is not a saved law that this version reads.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _bad(place, f"is not JSON ({error})") from None
    if not isinstance(content, Mapping) or not {"schema", "form", "constants"} <= set(content):
        raise _bad(place, "has no schema, form and constants")
    schema = content["schema"]
    if not isinstance(schema, int) or schema < 1:
        raise _bad(place, f"has schema {schema!r}")
    if schema > SCHEMA:
        raise DataError(
            f"{place} with schema {schema}",
            f"schema {SCHEMA}, the newest that this version reads",
            "Update scalelab: pip install --upgrade scalelab.",
        )
    try:
        form = law_named(str(content["form"]))
    except UsageError as error:
        raise DataError(f"{place} with {error.given}", error.allowed, error.do) from None
    names = form.names()
    law = form(**_constants(content["constants"], form, place))
    draws = _mapping(content, "draws", place)
    series = [_numbers(draws.get(each, []), f"draws.{each}", place) for each in names]
    if len({len(each) for each in series}) > 1:
        raise _bad(place, f"has draws of different length for {', '.join(names)}")
    noise = _mapping(content, "noise", place)
    residual = noise.get("residual", "log")
    if residual not in ("log", "linear"):
        raise _bad(place, f"has noise of the residual {residual!r}; expected log or linear")
    quantiles = _numbers(noise.get("quantiles", []), "noise.quantiles", place)
    counted = _mapping(content, "conventions", place)
    inflation = _numbers([content.get("inflation", 1.0)], "inflation", place)[0]
    if inflation < 1:
        raise _bad(place, f"has inflation {inflation:g}; expected 1 or more")
    return SavedLaw(
        name=str(content.get("name", place)),
        law=law,
        draws=np.stack(series, axis=1),
        residual=residual,
        noise=quantiles if len(quantiles) else None,
        inflation=float(inflation),
        unit=str(content.get("unit", NATS)),
        metric=_metric(content.get("metric", HELDOUT.text), place),
        param_convention=_convention(counted, "n_params", PARAM_CONVENTIONS, place),
        flop_convention=_convention(counted, "flops", FLOP_CONVENTIONS, place),
        domain=_domain(content, place),
        warnings=_warnings(content.get("warnings") or [], place),
        provenance=_mapping(content, "provenance", place),
    )


def _metric(given: Any, place: str) -> str:
    try:
        return parse_metric(str(given)).text
    except UsageError as error:
        raise DataError(f"{place} with {error.given}", error.allowed, error.do) from None


def _constants(given: Any, form: type[Law], place: str) -> dict[str, float]:
    names = form.names()
    if not isinstance(given, Mapping):
        raise _bad(place, "has constants that are not an object of name and value")
    missing = [name for name in names if name not in given]
    if missing:
        raise DataError(
            f"{place} without the constants {', '.join(missing)}",
            f"{', '.join(names)} of the form {form.name}",
            "Add them under constants, or correct form.",
        )
    values = _numbers([given[name] for name in names], "constants", place)
    for coordinate, value in zip(form.coordinates, values, strict=True):
        is_zero_log = coordinate.is_log and value <= 0
        if is_zero_log or not coordinate.low <= value <= coordinate.high:
            above = f"above {coordinate.low:g}" if coordinate.is_log else f"from {coordinate.low:g}"
            raise DataError(
                f"{place} with {coordinate.name} = {value:g}",
                f"{coordinate.name} {above} to {coordinate.high:g}",
                "Correct it under constants.",
            )
    return dict(zip(names, (float(value) for value in values), strict=True))


def _mapping(content: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping):
        raise _bad(place, f"has a value of {key} that is not an object")
    return dict(value)


def _numbers(given: Any, key: str, place: str) -> FloatArray:
    is_list = isinstance(given, list) and all(
        isinstance(each, (int, float)) and not isinstance(each, bool) for each in given
    )
    try:
        values = np.array(given if is_list else [math.nan], dtype=np.float64)
    except OverflowError:  # an integer beyond the range of floats
        values = np.array([math.nan])
    if not np.isfinite(values).all():
        raise _bad(place, f"has values of {key} that are not finite numbers")
    return values


def _domain(content: Mapping[str, Any], place: str) -> dict[str, tuple[float, float]]:
    out = {}
    for name, limits in _mapping(content, "domain", place).items():
        values = _numbers(limits, f"domain.{name}", place)
        if len(values) != 2 or not 0 < values[0] <= values[1]:
            raise _bad(place, f"has a domain.{name} that is not [smallest, largest] above 0")
        out[str(name)] = (float(values[0]), float(values[1]))
    return out


def _warnings(given: Any, place: str) -> tuple[FitWarning, ...]:
    is_list = isinstance(given, list) and all(
        isinstance(each, Mapping) and {"code", "message"} <= set(each) for each in given
    )
    if not is_list:
        raise _bad(place, "has warnings that are not a list of code and message")
    return tuple(FitWarning(code=str(w["code"]), message=str(w["message"])) for w in given)


def _convention(given: Mapping[str, Any], key: str, known: Mapping[str, str], place: str) -> str:
    value = given.get(key, UNSTATED)
    if value != UNSTATED and value not in known:
        raise DataError(
            f"{place} with the convention {value!r} of {key}",
            f"one of {', '.join((*known, UNSTATED))}",
            f"Correct conventions.{key}, or remove it.",
        )
    return str(value)


def _bad(place: str, reason: str) -> DataError:
    return DataError(
        f"{place}, which {reason}",
        "a law file with schema, form and constants",
        "Write a new one, for example: scalelab law save NAME --sweep SWEEP.",
    )
