"""The ``report`` command: one offline HTML file, and figures for a paper."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    FROM_HELP,
    ExcludeOption,
    ForecasterOption,
    LevelOption,
    MapOption,
    MetricOption,
    ResultsOption,
)
from scalelab.cli.output import console, emit_json, say, write_text
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.api.reports import FitReport
    from scalelab.records.notes import Note


def report(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    from_file: Annotated[Path | None, typer.Option("--from", help=FROM_HELP)] = None,
    sweep: Annotated[str | None, typer.Option(help="Sweep to report; default: the latest.")] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    mapping: MapOption = None,
    metric: MetricOption = None,
    exclude: ExcludeOption = None,
    form: Annotated[
        str,
        typer.Option(help="Form of the law; mixture: the best weights of the sources of text."),
    ] = "chinchilla",
    target: Annotated[
        str | None,
        typer.Option(
            help="With --form mixture: the loss to minimise, such as 0.5*code+0.5*web. Default: "
            "the mean of all evaluation sets."
        ),
    ] = None,
    level: LevelOption = 0.9,
    predict: Annotated[
        list[str] | None,
        typer.Option(help="Model to predict, such as C=1e24 or N=7e9; repeatable."),
    ] = None,
    forecaster: ForecasterOption = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="Sweep, table or law to compare with, as in `scalelab compare`; repeatable."
        ),
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Folder for SVG figures.")] = None,
    pdf: Annotated[Path | None, typer.Option(help="Folder for PDF figures.")] = None,
    png: Annotated[Path | None, typer.Option(help="Folder for PNG figures.")] = None,
    tex: Annotated[
        bool, typer.Option("--tex", help="Also write the parameters as LaTeX, next to --out.")
    ] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Also write all numbers as CSV, next to --out.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> int:
    """Write a fit as one HTML file that opens offline.

    Figures and tables can be written beside it.

    Example: scalelab report --from runs.csv --out report.html --svg figures
    """
    from scalelab import api
    from scalelab.api.comparisons import compare_with
    from scalelab.api.metrics import fit_metrics, list_metrics
    from scalelab.cli.fit_page import next_command, print_headline
    from scalelab.forecast.headline import headline
    from scalelab.report.html import render
    from scalelab.report.plots import draw_fit
    from scalelab.store.metric import to_compare
    from scalelab.store.read_options import parse_map
    from scalelab.store.reading import reading_of_texts

    beside = [
        out.with_suffix(suffix) for suffix, is_asked in ((".tex", tex), (".csv", csv)) if is_asked
    ]
    _check_paths(out, beside, from_file)
    command = "scalelab " + " ".join(shlex.quote(word) for word in sys.argv[1:])
    if form == "mixture" or target is not None:
        idle = {"--predict": predict, "--forecaster": forecaster, "--metric": metric,
                "--exclude": exclude, "--tex": tex, "--csv": csv, "--svg": svg, "--pdf": pdf,
                "--png": png}  # fmt: skip
        _refuse_idle(form, [flag for flag, value in idle.items() if value])
        return _mixture_report(
            out, from_file, sweep=sweep, results=results, mapping=parse_map(mapping or []),
            target=target, level=level, command=command, as_json=as_json,
        )  # fmt: skip
    options: dict[str, Any] = {
        "sweep": sweep,
        "results": results,
        "mapping": parse_map(mapping or []),
    }
    asked: dict[str, Any] = {"form": form, "level": level, "forecaster": forecaster}
    reading = reading_of_texts(metric=metric, exclude=exclude)
    found = api.fit(from_file, **options, **asked, predict=predict or (), reading=reading)
    several = to_compare(list_metrics(from_file, **options))
    every = None
    if len(several) > 1:
        every = fit_metrics(
            from_file, **options, **asked, reading=reading_of_texts(metric=None, exclude=exclude)
        )
    runs = next_command(context)
    head = headline(found, runs)
    told = _notes(found, results, from_file)
    compared = None
    if compare:
        compared = compare_with(
            found.observations.source, found, compare, results=results, form=form, level=level
        )
    write_text(out, render(found, command, head, runs.runs, every, told, compared), "--out")
    for path in beside:
        write_text(path, found.to_tex() if path.suffix == ".tex" else found.to_csv(), "--out")
    written = [str(path) for path in (out, *beside)]
    for suffix, folder in ((".svg", svg), (".pdf", pdf), (".png", png)):
        if folder is not None:
            draw_fit(found, folder / f"fit{suffix}")
            written.append(str(folder / f"fit{suffix}"))
    if as_json:
        emit_json({"written": written, "status": found.status, "law_status": found.law_status})
    else:
        print_headline(found, head, console())
        console().print()
        for name in written:
            console().print(f"written: {name}", soft_wrap=True)
    return found.exit_code


def _notes(found: FitReport, results: Path, from_file: Path | None) -> tuple[Note, ...]:
    """Return the notes about the sweep and the runs of a report; a file has none."""
    from scalelab.records.notes import read_notes
    from scalelab.records.parts import RUN

    if from_file is not None:
        return ()
    rows = found.observations
    runs = set() if rows.names is None else {str(name) for name in rows.names}
    words = rows.source.split()
    return tuple(
        each for each in read_notes(results) if each.about in (runs if each.kind == RUN else words)
    )


def _refuse_idle(form: str, flags: list[str]) -> None:
    """Raise UsageError for options that the report of a mixture does not use."""
    if form != "mixture":
        raise UsageError(
            f"--target with --form {form}",
            "--form mixture, whose report has the weights with the lowest target",
            "Add --form mixture, or remove --target.",
        )
    if flags:
        raise UsageError(
            f"{', '.join(flags)} with --form mixture",
            "options of the runs, --target, --level and --out",
            f"Remove {', '.join(flags)}.",
        )


def _mixture_report(
    out: Path,
    from_file: Path | None,
    *,
    sweep: str | None,
    results: Path,
    mapping: dict[str, str],
    target: str | None,
    level: float,
    command: str,
    as_json: bool,
) -> int:
    """Write the report of mixture laws, and return the exit code."""
    from scalelab.api.mixtures import fit_mixture, parse_target, target_sets
    from scalelab.report.mixture_answer import mixture_answer
    from scalelab.report.mixture_html import render_mixture

    goal = None if target is None else parse_target(target)
    fit = fit_mixture(from_file, sweep=sweep, results=results, mapping=mapping, level=level)
    answer = mixture_answer(fit, None if goal is None else target_sets(fit, goal))
    write_text(out, render_mixture(answer, command), "--out")
    if as_json:
        emit_json({"written": [str(out)], "weights": answer.best.weights})
        return 0
    say(f"{answer.sentence()} {answer.basis()}", console())
    console().print()
    console().print(f"written: {out}", soft_wrap=True)
    return 0


def _check_paths(out: Path, beside: list[Path], from_file: Path | None) -> None:
    """Raise UsageError if an output file has a wrong ending or would overwrite the input."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(
            f"--out {out}", "a file that ends in .html or .htm", f"Write --out {out.stem}.html."
        )
    for path in (out, *beside):
        if from_file and from_file.exists() and path.exists() and path.samefile(from_file):
            raise UsageError(
                f"--out {out}, which would overwrite the input file {path}",
                "another file name",
                f"Write --out {out.with_name(out.stem + '-report.html')}.",
            )
