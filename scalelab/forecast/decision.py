"""Types of a decision: limits, deployment, candidates and the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from scalelab.errors import UsageError
from scalelab.fit.outcome import FitWarning
from scalelab.forecast.allocate import LAW
from scalelab.forecast.verdict import Verdict, verdict_on
from scalelab.records.metric import HELDOUT, NATS, Metric, with_unit
from scalelab.theory.hardware import (
    STATED_UTILISATION,
    WORLD_GRAMS_PER_KWH,
    Hardware,
    find_hardware,
)
from scalelab.units import format_quantity

if TYPE_CHECKING:
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.more_runs import AddedBudget

LIMIT_OPTIONS = {
    "flops": "--flops 1e22",
    "gpu_hours": "--gpu-hours 100K",
    "days": "--max-days 30",
    "usd": "--max-usd 1M",
    "kwh": "--max-kwh 500K",
    "kg_co2": "--max-co2-kg 100K",
    "unique_tokens": "--unique-tokens 1T",
    "serving_bytes": "--serving-gb 80",
}
"""Option of each limit with an example value."""
SECONDS_PER_HOUR, HOURS_PER_DAY, WATTS_PER_KW, GRAMS_PER_KG = 3600.0, 24.0, 1000.0, 1000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Upper limits; None means no limit.

    Attributes
    ----------
    flops, gpu_hours, days : float or None
        Of training: compute, device-hours, calendar days on all devices.
    usd, kwh, kg_co2 : float or None
        Of training and serving together.
    unique_tokens : float or None
        Number of distinct tokens; repeated tokens count less.
    serving_bytes : float or None
        Memory for the weights when serving.
    """

    flops: float | None = None
    gpu_hours: float | None = None
    days: float | None = None
    usd: float | None = None
    kwh: float | None = None
    kg_co2: float | None = None
    unique_tokens: float | None = None
    serving_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"{name} {value:g}",
                    "a number above 0",
                    f"Use {LIMIT_OPTIONS[name]}.",
                )

    def given(self) -> dict[str, float]:
        """Return the given limits by name."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """Devices for training and serving, their prices, and the tokens to serve.

    Attributes
    ----------
    gpu : str
        Name in the hardware table, for example ``h100``.
    n_devices : float
    utilisation : float
        Share of the peak FLOP/s that training and serving achieve.
    usd_per_hour : float or None
        Price of a device-hour in US dollars; None: the price of the hardware table.
    grams_per_kwh : float
        Carbon intensity of the electricity, g CO2 per kWh.
    inference_tokens : float
        Tokens served over the life of the model.
    bytes_per_param : float
        Bytes per parameter when serving.
    """

    gpu: str = "h100"
    n_devices: float = 1.0
    utilisation: float = STATED_UTILISATION
    usd_per_hour: float | None = None
    grams_per_kwh: float = WORLD_GRAMS_PER_KWH
    inference_tokens: float = 0.0
    bytes_per_param: float = 2.0

    def __post_init__(self) -> None:
        for value, what, option, is_positive in (
            (self.n_devices, "number of devices", "--gpus 8", True),
            (self.bytes_per_param, "number of bytes per parameter", "--bytes-per-param 2", True),
            (self.device_usd_per_hour, "price of a device-hour", "--usd-per-hour 2.5", False),
            (self.grams_per_kwh, "number of g CO2 per kWh", "--grid 458", False),
            (self.inference_tokens, "number of tokens to serve", "--inference-tokens 1T", False),
        ):
            if not math.isfinite(value) or value < 0 or (is_positive and value == 0):
                allowed = "a finite number above 0" if is_positive else "a finite number from 0"
                raise UsageError(f"{value:g} as the {what}", allowed, f"Use {option}, for example.")
        if not 0 < self.utilisation <= 1:
            raise UsageError(
                f"{self.utilisation:g} as the utilisation",
                "a share above 0, at most 1",
                "Use --utilisation 0.4, for example.",
            )

    @property
    def hardware(self) -> Hardware:
        """The device of the hardware table."""
        return find_hardware(self.gpu)

    @property
    def device_usd_per_hour(self) -> float:
        """Price of a device-hour, US dollars."""
        return self.hardware.usd_per_hour if self.usd_per_hour is None else self.usd_per_hour

    @property
    def flops_per_hour(self) -> float:
        """FLOPs of one device-hour."""
        return self.hardware.peak_flops_per_s * self.utilisation * SECONDS_PER_HOUR

    @property
    def kwh_per_hour(self) -> float:
        """Energy of one device-hour, the device alone."""
        return self.hardware.watts / WATTS_PER_KW


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One model with its costs and predicted loss.

    Attributes
    ----------
    n_params, n_tokens : float
        Size, of which a mixture of experts counts the active parameters, and training tokens.
    n_stored : float
        All parameters, which serving holds in memory.
    flops : float
        Training compute: 6 N D, or exact for a real shape.
    loss_nats : float
    low, high : float or None
        Confidence interval of the loss; None for a published law without replicates.
    pred_low, pred_high : float or None
        Prediction interval of the loss of a new run, which has noise; None where it is not known.
    miss : float or None
        Probability that a new run misses the target loss; None without a fit or a target.
    costs : dict
        ``gpu_hours`` and ``days`` of training; ``usd``, ``kwh``, ``kg_co2``, ``total_flops`` of
        training and serving; ``epochs`` (None without a limit on tokens); ``serving_bytes``.
    broken : tuple of str
        Limits that it exceeds.
    shape : str or None
        Layers, width and heads of a real shape.
    law_loss_nats : float or None
        What the fitted law predicts for this N and D, if the averaged forecaster answers.
    is_in_valley : bool
        False where the loss falls away from the valley of the runs. There it cannot be compared
        with that of the others: no run shows whether it is so low.
    """

    n_params: float
    n_stored: float
    n_tokens: float
    flops: float
    loss_nats: float
    low: float | None
    high: float | None
    pred_low: float | None
    pred_high: float | None
    miss: float | None
    costs: dict[str, float | None]
    broken: tuple[str, ...]
    shape: str | None = None
    law_loss_nats: float | None = None
    is_in_valley: bool = True

    @property
    def is_feasible(self) -> bool:
        """Whether it is within every limit."""
        return not self.broken

    @property
    def label(self) -> str:
        """N and D as text."""
        return f"{format_quantity(self.n_params)} on {format_quantity(self.n_tokens)}"

    @property
    def exceeded(self) -> str:
        """The limits that it exceeds as text, and the valley of the runs if it is outside."""
        names = [name.replace("_", " ") for name in self.broken]
        return ", ".join(names if self.is_in_valley else [*names, "valley of the runs"])

    def to_dict(self) -> dict[str, Any]:
        """Return the candidate as in the JSON output."""
        return {
            "n_params": self.n_params,
            "n_params_total": self.n_stored,
            "n_tokens": self.n_tokens,
            "shape": self.shape,
            "flops": self.flops,
            "loss_nats": self.loss_nats,
            "low": self.low,
            "high": self.high,
            "pred_low": self.pred_low,
            "pred_high": self.pred_high,
            "law_loss_nats": self.law_loss_nats,
            "miss_probability": self.miss,
            **self.costs,
            "is_feasible": self.is_feasible,
            "broken": list(self.broken),
            "is_in_valley": self.is_in_valley,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The answer of ``scalelab decide``.

    Attributes
    ----------
    best : Candidate or None
        Feasible candidate of least loss in the valley of the runs, or one of less compute within
        0.001 nats of it if tokens repeat; None if no candidate is feasible.
    candidates : tuple of Candidate
        The given candidates; or the best one, its neighbours in size and cheaper ones.
    front : tuple of int
        Candidates on the Pareto front of loss and total FLOPs, as positions.
    binding : tuple of str
        Limits that the best candidate uses completely.
    relaxed : dict of str to float
        Loss that 10 % more of each limit would save, nats.
    warnings : tuple of FitWarning
        Warnings about the answer.
    forecaster : str
        What predicts the losses: ``averaged`` or ``law``.
    metric : Metric
        Which loss the candidates have.
    unit : str
        Its unit.
    to_add : tuple of AddedBudget
        Runs that would narrow the predicted loss of the best, the cheapest first.
    optimum : Forecast or None
        Compute-optimal N and D at the compute of the best, if the best has these.
    """

    best: Candidate | None
    candidates: tuple[Candidate, ...]
    front: tuple[int, ...]
    binding: tuple[str, ...]
    relaxed: dict[str, float]
    warnings: tuple[FitWarning, ...] = ()
    forecaster: str = LAW
    metric: Metric = HELDOUT
    unit: str = NATS
    to_add: tuple[AddedBudget, ...] = ()
    optimum: Forecast | None = None

    @property
    def verdict(self) -> Verdict | None:
        """How sound the answer is; None for a law without intervals and warnings."""
        has_interval = any(each.low is not None for each in self.candidates)
        return verdict_on(self.warnings) if has_interval or self.warnings else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``scalelab decide --json``."""
        content = {
            "schema": 2,
            "command": "decide",
            "forecaster": self.forecaster,
            "metric": self.metric.text,
            "unit": self.unit,
            "verdict": self.verdict and self.verdict.label,
            "best": None if self.best is None else self.best.to_dict(),
            "optimum": self.optimum and self.optimum.to_dict(),
            "binding": list(self.binding),
            "relaxing_by_10_percent_saves_nats": self.relaxed,
            "pareto": list(self.front),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
            "runs_to_add": [each.to_dict() for each in self.to_add],
        }
        return dict(with_unit(content, self.metric))
