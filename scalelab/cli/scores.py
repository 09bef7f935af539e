"""``scalelab scores``: how well registered forecasts predicted the runs that followed."""

from __future__ import annotations

from scalelab.cli.options import DEFAULT_RESULTS, JsonOption, ResultsOption
from scalelab.cli.output import console, emit_json, runnable, warn
from scalelab.errors import EXIT_OK


def scores(results: ResultsOption = DEFAULT_RESULTS, as_json: JsonOption = False) -> int:
    """Score registered forecasts on finished runs.

    A run counts if its N and D differ by at most 2 % and it was not fitted.

    Register a forecast with `scalelab predict --register`.

    Example: scalelab scores --json
    """
    from scalelab import api
    from scalelab.cli.layout import Fitting, number_table
    from scalelab.units import plural

    report = api.scores(results)
    for problem in report.problems:
        warn(problem)
    if as_json:
        emit_json(report.to_dict())
        return EXIT_OK
    out = console()
    if not report.n_forecasts:
        out.print(
            runnable("No registered forecasts. Next: scalelab predict C=1e24 --register NAME"),
            soft_wrap=True,
        )
        return EXIT_OK
    for timing, each in report.overall().items():
        out.print(
            f"Registered {timing}: mean error {100 * each.mean_relative_error:.2f} %, "
            f"coverage {each.coverage:.2f}, CRPS {100 * each.crps:.2f} % "
            f"({plural(each.n_forecasts, 'forecast')}, {plural(each.n_runs, 'run')}).",
            soft_wrap=True,
        )
    table = number_table(
        *("forecast", "question", "run", "source", "registered", "metric"),
        *("predicted", "observed", "error %", "inside", "CRPS %"),
        texts=("forecast", "question", "run", "source", "registered", "metric", "inside"),
    )
    for score in report.scores:
        table.add_row(
            score.name,
            score.asked,
            score.run,
            score.source,
            score.timing,
            f"{score.metric}, {score.unit}",
            f"{score.predicted:.4f}",
            f"{score.observed:.4f}",
            f"{100 * score.relative_error:+.2f}",
            f"{'yes' if score.is_covered else 'no'} ({100 * score.level:g} %)",
            f"{100 * score.crps:.2f}",
        )
    if report.scores:
        out.print(Fitting(table))
    for name, asked in report.waiting:
        out.print(f"No run yet: {name}, {asked}", soft_wrap=True, style="dim")
    return EXIT_OK
