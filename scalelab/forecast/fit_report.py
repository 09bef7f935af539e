"""The report of a fit: the frozen value behind the output as JSON, text, TeX and CSV.

The fitted law has its own status and parameters. The forecasts are those of
`FitReport.forecaster`: the averaged forecaster, or the law. Approaches 1 and 2, the held-out score
and the warnings complete the report. Other modules compute these parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scalelab.errors import EXIT_OK, NotIdentifiedError
from scalelab.fit.against import Disagreement
from scalelab.fit.envelope import EnvelopeFit
from scalelab.fit.intervals import Interval
from scalelab.fit.isoflop import IsoflopFit
from scalelab.fit.outcome import FitWarning, ParametricFit, Status
from scalelab.fit.parabola import CurveMinimum
from scalelab.fit.power_law import PowerLaw
from scalelab.fit.select import Comparison
from scalelab.fit.speedup import Speedup
from scalelab.forecast import fit_formats
from scalelab.forecast.allocate import Forecast, Refusal
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.averaged_optimum import FrontierPoint
from scalelab.forecast.extrapolation import fitted_range
from scalelab.forecast.forecaster import Forecaster, LawForecaster, answering, forecaster
from scalelab.records.metric import Metric, with_unit
from scalelab.records.types import Observations

SCHEMA = 2
LOSS = "loss_nats"
LAW_ONLY = (
    *("not_identified", "at_bound", "misfit", "approach", "edge", "off_centre", "drifting"),
    "no_interval",
)
"""Beginnings of the codes of warnings that concern the fitted law, not the average of forms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdout:
    """How well the fit predicts held-out rows.

    Attributes
    ----------
    n_rows : int
        Rows held out.
    mean_relative_error, max_relative_error : float
        Mean and largest of abs(predicted / observed - 1).
    covered : int
        Rows inside their own prediction interval.
    n_intervals : int
        Rows that have a prediction interval; the others are not counted as missed.
    mean_width : float
        Mean width of those intervals, in the unit of the loss; NaN without intervals.
    level : float
        Level of the intervals.
    """

    n_rows: int
    mean_relative_error: float
    max_relative_error: float
    covered: int
    n_intervals: int
    mean_width: float
    level: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FitReport:
    """The result of a fit with everything that is needed to assess it.

    Attributes
    ----------
    observations : Observations
        The fitted rows.
    fit : ParametricFit
        Approach 3.
    level : float
        Level of every interval.
    params, derived : Mapping[str, Interval]
        Parameters, and a, b, G of the compute-optimal frontier (empty if the form has none).
    envelope, isoflop : EnvelopeFit or None, IsoflopFit
        Approaches 1 and 2.
    local : tuple of PowerLaw or None
        N_opt and D_opt through local minima of the isoFLOP curves, see
        `scalelab.fit.local_minima`.
    disagreement : Disagreement or None
        Approach 2 against approach 3; None if one of them has no result.
    warnings : tuple of FitWarning
        Most serious first.
    forecasts : tuple of Forecast
        Answers of `forecaster` to the questions that the runs answer.
    refusals : tuple of Refusal
        The other questions, with the runs that would answer them.
    law_forecasts : tuple of (Forecast or None)
        What the fitted law says to each question of ``forecasts``; empty if it made them.
    frontier : tuple of FrontierPoint
        N_opt, D_opt and exponents of the averaged forecaster at 1, 10 and 100 times the largest
        compute; empty without it, and where the runs do not determine them.
    holdout : Holdout or None
    comparison : Comparison or None
    speedup : Speedup or None
        Each if requested.
    averaged : AveragedFit or None
        The averaged forecaster; None if the law answers.
    """

    observations: Observations
    fit: ParametricFit
    level: float
    params: Mapping[str, Interval]
    derived: Mapping[str, Interval]
    envelope: EnvelopeFit
    isoflop: IsoflopFit
    local: tuple[PowerLaw | None, PowerLaw | None] = (None, None)
    disagreement: Disagreement | None = None
    warnings: tuple[FitWarning, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    law_forecasts: tuple[Forecast | None, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    holdout: Holdout | None = None
    comparison: Comparison | None = None
    speedup: Speedup | None = None
    averaged: AveragedFit | None = None

    @property
    def metric(self) -> Metric | None:
        """Which loss is fitted; None if the law predicts another column."""
        return self.observations.metric if self.fit.law.target == LOSS else None

    @property
    def label(self) -> str:
        """What is predicted, without its unit."""
        return self.fit.law.target if self.metric is None else self.metric.label

    @property
    def unit(self) -> str:
        """Unit of what is predicted; empty if the law predicts another column."""
        return "" if self.metric is None else self.metric.unit

    @property
    def forecaster(self) -> Forecaster:
        """What answers questions about other runs, with intervals of the report's level."""
        return self.forecaster_at(self.level)

    def forecaster_at(self, level: float) -> Forecaster:
        """Return `forecaster` with intervals of another level."""
        return answering(self.fit, self.averaged, fitted_range(self.observations), level)

    @property
    def law_forecaster(self) -> LawForecaster:
        """The fitted law as a forecaster, beside the averaged one."""
        return forecaster(self.fit, self.level, fitted_range(self.observations))

    @property
    def has_answer(self) -> bool:
        """Whether anything answers: the averaged forecaster, or an identified law."""
        return self.averaged is not None or self.law_status != "not_identified"

    @property
    def answer_warnings(self) -> tuple[FitWarning, ...]:
        """Warnings that concern the answers: not those of the law if it does not answer."""
        if self.averaged is None:
            return self.warnings
        return tuple(each for each in self.warnings if not each.code.startswith(LAW_ONLY))

    @property
    def law_status(self) -> Status:
        """State of the fitted law."""
        return self.fit.status

    @property
    def status(self) -> Status:
        """``ok`` if every question was answered, else ``not_identified``.

        Without a question, the law is what was asked for.
        """
        if self.refusals or (not self.forecasts and self.law_status == "not_identified"):
            return "not_identified"
        return "ok"

    @property
    def exit_code(self) -> int:
        """0, or 4 if the status is ``not_identified``."""
        return EXIT_OK if self.status == "ok" else NotIdentifiedError.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``scalelab fit --json``; numbers at full precision."""
        found = self._dict()
        return found if self.metric is None else dict(with_unit(found, self.metric))

    def _dict(self) -> dict[str, Any]:
        fit, objective = self.fit, self.fit.objective
        return {
            "schema": SCHEMA,
            "command": "fit",
            "status": self.status,
            "law_status": self.law_status,
            "form": fit.form,
            "target": fit.law.target if self.metric is None else self.metric.key,
            "metric": None if self.metric is None else self.metric.text,
            "unit": self.unit or None,
            "n_rows": fit.n_rows,
            "source": self.observations.source,
            "param_convention": self.observations.param_convention,
            "flop_convention": self.observations.flop_convention,
            "objective": {
                "residual": objective.residual,
                "loss": objective.loss,
                "delta": objective.threshold if objective.loss in ("huber", "likelihood") else None,
                "overprediction": objective.overprediction,
                "weight": objective.weight,
                "value": fit.value,
            },
            "level": self.level,
            "params": {name: _limits(interval) for name, interval in self.params.items()},
            "derived": {name: _limits(self.derived.get(name)) for name in ("a", "b", "G")},
            "bootstrap": {
                "method": fit.bootstrap.method,
                "k": fit.bootstrap.k,
                "failed": fit.bootstrap.failed,
                "seed": fit.bootstrap.seed,
                "cluster": fit.bootstrap.cluster,
                "refits": fit.bootstrap.refits,
            },
            "minima": [{"value": m.value, "params": dict(m.params)} for m in fit.minima],
            "approaches": {"1": self._envelope_dict(), "2": self._isoflop_dict()},
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
            "forecaster": self.forecaster.name,
            "forms": None if self.averaged is None else self.averaged.weights,
            "frontier": None
            if self.averaged is None
            else [point.to_dict() for point in self.frontier],
            "predictions": [forecast.to_dict() for forecast in self.forecasts],
            "law_predictions": None
            if self.averaged is None
            else [forecast and forecast.to_dict() for forecast in self.law_forecasts],
            "refused": [asdict(refusal) for refusal in self.refusals],
            "holdout": self.holdout
            and {name: getattr(self.holdout, name) for name in Holdout.__dataclass_fields__},
            "compare": self.comparison and self.comparison.to_dict(),
            "speedup": self.speedup and self.speedup.to_dict(),
        }

    def _envelope_dict(self) -> dict[str, Any] | None:
        envelope = self.envelope
        if envelope.n_law is None or envelope.d_law is None:
            return None
        return {
            "a": _exponent(envelope.n_law),
            "b": _exponent(envelope.d_law),
            "n_points": len(envelope.flops),
        }

    def _isoflop_dict(self) -> dict[str, Any] | None:
        isoflop = self.isoflop
        if isoflop.n_law is None or isoflop.d_law is None:
            return None
        against = self.disagreement
        return {
            "a": _exponent(isoflop.n_law),
            "b": _exponent(isoflop.d_law),
            "local": {
                name: None if law is None else _exponent(law)
                for name, law in zip("ab", self.local, strict=True)
            },
            "is_grouped": isoflop.is_grouped,
            "n_budgets": len(isoflop.curves),
            "n_interior": len(isoflop.interior),
            "valleys": [
                {
                    "budget": curve.budget,
                    "n_rows": len(curve.rows),
                    "is_interior": curve.is_interior,
                    "n_params": _minimum(curve.n_params),
                    "n_tokens": _minimum(curve.n_tokens),
                    "loss_nats": curve.n_params.loss,
                }
                for curve in isoflop.curves
            ],
            "against_3": against
            and {
                "flops": against.flops,
                "n_tokens_ratio": _limits(against.ratio),
                "expected_bias": against.expected_bias,
            },
        }

    def to_csv(self) -> str:
        """Return parameters, derived exponents and forecasts as CSV, one per line."""
        return fit_formats.to_csv(self)

    def to_tex(self) -> str:
        """Return the parameters as a LaTeX table; the caption states the objective."""
        return fit_formats.to_tex(self)


def _limits(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"value": None, "low": None, "high": None}
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _exponent(law: PowerLaw) -> dict[str, float | None]:
    return {
        "value": law.exponent,
        "low": law.low,
        "high": law.high,
        "log_coefficient": law.log_coefficient,
    }


def _minimum(minimum: CurveMinimum) -> dict[str, Any]:
    return {"value": minimum.value, "low": minimum.low, "high": minimum.high, "edge": minimum.edge}


def ordered(warnings: Sequence[FitWarning]) -> tuple[FitWarning, ...]:
    """Return each warning once, the most serious first."""
    rank = {code: i for i, code in enumerate(SERIOUS)}
    unique = list(dict.fromkeys(warnings))
    return tuple(sorted(unique, key=lambda warning: rank.get(warning.code, len(rank))))


SERIOUS = (
    "not_identified",
    "at_bound",
    "extrapolation",
    "wide_optimum",
    "impossible_loss",
    "impossible_size",
    "impossible_tokens",
    "mixed_units",
    "swept_settings",
    "edge_of_search",
    "saturated",
    "repeated_data",
    "approaches_disagree",
    "mid_schedule",
    "mixed_conventions",
    "count_of_n",
    "flops_mismatch",
    "mixed_runs",
    "edge_minimum",
    "misfit",
    "off_centre_grid",
    "drifting_grid",
    "outliers",
)
