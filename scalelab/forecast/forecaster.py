"""What answers questions about larger runs: the averaged forecaster, or one law.

`is_averaged` decides between them, once for each fit; `FitReport.forecaster` is the result.
Commands, page, report and decisions ask the `Forecaster` and do not distinguish its kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, ScalelabError, UsageError
from scalelab.fit.intervals import Prediction
from scalelab.fit.outcome import ParametricFit
from scalelab.forecast.allocate import (
    AVERAGED,
    LAW,
    Forecast,
    Refusal,
    Request,
    check_forecaster,
    law_forecast,
)
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.averaged_forecast import UNIQUE
from scalelab.forecast.averaged_forecaster import LOSS, AveragedForecaster
from scalelab.forecast.bands import Bands, frontier_bands
from scalelab.forecast.extrapolation import FittedRange
from scalelab.theory.laws import Farseer, Gamma, Kaplan, Law, Overtraining
from scalelab.theory.laws.chinchilla import Chinchilla, TiedExponents
from scalelab.theory.laws.data_constrained import R_D, R_N, DataConstrained

TRADE_OFF_FORMS = (Chinchilla, Gamma, Farseer, DataConstrained, Overtraining, Kaplan)
"""Forms with a trade-off between N and D."""
REPETITION_FORMS = (Chinchilla, TiedExponents, DataConstrained)
"""Forms with a published or fitted discount of repeated tokens."""
AVERAGED_COLUMNS = {"n_params", "n_tokens", "flops", UNIQUE}
"""Columns that the averaged forecaster knows; a form of other columns answers by itself."""


class Forecaster(Protocol):
    """Answers questions about runs that were not trained."""

    @property
    def name(self) -> str:
        """``averaged`` or ``law``."""

    @property
    def label(self) -> str:
        """The forecaster in plain words."""

    @property
    def target(self) -> str:
        """Column that it predicts."""

    @property
    def level(self) -> float:
        """Level of its intervals."""

    def predict(self, columns: Mapping[str, FloatArray], level: float) -> Prediction:
        """Return predictions at m points."""

    def forecast(self, request: Request) -> Forecast:
        """Return the answer to one request; NotIdentifiedError if the runs do not give it."""

    def bands(self, flops: FloatArray) -> Bands | None:
        """Return the compute-optimal frontier, or None where the runs do not determine it."""

    def losses(self, n: FloatArray, d: FloatArray, unique: float | None) -> FloatArray:
        """Return the losses of k models on d tokens, of which ``unique`` are distinct."""

    def in_valley(self, n_params: float, n_tokens: float, unique: float | None) -> bool:
        """Return whether a model is in the valley of the runs, where losses can be compared."""

    def run(
        self, n_params: float, n_tokens: float, unique: float | None, target: float | None
    ) -> tuple[Prediction, float | None]:
        """Return the loss of one run with its intervals, and the probability to miss a target."""


def is_averaged(name: str | None, law: type[Law]) -> bool:
    """Return whether the averaged forecaster answers for a fit of this form.

    Parameters
    ----------
    name : str or None
        The forecaster that the user named. None: averaged where it applies.
    law : type of Law

    Raises
    ------
    UsageError
        If the name is unknown, or the averaged forecaster does not know the form's columns.
    """
    if name is not None:
        check_forecaster(name)
    columns = set(law.columns)
    applies = law.target == LOSS and {"n_params", "n_tokens"} <= columns <= AVERAGED_COLUMNS
    if name == AVERAGED and not applies:
        raise UsageError(
            f"the averaged forecaster with the form {law.name} of {', '.join(law.columns)}",
            "a form of n_params and n_tokens",
            "Use --forecaster law, or --form chinchilla.",
        )
    return applies and name != LAW


def ask(
    source: Forecaster, requests: Sequence[Request]
) -> tuple[tuple[Forecast, ...], tuple[Refusal, ...]]:
    """Return the forecasts of the requests that the runs answer, and a refusal for each other."""
    answers, refusals = [], []
    for each in requests:
        try:
            answers.append(source.forecast(each))
        except NotIdentifiedError as error:
            refusals.append(
                Refusal(asked=each.text, given=error.given, allowed=error.allowed, do=error.do)
            )
    return tuple(answers), tuple(refusals)


def beside(law: Forecaster, asked: Sequence[Request]) -> tuple[Forecast | None, ...]:
    """Return what a law says to each request; None where it has no answer."""
    found: list[Forecast | None] = []
    for each in asked:
        try:
            found.append(law.forecast(each))
        except ScalelabError:
            found.append(None)
    return tuple(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class LawForecaster:
    """One law, with the fit and its replicates if it is not a published one.

    Attributes
    ----------
    law : Law
        The law; tied exponents are written as two equal ones.
    fit : ParametricFit or None
        Source of replicates and of the noise of new runs; None for constants alone.
    fitted : FittedRange or None
        Ranges of the fitted runs; None if they are not known.
    level : float
    """

    law: Law
    fit: ParametricFit | None = None
    fitted: FittedRange | None = None
    level: float = 0.9
    name = LAW

    @property
    def label(self) -> str:
        """The law in plain words."""
        return f"{self.law.name if self.fit is None else self.fit.form} law"

    @property
    def target(self) -> str:
        """Column that the law predicts."""
        return self.law.target

    @cached_property
    def replicates(self) -> tuple[Law, ...]:
        """Laws of the replicates."""
        return () if self.fit is None else tuple(map(untied, self.fit.replicate_laws()))

    def predict(self, columns: Mapping[str, FloatArray], level: float) -> Prediction:
        """Return predictions at m points."""
        return self._identified().predict(columns, level=level)

    def forecast(self, request: Request) -> Forecast:
        """Return the answer to one request."""
        return law_forecast(self._identified(), request, fitted=self.fitted, level=self.level)

    def bands(self, flops: FloatArray) -> Bands | None:
        """Return the compute-optimal frontier with bootstrap bands."""
        return None if self.fit is None else frontier_bands(self.fit, flops, self.level)

    def losses(self, n: FloatArray, d: FloatArray, unique: float | None) -> FloatArray:
        """Return the losses of k models on d tokens, of which ``unique`` are distinct."""
        return law_loss(self.law, n, d, unique)

    def in_valley(self, n_params: float, n_tokens: float, unique: float | None) -> bool:
        """Return True: the optimum of one law is its minimum at a compute."""
        return True

    def run(
        self, n_params: float, n_tokens: float, unique: float | None, target: float | None
    ) -> tuple[Prediction, float | None]:
        """Return the loss of one run with its intervals, and the probability of a miss.

        Parameters
        ----------
        n_params, n_tokens : float
        unique : float or None
            Number of distinct tokens; None if no token is repeated.
        target : float or None
            Loss to reach, nats.

        Returns
        -------
        found : Prediction
            One point; limits are NaN without a fit or replicates, those of a new run also if the
            rows do not show the noise.
        miss : float or None
            Probability of a loss above the target. None without a fit or target, or if the rows
            do not show the noise.
        """
        n, d = np.array([n_params]), np.array([n_tokens])
        value = law_loss(self.law, n, d, unique)
        if self.fit is None:
            unknown = np.full(1, np.nan)
            return Prediction(
                value=value,
                low=unknown,
                high=unknown,
                pred_low=unknown,
                pred_high=unknown,
                level=self.level,
            ), None
        if unique is None:
            columns = {"n_params": n, "n_tokens": d, "unique_tokens": d}
            draws = self.fit.values_of_replicates(columns)
        else:
            each = [law_loss(law, n, d, unique) for law in self.replicates]
            draws = np.array(each).reshape(-1, 1)
        found = self.fit.around({"n_params": n, "n_tokens": d}, value, draws, self.level)
        if target is None:
            return found, None
        run = {"n_params": n_params, "n_tokens": n_tokens}
        share = self.fit.miss_probability(run, target, float(value[0]), draws[:, 0])
        return found, None if math.isnan(share) else share

    def _identified(self) -> ParametricFit:
        if self.fit is None or self.fit.status == "not_identified":
            raise _not_identified()
        return self.fit


def forecaster(
    found: ParametricFit | Law, level: float = 0.9, fitted: FittedRange | None = None
) -> LawForecaster:
    """Return the forecaster of a fitted, saved or published law."""
    if isinstance(found, Law):
        return LawForecaster(law=untied(found), level=level, fitted=fitted)
    return LawForecaster(law=untied(found.law), fit=found, level=level, fitted=fitted)


def answering(
    fit: ParametricFit, averaged: AveragedFit | None, fitted: FittedRange, level: float
) -> Forecaster:
    """Return what answers for a fit: the averaged forecaster if there is one, else the law."""
    if averaged is not None:
        return AveragedForecaster(found=averaged, fitted=fitted, level=level)
    return forecaster(fit, level, fitted)


def check_decides(source: Forecaster) -> None:
    """Raise unless a forecaster can compare N and D.

    Raises
    ------
    NotIdentifiedError
        If the fit does not determine its law.
    UsageError
        If its form has no trade-off between N and D.
    """
    if not isinstance(source, LawForecaster):
        return
    if source.fit is not None and source.fit.status == "not_identified":
        raise _not_identified()
    if not isinstance(source.law, TRADE_OFF_FORMS):
        names = ", ".join(form.name for form in (TiedExponents, *TRADE_OFF_FORMS))
        raise UsageError(
            f"form {source.law.name}",
            f"a form with a trade-off between N and D: {names}",
            "Use --form chinchilla.",
        )


def untied(law: Law) -> Law:
    """Return a law with tied exponents as one with two equal exponents; other laws as they are."""
    return law.untied() if isinstance(law, TiedExponents) else law


def _not_identified() -> NotIdentifiedError:
    return NotIdentifiedError(
        "a fit that is not identified",
        "rows that determine the law",
        "Run `scalelab fit`: its warnings name the missing runs.",
    )


def law_loss(law: Law, n: FloatArray, d: FloatArray, unique: float | None) -> FloatArray:
    """Return the loss with this number of distinct tokens (None: no repeats), shape (k,)."""
    columns = {"n_params": n, "n_tokens": d}
    if isinstance(law, DataConstrained):
        return law.loss(
            {**columns, "unique_tokens": d if unique is None else np.minimum(unique, d)}
        )
    if unique is None:
        return law.loss(columns)
    if not isinstance(law, Chinchilla):
        raise UsageError(
            f"a limit on unique tokens with the form {law.name}",
            f"a form with repeated tokens: {', '.join(f.name for f in REPETITION_FORMS)}",
            "Use --form chinchilla, or remove --unique-tokens.",
        )
    repeated = DataConstrained(**law.params, R_D=R_D, R_N=R_N)
    return repeated.loss({**columns, "unique_tokens": np.minimum(unique, d)})
