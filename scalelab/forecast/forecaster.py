"""Predictions for a decision: loss, confidence interval, probability of missing a target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import NotIdentifiedError, UsageError
from scalelab.fit.outcome import ParametricFit, percentile_limits
from scalelab.theory.laws import Farseer, Gamma, Kaplan, Law, Overtraining
from scalelab.theory.laws.chinchilla import Chinchilla, TiedExponents
from scalelab.theory.laws.data_constrained import DataConstrained

R_D, R_N = 15.387756, 5.309743
"""Half-lives of repeated data and excess parameters, Muennighoff et al. 2023, section 5."""
TRADE_OFF_FORMS = (Chinchilla, Gamma, Farseer, DataConstrained, Overtraining, Kaplan)
"""Forms with a trade-off between N and D."""
REPETITION_FORMS = (Chinchilla, TiedExponents, DataConstrained)
"""Forms with a published or fitted discount of repeated tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forecaster:
    """A law, with the fit and its replicates if it is not a published one.

    Attributes
    ----------
    law : Law
        With N and D as columns.
    replicates : tuple of Law
    fit : ParametricFit or None
        Source of the noise of new runs; None for a published law.
    level : float
    """

    law: Law
    replicates: tuple[Law, ...] = ()
    fit: ParametricFit | None = None
    level: float = 0.9

    def loss(
        self, n_params: float, n_tokens: float, unique: float | None, target: float | None
    ) -> tuple[float, float | None, float | None, float | None]:
        """Return the loss of one run, its confidence interval, and the probability of a miss.

        Parameters
        ----------
        n_params, n_tokens : float
        unique : float or None
            Number of distinct tokens; None if no token is repeated.
        target : float or None
            Loss to reach, nats.

        Returns
        -------
        value, low, high, miss : float or None
            Loss and limits in nats; probability of a loss above the target. None without
            replicates, fit or target, or if the rows do not show the noise.
        """
        n, d = np.array([n_params]), np.array([n_tokens])
        value = float(law_loss(self.law, n, d, unique)[0])
        draws = np.array([law_loss(law, n, d, unique)[0] for law in self.replicates])
        low = high = miss = None
        if self.replicates:
            low, high = percentile_limits(draws, self.level, value)
        if self.fit is not None and target is not None:
            run = {"n_params": n_params, "n_tokens": n_tokens}
            share = self.fit.miss_probability(run, target, value, draws)
            miss = None if math.isnan(share) else share
        return value, low, high, miss


def forecaster(found: ParametricFit | Law, level: float = 0.9) -> Forecaster:
    """Return the forecaster of a fit or of a published law.

    Raises
    ------
    NotIdentifiedError
        If the fit does not determine its law.
    UsageError
        If its form has no trade-off between N and D.
    """
    if isinstance(found, Law):
        return Forecaster(law=_usable(found), level=level)
    if found.status == "not_identified":
        raise NotIdentifiedError(
            "a fit that is not identified",
            "rows that determine the law",
            "Run `scalelab fit`: its warnings name the missing runs.",
        )
    laws = [_usable(law) for law in (found.law, *found.replicate_laws())]
    return Forecaster(law=laws[0], replicates=tuple(laws[1:]), fit=found, level=level)


def _usable(law: Law) -> Law:
    if isinstance(law, TiedExponents):
        return law.untied()
    if isinstance(law, TRADE_OFF_FORMS):
        return law
    names = ", ".join(form.name for form in (TiedExponents, *TRADE_OFF_FORMS))
    raise UsageError(
        f"form {law.name}",
        f"a form with a trade-off between N and D: {names}",
        "Use --form chinchilla.",
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
