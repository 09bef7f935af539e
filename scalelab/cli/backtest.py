"""``scalelab backtest``: forecast the largest runs of tables from the others, and score that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    FROM_HELP,
    JsonOption,
    LevelOption,
    MapOption,
    MetricOption,
    ResultsOption,
    WhereOption,
)
from scalelab.cli.output import console, emit_json
from scalelab.errors import EXIT_OK
from scalelab.units import plural

NO_COMMON_CUT = "No cut has an answer of every forecaster."


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
    from scalelab.store.reading import Reading

    report = run(
        from_file,
        sweep=sweep,
        results=results,
        mapping=parse_map(mapping or []),
        where=where,
        forecasters=forecaster,
        factor=factor,
        level=level,
        reading=Reading(metric=metric),
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
            "" if found is None else f"{100 * each.coverage:.0f}",
            "" if found is None else f"{found.mean_width:.3f}",
        )
    out.print(Fitting(table))
    own, common = report.means(), report.means(is_common=True)
    for mean in own:
        out.print(_sentence(mean, level), soft_wrap=True)
    if common != own:
        out.print("On the cuts that every forecaster answers:" if common else NO_COMMON_CUT)
        for mean in common:
            out.print(f"  {_sentence(mean, level)}", soft_wrap=True)
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


def _sentence(mean: Mapping[str, Any], level: float) -> str:
    name, error = mean["forecaster"], mean["mean_relative_error"]
    if error is None:
        return f"{name}: no answer."
    return (
        f"{name}: mean error {100 * error:.2f} %, coverage {mean['coverage']:.2f} at a nominal "
        f"{level:g} (mean over {plural(mean['n_tables'], 'table')})."
    )
