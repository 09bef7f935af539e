"""``scalelab tune``: the laws of the best learning rate and batch, searched or from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scalelab.cli.options import (
    DEFAULT_RESULTS,
    AllowRepeatsOption,
    ColumnOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    EvalTokensOption,
    FieldOption,
    JsonOption,
    LauncherOption,
    NameOption,
    PrecisionOption,
    ResultsOption,
    ScheduleOption,
    TokenizerOption,
    WorkersOption,
    YesOption,
)
from scalelab.cli.slurm_options import with_launcher, with_slurm_options
from scalelab.cli.sweep_spec import data_table, sweep_from_options, train_table
from scalelab.cli.tune_view import search, show_table_answer
from scalelab.errors import UsageError

TABLE, SEARCH, ASK = "From runs made elsewhere", "Search", "What is asked"


@with_slurm_options
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
    n_params: Annotated[
        str | None,
        typer.Option("--n-params", help="Sizes N, such as 20K..80K:3.", rich_help_panel=SEARCH),
    ] = None,
    n_tokens: Annotated[
        str | None,
        typer.Option(
            "--n-tokens", help="Tokens D at each, such as 500K,1M.", rich_help_panel=SEARCH
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Runs at each N and D.", rich_help_panel=SEARCH)] = 16,
    wave: Annotated[
        int,
        typer.Option(help="Of them, how many are chosen at a time.", rich_help_panel=SEARCH),
    ] = 4,
    lr: Annotated[
        str | None,
        typer.Option(
            "--lr",
            help="Learning rates LOW..HIGH; default 8 times about the rule.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    batch_seqs: Annotated[
        str | None,
        typer.Option(
            "--batch-seqs",
            help="Batches LOW..HIGH in sequences, powers of two, or one; default 4 times about "
            "the rule.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    weight_decay: Annotated[
        str | None,
        typer.Option(
            "--weight-decay", help="Weight decays LOW..HIGH; default 0.1.", rich_help_panel=SEARCH
        ),
    ] = None,
    beta2: Annotated[
        str | None,
        typer.Option("--beta2", help="LOW..HIGH; default 0.95.", rich_help_panel=SEARCH),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune/--no-prune", help="Stop hopeless runs.", rich_help_panel=SEARCH),
    ] = True,
    name: NameOption = None,
    launcher: LauncherOption = "local",
    data: DataOption = None,
    tokenizer: TokenizerOption = None,
    field: FieldOption = None,
    column: ColumnOption = None,
    eval_tokens: EvalTokensOption = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=1, help="Tokens in a sequence; of a table: its batches."),
    ] = None,
    schedule: ScheduleOption = None,
    precision: PrecisionOption = None,
    allow_repeats: AllowRepeatsOption = False,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    results: ResultsOption = DEFAULT_RESULTS,
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
    seed: Annotated[
        int, typer.Option(help="Seed of search and resampling.", rich_help_panel=ASK)
    ] = 0,
    as_json: JsonOption = False,
    *,
    launch: dict[str, Any],
) -> int:
    """Find the best learning rate and batch in N and D: by a search here, or from a table.

    Example: scalelab tune --from runs.csv --map lr=peak_lr --predict N=1e9,D=1e11 --seq-len 2048
    Example: scalelab tune --n-params 20K..80K:3 --n-tokens 500K,1M --name small
    """
    from scalelab.store.tables import parse_map

    has_cells = n_params is not None and n_tokens is not None
    if (from_file is None) != has_cells or (from_file is not None and (n_params or n_tokens)):
        raise UsageError(
            "neither a table nor cells" if from_file is None else "a table and cells to run",
            "--from FILE, or --n-params and --n-tokens",
            "Give one of the two.",
        )
    if from_file is not None:
        return show_table_answer(
            from_file,
            mapping=parse_map(mapping or []),
            where=where,
            seq_len=seq_len,
            predict=predict,
            level=level,
            n_replicates=bootstrap,
            seed=seed,
            as_json=as_json,
        )
    one_batch = int(batch_seqs) if batch_seqs is not None and batch_seqs.isdecimal() else None
    content = {
        "kind": "grid",
        "name": name,
        "n_params": n_params,
        "n_tokens": n_tokens,
        "allow_repeats": allow_repeats,
        "data": data_table(data, tokenizer, field, column, eval_tokens),
        "train": train_table(seq_len, one_batch, None, None, schedule, precision, None),
    }
    from scalelab.tune.spec import TuneSpec, parse_ends

    spec = TuneSpec(
        sweep=with_launcher(sweep_from_options(content), launcher, launch),
        trials=trials,
        wave=wave,
        lr=parse_ends(lr, what="--lr"),
        batch_seqs=None if one_batch else parse_ends(batch_seqs, what="--batch-seqs"),
        weight_decay=parse_ends(weight_decay, what="--weight-decay"),
        beta2=parse_ends(beta2, what="--beta2"),
        is_pruned=prune,
        seed=seed,
    )
    asked = {"predict": predict, "level": level, "n_replicates": bootstrap}
    return search(
        spec,
        asked,
        results=results,
        device=device,
        workers=workers,
        dry_run=dry_run,
        yes=yes,
        as_json=as_json,
    )
