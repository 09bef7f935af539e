"""``scalelab tune``: the laws of the best learning rate and batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scalelab.cli.options import JsonOption

if TYPE_CHECKING:
    from scalelab.api.tuning import TuningAnswer

TABLE, ASK = "From runs made elsewhere", "What is asked"


def tune(
    from_file: Annotated[
        Path | None,
        typer.Option("--from", help="CSV or Parquet file of runs.", rich_help_panel=TABLE),
    ] = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="OURS=THEIRS,..: n_params, n_tokens, loss_nats, lr, batch_tokens or batch_seqs, "
            "cluster, from a column or SQL expression of the file.",
            rich_help_panel=TABLE,
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(help="SQL condition on the file's columns.", rich_help_panel=TABLE),
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=1, help="Tokens in a sequence; a batch counts sequences."),
    ] = None,
    predict: Annotated[
        str | None,
        typer.Option(help="N=1e9,D=1e11: the model to answer for.", rich_help_panel=ASK),
    ] = None,
    level: Annotated[
        float, typer.Option(help="Level of every interval.", rich_help_panel=ASK)
    ] = 0.9,
    bootstrap: Annotated[
        int, typer.Option(help="Bootstrap replicates; 0: none.", rich_help_panel=ASK)
    ] = 300,
    seed: Annotated[int, typer.Option(help="Seed of resampling.", rich_help_panel=ASK)] = 0,
    as_json: JsonOption = False,
) -> int:
    """Fit power laws of the best learning rate and batch in N and D.

    Example: scalelab tune --from runs.csv --map lr=peak_lr --predict N=1e9,D=1e11 --seq-len 2048
    """
    from scalelab.api.tuning import tune_law
    from scalelab.cli.output import emit_json
    from scalelab.errors import UsageError
    from scalelab.store.tables import parse_map

    if from_file is None:
        raise UsageError("no runs", "a table of runs", "Give --from FILE.csv.")
    answer = tune_law(
        from_file,
        mapping=parse_map(mapping or []),
        where=where,
        seq_len=seq_len,
        predict=predict,
        level=level,
        n_replicates=bootstrap,
        seed=seed,
    )
    if as_json:
        emit_json(answer.to_dict())
    else:
        print_answer(answer)
    return answer.exit_code


def print_answer(answer: TuningAnswer) -> None:
    """Print the laws, what they say for the model asked for, and what published rules say."""
    from rich.table import Table

    from scalelab.cli.output import console

    out = console()
    law = answer.law
    if law is not None:
        share = f"{law.level:.0%}"
        table = Table(box=None, title=f"{law.n_rows} runs, {law.n_cells} cells; {share} intervals")
        for column in ("k N^p D^q", "k", "p", "q"):
            table.add_column(column)
        for name, one in (("lr", law.lr()), ("batch, tokens", law.batch_tokens())):
            if one is not None:
                table.add_row(name, *(_in_words(item) for item in (one.k, one.p, one.q)))
        out.print(table)
    if answer.lr is not None and answer.n_params is not None and answer.n_tokens is not None:
        _print_prediction(answer, answer.n_params, answer.n_tokens)
    for warning in answer.warnings:
        out.print(f"{warning.code}: {warning.message}", style="yellow", soft_wrap=True)


def _print_prediction(answer: TuningAnswer, n_params: float, n_tokens: float) -> None:
    from rich.table import Table

    from scalelab.cli.output import console
    from scalelab.theory.schedule import published_values
    from scalelab.units import format_quantity

    size = f"N {format_quantity(n_params)}, D {format_quantity(n_tokens)}"
    table = Table(box=None, title=size)
    for column in ("rule", "lr", "batch, tokens", "N counts", "source"):
        table.add_column(column)
    lr, batch = (_in_words(item) for item in (answer.lr, answer.batch_tokens))
    convention = "" if answer.law is None else answer.law.param_convention
    table.add_row("this law", lr, batch, convention, "these runs")
    for row in published_values(n_params, n_tokens):
        batch = "" if row.batch_tokens is None else f"{row.batch_tokens:,.0f}"
        table.add_row(row.name, f"{row.lr:.4g}", batch, row.param_convention, row.source)
    console().print(table)


def _in_words(found: object) -> str:
    from scalelab.tune.law import Interval

    if not isinstance(found, Interval):
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:.4g}"
    return f"{found.value:.4g} ({found.low:.4g}, {found.high:.4g})"
