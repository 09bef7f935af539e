"""``scalelab fit``: fit a scaling law with intervals, compare forms, and forecast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.options import DEFAULT_RESULTS, results_option
from scalelab.cli.output import console, emit_json
from scalelab.errors import UsageError

RUNS, OBJECTIVE, INTERVALS, ASK, OUT = (
    "Runs",
    "Law and objective",
    "Intervals",
    "Predictions and comparisons",
    "Output",
)


def fit(
    from_file: Annotated[
        Path | None,
        typer.Option("--from", help="CSV or Parquet file of finished runs.", rich_help_panel=RUNS),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="Sweep to fit; default: the latest with results.", rich_help_panel=RUNS),
    ] = None,
    results: Annotated[Path, results_option(RUNS)] = DEFAULT_RESULTS,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Columns of the file, as OURS=THEIRS,..: n_params, n_tokens, loss_nats, flops, "
            "budget or cluster from a column or SQL expression, such as loss_nats=val_loss.",
            rich_help_panel=RUNS,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="SQL condition on the columns, such as 'flops > 1e18'.", rich_help_panel=RUNS
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="Form of the law, such as chinchilla or gamma; auto: best by --compare.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = "chinchilla",
    residual: Annotated[
        str, typer.Option(help="Residual: log or linear loss.", rich_help_panel=OBJECTIVE)
    ] = "log",
    loss: Annotated[
        str,
        typer.Option(help="Objective: huber, ls, lad or likelihood.", rich_help_panel=OBJECTIVE),
    ] = "huber",
    delta: Annotated[
        float | None,
        typer.Option(help="delta of the Huber loss; default 1e-3.", rich_help_panel=OBJECTIVE),
    ] = None,
    overprediction: Annotated[
        float,
        typer.Option(
            help="Penalty factor where the law predicts too high a loss; above 1 moves the fit to "
            "the lower envelope.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = 1.0,
    weight: Annotated[
        str | None,
        typer.Option(help="Column with the weights of the rows.", rich_help_panel=OBJECTIVE),
    ] = None,
    bootstrap: Annotated[
        int,
        typer.Option(help="Bootstrap replicates; 0 gives no intervals.", rich_help_panel=INTERVALS),
    ] = 1000,
    method: Annotated[
        str,
        typer.Option(
            "--bootstrap-method",
            help="auto, row, cluster or residual. auto: cluster if labels repeat, else row with "
            "faster approximate refits where they agree with full refits.",
            rich_help_panel=INTERVALS,
        ),
    ] = "auto",
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Column of labels; rows with equal labels are resampled together.",
            rich_help_panel=INTERVALS,
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Level of the intervals.", rich_help_panel=INTERVALS)
    ] = 0.9,
    seed: Annotated[
        int, typer.Option(help="Seed of the resampling.", rich_help_panel=INTERVALS)
    ] = 0,
    predict: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to predict: C=1e24, N=7e9 (D compute-optimal), N=7B,D=2T or D=1T; "
            "repeatable.",
            rich_help_panel=ASK,
        ),
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(
            help="SQL condition: leave these rows out, then report the error on them.",
            rich_help_panel=ASK,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Rank forms by predicting each budget from the smaller ones.",
            rich_help_panel=ASK,
        ),
    ] = False,
    speedup: Annotated[
        str | None,
        typer.Option(
            help="SQL condition for recipe B: report the compute it saves against the other rows.",
            rich_help_panel=ASK,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write a figure: .png, .svg or .pdf.", rich_help_panel=OUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUT)
    ] = False,
    as_tex: Annotated[
        bool, typer.Option("--tex", help="Print a LaTeX table on stdout.", rich_help_panel=OUT)
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV on stdout.", rich_help_panel=OUT)
    ] = False,
) -> int:
    """Fit a scaling law to finished runs, with intervals, and predict larger runs.

    Example: scalelab fit --from runs.csv --map loss_nats=val_loss --predict N=7e9
    """
    from scalelab import api
    from scalelab.fit.bootstrap import BootstrapSpec
    from scalelab.fit.objective import Objective
    from scalelab.store.tables import parse_map

    if as_json + as_tex + as_csv > 1:
        raise UsageError("more than one of --json, --tex and --csv", "one of them", "Choose one.")
    columns = parse_map(mapping or [])
    if cluster is not None:
        columns["cluster"] = cluster
    chosen = delta is not None or (residual, loss, overprediction, weight) != (
        "log",
        "huber",
        1.0,
        None,
    )
    objective = _checked(
        Objective,
        residual=residual,
        loss=loss,
        delta=delta,
        overprediction=overprediction,
        weight=weight,
    )
    spec = _checked(
        BootstrapSpec,
        k=bootstrap,
        method="cluster" if cluster is not None and method == "auto" else method,
        seed=seed,
    )
    try:
        report = api.fit(
            from_file,
            sweep=sweep,
            results=results,
            mapping=columns,
            where=where,
            holdout=holdout,
            recipe_b=speedup,
            form=form,
            objective=objective if chosen or form != api.AUTO_FORM else None,
            bootstrap=spec,
            level=level,
            predict=predict or (),
            is_compared=compare,
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
    if as_json:
        emit_json(report.to_dict())
    elif as_tex or as_csv:
        sys.stdout.write(report.to_tex() if as_tex else report.to_csv())
    else:
        from scalelab.cli.fit_page import print_page

        print_page(report, console(), plot)
    return report.exit_code


def _checked(kind: Any, **values: Any) -> Any:
    """Return an object whose constructor checks values of the command line."""
    return kind(**values)
