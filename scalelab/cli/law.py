"""``scalelab law``: save the law of a fit, show and export it, and list the known laws."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    FromOption,
    JsonOption,
    LevelOption,
    MapOption,
    MetricOption,
    ResultsOption,
    WhereOption,
)
from scalelab.cli.output import console, emit_json
from scalelab.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from scalelab.forecast.law_file import SavedLaw

app = typer.Typer(help="Save, show and export laws.", no_args_is_help=True)


@app.command("save")
def save(
    name: Annotated[
        str, typer.Argument(help="Name in the results folder, or a file that ends in .json.")
    ],
    from_file: FromOption = None,
    sweep: Annotated[
        str | None, typer.Option(help="Sweep to fit; default: the latest with results.")
    ] = None,
    mapping: MapOption = None,
    metric: MetricOption = None,
    where: WhereOption = None,
    form: Annotated[
        str, typer.Option(help="Form of the law, such as chinchilla or gamma; auto: the best.")
    ] = "chinchilla",
    unit: Annotated[
        str | None,
        typer.Option(help="Unit of the loss in the table; default: that of the metric."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Fit runs and save the law.

    The file has the constants, their replicates, the noise of runs, conventions, fitted ranges and
    the origin of the rows. `scalelab decide --law` takes it.

    Example: scalelab law save demo --sweep demo
    """
    from scalelab import api
    from scalelab.api.laws import save_law
    from scalelab.forecast.allocate import LAW
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import Reading

    report = api.fit(
        from_file,
        sweep=sweep,
        results=results,
        mapping=parse_map(mapping or []),
        where=where,
        form=form,
        forecaster=LAW,
        reading=Reading(metric=metric),
    )
    place = save_law(report, name, results=results, unit=unit, replace=replace)
    if as_json:
        emit_json({"schema": 1, "command": "law save", "path": place, "form": report.fit.form})
        return EXIT_OK
    out = console()
    wraps = not out.is_terminal
    out.print(f"{place}: {report.fit.form} law of {report.fit.n_rows} rows", soft_wrap=wraps)
    shown = name if name.endswith(".json") else place.stem
    out.print(f"Next: scalelab decide --law {shown} --flops 1e22", soft_wrap=wraps)
    return EXIT_OK


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Law file, or name of a saved or published law.")],
    as_python: Annotated[
        bool, typer.Option("--python", help="Print a Python function that needs no package.")
    ] = False,
    as_tex: Annotated[
        bool, typer.Option("--tex", help="Print the formula and constants as LaTeX.")
    ] = False,
    level: LevelOption = 0.9,
    results: ResultsOption = DEFAULT_RESULTS,
    as_json: JsonOption = False,
) -> int:
    """Show a law: constants, fitted ranges, origin.

    Example: scalelab law show besiroglu --python > law.py
    """
    from scalelab.api.laws import load_law
    from scalelab.forecast.law_export import to_python, to_tex

    if as_json + as_python + as_tex > 1:
        raise UsageError(
            "more than one of --json, --python and --tex",
            "one of them",
            "Keep one, for example --python.",
        )
    saved = load_law(name, results=results)
    intervals = saved.intervals(level)
    if as_python:
        sys.stdout.write(to_python(saved))
    elif as_tex:
        sys.stdout.write(to_tex(saved, intervals, level))
    elif as_json:
        emit_json(
            {
                "schema": 1,
                "command": "law show",
                "level": level,
                "params": intervals,
                "law": saved.to_dict(),
            }
        )
    else:
        _print(saved, level)
    return EXIT_OK


@app.command("list")
def list_(results: ResultsOption = DEFAULT_RESULTS, as_json: JsonOption = False) -> int:
    """List the saved and the published laws.

    Example: scalelab law list
    """
    from scalelab.api.laws import list_laws
    from scalelab.cli.layout import Fitting, number_table
    from scalelab.errors import DataError

    found = list_laws(results)
    if as_json:
        rows = [
            {"name": name, "error": each.as_dict()}
            if isinstance(each, DataError)
            else {
                "name": name,
                "form": each.law.name,
                "params": each.law.params,
                "has_intervals": len(each.draws) > 0,
                "provenance": each.provenance,
            }
            for name, each in found.items()
        ]
        emit_json({"schema": 1, "command": "law list", "laws": rows})
        return EXIT_OK
    table = number_table(
        *("law", "form", "intervals", "date", "source"),
        texts=("law", "form", "intervals", "date", "source"),
    )
    for name, each in found.items():
        if isinstance(each, DataError):
            table.add_row(name, "", "", "", f"cannot be read: {each.given}")
            continue
        has = "yes" if len(each.draws) else "no"
        table.add_row(name, each.law.name, has, str(each.provenance.get("date", "")), each.source)
    console().print(Fitting(table))
    return EXIT_OK


def _print(saved: SavedLaw, level: float) -> None:
    import math

    from scalelab.cli.layout import Fitting, number_table

    out = console()
    wraps = not out.is_terminal
    out.print(f"{saved.name}: form {saved.law.name}", style="bold", soft_wrap=wraps)
    out.print(
        f"Predicts {saved.label} in {saved.unit}. N counts: {saved.param_convention}. "
        f"C counts: {saved.flop_convention}.",
        soft_wrap=wraps,
    )
    intervals = saved.intervals(level)
    has_limits = any(math.isfinite(each.low) for each in intervals.values())
    head = (f"{100 * level:g} % interval",) if has_limits else ()
    table = number_table("constant", "value", *head, texts=("constant",))
    for name, each in intervals.items():
        limits = (f"[{each.low:.6g}, {each.high:.6g}]",) if has_limits else ()
        table.add_row(name, f"{each.value:.6g}", *limits)
    out.print(Fitting(table))
    if not has_limits:
        out.print("This law has no intervals: only its constants are known.", soft_wrap=wraps)
    if saved.domain:
        table = number_table("fitted rows", "smallest", "largest", texts=("fitted rows",))
        for name, (low, high) in saved.domain.items():
            table.add_row(name, f"{low:.4g}", f"{high:.4g}")
        out.print(Fitting(table))
    for key, value in saved.provenance.items():
        out.print(f"{key.replace('_', ' ')}: {value}", soft_wrap=wraps)
