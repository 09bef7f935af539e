"""Decisions about mixtures of experts: a law of granularity, asked for one mixture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scalelab.errors import UsageError
from scalelab.fit.outcome import ParametricFit
from scalelab.forecast.forecaster import Forecaster, LawForecaster, forecaster
from scalelab.sweep.expert_rule import ExpertRule
from scalelab.theory.laws import Granularity


def at_experts(source: Forecaster, experts: ExpertRule | None) -> Forecaster:
    """Return the forecaster for one mixture: a law of granularity becomes a law of N and D.

    Parameters
    ----------
    source : Forecaster
        Other laws and forecasters are returned as they are.
    experts : ExpertRule or None
        The mixture; None for dense models.

    Raises
    ------
    UsageError
        If a law of granularity is asked without a mixture.
    """
    if not (isinstance(source, LawForecaster) and isinstance(source.law, Granularity)):
        return source
    if experts is None:
        raise UsageError(
            f"form {source.law.name} without the experts of the model",
            "its number of experts and their granularity",
            "Add for example --n-experts 32 --granularity 4 --real-shapes.",
        )
    found = source.law.at(experts.granularity)
    if source.fit is not None:
        return forecaster(_sliced(source.fit, experts.granularity), source.level, source.fitted)
    return forecaster(found, source.level, source.fitted)


def _sliced(fit: ParametricFit, granularity: float) -> ParametricFit:
    """Return a fit of the granularity law as a fit of N and D; rows and noise stay the same."""

    def at(law: object) -> dict[str, float]:
        assert isinstance(law, Granularity)
        return law.at(granularity).params

    law = fit.law
    assert isinstance(law, Granularity)
    chosen = law.at(granularity)
    samples = [[at(each)[name] for name in chosen.names()] for each in fit.replicate_laws()]
    return replace(
        fit,
        law=chosen,
        names=chosen.names(),
        samples=np.array(samples).reshape(-1, len(chosen.names())),
        minima=(),
        fixed={},
    )
