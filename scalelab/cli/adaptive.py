"""``scalelab sweep adaptive``: the runs that teach most about a target for a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import JsonOption
from scalelab.errors import UsageError

if TYPE_CHECKING:
    from scalelab.api.adaptive import PlayReport

PLAY = "On runs that exist"


def adaptive(
    pool: Annotated[
        Path | None,
        typer.Option(
            "--pool", help="Table of runs that exist, to choose among.", rich_help_panel=PLAY
        ),
    ] = None,
    target_rows: Annotated[
        Path | None,
        typer.Option("--target-rows", help="Table of rows to predict.", rich_help_panel=PLAY),
    ] = None,
    budget_share: Annotated[
        float | None,
        typer.Option("--budget-share", help="Of the cost of the whole pool.", rich_help_panel=PLAY),
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="FLOPs to spend.")] = None,
    until_width: Annotated[
        str | None,
        typer.Option(
            "--until-width", help="Stop when the target's 90 % interval is this narrow, as 1%."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the random starts of the fits.")] = 0,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="OURS=THEIRS,..: columns, as in fit.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Choose the runs that shrink a target's prediction interval most per FLOP.

    Example: scalelab sweep adaptive --pool runs.csv --target-rows large.csv --budget-share 0.05
    """
    from scalelab.api.adaptive import play_adaptive
    from scalelab.cli.output import emit_json
    from scalelab.store.tables import parse_map
    from scalelab.units import parse_quantity

    if pool is None or target_rows is None:
        raise UsageError(
            "no --pool with --target-rows",
            "a table of runs and one of rows to predict",
            "Give both.",
        )
    report = play_adaptive(
        pool,
        target_rows,
        budget_share=budget_share,
        budget=None if budget is None else parse_quantity(budget, what="budget"),
        until_width=None if until_width is None else parse_width(until_width),
        seed=seed,
        mapping=parse_map(mapping or []),
    )
    if as_json:
        emit_json(report.to_dict())
    else:
        _print_play(report)
    return 0


def parse_width(text: str) -> float:
    """Return the share that ``1%`` or ``0.01`` names; UsageError when it is none."""
    number, scale = (text[:-1], 0.01) if text.endswith("%") else (text, 1.0)
    try:
        width = float(number) * scale
    except ValueError:
        width = float("nan")
    if not 0 < width < 1:
        raise UsageError(f"--until-width {text!r}", "a share such as 1% or 0.01", "Write it so.")
    return width


def _print_play(report: PlayReport) -> None:
    from scalelab.cli.output import console
    from scalelab.units import format_flops

    answer, out = report.to_dict(), console()
    spend = answer["spend"]
    out.print(
        f"{answer['n_rows']} of {len(report.pool.observations)} runs for "
        f"{format_flops(spend['flops'])} FLOP, {100 * spend['share']:.2f} % of the pool.",
        style="bold",
    )
    errors = answer["relative_error"]
    out.print(
        f"On {len(report.target.observations)} target rows: R^2 {answer['r2']:.3f}, relative error "
        f"{100 * errors['mean']:.2f} % in the mean, {100 * errors['max']:.2f} % at most; "
        f"90 % interval {100 * answer['width']:.2f} % wide."
    )
    forms = ", ".join(f"{form['form']} {form['weight']:.2f}" for form in answer["forms"])
    out.print(f"Forms by weight: {forms}.")
    out.print("Rows (from 0), in order: " + " ".join(str(row) for row in answer["rows"]))
