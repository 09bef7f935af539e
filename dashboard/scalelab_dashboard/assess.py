"""Rows and checks of a fit: leave-one-budget-out, published models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.api.data import Data
    from scalelab.forecast.allocate import Forecast
    from scalelab.forecast.fit_report import FitReport
    from scalelab.records.types import Observations


def used_rows(data: Data | None = None, **options: Any) -> Observations:
    """Return the rows that a fit would use.

    ``options`` are those of `scalelab.api.data.read_runs`.
    """
    from scalelab.api.data import read_runs, split_runs

    return split_runs(read_runs(data, **options))[0]


def span(rows: Observations) -> tuple[float, float, float]:
    """Return the range of compute in which the frontier is drawn, and its largest budget, FLOPs."""
    from scalelab.forecast.extrapolation import fitted_range

    largest = fitted_range(rows).flops
    return float(rows.flops.min()) / 1.5, largest * 1.5, largest


def held_out(report: FitReport, every: Observations) -> Observations | None:
    """Return the rows of a table that were not fitted, or None if all were."""
    import numpy as np

    seen = set(zip(report.observations.flops, report.observations.loss_nats, strict=True))
    left = [
        i for i, row in enumerate(zip(every.flops, every.loss_nats, strict=True)) if row not in seen
    ]
    return every.take(np.array(left)) if left else None


def leave_one_out(report: FitReport) -> list[dict[str, float]]:
    """Refit without each budget in turn: the exponent a, and the error on the omitted runs."""
    import numpy as np

    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.isoflop import budgets_of
    from scalelab.fit.parametric import fit_parametric
    from scalelab.forecast.allocate import frontier
    from scalelab.forecast.backtest import score

    rows = report.observations
    budget = budgets_of(rows)[0]
    values = np.unique(budget[np.isfinite(budget)])
    if len(values) < 3 or report.fit.status == "not_identified":
        return []
    out = []
    for value in values:
        is_out = budget == value
        rest = fit_parametric(
            rows.take(~is_out),
            form=report.fit.form,
            objective=report.fit.objective,
            bootstrap=BootstrapSpec(k=0),
        )
        held = score(rest, rows.take(is_out), report.level)
        out.append(
            {
                "budget": float(value),
                "a": frontier(rest.law, report.fit.max_flops)["a"],
                "n_rows": float(held.n_rows),
                "mean_relative_error": held.mean_relative_error,
            }
        )
    return out


def against_published(report: FitReport) -> pd.DataFrame:
    """Compare each published model with the optimum of this fit at the same compute.

    Returns
    -------
    DataFrame
        ``model``, ``year``, ``n_params``, ``n_tokens``, ``flops`` (6 N D), ``optimal_n_params``,
        ``ratio`` (N over the optimum: above 1 is too large and under-trained), ``verdict``,
        ``flops_wasted`` (share of its compute that the optimum would save at equal loss) and
        ``source``; no row if the fit is not identified.
    """
    import pandas as pd

    from scalelab.forecast.published import verdicts

    if report.fit.status == "not_identified":
        return pd.DataFrame()
    return pd.DataFrame(verdicts(report.fit.law))


def run_as_sweep(forecast: Forecast, made_by: str) -> str:
    """Return a sweep file, a grid of one run, for the run of a forecast.

    Parameters
    ----------
    forecast : Forecast
        With N and D.
    made_by : str
        Command that gives the same answer; written as a comment.

    Raises
    ------
    UsageError
        If the forecast has no N or D.
    """
    from scalelab.errors import UsageError

    size, tokens = forecast.n_params, forecast.n_tokens
    if size is None or tokens is None:
        raise UsageError(
            f"the forecast {forecast.asked}, which lacks N or D",
            "a forecast of N and D",
            "Fit a form of N and D, such as chinchilla.",
        )
    words = "".join(letter for letter in made_by if letter.isprintable())
    return (
        f"# {words}\n"
        f"# Predicted loss {forecast.loss_nats:.4f} nats, a new run in {forecast.pred_low:.4f} to "
        f"{forecast.pred_high:.4f} ({100 * forecast.level:g} %).\n"
        f"# N {size.low:.4g} to {size.high:.4g}, D {tokens.low:.4g} to {tokens.high:.4g}.\n"
        'kind = "grid"\n'
        f'n_params = "{size.value:.6g}"\n'
        f'n_tokens = "{tokens.value:.6g}"\n'
    )
