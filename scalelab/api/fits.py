"""The verbs for finished runs: `load`, `fit` and `compare`.

Each verb imports the heavy libraries that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.arguments import as_bootstrap, as_names, as_objective, as_requests
from scalelab.api.data import DEFAULT_RESULTS, frame_of, read_runs, rejected_rows, split_runs
from scalelab.errors import DataError
from scalelab.forecast.one_thread import on_one_thread

if TYPE_CHECKING:
    import pandas as pd

    from scalelab.api.arguments import Asked
    from scalelab.api.data import Data
    from scalelab.api.reports import Comparison, FitReport
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.objective import Objective
    from scalelab.fit.outcome import FitWarning
    from scalelab.forecast.allocate import Refusal, Request
    from scalelab.forecast.averaged import AveragedFit
    from scalelab.forecast.fit_report import FitReport as BaseFitReport
    from scalelab.records.types import Observations
    from scalelab.store.reading import Reading

AUTO_FORM = "auto"
LOSS = "loss_nats"
DEFAULT_LEVEL = 0.9
FRONTIER_FACTORS = (1.0, 10.0, 100.0)
"""Multiples of the largest compute at which a report has the averaged frontier."""


def load(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    reading: Reading | None = None,
) -> pd.DataFrame:
    """Return finished runs as a DataFrame with our column names.

    Parameters
    ----------
    data : file name, DataFrame or other table, optional
        Without it, the runs of ``sweep``.
    sweep : str, optional
        Name of a sweep or an import; default: the latest sweep that has results.
    results : str or Path
        The results folder.
    mapping : Mapping[str, str], optional
        From our column name to the table's column or a DuckDB expression, for example
        ``{"loss_nats": "val_loss"}``.
    where : str, optional
        DuckDB condition; other rows are ignored.
    reading : Reading, optional
        Format of a run log, unit of the losses, and which rows are kept, for example
        ``Reading(loss_unit="bits", best_of="lr")``.
    """
    table = read_runs(
        data, sweep=sweep, results=results, mapping=mapping, where=where, reading=reading
    )
    return frame_of(table)


@on_one_thread
def fit(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    holdout: str | None = None,
    recipe_b: str | None = None,
    form: str = "chinchilla",
    objective: Objective | str | Mapping[str, Any] | None = None,
    bootstrap: BootstrapSpec | int | Mapping[str, Any] | None = None,
    level: float = DEFAULT_LEVEL,
    predict: Asked = (),
    compare_forms: bool = False,
    fitted: BaseFitReport | None = None,
    forecaster: str | None = None,
    reading: Reading | None = None,
) -> FitReport:
    """Fit a scaling law: approach 3 with intervals, approaches 1 and 2 to check it, and forecasts.

    Parameters
    ----------
    data : file name, DataFrame or other table, optional
        The runs; default: those of ``sweep``.
    sweep : str, optional
        Name of a sweep or an import; default: the latest sweep that has results.
    results : str or Path
        The results folder.
    mapping : Mapping[str, str], optional
        From our column name to the table's column or a DuckDB expression, for example
        ``{"loss_nats": "val_loss"}``.
    where : str, optional
        DuckDB condition; other rows are ignored.
    holdout : str, optional
        DuckDB condition; these rows are not fitted, and the fit is scored on them.
    recipe_b : str, optional
        DuckDB condition: rows of recipe B. The other rows are recipe A, which is fitted.
    form : str
        Name of a law, or ``auto``: the form and objective that `compare` ranks first.
    objective : Objective or str, optional
        Default: log residual, Huber loss with delta 1e-3, plain sum. A name such as ``"ls"``
        selects the loss.
    bootstrap : BootstrapSpec or int, optional
        Bootstrap replicates; default 1000, resampled by cluster if labels repeat, else by row.
    level : float
        Level of every interval.
    predict : str, dict, DataFrame, or a sequence of them
        What to predict, as in `predict`.
    compare_forms : bool
        Whether to also rank forms by rolling-origin extrapolation.
    fitted : FitReport, optional
        Report of an earlier call with the same rows, form, objective, bootstrap and forecaster. Its
        fits are reused, for another level or other forecasts.
    forecaster : str, optional
        What predicts: ``averaged``, several forms averaged by evidence with a smooth misfit, which
        also answers where one law is not identified; or ``law``, the fitted law. Default: averaged,
        and the law for forms of other columns than N, D and unique tokens.
    reading : Reading, optional
        Format of a run log, unit of the losses, and which rows are kept.

    Raises
    ------
    UsageError, DataError
        For an invalid argument or a table that cannot be used. A law that is not identified, or a
        question that the runs do not answer, is not an error: ``report.law_status``,
        ``report.refusals`` and ``report.warnings`` say so.
    """
    from scalelab.api.reports import Comparison, FitReport
    from scalelab.fit.against import AXES, disagreement, disagreement_warnings, paired_weights
    from scalelab.fit.apart import apart_notes
    from scalelab.fit.diagnose import (
        design_warnings,
        notes_as_warnings,
        replicate_warnings,
        row_warnings,
    )
    from scalelab.fit.envelope import along_curves, fit_envelope
    from scalelab.fit.intervals import check_level
    from scalelab.fit.isoflop import fit_isoflop
    from scalelab.fit.local_minima import local_law
    from scalelab.fit.objective import Objective
    from scalelab.fit.outcome import FitWarning
    from scalelab.fit.parametric import fit_parametric
    from scalelab.fit.select import FORMS, OBJECTIVES
    from scalelab.fit.select import compare as ranked
    from scalelab.fit.selected import first_identified, fit_selected
    from scalelab.fit.speedup import effective_speedup
    from scalelab.forecast.allocate import derived, extrapolation_warnings
    from scalelab.forecast.averaged_optimum import frontier_points
    from scalelab.forecast.backtest import score
    from scalelab.forecast.extrapolation import fitted_range
    from scalelab.forecast.fit_report import ordered
    from scalelab.forecast.forecaster import answering, ask, beside, is_averaged
    from scalelab.forecast.forecaster import forecaster as law_forecaster
    from scalelab.forecast.size_column import count_warnings
    from scalelab.theory.laws import Chinchilla, law_named

    check_level(level)
    averages = is_averaged(forecaster, Chinchilla if form == AUTO_FORM else law_named(form))
    requests = as_requests(predict)
    spec = as_bootstrap(bootstrap)
    objective = None if objective is None else as_objective(objective)
    # Several forms need all of N, D and C.
    is_one_form = form != AUTO_FORM and not compare_forms
    table = read_runs(
        data,
        sweep=sweep,
        results=results,
        mapping=mapping,
        where=where,
        holdout=holdout,
        recipe_b=recipe_b,
        form=form if is_one_form else None,
        reading=reading,
    )
    rows, lines, held, other = split_runs(table)
    comparison, cannot = None, None
    if compare_forms or form == AUTO_FORM:
        try:
            best = ranked(
                rows,
                forms=FORMS if form in (AUTO_FORM, *FORMS) else (form, *FORMS),
                objectives=tuple(dict.fromkeys((objective or OBJECTIVES[0], *OBJECTIVES))),
                level=level,
                seed=spec.seed,
            )
            comparison = Comparison.of(best)
        except DataError as error:
            if compare_forms or not len(rows):
                raise
            cannot = error
    found = None if fitted is None else fitted.fit
    if found is None and form == AUTO_FORM and comparison is not None:
        found = fit_selected(rows, comparison.candidates, spec)
    elif found is None and cannot is not None:
        found = first_identified(rows, objective or Objective(), spec, cannot)
    elif found is None:
        found = fit_parametric(rows, form=form, objective=objective or Objective(), bootstrap=spec)
    if found.bootstrap.cluster == "cluster":
        # The user's name of the column is clearer than ours.
        theirs = table.mapping.get("cluster", "cluster")
        found = replace(found, bootstrap=replace(found.bootstrap, cluster=theirs))
    is_trusted = found.status != "not_identified"
    span = fitted_range(rows)
    averaged, failed = None, list[FitWarning]()
    if fitted is not None:
        averaged = fitted.averaged
    elif averages and (rows.loss_nats > 0).all():
        averaged, failed = _average(rows)
    source = answering(found, averaged, span, level)
    forecasts, refusals = ask(source, requests)
    has_answer = is_trusted or averaged is not None
    weights = paired_weights(rows, spec, found)
    isoflop = fit_isoflop(rows, level=level, weights=weights)
    envelope = fit_envelope(along_curves(rows, table.curves), level=level, seed=spec.seed)
    asked = [f.flops for f in forecasts if f.flops is not None]
    # Compare the approaches at the largest forecast, or else at the largest run.
    against = disagreement(
        rows,
        isoflop,
        found,
        flops=max(asked, default=span.flops),
        weights=weights,
        level=level,
    )
    n_local, d_local = (
        local_law(rows, isoflop, axis, level=level, seed=spec.seed) for axis in AXES
    )
    rates = derived(found, level)
    warnings = [
        *found.warnings,
        *failed,
        *replicate_warnings(spec, level),
        *extrapolation_warnings(forecasts),
        *disagreement_warnings(against),
        *row_warnings(rows, lines, found),
        *count_warnings(found, rows, forecasts, averaged, rates.get("a")),
        *design_warnings(isoflop, envelope),
        *apart_notes(rates.get("a") if is_trusted else None, isoflop, envelope, n_local),
        *rejected_rows(table),
        *notes_as_warnings(table.notes),
    ]
    return FitReport(
        observations=rows,
        fit=found,
        level=level,
        params=found.param_intervals(level),
        derived=rates,
        envelope=envelope,
        isoflop=isoflop,
        local=(n_local, d_local),
        disagreement=against,
        warnings=ordered(warnings),
        forecasts=forecasts,
        refusals=refusals,
        law_forecasts=()
        if averaged is None
        else beside(law_forecaster(found, level, span), _answered(requests, refusals)),
        frontier=()
        if averaged is None
        else frontier_points(averaged, [factor * span.flops for factor in FRONTIER_FACTORS], level),
        averaged=averaged,
        holdout=None if held is None or not has_answer else score(source, held, level),
        comparison=comparison,
        speedup=None
        if other is None or not is_trusted
        else effective_speedup(found, other, seed=spec.seed, level=level),
    )


def _average(rows: Observations) -> tuple[AveragedFit | None, list[FitWarning]]:
    """Return the averaged forecaster, or None and a warning that the law answers instead."""
    from scalelab.errors import NotIdentifiedError
    from scalelab.fit.outcome import FitWarning
    from scalelab.forecast.size_column import fit_counts

    try:
        return fit_counts(rows), []
    except NotIdentifiedError as error:
        message = f"No averaged forecast of {error.given}. The fitted law answers. {error.do}"
        return None, [FitWarning(code="not_averaged", message=message)]


def _answered(requests: Sequence[Request], refusals: Sequence[Refusal]) -> list[Request]:
    refused = {each.asked for each in refusals}
    return [each for each in requests if each.text not in refused]


def compare(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    where: str | None = None,
    holdout: str | None = None,
    forms: str | Sequence[str] | None = None,
    objectives: Any = None,
    level: float = DEFAULT_LEVEL,
    seed: int = 0,
) -> Comparison:
    """Rank forms and objectives by rolling-origin extrapolation.

    Parameters
    ----------
    data, sweep, results, mapping, where, holdout
        As in `fit`; held-out rows are not used.
    forms : str or sequence of str, optional
        Default: every form of N and D.
    objectives : Objective or str, or a sequence of them, optional
        Default: log-Huber with delta 1e-3 and 1e-2, and least squares of the log residual.
    level, seed
        As in `fit`.
    """
    from scalelab.api.reports import Comparison
    from scalelab.fit.intervals import check_level
    from scalelab.fit.select import FORMS, OBJECTIVES
    from scalelab.fit.select import compare as ranked

    check_level(level)
    several = OBJECTIVES if objectives is None else objectives
    several = several if isinstance(several, (list, tuple)) else (several,)
    table = read_runs(
        data, sweep=sweep, results=results, mapping=mapping, where=where, holdout=holdout
    )
    found = ranked(
        split_runs(table)[0],
        forms=as_names(forms or FORMS, "forms", "chinchilla"),
        objectives=[as_objective(each) for each in several],
        level=level,
        seed=seed,
    )
    return Comparison.of(found)
