"""The verb `predict`: the loss of runs that were not trained, from a fit or a law."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalelab.api.arguments import as_requests
from scalelab.errors import UsageError
from scalelab.forecast.one_thread import on_one_thread

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.api.arguments import Asked
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.fit_report import FitReport as BaseFitReport
    from scalelab.forecast.forecaster import Forecaster
    from scalelab.forecast.law_file import SavedLaw


def predict(
    report: BaseFitReport | SavedLaw, *asked: Asked, level: float | None = None, **named: Any
) -> pd.DataFrame:
    """Predict runs from a fit or a law, one row per request.

    Parameters
    ----------
    report : FitReport or SavedLaw
        From `fit` or `load_law`. The limits of a law without replicates are NaN.
    asked : str, dict or DataFrame
        ``"N=7e9"`` (with its compute-optimal D), ``"N=7e9,D=2e12"``, ``"C=1e24"`` (training
        FLOPs), ``{"N": 7e9}``, or a DataFrame with such columns.
    level : float, optional
        Level of the intervals; default: that of the report, 0.9 for a saved law.
    named
        The same as keywords: ``predict(report, C=1e24)``.

    Raises
    ------
    UsageError
        If a request cannot be read.
    NotIdentifiedError
        If the runs do not answer a request.
    """
    import pandas as pd

    return pd.DataFrame([f.to_dict() for f in forecasts(report, *asked, level=level, **named)])


@on_one_thread
def forecasts(
    report: BaseFitReport | SavedLaw, *asked: Asked, level: float | None = None, **named: Any
) -> tuple[Forecast, ...]:
    """Return the forecasts that `predict` has as rows; same arguments and errors."""
    from scalelab.fit.intervals import DEFAULT_LEVEL, check_level
    from scalelab.forecast.fit_report import FitReport
    from scalelab.forecast.forecaster import forecaster
    from scalelab.forecast.law_file import SavedLaw

    if not isinstance(report, (FitReport, SavedLaw)):
        raise UsageError(
            f"a {type(report).__name__} to predict from",
            "the report of a fit, or a law",
            "Use fit(df) or load_law('besiroglu').",
        )
    requests = as_requests([*asked, *([named] if named else [])])
    if not requests:
        raise UsageError("nothing to predict", "N, D or C", 'Write predict(report, "C=1e24").')
    if level is not None:
        check_level(level)
    if isinstance(report, SavedLaw):
        source: Forecaster = forecaster(
            report.as_fit(), level or DEFAULT_LEVEL, report.fitted_range()
        )
    else:
        source = report.forecaster_at(level or report.level)
    return tuple(source.forecast(each) for each in requests)
