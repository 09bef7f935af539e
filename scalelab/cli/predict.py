"""``scalelab predict``: forecast runs, and register the forecasts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    ExcludeOption,
    ForecasterOption,
    FromOption,
    JsonOption,
    LevelOption,
    MapOption,
    MetricOption,
    ResultsOption,
    WhereOption,
    given_options,
)
from scalelab.cli.output import console, emit_json, runnable, say
from scalelab.errors import EXIT_OK, ScalelabError, UsageError

if TYPE_CHECKING:
    from scalelab.api.reports import FitReport

FIT_OPTION, COMMAND = "--predict ", "scalelab predict "
FROM_FIT = (
    "metric",
    "unit",
    "source",
    "n_rows",
    "param_convention",
    "flop_convention",
    "level",
    "forms",
)
OF_RUNS = ("from_file", "sweep", "mapping", "metric", "where", "exclude", "forecaster", "register")
"""Options of a fit, which do not apply with --law."""


def predict(
    context: typer.Context,
    questions: Annotated[
        list[str],
        typer.Argument(
            help="C=1e24, N=7e9 (D compute-optimal), N=7B,D=2T or D=1T; one or several.",
            metavar="QUESTION",
        ),
    ],
    from_file: FromOption = None,
    sweep: Annotated[
        str | None, typer.Option(help="Sweep to predict from; default: the latest with results.")
    ] = None,
    mapping: MapOption = None,
    metric: MetricOption = None,
    exclude: ExcludeOption = None,
    where: WhereOption = None,
    forecaster: ForecasterOption = None,
    law: Annotated[
        str | None,
        typer.Option(
            help="Law file or name of a saved or published law (see `scalelab law list`). "
            "Default: fit the runs."
        ),
    ] = None,
    level: LevelOption = 0.9,
    register: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Freeze the forecasts in forecasts/NAME.json of the results folder; `scalelab "
            "scores` scores them.",
        ),
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Predict the loss of larger runs, with intervals.

    Example: scalelab predict N=7e9,D=2e12 C=1e24 --from runs.csv --register before-7b
    """
    from scalelab import api
    from scalelab.records.forecasts import forecast_file, forecast_path
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import reading_of_texts

    if law is not None:
        options = given_options(context)
        if idle := [options[name] for name in OF_RUNS if name in options]:
            raise UsageError(
                f"--law with {', '.join(idle)}",
                "a law that is known, or options of a fit",
                f"Remove --law {law}, or remove {', '.join(idle)}.",
            )
    if register is not None:
        forecast_file(results, register)  # a taken name is refused before the fit
    try:
        if law is not None:
            return _predict_by(law, questions, level, results, as_json=as_json)
        report = api.fit(
            from_file,
            sweep=sweep,
            results=results,
            mapping=parse_map(mapping or []),
            where=where,
            level=level,
            predict=questions,
            forecaster=forecaster,
            reading=reading_of_texts(metric=metric, exclude=exclude),
        )
    except ScalelabError as error:
        # These messages name the option of `scalelab fit`.
        raise type(error)(
            error.given.replace(FIT_OPTION, "question "),
            error.allowed,
            error.do.replace(FIT_OPTION, COMMAND),
        ) from None
    # Registered forecasts never change, so all questions are answered first.
    kept = None
    if register is not None and not report.refusals:
        kept = api.register(report, register, results=results)
    path = None if kept is None else forecast_path(results, kept.name)
    if as_json:
        emit_json(_as_dict(report, path))
        return report.exit_code
    _print_page(report)
    if kept is not None:
        if begun := [run for each in kept.forecasts for run in each.begun]:
            console().print(
                f"Runs at these points had begun or were imported already ({', '.join(begun[:3])}"
                f"{', ..' if len(begun) > 3 else ''}): their scores are kept apart, as `after the "
                "fact`.",
                soft_wrap=True,
            )
        console().print(
            runnable(f"Registered in {path}. Next, after the run: `scalelab scores`"),
            soft_wrap=True,
        )
    elif register is not None:
        console().print(f"Not registered as {register}: a question has no answer.", soft_wrap=True)
    return report.exit_code


def _predict_by(
    name: str, questions: list[str], level: float, results: Path, *, as_json: bool
) -> int:
    """Print the forecasts of a saved or published law."""
    from scalelab import api
    from scalelab.api.forecasts import forecasts
    from scalelab.cli.fit_page import ANSWER_STYLE, answer
    from scalelab.cli.fit_tables import DIM_STYLE
    from scalelab.forecast.allocate import LAW
    from scalelab.forecast.fit_report import SCHEMA

    saved = api.load_law(name, results=results)
    found = forecasts(saved, *questions, level=level)
    if as_json:
        emit_json(
            {
                "schema": SCHEMA,
                "command": "predict",
                "status": "ok",
                "forecaster": LAW,
                "law": {"name": saved.name, "form": saved.law.name, "source": saved.source},
                "metric": saved.metric,
                "unit": saved.unit,
                "predictions": [each.to_dict() for each in found],
            }
        )
        return EXIT_OK
    out = console()
    for each in found:
        line = answer(each, f"law {saved.name}", saved.label, saved.unit)
        out.print(line, style=ANSWER_STYLE, soft_wrap=not out.is_terminal)
    out.print(
        f"Law {saved.name}, form {saved.law.name}: {saved.source}. Counting: N "
        f"{saved.param_convention}; forecasts use C = 6 N D.",
        style=DIM_STYLE,
        soft_wrap=not out.is_terminal,
    )
    return EXIT_OK


def _as_dict(report: FitReport, path: Path | None) -> dict[str, Any]:
    from scalelab.forecast.headline import headline

    found = report.to_dict()
    return {
        "schema": found["schema"],
        "command": "predict",
        **{name: found[name] for name in ("status", "forecaster", *FROM_FIT)},
        **{name: found[name] for name in ("predictions", "refused")},
        "law": {
            "form": found["form"],
            "status": found["law_status"],
            "predictions": found["predictions"]
            if report.averaged is None
            else found["law_predictions"],
        },
        "verdict": headline(report).verdict,
        "warnings": found["warnings"],
        "registered": path,
    }


def _print_page(report: FitReport) -> None:
    from scalelab.cli.fit_page import (
        print_answers,
        print_verdict,
        rows_used,
        without_intervals,
    )
    from scalelab.cli.fit_tables import DIM_STYLE
    from scalelab.forecast.headline import headline
    from scalelab.forecast.verdict import Verdict

    out = console()
    used = rows_used(report.fit.n_rows, report.warnings) + without_intervals(report.answer_warnings)
    print_answers(report, used, out)
    head = headline(report)
    print_verdict(Verdict(label=head.verdict, warnings=head.warnings), out)
    out.print()
    say(" ".join(_ground(report)), out, style=DIM_STYLE)


def _ground(report: FitReport) -> Iterator[str]:
    from scalelab.forecast.headline import laws_words
    from scalelab.units import plural

    rows = report.observations
    yield f"{plural(report.fit.n_rows, 'run')} from {rows.source}."
    if report.averaged is not None:
        yield f"Laws of the average: {laws_words(report.averaged)}."
    else:
        yield f"Law: {report.fit.form}, {report.law_status}."
    yield (
        f"Counting: N {rows.param_convention}, FLOPs {rows.flop_convention}; forecasts use "
        "C = 6 N D."
    )
