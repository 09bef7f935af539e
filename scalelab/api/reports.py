"""What `fit`, `compare` and `decide` return.

Each class adds `NotebookView` to the value of a lower layer, which has the fields.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scalelab.api.notebook_view import NotebookView, gravest
from scalelab.fit import select
from scalelab.forecast import decision, fit_report, metric_comparison
from scalelab.units import format_flops, format_quantity, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from matplotlib.figure import Figure

MAX_FORECASTS = 3


class FitReport(NotebookView, fit_report.FitReport):
    """The report of `fit`: the law with intervals, checks, forecasts and warnings."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        fit = self.fit
        status = self.law_status.replace("_", " ")
        yield f"FitReport: {fit.form} law, {plural(fit.n_rows, 'run')}, status {status}"
        yield from gravest(self.warnings)
        if self.forecasts:
            yield f"forecasts by the {self.forecaster.label}:"
        for refusal in self.refusals[:1]:
            yield f"no answer to {refusal.given.removeprefix('--predict ')}. {refusal.do}"
        for forecast in self.forecasts[:MAX_FORECASTS]:
            sizes = [
                f"{letter} {format_quantity(size.value)}"
                for letter, size in (("N", forecast.n_params), ("D", forecast.n_tokens))
                if size is not None
            ]
            new_run = (
                f"prediction interval {forecast.pred_low:.4f} to {forecast.pred_high:.4f}"
                if math.isfinite(forecast.pred_high)
                else "no interval"
            )
            yield (
                f"{forecast.asked}: {', '.join(sizes)}, {fit.law.target} {forecast.loss_nats:.4f}, "
                f"{new_run}"
            )
        if len(self.forecasts) > MAX_FORECASTS:
            yield f".. and {plural(len(self.forecasts) - MAX_FORECASTS, 'more forecast')}"
        for group in (self.derived, self.params):
            found = [
                f"{name} = {i.value:.4g} ({i.low:.4g} to {i.high:.4g})" for name, i in group.items()
            ]
            if found:
                yield ", ".join(found)
        yield f"{100 * self.level:g} % intervals; see .warnings, .to_frame(), .plot(), .to_dict()"

    def to_frame(self) -> pd.DataFrame:
        """Return parameters and exponents of the compute-optimal frontier with their intervals."""
        import pandas as pd

        both = {**self.params, **self.derived}
        return pd.DataFrame(
            {end: [getattr(i, end) for i in both.values()] for end in ("value", "low", "high")},
            index=pd.Index(list(both), name="name"),
        )

    def plot(self) -> Figure:
        """Return isoFLOP curves, the law's contours, and residuals, as one figure."""
        from scalelab.report.plots import figure_of

        return figure_of(self)


class Comparison(NotebookView, select.Comparison):
    """The answer of `compare`: forms and objectives, best first."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        yield f"Comparison: {self.verdict}"
        for each in self.candidates[:5]:
            yield (
                f"{100 * each.mean_relative_error:.3f} % mean error, "
                f"{100 * each.covered:.0f} % in their interval: {each.label}"
            )
        yield (
            f"{plural(len(self.candidates), 'candidate')}, {plural(self.n_predicted, 'row')} "
            "predicted from smaller budgets; see .to_frame(), .plot()"
        )

    def to_frame(self) -> pd.DataFrame:
        """Return the candidates, best first."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["candidates"])

    def plot(self) -> Figure:
        """Return the mean error of each candidate."""
        from scalelab.report.plots import interval_figure

        rows = [(c.label, 100 * c.mean_relative_error, None, None) for c in self.candidates]
        return interval_figure(rows, "mean error of the next budget (%)")


class Decision(NotebookView, decision.Decision):
    """The answer of `decide`: the best model within the limits, and others beside it."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        best = self.best
        if best is None:
            yield "Decision: no candidate is within the limits"
        else:
            limits = (
                ""
                if best.pred_low is None
                else f", prediction interval {best.pred_low:.4f} to {best.pred_high:.4f}"
            )
            yield (
                f"Decision: train {best.label} tokens, {format_flops(best.flops)} FLOPs, predicted "
                f"{self.metric.label} {best.loss_nats:.4f} {self.unit}{limits}"
            )
        yield from gravest(self.warnings)
        if self.binding:
            yield f"binding limits: {', '.join(self.binding)}"
        for each in self.candidates[:5]:
            broken = f", exceeds {each.exceeded}" if each.exceeded else ""
            yield f"{each.label}: loss {each.loss_nats:.4f}{broken}"
        yield f"{plural(len(self.candidates), 'candidate')}; see .warnings, .to_frame(), .plot()"

    def to_frame(self) -> pd.DataFrame:
        """Return the candidates with their costs."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["candidates"])

    def plot(self) -> Figure | None:
        """Return the predicted loss of each candidate with its interval."""
        from scalelab.report.plots import interval_figure

        rows = [(c.label, c.loss_nats, c.low, c.high) for c in self.candidates]
        return (
            interval_figure(rows, f"predicted {self.metric.label} ({self.unit})") if rows else None
        )


class MetricComparison(NotebookView, metric_comparison.MetricComparison):
    """The answer of `fit_metrics`: a fit of each metric, and where their D/N disagrees."""

    __slots__ = ()

    def _lines(self) -> Iterator[str]:
        yield f"MetricComparison: {len(self.rows)} metrics of {self.source}"
        for pair in self.disagreements[:3]:
            yield (
                f"D/N {pair.low_ratio.value:.3g} on {pair.low}, {pair.high_ratio.value:.3g} on "
                f"{pair.high}"
            )
        yield "see .rows, .disagreements, .to_frame(), .plot(), .to_dict()"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each metric, with the limits of each number."""
        import pandas as pd

        found = []
        for row in self.rows:
            cells: dict[str, Any] = {"metric": row.metric.text, "unit": row.metric.unit}
            for name in self.columns:
                interval = row.interval(name)
                for end in ("value", "low", "high"):
                    key = name if end == "value" else f"{name}_{end}"
                    cells[key] = None if interval is None else getattr(interval, end)
            found.append(cells)
        return pd.DataFrame(found)

    def plot(self) -> Figure:
        """Return constants, exponents and D/N of each metric with their intervals."""
        from scalelab.report.metric_figure import metric_figure

        return metric_figure(self)
