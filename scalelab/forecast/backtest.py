"""Backtest of forecasters: leave out the largest runs of a table, forecast them from the rest.

The largest sizes, the longest runs and the largest budgets are left out in turn, since each is a
question that people ask: a larger model, more tokens, more compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.errors import DataError, ScalelabError
from scalelab.fit.bootstrap import BootstrapSpec
from scalelab.fit.intervals import Prediction
from scalelab.fit.objective import Objective
from scalelab.fit.outcome import ParametricFit
from scalelab.fit.parametric import fit_parametric
from scalelab.fit.select import OBJECTIVES, columns_of, compare
from scalelab.fit.selected import first_identified, fit_selected
from scalelab.fit.time_limit import time_limit
from scalelab.forecast.allocate import AVERAGED, FORECASTERS, LAW
from scalelab.forecast.averaged import AveragedFit
from scalelab.forecast.cuts import FACTOR, Cut, largest_cuts
from scalelab.forecast.fit_report import Holdout
from scalelab.forecast.size_column import fit_counts
from scalelab.records.types import Observations
from scalelab.units import plural

MOST_LEFT_OUT = 0.4
MIN_ROWS_LEFT = 8
FACTORS = (1.5, 1.2, 1.05, 1.0)
"""Smaller factors that are proposed where the asked one makes no cut."""
LEVEL = 0.9
SPEC = BootstrapSpec(k=300)
TIME_LIMIT_S = 60.0
"""Time of one fit of one forecaster to one cut."""

AUTO = "auto"
"""Forecaster: the form that `--form auto` chooses."""
SINGLE_FORMS = ("chinchilla", "tied", "gamma", "farseer", "overtraining", "data_constrained")
"""Forecasters: one fitted law of that form."""
BACKTESTED = (*FORECASTERS, AUTO, *SINGLE_FORMS)


class Predictor(Protocol):
    """A fit or a forecaster: it predicts its target with intervals."""

    @property
    def target(self) -> str:
        """Column that it predicts."""

    def predict(self, columns: Mapping[str, FloatArray], level: float) -> Prediction:
        """Return predictions at m points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How one forecaster predicted one cut of one table.

    Attributes
    ----------
    table, cut, forecaster : str
        The forecaster is one of `BACKTESTED`.
    n_rows : int
        Rows left out.
    holdout : Holdout or None
        The score; None if the forecaster gave no answer.
    reason : str
        Why there is no answer.
    """

    table: str
    cut: str
    forecaster: str
    n_rows: int
    holdout: Holdout | None
    reason: str = ""

    @property
    def coverage(self) -> float:
        """Share of the intervals that contain their row; NaN without intervals."""
        if self.holdout is None or not self.holdout.n_intervals:
            return float("nan")
        return self.holdout.covered / self.holdout.n_intervals

    @property
    def error(self) -> float:
        """Mean relative error; NaN without an answer."""
        return float("nan") if self.holdout is None else self.holdout.mean_relative_error


def backtest(
    rows: Observations,
    table: str,
    *,
    forecasters: Sequence[str] = FORECASTERS,
    factor: float = FACTOR,
    level: float = LEVEL,
    time_limit_s: float = TIME_LIMIT_S,
) -> tuple[Score, ...]:
    """Return the score of each forecaster on each cut of a table.

    A fit that takes longer than the limit is no answer, and its score says so.

    Raises
    ------
    DataError
        If no cut leaves enough rows.
    """
    found = _cuts(rows, factor)
    if not found:
        smaller = next((each for each in FACTORS if each < factor and _cuts(rows, each)), None)
        raise DataError(
            f"{table} with {plural(len(rows), 'row')}, where no cut leaves {MIN_ROWS_LEFT} rows "
            f"and at most {MOST_LEFT_OUT:.0%} to forecast",
            f"{MIN_ROWS_LEFT} rows or more below the largest sizes, lengths or budgets",
            f"Use --factor {smaller:g}."
            if smaller
            else "Add smaller runs, or test a table with more, for example --from public:llama3.",
        )
    scores = []
    for cut in found:
        near, far = rows.take(~cut.is_left_out), rows.take(cut.is_left_out)
        answers: dict[str, tuple[Holdout | None, str]] = {}
        for name in forecasters:
            model = SINGLE_FORMS[0] if name == LAW else name
            if model not in answers:
                answers[model] = _answer(near, far, model, level, time_limit_s)
            holdout, reason = answers[model]
            scores.append(
                Score(
                    table=table,
                    cut=cut.name,
                    forecaster=name,
                    n_rows=len(far),
                    holdout=holdout,
                    reason=reason,
                )
            )
    return tuple(scores)


def _cuts(rows: Observations, factor: float) -> list[Cut]:
    return list(
        largest_cuts(
            rows.n_params,
            rows.n_tokens,
            factor=factor,
            share=MOST_LEFT_OUT,
            rows_left=MIN_ROWS_LEFT,
        )
    )


def best_forms(scores: Sequence[Score]) -> dict[str, str]:
    """Return the single form of the least mean error for each table that several forms answer.

    It is chosen by the rows that are left out, so it is a limit for one law, not a method.
    """
    best: dict[str, tuple[int, float, str]] = {}
    for table in dict.fromkeys(each.table for each in scores):
        for form in SINGLE_FORMS:
            own = [each for each in scores if (each.table, each.forecaster) == (table, form)]
            answered = [each.error for each in own if each.holdout is not None]
            if answered:
                key = (len(own) - len(answered), float(np.mean(answered)), form)
                best[table] = min(best.get(table, key), key)
    return {table: form for table, (_, _, form) in best.items()}


def score(found: Predictor, held: Observations, level: float = LEVEL) -> Holdout:
    """Return how well a fit predicts rows that were not fitted."""
    columns = columns_of(held)
    predicted = found.predict(columns, level=level)
    observed = columns[found.target]
    error = np.abs(predicted.value / observed - 1)
    is_inside = (predicted.pred_low <= observed) & (observed <= predicted.pred_high)
    width = predicted.pred_high - predicted.pred_low
    width = width[~np.isnan(width)]
    return Holdout(
        n_rows=len(held),
        mean_relative_error=float(error.mean()),
        max_relative_error=float(error.max()),
        covered=int(is_inside.sum()),
        n_intervals=len(width),
        mean_width=float(width.mean()) if len(width) else float("nan"),
        level=level,
    )


def _chosen(rows: Observations, time_limit_s: float) -> ParametricFit:
    """Return the fit of `--form auto`, whose forms are compared in half of the time."""
    try:
        ranked = compare(rows, objectives=OBJECTIVES, time_limit_s=time_limit_s / 2)
    except DataError as error:
        return first_identified(rows, Objective(), SPEC, error)
    return fit_selected(rows, ranked.candidates, SPEC)


def _answer(
    near: Observations, far: Observations, name: str, level: float, time_limit_s: float
) -> tuple[Holdout | None, str]:
    """Return how well a forecaster of the near rows predicts the far ones, or why it does not."""
    found: ParametricFit | AveragedFit
    try:
        with time_limit(time_limit_s):
            if name == AVERAGED:
                found = fit_counts(near)
            elif name == AUTO:
                found = _chosen(near, time_limit_s)
            else:
                found = fit_parametric(near, form=name, bootstrap=SPEC)
        if isinstance(found, ParametricFit) and found.status == "not_identified":
            return None, "not identified"
        return score(found, far, level), ""
    except ScalelabError as error:
        return None, error.given
    except np.linalg.LinAlgError:
        return None, "rows whose fit is singular"
