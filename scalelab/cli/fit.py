"""``scalelab fit``: fit a scaling law with intervals, compare forms, and forecast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    BEST_HELP,
    CONVENTION_HELP,
    DEFAULT_RESULTS,
    EXCLUDE_HELP,
    FORECASTER_HELP,
    FORMAT_HELP,
    FROM_HELP,
    LAST_HELP,
    MEAN_HELP,
    METRIC_HELP,
    UNFINISHED_HELP,
    UNIT_HELP,
    counted_columns,
    given_options,
    option,
    results_option,
)
from scalelab.cli.output import console, emit_json, runnable
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.forecast.metric_comparison import MetricComparison

RUNS, OBJECTIVE, INTERVALS, ASK, OUT = (
    "Runs",
    "Law and objective",
    "Intervals",
    "Predictions and comparisons",
    "Output",
)


def fit(
    context: typer.Context,
    from_file: Annotated[Path | None, option(RUNS, FROM_HELP, "--from")] = None,
    sweep: Annotated[
        str | None, option(RUNS, "Sweep to fit; default: the latest with results.")
    ] = None,
    results: Annotated[Path, results_option(RUNS)] = DEFAULT_RESULTS,
    mapping: Annotated[
        list[str] | None,
        option(
            RUNS,
            "Columns of the file, as OURS=THEIRS,..: n_params, n_tokens, loss_nats, flops, "
            "budget or cluster from a column or SQL expression, such as loss_nats=val_loss. With "
            "--form mixture also weight_SOURCE and loss_SET.",
            "--map",
        ),
    ] = None,
    where: Annotated[
        str | None, option(RUNS, "SQL condition on the columns, such as 'flops > 1e18'.")
    ] = None,
    metric: Annotated[
        str | None,
        option(RUNS, f"{METRIC_HELP} all: compare every set.", "--metric"),
    ] = None,
    format: Annotated[str | None, option(RUNS, FORMAT_HELP, "--format")] = None,
    loss_unit: Annotated[str | None, option(RUNS, UNIT_HELP, "--loss-unit")] = None,
    include_unfinished: Annotated[
        bool, option(RUNS, UNFINISHED_HELP, "--include-unfinished")
    ] = False,
    best_of: Annotated[str | None, option(RUNS, BEST_HELP, "--best-of")] = None,
    mean_of: Annotated[str | None, option(RUNS, MEAN_HELP, "--mean-of")] = None,
    last_of: Annotated[str | None, option(RUNS, LAST_HELP, "--last-of")] = None,
    exclude: Annotated[
        str | None, option(RUNS, EXCLUDE_HELP, "--exclude", metavar="RUN,..")
    ] = None,
    param_convention: Annotated[str | None, option(RUNS, CONVENTION_HELP)] = None,
    form: Annotated[
        str,
        option(
            OBJECTIVE,
            "Form of the law, such as chinchilla or gamma. auto: best by --compare. mixture: laws "
            "of the weights of the sources, one for each evaluation set.",
        ),
    ] = "chinchilla",
    residual: Annotated[str, option(OBJECTIVE, "Residual: log or linear loss.")] = "log",
    loss: Annotated[str, option(OBJECTIVE, "Objective: huber, ls, lad or likelihood.")] = "huber",
    delta: Annotated[
        float | None, option(OBJECTIVE, "delta of the Huber loss; default 1e-3.")
    ] = None,
    overprediction: Annotated[
        float,
        option(
            OBJECTIVE,
            "Penalty factor where the law predicts too high a loss; above 1 moves the fit to "
            "the lower envelope.",
        ),
    ] = 1.0,
    weight: Annotated[str | None, option(OBJECTIVE, "Column with the weights of the rows.")] = None,
    bootstrap: Annotated[
        int, option(INTERVALS, "Bootstrap replicates; 0 gives no intervals.")
    ] = 1000,
    method: Annotated[
        str,
        option(
            INTERVALS,
            "auto, row, cluster, residual or none. auto: cluster if labels repeat, else row with "
            "efficient refits where these agree with refits of the objective.",
            "--bootstrap-method",
        ),
    ] = "auto",
    cluster: Annotated[
        str | None,
        option(INTERVALS, "Column of labels; rows with equal labels are resampled together."),
    ] = None,
    level: Annotated[float, option(INTERVALS, "Level of the intervals.")] = 0.9,
    seed: Annotated[int, option(INTERVALS, "Seed of the resampling.")] = 0,
    predict: Annotated[
        list[str] | None,
        option(
            ASK,
            "Model to predict: C=1e24, N=7e9 (D compute-optimal), N=7B,D=2T or D=1T; with --form "
            "mixture code=0.4,web=0.6,N=1B. Repeatable.",
        ),
    ] = None,
    forecaster: Annotated[str | None, option(ASK, FORECASTER_HELP, "--forecaster")] = None,
    holdout: Annotated[
        str | None,
        option(ASK, "SQL condition: leave these rows out, then report the error on them."),
    ] = None,
    compare: Annotated[
        bool,
        option(ASK, "Rank forms by predicting each budget from the smaller ones.", "--compare"),
    ] = False,
    speedup: Annotated[
        str | None,
        option(
            ASK, "SQL condition for recipe B: report the compute it saves against the other rows."
        ),
    ] = None,
    chain: Annotated[
        bool,
        option(
            ASK,
            "With --metric task:NAME or task:all: predict task loss, and accuracy from it. "
            "With --last-of, the accuracy is fitted to all checkpoints.",
            "--chain",
        ),
    ] = False,
    chance: Annotated[
        float | None,
        option(
            ASK,
            "With --chain: accuracy of guessing, such as 0.25 for 4 choices. Default: known for "
            "usual benchmarks, else the best fit.",
        ),
    ] = None,
    plot: Annotated[Path | None, option(OUT, "Write a figure: .png, .svg or .pdf.")] = None,
    verbose: Annotated[
        bool,
        option(
            OUT, "Also print the objective, the counting and the parameters.", "--verbose", "-v"
        ),
    ] = False,
    as_json: Annotated[bool, option(OUT, "Print one JSON object on stdout.", "--json")] = False,
    as_tex: Annotated[bool, option(OUT, "Print a LaTeX table on stdout.", "--tex")] = False,
    as_csv: Annotated[bool, option(OUT, "Print CSV on stdout.", "--csv")] = False,
) -> int:
    """Fit a scaling law with intervals, and predict larger runs.

    Example: scalelab fit --from runs.csv --map loss_nats=val_loss --predict N=7e9
    """
    from scalelab import api
    from scalelab.api.metrics import fit_metrics
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.objective import Objective
    from scalelab.forecast.headline import headline
    from scalelab.records.metric import ALL
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import reading_of_texts

    if as_json + as_tex + as_csv > 1:
        raise UsageError(
            "more than one of --json, --tex and --csv",
            "one of them",
            "Keep one, for example --json.",
        )
    columns = parse_map(mapping or [])
    if form == "mixture":
        from scalelab.cli.mixture_laws import fit_mixtures

        return fit_mixtures(
            given_options(context),
            from_file,
            sweep=sweep,
            results=results,
            mapping=mapping or (),
            where=where,
            format=format,
            metric=None if metric == ALL else metric,
            holdout=holdout,
            predict=predict or (),
            bootstrap=bootstrap,
            level=level,
            seed=seed,
            plot=plot,
            details=verbose,
            as_json=as_json,
            as_csv=as_csv,
        )
    columns = counted_columns(param_convention, columns)
    if cluster is not None:
        columns["cluster"] = cluster
        method = "cluster" if method == "auto" else method
    # Any: the constructors check what the user wrote.
    words: dict[str, Any] = {"residual": residual, "loss": loss, "delta": delta}
    objective = Objective(**words, overprediction=overprediction, weight=weight)
    resampling: dict[str, Any] = {"k": bootstrap, "method": method, "seed": seed}
    options: dict[str, Any] = {
        "sweep": sweep,
        "results": results,
        "mapping": columns,
        "where": where,
        "form": form,
        "objective": None if form == api.AUTO_FORM and objective == Objective() else objective,
        "bootstrap": BootstrapSpec(**resampling),
        "level": level,
        "forecaster": forecaster,
        "reading": reading_of_texts(
            format=format,
            loss_unit=loss_unit,
            includes_unfinished=include_unfinished,
            best_of=best_of,
            mean_of=mean_of,
            last_of=last_of,
            metric=None if metric == ALL else metric,
            exclude=exclude,
        ),
    }
    if chain or chance is not None:
        from scalelab.cli.chain_view import run_chain

        return run_chain(
            given_options(context),
            from_file,
            metric=metric,
            chance=chance,
            predict=predict or (),
            plot=plot,
            details=verbose,
            as_json=as_json,
            as_csv=as_csv,
            options=options,
        )
    if metric == ALL:
        asked = {"--holdout": holdout, "--compare": compare, "--speedup": speedup}
        _refuse_with_all(asked, predict)
        every = fit_metrics(from_file, at=next(iter(predict or ()), None), **options)
        return _show_metrics(every, plot, as_json=as_json, as_tex=as_tex, as_csv=as_csv)
    try:
        report = api.fit(
            from_file,
            holdout=holdout,
            recipe_b=speedup,
            predict=predict or (),
            compare_forms=compare,
            **options,
        )
    except UsageError as error:
        if cluster is None:
            raise
        # The user wrote --cluster, not --map.
        given = error.given.replace(f"--map cluster={cluster}", f"--cluster {cluster}")
        raise UsageError(given, error.allowed, error.do) from None
    if plot is not None:
        from scalelab.report.plots import draw_fit

        draw_fit(report, plot)
    from scalelab.cli.fit_page import next_command, print_page

    command = next_command(context)
    if as_json:
        found = headline(report, command).to_dict()
        found["next"] = runnable(f"`{found['next']}`").strip("`")
        if report.metric is not None:
            from scalelab.records.metric import with_unit

            found = with_unit(found, report.metric)
        emit_json({**report.to_dict(), "headline": found})
    elif as_tex or as_csv:
        sys.stdout.write(report.to_tex() if as_tex else report.to_csv())
    else:
        head = headline(report, command)
        print_page(report, head, console(), plot, details=verbose)
    return report.exit_code


def _refuse_with_all(given: dict[str, Any], predict: list[str] | None) -> None:
    """Raise UsageError for an option that needs one metric."""
    if wrong := [flag for flag, value in given.items() if value]:
        raise UsageError(
            f"--metric all with {wrong[0]}",
            "one metric",
            f"Write for example --metric code, or remove {wrong[0]}.",
        )
    if predict and len(predict) > 1:
        raise UsageError(
            f"--metric all with {len(predict)} predictions",
            "one compute, at which the metrics are compared",
            f"Keep for example --predict {predict[0]}.",
        )


def _show_metrics(
    found: MetricComparison, plot: Path | None, *, as_json: bool, as_tex: bool, as_csv: bool
) -> int:
    """Print a comparison of metrics, and return the exit code."""
    if plot is not None:
        from scalelab.report.metric_figure import metric_figure
        from scalelab.report.plots import check_path, save_figure

        check_path(plot)
        save_figure(metric_figure(found), plot)
    if as_json:
        emit_json(found.to_dict())
    elif as_tex or as_csv:
        sys.stdout.write(found.to_tex() if as_tex else found.to_csv())
    else:
        from scalelab.cli.metric_view import print_metrics

        print_metrics(found, console(), plot)
    return found.exit_code
