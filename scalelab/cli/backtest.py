"""``scalelab backtest``: forecast the largest runs of tables from the others, and score that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    BEST_HELP,
    CONVENTION_HELP,
    DEFAULT_RESULTS,
    FORMAT_HELP,
    FROM_HELP,
    LAST_HELP,
    MEAN_HELP,
    UNFINISHED_HELP,
    UNIT_HELP,
    ExcludeOption,
    JsonOption,
    LevelOption,
    MapOption,
    MetricOption,
    ResultsOption,
    WhereOption,
    counted_columns,
)
from scalelab.cli.output import console, emit_json
from scalelab.errors import EXIT_OK
from scalelab.units import plural

if TYPE_CHECKING:
    from scalelab.forecast.backtest import Score

NO_COMMON_CUT = "No cut has an answer of two forecasters."


def backtest(
    from_file: Annotated[
        Path | None, typer.Option("--from", help=FROM_HELP + " `public:ALL`: all public tables.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Sweep to test; default: the latest with results.")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    mapping: MapOption = None,
    metric: MetricOption = None,
    where: WhereOption = None,
    format: Annotated[str | None, typer.Option("--format", help=FORMAT_HELP)] = None,
    loss_unit: Annotated[str | None, typer.Option("--loss-unit", help=UNIT_HELP)] = None,
    include_unfinished: Annotated[
        bool, typer.Option("--include-unfinished", help=UNFINISHED_HELP)
    ] = False,
    best_of: Annotated[str | None, typer.Option("--best-of", help=BEST_HELP)] = None,
    mean_of: Annotated[str | None, typer.Option("--mean-of", help=MEAN_HELP)] = None,
    last_of: Annotated[str | None, typer.Option("--last-of", help=LAST_HELP)] = None,
    exclude: ExcludeOption = None,
    param_convention: Annotated[
        str | None, typer.Option("--param-convention", help=CONVENTION_HELP)
    ] = None,
    forecaster: Annotated[
        list[str] | None,
        typer.Option(
            help="law, averaged, auto (what --form auto chooses) or a form such as gamma; "
            "repeatable. Default: law and averaged."
        ),
    ] = None,
    factor: Annotated[
        float,
        typer.Option(min=1.0, help="Leave out rows within this factor of the largest N, D or C."),
    ] = 2.0,
    level: LevelOption = 0.9,
    time_limit: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds for one fit of one forecaster; a longer fit is no answer."
        ),
    ] = 60.0,
    as_json: JsonOption = False,
) -> int:
    """Score forecasts of the largest runs of a table.

    They are left out and forecast from the other rows; the answer is error and coverage.

    The largest sizes, the longest runs and the largest budgets are left out in turn.

    Example: scalelab backtest --from public:ALL
    """
    from scalelab.api.backtests import backtest as run
    from scalelab.cli.layout import Fitting, number_table
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import reading_of_texts

    report = run(
        from_file,
        sweep=sweep,
        results=results,
        mapping=counted_columns(param_convention, parse_map(mapping or [])),
        where=where,
        forecasters=forecaster,
        factor=factor,
        level=level,
        time_limit_s=time_limit,
        reading=reading_of_texts(
            format=format,
            loss_unit=loss_unit,
            includes_unfinished=include_unfinished,
            best_of=best_of,
            mean_of=mean_of,
            last_of=last_of,
            metric=metric,
            exclude=exclude,
        ),
    )
    if as_json:
        emit_json(report.to_dict())
        return EXIT_OK
    out = console()
    table = number_table(
        *("table", "cut", "rows", "forecaster", "error %", "covered %", "width"),
        texts=("table", "cut", "forecaster"),
    )
    for each in report.scores:
        found = each.holdout
        table.add_row(
            each.table,
            each.cut,
            str(each.n_rows),
            each.forecaster,
            each.reason if found is None else f"{100 * each.error:.2f}",
            *_interval_cells(each),
        )
    out.print(Fitting(table))
    own, pairs = report.means(), report.pairs()
    for mean in own:
        out.print(_sentence(mean, level), soft_wrap=True)
    if len(own) > 1 and not pairs:
        out.print(NO_COMMON_CUT)
    elif any(mean not in own for pair in pairs for mean in pair):
        out.print("On the cuts that both answer:")
        for pair in pairs:
            out.print(f"  {_pair_sentence(pair)}", soft_wrap=True)
    best = report.best_form()
    if len(best):
        out.print(
            f"best single form of each table ({', '.join(best['forecaster'].unique())}), chosen by "
            f"the rows that are left out: mean error {100 * best['mean_relative_error'].mean():.2f}"
            f" %, coverage {best['coverage'].mean():.2f}.",
            soft_wrap=True,
        )
    for name, reason in report.skipped.items():
        out.print(f"not tested: {name}: {reason}", soft_wrap=True, style="dim")
    return EXIT_OK


def _interval_cells(score: Score) -> tuple[str, str]:
    """Return the cells of coverage and width."""
    if score.holdout is None:
        return "", ""
    if not score.holdout.n_intervals:
        return "no interval", ""
    return f"{100 * score.coverage:.0f}", f"{score.holdout.mean_width:.3f}"


def _pair_sentence(pair: Sequence[Mapping[str, Any]]) -> str:
    names = " and ".join(mean["forecaster"] for mean in pair)
    errors = " and ".join(f"{100 * mean['mean_relative_error']:.2f} %" for mean in pair)
    covered = " and ".join(
        "none" if mean["coverage"] is None else f"{mean['coverage']:.2f}" for mean in pair
    )
    tables = plural(pair[0]["n_tables"], "table")
    return f"{names}: mean error {errors}, coverage {covered} (mean over {tables})."


def _sentence(mean: Mapping[str, Any], level: float) -> str:
    name, error = mean["forecaster"], mean["mean_relative_error"]
    if error is None:
        return f"{name}: no answer."
    without = mean["n_without_intervals"]
    covered = (
        "no intervals"
        if mean["coverage"] is None
        else f"coverage {mean['coverage']:.2f} at a nominal {level:g}"
    )
    more = f"; {plural(without, 'cut')} without intervals" if without else ""
    return (
        f"{name}: mean error {100 * error:.2f} %, {covered} (mean over "
        f"{plural(mean['n_tables'], 'table')}{more})."
    )
