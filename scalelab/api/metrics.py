"""The verbs for several metrics: `list_metrics`, and `fit_metrics`, which compares their laws."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalelab.api.arguments import as_names, as_requests
from scalelab.api.data import DEFAULT_RESULTS, as_frame
from scalelab.errors import DataError, NotIdentifiedError, UsageError

if TYPE_CHECKING:
    from scalelab.api.data import Data
    from scalelab.api.reports import FitReport, MetricComparison
    from scalelab.fit.intervals import Interval
    from scalelab.forecast.metric_comparison import MetricRow
    from scalelab.records.metric import Metric
    from scalelab.store.reading import Reading


def list_metrics(
    data: Data | None = None,
    *,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    reading: Reading | None = None,
) -> tuple[Metric, ...]:
    """Return every metric of a table or a sweep; parameters are those of `fit`."""
    from scalelab.store.metric import list_metrics as listed
    from scalelab.store.reading import Reading
    from scalelab.store.results import results_metrics
    from scalelab.store.table_files import open_file
    from scalelab.store.table_source import open_frame

    if data is None:
        return results_metrics(Path(results), sweep)
    if isinstance(data, (str, os.PathLike)):
        with open_file(Path(data), reading or Reading()) as source:
            return listed(source, mapping or {})
    with open_frame(as_frame(data)) as source:
        return listed(source, mapping or {})


def fit_metrics(
    data: Data | None = None,
    *,
    metrics: str | Sequence[str] | None = None,
    at: str | None = None,
    sweep: str | None = None,
    results: str | Path = DEFAULT_RESULTS,
    mapping: Mapping[str, str] | None = None,
    reading: Reading | None = None,
    **options: Any,
) -> MetricComparison:
    """Fit the law of each metric and compare constants, exponents and compute-optimal D/N.

    Parameters
    ----------
    data, sweep, results, mapping, reading
        As in `fit`.
    metrics : str or sequence of str, optional
        The metrics to compare, such as ``"bpb:code"``; default: each evaluation set and task.
    at : str, optional
        Compute at which D/N is compared, such as ``"C=1e21"``; default: that of the largest run.
    options
        Further arguments of `fit`, such as ``where`` and ``form``.

    Raises
    ------
    UsageError, DataError
        As in `fit`; DataError if no metric can be fitted.
    """
    from scalelab.api.reports import MetricComparison
    from scalelab.records.metric import parse_metric
    from scalelab.store.metric import to_compare
    from scalelab.store.reading import Reading

    reading = reading or Reading()
    source: dict[str, Any] = {"sweep": sweep, "results": results, "mapping": mapping}
    if metrics is None:
        found = to_compare(list_metrics(data, reading=reading, **source))
    else:
        found = tuple(map(parse_metric, as_names(metrics, "metrics", "bpb:code")))
    reports: dict[Metric, FitReport | DataError] = {}
    for metric in found:
        reports[metric] = _fitted(data, metric, reading, {**source, **options})
    fitted = [each for each in reports.values() if not isinstance(each, DataError)]
    if not fitted:
        raise next(
            (each for each in reports.values() if isinstance(each, DataError)),
            DataError(
                "runs without a loss",
                "runs with a loss, or with evaluation sets",
                "Name its columns by what they hold, for example loss_code.",
            ),
        )
    flops = _compute(at, fitted)
    return MetricComparison(
        rows=tuple(_row(metric, report, flops) for metric, report in reports.items()),
        flops=flops,
        level=fitted[0].level,
        source=fitted[0].observations.source,
        form=fitted[0].fit.form,
    )


def _fitted(
    data: Data | None, metric: Metric, reading: Reading, options: dict[str, Any]
) -> FitReport | DataError:
    from scalelab.api.fits import fit

    if not metric.is_heldout and "loss_nats" in (options["mapping"] or {}):
        mapping = {k: v for k, v in options["mapping"].items() if k != "loss_nats"}
        options = {**options, "mapping": mapping}
    try:
        return fit(data, reading=replace(reading, metric=metric.text), **options)
    except DataError as error:
        return error


def _compute(at: str | None, fitted: Sequence[FitReport]) -> float:
    """Return the compute of the comparison, FLOP."""
    if at is None:
        return max(float(each.observations.flops.max()) for each in fitted)
    (request,) = as_requests(at)
    if set(request.values) != {"flops"}:
        raise UsageError(
            f"{at} for several metrics",
            "a compute, at which their D/N is compared",
            "Write for example --predict C=1e21.",
        )
    return float(request.values["flops"])


def _row(metric: Metric, report: FitReport | DataError, flops: float) -> MetricRow:
    from scalelab.forecast.metric_comparison import MetricRow, ratio_of

    if isinstance(report, DataError):
        return MetricRow(metric=metric, report=None, tokens_per_param=None, reason=str(report))
    ratio: Interval | None = None
    reason = ""
    try:
        (request,) = as_requests({"flops": flops})
        size = report.forecaster.forecast(request).n_params if report.has_answer else None
        ratio = None if size is None else ratio_of(size, flops)
    except NotIdentifiedError as error:
        reason = error.given.partition(": ")[2] or error.given
    except UsageError:
        reason = f"the {report.fit.form} law has no compute-optimal N and D"
    if ratio is None and not reason:
        reason = "these runs do not determine the law"
    return MetricRow(metric=metric, report=report, tokens_per_param=ratio, reason=reason)
