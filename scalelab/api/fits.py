"""The verbs that read finished runs: `load`, `fit`, `predict`, `compare` of `scalelab.api`.

Heavy libraries are imported inside the verb that needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scalelab.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.objective import Objective
    from scalelab.fit.outcome import FitWarning, ParametricFit
    from scalelab.fit.select import Comparison
    from scalelab.forecast.fit_report import FitReport, Holdout
    from scalelab.records.types import Observations
    from scalelab.store.tables import TableRead

    Data = str | Path | pd.DataFrame | TableRead

AUTO_FORM = "auto"
DEFAULT_LEVEL = 0.9
DEFAULT_RESULTS = Path("results")
HELD, RECIPE_B = "holdout", "recipe_b"


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which rows of a table, under which names.

    Attributes
    ----------
    mapping : Mapping[str, str] or None
        Our column name to the table's column or a DuckDB expression.
    where : str or None
        DuckDB condition on the table's columns.
    holdout : str or None
        Condition: rows to leave out of the fit and to score it on.
    recipe_b : str or None
        Condition: rows of recipe B; the others are recipe A, which is fitted.
    """

    mapping: Mapping[str, str] | None = None
    where: str | None = None
    holdout: str | None = None
    recipe_b: str | None = None


def load(
    source: str | Path | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
) -> pd.DataFrame:
    """Return finished runs as a frame with our column names.

    Parameters
    ----------
    source : str or Path, optional
        A CSV or Parquet file; without it, the runs of ``sweep``.
    sweep : str, optional
        Name of a sweep; without it, the latest sweep that has results.
    results : str or Path
        The results folder.
    mapping : Mapping[str, str], optional
        Our column name to the file's column or a DuckDB expression.
    where : str, optional
        DuckDB condition on the file's columns.
    """
    from scalelab.api.frames import frame_of

    selection = Selection(mapping=mapping, where=where)
    return frame_of(_table(source, sweep, results, selection))


def fit(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    selection: Selection | None = None,
    form: str = "chinchilla",
    objective: Objective | None = None,
    bootstrap: BootstrapSpec | None = None,
    level: float = DEFAULT_LEVEL,
    predict: Sequence[str] = (),
    is_compared: bool = False,
    fitted: ParametricFit | None = None,
) -> FitReport:
    """Return everything a fit says: approach 3 with intervals, 1 and 2 beside it, forecasts.

    Parameters
    ----------
    data : str, Path, DataFrame or TableRead, optional
        The runs; without it, those of ``sweep``.
    sweep : str, optional
        Name of a sweep; without it, the latest sweep that has results.
    results : str or Path
        The results folder.
    selection : Selection, optional
        Which rows, under which names.
    form : str
        Name of a law, or ``auto``: whatever `compare` ranks first, its objective included.
    objective : Objective, optional
        Default: log residual, Huber, delta 1e-3, plain sum.
    bootstrap : BootstrapSpec, optional
        Default: 1000 replicates, cluster or row as the labels say.
    level : float
        Level of every interval.
    predict : sequence of str
        Requests such as ``N=7e9``, ``N=7e9,D=2e12`` or ``C=1e24``.
    is_compared : bool
        Whether to rank forms by rolling-origin extrapolation as well.
    fitted : ParametricFit, optional
        ``report.fit`` of an earlier call with the same rows, form, objective and bootstrap: it is
        taken instead of being fitted again, for another level or other forecasts.

    Raises
    ------
    UsageError, DataError
        For options that cannot be meant and tables that cannot be used. A fit that is not
        identified is no error: it is in the report.
    """
    from scalelab.fit.against import disagreement, disagreement_warnings, paired_weights
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.diagnose import (
        design_warnings,
        notes_as_warnings,
        replicate_warnings,
        row_warnings,
    )
    from scalelab.fit.envelope import along_curves, fit_envelope
    from scalelab.fit.isoflop import fit_isoflop
    from scalelab.fit.objective import Objective
    from scalelab.fit.outcome import check_level
    from scalelab.fit.parametric import fit_parametric
    from scalelab.fit.speedup import effective_speedup
    from scalelab.forecast.allocate import derived, far_warnings, forecast, parse_request
    from scalelab.forecast.extrapolation import fitted_range
    from scalelab.forecast.fit_report import FitReport, ordered

    check_level(level)
    requests = [parse_request(text) for text in predict]
    spec = bootstrap or BootstrapSpec()
    table = _table(data, sweep, results, selection or Selection())
    rows, lines, held, recipe_b = _split(table)
    comparison = None
    if is_compared or form == AUTO_FORM:
        comparison = _compare(rows, None if form == AUTO_FORM else form, objective, spec, level)
    if form == AUTO_FORM and comparison is not None:
        form, objective = comparison.best.form, comparison.best.objective
    objective = objective or Objective()
    found = fitted or fit_parametric(rows, form=form, objective=objective, bootstrap=spec)
    if found.bootstrap.cluster == "cluster":
        # The user's own name of the column says more than ours.
        theirs = table.mapping.get("cluster", "cluster")
        found = replace(found, bootstrap=replace(found.bootstrap, cluster=theirs))
    is_trusted = found.status != "not_identified"
    reach = fitted_range(rows)
    forecasts = forecast(found, requests, reach=reach, level=level) if is_trusted else ()
    weights = paired_weights(rows, spec, found)
    isoflop = fit_isoflop(rows, level=level, weights=weights)
    envelope = fit_envelope(along_curves(rows, table.curves), level=level, seed=spec.seed)
    asked = [f.flops for f in forecasts if f.flops is not None]
    # Where it matters: at the largest forecast, else at the largest run.
    against = disagreement(
        rows,
        isoflop,
        found,
        flops=max(asked, default=reach.flops),
        weights=weights,
        level=level,
    )
    warnings = [
        *found.warnings,
        *replicate_warnings(spec, level),
        *far_warnings(forecasts),
        *disagreement_warnings(against),
        *row_warnings(rows, lines, found),
        *design_warnings(isoflop, envelope),
        *_rejected(table),
        *notes_as_warnings(table.notes),
    ]
    return FitReport(
        observations=rows,
        fit=found,
        level=level,
        params=found.param_intervals(level),
        derived=derived(found, level),
        envelope=envelope,
        isoflop=isoflop,
        disagreement=against,
        warnings=ordered(warnings),
        forecasts=forecasts,
        holdout=score(found, held, level) if held is not None and is_trusted else None,
        comparison=comparison,
        speedup=None
        if recipe_b is None or not is_trusted
        else effective_speedup(found, recipe_b, seed=spec.seed, level=level),
    )


def predict(report: FitReport, *requests: str, level: float | None = None) -> pd.DataFrame:
    """Return one row for each request (``N=7e9``, ``N=7e9,D=2e12``, ``C=1e24``, ``D=1e12``).

    Raises
    ------
    NotIdentifiedError
        When the fit does not determine its law.
    """
    from scalelab.api.frames import forecasts_frame
    from scalelab.errors import NotIdentifiedError
    from scalelab.forecast.allocate import forecast, parse_request
    from scalelab.forecast.extrapolation import fitted_range

    if report.fit.status == "not_identified":
        raise NotIdentifiedError(
            "a fit that is not identified",
            "rows that determine the law",
            "Read report.warnings: they say what is missing.",
        )
    return forecasts_frame(
        forecast(
            report.fit,
            [parse_request(text) for text in requests],
            reach=fitted_range(report.observations),
            level=level or report.level,
        )
    )


def compare(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    selection: Selection | None = None,
    forms: Sequence[str] | None = None,
    objectives: Sequence[Objective] = (),
    level: float = DEFAULT_LEVEL,
    seed: int = 0,
) -> Comparison:
    """Return forms and objectives ranked by rolling-origin extrapolation.

    Parameters
    ----------
    data, sweep, results, selection
        As in `fit`; held-out rows are not looked at.
    forms : sequence of str, optional
        Default: every form of N and D.
    objectives : sequence of Objective
        Default: log-Huber 1e-3 and 1e-2, and least squares of the log residual.
    level, seed
        As in `fit`.
    """
    from scalelab.fit.select import FORMS, OBJECTIVES
    from scalelab.fit.select import compare as ranked

    rows = _split(_table(data, sweep, results, selection or Selection()))[0]
    return ranked(
        rows, forms=forms or FORMS, objectives=objectives or OBJECTIVES, level=level, seed=seed
    )


def score(found: ParametricFit, held: Observations, level: float = DEFAULT_LEVEL) -> Holdout:
    """Return how well a fit predicts rows that it has not seen."""
    import numpy as np

    from scalelab.fit.select import columns_of
    from scalelab.forecast.fit_report import Holdout

    columns = columns_of(held)
    predicted = found.predict(columns, level=level)
    observed = columns[found.law.target]
    error = np.abs(predicted.value / observed - 1)
    is_inside = (predicted.pred_low <= observed) & (observed <= predicted.pred_high)
    return Holdout(
        n_rows=len(held),
        mean_relative_error=float(error.mean()),
        max_relative_error=float(error.max()),
        covered=int(is_inside.sum()),
        mean_width=float((predicted.pred_high - predicted.pred_low).mean()),
        level=level,
    )


def _table(
    data: Data | None, sweep: str | None, results: str | Path, selection: Selection
) -> TableRead:
    """Return the rows that were asked for, from wherever they are."""
    from scalelab.store.tables import ReadOptions, TableRead, read_frame, read_table

    if isinstance(data, TableRead):
        return data
    marks = {HELD: selection.holdout, RECIPE_B: selection.recipe_b}
    options = ReadOptions(
        mapping=selection.mapping or {},
        where=selection.where,
        marks={name: condition for name, condition in marks.items() if condition},
    )
    if data is None:
        from scalelab.store.results import read_results

        return read_results(Path(results), sweep, options)
    if isinstance(data, (str, Path)):
        if sweep is not None:
            raise UsageError(
                f"both the file {data} and the sweep {sweep}", "one of them", "Leave one out."
            )
        return read_table(data, options)
    return read_frame(data, options)


def _split(
    table: TableRead,
) -> tuple[Observations, NDArray[np.int64], Observations | None, Observations | None]:
    """Return the rows to fit with their lines, those held out, and those of recipe B."""
    import numpy as np

    from scalelab.errors import DataError

    every = table.observations
    is_held = table.marks.get(HELD, np.zeros(len(every), bool))
    is_b = table.marks.get(RECIPE_B, np.zeros(len(every), bool)) & ~is_held
    for name, mark in ((HELD, is_held), (RECIPE_B, is_b)):
        if name in table.marks and not 0 < mark.sum() < len(every):
            raise DataError(
                f"a {name} condition that is true for {int(mark.sum())} of {len(every)} rows",
                "some of the rows, not all",
                "Mend the condition.",
            )
    fitted = np.flatnonzero(~is_held & ~is_b)
    if not len(fitted):
        raise DataError("no row left to fit", "some rows", "Loosen the conditions.")
    return (
        every.take(fitted),
        table.lines[fitted],
        every.take(np.flatnonzero(is_held)) if HELD in table.marks else None,
        every.take(np.flatnonzero(is_b)) if RECIPE_B in table.marks else None,
    )


def _compare(
    rows: Observations,
    form: str | None,
    objective: Objective | None,
    spec: BootstrapSpec,
    level: float,
) -> Comparison:
    from scalelab.fit.select import FORMS, OBJECTIVES
    from scalelab.fit.select import compare as ranked

    forms = FORMS if form is None or form in FORMS else (form, *FORMS)
    objectives = OBJECTIVES if objective is None else tuple(dict.fromkeys((objective, *OBJECTIVES)))
    return ranked(rows, forms=forms, objectives=objectives, level=level, seed=spec.seed)


def _rejected(table: TableRead) -> list[FitWarning]:
    from scalelab.fit.outcome import FitWarning

    if not table.rejects:
        return []
    shown = "; ".join(f"line {reject.line}: {reject.reason}" for reject in table.rejects[:3])
    more = f"; and {len(table.rejects) - 3} more" if len(table.rejects) > 3 else ""
    count = len(table.rejects)
    left_out = (
        "1 row cannot be used and was" if count == 1 else f"{count} rows cannot be used and were"
    )
    return [
        FitWarning(
            code="rejected_rows",
            message=f"{left_out} left out ({shown}{more}).",
        )
    ]
