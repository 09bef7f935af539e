"""Results as pandas frames: the border between our values and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.fit.select import Comparison
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.fit_report import FitReport
    from scalelab.store.tables import TableRead


def frame_of(table: TableRead) -> pd.DataFrame:
    """Return the observations of a table, one row a run, our names first."""
    import pandas as pd

    rows = table.observations
    columns = {
        "n_params": rows.n_params,
        "n_tokens": rows.n_tokens,
        "loss_nats": rows.loss_nats,
        "flops": rows.flops,
    }
    if rows.budget is not None:
        columns["budget"] = rows.budget
    frame = pd.DataFrame(columns)
    if rows.cluster is not None:
        frame["cluster"] = rows.cluster
    for name, column in rows.extra.items():
        frame[name] = column
    return frame


def params_frame(report: FitReport) -> pd.DataFrame:
    """Return parameters and derived exponents with intervals, one row each."""
    import pandas as pd

    both = {**report.params, **report.derived}
    return pd.DataFrame(
        {
            "value": [i.value for i in both.values()],
            "low": [i.low for i in both.values()],
            "high": [i.high for i in both.values()],
        },
        index=pd.Index(list(both), name="name"),
    )


def forecasts_frame(forecasts: Sequence[Forecast]) -> pd.DataFrame:
    """Return forecasts, one row each, under the names of the JSON contract."""
    import pandas as pd

    return pd.DataFrame([forecast.to_dict() for forecast in forecasts])


def comparison_frame(comparison: Comparison) -> pd.DataFrame:
    """Return the candidates of a comparison, best first."""
    import pandas as pd

    return pd.DataFrame(comparison.to_dict()["candidates"])
