"""``scalelab predict``: forecast runs, and register the forecasts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    FromOption,
    JsonOption,
    LevelOption,
    MapOption,
    ResultsOption,
    WhereOption,
    given_options,
)
from scalelab.cli.output import console, emit_json, runnable
from scalelab.errors import EXIT_OK, NotIdentifiedError, ScalelabError, UsageError

if TYPE_CHECKING:
    from scalelab.api.reports import FitReport
    from scalelab.forecast.allocate import Forecast

FIT_OPTION, COMMAND = "--predict ", "scalelab predict "
FROM_FIT = ("source", "n_rows", "param_convention", "flop_convention", "level", "forms")
OF_RUNS = ("from_file", "sweep", "mapping", "where", "forecaster", "register")
"""Options of a fit, which do not apply with --law."""
LAW_ONLY = ("at_bound", "misfit", "approach", "edge", "off_centre", "drifting", "no_interval")
"""Beginnings of the codes of warnings that do not concern the averaged forecaster."""


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
    where: WhereOption = None,
    forecaster: Annotated[
        str,
        typer.Option(
            help="averaged: several forms averaged by evidence with a smooth misfit. law: the law "
            "that `scalelab fit` fits."
        ),
    ] = "averaged",
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
    from scalelab.api.predictions import law_answers
    from scalelab.records.forecasts import forecast_file, forecast_path
    from scalelab.store.read_options import parse_map

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
        )
    except ScalelabError as error:
        # These messages name the option of `scalelab fit`.
        raise type(error)(
            error.given.replace(FIT_OPTION, "question "),
            error.allowed,
            error.do.replace(FIT_OPTION, COMMAND),
        ) from None
    if not report.forecasts:
        reason = next((w.message for w in report.warnings if w.code == "not_identified"), "")
        raise NotIdentifiedError(
            f"rows that do not determine the law. {reason}".rstrip(),
            "an identified law",
            f"Use `scalelab predict {' '.join(questions)} --forecaster averaged`, which answers "
            "where the runs determine the asked loss.",
        )
    laws = () if report.averaged is None else law_answers(report)
    kept = None if register is None else api.register(report, register, results=results)
    path = None if kept is None else forecast_path(results, kept.name)
    if as_json:
        emit_json(_as_dict(report, laws, path))
        return EXIT_OK
    _print_page(report, laws)
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
    return EXIT_OK


def _predict_by(
    name: str, questions: list[str], level: float, results: Path, *, as_json: bool
) -> int:
    """Print the forecasts of a saved or published law."""
    from scalelab import api
    from scalelab.api.fits import forecasts
    from scalelab.cli.fit_page import ANSWER_STYLE, DIM_STYLE, answer

    saved = api.load_law(name, results=results)
    found = forecasts(saved, *questions, level=level)
    if as_json:
        emit_json(
            {
                "schema": 1,
                "command": "predict",
                "law": {"name": saved.name, "form": saved.law.name, "source": saved.source},
                "predictions": [each.to_dict() for each in found],
            }
        )
        return EXIT_OK
    out = console()
    for each in found:
        line = answer(each, saved.law.target)
        out.print(line, style=ANSWER_STYLE, soft_wrap=not out.is_terminal)
    out.print(
        f"Law {saved.name}, form {saved.law.name}: {saved.source}. Counting: N "
        f"{saved.param_convention}; forecasts use C = 6 N D.",
        style=DIM_STYLE,
        soft_wrap=not out.is_terminal,
    )
    return EXIT_OK


def _as_dict(
    report: FitReport, laws: tuple[Forecast | None, ...], path: Path | None
) -> dict[str, Any]:
    found = report.to_dict()
    return {
        "schema": 1,
        "command": "predict",
        **{name: found[name] for name in ("forecaster", *FROM_FIT)},
        "predictions": found["predictions"],
        "law": {
            "form": found["form"],
            "status": found["status"],
            "predictions": [each and each.to_dict() for each in laws]
            if laws
            else found["predictions"],
        },
        "warnings": found["warnings"],
        "registered": path,
    }


def _print_page(report: FitReport, laws: tuple[Forecast | None, ...]) -> None:
    from scalelab.cli.fit_page import (
        ANSWER_STYLE,
        DIM_STYLE,
        answer,
        print_gravest,
        rows_used,
        without_intervals,
    )

    out = console()
    is_piped = not out.is_terminal
    used = rows_used(report.fit.n_rows, report.warnings)
    warnings = report.warnings
    if report.averaged is None:
        used += without_intervals(warnings)
    else:
        warnings = tuple(w for w in warnings if not w.code.startswith(LAW_ONLY))
    for i, forecast in enumerate(report.forecasts):
        out.print(used + answer(forecast), style=ANSWER_STYLE, soft_wrap=is_piped)
        used = ""
        if laws:
            out.print(_beside(report, forecast, laws[i]), style=DIM_STYLE, soft_wrap=is_piped)
    print_gravest(warnings, out)
    out.print(" ".join(_ground(report)), style=DIM_STYLE, soft_wrap=is_piped)


def _beside(report: FitReport, forecast: Forecast, law: Forecast | None) -> str:
    """Return the answer of the law in one line."""
    from scalelab.cli.fit_page import NEW_RUN, limits, loss_text

    name = f"The {report.fit.form} law alone"
    if law is None:
        why = "it is not identified" if report.fit.status == "not_identified" else "no finite value"
        return f"{name}: no answer ({why})."
    difference = 100 * (law.loss_nats / forecast.loss_nats - 1)
    span = limits(law.pred_low, law.pred_high, f"{100 * law.level:g} % {NEW_RUN}")
    return f"{name}: loss {loss_text(law.loss_nats)}{span} ({difference:+.2f} %)."


def _ground(report: FitReport) -> Iterator[str]:
    from scalelab.units import plural

    rows = report.observations
    yield f"{plural(report.fit.n_rows, 'run')} from {rows.source}."
    if report.averaged is not None:
        weights = (f"{name} {w:.2f}" for name, w in report.averaged.weights.items() if w >= 0.005)
        yield f"Averaged forms: {', '.join(weights)}."
    else:
        yield f"Law: {report.fit.form}, {report.fit.status}."
    yield (
        f"Counting: N {rows.param_convention}, FLOPs {rows.flop_convention}; forecasts use "
        "C = 6 N D."
    )
