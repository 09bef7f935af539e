"""``scalelab compare``: sweeps, tables and laws over one another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    JsonOption,
    LevelOption,
    MapOption,
    ResultsOption,
)
from scalelab.cli.output import console, emit_json, say
from scalelab.errors import EXIT_OK

if TYPE_CHECKING:
    from scalelab.forecast.comparing import Compared, SourceComparison


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [..]",
            help="Two to six sweeps, tables (public:NAME or a file) or laws. The first is the "
            "reference.",
        ),
    ],
    results: ResultsOption = DEFAULT_RESULTS,
    mapping: MapOption = None,
    form: Annotated[str, typer.Option(help="Law that is fitted to runs.")] = "chinchilla",
    metric: Annotated[
        str | None,
        typer.Option(
            help="Which loss of the runs: an evaluation set such as code, or bpb:code (bits per "
            "byte), which compares over tokenizers. Default: heldout."
        ),
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            help="Compute at which optima and losses are compared, such as 1e21; default: the "
            "largest within the runs of all."
        ),
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap replicates of each fit.")] = 1000,
    level: LevelOption = 0.9,
    plot: Annotated[
        Path | None, typer.Option(help="Write the figure to this .png, .svg or .pdf file.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Compare the optima and speed-up of sweeps, tables and laws.

    The answer says with how much of the compute a recipe reaches the loss of the first one at
    `--flops`, and how the losses differ there. It needs losses of one text, and of one tokenizer or
    in bits per byte.

    Example: scalelab compare public:chinchilla public:llama3 besiroglu
    """
    from scalelab.api.comparisons import compare_runs
    from scalelab.store.read_options import parse_map
    from scalelab.units import parse_quantity

    if plot is not None:
        from scalelab.report.plots import check_path

        check_path(plot)
    found = compare_runs(
        sources,
        results=results,
        mapping=parse_map(mapping or []),
        form=form,
        bootstrap=bootstrap,
        metric=metric,
        flops=None if flops is None else parse_quantity(flops, what="--flops"),
        level=level,
    )
    if plot is not None:
        from scalelab.report.plots import write_figure
        from scalelab.report.plots_compare import comparison_figure

        write_figure(lambda: comparison_figure(found), plot)
    if as_json:
        emit_json(found.to_dict())
    else:
        _print(found)
        if plot is not None:
            say(f"Figure: {plot}", console())
    return EXIT_OK


def _print(found: SourceComparison) -> None:
    from scalelab.cli.fit_page import ANSWER_STYLE
    from scalelab.cli.fit_tables import DIM_STYLE
    from scalelab.cli.layout import Fitting, number_table
    from scalelab.units import format_flops

    out = console()
    for answer, details in zip(found.answers, found.details, strict=True):
        say(answer, out, style=ANSWER_STYLE)
        for each in details:
            say(each, out)
    at = format_flops(found.flops)
    table = number_table(
        *("source", "runs", "verdict", "a (N_opt)", f"N at {at}", "D"),
        *(["speed-up"] if found.has_speedup else []),
        texts=("source", "verdict"),
    )
    for part in found.parts:
        cells = _row(part, is_first=part is found.parts[0])
        table.add_row(*cells[: len(table.columns)])
    out.print(Fitting(table))
    say(f"In brackets: {100 * found.level:g} % confidence intervals.", out, style=DIM_STYLE)


def _row(part: Compared, *, is_first: bool) -> tuple[str, ...]:
    from scalelab.cli.interval_text import interval_text, size_text

    source, forecast = part.source, part.forecast
    speedup = "reference" if is_first else "-"
    if part.speedup is not None:
        speedup = interval_text(part.speedup)
    return (
        source.name,
        "law" if source.rows is None else f"{len(source.rows):,}",
        source.verdict,
        interval_text(None if source.exponents is None else source.exponents[0]),
        size_text(None if forecast is None else forecast.n_params) or "-",
        size_text(None if forecast is None else forecast.n_tokens) or "-",
        speedup,
    )
